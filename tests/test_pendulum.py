"""figures/pendulum.py: its clips are gymnasium's, and the whole of it runs, small."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, here

import hjepa

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: "
                                "figures/requirements-gym.txt")
import pendulum                                                           # noqa: E402

SMALL = ("--episodes", 6, "--epochs", 1, "--tries", 2)


def test_a_clip_obeys_the_equation_of_motion():
    """speed' = 3 g / (2 l) sin(angle) + 3 / (m l^2) torque, as gymnasium's documentation says."""
    env = gymnasium.make(pendulum.ID).unwrapped
    pendulum.put(env, 0.5, -1.0)
    seen, reward = pendulum.film(env, 1.5)
    angle, speed, total = 0.5, -1.0, 0.0
    for frame in seen:
        total -= angle ** 2 + 0.1 * speed ** 2 + 0.001 * 1.5 ** 2
        speed += 0.05 * (15 * np.sin(angle) + 3 * 1.5)
        angle += 0.05 * speed
        assert frame == pytest.approx([np.cos(angle), np.sin(angle), speed], abs=1e-4)
    assert reward == pytest.approx(total, abs=1e-3)


def test_an_action_acts_while_the_next_clip_is_filmed():
    observations, actions = pendulum.record(2, seed=3)
    assert observations.shape == (10, pendulum.CLIPS, pendulum.FRAMES, 3)
    assert actions.shape == (10, pendulum.CLIPS - 1, 1)
    env = gymnasium.make(pendulum.ID).unwrapped
    for k in range(pendulum.CLIPS - 1):
        cos, sin, speed = observations[0, k, -1]
        pendulum.put(env, np.arctan2(sin, cos), speed)
        seen, _ = pendulum.film(env, actions[0, k, 0])
        assert seen == pytest.approx(observations[0, k + 1], abs=1e-3)
    again, _ = pendulum.record(2, seed=3)
    other, _ = pendulum.record(2, seed=4)
    assert np.array_equal(again, observations) and not np.array_equal(other, observations)


def test_who_stands_is_upright_and_who_swings_is_not():
    angles = np.zeros((3, pendulum.STEPS))
    angles[1, -1] = 0.3                         # left it in the last step
    angles[2, -30:] = -0.1                      # leans a little
    row = pendulum.row_of("x", angles, np.array([-1.0, -2.0, -3.0]))
    assert row["upright"] == pytest.approx(2 / 3) and row["reward"] == -2


def test_the_cost_is_the_distance_summed_over_clips():
    observations, actions = (torch.from_numpy(x) for x in pendulum.record(2, seed=0))
    data = {"observations": observations, "actions": actions, "pairs": False, "name": "x"}
    config = hjepa.Config(**hjepa.own_settings(data, {**pendulum.MODEL, "batch": 8}))
    model = hjepa.build_model(config).eval()
    model.scale.fit(observations, actions)
    clips, goal = observations[:2, 0], observations[3:5, 0]
    plans = torch.randn(2, 4, 3, 1, generator=hjepa.generator(0, "test plans"))
    with torch.no_grad():
        found = pendulum.cost_to_go(model, clips, goal)(plans)
        z, _ = model.context(model.scale.observe(clips[1:]))
        t1, _ = model.target(model.scale.observe(goal[1:]))
        total = 0
        for k in range(3):
            z = model.short(z, model.scale.forces(plans[1, 2:3, k]))
            total = total + (z - t1).norm()
    assert found.shape == (2, 4)
    assert found[1, 2].item() == pytest.approx(total.item(), rel=1e-4)


def test_the_whole_of_it_small_and_again_without_a_new_training(tmp_path):
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "figures/pendulum.py", *map(str, SMALL), "--run", run],
                          cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads((run / "figures" / "pendulum.json").read_text())
    assert [row["planner"] for row in content["rows"]] == list(pendulum.PLANNERS)
    assert (run / "figures" / "pendulum.png").stat().st_size > 10_000
    weights = (run / "last.pt").read_bytes()
    done = here("figures/pendulum.py", *SMALL, "--run", run)
    assert done.returncode == 0 and (run / "last.pt").read_bytes() == weights
    again = json.loads((run / "figures" / "pendulum.json").read_text())
    assert again["rows"] == content["rows"]


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "data.npz").write_text("no archive")
    for flags, said in ((("--tries", 0), "--tries is 0"), (("--run", tmp_path), "data.npz")):
        done = here("figures/pendulum.py", *SMALL, *flags)
        assert done.returncode == 2 and said in done.stderr
        assert len(done.stderr.splitlines()) == 1
