"""Two JEPAs of pictures: of two views of a digit, and of films of moving digits. With their losses.

    image    view 1 --encoder--> z    view 2 --encoder--> z'     the predictor is the identity
             r, r' = projector(z), projector(z')
             loss = pred mean (r - r')^2 + what keeps r and r' from collapsing
    video    frames t-1, t --encoder--> z(t);   predictor(z(t), z(t) - z(t-1)) -> p(t+1), and on
             loss = mean over orders 1..K of (p - z)^2 + VICReg of z

As in EB-JEPA (Terver et al. 2026, section 3, equations 2, 3 and 9). Nothing is decoded and no label
is seen. Shapes: N pictures, B films, T frames, D embedding, R what the projector gives.
"""
import dataclasses

import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import pictures_data
from lib.variants_losses import sigreg, unit_directions

DIRECTIONS = 256                                # of SIGReg, drawn anew in each step


@dataclasses.dataclass(frozen=True)
class Training:
    """What every training has. sequences: pictures or films that are seen in all."""
    epochs: int
    steps: int                                  # of the optimiser, per epoch
    batch: int
    lr: float
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def sequences(self):
        return self.epochs * self.steps * self.batch


@dataclasses.dataclass(frozen=True)
class ImageSettings(Training):
    """All that decides which image-JEPA a training gives. Weights are called as the terms."""
    epochs: int = 40
    steps: int = 14                             # 14 x 250: each training digit once
    batch: int = 250
    lr: float = 2e-3
    width: int = 32                             # channels of the encoder's first layer
    latent: int = 512
    hidden: int = 1024                          # of the projector
    projected: int = 256                        # R; 0: no projector
    regulariser: str = "VICReg"                 # or SIGReg
    pred: float = 25.0
    std: float = 25.0
    cov: float = 1.0
    gauss: float = 0.0


@dataclasses.dataclass(frozen=True)
class VideoSettings(Training):
    """All that decides which video-JEPA a training gives."""
    epochs: int = 16
    steps: int = 50
    batch: int = 32
    lr: float = 1e-3
    width: int = 32
    hidden: int = 512                           # of the encoder's last layer but one
    latent: int = 128
    predictor_width: int = 256
    frames: int = 12                            # of a film
    window: int = 2                             # frames that are embedded together
    rollout: int = 4                            # K
    pred: float = 1.0
    std: float = 3.0
    cov: float = 0.1


class Encoder(nn.Module):
    """pictures (N, channels, side, side) in [0, 1] -> embedding (N, D): three convolutions.

    first: (size, stride) of the first kernel. hidden: of one more layer at the end; 0: none.
    """

    def __init__(self, channels, side, width, latent, first, hidden=0):
        super().__init__()
        size, stride = first
        cells = -(-side // stride)
        cells = -(-cells // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.Flatten())
        features = 4 * width * cells * cells
        if hidden:
            self.layers.extend([nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden),
                                nn.ReLU()])
            features = hidden
        self.layers.append(nn.Linear(features, latent))

    def forward(self, pictures):
        return self.layers(pictures)


class ImageModel(nn.Module):
    """The encoder and the projector, which is the identity if there is none."""

    def __init__(self, settings):
        super().__init__()
        self.encoder = Encoder(1, pictures_data.SIDE, settings.width, settings.latent, (5, 2))
        self.projector = nn.Identity()
        if settings.projected:
            self.projector = nn.Sequential(
                nn.BatchNorm1d(settings.latent), nn.ReLU(),
                nn.Linear(settings.latent, settings.hidden, bias=False),
                nn.BatchNorm1d(settings.hidden), nn.ReLU(),
                nn.Linear(settings.hidden, settings.projected))

    def embed(self, pictures):
        """pictures (N, 28, 28) -> z (N, D)."""
        return self.encoder(pictures[:, None])


class VideoModel(nn.Module):
    """The encoder of one frame and the predictor, hjepa.py's own: where the embedding's last step
    stands, an action stands there."""

    def __init__(self, settings):
        super().__init__()
        self.window = settings.window
        self.encoder = Encoder(settings.window, pictures_data.CANVAS, settings.width,
                               settings.latent, (7, 4), settings.hidden)
        self.predictor = hjepa.Predictor(settings.latent, settings.latent,
                                         settings.predictor_width, blocks=2)

    def embed(self, films):
        """films (B, T, 64, 64) -> z (B, T - window + 1, D), each of `window` frames."""
        frames = films.unfold(1, self.window, 1).movedim(-1, 2)           # (B, Z, window, 64, 64)
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def step(self, before, now):
        """Two embeddings that follow each other (..., D) -> the next one."""
        return self.predictor(now.flatten(0, -2), (now - before).flatten(0, -2)).view_as(now)

    def rollout(self, before, now, steps):
        """before, now (B, D) -> p (B, steps, D): each from the two before it."""
        path = []
        for _ in range(steps):
            before, now = now, self.step(before, now)
            path.append(now)
        return torch.stack(path, 1)


def build(settings):
    """ImageSettings or VideoSettings -> the model with the start weights of its seed."""
    kind = ImageModel if isinstance(settings, ImageSettings) else VideoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings.seed, "pictures weights").initial_seed())
        return kind(settings)


# ---- losses

def image_terms(r, regulariser, gen):
    """r (2, N, R): two views, projected -> dict of terms. gen: for the directions of SIGReg."""
    terms = {"pred": F.mse_loss(r[0], r[1])}
    if regulariser == "VICReg":
        terms.update(hjepa.vicreg_terms(r))     # the views are not pooled
    else:
        directions = unit_directions(r.shape[-1], DIRECTIONS, gen, r.device)
        # Over N: the distance from a Gaussian itself, whatever the size of the batch.
        terms["gauss"] = sigreg(r, directions) / r.shape[1]
    return terms


def image_objective(model, pictures, settings, gen):
    """pictures (N, 28, 28) -> total, terms. gen: a CPU generator, for views and directions."""
    views = pictures_data.make_views(pictures, gen)
    r = model.projector(model.embed(views.flatten(0, 1))).unflatten(0, (2, -1))
    return weighted(image_terms(r.float(), settings.regulariser, gen), settings)


def rollout_error(model, z, orders):
    """z (B, T, D) -> mean over orders k = 1..K of the mean squared error of predictions of order k.

    A prediction of order k begins with two real frames and has called the predictor k times
    (EB-JEPA, equation 9). Roll-outs begin at every pair of frames that leaves k more.
    DEVIATION: the second frame of the pair is real only in the first call, as in use; equation 10
    takes both frames of one order. And a mean over orders, not a sum: K does not change the weight.
    """
    before = z[:, :-2]
    now = z[:, 1:-1]
    errors = []
    for order in range(1, orders + 1):
        before, now = now, model.step(before, now)
        truth = z[:, 1 + order:]
        errors.append(F.mse_loss(now, truth))
        before, now = before[:, :-1], now[:, :-1]                         # the last has no successor
    return torch.stack(errors).mean()


def within_films(z):
    """z (B, T, D) -> less the mean of each film: what moves.

    A film's digits stay, so an embedding of the digits alone would vary enough and be predicted
    without an error. What is left here varies only with places.
    """
    return z - z.mean(1, keepdim=True)


def video_terms(model, z, orders):
    """z (B, T, D) -> dict of terms. VICReg sees what moves, over all films and frames."""
    terms = {"pred": rollout_error(model, z, orders)}
    terms.update(hjepa.vicreg_terms(within_films(z).flatten(0, 1)))
    return terms


def video_objective(model, films, settings, gen):
    """films (B, T, 64, 64) -> total, terms. Nothing here is random."""
    return weighted(video_terms(model, model.embed(films).float(), settings.rollout), settings)


def weighted(terms, settings):
    """-> the sum of the terms with their weights, the terms."""
    return sum(getattr(settings, name) * value for name, value in terms.items()), terms
