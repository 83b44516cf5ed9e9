"""A JEPA of Two Rooms: an encoder of pictures, the project's predictor, a loss, a training.

    picture 0 --encoder--> z0 --predictor(actions of clip 0)--> p1 --predictor--> p2 ... p8
    picture k --encoder--> zk, which pk predicts

One picture says all there is to know, so a clip ends in one picture, and there is one encoder. A
clip is 4 steps of the dot; in a plan one action is held for it. As in EB-JEPA, two more terms shape
the embedding: temporal similarity, and inverse dynamics (which action leads from one picture to the
next?). A first guess is trained beside: which action comes first on the way to a later picture?

Shapes: N samples, B trajectories, K clips, D embedding, A = 2 numbers of an action, T steps in a
clip.
"""
import dataclasses
import time

import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import rooms_world, trainings


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides which model a training gives. Weights are called as the terms they weigh."""
    latent: int = 128
    width: int = 512                            # of the encoder's last hidden layer
    predictor_width: int = 384
    guess_width: int = 384                      # of the first guess and of inverse dynamics
    clip: int = 4                               # steps of the dot
    clips: int = 8                              # of a roll-out, as in EB-JEPA
    stride: int = 7                             # clips between the roll-outs of a trajectory
    pairs: int = 16                             # of now and goal, in each trajectory
    layouts: int = 16                           # in a batch
    per_layout: int = 4                         # trajectories
    epochs: int = 60
    steps: int = 50                             # of the optimiser, per epoch
    lr: float = 1e-3
    weight_decay: float = 1e-5
    pred: float = 1.0
    std: float = 16.0
    cov: float = 1.0
    sim: float = 12.0
    idm: float = 1.0
    guess: float = 1.0
    seed: int = 0

    @property
    def sequences(self):
        """Trajectories that the whole training sees, each once."""
        return self.epochs * self.steps * self.layouts * self.per_layout


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
        self.to(memory_format=torch.channels_last)                        # a third faster on a CPU

    def forward(self, pictures):
        return self.layers(pictures.contiguous(memory_format=torch.channels_last))


def network_of_two(latent, width):
    """-> a network: two embeddings side by side (N, 2 D) -> an action (N, 2)."""
    return nn.Sequential(nn.Linear(2 * latent, width), nn.GELU(),
                         nn.Linear(width, width), nn.GELU(),
                         nn.Linear(width, 2))


class RoomsModel(nn.Module):
    """The encoder, the predictor, inverse dynamics and the first guess.

    Actions that the last two give are in shares of Rooms.force_limit.
    """

    def __init__(self, settings):
        super().__init__()
        self.clip = settings.clip
        self.encoder = PictureEncoder(settings.latent, settings.width)
        self.predictor = hjepa.Predictor(settings.latent, 2 * settings.clip,
                                         settings.predictor_width, blocks=2)
        self.inverse = network_of_two(settings.latent, settings.guess_width)
        self.guess = network_of_two(settings.latent, settings.guess_width)

    def embed(self, states):
        """states (..., 1, 4) -> embeddings (..., D) of their pictures."""
        lead = states.shape[:-2]
        pictures = rooms_world.render(states.flatten(0, -3))
        return self.encoder(pictures).unflatten(0, lead)

    def rollout(self, z, actions):
        """z (N, D), actions (N, K, T A) -> predicted embeddings (N, K, D), each from the last."""
        path = []
        for action in actions.unbind(1):
            z = self.predictor(z, action)
            path.append(z)
        return torch.stack(path, 1)


def build(settings):
    """Settings -> RoomsModel with the start weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings.seed, "rooms weights").initial_seed())
        return RoomsModel(settings)


# ---- data

def draw_epoch(settings, epoch):
    """-> states (steps, B, K + 1, 1, 4), one at each end of a clip, actions (steps, B, K, T, 2).

    Each batch holds some trajectories of each of its layouts.
    """
    gen = hjepa.generator(settings.seed, "rooms data", epoch)
    wall, door = rooms_world.draw_layouts(settings.steps * settings.layouts, gen)
    wall = wall.repeat_interleave(settings.per_layout)
    door = door.repeat_interleave(settings.per_layout)
    states, actions = rooms_world.draw_trajectories(wall, door, gen)
    clips = actions.shape[1] // settings.clip
    used = clips * settings.clip
    states = states[:, :used + 1:settings.clip]
    actions = actions[:, :used].unflatten(1, (clips, settings.clip))
    batch = settings.layouts * settings.per_layout
    states = states.unflatten(0, (settings.steps, batch))
    return states, actions.unflatten(0, (settings.steps, batch))


# ---- loss

def prediction_error(model, z, actions, clips, stride):
    """z (B, K + 1, D), actions (B, K, T, 2) -> mean squared error of roll-outs over `clips` clips
    that begin at every `stride`-th picture."""
    actions = actions.flatten(2)
    starts = range(0, actions.shape[1] - clips + 1, stride)
    first = torch.cat([z[:, start] for start in starts])
    known = torch.cat([actions[:, start:start + clips] for start in starts])
    truth = torch.cat([z[:, start + 1:start + clips + 1] for start in starts])
    predicted = model.rollout(first, known)
    return F.mse_loss(predicted.float(), truth.float())


def within_layouts(z, layouts):
    """z (B, K + 1, D), B sorted by layout -> (B (K + 1), D): less the mean over its layout.

    The wall does not move, so an embedding that holds the layout alone would vary enough for VICReg
    and be predicted without an error. What is left here varies only with the place of the dot.
    """
    z = z.unflatten(0, (layouts, -1))
    z = z - z.mean((1, 2), keepdim=True)
    return z.flatten(0, 2)


def guess_error(model, z, held, pairs, gen):
    """z (B, K + 1, D), held (B, K, 2): the mean action of each clip, in shares of the limit ->
    mean squared error of the first guess, for `pairs` pairs of a picture and a later one."""
    batch, clips = held.shape[:2]
    now = torch.randint(clips, (batch, pairs), generator=gen)
    share = torch.rand(batch, pairs, generator=gen)
    goal = now + 1 + (share * (clips - now)).long()
    now = now.to(z.device)[..., None]
    goal = goal.to(z.device)[..., None]
    both = torch.cat([z.take_along_dim(now, 1), z.take_along_dim(goal, 1)], -1)
    return F.mse_loss(model.guess(both).float(), held.take_along_dim(now, 1))


def objective(model, states, actions, settings, gen):
    """states (B, K + 1, 1, 4), actions (B, K, T, 2) -> total, terms (dict of scalars).

    gen: a CPU generator, for the pairs of the first guess.
    """
    z = model.embed(states)
    exact = z.float()
    held = actions.mean(2) / rooms_world.Rooms.force_limit
    terms = {"pred": prediction_error(model, z, actions, settings.clips, settings.stride)}
    terms.update(hjepa.vicreg_terms(within_layouts(exact, settings.layouts)))
    terms["sim"] = F.mse_loss(exact[:, 1:], exact[:, :-1])
    neighbours = torch.cat([z[:, :-1], z[:, 1:]], -1)
    terms["idm"] = F.mse_loss(model.inverse(neighbours).float(), held)
    terms["guess"] = guess_error(model, z, held, settings.pairs, gen)
    total = sum(getattr(settings, name) * value for name, value in terms.items())
    return total, terms


# ---- training

def train_epoch(model, optimizer, settings, epoch, device, precision):
    """-> dict of terms, means over the epoch. ValueError if one of them is not finite."""
    states, actions = draw_epoch(settings, epoch)
    gen = hjepa.generator(settings.seed, "rooms pairs", epoch)
    all_steps = settings.epochs * settings.steps
    log = []
    for number in range(settings.steps):
        step = epoch * settings.steps + number
        rate = hjepa.learning_rate(step, all_steps, settings.lr, all_steps // 10)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with hjepa.autocast(device, precision):
            total, terms = objective(model, states[number].to(device), actions[number].to(device),
                                     settings, gen)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        log.append(torch.stack([value.detach() for value in terms.values()]))
    means = torch.stack(log).mean(0)
    if not means.isfinite().all():
        raise hjepa.Refusal(f"epoch {epoch + 1}: the loss is not finite: lower --lr")
    return dict(zip(terms, means.tolist()))


def build_from(saved):
    """A dict of Settings -> RoomsModel."""
    return build(Settings(**saved))


def read(path):
    """File of `train` -> its content. Refusal if it is not there or damaged."""
    return trainings.read(path, build_from, f"no model at {path}", "figures/rooms.py")


def train(path, settings, device, precision):
    """Train from where the file stands to the end -> RoomsModel in eval mode, a row per epoch.

    Refusal if the file belongs to a training with other settings.
    """
    model = build(settings).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr,
                                  weight_decay=settings.weight_decay)
    mine = dataclasses.asdict(settings)
    rows = []
    if path.exists():
        saved = read(path)
        if saved["settings"] != mine:
            raise hjepa.Refusal(f"{path} was trained with other settings: repeat those, or choose "
                                "another --run")
        model.load_state_dict(saved["model"])
        rows = saved["rows"]
        if len(rows) < settings.epochs:
            optimizer.load_state_dict(saved["optimizer"])
    for epoch in range(len(rows), settings.epochs):
        start = time.perf_counter()
        terms = train_epoch(model, optimizer, settings, epoch, device, precision)
        rows.append({"epoch": epoch + 1, **terms, "seconds": time.perf_counter() - start})
        unfinished = optimizer.state_dict() if len(rows) < settings.epochs else None
        trainings.save(path, {"settings": mine, "epochs": settings.epochs,
                              "model": model.state_dict(), "optimizer": unfinished, "rows": rows})
        trainings.say(rows[-1])
    return model.eval(), rows
