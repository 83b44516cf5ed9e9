r"""H-JEPA in one file: a world model that predicts in representation space at two time scales.

Three discs of different mass fly, collide and bounce in a box; forces push them. Two encoders look
at clips of five frames. Two predictors say what the next clip (short) and the clip 25 frames later
(macro) will look like *to the encoder*. VICReg keeps the encoders from answering "nothing ever
changes". Nothing is reconstructed, no reward is given, no target network is averaged. Then the
weights are frozen, and the cross-entropy method searches forces whose predicted embedding equals
the embedding of a goal.

    python hjepa.py train --preset smoke     # under a minute: does everything, learns little
    python hjepa.py train --preset quick     # minutes on two CPU cores: a planner that works
    python hjepa.py train                    # the paper's 300 epochs; the same command resumes
    torchrun --nproc_per_node=2 -- hjepa.py train       # the same on two GPUs, or two CPU cores
    python hjepa.py curves --run runs/quick --out figures/quick    # also diagnose, probe, plan
    python hjepa.py config --preset quick    # what would run, and where each value comes from

Read it top to bottom. Sections 1-8 are pure: each class and function takes all it needs as
arguments and may be copied into another project. Sections 9-13 touch disk, clock and command line.

CONTENTS
    1. CONFIG - every number that can be changed, and where it comes from
    2. WORLD - what there is to be predicted
    3. DATA - what the model gets to see
    4. ENCODERS - from a clip to two embeddings, a shallow and a deep one
    5. PREDICTORS - what happens next, given the forces
    6. MODEL - two encoders, two predictors and two small maps put together
    7. LOSS - why the embeddings do not collapse
    8. PLANNER - forces that lead to a goal, found in the embedding
    9. PLUMBING - randomness, devices, files
   10. TRAINING - the loop
   11. MEASUREMENT - what is in the embeddings, and do plans work
   12. FIGURES - the paper's curves, diagnostics, probes and plans
   13. COMMAND LINE - subcommands and errors

DIMENSIONS  N, B worlds, samples, tasks    S plans    K clips, or forces: one is held per clip
            T frames in a clip     F numbers observed per frame (4 per body)
            D embedding            A numbers in a force (2 per body)
TIME        clip:    0     1     2     3     4     5       a macro-event is 5 clips, 25 frames
            force:      0     1     2     3     4          force k acts while clip k+1 is filmed
SYMBOLS     z1, z2  context encoder's shallow and deep embedding    t1, t2  the target encoder's
            P1, P2  short and macro predictor

REFERENCES
    [1] R. A. Patil, Micro-World Models, Zenodo 2026, doi 10.5281/zenodo.20403374 (abstract only)
    [2] Bardes, Ponce, LeCun, VICReg, ICLR 2022, arXiv 2105.04906
    [3] LeCun, A Path Towards Autonomous Machine Intelligence, 2022, sections 4.4 to 4.7
    [4] Peebles, Xie, Scalable Diffusion Models with Transformers, 2022, arXiv 2212.09748
    [5] de Boer et al., A Tutorial on the Cross-Entropy Method, 2005
    [6] Garrido et al., RankMe, ICML 2023, arXiv 2210.02885
"""
import argparse                                 # the command line
import contextlib                               # files that appear whole or not at all
import dataclasses                              # the config
import fcntl                                    # one run directory, one writer
import hashlib                                  # (seed, purpose, index) -> generator
import io                                       # a checkpoint, before it is a file
import json                                     # every number that is reported
import math
import os
import re                                       # JSON that a reader of diffs can bear
import shlex                                    # a command that can be repeated
import sys
import time                                     # minutes left
import timeit                                   # which precision is fast here
import zipfile                                  # checksums of checkpoints
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

# 1. CONFIG - every number that can be changed, and where it comes from
###################################################################################################
# One frozen dataclass; the command line is generated from it. The second argument says where a
# value comes from: "paper" the abstract of [1]; "vicreg" [2]; "design" fixed before training, by
# what the world needs or by common practice; "tuned" chosen on validation worlds.

def opt(default, source, meaning, low=None, high=None, choices=None):
    """A dataclass field that knows its source, its meaning and the values it may take."""
    return dataclasses.field(default=default, metadata={
        "source": source, "meaning": meaning, "low": low, "high": high, "choices": choices})

@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run. ValueError names the bad one.  needs: opt"""
    masses: tuple = opt((1.0, 2.0, 4.0), "design", "mass of each body", 1e-3, 1e3)
    radius: float = opt(0.08, "design", "of mass 1, in half boxes; area goes with mass", 1e-3, 0.5)
    frame: float = opt(0.04, "design", "seconds from frame to frame", 1e-4, 1.0)
    substeps: int = opt(4, "design", "simulator steps per frame", 1, 1000)
    force_limit: float = opt(2.0, "design", "largest force per body and axis", 1e-6, 1e3)
    start_speed: float = opt(0.3, "design", "deviation of the start velocities", 0.0, 10.0)

    sequences: int = opt(49_000, "paper", "training sequences", 1, 10**7)
    hold: int = opt(5, "design", "frames in a clip; a force is held as long", 1, 100)
    steps: int = opt(5, "paper", "clips in a macro-event: 5 x 5 frames are the paper's 25", 1, 100)
    symmetries: bool = opt(True, "design", "train on random flips, axis swaps of the box", 0, 1)

    latent: int = opt(256, "paper", "dimensions of each embedding", 2, 8192)
    width: int = opt(96, "tuned", "transformer width", 4, 8192)
    depth: int = opt(3, "tuned", "transformer blocks below the deep tap", 1, 64)
    tap: int = opt(1, "tuned", "transformer blocks below the shallow tap", 1, 64)
    heads: int = opt(4, "design", "attention heads", 1, 64)
    mlp_ratio: int = opt(2, "tuned", "hidden width of a block, in widths", 1, 16)
    shared: bool = opt(False, "paper", "one encoder for context and target instead of two", 0, 1)
    short_width: int = opt(384, "design", "width of the short predictor", 4, 8192)
    macro_width: int = opt(640, "tuned", "width of the macro predictor", 4, 8192)
    predictor_blocks: int = opt(2, "design", "residual blocks in each predictor", 1, 64)

    pred_weight: float = opt(25.0, "vicreg", "weight of the two prediction errors", 0.0, 1e6)
    std_weight: float = opt(25.0, "vicreg", "weight of the variance term", 0.0, 1e6)
    cov_weight: float = opt(1.0, "vicreg", "weight of the covariance term", 0.0, 1e6)
    map_weight: float = opt(5.0, "design", "of bridge and lift; 0: the paper's objective", 0.0, 1e6)

    epochs: int = opt(300, "paper", "passes over the sequences", 1, 10**6)
    batch: int = opt(192, "tuned", "sequences per optimiser step", 2, 10**6)
    lr: float = opt(1e-3, "design", "peak learning rate", 1e-9, 10.0)
    beta2: float = opt(0.95, "design", "AdamW's second decay", 0.0, 0.999999)
    weight_decay: float = opt(1e-4, "design", "on matrices only", 0.0, 10.0)
    warmup: int = opt(200, "design", "steps of linear warm-up, at most 1/5 of the run", 0, 10**9)

    samples: int = opt(100, "tuned", "CEM: plans per iteration", 3, 10**6)
    views: int = opt(2, "tuned", "CEM: mirror images a cost is averaged over", 1, 8)
    iterations: int = opt(6, "design", "CEM: iterations", 1, 10**4)
    elites: int = opt(10, "tuned", "CEM: best plans, the next Gaussian fits them", 2, 10**6)
    spread: float = opt(0.6, "design", "CEM: first deviation, in force limits", 1e-6, 10.0)
    tasks: int = opt(200, "design", "test goals that `plan` tries", 1, 10**5)

    measure_every: int = opt(10, "design", "epochs between validation plans; 0: never", 0, 10**6)
    measure_tasks: int = opt(64, "design", "validation goals tried each time", 1, 10**5)
    seed: int = opt(0, "design", "of weights, batches and training worlds", 0, 999_999)
    validation_seed: int = opt(1_000_000, "design", "of worlds to choose on", 1_000_000, 1_999_999)
    test_seed: int = opt(2_000_000, "design", "of worlds to report on", 2_000_000, 2_999_999)
    device: str = opt("auto", "paper", "auto: cuda, else mps (the paper's), else cpu",
                      choices=("auto", "cuda", "mps", "cpu"))
    precision: str = opt("auto", "design", "matrix products; auto: bf16 where that is fast",
                         choices=("auto", "fp32", "bf16"))

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            kind = {float: (float, int), tuple: (float, int)}.get(f.type, f.type)
            for v in value if f.name == "masses" else [value]:
                if f.metadata["choices"] and v not in f.metadata["choices"]:
                    raise ValueError(f"{f.name} is {v}: choose from {f.metadata['choices']}")
                if not isinstance(v, kind) or low is not None and not low <= v <= high:  # nor NaN
                    raise ValueError(f"{f.name} is {v!r}: allowed are {low} to {high}")
        for wrong, why in ((not self.masses, "masses is empty: give at least one body"),
                           (self.tap > self.depth, "tap is above depth: choose tap <= depth"),
                           (self.width % self.heads, "width must be a multiple of heads"),
                           (self.elites > self.samples, "elites must not be more than samples"),
                           (self.batch > self.sequences, "batch is larger than sequences")):
            if wrong:
                raise ValueError(why)
        object.__setattr__(self, "masses", tuple(float(m) for m in self.masses))

PRESETS = {
    "smoke": dict(sequences=1024, epochs=3, batch=128, width=32, short_width=64, macro_width=64,
                  samples=40, iterations=3, elites=8, tasks=8, measure_every=2, measure_tasks=4),
    "quick": dict(epochs=9, measure_every=5, measure_tasks=12),
    "paper": dict(),
}

# 2. WORLD - what there is to be predicted
###################################################################################################
# Physics that fits in forty lines and yet is not trivial: between hits a body flies a parabola,
# which any network learns; a hit depends on two places, two velocities and two masses, and
# magnifies small errors. "Fly on and fold at the walls" is right most of the time. The rest a
# world model must earn.

class World:
    """Discs in the box [-1, 1]^2: elastic hits that depend on mass, reflecting walls, forces.

    state (N, bodies, 4) holds x, y, vx, vy; a force (N, bodies, 2) is held while it acts. All
    worlds of a batch advance together, on the device of the state. Lengths in half boxes, time in
    seconds.
    """

    def __init__(self, masses=(1.0, 2.0, 4.0), radius=0.08, frame=0.04, substeps=4,
                 force_limit=2.0):
        self.masses = tuple(masses)
        self.radii = tuple(radius * math.sqrt(m) for m in masses)         # area goes with mass
        self.frame, self.substeps, self.force_limit = frame, substeps, force_limit

    def reset(self, n, gen, speed=0.3, device="cpu"):
        """-> (n, bodies, 4): places drawn until no two bodies overlap, velocities N(0, speed^2).

        gen is a CPU generator, so every device starts from the same worlds. ValueError if the
        bodies do not fit.
        """
        radius = torch.tensor(self.radii)
        touch = radius[:, None] + radius - 10 * torch.eye(len(radius))    # none touches itself
        place, todo = torch.empty(n, len(radius), 2), torch.arange(n)
        for _ in range(1000 if max(self.radii) < 1 else 0):
            draw = torch.rand(len(todo), len(radius), 2, generator=gen)
            place[todo] = draw = (2 * draw - 1) * (1 - radius)[:, None]
            gap = (draw[:, :, None] - draw[:, None]).norm(dim=-1) - touch
            todo = todo[(gap < 0).any(-1).any(-1)]
            if len(todo) == 0:
                velocity = speed * torch.randn(n, len(radius), 2, generator=gen)
                return torch.cat([place, velocity], -1).to(device)
        raise ValueError(f"{len(radius)} bodies of radius up to {max(self.radii):.2f} do not fit "
                         "the box: use fewer or smaller masses, or a smaller radius")

    def random_forces(self, n, clips, gen, device="cpu"):
        """-> (n, clips, bodies, 2), uniform in [-force_limit, force_limit]."""
        unit = torch.rand(n, clips, len(self.masses), 2, generator=gen)
        return ((2 * unit - 1) * self.force_limit).to(device)

    def rollout(self, state, forces, hold=5):
        """(N, bodies, 4), (N, K, bodies, 2) -> states (N, K hold, bodies, 4), hits (N, K hold).

        Force k is held for `hold` frames; the first state returned is one frame after the start;
        hits (bool) marks the frames in which two bodies met. What is not finite stays in its world.
        """
        assert len(self.masses) == state.shape[1] == forces.shape[2], (state.shape, forces.shape)
        limit = (1 - state.new_tensor(self.radii))[:, None, None]
        own = dict(memory_format=torch.contiguous_format)                 # a copy, with worlds as
        x = state[..., :2].permute(1, 2, 0).clone(**own)                  # neighbours in memory:
        v = state[..., 2:].permute(1, 2, 0).clone(**own)                  # (bodies, 2, N)
        acceleration = forces.permute(1, 2, 3, 0) / state.new_tensor(self.masses)[:, None, None]
        dt = self.frame / self.substeps
        states, hits = [], []
        for a in acceleration.repeat_interleave(hold, 0):               # (bodies, 2, N), per frame
            hit = torch.zeros_like(x[0, 0], dtype=torch.bool)
            for _ in range(self.substeps):
                x.add_(v, alpha=dt).add_(a, alpha=dt * dt / 2)            # exact: a is constant
                v.add_(a, alpha=dt)
                self._collide(x, v, dt, hit)
                over = (x.abs() - limit).clamp_min_(0)                    # how far beyond a wall
                v.copy_(torch.where(over > 0, -x.sign() * v.abs(), v))
                x.sub_(2 * over * x.sign())                               # fold the path back
            states.append(torch.cat([x, v], 1))                           # (bodies, 4, N)
            hits.append(hit)
        return torch.stack(states).permute(3, 0, 1, 2).contiguous(), torch.stack(hits, 1)

    def _collide(self, x, v, dt, hit):
        r"""Elastic hits, in place. For each pair that overlaps: go back to the moment of contact,
        exchange momentum along the line of centres n, and let the new velocities act since then.

            |d - s w| = r_i + r_j     s: time since contact; d, w: relative place and velocity
            dv_i = -2 m_j / (m_i + m_j) (w . n) n        dv_j = 2 m_i / (m_i + m_j) (w . n) n

        Pairs take turns: when three bodies meet, two impulses computed from one state would create
        energy. Hits are rare, so only the worlds with one are touched.
        """
        for i in range(len(self.masses)):
            for j in range(i):
                reach = (self.radii[i] + self.radii[j]) ** 2
                who = ((x[i] - x[j]).square().sum(0) < reach).nonzero()[:, 0]
                if len(who) == 0:
                    continue
                d, w = x[i][:, who] - x[j][:, who], v[i][:, who] - v[j][:, who]      # (2, hits)
                dw, ww = (d * w).sum(0), w.square().sum(0).clamp_min(1e-12)
                since = (dw + (dw.square() + ww * (reach - d.square().sum(0))).sqrt()) / ww
                since = since.clamp_max(dt)
                n = d - since * w
                closing = (n * w).sum(0).clamp_max(0)                     # 0 if they already part
                impulse = -2 * closing * n / n.square().sum(0).clamp_min(1e-12)
                share = self.masses[j] / (self.masses[i] + self.masses[j])
                for body, dv in ((i, share * impulse), (j, (share - 1) * impulse)):
                    v[body][:, who] += dv
                    x[body][:, who] += since * dv
                hit[who] |= closing < 0

    def observe(self, state):
        """(..., bodies, 4) -> (..., F = 4 bodies): what the encoders see, at about unit variance.
        With places alone, velocity would have to come from differences of a few hundredths.
        """
        return (state * state.new_tensor([1 / 0.55, 1 / 0.55, 2.0, 2.0])).flatten(-2)

# 3. DATA - what the model gets to see
###################################################################################################
# A sequence is 6 clips that do not overlap: one to look at and five to predict. Nothing but what
# physics carries over can be predicted. Force k acts while clip k + 1 is filmed; the force under
# which clip 0 was filmed is not told, it shows in the clip.

def make_sequences(world, n, clips, gen, hold=5, speed=0.3, device="cpu"):
    """-> states (n, clips, hold, bodies, 4), forces (n, clips - 1, A), hits (n, clips, hold)."""
    start = world.reset(n, gen, speed, device)
    forces = world.random_forces(n, clips, gen, device)
    states, hits = world.rollout(start, forces, hold)
    shape = (clips, hold)
    return states.unflatten(1, shape), forces[:, 1:].flatten(2), hits.unflatten(1, shape)

def random_symmetry(obs, forces, gen):
    """(N, ..., F), (N, ..., A) -> the same, each sample in one of the box's 8 symmetries.
    Flip x, flip y, swap the axes: the physics does not change, so this is free data.
    """
    sign = 2.0 * torch.randint(0, 2, (len(obs), 1, 2), generator=gen).to(obs.device) - 1
    swap = torch.randint(0, 2, (len(obs), 1, 1), generator=gen).to(obs.device).bool()
    def turn(x):
        pairs = x.reshape(len(x), -1, 2)                                # all numbers come as (x, y)
        return (torch.where(swap, pairs.flip(-1), pairs) * sign).reshape(x.shape)
    return turn(obs), turn(forces)

def epoch_batches(obs, forces, batch, gen, symmetries=True):
    """Yields obs (B, K, T, F), forces (B, K-1, A), in an order that only gen decides.
    What does not fill a batch is left out: the loss needs the statistics of a full one.
    needs: random_symmetry
    """
    order = torch.randperm(len(obs), generator=gen)
    for i in range(0, len(obs) - batch + 1, batch):
        pick = order[i:i + batch].to(obs.device)
        pair = obs[pick], forces[pick]
        yield random_symmetry(*pair, gen) if symmetries else pair

# 4. ENCODERS - from a clip to two embeddings, a shallow and a deep one
###################################################################################################
# A one-dimensional Vision Transformer: a frame is a token, attention runs over the frames of a
# clip. The embedding is read off twice on the way up. As in [1], the shallow tap feeds the short
# predictor (kinematics: where, how fast), the deep tap the macro predictor (what becomes of it in
# 25 frames).

class Block(nn.Module):
    """(N, T, W) -> (N, T, W): a pre-norm transformer block.

    Attention is written out: on a few tokens the fused library call costs more than it saves.
    """

    def __init__(self, width, heads, mlp_ratio=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(),
                                 nn.Linear(mlp_ratio * width, width))

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)) # (N, T, 3, heads, W/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                              # (N, heads, T, W/heads)
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)     # (N, heads, T, T)
        x = x + self.out((weight.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

class Encoder(nn.Module):
    """clip (N, T, F) -> shallow and deep embedding, (N, D) each.  needs: Block

    `shallow` and `deep` are its two halves, for callers that want the deep one of a few clips
    only. A tap reads all tokens at once, each from its own place, so order in time is kept. No
    norm behind a tap: the loss acts on these very numbers, and a norm would fight the variance
    term.
    """

    def __init__(self, features=12, frames=5, latent=256, width=96, depth=3, tap=1, heads=4,
                 mlp_ratio=2):
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(frames, width))
        blocks = [Block(width, heads, mlp_ratio) for _ in range(depth)]
        self.lower, self.upper = nn.ModuleList(blocks[:tap]), nn.ModuleList(blocks[tap:])
        self.tap1, self.tap2 = (nn.Sequential(nn.LayerNorm(width), nn.Flatten(),
                                              nn.Linear(frames * width, latent)) for _ in range(2))

    def shallow(self, clip):
        """clip (N, T, F) -> tokens (N, T, W) for `deep`, shallow embedding (N, D)."""
        x = self.embed(clip)
        x = x + self.position.to(x.dtype)                                 # else bf16 becomes fp32
        for block in self.lower:
            x = block(x)
        return x, self.tap1(x)

    def deep(self, x):
        """tokens (N, T, W) from `shallow` -> deep embedding (N, D)."""
        for block in self.upper:
            x = block(x)
        return self.tap2(x)

    def forward(self, clip):
        x, z1 = self.shallow(clip)
        return z1, self.deep(x)

# 5. PREDICTORS - what happens next, given the forces
###################################################################################################
# Without forces a predictor could only say what happens on average; with them it answers "what
# if", and that is all a planner needs. They enter as an input, since in free flight a force moves a
# body by an amount linear in it, and they shift, scale and gate each block (adaptive normalisation,
# [4]), so one force can act differently in different states.

class Predictor(nn.Module):
    """z (N, D), forces (N, A) -> next embedding (N, D): a residual MLP with adaptive norm."""

    def __init__(self, latent, actions, width=384, blocks=2):
        super().__init__()
        code = width // 4                                                 # the forces' embedding
        self.force = nn.Sequential(nn.Linear(actions, code), nn.SiLU(),
                                   nn.Linear(code, code), nn.SiLU())
        self.enter, self.leave = nn.Linear(latent + actions, width), nn.Linear(width, latent)
        self.adapt, self.norm, self.mlp = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for _ in range(blocks):
            self.adapt.append(nn.Linear(code, 3 * width))
            self.norm.append(nn.LayerNorm(width, elementwise_affine=False))
            self.mlp.append(nn.Sequential(nn.Linear(width, width), nn.GELU(),
                                          nn.Linear(width, width)))
        self.last = nn.LayerNorm(width)
        for p in self.leave.parameters():       # begin near "nothing changes": a random guess,
            p.data.mul_(0.1)                    # rolled out, would teach the encoders noise first

    def forward(self, z, forces):
        code = self.force(forces)                                         # (N, width/4)
        x = self.enter(torch.cat([z, forces.to(z.dtype)], -1))            # (N, width)
        for adapt, norm, mlp in zip(self.adapt, self.norm, self.mlp):
            shift, scale, gate = adapt(code).chunk(3, -1)
            x = x + (1 + gate) * mlp(norm(x) * (1 + scale) + shift)
        return z + self.leave(self.last(x))                               # most of z carries over

# 6. MODEL - two encoders, two predictors and two small maps put together
###################################################################################################
#   clip 0 --context--> z1 --P1(force 0)-> --P1(force 1)-> ... --P1(force 4)->  each like t1 there
#                 '---> z2 --P2(forces 0 to 4)------------------------------->  like t2 of clip 5
#
# Both lead from context space to target space. P1 is trained rolled out, so it goes on from there;
# P2 is not, so it cannot be applied twice, and the levels cannot talk. Two maps mend that: bridge
# turns a target z2 into the context z2 of its clip, lift a target z1 (see figures/hierarchy.py).

class HJEPA(nn.Module):
    """The whole model: clips of T = frames, K - 1 = steps clips in a macro-event, A = actions.

    shared=True uses one encoder for both roles.  needs: Encoder, Block, Predictor
    """

    def __init__(self, features=12, frames=5, actions=6, steps=5, latent=256, width=96, depth=3,
                 tap=1, heads=4, mlp_ratio=2, short_width=384, macro_width=640, predictor_blocks=2,
                 shared=False):
        super().__init__()
        shape = (features, frames, latent, width, depth, tap, heads, mlp_ratio)
        self.context = Encoder(*shape)
        self.target = self.context if shared else Encoder(*shape)
        self.short = Predictor(latent, actions, short_width, predictor_blocks)
        self.macro = Predictor(latent, actions * steps, macro_width, predictor_blocks)
        self.bridge, self.lift = (nn.Sequential(nn.Linear(latent, 2 * latent), nn.GELU(),
                                                nn.Linear(2 * latent, latent)) for _ in range(2))

    def rollout(self, z1, forces):
        """z1 (N, D), forces (N, K, A) -> (N, K, D): P1 on its own predictions, K clips on."""
        path = []
        for force in forces.unbind(1):
            z1 = self.short(z1, force)
            path.append(z1)
        return torch.stack(path, 1)

    def jump(self, z2, forces):
        """z2 (N, D), forces (N, steps, A) -> (N, D): P2, a macro-event in one step."""
        return self.macro(z2, forces.flatten(1))

# 7. LOSS - why the embeddings do not collapse
###################################################################################################
# Both encoders are free, so the prediction error alone has a perfect and useless solution: embed
# all as one point. A frozen or averaged target would make that hard to reach; here, as in [1], it
# is forbidden: each dimension must vary (variance term), and no two may say the same (covariance
# term).

def vicreg_terms(z, gamma=1.0, eps=1e-4):
    r"""(..., N, D) -> std, cov: two scalars >= 0, averaged over leading axes, computed in float32.

        std = 1/D sum_j max(0, gamma - sqrt(Var(z_j) + eps))                          [2] eq. 1-2
        cov = 1/D sum_{i != j} C_ij^2,   C = 1/(N-1) sum_n (z_n - mean)(z_n - mean)^T  [2] eq. 3-4

    N must be the axis of variety, samples. Pool time into it and z(n, t) = f(t) scores 0, a
    collapse. Without eps the gradient of a constant batch is NaN. Noise does not score 0 but about
    D / N: that is the error of estimating D^2 covariances from N samples. ValueError for fewer
    than two samples. DEVIATION: the authors' published code halves std over the two branches; here
    it is summed.
    """
    z = z.float()
    n, d = z.shape[-2:]
    if n < 2:
        raise ValueError(f"variance needs at least two samples, got {n}")
    with torch.autocast(z.device.type, enabled=False):                    # bf16 is too coarse for C
        z = z - z.mean(-2, keepdim=True)
        c = z.transpose(-1, -2) @ z / (n - 1)                             # (..., D, D)
    variance = c.diagonal(dim1=-2, dim2=-1)
    std = F.relu(gamma - (variance + eps).sqrt()).mean(-1)
    cov = (c.square().sum((-1, -2)) - variance.square().sum(-1)) / d
    return std.mean(), cov.mean()

def objective(model, obs, forces, pred_weight=25.0, std_weight=25.0, cov_weight=1.0,
              map_weight=5.0, gather=lambda z: z):
    r"""obs (B, K, T, F), forces (B, K-1, A) -> total, terms (dict of scalars).  needs: vicreg_terms

        composite = pred_weight [ 1/(K-1) sum_k MSE(P1^k(z1), t1_k) + MSE(P2(z2), t2) ]    [2] eq. 5
                  + sum_s [ std_weight std(s) + cov_weight cov(s) ]                        [2] eq. 6
        total     = composite + map_weight [ MSE(bridge(t2), z2') + MSE(lift(t1), z2') ]

    s runs over four sets: context and target, shallow and deep (c1, t1, c2, t2), t1 clip by clip.
    MSE is the mean over samples and dimensions. z2' is the context encoder's z2 of the last clip.
    gather (..., n, D) -> (..., N, D): where std and cov get samples of other processes from.
    DEVIATION: [2] writes a sum over dimensions; its authors' code, like this one, takes the mean.
    DEVIATION: [1] has no maps (map_weight=0). They chain the levels, and their gradient is meant to
    keep the deep target from dropping what is hard to predict, which variance and covariance do not
    notice. Only z2' is held fixed: the maps shall reach the context encoder, not pull it.
    """
    batch, clips = obs.shape[:2]
    z1, z2 = model.context(obs[:, 0])                                     # (B, D) each
    later = obs[:, 1:].transpose(0, 1).flatten(0, 1)                      # ((K-1) B, T, F)
    tokens, t1 = model.target.shallow(later)
    t1, t2 = t1.unflatten(0, (clips - 1, batch)), model.target.deep(tokens[-batch:])
    path, leap = model.rollout(z1, forces).transpose(0, 1), model.jump(z2, forces)

    terms = {"pred1": F.mse_loss(path.float(), t1.float()),
             "pred2": F.mse_loss(leap.float(), t2.float())}
    composite = pred_weight * (terms["pred1"] + terms["pred2"])
    for name, z in (("c1", z1), ("t1", t1), ("c2", z2), ("t2", t2)):
        std, cov = terms["std_" + name], terms["cov_" + name] = vicreg_terms(gather(z))
        composite = composite + std_weight * std + cov_weight * cov
    terms["composite"] = total = composite
    if map_weight > 0:
        with torch.no_grad():                                           # after the pass with
            same = model.context(obs[:, -1])[1].float()                 # gradient: casts are reused
        terms["bridge"] = F.mse_loss(model.bridge(t2).float(), same)
        terms["lift"] = F.mse_loss(model.lift(t1[-1]).float(), same)
        total = composite + map_weight * (terms["bridge"] + terms["lift"])
    return total, terms

# 8. PLANNER - forces that lead to a goal, found in the embedding
###################################################################################################
# The goal is a clip, seen by the target encoder. A plan is good if the embedding predicted for it
# equals the goal's. No reward, no decoder, no gradient: the cross-entropy method samples plans,
# keeps the best few, fits a Gaussian to them and samples again [5]. Gradients mislead in a
# landscape full of hits.

@torch.no_grad()
def cem(cost, mean, std, gens, *, samples=200, iterations=6, elites=10, low=-2.0, high=2.0,
        floor=0.02):
    """cost: plans (B, S, K, A) -> (B, S); start mean, std (B, K, A) -> best plan, its cost (B,).

    B tasks are searched side by side, each with its own CPU generator gens[b], so a task's noise
    depends neither on its neighbours nor on the device. Any cost will do, of any model or none;
    NaN counts as infinitely bad. The mean competes with the samples, so a warm start is never lost,
    and once more at the end; the best plan ever seen is returned. floor is added to the deviation,
    else a plan freezes before it is good. ValueError unless 1 < elites <= samples (one elite has no
    deviation) and each task has a generator.
    """
    if not 1 < elites <= samples:
        raise ValueError(f"elites must be more than 1 and at most {samples} samples, got {elites}")
    if len(gens) != len(mean):
        raise ValueError(f"{len(mean)} tasks need as many generators, got {len(gens)}")
    best, best_cost = (mean := mean.clamp(low, high)), mean.new_full((len(mean),), math.inf)
    for _ in range(iterations):
        noise = torch.stack([torch.randn(samples, *mean.shape[1:], generator=g) for g in gens])
        plans = mean[:, None] + std[:, None] * noise.to(mean.device)      # (B, S, K, A)
        plans[:, 0] = mean
        plans = plans.clamp(low, high)
        values = cost(plans).nan_to_num(math.inf, math.inf)               # (B, S)
        value, index = values.topk(elites, largest=False)                 # (B, E)
        elite = plans.gather(1, index[:, :, None, None].expand(-1, -1, *mean.shape[1:]))
        better = value[:, 0] < best_cost                                  # topk puts the best first
        best_cost = torch.where(better, value[:, 0], best_cost)
        best = torch.where(better[:, None, None], elite[:, 0], best)
        mean, std = elite.mean(1), elite.std(1) + floor
    value = cost(mean[:, None])[:, 0].nan_to_num(math.inf, math.inf)      # the last mean, as well
    best = torch.where((value < best_cost)[:, None, None], mean, best)    # is where samples agree:
    return best, torch.minimum(best_cost, value)                          # most often the best

def latent_cost(predict, start, goal):
    """predict: (N, D), (N, K, A) -> (N, D); start, goal (B, D) -> a cost for `cem`: how far the
    embedding predicted for a plan is from the goal's, squared, the mean over dimensions."""
    def cost(plans):
        tasks, samples = plans.shape[:2]
        repeated = start[:, None].expand(-1, samples, -1).flatten(0, 1)   # (B S, D)
        reached = predict(repeated, plans.flatten(0, 1)).unflatten(0, (tasks, samples))
        return (reached.float() - goal[:, None].float()).square().mean(-1)
    return cost

def short_cost(model, clip, goal):
    """clip, goal (B, T, F) -> cost of plans of any length: P1 rolled out.  needs: latent_cost"""
    start, aim = model.context.shallow(clip)[1], model.target.shallow(goal)[1]
    return latent_cost(lambda z, plan: model.rollout(z, plan)[:, -1], start, aim)

def macro_cost(model, clip, goal):
    """clip, goal (B, T, F) -> cost of plans of one macro-event: P2.  needs: latent_cost"""
    return latent_cost(model.jump, model.context(clip)[1], model.target(goal)[1])

def images(x, views=2):
    """(B, ..., 2 m) -> (views B, ..., 2 m): x, then images: bits of i flip x, flip y, swap axes."""
    pairs, order = x.unflatten(-1, (-1, 2)), (0, 7, 1, 6, 2, 5, 3, 4)[:views]
    turned = [pairs * x.new_tensor([1 - 2 * (i & 1), 1 - (i & 2)]) for i in order]
    return torch.cat([t.flip(-1) if i & 4 else t for i, t in zip(order, turned)]).flatten(-2)

def mirrored(make_cost, model, clip, goal, views=2):
    """make_cost(model, clip, goal (B, T, F)) -> cost for `cem`, here averaged over `views` (1 to 8)
    images: physics is the same in each, the model's errors at hits are not.  needs: images"""
    cost = make_cost(model, images(clip, views), images(goal, views))
    return lambda plans: cost(images(plans, views)).unflatten(0, (-1, len(clip))).mean(0)

@torch.no_grad()
def replan(world, clip, steps, make_cost, gens, spread=0.6, hold=5, **budget):
    """Closed loop: plan all that is left, apply the first force for a clip, look, plan again.

    clip (B, T, bodies, 4) are the states seen so far; make_cost(clip, steps left) gives what `cem`
    searches (budget: its keywords), from the rest of the last plan on. The simulator only moves
    on: it is never asked what would happen, nor whether the goal is reached.
    Returns states (B, steps hold, bodies, 4) and forces (B, steps, A).  needs: cem
    """
    mean = clip.new_zeros(len(clip), steps, 2 * clip.shape[2])
    limit, states, forces = world.force_limit, [], []
    for left in range(steps, 0, -1):
        plan, _ = cem(make_cost(clip, left), mean, torch.full_like(mean, spread * limit), gens,
                      low=-limit, high=limit, **budget)
        clip, _ = world.rollout(clip[:, -1], plan[:, :1].unflatten(-1, (-1, 2)), hold)
        states.append(clip)
        forces.append(plan[:, 0])
        mean = plan[:, 1:]
    return torch.cat(states, 1), torch.stack(forces, 1)

# Above: pure functions and modules, free to copy. Below: disk, clock and argv.

# 9. PLUMBING - randomness, devices, files
###################################################################################################

class Refusal(Exception):
    """What the person at the terminal can mend: printed as one line, exit code 2."""

def generator(seed, purpose, index=0):
    """A fresh CPU generator that depends on its arguments alone: no state to save or to disturb.
    Measuring more often, resuming, changing the device: the same numbers are drawn."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

def pick_device(name):
    """'auto' -> cuda, else mps, else cpu; a name is taken at its word or refused."""
    there = [d for d, ok in (("cuda", torch.cuda.is_available()),
                             ("mps", torch.backends.mps.is_available()), ("cpu", True)) if ok]
    if name not in ("auto", *there):
        raise Refusal(f"device {name} is not available here: use --device {there[0]}")
    kind = there[0] if name == "auto" else name
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)) if kind == "cuda" else None)

def pick_precision(name, device):
    """'auto' -> bf16 on cuda, fp32 on mps, on a cpu what a short measurement says: bf16 products
    are far faster on some processors, slower on others. A run keeps its first choice."""
    if name != "auto" or device.type != "cpu":
        return name if name != "auto" else "bf16" if device.type == "cuda" else "fp32"
    def seconds(dtype):                         # the least of many: load only ever adds
        x, w = torch.ones(4096, 128, dtype=dtype), torch.ones(512, 128, dtype=dtype)
        return min(timeit.repeat(lambda: F.linear(x, w), number=1, repeat=30))
    return "bf16" if seconds(torch.float32) > 1.3 * seconds(torch.bfloat16) else "fp32"

def autocast(device, precision):
    """The context in which matrix products run in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

def device_name(device):
    """What a timing was taken on: 'cpu, x86_64, 2 threads' and the like."""
    return f"{device.type}, " + (torch.cuda.get_device_name(device) if device.type == "cuda" else
                                 f"{os.uname().machine}, {torch.get_num_threads()} threads")

@contextlib.contextmanager
def atomic(path):
    """with atomic(path) as part: write part. It becomes `path` when it is whole; until then,
    and for good if anything fails, the old file stays."""
    part = Path(path).with_name(".part." + Path(path).name)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

def write_json(path, content):
    """Atomic; floats are cut to 6 digits, for eye and git. ValueError for NaN and infinity."""
    text = json.dumps(content, allow_nan=False)
    short = json.loads(text, parse_float=lambda x: float(f"{float(x):.6g}"))
    rows = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]",
                  json.dumps(short, indent=1))                            # numbers side by side
    with atomic(path) as part:
        part.write_text(rows + "\n")

@contextlib.contextmanager
def locked(run):
    """One writer per run directory. The system frees the lock when its holder ends, in any way."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise Refusal(f"{run} is being trained by process {f.read().strip()}: wait for it, or "
                          "use another --run") from None
        f.truncate(0)
        print(os.getpid(), file=f, flush=True)
        yield

def gather(z):
    """(..., n, D) in each process -> (..., N, D), the same in all. Only its own samples carry
    gradient, times the number of processes: then the average over processes is the whole one."""
    parts = [torch.empty_like(z) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, z.detach().contiguous())
    parts[torch.distributed.get_rank()] = z + (len(parts) - 1) * (z - z.detach())
    return torch.cat(parts, -2)

def build_world(config):
    """Config -> World."""
    return World(config.masses, config.radius, config.frame, config.substeps, config.force_limit)

def build(config):
    """Config -> HJEPA on the CPU, with the start weights of its seed. Global randomness is kept."""
    c, bodies = config, len(config.masses)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(c.seed, "weights").initial_seed())
        return HJEPA(4 * bodies, c.hold, 2 * bodies, c.steps, c.latent, c.width, c.depth, c.tap,
                     c.heads, c.mlp_ratio, c.short_width, c.macro_width, c.predictor_blocks,
                     c.shared)

FORMAT = 1                                      # of checkpoints: raised when it changes

def read_checkpoint(run):
    """Run directory or file -> dict(format, config, model, optimizer, epoch, precision, history,
    device, torch).

    Refusal if there is none, or it is damaged or not ours. weights_only: nothing in it is executed.
    """
    path = Path(run) / "last.pt" if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise Refusal(f"no checkpoint at {path}: train with `python hjepa.py train --run {run}`, "
                      "or name another with --run")
    try:
        if zipfile.ZipFile(path).testzip():                               # torch.load does not look
            raise ValueError("a checksum is wrong")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']}, this program reads {FORMAT}")
        config, rows = Config(**saved["config"]), saved["history"]
        with torch.device("meta"):              # it may claim any size: no memory is taken
            model = build(config)
        model.load_state_dict(dict(saved["model"]), assign=True)
        optimizer = make_optimizer(model, config, torch.device("cpu"))
        optimizer.load_state_dict(saved["optimizer"])                     # looks at no shape
        if not ({"precision", "device", "first_step"} <= {*saved, *rows[0]}
                and [row["epoch"] for row in rows] == [*range(1, saved["epoch"] + 1)]
                and all([v.shape for v in state.values()] == [(), p.shape, p.shape]
                        for p, state in optimizer.state.items())
                and all(p.isfinite().all() for p in model.parameters())):
            raise ValueError("parts are missing, do not fit or are not finite")
        return saved
    except Exception as e:                      # torch.load has a dozen ways to say the same thing
        why = (str(e).splitlines() or [""])[0][:80] or type(e).__name__
        raise Refusal(f"{path} is damaged or no checkpoint of this program ({why}): restore a "
                      "copy, or move it away and train again") from None

def load(run, device="cpu"):
    """Run directory or checkpoint file -> (HJEPA in eval mode on device, Config), or a Refusal."""
    saved = read_checkpoint(run)
    config = Config(**saved["config"])
    model = build(config)
    model.load_state_dict(saved["model"])
    return model.to(device).eval(), config

def bar(items, label, total):
    """Yields items and draws `label ######...... 12/48 31 s left`; silent where no terminal is."""
    start, show = time.perf_counter(), sys.stderr.isatty() and not int(os.environ.get("RANK", 0))
    for i, item in enumerate(items):
        if show:
            left = f"{(time.perf_counter() - start) / i * (total - i):.0f} s left" if i else ""
            done = 24 * i // total
            sys.stderr.write(f"\r{label} {'#' * done}{'.' * (24 - done)} {i}/{total} {left}\033[K")
            sys.stderr.flush()
        yield item
    sys.stderr.write("\r\033[K" if show else "")

# 10. TRAINING - the loop
###################################################################################################

def learning_rate(step, total, peak, warmup):
    """A pure function of the step, so there is no schedule to save. 1) Linear warm-up, over at most
    a fifth of the run. 2) A cosine from peak to zero."""
    warmup = min(warmup, total // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

def make_optimizer(model, config, device):
    """AdamW; decay on matrices only: pulling a bias or a norm to zero regularises nothing."""
    groups = [{"params": [p for p in model.parameters() if (p.ndim > 1) == matrices],
               "weight_decay": matrices * config.weight_decay} for matrices in (True, False)]
    return torch.optim.AdamW(groups, config.lr, (0.9, config.beta2), fused=device.type != "mps")

def train_epoch(model, optimizer, data, config, epoch, device, precision, rank=0, size=1):
    """One pass over the data. -> mean of each term, and the composite of the very first step.
    Refusal, naming step and term, if one of them, or a weight in the end, is not finite."""
    per_epoch, log = config.sequences // config.batch, []
    gen = generator(config.seed, "batches", epoch)
    batches = epoch_batches(*data, config.batch, gen, config.symmetries)
    watched = bar(batches, f"epoch {epoch + 1}/{config.epochs}", per_epoch)
    for step, pair in enumerate(watched, epoch * per_epoch):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.epochs * per_epoch, config.lr, config.warmup)
        with autocast(device, precision):
            total, terms = objective(
                model, *(x.chunk(size)[rank] for x in pair), config.pred_weight, config.std_weight,
                config.cov_weight, config.map_weight, gather if size > 1 else nn.Identity())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        row = torch.stack([v.detach() for v in terms.values()])           # on the device: no wait
        if size > 1:                                                      # one message for all
            parts = [row, *(p.grad for p in model.parameters() if p.grad is not None)]
            flat = nn.utils.parameters_to_vector(parts)
            torch.distributed.all_reduce(flat.div_(size))
            nn.utils.vector_to_parameters(flat, parts)
        optimizer.step()
        log.append(row.clone())                                           # no view into `flat`
    log = torch.stack(log).cpu()                                          # (steps, terms)
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if broken or not log.isfinite().all():      # a weight alone breaks in the last step
        step, term = [*(~log.isfinite()).nonzero().tolist(), (len(log) - 1, -1)][0]
        what = f"{list(terms)[term]} is {log[step, term]:g}" if term >= 0 else f"{broken[0]} is nan"
        raise Refusal(f"{what} in epoch {epoch + 1}, step {step + 1}: what is saved is intact; "
                      "train anew, with a smaller --lr and another --run")
    return dict(zip(terms, log.mean(0).tolist())), log[0, list(terms).index("composite")].item()

def refuse_other_settings(config, saved, run):
    """A run goes on with the settings it began with; device and number of test goals may change."""
    old, new = dataclasses.asdict(Config(**saved["config"])), dataclasses.asdict(config)
    differ = [f"{k} is {old[k]} there, {new[k]} here" for k in new
              if old[k] != new[k] and k not in ("device", "tasks")]
    if differ:
        raise Refusal(f"{run} holds a run with other settings ({'; '.join(differ)}): repeat those, "
                      "or use another --run")

def print_row(row, head):
    """One aligned row per epoch with every term in it: collapse must be visible by eye, early."""
    if head:
        print(" ".join(f"{name:>{max(6, len(name))}}" for name in row))
    print(" ".join(f"{value:{max(6, len(name))}.{3 if value < 10 else 1}f}" if name != "epoch" else
                   f"{value:6d}" for name, value in row.items()), flush=True)

def train(config, run):
    """Train to the end, from where the directory `run` stands. -> history, a dict per epoch.

    After each epoch run/last.pt holds all that is needed to go on, run/log.jsonl the history. A
    resumed run is bitwise the run that was never stopped, on the same machine and device. Under
    torchrun, `size` processes share each batch; rank 0 alone locks, prints, measures and writes.
    """
    device = pick_device(config.device)
    rank, size = (int(os.environ.get(k, v)) for k, v in (("RANK", 0), ("WORLD_SIZE", 1)))
    if config.batch % size:
        raise Refusal(f"{size} processes cannot share a batch of {config.batch} evenly: change one")
    with locked(run) if rank == 0 else contextlib.nullcontext():
        saved = read_checkpoint(run) if (run / "last.pt").exists() else None
        model = build(config).to(device)
        optimizer, history = make_optimizer(model, config, device), []
        precision = pick_precision(config.precision, device)
        if saved:
            refuse_other_settings(config, saved, run)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            history, precision = saved["history"], saved["precision"]
        first, place = len(history), f"{size} x " * (size > 1) + device_name(device)
        if size > 1:                                                      # rank 0 has measured, or
            torch.distributed.init_process_group()                        # read, the precision
            torch.distributed.broadcast_object_list(box := [precision], device=device)
            precision = box[0]
        if rank == 0:
            print(f"H-JEPA, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, "
                  f"on {place}, {precision}, in {run}\n{config.sequences} sequences in batches of "
                  f"{config.batch}, {first} of {config.epochs} epochs done", flush=True)
        if first == config.epochs:
            return history
        world, gen = build_world(config), generator(config.validation_seed, "tasks")
        tasks = config.measure_every and make_tasks(world, config.measure_tasks, config.steps, gen,
                                                    config.hold, config.start_speed)
        states, forces, _ = sequences(world, config, config.sequences, config.seed, "train", device)
        data, shown = (world.observe(states), forces), None
        for epoch in range(first, config.epochs):
            start = time.perf_counter()
            means, first_step = train_epoch(model, optimizer, data, config, epoch, device,
                                            precision, rank, size)
            if rank > 0:
                continue
            due = tasks and ((epoch + 1) % config.measure_every == 0 or epoch + 1 == config.epochs)
            row = {"epoch": epoch + 1, **means,
                   **watch(model, world, config, device, precision, due and tasks)}
            row["seconds"] = time.perf_counter() - start
            print_row(row, head=row.keys() != shown)
            shown = row.keys()
            history.append(row if history else {**row, "first_step": first_step})
            whole = io.BytesIO()                # on a full disk torch.save raises no OSError
            torch.save({"format": FORMAT, "config": dataclasses.asdict(config),
                        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "epoch": epoch + 1, "precision": precision, "history": history,
                        "device": place, "torch": str(torch.__version__)}, whole)
            with atomic(run / "last.pt") as part, atomic(run / "log.jsonl") as log:
                part.write_bytes(whole.getbuffer())
                log.write_text("".join(json.dumps(r) + "\n" for r in history))
            if epoch == first:
                left = row["seconds"] * (config.epochs - first - 1) / 60
                print(f"about {left:.0f} minutes to go at this pace", flush=True)
    return history

# 11. MEASUREMENT - what is in the embeddings, and do plans work
###################################################################################################

def sequences(world, config, n, seed, purpose, device):
    """make_sequences for a Config: n of one macro-event each, drawn by (seed, purpose)."""
    need = 64 * n * len(config.masses) * max((config.steps + 1) * config.hold, len(config.masses))
    if n < 2 or need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise Refusal(f"n is {n} sequences: wanted are 2 or more, and no more than fit in memory")
    return make_sequences(world, n, config.steps + 1, generator(seed, purpose), config.hold,
                          config.start_speed, device)

@torch.no_grad()
def latents(model, obs, forces, chunk=4096):
    """obs (N, K, T, F), forces (N, K-1, A) -> dict of (N, D), float32, on the CPU: z1, z2 of the
    first clip, t1, t2 of the last, p1, p2: what P1, rolled out, and P2 expect the last to be."""
    parts = []
    for o, f in zip(obs.split(chunk), forces.split(chunk)):
        (z1, z2), (t1, t2) = model.context(o[:, 0]), model.target(o[:, -1])
        parts.append((z1, z2, t1, t2, model.rollout(z1, f)[:, -1], model.jump(z2, f)))
    return {k: torch.cat(z).cpu() for k, z in zip("z1 z2 t1 t2 p1 p2".split(), zip(*parts))}

def effective_rank(z):
    """(N, D) -> exp(entropy of the normalised singular values of centred z), 1 to D: RankMe [6].
    Not to be called under autocast: a covariance in bf16 has a rank of its own.
    """
    z = (z - z.mean(0)).cpu()
    s = torch.linalg.eigvalsh(z.T @ z).clamp_min(0).sqrt()
    p = s / s.sum().clamp_min(1e-12) + 1e-12
    return torch.exp(-(p * p.log()).sum()).item()

def ridge(train, validation, test, strengths=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)):
    """Three pairs x (N, P), y (N, Q) -> R2 per column of y (Q,) and predictions (N, Q) on test.
    A linear read-out: least squares with a penalty, chosen on validation. In float64, on the CPU.
    """
    x, y = (a.double() for a in train)
    centre, scale, offset = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    a = (x - centre) / scale
    gram, moment = a.T @ a / len(a), a.T @ (y - offset) / len(a)
    def score(w, pair):
        guess, true = (pair[0].double() - centre) / scale @ w + offset, pair[1].double()
        return 1 - (guess - true).square().sum(0) / (true - true.mean(0)).square().sum(0), guess
    eye = torch.eye(len(gram), dtype=gram.dtype)
    fits = [torch.linalg.solve(gram + s * eye, moment) for s in strengths]
    return score(max(fits, key=lambda w: score(w, validation)[0].mean()), test)

def physics(states, masses):
    """One frame (N, bodies, 4) -> dict of probe targets (N, Q), on the CPU: position, velocity,
    kinetic energy (of all bodies together), pair distance (between centres, if there are pairs)."""
    place, velocity = states[..., :2].cpu(), states[..., 2:].cpu()
    i, j = torch.triu_indices(len(masses), len(masses), 1)
    energy = 0.5 * (torch.tensor(masses) * velocity.square().sum(-1)).sum(-1, keepdim=True)
    return {"position": place.flatten(1), "velocity": velocity.flatten(1), "kinetic energy": energy,
            **({"pair distance": (place[:, i] - place[:, j]).norm(dim=-1)} if len(i) else {})}

def make_tasks(world, n, steps, gen, hold=5, speed=0.3, threshold=0.1):
    """n goals `steps` clips ahead -> dict(clip, goal (n, hold, bodies, 4), forces (n, steps, A),
    contact (n,)), on the CPU.

    A goal is what the same world shows under hidden random forces, so it can be reached. Left out
    are goals that need none: at zero force, the worst body must miss by over twice the threshold.
    """
    states, forces, hits = make_sequences(world, 8 * n + 64, steps + 1, gen, hold, speed)
    idle, _ = world.rollout(states[:, 0, -1], 0 * forces.unflatten(-1, (-1, 2)), hold)
    gap = (idle[:, -1, :, :2] - states[:, -1, -1, :, :2]).norm(dim=-1).amax(-1)
    pick = (gap > 2 * threshold).nonzero()[:n, 0]
    if len(pick) < n:
        raise Refusal(f"only {len(pick)} of {len(gap)} worlds have a goal that needs force, {n} "
                      "are wanted: raise --force-limit, or lower --tasks or --measure-tasks")
    return {"clip": states[pick, 0], "goal": states[pick, -1], "forces": forces[pick],
            "contact": hits[pick, 1:].flatten(1).any(1)}

PLANNERS = ("zero", "random", "macro open loop", "short open loop", "short replanned")

@torch.no_grad()
def solve(planner, model, world, config, clip, goal, gens):
    """clip, goal (B, T, bodies, 4) -> states (B, steps hold, bodies, 4), forces (B, steps, A)."""
    steps, limit, see = config.steps, world.force_limit, world.observe
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)
    if planner == "short replanned":
        return replan(world, clip, steps, lambda now, _: mirrored(
            short_cost, model, see(now), see(goal), config.views), gens, config.spread,
            config.hold, **budget)
    forces = clip.new_zeros(len(clip), steps, 2 * clip.shape[2])
    if planner == "random":
        forces = torch.cat([world.random_forces(1, steps, g, clip.device).flatten(2) for g in gens])
    elif planner != "zero":
        cost = {"macro open loop": macro_cost, "short open loop": short_cost}[planner]
        std = torch.full_like(forces, config.spread * limit)
        forces, _ = cem(mirrored(cost, model, see(clip), see(goal), config.views), forces, std,
                        gens, low=-limit, high=limit, **budget)
    return world.rollout(clip[:, -1], forces.unflatten(-1, (-1, 2)), config.hold)[0], forces

def try_tasks(planner, model, world, config, tasks, seed, device, precision):
    """-> final errors (n, bodies), states and forces per task (see solve), seconds per task.

    One task after the other, so that none depends on its neighbours, not even in rounding.
    """
    done, start, n = [], time.perf_counter(), len(tasks["clip"])
    for i in bar(range(n), planner, n):
        clip, goal = tasks["clip"][i:i + 1].to(device), tasks["goal"][i:i + 1].to(device)
        with autocast(device, precision):
            pair = solve(planner, model, world, config, clip, goal, [generator(seed, planner, i)])
        done.append([x.cpu() for x in pair])
    states, forces = (torch.cat(x) for x in zip(*done))
    errors = (states[:, -1, :, :2] - tasks["goal"][:, -1, :, :2]).norm(dim=-1)
    return errors, states, forces, (time.perf_counter() - start) / n

def success(errors):
    """Final errors (n, bodies) -> shares of goals reached by three measures, and the mean error."""
    mean, worst = errors.mean(-1), errors.amax(-1)
    reached = {"mean_body": mean < 0.1, "success": worst < 0.1, "strict": worst < 0.05}
    return {**{k: v.float().mean().item() for k, v in reached.items()}, "error": mean.mean().item()}

def bootstrap(outcomes, draws=10_000, seed=0):
    """Outcomes (n,) -> [low, high], the 95 % interval of their mean over resampled tasks."""
    pick = np.random.default_rng(seed).integers(0, len(outcomes), (draws, len(outcomes)))
    return np.percentile(np.asarray(outcomes, dtype=float)[pick].mean(1), [2.5, 97.5]).tolist()

def watch(model, world, config, device, precision, tasks=None, n=2048):
    """What training looks at besides its losses, on validation worlds. -> dict

    Smallest and mean deviation over the dimensions of all four sets, and the smallest effective
    rank. With tasks, because the losses alone can fall while planning gets worse: R2 of positions
    decoded from what P1, rolled out, and P2 predict, and the shares of goals reached.
    """
    seed = config.validation_seed
    states, forces, _ = sequences(world, config, 3 * n, seed, "watch", device)
    some = slice(0 if tasks else 2 * n, None)                             # gauges need a third only
    z = latents(model, world.observe(states[some]), forces[some])
    sets = [z[name][-n:] for name in ("z1", "t1", "z2", "t2")]
    std = torch.cat([s.std(0) for s in sets])
    row = {"std_min": std.min().item(), "std_avg": std.mean().item(),
           "rank": min(effective_rank(s) for s in sets)}
    if tasks:
        place = physics(states[:, -1, -1], config.masses)["position"]
        for name, source in (("decode1", "p1"), ("decode2", "p2")):
            row[name] = ridge(*zip(z[source].split(n), place.split(n)))[0].mean().item()
        for name, planner in (("closed", "short replanned"), ("macro", "macro open loop")):
            tried = try_tasks(planner, model, world, config, tasks, seed, device, precision)
            row[name] = success(tried[0])["mean_body"]
    return row

# 12. FIGURES - the paper's curves, diagnostics, probes and plans
###################################################################################################
# Each reads a checkpoint, writes NAME.png and the NAME.json behind it, and says what it found.

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#4d4d4d")

def canvas(rows, columns, width, height):
    """-> figure, axes (rows, columns): no window, no global state of matplotlib."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)

def publish(args, name, figure, config, n, content):
    """Writes NAME.png, and NAME.json headed by what was run, where, on how much, after what."""
    head = {"command": "python hjepa.py " + shlex.join(args.argv), "seeds": [config.seed], "n": n,
            "device": device_name(args.device), "torch": torch.__version__,
            "epochs": read_checkpoint(args.run)["epoch"], "sequences": config.sequences}
    with atomic(args.out / f"{name}.png") as part:
        figure.savefig(part, format="png")
    write_json(args.out / f"{name}.json", {**head, **content})
    print(f"wrote {args.out / name}.png and .json")

def curves(args):
    """Loss curves: composite (the paper's 121 and 40 are marked), every term, gauges, planning."""
    saved = read_checkpoint(args.run)
    config, rows = Config(**saved["config"]), saved["history"]
    figure, axes = canvas(1, 5, 20, 4)
    panels = {"composite objective": "composite", "prediction and maps": "pred1 pred2 bridge lift",
              "variance": "std_c1 std_t1 std_c2 std_t2",
              "covariance": "cov_c1 cov_t1 cov_c2 cov_t2",
              "validation worlds": "closed macro decode1 decode2 std_min"}
    for ax, (title, names) in zip(axes[0], panels.items()):
        for name, colour in zip(names.split(), COLOURS):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            ax.plot(*zip(*points or [(0, np.nan)]), ".-", label=name, color=colour)
        ax.set(title=title, xlabel="epoch", yscale="linear" if "worlds" in title else "log")
        ax.legend(fontsize=7)
    for value in (121, 40):
        axes[0, 0].axhline(value, color="0.6", lw=0.8, ls=":")
        axes[0, 0].annotate(f"paper: {value}", (1, value), fontsize=7)
    print(f"composite: {rows[0]['first_step']:.1f} at the first step, {rows[0]['composite']:.1f} "
          f"over epoch 1, {rows[-1]['composite']:.1f} over epoch {len(rows)}; the paper: 121 to 40")
    publish(args, "curves", figure, config, config.sequences, {
        "paper": [121, 40], "trained_on": saved["device"], "precision": saved["precision"],
        "minutes": sum(row["seconds"] for row in rows) / 60, "config": dataclasses.asdict(config),
        "parameters": sum(p.numel() for p in build(config).parameters()), "rows": rows})

def diagnose(args):
    """Did it collapse? Deviation, covariance, correlation, spectrum and rank, per tap and branch.
    Collapse shows as deviations near 0, coloured correlations, a spectrum that falls off a cliff.
    """
    model, config = load(args.run, args.device)
    world = build_world(config)
    states, forces, _ = sequences(world, config, args.n, config.test_seed, "worlds", args.device)
    z, rows = latents(model, world.observe(states), forces), []
    figure, axes = canvas(5, 4, 15, 18)
    sets = ("z1", "context, shallow"), ("t1", "target, shallow"), ("z2", "context, deep"), (
        "t2", "target, deep")
    for column, (name, title) in zip(axes.T, sets):
        cov = torch.cov(z[name].T)
        std, size = cov.diagonal().sqrt(), len(cov)
        corr = cov / (std[:, None] * std).clamp_min(1e-12)
        off = corr[~torch.eye(size, dtype=torch.bool)].abs()
        spectrum = torch.linalg.eigvalsh(cov).flip(0).clamp_min(1e-12)
        rows.append({"set": title, "dimensions": size, "std_min": std.min().item(),
                     "std_mean": std.mean().item(), "std_max": std.max().item(),
                     "correlation": off.mean().item(), "rank": effective_rank(z[name]),
                     "std": std.tolist(), "spectrum": spectrum.tolist()})
        column[0].bar(range(size), std.sort().values, width=1.0, color=COLOURS[0])
        column[0].set(title=f"{title}\ndeviation of each dimension")
        column[1].set(title="covariance")
        column[2].set(title=f"|correlation| {off.mean():.3f} on average")
        for ax, matrix in ((column[1], cov), (column[2], corr)):
            figure.colorbar(ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1), ax=ax, shrink=0.8)
        column[3].semilogy(range(1, size + 1), spectrum, color=COLOURS[1])
        column[3].set(title=f"spectrum, effective rank {rows[-1]['rank']:.0f}")
        print("{set}: deviation {std_min:.2f} to {std_max:.2f}, mean |correlation| "
              "{correlation:.3f}, effective rank {rank:.0f} of {dimensions}".format(**rows[-1]))
    keys = "epoch", "std_min", "std_avg", "rank"
    history = [{k: row[k] for k in keys} for row in read_checkpoint(args.run)["history"]]
    for ax, key in zip(axes[4], keys[1:]):
        ax.plot([row["epoch"] for row in history], [row[key] for row in history], ".-")
        ax.set(title=f"{key} of all sets, training", xlabel="epoch")
    axes[4, 3].axis("off")
    publish(args, "diagnose", figure, config, args.n, {"rows": rows, "history": history})

def probe(args):
    """Linear probes of both taps; the raw clip and the untrained encoder are the controls.

    Position and velocity are in the observation: decoding them is a sanity check. Energy and pair
    distance are what a linear read-out of the raw clip cannot give.
    """
    model, config = load(args.run, args.device)
    fresh, world, data = build(config).to(args.device).eval(), build_world(config), []
    for seed, n in ((config.seed, 2 * args.n), (config.validation_seed, args.n),
                    (config.test_seed, args.n)):
        states, forces, _ = sequences(world, config, n, seed, "probe", args.device)
        obs = world.observe(states)
        z, start = latents(model, obs, forces), latents(fresh, obs, forces)
        data.append(({"shallow tap": z["z1"], "deep tap": z["z2"],
                      "raw clip": obs[:, 0].flatten(1).cpu(), "untrained shallow tap": start["z1"],
                      "untrained deep tap": start["z2"]}, physics(states[:, 0, -1], config.masses)))
    figure, axes = canvas(1, 2, 13, 4.6)
    (sources, targets), rows = data[0], []
    for i, source in enumerate(bar(sources, "probe", len(sources))):
        for target in targets:
            r2, guess = ridge(*((x[source], y[target]) for x, y in data))
            rows.append({"source": source, "target": target, "r2": r2.mean().item(),
                         "r2_min": r2.min().item()})
            if len(rows) == 1:                                            # shallow tap, position
                for body, true in enumerate(data[2][1][target][:800].split(2, 1)):
                    axes[0, 0].plot(true, guess[:800, 2 * body:2 * body + 2], ".", ms=2,
                                    color=COLOURS[body % 6])
                axes[0, 0].set(title=f"{target} from the {source}, R2 {r2.mean():.4f}",
                               xlabel="true x and y, one colour a body", ylabel="decoded")
        scores = [row["r2"] for row in rows[-len(targets):]]
        axes[0, 1].bar(np.arange(len(targets)) + 0.16 * (i - 2), np.clip(scores, 0, 1), 0.15,
                       color=COLOURS[i], label=source)
        print(f"{source:>21}: " + ", ".join(f"{t} R2 {r:.4f}" for t, r in zip(targets, scores)))
    axes[0, 1].set(title="linear probes on test worlds (below 0: drawn as 0)", ylabel="R2")
    axes[0, 1].set_xticks(range(len(targets)), targets)
    axes[0, 1].legend(fontsize=7, loc="lower left")
    publish(args, "probe", figure, config, args.n, {"rows": rows})

def draw_frame(ax, world, path, goal, force=None):
    """path (T, bodies, 4), goal (bodies, 4): bodies filled, goals hollow, forces as arrows."""
    from matplotlib.patches import Circle
    ax.clear()
    ax.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[], aspect="equal")
    for b, radius in enumerate(world.radii):
        colour, here = COLOURS[b % len(COLOURS)], path[-1, b, :2]
        ax.add_patch(Circle(here, radius, color=colour, alpha=0.85))
        ax.add_patch(Circle(goal[b, :2], radius, fill=False, ec=colour, lw=1.6, ls="--"))
        ax.plot(path[:, b, 0], path[:, b, 1], lw=1, color=colour)
        if force is not None:
            ax.annotate("", here + 0.12 * force[b], here, arrowprops={"arrowstyle": "->"})

def plan(args):
    """CEM towards the embeddings of held-out goals: who arrives how often, one episode as a GIF."""
    from matplotlib.animation import PillowWriter
    model, config = load(args.run, args.device)
    chosen = {k: getattr(args, k) for k in ("tasks", "samples", "iterations", "elites", "views")}
    config = dataclasses.replace(config, **{k: v for k, v in chosen.items() if v is not None})
    world, precision = build_world(config), pick_precision(args.precision, args.device)
    tasks = make_tasks(world, config.tasks, config.steps, generator(config.test_seed, "tasks"),
                       config.hold, config.start_speed)
    print(f"{config.tasks} test goals, {config.steps * config.hold} frames ahead; CEM "
          f"{config.samples} x {config.iterations} seen in {config.views} images of the box, "
          f"{config.elites} elites, {precision}")
    rows, seen = [], {}
    for planner in PLANNERS:
        *seen[planner], seconds = try_tasks(planner, model, world, config, tasks, config.test_seed,
                                            args.device, precision)
        errors = seen[planner][0]
        rows.append({"planner": planner, **success(errors), "seconds": seconds,
                     "mean_body_ci": bootstrap(errors.mean(-1) < 0.1),
                     "success_ci": bootstrap(errors.amax(-1) < 0.1), "errors": errors.tolist()})
        print("{planner:>16}: mean body within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
              "worst within 0.05 {strict:6.1%}, error {error:.3f}".format(**rows[-1]), flush=True)
    episode = int(tasks["contact"].int().argmax())                        # first with a contact
    goal = tasks["goal"][episode, -1].numpy()
    figure, axes = canvas(1, 4, 17, 4.2)
    for ax, planner in zip(axes[0], ("zero", "macro open loop", "short replanned")):
        errors, states, _ = seen[planner]
        draw_frame(ax, world, states[episode].numpy(), goal)
        ax.set(title=f"{planner}: mean error {errors[episode].mean():.3f}")
    for i, row in enumerate(rows):
        low, high = row["mean_body_ci"]
        axes[0, 3].barh(i, row["mean_body"], color=COLOURS[i], ecolor="0.4",
                        xerr=[[row["mean_body"] - low], [high - row["mean_body"]]])
    axes[0, 3].set_yticks(range(len(rows)), PLANNERS)
    axes[0, 3].set(title=f"share of {config.tasks} goals, mean body within 0.1", xlim=(0, 1))
    axes[0, 3].invert_yaxis()
    publish(args, "plan", figure, config, config.tasks, {
        "frames": config.steps * config.hold, "precision": precision, "samples": config.samples,
        "iterations": config.iterations, "elites": config.elites, "views": config.views,
        "contact": tasks["contact"].tolist(), "rows": rows})
    figure, axes = canvas(1, 1, 4, 4.2)
    _, states, forces = (x[episode].numpy() for x in seen["short replanned"])
    writer = PillowWriter(fps=12)                                         # half of true speed
    with atomic(args.out / "plan.gif") as part:
        writer.setup(figure, part, dpi=90)
        for t in range(len(states)):
            force = forces[t // config.hold].reshape(-1, 2)
            draw_frame(axes[0, 0], world, states[:t + 1], goal, force)
            axes[0, 0].set(title=f"frame {t + 1} of {len(states)}, replanned every clip")
            writer.grab_frame()
        writer.finish()
    print(f"wrote {args.out / 'plan.gif'}: goal {episode} hollow, forces as arrows")

# 13. COMMAND LINE - subcommands and errors
###################################################################################################

class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line."""

    def error(self, message):
        raise Refusal(f"{message} (see `python {self.prog} --help`)")

def make_parser():
    """Settings become flags of `train` and `config`; a flag that is not given is absent."""
    parser = Parser(prog="hjepa.py", allow_abbrev=False, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="do", metavar="COMMAND", required=True)
    def command(name, text):
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    for name, text in (("train", "train, or go on if the run directory holds a checkpoint"),
                       ("config", "print what would run, and where each value comes from")):
        sub = command(name, text)
        sub.add_argument("--preset", choices=PRESETS, default="paper", help="default: paper")
        sub.add_argument("--run", type=Path, help="run directory (default: runs/PRESET)")
        for f in dataclasses.fields(Config):
            kind = {tuple: {"type": float, "nargs": "+"},
                    bool: {"action": argparse.BooleanOptionalAction}}.get(
                        f.type, {"type": f.type, "choices": f.metadata["choices"]})
            sub.add_argument("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, **kind,
                             help=f"{f.metadata['meaning']} [{f.metadata['source']}: {f.default}]")
    for do in (curves, diagnose, probe, plan):
        sub = command(do.__name__, do.__doc__.splitlines()[0])
        sub.add_argument("--run", type=Path, default=Path("runs/paper"), help="or a checkpoint")
        sub.add_argument("--out", type=Path, default=Path("figures"), help="where PNG and JSON go")
        sub.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
        if do in (diagnose, probe):
            sub.add_argument("--n", type=int, default=4096, help="test sequences to encode (4096)")
        elif do is plan:
            sub.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
            for flag in ("tasks", "samples", "iterations", "elites", "views"):
                sub.add_argument("--" + flag, type=int, help="default: as in the run's config")
    return parser

def show_config(config, preset, flags):
    """`config`: each value, where it comes from, what it means."""
    for f in dataclasses.fields(Config):
        source = ("flag" if f.name in flags else f"preset {preset}" if f.name in PRESETS[preset]
                  else f"default, {f.metadata['source']}")
        print(f"{f.name:>16} = {getattr(config, f.name)!s:<15} {source:<15} "
              f"{f.metadata['meaning']}")

def main(argv=None):
    """-> exit code: 0 done, 2 something to mend (one line says what), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "" in argv:                                                    # as in --run "$UNSET"
            raise Refusal("an argument is empty: give a value, or leave the flag out")
        args = vars(make_parser().parse_args(argv))
        do, run = args.pop("do"), args.pop("run")
        if do in ("train", "config"):
            preset = args.pop("preset")
            config = Config(**{**PRESETS[preset], **args})
            if do == "config":
                show_config(config, preset, args)
            else:
                train(config, run or Path("runs") / preset)
        else:
            args["device"] = pick_device(args["device"])
            globals()[do](argparse.Namespace(run=run, argv=argv, **args))
    except (Refusal, ValueError, OSError, MemoryError, torch.OutOfMemoryError) as e:
        mend = ": mend that, or choose another --run or --out" if isinstance(e, OSError) else ""
        print("hjepa:", (str(e) or "out of memory").splitlines()[0] + mend, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhjepa: stopped; go on with python hjepa.py", shlex.join(argv), file=sys.stderr)
        return 130
    return 0

if __name__ == "__main__":
    sys.exit(main())
