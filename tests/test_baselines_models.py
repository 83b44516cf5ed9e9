"""lib/baselines_*.py: does no force move a distractor, is each rival what it says?"""
import functools

import pytest
import torch

from conftest import same, tiny
from lib import baselines_list as lists
from lib import baselines_models as models
from lib import baselines_runs as runs
from lib import baselines_worlds as worlds
from lib import goals
import hjepa

CPU = torch.device("cpu")
CONFIG = tiny(latent=8, width=8, guess_width=8, guess_weight=5.0, sim_weight=5.0,
              contact_share=0.24)
WORLD = hjepa.build_world(CONFIG)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def batch(kind):
    """Observed clips, forces and shares of the training sequences."""
    return worlds.training_data(kind, WORLD, CONFIG, CPU)


def built(name, config=CONFIG):
    rival, _ = lists.parts_of(name)
    return lists.build(name, lists.RIVALS[rival].values[0], config)


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
    expected, _ = hjepa.objective(hjepa.build_model(CONFIG), obs, forces, CONFIG.loss_weights,
                                  shares)
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
