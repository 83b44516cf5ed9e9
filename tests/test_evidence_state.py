"""figures/state.py: the network that predicts states, trained on a run's own sequences."""
import json

import pytest
import torch

from conftest import here
from lib import cli, state_network
from studies import CPU, quick                                            # noqa: F401
import hjepa
import state


@pytest.fixture(scope="module")
def trained(smoke, tmp_path_factory):
    """Two epochs, as a user runs them -> the folder with state.pt, state.json."""
    out = tmp_path_factory.mktemp("state")
    done = here("figures/state.py", "--run", smoke, "--epochs", 2, "--to", out / "state.pt",
                "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def run(smoke):
    return cli.open_runs([smoke], CPU)[0]


def test_it_learns_and_says_how_much(trained, run):
    content = json.loads((trained / "state.json").read_text())
    first, last = content["rows"]
    assert last["error"] < first["error"] and last["position_error"] < first["position_error"]
    network = state_network.load(trained / "state.pt", run, CPU)
    assert content["parameters"] == sum(p.numel() for p in network.parameters())
    world = hjepa.build_world(run.config)
    again = state.position_error(network, world, run.config, CPU)
    assert again == pytest.approx(last["position_error"], rel=1e-3)


def test_an_interrupted_training_is_the_one_never_stopped(smoke, trained, tmp_path, monkeypatch):
    flags = ("--run", smoke, "--epochs", 2, "--to", tmp_path / "state.pt", "--out", tmp_path)
    real = hjepa.train_epoch

    def train_epoch(loss, network, optimizer, data, config, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(loss, network, optimizer, data, config, epoch, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(hjepa, "train_epoch", train_epoch)
        assert here("figures/state.py", *flags).returncode == 130
    assert len(state_network.read(tmp_path / "state.pt")["rows"]) == 1
    done = here("figures/state.py", *flags)
    assert done.returncode == 0 and "epoch 1:" not in done.stdout and "epoch 2:" in done.stdout
    mine, other = (state_network.read(folder / "state.pt") for folder in (tmp_path, trained))
    for name, weight in other["model"].items():
        assert torch.equal(mine["model"][name], weight)


def test_a_finished_training_is_not_begun_again(smoke, trained, tmp_path):
    before = (trained / "state.pt").read_bytes()
    done = here("figures/state.py", "--run", smoke, "--epochs", 2, "--to", trained / "state.pt",
                "--out", tmp_path)
    assert done.returncode == 0 and "epoch 1:" not in done.stdout
    assert (trained / "state.pt").read_bytes() == before


def test_the_loss_is_the_mean_squared_error_of_its_own_roll_out(run):
    network = state_network.build(state_network.settings_of(run.config))
    seen = torch.randn(3, 4, 12, generator=hjepa.generator(0, "seen"))
    forces = torch.randn(3, 3, 6, generator=hjepa.generator(0, "forces"))
    with torch.no_grad():
        now, squares = seen[:, 0], []
        for k in range(3):
            now = network.short(now, forces[:, k])
            squares.append((now - seen[:, k + 1]).square())
        assert torch.allclose(state_network.prediction_error(network, seen, forces),
                              torch.stack(squares).mean(), rtol=1e-5)


def test_states_undo_what_the_world_observes(run):
    world = hjepa.build_world(run.config)
    truth = torch.rand(5, 3, 4, generator=hjepa.generator(0, "states"))
    assert torch.allclose(state_network.states(world, world.observe(truth)), truth, atol=1e-6)


def test_the_cost_is_the_squared_distance_of_positions(run):
    world = hjepa.build_world(run.config)
    clips, forces, _ = hjepa.draw_sequences(world, run.config, 2, 0, "clips", CPU)
    meter = {"calls": 0}

    class Exact:
        """Predicts what the simulator does."""

        def rollout(self, seen, plans):
            states, _ = world.rollout(state_network.states(world, seen), plans)
            ends = states[:, run.config.clip_frames - 1::run.config.clip_frames]
            return world.observe(ends)
    cost = state_network.cost_of(Exact(), world, clips[:, 0], clips[:, -1], meter)
    plans = torch.stack([forces, torch.zeros_like(forces)], 1)            # (2, 2, K, A)
    costs = cost(plans)
    assert (costs[:, 0] < 1e-8).all() and (costs[:, 1] > 1e-4).all()
    assert meter["calls"] == 2 * 2 * forces.shape[1]


def test_another_training_s_file_is_refused_and_kept(smoke, trained, tmp_path):
    before = (trained / "state.pt").read_bytes()
    done = here("figures/state.py", "--run", smoke, "--epochs", 3, "--to", trained / "state.pt",
                "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--epochs" in done.stderr
    assert (trained / "state.pt").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_what_is_no_state_network_is_refused(smoke, tmp_path, content):
    path = tmp_path / "state.pt"
    path.write_bytes((smoke / "last.pt").read_bytes() if content is None else content)
    before = path.read_bytes()
    for command in (("figures/state.py", "--to", path),
                    ("figures/planning.py", "--state", path, "--goals", 2, "--frames", 25)):
        done = here(command[0], "--run", smoke, *command[1:], "--out", tmp_path / "out")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert str(path) in done.stderr
    assert path.read_bytes() == before


def test_an_unfinished_network_is_no_rival(run, trained, tmp_path):
    saved = state_network.read(trained / "state.pt")
    assert saved["optimizer"] is None           # of a finished one: the file is small
    saved["rows"] = saved["rows"][:1]
    torch.save(saved, tmp_path / "half.pt")
    with pytest.raises(hjepa.Refusal, match="1 epochs to go"):
        state_network.load(tmp_path / "half.pt", run, CPU)


def test_a_checkpoint_needs_a_place_for_the_network(smoke, tmp_path):
    done = here("figures/state.py", "--run", smoke / "last.pt", "--out", tmp_path)
    assert done.returncode == 2 and "--to" in done.stderr and done.stderr.count("\n") == 1
