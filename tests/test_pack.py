"""figures/pack.py, and the weights that it has packed."""
import json
from pathlib import Path

import pytest
import torch

from conftest import ROOT, command, here
import hjepa

WEIGHTS = ROOT / "figures" / "weights"
RESULTS = ROOT / "figures" / "results"


@pytest.fixture(scope="module")
def small(smoke, tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "small.pt"
    done = here("figures/pack.py", "--run", smoke, "--to", path)
    assert done.returncode == 0, done.stderr
    assert "3 epochs" in done.stdout and len(list(path.parent.iterdir())) == 1
    return path


def test_weights_are_the_runs_rounded_to_half(smoke, small):
    before = hjepa.read_checkpoint(smoke)
    after = hjepa.read_checkpoint(small)
    for key in before:
        assert key in ("model", "optimizer") or before[key] == after[key]
    model, _ = hjepa.load(small)
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before["model"][name].half().float())
    count = sum(weight.numel() for weight in before["model"].values())
    assert 2 * count < small.stat().st_size < 2.5 * count + 100_000


def test_every_command_takes_it(small, tmp_path):
    for words in (("curves",), ("diagnose", "--n", 64), ("probe", "--n", 64),
                  ("plan", "--goals", 2)):
        done = command(*words, "--run", small, "--out", tmp_path)
        assert done.returncode == 0, (words, done.stderr)
    done = here("figures/planning.py", "--goals", 2, "--frames", 25, "--only", "zero", "--run",
                small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["epochs"] == 3


def test_half_a_training_or_none_is_refused(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    torch.save(saved, tmp_path / "whole.pt")
    torch.save({**saved, "config": {**saved["config"], "epochs": 9}}, tmp_path / "half.pt")
    saved["model"]["bridge.0.bias"][0] = 1e6                              # infinite in half
    torch.save(saved, tmp_path / "huge.pt")
    (tmp_path / "small.pt").write_text("the old one")
    for run, to, said in (
            ("half.pt", "small.pt", "6 epochs to go"), (".", "small.pt", "no checkpoint"),
            ("huge.pt", "small.pt", "not finite"), ("whole.pt", "whole.pt", "itself"),
            ("whole.pt", None, "--to FILE is needed")):
        flags = ("--to", tmp_path / to) if to else ()
        done = here("figures/pack.py", "--run", tmp_path / run, *flags)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "small.pt").read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.fixture(scope="module")
def packed():
    """name -> checkpoint of the committed weights, each looked at as a whole."""
    for path in WEIGHTS.iterdir():
        assert path.stat().st_size < 20e6
    return {"hjepa": hjepa.read_checkpoint(WEIGHTS / "hjepa.pt")}


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def weights_of(name):
    """-> the weights that a committed result is of, by its command."""
    words = result(name)["command"].split()
    return Path(words[words.index("--run") + 1])


def test_the_committed_results_are_of_the_committed_weights(packed):
    saved = packed["hjepa"]
    assert saved["epoch"] == saved["config"]["epochs"] == 300 and saved["config"]["seed"] == 0
    for name in ("curves", "diagnose", "probe", "plan", "planning"):
        assert weights_of(name) == Path("figures/weights/hjepa.pt")
        assert result(name)["epochs"] == 300
