"""figures/variants.py: is each variant what its paper says, and is a stopped study whole?"""
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import here, same, same_runs, stop_before, tiny
from studies import quick                                                 # noqa: F401
from lib import goals, spaces
from lib import variants_judge as judge
from lib import variants_list as lists
from lib import variants_losses as losses
from lib import variants_models as models
from lib import variants_objectives as objectives
from lib import variants_runs as runs
import hjepa
import variants

CONFIG = tiny(clip_frames=4, force_limit=6.0, latent=8, width=8, guess_width=8,
              guess_weight=5.0, sim_weight=5.0, contact_share=0.24)
WEIGHTS = CONFIG.loss_weights
WORLD = hjepa.build_world(CONFIG)
CPU = torch.device("cpu")
DRAWN = {}
NAMES = list(lists.VARIANTS)
LOOK = [variant.build for variant in lists.VARIANTS.values()
        if isinstance(variant.build, functools.partial)]                  # other encoders


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """No gauges while training, and 64 sequences where hjepa.train takes thousands. All tests share
    what is drawn."""
    draw = hjepa.draw_sequences

    def draw_few(world, config, n, *rest):
        key = str((type(world), world.substeps, config.event_clips, config.clip_frames, n, rest))
        if key not in DRAWN:
            DRAWN[key] = draw(world, config, min(n, 64), *rest)
        return DRAWN[key]
    monkeypatch.setattr(hjepa, "validate", lambda *given: {})
    monkeypatch.setattr(hjepa, "draw_sequences", draw_few)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def batch():
    """Observed clips and forces of 8 real sequences."""
    gen = torch.Generator().manual_seed(1)
    states, forces, _ = hjepa.make_sequences(WORLD, 8, 4, gen, 4)
    return WORLD.observe(states), forces


def study_in(folder, **settings):
    return runs.Study(tiny(**{**vars(CONFIG), **settings}), folder, CPU, 1, 0, 2)


def built(name):
    """-> the model of a variant, its objective, its weights."""
    variant = lists.VARIANTS[name]
    config = lists.config_of(name, variant.values[0], CONFIG, 2, 0)
    return variant.build(config), lists.objective_of(name, variant.values[0]), config.loss_weights


def terms_of(name, **functions):
    """-> model, total, terms of a variant on the batch."""
    model, objective, weights = built(name)
    total, terms = objective(model, *batch(), weights, **functions)
    return model, total, terms


# ---- the list

def test_the_list_is_complete_and_every_variant_is_tuned_alike():
    families = [lists.VARIANTS[name].family for name in NAMES]
    assert {family: families.count(family) for family in lists.FAMILIES} == {
        "the run": 1, "against collapse": 13, "more signals": 9, "predictor": 6, "latent": 5,
        "data": 12}
    for name, variant in lists.VARIANTS.items():
        assert variant.source and variant.what, name
        assert len(variant.values) == len(set(variant.values)) == 3, name
        assert variant.tuned not in variant.settings, name
    folders = {runs.folder_of(study_in(Path("runs")), runs.Training(name, 3, 0, 1.0))
               for name in NAMES}
    assert len(folders) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_changes_what_it_says_and_nothing_else(name):
    variant = lists.VARIANTS[name]
    config = lists.config_of(name, variant.values[1], CONFIG, 2, 5)
    changed = {key for key, value in vars(config).items() if value != vars(CONFIG)[key]}
    tuned = {variant.tuned} & lists.FIELDS
    assert changed <= {*variant.settings, *tuned, "seed"} and config.seed == 5
    start = hjepa.build_model(config).state_dict()
    if variant.before is None and variant.build not in LOOK:
        ours = variant.build(config).state_dict()
        moved = {key for key in start if not same(ours[key], start[key])}
        assert all(key.startswith("target") for key in moved)
        assert bool(moved) == ("EMA" in name)


def test_a_variant_that_the_run_is_already_is_not_trained():
    same_run = [name for name in NAMES if lists.as_the_run(name, CONFIG)]
    assert same_run == ["contacts in 24 %"]
    plain = tiny(sim_weight=0.0, contact_share=0.1, latent=32)
    assert {name for name in NAMES if lists.as_the_run(name, plain)} == {
        "no temporal similarity", "no first guess", "32 dimensions", "contacts in 10 %"}


@pytest.mark.parametrize("name", [name for name in NAMES if not lists.VARIANTS[name].before])
def test_variants_work_in_several_processes(name):
    """hjepa.train hands `gather` to the objective then."""
    def gather(z):
        return torch.cat([z, 2 * z], -2)
    _, total, terms = terms_of(name, gather=gather)
    assert total.isfinite() and all(term.isfinite() for term in terms.values())
    assert total.requires_grad


# ---- against collapse

def literal_epps_pulley(x):
    """N samples (N,), as the paper writes it: complex numbers, 17 knots on [-3, 3]."""
    t = np.linspace(-3, 3, 17)
    seen = np.exp(1j * np.outer(t, x.numpy())).mean(1)
    gap = np.abs(seen - np.exp(-t ** 2 / 2)) ** 2 * np.exp(-t ** 2 / 2)
    return len(x) * np.trapezoid(gap, t)


def test_the_epps_pulley_statistic_is_the_literal_one():
    x = noise(50, 3)
    found = losses.epps_pulley(x)
    expected = [literal_epps_pulley(column) for column in x.T]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_sigreg_is_about_1_for_gaussian_samples_and_large_for_others():
    directions = losses.unit_directions(16, 64, torch.Generator().manual_seed(2))
    assert directions.norm(dim=0).tolist() == pytest.approx([1.0] * 64)
    z = noise(40, 192, 16)
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert losses.sigreg(z, directions).item() == pytest.approx(expected, rel=0.1)
    assert losses.sigreg(torch.zeros_like(z), directions) > 50
    assert losses.sigreg(z / 3, directions) > 20
    assert losses.sigreg(z * 3, directions) > 10
    bimodal = noise(192, 1) * 0.1 + torch.arange(192)[:, None] % 2 * 2 - 1    # mean 0, variance 1
    assert losses.sigreg(bimodal, torch.ones(1, 1)) > 10


def test_sub_space_sigreg_does_not_see_what_lies_outside():
    config = tiny(latent=64)
    model = models.with_subspaces(config)
    frame = model.subspaces
    assert model.subspace_sizes == [4, 8, 16] and frame.shape == (64, 28)
    torch.testing.assert_close(frame.T @ frame, torch.eye(28), atol=1e-5, rtol=0)
    gen = torch.Generator().manual_seed(3)
    directions = losses.directions_inside(frame, [4, 8, 16], 10, gen)
    assert directions.norm(dim=0).tolist() == pytest.approx([1.0] * 30, rel=1e-5)
    torch.testing.assert_close(directions[:, :10], frame[:, :4] @ (frame[:, :4].T
                                                                   @ directions[:, :10]))
    z = noise(192, 64)
    value = losses.sigreg(z, directions)
    outside = 10 * noise(192, 64, seed=1)
    outside = outside - outside @ frame @ frame.T
    torch.testing.assert_close(losses.sigreg(z + outside, directions), value, rtol=1e-3, atol=0)
    assert losses.sigreg(z + 10 * noise(192, 28, seed=1) @ frame.T, directions) > 5 * value


def test_sigreg_draws_its_directions_anew_in_each_step():
    for name in ("SIGReg", "SIGReg in sub-spaces"):
        model, objective, weights = built(name)
        first, _ = objective(model, *batch(), weights)
        second, _ = objective(model, *batch(), weights)
        assert first != second and model.steps == 2
        model.steps.zero_()
        again, _ = objective(model, *batch(), weights)
        assert first == again
        with torch.no_grad():
            objective(model, *batch(), weights)
        assert model.steps == 1                                           # only training counts


def test_sigreg_takes_the_place_of_vicreg():
    model, total, terms = terms_of("SIGReg")
    assert not any(key.startswith(("std", "cov")) for key in terms)
    gen = hjepa.generator(0, "sigreg", 0)
    directions = losses.unit_directions(8, objectives.DIRECTIONS, gen)
    e = hjepa.embeddings(model, *batch())
    expected = losses.sigreg(e["t1"], directions)
    torch.testing.assert_close(terms["gauss_t1"], expected)
    rest = 25 * (terms["pred1"] + terms["pred2"])
    rest = rest + 2 * sum(terms[f"gauss_{name}"] for name in ("z1", "t1", "z2", "t2"))
    torch.testing.assert_close(terms["composite"], rest)


def test_the_average_target_moves_by_exactly_one_minus_m():
    model, objective, weights = built("EMA target")
    assert same(model.target.state_dict(), model.context.state_dict())
    with torch.no_grad():
        for weight in model.context.parameters():
            weight.add_(noise(*weight.shape))
    model.total_steps = 10
    for step in range(3):
        before = [weight.clone() for weight in model.target.parameters()]
        total, _ = objective(model, *batch(), weights)
        m = 0.996 + 0.004 * step / 10
        for old, new, weight in zip(before, model.target.parameters(), model.context.parameters()):
            torch.testing.assert_close(new, m * old + (1 - m) * weight, rtol=1e-5, atol=1e-7)
            assert not torch.equal(old, new)
    total.backward()
    assert all(weight.grad is None for weight in model.target.parameters())
    assert any(weight.grad.any() for weight in model.context.parameters())
    before = {key: weight.clone() for key, weight in model.target.state_dict().items()}
    with torch.no_grad():
        objective(model, *batch(), weights)
    assert same(model.target.state_dict(), before)                        # only training moves it


def test_stopped_targets_get_nothing_from_the_prediction_error():
    only = {**dict.fromkeys(WEIGHTS, 0.0), "pred": 25.0}
    parts = {}
    for name in ("the run", "stopped targets"):
        model, objective, _ = built(name)
        total, _ = objective(model, *batch(), only)
        total.backward()
        parts[name] = {key.split(".")[0] for key, weight in model.named_parameters()
                       if weight.grad is not None and weight.grad.any()}
    assert parts["stopped targets"] == {"context", "short", "macro"}
    assert parts["the run"] == {"context", "target", "short", "macro"}


def test_info_nce_is_log_b_for_equal_scores_and_the_literal_one():
    same_place = torch.ones(2, 7, 5)
    assert losses.info_nce(same_place, same_place, 0.1).item() == pytest.approx(math.log(7))
    p, t = noise(6, 5), noise(6, 5, seed=1)
    expected = 0.0
    for i in range(6):
        of_targets = torch.stack([-(p[i] - t[j]).square().mean() / 0.5 for j in range(6)])
        of_predictions = torch.stack([-(p[j] - t[i]).square().mean() / 0.5 for j in range(6)])
        for scores in (of_targets, of_predictions):
            expected -= (scores[i] - scores.logsumexp(0)) / 12
    torch.testing.assert_close(losses.info_nce(p, t, 0.5), expected)
    assert losses.info_nce(10 * p, 10 * p, 0.1) < 1e-3
    assert losses.info_nce(100 * p, p, 0.1) > losses.info_nce(p, p, 0.1) + 1    # length matters
    _, total, terms = terms_of("contrastive, 16 dimensions")
    e = hjepa.embeddings(built("contrastive, 16 dimensions")[0], *batch())
    torch.testing.assert_close(terms["pred1"], losses.info_nce(e["p1"], e["t1"], 0.1))
    torch.testing.assert_close(terms["composite"], 25 * (terms["pred1"] + terms["pred2"]))


def test_barlow_is_0_for_the_identity_and_the_literal_one():
    white, _ = torch.linalg.qr(noise(40, 6) - noise(40, 6).mean(0))
    white = white - white.mean(0)
    white, _ = torch.linalg.qr(white)
    assert losses.barlow(white * 6, white * 6 + 3) < 1e-4                 # scale and place are free
    p, t = noise(30, 6), noise(30, 6, seed=1)
    c = torch.corrcoef(torch.cat([p, t], 1).T)[:6, 6:]
    expected = (1 - c.diagonal()).square().sum()
    expected = expected + 0.005 * c[~torch.eye(6, dtype=torch.bool)].square().sum()
    torch.testing.assert_close(losses.barlow(p, t), expected / 6, rtol=1e-3, atol=0)


def test_the_expander_is_regularised_and_the_prediction_is_not_on_it():
    model, _, terms = terms_of("VICReg on an expander")
    _, _, plain = terms_of("the run")
    e = hjepa.embeddings(model, *batch())
    v = model.expander(e["t1"])
    assert v.shape[-1] == 4 * 8 and len(model.expander) == 5
    expected = hjepa.vicreg_terms(v)
    assert terms["std_t1"] == expected["std"] and terms["cov_t1"] == expected["cov"]
    assert terms["pred1"] == plain["pred1"] and terms["std_t1"] != plain["std_t1"]


# ---- more signals

def test_straightness_is_0_on_a_line_and_2_where_a_path_turns_back():
    line = torch.arange(4.0)[:, None, None] * noise(1, 3, 5)
    assert losses.straightness(line) == pytest.approx(0, abs=1e-6)
    assert losses.straightness(torch.stack([line[0], line[1], line[0]])) == pytest.approx(2)
    path = noise(4, 2, 5)
    cosines = []
    for k in (1, 2):
        for b in range(2):
            a, c = path[k, b] - path[k - 1, b], path[k + 1, b] - path[k, b]
            cosines.append(a @ c / a.norm() / c.norm())
    torch.testing.assert_close(losses.straightness(path), 1 - torch.stack(cosines).mean())


def test_added_terms_are_their_literal_formulas():
    obs, forces = batch()
    _, base, plain = terms_of("the run")
    model, total, terms = terms_of("inverse dynamics")
    e = hjepa.embeddings(model, obs, forces)
    errors = []
    for k in (1, 2):                            # the force of clip k + 1 led from clip k to k + 1
        guess = model.inverse1(torch.cat([e["t1"][k - 1], e["t1"][k]], -1))
        errors.append((guess - forces[:, k]).square().mean())
    torch.testing.assert_close(terms["idm1"], sum(errors) / 2)
    guess = model.inverse2(torch.cat([e["t2_before"], e["t2"]], -1))
    torch.testing.assert_close(terms["idm2"], (guess - forces[:, 2]).square().mean())
    torch.testing.assert_close(total, base + terms["idm1"] + terms["idm2"])

    model, total, terms = terms_of("dense and deep")
    errors = []
    for k in range(3):
        t1, t2 = model.target(obs[:, k + 1])
        errors.append((model.deepen(e["p1"][k]) - t2).square().mean())
    torch.testing.assert_close(terms["dense2"], sum(errors) / 3)
    torch.testing.assert_close(terms["dense1"], (model.flatten(e["p2"]) - t1).square().mean())
    torch.testing.assert_close(total, base + 25 * (terms["dense1"] + terms["dense2"]))

    model, total, terms = terms_of("straightening")
    t2 = torch.stack([model.target(obs[:, k])[1] for k in (1, 2, 3)])
    torch.testing.assert_close(terms["straight2"], losses.straightness(t2))
    torch.testing.assert_close(total, base + terms["straight1"] + terms["straight2"])

    model, total, terms = terms_of("biasing heads")
    said = model.heads2(e["p2"])
    met = losses.contacts_seen(obs, forces, CONFIG.masses, CONFIG.dt).any(1).float()
    torch.testing.assert_close(terms["contact2"],
                               F.binary_cross_entropy(said[:, 0].sigmoid(), met))
    velocity = losses.centre_velocity(obs[:, -1], CONFIG.masses)
    torch.testing.assert_close(terms["centre2"], (said[:, 1:] - velocity).square().mean())
    extra = terms["contact1"] + terms["contact2"] + terms["centre1"] + terms["centre2"]
    torch.testing.assert_close(total, base + extra)


def test_contacts_and_momentum_are_read_from_the_observation():
    world = hjepa.World()
    gen = torch.Generator().manual_seed(4)
    states, forces, contacts = hjepa.make_sequences(world, 1000, 6, gen)
    obs = world.observe(states)
    seen = losses.contacts_seen(obs, forces, world.masses, world.dt)
    true = contacts[:, 1:].any(-1)
    assert (seen == true).float().mean() > 0.99 and (seen & true).sum() > 0.9 * true.sum()
    # The same in a mirror.
    flip, swap = torch.ones(1000, 2, dtype=torch.bool), torch.ones(1000, dtype=torch.bool)
    mirrored = losses.contacts_seen(hjepa.reflect(obs, flip, swap),
                                    hjepa.reflect(forces, flip, swap), world.masses, world.dt)
    assert torch.equal(mirrored, seen)
    velocity = losses.centre_velocity(obs, world.masses)[0, 3] / 2.0
    expected = sum(m * states[0, 3, -1, i, 2:] for i, m in enumerate(world.masses)) / 7
    torch.testing.assert_close(velocity, expected)


def test_roll_outs_from_every_clip_are_their_literal_formula():
    obs, forces = batch()
    for name, most in (("one-step training", 1), ("from every clip, 2 steps", 2),
                       ("from every clip, 5 steps", 3)):                 # 3 clips are to come
        model, _, terms = terms_of(name)
        t1 = [model.target(obs[:, k])[0] for k in range(4)]
        by_length = {k: [] for k in range(1, most + 1)}
        for start in range(3):
            z, _ = model.context(obs[:, start])
            for k in range(1, most + 1):
                if start + k <= 3:
                    z = model.short(z, forces[:, start + k - 1])
                    by_length[k].append((z - t1[start + k]).square().mean())
        means = [sum(errors) / len(errors) for errors in by_length.values()]
        torch.testing.assert_close(terms["pred1"], sum(means) / most)


# ---- predictors and data

def test_the_gaussian_error_is_the_analytic_likelihood():
    mean, log_variance, t = noise(4, 6), noise(4, 6, seed=1), noise(4, 6, seed=2)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(losses.gaussian_error(mean, log_variance, t),
                               -normal.log_prob(t).mean())
    model, _, terms = terms_of("Gaussian")
    e = hjepa.embeddings(model, *batch())
    spread = models.log_variance(model.spread1, torch.stack([e["z1"], e["p1"][0], e["p1"][1]]),
                                 e["p1"])
    torch.testing.assert_close(terms["pred1"], losses.gaussian_error(e["p1"], spread, e["t1"]))


def test_calibration_of_a_gaussian_that_is_right_and_of_one_that_is_too_sure():
    model = models.with_spread(CONFIG)
    for weight in model.spread2.parameters():
        torch.nn.init.zeros_(weight)                                      # variance 1
    run = judge.runs.cli.Run(model, CONFIG, 1)
    zero = torch.zeros(4000, 8)
    right = judge.calibration_columns(run, {"z2": zero, "p2": zero, "t2": noise(4000, 8)})
    assert list(right.values()) == pytest.approx([0.683, 0.95], abs=0.01)
    sure = judge.calibration_columns(run, {"z2": zero, "p2": zero, "t2": 3 * noise(4000, 8)})
    assert sure["within 1 deviation"] < 0.3
    assert judge.calibration_columns(run._replace(model=hjepa.build_model(CONFIG)), {}) == {}


def test_shares_weight_the_targets_of_every_prediction():
    """A share of 0: nothing of the prediction reaches the target encoder."""
    only = {**dict.fromkeys(WEIGHTS, 0.0), "pred": 25.0}
    for name in ("the run", "contrastive, 16 dimensions", "Gaussian", "one-step training"):
        model, objective, _ = built(name)
        total, _ = objective(model, *batch(), only, torch.zeros(8))
        total.backward()
        assert not any(weight.grad is not None and weight.grad.any()
                       for weight in model.target.parameters()), name


def test_encoders_that_look_at_less_do_not_see_the_rest():
    obs, _ = batch()
    by_body = obs.unflatten(-1, (-1, 4))
    faster = (by_body + torch.tensor([0.0, 0.0, 1.0, 1.0])).flatten(-2)
    earlier = obs.clone()
    earlier[:, :, :-2] += 1
    for name, sees_speed, sees_early in (("positions only", False, True), ("2 frames", True, False),
                                         ("positions only, 2 frames", False, False)):
        model = lists.VARIANTS[name].build(CONFIG)
        for encoder in (model.context, model.target):
            z = torch.cat(encoder(obs[:, 0]))
            assert torch.equal(z, torch.cat(encoder(faster[:, 0]))) != sees_speed, name
            assert torch.equal(z, torch.cat(encoder(earlier[:, 0]))) != sees_early, name
        assert not torch.equal(z, torch.cat(encoder(obs[:, 1])))


def test_without_the_macro_level_nothing_trains_it():
    model, total, _ = terms_of("no macro level")
    total.backward()
    macro = ("macro", "bridge", "lift", "context.upper", "context.read_deep", "target.upper",
             "target.read_deep")
    moved = {key for key, weight in model.named_parameters()
             if weight.grad is not None and weight.grad.any()}
    assert not any(key.startswith(macro) for key in moved)
    assert any(key.startswith("target.read_shallow") for key in moved)


def test_narrow_forces_lead_to_goals_and_are_those_of_the_sequences():
    config = tiny(force_limit=2.0, event_clips=5, macro_blocks=5, clip_frames=5, sequences=64,
                  batch=8)
    states, forces, shares = models.draw_narrow(hjepa.build_world(config), config, CPU)
    again, *_ = models.draw_narrow(hjepa.build_world(config), config, CPU)
    assert torch.equal(states, again) and states.shape == (64, 6, 5, 3, 4)
    assert forces.abs().max() <= 2 and (shares == 1).all()
    path, _ = hjepa.build_world(config).rollout(states[:, 0, -1], forces, 5)
    torch.testing.assert_close(path[:, -1], states[:, -1, -1], atol=1e-3, rtol=0)

    world = models.TowardsGoals(config)
    start = world.reset(64, torch.Generator().manual_seed(1))
    gen = torch.Generator().manual_seed(2)
    goal = hjepa.build_world(config).reset(64, torch.Generator().manual_seed(2), 0.0)
    forces = world.random_forces(64, 10, gen)
    path, _ = world.rollout(start, forces, 5)
    assert hjepa.distance(path[:, -1], goal).mean() < 0.5 * hjepa.distance(start, goal).mean()


# ---- trainings, by the loop of the study

@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_trained_for_two_steps_and_read_again(name, tmp_path, capsys):
    study = study_in(tmp_path)
    training = runs.Training(name, 1, 0, lists.VARIANTS[name].values[2])
    assert runs.train(study, training) is None
    run = runs.open_run(study, training)
    start = hjepa.build_model(run.config)
    assert not same(run.model.short.state_dict(), start.short.state_dict())
    assert run.model.rollout(run.model.context(batch()[0][:, 0])[0], batch()[1]).isfinite().all()
    if hasattr(run.model, "steps"):
        assert run.model.steps == 2
    log = (runs.folder_of(study, training) / "log.jsonl").read_text().splitlines()
    assert len(log) == 1 and runs.epochs_done(runs.folder_of(study, training)) == 1


@pytest.mark.parametrize("name", ["SIGReg", "SIGReg in sub-spaces", "EMA target", "Gaussian",
                                  "VICReg on an expander", "frozen encoder"])
def test_what_is_resumed_is_bitwise_what_was_never_stopped(name, tmp_path, monkeypatch, capsys):
    study = study_in(tmp_path / "whole")
    training = runs.Training(name, 2, 0, lists.VARIANTS[name].values[0])
    runs.train(study, training)
    other = study_in(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            runs.train(other, training)
    runs.train(other, training)
    assert same_runs(runs.folder_of(study, training), runs.folder_of(other, training))


def test_frozen_encoders_are_those_that_were_trained_without_forces(tmp_path, capsys):
    study = study_in(tmp_path)
    training = runs.Training("frozen encoder", 1, 0, 1.0)
    runs.train(study, training)
    first, config = hjepa.load(runs.folder_of(study, training) / "encoders")
    run = runs.open_run(study, training)
    start = hjepa.build_model(config)
    for part in ("context", "target"):
        assert same(getattr(run.model, part).state_dict(), getattr(first, part).state_dict())
        assert not same(getattr(first, part).state_dict(), getattr(start, part).state_dict())
    assert not same(run.model.short.state_dict(), start.short.state_dict())
    assert same(first.guess.state_dict(), start.guess.state_dict())
    a, _ = objectives.without_forces(first, *batch(), WEIGHTS)
    b, _ = objectives.without_forces(first, batch()[0], 2 * batch()[1], WEIGHTS)
    assert a == b


# ---- the choice of a value, claims, notes

def note(study, training, reached):
    runs.write_note(study, training, "tried.json", 2, {"reached": reached, "broken": None})


def test_the_default_stays_unless_another_value_is_clearly_better(tmp_path):
    study = study_in(tmp_path)._replace(trial_goals=2)
    trials = runs.trials_of(study, "SIGReg")
    assert [trial.value for trial in trials] == [2.0, 0.5, 8.0]
    note(study, trials[0], [[0] * 50, [1, 0] * 25])
    note(study, trials[1], [[0] * 50, [1, 0] * 24 + [1, 1]])              # better by chance
    assert runs.chosen_value(study, "SIGReg") is None                     # one trial is missing
    note(study, trials[2], [[0] * 50, [0] * 50])
    assert runs.chosen_value(study, "SIGReg") == 2.0
    note(study, trials[2], [[1] * 50, [1] * 50])
    assert runs.chosen_value(study, "SIGReg") == 8.0
    for trial in trials:
        (runs.folder_of(study, trial) / "last.pt").write_bytes(b"weights")
    runs.drop_losers(study, "SIGReg", None)
    assert len(list(tmp_path.rglob("last.pt"))) == 3
    runs.drop_losers(study, "SIGReg", 8.0)
    assert list(tmp_path.rglob("last.pt")) == [runs.folder_of(study, trials[2]) / "last.pt"]


def test_a_training_is_taken_once(tmp_path):
    study = study_in(tmp_path)
    training = runs.Training("SIGReg", 1, 0, 2.0)
    done = []
    assert runs.take(study, training, lambda: not done, lambda: done.append(1))
    assert not runs.take(study, training, lambda: not done, lambda: done.append(1))
    with runs.claim(study, training) as mine:
        assert mine
        with runs.claim(study, training) as theirs:
            assert not theirs
        assert not runs.take(study, training, lambda: True, lambda: done.append(1))
        assert runs.state(study, training, {}) == "at work"
    assert done == [1] and runs.state(study, training, {}) == "-"


def test_ranks_share_the_place_of_equal_numbers():
    assert spaces.ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    a = torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert spaces.spearman(a, a.exp()) == pytest.approx(1)
    assert spaces.spearman(a, -a) == pytest.approx(-1)
    assert spaces.spearman(a, torch.ones(4)) is None


def test_the_oracle_needs_as_many_clips_as_a_goal_is_far():
    """It needs no more than the goal is ahead, and goals far ahead need more."""
    config = hjepa.Config(samples=40, iterations=4, elites=5)
    _, _, needed = judge.oracle_clips(config, hjepa.build_world(config), 10, CPU)
    ahead = torch.arange(10) % 5 + 1
    assert needed.shape == (10,) and (needed <= ahead).float().mean() > 0.8
    assert needed[ahead == 5].float().mean() > needed[ahead == 1].float().mean()


# ---- rows

def notes_of(errors, column=0.5):
    return {0: {"columns": {"macro error": column, "rank t1": 7.0, "rank t2": 6.0},
                "broken": None,
                "errors": {key: errors for key in ("closed", "macro", "short", "landscape t1",
                                                   "landscape t2")}}}


def test_a_row_has_shares_and_paired_differences_from_the_run():
    of_run = notes_of([[0.01, 0.01], [0.02, 0.02], [0.5, 0.5], [0.5, 0.5]])
    mine = notes_of([[0.01, 0.01], [0.02, 0.12], [0.02, 0.12], [0.5, 0.5]])
    row = variants.make_row("SIGReg", 3, mine, of_run)
    assert row["closed"] == row["macro"] == 0.25 and row["macro_error"] == 0.5
    low, high = row["closed_gain_ci"]
    assert low < -0.25 < high <= 0                                        # paired: no goal gained
    assert "closed_gain_ci" not in variants.make_row("the run", 3, of_run, of_run)
    assert "closed_gain_ci" not in variants.make_row("SIGReg", 3, mine, None)
    broken = {0: {"columns": {}, "errors": {}, "broken": "pred1 is not finite"}}
    assert variants.make_row("SIGReg", 3, broken, of_run)["broken"] == "pred1 is not finite"
    arrays = variants.make_columns({("SIGReg", 3): mine, ("no maps", 3): broken},
                                   torch.tensor([True, False, True, False]))
    assert arrays["columns/closed reached"].tolist()[0] == 0.25
    assert np.isnan(arrays["columns/closed reached"][1])
    assert arrays["columns/closed contact"][0] == 0.5


# ---- as a user runs it

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run to start from."""
    run = tmp_path_factory.mktemp("variants") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hjepa, "validate", lambda *given: {})
        hjepa.train(CONFIG, run)
    return run


SMALL = ("--goals", 2, "--n", 64, "--pairs", 2, "--oracle", 6, "--trial-epochs", 1,
         "--trial-goals", 2, "--device", "cpu")


def study(run, *flags):
    return here("figures/variants.py", "--run", run, *SMALL, *flags)


def test_runs_as_a_user_runs_it_is_stopped_and_goes_on(place, monkeypatch):
    only = ("--only", "no macro level", "--epochs", 1, 2)
    empty = study(place, *only, "--gather")
    assert empty.returncode == 2 and "nothing is measured yet" in empty.stderr
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        stopped = study(place, *only)
    assert stopped.returncode == 130 and "stopped" in stopped.stderr
    table = study(place, *only, "--table").stdout
    assert table.count("3 of 3") == 2 and table.count("measured") == 2    # those of one epoch
    assert "1 of 2" in table and not (place / "figures" / "variants.json").exists()

    done = study(place, *only)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 epochs done" in done.stdout                            # it went on
    content = json.loads((place / "figures" / "variants.json").read_text())
    rows = {(row["variant"], row["epochs"]): row for row in content["rows"]}
    assert len(rows) == 4 and content["missing"] == [] and content["epochs"] == [1, 2]
    assert "macro" in rows["the run", 2] and "macro" not in rows["no macro level", 2]
    assert content["tuned"]["no macro level"] == "cov_weight 1 of 1, 0.25, 4"
    assert (place / "figures" / "variants.png").stat().st_size > 10_000
    arrays = dict(np.load(place / "figures" / "variants.npz"))
    assert arrays["columns/macro reached"].shape == (4,)
    for key in ("order clips t2", "pass-through short", "position z1", "rank t2", "short error",
                "landscape t1 reached", "sequences per second"):
        assert np.isfinite(arrays[f"columns/{key}"]).any(), key


    # A row is what the planner does with the weights that lie there.
    model, config = hjepa.load(place / "variants" / "the-run-2-0-1")
    drawn = goals.goals_of(config, 2)
    errors, *_ = hjepa.try_goals("short replanned", model, hjepa.build_world(config), config, drawn,
                                 config.test_seed, CPU)
    assert np.array_equal(arrays["errors/the run/2/closed"], errors.amax(-1)[None])

    # Another run in the same place is refused, and so is a damaged note; nothing is lost.
    trained = place / "variants" / "the-run-1-0-1"
    kept = (trained / "measured.json").read_text()
    (trained / "measured.json").write_text(kept.replace('"batch": 8', '"batch": 4'))
    refused_with(study(place, *only), "was trained with another batch")
    (trained / "measured.json").write_text(kept[:50])
    refused_with(study(place, *only, "--table"), "is damaged")
    (trained / "measured.json").write_text(kept)
    again = study(place, *only, "--epochs", 1)
    assert again.returncode == 0 and "epochs done" not in again.stdout
    assert study(place, *only, "--table").stdout.count("measured") == 4


def refused_with(done, words):
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr


def test_a_training_that_breaks_down_is_a_result_and_the_study_goes_on(place, tmp_path, monkeypatch,
                                                                       capsys):
    """Its row says why; another mistake stops the study."""
    def broken(model, *given, **functions):
        total, terms = hjepa.objective(model, *given, **functions)
        return total * math.nan, {**terms, "pred1": terms["pred1"] * math.nan}
    bad = lists.VARIANTS["stopped targets"]._replace(objective=broken)
    monkeypatch.setitem(lists.VARIANTS, "stopped targets", bad)
    one = study_in(tmp_path)
    sizes = {"goals": 2, "n": 64, "pairs": 2, "oracle": 6}
    missing = runs.work(one, ["stopped targets"], [1], [0], sizes, judge.Judge(one, sizes))
    assert missing == []
    found = runs.measured(one, ["stopped targets"], [1], [0], sizes)
    row = variants.make_row("stopped targets", 1, found["stopped targets", 1], None)
    assert "is not finite in epoch 1" in row["broken"]


def test_what_cannot_be_studied_is_refused_in_one_line(place, tmp_path):
    args = variants.make_parser().parse_args(["--seeds", "0"])
    for settings in ({"shared": True}, {"clip_frames": 3}, {"event_clips": 2, "clip_frames": 4}):
        config = tiny(**{"force_limit": 6.0, **settings})
        with pytest.raises(hjepa.Refusal, match="variants need"):
            variants.check(args, config)
    for flags, words in ((("--only", "nothing"), "invalid choice"),
                         (("--only", "contacts in 24 %"), "already trained so"),
                         (("--epochs", 3, 3), "twice"), (("--epochs", 0), "--epochs is 0"),
                         (("--seeds", -1), "--seeds -1"), (("--trial-goals", 0), "--trial-goals"),
                         (("--goals", 0), "--goals is 0"), (("--run", tmp_path), "no checkpoint")):
        refused_with(here("figures/variants.py", "--run", place, *flags), words)
    assert not list(tmp_path.iterdir())
