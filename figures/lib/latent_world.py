"""A world in which something unseen decides the future: a kick.

At the boundary between the clip that is seen and the clip that is predicted, one body is kicked:
its velocity changes at once, by a fixed size. No input tells in which direction. The kick does not
touch any other body, nor any position, and both clips are ordinary ones by themselves.
"""
import collections
import math

import hjepa
import torch

BODY = 0                                        # who is kicked
OTHER_BODY = 1                                  # whose kick never happens in training
SIZE = 0.5                                      # change of velocity, half boxes a second

# Directions that a kick can have, and what a picture calls them.
KINDS = {"two": "left or right", "ring": "any direction"}

# clip (N, T, bodies, 4): what is seen. forces (N, A): acts during the next clip. push (N, 2): the
# change of velocity between them. future (N, T, bodies, 4): the next clip.
Kicked = collections.namedtuple("Kicked", "clip forces push future")


def directions(kind, n, gen):
    """-> unit vectors (n, 2): "two" left or right, "ring" any direction, all equally likely."""
    if kind == "two":
        side = 2 * torch.randint(0, 2, (n,), generator=gen) - 1
        return torch.stack([side.float(), torch.zeros(n)], 1)
    angle = 2 * math.pi * torch.rand(n, generator=gen)
    return torch.stack([angle.cos(), angle.sin()], 1)


def possible_pushes(kind, directions_of_ring=8):
    """-> pushes (M, 2): the two of "two", or as many directions of "ring", evenly spread."""
    turns = 2 if kind == "two" else directions_of_ring
    angle = 2 * math.pi * torch.arange(turns) / turns
    return SIZE * torch.stack([angle.cos(), angle.sin()], 1)


def kick(state, push, body=BODY):
    """state (N, bodies, 4), push (N, 2) -> the state in which the velocity of `body` is larger by
    push, and its momentum by its mass times push. All else is as it was."""
    kicked = state.clone()
    kicked[:, body, 2:] += push
    return kicked


def future_of(world, clip, forces, push, body=BODY):
    """clip (N, T, bodies, 4), forces (N, A) or (N, K, A), push (N, 2) -> the frames after the
    kick (N, K T, bodies, 4)."""
    frames = clip.shape[1]
    forces = forces if forces.ndim == 3 else forces[:, None]
    states, _ = world.rollout(kick(clip[:, -1], push, body), forces, frames)
    return states


def check(config):
    """Refusal unless there is a second body, whose kick never happens in training."""
    if len(config.masses) <= OTHER_BODY:
        raise hjepa.Refusal("the run has one body: this study needs two bodies or more")


def draw(world, config, n, kind, seed, purpose, device):
    """-> Kicked: n worlds, drawn by (seed, purpose)."""
    hjepa.refuse_too_many(n, 256 * n * len(config.masses) * config.clip_frames)
    gen = hjepa.generator(seed, f"{purpose}, {kind}")
    start = world.reset(n, gen, config.start_speed, device)
    forces = world.random_forces(n, 2, gen, device)
    push = SIZE * directions(kind, n, gen).to(device)
    clip, _ = world.rollout(start, forces[:, :1], config.clip_frames)
    future = future_of(world, clip, forces[:, 1], push)
    return Kicked(clip, forces[:, 1], push, future)


@torch.no_grad()
def bases(model, world, clip, forces, chunk=4096):
    """clip (N, T, bodies, 4), forces (N, A) -> dict of what a predictor can start from, (N, D):

    seen      z1, the shallow embedding of the clip
    expected  P1's prediction of the next clip. The run has never seen a kick, so this is what comes
              without one.
    """
    seen, expected = [], []
    for some_clip, some_forces in zip(clip.split(chunk), forces.split(chunk)):
        z1, _ = model.context(world.observe(some_clip))
        seen.append(z1)
        expected.append(model.rollout(z1, some_forces[:, None])[:, 0])
    return {"seen": torch.cat(seen), "expected": torch.cat(expected)}


@torch.no_grad()
def embed(model, world, clips, chunk=4096):
    """clips (N, T, bodies, 4) -> shallow target embeddings t1 (N, D)."""
    return torch.cat([model.target(world.observe(part))[0] for part in clips.split(chunk)])
