"""An embedding per body: contacts, other numbers of bodies, other masses, hidden masses.

    python figures/objects.py --run runs/quick --epochs 9               # trains what is missing
    python figures/objects.py --run runs/quick --epochs 9 --only plain  # trains one of them only

A token is a body in a clip. Encoders, predictors and the first guess have weights that all bodies
share, and bodies send messages to each other; each is modulated by its own force; VICReg acts on
the embeddings of single bodies (lib/objects_model.py). Objective, loop, searches and all settings
are those of the run, which must have been trained for as many epochs to be compared. But a batch
is half as large, and an epoch has twice as many steps: VICReg has three samples, the bodies, of
each sequence, and a quarter of the dimensions to decorrelate. --batch sets it. Four are trained, in
RUN/objects:

    plain    the run's own sequences; masses are told
    masked   the same; in half of the sequences all frames but the first of one body are hidden from
             the context encoder, as in C-JEPA
    told     masses differ from world to world, 0.5 to 8; masses and the force in a clip are told
    hidden   the same sequences; masses are not told

    plans    goals of these cases, in closed loop from no force, the first by one jump, too:
               own            the goals of `hjepa.py plan`, with their contact split
               contact only   one body is never pushed, and only a contact brings it to its place
                              (that_body: how often it gets there)
               2, 4, 5 bodies; masses between and beyond those of the training
               drawn masses   each world has its own; until the first force nothing tells them
             The run's model cannot take another number of bodies, and cannot be told masses.
             "told, all 2" is told a wrong mass for each body: what knowing is worth.
    against_run   differences on the same goals, with paired intervals
    surprise      share of pairs of films in which passing through surprises more, as in surprise.py
    masses        R2 of log mass, read linearly from the embedding of a body, and from the clip

success, strict: the worst body within 0.1, 0.05; mean_body: the mean within 0.1. Trainings and
measurements that were interrupted go on. objects.npz holds every final error.
"""
import sys

from lib import cli, drawing, goals, objects_goals, objects_judge, objects_runs, stats
import hjepa
import numpy as np
import torch

BODIES = {"2 bodies": (1.0, 4.0), "4 bodies": (1.0, 1.0, 2.0, 4.0),
          "5 bodies": (1.0, 1.0, 2.0, 2.0, 4.0)}
MASSES = {"masses between": (1.4, 2.0, 2.8), "masses beyond": (0.5, 3.0, 8.0)}
PLANNERS = ("short replanned", "macro open loop")
STRATA = ("contact", "no contact", "matters")
WRONG = 2.0                                     # the mass that "told, all 2" believes
COLOURS = {"run": hjepa.COLOURS[5], "plain": hjepa.COLOURS[0], "masked": hjepa.COLOURS[2],
           "told": hjepa.COLOURS[4], "hidden": hjepa.COLOURS[1], "told, all 2": hjepa.COLOURS[3],
           "zero force": "0.8"}


def seers_of(run, home, args):
    """-> dict: how the run and each training are asked."""
    seers = {"run": objects_judge.Seer(run, objects=False)}
    for name, kind in objects_runs.KINDS.items():
        seers[name] = objects_judge.Seer(objects_runs.load(name, run, home, args), kind.tells)
    told = seers["told"]
    seers["told, all 2"] = objects_judge.Seer(told.run, told.tells, believed=WRONG)
    return seers


def make_case(name, config, n):
    """-> the goals of a case, see lib/objects_goals.py."""
    if name == "own":
        return objects_goals.of_the_run(config, n)
    if name == "contact only":
        return objects_goals.of_contacts(config, n)
    if name == "drawn masses":
        return objects_goals.of_drawn_masses(config, n)
    return objects_goals.of_masses(config, {**BODIES, **MASSES}[name], n)


# Case -> the models that are asked.
CASES = {"own": ("run", "plain", "masked", "told"),
         "contact only": ("run", "plain", "masked", "told"),
         **dict.fromkeys(BODIES, ("plain", "masked", "told")),
         **dict.fromkeys(MASSES, ("run", "plain", "masked", "told")),
         "drawn masses": ("run", "plain", "told", "hidden", "told, all 2")}


def all_errors(seers, config, kept, args):
    """-> goals of each case; dict (case, model, planner) -> final errors (goals, bodies)."""
    cases, errors = {}, {}
    for name, models in CASES.items():
        cases[name] = make_case(name, config, args.goals)
        planners = PLANNERS
        if name != "own":
            planners = [planner for planner in planners if planner not in hjepa.ONE_JUMP]
        todo = [("zero force", "zero")]
        todo += [(model, planner) for model in models for planner in planners]
        for model, planner in todo:
            row = kept.find(case=name, model=model, planner=planner)
            if row is None:
                seer = seers["plain" if model == "zero force" else model]
                found = objects_judge.plan_errors(seer, planner, cases[name], f"{name}, {model}",
                                                  args.device, args.together)
                row = {"case": name, "model": model, "planner": planner, "errors": found.tolist()}
                kept.add(row)
                reached = (found.amax(-1) < hjepa.REACHED).float().mean()
                print(f"{name:>15}, {model:>11}, {planner:>20}: {reached:6.1%}", flush=True)
            errors[name, model, planner] = torch.tensor(row["errors"])
    return cases, errors


def plan_rows(cases, errors):
    """-> a row per case, model and planner."""
    rows = []
    for (name, model, planner), found in errors.items():
        row = {"case": name, "model": model, "planner": planner, **goals.summary(found[None])}
        for column in ("strict_ci", "error", "error_ci"):
            row.pop(column)
        if name == "own":
            for part in STRATA:
                pick = goals.strata(cases[name])[part]
                row[part] = row[part + "_ci"] = None
                if pick.any():
                    reached = goals.outcomes(found[None, pick])["success"]
                    row[part] = reached.mean().item()
                    row[part + "_ci"] = stats.interval(reached)
        if name == "contact only":
            body = cases[name]["body"]
            reached = found[torch.arange(len(body)), body] < hjepa.REACHED
            row["that_body"] = reached.float().mean().item()
            row["that_body_ci"] = stats.interval(reached.numpy())
        rows.append(row)
    return rows


def differences(cases, errors):
    """-> a row per case, part and planner in which the run was asked, too: model minus run."""
    rows = []
    for (name, model, planner), found in errors.items():
        other = errors.get((name, "run", planner))
        if other is None or model == "run":
            continue
        parts = {"all": torch.ones(len(found), dtype=torch.bool)}
        if name == "own":
            parts.update(goals.strata(cases[name]))
        for part, pick in parts.items():
            if pick.any():
                gap = goals.differences(found[None, pick], other[None, pick],
                                        ("success", "mean_body"))
                rows.append({"case": name, "part": part, "n": int(pick.sum()), "model": model,
                             "planner": planner, **gap})
    return rows


def surprise_rows(seers, kept, args):
    """-> a row per model and level."""
    rows = []
    for model in ("run", "plain", "masked"):
        row = kept.find(case="pass-through", model=model, planner=None)
        if row is None:
            found = objects_judge.pass_through(seers[model], args.pairs, args.device)
            row = {"case": "pass-through", "model": model, "planner": None,
                   "wins": {level: wins.tolist() for level, wins in found.items()}}
            kept.add(row)
        for level, wins in row["wins"].items():
            rows.append({"model": model, "level": level, "n": len(wins),
                         "share": float(np.mean(wins)), "share_ci": stats.interval(wins)})
    return rows


def mass_rows(seers, kept, args):
    """-> a row per model and situation."""
    rows = []
    for model in ("hidden", "told"):
        row = kept.find(case="masses", model=model, planner=None)
        if row is None:
            found = objects_judge.mass_rows(model, seers[model], args.n, args.device)
            row = {"case": "masses", "model": model, "planner": None, "rows": found}
            kept.add(row)
        rows += row["rows"]
    return rows


# ---- picture

def draw_plans(ax, rows, key, planner, cases, title):
    """Bars of one planner: a group of models per case."""
    models = [model for model in COLOURS
              if any(row["model"] == model and row["case"] in cases for row in rows)]
    for i, model in enumerate(models):
        for place, case in enumerate(cases):
            found = [row for row in rows if row["model"] == model and row["case"] == case
                     and row["planner"] in (planner, "zero")]
            if found and found[0].get(key) is not None:
                at = place + 0.8 * ((i + 0.5) / len(models) - 0.5)
                ax.bar(at, found[0][key], 0.75 / len(models), color=COLOURS[model])
                ax.errorbar(at, found[0][key], drawing.whiskers(found[0], key), color="0.3", lw=1)
    for model in models:
        ax.bar(0, 0, color=COLOURS[model], label=model)
    ax.set_xticks(range(len(cases)), cases, fontsize=8)
    ax.set(title=title, ylim=(0, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1])
    ax.legend(fontsize=7, loc="upper center", ncol=4)


def draw(plans, surprise, masses):
    """-> figure."""
    figure, axes = hjepa.new_figure(2, 3, 17, 9)
    own, contact, passing, bodies, other, read = axes.flat
    closed = PLANNERS[0]
    parts = [{**row, "case": part, "reached": row[part], "reached_ci": row[part + "_ci"]}
             for row in plans if row["case"] == "own" for part in STRATA]
    draw_plans(own, parts, "reached", closed, STRATA, "goals reached, worst body, closed loop")
    draw_plans(contact, plans, "that_body", closed, ["contact only"],
               "the body that only a contact can move gets there")
    levels = [{**row, "case": row["level"], "planner": closed} for row in surprise]
    draw_plans(passing, levels, "share", closed, ("short", "macro"),
               "passing through surprises more (chance: 0.5)")
    passing.axhline(0.9, color="0.5", lw=0.8, ls=":")
    draw_plans(bodies, plans, "mean_body", closed, list(BODIES),
               "other numbers of bodies: goals, mean body")
    draw_plans(other, plans, "mean_body", closed, [*MASSES, "drawn masses"],
               "other masses: goals, mean body")
    hidden = [row for row in masses if row["model"] == "hidden"]
    at = np.arange(len(hidden))
    for shift, column, colour in ((-0.2, "embedding", COLOURS["hidden"]), (0.2, "clip", "0.7")):
        read.barh(at + shift, [max(0, row[column] or 0) for row in hidden], 0.38, color=colour,
                  label=column)
    read.axvline(0.9, color="0.5", lw=0.8, ls=":")
    read.set_yticks(at, [row["situation"] for row in hidden], fontsize=8)
    read.set(title="hidden masses: R2 of log mass, linear", xlim=(0, 1), ylim=(len(at) - 0.5, -0.5))
    read.legend(fontsize=7, loc="lower right")
    return figure


# ---- all of it

def measure(args, run, home, rows):
    """-> Results, of trainings that have ended. rows: what they said, by name."""
    seers = seers_of(run, home, args)
    models = [seer.run.model for seer in seers.values()]
    study = {"weights": cli.fingerprint(models), "goals": args.goals, "pairs": args.pairs,
             "n": args.n}
    kept = cli.KeptRows(args, study)
    cases, errors = all_errors(seers, run.config, kept, args)
    plans = plan_rows(cases, errors)
    surprise = surprise_rows(seers, kept, args)
    masses = mass_rows(seers, kept, args)
    for row in surprise:
        print(f"pass-through, {row['model']:>6}, {row['level']}: {row['share']:6.1%} of pairs")
    for row in masses:
        score = "too few bodies" if row["embedding"] is None else f"R2 {row['embedding']:.3f}"
        print(f"log mass, {row['model']:>6}, {row['situation']}: {score}")
    last = [{"model": name, **{key: value for key, value in found[-1].items() if key in
             ("epoch", "short_error", "macro_error", "std_min", "rank", "seconds")}}
            for name, found in rows.items()]
    sizes = {name: sum(p.numel() for p in seers[name].run.model.parameters())
             for name in ("run", "plain")}
    summary = {"epochs_of_objects": args.epochs,
               "batch": {"run": run.config.batch, "objects": seers["plain"].run.config.batch},
               "parameters": sizes, "trainings": last,
               "n_contact": int(cases["own"]["contact"].sum()), "plans": plans,
               "against_run": differences(cases, errors), "surprise": surprise, "masses": masses}
    arrays = {"/".join(key): found.numpy() for key, found in errors.items()}
    return cli.Results(args.goals, summary, arrays, lambda: draw(plans, surprise, masses))


def make_parser():
    parser = cli.make_parser("objects", __doc__, trains=True, epochs=(9, "epochs of each training"),
                             goals=(200, "test goals of each case"),
                             pairs=(200, "pairs of films"), n=(4096, "test worlds behind R2"),
                             together=(50, "goals that are searched side by side"))
    parser.add_argument("--batch", type=int, help="sequences per step (default: half the run's)")
    parser.add_argument("--only", nargs="+", choices=objects_runs.KINDS, metavar="NAME",
                        help="train these and measure nothing: a process each may do so")
    return parser


def main(argv=None):
    """-> exit code."""
    parser = make_parser()

    def work():
        args, runs = cli.parse(parser, argv)
        run = cli.one_run(runs)
        home = objects_runs.home_of(args.run[0])
        if len(run.config.masses) != 3:
            raise hjepa.Refusal(f"the run has {len(run.config.masses)} bodies: this study is of a "
                                "run of three")
        if run.epochs != args.epochs:
            print(f"the run was trained for {run.epochs} epochs, objects are for {args.epochs}: "
                  "not equal, as the JSON says", flush=True)
        rows = {}
        for name in args.only or objects_runs.KINDS:
            print(f"{name}, in {home}", flush=True)
            rows[name] = objects_runs.train(name, run, home, args)
        if args.only:
            return
        cli.publish(args, runs, measure(args, run, home, rows))
    return cli.exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
