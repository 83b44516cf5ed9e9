"""figures/hierarchy.py: what it promises, on a smoke model."""
import dataclasses
import json

import numpy as np
import pytest
import torch

from conftest import here
from lib import cli, goals, levels
from studies import CPU, quick                                            # noqa: F401
import hierarchy
import hjepa

FLAGS = "--goals", 3, "--frames", 50


@pytest.fixture(scope="module")
def small(smoke):
    """The run, its world and three goals, 50 frames ahead."""
    run, = cli.open_runs([smoke], CPU)
    return run, hjepa.build_world(run.config), goals.goals_of(run.config, 3, frames=50)


@pytest.fixture(scope="module")
def report(smoke, tmp_path_factory):
    """-> JSON, arrays, and the rows that would be kept after an interruption."""
    out = tmp_path_factory.mktemp("hierarchy")
    kept = []

    def keep(self, row, add=cli.KeptRows.add):
        add(self, row)
        kept.append(self)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.KeptRows, "add", keep)
        done = here("figures/hierarchy.py", "--run", smoke, *FLAGS, 25, "--setting", 4, 2,
                    "--setting", 8, 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "hierarchy.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(out.iterdir())) == 3
    content = json.loads((out / "hierarchy.json").read_text())
    return content, np.load(out / "hierarchy.npz"), kept[-1]


def test_the_table(report):
    content, arrays, _ = report
    rows = content["rows"]
    assert content["n"] == 3 and content["goals_of"] == "test"
    assert content["settings"] == [[4, 2], [8, 2]]
    one_level = [name for name in hierarchy.PLANNERS if name not in hierarchy.TWO_LEVELS]
    assert [(r["frames"], r["planner"]) for r in rows if r["samples"] == 4] == [
        *((25, name) for name in one_level), *((50, name) for name in hierarchy.PLANNERS)]
    for row in rows:
        errors = arrays["errors/{planner}/{frames}/{samples} x {iterations}".format(**row)]
        reached = errors.mean(-1) < 0.1
        assert errors.shape == (1, 3, 3) and row["seconds"] > 0
        assert row["mean_body"] == pytest.approx(reached.mean(), abs=1e-5)
        assert row["success"] == pytest.approx((errors.max(-1) < 0.1).mean(), abs=1e-5)
        contact = arrays[f"contact/{row['frames']}"]
        for key, who in (("contact_mean_body", contact), ("no_contact_mean_body", ~contact)):
            if who.any():
                assert row[key] == pytest.approx(reached[:, who].mean(), abs=1e-5)
            else:
                assert row[key] is None
    assert len(content["pairs"]) == 2 * len(hierarchy.TWO_LEVELS)


def check_calls(rows, s, guesses):
    """clips times samples, searched again at each clip; two levels look at fewer clips. guesses:
    plans looked at beside each search within the last 25 frames, the guess and what it replaces."""
    calls = {(r["frames"], r["planner"]): r["predictor_calls"] for r in rows if r["samples"] == s}
    whole = 2 * s + 1                                           # 2 iterations
    half = s + 1                                                # 1 iteration
    last = 15 * (whole + guesses)                               # flat, the last 25 frames
    assert calls[25, "oracle"] == 15 * whole and calls[50, "oracle"] == 55 * whole
    assert calls[25, "flat"] == last and calls[50, "flat"] == 40 * whole + last
    assert calls[25, "macro alone"] == whole + guesses
    assert calls[50, "macro alone"] == 3 * whole + guesses
    assert calls[50, "mixed"] == (2 + 5 + 4 + 3 + 2) * whole + last
    assert calls[50, "top-down"] == (2 + 5 + 30) * whole + 1 + last
    near = (5, 4, 3, 2, 1)                                      # short steps, clips 10..6
    assert calls[50, "joint"] == last + sum(2 * (n + half + (n + 1) * half) for n in near)


def test_calls_are_those_of_the_plans_tried(report):
    for samples in (4, 8):
        check_calls(report[0]["rows"], samples, guesses=2)


def test_a_plain_study_knows_no_guess(smoke, report, tmp_path):
    done = here("figures/hierarchy.py", "--run", smoke, *FLAGS, 25, "--setting", 4, 2, "--plain",
                "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "hierarchy.json").read_text())
    assert report[0]["from_guess"] and not content["from_guess"]
    check_calls(content["rows"], 4, guesses=0)
    with np.load(tmp_path / "hierarchy.npz") as plain:
        errors = "errors/flat/50/4 x 2"
        assert not np.array_equal(plain[errors], report[1][errors])


def test_a_model_without_a_first_guess_is_searched_plainly(guessless, tmp_path):
    done = here("figures/hierarchy.py", "--run", guessless, *FLAGS, "--setting", 4, 1, "--only",
                "mixed", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "hierarchy.json").read_text())["from_guess"] is False


@pytest.mark.parametrize("from_guess", [False, True])
@pytest.mark.parametrize("name", hierarchy.PLANNERS)
def test_outcome_depends_on_the_goal_alone(small, name, from_guess):
    run, world, drawn = small

    def final(pick):
        with torch.no_grad(), goals.metered(run.model) as meter:
            last = hierarchy.solve(name, run, world, drawn, torch.tensor(pick), (5, 2), from_guess,
                                   meter)
        return goals.final_errors(last, drawn["goal"][pick])
    alone = torch.cat([final([i]) for i in range(3)])
    assert torch.equal(alone, torch.cat([final([i]) for i in (2, 1, 0)]).flip(0))
    assert torch.allclose(alone, final([0, 1, 2]), atol=0.02)             # but for rounding


def levels_of(small, budget, from_guess=False):
    """-> the planners, for the first goal."""
    run, world, drawn = small
    return levels.Levels(run, world, drawn["goal"][:1], [hjepa.generator(1, "x")], budget,
                         from_guess)


def test_flat_is_the_planner_of_the_plan_command(small):
    """Same search, same noise: the same forces as `short replanned`."""
    run, world, drawn = small
    clip = drawn["clip"][:1]
    config = dataclasses.replace(run.config, samples=12, elites=3)
    _, forces = hjepa.run_planner("short replanned", run.model, world, config, clip,
                                  drawn["goal"][:1], [hjepa.generator(1, "x")], 10)
    planners = levels_of(small, {"samples": 12, "iterations": 3, "elites": 3})
    plan = None
    with torch.no_grad():
        for left in range(10, 0, -1):
            force, plan = planners.flat(clip, left, plan)
            assert torch.allclose(force, forces[:, 10 - left], atol=1e-5)
            clip, _ = world.rollout(clip[:, -1], force[:, None])


def test_flat_from_the_guess_is_the_planner_of_the_plan_command(small):
    """Same search, same noise: the same forces as `replanned from guess`, to the last clip."""
    run, world, drawn = small
    clip = drawn["clip"][:1]
    config = dataclasses.replace(run.config, samples=12, elites=3)
    states, _ = hjepa.run_planner("replanned from guess", run.model, world, config, clip,
                                  drawn["goal"][:1], [hjepa.generator(1, "x")], 10)
    planners = levels_of(small, {"samples": 12, "iterations": 3, "elites": 3}, from_guess=True)
    with torch.no_grad():
        last = levels.replan_levels("flat", planners, clip, 10, config.clip_frames)
    assert torch.allclose(last, states[:, -config.clip_frames:], atol=1e-4)


def test_an_interrupted_study_goes_on_and_another_one_is_not_taken_for_it(smoke, report, tmp_path):
    content, arrays, kept = report
    flags = ("--run", smoke, *FLAGS, "--setting", 4, 2, "--only", "flat", "mixed", "--out",
             tmp_path)
    old = kept.find(planner="flat", frames=50, samples=4)
    half = tmp_path / "hierarchy.part.json"
    half.write_text(json.dumps({"study": kept.study, "rows": [old]}))
    done = here("figures/hierarchy.py", *flags)
    assert done.returncode == 0 and "mixed" in done.stdout and "flat" not in done.stdout
    again = json.loads((tmp_path / "hierarchy.json").read_text())
    assert [row["planner"] for row in again["rows"]] == ["flat", "mixed"]
    assert again["rows"][0]["seconds"] == pytest.approx(old["seconds"], rel=1e-4)
    for key in ("errors/flat/50/4 x 2", "errors/mixed/50/4 x 2"):
        assert np.array_equal(np.load(tmp_path / "hierarchy.npz")[key], arrays[key])
    assert len(again["pairs"]) == 1 and not half.exists()
    text = json.dumps({"study": {**kept.study, "n": 9}, "rows": [old]})
    half.write_text(text)
    done = here("figures/hierarchy.py", *flags)
    assert done.returncode == 2 and "other n" in done.stderr and half.read_text() == text
    assert len(done.stderr.splitlines()) == 1


def row(planner, calls, reached):
    return {"planner": planner, "frames": 75, "samples": calls, "iterations": 1,
            "predictor_calls": calls, "seconds": calls, "mean_body": np.mean(reached).item(),
            "errors": [[[0.01] * 3 if r else [1.0] * 3 for r in reached]]}


def test_pairs_compare_with_flat_at_equal_calls_equal_seconds_and_equal_success():
    rows = [row("flat", 100, [1, 0, 0, 0]), row("flat", 300, [1, 1, 0, 0]),
            row("flat", 900, [1, 1, 1, 0]), row("joint", 300 * 3 ** 0.5, [1, 1, 1, 0]),
            row("mixed", 90, [1, 1, 1, 1])]
    rows[3]["seconds"] = 100
    rows[4]["seconds"] = 900
    joint, mixed = hierarchy.compare(rows, 75)
    assert joint["gain_calls"] == pytest.approx(0.75 - (0.5 + 0.75) / 2)  # half-way in logarithms
    low, high = joint["gain_calls_ci"]
    assert low == 0 and high > 0.25                                       # only one goal differs
    assert joint["gain_seconds"] == 0.5 and mixed["gain_seconds"] == 0.25
    assert joint["saving"] == pytest.approx(3 ** 0.5, rel=1e-3)           # four digits are kept
    assert "gain_calls" not in mixed and "saving" not in mixed            # none as cheap, as good
    assert hierarchy.compare(rows, 50) == []


def test_saving_is_read_off_the_line_through_the_flat_rows():
    flat = [row("flat", 100, [1] * 20 + [0] * 60), row("flat", 400, [1] * 60 + [0] * 20)]
    ratio, (low, high) = hierarchy.calls_saved(row("mixed", 50, [1] * 40 + [0] * 40), flat,
                                               "mean_body")
    assert ratio == pytest.approx(200 / 50)                               # halfway: sqrt(100 400)
    assert 2 <= low < ratio < high <= 8         # the line ends at 100 and 400 calls
    best = row("mixed", 50, [1] * 60 + [0] * 20)
    assert hierarchy.calls_saved(best, flat, "mean_body")[0] == pytest.approx(8)
    modest = row("mixed", 50, [0] * 58 + [1] * 22)                        # flat is often as good
    assert hierarchy.calls_saved(modest, flat, "mean_body")[1][0] == 0
    for outside in ([1] * 10 + [0] * 70, [1] * 70 + [0] * 10):
        assert hierarchy.calls_saved(row("mixed", 50, outside), flat, "mean_body") is None
    assert hierarchy.calls_saved(flat[0], [], "mean_body") is None


@pytest.mark.parametrize("flags, word", [
    (["--frames", "40"], "--frames"), (["--setting", "2", "6"], "--setting"),
    (["--only", "best"], "--only"), (["--goals", "0"], "--goals")])
def test_mistakes_get_one_line(smoke, tmp_path, flags, word):
    done = here("figures/hierarchy.py", "--run", smoke, *flags, "--out", tmp_path)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
