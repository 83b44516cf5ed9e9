"""How should a planner spend its plans, and would more of them help?

    python figures/search.py --run figures/hjepa.pt
    python figures/search.py --run runs/quick --run runs/quick-1 --tasks 60

Planners, costs and horizon (25 frames) are those of `hjepa.py plan`; only CEM's setting varies:
samples per iteration, iterations, elites. Three parts:

    as many plans     samples x iterations as in the run, in few large iterations or many small ones,
                      with a twentieth to three tenths of the samples (three or more) as elites;
                      validation goals
    more plans        the best of those with 2, 4 and 8 times its samples and elites, for the two
                      planners that plan once; validation goals
    test              the run's own setting, the best one, the best one with 8 times the samples:
                      fixed before test goals are looked at

The best is the one with the lowest `score`: each planner's mean final error over that of the run's
own setting, the mean of the three planners. A goal met more closely counts even if no threshold
lies between. The lowest of many is flattered by the choice; test goals say what it is worth.

rows: a planner, a setting, goals of `worlds`. scores: a setting of the first part. pairs: on the
same test goals setting a minus setting b, the one before it in the list above. seconds: one search
at the own and the best setting, in turn, medians, and the median ratio of neighbours, which a busy
machine moves little; a row's seconds per task it does move. An interrupted study goes on: its rows
are kept in OUT/search.part.json.
"""
import dataclasses
import sys
from collections import namedtuple

import common
import hjepa
import numpy as np
import planning
import torch

PLANNERS = ("macro open loop", "short open loop", "short replanned")
PACE = (0.5, 1, 5 / 3, 2.5, 4)                  # times the run's iterations: 3, 6, 10, 15, 24
ELITES = (0.05, 0.1, 0.2, 0.3)                 # shares of the samples
MORE = (2, 4, 8)                                # times the best setting's samples and elites
REPEATS = 15                                    # searches timed at each setting
SAME = ("views", "spread", "validation_seed", "test_seed")    # with others it is another study
Setting = namedtuple("Setting", "samples iterations elites")


def setting_of(has):
    """A Config, or a row -> its Setting."""
    has = has if isinstance(has, dict) else vars(has)
    return Setting(*(has[k] for k in Setting._fields))


def equal_settings(config):
    """-> settings of as many plans as the run's own, which comes first."""
    found = [setting_of(config)]
    for pace in PACE:
        iterations = max(1, round(config.iterations * pace))
        samples = config.samples * config.iterations // iterations
        found += [Setting(samples, iterations, max(3, round(share * samples))) for share in ELITES]
    return [setting for setting in dict.fromkeys(found) if setting.elites <= setting.samples]


def scaled(setting, times):
    """-> `times` the samples and elites, as many iterations."""
    return setting._replace(samples=setting.samples * times, elites=setting.elites * times)


def try_setting(planner, setting, runs, world, tasks, seed, args):
    """-> row: shares of goals reached, with intervals; errors (runs, tasks, bodies)."""
    found = [hjepa.try_tasks(planner, run.model, world,
                             dataclasses.replace(run.config, **setting._asdict()), tasks, seed,
                             args.device, args.precision) for run in runs]
    errors, seconds = torch.stack([f[0] for f in found]), np.mean([f[-1] for f in found]).item()
    return {"planner": planner, **setting._asdict(), "seconds": seconds, **planning.summary(errors),
            "errors": errors.tolist()}


def scores(rows, own):
    """rows of the first part -> [{samples, iterations, elites, score}], the best one first."""
    errors = {(row["planner"], setting_of(row)): row["error"] for row in rows}
    found = [(np.mean([errors[name, setting] / errors[name, own] for name in PLANNERS]).item(),
              setting) for setting in dict.fromkeys(setting_of(row) for row in rows)]
    return [{**setting._asdict(), "score": score} for score, setting in sorted(found)]


def compare(rows):
    """Rows of the last part -> what each setting gains over the one before it, planner by planner."""
    pairs = []
    for name in PLANNERS:
        mine = [row for row in rows if row["planner"] == name]
        for before, after in zip(mine, mine[1:]):
            pair = {"planner": name, "a": setting_of(after)._asdict(),
                    "b": setting_of(before)._asdict()}
            a, b = (planning.outcomes(torch.tensor(row["errors"])) for row in (after, before))
            for key in a:
                pair[key], pair[key + "_ci"] = common.paired_interval(a[key], b[key])
            pairs.append(pair)
    return pairs


def take_turns(own, best, run, world, goals, args):
    """-> seconds of one search at the own and the best setting, tried in turn, planner by planner."""
    rows, goal = [], {name: values[:1] for name, values in goals.items()}
    for name in PLANNERS[:2] if own != best else ():
        taken = np.array([[hjepa.try_tasks(
            name, run.model, world, dataclasses.replace(run.config, **setting._asdict()), goal,
            run.config.validation_seed, args.device, args.precision)[-1]
            for setting in (own, best)] for _ in range(1 + REPEATS)])[1:]     # the first warms up
        mine, its = np.median(taken, 0).tolist()
        rows.append({"planner": name, "own": mine, "best": its,
                     "ratio": np.median(taken[:, 1] / taken[:, 0]).item()})
    return rows


def draw(parts, own, best, n):
    """Error at equal plans; reached against plans; the test goals."""
    figure, ((left, middle, right),) = hjepa.canvas(1, 3, 15, 4.4)
    colours = dict(zip(PLANNERS, hjepa.COLOURS))
    for row in parts["as many plans"]:
        left.plot(row["iterations"], row["error"], "o", ms=3 + 30 * row["elites"] / row["samples"],
                  mfc="0.85" if setting_of(row) == own else "none", color=colours[row["planner"]])
    for name, colour in colours.items():
        left.plot([], [], "o", color=colour, label=name)
        rows = [row for row in parts["as many plans"] + parts["more plans"]
                if row["planner"] == name and setting_of(row) in
                [scaled(best, times) for times in (1, *MORE)]]
        x = [row["samples"] * row["iterations"] for row in rows]
        middle.plot(x, [row["success"] for row in rows], "o-", color=colour, ms=4)
        for at, row in zip(x, rows):
            middle.plot([at, at], row["success_ci"], color=colour, alpha=0.3, lw=4)
    settings = list(dict.fromkeys(setting_of(row) for row in parts["test"]))
    for row in parts["test"]:
        place = settings.index(setting_of(row)) + 0.2 * (PLANNERS.index(row["planner"]) - 1)
        low, high = row["success_ci"]
        right.bar(place, row["success"], 0.18, color=colours[row["planner"]],
                  yerr=[[row["success"] - low], [high - row["success"]]])
    left.set(title=f"{n} validation goals, {own.samples * own.iterations} plans a search",
             xlabel="iterations (larger circle: more elites; filled: the run's own)",
             ylabel="final error, mean over bodies")
    left.legend(fontsize=8)
    middle.set(title=f"{best.iterations} iterations, more samples", xlabel="plans a search",
               xscale="log", ylabel="share of validation goals, worst body within 0.1", ylim=(0, 1.02))
    ticks = [best.samples * best.iterations * times for times in (1, *MORE)]
    middle.set_xticks(ticks)
    middle.set_xticks([], minor=True)
    middle.set_xticklabels(f"{tick:,}" for tick in ticks)
    right.set(title=f"{n} test goals, worst body within 0.1", ylim=(0, 1.02),
              xticks=range(len(settings)))
    right.set_xticklabels("{} x {}\n{} elites".format(*setting) for setting in settings)
    for ax in (left, middle, right):
        ax.grid(axis="y", color="0.9")
        ax.set_axisbelow(True)
    return figure


def measure(args, runs):
    config, unfinished = runs[0].config, args.out / "search.part.json"    # see common.publish
    world, own = hjepa.build_world(config), setting_of(config)
    told = {"weights": common.fingerprint(runs), "n": args.tasks, "precision": args.precision,
            **{k: getattr(config, k) for k in SAME}}
    kept = {(row["worlds"], row["planner"], setting_of(row)): row
            for row in common.kept_rows(unfinished, told)}

    def drawn(seed):
        """Goals, as `hjepa.py plan` draws them."""
        return hjepa.make_tasks(world, args.tasks, config.steps, hjepa.generator(seed, "tasks"),
                                config.hold, config.start_speed)

    def tried(worlds, settings, planners):
        """-> rows, from the file or new."""
        seed, rows = getattr(config, worlds + "_seed"), []
        goals = drawn(seed)
        for name, setting in ((name, setting) for setting in settings for name in planners):
            key = worlds, name, setting
            if key not in kept:
                kept[key] = {"worlds": worlds, **try_setting(name, setting, runs, world, goals,
                                                             seed, args)}
                hjepa.write_json(unfinished, {"told": told, "rows": list(kept.values())})
                print("{worlds:>10}, {planner:>15}, {samples:4d} x {iterations:2d}, {elites:3d} "
                      "elites: mean body within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
                      "error {error:.4f}".format(**kept[key]), flush=True)
            rows.append(kept[key])
        return rows
    parts = {"as many plans": tried("validation", equal_settings(config), PLANNERS)}
    ranking = scores(parts["as many plans"], own)
    best = setting_of(ranking[0])
    more = [scaled(best, times) for times in MORE]
    parts["more plans"] = tried("validation", more, PLANNERS[:2])
    parts["test"] = [*tried("test", dict.fromkeys((own, best)), PLANNERS),
                     *tried("test", more[-1:], PLANNERS[:2])]
    return draw(parts, own, best, args.tasks), args.tasks, {
        "frames": config.steps * config.hold, **{k: told[k] for k in SAME}, "own": own._asdict(),
        "best": best._asdict(), "scores": ranking, "pairs": compare(parts["test"]),
        "seconds": take_turns(own, best, runs[0], world, drawn(config.validation_seed), args),
        "rows": [{"part": part, **row} for part, rows in parts.items() for row in rows]}


if __name__ == "__main__":
    sys.exit(common.main(common.make_parser("search", __doc__, tasks=(200, "goals of each kind")),
                         measure))
