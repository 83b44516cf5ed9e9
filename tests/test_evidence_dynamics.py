"""figures/dynamics.py and figures/response.py: do they measure what they say?

A perfect model, the simulator itself in the form of a model, must score perfectly, and a crooked
answer must be measured as crooked. Both must run as a user runs them.
"""
from argparse import Namespace

import numpy as np
import pytest
import torch

from studies import CONFIG, CPU, PERFECT, PERFECT_1, WORLD, check_intervals, run_study
from studies import quick                                                 # noqa: F401
from lib import readouts
import dynamics
import hjepa
import response

FRAMES = (5, 10, 15, 20, 25)


def measure(study, n, *runs):
    """-> summary and arrays of a study."""
    results = study.measure(Namespace(n=n, device=CPU), list(runs))
    return results.summary, results.arrays


@pytest.fixture(scope="module")
def perfect_rows():
    summary, _ = measure(dynamics, 96, PERFECT)
    return summary["rows"]


@pytest.fixture(scope="module")
def perfect_response():
    summary, _ = measure(response, 96, PERFECT)
    return summary


# ---- as a user runs them

def test_dynamics_runs_and_its_files_have_what_is_promised(smoke, tmp_path):
    rows = run_study("dynamics", smoke, tmp_path, 64)["rows"]
    found = {(r["method"], r["level"], r["forces"], r["contacts"]): r for r in rows}
    assert len(found) == len(rows) and {r["frames"] for r in rows} == {25}
    for contacts in ("all", "0", "1", "2+"):
        told = [(method, level, forces, contacts) for method, level in (("P1", "short"),
                ("P2", "macro")) for forces in ("true", "shuffled", "zero")]
        others = [(method, level, None, contacts) for method, level in (
            ("probe alone", "short"), ("probe alone", "macro"), ("copy last", "short"),
            ("copy last", "macro"), ("fly and fold", None), ("decoded simulator", None))]
        assert {*told, *others} <= set(found)
    for row in rows:
        check_intervals(row, "position_error")
        with_latents = row["method"] in ("P1", "P2", "copy last")
        assert with_latents == ("latent_error" in row)
        if with_latents:
            check_intervals(row, "latent_error")
    n = {c: found["P1", "short", "true", c]["n"] for c in dynamics.CONTACTS}
    assert n["all"] == n["0"] + n["1"] + n["2+"] == 64                    # strata are a partition

    arrays = np.load(tmp_path / "dynamics.npz")
    for (method, level, forces, contacts), row in found.items():
        name = f"{method}/{level or 'both'}/{forces or 'none'}/{contacts}"
        frames, curve = arrays["frames/" + name], arrays["position_error/" + name]
        assert frames.tolist() == ([25] if "macro" in name else list(FRAMES))
        assert curve.shape == (len(frames), 3) and arrays["n/" + name][-1] == row["n"]
        if row["n"]:
            expected = [row["position_error"], *row["position_error_ci"]]
            assert curve[-1] == pytest.approx(expected, rel=1e-4)
        else:
            assert np.isnan(curve[-1]).all()
    hit = arrays["n/P1/short/true/all"] - arrays["n/P1/short/true/0"]
    assert (np.diff(hit) >= 0).all() and hit[-1] > hit[0]                 # contacts add up


def test_response_runs_and_its_json_has_what_is_promised(smoke, tmp_path):
    content = run_study("response", smoke, tmp_path, 64)
    changes = content["counterfactuals"]
    assert [(r["level"], r["frames"], r["body"]) for r in changes] == [
        (level, frames, body) for level, frames in (("short", 5), ("short", 25), ("macro", 25))
        for body in (0, 1, 2, "others")]
    for row in changes:
        check_intervals(row, "pearson", "slope", "sign_agreement")
        if row["body"] != "others":
            check_intervals(row, "leakage")
    assert [row["inverse_mass"] for row in content["masses"]] == 3 * [[1, 0.5, 0.25]]
    for row in content["masses"]:
        check_intervals(row, "slope", "acceleration_0", "acceleration_1", "acceleration_2")


@pytest.mark.parametrize("study, table", [(dynamics, "rows"), (response, "counterfactuals")])
def test_two_seeds_give_the_same_rows(study, table):
    summary, _ = measure(study, 16, PERFECT, PERFECT_1)
    alone, _ = measure(study, 16, PERFECT)
    keys = "method", "level", "forces", "frames", "contacts", "body", "n"
    def labels(rows):
        return [[row.get(key) for key in keys] for row in rows]
    assert labels(summary[table]) == labels(alone[table])


# ---- error against horizon

def test_a_perfect_model_makes_no_error_and_only_physics_without_contacts_does(perfect_rows):
    seen = set()
    for row in perfect_rows:
        if row["n"] == 0:
            continue
        seen.add(row["method"])
        if row["method"] in ("P1", "P2") and row["forces"] == "true":
            assert row["latent_error"] < 1e-6 and row["position_error"] < 1e-3, row
        if row["forces"] in ("shuffled", "zero"):
            assert row["latent_more_ci"][0] > 0 or row["n"] < 20, row
        if row["method"] == "fly and fold":
            assert (row["position_error"] < 1e-3) == (row["contacts"] == "0"), row
        if row["method"] == "decoded simulator" and row["contacts"] == "0":
            assert row["position_error"] < 1e-3, row
        if row["method"] == "copy last":
            assert row["position_error"] > 0.1, row
    assert seen == {"P1", "P2", "probe alone", "copy last", "fly and fold", "decoded simulator"}


def test_errors_are_in_the_units_that_are_promised():
    gen = torch.Generator().manual_seed(0)
    target = torch.randn(500, 8, generator=gen) * torch.arange(1, 9)
    mean = target.mean(0).expand_as(target)
    assert dynamics.latent_error(mean, target).mean() == pytest.approx(499 / 500, rel=1e-4)
    place = torch.zeros(2, 3, 2)
    guess = torch.tensor([[3.0, 4, 0, 0, 0, 0], [0, 0, 0, 1, 2, 0]])
    assert dynamics.position_error(guess, place).tolist() == pytest.approx([5 / 3, 1])


def test_without_contacts_bodies_pass_through_each_other_and_still_meet_walls():
    # The third body meets the wall between two frames: at a frame, rounding would decide.
    start = torch.tensor([[[-0.3, 0, 1, 0], [0.3, 0, -1, 0], [0.0, 0.79, 0, 1]]])
    none = torch.zeros(1, 10, 6)
    film, no_contacts = hjepa.without_contacts(WORLD).rollout(start, none, 5)
    real, contacts = WORLD.rollout(start, none, 5)
    assert contacts.any() and not no_contacts.any()
    gap = film[0, :, 1, 0] - film[0, :, 0, 0]
    assert gap.min() < -0.3 and gap.abs().min() < 0.05                    # in front, then behind
    assert (real[0, :, 1, 0] > real[0, :, 0, 0]).all()
    torch.testing.assert_close(film[0, :, 2], real[0, :, 2])              # the wall is still there
    assert film[..., :2].abs().max() < 1


# ---- response to forces

def test_a_perfect_model_answers_what_if(perfect_response):
    for row in perfect_response["counterfactuals"]:
        if row["n"]:
            assert row["pearson"] == pytest.approx(1, abs=1e-3), row
            assert row["slope"] == pytest.approx(1, abs=1e-3), row
            assert row["sign_agreement"] == pytest.approx(1, abs=1e-2), row
        if row["body"] != "others":
            assert row["sign_agreement"] == 1 and row["leakage"] < 1e-3, row
            assert row["n_without_contact"] > 20
    for row in perfect_response["masses"]:
        assert row["slope"] == pytest.approx(1, abs=1e-3)
        for b, inverse in enumerate(row["inverse_mass"]):
            assert row[f"acceleration_{b}"] == pytest.approx(inverse, abs=1e-3)
            assert row["n"][b] > 10


def test_a_crooked_answer_is_measured_as_crooked():
    """Half of the true response, that of body 2 the wrong way round, and a tenth of the pushed
    body's move in each other body."""
    states, _, _ = hjepa.draw_sequences(WORLD, CONFIG, 96, 5, "crooked", "cpu")
    z = readouts.encode(PERFECT, WORLD, states, CPU)
    def place(p):
        return p.unflatten(-1, (-1, 4))[..., :2].flatten(-2)
    reads = readouts.ReadOuts(place, place, None)
    pushes = response.draw_pushes(CONFIG, 96)
    answers = response.run_responses(PERFECT, WORLD, states[:, 0, -1], z, reads, pushes, CPU)
    crooked = {}
    for case, answer in answers.items():
        own = torch.stack([answer.true[:, b, b] for b in range(3)], 1)    # (N, pushed, 2)
        guess = 0.05 * own[:, :, None].expand_as(answer.true).clone()
        for body, gain in enumerate((0.5, 0.5, -0.5)):
            guess[:, body, body] = gain * own[:, body]
        crooked[case] = answer._replace(guess=guess)
    for row in response.counterfactual_rows([crooked], CONFIG):
        if row["body"] != "others":
            sign = -1 if row["body"] == 2 else 1
            assert row["slope"] == pytest.approx(0.5 * sign, abs=1e-4)
            assert row["pearson"] == pytest.approx(sign, abs=1e-4)
            assert row["sign_agreement"] == (1 + sign) / 2
            assert row["leakage"] == pytest.approx(0.1, abs=1e-4)
    for row in response.newton_rows([crooked], pushes, CONFIG):
        a = [row[f"acceleration_{b}"] for b in range(3)]
        assert a == pytest.approx([0.5, 0.25, -0.125], abs=1e-4)
        assert row["slope"] == pytest.approx(np.polyfit(row["inverse_mass"], a, 1)[0], abs=1e-4)


def test_what_the_worlds_do_not_give_is_null():
    """No world in which bodies met: no agreement of the others, and no number in its place."""
    true = np.random.default_rng(0).normal(size=(1, 20, 3))
    row = response.agreement(true, true, False, 0.1)
    assert row["pearson"] is row["slope"] is row["sign_agreement"] is row["slope_ci"] is None
    assert response.agreement(true, true, True, 0.1)["slope"] == pytest.approx(1)
