"""figures/lib/resolve.py and figures/report/: paths into the numbers, tables, claims, pages."""
import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, here, quietly
import hjepa

REPORT = ROOT / "figures" / "report"
RESULTS = ROOT / "figures" / "results"
sys.path.insert(0, str(REPORT))
import build                                                              # noqa: E402
import claims                                                             # noqa: E402
import diagram                                                            # noqa: E402
import readme                                                             # noqa: E402
import tables                                                             # noqa: E402
from lib.resolve import Missing, ResultFiles, resolve                     # noqa: E402

TEXTS = {name: (REPORT / f"{name}.md.in").read_text() for name in build.PAGES}


@pytest.fixture(scope="module")
def results():
    return ResultFiles(RESULTS)


@pytest.fixture(scope="module")
def pages(results):
    """What build would write: file name -> text."""
    texts, untrue = build.build(results, ROOT / "figures")
    assert untrue == []
    return texts


def call(*argv):
    return quietly(lambda: build.main([str(word) for word in argv]))


def some_results(folder, *names):
    """A folder with some of the committed results."""
    for name in names:
        for ending in ("json", "npz", "png"):
            path = RESULTS / f"{name}.{ending}"
            if path.exists():
                shutil.copy(path, folder)
    return folder


# Paths.

CONTENT = {
    "n": 49000, "deep level": {"rows": [
        {"planner": "zero", "k": 1, "share": 0.0825, "a": {"samples": 25}},
        {"planner": "short replanned", "k": 1, "share": 0.84449, "a": {"samples": 25}},
        {"planner": "short replanned", "k": 2, "share": -3.5, "a": {"samples": 100}}]},
    "list": [1.0, [2.0, 3.25]]}


@pytest.mark.parametrize("path, value", [
    ("n", 49000), ("list[0]", 1.0), ("list[-1][1]", 3.25), ("deep level.rows[-1].share", -3.5),
    ("deep level.rows[planner=zero].share", 0.0825), ("deep level.rows[k=2].k", 2),
    ("deep level.rows[a.samples=100].share", -3.5),
    ("deep level.rows[planner=short replanned][k=1].share", 0.84449)])
def test_a_path_leads_to_its_value(path, value):
    assert resolve(CONTENT, path) == value


@pytest.mark.parametrize("path", [
    "", "m", "n.m", "list[7]", "list[x]", "list.0", "n[0]", "list[0][0]",
    "deep level.rows[planner=none].share", "deep level.rows[planner=short replanned].share",
    "deep level.rows[colour=red].share", "deep level.rows[0][k=1].share", "list[0", "[]"])
def test_a_path_that_is_wrong_or_ambiguous_is_refused(path):
    with pytest.raises(LookupError):
        resolve(CONTENT, path)


def test_what_is_not_there_names_its_file(results, tmp_path):
    assert results.value("plan n") == results["plan"]["n"]
    for address, file in (("plan m", "plan"), ("none n", "none"), ("plan", "plan")):
        with pytest.raises(Missing) as caught:
            results.value(address)
        assert caught.value.file == file
    assert "plan" in results and "none" not in results
    (tmp_path / "plan.json").write_text('{"rows": ')
    with pytest.raises(ValueError, match="plan.json is damaged"):
        ResultFiles(tmp_path)["plan"]


# The committed results.

def test_summaries_are_small_and_finite():
    files = list(RESULTS.rglob("*.json"))
    assert len(files) >= 20
    for path in files:
        text = path.read_text()
        assert len(text) < 30_000, path
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{path}: {word}"))


def test_no_array_is_a_pickle():
    files = list(RESULTS.rglob("*.npz"))
    assert len(files) > 10
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].size for name in arrays.files), path


def outcome_rows():
    """Every row that has its outcomes beside it: file, row, distances (R, n, bodies)."""
    for path in sorted(RESULTS.rglob("*planning.json")):
        file = str(path.relative_to(RESULTS).with_suffix(""))
        for row in json.loads(path.read_text())["rows"]:
            yield file, row, f"errors/{row['planner']}/{row['frames']}"
    for row in json.loads((RESULTS / "plan.json").read_text())["rows"]:
        yield "plan", row, f"errors/{row['planner']}/{row['frames']}"
    for row in json.loads((RESULTS / "hierarchy.json").read_text())["rows"]:
        yield "hierarchy", row, (f"errors/{row['planner']}/{row['frames']}/{row['samples']} x "
                                 f"{row['iterations']}")


def reached(errors, name):
    """Distances (R, n, bodies) -> which goals are reached (R, n)."""
    if name == "mean_body":
        return errors.mean(-1) < hjepa.REACHED
    return errors.max(-1) < (hjepa.STRICT if name == "strict" else hjepa.REACHED)


def test_shares_follow_from_the_outcomes_goal_by_goal(results):
    arrays, count = {}, 0
    for file, row, key in outcome_rows():
        if file not in arrays:
            arrays[file] = results.arrays(file)
        errors = arrays[file][key].astype(float)
        for name in ("mean_body", "success", "strict"):
            if name in row:
                share = reached(errors, name).mean()
                assert row[name] == pytest.approx(share, abs=1e-5), (file, key, name)
                count += 1
    assert count > 200


def test_the_curves_are_the_whole_history(results):
    for file in ("curves", "quick/curves"):
        content, arrays = results[file], results.arrays(file)
        assert arrays["history/epoch"].tolist() == list(range(1, content["epochs"] + 1))
        for row in content["rows"]:
            for name, value in row.items():
                assert arrays[f"history/{name}"][row["epoch"] - 1] == pytest.approx(value, 1e-5)


# Numbers as text, tables.

@pytest.mark.parametrize("value, form, ci, text", [
    (0.954, "percent 1", None, "95.4 %"), (0.954, "percent 1", [0.92, 0.98],
                                           "95.4 % (92.0 to 98.0)"),
    (0.0311, "points 1", [-0.01, 0.07], "+3.1 (-1.0 to +7.0)"), (49000, "number 0", None, "49,000"),
    (0.9542, "number 2", [0.9, 1], "0.95 (0.90 to 1.00)"), ([1.0, 2.0, 4.0], "list", None,
                                                            "1, 2 and 4"),
    ([0.11211, 0.03], "list 3", None, "0.112 and 0.030"), ([1, 2, 4], "count", None, "three")])
def test_formats(value, form, ci, text):
    assert build.formatted(value, form, ci) == text


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="no such format"):
        build.formatted(1.0, "roman 1")


def test_every_table_is_used_and_every_directive_exists():
    used = re.findall(r"\{\{table (\w+)\}\}", "".join(TEXTS.values())) + ["goals"]
    assert sorted(used) == sorted(tables.TABLES)
    for name in re.findall(r"\{\{(\w+) \|", "".join(TEXTS.values())):
        assert name in tables.QUANTITIES


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_tables_are_whole(name, results):
    lines = tables.TABLES[name](results).split("\n")
    widths = {line.count("|") for line in lines}
    assert len(lines) >= 3 and len(widths) == 1, lines
    assert not re.search(r"\b(None|nan)\b", "".join(lines))


def test_a_table_shows_the_numbers_of_its_file(results):
    rows = {(row["planner"], row["frames"]): row for row in results["planning"]["rows"]}
    lines = tables.TABLES["goals"](results).split("\n")[2:]
    assert len(lines) == len(tables.SHOWN)
    for line, name in zip(lines, tables.SHOWN):
        for frames in (25, 50, 75):
            row = rows.get((name, frames))
            if row is not None:
                low, high = row["success_ci"]
                assert f"{100 * row['success']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) |" in line
    shares = [float(line.split("|")[4].split("%")[0])
              for line in tables.TABLES["composition"](results).split("\n")[2:]]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)


def test_rivals_and_first_guess_are_shown(results):
    """In each table of planning, and where a contact matters."""
    rows = ("fly and fold", "state network", "first guess", "macro from guess",
            "replanned from guess")
    for name in ("planning_25", "planning_far", "planning_all", "goals", "planning_pairs"):
        text = tables.TABLES[name](results)
        assert len({line.count("|") for line in text.split("\n") if line.startswith("|")}) == 1
        some = {"planning_far": tables.FAR, "goals": tables.SHOWN,
                "planning_pairs": ("fly and fold", "state network", "macro from guess")}
        shown = some.get(name, rows)
        for planner in set(rows) & set(shown):
            assert tables.NAMES[planner] in text, (name, planner)
        assert ("contact matters" in text) == (name != "planning_far"), name


def test_every_setting_is_in_one_of_two_tables(results):
    """Of a run of this version: a new setting shows up by itself."""
    def now(content):
        content["config"] = dataclasses.asdict(hjepa.Config())
    curves = Changed(results, "curves", now)
    text = tables.TABLES["paper_settings"](curves) + tables.TABLES["other_settings"](curves)
    for field in dataclasses.fields(hjepa.Config):
        assert text.count(f"| `{field.name}` |") == 1, field.name


def test_seeds_are_side_by_side(results):
    text = tables.TABLES["seeds"](results)
    errors = results.arrays("seeds/planning")["errors/short replanned/25"].astype(float)
    each = [tables.percent(share) for share in (errors.max(-1) < hjepa.REACHED).mean(-1)]
    assert len(each) == 3 and f"| {' | '.join(each)} |" in text


def test_two_levels_are_counted():
    pairs = [{"gain_calls": 0, "gain_calls_ci": ci}
             for ci in ([0.1, 0.2], [-0.1, 0.1], [-0.2, -0.1], [0, 0.1])]
    pairs.append({"gain_seconds": 0.2, "gain_seconds_ci": [0.1, 0.3]})
    assert tables.judged({"pairs": pairs}, "gain_calls") == (1, 1)
    assert tables.judged({"pairs": pairs}, "gain_seconds") == (1, 0)


# The conclusions.

@pytest.mark.parametrize("phrase", claims.REPORT)
def test_a_conclusion_is_in_the_text_once_and_true(phrase, results):
    assert len(build.phrase_pattern(phrase).findall(TEXTS["report"])) == 1
    assert claims.REPORT[phrase](results)


@pytest.mark.parametrize("phrase", claims.REPORT)
def test_a_conclusion_rests_on_numbers(phrase, tmp_path):
    with pytest.raises(Missing):
        claims.REPORT[phrase](ResultFiles(tmp_path))


class Changed:
    """The committed results with some numbers changed."""

    def __init__(self, results, file, change):
        self.results, self.arrays = results, results.arrays
        self.file = file
        self.content = json.loads(json.dumps(results[file]))
        change(self.content)

    def __getitem__(self, file):
        return self.content if file == self.file else self.results[file]


def swapped(first, second):
    """Swaps what two paths lead to."""
    def change(content):
        a, b = resolve(content, first), resolve(content, second)
        old = dict(a)
        a.clear()
        a.update(b)
        b.clear()
        b.update(old)
    return change


def put(path, key, value):
    def change(content):
        resolve(content, path)[key] = value
    return change


ONCE = "rows[planner=macro from guess][frames=25]"
AGAINST = "pairs[a=replanned from guess][b={}][frames=75]"


@pytest.mark.parametrize("holds, file, change", [
    (claims.no_collapse, "curves", put("rows[-1]", "std_min", 0.01)),
    (claims.contacts_are_hard, "planning", swapped(f"{ONCE}.contact", f"{ONCE}.no contact")),
    (claims.controls_reach_nothing, "planning", put("rows[planner=untrained]", "success", 0.01)),
    (claims.replanning_helps, "planning",
     put("pairs[a=short replanned][b=short open loop][frames=25]", "success_ci", [-0.01, 0.1])),
    (claims.pass_through_is_seen, "surprise",
     put("rows[rule=pass-through][level=both]", "share_ci", [0.5, 0.99])),
    (claims.knows_contacts, "planning",
     put(AGAINST.format("fly and fold") + ".matters", "success_ci", [-0.1, 0.2])),
    (claims.equals_state_network, "planning",
     put(AGAINST.format("state network"), "success_ci", [-0.2, -0.1])),
    (claims.both_terms_are_needed, "variants",
     put("rows[variant=no covariance term][epochs=9]", "closed_gain_ci", [-0.1, 0.1])),
    (claims.error_says_nothing, "variants",
     put("rows[variant=SIGReg][epochs=9]", "macro_error", 0.0001)),
    (claims.one_step_reaches_nothing, "variants",
     put("rows[variant=one-step training][epochs=9]", "closed", 0.5)),
    (claims.noise_costs_the_jepa, "baselines",
     put("rows[rival=JEPA][world=noise][frames=25]", "success", 0.6)),
    (claims.autoencoder_falls_behind, "baselines",
     put("rows[rival=reconstruction][world=plain][frames=50]", "gain_ci", [-0.1, 0.1])),
    (claims.gradients_guide_best, "planners",
     put("rows[planner=Adam][plans=60][cost=last step][frames=25]", "strict", 0.6)),
    (claims.others_gain_nothing, "planners",
     put("pairs[planner=iCEM][plans=60][cost=last step][frames=25]", "all", [0.01, 0.2])),
    (claims.predicted_map_is_smooth, "cost_maps",
     put("rows[kind=contact][space=t1][future=model]", "minima", 6.0)),
    (claims.two_values_suffice, "latent",
     put("rows[kicks=two][name=K = 2]", "over_told_ci", [1.01, 1.2])),
    (claims.capacity_flattens_energy, "latent",
     put("rows[kicks=two][name=d = 256, free]", "energy_body", 1.0)),
    (claims.objects_learn_contacts_sooner, "objects",
     put("plans[case=contact only][model=run][planner=short replanned]", "that_body_ci", [0, 0.6])),
    (claims.masking_gains_nothing, "objects",
     put("plans[case=own][model=masked][planner=short replanned]", "success", 0.9)),
    (claims.masses_need_a_force, "objects",
     put("masses[model=hidden][situation=no force, no contact yet]", "embedding", 0.5)),
    (claims.flat_reaches_most, "hierarchy",
     put("rows[planner=mixed][frames=75][samples=50]", "mean_body", 0.99)),
    (claims.follows_pushes, "response",
     put("counterfactuals[level=short][frames=25][body=0]", "slope", 0.5)),
    (claims.untrained_reads_state_better, "probe",
     put("rows[source=shallow tap][target=position]", "r2", 1.0))])
def test_a_conclusion_fails_with_other_numbers(holds, file, change, results):
    assert holds(results) and not holds(Changed(results, file, change))


def test_a_conclusion_that_is_not_true_is_marked(tmp_path):
    folder = some_results(tmp_path, "diagnose", "curves")
    content = json.loads((folder / "diagnose.json").read_text())
    content["rows"][0]["std_min"] = 0.001
    (folder / "diagnose.json").write_text(json.dumps(content))
    done = call("--results", folder)
    assert done.returncode == 0
    assert "No dimension of any set has collapsed" in done.stderr
    text = (folder / "report.md").read_text()
    assert f"has collapsed{build.NOT_TRUE}" in text and build.WARNING in text
    assert call("--results", folder, "--check").returncode == 1
    assert call("--results", folder, "--readme").returncode == 2


# The text.

# What the text may say without a file: thresholds, and facts of the world or of another's work.
SETTINGS = {"0.1", "0.2", "0.05", "95 %", "50 %"}


GIVEN_UP = re.compile(r"^## What was tried and given up\n.*?(?=^## )", re.S | re.M)


@pytest.mark.parametrize("name", build.PAGES)
def test_no_result_is_written_by_hand(name):
    text = GIVEN_UP.sub("", TEXTS[name])        # its numbers are those of an earlier commit: below
    text = re.sub(r"\{\{.*?\}\}|`[^`]*`|^    .*?$|\]\([^)]*\)|10\.5281/\S+", "", text,
                  flags=re.S | re.M)
    found = re.findall(r"\d[\d,]*(?:\.\d+)? ?%|\d+\.\d+", text)
    # Energy injection; sections of a paper; the name of a variant; what a paper reports.
    allowed = SETTINGS | {"1.5", "4.4", "4.8", "10 %", "91 %"}
    assert [number for number in found if number not in allowed] == []
    assert "0.1" in found


class Earlier:
    """The results of an earlier commit, by address."""

    def __init__(self, commit):
        self.commit = commit

    def value(self, address):
        file, path = address.split(" ", 1)
        place = f"{self.commit}:figures/results/{file}.json"
        done = subprocess.run(["git", "show", place], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return resolve(json.loads(done.stdout), path)


def after_and_before(planner, key, more=""):
    """Test goals reached after training on new worlds, and before."""
    return [(f"refined/{when}{more}/planning rows[planner={planner}].{key}", "percent 1")
            for when in ("after", "before")]


JUMP = "macro open loop"
CHAINED = "extend rows[name=P2][clips=15]"
NUMBERS_GIVEN_UP = {                            # as in readme.toml
    "25 samples in 24 iterations instead of 100 in 6": [
        (f"search {which}.{key}", "number 0") for which in ("best", "own")
        for key in ("samples", "iterations")],
    "70 more epochs": [("refine refined.epochs", "number 0")],
    "one jump reached 34.5 % of the goals instead of 57.0 %": after_and_before(JUMP, "success"),
    "fell from 0.710 to 0.421 of the variance": [
        (f"{CHAINED}[when={when}].error", "number 3") for when in ("before", "after")],
    "was at 0.467": [("extend rows[name=P1][clips=15].error", "number 3")],
}


def test_numbers_of_what_was_given_up_are_those_of_the_commit_that_it_names():
    section, = GIVEN_UP.findall(TEXTS["report"])
    assert readme.unlisted(section, NUMBERS_GIVEN_UP, SETTINGS) == []
    commit = re.search(r"commit `(\w+)`", section)[1]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git, or no repository")
    found = subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT, capture_output=True)
    if found.returncode != 0:
        pytest.skip(f"a clone without {commit}")
    assert readme.wrong(section, NUMBERS_GIVEN_UP, Earlier(commit), build.formatted) == []


def test_the_report_is_short(pages):
    assert len(pages["report.md"].split()) <= 7200


def test_plain_words(pages):
    """One word for one thing: contact, goal, reflection."""
    for name in ("report.md", "report-tables.md"):
        words = set(re.findall(r"[a-z]+", pages[name].lower()))
        assert not words & {"hit", "hits", "task", "tasks", "shall"}, name


def test_nothing_is_missing_and_nothing_is_left_over(pages):
    for text in pages.values():
        assert "Not measured" not in text and "{{" not in text


def test_headings_and_figures_are_numbered(pages):
    text = pages["report.md"]
    chapters = [int(number) for number in re.findall(r"^## (\d+)\. ", text, re.M)]
    assert chapters == list(range(1, len(chapters) + 1)) and len(chapters) >= 10
    figures = [int(number) for number in re.findall(r"^\*Figure (\d+): ", text, re.M)]
    assert figures == list(range(1, len(figures) + 1)) and len(figures) >= 9
    assert build.numbered("# t\n## a\n### b\n### c\n    ## code\n*Figure: x*\n## d\n### e") == (
        "# t\n## 1. a\n### 1.1 b\n### 1.2 c\n    ## code\n*Figure 1: x*\n## 2. d\n### 2.1 e")


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def anchors(markdown):
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", markdown, re.M)}


def test_every_link_leads_somewhere(pages):
    count = 0
    for name in ("report.md", "report-tables.md"):
        for target in re.findall(r"\]\(([^)]+)\)", pages[name]):
            file, _, anchor = target.partition("#")
            if "://" in target:
                continue
            count += 1
            assert (ROOT / "figures" / file).exists(), target
            if anchor:
                assert anchor in anchors(pages[file]), target
    assert count > 50


def test_the_committed_pages_are_up_to_date(pages):
    files = {ROOT / "figures" / name: text for name, text in pages.items()}
    assert build.differing(files) == []
    path = ROOT / "figures" / "report.md"
    assert build.differing({**files, path: pages["report.md"].replace("93", "94")}) == [path]


# Another run's folder.

def test_what_is_missing_is_named_with_its_command(tmp_path):
    folder = some_results(tmp_path, "curves", "probe")
    done = call("--results", folder)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    text = (folder / "report.md").read_text()
    missing = set(re.findall(r"\*Not measured yet: `(.*?)`\*", text))
    assert {"python hjepa.py diagnose --run RUN", "python hjepa.py plan --run RUN",
            "python figures/planning.py --run RUN",
            "python figures/report/diagram.py --run RUN"} <= missing
    assert "python hjepa.py probe --run RUN" not in missing
    assert tables.TABLES["probes"](ResultFiles(folder)) in text
    assert "](./curves.png)" in text
    assert build.NOT_TRUE not in text


def test_a_number_that_changes_changes_in_the_report(tmp_path):
    folder = some_results(tmp_path, "curves", "plan", "diagnose")
    content = json.loads((folder / "plan.json").read_text())
    content["rows"][-1]["error"] = 1234.98765
    (folder / "plan.json").write_text(json.dumps(content))
    assert call("--results", folder).returncode == 0
    for name in ("report-tables.md", "report-tables.html"):
        assert "1,234.988" in (folder / name).read_text()


def test_an_empty_folder_gives_a_report_of_commands(tmp_path):
    assert call("--results", tmp_path, "--out", tmp_path / "out").returncode == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| " not in text and text.count("Not measured yet") > 10
    for file in ("plan", "surprise", "seeds/planning"):
        assert tables.command(file).startswith("python ")


@pytest.mark.parametrize("name, text", [
    ("plan", '{"rows": '), ("plan", '{"n": 1, "rows": [1]}'), ("curves", "[]"),
    ("hierarchy", "null"), ("episode", "{}"), ("curves.png", "no picture")])
def test_a_damaged_file_is_blamed_and_nothing_is_written(name, text, tmp_path):
    folder = some_results(tmp_path, "curves", "episode", "hierarchy", "plan")
    (folder / (name if "." in name else f"{name}.json")).write_text(text)
    before = sorted(path.name for path in folder.iterdir())
    done = call("--results", folder)
    if name == "episode":                       # a file without its keys counts as not measured
        assert done.returncode == 2 and "episode" in done.stderr
    assert done.returncode == 2 and done.stdout == "", done
    assert len(done.stderr.splitlines()) == 1 and name.split(".")[0] in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_without_markdown_only_the_page_is_missing(tmp_path, monkeypatch):
    folder = some_results(tmp_path, "curves")
    monkeypatch.setitem(sys.modules, "markdown", None)                    # as if not installed
    done = call("--results", folder)
    assert done.returncode == 0 and "figures/requirements-report.txt" in done.stdout
    assert (folder / "report.md").exists() and not (folder / "report.html").exists()
    assert (ROOT / "figures" / "requirements-report.txt").exists()


def test_the_tests_install_what_the_page_needs():
    page, tests = [(ROOT / name).read_text().splitlines()
                   for name in ("figures/requirements-report.txt", "tests/requirements.txt")]
    pins = {line for line in page if line and not line.startswith("#")}
    assert pins and pins <= set(tests)


# The page.

class Page(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def fetched(text):
    """What a browser would fetch to show the page: every resource that is not inside it."""
    for tag, attrs in Page(text).tags:
        if tag in ("link", "iframe", "object", "embed", "base"):
            yield tag
        for name in ("src", "srcset", "data", "action", "poster"):
            value = attrs.get(name)
            if value and not value.startswith(("data:image/png;base64,", "#")):
                yield f"{tag} {name}={value[:40]}"
    yield from re.findall(r"@import.*|url\(.*|\bfetch\(.*|XMLHttpRequest.*", text)


@pytest.mark.parametrize("text", [
    '<link href="x.css">', '<img src="a.png">', '<script src="https://x/y.js"></script>',
    "<style>@import 'x';</style>", "<style>a{background:url(x.png)}</style>",
    "<script>fetch('x')</script>"])
def test_the_search_for_what_is_fetched_finds_it(text):
    assert list(fetched(text))
    assert not list(fetched('<img src="data:image/png;base64,AA"><a href="other.html">'))


@pytest.mark.parametrize("name", build.PAGES)
def test_the_page_needs_nothing_else(name, pages):
    html = pages[f"{name}.html"]
    assert list(fetched(html)) == []
    pictures = re.findall(r"!\[\w+\]\(", pages[f"{name}.md"])
    shown = [attrs for tag, attrs in Page(html).tags if tag == "img" and "src" in attrs]
    assert len(shown) == len(pictures) > 2
    assert html.count("<table>") == html.count('<div class="wide"><table>') > 5
    assert len(html) < 5e6 and ".md" not in "".join(
        attrs.get("href", "") for _, attrs in Page(html).tags)


def test_the_contents_lead_to_every_heading(pages):
    for name in build.PAGES:
        tags = Page(pages[f"{name}.html"]).tags
        ids = [attrs["id"] for tag, attrs in tags if tag in ("h2", "h3")]
        links = [attrs["href"] for tag, attrs in tags if tag == "a"]
        assert len(set(ids)) == len(ids) > 5
        assert [link for link in links if link.startswith("#")] == ["#" + name for name in ids]


def test_the_player_shows_every_frame(pages, results):
    frames = re.findall(r"frames\[(\d+)\] = \"data:image/png;base64,", pages["report.html"])
    last = results["episode"]["frames"]
    assert [int(frame) for frame in frames] == list(range(last + 1))
    assert "player" in pages["report.html"] and "<!-- player -->" not in pages["report.html"]


# The diagram.

def test_the_diagram_tells_the_sizes_of_the_run(smoke, tmp_path):
    done = here("figures/report/diagram.py", "--run", smoke, "--out", tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    content = json.loads((tmp_path / "diagram.json").read_text())
    model, config = hjepa.load(smoke)
    assert content["parameters"] == sum(p.numel() for p in model.parameters())
    assert {key: content[key] for key in diagram.SIZES} == {
        key: getattr(config, key) for key in diagram.SIZES}
    assert content["command"].startswith("python figures/report/diagram.py --run")
    with Image.open(tmp_path / "diagram.png") as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize("settings", [
    dict(), dict(event_clips=1), dict(event_clips=8, clip_frames=3),
    dict(shared=True, latent=2048, width=1024, short_width=2048, macro_width=4096, map_weight=0.25,
         pred_weight=1234.5)])
def test_no_text_of_the_diagram_meets_another(settings):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    config = hjepa.Config(**settings)
    figure = diagram.draw(config, hjepa.build_world(config))
    figure.set_dpi(90)                          # 900 pixels wide, as on a page
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.axes[0].texts if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    for i, (text, box) in enumerate(zip(texts, boxes)):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
        assert text.get_fontsize() >= 9
        for other, place in zip(texts[:i], boxes):
            assert not box.overlaps(place), (text.get_text(), other.get_text())
    said = " ".join(text.get_text() for text in texts)
    frames = config.event_clips * config.clip_frames
    assert f"{frames} frames" in said and f"width {config.macro_width}" in said


def test_a_diagram_that_has_no_room():
    from lib import cli
    run = cli.Run(None, hjepa.Config(event_clips=9), 1)
    for runs, says in (([run], "room for 8"), ([run, run], "one --run")):
        with pytest.raises(hjepa.Refusal, match=says):
            diagram.measure(None, runs)


def test_report_code_imports_no_study():
    """Arrows run one way: the report reads numbers, it measures nothing."""
    allowed = {"build", "claims", "diagram", "page", "readme", "tables", "lib", "hjepa"}
    studies = {path.stem for path in (ROOT / "figures").glob("*.py")}
    for path in REPORT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not {name.split(".")[0] for name in names} & (studies - allowed), path
