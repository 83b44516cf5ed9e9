"""README.md against the program and the numbers: every command is accepted, every annotated number
is what its file says.

An annotation follows the number it vouches for, as a comment that no reader sees:

    reaches 84 % <!-- figures/plan.json rows[planner=short replanned].mean_body % 0 --> of goals

FILE PATH [%] DIGITS: a JSON file; keys joined by dots, [key=value] to pick the rows of a list whose
key equals value (several in a row narrow it down to one), [0] or [-1] to pick by place; % for a
share shown in percent; how many decimals are shown. Between number and comment only a unit may
stand.
"""
import ast
import json
import re
import shlex

import pytest

import hjepa
from conftest import ROOT

README = ROOT / "README.md"
there = pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")

ANNOTATION = re.compile(r"(\S+\.json) (.+?)( %)? (\d+)")
NUMBER = re.compile(r"([-\u2212]?\d[\d,]*(?:\.\d+)?)[^\d|\n<>]{0,16}$")


def resolve(content, path):
    """One value out of parsed JSON. LookupError says which step of the path leads nowhere."""
    for step in re.findall(r"[^.\[\]]+(?:\[[^\]]*\])*|\[[^\]]*\]", path):
        key, picks = step.split("[")[0], re.findall(r"\[(.*?)\]", step)
        content = content[key] if key else content
        for pick in picks:
            if "=" in pick:
                name, value = pick.split("=", 1)
                content = [row for row in content if str(row[name]) == value]
            else:
                content = content[int(pick)]
        if "=" in step:
            if len(content) != 1:
                raise LookupError(f"{step} of {path} fits {len(content)} rows, not one")
            content, = content
    return content


def shown(value, percent, digits):
    """A number as the README prints it."""
    return f"{100 * value if percent else value:.{digits}f}"


def wrong_numbers(text, root):
    """-> complaints about annotated numbers, how many annotations there are."""
    complaints, count = [], 0
    for comment in re.finditer(r"<!--(.*?)-->", text, re.S):
        if ".json" not in comment[1]:
            continue
        count += 1
        form = ANNOTATION.fullmatch(comment[1].strip())
        number = NUMBER.search(text[:comment.start()])
        if not form or not number:
            complaints.append(f"not `NUMBER <!-- FILE PATH [%] DIGITS -->`: {comment[0]}")
            continue
        file, path, percent, digits = form.groups()
        try:
            value = shown(resolve(json.loads((root / file).read_text()), path), percent, digits)
        except (LookupError, ValueError, TypeError, OSError) as e:
            complaints.append(f"{comment[0]} leads nowhere: {e!r}")
            continue
        said = number[1].replace(",", "").replace("\u2212", "-")
        if said != value:
            complaints.append(f"README says {said}, {file} says {value}: {comment[0]}")
    return complaints, count


def commands(text):
    """Each command line of the shell blocks, as a list of words; a trailing \\ joins lines."""
    for block in re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def refusal(words):
    """Why a command would not run, or None."""
    if words[:2] == ["python", "hjepa.py"]:
        try:
            args = vars(hjepa.make_parser().parse_args(words[2:]))
            if args.pop("do") in ("train", "config"):
                args.pop("run")
                hjepa.Config(**{**hjepa.PRESETS[args.pop("preset")], **args})
        except SystemExit as e:
            return None if "--help" in words else f"exit {e.code}"
        except (hjepa.Refusal, ValueError) as e:
            return str(e)
    elif words[0] == "python" and words[1].startswith("figures/"):
        return None if (ROOT / words[1]).is_file() else "no such file"
    elif words[0] == "./reproduce.sh":
        script = (ROOT / "reproduce.sh").read_text()
        unknown = [word for word in words[1:]
                   if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", script)]
        return f"reproduce.sh does not know {unknown}" if unknown else None


@pytest.fixture
def numbers(tmp_path):
    """A folder with a JSON file to resolve."""
    rows = [{"planner": "zero", "k": 1, "share": 0.0825}, {"planner": "short replanned", "k": 1,
            "share": 0.84449}, {"planner": "short replanned", "k": 2, "share": -3.5}]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "plan.json").write_text(json.dumps(
        {"n": 49000, "deep level": {"rows": rows}, "list": [1.0, [2.0, 3.25]], "word": "x"}))
    return tmp_path


@pytest.mark.parametrize("path, value", [
    ("n", 49000), ("list[0]", 1.0), ("list[-1][1]", 3.25), ("deep level.rows[-1].share", -3.5),
    ("deep level.rows[planner=zero].share", 0.0825), ("deep level.rows[k=2].k", 2),
    ("deep level.rows[planner=short replanned][k=1].share", 0.84449)])
def test_resolver_finds(numbers, path, value):
    assert resolve(json.loads((numbers / "f" / "plan.json").read_text()), path) == value


@pytest.mark.parametrize("path", ["m", "list[7]", "deep level.rows[planner=none].share",
                                  "deep level.rows[planner=short replanned].share",
                                  "deep level.rows[colour=red].share"])
def test_resolver_refuses(numbers, path):
    with pytest.raises(LookupError):
        resolve(json.loads((numbers / "f" / "plan.json").read_text()), path)


@pytest.mark.parametrize("text, right", [
    ("49,000 <!-- f/plan.json n 0 --> worlds", True),
    ("49000<!-- f/plan.json n 0 -->", True),
    ("49,001 <!-- f/plan.json n 0 --> worlds", False),
    ("| a | **84.4 %** <!-- f/plan.json deep level.rows[planner=short replanned][k=1].share % 1 -->"
     " | 8 % <!-- f/plan.json deep level.rows[planner=zero].share % 0 --> |", True),
    ("84.5 % <!-- f/plan.json deep level.rows[planner=short replanned][k=1].share % 1 -->", False),
    ("0.84 <!-- f/plan.json deep level.rows[planner=short replanned][k=1].share % 1 -->", False),
    ("\u22123.50 <!-- f/plan.json deep level.rows[k=2].share 2 -->", True),
    ("3.50 <!-- f/plan.json deep level.rows[k=2].share 2 -->", False),
    ("3.250 s <!-- f/plan.json list[1][1] 3 -->", True),
    ("3.25 <!-- f/plan.json list[1][1] 3 -->", False),
    ("13.25 <!-- f/plan.json list[1][1] 2 -->", False),
    ("3 of many <!-- f/plan.json word 0 -->", False),
    ("1 <!-- f/none.json n 0 -->", False), ("1 <!-- f/plan.json n -->", False),
    ("<!-- f/plan.json n 0 -->", False)])
def test_checker_tells_right_from_wrong(numbers, text, right):
    complaints, count = wrong_numbers("In 2026, see <!-- a remark --> below.\n\n" + text, numbers)
    assert count >= 1 and (complaints == []) == right


def test_commands_are_found_and_judged():
    text = ("```sh\n$ python hjepa.py train --preset quick \\\n   --seed 1   # a comment\n\n"
            "python hjepa.py train --epochs none\n```\n```python\nnot shell\n```\n"
            "```bash\npython hjepa.py config --help\npython hjepa.py fly\n"
            "python figures/none.py\npython hjepa.py train --lr -1\n```\n")
    found = list(commands(text))
    assert found[0] == ["python", "hjepa.py", "train", "--preset", "quick", "--seed", "1"]
    assert [refusal(words) is None for words in found] == [True, False, True, False, False, False]


@there
def test_every_command_is_accepted():
    found = list(commands(README.read_text()))
    assert any(words[:2] == ["python", "hjepa.py"] for words in found)
    assert [(" ".join(w), refusal(w)) for w in found if refusal(w)] == []


@there
def test_python_examples_import_what_exists():
    for block in re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "hjepa":
                assert [a.name for a in node.names if not hasattr(hjepa, a.name)] == []


@there
def test_every_annotated_number_is_in_its_file():
    complaints, count = wrong_numbers(README.read_text(), ROOT)
    assert complaints == []
    assert count >= 10


@there
def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)", README.read_text())
    local = [a or b for a, b in links if "://" not in (a or b)]
    assert [name for name in local if not (ROOT / name).exists()] == []
