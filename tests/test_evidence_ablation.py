"""figures/ablation.py: does each variant leave out what it says, and nothing else?"""
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import ablation                                                           # noqa: E402
import hjepa                                                              # noqa: E402

MODEL = dict(features=12, frames=5, latent=16, width=8, depth=2, tap=1, heads=2, short_width=16,
             macro_width=16)


def model():
    torch.manual_seed(0)
    return hjepa.HJEPA(**MODEL)


def batch():
    gen = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, 5, 12, generator=gen), torch.randn(8, 5, 6, generator=gen)


def gradients(net, **options):
    net.zero_grad()
    ablation.objective(net, *batch(), **options)[0].backward()
    return {name: p.grad is not None and bool(p.grad.any()) for name, p in net.named_parameters()}


def test_with_nothing_left_out_it_is_the_objective_of_training():
    ours, theirs = (f(model(), *batch()) for f in (ablation.objective, hjepa.objective))
    assert ours[0] == theirs[0] and ours[1] == theirs[1]


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_the_loop_calls_each_variant_as_it_calls_its_own_objective(name, tmp_path):
    """An argument of the loop must not land in an option of the variant: a setting alone changes
    what it says, so that such a variant trains to the very weights of a run with that setting."""
    settings, options, world = ablation.VARIANTS[name]
    config = hjepa.Config(**{**hjepa.PRESETS["smoke"], "sequences": 128, "batch": 64, "epochs": 1,
                             "measure_every": 0, "device": "cpu", "precision": "fp32", **settings})
    with ablation.without(name):
        hjepa.train(config, tmp_path / "variant")
    hjepa.train(config, tmp_path / "plain")
    a, b = (hjepa.load(tmp_path / run)[0].state_dict() for run in ("variant", "plain"))
    same = all(torch.equal(a[k], b[k]) for k in a)
    assert same == (not options and world is hjepa.World)


def test_stopped_targets_get_nothing_from_the_prediction_error():
    only = dict(std_weight=0.0, cov_weight=0.0, map_weight=0.0)
    reached = gradients(model(), stop=True, **only)
    assert not any(on for name, on in reached.items() if name.startswith("target"))
    assert any(on for name, on in reached.items() if name.startswith("context"))
    reached = gradients(model(), **only)
    assert any(on for name, on in reached.items() if name.startswith("target"))


def test_without_the_macro_level_nothing_trains_it():
    reached = gradients(model(), macro=False)
    macro = ("macro", "bridge", "lift", "context.upper", "context.tap2", "target.upper",
             "target.tap2")
    assert not any(on for name, on in reached.items() if name.startswith(macro))
    assert all(on for name, on in reached.items() if name.startswith("short"))


def test_one_step_training_never_sees_its_own_prediction():
    """Another clip 0 changes the prediction of clip 1 and no later one."""
    net, (obs, forces) = model(), batch()
    other = obs.clone()
    other[:, 0] += 1

    def first(o):
        guess = net.short(net.context.shallow(o[:, 0])[1], forces[:, 0])
        return (guess - net.target.shallow(o[:, 1])[1]).square().mean()
    with torch.no_grad():
        a, b = (ablation.objective(net, o, forces, one_step=True)[1]["pred1"] for o in (obs, other))
        assert 5 * (b - a) == pytest.approx((first(other) - first(obs)).item(), rel=1e-3)
        a, b = (ablation.objective(net, o, forces)[1]["pred1"] for o in (obs, other))
        assert 5 * (b - a) != pytest.approx((first(other) - first(obs)).item(), rel=1e-3)


def test_positions_only_hides_velocity_and_nothing_else():
    config = hjepa.Config()
    seen = [ablation.world_of(name, config).observe(torch.ones(2, 3, 4))
            for name in ("positions only", "full")]
    assert (seen[0].unflatten(-1, (-1, 4))[..., 2:] == 0).all()
    assert torch.equal(*(s.unflatten(-1, (-1, 4))[..., :2] for s in seen))


def test_every_variant_changes_something_and_names_real_settings():
    for name, (settings, options, world) in ablation.VARIANTS.items():
        changed = dataclasses.replace(hjepa.Config(), **settings)
        differs = changed != hjepa.Config() or bool(options) or world is not hjepa.World
        assert differs == (name != "full"), name


def test_training_is_itself_again_afterwards():
    before = hjepa.objective, hjepa.build_world
    with ablation.without("no macro level"):
        assert hjepa.objective is not before[0]
    assert (hjepa.objective, hjepa.build_world) == before


def test_runs_as_a_user_runs_it_and_goes_on_where_it_was(smoke, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(smoke, run)
    command = [sys.executable, "figures/ablation.py", "--run", str(run), "--out", str(tmp_path),
               "--n", "64", "--tasks", "4", "--only", "no macro level", "positions only"]
    tables = []
    for _ in range(2):                                                    # the second only measures
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tables.append(json.loads((tmp_path / "ablation.json").read_text()))
    assert "0 of 3 epochs done" not in done.stdout and tables[0]["rows"] == tables[1]["rows"]
    full, shallow, blind = tables[0]["rows"]
    assert full["closed mean_body gain"] == 0 and "macro mean_body" not in shallow
    assert blind["velocity r2"] < full["velocity r2"]
    assert (tmp_path / "ablation.png").stat().st_size > 10_000


def test_a_wrong_name_is_refused_in_one_line(smoke):
    command = [sys.executable, "figures/ablation.py", "--run", str(smoke), "--only", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
