"""The loss against its equations, taken literally, and against the ways a collapse can hide."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hjepa import HJEPA, objective, vicreg_terms


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def literal(z, gamma, eps):
    """[2] eq. 1-4 with plain numbers and loops: z is a list of N lists of D floats."""
    n, d = len(z), len(z[0])
    mean = [sum(row[j] for row in z) / n for j in range(d)]
    c = [[0.0] * d for _ in range(d)]
    for i in range(d):
        for j in range(d):
            for row in z:
                c[i][j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (n - 1)
    std = sum(max(0.0, gamma - math.sqrt(c[j][j] + eps)) for j in range(d)) / d
    cov = sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return std, cov


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.05, 3), st.integers(0, 10**6))
def test_terms_equal_the_equations(n, d, scale, seed):
    z = scale * torch.randn(n, d, generator=gen(seed)) + 2
    for gamma, eps in ((1.0, 1e-4), (1.5, 1e-2)):
        std, cov = literal(z.double().tolist(), gamma, eps)
        got = vicreg_terms(z, gamma, eps)
        assert got[0].item() == pytest.approx(std, rel=1e-4, abs=1e-6)
        assert got[1].item() == pytest.approx(cov, rel=1e-4, abs=1e-6)


def test_leading_axes_are_averaged_not_pooled():
    z = torch.randn(3, 10, 4, generator=gen()) * torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    each = [vicreg_terms(part) for part in z]
    for i, got in enumerate(vicreg_terms(z)):
        torch.testing.assert_close(got, sum(pair[i] for pair in each) / 3)


def test_two_samples_are_the_least():
    assert vicreg_terms(torch.randn(2, 3, generator=gen()))[0].isfinite()
    with pytest.raises(ValueError, match="two samples"):
        vicreg_terms(torch.zeros(1, 3))


@pytest.mark.parametrize("spread", [1e-3, 1e-2])
def test_near_collapse_is_punished_and_can_be_left(spread):
    """The variance term is nearly 1, and its gradient pushes the samples apart."""
    z = (spread * torch.randn(64, 8, generator=gen()) + 3).requires_grad_()
    std, _ = vicreg_terms(z)
    assert std > 0.98
    std.backward()
    assert z.grad.isfinite().all() and z.grad.abs().max() > 1e-5
    outward = (-z.grad * (z - z.mean(0)).detach()).sum(0)                 # the way of descent
    assert (outward > 0).all()


def test_constant_batch_has_a_finite_gradient():
    z = torch.full((16, 4), 0.7, requires_grad=True)
    std, cov = vicreg_terms(z)
    (std + cov).backward()
    assert std.item() == pytest.approx(0.99) and cov.item() < 1e-12
    assert z.grad.isfinite().all()


def test_pooling_time_would_hide_a_collapse():
    """z(n, t) = f(t): every sample is the same. Clip by clip it shows; with time pooled it does
    not."""
    z = 2 * torch.randn(30, 1, 8, generator=gen()).expand(30, 20, 8)      # (T, N, D)
    assert vicreg_terms(z)[0] > 0.98
    assert vicreg_terms(z.flatten(0, 1))[0] < 0.01


def test_objective_takes_the_shallow_target_clip_by_clip():
    """The same trap in the objective: sequences that differ in time only."""
    obs = torch.randn(1, 6, 5, 12, generator=gen()).expand(32, -1, -1, -1)
    forces = torch.randn(32, 5, 6, generator=gen(1))
    model = HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16)
    with torch.no_grad():
        for tap in (model.target.tap1, model.target.tap2, model.context.tap1, model.context.tap2):
            tap[-1].weight.mul_(20)                                       # wide in time
        t1 = model.target(obs.flatten(0, 1))[0]
    assert vicreg_terms(t1)[0] < 0.3
    terms = objective(model, obs, forces)[1]
    assert min(terms[f"std_{name}"] for name in ("c1", "t1", "c2", "t2")) > 0.98


@pytest.mark.parametrize("n, d", [(256, 64), (64, 256)])
def test_white_noise_scores_its_sampling_error(n, d):
    z = torch.randn(20, n, d, generator=gen())
    assert vicreg_terms(z)[1].item() == pytest.approx((d - 1) / (n - 1), rel=0.05)


def test_autocast_does_not_touch_the_statistics():
    z = torch.randn(64, 16, generator=gen())
    plain = vicreg_terms(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z.T @ z).dtype == torch.bfloat16                          # autocast is at work
        inside, half = vicreg_terms(z), vicreg_terms(z.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(plain, inside))
    assert all(x.dtype == torch.float32 for x in (*plain, *inside, *half))


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0, 5.0), (3.0, 7.0, 11.0, 2.0),
                                     (25.0, 25.0, 1.0, 0.0)])
def test_total_is_the_documented_sum(weights):
    """Every term is computed again from the embeddings, one clip at a time."""
    pred, std, cov, maps = weights
    model = HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16)
    obs = torch.randn(12, 6, 5, 12, generator=gen(1))
    forces = torch.randn(12, 5, 6, generator=gen(2))
    total, terms = objective(model, obs, forces, *weights)

    z1, z2 = model.context(obs[:, 0])
    t1 = [model.target(obs[:, k])[0] for k in range(1, 6)]
    t2, z, errors = model.target(obs[:, 5])[1], z1, []
    for k in range(5):
        z = model.short(z, forces[:, k])
        errors.append(F.mse_loss(z, t1[k]))
    expected = {"pred1": sum(errors) / 5,
                "pred2": F.mse_loss(model.macro(z2, forces.flatten(1)), t2)}
    stats = {"c1": [z1], "t1": t1, "c2": [z2], "t2": [t2]}
    for name, sets in stats.items():
        pairs = [vicreg_terms(s) for s in sets]
        expected["std_" + name] = sum(p[0] for p in pairs) / len(pairs)
        expected["cov_" + name] = sum(p[1] for p in pairs) / len(pairs)
    composite = pred * (expected["pred1"] + expected["pred2"]) + sum(
        std * expected["std_" + name] + cov * expected["cov_" + name] for name in stats)
    same = model.context(obs[:, 5])[1]
    links = {"bridge": F.mse_loss(model.bridge(t2), same),
             "lift": F.mse_loss(model.lift(t1[-1]), same)}
    if maps:
        expected.update(links)
    assert set(terms) == {*expected, "composite"}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["composite"], composite, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, composite + maps * sum(links.values()), rtol=1e-5, atol=1e-5)
