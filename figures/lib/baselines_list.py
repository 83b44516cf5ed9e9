"""The rivals: what each is, how it is built, and what of it is tuned.

The JEPA and each rival are tried with three values of one number, at the same length of training
and on the same validation goals. The first value is the default: see lib/shared_work.py.
"""
import collections
import dataclasses

import hjepa

from lib import baselines_models as models
from lib import baselines_worlds as worlds
from lib import state_network
from lib.variants_models import start_weights

# what: for the reader. tuned, values: a field of Config, or the argument of build. build(config,
# features, value) -> model. worlds: those it can be tried in.
Rival = collections.namedtuple("Rival", "what tuned values build worlds",
                               defaults=[worlds.WORLDS])


def parameters_of_jepa(config, features):
    """-> how many the JEPA has."""
    return models.count(models.Jepa(config, features))


def build_jepa(config, features, value):
    return models.Jepa(config, features)


def build_jepa_with_decoder(config, features, value):
    return models.JepaWithDecoder(config, features, value)


def build_autoencoder(config, features, value):
    width = models.sized(lambda width: models.Autoencoder(config, features, value, width),
                         parameters_of_jepa(config, features))
    return models.Autoencoder(config, features, value, width)


def build_state_network(config, features, value):
    def make(width):
        return state_network.StateNetwork(config.masses, width, config.predictor_blocks, features)
    return models.StatePredictor(make(models.sized(make, parameters_of_jepa(config, features))))


def build_interaction_network(config, features, value):
    width = max(16, config.short_width // 3)
    return models.StatePredictor(models.InteractionNetwork(config.masses, width))


def build_inverse_model(config, features, value):
    width = models.sized(lambda width: models.InverseModel(config, features, width),
                         parameters_of_jepa(config, features))
    return models.InverseModel(config, features, width)


RATES = (1e-3, 3e-4, 3e-3)

RIVALS = {
    "JEPA": Rival("the model of the run, short level", "cov_weight", (1.0, 0.25, 4.0), build_jepa),
    "JEPA and decoder": Rival(
        "the same, and every embedding is decoded into its clip", "reconstruction",
        (5.0, 1.0, 25.0), build_jepa_with_decoder),
    "reconstruction": Rival(
        "an autoencoder, and a predictor in its space", "decoded", (1.0, 0.0, 10.0),
        build_autoencoder),
    "state network": Rival(
        "predicts what is observed in the last frame of a clip", "lr", RATES, build_state_network),
    "inverse model": Rival(
        "clip now and goal clip to forces: no world model, no search", "lr", RATES,
        build_inverse_model),
    "interaction network": Rival(
        "predicts the state, body by body; told what bodies are, and their masses", "lr", RATES,
        build_interaction_network, ("plain",)),
}

FIELDS = {field.name for field in dataclasses.fields(hjepa.Config)}


def name_of(rival, world):
    """-> the name of a training."""
    return rival if world == "plain" else f"{rival}, {world}"


def parts_of(name):
    """Name of a training -> rival, world."""
    rival, _, world = name.partition(", ")
    return rival, world or "plain"


def names_of(rivals, kinds):
    """-> the names of all trainings of these rivals in these worlds."""
    return [name_of(rival, kind) for kind in kinds for rival in rivals
            if kind in RIVALS[rival].worlds]


def config_of(name, value, base, epochs, seed):
    """Config of the run -> Config of a training."""
    rival, _ = parts_of(name)
    settings = {"epochs": epochs, "seed": seed, "validate_every": 0}
    if RIVALS[rival].tuned in FIELDS:
        settings[RIVALS[rival].tuned] = value
    return dataclasses.replace(base, **settings)


def build(name, value, config):
    """-> the model of a training, on the CPU, with the start weights of its seed."""
    rival, kind = parts_of(name)
    with start_weights(config):
        return RIVALS[rival].build(config, worlds.features(kind, config), value)
