"""The simulator against physics: conservation, walls, the textbook hit, an exact solution."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hjepa import World


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def energy(state, masses):
    """(..., bodies, 4) -> kinetic energy of all bodies, float64."""
    return 0.5 * (torch.tensor(masses).double() * state[..., 2:].double().square().sum(-1)).sum(-1)


def momentum(state, masses):
    """(..., bodies, 4) -> total momentum (..., 2), float64."""
    return (torch.tensor(masses).double()[:, None] * state[..., 2:].double()).sum(-2)


def coast(world, n, frames, seed=0):
    """n worlds without force -> start, states, hits."""
    start = world.reset(n, gen(seed))
    states, hits = world.rollout(start, torch.zeros(n, frames, len(world.masses), 2), hold=1)
    return start, states, hits


def exact(state, masses, radii, frame, frames):
    """One force-free world, from event to event, in float64. (bodies, 4) -> (frames, bodies, 4).

    Between events bodies fly straight. A wall is met where a line crosses it, a body where the
    quadratic |d + s w| = r_i + r_j has its first root; then the textbook impulse acts.
    """
    x, v = np.array(state[:, :2], dtype=np.float64), np.array(state[:, 2:], dtype=np.float64)
    limit, now, out = 1 - np.array(radii)[:, None] * np.ones(2), 0.0, []
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    while len(out) < frames:
        with np.errstate(divide="ignore"):
            wall = np.where(v == 0, np.inf, (np.sign(v) * limit - x) / v).clip(0)
        soonest, event = wall.min(), np.unravel_index(wall.argmin(), wall.shape)
        for i, j in pairs:
            d, w, reach = x[i] - x[j], v[i] - v[j], radii[i] + radii[j]
            root = (d @ w) ** 2 - (w @ w) * (d @ d - reach ** 2)
            if d @ w < 0 and root > 0:
                meet = max((-(d @ w) - math.sqrt(root)) / (w @ w), 0.0)
                if meet < soonest:
                    soonest, event = meet, ("pair", i, j)
        while len(out) < frames and (len(out) + 1) * frame <= now + soonest:
            out.append(np.concatenate([x + v * ((len(out) + 1) * frame - now), v], 1))
        x, now = x + v * soonest, now + soonest
        if event[0] != "pair":
            v[event] *= -1
        else:
            _, i, j = event
            n = (x[i] - x[j]) / np.linalg.norm(x[i] - x[j])
            push = 2 * ((v[i] - v[j]) @ n) / (masses[i] + masses[j]) * n
            v[i], v[j] = v[i] - masses[j] * push, v[j] + masses[i] * push
    return np.stack(out)


def test_start_places_are_free_and_area_goes_with_mass():
    world = World()
    assert world.radii == pytest.approx((0.08, 0.08 * math.sqrt(2), 0.16))
    state = world.reset(2000, gen())
    radii = torch.tensor(world.radii)
    assert (state[..., :2].abs() <= 1 - radii[:, None] + 1e-6).all()
    for i in range(3):
        for j in range(i):
            gap = (state[:, i, :2] - state[:, j, :2]).norm(dim=-1) - radii[i] - radii[j]
            assert (gap > -1e-6).all()
    assert abs(state[..., 2:].std().item() - 0.3) < 0.01


@pytest.mark.parametrize("masses, frames", [((1.0, 2.0, 4.0), 1000), ((0.5, 8.0), 1000),
                                            ((3.0,), 1000), ((1.0,) * 10, 300)])
def test_energy_is_kept_without_forces(masses, frames):
    """Other numbers of bodies and other masses are as good as the default ones."""
    start, states, hits = coast(World(masses), 200, frames)
    assert hits.any() == (len(masses) > 1)
    drift = energy(states, masses) / energy(start, masses)[:, None] - 1
    assert drift.abs().max() < 1e-5


@given(st.floats(0.3, 8), st.floats(0.3, 8), st.floats(-0.95, 0.95), st.floats(0, 6.28),
       st.floats(0.2, 3))
def test_one_hit_is_the_textbook_hit(m1, m2, offset, angle, speed):
    """Two bodies approach at any angle and offset. In the frame of their centre of mass a hit turns
    the relative velocity w into its mirror image, w - 2 (w . n) n: another form of the impulse."""
    world = World((m1, m2), radius=0.05, frame=0.01)
    reach = sum(world.radii)
    way, side = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle),
                                                                        math.cos(angle)])
    drift = np.array([0.1, -0.05])                                        # of the centre of mass
    w = -speed * way
    v = np.stack([drift + m2 / (m1 + m2) * w, drift - m1 / (m1 + m2) * w])
    gap = reach + speed * 0.013                                           # contact in frame 2
    x = np.stack([gap * way + offset * reach * side, 0 * way])
    start = torch.tensor(np.concatenate([x, v], 1)[None], dtype=torch.float32)
    states, hits = world.rollout(start, torch.zeros(1, 60, 2, 2), hold=1)

    n = offset * side + math.sqrt(1 - offset ** 2) * way                  # line of centres
    mirrored = w - 2 * (w @ n) * n
    after = np.stack([drift + m2 / (m1 + m2) * mirrored, drift - m1 / (m1 + m2) * mirrored])
    assert hits.sum() == 1
    when = hits[0].int().argmax()
    np.testing.assert_allclose(states[0, when, :, 2:].numpy(), after, atol=2e-4 * speed)
    torch.testing.assert_close(momentum(states[:, when], (m1, m2)), momentum(start, (m1, m2)),
                               atol=1e-6 * speed * (m1 + m2), rtol=0)
    torch.testing.assert_close(energy(states[:, when], (m1, m2)), energy(start, (m1, m2)),
                               atol=0, rtol=2e-6)


def test_bodies_that_overlap_but_part_are_left_alone():
    """A wall can push a body back into another. If they fly apart already, there is no hit."""
    start = torch.tensor([[[0.05, 0.0, 0.4, 0.1], [-0.05, 0.0, -0.3, 0.0]]])
    states, hits = World((1.0, 1.0)).rollout(start, torch.zeros(1, 20, 2, 2), hold=1)
    assert not hits.any()
    assert torch.equal(states[..., 2:], start[:, None, :, 2:].expand(-1, 20, -1, -1))


def test_agrees_with_the_exact_solution():
    """300 worlds, 25 frames, every frame compared. Nearly all agree to float32 rounding. A few may
    not: a graze inside one substep is missed, and one hit magnifies the rounding of the last."""
    world = World()
    start = world.reset(300, gen(3), speed=0.6)
    states, hits = world.rollout(start, torch.zeros(300, 25, 3, 2), hold=1)
    true = np.stack([exact(s.numpy(), world.masses, world.radii, world.frame, 25) for s in start])
    error = np.abs(true - states.numpy())[..., :2].max((1, 2, 3))
    met = hits.any(1).numpy()
    assert met.sum() > 60
    for group in (error, error[met]):
        assert np.median(group) < 1e-5
    assert np.percentile(error, 95) < 1e-4


def test_no_wall_is_crossed_in_ten_million_body_steps():
    """Frames of one substep, so every step is looked at; forces ten times the usual."""
    world, steps = World(frame=0.01, substeps=1, force_limit=20.0), 0
    limit = 1 - torch.tensor(world.radii)[:, None]
    state, most = world.reset(4200, gen()), 0.0
    for k in range(2):
        states, hits = world.rollout(state, world.random_forces(4200, 20, gen(k)), hold=20)
        assert (states[..., :2].abs() <= limit + 1e-6).all() and states.isfinite().all()
        assert hits.any()
        most = max(most, states[..., 2:].abs().max().item())
        steps, state = steps + states[..., 0].numel(), states[:, -1]
    assert steps >= 10**7 and most > 10                                   # they were thrown about


def test_force_acts_as_constant_acceleration():
    """s = v t + a t^2 / 2 and v + a t, force after force, with a = force / mass."""
    world, hold = World(), 3
    place = torch.tensor([[-0.6, -0.6], [0.0, 0.6], [0.6, -0.6]])
    start = torch.cat([place, 0.1 * torch.randn(3, 2, generator=gen())], 1)[None]
    forces = world.random_forces(1, 2, gen(1))
    states, hits = world.rollout(start, forces, hold)
    assert not hits.any() and states.shape == (1, 2 * hold, 3, 4)
    x, v = start[0, :, :2].double(), start[0, :, 2:].double()
    for k in range(2):
        a = forces[0, k].double() / torch.tensor(world.masses)[:, None]
        for frame in range(hold):
            t, got = (frame + 1) * world.frame, states[0, k * hold + frame].double()
            torch.testing.assert_close(got[:, :2], x + v * t + a * t ** 2 / 2, atol=1e-6, rtol=0)
            torch.testing.assert_close(got[:, 2:], v + a * t, atol=1e-6, rtol=0)
        x, v = x + v * t + a * t ** 2 / 2, v + a * t


def test_a_batch_is_its_worlds_bit_for_bit():
    world = World()
    start, forces = world.reset(40, gen(), speed=0.8), world.random_forces(40, 8, gen(1))
    states, hits = world.rollout(start, forces)
    assert hits.any()
    for i in range(40):
        alone, hit = world.rollout(start[i:i + 1], forces[i:i + 1])
        assert torch.equal(alone[0], states[i]) and torch.equal(hit[0], hits[i])


@pytest.mark.parametrize("masses", [(1.0, 2.0, 4.0), (1.0,)])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_rollout_keeps_its_inputs(masses, n):
    world = World(masses)
    start, forces = world.reset(n, gen()), world.random_forces(n, 3, gen(1))
    before = start.clone(), forces.clone()
    states, _ = world.rollout(start, forces)
    kept = states.clone()
    world.rollout(states[:, -1], forces)
    assert torch.equal(start, before[0]) and torch.equal(forces, before[1])
    assert torch.equal(states, kept)


@pytest.mark.parametrize("masses, radius", [((1.0,) * 80, 0.15), ((1.0,) * 5, 0.5),
                                            ((1.0,), 1.0)])
def test_bodies_that_do_not_fit_are_refused(masses, radius):
    with pytest.raises(ValueError, match="do not fit"):
        World(masses, radius).reset(4, gen())


def test_observation_has_about_unit_variance():
    """The scale fits flight under random forces, not only the start."""
    world = World()
    states, _ = world.rollout(world.reset(500, gen()), world.random_forces(500, 6, gen(1)))
    seen = world.observe(states)
    assert seen.shape == (500, 30, 12)
    assert torch.equal(seen[..., 4:6], states[..., 1, :2] * torch.tensor(1 / 0.55))
    assert 0.5 < seen.std((0, 1)).min() and seen.std((0, 1)).max() < 2
