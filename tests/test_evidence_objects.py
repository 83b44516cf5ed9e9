"""figures/objects.py: what it promises, on a tiny model."""
import dataclasses
import json
import shutil

import pytest
import torch

from conftest import here, tiny
from lib import objects_goals, objects_judge, objects_model, objects_runs
from lib import objects_world as worlds
from studies import CPU, check_intervals, quick                           # noqa: F401
import hjepa
import objects

CONFIG = hjepa.Config(latent=32, width=16, short_width=32, macro_width=32, predictor_blocks=2,
                      macro_blocks=5, guess_width=32, batch=8, sequences=96, warmup=0)
MASSES = torch.tensor(CONFIG.masses)


@pytest.fixture(scope="module")
def model():
    return objects_model.build(CONFIG)


@pytest.fixture(scope="module")
def data():
    """-> states (6, K, T, 3, 4), forces (6, K, A) of every clip, obs."""
    states, forces, _ = worlds.film(CONFIG, CONFIG.masses, 6, hjepa.generator(0, "objects test"))
    return states, forces, worlds.observe(states, MASSES, forces)


def swapped(x, order):
    """Numbers of bodies side by side (N, 3 size) -> the same, bodies in another order."""
    return x.unflatten(-1, (3, -1))[..., order, :].flatten(-2)


# ---- the model

def test_permuting_the_bodies_permutes_embeddings_and_predictions(model, data):
    _, forces, obs = data
    order = [2, 0, 1]
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        t1, t2 = model.target(obs[:, -1])
        other1, other2 = model.context(swapped(obs[:, 0], order))
        later1, _ = model.target(swapped(obs[:, -1], order))
        push = forces[:, 1:]
        left = torch.full((6,), 5)
        also = swapped(push, order)
        pairs = [(z1, other1), (z2, other2), (t1, later1),
                 (model.rollout(z1, push)[:, -1], model.rollout(other1, also)[:, -1]),
                 (model.jump(z2, push), model.jump(other2, also)),
                 (model.bridge(t2), model.bridge(swapped(t2, order))),
                 (model.guess(z1, z2, t1, left), model.guess(other1, other2, later1, left))]
    for mine, other in pairs:
        assert mine.std() > 0
        assert torch.allclose(swapped(mine, order), other, atol=1e-5)
        assert not torch.allclose(mine, other, atol=1e-3)


def test_any_number_of_bodies(model):
    for masses in ((1.0,), (1.0, 4.0), (1.0, 1.0, 2.0, 2.0, 4.0)):
        states, forces, _ = worlds.film(CONFIG, masses, 2, hjepa.generator(0, "bodies"))
        obs = worlds.observe(states, torch.tensor(masses))
        with torch.no_grad():
            z1, z2 = model.context(obs[:, 0])
            assert z1.shape == (2, 8 * len(masses))
            assert model.jump(z2, forces[:, 1:]).shape == z2.shape
            assert model.rollout(z1, forces[:, 1:]).shape == (2, 5, 8 * len(masses))


def test_each_body_is_moved_by_its_own_force_and_hears_of_the_others():
    """Without messages a force reaches the embedding of its own body alone."""
    model = objects_model.build(CONFIG)
    z = torch.randn(4, 3 * 8, generator=hjepa.generator(0, "z"))
    forces = torch.zeros(4, 6)
    pushed = forces.clone()
    pushed[:, 2:4] = 1
    with torch.no_grad():
        gap = (model.short(z, pushed) - model.short(z, forces)).unflatten(-1, (3, 8)).abs().sum(-1)
        assert (gap > 0).all()
        for messages in model.short.messages:
            messages.out.weight.zero_()
        gap = (model.short(z, pushed) - model.short(z, forces)).unflatten(-1, (3, 8)).abs().sum(-1)
    assert (gap[:, 1] > 0).all() and (gap[:, [0, 2]] == 0).all()


def test_a_macro_block_is_modulated_by_the_force_of_its_turn(model):
    """P2 splits (N, clips A) into clips first, bodies second, as hjepa.HJEPA.jump joins them."""
    z = torch.zeros(1, 24)
    forces = torch.arange(30.0).reshape(1, 5, 6)
    seen = []
    hook = model.macro.force.register_forward_hook(lambda *call: seen.append(call[1][0]))
    with torch.no_grad():
        model.jump(z, forces)
    hook.remove()
    for body in range(3):
        for clip in range(5):
            own = forces[0, clip, 2 * body:2 * body + 2]
            assert torch.equal(seen[0][0, body, clip], own)


def test_messages_are_those_of_the_formula():
    part = objects_model.Messages(8, 2)
    x = torch.randn(1, 3, 8, generator=hjepa.generator(0, "x"))
    with torch.no_grad():
        q, k = part.ask(part.norm(x))[0].chunk(2, -1)
        a, b = part.meet(x)[0].chunk(2, -1)
        gelu = torch.nn.functional.gelu
        for i in range(3):
            total = torch.zeros(8)
            for j in {0, 1, 2} - {i}:
                told = gelu(part.tell(gelu(a[i] + b[j])))
                for head in (slice(0, 4), slice(4, 8)):
                    gate = torch.sigmoid((q[i, head] * k[j, head]).sum() / 4 ** 0.5)
                    total[head] += gate * told[head]
            assert torch.allclose(part(x)[0, i], part.out(total), atol=1e-5)


def test_vicreg_of_each_body_is_the_literal_formula():
    """Bodies and samples are pooled: 3 N samples of D numbers."""
    z = torch.randn(5, 3 * 4, generator=hjepa.generator(0, "z")) * 0.3
    terms = objects_model.terms_per_body(4)(z)
    pooled = torch.stack([z[n, 4 * body:4 * body + 4] for n in range(5) for body in range(3)])
    centred = pooled - pooled.mean(0)
    covariance = centred.T @ centred / 14
    std = (1 - (covariance.diagonal() + 1e-4).sqrt()).clamp_min(0).mean()
    off = covariance - torch.diag(covariance.diagonal())
    assert torch.allclose(terms["std"], std)
    assert torch.allclose(terms["cov"], off.square().sum() / 4)
    clips = torch.stack([z, 2 * z])                                       # clips are not pooled
    each = [objects_model.terms_per_body(4)(one)["std"] for one in clips]
    assert torch.allclose(objects_model.terms_per_body(4)(clips)["std"], sum(each) / 2)


# ---- what is seen

def test_what_is_hidden_changes_nothing(model, data):
    states, _, obs = data
    body = torch.tensor([0, 1, 2, 0, 1, -1])
    noise = torch.randn(states[:, 0].shape, generator=hjepa.generator(0, "noise"))
    changed = states[:, 0].clone()
    for n, number in enumerate(body.tolist()):
        if number >= 0:
            changed[n, 1:, number] += noise[n, 1:, number]
    other = worlds.observe(changed, MASSES)
    mine = worlds.observe(states[:, 0], MASSES)
    hidden, also_hidden = worlds.hide(mine, body), worlds.hide(other, body)
    assert torch.equal(hidden, also_hidden)
    assert not torch.equal(mine, other)
    assert torch.equal(hidden[5], mine[5]) and torch.equal(hidden[:, 0], mine[:, 0])
    with torch.no_grad():
        shown, _ = model.context(mine)
        without, _ = model.context(hidden)
    gap = (shown - without).abs().amax(1)
    assert (gap[:5] > 1e-3).all() and gap[5] == 0


def test_a_hidden_frame_is_nothing_but_its_mark_and_the_mass():
    obs = torch.full((1, 3, 20), 7.0)
    seen = worlds.hide(obs, torch.tensor([1])).unflatten(-1, (2, 10))
    assert (seen[:, :, 0] == 7).all() and (seen[:, 0, 1] == 7).all()
    assert seen[0, 1, 1].tolist() == [0, 0, 0, 0, 0, 0, 7, 7, 1, 1]


def test_what_is_not_told_is_not_seen(data):
    states, forces, obs = data
    seen = obs.unflatten(-1, (3, 10))
    assert torch.equal(seen[..., :4], hjepa.World.observe(None, states).unflatten(-1, (3, 4)))
    assert seen[0, 0, 0, :, 6:8].tolist() == [[2, 2], [3, 3], [4, 4]]
    for clip in range(6):
        push = forces[1, clip].unflatten(0, (3, 2)) * 3 ** 0.5 / 2
        assert torch.allclose(seen[1, clip, :, :, 4:6], push.expand(5, 3, 2))
    bare = worlds.observe(states).unflatten(-1, (3, 10))
    assert (bare[..., 4:] == 0).all() and torch.equal(bare[..., :4], seen[..., :4])


def test_mirrors_leave_masses_and_marks_alone(model, data):
    """The absolute value is read, so a flipped sign of a pair says nothing."""
    _, _, obs = data
    clip = worlds.hide(obs[:, 0], torch.tensor([0, 1, 2, 0, 1, 2]))
    other = clip.unflatten(-1, (3, 10)).clone()
    other[..., 6:] *= -1
    with torch.no_grad():
        assert torch.equal(model.context(clip)[0], model.context(other.flatten(-2))[0])


# ---- worlds

def test_boxes_are_the_worlds_of_their_masses():
    masses = torch.tensor([[1.0, 2.0, 4.0], [0.5, 3.0, 8.0], [1.0, 2.0, 4.0]])
    boxes = worlds.Boxes(CONFIG, masses, ("mass", "force"))
    free = torch.ones(3, 6)
    free[1, 2:4] = 0
    boxes.free = free
    state = hjepa.World((0.5, 3.0, 8.0)).reset(3, hjepa.generator(0, "boxes"))
    forces = hjepa.build_world(CONFIG).random_forces(3, 2, hjepa.generator(0, "f"))
    states, contacts = boxes.rollout(state, forces)
    for i in range(3):
        world = hjepa.build_world(worlds.config_of(CONFIG, masses[i]))
        assert world.masses == tuple(masses[i].tolist())
        alone, met = world.rollout(state[i:i + 1], forces[i:i + 1] * free[i])
        assert torch.allclose(alone[0], states[i], atol=1e-6) and torch.equal(met[0], contacts[i])
    now = boxes.now(states[:, -5:])
    assert torch.equal(now, worlds.observe(states[:, -5:], masses, (forces * free[:, None])[:, -1]))


def test_light_bodies_get_enough_substeps():
    light = worlds.config_of(CONFIG, (0.5, 0.5))
    assert light.substeps == light.needed_substeps() > CONFIG.substeps
    assert worlds.config_of(CONFIG, CONFIG.masses).substeps == CONFIG.substeps


def test_drawn_sequences(data):
    obs, forces, more = worlds.drawn_data(CONFIG, ("mass", "force"), "cpu")
    assert obs.shape == (96, 6, 5, 30) and forces.shape == (96, 5, 6) and more.shape == (96, 2)
    seen = obs.unflatten(-1, (3, 10))
    mass = 2 ** (seen[:, 0, 0, :, 6] - 2)
    assert 0.5 <= mass.min() and mass.max() <= 8 and len(mass.unique(dim=0)) == 2
    push = seen[:, 1:, 0, :, 4:6].flatten(2) * 2 / 3 ** 0.5
    assert torch.allclose(push, forces, atol=1e-5)
    idle = (seen[:, 0, 0, :, 4:6] == 0).flatten(1).all(1)
    assert 0 < idle.float().mean() < 1
    assert (more[:, 1] == -1).all()
    hidden = worlds.drawn_data(CONFIG, ("force",), "cpu")[0].unflatten(-1, (3, 10))
    assert (hidden[..., 6:8] == 0).all() and torch.equal(hidden[..., :6], seen[..., :6])


def test_the_plain_model_sees_the_run_s_own_sequences():
    states, forces, shares = hjepa.draw_training(hjepa.build_world(CONFIG), CONFIG, CPU)
    obs, same_forces, more = worlds.run_data(CONFIG, CPU, True)
    assert torch.equal(obs, worlds.observe(states, MASSES)) and torch.equal(forces, same_forces)
    assert torch.equal(more[:, 0], shares)
    assert set(more[:, 1].tolist()) == {-1, 0, 1, 2}
    assert (worlds.run_data(CONFIG, CPU, False)[2][:, 1] == -1).all()


# ---- goals

def test_only_a_contact_brings_that_body_to_its_goal():
    case = objects_goals.of_contacts(CONFIG, 6)
    world = hjepa.build_world(CONFIG)
    start = case["clip"][:, -1]
    each = torch.arange(6)
    body = case["body"]
    assert (case["forces"].unflatten(-1, (3, 2))[each, :, body] == 0).all()
    ends = {}
    for name, box in (("lawful", world), ("through", hjepa.without_contacts(world))):
        ends[name] = box.rollout(start, case["forces"])[0][:, -1]
    assert torch.allclose(ends["lawful"], case["goal"][:, -1], atol=1e-5)
    assert (hjepa.distance(ends["through"], ends["lawful"])[each, body] > 0.2).all()
    pushed = torch.ones(6, 5, 6)
    boxes = worlds.Boxes(CONFIG, case["masses"], free=case["free"])
    assert torch.equal(boxes.freed(pushed) == 0, case["free"][:, None].expand(-1, 5, -1) == 0)
    assert (case["free"].unflatten(-1, (3, 2))[each, body] == 0).all()


def test_the_first_clip_of_drawn_masses_has_no_force():
    case = objects_goals.of_drawn_masses(CONFIG, 3)
    assert len(case["masses"].unique(dim=0)) == 3
    for i in range(3):
        world = hjepa.build_world(worlds.config_of(CONFIG, case["masses"][i]))
        film, _ = world.rollout(case["clip"][i:i + 1, 0], torch.zeros(1, 1, 6))
        assert torch.allclose(film[0, :4], case["clip"][i, 1:], atol=1e-4)
        ends, _ = world.rollout(case["clip"][i:i + 1, -1], case["forces"][i:i + 1])
        assert torch.allclose(ends[0, -1], case["goal"][i, -1], atol=1e-4)


def test_a_body_is_struck_by_a_contact_and_not_by_a_wall():
    state = torch.tensor([[[-0.3, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.7, 0.7, 1.0, 1.0]]])
    film, _ = hjepa.World().rollout(state, torch.zeros(1, 1, 6), 5)
    path = torch.cat([state[:, None], film], 1)
    assert (path[0, -1, 2, 2:] < 0).any()                                 # it met a wall
    assert objects_judge.struck(path).tolist() == [[True, True, False]]


# ---- training and the whole study

def test_two_steps_of_training_change_every_part_and_stay_finite(model):
    net = objects_model.build(CONFIG)
    obs, forces, more = worlds.run_data(CONFIG, CPU, True)
    optimizer = hjepa.make_optimizer(net, CONFIG, CPU)
    totals = []
    for _ in range(2):
        total, terms = objects_model.objective(net, obs[:32], forces[:32], CONFIG.loss_weights,
                                               more[:32])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[1] < totals[0] and all(term.isfinite() for term in terms.values())
    start = model.state_dict()
    still = [name for name, weight in net.state_dict().items() if torch.equal(weight, start[name])]
    assert still == []


def test_the_hidden_body_is_hidden_from_the_context_only():
    obs, forces, more = worlds.run_data(CONFIG, CPU, False)
    obs, forces, more = obs[:8], forces[:8], more[:8]
    seen = {"context": [], "target": []}
    net = objects_model.build(CONFIG)
    for name, clips in seen.items():
        encoder = getattr(net, name)
        real = encoder.tokens
        encoder.tokens = lambda clip, real=real, clips=clips: clips.append(clip) or real(clip)
    more = torch.stack([more[:, 0], torch.full((8,), 2.0)], 1)
    objects_model.objective(net, obs, forces, CONFIG.loss_weights, more)
    first = seen["context"][0].unflatten(-1, (3, 10))
    assert (first[:, 1:, 2, 8] == 1).all() and (first[:, :, :2, 8] == 0).all()
    assert torch.equal(seen["target"][0], obs[:, 1:].transpose(0, 1).flatten(0, 1))


@pytest.fixture(scope="module")
def study(whole, tmp_path_factory):
    """The study as a user runs it: one training alone, then the rest -> (its folder, its JSON)."""
    run = tmp_path_factory.mktemp("objects") / "run"
    shutil.copytree(whole, run)
    done = here("figures/objects.py", *WORDS, "--run", run, "--only", "masked")
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (run / "objects").glob("*.pt")) == ["masked"]
    assert not list(run.rglob("objects.json"))
    done = here("figures/objects.py", *WORDS, "--run", run)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return run, json.loads((run / "figures" / "objects.json").read_text())


WORDS = ("--epochs", 2, "--goals", 3, "--pairs", 4, "--n", 96, "--device", "cpu")


def test_the_study_writes_what_it_promises(study):
    run, content = study
    assert (run / "figures" / "objects.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "figures" / "objects.npz").exists()
    assert not (run / "figures" / "objects.part.json").exists()
    assert (run / "figures" / "objects.json").stat().st_size < 30_000
    found = {(row["case"], row["model"]) for row in content["plans"]}
    for case, models in objects.CASES.items():
        for model in (*models, "zero force"):
            assert (case, model) in found
    for row in content["plans"]:
        check_intervals(row, "success", "mean_body")
    for row in content["against_run"]:
        check_intervals(row, "success")
    assert [row["model"] for row in content["trainings"]] == list(objects_runs.KINDS)
    assert {row["situation"] for row in content["masses"]} == set(objects_judge.SITUATIONS)
    assert len(content["surprise"]) == 6


def test_what_is_trained_is_not_trained_again(study):
    run, _ = study
    before = {path: path.read_bytes() for path in (run / "objects").glob("*.pt")}
    done = here("figures/objects.py", *WORDS, "--run", run, "--only", *objects_runs.KINDS)
    assert done.returncode == 0 and "epoch 2:" not in done.stdout
    assert before == {path: path.read_bytes() for path in (run / "objects").glob("*.pt")}


def refused(*words):
    done = here("figures/objects.py", *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_bad_input_is_refused_in_a_line(study, whole, tmp_path):
    run, _ = study
    assert "--epochs" in refused("--run", run, "--epochs", 3, "--only", "plain", "--device", "cpu")
    assert "--goals" in refused("--run", run, "--goals", 0)
    assert "invalid choice" in refused("--run", run, "--only", "nothing")
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    (other / "objects").mkdir()
    (other / "objects" / "plain.pt").write_bytes(b"no network")
    assert "damaged" in refused("--run", other, "--epochs", 2, "--only", "plain", "--device", "cpu")
    assert (other / "objects" / "plain.pt").read_bytes() == b"no network"
    two = hjepa.read_checkpoint(whole)
    config = tiny(masses=(1.0, 2.0))
    fresh = hjepa.build_model(config)
    two["config"] = dataclasses.asdict(config)
    two["model"] = fresh.state_dict()
    two["optimizer"] = hjepa.make_optimizer(fresh, config, CPU).state_dict()
    torch.save(two, tmp_path / "two.pt")
    assert "three" in refused("--run", tmp_path / "two.pt", "--only", "plain", "--device", "cpu")
