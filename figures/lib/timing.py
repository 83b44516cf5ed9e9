"""How long something takes, and on what processor.

What is compared is timed inside one run, in turns, and the median or the ratio within a turn is
reported: a slow moment of the machine then meets all alike.
"""
import contextlib
import platform
import re
import time
from pathlib import Path

import numpy as np
import torch


def timed(action, device):
    """-> how long action() takes in seconds, to its last operation on the device; its result."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = action()
    wait()
    return time.perf_counter() - start, result


def in_turn(names, turn):
    """The names, backwards in every second turn: none is always first."""
    return list(names) if turn % 2 else list(reversed(names))


def race(actions, repeats, device):
    """dict name -> action; each runs once per turn. -> dict name -> list of `repeats` seconds. One
    turn goes before and does not count: first calls load code and allocate memory."""
    seconds = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name in in_turn(actions, turn):
            taken, _ = timed(actions[name], device)
            if turn > 0:
                seconds[name].append(taken)
    return seconds


def quartiles(values):
    """-> [first, third]."""
    return np.percentile(values, [25, 75]).tolist()


@contextlib.contextmanager
def one_thread():
    """Until left, one thread computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor():
    """The CPU's name where the system tells it (Linux), else its architecture."""
    path = Path("/proc/cpuinfo")
    found = path.exists() and re.search(r"model name\s*: (.*)", path.read_text())
    return found[1] if found else platform.machine()
