"""figures/refine.py: a whole run trained on, on new worlds; and planning.py --samples; on a smoke model."""
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from conftest import here

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import hjepa                                                              # noqa: E402
import refine                                                             # noqa: E402
import report                                                             # noqa: E402

CPU = torch.device("cpu")
SMALL = "--epochs", 2, "--n", 256, "--tasks", 2


@pytest.fixture(scope="module")
def run(smoke):
    return common.open_runs([smoke], CPU)[0]


@pytest.fixture(scope="module")
def refined(smoke, tmp_path_factory):
    """Directory with the run trained on, refine.json and refine.png; what the command printed."""
    out = tmp_path_factory.mktemp("refine")
    done = here("figures/refine.py", "--run", smoke, "--to", out / "run", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def content(refined):
    return json.loads((refined[0] / "refine.json").read_text())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_worlds_are_new_and_have_as_many_hits_as_asked(run, share):
    config = dataclasses.replace(run.config, sequences=200, batch=100)
    world = hjepa.build_world(config)
    obs, forces, hit = refine.draw_worlds(world, config, share, hjepa.generator(0, "refine", 0), CPU)
    assert obs.shape == (200, 6, 5, 12) and forces.shape == (200, 5, 6)
    *_, drawn = hjepa.make_sequences(world, 600, 6, hjepa.generator(0, "refine", 0))
    met = int(drawn[:, 1:].flatten(1).any(1).sum())
    assert 100 < met < 198 and int(hit.sum()) == min(round(200 * share), met)  # 0.99: all that there are
    # `hit` says what the simulator says, and forces belong to their films
    state = obs[:, 0, -1].unflatten(-1, (3, 4)) / torch.tensor([1 / 0.55, 1 / 0.55, 2, 2])
    films, hits = world.rollout(state, forces.unflatten(-1, (-1, 2)))
    assert torch.equal(hits.any(1), hit)
    assert torch.allclose(world.observe(films[:, -5:]), obs[:, -1], atol=1e-3)
    seen, *_ = hjepa.sequences(world, run.config, 1024, run.config.seed, "train", CPU)
    first = world.observe(seen)[:, 0].flatten(1)
    assert torch.cdist(obs[:, 0].flatten(1), first).min() > 1e-3


def test_a_world_without_hits_gives_as_many_sequences(run):
    config = dataclasses.replace(run.config, sequences=50, batch=10, masses=(1.0,))
    obs, _, hit = refine.draw_worlds(hjepa.build_world(config), config, 0.5, hjepa.generator(0, "x"), CPU)
    assert len(obs) == 50 and not hit.any()


def test_errors_are_those_of_the_embeddings_one_after_the_other(run):
    states, forces, _ = hjepa.sequences(hjepa.build_world(run.config), run.config, 20, 7, "x", CPU)
    obs, model = hjepa.build_world(run.config).observe(states), run.model
    found = refine.errors(model, obs, forces, chunk=8)
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        t1, t2 = zip(*(model.target(obs[:, k]) for k in (1, 5)))
        guess = model.short(z1, forces[:, 0])
        for k in range(1, 5):
            path = model.short(path if k > 1 else guess, forces[:, k])
        leap = model.macro(z2, forces.flatten(1))
    for name, a, b in (("P1, one clip", guess, t1[0]), ("P1, rolled out", path, t1[1]), ("P2", leap, t2[1])):
        want = (a - b).square().mean(-1) / b.var(0).mean()
        assert torch.allclose(found[name], want, rtol=1e-4), name


def test_all_of_it_learns_and_the_table_says_from_where(smoke, run, refined):
    before, after = hjepa.read_checkpoint(smoke), hjepa.read_checkpoint(refined[0] / "run")
    assert after["config"] == before["config"] and after["history"] == before["history"]
    moved = [name for name in before["model"] if not torch.equal(before["model"][name], after["model"][name])]
    assert len(moved) == len(before["model"])
    told = content(refined)
    rows = {(r["name"], r["worlds"], r["when"]): r["error"] for r in told["rows"]}
    assert len(rows) == 18 and all(
        rows[name, "all", "after"] < rows[name, "all", "before"] for name, *_ in rows)
    counts = {(r["name"], r["worlds"]): r["n"] for r in told["rows"]}
    for name in ("P1, one clip", "P1, rolled out", "P2"):
        assert counts[name, "all"] == 256 == counts[name, "with a hit"] + counts[name, "without"]
    # one clip has fewer hits than five
    assert 0 < 2 * counts["P1, one clip", "with a hit"] < counts["P2", "with a hit"]
    assert counts["P2", "with a hit"] == counts["P1, rolled out", "with a hit"]
    assert told["refined"]["epochs"] == told["refined"]["done"] == 2 and told["refined"]["steps"] == 16
    assert [row["hits"] for row in told["refined"]["rows"]] == [0.5, 0.5]
    last = told["refined"]["rows"][-1]
    for name in ("P1, one clip", "P1, rolled out", "P2"):
        assert last[name] == pytest.approx(rows[name, "all", "after"], rel=1e-4)
    assert refined[1].count(" pred1 ") == 1     # one head above the epochs
    assert (refined[0] / "refine.png").read_bytes()[:4] == b"\x89PNG"
    assert not (refined[0] / "run" / "refining.pt").exists()


def test_each_epoch_has_worlds_of_its_own_at_half_the_rate(smoke, tmp_path, monkeypatch):
    seen = []

    def train_epoch(model, optimizer, data, config, epoch, *rest, real=hjepa.train_epoch):
        seen.append((data, config, epoch))
        return real(model, optimizer, data, config, epoch, *rest)
    monkeypatch.setattr(hjepa, "train_epoch", train_epoch)
    done = here("figures/refine.py", "--run", smoke, "--to", tmp_path / "run", *SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (one, config, first), (two, _, second) = seen
    assert (first, second, config.epochs) == (0, 1, 2)
    assert config.lr == hjepa.read_checkpoint(smoke)["config"]["lr"] / 2
    assert len(one[0]) == len(two[0]) == config.sequences
    assert torch.cdist(one[0][:, 0].flatten(1), two[0][:, 0].flatten(1)).min() > 1e-3


def test_the_same_command_measures_again_and_trains_no_more(smoke, refined):
    out, first = refined
    before = (out / "run" / "last.pt").read_bytes(), (out / "refine.json").read_text()
    done = here("figures/refine.py", "--run", smoke, "--to", out / "run", *SMALL, "--out", out)
    assert done.returncode == 0 and "pred1" in first and "pred1" not in done.stdout
    assert before == ((out / "run" / "last.pt").read_bytes(), (out / "refine.json").read_text())


def test_interrupted_and_gone_on_is_bitwise_the_unbroken_run(smoke, refined, tmp_path, monkeypatch):
    def save(path, content, real=common.save):
        real(path, content)
        raise KeyboardInterrupt
    flags = "--run", smoke, "--to", tmp_path / "run", *SMALL, "--out", tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(common, "save", save)
        assert here("figures/refine.py", *flags).returncode == 130
    assert not (tmp_path / "run" / "last.pt").exists()
    for other in (("--epochs", 3), ("--hits", 20), ("--precision", "bf16"), ("--n", 128)):
        done = here("figures/refine.py", *flags, *other)
        assert done.returncode == 2 and "cannot be gone on from" in done.stderr
    done = here("figures/refine.py", *flags)
    assert done.returncode == 0 and done.stdout.count("0.500") == 1           # the second epoch alone
    whole, broken = (hjepa.read_checkpoint(path) for path in (refined[0] / "run", tmp_path / "run"))
    assert all(torch.equal(whole["model"][k], broken["model"][k]) for k in whole["model"])
    assert len(whole["refined"]["rows"]) == 2 and whole["refined"]["rows"] == broken["refined"]["rows"]


def test_what_cannot_be_is_refused_in_one_line(smoke, refined, tmp_path):
    kept = (refined[0] / "run" / "last.pt").read_bytes()
    saved = hjepa.read_checkpoint(smoke)
    torch.save({**saved, "extended": {"steps": 4}}, tmp_path / "far.pt")
    saved["model"]["short.leave.bias"] += 1                               # another training
    torch.save(saved, tmp_path / "other.pt")
    saved["config"]["epochs"] = 9
    torch.save(saved, tmp_path / "half.pt")
    for name in ("damaged", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "refining.pt").touch()
    torch.save({"told": 1}, tmp_path / "damaged" / "refining.pt")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "last.pt").write_bytes((smoke / "last.pt").read_bytes())
    to = "--to", refined[0] / "run"
    for flags, said in (
            (("--run", refined[0] / "run", "--to", tmp_path / "x"), "trained on already"),
            (("--run", tmp_path / "far.pt", "--to", tmp_path / "x"), "trained on already"),
            (("--run", smoke, *to, "--epochs", 3), "--epochs"),
            (("--run", smoke, *to, *SMALL, "--n", 128), "--n"),
            (("--run", smoke, "--to", tmp_path / "x", "--n", 1), "--n 1"),
            (("--run", smoke, *to, *SMALL, "--hits", 20), "--hits"),
            (("--run", smoke, *to, *SMALL, "--precision", "bf16"), "--precision"),
            (("--run", tmp_path / "other.pt", *to, *SMALL), "another run"),
            (("--run", tmp_path / "half.pt", "--to", tmp_path / "x"), "6 epochs to go"),
            (("--run", tmp_path / "other.pt"), "--to DIR is needed"),
            (("--run", tmp_path / "copy", "--to", tmp_path / "copy"), "of another run"),
            (("--run", smoke, "--to", tmp_path / "damaged"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "empty"), "cannot be gone on from"),
            (("--run", smoke, "--to", tmp_path / "x", "--hits", 101), "--hits is 101"),
            (("--run", smoke, "--to", tmp_path / "x", "--epochs", 0), "--epochs is 0"),
            (("--run", tmp_path / "none"), "no checkpoint")):
        done = here("figures/refine.py", *flags, "--out", tmp_path)
        assert done.returncode == 2 and said in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "x").glob("*.pt"))
    assert kept == (refined[0] / "run" / "last.pt").read_bytes() and not (tmp_path / "refine.json").exists()


def test_other_scripts_take_the_result_and_say_so(refined, tmp_path):
    done = here("figures/planning.py", "--run", refined[0] / "run", "--tasks", 2, "--frames", 25,
                "--only", "macro open loop", "--samples", 12, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "planning.json").read_text())
    assert told["further_steps"] == 16 and told["further"].startswith("all of it")
    assert "all of it, on new worlds, trained on for 16 steps" in report.source(told)
    assert told["budget"]["samples"] == 12
    assert told["rows"][-1]["predictor_calls"] == 2 * (12 * 3 + 1)        # two images, the last mean
    for name, *more in (("ablation",), ("extend", "--to", tmp_path / "x")):
        done = here(f"figures/{name}.py", "--run", refined[0] / "run", *more, "--out", tmp_path)
        assert done.returncode == 2 and "came from" in done.stderr


@pytest.mark.parametrize("samples, said", [(0, "samples is 0"), (4, "elites must not be more")])
def test_samples_that_cannot_be(smoke, samples, said, tmp_path):
    done = here("figures/planning.py", "--run", smoke, "--samples", samples, "--out", tmp_path)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def goals(errors, samples=100, planner="macro open loop", calls=1202.0):
    """A planning.json of one row: final errors of each task's bodies."""
    gaps = torch.tensor(errors)[None]
    row = {"planner": planner, "frames": 25, "errors": gaps.tolist(), "predictor_calls": calls}
    for key, reached in (("mean_body", gaps.mean(-1) < 0.1), ("success", gaps.amax(-1) < 0.1),
                         ("strict", gaps.amax(-1) < 0.05)):
        row[key], row[key + "_ci"] = reached.float().mean().item(), [0.25, 0.75]
    row["contact"], row["no contact"] = {k: row[k] for k in ("mean_body", "success", "strict")}, {"n": 0}
    return {"rows": [row], "budget": {"samples": samples}, "seeds": [0], "n": len(errors), "epochs": 3,
            "command": f"python figures/planning.py --samples {samples}", "sequences": 9, "device": "cpu",
            "torch": "2", "precision": "fp32", "manifest": [{"goal": len(errors)}]}


OLD, NEW = [[0.01] * 3, [0.2] * 3, [0.3] * 3, [0.06] * 3], [[0.01] * 3, [0.07] * 3, [0.3] * 3, [0.04] * 3]


def test_its_part_of_the_report(refined):
    told = content(refined)
    text = report.refined({"refine": told})
    for row in told["rows"]:
        assert f"{row['error']:.4f} (" in text
    assert "for 2 epochs" in text and "picked: 50.0 % have a hit" in text and "On test goals" not in text
    before, after = "refined/before/planning", "refined/after/planning"
    text = report.refined({"refine": told, before: goals(OLD), after: goals(NEW)})
    assert ("| macro open loop | 100 | mean body within 0.1 | 50.0 % (25.0 to 75.0) | 75.0 % (25.0 to 75.0) | +25.0 ("
            in text)
    assert "| worst body within 0.05 | 25.0 % (25.0 to 75.0) | 50.0 % (25.0 to 75.0) | +25.0 (" in text
    assert "| 25.0 %, 50.0 % |  |" in text and "Does it know better" not in text and "predictor calls" not in text


def test_all_that_can_stand_in_its_part_of_the_report(refined):
    short = goals(NEW, planner="short open loop", calls=6010.0)["rows"]
    base = goals(NEW)
    base["rows"] += short
    surprise = json.loads((ROOT / "figures" / "surprise.json").read_text())
    better = json.loads(json.dumps(surprise))
    for row in better["rows"]:
        row["share"] = 0.4321
    found = {"refine": content(refined), "surprise": surprise, "refined/after/surprise": better,
             "refined/before/planning": goals(OLD), "refined/after/planning": base,
             "refined/before-500/planning": goals(OLD, 345), "refined/after-500/planning": goals(NEW, 345)}
    assert {*report.REFINED} <= {*found}
    text = report.refined(found)
    assert "One jump makes 1,202 predictor calls" in text and "6,010; so a jump with 345 samples instead of 100" in text
    assert "| macro open loop | 345 | worst body within 0.1 | 50.0 %" in text
    assert text.count("43.2 %") == 8            # six rules, all of them, the control


@pytest.mark.parametrize("old, new, said", [(OLD, NEW, False), (NEW, OLD, True)])
def test_a_falling_error_that_is_no_better_plan_is_said(refined, old, new, said):
    found = {"refine": content(refined), "refined/before/planning": goals(old), "refined/after/planning": goals(new)}
    text = report.refined(found)
    assert ("The error of P2 falls from" in text) == said and "The error of P1" not in text
    assert ("reaches fewer goals by the\nworst body, 50.0 % instead of 75.0 %" in text) == said


@pytest.mark.parametrize("other", [goals(OLD[:3]), goals(OLD, samples=500), None])
def test_files_of_other_goals_or_budgets_are_not_compared(refined, other):
    found = {"refine": content(refined), "refined/after/planning": goals(NEW), "refined/before/planning": other}
    found = {name: told for name, told in found.items() if told}
    assert "On test goals" not in report.refined(found)
