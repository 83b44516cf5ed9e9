"""figures/baselines.py: is each rival what it says, does nobody cheat, is a stopped study whole?"""
import functools
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


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def batch(kind):
    """Observed clips, forces and shares of the training sequences."""
    return worlds.training_data(kind, WORLD, CONFIG, CPU)


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


# ---- distractors

def test_nothing_beside_the_bodies_in_the_plain_world():
    states, forces, shares = hjepa.draw_training(WORLD, CONFIG, CPU)
    obs, same_forces, same_shares = batch("plain")
    assert torch.equal(obs, WORLD.observe(states)) and torch.equal(forces, same_forces)
    assert torch.equal(shares, same_shares)


@pytest.mark.parametrize("kind", ["noise", "second"])
def test_distractors_stand_behind_the_bodies_and_change_nothing_of_them(kind):
    obs, forces, _ = batch(kind)
    plain, plain_forces, _ = batch("plain")
    assert obs.shape[-1] == 24 == worlds.features(kind, CONFIG) and plain.shape[-1] == 12
    assert torch.equal(obs[..., :12], plain) and torch.equal(forces, plain_forces)


def test_noise_is_white_and_of_variance_1():
    others = worlds.distractors("noise", WORLD, CONFIG, 500, 4, hjepa.generator(0, "test"))
    seen = WORLD.observe(others).flatten(1, 2)                            # (500, 8, 12)
    assert seen.mean().abs() < 0.02 and seen.std() == pytest.approx(1, abs=0.02)
    numbers = seen.flatten(1)
    correlation = torch.corrcoef(numbers.T) - torch.eye(numbers.shape[1])
    assert correlation.abs().max() < 5 / 500 ** 0.5


def test_the_second_world_obeys_its_laws_and_nobody_pushes_it():
    others = worlds.distractors("second", WORLD, CONFIG, 50, 4, hjepa.generator(0, "test"))
    start = WORLD.reset(50, hjepa.generator(0, "test"), CONFIG.start_speed)
    path, _ = WORLD.rollout(start, torch.zeros(50, 4, 6), CONFIG.clip_frames)
    assert torch.equal(others.flatten(1, 2), path)
    speed = others[..., 2:].square().sum(-1)                              # (n, clips, T, bodies)
    energy = (speed * torch.tensor(CONFIG.masses)).sum(-1).flatten(1)
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy))


@pytest.mark.parametrize("kind", ["noise", "second"])
def test_no_force_of_a_plan_moves_a_distractor(kind):
    """What a model is shown in closed loop: the bodies where the forces brought them, and the
    distractors of that time; the goal is that of both worlds."""
    drawn = worlds.with_distractors(kind, WORLD, CONFIG, goals.goals_of(CONFIG, 2), 7)
    shown = {}
    for push in (-20.0, 20.0):
        seen = shown[push] = []

        class Watching:
            def act(self, clip, goal, left, limit):
                seen.append((clip, goal))
                return torch.full((2, left, 6), push)
        runs.act(Watching(), WORLD, drawn["clip"], drawn["goal"], drawn["others"],
                 CONFIG.clip_frames)
    assert len(shown[20.0]) == 3
    for k, ((one, goal), (other, _)) in enumerate(zip(shown[-20.0], shown[20.0])):
        assert torch.equal(one[..., 12:], other[..., 12:])
        assert torch.equal(one[..., 12:], WORLD.observe(drawn["others"][:, k]))
        assert torch.equal(one[..., :12], other[..., :12]) == (k == 0)
        assert torch.equal(goal[..., 12:], WORLD.observe(drawn["others"][:, 3]))
        assert torch.equal(goal[..., :12], WORLD.observe(drawn["goal"]))


def test_the_cost_of_a_later_clip_looks_at_the_distractors_of_its_time():
    drawn = worlds.with_distractors("second", WORLD, CONFIG, goals.goals_of(CONFIG, 2), 7)
    model = built("JEPA, second")
    to_go = runs.cost_to_go(model, WORLD, drawn["goal"], drawn["others"])
    plans = noise(2, 5, 2, 6)
    found = to_go(drawn["clip"], 2)(plans)
    z = model.start(worlds.observe(WORLD, drawn["clip"], drawn["others"][:, 1]))
    t = model.aim(worlds.observe(WORLD, drawn["goal"], drawn["others"][:, 3]))
    for b in range(2):
        p = model.rollout(z[b].expand(5, -1), plans[b])[:, -1]
        torch.testing.assert_close(found[b], (p - t[b]).square().mean(-1))


# ---- the models

def test_the_jepa_is_the_one_of_hjepa_and_its_loss_too():
    model = built("JEPA")
    assert same(model.model.state_dict(), hjepa.build_model(CONFIG).state_dict())
    total, terms = model.loss(*batch("plain"), CONFIG.loss_weights)
    obs, forces, shares = batch("plain")
    expected, _ = hjepa.objective(hjepa.build_model(CONFIG), obs, forces, CONFIG.loss_weights, shares)
    assert total == expected
    more, more_terms = built("JEPA and decoder").loss(*batch("plain"), CONFIG.loss_weights)
    extra = sum(more_terms[f"decoded_{name}"] for name in ("z1", "t1", "z2", "t2"))
    torch.testing.assert_close(more, expected + 5 * extra)


def test_reconstruction_is_of_the_clip_that_an_embedding_is_of():
    model = built("JEPA and decoder")
    obs, forces, _ = batch("plain")
    e = hjepa.embeddings(model.model, obs, forces)
    errors = model.reconstruction_errors(obs, e)
    _, deep = model.model.target(obs[:, 3])
    expected = (model.decoders["t2"](deep) - obs[:, 3].flatten(1)).square().mean()
    torch.testing.assert_close(errors["decoded_t2"], expected)
    of_clips = []
    for k in (1, 2, 3):
        shallow, _ = model.model.target(obs[:, k])
        of_clips.append((model.decoders["t1"](shallow) - obs[:, k].flatten(1)).square().mean())
    torch.testing.assert_close(errors["decoded_t1"], sum(of_clips) / 3)


def test_only_reconstruction_trains_the_encoder_of_the_autoencoder():
    model = lists.build("reconstruction", 10.0, CONFIG)
    obs, forces, shares = batch("plain")
    total, terms = model.loss(obs, forces, shares, {})
    torch.testing.assert_close(total, terms["reconstruction"] + terms["prediction"]
                               + 10 * terms["decoded"])
    for name in ("prediction", "decoded", "reconstruction"):
        model.zero_grad()
        _, terms = model.loss(obs, forces, shares, {})
        terms[name].backward()
        moved = {key.split(".")[0] for key, weight in model.named_parameters()
                 if weight.grad is not None and weight.grad.any()}
        assert moved == {"prediction": {"short"}, "decoded": {"short", "decoder"},
                         "reconstruction": {"encoder", "decoder"}}[name]
    z = torch.stack([model.start(obs[:, k]) for k in range(4)], 1)
    torch.testing.assert_close(terms["reconstruction"],
                               (model.decoder(z) - obs.flatten(2)).square().mean())
    p = z[:, 0]
    for k in range(3):
        p = model.short(p, forces[:, k])
    torch.testing.assert_close(model.rollout(z[:, 0], forces)[:, -1], p)


def test_states_are_judged_by_places_and_learnt_from_the_last_frame():
    model = built("state network")
    obs, forces, shares = batch("plain")
    assert torch.equal(model.start(obs[:, 0]), obs[:, 0, -1])
    x = torch.arange(24.0).reshape(2, 12)
    assert model.compared(x)[0].tolist() == [0, 1, 4, 5, 8, 9]
    total, _ = model.loss(obs, forces, shares, {})
    seen, errors = obs[:, 0, -1], []
    for k in range(3):
        seen = model.short(seen, forces[:, k])
        errors.append((seen - obs[:, k + 1, -1]).square().mean())
    torch.testing.assert_close(total, sum(errors) / 3)


def test_the_interaction_network_does_not_care_about_the_order_of_equal_bodies():
    step = models.InteractionStep((1.0, 1.0, 4.0), 16)
    seen, force = noise(5, 12), noise(5, 6, seed=1)
    after = step(seen, force)
    assert after.shape == (5, 12)

    def exchanged(x, order):
        return x.unflatten(-1, (3, -1))[:, order].flatten(1)
    swap = [1, 0, 2]
    torch.testing.assert_close(step(exchanged(seen, swap), exchanged(force, swap)),
                               exchanged(after, swap))
    other = [2, 1, 0]                           # of different mass
    assert not torch.allclose(step(exchanged(seen, other), exchanged(force, other)),
                              exchanged(after, other), atol=1e-3)
    far = force.clone()
    far[:, 4:] += 1                             # a force on one body is news for all
    assert (step(seen, far) - after).unflatten(-1, (3, 4)).abs().amax((0, 2)).min() > 0
    network = models.InteractionNetwork((1.0, 1.0, 4.0), 16)
    assert network.rollout(seen, noise(5, 4, 6)).shape == (5, 4, 12)


def test_a_message_is_sent_to_others_only():
    """One body alone hears nothing: the messages are of no account."""
    step = models.InteractionStep((2.0,), 8)
    seen, force = noise(3, 4), noise(3, 2, seed=1)
    before = step(seen, force)
    for message in step.messages.parameters():
        torch.nn.init.normal_(message)
    torch.testing.assert_close(step(seen, force), before)


def test_the_inverse_model_learns_the_forces_to_goals_at_all_clips():
    model = built("inverse model")
    obs, forces, shares = batch("plain")
    _, terms = model.loss(obs, forces, shares, {})
    errors = []
    for b in range(len(obs)):
        left = 3 if b % 2 == 0 else b // 2 % 3 + 1
        guess = model.guess(obs[b:b + 1, 0].flatten(1), None, obs[b:b + 1, left].flatten(1),
                            torch.tensor([left]))
        errors.append((guess[0, :left] - forces[b, :left]).square().mean(-1))
    torch.testing.assert_close(terms["guess"], torch.cat(errors).mean())
    found = model.act(obs[:, 0], obs[:, 2], 2, 6.0)
    assert found.shape == (16, 2, 6)
    flip, swap = torch.ones(16, 2, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    mirrored = model.act(hjepa.reflect(obs[:, 0], flip, swap), hjepa.reflect(obs[:, 2], flip, swap),
                         2, 6.0)
    torch.testing.assert_close(mirrored, hjepa.reflect(found, flip, swap))
    assert runs.horizons_of("inverse model, noise", CONFIG, [6, 12]) == [6]
    assert runs.horizons_of("JEPA", CONFIG, [6, 12]) == [6, 12]


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
    only = ("--only", "state network", "inverse model", "--worlds", "plain", "noise",
            "--frames", 6, 12)
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
    assert len(rows) == 2 * 2 + 2 * (2 * 2 + 1) and content["missing"] == []
    assert ("inverse model", "noise", 6) in rows and ("inverse model", "noise", 12) not in rows
    assert "gain_ci" in rows["state network", "noise", 12] and "gain" not in rows["JEPA", "plain", 6]
    of = {(row["rival"], row["world"]): row for row in content["models"]}
    assert of["JEPA", "plain"]["tuned"] == "cov_weight 1 of 1, 0.25, 4"
    assert len(of["state network", "noise"]["places"]) == 3
    assert "places" not in of["inverse model", "plain"]
    assert (place / "figures" / "baselines.png").stat().st_size > 10_000
    arrays = np.load(place / "figures" / "baselines.npz")
    worst = arrays["errors/state network, noise/12"]
    assert worst.shape == (1, 2)
    assert rows["state network", "noise", 12]["success"] == (worst < 0.1).mean()
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
