"""figures/ablation.py: does each variant leave out what it says, and nothing else?"""
import json
import shutil

import numpy as np
import pytest
import torch

from conftest import here, same, tiny
from studies import CONFIG, quick                                         # noqa: F401
from lib import goals, worlds
import ablation
import hjepa

WEIGHTS = CONFIG.loss_weights
CHANGING = [name for name in ablation.VARIANTS if name != "full"]


def model(**settings):
    torch.manual_seed(0)
    return hjepa.HJEPA(latent=16, width=8, depth=2, heads=2, short_width=16, macro_width=16,
                       **settings)


def batch():
    gen = torch.Generator().manual_seed(1)
    obs = torch.randn(8, 6, 5, 12, generator=gen)
    forces = torch.randn(8, 5, 6, generator=gen)
    return obs, forces


def gradients(name, weights=WEIGHTS):
    """Parameter -> its gradient under the objective of a variant, None if it has none."""
    net = model()
    total, _ = ablation.VARIANTS[name].objective(net, *batch(), weights)
    total.backward()
    return {key: p.grad for key, p in net.named_parameters()}


def reached(name, weights=WEIGHTS):
    """Names of the parameters with a gradient."""
    found = gradients(name, weights)
    return {key for key, grad in found.items() if grad is not None and grad.any()}


@pytest.mark.parametrize("name", CHANGING)
def test_a_variant_differs_from_the_full_run_in_what_it_trains_and_in_nothing_else(name):
    saved = {"config": {**vars(tiny()), "batch": 8}, "epoch": 1, "precision": "fp32"}
    config = ablation.variant_config(name, saved, torch.device("cpu"))
    settings = ablation.VARIANTS[name].settings
    assert config == tiny(epochs=1, validate_every=0, **settings)
    ours, theirs = gradients(name), gradients("full")
    assert (not same(ours, theirs)) == (ablation.VARIANTS[name].objective is not hjepa.objective)
    assert bool(settings) or not same(ours, theirs)


def test_variants_work_in_several_processes():
    """hjepa.train hands `gather` to the objective then."""
    def gather(z):
        return torch.cat([z, z], -2)
    for variant in ablation.VARIANTS.values():
        total, _ = variant.objective(model(), *batch(), WEIGHTS, gather=gather)
        alone, _ = variant.objective(model(), *batch(), WEIGHTS)
        assert total.isfinite() and total != alone


def test_stopped_targets_get_nothing_from_the_prediction_error():
    only = {**dict.fromkeys(WEIGHTS, 0.0), "pred": 25.0}
    parts = {key.split(".")[0] for key in reached("stopped targets", only)}
    assert parts == {"context", "short", "macro"}
    assert "target" in {key.split(".")[0] for key in reached("full", only)}
    assert "target" in {key.split(".")[0] for key in reached("stopped targets")}


def test_without_the_macro_level_nothing_trains_it():
    macro = ("macro", "bridge", "lift", "context.upper", "context.read_deep", "target.upper",
             "target.read_deep")
    weights = {**WEIGHTS, "sim": 1.0,
               "map": ablation.VARIANTS["no macro level"].settings["map_weight"]}
    found = reached("no macro level", weights)
    assert not any(key.startswith(macro) for key in found)
    everything = reached("full")
    assert found == {key for key in everything if not key.startswith(macro)} != everything


def test_one_step_training_never_sees_its_own_prediction():
    """Another clip 0 changes the prediction of clip 1 and no later one."""
    net, (obs, forces) = model(), batch()
    other = obs.clone()
    other[:, 0] += 1
    with torch.no_grad():
        one_step = ablation.one_step(net, obs, forces)
        changed = ablation.one_step(net, other, forces)
        rolled_out = hjepa.embeddings(net, obs, forces)
    assert not torch.equal(one_step["p1"][0], changed["p1"][0])
    torch.testing.assert_close(one_step["p1"][1:], changed["p1"][1:])
    torch.testing.assert_close(one_step["p1"][0], rolled_out["p1"][0])
    assert not torch.allclose(one_step["p1"][1:], rolled_out["p1"][1:])
    for name in ("z1", "t1", "z2", "t2", "p2"):
        assert torch.equal(one_step[name], rolled_out[name])


def test_positions_only_hides_velocity_and_nothing_else():
    state = torch.randn(2, 3, 4)
    blind = worlds.same_box(ablation.PositionsOnly, CONFIG).observe(state).unflatten(-1, (-1, 4))
    full = worlds.same_box(hjepa.World, CONFIG).observe(state).unflatten(-1, (-1, 4))
    assert (blind[..., 2:] == 0).all() and torch.equal(blind[..., :2], full[..., :2])

    # Training and measuring hide the same: velocities do not matter to the objective either.
    obs, forces = batch()
    other = obs.unflatten(-1, (-1, 4)).clone()
    other[..., 2:] += 1
    a, _ = ablation.positions_only(model(), obs, forces, WEIGHTS)
    b, _ = ablation.positions_only(model(), other.flatten(-2), forces, WEIGHTS)
    c, _ = hjepa.objective(model(), obs, forces, WEIGHTS)
    assert a == b != c


def test_runs_as_a_user_runs_it_and_goes_on_where_it_was(whole, tmp_path, few_gauges):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    tables = []
    for _ in range(2):                                                    # the second only measures
        done = here("figures/ablation.py", "--run", run, "--n", 64, "--goals", 4, "--device", "cpu",
                    "--only", "no macro level", "positions only")
        assert done.returncode == 0, done.stderr
        tables.append(json.loads((run / "figures" / "ablation.json").read_text()))
    assert "2 of 2 epochs done" in done.stdout and "0 of 2 epochs done" not in done.stdout
    assert tables[0] == tables[1]
    full, shallow, blind = tables[0]["rows"]
    assert full["replanned mean_body gain"] == 0 and "macro mean_body" in full
    assert "replanned success" in shallow and "macro mean_body" not in shallow
    assert blind["velocity r2"] < full["velocity r2"]
    assert (run / "figures" / "ablation.png").stat().st_size > 10_000

    # Each was trained with its own objective: without the macro level P2 is as it was at the start.
    for name, changed in (("no-macro-level", False), ("positions-only", True)):
        trained, config = hjepa.load(run / "without" / name)
        start = hjepa.build_model(config).macro.state_dict()
        assert same(trained.macro.state_dict(), start) != changed

    arrays = np.load(run / "figures" / "ablation.npz")
    assert set(arrays) == {"contact", "errors/full/replanned", "errors/full/macro",
                           "errors/no macro level/replanned", "errors/positions only/replanned",
                           "errors/positions only/macro"}
    assert arrays["contact"].sum() == tables[0]["n_contact"]
    net, config = hjepa.load(run)
    test_goals = goals.goals_of(config, 4)
    for plan, planner in ablation.PLANS.items():
        errors, *_ = hjepa.try_goals(planner, net, hjepa.build_world(config), config, test_goals,
                                     config.test_seed, torch.device("cpu"))
        assert np.array_equal(arrays[f"errors/full/{plan}"], errors.mean(-1)[None])


def test_a_row_has_shares_and_paired_differences_from_the_full_run():
    """Of four goals: the variant reaches three by the mean body and one by the worst; the full run
    two by both."""
    full = torch.tensor([[[0.01, 0.01], [0.02, 0.02], [0.5, 0.5], [0.5, 0.5]]])
    errors = torch.tensor([[[0.01, 0.01], [0.02, 0.12], [0.02, 0.12], [0.5, 0.5]]])
    row = ablation.make_row("no maps", {"macro": errors}, {"rank": 7.0}, {"macro": full})
    assert row["macro mean_body"] == 0.75 and row["macro success"] == 0.25 and row["rank"] == 7
    assert row["macro mean_body gain"] == 0.25 and row["macro success gain"] == -0.25
    low, high = row["macro success gain_ci"]
    assert low < -0.25 < high <= 0                                        # paired: no goal gained


def test_a_wrong_name_is_refused_in_one_line(whole):
    done = here("figures/ablation.py", "--run", whole, "--only", "nothing")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
