"""Does it reach goals, and because of the model?

    python figures/planning.py --run runs/paper                    # all rows, 25, 50 and 75 frames
    python figures/planning.py --run runs/quick --frames 25 --tasks 40
    python figures/planning.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds
    python figures/planning.py --run runs/quick --only oracle "short replanned"
    python figures/planning.py --run runs/quick --frames 25 --only "macro open loop" --samples 500

A task: a test world, its context clip, and the clip it shows some frames later under hidden random
forces. A planner chooses forces; what counts is where the bodies are at the last frame. No planner
may ask whether it has arrived, and goals that zero force comes near are left out. Eleven rows:

    zero, random             no planner at all: how hard are the tasks?
    shuffled goal            short replanned, sent to another task's goal and judged on its own
    untrained                short replanned with the start weights: is it the training?
    oracle                   search in the true simulator with true positions: is it the search?
    simulator + latent cost  the true simulator, distance of embeddings: is the cost at fault?
    model + decoded cost     the model, distance of decoded positions: are the dynamics at fault?
    macro open loop          P2 plans 25 frames once
    short open loop          P1 rolled out, plans once
    short replanned          P1 rolled out, replanned every clip
    both levels              macro jumps to the goal, short steps to where they begin; replanned

25 frames are one macro-event, and these are the tasks of `hjepa.py plan`: there the two levels need
not meet, so `both levels` begins at 50. `macro open loop` ends at 25 frames; `shuffled goal` and
`untrained` are answered there. All searches have the same budget, and a task's noise depends on
(test seed, planner, task) alone. The JSON holds the tasks and every outcome, so that the table can
be recomputed.
"""
import collections
import contextlib
import dataclasses
import sys
import time

import common
import hjepa
import numpy as np
import torch

NAMES = ("zero", "random", "shuffled goal", "untrained", "oracle", "simulator + latent cost",
         "model + decoded cost", "macro open loop", "short open loop", "short replanned",
         "both levels")
NOT_LATER = ("shuffled goal", "untrained", "macro open loop")     # not tried beyond one macro-event
PLAIN = ("zero", "random", "oracle")            # these do not look at the model: one run is enough
SIMULATED = {"oracle": 20, "simulator + latent cost": 20}     # tasks side by side, else one by one
COLOURS = dict(zip(NAMES[4:], ("#1b7837", "#1b7837", "#762a83", *4 * ["#2166ac"])))
PAIRS = [("short replanned", other) for other in NAMES[:9]] + [("both levels", "short replanned")]


@contextlib.contextmanager
def metered(model):
    """Yields a counter: meter["calls"] grows by one per sample that a predictor evaluates. The
    simulator rows add the clips they simulate in a search."""
    meter = collections.Counter(calls=0)
    hooks = [predictor.register_forward_hook(lambda _, given, out: meter.update(calls=len(out)))
             for predictor in (model.short, model.macro)]
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()

def fit_decoder(run, world, device, n=4096):
    """-> function (N, D) -> (N, 2 bodies): position in the last frame of a clip, read linearly from
    its shallow target embedding.

    Trained on embeddings of training worlds; its strength is chosen by how well it reads what P1
    predicts for validation worlds, since that is its use. A read-out that is best on embeddings
    magnifies the errors of predictions: it leans on directions of hardly any variance.
    """
    config, data = run.config, []
    for seed, count, name in ((config.seed, 4 * n, "t1"), (config.validation_seed, n, "p1")):
        states, forces, _ = hjepa.sequences(world, config, count, seed, "decoder", device)
        z = hjepa.latents(run.model, world.observe(states), forces)[name]
        data.append((z, hjepa.physics(states[:, -1, -1], config.masses)["position"]))
    size, outputs = data[0][0].shape[1], data[0][1].shape[1]
    basis = torch.cat([torch.zeros(1, size), torch.eye(size)])            # a read-out is affine,
    _, values = hjepa.ridge(*data, (basis, torch.zeros(size + 1, outputs)))      # its values here
    offset, weight = values[0], values[1:] - values[0]                    # say all of it
    offset, weight = offset.float().to(device), weight.float().to(device)

    def decode(z):
        with torch.autocast(z.device.type, enabled=False):
            return z.float() @ weight + offset
    return decode

def chain(model, z, plans, first, span):
    """z1 (N, D), or z2 if first is 0; plans (N, K, A) -> (N, D), like the deep target embedding of
    the last clip: `first` short steps, lift, then jumps of `span` clips with a bridge between."""
    if first:
        z = model.lift(model.rollout(z, plans[:, :first])[:, -1])
    *jumps, last = plans[:, first:].split(span, 1)
    for jump in jumps:
        z = model.bridge(model.jump(z, jump))
    return model.jump(z, last)

def chained_cost(first, span):
    """-> make_cost for `hjepa.mirrored`: `first` short steps, then jumps to the goal.  See chain."""
    def make_cost(model, clip, goal):
        start = model.context.shallow(clip)[1] if first else model.context(clip)[1]
        return hjepa.latent_cost(lambda z, plans: chain(model, z, plans, first, span), start,
                                 model.target(goal)[1])
    return make_cost

def cost_maker(name, run, world, goal, decode, meter):
    """goal (B, T, bodies, 4) -> make_cost(clip, clips left) for hjepa.replan."""
    model, config, see = run.model, run.config, world.observe

    def simulate(flat, plans):
        """states (N, 4 bodies), plans (N, K, A) -> the last clip (N, T, bodies, 4)."""
        meter.update(calls=plans.shape[0] * plans.shape[1])
        states, _ = world.rollout(flat.unflatten(-1, (-1, 4)), plans.unflatten(-1, (-1, 2)),
                                  config.hold)
        return states[:, -config.hold:]

    def embed(clips, at_once):
        """Clip by clip of one task: then a product does not depend on the tasks beside it."""
        return torch.cat([model.target.shallow(see(c))[1] for c in clips.split(at_once)])

    def oracle(clip, left):
        return hjepa.latent_cost(lambda now, plans: simulate(now, plans)[:, -1, :, :2].flatten(1),
                                 clip[:, -1].flatten(1), goal[:, -1, :, :2].flatten(1))

    def simulator_latent(clip, left):
        return hjepa.latent_cost(lambda now, plans: embed(simulate(now, plans), config.samples),
                                 clip[:, -1].flatten(1), embed(goal, 1))

    def decoded_cost(model, clip, goal):
        return hjepa.latent_cost(lambda z, plans: decode(model.rollout(z, plans)[:, -1]),
                                 model.context.shallow(clip)[1],
                                 decode(model.target.shallow(goal)[1]))

    def decoded(clip, left):
        return hjepa.mirrored(decoded_cost, model, see(clip), see(goal), config.views)

    def both(clip, left):
        make = hjepa.short_cost if left <= config.steps else chained_cost(left % config.steps,
                                                                          config.steps)
        return hjepa.mirrored(make, model, see(clip), see(goal), config.views)
    return {"oracle": oracle, "simulator + latent cost": simulator_latent,
            "model + decoded cost": decoded, "both levels": both}[name]


@torch.no_grad()
def attempt(name, run, world, tasks, pick, decode=None, meter=None, device="cpu"):
    """Row `name` on the tasks `pick` (a tensor of numbers), side by side -> errors (B, bodies)."""
    config, goals = run.config, tasks["goal"]
    steps = tasks["forces"].shape[1]
    gens = [hjepa.generator(config.test_seed, name, i) for i in pick.tolist()]
    aim = (pick + 1) % len(goals) if name == "shuffled goal" else pick    # no task keeps its own
    clip, goal = tasks["clip"][pick].to(device), goals[aim].to(device)
    if name in ("shuffled goal", "untrained", *hjepa.PLANNERS):
        planner = name if name in hjepa.PLANNERS else "short replanned"
        states, _ = hjepa.solve(planner, run.model, world,
                                dataclasses.replace(config, steps=steps), clip, goal, gens)
    else:
        states, _ = hjepa.replan(
            world, clip, steps, cost_maker(name, run, world, goal, decode, meter), gens,
            config.spread, config.hold, samples=config.samples, iterations=config.iterations,
            elites=config.elites)
    return (states[:, -1, :, :2].cpu() - goals[pick, -1, :, :2]).norm(dim=-1)

def try_row(name, runs, world, tasks, decoders, args):
    """-> dict: errors (runs, tasks, bodies), predictor calls and seconds per task."""
    n, errors, calls, start = len(tasks["clip"]), [], 0, time.perf_counter()
    parts = torch.arange(n).split(SIMULATED.get(name, 1))
    if name in PLAIN:
        runs = runs[:1]
    for run, decode in zip(runs, decoders):
        if name == "untrained":
            run = run._replace(model=hjepa.build(run.config).to(args.device).eval())
        label = f"{tasks['forces'].shape[1]} clips, {name}, seed {run.config.seed}"
        with metered(run.model) as meter, hjepa.autocast(args.device, args.precision):
            errors.append(torch.cat([
                attempt(name, run, world, tasks, part, decode, meter, args.device)
                for part in hjepa.bar(parts, label, len(parts))]))
        calls += meter["calls"]
    return {"predictor_calls": calls / (n * len(runs)), "errors": torch.stack(errors),
            "seconds": (time.perf_counter() - start) / (n * len(runs))}

def outcomes(errors):
    """Final errors (runs, tasks, bodies) -> dict of outcomes (runs, tasks)."""
    worst, mean = errors.amax(-1).numpy(), errors.mean(-1).numpy()
    return {"success": worst < 0.1, "strict": worst < 0.05, "mean_body": mean < 0.1, "error": mean}

def summary(errors):
    """Final errors (runs, tasks, bodies) -> dict: the mean of each outcome, and its interval."""
    found = {}
    for name, values in outcomes(errors).items():
        found[name], found[name + "_ci"] = values.mean().item(), common.interval(values)
    return found

def columns(errors, zero):
    """Final errors (runs, tasks, bodies), those of zero force -> the row's columns, with intervals.
    Skill is 1 - error / error of zero, both over the same resampled tasks."""
    row = {"n": errors.shape[1]}
    if row["n"]:
        row.update(summary(errors))
        mine, idle = (common.resampled_means(e.mean(-1)) for e in (errors, zero))
        row["skill"] = 1 - (errors.mean() / zero.mean()).item()
        row["skill_ci"] = common.percentiles(1 - mine / idle)
    return row

def compare(tried, frames):
    """-> rows: A minus B on the same tasks, by success and by error, of the pairs that ran."""
    rows = []
    for a, b in PAIRS:
        if a in tried and b in tried:
            row = {"frames": frames, "a": a, "b": b}
            for name in ("success", "error"):
                row[name], row[name + "_ci"] = common.paired_interval(
                    *(outcomes(tried[planner]["errors"])[name] for planner in (a, b)))
            rows.append(row)
    return rows

def draw(rows, horizons, n):
    """Success above, mean error below; one column of panels per horizon."""
    figure, axes = hjepa.canvas(2, len(horizons), 4 + 4 * len(horizons), 8.5)
    names = [name for name in NAMES if name in {row["planner"] for row in rows}]
    for row in rows:
        y, column = names.index(row["planner"]), axes[:, horizons.index(row["frames"])]
        for ax, key in zip(column, ("success", "error")):
            colour = COLOURS.get(row["planner"], "0.45")
            ax.plot(row[key + "_ci"], [y, y], color=colour, lw=6, alpha=0.35, solid_capstyle="butt")
            ax.plot(row[key], y, "o", color=colour, ms=7)
            for split, marker in (("contact", "x"), ("no contact", "+")):
                ax.plot(row[split].get(key, np.nan), y, marker, color="0.1", ms=5)
    for ax in axes.flat:
        ax.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
        ax.set_yticklabels(names if ax in axes[:, 0] else [])
        ax.grid(axis="x", color="0.9")
    for frames, (top, bottom) in zip(horizons, axes.T):
        top.set(xlim=(-0.03, 1.03), title=f"{frames} frames: share of {n} goals reached")
        bottom.set(xlim=(-0.02, None), title=f"{frames} frames: final error, mean over bodies")
    figure.supxlabel("reached: every body within 0.1    dot and band: all goals, 95 % interval    "
                     "x: contact on the hidden way, +: none\n"
                     "green: true simulator, blue: the model, purple: positions decoded from it, "
                     "grey: controls", fontsize=8)
    return figure

def make_manifest(config, tasks, frames, index):
    """What the tasks are: a state is x, y, vx, vy of each body, at the last frame of the clip."""
    return {"frames": frames, "generator": [config.test_seed, "tasks", index],
            "start": tasks["clip"][:, -1].flatten(1).tolist(),
            "goal": tasks["goal"][:, -1].flatten(1).tolist(),
            "forces": tasks["forces"].flatten(1).tolist(), "contact": tasks["contact"].tolist()}

def not_tried(frames, event):
    """Rows that a horizon has not."""
    return ("both levels",) if frames == event else NOT_LATER

def measure(args, runs):
    if args.samples is not None:
        runs = [run._replace(config=dataclasses.replace(run.config, samples=args.samples))
                for run in runs]
    config, rows, pairs, manifest = runs[0].config, [], [], []
    world, event = hjepa.build_world(config), config.steps * config.hold
    horizons = sorted(set(args.frames or [event, 2 * event, 3 * event]))
    for frames in horizons:
        if frames % config.hold or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {config.hold}, {event} or "
                                "more")
    if args.tasks < 2:
        raise hjepa.Refusal("--tasks 1: a shuffled goal needs at least 2")
    chosen = [name for name in NAMES if not args.only or name in ("zero", *args.only)]
    for name in args.only or ():
        if all(name in not_tried(frames, event) for frames in horizons):
            raise hjepa.Refusal(f"--only {name!r}: not tried at these --frames (see --help)")
    decoders = [fit_decoder(run, world, args.device) if "model + decoded cost" in chosen else None
                for run in runs]
    for frames in horizons:
        index, tried = (0 if frames == event else frames), {}
        tasks = hjepa.make_tasks(world, args.tasks, frames // config.hold,
                                 hjepa.generator(config.test_seed, "tasks", index), config.hold,
                                 config.start_speed)
        manifest.append(make_manifest(config, tasks, frames, index))
        met = tasks["contact"]
        for name in (name for name in chosen if name not in not_tried(frames, event)):
            tried[name] = try_row(name, runs, world, tasks, decoders, args)
            errors, zero = tried[name]["errors"], tried["zero"]["errors"]
            rows.append({"planner": name, "frames": frames, **columns(errors, zero),
                         "contact": columns(errors[:, met], zero[:, met]),
                         "no contact": columns(errors[:, ~met], zero[:, ~met]),
                         **tried[name], "errors": errors.tolist()})
            print("{frames} frames, {planner:>23}: worst body within 0.1 {success:6.1%}, within "
                  "0.05 {strict:6.1%}, error {error:.3f}, skill {skill:7.1%}, {seconds:.2f} s"
                  .format(**rows[-1]), flush=True)
        pairs += compare(tried, frames)
    return draw(rows, horizons, args.tasks), args.tasks, {
        "budget": {k: getattr(config, k) for k in ("samples", "iterations", "elites", "views")},
        "tasks_side_by_side": SIMULATED, "rows": rows, "pairs": pairs, "manifest": manifest}


if __name__ == "__main__":
    parser = common.make_parser("planning", __doc__, tasks=(200, "test goals per horizon"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    parser.add_argument("--samples", type=int, help="plans per iteration (default: as in the run)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="ROW",
                        help="rows to try beside zero (default: all)")
    sys.exit(common.main(parser, measure))
