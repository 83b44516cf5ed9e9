"""figures/cost_maps.py: maps of known costs, and a study on a smoke model."""
import json

import numpy as np
import pytest
import torch

from conftest import here
from studies import CPU, quick                                            # noqa: F401
from lib import cli, cost_maps, goals, probes
import hjepa

AXIS = torch.linspace(-2, 2, 21)


def bowl(x, y):
    """-> (21, 21): squared distance from (x, y), fy down, fx across."""
    return (AXIS[:, None] - y).square() + (AXIS - x).square()


def test_descent_in_a_bowl_ends_at_its_bottom_from_everywhere():
    ends = cost_maps.descend(bowl(1.0, -1.0))
    assert (ends == 5 * 21 + 15).all()          # y is the row, x the column
    found = cost_maps.gauges(bowl(1.0, -1.0).flatten(), torch.zeros(441))
    assert found == {"to_minimum": 1.0, "to_goal": 1.0, "minima": 1, "best": 0.0}


def test_of_two_bowls_each_keeps_what_lies_nearer():
    costs = torch.minimum(bowl(-1.0, 0.0) + 0.1, bowl(1.0, 0.0))
    worst = torch.ones(441)
    deep, shallow = 10 * 21 + 15, 10 * 21 + 5
    worst[shallow] = 0.05
    found = cost_maps.gauges(costs.flatten(), worst)
    ends = cost_maps.descend(costs)
    assert set(ends.tolist()) == {deep, shallow} and found["minima"] == 2
    assert found["to_minimum"] == (ends == deep).float().mean().item()
    assert found["to_goal"] == pytest.approx(1 - found["to_minimum"])
    assert 0.5 < found["to_minimum"] < 0.6 and found["best"] == 1.0


def test_a_plain_goes_nowhere_and_a_slope_ends_at_the_edge():
    flat = cost_maps.descend(torch.zeros(4, 4))
    assert torch.equal(flat, torch.arange(16))
    slope = torch.arange(4.0).repeat(4, 1)
    assert (cost_maps.descend(slope) % 4 == 0).all()


def test_two_forces_of_a_plan_run_over_their_range():
    forces = torch.rand(5, 6, generator=hjepa.generator(0, "plan"))
    plans = cost_maps.plans_around(forces, 2.0, 5)
    assert plans.shape == (25, 5, 6)
    assert plans[:5, 0, 0].tolist() == [-2, -1, 0, 1, 2] and plans[:5, 0, 1].unique() == -2
    assert plans[::5, 0, 1].tolist() == [-2, -1, 0, 1, 2]
    changed = (plans != forces).any(0)
    assert changed.nonzero().tolist() == [[0, 0], [0, 1]]


def test_costs_are_the_literal_distances(smoke):
    run, = cli.open_runs([smoke], CPU)
    world = hjepa.build_world(run.config)
    drawn = goals.goals_of(run.config, 1)
    decode = probes.fit_decoder(run, world, CPU, 64)
    plans = cost_maps.plans_around(drawn["forces"][0], 2.0, 3)
    clip, goal = drawn["clip"], drawn["goal"]
    costs, worst = cost_maps.cost_maps(run, world, decode, clip, goal, plans)
    assert set(costs) == {(space, future) for space in cost_maps.SPACES
                          for future in cost_maps.FUTURES}
    states, _ = world.rollout(clip[:, -1], plans[7:8], 5)
    gap = states[:, -1, :, :2] - goal[:, -1, :, :2]
    assert costs["positions", "simulator"][7] == pytest.approx(gap.square().mean().item(), rel=1e-4)
    assert worst[7] == pytest.approx(gap.norm(dim=-1).max().item(), rel=1e-4)
    obs, aim = world.observe(clip), world.observe(goal)
    for tap, cost in ((0, hjepa.short_cost), (1, hjepa.macro_cost)):
        with torch.no_grad():
            expected = cost(run.model, obs, aim)(plans[None])[0]
            seen = run.model.target(world.observe(states[:, -5:]))[tap]
            lawful = (seen - run.model.target(aim)[tap]).square().mean()
        torch.testing.assert_close(costs[f"t{tap + 1}", "model"], expected)
        assert costs[f"t{tap + 1}", "simulator"][7] == pytest.approx(lawful.item(), rel=1e-3)
    # The hidden forces themselves reach the goal, in every space.
    costs, worst = cost_maps.cost_maps(run, world, decode, clip, goal, drawn["forces"])
    assert worst[0] < 1e-3 and costs["t1", "simulator"][0] < 1e-4


def test_runs_as_a_user_runs_it(smoke, tmp_path):
    done = here("figures/cost_maps.py", "--run", smoke, "--goals", 2, "--grid", 9, "--n", 64,
                "--out", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "cost_maps.json").read_text())
    assert len(content["rows"]) == 12 and len(content["pairs"]) == 4 and content["n"] == 2
    for row in content["rows"]:
        assert 1 / 81 <= row["to_minimum"] <= 1 and 0 <= row["to_goal"] <= 1
        assert row["minima"] >= 1 and row["best"] > 0 and row["n"] == 2
    arrays = np.load(tmp_path / "cost_maps.npz")
    assert arrays["maps/contact/t1/model"].shape == (9, 9)
    mean = arrays["to_goal/no contact/positions/simulator"].mean()
    row = next(row for row in content["rows"] if row["kind"] == "no contact")
    assert row["space"] == "positions" and row["to_goal"] == pytest.approx(mean, rel=1e-4)
    assert (tmp_path / "cost_maps.png").read_bytes()[:4] == b"\x89PNG"
    bad = here("figures/cost_maps.py", "--run", smoke, "--grid", 3, "--out", tmp_path)
    assert bad.returncode == 2 and "--grid 3" in bad.stderr and bad.stderr.count("\n") == 1
