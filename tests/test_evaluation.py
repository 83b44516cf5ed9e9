"""What measures the model: goals, distances, probes, ranks, outcomes."""
import dataclasses
import math

import numpy as np
import pytest
import torch

import hjepa
from hjepa import World, distance, effective_rank, make_goals, probe_targets, r2, ridge


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


TINY = hjepa.Config(sequences=64, batch=32, latent=8, width=8, heads=2, depth=2, short_width=8,
                    macro_width=8, contact_share=0.0, guess_width=0, guess_weight=0.0, samples=6,
                    elites=2, iterations=1)


# Goals

@pytest.fixture(scope="module")
def goals():
    return make_goals(World(), 40, 5, gen(11))


def test_hidden_forces_reach_the_goal(goals):
    world = World()
    assert {name: tuple(value.shape) for name, value in goals.items()} == {
        "clip": (40, 5, 3, 4), "goal": (40, 5, 3, 4), "forces": (40, 5, 6), "contact": (40,),
        "matters": (40,)}
    assert goals["forces"].abs().max() <= world.force_limit
    states, contacts = world.rollout(goals["clip"][:, -1], goals["forces"])
    assert torch.equal(states[:, -5:], goals["goal"])
    assert torch.equal(contacts.any(1), goals["contact"])
    assert goals["contact"].any()
    assert not goals["contact"].all()


def test_every_goal_needs_force(goals):
    """With no force the worst body ends farther than 0.2 from where it should be."""
    idle, _ = World().rollout(goals["clip"][:, -1], torch.zeros(40, 5, 6))
    off = (idle[:, -1, :, :2] - goals["goal"][:, -1, :, :2]).norm(dim=-1).amax(-1)
    assert off.min() > 0.2


def test_a_world_without_such_goals_is_refused():
    with pytest.raises(hjepa.Refusal, match="force"):
        make_goals(World(force_limit=0.01), 4, 5, gen())


def test_goals_of_other_lengths():
    goals = make_goals(World((1.0, 2.0)), 3, 4, gen(), clip_frames=7, speed=0.6)
    assert goals["goal"].shape == (3, 7, 2, 4)
    assert goals["forces"].shape == (3, 4, 4)


# Distances and outcomes

def test_distance_is_between_centres():
    a = torch.randn(4, 3, 2, 4, generator=gen())
    b = torch.randn(4, 3, 2, 4, generator=gen(1))
    got = distance(a, b)
    assert got.shape == (4, 3, 2)
    for place in np.ndindex(4, 3, 2):
        expected = math.dist(a[place][:2].tolist(), b[place][:2].tolist())
        assert got[place].item() == pytest.approx(expected, rel=1e-5)


def test_success_counts_goals_by_three_measures():
    errors = torch.tensor([[0.04, 0.02],                                  # all three
                           [0.09, 0.02],                                  # not strict
                           [0.15, 0.01],                                  # the mean body only
                           [0.30, 0.20]])                                 # none
    assert (hjepa.REACHED, hjepa.STRICT) == (0.1, 0.05)
    got = hjepa.success(errors)
    assert got == pytest.approx({"mean_body": 0.75, "success": 0.5, "strict": 0.25,
                                 "error": errors.mean().item()})


def test_bootstrap_is_the_interval_of_a_mean():
    """Of 400 outcomes, 300 of them 1: about 0.75 +- 1.96 sqrt(0.75 0.25 / 400)."""
    outcomes = [1] * 300 + [0] * 100
    low, high = hjepa.bootstrap(outcomes, draws=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert low == pytest.approx(0.75 - half, abs=0.005)
    assert high == pytest.approx(0.75 + half, abs=0.005)
    assert hjepa.bootstrap([1] * 20, draws=100) == [1.0, 1.0]


# Linear probes

def test_r2_is_one_minus_the_share_that_is_left():
    true = torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]])
    perfect = true.clone()
    assert r2(perfect, true).tolist() == [1.0, 1.0]
    mean = true.mean(0).expand(3, 2)
    assert r2(mean, true).tolist() == [0.0, 0.0]
    guess = torch.tensor([[1.0, 1.0], [2.0, 5.0], [4.0, 7.0]])
    # Column 0 errs by 1 where the values vary by 4 + 0 + 4; column 1 by 16, varying by 4 + 4 + 0.
    assert r2(guess, true).tolist() == pytest.approx([1 - 1 / 8, 1 - 16 / 8])


def linear_data(n, noise, seed=0):
    """-> x (n, 7) of very different scales and means, y (n, 3): a linear law with noise."""
    scale = torch.tensor([1e-2, 1.0, 1.0, 30.0, 1.0, 1.0, 5.0])
    x = torch.randn(n, 7, generator=gen(seed)) * scale + 3
    law = torch.randn(7, 3, generator=gen(99)) / scale[:, None]
    y = x @ law + torch.tensor([5.0, -2.0, 0.0])
    return x, y + noise * torch.randn(n, 3, generator=gen(seed + 1))


def test_ridge_without_penalty_is_least_squares():
    """Against numpy's lstsq."""
    x, y = linear_data(200, noise=0.3)
    weight, offset = ridge((x, y), linear_data(50, noise=0.3, seed=7), strengths=(1e-12,))
    assert weight.dtype == offset.dtype == torch.float64
    assert weight.shape == (7, 3)
    assert offset.shape == (3,)
    design = np.concatenate([x.double().numpy(), np.ones((200, 1))], 1)
    expected, *_ = np.linalg.lstsq(design, y.double().numpy(), rcond=None)
    guess = x.double() @ weight + offset
    np.testing.assert_allclose(guess.numpy(), design @ expected, atol=1e-6)


def test_ridge_is_its_closed_form():
    """min |a w - (y - mean y)|^2 / n + strength |w|^2 for standardised a, as one least squares
    problem with the penalty as extra rows."""
    x, y = linear_data(60, noise=0.3)
    strength = 0.3
    weight, offset = ridge((x, y), linear_data(50, noise=0.3, seed=7), strengths=(strength,))
    a = x.double().numpy()
    a = (a - a.mean(0)) / (a.std(0, ddof=1) + 1e-6)
    target = y.double().numpy()
    rows = np.concatenate([a / math.sqrt(60), math.sqrt(strength) * np.eye(7)])
    right = np.concatenate([(target - target.mean(0)) / math.sqrt(60), np.zeros((7, 3))])
    expected, *_ = np.linalg.lstsq(rows, right, rcond=None)
    guess = x.double() @ weight + offset
    np.testing.assert_allclose(guess.numpy(), a @ expected + target.mean(0), atol=1e-6)


@pytest.mark.parametrize("noise, n", [(0.001, 400), (20.0, 12)])
def test_ridge_takes_the_penalty_that_validation_prefers(noise, n):
    strengths = (1e-6, 1e-2, 1.0, 100.0)
    train = linear_data(n, noise)
    validation = linear_data(300, noise, seed=7)
    weight, offset = ridge(train, validation, strengths)
    scores = []
    for strength in strengths:
        w, b = ridge(train, validation, (strength,))
        guess = validation[0].double() @ w + b
        scores.append((r2(guess, validation[1].double()).mean().item(), strength))
    _, best = max(scores)
    assert best == (1e-6 if noise < 1 else 100.0)
    expected, _ = ridge(train, validation, (best,))
    assert torch.equal(weight, expected)


def test_ridge_returns_a_map_even_if_no_score_is_a_number():
    """A column that does not vary has no R2."""
    x, y = linear_data(50, noise=0.1)
    weight, offset = ridge((x, y), (x, torch.zeros_like(y) + math.nan), (1e-6, 1e-3))
    expected, _ = ridge((x, y), (x, y), (1e-6,))
    assert torch.equal(weight, expected)


def test_probe_targets():
    states = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [3.0, 4.0, 0.0, 2.0], [0.0, 1.0, 1.0, 1.0]]])
    got = probe_targets(states, (1.0, 2.0, 4.0))
    assert got["position"].tolist() == [[0, 0, 3, 4, 0, 1]]
    assert got["velocity"].tolist() == [[1, 0, 0, 2, 1, 1]]
    assert got["kinetic energy"].tolist() == [[0.5 * (1 * 1 + 2 * 4 + 4 * 2)]]
    assert got["pair distance"][0].tolist() == pytest.approx([5, 1, math.sqrt(18)])
    assert "pair distance" not in probe_targets(states[:, :1], (1.0,))


# Rank

@pytest.mark.parametrize("d", [1, 4, 16])
def test_rank_counts_directions_of_equal_size(d):
    """n copies of +-e_i: d equal singular values, whatever the mean."""
    z = torch.cat([torch.eye(d), -torch.eye(d)]).repeat(10, 1) + 5
    z = torch.cat([z, torch.full((len(z), 3), 2.0)], 1)                   # and three constant ones
    assert effective_rank(z) == pytest.approx(d, rel=1e-3)


def test_rank_is_the_exponential_of_an_entropy():
    """Against singular values by numpy."""
    z = torch.randn(50, 6, generator=gen()) * torch.tensor([5.0, 3.0, 1.0, 1.0, 0.3, 0.1])
    centred = z.double().numpy()
    centred = centred - centred.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    p = values / values.sum()
    assert effective_rank(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)


# The model under evaluation

@pytest.fixture(scope="module")
def tiny():
    """-> model in eval mode, world, obs, states, forces of TINY."""
    model = hjepa.build_model(TINY).eval()
    world = hjepa.build_world(TINY)
    states, forces, _ = hjepa.draw_sequences(world, TINY, 10, 0, "train", "cpu")
    return model, world, world.observe(states), states, forces


def test_latents_are_of_the_first_and_the_last_clip(tiny):
    model, _, obs, _, forces = tiny
    with torch.no_grad():
        expected = hjepa.embeddings(model, obs, forces)
    for chunk in (4096, 3):
        got = hjepa.latents(model, obs, forces, chunk)
        assert set(got) == {"z1", "z2", "t1", "t2", "p1", "p2"}
        for name, value in got.items():
            last = expected[name][-1] if name in ("t1", "p1") else expected[name]
            torch.testing.assert_close(value, last)
            assert not value.requires_grad


def test_a_planner_gets_the_cost_of_its_level_and_its_loop(tiny, monkeypatch):
    """Each planner against plan_once and replan with costs written out here."""
    model, world, _, _, _ = tiny
    goals = make_goals(world, 2, 5, gen(3))
    clip, goal = goals["clip"], goals["goal"]
    observed_goal = world.observe(goal)
    budget = {"samples": 6, "elites": 2, "iterations": 1}

    def cost_to_go_of(make_cost):
        def cost_to_go(now, left):
            return make_cost(model, world.observe(now), observed_goal)
        return cost_to_go
    for name, loop, make_cost in (("macro open loop", hjepa.plan_once, hjepa.macro_cost),
                                  ("short open loop", hjepa.plan_once, hjepa.short_cost),
                                  ("short replanned", hjepa.replan, hjepa.short_cost)):
        states, forces = hjepa.run_planner(name, model, world, TINY, clip, goal, [gen(1), gen(2)])
        expected = loop(world, clip, 5, cost_to_go_of(make_cost), [gen(1), gen(2)], **budget)
        assert torch.equal(states, expected[0])
        assert torch.equal(forces, expected[1])
    states, forces = hjepa.run_planner("zero", model, world, TINY, clip, goal, [gen(1), gen(2)])
    assert not forces.any()
    assert torch.equal(states, world.rollout(clip[:, -1], forces)[0])
    _, forces = hjepa.run_planner("random", model, world, TINY, clip, goal, [gen(1), gen(2)])
    assert torch.equal(forces[1:], world.random_forces(1, 5, gen(2)))


@pytest.mark.parametrize("planner", ["random", "short open loop"])
def test_try_goals_tries_each_goal_alone(tiny, planner):
    model, world, _, _, _ = tiny
    goals = make_goals(world, 3, 5, gen(3))
    errors, states, forces, seconds = hjepa.try_goals(planner, model, world, TINY, goals, 5,
                                                      torch.device("cpu"))
    assert errors.shape == (3, 3)
    assert states.shape == (3, 25, 3, 4)
    assert forces.shape == (3, 5, 6)
    assert seconds > 0
    torch.testing.assert_close(errors, distance(states[:, -1], goals["goal"][:, -1]))
    for i in range(3):
        alone, _ = hjepa.run_planner(planner, model, world, TINY, goals["clip"][i:i + 1],
                                     goals["goal"][i:i + 1], [hjepa.generator(5, planner, i)])
        assert torch.equal(alone[0], states[i])


def test_validate_measures_what_it_says(tiny):
    """Its row, computed again from the same worlds."""
    model, world, _, _, _ = tiny
    device = torch.device("cpu")
    goals = make_goals(world, 2, 5, gen(3))
    n = 40
    row = hjepa.validate(model, world, TINY, device, goals, n)
    assert list(row) == ["std_min", "std_avg", "rank", "order_t1", "order_t2", "decode_p1",
                         "decode_p2", "goals_replanned", "goals_macro"]
    states, forces, _ = hjepa.draw_sequences(world, TINY, 3 * n, TINY.validation_seed, "watch",
                                             device)
    z = hjepa.latents(model, world.observe(states), forces)
    std = torch.cat([z[name][2 * n:].std(0) for name in ("z1", "t1", "z2", "t2")])
    assert row["std_min"] == pytest.approx(std.min().item(), rel=1e-4)
    assert row["std_avg"] == pytest.approx(std.mean().item(), rel=1e-4)
    ranks = [effective_rank(z[name][2 * n:]) for name in ("z1", "t1", "z2", "t2")]
    assert row["rank"] == pytest.approx(min(ranks), rel=1e-3)

    position = states[:, -1, -1, :, :2].flatten(1)
    for name in ("p1", "p2"):
        weight, offset = ridge((z[name][:n], position[:n]), (z[name][n:2 * n], position[n:2 * n]))
        guess = z[name][2 * n:].double() @ weight + offset
        score = r2(guess, position[2 * n:].double()).mean().item()
        assert row["decode_" + name] == pytest.approx(score, abs=1e-3)
    for name, planner in (("replanned", "short replanned"), ("macro", "macro open loop")):
        errors, *_ = hjepa.try_goals(planner, model, world, TINY, goals, TINY.validation_seed,
                                     device)
        assert row["goals_" + name] == (errors.mean(-1) < 0.1).float().mean().item()

    for tap, name in enumerate(("order_t1", "order_t2")):
        def embed(clips, tap=tap):
            return model.target(world.observe(clips))[tap]
        order = hjepa.order_of_distances(embed, states[-64:, -1],
                                         hjepa.generator(TINY.validation_seed, "order"))
        assert row[name] == pytest.approx(order, rel=1e-4)

    without = hjepa.validate(model, world, TINY, device, None, n)
    assert list(without) == ["std_min", "std_avg", "rank", "order_t1", "order_t2"]
    for name, value in without.items():
        assert value == pytest.approx(row[name], rel=1e-4)


def test_validate_tries_the_planners_that_start_from_the_guess_if_there_is_one(monkeypatch):
    tried = []

    def try_goals(planner, *rest):
        tried.append(planner)
        return torch.zeros(2, 3), None, None, None
    monkeypatch.setattr(hjepa, "try_goals", try_goals)
    goals = {"clip": None}                      # looked at by try_goals alone
    for config, planners in ((TINY, ["short replanned", "macro open loop"]),
                             (GUESSING, ["replanned from guess", "macro from guess"])):
        model = hjepa.build_model(config)
        row = hjepa.validate(model, World(), config, torch.device("cpu"), goals, 40)
        assert tried == planners
        assert row["goals_replanned"] == row["goals_macro"] == 1
        tried.clear()


# First guess

GUESSING = dataclasses.replace(TINY, guess_width=16, guess_weight=5.0, sim_weight=5.0)


@pytest.fixture(scope="module")
def guessing():
    """-> an untrained model with a first guess, its world and three goals."""
    world = World()
    model = hjepa.build_model(GUESSING).eval()
    return model, world, make_goals(world, 3, 5, gen(3))


def test_a_planner_from_the_guess_starts_there(guessing):
    """Each against plan_once and replan with guess and cost written out here."""
    model, world, goals = guessing
    clip, goal = goals["clip"], goals["goal"]
    seen_goal = world.observe(goal)
    gens = [gen(1), gen(2), gen(3)]
    budget = {"samples": 6, "elites": 2, "iterations": 1}

    def guess(now, left):
        return hjepa.first_guess(model, world.observe(now), seen_goal, left)
    for name, loop, make_cost in (
            ("macro from guess", hjepa.plan_once, hjepa.macro_cost),
            ("short from guess", hjepa.plan_once, hjepa.short_cost),
            ("replanned from guess", hjepa.replan, hjepa.short_cost)):
        def cost_to_go(now, left):
            return make_cost(model, world.observe(now), seen_goal)
        states, forces = hjepa.run_planner(name, model, world, GUESSING, clip, goal,
                                           [gen(1), gen(2), gen(3)])
        expected = loop(world, clip, 5, cost_to_go, [gen(1), gen(2), gen(3)], guess, **budget)
        assert torch.equal(states, expected[0])
        assert torch.equal(forces, expected[1])
    states, forces = hjepa.run_planner("first guess", model, world, GUESSING, clip, goal, gens)
    torch.testing.assert_close(forces, guess(clip, 5))
    assert torch.equal(states, world.rollout(clip[:, -1], forces)[0])


def test_the_first_three_searches_know_no_guess(guessing):
    """They are those of a model without either: the weights of the first guess play no part."""
    model, world, goals = guessing
    clip, goal = goals["clip"], goals["goal"]

    def forces(config):
        plans = []
        for name in ("macro open loop", "short open loop", "short replanned"):
            plans.append(hjepa.run_planner(name, model, world, config, clip, goal,
                                           [gen(1), gen(2), gen(3)])[1])
        return torch.cat(plans)
    before = forces(GUESSING)
    other = dataclasses.replace(GUESSING, guess_std=1.0)
    assert torch.equal(forces(other), before)


def test_beyond_a_macro_event_there_is_no_guess_until_it_is_near(guessing, monkeypatch):
    model, world, goals = guessing
    asked = []
    real = hjepa.first_guess

    def first_guess(model, clip, goal, left, limit):
        asked.append(left)
        return real(model, clip, goal, left, limit)
    monkeypatch.setattr(hjepa, "first_guess", first_guess)
    states, _ = hjepa.run_planner("replanned from guess", model, world, GUESSING,
                                  goals["clip"], goals["goal"], [gen(1), gen(2), gen(3)], clips=7)
    assert asked == [5, 4, 3, 2, 1]
    assert states.shape == (3, 35, 3, 4)


def test_a_model_without_a_first_guess_has_no_planner_that_needs_one(tiny, guessing):
    without = hjepa.planners_of(tiny[0], 5, 5)
    assert [name for name in without if "guess" in name] == []
    assert set(hjepa.PLANNERS) - set(without) == set(hjepa.NEED_GUESS)
    assert hjepa.planners_of(guessing[0], 5, 5) == list(hjepa.PLANNERS)


def test_planners_that_see_one_macro_event_have_no_farther_goals(tiny, guessing):
    """Every planner that a horizon has can be asked for it."""
    model, world, _ = guessing
    far = hjepa.planners_of(model, 10, 5)
    assert "replanned from guess" in far and "first guess" not in far
    assert not set(far) & set(hjepa.ONE_EVENT)
    near = hjepa.planners_of(model, 2, 5)
    assert set(hjepa.PLANNERS) - set(near) == set(hjepa.ONE_JUMP)
    config = dataclasses.replace(GUESSING, samples=4, iterations=1, elites=2)
    for clips, names in ((2, near), (7, far)):
        seen, _, _ = hjepa.make_sequences(world, 1, clips + 1, gen(1))
        for name in names:
            states, forces = hjepa.run_planner(name, model, world, config, seen[:, 0],
                                               seen[:, -1], [gen(0)], clips)
            assert forces.shape == (1, clips, 6) and states.shape == (1, 5 * clips, 3, 4)


def test_goals_of_any_length_are_tried_to_their_end(guessing):
    model, world, _ = guessing
    goals = make_goals(world, 2, 7, gen(1))
    errors, states, forces, _ = hjepa.try_goals("random", model, world, GUESSING, goals, 0, "cpu")
    assert forces.shape == (2, 7, 6) and states.shape == (2, 35, 3, 4)
    assert torch.equal(errors, hjepa.distance(states[:, -1], goals["goal"][:, -1]))


def test_fly_and_fold_finds_what_contacts_do_not_touch(tiny):
    """It arrives where nothing meets, and it asks the true world only to carry out forces."""
    model, world, _, _, _ = tiny
    goals = make_goals(world, 12, 5, gen(3))
    config = hjepa.Config()
    gens = [gen(i) for i in range(12)]
    states, _ = hjepa.run_planner("fly and fold", model, world, config, goals["clip"],
                                  goals["goal"], gens)
    errors = distance(states[:, -1], goals["goal"][:, -1]).amax(-1)
    assert errors[~goals["contact"]].max() < 0.1
    assert world.contacts and world.dt == 0.04                            # it is left as it was


def test_a_world_without_contacts_is_the_same_in_all_else():
    world = World((0.5, 3.0), radius=0.06, dt=0.03, substeps=7, force_limit=1.5)
    ghosts = hjepa.without_contacts(world)
    assert world.contacts
    assert not ghosts.contacts
    assert ghosts.radii == pytest.approx(world.radii)
    for name in ("masses", "dt", "force_limit"):
        assert getattr(ghosts, name) == getattr(world, name)


def test_without_contacts_a_frame_may_be_as_long_as_a_clip():
    """Walls are met on the way, more than once: flight is exact in one step."""
    world = World()
    start = world.reset(64, gen(0), speed=1.0)
    forces = world.random_forces(64, 5, gen(1))
    path, _ = hjepa.without_contacts(world).rollout(start, forces, 5)
    leaps, _ = hjepa.without_contacts(world, 5).rollout(start, forces, 1)
    torch.testing.assert_close(leaps, path[:, 4::5], atol=1e-5, rtol=1e-5)


def test_the_first_guess_alone_refuses_what_it_does_not_see(guessing):
    model, world, goals = guessing
    with pytest.raises(ValueError, match="sees 5 clips ahead, not 6"):
        hjepa.run_planner("first guess", model, world, GUESSING, goals["clip"], goals["goal"],
                          [gen(i) for i in range(3)], clips=6)


def test_a_simulated_cost_is_how_far_from_their_goals_bodies_end():
    world = World()
    goals = make_goals(world, 2, 3, gen(7))
    plans = world.random_forces(8, 3, gen(8)).unflatten(0, (2, 4))
    plans[:, 0] = goals["forces"]
    cost = hjepa.simulated_cost(world, goals["clip"], goals["goal"], 5)(plans)
    assert cost.shape == (2, 4)
    for b in range(2):
        for s in range(4):
            states, _ = world.rollout(goals["clip"][b:b + 1, -1], plans[b:b + 1, s])
            gap = states[0, -1, :, :2] - goals["goal"][b, -1, :, :2]
            expected = gap.square().mean().item()
            assert cost[b, s].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert cost[:, 0].max() < 1e-8                                        # the hidden forces arrive


def test_contact_matters_if_flying_through_ends_elsewhere():
    world = World()
    goals = make_goals(world, 400, 5, gen(7))
    ghosts = World(contacts=False)
    through, contacts = ghosts.rollout(goals["clip"][:, -1], goals["forces"])
    assert not contacts.any()
    apart = distance(through[:, -1], goals["goal"][:, -1]).amax(-1)
    assert torch.equal(goals["matters"], apart > 0.2)
    assert 0 < goals["matters"].sum() < goals["contact"].sum()
    assert not goals["matters"][~goals["contact"]].any()


def test_order_of_distances_knows_a_space_that_shows_places_from_one_that_does_not():
    world = World()
    states, _, _ = hjepa.make_sequences(world, 20, 2, gen(1))
    clips = states[:, -1]

    def places(clips):
        return clips[:, -1, :, :2].flatten(1)

    def only_the_first_body(clips):
        return clips[:, -1, 0, :2]

    def velocities(clips):
        return clips[:, -1, :, 2:].flatten(1)
    scores = [hjepa.order_of_distances(embed, clips, gen(2))
              for embed in (places, only_the_first_body, velocities)]
    assert scores[0] > 0.9
    assert scores[0] > scores[1] + 0.05
    assert scores[1] > scores[2]
    assert scores == [hjepa.order_of_distances(embed, clips, gen(2))
                      for embed in (places, only_the_first_body, velocities)]


def test_order_of_distances_is_a_rank_correlation():
    """Spearman's, clip by clip, of distances that are measured here once more."""
    clips, _, _ = hjepa.make_sequences(World(), 5, 1, gen(1))
    clips = clips[:, 0]
    mix = torch.randn(12, 4, generator=gen(2))
    seen = []

    def embed(clips):
        seen.append(clips)
        return clips[:, -1].flatten(1) @ mix
    got = hjepa.order_of_distances(embed, clips, gen(3), moves=20, step=0.2)
    start, *moved = seen
    assert torch.equal(start, clips)
    assert len(moved) == 20
    scores = []
    for i in range(5):
        near = []
        apart = []
        for neighbour in moved:
            move = neighbour[i] - clips[i]
            assert move.std(0).max() < 1e-6                               # the same in each frame
            apart.append(distance(neighbour[i, -1], clips[i, -1]).max().item())
            near.append((move[-1].flatten() @ mix).norm().item())
        ranks = [np.argsort(np.argsort(values)) for values in (near, apart)]
        scores.append(np.corrcoef(*ranks)[0, 1])
    assert got == pytest.approx(np.mean(scores), abs=1e-5)


# Training sequences

@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_contacts_is_the_one_that_is_asked_for(share):
    """Exactly. And the shares of samples undo it: they say how often each kind comes up by itself,
    over how often it comes up here."""
    config = dataclasses.replace(TINY, sequences=600, contact_share=share)
    world = World()
    states, forces, shares = hjepa.draw_training(world, config, "cpu")
    assert states.shape == (600, 6, 5, 3, 4)
    again, contacts = world.rollout(states[:, 0, -1], forces)
    torch.testing.assert_close(again.unflatten(1, (5, 5)), states[:, 1:])
    meet = contacts.any(1)
    wanted = round(share * 600)
    assert meet.sum() == wanted
    _, _, contacts = hjepa.draw_sequences(world, config, 600, config.seed, "train", "cpu")
    ordinary = contacts[:, 1:].flatten(1).any(1).sum().item()
    for pick, count, often in ((meet, wanted, ordinary), (~meet, 600 - wanted, 600 - ordinary)):
        torch.testing.assert_close(shares[pick], torch.full((count,), often / count))
    assert shares.mean() == pytest.approx(1)
    assert len(states.flatten(1).unique(dim=0)) == 600


def test_without_a_share_sequences_are_taken_as_they_come():
    world = World()
    states, forces, shares = hjepa.draw_training(world, TINY, "cpu")
    expected = hjepa.draw_sequences(world, TINY, TINY.sequences, TINY.seed, "train", "cpu")
    assert torch.equal(states, expected[0])
    assert torch.equal(forces, expected[1])
    assert (shares == 1).all()


def test_a_share_that_never_comes_up_is_refused():
    config = dataclasses.replace(TINY, masses=(1.0,), contact_share=0.5)
    with pytest.raises(hjepa.Refusal, match="contact_share"):
        hjepa.draw_training(hjepa.build_world(config), config, "cpu")
