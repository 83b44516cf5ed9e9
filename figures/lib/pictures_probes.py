"""What is in an embedding of pictures? Its digit, and where two digits are.

Shapes: N pictures or frames, P numbers of an embedding.
"""
import hjepa
import torch
import torch.nn.functional as F

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)            # of the logistic probe
NEIGHBOURS = (1, 3, 5, 10, 20)


# ---- which digit

def fit_logistic(x, y, penalty, steps=100):
    """x (N, P), labels y (N,) -> weight (P, 10), offset (10,) with the least cross-entropy plus
    penalty |weight|^2, by L-BFGS from zero."""
    weight = torch.zeros(x.shape[1], 10, dtype=x.dtype, requires_grad=True)
    offset = torch.zeros(10, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, offset], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + offset, y) + penalty * weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    return weight.detach(), offset.detach()


def linear_probe(parts):
    """parts: dict train, validation, test -> (x (N, P), labels (N,)), on the CPU.

    -> dict validation, test -> bools (N,): is the digit right? The penalty is the one that is best
    on validation.
    """
    centre = parts["train"][0].mean(0)
    scale = parts["train"][0].std(0).clamp_min(1e-2 * parts["train"][0].std(0).max())
    scaled = {name: ((x - centre) / scale, y) for name, (x, y) in parts.items()}
    best = None
    for penalty in PENALTIES:
        weight, offset = fit_logistic(*scaled["train"], penalty)
        right = {name: (x @ weight + offset).argmax(1) == y
                 for name, (x, y) in scaled.items() if name != "train"}
        if best is None or right["validation"].sum() > best["validation"].sum():
            best = right
    return best


def vote(x, labels, queries, neighbours):
    """x (N, P) with labels (N,), queries (M, P) -> (M,): what most of the `neighbours` nearest of x
    are, by cosine; of a draw, the lower digit."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(x, dim=1).T
    nearest = similarity.topk(neighbours, dim=1).indices
    votes = F.one_hot(labels[nearest], 10).sum(1)
    return votes.argmax(1)


def neighbour_probe(parts):
    """As `linear_probe`, by a vote of the nearest training pictures."""
    x, labels = parts["train"]
    best = None
    for neighbours in NEIGHBOURS:
        right = {name: vote(x, labels, queries, neighbours) == y
                 for name, (queries, y) in parts.items() if name != "train"}
        if best is None or right["validation"].sum() > best["validation"].sum():
            best = right
    return best


# ---- where two digits are

def to_moments(centres):
    """centres (..., 2 digits, 2) of x and y -> (..., 5): the mean of both, and the products xx, xy,
    yy of half their difference.

    They do not change if the digits are exchanged, and they say where the digits are but for that.
    So no order of the digits, which would jump as they pass each other, has to be read.
    """
    mean = centres.mean(-2)
    half = (centres[..., 0, :] - centres[..., 1, :]) / 2
    x, y = half.unbind(-1)
    return torch.cat([mean, torch.stack([x * x, x * y, y * y], -1)], -1)


def from_moments(moments):
    """moments (..., 5) -> centres (..., 2 digits, 2), in no order of meaning.

    The products are those of a vector only if the matrix [[xx, xy], [xy, yy]] has rank one. What a
    probe reads need not: the nearest vector is its first eigenvector, as long as the root of its
    eigenvalue.
    """
    xx, xy, yy = moments[..., 2:].unbind(-1)
    matrix = torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)
    values, vectors = torch.linalg.eigh(matrix)
    half = vectors[..., 1] * values[..., 1:].clamp_min(0).sqrt()
    mean = moments[..., :2]
    return torch.stack([mean + half, mean - half], -2)


def place_error(guess, true):
    """guess, true (..., 2 digits, 2) -> (...): mean distance of the two digits, in pixels, for the
    better of the two ways to pair them."""
    straight = (guess - true).norm(dim=-1).mean(-1)
    crossed = (guess.flip(-2) - true).norm(dim=-1).mean(-1)
    return torch.minimum(straight, crossed)


def place_reader(train, validation):
    """Two pairs z (N, P), centres (N, 2, 2), on the CPU -> function z (..., P) -> centres
    (..., 2, 2). A linear probe, hjepa.ridge, reads the five moments."""
    pairs = [(z, to_moments(centres)) for z, centres in (train, validation)]
    weight, offset = hjepa.ridge(*pairs)

    def read(z):
        return from_moments((z.double() @ weight + offset).float())
    return read


def nearest(z, known, chunk=512):
    """z (M, P), known (N, P) -> (M,): which of known is nearest to each."""
    return torch.cat([torch.cdist(part, known).argmin(1) for part in z.split(chunk)])
