"""Bad input of every kind: one clear line, exit code 2, no traceback, no file changed.

The tables run in this process, through main(argv): a process of its own costs two seconds of
imports, and test_cli has the same contract for processes. Cases that are generated (every setting
times every wrong value, a checkpoint cut at every kilobyte, flipped bits) run in loops; each loop
asserts how many it tried. For the public functions the documented exception stands in the table,
or "not finite", if what is not finite shall come out as such and not as a number.
"""
import contextlib
import dataclasses
import io
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, strategies as st

import hjepa
from conftest import ROOT, here, same

TINY = ("--sequences 8 --batch 4 --epochs 2 --validate-every 0 --width 4 --heads 1 --depth 1 "
        "--latent 4 --short-width 4 --macro-width 4 --predictor-blocks 1 --samples 8 --elites 3 "
        "--iterations 2 --goals 2 --validate-goals 2 --precision fp32 --device cpu").split()
FIGURES = "curves", "diagnose", "probe", "plan"
ABSENT = "cuda" if not torch.cuda.is_available() else "mps"


def snapshot(folder):
    """Every file below a folder, byte for byte. A lock only says who wrote last."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def call(main):
    """-> exit code, stdout, stderr of main(), which must not raise."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main()
    return code, out.getvalue(), err.getvalue()


def refused(argv, says="", main=hjepa.main, name="hjepa"):
    """Asserts the contract; `says` must be in the line."""
    code, out, err = call(lambda: main([str(a) for a in argv]))
    assert code == 2 and "Traceback" not in out + err, (argv, code, out, err)
    assert len(err.splitlines()) == 1 and err.startswith(name + ": "), (argv, err)
    assert says in err, (argv, says, err)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of a few kilobytes. Read it, never write."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    code, _, err = call(lambda: hjepa.main(["train", *TINY, "--run", str(run)]))
    assert code == 0, err
    return run


@pytest.fixture
def place(tiny, tmp_path):
    """A folder with a run, and with everything that is none."""
    shutil.copytree(tiny, tmp_path / "run")
    (tmp_path / "text").write_text("not a checkpoint\n")
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name in ("last.pt", "log.jsonl", ".lock", ".part.last.pt"):
        (tmp_path / ("folder " + name) / name).mkdir(parents=True)
    for name, content in (("foreign", {"weights": torch.zeros(3)}), ("list", [1, 2]),
                          ("tensor", torch.zeros(3))):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "last.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "last.pt")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as z:
        z.writestr("hello", "world")
    return tmp_path


# Settings: every one with every value that is wrong for its type.

def wrong_values():
    """Yields flag, values, what the line must say."""
    for f in dataclasses.fields(hjepa.Config):
        flag = "--" + f.name.replace("_", "-")
        if f.type in (int, float):
            for value in ("x", "nan", "inf", "-inf", "-1", "9" * 30, "0x10", "1,5", "1e999"):
                yield flag, [value], f.name
            for value in ("1.5", "1e3") if f.type is int else ():
                yield flag, [value], f.name
            low, high = hjepa.ALLOWED[f.name]
            if low > 0:
                yield flag, ["0"], f.name
            yield flag, [str(high * 2 + 1)], f.name
        elif f.type is bool:
            yield flag, ["yes"], "yes"
            yield flag + "=1", [], flag[2:]
        elif f.type is tuple:
            for value in ("x", "nan", "inf", "0", "-1", "1e9"):
                yield flag, ["1", value], "masses"
        else:
            yield flag, ["x"], f.name
        yield flag, [""], "empty"
        if f.type is not bool:
            yield flag, [], f.name
            yield flag[:-1], ["1"], flag[:-1]                             # abbreviated


def test_every_setting_refuses_every_wrong_value():
    cases = list(wrong_values())
    for flag, values, says in cases:
        code, out, err = call(lambda: hjepa.main(["config", flag, *values]))
        assert code == 2 and out == "" and len(err.splitlines()) == 1, (flag, values, err)
        assert says.replace("_", "-") in err.replace("_", "-"), (flag, values, err)
    assert len(cases) > 400


SETTINGS = {
    "more forces than blocks": ("--macro-blocks", 4),
    "shallow above deep": ("--shallow-depth", 3, "--depth", 2), "heads do not divide": (
        "--width", 10, "--heads", 4),
    "elites above samples": ("--samples", 5, "--elites", 6),
    "one sequence": ("--sequences", 1), "one sequence a batch": ("--sequences", 2, "--batch", 1),
    "batch above sequences": ("--sequences", 8, "--batch", 9),
    "seed of other worlds": ("--seed", 1_000_000), "validation on training": (
        "--validation-seed", 3), "test on validation": ("--test-seed", 1_000_000),
    "bodies that jump": ("--dt", 1, "--substeps", 1), "a feather that jumps": (
        "--masses", 0.001, 1000, "--radius", 0.02),
    "a huge body": ("--radius", 0.5, "--masses", 1, 4),
    "a guess without a network": ("--guess-width", 0), "contacts of one body": (
        "--masses", 1, "--contact-share", 0.5),
    "sixty bodies": ("--masses", *[1] * 60, "--radius", 0.2),
    "no goal needs force": ("--force-limit", 1e-6, "--validate-every", 1),
    "more sequences than memory": ("--sequences", 10**7, "--clip-frames", 100,
                                   "--event-clips", 100),
    "many bodies, more than memory": ("--masses", *[1] * 3000, "--sequences", 10**5),
    "preset and nonsense": ("--preset", "smoke", "fast"), "two presets": (
        "--preset", "smoke", "quick"), "unknown preset": ("--preset", "SMOKE"),
    "a lost dash": ("-epochs", 3), "a lost space": ("--epochs3",), "an unknown flag": (
        "--gpu",), "a flag of another command": ("--out", "x"), "absent": ("--device", ABSENT)}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_run_leave_nothing(name, tmp_path):
    run = tmp_path / "run"
    refused(["train", *TINY, *SETTINGS[name], "--run", run])
    assert snapshot(tmp_path) == {}


# Paths.

NO_RUN = ("missing", "empty", "text", "nothing", "folder last.pt", "foreign", "list", "tensor",
          "loop", "pipe", "archive.zip", "text/below", "run/log.jsonl", "x" * 300, "nul\0",
          "run/..", "/dev/null", "/dev/zero", "/proc/self/mem")


@pytest.mark.parametrize("command", FIGURES)
def test_what_is_no_run_is_refused(command, place):
    before = snapshot(place)
    for name in NO_RUN:
        refused([command, "--run", place / name, "--out", place / "out"])
    refused([command, "--run", "", "--out", place / "out"], "empty")
    assert snapshot(place) == before and not (place / "out").exists()


@pytest.mark.parametrize("name", ["text", "nothing", "folder last.pt", "folder .lock", "foreign",
                                  "folder .part.last.pt", "folder log.jsonl", "list", "tensor",
                                  "loop", "pipe", "text/below", "x" * 300, "nul\0", "/dev/null",
                                  "/proc/new", "/proc/self/fd/none/x", "/sys/new"])
def test_where_training_cannot_write_is_refused(name, place):
    """/proc and /sys refuse even root, whom no permission bit of a directory stops."""
    before = snapshot(place)
    refused(["train", *TINY, "--run", place / name])
    assert snapshot(place) == before and not list(place.rglob(".part*/*"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere: see /proc and /sys above")
@pytest.mark.parametrize("name", ["new", "run"])
def test_a_read_only_directory_is_refused(name, place):
    closed = place / "closed"
    shutil.move(place / "run", closed / "run")
    os.chmod(closed / "run", 0o500)
    os.chmod(closed, 0o500)
    try:
        refused(["train", *TINY, "--epochs", "3", "--run", closed / name])
    finally:
        os.chmod(closed, 0o700)
        os.chmod(closed / "run", 0o700)


OUTS = {"file": "text", "below a file": "text/below", "/proc": "/proc/new", "/sys": "/sys/new",
        "too long": "x" * 300, "nul": "nul\0", "loop": "loop"}


@pytest.mark.parametrize("name", OUTS)
def test_where_figures_cannot_go_is_refused(name, place):
    before = snapshot(place)
    refused(["curves", "--run", place / "run", "--out", place / OUTS[name]])
    assert snapshot(place) == before


@pytest.mark.parametrize("taken", ["curves.png", "curves.json", ".part.curves.png"])
def test_a_folder_in_the_place_of_a_figure_is_refused(taken, place):
    (place / "out" / taken).mkdir(parents=True)
    refused(["curves", "--run", place / "run", "--out", place / "out"])
    assert (place / "out" / taken).is_dir()
    # Numbers are written before pictures: a picture that fails leaves them.
    left = {path.name for path in (place / "out").iterdir() if path.is_file()}
    assert left <= {"curves.json", "curves.npz", "curves.png"} - {taken}


REQUESTS = {
    "no tasks": ("plan", "--goals", 0), "tasks below 0": ("plan", "--goals", -1),
    "too many tasks": ("plan", "--goals", 10**9), "one sample": ("plan", "--samples", 1),
    "no sample": ("plan", "--samples", 0), "no elites": ("plan", "--elites", 0),
    "one elite": ("plan", "--elites", 1), "elites": ("plan", "--elites", 9, "--samples", 8),
    "no iteration": ("plan", "--iterations", 0), "half a task": ("plan", "--goals", 0.5),
    "nan tasks": ("plan", "--goals", "nan"), "a million": ("plan", "--samples", 10**7),
    "precision": ("plan", "--precision", "fp32"), "absent": ("probe", "--device", ABSENT),
    "device": ("diagnose", "--device", "tpu"), "n is 0": ("diagnose", "--n", 0),
    "n is 1": ("probe", "--n", 1), "n below 0": ("diagnose", "--n", -5), "n is nan": (
        "probe", "--n", "nan"), "n without value": ("probe", "--n"), "n is huge": (
        "probe", "--n", 10**12), "n beyond 64 bits": ("diagnose", "--n", 10**20),
    "empty n": ("curves", "--n", ""), "abbreviated": ("plan", "--goal", 3),
    "a deviation below 0": ("plan", "--guess-std", -0.1), "it is nan": (
        "plan", "--guess-std", "nan"), "it is text": ("plan", "--guess-std", "much"),
    "reflections": ("plan", "--views", 2),
    "setting": ("plan", "--epochs", 3), "twice": ("curves", "diagnose"), "none": (),
    "unknown": ("fly",), "empty": ("",), "case": ("Plan",), "null": ("--null",), "-": ("-",)}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_make_no_sense(name, place):
    argv, before = [*REQUESTS[name]], snapshot(place)
    if argv and argv[0] in FIGURES:
        argv += ["--run", place / "run", "--out", place / "out"]
    refused(argv)
    assert snapshot(place) == before


# Settings for which twice the value would be refused for another reason.
OTHER = {"beta2": 0.9, "heads": 2, "dt": 0.02, "force_limit": 1.0, "start_speed": 0.2,
         "clip_frames": 4, "event_clips": 4}


def test_another_setting_for_a_run_is_refused_and_named(place):
    before, tried, now = snapshot(place), 0, hjepa.load(place / "run")[1]
    for f in dataclasses.fields(hjepa.Config):
        if f.name in ("device", "goals", "shallow_depth"):        # 2 is above depth
            continue
        flag, old = "--" + f.name.replace("_", "-"), getattr(now, f.name)
        if f.type is bool:
            argv = ["--no-" + flag[2:] if old else flag]
        elif f.type is tuple:
            argv = [flag, "1", "2", "3"]
        elif f.type is str:
            argv = [flag, "bf16"]
        else:
            argv = [flag, str(OTHER.get(f.name, old * 2))]
            argv[1] = "1" if old == 0 else argv[1]
            argv[1] = str(old + 1) if f.name.endswith("seed") else argv[1]
        refused(["train", *TINY, *argv, "--run", place / "run"], f.name)
        tried += 1
    assert tried > 25 and snapshot(place) == before


# Checkpoints: cut, flipped, forged, malicious.

def write(place, content):
    path = place / "bad" / "last.pt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


def test_a_checkpoint_cut_anywhere_is_refused(place):
    whole = (place / "run" / "last.pt").read_bytes()
    sizes = [*range(0, len(whole), max(1024, len(whole) // 100)), len(whole) - 1]
    for i, size in enumerate(sizes):
        path = write(place, whole[:size])
        refused([FIGURES[i % 4], "--run", path, "--out", place / "out"], "last.pt")
        if i % 10 == 0:
            refused(["train", *TINY, "--run", path.parent], "last.pt")
            assert path.read_bytes() == whole[:size]
    assert len(sizes) > 30 and not (place / "out").exists()


def test_a_flipped_bit_is_refused_or_changes_nothing(place):
    """torch.load reads a flipped weight without a word. Only bits of the archive's own tables that
    carry no content (dates, attributes, padding) may pass: then all is read as it was written."""
    whole, rng = (place / "run" / "last.pt").read_bytes(), random.Random(0)
    right, passed = hjepa.read_checkpoint(place / "run"), 0
    for _ in range(120):
        flipped, at = bytearray(whole), rng.randrange(len(whole))
        flipped[at] ^= 1 << rng.randrange(8)
        try:
            assert same(hjepa.read_checkpoint(write(place, bytes(flipped))), right), at
            passed += 1
        except hjepa.Refusal as e:
            assert "last.pt" in str(e) and "\n" not in str(e)
    assert passed < 100
    at = whole.find(right["model"]["context.position"].numpy().tobytes())
    assert at > 0                                                         # a weight, for certain
    write(place, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    for command in FIGURES:
        refused([command, "--run", place / "bad", "--out", place / "out"], "checksum")


def forgeries():
    """Name -> what it makes of a checkpoint."""
    def put(key, value):
        return lambda saved: {**saved, key: value}

    def model(change):
        return lambda s: {**s, "model": {k: change(v) for k, v in s["model"].items()}}

    def setting(**changes):
        return lambda s: {**s, "config": {**s["config"], **changes}}

    def state(change):
        return lambda s: {**s, "optimizer": {**s["optimizer"], "state": {
            k: change(v) for k, v in s["optimizer"]["state"].items()}}}
    table = {"without " + key: lambda s, key=key: {k: v for k, v in s.items() if k != key}
             for key in ("format", "config", "model", "optimizer", "epoch", "precision", "history",
                         "device")}
    table.update({key + " is None": put(key, None) for key in (
        "format", "config", "model", "optimizer", "epoch", "history")})
    table.update({
        "format of tomorrow": put("format", hjepa.FORMAT + 1), "format 0": put("format", 0),
        "format of yesterday": put("format", hjepa.FORMAT - 1),
        "with a part too many": lambda s: {**s, "model": {**s["model"], "change": torch.eye(5)}},
        "a guess in the settings only": setting(guess_width=4),
        "another number of blocks": setting(macro_blocks=6),
        "a row too few": lambda s: {**s, "history": s["history"][:-1]},
        "no row": put("history", []), "rows of numbers": put("history", [1, 2]),
        "empty rows": put("history", [{}, {}]), "epoch is text": put("epoch", "2"),
        "wider": setting(width=8), "another depth": setting(depth=2), "text": setting(epochs="2"),
        "half an epoch": setting(epochs=2.5), "one mass": setting(masses=3), "no mass": setting(
            masses=()), "nan mass": setting(masses=(math.nan,)), "unknown": setting(colour="red"),
        "shared": setting(shared=True), "gigantic": setting(
            width=8192, depth=64, latent=8192, short_width=8192, macro_width=8192),
        "no weights": put("model", {}), "weights of a list": put("model", [1]),
        "nan weights": model(lambda w: w * math.nan), "infinite": model(lambda w: w / 0),
        "transposed": model(lambda w: w.T.contiguous() if w.ndim == 2 else w),
        "sparse": model(lambda w: w.to_sparse()), "whole numbers": model(lambda w: w.long()),
        "no optimizer": put("optimizer", {}), "moments of another shape": state(
            lambda v: {**v, "exp_avg": torch.zeros(3)}), "steps": state(
            lambda v: {**v, "step": torch.zeros(5)}), "no moments": state(lambda v: {})})
    return table


@pytest.mark.parametrize("name", list(forgeries()))
def test_parts_that_do_not_fit_are_refused(name, place):
    """'moments of another shape' made the fused optimizer read outside its memory."""
    forged = forgeries()[name](torch.load(place / "run" / "last.pt", weights_only=True))
    path, before = write(place, forged), snapshot(place)
    for command in FIGURES:
        refused([command, "--run", path, "--out", place / "out"], "last.pt")
    refused(["train", *TINY, "--run", path.parent], "last.pt")
    assert snapshot(place) == before


class Evil:
    """What a pickle runs when it is read without care."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["pickle", "archive", "weight", "setting", "history", "legacy"])
def test_a_malicious_checkpoint_is_not_executed(form, place):
    mark, right = place / "executed", torch.load(place / "run" / "last.pt", weights_only=True)
    if form == "pickle":
        path = write(place, pickle.dumps(Evil(mark)))
    elif form == "legacy":
        path = place / "bad" / "last.pt"
        path.parent.mkdir()
        torch.save(Evil(mark), path, _use_new_zipfile_serialization=False)
    else:
        path = write(place, Evil(mark) if form == "archive" else {
            **right, **{"weight": {"model": {**right["model"], "context.position": Evil(mark)}},
                        "setting": {"config": {**right["config"], "seed": Evil(mark)}},
                        "history": {"history": [Evil(mark)] * 2}}[form]})
    for command in FIGURES:
        refused([command, "--run", path, "--out", place / "out"], "last.pt")
        assert not mark.exists()
    refused(["train", *TINY, "--run", path.parent], "last.pt")
    assert not mark.exists()
    with contextlib.suppress(Exception):        # the bait is real: without weights_only it bites
        if form == "pickle":
            pickle.loads(path.read_bytes())
        torch.load(path, weights_only=False)
    assert mark.exists()


# The scripts of the folder figures.

def script(name):
    """figures/NAME.py, run in this process -> main(argv)."""
    def main(argv):
        done = here(f"figures/{name}.py", *argv)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.returncode
    return main


SCRIPTS = {"dynamics": "--n", "response": "--n", "surprise": "--n", "representation": "--n",
           "planning": "--goals", "episode": "--goals",
           "variants": "--goals", "cost_maps": "--goals"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_refuse_as_the_file_does(name, place):
    main, before, flag = script(name), snapshot(place), SCRIPTS[name]
    run, tried = ["--run", place / "run", "--out", place / "out"], 0
    for value in (0, -1, "x", "nan", "1.5", "", 10**6, 10**20):
        refused([*run, flag, value], "", main, f"figures/{name}.py")
        tried += 1
    for argv in ([flag], ["--speed", 9], [flag[:-1], 3], ["--device", ABSENT], ["--device", "tpu"],
                 ["--precision", "fp32"], ["stray"], ["--run", place / "run"]):
        refused([*run, *argv], "", main, f"figures/{name}.py")
        tried += 1
    for bad in ("missing", "empty", "text", "foreign", "pipe", "folder last.pt", ""):
        refused(["--run", place / bad if bad else "", "--out", place / "out"], "", main,
                f"figures/{name}.py")
        tried += 1
    assert tried == 23 and snapshot(place) == before and not (place / "out").exists()


@pytest.mark.parametrize("frames", ["0", "-25", "7", "x", "24"])
def test_horizons_that_do_not_fit(frames, place):
    refused(["--run", place / "run", "--out", place / "out", "--goals", 2, "--frames", frames], "",
            script("planning"), "figures/planning.py")
    assert not (place / "out").exists()


# A few as processes: the interpreter's own doors.

@pytest.mark.parametrize("command", [
    "{py} hjepa.py config > /dev/full", "{py} figures/report/build.py --results {run}/last.pt"])
def test_as_a_process(command, place):
    """A full disk behind > is a full disk, too."""
    command = command.format(py=sys.executable, run=place / "run")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout


# Public functions: what is not finite comes out as such, or is refused; wrong shapes never pass.

WORLD = hjepa.World()
GEN = hjepa.generator(0, "bad input")
FINITE = torch.rand(6, 4, generator=GEN)
NOT_FINITE = math.nan, math.inf, -math.inf


def spoilt(x, at, bad):
    x = x.clone()
    x.view(-1)[at] = bad
    return x


@given(st.sampled_from(NOT_FINITE), st.integers(0, 2), st.integers(0, 11), st.booleans())
def test_a_world_that_is_not_finite_harms_no_other(bad, who, at, in_force):
    """And it never becomes finite again: no lie grows out of it."""
    gen = hjepa.generator(at, "worlds")
    start = WORLD.reset(3, gen)
    forces = WORLD.random_forces(3, 3, gen)
    right, contacts = WORLD.rollout(start, forces)
    if in_force:
        forces = forces.clone()
        forces[who, 0].view(-1)[at % 6] = bad
    else:
        start = start.clone()
        start[who].view(-1)[at] = bad
    got, got_contacts = WORLD.rollout(start, forces)
    others = [i for i in range(3) if i != who]
    assert torch.equal(got[others], right[others])
    assert torch.equal(got_contacts[others], contacts[others])
    assert not got[who].flatten(1).isfinite().all(1).any()                # not in any frame


@pytest.mark.parametrize("state, forces", [
    ((2, 2, 4), (2, 3, 4)), ((2, 3, 4), (2, 3, 2)), ((2, 3, 4), (5, 3, 6)),
    ((2, 3, 4), (2, 3, 3, 2)), ((3, 4), (2, 3, 6)), ((2, 1, 4), (2, 3, 2))])
def test_a_world_refuses_other_shapes(state, forces):
    with pytest.raises((AssertionError, RuntimeError, ValueError, IndexError)):
        WORLD.rollout(torch.zeros(state), torch.zeros(forces))


@pytest.mark.parametrize("wrong", [dict(masses=()), dict(masses=(-1.0,)), dict(radius=math.nan),
                                   dict(radius=math.inf), dict(radius=1.0),
                                   dict(masses=(1.0,) * 99)])
def test_worlds_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        hjepa.World(**wrong).reset(2, hjepa.generator(0, "x"))


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(hjepa.Config)]),
                       st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(),
                                 st.booleans(), st.tuples(st.floats())), max_size=3))
def test_a_config_is_right_or_refused(settings):
    """ValueError or TypeError; what passes has the right types and prints."""
    try:
        config = hjepa.Config(**settings)
    except (ValueError, TypeError):
        return
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        assert isinstance(value, (int, float) if f.type is float else f.type)
        for number in value if f.type is tuple else [value]:
            assert isinstance(number, str) or math.isfinite(number)
    json.dumps(dataclasses.asdict(config), allow_nan=False)


@pytest.mark.parametrize("name, value", [
    ("epochs", 2.5), ("epochs", "3"), ("epochs", None), ("lr", "1e-3"), ("lr", math.nan),
    ("shared", 3), ("shared", None), ("masses", ("1",)), ("masses", (math.inf,)), ("masses", "12"),
    ("device", 0), ("precision", "fp16"), ("sequences", math.inf), ("beta2", 1.0)])
def test_a_setting_of_another_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        hjepa.Config(**{name: value})


@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from(NOT_FINITE), st.integers(0, 10**6))
def test_vicreg_terms_that_are_not_finite_say_so(n, d, bad, at):
    """Infinity has no deviation: it gives NaN, never a small number."""
    z = torch.randn(n, d, generator=hjepa.generator(at, "z"))
    terms = hjepa.vicreg_terms(spoilt(z, at % (n * d), bad))
    assert not terms["std"].isfinite() and (d == 1 or not terms["cov"].isfinite())


@pytest.mark.parametrize("z", [torch.zeros(4), torch.zeros(0, 4), torch.zeros(1, 4)])
def test_vicreg_terms_refuse_what_has_no_variance(z):
    with pytest.raises(ValueError):
        hjepa.vicreg_terms(z)


def small_model():
    return hjepa.build_model(hjepa.Config(latent=4, width=4, depth=1, heads=1, short_width=4,
                                          macro_width=4, predictor_blocks=1))


WEIGHTS = hjepa.Config().loss_weights


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("where", ["obs", "forces"])
def test_an_objective_of_what_is_not_finite_is_not_finite(bad, where):
    obs, forces = torch.randn(4, 6, 5, 12, generator=GEN), torch.randn(4, 5, 6, generator=GEN)
    pair = (spoilt(obs, 7, bad), forces) if where == "obs" else (obs, spoilt(forces, 7, bad))
    total, terms = hjepa.objective(small_model(), *pair, WEIGHTS)
    assert not total.isfinite() and not terms["composite"].isfinite()


def guessing_model():
    return hjepa.build_model(hjepa.Config(latent=4, width=4, depth=1, heads=1, short_width=4,
                                          macro_width=4, predictor_blocks=1, guess_width=4))


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_term_of_what_is_not_finite_is_not_finite(bad):
    """Each of those that are added to the composite, and shares that are no numbers."""
    model = guessing_model()
    obs, forces = torch.randn(4, 6, 5, 12, generator=GEN), torch.randn(4, 5, 6, generator=GEN)
    weights = {**WEIGHTS, "sim": 1.0, "guess": 1.0}
    last = spoilt(obs, -1, bad)                                           # of the last clip
    _, terms = hjepa.objective(model, last, forces, weights)
    assert not any(terms[name].isfinite() for name in ("sim1", "sim2"))
    _, terms = hjepa.objective(model, spoilt(obs, 0, bad), forces, weights)
    assert not terms["guess"].isfinite()
    total, _ = hjepa.objective(model, obs, forces, weights, spoilt(torch.ones(4), 1, bad))
    assert not total.isfinite()


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_first_guess_of_what_is_not_finite_is_not_finite(bad):
    """No limit makes it a number again, and another goal of the batch is left alone."""
    model = guessing_model()
    clip, goal = torch.randn(2, 2, 5, 12, generator=GEN)
    right = hjepa.first_guess(model, clip, goal, 5)
    for pair in ((spoilt(clip, 3, bad), goal), (clip, spoilt(goal, 3, bad))):
        got = hjepa.first_guess(model, *pair, 5)
        assert not got[0].isfinite().any()
        torch.testing.assert_close(got[1], right[1])


@pytest.mark.parametrize("obs, forces", [
    ((4, 6, 5, 11), (4, 5, 6)), ((4, 6, 4, 12), (4, 5, 6)), ((4, 6, 5, 12), (4, 4, 6)),
    ((4, 6, 5, 12), (4, 5, 5)), ((4, 6, 5, 12), (3, 5, 6)), ((1, 6, 5, 12), (1, 5, 6)),
    ((4, 1, 5, 12), (4, 0, 6)), ((4, 5, 12), (4, 5, 6))])
def test_an_objective_of_other_shapes_is_refused(obs, forces):
    with pytest.raises((AssertionError, RuntimeError, ValueError, IndexError)):
        hjepa.objective(small_model(), torch.zeros(obs), torch.zeros(forces), WEIGHTS)


@given(st.sampled_from(NOT_FINITE), st.integers(0, 10**6))
def test_plans_stay_finite_whatever_the_cost_says(bad, seed):
    """A third of the costs is not finite: NaN and infinity are never chosen, -inf is the best."""
    def cost(plans):
        value = plans.square().sum((-1, -2))
        return torch.where(plans[..., 0, 0] > 0.4, torch.full_like(value, bad), value)
    zero = torch.zeros(2, 3, 2)
    plan, value = hjepa.cem(cost, zero, zero + 1, [hjepa.generator(seed, "p", i) for i in range(2)],
                            low=-2.0, high=2.0, samples=20, iterations=3, elites=4)
    assert plan.isfinite().all() and plan.abs().max() <= 2
    assert not value.isnan().any() and ((plan[:, 0, 0] <= 0.4).all() or bad == -math.inf)


@pytest.mark.parametrize("what", ["mean", "std"])
def test_a_search_from_nowhere_finds_nothing_and_says_so(what):
    start = {"mean": torch.zeros(1, 2, 2), "std": torch.ones(1, 2, 2)}
    start[what] = start[what] * math.nan

    def search():
        return hjepa.cem(lambda plans: plans.square().sum((-1, -2)), **start,
                         gens=[hjepa.generator(0, "p")], low=-2.0, high=2.0, samples=9, elites=3)
    if what == "mean":
        with pytest.raises(ValueError, match="every cost is NaN"):
            search()
    else:
        _, value = search()
        assert value.item() == 0.0                                        # the mean itself competes


def test_one_goal_whose_costs_are_all_nan_harms_no_other():
    """Its cost is infinite; the other goal's plan is as good as ever."""
    def cost(plans):
        value = plans.square().sum((-1, -2))
        return torch.stack([value[0] * math.nan, value[1]])
    zero = torch.zeros(2, 3, 2)
    _, value = hjepa.cem(cost, zero, zero + 1, [hjepa.generator(0, "p", i) for i in range(2)],
                         low=-2.0, high=2.0, samples=9, elites=3)
    assert value.tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("wrong, says", [
    (dict(gens=torch.Generator()), "give a list"), (dict(gens=[]), "as many generators"),
    (dict(low=2.0, high=-2.0), "low must be below high"), (dict(low=math.nan), "low must be"),
    (dict(low=-torch.ones(2), high=torch.tensor([1.0, -1.0])), "low must be below high")])
def test_a_search_says_what_it_misses(wrong, says):
    zero = torch.zeros(1, 3, 2)
    given = {"gens": [hjepa.generator(0, "p")], "low": -2.0, "high": 2.0, **wrong}
    with pytest.raises(ValueError, match=says) as caught:
        hjepa.cem(lambda plans: plans.sum((-1, -2)), zero, zero + 1, **given)
    assert "\n" not in str(caught.value)


def test_a_search_asks_for_its_bounds():
    with pytest.raises(TypeError, match="low"):
        hjepa.cem(None, torch.zeros(1, 3, 2), torch.ones(1, 3, 2), [hjepa.generator(0, "p")])


@pytest.mark.parametrize("cost", [lambda p: p, lambda p: p[:, 0, 0, 0], lambda p: p.sum(),
                                  lambda p: None, lambda p: p.sum((-1, -2))[:, :2]])
def test_a_cost_of_another_shape_is_refused(cost):
    with pytest.raises((RuntimeError, IndexError, AttributeError)):
        hjepa.cem(cost, torch.zeros(2, 3, 2), torch.ones(2, 3, 2),
                  [hjepa.generator(0, "p", i) for i in range(2)], low=-2.0, high=2.0, samples=9,
                  elites=3)


def test_a_latent_cost_of_what_is_not_finite_is_not_finite():
    for bad in NOT_FINITE:
        for start, goal in ((FINITE, spoilt(FINITE, 1, bad)), (spoilt(FINITE, 1, bad), FINITE)):
            value = hjepa.latent_cost(lambda z, plan: z, start, goal)(torch.zeros(6, 3, 2, 2))
            assert not value[0].isfinite().any() and value[1:].isfinite().all()


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_read_out_of_what_is_not_finite_is_not_finite(bad):
    x = torch.randn(30, 3, generator=GEN)
    y = torch.randn(30, 2, generator=GEN)
    weight, offset = hjepa.ridge((spoilt(x, 4, bad), y), (x, y))
    assert not (x.double() @ weight + offset).isfinite().any()
    weight, offset = hjepa.ridge((x, spoilt(y, 4, bad)), (x, y))
    guess = x.double() @ weight + offset
    assert not guess[:, 0].isfinite().any()
    assert not hjepa.r2(guess, y.double())[0].isfinite()
    with pytest.raises((RuntimeError, ValueError)):
        hjepa.ridge((x, y[:20]), (x, y))


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_a_rank_of_what_is_not_finite_is_none(bad):
    """What LAPACK makes of NaN differs from one to the next: an error or NaN, but no number."""
    with contextlib.suppress(torch.linalg.LinAlgError):
        assert math.isnan(hjepa.effective_rank(spoilt(torch.randn(9, 3, generator=GEN), 2, bad)))


def test_goals_missed_by_nan_are_not_reached():
    shares = hjepa.success(torch.tensor([[0.01, math.nan], [math.inf, 0.0], [0.01, 0.01]]))
    assert shares["success"] == shares["mean_body"] == pytest.approx(1 / 3)
    assert math.isnan(shares["error"])


@given(st.recursive(st.one_of(st.floats(), st.integers(), st.text(max_size=4), st.none()),
                    lambda x: st.one_of(st.lists(x, max_size=4), st.dictionaries(
                        st.text(max_size=3), x, max_size=3)), max_leaves=8))
def test_json_is_valid_or_refused(content):
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        try:
            hjepa.write_json(path, content)
        except ValueError:
            assert list(Path(folder).iterdir()) == []
        else:
            json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(c))


def test_memory_that_is_not_there_is_one_line(place, monkeypatch):
    def full(*args):
        raise MemoryError
    monkeypatch.setattr(hjepa, "latents", full)
    refused(["diagnose", "--run", place / "run", "--out", place / "out"], "memory")
    monkeypatch.setattr(hjepa, "latents", lambda *a: (_ for _ in ()).throw(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")))
    refused(["diagnose", "--run", place / "run", "--out", place / "out"], "memory")


def test_our_own_mistakes_are_not_hidden(place, monkeypatch):
    """A bug is no bad input: it keeps its traceback."""
    def bug(*args):
        raise KeyError("bug")
    monkeypatch.setattr(hjepa, "latents", bug)
    with pytest.raises(KeyError):
        hjepa.main(["diagnose", "--run", str(place / "run"), "--out", str(place / "out")])
