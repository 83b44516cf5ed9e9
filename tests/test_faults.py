"""Faults that were found in use, a test per kind. Those of the simulator are in test_world.py."""
import enum
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import hjepa
from conftest import ROOT, TINY, command, flags, here, snapshot, tiny

pytestmark = pytest.mark.usefixtures("few_gauges")


# Saved, and never readable again

class Precision(str, enum.Enum):
    SINGLE = "fp32"


def test_settings_of_any_kind_of_number_become_plain():
    config = hjepa.Config(lr=np.logspace(-4, -2, 3)[1], epochs=np.int64(5), batch=np.int32(64),
                          radius=np.float32(0.05), shared=np.bool_(True), device=np.str_("cpu"),
                          precision=Precision.SINGLE, masses=np.array([1.0, 3.0]))
    for name, kind in (("lr", float), ("epochs", int), ("batch", int), ("radius", float),
                       ("shared", bool), ("device", str), ("precision", str), ("masses", tuple)):
        assert type(getattr(config, name)) is kind, name
    assert config.masses == (1.0, 3.0)
    assert [type(mass) for mass in config.masses] == [float, float]
    assert config.epochs == 5 and config.precision == "fp32"


@pytest.mark.parametrize("name, value", [("epochs", True), ("epochs", 2.0), ("masses", 3.0),
                                         ("masses", "12"), ("lr", 1j), ("device", 0)])
def test_what_is_no_number_of_that_kind_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        hjepa.Config(**{name: value})


def test_a_run_with_numpys_numbers_can_be_read_again(tmp_path):
    config = tiny(lr=np.logspace(-4, -2, 3)[1], epochs=np.int64(1))
    hjepa.train(config, str(tmp_path / "run"))                            # a string is a path
    _, read = hjepa.load(str(tmp_path / "run"))
    assert read == config


def test_a_checkpoint_that_cannot_be_read_back_does_not_replace_the_old_one(tmp_path, monkeypatch):
    hjepa.train(tiny(epochs=1), tmp_path)
    before = snapshot(tmp_path)
    saved = hjepa.read_checkpoint(tmp_path)
    saved["history"] = [{**saved["history"][0], "pred1": np.float64(1.0)}]
    with pytest.raises(Exception, match="(?i)weights.only|unsupported"):
        hjepa.save_run(tmp_path, saved)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["curves", "diagnose", "probe", "plan"])
def test_a_figure_reads_its_run_once(name, whole, tmp_path, monkeypatch):
    """The run may be training: a second look would see another epoch."""
    calls = []
    real = hjepa.read_checkpoint

    def read_checkpoint(run):
        calls.append(run)
        return real(run)
    monkeypatch.setattr(hjepa, "read_checkpoint", read_checkpoint)
    few = ["--n", "64"] if name in ("diagnose", "probe") else []
    done = command(name, "--run", whole, "--out", tmp_path, *few)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1


def test_the_optimiser_is_the_one_of_this_device(whole, tmp_path, monkeypatch):
    """A checkpoint of a Mac says fused=False; on a cpu or on cuda the fused one is used."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    saved = torch.load(run / "last.pt", weights_only=True)
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = False
    saved["history"] = saved["history"][:1]
    torch.save({**saved, "epoch": 1}, run / "last.pt")
    used = []
    real = hjepa.train_epoch

    def train_epoch(loss, model, optimizer, *rest):
        used.extend(group["fused"] for group in optimizer.param_groups)
        return real(loss, model, optimizer, *rest)
    monkeypatch.setattr(hjepa, "train_epoch", train_epoch)
    hjepa.train(TINY, run)
    assert used == [True, True]


# Fails after the work

@pytest.mark.parametrize("name", ["diagnose", "probe", "plan"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(name, whole, monkeypatch):
    def work(*args, **more):
        pytest.fail("it has begun to work")
    monkeypatch.setattr(hjepa, "make_sequences", work)
    done = command(name, "--run", whole, "--out", "/proc/x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["planning", "dynamics", "surprise", "episode", "hierarchy"])
def test_a_study_tries_its_place_before_the_work(name, smoke, monkeypatch):
    def work(*args, **more):
        pytest.fail("it has begun to work")
    monkeypatch.setattr(hjepa, "make_sequences", work)
    done = here(f"figures/{name}.py", "--run", smoke, "--out", "/proc/x")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_trying_a_place_leaves_nothing_behind(tmp_path):
    hjepa.try_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c").mkdir()
    hjepa.try_out(tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def curves_as_a_process(run, out, folder, **environment):
    folder.mkdir(exist_ok=True)
    words = [sys.executable, ROOT / "hjepa.py", "curves", "--run", run, "--out", out]
    return subprocess.run(words, cwd=folder, env={**os.environ, **environment}, text=True,
                          capture_output=True)


def test_the_users_matplotlib_does_not_decide_our_figures(whole, tmp_path):
    """A notebook sets a backend that need not be installed; a matplotlibrc in the folder or in the
    home sets styles. The picture is the same to the last byte."""
    plain = curves_as_a_process(whole, tmp_path / "plain", tmp_path / "here")
    assert plain.returncode == 0, plain.stderr
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "matplotlibrc").write_text(
        "axes.facecolor: red\nfont.size: 30\nbackend: nonsense_backend\n")
    other = curves_as_a_process(whole, tmp_path / "other", tmp_path / "there",
                                MPLBACKEND="module://matplotlib_inline.no_such_backend")
    assert other.returncode == 0, other.stderr
    pictures = [(tmp_path / name / "curves.png").read_bytes() for name in ("plain", "other")]
    assert pictures[0] == pictures[1]


def test_memory_that_torch_cannot_get_is_one_line(whole, tmp_path, monkeypatch):
    """On a cpu and on mps torch raises a plain RuntimeError."""
    monkeypatch.setattr(hjepa, "latents", lambda *args: torch.empty(10**15))
    done = command("diagnose", "--run", whole, "--out", tmp_path, "--n", "64")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "out of memory" in done.stderr

    def mps(*args):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB). Use\nmore")
    monkeypatch.setattr(hjepa, "latents", mps)
    done = command("diagnose", "--run", whole, "--out", tmp_path, "--n", "64")
    assert done.returncode == 2 and "out of memory" in done.stderr


def test_another_runtime_error_keeps_its_traceback(whole, tmp_path, monkeypatch):
    def bug(*args):
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(hjepa, "latents", bug)
    with pytest.raises(RuntimeError, match="shapes"):
        command("diagnose", "--run", whole, "--out", tmp_path, "--n", "64")


# The environment is trusted

@pytest.mark.parametrize("environment, says", [
    ({"RANK": "1"}, "RANK is 1"), ({"RANK": ""}, "RANK"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE"), ({"RANK": "-1"}, "RANK"), ({"RANK": "²"}, "RANK"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
    ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2")])
def test_a_wrong_environment_is_one_line(environment, says, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = command("train", *flags(TINY), "--run", tmp_path / "run")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert not list(tmp_path.rglob("last.pt"))


def test_several_processes_do_not_share_mps(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(hjepa, "pick_device", lambda name: torch.device("mps"))
    done = command("train", *flags(TINY), "--run", tmp_path / "run")
    assert done.returncode == 2 and "mps" in done.stderr and "--device cpu" in done.stderr


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    """As on some clusters: flock answers that it does not exist there."""
    import errno
    import fcntl

    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", flock)
    hjepa.train(tiny(epochs=1), tmp_path / "run")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "lock" in said[0]
    assert hjepa.read_checkpoint(tmp_path / "run")["epoch"] == 1


def fake_python(path, version, pip=True):
    """An interpreter that says it is of a version, and makes environments like itself."""
    path.parent.mkdir(parents=True)
    path.write_text(f"""#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0; fi
if [ "$1" = "-c" ]; then exec {sys.executable} - <<END
import sys
sys.exit(not ({pip} and (3, 11) <= {version} < (3, 14)))
END
fi
exit 3
""")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version, pip, makes", [((3, 9), True, False), ((3, 12), False, False),
                                                 ((3, 12), True, True)])
def test_an_environment_that_does_not_fit_is_made_anew(version, pip, makes, tmp_path):
    """And one that cannot be made leaves nothing that a second call would trust."""
    shutil.copy(ROOT / "reproduce.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch\n")
    fake_python(tmp_path / ".venv" / "bin" / "python", (3, 9))            # of an earlier call
    python = fake_python(tmp_path / "other" / "python", version, pip)
    done = subprocess.run(["bash", "reproduce.sh", "smoke"], cwd=tmp_path, text=True,
                          capture_output=True, env={**os.environ, "PYTHON": str(python)})
    if makes:
        assert "installing requirements.txt" in done.stdout               # it goes on
        return
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_scripts_keep_their_line_ends_wherever_they_are_cloned():
    attributes = (ROOT / ".gitattributes").read_text()
    assert "* text=auto eol=lf" in attributes
    assert b"\r" not in (ROOT / "reproduce.sh").read_bytes()


# Words that do not help

@pytest.mark.parametrize("argv, says", [
    (["train", "--validate_every", "3"], "train knows no --validate_every"),
    (["plan", "--epochs", "3"], "plan knows no --epochs"),
    (["config", "stray"], "config knows no stray")])
def test_an_unknown_flag_names_the_command_and_its_help(argv, says):
    done = command(*argv)
    assert done.returncode == 2 and says in done.stderr
    assert f"python hjepa.py {argv[0]} --help" in done.stderr


def test_too_few_and_too_many_sequences_are_two_messages(whole, tmp_path):
    few = command("diagnose", "--run", whole, "--out", tmp_path, "--n", "1")
    many = command("diagnose", "--run", whole, "--out", tmp_path, "--n", str(10**12))
    assert few.returncode == many.returncode == 2
    assert "2 or more" in few.stderr and "memory" not in few.stderr
    assert "GiB" in many.stderr and "2 or more" not in many.stderr


def test_an_epoch_is_saved_before_it_is_shown(tmp_path, monkeypatch):
    saved = []

    def print_row(row, head):
        saved.append(hjepa.read_checkpoint(tmp_path)["epoch"] == row["epoch"])
    monkeypatch.setattr(hjepa, "print_row", print_row)
    hjepa.train(TINY, tmp_path)
    assert saved == [True, True]


def test_an_encoder_takes_clips_of_its_length_only():
    encoder = hjepa.Encoder(frames=5, width=8, heads=2, latent=4)
    assert encoder(torch.zeros(2, 5, 12))[0].shape == (2, 4)
    for frames in (1, 4, 6):
        with pytest.raises(AssertionError):
            encoder(torch.zeros(2, frames, 12))


def test_settings_under_which_bodies_jump_say_how_many_substeps_would_do():
    with pytest.raises(ValueError, match="give ([0-9]+) or more") as refusal:
        hjepa.Config(dt=0.2, substeps=4)
    needed = int(str(refusal.value).split("give ")[1].split()[0])
    assert hjepa.Config(dt=0.2, substeps=needed).substeps == needed
    with pytest.raises(ValueError):
        hjepa.Config(dt=0.2, substeps=needed - 1)


def test_a_covariance_is_taken_of_a_contiguous_copy(monkeypatch):
    """A float32 product with a transposed left operand can be silently wrong on MPS."""
    seen = []
    real = torch.Tensor.__matmul__

    def matmul(a, b):
        seen.append(a.is_contiguous())
        return real(a, b)
    monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
    hjepa.vicreg_terms(torch.randn(8, 3))
    assert seen == [True]
