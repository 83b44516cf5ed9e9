"""What does a search walk on? Maps of the cost, with a contact on the way and without.

    python figures/cost_maps.py --run figures/weights/hjepa.pt
    python figures/cost_maps.py --run runs/quick --goals 10 --grid 41

A goal is what a test world shows 25 frames later, one macro-event, under hidden random forces. Two
numbers of that plan are changed, the force on the lightest body in the first clip, along x and y,
over all of their range. All other forces stay the hidden ones, so a point of this plane reaches the
goal exactly. The cost is the mean squared distance from the goal at the end, in one of three
spaces:

    positions   of the bodies; where the model predicts, they are read linearly from P1
    t1, t2      the shallow and the deep embedding; where the model predicts, by P1 and by P2

The future is that of the true simulator or what the model predicts: a fault of the space shows in
both, a fault of the prediction in the second only. Two kinds of goals: "contact", where bodies meet
on the hidden way and it matters (were they to pass through each other, one would end more than 0.2
away), and "no contact", where none meet.

rows, one per kind, space and future, means over goals: to_minimum, the share of the points of the
grid from which gradient descent, to the cheapest of 8 neighbours at each step, ends at the cheapest
point of all; to_goal, the share from which it ends where all bodies are within 0.1 of the goal;
minima, how many points are cheaper than all neighbours; best, how far the worst body is from the
goal at the cheapest point, in half boxes. pairs: to_minimum in a space minus that in positions on
the same goals, with the true simulator. cost_maps.png shows one goal of each kind, the first; its
maps are in the NPZ: maps/KIND/SPACE/FUTURE (grid, grid), fy down, fx across.
"""
import sys

from lib import cli, cost_maps, goals, probes, stats
import hjepa
import numpy as np

KINDS = ("contact", "no contact")
GAUGES = ("to_minimum", "to_goal", "minima", "best")


# ---- goals and their maps

def pick_goals(config, n):
    """-> dict kind -> n goals of that kind, of test worlds, see hjepa.make_goals. Refusal if too
    few are found."""
    drawn = goals.goals_of(config, 20 * n + 40)
    which = {"contact": drawn["matters"], "no contact": ~drawn["contact"]}
    found = {}
    for kind, who in which.items():
        pick = who.nonzero()[:n, 0]
        if len(pick) < n:
            raise hjepa.Refusal(f"only {len(pick)} of {len(who)} goals are of the kind {kind!r}, "
                                f"{n} are wanted: lower --goals")
        found[kind] = {key: values[pick] for key, values in drawn.items()}
    return found


def map_goals(run, world, decode, drawn, grid, device):
    """-> one dict (space, future) -> costs (P,) per goal, and worst (P,) of each."""
    found = []
    for i in hjepa.progress(range(len(drawn["goal"])), "maps", len(drawn["goal"])):
        clip, goal = drawn["clip"][i:i + 1].to(device), drawn["goal"][i:i + 1].to(device)
        plans = cost_maps.plans_around(drawn["forces"][i].to(device), world.force_limit, grid)
        found.append(cost_maps.cost_maps(run, world, decode, clip, goal, plans))
    return found


def rows_of(kind, maps):
    """What map_goals gave -> rows, and gauges (kind, space, future) -> name -> (goals,)."""
    rows, values = [], {}
    for space in cost_maps.SPACES:
        for future in cost_maps.FUTURES:
            of_goals = [cost_maps.gauges(costs[space, future], worst) for costs, worst in maps]
            of = {name: np.array([one[name] for one in of_goals]) for name in GAUGES}
            values[kind, space, future] = of
            row = {"kind": kind, "space": space, "future": future, "n": len(maps)}
            for name in GAUGES:
                row[name] = of[name].mean()
            for name in ("to_minimum", "to_goal"):
                row[name + "_ci"] = stats.interval(of[name])
            rows.append(row)
            print(f"{kind:>10}, {space:>9}, {future:>9}: descent ends at the minimum from "
                  f"{row['to_minimum']:6.1%} of the plans, at the goal from {row['to_goal']:6.1%}; "
                  f"{row['minima']:.1f} minima", flush=True)
    return rows, values


def compare(values):
    """Gauges of all kinds -> rows: to_minimum of a space minus that of positions, paired."""
    rows = []
    for kind in KINDS:
        mine = values[kind, "positions", "simulator"]["to_minimum"]
        for space in cost_maps.SPACES[1:]:
            gap, interval = stats.paired_interval(
                values[kind, space, "simulator"]["to_minimum"], mine)
            rows.append({"kind": kind, "space": space, "to_minimum": gap,
                         "to_minimum_ci": interval})
    return rows


# ---- the picture

def draw(first, limit, grid):
    """first: kind -> maps of its first goal. -> figure: a row per space, two columns per kind."""
    columns = [(kind, future) for kind in KINDS for future in cost_maps.FUTURES]
    figure, axes = hjepa.new_figure(len(cost_maps.SPACES), len(columns), 4.2 * len(columns), 11.5)
    axis = np.linspace(-limit, limit, grid)
    for space, line in zip(cost_maps.SPACES, axes):
        for (kind, future), ax in zip(columns, line):
            costs, _ = first[kind]
            cost = costs[space, future].view(grid, grid)
            ends = cost_maps.descend(cost).unique().numpy()
            root = cost.sqrt().numpy()
            picture = ax.pcolormesh(axis, axis, root, cmap="viridis", shading="nearest")
            ax.contour(axis, axis, root, 12, colors="white", linewidths=0.5)
            ax.plot(axis[ends % grid], axis[ends // grid], "o", ms=5, mfc="none", color="white")
            best = cost.argmin().item()
            ax.plot(axis[best % grid], axis[best // grid], "*", ms=12, color="#e08214")
            ax.set(title=f"{space}, {future}\n{kind}", aspect="equal")
            figure.colorbar(picture, ax=ax)
    for ax in axes[-1]:
        ax.set(xlabel="fx on the lightest body")
    for ax in axes[:, 0]:
        ax.set(ylabel="fy on the lightest body")
    figure.suptitle("root of the cost over two numbers of a plan; star: the cheapest point, "
                    "rings: where gradient descent ends", fontsize=10)
    return figure


# ---- the study

def measure(args, runs):
    run = cli.one_run(runs)
    config = run.config
    if not 5 <= args.grid <= 201:
        raise hjepa.Refusal(f"--grid {args.grid}: give 5 to 201")
    world = hjepa.build_world(config)
    drawn = pick_goals(config, args.goals)
    decode = probes.fit_decoder(run, world, args.device, args.n)
    rows, values, first, arrays = [], {}, {}, {}
    for kind in KINDS:
        maps = map_goals(run, world, decode, drawn[kind], args.grid, args.device)
        more, gauges = rows_of(kind, maps)
        rows += more
        values.update(gauges)
        first[kind] = maps[0]
        for (space, future), costs in maps[0][0].items():
            arrays[f"maps/{kind}/{space}/{future}"] = costs.view(args.grid, args.grid).numpy()
    for (kind, space, future), of in values.items():
        for name in GAUGES:
            arrays[f"{name}/{kind}/{space}/{future}"] = of[name].astype(np.float32)
    summary = {"grid": args.grid, "n_decoder": args.n, "body": cost_maps.BODY,
               "clip": cost_maps.CLIP, "rows": rows, "pairs": compare(values)}
    return cli.Results(args.goals, summary, arrays,
                       lambda: draw(first, world.force_limit, args.grid))


def make_parser():
    return cli.make_parser("cost_maps", __doc__, goals=(40, "test goals of each kind"),
                           grid=(41, "points along each of the two numbers"),
                           n=(2048, "validation worlds behind the decoder"))


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
