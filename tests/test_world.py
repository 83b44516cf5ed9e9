"""The simulator against physics: conservation, walls, the textbook contact, an exact solution."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hjepa import World
from lib.exact import exact as exact_with_forces


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def energy(state, masses):
    """state (..., bodies, 4) -> kinetic energy of all bodies (...), float64."""
    masses = torch.tensor(masses).double()
    squared_speed = state[..., 2:].double().square().sum(-1)
    return 0.5 * (masses * squared_speed).sum(-1)


def momentum(state, masses):
    """state (..., bodies, 4) -> total momentum (..., 2), float64."""
    masses = torch.tensor(masses).double()[:, None]
    return (masses * state[..., 2:].double()).sum(-2)


def coast(world, start, frames):
    """Worlds without force -> states, contacts of each frame."""
    n, bodies = start.shape[:2]
    return world.rollout(start, torch.zeros(n, frames, 2 * bodies), clip_frames=1)


# Start

def test_bodies_start_apart_inside_the_box_and_area_goes_with_mass():
    world = World()
    assert world.radii == pytest.approx((0.08, 0.08 * math.sqrt(2), 0.16))
    state = world.reset(2000, gen())
    radii = torch.tensor(world.radii)
    assert (state[..., :2].abs() <= 1 - radii[:, None] + 1e-6).all()
    for i in range(3):
        for j in range(i):
            gap = (state[:, i, :2] - state[:, j, :2]).norm(dim=-1)
            assert (gap > radii[i] + radii[j] - 1e-6).all()
    assert state[..., 2:].std().item() == pytest.approx(0.3, abs=0.01)
    assert state[..., 2:].mean().item() == pytest.approx(0, abs=0.01)


def test_start_positions_fill_the_room_of_each_body():
    """Uniform where a single body can be: mean 0, deviation room / sqrt(3), up to the wall."""
    world = World((2.0,))
    room = 1 - world.radii[0]
    position = world.reset(4000, gen())[:, 0, :2]
    assert position.mean(0).abs().max() < 0.05
    assert position.std(0).tolist() == pytest.approx([room / math.sqrt(3)] * 2, rel=0.05)
    assert position.abs().amax(0).min() > 0.99 * room


def test_the_start_depends_on_the_generator_and_speed_scales_it():
    world = World()
    slow = world.reset(50, gen(1), speed=0.1)
    fast = world.reset(50, gen(1), speed=0.4)
    other = world.reset(50, gen(2), speed=0.1)
    assert torch.equal(slow[..., :2], fast[..., :2])
    torch.testing.assert_close(4 * slow[..., 2:], fast[..., 2:])
    assert not torch.equal(slow, other)


@pytest.mark.parametrize("masses, radius", [((1.0,) * 80, 0.15), ((1.0,) * 5, 0.5),
                                            ((1.0,), 1.0)])
def test_bodies_that_do_not_fit_are_refused(masses, radius):
    with pytest.raises(ValueError, match="do not fit"):
        World(masses, radius).reset(4, gen())


@pytest.mark.parametrize("limit", [0.5, 2.0])
def test_random_forces_are_uniform_up_to_the_limit(limit):
    forces = World(force_limit=limit).random_forces(2000, 5, gen())
    assert forces.shape == (2000, 5, 6)
    assert forces.abs().max() <= limit
    assert forces.max() > 0.99 * limit
    assert forces.min() < -0.99 * limit
    assert forces.mean((0, 1)).abs().max() < 0.05 * limit
    assert forces.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert (forces[:, 0] - forces[:, 1]).abs().min() > 0                  # another one each clip


def test_a_state_of_ones_own_is_checked():
    world = World()
    world.check(world.reset(500, gen()))
    good = torch.tensor([[[-0.5, 0, 0, 0], [0, 0.5, 0, 0], [0.84, 0, 0, 0]]])
    world.check(good)
    for body, place, says in ((2, [0.85, 0.0], "body 2 lies outside"),
                              (0, [0.0, -0.93], "body 0 lies outside"),
                              (1, [0.7, 0.0], "bodies 1 and 2 overlap"),
                              (0, [math.nan, 0.0], "not finite")):
        bad = good.clone()
        bad[0, body, :2] = torch.tensor(place)
        with pytest.raises(ValueError, match=says):
            world.check(bad)


# Flight

def test_force_acts_as_constant_acceleration():
    """s = v t + a t^2 / 2 and v + a t, force after force, with a = force / mass."""
    world = World()
    clip_frames = 3
    place = torch.tensor([[-0.6, -0.6], [0.0, 0.6], [0.6, -0.6]])
    start = torch.cat([place, 0.1 * torch.randn(3, 2, generator=gen())], 1)[None]
    forces = world.random_forces(1, 2, gen(1))
    states, contacts = world.rollout(start, forces, clip_frames)
    assert not contacts.any()
    assert states.shape == (1, 2 * clip_frames, 3, 4)
    x = start[0, :, :2].double()
    v = start[0, :, 2:].double()
    masses = torch.tensor(world.masses).double()
    for k in range(2):
        # The layout of a force: fx, fy of body 0, then of body 1, then of body 2.
        a = forces[0, k].double().view(3, 2) / masses[:, None]
        for frame in range(clip_frames):
            t = (frame + 1) * world.dt
            got = states[0, k * clip_frames + frame].double()
            torch.testing.assert_close(got[:, :2], x + v * t + a * t ** 2 / 2, atol=1e-6, rtol=0)
            torch.testing.assert_close(got[:, 2:], v + a * t, atol=1e-6, rtol=0)
        x = x + v * t + a * t ** 2 / 2
        v = v + a * t


def test_a_force_pushes_the_body_and_the_axis_it_names():
    """One number of the force at a time: only that body gains speed, and only along that axis."""
    world = World()
    place = torch.tensor([[-0.6, -0.6], [0.0, 0.6], [0.6, -0.6]])
    start = torch.cat([place, torch.zeros(3, 2)], 1).expand(6, -1, -1)
    states, _ = world.rollout(start, torch.eye(6)[:, None], clip_frames=1)
    moved = states[:, 0, :, 2:] != 0                                      # (6, bodies, 2)
    assert torch.equal(moved.flatten(1), torch.eye(6, dtype=torch.bool))


def test_substeps_do_not_change_free_flight():
    """Between contacts a step is exact, so its length plays no part."""
    place = torch.tensor([[-0.6, -0.6], [0.0, 0.6], [0.6, -0.6]])
    start = torch.cat([place, torch.zeros(3, 2)], 1)[None]
    forces = World().random_forces(1, 1, gen())
    coarse, _ = World(substeps=1).rollout(start, forces)
    fine, _ = World(substeps=16).rollout(start, forces)
    torch.testing.assert_close(coarse, fine, atol=5e-6, rtol=0)


# Walls

@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_wall_reflects_the_path(axis, side):
    """The path is folded back at the wall: what it would have gone too far, it comes back."""
    world = World((1.0,), radius=0.1)
    start = torch.zeros(1, 1, 4)
    start[0, 0, axis] = 0.8 * side
    start[0, 0, 2 + axis] = 1.0 * side
    start[0, 0, 3 - axis] = 0.2                                           # along the wall
    states, contacts = coast(world, start, 5)
    free = 0.8 + 0.04 * torch.arange(1, 6)
    folded = torch.where(free > 0.9, 1.8 - free, free)                    # the wall is at 0.9
    torch.testing.assert_close(states[0, :, 0, axis], side * folded)
    torch.testing.assert_close(states[0, -1, 0, 2 + axis], torch.tensor(-side))
    torch.testing.assert_close(states[0, -1, 0, 3 - axis], torch.tensor(0.2))
    assert not contacts.any()                                             # those are of two bodies


def test_a_body_beyond_a_wall_flies_inward_whatever_it_did_before():
    """A contact can push a body through a wall, on its way in or out. It must come back in."""
    world = World((1.0,), radius=0.1)
    start = torch.tensor([[[0.95, 0.0, -0.5, 0.0]], [[0.95, 0.0, 0.5, 0.0]]])
    states, _ = coast(world, start, 1)
    assert states[:, 0, 0, 2].tolist() == [-0.5, -0.5]
    assert (states[:, 0, 0, 0] <= 0.9).all()


def test_no_wall_is_crossed_in_three_million_body_steps():
    """Frames of one substep, so every step is looked at; forces ten times the usual."""
    world = World(dt=0.01, substeps=1, force_limit=20.0)
    limit = 1 - torch.tensor(world.radii)[:, None]
    state = world.reset(1300, gen())
    steps = 0
    fastest = 0.0
    for k in range(2):
        forces = world.random_forces(1300, 20, gen(k))
        states, contacts = world.rollout(state, forces, clip_frames=20)
        assert (states[..., :2].abs() <= limit + 1e-6).all()
        assert states.isfinite().all()
        assert contacts.any()
        fastest = max(fastest, states[..., 2:].abs().max().item())
        steps += states[..., 0].numel()
        state = states[:, -1]
    assert steps >= 3 * 10**6
    assert fastest > 10                                                   # they were thrown about


# Contacts

@given(st.floats(0.3, 8), st.floats(0.3, 8), st.floats(-0.95, 0.95), st.floats(0, 6.28),
       st.floats(0.2, 3))
def test_one_contact_is_the_textbook_contact(m1, m2, offset, angle, speed):
    """Two bodies approach at any angle and offset. In the frame of their centre of mass a contact
    turns the relative velocity w into its mirror image, w - 2 (w . n) n: another form of the
    impulse."""
    world = World((m1, m2), radius=0.05, dt=0.01)
    reach = sum(world.radii)
    way = np.array([math.cos(angle), math.sin(angle)])
    side = np.array([-math.sin(angle), math.cos(angle)])
    drift = np.array([0.1, -0.05])                                        # of the centre of mass

    def velocities(w):
        return np.stack([drift + m2 / (m1 + m2) * w, drift - m1 / (m1 + m2) * w])
    w = -speed * way
    gap = reach + speed * 0.013                                           # contact in frame 2
    x = np.stack([gap * way + offset * reach * side, 0 * way])
    start = torch.tensor(np.concatenate([x, velocities(w)], 1)[None], dtype=torch.float32)
    states, contacts = coast(world, start, 60)

    n = offset * side + math.sqrt(1 - offset ** 2) * way                  # line of centres
    after = velocities(w - 2 * (w @ n) * n)
    assert contacts.sum() == 1
    when = contacts[0].int().argmax()
    np.testing.assert_allclose(states[0, when, :, 2:].numpy(), after, atol=2e-4 * speed)
    torch.testing.assert_close(momentum(states[:, when], (m1, m2)), momentum(start, (m1, m2)),
                               atol=1e-6 * speed * (m1 + m2), rtol=0)
    torch.testing.assert_close(energy(states[:, when], (m1, m2)), energy(start, (m1, m2)),
                               atol=0, rtol=2e-6)


@pytest.mark.parametrize("masses, frames", [((1.0, 2.0, 4.0), 500), ((0.5, 8.0), 500),
                                            ((3.0,), 200), ((1.0,) * 10, 100)])
def test_energy_is_kept_without_forces(masses, frames):
    """Other numbers of bodies and other masses are as good as the default ones."""
    world = World(masses)
    start = world.reset(200, gen())
    states, contacts = coast(world, start, frames)
    assert contacts.any() == (len(masses) > 1)
    drift = energy(states, masses) / energy(start, masses)[:, None] - 1
    assert drift.abs().max() < 1e-5


def test_bodies_that_overlap_but_part_are_left_alone():
    """A wall can push a body back into another. If they fly apart already, there is no contact."""
    start = torch.tensor([[[0.05, 0.0, 0.4, 0.1], [-0.05, 0.0, -0.3, 0.0]]])
    states, contacts = coast(World((1.0, 1.0)), start, 20)
    assert not contacts.any()
    assert torch.equal(states[..., 2:], start[:, None, :, 2:].expand(-1, 20, -1, -1))


def test_without_contacts_each_body_flies_as_if_it_were_alone():
    """The same start and forces, with contacts, make bodies meet in many of these worlds."""
    world = World(contacts=False)
    start = world.reset(200, gen(), speed=0.8)
    forces = world.random_forces(200, 5, gen(1))
    states, contacts = world.rollout(start, forces)
    assert not contacts.any()
    _, meet = World().rollout(start, forces)
    assert meet.any(1).sum() > 50
    for i, mass in enumerate(world.masses):
        alone = World((mass,))
        own_start = start[:, i:i + 1]
        own_force = forces[..., 2 * i:2 * i + 2]
        path, _ = alone.rollout(own_start, own_force)
        assert torch.equal(path[:, :, 0], states[:, :, i])


def test_without_contacts_one_step_is_as_good_as_many():
    """Walls under a constant force are exact, so a frame may be as long as a clip."""
    fine = World(contacts=False)
    coarse = World(dt=5 * fine.dt, substeps=1, contacts=False)
    start = fine.reset(300, gen(), speed=0.8)
    forces = fine.random_forces(300, 5, gen(1))
    states, _ = fine.rollout(start, forces)
    ends, _ = coarse.rollout(start, forces, clip_frames=1)
    flown = start[:, None, :, :2] + start[:, None, :, 2:] * fine.dt * 25
    assert (flown.abs() > 1).any(-1).any(-1).sum() > 50                   # walls play a part
    torch.testing.assert_close(ends, states[:, 4::5], atol=5e-5, rtol=0)


# Walls and contacts under force

# Number of bodies -> name -> start (x, y, vx, vy of each body), force (fx, fy of each body).
REACH = 0.08 + 0.08 * math.sqrt(2)              # of masses 1 and 2
PUSHED = {
    1: {
        "rests on a wall": ([[0.92, 0.1, 0, 0]], [2, 0]),
        "rests in a corner": ([[0.92, -0.92, 0, 0]], [2, -2]),
        "dropped on a wall": ([[0, 0, 0, 0]], [2, 0.3]),
        "into a corner": ([[0.5, 0.2, 0.3, -0.4]], [1.5, 1.1]),
    },
    2: {
        "rests as a pair": ([[-0.08, 0, 0, 0], [REACH - 0.08, 0, 0, 0]], [1, 0, -1, 0]),
        "pressed together": ([[-0.4, 0.02, 0, 0], [0.4, 0, 0, 0]], [2, 0, -2, 0]),
        "into a corner": ([[0.5, 0.2, 0, 0], [0, 0, 0, 0]], [1, 2, 2, 1]),
    },
    3: {
        "all over the box": ([[0.5, 0.2, 0.3, 0], [0, 0, 0, 0.2], [-0.6, 0.3, 0, 0]],
                             [1, 0.5, -1, 2, 0.7, -1]),
        "into a corner": ([[0.9, 0.2, 0, 0], [0.6, 0.3, 0, 0], [0.2, 0.3, 0, 0]],
                          [1, 1, 2, 1, 2, 2]),
        "a row against a wall": ([[0.92, 0, 0, 0], [0.92 - REACH, 0, 0, 0], [0.2, 0, 0, 0]],
                                 [0, 0, 0, 0, 2, 0]),
    },
}


def energy_error(masses, start, states, force):
    """Change of kinetic energy less the work of forces (n, A) that are held -> (n,), largest."""
    path = torch.cat([start[:, None], states], 1)
    steps = (path[:, 1:, :, :2] - path[:, :-1, :, :2]).double()
    held = force.unflatten(-1, (-1, 2))[:, None]                          # (n, 1, bodies, 2)
    work = (held * steps).sum((2, 3)).cumsum(1)
    gained = energy(path[:, 1:], masses) - energy(path[:, :1], masses)
    return (gained - work).abs().amax(1)


@pytest.mark.parametrize("bodies", PUSHED)
@pytest.mark.parametrize("dtype, frames, tolerance", [(torch.float32, 3000, 1e-4),
                                                      (torch.float64, 500, 1e-9)])
def test_work_is_the_change_of_kinetic_energy(bodies, dtype, frames, tolerance):
    """Over 3,000 frames, 12,000 substeps, with thousands of bounces. What rests stays."""
    world = World((1.0, 2.0, 4.0)[:bodies])
    cases = PUSHED[bodies]
    start = torch.tensor([start for start, _ in cases.values()], dtype=dtype)
    force = torch.tensor([force for _, force in cases.values()], dtype=dtype)
    states, _ = world.rollout(start, force[:, None], frames)
    errors = energy_error(world.masses, start, states, force)
    assert errors.max() < tolerance, dict(zip(cases, errors.tolist()))
    wall = 1 - torch.tensor(world.radii, dtype=dtype)[:, None]
    assert (states[..., :2].abs() <= wall + 1e-6).all()
    for name, film, begin in zip(cases, states, start):
        moved = (film - begin).abs()
        if name.startswith("rests"):
            assert moved[..., :2].max() < 1e-5, name
            assert moved[..., 2:].max() < 1e-3, name
        else:
            assert moved[..., :2].max() > 0.1, name


def test_a_dropped_body_bounces_to_the_same_height():
    states, _ = World((1.0,)).rollout(torch.zeros(1, 1, 4).double(),
                                      torch.tensor([[[2.0, 0.0]]]).double(), 1500)
    x = states[0, :, 0, 0]
    assert x.min() > -1e-3
    heights = x[1:-1][(x[1:-1] < x[:-2]) & (x[1:-1] < x[2:])]             # turning points
    assert len(heights) > 25
    assert heights.max() < 1e-3


def test_random_worlds_neither_gain_nor_lose_energy():
    """200 worlds, 400 frames. Where three bodies or a wall meet in one substep, order costs a
    little: so the mean is asked, and a loose bound for each."""
    world = World()
    start = world.reset(200, gen()).double()
    forces = world.random_forces(200, 16, gen(1)).double()
    states, contacts = world.rollout(start, forces, 25)
    path = torch.cat([start[:, None], states], 1)
    force = forces.repeat_interleave(25, 1).unflatten(-1, (3, 2))
    steps = path[:, 1:, :, :2] - path[:, :-1, :, :2]
    work = (force * steps).sum((2, 3)).cumsum(1)
    gained = energy(path[:, 1:], world.masses) - energy(path[:, :1], world.masses)
    error = (gained - work).abs().amax(1)
    assert contacts.any(1).float().mean() > 0.95
    assert error.mean() < 1e-4
    assert error.median() < 1e-9
    assert error.max() < 1e-2


@pytest.mark.parametrize("masses, frames", [((1.0,), 60), ((1.0, 2.0), 30), ((1.0, 2.0, 4.0), 30)])
def test_agrees_with_the_exact_solution_under_force(masses, frames):
    """Constant random forces, 80 worlds: nearly all end where the event-driven solution does."""
    world = World(masses)
    start = world.reset(80, gen(5), speed=0.6).double()
    forces = world.random_forces(80, 1, gen(6)).double()
    states, contacts = world.rollout(start, forces, frames)
    errors = []
    for i in range(80):
        true, _ = exact_with_forces(start[i].numpy(), forces[i].numpy(), masses, world.radii,
                                    frames * world.dt)
        errors.append(np.abs(true - states[i, -1].numpy())[:, :2].max())
    errors = np.array(errors)
    assert np.median(errors) < 1e-9
    assert np.percentile(errors, 90) < 1e-6
    met = contacts.any(1).numpy()
    if len(masses) > 1:
        assert met.sum() > 10
        assert np.median(errors[met]) < 1e-7


def test_walls_hold_at_any_speed():
    """The path is folded as often as needed: 3 half boxes in a substep, 12 in a frame."""
    states, _ = coast(World((1.0,)), torch.tensor([[[0.5, 0.0, 300.0, -777.0]]]), 20)
    assert (states[..., :2].abs() <= 0.92 + 1e-5).all()
    room = 2 * 0.92
    for axis, speed in ((0, 300.0), (1, -777.0)):
        place = torch.tensor([0.5, 0.0])[axis] + 0.92 + speed * 0.04      # from the left wall
        place = place % (2 * room)
        place = torch.minimum(place, 2 * room - place) - 0.92
        assert states[0, 0, 0, axis].item() == pytest.approx(place.item(), abs=1e-3)


def test_fast_bodies_do_not_pass_through_each_other():
    """Head on at a speed of 20 each they would change places within two substeps."""
    start = torch.tensor([[[-0.3, 0.0, 20.0, 0.0], [0.3, 0.0, -20.0, 0.0]]])
    states, contacts = coast(World((1.0, 1.0)), start, 1)
    assert contacts.all()
    assert states[0, 0, 0, 0] < states[0, 0, 1, 0]


def test_a_graze_within_a_substep_is_seen():
    """Apart at the start and at the end of the substep, and closer than they may be between."""
    start = torch.tensor([[[-0.005, 0.0, 1.0, 0.0], [0.0, 0.15999, 0.0, 0.0]]])
    states, contacts = coast(World((1.0, 1.0)), start, 1)
    assert contacts.all()
    assert states[0, 0, 1, 3] > 0


# `_collide` alone: x, v (bodies, 2, N) and contact (N,), all changed in place

def crowd(world, n, speed=1.0, seed=0):
    """-> x, v of bodies drawn so close together that many overlap; contact, all False."""
    bodies = len(world.masses)
    x = 0.25 * torch.randn(bodies, 2, n, generator=gen(seed))
    v = speed * torch.randn(bodies, 2, n, generator=gen(seed + 1))
    return x, v, torch.zeros(n, dtype=torch.bool)


def state_of(x, v):
    """x, v (bodies, 2, N) -> state (N, bodies, 4)."""
    return torch.cat([x, v], 1).permute(2, 0, 1)


@pytest.mark.parametrize("masses", [(1.0, 2.0), (1.0, 2.0, 4.0), (0.3,) * 6])
def test_collide_keeps_momentum_energy_and_the_centre_of_mass(masses):
    """Also where several bodies overlap at once: pairs take turns, so no energy is created."""
    world = World(masses)
    x, v, contact = crowd(world, 4000)
    before = state_of(x, v).clone()
    world._collide(x, v, torch.zeros_like(x), 0.01, contact)
    after = state_of(x, v)
    assert contact.sum() > 300
    torch.testing.assert_close(momentum(after, masses), momentum(before, masses), atol=1e-5, rtol=0)
    torch.testing.assert_close(energy(after, masses), energy(before, masses), atol=0, rtol=1e-5)
    weights = torch.tensor(masses)[:, None]
    centre = (weights * before[..., :2]).sum(1)
    torch.testing.assert_close((weights * after[..., :2]).sum(1), centre, atol=1e-5, rtol=0)


def test_collide_touches_only_worlds_with_a_contact():
    world = World()
    x, v, contact = crowd(world, 4000)
    old_x, old_v = x.clone(), v.clone()
    world._collide(x, v, torch.zeros_like(x), 0.01, contact)
    assert contact.any()
    assert not contact.all()
    changed = (v != old_v).flatten(0, 1).any(0)
    assert torch.equal(changed, contact)
    assert torch.equal(x[..., ~contact], old_x[..., ~contact])


def test_collide_never_takes_back_an_earlier_contact():
    """contact gathers over the substeps of a frame."""
    world = World()
    x = torch.tensor([[-0.5, 0.0], [0.0, 0.5], [0.5, 0.0]])[..., None]
    contact = torch.ones(1, dtype=torch.bool)
    world._collide(x, torch.zeros(3, 2, 1), torch.zeros(3, 2, 1), 0.01, contact)
    assert contact.all()


def test_collide_leaves_parting_bodies_alone():
    world = World((1.0, 2.0))
    x, v, contact = crowd(world, 2000)
    away = x[0] - x[1]
    v[0] = away
    v[1] = -away
    old_x, old_v = x.clone(), v.clone()
    assert (away.norm(dim=0) < sum(world.radii)).sum() > 50
    world._collide(x, v, torch.zeros_like(x), 0.01, contact)
    assert not contact.any()
    assert torch.equal(x, old_x)
    assert torch.equal(v, old_v)


@given(st.floats(0.0, 1.0), st.floats(-0.9, 0.9), st.floats(0.3, 8), st.floats(0.3, 8))
def test_collide_turns_velocities_at_the_moment_of_contact(part, offset, m1, m2):
    """Two bodies that touch after a part of the step: what `_collide` leaves, flown for the step,
    ends where the new velocities lead from the contact in the rest of the time."""
    world = World((m1, m2), radius=0.05)
    reach = sum(world.radii)
    dt = 0.01
    n = np.array([math.sqrt(1 - offset ** 2), offset])                    # line of centres
    touch = np.stack([reach * n, 0 * n])
    v = np.array([[-1.0, 0.2], [0.5, 0.1]])
    w = v[0] - v[1]
    if w @ n > -1e-2:
        return                                                            # they graze or part
    turned = -2 * (w @ n) * n
    after = v + np.stack([m2 / (m1 + m2) * turned, -m1 / (m1 + m2) * turned])
    before = part * dt
    x = torch.tensor((touch - before * v)[..., None])
    now = torch.tensor(v[..., None])
    contact = torch.zeros(1, dtype=torch.bool)
    world._collide(x, now, torch.zeros_like(x), dt, contact)
    end = (x + now * dt)[..., 0].numpy()
    if not contact.all():
        assert dt - before < 1e-9                                         # it comes too late
        return
    np.testing.assert_allclose(end, touch + (dt - before) * after, atol=1e-9)
    np.testing.assert_allclose(now[..., 0].numpy(), after, atol=1e-7)


def test_collide_survives_a_deep_overlap_and_equal_places():
    """A force can push bodies into each other by more than a step. Time goes back by one step at
    most, and nothing divides by zero."""
    world = World((1.0, 2.0))
    x = torch.tensor([[[0.0, 0.0, 0.001], [0.0, 0.0, 0.0]],
                      [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])                # (bodies, 2, 3 worlds)
    v = torch.tensor([[[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]],
                      [[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]])
    before = state_of(x, v).clone()
    contact = torch.zeros(3, dtype=torch.bool)
    world._collide(x, v, torch.zeros_like(x), 0.01, contact)
    assert x.isfinite().all()
    assert v.isfinite().all()
    torch.testing.assert_close(energy(state_of(x, v), world.masses), energy(before, world.masses))
    moved = (state_of(x, v) - before)[..., :2].norm(dim=-1)
    assert moved.max() < 0.05                                             # a step at these speeds


# The whole rollout

def exact(state, masses, radii, dt, frames):
    """One force-free world, from event to event, in float64. (bodies, 4) -> (frames, bodies, 4).

    Between events bodies fly straight. A wall is met where a line crosses it, a body where the
    quadratic |d + s w| = r_i + r_j has its first root; then the textbook impulse acts.
    """
    x = np.array(state[:, :2], dtype=np.float64)
    v = np.array(state[:, 2:], dtype=np.float64)
    limit = 1 - np.array(radii)[:, None] * np.ones(2)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    now = 0.0
    out = []
    while len(out) < frames:
        # Which event comes first?
        with np.errstate(divide="ignore"):
            wall = np.where(v == 0, np.inf, (np.sign(v) * limit - x) / v).clip(0)
        soonest = wall.min()
        event = np.unravel_index(wall.argmin(), wall.shape)
        for i, j in pairs:
            d = x[i] - x[j]
            w = v[i] - v[j]
            reach = radii[i] + radii[j]
            root = (d @ w) ** 2 - (w @ w) * (d @ d - reach ** 2)
            if d @ w < 0 and root > 0:
                meet = max((-(d @ w) - math.sqrt(root)) / (w @ w), 0.0)
                if meet < soonest:
                    soonest = meet
                    event = "pair", i, j
        # Film until then, then let it happen.
        while len(out) < frames and (len(out) + 1) * dt <= now + soonest:
            place = x + v * ((len(out) + 1) * dt - now)
            out.append(np.concatenate([place, v], 1))
        x = x + v * soonest
        now = now + soonest
        if event[0] != "pair":
            v[event] *= -1
            continue
        _, i, j = event
        n = (x[i] - x[j]) / np.linalg.norm(x[i] - x[j])
        push = 2 * ((v[i] - v[j]) @ n) / (masses[i] + masses[j]) * n
        v[i] = v[i] - masses[j] * push
        v[j] = v[j] + masses[i] * push
    return np.stack(out)


def test_agrees_with_the_exact_solution():
    """300 worlds, 25 frames, every frame compared. Nearly all agree to float32 rounding. A few may
    not: a graze inside one substep is missed, and a contact magnifies the rounding of the last."""
    world = World()
    start = world.reset(300, gen(3), speed=0.6)
    states, contacts = coast(world, start, 25)
    true = np.stack([exact(s.numpy(), world.masses, world.radii, world.dt, 25) for s in start])
    error = np.abs(true - states.numpy())[..., :2].max((1, 2, 3))
    met = contacts.any(1).numpy()
    assert met.sum() > 60
    for group in (error, error[met]):
        assert np.median(group) < 1e-5
    assert np.percentile(error, 95) < 1e-4


def test_a_contact_is_noted_in_the_frame_in_which_it_happens():
    """Two bodies that meet head-on after 0.1 s: in frame 3 of 0.04 s, and in no other."""
    world = World((1.0, 1.0), radius=0.1)
    start = torch.tensor([[[-0.2, 0.0, 1.0, 0.0], [0.2, 0.0, -1.0, 0.0]]])
    _, contacts = coast(world, start, 8)
    assert contacts[0].tolist() == [False, False, True] + [False] * 5


def test_a_batch_is_its_worlds_bit_for_bit():
    world = World()
    start = world.reset(40, gen(), speed=0.8)
    forces = world.random_forces(40, 8, gen(1))
    states, contacts = world.rollout(start, forces)
    assert contacts.any()
    for i in range(40):
        alone, contact = world.rollout(start[i:i + 1], forces[i:i + 1])
        assert torch.equal(alone[0], states[i])
        assert torch.equal(contact[0], contacts[i])


def test_a_nan_does_not_spread_to_other_worlds():
    world = World()
    start = world.reset(30, gen(), speed=0.8)
    forces = world.random_forces(30, 8, gen(1))
    clean, _ = world.rollout(start, forces)
    start[7, 1, 0] = math.nan
    forces[11, 3, 2] = math.nan
    states, _ = world.rollout(start, forces)
    broken = torch.zeros(30, dtype=torch.bool)
    broken[[7, 11]] = True
    assert states[broken].isnan().flatten(1).any(1).all()
    assert torch.equal(states[~broken], clean[~broken])


@pytest.mark.parametrize("masses", [(1.0, 2.0, 4.0), (1.0,)])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_rollout_keeps_its_inputs(masses, n):
    world = World(masses)
    start = world.reset(n, gen())
    forces = world.random_forces(n, 3, gen(1))
    kept_start, kept_forces = start.clone(), forces.clone()
    states, _ = world.rollout(start, forces)
    kept_states = states.clone()
    world.rollout(states[:, -1], forces)
    assert torch.equal(start, kept_start)
    assert torch.equal(forces, kept_forces)
    assert torch.equal(states, kept_states)


@pytest.mark.parametrize("state, forces", [((4, 2, 4), (4, 3, 6)), ((4, 3, 4), (4, 3, 3)),
                                           ((4, 3, 4), (4, 3, 4))])
def test_the_wrong_number_of_bodies_is_noticed(state, forces):
    with pytest.raises(AssertionError):
        World().rollout(torch.zeros(state), torch.zeros(forces))


def test_observation_has_about_unit_variance():
    """The scale fits flight under random forces, not only the start."""
    world = World()
    states, _ = world.rollout(world.reset(500, gen()), world.random_forces(500, 6, gen(1)))
    seen = world.observe(states)
    assert seen.shape == (500, 30, 12)
    assert torch.equal(seen[..., 4:6], states[..., 1, :2] * torch.tensor(1 / 0.55))
    assert torch.equal(seen[..., 6:8], states[..., 1, 2:] * 2)
    assert seen.std((0, 1)).min() > 0.5
    assert seen.std((0, 1)).max() < 2
