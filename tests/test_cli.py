"""The command line as a user meets it: every command in its own process, every mistake one line."""
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import hjepa
from conftest import ROOT

SMOKE = ["train", "--preset", "smoke"]


def hjepa_py(*args):
    """Runs `python hjepa.py ARGS` -> the finished process."""
    return subprocess.run([sys.executable, "hjepa.py", *map(str, args)], cwd=ROOT, text=True,
                          capture_output=True, timeout=300)


def contents(folder):
    """Every file below a folder, byte for byte; the lock only says who wrote last."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != ".lock"}


def test_train_writes_checkpoint_and_log(smoke):
    rows = [json.loads(line) for line in (smoke / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["composite"] < rows[0]["composite"]
    saved = hjepa.read_checkpoint(smoke)
    assert saved["history"] == rows and saved["epoch"] == 3
    config = hjepa.Config(**saved["config"])
    assert config == hjepa.Config(**hjepa.PRESETS["smoke"]) == hjepa.load(smoke)[1]


def test_train_again_does_nothing(smoke):
    before = contents(smoke)
    done = hjepa_py(*SMOKE, "--run", smoke)
    assert done.returncode == 0 and "3 of 3 epochs done" in done.stdout
    assert contents(smoke) == before


PLAN = ["--tasks", 4, "--precision", "fp32"]


@pytest.mark.parametrize("command, extra, n", [
    ("curves", [], 1024), ("diagnose", ["--n", 512], 512), ("probe", ["--n", 256], 256),
    ("plan", PLAN, 4)])
def test_figures_come_with_their_numbers(smoke, tmp_path, command, extra, n):
    """--run takes a run directory, or a checkpoint by its name."""
    before, out = contents(smoke), tmp_path / "new" / "figures"
    run = smoke / "last.pt" if command == "curves" else smoke
    done = hjepa_py(command, "--run", run, "--out", out, *extra)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "Traceback" not in done.stdout
    written = {f"{command}.png", f"{command}.json"} | ({"plan.gif"} if command == "plan" else set())
    assert {p.name for p in out.iterdir()} == written
    magic = {".png": b"\x89PNG\r\n", ".gif": b"GIF89a", ".json": b"{"}
    for path in out.iterdir():
        assert path.read_bytes().startswith(magic[path.suffix]) and path.stat().st_size > 500
    record = json.loads((out / f"{command}.json").read_text())
    assert record["command"].startswith(f"python hjepa.py {command} --run {smoke}")
    assert record["device"] and record["torch"] == torch.__version__
    assert record["seeds"] == [0] and record["n"] == n
    assert record["epochs"] == 3 and record["sequences"] == 1024 and len(record["rows"]) > 1
    assert contents(smoke) == before


def test_figures_of_a_half_trained_run_say_how_far_it_was_trained(smoke, tmp_path):
    saved = hjepa.read_checkpoint(smoke)
    half = {**saved, "epoch": 2, "history": saved["history"][:2],
            "config": {**saved["config"], "shared": True}}
    half["model"] = hjepa.build(hjepa.Config(**half["config"])).state_dict()
    half["optimizer"] = hjepa.make_optimizer(hjepa.build(hjepa.Config(**half["config"])),
                                             hjepa.Config(), torch.device("cpu")).state_dict()
    torch.save(half, tmp_path / "half.pt")
    assert hjepa.main(["curves", "--run", str(tmp_path / "half.pt"), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "curves.json").read_text())
    assert record["epochs"] == 2 == len(record["rows"])
    model = hjepa.build(hjepa.Config(**half["config"]))                   # one encoder counts once
    assert record["parameters"] == sum(p.numel() for p in model.parameters())


def test_flags_that_a_command_would_ignore_are_refused(smoke):
    for command, flag in (("plan", "--n"), ("curves", "--n"), ("probe", "--tasks")):
        done = hjepa_py(command, "--run", smoke, flag, 20)
        assert done.returncode == 2 and flag in done.stderr


def test_plan_reports_every_planner_task_by_task(smoke, tmp_path):
    for name in "ab":
        assert hjepa_py("plan", "--run", smoke, "--out", tmp_path / name, *PLAN).returncode == 0
    a, b = (json.loads((tmp_path / name / "plan.json").read_text())["rows"] for name in "ab")
    assert [row["planner"] for row in a] == list(hjepa.PLANNERS)
    for row, again in zip(a, b):
        errors = torch.tensor(row["errors"])
        assert errors.shape == (4, 3) and row["errors"] == again["errors"]
        assert row["mean_body"] == pytest.approx((errors.mean(1) < 0.1).float().mean().item())
        assert row["success"] == pytest.approx((errors.amax(1) < 0.1).float().mean().item())
        assert row["error"] == pytest.approx(errors.mean().item(), abs=1e-4)
        low, high = row["mean_body_ci"]
        assert 0 <= low <= row["mean_body"] <= high <= 1


def test_config_shows_every_value_and_its_source():
    done = hjepa_py("config", "--preset", "smoke", "--lr", "0.002", "--no-symmetries")
    assert done.returncode == 0, done.stderr
    lines = {line.split(" = ")[0].strip(): line.split(" = ")[1].split("  ")
             for line in done.stdout.splitlines()}
    assert list(lines) == [f.name for f in dataclasses.fields(hjepa.Config)]
    assert lines["lr"][0] == "0.002" and "flag" in " ".join(lines["lr"])
    assert lines["symmetries"][0].startswith("False")
    assert "preset smoke" in " ".join(lines["epochs"]) and lines["epochs"][0].startswith("3")
    assert "default, paper" in " ".join(lines["latent"])


def test_help_names_every_command():
    done = hjepa_py("--help")
    assert done.returncode == 0
    assert all(c in done.stdout for c in ("train", "curves", "diagnose", "probe", "plan", "config"))


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
    "settings that do not fit together": ([*SMOKE, "--run", "HERE/new", "--tap", "9"], "tap"),
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
    "no tasks": (["plan", "--run", "RUN", "--tasks", "0"], "tasks"),
    "more elites than samples": (["plan", "--run", "RUN", "--elites", "99"], "elites"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_harms_nothing(mistake, smoke, tmp_path):
    run, here = tmp_path / "run", tmp_path / "here"
    shutil.copytree(smoke, run)
    (here / "cut").mkdir(parents=True)
    (here / "text").write_text("not a checkpoint\n")
    whole = (smoke / "last.pt").read_bytes()
    (here / "cut" / "last.pt").write_bytes(whole[:len(whole) // 2])
    torch.save({"weights": torch.zeros(3)}, here / "foreign.pt")
    saved = torch.load(smoke / "last.pt", weights_only=True)
    torch.save({**saved, "config": {**saved["config"], "latent": 64}}, here / "mixed.pt")

    before, (args, says) = contents(tmp_path), MISTAKES[mistake]
    args = [a.replace("HERE", str(here)).replace("RUN", str(run)) for a in args]
    if args and args[0] in ("curves", "diagnose", "probe", "plan") and "--out" not in args:
        args += ["--out", str(tmp_path / "figures")]
    done = hjepa_py(*args)
    assert done.returncode == 2, done.stderr
    line, = done.stderr.splitlines()                                      # exactly one
    assert line.startswith("hjepa: ") and re.search(says, line)
    assert "Traceback" not in done.stdout
    assert contents(tmp_path) == before


def test_ctrl_c_leaves_a_whole_checkpoint_and_exit_code_130(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "hjepa.py", *SMOKE, "--epochs", "5000", "--measure-every", "0",
               "--run", str(run)]

    def listen():                            # even if the tests run where ctrl-c is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=listen)
    try:
        deadline = time.monotonic() + 120
        while not (run / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopped" in err and " ".join(command[1:4]) in err
    saved = hjepa.read_checkpoint(run)
    assert 1 <= saved["epoch"] == len(saved["history"]) < 5000
    assert not list(run.glob("*.part*"))
