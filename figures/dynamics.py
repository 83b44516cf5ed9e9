"""Does it predict, and does it answer "what if"?

    python figures/dynamics.py --run runs/paper
    python figures/dynamics.py --run runs/quick --n 512
    python figures/dynamics.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

Three sections, all on test worlds. A figure that the worlds drawn cannot give is null.

rows: error against horizon; P1 rolled out to 5, 10, 15, 20, 25 frames, P2's jump to 25. Latent:
squared error over the variance of the embedding to be predicted (1: no better than its mean).
Position: what a linear probe reads from the prediction, mean distance over bodies, half boxes.
P1 and P2 are given the true forces, another world's ("shuffled") or none ("zero"); latent_more is
the paired difference to the true ones. Beside them
    probe alone        read from the embedding itself: the probe's own error
    copy last          nothing changes
    fly and fold       parabola and walls, from the true state and the true forces; no hits
    decoded simulator  the true simulator, from place and velocity read from z1
each also by contacts: frames up to the horizon in which two bodies met.

counterfactuals: same start, a constant force on ONE body against none. For the pushed body: decoded
against true change of place, both axes pooled: Pearson r, slope, and sign agreement where the true
change exceeds `threshold`, a tenth of what the largest force moves that body freely. The same for
the other bodies, in worlds where bodies met (body "others"). Leakage: decoded change of another
body, mean, over that of the pushed one, in worlds where no bodies met under either force.

masses: decoded acceleration per unit force of the pushed body, where neither wall nor hit
interfered, and its slope against 1 / mass: 1 if the model knows Newton's law.

Probes are linear (ridge), from the target encoder's embedding to place, fitted on embeddings of
training worlds. Their strength is the one that reads the predictions for validation worlds best:
chosen on embeddings it would be too weak, and read directions that no predictor can know.
"""
import sys

import common
import hjepa
import numpy as np
import torch

CONTACTS = {"all": (0, 10**9), "0": (0, 0), "1": (1, 1), "2+": (2, 10**9)}  # at least, at most

class Ghosts(hjepa.World):
    """The same box and the same forces, but bodies fly through each other."""

    def _collide(self, x, v, dt, hit):
        pass

@torch.no_grad()
def look(run, world, states, args, chunk=1024):
    """states (N, K, T, bodies, 4) -> dict on the CPU: z1, z2 (N, D) of the first clip; t1 (N, K, D)
    of all clips; t2 (N, 2, D) of the first and the last."""
    parts = []
    for part in states.to(args.device).split(chunk):
        obs = world.observe(part)
        with hjepa.autocast(args.device, args.precision):
            z1, z2 = run.model.context(obs[:, 0])
            t1, t2 = zip(*(run.model.target(clip) for clip in obs.unbind(1)))
        parts.append((z1, z2, torch.stack(t1, 1), torch.stack((t2[0], t2[-1]), 1)))
    return {k: torch.cat(z).float().cpu() for k, z in zip(("z1", "z2", "t1", "t2"), zip(*parts))}

@torch.no_grad()
def imagine(run, z, forces, args, chunk=4096):
    """What `look` gave, forces (N, K, A) -> predictions p1 (N, K, D), p2 (N, D), on the CPU."""
    parts = []
    for z1, z2, f in zip(*(x.to(args.device).split(chunk) for x in (z["z1"], z["z2"], forces))):
        with hjepa.autocast(args.device, args.precision):
            parts.append((run.model.rollout(z1, f), run.model.jump(z2, f)))
    return [torch.cat(p).float().cpu() for p in zip(*parts)]

def linear(train, validation):
    """Two pairs x (N, P), y (N, Q) -> function (..., P) -> (..., Q), the read-out of hjepa.ridge:
    an affine map is known by its values at 0 and at the unit vectors."""
    basis = torch.cat([torch.zeros(1, train[0].shape[1]), torch.eye(train[0].shape[1])])
    _, values = hjepa.ridge(train, validation, (basis, torch.zeros(len(basis), train[1].shape[1])))
    return lambda z: (z.double() @ (values[1:] - values[0]) + values[0]).float()

def fit_probes(run, world, args):
    """-> functions: place from t1, place from t2, place and velocity from z1."""
    n, pairs = max(args.n, 1024), []
    for seed, count in ((run.config.seed, 4 * n), (run.config.validation_seed, n)):
        states, forces, _ = hjepa.sequences(world, run.config, count, seed, "dynamics probe", "cpu")
        z, last = look(run, world, states, args), states[:, :, -1]        # (count, K, bodies, 4)
        x1, x2 = z["t1"][:, 1:], z["t2"][:, 1]
        if seed == run.config.validation_seed:
            x1, x2 = imagine(run, z, forces, args)
        place = last[..., :2].flatten(2)                                  # (count, K, 2 bodies)
        pairs.append(((x1.flatten(0, 1), place[:, 1:].flatten(0, 1)), (x2, place[:, -1]),
                      (z["z1"], last[:, 0].flatten(1))))
    return [linear(*pair) for pair in zip(*pairs)]

def horizon_errors(run, world, states, forces, z, probes, args):
    """-> dict (method, level, forces, clips ahead) -> latent error or None, position error (N,)."""
    c, (place1, place2, state1), out = run.config, probes, {}
    true, start, last = states[:, 1:, -1, :, :2], states[:, 0, -1], run.config.steps

    def gone(guess, k):
        return (guess.reshape(len(guess), -1, 2) - true[:, k - 1]).norm(dim=-1).mean(-1)

    def share(guess, target):
        return (guess - target).square().sum(-1) / target.var(0).sum().clamp_min(1e-12)
    t1, t2, each = z["t1"], z["t2"], forces.unflatten(-1, (-1, 2))
    for name, f in (("true", forces), ("shuffled", forces.roll(1, 0)), ("zero", 0 * forces)):
        p1, p2 = imagine(run, z, f, args)
        for k in range(1, last + 1):
            p = p1[:, k - 1]
            out["P1", "short", name, k] = share(p, t1[:, k]), gone(place1(p), k)
        out["P2", "macro", name, last] = share(p2, t2[:, 1]), gone(place2(p2), last)
    ghosts = Ghosts(c.masses, c.radius, c.frame, c.substeps, c.force_limit)
    fold, _ = ghosts.rollout(start, each, c.hold)
    again, _ = world.rollout(state1(z["z1"]).unflatten(-1, (-1, 4)), each, c.hold)
    for k in range(1, last + 1):
        frame, stay = k * c.hold - 1, gone(start[..., :2], k)
        out["probe alone", "short", None, k] = None, gone(place1(t1[:, k]), k)
        out["copy last", "short", None, k] = share(t1[:, 0], t1[:, k]), stay
        out["fly and fold", None, None, k] = None, gone(fold[:, frame, :, :2], k)
        out["decoded simulator", None, None, k] = None, gone(again[:, frame, :, :2], k)
    out["probe alone", "macro", None, last] = None, gone(place2(t2[:, 1]), last)
    out["copy last", "macro", None, last] = share(t2[:, 0], t2[:, 1]), stay
    return out

def push(run, world, start, z, probes, args):
    """The counterfactual. -> forces (N, pushed, 2), and a dict (level, frames) -> decoded change,
    true change (N, pushed, bodies, 2), whether bodies met in either rollout (N, pushed)."""
    c, bodies, n, rollouts, out = run.config, len(run.config.masses), len(start), [], {}
    gen = hjepa.generator(c.test_seed, "pushes")
    f = c.force_limit * (2 * torch.rand(n, bodies, 2, generator=gen) - 1)
    for body in (None, *range(bodies)):                                   # the first: no force
        forces = torch.zeros(n, c.steps, bodies, 2)
        if body is not None:
            forces[:, :, body] = f[:, None, body]
        states, hits = world.rollout(start, forces, c.hold)
        p1, p2 = imagine(run, z, forces.flatten(2), args)
        rollouts.append((states[..., :2], hits, probes[0](p1), probes[1](p2)))
    states, hits, decoded1, decoded2 = (torch.stack(x, 1) for x in zip(*rollouts))
    for level, k in (("short", 1), ("short", c.steps), ("macro", c.steps)):
        guess = (decoded1[:, :, k - 1] if level == "short" else decoded2).unflatten(-1, (-1, 2))
        true, met = states[:, :, k * c.hold - 1], hits[:, :, :k * c.hold].any(-1)
        out[level, k * c.hold] = (guess[:, 1:] - guess[:, :1], true[:, 1:] - true[:, :1],
                                  met[:, 1:] | met[:, :1])
    return f, out

def estimate(names, statistic, moments):
    """statistic(*means of moments) gives one figure per name; moments: (seeds, N) each.
    -> dict of the figures and their intervals; None where the worlds drawn do not give them."""
    with np.errstate(all="ignore"):
        point = statistic(*(m.mean() for m in moments))
        spread = statistic(*(common.resampled_means(m) for m in moments))
    row = {}
    for name, value, draws in zip(names, point, spread):
        known = np.isfinite(value)
        row[name] = float(value) if known else None
        row[name + "_ci"] = common.percentiles(draws[np.isfinite(draws)]) if known else None
    return row

def agreement(true, guess, count, enough):
    """Changes (seeds, N, ...), which of them to count, the smallest change whose sign counts ->
    Pearson, slope of guess over true, sign agreement. The numbers of a world go together."""
    def statistic(n, x, y, xx, yy, xy, same, judged):
        x, y, xx, yy, xy = x / n, y / n, xx / n, yy / n, xy / n
        cov, var = xy - x * y, xx - x * x
        return cov / np.sqrt(var * (yy - y * y)), cov / var, same / judged
    judged = np.abs(true) > enough
    numbers = (np.ones_like(true), true, guess, true * true, guess * guess, true * guess,
               judged & (true * guess > 0), judged)
    return estimate(("pearson", "slope", "sign_agreement"), statistic,
                    [(count * v).reshape(*true.shape[:2], -1).sum(-1) for v in numbers])

def counterfactuals(pushes, masses, limit, frame):
    """pushes: what `push` gave for each run -> rows of counterfactuals, rows of masses."""
    rows, newton, bodies, inverse = [], [], len(masses), 1 / np.array(masses)
    force, other = pushes[0][0].numpy(), ~np.eye(bodies, dtype=bool)      # (N, pushed, 2)
    for level, frames in pushes[0][1]:
        guess, true, met = (np.stack([out[level, frames][i].numpy() for _, out in pushes])
                            for i in range(3))                  # (seeds, N, pushed, bodies, 2)
        guess, true = guess.astype(float), true.astype(float)
        key, free = {"level": level, "frames": frames}, (frames * frame) ** 2 / 2 * inverse
        enough, size, moments = 0.1 * limit * free, np.linalg.norm(guess, axis=-1), []
        for b in range(bodies):
            own, own_true = guess[:, :, b, b], true[:, :, b, b]           # (seeds, N, 2)
            leak, apart = size[:, :, b, other[b]].sum(-1) / max(1, bodies - 1), ~met[:, :, b]
            rows.append({**key, "body": b, "mass": masses[b], "n": len(force),
                         "threshold": enough[b], **agreement(own_true, own, True, enough[b]),
                         "n_without_contact": int(apart[0].sum()),
                         **estimate(["leakage"], lambda top, bottom: [top / bottom],
                                    [apart * leak, apart * size[:, :, b, b]])})
            clear = np.abs(own_true - force[:, b] * free[b]).max(-1) < 1e-4     # no wall, no hit
            moments += [clear * (own * force[:, b]).sum(-1) * 2 / (frames * frame) ** 2,
                        clear * (force[:, b] ** 2).sum(-1)]
        rows.append({**key, "body": "others", "n": int(met[0].any(-1).sum()), **agreement(
            true, guess, met[..., None, None] & other[..., None], enough[:, None])})

        def law(*sums):
            a, centred = [t / b for t, b in zip(sums[::2], sums[1::2])], inverse - inverse.mean()
            return *a, sum(c * v for c, v in zip(centred, a)) / (centred ** 2).sum()
        names = *(f"acceleration_{b}" for b in range(bodies)), "slope"
        newton.append({**key, "inverse_mass": inverse.tolist(), **estimate(names, law, moments),
                       "n": [int((m[0] > 0).sum()) for m in moments[1::2]]})
    return rows, newton

def horizon_rows(errors, met, hold):
    """errors: what horizon_errors gave for each run; met (N, K): contacts so far -> rows."""
    rows, stack = [], lambda key, i: np.stack([e[key][i].numpy() for e in errors])
    for method, level, forces, k in errors[0]:
        key = method, level, forces, k
        for contacts, (low, high) in CONTACTS.items():
            pick = (met[:, k - 1] >= low) & (met[:, k - 1] <= high)
            row = {"method": method, "level": level, "forces": forces, "frames": k * hold,
                   "contacts": contacts, "n": int(pick.sum())}
            for i, name in enumerate(("latent_error", "position_error")):
                known = errors[0][key][i] is not None and pick.any()
                values = stack(key, i)[:, pick] if known else None
                row[name] = values.mean().item() if known else None
                row[name + "_ci"] = common.interval(values) if known else None
                if known and i == 0 and forces in ("shuffled", "zero"):
                    row["latent_more"], row["latent_more_ci"] = common.paired_interval(
                        values, stack((method, level, "true", k), 0)[:, pick])
            rows.append(row)
    return rows

def measure(args, runs):
    """-> figure, n, the three sections."""
    config, world, errors, pushes = runs[0].config, hjepa.build_world(runs[0].config), [], []
    states, forces, hits = hjepa.sequences(world, config, args.n, config.test_seed, "dynamics",
                                           "cpu")
    last = config.steps * config.hold
    for run in hjepa.bar(runs, "runs", len(runs)):
        probes, z = fit_probes(run, world, args), look(run, world, states, args)
        errors.append(horizon_errors(run, world, states, forces, z, probes, args))
        pushes.append(push(run, world, states[:, 0, -1], z, probes, args))
    rows = horizon_rows(errors, hits[:, 1:].sum(-1).cumsum(1).numpy(), config.hold)
    changes, newton = counterfactuals(pushes, config.masses, config.force_limit, config.frame)
    for row in (r for r in rows if r["contacts"] == "all" and r["frames"] == last):
        told = row["forces"] and row["forces"] + " forces"
        print(f"{row['method']:>17} {row['level'] or '':5} {told or '':15}: position error "
              f"{row['position_error']:.4f} at {last} frames")
    for row in changes + newton:
        print(f"{row['level']}, {row['frames']:2} frames, body {row.get('body', 'accelerations')}: "
              + ", ".join(f"{k} {v:.3f}" for k, v in row.items() if v is not None and k in
                          ("pearson", "slope", "sign_agreement", "leakage")))
    figure = draw(rows, newton, pushes[0][1]["macro", last], config)
    return figure, args.n, {"rows": rows, "counterfactuals": changes, "masses": newton}

def bars(ax, groups, ticks, name):
    """groups: label -> one row per tick. Bars with intervals; where there is no figure, none."""
    for i, (label, rows) in enumerate(groups.items()):
        value, low, high = np.array([[np.nan] * 3 if r[name] is None else
                                     [r[name], *r[name + "_ci"]] for r in rows]).T
        at = np.arange(len(ticks)) + 0.8 * ((i + 0.5) / len(groups) - 0.5)
        ax.bar(at, value, 0.75 / len(groups), color=hjepa.COLOURS[i], label=label)
        ax.errorbar(at, value, [value - low, high - value], fmt="none", ecolor="0.3", lw=1)
    ax.set_xticks(range(len(ticks)), ticks)

def draw(rows, newton, pushed, config):
    """-> figure: errors over the horizon, by contacts, by forces; counterfactuals; Newton's law."""
    figure, ((far, near, latent), (acts, cloud, law)) = hjepa.canvas(2, 3, 17, 9)
    methods, last = ("P1", "P2", "copy last", "fly and fold", "decoded simulator",
                     "probe alone"), config.hold * config.steps

    def pick(method, **wanted):
        wanted = {"forces": "true" if method in ("P1", "P2") else None, **wanted}
        return [r for r in rows if (method == "P2" or r["level"] != "macro")
                and r["method"] == method and all(r[k] == v for k, v in wanted.items())]
    for method, colour in zip(methods, hjepa.COLOURS):
        found = pick(method, contacts="all")
        for ax, name in ((far, "position_error"), (latent, "latent_error")):
            if found[0][name] is not None:
                ax.plot([r["frames"] for r in found], [r[name] for r in found], "o-", color=colour,
                        label=method)
    groups = {m: [pick(m, contacts=c, frames=last)[0] for c in list(CONTACTS)[1:]] for m in methods}
    bars(near, groups, [f"{r['contacts']} ({r['n']} worlds)" for r in groups["P1"]],
         "position_error")
    cases = ("P1", config.hold), ("P1", last), ("P2", last)
    bars(acts, {f"{f} forces": [pick(m, forces=f, frames=t, contacts="all")[0] for m, t in cases]
                for f in ("true", "shuffled", "zero")}, [f"{m}, {t} frames" for m, t in cases],
         "latent_error")
    for b, mass in enumerate(config.masses):
        guess, true = (x[:600, b, b].numpy().ravel() for x in pushed[:2])
        cloud.plot(true, guess, ".", ms=3, color=hjepa.COLOURS[b % 6], label=f"mass {mass:g}")
    for row, colour in zip(newton, hjepa.COLOURS):
        found = [(x, row[f"acceleration_{b}"]) for b, x in enumerate(row["inverse_mass"])]
        law.plot(*zip(*((x, np.nan if a is None else a) for x, a in found)), "o-", color=colour,
                 label=f"{row['level']}, {row['frames']} frames")
    for ax in (cloud, law):
        ax.axline((0, 0), slope=1, color="0.6", lw=0.8)
    far.set(title="position decoded from the prediction", xlabel="frames ahead", yscale="log",
            ylabel="mean distance, half boxes")
    near.set(title=f"the same at {last} frames, by contacts until then", ylabel="half boxes")
    latent.set(title="error / variance of the embedding", xlabel="frames ahead", yscale="log")
    acts.set(title="error / variance of the embedding, by the forces told", yscale="log")
    cloud.set(title=f"macro level: one body pushed for {last} frames", ylabel="decoded change",
              xlabel="true change of place")
    law.set(title="decoded acceleration per unit force", xlabel="1 / mass")
    near.margins(y=0.4)                                                   # room for the legend
    for ax in (far, near, latent, acts, cloud, law):
        ax.legend(fontsize=7, ncols=2 if ax is near else 1)
    return figure

if __name__ == "__main__":
    sys.exit(common.main(common.make_parser("dynamics", __doc__, n=(4096, "test worlds")), measure))
