"""Training: resuming, repeating and validating change no bit; a NaN stops it and harms nothing."""
import dataclasses
import json
import math

import pytest
import torch

import hjepa
from conftest import TINY, same, same_runs, saved, snapshot, stop_before, tiny, untimed

pytestmark = pytest.mark.usefixtures("few_gauges")
LONGER = dict(sequences=32, epochs=4, warmup=4)                           # 4 epochs of 4 steps
GUESSING = dict(guess_width=4, guess_weight=5.0, sim_weight=5.0, contact_share=0.5)


@pytest.mark.parametrize("settings", [{}, {"validate_every": 2, "precision": "bf16"},
                                      {"shared": True, "symmetries": False},
                                      {"validate_every": 2, **GUESSING},
                                      {"macro_blocks": 4, "guess_width": 4}])
def test_resumed_is_bitwise_the_unbroken_run(tmp_path, monkeypatch, settings):
    config = tiny(**LONGER, **settings)
    unbroken = hjepa.train(config, tmp_path / "a")
    with monkeypatch.context() as patch:
        stop_before(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            hjepa.train(config, tmp_path / "b")
    assert saved(tmp_path / "b")["epoch"] == 2
    torch.manual_seed(123)                                                # plays no part
    resumed = hjepa.train(config, tmp_path / "b")
    assert saved(tmp_path / "b")["epoch"] == 4
    assert same_runs(tmp_path / "a", tmp_path / "b")
    assert untimed(saved(tmp_path / "b")["history"]) == untimed(unbroken) == untimed(resumed)


def test_each_sample_brings_its_own_share_to_the_objective(tmp_path):
    """Contacts half of the time: what a share stands for can be told from the sequence."""
    config = tiny(sequences=64, epochs=1, symmetries=False, contact_share=0.5)
    world = hjepa.build_world(config)
    states, _, shares = hjepa.draw_training(world, config, torch.device("cpu"))
    assert len(shares.unique()) == 2
    known = {}
    for one, share in zip(world.observe(states), shares.tolist()):
        known[tuple(one[0, 0].tolist())] = share
    seen = []

    def objective(model, obs, forces, weights, shares):
        for one, share in zip(obs, shares.tolist()):
            seen.append((known[tuple(one[0, 0].tolist())], share))
        return hjepa.objective(model, obs, forces, weights, shares)
    hjepa.train(config, tmp_path, objective=objective)
    assert len(seen) == 64
    assert all(expected == share for expected, share in seen)


def test_a_first_guess_without_weight_stays_as_it_was_and_disturbs_nothing(whole, tmp_path):
    hjepa.train(tiny(guess_width=4), tmp_path)
    trained = saved(tmp_path)["model"]
    start = hjepa.build_model(tiny(guess_width=4)).state_dict()
    usual = saved(whole)["model"]
    for name, value in trained.items():
        expected = start[name] if name.startswith("guess.") else usual[name]
        assert torch.equal(value, expected), name


def test_the_same_command_gives_the_same_bits_and_another_seed_others(whole, tmp_path):
    hjepa.train(TINY, tmp_path / "again")
    hjepa.train(tiny(seed=1), tmp_path / "other")
    assert same_runs(whole, tmp_path / "again")
    assert not same(saved(whole)["model"], saved(tmp_path / "other")["model"])


def test_every_epoch_has_every_sequence_once_in_its_own_order(tmp_path):
    seen = []

    def objective(model, obs, *rest, **more):
        size = obs.double().abs().sum((1, 2, 3))                          # no symmetry changes it
        seen.extend(round(value, 6) for value in size.tolist())
        return hjepa.objective(model, obs, *rest, **more)
    hjepa.train(tiny(sequences=32), tmp_path, objective=objective)
    first = seen[:32]
    second = seen[32:]
    assert len(set(first)) == 32 and first != second and sorted(first) == sorted(second)


def test_another_objective_is_what_is_trained(whole, tmp_path):
    """What the studies rely on: the function that `train` is given, with the run's own weights."""
    given = []

    def half(model, obs, forces, weights, shares, **more):
        given.append(weights)
        total, terms = hjepa.objective(model, obs, forces, weights, shares, **more)
        return total / 2, terms
    config = tiny(pred_weight=3.0, map_weight=2.0)
    hjepa.train(config, tmp_path, objective=half)
    assert given[0] == config.loss_weights == {
        "pred": 3.0, "std": 25.0, "cov": 1.0, "map": 2.0, "sim": 0.0, "guess": 0.0}
    assert not same(saved(whole)["optimizer"], saved(tmp_path)["optimizer"])


def test_validating_does_not_change_training(whole, tmp_path):
    never = saved(whole)
    assert "goals_replanned" not in never["history"][0]
    for i, settings in enumerate([{}, {"validate_goals": 3, "samples": 12}]):
        history = hjepa.train(tiny(validate_every=1, **settings), tmp_path / str(i))
        for name in ("goals_replanned", "goals_macro", "decode_p1", "decode_p2"):
            assert name in history[0]
        other = saved(tmp_path / str(i))
        assert same(never["model"], other["model"])
        assert same(never["optimizer"], other["optimizer"])


def test_goals_are_tried_every_so_many_epochs_and_in_the_last(tmp_path):
    history = hjepa.train(tiny(epochs=5, validate_every=2), tmp_path)
    assert [row["epoch"] for row in history if "goals_replanned" in row] == [2, 4, 5]
    assert all({"std_min", "std_avg", "rank"} <= row.keys() for row in history)


def test_training_leaves_global_randomness_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    hjepa.train(tiny(epochs=1, validate_every=1), tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_training_lowers_the_objective_and_moves_every_weight(smoke):
    history = saved(smoke)["history"]
    assert history[-1]["composite"] < history[0]["composite"] < history[0]["first_step"]
    start = hjepa.build_model(hjepa.Config(**hjepa.PRESETS["smoke"])).state_dict()
    end = saved(smoke)["model"]
    assert start.keys() == end.keys()
    assert all(not torch.equal(start[name], end[name]) for name in start)


def test_a_row_has_the_mean_of_every_term(tmp_path):
    """And the composite of the very first step, with which the paper compares."""
    kept = []

    def objective(*args, **more):
        total, terms = hjepa.objective(*args, **more)
        kept.append({name: value.item() for name, value in terms.items()})
        return total, terms
    row, = hjepa.train(tiny(epochs=1, sequences=32), tmp_path, objective=objective)
    assert len(kept) == 4 and row["first_step"] == pytest.approx(kept[0]["composite"])
    for name in kept[0]:
        assert row[name] == pytest.approx(sum(step[name] for step in kept) / 4), name


def test_checkpoint_holds_the_model_and_loads_without_execution(whole):
    content = saved(whole)
    assert set(content) == {"format", "config", "model", "optimizer", "epoch", "precision",
                            "history", "device", "torch", "origin"}
    assert content["origin"] == {}
    assert content["config"] == dataclasses.asdict(TINY)
    model, config = hjepa.load(whole)
    assert config == TINY and not model.training
    assert same(dict(model.state_dict()), dict(content["model"]))


def test_a_finished_run_is_left_as_it_is(whole):
    before = snapshot(whole)
    assert hjepa.train(TINY, whole) == saved(whole)["history"]
    assert snapshot(whole) == before


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("term, bad", [("pred2", math.nan), ("cov_t1", math.inf)])
def test_a_number_that_is_not_finite_stops_the_run(whole, tmp_path, term, bad, step):
    """In epoch 2 of 2 steps: the refusal names the term and the epoch, epoch 1's checkpoint stays,
    and the run can go on from it as if nothing had happened."""
    calls = []
    kept = []

    def objective(*args, **more):
        total, terms = hjepa.objective(*args, **more)
        calls.append(1)
        if len(calls) == 2 + step:
            kept.append((tmp_path / "last.pt").read_bytes())
            terms = {**terms, term: terms[term] * bad}
            total = total * bad
        return total, terms
    with pytest.raises(hjepa.Refusal, match=f"^{term} is not finite in epoch 2: "):
        hjepa.train(TINY, tmp_path, objective=objective)
    assert (tmp_path / "last.pt").read_bytes() == kept[0]
    assert not list(tmp_path.glob("*.part*"))
    hjepa.train(TINY, tmp_path)
    assert same_runs(whole, tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.json"
    hjepa.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        hjepa.write_json(path, {"a": math.nan})
    with pytest.raises(RuntimeError), hjepa.whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    with open(path) as reader:               # a reader keeps the old file: it is replaced, whole
        hjepa.write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}


def test_json_is_rounded_to_six_digits_everywhere(tmp_path):
    content = {"a": math.pi, "b": [1 / 3, {"c": (2e-7 / 3, 3, True, "0.123456789", None)}]}
    hjepa.write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": 3.14159, "b": [0.333333, {"c": [6.66667e-08, 3, True, "0.123456789", None]}]}


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


def test_start_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a = hjepa.build_model(TINY).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    assert same(dict(a), dict(hjepa.build_model(TINY).state_dict()))
    assert not same(dict(a), dict(hjepa.build_model(tiny(seed=1)).state_dict()))


def test_only_matrices_decay():
    """Pulling a bias or a norm to zero regularises nothing."""
    model = hjepa.build_model(TINY)
    optimizer = hjepa.make_optimizer(model, tiny(weight_decay=0.25), torch.device("cpu"))
    decays = {}
    for group in optimizer.param_groups:
        assert group["lr"] == TINY.lr and group["betas"] == (0.9, TINY.beta2)
        decays.update({id(p): group["weight_decay"] for p in group["params"]})
    for name, p in model.named_parameters():
        assert decays.pop(id(p)) == (0.25 if p.ndim > 1 else 0.0), name
    assert decays == {}


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


def test_the_rate_of_each_step_reaches_the_optimizer(tmp_path, monkeypatch):
    real = torch.optim.AdamW.step
    rates = []

    def step(self, *args):
        rates.append([group["lr"] for group in self.param_groups])
        return real(self, *args)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    config = tiny(**LONGER)
    hjepa.train(config, tmp_path)
    wanted = [hjepa.learning_rate(i, 16, config.lr, config.warmup) for i in range(16)]
    assert rates == [[rate, rate] for rate in wanted]


def test_what_is_validated_is_not_trained_on(monkeypatch):
    """Worlds and goals of validation come from validation_seed, whatever the training seed is."""
    def row(**settings):
        config = tiny(**settings)
        world = hjepa.build_world(config)
        goals = hjepa.make_goals(world, 2, config.event_clips,
                                 hjepa.generator(config.validation_seed, "tasks"),
                                 config.clip_frames)
        model = hjepa.build_model(TINY)
        return hjepa.validate(model, world, config, torch.device("cpu"), goals)
    asked = []
    real = hjepa.generator

    def generator(seed, purpose, index=0):
        asked.append(seed)
        return real(seed, purpose, index)
    first = row()
    monkeypatch.setattr(hjepa, "generator", generator)
    assert row() == first
    assert set(asked) == {TINY.validation_seed, TINY.seed}                # the seed: start weights
    assert row(validation_seed=1_000_001) != first
