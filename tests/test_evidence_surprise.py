"""figures/surprise.py and figures/lib/films.py: do they measure what they say?

Each broken law must really be broken, and only from its event on; a perfect model must know what
cannot happen; the study must run as a user runs it.
"""
from argparse import Namespace

import numpy as np
import pytest
import torch

from studies import CONFIG, CPU, PERFECT, PERFECT_1, WORLD, check_intervals, run_study
from studies import quick                                                 # noqa: F401
from lib import films
import hjepa
import surprise

RADII = torch.tensor(WORLD.radii)
MASSES = torch.tensor(CONFIG.masses)


@pytest.fixture(scope="module")
def pairs():
    return {rule: films.make_pairs(rule, WORLD, CONFIG, 50, 3_000_000)
            for rule in [*films.RULES, films.CONTROL]}


def test_surprise_runs_and_its_files_have_what_is_promised(smoke, tmp_path):
    content = run_study("surprise", smoke, tmp_path, 30)
    rules = [*films.RULES, "all", films.CONTROL]
    assert [(row["rule"], row["level"]) for row in content["rows"]] == [
        (rule, level) for rule in rules for level in ("short", "macro", "both")]
    for row in content["rows"]:
        check_intervals(row, "share", "auroc")
        assert row["n"] == (180 if row["rule"] == "all" else 30)
        assert ("auroc_collision" in row) == (row["rule"] != films.CONTROL)
    best = max(content["candidates"], key=lambda candidate: candidate["share"])
    assert content["statistic"] == [best["window"], best["how"]]

    arrays = np.load(tmp_path / "surprise.npz")
    shares = {(row["rule"], row["level"]): row["share"] for row in content["rows"]}
    for rule in [*films.RULES, films.CONTROL]:
        assert arrays[f"short/{rule}"].shape == (2, 1, 30, 5)
        lawful, broken = arrays[f"macro/{rule}"]
        assert (broken > lawful).mean() == pytest.approx(shares[rule, "macro"], abs=1e-5)
        since, n = (arrays[f"over_time/{key}/{rule}/broken"] for key in ("clip", "n"))
        quartiles = arrays[f"over_time/quartiles/{rule}/broken"]
        assert n.sum() == 30 * 5 and n[since == 0] == 30                  # the clip of the event
        assert quartiles.shape == (len(since), 3) and (np.diff(quartiles) >= 0).all()


# ---- broken laws

@pytest.mark.parametrize("rule", films.RULES)
def test_a_rule_changes_the_film_from_the_event_on_and_matters(pairs, rule):
    p = pairs[rule]
    lawful, broken = p.films
    assert len(lawful) == len(broken) == 50 and 0 < p.fit <= 1
    assert torch.equal(*p.forces)
    again, _ = WORLD.rollout(p.clip[:, -1], p.forces[0], 5)
    torch.testing.assert_close(again, lawful)                             # it is lawful
    for a, b, event in zip(lawful, broken, p.event):
        torch.testing.assert_close(a[:event], b[:event])
        assert (a[event] - b[event]).abs().max() > 1e-4
    gap = hjepa.distance(lawful[:, -1], broken[:, -1]).amax(1)
    assert gap.min() >= films.MATTERS


def overlap(film):
    """(n, frames, bodies, 4) -> deepest overlap of two bodies (n, frames); negative: none."""
    place = film[..., :2]
    gap = (place[..., :, None, :] - place[..., None, :, :]).norm(dim=-1) - RADII[:, None] - RADII
    return -(gap + 10 * torch.eye(3)).flatten(2).amin(-1)


def energy(film):
    return 0.5 * (MASSES * film[..., 2:].square().sum(-1)).sum(-1)


def at_event(pair, film):
    """The state in the frame of the event, and in the one before."""
    path = torch.cat([pair.clip[:, -1:], film], 1)
    now = torch.arange(len(film))
    return path[now, pair.event + 1], path[now, pair.event]


def test_pass_through_overlaps(pairs):
    lawful, broken = pairs["pass-through"].films
    assert overlap(lawful).max() < 1e-3
    assert (overlap(broken).amax(1) > 0).all() and overlap(broken).amax(1).mean() > 0.05


def test_energy_is_injected(pairs):
    p = pairs["energy injection"]
    (lawful, _), (broken, _) = (at_event(p, film) for film in p.films)
    assert (energy(broken) > energy(lawful)).all()
    fast, right = broken[..., 2:].norm(dim=-1), lawful[..., 2:].norm(dim=-1)
    change = (fast - right).abs() > 0.1
    two = (change.sum(1) <= 2).float().mean()                             # three may meet at once
    assert two > 0.9 and change.any(1).float().mean() > 0.9
    ratio = (fast / right)[change & (right > 0.3)]
    assert ratio.median() == pytest.approx(1.5, abs=0.05)


def test_teleport_jumps_to_a_free_place(pairs):
    p = pairs["teleport"]
    (lawful, _), (broken, _) = (at_event(p, film) for film in p.films)
    jump = hjepa.distance(broken, lawful)
    assert ((jump >= 0.3).sum(1) == 1).all() and ((jump > 0).sum(1) == 1).all()
    assert torch.equal(broken[..., 2:], lawful[..., 2:])
    assert (broken[..., :2].abs() <= 1 - RADII[:, None]).all()
    assert (overlap(broken[:, None]) < 0).all()


def test_flip_turns_one_velocity_round(pairs):
    p = pairs["velocity flip"]
    (lawful, _), (broken, _) = (at_event(p, film) for film in p.films)
    assert torch.equal(broken[..., :2], lawful[..., :2])
    turned = (broken[..., 2:] == -lawful[..., 2:]).all(-1)
    assert (turned.sum(1) == 1).all() and (lawful[..., 2:].norm(dim=-1)[turned] >= 0.3).all()
    assert torch.equal(broken[~turned], lawful[~turned])


def test_mass_swap_exchanges_two_responses(pairs):
    p = pairs["mass swap"]
    (lawful, before), (broken, _) = (at_event(p, film) for film in p.films)
    force = p.forces[0][:, 0].unflatten(-1, (-1, 2))
    swapped = 0
    for new, old, start, f in zip(broken, lawful, before, force):
        dv = (new - start)[:, 2:] / CONFIG.dt
        lawful_dv = (old - start)[:, 2:] / CONFIG.dt
        if (lawful_dv - f / MASSES[:, None]).abs().max() > 1e-3:          # a wall or a contact
            continue
        felt = (f / dv).mean(1)
        assert sorted(felt.tolist()) == pytest.approx([1, 2, 4], rel=1e-2)
        assert ((felt - MASSES).abs() > 0.5).sum() == 2
        swapped += 1
    assert swapped > 25


def test_tunnelling_leaves_the_box_as_if_there_was_no_wall(pairs):
    p = pairs["wall tunnelling"]
    lawful, broken = p.films
    limit = 1 - RADII[:, None]
    _, contacts = WORLD.rollout(p.clip[:, -1], p.forces[0], 5)
    for met, event in zip(contacts, p.event):
        assert not met[event:].any()                                      # else axes are not apart
    assert (lawful[..., :2].abs() <= limit + 1e-4).all()
    for a, b, event, force in zip(lawful, broken, p.event, p.forces[0]):
        beyond = (b[..., :2].abs() > limit + 1e-6).flatten(1)
        assert beyond[event].any() and beyond.any(0).sum() == 1           # one body, one axis
        body, axis = divmod(int(beyond.any(0).int().argmax()), 2)
        same = torch.ones(3, 4, dtype=torch.bool)
        same[body, [axis, axis + 2]] = False
        torch.testing.assert_close(a[:, same], b[:, same])
        dv = b[1:, body, 2 + axis] - b[:-1, body, 2 + axis]
        push = force.unflatten(-1, (-1, 2))[:, body, axis] / CONFIG.masses[body]
        expected = push.repeat_interleave(5)[1:] * CONFIG.dt
        after = slice(max(0, int(event) - 1), None)
        torch.testing.assert_close(dv[after], expected[after], atol=1e-4, rtol=0)


def test_the_control_is_lawful_on_both_sides(pairs):
    p = pairs[films.CONTROL]
    for film, forces, meets in zip(p.films, p.forces, (False, True)):
        again, contacts = WORLD.rollout(p.clip[:, -1], forces, 5)
        torch.testing.assert_close(again, film)
        assert (contacts.any(1) == meets).all()
    assert torch.equal(contacts.int().argmax(1), p.event)


def test_one_body_cannot_break_a_rule_of_two():
    config = hjepa.Config(masses=(1.0,))
    with pytest.raises(hjepa.Refusal, match="mass swap"):
        films.make_pairs("mass swap", hjepa.build_world(config), config, 4, 0)


# ---- surprise

def test_a_perfect_model_knows_what_cannot_happen():
    """Of two seeds: the interval resamples both."""
    args = Namespace(n=40, device=CPU)
    content = surprise.measure(args, [PERFECT, PERFECT_1]).summary
    for row in content["rows"]:
        if row["rule"] != films.CONTROL:
            assert row["share"] == 1 and row["auroc"] > 0.999, row
            assert row["auroc_collision"] > 0.999, row
    assert all(candidate["share"] == 1 for candidate in content["candidates"])


def test_the_window_begins_with_the_event():
    short, clip = np.array([[9, 1, 5, 2, 7.0], [9, 8, 5, 2, 4]]), np.array([1, 4])
    expected = {("event", "mean"): [1, 4], ("event and next", "largest"): [5, 4],
                ("event and next", "mean"): [3, 4], ("event and all after", "largest"): [7, 4],
                ("event and all after", "mean"): [3.75, 4]}
    for statistic in surprise.STATISTICS:
        assert surprise.over_window(short, clip, statistic).tolist() == expected[statistic]


def test_both_levels_weigh_the_same():
    """Surprise at each level is divided by its mean over lawful validation films."""
    found = {"short": np.full((2, 1, 4, 5), 6.0), "macro": np.full((2, 1, 4), 9.0),
             "clip": np.zeros(4, dtype=int)}
    rules = {rule: found for rule in films.RULES}
    unit = surprise.units(rules, ("event", "mean"))
    assert unit == {"short": [6], "macro": [9]}
    scores = surprise.score(rules, ("event", "mean"), unit)
    assert (scores["all"]["both"] == 2).all() and scores["all"]["both"].shape == (2, 1, 24)


def test_auroc_is_the_share_of_all_pairs_that_are_in_order():
    rng = np.random.default_rng(0)
    broken, lawful = rng.normal(0.5, 1, (2, 40)).round(1), rng.normal(0, 1, (2, 40)).round(1)
    area, (low, high) = surprise.auroc(broken, lawful)
    table = [(b > a) + 0.5 * (b == a) for run in range(2) for b in broken[run] for a in lawful[run]]
    assert area == pytest.approx(np.mean(table)) and 0 <= low < area < high <= 1
    assert surprise.auroc(lawful, lawful)[0] == 0.5
