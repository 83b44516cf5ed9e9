"""How should a planner spend its plans, and would more of them help?

    python figures/search.py --run figures/hjepa.pt
    python figures/search.py --run runs/quick --run runs/quick-1 --tasks 60

Weights, costs and goals (25 frames) are those of `hjepa.py plan`; only CEM's setting varies: samples
per iteration, iterations, elites. Three steps:

    as many plans     samples x iterations as in the run, in few large iterations or many small ones,
                      with a twentieth, a tenth or a fifth of the samples as elites; validation goals
    more plans        the best of those with 2, 4 and 8 times its samples and elites, for the two
                      planners that plan once; validation goals
    test              the run's own setting, the best one, and the best one with most samples

The best is the one with the lowest `score`: each planner's mean final error over that of the run's
own setting, the mean of the three planners. A goal met more closely counts even if no threshold
lies between. So a setting is chosen on validation goals, for all planners together, and test goals
are seen by what was chosen alone.

rows: a planner, a setting, goals of `worlds`. scores: a setting of the first step. pairs: setting a
minus setting b, the same test goals. An interrupted study goes on: its rows are kept in
OUT/search.part.json. Seconds per task are of one task after the other; compare those of one step.
"""
import dataclasses
import sys

import common
import hierarchy
import hjepa
import numpy as np
import planning
import torch

PLANNERS = ("macro open loop", "short open loop", "short replanned")
PACE = (0.5, 1, 5 / 3, 2.5)                     # times the run's iterations: 3, 6, 10, 15
ELITES = (0.05, 0.1, 0.2)                       # shares of the samples
MORE = (2, 4, 8)                                # times the best setting's samples and elites


def own_setting(config):
    """-> (samples, iterations, elites) of the run."""
    return config.samples, config.iterations, config.elites


def equal_settings(config):
    """-> settings of as many plans as the run's own, which comes first."""
    found = [own_setting(config)]
    for pace in PACE:
        iterations = max(1, round(config.iterations * pace))
        samples = config.samples * config.iterations // iterations
        found += [(samples, iterations, max(3, round(share * samples))) for share in ELITES]
    return [setting for setting in dict.fromkeys(found) if setting[2] <= setting[0]]


def scaled(setting, times):
    samples, iterations, elites = setting
    return samples * times, iterations, elites * times


def draw_tasks(world, config, seed, n):
    """The first n goals of `hjepa.py plan` in the worlds of `seed`."""
    return hjepa.make_tasks(world, n, config.steps, hjepa.generator(seed, "tasks"), config.hold,
                            config.start_speed)


def try_setting(planner, setting, runs, world, tasks, seed, args):
    """-> row: shares of goals reached, with intervals; errors (runs, tasks, bodies)."""
    spent = dict(zip(("samples", "iterations", "elites"), setting))
    found = [hjepa.try_tasks(planner, run.model, world, dataclasses.replace(run.config, **spent),
                             tasks, seed, args.device, args.precision) for run in runs]
    errors, seconds = torch.stack([f[0] for f in found]), np.mean([f[-1] for f in found]).item()
    row = {"planner": planner, **spent, "seconds": seconds}
    for key, values in planning.outcomes(errors).items():
        row[key], row[key + "_ci"] = values.mean().item(), common.interval(values)
    return {**row, "errors": errors.tolist()}


def setting_of(row):
    return row["samples"], row["iterations"], row["elites"]


def scores(rows, own):
    """rows of the first step -> [{samples, iterations, elites, score}], the best one first."""
    errors = {(row["planner"], setting_of(row)): row["error"] for row in rows}
    found = [(np.mean([errors[name, setting] / errors[name, own] for name in PLANNERS]).item(),
              setting) for setting in dict.fromkeys(setting_of(row) for row in rows)]
    return [dict(zip(("samples", "iterations", "elites"), setting), score=score)
            for score, setting in sorted(found)]


def compare(rows):
    """Test rows, the run's own setting first -> its rivals minus it, planner by planner."""
    pairs = []
    for name in PLANNERS:
        first, *others = (row for row in rows if row["planner"] == name)
        for row in others:
            pair = {"planner": name, "a": setting_of(row), "b": setting_of(first)}
            a, b = (planning.outcomes(torch.tensor(r["errors"])) for r in (row, first))
            for key in a:
                pair[key], pair[key + "_ci"] = common.paired_interval(a[key], b[key])
            pairs.append(pair)
    return pairs


def draw(steps, own, best, n):
    """Error at equal plans; reached against plans; the test goals."""
    figure, ((left, middle, right),) = hjepa.canvas(1, 3, 15, 4.4)
    colours = dict(zip(PLANNERS, hjepa.COLOURS))
    for row in steps["as many plans"]:
        share = row["elites"] / row["samples"]
        left.plot(row["iterations"], row["error"], "o", ms=3 + 30 * share, mfc="none",
                  color=colours[row["planner"]])
    for name, colour in colours.items():
        left.plot([], [], "o", color=colour, label=name)
        rows = [row for row in steps["as many plans"] + steps["more plans"] if row["planner"] == name
                and setting_of(row)[1] == best[1]
                and row["elites"] * best[0] == best[2] * row["samples"]]
        x = [row["samples"] * row["iterations"] for row in rows]
        middle.plot(x, [row["success"] for row in rows], "o-", color=colour, ms=4)
        for at, row in zip(x, rows):
            middle.plot([at, at], row["success_ci"], color=colour, alpha=0.3, lw=4)
    settings = list(dict.fromkeys(setting_of(row) for row in steps["test"]))
    for row in steps["test"]:
        place = settings.index(setting_of(row)) + 0.2 * (PLANNERS.index(row["planner"]) - 1)
        low, high = row["success_ci"]
        right.bar(place, row["success"], 0.18, color=colours[row["planner"]],
                  yerr=[[row["success"] - low], [high - row["success"]]])
    plans = own[0] * own[1]
    left.set(title=f"{n} validation goals, {plans} plans a search", xlabel="iterations (a larger "
             "circle: more elites)", ylabel="final error, mean over bodies")
    left.legend(fontsize=8)
    middle.set(title=f"{best[1]} iterations, more samples", xlabel="plans a search", xscale="log",
               ylabel="share of validation goals, worst body within 0.1", ylim=(0, 1.02))
    middle.xaxis.set_minor_formatter("")
    ticks = sorted({row["samples"] * row["iterations"] for row in steps["more plans"]} | {plans})
    middle.set_xticks(ticks)
    middle.set_xticklabels(f"{tick:,}" for tick in ticks)
    right.set(title=f"{n} test goals, worst body within 0.1", ylim=(0, 1.02),
              xticks=range(len(settings)))
    right.set_xticklabels("{} x {}, {} elites".format(*setting) for setting in settings)
    for ax in (left, middle, right):
        ax.grid(axis="y", color="0.9")
    return figure


def measure(args, runs):
    config, path = runs[0].config, args.out / "search.part.json"          # see common.publish
    world, own = hjepa.build_world(config), own_setting(config)
    told = {"weights": hierarchy.fingerprint(runs), "n": args.tasks, "precision": args.precision}
    kept = {(row["worlds"], row["planner"], *setting_of(row)): row
            for row in hierarchy.kept_rows(path, told)}
    goals = {}

    def tried(worlds, settings, planners):
        """-> rows, from the file or new."""
        seed, rows = getattr(config, worlds + "_seed"), []
        if worlds not in goals:
            goals[worlds] = draw_tasks(world, config, seed, args.tasks)
        for name, setting in ((name, setting) for setting in settings for name in planners):
            key = worlds, name, *setting
            if key not in kept:
                kept[key] = {"worlds": worlds, **try_setting(name, setting, runs, world,
                                                             goals[worlds], seed, args)}
                hjepa.write_json(path, {"told": told, "rows": list(kept.values())})
                print("{worlds:>10}, {planner:>15}, {samples:4d} x {iterations:2d}, {elites:3d} "
                      "elites: mean body within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
                      "error {error:.4f}".format(**kept[key]), flush=True)
            rows.append(kept[key])
        return rows
    steps = {"as many plans": tried("validation", equal_settings(config), PLANNERS)}
    ranking = scores(steps["as many plans"], own)
    best = setting_of(ranking[0])
    more = [scaled(best, times) for times in MORE]
    steps["more plans"] = tried("validation", more, PLANNERS[:2])
    steps["test"] = [*tried("test", dict.fromkeys((own, best)), PLANNERS),
                     *tried("test", more[-1:], PLANNERS[:2])]
    return draw(steps, own, best, args.tasks), args.tasks, {
        "frames": config.steps * config.hold, "views": config.views, "own": own, "best": best,
        "scores": ranking, "pairs": compare(steps["test"]),
        "rows": [{"step": step, **row} for step, rows in steps.items() for row in rows]}


if __name__ == "__main__":
    sys.exit(common.main(common.make_parser("search", __doc__, tasks=(200, "goals of each kind")),
                         measure))
