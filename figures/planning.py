"""Does it reach goals, and because of the model?

    python figures/planning.py --run runs/paper                    # all rows, 25, 50 and 75 frames
    python figures/planning.py --run runs/paper --state runs/paper/state.pt --many 1000
    python figures/planning.py --run runs/quick --frames 25 --goals 40
    python figures/planning.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds
    python figures/planning.py --run runs/quick --only oracle "short replanned"
    python figures/planning.py --run runs/quick --frames 25 --only "macro open loop" --samples 500

A goal is what a test world shows some frames after a context clip, under hidden random forces. A
planner chooses forces. What counts is where the bodies are at the last frame. No planner may ask
whether it has arrived, and goals that zero force comes near are left out. The rows:

  no planner at all: how hard are the goals?
    zero, random
  is it the model, and the training?
    shuffled goal            short replanned, sent to another goal and judged on its own
    untrained                short replanned with the start weights
  rivals, with the same search and budget
    fly and fold             exact parabolas and walls, blind to contacts; nothing is learnt
    state network            predicts states, is told what to keep (--state; figures/state.py)
  is it the search, the cost, the dynamics?
    oracle                   the true simulator, true positions
    simulator + latent cost  the true simulator, plain distance of t1, replanned every clip; planned
                             once, for both taps and both distances: figures/landscapes.py
    model + decoded cost     the model, distance of decoded positions
  the paper's planners: from no force
    macro open loop          P2 plans 25 frames once
    short open loop          P1 rolled out, plans once
    short replanned          P1 rolled out, replanned every clip
    both levels              macro jumps to the goal, short steps to where they begin; replanned
  the project's own: from the first guess
    first guess              its forces, no search
    macro from guess, short from guess, replanned from guess, both levels from guess
    replanned from guess, a tenth                       with a tenth of the plans

P2 and the first guess reach 25 frames far, one macro-event: so do the rows of one plan from them.
`shuffled goal` and `untrained` are answered there. Before 50 frames the two levels need not meet.
Rows that need a first guess are left out if the model has none, `state network` without --state.

Every row has parts: goals with a contact on the hidden way, without, and those where it matters
(were bodies to pass through each other, with the same forces, one would end more than 0.2 away).
velocity is the mean error of velocity at the goal, in half boxes a second.

The goals 25 frames ahead are those of `hjepa.py plan`. With --many rows that cost little are tried
on further goals as well. All searches have the same budget but for the tenth. The noise of a search
depends on (test seed, planner, number of the goal) alone. Where that is four times as fast or more,
goals are searched side by side, and the JSON says so. planning.npz holds the goals and every final
error, so that the table can be computed again.

An interrupted study goes on: its rows are kept in OUT/planning.part.json until it is finished.
"""
import dataclasses
import sys
from pathlib import Path

from lib import cli, drawing, goals, planners, probes, state_network, table_rows
import hjepa
import numpy as np
import torch

NAMES = ("zero", "random", "shuffled goal", "untrained", "fly and fold", "state network", "oracle",
         "simulator + latent cost", "model + decoded cost", "macro open loop", "short open loop",
         "short replanned", "both levels", "first guess", "macro from guess", "short from guess",
         "replanned from guess", planners.TENTH, "both levels from guess")

# Rows that are tried one macro-event ahead only.
NOT_LATER = ("shuffled goal", "untrained", "macro open loop", "first guess", "macro from guess",
             "short from guess")

# These do not look at the model: one run is enough.
PLAIN = ("zero", "random", "fly and fold", "oracle")

# Rows whose goals are searched side by side, else one by one. In the simulator that is 4 to 12
# times as fast, with few plans or none 4 to 13 times, in a predictor with 100 plans not even twice.
SIDE_BY_SIDE = dict.fromkeys(("fly and fold", "oracle", "simulator + latent cost",
                              "first guess"), 25)

# With --many these keep to the first goals: a second or more for each.
DEAR = ("shuffled goal", "untrained", "simulator + latent cost", "model + decoded cost",
        *planners.LEVELS)

RIVALS = ("fly and fold", "state network")
PAIRS = [("replanned from guess", "fly and fold"), ("replanned from guess", "state network"),
         ("replanned from guess", "short replanned"), ("replanned from guess", planners.TENTH),
         ("replanned from guess", "both levels from guess"),
         ("macro from guess", "macro open loop"), ("short replanned", "fly and fold"),
         ("short replanned", "state network"), ("short replanned", "model + decoded cost"),
         ("short replanned", "short open loop"), ("both levels", "short replanned")]
BUDGET = ("samples", "iterations", "elites", "init_std", "guess_std")
GREY, GREEN, PURPLE, BLUE, RED = "0.45", "#1b7837", "#762a83", "#2166ac", "#b2182b"


# ---- one row of the table

def try_row(name, runs, world, drawn, tools, device):
    """tools: seed -> what solve needs for the run of that seed -> goals.Tried."""
    if name in PLAIN:
        runs = runs[:1]
    if name == "untrained":
        runs = [planners.untrained(run, device) for run in runs]

    def solve_row(run, pick, meter):
        return planners.solve(name, run, world, drawn, pick, tools[run.config.seed], meter,
                              device)
    label = f"{drawn['forces'].shape[1]} clips, {name}"
    return goals.try_goals(solve_row, runs, drawn, label, SIDE_BY_SIDE.get(name, 1))


# ---- the table

def compare(errors, frames, matters):
    """errors: planner -> (runs, n, bodies); matters (n,) -> rows: a minus b on the same goals, with
    a rival also on those where a contact matters."""
    rows = []
    for a, b in PAIRS:
        if a not in errors or b not in errors:
            continue
        n = min(errors[a].shape[1], errors[b].shape[1])
        mine, other = errors[a][:, :n], errors[b][:, :n]
        row = {"frames": frames, "a": a, "b": b,
               **goals.differences(mine, other, ("success", "error"))}
        who = matters[:n]
        if b in RIVALS and who.any():
            found = goals.differences(mine[:, who], other[:, who], ("success",))
            row["matters"] = table_rows.tidy({"n": int(who.sum()), **found})
        rows.append(table_rows.tidy(row))
    return rows


def not_tried(frames, event):
    """-> the rows that a horizon has not."""
    return tuple(planners.LEVELS) if frames == event else NOT_LATER


def make_arrays(drawn, frames, found):
    """-> entries of planning.npz: the goals of a horizon, each planner's final errors. A state is
    x, y, vx, vy of each body, at the last frame of the clip."""
    arrays = {f"goals/{frames}/start": drawn["clip"][:, -1].flatten(1).numpy(),
              f"goals/{frames}/goal": drawn["goal"][:, -1].flatten(1).numpy(),
              f"goals/{frames}/forces": drawn["forces"].flatten(1).numpy(),
              f"goals/{frames}/contact": drawn["contact"].numpy(),
              f"goals/{frames}/matters": drawn["matters"].numpy()}
    for name, tried in found.items():
        arrays[f"errors/{name}/{frames}"] = tried.errors.numpy()
        arrays[f"velocity/{name}/{frames}"] = tried.velocity.mean(-1).numpy().astype(np.float16)
    return arrays


# ---- the picture

def colour_of(name):
    """Of a row in the picture."""
    if "simulator" in name or name == "oracle":
        return GREEN
    if name in RIVALS:
        return PURPLE
    if "guess" in name:
        return RED
    model = ("model + decoded cost", "both levels", *hjepa.SEARCHES)
    return BLUE if name in model else GREY


def draw(rows, horizons):
    """Success on all goals above, where contacts matter below; one column of panels per horizon."""
    figure, axes = hjepa.new_figure(2, len(horizons), 4 + 4 * len(horizons), 12)
    tried = {row["planner"] for row in rows}
    names = [name for name in NAMES if name in tried]
    for row in rows:
        y = names.index(row["planner"])
        top, bottom = axes[:, horizons.index(row["frames"])]
        drawing.dot(top, row, "success", y, colour_of(row["planner"]))
        for part, marker in (("contact", "x"), ("no contact", "+")):
            if row[part]["n"]:
                top.plot(row[part]["success"], y, marker, color="0.1", ms=5)
        if row["matters"]["n"]:
            drawing.dot(bottom, row["matters"], "success", y, colour_of(row["planner"]))
    for ax in axes.flat:
        ax.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
        ax.set_yticklabels(names if ax in axes[:, 0] else [])
        ax.grid(axis="x", color="0.9")
    for frames, (top, bottom) in zip(horizons, axes.T):
        zero = next(row for row in rows if row["frames"] == frames)
        top.set_title(f"{frames} frames: share of {zero['n']} goals reached")
        bottom.set_title(f"{frames} frames: of the {zero['matters']['n']} where a contact matters")
    figure.supxlabel("reached: every body within 0.1    dot and band: share, 95 % interval    "
                     "x: contact on the hidden way, +: none\n"
                     "green: true simulator, purple: rivals, blue: the model with the paper's "
                     "planners, red: from the first guess, grey: controls", fontsize=8)
    return figure


# ---- the study

def check(args, config):
    """-> horizons in frames. Refusal of what cannot be tried."""
    event = goals.event_frames(config)
    horizons = sorted(set(args.frames or [event, 2 * event, 3 * event]))
    for frames in horizons:
        if frames % config.clip_frames or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {config.clip_frames}, "
                                f"{event} or more")
    if args.goals < 2:
        raise hjepa.Refusal("--goals 1: a shuffled goal needs at least 2")
    if args.many is not None:
        cli.check_number("many", args.many)
        if args.many < args.goals:
            raise hjepa.Refusal(f"--many {args.many}: give at least as many as --goals")
    for name in args.only or ():
        if all(name in not_tried(frames, event) for frames in horizons):
            raise hjepa.Refusal(f"--only {name!r}: not tried at these --frames (see --help)")
    return horizons


def choose_rows(args, runs):
    """-> names of the rows. What cannot be tried is left out, or refused if --only asks for it."""
    lacking = {}
    if not args.state:
        lacking["state network"] = "it needs --state FILE: figures/state.py trains it"
    if not hasattr(runs[0].model, "guess"):
        for name in NAMES:
            if "guess" in name:
                lacking[name] = "the model has no first guess"
    for name in args.only or ():
        if name in lacking:
            raise hjepa.Refusal(f"--only {name!r}: {lacking[name]}")
    wanted = [name for name in NAMES if not args.only or name in ("zero", *args.only)]
    for reason in dict.fromkeys(lacking[name] for name in wanted if name in lacking):
        left_out = [name for name in wanted if lacking.get(name) == reason]
        print(f"left out: {', '.join(left_out)} ({reason})")
    return [name for name in wanted if name not in lacking]


def make_tools(args, runs, names, world):
    """-> seed -> dict of what a row needs beside the model of that seed: decode, network."""
    tools = {run.config.seed: {} for run in runs}
    if "state network" in names:
        if len(args.state) != len(runs):
            raise hjepa.Refusal(f"{len(args.state)} --state for {len(runs)} --run: give one for "
                                "each, in the same order")
        for path, run in zip(args.state, runs):
            tools[run.config.seed]["network"] = state_network.load(path, run, args.device)
    if "model + decoded cost" in names:
        for run in runs:
            tools[run.config.seed]["decode"] = probes.fit_decoder(run, world, args.device)
    return tools


def draw_goals(args, config, frames):
    """-> --goals goals, with --many further ones behind them; where they come from."""
    drawn = goals.goals_of(config, args.goals, frames=frames)
    sources = [goals.goals_source(config, "test", frames)]
    further = (args.many or args.goals) - args.goals
    if further > 0:
        more = goals.goals_of(config, further, frames=frames, purpose="further tasks")
        sources.append(goals.goals_source(config, "test", frames, "further tasks"))
        drawn = {key: torch.cat([drawn[key], more[key]]) for key in drawn}
    source = {"frames": frames, "n": len(drawn["goal"]), "generators": sources}
    for part, who in goals.strata(drawn).items():
        source[part] = who.float().mean().item()
    return drawn, source


def measure(args, runs):
    horizons = check(args, runs[0].config)
    names = choose_rows(args, runs)
    if args.samples is not None:
        runs = [run._replace(config=dataclasses.replace(run.config, samples=args.samples))
                for run in runs]
    config = runs[0].config
    world = hjepa.build_world(config)
    tools = make_tools(args, runs, names, world)
    budget = {key: getattr(config, key) for key in BUDGET}
    rivals = [tool["network"] for tool in tools.values() if "network" in tool]
    kept = cli.KeptRows(args, {"weights": cli.fingerprint([run.model for run in runs]),
                               "rivals": cli.fingerprint(rivals), "n": args.goals,
                               "many": args.many, "budget": budget})
    rows, pairs, manifest, arrays = [], [], [], {}
    for frames in horizons:
        drawn, source = draw_goals(args, config, frames)
        manifest.append(source)
        found = {}
        for name in names:
            if name in not_tried(frames, goals.event_frames(config)):
                continue
            n = args.goals if name in DEAR else len(drawn["goal"])
            some = {key: values[:n] for key, values in drawn.items()}
            found[name] = goals.kept_or_tried(kept, name, frames, lambda: try_row(
                name, runs, world, some, tools, args.device))
            zero = found["zero"].errors[:, :n]
            rows.append(table_rows.make_row(name, frames, found[name], zero, goals.strata(some)))
            print("{frames} frames, {planner:>29}: worst body within 0.1 {success:6.1%}, within "
                  "0.05 {strict:6.1%}, error {error:.3f}, skill {skill:7.1%}, {seconds:.3f} s"
                  .format(**rows[-1]), flush=True)
        errors = {name: tried.errors for name, tried in found.items()}
        pairs += compare(errors, frames, drawn["matters"])
        arrays.update(make_arrays(drawn, frames, found))
    summary = {"budget": budget, "goals_side_by_side": SIDE_BY_SIDE, "rows": rows, "pairs": pairs,
               "manifest": manifest}
    return cli.Results(args.goals, summary, arrays, lambda: draw(rows, horizons))


def make_parser():
    parser = cli.make_parser("planning", __doc__, goals=(200, "test goals per horizon"))
    parser.add_argument("--many", type=int, metavar="N",
                        help="goals for rows that cost little (default: as --goals)")
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    parser.add_argument("--samples", type=int, help="plans per iteration (default: as in the run)")
    parser.add_argument("--state", type=Path, action="append", metavar="FILE",
                        help="the rival that figures/state.py trained, one for each --run")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="ROW",
                        help="rows to try beside zero (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
