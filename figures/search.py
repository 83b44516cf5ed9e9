"""How should a planner spend its plans, and would more of them help?

    python figures/search.py --run figures/weights/hjepa.pt
    python figures/search.py --run runs/quick --run runs/quick-1 --goals 60

Planners, costs and horizon (25 frames) are those of `hjepa.py plan`; only the setting of CEM
varies: samples per iteration, iterations, elites. Three parts:

    as many plans     samples x iterations as in the run, in few large iterations or many small
                      ones, with a twentieth to three tenths of the samples (three or more) as
                      elites; validation goals
    more plans        the best of those with 2, 4 and 8 times its samples and elites, for the two
                      planners that plan once; validation goals
    test              the run's own setting, the best one, the best one with 8 times the samples:
                      fixed before test goals are looked at

The best is the one with the lowest `score`: each planner's mean final error over that of the run's
own setting, the mean of the three planners. A goal met more closely counts even if no threshold
lies between. The lowest of many is flattered by the choice; test goals say what it is worth.

scores: a setting of the first part. pairs: on the same test goals setting a minus setting b, the
one before it in the list above. seconds: one search at the own and the best setting, in turn,
medians, and the median ratio of neighbours, which a busy machine moves little; the seconds per goal
of a row it does move. search.npz holds every final error. An interrupted study goes on: its rows
are kept in OUT/search.part.json.
"""
import dataclasses
import sys
from collections import namedtuple

from lib import cli, drawing, goals
import hjepa
import numpy as np

PLANNERS = ("macro open loop", "short open loop", "short replanned")
ONCE = PLANNERS[:2]                             # they plan once
PACE = (0.5, 1, 5 / 3, 2.5, 4)                  # times the run's iterations: 3, 6, 10, 15, 24
ELITES = (0.05, 0.1, 0.2, 0.3)                  # shares of the samples
MORE = (2, 4, 8)                                # times the best setting's samples and elites
REPEATS = 15                                    # searches timed at each setting
SAME = ("views", "init_std", "validation_seed", "test_seed")      # with others: another study
Setting = namedtuple("Setting", "samples iterations elites")


# ---- settings

def setting_of(owner):
    """A Config, or a row -> its Setting."""
    values = owner if isinstance(owner, dict) else vars(owner)
    return Setting(*(values[name] for name in Setting._fields))


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


# ---- measuring

def with_setting(run, setting):
    """-> the run, planning with another setting."""
    return run._replace(config=dataclasses.replace(run.config, **setting._asdict()))


def try_setting(planner, setting, runs, world, drawn, seed, device):
    """-> goals.Tried."""
    def solve(run, pick, meter):
        gens = [hjepa.generator(seed, planner, i) for i in pick.tolist()]
        states, _ = hjepa.run_planner(planner, run.model, world, run.config,
                                      drawn["clip"][pick].to(device),
                                      drawn["goal"][pick].to(device), gens)
        return states
    return goals.try_goals(solve, [with_setting(run, setting) for run in runs], drawn, planner)


def scores(rows, own):
    """Rows of the first part -> [{samples, iterations, elites, score}], the best one first."""
    errors = {(row["planner"], setting_of(row)): row["error"] for row in rows}
    found = []
    for setting in dict.fromkeys(setting_of(row) for row in rows):
        ratios = [errors[name, setting] / errors[name, own] for name in PLANNERS]
        found.append((np.mean(ratios).item(), setting))
    return [{**setting._asdict(), "score": score} for score, setting in sorted(found)]


def compare(rows):
    """Rows of the last part -> what each setting gains over the one before it, by planner."""
    pairs = []
    for name in PLANNERS:
        mine = [row for row in rows if row["planner"] == name]
        for before, after in zip(mine, mine[1:]):
            pairs.append({"planner": name, "a": setting_of(after)._asdict(),
                          "b": setting_of(before)._asdict(),
                          **goals.differences(after["errors"], before["errors"])})
    return pairs


def take_turns(own, best, run, world, drawn, device):
    """-> seconds of one search at the own and the best setting, tried in turn, by planner."""
    rows = []
    one = {key: values[:1] for key, values in drawn.items()}
    for name in ONCE if own != best else ():
        taken = np.array([[try_setting(name, setting, [run], world, one, run.config.validation_seed,
                                       device).seconds for setting in (own, best)]
                          for _ in range(1 + REPEATS)])[1:]               # the first warms up
        mine, its = np.median(taken, 0).tolist()
        rows.append({"planner": name, "own": mine, "best": its,
                     "ratio": np.median(taken[:, 1] / taken[:, 0]).item()})
    return rows


# ---- the picture

def draw(parts, own, best, n):
    """Error at equal plans; reached against plans; the test goals."""
    figure, ((left, middle, right),) = hjepa.new_figure(1, 3, 15, 4.4)
    colours = dict(zip(PLANNERS, hjepa.COLOURS))
    for row in parts["as many plans"]:
        left.plot(row["iterations"], row["error"], "o", ms=3 + 30 * row["elites"] / row["samples"],
                  mfc="0.85" if setting_of(row) == own else "none", color=colours[row["planner"]])
    for name, colour in colours.items():
        left.plot([], [], "o", color=colour, label=name)
        rows = [row for row in parts["as many plans"] + parts["more plans"]
                if row["planner"] == name
                and setting_of(row) in [scaled(best, times) for times in (1, *MORE)]]
        x = [row["samples"] * row["iterations"] for row in rows]
        middle.plot(x, [row["success"] for row in rows], "o-", color=colour, ms=4)
        for at, row in zip(x, rows):
            middle.plot([at, at], row["success_ci"], color=colour, alpha=0.3, lw=4)
    settings = list(dict.fromkeys(setting_of(row) for row in parts["test"]))
    for row in parts["test"]:
        place = settings.index(setting_of(row)) + 0.2 * (PLANNERS.index(row["planner"]) - 1)
        right.bar(place, row["success"], 0.18, color=colours[row["planner"]],
                  yerr=drawing.whiskers(row, "success"))
    left.set(title=f"{n} validation goals, {own.samples * own.iterations} plans a search",
             xlabel="iterations (larger circle: more elites; filled: the run's own)",
             ylabel="final error, mean over bodies")
    left.legend(fontsize=8)
    middle.set(title=f"{best.iterations} iterations, more samples", xlabel="plans a search",
               xscale="log", ylim=(0, 1.02),
               ylabel="share of validation goals, worst body within 0.1")
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


# ---- the study

def table(parts, own, best):
    """-> rows for the JSON: errors are in the npz, intervals only where somebody looks at them."""
    rows = []
    for part, part_rows in parts.items():
        for row in part_rows:
            short = part == "as many plans" and setting_of(row) not in (own, best)
            rows.append({"part": part, **{
                key: value for key, value in row.items()
                if key not in ("errors", "worlds") and not (short and key.endswith("_ci"))}})
    return rows


def make_arrays(parts):
    """-> entries of search.npz."""
    arrays = {}
    for part, rows in parts.items():
        for row in rows:
            name = "{planner}/{samples} x {iterations}, {elites} elites".format(**row)
            arrays[f"errors/{part}/{name}"] = np.array(row["errors"], dtype=np.float32)
    return arrays


def measure(args, runs):
    config = runs[0].config
    world = hjepa.build_world(config)
    own = setting_of(config)
    same = {key: getattr(config, key) for key in SAME}
    kept = cli.KeptRows(args, {"weights": cli.fingerprint(runs), "n": args.goals, **same})
    drawn = {split: goals.goals_of(config, args.goals, split) for split in ("validation", "test")}
    seeds = {"validation": config.validation_seed, "test": config.test_seed}

    def rows_of(worlds, settings, planners):
        """-> rows, kept ones or new ones."""
        rows = []
        for name, setting in ((name, setting) for setting in settings for name in planners):
            row = kept.find(worlds=worlds, planner=name, **setting._asdict())
            if row is None:
                tried = try_setting(name, setting, runs, world, drawn[worlds], seeds[worlds],
                                    args.device)
                row = {"worlds": worlds, "planner": name, **setting._asdict(),
                       "seconds": tried.seconds, **goals.summary(tried.errors),
                       "errors": tried.errors.tolist()}
                kept.add(row)
                print("{worlds:>10}, {planner:>15}, {samples:4d} x {iterations:2d}, {elites:3d} "
                      "elites: mean body within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
                      "error {error:.4f}".format(**row), flush=True)
            rows.append(row)
        return rows
    parts = {"as many plans": rows_of("validation", equal_settings(config), PLANNERS)}
    ranking = scores(parts["as many plans"], own)
    best = setting_of(ranking[0])
    more = [scaled(best, times) for times in MORE]
    parts["more plans"] = rows_of("validation", more, ONCE)
    parts["test"] = (rows_of("test", dict.fromkeys((own, best)), PLANNERS)
                     + rows_of("test", more[-1:], ONCE))
    summary = {"frames": goals.event_frames(config), **same, "own": own._asdict(),
               "best": best._asdict(), "scores": ranking, "pairs": compare(parts["test"]),
               "seconds": take_turns(own, best, runs[0], world, drawn["validation"], args.device),
               "rows": table(parts, own, best)}
    return cli.Results(args.goals, summary, make_arrays(parts),
                       lambda: draw(parts, own, best, args.goals))


if __name__ == "__main__":
    sys.exit(cli.main(cli.make_parser("search", __doc__, goals=(200, "goals of each kind")),
                      measure))
