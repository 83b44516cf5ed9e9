"""Goals of a horizon, what planners reach of them, and what that costs."""
import collections
import contextlib
import time

import hjepa
import torch

from lib import stats

# What try_goals gives. errors (runs, goals, bodies): final distances; velocity, in the same shape:
# final errors of velocity, in half boxes a second. calls, seconds: per goal.
Tried = collections.namedtuple("Tried", "errors velocity calls seconds")

THRESHOLDS = {"success": ("worst", hjepa.REACHED), "strict": ("worst", hjepa.STRICT),
              "mean_body": ("mean", hjepa.REACHED)}


def event_frames(config):
    """-> frames in a macro-event."""
    return config.event_clips * config.clip_frames


def goals_source(config, split, frames, purpose="tasks"):
    """-> (seed, purpose, index) of the generator behind goals_of.

    Goals one macro-event ahead are those of `hjepa.py plan`; other horizons have their own.
    """
    seed = {"test": config.test_seed, "validation": config.validation_seed}[split]
    return seed, purpose, 0 if frames == event_frames(config) else frames


def goals_of(config, n, split="test", frames=None, purpose="tasks"):
    """n goals `frames` ahead (default: one macro-event), of test or validation worlds.

    -> dict(clip, goal (n, T, bodies, 4), forces (n, clips, A), contact, matters (n,)): see
    hjepa.make_goals. Another purpose gives another list.
    """
    frames = event_frames(config) if frames is None else frames
    gen = hjepa.generator(*goals_source(config, split, frames, purpose))
    return hjepa.make_goals(hjepa.build_world(config), n, frames // config.clip_frames, gen,
                            config.clip_frames, config.start_speed)


@contextlib.contextmanager
def metered(model):
    """Yields a counter: meter["calls"] grows by one per sample that a predictor evaluates.

    A search in the simulator adds the plans it simulates by itself.
    """
    meter = collections.Counter(calls=0)

    def count(module, given, out):
        meter["calls"] += len(out)
    predictors = [getattr(model, name) for name in ("short", "macro") if hasattr(model, name)]
    hooks = [predictor.register_forward_hook(count) for predictor in predictors]
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()


def final_errors(states, goal):
    """States (B, frames, bodies, 4), goal clips (B, T, bodies, 4) -> distances (B, bodies), CPU."""
    return hjepa.distance(states[:, -1].cpu(), goal[:, -1].cpu())


def velocity_errors(states, goal):
    """The same for velocities: how far they are from those of the goal (B, bodies), CPU."""
    gap = states[:, -1, :, 2:].cpu() - goal[:, -1, :, 2:].cpu()
    return gap.norm(dim=-1)


@torch.no_grad()
def try_goals(solve, runs, goals, label, together=1):
    """Try every goal with every run -> Tried.

    solve(run, pick, meter) -> states (B, frames, bodies, 4) that the planner of `run` reaches for
    the goals `pick`, a tensor of B numbers. together: how many goals are searched side by side.
    With one, a goal does not depend on its neighbours, not even in rounding.
    """
    n = len(goals["goal"])
    parts = torch.arange(n).split(together)
    errors, velocity = [], []
    calls = 0
    start = time.perf_counter()
    for run in runs:
        title = f"{label}, seed {run.config.seed}"
        with metered(run.model) as meter:
            found = [solve(run, pick, meter)[:, -1:].cpu()
                     for pick in hjepa.progress(parts, title, len(parts))]
        ends = torch.cat(found)
        errors.append(final_errors(ends, goals["goal"]))
        velocity.append(velocity_errors(ends, goals["goal"]))
        calls += meter["calls"]
    searches = n * len(runs)
    seconds = (time.perf_counter() - start) / searches
    return Tried(torch.stack(errors), torch.stack(velocity), calls / searches, seconds)


def side_by_side(planner, run, world, drawn, seed, device, together=20):
    """A planner of hjepa.py on goals as goals_of gives them -> final errors (n, bodies).

    `together` goals are searched side by side: many times quicker on a GPU than one by one, and the
    same but for rounding.
    """
    errors = []
    for pick in torch.arange(len(drawn["goal"])).split(together):
        gens = [hjepa.generator(seed, planner, i) for i in pick.tolist()]
        states, _ = hjepa.run_planner(planner, run.model, world, run.config,
                                      drawn["clip"][pick].to(device),
                                      drawn["goal"][pick].to(device), gens)
        errors.append(final_errors(states, drawn["goal"][pick]))
    return torch.cat(errors)


def kept_or_tried(kept, name, frames, attempt, **more):
    """-> Tried: of an earlier, interrupted study, or attempt() and kept from now on. more: what
    tells the row from others of this planner and horizon."""
    row = kept.find(planner=name, frames=frames, **more)
    if row is None:
        tried = attempt()
        kept.add({"planner": name, "frames": frames, **more, "errors": tried.errors.tolist(),
                  "velocity": tried.velocity.tolist(), "calls": tried.calls,
                  "seconds": tried.seconds})
        return tried
    return Tried(torch.tensor(row["errors"]), torch.tensor(row["velocity"]), row["calls"],
                 row["seconds"])


def outcomes(errors):
    """Final errors (runs, goals, bodies) -> dict of arrays (runs, goals).

    success, strict: the worst body came within hjepa.REACHED, hjepa.STRICT. mean_body: the mean
    over bodies came within hjepa.REACHED. error: the mean over bodies.
    """
    errors = torch.as_tensor(errors)
    by = {"worst": errors.amax(-1).numpy(), "mean": errors.mean(-1).numpy()}
    reached = {name: by[which] < limit for name, (which, limit) in THRESHOLDS.items()}
    return {**reached, "error": by["mean"]}


def summary(errors):
    """Final errors (runs, goals, bodies) -> dict: the mean of each outcome, and its interval."""
    row = {}
    for name, values in outcomes(errors).items():
        row[name] = values.mean().item()
        row[name + "_ci"] = stats.interval(values)
    return row


def skill(errors, zero):
    """Final errors (runs, goals, bodies), and those of zero force -> dict: 1 - error / error of
    zero force, both over the same resampled goals, and its interval."""
    mine = stats.resampled_means(errors.mean(-1))
    idle = stats.resampled_means(zero.mean(-1))
    return {"skill": 1 - (errors.mean() / zero.mean()).item(),
            "skill_ci": stats.percentiles(1 - mine / idle)}


def strata(goals):
    """What goals_of gives -> dict of three parts of the goals, bools (n,): "contact" and "no
    contact" on the hidden way, and "matters", where the contact matters (see hjepa.make_goals)."""
    return {"contact": goals["contact"], "no contact": ~goals["contact"],
            "matters": goals["matters"]}


def differences(a, b, names=("success", "strict", "mean_body", "error")):
    """Final errors (runs, goals, bodies) of two planners on the same goals -> dict: a minus b by
    each outcome, and its paired interval."""
    a = outcomes(a)
    b = outcomes(b)
    row = {}
    for name in names:
        row[name], row[name + "_ci"] = stats.paired_interval(a[name], b[name])
    return row
