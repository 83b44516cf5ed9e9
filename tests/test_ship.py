"""figures/ship.py, and the weights that it has shipped."""
import json
import sys
from pathlib import Path

import pytest
import torch

from conftest import here

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import hjepa                                                              # noqa: E402

SHIPPED = ROOT / "figures" / "hjepa.pt"


@pytest.fixture(scope="module")
def small(smoke, tmp_path_factory):
    path = tmp_path_factory.mktemp("ship") / "small.pt"
    done = here("figures/ship.py", "--run", smoke, "--to", path)
    assert done.returncode == 0, done.stderr
    assert "3 epochs" in done.stdout
    return path


def test_weights_are_the_runs_rounded_to_half(smoke, small):
    before, after = hjepa.read_checkpoint(smoke), hjepa.read_checkpoint(small)
    assert {k: v for k, v in before.items() if k not in ("model", "optimizer")} == {
        k: v for k, v in after.items() if k not in ("model", "optimizer")}
    model, _ = hjepa.load(small)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before["model"][name].half().float())
    count = sum(w.numel() for w in before["model"].values())
    assert 2 * count < small.stat().st_size < 2.5 * count + 100_000


def test_every_command_takes_it(small, tmp_path):
    for do in (("hjepa.py", "curves"), ("hjepa.py", "diagnose", "--n", 64),
               ("hjepa.py", "probe", "--n", 64), ("hjepa.py", "plan", "--tasks", 2),
               ("figures/planning.py", "--tasks", 2, "--frames", 25)):
        done = here(*do, "--run", small, "--out", tmp_path)
        assert done.returncode == 0, (do, done.stderr)
    assert json.loads((tmp_path / "plan.json").read_text())["epochs"] == 3


def test_half_a_training_or_none_is_refused(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    saved["config"]["epochs"] = 9
    torch.save(saved, tmp_path / "half.pt")
    torch.save(huge := hjepa.read_checkpoint(smoke), tmp_path / "whole.pt")
    huge["model"]["bridge.0.bias"][0] = 1e6                               # infinite in half precision
    torch.save(huge, tmp_path / "huge.pt")
    (tmp_path / "small.pt").write_text("the old one")
    for run, to, said in (("half.pt", "small.pt", "6 epochs to go"), (".", "small.pt", "no checkpoint"),
                          ("huge.pt", "small.pt", "not finite"), ("whole.pt", "whole.pt", "itself"),
                          ("whole.pt", None, "--to FILE is needed")):
        done = here("figures/ship.py", "--run", tmp_path / run,
                       *(("--to", tmp_path / to) if to else ()))
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "small.pt").read_text() == "the old one"


@pytest.mark.skipif(not SHIPPED.exists(), reason="no weights are shipped yet")
def test_what_is_shipped_is_whole():
    saved = hjepa.read_checkpoint(SHIPPED)
    assert SHIPPED.stat().st_size < 20e6
    assert saved["epoch"] == saved["config"]["epochs"] == 300 and saved["config"]["seed"] == 0
    for name in ("curves", "diagnose", "probe", "plan"):
        content = json.loads((ROOT / "figures" / f"{name}.json").read_text())
        assert content["command"].endswith("--run figures/hjepa.pt") or (
            "--run figures/hjepa.pt " in content["command"]), name


def test_the_weights_trained_on_are_those_of_the_table_but_for_the_macro_level():
    """figures/far.pt: encoders and P1 of figures/hjepa.pt, bit for bit."""
    base, far = (hjepa.read_checkpoint(ROOT / "figures" / name) for name in ("hjepa.pt", "far.pt"))
    told = json.loads((ROOT / "figures" / "extend.json").read_text())["extended"]
    assert far["extended"]["steps"] == told["steps"] and far["config"] == base["config"]
    assert (ROOT / "figures" / "far.pt").stat().st_size < 20e6
    for name, weight in base["model"].items():
        moved = name.startswith(("macro.", "bridge.", "lift."))
        assert torch.equal(weight, far["model"][name]) != moved, name


def test_the_weights_trained_on_with_new_worlds_are_those_of_their_table():
    """figures/refined.pt: of figures/hjepa.pt, every weight moved."""
    base, new = (hjepa.read_checkpoint(ROOT / "figures" / name) for name in ("hjepa.pt", "refined.pt"))
    told = json.loads((ROOT / "figures" / "refine.json").read_text())["refined"]
    assert new["refined"]["steps"] == told["steps"] and new["config"] == base["config"]
    assert new["refined"]["rows"][-1]["P2"] == pytest.approx(told["rows"][-1]["P2"], rel=1e-4)
    assert (ROOT / "figures" / "refined.pt").stat().st_size < 20e6
    assert not [name for name, weight in base["model"].items() if torch.equal(weight, new["model"][name])]
    for name, weights in (("before", "hjepa"), ("after", "refined")):
        for folder in (name, name + "-500"):
            content = json.loads((ROOT / "figures" / "refined" / folder / "planning.json").read_text())
            assert f"--run figures/{weights}.pt " in content["command"]
