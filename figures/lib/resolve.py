"""Paths into the JSON of figures/results: the one resolver of README, the report and the tests.

A path is keys joined by dots, with picks in brackets:

    n                                                   a key
    rows[0].composite, rows[-1].composite               an item of a list, by its place
    rows[planner=short replanned][frames=25].success    the one row whose values are these
    pairs[a.samples=25].success                         the same, by a value further down

A pick by value has to fit exactly one row. Nothing is guessed: what is absent or ambiguous raises
LookupError.
"""
import json
import re
from pathlib import Path

import numpy as np

STEP = re.compile(r"\.?([^.\[\]]+)|((?:\[[^\[\]]+\])+)")    # a key, or brackets one after another


class Missing(LookupError):
    """A number that is not there. .file names the study that measures it: 'seeds/planning'."""

    def __init__(self, file, why=None):
        super().__init__(f"{file}.json is not there" if why is None else f"{file}.json: {why}")
        self.file = file


class ResultFiles:
    """A folder of results. files["plan"] is the content of plan.json, read once."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.read = {}

    def __contains__(self, file):
        return (self.folder / f"{file}.json").exists()

    def __getitem__(self, file):
        """-> parsed JSON. Missing if there is no such file, ValueError if it is damaged."""
        if file not in self.read:
            path = self.folder / f"{file}.json"
            if not path.exists():
                raise Missing(file)
            try:
                content = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}): run its command again") from None
            if not isinstance(content, dict):
                raise ValueError(f"{path} holds no results: run its command again")
            self.read[file] = content
        return self.read[file]

    def arrays(self, file):
        """-> dict of the arrays in FILE.npz. Missing if there is no such file."""
        path = self.folder / f"{file}.npz"
        if not path.exists():
            raise Missing(file)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def value(self, address):
        """'plan rows[planner=zero].success' -> what is there. Missing if nothing is."""
        file, _, path = address.strip().partition(" ")
        content = self[file]
        try:
            return resolve(content, path.strip())
        except LookupError as error:
            raise Missing(file, error) from None


def resolve(content, path):
    """Parsed JSON, path -> the value there. LookupError says which step leads nowhere."""
    end = 0
    for step in STEP.finditer(path):
        if step.start() != end:
            break
        end = step.end()
        content = _key(content, step[1], path) if step[1] else _pick(content, step[2], path)
    if end != len(path) or not path:
        raise LookupError(f"'{path}' is not a path")
    return content


def _key(content, key, path):
    if not isinstance(content, dict) or key not in content:
        raise LookupError(f"{key} of {path} is not there")
    return content[key]


def _pick(rows, brackets, path):
    """All brackets of one step together: a list, '[planner=zero][frames=25]' -> the one item."""
    picks = re.findall(r"\[([^\]]+)\]", brackets)
    if not isinstance(rows, list):
        raise LookupError(f"{brackets} of {path} asks for a row where there is no list")
    if not any("=" in pick for pick in picks):
        for place in picks:
            rows = _place(rows, place, path)
        return rows
    for pick in picks:
        if "=" not in pick:
            raise LookupError(f"{brackets} of {path} mixes places and values")
        key, value = pick.split("=", 1)
        rows = [row for row in rows if str(resolve(row, key)) == value]
    if len(rows) != 1:
        raise LookupError(f"{brackets} of {path} fits {len(rows)} rows, not one")
    return rows[0]


def _place(rows, place, path):
    if not isinstance(rows, list):
        raise LookupError(f"[{place}] of {path} asks for an item where there is no list")
    try:
        return rows[int(place)]
    except (ValueError, IndexError):
        raise LookupError(f"[{place}] of {path} is not there") from None
