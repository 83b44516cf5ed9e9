"""figures/speed_*.py: is the exact solution exact, are operations counted right, does it all run?

No time is asserted anywhere: what else the machine does would decide such a test.
"""
import json
import math

import numpy as np
import pytest
import torch
from conftest import here

from lib import foreign
from lib.exact import exact
import hjepa
import speed_growth
import speed_plan
import speed_simulator
import speed_step

WORLD = hjepa.World()
MASSES = WORLD.masses
RADII = WORLD.radii
CPU = torch.device("cpu")


def energy(state, masses):
    squares = (state[:, 2:] ** 2).sum(-1)
    return 0.5 * (np.asarray(masses) * squares).sum()


def momentum(state, masses):
    return np.asarray(masses) @ state[:, 2:]


def start_and_forces(n):
    """n worlds at twice the usual speed, float64."""
    gen = torch.Generator().manual_seed(0)
    start = WORLD.reset(n, gen, 0.6).double()
    return start, WORLD.random_forces(n, 5, gen).double()


# ------------------------------------------------------------------------------- exact solution

def test_head_on_contact_is_the_one_of_the_textbook():
    """Masses 1 and 3 meet on a line: v1' = ((m1 - m2) v1 + 2 m2 v2) / (m1 + m2), and so on."""
    start = np.array([
        [-0.3, 0.1, 0.8, 0.0],
        [0.3, 0.1, -0.4, 0.0],
    ])
    end, contacts = exact(start, np.zeros((1, 4)), (1.0, 3.0), (0.1, 0.1), 0.5)
    met = (0.6 - 0.2) / 1.2                                               # gap over closing speed
    v1 = (-2 * 0.8 + 6 * -0.4) / 4
    v2 = (2 * -0.4 + 2 * 0.8) / 4
    left = 0.5 - met
    x1 = -0.3 + 0.8 * met + v1 * left
    x2 = 0.3 - 0.4 * met + v2 * left
    assert contacts == 1
    assert end[0] == pytest.approx([x1, 0.1, v1, 0])
    assert end[1] == pytest.approx([x2, 0.1, v2, 0])


def test_flight_under_a_force_and_a_bounce_are_parabolas():
    """From rest with acceleration 2: the wall at 0.9 is met after sqrt(0.9) s with speed
    2 sqrt(0.9), and left with the same."""
    force = np.array([[4.0, 0.0]])
    end, contacts = exact(np.zeros((1, 4)), force, (2.0,), (0.1,), 1.2)
    met = math.sqrt(0.9)
    left = 1.2 - met
    v = -2 * met
    assert contacts == 0
    x = 0.9 + v * left + left ** 2
    assert end[0] == pytest.approx([x, 0, v + 2 * left, 0])


def test_a_contact_far_from_walls_keeps_momentum_and_energy_and_touches_two_bodies():
    start = np.array([
        [-0.2, -0.03, 0.5, 0.1],
        [0.2, 0.05, -0.6, 0.0],
        [0.0, 0.8, 0.0, 0.0],
    ])
    end, contacts = exact(start, np.zeros((1, 6)), MASSES, RADII, 0.6)
    assert contacts == 1
    assert np.abs(end[:, :2]).max() < 0.85
    assert momentum(end, MASSES) == pytest.approx(momentum(start, MASSES))
    assert energy(end, MASSES) == pytest.approx(energy(start, MASSES))
    assert end[2] == pytest.approx(start[2])
    assert end[0] != pytest.approx(start[0])


def test_energy_is_kept_without_forces_through_many_events():
    starts, _ = start_and_forces(12)
    reach = np.add.outer(RADII, RADII)
    np.fill_diagonal(reach, 0)
    room = 1 - np.array(RADII)[:, None]
    total = 0
    for start in starts.numpy():
        end, contacts = exact(start, np.zeros((8, 6)), MASSES, RADII, 0.5)
        total += contacts
        assert energy(end, MASSES) == pytest.approx(energy(start, MASSES), rel=1e-9)
        assert (np.abs(end[:, :2]) <= room + 1e-9).all()
        apart = end[:, None, :2] - end[:, :2]
        assert (np.linalg.norm(apart, axis=-1) >= reach - 1e-9).all()
    assert total > 5


def test_the_world_agrees_with_it():
    """Few steps are enough. Only several events of a body in one step need smaller ones."""
    starts, forces = start_and_forces(40)
    truth, contacts = speed_simulator.exact_ends(WORLD, starts, forces, 0.2)
    errors = []
    for substeps in (4, 256):
        states, _ = hjepa.World(substeps=substeps).rollout(starts, forces)
        gap = states[:, -1, :, :2].numpy() - truth
        errors.append(np.linalg.norm(gap, axis=-1).mean(-1))
    coarse, fine = errors
    assert 5 < np.count_nonzero(contacts) < 35
    assert np.median(coarse) < 1e-5
    assert np.median(fine) < 1e-5
    assert fine.max() < 0.01


@pytest.mark.parametrize("force", [0.0, 2.0])
def test_a_body_at_rest_on_a_wall_ends(force):
    """Pressed against the wall that it is leaving, or lying on it: no endless loop."""
    start = np.array([[0.9, 0.0, -0.3, 0.0]])
    forces = np.array([[force, 0.0]])
    end, _ = exact(start, forces, (1.0,), (0.1,), 1.0)
    assert np.isfinite(end).all()
    assert end[0, 0] <= 0.9 + 1e-9


# ------------------------------------------------------------------------------ a training step

def work_of(counts):
    return sum(speed_step.operations(product) * n for product, n in counts.items())


def test_operations_equal_a_count_by_hand():
    """Linear layers of 7 rows, 5 -> 3 -> 2. Forward m k n twice over; backward the same for the
    weights, and for the inputs except the first one's."""
    layers = torch.nn.Linear(5, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
    net = torch.nn.Sequential(*layers)
    with speed_step.Products() as noted:
        net(torch.randn(7, 5)).sum().backward()
    forward = 2 * 7 * (5 * 3 + 3 * 2)
    inputs = 2 * 7 * (3 * 2)
    assert work_of(noted.counts) == 2 * forward + inputs
    assert sum(noted.counts.values()) == 5


def test_batched_products_count_every_member_and_are_replayed_as_they_were():
    a = torch.randn(4, 6, 5)
    b = torch.randn(4, 3, 5).transpose(1, 2)
    with speed_step.Products() as noted:
        torch.bmm(a, b)
    assert list(noted.counts.values()) == [1]
    assert work_of(noted.counts) == 2 * 4 * 6 * 5 * 3
    with speed_step.Products() as again:
        speed_step.replay(noted.counts, CPU)()
    assert again.counts == noted.counts


def test_the_step_written_plainly_takes_the_same_step():
    """Up to rounding: otherwise it must not be timed against the shipped one."""
    config = hjepa.Config(sequences=64, batch=32, latent=16, width=16, short_width=16,
                          macro_width=16, warmup=0)
    world = hjepa.build_world(config)
    states, forces, shares = hjepa.draw_training(world, config, CPU)
    data = world.observe(states), forces, shares
    shipped = speed_step.make_step(config, data, CPU, "fp32")
    plain = speed_step.make_step(config, data, CPU, "fp32", attention="library", fused=False)
    losses = [(shipped().item(), plain().item()) for _ in range(3)]
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert losses[0][0] != losses[2][0]


def test_exponent_of_a_power_is_its_power():
    seconds = [3, 3 * 2 ** 1.5, 3 * 5 ** 1.5]
    assert speed_growth.exponent([1, 2, 5], seconds) == pytest.approx(1.5)
    assert speed_growth.exponent([4], [1]) is None


# ---------------------------------------------------------------------------------- the planners

@pytest.mark.parametrize("name", foreign.PLANNERS)
def test_every_planner_finds_the_minimum_of_a_bowl_within_its_calls(name):
    """A prediction adds up the forces: a plan is good if they sum to the goal."""
    config = hjepa.Config(samples=200, iterations=6)
    calls = {"predict": 0, "step": 0}

    def predict(z, plans):
        calls["predict"] += len(plans)
        return z + plans.sum(1)

    def step(z, force):
        calls["step"] += len(force)
        return z + force

    start = torch.zeros(1, 2)
    goal = torch.tensor([[2.0, -3.0]])
    problem = foreign.Problem(predict, step, 3, start, goal, clips=3, actions=2, limit=2.0)
    planner = foreign.PLANNERS[name]
    settings = {"temperature": 0.1} if name == "pytorch-mppi" else {}
    try:
        make_plan = planner(problem, config, 0, **settings)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    plan = make_plan()
    expected = {"predict": 1200, "step": 0}
    if name == "ours":
        expected["predict"] += 1                                          # the last mean
    if name == "pytorch-mppi":
        expected = {"predict": 0, "step": 3 * 1200}
    assert calls == expected
    assert plan.shape == (1, 3, 2)
    idle = speed_plan.cost_of(0 * plan, problem)
    assert speed_plan.cost_of(plan, problem) < 0.1 < idle


# ----------------------------------------------------------------------------------- the scripts

def study(name, smoke, out, *flags):
    """Run a script on the smoke run -> its JSON."""
    done = here(f"figures/{name}.py", "--run", smoke, "--out", out, "--device", "cpu", *flags)
    assert done.returncode == 0, done.stderr
    assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((out / f"{name}.json").read_text())
    assert content["processor"]
    assert "Infinity" not in json.dumps(content)
    return content


def test_time_tries_the_longest_schedule_after_every_epoch_and_the_others_at_their_end(
        smoke, tmp_path):
    content = study("speed_time", smoke, tmp_path, "--n", 2, "--epochs", 2, 1)
    tried = [(row["schedule"], row["epoch"]) for row in content["rows"]]
    assert tried == [(1, 1), (2, 1), (2, 2)]
    assert content["rows"][1]["seconds"] < content["rows"][2]["seconds"]
    for row in content["rows"]:
        assert row["mean_body"] in (0, 0.5, 1)
    enough = [row["schedule"] for row in content["rows"] if row["mean_body"] >= 0.95]
    assert (content["shortest_schedule"] is None) == (not enough)


def test_step_has_a_row_for_every_arm(smoke, tmp_path):
    content = study("speed_step", smoke, tmp_path, "--repeats", 1)
    arms = {row["arm"]: row for row in content["rows"]}
    assert list(arms) == ["shipped", "float32", "library attention", "optimiser not fused",
                          "written plainly"]
    assert arms["shipped"]["times_shipped"] == 1
    assert content["operations"] > 1e6
    for row in arms.values():
        per_second = content["batch"] / row["seconds"]
        assert row["sequences_per_second"] == pytest.approx(per_second, rel=1e-3)


def test_plan_compares_all_that_is_installed_on_both_levels(smoke, tmp_path):
    content = study("speed_plan", smoke, tmp_path, "--n", 2)
    present = [name for name in foreign.PLANNERS if name not in content["skipped"]]
    rows = content["rows"]
    assert "ours" in present
    assert [row["planner"] for row in rows] == 2 * present
    assert [row["level"] for row in rows] == ["macro"] * len(present) + ["short"] * len(present)
    for row in rows:
        assert row["cost"] > 0
        assert ("ours_lower_by" in row) == (row["planner"] != "ours")
        assert ("temperature" in row) == (row["planner"] == "pytorch-mppi")
    config = hjepa.load(smoke)[1]
    assert rows[0]["calls"] == config.samples * config.iterations + 1


def test_simulator_counts_every_world_once(smoke, tmp_path):
    content = study("speed_simulator", smoke, tmp_path, "--worlds", 40, "--repeats", 1)
    rows = {row["simulator"]: row for row in content["rows"]}
    n = {stratum["contacts"]: stratum["n"] for stratum in rows["World, all together"]["error"]}
    assert n["none"] + n["one or more"] == 40
    assert rows["World, one by one"]["error"] == []
    assert set(rows) | set(content["skipped"]) == set(speed_simulator.SIMULATORS)


def test_growth_has_a_row_for_every_size(smoke, tmp_path):
    content = study("speed_growth", smoke, tmp_path, "--repeats", 1, "--sequences", 128, 256,
                    "--frames", 25, 50, "--samples", 10, 20)
    sizes = [(row["what"], row["size"]) for row in content["rows"]]
    assert sizes == [("sequences", 128), ("sequences", 256), ("frames", 25), ("frames", 50),
                     ("samples", 10), ("samples", 20)]
    assert set(content["exponents"]) == {"sequences", "frames", "samples"}
