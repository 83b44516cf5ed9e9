"""Sequences: which force acts when, which symmetries are drawn, what decides the order."""
import itertools

import pytest
import torch

import hjepa
from hjepa import World, epoch_batches, make_sequences, random_symmetry, reflect


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# The eight symmetries of the box: with or without a flip of x, a flip of y, a swap of the axes.
EIGHT = list(itertools.product((False, True), repeat=3))


# Sequences

def test_clips_do_not_overlap_and_force_k_belongs_to_clip_k_plus_1():
    world = World()
    clip_frames = 4
    states, forces, contacts = make_sequences(world, 50, 6, gen(), clip_frames)
    assert states.shape == (50, 6, clip_frames, 3, 4)
    assert forces.shape == (50, 5, 6)
    assert contacts.shape == (50, 6, clip_frames)
    assert contacts.any()
    assert len(forces.flatten().unique()) > 0.99 * forces.numel()         # each drawn by itself
    for k in range(5):
        # Force k leads from the last frame of clip k to all of clip k + 1: no gap, no frame twice.
        clip, contact = world.rollout(states[:, k, -1], forces[:, k:k + 1], clip_frames)
        assert torch.equal(clip, states[:, k + 1])
        assert torch.equal(contact, contacts[:, k + 1])


@pytest.mark.parametrize("k", range(5))
def test_another_force_k_changes_clip_k_plus_1_and_none_before(k):
    world = World()
    states, forces, _ = make_sequences(world, 20, 6, gen())
    other = forces.clone()
    other[:, k] = -other[:, k]
    again, _ = world.rollout(states[:, 0, -1], other)
    again = torch.cat([states[:, :1], again.unflatten(1, (5, 5))], 1)
    assert torch.equal(again[:, :k + 1], states[:, :k + 1])
    changed = (again[:, k + 1] - states[:, k + 1]).abs().amax((-1, -2))   # (20, frames of a clip)
    assert (changed > 1e-4).all()                                         # from its first frame on


def test_speed_and_length_reach_the_simulator():
    world = World(masses=(1.0, 3.0))
    slow, forces, contacts = make_sequences(world, 300, 3, gen(), clip_frames=2, speed=0.1)
    fast, _, _ = make_sequences(world, 300, 3, gen(), clip_frames=2, speed=1.0)
    assert slow.shape == (300, 3, 2, 2, 4)
    assert forces.shape == (300, 2, 4)
    assert contacts.shape == (300, 3, 2)
    assert fast[:, 0, 0, :, 2:].std() > 5 * slow[:, 0, 0, :, 2:].std()


# Symmetries

def matrix(flip_x, flip_y, swap):
    """A symmetry as an orthogonal (2, 2) matrix: first swap the axes, then turn them around."""
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) if swap else torch.eye(2)
    signs = torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0])
    return torch.diag(signs) @ swapped


@pytest.mark.parametrize("shape", [(8, 2), (8, 6), (8, 5, 12), (8, 3, 5, 12)])
def test_reflect_is_an_orthogonal_matrix_on_each_pair(shape):
    """Eight samples, each in another symmetry, against a matrix product."""
    x = torch.randn(shape, generator=gen())
    kept = x.clone()
    settings = torch.tensor(EIGHT)
    got = reflect(x, flip=settings[:, :2], swap=settings[:, 2])
    matrices = torch.stack([matrix(*setting) for setting in EIGHT])       # (8, 2, 2)
    expected = torch.einsum("nij,npj->npi", matrices, x.reshape(8, -1, 2))
    assert got.shape == x.shape
    torch.testing.assert_close(got, expected.reshape(shape))
    assert torch.equal(x, kept)


def test_the_eight_symmetries_are_different_and_the_first_changes_nothing():
    x = torch.tensor([1.0, 2.0]).expand(8, 2)
    settings = torch.tensor(EIGHT)
    got = reflect(x, settings[:, :2], settings[:, 2])
    assert torch.equal(got[0], x[0])
    assert len({tuple(row) for row in got.tolist()}) == 8


@pytest.mark.parametrize("flip_x, flip_y, swap", EIGHT)
def test_physics_commutes_with_reflect(flip_x, flip_y, swap):
    """Simulate, then look in the mirror = look in the mirror, then simulate. With forces, walls and
    contacts."""
    world = World()
    n = 60
    flip = torch.tensor([flip_x, flip_y]).expand(n, 2)
    swap = torch.tensor(swap).expand(n)
    start = world.reset(n, gen(), speed=0.8)
    forces = world.random_forces(n, 5, gen(1))
    states, contacts = world.rollout(start, forces)
    again, contacts_again = world.rollout(reflect(start, flip, swap), reflect(forces, flip, swap))
    assert contacts.any(1).sum() > 10
    assert torch.equal(contacts, contacts_again)
    torch.testing.assert_close(again, reflect(states, flip, swap), atol=1e-5, rtol=0)
    torch.testing.assert_close(world.observe(again), reflect(world.observe(states), flip, swap),
                               atol=1e-4, rtol=0)


def test_random_symmetry_turns_clips_and_forces_alike():
    """Physics still leads from the turned clip, with the turned forces, to the turned clips."""
    world = World()
    start = world.reset(200, gen(), speed=0.8)
    forces = world.random_forces(200, 5, gen(1))
    states, contacts = world.rollout(start, forces)
    assert contacts.any(1).sum() > 50
    path = torch.cat([start[:, None], states], 1).flatten(2)              # (n, 26, 4 bodies)
    turned, turned_forces = random_symmetry(path, forces, gen(2))
    assert not torch.equal(turned, path)
    again, _ = world.rollout(turned[:, 0].unflatten(-1, (3, 4)), turned_forces)
    torch.testing.assert_close(again.flatten(2), turned[:, 1:], atol=1e-5, rtol=0)


def test_all_eight_symmetries_occur_equally_often():
    n = 8000
    obs = torch.tensor([1.0, 2.0]).expand(n, 1, 3, 2)
    forces = torch.tensor([3.0, 5.0]).expand(n, 1, 2)
    turned, turned_forces = random_symmetry(obs, forces, gen())
    assert turned.shape == obs.shape
    assert turned_forces.shape == forces.shape
    assert (turned == turned[:, :, :1]).all()                             # one symmetry a sample
    rows = torch.cat([turned[:, 0, 0], turned_forces[:, 0]], 1)
    seen, counts = rows.unique(dim=0, return_counts=True)
    expected = set()
    for sx, sy in itertools.product((-1, 1), repeat=2):
        expected.add((sx * 1, sy * 2, sx * 3, sy * 5))
        expected.add((sx * 2, sy * 1, sx * 5, sy * 3))
    assert {tuple(row) for row in seen.tolist()} == expected
    assert (counts - n / 8).abs().max() < 150                             # 5 deviations


# Batches

def test_batches_depend_on_the_generator_alone():
    obs = torch.randn(50, 3, 2, 4, generator=gen())
    forces = torch.randn(50, 2, 2, generator=gen())
    kept_obs, kept_forces = obs.clone(), forces.clone()

    shares = torch.arange(50.0)

    def draw(seed):
        return list(epoch_batches(obs, forces, shares, 8, gen(seed)))
    first = draw(1)
    torch.manual_seed(99)                                                 # plays no part
    second = draw(1)
    third = draw(2)
    assert len(first) == 6                                                # 50 // 8: full ones only
    for batch, same in zip(first, second):
        for a, b in zip(batch, same):
            assert torch.equal(a, b)
            assert len(a) == 8
    assert not torch.equal(first[0][0], third[0][0])
    assert torch.equal(obs, kept_obs)
    assert torch.equal(forces, kept_forces)


@pytest.mark.parametrize("symmetries", [False, True])
def test_an_epoch_shows_each_sequence_at_most_once_with_its_own_forces(symmetries):
    index = torch.arange(1.0, 51)
    obs = index.view(-1, 1, 1, 1).expand(-1, 3, 2, 4)
    forces = 10 * index.view(-1, 1, 1).expand(-1, 2, 2)
    batches = list(epoch_batches(obs, forces, index, 8, gen(3), symmetries))
    who = torch.cat([o for o, _, _ in batches])[:, 0, 0, 0]
    pushed = torch.cat([f for _, f, _ in batches])[:, 0, 0]
    share = torch.cat([s for _, _, s in batches])
    assert torch.equal(share, who.abs())
    assert len(who.abs().unique()) == len(who) == 48
    assert torch.equal(pushed, 10 * who)
    assert not torch.equal(who.abs(), who.abs().sort().values)            # in another order
    assert (who < 0).any() == symmetries                                  # turned only if asked


def test_symmetries_are_drawn_anew_for_each_batch():
    obs = torch.tensor([1.0, 2.0]).expand(64, 1, 1, 2)
    batches = list(epoch_batches(obs, torch.ones(64, 1, 2), torch.ones(64), 32, gen()))
    assert not torch.equal(batches[0][0], batches[1][0])


# Roles

def test_training_validation_and_test_worlds_differ():
    config = hjepa.Config()
    world = World()
    roles = [(config.seed, "train"), (config.seed, "probe"), (config.validation_seed, "watch"),
             (config.validation_seed, "probe"), (config.test_seed, "probe"),
             (config.test_seed, "worlds"), (config.seed + 1, "train")]
    starts = []
    for seed, purpose in roles:
        states, _, _ = hjepa.draw_sequences(world, config, 200, seed, purpose, "cpu")
        starts.append(states[:, 0, 0].flatten(1))
    for a, b in itertools.combinations(starts, 2):
        assert torch.cdist(a, b).min() > 1e-3


def test_draw_sequences_is_make_sequences_with_the_settings_of_a_run():
    config = hjepa.Config(clip_frames=3, event_clips=2, start_speed=0.7, masses=(1.0, 2.0))
    world = hjepa.build_world(config)
    got = hjepa.draw_sequences(world, config, 20, 3, "train", "cpu")
    expected = make_sequences(world, 20, 3, hjepa.generator(3, "train"), 3, 0.7)
    assert got[0].shape == (20, 3, 3, 2, 4)
    for a, b in zip(got, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [{"seed": 1_000_000}, {"validation_seed": 5},
                                   {"validation_seed": 2_000_000}, {"test_seed": 1_500_000}])
def test_no_seed_can_be_of_another_role(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        hjepa.Config(**wrong)
