"""Which search, which cost? Planners and costs on the same weights, at the same number of calls.

    python figures/planners.py --run runs/paper                     # everything
    python figures/planners.py --run runs/quick --frames 25 --plans 60 600
    python figures/planners.py --run runs/quick --only CEM Adam --costs "last step" summed

A search looks for the forces up to the goal, the first one is applied for one clip, and the next
search begins at the rest of the plan. P1 predicts, rolled out. Every search may ask for the cost of
exactly --plans plans, and one more (lib/searches.py):

    random shooting   Gaussian plans around the start, the best one
    CEM               the cross-entropy method, as `hjepa.py plan` has it, from no force
    iCEM              coloured noise, elites kept, fewer and fewer samples (Pinneri et al. 2020)
    MPPI              elites weighted by their costs (algorithm 1 of EB-JEPA)
    Adam              gradient descent on the plan, from many places at once; a gradient is one call
    CEM from guess    CEM that starts at the first guess of the last macro-event, where that costs
                      less than the rest of the plan; two plans more for that question
    first guess       no search; one macro-event ahead only
    pytorch-mppi      the library of that name, if it is installed (requirements-speed.txt)

Each has five settings, of which one is chosen for each horizon, cost and number of plans: the one
that reaches most of --tune-goals validation goals, and of equal ones the one with the least error.
"settings" in the JSON has them all; a row's "setting" is the number of the one that was chosen.

The planners are compared with the plain distance at the end, "last step". The other costs (lib/costs.py) are
tried with CEM and with MPPI, at the largest number of plans:

    last step         squared distance of the last predicted clip
    summed            distances of all predicted clips, summed (EB-JEPA equation 14)
    smallest          squared distance of the predicted clip that comes nearest
    metric of change  last step, in the metric of change
    quasi-distance    "how many clips from here to there?", learnt by expectile regression on pairs
                      of clips of a sequence (lib/quasi_distance.py); trained here, and kept in
                      RUN/planners

A goal is to be met at its time, which `smallest` and `summed` do not ask for.

success, strict: the worst body within 0.1, within 0.05 at the last frame. contact, no_contact,
matters: success on these parts of the goals (see planning.py). calls: of the predictor, per goal.
ms: milliseconds per search, all that is needed for it included. pairs: success minus that of CEM,
paired, with the same cost and plans. planners.npz has every final error, also of validation goals.

An interrupted study goes on: its rows are kept in OUT/planners.part.json until it is finished.
"""
import collections
import dataclasses
import sys

from lib import cli, costs, goals, quasi_distance, searches, stats
import hjepa
import torch

# search: of lib.searches, or None. from_guess: does it start there? settings: those that are tried,
# the published one, or that of the run, first.
Planner = collections.namedtuple("Planner", "search from_guess settings")


def variations(first, *others):
    """-> settings: the first one, and it with each of the others' changes."""
    return [first, *[{**first, **other} for other in others]]


PLANNERS = {
    "random shooting": Planner(searches.random_shooting, False, variations(
        {"deviation": 0.6}, {"deviation": 0.3}, {"deviation": 0.15}, {"deviation": 0.15},
        {"deviation": 1.0})),
    "CEM": Planner(searches.cem, False, variations(
        {"iterations": 6, "elites": 0.1, "deviation": 0.6}, {"iterations": 3}, {"iterations": 12},
        {"elites": 0.2}, {"deviation": 0.3})),
    "iCEM": Planner(searches.icem, False, variations(
        {"iterations": 6, "elites": 0.1, "deviation": 0.6, "colour": 2.0}, {"colour": 1.0},
        {"colour": 0.5}, {"iterations": 3, "colour": 0.5}, {"deviation": 0.3, "colour": 0.5})),
    "MPPI": Planner(searches.mppi, False, variations(
        {"iterations": 12, "elites": 0.1, "deviation": 0.6, "temperature": 0.005},
        {"deviation": 0.3}, {"deviation": 0.15}, {"deviation": 0.3, "temperature": 0.05},
        {"deviation": 0.3, "iterations": 6})),
    "Adam": Planner(searches.adam, False, variations(
        {"restarts": 20, "deviation": 0.6, "rate": 0.1}, {"rate": 0.3}, {"rate": 0.03},
        {"restarts": 6}, {"restarts": 60, "rate": 0.3})),
    "CEM from guess": Planner(searches.cem, True, variations(
        {"iterations": 6, "elites": 0.1, "deviation": 0.05}, {"iterations": 3}, {"iterations": 12},
        {"elites": 0.2}, {"deviation": 0.15})),
    "first guess": Planner(None, True, [{}]),
    "pytorch-mppi": Planner(searches.pytorch_mppi, False, variations(
        {"iterations": 6, "deviation": 0.6, "temperature": 0.001}, {"deviation": 0.3},
        {"deviation": 0.15}, {"deviation": 0.3, "temperature": 0.01},
        {"deviation": 0.3, "iterations": 12})),
}
SHARES = 60                                     # iterations and restarts divide it
BASE = "last step"                              # the cost that planners are compared with
FOR_COSTS = ("CEM", "MPPI")                     # the planners that costs are compared with

# One line of the table.
Task = collections.namedtuple("Task", "planner cost frames plans")


# ---- one planner

def solve(task, setting, run, world, drawn, pick, seed, measure):
    """The goals `pick` -> the last clip (B, T, bodies, 4). seed: of the noise, with the planner and
    the number of the goal."""
    config = run.config
    planner = PLANNERS[task.planner]
    device = next(run.model.parameters()).device
    gens = [hjepa.generator(seed, task.planner, i) for i in pick.tolist()]
    clip = drawn["clip"][pick].to(device)
    goal = drawn["goal"][pick].to(device)
    clips = drawn["forces"].shape[1]
    observed = world.observe(goal)

    def guess(now, left):
        if left > config.event_clips:
            return None
        return hjepa.first_guess(run.model, world.observe(now), observed, left, world.force_limit)
    if planner.search is None:
        for left in range(clips, 0, -1):
            forces = guess(clip, left)
            clip, _ = world.rollout(clip[:, -1], forces[:, :1], config.clip_frames)
        return clip
    return searches.replan(planner.search, world, clip, clips,
                           costs.cost_to_go(run, world, goal, measure), gens,
                           guess if planner.from_guess else None, config.init_std,
                           config.clip_frames, plans=task.plans, **setting)


def try_task(task, number, split, runs, world, drawn, measures):
    """A task with setting `number` -> goals.Tried. measures: seed -> the cost of that run."""
    setting = PLANNERS[task.planner].settings[number]

    def solve_one(run, pick, meter):
        seeds = {"test": run.config.test_seed, "validation": run.config.validation_seed}
        return solve(task, setting, run, world, drawn, pick, seeds[split],
                     measures[run.config.seed])
    label = f"{task.planner}, {task.cost}, {task.frames} frames, {task.plans} plans"
    return goals.try_goals(solve_one, runs, drawn, f"{label}, {split}")


def best_setting(tried):
    """List of goals.Tried -> the number of the one that reaches most, then errs least."""
    scores = []
    for one in tried:
        worst = one.errors.amax(-1)
        scores.append(((worst < hjepa.REACHED).float().mean().item(), -worst.mean().item()))
    return scores.index(max(scores))


# ---- the table

def tasks_of(args, frames, event):
    """-> the tasks of a horizon."""
    found = []
    for name in args.only:
        budgets = args.plans if PLANNERS[name].search else [0]
        if BASE in args.costs and (PLANNERS[name].search or frames == event):
            found += [Task(name, BASE, frames, plans) for plans in budgets]
    for cost in args.costs:
        for name in FOR_COSTS:
            if cost != BASE and name in args.only:
                found.append(Task(name, cost, frames, max(args.plans)))
    return found


def make_row(task, number, tried, parts, clips):
    """Task, number of its setting, goals.Tried, goals.strata, how many searches a goal takes -> a
    row of the JSON."""
    reached = goals.outcomes(tried.errors)
    row = {**task._asdict(), "setting": number,
           "success": round(reached["success"].mean().item(), 4),
           "success_ci": [round(bound, 3) for bound in stats.interval(reached["success"])],
           "strict": round(reached["strict"].mean().item(), 4),
           "error": float(f"{tried.errors.mean().item():.3g}")}
    for part, who in parts.items():
        share = reached["success"][:, who].mean().item() if who.any() else None
        row[part.replace(" ", "_")] = None if share is None else round(share, 3)
    row.update(calls=round(tried.calls), ms=float(f"{1000 * tried.seconds / clips:.3g}"))
    return row


def compare(found, parts):
    """dict task -> goals.Tried -> rows: success minus that of CEM with the same cost and plans."""
    rows = []
    for task, tried in found.items():
        other = found.get(task._replace(planner="CEM"))
        if task.planner == "CEM" or other is None:
            continue
        mine = goals.outcomes(tried.errors)["success"]
        theirs = goals.outcomes(other.errors)["success"]
        row = {**task._asdict()}
        for name, who in {"all": slice(None), **parts}.items():
            if name == "all" or who.any():
                _, interval = stats.paired_interval(mine[:, who], theirs[:, who])
                row[name.replace(" ", "_")] = [round(bound, 3) for bound in interval]
        rows.append(row)
    return rows


def say(row):
    print("{frames} frames, {planner:>15}, {cost:>16}, {plans:4} plans: {success:6.1%}, within 0.05"
          " {strict:6.1%}, {calls} calls, {ms} ms".format(**row), flush=True)


# ---- the picture

def draw_lines(ax, rows, x, y):
    """A line per planner through its numbers of plans."""
    for i, name in enumerate(PLANNERS):
        mine = [row for row in rows if row["planner"] == name and row["cost"] == BASE]
        mine = [row for row in mine if row[y] is not None]
        if not mine:
            continue
        colour = f"C{i}"
        at = [max(row[x], 1) for row in mine]
        ax.plot(at, [row[y] for row in mine], "o-", color=colour, ms=4, label=name)
        if y == "success":
            low, high = zip(*[row["success_ci"] for row in mine])
            ax.fill_between(at, low, high, color=colour, alpha=0.12, lw=0)
    ax.set(xscale="log", ylim=(-0.02, 1.02))
    ax.grid(color="0.9")


def draw_costs(ax, rows, plans):
    """A bar per cost and planner, at the largest number of plans."""
    for i, name in enumerate(FOR_COSTS):
        shown = [row for row in rows if row["planner"] == name and row["plans"] == plans]
        for row in shown:
            at = costs.NAMES.index(row["cost"]) + 0.35 * (i - 0.5)
            low, high = row["success_ci"]
            ax.bar(at, row["success"], 0.33, color=hjepa.COLOURS[i],
                   label=name if row is shown[0] else None)
            ax.plot([at, at], [low, high], color="0.3", lw=1)
    ax.set_xticks(range(len(costs.NAMES)), [name.replace(" ", "\n") for name in costs.NAMES],
                  fontsize=7)
    ax.set(ylim=(0, 1.02))


def draw(rows, horizons, plans):
    """One column of panels per horizon."""
    figure, axes = hjepa.new_figure(4, len(horizons), 2 + 5 * len(horizons), 16)
    panels = (("calls", "success", "predictor calls per goal", "all goals"),
              ("calls", "contact", "predictor calls per goal", "goals with a contact on the way"),
              ("ms", "success", "milliseconds per search", "all goals"))
    for frames, column in zip(horizons, axes.T):
        mine = [row for row in rows if row["frames"] == frames]
        for ax, (x, y, label, which) in zip(column, panels):
            draw_lines(ax, mine, x, y)
            ax.set(xlabel=label, ylabel="share reached", title=f"{frames} frames, {which}")
        draw_costs(column[3], mine, plans)
        column[3].set(ylabel="share reached", title=f"{frames} frames, costs, {plans} plans")
    for ax in (axes[0, 0], axes[3, 0]):
        if ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=7)
    return figure


# ---- the study

def check(args, config):
    """-> horizons in frames. Refusal of what cannot be tried."""
    event = goals.event_frames(config)
    for frames in args.frames or ():
        if frames % config.clip_frames or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {config.clip_frames}, "
                                f"{event} or more")
    for plans in args.plans:
        if not 0 < plans <= cli.LARGEST or plans % SHARES:
            raise hjepa.Refusal(f"--plans {plans}: give multiples of {SHARES}")
    return sorted(set(args.frames or [event, 2 * event, 3 * event]))


def choose_planners(args, runs):
    """-> names of the planners. What cannot be tried is left out, or refused if --only asks."""
    lacking = {}
    if not hasattr(runs[0].model, "guess"):
        for name, planner in PLANNERS.items():
            if planner.from_guess:
                lacking[name] = "the model has no first guess"
    if not searches.library_is_here():
        lacking["pytorch-mppi"] = ("it is not installed: pip install --no-deps -r "
                                   "figures/requirements-speed.txt")
    for name in args.only or ():
        if name in lacking:
            raise hjepa.Refusal(f"--only {name!r}: {lacking[name]}")
    if not args.only:
        for name, reason in lacking.items():
            print(f"left out: {name} ({reason})", flush=True)
    return [name for name in PLANNERS if name in (args.only or PLANNERS) and name not in lacking]


def quasi_file(args, run):
    """-> the file of a run's quasi-distance: in RUN/planners, not beside packed weights."""
    home = hjepa.default_out(args.run[0]).parent / "planners"
    return home / f"quasi-distance-{run.config.seed}.pt"


def make_measures(args, runs):
    """-> cost -> seed -> its measure; "quasi-distance" is trained here."""
    found = {cost: {} for cost in args.costs}
    world = hjepa.build_world(runs[0].config)
    for run in runs:
        network = None
        if "quasi-distance" in args.costs:
            config = dataclasses.replace(run.config, epochs=args.quasi_epochs)
            network, _ = quasi_distance.train(quasi_file(args, run), run, config, args.device,
                                              args.precision)
        for cost in args.costs:
            found[cost][run.config.seed] = costs.measure_of(cost, run, world, args.device, network)
    return found


def tune_and_try(task, attempt):
    """attempt(number of the setting, split) -> goals.Tried.

    -> the number that was chosen, Tried of it, a list of Tried of all on validation goals.
    """
    count = len(PLANNERS[task.planner].settings)
    if count == 1:
        return 0, attempt(0, "test"), []
    tuned = [attempt(number, "validation") for number in range(count)]
    number = best_setting(tuned)
    return number, attempt(number, "test"), tuned


def try_horizon(frames, tasks, args, runs, measures, kept):
    """-> rows, pairs, dict of arrays, parts of the goals of one horizon."""
    config = runs[0].config
    world = hjepa.build_world(config)
    drawn = {"test": goals.goals_of(config, args.goals, frames=frames),
             "validation": goals.goals_of(config, args.tune_goals, "validation", frames)}
    parts = goals.strata(drawn["test"])
    rows, found = [], {}
    arrays = {f"goals/{frames}/{part}": who.numpy() for part, who in parts.items()}
    for task in tasks:
        def attempt(number, split):
            return goals.kept_or_tried(
                kept, task.planner, frames,
                lambda: try_task(task, number, split, runs, world, drawn[split],
                                 measures[task.cost]),
                cost=task.cost, plans=task.plans, setting=number, split=split)
        number, found[task], tuned = tune_and_try(task, attempt)
        rows.append(make_row(task, number, found[task], parts, frames // config.clip_frames))
        say(rows[-1])
        key = f"{task.planner}/{task.cost}/{frames}/{task.plans}"
        arrays[f"errors/{key}"] = found[task].errors.numpy()
        if tuned:
            arrays[f"tuning/{key}"] = torch.stack([one.errors for one in tuned]).numpy()
    return rows, compare(found, parts), arrays, parts


def measure(args, runs):
    config = runs[0].config
    horizons = check(args, config)
    args.plans = sorted(set(args.plans))
    args.costs = [cost for cost in costs.NAMES if cost in (args.costs or costs.NAMES)]
    args.only = choose_planners(args, runs)
    event = goals.event_frames(config)
    tasks = {frames: tasks_of(args, frames, event) for frames in horizons}
    if not any(tasks.values()):
        raise hjepa.Refusal("nothing is left to be tried: planners are compared with the "
                            f"{BASE}, other costs with {' and '.join(FOR_COSTS)}")
    measures = make_measures(args, runs)
    kept = cli.KeptRows(args, {"weights": cli.fingerprint([run.model for run in runs]),
                               "n": args.goals, "tune": args.tune_goals,
                               "quasi_epochs": args.quasi_epochs})
    rows, pairs, strata, arrays = [], [], [], {}
    for frames in horizons:
        more_rows, more_pairs, more_arrays, parts = try_horizon(frames, tasks[frames], args, runs,
                                                                measures, kept)
        rows += more_rows
        pairs += more_pairs
        arrays.update(more_arrays)
        strata.append({"frames": frames, **{part: int(who.sum()) for part, who in parts.items()}})
    summary = {"tune_goals": args.tune_goals, "plans": args.plans, "strata": strata,
               "settings": {name: PLANNERS[name].settings for name in args.only}, "rows": rows,
               "pairs": pairs}
    return cli.Results(args.goals, summary, arrays,
                       lambda: draw(rows, horizons, max(args.plans)))


def make_parser():
    parser = cli.make_parser("planners", __doc__, goals=(200, "test goals per horizon"),
                             tune_goals=(24, "validation goals per setting"),
                             quasi_epochs=(10, "epochs of the quasi-distance"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    parser.add_argument("--plans", type=int, nargs="+", default=[60, 240, 600],
                        help=f"plans per search, multiples of {SHARES} (60 240 600)")
    parser.add_argument("--only", nargs="+", choices=PLANNERS, metavar="PLANNER",
                        help="planners to try (default: all)")
    parser.add_argument("--costs", nargs="+", choices=costs.NAMES, metavar="COST",
                        help="costs to try (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
