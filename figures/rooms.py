"""From pixels: a dot, two rooms and a door. Does a JEPA of pictures plan its way through?

    python figures/rooms.py                                # trains in runs/rooms-small, tries it
    python figures/rooms.py --seeds 0 1 2 --ablations      # what the tables of the report need
    python figures/rooms.py --preset full --device cuda    # more data, a GPU
    python figures/rooms.py --preset smoke --tasks 4       # every step, learns nothing

The task is that of EB-JEPA (Terver et al. 2026, section 5): 65 x 65 pictures of a dot and walls, a
wall and a door that differ from trajectory to trajectory, a goal picture with the dot in the other
room, 200 steps. lib/rooms_world.py is the environment and says where it differs, lib/rooms_model.py
the model and its loss, lib/rooms_plan.py the planners. Predictor, VICReg, CEM are hjepa.py's own.

Rows:
    zero, random          no model
    oracle                the shortest path through the door
    another goal          the model, sent to the goal of the next task and judged on its own
    untrained             the model with its start weights
    first guess           its action at every clip, no search
    model                 two levels: ways over sub-goals are imagined, CEM starts from the
                          cheapest; the cost is the distance from the goal, summed over the path
    no sub-goals          the same, but the way straight to the goal is the only one
    from no force         CEM from no action
    last distance         the same as model, but only where the imagined path ends counts
    no variance, ...      (--ablations) as model, trained without one term of the loss

last: nearer than 4.5 pixels at the last step, as in EB-JEPA. ever: at any step. valid: last, and no
step led through a wall. `layouts` says whether walls stood where they never stood in training.
seconds and calls of the predictor are per episode. An interrupted training goes on, and finished
rows are kept in OUT/rooms.part.json until all are there.
"""
import argparse
import dataclasses
import sys
import time
from pathlib import Path

from lib import cli, rooms_model, rooms_plan, rooms_world, stats
import hjepa
import torch

PRESETS = {"small": {},
           "full": dict(batch=384, epochs=80, steps=200),
           "smoke": dict(batch=4, layouts=16, epochs=2, dot_epochs=1, steps=3, dot=8, walls=8,
                         channels=2, width=32, predictor_width=32, guess_width=16)}
BUDGET = dict(samples=32, iterations=2, elites=4)
# Row -> the terms whose weights are 0.
ABLATIONS = {"no variance": ("std", "wall_std"), "no covariance": ("cov", "wall_cov"),
             "no temporal similarity": ("sim",), "no inverse dynamics": ("idm",)}
NO_MODEL = ("zero", "random", "oracle")
# Row -> how many sub-goals (None: no way is imagined), and options of rooms_plan.search.
SEARCHES = {"another goal": (rooms_plan.SUBGOALS, {}), "untrained": (rooms_plan.SUBGOALS, {}),
            "model": (rooms_plan.SUBGOALS, {}), "no sub-goals": (0, {}), "from no force": (None, {}),
            "last distance": (rooms_plan.SUBGOALS, {"last": True})}
ON_NEW_LAYOUTS = ("random", "oracle", "first guess", "model")
TOGETHER = 10                                   # tasks side by side
SHOWN = 2                                       # tasks in the picture; the first is the GIF's
TEST_SEED = 2_000_000                           # as in hjepa.py: no training has it
COLOURS = {"last": "#2166ac", "ever": "0.6", "valid": "#b2182b"}


# ---- tasks and rows

def tasks_of(n, new):
    """-> start, goal (n, 1, 4): the test tasks, in known or in new layouts."""
    name = "rooms tasks, new layouts" if new else "rooms tasks"
    return rooms_world.make_tasks(n, hjepa.generator(TEST_SEED, name), new)


def known_places(model, device):
    """-> (SUBGOALS, D): what the planner may choose sub-goals from."""
    return rooms_plan.draw_places(model, rooms_plan.SUBGOALS, hjepa.generator(0, "places"), device)


def solve(name, model, places, start, goal, numbers, device):
    """Row `name` on tasks start, goal (B, 1, 4), whose numbers are given -> states (B, steps, 1, 4)
    on the CPU. places: of known_places, for rows with a model."""
    gens = [hjepa.generator(TEST_SEED, f"rooms, {name}", number) for number in numbers]
    steps = rooms_plan.STEPS
    if name == "zero":
        return start[:, None].expand(-1, steps, -1, -1)
    if name == "random":
        return rooms_plan.random_walk(start, steps, rooms_world.CLIP, gens)
    if name == "oracle":
        return rooms_world.oracle(start, goal, steps)
    start, goal = start.to(device), goal.to(device)
    if name == "first guess":
        return rooms_plan.follow_guess(model, start, goal, steps).cpu()
    count, options = SEARCHES.get(name, SEARCHES["model"])
    places = None if count is None else places[:count]
    return rooms_plan.search(model, start, goal, gens, steps, places, **options, **BUDGET).cpu()


def try_row(name, models, tasks, device):
    """models: one per seed -> outcomes, a dict of bools (seeds, n); the ways (n, steps + 1, 2) of
    the first seed; predictor calls and seconds per episode."""
    start, goal = tasks
    n = len(start)
    aims = goal
    if name == "another goal":                  # its dot, the walls of the task
        aims = torch.cat([goal.roll(-1, 0)[..., :2], goal[..., 2:]], -1)
    outcomes = {"last": [], "ever": [], "valid": []}
    paths = []
    calls = 0
    begin = time.perf_counter()
    for model in models:
        counted = []
        hook = model.predictor.register_forward_hook(lambda *call: counted.append(len(call[2])))
        parts = torch.arange(n).split(TOGETHER)
        places = None if name in NO_MODEL else known_places(model, device)
        found = [solve(name, model, places, start[part], aims[part], part.tolist(), device)
                 for part in hjepa.progress(parts, name, len(parts))]
        hook.remove()
        calls += sum(counted)
        states = torch.cat(found)
        near = rooms_world.distance(states, goal[:, None]) < rooms_world.REACHED
        path = torch.cat([start[:, None], states], 1)[:, :, 0, :2]
        safe = rooms_world.route_valid(path, start[:, 0, 2], start[:, 0, 3])
        outcomes["last"].append(near[:, -1])
        outcomes["ever"].append(near.any(1))
        outcomes["valid"].append(near[:, -1] & safe)
        paths.append(path)
    episodes = n * len(models)
    outcomes = {key: torch.stack(value) for key, value in outcomes.items()}
    return outcomes, paths[0], calls / episodes, (time.perf_counter() - begin) / episodes


def make_row(name, layouts, outcomes, calls, seconds):
    """-> a row of the table, outcomes (seeds, n) beside it as 0 and 1."""
    row = {"planner": name, "layouts": layouts, "n": outcomes["last"].shape[1],
           "predictor_calls": round(calls), "seconds": round(seconds, 4)}
    for key, value in outcomes.items():
        row[key] = value.float().mean().item()
        row[key + "_ci"] = [round(bound, 4) for bound in stats.interval(value.numpy())]
    row["outcomes"] = {key: value.int().tolist() for key, value in outcomes.items()}
    return row


# ---- pictures

@torch.no_grad()
def place_reader(model, settings, device):
    """-> function: embeddings (N, D) -> places (N, 2), a linear read-out, fitted on trajectories of
    the first epochs. It only serves the picture of an imagined path."""
    few = dataclasses.replace(settings, steps=20)
    pairs = []
    for epoch in (0, 1):
        states, _ = rooms_model.draw_epoch(few, epoch)
        states = states.flatten(0, 1)
        z = model.embed(states.to(device)).cpu().float()
        pairs.append((z.flatten(0, 1), states[:, :, 0, :2].flatten(0, 1)))
    weight, offset = hjepa.ridge(*pairs)

    def read(z):
        return (z.cpu().double() @ weight + offset).float()
    return read


def draw_rows(ax, rows):
    """A row of dots per planner: three measures with their intervals."""
    names = [f"{row['planner']}, new layouts" if row["layouts"] == "new" else row["planner"]
             for row in rows]
    for y, row in enumerate(rows):
        for shift, key in ((-0.2, "last"), (0, "ever"), (0.2, "valid")):
            low, high = row[key + "_ci"]
            ax.plot([low, high], [y + shift] * 2, color=COLOURS[key], lw=1)
            ax.plot(row[key], y + shift, "o", color=COLOURS[key], ms=4,
                    label=key if y == 0 else None)
    ax.set(yticks=range(len(rows)), xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels(names)
    ax.set_title("share of tasks: at the last step, ever, last and by a valid route")
    ax.grid(axis="x", color="0.9")
    ax.legend(fontsize=8, loc="center")


def draw_room(ax, task, path, imagined=None):
    """A room with the way so far (t, 2), the goal, and an imagined way (k, 2)."""
    start, goal = task
    picture = rooms_world.render(start[None])[0, 1]
    ax.imshow(picture, cmap="Greys", vmin=0, vmax=2)
    ax.plot(path[:, 0], path[:, 1], color="#2166ac", lw=1.5)
    ax.plot(path[-1, 0], path[-1, 1], "o", color="#2166ac", ms=6)
    ax.plot(goal[0, 0], goal[0, 1], "o", color="#b2182b", ms=9, mfc="none")
    if imagined is not None:
        ax.plot(imagined[:, 0], imagined[:, 1], ":", color="#d6604d", lw=1.5)
    ax.set(xlim=(0, rooms_world.SIZE), ylim=(rooms_world.SIZE, 0), xticks=[], yticks=[])


def draw(rows, tasks, paths):
    """The table as dots; beside it the ways of the first tasks."""
    figure, axes = hjepa.new_figure(1, 1 + SHOWN, 16, 0.4 * len(rows) + 2)
    draw_rows(axes[0, 0], rows)
    for number, ax in enumerate(axes[0, 1:]):
        draw_room(ax, (tasks[0][number], tasks[1][number]), paths[number])
        ax.set_title(f"task {number + 1}: blue the way, red the goal")
    return figure


@torch.no_grad()
def save_episode(path, model, settings, task, way, device):
    """A GIF of an episode, way (steps + 1, 2); dotted: the cheapest way that is imagined."""
    from matplotlib.animation import PillowWriter
    read = place_reader(model, settings, device)
    start, goal = task
    there = rooms_plan.look(model, goal[None].to(device))
    places = known_places(model, device)
    figure, axes = hjepa.new_figure(1, 1, 4, 4)
    writer = PillowWriter(fps=12)
    with hjepa.whole_file(path) as part:
        writer.setup(figure, part, dpi=80)
        for t in range(0, len(way), model.clip):
            now = start.clone()
            now[0, :2] = way[t]
            z = rooms_plan.look(model, now[None].to(device))
            left = max(1, (len(way) - 1 - t) // model.clip)
            plan = rooms_plan.plan_ways(model, z, there, places, left)
            path_ahead = model.rollout(z, plan)[0]
            axes[0, 0].clear()
            draw_room(axes[0, 0], task, way[:t + 1], read(path_ahead))
            axes[0, 0].set_title(f"step {t} of {len(way) - 1}")
            writer.grab_frame()
        for _ in range(12):
            writer.grab_frame()
        writer.finish()


# ---- the study

def settings_of(args, seed, without=None):
    """-> Settings of a preset, a seed, and perhaps without a term of the loss."""
    settings = rooms_model.Settings(seed=seed, **PRESETS[args.preset])
    if without is not None:
        settings = dataclasses.replace(settings, **dict.fromkeys(ABLATIONS[without], 0.0))
    return settings


def trained(args, seed, without=None):
    """-> the model of a seed, trained now if it is not there."""
    settings = settings_of(args, seed, without)
    name = (without or "model").replace(" ", "-")
    path = args.run / f"{name}-{seed}.pt"
    print(f"{path}: {settings.epochs} epochs of {settings.steps} steps", flush=True)
    return rooms_model.train(path, settings, args.device, args.precision)


def rows_to_try(args):
    """-> (planner, layouts) of all rows."""
    rows = [(name, "known") for name in (*NO_MODEL, "first guess", *SEARCHES)]
    rows += [(name, "new") for name in ON_NEW_LAYOUTS]
    if args.ablations:
        rows += [(name, "known") for name in ABLATIONS]
    return rows


def measure(args):
    """-> runs, cli.Results, and what the GIF shows: the model, its task and its way."""
    found = [trained(args, seed) for seed in args.seeds]
    models = [model for model, _ in found]
    runs = [cli.Run(model, settings_of(args, seed), len(rows))
            for seed, (model, rows) in zip(args.seeds, found)]
    start_weights = [rooms_model.build(run.config).to(args.device).eval() for run in runs]
    kept = cli.KeptRows(args, {"weights": cli.fingerprint(models), "n": args.tasks,
                               "budget": BUDGET})
    rows, arrays = [], {}
    for name, layouts in rows_to_try(args):
        tasks = tasks_of(args.tasks, layouts == "new")
        row = kept.find(planner=name, layouts=layouts)
        if row is None:
            mine = models
            if name == "untrained":
                mine = start_weights
            if name in ABLATIONS:
                mine = [trained(args, seed, name)[0] for seed in args.seeds]
            if name in NO_MODEL:
                mine = models[:1]
            outcomes, ways, calls, seconds = try_row(name, mine, tasks, args.device)
            row = make_row(name, layouts, outcomes, calls, seconds)
            row["ways"] = ways[:SHOWN].tolist()
            kept.add(row)
            print("{planner:>22}, {layouts} layouts: last {last:6.1%}, ever {ever:6.1%}, valid "
                  "{valid:6.1%}, {predictor_calls} calls, {seconds:.2f} s".format(**row),
                  flush=True)
        for key, value in row["outcomes"].items():
            arrays[f"{key}/{name}/{layouts}"] = torch.tensor(value, dtype=torch.bool).numpy()
        if (name, layouts) == ("model", "known"):
            shown = torch.tensor(row["ways"])
        rows.append({key: row[key] for key in row if key not in ("outcomes", "ways")})
    tasks = tasks_of(args.tasks, False)
    for layouts in ("known", "new"):
        start, goal = tasks_of(args.tasks, layouts == "new")
        arrays[f"start/{layouts}"] = start[:, 0].numpy()
        arrays[f"goal/{layouts}"] = goal[:, 0].numpy()
    minutes = sum(row["seconds"] for row in found[0][1]) / 60
    summary = {"preset": args.preset, "settings": dataclasses.asdict(runs[0].config),
               "parameters": sum(p.numel() for p in models[0].parameters()),
               "minutes": minutes, "budget": BUDGET, "steps": rooms_plan.STEPS, "rows": rows}
    results = cli.Results(args.tasks, summary, arrays, lambda: draw(rows, tasks, shown))
    episode = (models[0], runs[0].config, (tasks[0][0], tasks[1][0]), shown[0])
    return runs, results, episode


def make_parser():
    parser = hjepa.Parser(prog="figures/rooms.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="default: small")
    parser.add_argument("--run", type=Path, help="where models are kept (default: "
                        "runs/rooms-PRESET)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training (0)")
    parser.add_argument("--ablations", action="store_true",
                        help="train and try the model without each term, too")
    parser.add_argument("--tasks", type=int, default=200, help="test tasks (200)")
    parser.add_argument("--out", type=Path, help="where rooms.json, .npz, .png and .gif go "
                        "(default: the figures folder of --run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"),
                        help="of matrix products in training (auto)")
    return parser


def parse(argv=None):
    """-> args, checked and filled in."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(argv)
    cli.check_number("tasks", args.tasks)
    if args.tasks < 2:
        raise hjepa.Refusal("--tasks 1: another task's goal needs at least 2")
    if len(set(args.seeds)) < len(args.seeds):
        raise hjepa.Refusal("--seeds: give each seed once")
    args.name = "rooms"
    args.argv = argv
    args.run = args.run or Path("runs") / f"rooms-{args.preset}"
    args.out = args.out or args.run / "figures"
    args.device = hjepa.pick_device(args.device)
    args.precision = hjepa.pick_precision(args.precision, args.device)
    hjepa.try_out(args.out)
    return args


def main(argv=None):
    """-> exit code: 0 done, 2 a mistake that one line describes, 130 interrupted."""
    def work():
        args = parse(argv)
        with hjepa.locked(args.run):
            runs, results, episode = measure(args)
        cli.publish(args, runs, results)
        save_episode(args.out / "rooms.gif", *episode, args.device)
    return cli.exit_code("figures/rooms.py", work)


if __name__ == "__main__":
    sys.exit(main())
