"""The page to play with: figures/demo.py writes it, and a browser without a window runs it."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, here
from test_report import fetched
import demo
import hjepa

PAGE = ROOT / "figures" / "demo.html"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for found in map(shutil.which, NAMES) if found), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

# Appended to a page. What it finds is written where --dump-dom shows it.
REPORT = """
<script>
function report(found) {
  const place = document.createElement("pre");
  place.id = "report";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
}
%s
</script>
"""


def browse(page, script, folder, seconds=1, width=1000):
    """Open the page with a script behind it -> what the script reports."""
    path = folder / "opened.html"
    path.write_text(page + REPORT % script)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
               f"--user-data-dir={folder / 'browser'}", f"--window-size={width},800",
               f"--virtual-time-budget={1000 * seconds}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-1000:]
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The page of the shipped weights, written by a process as a user starts it."""
    path = tmp_path_factory.mktemp("demo") / "demo.html"
    done = subprocess.run([sys.executable, "figures/demo.py", "--out", path], cwd=ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in path.parent.iterdir()] == ["demo.html"]
    return path.read_text()


@pytest.fixture(scope="module")
def small(smoke, tmp_path_factory):
    """The page of a small run, of other sizes: the page must not know any size by heart."""
    path = tmp_path_factory.mktemp("demo") / "small.html"
    done = here("figures/demo.py", "--run", smoke, "--out", path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return path.read_text()


# The file.

def part(page, name):
    """-> what lies in the element of the page that has this id."""
    return re.search(rf'<(\w+) id="{name}"[^>]*>(.*?)</\1>', page, re.S)[2].strip()


def test_the_page_is_one_file_without_a_network(shipped):
    assert len(shipped.encode()) < 15e6
    assert shipped.isascii() and "://" not in shipped and "{{" not in shipped
    assert list(fetched(shipped)) == []
    assert "default-src 'none'" in shipped      # the browser would refuse, too


def test_the_weights_are_there_once_in_half_precision(shipped):
    model, _ = hjepa.load(demo.WEIGHTS)
    needed = {name: values for name, values in model.state_dict().items()
              if not name.startswith(demo.LEFT_OUT)}
    names, text = demo.text_of(needed, "<f2")
    assert part(shipped, "weights") == text
    assert json.loads(part(shipped, "settings"))["weightList"] == names
    assert len(shipped) < 1.1 * len(text)


def test_the_committed_page_is_of_the_committed_weights_and_sources(shipped):
    """All but the numbers that another machine rounds otherwise: probe and recorded cases."""
    committed = PAGE.read_text()
    rounded = re.compile(r'(<script id="(?:probe|cases)"[^>]*>).*?</script>'
                         r'|"probeError": [^,]*', re.S)
    assert rounded.sub(r"\1", committed) == rounded.sub(r"\1", shipped)


def test_readme_links_the_page_on_its_first_screen():
    first_screen = (ROOT / "README.md").read_text().split("## ")[0]
    assert "(figures/demo.html)" in first_screen


# Bad input.

def test_bad_input_is_one_line_and_leaves_the_old_page(smoke, guessless, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("the old one")
    saved = hjepa.read_checkpoint(smoke)
    saved["model"]["guess.mlp.0.bias"][0] = 1e6                           # infinite in half
    torch.save(saved, tmp_path / "huge.pt")
    for run, to, said in (("none", out, "no checkpoint"), (guessless, out, "no first guess"),
                          (tmp_path / "huge.pt", out, "half precision"),
                          (smoke, tmp_path, "is a folder"), (smoke, None, "--out FILE is needed"),
                          (smoke, "/proc/x/page.html", "mend that")):
        flags = ("--out", to) if to else ()
        done = here("figures/demo.py", "--run", run, *flags)
        assert done.returncode == 2 and said in done.stderr, (run, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert out.read_text() == "the old one"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "huge.pt"}


def test_a_page_that_is_too_large_is_refused(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "LARGEST", 1e5)
    with pytest.raises(hjepa.Refusal, match="smaller run"):
        demo.write(smoke, tmp_path / "page.html")
    assert os.listdir(tmp_path) == []


# What Python records.

def test_the_recorded_cases_are_what_hjepa_computes(smoke):
    """Literally, from the recorded inputs; half of the cases have a contact."""
    model, config = hjepa.load(smoke)
    model = demo.half(model)
    world = hjepa.build_world(config)
    weight, bias, error = demo.fit_probe(model, world, config)
    assert 0 < error < 1
    cases = demo.record_cases(model, world, config, weight, bias)
    assert {len(values) for values in cases.values()} == {demo.CASES}
    goal = hjepa.goal_clip(world, cases["goal"], config.clip_frames)
    assert torch.equal(goal, cases["goal"][:, None].expand_as(goal))      # as the page has it
    forces = hjepa.first_guess(model, world.observe(cases["clip"]), world.observe(goal), 5)
    torch.testing.assert_close(cases["forces"], forces, atol=1e-5, rtol=0)
    following, contacts = world.rollout(cases["clip"][:, -1], forces[:, :1])
    torch.testing.assert_close(cases["next"], following, atol=1e-4, rtol=0)
    assert contacts.any(1).sum() == demo.CASES // 2


# The page in a browser.

@needs_browser
def test_numbers_agree_with_python(shipped, tmp_path):
    """To 1e-3, on all recorded cases; and the model reaches goals."""
    found = browse(shipped, """
const {right, worst} = selfTest();
const ends = [1, 2].map(seed => trial(model, seed, 40, 0).at(-1));
report({right, worst, ends, text: find("result").textContent});
""", tmp_path)
    assert found["right"] and "20 recorded cases" in found["text"]
    assert set(found["worst"]) == {"z1", "z2", "t1", "forces", "p1", "imagined", "next"}
    assert all(0 < gap < 1e-3 for gap in found["worst"].values()), found
    assert max(found["ends"]) < hjepa.REACHED


@needs_browser
def test_a_wrong_number_is_noticed(small, tmp_path):
    """The check itself: in a page of a small run, with one weight changed, then lost."""
    found = browse(small, """
const reports = [selfTest()];
const weight = model.weights["short.leave.bias"].data;
for (const wrong of [weight[7] + 0.01, NaN]) {
  weight[7] = wrong;
  reports.push(selfTest());
}
report(reports.map(({right, worst}) => [right, worst.forces < 1e-3, worst.p1 < 1e-3]));
""", tmp_path)
    assert found == [[True, True, True], [False, True, False], [False, True, False]]


@needs_browser
def test_the_page_is_played_with(small, tmp_path):
    """A goal is dragged, goals are tapped, the model is switched off; on a phone's width."""
    found = browse(small, """
const at = (kind, [x, y]) => {
  const area = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent(kind, {pointerId: 1, bubbles: true,
    clientX: area.left + (x + 1) / 2 * area.width, clientY: area.top + (1 - y) / 2 * area.height}));
};
const places = () => goal.map(body => body.slice(0, 2));
const said = () => find("hint").textContent;
const found = {};
newWorld(5);
goal = [[-0.5, -0.5, 0, 0], [0, 0.5, 0, 0], [0.5, -0.5, 0, 0]];
at("pointerdown", [-0.5, -0.5]);
at("pointermove", [-0.2, 0]);
found.dragged = places();
at("pointermove", [0.5, -0.45]);                         // onto another goal: beside it
found.overlap = overlap(model, goal, 0, 2);
at("pointermove", [-3, -3]);                             // beyond the corner
at("pointerup", [-3, -3]);
at("pointermove", [0, 0]);                               // the finger is up: nothing moves
found.corner = places();
find("own-goals").click();
found.asked = said();
for (const place of [[0.1, 0.2], [-0.5, 0.3], [0.6, 0.6]]) at("pointerdown", place);
found.own = places();
const wait = seconds => {                                // what `frame` does, without a picture
  for (let k = 0; k < 10 * seconds; k++) advance(0.1);
};
wait(1);
found.acts = scene.forces !== null && scene.path.length === model.clips;
find("without").click();
wait(1);
found.idle = scene.forces === null && scene.path === null;
found.silent = said();
const before = scene;
find("new-world").click();
found.fresh = before !== scene && Math.abs(goal[0][0] - 0.1) > 1e-6;
found.wide = document.documentElement.scrollWidth - innerWidth;
report(found);
""", tmp_path, width=390)
    radius = hjepa.Config().radius
    assert found["dragged"][0] == pytest.approx([-0.2, 0.0], abs=0.01)
    assert found["dragged"][1:] == [[0, 0.5], [0.5, -0.5]]
    assert found["overlap"] is False
    assert found["corner"][0] == pytest.approx([radius - 1, radius - 1])
    assert "mass 1" in found["asked"] and "No forces" in found["silent"]
    for place, wanted in zip(found["own"], [[0.1, 0.2], [-0.5, 0.3], [0.6, 0.6]]):
        assert place == pytest.approx(wanted, abs=0.01)
    assert found["acts"] and found["idle"] and found["fresh"]
    assert found["wide"] <= 0
