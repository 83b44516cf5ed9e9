"""figures/representation.py: what it promises, on a smoke model of two seeds."""
import json

import numpy as np
import pytest
import torch

from conftest import here
from studies import CPU
import hjepa
import representation


@pytest.fixture(scope="module")
def report(smoke, tmp_path_factory):
    """Of the smoke run, and of its weights under another seed -> JSON, NPZ."""
    out = tmp_path_factory.mktemp("representation")
    saved = hjepa.read_checkpoint(smoke)
    saved["config"]["seed"] = 1
    torch.save(saved, out / "second.pt")
    done = here("figures/representation.py", "--run", smoke, "--run", out / "second.pt", "--n", 100,
                "--steps", 30, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "representation.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((out / "representation.json").read_text())
    return content, np.load(out / "representation.npz")


def test_probes(report):
    content, _ = report
    assert content["n"] == 100 and content["seeds"] == [0, 1]
    assert "1,000" in content["intervals"] and content["precision"] == "fp32"
    r2 = {}
    for row in content["rows"]:
        low, high = row["r2_ci"]
        assert low < row["r2"] < high or row["r2"] > 0.9999
        assert row["r2"] == pytest.approx(np.mean(row["r2_runs"]), abs=1e-5)
        assert row["r2_worst_column"] <= min(row["r2_runs"]) + 1e-6
        r2[row["source"], row["target"]] = row["r2"]
    assert len(r2) == len(content["rows"])
    for source in ("context shallow", "context deep", "untrained shallow", "untrained deep",
                   "raw clip", "shuffled labels"):
        for target in (*representation.NOW, *representation.FUTURE):
            assert (source, target) in r2
    assert r2["raw clip", "position"] > 0.999 > 0.2 > r2["raw clip", "kinetic energy"]
    assert max(r2["shuffled labels", target] for target in representation.NOW) < 0.2
    assert r2["raw clip + forces", "position +25"] > r2["raw clip", "position +25"]
    for source in representation.READ_BY_NETWORK:
        assert all((f"{source}, network", target) in r2 for target in representation.NOW)
        assert r2[f"{source}, network", "position"] > 0.3


def test_gauges(report):
    content, arrays = report
    assert len(content["gauges"]) == 14                                   # seven sets of two runs
    assert len({row["set"] for row in content["gauges"]}) == 7
    for row in content["gauges"]:
        std, within, spectrum = (arrays[f"{key}/{row['set']}/{row['seed']}"]
                                 for key in representation.ARRAYS)
        assert len(std) == len(within) == len(spectrum) == row["dimensions"]
        assert std.min() == pytest.approx(row["std_min"], rel=1e-4)
        assert within.mean() == pytest.approx(row["within_mean"], rel=1e-4)
        assert spectrum.sum() == pytest.approx((std ** 2).sum(), rel=1e-3)  # the trace
        assert 0 < row["std_min"] <= row["std_mean"] <= row["std_max"]
        assert 0 <= row["correlation"] <= 1 and 1 <= row["rank"] <= row["dimensions"] + 1e-3
        assert 0 < row["within_min"] <= row["within_mean"] < 1.1


def test_what_never_changes_scores_zero_within():
    """A representation that varies between worlds only, and one that varies between clips only."""
    gen = torch.Generator().manual_seed(0)
    fixed = torch.randn(500, 1, 8, generator=gen).expand(-1, 6, -1)
    free = torch.randn(500, 6, 8, generator=gen)
    assert representation.gauges("fixed", fixed)["within_mean"] < 1e-6
    assert representation.gauges("free", free)["within_mean"] == pytest.approx(1, abs=0.05)


def test_r2_interval_holds_the_r2():
    gen = torch.Generator().manual_seed(0)
    true = torch.randn(400, 3, generator=gen)
    guess = (true + 0.5 * torch.randn(400, 3, generator=gen)).double()
    even = np.full((1, 400), 1 / 400)                                     # each world once
    r2, worst, draws = representation.judge(guess, true, even)
    expected = 1 - (guess - true).square().sum(0) / (true - true.mean(0)).square().sum(0)
    assert r2 == pytest.approx(expected.mean().item(), abs=1e-6)
    assert worst == pytest.approx(expected.min().item(), abs=1e-6)
    assert draws == pytest.approx([r2], abs=1e-6)


def test_network_probe_reads_what_a_linear_one_cannot_and_is_repeatable():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=gen)
    y = torch.stack([x[:, 0] * x[:, 1], 5 * x[:, 2] + 100], 1)
    train, validation, test = [(x[i::3], y[i::3]) for i in range(3)]
    even = np.full((1, 1000), 1 / 1000)
    _, worst, _ = representation.linear_probe(train, validation, test, even)
    assert worst < 0.1
    def network():
        gen = torch.Generator().manual_seed(7)
        return representation.network_probe(*train, test[0], 400, gen, CPU, width=64)
    guess = network()
    assert torch.equal(guess, network())
    error = (guess - test[1]).square().mean(0) / test[1].var(0)
    assert (error < 0.05).all()


def test_too_few_worlds_are_refused_in_one_line(smoke, tmp_path):
    done = here("figures/representation.py", "--run", smoke, "--n", "9", "--out", tmp_path)
    assert done.returncode == 2 and "--n" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
