"""figures/speed.py: is the exact solution exact, are operations counted right, does it all run?"""
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))
import hjepa                                                              # noqa: E402
import speed                                                              # noqa: E402

MASSES, RADIUS = (1.0, 2.0, 4.0), 0.08
RADII = tuple(RADIUS * math.sqrt(m) for m in MASSES)


def energy(state, masses):
    return 0.5 * (np.asarray(masses)[:, None] * state[:, 2:] ** 2).sum()


def momentum(state, masses):
    return (np.asarray(masses)[:, None] * state[:, 2:]).sum(0)


def worlds(n, clips=5, seed=0):
    world, gen = hjepa.World(), torch.Generator().manual_seed(seed)
    return world, world.reset(n, gen, 0.6).double(), world.random_forces(n, clips, gen).double()


# ------------------------------------------------------------------------------- exact solution

def test_head_on_collision_is_the_one_of_the_textbook():
    """Masses 1 and 3 meet on a line: v1' = ((m1 - m2) v1 + 2 m2 v2) / (m1 + m2), and so on."""
    start = np.array([[-0.3, 0.1, 0.8, 0.0], [0.3, 0.1, -0.4, 0.0]])
    end, hits = speed.exact(start, np.zeros((1, 2, 2)), (1.0, 3.0), (0.1, 0.1), 0.5)
    met = (0.6 - 0.2) / 1.2                                               # gap over closing speed
    assert hits == 1
    after = [(-2 * 0.8 + 6 * -0.4) / 4, (2 * -0.4 + 2 * 0.8) / 4]
    places = [-0.3 + 0.8 * met + after[0] * (0.5 - met), 0.3 - 0.4 * met + after[1] * (0.5 - met)]
    assert end[:, 2] == pytest.approx(after) and end[:, 0] == pytest.approx(places)
    assert end[:, 1] == pytest.approx([0.1, 0.1]) and end[:, 3] == pytest.approx([0, 0])


def test_flight_under_a_force_and_a_bounce_are_parabolas():
    """From rest with acceleration 2: the wall at 0.9 is met after sqrt(0.9) s with speed
    2 sqrt(0.9), and left with the same."""
    start, force = np.zeros((1, 4)), np.full((1, 1, 2), [4.0, 0.0])
    end, hits = speed.exact(start, force, (2.0,), (0.1,), 1.2)
    left, v = 1.2 - math.sqrt(0.9), -2 * math.sqrt(0.9)
    assert hits == 0
    assert end[0] == pytest.approx([0.9 + v * left + left ** 2, 0, v + 2 * left, 0])


def test_a_hit_far_from_walls_keeps_momentum_and_energy_and_is_central():
    start = np.array([[-0.2, -0.03, 0.5, 0.1], [0.2, 0.05, -0.6, 0.0], [0.0, 0.8, 0.0, 0.0]])
    end, hits = speed.exact(start, np.zeros((1, 3, 2)), MASSES, RADII, 0.6)
    assert hits == 1 and np.abs(end[:, :2]).max() < 0.85
    assert momentum(end, MASSES) == pytest.approx(momentum(start, MASSES))
    assert energy(end, MASSES) == pytest.approx(energy(start, MASSES))
    assert end[2] == pytest.approx(start[2])


def test_energy_is_kept_without_forces_through_many_events():
    _, states, _ = worlds(12)
    total = 0
    for state in states.numpy():
        end, hits = speed.exact(state, np.zeros((8, 3, 2)), MASSES, RADII, 0.5)
        total += hits
        assert energy(end, MASSES) == pytest.approx(energy(state, MASSES), rel=1e-9)
        assert (np.abs(end[:, :2]) <= 1 - np.array(RADII)[:, None] + 1e-9).all()
        gap = np.linalg.norm(end[:, None, :2] - end[None, :, :2], axis=-1) + 10 * np.eye(3)
        assert (gap >= np.add.outer(RADII, RADII) - 1e-9).all()
    assert total > 5


def test_the_world_tends_to_it_as_its_steps_shrink():
    _, states, forces = worlds(40)
    truth, hits = zip(*(speed.exact(s, f, MASSES, RADII, 0.2)
                        for s, f in zip(states.numpy(), forces.numpy())))
    errors = []
    for substeps in (4, 256):
        ends = hjepa.World(substeps=substeps).rollout(states, forces)[0][:, -1, :, :2].numpy()
        errors.append(np.linalg.norm(ends - np.stack(truth)[..., :2], axis=-1).mean(-1))
    assert 5 < np.count_nonzero(hits) < 35
    assert np.median(errors[1]) < 1e-4 and np.median(errors[1]) < 0.1 * np.median(errors[0])
    assert errors[1].max() < 0.01


@pytest.mark.parametrize("force", [0.0, 2.0])
def test_a_body_at_rest_on_a_wall_ends(force):
    """Pressed against the wall it is leaving, or lying on it: no endless loop."""
    start = np.array([[0.9, 0.0, -0.3, 0.0]])
    end, _ = speed.exact(start, np.full((1, 1, 2), [force, 0.0]), (1.0,), (0.1,), 1.0)
    assert np.isfinite(end).all() and end[0, 0] <= 0.9 + 1e-9


# ------------------------------------------------------------------------------------ operations

def test_operations_equal_a_count_by_hand():
    """Linear layers of 7 rows, 5 -> 3 -> 2. Forward m k n twice over; backward the same for the
    weights, and for the inputs except the first one's."""
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with speed.Products() as noted:
        net(torch.randn(7, 5)).sum().backward()
    by_hand = 2 * 7 * (5 * 3 + 3 * 2) + 2 * 7 * (5 * 3 + 3 * 2) + 2 * 7 * (3 * 2)
    assert sum(speed.operations(p) * n for p, n in noted.counts.items()) == by_hand
    assert sum(noted.counts.values()) == 5


def test_batched_products_count_every_member_and_are_replayed_as_they_were():
    a, b = torch.randn(4, 6, 5), torch.randn(4, 3, 5).transpose(1, 2)
    with speed.Products() as noted:
        torch.bmm(a, b)
    (product, count), = noted.counts.items()
    assert count == 1 and speed.operations(product) == 2 * 4 * 6 * 5 * 3
    with speed.Products() as again:
        speed.replay(noted.counts, torch.device("cpu"))()
    assert again.counts == noted.counts


def test_the_step_written_plainly_takes_the_same_step():
    """Up to rounding: it may be timed against the shipped one."""
    config = hjepa.Config(sequences=64, batch=32, latent=16, width=16, short_width=16,
                          macro_width=16, warmup=0)
    world, cpu = hjepa.build_world(config), torch.device("cpu")
    states, forces, _ = hjepa.sequences(world, config, 64, 0, "train", cpu)
    data = world.observe(states), forces
    ours = speed.make_step(config, data, cpu, "fp32")
    plain = speed.make_step(config, data, cpu, "fp32", attention="library", fused=False)
    for _ in range(3):
        a, b = ours().item(), plain().item()
        assert a == pytest.approx(b, rel=1e-3)


def test_exponent_of_a_power_is_its_power():
    assert speed.exponent([1, 2, 5], [3, 3 * 2 ** 1.5, 3 * 5 ** 1.5]) == pytest.approx(1.5)
    assert speed.exponent([4], [1]) is None


# ---------------------------------------------------------------------------------- the planners

@pytest.mark.parametrize("name", list(speed.PLANNERS))
def test_every_planner_finds_the_minimum_of_a_bowl_within_its_calls(name):
    """predict adds up the forces: a plan is good if they sum to the aim."""
    plan_with, *where = speed.PLANNERS[name]
    if speed.library(*where) is None:
        pytest.skip(f"{name} is not installed")
    config, calls = hjepa.Config(samples=200, iterations=6), []

    def step(z, force):
        return z + force

    def predict(z, plans):
        return z + plans.sum(1)
    start, aim = torch.zeros(1, 2), torch.tensor([[2.0, -3.0]])
    problem = speed.Problem("short", predict, step, start, aim, 3, 2, 2.0)
    cost = hjepa.latent_cost(predict, problem.start, problem.aim)

    def counted(plans):
        calls.append(plans.shape[1])
        return cost(plans)
    plan = plan_with(problem, counted, config, 0, temperature=0.1)()
    assert plan.shape == (1, 3, 2)
    assert speed.cost_of(plan, problem, "fp32") < 0.1 < speed.cost_of(0 * plan, problem, "fp32")
    spent = {"ours": 1201, "ours, half the calls": 601, "pytorch-mppi": 0}
    assert sum(calls) == spent.get(name, 1200)                            # the last mean; only steps


# ------------------------------------------------------------------------------ the whole script

def test_script_runs_and_its_json_has_what_is_promised(smoke, tmp_path):
    command = [sys.executable, "figures/speed.py", "--run", str(smoke), "--out", str(tmp_path),
               "--device", "cpu", *"--n 2 --repeats 1 --worlds 8 --shared 128 --epochs 1 "
               "--sequences 128 256 --frames 25 50 --samples 10 20 --processes 1".split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["command"].startswith("python figures/speed.py --run") and content["n"] == 2
    rows = content["rows"]
    assert list(dict.fromkeys(r["part"] for r in rows)) == list(speed.PARTS)
    assert list(content["measured"]) == list(speed.PARTS)
    step = content["step"]
    assert 0 < step["share"] < 1.5 and step["operations"] > 1e6
    for row in rows:
        if row["part"] == "step":
            assert row["sequences_per_second"] == pytest.approx(128 / row["seconds"], rel=1e-3)
        if row["part"] == "plan":
            assert row["calls"] == {"ours": 241, "ours, half the calls": 121}.get(row["planner"], 240)
            assert row["cost"] > 0 and row["seconds"] > 0
    assert {r["level"] for r in rows if r["part"] == "plan"} == {"macro", "short"}
    world, = (r for r in rows if r.get("simulator") == "World, all together")
    assert sum(e["n"] for e in world["error"] if e["hits"] in ("none", "one or more")) == 8
    assert set(content["exponents"]) == {"sequences", "frames", "samples", "processes"}
    there = {name for name, (_, *where) in speed.PLANNERS.items() if speed.library(*where)}
    assert {r["planner"] for r in rows if r["part"] == "plan"} == there
    assert not there & set(content["skipped"])

    command += ["--only", "simulator"]                                    # the rest stays as it is
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    again = json.loads((tmp_path / "speed.json").read_text())
    for part, how in again["measured"].items():
        assert ("--only" in how["command"]) == (part == "simulator")
        assert how["processor"] and all(key in again for key in how["entries"])
    assert [r for r in again["rows"] if r["part"] != "simulator"] == [
        r for r in rows if r["part"] != "simulator"]
    (tmp_path / "speed.json").write_text("{}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "speed.json is damaged" in done.stderr
    assert (tmp_path / "speed.json").read_text() == "{}"
