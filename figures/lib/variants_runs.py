"""Trainings of the variants: where they lie, who may work on them, which value is chosen.

A training is a variant, a number of epochs, a seed and a value of what is tuned. It has a folder,
RUN/variants/NAME-EPOCHS-SEED-VALUE, with last.pt and log.jsonl as hjepa.train writes them, with
tried.json (a trial: goals reached on validation worlds) and measured.json (what test worlds say).
Any number of processes can share a study. Each takes what is not done and not held by another.
"""
import collections
import contextlib
import dataclasses
import functools
import itertools
import json

import hjepa
import numpy as np
import torch

from lib import cli, goals, stats
from lib import variants_list as lists

TRIAL_SEARCHES = ("short replanned", "macro open loop")

Training = collections.namedtuple("Training", "name epochs seed value")

# A study. base: Config of the run. home: its folder for variants. trial_epochs: of a trial.
# trial_seed: of all trials. trial_goals: validation goals of each.
Study = collections.namedtuple("Study", "base home device trial_epochs trial_seed trial_goals")


def home_of(run):
    """Run directory or checkpoint file -> the folder of its variants; not beside packed weights."""
    return hjepa.default_out(run).parent / "variants"


def folder_of(study, training):
    """-> where a training lies."""
    name = training.name.replace(",", "").replace(" ", "-")
    return study.home / f"{name}-{training.epochs}-{training.seed}-{training.value:g}"


def claim_of(study, training):
    """-> the folder whose lock says who works on a training."""
    return study.home / "claims" / folder_of(study, training).name


@contextlib.contextmanager
def claim(study, training):
    """Yields whether this process may work on a training. The claim ends with the process."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hjepa.locked(claim_of(study, training)))
            free = True
        except hjepa.Refusal:
            free = False
        yield free


def epochs_done(folder):
    """-> how many epochs the log of a training has."""
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def speed(study, training):
    """-> training sequences per second in the fastest epoch, gauges included."""
    log = (folder_of(study, training) / "log.jsonl").read_text().splitlines()
    return study.base.sequences / min(json.loads(line)["seconds"] for line in log)


# ---- notes: tried.json and measured.json

def config_of(study, training):
    """-> Config of a training."""
    return lists.config_of(training.name, training.value, study.base, training.epochs,
                           training.seed)


def plain_config(study, training):
    """-> the settings of a training as JSON keeps them, without what may differ."""
    settings = dataclasses.asdict(config_of(study, training))
    settings.pop("device")
    settings.pop("goals")
    return json.loads(json.dumps(settings))


def read_note(study, training, name, made_with):
    """-> the content of a note, or None if there is none that was made with these arguments.

    Refusal if it is damaged, or if the training has other settings.
    """
    path = folder_of(study, training) / name
    if not path.exists():
        return None
    try:
        note = json.loads(path.read_text())
        config, made = note["config"], note["made_with"]
    except (ValueError, KeyError, TypeError):
        raise hjepa.Refusal(f"{path} is damaged: move it away") from None
    wanted = plain_config(study, training)
    differ = [key for key in wanted if config.get(key) != wanted[key]]
    if differ:
        raise hjepa.Refusal(f"{path.parent} was trained with another {', '.join(differ)}: move it "
                            "away, or name another --run")
    return note if made == made_with else None


def write_note(study, training, name, made_with, content):
    """Whole or not at all; floats are kept exactly."""
    note = {"config": plain_config(study, training), "made_with": made_with, **content}
    with hjepa.whole_file(folder_of(study, training) / name) as part:
        part.write_text(json.dumps(note))


# ---- training

def diverged(error):
    """Whether a Refusal of hjepa.train says that a loss or a weight is not finite."""
    return "is not finite in epoch" in str(error)


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


# ---- which value?

def trials_of(study, name):
    """-> the trainings that are compared to choose the value of a variant, the default first."""
    return [Training(name, study.trial_epochs, study.trial_seed, value)
            for value in lists.VARIANTS[name].values]


def searches_of(name, searches):
    """-> those that a variant can do."""
    return [search for search in searches if lists.VARIANTS[name].macro or "macro" not in search]


def try_value(study, training):
    """Trains a trial and plans on validation goals. Its note has "reached": 1 or 0 for each search
    and goal (worst body), all 0 if the training broke down."""
    broken = train(study, training)
    config = config_of(study, training)
    searches = searches_of(training.name, TRIAL_SEARCHES)
    reached = np.zeros((len(searches), study.trial_goals), dtype=int)
    if broken is None:
        run = open_run(study, training)
        world = hjepa.build_world(config)
        drawn = goals.goals_of(config, study.trial_goals, "validation")
        for i, search in enumerate(searches):
            errors, *_ = hjepa.try_goals(search, run.model, world, config, drawn,
                                         config.validation_seed, study.device)
            reached[i] = errors.amax(-1) < hjepa.REACHED
    content = {"reached": reached.tolist(), "broken": broken}
    write_note(study, training, "tried.json", study.trial_goals, content)
    print(f"{training.name}, {lists.VARIANTS[training.name].tuned} {training.value:g}: "
          f"{reached.mean():6.1%} of the validation goals", flush=True)


def tried(study, training):
    """-> goals reached (searches, goals), or None if the trial is not done."""
    note = read_note(study, training, "tried.json", study.trial_goals)
    return None if note is None else np.array(note["reached"])


def chosen_value(study, name):
    """-> the value of a variant, or None if a trial is missing.

    The default, unless another value reaches more with a 95 % interval (paired, over goals) above
    0; of several, the one that reaches most.
    """
    found = [tried(study, trial) for trial in trials_of(study, name)]
    if any(reached is None for reached in found):
        return None
    best, most = 0, 0.0
    for i, reached in enumerate(found):
        gain, (low, _) = stats.paired_interval(reached.mean(0), found[0].mean(0))
        if low > 0 and gain > most:
            best, most = i, gain
    return lists.VARIANTS[name].values[best]


def drop_losers(study, name, value):
    """Once a value is chosen, the checkpoints of the other trials go: 100 MB each at full size.
    Their notes and logs stay."""
    for trial in trials_of(study, name):
        if value not in (None, trial.value):
            for checkpoint in folder_of(study, trial).rglob("last.pt"):
                checkpoint.unlink(missing_ok=True)


# ---- what there is to do

def state(study, training, made_with):
    """-> one word for the table."""
    if read_note(study, training, "measured.json", made_with) is not None:
        return "measured"
    if claim_of(study, training).exists():
        with claim(study, training) as free:
            if not free:
                return "at work"
    done = epochs_done(folder_of(study, training))
    return f"{done} of {training.epochs}" if done else "-"


def table(study, names, lengths, seeds, made_with):
    """-> lines: a row per variant, its trials, its value, each length and seed."""
    heads = [f"{epochs} ep, s {seed}" for epochs in lengths for seed in seeds]
    lines = [" ".join(["variant".rjust(28), "trials", "value".rjust(7),
                       *[head.rjust(11) for head in heads]])]
    for name in names:
        if lists.as_the_run(name, study.base):
            lines.append(f"{name:>28} is the run itself")
            continue
        trials = trials_of(study, name)
        done = sum(tried(study, trial) is not None for trial in trials)
        value = chosen_value(study, name)
        cells = []
        for epochs in lengths:
            for seed in seeds:
                word = "-"
                if value is not None:
                    word = state(study, Training(name, epochs, seed, value), made_with)
                cells.append(word.rjust(11))
        shown = "-" if value is None else f"{value:g}"
        lines.append(" ".join([f"{name:>28}", f"{done} of {len(trials)}", shown.rjust(7), *cells]))
    return lines


def take(study, training, is_open, do):
    """Claims a training and does what is open, unless another process holds it or has just done it.
    -> whether something was done."""
    if not is_open():
        return False
    with claim(study, training) as free:
        if not free or not is_open():
            return False
        do()
        return True


def do_trials(study, name):
    """Tries what is not tried and not held -> whether something was done."""
    done = False
    for trial in trials_of(study, name):
        done |= take(study, trial, lambda: tried(study, trial) is None,
                     lambda: try_value(study, trial))
    return done


def work(study, names, lengths, seeds, made_with, measure_one):
    """Does all that is not done and that no other process holds, the short trainings first.
    measure_one(training) writes measured.json.

    -> what is still missing, because another process is at it: [Training], with value None where
    that is not chosen yet.
    """
    while True:
        progressed = False
        missing = []
        values = {}
        for epochs, seed, name in itertools.product(lengths, seeds, names):
            if values.get(name) is None:
                progressed |= do_trials(study, name)
                values[name] = chosen_value(study, name)
                drop_losers(study, name, values[name])
            training = Training(name, epochs, seed, values[name])

            def is_open():
                return read_note(study, training, "measured.json", made_with) is None
            if values[name] is not None:
                progressed |= take(study, training, is_open, lambda: measure_one(training))
            if values[name] is None or is_open():
                missing.append(training)
        if not progressed or not missing:
            return missing
