"""Do two levels plan farther than one, or with less?

    python figures/hierarchy.py --run figures/far.pt               # 25, 50 and 75 frames
    python figures/hierarchy.py --run figures/hjepa.pt             # before extend.py trained it on
    python figures/hierarchy.py --run runs/quick --frames 75 --tasks 60 --validation

The tasks are those of planning.py. Every planner chooses one force per clip, sees the outcome and
plans again; the state at the last frame counts. Each is tried with the same settings of CEM, from
few plans to many, so that success can be read against what it cost.

    flat          P1 rolled out to the goal
    flat, held    the same, one force held for 25 frames: coarse actions without a coarse model
    macro alone   P2, jump after jump with a bridge between; plans again every 25 frames
    mixed         short steps up to the next multiple of 25 frames before the goal, lift, jumps
    top-down      every 25 frames jumps are planned to the goal; where the first of them lands is
                  what the short level aims at until then, planning again every clip
    joint         as mixed, but both levels' plans are improved in turn: the jumps from where the
                  short steps lead, then the short steps with the jumps fixed behind them
    oracle        flat, in the true simulator with true positions

Mixed and joint are flat for the last five clips, top-down for the last nine: so at 25 frames they
are all flat, and not tried. A call is one sample that a predictor evaluates, whichever:
P2 is the larger one, which the seconds show. Sixteen tasks are tried side by side, each with its own
generator: seconds per task are those of a batch, and other batches would round otherwise.

An interrupted study goes on: its rows are kept in OUT/hierarchy.part.json until it is finished.

rows: a planner, a horizon, a setting. pairs: a row of a two-level planner against flat on the same
tasks, mean body within 0.1, flat's share between its settings taken as linear in the logarithm of
what was spent. `gain_calls`, `gain_seconds`: its share minus flat's at as many calls, as many
seconds. `saving`: the calls that flat needs for the same share over its own; 0 in an interval
says "as cheap as flat's cheapest setting, or cheaper". Absent: outside of flat's settings. All with
paired intervals.
"""
import sys
import time

import common
import hjepa
import numpy as np
import planning
import torch

SETTINGS = ((12, 3), (12, 6), (25, 6), (50, 6))               # CEM: samples per image, iterations
TOGETHER = 16                                   # tasks side by side


def budget(config, samples, iterations):
    """What `cem` may spend: a tenth of the samples are elites, three or more, the run's at most."""
    return dict(samples=samples, iterations=iterations,
                elites=min(config.elites, max(3, samples // 10)))


class Levels:
    """The planners. Each is a method: clip (B, T, bodies, 4), clips left, memory -> the force for
    the next clip (B, A) and what it wants to remember. memory is None at first.

    goal (B, T, bodies, 4); gens: a CPU generator per task.
    """

    def __init__(self, run, world, goal, gens, samples, iterations):
        self.model, self.config, self.world, self.gens = run.model, run.config, world, gens
        self.budget = budget(run.config, samples, iterations)
        self.span, self.goal = run.config.steps, world.observe(goal)

    def images(self, x):
        return hjepa.images(x, self.config.views)

    def search(self, make_cost, clip, mean, **other):
        """make_cost as `hjepa.mirrored` wants it; other: what differs from the budget -> the best
        plan (B, K, A)."""
        limit = self.world.force_limit
        cost = hjepa.mirrored(make_cost, self.model, self.world.observe(clip), self.goal,
                              self.config.views)
        plan, _ = hjepa.cem(cost, mean, torch.full_like(mean, self.config.spread * limit),
                            self.gens, low=-limit, high=limit, **{**self.budget, **other})
        return plan

    def nothing(self, clip, clips):
        """The first mean: no force."""
        return clip.new_zeros(len(clip), clips, 2 * clip.shape[2])

    def chained(self, first):
        return planning.chained_cost(first, self.span)

    def flat(self, clip, left, plan):
        plan = self.nothing(clip, left) if plan is None else plan
        plan = self.search(hjepa.short_cost, clip, plan)
        return plan[:, 0], plan[:, 1:]

    def flat_held(self, clip, left, plan):
        """plan holds a force per 25 frames, counted back from the goal."""
        chunk = torch.tensor([(-left % self.span + k) // self.span for k in range(left)])

        def make_cost(model, clip, goal):
            cost = hjepa.short_cost(model, clip, goal)
            return lambda plans: cost(plans[..., chunk, :])
        plan = self.nothing(clip, chunk[-1] + 1) if plan is None else plan
        plan = self.search(make_cost, clip, plan)
        return plan[:, 0], plan[:, 1:] if (left - 1) % self.span == 0 else plan

    def macro_alone(self, clip, left, plan):
        if left % self.span == 0:
            plan = self.nothing(clip, left) if plan is None else plan
            plan = self.search(self.chained(0), clip, plan)
        return plan[:, 0], plan[:, 1:]

    def mixed(self, clip, left, plan):
        if left <= self.span:
            return self.flat(clip, left, plan)
        plan = self.nothing(clip, left) if plan is None else plan
        plan = self.search(self.chained(left % self.span), clip, plan)
        return plan[:, 0], plan[:, 1:]

    def top_down(self, clip, left, memory):
        """memory: the forces of both levels' plans (B, left, A), the sub-goal (views B, D). What P2
        expects is a target z2, what P1 expects a target z1: they are compared as context z2."""
        plan, aim = memory or (self.nothing(clip, left), None)
        if left < 2 * self.span:
            force, plan = self.flat(clip, left, plan)
            return force, (plan, None)
        if left % self.span == 0:
            plan = self.search(self.chained(0), clip, plan)
            z2 = self.model.context(self.images(self.world.observe(clip)))[1]
            aim = self.model.bridge(self.model.jump(z2, self.images(plan[:, :self.span])))

        def make_cost(model, clip, _):
            return hjepa.latent_cost(lambda z, plans: model.lift(model.rollout(z, plans)[:, -1]),
                                     model.context.shallow(clip)[1], aim)
        first = left % self.span or self.span
        near = self.search(make_cost, clip, plan[:, :first])
        return near[:, 0], (torch.cat([near[:, 1:], plan[:, first:]], 1), aim)

    def joint(self, clip, left, plan, rounds=2):
        """Half of the iterations, rounded down, in each of two rounds."""
        if left <= self.span:
            return self.flat(clip, left, plan)
        plan = self.nothing(clip, left) if plan is None else plan
        first = left % self.span or self.span
        near, far, span = plan[:, :first], plan[:, first:], self.span

        def jumps_behind(model, clip, goal):
            reached = model.rollout(model.context.shallow(clip)[1], self.images(near))[:, -1]
            return hjepa.latent_cost(lambda z, plans: planning.chain(model, z, plans, 0, span),
                                     model.lift(reached), model.target(goal)[1])

        def steps_before(model, clip, goal):
            behind = self.images(far)

            def predict(z, plans):
                fixed = behind.repeat_interleave(len(plans) // len(behind), 0)
                return planning.chain(model, z, torch.cat([plans, fixed], 1), first, span)
            return hjepa.latent_cost(predict, model.context.shallow(clip)[1], model.target(goal)[1])
        for _ in range(rounds):
            share = max(1, self.budget["iterations"] // rounds)
            far = self.search(jumps_behind, clip, far, iterations=share)
            near = self.search(steps_before, clip, near, iterations=share)
        return near[:, 0], torch.cat([near[:, 1:], far], 1)


PLANS = {"flat": Levels.flat, "flat, held": Levels.flat_held, "macro alone": Levels.macro_alone,
         "mixed": Levels.mixed, "top-down": Levels.top_down, "joint": Levels.joint}
PLANNERS = (*PLANS, "oracle")
TWO_LEVELS = ("mixed", "top-down", "joint")
COLOURS = dict(zip(PLANNERS, ("#2166ac", "#92c5de", "#999999", "#d6604d", "#b2182b", "#762a83",
                              "#1b7837")))


@torch.no_grad()
def attempt(name, run, world, tasks, pick, samples, iterations, meter=None, device="cpu"):
    """Planner `name` on the tasks `pick` (a tensor of numbers) -> final errors (B, bodies)."""
    config, steps = run.config, tasks["forces"].shape[1]
    clip, goal = (tasks[k][pick].to(device) for k in ("clip", "goal"))
    gens = [hjepa.generator(config.test_seed, f"hierarchy, {name}", i) for i in pick.tolist()]
    if name == "oracle":
        search = planning.cost_maker(name, run, world, goal, None, meter)
        states, _ = hjepa.replan(world, clip, steps, search, gens, config.spread, config.hold,
                                 **budget(config, samples, iterations))
        clip = states[:, -config.hold:]
    else:
        levels, memory = Levels(run, world, goal, gens, samples, iterations), None
        for left in range(steps, 0, -1):
            force, memory = PLANS[name](levels, clip, left, memory)
            clip, _ = world.rollout(clip[:, -1], force.unflatten(-1, (-1, 2))[:, None], config.hold)
    return (clip[:, -1, :, :2] - goal[:, -1, :, :2]).norm(dim=-1).cpu()


def try_setting(name, runs, world, tasks, setting, args):
    """-> errors (runs, tasks, bodies), calls and seconds per task."""
    n, errors, calls, start = len(tasks["clip"]), [], 0, time.perf_counter()
    parts = torch.arange(n).split(TOGETHER)
    for run in runs[:1] if name == "oracle" else runs:
        label = f"{tasks['forces'].shape[1]} clips, {name} {setting[0]} x {setting[1]}"
        with planning.metered(run.model) as meter, hjepa.autocast(args.device, args.precision):
            errors.append(torch.cat([
                attempt(name, run, world, tasks, part, *setting, meter, args.device)
                for part in hjepa.bar(parts, label, len(parts))]))
        calls += meter["calls"]
    return torch.stack(errors), calls / n / len(errors), (
        time.perf_counter() - start) / n / len(errors)


def reached(row):
    """-> bools (runs, tasks): mean body within 0.1."""
    return (torch.tensor(row["errors"]).mean(-1) < 0.1).numpy()


def calls_saved(row, flat):
    """Calls that flat needs for the row's success, over the row's own: ratio, [low, high]; None if
    no flat row reaches as many goals, or each does. flat: its rows, the cheapest first. Between two
    of them success is taken as linear in the logarithm of the calls.
    """
    calls = np.log([rival["predictor_calls"] for rival in flat])

    def ratio(mine, theirs):                    # at a flat cheaper than any that was tried: 0
        needed = np.interp(mine, np.maximum.accumulate(theirs), calls, left=-np.inf)
        return np.exp(needed) / row["predictor_calls"]
    mine, theirs = reached(row).mean(), [reached(rival).mean() for rival in flat]
    if not flat or not theirs[0] <= mine <= max(theirs):
        return None
    draws = common.resampled_means(reached(row)), np.transpose(
        [common.resampled_means(reached(rival)) for rival in flat])
    return ratio(mine, theirs).item(), common.percentiles([ratio(*pair) for pair in zip(*draws)])


def flat_at(row, flat, key):
    """flat: its rows -> what flat reaches, floats (runs, tasks), where it spends as much of `key` as
    the row: between two of its settings, linear in the logarithm. None outside of them."""
    flat = sorted(flat, key=lambda rival: rival[key])
    spent, mine = np.log([rival[key] for rival in flat]), np.log(row[key])
    if len(flat) < 2 or not spent[0] <= mine <= spent[-1]:
        return None
    k = max(1, np.searchsorted(spent, mine))
    share = (mine - spent[k - 1]) / (spent[k] - spent[k - 1])
    return (1 - share) * reached(flat[k - 1]) + share * reached(flat[k])


def compare(rows, frames):
    """What two levels gain over flat, for one horizon."""
    flat = sorted((row for row in rows if row["planner"] == "flat" and row["frames"] == frames),
                  key=lambda row: row["predictor_calls"])
    pairs = []
    for row in rows:
        if row["frames"] != frames or row["planner"] not in TWO_LEVELS:
            continue
        pair = {"frames": frames, **{k: row[k] for k in ("planner", "samples", "iterations")}}
        for name, key in (("gain_calls", "predictor_calls"), ("gain_seconds", "seconds")):
            rival = flat_at(row, flat, key)
            if rival is not None:
                pair[name], pair[name + "_ci"] = common.paired_interval(reached(row), rival)
        if saved := calls_saved(row, flat):
            pair["saving"], pair["saving_ci"] = saved
        pairs.append(pair)
    return pairs


def draw(rows, horizons, n):
    """Success against predictor calls above, against seconds below; a column per horizon."""
    figure, axes = hjepa.canvas(2, len(horizons), 5 * len(horizons), 9)
    for column, frames in zip(axes.T, horizons):
        for name in PLANNERS:
            mine = [row for row in rows if row["planner"] == name and row["frames"] == frames]
            for ax, key in zip(column, ("predictor_calls", "seconds")):
                if mine and not (name == "oracle" and ax is column[0]):   # it calls no predictor
                    x, y = ([row[k] for row in mine] for k in (key, "mean_body"))
                    ax.plot(x, y, "o-", color=COLOURS[name], label=name, ms=4)
                    ax.fill_between(x, *zip(*(row["mean_body_ci"] for row in mine)),
                                    color=COLOURS[name], alpha=0.12, lw=0)
                ax.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"{key.replace('_', ' ')} per task")
                ax.grid(color="0.9")
                ax.xaxis.set_minor_formatter("")                          # they overlap
        column[0].set_title(f"{frames} frames: share of {n} goals, mean body within 0.1")
    for ax in axes[:, -1]:
        ax.legend(fontsize=8, loc="lower right")
    return figure


def measure(args, runs):
    config, rows, pairs = runs[0].config, [], []
    world, event = hjepa.build_world(config), config.steps * config.hold
    horizons = sorted(set(args.frames or [event, 2 * event, 3 * event]))
    settings = [tuple(pair) for pair in args.setting or SETTINGS]
    for frames in horizons:
        if frames % event or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {event}")
    for samples, iterations in settings:
        if samples < 3 or iterations < 1:
            raise hjepa.Refusal(f"--setting {samples} {iterations}: give 3 samples or more, and 1 "
                                "iteration or more")
    names = args.only or PLANNERS
    seed = config.validation_seed if args.validation else config.test_seed
    told = {"weights": common.fingerprint(runs), "n": args.tasks, "views": config.views,
            "tasks_of": "validation" if args.validation else "test", "precision": args.precision}
    unfinished = args.out / "hierarchy.part.json"                         # see common.publish
    kept = {tuple(row[k] for k in ("planner", "frames", "samples", "iterations")): row
            for row in common.kept_rows(unfinished, told)}
    for frames in horizons:
        tasks = hjepa.make_tasks(world, args.tasks, frames // config.hold,
                                 hjepa.generator(seed, "tasks", 0 if frames == event else frames),
                                 config.hold, config.start_speed)
        met = tasks["contact"]
        for name in names:
            if name in TWO_LEVELS and frames == event:
                continue
            for setting in settings:
                if (name, frames, *setting) in kept:
                    rows.append(kept[name, frames, *setting])
                    continue
                errors, calls, seconds = try_setting(name, runs, world, tasks, setting, args)
                row = {"planner": name, "frames": frames, "samples": setting[0],
                       "iterations": setting[1], "predictor_calls": calls, "seconds": seconds}
                row.update(planning.summary(errors))
                for split, who in (("contact", met), ("no contact", ~met)):
                    row[split] = {"n": int(who.sum())}
                    if who.any():
                        row[split].update(planning.summary(errors[:, who]))
                rows.append({**row, "errors": errors.tolist()})
                kept[name, frames, *setting] = rows[-1]
                hjepa.write_json(unfinished, {"told": told, "rows": list(kept.values())})
                print("{frames} frames, {planner:>11} {samples:3d} x {iterations}: mean body "
                      "within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
                      "{predictor_calls:7.0f} calls, {seconds:.2f} s".format(**row), flush=True)
        pairs += compare(rows, frames)
    return draw(rows, horizons, args.tasks), args.tasks, {
        **told, "settings": settings, "tasks_side_by_side": TOGETHER, "rows": rows, "pairs": pairs}


if __name__ == "__main__":
    parser = common.make_parser("hierarchy", __doc__, tasks=(200, "goals per horizon"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    parser.add_argument("--setting", type=int, nargs=2, action="append",
                        metavar=("SAMPLES", "ITERATIONS"),
                        help="of CEM; repeat it (default: %s)" % ", ".join(
                            f"{s} x {i}" for s, i in SETTINGS))
    parser.add_argument("--only", nargs="+", choices=PLANNERS, metavar="PLANNER",
                        help="planners to try (default: all)")
    parser.add_argument("--validation", action="store_true",
                        help="goals of validation worlds: to choose on, not to report")
    sys.exit(common.main(parser, measure))
