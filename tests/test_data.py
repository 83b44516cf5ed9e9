"""Sequences: which force acts when, which symmetries are drawn, what decides the order."""
import itertools

import pytest
import torch

import hjepa
from hjepa import World, epoch_batches, make_sequences, random_symmetry


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(forces):
    """(n, K, A) -> (n, K, bodies, 2), as the simulator takes them."""
    return forces.unflatten(-1, (-1, 2))


def test_clips_do_not_overlap_and_force_k_belongs_to_clip_k_plus_1():
    world, hold = World(), 4
    states, forces, hits = make_sequences(world, 50, 6, gen(), hold)
    assert states.shape == (50, 6, hold, 3, 4) and forces.shape == (50, 5, 6)
    assert hits.shape == (50, 6, hold) and hits.any()
    for k in range(5):
        # Force k leads from the last frame of clip k to all of clip k + 1: no gap, no frame twice.
        clip, hit = world.rollout(states[:, k, -1], pairs(forces[:, k:k + 1]), hold)
        assert torch.equal(clip, states[:, k + 1])
        assert torch.equal(hit, hits[:, k + 1])


@pytest.mark.parametrize("k", range(5))
def test_another_force_k_changes_clip_k_plus_1_and_none_before(k):
    world, hold = World(), 5
    states, forces, _ = make_sequences(world, 20, 6, gen(), hold)
    other = forces.clone()
    other[:, k] = -other[:, k]
    again, _ = world.rollout(states[:, 0, -1], pairs(other), hold)
    again = torch.cat([states[:, :1], again.unflatten(1, (5, hold))], 1)
    assert torch.equal(again[:, :k + 1], states[:, :k + 1])
    changed = (again[:, k + 1] - states[:, k + 1]).abs().amax((-1, -2))   # (20, hold)
    assert (changed > 1e-4).all()                                         # from its first frame on


def test_symmetry_commutes_with_physics():
    """Simulate then transform = transform then simulate, with forces, walls and hits."""
    world = World()
    start, forces = world.reset(200, gen(), speed=0.8), world.random_forces(200, 5, gen(1))
    states, hits = world.rollout(start, forces)
    assert hits.any(1).sum() > 50
    path = torch.cat([start[:, None], states], 1).flatten(2)              # (x, y) pairs, any scale
    turned, turned_forces = random_symmetry(path, forces.flatten(2), gen(2))
    assert not torch.equal(turned, path)
    again, _ = world.rollout(turned[:, 0].unflatten(-1, (3, 4)), pairs(turned_forces))
    torch.testing.assert_close(again.flatten(2), turned[:, 1:], atol=1e-5, rtol=0)


def test_all_eight_symmetries_occur_equally_often():
    n = 8000
    obs = torch.tensor([1.0, 2.0]).expand(n, 1, 3, 2)
    forces = torch.tensor([3.0, 5.0]).expand(n, 1, 2)
    o, f = random_symmetry(obs, forces, gen())
    assert o.shape == obs.shape and f.shape == forces.shape
    assert (o == o[:, :, :1]).all()                                       # one symmetry a sample
    seen, counts = torch.cat([o[:, 0, 0], f[:, 0]], 1).unique(dim=0, return_counts=True)
    expected = {(sx * a, sy * b, sx * c, sy * d) for sx, sy in itertools.product((-1, 1), repeat=2)
                for a, b, c, d in ((1, 2, 3, 5), (2, 1, 5, 3))}
    assert {tuple(row) for row in seen.tolist()} == expected
    assert (counts - n / 8).abs().max() < 150                             # 5 deviations


def test_batches_depend_on_the_generator_alone():
    obs = torch.randn(50, 3, 2, 4, generator=gen())
    forces = torch.randn(50, 2, 2, generator=gen())
    kept = obs.clone(), forces.clone()

    def draw(seed):
        return list(epoch_batches(obs, forces, 8, gen(seed)))
    first = draw(1)
    torch.manual_seed(99)                                                 # plays no part
    second, third = draw(1), draw(2)
    assert len(first) == 6                                                # 50 // 8: full ones only
    for (a, b), (c, d) in zip(first, second):
        assert torch.equal(a, c) and torch.equal(b, d) and len(a) == 8
    assert not torch.equal(first[0][0], third[0][0])
    assert torch.equal(obs, kept[0]) and torch.equal(forces, kept[1])


def test_an_epoch_shows_each_sequence_at_most_once_with_its_own_forces():
    index = torch.arange(1.0, 51)
    obs = index.view(-1, 1, 1, 1).expand(-1, 3, 2, 4)
    forces = 10 * index.view(-1, 1, 1).expand(-1, 2, 2)
    for symmetries in (False, True):
        batches = list(epoch_batches(obs, forces, 8, gen(3), symmetries))
        who = torch.cat([o for o, _ in batches])[:, 0, 0, 0].abs()
        assert len(who.unique()) == len(who) == 48
        assert torch.equal(torch.cat([f for _, f in batches])[:, 0, 0].abs(), 10 * who)
    plain = torch.cat([o for o, _ in epoch_batches(obs, forces, 8, gen(3), False)])
    assert (plain > 0).all()                                              # nothing is turned


def test_training_validation_and_test_worlds_differ():
    config, world = hjepa.Config(), World()
    roles = [(config.seed, "train"), (config.seed, "probe"), (config.validation_seed, "watch"),
             (config.validation_seed, "probe"), (config.test_seed, "probe"),
             (config.test_seed, "worlds"), (config.seed + 1, "train")]
    starts = [hjepa.sequences(world, config, 200, seed, purpose, "cpu")[0][:, 0, 0].flatten(1)
              for seed, purpose in roles]
    for a, b in itertools.combinations(starts, 2):
        assert torch.cdist(a, b).min() > 1e-3


@pytest.mark.parametrize("wrong", [{"seed": 1_000_000}, {"validation_seed": 5},
                                   {"validation_seed": 2_000_000}, {"test_seed": 1_500_000}])
def test_no_seed_can_be_of_another_role(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        hjepa.Config(**wrong)
