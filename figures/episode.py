"""One planning episode, frame by frame: what the planner did on the first task with a hit.

    python figures/episode.py --run runs/quick --precision auto
    python figures/episode.py --run runs/quick --frames 50

The tasks, and at 25 frames the noise of the search, are those of `hjepa.py plan` and planning.py;
the first task is taken whose hidden way has a hit between bodies, so it is not chosen by how it
ended. The model plans all clips that are left with the short predictor, the first force is applied
for one clip, and it looks and plans again (`short replanned`).

The JSON holds what happened: start (bodies, 4) and goal (bodies, 4), x, y, vx, vy; states (frames,
bodies, 4); forces (clips, bodies, 2), each held for `hold` frames; errors, the final distances. The
picture is a strip of film: bodies filled, goals dashed, arrows the forces of the clip that follows.
report.py makes the player of its HTML page from the JSON.
"""
import dataclasses
import sys

import common
import hjepa
import numpy as np
import torch

PLANNER = "short replanned"


def first_contact(config, world, count, frames):
    """-> its number, what make_tasks gives of it alone, and what the generator was seeded with."""
    event = config.steps * config.hold
    source = config.test_seed, "tasks", 0 if frames == event else frames
    tasks = hjepa.make_tasks(world, count, frames // config.hold, hjepa.generator(*source),
                             config.hold, config.start_speed)
    if not tasks["contact"].any():
        raise hjepa.Refusal(f"no hit on the hidden way of any of {count} tasks: raise --tasks")
    number = int(tasks["contact"].int().argmax())
    return number, {k: v[number:number + 1] for k, v in tasks.items()}, source


def draw(world, path, goal, forces, hold, errors):
    """path (1 + frames, bodies, 4): six moments of it, each with the way so far."""
    clips = len(forces)
    moments = sorted({round(k * clips / 5) for k in range(6)})
    figure, axes = hjepa.canvas(1, len(moments), 1.75 * len(moments), 2.2)
    figure.set_dpi(160)                         # shown at half its size, it stays sharp
    for ax, k in zip(axes[0], moments):
        force = forces[k] if k < clips else None
        hjepa.draw_frame(ax, world, path[:k * hold + 1], goal, force)
        ax.set_title(f"frame {k * hold} of {clips * hold}", fontsize=10)
    axes[0, -1].set_xlabel(f"mean error {np.mean(errors):.3f}")
    return figure


@torch.no_grad()
def measure(args, runs):
    if len(runs) > 1:
        raise hjepa.Refusal("an episode is of one run: give one --run")
    run, = runs
    config = run.config
    world, count = hjepa.build_world(config), config.tasks if args.tasks is None else args.tasks
    frames = config.steps * config.hold if args.frames is None else args.frames
    if frames % config.hold or not config.hold <= frames <= 1000:
        raise hjepa.Refusal(f"--frames {frames}: give a multiple of {config.hold}, up to 1000")
    if not 1 <= count <= 100_000:
        raise hjepa.Refusal(f"--tasks is {count}: give 1 to 100000")
    number, task, source = first_contact(config, world, count, frames)
    clip, goal = task["clip"].to(args.device), task["goal"].to(args.device)
    with hjepa.autocast(args.device, args.precision):
        states, forces = hjepa.solve(
            PLANNER, run.model, world, dataclasses.replace(config, steps=frames // config.hold),
            clip, goal, [hjepa.generator(config.test_seed, PLANNER, number)])
    start, goal, states = task["clip"][0, -1], task["goal"][0, -1], states[0].cpu()
    forces = forces[0].cpu().unflatten(-1, (-1, 2))
    errors = (states[-1, :, :2] - goal[:, :2]).norm(dim=-1)
    print(f"task {number} of {count}, {frames} frames: mean error {errors.mean():.3f}, worst body "
          f"{errors.max():.3f}")
    strip = draw(world, torch.cat([start[None], states]).numpy(), goal.numpy(), forces.numpy(),
                 config.hold, errors.numpy())
    return strip, 1, {
        "planner": PLANNER, "frames": frames, "hold": config.hold, "task": number, "tasks": count,
        "generator": source,
        "budget": {k: getattr(config, k) for k in ("samples", "iterations", "elites", "views")},
        "world": {"masses": config.masses, "radius": config.radius, "frame": config.frame,
                  "substeps": config.substeps, "force_limit": config.force_limit},
        "errors": errors.tolist(), "start": start.tolist(), "goal": goal.tolist(),
        "forces": forces.tolist(), "states": states.tolist()}


if __name__ == "__main__":
    parser = common.make_parser("episode", __doc__)
    parser.add_argument("--frames", type=int, help="to the goal (default: a macro-event, 25)")
    parser.add_argument("--tasks", type=int,
                        help="length of the task list (default: as in the run's config, as `plan`)")
    sys.exit(common.main(parser, measure))
