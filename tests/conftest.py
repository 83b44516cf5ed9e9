"""What all tests share: the path to hjepa.py, one thread, one trained smoke run, scripts called here."""
import contextlib
import io
import os
import runpy
import subprocess
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

torch.set_num_threads(1)
# Examples come from a fixed seed: a test passes or fails, it does not flicker.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None,
                                     max_examples=25)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """A run directory of the smoke preset, trained once, as a user would. Read it, never write."""
    run = tmp_path_factory.mktemp("smoke") / "run"
    command = [sys.executable, "hjepa.py", "train", "--preset", "smoke", "--run", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run


def here(script, *flags):
    """`python SCRIPT FLAGS` in this process: one of its own costs two seconds of imports. -> returncode,
    stdout, stderr."""
    old, sys.argv = sys.argv, [script, *map(str, flags)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")     # of libraries to each other; a process shows none
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = old
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
