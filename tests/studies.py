"""What the tests of the studies share: a perfect model, and a study run as a user runs it."""
import json

import pytest
import torch

from conftest import here
from lib import cli, readouts, stats
import hjepa

CONFIG = hjepa.Config()
WORLD = hjepa.build_world(CONFIG)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Fewer resamples and fewer worlds behind a probe, in all tests of a module that imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "DRAWS", 400)
        patch.setattr(readouts, "FEWEST", 128)
        yield


class Perfect:
    """A model: its embedding is the state after the clip, its predictors are the simulator."""

    def context(self, clip):
        scale = WORLD.observe(torch.eye(4)[:, None]).sum(0)
        state = clip[:, -1].unflatten(-1, (-1, 4)) / scale
        return state.flatten(1), state.flatten(1)

    target = context

    def rollout(self, z, forces):
        state = z.unflatten(-1, (-1, 4))
        states, _ = WORLD.rollout(state, forces, CONFIG.clip_frames)
        return states[:, CONFIG.clip_frames - 1::CONFIG.clip_frames].flatten(2)

    def jump(self, z, forces):
        return self.rollout(z, forces)[:, -1]


PERFECT = cli.Run(Perfect(), CONFIG, 0)
PERFECT_1 = cli.Run(Perfect(), hjepa.Config(seed=1), 0)


def run_study(name, run, out, n, *flags):
    """`python figures/NAME.py` -> its JSON, after a look at what every study must write."""
    done = here(f"figures/{name}.py", "--run", run, "--out", out, "--n", n, "--device", "cpu",
                *flags)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((out / f"{name}.json").read_text())
    assert content["command"].startswith(f"python figures/{name}.py --run")
    assert content["n"] == n and content["seeds"] == [0] and content["torch"] == torch.__version__
    assert content["precision"] == "fp32"
    assert (out / f"{name}.json").stat().st_size < 30_000
    return content


def check_intervals(row, *names):
    """Each figure lies within its interval, up to some jitter; null comes in pairs."""
    for name in names:
        value, ci = row[name], row[name + "_ci"]
        assert (value is None) == (ci is None), (name, row)
        if value is not None:
            low, high = ci
            slack = 1e-6 + 0.5 * (high - low)
            assert low - slack <= value <= high + slack, (name, row)
