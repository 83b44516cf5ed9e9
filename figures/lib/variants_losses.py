"""The loss terms of the variants, each as its paper writes it. They know no model.

B samples, D dimensions, K clips. All are computed in float32.
"""
import math

import torch
import torch.nn.functional as F


# ---- against collapse

def epps_pulley(x, knots=9, reach=3.0):
    r"""x (..., N, P): N samples, seen in P directions -> (..., P): how far from N(0, 1) they are.

        N integral |mean_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt

    by the trapezoidal rule on [-reach, reach]. The integrand is even: `knots` points from 0 to
    reach, counted twice, are 2 knots - 1 points in all. Gaussian samples give about
    sqrt(2 pi) - sqrt(2 pi / 3) = 1.06.
    """
    t = torch.linspace(0, reach, knots, device=x.device)
    normal = torch.exp(-t.square() / 2)
    angle = x[..., None] * t                                              # (..., N, P, knots)
    real = angle.cos().mean(-3) - normal
    imaginary = angle.sin().mean(-3)
    gap = (real.square() + imaginary.square()) * normal
    return x.shape[-2] * 2 * torch.trapezoid(gap, t, dim=-1)


def sigreg(z, directions):
    """z (..., N, D), unit directions (D, P) -> the mean Epps-Pulley statistic (LeJEPA, LeWM)."""
    with torch.autocast(z.device.type, enabled=False):
        return epps_pulley(z.float() @ directions).mean()


def unit_directions(n, count, gen, device="cpu"):
    """-> (n, count): `count` directions, uniform on the sphere."""
    drawn = torch.randn(n, count, generator=gen)
    return (drawn / drawn.norm(dim=0)).to(device)


def directions_inside(frame, sizes, count, gen):
    """Orthonormal frame (D, sum of sizes) -> (D, count len(sizes)): `count` directions inside each
    of the sub-spaces that the frame's columns span, the first sizes[0] of them the first one."""
    found = []
    for basis in frame.split(sizes, 1):
        found.append(basis @ unit_directions(basis.shape[1], count, gen, frame.device))
    return torch.cat(found, 1)


def info_nce(p, t, temperature):
    """p, t (..., B, D) -> which of the batch's targets is it, and which prediction was this target's?
    Mean of both cross-entropies; log B if all scores are equal.

    A score is minus the mean squared distance, over the temperature: the energy that is planned
    with. The first question alone would leave the length of p free, since it is the same for all
    targets, and a roll-out that is too long misses every goal.
    """
    p, t = p.float(), t.float()
    with torch.autocast(p.device.type, enabled=False):
        product = p @ t.transpose(-1, -2).contiguous()                    # (..., B, B)
    p_square = p.square().sum(-1)[..., :, None]
    t_square = t.square().sum(-1)[..., None, :]
    distance = (p_square + t_square - 2 * product) / p.shape[-1]
    scores = -distance / temperature
    which_target = scores.log_softmax(-1).diagonal(dim1=-2, dim2=-1)      # (..., B)
    which_prediction = scores.log_softmax(-2).diagonal(dim1=-2, dim2=-1)
    return -(which_target.mean() + which_prediction.mean()) / 2


def barlow(p, t, off_diagonal=0.005, eps=1e-5):
    r"""p, t (..., B, D) -> 1/D [ sum_i (1 - C_ii)^2 + off_diagonal sum_{i != j} C_ij^2 ].

    C is the correlation over samples of p's dimension i with t's dimension j.
    """
    def standard(z):
        z = z.float()
        z = z - z.mean(-2, keepdim=True)
        variance = z.square().mean(-2, keepdim=True)
        return z * (variance + eps).rsqrt()
    p, t = standard(p), standard(t)
    with torch.autocast(p.device.type, enabled=False):
        c = p.transpose(-1, -2).contiguous() @ t / p.shape[-2]            # (..., D, D)
    diagonal = c.diagonal(dim1=-2, dim2=-1)
    same = (1 - diagonal).square().sum(-1)
    others = c.square().sum((-1, -2)) - diagonal.square().sum(-1)
    return ((same + off_diagonal * others) / c.shape[-1]).mean()


# ---- more signals

def straightness(path):
    """path (K, B, D) of embeddings -> mean of 1 - cos of the angle between a step and the next."""
    steps = path[1:].float() - path[:-1].float()
    return (1 - F.cosine_similarity(steps[1:], steps[:-1], dim=-1)).mean()


def impulses(obs, forces, masses, dt):
    """obs (B, K, T, F), forces (B, K - 1, A) -> (B, K - 1, T, bodies, 2): what changed the momentum
    of each body from frame to frame and was not its force.

    That is 0 in flight. A wall gives an impulse to one body; a contact gives opposite ones to two.
    """
    states = obs.unflatten(-1, (-1, 4))                                   # (B, K, T, bodies, 4)
    velocity = states[..., 2:] / 2.0                                      # see World.observe
    frames = velocity.flatten(1, 2)
    length = obs.shape[2]
    change = frames[:, 1:] - frames[:, :-1]
    change = change[:, length - 1:]                                       # without clip 0's own
    change = change.unflatten(1, (-1, length))                            # (B, K - 1, T, bodies, 2)
    push = forces.unflatten(-1, (-1, 2))[:, :, None]                      # (B, K - 1, 1, bodies, 2)
    masses = obs.new_tensor(masses)[:, None]
    return masses * change - push * dt


def contacts_seen(obs, forces, masses, dt, least=0.02):
    """obs (B, K, T, F), forces (B, K - 1, A) -> (B, K - 1) bool: do bodies meet during this clip?

    From the observation alone: two bodies get opposite impulses in one frame. It misses a body that
    meets a wall in the same frame, too.
    """
    impulse = impulses(obs, forces, masses, dt)
    size = impulse.norm(dim=-1)                                           # (B, K - 1, T, bodies)
    met = torch.zeros_like(size[..., 0], dtype=torch.bool)
    for i in range(len(masses)):
        for j in range(i):
            both = torch.minimum(size[..., i], size[..., j])
            rest = (impulse[..., i, :] + impulse[..., j, :]).norm(dim=-1)
            met |= (both > least) & (rest < 0.1 * both)
    return met.any(-1)


def centre_velocity(obs, masses):
    """obs (..., T, F) -> (..., 2): total momentum over total mass in the last frame, scaled as
    velocities are observed."""
    velocity = obs[..., -1, :].unflatten(-1, (-1, 4))[..., 2:]            # (..., bodies, 2)
    masses = obs.new_tensor(masses)[:, None]
    return (masses * velocity).sum(-2) / masses.sum()


# ---- predictors

def gaussian_error(mean, log_variance, t):
    """Tensors of one shape -> minus the mean log likelihood of a number of t under the Gaussian."""
    gap = t.float() - mean.float()
    log_variance = log_variance.float()
    scaled = gap.square() * torch.exp(-log_variance)
    return (log_variance + scaled + math.log(2 * math.pi)).mean() / 2
