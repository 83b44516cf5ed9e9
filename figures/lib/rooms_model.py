"""A JEPA of Two Rooms: an encoder of pictures, the project's predictor, a loss, a training.

    picture 0 --encoder--> z0 --predictor(actions of clip 0)--> p1 --predictor--> p2 ... p8
    picture k --encoder--> zk, which pk predicts

One picture says all there is to know, so a clip ends in one picture, and there is one encoder. A
clip is 4 steps of the dot; in a plan one action is held for it.

Shapes: N samples, K clips, D embedding, A = 2 numbers of an action, T steps in a clip.
"""
import dataclasses
import json
import math
import time
from pathlib import Path

import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import rooms_world

FORMAT = "rooms 1"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""
    latent: int = 128
    width: int = 512
    predictor_width: int = 384
    guess_width: int = 384
    clip: int = 4
    clips: int = 8
    stride: int = 7
    guess_clips: int = 1
    pairs: int = 16
    layouts: int = 16
    per_layout: int = 4
    epochs: int = 60
    steps: int = 50
    lr: float = 1e-3
    weight_decay: float = 1e-5
    pred: float = 1.0
    std: float = 16.0
    cov: float = 1.0
    sim: float = 12.0
    idm: float = 1.0
    guess: float = 1.0
    within: bool = True
    seed: int = 0
    precision: str = "bf16"


class PictureEncoder(nn.Module):
    """pictures (N, 2, 65, 65) -> embedding (N, D)."""

    def __init__(self, latent, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 32, 7, stride=4, padding=3),       # 17 x 17
                                    nn.ReLU(),
                                    nn.Conv2d(32, 64, 3, stride=2, padding=1),      # 9 x 9
                                    nn.ReLU(),
                                    nn.Conv2d(64, 64, 3, stride=2, padding=1),      # 5 x 5
                                    nn.ReLU(),
                                    nn.Flatten(),
                                    nn.Linear(64 * 25, width),
                                    nn.ReLU(),
                                    nn.Linear(width, latent))

    def forward(self, pictures):
        return self.layers(pictures.contiguous(memory_format=torch.channels_last))


def small_mlp(inputs, width, outputs):
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(),
                         nn.Linear(width, width), nn.GELU(),
                         nn.Linear(width, outputs))


class RoomsModel(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.clip = s.clip
        self.guess_clips = s.guess_clips
        self.encoder = PictureEncoder(s.latent, s.width)
        self.encoder.to(memory_format=torch.channels_last)
        self.predictor = hjepa.Predictor(s.latent, 2 * s.clip, s.predictor_width)
        self.inverse = small_mlp(2 * s.latent, s.guess_width, 2)
        self.guess = small_mlp(2 * s.latent, s.guess_width, 2 * s.guess_clips)
        self.register_buffer("change", torch.eye(s.latent))

    def embed(self, state):
        """states (..., 1, 4) -> (..., D)"""
        lead = state.shape[:-2]
        pictures = rooms_world.render(state.flatten(0, -3))
        return self.encoder(pictures).unflatten(0, lead)

    def rollout(self, z, actions):
        """z (N, D), actions (N, K, T A) -> (N, K, D)"""
        path = []
        for action in actions.unbind(1):
            z = self.predictor(z, action)
            path.append(z)
        return torch.stack(path, 1)


def build(s):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(s.seed, "rooms weights").initial_seed())
        return RoomsModel(s)


def draw_epoch(s, epoch, seed=None, steps=None):
    """-> states (steps, B, K + 1, 1, 4), one each clip, actions (steps, B, K, T, 2)."""
    steps = s.steps if steps is None else steps
    gen = hjepa.generator(s.seed if seed is None else seed, "rooms data", epoch)
    wall, door = rooms_world.draw_layouts(steps * s.layouts, gen)
    wall = wall.repeat_interleave(s.per_layout)
    door = door.repeat_interleave(s.per_layout)
    states, actions = rooms_world.draw_trajectories(wall, door, gen)
    clips = (rooms_world.FRAMES - 1) // s.clip
    states = states[:, :clips * s.clip + 1:s.clip]
    actions = actions[:, :clips * s.clip].unflatten(1, (clips, s.clip))
    b = s.layouts * s.per_layout
    return states.unflatten(0, (steps, b)), actions.unflatten(0, (steps, b))


def objective(model, states, actions, s, gen):
    """states (B, K + 1, 1, 4), actions (B, K, T, 2)"""
    limit = rooms_world.Rooms.force_limit
    z = model.embed(states)
    z32 = z.float()
    b, k = actions.shape[:2]
    flat = actions.flatten(2)
    starts = range(0, k - s.clips + 1, s.stride)
    z0 = torch.cat([z[:, i] for i in starts])
    some = torch.cat([flat[:, i:i + s.clips] for i in starts])
    aim = torch.cat([z32[:, i + 1:i + s.clips + 1] for i in starts])
    p = model.rollout(z0, some)
    terms = {"pred": F.mse_loss(p.float(), aim)}
    if s.within:
        stat = z32.unflatten(0, (s.layouts, s.per_layout))
        stat = stat - stat.mean((1, 2), keepdim=True)
        stat = stat.flatten(0, 2)
    else:
        stat = z32.transpose(0, 1)
    terms.update(hjepa.vicreg_terms(stat))
    terms["sim"] = (z32[:, 1:] - z32[:, :-1]).square().mean()
    mean_action = actions.mean(2) / limit
    idm = model.inverse(torch.cat([z[:, :-1], z[:, 1:]], -1)).float()
    terms["idm"] = (idm - mean_action).square().mean()
    # first guess: from t to a goal among all that come later
    g, m = s.guess_clips, s.pairs
    t = torch.randint(k - g + 1, (b, m), generator=gen)
    ahead = t + 1 + (torch.rand(b, m, generator=gen) * (k - t)).long()
    now = z.take_along_dim(t[..., None], 1)
    goal = z.take_along_dim(ahead[..., None], 1)
    guess = model.guess(torch.cat([now, goal], -1)).float().unflatten(-1, (g, 2))
    wanted = mean_action.take_along_dim((t[..., None] + torch.arange(g)).flatten(1)[..., None], 1)
    wanted = wanted.unflatten(1, (m, g))
    counts = ((t[..., None] + torch.arange(g)) < ahead[..., None])[..., None]
    terms["guess"] = ((guess - wanted).square() * counts).sum() / counts.sum() / 2
    total = sum(getattr(s, name) * value for name, value in terms.items())
    return total, terms


def train_epoch(model, optimizer, s, epoch):
    states, actions = draw_epoch(s, epoch)
    gen = hjepa.generator(s.seed, "rooms guess", epoch)
    log = []
    for i in range(s.steps):
        rate = hjepa.learning_rate(epoch * s.steps + i, s.epochs * s.steps, s.lr, s.epochs * s.steps // 10)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with hjepa.autocast(torch.device("cpu"), s.precision):
            total, terms = objective(model, states[i], actions[i], s, gen)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        log.append(torch.stack([v.detach() for v in terms.values()]))
    return dict(zip(terms, torch.stack(log).mean(0).tolist()))
