"""Trainings that any number of processes share: where they lie, who works on them, which value of
what is tuned is chosen.

A training is a name, a number of epochs, a seed and a value of what is tuned. It has a folder,
HOME/NAME-EPOCHS-SEED-VALUE, with a checkpoint last.pt, a log.jsonl of a line per epoch, tried.json
(a trial: goals reached on validation worlds) and measured.json (what test worlds say). Each process
takes what is not done and not held by another.
"""
import collections
import contextlib
import dataclasses
import itertools
import json

import hjepa
import numpy as np

from lib import stats

Training = collections.namedtuple("Training", "name epochs seed value")

# What a study trains, in functions.
#   tuned(name), values(name)     what is tuned, the values that are tried, the default first
#   config_of(study, training)    -> Config
#   as_the_run(name, config)      whether a run of this Config is trained so already
#   attempt(study, training)      trains a trial -> goals reached (searches, goals), all 0 if it
#                                 broke down, and a line that says why it did, or None
Kind = collections.namedtuple("Kind", "tuned values config_of as_the_run attempt")

# base: Config of the run. home: the folder of its trainings. trial_epochs, trial_seed: of all
# trials. trial_goals: validation goals of each.
Study = collections.namedtuple("Study",
                               "base home device trial_epochs trial_seed trial_goals kind")


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


def diverged(error):
    """Whether a Refusal of hjepa.train_epoch says that a loss or a weight is not finite."""
    return "is not finite in epoch" in str(error)


# ---- notes: tried.json and measured.json

def plain_config(study, training):
    """-> the settings of a training as JSON keeps them, without what may differ."""
    settings = dataclasses.asdict(study.kind.config_of(study, training))
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
    defaults = dataclasses.asdict(hjepa.Config())           # a setting may be newer than the note
    differ = [key for key in wanted if config.get(key, defaults.get(key)) != wanted[key]]
    if differ:
        raise hjepa.Refusal(f"{path.parent} was trained with another {', '.join(differ)}: move it "
                            "away, or name another --run")
    return note if made == made_with else None


def write_note(study, training, name, made_with, content):
    """Whole or not at all; floats are kept exactly."""
    note = {"config": plain_config(study, training), "made_with": made_with, **content}
    with hjepa.whole_file(folder_of(study, training) / name) as part:
        part.write_text(json.dumps(note))


# ---- which value?

def trials_of(study, name):
    """-> the trainings that are compared to choose the value of a name, the default first."""
    return [Training(name, study.trial_epochs, study.trial_seed, value)
            for value in study.kind.values(name)]


def try_value(study, training):
    """Trains a trial and plans on validation goals. Its note has "reached": 1 or 0 for each search
    and goal (worst body), all 0 if the training broke down."""
    reached, broken = study.kind.attempt(study, training)
    content = {"reached": reached.tolist(), "broken": broken}
    write_note(study, training, "tried.json", study.trial_goals, content)
    print(f"{training.name}, {study.kind.tuned(training.name)} {training.value:g}: "
          f"{reached.mean():6.1%} of the validation goals", flush=True)


def tried(study, training):
    """-> goals reached (searches, goals), or None if the trial is not done."""
    note = read_note(study, training, "tried.json", study.trial_goals)
    return None if note is None else np.array(note["reached"])


def chosen_value(study, name):
    """-> the value of a name, or None if a trial is missing.

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
    return study.kind.values(name)[best]


def how_tuned(study, name):
    """-> what is tuned, the value that was chosen, and all values that were tried, the default
    first."""
    value = chosen_value(study, name)
    chosen = "not chosen yet" if value is None else f"{value:g}"
    tried_values = ", ".join(f"{one:g}" for one in study.kind.values(name))
    return f"{study.kind.tuned(name)} {chosen} of {tried_values}"


def drop_losers(study, name, value):
    """Once a value is chosen, the checkpoints of the other trials go: 100 MB each at full size.
    Their notes and logs stay."""
    for trial in trials_of(study, name):
        if value not in (None, trial.value):
            for checkpoint in folder_of(study, trial).rglob("last.pt"):
                checkpoint.unlink(missing_ok=True)


# ---- what is measured

def measured(study, names, lengths, seeds, made_with):
    """-> dict (name, epochs) -> dict seed -> measured.json, of what is measured."""
    found = {}
    for name in names:
        value = chosen_value(study, name)
        if value is None:
            continue
        for epochs in lengths:
            notes = {}
            for seed in seeds:
                training = Training(name, epochs, seed, value)
                note = read_note(study, training, "measured.json", made_with)
                if note is not None:
                    notes[seed] = note
            if notes:
                found[name, epochs] = notes
    return found


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
    """-> lines: a row per name, its trials, its value, each length and seed."""
    heads = [f"{epochs} ep, s {seed}" for epochs in lengths for seed in seeds]
    wide = max(len(name) for name in names)
    lines = [" ".join(["name".rjust(wide), "trials", "value".rjust(7),
                       *[head.rjust(11) for head in heads]])]
    for name in names:
        if study.kind.as_the_run(name, study.base):
            lines.append(f"{name:>{wide}} is the run itself")
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
        lines.append(" ".join([f"{name:>{wide}}", f"{done} of {len(trials)}", shown.rjust(7), *cells]))
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
