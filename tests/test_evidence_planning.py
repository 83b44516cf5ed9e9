"""figures/planning.py and figures/episode.py, what they promise, on a smoke model with a first guess;
and figures/lib: are its intervals intervals, and does a study that fails leave things in order?"""
import dataclasses
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import here
from lib import cli, goals, levels, planners, probes, state_network, stats
from studies import CPU, quick                                            # noqa: F401
import episode
import hjepa
import planning

HEAD = {"command", "device", "precision", "torch", "seeds", "n", "epochs", "sequences",
        "intervals"}
SIMULATED = 12 * 3 + 1                          # samples x iterations, the last mean
BUDGET = SIMULATED                              # a predictor sees each plan once
NO_TOOLS = {0: {}}                              # of the run of seed 0
MANY = 5                                        # goals of rows that cost little


@pytest.fixture(scope="module")
def second(smoke, tmp_path_factory):
    """The weights of the run under another seed: enough to see how seeds are treated."""
    saved = hjepa.read_checkpoint(smoke)
    saved["config"]["seed"] = 1
    path = tmp_path_factory.mktemp("second") / "last.pt"
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def networks(smoke, second, tmp_path_factory):
    """The state network of each of the two runs, as figures/state.py trains it -> two files."""
    out = tmp_path_factory.mktemp("networks")
    for run, name in ((smoke, "first.pt"), (second, "second.pt")):
        done = here("figures/state.py", "--run", run, "--epochs", 1, "--to", out / name, "--out",
                    out)
        assert done.returncode == 0, done.stderr
    return out / "first.pt", out / "second.pt"


@pytest.fixture(scope="module")
def report(smoke, second, networks, tmp_path_factory):
    """The study as a user runs it, on two runs -> its JSON, its arrays."""
    out = tmp_path_factory.mktemp("planning")
    first_network, second_network = networks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "fit_decoder", functools.partial(probes.fit_decoder, n=300))
        done = here("figures/planning.py", "--run", smoke, "--run", second, "--goals", 3,
                    "--many", MANY, "--state", first_network, "--state", second_network,
                    "--frames", 50, 25, "--samples", 12, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "planning.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(out.iterdir())) == 3
    return json.loads((out / "planning.json").read_text()), np.load(out / "planning.npz")


@pytest.fixture(scope="module")
def small(smoke):
    """The run, its world and four goals."""
    run, = cli.open_runs([smoke], CPU)
    return run, hjepa.build_world(run.config), goals.goals_of(run.config, 4)


# ---- lib/stats.py

def test_interval_covers_the_truth():
    """95 % intervals of a Bernoulli sample hold its true mean about 95 % of the time."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = stats.interval(rng.random(100) < 0.7)
        held += low <= 0.7 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_one_seed_is_the_plain_bootstrap():
    sample = np.random.default_rng(2).random(60) < 0.4
    plain = hjepa.bootstrap(sample, stats.DRAWS)
    assert np.allclose(stats.interval(sample), plain)
    assert np.allclose(stats.interval(sample[None]), plain)


def test_seeds_that_differ_widen_the_interval():
    def width(x):
        low, high = stats.interval(x)
        return high - low
    rng = np.random.default_rng(3)
    sample = rng.random((4, 100)) < np.array([0.2, 0.5, 0.6, 0.9])[:, None]
    assert width(sample) > 2 * width(sample.mean(0))                      # seeds matter
    copies = np.tile(sample[0], (4, 1))
    assert width(copies) == pytest.approx(width(sample[0]))               # copies do not


def test_paired_interval_is_of_the_difference():
    rng = np.random.default_rng(4)
    hard = rng.normal(size=100)                                           # goals differ a lot
    a = hard + 0.1 + 0.01 * rng.normal(size=100)
    gap, (low, high) = stats.paired_interval(a, hard)
    assert 0.09 < low < gap < high < 0.11
    assert stats.paired_interval(np.stack([a, a]), hard)[1] == pytest.approx([low, high])
    assert stats.paired_interval(hard, hard) == (0, [0, 0])


# ---- lib/cli.py

@pytest.mark.parametrize("flags, word", [
    (["--run", "nowhere"], "no checkpoint"), (["--goals", "0"], "--goals"), (["--goal"], "--help"),
    (["--goals", "1"], "--goals"), (["--frames", "7"], "--frames"), (["--out", ""], "empty"),
    (["--precision", "bf16"], "--precision"), (["--samples", "0"], "samples is 0"),
    (["--samples", "4"], "elites must not be more"), (["--many", "0"], "--many is 0"),
    (["--goals", "9", "--many", "8"], "--many 8"), (["--only", "state network"], "--state FILE"),
    (["--state", "nowhere.pt"], "no state network at nowhere.pt"),
    (["--state", "nowhere.pt", "--state", "nowhere.pt"], "2 --state for 1 --run")])
def test_mistakes_get_one_line(smoke, tmp_path, flags, word):
    if "--run" not in flags:
        flags = ["--run", smoke, *flags]
    if "--out" not in flags:
        flags = [*flags, "--out", tmp_path]
    done = here("figures/planning.py", *flags)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_runs_that_cannot_be_pooled_are_refused(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    saved["config"].update(seed=1, force_limit=1.0)
    torch.save(saved, tmp_path / "last.pt")
    for other, word in ((smoke, "same seed"), (tmp_path, "force_limit")):
        with pytest.raises(hjepa.Refusal, match=word):
            cli.open_runs([smoke, other], CPU)


def test_without_out_a_study_writes_into_the_folder_of_the_run(smoke, second, tmp_path,
                                                               monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = planning.make_parser()
    for run, folder in ((smoke, smoke / "figures"), (second, "runs/last/figures")):
        args, _ = cli.parse(parser, ["--run", str(run)])
        assert str(args.out) == str(folder)


def unfinished(tmp_path):
    return SimpleNamespace(name="study", out=tmp_path, argv=["--n", "3"], device=CPU,
                           precision="fp32")


def test_kept_rows_are_found_again_exactly_and_only_by_the_same_study(tmp_path):
    args = unfinished(tmp_path)
    errors = torch.rand(1, 5, 3, generator=torch.Generator().manual_seed(0))
    kept = cli.KeptRows(args, {"weights": "abc", "n": 5})
    kept.add({"planner": "flat", "samples": 4, "errors": errors.tolist()})
    again = cli.KeptRows(args, {"weights": "abc", "n": 5})
    assert torch.equal(torch.tensor(again.find(planner="flat", samples=4)["errors"]), errors)
    assert again.find(planner="flat", samples=5) is None
    with pytest.raises(hjepa.Refusal, match="other n:"):
        cli.KeptRows(args, {"weights": "abc", "n": 6})
    for damage in ("[]", "{", '{"study": 1}'):
        cli.part_file(args).write_text(damage)
        with pytest.raises(hjepa.Refusal, match="damaged"):
            cli.KeptRows(args, {"weights": "abc", "n": 5})
        assert cli.part_file(args).read_text() == damage                  # it may be of value


def test_numbers_are_on_disk_before_the_picture_is_drawn(small, tmp_path):
    """A picture that cannot be drawn does not cost the hours behind the numbers."""
    run, _, _ = small
    args = unfinished(tmp_path)
    cli.KeptRows(args, {"n": 3}).add({"row": 1})
    seen = []

    def figure():
        seen.extend(sorted(path.name for path in tmp_path.iterdir()))
        raise ValueError("no font")
    results = cli.Results(3, {"rows": [1 / 3]}, {"a": np.arange(3)}, figure)
    with pytest.raises(ValueError, match="no font"):
        cli.publish(args, [run], results)
    assert seen == ["study.json", "study.npz"]
    content = json.loads((tmp_path / "study.json").read_text())
    assert list(content)[:2] == ["command", "device"] and content["rows"] == [0.333333]
    assert content["command"] == "python figures/study.py --n 3"
    assert np.array_equal(np.load(tmp_path / "study.npz")["a"], np.arange(3))


@pytest.mark.parametrize("error, code, said", [
    (hjepa.Refusal("no such thing\nand more"), 2, "study: no such thing"),
    (OSError(28, "No space left"), 2, "choose another --run or --out"),
    (MemoryError(), 2, "out of memory"), (KeyboardInterrupt(), 130, "stopped"), (None, 0, "")])
def test_exit_codes(capsys, error, code, said):
    def work():
        if error is not None:
            raise error
    assert cli.exit_code("study", work) == code
    said_so = capsys.readouterr().err
    assert said in said_so and said_so.strip().count("\n") == 0


# ---- lib/goals.py

def test_outcomes_are_of_the_worst_and_the_mean_body():
    errors = torch.tensor([[[0.01, 0.02, 0.04], [0.01, 0.01, 0.2], [0.06, 0.06, 0.099]]])
    found = goals.outcomes(errors)
    assert found["success"].tolist() == [[True, False, True]]
    assert found["strict"].tolist() == [[True, False, False]]
    assert found["mean_body"].tolist() == [[True, True, True]]
    assert found["error"] == pytest.approx(errors.mean(-1).numpy())


def test_goals_are_those_of_the_plan_command_and_others_at_other_horizons(small):
    run, world, drawn = small
    config = run.config
    same = hjepa.make_goals(world, 4, 5, hjepa.generator(config.test_seed, "tasks"))
    assert torch.equal(drawn["goal"], same["goal"])
    far = goals.goals_of(config, 4, frames=50)
    assert far["forces"].shape == (4, 10, 6)
    assert not torch.equal(far["clip"], drawn["clip"])
    assert not torch.equal(goals.goals_of(config, 4, "validation")["clip"], drawn["clip"])


def test_hidden_forces_reach_the_goal(small):
    """Every goal can be reached, and none is near where zero force ends."""
    run, world, _ = small
    for frames in (25, 50, 75):
        drawn = goals.goals_of(run.config, 20, frames=frames)
        start = drawn["clip"][:, -1]
        there, _ = world.rollout(start, drawn["forces"])
        idle, _ = world.rollout(start, torch.zeros_like(drawn["forces"]))
        assert torch.equal(there[:, -5:], drawn["goal"])
        assert (goals.final_errors(idle, drawn["goal"]).amax(-1) > 0.2).all()


# ---- planning.py

def test_rows_can_be_chosen(smoke, tmp_path):
    flags = "--run", smoke, "--goals", 2, "--out", tmp_path
    done = here("figures/planning.py", *flags, "--frames", 25, "--samples", 12, "--only",
                "macro open loop", "random")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "planning.json").read_text())
    assert [row["planner"] for row in content["rows"]] == ["zero", "random", "macro open loop"]
    assert content["pairs"] == [] and content["budget"]["samples"] == 12
    assert content["rows"][-1]["predictor_calls"] == 12 * 3 + 1           # with the last mean
    for frames, name in ((25, "both levels"), (50, "macro open loop")):
        done = here("figures/planning.py", *flags, "--frames", frames, "--only", name)
        assert done.returncode == 2 and "not tried" in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_a_model_has_not_is_left_out_with_a_reason(guessless, tmp_path):
    flags = "--run", guessless, "--goals", 2, "--frames", 25, "--out", tmp_path
    args, runs = cli.parse(planning.make_parser(), [str(flag) for flag in flags])
    names = planning.choose_rows(args, runs)
    assert names == [name for name in planning.NAMES
                     if "guess" not in name and name != "state network"]
    done = here("figures/planning.py", *flags, "--only", "replanned from guess")
    assert done.returncode == 2 and "no first guess" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_state_network_of_another_run_is_refused(smoke, networks, tmp_path):
    done = here("figures/planning.py", "--run", smoke, "--state", networks[1], "--goals", 2,
                "--frames", 25, "--only", "state network", "--out", tmp_path)
    assert done.returncode == 2 and "other seed" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", planning.NAMES[2:])
def test_outcome_depends_on_the_goal_alone(small, networks, name):
    """Not on the goals tried before, nor on those that are searched side by side with it."""
    run, world, drawn = small
    if name in planners.LEVELS:
        drawn = goals.goals_of(run.config, 4, frames=35)
    tools = {}
    if name == "model + decoded cost":
        tools["decode"] = probes.fit_decoder(run, world, CPU, n=300)
    if name == "state network":
        tools["network"] = state_network.load(networks[0], run, CPU)
    run = run._replace(config=dataclasses.replace(run.config, samples=12, iterations=2))

    def final(pick):
        with torch.no_grad(), goals.metered(run.model) as meter:
            states = planners.solve(name, run, world, drawn, torch.tensor(pick), tools, meter)
        return goals.final_errors(states, drawn["goal"][pick])
    alone = torch.cat([final([i]) for i in range(4)])
    again = torch.cat([final([i]) for i in (3, 2, 1, 0)])
    assert torch.equal(alone, again.flip(0))
    if name in planning.SIDE_BY_SIDE:
        assert torch.equal(alone, final([0, 1, 2, 3]))
        assert torch.equal(alone[[2, 0]], final([2, 0]))


def test_a_row_is_the_row_of_the_plan_command(small):
    """At one macro-event, goals and noise are those of `hjepa.py plan`."""
    run, world, drawn = small
    for name in ("random", "fly and fold", "first guess", *hjepa.SEARCHES):
        errors, states, *_ = hjepa.try_goals(name, run.model, world, run.config, drawn,
                                             run.config.test_seed, CPU)
        tried = planning.try_row(name, [run], world, drawn, NO_TOOLS, CPU)
        assert torch.equal(errors, tried.errors[0])
        gap = states[:, -1, :, 2:] - drawn["goal"][:, -1, :, 2:]
        assert torch.equal(tried.velocity[0], gap.norm(dim=-1))


def test_a_tenth_of_the_plans_is_a_tenth():
    config = hjepa.Config()
    less = planners.tenth(config)
    assert less.samples * less.iterations == config.samples * config.iterations / 10
    assert less.elites < less.samples
    assert dataclasses.replace(less, samples=config.samples, iterations=config.iterations,
                               elites=config.elites) == config


def test_further_goals_stand_behind_the_first_and_are_others(small):
    config = small[0].config
    alone, source = planning.draw_goals(SimpleNamespace(goals=3, many=None), config, 25)
    drawn, sources = planning.draw_goals(SimpleNamespace(goals=3, many=7), config, 25)
    assert torch.equal(alone["goal"], goals.goals_of(config, 3)["goal"])
    assert all(torch.equal(drawn[key][:3], alone[key]) for key in alone)
    assert len(drawn["goal"]) == sources["n"] == 7 and source["n"] == 3
    starts = drawn["clip"][:, -1].flatten(1)
    assert len(starts.unique(dim=0)) == 7                                 # none comes twice
    assert sources["matters"] == pytest.approx(drawn["matters"].float().mean().item())


def test_pairs_are_on_the_same_goals_and_a_rival_also_where_contacts_matter():
    near, far = torch.full((3,), 0.01), torch.ones(3)
    mine = torch.stack([near, near, far, near])[None]
    rival = torch.stack([near, far, far, far, near])[None]                # it was tried on five
    matters = torch.tensor([True, True, False, False, True])
    row, = planning.compare({"replanned from guess": mine, "fly and fold": rival}, 25, matters)
    assert (row["a"], row["b"]) == ("replanned from guess", "fly and fold")
    assert row["success"] == 0.5 and row["matters"]["success"] == 0.5 and row["matters"]["n"] == 2
    assert row["error"] == pytest.approx((0.01 + 1) / 4 + (0.01 + 1) / 4 - 1, abs=1e-3)
    row, = planning.compare({"short replanned": mine, "short open loop": mine}, 25, matters)
    assert row["success"] == row["error"] == 0 and "matters" not in row


def test_decoder_is_the_ridge_probe(small):
    """Fitted to embeddings, strength chosen on predictions, never on test worlds."""
    run, world, _ = small
    pairs = []
    for seed, n, name in ((run.config.seed, 1200, "t1"), (run.config.validation_seed, 300, "p1")):
        states, forces, _ = hjepa.draw_sequences(world, run.config, n, seed, "decoder", "cpu")
        z = hjepa.latents(run.model, world.observe(states), forces)[name]
        pairs.append((z, states[:, -1, -1, :, :2].flatten(1)))
    guess = probes.linear(*pairs)(pairs[1][0])
    decode = probes.fit_decoder(run, world, CPU, n=300)
    assert torch.allclose(decode(pairs[1][0]), guess, atol=1e-4)
    assert (hjepa.r2(guess.double(), pairs[1][1].double()) > 0.3).all()


def test_the_table(report):
    content, arrays = report
    assert HEAD <= set(content) and content["seeds"] == [0, 1] and content["n"] == 3
    assert content["intervals"].endswith("over seeds, then goals")
    assert content["precision"] == "fp32"
    rows = {(row["planner"], row["frames"]): row for row in content["rows"]}
    assert {name for name, _ in rows} == set(planning.NAMES) and len(planning.NAMES) == 19
    assert [sum(frames == f for _, frames in rows) for f in (25, 50)] == [17, 13]
    for (name, frames), row in rows.items():
        errors = arrays[f"errors/{name}/{frames}"]
        n = 3 if name in planning.DEAR else MANY
        assert errors.shape == (1 if name in planning.PLAIN else 2, n, 3)
        assert row["success"] == pytest.approx((errors.max(-1) < 0.1).mean(), abs=1e-5)
        assert row["error"] == pytest.approx(errors.mean(), rel=1e-3)
        zero = arrays[f"errors/zero/{frames}"][:, :n].mean()
        assert row["skill"] == pytest.approx(1 - errors.mean() / zero, abs=1e-4)
        with_intervals = [key for key in row if key + "_ci" in row]
        assert set(with_intervals) >= {"success", "mean_body"}
        for key in with_intervals:
            low, high = row[key + "_ci"]
            assert low - 1e-6 <= row[key] <= high + 1e-6
        contact = arrays[f"goals/{frames}/contact"][:n]
        matters = arrays[f"goals/{frames}/matters"][:n]
        for part, who in (("contact", contact), ("no contact", ~contact), ("matters", matters)):
            assert row[part]["n"] == who.sum()
            if who.any():
                reached = (errors[:, who].max(-1) < 0.1).mean()
                assert row[part]["success"] == pytest.approx(reached, abs=1e-5)
        velocity = arrays[f"velocity/{name}/{frames}"].astype(float)
        assert velocity.shape == errors.shape[:2]
        assert row["velocity"] == pytest.approx(velocity.mean(), rel=2e-3)
        assert row["n"] == n and row["seconds"] > 0
        if len(errors) > 1:
            assert np.mean(row["success_runs"]) == pytest.approx(row["success"], abs=2e-5)
    twin = arrays["errors/short replanned/25"]
    assert np.array_equal(twin[0], twin[1])                               # the same weights


def test_predictor_calls_are_counted(report):
    calls = {(row["planner"], row["frames"]): row["predictor_calls"] for row in report[0]["rows"]}
    for name in ("zero", "random", "fly and fold", "first guess"):
        assert calls[name, 25] == 0
    for macro, short in (("macro open loop", "short open loop"),
                         ("macro from guess", "short from guess")):
        assert calls[macro, 25] == BUDGET and calls[short, 25] == 5 * BUDGET
    for frames, left in ((25, 15), (50, 55)):                             # 5 + 4 + ... + 1 clips
        for name in ("short replanned", "model + decoded cost", "state network"):
            assert calls[name, frames] == left * BUDGET
        for name in ("oracle", "simulator + latent cost"):
            assert calls[name, frames] == left * SIMULATED
        choose = 2 * 15                                   # guess or last plan, for five clips
        assert calls["replanned from guess", frames] == left * BUDGET + choose
        assert calls[planners.TENTH, frames] == left * (3 * 1 + 1) + choose
    both = (2 + 5 + 4 + 3 + 2 + 15) * BUDGET                              # jumps, short + jump
    assert calls["both levels", 50] == both
    assert calls["both levels from guess", 50] == both + choose


def test_the_arrays_tell_the_goals(report):
    """From the file alone: start and hidden forces lead to the goal."""
    content, arrays = report
    for part in content["manifest"]:
        frames = part["frames"]
        start, goal, forces = (torch.tensor(arrays[f"goals/{frames}/{key}"])
                               for key in ("start", "goal", "forces"))
        clips = frames // 5
        states, contacts = hjepa.World().rollout(start.view(-1, 3, 4), forces.view(-1, clips, 6))
        assert torch.equal(states[:, -1].flatten(1), goal)
        assert torch.equal(contacts.any(1), torch.tensor(arrays[f"goals/{frames}/contact"]))
        through, _ = hjepa.without_contacts(hjepa.World()).rollout(start.view(-1, 3, 4),
                                                                   forces.view(-1, clips, 6))
        elsewhere = hjepa.distance(through[:, -1], states[:, -1]).amax(-1) > 0.2
        assert torch.equal(elsewhere, torch.tensor(arrays[f"goals/{frames}/matters"]))
        assert part["n"] == len(goal) == MANY
        again = [hjepa.make_goals(hjepa.World(), n, clips, hjepa.generator(*source))["goal"]
                 for n, source in zip((3, MANY - 3), part["generators"], strict=True)]
        assert torch.equal(torch.cat(again)[:, -1].flatten(1), goal)


# ---- episode.py

def test_an_episode_can_be_recomputed_from_its_files(smoke, small, tmp_path):
    run, world, _ = small
    done = here("figures/episode.py", "--run", smoke, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "episode.json").read_text())
    arrays = {key: torch.tensor(values)
              for key, values in np.load(tmp_path / "episode.npz").items()}
    states, _ = world.rollout(arrays["start"][None], arrays["forces"][None])
    assert torch.allclose(states[0], arrays["states"], atol=1e-6)
    assert hjepa.distance(arrays["states"][-1], arrays["goal"]).tolist() == pytest.approx(
        content["errors"], rel=1e-4)
    drawn = goals.goals_of(run.config, content["goals"])
    number = content["number"]
    assert drawn["contact"][number] and not drawn["contact"][:number].any()
    assert torch.equal(drawn["goal"][number, -1], arrays["goal"])
    tried = planning.try_row("short replanned", [run], world,
                             {key: values[:number + 1] for key, values in drawn.items()},
                             NO_TOOLS, CPU)
    assert tried.errors[0, number].tolist() == pytest.approx(content["errors"], rel=1e-4)
    assert (tmp_path / "episode.png").read_bytes()[:4] == b"\x89PNG"


def test_an_episode_is_the_first_with_a_contact(monkeypatch):
    contact = torch.tensor([False, False, True, True])
    monkeypatch.setattr(goals, "goals_of", lambda config, n, frames: {
        "goal": torch.arange(4), "contact": contact[:n]})
    number, drawn = episode.first_contact(hjepa.Config(), 4, 25)
    assert number == 2 and drawn["goal"].tolist() == [2]
    with pytest.raises(hjepa.Refusal, match="any of 2 goals"):
        episode.first_contact(hjepa.Config(), 2, 25)


@pytest.mark.parametrize("flags, said", [
    (["--frames", 7], "--frames 7"), (["--goals", 0], "--goals is 0"), (["--run", ""], "empty")])
def test_an_episode_that_cannot_be_is_refused(smoke, tmp_path, flags, said):
    done = here("figures/episode.py", "--run", smoke, "--out", tmp_path, *flags)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


# ---- lib/levels.py

def test_chain_is_short_steps_then_jumps(small):
    model = small[0].model
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(2, 256, generator=gen)
    plans = torch.randn(2, 12, 6, generator=gen)
    with torch.no_grad():
        by_hand = model.lift(model.rollout(z, plans[:, :2])[:, -1])
        by_hand = model.jump(model.bridge(model.jump(by_hand, plans[:, 2:7])), plans[:, 7:])
        assert torch.allclose(levels.chain(model, z, plans, 2, 5), by_hand, atol=1e-5)
        one_jump = model.jump(z, plans[:, :5])
        assert torch.allclose(levels.chain(model, z, plans[:, :5], 0, 5), one_jump)
