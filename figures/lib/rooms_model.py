"""A JEPA of Two Rooms: two encoders of pictures, the project's predictor, a loss, a training.

    picture 0 --encoders--> z0 --predictor(action 0)--> p1 --predictor(action 1)--> p2 ... p8
    picture k --encoders--> zk, which pk predicts

One picture says all there is to know, so a clip ends in one picture, and context and target have the
same encoders. A picture has two channels, dot and walls, and each has an encoder. The first numbers
of an embedding say where the dot is, the rest how the walls stand. Walls do not move: their part is
carried over, not predicted. A single encoder of both channels was tried first. Its embedding did not
hold the door, because in a trajectory the walls never change: they cost no prediction error.

VICReg acts on the dot's part over all pictures, and on the walls' part over rooms. As in EB-JEPA,
two more terms shape the embedding: temporal similarity, and inverse dynamics (which action leads
from one picture to the next?). A first guess is trained beside: which action comes first on the way
to a later picture?

Shapes: N samples, B trajectories, K clips, D embedding. An action has 2 numbers and is held for a
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
    dot: int = 16                               # numbers that say where the dot is
    walls: int = 16                             # and where the walls are
    channels: int = 8                           # of the first convolution
    width: int = 256                            # of the encoder's last hidden layer
    predictor_width: int = 128
    guess_width: int = 256                      # of the first guess and of inverse dynamics
    clips: int = 8                              # of a roll-out, as in EB-JEPA
    pairs: int = 64                             # of now and goal, in each trajectory
    batch: int = 64                             # trajectories, each in its own rooms
    layouts: int = 128                          # more rooms, for VICReg on the walls' part
    epochs: int = 150
    dot_epochs: int = 10                        # after these the dot's encoder stays as it is
    steps: int = 100                            # of the optimiser, per epoch
    encoder_lr: float = 1e-3
    lr: float = 3e-3                            # of all other parts
    weight_decay: float = 1e-5
    pred: float = 8.0
    std: float = 16.0
    cov: float = 0.02
    sim: float = 12.0
    idm: float = 1.0
    wall_std: float = 16.0
    wall_cov: float = 0.02
    guess: float = 8.0
    seed: int = 0

    @property
    def sequences(self):
        """Trajectories that the whole training sees, each once."""
        return self.epochs * self.steps * self.batch


def dot_encoder(latent, channels, width):
    """-> a network: pictures of the dot (N, 1, 65, 65) -> embeddings (N, latent)."""
    return nn.Sequential(nn.Conv2d(1, channels, 7, stride=4, padding=3),               # 17 x 17
                         nn.ReLU(),
                         nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),    # 9 x 9
                         nn.ReLU(),
                         nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1),
                         nn.ReLU(),                                                    # 5 x 5
                         nn.Flatten(),
                         nn.Linear(2 * channels * 25, width),
                         nn.ReLU(),
                         nn.Linear(width, latent))


class MeanPlace(nn.Module):
    """maps (N, C, H, W) -> (N, 2 C): the mean x and the mean y of each map under its softmax, in
    [-1, 1] (Finn et al. 2016, arXiv 1509.06113)."""

    def forward(self, maps):
        weight = maps.flatten(2).softmax(-1).view_as(maps)
        along_x = torch.linspace(-1, 1, maps.shape[3], device=maps.device)
        along_y = torch.linspace(-1, 1, maps.shape[2], device=maps.device)
        x = (weight.sum(2) * along_x).sum(-1)
        y = (weight.sum(3) * along_y).sum(-1)
        return torch.cat([x, y], 1)


def wall_encoder(latent, channels):
    """-> a network: pictures of the walls (N, 1, 65, 65) -> embeddings (N, latent)."""
    return nn.Sequential(nn.Conv2d(1, channels, 7, stride=2, padding=3),               # 33 x 33
                         nn.ReLU(),
                         nn.Conv2d(channels, 4 * channels, 5, stride=2, padding=2),    # 17 x 17
                         MeanPlace(),
                         nn.Linear(8 * channels, latent))


def network_of_two(latent, width):
    """-> a network: two embeddings side by side (N, 2 D) -> an action (N, 2)."""
    return nn.Sequential(nn.Linear(2 * latent, width), nn.ReLU(),
                         nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, 2))


class RoomsModel(nn.Module):
    """Two encoders, the predictor, inverse dynamics and the first guess.

    An embedding (D) holds the numbers of the dot first, then those of the walls. Actions that the
    last two give are in shares of Rooms.force_limit.
    """

    def __init__(self, settings):
        super().__init__()
        self.clip = rooms_world.CLIP
        self.dot = settings.dot
        latent = settings.dot + settings.walls
        self.see_dot = dot_encoder(settings.dot, 2 * settings.channels, settings.width)
        self.see_walls = wall_encoder(settings.walls, settings.channels)
        self.predictor = hjepa.Predictor(latent, 2, settings.predictor_width, blocks=2)
        self.inverse = network_of_two(latent, settings.guess_width)
        self.guess = network_of_two(latent, settings.guess_width)

    def embed(self, states):
        """states (..., K, 1, 4) -> embeddings (..., K, D) of their pictures. The K pictures of a
        trajectory show the same walls, which are looked at once."""
        dots = rooms_world.render_dot(states)
        walls = rooms_world.render_walls(states[..., :1, :, :])
        dots = self.see_dot(dots.flatten(0, -3)[:, None]).unflatten(0, dots.shape[:-2])
        walls = self.see_walls(walls.flatten(0, -3)[:, None]).unflatten(0, walls.shape[:-2])
        return torch.cat([dots, walls.expand(*dots.shape[:-1], -1)], -1)

    def predict(self, z, action):
        """z (N, D), action (N, 2) -> the embedding after a clip (N, D). Walls stay."""
        after = self.predictor(z, action)
        return torch.cat([after[:, :self.dot], z[:, self.dot:]], -1)

    def rollout(self, z, actions):
        """z (N, D), actions (N, K, 2) -> predicted embeddings (N, K, D), each from the last."""
        path = []
        for action in actions.unbind(1):
            z = self.predict(z, action)
            path.append(z)
        return torch.stack(path, 1)


def build(settings):
    """Settings -> RoomsModel with the start weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings.seed, "rooms weights").initial_seed())
        return RoomsModel(settings)


# ---- data

def draw_epoch(settings, epoch):
    """-> states (steps, B, K + 1, 1, 4), one between clips, actions (steps, B, K, 2)."""
    gen = hjepa.generator(settings.seed, "rooms data", epoch)
    wall, door = rooms_world.draw_layouts(settings.steps * settings.batch, gen)
    states, actions = rooms_world.draw_trajectories(wall, door, gen)
    states = states.unflatten(0, (settings.steps, settings.batch))
    return states, actions.unflatten(0, (settings.steps, settings.batch))


# ---- loss

def prediction_error(model, z, actions, clips):
    """z (B, K + 1, D), actions (B, K, 2) -> mean squared error, of the dot's part, of roll-outs over
    `clips` clips that begin at every picture."""
    starts = range(actions.shape[1] - clips + 1)
    first = torch.cat([z[:, start] for start in starts])
    known = torch.cat([actions[:, start:start + clips] for start in starts])
    truth = torch.cat([z[:, start + 1:start + clips + 1] for start in starts])
    predicted = model.rollout(first, known)[..., :model.dot]
    return F.mse_loss(predicted.float(), truth[..., :model.dot].float())


def guess_error(model, z, held, pairs, gen):
    """z (B, K + 1, D), held (B, K, 2): the action of each clip, in shares of the limit ->
    mean squared error of the first guess, for `pairs` pairs of a picture and a later one."""
    batch, clips = held.shape[:2]
    now = torch.randint(clips, (batch, pairs), generator=gen)
    share = torch.rand(batch, pairs, generator=gen)
    goal = now + 1 + (share * (clips - now)).long()
    now = now.to(z.device)[..., None]
    goal = goal.to(z.device)[..., None]
    both = torch.cat([z.take_along_dim(now, 1), z.take_along_dim(goal, 1)], -1)
    return F.mse_loss(model.guess(both).float(), held.take_along_dim(now, 1))


def wall_terms(model, layouts, device, gen):
    """-> dict of VICReg's terms on the walls' part, over new pictures of `layouts` rooms."""
    wall, door = rooms_world.draw_layouts(layouts, gen)
    states = rooms_world.make_states(torch.zeros(layouts, 2), wall, door)
    pictures = rooms_world.render_walls(states.to(device))
    terms = hjepa.vicreg_terms(model.see_walls(pictures[:, None]))
    return {f"wall_{name}": value for name, value in terms.items()}


def objective(model, states, actions, settings, gen):
    """states (B, K + 1, 1, 4), actions (B, K, 2) -> total, terms (dict of scalars).

    gen: a CPU generator, for the rooms of wall_terms and the pairs of the first guess.
    """
    z = model.embed(states)
    dots = z[..., :model.dot].float()
    held = actions / rooms_world.Rooms.force_limit
    neighbours = torch.cat([z[:, :-1], z[:, 1:]], -1)
    terms = {"pred": prediction_error(model, z, actions, settings.clips)}
    terms.update(hjepa.vicreg_terms(dots.flatten(0, 1)))
    terms["sim"] = F.mse_loss(dots[:, 1:], dots[:, :-1])
    terms["idm"] = F.mse_loss(model.inverse(neighbours).float(), held)
    terms.update(wall_terms(model, settings.layouts, z.device, gen))
    terms["guess"] = guess_error(model, z, held, settings.pairs, gen)
    total = sum(getattr(settings, name) * value for name, value in terms.items())
    return total, terms


# ---- training

def make_optimizer(model, settings):
    """-> AdamW with three groups: the dot's encoder, the walls' encoder, and the rest."""
    rest = [*model.predictor.parameters(), *model.inverse.parameters(), *model.guess.parameters()]
    groups = [model.see_dot.parameters(), model.see_walls.parameters(), rest]
    return torch.optim.AdamW([{"params": list(group)} for group in groups], lr=settings.lr,
                             weight_decay=settings.weight_decay)


def set_rates(optimizer, settings, step):
    """Warm-up and cosine for each group of make_optimizer. The dot's encoder is learnt soon and
    comes to rest early, so that the predictor and the first guess end in a space that stays."""
    steps = settings.epochs * settings.steps
    dot_steps = settings.dot_epochs * settings.steps
    dot, walls, rest = optimizer.param_groups
    dot["lr"] = 0.0
    if step < dot_steps:
        dot["lr"] = hjepa.learning_rate(step, dot_steps, settings.encoder_lr, dot_steps // 10)
    walls["lr"] = hjepa.learning_rate(step, steps, settings.encoder_lr, steps // 10)
    rest["lr"] = hjepa.learning_rate(step, steps, settings.lr, steps // 10)


def train_epoch(model, optimizer, settings, epoch, device, precision):
    """-> dict of terms, means over the epoch. Refusal if one of them is not finite."""
    states, actions = draw_epoch(settings, epoch)
    gen = hjepa.generator(settings.seed, "rooms pairs", epoch)
    learns = epoch < settings.dot_epochs
    model.see_dot.requires_grad_(learns)        # without gradients a step takes two thirds of the time
    log = []
    for number in range(settings.steps):
        set_rates(optimizer, settings, epoch * settings.steps + number)
        with hjepa.autocast(device, precision):
            total, terms = objective(model, states[number].to(device), actions[number].to(device),
                                     settings, gen)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        log.append(torch.stack([value.detach() for value in terms.values()]))
    means = torch.stack(log).mean(0)
    if not means.isfinite().all():
        raise hjepa.Refusal(f"epoch {epoch + 1}: the loss is not finite: try another --seeds, or "
                            "--precision fp32")
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
    optimizer = make_optimizer(model, settings)
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
