"""Goals in worlds of other masses, and of bodies that only a contact can move.

A case is a list of n goals as hjepa.make_goals gives them, with two entries more: masses (n,
bodies) or (1, bodies), and free (n, A), 0 where no force may act, or None.
"""
import hjepa
import torch

from lib import goals
from lib import objects_world as worlds

FAR = 2 * hjepa.REACHED


def of_the_run(config, n):
    """-> the case of the n goals of `hjepa.py plan`."""
    masses = torch.tensor(config.masses)[None]
    return {**goals.goals_of(config, n), "masses": masses, "free": None}


def of_masses(config, masses, n):
    """-> a case of n goals in worlds of these masses."""
    world = hjepa.build_world(worlds.config_of(config, masses))
    gen = hjepa.generator(config.test_seed, f"goals of masses {masses}")
    found = hjepa.make_goals(world, n, config.event_clips, gen, config.clip_frames,
                             config.start_speed)
    return {**found, "masses": torch.tensor(masses)[None], "free": None}


def goal_of_drawn_masses(config, gen, most=100):
    """-> a goal as hjepa.make_goals gives it, and the masses (1, bodies) of its world.

    Three heavy bodies are hardly moved by any force. Where no world has a goal, masses are drawn
    again, `most` times at most: Refusal after that.
    """
    for _ in range(most):
        masses = worlds.draw_masses(1, len(config.masses), gen)
        world = hjepa.build_world(worlds.config_of(config, masses[0]))
        try:
            goal = hjepa.make_goals(world, 1, config.event_clips, gen, config.clip_frames,
                                    config.start_speed)
        except hjepa.Refusal as refusal:
            reason = refusal
            continue
        goal["clip"] = hjepa.goal_clip(world, goal["clip"][:, -1], config.clip_frames)
        return goal, masses
    raise reason


def of_drawn_masses(config, n):
    """-> a case of n goals, each in a world of masses of its own.

    In the clip that is seen first no force acts, so that it does not tell the masses.
    """
    found, masses = [], []
    for i in hjepa.progress(range(n), "goals", n):
        gen = hjepa.generator(config.test_seed, "goals of drawn masses", i)
        goal, drawn = goal_of_drawn_masses(config, gen)
        found.append(goal)
        masses.append(drawn)
    joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return {**joined, "masses": torch.cat(masses), "free": None}


def of_contacts(config, n):
    """-> a case of n goals in which one body is never pushed, and only a contact brings it there.

    body (n,): which one. Without a contact it would end FAR away or more, and with no force at all,
    too. It may not be pushed by the planner either.
    """
    world = hjepa.build_world(config)
    blind = hjepa.without_contacts(world)
    bodies = len(config.masses)
    gen = hjepa.generator(config.test_seed, "moved by a contact only")
    parts = []
    found = 0
    for _ in range(100):
        tried = 16 * n + 64
        states, forces, contacts = hjepa.make_sequences(world, tried, config.event_clips + 1, gen,
                                                        config.clip_frames, config.start_speed)
        body = torch.randint(bodies, (tried,), generator=gen)
        free = (torch.arange(bodies) != body[:, None]).repeat_interleave(2, 1).float()
        forces = forces * free[:, None]
        start = states[:, 0, -1]
        film, contacts = world.rollout(start, forces, config.clip_frames)
        through, _ = blind.rollout(start, forces, config.clip_frames)
        idle, _ = world.rollout(start, torch.zeros_like(forces), config.clip_frames)
        each = torch.arange(tried)
        ends = [hjepa.distance(film[:, -1], other[:, -1])[each, body] for other in (through, idle)]
        fit = (ends[0] > FAR) & (ends[1] > FAR)
        goal = film[:, -config.clip_frames:]
        parts.append([x[fit] for x in (states[:, 0], goal, forces, contacts.any(1), body, free)])
        found += int(fit.sum())
        if found >= n:
            break
    else:
        raise hjepa.Refusal(f"only {found} goals of bodies that a contact moves were found, and "
                            f"{n} are wanted: lower --goals")
    whole = [torch.cat(part)[:n] for part in zip(*parts)]
    clip, goal, forces, contact, body, free = whole
    return {"clip": clip, "goal": goal, "forces": forces, "contact": contact, "matters": contact,
            "masses": torch.tensor(config.masses)[None], "free": free, "body": body}
