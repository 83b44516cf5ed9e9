"""Weights that are saved, lent and begun from; settings of a run; what --help says."""
import dataclasses
import json
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import hjepa
from conftest import (ROOT, TINY, command, flags, same, same_runs, saved, snapshot, stop_before,
                      tiny)

pytestmark = pytest.mark.usefixtures("few_gauges")


def process(*argv):
    return subprocess.run([sys.executable, "hjepa.py", *map(str, argv)], cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


# save

def test_what_is_saved_is_loaded_and_plans(smoke, tmp_path):
    """As a process, too."""
    model, config = hjepa.load(smoke)
    with torch.no_grad():
        model.bridge[0].bias += 1               # trained on by other means
    hjepa.save(model, config, tmp_path / "lent.pt")
    again, same_config = hjepa.load(tmp_path / "lent.pt")
    assert same_config == config and same(dict(again.state_dict()), dict(model.state_dict()))
    done = process("plan", "--run", tmp_path / "lent.pt", "--out", tmp_path / "out", "--goals", 1,
                   "--samples", 4, "--iterations", 1, "--elites", 2)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["epochs"] == 0


def test_what_does_not_fit_its_config_is_not_saved(tmp_path):
    model = hjepa.build_model(TINY)
    with pytest.raises(ValueError, match="do not fit: context.position is") as caught:
        hjepa.save(model, tiny(width=8), tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        model.lift[0].weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        hjepa.save(model, TINY, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_saved_weights_are_no_run_and_have_no_curves(tmp_path):
    hjepa.save(hjepa.build_model(TINY), TINY, tmp_path / "run" / "last.pt")
    before = snapshot(tmp_path)
    done = command("train", *flags(TINY), "--run", tmp_path / "run")
    assert done.returncode == 2 and "another --run, with --init" in done.stderr
    done = command("curves", "--run", tmp_path / "run", "--out", tmp_path / "out")
    assert done.returncode == 2 and "without a history" in done.stderr
    assert snapshot(tmp_path) == before


# train --init

def test_a_run_begins_from_weights(whole, tmp_path, monkeypatch):
    """With a learning rate of almost nothing it stays there; its schedule and log are new."""
    still = ["train", *flags(tiny(lr=1e-9, weight_decay=0.0, epochs=3)), "--init", whole]
    done = process(*still, "--run", tmp_path / "run")
    assert done.returncode == 0 and f"init: {whole}" in done.stdout, done.stderr
    old, new = saved(whole), saved(tmp_path / "run")
    for name, weight in old["model"].items():
        torch.testing.assert_close(new["model"][name], weight, atol=1e-6, rtol=0)
    assert len(new["history"]) == 3
    assert new["origin"]["init"] == {"name": str(whole),
                                     "digest": hjepa.digest_of(old["model"].values())}


def test_a_run_with_init_resumes_bitwise_with_and_without_it(whole, tmp_path, monkeypatch):
    config = tiny(epochs=3, seed=1)
    hjepa.train(config, tmp_path / "a", init=whole)
    for name, again in (("b", whole), ("c", None)):
        with monkeypatch.context() as patch:
            stop_before(patch, 1)
            with pytest.raises(KeyboardInterrupt):
                hjepa.train(config, tmp_path / name, init=whole)
        hjepa.train(config, tmp_path / name, init=again)
        assert same_runs(tmp_path / "a", tmp_path / name)
        assert saved(tmp_path / name)["origin"] == saved(tmp_path / "a")["origin"]


def test_it_begins_from_a_file_in_half_precision(whole, tmp_path):
    content = saved(whole)
    content["model"] = {name: weight.half() for name, weight in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    hjepa.train(tiny(epochs=1), tmp_path / "run", init=tmp_path / "half.pt")
    assert {weight.dtype for weight in saved(tmp_path / "run")["model"].values()} == {torch.float32}


@pytest.mark.parametrize("settings, init, run, says", [
    ({"width": 8}, "whole", "new", r"context.position is \(2, 4\) there, \(2, 8\) here"),
    ({"guess_width": 4}, "whole", "new", "guess.mlp.0.weight is missing there"),
    ({"masses": (1.0, 2.0)}, "whole", "new", "context.embed.weight"),
    ({}, "whole", "whole", r"another --init \(none\)"),
    ({}, "nowhere", "new", "no checkpoint at"),
    ({"epochs": 9}, None, "whole", "epochs is 2 there, 9 here.*--init")])
def test_what_cannot_be_begun_from_is_one_line(whole, tmp_path, settings, init, run, says):
    places = {"whole": whole, "new": tmp_path / "new", "nowhere": tmp_path / "nowhere"}
    before = snapshot(whole)
    more = ["--init", places[init]] if init else []
    done = command("train", *flags(tiny(**settings)), *more, "--run", places[run])
    line, = done.stderr.splitlines()
    assert done.returncode == 2 and re.search(says, line), line
    assert snapshot(whole) == before and not list(tmp_path.rglob("last.pt"))


def test_a_run_that_is_a_file_is_one_line(whole):
    done = process("train", "--preset", "smoke", "--run", whole / "last.pt")
    line, = done.stderr.splitlines()
    assert done.returncode == 2 and "is a file: name a directory" in line and "--init" in line
    assert "Errno" not in line


# config --run

def test_config_shows_the_settings_of_a_run(whole, tmp_path):
    done = process("config", "--run", whole)
    assert done.returncode == 0, done.stderr
    shown = dict(line.strip().split(" = ") for line in done.stdout.splitlines() if " = " in line)
    for field in dataclasses.fields(TINY):
        value = getattr(TINY, field.name)
        source = "this run" if value != field.default else f"default, {field.metadata['source']}"
        assert re.match(rf"{re.escape(str(value))} +{source} ", shown[field.name])
    assert "2 epochs done" in done.stdout
    hjepa.train(tiny(epochs=1), tmp_path / "run", init=whole)
    assert f"init: {whole}" in command("config", "--run", tmp_path / "run").stdout


@pytest.mark.parametrize("more, says", [(["--lr", "0.1"], "--lr"), (["--preset", "quick"],
                                                                    "--preset")])
def test_config_of_a_run_takes_no_other_settings(whole, more, says):
    done = command("config", *more, "--run", whole)
    assert done.returncode == 2 and f"leave {says} out" in done.stderr


# --help

def test_help_has_examples_and_groups():
    done = process("--help")
    examples = re.findall(r"^ +python (hjepa.py .*?)(?: +#.*)?$", done.stdout, re.M)
    assert len(examples) >= 5
    for line in examples:
        hjepa.make_parser().parse_args(line.split()[1:])
    text = command("train", "--help").stdout
    places = [text.index(f"\n{group}:\n") for group in hjepa.GROUPS.values()]
    assert places == sorted(places)
    assert list(hjepa.GROUPS.values()) == ["world", "data", "model", "loss", "optimiser", "planner",
                                           "run"]
    assert text.index("--masses MASSES [", places[0]) < places[1]
    assert "[source: value]" in text
    for source in ("paper", "vicreg", "design", "tuned"):
        assert f'"{source}"' in text


def test_help_explains_every_column_of_the_log(smoke):
    """Those of a run of our world; tests/test_own_data.py has the others."""
    text = command("train", "--help").stdout
    explained = text[text.index("columns of the log:"):]
    columns = {name for row in saved(smoke)["history"] for name in row} - {"epoch"}
    assert len(columns) > 20
    for name in columns:
        family = re.sub(r"^(std|cov)_[zt][12]$", r"\1_z1 ... \1_t2", name)
        assert re.search(rf"(?<!\w){re.escape(family)}(?!\w)", explained), name
    for name in re.findall(r"\w+", " ".join(hjepa.LOG_COLUMNS)):
        assert name in columns | {"held1", "held2"}, name


# Another regulariser

def test_sigreg_as_the_docstring_of_objective_shows_it(tmp_path, monkeypatch):
    """It is small for Gaussian samples and large for a collapse, and it trains."""
    lines = hjepa.objective.__doc__.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith("def sigreg"))
    end = next(i for i, line in enumerate(lines) if line.strip().startswith("train("))
    text = textwrap.dedent("\n".join(lines[begin:end + 1]))
    sigreg = text[:text.index("def mine")].strip().splitlines()
    assert len(sigreg) <= 10
    monkeypatch.chdir(tmp_path)
    names = {**vars(hjepa), "config": tiny(std_weight=0.0, cov_weight=0.0)}
    exec(text, names)
    torch.manual_seed(0)
    z = torch.randn(30, 400, 16)
    score = {name: names["sigreg"](x)["gauss"].item() for name, x in (
        ("normal", z), ("wide", 2 * z), ("moved", z + 1), ("collapsed", 0 * z))}
    # The expectation of Epps and Pulley's statistic, but for the ends of the integral.
    assert score["normal"] == pytest.approx(1.06, abs=0.15)
    assert min(score["wide"], score["moved"], score["collapsed"]) > 20
    row = saved(tmp_path / "runs" / "sigreg")["history"][-1]
    assert "gauss_z1" in row and "std_z1" not in row
