"""README.md against the program and the numbers: every command is accepted, the example runs, every
number is what its file says."""
import contextlib
import io
import re
import shlex
import sys

import pytest

import hjepa
from conftest import ROOT

sys.path.insert(0, str(ROOT / "figures" / "report"))
import build                                                              # noqa: E402
import claims                                                             # noqa: E402
import readme                                                             # noqa: E402
from lib.resolve import ResultFiles                                       # noqa: E402
from test_report import anchors                                           # noqa: E402

TEXT = (ROOT / "README.md").read_text()
PHRASES, ALLOWED = readme.listed()


@pytest.fixture(scope="module")
def results():
    return ResultFiles(ROOT / "figures" / "results")


# Commands.

def commands(text):
    """Each command line of the shell blocks, as a list of words; a trailing \\ joins lines."""
    for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def refusal(words):
    """Why a command would not run, or None."""
    if words[:2] == ["python", "hjepa.py"]:
        try:
            flags = vars(hjepa.make_parser().parse_args(words[2:]))
            command, run = flags.pop("command"), flags.pop("run")
            for name in ("data", "init"):       # files that a reader has
                flags.pop(name, None)
            if command in ("train", "config"):
                hjepa.Config(**{**hjepa.PRESETS[flags.pop("preset")], **flags})
            elif run and run.suffix == ".pt" and not (ROOT / run).exists():
                return f"{run} is not there"
        except (hjepa.Refusal, ValueError) as error:
            return str(error)
        return None
    if words[:2] == ["python", "-m"]:
        return None if (ROOT / words[-1]).is_file() else f"{words[-1]} is not there"
    if words[0] == "python":
        return None if (ROOT / words[1]).is_file() else f"{words[1]} is not there"
    if words[0] == "./reproduce.sh":
        modes = re.search(r"^ *(\w+(?:\|\w+)+)\) ;;", (ROOT / "reproduce.sh").read_text(), re.M)
        unknown = [word for word in words[1:] if word not in modes[1].split("|")]
        return f"reproduce.sh does not know {unknown}" if unknown else None
    return f"{words[0]} is no command of this repository"


def test_commands_are_found_and_judged():
    text = ("```sh\n$ python hjepa.py train --preset quick \\\n   --seed 1   # a comment\n\n"
            "python hjepa.py train --epochs none\n```\n```python\nnot shell\n```\n"
            "```bash\npython hjepa.py fly\npython figures/none.py\npython hjepa.py train --lr -1\n"
            "python hjepa.py plan --run none.pt\n./reproduce.sh fast\nrm x\n```\n")
    found = list(commands(text))
    assert found[0] == ["python", "hjepa.py", "train", "--preset", "quick", "--seed", "1"]
    assert [refusal(words) is None for words in found] == [True] + [False] * 7


def test_every_command_is_accepted():
    found = list(commands(TEXT))
    assert len(found) >= 6
    assert [(" ".join(words), refusal(words)) for words in found if refusal(words)] == []


def test_a_visitor_writes_into_no_tracked_folder():
    for words in commands(TEXT):
        assert "--out" not in words
    assert hjepa.default_out("figures/weights/hjepa.pt").parts[0] == "runs"


def test_the_table_of_expectations_names_commands_that_exist():
    for command in re.findall(r"\| `(train [^`]*|train)` \|", TEXT):
        assert refusal(["python", "hjepa.py", *command.split()]) is None


def test_the_example_runs_and_plans(monkeypatch):
    """As it stands there, with 3 goals instead of 8: it reaches them."""
    block, = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)
    assert 6 <= len(block.strip().splitlines()) <= 10
    monkeypatch.chdir(ROOT)
    few = re.sub(r"\b8\b", "3", block)
    assert few.count("3") > block.count("3")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(few, "README", "exec"), {})
    shares = eval(printed.getvalue())
    assert shares["mean_body"] > 0.5 and 0 < shares["error"] < 0.2


# Links and form.

def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(\s*([^)\s]+)\)", TEXT) + re.findall(r'src="([^"]+)"', TEXT)
    assert len(links) > 12
    for target in links:
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert (ROOT / file).exists(), target
        if anchor:
            assert anchor in anchors((ROOT / file).read_text()), target


@pytest.mark.parametrize("address", [
    "doi.org/10.5281/zenodo.20403374", "arxiv.org/abs/2105.04906", "openreview.net/forum",
    "pytorch.org/get-started"])
def test_sources_are_linked(address):
    assert f"]({'https://'}{address}" in TEXT.replace("\n", "")


def test_it_fits_and_can_be_read_as_it_is():
    lines = TEXT.split("\n")
    assert len(lines) <= 121                    # 120 and the end of the last one
    assert max(len(line) for line in readme.BLOCK.sub("", TEXT).split("\n")) <= 125
    assert re.findall(r"<!-- (?!table \w+: made by|end -->)", TEXT) == []
    assert not set(re.findall(r"[a-z]+", TEXT.lower())) & {"hit", "hits", "task", "tasks", "shall"}


# Numbers.

def test_blocks_are_up_to_date(results):
    assert readme.renew(TEXT, results, ROOT) == TEXT
    assert [match[1] for match in re.finditer(r"<!-- table (\w+):", TEXT)] == list(readme.BLOCKS)
    old = TEXT.replace("short, replanned, from the first guess | ",
                       "short, replanned, from the first guess | 1")
    assert old != TEXT and readme.renew(old, results, ROOT) == TEXT


def test_the_sections_are_where_it_says():
    lines = (ROOT / "hjepa.py").read_text().split("\n")
    rows = re.findall(r"^\| (\d+)\. ([\w ]+) \| .* \| (\d+) to (\d+) \|$", TEXT, re.M)
    assert len(rows) == 10
    for number, title, start, _ in rows:
        assert lines[int(start) - 1].startswith(f"# {number}. {title.upper()} - ")


def test_numbers_in_the_text_are_those_of_the_files(results):
    assert len(PHRASES) >= 8
    assert readme.wrong(TEXT, PHRASES, results, build.formatted) == []


def test_no_other_number_is_in_the_text():
    assert readme.unlisted(TEXT, PHRASES, ALLOWED) == []


@pytest.mark.parametrize("phrase", claims.README)
def test_a_conclusion_is_in_the_text_once_and_true(phrase, results):
    assert len(build.phrase_pattern(phrase).findall(TEXT)) == 1
    assert claims.README[phrase](results)


@pytest.mark.parametrize("text, complaints", [
    ("It reaches 99.5 % of 200 goals.", 0),
    ("It reaches 99.5 % of\n200 goals.", 0),
    ("It reaches 99.4 % of 200 goals.", 1),
    ("It reaches 99.5 % of 200 goals. It reaches 99.5 % of 200 goals.", 1)])
def test_a_wrong_phrase_is_found(text, complaints, results):
    path = "seeds/planning rows[planner=oracle]"
    sources = [(f"{path}.success", "percent 1"), (f"{path}.n", "number 0")]
    value = build.formatted(results.value(sources[0][0]), "percent 1")
    text = text.replace("99.5 %", value)
    phrase = f"reaches {value} of 200 goals"
    assert len(readme.wrong(text, {phrase: sources}, results, build.formatted)) == complaints


def test_a_phrase_with_another_number_is_found(results):
    sources = [("plan n", "number 0")]
    assert readme.wrong("of 200 goals", {"of 200 goals": sources}, results, build.formatted) == []
    found = readme.wrong("of 201 goals", {"of 201 goals": sources}, results, build.formatted)
    assert len(found) == 1 and "200" in found[0]


@pytest.mark.parametrize("text, found", [
    ("reaches 12 % of them", ["12 %"]), ("an error of 0.03", ["0.03"]), ("within 0.1", []),
    ("a listed 5 % phrase", []), ("`--lr 0.001` and [a](b1.5)", []),
    ("25 frames, 8 reflections", []),
    ("<!-- table goals: made by figures/report/build.py -->\n| 3 % |\n<!-- end -->", [])])
def test_a_number_from_nowhere_is_found(text, found):
    assert readme.unlisted(text, {"a listed 5 % phrase": []}, ["0.1"]) == found
