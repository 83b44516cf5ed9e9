"""How fast and how exact is the simulator?

    pip install --no-deps -r figures/requirements-speed.txt         # for pymunk
    python figures/speed_simulator.py --run runs/quick

Body-frames per second on one core: one of N bodies advanced by one frame counts as one. World
advances all worlds of a batch together, which is what makes it fast; one world after the other it
is slower than pymunk, an engine in C, with the same steps per frame.

Error: distance from the exact positions after a macro-event (lib/exact.py, event by event in
float64), mean over bodies, by the number of contacts in the world. After a contact an error grows.
"""
import math
import statistics
import sys

from lib import cli, stats, timing
from lib.exact import exact
import hjepa
import numpy as np
import torch


def together(world, start, forces, clip_frames):
    """start (N, bodies, 4), forces (N, K, A) -> a function that simulates all worlds as one batch
    and returns the final positions (N, bodies, 2)."""
    def simulate():
        states, _ = world.rollout(start, forces, clip_frames)
        return states[:, -1, :, :2]
    return simulate


def one_by_one(world, start, forces, clip_frames):
    """The same, world after world. Only a twentieth of them, since it takes so long."""
    few = max(1, len(start) // 20)

    def simulate():
        ends = []
        for i in range(few):
            states, _ = world.rollout(start[i:i + 1], forces[i:i + 1], clip_frames)
            ends.append(states[0, -1, :, :2])
        return torch.stack(ends)
    return simulate


def pymunk_space(world, start):
    """One world in pymunk, start (bodies, 4) -> its space, its bodies."""
    import pymunk
    space = pymunk.Space()
    # The defaults are for worlds measured in pixels: bodies would overlap by 0.1, this box has 2.
    space.collision_slop = 1e-4
    space.collision_bias = 0.0
    sides = [
        ((-2, -1.5), (2, -1.5)),
        ((-2, 1.5), (2, 1.5)),
        ((-1.5, -2), (-1.5, 2)),
        ((1.5, -2), (1.5, 2)),
    ]
    for begin, end in sides:
        wall = pymunk.Segment(space.static_body, begin, end, 0.5)         # thick: none gets through
        wall.elasticity = 1.0
        wall.friction = 0.0
        space.add(wall)
    bodies = []
    for mass, radius, row in zip(world.masses, world.radii, start.tolist()):
        body = pymunk.Body(mass, math.inf)                                # discs do not turn
        body.position = row[:2]
        body.velocity = row[2:]
        disc = pymunk.Circle(body, radius)
        disc.elasticity = 1.0
        disc.friction = 0.0
        space.add(body, disc)
        bodies.append(body)
    return space, bodies


def in_pymunk(world, start, forces, clip_frames):
    """The same in pymunk, world after world. The spaces are built before the clock starts."""
    dt = world.dt / world.substeps
    spaces = [pymunk_space(world, state) for state in start]
    plans = forces.unflatten(-1, (-1, 2)).tolist()

    def simulate():
        ends = []
        for (space, bodies), plan in zip(spaces, plans):
            for force in plan:
                for _ in range(clip_frames * world.substeps):
                    for body, push in zip(bodies, force):                 # a step forgets forces
                        body.force = tuple(push)
                    space.step(dt)
            ends.append([tuple(body.position) for body in bodies])
        return torch.tensor(ends)
    return simulate


SIMULATORS = {
    "World, all together": together,
    "World, one by one": one_by_one,
    "pymunk, one by one": in_pymunk,
}


def race(world, start, forces, clip_frames, repeats):
    """-> body-frames per second, a list by simulator; final positions by simulator; the names of
    those that are not installed."""
    cpu = torch.device("cpu")
    frames = forces.shape[1] * clip_frames
    rates, ends, skipped = {}, {}, []
    for turn in range(repeats + 1):
        for name in timing.in_turn(SIMULATORS, turn):
            try:
                simulate = SIMULATORS[name](world, start, forces, clip_frames)
            except ImportError:
                skipped = [name]
                continue
            seconds, ends[name] = timing.timed(simulate, cpu)
            worlds, bodies, _ = ends[name].shape
            if turn > 0:                                                  # the first one warms up
                rates.setdefault(name, []).append(worlds * bodies * frames / seconds)
    return rates, ends, skipped


def exact_ends(world, start, forces, clip_seconds):
    """-> exact final positions (N, bodies, 2), number of contacts (N,), numpy."""
    ends, contacts = [], []
    for state, plan in zip(start.numpy(), forces.numpy()):
        end, met = exact(state, plan, world.masses, world.radii, clip_seconds)
        ends.append(end[:, :2])
        contacts.append(met)
    return np.stack(ends), np.array(contacts)


def errors_by_contacts(ends, truth, contacts):
    """Final positions (N, bodies, 2) of a simulator and of the exact solution -> rows."""
    gap = ends.double().numpy() - truth
    distance = np.linalg.norm(gap, axis=-1).mean(-1)
    strata = {"none": contacts == 0, "one": contacts == 1, "one or more": contacts > 0}
    rows = []
    for name, who in strata.items():
        if who.any():
            mean = distance[who].mean().item()
            ci = stats.interval(distance[who])
            n = int(who.sum())
            rows.append({"contacts": name, "n": n, "mean": mean, "ci": ci})
    return rows


def draw(summary):
    """-> figure: speed, and the error by the number of contacts."""
    figure, axes = hjepa.new_figure(1, 2, 11, 3.6)
    speed, error = axes[0]
    band = dict(lw=6, alpha=0.35)
    for i, row in enumerate(summary["rows"]):
        colour = hjepa.COLOURS[i]
        speed.plot(row["quartiles"], [i, i], color=colour, **band)
        speed.plot(row["body_frames_per_second"], i, "o", color=colour)
        for at, stratum in enumerate(row["error"]):
            error.plot([at, at], stratum["ci"], color=colour, **band)
            error.plot(at, stratum["mean"], "o", color=colour)
    names = [row["simulator"] for row in summary["rows"]]
    speed.set_yticks(range(len(names)), names)
    speed.invert_yaxis()
    speed.set(title="body-frames per second, one core", xscale="log")
    strata = [stratum["contacts"] for stratum in summary["rows"][0]["error"]]
    error.set_xticks(range(len(strata)), strata)
    error.set(title="error after a macro-event, in half boxes", xlabel="contacts", yscale="log")
    return figure


def measure(args, runs):
    config = cli.one_run(runs).config
    world = hjepa.build_world(config)
    gen = hjepa.generator(config.test_seed, "simulator")
    start = world.reset(args.worlds, gen, config.start_speed)
    forces = world.random_forces(args.worlds, config.event_clips, gen)
    with timing.one_thread():
        rates, ends, skipped = race(world, start, forces, config.clip_frames, args.repeats)
    truth, contacts = exact_ends(world, start, forces, config.clip_frames * config.dt)
    rows = []
    for name in rates:
        row = {"simulator": name, "body_frames_per_second": statistics.median(rates[name]),
               "quartiles": timing.quartiles(rates[name]), "error": []}
        if len(ends[name]) == args.worlds:
            row["error"] = errors_by_contacts(ends[name], truth, contacts)
        rows.append(row)
        print(f"{name}: {row['body_frames_per_second']:,.0f} body-frames per second", flush=True)
        for stratum in row["error"]:
            print("    error {mean:.5f} with contacts: {contacts}".format(**stratum), flush=True)
    summary = {"processor": timing.processor(), "skipped": skipped,
               "frames": config.event_clips * config.clip_frames,
               "steps_per_frame": config.substeps, "rows": rows}
    return cli.Results(args.worlds, summary, figure=lambda: draw(summary))


if __name__ == "__main__":
    parser = cli.make_parser("speed_simulator", __doc__, worlds=(4000, "worlds to simulate"),
                             repeats=(15, "repetitions"))
    sys.exit(cli.main(parser, measure))
