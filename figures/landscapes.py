"""What makes a space good to plan in?

    python figures/landscapes.py --run figures/weights/hjepa.pt
    python figures/landscapes.py --run runs/quick --beside runs/quick-contacts runs/quick-loose

Here the true simulator predicts, so nothing is wrong with the prediction. One search per goal,
plain CEM from no force, looks for the forces whose last clip has the embedding of the goal. If the
bodies do not end where they should, the space is at fault: another clip looks like the goal to it.
This is done for both taps of the target encoder, with the plain distance and with the metric of
change (lib/change.py); for the run, for the same encoder untrained, and for any runs beside it, of any settings.
Two gauges that need no search stand beside the share of goals reached:

    order of distances     among neighbours of a clip: is what is near in the space near in the box?
                           (hjepa.order_of_distances; training logs it)
    weakest direction      how well the space shows the direction of position that it shows worst

landscapes.png has a dot per space, success against each gauge.
"""
import sys
from pathlib import Path

from lib import change, cli, goals, planners, spaces
import hjepa
import torch

TAPS = ("t1", "t2")
COLOURS = {"t1": "#2166ac", "t2": "#b2182b"}
GAUGES = {"order": "order of distances", "weakest": "weakest direction"}


# ---- the gauges, and the search

@torch.no_grad()
def weakest_direction(embed, clips, step=0.05):
    """Is an embedding a good place to plan in? embed: clips (N, T, bodies, 4) -> (N, D).

    -> 0 to 1, a mean over clips. Let all bodies move a little, by as much in any direction of the
    joint space of their positions. The embedding answers to some directions more than to others.
    This is the weakest answer, squared, as a share of the strongest. What a change of the
    velocities could imitate does not count: a search would hide a wrong position behind a wrong
    velocity.
    """
    start = embed(clips).float()
    answers = {"position": [], "velocity": []}
    for body in range(clips.shape[2]):
        for number in range(4):
            kind = "position" if number < 2 else "velocity"
            moved = clips.clone()
            moved[:, :, body, number] += step
            answers[kind].append((embed(moved).float() - start) / step)
    position = torch.stack(answers["position"], -1).cpu()                 # (N, D, 2 bodies)
    velocity = torch.stack(answers["velocity"], -1).cpu()
    basis, _ = torch.linalg.qr(velocity)
    own = position - basis @ (basis.transpose(1, 2) @ position)
    weakest = torch.linalg.matrix_norm(own, ord=-2)                       # smallest singular value
    strongest = torch.linalg.matrix_norm(position, ord=2)
    share = (weakest / strongest.clamp_min(1e-12)).square()
    return share.clamp_min(1e-12).log().mean().exp().item()


def rows_of(name, run, world, drawn, clips):
    """-> a row for each tap and each distance of one model."""
    rows = []
    metrics = change.metrics(run, world, clips.device)
    for tap, tap_name in enumerate(TAPS):
        for distance, metric in (("plain", None), ("metric of change", metrics[tap])):
            space = spaces.Space(run, world, tap, metric)
            errors = spaces.search(space, drawn, f"{name}, {tap_name}, {distance}")
            outcome = goals.summary(errors)
            row = {"space": name, "tap": tap_name, "distance": distance, "epochs": run.epochs,
                   "weakest": weakest_direction(space.embed, clips),
                   "order": hjepa.order_of_distances(
                       space.embed, clips, hjepa.generator(run.config.test_seed, "order"))}
            for key in ("success", "success_ci", "strict", "strict_ci", "error"):
                row[key] = outcome[key]
            rows.append(row)
            print(f"{name}, {tap_name}, {distance}: worst body within 0.1 {row['success']:6.1%}, "
                  f"within 0.05 {row['strict']:6.1%}; weakest direction {row['weakest']:.3f}, "
                  f"order of distances {row['order']:.2f}", flush=True)
    return rows


# ---- the picture

def draw(rows):
    """Success against each gauge: a dot per space."""
    figure, axes = hjepa.new_figure(1, len(GAUGES), 6 * len(GAUGES), 5)
    for ax, (gauge, title) in zip(axes[0], GAUGES.items()):
        for row in rows:
            filled = row["distance"] == "plain"
            colour = COLOURS[row["tap"]]
            low, high = row["success_ci"]
            ax.plot([row[gauge], row[gauge]], [low, high], color=colour, lw=0.7, alpha=0.5)
            ax.plot(row[gauge], row["success"], "o", color=colour, ms=6,
                    mfc=colour if filled else "white")
            ax.annotate(row["space"], (row[gauge], row["success"]), fontsize=6,
                        xytext=(4, 2), textcoords="offset points")
        ax.set(xlabel=title, ylim=(-0.02, 1.02))
        ax.grid(color="0.9")
    axes[0, 1].set(xscale="log")
    axes[0, 0].set(ylabel="goals reached with the true simulator, worst body")
    figure.suptitle("blue: t1, red: t2; filled: plain distance, open: metric of change", fontsize=9)
    return figure


# ---- the study

def measure(args, runs):
    run = cli.one_run(runs)
    world = hjepa.build_world(run.config)
    drawn = goals.goals_of(run.config, args.goals)
    states, _, _ = hjepa.draw_sequences(world, run.config, args.n, run.config.test_seed,
                                        "landscape", args.device)
    clips = states[:, -1]
    named = [(run_name(args.run[0]), run), ("untrained", planners.untrained(run, args.device))]
    for path in args.beside:
        saved = hjepa.read_checkpoint(path)
        other = cli.Run(*hjepa.restore(saved, args.device), saved["epoch"])
        check_same_world(other.config, run.config, path)
        named.append((run_name(path), other))
    rows = []
    for name, one in named:
        rows += rows_of(name, one, world, drawn, clips)

    success = torch.tensor([row["success"] for row in rows])
    agreement = {}
    for gauge in GAUGES:
        values = torch.tensor([row[gauge] for row in rows])
        agreement[gauge] = spaces.spearman(values, success)
        said = "none" if agreement[gauge] is None else f"{agreement[gauge]:.2f}"
        print(f"{GAUGES[gauge]}: rank correlation with success over {len(rows)} spaces: {said}")
    summary = {"n_clips": args.n, "goals_side_by_side": spaces.SIDE_BY_SIDE, "rows": rows,
               "agreement": agreement}
    return cli.Results(args.goals, summary, figure=lambda: draw(rows))


def run_name(path):
    """Run directory or checkpoint -> its name in the table."""
    return Path(path).stem


def check_same_world(config, first, path):
    """Refusal unless both runs live in the same world, in clips of the same length."""
    for name in ("masses", "radius", "dt", "substeps", "force_limit", "start_speed", "clip_frames",
                 "event_clips"):
        if getattr(config, name) != getattr(first, name):
            raise hjepa.Refusal(f"{path} differs in {name}: give runs of the same world")


def make_parser():
    parser = cli.make_parser("landscapes", __doc__, goals=(200, "test goals"),
                             n=(256, "test worlds for the gauges"))
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="DIR_OR_CHECKPOINT",
                        help="other runs of the same world, of any settings")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
