"""The loss against its equations, taken literally, and against the ways a collapse can hide."""
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hjepa import HJEPA, embeddings, guess_error, map_errors, objective, prediction_errors
from hjepa import similarity_terms, vicreg_terms


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def small_model():
    torch.manual_seed(0)
    return HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16,
                 macro_blocks=5, guess_width=0)


def guessing_model(into_encoders=True):
    torch.manual_seed(0)
    return HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16, macro_blocks=5, guess_width=16,
                 guess_gradient=into_encoders)


def batch(n=12):
    obs = torch.randn(n, 6, 5, 12, generator=gen(1))
    forces = torch.randn(n, 5, 6, generator=gen(2))
    return obs, forces


# VICReg

def literal(z, gamma, eps):
    """[2] eq. 1-4 with plain numbers and loops: z is a list of N lists of D floats."""
    n = len(z)
    d = len(z[0])
    mean = [sum(row[j] for row in z) / n for j in range(d)]
    c = [[0.0] * d for _ in range(d)]
    for i in range(d):
        for j in range(d):
            for row in z:
                c[i][j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (n - 1)
    std = sum(max(0.0, gamma - math.sqrt(c[j][j] + eps)) for j in range(d)) / d
    cov = sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return {"std": std, "cov": cov}


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0.05, 3), st.integers(0, 10**6))
def test_terms_equal_the_equations(n, d, scale, seed):
    z = scale * torch.randn(n, d, generator=gen(seed)) + 2
    for gamma, eps in ((1.0, 1e-4), (1.5, 1e-2)):
        expected = literal(z.double().tolist(), gamma, eps)
        got = vicreg_terms(z, gamma, eps)
        assert set(got) == {"std", "cov"}
        for name in got:
            assert got[name].item() == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_leading_axes_are_averaged_not_pooled():
    z = torch.randn(3, 10, 4, generator=gen()) * torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    each = [vicreg_terms(part) for part in z]
    for name, got in vicreg_terms(z).items():
        torch.testing.assert_close(got, sum(terms[name] for terms in each) / 3)


def test_two_samples_are_the_least():
    assert vicreg_terms(torch.randn(2, 3, generator=gen()))["std"].isfinite()
    with pytest.raises(ValueError, match="two samples"):
        vicreg_terms(torch.zeros(1, 3))


@pytest.mark.parametrize("deviation", [1e-3, 1e-2])
def test_near_collapse_is_punished_and_can_be_left(deviation):
    """The variance term is nearly 1, and its gradient pushes the samples apart."""
    z = (deviation * torch.randn(64, 8, generator=gen()) + 3).requires_grad_()
    std = vicreg_terms(z)["std"]
    assert std > 0.98
    std.backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() > 1e-5
    outward = (-z.grad * (z - z.mean(0)).detach()).sum(0)                 # the way of descent
    assert (outward > 0).all()


def test_constant_batch_has_a_finite_gradient():
    z = torch.full((16, 4), 0.7, requires_grad=True)
    terms = vicreg_terms(z)
    (terms["std"] + terms["cov"]).backward()
    assert terms["std"].item() == pytest.approx(0.99)
    assert terms["cov"].item() < 1e-12
    assert z.grad.isfinite().all()


def test_pooling_time_would_hide_a_collapse():
    """z(n, t) = f(t): every sample is the same. Clip by clip it shows; with time pooled it does
    not."""
    z = 2 * torch.randn(30, 1, 8, generator=gen()).expand(30, 20, 8)      # (T, N, D)
    assert vicreg_terms(z)["std"] > 0.98
    assert vicreg_terms(z.flatten(0, 1))["std"] < 0.01


@pytest.mark.parametrize("n, d", [(256, 64), (64, 256)])
def test_white_noise_scores_its_sampling_error(n, d):
    z = torch.randn(20, n, d, generator=gen())
    assert vicreg_terms(z)["cov"].item() == pytest.approx((d - 1) / (n - 1), rel=0.05)


def test_autocast_does_not_touch_the_statistics():
    z = torch.randn(64, 16, generator=gen())
    plain = vicreg_terms(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert (z.T @ z).dtype == torch.bfloat16                          # autocast is at work
        inside = vicreg_terms(z)
        half = vicreg_terms(z.bfloat16())
    for name in plain:
        assert torch.equal(plain[name], inside[name])
        assert plain[name].dtype == inside[name].dtype == half[name].dtype == torch.float32


# The parts of the objective

def literal_embeddings(model, obs, forces):
    """Clip by clip, step by step."""
    z1, z2 = model.context(obs[:, 0])
    t1 = [model.target(obs[:, k])[0] for k in range(1, 6)]
    _, t2 = model.target(obs[:, 5])
    _, t2_before = model.target(obs[:, 4])
    p1 = []
    z = z1
    for k in range(5):
        z = model.short(z, forces[:, k])
        p1.append(z)
    p2 = model.macro(z2, forces.flatten(1))
    return {"z1": z1, "t1": torch.stack(t1), "p1": torch.stack(p1), "z2": z2, "t2": t2, "p2": p2,
            "t2_before": t2_before}


def literal_guess_error(model, e, forces):
    """Sample by sample, force by force."""
    squares = []
    for i in range(len(forces)):
        left = 5 if i % 2 == 0 else i // 2 % 5 + 1
        goal = e["t1"][left - 1, i]
        guess = model.guess(e["z1"][i:i + 1], e["z2"][i:i + 1], goal[None], torch.tensor([left]))
        for k in range(left):
            squares.append((guess[0, k] - forces[i, k]).square().mean())
    return torch.stack(squares).mean()


def test_embeddings_equal_clip_by_clip():
    model = small_model()
    obs, forces = batch()
    got = embeddings(model, obs, forces)
    expected = literal_embeddings(model, obs, forces)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


def test_prediction_errors_are_means_over_clips_samples_and_dimensions():
    e = {}
    for i, name in enumerate(("p1", "t1")):
        e[name] = torch.randn(5, 4, 3, generator=gen(i))
    for i, name in enumerate(("p2", "t2")):
        e[name] = torch.randn(4, 3, generator=gen(10 + i))
    got = prediction_errors(e)
    per_clip = [(e["p1"][k] - e["t1"][k]).square().sum() / (4 * 3) for k in range(5)]
    assert set(got) == {"pred1", "pred2"}
    torch.testing.assert_close(got["pred1"], sum(per_clip) / 5)
    torch.testing.assert_close(got["pred2"], (e["p2"] - e["t2"]).square().sum() / (4 * 3))


def test_map_errors_compare_with_z2_of_the_last_clip():
    model = small_model()
    obs, forces = batch()
    e = embeddings(model, obs, forces)
    got = map_errors(model, obs, e)
    _, z2 = model.context(obs[:, 5])
    assert set(got) == {"bridge", "lift"}
    torch.testing.assert_close(got["bridge"], (model.bridge(e["t2"]) - z2).square().mean())
    torch.testing.assert_close(got["lift"], (model.lift(e["t1"][4]) - z2).square().mean())


def test_errors_are_taken_in_float32():
    """bfloat16 embeddings, as autocast gives them, are compared in float32."""
    e = {}
    for i, name in enumerate(("p1", "t1", "p2", "t2")):
        e[name] = torch.randn(4, 3, generator=gen(i)).bfloat16()
    for value in prediction_errors(e).values():
        assert value.dtype == torch.float32
    e["t2_before"] = e["t2"].clone()
    for value in similarity_terms(e).values():
        assert value.dtype == torch.float32


def test_objective_takes_the_shallow_target_clip_by_clip():
    """The trap of pooled time in the objective: sequences that differ in time only."""
    obs = torch.randn(1, 6, 5, 12, generator=gen()).expand(32, -1, -1, -1)
    forces = torch.randn(32, 5, 6, generator=gen(1))
    model = small_model()
    with torch.no_grad():
        for encoder in (model.target, model.context):
            encoder.read_shallow[-1].weight.mul_(20)                      # wide in time
            encoder.read_deep[-1].weight.mul_(20)
        t1, _ = model.target(obs.flatten(0, 1))
    assert vicreg_terms(t1)["std"] < 0.3
    _, terms = objective(model, obs, forces, {"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 5.0})
    for name in ("z1", "t1", "z2", "t2"):
        assert terms[f"std_{name}"] > 0.98


# The objective as a sum

ALL_WEIGHTS = [{"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 5.0, "sim": 2.0, "guess": 4.0},
               {"pred": 3.0, "std": 7.0, "cov": 11.0, "map": 2.0, "sim": 13.0, "guess": 0.0},
               {"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 0.0, "sim": 0.0, "guess": 6.0},
               {"pred": 25.0, "std": 25.0, "cov": 1.0}]


@pytest.mark.parametrize("weights", ALL_WEIGHTS)
def test_total_is_the_documented_sum(weights):
    """Every term is computed again from the embeddings, one clip at a time."""
    model = guessing_model()
    obs, forces = batch()
    total, terms = objective(model, obs, forces, weights)

    e = literal_embeddings(model, obs, forces)
    errors = [F.mse_loss(e["p1"][k], e["t1"][k]) for k in range(5)]
    expected = {"pred1": sum(errors) / 5,
                "pred2": F.mse_loss(e["p2"], e["t2"])}
    composite = weights["pred"] * (expected["pred1"] + expected["pred2"])
    for name, clips in (("z1", [e["z1"]]), ("t1", e["t1"]), ("z2", [e["z2"]]), ("t2", [e["t2"]])):
        each = [vicreg_terms(z) for z in clips]
        for kind in ("std", "cov"):
            mean = sum(pair[kind] for pair in each) / len(each)
            expected[f"{kind}_{name}"] = mean
            composite = composite + weights[kind] * mean
    expected["composite"] = composite
    _, z2_last = model.context(obs[:, 5])
    maps = {"bridge": F.mse_loss(model.bridge(e["t2"]), z2_last),
            "lift": F.mse_loss(model.lift(e["t1"][4]), z2_last)}
    steps = [(e["t1"][k + 1] - e["t1"][k]).square().mean() for k in range(4)]
    similar = {"sim1": sum(steps) / 4,
               "sim2": F.mse_loss(e["t2"], e["t2_before"])}
    guessed = {"guess": literal_guess_error(model, e, forces)}
    expected_total = composite
    for kind, more in (("map", maps), ("sim", similar), ("guess", guessed)):
        if weights.get(kind, 0) > 0:
            expected.update(more)
            expected_total = expected_total + weights[kind] * sum(more.values())

    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, expected_total, rtol=1e-5, atol=1e-5)


PARTS = {"pred": ["pred1", "pred2"],
         "std": ["std_z1", "std_t1", "std_z2", "std_t2"],
         "cov": ["cov_z1", "cov_t1", "cov_z2", "cov_t2"],
         "map": ["bridge", "lift"],
         "sim": ["sim1", "sim2"],
         "guess": ["guess"]}


@pytest.mark.parametrize("which", PARTS)
def test_each_weight_weighs_its_terms_and_no_others(which):
    model = guessing_model()
    weights = dict.fromkeys(PARTS, 0.0)
    weights[which] = 3.0
    total, terms = objective(model, *batch(), weights)
    expected = 3 * sum(terms[name] for name in PARTS[which])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    composite = total if which in ("pred", "std", "cov") else 0 * total
    torch.testing.assert_close(terms["composite"], composite, rtol=1e-5, atol=1e-6)


def test_terms_can_be_logged_in_their_order():
    """The log's columns: what is predicted, then the statistics, then the sum, then what is added
    to it."""
    _, terms = objective(guessing_model(), *batch(), ALL_WEIGHTS[0])
    assert list(terms) == ["pred1", "pred2", "std_z1", "cov_z1", "std_t1", "cov_t1", "std_z2",
                           "cov_z2", "std_t2", "cov_t2", "composite", "bridge", "lift", "sim1",
                           "sim2", "guess"]
    assert all(term.ndim == 0 for term in terms.values())


# Each function can be replaced, and nothing else changes

def difference(**replaced):
    """-> total and terms of the objective with a replaced function, and without."""
    model = small_model()
    obs, forces = batch()
    weights = {"pred": 3.0, "std": 7.0, "cov": 11.0, "map": 2.0}
    changed = functools.partial(objective, **replaced)
    return changed(model, obs, forces, weights), objective(model, obs, forces, weights)


def assert_changed(now, before, names):
    """Of all terms but the sum, those in names are others, the rest is the same."""
    for name in before:
        if name != "composite":
            same = torch.equal(now[name], before[name])
            assert same == (name not in names), name


def test_embed_can_be_replaced():
    """A study of frozen targets, say."""
    def shifted(model, obs, forces):
        e = embeddings(model, obs, forces)
        e["p2"] = e["p2"] + 1
        return e
    (total, terms), (old_total, old_terms) = difference(embed=shifted)
    assert list(terms) == list(old_terms)
    assert_changed(terms, old_terms, ["pred2"])
    expected = old_total + 3 * (terms["pred2"] - old_terms["pred2"])
    torch.testing.assert_close(total, expected)


def test_predict_can_be_replaced():
    """By terms of any names: each is weighed by pred."""
    def three_errors(e):
        return {**prediction_errors(e), "pred3": torch.tensor(2.0)}
    (total, terms), (old_total, old_terms) = difference(predict=three_errors)
    assert terms["pred3"] == 2
    assert_changed(terms, old_terms, [])
    torch.testing.assert_close(total, old_total + 3 * 2)
    torch.testing.assert_close(terms["composite"], old_terms["composite"] + 3 * 2)


def test_regularise_can_be_replaced():
    """It is asked for each of the four sets; its terms carry its names and weights."""
    seen = []

    def spread_only(z):
        seen.append(z)
        return {"std": z.abs().mean()}
    (total, terms), (old_total, old_terms) = difference(regularise=spread_only)
    assert [tuple(z.shape) for z in seen] == [(12, 8), (5, 12, 8), (12, 8), (12, 8)]
    assert set(old_terms) - set(terms) == set(PARTS["cov"])
    expected = old_total
    for z, name in zip(seen, ("z1", "t1", "z2", "t2")):
        assert torch.equal(terms[f"std_{name}"], z.abs().mean())
        expected = expected + 7 * (terms[f"std_{name}"] - old_terms[f"std_{name}"])
        expected = expected - 11 * old_terms[f"cov_{name}"]
    torch.testing.assert_close(total, expected)


def test_link_can_be_replaced():
    asked = []

    def one_map(model, obs, e):
        asked.append((model, obs, e))
        return {"bridge": torch.tensor(0.25)}
    (total, terms), (_, old_terms) = difference(link=one_map)
    assert len(asked) == 1
    model, obs, e = asked[0]
    assert isinstance(model, HJEPA)
    assert obs.shape == (12, 6, 5, 12)
    assert set(e) == {"z1", "t1", "p1", "z2", "t2", "p2", "t2_before"}
    assert terms["bridge"] == 0.25
    assert "lift" not in terms
    assert torch.equal(terms["composite"], old_terms["composite"])
    torch.testing.assert_close(total, terms["composite"] + 2 * 0.25)


def test_smooth_and_guess_can_be_replaced():
    asked = []

    def smooth(e):
        asked.append(e)
        return {"sim1": torch.tensor(0.25), "sim3": torch.tensor(0.5)}

    def guess(model, e, forces):
        asked.append((model, e, forces))
        return {"guess": torch.tensor(2.0)}
    model = guessing_model()
    obs, forces = batch()
    weights = {"pred": 1.0, "std": 1.0, "cov": 1.0, "map": 0.0, "sim": 4.0, "guess": 10.0}
    total, terms = objective(model, obs, forces, weights, smooth=smooth, guess=guess)
    assert list(terms)[-4:] == ["composite", "sim1", "sim3", "guess"]
    torch.testing.assert_close(total, terms["composite"] + 4 * 0.75 + 10 * 2)
    e, (given_model, given_e, given_forces) = asked
    assert given_e is e
    assert given_model is model
    assert given_forces is forces


def test_nothing_is_asked_for_without_weight():
    def never(*arguments):
        raise AssertionError
    weights = {"pred": 1.0, "std": 1.0, "cov": 1.0, "map": 0.0, "sim": 0.0, "guess": 0.0}
    for given in (weights, {name: weights[name] for name in ("pred", "std", "cov")}):
        total, terms = objective(small_model(), *batch(), given, smooth=never, guess=never,
                                 link=never)
        assert torch.equal(total, terms["composite"])


def test_gather_brings_the_samples_of_all_processes_to_the_statistics_alone():
    def doubled(z):
        return torch.cat([z, z + 1], -2)
    (_, terms), (_, old_terms) = difference(gather=doubled)
    assert_changed(terms, old_terms, PARTS["std"] + PARTS["cov"])
    model = small_model()
    e = embeddings(model, *batch())
    for name in ("z1", "t1", "z2", "t2"):
        expected = vicreg_terms(doubled(e[name]))
        torch.testing.assert_close(terms[f"std_{name}"], expected["std"])
        torch.testing.assert_close(terms[f"cov_{name}"], expected["cov"])


# Similarity, first guess, and the shares of samples

def test_with_one_clip_to_predict_there_is_no_step_to_make_small():
    torch.manual_seed(0)
    model = HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16, event_clips=1,
                  macro_blocks=1, guess_width=0)
    obs, forces = batch()
    e = embeddings(model, obs[:, :2], forces[:, :1])
    assert torch.equal(e["t2_before"], e["t2"])
    got = similarity_terms(e)
    assert got["sim1"] == got["sim2"] == 0


def test_similarity_is_the_step_from_each_target_to_the_next():
    e = {"t1": torch.randn(5, 4, 8, generator=gen(0)), "t2": torch.randn(4, 8, generator=gen(1)),
         "t2_before": torch.randn(4, 8, generator=gen(2))}
    got = similarity_terms(e)
    steps = [(e["t1"][k + 1] - e["t1"][k]).square().mean() for k in range(4)]
    torch.testing.assert_close(got["sim1"], sum(steps) / 4)
    torch.testing.assert_close(got["sim2"], (e["t2"] - e["t2_before"]).square().mean())
    one_clip = similarity_terms({**e, "t1": e["t1"][:1]})
    assert one_clip["sim1"] == 0


def test_the_first_guess_is_judged_on_the_forces_up_to_its_goal():
    model = guessing_model()
    obs, forces = batch()
    e = embeddings(model, obs, forces)
    got = guess_error(model, e, forces)
    torch.testing.assert_close(got["guess"], literal_guess_error(model, e, forces))


def test_what_a_guess_says_beyond_its_goal_means_nothing():
    """Sample 1 has its goal one clip ahead: its forces 1 to 4 may be anything. Sample 0 has it at
    the last clip: each force counts."""
    model = guessing_model()
    obs, forces = batch()
    e = embeddings(model, obs, forces)
    before = guess_error(model, e, forces)["guess"]
    for sample, counts in ((0, [True] * 5), (1, [True] + [False] * 4)):
        for k in range(5):
            other = forces.clone()
            other[sample, k] += 1
            now = guess_error(model, e, other)["guess"]
            assert torch.equal(now, before) != counts[k]


def test_every_distance_of_a_goal_is_asked_for():
    """Half of the samples at the last clip, the others at all clips, equally often."""
    asked = []

    class Notes(torch.nn.Module):
        def forward(self, z1, z2, goal, left):
            asked.append((goal, left))
            return torch.zeros(len(left), 5, 6)
    model = guessing_model()
    model.guess = Notes()
    t1 = torch.arange(5.0)[:, None, None].expand(5, 40, 8)                # clip k shows k - 1
    e = {"z1": torch.zeros(40, 8), "z2": torch.zeros(40, 8), "t1": t1}
    guess_error(model, e, torch.zeros(40, 5, 6))
    goal, left = asked[0]
    assert torch.equal(goal[:, 0], left - 1.0)
    assert left.bincount().tolist() == [0, 4, 4, 4, 4, 24]


@pytest.mark.parametrize("into_encoders", [True, False])
def test_the_guess_trains_the_encoders_only_if_it_may(into_encoders):
    model = guessing_model(into_encoders)
    obs, forces = batch()
    e = embeddings(model, obs, forces)
    guess_error(model, e, forces)["guess"].backward()
    for encoder in (model.context, model.target):
        touched = any(p.grad is not None and p.grad.any() for p in encoder.parameters())
        assert touched == into_encoders
    assert all(p.grad.any() for p in model.guess.parameters())


def test_the_new_terms_enter_the_total_with_their_weights():
    model = guessing_model()
    obs, forces = batch()
    weights = {"pred": 25.0, "std": 25.0, "cov": 1.0, "map": 0.0, "sim": 3.0, "guess": 7.0}
    total, terms = objective(model, obs, forces, weights)
    extra = 3 * (terms["sim1"] + terms["sim2"]) + 7 * terms["guess"]
    torch.testing.assert_close(total, terms["composite"] + extra)


def test_shares_reach_the_predictions_of_the_objective():
    """Samples of share 0 pull no target; shares of 1 are the same as none."""
    model = small_model()
    obs, forces = batch()
    weights = {"pred": 25.0, "std": 0.0, "cov": 0.0}
    totals = []
    pulls = []
    for shares in (None, torch.ones(12), torch.zeros(12)):
        model.zero_grad()
        total, _ = objective(model, obs, forces, weights, shares)
        total.backward()
        totals.append(total.item())
        pulls.append([sum(p.grad.abs().sum().item() for p in encoder.parameters())
                      for encoder in (model.context, model.target)])
    assert totals == pytest.approx([totals[0]] * 3)
    assert pulls[1] == pytest.approx(pulls[0])
    assert pulls[2] == pytest.approx([pulls[0][0], 0])
    assert pulls[0][1] > 0


def test_shares_weigh_the_gradient_of_targets_and_nothing_else():
    """The values stay. Share 2 pulls a target twice as hard, a prediction as ever."""
    shares = torch.tensor([2.0, 0.5, 1.0, 0.0])
    e = {name: torch.randn(5, 4, 3, generator=gen(i)).requires_grad_()
         for i, name in enumerate(("p1", "t1"))}
    e.update({name: torch.randn(4, 3, generator=gen(9 + i)).requires_grad_()
              for i, name in enumerate(("p2", "t2"))})
    plain = prediction_errors(e)
    sum(plain.values()).backward()
    before = {name: z.grad.clone() for name, z in e.items()}
    for z in e.values():
        z.grad = None
    shared = prediction_errors({**e, "shares": shares})
    for name in plain:
        torch.testing.assert_close(shared[name], plain[name])
    sum(shared.values()).backward()
    for name in ("p1", "p2"):
        torch.testing.assert_close(e[name].grad, before[name])
    for name in ("t1", "t2"):
        torch.testing.assert_close(e[name].grad, shares[:, None] * before[name])
