"""figures/baselines.py: are rivals trained and judged alike, is a stopped study whole?"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import here, same, stop_before, tiny
from studies import quick                                                 # noqa: F401
from lib import baselines_judge as judge
from lib import baselines_list as lists
from lib import baselines_models as models
from lib import baselines_runs as runs
from lib import baselines_worlds as worlds
from lib import goals
import baselines
import hjepa

CPU = torch.device("cpu")
CONFIG = tiny(latent=8, width=8, guess_width=8, guess_weight=5.0, sim_weight=5.0,
              contact_share=0.24)
WORLD = hjepa.build_world(CONFIG)
NAMES = lists.names_of(lists.RIVALS, worlds.WORLDS)


def study_in(folder, **settings):
    return runs.Study(tiny(**{**vars(CONFIG), **settings}), folder, CPU, 1, 0, 2)


def built(name, config=CONFIG):
    rival, _ = lists.parts_of(name)
    return lists.build(name, lists.RIVALS[rival].values[0], config)


# ---- the list

def test_every_rival_is_tuned_alike_and_has_a_folder_of_its_own():
    assert len(NAMES) == 16 and "interaction network, noise" not in NAMES
    for name, rival in lists.RIVALS.items():
        assert len(set(rival.values)) == 3, name
    folders = {runs.folder_of(study_in(Path("runs")), runs.Training(name, 3, 0, 1.0))
               for name in NAMES}
    assert len(folders) == 16
    assert [lists.name_of(*lists.parts_of(name)) for name in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rivals_have_as_many_parameters_as_the_jepa(name):
    """Within 10 %, at the default size; the interaction network has fewer."""
    config = hjepa.Config()
    _, kind = lists.parts_of(name)
    with torch.device("meta"):
        own = models.count(built(name, config))
        jepa = models.count(built(lists.name_of("JEPA", kind), config))
    if name == "interaction network":
        assert own < 0.1 * jepa
    else:
        assert 0.9 * jepa < own < 1.1 * jepa


def test_a_size_is_the_nearest():
    def make(width):
        return torch.nn.Linear(width, width, bias=False)
    assert models.sized(make, 100 ** 2, step=4) == 100
    assert models.sized(make, 102.5 ** 2, step=4) == 104
    assert models.sized(make, 101.0 ** 2, step=4) == 100
    assert models.sized(make, 1, step=4) == 4


# ---- trainings, by the loop of the study

@pytest.mark.parametrize("name", NAMES)
def test_every_rival_is_trained_for_two_steps_and_read_again(name, tmp_path, capsys):
    study = study_in(tmp_path)
    training = runs.Training(name, 1, 0, runs.values(name)[1])
    assert runs.train(study, training) is None
    model = runs.open_model(study, training)
    start = lists.build(name, training.value, runs.config_of(study, training))
    moved = {key for key, weight in model.named_parameters()
             if not same(weight, start.state_dict()[key])}
    still = {key for key, _ in model.named_parameters()} - moved
    assert all("adapt" in key for key in still), still                    # not even those, mostly
    assert len(still) < 0.1 * len(moved)


def test_the_jepas_training_is_that_of_hjepa_to_the_last_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hjepa, "validate", lambda *given: {})
    study = study_in(tmp_path)
    training = runs.Training("JEPA", 2, 0, 1.0)
    runs.train(study, training)
    hjepa.train(runs.config_of(study, training), tmp_path / "run")
    other, _ = hjepa.load(tmp_path / "run")
    assert same(runs.open_model(study, training).model.state_dict(), other.state_dict())


def test_what_is_resumed_is_bitwise_what_was_never_stopped(tmp_path, monkeypatch, capsys):
    whole, stopped = study_in(tmp_path / "whole"), study_in(tmp_path / "stopped")
    training = runs.Training("reconstruction, noise", 2, 0, 1.0)
    runs.train(whole, training)
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            runs.train(stopped, training)
    runs.train(stopped, training)
    assert same(runs.open_model(whole, training).state_dict(),
                runs.open_model(stopped, training).state_dict())


# ---- what they are judged by

class Knowing:
    """A rival that is perfect: its space is the true state, its predictor is the simulator."""

    def start(self, clip):
        unit = WORLD.observe(torch.ones(3, 4))
        return clip[:, -1, :12] / unit

    aim = start

    def rollout(self, start, forces):
        states, _ = WORLD.rollout(start.unflatten(-1, (-1, 4)), forces, CONFIG.clip_frames)
        return states[:, CONFIG.clip_frames - 1::CONFIG.clip_frames].flatten(2)

    def compared(self, x):
        return x.unflatten(-1, (-1, 4))[..., :2].flatten(-2)


@pytest.mark.parametrize("kind", worlds.WORLDS)
def test_a_perfect_rival_errs_nowhere_and_is_surprised_by_the_impossible(kind):
    found = judge.place_columns(Knowing(), kind, WORLD, CONFIG, 64, CPU)
    assert list(found)[:3] == ["place error 2", "place error 4", "place error 6"]
    assert all(value < 0.02 for value in found.values())
    assert judge.surprise_columns(Knowing(), kind, WORLD, CONFIG, 20, CPU)["pass-through"] == 1


def test_a_perfect_rival_reaches_goals_among_distractors():
    config = tiny(**{**vars(CONFIG), "samples": 60, "iterations": 5, "elites": 6})
    drawn = worlds.with_distractors("noise", WORLD, config, goals.goals_of(config, 4), 0)
    errors = runs.closed_loop(Knowing(), WORLD, config, drawn, 0, CPU)
    zero = baselines.reference_errors("zero", config, drawn, CPU)
    assert errors.shape == (4, 3) and zero.shape == (1, 4, 3)
    assert errors.mean() < 0.5 * zero.mean()


def test_closed_loop_of_the_jepa_is_that_of_hjepa():
    model = built("JEPA")
    drawn = worlds.with_distractors("plain", WORLD, CONFIG, goals.goals_of(CONFIG, 3), 0)
    errors = runs.closed_loop(model, WORLD, CONFIG, drawn, 9, CPU)
    expected, *_ = hjepa.try_goals("short replanned", model.model, WORLD, CONFIG, drawn, 9, CPU)
    torch.testing.assert_close(errors, expected, atol=1e-4, rtol=0)


# ---- what an embedding keeps of distractors

@pytest.mark.parametrize("kind", ["noise", "second"])
def test_distractors_are_kept_by_who_sees_them_and_by_no_other(kind):
    class LastFrame:
        def __init__(self, numbers):
            self.numbers = numbers

        def aim(self, clip):
            return clip[:, -1, self.numbers]
    bodies = 4 * len(CONFIG.masses)

    def kept(numbers):
        return judge.distractors_kept(LastFrame(numbers), kind, WORLD, CONFIG, 512, CPU)
    assert kept(slice(None)) > 0.999 and kept(slice(0, bodies)) < 0.1


# ---- as a user runs it

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    run = tmp_path_factory.mktemp("baselines") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hjepa, "validate", lambda *given: {})
        hjepa.train(CONFIG, run)
    return run


SMALL = ("--goals", 2, "--n", 64, "--pairs", 2, "--epochs", 1, "--trial-epochs", 1,
         "--trial-goals", 2, "--device", "cpu")


def study(run, *flags):
    return here("figures/baselines.py", "--run", run, *SMALL, *flags)


def test_runs_as_a_user_runs_it_is_stopped_and_goes_on(place, monkeypatch):
    only = ("--only", "inverse model", "--worlds", "plain", "noise", "--frames", 6, 12)
    empty = study(place, *only, "--gather")
    assert empty.returncode == 2 and "nothing is measured yet" in empty.stderr
    with monkeypatch.context() as patch:
        real = runs.closed_loop
        calls = []

        def stop_late(*given):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return real(*given)
        patch.setattr(runs, "closed_loop", stop_late)
        stopped = study(place, *only)
    assert stopped.returncode == 130 and "stopped" in stopped.stderr
    table = study(place, *only, "--table").stdout
    assert "measured" in table and "0 of 3" in table
    done = study(place, *only)
    assert done.returncode == 0, done.stderr
    content = json.loads((place / "figures" / "baselines.json").read_text())
    rows = {(row["rival"], row["world"], row["frames"]): row for row in content["rows"]}
    assert len(rows) == 2 * 2 + (2 + 1) + 2 and content["missing"] == []
    assert ("inverse model", "plain", 12) not in rows and ("JEPA", "noise", 12) not in rows
    assert "gain_ci" in rows["inverse model", "noise", 6]
    assert "gain" not in rows["JEPA", "plain", 6]
    of = {(row["rival"], row["world"]): row for row in content["models"]}
    assert of["JEPA", "plain"]["tuned"] == "cov_weight 1 of 1, 0.25, 4"
    assert len(of["JEPA", "noise"]["places"]) == 3
    assert of["JEPA", "noise"]["kept"] < 1 and "kept" not in of["JEPA", "plain"]
    assert "places" not in of["inverse model", "plain"]
    assert (place / "figures" / "baselines.png").stat().st_size > 10_000
    arrays = np.load(place / "figures" / "baselines.npz")
    worst = arrays["errors/JEPA, noise/6"]
    assert worst.shape == (1, 2)
    assert rows["JEPA", "noise", 6]["success"] == (worst < 0.1).mean()
    again = study(place, *only)
    assert again.returncode == 0 and "epoch 1" not in again.stdout


@pytest.mark.parametrize("flags, words", [
    (("--only", "nothing"), "invalid choice"), (("--worlds", "plain", "plain"), "twice"),
    (("--frames", 7), "--frames 7"), (("--frames", 4), "--frames 4"),
    (("--seeds", -1), "--seeds -1"), (("--epochs", 0), "--epochs is 0"),
    (("--trial-goals", 0), "--trial-goals"), (("--goals", 0), "--goals is 0")])
def test_what_cannot_be_studied_is_refused_in_one_line(place, flags, words):
    done = study(place, *flags)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
