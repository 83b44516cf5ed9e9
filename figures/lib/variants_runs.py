"""Trainings of the variants, by hjepa.train: see lib/shared_work.py for how processes share them.

The names of shared_work stand here, too: folder_of, claim, chosen_value, table, work and so on.
"""
import functools

import hjepa
import numpy as np

from lib import cli, goals, shared_work
from lib import variants_list as lists
from lib.shared_work import (Training, chosen_value, claim, claim_of, diverged,     # noqa: F401
                             drop_losers, epochs_done, folder_of, how_tuned, measured, read_note,
                             speed, state, table, take, trials_of, work, write_note)

TRIAL_SEARCHES = ("short replanned", "macro open loop")


def home_of(run):
    """Run directory or checkpoint file -> the folder of its variants; not beside packed weights."""
    return hjepa.default_out(run).parent / "variants"


def train(study, training):
    """Trains to the end, from where it stands -> None, or a line that says why it broke down."""
    variant = lists.VARIANTS[training.name]
    config = config_of(study, training)
    folder = folder_of(study, training)
    build = variant.build
    try:
        if variant.before:
            first = folder / "encoders"
            hjepa.train(config, first, objective=variant.before)
            build = functools.partial(build, first=first)
        hjepa.train(config, folder, lists.objective_of(training.name, training.value), build,
                    variant.draw)
    except hjepa.Refusal as error:
        if not diverged(error):
            raise
        return hjepa.first_line(error)
    return None


def open_run(study, training):
    """-> cli.Run of a training that has ended."""
    variant = lists.VARIANTS[training.name]
    folder = folder_of(study, training)
    build = variant.build
    if variant.before:
        build = functools.partial(build, first=folder / "encoders")
    model, config = hjepa.load(folder, study.device, build)
    return cli.Run(model, config, training.epochs)


# ---- what lib/shared_work.py asks of the variants

def tuned(name):
    return lists.VARIANTS[name].tuned


def values(name):
    return lists.VARIANTS[name].values


def config_of(study, training):
    """-> Config of a training."""
    return lists.config_of(training.name, training.value, study.base, training.epochs,
                           training.seed)


def searches_of(name, searches):
    """-> those that a variant can do."""
    return [search for search in searches if lists.VARIANTS[name].macro or "macro" not in search]


def attempt(study, training):
    """Trains a trial -> goals reached (searches, goals), all 0 if it broke down, and why it did."""
    broken = train(study, training)
    config = config_of(study, training)
    searches = searches_of(training.name, TRIAL_SEARCHES)
    reached = np.zeros((len(searches), study.trial_goals), dtype=int)
    if broken is None:
        run = open_run(study, training)
        world = hjepa.build_world(config)
        drawn = goals.goals_of(config, study.trial_goals, "validation")
        for i, search in enumerate(searches):
            errors = goals.side_by_side(search, run, world, drawn, config.validation_seed,
                                        study.device)
            reached[i] = errors.amax(-1) < hjepa.REACHED
    return reached, broken


KIND = shared_work.Kind(tuned, values, config_of, lists.as_the_run, attempt)

Study = functools.partial(shared_work.Study, kind=KIND)
