"""figures/rooms.py: its environment against cases made by hand, its loss, the study as a process."""
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import here
from lib import rooms_model, rooms_plan, rooms_world
from studies import quick                                                 # noqa: F401
import hjepa
import rooms

SMOKE = ("--preset", "smoke", "--tasks", 2, "--precision", "fp32", "--device", "cpu")
TINY = rooms_model.Settings(**rooms.PRESETS["smoke"])
WALL, DOOR = 32.0, 18.0                         # faces at 31 and 33; the door is from 14 to 22


def moved(position, action):
    """-> where the dot ends, x and y; did it meet something?"""
    end, met = rooms_world.move(torch.tensor([position]), torch.tensor([action]),
                                torch.tensor([WALL]), torch.tensor([DOOR]))
    return end[0].tolist(), met.item()


# ---- the environment

@pytest.mark.parametrize("position, action, end, met", [
    ((10.0, 30.0), (2.0, -1.0), (12.0, 29.0), False),                     # nothing in the way
    ((30.0, 30.0), (2.0, 0.0), (30.99, 30.0), True),                      # head on
    ((30.0, 18.0), (2.0, 0.0), (32.0, 18.0), False),                      # into the door
    ((32.0, 18.0), (0.0, 2.0), (32.0, 20.0), False),                      # within the door
    ((32.0, 21.0), (0.0, 2.0), (32.0, 21.99), True),                      # the door's edge
    ((30.0, 22.5), (2.0, -0.4), (30.99, 22.302), True),                   # too high by a little
    ((30.0, 22.15), (2.0, -0.4), (32.0, 21.75), False),                   # just below the corner
    ((30.0, 30.0), (0.0, 2.0), (30.0, 32.0), False),                      # along the wall
    ((31.0 - 1e-3, 30.0), (0.0, -2.0), (31.0 - 1e-3, 28.0), False),       # grazes its face
    ((5.0, 30.0), (-2.0, 0.0), (4.01, 30.0), True),                       # the border
    ((5.0, 5.0), (-2.0, -1.0), (4.009, 4.504), True)])                    # near a corner of it
def test_a_step_ends_where_it_should(position, action, end, met):
    found, hit = moved(position, action)
    assert found == pytest.approx(end, abs=5e-3) and hit == met


def test_a_long_action_is_cut_before_it_is_made():
    end, met = moved((10.0, 30.0), (30.0, 40.0))
    assert not met and np.hypot(end[0] - 10, end[1] - 30) == pytest.approx(rooms_world.LONGEST)


def test_no_step_leads_through_the_wall():
    """Steps longer than the wall is thick, from everywhere near it, in every direction."""
    gen = hjepa.generator(0, "steps")
    n = 20_000
    wall = torch.full((n,), WALL)
    door = torch.full((n,), DOOR)
    position = torch.stack([28 + 8 * torch.rand(n, generator=gen),
                            10 + 16 * torch.rand(n, generator=gen)], 1)
    position = position[rooms_world.is_free(position, wall, door)]
    n = len(position)
    angle = 6.2832 * torch.rand(n, generator=gen)
    action = rooms_world.LONGEST * torch.stack([angle.cos(), angle.sin()], 1)
    end, met = rooms_world.move(position, action, wall[:n], door[:n])
    assert 0.05 < met.float().mean() < 0.95 and rooms_world.is_free(end, wall[:n], door[:n]).all()
    path = torch.stack([position, end], 1)
    assert rooms_world.route_valid(path, wall[:n], door[:n]).all()
    whole = torch.stack([position, position + action], 1)                 # as if there were no wall
    crosses = ~rooms_world.route_valid(whole, wall[:n], door[:n])
    assert torch.equal(crosses & ~met, torch.zeros_like(met))


def test_a_route_is_judged_by_itself():
    wall, door = torch.tensor([WALL]), torch.tensor([DOOR])

    def valid(*points):
        return rooms_world.route_valid(torch.tensor([points]), wall, door).item()
    assert valid((28.0, 18.0), (36.0, 18.0)) and valid((28.0, 30.0), (30.0, 40.0))
    assert not valid((28.0, 30.0), (36.0, 30.0)) and not valid((30.0, 22.4), (34.0, 22.4))
    assert not valid((30.0, 21.0), (34.0, 24.0))                          # through a corner
    assert not valid((10.0, 10.0), (3.0, 10.0))                           # beyond the border
    assert not valid((32.0, 40.0), (32.0, 41.0))                          # inside of the wall


def test_pictures_show_the_dot_the_wall_and_the_door():
    state = rooms_world.make_states(torch.tensor([[20.0, 41.0]]), torch.tensor([WALL]),
                                    torch.tensor([DOOR]))
    dot, walls = rooms_world.render(state)[0]
    assert dot.argmax().item() == 41 * 65 + 20 and dot.max() == 1
    assert dot[41, 22].item() == pytest.approx(np.exp(-4 / (2 * 1.3 ** 2)), rel=1e-5)
    assert walls[30, 31:34].tolist() == [1, 1, 1] and walls[30, 30] == walls[30, 34] == 0
    assert walls[14:23, 32].sum() == 0 and walls[13, 32] == walls[23, 32] == 1
    assert walls[4, 4:61].all() and walls[60, 4:61].all() and walls[:4].sum() == 0


def test_a_mirrored_room_has_a_mirrored_picture():
    gen = hjepa.generator(0, "mirror")
    wall, door = rooms_world.draw_layouts(5, gen)
    position = rooms_world.draw_free(wall, door, gen)
    across = rooms_world.make_states(position, wall, door)
    flipped = rooms_world.make_states(torch.stack([64 - position[:, 0], position[:, 1]], 1),
                                      64 - wall, door)
    assert torch.allclose(rooms_world.render(flipped), rooms_world.render(across).flip(-1),
                          atol=1e-5)
    upside = rooms_world.make_states(torch.stack([position[:, 0], 64 - position[:, 1]], 1), wall,
                                     64 - door)
    assert torch.allclose(rooms_world.render(upside), rooms_world.render(across).flip(-2),
                          atol=1e-5)


@pytest.mark.parametrize("new", [False, True])
def test_the_oracle_reaches_every_goal_by_a_valid_route(new):
    start, goal = rooms_world.make_tasks(200, hjepa.generator(0, "oracle"), new)
    wall, door = start[:, 0, 2], start[:, 0, 3]
    assert ((start[:, 0, 0] < wall) != (goal[:, 0, 0] < wall)).all()
    assert torch.isin(wall, rooms_world.NEW_WALLS.float()).all() == new
    states = rooms_world.oracle(start, goal, rooms_plan.STEPS)
    assert (rooms_world.distance(states[:, -1], goal) < 0.1).all()
    path = torch.cat([start[:, None], states], 1)[:, :, 0, :2]
    assert rooms_world.route_valid(path, wall, door).all()
    steps = (path[:, 1:] - path[:, :-1]).norm(dim=-1)
    assert steps.max() < rooms_world.LONGEST + 1e-3


@pytest.fixture(scope="module")
def data():
    """-> states, actions of 400 trajectories."""
    gen = hjepa.generator(0, "data")
    wall, door = rooms_world.draw_layouts(400, gen)
    return rooms_world.draw_trajectories(wall, door, gen)


def test_every_trajectory_of_the_data_is_valid_and_many_pass_the_door(data):
    states, actions = data
    clips = rooms_world.CLIPS
    wall, door = states[:, 0, 0, 2:].unbind(-1)
    path = states[:, :, 0, :2]
    assert path.shape == (400, clips + 1, 2) and actions.shape == (400, clips, 2)
    assert rooms_world.route_valid(path, wall, door).all()
    assert not torch.isin(wall, rooms_world.NEW_WALLS.float()).any()
    sides = path[:, :, 0] < wall[:, None]
    passes = sides.any(1) & ~sides.all(1)
    assert 0.3 < passes.float().mean() < 0.8
    free = path[:, 1:] - path[:, :-1] - rooms_world.CLIP * actions
    assert 0.6 < (free.norm(dim=-1) < 1e-3).float().mean() < 0.95         # most clips meet nothing


def test_data_are_what_the_environment_does_with_their_actions(data):
    states, actions = data
    again, _ = rooms_world.Rooms().rollout(states[:, 0], actions, rooms_world.CLIP)
    assert torch.allclose(again[:, rooms_world.CLIP - 1::rooms_world.CLIP], states[:, 1:])


def test_some_dots_press_against_walls(data):
    """A dot that does not move for two clips, although it is pushed: plans may do that."""
    states, actions = data
    still = (states[:, 1:] - states[:, :-1])[:, :, 0, :2].norm(dim=-1) < 0.1
    pressed = (still[:, 1:] & still[:, :-1]).any(1)
    assert 0.3 < pressed.float().mean() < 0.9


def test_headings_are_kept_as_the_von_mises_distribution_says():
    angle = rooms_world.von_mises(40_000, hjepa.generator(0, "angle"))
    ratio = np.i0(rooms_world.KAPPA)
    grid = np.linspace(-np.pi, np.pi, 20_001)
    mean = np.trapezoid(np.cos(grid) * np.exp(rooms_world.KAPPA * np.cos(grid)), grid) / (
        2 * np.pi * ratio)
    assert angle.cos().mean().item() == pytest.approx(mean, abs=0.005)
    assert angle.mean().item() == pytest.approx(0, abs=0.01)


# ---- the model and its loss

@pytest.fixture(scope="module")
def batch():
    """-> model, states (B, K + 1, 1, 4), actions (B, K, T, 2), and their embeddings."""
    model = rooms_model.build(TINY)
    states, actions = rooms_model.draw_epoch(TINY, 0)
    return model, states[0], actions[0]


def test_terms_are_their_literal_formulas(batch):
    model, states, actions = batch
    total, terms = rooms_model.objective(model, states, actions, TINY, hjepa.generator(0, "x"))
    with torch.no_grad():
        dot, walls = rooms_world.render(states).unbind(-3)
        z = torch.cat([torch.stack([net(picture[:, k, None]) for k in range(states.shape[1])], 1)
                       for net, picture in ((model.see_dot, dot), (model.see_walls, walls))], -1)
        squares = []
        for first in range(actions.shape[1] - TINY.clips + 1):
            now = z[:, first]
            for k in range(first, first + TINY.clips):
                now = torch.cat([model.predictor(now, actions[:, k])[:, :TINY.dot],
                                 now[:, TINY.dot:]], -1)
                squares.append((now - z[:, k + 1])[:, :TINY.dot].square().mean())
        assert terms["pred"].item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-3)
        dots = z[..., :TINY.dot]
        step = (dots[:, 1:] - dots[:, :-1]).square().mean()
        assert terms["sim"].item() == pytest.approx(step.item(), rel=1e-3)
        guessed = model.inverse(torch.cat([z[:, :-1], z[:, 1:]], -1))
        error = F.mse_loss(guessed, actions / 1.7)
        assert terms["idm"].item() == pytest.approx(error.item(), rel=1e-3)
        for name, value in hjepa.vicreg_terms(dots.flatten(0, 1)).items():
            assert terms[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-9)
        wall, door = rooms_world.draw_layouts(TINY.layouts, hjepa.generator(0, "x"))
        rooms_seen = rooms_world.make_states(torch.full((TINY.layouts, 2), 30.0), wall, door)
        z = model.embed(rooms_seen[:, None])[:, 0, TINY.dot:]
        for name, value in hjepa.vicreg_terms(z).items():
            assert terms[f"wall_{name}"].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-9)
    weighted = sum(getattr(TINY, name) * value for name, value in terms.items())
    assert total.item() == pytest.approx(weighted.item())


def test_each_part_of_an_embedding_has_its_channel(batch):
    """The dot moves the first numbers, the walls the others; prediction carries walls over."""
    model, states, actions = batch
    with torch.no_grad():
        z = model.embed(states)
        other = states.clone()
        other[..., 2:] = 33.0
        assert torch.equal(model.embed(other)[..., :TINY.dot], z[..., :TINY.dot])
        assert not torch.allclose(model.embed(other)[..., TINY.dot:], z[..., TINY.dot:])
        assert torch.equal(z[:, 3, TINY.dot:], z[:, 0, TINY.dot:])
        path = model.rollout(z[:, 0], actions)
    assert torch.equal(path[:, -1, TINY.dot:], z[:, 0, TINY.dot:])
    assert not torch.allclose(path[:, -1, :TINY.dot], z[:, 0, :TINY.dot])


def test_the_first_guess_learns_from_pairs_in_order(batch):
    """The goal is later than now: with embeddings that say when, a guess can see which it is."""
    _, states, actions = batch
    z = torch.arange(states.shape[1]).float().expand(len(states), -1)[..., None]
    seen = []

    class Model:
        def guess(self, both):
            seen.append(both)
            return both.new_zeros(*both.shape[:-1], 2)
    held = torch.ones_like(actions)
    error = rooms_model.guess_error(Model(), z, held, 50, hjepa.generator(0, "pairs"))
    now, goal = seen[0].unbind(-1)
    assert (now < goal).all() and goal.max() == states.shape[1] - 1 and now.min() == 0
    assert error.item() == 1


def test_a_resumed_training_is_the_one_never_stopped(tmp_path, monkeypatch):
    device = torch.device("cpu")
    _, rows = rooms_model.train(tmp_path / "whole.pt", TINY, device, "fp32")
    real = rooms_model.train_epoch

    def train_epoch(model, optimizer, settings, epoch, *rest):
        if epoch == 1:
            raise KeyboardInterrupt
        return real(model, optimizer, settings, epoch, *rest)
    with monkeypatch.context() as patch:
        patch.setattr(rooms_model, "train_epoch", train_epoch)
        with pytest.raises(KeyboardInterrupt):
            rooms_model.train(tmp_path / "half.pt", TINY, device, "fp32")
    model, _ = rooms_model.train(tmp_path / "half.pt", TINY, device, "fp32")
    whole = rooms_model.read(tmp_path / "whole.pt")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, whole["model"][name])
    assert len(rows) == 2 and whole["optimizer"] is None
    with pytest.raises(hjepa.Refusal, match="other settings"):
        rooms_model.train(tmp_path / "half.pt", dataclasses.replace(TINY, seed=1), device, "fp32")


# ---- planning

class Exact:
    """A model whose embedding is the state: its predictor is the simulator, its guess goes straight
    to the goal."""

    clip = rooms_world.CLIP
    dot = 2

    def embed(self, states):
        return states[..., 0, :]

    def predict(self, z, action):
        states, _ = rooms_world.Rooms().rollout(z[:, None], action[:, None], self.clip)
        return states[:, -1, 0]

    def guess(self, both):
        return (both[:, 4:6] - both[:, :2]) / (self.clip * 1.7)


def in_one_room(n):
    gen = hjepa.generator(0, "one room")
    start = 8 + 20 * torch.rand(n, 2, generator=gen)
    goal = 8 + 20 * torch.rand(n, 2, generator=gen)
    wall, door = torch.full((n,), 44.0), torch.full((n,), 50.0)
    return rooms_world.make_states(start, wall, door), rooms_world.make_states(goal, wall, door)


@pytest.mark.parametrize("places", [None, 0])
def test_an_exact_model_plans_to_a_goal_in_the_same_room(places):
    start, goal = in_one_room(3)
    gens = [hjepa.generator(0, "search", i) for i in range(3)]
    if places is not None:
        places = torch.zeros(0, 4)
    states = rooms_plan.search(Exact(), start, goal, gens, 80, places, **rooms.BUDGET)
    assert states.shape == (3, 80, 1, 4)
    assert (rooms_world.distance(states[:, -1], goal) < 4.5).all()


def test_sub_goals_lead_through_the_door():
    """A start and a goal on both sides of the wall, near it and far from the door."""
    start = rooms_world.make_states(torch.tensor([[28.0, 45.0]]), torch.tensor([WALL]),
                                    torch.tensor([DOOR]))
    goal = start + torch.tensor([8.0, 0, 0, 0])
    places = rooms_plan.draw_places(Exact(), 400, hjepa.generator(0, "places"), "cpu")
    ends = []
    for count in (0, 400):
        states = rooms_plan.search(Exact(), start, goal, [hjepa.generator(0, "search")], 200,
                                   places[:count], **rooms.BUDGET)
        path = torch.cat([start[:, None], states], 1)[:, :, 0, :2]
        assert rooms_world.route_valid(path, start[:, 0, 2], start[:, 0, 3]).all()
        ends.append(rooms_world.distance(states[:, -1], goal).item())
    assert ends[0] > 4.5 and ends[1] < 1


def test_the_cheapest_way_is_chosen():
    """Each way is walked by itself, a start in one room and a goal in the other."""
    model = Exact()
    start = rooms_world.make_states(torch.tensor([[20.0, 30.0]]), torch.tensor([WALL]),
                                    torch.tensor([DOOR]))
    goal = start + torch.tensor([25.0, 0, 0, 0])
    places = rooms_plan.draw_places(model, 40, hjepa.generator(0, "places"), "cpu")
    z, there = start[:, 0], goal[:, 0]
    spread = (places - places.mean(0))[:, :2].norm(dim=-1).mean()
    ways, costs = [], []
    for dot in [*places[:, :2], there[0, :2]]:
        now, onward, actions, cost = z, False, [], 0
        for _ in range(30):
            onward = onward or (now[0, :2] - dot).norm() < rooms_plan.NEAR * spread
            target = there if onward else torch.cat([dot[None], z[:, 2:]], -1)
            actions.append(rooms_plan.guessed_action(model, now, target))
            now = model.predict(now, actions[-1])
            cost += (now - there).norm().item()
        ways.append(torch.stack(actions, 1))
        costs.append(cost)
    plan = rooms_plan.plan_ways(model, z, there, places, 30)
    assert torch.allclose(plan, ways[int(np.argmin(costs))], atol=1e-4)
    assert min(costs) < 0.8 * costs[-1]         # the way straight to the goal is not the cheapest


def test_the_guess_alone_follows_the_straight_line():
    start, goal = in_one_room(3)
    states = rooms_plan.follow_guess(Exact(), start, goal, steps=80)
    assert (rooms_world.distance(states[:, -1], goal) < 0.5).all()


def test_the_cost_sums_distances_along_the_path():
    start, goal = in_one_room(2)
    z, there = start[:, 0], goal[:, 0]
    plans = torch.randn(2, 3, 4, 2, generator=hjepa.generator(0, "plans")) / 8
    summed = rooms_plan.path_cost(Exact(), z, there)(plans)
    last = rooms_plan.path_cost(Exact(), z, there, last=True)(plans)
    path = z[:, None, None, :2] + (4 * plans).cumsum(2)
    gaps = (path - there[:, None, None, :2]).norm(dim=-1)
    assert torch.allclose(summed, gaps.sum(-1), rtol=1e-4)
    assert torch.allclose(last, gaps[..., -1], rtol=1e-4)


# ---- the study

@pytest.fixture(scope="module")
def short_episodes():
    """Episodes of 60 steps: enough for the oracle on the way to the first two goals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rooms_plan, "STEPS", 60)
        yield


@pytest.fixture(scope="module")
def study(short_episodes, tmp_path_factory):
    """The study as a user runs it -> the run's directory."""
    run = tmp_path_factory.mktemp("rooms") / "run"
    done = here("figures/rooms.py", *SMOKE, "--seeds", 0, 1, "--ablations", "--run", run)
    assert done.returncode == 0, done.stderr
    return run


def test_the_table(study):
    content = json.loads((study / "figures" / "rooms.json").read_text())
    assert (study / "figures" / "rooms.png").read_bytes()[:4] == b"\x89PNG"
    assert (study / "figures" / "rooms.gif").read_bytes().startswith(b"GIF89a")
    rows = {(row["planner"], row["layouts"]): row for row in content["rows"]}
    assert len(rows) == 3 + 1 + len(rooms.SEARCHES) + 4 + len(rooms.ABLATIONS)
    assert rows["oracle", "known"]["valid"] == rows["oracle", "new"]["valid"] == 1
    assert rows["zero", "known"]["ever"] == 0 and content["seeds"] == [0, 1]
    for row in content["rows"]:
        assert row["valid"] <= row["last"] <= row["ever"]
        low, high = row["last_ci"]
        assert 0 <= low <= row["last"] <= high <= 1
    # 15 searches look at the clips that are left: 15, 14, ... 1.
    plans = rooms.BUDGET["samples"] * rooms.BUDGET["iterations"] + 1
    assert rows["from no force", "known"]["predictor_calls"] == sum(range(16)) * plans
    with np.load(study / "figures" / "rooms.npz") as arrays:
        assert arrays["last/model/known"].shape == (2, 2) and arrays["goal/new"].shape == (2, 4)


def test_a_finished_study_trains_nothing_again(study):
    before = (study / "model-0.pt").read_bytes()
    done = here("figures/rooms.py", *SMOKE, "--run", study, "--out", study / "again")
    assert done.returncode == 0 and "epoch 1:" not in done.stdout
    assert (study / "model-0.pt").read_bytes() == before


def test_kept_rows_are_not_tried_again(study, tmp_path, monkeypatch):
    def search(*args, **options):
        raise KeyboardInterrupt
    flags = (*SMOKE, "--run", study, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(rooms_plan, "search", search)
        assert here("figures/rooms.py", *flags).returncode == 130
    done = here("figures/rooms.py", *flags)
    assert done.returncode == 0 and "first guess, known" not in done.stdout
    assert not (tmp_path / "rooms.part.json").exists()


@pytest.mark.parametrize("flags, word", [
    (["--tasks", "1"], "--tasks"), (["--tasks", "0"], "--tasks"),
    (["--seeds", "1", "1"], "--seeds"), (["--preset", "huge"], "--preset"),
    (["--device", "gpu"], "--device")])
def test_mistakes_get_one_line(tmp_path, flags, word):
    done = here("figures/rooms.py", "--preset", "smoke", *flags, "--run", tmp_path / "run")
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.pt"))


def test_a_damaged_model_is_refused_and_kept(tmp_path):
    path = tmp_path / "model-0.pt"
    path.write_bytes(b"no model")
    done = here("figures/rooms.py", *SMOKE, "--run", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(path) in done.stderr
    assert path.read_bytes() == b"no model"
