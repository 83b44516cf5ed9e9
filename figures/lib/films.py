"""Matched pairs of films: the same start and the same forces, a law of the world broken in one.

A film is a tensor of states (n, frames, bodies, 4). Each rule is a function: Scene -> Broken. It
breaks its law after the first clip; what it does is said in figures/surprise.py.
"""
import collections

import hjepa
import torch

from lib import worlds

# A body must end this far from its lawful place, in half boxes.
MATTERS = 0.1

# The shortest teleport, in half boxes.
LONG_JUMP = 0.3

# The slowest body that may turn round, in half boxes a second.
FAST = 0.3

CONTROL = "lawful contact (control)"

# A film with a law broken, the first frame that may differ (n,), and which films are fit (n,).
Broken = collections.namedtuple("Broken", "film event fit")

# n pairs. clip (n, T, bodies, 4): the common start. films: the lawful and the broken one,
# (n, frames, bodies, 4) each. forces: of each film, (n, K, A). event (n,): the first frame that may
# differ. fit: the share of starts that were fit.
Pairs = collections.namedtuple("Pairs", "clip films forces event fit")


class Springs(hjepa.World):
    """A contact leaves both bodies 1.5 times as fast as it should."""

    def _collide(self, x, v, a, dt, contact):
        before = v.clone()
        super()._collide(x, v, a, dt, contact)
        changed = (v != before).any(1, keepdim=True)
        v.mul_(1 + 0.5 * changed)


class Scene:
    """n lawful films, and the generator from which a rule may draw.

    clip (n, T, bodies, 4): what is seen before; start (n, bodies, 4): its last frame; states
    (n, frames, bodies, 4) and contacts (n, frames): the film; forces (n, K, A).
    """

    def __init__(self, world, config, n, gen):
        states, forces, contacts = hjepa.make_sequences(world, n, config.event_clips + 1, gen,
                                                        config.clip_frames, config.start_speed)
        self.world = world
        self.config = config
        self.n = n
        self.gen = gen
        self.clip = states[:, 0]
        self.start = states[:, 0, -1]
        self.states = states[:, 1:].flatten(1, 2)
        self.contacts = contacts[:, 1:].flatten(1)
        self.forces = forces
        self.frames = self.contacts.shape[1]
        self.bodies = states.shape[3]
        self.all = torch.arange(n)

    def film_in(self, world):
        """-> the film of the same start and forces in another world."""
        film, _ = world.rollout(self.start, self.forces, self.config.clip_frames)
        return film

    def draw_event(self):
        """-> a frame (n,), and a body as a mask (n, bodies, 1), at random."""
        event = torch.randint(self.frames, (self.n,), generator=self.gen)
        body = torch.randint(self.bodies, (self.n, 1), generator=self.gen)
        mask = torch.arange(self.bodies) == body
        return event, mask[..., None]

    def edited(self, event, edit):
        """-> the film, with its state replaced by edit(state) in frame `event`, lawful after it."""
        state = self.start
        film = []
        forces = self.forces.repeat_interleave(self.config.clip_frames, 1)
        for frame in range(self.frames):
            states, _ = self.world.rollout(state, forces[:, frame:frame + 1], 1)
            now = (event == frame)[:, None, None]
            state = torch.where(now, edit(states[:, 0]), states[:, 0])
            film.append(state)
        return torch.stack(film, 1)


def from_contact(scene, film):
    """A film that differs from the first contact on -> Broken."""
    first = scene.contacts.int().argmax(1)
    return Broken(film, first, scene.contacts.any(1))


def pass_through(scene):
    """Bodies fly through each other."""
    return from_contact(scene, scene.film_in(hjepa.without_contacts(scene.world)))


def energy_injection(scene):
    """A contact leaves both bodies 1.5 times as fast."""
    springs = worlds.same_box(Springs, scene.config)
    return from_contact(scene, scene.film_in(springs))


def gaps(place, radius):
    """place (n, bodies, 2), radius (bodies,) -> (n, bodies, bodies): between surfaces. A body is
    far from itself."""
    distance = (place[:, :, None] - place[:, None]).norm(dim=-1)
    return distance - radius[:, None] - radius + 10 * torch.eye(len(radius))


def teleport(scene):
    """A body jumps to another free place and flies on."""
    event, body = scene.draw_event()
    radius = torch.tensor(scene.world.radii)
    unit = torch.rand(scene.n, scene.bodies, 2, generator=scene.gen)
    place = (2 * unit - 1) * (1 - radius)[:, None]
    moved = body & torch.tensor([True, True, False, False])

    def edit(state):
        elsewhere = torch.cat([place, state[..., 2:]], -1)
        return torch.where(moved, elsewhere, state)
    film = scene.edited(event, edit)
    after = film[scene.all, event, :, :2]
    before = scene.states[scene.all, event, :, :2]
    free = (gaps(after, radius) > 0).flatten(1).all(1)
    jump = (after - before).norm(dim=-1).amax(1)
    return Broken(film, event, free & (jump >= LONG_JUMP))


def velocity_flip(scene):
    """The velocity of a body turns round."""
    event, body = scene.draw_event()

    def edit(state):
        turned = state * state.new_tensor([1, 1, -1, -1])
        return torch.where(body, turned, state)
    film = scene.edited(event, edit)
    speed = film[scene.all, event, :, 2:].norm(dim=-1)
    speed_of_body = (speed * body[..., 0]).amax(1)
    return Broken(film, event, speed_of_body >= FAST)


def mass_swap(scene):
    """Two bodies of different mass exchange it, but not their size."""
    masses = scene.config.masses
    swaps = []
    for i in range(len(masses)):
        for j in range(i):
            if masses[i] != masses[j]:
                swaps.append((i, j))
    which = torch.randint(max(1, len(swaps)), (scene.n,), generator=scene.gen)
    film = scene.states.clone()
    for number, (i, j) in enumerate(swaps):
        swapped = list(masses)
        swapped[i] = masses[j]
        swapped[j] = masses[i]
        world = worlds.same_box(hjepa.World, scene.config)
        world.masses = tuple(swapped)                                     # The radii stay.
        chosen = which == number
        film[chosen], _ = world.rollout(scene.start[chosen], scene.forces[chosen],
                                        scene.config.clip_frames)
    event = torch.zeros(scene.n, dtype=torch.long)
    return Broken(film, event, torch.ones(scene.n, dtype=torch.bool))


def first_wall(scene, acceleration):
    """acceleration (n, frames, bodies, 2) -> the first frame in which a body meets a wall (n,), its
    coordinate as a mask (n, bodies, 2), and whether there is one (n,).

    A wall is where velocity changes by more than the force explains and no bodies met.
    """
    path = torch.cat([scene.start[:, None], scene.states], 1)
    change = path[:, 1:, :, 2:] - path[:, :-1, :, 2:]
    unexplained = (change - acceleration * scene.config.dt).abs() > 1e-3
    turns = (unexplained & ~scene.contacts[..., None, None]).flatten(2)   # (n, frames, 2 bodies)
    event = turns.any(-1).int().argmax(1)
    coordinate = turns[scene.all, event].int().argmax(1)
    mask = torch.arange(turns.shape[-1]) == coordinate[:, None]
    return event, mask.unflatten(1, (-1, 2)), turns.any(-1).any(1)


def wall_tunnelling(scene):
    """A body flies on beyond the wall.

    Without contacts the axes are independent, so only the coordinate that meets the wall changes.
    """
    dt = scene.config.dt
    masses = torch.tensor(scene.world.masses)[:, None]
    acceleration = scene.forces.unflatten(-1, (-1, 2)) / masses
    acceleration = acceleration.repeat_interleave(scene.config.clip_frames, 1)
    event, coordinate, met_wall = first_wall(scene, acceleration)
    state = scene.start
    film = []
    for frame in range(scene.frames):
        a = acceleration[:, frame]
        x, v = state.split(2, -1)
        next_x = x + v * dt + a * dt * dt / 2
        next_v = v + a * dt
        free = torch.cat([next_x, next_v], -1)
        beyond = coordinate & (frame >= event)[:, None, None]             # (n, bodies, 2)
        state = torch.where(beyond.repeat(1, 1, 2), free, scene.states[:, frame])
        film.append(state)
    after = torch.arange(scene.frames) >= event[:, None]
    met_body = (scene.contacts & after).any(1)
    return Broken(torch.stack(film, 1), event, met_wall & ~met_body)


RULES = {"pass-through": pass_through, "energy injection": energy_injection, "teleport": teleport,
         "velocity flip": velocity_flip, "mass swap": mass_swap, "wall tunnelling": wall_tunnelling}


def candidates(rule, scene):
    """-> clip, lawful film, broken film, forces of each, event; and which pairs are fit (n,).

    Fit pairs end with a body at least MATTERS from its lawful place. The control breaks no law: in
    the place of the broken film it has a lawful one with a contact that matters, and in the place
    of the lawful one the same start under other forces, without a contact.
    """
    broken = RULES["pass-through" if rule == CONTROL else rule](scene)
    gap = hjepa.distance(broken.film[:, -1], scene.states[:, -1])
    fit = broken.fit & (gap.amax(1) >= MATTERS)
    if rule != CONTROL:
        pairs = (scene.clip, scene.states, broken.film, scene.forces, scene.forces, broken.event)
        return pairs, fit
    config = scene.config
    other = scene.world.random_forces(scene.n, config.event_clips, scene.gen)
    flight, contacts = scene.world.rollout(scene.start, other, config.clip_frames)
    pairs = (scene.clip, flight, scene.states, other, scene.forces, broken.event)
    return pairs, fit & ~contacts.any(1)


def make_pairs(rule, world, config, n, seed):
    """-> Pairs. rule: a key of RULES, or CONTROL. Refusal if hardly any start is fit."""
    # The purpose decides which worlds are drawn, so the control keeps the purpose of its old name.
    purpose = "lawful hit (control)" if rule == CONTROL else rule
    gen = hjepa.generator(seed, "surprise, " + purpose)
    parts = []
    tried = 0
    found = 0
    while found < n:
        scene = Scene(world, config, 4 * n + 64, gen)
        pairs, fit = candidates(rule, scene)
        parts.append([x[fit] for x in pairs])
        tried += scene.n
        found += int(fit.sum())
        if tried > 100 * n + 10_000:
            raise hjepa.Refusal(f"{rule}: only {found} of {tried} starts are fit, {n} are wanted: "
                                "it needs bodies that meet, of different mass")
    whole = [torch.cat(part)[:n] for part in zip(*parts)]
    clip, lawful, broken, lawful_forces, broken_forces, event = whole
    return Pairs(clip, (lawful, broken), (lawful_forces, broken_forces), event, found / tried)
