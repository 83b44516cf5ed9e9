"""figures/gym_env.py: gymnasium's checker passes, and an episode is what the world says it is."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import hjepa

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: "
                                "figures/requirements-gym.txt")
import gym_env                                                            # noqa: E402

AT_REST = [[0.5, 0.5, 0, 0], [-0.5, 0.5, 0, 0], [0, -0.5, 0, 0]]


def make(**settings):
    return gymnasium.make(gym_env.ID, **settings)


def test_the_checker_passes_without_a_warning_as_a_process():
    done = subprocess.run([sys.executable, "-W", "error", "figures/gym_env.py"], cwd=ROOT, text=True,
                          capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passes gymnasium's check_env" in done.stdout


def episode(env, seed):
    """Random actions until the end -> observations, rewards."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    seen, rewards, over = [observation], [], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(observation)
        rewards.append(reward)
        over = terminated or truncated
    return np.array(seen), rewards


def test_an_episode_depends_on_its_seed_alone():
    env = make()
    first, rewards = episode(env, 3)
    episode(env, 4)
    again, same_rewards = episode(env, 3)
    other, _ = episode(make(), 4)
    assert np.array_equal(first, again) and rewards == same_rewards
    assert not np.array_equal(first[0], other[0])
    env.reset(seed=3)
    assert not np.array_equal(env.reset()[0], first[0])                   # the next draw of that seed


def test_observation_and_reward_by_hand():
    env = make()
    env.reset(seed=1)
    before = env.unwrapped.state
    goal = env.unwrapped.goal[0]
    action = np.array([1, -1, 0.5, 0, 7, -0.25], np.float32)              # 7 is cut to 1
    observation, reward, terminated, truncated, info = env.step(action)

    force = 2.0 * torch.tensor([[[1, -1, 0.5, 0, 1, -0.25]]])
    states, _ = hjepa.World().rollout(before, force)
    expected = []
    for x, y, vx, vy in states[0, -1].tolist():
        expected += [x / 0.55, y / 0.55, 2 * vx, 2 * vy]
    for x, y, _, _ in goal.tolist():
        expected += [x / 0.55, y / 0.55]
    assert observation == pytest.approx(expected, abs=1e-5)
    assert torch.equal(env.unwrapped.clip, states)
    gaps = [np.hypot(a[0] - b[0], a[1] - b[1])
            for a, b in zip(states[0, -1].tolist(), goal.tolist())]
    assert info["distance"] == pytest.approx(gaps, abs=1e-5)
    assert reward == pytest.approx(-max(gaps), abs=1e-5)
    assert not terminated and not truncated


def test_who_stands_at_the_goal_is_done_and_who_does_not_runs_out_of_time():
    env = make(clips=4)
    env.reset(seed=0, options={"start": AT_REST, "goal": AT_REST})
    clip = env.unwrapped.clip
    assert clip.shape == (1, 5, 3, 4)
    assert torch.equal(clip, torch.tensor(AT_REST).expand_as(clip))
    still = np.zeros(6, np.float32)
    _, reward, terminated, truncated, _ = env.step(still)
    assert (reward, terminated, truncated) == (0, True, False)

    near = np.array(AT_REST)
    near[2, 0] = 0.11
    env.reset(options={"start": AT_REST, "goal": near})
    ends = [env.step(still)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


@pytest.mark.parametrize("which", ["start", "goal"])
def test_an_impossible_state_is_refused(which):
    overlapping = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, -0.5, 0, 0]]
    with pytest.raises(ValueError, match="overlap"):
        make().reset(options={which: overlapping})


def test_a_planner_of_hjepa_finds_what_it_needs():
    """CEM with the true simulator, replanned in the environment, brings all bodies to a near goal
    that a standstill misses."""
    env = make(clips=5)
    near = np.array(AT_REST) + [0.12, -0.12, 0, 0]
    env.reset(seed=0, options={"start": AT_REST, "goal": near})
    inner = env.unwrapped
    goal = hjepa.goal_clip(inner.world, inner.goal)
    plan = torch.zeros(1, 5, 6)
    terminated = truncated = False
    while not (terminated or truncated):
        cost = hjepa.simulated_cost(inner.world, inner.clip, goal, 5)
        plan, _ = hjepa.cem(cost, plan, torch.ones_like(plan), [torch.Generator().manual_seed(0)],
                            samples=40, iterations=4, low=-2.0, high=2.0)
        _, _, terminated, truncated, info = env.step(plan[0, 0].numpy() / 2)
        plan = plan[:, 1:]
    assert terminated and info["distance"].max() < hjepa.REACHED
