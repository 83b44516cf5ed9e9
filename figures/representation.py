"""What is in the latent, and did it collapse?

    python figures/representation.py --run runs/paper
    python figures/representation.py --run runs/s0 --run runs/s1 --run runs/s2    # training seeds

Gauges, on test worlds, of the shallow and deep tap of both encoders (context: clip 0, target: the
clip 25 frames later): deviation per dimension, mean |off-diagonal correlation|, spectrum of the
covariance, effective rank (RankMe), and the share of a dimension's variance that lies within a
world: variance over the clips of one sequence / variance over all clips. It would be 1 if clips
were independent and is 0 for what never changes; a representation can pass VICReg by encoding only
that.

Probes: ridge, trained on training worlds, strength chosen on validation worlds, R2 on test worlds,
with an interval over resampled test worlds. Position and velocity are in the observation: decoding
them is a sanity check. Energy and distance are what a linear read-out of the raw clip cannot give.
Columns with +25 ask for the last frame of the sequence, 25 frames later under random forces: the
encoders and the raw clip do not know the forces, the predictions P1 and P2 and `raw clip + forces`
do. A target embedding is of the last clip, and so are its columns.
Controls: raw clip, untrained model, shuffled labels.

Is what a linear probe misses lost, or only bent? Sources that end in "network" are read by a
network of two hidden layers beside the linear read-out, trained on sixteen times n other worlds for
--steps steps; never from predictions, since a network could foresee what P1 and P2 did not. No
probe is used in training or planning.
"""
import sys

import common
import hjepa
import numpy as np
import torch
import torch.nn as nn

NOW = ("position", "velocity", "pair distance", "kinetic energy")
FUTURE = ("position +25", "velocity +25")
RESAMPLES = 1000
READ_BY_NETWORK = ("context shallow", "context deep", "target shallow", "target deep",
                   "untrained shallow")
COLOURS = {"raw clip": "0.6", "context shallow": "#2166ac", "target shallow": "#67a9cf",
           "untrained shallow": "#2166ac", "context deep": "#b2182b", "target deep": "#ef8a62",
           "untrained deep": "#b2182b"}


@torch.no_grad()
def gauges(name, path):
    """Embeddings (N, K, D) of the K clips of N sequences; the set's own clip is the first.
    -> dict of gauges."""
    cov, pooled = torch.cov(path[:, 0].T), path.flatten(0, 1)
    std = cov.diagonal().clamp_min(0).sqrt()
    corr = cov / (std[:, None] * std).clamp_min(1e-12)
    within = path.var(1).mean(0) / pooled.var(0).clamp_min(1e-12)         # (D,)
    return {"set": name, "dimensions": len(std), "std_min": std.min().item(),
            "std_mean": std.mean().item(), "std_max": std.max().item(),
            "correlation": corr[~torch.eye(len(std), dtype=torch.bool)].abs().mean().item(),
            "rank": hjepa.effective_rank(path[:, 0]), "within_min": within.min().item(),
            "within_mean": within.mean().item(), "std": std.sort().values.tolist(),
            "within": within.sort().values.tolist(),
            "spectrum": torch.linalg.eigvalsh(cov).flip(0).clamp_min(0).tolist()}


@torch.no_grad()
def all_gauges(model, fresh, obs, args, chunk=1024):
    """obs (N, K, T, F) -> rows of gauges: four sets, and the raw and the untrained clip."""
    def path(encoder, tap):
        with hjepa.autocast(args.device, args.precision):
            parts = [encoder(o.flatten(0, 1))[tap].float().cpu() for o in obs.split(chunk)]
        return torch.cat(parts).unflatten(0, obs.shape[:2])
    rows = [gauges("raw clip", obs.flatten(2).cpu())]
    for tap, depth in enumerate(("shallow", "deep")):
        rows += [gauges(f"context {depth}", path(model.context, tap)),
                 gauges(f"target {depth}", path(model.target, tap).flip(1)),
                 gauges(f"untrained {depth}", path(fresh.context, tap))]
    return rows


@torch.no_grad()
def probe_data(run, fresh, world, n, seed, args, purpose="probe"):
    """-> dict source -> (features (N, P), dict target -> (N, Q)), on the CPU, float32."""
    states, forces, _ = hjepa.sequences(world, run.config, n, seed, purpose, args.device)
    obs, masses = world.observe(states), run.config.masses
    now, last = (hjepa.physics(states[:, k, -1], masses) for k in (0, -1))
    future = {f"{what} +25": last[what] for what in ("position", "velocity")}
    with hjepa.autocast(args.device, args.precision):
        z, start = hjepa.latents(run.model, obs, forces), hjepa.latents(fresh, obs, forces)
    raw = obs[:, 0].flatten(1).cpu()
    told = torch.cat([raw, forces.flatten(1).cpu()], 1)
    table = {"context shallow": (z["z1"], {**now, **future}),
             "context deep": (z["z2"], {**now, **future}),
             "target shallow": (z["t1"], last), "target deep": (z["t2"], last),
             "P1 prediction": (z["p1"], future), "P2 prediction": (z["p2"], future),
             "raw clip": (raw, {**now, **future}), "raw clip + forces": (told, future),
             "untrained shallow": (start["z1"], {**now, **future}),
             "untrained deep": (start["z2"], {**now, **future}),
             "untrained P1": (start["p1"], future), "untrained P2": (start["p2"], future),
             "shuffled labels": (z["z1"], {**now, **future})}
    return {source: (x.float(), targets) for source, (x, targets) in table.items()}

def network_probe(train, x, steps, gen, device, width=512, batch=512, lr=2e-3):
    """train: x (N, P), y (N, Q); x (M, P) -> y (M, Q), on the CPU. A linear map plus a network of
    two hidden layers, least squares, columns at unit variance; weights and batches from gen."""
    (known, y), size = train, len(train[0])
    centre, scale, middle, spread = known.mean(0), known.std(0) + 1e-6, y.mean(0), y.std(0) + 1e-6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(gen.initial_seed())
        inputs, outputs = known.shape[1], y.shape[1]
        line = nn.Linear(inputs, outputs)
        bend = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width),
                             nn.GELU(), nn.Linear(width, outputs))
    both = nn.ModuleList([line, bend]).to(device)
    known, x = (((a - centre) / scale).to(device) for a in (known, x))
    y, optimizer = ((y - middle) / spread).to(device), torch.optim.AdamW(both.parameters(), lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = hjepa.learning_rate(step, steps, lr, 200)
        pick = torch.randint(size, (batch,), generator=gen).to(device)
        error = (line(known[pick]) + bend(known[pick]) - y[pick]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
    with torch.no_grad():
        return (line(x) + bend(x)).cpu() * spread + middle

def r2_draws(guess, true, weight):
    """guess, true (N, Q); weight (draws, N): the share of a draw that is sample n -> (draws,) R2s,
    each the mean over columns."""
    miss, true = (guess - true).numpy() ** 2, (true - true.mean(0)).double().numpy()
    variance = weight @ true ** 2 - (weight @ true) ** 2
    return (1 - weight @ miss / variance).mean(1)

def probe_run(run, args, world, weight):
    """-> dict (source, target) -> R2, R2 of the worst column, R2s over resampled test worlds."""
    fresh, seeds = hjepa.build(run.config).to(args.device).eval(), run.config
    data = [probe_data(run, fresh, world, n, seed, args)
            for seed, n in ((seeds.seed, 4 * args.n), (seeds.validation_seed, args.n),
                            (seeds.test_seed, args.n))]
    found, pairs = {}, [(s, t) for s, (_, targets) in data[0].items() for t in targets]
    for source, target in hjepa.bar(pairs, f"probes, seed {seeds.seed}", len(pairs)):
        parts = [(part[source][0], part[source][1][target]) for part in data]
        if source == "shuffled labels":                                   # but not the test's
            gen = hjepa.generator(seeds.seed, "shuffled labels")
            parts[:2] = [(x, y[torch.randperm(len(y), generator=gen)]) for x, y in parts[:2]]
        r2, guess = hjepa.ridge(*parts)
        found[source, target] = (r2.mean().item(), r2.min().item(),
                                 r2_draws(guess, parts[2][1], weight))
    more = probe_data(run, fresh, world, 16 * args.n, seeds.seed, args, "network probe")
    for source in hjepa.bar(READ_BY_NETWORK, "network probes", len(READ_BY_NETWORK)):
        (x, targets), (test_x, truths) = more[source], data[2][source]
        names = [target for target in NOW if target in targets]
        guess = network_probe((x, torch.cat([targets[t] for t in names], 1)), test_x, args.steps,
                              hjepa.generator(seeds.seed, "network probe", 1), args.device)
        for target, mine in zip(names, guess.split([truths[t].shape[1] for t in names], 1)):
            true = truths[target]
            r2 = 1 - (mine - true).square().sum(0) / (true - true.mean(0)).square().sum(0)
            found[f"{source}, network", target] = (r2.mean().item(), r2.min().item(),
                                                   r2_draws(mine, true, weight))
    return found

def probe_rows(args, runs, world):
    """-> rows: source, target, R2 over runs, its interval, R2 of the worst column, of each run.
    As in common.resampled_means, all runs are resampled on the same test worlds."""
    rng, rows = np.random.default_rng(0), []
    weight = np.stack([np.bincount(pick, minlength=args.n) for pick in
                       rng.integers(0, args.n, (RESAMPLES, args.n))]) / args.n
    found = [probe_run(run, args, world, weight) for run in runs]
    seeds = rng.integers(0, len(runs), (len(runs), RESAMPLES))
    for source, target in found[0]:
        r2, worst, draws = zip(*(f[source, target] for f in found))
        draws = np.take_along_axis(np.stack(draws), seeds, 0).mean(0)
        rows.append({"source": source, "target": target, "r2": float(np.mean(r2)),
                     "r2_ci": common.percentiles(draws), "r2_worst_column": min(worst),
                     "r2_runs": list(r2)})
    return rows

def draw(rows, sets):
    """The table of R2, and the gauges dimension by dimension."""
    figure, axes = hjepa.canvas(2, 2, 17, 11)
    sources, targets = list(dict.fromkeys(r["source"] for r in rows)), (*NOW, *FUTURE)
    table = np.full((len(sources), len(targets)), np.nan)
    ax = axes[0, 0]
    for row in rows:
        y, x = sources.index(row["source"]), targets.index(row["target"])
        table[y, x] = row["r2"]
        half = (row["r2_ci"][1] - row["r2_ci"][0]) / 2
        ax.text(x, y, f"{row['r2']:.4f} ± {half:.4f}", ha="center", va="center", fontsize=8,
                color="white" if row["r2"] > 0.6 else "black")
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(targets)), targets, fontsize=8)
    ax.set_yticks(range(len(sources)), sources, fontsize=8)
    ax.set_title("probes: R2 on test worlds, ± half the 95 % interval")
    panels = (("std", "deviation per dimension, sorted", axes[0, 1]),
              ("within", "share of variance within a world, sorted", axes[1, 1]),
              ("spectrum", "spectrum of the covariance", axes[1, 0]))
    for key, title, ax in panels:
        for s in sets:
            values, first = s[key], s["seed"] == sets[0]["seed"]          # one label for all runs
            style = ":" if "untrained" in s["set"] else "--" if "raw" in s["set"] else "-"
            ax.plot(np.linspace(0, 1, len(values)), values, style, color=COLOURS[s["set"]],
                    label=s["set"] if first else None)
        ax.set(title=title, xlabel="dimension, 0: first, 1: last", ylim=(0, None))
        ax.legend(fontsize=8)
    axes[1, 0].set(yscale="log", ylim=(1e-4, None))
    return figure

def measure(args, runs):
    if args.n < 50:
        raise hjepa.Refusal(f"--n {args.n}: probes and gauges need at least 50 test worlds")
    world, sets = hjepa.build_world(runs[0].config), []
    for run in runs:
        states, _, _ = hjepa.sequences(world, run.config, args.n, run.config.test_seed, "worlds",
                                       args.device)
        fresh = hjepa.build(run.config).to(args.device).eval()
        rows = all_gauges(run.model, fresh, world.observe(states), args)
        sets += [{"seed": run.config.seed, **row} for row in rows]
    for s in sets:
        print("seed {seed}, {set:>17}: deviation {std_min:.2f} to {std_max:.2f}, |correlation| "
              "{correlation:.3f}, rank {rank:.0f} of {dimensions}, within a world {within_min:.2f} "
              "at least, {within_mean:.2f} on average".format(**s))
    rows = probe_rows(args, runs, world)
    for source in dict.fromkeys(row["source"] for row in rows):
        print(f"{source:>18}: " + ", ".join(f"{row['target']} {row['r2']:.3f}" for row in rows
                                            if row["source"] == source))
    return draw(rows, sets), args.n, {"intervals": common.interval_note(runs, RESAMPLES),
                                      "rows": rows, "gauges": sets}


if __name__ == "__main__":
    parser = common.make_parser("representation", __doc__, n=(
        4096, "test worlds; as many for validation, four times as many to train probes"),
        steps=(3000, "training steps of a network probe"))
    sys.exit(common.main(parser, measure))
