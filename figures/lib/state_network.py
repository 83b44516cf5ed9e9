"""A rival of the world model: it predicts states, not embeddings. figures/state.py trains it."""
from pathlib import Path

import hjepa
import torch
import torch.nn as nn
import torch.nn.functional as F

from lib import trainings

# What decides which network a training gives. Of a run, the planner's and the encoders' do not.
SETTINGS = ("masses", "radius", "dt", "substeps", "force_limit", "start_speed", "sequences",
            "clip_frames", "event_clips", "contact_share", "symmetries", "short_width",
            "predictor_blocks", "batch", "lr", "beta2", "weight_decay", "warmup", "seed")


class StateNetwork(nn.Module):
    """The short predictor of a run, but it predicts what is observed of the bodies: 4 numbers each.

    masses, short_width, predictor_blocks: as in the run's settings. features: how many numbers are
    observed, if there are others beside those of the bodies.
    """

    def __init__(self, masses, short_width, predictor_blocks, features=None):
        super().__init__()
        bodies = len(masses)
        features = features or 4 * bodies
        self.short = hjepa.Predictor(features, 2 * bodies, short_width, predictor_blocks)

    def rollout(self, seen, forces):
        """seen (N, F) in the last frame of a clip, forces (N, K, A) -> the same for the last frame
        of each of the next clips (N, K, F), from its own predictions."""
        predicted = []
        for force in forces.unbind(1):
            seen = self.short(seen, force)
            predicted.append(seen)
        return torch.stack(predicted, 1)


def build(settings):
    """A dict with SETTINGS -> StateNetwork with the start weights of its seed."""
    shape = {name: settings[name] for name in ("masses", "short_width", "predictor_blocks")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hjepa.generator(settings["seed"], "state network").initial_seed())
        return StateNetwork(**shape)


def build_whole(settings):
    """As build. ValueError unless the dict has the SETTINGS and no more."""
    if set(settings) != set(SETTINGS):
        raise ValueError("the parts do not fit")
    return build(settings)


def prediction_error(network, seen, forces):
    """seen (B, K, F) in the last frame of each clip, forces (B, K - 1, A) -> mean squared error."""
    predicted = network.rollout(seen[:, 0], forces)
    return F.mse_loss(predicted, seen[:, 1:])


def settings_of(config):
    """Config of a run -> dict of the SETTINGS."""
    return {name: getattr(config, name) for name in SETTINGS}


def states(world, seen):
    """What is observed (..., F) -> states (..., bodies, 4)."""
    unit = world.observe(torch.ones_like(seen).unflatten(-1, (-1, 4)))
    return (seen / unit).unflatten(-1, (-1, 4))


def cost_of(network, world, now, goal, meter):
    """Clips now, goal (B, T, bodies, 4) -> a cost for hjepa.cem: the predicted positions."""
    def place(start, plans):
        meter["calls"] += plans.shape[0] * plans.shape[1]
        last = network.rollout(start, plans)[:, -1]
        return states(world, last)[..., :2].flatten(1)
    return hjepa.latent_cost(place, world.observe(now[:, -1]), goal[:, -1, :, :2].flatten(1))


def read(path):
    """File of state.py -> see trainings.read. Refusal if there is none, or if it is damaged."""
    return trainings.read(path, build_whole, f"no state network at {path}: train it with `python "
                          "figures/state.py --run RUN`, or name another with --state",
                          "figures/state.py")


def load(path, run, device):
    """File of state.py, run -> its StateNetwork in eval mode. Refusal unless it was trained to the
    end on the sequences of that run."""
    saved = read(Path(path))
    left = saved["epochs"] - len(saved["rows"])
    if left > 0:
        raise hjepa.Refusal(f"{path} has {left} epochs to go: call state.py again")
    mine = settings_of(run.config)
    differ = [name for name in SETTINGS if saved["settings"][name] != mine[name]]
    if differ:
        raise hjepa.Refusal(f"{path} was trained for another run (other {', '.join(differ)}): give "
                            "the --state of each --run, in the same order")
    network = build(mine)
    network.load_state_dict(saved["model"])
    return network.to(device).eval()
