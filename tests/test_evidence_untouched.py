"""Nothing that a visitor runs changes a tracked file: figures go into the run's own folder."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hjepa
from conftest import ROOT, TINY, flags


@pytest.mark.parametrize("run, out", [
    ("runs/quick", "runs/quick/figures"),
    ("figures/weights/hjepa.pt", "runs/hjepa/figures"),
    ("somewhere/last.pt", "runs/last/figures")])
def test_figures_go_into_the_runs_own_folder(run, out):
    assert hjepa.default_out(run) == Path(out)


def git(*words, cwd):
    done = subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The tracked files as they stand now, in a repository of their own."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or no repository")
    folder = tmp_path_factory.mktemp("clone") / "repository"
    for name in git("ls-files", cwd=ROOT).splitlines():
        source = ROOT / name
        if not source.is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if source.suffix in (".npz", ".png", ".pt"):
            os.symlink(source, folder / name)       # 40 MB that no command should write to
        else:
            shutil.copyfile(source, folder / name)
    git("init", "-q", cwd=folder)
    git("add", "-A", cwd=folder)
    git("-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-qm", "all",
        cwd=folder)
    return folder


COMMANDS = {
    "train": ["hjepa.py", "train", *flags(TINY), "--run", "runs/tiny"],
    "curves": ["hjepa.py", "curves", "--run", "figures/weights/hjepa.pt"],
    "plan": ["hjepa.py", "plan", "--run", "figures/weights/hjepa.pt", "--goals", "2",
             "--samples", "12", "--iterations", "1"],
    "episode": ["figures/episode.py", "--run", "figures/weights/hjepa.pt", "--goals", "30"],
    "report": ["figures/report/build.py", "--results", "runs/hjepa/figures",
               "--out", "runs/hjepa/figures"],
}


def test_commands_of_a_visitor_leave_git_status_clean(clone):
    for name, words in COMMANDS.items():
        done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, (name, done.stderr)
        assert git("status", "--porcelain", cwd=clone) == "", name
    assert (clone / "runs/hjepa/figures/plan.json").exists()
    assert (clone / "runs/hjepa/figures/report.md").exists()


def test_a_command_that_writes_into_the_evidence_would_be_seen(clone):
    """The guard itself: an explicit --out may do so, and git status shows it."""
    words = ["hjepa.py", "curves", "--run", "runs/tiny", "--out", "figures/results/quick"]
    done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "curves.json" in git("status", "--porcelain", cwd=clone)
    git("checkout", "-q", "--", ".", cwd=clone)
