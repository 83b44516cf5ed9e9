"""Worlds with distractors: numbers that are observed beside the bodies and that no force can move.

A distractor looks like a body: four numbers, observed as World.observe observes a body. There are
as many of them as bodies, so 12 more numbers beside the 12 of three bodies.

    noise     independent Gaussian numbers in each frame, of variance 1 as they are observed: nobody
              can predict them
    second    another world of the same bodies, which nobody pushes: it can be predicted exactly
"""
import hjepa
import torch

WORLDS = ("plain", "noise", "second")


def features(kind, config):
    """-> numbers that are observed in each frame."""
    bodies = len(config.masses)
    return 4 * bodies if kind == "plain" else 8 * bodies


def distractors(kind, world, config, n, clips, gen):
    """-> states (n, clips, T, distractors, 4), drawn from the CPU generator gen; in "plain" there
    are none."""
    frames = config.clip_frames
    bodies = len(world.masses)
    if kind == "plain":
        return torch.zeros(n, clips, frames, 0, 4)
    if kind == "noise":
        seen = torch.randn(n, clips, frames, bodies, 4, generator=gen)
        unit = world.observe(torch.ones_like(seen)).unflatten(-1, (-1, 4))
        return seen / unit
    start = world.reset(n, gen, config.start_speed)
    no_force = torch.zeros(n, clips, 2 * bodies)
    states, _ = world.rollout(start, no_force, frames)
    return states.unflatten(1, (clips, frames))


def observe(world, states, others):
    """States of bodies and of distractors (..., bodies, 4) -> what is seen of both (..., F)."""
    return world.observe(torch.cat([states, others], -2))


def training_data(kind, world, config, device):
    """-> obs (n, K, T, F), forces (n, K - 1, A), shares (n,): the run's training sequences, with
    distractors beside the bodies."""
    states, forces, shares = hjepa.draw_training(world, config, device)
    gen = hjepa.generator(config.seed, f"distractors, {kind}")
    others = distractors(kind, world, config, *states.shape[:2], gen).to(device)
    return observe(world, states, others), forces, shares


def with_distractors(kind, world, config, goals, seed):
    """Goals (see lib.goals.goals_of) -> the same, with "others" (n, clips + 1, T, distractors, 4):
    the distractors from the clip that is seen now to the clip of the goal, whatever the forces."""
    n, clips = goals["forces"].shape[:2]
    gen = hjepa.generator(seed, f"distractors of goals, {kind}", clips)
    return {**goals, "others": distractors(kind, world, config, n, clips + 1, gen)}
