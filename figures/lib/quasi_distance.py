"""A learnt distance between embeddings: how many clips from here to there?

After "Value-guided action planning with JEPA world models" (2601.00844). Two clips i < j of a
sequence are j - i clips apart on a way that random forces happened to take. A better way may be
shorter, so the network learns a low expectile of that number: close to the smallest one among all
pairs that look alike. It is a quasi-distance: 0 from a place to itself, never longer than a detour,
but there and back may differ.
"""
import hjepa
import torch
import torch.nn as nn

from lib import cli, trainings

EXPECTILE = 0.1                                 # 0.5 would be the mean, 0 the minimum


class QuasiDistance(nn.Module):
    """Embeddings here, there (..., D) -> (...), in clips.

    The length of a difference of features, which is the same both ways, plus the largest positive
    difference among others, which is not.
    """

    def __init__(self, latent, width=256, features=64):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(latent, width),
                                      nn.GELU(),
                                      nn.Linear(width, width),
                                      nn.GELU(),
                                      nn.Linear(width, 2 * features))

    def forward(self, here, there):
        change = self.features(there) - self.features(here)
        both_ways, one_way = change.chunk(2, -1)
        return both_ways.norm(dim=-1) + one_way.relu().amax(-1)


def expectile_error(guess, number, expectile=EXPECTILE):
    """guess, number (...) -> mean of |expectile - [number < guess]| (number - guess)^2: least where
    guess is the expectile of number."""
    gap = number - guess
    below = (gap < 0).to(gap.dtype)
    return ((expectile - below).abs() * gap.square()).mean()


def pairs_error(network, z):
    """z (B, K, D): K clips of B sequences -> the expectile error over all pairs i < j."""
    clips = z.shape[1]
    i, j = torch.triu_indices(clips, clips, 1, device=z.device)
    guess = network(z[:, i], z[:, j])                                     # (B, pairs)
    number = (j - i).to(guess.dtype).expand_as(guess)
    return expectile_error(guess, number)


def build(settings):
    """dict(latent, seed) and more -> QuasiDistance with the start weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings["seed"], "quasi-distance").initial_seed())
        return QuasiDistance(settings["latent"])


def train(path, run, config, device, precision):
    """Train on the sequences of the run, config.epochs times, from where the file stands; the run's
    target encoder is left as it is. -> QuasiDistance in eval mode, a row per epoch."""
    settings = {"latent": config.latent, "seed": config.seed,
                "weights": cli.fingerprint([run.model])}
    network = build(settings).to(device)
    world = hjepa.build_world(config)
    saved = None
    if path.exists():
        saved = trainings.read(path, build, "", "figures/planners.py")

    def loss(obs, forces, shares):
        with torch.no_grad():
            t1, _ = run.model.target(obs.flatten(0, 1))
        error = pairs_error(network, t1.float().unflatten(0, obs.shape[:2]))
        return error, {"error": error}

    def draw():
        states, *others = hjepa.draw_training(world, config, device)
        return world.observe(states), *others
    rows = trainings.train(path, saved, settings, network, loss, draw, config, device, precision)
    return network.eval(), rows
