"""figures/latent.py: wrong futures, what zeta tells, plans, and the study itself."""
import json

import numpy as np
import pytest
import torch

from conftest import here, snapshot
from lib import (cli, latent_draw, latent_measure, latent_model, latent_plan, latent_training,
                 latent_world)
from studies import CONFIG, CPU, PERFECT, WORLD, quick                    # noqa: F401
import hjepa


# ---- measures

def test_wrong_futures_are_what_they_say():
    """The perfect model embeds the last state of a clip, so the kick can be read off."""
    drawn = latent_world.draw(WORLD, CONFIG, 32, "two", 0, "test", "cpu")
    found = latent_measure.futures(PERFECT, WORLD, drawn)
    assert list(found) == ["right", "twice", "other", "body", "world"]
    still = latent_world.future_of(WORLD, drawn.clip, drawn.forces, torch.zeros(32, 2))[:, -1]
    state = {name: t.unflatten(1, (3, 4)) for name, t in found.items()}
    assert torch.equal(state["world"][1:], state["right"][:-1])

    def median_of(name, body):
        change = (state[name][:, body, 2] - still[:, body, 2]) / drawn.push[:, 0]
        return change.median().item()
    assert median_of("right", 0) == pytest.approx(1, abs=1e-3)
    assert median_of("other", 0) == pytest.approx(-1, abs=1e-3)
    assert median_of("twice", 0) == pytest.approx(2, abs=1e-3)
    assert median_of("body", 0) == pytest.approx(0, abs=1e-3)
    assert median_of("body", 1) == pytest.approx(1, abs=1e-3)


def test_neighbours_guess_what_zeta_tells_and_nothing_else():
    gen = hjepa.generator(0, "zeta")
    push = latent_world.SIZE * latent_world.directions("ring", 800, gen)
    noise = torch.randn(800, 2, generator=gen)
    told = latent_measure.guess_from_neighbours(3 * push[:400], push[:400], 3 * push[400:])
    blind = latent_measure.guess_from_neighbours(noise[:400], push[:400], noise[400:])
    assert latent_measure.explained(told, push[400:]) > 0.97
    assert latent_measure.explained(blind, push[400:]) < 0.1
    sides = (push[:, :1] > 0).float()           # discrete: the mean of the half circle
    halves = latent_measure.guess_from_neighbours(sides[:400], push[:400], sides[400:])
    expected = push[:400][sides[:400, 0] == 1].mean(0).double()
    torch.testing.assert_close(halves[sides[400:, 0] == 1][0], expected)


def test_assignment_is_judged_by_what_zeta_stood_for_before():
    push = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    zeta = torch.tensor([[0.0], [0], [1], [1]])
    hits = latent_measure.assigned(zeta, push, torch.tensor([[0.0], [1], [1], [0]]),
                                   torch.tensor([[1.0, 0], [-1, 0], [1, 0], [1, 0]]))
    assert hits.tolist() == [True, True, False, True]


# ---- plans

def test_the_cost_is_the_mean_or_the_worst_over_zeta():
    """With the perfect model and two known kicks, against the simulator."""
    pushes = latent_world.possible_pushes("two")
    goals = hjepa.make_goals(WORLD, 2, 3, hjepa.generator(0, "goals"))
    clip, goal = goals["clip"], goals["goal"]

    def predict(p, forces):
        """The expected state, its velocity changed: a kick after the clip, which is simple."""
        kicked = [latent_world.kick(p.unflatten(1, (3, 4)), push).flatten(1) for push in pushes]
        return torch.stack(kicked, 1)
    z1, _ = PERFECT.model.context(WORLD.observe(clip))
    t1, _ = PERFECT.model.target(WORLD.observe(goal))
    plans = WORLD.random_forces(2 * 4, 3, hjepa.generator(0, "plans")).unflatten(0, (2, 4))
    literal = torch.empty(2, 4, 2)
    for i in range(2):
        for s in range(4):
            for m, push in enumerate(pushes):
                first, _ = WORLD.rollout(clip[i:i + 1, -1], plans[i, s:s + 1, :1])
                kicked = latent_world.kick(first[:, -1], push)
                last, _ = WORLD.rollout(kicked, plans[i, s:s + 1, 1:])
                literal[i, s, m] = (last[0, -1] - goal[i, -1]).square().mean()
    for worst in (False, True):
        cost = latent_plan.cost_under_kicks(PERFECT.model, predict, z1, t1, worst)(plans)
        expected = literal.amax(-1) if worst else literal.mean(-1)
        torch.testing.assert_close(cost, expected, rtol=1e-3, atol=1e-5)


def test_a_plan_is_flown_under_each_kick():
    goals = hjepa.make_goals(WORLD, 2, 3, hjepa.generator(0, "goals"))
    pushes = latent_world.possible_pushes("ring", 4)
    errors = latent_plan.fly(WORLD, goals["clip"], goals["goal"], goals["forces"], pushes)
    assert errors.shape == (2, 4, 3)
    start = latent_world.kick(goals["clip"][1:, -1], pushes[2:3])
    states, _ = WORLD.rollout(start, goals["forces"][1:])
    torch.testing.assert_close(errors[1, 2], hjepa.distance(states[0, -1], goals["goal"][1, -1]))


# ---- the study

@pytest.fixture(scope="module")
def study(smoke, tmp_path_factory):
    """The study as a user runs it, small -> its folder."""
    out = tmp_path_factory.mktemp("latent")
    with small() as flags:
        done = here("figures/latent.py", "--run", smoke, *flags, "--trainings", out / "trained",
                    "--out", out)
    assert done.returncode == 0, done.stderr
    return out


class small:
    """with small() as flags: fewer steps and kicks, and the flags of a study of seconds."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for module, name, value in ((latent_model, "SEARCH", 2), (latent_model, "DESCENT", 2),
                                    (latent_model, "WIDTH", 24),
                                    (latent_measure, "GRID", 3), (latent_measure, "MAP_WORLDS", 2),
                                    (latent_measure, "LINE", 5), (latent_plan, "FLOWN", 2),
                                    (latent_plan, "COUNT", {"two": 2, "ring": 4})):
            self.patch.setattr(module, name, value)
        return ["--sequences", 64, "--epochs", 2, "--n", 24, "--goals", 2, "--device", "cpu"]

    def __exit__(self, *error):
        self.patch.undo()


def test_the_study_writes_what_it_promises(study):
    content = json.loads((study / "latent.json").read_text())
    assert (study / "latent.png").read_bytes()[:4] == b"\x89PNG"
    assert (study / "latent.json").stat().st_size < 30_000
    names = [variant.name for variant in latent_model.VARIANTS]
    assert [(row["kicks"], row["name"]) for row in content["rows"]] == [
        (kind, name) for kind in ("two", "ring") for name in names]
    for row in content["rows"]:
        assert row["error"] > 0
        if row["family"] == "told":
            continue
        assert row["energy"] >= row["error"] - 1e-6
        low, high = row["over_told_ci"]
        assert low <= row["over_told"] * 1.01 and row["over_told"] <= high * 1.01
        assert all(row[f"energy_{name}"] >= 0 for name in latent_measure.OTHERS)
        assert 0 <= row["apart_twice"] <= 1 and 0 <= row["apart_body"] <= 1
        assert ("assigned" in row) == (row["kicks"] == "two" and row["name"] in (
            "K = 2", "K = 4", "K = 16"))
        if "amortised" in row:                  # what is minimised is never above it
            assert row["energy"] <= row["amortised"] + 1e-6
    assert [row["planner"] for row in content["plans"]] == 2 * list(latent_plan.PLANNERS)
    arrays = np.load(study / "latent.npz")
    assert arrays["map/ring/d = 8, free"].shape == (3, 3) and arrays["line/kick"].shape == (5,)
    assert arrays["zeta/two/K = 2"].shape == (24, 1)


def test_the_first_row_is_the_told_one_s_error(study, smoke):
    content = json.loads((study / "latent.json").read_text())
    run, = cli.open_runs([smoke], CPU)
    with small():
        saved = latent_training.read(study / "trained" / "two.pt")
        networks = latent_model.build(saved["settings"])
    networks.load_state_dict(saved["model"])
    drawn = latent_world.draw(WORLD, run.config, 24, "two", run.config.test_seed, "latent", "cpu")
    p = run.model.rollout(run.model.context(WORLD.observe(drawn.clip))[0], drawn.forces[:, None])
    t = run.model.target(WORLD.observe(drawn.future))[0]
    zeta = drawn.push / latent_world.SIZE
    predicted = networks["told"](p[:, 0], drawn.forces, zeta)
    assert content["rows"][0]["error"] == pytest.approx(
        (predicted - t).square().mean().item(), rel=1e-4)


def test_an_interrupted_study_is_the_one_never_stopped(study, smoke, tmp_path, monkeypatch):
    real = hjepa.train_epoch

    def train_epoch(loss, model, optimizer, data, config, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(loss, model, optimizer, data, config, epoch, *rest)
    with small() as flags:
        words = ["--run", smoke, *flags, "--trainings", tmp_path / "trained", "--out", tmp_path]
        with monkeypatch.context() as patch:
            patch.setattr(hjepa, "train_epoch", train_epoch)
            assert here("figures/latent.py", *words).returncode == 130
        with monkeypatch.context() as patch:
            patch.setattr(latent_plan, "try_planner", interrupt)
            assert here("figures/latent.py", *words).returncode == 130
        assert (tmp_path / "latent.part.json").exists()
        with monkeypatch.context() as patch:    # the picture has been seen above
            patch.setattr(latent_draw, "draw", lambda *content: hjepa.new_figure(1, 1, 2, 2)[0])
            assert here("figures/latent.py", *words).returncode == 0
    assert not (tmp_path / "latent.part.json").exists()
    mine, other = (json.loads((folder / "latent.json").read_text()) for folder in (tmp_path, study))
    assert {**mine, "command": ""} == {**other, "command": ""}


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_files_of_another_training_are_refused_and_kept(study, smoke, tmp_path):
    before = snapshot(study)
    with small() as flags:
        done = here("figures/latent.py", "--run", smoke, *flags, "--epochs", 3, "--trainings",
                    study / "trained", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--epochs" in done.stderr
    assert snapshot(study) == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_what_are_no_predictors_is_refused_and_kept(smoke, tmp_path, content):
    (tmp_path / "two.pt").write_bytes(content)
    with small() as flags:
        done = here("figures/latent.py", "--run", smoke, *flags, "--trainings", tmp_path, "--out",
                    tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "two.pt" in done.stderr
    assert (tmp_path / "two.pt").read_bytes() == content


@pytest.mark.parametrize("flags, word", [
    (["--n", 0], "--n"), (["--sequences", 1], "sequences"), (["--epochs", 0], "--epochs"),
    (["--goals", 0], "--goals"), (["--trainings", ""], "empty")])
def test_mistakes_get_one_line(smoke, tmp_path, flags, word):
    done = here("figures/latent.py", "--run", smoke, *flags, "--out", tmp_path)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_world_of_one_body_is_refused(tmp_path):
    """There is no other body to kick."""
    config = hjepa.Config(masses=(1.0,), sequences=2, batch=2, width=8, heads=2, latent=8,
                          short_width=8, macro_width=8, guess_width=0, guess_weight=0.0)
    with pytest.raises(hjepa.Refusal, match="two bodies"):
        latent_world.check(config)
