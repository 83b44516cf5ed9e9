"""lib/latent_*.py: the kick, energies and penalties, two steps of training."""
import math

import numpy as np
import pytest
import torch

from lib import latent_model, latent_training, latent_world
from studies import CONFIG, WORLD
import hjepa

LATENT, ACTIONS = 12, 6


def network(family, size, weight=0.0, seed=0):
    """A fresh predictor of 12 numbers, whose zeta matters: the default start makes small steps."""
    torch.manual_seed(seed)
    variant = latent_model.Variant(f"{family} {size}", family, size, weight)
    made = latent_model.build_one(variant, LATENT, ACTIONS, latent_world.SIZE)
    with torch.no_grad():
        made.predictor.leave.weight.mul_(10)
    return made


@pytest.fixture
def batch():
    """p, forces, t, push, noise of 9 samples."""
    gen = hjepa.generator(0, "batch")
    p, t = torch.randn(2, 9, LATENT, generator=gen)
    forces = torch.randn(9, ACTIONS, generator=gen)
    push = latent_world.SIZE * latent_world.directions("ring", 9, gen)
    return p, forces, t, push, torch.randn(9, 5, generator=gen)


# ---- the kick

def test_a_kick_changes_the_momentum_of_one_body_by_its_mass_times_the_push():
    state = WORLD.reset(6, hjepa.generator(0, "kick"))
    push = latent_world.SIZE * latent_world.directions("ring", 6, hjepa.generator(1, "kick"))
    before = state.clone()
    masses = torch.tensor(WORLD.masses)[:, None]
    for body in range(3):
        kicked = latent_world.kick(state, push, body)
        change = masses * (kicked[..., 2:] - state[..., 2:])
        torch.testing.assert_close(change[:, body], WORLD.masses[body] * push)
        others = [i for i in range(3) if i != body]
        assert torch.equal(kicked[:, others], state[:, others])
        assert torch.equal(kicked[..., :2], state[..., :2])
    assert torch.equal(state, before)


def test_directions_are_unit_vectors_and_both_sides_come_up():
    for kind in latent_world.KINDS:
        some = latent_world.directions(kind, 2000, hjepa.generator(0, kind))
        torch.testing.assert_close(some.norm(dim=1), torch.ones(2000))
        assert abs((some[:, 0] > 0).float().mean() - 0.5) < 0.04
    assert (latent_world.directions("two", 50, hjepa.generator(0, "two"))[:, 1] == 0).all()
    assert (some[:, 1].std() - math.sqrt(0.5)).abs() < 0.03
    assert latent_world.possible_pushes("two").round(decimals=5).tolist() == [[0.5, 0], [-0.5, 0]]


def test_what_is_seen_does_not_tell_the_kick():
    """The same worlds under the opposite push: clip and force are equal, the future is not. Before
    any contact the kicked body is elsewhere by push times time."""
    drawn = latent_world.draw(WORLD, CONFIG, 64, "two", 0, "test", "cpu")
    opposite = latent_world.future_of(WORLD, drawn.clip, drawn.forces, -drawn.push)
    gap = drawn.future[:, 0] - opposite[:, 0]                             # after one frame
    expected = torch.zeros_like(gap)
    expected[:, 0, :2] = 2 * drawn.push * CONFIG.dt
    expected[:, 0, 2:] = 2 * drawn.push
    near = (gap - expected).abs().flatten(1).amax(1) < 1e-5
    assert near.float().mean() > 0.8            # the others met a wall or a body in that frame
    assert torch.equal(latent_world.draw(WORLD, CONFIG, 64, "two", 0, "test", "cpu").clip,
                       drawn.clip)


# ---- energies

def test_the_energy_of_a_discrete_zeta_is_the_smallest_of_k_errors(batch):
    p, forces, t, push, noise = batch
    made = network("discrete", 4)
    energy, d, zeta = made.energy(p, forces, t)
    for i in range(len(p)):
        errors = []
        for k in range(4):
            code = torch.zeros(1, 4)
            code[0, k] = 1
            predicted = made(p[i:i + 1], forces[i:i + 1], code)[0]
            errors.append(((predicted - t[i]) ** 2).mean().item())
        assert energy[i].item() == pytest.approx(min(errors), rel=1e-4)
        assert zeta[i, 0].item() == int(np.argmin(errors))
    assert len(zeta.unique()) > 1 and torch.equal(energy, d)
    loss, penalty = made.loss(p, forces, t, push, noise)
    torch.testing.assert_close(loss, energy)
    assert penalty == 0


def test_only_the_best_zeta_learns(batch):
    """The gradient of the loss reaches the column of a zeta only if it is the best somewhere."""
    p, forces, t, push, noise = batch
    made = network("discrete", 4)
    best = made.infer(p, forces, t)
    made.loss(p, forces, t, push, noise)[0].mean().backward()
    columns = made.predictor.enter.weight.grad[:, -4:].abs().sum(0)
    assert {k for k in range(4) if columns[k] > 0} == set(best.tolist())


def test_one_zeta_is_the_plain_predictor(batch):
    p, forces, t, push, noise = batch
    made = network("discrete", 1)
    plain = hjepa.Predictor(LATENT, ACTIONS, latent_model.WIDTH, latent_model.BLOCKS)
    plain.load_state_dict(made.predictor.state_dict())
    expected = (plain(p, forces) - t).square().mean(1)
    assert torch.equal(made.energy(p, forces, t)[0], expected)
    assert torch.equal(made.loss(p, forces, t, push, noise)[0], expected)
    assert torch.equal(made.all_predictions(p, forces)[:, 0], plain(p, forces))


def test_the_told_one_reads_the_push_in_units_of_its_size(batch):
    p, forces, t, push, noise = batch
    made = network("told", 2)
    expected = (made.predictor(p, torch.cat([forces, push / 0.5], 1)) - t).square().mean(1)
    torch.testing.assert_close(made.loss(p, forces, t, push, noise)[0], expected)


def test_the_penalty_of_a_vector(batch):
    p, forces, t, push, noise = batch
    made = network("vector", 3, weight=0.7)
    zeta = made.encoder(torch.cat([p, t], 1))
    d, penalty = made.loss(p, forces, t, push, noise)
    error = (made.predictor(p, torch.cat([forces, zeta], 1)) - t).square().mean(1)
    torch.testing.assert_close(d, error)
    weights = 0
    for layer in (made.predictor.enter, made.predictor.force[0]):
        for column in range(3):
            weights = weights + (layer.weight[:, -1 - column] ** 2).sum()
    torch.testing.assert_close(penalty, 0.7 * (zeta.abs().sum(1).mean() + weights))
    torch.testing.assert_close(made.amortised(p, forces, t), error + 0.7 * zeta.abs().sum(1))


class Linear(latent_model.Vector):
    """P = p + two orthogonal columns of length 2, times zeta: its energy has one valley, known."""

    columns = 2 * torch.eye(LATENT)[:, 3:5]

    def forward(self, p, forces, zeta):
        return p + zeta @ self.columns.T


def test_descent_finds_the_smallest_energy_of_sparse_coding(batch):
    """With R = sum |zeta_i|: soft thresholding. D = |r - C zeta|^2 / 12, so zeta is C'r / 4, by
    weight 12 / (2 4) nearer to 0."""
    p, forces, t, _, _ = batch
    made = Linear(LATENT, ACTIONS, latent_model.Variant("linear", "vector", 2, 0.2))
    energy, d, zeta = made.energy(p, forces, t)
    alone = (t - p)[:, 3:5] / 2
    expected = alone.sign() * (alone.abs() - 0.2 * 12 / 8).clamp_min(0)
    assert (expected == 0).any() and (expected != 0).any()
    lowest = (t - p - expected @ made.columns.T).square().mean(1) + 0.2 * expected.abs().sum(1)
    assert (energy >= lowest - 1e-6).all()
    torch.testing.assert_close(energy, lowest, rtol=0.005, atol=0.0)
    torch.testing.assert_close(energy, d + 0.2 * zeta.abs().sum(1))


def test_the_energy_is_never_above_that_of_the_guess_or_of_zero(batch):
    p, forces, t, _, _ = batch
    for family in ("vector", "noisy", "minimised"):
        made = network(family, 3, weight=0.05)
        energy, _, _ = made.energy(p, forces, t)
        assert (energy <= made.amortised(p, forces, t) + 1e-7).all()
        assert (energy <= made.total(p, forces, t, torch.zeros(len(p), 3))[0] + 1e-7).all()
        assert (energy < made.amortised(p, forces, t) - 1e-4).any()


def test_minimised_zeta_fits_better_than_none(batch):
    p, forces, t, push, noise = batch
    made = network("minimised", 2)
    d, _ = made.loss(p, forces, t, push, noise)
    none, _ = made.total(p, forces, t, torch.zeros(len(p), 2))
    assert made.encoder is None and (d < none).float().mean() > 0.8
    d.mean().backward()
    assert made.predictor.enter.weight.grad.isfinite().all()


def test_a_noisy_zeta_is_reparametrised(batch):
    """mean + deviation noise; the penalty is KL(N(mean, deviation^2), N(0, 1)) as torch has it."""
    p, forces, t, push, noise = batch
    made = network("noisy", 2, weight=0.3)
    mean, log_deviation = made.encoder(torch.cat([p, t], 1)).split(2, 1)
    zeta = mean + log_deviation.exp() * noise[:, :2]
    d, penalty = made.loss(p, forces, t, push, noise)
    expected = (made.predictor(p, torch.cat([forces, zeta], 1)) - t).square().mean(1)
    torch.testing.assert_close(d, expected)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, log_deviation.exp()),
                                                   normal(torch.zeros(9, 2), torch.ones(9, 2)))
    torch.testing.assert_close(penalty, 0.3 * divergence.sum(1).mean())
    d.mean().backward()
    last = made.encoder[-1].weight.grad
    assert (last[:2].abs().sum() > 0) and (last[2:].abs().sum() > 0)
    torch.testing.assert_close(made.penalty(zeta), (zeta ** 2).sum(1) / 2)


# ---- training

def settings(**changes):
    config = hjepa.Config(latent=LATENT, **changes)
    return latent_training.settings_of(config, "two", 64, "of a run")


def test_two_steps_of_training_change_every_predictor_and_mix_none(batch):
    p, forces, t, push, _ = batch
    noise = torch.randn(9, 256, generator=hjepa.generator(0, "noise"))
    networks = latent_model.build(settings())
    bases = {"expected": p, "seen": -p}
    before = {name: weight.clone() for name, weight in networks.state_dict().items()}
    optimizer = torch.optim.AdamW(networks.parameters(), 1e-3)
    for _ in range(2):
        total, terms = latent_model.joint_loss(networks, bases, forces, t, push, noise)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert list(terms) == [variant.name for variant in latent_model.VARIANTS]
    for name in terms:
        key = f"{name}.predictor.leave.weight"
        assert not torch.equal(networks.state_dict()[key], before[key]), name
    parts = []
    for name in terms:
        base = -p if "from scratch" in name else p
        parts.append(networks[name].loss(base, forces, t, push, noise))
    total, _ = latent_model.joint_loss(networks, bases, forces, t, push, noise)
    torch.testing.assert_close(total, sum(d.mean() + penalty for d, penalty in parts))


def test_a_file_of_other_variants_is_not_built():
    content = settings()
    content["variants"] = content["variants"][:-1]
    with pytest.raises(ValueError, match="do not fit"):
        latent_model.build(content)
