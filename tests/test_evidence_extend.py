"""figures/extend.py: the predictors trained on, on a smoke model."""
import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import extend                                                             # noqa: E402
import hjepa                                                              # noqa: E402
import report                                                             # noqa: E402

CPU = torch.device("cpu")


def script(*flags, name="extend"):
    return subprocess.run([sys.executable, f"figures/{name}.py", *map(str, flags)], cwd=ROOT,
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
    done = script("--run", smoke, "--to", out / "far", "--steps", 120, "--n", 64, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def test_a_leap_of_a_whole_event_is_a_jump_and_a_short_one_knows_its_length(run, drawn):
    model, (obs, forces) = run.model, drawn
    z2 = model.context(obs[:, 0])[1]
    assert torch.equal(extend.leap(model, z2, forces[:, :5], 2.0), model.jump(z2, forces[:, :5]))
    short = extend.leap(model, z2, forces[:, 3:5], 2.0)
    marked = torch.cat([torch.full_like(forces[:, :3], 3.0), forces[:, 3:5]], 1)
    assert torch.equal(short, model.macro(z2, marked.flatten(1)))         # at the end, not the start
    idle = torch.cat([torch.zeros_like(forces[:, :3]), forces[:, 3:5]], 1)
    assert not torch.allclose(short, model.jump(z2, idle))


@torch.no_grad()
def test_leaps_are_the_rest_and_then_whole_events(run, drawn):
    model, (obs, forces) = run.model, drawn
    z2 = model.context(obs[:, 0])[1]
    by_hand = z2
    for part in (forces[:, :2], forces[:, 2:7]):
        by_hand = model.bridge(extend.leap(model, by_hand, part, 2.0))
    by_hand = extend.leap(model, by_hand, forces[:, 7:12], 2.0)
    assert torch.equal(extend.leaps(model, z2, forces[:, :12], 5, 2.0), by_hand)
    assert torch.equal(extend.leaps(model, z2, forces[:, :5], 5, 2.0), model.jump(z2, forces[:, :5]))
    assert torch.equal(extend.leaps(model, z2, forces[:, :3], 5, 2.0),
                       extend.leap(model, z2, forces[:, :3], 2.0))


@pytest.mark.parametrize("first", range(1, 6))
def test_the_terms_by_hand(run, drawn, first):
    model, (obs, forces) = run.model, drawn
    with torch.no_grad():
        terms = extend.objective(model, obs, forces, first, 5, 2.0)
        (z1, z2), path = model.context(obs[:, 0]), None
        path = model.rollout(z1, forces)
        t1 = torch.stack([model.target(obs[:, k])[0] for k in range(1, 16)], 1)
        lifted, there = model.lift(path[:, first - 1]), model.context(obs[:, first])[1]
        ends = (first, first + 5, first + 10)
        assert terms["p1"] == pytest.approx(F.mse_loss(path, t1).item(), rel=1e-4)
        assert terms["lift"] == pytest.approx(F.mse_loss(lifted, there).item(), rel=1e-4)
        arrived = model.jump(lifted, forces[:, first:first + 5])
        assert terms["lifted"] == pytest.approx(
            F.mse_loss(arrived, model.target(obs[:, ends[1]])[1]).item(), rel=1e-4)
        for i, end in enumerate(ends, 1):
            guess = extend.leaps(model, z2, forces[:, :end], 5, 2.0)
            truth = model.target(obs[:, end])[1]
            assert terms[f"jump {i}"] == pytest.approx(F.mse_loss(guess, truth).item(), rel=1e-4)
            if i < 3:
                gap = F.mse_loss(model.bridge(guess), model.context(obs[:, end])[1]).item()
                assert terms[f"bridge {i}"] == pytest.approx(gap, rel=1e-4)
    assert set(terms) == {"p1", "lift", "lifted", "jump 1", "jump 2", "jump 3", "bridge 1", "bridge 2"}


def test_encoders_stay_and_predictors_and_maps_move(run, far):
    before, after = run.model.state_dict(), hjepa.load(far[0] / "far")[0].state_dict()
    for k in before:
        assert torch.equal(before[k], after[k]) == k.startswith(("context", "target")), k


def test_errors_far_ahead_fall(far):
    content = json.loads((far[0] / "extend.json").read_text())
    gaps = {(r["name"], r["when"], r["clips"]): r["error"] for r in content["rows"]}
    assert gaps["P1", "after", 15] < gaps["P1", "before", 15]
    assert gaps["P2", "after", 15] < gaps["P2", "before", 15]
    assert [k for name, when, k in gaps if (name, when) == ("leaps", "after")] == [*range(1, 16)]
    assert content["extended"]["steps"] == 120 and len(content["extended"]["rows"]) == 2
    assert (far[0] / "extend.png").read_bytes()[:4] == b"\x89PNG"
    assert not (far[0] / "far" / "extending.pt").exists()


def test_the_same_command_measures_again_and_trains_no_more(smoke, far):
    out, first = far
    before = (out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text()
    done = script("--run", smoke, "--to", out / "far", "--steps", 120, "--n", 64, "--out", out)
    assert done.returncode == 0 and "jump 1" in first and "jump 1" not in done.stdout
    assert before == ((out / "far" / "last.pt").read_bytes(), (out / "extend.json").read_text())


def test_interrupted_and_gone_on_is_bitwise_the_unbroken_run(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(extend, "BLOCK", 2)
    saved = hjepa.read_checkpoint(smoke)

    def go(out, stop_after=None):
        out.mkdir(exist_ok=True)
        saves = []

        def save(path, content, real=extend.save):
            real(path, content)
            saves.append(path)
            if len(saves) == stop_after:
                raise KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(extend, "save", save)
            return extend.train(common.open_runs([smoke], CPU)[0], saved, out,
                                Namespace(run=[smoke], steps=5, device=CPU))
    go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "broken", 1)
    assert not (tmp_path / "broken" / "last.pt").exists()
    go(tmp_path / "broken")
    whole, broken = (hjepa.read_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    assert same(whole["model"], broken["model"]) and whole["extended"]["done"] == 5
    for a, b in zip(whole["extended"]["rows"], broken["extended"]["rows"]):
        assert a == b


def test_what_cannot_be_is_refused_in_one_line(smoke, far, tmp_path):
    out, _ = far
    kept = (out / "far" / "last.pt").read_bytes()
    saved = hjepa.read_checkpoint(smoke)
    saved["model"]["target.embed.weight"] += 1                            # another training
    torch.save(saved, tmp_path / "other.pt")
    saved["config"]["epochs"] = 9
    torch.save(saved, tmp_path / "half.pt")
    for name, content in (("damaged", {"told": 1}), ("half", torch.load(
            out / "far" / "last.pt", weights_only=True))):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "extending.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "extending.pt").touch()
    shutil.copytree(smoke, tmp_path / "copy")
    for flags, said in (
            (("--run", out / "far", "--to", tmp_path / "x"), "trained on already"),
            (("--run", smoke, "--to", out / "far", "--steps", 9), "other --steps"),
            (("--run", tmp_path / "other.pt", "--to", out / "far", "--steps", 120), "another run"),
            (("--run", tmp_path / "half.pt", "--to", tmp_path / "x"), "6 epochs to go"),
            (("--run", tmp_path / "other.pt"), "--to DIR is needed"),
            (("--run", tmp_path / "copy", "--to", tmp_path / "copy"), "of another run"),
            (("--run", smoke, "--to", tmp_path / "damaged"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "half"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "empty"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "x", "--steps", 0), "--steps is 0"),
            (("--run", tmp_path / "none"), "no checkpoint")):
        done = script(*flags, "--out", tmp_path)
        assert done.returncode == 2 and said in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    assert kept == (out / "far" / "last.pt").read_bytes() and not (tmp_path / "extend.json").exists()
    done = script("--run", smoke, "--only", "leaping", "--tasks", 2, "--out", tmp_path,
                  name="hierarchy")
    assert done.returncode == 2 and "extend.py" in done.stderr
    done = script("--run", out / "far", "--out", tmp_path, name="ablation")
    assert done.returncode == 2 and "came from" in done.stderr


def test_its_part_of_the_report(far):
    content = json.loads((far[0] / "extend.json").read_text())
    text = report.extended({"extend": content})
    for row in content["rows"]:
        assert row["clips"] not in (1, 5, 15) or f"{row['error']:.3f} (" in text
    assert "120 steps of\n128 new worlds" in text and "goals 75 frames away" in text


def test_other_scripts_take_the_result_and_say_so(far, tmp_path):
    done = script("--run", far[0] / "far", "--tasks", 2, "--frames", 50, "--setting", 4, 2, "--only",
                  "flat", "leaping", "--out", tmp_path, name="hierarchy")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "hierarchy.json").read_text())
    assert content["further_steps"] == 120
    flat, leaping = content["rows"]
    seen = 2 * (2 * 4 + 1)                                                # views, samples + the mean
    assert flat["predictor_calls"] == 55 * seen
    assert leaping["predictor_calls"] == (5 * 2 + 15) * seen
