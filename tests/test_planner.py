"""The search on costs with a known answer, and closed-loop planning with the true simulator."""
import math

import pytest
import torch

import hjepa
from hjepa import World, cem, replan


def gens(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


AIM = torch.tensor([[0.5, -1.0, 1.5, 0.0], [-1.2, 0.3, 0.7, -0.4]]).view(2, 2, 2)      # (B, K, A)


def quadratic(plans):
    """(B, S, K, A) -> (B, S): squared distance to AIM."""
    return (plans - AIM[:len(plans), None]).square().sum((-1, -2))


def search(cost=quadratic, mean=None, std=None, seeds=(0, 1), **budget):
    mean = torch.zeros(len(seeds), 2, 2) if mean is None else mean
    std = torch.ones_like(mean) if std is None else std
    return cem(cost, mean, std, gens(*seeds), **budget)


def test_finds_the_minimum_of_a_quadratic():
    plan, cost = search(iterations=10)
    assert (plan - AIM).abs().max() < 0.1
    torch.testing.assert_close(cost, quadratic(plan[:, None])[:, 0])


def test_the_last_mean_competes():
    """On a bowl the mean of the best samples is better than any of them, and nearly always wins."""
    shapes, values = [], []

    def cost(plans):
        shapes.append(tuple(plans.shape[:2]))
        values.append(quadratic(plans))
        return values[-1]
    plan, best = search(cost, samples=20, iterations=3, elites=8)
    assert shapes == 3 * [(2, 20)] + [(2, 1)]
    assert torch.equal(best, torch.cat(values, 1).amin(1)) and (values[-1][:, 0] == best).any()
    torch.testing.assert_close(quadratic(plan[:, None])[:, 0], best)


def test_respects_bounds():
    """The minimum lies outside: the plan ends at the bound, and no plan beyond it is ever tried."""
    seen = []

    def cost(plans):
        seen.append(plans.abs().max().item())
        return (plans - 5.0).square().sum((-1, -2))
    plan, _ = search(cost, mean=torch.full((2, 2, 2), 9.0), low=-0.7, high=0.7)
    assert len(seen) == 6 + 1 and max(seen) <= 0.7 + 1e-6
    torch.testing.assert_close(plan, torch.full((2, 2, 2), 0.7))


@pytest.mark.parametrize("wrong, says", [({"elites": 1}, "elites"), ({"elites": 0}, "elites"),
                                         ({"elites": 11, "samples": 10}, "elites"),
                                         ({"seeds": (0,)}, "generators"),
                                         ({"seeds": (0, 1, 2)}, "generators")])
def test_refuses_what_cannot_be_searched(wrong, says):
    with pytest.raises(ValueError, match=says):
        search(mean=torch.zeros(2, 2, 2), **wrong)


def test_keeps_its_inputs():
    mean, std = torch.full((2, 2, 2), 0.3), torch.full((2, 2, 2), 0.8)
    search(mean=mean, std=std)
    assert (mean == 0.3).all() and (std == 0.8).all()


def test_nan_counts_as_infinitely_bad():
    """Half of all plans cost NaN, and among them the ones that would be best."""
    def cost(plans):
        return torch.where(plans[..., 0, 0] > 0.2, math.nan, quadratic(plans))
    plan, value = search(cost, iterations=10)
    assert value.isfinite().all() and (plan[:, 0, 0] <= 0.2).all()
    assert (plan - AIM)[:, 1].abs().max() < 0.3                           # and it still searches


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_plan_of_finite_cost_gives_the_start_and_says_so(bad):
    plan, value = search(lambda plans: torch.full(plans.shape[:2], bad),
                         mean=torch.full((2, 2, 2), 0.3))
    assert (plan == 0.3).all() and value.isinf().all()


def test_a_task_does_not_depend_on_its_neighbours():
    both, costs = search(seeds=(5, 6))
    for b, seed in enumerate((5, 6)):
        def cost(plans, b=b):
            return (plans - AIM[b]).square().sum((-1, -2))
        alone, value = search(cost, seeds=(seed,))
        assert torch.equal(alone[0], both[b]) and torch.equal(value[0], costs[b])
    other, _ = search(seeds=(5, 7))
    assert torch.equal(other[0], both[0]) and not torch.equal(other[1], both[1])


def test_a_warm_start_is_never_lost():
    """The start is the minimum, far from where a wide and short search looks."""
    plan, cost = search(mean=AIM, samples=5, elites=2, iterations=2)
    assert torch.equal(plan, AIM) and (cost == 0).all()
    for seed in range(5):
        start = torch.randn(2, 2, 2, generator=gens(seed)[0])
        _, cost = search(mean=start, samples=3, elites=2, iterations=1)
        assert (cost <= quadratic(start[:, None])[:, 0]).all()


def test_returns_the_best_plan_ever_tried():
    tried = []

    def rough(plans):
        tried.append((plans * 37).sin().sum((-1, -2)))
        return tried[-1]
    _, cost = search(rough, samples=20, elites=5)
    assert torch.equal(cost, torch.cat(tried, 1).amin(1))


def test_the_same_generators_give_the_same_plan():
    torch.manual_seed(1)
    first = search(seeds=(3, 4))[0]
    torch.manual_seed(2)                                                  # plays no part
    assert torch.equal(first, search(seeds=(3, 4))[0])
    assert not torch.equal(first, search(seeds=(5, 6))[0])


@pytest.fixture(scope="module")
def tasks():
    return hjepa.make_tasks(World(), 40, 5, gens(11)[0])


def test_hidden_forces_reach_the_goal(tasks):
    world = World()
    assert {k: tuple(v.shape) for k, v in tasks.items()} == {
        "clip": (40, 5, 3, 4), "goal": (40, 5, 3, 4), "forces": (40, 5, 6), "contact": (40,)}
    forces = tasks["forces"].unflatten(-1, (3, 2))
    assert forces.abs().max() <= world.force_limit
    states, hits = world.rollout(tasks["clip"][:, -1], forces)
    assert torch.equal(states[:, -5:], tasks["goal"])
    assert torch.equal(hits.any(1), tasks["contact"]) and tasks["contact"].any()


def test_every_goal_needs_force(tasks):
    """With no force the worst body ends farther than 0.2 from where it should be."""
    world = World()
    idle, _ = world.rollout(tasks["clip"][:, -1], torch.zeros(40, 5, 3, 2))
    off = (idle[:, -1, :, :2] - tasks["goal"][:, -1, :, :2]).norm(dim=-1).amax(-1)
    assert off.min() > 0.2


def test_a_world_without_such_goals_is_refused():
    with pytest.raises(hjepa.Refusal, match="force"):
        hjepa.make_tasks(World(force_limit=0.01), 4, 5, gens(0)[0])


def oracle(world, goal):
    """-> make_cost for replan: how far from their goals the true simulator says the bodies end."""
    def make_cost(clip, left):
        def cost(plans):
            b, s = plans.shape[:2]
            start = clip[:, None, -1].expand(-1, s, -1, -1).flatten(0, 1)
            end = world.rollout(start, plans.flatten(0, 1).unflatten(-1, (-1, 2)))[0][:, -1, :, :2]
            aim = goal[:, None, -1, :, :2]
            return (end.unflatten(0, (b, s)) - aim).square().sum((-1, -2))
        return cost
    return make_cost


def test_replanning_with_the_true_simulator_arrives(tasks):
    world, clip, goal = World(), tasks["clip"][:6], tasks["goal"][:6]
    kept, asked, tried = clip.clone(), [], []

    def make_cost(now, left):
        cost = oracle(world, goal)(now, left)
        asked.append((left, now))
        tried.append([])

        def noted(plans):
            tried[-1].append((plans, cost(plans)))
            return tried[-1][-1][1]
        return noted
    states, forces = replan(world, clip, 5, make_cost, gens(*range(6)), samples=100, elites=10)
    assert states.shape == (6, 25, 3, 4) and forces.shape == (6, 5, 6)
    assert torch.equal(clip, kept) and forces.abs().max() <= world.force_limit
    off = (states[:, -1, :, :2] - goal[:, -1, :, :2]).norm(dim=-1)
    assert off.mean() < 0.03 and off.max() < 0.1
    # What it reports is what happened: these forces lead through these states ...
    again, _ = world.rollout(clip[:, -1], forces.unflatten(-1, (3, 2)))
    torch.testing.assert_close(again, states, atol=1e-4, rtol=0)
    # ... each plan began at the clip just seen, and the search at what was left of the last one.
    assert [left for left, _ in asked] == [5, 4, 3, 2, 1] and torch.equal(asked[0][1], clip)
    for k in range(1, 5):
        assert torch.equal(asked[k][1], states[:, 5 * (k - 1):5 * k])
        plans, costs = (torch.cat(x, 1) for x in zip(*tried[k - 1]))
        best = plans[torch.arange(6), costs.argmin(1)]
        assert torch.equal(forces[:, k - 1], best[:, 0])
        assert torch.equal(tried[k][0][0][:, 0], best[:, 1:])


def test_costs_look_at_the_right_embeddings():
    """The cost of a plan is the distance between what the model predicts and the goal's code."""
    model = hjepa.HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16)
    clip, goal = torch.randn(2, 2, 5, 12, generator=gens(0)[0])
    plans = torch.randn(2, 3, 5, 6, generator=gens(1)[0])
    short, macro = hjepa.short_cost(model, clip, goal), hjepa.macro_cost(model, clip, goal)
    for b in range(2):
        z1, z2 = model.context(clip[b:b + 1])
        t1, t2 = model.target(goal[b:b + 1])
        for s in range(3):
            end = model.rollout(z1, plans[b, s][None])[:, -1]
            torch.testing.assert_close(short(plans)[b, s], (end - t1).square().mean())
            leap = model.jump(z2, plans[b, s][None])
            torch.testing.assert_close(macro(plans)[b, s], (leap - t2).square().mean())
    assert short(plans[:, :, :2]).shape == (2, 3)                         # plans of any length


def test_no_iteration_returns_the_start_within_its_bounds():
    plan, _ = search(mean=AIM + 100, iterations=0)
    assert plan.max() == 2


def test_more_images_than_there_are_never_mix_tasks():
    def make_cost(model, clip, goal):
        return lambda plans: (plans.flatten(2) ** 2).mean(-1) + clip.square().mean((1, 2))[:, None]
    clip, plans = torch.arange(2.0)[:, None, None] * torch.ones(2, 5, 12), torch.randn(2, 7, 5, 6)
    many, eight = (hjepa.mirrored(make_cost, None, clip, clip, views)(plans) for views in (16, 8))
    torch.testing.assert_close(many, eight)
    assert many.shape == (2, 7)


def test_a_mirrored_cost_is_the_mean_over_images_of_one_and_the_same_scene():
    """On a cost that knows physics each image says the same; on one that does not, all eight
    together do, whichever way the scene is turned; one view is the scene as it is."""
    world, gen = hjepa.World(), gens(0)[0]
    start, forces = world.reset(2, gen), world.random_forces(6, 3, gen)
    clip, goal = (world.observe(start)[:, None].expand(-1, 5, -1) for _ in range(2))
    plans = forces.flatten(2).unflatten(0, (2, 3))

    def simulated(model, clip, goal):
        def cost(plans):
            now = (clip[:, -1].unflatten(-1, (-1, 4)) / world.observe(torch.ones(1, 4)))
            end, _ = world.rollout(now.repeat_interleave(3, 0), plans.flatten(0, 1).unflatten(
                -1, (-1, 2)))
            aim = goal[:, -1].unflatten(-1, (-1, 4)).repeat_interleave(3, 0)
            return (end[:, -1] - aim).square().mean((-1, -2)).unflatten(0, (-1, 3))
        return cost
    plain = simulated(None, clip, goal)(plans)
    for views in (1, 2, 8):
        torch.testing.assert_close(hjepa.mirrored(simulated, None, clip, goal, views)(plans), plain,
                                   rtol=1e-3, atol=1e-4)
    model = hjepa.HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16)
    clip, goal = torch.randn(2, 2, 5, 12, generator=gen)

    def seen(views, turn=lambda x: x):
        return hjepa.mirrored(hjepa.short_cost, model, turn(clip), turn(goal), views)(turn(plans))

    def flip_x(x):
        return x * torch.tensor([-1.0, 1.0]).repeat(x.shape[-1] // 2)

    def swap(x):
        return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    assert torch.equal(seen(1), hjepa.short_cost(model, clip, goal)(plans))
    for turn in (flip_x, swap, lambda x: swap(flip_x(x))):
        torch.testing.assert_close(seen(8, turn), seen(8))
        assert not torch.allclose(seen(1, turn), seen(1), rtol=1e-2)
    torch.testing.assert_close(seen(2), (seen(1) + seen(1, lambda x: -swap(x))) / 2)
