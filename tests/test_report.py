"""figures/report.py with page.py, and what else it shows: diagram.py, episode.py."""
import contextlib
import io
import json
import re
import runpy
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import hjepa
from conftest import ROOT

FIGURES = ROOT / "figures"
sys.path.insert(0, str(FIGURES))
import diagram                                                            # noqa: E402
import episode                                                            # noqa: E402
import report                                                             # noqa: E402

LEVELS = {                                      # figures/hierarchy.json, as that script writes it
    "command": "python figures/hierarchy.py --run runs/quick", "device": "cpu", "torch": "2",
    "precision": "fp32", "seeds": [0], "n": 7, "epochs": 9, "sequences": 49000, "views": 2,
    "intervals": "95 %, 10,000 resamples", "tasks_of": "test", "settings": [[12, 3]],
    "tasks_side_by_side": 16,
    "rows": [{"planner": planner, "frames": frames, "samples": 12, "iterations": 3,
              "predictor_calls": calls, "seconds": 0.125, "mean_body": share, "success": share / 3,
              "mean_body_ci": [share / 2, share + 0.01], "success_ci": [0, 1], "errors": [],
              "contact": {"n": 3, "mean_body": share / 4}, "no contact": {"n": 0}}
             for planner, frames, calls, share in (
                 ("flat", 50, 4070.0, 0.4321), ("flat", 75, 9000.0, 0.1),
                 ("joint", 50, 2470.5, 0.5432))],
    "pairs": [{"frames": 50, "planner": "joint", "samples": 12, "iterations": 3, "saving": 1.648,
               "saving_ci": [1.2, 2.1],
               "gain_calls": 0.1111, "gain_calls_ci": [0.0123, 0.2]},
              {"frames": 75, "planner": "mixed", "samples": 25, "iterations": 3}]}


def call(main):
    """-> exit code, lines of stdout, lines of stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main()
    return code, out.getvalue().splitlines(), err.getvalue().splitlines()


def script(name, *argv):
    """figures/NAME.py as a program, in this process."""
    def main():
        old, sys.argv = sys.argv, [f"figures/{name}.py", *map(str, argv)]
        try:
            runpy.run_path(str(FIGURES / f"{name}.py"), run_name="__main__")
        except SystemExit as e:
            return e.code
        finally:
            sys.argv = old
    return call(main)


def write_report(folder):
    return call(lambda: report.main(["--figures", str(folder)]))


class Page(HTMLParser):
    """What the tests ask of a page: tags with attributes, headings, tables as rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.tables, self.into = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.into = self.tables[-1][-1]
            self.into.append("")
        elif tag in ("h2", "h3"):
            self.into = self.headings
            self.into.append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th", "h2", "h3"):
            self.into = None

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] += data


@pytest.fixture(scope="module")
def shown(smoke, tmp_path_factory):
    """A folder with the published numbers, an episode and a diagram of the smoke run, small
    pictures, no two alike, and the report. One study has not been run."""
    folder = tmp_path_factory.mktemp("figures")
    names = ["curves", "probe", "plan", "representation", "dynamics", "surprise", "planning"]
    for name in names:
        shutil.copy(FIGURES / f"{name}.json", folder)
    (folder / "hierarchy.json").write_text(json.dumps(LEVELS))
    (folder / "seeds").mkdir()
    shutil.copy(FIGURES / "seeds" / "planning.json", folder / "seeds")
    for i, name in enumerate([*names, "hierarchy"]):
        Image.new("RGB", (40 + i, 20), (10 * i, 80, 160)).save(folder / f"{name}.png")
    for name in ("diagram", "episode"):
        code, out, err = script(name, "--run", smoke, "--out", folder)
        assert code == 0 and err == [], err
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    code, out, err = write_report(folder)
    assert code == 0 and err == [] and len(out) == 2, (out, err)
    return folder


@pytest.fixture(scope="module")
def html(shown):
    return (shown / "report.html").read_text()


@pytest.fixture(scope="module")
def seen(html):
    return Page(html)


def content(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


# The page.

def outside(text):
    """What a page would fetch: every resource, every address that is not inside it."""
    page = Page(text)
    for tag, attrs in page.tags:
        if tag in ("link", "iframe", "object", "embed", "base"):
            yield tag
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attrs.get(name)
            inside = "#" if name in ("href", "action") else "data:image/png;base64,"
            if value and not value.startswith(inside):
                yield f"{tag} {name}={value[:40]}"
    yield from re.findall(r"@import.*|url\(.*|https?:.*|\bfetch\(.*|XMLHttpRequest.*", text)


@pytest.mark.parametrize("text", [
    '<link href="x.css">', '<img src="a.png">', '<script src="https://x/y.js"></script>',
    "<style>@import 'x';</style>", "<style>a{background:url(x.png)}</style>",
    '<a href="other.html">', "<script>fetch('x')</script>"])
def test_the_search_for_what_is_outside_finds_it(text):
    assert list(outside(text))
    assert not list(outside('<img src="data:image/png;base64,AA"><a href="#x">'))


def test_page_needs_nothing_else(html, seen, shown):
    assert list(outside(html)) == []
    pictures = re.findall(r"!\[\w+\]\((\w+)\.png\)", (shown / "report.md").read_text())
    data = [attrs["src"] for tag, attrs in seen.tags if tag == "img" and "src" in attrs]
    assert len(data) == len(set(data)) == len(pictures) >= 10
    assert len(html) < 5e6


def test_contents_lead_to_every_heading(seen):
    ids = [attrs["id"] for tag, attrs in seen.tags if tag in ("h2", "h3")]
    assert len(set(ids)) == len(ids) == len(seen.headings) > 15
    assert [attrs["href"] for tag, attrs in seen.tags if tag == "a"] == ["#" + name for name in ids]


def test_every_section_is_there_and_counted(seen, shown):
    found = {path.stem for path in shown.glob("*.json")} | {"seeds/planning"}
    wanted, chapter = [], 0
    for title, sections in report.CHAPTERS:
        there = [subtitle for subtitle, name, _ in sections if name in found]
        if there:
            chapter += 1
            wanted.append(f"{chapter}. {title}")
            wanted += [f"{chapter}.{i} {part}" for i, part in enumerate(there, 1) if part]
    wanted += [f"{chapter + i}. {title}" for i, title in enumerate(("Not run yet", "Limits"), 1)]
    assert seen.headings == wanted
    text = (shown / "report.md").read_text()
    assert re.findall(r"^#{2,3} (.+)$", text, re.M) == wanted
    figures = re.findall(r"^\*Figure (\d+): ", text, re.M)
    assert list(map(int, figures)) == list(range(1, len(figures) + 1)) and len(figures) >= 10


def rows_of(seen, *head):
    """The rows of the tables whose heading begins like this."""
    return [row for table in seen.tables if table[0][:len(head)] == list(head) for row in table[1:]]


def test_numbers_are_those_of_the_files(seen, html, shown):
    def share(x, low=None, high=None):
        between = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        return f"{100 * x:.1f} %{between}"
    plan = content(shown, "plan")
    assert rows_of(seen, "planner", "mean body within 0.1") == [
        [r["planner"], share(r["mean_body"], *r["mean_body_ci"]),
         share(r["success"], *r["success_ci"]), share(r["strict"]), f"{r['error']:.3f}"]
        for r in plan["rows"]]
    assert [row[:2] for row in rows_of(seen, "planner", "worst body within 0.1")] == [
        [r["planner"], share(r["success"], *r["success_ci"])]
        for r in content(shown, "planning")["rows"]]
    assert rows_of(seen, "planner", "setting") == [
        ["flat", "12 x 3", "43.2 % (21.6 to 44.2)", "10.8 %", "", "14.4 %", "4,070", "0.12"],
        ["joint", "12 x 3", "54.3 % (27.2 to 55.3)", "13.6 %", "", "18.1 %", "2,470", "0.12"],
        ["flat", "12 x 3", "10.0 % (5.0 to 11.0)", "2.5 %", "", "3.3 %", "9,000", "0.12"]]
    assert rows_of(seen, "frames", "planner", "setting") == [
        ["50", "joint", "12 x 3", "+11.1 (+1.2 to +20.0)", "", "1.6 (1.2 to 2.1)"],
        ["75", "mixed", "25 x 3", "", "", ""]]
    assert "more goals than flat in 1 of 1 comparisons and fewer in 0" in html
    curves = content(shown, "curves")
    watched = [[str(r["epoch"]), share(r["closed"]), share(r["macro"]), f"{r['decode1']:.3f}",
                f"{r['decode2']:.3f}"] for r in curves["rows"] if "closed" in r]
    picked = rows_of(seen, "epoch", "closed")                             # of many, a dozen or so
    assert [row for row in watched if row in picked] == picked
    assert len(picked) >= min(12, len(watched)) and picked[-1] == watched[-1]
    best = max(float(row[2].split()[0]) for row in watched)
    assert share(best / 100) in [row[2] for row in picked]
    assert f"from {curves['rows'][0]['first_step']:.1f} at the first step" in html
    told = content(shown, "episode")
    assert " and ".join(f"{e:.3f}" for e in told["errors"][1:]) in html
    for name in ("curves", "probe", "plan", "planning", "hierarchy", "episode", "dynamics"):
        assert f"<code>{content(shown, name)['command']}</code>" in html


def test_training_seeds_side_by_side(seen, shown, html, tmp_path):
    """Shares seed by seed from the errors themselves; rows that ask no model have none."""
    told = content(shown, "seeds/planning")
    assert len(told["seeds"]) == 3
    rows = rows_of(seen, "planner", "within 0.1")
    assert len(rows) == 2 * len(told["rows"])
    for r, mean, worst in zip(told["rows"], rows[::2], rows[1::2]):
        gaps = np.array(r["errors"])
        for shown_row, reached in ((mean, gaps.mean(-1) < 0.1), (worst, gaps.max(-1) < 0.1)):
            each = [f"{100 * x:.1f} %" for x in reached.mean(-1)] if len(gaps) == 3 else ["", "", ""]
            assert shown_row[2:5] == each
            assert shown_row[5].startswith(f"{100 * reached.mean():.1f} % (")
    assert "<em>Other training seeds</em>" in html
    shutil.copy(shown / "curves.json", tmp_path)
    assert write_report(tmp_path)[0] == 0
    assert "Other training seeds" not in (tmp_path / "report.md").read_text()


def test_what_the_composite_is_made_of_adds_up(seen):
    shares = [float(row[3].split()[0]) for row in rows_of(seen, "term", "value") if row[3]]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.3)


def test_another_number_in_the_file_is_another_number_in_the_report(shown, tmp_path):
    plan = content(shown, "plan")
    plan["rows"][-1]["error"] = 1234.98765
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert write_report(tmp_path)[0] == 0
    for name in ("report.md", "report.html"):
        assert "1234.988" in (tmp_path / name).read_text()
        assert "1234.988" not in (shown / name).read_text()


def test_what_is_missing_is_named(shown, tmp_path):
    """A study, a picture: neither stops the report, both are told."""
    shutil.copy(shown / "curves.json", tmp_path)
    assert write_report(tmp_path)[0] == 0
    text = (tmp_path / "report.md").read_text()
    commands = re.findall(r"^- `python (.+)`$", text, re.M)
    assert commands == [
        "figures/diagram.py", "hjepa.py diagnose", "hjepa.py probe", "figures/representation.py",
        "figures/dynamics.py", "figures/surprise.py", "hjepa.py plan", "figures/episode.py",
        "figures/planning.py", "figures/search.py",
        "figures/planning.py --run runs/quick --run runs/quick-1 --run runs/quick-2 --frames 25 --out figures/seeds",
        "figures/refine.py", "figures/extend.py", "figures/hierarchy.py", "figures/ablation.py",
        "figures/speed.py"]
    assert "<strong>curves.png is missing" in (tmp_path / "report.html").read_text()
    numbers = re.findall(r"^## (\d+)\. ", text, re.M)
    assert list(map(int, numbers)) == list(range(1, len(numbers) + 1))
    assert "`python hjepa.py diagnose`" in (shown / "report.md").read_text()
    assert "`python figures/hierarchy.py`" not in (shown / "report.md").read_text()


def test_the_same_numbers_give_the_same_page(shown, html):
    assert write_report(shown)[0] == 0 and (shown / "report.html").read_text() == html


def test_without_markdown_the_page_alone_is_missing(shown, tmp_path, monkeypatch):
    shutil.copy(shown / "curves.json", tmp_path)
    monkeypatch.setitem(sys.modules, "markdown", None)      # as if it were not installed
    code, out, err = write_report(tmp_path)
    assert code == 0 and err == [] and len(out) == 2 and "figures/requirements-report.txt" in out[1]
    assert {path.name for path in tmp_path.iterdir()} == {"curves.json", "report.md"}
    assert (FIGURES / "requirements-report.txt").exists()


def test_the_tests_install_what_the_page_needs():
    page, tests = ((ROOT / name).read_text().splitlines() for name in (
        "figures/requirements-report.txt", "tests/requirements.txt"))
    pins = {line for line in page if not line.startswith("#")}
    assert pins and pins <= set(tests)


@pytest.mark.parametrize("name, text", [
    ("episode", "{}"), ("episode", "[]"), ("episode", '{"states": 3'), ("episode", None),
    ("diagram", '{"latent": 1}'), ("hierarchy", "null"), ("hierarchy", '{"rows": [1]}'),
    ("curves", '{"rows": []}'), ("curves.png", "no picture")])
def test_a_damaged_file_is_blamed_and_nothing_is_written(name, text, shown, tmp_path):
    if text is None:                            # the words can be written, the player cannot
        text = json.dumps({**content(shown, "episode"), "forces": []})
    if name == "curves.png":
        shutil.copy(shown / "curves.json", tmp_path)
    (tmp_path / (name if "." in name else f"{name}.json")).write_text(text)
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = write_report(tmp_path)
    assert code == 2 and out == [] and len(err) == 1 and name in err[0], err
    assert err[0].startswith("report: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("measured, n, says", [
    ([(5, 0.5)], 64, "measured once: 50.0 % after epoch 5"),
    ([(5, 0.5), (9, 0.8)], 64, "rose to the end"),
    ([(5, 0.8), (9, 0.8)], 64, "neither rose nor fell"),
    ([(5, 0.9), (9, 0.5), (10, 0.6)], 64,
     "fell from its best, 90.0 % after epoch 5, to the last measurement, 60.0 % after epoch 10: "
     "by 30.0 points, more than the 14.4 points"),
    ([(5, 0.9), (10, 0.85)], 64, "by 5.0 points, no more than the 11.7 points")])
def test_the_course_in_words(measured, n, says):
    assert says in report.course(measured, n)


def test_two_levels_in_words():
    pairs = [{"gain_calls_ci": ci, "gain_calls": 0} for ci in (
        [0.1, 0.2], [-0.1, 0.1], [-0.2, -0.1], [0, 0.1])]
    text = report.two_levels([*pairs, {"gain_seconds": 0.2, "gain_seconds_ci": [0.1, 0.3]}])
    text = " ".join(text.split())
    assert "calls, two levels reach more goals than flat in 1 of 4 comparisons and fewer in 1;" in text
    assert "seconds, two levels reach more goals than flat in 1 of 1 comparisons and fewer in 0" in text
    assert "no flat planner was tried" in report.two_levels([{"saving": 2.0}])


def test_counting():
    text = "# t\n## a\n### b\n### c\n    ## code\n*Figure: x*\n## d\n### e\n*Figure: y*"
    assert report.count(text).split("\n") == [
        "# t", "## 1. a", "### 1.1 b", "### 1.2 c", "    ## code", "*Figure 1: x*", "## 2. d",
        "### 2.1 e", "*Figure 2: y*"]


# The episode.

def test_states_follow_from_start_and_forces(shown, smoke):
    told, (_, config) = content(shown, "episode"), hjepa.load(smoke)
    start, goal, states, forces = (
        torch.tensor(told[k]) for k in ("start", "goal", "states", "forces"))
    assert len(states) == told["frames"] == 25 and told["hold"] == config.hold
    assert forces.abs().max() <= config.force_limit
    world = hjepa.World(**told["world"])
    again, _ = world.rollout(start[None], forces[None], told["hold"])
    assert torch.allclose(again[0], states, atol=1e-3)
    idle, _ = world.rollout(start[None], 0 * forces[None], told["hold"])
    assert not torch.allclose(idle[0], states, atol=1e-2)
    errors = (states[-1, :, :2] - goal[:, :2]).norm(dim=-1)
    assert told["errors"] == pytest.approx(errors.tolist(), abs=1e-5)


def test_the_episode_is_the_first_contact_of_plan(shown, smoke):
    """The same tasks, the same noise: what `hjepa.py plan` measures on this task."""
    told, (model, config) = content(shown, "episode"), hjepa.load(smoke)
    world = hjepa.build_world(config)
    tasks = hjepa.make_tasks(world, config.tasks, config.steps,
                             hjepa.generator(config.test_seed, "tasks"), config.hold,
                             config.start_speed)
    number = told["task"]
    assert tasks["contact"].tolist().index(True) == number and told["tasks"] == config.tasks
    assert np.allclose(tasks["goal"][number, -1], told["goal"], atol=1e-5)
    one = [x[number:number + 1] for x in (tasks["clip"], tasks["goal"])]
    states, _ = hjepa.solve("short replanned", model, world, config, *one,
                            [hjepa.generator(config.test_seed, "short replanned", number)])
    errors = (states[0, -1, :, :2] - one[1][0, -1, :, :2]).norm(dim=-1)
    assert told["errors"] == pytest.approx(errors.tolist(), abs=1e-5)
    assert told["budget"] == {k: getattr(config, k) for k in told["budget"]}


def test_the_player_shows_every_frame(html, shown):
    frames = re.findall(r"frames\[(\d+)\] = \"data:image/png;base64,", html)
    assert list(map(int, frames)) == list(range(content(shown, "episode")["frames"] + 1))


@pytest.mark.parametrize("argv", [["--frames", 7], ["--frames", 0], ["--frames", 2000],
                                  ["--tasks", 0], ["--tasks", 10**6]])
def test_an_episode_that_cannot_be(argv, smoke, tmp_path):
    code, out, err = script("episode", "--run", smoke, "--out", tmp_path / "out", *argv)
    assert code == 2 and len(err) == 1 and argv[0] in err[0] and not (tmp_path / "out").exists()


def test_no_contact_no_episode():
    config = hjepa.Config(masses=(1.0,))
    with pytest.raises(hjepa.Refusal, match="no hit on the hidden way of any of 3 tasks"):
        episode.first_contact(config, hjepa.build_world(config), 3, 25)


# The diagram.

def test_the_diagram_tells_the_sizes_of_the_run(shown, smoke):
    told, (model, config) = content(shown, "diagram"), hjepa.load(smoke)
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert {k: told[k] for k in diagram.SIZES} == {k: getattr(config, k) for k in diagram.SIZES}
    assert f"{told['parameters']:,} parameters" in (shown / "report.md").read_text()


@pytest.mark.parametrize("settings", [
    dict(), dict(steps=1), dict(steps=8, hold=3),
    dict(shared=True, latent=2048, width=1024, short_width=2048, macro_width=4096, map_weight=0.25,
         pred_weight=1234.5)])
def test_no_text_of_the_diagram_meets_another(settings):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    config = hjepa.Config(**settings)
    figure = diagram.draw(config, hjepa.build_world(config))
    figure.set_dpi(90)                          # 900 pixels wide, as on a page
    FigureCanvasAgg(figure).draw()
    texts = [t for t in figure.axes[0].texts if t.get_text().strip()]
    boxes = [t.get_window_extent() for t in texts]
    page = figure.bbox
    for i, (text, box) in enumerate(zip(texts, boxes)):
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text
        assert text.get_fontsize() >= 9
        for other, place in zip(texts[:i], boxes):
            assert not box.overlaps(place), (text.get_text(), other.get_text())
    line = figure.axes[0].transData.transform((diagram.FIRST - 1.05, 0))[0]     # deep tap
    margin = [box for text, box in zip(texts, boxes) if text.get_position()[0] == 0.1]
    assert len(margin) == 5 and max(box.x1 for box in margin) < line - 4
    said = " ".join(t.get_text() for t in texts)
    assert f"{config.steps * config.hold} frames" in said and f"width {config.macro_width}" in said


def test_a_diagram_that_has_no_room(smoke, tmp_path):
    for argv, says in ((["--run", tmp_path / "none"], "none"), (["--size", 3], "--size")):
        code, out, err = script("diagram", "--run", smoke, "--out", tmp_path / "out", *argv)
        assert code == 2 and len(err) == 1 and says in err[0], err
        assert not (tmp_path / "out").exists()
    run = episode.common.Run(None, hjepa.Config(steps=9), 1)
    for runs, says in (([run], "room for 8"), ([run, run], "one run")):
        with pytest.raises(hjepa.Refusal, match=says):
            diagram.measure(None, runs)
