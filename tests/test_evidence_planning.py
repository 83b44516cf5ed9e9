"""figures/planning.py and figures/representation.py: what they promise, on a smoke model; and
figures/common.py: are its intervals intervals?"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import hjepa                                                              # noqa: E402
import planning                                                           # noqa: E402
import representation                                                     # noqa: E402

HEAD = {"command", "device", "precision", "torch", "seeds", "n", "epochs", "sequences",
        "intervals"}
SIMULATED = 40 * 3 + 1                          # samples x iterations of smoke, the last mean
BUDGET = 2 * SIMULATED                          # a predictor sees each plan in two images


def script(name, *flags):
    return subprocess.run([sys.executable, f"figures/{name}.py", *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def two_runs(smoke, tmp_path_factory):
    """The smoke run, and its weights under another seed: enough to see how seeds are treated."""
    saved = hjepa.read_checkpoint(smoke)
    saved["config"]["seed"] = 1
    path = tmp_path_factory.mktemp("second") / "last.pt"
    torch.save(saved, path)
    return ["--run", smoke, "--run", path]


@pytest.fixture(scope="module")
def reports(two_runs, tmp_path_factory):
    """Both scripts as a user runs them, on two runs -> name -> JSON."""
    out, found = tmp_path_factory.mktemp("reports"), {}
    for name, size in (("planning", ["--tasks", 5]), ("representation", ["--n", 256, "--steps", 40])):
        done = script(name, *two_runs, *size, "--out", out)
        assert done.returncode == 0, done.stderr
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        found[name] = json.loads((out / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def small(smoke):
    """The run, its world and four tasks."""
    run, = common.open_runs([smoke], torch.device("cpu"))
    world = hjepa.build_world(run.config)
    tasks = hjepa.make_tasks(world, 4, 5, hjepa.generator(run.config.test_seed, "tasks"))
    return run, world, tasks


# ---- common.py

def test_interval_covers_the_truth():
    """95 % intervals of a Bernoulli sample hold its true mean about 95 % of the time."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = common.interval(rng.random(100) < 0.7)
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_one_seed_is_the_plain_bootstrap():
    sample = np.random.default_rng(2).random(60) < 0.4
    assert np.allclose(common.interval(sample), hjepa.bootstrap(sample))
    assert np.allclose(common.interval(sample[None]), hjepa.bootstrap(sample))


def test_seeds_that_differ_widen_the_interval():
    def width(x):
        return np.subtract(*common.interval(x)[::-1])
    rng = np.random.default_rng(3)
    sample = rng.random((4, 100)) < np.array([0.2, 0.5, 0.6, 0.9])[:, None]
    assert width(sample) > 2 * width(sample.mean(0))                      # seeds matter
    assert width(np.tile(sample[0], (4, 1))) == pytest.approx(width(sample[0]))      # copies do not


def test_paired_interval_is_of_the_difference():
    rng = np.random.default_rng(4)
    hard = rng.normal(size=100)                                           # tasks differ a lot
    a, b = hard + 0.1 + 0.01 * rng.normal(size=100), hard
    gap, (low, high) = common.paired_interval(a, b)
    assert 0.09 < low < gap < high < 0.11
    assert common.paired_interval(np.stack([a, a]), b)[1] == pytest.approx([low, high])
    assert common.paired_interval(b, b) == (0, [0, 0])


def test_r2_interval_holds_the_r2():
    gen = torch.Generator().manual_seed(0)
    true = torch.randn(400, 3, generator=gen)
    guess = (true + 0.5 * torch.randn(400, 3, generator=gen)).double()
    once = representation.r2_draws(guess, true, np.full((1, 400), 1 / 400))[0]
    expected = 1 - (guess - true).square().sum(0) / (true - true.mean(0)).square().sum(0)
    assert once == pytest.approx(expected.mean().item(), abs=1e-6)


@pytest.mark.parametrize("flags, word", [
    (["--run", "nowhere"], "no checkpoint"), (["--tasks", "0"], "--tasks"), (["--task"], "--help"),
    (["--tasks", "1"], "--tasks"), (["--frames", "7"], "--frames"), (["--n", "9"], "--n")])
def test_mistakes_get_one_line(smoke, flags, word):
    name = "representation" if "--n" in flags else "planning"
    done = script(name, *([] if "--run" in flags else ["--run", smoke]), *flags)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1


def test_runs_that_cannot_be_pooled_are_refused(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    saved["config"].update(seed=1, force_limit=1.0)
    torch.save(saved, tmp_path / "last.pt")
    for second, word in ((smoke, "same seed"), (tmp_path, "force_limit")):
        with pytest.raises(hjepa.Refusal, match=word):
            common.open_runs([smoke, second], torch.device("cpu"))


# ---- planning.py

def test_rows_can_be_chosen(smoke, tmp_path):
    done = script("planning", "--run", smoke, "--tasks", 2, "--frames", 25, "--only", "macro open loop", "random",
                  "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "planning.json").read_text())
    assert [row["planner"] for row in content["rows"]] == ["zero", "random", "macro open loop"]
    assert content["pairs"] == []
    for frames, name in ((25, "both levels"), (50, "macro open loop")):
        done = script("planning", "--run", smoke, "--tasks", 2, "--frames", frames, "--only", name)
        assert done.returncode == 2 and "not tried" in done.stderr and done.stderr.count("\n") == 1


def test_hidden_forces_reach_the_goal(small):
    """Every goal can be reached, and none is near where zero force ends."""
    _, world, _ = small
    for steps in (5, 10, 15):
        tasks = hjepa.make_tasks(world, 20, steps, hjepa.generator(7, "tasks", steps))
        ends = [world.rollout(tasks["clip"][:, -1], f.unflatten(-1, (-1, 2)))[0][:, -5:]
                for f in (tasks["forces"], 0 * tasks["forces"])]
        assert torch.equal(ends[0], tasks["goal"])
        gap = (ends[1] - tasks["goal"])[:, -1, :, :2].norm(dim=-1).amax(-1)
        assert (gap > 0.2).all()


@pytest.mark.parametrize("name", planning.NAMES[2:])
def test_outcome_depends_on_the_task_alone(small, name):
    """Not on the tasks tried before, nor on those that are searched side by side with it."""
    run, world, tasks = small
    if name == "both levels":
        tasks = hjepa.make_tasks(world, 4, 7, hjepa.generator(run.config.test_seed, "tasks", 35))
    decode = planning.fit_decoder(run, world, "cpu", n=300)

    def errors(pick):
        with planning.metered(run.model) as meter:
            return planning.attempt(name, run, world, tasks, torch.tensor(pick), decode, meter)
    alone = torch.cat([errors([i]) for i in range(4)])
    again = torch.cat([errors([i]) for i in (3, 2, 1, 0)])
    assert torch.equal(alone, again.flip(0))
    if name in planning.SIMULATED:
        assert torch.equal(alone, errors([0, 1, 2, 3]))
        assert torch.equal(alone[[2, 0]], errors([2, 0]))


def test_a_row_is_the_row_of_the_plan_command(small):
    """At one macro-event, tasks and noise are those of `hjepa.py plan`."""
    run, world, tasks = small
    errors, *_ = hjepa.try_tasks("short replanned", run.model, world, run.config, tasks,
                                 run.config.test_seed, torch.device("cpu"), "fp32")
    assert torch.equal(errors, torch.cat([
        planning.attempt("short replanned", run, world, tasks, torch.tensor([i]))
        for i in range(4)]))


def test_decoder_is_the_ridge_probe(small):
    """Fitted to embeddings, strength chosen on predictions, never on test worlds."""
    run, world, _ = small
    decode, data = planning.fit_decoder(run, world, "cpu", n=300), []
    for seed, n, name in ((run.config.seed, 1200, "t1"), (run.config.validation_seed, 300, "p1")):
        states, forces, _ = hjepa.sequences(world, run.config, n, seed, "decoder", "cpu")
        z = hjepa.latents(run.model, world.observe(states), forces)[name]
        data.append((z, states[:, -1, -1, :, :2].flatten(1)))
    _, guess = hjepa.ridge(*data, data[1])
    assert torch.allclose(decode(data[1][0]), guess.float(), atol=1e-4)


def test_planning_report(reports):
    report = reports["planning"]
    assert HEAD < set(report) and report["seeds"] == [0, 1] and report["n"] == 5
    rows = {(row["planner"], row["frames"]): row for row in report["rows"]}
    assert {name for name, _ in rows} == set(planning.NAMES) and len(planning.NAMES) == 11
    assert [sum(frames == f for _, frames in rows) for f in (25, 50, 75)] == [10, 8, 8]
    for (name, frames), row in rows.items():
        errors, runs = np.array(row["errors"]), 1 if name in planning.PLAIN else 2
        assert errors.shape == (runs, 5, 3)
        assert row["success"] == pytest.approx((errors.max(-1) < 0.1).mean())
        assert row["error"] == pytest.approx(errors.mean(), rel=1e-4)
        zero = np.mean(rows["zero", frames]["errors"])
        assert row["skill"] == pytest.approx(1 - errors.mean() / zero, abs=1e-4)
        for key in ("success", "strict", "mean_body", "error", "skill"):
            low, high = row[key + "_ci"]
            assert low - 1e-6 <= row[key] <= high + 1e-6
        assert row["contact"]["n"] + row["no contact"]["n"] == row["n"] == 5
        assert row["seconds"] > 0


def test_predictor_calls_are_counted(reports):
    calls = {(row["planner"], row["frames"]): row["predictor_calls"]
             for row in reports["planning"]["rows"]}
    assert calls["zero", 25] == calls["random", 25] == 0
    assert calls["macro open loop", 25] == BUDGET and calls["short open loop", 25] == 5 * BUDGET
    for frames, left in ((25, 15), (50, 55), (75, 120)):                  # 5 + 4 + ... + 1 clips
        for name in ("short replanned", "oracle", "simulator + latent cost",
                     "model + decoded cost"):
            simulated = name in ("oracle", "simulator + latent cost")
            assert calls[name, frames] == left * (SIMULATED if simulated else BUDGET)
    assert calls["both levels", 50] == (2 + 5 + 4 + 3 + 2 + 15) * BUDGET    # jumps, short + jump


def test_manifest_recomputes(reports):
    """From the file alone, 6 digits: start and hidden forces lead to the goal."""
    for part in reports["planning"]["manifest"]:
        start, goal, forces = (torch.tensor(part[k]) for k in ("start", "goal", "forces"))
        clips = part["frames"] // 5
        states, _ = hjepa.World().rollout(start.view(-1, 3, 4), forces.view(-1, clips, 3, 2))
        assert len(part["contact"]) == len(start) == 5
        assert (states[:, -1].flatten(1) - goal).abs().median() < 1e-3    # hits magnify rounding


# ---- representation.py

def test_network_probe_reads_what_a_linear_one_cannot_and_is_repeatable():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=gen)
    y = torch.stack([x[:, 0] * x[:, 1], 5 * x[:, 2] + 100], 1)
    parts = [(x[i::3], y[i::3]) for i in range(3)]
    linear, _ = hjepa.ridge(*parts)
    assert linear[0] < 0.1
    guess, again = (representation.network_probe(
        parts[0], parts[2][0], 400, torch.Generator().manual_seed(7), torch.device("cpu"), width=64)
        for _ in range(2))
    assert torch.equal(guess, again)
    error = (guess - parts[2][1]).square().mean(0) / parts[2][1].var(0)
    assert (error < 0.05).all()


def test_representation_report(reports):
    report = reports["representation"]
    assert HEAD < set(report) and report["n"] == 256 and "1,000" in report["intervals"]
    r2 = {(row["source"], row["target"]): row for row in report["rows"]}
    for row in report["rows"]:
        low, high = row["r2_ci"]
        assert low < row["r2"] < high or row["r2"] > 0.9999
        assert row["r2"] == pytest.approx(np.mean(row["r2_runs"]), abs=1e-5)
    for source in ("context shallow", "context deep", "untrained shallow", "untrained deep",
                   "raw clip", "shuffled labels"):
        for target in (*representation.NOW, *representation.FUTURE):
            assert (source, target) in r2
    assert r2["raw clip", "position"]["r2"] > 0.999 > 0.2 > r2["raw clip", "kinetic energy"]["r2"]
    assert max(r2["shuffled labels", t]["r2"] for t in representation.NOW) < 0.2
    told, untold = (r2[s, "position +25"]["r2"] for s in ("raw clip + forces", "raw clip"))
    assert told > untold
    for source in representation.READ_BY_NETWORK:
        assert all((f"{source}, network", target) in r2 for target in representation.NOW)
        assert r2[f"{source}, network", "position"]["r2"] > 0.3
    sets = [row["set"] for row in report["gauges"]]
    assert len(sets) == 14 and len(set(sets)) == 7                        # of two runs
    for row in report["gauges"]:
        assert len(row["std"]) == len(row["spectrum"]) == len(row["within"]) == row["dimensions"]
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
