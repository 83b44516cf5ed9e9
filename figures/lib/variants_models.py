"""Models that hold more than an HJEPA, or look at less: each is built from hjepa.py's parts.

Each function here is a `build` for hjepa.train: Config -> model. All weights that an HJEPA has
start as those of the run with the same seed. `steps` counts the training steps, in the checkpoint,
so that a resumed training draws and averages on where it stopped.
"""
import contextlib
import dataclasses

import hjepa
import torch
import torch.nn as nn


@contextlib.contextmanager
def start_weights(config):
    """What is built inside gets start weights of the config's seed. The global random state of the
    CPU is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(config.seed, "variant weights").initial_seed())
        yield


def network(*sizes):
    """-> a module: (N, sizes[0]) -> (N, sizes[-1]), GELU between the layers."""
    layers = []
    for inside, outside in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inside, outside), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def counting(config):
    """An HJEPA that counts its training steps."""
    model = hjepa.build_model(config)
    model.register_buffer("steps", torch.zeros((), dtype=torch.long))
    model.seed = config.seed
    model.total_steps = config.epochs * (config.sequences // config.batch)
    return model


def count_step(model):
    """Call it in every objective -> how many training steps there were before this one."""
    step = model.steps.item()
    if torch.is_grad_enabled():
        model.steps += 1
    return step


# ---- against collapse

def with_expander(config):
    """expander: z (N, D) -> v (N, 4 D), three layers, for all four sets (LeCun 2022, figure 14)."""
    model = hjepa.build_model(config)
    with start_weights(config):
        model.expander = network(config.latent, *[4 * config.latent] * 3)
    return model


def with_subspaces(config):
    """subspaces (D, n): orthonormal columns, drawn once. subspace_sizes: how many of them span each
    sub-space: a 16th, an 8th and a 4th of D (16, 32 and 64 of 256). The rest of D is left free."""
    model = counting(config)
    model.subspace_sizes = [max(1, config.latent // part) for part in (16, 8, 4)]
    gen = hjepa.generator(config.seed, "sub-spaces")
    square = torch.randn(config.latent, config.latent, generator=gen, device="cpu")
    frame, _ = torch.linalg.qr(square)
    model.register_buffer("subspaces", frame[:, :sum(model.subspace_sizes)].contiguous())
    return model


def with_average_target(config):
    """The target encoder starts as the context encoder and is not trained: see `follow`."""
    model = counting(config)
    model.target.load_state_dict(model.context.state_dict())
    model.target.requires_grad_(False)
    return model


def follow(model, momentum):
    """target = m target + (1 - m) context, m from `momentum` to 1 in a straight line over the whole
    training (I-JEPA). Without gradients, where nothing is trained, it stays."""
    if not torch.is_grad_enabled():
        return
    share = count_step(model) / model.total_steps
    momentum = momentum + (1 - momentum) * share
    with torch.no_grad():
        for average, weight in zip(model.target.parameters(), model.context.parameters()):
            average.lerp_(weight, 1 - momentum)


# ---- more signals

def with_inverse(config):
    """inverse1, inverse2: two embeddings that follow each other (N, 2 D) -> the force between."""
    model = hjepa.build_model(config)
    actions = 2 * len(config.masses)
    with start_weights(config):
        model.inverse1 = network(2 * config.latent, config.latent, actions)
        model.inverse2 = network(2 * config.latent, config.latent, actions)
    return model


def with_heads(config):
    """heads1, heads2: a predicted embedding (N, D) -> is there a contact (a logit), and the
    velocity of the common centre of mass (N, 1 + 2)."""
    model = hjepa.build_model(config)
    with start_weights(config):
        model.heads1 = network(config.latent, config.latent, 3)
        model.heads2 = network(config.latent, config.latent, 3)
    model.masses = config.masses
    model.dt = config.dt
    return model


def with_other_tap(config):
    """deepen: p1 (N, D) -> t2 of the same clip. flatten: p2 (N, D) -> t1 of the same clip."""
    model = hjepa.build_model(config)
    with start_weights(config):
        model.deepen = hjepa.small_map(config.latent)
        model.flatten = hjepa.small_map(config.latent)
    return model


# ---- predictors

def with_spread(config):
    """spread1, spread2: where a prediction started and where it ended (N, 2 D) -> the log variance
    of its error (N, D)."""
    model = hjepa.build_model(config)
    with start_weights(config):
        model.spread1 = network(2 * config.latent, 2 * config.latent, config.latent)
        model.spread2 = network(2 * config.latent, 2 * config.latent, config.latent)
    return model


def log_variance(spread, before, after):
    """before, after (..., D) -> (..., D), between exp(-10) and exp(10)."""
    return 10 * torch.tanh(spread(torch.cat([before, after], -1)) / 10)


def with_frozen_encoders(config, first):
    """The encoders of the checkpoint `first` (see hjepa.read_checkpoint), not trained further."""
    model = hjepa.build_model(config)
    if not next(model.parameters()).is_meta:               # on "meta" there are shapes only, to check a file
        other, _ = hjepa.load(first)
        model.context.load_state_dict(other.context.state_dict())
        model.target.load_state_dict(other.target.state_dict())
    model.context.requires_grad_(False)
    model.target.requires_grad_(False)
    return model


# ---- data

class Looking(nn.Module):
    """An hjepa.Encoder that gets only what look leaves of a clip: (N, T, F) -> (N, T', F)."""

    def __init__(self, encoder, look):
        super().__init__()
        self.encoder = encoder
        self.look = look

    def tokens(self, clip):
        return self.encoder.tokens(self.look(clip))

    def shallow(self, tokens):
        return self.encoder.shallow(tokens)

    def deep(self, tokens):
        return self.encoder.deep(tokens)

    def forward(self, clip):
        return self.encoder(self.look(clip))


def looking(config, frames=None, blind=False):
    """Encoders that see only the last `frames` frames of a clip (None: all); blind: no velocity."""
    frames = frames or config.clip_frames
    model = hjepa.build_model(dataclasses.replace(config, clip_frames=frames))

    def look(clip):
        clip = clip[:, -frames:]
        if blind:
            seen = clip.new_tensor([1.0, 1.0, 0.0, 0.0]).repeat(clip.shape[-1] // 4)
            clip = clip * seen
        return clip
    shared = model.target is model.context
    model.context = Looking(model.context, look)
    model.target = model.context if shared else Looking(model.target, look)
    return model


class TowardsGoals(hjepa.World):
    """Forces are not random: each body is pushed towards a place of its own, and slowed down, as a
    controller would."""

    def __init__(self, config):
        super().__init__(config.masses, config.radius, config.dt, config.substeps,
                         config.force_limit)
        self.clip_frames = config.clip_frames
        self.start = None

    def reset(self, n, gen, speed=0.3, device="cpu"):
        self.start = super().reset(n, gen, speed, device)
        return self.start

    def random_forces(self, n, clips, gen, device="cpu"):
        """-> forces (n, clips, A) for the worlds that `reset` gave last."""
        goal = super().reset(n, gen, 0.0, device)[..., :2]
        state = self.start
        masses = state.new_tensor(self.masses)[:, None]
        forces = []
        for _ in range(clips):
            wanted = 4 * (goal - state[..., :2]) - 2 * state[..., 2:]     # an acceleration
            force = (masses * wanted).clamp(-self.force_limit, self.force_limit).flatten(1)
            states, _ = self.rollout(state, force[:, None], self.clip_frames)
            state = states[:, -1]
            forces.append(force)
        return torch.stack(forces, 1)


def draw_narrow(world, config, device):
    """hjepa.draw_training, but every force leads to a goal: data of a planner, not of play."""
    return hjepa.draw_training(TowardsGoals(config), config, device)
