"""The command line as a user meets it: what each command writes and says, every mistake one line.

Most of it calls main(argv) in this process. What only a process can show has one of its own.
"""
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import hjepa
from conftest import ROOT, TINY, command, same_runs, saved, snapshot, stop_before

SMOKE = ["train", "--preset", "smoke"]
DRAWING = ("curves", "diagnose", "probe", "plan")
PLAN = ["--goals", 4]


def process(*argv):
    """`python hjepa.py ARGV` in a process of its own."""
    return subprocess.run([sys.executable, "hjepa.py", *map(str, argv)], cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


def test_train_writes_checkpoint_and_log(smoke):
    rows = [json.loads(line) for line in (smoke / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["composite"] < rows[0]["composite"]
    content = hjepa.read_checkpoint(smoke)
    assert content["history"] == rows and content["epoch"] == 3
    config = hjepa.Config(**content["config"])
    assert config == hjepa.Config(**hjepa.PRESETS["smoke"]) == hjepa.load(smoke)[1]


def test_train_again_does_nothing(smoke):
    before = snapshot(smoke)
    done = process(*SMOKE, "--run", smoke)
    assert done.returncode == 0 and "3 of 3 epochs done" in done.stdout
    assert done.stderr == "" and snapshot(smoke) == before


def test_train_shows_every_term_of_every_epoch(tmp_path, monkeypatch):
    done = command(*SMOKE, "--sequences", 256, "--epochs", 2, "--validate-every", 0, "--run",
                   tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "0 of 2 epochs done" in lines[1] and re.match(r"about \d+ minutes to go", lines[4])
    head = lines[2].split()
    for number, line in ((1, lines[3]), (2, lines[5])):
        row = saved(tmp_path / "run")["history"][number - 1]
        row.pop("first_step", None)
        assert head == list(row) and len(line) == len(lines[2])           # aligned
        cells = line.split()
        assert cells[0] == str(number)
        for cell, value in zip(cells, row.values(), strict=True):
            assert float(cell) == pytest.approx(value, abs=0.0006 if value < 10 else 0.06)


@pytest.fixture(scope="module")
def figures(smoke, tmp_path_factory):
    """Name of a command -> where it has drawn the smoke run, and what it said."""
    drawn = {}
    more = {"diagnose": ["--n", 512], "probe": ["--n", 256], "plan": PLAN}
    before = snapshot(smoke)
    for name in DRAWING:
        run = smoke / "last.pt" if name == "curves" else smoke            # either is a run
        out = tmp_path_factory.mktemp(name) / "new" / "figures"
        drawn[name] = out, command(name, "--run", run, "--out", out, *more.get(name, []))
    assert snapshot(smoke) == before
    return drawn


FILES = {"curves": ["json", "npz", "png"], "diagnose": ["json", "npz", "png"],
         "probe": ["json", "png"], "plan": ["gif", "json", "npz", "png"]}


@pytest.mark.parametrize("name, n", [("curves", 1024), ("diagnose", 512), ("probe", 256),
                                     ("plan", 4)])
def test_figures_come_with_their_numbers(smoke, figures, name, n):
    out, done = figures[name]
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"wrote {out / name}.json and .png" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.{kind}" for kind in FILES[name]]
    magic = {".png": b"\x89PNG\r\n", ".gif": b"GIF89a", ".json": b"{", ".npz": b"PK"}
    for path in out.iterdir():
        assert path.read_bytes().startswith(magic[path.suffix]) and path.stat().st_size > 500
    record = json.loads((out / f"{name}.json").read_text())
    assert record["command"].startswith(f"python hjepa.py {name} --run {smoke}")
    assert record["device"] and record["torch"] == torch.__version__
    assert record["seeds"] == [0] and record["n"] == n
    assert record["epochs"] == 3 and record["sequences"] == 1024 and len(record["rows"]) > 1


def test_curves_hold_the_whole_history(smoke, figures):
    history = saved(smoke)["history"]
    out, done = figures["curves"]
    with np.load(out / "curves.npz") as stored:
        assert stored["history/epoch"].tolist() == [1, 2, 3]
        assert stored["history/composite"].tolist() == [row["composite"] for row in history]
        tried = stored["history/goals_macro"]
        assert np.isnan(tried).tolist() == [True, False, False]
    record = json.loads((out / "curves.json").read_text())
    assert record["paper"] == [121, 40] and record["precision"] == saved(smoke)["precision"]
    assert record["config"] == json.loads(json.dumps(saved(smoke)["config"]))
    assert f"{history[0]['first_step']:.1f} at the first step" in done.stdout


def test_diagnose_tells_what_the_embeddings_are(smoke, figures):
    """Deviations, rank and correlation, computed here once more."""
    model, config = hjepa.load(smoke)
    world = hjepa.build_world(config)
    states, forces, _ = hjepa.draw_sequences(world, config, 512, config.test_seed, "worlds", "cpu")
    z = hjepa.latents(model, world.observe(states), forces)["t2"]
    row = json.loads((figures["diagnose"][0] / "diagnose.json").read_text())["rows"][3]
    assert row["set"] == "target, deep" and row["dimensions"] == config.latent
    assert row["std_min"] == pytest.approx(z.std(0).min().item(), rel=1e-4)
    assert row["std_mean"] == pytest.approx(z.std(0).mean().item(), rel=1e-4)
    assert row["rank"] == pytest.approx(hjepa.effective_rank(z), rel=1e-3)
    correlation = np.abs(np.corrcoef(z.double().numpy().T))
    off = correlation[~np.eye(len(correlation), dtype=bool)].mean()
    assert row["correlation"] == pytest.approx(off, rel=1e-3)
    with np.load(figures["diagnose"][0] / "diagnose.npz") as stored:
        spectrum = stored["spectrum/target, deep"]
        assert spectrum.sum() == pytest.approx(z.var(0).sum().item(), rel=1e-4)


def test_probe_has_a_row_for_every_source_and_target(figures):
    rows = json.loads((figures["probe"][0] / "probe.json").read_text())["rows"]
    scores = {(row["source"], row["target"]): row["r2"] for row in rows}
    sources = {source for source, _ in scores}
    targets = {target for _, target in scores}
    assert sources == {"shallow tap", "deep tap", "raw clip", "untrained shallow tap",
                       "untrained deep tap"}
    assert targets == {"position", "velocity", "kinetic energy", "pair distance"}
    assert len(rows) == 20 and all(row["r2_min"] <= row["r2"] <= 1 for row in rows)
    assert scores["raw clip", "position"] > 0.999 > scores["raw clip", "kinetic energy"]


def test_plan_reports_every_planner_goal_by_goal(smoke, figures, tmp_path):
    """And says the same when it is asked again."""
    out, _ = figures["plan"]
    assert command("plan", "--run", smoke, "--out", tmp_path, *PLAN).returncode == 0
    record = json.loads((out / "plan.json").read_text())
    rows = record["rows"]
    assert [row["planner"] for row in rows] == list(hjepa.PLANNERS)
    with np.load(out / "plan.npz") as first, np.load(tmp_path / "plan.npz") as second:
        contact, matters = first["contact/25"], first["matters/25"]
        assert contact.shape == matters.shape == (4,) and contact.dtype == bool
        assert record["lists"] == [{"frames": 25, "n_contact": contact.sum(),
                                    "n_matters": matters.sum()}]
        for row in rows:
            name = f"errors/{row['planner']}/25"
            errors = first[name]
            assert errors.shape == (4, 3) and (errors == second[name]).all()
            assert row["mean_body"] == pytest.approx((errors.mean(1) < 0.1).mean())
            assert row["success"] == pytest.approx((errors.max(1) < 0.1).mean())
            assert row["strict"] == pytest.approx((errors.max(1) < 0.05).mean())
            assert row["error"] == pytest.approx(errors.mean(), abs=1e-4)
            if matters.any():
                assert row["matters"] == pytest.approx((errors[matters].max(1) < 0.1).mean())
            low, high = row["mean_body_ci"]
            assert 0 <= low <= row["mean_body"] <= high <= 1


def test_plan_tries_as_many_horizons_as_are_asked_for(smoke, tmp_path):
    """Each with its own goals; another seed has others."""
    few = ["--goals", 3, "--samples", 4, "--iterations", 1, "--elites", 2]
    for seed in (0, 1):
        done = command("plan", "--run", smoke, "--out", tmp_path / str(seed), "--frames", 50, 25,
                       "--seed", seed, *few)
        assert done.returncode == 0, done.stderr
        assert "\n25 frames ahead" in done.stdout and "\n50 frames ahead" in done.stdout
    record = json.loads((tmp_path / "1" / "plan.json").read_text())
    assert record["frames"] == 25 and record["test_seed"] == 2_000_001
    assert [part["frames"] for part in record["lists"]] == [25, 50]
    tried = {(row["planner"], row["frames"]) for row in record["rows"]}
    assert ("macro open loop", 25) in tried and ("short replanned", 50) in tried
    assert ("macro open loop", 50) not in tried
    with (np.load(tmp_path / "0" / "plan.npz") as first,
          np.load(tmp_path / "1" / "plan.npz") as second):
        for frames in (25, 50):
            name = f"errors/zero/{frames}"
            assert (first[name] != second[name]).all()
        assert (first["errors/zero/25"] != first["errors/zero/50"]).all()


def test_plan_shows_an_episode_by_its_rule():
    """The first goal that is reached and where a contact matters; else one with a contact; ..."""
    none = torch.zeros(4, dtype=torch.bool)
    second = torch.tensor([False, True, True, False])
    last = torch.tensor([False, False, False, True])
    assert hjepa.first_of(second, last) == 1
    assert hjepa.first_of(none, last) == 3
    assert hjepa.first_of(none, none, none) == 0


PLACES = [0.5, 0.5, -0.5, 0.5, 0, -0.5]


def test_plan_flies_to_a_goal_of_ones_own(smoke, tmp_path):
    """Forces are printed and written; flown in the simulator they end where the file says."""
    start = [0, 0.5, 0, 0, -0.5, -0.5]
    done = command("plan", "--run", smoke, "--out", tmp_path, "--goal", *PLACES, "--start",
                   *start, "--frames", 35, "--samples", 8, "--iterations", 2, "--elites", 3)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "goal.json").read_text())
    assert record["planner"] == "replanned from guess" and record["frames"] == 35
    at_goal = torch.tensor(record["goal"])
    assert at_goal[:, :2].flatten().tolist() == PLACES and not at_goal[:, 2:].any()
    at_start = torch.tensor(record["start"])
    assert at_start[:, :2].flatten().tolist() == start and not at_start[:, 2:].any()
    forces = torch.tensor(record["forces"])
    assert forces.shape == (7, 6)
    world = hjepa.build_world(hjepa.load(smoke)[1])
    states, _ = world.rollout(at_start[None], forces[None], 5)
    torch.testing.assert_close(states[0], torch.tensor(record["states"]), atol=1e-3, rtol=1e-3)
    errors = hjepa.distance(states[0, -1], at_goal)
    assert record["errors"] == pytest.approx(errors.tolist(), abs=1e-3)
    for body, gap in enumerate(record["errors"]):
        assert f"body {body} ends {gap:.3f} from its goal" in done.stdout
    for x in forces[3].tolist():
        assert f"{x:.2f}" in done.stdout
    assert ("not reached" in done.stdout) == (max(record["errors"]) >= 0.1)
    assert (tmp_path / "goal.gif").read_bytes().startswith(b"GIF89a")
    assert (tmp_path / "goal.png").read_bytes().startswith(b"\x89PNG")


def test_a_goal_of_ones_own_has_velocities_a_start_and_time_of_its_own(smoke, tmp_path):
    few = ["--samples", 4, "--iterations", 1, "--elites", 2]
    moving = [0.5, 0.5, 1, 0, -0.5, 0.5, 0, -1, 0, -0.5, 0.25, 0]
    records = []
    for out, more in (("a", []), ("b", []), ("c", ["--seed", 1])):
        done = command("plan", "--run", smoke, "--out", tmp_path / out, "--goal", *moving, *few,
                       *more)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / out / "goal.json").read_text()))
    assert np.ravel(records[0]["goal"]).tolist() == moving
    assert records[0]["frames"] == len(records[0]["states"]) >= 75
    for key in ("start", "forces", "errors"):
        assert records[0][key] == records[1][key] != records[2][key]


def test_the_goal_that_readme_shows_is_reached(tmp_path):
    line = re.search(r"python hjepa.py (plan --goal [-. \d]*\d)", (ROOT / "README.md").read_text())[1]
    done = command(*line.split(), "--run", ROOT / "figures" / "weights" / "hjepa.pt", "--out", tmp_path)
    assert done.returncode == 0 and "reached: every body within 0.1" in done.stdout, done.stdout


def test_time_is_given_to_the_slowest_body():
    """Mass 4, force 2: half of the way at acceleration 0.5, half at -0.5."""
    config = hjepa.Config()
    world = hjepa.build_world(config)
    start = torch.zeros(1, 3, 4)
    goal = torch.zeros(1, 3, 4)
    assert hjepa.enough_frames(world, config, start, goal) == 75
    goal[0, 2, 1] = 1.0
    half = 2 ** 0.5                             # seconds: 0.5 = 0.5 / 2 t^2
    assert 0.5 * 0.5 * half ** 2 == pytest.approx(0.5)
    wanted = 1.4 * 2 * half
    found = hjepa.enough_frames(world, config, start, goal) * config.dt
    assert wanted <= found < wanted + 0.2


def test_without_a_run_the_shipped_weights_are_used(smoke, tmp_path, monkeypatch):
    """Unless something is trained in runs/paper."""
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "figures" / "weights" / "hjepa.pt"
    assert hjepa.trained_or_shipped() == shipped
    done = command("plan", "--goals", 1, "--samples", 4, "--iterations", 1, "--elites", 2)
    assert done.returncode == 0, done.stderr
    assert f"these are the shipped weights, {shipped}" in done.stdout
    assert (tmp_path / "runs" / "hjepa" / "figures" / "plan.json").exists()
    shutil.copytree(smoke, tmp_path / "runs" / "paper")
    assert str(hjepa.trained_or_shipped()) == "runs/paper"


def test_plan_searches_as_it_is_told(smoke, tmp_path, monkeypatch):
    """Its flags take the place of the run's settings, and are written down."""
    asked = []
    real = hjepa.cem

    def cem(*args, **budget):
        asked.append((budget["samples"], budget["iterations"], budget["elites"]))
        return real(*args, **budget)
    monkeypatch.setattr(hjepa, "cem", cem)
    done = command("plan", "--run", smoke, "--out", tmp_path, "--goals", 1, "--samples", 6,
                   "--iterations", 2, "--elites", 2, "--guess-std", 1)
    assert done.returncode == 0 and set(asked) == {(6, 2, 2)}
    record = json.loads((tmp_path / "plan.json").read_text())
    assert [record[name] for name in ("n", "samples", "iterations", "elites", "guess_std")] == [
        1, 6, 2, 2, 1]


# The first guess, a term of the objective.

def test_a_first_guess_is_trained_and_shown_term_by_term(smoke):
    history = saved(smoke)["history"]
    assert {"sim1", "sim2", "guess"} <= history[0].keys()
    assert history[2]["guess"] < history[0]["guess"]
    assert history[2]["composite"] < history[0]["composite"]
    model, config = hjepa.load(smoke)
    assert config.guess_width == 64
    start = hjepa.build_model(config).state_dict()
    assert all(not torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_a_first_guess_resumes_bitwise(smoke, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        assert command(*SMOKE, "--run", run).returncode == 130
    assert saved(run)["epoch"] == 1
    assert command(*SMOKE, "--run", run).returncode == 0
    assert same_runs(smoke, run)


def test_plan_tries_what_a_first_guess_makes_possible(smoke, tmp_path):
    """All planners, more than there are colours."""
    done = command("plan", "--run", smoke, "--out", tmp_path, "--goals", 2)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "plan.json").read_text())
    assert [row["planner"] for row in record["rows"]] == list(hjepa.PLANNERS)
    with np.load(tmp_path / "plan.npz") as stored:
        for planner in hjepa.PLANNERS:
            assert stored[f"errors/{planner}/25"].shape == (2, 3)
    assert (tmp_path / "plan.gif").read_bytes().startswith(b"GIF89a")


def test_curves_have_a_panel_for_what_was_trained(smoke, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    hjepa.train(TINY, bare)
    drawn = []
    real = hjepa.save_figure

    def save_figure(out, name, figure, *rest):
        drawn.append({ax.get_title(): [line.get_label() for line in ax.lines]
                      for ax in figure.axes})
        real(out, name, figure, *rest)
    monkeypatch.setattr(hjepa, "save_figure", save_figure)
    for run in (bare, smoke):
        assert command("curves", "--run", run, "--out", tmp_path).returncode == 0
    without, with_guess = drawn
    more = set(with_guess) - set(without)
    assert more == {"similarity and first guess"}
    assert with_guess["similarity and first guess"] == ["sim1", "sim2", "guess"]
    assert without["prediction and maps"] == ["pred1", "pred2", "bridge", "lift"]
    assert len(without) == 5


def test_figures_of_a_half_trained_run_say_how_far_it_was_trained(smoke, tmp_path):
    content = saved(smoke)
    settings = {**content["config"], "shared": True}
    config = hjepa.Config(**settings)
    model = hjepa.build_model(config)
    optimizer = hjepa.make_optimizer(model, config, torch.device("cpu"))
    half = {**content, "epoch": 2, "history": content["history"][:2], "config": settings,
            "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(half, tmp_path / "half.pt")
    done = command("curves", "--run", tmp_path / "half.pt", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "curves.json").read_text())
    assert record["epochs"] == 2 == len(record["rows"])
    assert record["parameters"] == sum(p.numel() for p in model.parameters())


def test_flags_that_a_command_would_ignore_are_refused(smoke):
    for name, flag in (("plan", "--n"), ("curves", "--n"), ("probe", "--goals"),
                       ("plan", "--precision"), ("diagnose", "--precision")):
        done = command(name, "--run", smoke, flag, 20)
        assert done.returncode == 2 and flag in done.stderr


def test_config_shows_every_value_and_its_source():
    done = command("config", "--preset", "smoke", "--lr", "0.002", "--no-symmetries")
    assert done.returncode == 0, done.stderr
    shown = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.strip().partition(" = ")
        shown[name] = re.split("  +", rest)
    assert list(shown) == [field.name for field in dataclasses.fields(hjepa.Config)]
    assert shown["lr"][:2] == ["0.002", "flag"]
    assert shown["symmetries"][:2] == ["False", "flag"]
    assert shown["epochs"][:2] == ["3", "preset smoke"]
    assert shown["latent"][:2] == ["256", "default, paper"]
    assert shown["latent"][-1].endswith("dimensions of each embedding")


def test_help_names_every_command_and_every_setting():
    done = process("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("train", "config", *DRAWING))
    done = command("train", "--help")
    for field in dataclasses.fields(hjepa.Config):
        assert "--" + field.name.replace("_", "-") in done.stdout


# Mistakes. RUN is a copy of the smoke run, HERE a folder with things that are no run; the second
# entry is a pattern that the one line must match: it names what is wrong.

ABSENT = "cuda" if not torch.cuda.is_available() else "mps"
MISTAKES = {
    "no command": ([], "COMMAND"),
    "unknown command": (["fly"], "fly"),
    "unknown flag": ([*SMOKE, "--run", "HERE/new", "--speed", "9"], "--speed"),
    "abbreviated flag": ([*SMOKE, "--run", "HERE/new", "--epoch", "9"], "--epoch"),
    "unknown preset": (["train", "--preset", "huge"], "huge"),
    "mistyped value": ([*SMOKE, "--run", "HERE/new", "--epochs", "many"], "many"),
    "out of range": ([*SMOKE, "--run", "HERE/new", "--epochs", "0"], "epochs"),
    "nan": ([*SMOKE, "--run", "HERE/new", "--lr", "nan"], "lr"),
    "infinite mass": ([*SMOKE, "--run", "HERE/new", "--masses", "1", "inf"], "masses"),
    "settings that do not fit together": (
        [*SMOKE, "--run", "HERE/new", "--shallow-depth", "9"], "shallow_depth"),
    "bodies that do not fit": ([*SMOKE, "--run", "HERE/new", "--radius", "0.5"], "fit"),
    "missing run": (["plan", "--run", "HERE/nowhere"], "nowhere"),
    "folder without checkpoint": (["curves", "--run", "HERE"], "last.pt"),
    "foreign text file": (["probe", "--run", "HERE/text"], "text"),
    "foreign torch file": (["diagnose", "--run", "HERE/foreign.pt"], "foreign.pt"),
    "truncated checkpoint": (["plan", "--run", "HERE/cut"], "last.pt"),
    "training on from a truncated checkpoint": ([*SMOKE, "--run", "HERE/cut"], "last.pt"),
    "weights that contradict their config": (["curves", "--run", "HERE/mixed.pt"], "mixed.pt"),
    "config that contradicts the checkpoint": ([*SMOKE, "--run", "RUN", "--width", "64"], "width"),
    "another preset's run": (["train", "--preset", "quick", "--run", "RUN"], "sequences"),
    "unavailable device": (["plan", "--run", "RUN", "--device", ABSENT], ABSENT),
    "training on an unavailable device": ([*SMOKE, "--run", "HERE/x", "--device", ABSENT], ABSENT),
    "run path is a file": ([*SMOKE, "--run", "HERE/text"], "text"),
    "run path goes through a file": ([*SMOKE, "--run", "HERE/text/new"], "text"),
    "out path is a file": (["curves", "--run", "RUN", "--out", "HERE/text"], "text"),
    "no sequences to encode": (["diagnose", "--run", "RUN", "--n", "0"], r"\bn\b"),
    "one sequence to encode": (["diagnose", "--run", "RUN", "--n", "1"], r"\bn\b"),
    "negative number of sequences": (["probe", "--run", "RUN", "--n", "-5"], r"\bn\b"),
    "no goals": (["plan", "--run", "RUN", "--goals", "0"], "goals"),
    "more elites than samples": (["plan", "--run", "RUN", "--elites", "99"], "elites"),
    "half a clip ahead": (["plan", "--run", "RUN", "--frames", "12"], "--frames 12"),
    "no frame ahead": (["plan", "--run", "RUN", "--frames", "0"], "--frames 0"),
    "as far as nothing goes": (["plan", "--run", "RUN", "--frames", "99995"], "--frames 99995"),
    "negative seed": (["plan", "--run", "RUN", "--seed", "-1"], "--seed is -1"),
    "half a goal": (["plan", "--run", "RUN", "--goal", "0", "0", "0"], "--goal has 3 numbers"),
    "goal in a wall": (["plan", "--run", "RUN", "--goal", "0", "0", "0.5", "0", "0", "0.99"],
                       "--goal: body 2 lies outside"),
    "goals that overlap": (["plan", "--run", "RUN", "--goal", "0", "0", "0.5", "0", "0.1", "0"],
                           "--goal: bodies 0 and 2 overlap"),
    "goal that is no number": (["plan", "--run", "RUN", "--goal", "0", "0", "0.5", "0", "nan", "0"],
                               "--goal: a number of the state is not finite"),
    "start that overlaps": (["plan", "--run", "RUN", "--goal", *map(str, PLACES), "--start", "0",
                             "0", "0", "0", "0", "0"], "--start: bodies 0 and 1 overlap"),
    "start without a goal": (["plan", "--run", "RUN", "--start", *map(str, PLACES)], "needs --goal"),
    "one flight at two times": (["plan", "--run", "RUN", "--goal", *map(str, PLACES), "--frames",
                                 "25", "50"], "one number of --frames"),
}


@pytest.fixture(scope="module")
def mistaken(smoke, tmp_path_factory):
    """A folder with RUN and HERE in it. A mistake must leave it as it is."""
    place = tmp_path_factory.mktemp("mistaken")
    here = place / "here"
    shutil.copytree(smoke, place / "run")
    (here / "cut").mkdir(parents=True)
    (here / "text").write_text("not a checkpoint\n")
    bits = (smoke / "last.pt").read_bytes()
    (here / "cut" / "last.pt").write_bytes(bits[:len(bits) // 2])
    torch.save({"weights": torch.zeros(3)}, here / "foreign.pt")
    content = saved(smoke)
    torch.save({**content, "config": {**content["config"], "latent": 64}}, here / "mixed.pt")
    return place


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_harms_nothing(mistake, mistaken):
    argv, says = MISTAKES[mistake]
    argv = [word.replace("HERE", str(mistaken / "here")) for word in argv]
    argv = [word.replace("RUN", str(mistaken / "run")) for word in argv]
    if argv and argv[0] in DRAWING and "--out" not in argv:
        argv += ["--out", str(mistaken / "figures")]
    before = snapshot(mistaken)
    done = command(*argv)
    assert done.returncode == 2, done.stderr
    line, = done.stderr.splitlines()                                      # exactly one
    assert line.startswith("hjepa: ") and re.search(says, line)
    assert snapshot(mistaken) == before


def test_a_mistake_is_one_line_of_a_process_too(mistaken):
    before = snapshot(mistaken)
    done = process("plan", "--run", mistaken / "here" / "cut", "--out", mistaken / "figures")
    assert done.returncode == 2 and done.stdout == ""
    line, = done.stderr.splitlines()
    assert line.startswith("hjepa: ") and "last.pt" in line
    assert snapshot(mistaken) == before


def test_ctrl_c_leaves_a_whole_checkpoint_and_exit_code_130(tmp_path):
    run = tmp_path / "run"
    argv = [sys.executable, "hjepa.py", *SMOKE, "--sequences", "128", "--epochs", "5000",
            "--validate-every", "0", "--run", str(run)]

    def listen():                               # even if the tests run where ctrl-c is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=listen)
    try:
        deadline = time.monotonic() + 120
        while not (run / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopped" in err and " ".join(argv[1:4]) in err
    content = hjepa.read_checkpoint(run)
    assert 1 <= content["epoch"] == len(content["history"]) < 5000
    assert not list(run.glob("*.part*"))
