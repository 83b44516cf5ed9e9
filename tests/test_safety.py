"""Hours without anyone watching: kills, full disks, two writers, NaN, memory, ctrl-c, and no code
from files. The long form of the first is `python tests/kill.py --times 50`."""
import ast
import gc
import io
import json
import math
import os
import resource
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

import hjepa
from conftest import ROOT, TINY, command, flags, fork, same_runs, snapshot, stop_before, tiny
from kill import end

pytestmark = pytest.mark.usefixtures("few_gauges")


# Killed anywhere.

def test_killed_five_times_it_ends_as_if_never_killed():
    done = subprocess.run([sys.executable, "tests/kill.py", "--times", "5", "--row", "5"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills" in done.stdout and "not end bitwise equal: 0" in done.stdout


def test_killed_around_every_rename(tmp_path):
    """Two files change at the end of an epoch: killed before, between and after, nothing is lost,
    not even the last row of the log."""
    hjepa.train(TINY, tmp_path / "whole")
    real, renames = os.replace, 2 * TINY.epochs
    for number in range(1, renames + 1):
        for first in (True, False):
            run, left = tmp_path / f"{number} {first}", [number]

            def replace(a, b):
                left[0] -= 1
                if left[0] == 0 and first:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(a, b)
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            def train():
                os.replace = replace
                hjepa.train(TINY, run)
            assert end(fork(train)) == -signal.SIGKILL
            assert not (run / "last.pt").exists() or hjepa.read_checkpoint(run)["epoch"]
            hjepa.train(TINY, run)
            assert same_runs(tmp_path / "whole", run), (number, first)
            assert set(snapshot(run)) == {"last.pt", "log.jsonl"}


def test_what_a_kill_left_lying_is_cleared_away(tmp_path, monkeypatch):
    hjepa.train(TINY, tmp_path / "whole")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            hjepa.train(TINY, run)
    (run / ".part.last.pt").write_bytes(b"PK half")
    (run / ".part.log.jsonl").write_text('{"epoch": 1, "pre')
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text()[:-20])   # a half-written line
    hjepa.train(TINY, run)
    assert same_runs(tmp_path / "whole", run) and set(snapshot(run)) == {"last.pt", "log.jsonl"}


# A full disk.

def limited(size, do):
    """do() while no file can grow beyond size: what a full disk does, for a process without the
    right to mount one. -> exit code"""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))             # SIGXFSZ: Python ignores
    try:
        return do()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    hjepa.train(TINY, tmp_path / "whole")
    run, size = tmp_path / "run", (tmp_path / "whole" / "last.pt").stat().st_size
    with monkeypatch.context() as patch:
        stop_before(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            hjepa.train(TINY, run)
    before = snapshot(run)
    argv = ["train", *flags(TINY), "--run", run]
    for room in (0, 100, 5000, size // 2, size - 1):
        done = limited(room, lambda: command(*argv))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, (room, done.stderr)
        assert "File too large" in done.stderr
        assert snapshot(run) == before
    assert command(*argv).returncode == 0
    assert same_runs(tmp_path / "whole", run)


def test_a_full_disk_keeps_the_last_figure(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    hjepa.train(TINY, run)
    argv = ["curves", "--run", run, "--out", out]
    assert command(*argv).returncode == 0
    before = snapshot(out)
    for room in (0, 100, len(before["curves.png"]) - 1):
        done = limited(room, lambda: command(*argv))
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert snapshot(out) == before


def test_a_full_file_system(tmp_path):
    """A real one, of 64 KiB, where this process may mount one in a namespace of its own."""
    full = tmp_path / "full"
    full.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {full}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount: the limit on file sizes above has shown the same")
    train = shlex.join([sys.executable, "hjepa.py", "train", *flags(tiny(latent=32)), "--run",
                        f"{full}/run"])
    done = subprocess.run(["unshare", "-rm", "sh", "-c",
                           f"{mount} && {train}; echo code $?; ls -A {full}/run"],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["code", "2", ".lock"], done.stdout
    assert len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr


# Two runs, one directory.

def test_the_second_run_names_the_first_and_a_dead_one_holds_nothing(tmp_path):
    ready, told = os.pipe()

    def hold():
        with hjepa.locked(tmp_path):
            os.write(told, b"x")
            time.sleep(60)
    pid = fork(hold)
    try:
        assert select.select([ready], [], [], 60)[0]
        argv = ["train", *flags(TINY), "--run", tmp_path]
        done = command(*argv)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and f"process {pid}:" in done.stderr
        assert set(p.name for p in tmp_path.iterdir()) == {".lock"}
    finally:
        os.kill(pid, signal.SIGKILL)
        end(pid)
    assert (tmp_path / ".lock").read_text() == f"{pid}\n"                 # the dead one's name
    assert command(*argv).returncode == 0
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


# The same command, the same bits.

class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_changes_what_is_shown_and_nothing_else(tmp_path, monkeypatch):
    hjepa.train(tiny(validate_every=1), tmp_path / "a")
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(sys, "stdout", terminal)
        hjepa.train(tiny(validate_every=1), tmp_path / "b")
    assert "epoch 1/2 ####" in terminal.getvalue() and same_runs(tmp_path / "a", tmp_path / "b")


def test_the_precision_is_measured_once_and_a_little_load_does_not_change_it(tmp_path, monkeypatch):
    device = torch.device("cpu")
    for fp32, bf16, choice in ((2.0, 1.0, "bf16"), (1.2, 1.0, "fp32"), (1.0, 3.0, "fp32")):
        times = iter([[fp32 + load for load in (9.0, 0.0, 3.0)], [bf16, bf16 + 50.0]])
        with monkeypatch.context() as patch:
            patch.setattr(hjepa.timeit, "repeat", lambda *args, **kw: next(times))
            assert hjepa.pick_precision("auto", device) == choice
    with monkeypatch.context() as patch:                                  # a run keeps its choice
        patch.setattr(hjepa, "pick_precision", lambda *args: "bf16")
        hjepa.train(tiny(precision="auto", epochs=1), tmp_path / "a")
    assert hjepa.read_checkpoint(tmp_path / "a")["precision"] == "bf16"


@pytest.mark.parametrize("planner", hjepa.PLANNERS)
def test_a_goal_does_not_see_how_many_others_there_are(planner):
    world = hjepa.build_world(TINY)
    model = hjepa.build_model(tiny(guess_width=4))
    device = torch.device("cpu")
    goals = hjepa.make_goals(world, 4, TINY.event_clips, hjepa.generator(0, "tasks"),
                             TINY.clip_frames)

    def states(n):
        few = {name: x[:n] for name, x in goals.items()}
        return hjepa.try_goals(planner, model, world, TINY, few, 0, device)[1]
    assert torch.equal(states(1), states(4)[:1]) and torch.equal(states(3), states(4)[:3])


# No code from files, no half files.

SOURCES = [ROOT / "hjepa.py", *sorted((ROOT / "figures").rglob("*.py"))]
CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv",
        "torch.hub.load", "torch.jit.load", "runpy.run_path"}
MODULES = {"pickle", "marshal", "shelve", "subprocess", "pty", "ctypes", "importlib", "socket",
           "urllib", "http", "dill", "joblib", "yaml"}
# They look for planners of other libraries, and for a file of data in a package, which they name.
MAY = {"foreign.py": {"importlib", "importlib.util"}, "pictures_data.py": {"importlib"}}


def crimes(tree):
    """Yields what a source must not contain: code from data, files written in place."""
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            opened = " ".join(ast.unparse(item.context_expr) for item in node.items)
            if "whole_file(" in opened:
                safe.update(ast.walk(node))
        if isinstance(node, ast.FunctionDef) and "os.replace" in ast.unparse(node):
            safe.update(ast.walk(node))                                   # it is atomic itself
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (n for n in names if n.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in CODE or words.get("shell") == "True":
            yield ast.unparse(node)
        if name == "torch.load" and words.get("weights_only") != "True":
            yield ast.unparse(node)
        if name == "np.load" and words.get("allow_pickle") != "False":
            yield ast.unparse(node)
        writes = name.split(".")[-1] in ("write_text", "write_bytes", "savefig", "saving", "imsave")
        mode = ast.unparse(node.args[1]) if name == "open" and len(node.args) > 1 else ""
        lock = "'.lock'" in ast.unparse(node)
        in_memory = name == "torch.save" and ast.unparse(node.args[1]) == "whole"
        if (writes or set("wax+") & set(mode) or name == "torch.save") and not (
                node in safe or lock or in_memory):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_source_runs_data_or_writes_in_place(path):
    assert set(crimes(ast.parse(path.read_text()))) <= MAY.get(path.name, set())


@pytest.mark.parametrize("crime", [
    "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)", "import pickle",
    "from subprocess import run", "p.write_text(x)", "figure.savefig(p)", "torch.save(x, p)",
    "open(p, 'w')", "with open(p, 'wb') as f: f.write(x)", "np.load(p, allow_pickle=True)",
    "with writer.saving(figure, p, dpi=90): pass", "os.system(x)", "run(x, shell=True)"])
def test_the_search_for_crimes_finds_them(crime):
    assert len(list(crimes(ast.parse(crime)))) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_figure_that_fails_half_way_leaves_the_old_one(stop, tmp_path, monkeypatch, capsys):
    """PNG and GIF of `plan`: whichever is being written, the old one stays, whole. The numbers are
    on the disk before that."""
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure
    run, out = tmp_path / "run", tmp_path / "out"
    hjepa.train(TINY, run)
    out.mkdir()
    old = {f"plan.{kind}": f"old {kind}".encode() for kind in ("png", "json", "gif")}
    for name, content in old.items():
        (out / name).write_bytes(content)
    argv = ["plan", "--run", str(run), "--out", str(out)]

    def png(self, path, **rest):
        path.write_bytes(b"half")
        raise stop

    def gif(self, **rest):
        self.outfile.write_bytes(b"half")
        raise stop                              # at the first frame: there is nothing to finish
    for owner, name, broken in ((Figure, "savefig", png), (PillowWriter, "grab_frame", gif)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            assert hjepa.main(argv) == (130 if stop is KeyboardInterrupt else 2)
        assert "Traceback" not in capsys.readouterr().err
        now = snapshot(out)
        assert set(now) == {*old, "plan.npz"} and now["plan.gif"] == old["plan.gif"]
        assert json.loads(now["plan.json"])["n"] == TINY.goals      # numbers come before pictures
        assert (now["plan.png"] == old["plan.png"]) == (broken is png)


# Numbers.

def test_a_weight_that_breaks_in_the_last_step_is_not_saved(tmp_path, monkeypatch):
    """Every term of the epoch is finite: it would show an epoch later, the checkpoint gone."""
    real, steps = torch.optim.AdamW.step, []

    def step(self, *args):
        real(self, *args)
        steps.append(1)
        if len(steps) == 4:                                               # epoch 2, step 2 of 2
            self.param_groups[0]["params"][3].data[0, 0] = math.nan
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(hjepa.Refusal) as refusal:
            hjepa.train(TINY, run)
    for word in ("weight", "epoch 2"):
        assert word in str(refusal.value)
    assert hjepa.read_checkpoint(run)["epoch"] == 1
    assert set(snapshot(run)) == {"last.pt", "log.jsonl"}
    hjepa.train(TINY, run)
    hjepa.train(TINY, tmp_path / "whole")
    assert same_runs(tmp_path / "whole", run)


STRANGE = {
    "ten times the rate": (dict(lr=1e-2), 0), "a rate of 10": (dict(lr=10.0, epochs=4), None),
    "hardly a force": (dict(force_limit=1e-6), 0),
    "hardly a force, and goals": (dict(force_limit=1e-6, validate_every=1), 2),
    "one body": (dict(masses=(1.0,), validate_every=1), 0),
    "ten bodies": (dict(masses=(1.0,) * 10, validate_every=1), 0),
    "two sequences": (dict(sequences=2, batch=2), 0),
    "one frame": (dict(clip_frames=1, event_clips=1), 0),
    "a long event": (dict(clip_frames=7, event_clips=9, macro_blocks=9, substeps=40), 0),
    "no weights": (dict(pred_weight=0.0, std_weight=0.0, cov_weight=0.0, map_weight=0.0), 0),
    "at rest": (dict(start_speed=0.0), 0), "two dimensions": (dict(latent=2), 0),
    "feather and lead": (dict(masses=(0.01, 100.0), radius=0.07, force_limit=0.2,
                              substeps=64), 0)}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_settings_run_or_say_why_not(name, tmp_path, capsys):
    settings, wanted = STRANGE[name]
    code = hjepa.main(["train", *flags(tiny(**settings)), "--run", str(tmp_path)])
    err = capsys.readouterr().err
    assert code == wanted or (wanted is None and code in (0, 2)), err
    assert len(err.splitlines()) == (1 if code else 0)
    if not code:
        history = hjepa.read_checkpoint(tmp_path)["history"]
        assert all(math.isfinite(value) for row in history for value in row.values())


@pytest.mark.parametrize("masses", [(1.0,), (1.0,) * 10])
def test_one_body_and_ten_bodies_have_figures(masses, tmp_path):
    """One body has no pair: `probe` once stumbled over the mean of no distance."""
    hjepa.train(tiny(masses=masses), tmp_path / "run")
    for command in ("probe", "plan") if len(masses) == 1 else ("probe",):
        argv = [command, "--run", tmp_path / "run", "--out", tmp_path / "out"]
        argv += ["--n", "64"] * (command == "probe")
        assert hjepa.main(list(map(str, argv))) == 0
    rows = json.loads((tmp_path / "out" / "probe.json").read_text())["rows"]
    assert ("pair distance" in {row["target"] for row in rows}) == (len(masses) > 1)


# Long jobs.

def test_thirty_epochs_take_no_more_memory_or_disk_than_ten(tmp_path, monkeypatch):
    """A graph or a batch that is kept per epoch would add a megabyte or more each time. What grows
    is the history, by some hundred bytes an epoch."""
    pages, sizes, real = [], [], hjepa.print_row

    def print_row(row, head):
        gc.collect()
        with open("/proc/self/statm") as f:
            pages.append(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        sizes.append(sum(len(x) for x in snapshot(tmp_path).values()))
        real(row, head)
    monkeypatch.setattr(hjepa, "print_row", print_row)
    hjepa.train(tiny(epochs=30, sequences=64, batch=32, latent=64, width=32), tmp_path)
    assert len(pages) == 30
    assert max(pages[20:]) - max(pages[5:10]) < 3, pages                  # MiB
    assert set(snapshot(tmp_path)) == {"last.pt", "log.jsonl"}
    assert sizes[29] - sizes[1] < 30 * 1500, sizes                        # bytes


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(tmp_path):
    """The command it prints is one: typed into a shell, it goes on, whatever the path."""
    run, told = tmp_path / "my run's", tmp_path / "told"
    config = tiny(epochs=100_000)
    argv = ["train", *flags(config), "--run", str(run)]

    def train():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(told, "w") as sys.stderr:
            return hjepa.main(argv)
    pid = fork(train)
    deadline = time.monotonic() + 60
    while not (run / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert end(pid) == 130 and time.monotonic() - began < 5
    assert set(snapshot(run)) == {"last.pt", "log.jsonl"}
    assert hjepa.read_checkpoint(run)["epoch"] >= 1
    line, = told.read_text().strip().splitlines()
    assert shlex.split(line.split("python hjepa.py ")[1]) == argv


def test_ctrl_c_inside_the_checkpoint_write_harms_nothing(tmp_path, monkeypatch):
    hjepa.train(TINY, tmp_path / "whole")
    run, real, calls = tmp_path / "run", os.fsync, []

    def fsync(f):
        calls.append(1)
        if len(calls) == 3:                                               # the second epoch's log
            raise KeyboardInterrupt
        real(f)
    argv = ["train", *flags(TINY), "--run", run]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert command(*argv).returncode == 130
    assert set(snapshot(run)) == {"last.pt", "log.jsonl"}
    assert hjepa.read_checkpoint(run)["epoch"] == 1
    assert command(*argv).returncode == 0 and same_runs(tmp_path / "whole", run)
