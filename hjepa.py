r"""H-JEPA in one file: a world model that predicts in representation space, at two time scales.

Three discs of different mass fly, bounce and collide in a box, and forces push them. An encoder
turns a clip of five frames into two embeddings, a shallow and a deep one, each a vector of 256
numbers. The short predictor gets the shallow embedding and one force, and says what the embedding
of the next clip will be. The macro predictor gets the deep embedding and five forces, and says what
the embedding will be five clips, 25 frames, later. Two encoders are trained, one for what is seen
and one for what is predicted. The gradient of the prediction error reaches both: no moving average,
no stopped gradient. VICReg, a loss, keeps the embeddings from collapsing to a single point. Nothing
is reconstructed and no reward is given. After training the weights are frozen, and a search (the
cross-entropy method) finds forces whose predicted embedding is close to the embedding of a goal.

    python hjepa.py plan --run figures/weights/hjepa.pt   # use the weights of the full run
    python hjepa.py train --preset quick     # minutes on two CPU cores: a planner that works
    python hjepa.py train                    # the paper's 300 epochs; the same command resumes
    python hjepa.py curves --run runs/quick  # also diagnose, probe, plan: see runs/quick/figures
    python hjepa.py config --preset quick    # every setting, and where its value comes from
    python hjepa.py plan --goal 0.5 0.5 -0.5 0.5 0 -0.5   # a goal of yours: x y of each body
    python hjepa.py train --data my.npz      # sequences of yours: see train --help
    python hjepa.py train --init runs/quick --run runs/on # begin from weights of another run

Read it from top to bottom. Sections 1 to 5 are the tutorial: every class and function takes all it
needs as arguments and can be copied into another project. Where a piece is built on others, its
docstring names them after "needs:". Sections 6 to 10 train, measure and draw. The appendix holds
what a long training needs to survive, and a reader can skip it.

CONTENTS
    1. WORLD - what there is to be predicted
    2. DATA - what the model gets to see
    3. MODEL - two encoders, two predictors, two small maps, a first guess
    4. LOSS - why the embeddings do not collapse
    5. PLANNER - forces that lead to a goal, found in embedding space
    6. SETTINGS - every number that can be changed, and where it comes from
    7. EVALUATION - what is in the embeddings, and do plans work
    8. TRAINING - the loop
    9. FIGURES - the paper's curves, diagnostics and probes, and plans
   10. COMMAND LINE - subcommands and errors
   APPENDIX - what makes a run survive

TIME        clip:    0     1     2     3     4     5      a clip is 5 frames; clips do not overlap
            force:      0     1     2     3     4         force k acts while clip k + 1 is filmed
            Five forces, 25 frames, are one macro-event.
SYMBOLS     z1, z2  shallow and deep embedding of a clip by the context encoder: what is seen
            t1, t2  shallow and deep embedding of a clip by the target encoder: what is predicted
            P1, P2  the short and the macro predictor
            p1, p2  their predictions of t1 and t2
SHAPES      N worlds or samples, B samples of a batch, or goals that are planned for side by side,
            K clips or forces, T frames in a clip, F numbers observed per frame (4 per body),
            A numbers in a force (2 per body), D embedding, W width of a layer, S plans, E elites

REFERENCES
    [1] R. A. Patil, Micro-World Models, Zenodo 2026, doi 10.5281/zenodo.20403374. Only its abstract
        is public. "As in [1]" means that the abstract says so.
    [2] Bardes, Ponce, LeCun, VICReg, ICLR 2022, arXiv 2105.04906
    [3] LeCun, A Path Towards Autonomous Machine Intelligence, 2022, sections 4.4 to 4.7
    [4] Peebles, Xie, Scalable Diffusion Models with Transformers, 2022, arXiv 2212.09748
    [5] de Boer et al., A Tutorial on the Cross-Entropy Method, 2005
    [6] Garrido et al., RankMe, ICML 2023, arXiv 2210.02885
"""
import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import numbers
import os
import platform
import shlex
import sys
import time
import timeit
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


# 1. WORLD - what there is to be predicted
###################################################################################################
# A small simulator that is easy in one way and hard in another. Between contacts a body under a
# constant force flies a parabola, which any network learns. A contact depends on two positions, two
# velocities and two masses, and a small error before it is a large error after it. A predictor that
# ignores contacts ("keep flying, bounce off the walls") is right most of the time. Only contacts
# show what a world model has learnt.

# Under a constant force everything between two contacts is exact. So the simulator asks when a
# contact happens, turns the velocities around at that moment, and lets the bodies fly on. It never
# moves a body in any other way. That is why the work of the forces equals the change of kinetic
# energy, and why a body that is pressed against a wall stays there.

def bounce(speed, press, time):
    """A ball leaves the ground with `speed` >= 0 -> its height and upward velocity after `time`.

    press: its acceleration towards the ground; below 0 it is pushed away. A ball that is pressed
    falls back and bounces as often as it must: its motion repeats after 2 speed / press. With speed
    0 it rests. Tensors (M,).
    """
    period = 2 * speed / press.clamp_min(1e-12)
    repeated = torch.remainder(time, period.clamp_min(1e-12))
    time = torch.where(press > 0, repeated, time)
    height = speed * time - press * time.square() / 2
    return height, speed - press * time


def reach_wall(gap, speed, press):
    """A body moves towards a wall with `speed` and acceleration `press`; the wall is `gap` away.
    -> when it gets there (inf: never), and how fast it is there. Tensors (M,).

    A body that a neighbour has pushed beyond the wall (gap < 0) is put back on it at once, with the
    speed that its energy gives it there.
    """
    squared = speed.square() + 2 * press * gap
    impact = squared.clamp_min(0).sqrt()
    forward = 2 * gap / (speed + impact)        # avoids the difference of two close numbers
    turning_back = (impact - speed) / press
    time = torch.where(speed > 0, forward, turning_back)
    never = (squared < 0) | ((speed <= 0) & (press <= 0))
    time = time.masked_fill(never, math.inf)
    return time.masked_fill(gap < 0, 0.0), impact


def fly_between_walls(x, v, a, wall, time):
    """Bodies on one axis with walls at -wall and +wall -> position and velocity after `time`.

    x, v, a, wall, time (M,). Exact, however often a body bounces. What is not finite becomes NaN:
    a wall must not make it a number again.  needs: bounce, reach_wall
    """
    lost = ~(x + v + a).isfinite()
    for _ in range(1000):
        time_right, impact_right = reach_wall(wall - x, v, a)
        time_left, impact_left = reach_wall(wall + x, -v, -a)
        right = time_right <= time_left
        side = torch.where(right, 1.0, -1.0).to(x.dtype)
        impact = torch.where(right, impact_right, impact_left)
        when = torch.minimum(time_right, time_left)

        # Either it meets that wall and bounces there for the rest of the time, or it flies on.
        meets = when <= time
        height, rise = bounce(impact, side * a, time - when)
        flown = x + v * time + a * time.square() / 2
        x_end = torch.where(meets, side * (wall - height), flown)
        v_end = torch.where(meets, -side * rise, v + a * time)

        # A height beyond the other wall means that it meets that one next: go on from this one.
        again = meets & (height > 2 * wall)
        if not again.any():
            break
        x = torch.where(again, side * wall, x)
        v = torch.where(again, -side * impact, v)
        time = torch.where(again, time - when, time)
    return x_end.masked_fill(lost, math.nan), v_end.masked_fill(lost, math.nan)


def reach_disc(d, w, b, reach, dt):
    """Relative position d, velocity w and acceleration b (2, M) of two discs -> when, within dt,
    their distance has fallen to `reach` (M,); 0 if it is smaller already.

    Newton's method, started on the straight line from the first position to the last.
    """
    line = w + b * (dt / 2)
    excess = d.square().sum(0) - reach ** 2
    approach = -(d * line).sum(0)
    discriminant = approach.square() - line.square().sum(0) * excess
    root = discriminant.clamp_min(0).sqrt()
    time = excess / (approach + root).clamp_min(1e-12)
    time = time.clamp(0, dt)
    for _ in range(3):
        place = d + w * time + b * time.square() / 2
        velocity = w + b * time
        error = place.square().sum(0) - reach ** 2
        slope = 2 * (place * velocity).sum(0)
        step = error / slope.clamp_max(-1e-9)
        time = (time - step).clamp(0, dt)
    return torch.where(excess > 0, time, 0.0)


class World:
    """Discs in the box [-1, 1]^2 with elastic contacts, reflecting walls and forces.

    A state (N, bodies, 4) holds x, y, vx, vy of each body. A force (N, A) with A = 2 bodies holds
    fx, fy of each body and is kept constant while it acts. There is no other force. Lengths are in
    half box widths, time is in seconds. All N worlds advance together, on the device of the state.

    masses: one number per body, the same in all worlds. They are not observed: a model can learn
    them as constants, since bodies keep their order.  radius: of a body of mass 1; area is
    proportional to mass.
    dt: seconds from frame to frame.  substeps: simulator steps per frame.
    force_limit: the largest force per body and axis.  actions: A, numbers in a force.
    contacts: False lets bodies pass through each other.

    A contact is exact, at any speed and under any force, as long as a body has only one in a
    substep. Several are handled one after the other: first pairs, then walls.
    needs: bounce, reach_wall, fly_between_walls, reach_disc
    """

    def __init__(self, masses=(1.0, 2.0, 4.0), radius=0.08, dt=0.04, substeps=4,
                 force_limit=2.0, contacts=True):
        self.masses = tuple(masses)
        self.radii = tuple(radius * math.sqrt(mass) for mass in masses)
        self.dt = dt
        self.substeps = substeps
        self.force_limit = force_limit
        self.actions = 2 * len(self.masses)
        self.contacts = contacts

    def reset(self, n, gen, speed=0.3, device="cpu"):
        """-> state (n, bodies, 4): bodies that do not overlap, velocities drawn from N(0, speed^2).

        gen is a CPU generator, so every device starts from the same worlds. ValueError if the
        bodies do not fit into the box.
        """
        bodies = len(self.masses)
        crowded = ValueError(f"{bodies} bodies of radius up to {max(self.radii):.2f} do not fit "
                             "the box: use fewer or smaller masses, or a smaller radius")
        if not max(self.radii) < 1:                                       # NaN is refused, too
            raise crowded
        radii = torch.tensor(self.radii)
        wall = (1 - radii)[:, None]                                       # largest |x| of a centre
        touching = radii[:, None] + radii                                 # (bodies, bodies)
        touching.fill_diagonal_(-1)                                       # no body touches itself

        position = torch.empty(n, bodies, 2)
        todo = torch.arange(n)                                            # worlds without positions
        for _ in range(1000):
            unit = torch.rand(len(todo), bodies, 2, generator=gen)
            draw = (2 * unit - 1) * wall
            position[todo] = draw
            gaps = draw[:, :, None] - draw[:, None]                       # of each pair
            overlap = gaps.norm(dim=-1) < touching
            todo = todo[overlap.flatten(1).any(1)]
            if len(todo) == 0:
                velocity = speed * torch.randn(n, bodies, 2, generator=gen)
                state = torch.cat([position, velocity], -1)
                return state.to(device)
        raise crowded

    def check(self, state):
        """ValueError unless a start or a goal of one's own, state (N, bodies, 4), is possible: all
        finite, no body beyond a wall, no two bodies overlapping."""
        if not state.isfinite().all():
            raise ValueError("a number of the state is not finite")
        position = state[..., :2]
        for i, radius in enumerate(self.radii):
            if (position[:, i].abs() > 1 - radius + 1e-6).any():
                raise ValueError(f"body {i} lies outside of the box: keep its centre within "
                                 f"{1 - radius:.3f} of the middle on both axes")
            for j in range(i):
                gap = (position[:, i] - position[:, j]).norm(dim=-1)
                reach = radius + self.radii[j]
                if (gap < reach - 1e-6).any():
                    raise ValueError(f"bodies {j} and {i} overlap: their centres must be "
                                     f"{reach:.3f} apart")

    def random_forces(self, n, clips, gen, device="cpu"):
        """-> forces (n, clips, A), uniform in [-force_limit, force_limit]."""
        unit = torch.rand(n, clips, self.actions, generator=gen)
        forces = (2 * unit - 1) * self.force_limit
        return forces.to(device)

    def rollout(self, state, forces, clip_frames=5):
        """state (N, bodies, 4), forces (N, K, A) -> states (N, K clip_frames, bodies, 4) and
        contacts (N, K clip_frames), bool: in which frames two bodies bounced off each other.

        Each force is held for clip_frames frames. The first state returned is one frame after the
        start. A NaN in one world does not spread to the others.
        """
        bodies = len(self.masses)
        assert state.shape[1:] == (bodies, 4), state.shape
        assert forces.shape[2] == 2 * bodies, forces.shape

        # Worlds become the last axis: (bodies, 2, N). Each line below is then one operation on N
        # neighbouring numbers.
        by_body = state.permute(1, 2, 0)                                  # (bodies, 4, N)
        x = by_body[:, :2].clone(memory_format=torch.contiguous_format)
        v = by_body[:, 2:].clone(memory_format=torch.contiguous_format)
        push = forces.unflatten(-1, (bodies, 2))                          # (N, K, bodies, 2)
        push = push.permute(1, 2, 3, 0)                                   # (K, bodies, 2, N)
        masses = state.new_tensor(self.masses)[:, None, None]
        acceleration = (push / masses).contiguous()
        dt = self.dt / self.substeps

        states, contacts = [], []
        for a in acceleration:
            for _ in range(clip_frames):
                contact = torch.zeros_like(x[0, 0], dtype=torch.bool)
                for _ in range(self.substeps):
                    if self.contacts:
                        self._collide(x, v, a, dt, contact)
                    self._fly(x, v, a, dt)
                states.append(torch.cat([x, v], 1))                       # (bodies, 4, N)
                contacts.append(contact)
        states = torch.stack(states)                                      # (frames, bodies, 4, N)
        states = states.permute(3, 0, 1, 2).contiguous()                  # (N, frames, bodies, 4)
        return states, torch.stack(contacts, 1)

    def _collide(self, x, v, a, dt, contact):
        r"""Elastic contacts within the next dt, in place: x, v, a (bodies, 2, N), contact (N,).

        Let n be the direction from centre to centre at the moment of contact. Along n the relative
        motion is that of a ball on the ground (see `bounce`): its velocity turns around.

            dv_i = m_j / (m_i + m_j) turned n          dv_j = -m_i / (m_i + m_j) turned n

        x and v stay those at the start of the substep. They are changed into those of the flight
        after the contact, extended back to the start: from there both bodies can simply fly.

        Pairs are handled one after the other, each with the newest velocities. Handling them all at
        once would create energy when three bodies meet. Contacts are rare, so only the worlds that
        have one are updated.
        """
        for i in range(len(self.masses)):
            for j in range(i):
                reach = self.radii[i] + self.radii[j]
                d = x[i] - x[j]                                           # (2, N)
                w = v[i] - v[j]
                b = a[i] - a[j]

                # In which worlds do the two come too close, on the way or at the end?
                line = w + b * (dt / 2)
                nearest = -(d * line).sum(0) / line.square().sum(0).clamp_min(1e-12)
                nearest = nearest.clamp(0, dt)
                on_the_way = d + w * nearest + b * nearest.square() / 2
                at_the_end = d + line * dt
                closest = torch.minimum(on_the_way.square().sum(0), at_the_end.square().sum(0))
                which = (closest < reach ** 2).nonzero()[:, 0]
                if len(which) == 0:
                    continue
                d = d[:, which]                                           # (2, contacts)
                w = w[:, which]
                b = b[:, which]

                when = reach_disc(d, w, b, reach, dt)
                left = dt - when
                n = d + w * when + b * when.square() / 2
                n = n / n.square().sum(0).sqrt().clamp_min(1e-12)
                speed = -((w + b * when) * n).sum(0)                      # below 0: they part
                press = -(b * n).sum(0)
                height, rise = bounce(speed.clamp_min(0), press, left)

                # What that adds, at the end of the substep, to distance and velocity along n.
                moved = height + speed * left + press * left.square() / 2
                turned = rise + speed + press * left
                moved = torch.where(speed >= 0, moved, 0.0)
                turned = torch.where(speed >= 0, turned, 0.0)
                total = self.masses[i] + self.masses[j]
                shares = {i: self.masses[j] / total, j: -self.masses[i] / total}
                for body, share in shares.items():
                    v[body][:, which] += share * turned * n
                    x[body][:, which] += share * (moved - turned * dt) * n
                contact[which] |= speed > 0

    def _fly(self, x, v, a, dt):
        """All bodies fly for dt and bounce off the walls, in place: x, v, a (bodies, 2, N)."""
        radii = x.new_tensor(self.radii)[:, None, None]
        wall = (1 - radii).expand_as(x)                                   # largest |x| of a centre
        x_end = x + (v * dt + a * (dt * dt / 2))
        v_end = v + a * dt

        # Who is beyond a wall, at the end or at the point where its path turns around?
        turn = -v / a
        turning_point = x - v.square() / (2 * a)
        turns_beyond = (turning_point.abs() > wall) & (turn > 0) & (turn < dt)
        which = ((x_end.abs() > wall) | turns_beyond).nonzero(as_tuple=True)
        if len(which[0]) > 0:
            time = torch.full_like(x[which], dt)
            bounced = fly_between_walls(x[which], v[which], a[which], wall[which], time)
            x_end[which], v_end[which] = bounced
        x.copy_(x_end)
        v.copy_(v_end)

    def observe(self, state):
        """state (..., bodies, 4) -> (..., F), F = 4 bodies: what the encoders see.

        The scales bring positions and velocities of random worlds to about unit variance. Velocity
        is part of the observation: from one frame to the next a position changes by only about
        0.03 of these units, and a velocity read from so small a difference would be poor.
        """
        scale = state.new_tensor([1 / 0.55, 1 / 0.55, 2.0, 2.0])
        return (state * scale).flatten(-2)


# 2. DATA - what the model gets to see
###################################################################################################
# A sequence is six clips: one to look at and five to predict. Clips do not overlap: no frame is in
# two of them, and all that links them is the physics. The force that acted during clip 0 is not
# given, because all that it did is in the positions and velocities of the clip.

def make_sequences(world, n, clips, gen, clip_frames=5, speed=0.3, device="cpu"):
    """-> states (n, clips, clip_frames, bodies, 4), forces (n, clips - 1, A),
    contacts (n, clips, clip_frames). world.observe(states) is what the model sees."""
    start = world.reset(n, gen, speed, device)
    forces = world.random_forces(n, clips, gen, device)
    states, contacts = world.rollout(start, forces, clip_frames)
    states = states.unflatten(1, (clips, clip_frames))
    contacts = contacts.unflatten(1, (clips, clip_frames))
    return states, forces[:, 1:], contacts


def reflect(x, flip, swap):
    """x (N, ..., 2 m), numbers in pairs (x, y) -> the same, seen in up to three mirrors.

    First swap (N,) bool exchanges x and y, the mirror along the diagonal. Then flip (N, 2) bool
    changes the sign of x, of y, or of both. All combinations are the 8 symmetries of the box.
    """
    pairs = x.reshape(len(x), -1, 2)
    swapped = pairs[..., [1, 0]]
    pairs = torch.where(swap[:, None, None], swapped, pairs)
    sign = 1 - 2 * flip.to(x.dtype)                                       # (N, 2)
    pairs = pairs * sign[:, None]
    return pairs.reshape(x.shape)


def random_symmetry(obs, forces, gen):
    """obs (N, ..., F), forces (N, ..., A) -> each sample in one of the box's 8 symmetries.

    The physics is the same in each, so this is free data.  needs: reflect
    """
    n = len(obs)
    flip = torch.randint(0, 2, (n, 2), generator=gen) == 0
    swap = torch.randint(0, 2, (n,), generator=gen) == 1
    flip = flip.to(obs.device)
    swap = swap.to(obs.device)
    return reflect(obs, flip, swap), reflect(forces, flip, swap)


def epoch_batches(obs, forces, shares, batch, gen, symmetries=True):
    """Yields obs (B, K, T, F), forces (B, K - 1, A) and shares (B,), shuffled by gen.

    Samples that do not fill a batch are left out: the loss needs the statistics of a full one.
    needs: random_symmetry, reflect
    """
    order = torch.randperm(len(obs), generator=gen)
    for i in range(0, len(obs) - batch + 1, batch):
        pick = order[i:i + batch].to(obs.device)
        some_obs, some_forces = obs[pick], forces[pick]
        if symmetries:
            some_obs, some_forces = random_symmetry(some_obs, some_forces, gen)
        yield some_obs, some_forces, shares[pick]


# 3. MODEL - two encoders, two predictors, two small maps, a first guess
###################################################################################################
# The encoder is a one-dimensional Vision Transformer. A frame is a token, and attention runs over
# the frames of a clip. The encoder gives two embeddings. As in [1], the shallow one, read after few
# blocks, feeds the short predictor. The deep one, read after all blocks, feeds the macro predictor,
# which needs whatever helps to foresee the next 25 frames.

class Block(nn.Module):
    """tokens (N, T, W) -> (N, T, W): a pre-norm transformer block.

    Attention is written out. With five tokens the library call is slower in bfloat16 and no faster
    in float32 (figures/speed_step.py measures it).
    """

    def __init__(self, width, heads, mlp_ratio=2):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width),
                                 nn.GELU(),
                                 nn.Linear(mlp_ratio * width, width))

    def forward(self, x):
        qkv = self.qkv(self.norm1(x))                                     # (N, T, 3 W)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                              # (N, heads, T, W/heads)
        scores = (q * self.scale) @ k.transpose(-1, -2)                   # (N, heads, T, T)
        mixed = scores.softmax(-1) @ v                                    # (N, heads, T, W/heads)
        mixed = mixed.transpose(1, 2).flatten(2)                          # (N, T, W)
        x = x + self.out(mixed)
        x = x + self.mlp(self.norm2(x))
        return x


def read_out(frames, width, latent):
    """-> a module: tokens (N, T, W) -> embedding (N, D).

    It reads all tokens side by side; a mean over frames would lose what changes between them. No
    norm follows: VICReg (section 4) asks each of these numbers to vary, and a norm would interfere.
    """
    return nn.Sequential(nn.LayerNorm(width),
                         nn.Flatten(),
                         nn.Linear(frames * width, latent))


class Encoder(nn.Module):
    """clip (N, T, F) -> shallow and deep embedding, (N, D) each.

    depth: blocks before the deep read-out.  shallow_depth: blocks before the shallow read-out.
    needs: Block, read_out
    """

    def __init__(self, features=12, frames=5, latent=256, width=96, depth=3,
                 shallow_depth=1, heads=4, mlp_ratio=2):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(frames, width))
        blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
        self.lower = nn.ModuleList(blocks[:shallow_depth])
        self.upper = nn.ModuleList(blocks[shallow_depth:])
        self.read_shallow = read_out(frames, width, latent)
        self.read_deep = read_out(frames, width, latent)

    def tokens(self, clip):
        """clip (N, T, F) -> tokens (N, T, W) after the lower blocks, for `shallow` and `deep`."""
        assert clip.shape[1] == len(self.position), clip.shape            # else one frame is copied
        x = self.embed(clip)
        x = x + self.position.to(x.dtype)       # a float32 position would undo autocast's bfloat16
        for block in self.lower:
            x = block(x)
        return x

    def shallow(self, tokens):
        """tokens (N, T, W) -> shallow embedding (N, D)."""
        return self.read_shallow(tokens)

    def deep(self, tokens):
        """tokens (N, T, W) -> deep embedding (N, D)."""
        for block in self.upper:
            tokens = block(tokens)
        return self.read_deep(tokens)

    def forward(self, clip):
        tokens = self.tokens(clip)
        return self.shallow(tokens), self.deep(tokens)


# Without forces a predictor can only say what happens on average. With forces it answers "what if",
# and that is all a planner needs. Forces enter in two places. They are an input beside z, since in
# free flight a force moves a body by an amount linear in it. And they shift, scale and gate every
# block (adaptive normalisation, [4]), so that one force can act differently in different states.

class AdaptiveBlock(nn.Module):
    """x (N, W), code of the forces (N, W/4) -> (N, W): a residual block that forces modulate.

        x + (1 + gate) mlp((1 + scale) norm(x) + shift)

    DEVIATION: in [4] the factor of mlp starts at 0. Here it is 1 + gate and starts near 1; instead,
    the predictor's last layer is scaled down.
    """

    def __init__(self, width, code):
        super().__init__()
        self.adapt = nn.Linear(code, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width),
                                 nn.GELU(),
                                 nn.Linear(width, width))

    def forward(self, x, code):
        shift, scale, gate = self.adapt(code).chunk(3, -1)
        y = self.norm(x) * (1 + scale) + shift
        return x + (1 + gate) * self.mlp(y)


class Predictor(nn.Module):
    """z (N, D), forces (N, clips actions) -> the embedding that follows (N, D).

    P1 takes one force, P2 all forces of a macro-event, side by side. With clips > 1 each block is
    modulated by one force only: the first blocks by the first force, the last by the last. So there
    must be as many blocks as clips, or more: ValueError otherwise.
    needs: AdaptiveBlock
    """

    def __init__(self, latent, actions, width=384, blocks=3, clips=1):
        super().__init__()
        if blocks < clips:
            raise ValueError(f"{clips} forces need as many blocks or more, got {blocks}")
        self.clips = clips
        code = width // 4
        self.force = nn.Sequential(nn.Linear(actions, code),
                                   nn.SiLU(),
                                   nn.Linear(code, code),
                                   nn.SiLU())
        self.enter = nn.Linear(latent + clips * actions, width)
        self.leave = nn.Linear(width, latent)
        adaptive = [AdaptiveBlock(width, code) for _ in range(blocks)]
        self.blocks = nn.ModuleList(adaptive)
        self.norm = nn.LayerNorm(width)

        # Start with small steps. Untrained, a predictor gives noise, five steps of a roll-out
        # amplify it, and its gradient would reach the encoders.
        with torch.no_grad():
            self.leave.weight.mul_(0.1)
            self.leave.bias.mul_(0.1)

    def forward(self, z, forces):
        x = self.enter(torch.cat([z, forces], -1))
        codes = self.force(forces.unflatten(-1, (self.clips, -1)))        # (N, clips, W/4)
        for i, block in enumerate(self.blocks):
            turn = i * self.clips // len(self.blocks)
            x = block(x, codes[:, turn])
        return z + self.leave(self.norm(x))     # from one t1 to the next, most of it stays


# How the parts fit together:
#
#   clip 0 --context--> z1 --P1(force 0)--> p1 --P1(force 1)--> p1 ... each like t1 of its clip
#                 '---> z2 --P2(forces 0 to 4)----------------> p2     like t2 of clip 5
#
# The encoders have weights of their own, so the embeddings of the context encoder (z1, z2) and of
# the target encoder (t1, t2) are different spaces. P1 takes z1, and after that its own output: its
# first step leads from z1 to t1, each later one from t1 to the next t1. It is trained on both, so
# it can be rolled out. P2 is trained for one jump, from z2 to t2. It cannot start from its own
# output, nor from P1's. What it offers: one call instead of five, and no error that grows from
# step to step. Two small maps let jumps follow on jumps and on short steps:
#
#   bridge: t2 of a clip -> z2 of the same clip        jump, bridge, jump again
#   lift:   t1 of a clip -> z2 of the same clip        short steps, lift, then jump
#
# This file trains the maps. figures/hierarchy.py plans with them, over two and three macro-events,
# in the spirit of [3].

def small_map(latent):
    """-> a module: (N, D) -> (N, D), from one embedding of a clip to another one."""
    return nn.Sequential(nn.Linear(latent, 2 * latent),
                         nn.GELU(),
                         nn.Linear(2 * latent, latent))


# Planning asks the inverse question: which forces lead from here to there? A small network learns a
# first guess from the same sequences. It is LeCun's "mode 1" [3], a reaction without a search, and
# it is where a search can start.

class FirstGuess(nn.Module):
    """z1, z2 of now, t1 of the goal (N, D), left (N,) clips to go -> forces (N, clips, A).

    left is a whole number from 1 to `clips`. Forces beyond the first `left` ones mean nothing.
    into_encoders: whether its gradient goes on into the embeddings.
    """

    def __init__(self, latent, actions, clips, width=768, into_encoders=True):
        super().__init__()
        self.clips = clips
        self.into_encoders = into_encoders
        self.mlp = nn.Sequential(nn.Linear(3 * latent + clips, width),
                                 nn.GELU(),
                                 nn.Linear(width, width),
                                 nn.GELU(),
                                 nn.Linear(width, width),
                                 nn.GELU(),
                                 nn.Linear(width, clips * actions))

    def forward(self, z1, z2, t1, left):
        seen = torch.cat([z1, z2, t1], -1)
        if not self.into_encoders:
            seen = seen.detach()
        when = F.one_hot(left - 1, self.clips).to(seen.dtype)
        forces = self.mlp(torch.cat([seen, when], -1))
        return forces.unflatten(-1, (self.clips, -1))


class HJEPA(nn.Module):
    """The whole model. features: F, frames: T, actions: A, event_clips: clips of a macro-event.

    It has no forward: see `embeddings` (section 4). shared=True uses one encoder for both roles.
    guess_width=0 leaves the first guess out.
    needs: Encoder, Block, read_out, Predictor, AdaptiveBlock, small_map, FirstGuess
    """

    def __init__(self, *, features=12, frames=5, actions=6, event_clips=5, latent=256,
                 width=96, depth=3, shallow_depth=1, heads=4, mlp_ratio=2,
                 short_width=384, macro_width=384, predictor_blocks=3, macro_blocks=10,
                 guess_width=768, guess_gradient=True, shared=False):
        super().__init__()
        shape = (features, frames, latent, width, depth, shallow_depth, heads, mlp_ratio)
        self.context = Encoder(*shape)
        self.target = self.context if shared else Encoder(*shape)
        self.short = Predictor(latent, actions, short_width, predictor_blocks)    # P1
        self.macro = Predictor(latent, actions, macro_width, macro_blocks, event_clips)   # P2
        self.bridge = small_map(latent)
        self.lift = small_map(latent)
        if guess_width > 0:
            self.guess = FirstGuess(latent, actions, event_clips, guess_width, guess_gradient)

    def rollout(self, z1, forces):
        """z1 (N, D), forces (N, K, A) -> p1 (N, K, D): P1 applied K times, to its own output."""
        z = z1
        path = []
        for force in forces.unbind(1):
            z = self.short(z, force)
            path.append(z)
        return torch.stack(path, 1)

    def jump(self, z2, forces):
        """z2 (N, D), forces (N, event_clips, A) -> p2 (N, D): one macro-event in one step of P2."""
        return self.macro(z2, forces.flatten(1))


# 4. LOSS - why the embeddings do not collapse
###################################################################################################
# The prediction error trains both encoders. Alone, it has a perfect and useless solution: all clips
# get the same embedding. Many systems avoid it with a target network that is frozen or averaged.
# Here, as in [1], the loss itself forbids the collapse. Each dimension of an embedding must vary
# over samples (variance term), and no two dimensions may say the same (covariance term). The terms
# act on what the encoders give, z1, t1, z2 and t2, since that is what could collapse.
# DEVIATION: [2] has an expander network between embedding and loss; here there is none.
#
# A step of training is then (section 8 adds batches, schedule and checks):
#
#   total, terms = objective(model, obs, forces, weights)
#   optimizer.zero_grad()
#   total.backward()
#   optimizer.step()

def vicreg_terms(z, gamma=1.0, eps=1e-4):
    r"""z (..., N, D) -> dict of two scalars >= 0, averaged over leading axes, in float32.

        std = 1/D sum_j max(0, gamma - sqrt(Var(z_j) + eps))                          [2] eq. 1-2
        cov = 1/D sum_{i != j} C_ij^2,   C = 1/(N-1) sum_n (z_n - mean)(z_n - mean)^T  [2] eq. 3-4

    N counts samples. Leading axes are not pooled into it. If they were, an encoder that gives only
    the number of the clip, z(clip, n) = f(clip), would satisfy the variance term. Without eps the
    gradient of a constant batch is NaN. White noise scores about D / N in cov, because D^2
    covariances are estimated from N samples. ValueError for fewer than two samples.
    DEVIATION: the published code of [2] halves std over its two branches; its paper does not.
    """
    z = z.float()
    n, d = z.shape[-2:]
    if n < 2:
        raise ValueError(f"variance needs at least two samples, got {n}")
    with torch.autocast(z.device.type, enabled=False):                    # bfloat16 is too coarse
        z = z - z.mean(-2, keepdim=True)
        # A contiguous copy: products with a transposed left operand have been wrong on MPS.
        transposed = z.transpose(-1, -2).contiguous()
        c = transposed @ z / (n - 1)                                      # (..., D, D)
    variance = c.diagonal(dim1=-2, dim2=-1)                               # (..., D)
    deviation = (variance + eps).sqrt()
    std = F.relu(gamma - deviation).mean(-1)
    all_squares = c.square().sum((-1, -2))
    diagonal_squares = variance.square().sum(-1)
    cov = (all_squares - diagonal_squares) / d
    return {"std": std.mean(), "cov": cov.mean()}


def embeddings(model, obs, forces):
    """obs (B, K, T, F), forces (B, K - 1, A) -> dict of what the loss compares.

    z1, z2 (B, D) of the first clip; t1 (K - 1, B, D) of each later clip, t2 (B, D) of the last and
    t2_before (B, D) of the last but one (or the last, if there is only one); p1 (K - 1, B, D) and
    p2 (B, D), the predictions of t1 and t2. K - 1 must be model's event_clips.
    """
    batch, clips = obs.shape[:2]
    z1, z2 = model.context(obs[:, 0])
    later = obs[:, 1:].transpose(0, 1)                                    # (K - 1, B, T, F)
    tokens = model.target.tokens(later.flatten(0, 1))                     # clip by clip
    t1 = model.target.shallow(tokens)
    t1 = t1.unflatten(0, (clips - 1, batch))                              # (K - 1, B, D)
    last_two = model.target.deep(tokens[-2 * batch:])
    t2 = last_two[-batch:]
    t2_before = last_two[:batch]
    p1 = model.rollout(z1, forces).transpose(0, 1)
    p2 = model.jump(z2, forces)
    return {"z1": z1, "t1": t1, "p1": p1, "z2": z2, "t2": t2, "p2": p2, "t2_before": t2_before}


def with_gradient(z, share):
    """z (..., N, D), share (N,) -> the same numbers, whose gradient is scaled, sample by sample."""
    share = share[:, None]
    return share * z + (1 - share) * z.detach()


def prediction_errors(e):
    """Embeddings (see `embeddings`) -> dict(pred1, pred2): mean squared errors of P1 and P2.

    e may hold shares (B,): how often a sample like this comes up in ordinary life, over how often
    it comes up here. Contacts are rare and hard. Shown more often they teach the predictors, but
    they also press the targets to drop what is hard to foresee, the place of the lightest body
    above all. Then another clip looks like the goal, and plans miss. So the gradient into the
    targets is weighted as if contacts came up as often as they do (importance sampling).
    needs: with_gradient
    """
    t1, t2 = e["t1"].float(), e["t2"].float()
    if "shares" in e:
        t1 = with_gradient(t1, e["shares"])
        t2 = with_gradient(t2, e["shares"])
    return {"pred1": F.mse_loss(e["p1"].float(), t1),
            "pred2": F.mse_loss(e["p2"].float(), t2)}


def map_errors(model, obs, e):
    """obs (B, K, T, F), embeddings -> dict(bridge, lift): the maps' mean squared errors.

    Only the last clip is used. The target is z2 of that clip, and no gradient goes into it: the
    maps follow the context encoder, not the other way round. Call this after `embeddings`. Autocast
    keeps the bfloat16 copy of a weight from its first use. If that use were here, under no_grad,
    `embeddings` would take a copy that passes no gradient.
    """
    with torch.no_grad():
        _, z2_last = model.context(obs[:, -1])
        z2_last = z2_last.float()
    bridged = model.bridge(e["t2"]).float()
    lifted = model.lift(e["t1"][-1]).float()
    return {"bridge": F.mse_loss(bridged, z2_last),
            "lift": F.mse_loss(lifted, z2_last)}


def similarity_terms(e):
    """Embeddings -> dict(sim1, sim2): how far the target embeddings of clips that follow each other
    are apart, squared, as a mean over dimensions. Small steps make a smooth path to plan along."""
    step1 = e["t1"][1:].float() - e["t1"][:-1].float()
    step2 = e["t2"].float() - e["t2_before"].float()
    sim1 = step1.square().mean() if len(step1) > 0 else step2.new_zeros(())
    return {"sim1": sim1, "sim2": step2.square().mean()}


def guess_error(model, e, forces):
    """Embeddings, forces (B, K, A) -> dict(guess): mean squared error of the first guess.

    Every other sample has its goal at the last clip, the others at clips 1, 2, ... K in turn. With
    several processes that is counted in each: a share that 2 K does not divide has other goals.
    """
    batch, clips = forces.shape[:2]
    number = torch.arange(batch, device=forces.device)
    left = torch.where(number % 2 == 0, clips, number // 2 % clips + 1)
    goal = e["t1"][left - 1, number]                                      # (B, D)
    guess = model.guess(e["z1"], e["z2"], goal, left)
    error = (guess.float() - forces).square().mean(-1)                    # (B, K)
    counts = torch.arange(clips, device=forces.device) < left[:, None]
    return {"guess": (error * counts).sum() / counts.sum()}


def objective(model, obs, forces, weights, shares=None, *, embed=embeddings,
              predict=prediction_errors, regularise=vicreg_terms, link=map_errors,
              smooth=similarity_terms, guess=guess_error, gather=None):
    r"""obs (B, K, T, F), forces (B, K - 1, A) -> total, terms (dict of scalars).

        composite = w_pred [ 1/(K-1) sum_k MSE(p1_k, t1_k) + MSE(p2, t2) ]                [2] eq. 5
                  + sum over z in (z1, t1, z2, t2) of [ w_std std(z) + w_cov cov(z) ]     [2] eq. 6
        total     = composite + w_map [ MSE(bridge(t2), z2') + MSE(lift(t1), z2') ]
                  + w_sim [ sim1 + sim2 ] + w_guess MSE(guess, forces)

    MSE is the mean over samples and dimensions. In the maps' line t1, t2 and z2' are of the last
    clip, and z2' is held fixed. weights: dict(pred, std, cov, map, sim, guess); [2] has 25, 25 and
    1 for the first three. A term without a weight is left out. shares (B,): see prediction_errors.
    To try another loss, replace one of the functions: embed, predict, regularise (its terms need
    weights of their names), link, smooth or guess. With several processes, gather (..., n, D) ->
    (..., N, D) brings in the samples of the others. For example SIGReg (arXiv 2511.08544), which
    asks that in random directions embeddings look as if drawn from N(0, 1):

        def sigreg(z, count=128):
            directions = F.normalize(torch.randn(z.shape[-1], count, device=z.device), dim=0)
            with torch.autocast(z.device.type, enabled=False):
                seen = z.float() @ directions
            t = torch.linspace(0, 3, 9, device=z.device)
            angle = seen[..., None] * t
            normal = torch.exp(-t.square() / 2)
            gap = (angle.cos().mean(-3) - normal).square() + angle.sin().mean(-3).square()
            return {"gauss": z.shape[-2] * 2 * torch.trapezoid(gap * normal, t).mean()}

        def mine(model, obs, forces, weights, shares=None, **more):
            weights = {**weights, "gauss": 1.0}
            return objective(model, obs, forces, weights, shares, regularise=sigreg, **more)

        train(config, "runs/sigreg", objective=mine)

    DEVIATION: [2] writes a sum over dimensions; its authors' code, like this one, takes the mean.
    DEVIATION: the abstract of [1] has the composite alone. The maps chain the levels. Their
    gradient also reaches t1 and t2 of the last clip. It makes them keep what z2' of that clip
    holds, even what is hard to predict; VICReg alone would let them drop it. Temporal similarity
    makes plans easier to find, and the first guess starts a search.
    needs: embeddings, prediction_errors, with_gradient, vicreg_terms, map_errors, similarity_terms,
    guess_error
    """
    e = embed(model, obs, forces)
    if shares is not None:
        e["shares"] = shares
    terms = predict(e)
    composite = weights["pred"] * sum(terms.values())
    for name in ("z1", "t1", "z2", "t2"):
        z = e[name] if gather is None else gather(e[name])
        for kind, value in regularise(z).items():
            terms[f"{kind}_{name}"] = value
            composite = composite + weights[kind] * value
    terms["composite"] = composite

    total = composite
    if weights.get("map", 0) > 0:
        maps = link(model, obs, e)
        terms.update(maps)
        total = total + weights["map"] * sum(maps.values())
    if weights.get("sim", 0) > 0:
        steps = smooth(e)
        terms.update(steps)
        total = total + weights["sim"] * sum(steps.values())
    if weights.get("guess", 0) > 0:
        guessed = guess(model, e, forces)
        terms.update(guessed)
        total = total + weights["guess"] * guessed["guess"]
    return total, terms


# 5. PLANNER - forces that lead to a goal, found in embedding space
###################################################################################################
# The goal is a clip, and the target encoder embeds it. A plan is good if the embedding predicted
# for it is close to the goal's. So a plan is also asked for the goal's velocities, although only
# positions count in the end (section 7). There is no reward and no decoder. The search is the
# cross-entropy method [5]: sample plans, keep the best few, fit a Gaussian to them, sample again.
# It uses no gradient of the cost. (A gradient helps: figures/planners.py.) To plan, and to act:
#
#   def cost_to_go(now, clips_left):
#       return short_cost(model, world.observe(now), world.observe(goal))
#
#   states, forces = replan(world, clip, 5, cost_to_go, [torch.Generator()])

def better_of(plan, cost, other, other_cost):
    """Plans (B, K, A) and costs (B,), twice -> for each goal the cheaper plan, and its cost."""
    better = other_cost < cost
    plan = torch.where(better[:, None, None], other, plan)
    return plan, torch.minimum(cost, other_cost)


@torch.no_grad()
def cem(cost, mean, std, gens, *, low, high, samples=100, iterations=6, elites=10, floor=0.02):
    """cost: plans (B, S, K, A) -> (B, S); start mean, std (B, K, A) -> best plan, its cost (B,).

    B goals are searched side by side. Any cost will do, of any model or none. low, high: bounds of
    a force, two numbers or two tensors (A,). floor, in the same units, is added to each fitted
    deviation.
    - Goal b draws its noise from the CPU generator gens[b]: the same noise on every device, and
      whatever other goals there are.
    - A cost of NaN counts as infinitely bad.
    - The mean competes with the samples, so a good start is never lost.
    - The best plan ever seen is returned.
    ValueError unless 1 < elites <= samples (one elite has no deviation), low < high and each goal
    has a generator; and if every cost is NaN.  needs: better_of
    """
    if not 1 < elites <= samples:
        raise ValueError(f"elites must be more than 1 and at most {samples} samples, got {elites}")
    if isinstance(gens, torch.Generator):
        raise ValueError("gens is one generator: give a list, [gens] for one goal")
    if len(gens) != len(mean):
        raise ValueError(f"{len(mean)} goals need as many generators, got {len(gens)}")
    if not (torch.as_tensor(low) < torch.as_tensor(high)).all():
        raise ValueError(f"low must be below high, got {low} and {high}")
    usable = torch.zeros((), dtype=torch.bool, device=mean.device)        # was any cost a number?

    def safe_cost(plans):
        costs = cost(plans)
        usable.logical_or_(costs.isnan().logical_not().any())
        return costs.nan_to_num(nan=math.inf, posinf=math.inf)

    mean = mean.clamp(low, high)
    best = mean
    best_cost = torch.full_like(mean[:, 0, 0], math.inf)

    for _ in range(iterations):
        # 1. Sample plans around the mean. The mean itself is one of them.
        shape = (samples, *mean.shape[1:])
        noise = torch.stack([torch.randn(shape, generator=gen) for gen in gens])
        noise = noise.to(mean.device)                                     # (B, S, K, A)
        plans = mean[:, None] + std[:, None] * noise
        plans[:, 0] = mean
        plans = plans.clamp(low, high)

        # 2. Keep the cheapest ones.
        costs = safe_cost(plans)                                          # (B, S)
        elite_costs, index = costs.topk(elites, largest=False)            # (B, E), best first
        elite_plans = plans.take_along_dim(index[:, :, None, None], 1)    # (B, E, K, A)
        best, best_cost = better_of(best, best_cost, elite_plans[:, 0], elite_costs[:, 0])

        # 3. Fit the next Gaussian to them. Without the floor it would freeze before it is good.
        mean = elite_plans.mean(1)
        std = elite_plans.std(1) + floor

    # The last mean has not been tried yet. It is the centre of the elites, so it often is the best.
    mean_cost = safe_cost(mean[:, None])[:, 0]
    if not usable:
        raise ValueError("every cost is NaN: look for NaN in the weights, the clip and the goal")
    return better_of(best, best_cost, mean, mean_cost)


def latent_cost(predict, start, goal):
    """predict: (N, D), (N, K, A) -> (N, D); start, goal (B, D) -> a cost for `cem`: the squared
    distance of the predicted embedding from the goal's, as a mean over dimensions."""
    def cost(plans):
        goals, samples = plans.shape[:2]
        starts = start[:, None].expand(-1, samples, -1)                   # (B, S, D)
        reached = predict(starts.flatten(0, 1), plans.flatten(0, 1))      # (B S, D)
        reached = reached.unflatten(0, (goals, samples))                  # (B, S, D)
        gap = reached.float() - goal[:, None].float()
        return gap.square().mean(-1)
    return cost


def short_cost(model, clip, goal):
    """clip, goal (B, T, F) -> a cost for plans of any length: P1 rolled out.  needs: latent_cost"""
    z1, _ = model.context(clip)
    t1, _ = model.target(goal)

    def predict(z, plans):
        return model.rollout(z, plans)[:, -1]
    return latent_cost(predict, z1, t1)


def macro_cost(model, clip, goal):
    """clip, goal (B, T, F) -> a cost for plans of one macro-event: P2.  needs: latent_cost"""
    _, z2 = model.context(clip)
    _, t2 = model.target(goal)
    return latent_cost(model.jump, z2, t2)


@torch.no_grad()
def first_guess(model, clip, goal, left, limit=2.0, symmetries=True):
    """clip, goal (B, T, F), clips left until the goal -> forces (B, left, A), without a search.

    The network is asked in each of the box's 8 symmetries, and its answers are averaged. Where
    numbers are no pairs (x, y), symmetries=False asks once. left may not be more than the clips of
    a macro-event.  needs: reflect
    """
    def ask(clip, goal):
        z1, z2 = model.context(clip)
        t1, _ = model.target(goal)
        clips_left = torch.full((len(clip),), left, device=clip.device)
        return model.guess(z1, z2, t1, clips_left)[:, :left]

    if not symmetries:
        return ask(clip, goal).clamp(-limit, limit)
    answers = []
    for number in range(8):
        digits = [number % 2, number // 2 % 2, number // 4]               # binary: flip x, y, swap
        mirror = torch.tensor(digits, device=clip.device) == 1
        mirror = mirror.expand(len(clip), 3)
        flip, swap = mirror[:, :2], mirror[:, 2]
        forces = ask(reflect(clip, flip, swap), reflect(goal, flip, swap))
        # Back again: what was flipped after the swap is flipped first now.
        back = torch.where(swap[:, None], flip.flip(-1), flip)
        answers.append(reflect(forces, back, swap))
    return torch.stack(answers).mean(0).clamp(-limit, limit)


@torch.no_grad()
def goal_clip(world, state, clip_frames=5):
    """state (N, bodies, 4) -> clip (N, T, bodies, 4) that ends in it: a goal, or a start, of your
    own. No force acts in it. It is filmed by flying backwards from the state.

    Ask world.check(state) first whether such a state can be.
    """
    turn = state.new_tensor([1.0, 1.0, -1.0, -1.0])
    no_force = state.new_zeros(len(state), 1, 2 * state.shape[1])
    back, _ = world.rollout(state * turn, no_force, clip_frames)
    before = back[:, :clip_frames - 1].flip(1) * turn
    return torch.cat([before, state[:, None]], 1)


def cheaper_of(cost, plan, other):
    """Plans (B, K, A) twice -> for each goal the one that costs less.  needs: better_of

    A cost of NaN counts as infinitely bad.
    """
    plan_cost = cost(plan[:, None])[:, 0].nan_to_num(nan=math.inf, posinf=math.inf)
    other_cost = cost(other[:, None])[:, 0].nan_to_num(nan=math.inf, posinf=math.inf)
    plan, _ = better_of(plan, plan_cost, other, other_cost)
    return plan


@torch.no_grad()
def plan_once(world, clip, clips, cost_to_go, gens, guess=None, init_std=0.6, clip_frames=5,
              guess_std=0.05, **budget):
    """Open loop: plan once, then apply all forces.

    world: a World, or a simulator of your own. It must offer
        actions                     A, numbers in a force
        force_limit                 the largest of each: a number, or a tensor (A,)
        rollout(state, forces, clip_frames) -> states, anything else
    with state (B, ...), forces (B, K, A) and states (B, K clip_frames, ...), one per frame.
    clip (B, T, ...): the states of the clip that is seen now; (B, T, bodies, 4) in a World.
    clips: how many clips ahead the goal is.
    cost_to_go(clip, clips left) -> the cost that `cem` minimises, for example short_cost on
    world.observe(clip).  gens: one CPU generator per goal.
    guess(clip, clips left) -> forces (B, left, A) to start the search from, or None; without it the
    search starts from no force.
    init_std: first deviation of a search, guess_std: of one that starts from a guess, both in force
    limits.  budget: samples, iterations, elites of `cem`.
    -> states (B, clips clip_frames, ...), forces (B, clips, A). ValueError if a guess has another
    shape.  needs: cem, better_of
    """
    limit = world.force_limit
    mean = clip.new_zeros(len(clip), clips, world.actions)
    fresh = guess(clip, clips) if guess is not None else None
    deviation = init_std
    if fresh is not None:
        if fresh.shape != mean.shape:
            raise ValueError(f"a guess is {tuple(fresh.shape)}, a plan is {tuple(mean.shape)}")
        mean = fresh
        deviation = guess_std
    std = torch.ones_like(mean) * (deviation * limit)
    cost = cost_to_go(clip, clips)
    forces, _ = cem(cost, mean, std, gens, low=-limit, high=limit, **budget)
    states, _ = world.rollout(clip[:, -1], forces, clip_frames)
    return states, forces


@torch.no_grad()
def replan(world, clip, clips, cost_to_go, gens, guess=None, init_std=0.6, clip_frames=5,
           guess_std=0.05, **budget):
    """Closed loop: plan all that is left, apply the first force for one clip, look, plan again.

    Arguments and results as in `plan_once`. Each search starts from the rest of the last plan, or
    from a new guess if that costs less. The simulator only carries out the force that was chosen:
    it is not asked what another force would do, nor whether the goal is reached.
    needs: cem, better_of, cheaper_of
    """
    limit = world.force_limit
    mean = clip.new_zeros(len(clip), clips, world.actions)
    states, forces = [], []
    for left in range(clips, 0, -1):
        cost = cost_to_go(clip, left)
        fresh = guess(clip, left) if guess is not None else None
        deviation = init_std
        if fresh is not None:
            if fresh.shape != mean.shape:
                raise ValueError(f"a guess is {tuple(fresh.shape)}, a plan is {tuple(mean.shape)}")
            mean = cheaper_of(cost, mean, fresh)
            deviation = guess_std
        std = torch.ones_like(mean) * (deviation * limit)
        plan, _ = cem(cost, mean, std, gens, low=-limit, high=limit, **budget)
        force = plan[:, :1]
        clip, _ = world.rollout(clip[:, -1], force, clip_frames)
        states.append(clip)
        forces.append(force)
        mean = plan[:, 1:]
    return torch.cat(states, 1), torch.cat(forces, 1)


# The tutorial ends here. Below: settings, evaluation, training, figures and command line.


# 6. SETTINGS - every number that can be changed, and where it comes from
###################################################################################################
# The class Config holds the settings of a run, and the command line is generated from it. The
# second argument of `opt` says where a value comes from: "paper": the abstract of [1]; "vicreg":
# [2]; "design": fixed before training, by what the world needs or by common practice; "tuned":
# chosen on validation worlds.

class Refusal(Exception):
    """What the person at the terminal can mend: printed as one line, exit code 2."""


def opt(default, source, meaning, choices=None):
    """A dataclass field that knows where its value comes from and what it means."""
    metadata = {"source": source, "meaning": meaning, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


# Smallest and largest value of each number. The ranges are wide: they catch typing errors.
ALLOWED = {
    "masses": (1e-3, 1e3), "radius": (1e-3, 0.5), "dt": (1e-4, 1.0), "substeps": (1, 1000),
    "force_limit": (1e-6, 1e3), "start_speed": (0.0, 10.0), "sequences": (1, 10**7),
    "features": (0, 10**5), "actions": (0, 10**4),
    "clip_frames": (1, 100), "event_clips": (1, 100), "latent": (2, 8192), "width": (4, 8192),
    "depth": (1, 64), "shallow_depth": (1, 64), "heads": (1, 64), "mlp_ratio": (1, 16),
    "short_width": (4, 8192), "macro_width": (4, 8192), "predictor_blocks": (1, 64),
    "macro_blocks": (1, 64), "guess_width": (0, 8192), "contact_share": (0.0, 0.9),
    "pred_weight": (0.0, 1e6), "std_weight": (0.0, 1e6), "cov_weight": (0.0, 1e6),
    "map_weight": (0.0, 1e6), "sim_weight": (0.0, 1e6), "guess_weight": (0.0, 1e6),
    "epochs": (1, 10**6), "batch": (2, 10**6), "lr": (1e-9, 10.0),
    "beta2": (0.0, 0.999999), "weight_decay": (0.0, 10.0), "warmup": (0, 10**9),
    "samples": (3, 10**6), "iterations": (1, 10**4), "elites": (2, 10**6),
    "init_std": (1e-6, 10.0), "guess_std": (1e-6, 10.0), "goals": (1, 10**5),
    "validate_every": (0, 10**6),
    "validate_goals": (1, 10**5), "seed": (0, 999_999), "validation_seed": (1_000_000, 1_999_999),
    "test_seed": (2_000_000, 2_999_999),
}


def checked(field, value):
    """A value for a field of Config -> the same as the plain Python type that the field declares,
    whatever kind of number or string it came as (numpy's, an enum's). ValueError if it may not be.

    A checkpoint holds plain types only: others would be saved, and refused when they are read.
    """
    choices = field.metadata["choices"]
    if choices:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{field.name} is {value!r}: choose from {', '.join(choices)}")
        return choices[choices.index(value)]
    if field.type is bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{field.name} is {value!r}: allowed are True and False")
        return bool(value)

    low, high = ALLOWED[field.name]
    kind = numbers.Integral if field.type is int else numbers.Real
    plain = int if field.type is int else float
    several = field.type is tuple
    if several and (isinstance(value, str) or not hasattr(value, "__iter__")):
        raise ValueError(f"{field.name} is {value!r}: give a list of numbers")
    given = list(value) if several else [value]
    for number in given:
        is_number = isinstance(number, kind) and not isinstance(number, bool)
        # NaN fails the comparison, too.
        if not is_number or not low <= number <= high:
            raise ValueError(f"{field.name} is {number!r}: allowed are {low} to {high}")
    values = tuple(plain(number) for number in given)
    return values if several else values[0]


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. ValueError names the one that is wrong."""
    masses: tuple = opt((1.0, 2.0, 4.0), "design", "mass of each body")
    radius: float = opt(0.08, "design", "radius of a body of mass 1 (the box is 2 wide)")
    dt: float = opt(0.04, "design", "seconds from frame to frame")
    substeps: int = opt(4, "design", "simulator steps per frame")
    force_limit: float = opt(2.0, "design", "largest force per body and axis")
    start_speed: float = opt(0.3, "design", "standard deviation of the start velocities")

    sequences: int = opt(49_000, "paper", "training sequences")
    clip_frames: int = opt(5, "design", "frames in a clip; one force acts for as long")
    event_clips: int = opt(5, "paper", "clips in a macro-event: 5 x 5 frames are the paper's 25")
    contact_share: float = opt(0.5, "tuned", "share of training sequences in which bodies meet; 0: "
                               "as they come")
    symmetries: bool = opt(True, "design", "train on random flips and axis swaps of the box")
    features: int = opt(0, "design", "numbers in a frame of your own --data; 0: our world")
    actions: int = opt(0, "design", "numbers in an action of your own --data; 0: our world")

    latent: int = opt(256, "paper", "dimensions of each embedding")
    width: int = opt(96, "tuned", "transformer width")
    depth: int = opt(3, "tuned", "transformer blocks below the deep embedding")
    shallow_depth: int = opt(1, "tuned", "transformer blocks below the shallow embedding")
    heads: int = opt(4, "design", "attention heads")
    mlp_ratio: int = opt(2, "tuned", "hidden width of a block, as a multiple of width")
    shared: bool = opt(False, "paper", "one encoder for context and target instead of two")
    short_width: int = opt(384, "design", "width of the short predictor")
    macro_width: int = opt(384, "tuned", "width of the macro predictor")
    predictor_blocks: int = opt(3, "tuned", "residual blocks of the short predictor")
    macro_blocks: int = opt(10, "tuned", "those of the macro predictor, at least event_clips")
    guess_width: int = opt(768, "tuned", "width of the first guess; 0: none")
    guess_gradient: bool = opt(True, "tuned", "the first guess also trains the encoders")

    pred_weight: float = opt(25.0, "vicreg", "weight of the prediction errors")
    std_weight: float = opt(25.0, "vicreg", "weight of the variance term")
    cov_weight: float = opt(1.0, "vicreg", "weight of the covariance term")
    map_weight: float = opt(5.0, "design", "weight of bridge and lift; 0 is the paper's objective")
    sim_weight: float = opt(5.0, "tuned", "weight of temporal similarity; 0: none")
    guess_weight: float = opt(5.0, "tuned", "weight of the first guess; 0: none")

    epochs: int = opt(300, "paper", "passes over the sequences")
    batch: int = opt(192, "tuned", "sequences per optimiser step")
    lr: float = opt(1e-3, "design", "peak learning rate")
    beta2: float = opt(0.95, "design", "AdamW's second decay")
    weight_decay: float = opt(1e-4, "design", "on matrices only")
    warmup: int = opt(200, "design", "steps of linear warm-up, at most a fifth of the run")

    samples: int = opt(100, "tuned", "CEM: plans per iteration")
    iterations: int = opt(6, "design", "CEM: iterations")
    elites: int = opt(10, "tuned", "CEM: best plans, which the next Gaussian is fitted to")
    init_std: float = opt(0.6, "design", "CEM: first deviation from no force, in force limits")
    guess_std: float = opt(0.05, "tuned", "CEM: first deviation from the first guess")
    goals: int = opt(200, "design", "test goals that `plan` tries")

    validate_every: int = opt(10, "design", "epochs between trials of validation goals; 0: never")
    validate_goals: int = opt(64, "design", "validation goals tried each time")
    seed: int = opt(0, "design", "seed of start weights, batch order and training worlds")
    validation_seed: int = opt(1_000_000, "design", "seed of worlds that settings are chosen on")
    test_seed: int = opt(2_000_000, "design", "seed of worlds that results are reported on")
    device: str = opt("auto", "paper", "auto: cuda, else mps (the paper's), else cpu",
                      ("auto", "cuda", "mps", "cpu"))
    precision: str = opt("auto", "design", "matrix products in training; auto: bf16 where fast",
                         ("auto", "fp32", "bf16"))

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)     # the way to change a frozen dataclass
        if not self.masses:
            raise ValueError("masses is empty: give at least one body")
        if self.shallow_depth > self.depth:
            raise ValueError("shallow_depth is above depth: choose shallow_depth <= depth")
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        if self.elites > self.samples:
            raise ValueError("elites must not be more than samples")
        if self.batch > self.sequences:
            raise ValueError(f"batch is {self.batch}, larger than sequences, {self.sequences}")
        if self.macro_blocks < self.event_clips:
            raise ValueError("macro_blocks must be at least event_clips: each force has a block")
        if self.guess_weight > 0 and self.guess_width == 0:
            raise ValueError("guess_weight is above 0 without a first guess: give guess_width, too")
        if (self.features > 0) != (self.actions > 0):
            raise ValueError("features and actions are of your own --data: both, or none of them")
        if self.features == 0 and self.substeps < self.needed_substeps():
            raise ValueError(f"substeps is {self.substeps}: bodies could fly farther than a radius "
                             f"in one; give {self.needed_substeps()} or more")

    def needed_substeps(self):
        """-> substeps so small that the smallest body flies less than its radius in one, even after
        the largest force has pushed the lightest body all the time of a sequence.

        The simulator handles one contact of a body in a substep exactly.
        """
        seconds = (self.event_clips + 1) * self.clip_frames * self.dt
        fastest = 5 * self.start_speed + self.force_limit / min(self.masses) * seconds
        smallest = self.radius * math.sqrt(min(self.masses))
        return math.ceil(fastest * self.dt / smallest)

    @property
    def loss_weights(self):
        """The weights that `objective` takes."""
        return {"pred": self.pred_weight, "std": self.std_weight, "cov": self.cov_weight,
                "map": self.map_weight, "sim": self.sim_weight, "guess": self.guess_weight}


PRESETS = {
    "smoke": dict(sequences=1024, epochs=3, batch=128, width=32, short_width=64, macro_width=64,
                  predictor_blocks=2, macro_blocks=5, guess_width=64, samples=40, iterations=3,
                  elites=8, goals=8, validate_every=2, validate_goals=4),
    "quick": dict(epochs=9, validate_every=5, validate_goals=12),
    "paper": dict(),
}


def generator(seed, purpose, index=0):
    """A fresh CPU generator that depends on its arguments alone.

    There is no random state to save or to disturb: the same numbers are drawn however often a run
    is evaluated, interrupted or moved to another device. To rename a purpose changes results.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def build_world(config):
    """Config -> World. Refusal if the run was trained with data of its own."""
    if config.features > 0:
        raise Refusal("this run has data of its own and no world, which is needed here (the "
                      "docstring of `load` shows how to plan with it)")
    return World(masses=config.masses, radius=config.radius, dt=config.dt,
                 substeps=config.substeps, force_limit=config.force_limit)


class Scaling(nn.Module):
    """Data of one's own <-> what a model sees: centred, with unit deviation. Its buffers are kept
    in the checkpoint with the weights. features: F, actions: A."""

    def __init__(self, features, actions):
        super().__init__()
        for name, size in (("obs", features), ("force", actions)):
            self.register_buffer(name + "_centre", torch.zeros(size))
            self.register_buffer(name + "_scale", torch.ones(size))

    def fit(self, observations, actions, pairs=False):
        """observations (N, ..., F), actions (N, ..., A) on the CPU: take the statistics of these.

        pairs: numbers come as (x, y). Then the centre stays 0 and both have one scale, so that a
        mirror image is scaled to a mirror image. A number that never changes has scale 1.
        """
        for name, x in (("obs", observations), ("force", actions)):
            x = x.double().flatten(0, -2)
            centre, scale = x.mean(0), x.std(0)
            if pairs:
                centre = torch.zeros_like(centre)
                squares = x.square().mean(0).unflatten(0, (-1, 2))
                scale = squares.mean(1).sqrt().repeat_interleave(2)
            constant = scale <= 1e-7 * centre.abs()                       # but for rounding
            self.get_buffer(name + "_centre").copy_(centre)
            self.get_buffer(name + "_scale").copy_(scale.masked_fill(constant, 1.0))

    def observe(self, observations):
        """Observations (..., F) as in the data -> what the encoders see."""
        return (observations - self.obs_centre) / self.obs_scale

    def forces(self, actions):
        """Actions (..., A) as in the data -> what the predictors take."""
        return (actions - self.force_centre) / self.force_scale

    def actions(self, forces):
        """What the predictors take (..., A), and a first guess says -> actions as in the data."""
        return forces * self.force_scale + self.force_centre


def build_model(config):
    """Config -> HJEPA on the CPU, with the start weights of its seed. The global random state of
    the CPU is left as it was. A model of one's own data has a Scaling, model.scale."""
    bodies = len(config.masses)
    features = config.features or 4 * bodies
    actions = config.actions or 2 * bodies
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        model = HJEPA(features=features, frames=config.clip_frames, actions=actions,
                      event_clips=config.event_clips, latent=config.latent, width=config.width,
                      depth=config.depth, shallow_depth=config.shallow_depth, heads=config.heads,
                      mlp_ratio=config.mlp_ratio, short_width=config.short_width,
                      macro_width=config.macro_width, predictor_blocks=config.predictor_blocks,
                      macro_blocks=config.macro_blocks,
                      guess_width=config.guess_width, guess_gradient=config.guess_gradient,
                      shared=config.shared)
    if config.features > 0:
        model.scale = Scaling(features, actions)
    return model


# 7. EVALUATION - what is in the embeddings, and do plans work
###################################################################################################
# Models are evaluated in float32, whatever the precision of their training was. A goal is reached
# if the final distance to it is below REACHED, in half box widths. The distance is the mean over
# bodies ("mean body") or that of the farthest one ("worst body").

REACHED = 0.1
STRICT = 0.05


def draw_sequences(world, config, n, seed, purpose, device, index=0):
    """make_sequences for a Config: n of one macro-event each, drawn by (seed, purpose, index).

    -> states (n, event_clips + 1, clip_frames, bodies, 4), forces (n, event_clips, A), contacts.
    """
    clips = config.event_clips + 1
    bodies = len(config.masses)
    refuse_too_many(n, 64 * n * bodies * max(clips * config.clip_frames, bodies))
    return make_sequences(world, n, clips, generator(seed, purpose, index), config.clip_frames,
                          config.start_speed, device)


class Sieve:
    """Keeps the first `wanted` sequences of one kind."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.states, self.forces = [], []
        self.ordinary = None                    # how many there are in a first, ordinary draw

    def missing(self):
        """-> how many are still to be found."""
        return self.wanted - sum(len(states) for states in self.states)

    def add(self, states, forces, kind):
        """Sequences, and which of them are of this kind (n,)."""
        if self.ordinary is None:
            self.ordinary = int(kind.sum())
        pick = kind.nonzero()[:self.missing(), 0]
        self.states.append(states[pick])
        self.forces.append(forces[pick])

    def shares(self):
        """-> (wanted,): how many of this kind are ordinary, over how many are kept."""
        return torch.full((self.wanted,), self.ordinary / max(self.wanted, 1))


def draw_training(world, config, device):
    """-> the training sequences of a run: states, forces as draw_sequences gives them, and shares
    (n,), see prediction_errors.

    In a share of config.contact_share bodies meet after clip 0; with 0 they are taken as they come.
    """
    n = config.sequences
    if config.contact_share == 0:
        states, forces, _ = draw_sequences(world, config, n, config.seed, "train", device)
        return states, forces, torch.ones(n, device=device)

    meeting = Sieve(round(config.contact_share * n))
    alone = Sieve(n - meeting.wanted)
    for index in range(100):
        states, forces, contacts = draw_sequences(world, config, n, config.seed, "train", device,
                                                  index)
        meet = contacts[:, 1:].flatten(1).any(1)
        meeting.add(states, forces, meet)
        alone.add(states, forces, ~meet)
        if meeting.missing() + alone.missing() == 0:
            break
    else:
        raise Refusal(f"contact_share is {config.contact_share}: such sequences are too rare")
    states = torch.cat(meeting.states + alone.states)
    forces = torch.cat(meeting.forces + alone.forces)
    shares = torch.cat([meeting.shares(), alone.shares()])
    return states, forces, shares.to(device)


def read_data(path):
    """An .npz file of one's own -> dict(observations (N, clips, frames, F), actions (N, clips - 1,
    A), float32; pairs, bool; name, digest). A Refusal says what is wrong with it.

    Action k acts while clip k + 1 is recorded. An entry pairs = True says that all numbers, of
    observations and of actions, come as (x, y) pairs of a plane that has the box's symmetries.
    """
    wanted = {"observations": "(N, clips, frames, F)", "actions": "(N, clips - 1, A)"}
    parts = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in (*wanted, "pairs"):
                if name in file:
                    parts[name] = file[name]
    except Exception as error:                  # np.load has a dozen ways, too
        raise Refusal(f"{path} cannot be read as an .npz file ({first_line(error)})") from None
    for name, axes in wanted.items():
        x = parts.get(name)
        if x is None:
            raise Refusal(f"{path} has no {name}: save them with np.savez, float {axes}")
        if x.dtype.kind != "f" or x.ndim != axes.count(",") + 1 or x.size == 0:
            raise Refusal(f"{path}: {name} is {x.dtype} {x.shape}: give float {axes}, none empty")
        with np.errstate(over="ignore"):
            parts[name] = torch.from_numpy(x.astype(np.float32))
        if not parts[name].isfinite().all():
            raise Refusal(f"{path}: {name} holds NaN, infinity or what float32 cannot hold")
    n, clips, _, features = parts["observations"].shape
    actions = parts["actions"].shape
    if clips < 2 or actions[:2] != (n, clips - 1):
        raise Refusal(f"{path}: {n} x {clips} clips and {actions[0]} x {actions[1]} actions: "
                      "a sequence is 2 clips or more, with one action fewer")
    if n < 4:
        raise Refusal(f"{path}: {n} sequences are too few: 4 is the least, thousands are better")
    pairs = parts.setdefault("pairs", np.array(False))
    if pairs.dtype != bool or pairs.ndim > 0 or pairs and (features % 2 or actions[2] % 2):
        raise Refusal(f"{path}: pairs is True or False, and True needs even numbers of features "
                      f"and actions, not {features} and {actions[2]}")
    digest = digest_of([parts["observations"], parts["actions"]])
    return {**parts, "pairs": bool(pairs), "name": str(path), "digest": digest}


# What own data do not use: settings of the world, of its goals and of their planner.
OF_A_WORLD = ("masses", "radius", "dt", "substeps", "force_limit", "start_speed", "contact_share",
              "samples", "iterations", "elites", "init_std", "guess_std", "goals", "validate_every",
              "validate_goals", "validation_seed", "test_seed")


def own_settings(data, given):
    """What read_data returns, settings that are given -> settings for Config. Sizes are those of
    the data, whose last tenth is held back from training. Refusal if others are given."""
    n, clips, frames, features = data["observations"].shape
    sizes = {"sequences": n - max(2, n // 10), "clip_frames": frames, "event_clips": clips - 1,
             "features": features, "actions": data["actions"].shape[2]}
    for name, value in given.items():
        if name in OF_A_WORLD:
            raise Refusal(f"{name} is a setting of our world: it means nothing with --data")
        if sizes.get(name, value) != value:
            raise Refusal(f"{name} is {value}, in {data['name']} it is {sizes[name]}: leave it out")
    symmetries = given.get("symmetries", data["pairs"])
    if symmetries and not data["pairs"]:
        raise Refusal(f"symmetries need numbers in pairs (x, y): {data['name']} has no entry pairs "
                      "that says so")
    return {**given, **sizes, "symmetries": symmetries}


@torch.no_grad()
def latents(model, obs, forces, chunk=4096):
    """obs (N, K, T, F), forces (N, K - 1, A) -> dict of embeddings (N, D) on the CPU.

    z1, z2 of the first clip; t1, t2 of the last clip; p1 (P1 rolled out) and p2 predict them. So
    t1 and p1 have no clip axis here, as they have in `embeddings`.
    """
    parts = {name: [] for name in ("z1", "z2", "t1", "t2", "p1", "p2")}
    for some_obs, some_forces in zip(obs.split(chunk), forces.split(chunk)):
        z1, z2 = model.context(some_obs[:, 0])
        t1, t2 = model.target(some_obs[:, -1])
        p1 = model.rollout(z1, some_forces)[:, -1]
        p2 = model.jump(z2, some_forces)
        for name, z in zip(parts, (z1, z2, t1, t2, p1, p2)):
            parts[name].append(z.cpu())
    return {name: torch.cat(zs) for name, zs in parts.items()}


def effective_rank(z):
    """z (N, D) -> exp(entropy of the normalised singular values of z), 1 to D: how many dimensions
    are used.

    Not to be called under autocast: bfloat16 rounding looks like extra dimensions.
    DEVIATION: [6], RankMe, does not subtract the mean.
    """
    z = (z - z.mean(0)).cpu()
    singular = torch.linalg.eigvalsh(z.T @ z).clamp_min(0).sqrt()
    p = singular / singular.sum().clamp_min(1e-12) + 1e-12
    return torch.exp(-(p * p.log()).sum()).item()


@torch.no_grad()
def order_of_distances(embed, clips, gen, moves=64, step=0.1):
    """Is an embedding a good place to plan in? embed: clips (N, T, bodies, 4) -> (N, D).

    Each clip gets `moves` neighbours: all bodies a little elsewhere and a little faster or slower.
    -> Spearman correlation of how far a neighbour's embedding is with how far its farthest body is,
    a mean over clips. Low: near in the embedding says little about near in the box, and plans miss
    although their cost is low (figures/landscapes.py).
    """
    start = embed(clips)
    near, apart = [], []
    for _ in range(moves):
        move = step * torch.randn(len(clips), 1, *clips.shape[2:], generator=gen)
        move = move * torch.rand(len(clips), 1, 1, 1, generator=gen)
        move = move.to(clips.device)
        near.append((embed(clips + move) - start).float().norm(dim=-1))
        apart.append(move[:, 0, :, :2].norm(dim=-1).amax(-1))
    places = []
    for distances in (near, apart):
        order = torch.stack(distances, 1).cpu().argsort(1).argsort(1).float()     # (N, moves)
        places.append(order - order.mean(1, keepdim=True))
    correlation = (places[0] * places[1]).sum(1) / places[1].square().sum(1)
    return correlation.mean().item()


def r2(guess, true):
    """guess, true (N, Q) -> (Q,): the share of the variance of each column that is explained."""
    error = (guess - true).square().sum(0)
    spread = (true - true.mean(0)).square().sum(0)
    return 1 - error / spread


def ridge(training, validation, strengths=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)):
    """Two pairs x (N, P), y (N, Q) -> weight (P, Q), offset (Q,) of a linear probe.

    The guess is x.double() @ weight + offset. Ridge regression on the training pair, with the
    penalty that does best on the validation pair. In float64, on the CPU.
    """
    x, y = (part.double() for part in training)
    x_validation, y_validation = (part.double() for part in validation)
    centre = x.mean(0)
    scale = x.std(0) + 1e-6
    a = (x - centre) / scale
    gram = a.T @ a / len(a)
    moment = a.T @ (y - y.mean(0)) / len(a)
    eye = torch.eye(len(gram), dtype=gram.dtype)

    best_score = -math.inf
    for strength in strengths:
        weight = torch.linalg.solve(gram + strength * eye, moment)
        weight = weight / scale[:, None]
        offset = y.mean(0) - centre @ weight
        score = r2(x_validation @ weight + offset, y_validation).mean().item()
        if score > best_score or strength == strengths[0]:                # a NaN is never above
            best_score = score
            best = weight, offset
    return best


def distance(a, b):
    """States (..., bodies, 4) twice -> (..., bodies): how far apart the centres are."""
    return (a[..., :2] - b[..., :2]).norm(dim=-1)


def probe_targets(states, masses):
    """States of one frame (N, bodies, 4) -> dict of what probes look for, (N, Q) each, on the CPU:
    position, velocity, kinetic energy of all bodies together, and distances of pairs, if any."""
    position = states[..., :2].cpu()
    velocity = states[..., 2:].cpu()
    speed_squared = velocity.square().sum(-1)                             # (N, bodies)
    energy = 0.5 * (torch.tensor(masses) * speed_squared).sum(-1, keepdim=True)
    targets = {"position": position.flatten(1), "velocity": velocity.flatten(1),
               "kinetic energy": energy}
    i, j = torch.triu_indices(len(masses), len(masses), 1)
    if len(i) > 0:
        targets["pair distance"] = distance(position[:, i], position[:, j])
    return targets


def without_contacts(world, frames=1):
    """-> the same box with the same walls and forces, whose bodies pass through each other.

    One of its frames is as long as `frames` of the given world. Then flight is exact in one step.
    """
    radius = world.radii[0] / math.sqrt(world.masses[0])
    return World(world.masses, radius, frames * world.dt, substeps=1,
                 force_limit=world.force_limit, contacts=False)


def make_goals(world, n, clips, gen, clip_frames=5, speed=0.3):
    """n goals, `clips` clips ahead -> dict(clip, goal (n, clip_frames, bodies, 4), forces
    (n, clips, A), contact, matters (n,)), on the CPU.

    contact: bodies meet under the hidden forces. matters: if they flew through each other, with the
    same forces, a body would end more than 2 REACHED elsewhere.

    A goal is what the same world shows under hidden random forces, so it can be reached. A goal is
    kept only if zero force misses it: the worst body must end more than 2 REACHED away. (By the
    mean body, zero force still reaches a few: the planner "zero" shows how many.) Not all worlds
    pass, so more are drawn than are needed.
    """
    states, forces, contacts = make_sequences(world, 8 * n + 64, clips + 1, gen, clip_frames, speed)
    no_force = torch.zeros_like(forces)
    idle, _ = world.rollout(states[:, 0, -1], no_force, clip_frames)
    missed_by = distance(idle[:, -1], states[:, -1, -1])                  # (worlds, bodies)
    missed_by = missed_by.amax(-1)
    pick = (missed_by > 2 * REACHED).nonzero()[:n, 0]
    if len(pick) < n:
        raise Refusal(f"only {len(pick)} of {len(missed_by)} worlds have a goal that needs force, "
                      f"{n} are wanted: raise --force-limit, or lower --goals or --validate-goals")
    clip, goal, forces = states[pick, 0], states[pick, -1], forces[pick]
    through, _ = without_contacts(world).rollout(clip[:, -1], forces, clip_frames)
    elsewhere = distance(through[:, -1], goal[:, -1]).amax(-1)
    return {"clip": clip, "goal": goal, "forces": forces,
            "contact": contacts[pick, 1:].flatten(1).any(1), "matters": elsewhere > 2 * REACHED}


def simulated_cost(world, clip, goal, clip_frames):
    """clip, goal (B, T, bodies, 4) -> a cost for `cem`: where the bodies end in `world`.

    With the true world this is the best that a planner can do. Without contacts it is a planner
    that knows parabolas and walls and has learnt nothing.
    """
    def predict(start, plans):
        states, _ = world.rollout(start.unflatten(-1, (-1, 4)), plans, clip_frames)
        return states[:, -1, :, :2].flatten(1)
    return latent_cost(predict, clip[:, -1].flatten(1), goal[:, -1, :, :2].flatten(1))


# Each search: its level, how it acts, and whether it is "from guess". The first three are those of
# [1]: the cross-entropy method from no force. The others start at the first guess, with a small
# deviation.
SEARCHES = {"macro open loop": ("macro", plan_once, False),
            "short open loop": ("short", plan_once, False),
            "short replanned": ("short", replan, False),
            "macro from guess": ("macro", plan_once, True),
            "short from guess": ("short", plan_once, True),
            "replanned from guess": ("short", replan, True)}
PLANNERS = ("zero", "random", "fly and fold", "first guess", *SEARCHES)
NEED_GUESS = tuple(name for name in PLANNERS if "guess" in name)
ONE_JUMP = ("macro open loop", "macro from guess")
ONE_EVENT = ("first guess", "short from guess", *ONE_JUMP)                # no farther goals


def planners_of(model, clips, event_clips):
    """-> the planners that a model has for goals `clips` clips ahead."""
    left_out = set()
    if not hasattr(model, "guess"):
        left_out.update(NEED_GUESS)
    if clips > event_clips:
        left_out.update(ONE_EVENT)
    if clips != event_clips:
        left_out.update(ONE_JUMP)
    return [name for name in PLANNERS if name not in left_out]


def best_planner(model):
    """-> the planner that reaches the most goals."""
    return "replanned from guess" if hasattr(model, "guess") else "short replanned"


@torch.no_grad()
def run_planner(name, model, world, config, clip, goal, gens, clips=None):
    """clip, goal (B, T, bodies, 4) -> states and forces, as `plan_once` and `replan` return them.

    name: one of PLANNERS.  clips: how many clips ahead the goal is (default: a macro-event).
    """
    clips = config.event_clips if clips is None else clips
    clip_frames = config.clip_frames
    observed_goal = world.observe(goal)
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)

    def guess(now, left):
        if left > config.event_clips:
            return None
        return first_guess(model, world.observe(now), observed_goal, left, world.force_limit)

    if name in ("zero", "random", "first guess"):
        drawn = [world.random_forces(1, clips, gen, clip.device) for gen in gens]
        forces = torch.cat(drawn)
        if name == "zero":
            forces = torch.zeros_like(forces)
        if name == "first guess":
            if clips > config.event_clips:
                raise ValueError(f"the first guess sees {config.event_clips} clips ahead, "
                                 f"not {clips}")
            forces = guess(clip, clips)
        states, _ = world.rollout(clip[:, -1], forces, clip_frames)
        return states, forces

    if name == "fly and fold":
        blind = without_contacts(world, clip_frames)

        def cost_to_go(now, left):
            return simulated_cost(blind, now, goal, 1)
        return replan(world, clip, clips, cost_to_go, gens, None, config.init_std, clip_frames,
                      **budget)

    level, control, from_guess = SEARCHES[name]
    make_cost = macro_cost if level == "macro" else short_cost

    def cost_to_go(now, left):
        return make_cost(model, world.observe(now), observed_goal)
    return control(world, clip, clips, cost_to_go, gens, guess if from_guess else None,
                   config.init_std, clip_frames, config.guess_std, **budget)


def try_goals(planner, model, world, config, goals, seed, device):
    """-> final errors (n, bodies), states and forces per goal (see run_planner), seconds per goal.

    One goal after the other: in a batch, rounding would depend on the other goals.
    """
    start = time.perf_counter()
    n = len(goals["clip"])
    all_states, all_forces = [], []
    for i in progress(range(n), planner, n):
        clip = goals["clip"][i:i + 1].to(device)
        goal = goals["goal"][i:i + 1].to(device)
        gens = [generator(seed, planner, i)]
        states, forces = run_planner(planner, model, world, config, clip, goal, gens,
                                     goals["forces"].shape[1])
        all_states.append(states.cpu())
        all_forces.append(forces.cpu())
    states = torch.cat(all_states)
    errors = distance(states[:, -1], goals["goal"][:, -1])
    seconds = (time.perf_counter() - start) / n
    return errors, states, torch.cat(all_forces), seconds


def success(errors):
    """Final errors (n, bodies) -> shares of goals reached by three measures, and the mean error."""
    mean = errors.mean(-1)
    worst = errors.amax(-1)
    return {"mean_body": (mean < REACHED).float().mean().item(),
            "success": (worst < REACHED).float().mean().item(),
            "strict": (worst < STRICT).float().mean().item(),
            "error": mean.mean().item()}


def bootstrap(outcomes, draws=10_000, seed=0):
    """Outcomes (n,) -> [low, high], the 95 % interval of their mean over resampled goals."""
    outcomes = np.asarray(outcomes, dtype=float)
    n = len(outcomes)
    pick = np.random.default_rng(seed).integers(0, n, (draws, n))
    means = outcomes[pick].mean(1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def spread_of(z):
    """Embeddings (N, D) by name -> dict(std_min, std_avg, rank): see LOG_COLUMNS."""
    sets = [z[name] for name in ("z1", "t1", "z2", "t2")]
    std = torch.cat([s.std(0) for s in sets])
    return {"std_min": std.min().item(), "std_avg": std.mean().item(),
            "rank": min(effective_rank(s) for s in sets)}


def validate_own(model, obs, forces):
    """`validate` for data of one's own, obs (N, K, T, F), forces (N, K - 1, A) that are held back
    -> dict: what can be known without a world."""
    z = latents(model, obs, forces)
    return {**spread_of(z), "held1": F.mse_loss(z["p1"], z["t1"]).item(),
            "held2": F.mse_loss(z["p2"], z["t2"]).item()}


def validate(model, world, config, device, goals=None, n=2048):
    """What training looks at besides its losses, on validation worlds -> dict

    With goals four numbers more, since losses can fall while planning gets worse. LOG_COLUMNS says
    what each means. Goals are tried "from guess" if the model has a first guess.
    """
    seed = config.validation_seed
    states, forces, _ = draw_sequences(world, config, 3 * n, seed, "watch", device)
    # Only the probes need all three thirds.
    used = slice(0, None) if goals else slice(2 * n, None)
    z = latents(model, world.observe(states[used]), forces[used])
    row = spread_of({name: part[-n:] for name, part in z.items()})
    for tap, name in enumerate(("order_t1", "order_t2")):
        row[name] = order_of_distances(lambda clips: model.target(world.observe(clips))[tap],
                                       states[-64:, -1], generator(seed, "order"))
    if not goals:
        return row

    position = probe_targets(states[:, -1, -1], config.masses)["position"]
    y_train, y_validation, y_test = position.split(n)
    for name in ("p1", "p2"):
        x_train, x_validation, x_test = z[name].split(n)
        weight, offset = ridge((x_train, y_train), (x_validation, y_validation))
        guess = x_test.double() @ weight + offset
        row["decode_" + name] = r2(guess, y_test.double()).mean().item()
    planners = {"replanned": "short replanned", "macro": "macro open loop"}
    if hasattr(model, "guess"):
        planners = {"replanned": "replanned from guess", "macro": "macro from guess"}
    for name, planner in planners.items():
        errors, *_ = try_goals(planner, model, world, config, goals, seed, device)
        row["goals_" + name] = success(errors)["mean_body"]
    return row


# 8. TRAINING - the loop
###################################################################################################

def learning_rate(step, total, peak, warmup):
    """Linear warm-up, over at most a fifth of the run, then a cosine from peak to zero. It depends
    on the step alone, so there is no schedule to save."""
    warmup = min(warmup, total // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def make_optimizer(model, config, device):
    """AdamW. What has one axis, biases and norms, is not decayed: to pull it to zero regularises
    nothing."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr, (0.9, config.beta2), fused=device.type != "mps")


def train_epoch(loss, model, optimizer, data, config, epoch, device, precision, rank=0, size=1):
    """One pass over the data -> each term's mean, and each term in the first step (two dicts).

    loss(obs, forces, shares) -> total, terms, of the model. data: all of these. Of each batch,
    process `rank` of `size` takes its share. Refusal if a term, or a weight in the end, is not
    finite.
    """
    steps = config.sequences // config.batch
    gen = generator(config.seed, "batches", epoch)
    batches = epoch_batches(*data, config.batch, gen, config.symmetries)
    batches = progress(batches, f"epoch {epoch + 1}/{config.epochs}", steps)
    log = []
    for i, batch in enumerate(batches):
        mine = [part.chunk(size)[rank] for part in batch]
        rate = learning_rate(epoch * steps + i, config.epochs * steps, config.lr, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast(device, precision):
            total, terms = loss(*mine)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        # .item() would wait for the device in each step.
        log.append(torch.stack([term.detach() for term in terms.values()]))

    log = torch.stack(log)                                                # (steps, terms)
    if size > 1:
        torch.distributed.all_reduce(log)
        log = log / size
    log = log.cpu()
    broken = []
    for values in log.tolist():                 # step by step: the first one is named
        broken += [name for name, value in zip(terms, values) if not math.isfinite(value)]
    # The last update can break a weight although every term was finite.
    broken += [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if broken:
        raise Refusal(f"{broken[0]} is not finite in epoch {epoch + 1}: what is saved is intact; "
                      "train anew, with a smaller --lr and another --run")
    means = dict(zip(terms, log.mean(0).tolist()))
    first_step = dict(zip(terms, log[0].tolist()))
    return means, first_step


# What the columns of the log mean. z1, z2, t1, t2, p1, p2: see the top of this file.
LOG_COLUMNS = {
    "composite": "the paper's objective: prediction, variance and covariance with their weights",
    "pred1, pred2": "mean squared errors of P1, rolled out, and of P2",
    "std_z1 ... std_t2": "variance term of an embedding: 0 if each dimension varies enough",
    "cov_z1 ... cov_t2": "covariance term of an embedding: 0 if no two dimensions say the same",
    "bridge, lift": "errors of the maps from t2, and from t1, to z2 of the same clip",
    "sim1, sim2": "how far t1, and t2, move from one clip to the next, squared",
    "guess": "mean squared error of the first guess, in forces squared",
    "std_min, std_avg": "smallest and mean deviation of a dimension; near 0: a collapse",
    "rank": "smallest effective rank of the four embeddings; a few: a collapse",
    "order_t1, order_t2": "is near in t1, t2 near in the box? Rank correlation, 1 is best",
    "decode_p1, decode_p2": "R2 of positions that are read from p1, p2; 1 is best",
    "goals_replanned": "share of validation goals reached with P1, planned again after each clip",
    "goals_macro": "the same with one jump of P2",
    "held1, held2": "with --data: errors of p1 and p2 at the last clip, on what is held back",
    "seconds": "of the epoch, with all that is measured after it",
    "first_step": "in log.jsonl, epoch 1: the composite of the first step",
}

FORMAT = 4                                      # of checkpoints: raised when it changes


def read_checkpoint(run, build=build_model):
    """Run directory or checkpoint file -> dict(format, config, model, optimizer, epoch, precision,
    history, device, torch, origin). origin: data and weights that it was begun from, if any.

    Refusal if there is none, or if it is damaged or not ours. Nothing in it is executed.
    build: as in `train`.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "last.pt"
    if not path.is_file():
        raise Refusal(f"no checkpoint at {path}: train with `python hjepa.py train --run {run}`, "
                      "or name another with --run")
    try:
        check_archive(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        check_checkpoint(saved, build)
        return saved
    except Exception as error:                  # torch.load has a dozen ways to say the same thing
        raise Refusal(f"{path} is damaged or no checkpoint of this program "
                      f"({first_line(error)}): restore a copy, or move it away and train again"
                      ) from None


def restore(saved, device="cpu", build=build_model):
    """What read_checkpoint returns -> HJEPA in eval mode on device, Config."""
    config = Config(**saved["config"])
    model = build(config)
    model.load_state_dict(saved["model"])
    return model.to(device).eval(), config


def load(run, device="cpu", build=build_model):
    """Run directory or checkpoint file -> HJEPA in eval mode on device, Config; or a Refusal.

    The encoders see scaled numbers. To embed clips of states (N, T, bodies, 4):

        z1, z2 = model.context(build_world(config).observe(states))
        t1, t2 = model.target(build_world(config).observe(states))

    A model of one's own data has model.scale.observe in the world's place. To plan with it in a
    simulator (see plan_once), in units of the data, from a clip to a goal (B, frames, F):

        def cost_to_go(now, left):
            cost = short_cost(model, model.scale.observe(now), model.scale.observe(goal))
            return lambda plans: cost(model.scale.forces(plans))

        states, actions = replan(simulator, clip, clips, cost_to_go, gens,
                                 clip_frames=config.clip_frames)

    Or without a simulator, with actions between -1 and 1:

        start = torch.zeros(len(clip), clips, config.actions)
        plan, _ = cem(cost_to_go(clip, clips), start, start + 0.6, gens, low=-1.0, high=1.0)
    """
    return restore(read_checkpoint(run, build), device, build)


def misfit(weights, model):
    """Weights by name -> what does not fit the model, in words, or None."""
    own = model.state_dict()
    for name in [*own, *weights]:
        there = tuple(weights[name].shape) if name in weights else "missing"
        here = tuple(own[name].shape) if name in own else "missing"
        if there != here:
            return f"{name} is {there} there, {here} here"
    return None


def save(model, config, path, build=build_model):
    """Write a model to one file, which `load` reads and `python hjepa.py plan --run FILE` runs.

    ValueError if it is not a model of this config. The file holds no history. To train on from it:
    `python hjepa.py train --init FILE`.
    """
    fresh = build(config)
    wrong = misfit(model.state_dict(), fresh)
    if wrong:
        raise ValueError(f"model and config do not fit: {wrong}")
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    optimizer = make_optimizer(fresh, config, torch.device("cpu"))
    content = {"format": FORMAT, "config": dataclasses.asdict(config), "model": weights,
               "optimizer": optimizer.state_dict(), "epoch": 0, "precision": "fp32", "history": [],
               "device": "", "torch": str(torch.__version__), "origin": {}}
    check_checkpoint(content, build)
    with whole_file(path) as part:
        part.write_bytes(checkpoint_bytes(content))


def refuse_other_settings(config, saved, run):
    """All settings must be those of the saved run, except device and number of test goals."""
    if saved["epoch"] == 0:
        raise Refusal(f"{run} holds weights and no run: use another --run, with --init {run}")
    old = dataclasses.asdict(Config(**saved["config"]))
    new = dataclasses.asdict(config)
    differ = []
    for name in new:
        if new[name] != old[name] and name not in ("device", "goals"):
            differ.append(f"{name} is {old[name]} there, {new[name]} here")
    if differ:
        raise Refusal(f"{run} holds a run with other settings ({'; '.join(differ)}): repeat those, "
                      "or use another --run (with --init it begins from these weights)")


def refuse_other_origin(origin, saved, run):
    """Data must be those of the saved run; so must weights to begin from, if they are given."""
    old = saved.get("origin", {})
    for kind in origin:
        if old.get(kind, {}).get("digest") != origin[kind]["digest"]:
            began = old[kind]["name"] if kind in old else "none"
            raise Refusal(f"{run} holds a run with another --{kind} ({began}): repeat that, or use "
                          "another --run; a run that is resumed needs no --init")


def begin_from(model, init, build=build_model):
    """The model takes the weights of another run or file -> dict(name, digest) of them. Refusal if
    a shape differs. Own data are scaled as they were there."""
    weights = read_checkpoint(init, build)["model"]
    wrong = misfit(weights, model)
    if wrong:
        raise Refusal(f"--init {init} does not fit ({wrong}): give the settings that `python "
                      f"hjepa.py config --run {init}` shows")
    model.load_state_dict(weights)
    return {"name": str(init), "digest": digest_of(weights.values())}


def print_row(row, head):
    """One aligned row per epoch with every term in it: a collapse must be visible early, by eye."""
    if head:
        print(" ".join(name.rjust(max(6, len(name))) for name in row))
    cells = []
    for name, value in row.items():
        digits = 3 if value < 10 else 1
        text = str(value) if name == "epoch" else f"{value:.{digits}f}"
        cells.append(text.rjust(max(6, len(name))))
    print(" ".join(cells), flush=True)


def train(config, run, objective=objective, build=build_model, draw=draw_training, data=None,
          init=None):
    """Train to the end, from where the directory `run` stands -> history, a dict per epoch, whose
    columns LOG_COLUMNS explains.

    After each epoch run/last.pt holds all that is needed to go on, run/log.jsonl the history. A
    resumed run is bitwise the run that was never stopped, on the same machine and device. Under
    torchrun several processes share each batch; rank 0 alone locks, prints, validates, writes, and
    has the whole history. The model has no dropout and no batch norm: it needs no train or eval
    mode.

    To try something else, replace a function by one with the same arguments and results: objective,
    the loss; build, the model (an HJEPA that may hold more); draw, the training sequences.
    init: run or file whose weights it begins from.  data: sequences of one's own.

        data = read_data("my.npz")
        train(Config(**own_settings(data, {"epochs": 30})), "runs/my", data=data)

    To see the log in TensorBoard:

        from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter("runs/my")
        for line in open("runs/my/log.jsonl"):
            row = json.loads(line)
            for name, value in row.items():
                writer.add_scalar(name, value, row["epoch"])
    """
    run = Path(run)
    if run.exists() and not run.is_dir():
        raise Refusal(f"--run {run} is a file: name a directory; --init {run} begins from weights")
    if (data is None) != (config.features == 0):
        raise Refusal("features and actions are of data of your own: give --data, too")
    device = pick_device(config.device)
    rank, size = process_rank_and_count()
    if size > 1 and device.type == "mps":
        raise Refusal("several processes cannot share mps: use --device cpu, or one process")
    if config.batch % size:
        raise Refusal(f"{size} processes cannot share a batch of {config.batch} evenly: change one")
    with locked(run) if rank == 0 else contextlib.nullcontext():
        # Where does the run stand?
        model = build(config)
        origin = {}
        if data is not None:
            model.scale.fit(data["observations"], data["actions"], data["pairs"])
            origin["data"] = {"name": data["name"], "digest": data["digest"]}
        if init is not None:
            origin["init"] = begin_from(model, init, build)
        model.to(device)
        optimizer = make_optimizer(model, config, device)
        precision = pick_precision(config.precision, device)
        history = []
        if (run / "last.pt").exists():
            saved = read_checkpoint(run, build)
            refuse_other_settings(config, saved, run)
            refuse_other_origin(origin, saved, run)
            origin = saved.get("origin", {})
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            for group in optimizer.param_groups:            # the file has those of its own device
                group["fused"] = device.type != "mps"
            history, precision = saved["history"], saved["precision"]
        loss, precision = make_loss(model, objective, config.loss_weights, device, precision, size)
        place = device_name(device) if size == 1 else f"{size} x {device_name(device)}"
        if rank == 0:
            parameters = sum(p.numel() for p in model.parameters()) / 1e6
            print(f"H-JEPA, {parameters:.2f} M parameters, on {place}, {precision}, in {run}\n"
                  f"{config.sequences} sequences in batches of {config.batch}, {len(history)} of "
                  f"{config.epochs} epochs done", flush=True)
            for kind, one in origin.items():
                print(f"{kind}: {one['name']}", flush=True)
        if len(history) == config.epochs:
            return history

        n = config.sequences
        goals = None
        if data is None:
            world = build_world(config)
            states, forces, shares = draw(world, config, device)
            sequences = world.observe(states), forces, shares
        else:
            obs = model.scale.observe(data["observations"].to(device))
            forces = model.scale.forces(data["actions"].to(device))
            sequences = obs[:n], forces[:n], torch.ones(n, device=device)
        if data is None and config.validate_every:
            goals = make_goals(world, config.validate_goals, config.event_clips,
                               generator(config.validation_seed, "tasks"), config.clip_frames,
                               config.start_speed)

        first_epoch = len(history)
        columns = None
        for epoch in range(first_epoch, config.epochs):
            start = time.perf_counter()
            means, first_step = train_epoch(loss, model, optimizer, sequences, config, epoch,
                                            device, precision, rank, size)
            if rank > 0:
                continue
            last = epoch + 1 == config.epochs
            due = goals is not None and (last or (epoch + 1) % config.validate_every == 0)
            if data is None:
                gauges = validate(model, world, config, device, goals if due else None)
            else:
                gauges = validate_own(model, obs[n:], forces[n:])
            row = {"epoch": epoch + 1, **means, **gauges, "seconds": time.perf_counter() - start}
            shown = row
            if epoch == 0:                      # the paper says where its composite begins
                row = {**row, "first_step": first_step["composite"]}
            history.append(row)
            save_run(run, {"format": FORMAT, "config": dataclasses.asdict(config),
                           "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                           "epoch": epoch + 1, "precision": precision, "history": history,
                           "device": place, "torch": str(torch.__version__), "origin": origin})
            print_row(shown, head=shown.keys() != columns)
            columns = shown.keys()
            if epoch == first_epoch:
                minutes = row["seconds"] * (config.epochs - epoch - 1) / 60
                print(f"about {minutes:.0f} minutes to go at this pace", flush=True)
    return history


# 9. FIGURES - the paper's curves, diagnostics and probes, and plans
###################################################################################################
# Each command reads a checkpoint once, writes NAME.json with the numbers and NAME.png with the
# picture, and says what it found.

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#4d4d4d")


def new_figure(rows, columns, width, height):
    """-> figure, axes (rows, columns). No window. The user's backend and style do not matter."""
    if "matplotlib" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"        # a notebook's would have to be installed here, too
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcdefaults()
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(out, name, figure, summary, arrays=None):
    """Writes out/NAME.json, out/NAME.npz if there are arrays, then out/NAME.png."""
    write_json(out / f"{name}.json", summary)
    if arrays:
        with whole_file(out / f"{name}.npz") as part:
            with open(part, "wb") as file:
                np.savez_compressed(file, **arrays)
    with whole_file(out / f"{name}.png") as part:
        figure.savefig(part, format="png")
    print(f"wrote {out / name}.json and .png")


def provenance(args, saved, n):
    """What every JSON begins with: what was run, where, on which seed, how much, after what."""
    return {"command": "python hjepa.py " + shlex.join(args.argv),
            "device": device_name(args.device), "torch": torch.__version__,
            "seeds": [saved["config"]["seed"]], "n": n, "epochs": saved["epoch"],
            "sequences": saved["config"]["sequences"]}


YLABELS = {"composite objective": "composite", "validation worlds": "share, R2 or deviation",
           "held-back sequences": "deviation"}


def draw_curves(args):
    """Loss curves: composite (the paper's 121 and 40 are marked), every term, goals reached."""
    saved = read_checkpoint(args.run)
    config = Config(**saved["config"])
    history = saved["history"]
    if not history:
        raise Refusal(f"{args.run} holds weights alone: it was saved without a history")
    watched = "validation worlds" if config.features == 0 else "held-back sequences"
    panels = {
        "composite objective": ["composite"],
        "prediction and maps": ["pred1", "pred2", "bridge", "lift", "held1", "held2"],
        "similarity and first guess": ["sim1", "sim2", "guess"],
        "variance": ["std_z1", "std_t1", "std_z2", "std_t2"],
        "covariance": ["cov_z1", "cov_t1", "cov_z2", "cov_t2"],
        watched: ["goals_replanned", "goals_macro", "decode_p1", "decode_p2", "std_min"],
    }
    panels = {title: [name for name in names if any(name in row for row in history)]
              for title, names in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    columns = math.ceil(len(panels) / 2)
    figure, axes = new_figure(2, columns, 4.5 * columns, 7.5)
    for ax in axes.flat[len(panels):]:
        ax.remove()
    for ax, (title, names) in zip(axes.flat, panels.items()):
        for name, colour in zip(names, COLOURS):
            measured = [row for row in history if name in row]
            epochs = [row["epoch"] for row in measured]
            marker = "." if len(measured) < 40 else ""
            ax.plot(epochs, [row[name] for row in measured], marker=marker, label=name,
                    color=colour)
        scale = "linear" if title == watched else "log"
        ax.set(title=title, xlabel="epoch", ylabel=YLABELS.get(title, "term of the loss"),
               yscale=scale)
        ax.legend(fontsize=8)
    first, last = history[0], history[-1]
    composite = axes[0, 0]
    composite.plot(0, first["first_step"], "o", color=COLOURS[0])
    composite.annotate(f"first step: {first['first_step']:.0f}", (0, first["first_step"]),
                       xytext=(8, -4), textcoords="offset points", fontsize=8)
    marks = ((121, "first"), (40, "last")) if config.features == 0 else ()
    for value, where in marks:
        composite.axhline(value, color="0.6", lw=0.8, ls=":")
        composite.annotate(f"the paper's {where}: {value}", (last["epoch"], value), ha="right",
                           xytext=(0, 3), textcoords="offset points", fontsize=8)

    print(f"composite: {first['first_step']:.1f} at the first step, {first['composite']:.1f} over "
          f"epoch 1, {last['composite']:.1f} over epoch {len(history)}"
          + ("; the paper: 121 to 40" if marks else ""))
    shown = [row for row in history if len(history) <= 10 or row is last
             or row["epoch"] in (1, 2, 5, 10, 20, 50, 100, 200, 300)]
    names = {name: None for row in history for name in row}               # in order of appearance
    arrays = {f"history/{name}": np.array([row.get(name, math.nan) for row in history])
              for name in names}
    arrays["history/epoch"] = np.array([row["epoch"] for row in history])
    summary = {**provenance(args, saved, config.sequences), "paper": [121, 40],
               "trained_on": saved["device"], "precision": saved["precision"],
               "minutes": sum(row["seconds"] for row in history) / 60,
               "config": dataclasses.asdict(config),
               "parameters": sum(p.numel() for p in build_model(config).parameters()),
               "origin": saved.get("origin", {}), "rows": shown}
    save_figure(args.out, "curves", figure, summary, arrays)


def draw_diagnostics(args):
    """Did it collapse? Deviation, correlation, spectrum and rank of z1, t1, z2, t2.

    A collapse shows as deviations near 0, as correlations far from 0, or as a spectrum of a few
    directions. Where the spectrum falls off a cliff, the embedding has no more directions: a clip
    of three bodies has 12 degrees of freedom, and however they are bent, they do not fill 256
    dimensions.
    """
    saved = read_checkpoint(args.run)
    model, config = restore(saved, args.device)
    world = build_world(config)
    states, forces, _ = draw_sequences(world, config, args.n, config.test_seed, "worlds",
                                       args.device)
    z = latents(model, world.observe(states), forces)
    titles = {"z1": "context, shallow", "t1": "target, shallow",
              "z2": "context, deep", "t2": "target, deep"}
    rows, arrays = [], {}
    figure, axes = new_figure(2, 2, 12, 9)
    deviations, correlations, spectra, matrix = axes.flat
    for (name, title), colour in zip(titles.items(), COLOURS):
        covariance = torch.cov(z[name].T)
        std = covariance.diagonal().sqrt()
        size = len(std)
        correlation = covariance / (std[:, None] * std).clamp_min(1e-12)
        off_diagonal = correlation[~torch.eye(size, dtype=torch.bool)]
        spectrum = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(1e-12)
        row = {"set": title, "dimensions": size, "std_min": std.min().item(),
               "std_mean": std.mean().item(), "std_max": std.max().item(),
               "correlation": off_diagonal.abs().mean().item(), "rank": effective_rank(z[name])}
        rows.append(row)
        arrays[f"std/{title}"] = std.numpy()
        arrays[f"spectrum/{title}"] = spectrum.numpy()
        print(f"{title}: deviation {row['std_min']:.2f} to {row['std_max']:.2f}, mean "
              f"|correlation| {row['correlation']:.3f}, effective rank {row['rank']:.0f} of {size}")

        numbers = range(1, size + 1)
        deviations.plot(numbers, std.sort().values, color=colour, label=title)
        correlations.hist(off_diagonal.numpy(), bins=np.linspace(-0.5, 0.5, 101), density=True,
                          histtype="step", color=colour, label=f"{title}: {row['correlation']:.3f}")
        spectra.semilogy(numbers, spectrum, color=colour, label=f"{title}: {row['rank']:.0f}")
        if name == "t2":
            image = matrix.imshow(covariance, cmap="RdBu_r", vmin=-1, vmax=1)
            figure.colorbar(image, ax=matrix)
    deviations.axhline(1, color="0.6", lw=0.8, ls=":")
    deviations.set(title="standard deviation of each dimension; the loss asks for 1",
                   xlabel="dimension, sorted", ylim=(0, None))
    correlations.set(title="correlation of two dimensions; mean of |correlation|",
                     xlabel="correlation", ylabel="density")
    spectra.set(title="spectrum of the covariance; effective rank", xlabel="direction, sorted",
                ylabel="variance")
    matrix.set(title="covariance of the deep target", xlabel="dimension", ylabel="dimension")
    for ax in (deviations, correlations, spectra):
        ax.legend(fontsize=8)

    summary = {**provenance(args, saved, args.n), "rows": rows}
    save_figure(args.out, "diagnose", figure, summary, arrays)


def draw_decoded_positions(ax, guess, true, score):
    """Decoded against true x and y, (N, 2 bodies) each: one colour a body, at most 800 worlds."""
    bodies = zip(guess[:800].split(2, 1), true[:800].split(2, 1))
    for i, (body_guess, body_true) in enumerate(bodies):
        ax.plot(body_true, body_guess, ".", ms=2, color=COLOURS[i % len(COLOURS)])
    ax.set(title=f"position from the shallow tap, R2 {score:.4f}",
           xlabel="true x and y, one colour a body", ylabel="decoded")


def draw_probes(args):
    """Linear probes of both taps; the raw clip and the untrained encoder are the controls.

    Position and velocity are in the observation, so decoding them is a sanity check. Kinetic energy
    and pair distance cannot be read linearly from the raw clip.
    """
    saved = read_checkpoint(args.run)
    model, config = restore(saved, args.device)
    untrained = build_model(config).to(args.device).eval()
    world = build_world(config)
    splits = []
    for seed, n in ((config.seed, 2 * args.n), (config.validation_seed, args.n),
                    (config.test_seed, args.n)):
        states, forces, _ = draw_sequences(world, config, n, seed, "probe", args.device)
        obs = world.observe(states)
        z = latents(model, obs, forces)
        start = latents(untrained, obs, forces)
        sources = {"shallow tap": z["z1"], "deep tap": z["z2"],
                   "raw clip": obs[:, 0].flatten(1).cpu(),
                   "untrained shallow tap": start["z1"], "untrained deep tap": start["z2"]}
        splits.append((sources, probe_targets(states[:, 0, -1], config.masses)))
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = splits

    figure, axes = new_figure(1, 2, 14, 4.6)
    rows = []
    for i, source in enumerate(progress(x_train, "probe", len(x_train))):
        scores = {}
        for target in y_train:
            weight, offset = ridge((x_train[source], y_train[target]),
                                   (x_validation[source], y_validation[target]))
            guess = x_test[source].double() @ weight + offset
            score = r2(guess, y_test[target].double())
            scores[target] = score.mean().item()
            rows.append({"source": source, "target": target, "r2": scores[target],
                         "r2_min": score.min().item()})
            if source == "shallow tap" and target == "position":
                draw_decoded_positions(axes[0, 0], guess, y_test[target], scores[target])
        places = np.arange(len(scores)) + 0.16 * (i - 2)
        heights = np.clip(list(scores.values()), 0, 1)
        axes[0, 1].bar(places, heights, 0.15, color=COLOURS[i], label=source)
        said = ", ".join(f"{target} R2 {score:.4f}" for target, score in scores.items())
        print(f"{source:>21}: {said}")
    axes[0, 1].set(title="linear probes on test worlds (below 0: drawn as 0)", ylabel="R2")
    axes[0, 1].set_xticks(range(len(y_train)), list(y_train))
    axes[0, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(args.out, "probe", figure, {**provenance(args, saved, args.n), "rows": rows})


def draw_frame(ax, world, path, goal, force=None):
    """path (T, bodies, 4), goal (bodies, 4), force (A,): bodies filled, goals dashed, forces as
    arrows. The way of a body begins with a ring. Numpy arrays."""
    from matplotlib.patches import Circle
    ax.clear()
    ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    ax.set(xticks=[], yticks=[])
    for body, radius in enumerate(world.radii):
        colour = COLOURS[body % len(COLOURS)]
        here = path[-1, body, :2]
        ax.add_patch(Circle(here, radius, color=colour, alpha=0.85))
        there = goal[body, :2]
        ax.add_patch(Circle(there, radius, fill=False, ec=colour, lw=1.6, ls="--"))
        ax.plot(path[:, body, 0], path[:, body, 1], lw=1, color=colour)
        ax.plot(path[0, body, 0], path[0, body, 1], "o", ms=4, mfc="white", color=colour)
        if force is not None:
            push = force[2 * body:2 * body + 2]
            ax.annotate("", here + 0.12 * push, here, arrowprops={"arrowstyle": "->"})


def picture_of_plans(world, flights, goal, rows, horizons):
    """-> figure: where planners end in one episode, and who reaches how many goals.

    flights: name -> states (T, bodies, 4). goal (bodies, 4). A panel for each, then for each of the
    horizons, in frames.
    """
    panels = len(flights) + len(horizons)
    figure, axes = new_figure(1, panels, 4.25 * panels, 4.2)
    for ax, (planner, states) in zip(axes[0], flights.items()):
        draw_frame(ax, world, states, goal)
        gap = np.linalg.norm(states[-1, :, :2] - goal[:, :2], axis=-1)
        ax.set(title=f"{planner}\nfarthest body {gap.max():.3f} away")
    for ax, frames in zip(axes[0, len(flights):], horizons):
        mine = [row for row in rows if row["frames"] == frames]
        for i, row in enumerate(mine):
            low, high = row["success_ci"]
            share = row["success"]
            whiskers = [[share - low], [high - share]]
            ax.barh(i, share, color=COLOURS[0], ecolor="0.4", xerr=whiskers)
        ax.set_yticks(range(len(mine)), [row["planner"] for row in mine])
        ax.set(title=f"{frames} frames ahead\nworst body within {REACHED}", xlim=(0, 1))
        ax.invert_yaxis()
    return figure


def save_gif(path, world, states, goal, forces, clip_frames, title):
    """An episode, states (T, bodies, 4), goal (bodies, 4), forces (K, A), in slow motion. The last
    frame stays for a second."""
    from matplotlib.animation import PillowWriter
    figure, axes = new_figure(1, 1, 4, 4.4)
    frames_a_second = 12
    writer = PillowWriter(fps=frames_a_second)
    with whole_file(path) as part:
        writer.setup(figure, part, dpi=90)
        for t in range(len(states)):
            draw_frame(axes[0, 0], world, states[:t + 1], goal, forces[t // clip_frames])
            axes[0, 0].set(title=f"{title}, frame {t + 1} of {len(states)}")
            writer.grab_frame()
        for _ in range(frames_a_second):
            writer.grab_frame()
        writer.finish()


# Settings of a run that `plan` can change.
PLAN_FLAGS = ("goals", "samples", "iterations", "elites", "guess_std")
PLAN_COLUMNS = {"mean_body": "mean body", "success": "worst body", "strict": "strict",
                "matters": "contact matters"}


def try_planners(model, world, config, goals, frames, device):
    """All planners on these goals, a printed line each -> planner -> row of the table, errors
    (n, bodies), states and forces per goal."""
    n = len(goals["clip"])
    clips = goals["forces"].shape[1]
    planners = planners_of(model, clips, config.event_clips)
    first = {key: values[:1] for key, values in goals.items()}
    seconds = sum(try_goals(planner, model, world, config, first, config.test_seed, device)[3]
                  for planner in planners)
    matters = goals["matters"]
    titles = "  ".join(PLAN_COLUMNS.values())
    print(f"\n{frames} frames ahead, about {max(1, round(seconds * n / 60))} minutes; in "
          f"{int(matters.sum())} of {n} a contact matters\n{'planner':>20}  {titles}  error",
          flush=True)
    found = {}
    for planner in planners:
        errors, states, forces, seconds = try_goals(planner, model, world, config, goals,
                                                    config.test_seed, device)
        worst = errors.amax(-1)
        row = {"planner": planner, "frames": frames, **success(errors), "seconds": seconds,
               "mean_body_ci": bootstrap(errors.mean(-1) < REACHED),
               "success_ci": bootstrap(worst < REACHED)}
        if matters.any():
            row["matters"] = (worst[matters] < REACHED).float().mean().item()
            row["matters_ci"] = bootstrap(worst[matters] < REACHED)
        found[planner] = row, errors, states, forces
        shares = "  ".join(f"{row[key]:{len(title)}.1%}" if key in row else " " * len(title)
                           for key, title in PLAN_COLUMNS.items())
        print(f"{planner:>20}  {shares}  {row['error']:.3f}", flush=True)
    return found


def first_of(*wanted):
    """Bools (n,), the best first -> number of the first goal of the first that has one, or 0."""
    for who in wanted:
        if who.any():
            return int(who.int().argmax())
    return 0


def own_state(flag, values, world):
    """Numbers behind --goal or --start: x y, or x y vx vy, of each body -> state (1, bodies, 4)."""
    bodies = len(world.masses)
    if len(values) not in (2 * bodies, 4 * bodies):
        raise Refusal(f"{flag} has {len(values)} numbers: give x y of each of {bodies} bodies, or "
                      "x y vx vy of each")
    state = torch.zeros(1, bodies, 4)
    numbers = torch.tensor(values).reshape(1, bodies, -1)
    state[..., :numbers.shape[-1]] = numbers
    try:
        world.check(state)
    except ValueError as error:
        raise Refusal(f"{flag}: {error}") from None
    return state


def enough_frames(world, config, start, goal, spare=1.4):
    """start, goal (1, bodies, 4) -> frames for the way of the slowest body, at least three
    macro-events.

    A body of mass m that is pushed by F half of the way and held back by F on the other half goes d
    in 2 sqrt(m d / F) seconds. spare: times as many, for velocities and for ways round the others.
    In too short a time all goals are missed, not one: the plans' ends are all far from the goal,
    and far away the embedding's distance does not say which is nearer.
    """
    away = (goal - start)[0, :, :2].abs().amax(-1)
    seconds = 2 * (torch.tensor(world.masses) * away / world.force_limit).sqrt().max().item()
    clips = math.ceil(spare * seconds / (world.dt * config.clip_frames))
    return config.clip_frames * max(clips, 3 * config.event_clips)


def fly_to_goal(args, model, world, config, summary):
    """`plan --goal`: one flight, from --start or a test world, to a goal of one's own."""
    if args.frames and len(args.frames) > 1:
        raise Refusal("--goal has one flight: give one number of --frames")
    goal = own_state("--goal", args.goal, world)
    if args.start is None:
        start = world.reset(1, generator(config.test_seed, "own start"), config.start_speed)
    else:
        start = own_state("--start", args.start, world)
    frames = args.frames[0] if args.frames else enough_frames(world, config, start, goal)
    planner = best_planner(model)
    clip = goal_clip(world, start, config.clip_frames).to(args.device)
    target = goal_clip(world, goal, config.clip_frames).to(args.device)
    states, forces = run_planner(planner, model, world, config, clip, target,
                                 [generator(config.test_seed, "own goal")],
                                 frames // config.clip_frames)
    states, forces = states[0].cpu(), forces[0].cpu()

    errors = distance(states[-1], goal[0])
    speed = states[-1, :, 2:].norm(dim=-1)
    print(f"{planner}, {frames} frames; a force acts for {config.clip_frames} frames\n"
          "frame  force on each body (x, y)")
    for i, force in enumerate(forces.tolist()):
        pairs = "  ".join(f"({x:5.2f}, {y:5.2f})" for x, y in zip(force[::2], force[1::2]))
        print(f"{i * config.clip_frames:5}  {pairs}")
    for body, (gap, fast) in enumerate(zip(errors.tolist(), speed.tolist())):
        print(f"body {body} ends {gap:.3f} from its goal, at speed {fast:.3f}")
    if errors.max() < REACHED:
        print(f"reached: every body within {REACHED}")
    else:
        print(f"not reached: a body is {REACHED} away or more; give it more --frames or --samples")

    summary.update(n=1, planner=planner, frames=frames, clip_frames=config.clip_frames,
                   start=start[0].tolist(), goal=goal[0].tolist(), forces=forces.tolist(),
                   states=states.tolist(), errors=errors.tolist())
    path = torch.cat([start, states]).numpy()
    figure, axes = new_figure(1, 1, 4.5, 4.5)
    draw_frame(axes[0, 0], world, path, goal[0].numpy())
    axes[0, 0].set(title=f"farthest body {errors.max():.3f} from its goal")
    save_figure(args.out, "goal", figure, summary)
    save_gif(args.out / "goal.gif", world, states.numpy(), goal[0].numpy(), forces.numpy(),
             config.clip_frames, "your goal")
    print(f"wrote {args.out / 'goal.gif'}")


def draw_plans(args):
    """CEM towards goals in test worlds: who arrives how often. With --goal, to a goal of yours."""
    saved = read_checkpoint(args.run)
    model, config = restore(saved, args.device)
    if not 0 <= args.seed < 10**6:
        raise Refusal(f"--seed is {args.seed}: give a whole number from 0 to 999999")
    given = {name: getattr(args, name) for name in PLAN_FLAGS if getattr(args, name) is not None}
    config = dataclasses.replace(config, **given, test_seed=config.test_seed + args.seed)
    event = config.event_clips * config.clip_frames
    for frames in args.frames or ():
        if frames % config.clip_frames or not config.clip_frames <= frames <= 40 * event:
            raise Refusal(f"--frames {frames}: give multiples of {config.clip_frames}, at most "
                          f"{40 * event}")
    summary = {**provenance(args, saved, config.goals), "precision": "fp32",
               "test_seed": config.test_seed}
    for name in PLAN_FLAGS:
        summary[name] = getattr(config, name)
    world = build_world(config)
    if args.goal is not None:
        fly_to_goal(args, model, world, config, summary)
        return
    if args.start is not None:
        raise Refusal("--start needs --goal: where are the bodies to fly?")

    horizons = sorted(set(args.frames or [event]))
    print(f"{config.goals} test goals; CEM {config.samples} x {config.iterations} with "
          f"{config.elites} elites; reached: within {REACHED}, strict: worst body within {STRICT}")
    rows, lists, arrays, episodes = [], [], {}, {}
    for frames in horizons:
        # The goals one macro-event ahead have number 0.
        gen = generator(config.test_seed, "tasks", 0 if frames == event else frames)
        goals = make_goals(world, config.goals, frames // config.clip_frames, gen,
                           config.clip_frames, config.start_speed)
        lists.append({"frames": frames, "n_contact": int(goals["contact"].sum()),
                      "n_matters": int(goals["matters"].sum())})
        arrays[f"contact/{frames}"] = goals["contact"].numpy()
        arrays[f"matters/{frames}"] = goals["matters"].numpy()
        found = try_planners(model, world, config, goals, frames, args.device)
        for planner, (row, errors, states, forces) in found.items():
            rows.append(row)
            arrays[f"errors/{planner}/{frames}"] = errors.numpy()
            if frames == horizons[0]:
                episodes[planner] = errors, states.numpy(), forces.numpy()
        if frames == horizons[0]:
            first_goals = goals

    # The pictures show the first goal that is reached and where a contact matters.
    planner = best_planner(model)
    errors, states, forces = episodes[planner]
    reached = errors.amax(-1) < REACHED
    number = first_of(first_goals["matters"] & reached, first_goals["contact"] & reached, reached)
    goal = first_goals["goal"][number, -1].numpy()
    names = [name for name in ("zero", "macro open loop", "first guess", planner)
             if name in episodes]
    flights = {name: episodes[name][1][number] for name in names}
    figure = picture_of_plans(world, flights, goal, rows, horizons)
    # frames: how far ahead the goal of the pictures is.
    summary.update(frames=horizons[0], lists=lists, episode=number, rows=rows)
    save_figure(args.out, "plan", figure, summary, arrays)
    save_gif(args.out / "plan.gif", world, states[number], goal, forces[number],
             config.clip_frames, f"{planner}, {saved['epoch']} epochs\ngoal {number}")
    print(f"wrote {args.out / 'plan.gif'}: goal {number} dashed, forces as arrows, {planner}")


# 10. COMMAND LINE - subcommands and errors
###################################################################################################

COMMANDS = {"curves": draw_curves, "diagnose": draw_diagnostics, "probe": draw_probes,
            "plan": draw_plans}


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line."""

    def error(self, message):
        raise Refusal(f"{message} (see `python {self.prog} --help`)")


def default_out(run):
    """Where figures of a run go unless --out is given: into the run's own folder. For a checkpoint
    file NAME.pt, runs/NAME/figures."""
    run = Path(run)
    if run.suffix == ".pt":
        return Path("runs") / run.stem / "figures"
    return run / "figures"


def trained_or_shipped():
    """-> runs/paper, or the weights beside this file if nothing is trained there."""
    trained = Path("runs/paper")
    shipped = Path(__file__).parent / "figures" / "weights" / "hjepa.pt"
    if (trained / "last.pt").exists() or not shipped.exists():
        return trained
    print(f"runs/paper holds no checkpoint: these are the shipped weights, {shipped}")
    return shipped


# The groups of settings in --help, and the field of Config that each begins with.
GROUPS = {"masses": "world", "sequences": "data", "latent": "model", "pred_weight": "loss",
          "epochs": "optimiser", "samples": "planner", "validate_every": "run"}
SETTINGS_HELP = """
[source: value] is where a value comes from, and the default: "paper", the abstract of Patil 2026;
"vicreg", VICReg; "design", fixed before training; "tuned", chosen on validation worlds."""


def wrapped(names):
    """Name -> meaning as lines for --help."""
    return "\n".join(f"  {name:<20} {meaning}" for name, meaning in names.items())


def add_setting(parser, field):
    """One field of Config as a flag. A flag that is not given is absent from the result."""
    flag = "--" + field.name.replace("_", "-")
    text = f"{field.metadata['meaning']} [{field.metadata['source']}: {field.default}]"
    kind = {"type": field.type, "choices": field.metadata["choices"]}
    if field.type is bool:
        kind = {"action": argparse.BooleanOptionalAction}
    if field.type is tuple:
        kind = {"type": float, "nargs": "+"}
    parser.add_argument(flag, default=argparse.SUPPRESS, help=text, **kind)


def make_parser():
    """-> the parser of `python hjepa.py`."""
    examples = [line for line in __doc__.splitlines() if line.startswith("    python hjepa.py")]
    parser = Parser(prog="hjepa.py", allow_abbrev=False, description=__doc__.splitlines()[0],
                    epilog="examples:\n" + "\n".join(examples),
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in (("train", "train, or go on if the run directory holds a checkpoint"),
                       ("config", "print what would run, or what --run ran with, and where each "
                        "value comes from")):
        log = f"columns of the log:\n{wrapped(LOG_COLUMNS)}" if name == "train" else ""
        sub = commands.add_parser(name, help=text, description=text + "\n" + SETTINGS_HELP,
                                  epilog=log, allow_abbrev=False,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("--preset", choices=PRESETS, default="paper", help="default: paper")
        sub.add_argument("--run", type=Path, help="run directory (default: runs/PRESET, or "
                         "runs/NAME for --data NAME.npz)")
        if name == "train":
            sub.add_argument("--init", type=Path, default=argparse.SUPPRESS, metavar="RUN_OR_FILE",
                             help="begin a new run from the weights of another one, or of a file")
            sub.add_argument("--data", type=Path, default=argparse.SUPPRESS, metavar="FILE.npz",
                             help="train on sequences of your own: float arrays observations (N, "
                             "clips, frames, F) and actions (N, clips - 1, A), scaled here; and "
                             "pairs = True if all numbers come as (x, y) pairs, for symmetries")
        for field in dataclasses.fields(Config):
            if field.name in GROUPS:
                group = sub.add_argument_group(GROUPS[field.name])
            add_setting(group, field)
    for name, function in COMMANDS.items():
        text = function.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--run", type=Path, help="run directory or checkpoint file (default: "
                         "runs/paper, or the shipped weights if nothing is trained there)")
        sub.add_argument("--out", type=Path, help="where figures go (default: figures in the run's "
                         "directory, or runs/NAME/figures for a file NAME.pt)")
        sub.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
        if name in ("diagnose", "probe"):
            sub.add_argument("--n", type=int, default=4096, help="test sequences to encode (4096)")
        if name == "plan":
            kinds = {field.name: field.type for field in dataclasses.fields(Config)}
            for name in PLAN_FLAGS:
                sub.add_argument("--" + name.replace("_", "-"), type=kinds[name],
                                 help="default: as in the run's settings")
            sub.add_argument("--frames", type=int, nargs="+",
                             help="how far ahead goals are, one or more (default: a macro-event, "
                             "25; with --goal enough for the heaviest body)")
            sub.add_argument("--seed", type=int, default=0,
                             help="another number: other test worlds (default: 0)")
            sub.add_argument("--goal", type=float, nargs="+", metavar="NUMBER",
                             help="a goal of yours: x y of each body, from -1 to 1, at rest; or "
                             "x y vx vy of each")
            sub.add_argument("--start", type=float, nargs="+", metavar="NUMBER",
                             help="with --goal: where bodies are now, as there (default: a test "
                             "world)")
    return parser


def show_config(config, sources):
    """`config`: each setting, its value, where that comes from, what it means. sources: of those
    that are no defaults."""
    for field in dataclasses.fields(Config):
        source = sources.get(field.name, f"default, {field.metadata['source']}")
        value = str(getattr(config, field.name))
        print(f"{field.name:>16} = {value:<15} {source:<15} {field.metadata['meaning']}")


def show_run(run, given):
    """`config --run`: the settings that a run was trained with. Nothing else can be given."""
    if given:
        raise Refusal(f"--run shows the settings of {run}: leave {given[0]} out")
    saved = read_checkpoint(run)
    config = Config(**saved["config"])
    default = Config()
    differ = [name for name in saved["config"] if getattr(config, name) != getattr(default, name)]
    show_config(config, dict.fromkeys(differ, "this run"))
    print(f"{saved['epoch']} epochs done")
    for kind, one in saved.get("origin", {}).items():
        print(f"{kind}: {one['name']}")


def run_command(argv):
    """Does what the command line says. Refusal, ValueError, OSError or MemoryError if it cannot."""
    if "" in argv:                              # as in --run "$UNSET"
        raise Refusal("an argument is empty: give a value, or leave the flag out")
    known, unknown = make_parser().parse_known_args(argv)
    flags = vars(known)
    command = flags.pop("command")
    run = flags.pop("run")
    if unknown:
        raise Refusal(f"{command} knows no {unknown[0]} (see `python hjepa.py {command} --help`)")
    if command in COMMANDS:
        run = run or trained_or_shipped()
        flags["device"] = pick_device(flags["device"])
        flags["out"] = flags["out"] or default_out(run)
        try_out(flags["out"])
        COMMANDS[command](argparse.Namespace(run=run, argv=argv, **flags))
        return
    preset = flags.pop("preset")
    data, init = flags.pop("data", None), flags.pop("init", None)
    if command == "config" and run is not None:
        show_run(run, [word for word in argv[1:] if word.startswith("--") and
                       not word.startswith("--run")])
        return
    sources = {**dict.fromkeys(PRESETS[preset], f"preset {preset}"), **dict.fromkeys(flags, "flag")}
    place = Path("runs") / preset
    if data is not None:
        place = Path("runs") / data.stem
        data = read_data(data)
        flags = own_settings(data, flags)
    config = Config(**{**PRESETS[preset], **flags})
    if command == "config":
        show_config(config, sources)
    else:
        train(config, run or place, data=data, init=init)


def main(argv=None):
    """-> exit code: 0 done, 2 something to mend (one line says what), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        run_command(argv)
    except Exception as error:
        line = mistake(error)
        if line is None:                        # a bug of ours: it keeps its traceback
            raise
        print(f"hjepa: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhjepa: stopped; go on with python hjepa.py", shlex.join(argv), file=sys.stderr)
        return 130
    return 0


# APPENDIX - what makes a run survive
###################################################################################################
# Devices, precision, files that are whole or absent, one writer per run, damaged checkpoints,
# several processes. Nothing here is about world models.

def mistake(error):
    """An exception -> one line that says what the person at the terminal can mend, or None."""
    if isinstance(error, OSError):
        return f"{first_line(error)}: mend that, or choose another --run or --out"
    # On a cpu and on mps torch raises a plain RuntimeError when memory is short.
    text = str(error).lower()
    full = any(words in text for words in ("out of memory", "allocate memory", "enough memory"))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
            isinstance(error, RuntimeError) and full):
        return "out of memory: use fewer --samples, a smaller --n or --batch"
    if isinstance(error, (Refusal, ValueError)):
        return first_line(error)
    return None


def first_line(error, width=200):
    """The first line of an error's text; its type if there is none."""
    lines = str(error).splitlines()
    if lines and lines[0]:
        return lines[0][:width]
    return type(error).__name__


def progress(items, label, total):
    """Yields items and draws `label ######...... 12/48 31 s left`; silent where no terminal is."""
    rank, _ = process_rank_and_count()
    if rank > 0 or not sys.stderr.isatty():
        yield from items
        return
    start = time.perf_counter()
    for i, item in enumerate(items):
        left = ""
        if i > 0:
            seconds = (time.perf_counter() - start) / i * (total - i)
            left = f"{seconds:.0f} s left"
        done = 24 * i // total
        bar = "#" * done + "." * (24 - done)
        sys.stderr.write(f"\r{label} {bar} {i}/{total} {left}\033[K")
        sys.stderr.flush()
        yield item
    sys.stderr.write("\r\033[K")


def pick_device(name):
    """'auto' -> cuda, else mps, else cpu. Another name must be available, or it is refused."""
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        name = available[0]
    if name not in available:
        raise Refusal(f"device {name} is not available here: use --device {available[0]}")
    if name == "cuda":
        return torch.device("cuda", whole_number("LOCAL_RANK", 0))
    return torch.device(name)


def pick_precision(name, device):
    """Of matrix products in training. 'auto' -> bf16 on cuda, fp32 on mps, and on a cpu whatever a
    short measurement finds: bf16 is far faster on some processors, slower on others."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16"
    if device.type == "mps":
        return "fp32"

    def seconds(dtype):
        x = torch.ones(4096, 128, dtype=dtype)
        weight = torch.ones(512, 128, dtype=dtype)
        times = timeit.repeat(lambda: F.linear(x, weight), number=1, repeat=30)
        return min(times)                       # other work on the machine only ever adds time
    return "bf16" if seconds(torch.float32) > 1.3 * seconds(torch.bfloat16) else "fp32"


def autocast(device, precision):
    """The context in which matrix products run in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def device_name(device):
    """What a timing was taken on: 'cpu, x86_64, 2 threads' and the like."""
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    return f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"


def refuse_too_many(n, size):
    """Refusal if n sequences are too few, or their `size` in bytes is more than the memory."""
    memory = math.inf
    if hasattr(os, "sysconf"):                  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n < 2:
        raise Refusal(f"n is {n} sequences: statistics need 2 or more")
    if size > memory:
        raise Refusal(f"n is {n} sequences: they need {size / 2**30:.0f} GiB of memory, and "
                      f"{memory / 2**30:.0f} are there")


def try_out(folder):
    """OSError if no file can be written to the folder: better now than after an hour of work.
    Nothing is left behind."""
    made = []
    for place in [folder, *folder.parents]:
        if place.exists():
            break
        made.append(place)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(folder / ".try") as part:
            part.write_bytes(b"")
        (folder / ".try").unlink()
    finally:
        for place in made:
            place.rmdir()


@contextlib.contextmanager
def whole_file(path):
    """with whole_file(path) as part: write part. When it is whole it takes the name `path`. Until
    then, and for good if anything fails, the old file stays."""
    path = Path(path)
    part = path.with_name(".part." + path.name)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        # The content must be on the disk before the name changes. Windows asks for "+".
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def rounded(content):
    """Dicts, lists and numbers -> the same, floats cut to 6 significant digits: readable, and small
    in a diff."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [rounded(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}")
    return content


def write_json(path, content):
    """Whole or not at all. ValueError for NaN and infinity."""
    text = json.dumps(rounded(content), indent=1, allow_nan=False)
    with whole_file(path) as part:
        part.write_text(text + "\n")


def checkpoint_bytes(content):
    """What read_checkpoint returns -> the bytes of the file."""
    whole = io.BytesIO()                        # torch.save to a full disk raises no OSError
    torch.save(content, whole)
    return whole.getbuffer()


def digest_of(tensors):
    """-> a hex digest of the numbers: it tells these data, or these weights, from others."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def save_run(run, content):
    """Writes run/last.pt and run/log.jsonl. Both are fully written, and the checkpoint is read
    back, before either is renamed."""
    whole = checkpoint_bytes(content)
    lines = [json.dumps(row) + "\n" for row in content["history"]]
    with whole_file(run / "last.pt") as part, whole_file(run / "log.jsonl") as log:
        part.write_bytes(whole)
        torch.load(part, map_location="cpu", weights_only=True)
        log.write_text("".join(lines))


@contextlib.contextmanager
def locked(run):
    """One writer per run directory. The system frees the lock when its holder ends, in any way."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a+") as file:
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Refusal(f"{run} is being trained by process {file.read().strip()}: wait for it, "
                          "or use another --run") from None
        except (ImportError, OSError):          # Windows; file systems of some clusters
            print("no file locks here: see to it yourself that one process writes to "
                  f"{run}", file=sys.stderr)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield


def check_archive(path):
    """ValueError if a checksum is wrong. torch.load does not look: it reads flipped bits."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("a checksum is wrong")


def check_checkpoint(saved, build=build_model):
    """An exception unless all parts of a checkpoint are there and fit together.

    The model is built on the "meta" device, which holds shapes only: a forged file may claim any
    size. AdamW's moments are compared by hand: the optimizer accepts any shape, and would then read
    outside of its memory.
    """
    if saved["format"] != FORMAT:
        raise ValueError(f"format {saved['format']}, this program reads {FORMAT}")
    config = Config(**saved["config"])
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(dict(saved["model"]), assign=True)
    if not all(part.isfinite().all() for part in model.state_dict().values()):
        raise ValueError("a weight is not finite")
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    optimizer.load_state_dict(saved["optimizer"])
    for p, state in optimizer.state.items():
        if [value.shape for value in state.values()] != [(), p.shape, p.shape]:
            raise ValueError("the optimizer's state does not fit")
    rows = saved["history"]
    if [row["epoch"] for row in rows] != list(range(1, saved["epoch"] + 1)):
        raise ValueError("the history does not fit")
    first_step = rows[0]["first_step"] if rows else 0.0                   # `save` has no history
    for part in (saved["precision"], saved["device"], first_step):
        if part is None:
            raise ValueError("parts are missing")
    for one in saved.get("origin", {}).values():
        if not isinstance(one["name"] + one["digest"], str):
            raise ValueError("the origin does not fit")


def process_rank_and_count():
    """-> rank, size: which of how many processes this is. torchrun says it in the environment."""
    size = whole_number("WORLD_SIZE", 1)
    rank = whole_number("RANK", 0)
    if not 0 <= rank < size:
        raise Refusal(f"RANK is {rank} and WORLD_SIZE is {size}: start several processes with "
                      "torchrun, or unset both")
    return rank, size


def whole_number(name, default):
    """An environment variable -> its value, a whole number >= 0; the default if it is not set."""
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise Refusal(f"the environment variable {name} is {text!r}: give a whole number, or unset "
                      "it")
    return int(text)


def gather_samples(z):
    """(..., n, D) in each process -> (..., N, D), the samples of all, with gradient to each.

    Every process computes the loss of all N samples, so gradients arrive `size` times.
    DistributedDataParallel divides by `size`, and the result is right.
    """
    return torch.cat(torch.distributed.nn.functional.all_gather(z.contiguous()), -2)


class Learner(nn.Module):
    """obs, forces, shares -> total, terms: the objective as a module. DistributedDataParallel
    averages the gradients of what goes through a module's forward."""

    def __init__(self, model, objective, weights):
        super().__init__()
        self.model = model
        self.objective = objective
        self.weights = weights

    def forward(self, obs, forces, shares):
        return self.objective(self.model, obs, forces, self.weights, shares, gather=gather_samples)


def make_loss(model, objective, weights, device, precision, size):
    """-> loss(obs, forces, shares) for train_epoch, shared by `size` processes; and the precision
    of rank 0, which all must use."""
    if size == 1:
        def loss(obs, forces, shares):
            return objective(model, obs, forces, weights, shares)
        return loss, precision
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise Refusal(f"{size} processes need {name}: start them with torchrun")
    print(f"waiting for {size} processes", file=sys.stderr, flush=True)
    torch.distributed.init_process_group()
    box = [precision]
    torch.distributed.broadcast_object_list(box, device=device)
    # Maps or first guess without a weight get no gradient: they must be looked for in each step.
    idle_maps = weights["map"] == 0
    idle_guess = hasattr(model, "guess") and weights["guess"] == 0
    learner = nn.parallel.DistributedDataParallel(
        Learner(model, objective, weights),
        find_unused_parameters=idle_maps or idle_guess)
    return learner, box[0]


if __name__ == "__main__":
    sys.exit(main())
