"""figures/extend.py: the macro level trained on, on a smoke model."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import here
from lib import cli, levels, training
from studies import CPU, quick                                            # noqa: F401
import extend
import hjepa

SMALL = "--steps", 20, "--n", 64


@pytest.fixture(scope="module")
def run(smoke):
    return cli.open_runs([smoke], CPU)[0]


@pytest.fixture(scope="module")
def drawn(run):
    world = hjepa.build_world(run.config)
    return extend.draw_worlds(world, run.config, 6, hjepa.generator(1, "x"), CPU)


@pytest.fixture(scope="module")
def far(smoke, tmp_path_factory):
    """Directory with the run trained on and the files of the study; what the command printed."""
    out = tmp_path_factory.mktemp("extend")
    done = here("figures/extend.py", "--run", smoke, "--to", out / "far", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def by_hand(run, obs, forces, first):
    """Every error that the objective names, one embedding after the other."""
    model = run.model
    clips = forces.shape[1]
    z1, start = model.context(obs[:, 0])
    same = [model.context(clip)[1] for clip in obs.unbind(1)]
    t2 = [model.target(clip)[1] for clip in obs.unbind(1)]
    want = {name: [] for name in extend.WEIGHTS}
    lifted = model.lift(model.rollout(z1, forces[:, :first])[:, -1])
    for name, z2, at in (("jump", start, 0), ("mixed", lifted, first)):
        if name == "mixed":
            want["lift"].append(F.mse_loss(z2, same[first]))
        for end in range(at + 5, clips + 1, 5):
            z2 = model.jump(z2, forces[:, end - 5:end])
            want[name].append(F.mse_loss(z2, t2[end]))
            if end + 5 <= clips:
                z2 = model.bridge(z2)
                want["bridge"].append(F.mse_loss(z2, same[end]))
    return {name: torch.stack(parts) for name, parts in want.items()}


@pytest.mark.parametrize("first", [1, 4])
def test_the_errors_by_hand(run, drawn, first):
    obs, forces = drawn
    with torch.no_grad():
        total, errors = extend.objective(run.model, obs, forces, first, 5)
        want = by_hand(run, obs, forces, first)
    assert {*errors} == {*want} == {*extend.WEIGHTS}
    assert [len(want[name]) for name in ("jump", "mixed", "bridge", "lift")] == [3, 2, 3, 1]
    for name, parts in want.items():
        torch.testing.assert_close(errors[name], parts, rtol=1e-4, atol=1e-6)
    weights = {"jump": 1, "mixed": 1, "bridge": 0.25, "lift": 0.25}
    means = [weights[name] * parts.log().mean().item() for name, parts in want.items()]
    assert total.item() == pytest.approx(sum(means), rel=1e-4)


@pytest.mark.parametrize("clips", [6, 9, 10, 13, 15])
def test_what_is_planned_with_is_what_was_trained(run, drawn, clips):
    """The planner's chain is one of the paths of the objective."""
    model = run.model
    obs, forces = drawn
    first = clips % 5
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        whole = levels.chain(model, z1 if first else z2, forces[:, :clips], first, 5)
        error = F.mse_loss(whole, model.target(obs[:, clips])[1])
        want = by_hand(run, obs, forces, first or 1)["mixed" if first else "jump"]
    torch.testing.assert_close(error, want[(clips - first) // 5 - 1], rtol=1e-4, atol=1e-6)


def test_encoders_and_p1_stay_and_p2_and_the_maps_move(run, far):
    before = run.model.state_dict()
    after = hjepa.load(far[0] / "far")[0].state_dict()
    for name in before:
        moved = name.startswith(("macro", "bridge", "lift"))
        assert torch.equal(before[name], after[name]) != moved, name


def test_errors_far_ahead_fall(far):
    out, _ = far
    content = json.loads((out / "extend.json").read_text())
    gaps = {(r["name"], r["when"], r["clips"]): r["error"] for r in content["rows"]}
    assert [k for name, when, k in gaps if (name, when) == ("P2", "after")] == [*range(5, 16)]
    for clips in (6, 10, 15):
        assert gaps["P2", "after", clips] < gaps["P2", "before", clips]
    assert [k for name, when, k in gaps if name == "P1"] == [*range(1, 16)]
    assert content["extended"]["steps"] == 20
    assert np.load(out / "extend.npz")["history/step"].tolist() == [20]
    assert (out / "extend.png").read_bytes()[:4] == b"\x89PNG"
    assert not (out / "far" / "extending.pt").exists()


def test_the_same_command_measures_again_and_trains_no_more(smoke, far):
    out, printed = far
    before = (out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text()
    done = here("figures/extend.py", "--run", smoke, "--to", out / "far", *SMALL, "--out", out)
    assert done.returncode == 0 and "bridge" in printed and "bridge" not in done.stdout
    assert before == ((out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text())


def test_interrupted_and_gone_on_is_bitwise_the_unbroken_run(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(extend, "BLOCK", 2)
    saved = hjepa.read_checkpoint(smoke)
    args = {"run": [smoke], "steps": 5, "device": CPU, "precision": "fp32"}

    def train(out, **other):
        out.mkdir(exist_ok=True)
        run, = cli.open_runs([smoke], CPU)
        extend.train(run, saved, out, SimpleNamespace(**{**args, **other}))

    def save(path, content, real=training.save):
        real(path, content)
        raise KeyboardInterrupt
    train(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save", save)
        train(tmp_path / "broken")
    assert not (tmp_path / "broken" / "last.pt").exists()
    for other in ({"steps": 6}, {"precision": "bf16"}):
        with pytest.raises(hjepa.Refusal, match="another --precision"):
            train(tmp_path / "broken", **other)
    train(tmp_path / "broken")
    whole, broken = (hjepa.read_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert all(torch.equal(whole["model"][name], broken["model"][name]) for name in whole["model"])
    assert whole["extended"]["done"] == 5
    assert whole["extended"]["rows"] == broken["extended"]["rows"]


def test_what_cannot_be_is_refused_in_one_line(smoke, far, tmp_path):
    out, _ = far
    last = (out / "far" / "last.pt").read_bytes()
    saved = hjepa.read_checkpoint(smoke)
    saved["model"]["short.leave.bias"] += 1                               # another training
    torch.save(saved, tmp_path / "other.pt")
    saved["config"]["epochs"] = 9
    torch.save(saved, tmp_path / "half.pt")
    one = {**saved["config"], "epochs": 3, "event_clips": 1}
    model = hjepa.build_model(hjepa.Config(**one))
    optimizer = hjepa.make_optimizer(model, hjepa.Config(**one), CPU)
    torch.save({**saved, "config": one, "model": model.state_dict(),
                "optimizer": optimizer.state_dict()}, tmp_path / "one.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "extending.pt").touch()
    for flags, said in (
            (("--run", out / "far", "--to", tmp_path / "x"), "trained further already"),
            (("--run", smoke, "--to", out / "far", "--steps", 9), "other --steps"),
            (("--run", smoke, "--to", out / "far", *SMALL, "--precision", "bf16"), "--precision"),
            (("--run", tmp_path / "other.pt", "--to", out / "far", *SMALL), "another run"),
            (("--run", tmp_path / "half.pt", "--to", tmp_path / "x"), "6 epochs to go"),
            (("--run", tmp_path / "other.pt"), "--to DIR is needed"),
            (("--run", tmp_path / "one.pt", "--to", tmp_path / "x"), "one clip"),
            (("--run", smoke, "--to", tmp_path / "empty"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "x", "--steps", 0), "--steps is 0"),
            (("--run", tmp_path / "none"), "no checkpoint")):
        done = here("figures/extend.py", *flags, "--out", tmp_path)
        assert done.returncode == 2 and said in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    assert last == (out / "far" / "last.pt").read_bytes()
    assert not (tmp_path / "extend.json").exists()


def test_other_studies_take_the_result_and_say_so(far, tmp_path):
    done = here("figures/hierarchy.py", "--run", far[0] / "far", "--goals", 2, "--frames", 50,
                "--setting", 4, 2, "--only", "flat", "mixed", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "hierarchy.json").read_text())
    assert content["further_steps"] == 20 and content["further"] == "the macro level"
    assert [row["planner"] for row in content["rows"]] == ["flat", "mixed"]
    done = here("figures/ablation.py", "--run", far[0] / "far", "--out", tmp_path)
    assert done.returncode == 2 and "came from" in done.stderr
