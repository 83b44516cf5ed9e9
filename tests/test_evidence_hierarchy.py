"""figures/hierarchy.py: what it promises, on a smoke model."""
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import here

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import hierarchy                                                          # noqa: E402
import hjepa                                                              # noqa: E402
import planning                                                           # noqa: E402

VIEWS = 2


def script(*flags):
    return subprocess.run([sys.executable, "figures/hierarchy.py", *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def small(smoke):
    """The run, its world and three tasks, 50 frames ahead."""
    run, = common.open_runs([smoke], torch.device("cpu"))
    world = hjepa.build_world(run.config)
    return run, world, hjepa.make_tasks(world, 3, 10, hjepa.generator(5, "tasks"))


@pytest.fixture(scope="module")
def report(smoke, tmp_path_factory):
    out = tmp_path_factory.mktemp("hierarchy")
    done = script("--run", smoke, "--tasks", 3, "--frames", 50, 25, "--setting", 4, 2, "--setting",
                  8, 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "hierarchy.png").read_bytes()[:4] == b"\x89PNG"
    return json.loads((out / "hierarchy.json").read_text())


def test_report(report):
    rows = report["rows"]
    assert report["n"] == 3 and report["tasks_of"] == "test" and report["settings"] == [[4, 2], [8, 2]]
    assert [(r["frames"], r["planner"]) for r in rows if r["samples"] == 4] == [
        *((25, name) for name in hierarchy.PLANNERS if name not in hierarchy.TWO_LEVELS),
        *((50, name) for name in hierarchy.PLANNERS)]
    for row in rows:
        mean = np.array(row["errors"]).mean(-1)
        assert mean.shape == (1, 3) and row["seconds"] > 0
        assert row["mean_body"] == pytest.approx((mean < 0.1).mean())
        assert row["contact"]["n"] + row["no contact"]["n"] == 3
    assert len(report["pairs"]) == 2 * len(hierarchy.TWO_LEVELS)


def test_calls_are_those_of_the_plans_tried(report):
    """clips times samples, searched again at each clip; two levels look at fewer clips."""
    calls = {(r["frames"], r["planner"], r["samples"]): r["predictor_calls"] for r in report["rows"]}
    for s in (4, 8):
        seen, half = VIEWS * (2 * s + 1), VIEWS * (s + 1)                 # 2 iterations, or 1
        for frames, clips in ((25, 15), (50, 55)):
            assert calls[frames, "flat", s] == calls[frames, "flat, held", s] == clips * seen
            assert calls[frames, "oracle", s] == clips * (2 * s + 1)
        assert calls[25, "macro alone", s] == seen and calls[50, "macro alone", s] == 3 * seen
        assert calls[50, "mixed", s] == (2 + 5 + 4 + 3 + 2 + 15) * seen
        assert calls[50, "top-down", s] == (2 + 5 + 45) * seen + VIEWS
        near = (5, 4, 3, 2, 1)                                            # short steps, clips 10..6
        assert calls[50, "joint", s] == 15 * seen + sum(
            2 * (n * VIEWS + half + (n + 1) * half) for n in near)


@pytest.mark.parametrize("name", hierarchy.PLANNERS)
def test_outcome_depends_on_the_task_alone(small, name):
    run, world, tasks = small

    def errors(pick):
        with planning.metered(run.model) as meter:
            return hierarchy.attempt(name, run, world, tasks, torch.tensor(pick), 5, 2, meter)
    alone = torch.cat([errors([i]) for i in range(3)])
    assert torch.equal(alone, torch.cat([errors([i]) for i in (2, 1, 0)]).flip(0))
    assert torch.allclose(alone, errors([0, 1, 2]), atol=0.02)            # but for rounding


def test_flat_is_the_planner_of_the_plan_command(small):
    """Same search, same noise: the same forces as `short replanned`."""
    run, world, tasks = small
    clip, goal = tasks["clip"][:1], tasks["goal"][:1]
    config = run.config
    _, forces = hjepa.solve("short replanned", run.model, world,
                            dataclasses.replace(config, steps=10, elites=4), clip, goal,
                            [hjepa.generator(1, "x")])
    levels = hierarchy.Levels(run, world, goal, [hjepa.generator(1, "x")], config.samples,
                              config.iterations)
    plan = None
    with torch.no_grad():
        for left in range(10, 0, -1):
            force, plan = levels.flat(clip, left, plan)
            assert torch.allclose(force, forces[:, 10 - left], atol=1e-5)
            clip, _ = world.rollout(clip[:, -1], force.unflatten(-1, (-1, 2))[:, None])


def test_chain_is_short_steps_then_jumps(small):
    run, _, _ = small
    model, gen = run.model, torch.Generator().manual_seed(0)
    z, plans = torch.randn(2, 256, generator=gen), torch.randn(2, 12, 6, generator=gen)
    with torch.no_grad():
        by_hand = model.lift(model.rollout(z, plans[:, :2])[:, -1])
        by_hand = model.jump(model.bridge(model.jump(by_hand, plans[:, 2:7])), plans[:, 7:])
        assert torch.allclose(planning.chain(model, z, plans, 2, 5), by_hand, atol=1e-5)
        assert torch.allclose(planning.chain(model, z, plans[:, :5], 0, 5), model.jump(z, plans[:, :5]))


def test_held_forces_change_at_the_macro_boundaries_before_the_goal(small):
    run, world, tasks = small
    levels = hierarchy.Levels(run, world, tasks["goal"][:1], [hjepa.generator(1, "x")], 4, 1)
    with torch.no_grad():
        _, plan = levels.flat_held(tasks["clip"][:1], 7, None)            # 2 clips, then 5
        assert plan.shape == (1, 2, 6)
        _, after = levels.flat_held(tasks["clip"][:1], 6, plan)
        assert after.shape == (1, 1, 6)


def test_an_interrupted_study_goes_on_and_another_one_is_not_taken_for_it(smoke, report, tmp_path):
    flags = ("--run", smoke, "--tasks", 3, "--frames", 50, "--setting", 4, 2, "--only", "flat", "mixed",
             "--out", tmp_path)
    old = [row for row in report["rows"] if (row["planner"], row["frames"], row["samples"]) == (
        "flat", 50, 4)]
    told = {k: report[k] for k in ("weights", "n", "views", "tasks_of", "precision")}
    half = tmp_path / "hierarchy.part.json"
    half.write_text(json.dumps({"told": told, "rows": old}))
    done = here("figures/hierarchy.py", *flags)
    assert done.returncode == 0 and "mixed" in done.stdout and "flat" not in done.stdout
    content = json.loads((tmp_path / "hierarchy.json").read_text())
    assert content["rows"][0] == old[0] and content["rows"][1]["planner"] == "mixed"
    assert len(content["pairs"]) == 1 and not half.exists()
    for text, said in ((json.dumps({"told": {**told, "n": 9}, "rows": old}), "other n"),
                       ("[]", "damaged")):
        half.write_text(text)
        done = here("figures/hierarchy.py", *flags)
        assert done.returncode == 2 and said in done.stderr and half.read_text() == text
        assert len(done.stderr.splitlines()) == 1


def row(planner, calls, reached):
    return {"planner": planner, "frames": 75, "samples": calls, "iterations": 1,
            "predictor_calls": calls, "seconds": calls, "mean_body": np.mean(reached).item(),
            "errors": [[[0.01] * 3 if r else [1.0] * 3 for r in reached]]}


def test_pairs_compare_with_flat_at_equal_calls_equal_seconds_and_equal_success():
    rows = [row("flat", 100, [1, 0, 0, 0]), row("flat", 300, [1, 1, 0, 0]),
            row("flat", 900, [1, 1, 1, 0]), row("joint", 300 * 3 ** 0.5, [1, 1, 1, 0]),
            row("mixed", 90, [1, 1, 1, 1])]
    rows[3]["seconds"], rows[4]["seconds"] = 100, 900
    joint, mixed = hierarchy.compare(rows, 75)
    assert joint["gain_calls"] == pytest.approx(0.75 - (0.5 + 0.75) / 2)  # half-way in logarithms
    low, high = joint["gain_calls_ci"]
    assert low == 0 and high > 0.25                                       # only one task differs
    assert joint["gain_seconds"] == 0.5 and mixed["gain_seconds"] == 0.25
    assert joint["saving"] == pytest.approx(3 ** 0.5)
    assert "gain_calls" not in mixed and "saving" not in mixed            # none as cheap, as good


def test_saving_is_read_off_the_line_through_the_flat_rows():
    flat = [row("flat", 100, [1] * 20 + [0] * 60), row("flat", 400, [1] * 60 + [0] * 20)]
    ratio, (low, high) = hierarchy.calls_saved(row("mixed", 50, [1] * 40 + [0] * 40), flat)
    assert ratio == pytest.approx(200 / 50)                               # halfway: sqrt(100 400)
    assert 2 <= low < ratio < high <= 8                                   # the line ends at 100, 400
    assert hierarchy.calls_saved(row("mixed", 50, [1] * 60 + [0] * 20), flat)[0] == pytest.approx(8)
    for outside in ([1] * 10 + [0] * 70, [1] * 70 + [0] * 10):
        assert hierarchy.calls_saved(row("mixed", 50, outside), flat) is None
    assert hierarchy.calls_saved(flat[0], []) is None


@pytest.mark.parametrize("flags, word", [
    (["--frames", "40"], "--frames"), (["--setting", "2", "6"], "--setting"),
    (["--only", "best"], "--only"), (["--tasks", "0"], "--tasks")])
def test_mistakes_get_one_line(smoke, flags, word):
    done = here("figures/hierarchy.py", "--run", smoke, *flags)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
