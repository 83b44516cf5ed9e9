"""The search on costs with a known answer, and closed-loop planning with the true simulator."""
import itertools
import math

import pytest
import torch

import hjepa
from hjepa import World, better_of, cem, cheaper_of, first_guess, latent_cost
from hjepa import macro_cost, plan_once, reflect, replan, short_cost


def gens(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def small_model():
    torch.manual_seed(0)
    return hjepa.HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16,
                 macro_blocks=5, guess_width=0)


# The search. Two goals, plans of two forces with two numbers each.

AIM = torch.tensor([[0.5, -1.0, 1.5, 0.0], [-1.2, 0.3, 0.7, -0.4]]).view(2, 2, 2)      # (B, K, A)


def quadratic(plans):
    """(B, S, K, A) -> (B, S): squared distance to AIM."""
    return (plans - AIM[:len(plans), None]).square().sum((-1, -2))


def cost_of(plan, cost=quadratic):
    """(B, K, A) -> (B,)."""
    return cost(plan[:, None])[:, 0]


def search(cost=quadratic, mean=None, std=None, seeds=(0, 1), **budget):
    if mean is None:
        mean = torch.zeros(len(seeds), 2, 2)
    if std is None:
        std = torch.ones_like(mean)
    return cem(cost, mean, std, gens(*seeds), **{"low": -2.0, "high": 2.0, **budget})


def test_finds_the_minimum_of_a_quadratic():
    plan, cost = search(iterations=10)
    assert (plan - AIM).abs().max() < 0.1
    torch.testing.assert_close(cost, cost_of(plan))


def test_one_iteration_is_the_textbook():
    """Sample around the mean, keep the cheapest, and their mean and deviation are the next
    Gaussian."""
    seen = []

    def cost(plans):
        seen.append(plans)
        return quadratic(plans)
    mean = torch.tensor([[0.1, 0.2], [0.3, 0.4]]).expand(2, 2, 2)
    std = torch.tensor([[0.5, 1.0], [1.5, 2.0]]).expand(2, 2, 2)
    search(cost, mean, std, samples=30, elites=4, iterations=2, low=-3.0, high=3.0, floor=0.05)
    assert [tuple(plans.shape) for plans in seen] == [(2, 30, 2, 2), (2, 30, 2, 2), (2, 1, 2, 2)]
    sources = gens(0, 1)                        # the same noise, drawn again
    for plans, next_plans in zip(seen[:2], seen[1:]):
        for b in range(2):
            noise = torch.randn(30, 2, 2, generator=sources[b])
            expected = mean[b] + std[b] * noise
            expected[0] = mean[b]
            torch.testing.assert_close(plans[b], expected.clamp(-3, 3))
        order = quadratic(plans).argsort(1)
        elites = torch.stack([plans[b, order[b, :4]] for b in range(2)])
        mean = elites.mean(1)
        std = elites.std(1) + 0.05
        torch.testing.assert_close(next_plans[:, 0], mean)                # the mean competes


def test_the_floor_keeps_the_search_alive():
    """From a deviation of nothing, only the floor can still move the mean."""
    nothing = torch.zeros(2, 2, 2)
    plan, _ = search(std=nothing, floor=0.0, iterations=20)
    assert torch.equal(plan, nothing)
    plan, _ = search(std=nothing, floor=0.1, iterations=40)
    assert (plan - AIM).abs().max() < 0.2


def test_the_last_mean_competes():
    """On a bowl the mean of the best samples is better than any of them, and nearly always wins."""
    shapes, values = [], []

    def cost(plans):
        shapes.append(tuple(plans.shape[:2]))
        values.append(quadratic(plans))
        return values[-1]
    plan, best = search(cost, samples=20, iterations=3, elites=8)
    assert shapes == 3 * [(2, 20)] + [(2, 1)]
    assert torch.equal(best, torch.cat(values, 1).amin(1))
    assert (values[-1][:, 0] == best).any()
    torch.testing.assert_close(cost_of(plan), best)


def test_respects_bounds():
    """The minimum lies outside: the plan ends at the bound, and no plan beyond it is ever tried."""
    seen = []

    def cost(plans):
        seen.append(plans.abs().max().item())
        return (plans - 5.0).square().sum((-1, -2))
    plan, _ = search(cost, mean=torch.full((2, 2, 2), 9.0), low=-0.7, high=0.7)
    assert len(seen) == 6 + 1
    assert max(seen) <= 0.7 + 1e-6
    torch.testing.assert_close(plan, torch.full((2, 2, 2), 0.7))


@pytest.mark.parametrize("wrong, says", [({"elites": 1}, "elites"), ({"elites": 0}, "elites"),
                                         ({"elites": 11, "samples": 10}, "elites"),
                                         ({"seeds": (0,)}, "generators"),
                                         ({"seeds": (0, 1, 2)}, "generators")])
def test_refuses_what_cannot_be_searched(wrong, says):
    with pytest.raises(ValueError, match=says):
        search(mean=torch.zeros(2, 2, 2), **wrong)


def test_search_keeps_its_inputs():
    mean = torch.full((2, 2, 2), 0.3)
    std = torch.full((2, 2, 2), 0.8)
    search(mean=mean, std=std)
    assert (mean == 0.3).all()
    assert (std == 0.8).all()


def test_nan_counts_as_infinitely_bad():
    """Half of all plans cost NaN, and among them the ones that would be best."""
    def cost(plans):
        return torch.where(plans[..., 0, 0] > 0.2, math.nan, quadratic(plans))
    plan, value = search(cost, iterations=10)
    assert value.isfinite().all()
    assert (plan[:, 0, 0] <= 0.2).all()
    assert (plan - AIM)[:, 1].abs().max() < 0.3                           # and it still searches


def test_no_plan_of_finite_cost_gives_the_start_and_says_so():
    def cost(plans):
        return torch.full(plans.shape[:2], math.inf)
    plan, value = search(cost, mean=torch.full((2, 2, 2), 0.3))
    assert (plan == 0.3).all()
    assert value.isinf().all()


def test_no_iteration_returns_the_start_within_its_bounds():
    plan, _ = search(mean=AIM + 100, iterations=0)
    assert (plan == 2).all()


def test_a_goal_does_not_depend_on_its_neighbours():
    both, costs = search(seeds=(5, 6))
    for b, seed in enumerate((5, 6)):
        def cost(plans, b=b):
            return (plans - AIM[b]).square().sum((-1, -2))
        alone, value = search(cost, seeds=(seed,))
        assert torch.equal(alone[0], both[b])
        assert torch.equal(value[0], costs[b])
    other, _ = search(seeds=(5, 7))
    assert torch.equal(other[0], both[0])
    assert not torch.equal(other[1], both[1])


def test_a_warm_start_is_never_lost():
    """The start is the minimum, far from where a wide and short search looks."""
    plan, cost = search(mean=AIM, samples=5, elites=2, iterations=2)
    assert torch.equal(plan, AIM)
    assert (cost == 0).all()
    for seed in range(5):
        start = torch.randn(2, 2, 2, generator=gens(seed)[0])
        _, cost = search(mean=start, samples=3, elites=2, iterations=1)
        assert (cost <= cost_of(start)).all()


def test_returns_the_best_plan_ever_tried():
    tried = []

    def rough(plans):
        return (plans * 37).sin().sum((-1, -2))

    def noted(plans):
        tried.append(rough(plans))
        return tried[-1]
    plan, cost = search(noted, samples=20, elites=5)
    assert torch.equal(cost, torch.cat(tried, 1).amin(1))
    torch.testing.assert_close(cost_of(plan, rough), cost, atol=1e-5, rtol=0)


def test_the_same_generators_give_the_same_plan():
    torch.manual_seed(1)
    first, _ = search(seeds=(3, 4))
    torch.manual_seed(2)                                                  # plays no part
    second, _ = search(seeds=(3, 4))
    third, _ = search(seeds=(5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_better_of_takes_the_cheaper_plan_of_each_goal():
    one = torch.zeros(4, 2, 3)
    two = torch.ones(4, 2, 3)
    plan, cost = better_of(one, torch.tensor([1.0, 2.0, 3.0, math.inf]),
                           two, torch.tensor([2.0, 1.0, 3.0, math.inf]))
    assert plan[:, 0, 0].tolist() == [0.0, 1.0, 0.0, 0.0]                 # of equals, the first
    assert (plan == plan[:, :1, :1]).all()                                # whole plans
    assert cost.tolist() == [1.0, 1.0, 3.0, math.inf]


# Costs

def test_latent_cost_is_the_mean_squared_distance_of_what_is_predicted():
    """Each sample starts at the embedding of its own goal."""
    start = torch.randn(2, 6, generator=gens(0)[0])
    goal = torch.randn(2, 6, generator=gens(1)[0])
    plans = torch.randn(2, 3, 4, 6, generator=gens(2)[0])
    shapes = []

    def predict(z, plans):
        shapes.append((tuple(z.shape), tuple(plans.shape)))
        return 2 * z + plans.sum(1)
    cost = latent_cost(predict, start, goal)(plans)
    assert shapes == [((6, 6), (6, 4, 6))]
    assert cost.shape == (2, 3)
    for b in range(2):
        for s in range(3):
            gap = 2 * start[b] + plans[b, s].sum(0) - goal[b]
            assert cost[b, s].item() == pytest.approx((gap ** 2).sum().item() / 6, rel=1e-5)


def test_costs_look_at_the_right_embeddings():
    """The cost of a plan is the distance between what the model predicts and the goal's code."""
    model = small_model()
    clip, goal = torch.randn(2, 2, 5, 12, generator=gens(0)[0])
    plans = torch.randn(2, 3, 5, 6, generator=gens(1)[0])
    short = short_cost(model, clip, goal)
    macro = macro_cost(model, clip, goal)
    for b in range(2):
        z1, z2 = model.context(clip[b:b + 1])
        t1, t2 = model.target(goal[b:b + 1])
        for s in range(3):
            end = model.rollout(z1, plans[b, s][None])[:, -1]
            torch.testing.assert_close(short(plans)[b, s], (end - t1).square().mean())
            leap = model.jump(z2, plans[b, s][None])
            torch.testing.assert_close(macro(plans)[b, s], (leap - t2).square().mean())
    assert short(plans[:, :, :2]).shape == (2, 3)                         # plans of any length


def test_the_costs_of_both_levels_are_squared_distances_at_the_end():
    model = small_model()
    clip, goal = torch.randn(2, 2, 5, 12, generator=gens(0)[0])
    plans = torch.randn(2, 3, 5, 6, generator=gens(1)[0])
    z1, z2 = model.context(clip)
    t1, t2 = model.target(goal)
    for b in range(2):
        for s in range(3):
            end = model.rollout(z1, plans[:, s])[b, -1]
            expected = (end - t1[b]).square().mean()
            got = short_cost(model, clip, goal)(plans)[b, s]
            torch.testing.assert_close(got, expected)
            leap = model.jump(z2, plans[:, s])[b]
            expected = (leap - t2[b]).square().mean()
            got = macro_cost(model, clip, goal)(plans)[b, s]
            torch.testing.assert_close(got, expected)


# First guess

def model_that_guesses():
    torch.manual_seed(0)
    return hjepa.HJEPA(latent=8, width=8, heads=2, short_width=16, macro_width=16,
                       macro_blocks=5, guess_width=16)


@pytest.mark.parametrize("left", [1, 3, 5])
def test_a_scene_in_a_mirror_gets_the_forces_in_the_mirror(left):
    model = model_that_guesses()
    clip, goal = torch.randn(2, 4, 5, 12, generator=gens(0)[0])
    plain = first_guess(model, clip, goal, left)
    assert plain.shape == (4, left, 6)
    assert plain.std() > 1e-3
    for number in range(8):
        bits = torch.tensor([number & 1, number & 2, number & 4]).expand(4, 3) > 0
        flip, swap = bits[:, :2], bits[:, 2]
        turned = first_guess(model, reflect(clip, flip, swap), reflect(goal, flip, swap), left)
        torch.testing.assert_close(turned, reflect(plain, flip, swap), rtol=1e-4, atol=1e-7)


def test_a_first_guess_is_the_mean_of_eight_answers_turned_back():
    """Each symmetry as an orthogonal matrix: the scene is multiplied by it, the answer by its
    transpose."""
    model = model_that_guesses()
    clip, goal = torch.randn(2, 4, 5, 12, generator=gens(0)[0])
    left = 2
    total = torch.zeros(4, left, 6)
    for flip_x, flip_y, swap in itertools.product((1.0, -1.0), (1.0, -1.0), (False, True)):
        matrix = torch.diag(torch.tensor([flip_x, flip_y]))
        if swap:
            matrix = matrix.flip(1)

        def turned(x, matrix=matrix):
            return (x.unflatten(-1, (-1, 2)) @ matrix.T).flatten(-2)
        z1, z2 = model.context(turned(clip))
        t1, _ = model.target(turned(goal))
        answer = model.guess(z1, z2, t1, torch.full((4,), left))[:, :left]
        total += turned(answer, matrix.T)
    got = first_guess(model, clip, goal, left)
    torch.testing.assert_close(got, total / 8, rtol=1e-4, atol=1e-7)
    assert not got.requires_grad


def test_a_first_guess_keeps_to_the_limit():
    model = model_that_guesses()
    clip, goal = torch.randn(2, 4, 5, 12, generator=gens(0)[0])
    free = first_guess(model, clip, goal, 5, limit=100.0)
    limit = free.abs().max().item() / 2
    assert torch.equal(first_guess(model, clip, goal, 5, limit), free.clamp(-limit, limit))


@pytest.mark.parametrize("clip_frames", [1, 5, 8])
def test_a_clip_of_ones_own_flies_without_force_into_the_state(clip_frames):
    """Contacts and walls are met on the way, too: the simulator runs forward again."""
    world = World()
    state = world.reset(200, gens(0)[0], speed=1.0)
    clip = hjepa.goal_clip(world, state, clip_frames)
    assert clip.shape == (200, clip_frames, 3, 4) and torch.equal(clip[:, -1], state)
    states, contacts = world.rollout(clip[:, 0], torch.zeros(200, 1, 6), clip_frames)
    if clip_frames > 1:
        gap = (states[:, :-1] - clip[:, 1:]).abs().flatten(1).amax(1)
        assert gap.median() < 1e-5 and (gap < 1e-3).float().mean() > 0.97
        assert contacts[:, :-1].any() == (clip_frames > 1)


def test_a_goal_at_rest_stands_still():
    world = World()
    state = world.reset(3, gens(0)[0], speed=0.0)
    clip = hjepa.goal_clip(world, state)
    torch.testing.assert_close(clip, state[:, None].expand(-1, 5, -1, -1))


def test_the_cheaper_of_two_plans_is_taken_goal_by_goal():
    a = torch.tensor([1.0, 5.0])[:, None, None]
    b = torch.tensor([2.0, 3.0])[:, None, None]

    def cost(plans):
        return plans.sum((-1, -2))
    assert cheaper_of(cost, a, b).flatten().tolist() == [1.0, 3.0]


def test_a_plan_whose_cost_is_not_a_number_is_the_dearer_one():
    nan = torch.tensor([math.nan, 1.0, math.nan])[:, None, None]
    two = torch.tensor([2.0, math.nan, math.nan])[:, None, None]

    def cost(plans):
        return plans.sum((-1, -2))
    cheaper = cheaper_of(cost, nan, two).flatten()
    assert cheaper[:2].tolist() == [2.0, 1.0]
    assert cheaper[2].isnan()                                   # neither has a cost: the first


@pytest.mark.parametrize("plan", [plan_once, replan])
def test_a_perfect_guess_is_kept(plan):
    world = World()
    source = gens(0)[0]
    clip = world.reset(2, source)[:, None].expand(-1, 5, -1, -1)
    wanted = world.random_forces(2, 3, source)

    def cost_to_go(now, left):
        return lambda plans: (plans - wanted[:, None, 3 - left:]).square().sum((-1, -2))

    def guess(now, left):
        return wanted[:, 3 - left:]
    _, forces = plan(world, clip, 3, cost_to_go, gens(1, 2), guess, samples=10, elites=2,
                     iterations=2)
    assert torch.equal(forces, wanted)
    _, forces = plan(world, clip, 3, cost_to_go, gens(1, 2), samples=10, elites=2,
                     iterations=2)
    assert not torch.allclose(forces, wanted, atol=0.1)


def distance_from_one(now, left):
    def cost(plans):
        return (plans - 1).square().sum((-1, -2))
    return cost


def test_each_search_starts_from_the_rest_of_the_plan_or_from_a_guess_that_costs_less():
    """Two goals. Without iterations a search returns its start. Plans cost the less the closer they
    are to 1, so a guess of 0.5 is better than no force, and one of -1 is worse."""
    world = World()
    clip = world.reset(2, gens(0)[0])[:, None]
    guesses = {3: [0.5, -1.0], 2: [0.2, 0.9], 1: None}

    def guess(now, left):
        if guesses[left] is None:
            return None
        return torch.tensor(guesses[left])[:, None, None].expand(-1, left, 6)
    _, forces = replan(world, clip, 3, distance_from_one, gens(1, 2), guess, iterations=0)
    expected = torch.tensor([[0.5, 0.5, 0.5], [0.0, 0.9, 0.9]])
    torch.testing.assert_close(forces, expected[:, :, None].expand(-1, -1, 6))


def test_an_open_loop_starts_from_its_guess():
    world = World()
    clip = world.reset(2, gens(0)[0])[:, None]
    wanted = world.random_forces(2, 3, gens(1)[0])
    asked = []

    def guess(now, left):
        asked.append((now, left))
        return wanted
    _, forces = plan_once(world, clip, 3, distance_from_one, gens(1, 2), guess, iterations=0)
    assert torch.equal(forces, wanted)
    assert len(asked) == 1
    assert asked[0][1] == 3
    assert torch.equal(asked[0][0], clip)


def test_a_guess_is_asked_for_the_clip_just_seen():
    world = World()
    clip = world.reset(2, gens(0)[0])[:, None].expand(-1, 5, -1, -1)
    asked = []

    def guess(now, left):
        asked.append((now, left))
        return now.new_ones(2, left, 6)
    states, _ = replan(world, clip, 3, distance_from_one, gens(1, 2), guess, samples=4, elites=2,
                       iterations=1)
    assert [left for _, left in asked] == [3, 2, 1]
    assert torch.equal(asked[0][0], clip)
    for k in (1, 2):
        assert torch.equal(asked[k][0], states[:, 5 * (k - 1):5 * k])


@pytest.mark.parametrize("plan", [plan_once, replan])
def test_a_search_from_a_guess_has_a_deviation_of_its_own(plan):
    """As long as there is no guess, it is that of a search from no force."""
    world = World(force_limit=100.0)
    clip = world.reset(200, gens(0)[0])[:, None]
    deviations = {}
    near = 1 if plan is replan else 2

    def cost_to_go(now, left):
        def cost(plans):
            if plans.shape[1] == 40:            # samples, not a guess or a mean alone
                deviations[left] = (plans[:, 1:] - plans[:, :1]).std().item()
            return plans.square().sum((-1, -2))
        return cost

    def guess(now, left):
        return now.new_zeros(200, left, 6) if left <= near else None
    plan(world, clip, 2, cost_to_go, gens(*range(200)), guess, init_std=0.2, guess_std=0.05,
         samples=40, iterations=1, elites=2)
    assert deviations[near] == pytest.approx(0.05 * 100, rel=0.02)
    if plan is replan:
        assert deviations[2] == pytest.approx(0.2 * 100, rel=0.02)


# Open and closed loop

@pytest.fixture(scope="module")
def goals():
    return hjepa.make_goals(World(), 6, 5, gens(11)[0])


def oracle(world, goal):
    """-> cost_to_go: how far from their goals the true simulator says the bodies end."""
    def cost_to_go(clip, left):
        def cost(plans):
            b, s = plans.shape[:2]
            start = clip[:, None, -1].expand(-1, s, -1, -1).flatten(0, 1)
            states, _ = world.rollout(start, plans.flatten(0, 1))
            end = states[:, -1, :, :2].unflatten(0, (b, s))
            return (end - goal[:, None, -1, :, :2]).square().sum((-1, -2))
        return cost
    return cost_to_go


def test_replanning_with_the_true_simulator_arrives(goals):
    world = World()
    clip, goal = goals["clip"], goals["goal"]
    kept = clip.clone()
    asked = []                                  # the clip and the clips left of each search
    tried = []                                  # the plans and costs of each search

    def cost_to_go(now, left):
        cost = oracle(world, goal)(now, left)
        asked.append((left, now))
        tried.append([])

        def noted(plans):
            costs = cost(plans)
            tried[-1].append((plans, costs))
            return costs
        return noted
    states, forces = replan(world, clip, 5, cost_to_go, gens(*range(6)), samples=80, elites=8)
    assert states.shape == (6, 25, 3, 4)
    assert forces.shape == (6, 5, 6)
    assert torch.equal(clip, kept)
    assert forces.abs().max() <= world.force_limit
    off = hjepa.distance(states[:, -1], goal[:, -1])
    assert off.mean() < 0.05
    assert off.median() < 0.03

    # What it reports is what happened: these forces lead through these states.
    again, _ = world.rollout(clip[:, -1], forces)
    torch.testing.assert_close(again, states, atol=1e-4, rtol=0)

    # Each plan began at the clip just seen, and each search at what was left of the last plan.
    assert [left for left, _ in asked] == [5, 4, 3, 2, 1]
    assert torch.equal(asked[0][1], clip)
    for k in range(1, 5):
        assert torch.equal(asked[k][1], states[:, 5 * (k - 1):5 * k])
        plans = torch.cat([plans for plans, _ in tried[k - 1]], 1)
        costs = torch.cat([costs for _, costs in tried[k - 1]], 1)
        best = plans[torch.arange(6), costs.argmin(1)]
        assert torch.equal(forces[:, k - 1], best[:, 0])
        first_plans, _ = tried[k][0]
        assert torch.equal(first_plans[:, 0], best[:, 1:])


def test_planning_once_searches_once_and_applies_all_forces(goals):
    world = World()
    clip, goal = goals["clip"], goals["goal"]
    asked = []

    def cost_to_go(now, left):
        asked.append((left, now))
        return oracle(world, goal)(now, left)
    states, forces = plan_once(world, clip, 5, cost_to_go, gens(*range(6)), samples=40, elites=5)
    assert len(asked) == 1
    assert asked[0][0] == 5
    assert torch.equal(asked[0][1], clip)
    limit = world.force_limit
    start = torch.zeros(6, 5, 6)
    expected, _ = cem(oracle(world, goal)(clip, 5), start, start + 0.6 * limit, gens(*range(6)),
                      low=-limit, high=limit, samples=40, elites=5)
    assert torch.equal(forces, expected)
    assert torch.equal(states, world.rollout(clip[:, -1], forces)[0])


def test_with_one_clip_to_go_both_loops_are_the_same(goals):
    world = World()
    clip, goal = goals["clip"], goals["goal"]
    got = []
    for plan in (plan_once, replan):
        got.append(plan(world, clip, 1, oracle(world, goal), gens(*range(6)), init_std=0.3,
                        samples=30, iterations=3, elites=5))
    (states, forces), (states_replanned, forces_replanned) = got
    assert states.shape == (6, 5, 3, 4)
    assert torch.equal(states, states_replanned)
    assert torch.equal(forces, forces_replanned)


@pytest.mark.parametrize("plan", [plan_once, replan])
def test_loops_take_the_limits_of_their_world_and_the_length_of_a_clip(plan):
    """Two bodies, weak forces, clips of three frames; every search begins at deviation init_std,
    in force limits."""
    world = World(masses=(1.0, 2.0), force_limit=0.1)
    clip = world.reset(300, gens(0)[0])[:, None]
    first = []

    def cost_to_go(now, left):
        def cost(plans):
            first.append(plans)
            return plans.square().sum((-1, -2))
        return cost
    states, forces = plan(world, clip, 2, cost_to_go, gens(*range(300)), init_std=0.2,
                          clip_frames=3, samples=40, iterations=1, elites=2)
    assert states.shape == (300, 6, 2, 4)
    assert forces.shape == (300, 2, 4)
    for plans in first:
        assert plans.abs().max() <= 0.1
    for plans in first[::2]:                    # of each search: its samples, then its last mean
        deviation = (plans[:, 1:] - plans[:, :1]).std().item()
        assert deviation == pytest.approx(0.2 * 0.1, rel=0.02)


@pytest.mark.parametrize("plan", [plan_once, replan])
@pytest.mark.parametrize("limit", [0.1, 5.0])
def test_loops_stay_within_the_limits_of_their_world_and_use_them(plan, limit):
    """The cost asks for ever larger forces: they go as far as the world allows."""
    world = World(force_limit=limit)
    clip = world.reset(2, gens(0)[0])[:, None]
    tried = []

    def cost_to_go(now, left):
        def cost(plans):
            tried.append(plans.abs().max())
            return -plans.sum((-1, -2))
        return cost
    _, forces = plan(world, clip, 2, cost_to_go, gens(1, 2), init_std=2.0, samples=50, elites=5)
    assert max(tried) <= limit
    assert forces.mean() > 0.6 * limit
    assert forces.max() == limit


@pytest.mark.parametrize("plan", [plan_once, replan])
def test_planning_keeps_no_gradient(goals, plan):
    """Neither in a search nor where cost_to_go embeds clips."""
    model = small_model()
    world = World()
    observed_goal = world.observe(goals["goal"])
    grad_enabled = []

    def cost_to_go(now, left):
        grad_enabled.append(torch.is_grad_enabled())
        return short_cost(model, world.observe(now), observed_goal)
    states, forces = plan(world, goals["clip"], 2, cost_to_go, gens(*range(6)), samples=4,
                          iterations=1, elites=2)
    assert not any(grad_enabled)
    assert not states.requires_grad
    assert not forces.requires_grad


@pytest.mark.parametrize("plan", [plan_once, replan])
def test_a_search_from_a_guess_stays_closer_than_one_from_no_force(plan):
    """guess_std is its first deviation; where the guess says None, init_std is."""
    world = World()
    clip = world.reset(1, gens(0)[0])[:, None].expand(-1, 5, -1, -1)

    def spread(guess):
        widest = []

        def cost_to_go(now, left):
            def cost(plans):
                widest.append(plans.std().item())
                return plans[..., 0, 0] * 0
            return cost
        plan(world, clip, 1, cost_to_go, gens(1), guess, 0.6, 5, 0.05, samples=50, elites=2,
             iterations=1)
        return max(value for value in widest if not math.isnan(value))

    def no_force(now, left):
        return torch.zeros(1, left, 6)
    assert spread(no_force) < 0.2
    assert spread(lambda now, left: None) > 0.8
    assert spread(None) > 0.8
