"""Training: resuming, repeating and measuring change no bit; a NaN stops it and harms nothing."""
import dataclasses
import json
import math

import pytest
import torch

import hjepa

TINY = hjepa.Config(
    sequences=256, epochs=4, batch=64, latent=32, width=16, depth=2, short_width=32, macro_width=32,
    samples=10, iterations=2, elites=3, measure_every=0, measure_tasks=2, device="cpu",
    precision="fp32", warmup=4)


def change(**settings):
    return dataclasses.replace(TINY, **settings)


def saved(run):
    """The checkpoint, read as anyone may: nothing in it is executed."""
    return torch.load(run / "last.pt", map_location="cpu", weights_only=True)


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same(a, b):
    """Equal to the last bit, through dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def stop_before(monkeypatch, epoch, error=KeyboardInterrupt):
    """The next `train` stops when it begins this epoch (0 is the first)."""
    real = hjepa.train_epoch

    def train_epoch(model, optimizer, data, config, now, *rest):
        if now == epoch:
            raise error
        return real(model, optimizer, data, config, now, *rest)
    monkeypatch.setattr(hjepa, "train_epoch", train_epoch)


@pytest.mark.parametrize("settings", [{}, {"measure_every": 2, "precision": "bf16"},
                                      {"shared": True, "symmetries": False}])
def test_resumed_is_bitwise_the_unbroken_run(tmp_path, monkeypatch, settings):
    config = change(**settings)
    unbroken = hjepa.train(config, tmp_path / "a")
    with monkeypatch.context() as patch:
        stop_before(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            hjepa.train(config, tmp_path / "b")
    assert saved(tmp_path / "b")["epoch"] == 2
    torch.manual_seed(123)                                                # plays no part
    resumed = hjepa.train(config, tmp_path / "b")
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert a["epoch"] == b["epoch"] == 4
    assert same(a["model"], b["model"]) and same(a["optimizer"], b["optimizer"])
    assert untimed(a["history"]) == untimed(b["history"]) == untimed(unbroken) == untimed(resumed)
    log = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert log == b["history"]


def test_the_same_command_gives_the_same_bits_and_another_seed_others(tmp_path):
    config = change(epochs=2)
    for name, c in (("a", config), ("b", config), ("c", change(epochs=2, seed=1))):
        hjepa.train(c, tmp_path / name)
    a, b, c = (saved(tmp_path / name) for name in "abc")
    assert same(a["model"], b["model"]) and same(a["optimizer"], b["optimizer"])
    assert not same(a["model"], c["model"])


def test_every_epoch_has_its_own_order(tmp_path, monkeypatch):
    real, seen = hjepa.objective, []

    def objective(model, obs, *rest):
        seen.append(obs[0].abs().sum().item())
        return real(model, obs, *rest)
    monkeypatch.setattr(hjepa, "objective", objective)
    hjepa.train(change(epochs=2), tmp_path)
    assert len(seen) == len(set(seen)) == 8                               # 2 epochs of 4 steps


def test_measuring_does_not_change_training(tmp_path):
    runs = [change(epochs=2), change(epochs=2, measure_every=1),
            change(epochs=2, measure_every=1, measure_tasks=3, samples=12)]
    for i, config in enumerate(runs):
        history = hjepa.train(config, tmp_path / str(i))
        assert ("closed" in history[0]) == (config.measure_every > 0)
    never, *others = (saved(tmp_path / str(i)) for i in range(3))
    for other in others:
        assert same(never["model"], other["model"])
        assert same(never["optimizer"], other["optimizer"])


def test_training_leaves_global_randomness_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    hjepa.train(change(epochs=1, measure_every=1), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_training_lowers_the_objective_and_moves_every_weight(tmp_path):
    history = hjepa.train(TINY, tmp_path)
    assert history[-1]["composite"] < history[0]["composite"] < history[0]["first_step"]
    start, end = hjepa.build(TINY).state_dict(), saved(tmp_path)["model"]
    assert all(not torch.equal(start[name], end[name]) for name in start)


def test_checkpoint_holds_the_model_and_loads_without_execution(tmp_path):
    hjepa.train(change(epochs=1), tmp_path)
    content = saved(tmp_path)
    assert {"format", "config", "model", "optimizer", "epoch", "history"} <= set(content)
    assert content["config"] == dataclasses.asdict(change(epochs=1))
    model, config = hjepa.load(tmp_path)
    assert config == change(epochs=1) and not model.training
    assert same(dict(model.state_dict()), dict(content["model"]))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = hjepa.train(change(epochs=1), tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    assert hjepa.train(change(epochs=1), tmp_path) == first
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"} == files


@pytest.mark.parametrize("term, bad", [("pred2", math.nan), ("cov_t1", math.inf)])
def test_a_number_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, term, bad):
    """In epoch 2, step 3 of 4 (call 7): the refusal says so, epoch 1's checkpoint stays, and the
    run can go on from it as if nothing had happened."""
    real, calls, kept = hjepa.objective, [], []

    def objective(*args):
        total, terms = real(*args)
        calls.append(1)
        if len(calls) == 5:
            kept.append((tmp_path / "a" / "last.pt").read_bytes())
        if len(calls) == 7:
            terms = {**terms, term: terms[term] * bad}
            total = total * bad
        return total, terms
    with monkeypatch.context() as patch:
        patch.setattr(hjepa, "objective", objective)
        with pytest.raises(hjepa.Refusal) as refusal:
            hjepa.train(TINY, tmp_path / "a")
    for word in (term, str(bad), "epoch 2", "step 3"):
        assert word in str(refusal.value)
    assert (tmp_path / "a" / "last.pt").read_bytes() == kept[0]
    assert not list((tmp_path / "a").glob("*.part*"))
    hjepa.train(TINY, tmp_path / "a")
    hjepa.train(TINY, tmp_path / "b")
    assert same(saved(tmp_path / "a")["model"], saved(tmp_path / "b")["model"])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.json"
    hjepa.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        hjepa.write_json(path, {"a": math.nan})
    with pytest.raises(RuntimeError), hjepa.atomic(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    with open(path) as reader:               # a reader keeps the old file: it is replaced, whole
        hjepa.write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}


def test_one_writer_per_run(tmp_path):
    with hjepa.locked(tmp_path):
        with pytest.raises(hjepa.Refusal, match="process"):
            hjepa.train(TINY, tmp_path)
    with hjepa.locked(tmp_path):                                          # free again
        pass


def test_generators_depend_on_all_their_arguments_and_nothing_else():
    def draw(*args):
        return torch.rand(4, generator=hjepa.generator(*args)).tolist()
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert len({tuple(draw(*key)) for key in keys}) == 4
    torch.manual_seed(7)
    assert draw(*keys[0]) == draw(0, "a")


@pytest.mark.parametrize("total, warmup", [(1000, 100), (1000, 0), (1000, 500), (20, 10**9),
                                           (1, 5)])
def test_learning_rate_warms_up_then_falls_to_zero_as_a_cosine(total, warmup):
    rates = [hjepa.learning_rate(step, total, 0.5, warmup) for step in range(total)]
    top = min(warmup, total // 5)
    for step in range(top):
        assert rates[step] == pytest.approx(0.5 * (step + 1) / top)
    for step in range(top, total):
        progress = (step - top) / (total - top)
        assert rates[step] == pytest.approx(0.5 * math.cos(math.pi / 2 * progress) ** 2)
    assert max(rates) == 0.5 and min(rates) > 0
    assert hjepa.learning_rate(total, total, 0.5, warmup) == pytest.approx(0, abs=1e-12)
