"""kill -9 anywhere in a training, then the same command: it must end as the unbroken run, bitwise.

    python tests/kill.py --times 50              # a minute or two on one core
    python tests/kill.py --times 5 --row 5       # what the test suite does: five kills of one run

A training of a second (smoke preset, smaller still) is run once to the end. Then, --times
times, it is started in a new directory, killed with SIGKILL and started again with the same
command, which must finish and leave the same checkpoint: weights, optimizer state, history. After
each kill there must be no checkpoint or a readable one, and in the end no file too many. --row N
kills one training N times before it may finish.

Each training is a process of its own, forked from this one, which has loaded torch already: no
time is spent on moments at which nothing is at stake. They are drawn from --seed, in turn of three
kinds:

    any      uniform over the time that the unbroken run took
    write    inside the checkpoint write: the script watches for .part.last.pt, which exists only
             while a checkpoint is being written, lets it come a random number of times, and
             kills within half a millisecond of its sight
    after    like write, but up to 20 ms later: between the renames of the two files, or just
             behind them

What a kill left behind says where it hit: a new .part file means inside the write. With ten kills
or more, at least one must have hit there, else the script has not tried what it promises, and
fails. The trainings look at 64 validation worlds instead of 2048: gauges are not at stake here.
"""
import argparse
import collections
import functools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import hjepa  # noqa: E402
import torch  # noqa: E402

EPOCHS = 3
COMMAND = ["train", "--preset", "smoke", "--sequences", "256", "--batch", "64", "--epochs",
           str(EPOCHS), "--validate-every", "2", "--validate-goals", "1", "--samples", "8",
           "--elites", "3", "--iterations", "2", "--clip-frames", "3", "--event-clips", "2",
           "--force-limit", "20", "--substeps", "5", "--latent", "32", "--device", "cpu", "--run"]
KINDS = ("any", "write", "after")


def start(run):
    """-> the id of a new process that runs `hjepa.py train` in `run`, and writes to run.txt."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    hjepa.validate = functools.partial(hjepa.validate, n=64)
    try:
        with open(f"{run}.txt", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        code = hjepa.main([*COMMAND, str(run)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def still_runs(pid):
    """Does it still run? It is not yet waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def end(pid, patience=300):
    """Waits for a process. -> its exit code, -9 if it was killed, by us or for its slowness."""
    deadline = time.monotonic() + patience
    while still_runs(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)                # nobody waits forever; if it has ended, no harm
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def content(run):
    """All of a checkpoint but the seconds an epoch took, in a form that == compares bit by bit."""
    saved = hjepa.read_checkpoint(run)
    tensors = dict(saved["model"])
    for number, state in saved["optimizer"]["state"].items():
        for name, value in state.items():
            tensors[number, name] = value
    bits = {name: (value.dtype, value.numpy().tobytes()) for name, value in tensors.items()}
    rows = [{**row, "seconds": None} for row in saved["history"]]
    return bits, rows, saved["config"], saved["epoch"], saved["precision"]


def mark_left_behind(run):
    """Set the date of what an earlier kill left behind to 1970: it is not being written now."""
    for path in run.glob(".part*"):
        os.utime(path, (0, 0))


def is_written(path):
    """Has the latest process written to this file, and not renamed it yet?"""
    try:
        return path.stat().st_mtime > 0
    except FileNotFoundError:
        return False


def wait_for_write(pid, run, times):
    """Returns when .part.last.pt has come `times` times, or the process has ended."""
    part = run / ".part.last.pt"
    was_there = False
    while still_runs(pid):
        is_there = is_written(part)
        if is_there and not was_there:
            times -= 1
        if times <= 0:
            return
        was_there = is_there
        time.sleep(0 if is_there else 0.0002)   # the training needs the processor, too


def epochs_saved(run):
    """How far the training is. Refusal if its checkpoint cannot be read."""
    if not (run / "last.pt").exists():
        return 0
    return hjepa.read_checkpoint(run)["epoch"]


def kill_once(run, kind, draw, seconds):
    """-> what to print about one kill; Refusal if it left an unreadable checkpoint. A training
    that had ended before the signal came was not killed: it is begun anew."""
    late = 0
    while True:
        left = max(EPOCHS - epochs_saved(run), 1)
        mark_left_behind(run)
        began = time.perf_counter()
        pid = start(run)
        if kind == "any":
            time.sleep(draw.uniform(0, seconds * left / EPOCHS))
        else:
            wait_for_write(pid, run, draw.randint(1, left))
            time.sleep(draw.uniform(0, 0.0005 if kind == "write" else 0.02))
        at = time.perf_counter() - began
        os.kill(pid, signal.SIGKILL)
        if end(pid) == -signal.SIGKILL:
            break
        shutil.rmtree(run)
        late += 1
    parts = sorted(path.name for path in run.glob(".part*") if is_written(path))
    return {"kind": kind, "at": at, "late": late, "epoch": epochs_saved(run), "parts": parts}


def try_run(run, kinds, draw, seconds, wanted):
    """Kills, then lets the command finish. -> reports of the kills, what is wrong or ''."""
    kills = []
    try:
        for kind in kinds:
            kills.append(kill_once(run, kind, draw, seconds))
        if end(start(run)):
            return kills, "the same command fails: " + Path(f"{run}.txt").read_text()
        if content(run) != wanted:
            return kills, "its end is not the unbroken run's"
        files = sorted(path.name for path in run.iterdir())
        if files != [".lock", "last.pt", "log.jsonl"]:
            return kills, f"it leaves {', '.join(files)}"
    except hjepa.Refusal as e:
        return kills, str(e)
    return kills, ""


def main(argv=None):
    """-> exit code: 0 if every killed training ended as the unbroken one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--times", type=int, default=50, help="kills (50)")
    parser.add_argument("--row", type=int, default=1, help="kills of one training (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    draw = random.Random(args.seed)
    began = time.perf_counter()
    kills = []
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("warm", "whole"):          # the second one is as fast as those to come
            whole = Path(folder) / name
            start_of_run = time.perf_counter()
            if end(start(whole)):
                sys.exit("the unbroken run fails: " + Path(f"{whole}.txt").read_text())
            seconds = time.perf_counter() - start_of_run
        wanted = content(whole)
        if content(Path(folder) / "warm") != wanted:
            sys.exit("two unbroken runs differ: nothing can be compared")
        print(f"the unbroken run: {EPOCHS} epochs, {seconds:.1f} s", flush=True)
        for first in range(0, args.times, args.row):
            numbers = range(first, min(first + args.row, args.times))
            kinds = [KINDS[number % 3] for number in numbers]
            run = Path(folder) / f"run{first}"
            tried, why = try_run(run, kinds, draw, seconds, wanted)
            for number, kill in zip(numbers, tried):
                where = "writing " + ", ".join(kill["parts"]) if kill["parts"] else "elsewhere"
                print(f"{number + 1:3} {kill['kind']:>5} killed after {kill['at']:5.2f} s, "
                      f"{where}; {kill['epoch']} epochs saved", flush=True)
            print("    FAILED: " + why if why else "    finished, bitwise equal", flush=True)
            wrong += bool(why)
            kills += tried
    inside = sum(bool(kill["parts"]) for kill in kills)
    late = sum(kill["late"] for kill in kills)
    epochs = collections.Counter(kill["epoch"] for kill in kills)
    print(f"{len(kills)} kills, {inside} of them inside a checkpoint write; {late} more came too "
          f"late and were repeated; epochs saved at the kill: {dict(sorted(epochs.items()))}; "
          f"trainings that did not end bitwise equal: {wrong}; {time.perf_counter() - began:.0f} s")
    if not inside and args.times >= 10:
        print("no kill hit a checkpoint write: nothing is shown about it")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
