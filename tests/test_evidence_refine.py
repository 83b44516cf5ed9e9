"""figures/refine.py: a whole run trained on, on new worlds, on a smoke model."""
import dataclasses
import json

import numpy as np
import pytest
import torch

from conftest import here
from lib import cli, training
from studies import CPU, quick                                            # noqa: F401
import hjepa
import refine

SMALL = "--epochs", 2, "--n", 256, "--goals", 2
NAMES = "P1, one clip", "P1, rolled out", "P2"


@pytest.fixture(scope="module")
def run(smoke):
    return cli.open_runs([smoke], CPU)[0]


@pytest.fixture(scope="module")
def refined(smoke, tmp_path_factory):
    """Directory with the run trained on and the files of the study; what the command printed; what
    each epoch was trained with: (data, config, epoch)."""
    out = tmp_path_factory.mktemp("refine")
    seen = []

    def train_epoch(loss, model, optimizer, data, config, epoch, *rest, real=hjepa.train_epoch):
        seen.append((data, config, epoch))
        return real(loss, model, optimizer, data, config, epoch, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hjepa, "train_epoch", train_epoch)
        done = here("figures/refine.py", "--run", smoke, "--to", out / "run", *SMALL, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, seen


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_worlds_are_new_and_have_as_many_contacts_as_asked(run, share):
    config = dataclasses.replace(run.config, sequences=200, batch=100)
    world = hjepa.build_world(config)
    gen = hjepa.generator(0, "refine", 0)
    obs, forces, contact = refine.draw_worlds(world, config, share, gen, CPU)
    assert obs.shape == (200, 6, 5, 12) and forces.shape == (200, 5, 6)
    *_, drawn = hjepa.make_sequences(world, 600, 6, hjepa.generator(0, "refine", 0))
    met = int(drawn[:, 1:].flatten(1).any(1).sum())
    assert 100 < met < 198
    assert int(contact.sum()) == min(round(200 * share), met)             # 0.99: all there are
    # `contact` says what the simulator says, and forces belong to their films.
    state = obs[:, 0, -1].unflatten(-1, (3, 4)) / torch.tensor([1 / 0.55, 1 / 0.55, 2, 2])
    films, contacts = world.rollout(state, forces)
    assert torch.equal(contacts.any(1), contact)
    assert torch.allclose(world.observe(films[:, -5:]), obs[:, -1], atol=1e-3)
    seen, *_ = hjepa.draw_sequences(world, run.config, 1024, run.config.seed, "train", CPU)
    first = world.observe(seen)[:, 0].flatten(1)
    assert torch.cdist(obs[:, 0].flatten(1), first).min() > 1e-3


def test_a_world_without_contacts_gives_as_many_sequences(run):
    config = dataclasses.replace(run.config, sequences=50, batch=10, masses=(1.0,))
    obs, _, contact = refine.draw_worlds(hjepa.build_world(config), config, 0.5,
                                         hjepa.generator(0, "x"), CPU)
    assert len(obs) == 50 and not contact.any()


def test_errors_are_those_of_the_embeddings_one_after_the_other(run):
    world = hjepa.build_world(run.config)
    states, forces, _ = hjepa.draw_sequences(world, run.config, 20, 7, "x", CPU)
    obs = world.observe(states)
    model = run.model
    found = refine.errors(model, obs, forces, chunk=8)
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        next_t1, _ = model.target(obs[:, 1])
        t1, t2 = model.target(obs[:, 5])
        first = model.short(z1, forces[:, 0])
        last = first
        for k in range(1, 5):
            last = model.short(last, forces[:, k])
        landed = model.macro(z2, forces.flatten(1))
    for name, guess, truth in zip(NAMES, (first, last, landed), (next_t1, t1, t2)):
        want = (guess - truth).square().mean(-1) / truth.var(0).mean()
        assert torch.allclose(found[name], want, rtol=1e-4), name


def test_all_of_it_learns_and_the_table_says_from_where(smoke, refined):
    out, printed, _ = refined
    before = hjepa.read_checkpoint(smoke)
    after = hjepa.read_checkpoint(out / "run")
    assert after["config"] == before["config"] and after["history"] == before["history"]
    for name, weight in before["model"].items():
        assert not torch.equal(weight, after["model"][name]), name
    content = json.loads((out / "refine.json").read_text())
    rows = {(r["name"], r["worlds"], r["when"]): r for r in content["rows"]}
    assert len(rows) == 18
    for name in NAMES:
        for worlds in ("all", "with contact", "without contact"):
            assert rows[name, worlds, "after"]["error"] < rows[name, worlds, "before"]["error"]
        counts = {worlds: rows[name, worlds, "before"]["n"]
                  for worlds in ("all", "with contact", "without contact")}
        assert counts["all"] == 256 == counts["with contact"] + counts["without contact"]
    one, five = (rows[name, "with contact", "after"]["n"] for name in ("P1, one clip", "P2"))
    assert 0 < 2 * one < five                   # one clip has fewer contacts than five
    told = content["refined"]
    assert told["epochs"] == told["done"] == 2 and told["steps"] == 16
    assert told["contacts"] == 50 and told["contact_share"] == 0.5
    history = np.load(out / "refine.npz")
    assert history["history/contacts"].tolist() == [0.5, 0.5]
    for name in NAMES:
        assert history[f"history/{name}"][-1] == pytest.approx(rows[name, "all", "after"]["error"],
                                                               rel=1e-4)
    assert len(content["plans"]) == 4 and content["goals"] == 2
    assert printed.count(" pred1 ") == 1        # one head above the epochs
    assert (out / "refine.png").read_bytes()[:4] == b"\x89PNG"
    assert not (out / "run" / "refining.pt").exists()


def test_each_epoch_has_worlds_of_its_own_at_half_the_rate(smoke, refined):
    (one, config, first), (two, _, second) = refined[2]
    assert (first, second, config.epochs) == (0, 1, 2)
    assert config.lr == hjepa.read_checkpoint(smoke)["config"]["lr"] / 2
    assert len(one[0]) == len(two[0]) == config.sequences
    assert torch.cdist(one[0][:, 0].flatten(1), two[0][:, 0].flatten(1)).min() > 1e-3


def test_the_same_command_measures_again_and_trains_no_more(smoke, refined):
    out, printed, _ = refined
    before = (out / "run" / "last.pt").read_bytes(), (out / "refine.json").read_text()
    done = here("figures/refine.py", "--run", smoke, "--to", out / "run", *SMALL, "--out", out)
    assert done.returncode == 0 and "pred1" in printed and "pred1" not in done.stdout
    assert before == ((out / "run" / "last.pt").read_bytes(), (out / "refine.json").read_text())


def test_interrupted_and_gone_on_is_bitwise_the_unbroken_run(smoke, refined, tmp_path, monkeypatch):
    def save(path, content, real=training.save):
        real(path, content)
        raise KeyboardInterrupt
    flags = "--run", smoke, "--to", tmp_path / "run", *SMALL, "--out", tmp_path
    with monkeypatch.context() as patch:
        patch.setattr(training, "save", save)
        assert here("figures/refine.py", *flags).returncode == 130
    assert not (tmp_path / "run" / "last.pt").exists()
    for other in (("--epochs", 3), ("--contacts", 20), ("--precision", "bf16"), ("--n", 128)):
        done = here("figures/refine.py", *flags, *other)
        assert done.returncode == 2 and "cannot be gone on from" in done.stderr
    done = here("figures/refine.py", *flags)
    assert done.returncode == 0 and done.stdout.count("0.500") == 1       # the second epoch alone
    whole, broken = (hjepa.read_checkpoint(path) for path in (refined[0] / "run", tmp_path / "run"))
    assert all(torch.equal(whole["model"][name], broken["model"][name]) for name in whole["model"])
    assert len(whole["refined"]["rows"]) == 2
    assert whole["refined"]["rows"] == broken["refined"]["rows"]


def test_what_cannot_be_is_refused_in_one_line(smoke, refined, tmp_path):
    out = refined[0]
    last = (out / "run" / "last.pt").read_bytes()
    saved = hjepa.read_checkpoint(smoke)
    torch.save({**saved, "extended": {"steps": 4}}, tmp_path / "far.pt")
    saved["model"]["short.leave.bias"] += 1                               # another training
    torch.save(saved, tmp_path / "other.pt")
    to = "--to", out / "run"
    for flags, said in (
            (("--run", out / "run", "--to", tmp_path / "x"), "trained further already"),
            (("--run", tmp_path / "far.pt", "--to", tmp_path / "x"), "trained further already"),
            (("--run", smoke, *to, "--epochs", 3), "--epochs"),
            (("--run", smoke, *to, *SMALL, "--contacts", 20), "--contacts"),
            (("--run", smoke, *to, *SMALL, "--precision", "bf16"), "--precision"),
            (("--run", tmp_path / "other.pt", *to, *SMALL), "another run"),
            (("--run", smoke, "--to", tmp_path / "x", "--n", 1), "--n 1"),
            (("--run", smoke, "--to", tmp_path / "x", "--contacts", 101), "--contacts is 101")):
        done = here("figures/refine.py", *flags, "--out", tmp_path)
        assert done.returncode == 2 and said in done.stderr, (flags, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists() and not (tmp_path / "refine.json").exists()
    assert last == (out / "run" / "last.pt").read_bytes()


def test_other_studies_take_the_result_and_say_so(refined, tmp_path):
    done = here("figures/planning.py", "--run", refined[0] / "run", "--goals", 2, "--frames", 25,
                "--only", "macro open loop", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "planning.json").read_text())
    assert content["further_steps"] == 16 and content["further"].startswith("all of it")
    for name, *more in (("ablation",), ("extend", "--to", tmp_path / "x")):
        done = here(f"figures/{name}.py", "--run", refined[0] / "run", *more, "--out", tmp_path)
        assert done.returncode == 2 and "came from" in done.stderr
