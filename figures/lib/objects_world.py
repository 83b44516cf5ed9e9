"""Worlds of any number of bodies and any masses, as a model of objects sees them.

Of a body and a frame it sees PER_BODY numbers, in pairs, so that hjepa.reflect knows them:

    x, y, vx, vy   as hjepa.World.observe has them
    fx, fy         the force that acts in this clip, if it is told, else 0
    m, m           2 + log2(mass), if it is told, else 0
    h, h           1 if the frame is hidden (see `hide`), else 0

The encoder takes the absolute values of the last four, which no mirror changes.
"""
import dataclasses

import hjepa
import torch

PER_BODY = 10
FORCE, MASS, HIDDEN = slice(4, 6), slice(6, 8), slice(8, 10)

# Sequences that have their masses in common, where masses differ from world to world. Each such
# group is simulated apart: hjepa.World has one list of masses.
GROUP = 48

LIGHTEST, HEAVIEST = 0.5, 8.0                   # of masses that are drawn


def config_of(config, masses):
    """Config -> the same with other masses, and as many substeps as the lightest body needs."""
    masses = tuple(float(mass) for mass in masses)
    wide = dataclasses.replace(config, masses=masses, substeps=1000)
    substeps = max(config.substeps, wide.needed_substeps())
    return dataclasses.replace(wide, substeps=substeps)


def draw_masses(n, bodies, gen):
    """-> masses (n, bodies), log-uniform from LIGHTEST to HEAVIEST."""
    unit = torch.rand(n, bodies, generator=gen)
    return LIGHTEST * (HEAVIEST / LIGHTEST) ** unit


def observe(states, masses=None, forces=None, limit=2.0):
    """states (..., T, bodies, 4) of clips -> (..., T, PER_BODY bodies).

    masses (bodies,) or (N, bodies), forces (..., bodies 2) that act in each clip: what is told of
    them; None is nothing. N is the first axis of states. limit: the world's force_limit.
    """
    *lead, frames, bodies, _ = states.shape
    seen = states.new_zeros(*lead, frames, bodies, PER_BODY)
    seen[..., :4] = hjepa.World.observe(None, states).unflatten(-1, (bodies, 4))
    if forces is not None:
        push = forces.unflatten(-1, (bodies, 2)) * (3 ** 0.5 / limit)     # about unit variance
        seen[..., FORCE] = push[..., None, :, :]
    if masses is not None:
        code = 2 + masses.to(states).log2()
        if code.ndim > 1:
            code = code.reshape(len(code), *[1] * (len(lead)), bodies)
        seen[..., MASS] = code[..., None]
    return seen.flatten(-2)


def hide(obs, body):
    """obs (B, T, F), body (B,), -1: none -> the same; of that body only the first frame is seen.

    As in C-JEPA the first frame stays as an anchor, and the mass: they say who is missing. Where it
    went must be inferred from them and from the other bodies.
    """
    seen = obs.unflatten(-1, (-1, PER_BODY))                              # (B, T, bodies, 10)
    number = torch.arange(seen.shape[2], device=obs.device)
    hidden = (number == body[:, None])[:, None, :, None]                  # (B, 1, bodies, 1)
    later = torch.arange(seen.shape[1], device=obs.device) > 0
    hidden = hidden & later[:, None, None]
    blank = torch.zeros_like(seen)
    blank[..., MASS] = seen[..., MASS]
    blank[..., HIDDEN] = 1
    return torch.where(hidden, blank, seen).flatten(-2)


class Boxes:
    """N worlds that advance together, each with masses of its own; for hjepa.replan.

    masses (N, bodies), or (1, bodies) for any number of worlds.  tells: what a model is told beside
    states, of "mass" and "force".  objects: whether it sees them as `observe` does, else as
    hjepa.World does.  believed: the masses that it is told, if they are not the true ones.
    free (N, A): 0 for the numbers of a force that are always 0, else 1.
    The simulator runs on the CPU: in small groups it is launched faster there.
    """

    def __init__(self, config, masses, tells=(), objects=True, believed=None, free=None):
        self.masses = masses
        self.believed = masses if believed is None else believed
        self.tells = tells
        self.objects = objects
        self.free = free
        self.force_limit = config.force_limit
        self.actions = 2 * masses.shape[1]
        self.acting = None                      # the forces of the last clip that was filmed
        rows, number = torch.unique(masses, dim=0, return_inverse=True)
        self.groups = []
        for i, row in enumerate(rows):
            world = hjepa.build_world(config_of(config, row))
            self.groups.append((world, (number == i).nonzero()[:, 0]))

    def rollout(self, state, forces, clip_frames=5):
        """As hjepa.World.rollout, each world with its masses."""
        device = state.device
        state = state.cpu()
        forces = self.freed(forces).cpu()
        if len(self.masses) == 1:
            states, contacts = self.groups[0][0].rollout(state, forces, clip_frames)
        else:
            frames = forces.shape[1] * clip_frames
            states = state.new_empty(len(state), frames, *state.shape[1:])
            contacts = torch.empty(len(state), frames, dtype=torch.bool)
            for world, pick in self.groups:
                states[pick], contacts[pick] = world.rollout(state[pick], forces[pick], clip_frames)
        self.acting = forces[:, -1].to(device)
        return states.to(device), contacts.to(device)

    def freed(self, forces):
        """forces (N, ..., A) -> the same with 0 where no force may act."""
        if self.free is None:
            return forces
        free = self.free.to(forces)
        return forces * free.reshape(len(free), *[1] * (forces.ndim - 2), -1)

    def observe(self, states, forces=None):
        """states (N, ..., T, bodies, 4), forces (N, ..., A) of the clips -> what the model sees."""
        if not self.objects:
            return hjepa.World.observe(None, states)
        masses = None
        if "mass" in self.tells:
            masses = self.believed[0] if len(self.believed) == 1 else self.believed
        return observe(states, masses, forces if "force" in self.tells else None, self.force_limit)

    def now(self, states):
        """As observe, of the last clip that was filmed; before the first one no force has acted."""
        return self.observe(states, self.acting)


# ---- training sequences

def run_data(config, device, masked):
    """The run's own training sequences -> obs (n, K, T, F) with masses told, forces, and (n, 2):
    shares (see hjepa.prediction_errors) and the body that is hidden; -1: none.

    masked: in half of the sequences a body is hidden, drawn at random.
    """
    world = hjepa.build_world(config)
    states, forces, shares = hjepa.draw_training(world, config, device)
    obs = observe(states, torch.tensor(config.masses, device=device))
    body = torch.full((len(obs),), -1)
    if masked:
        gen = hjepa.generator(config.seed, "hidden bodies")
        draw = torch.randint(2 * len(config.masses), (len(obs),), generator=gen)
        body = torch.where(draw < len(config.masses), draw, -1)
    return obs, forces, torch.stack([shares, body.to(device)], 1)


def film(config, masses, n, gen):
    """n sequences of one world -> states (n, K, T, bodies, 4), forces (n, K, A) and contacts
    (n, K, T).

    Force k acts in clip k. In every other sequence none acts in clip 0: so much is then known, and
    no more, before the first force.
    """
    world = hjepa.build_world(config_of(config, masses))
    clips = config.event_clips + 1
    start = world.reset(n, gen, config.start_speed)
    forces = world.random_forces(n, clips, gen)
    forces[::2, 0] = 0
    states, contacts = world.rollout(start, forces, config.clip_frames)
    shape = (clips, config.clip_frames)
    return states.unflatten(1, shape), forces, contacts.unflatten(1, shape)


def drawn_data(config, tells, device):
    """Training sequences in worlds of drawn masses -> as run_data, no body hidden.

    The share of sequences with a contact is the run's, as far as there are as many in four times
    the sequences that are kept.
    """
    groups = max(1, config.sequences // GROUP)
    sizes = [len(part) for part in torch.arange(config.sequences).chunk(groups)]
    gen = hjepa.generator(config.seed, "masses")
    masses = draw_masses(len(sizes), len(config.masses), gen)
    parts = []
    for i in hjepa.progress(range(len(sizes)), "worlds", len(sizes)):
        n = sizes[i]
        states, forces, contacts = film(config, masses[i], 4 * n,
                                        hjepa.generator(config.seed, "drawn masses", i))
        meet = contacts[:, 1:].flatten(1).any(1)
        wanted = round(config.contact_share * n) if config.contact_share else int(meet[:n].sum())
        order = torch.cat([meet.nonzero()[:wanted, 0], (~meet).nonzero()[:, 0]])[:n]
        kept = meet[order]
        ordinary = meet.float().mean()
        share = torch.where(kept, ordinary / kept.float().mean().clamp_min(1e-6),
                            (1 - ordinary) / (~kept).float().mean().clamp_min(1e-6))
        seen = observe(states[order], masses[i] if "mass" in tells else None,
                       forces[order] if "force" in tells else None, config.force_limit)
        parts.append((seen, forces[order, 1:], torch.stack([share, torch.full_like(share, -1)], 1)))
    return [torch.cat(part).to(device) for part in zip(*parts)]
