"""figures/search.py: what it promises, on a tiny model."""
import dataclasses
import json

import numpy as np
import pytest
import torch

from conftest import TINY, here
from lib import cli, goals
from studies import CPU, quick                                            # noqa: F401
import hjepa
import search

FLAGS = "--goals", 2


@pytest.fixture(scope="module")
def found(whole, tmp_path_factory):
    """-> JSON, arrays."""
    out = tmp_path_factory.mktemp("search")
    done = here("figures/search.py", "--run", whole, *FLAGS, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "search.png").read_bytes()[:4] == b"\x89PNG" and len(list(out.iterdir())) == 3
    return json.loads((out / "search.json").read_text()), np.load(out / "search.npz")


def rows_of(content, part):
    return [row for row in content["rows"] if row["part"] == part]


def errors_of(arrays, part, planner, setting):
    name = "{} x {}, {} elites".format(*setting)
    return arrays[f"errors/{part}/{planner}/{name}"]


def test_settings_have_as_many_plans_and_the_own_one_comes_first():
    config = hjepa.Config()
    settings = search.equal_settings(config)
    assert settings[0] == (config.samples, config.iterations, config.elites)
    assert len(settings) == len(set(settings)) == 19
    assert {samples * iterations for samples, iterations, _ in settings} == {600}
    assert {iterations for _, iterations, _ in settings} == {3, 6, 10, 15, 24}
    assert all(3 <= elites <= samples / 3 for samples, _, elites in settings)
    few = search.equal_settings(dataclasses.replace(config, samples=4, iterations=2, elites=2))
    assert few[0] == (4, 2, 2) and all(e <= s for s, _, e in few)


def test_parts(found):
    content, arrays = found
    first, more, test = (rows_of(content, part)
                         for part in ("as many plans", "more plans", "test"))
    own = search.Setting(**content["own"])
    best = search.Setting(**content["best"])
    settings = search.equal_settings(TINY)
    assert own == settings[0] and best in settings and len(first) == 3 * len(settings)
    assert [r["samples"] for r in more] == [best.samples * k for k in (2, 4, 8) for _ in range(2)]
    largest = search.Setting(best.samples * 8, best.iterations, best.elites * 8)
    assert {search.setting_of(r) for r in test} == {own, best, largest}
    assert len(content["seconds"]) == (2 if own != best else 0)
    for row in content["seconds"]:
        assert row["own"] > 0 and row["best"] > 0 and row["ratio"] > 0
    for row in content["rows"]:
        errors = errors_of(arrays, row["part"], row["planner"], search.setting_of(row))
        mean = errors.mean(-1)
        assert mean.shape == (1, 2) and row["seconds"] > 0
        assert row["error"] == pytest.approx(mean.mean(), abs=1e-5)
        assert row["mean_body"] == (mean < 0.1).mean()
        looked_at = row["part"] != "as many plans" or search.setting_of(row) in (own, best)
        assert ("success_ci" in row) == looked_at


def test_the_best_has_the_lowest_error_beside_the_own_setting(found):
    content, arrays = found
    errors = {}
    for row in rows_of(content, "as many plans"):
        setting = search.setting_of(row)
        mean = errors_of(arrays, "as many plans", row["planner"], setting).mean()
        errors.setdefault(setting, {})[row["planner"]] = mean
    own = errors[search.Setting(**content["own"])]
    by_hand = {setting: np.mean([mine[name] / own[name] for name in own])
               for setting, mine in errors.items()}
    assert search.Setting(**content["best"]) == min(by_hand, key=by_hand.get)
    told = [row["score"] for row in content["scores"]]
    assert told == sorted(told) and told == pytest.approx(sorted(by_hand.values()), abs=1e-3)


@pytest.mark.parametrize("part, split", [("as many plans", "validation"), ("test", "test")])
def test_what_is_chosen_on_is_validation_goals_and_what_is_reported_test_goals(whole, found, part,
                                                                               split):
    """The own setting reaches what `hjepa.py plan` reaches on these goals."""
    content, arrays = found
    run, = cli.open_runs([whole], CPU)
    world = hjepa.build_world(run.config)
    drawn = goals.goals_of(run.config, 2, split)
    seed = getattr(run.config, split + "_seed")
    for name in search.PLANNERS:
        errors, *_ = hjepa.try_goals(name, run.model, world, run.config, drawn, seed, CPU)
        mine = errors_of(arrays, part, name, search.Setting(**content["own"]))
        assert np.allclose(mine, [errors.numpy()], atol=1e-5), name


def test_pairs_are_differences_goal_by_goal_to_the_setting_before():
    def row(samples, errors):
        return {"planner": "short replanned", "samples": samples, "iterations": 1, "elites": 2,
                "errors": [[[e] * 3 for e in errors]]}
    rows = [row(9, [0.2, 0.2, 0.04, 0.3]), row(5, [0.09, 0.2, 0.06, 0.01]), row(40, [0.01] * 4)]
    rows += [{**r, "planner": name} for r in rows[:2] for name in search.PLANNERS[:2]]
    pairs = search.compare(rows)
    assert len(pairs) == 4
    pair, larger = pairs[-2:]
    assert [pair[k]["samples"] for k in "ab"] == [5, 9]
    assert [larger[k]["samples"] for k in "ab"] == [40, 5]
    assert pair["success"] == 0.5 and pair["strict"] == 0.0
    assert pair["error"] == pytest.approx(-0.095)
    assert pair["success_ci"][0] == 0 and pair["success_ci"][1] == 1 and larger["strict"] == 0.75


def test_an_interrupted_study_goes_on(whole, found, tmp_path, monkeypatch):
    content, arrays = found
    flags = "--run", whole, "--out", tmp_path
    tries = []

    def stop(*args, real=goals.try_goals):
        if len(tries) == 4:
            raise KeyboardInterrupt
        tries.append(args)
        return real(*args)
    with monkeypatch.context() as patch:
        patch.setattr(goals, "try_goals", stop)
        assert here("figures/search.py", *flags, *FLAGS).returncode == 130
    half = tmp_path / "search.part.json"
    assert len(json.loads(half.read_text())["rows"]) == 4
    done = here("figures/search.py", *flags, "--goals", 3)
    assert done.returncode == 2 and "other n" in done.stderr and half.exists()
    done = here("figures/search.py", *flags, *FLAGS)
    assert done.returncode == 0 and not half.exists()
    assert len(done.stdout.splitlines()) == len(content["rows"]) - 4 + 1
    again = np.load(tmp_path / "search.npz")
    assert list(again) == list(arrays)
    assert all(np.array_equal(again[key], arrays[key]) for key in arrays)
