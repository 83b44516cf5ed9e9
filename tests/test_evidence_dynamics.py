"""figures/dynamics.py and figures/surprise.py: do they measure what they say?

A perfect model, the simulator itself dressed up as a model, must score perfectly; each broken rule
must really be broken, and only from its event on; both scripts must run as a user runs them.
"""
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import common                                                             # noqa: E402
import dynamics                                                           # noqa: E402
import hjepa                                                              # noqa: E402
import surprise                                                           # noqa: E402

CONFIG = hjepa.Config()
WORLD = hjepa.build_world(CONFIG)
ARGS = Namespace(n=96, device=torch.device("cpu"), precision="fp32")


class Perfect:
    """A model: its embedding is the state after the clip, its predictors are the simulator."""

    def context(self, clip):
        state = clip[:, -1].unflatten(-1, (-1, 4)) / WORLD.observe(torch.eye(4)[:, None]).sum(0)
        return state.flatten(1), state.flatten(1)

    target = context

    def rollout(self, z, forces):
        state, forces = z.unflatten(-1, (-1, 4)), forces.unflatten(-1, (-1, 2))
        states, _ = WORLD.rollout(state, forces, CONFIG.hold)
        return states[:, CONFIG.hold - 1::CONFIG.hold].flatten(2)

    def jump(self, z, forces):
        return self.rollout(z, forces)[:, -1]


@pytest.fixture(scope="module")
def perfect():
    return common.Run(Perfect(), CONFIG, 0)


@pytest.fixture(scope="module")
def perfect_dynamics(perfect):
    return dynamics.measure(ARGS, [perfect])[2]


def run_script(name, smoke, out, n):
    command = [sys.executable, f"figures/{name}.py", "--run", str(smoke), "--out", str(out), "--n",
               str(n), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "warnings"
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((out / f"{name}.json").read_text())
    assert content["command"].startswith(f"python figures/{name}.py --run")
    assert content["n"] == n and content["seeds"] == [0] and content["torch"] == torch.__version__
    return content


def ordered(row, *names):
    """Each figure lies within its interval, up to some jitter; null comes in pairs."""
    for name in names:
        value, ci = row[name], row[name + "_ci"]
        assert (value is None) == (ci is None), (name, row)
        if value is not None:
            slack = 1e-6 + 0.5 * (ci[1] - ci[0])
            assert ci[0] - slack <= value <= ci[1] + slack, (name, row)


def test_dynamics_runs_and_its_json_has_what_is_promised(smoke, tmp_path):
    content = run_script("dynamics", smoke, tmp_path, 64)
    rows = content["rows"]
    found = {(r["method"], r["level"], r["forces"], r["frames"], r["contacts"]) for r in rows}
    for contacts in ("all", "0", "1", "2+"):
        for frames in (5, 10, 15, 20, 25):
            assert {("P1", "short", forces, frames, contacts)
                    for forces in ("true", "shuffled", "zero")} <= found
            assert {("fly and fold", None, None, frames, contacts),
                    ("decoded simulator", None, None, frames, contacts),
                    ("copy last", "short", None, frames, contacts)} <= found
        assert ("P2", "macro", "true", 25, contacts) in found
    for row in rows:
        ordered(row, "latent_error", "position_error")
    for frames in (5, 25):                                                # strata are a partition
        n = {r["contacts"]: r["n"] for r in rows if r["method"] == "P1" and r["frames"] == frames}
        assert n["all"] == n["0"] + n["1"] + n["2+"] == 64
    pushes = content["counterfactuals"]
    assert [(r["level"], r["frames"], r["body"]) for r in pushes] == [
        (level, frames, body) for level, frames in (("short", 5), ("short", 25), ("macro", 25))
        for body in (0, 1, 2, "others")]
    for row in pushes:
        ordered(row, "pearson", "slope", "sign_agreement",
                *(["leakage"] if row["body"] != "others" else []))
    assert [m["inverse_mass"] for m in content["masses"]] == 3 * [[1, 0.5, 0.25]]


def test_surprise_runs_and_its_json_has_what_is_promised(smoke, tmp_path):
    content = run_script("surprise", smoke, tmp_path, 30)
    rules = [*surprise.RULES, "all", surprise.CONTROL]
    assert [(r["rule"], r["level"]) for r in content["rows"]] == [
        (rule, level) for rule in rules for level in ("short", "macro", "both")]
    for row in content["rows"]:
        ordered(row, "share", "auroc")
        assert row["n"] == (180 if row["rule"] == "all" else 30)
        assert ("auroc_collision" in row) == (row["rule"] != surprise.CONTROL)
    assert content["statistic"] in [[c["window"], c["how"]] for c in content["candidates"]]
    best = max(content["candidates"], key=lambda c: c["share"])
    assert content["statistic"] == [best["window"], best["how"]]
    assert {r["rule"] for r in content["over_time"]} == set(rules) - {"all"}


@pytest.mark.parametrize("name", ["dynamics", "surprise"])
def test_two_seeds_are_two_seeds(name, perfect):
    other = perfect._replace(config=hjepa.Config(seed=1))
    module, args = {"dynamics": dynamics, "surprise": surprise}[name], Namespace(**vars(ARGS))
    args.n = 16
    one, two = (module.measure(args, runs)[2]["rows"] for runs in ([perfect], [perfect, other]))
    keys = "method", "level", "rule", "frames", "contacts", "n"
    assert [[r.get(k) for k in keys] for r in one] == [[r.get(k) for k in keys] for r in two]


# ------------------------------------------------------------------------------------- dynamics

def test_a_perfect_model_makes_no_error_and_only_physics_without_hits_does(perfect_dynamics):
    for row in perfect_dynamics["rows"]:
        if row["n"] and row["method"] in ("P1", "P2") and row["forces"] == "true":
            assert row["latent_error"] < 1e-6 and row["position_error"] < 1e-3, row
        if row["n"] and row["forces"] in ("shuffled", "zero"):
            assert row["latent_more_ci"][0] > 0 or row["n"] < 20, row
        if row["n"] and row["method"] == "fly and fold":
            assert (row["position_error"] < 1e-3) == (row["contacts"] == "0"), row
        if row["n"] and row["method"] == "decoded simulator" and row["contacts"] == "0":
            assert row["position_error"] < 1e-3, row


def test_a_perfect_model_answers_what_if(perfect_dynamics):
    for row in perfect_dynamics["counterfactuals"]:
        if row["n"]:
            assert row["pearson"] == pytest.approx(1, abs=1e-3), row
            assert row["slope"] == pytest.approx(1, abs=1e-3), row
            assert row["sign_agreement"] == pytest.approx(1, abs=1e-2), row
        if row["body"] != "others":
            assert row["sign_agreement"] == 1 and row["leakage"] < 1e-3, row
            assert row["n_without_contact"] > 20
    for row in perfect_dynamics["masses"]:
        assert row["slope"] == pytest.approx(1, abs=1e-3)
        for b, inverse in enumerate(row["inverse_mass"]):
            assert row[f"acceleration_{b}"] == pytest.approx(inverse, abs=1e-3)
            assert row["n"][b] > 10


def test_a_crooked_answer_is_measured_as_crooked(perfect):
    """Half the true response, and a tenth of the pushed body's move in each other body."""
    states, _, _ = hjepa.sequences(WORLD, CONFIG, 96, 5, "crooked", "cpu")
    z = dynamics.look(perfect, WORLD, states, ARGS)
    probes = [lambda p: p.unflatten(-1, (-1, 4))[..., :2].flatten(-2)] * 2
    f, out = dynamics.push(perfect, WORLD, states[:, 0, -1], z, probes, ARGS)
    for key, (guess, true, met) in out.items():
        own = torch.stack([true[:, b, b] for b in range(3)], 1)           # (N, pushed, 2)
        crooked = 0.05 * own[:, :, None].expand_as(true).clone()
        for b in range(3):
            crooked[:, b, b] = -0.5 * own[:, b] if b == 2 else 0.5 * own[:, b]
        out[key] = crooked, true, met
    rows, newton = dynamics.counterfactuals([(f, out)], CONFIG.masses, 2.0, CONFIG.frame)
    for row in rows:
        if row["body"] != "others":
            sign = -1 if row["body"] == 2 else 1
            assert row["slope"] == pytest.approx(0.5 * sign, abs=1e-4)
            assert row["pearson"] == pytest.approx(sign, abs=1e-4)
            assert row["sign_agreement"] == (1 + sign) / 2
            assert row["leakage"] == pytest.approx(0.1, abs=1e-4)
    for row in newton:
        a = [row[f"acceleration_{b}"] for b in range(3)]
        assert a == pytest.approx([0.5, 0.25, -0.125], abs=1e-4)
        assert row["slope"] == pytest.approx(np.polyfit(row["inverse_mass"], a, 1)[0], abs=1e-4)


def test_ghosts_pass_through_each_other_and_still_meet_walls():
    start = torch.tensor([[[-0.3, 0, 1, 0], [0.3, 0, -1, 0], [0.0, 0.8, 0, 1]]])
    none = torch.zeros(1, 10, 3, 2)
    ghosts = surprise.Scene(WORLD, CONFIG, 1, hjepa.generator(0, "x")).other_world(dynamics.Ghosts)
    film, hits = ghosts.rollout(start, none, 5)
    real, met = WORLD.rollout(start, none, 5)
    assert met.any() and not hits.any()
    gap = film[0, :, 1, 0] - film[0, :, 0, 0]
    assert gap.min() < -0.3 and gap.abs().min() < 0.05                    # in front, then behind
    assert (real[0, :, 1, 0] > real[0, :, 0, 0]).all()
    torch.testing.assert_close(film[0, :, 2], real[0, :, 2])              # the wall is still there
    assert film[..., :2].abs().max() < 1


# ------------------------------------------------------------------------------------- surprise

@pytest.fixture(scope="module")
def pairs():
    return {rule: surprise.make_pairs(rule, WORLD, CONFIG, 50, 3_000_000)
            for rule in [*surprise.RULES, surprise.CONTROL]}


@pytest.mark.parametrize("rule", surprise.RULES)
def test_a_rule_changes_the_film_from_the_event_on_and_matters(pairs, rule):
    p = pairs[rule]
    (lawful, broken), event = p["films"], p["event"]
    assert len(lawful) == len(broken) == 50 and 0 < p["fit"] <= 1
    assert torch.equal(*p["forces"])
    again, _ = WORLD.rollout(p["clip"][:, -1], p["forces"][0].unflatten(-1, (-1, 2)), 5)
    torch.testing.assert_close(again, lawful)                             # it is lawful
    for a, b, e in zip(lawful, broken, event):
        torch.testing.assert_close(a[:e], b[:e])
        assert (a[e] - b[e]).abs().max() > 1e-4
    gap = (lawful[:, -1, :, :2] - broken[:, -1, :, :2]).norm(dim=-1).amax(1)
    assert gap.min() >= surprise.MATTERS


def overlap(film):
    """(n, frames, bodies, 4) -> deepest overlap of two bodies (n, frames); negative: none."""
    radius = torch.tensor(WORLD.radii)
    gap = (film[..., :, None, :2] - film[..., None, :, :2]).norm(dim=-1) - radius[:, None] - radius
    return -(gap + 10 * torch.eye(3)).flatten(2).amin(-1)


def energy(film):
    return 0.5 * (torch.tensor(CONFIG.masses) * film[..., 2:].square().sum(-1)).sum(-1)


def at(pair, film):
    """The state in the frame of the event, and the one before."""
    path = torch.cat([pair["clip"][:, -1:], film], 1)
    now = torch.arange(len(film))
    return path[now, pair["event"] + 1], path[now, pair["event"]]


def test_pass_through_overlaps(pairs):
    lawful, broken = pairs["pass-through"]["films"]
    assert overlap(lawful).max() < 1e-3
    assert (overlap(broken).amax(1) > 0).all() and overlap(broken).amax(1).mean() > 0.05


def test_energy_is_injected(pairs):
    p = pairs["energy injection"]
    (lawful, _), (broken, _) = (at(p, film) for film in p["films"])
    assert (energy(broken) > energy(lawful)).all()
    speed = [x[..., 2:].norm(dim=-1) for x in (broken, lawful)]
    change = (speed[0] - speed[1]).abs() > 0.1
    two = (change.sum(1) <= 2).float().mean()                             # three may meet at once
    assert two > 0.9 and change.any(1).float().mean() > 0.9
    ratio = (speed[0] / speed[1])[change & (speed[1] > 0.3)]
    assert ratio.median() == pytest.approx(1.5, abs=0.05)


def test_teleport_jumps_to_a_free_place(pairs):
    p = pairs["teleport"]
    (lawful, _), (broken, _) = (at(p, film) for film in p["films"])
    jump = (broken - lawful)[..., :2].norm(dim=-1)
    assert ((jump >= 0.3).sum(1) == 1).all() and ((jump > 0).sum(1) == 1).all()
    assert torch.equal(broken[..., 2:], lawful[..., 2:])
    assert (broken[..., :2].abs() <= 1 - torch.tensor(WORLD.radii)[:, None]).all()
    assert (overlap(broken[:, None]) < 0).all()


def test_flip_turns_one_velocity_round(pairs):
    p = pairs["velocity flip"]
    (lawful, _), (broken, _) = (at(p, film) for film in p["films"])
    assert torch.equal(broken[..., :2], lawful[..., :2])
    turned = (broken[..., 2:] == -lawful[..., 2:]).all(-1)
    assert (turned.sum(1) == 1).all() and (lawful[..., 2:].norm(dim=-1)[turned] >= 0.3).all()
    assert torch.equal(broken[~turned], lawful[~turned])


def test_mass_swap_exchanges_two_responses(pairs):
    p = pairs["mass swap"]
    (lawful, before), (broken, _) = (at(p, film) for film in p["films"])
    force = p["forces"][0][:, 0].unflatten(-1, (-1, 2))
    masses, swapped = torch.tensor(CONFIG.masses), 0
    for new, old, start, f in zip(broken, lawful, before, force):
        dv, lawful_dv = ((x - start)[:, 2:] / CONFIG.frame for x in (new, old))
        if (lawful_dv - f / masses[:, None]).abs().max() > 1e-3:          # a wall or a hit
            continue
        felt = (f / dv).mean(1)
        assert sorted(felt.tolist()) == pytest.approx([1, 2, 4], rel=1e-2)
        assert ((felt - masses).abs() > 0.5).sum() == 2
        swapped += 1
    assert swapped > 25


def test_tunnelling_leaves_the_box_as_if_there_was_no_wall(pairs):
    p = pairs["wall tunnelling"]
    (lawful, broken), limit = p["films"], 1 - torch.tensor(WORLD.radii)[:, None]
    _, hits = WORLD.rollout(p["clip"][:, -1], p["forces"][0].unflatten(-1, (-1, 2)), 5)
    assert not any(met[e:].any() for met, e in zip(hits, p["event"]))     # else axes are not apart
    assert (lawful[..., :2].abs() <= limit + 1e-4).all()
    for a, b, e, force in zip(lawful, broken, p["event"], p["forces"][0]):
        beyond = (b[..., :2].abs() > limit + 1e-6).flatten(1)
        assert beyond.any() and beyond.any(0).sum() == 1                  # one body, one axis
        assert beyond[e].any()
        body, axis = divmod(int(beyond.any(0).int().argmax()), 2)
        same = torch.ones(3, 4, dtype=torch.bool)
        same[body, [axis, axis + 2]] = False
        torch.testing.assert_close(a[:, same], b[:, same])
        dv = b[1:, body, 2 + axis] - b[:-1, body, 2 + axis]
        push = force.unflatten(-1, (-1, 2))[:, body, axis] / CONFIG.masses[body]
        expected = push.repeat_interleave(5)[1:] * CONFIG.frame
        torch.testing.assert_close(dv[max(0, e - 1):], expected[max(0, e - 1):], atol=1e-4, rtol=0)


def test_the_control_is_lawful_on_both_sides(pairs):
    p = pairs[surprise.CONTROL]
    for film, forces, meets in zip(p["films"], p["forces"], (False, True)):
        again, hits = WORLD.rollout(p["clip"][:, -1], forces.unflatten(-1, (-1, 2)), 5)
        torch.testing.assert_close(again, film)
        assert (hits.any(1) == meets).all()
    assert torch.equal(hits.int().argmax(1), p["event"])


def test_a_perfect_model_knows_what_cannot_happen(perfect):
    content = surprise.measure(ARGS, [perfect])[2]
    for row in content["rows"]:
        if row["rule"] != surprise.CONTROL:
            assert row["share"] == 1 and row["auroc"] > 0.999, row
            assert row["auroc_collision"] > 0.999, row
    assert all(c["share"] == 1 for c in content["candidates"])


def test_gather_takes_the_window_that_begins_with_the_event():
    short, clip = np.array([[9, 1, 5, 2, 7.0], [9, 8, 5, 2, 4]]), np.array([1, 4])
    expected = {("event", "mean"): [1, 4], ("event and next", "largest"): [5, 4],
                ("event and next", "mean"): [3, 4], ("event and all after", "largest"): [7, 4],
                ("event and all after", "mean"): [3.75, 4]}
    for statistic in surprise.STATISTICS:
        assert surprise.gather(short, clip, statistic).tolist() == expected[statistic]


def test_auroc_is_the_share_of_all_pairs_that_are_in_order():
    rng = np.random.default_rng(0)
    broken, lawful = rng.normal(0.5, 1, (2, 40)).round(1), rng.normal(0, 1, (2, 40)).round(1)
    area, (low, high) = surprise.auroc(broken, lawful)
    table = [(b > a) + 0.5 * (b == a) for s in range(2) for b in broken[s] for a in lawful[s]]
    assert area == pytest.approx(np.mean(table)) and 0 <= low < area < high <= 1
    assert surprise.auroc(lawful, lawful)[0] == 0.5


def test_one_body_cannot_break_a_rule_of_two():
    config = hjepa.Config(masses=(1.0,))
    with pytest.raises(hjepa.Refusal, match="mass swap"):
        surprise.make_pairs("mass swap", hjepa.build_world(config), config, 4, 0)
