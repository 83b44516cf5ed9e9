"""One planning episode, frame by frame: what the planner did for the first goal with a contact.

    python figures/episode.py --run runs/quick
    python figures/episode.py --run runs/quick --frames 50

The goals, and at 25 frames the noise of the search, are those of `hjepa.py plan` and planning.py.
The first goal is taken whose hidden way has a contact between bodies: it is not chosen by how the
episode ended. The model plans all clips that are left with the short predictor, the first force is
applied for one clip, then it looks and plans again (`short replanned`).

episode.npz holds what happened: start and goal (bodies, 4), x, y, vx, vy of each body; states
(frames, bodies, 4); forces (clips, A), each held for one clip. episode.json holds the settings and
the final distances.
The picture is a strip of film: bodies filled, goals dashed, arrows the forces of the clip that
follows. report/ makes the player of its HTML page from both files.
"""
import sys

from lib import cli, goals
import hjepa
import numpy as np
import torch

PLANNER = "short replanned"
MOMENTS = 6                                     # of the film that are drawn


def first_contact(config, count, frames):
    """The first of `count` goals whose hidden way has a contact -> its number; dict of it alone."""
    drawn = goals.goals_of(config, count, frames=frames)
    if not drawn["contact"].any():
        raise hjepa.Refusal(f"no contact on the hidden way of any of {count} goals: raise --goals")
    number = int(drawn["contact"].int().argmax())
    return number, {key: values[number:number + 1] for key, values in drawn.items()}


def draw(world, path, goal, forces, clip_frames, errors):
    """path (1 + frames, bodies, 4), forces (clips, A): moments of it, each with the way so far."""
    clips = len(forces)
    moments = sorted({round(k * clips / (MOMENTS - 1)) for k in range(MOMENTS)})
    figure, axes = hjepa.new_figure(1, len(moments), 1.75 * len(moments), 2.2)
    figure.set_dpi(160)                         # shown at half its size, it stays sharp
    for ax, k in zip(axes[0], moments):
        force = forces[k] if k < clips else None
        hjepa.draw_frame(ax, world, path[:k * clip_frames + 1], goal, force)
        ax.set_title(f"frame {k * clip_frames} of {clips * clip_frames}", fontsize=10)
    axes[0, -1].set_xlabel(f"mean error {np.mean(errors):.3f}")
    return figure


@torch.no_grad()
def measure(args, runs):
    run = cli.one_run(runs)
    config = run.config
    world = hjepa.build_world(config)
    count = config.goals if args.goals is None else args.goals
    cli.check_number("goals", count)
    frames = goals.event_frames(config) if args.frames is None else args.frames
    if frames % config.clip_frames or not config.clip_frames <= frames <= 1000:
        raise hjepa.Refusal(f"--frames {frames}: give a multiple of {config.clip_frames}, up to "
                            "1000")
    number, drawn = first_contact(config, count, frames)
    states, forces = hjepa.run_planner(
        PLANNER, run.model, world, config,
        drawn["clip"].to(args.device), drawn["goal"].to(args.device),
        [hjepa.generator(config.test_seed, PLANNER, number)], frames // config.clip_frames)
    start = drawn["clip"][0, -1]
    goal = drawn["goal"][0, -1]
    states = states[0].cpu()
    forces = forces[0].cpu()
    errors = hjepa.distance(states[-1], goal)
    print(f"goal {number} of {count}, {frames} frames: mean error {errors.mean():.3f}, worst body "
          f"{errors.max():.3f}")
    arrays = {"start": start.numpy(), "goal": goal.numpy(), "states": states.numpy(),
              "forces": forces.numpy()}
    summary = {
        "planner": PLANNER, "frames": frames, "clip_frames": config.clip_frames, "number": number,
        "goals": count, "generator": goals.goals_source(config, "test", frames),
        "budget": {key: getattr(config, key)
                   for key in ("samples", "iterations", "elites")},
        "world": {key: getattr(config, key)
                  for key in ("masses", "radius", "dt", "substeps", "force_limit")},
        "errors": errors.tolist()}
    path = torch.cat([start[None], states])
    return cli.Results(1, summary, arrays, lambda: draw(
        world, path.numpy(), goal.numpy(), forces.numpy(), config.clip_frames, errors.numpy()))


def make_parser():
    parser = cli.make_parser("episode", __doc__)
    parser.add_argument("--frames", type=int, help="to the goal (default: a macro-event, 25)")
    parser.add_argument("--goals", type=int,
                        help="length of the list of goals (default: as in the run, as `plan`)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
