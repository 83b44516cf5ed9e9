"""How does our planner compare with those of other libraries at an equal budget?

    pip install --no-deps -r figures/requirements-speed.txt         # the other libraries
    python figures/speed_plan.py --run runs/quick

One plan for one test goal, from the same start, with the same cost, bounds, samples and iterations,
by the macro jump and by the short predictor rolled out. lib/foreign.py has each library's settings.
The temperature of MPPI is the best of TEMPERATURES on validation goals.

cost        of the plan that each returns, clipped to the bounds
calls       plans whose cost is asked for; ours evaluates its last mean as well
overhead    share of the time that is not spent in the bare predictor calls

Samples and iterations are the run's, which is not the best way to spend plans. Half as many plans,
on a tenth of the samples in five times the iterations, once led our planner to a lower cost than
all of these reached. That gain is the split's, and the others were not given it.
"""
import functools
import statistics
import sys

from lib import cli, drawing, foreign, stats, timing
from lib.goals import goals_of
import hjepa
import numpy as np
import torch

TEMPERATURES = (1.0, 0.1, 0.01, 0.001)          # Of MPPI.
VALIDATION_GOALS = 32                           # To choose the temperature on.
BARE = "predictor calls"                        # Timed along with the planners.


def make_problem(level, run, clip, goal):
    """Observed clips (1, T, F) -> foreign.Problem."""
    model, config = run.model, run.config
    shape = dict(
        clips=config.event_clips, actions=2 * len(config.masses), limit=config.force_limit)
    z1, z2 = model.context(clip)
    t1, t2 = model.target(goal)
    if level == "macro":
        return foreign.Problem(model.jump, model.macro, 1, z2, t2, **shape)

    def predict(z, plans):
        return model.rollout(z, plans)[:, -1]
    return foreign.Problem(predict, model.short, config.event_clips, z1, t1, **shape)


def problems(level, run, n, split, device):
    """Yields a Problem for each of n goals."""
    world = hjepa.build_world(run.config)
    goals = goals_of(run.config, n, split)
    for i in range(n):
        clip = world.observe(goals["clip"][i:i + 1].to(device))
        goal = world.observe(goals["goal"][i:i + 1].to(device))
        yield make_problem(level, run, clip, goal)


def cost_of(plan, problem):
    """-> the cost of one plan (1, K, A), clipped to the bounds."""
    plan = plan.to(problem.start.device).clamp(-problem.limit, problem.limit)
    return problem.cost(plan[:, None]).item()


def installed(problem, config):
    """-> the planners of foreign.PLANNERS whose libraries are here, the names of the others."""
    planners, skipped = {}, []
    for name, planner in foreign.PLANNERS.items():
        try:
            planner(problem, config, 0)
            planners[name] = planner
        except ImportError as error:
            skipped.append(name)
            print(f"{name} is skipped: {error}", file=sys.stderr)
    return planners, skipped


def choose_temperature(level, run, n, device):
    """-> MPPI's temperature with the lowest mean cost on validation goals."""
    means = []
    for temperature in TEMPERATURES:
        costs = []
        for i, problem in enumerate(problems(level, run, n, "validation", device)):
            plan = foreign.mppi(problem, run.config, i, temperature)()
            costs.append(cost_of(plan, problem))
        means.append(statistics.mean(costs))
    return TEMPERATURES[int(np.argmin(means))]


def bare_calls(problem, config):
    """-> a function that makes the predictor calls of one plan and nothing else."""
    start = problem.start.expand(config.samples, -1).contiguous()
    plans = start.new_zeros(config.samples, problem.clips, problem.actions)

    def run():
        for _ in range(config.iterations):
            problem.predict(start, plans)
    return run


def to_arrays(lists):
    return {name: np.array(values) for name, values in lists.items()}


def race(level, run, planners, n, device):
    """-> seconds (also of BARE) and costs, each a dict: planner -> array (n,)."""
    seconds = {name: [] for name in [*planners, BARE]}
    costs = {name: [] for name in planners}
    for i, problem in enumerate(problems(level, run, n, "test", device)):
        actions = {name: planner(problem, run.config, i) for name, planner in planners.items()}
        actions[BARE] = bare_calls(problem, run.config)
        for name in timing.in_turn(actions, i):
            taken, plan = timing.timed(actions[name], device)
            seconds[name].append(taken)
            if name != BARE:
                costs[name].append(cost_of(plan, problem))
    return to_arrays(seconds), to_arrays(costs)


def make_rows(level, config, seconds, costs):
    """-> a row per planner."""
    rows = []
    for name, cost in costs.items():
        overhead = 1 - seconds[BARE] / seconds[name]
        calls = config.samples * config.iterations
        if name == "ours":
            calls += 1                          # its last mean
        row = {"level": level, "planner": name, "calls": calls,
               "seconds": np.median(seconds[name]).item(),
               "cost": cost.mean().item(), "cost_ci": stats.interval(cost),
               "overhead": np.median(overhead).item(),
               "overhead_quartiles": timing.quartiles(overhead)}
        if name != "ours":
            gap, gap_ci = stats.paired_interval(cost, costs["ours"])
            row.update(ours_lower_by=gap, ours_lower_by_ci=gap_ci)
        rows.append(row)
        print("{level}, {planner}: {seconds:.4f} s, {overhead:.0%} of it not in the predictor, "
              "cost {cost:.4f}".format(**row), flush=True)
    return rows


def draw(rows):
    """-> figure: the cost that each planner reaches, by level."""
    figure, axes = hjepa.new_figure(1, 2, 12, 3)
    for ax, level in zip(axes[0], ("macro", "short")):
        chosen = [row for row in rows if row["level"] == level]
        for i, row in enumerate(chosen):
            drawing.dot(ax, row, "cost", i, hjepa.COLOURS[i])
        labels = ["{}, {:.0f} ms".format(row["planner"], 1000 * row["seconds"]) for row in chosen]
        ax.set_yticks(range(len(labels)), labels)
        ax.invert_yaxis()
        ax.set(title=f"{level} level: cost of the plan found")
    return figure


@torch.no_grad()
def measure(args, runs):
    run = cli.one_run(runs)
    config = run.config
    rows = []
    for level in ("macro", "short"):
        probe = next(problems(level, run, 1, "validation", args.device))
        planners, skipped = installed(probe, config)
        chosen = {}
        if "pytorch-mppi" in planners:
            n = min(args.n, VALIDATION_GOALS)
            chosen["temperature"] = choose_temperature(level, run, n, args.device)
            planners["pytorch-mppi"] = functools.partial(foreign.mppi, **chosen)
        seconds, costs = race(level, run, planners, args.n, args.device)
        for row in make_rows(level, config, seconds, costs):
            if row["planner"] == "pytorch-mppi":
                row.update(chosen)
            rows.append(row)
    summary = {"processor": timing.processor(), "skipped": skipped, "temperatures": TEMPERATURES,
               "rows": rows}
    return cli.Results(args.n, summary, figure=lambda: draw(rows))


if __name__ == "__main__":
    parser = cli.make_parser("speed_plan", __doc__, n=(200, "test goals"))
    sys.exit(cli.main(parser, measure))
