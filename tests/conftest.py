"""What all tests share: paths, one thread, small runs, programs called without a new process."""
import contextlib
import dataclasses
import functools
import io
import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "figures")]       # as `python figures/NAME.py` has it
# Child processes inherit these. One thread: on tensors this small a second one only waits.
os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import hjepa  # noqa: E402

torch.set_num_threads(1)
# Examples come from a fixed seed: a test passes or fails, it does not flicker.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None,
                                     max_examples=25)
hypothesis.settings.load_profile("fixed")

# A training of a tenth of a second. The forces are large, so that every goal needs force.
TINY = hjepa.Config(
    sequences=16, batch=8, epochs=2, clip_frames=2, event_clips=3, force_limit=20.0, latent=4,
    width=4, heads=1, depth=1, short_width=4, macro_width=4, predictor_blocks=1, macro_blocks=3,
    contact_share=0.0, guess_width=0, guess_weight=0.0, sim_weight=0.0, samples=10, iterations=2,
    elites=3, goals=2, validate_every=0, validate_goals=2, device="cpu", precision="fp32")


def tiny(**settings):
    """TINY with other settings."""
    return dataclasses.replace(TINY, **settings)


def flags(config):
    """-> the flags of `train` that mean this Config."""
    words = []
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        value = getattr(config, field.name)
        if field.type is bool:
            words.append(f"--{name}" if value else f"--no-{name}")
        elif field.type is tuple:
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words


# Programs, called in this process: one of its own costs two seconds of imports.

def quietly(do):
    """-> SimpleNamespace(returncode, stdout, stderr) of do(), which returns a code or exits with
    one."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = do() or 0
        except SystemExit as e:
            code = e.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def command(*argv):
    """`python hjepa.py ARGV` -> as `quietly`."""
    return quietly(lambda: hjepa.main([str(word) for word in argv]))


def here(script, *argv):
    """`python SCRIPT ARGV` -> as `quietly`. script: relative to the repository."""
    def run():
        old = sys.argv
        sys.argv = [script, *map(str, argv)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")     # of libraries to each other; a process has none
                runpy.run_path(str(ROOT / script), run_name="__main__")
        finally:
            sys.argv = old
    return quietly(run)


# Runs and what is in them.

@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A run directory of the smoke preset, trained once. Read it, never write."""
    run = tmp_path_factory.mktemp("smoke") / "run"
    done = command("train", "--preset", "smoke", "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def guessless(smoke, tmp_path_factory):
    """A checkpoint with the weights of the smoke run, of a model without a first guess."""
    content = hjepa.read_checkpoint(smoke)
    content["config"].update(guess_width=0, guess_weight=0.0)
    content["model"] = {name: weight for name, weight in content["model"].items()
                        if not name.startswith("guess.")}
    config = hjepa.Config(**content["config"])
    fresh = hjepa.make_optimizer(hjepa.build_model(config), config, torch.device("cpu"))
    content["optimizer"] = fresh.state_dict()
    path = tmp_path_factory.mktemp("guessless") / "last.pt"
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run directory of TINY, trained without a stop. Read it, never write."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hjepa, "validate", functools.partial(hjepa.validate, n=64))
        done = command("train", *flags(TINY), "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def few_gauges(monkeypatch):
    """64 validation worlds instead of 2048: where the gauges are not what is tested."""
    monkeypatch.setattr(hjepa, "validate", functools.partial(hjepa.validate, n=64))


def snapshot(folder):
    """Every file below a folder, byte for byte. A lock only says who wrote last."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


def saved(run):
    """The checkpoint, read as anyone may: nothing in it is executed."""
    return torch.load(run / "last.pt", map_location="cpu", weights_only=True)


def untimed(history):
    """A history without the seconds, which no two runs share."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def same(a, b):
    """Equal to the last bit, through dicts, lists and tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def same_runs(a, b):
    """The same weights, optimizer and history to the last bit, and the log of b is its history."""
    x = saved(a)
    y = saved(b)
    log = [json.loads(line) for line in (b / "log.jsonl").read_text().splitlines()]
    return (same(x["model"], y["model"]) and same(x["optimizer"], y["optimizer"])
            and untimed(x["history"]) == untimed(y["history"]) and log == y["history"])


def stop_before(monkeypatch, epoch, error=KeyboardInterrupt):
    """The next `train` stops when it begins this epoch (0 is the first)."""
    real = hjepa.train_epoch

    def train_epoch(loss, model, optimizer, data, config, now, *rest):
        if now == epoch:
            raise error
        return real(loss, model, optimizer, data, config, now, *rest)
    monkeypatch.setattr(hjepa, "train_epoch", train_epoch)


def fork(do):
    """do() in a process of its own, silent. -> its id"""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stdout = open(os.devnull, "w")
        code = do() or 0
    finally:
        os._exit(code)
