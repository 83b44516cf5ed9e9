r"""Predictors with a latent variable: what cannot be known is chosen so that the future fits.

LeCun 2022, sections 4.4 and 4.8 (his z is zeta here, since z is an embedding). Let p be what the
run's frozen P1 expects from the clip that is seen and the force f, and t the embedding of a future:

    energy(future) = min over zeta of  D(t, P(p, f, zeta)) + weight R(zeta)

D is the squared distance as a mean over dimensions. P is hjepa.Predictor, to which zeta comes
beside the force. What zeta may be is the family:

    discrete     one of K values, one-hot, all of them tried. K = 1 has no numbers: no latent at all
    told         not a latent: the true kick, in units of its size
    vector       d numbers, found by an encoder of (p, t) in training; R the sum of |zeta_i|
    minimised    the same, but found by gradient descent in training, too
    noisy        the encoder gives mean and deviation, zeta is drawn; R = -log N(0, 1), as in a VAE

"from scratch": p is z1, the embedding of the clip that is seen. The predictor has to learn what P1
knows, and can choose to read the future from zeta instead, as in LeCun's thought experiment of a
predictor that copies zeta.

When a penalty R has a weight, the weights that read zeta are penalised as well. Otherwise the
network would make zeta small and those weights large, and R would not limit anything.

All predictors of a study are trained side by side on the same batches. They share no weights.
"""
import collections

import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

Variant = collections.namedtuple("Variant", "name family size weight base",
                                 defaults=[0.0, "expected"])

WIDTH = 192
BLOCKS = 2
PENALTY = 1e-4                                  # weight of R for a vector
NOISE_PENALTY = 1e-4                            # weight of R for a noisy one
DESCENT = 5                                     # gradient steps to zeta in training
STARTS = 16                                     # where the descent of "minimised" can begin
SEARCH = 40                                     # the same where energies are measured

SIZES = (1, 2, 8, 64, 256)
COUNTS = (1, 2, 4, 16)
VARIANTS = (
    Variant("told", "told", 2),
    *[Variant(f"K = {k}", "discrete", k) for k in COUNTS],
    *[Variant(f"d = {d}, free", "vector", d) for d in SIZES],
    *[Variant(f"d = {d}, from scratch", "vector", d, base="seen") for d in SIZES],
    *[Variant(f"d = {d}, penalty", "vector", d, PENALTY) for d in SIZES],
    Variant("d = 2, minimised", "minimised", 2, PENALTY),
    Variant("d = 2, noisy", "noisy", 2, NOISE_PENALTY),
    Variant("d = 256, noisy", "noisy", 256, NOISE_PENALTY))


def error(predicted, t):
    """Embeddings (..., D) twice -> D(t, P) (...,): the mean squared difference."""
    return (predicted - t).square().mean(-1)


class Latent(nn.Module):
    """P(p, f, zeta): p (N, D), forces (N, A), zeta (N, size) -> (N, D)."""

    def __init__(self, latent, actions, variant, size):
        super().__init__()
        self.variant = variant
        self.size = size
        self.predictor = hjepa.Predictor(latent, actions + size, WIDTH, BLOCKS)

    def forward(self, p, forces, zeta):
        return self.predictor(p, torch.cat([forces, zeta], -1))


class Told(Latent):
    """Knows the kick: zeta is push (N, 2) over its size. The bound for all others."""

    def __init__(self, latent, actions, variant, push_size):
        super().__init__(latent, actions, variant, 2)
        self.push_size = push_size

    def loss(self, p, forces, t, push, noise):
        """-> D (N,), penalty (), of a batch; noise is not used."""
        return error(self(p, forces, push / self.push_size), t), p.new_zeros(())


class Discrete(Latent):
    """zeta is one of K values. The one with the smallest D counts, and learns: the others get no
    gradient."""

    def __init__(self, latent, actions, variant):
        self.count = variant.size
        super().__init__(latent, actions, variant, 0 if self.count == 1 else self.count)

    def code(self, index, like):
        """index (N,) -> zeta (N, K), one-hot; without columns if K is 1."""
        if self.count == 1:
            return like.new_zeros(len(index), 0)
        return F.one_hot(index, self.count).to(like.dtype)

    def all_predictions(self, p, forces):
        """-> P for each zeta (N, K, D)."""
        n = len(p)
        index = torch.arange(self.count, device=p.device).repeat(n)       # 0 to K - 1, n times
        many_p = p.repeat_interleave(self.count, 0)
        many_forces = forces.repeat_interleave(self.count, 0)
        predicted = self(many_p, many_forces, self.code(index, p))
        return predicted.unflatten(0, (n, self.count))

    @torch.no_grad()
    def infer(self, p, forces, t):
        """-> the best zeta of each sample, as a number (N,)."""
        if self.count == 1:
            return torch.zeros(len(p), dtype=torch.long, device=p.device)
        return error(self.all_predictions(p, forces), t[:, None]).argmin(1)

    def loss(self, p, forces, t, push, noise):
        """-> D of the best zeta (N,), penalty (), of a batch; push and noise are not used."""
        best = self.infer(p, forces, t)
        return error(self(p, forces, self.code(best, p)), t), p.new_zeros(())

    @torch.no_grad()
    def energy(self, p, forces, t):
        """-> energy (N,), D (N,), zeta (N, 1): the number of the best one."""
        best = self.infer(p, forces, t)
        energy = error(self(p, forces, self.code(best, p)), t)
        return energy, energy, best[:, None].to(p.dtype)


class Vector(Latent):
    """zeta is a vector. In training it is amortised, found by an encoder of (p, t), or, without an
    encoder, by gradient descent. Energies are always measured by gradient descent."""

    def __init__(self, latent, actions, variant, outputs=1):
        super().__init__(latent, actions, variant, variant.size)
        self.encoder = None
        if variant.family == "minimised":
            starts = torch.randn(STARTS, variant.size)
            starts[0] = 0
            self.register_buffer("starts", starts)
        else:
            self.encoder = nn.Sequential(nn.Linear(2 * latent, WIDTH), nn.GELU(),
                                         nn.Linear(WIDTH, WIDTH), nn.GELU(),
                                         nn.Linear(WIDTH, outputs * variant.size))

    def penalty(self, zeta):
        """zeta (N, d) -> R (N,)."""
        return zeta.abs().sum(-1)

    def reading_weights(self):
        """-> sum of squares () of the weights that zeta is multiplied by."""
        enter = self.predictor.enter.weight[:, -self.size:]
        code = self.predictor.force[0].weight[:, -self.size:]
        return enter.square().sum() + code.square().sum()

    def guess(self, p, forces, t):
        """-> zeta (N, d) to start from: the encoder's; without an encoder the best of STARTS."""
        if self.encoder is not None:
            return self.encoder(torch.cat([p, t], -1))[:, :self.size]
        with torch.no_grad():
            totals = [self.total(p, forces, t, start.expand(len(p), -1))[0]
                      for start in self.starts]
        return self.starts[torch.stack(totals).argmin(0)]

    def total(self, p, forces, t, zeta):
        """-> D + weight R (N,) at this zeta (N, d), and D (N,)."""
        d = error(self(p, forces, zeta), t)
        return d + self.variant.weight * self.penalty(zeta), d

    def descend(self, p, forces, t, start, steps, rate=0.1):
        """-> zeta (N, d) after `steps` steps of Adam from `start`, at a rate that falls to 0."""
        zeta = start.detach().clone()
        first = torch.zeros_like(zeta)
        second = torch.zeros_like(zeta)
        for step in range(steps):
            with torch.enable_grad():
                zeta.requires_grad_(True)
                total, _ = self.total(p, forces, t, zeta)
                slope, = torch.autograd.grad(total.sum(), zeta)
            zeta = zeta.detach()
            first = 0.9 * first + 0.1 * slope
            second = 0.99 * second + 0.01 * slope.square()
            mean = first / (1 - 0.9 ** (step + 1))
            scale = (second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            zeta = zeta - rate * (1 - step / steps) * mean / scale
        return zeta

    def loss(self, p, forces, t, push, noise):
        """-> D (N,), penalty (), of a batch; push and noise are not used."""
        if self.encoder is None:
            zeta = self.descend(p, forces, t, self.guess(p, forces, t), DESCENT)
        else:
            zeta = self.guess(p, forces, t)
        d = error(self(p, forces, zeta), t)
        return d, self.variant.weight * (self.penalty(zeta).mean() + self.reading_weights())

    @torch.no_grad()
    def amortised(self, p, forces, t):
        """-> energy (N,) at the encoder's zeta."""
        return self.total(p, forces, t, self.guess(p, forces, t))[0]

    @torch.no_grad()
    def energy(self, p, forces, t):
        """-> energy (N,), D (N,), zeta (N, d) at the lowest energy that was found: at 0, at the
        guess, or where the descent from the better of these two ends."""
        found = p.new_zeros(len(p), self.size)
        energy, d = self.total(p, forces, t, found)
        for step in ("guess", "descent"):
            if step == "guess":
                zeta = self.guess(p, forces, t)
            else:
                zeta = self.descend(p, forces, t, found, SEARCH)
            other, other_d = self.total(p, forces, t, zeta)
            better = other < energy
            found = torch.where(better[:, None], zeta, found)
            energy = torch.where(better, other, energy)
            d = torch.where(better, other_d, d)
        return energy, d, found


class Noisy(Vector):
    """zeta = mean + deviation noise. Its entropy is held up by the penalty, the Kullback-Leibler
    divergence from N(0, 1). Kingma and Welling 2014, eq. 10."""

    def __init__(self, latent, actions, variant):
        super().__init__(latent, actions, variant, outputs=2)

    def penalty(self, zeta):
        """zeta (N, d) -> -log N(zeta; 0, 1) up to a constant (N,)."""
        return zeta.square().sum(-1) / 2

    def sample(self, p, t, noise):
        """noise (N, d) -> zeta (N, d), mean (N, d), log of the deviation (N, d)."""
        mean, log_deviation = self.encoder(torch.cat([p, t], -1)).chunk(2, -1)
        return mean + log_deviation.exp() * noise, mean, log_deviation

    def loss(self, p, forces, t, push, noise):
        """-> D (N,), penalty (), of a batch; noise (N, d or more) is standard normal."""
        zeta, mean, log_deviation = self.sample(p, t, noise[:, :self.size])
        d = error(self(p, forces, zeta), t)
        variance = (2 * log_deviation).exp()
        divergence = (mean.square() + variance - 1 - 2 * log_deviation).sum(-1) / 2
        return d, self.variant.weight * divergence.mean()


def build_one(variant, latent, actions, push_size):
    """Variant -> its network, with weights from the global random state."""
    if variant.family == "told":
        return Told(latent, actions, variant, push_size)
    kinds = {"discrete": Discrete, "vector": Vector, "minimised": Vector, "noisy": Noisy}
    return kinds[variant.family](latent, actions, variant)


def build(settings):
    """dict with latent, actions, push_size, seed, variants -> ModuleDict, a network per variant.
    ValueError if the variants are not those of this file."""
    if settings["variants"] != [list(variant) for variant in VARIANTS]:
        raise ValueError("the parts do not fit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings["seed"], "latent").initial_seed())
        return nn.ModuleDict({
            variant.name: build_one(variant, settings["latent"], settings["actions"],
                                    settings["push_size"])
            for variant in VARIANTS})


def joint_loss(networks, bases, forces, t, push, noise):
    """bases: a dict as latent_world.bases gives -> the sum of all losses, and a dict of D by name.
    It is a training of each one, since they share no weights."""
    total = t.new_zeros(())
    terms = {}
    for name, network in networks.items():
        d, penalty = network.loss(bases[network.variant.base], forces, t, push, noise)
        terms[name] = d.mean()
        total = total + terms[name] + penalty
    return total, terms
