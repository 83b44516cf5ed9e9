"""figures/extend.py: the macro level trained on, on a smoke model."""
import json
import math
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conftest import here

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import extend                                                             # noqa: E402
import hjepa                                                              # noqa: E402
import planning                                                           # noqa: E402
import report                                                             # noqa: E402

CPU = torch.device("cpu")


def script(*flags):
    return subprocess.run([sys.executable, "figures/extend.py", *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(smoke):
    return common.open_runs([smoke], CPU)[0]


@pytest.fixture(scope="module")
def drawn(run):
    return extend.draw_worlds(hjepa.build_world(run.config), run.config, 6, hjepa.generator(1, "x"),
                              CPU)


@pytest.fixture(scope="module")
def far(smoke, tmp_path_factory):
    """Directory with the run trained on, extend.json and extend.png; what the command printed."""
    out = tmp_path_factory.mktemp("extend")
    done = script("--run", smoke, "--to", out / "far", "--steps", 40, "--n", 64, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def by_hand(run, obs, forces, first):
    """Every error that the objective names, one embedding after the other."""
    model, clips = run.model, forces.shape[1]
    z1, start = model.context(obs[:, 0])
    same, t2 = ([side(clip)[1] for clip in obs.unbind(1)] for side in (model.context, model.target))
    want = {name: [] for name in extend.WEIGHTS}
    for name, z2, at in (("jump", start, 0),
                         ("mixed", model.lift(model.rollout(z1, forces[:, :first])[:, -1]), first)):
        if name == "mixed":
            want["lift"].append(F.mse_loss(z2, same[first]))
        for end in range(at + 5, clips + 1, 5):
            z2 = model.jump(z2, forces[:, end - 5:end])
            want[name].append(F.mse_loss(z2, t2[end]))
            if end + 5 <= clips:
                z2 = model.bridge(z2)
                want["bridge"].append(F.mse_loss(z2, same[end]))
    return {name: torch.stack(parts) for name, parts in want.items()}


@pytest.mark.parametrize("first", range(1, 5))
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


@pytest.mark.parametrize("clips", range(6, 16))
def test_what_is_planned_with_is_what_was_trained(run, drawn, clips):
    """The planner's chain is one of the paths of the objective."""
    model, (obs, forces), first = run.model, drawn, clips % 5
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        whole = planning.chain(model, z1 if first else z2, forces[:, :clips], first, 5)
        error = F.mse_loss(whole, model.target(obs[:, clips])[1])
        want = by_hand(run, obs, forces, first or 1)["mixed" if first else "jump"]
    torch.testing.assert_close(error, want[(clips - first) // 5 - 1], rtol=1e-4, atol=1e-6)


def test_encoders_and_p1_stay_and_p2_and_the_maps_move(run, far):
    before, after = run.model.state_dict(), hjepa.load(far[0] / "far")[0].state_dict()
    for k in before:
        assert torch.equal(before[k], after[k]) != k.startswith(("macro", "bridge", "lift")), k


def test_errors_far_ahead_fall(far):
    content = json.loads((far[0] / "extend.json").read_text())
    gaps = {(r["name"], r["when"], r["clips"]): r["error"] for r in content["rows"]}
    assert [k for name, when, k in gaps if (name, when) == ("P2", "after")] == [*range(5, 16)]
    for clips in (6, 10, 15):
        assert gaps["P2", "after", clips] < gaps["P2", "before", clips]
    assert [k for name, when, k in gaps if name == "P1"] == [*range(1, 16)]
    assert content["extended"]["steps"] == 40 and len(content["extended"]["rows"]) == 1
    assert (far[0] / "extend.png").read_bytes()[:4] == b"\x89PNG"
    assert not (far[0] / "far" / "extending.pt").exists()


def test_the_same_command_measures_again_and_trains_no_more(smoke, far):
    out, first = far
    before = (out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text()
    done = here("figures/extend.py", "--run", smoke, "--to", out / "far", "--steps", 40, "--n", 64, "--out", out)
    assert done.returncode == 0 and "bridge" in first and "bridge" not in done.stdout
    assert before == ((out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text())


def test_interrupted_and_gone_on_is_bitwise_the_unbroken_run(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(extend, "BLOCK", 2)
    saved = hjepa.read_checkpoint(smoke)

    def go(out, stop_after=None):
        out.mkdir(exist_ok=True)
        saves = []

        def save(path, content, real=common.save):
            real(path, content)
            saves.append(path)
            if len(saves) == stop_after:
                raise KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(common, "save", save)
            return extend.train(common.open_runs([smoke], CPU)[0], saved, out,
                                Namespace(run=[smoke], steps=5, device=CPU,
                                          precision="fp32"))
    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "broken", 1)
    assert not (tmp_path / "broken" / "last.pt").exists()
    for other in ({"steps": 6}, {"precision": "bf16"}):
        with pytest.raises(hjepa.Refusal, match="another --precision"):
            extend.train(common.open_runs([smoke], CPU)[0], saved, tmp_path / "broken",
                         Namespace(**{"run": [smoke], "steps": 5, "device": CPU, "precision": "fp32", **other}))
    go(tmp_path / "broken")
    whole, broken = (hjepa.read_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert same(whole["model"], broken["model"]) and whole["extended"]["done"] == 5
    for a, b in zip(whole["extended"]["rows"], broken["extended"]["rows"]):
        assert a == b


def test_what_cannot_be_is_refused_in_one_line(smoke, far, tmp_path):
    out, _ = far
    kept = (out / "far" / "last.pt").read_bytes()
    saved = hjepa.read_checkpoint(smoke)
    saved["model"]["short.leave.bias"] += 1                               # another training
    torch.save(saved, tmp_path / "other.pt")
    saved["config"]["epochs"] = 9
    torch.save(saved, tmp_path / "half.pt")
    for name, content in (("damaged", {"told": 1}), ("half", torch.load(
            out / "far" / "last.pt", weights_only=True))):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "extending.pt")
    one = {**saved["config"], "epochs": 3, "steps": 1}
    model = hjepa.build(hjepa.Config(**one))
    torch.save({**saved, "config": one, "model": model.state_dict(), "optimizer": hjepa.make_optimizer(
        model, hjepa.Config(**one), CPU).state_dict()}, tmp_path / "one.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "extending.pt").touch()
    shutil.copytree(smoke, tmp_path / "copy")
    for flags, said in (
            (("--run", out / "far", "--to", tmp_path / "x"), "trained on already"),
            (("--run", smoke, "--to", out / "far", "--steps", 9), "other --steps"),
            (("--run", smoke, "--to", out / "far", "--steps", 40, "--precision", "bf16"), "--precision"),
            (("--run", tmp_path / "other.pt", "--to", out / "far", "--steps", 40), "another run"),
            (("--run", tmp_path / "half.pt", "--to", tmp_path / "x"), "6 epochs to go"),
            (("--run", tmp_path / "other.pt"), "--to DIR is needed"),
            (("--run", tmp_path / "one.pt", "--to", tmp_path / "x"), "one clip"),
            (("--run", tmp_path / "copy", "--to", tmp_path / "copy"), "of another run"),
            (("--run", smoke, "--to", tmp_path / "damaged"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "half"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "empty"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "x", "--steps", 0), "--steps is 0"),
            (("--run", tmp_path / "none"), "no checkpoint")):
        done = here("figures/extend.py", *flags, "--out", tmp_path)
        assert done.returncode == 2 and said in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    assert kept == (out / "far" / "last.pt").read_bytes() and not (tmp_path / "extend.json").exists()
    done = here("figures/ablation.py", "--run", out / "far", "--out", tmp_path)
    assert done.returncode == 2 and "came from" in done.stderr


def test_its_part_of_the_report(far):
    content = json.loads((far[0] / "extend.json").read_text())
    text = report.extended({"extend": content})
    for row in content["rows"]:
        assert row["clips"] not in (1, 5, 8, 10, 15) or f"{row['error']:.3f} (" in text
    assert "40 steps of\n128 new worlds" in text and "goals 75 frames away" in text


def test_other_scripts_take_the_result_and_say_so(far, tmp_path):
    done = here("figures/hierarchy.py", "--run", far[0] / "far", "--tasks", 2, "--frames", 50,
                "--setting", 4, 2, "--only", "flat", "mixed", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "hierarchy.json").read_text())
    assert content["further_steps"] == 40
    assert [row["planner"] for row in content["rows"]] == ["flat", "mixed"]
