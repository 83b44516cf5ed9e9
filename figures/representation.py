"""What is in the embeddings, and did they collapse?

    python figures/representation.py --run runs/paper
    python figures/representation.py --run runs/s0 --run runs/s1 --run runs/s2    # training seeds

Gauges, on test worlds, of the shallow and the deep embedding of both encoders (context: clip 0,
target: the clip 25 frames later): deviation per dimension, mean |off-diagonal correlation|,
spectrum of the covariance, effective rank (RankMe), and the share of a dimension's variance that
lies within a world: variance over the clips of one sequence / variance over all clips. It would be
1 if clips were independent and is 0 for what never changes. A representation can pass VICReg by
encoding only what never changes.

Probes: ridge, trained on training worlds, strength chosen on validation worlds, R2 on test worlds,
with an interval over resampled test worlds. Position and velocity are in the observation: decoding
them is a sanity check. Energy and distance are what a linear read-out of the raw clip cannot give.
Columns with +25 ask for the last frame of the sequence, 25 frames later under random forces. The
encoders and the raw clip do not know the forces; the predictions P1 and P2 and `raw clip + forces`
do. A target embedding is of the last clip, and so are its columns.
Controls: raw clip, untrained model, shuffled labels.

Is what a linear probe misses lost, or only bent? Sources that end in "network" are read by a
network of two hidden layers beside the linear read-out, trained on sixteen times n other worlds for
--steps steps. Predictions are never read this way, since a network could foresee what P1 and P2 did
not. No probe is used in training or planning.
"""
import sys

from lib import cli, probes, stats
import hjepa
import numpy as np
import torch
import torch.nn as nn

NOW = ("position", "velocity", "pair distance", "kinetic energy")
FUTURE = ("position +25", "velocity +25")
RESAMPLES = 1000
FEWEST = 50                                     # test worlds: gauges need that many
READ_BY_NETWORK = ("context shallow", "context deep", "target shallow", "target deep",
                   "untrained shallow")
ARRAYS = ("std", "within", "spectrum")          # gauges with a value per dimension
COLOURS = {"raw clip": "0.6", "context shallow": "#2166ac", "target shallow": "#67a9cf",
           "untrained shallow": "#2166ac", "context deep": "#b2182b", "target deep": "#ef8a62",
           "untrained deep": "#b2182b"}


@torch.no_grad()
def gauges(name, path):
    """Embeddings (N, K, D) of the K clips of N sequences, the set's own clip first -> dict."""
    own = probes.gauges(path[:, 0])
    over_time = path.var(1).mean(0)
    over_all = path.flatten(0, 1).var(0).clamp_min(1e-12)
    within = over_time / over_all                                         # (D,)
    return {"set": name, **own, "within_min": within.min().item(),
            "within_mean": within.mean().item(), "within": within.sort().values.tolist()}


@torch.no_grad()
def encode_clips(encoder, obs, chunk=1024):
    """obs (N, K, T, F) -> shallow and deep embeddings (N, K, D) of all clips, on the CPU."""
    shallow, deep = [], []
    for part in obs.split(chunk):
        z1, z2 = encoder(part.flatten(0, 1))
        shallow.append(z1.cpu())
        deep.append(z2.cpu())
    clips = obs.shape[:2]
    return {"shallow": torch.cat(shallow).unflatten(0, clips),
            "deep": torch.cat(deep).unflatten(0, clips)}


def all_gauges(model, fresh, obs):
    """obs (N, K, T, F) -> gauges of the raw clip, of context, target and untrained embeddings."""
    context = encode_clips(model.context, obs)
    target = encode_clips(model.target, obs)
    untrained = encode_clips(fresh.context, obs)
    sets = [gauges("raw clip", obs.flatten(2).cpu())]
    for depth in ("shallow", "deep"):
        sets.append(gauges(f"context {depth}", context[depth]))
        sets.append(gauges(f"target {depth}", target[depth].flip(1)))     # its own clip is the last
        sets.append(gauges(f"untrained {depth}", untrained[depth]))
    return sets


@torch.no_grad()
def probe_data(run, fresh, world, n, seed, device, purpose):
    """-> dict source -> (features (N, P), dict target -> (N, Q)), on the CPU, float32."""
    config = run.config
    states, forces, _ = hjepa.draw_sequences(world, config, n, seed, purpose, device)
    obs = world.observe(states)
    now = hjepa.probe_targets(states[:, 0, -1], config.masses)
    last = hjepa.probe_targets(states[:, -1, -1], config.masses)
    future = {"position +25": last["position"], "velocity +25": last["velocity"]}
    both = {**now, **future}
    z = hjepa.latents(run.model, obs, forces)
    start = hjepa.latents(fresh, obs, forces)
    raw = obs[:, 0].flatten(1).cpu()
    raw_and_forces = torch.cat([raw, forces.flatten(1).cpu()], 1)
    return {"context shallow": (z["z1"], both), "context deep": (z["z2"], both),
            "target shallow": (z["t1"], last), "target deep": (z["t2"], last),
            "P1 prediction": (z["p1"], future), "P2 prediction": (z["p2"], future),
            "raw clip": (raw, both), "raw clip + forces": (raw_and_forces, future),
            "untrained shallow": (start["z1"], both), "untrained deep": (start["z2"], both),
            "untrained P1": (start["p1"], future), "untrained P2": (start["p2"], future),
            "shuffled labels": (z["z1"], both)}


def unit_columns(x, centre, scale):
    """x (N, P) -> its columns without their mean, at unit variance."""
    return (x - centre) / scale


def network_probe(x, y, test, steps, gen, device, width=512, batch=512, lr=2e-3):
    """Known x (N, P), y (N, Q); test (M, P) -> guess (M, Q), on the CPU.

    A linear map plus a network of two hidden layers, least squares, all columns at unit variance.
    Weights and batches are drawn from gen.
    """
    inputs, outputs = x.shape[1], y.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(gen.initial_seed())
        line = nn.Linear(inputs, outputs)
        bend = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width),
                             nn.GELU(), nn.Linear(width, outputs))
    both = nn.ModuleList([line, bend]).to(device)
    x_mean, x_scale = x.mean(0), x.std(0) + 1e-6
    y_mean, y_scale = y.mean(0), y.std(0) + 1e-6
    known = unit_columns(x, x_mean, x_scale).to(device)
    asked = unit_columns(test, x_mean, x_scale).to(device)
    answer = unit_columns(y, y_mean, y_scale).to(device)
    optimizer = torch.optim.AdamW(both.parameters(), lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = hjepa.learning_rate(step, steps, lr, 200)
        pick = torch.randint(len(x), (batch,), generator=gen).to(device)
        guess = line(known[pick]) + bend(known[pick])
        error = (guess - answer[pick]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    with torch.no_grad():
        guess = (line(asked) + bend(asked)).cpu()
    return guess * y_scale + y_mean


def r2_draws(guess, true, weight):
    """guess, true (N, Q); weight (draws, N): the share of a draw that is sample n -> (draws,) R2s,
    each the mean over columns."""
    missed = (guess - true).numpy() ** 2
    centred = (true - true.mean(0)).double().numpy()
    mean = weight @ centred
    variance = weight @ centred ** 2 - mean ** 2
    return (1 - weight @ missed / variance).mean(1)


def judge(guess, true, weight):
    """-> R2, the mean over columns; of the worst column; of resampled test worlds."""
    r2 = hjepa.r2(guess, true.to(guess.dtype))
    return r2.mean().item(), r2.min().item(), r2_draws(guess, true, weight)


def linear_probe(train, validation, test, weight):
    """Three pairs (x, y) -> what `judge` says of a ridge read-out."""
    matrix, offset = hjepa.ridge(train, validation)
    x, y = test
    return judge(x.double() @ matrix + offset, y, weight)


def shuffled(pair, gen):
    """(x, y) -> x, and y of other samples."""
    x, y = pair
    return x, y[torch.randperm(len(y), generator=gen)]


def linear_probes(run, data, weight):
    """data: training, validation, test worlds of `probe_data` -> dict (source, target) -> judge."""
    found = {}
    pairs = [(source, target) for source, (_, targets) in data[0].items() for target in targets]
    for source, target in hjepa.progress(pairs, f"probes, seed {run.config.seed}", len(pairs)):
        parts = []
        for part in data:
            x, targets = part[source]
            parts.append((x, targets[target]))
        train, validation, test = parts
        if source == "shuffled labels":         # of training and validation, not of the test
            gen = hjepa.generator(run.config.seed, "shuffled labels")
            train, validation = shuffled(train, gen), shuffled(validation, gen)
        found[source, target] = linear_probe(train, validation, test, weight)
    return found


def network_probes(run, data, test, args, weight):
    """data: many training worlds -> dict (source, target) -> judged, of test worlds."""
    found = {}
    for source in hjepa.progress(READ_BY_NETWORK, "network probes", len(READ_BY_NETWORK)):
        (x, targets), (test_x, truths) = data[source], test[source]
        names = [name for name in NOW if name in targets]
        y = torch.cat([targets[name] for name in names], 1)
        gen = hjepa.generator(run.config.seed, "network probe", 1)
        guess = network_probe(x, y, test_x, args.steps, gen, args.device)
        columns = [truths[name].shape[1] for name in names]
        for name, part in zip(names, guess.split(columns, 1)):
            found[f"{source}, network", name] = judge(part, truths[name], weight)
    return found


def probe_run(run, args, world, weight):
    """-> dict (source, target) -> R2, R2 of the worst column, R2s over resampled test worlds."""
    config = run.config
    fresh = hjepa.build_model(config).to(args.device).eval()
    def data(n, seed, purpose="probe"):
        return probe_data(run, fresh, world, n, seed, args.device, purpose)
    training = data(4 * args.n, config.seed)
    validation = data(args.n, config.validation_seed)
    test = data(args.n, config.test_seed)
    found = linear_probes(run, (training, validation, test), weight)
    many = data(16 * args.n, config.seed, "network probe")
    found.update(network_probes(run, many, test, args, weight))
    return found


def resampling(n, rng):
    """-> (RESAMPLES, n): the share of each of n test worlds in each resample."""
    counts = []
    for pick in rng.integers(0, n, (RESAMPLES, n)):
        counts.append(np.bincount(pick, minlength=n))
    return np.stack(counts) / n


def probe_rows(args, runs, world):
    """-> rows: source, target, R2 over runs, its interval, the worst column of any run; with
    several runs also R2 of each. As in stats.resampled_means, all are resampled on the same worlds.
    """
    rng = np.random.default_rng(0)
    weight = resampling(args.n, rng)
    found = [probe_run(run, args, world, weight) for run in runs]
    drawn_runs = rng.integers(0, len(runs), (len(runs), RESAMPLES))
    rows = []
    for source, target in found[0]:
        r2, worst, draws = [], [], []
        for judged in found:
            run_r2, run_worst, run_draws = judged[source, target]
            r2.append(run_r2)
            worst.append(run_worst)
            draws.append(run_draws)
        draws = np.take_along_axis(np.stack(draws), drawn_runs, 0).mean(0)
        row = {"source": source, "target": target, "r2": float(np.mean(r2)),
               "r2_ci": stats.percentiles(draws), "r2_worst_column": min(worst)}
        if len(runs) > 1:
            row["r2_runs"] = r2
        rows.append(row)
    return rows


def draw_probes(ax, rows):
    """R2 of each source, a dot per target with its interval. What is below 0 is drawn as 0."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    shifts = np.linspace(-0.3, 0.3, len(NOW + FUTURE))
    for target, shift, colour in zip(NOW + FUTURE, shifts, hjepa.COLOURS):
        mine = [row for row in rows if row["target"] == target]
        places = [sources.index(row["source"]) + shift for row in mine]
        ax.plot(np.clip([row["r2"] for row in mine], 0, 1), places, "o", ms=4, color=colour,
                label=target)
        for row, place in zip(mine, places):
            ax.plot(np.clip(row["r2_ci"], 0, 1), [place, place], color=colour, lw=1)
    ax.set_yticks(range(len(sources)), sources, fontsize=8)
    ax.set(title="probes: R2 on test worlds (below 0: drawn as 0)", xlim=(-0.02, 1.02),
           ylim=(len(sources) - 0.5, -0.5))
    ax.grid(axis="x", color="0.9")
    ax.legend(fontsize=8)


def line_style(name):
    """Dotted for the untrained model, dashed for the raw clip."""
    if "untrained" in name:
        return ":"
    return "--" if "raw" in name else "-"


def draw_gauge(ax, sets, key, title):
    """A gauge dimension by dimension, a line per set and run."""
    for one in sets:
        values = one[key]
        label = one["set"] if one["seed"] == sets[0]["seed"] else None    # one label for all runs
        ax.plot(np.linspace(0, 1, len(values)), values, line_style(one["set"]),
                color=COLOURS[one["set"]], label=label)
    ax.set(title=title, xlabel="dimension, 0: first, 1: last", ylim=(0, None))
    ax.legend(fontsize=8)


def draw(rows, sets):
    """-> figure: R2 of the probes, and the gauges dimension by dimension."""
    figure, ((dots, std), (spectrum, within)) = hjepa.new_figure(2, 2, 17, 11)
    draw_probes(dots, rows)
    draw_gauge(std, sets, "std", "deviation per dimension, sorted")
    draw_gauge(within, sets, "within", "share of variance within a world, sorted")
    draw_gauge(spectrum, sets, "spectrum", "spectrum of the covariance")
    spectrum.set(yscale="log", ylim=(1e-4, None))
    return figure


def print_set(one):
    """The gauges of a set in one line."""
    print("seed {seed}, {set:>17}: deviation {std_min:.2f} to {std_max:.2f}, |correlation| "
          "{correlation:.3f}, rank {rank:.0f} of {dimensions}, within a world {within_min:.2f} "
          "at least, {within_mean:.2f} on average".format(**one))


def print_source(source, rows):
    """R2 of one source in one line."""
    parts = [f"{row['target']} {row['r2']:.3f}" for row in rows if row["source"] == source]
    print(f"{source:>26}: {', '.join(parts)}")


def measure(args, runs):
    """-> Results: probe rows, gauges, their arrays, the figure."""
    if args.n < FEWEST:
        raise hjepa.Refusal(f"--n {args.n}: probes and gauges need at least {FEWEST} test worlds")
    world = hjepa.build_world(runs[0].config)
    sets = []
    for run in runs:
        states, _, _ = hjepa.draw_sequences(world, run.config, args.n, run.config.test_seed,
                                            "worlds", args.device)
        fresh = hjepa.build_model(run.config).to(args.device).eval()
        for one in all_gauges(run.model, fresh, world.observe(states)):
            sets.append({"seed": run.config.seed, **one})
            print_set(sets[-1])
    rows = probe_rows(args, runs, world)
    for source in dict.fromkeys(row["source"] for row in rows):
        print_source(source, rows)
    arrays = {}
    summary = []
    for one in sets:
        for key in ARRAYS:
            arrays[f"{key}/{one['set']}/{one['seed']}"] = np.array(one[key], dtype=np.float32)
        summary.append({key: value for key, value in one.items() if key not in ARRAYS})
    content = {"intervals": stats.interval_note(runs, RESAMPLES), "rows": rows, "gauges": summary}
    return cli.Results(args.n, content, arrays, lambda: draw(rows, sets))


if __name__ == "__main__":
    worlds = "test worlds; as many for validation, four times as many to train probes"
    numbers = {"n": (4096, worlds),
               "steps": (3000, "training steps of a network probe")}
    sys.exit(cli.main(cli.make_parser("representation", __doc__, **numbers), measure))
