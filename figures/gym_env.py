"""The world of hjepa.py as a gymnasium environment: push three discs to three places.

    pip install --no-deps -r figures/requirements-gym.txt
    python figures/gym_env.py                      # gymnasium's own checker, and the time it takes

In Python, with figures/ on the path (here from the repository's root):

    import sys
    sys.path.append("figures")
    import gymnasium
    import gym_env                                 # registers the id
    env = gymnasium.make("hjepa/ThreeBodies-v0")
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())

action       (A,) a force for each body and axis, -1 to 1 in force limits; it acts for a clip
observation  (F + A,) what hjepa.World.observe shows of the last frame, then x, y of each body's
             goal on the same scale
reward       minus the distance of the farthest body from its goal, in half box widths
terminated   all bodies are within hjepa.REACHED of their goals at the end of a clip
truncated    after `clips` steps
info         distance (bodies,): how far each body is from its goal

Start and goal are places drawn at random, and the goal is at rest. That a goal can be reached in
time is likely, not certain. reset(options={"start": state, "goal": state}), each (bodies, 4), sets
them. What a planner of hjepa.py needs is in env.unwrapped: world, clip, the last frames up to now
(1, T, bodies, 4), and goal (1, bodies, 4), which hjepa.goal_clip turns into a clip.
"""
import time

import gymnasium
import lib  # noqa: F401 (makes hjepa importable)
import hjepa
import numpy as np
import torch

ID = "hjepa/ThreeBodies-v0"


class ThreeBodies(gymnasium.Env):
    """See above. config: the world's settings.  clips: steps of an episode."""

    metadata = {"render_modes": []}

    def __init__(self, config=None, clips=15, render_mode=None):
        self.config = config or hjepa.Config()
        self.world = hjepa.build_world(self.config)
        self.clips = clips
        self.render_mode = render_mode
        numbers = 2 * len(self.config.masses)
        self.action_space = gymnasium.spaces.Box(-1, 1, (numbers,), np.float32)
        fastest = self._fastest()
        high = torch.tensor([1, 1, fastest, fastest]).expand(len(self.config.masses), 4)
        high = self._show(high[None], high[None])
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        drawn = torch.Generator().manual_seed(int(self.np_random.integers(2**53)))
        start = self.world.reset(1, drawn, self.config.start_speed)
        goal = self.world.reset(1, drawn, speed=0.0)
        options = options or {}
        self.state = self._own(options.get("start"), start)
        self.goal = self._own(options.get("goal"), goal)
        self.frames = None
        self.steps = 0
        return self._observation(), {"distance": self._distance()}

    def step(self, action):
        force = torch.as_tensor(action, dtype=torch.float32).reshape(1, 1, -1)
        force = self.config.force_limit * force.clamp(-1, 1)
        self.frames, _ = self.world.rollout(self.state, force, self.config.clip_frames)
        self.state = self.frames[:, -1]
        self.steps += 1
        distance = self._distance()
        farthest = float(distance.max())
        terminated = farthest < hjepa.REACHED
        truncated = self.steps >= self.clips
        return self._observation(), -farthest, terminated, truncated, {"distance": distance}

    @property
    def clip(self):
        """The last frames up to now (1, T, bodies, 4). Before the first step no force acted."""
        if self.frames is None:
            return hjepa.goal_clip(self.world, self.state, self.config.clip_frames)
        return self.frames

    def _own(self, state, drawn):
        """A state of options, or the drawn one where there is none. ValueError if it cannot be."""
        if state is None:
            return drawn
        state = torch.as_tensor(state, dtype=torch.float32).reshape(drawn.shape)
        self.world.check(state)
        return state

    def _fastest(self):
        """-> a speed that no body reaches in an episode: it would need the energy of a start at ten
        standard deviations, then that of all forces along the way."""
        masses = np.array(self.config.masses)
        seconds = self.clips * self.config.clip_frames * self.config.dt
        start = 10 * self.config.start_speed * np.sqrt(2 * masses.sum())
        pushed = self.config.force_limit * np.sqrt(2 * (1 / masses).sum()) * seconds
        return float((start + pushed) / np.sqrt(masses.min()))

    def _show(self, state, goal):
        places = self.world.observe(goal).unflatten(-1, (-1, 4))[..., :2].flatten(1)
        return torch.cat([self.world.observe(state), places], 1)[0].numpy()

    def _observation(self):
        return self._show(self.state, self.goal)

    def _distance(self):
        return hjepa.distance(self.state, self.goal)[0].numpy()


gymnasium.register(ID, entry_point=ThreeBodies)


def main():
    """Gymnasium's own checker, then what a reset and a step cost."""
    from gymnasium.utils.env_checker import check_env
    env = gymnasium.make(ID)
    check_env(env.unwrapped)
    print(f"{ID} passes gymnasium's check_env")
    for name, act in (("reset", env.reset), ("step", lambda: env.step(env.action_space.sample()))):
        seconds = []
        for i in range(200):
            if i % 10 == 0:
                env.reset(seed=i)
            start = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - start)
        print(f"a {name} takes {1000 * sum(seconds) / len(seconds):.2f} ms")


if __name__ == "__main__":
    main()
