"""Several processes train as one: the same gradients up to rounding, one writer, one voice.

AdamW's first moment after one step is 0.1 times the gradient, so checkpoints tell gradients.
Weights tell less: a gradient that is zero but for rounding (of the bias of attention's keys, say)
still moves its weight by a whole learning rate, in either direction.
"""
import dataclasses
import subprocess
import sys

import pytest
import torch

import hjepa
from conftest import ROOT, saved, stop_before

TINY = hjepa.Config(
    sequences=256, epochs=4, batch=64, latent=32, width=16, depth=2, short_width=32, macro_width=32,
    contact_share=0.0, guess_width=0, guess_weight=0.0, sim_weight=0.0, samples=10, iterations=2,
    elites=3, validate_every=0, validate_goals=2, device="cpu", precision="fp32", warmup=4)
ONE_STEP = dict(sequences=64, epochs=1)
SEVERAL = dict(sequences=192, epochs=3)                                   # 3 epochs of 3 steps


def two_processes(config, run):
    """Runs `torchrun --nproc_per_node=2 -- hjepa.py train` with these settings -> the process."""
    flags = ["--run", run]
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value != f.default:
            flags += ["--" + f.name.replace("_", "-"), value]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "--", "hjepa.py", "train", *flags]
    return subprocess.run(list(map(str, command)), cwd=ROOT, text=True, capture_output=True,
                          timeout=120)


def moments(run):
    """Checkpoint -> the first moment of each weight's gradient."""
    return [state["exp_avg"] for state in saved(run)["optimizer"]["state"].values()]


def gap(a, b):
    """Two lists of tensors -> their largest difference, each relative to its largest entry in the
    list: gradients of one layer are compared on the scale of the whole model."""
    scale = max(x.abs().max() for x in b)
    return (max((x - y).abs().max() for x, y in zip(a, b, strict=True)) / scale).item()


@pytest.mark.parametrize("settings, tolerance, terms", [
    ({}, 1e-5, 1e-5), ({"precision": "bf16", "map_weight": 0.0}, 0.1, 2e-2),
    ({"guess_width": 16, "guess_weight": 5.0, "sim_weight": 5.0, "contact_share": 0.5,
      "sequences": 80, "batch": 80}, 1e-5, 1e-5),
    ({"guess_width": 16}, 1e-5, 1e-5)])
def test_one_step_of_two_processes_has_the_gradients_of_one(tmp_path, settings, tolerance, terms):
    """In bf16 one process alone is 0.07 from its own float32 gradients. Goals of a first guess lie
    1 to 5 clips ahead in turn, ten samples a round: each half of a batch of 80 has whole rounds."""
    config = dataclasses.replace(TINY, **{**ONE_STEP, **settings})
    hjepa.train(config, tmp_path / "one")
    done = two_processes(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = moments(tmp_path / "one"), moments(tmp_path / "two")
    assert gap(two, one) < tolerance
    for a, b in zip(*(saved(tmp_path / name)["history"] for name in ("two", "one"))):
        for term in b.keys() - {"seconds", "std_min", "std_avg", "rank", "order_t1", "order_t2"}:
            assert a[term] == pytest.approx(b[term], rel=terms, abs=terms), term


def test_statistics_of_half_a_batch_would_be_noticed(tmp_path):
    """The guard itself: without `gather`, the gradient differs by a hundred tolerances."""
    config = dataclasses.replace(TINY, **ONE_STEP)
    world, cpu = hjepa.build_world(config), torch.device("cpu")
    states, forces, _ = hjepa.draw_sequences(world, config, 64, 0, "train", cpu)

    def gradients(parts):
        model = hjepa.build_model(config)
        for pair in zip(*(x.chunk(parts) for x in (world.observe(states), forces))):
            total, _ = hjepa.objective(model, *pair, config.loss_weights)
            (total / parts).backward()
        return [p.grad for p in model.parameters()]
    assert gap(gradients(2), gradients(1)) > 1e-3


def test_a_run_begun_by_one_process_goes_on_with_two(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, **SEVERAL)
    hjepa.train(config, tmp_path / "one")
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            hjepa.train(config, tmp_path / "two")
    done = two_processes(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 3 epochs done") == 1 and "2 x cpu" in done.stdout
    assert done.stdout.count("minutes to go") == 1
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3 and saved(tmp_path / "two")["epoch"] == 3
    one, two = (hjepa.load(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    assert gap(moments(tmp_path / "two"), moments(tmp_path / "one")) < 1e-3
    start = hjepa.build_model(config).state_dict()
    moved = torch.cat([(one[k] - start[k]).flatten() for k in one])
    apart = torch.cat([(one[k] - two[k]).flatten() for k in one])
    assert apart.abs().median() < 1e-6 and apart.abs().mean() < 1e-3 * moved.abs().mean()
    for a, b in zip(*(saved(tmp_path / name)["history"] for name in ("two", "one"))):
        assert a["composite"] == pytest.approx(b["composite"], rel=1e-4)
    assert hjepa.train(config, tmp_path / "two") == saved(tmp_path / "two")["history"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "3")
    code = hjepa.main(["train", "--batch", "256", "--run", str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1
    assert "3 processes" in err and "batch of 256" in err and not (tmp_path / "run").exists()


def test_rank_0_refuses_before_it_waits_for_the_others(tmp_path, monkeypatch, capsys):
    """A locked run, or one with other settings: nobody is left waiting in a group."""
    hjepa.train(dataclasses.replace(TINY, **ONE_STEP), tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hjepa.main(["train", "--run", str(tmp_path), "--device", "cpu"]) == 2
    assert "other settings" in capsys.readouterr().err
    with hjepa.locked(tmp_path):
        assert hjepa.main(["train", "--run", str(tmp_path), "--device", "cpu"]) == 2
    assert "is being trained" in capsys.readouterr().err
    assert (tmp_path / "last.pt").read_bytes() == before
