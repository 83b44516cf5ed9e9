"""Does it predict? Error against horizon.

    python figures/dynamics.py --run runs/paper
    python figures/dynamics.py --run runs/quick --n 512
    python figures/dynamics.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

P1 is rolled out to 5, 10, 15, 20 and 25 frames, P2 jumps to 25, on test worlds. Two errors:

    latent error     squared error of the predicted embedding, in variances of the embedding to be
                     predicted (1: no better than its mean)
    position error   of the places that a linear probe reads from the prediction: mean distance over
                     bodies, in half boxes

P1 and P2 are given the true forces, those of another world ("shuffled") or none ("zero").
latent_more is the paired difference to the true forces. They are compared with

    probe alone        read from the embedding itself: the error of the probe
    copy last          nothing changes
    fly and fold       parabolas and walls, from the true state and the true forces; no contacts
    decoded simulator  the true simulator, started from the state that a probe reads from z1

All errors are also given by contacts: the frames up to the horizon in which two bodies met. The
JSON has the last horizon, the NPZ all of them. A mean over no world is null. The probes are
described in figures/lib/readouts.py.
"""
import sys

from lib import cli, drawing, readouts, stats
import hjepa
import numpy as np
import torch

# Strata by number of contacts: at least, at most.
MANY = 10**9
CONTACTS = {"all": (0, MANY), "0": (0, 0), "1": (1, 1), "2+": (2, MANY)}
ERRORS = ("latent_error", "position_error")
FORCES = ("true", "shuffled", "zero")


def latent_error(guess, target):
    """Embeddings (N, D) -> (N,): squared error in variances of the target."""
    variance = target.var(0).sum().clamp_min(1e-12)
    return (guess - target).square().sum(-1) / variance


def position_error(guess, place):
    """guess (N, 2 bodies) or (N, bodies, 2), place (N, bodies, 2) -> (N,): mean over bodies."""
    return (guess.reshape(place.shape) - place).norm(dim=-1).mean(-1)


def prediction_errors(run, z, forces, place, reads, device):
    """Both errors of P1 and P2 under each kind of forces -> dict as in `run_errors`."""
    errors = {}
    last = run.config.event_clips
    told = {"true": forces, "shuffled": forces.roll(1, 0), "zero": 0 * forces}
    for name in FORCES:
        p1, p2 = readouts.predict(run, z, told[name], device)
        for clips in range(1, last + 1):
            guess = p1[:, clips - 1]
            errors["P1", "short", name, clips] = {
                "latent_error": latent_error(guess, z["t1"][:, clips]),
                "position_error": position_error(reads.place1(guess), place[:, clips])}
        errors["P2", "macro", name, last] = {
            "latent_error": latent_error(p2, z["t2"][:, 1]),
            "position_error": position_error(reads.place2(p2), place[:, last])}
    return errors


def reference_errors(run, world, start, forces, z, place, reads):
    """Errors of what the predictors are compared with -> dict as in `run_errors`.

    start (N, bodies, 4): the true state in the last frame of the first clip.
    """
    config = run.config
    errors = {}
    last = config.event_clips
    blind = hjepa.without_contacts(world)
    flight, _ = blind.rollout(start, forces, config.clip_frames)
    read_start = reads.state1(z["z1"]).unflatten(-1, (-1, 4))
    simulated, _ = world.rollout(read_start, forces, config.clip_frames)
    t1 = z["t1"]
    t2 = z["t2"]
    for clips in range(1, last + 1):
        frame = clips * config.clip_frames - 1
        there = place[:, clips]
        errors["probe alone", "short", None, clips] = {
            "position_error": position_error(reads.place1(t1[:, clips]), there)}
        errors["copy last", "short", None, clips] = {
            "latent_error": latent_error(t1[:, 0], t1[:, clips]),
            "position_error": position_error(place[:, 0], there)}
        errors["fly and fold", None, None, clips] = {
            "position_error": position_error(flight[:, frame, :, :2], there)}
        errors["decoded simulator", None, None, clips] = {
            "position_error": position_error(simulated[:, frame, :, :2], there)}
    errors["probe alone", "macro", None, last] = {
        "position_error": position_error(reads.place2(t2[:, 1]), place[:, last])}
    errors["copy last", "macro", None, last] = {
        "latent_error": latent_error(t2[:, 0], t2[:, 1]),
        "position_error": position_error(place[:, 0], place[:, last])}
    return errors


def run_errors(run, world, states, forces, args):
    """states (N, K, T, bodies, 4), forces (N, K-1, A) -> dict (method, level, forces, clips) ->
    dict of latent_error, where there is one, and position_error, (N,) each."""
    reads = readouts.fit(run, world, args.n, args.device)
    z = readouts.encode(run, world, states, args.device)
    last_frames = states[:, :, -1]
    place = last_frames[..., :2]                                          # (N, K, bodies, 2)
    predicted = prediction_errors(run, z, forces, place, reads, args.device)
    compared = reference_errors(run, world, last_frames[:, 0], forces, z, place, reads)
    return {**predicted, **compared}


def horizon_rows(errors, contacts, clip_frames):
    """errors: what `run_errors` gave for each run; contacts (N, K): frames with a contact up to
    each horizon. -> a row per method, level, forces, horizon and stratum."""
    rows = []
    for key in errors[0]:
        method, level, forces, clips = key
        met = contacts[:, clips - 1]
        for stratum, (low, high) in CONTACTS.items():
            chosen = (met >= low) & (met <= high)
            row = {"method": method, "level": level, "forces": forces,
                   "frames": clips * clip_frames, "contacts": stratum, "n": int(chosen.sum())}
            values = {}
            for name in errors[0][key]:
                of_runs = np.stack([found[key][name].numpy() for found in errors])
                values[name] = of_runs[:, chosen]                         # (runs, worlds)
                row[name] = None
                row[name + "_ci"] = None
                if chosen.any():
                    row[name] = values[name].mean().item()
                    row[name + "_ci"] = stats.interval(values[name])
            if forces in ("shuffled", "zero") and chosen.any():
                true = [found[method, level, "true", clips]["latent_error"] for found in errors]
                true = torch.stack(true).numpy()[:, chosen]
                difference, interval = stats.paired_interval(values["latent_error"], true)
                row["latent_more"], row["latent_more_ci"] = difference, interval
            rows.append(row)
    return rows


def curves(rows):
    """Rows -> arrays over the horizon. QUANTITY/METHOD/LEVEL/FORCES/CONTACTS: frames and n
    (horizons,), errors (horizons, 3): mean, low, high; NaN where there is no world."""
    series = {}
    for row in rows:
        level = row["level"] or "both"
        forces = row["forces"] or "none"
        name = f"{row['method']}/{level}/{forces}/{row['contacts']}"
        series.setdefault(name, []).append(row)
    arrays = {}
    for name, found in series.items():
        arrays["frames/" + name] = np.array([row["frames"] for row in found])
        arrays["n/" + name] = np.array([row["n"] for row in found])
        for error in ERRORS:
            if error in found[0]:
                table = np.full((len(found), 3), np.nan, dtype=np.float32)
                for i, row in enumerate(found):
                    if row["n"]:
                        table[i] = [row[error], *row[error + "_ci"]]
                arrays[f"{error}/{name}"] = table
    return arrays


def print_row(row):
    """Position error of one method at the last horizon."""
    told = f"{row['forces']} forces" if row["forces"] else ""
    print(f"{row['method']:>17} {row['level'] or '':5} {told:15}: position error "
          f"{row['position_error']:.4f} at {row['frames']} frames")


def select(rows, method, contacts="all", forces="true", frames=None):
    """-> rows of one method, for the pictures: `forces` matters for P1 and P2 only, and of what is
    measured at both levels the short one is shown."""
    found = []
    for row in rows:
        if row["method"] != method or row["contacts"] != contacts:
            continue
        if method in ("P1", "P2") and row["forces"] != forces:
            continue
        if method != "P2" and row["level"] == "macro":
            continue
        if frames is None or row["frames"] == frames:
            found.append(row)
    return found


def draw_horizon(ax, rows, methods, error):
    """An error over the horizon, one line per method that has it."""
    for method, colour in zip(methods, hjepa.COLOURS):
        found = select(rows, method)
        if error in found[0]:
            frames = [row["frames"] for row in found]
            values = [row[error] for row in found]
            ax.plot(frames, values, "o-", color=colour, label=method)
    ax.set(xlabel="frames ahead", yscale="log")


def draw_contacts(ax, rows, methods, last):
    """Position error at the last horizon, by contacts."""
    strata = [name for name in CONTACTS if name != "all"]
    groups = {}
    for method in methods:
        groups[method] = [select(rows, method, contacts=name, frames=last)[0] for name in strata]
    ticks = [f"{row['contacts']} ({row['n']} worlds)" for row in groups["P1"]]
    drawing.bars(ax, groups, ticks, "position_error")


def draw_forces(ax, rows, cases):
    """Latent error by the forces that the predictor is given. cases: (method, frames)."""
    groups = {}
    for forces in FORCES:
        groups[f"{forces} forces"] = [select(rows, method, forces=forces, frames=frames)[0]
                                      for method, frames in cases]
    ticks = [f"{method}, {frames} frames" for method, frames in cases]
    drawing.bars(ax, groups, ticks, "latent_error")


def draw(rows, config):
    """-> figure: both errors over the horizon, by contacts, by forces."""
    figure, ((far, near), (latent, acts)) = hjepa.new_figure(2, 2, 13, 9)
    methods = ("P1", "P2", "copy last", "fly and fold", "decoded simulator", "probe alone")
    clip = config.clip_frames
    last = clip * config.event_clips
    draw_horizon(far, rows, methods, "position_error")
    draw_contacts(near, rows, methods, last)
    draw_horizon(latent, rows, methods, "latent_error")
    draw_forces(acts, rows, [("P1", clip), ("P1", last), ("P2", last)])
    far.set(title="position decoded from the prediction", ylabel="mean distance, half boxes")
    near.set(title=f"the same at {last} frames, by contacts until then", ylabel="half boxes")
    latent.set(title="error / variance of the embedding")
    acts.set(title="error / variance of the embedding, by the forces given", yscale="log")
    near.margins(y=0.4)                                                   # room for the legends
    acts.margins(y=0.3)
    for ax in (far, near, latent, acts):
        ax.legend(fontsize=7, ncols=2 if ax is near else 1)
    return figure


def measure(args, runs):
    """-> Results: the rows of the last horizon, the curves over all horizons, the figure."""
    config = runs[0].config
    world = hjepa.build_world(config)
    states, forces, contacts = hjepa.draw_sequences(world, config, args.n, config.test_seed,
                                                    "dynamics", "cpu")
    errors = []
    for run in hjepa.progress(runs, "runs", len(runs)):
        errors.append(run_errors(run, world, states, forces, args))
    contacts_so_far = contacts[:, 1:].sum(-1).cumsum(1).numpy()           # (N, K - 1)
    rows = horizon_rows(errors, contacts_so_far, config.clip_frames)
    last = config.event_clips * config.clip_frames
    at_last = [row for row in rows if row["frames"] == last]
    for row in at_last:
        if row["contacts"] == "all":
            print_row(row)
    return cli.Results(args.n, {"rows": at_last}, curves(rows), lambda: draw(rows, config))


if __name__ == "__main__":
    parser = cli.make_parser("dynamics", __doc__, n=(4096, "test worlds"))
    sys.exit(cli.main(parser, measure))
