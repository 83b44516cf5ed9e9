"""figures/search.py: what it promises, on a smoke model."""
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import here

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import hjepa                                                              # noqa: E402
import planning                                                           # noqa: E402
import report                                                             # noqa: E402
import search                                                             # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(smoke, tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    done = here("figures/search.py", "--run", smoke, "--tasks", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "search.png").read_bytes()[:4] == b"\x89PNG" and len(list(out.iterdir())) == 2
    return json.loads((out / "search.json").read_text())


def rows_of(content, part):
    return [row for row in content["rows"] if row["part"] == part]


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
    first, more, test = map(lambda part: rows_of(found, part), ("as many plans", "more plans", "test"))
    own, best = search.Setting(**found["own"]), search.Setting(**found["best"])
    settings = search.equal_settings(hjepa.Config(**hjepa.PRESETS["smoke"]))
    assert own == settings[0] and best in settings and len(first) == 3 * len(settings)
    assert [r["samples"] for r in more] == [best.samples * k for k in (2, 4, 8) for _ in range(2)]
    assert {r["worlds"] for r in first + more} == {"validation"} and {r["worlds"] for r in test} == {"test"}
    largest = search.Setting(best.samples * 8, best.iterations, best.elites * 8)
    assert {search.setting_of(r) for r in test} == {own, best, largest}
    for row in found["seconds"]:
        assert row["own"] > 0 and row["best"] > 0 and row["ratio"] > 0
    assert len(found["seconds"]) == 2 * (own != best)
    for row in found["rows"]:
        mean = np.array(row["errors"]).mean(-1)
        assert mean.shape == (1, 2) and row["seconds"] > 0
        assert row["error"] == pytest.approx(mean.mean(), abs=1e-5)
        assert row["mean_body"] == (mean < 0.1).mean()


def test_the_best_has_the_lowest_error_beside_the_own_setting(found):
    errors = {}
    for row in rows_of(found, "as many plans"):
        errors.setdefault(search.setting_of(row), {})[row["planner"]] = np.mean(row["errors"])
    own = errors[search.Setting(**found["own"])]
    by_hand = {setting: np.mean([mine[name] / own[name] for name in own])
               for setting, mine in errors.items()}
    assert search.Setting(**found["best"]) == min(by_hand, key=by_hand.get)
    told = [row["score"] for row in found["scores"]]
    assert told == sorted(told) and told == pytest.approx(sorted(by_hand.values()), abs=1e-3)


def test_the_own_setting_is_planning_py_on_its_tasks(smoke, found):
    """Another path to the same plans: what is compared is what the other tables are of."""
    run, = common.open_runs([smoke], CPU)
    world, tasks = goals(run.config, run.config.test_seed)
    for name in search.PLANNERS:
        with torch.no_grad():
            errors = [planning.attempt(name, run, world, tasks, torch.tensor([i])) for i in range(2)]
        assert np.allclose(own_row(found, "test", name), [torch.cat(errors).numpy()], atol=1e-5), name


def goals(config, seed):
    world = hjepa.build_world(config)
    return world, hjepa.make_tasks(world, 2, config.steps, hjepa.generator(seed, "tasks", 0),
                                   config.hold, config.start_speed)


def own_row(content, worlds, planner):
    return next(r["errors"] for r in content["rows"] if (r["worlds"], r["planner"]) == (worlds, planner)
                and search.setting_of(r) == search.Setting(**content["own"]))


def test_what_is_chosen_on_is_validation_goals(smoke, found):
    run, = common.open_runs([smoke], CPU)
    seed = run.config.validation_seed
    world, tasks = goals(run.config, seed)
    for name in search.PLANNERS:
        errors, *_ = hjepa.try_tasks(name, run.model, world, run.config, tasks, seed, CPU, "fp32")
        assert np.allclose(own_row(found, "validation", name), [errors.numpy()], atol=1e-5), name


def test_pairs_are_differences_goal_by_goal_to_the_setting_before():
    def row(samples, errors):
        return {"planner": "short replanned", "samples": samples, "iterations": 1, "elites": 2,
                "errors": [[[e] * 3 for e in errors]]}
    rows = [row(9, [0.2, 0.2, 0.04, 0.3]), row(5, [0.09, 0.2, 0.06, 0.01]), row(40, [0.01] * 4)]
    rows += [{**r, "planner": name} for r in rows[:2] for name in search.PLANNERS[:2]]
    *_, pair, larger = search.compare(rows)
    assert [pair[k]["samples"] for k in "ab"] == [5, 9] and len(search.compare(rows)) == 4
    assert [larger[k]["samples"] for k in "ab"] == [40, 5]
    assert pair["success"] == 0.5 and pair["strict"] == 0.0 and pair["error"] == pytest.approx(-0.095)
    assert pair["success_ci"][0] == 0 and pair["success_ci"][1] == 1 and larger["strict"] == 0.75


def test_an_interrupted_study_goes_on_and_another_one_is_not_taken_for_it(smoke, found, tmp_path,
                                                                            monkeypatch):
    flags = "--run", smoke, "--tasks", 2, "--out", tmp_path
    tries = []

    def stop(*args, real=hjepa.try_tasks):
        if len(tries) == 4:
            raise KeyboardInterrupt
        tries.append(args)
        return real(*args)
    with monkeypatch.context() as patch:
        patch.setattr(hjepa, "try_tasks", stop)
        assert here("figures/search.py", *flags).returncode == 130
    half = tmp_path / "search.part.json"
    assert len(json.loads(half.read_text())["rows"]) == 4
    done = here("figures/search.py", "--run", smoke, "--tasks", 3, "--out", tmp_path)
    assert done.returncode == 2 and "other n" in done.stderr and half.exists()
    done = here("figures/search.py", *flags)
    assert done.returncode == 0 and not half.exists()
    assert len(done.stdout.splitlines()) == len(found["rows"]) - 4 + 1
    again = json.loads((tmp_path / "search.json").read_text())
    assert [r["errors"] for r in again["rows"]] == [r["errors"] for r in found["rows"]]


def made_up(own, best):
    """What search.py writes, shortened: two settings, each planner its own numbers."""
    shares = {"mean_body": 0.75, "success": 0.5, "strict": 0.25, "error": 0.1234}
    largest = search.scaled(best, 8)
    told = {"seeds": [0], "n": 4, "epochs": 9, "sequences": 8, "device": "cpu", "precision": "fp32",
            "torch": "2", "intervals": "95 %", "command": "python figures/search.py", "frames": 25}
    rows = [{"part": part, "planner": planner, **setting._asdict(), **shares,
             **{k + "_ci": [v / 2, v] for k, v in shares.items()}}
            for part, settings, planners in (
                ("as many plans", {own, best}, search.PLANNERS),
                ("more plans", (search.scaled(best, 2), largest), search.PLANNERS[:2]),
                ("test", dict.fromkeys((own, best)), search.PLANNERS), ("test", [largest], search.PLANNERS[:2]))
            for setting in settings for planner in planners]
    for row in rows:
        row["errors"] = [[[0.01 * row["elites"]] * 3] * 4]
    scores = [{**s._asdict(), "score": 0.875 if s == best else 1.0} for s in sorted({own, best})]
    return {**told, "own": own._asdict(), "best": best._asdict(), "rows": rows,
            "seconds": [{"planner": name, "own": 2.0, "best": 3.0, "ratio": 1.5} for name in search.PLANNERS[:2]],
            "scores": sorted(scores, key=lambda row: row["score"]),
            "pairs": search.compare([row for row in rows if row["part"] == "test"])}


@pytest.mark.parametrize("best", [search.Setting(6, 10, 3), search.Setting(10, 6, 5), search.Setting(10, 6, 4)])
def test_section(best):
    own = search.Setting(10, 6, 4)
    text = report.searched({"search": made_up(own, best)})
    if best == own:
        assert "Lowest is the run's own setting;" in text
    else:
        assert f"Lowest is {best.samples} x {best.iterations}, {best.elites} elites;" in text
    assert f"| {report.spent(best._asdict())} | 0.875 | 0.1234, 50.0 % | 0.1234, 50.0 % | 0.1234, 50.0 % |" in text
    assert "2 and 8 times its samples" in text and text.count("| 480 |") == 2
    assert text.count("1.50 times the seconds") == 2 * (best != own)
    tables = [part.count("\n|") + 1 for part in text.split("\n\n") if part.startswith("|")]
    rows, pairs = (8, 5) if best != own else (5, 2)
    assert tables == [2 + len({own, best}), 2 + 2 * 3, 2 + rows, 2 + pairs]
