"""What is asked of a model of objects, and of the run beside it: plans, surprise, masses."""
import dataclasses

import hjepa
import torch

from lib import films, objects_model, surprises
from lib import objects_world as worlds

# How a model is asked. tells: as in worlds.Boxes. objects: False for a run of hjepa.py. believed:
# the mass that it is told of each body instead of the true one, or None.
@dataclasses.dataclass(frozen=True)
class Seer:
    """A model and what it sees. run: cli.Run."""
    run: object
    tells: tuple = ()
    objects: bool = True
    believed: float = None

    def boxes(self, masses, free=None):
        """masses (N, bodies) -> the worlds as this model sees them."""
        believed = None if self.believed is None else torch.full_like(masses, self.believed)
        return worlds.Boxes(self.run.config, masses, self.tells, self.objects, believed, free)


# ---- plans

@torch.no_grad()
def reach(seer, planner, case, pick, seed, device):
    """Goals `pick` of a case, side by side -> the states that the planner ends in (B, bodies, 4).

    planner: "zero" or a key of hjepa.SEARCHES. The noise of a search depends on seed, planner and
    the number of the goal.
    """
    config = seer.run.config
    masses = case["masses"] if len(case["masses"]) == 1 else case["masses"][pick]
    free = None if case["free"] is None else case["free"][pick]
    boxes = seer.boxes(masses, free)
    clip = case["clip"][pick].to(device)
    if "force" in seer.tells:                   # which one acted before is not known: none did
        clip = hjepa.goal_clip(boxes, clip[:, -1], config.clip_frames)
        boxes.acting = None
    goal = case["goal"][pick].to(device)
    forces = case["forces"][pick].to(device)
    clips = forces.shape[1]
    if planner == "zero":
        states, _ = boxes.rollout(clip[:, -1], torch.zeros_like(forces), config.clip_frames)
        return states[:, -1].cpu()

    level, control, from_guess = hjepa.SEARCHES[planner]
    make_cost = hjepa.macro_cost if level == "macro" else hjepa.short_cost
    aim = boxes.observe(goal, forces[:, -1])

    def cost_to_go(now, left):
        cost = make_cost(seer.run.model, boxes.now(now), aim)
        return lambda plans: cost(boxes.freed(plans))

    def guess(now, left):
        return hjepa.first_guess(seer.run.model, boxes.now(now), aim, left, config.force_limit)
    gens = [hjepa.generator(seed, planner, int(i)) for i in pick]
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)
    states, _ = control(boxes, clip, clips, cost_to_go, gens, guess if from_guess else None,
                        config.init_std, config.clip_frames, config.guess_std, **budget)
    return states[:, -1].cpu()


def plan_errors(seer, planner, case, label, device, together):
    """-> final distances (goals, bodies) of a planner in all goals of a case."""
    seed = seer.run.config.test_seed
    parts = torch.arange(len(case["goal"])).split(together)
    ends = [reach(seer, planner, case, pick, seed, device)
            for pick in hjepa.progress(parts, label, len(parts))]
    return hjepa.distance(torch.cat(ends), case["goal"][:, -1])


# ---- surprise

def pass_through(seer, n, device):
    """-> 1 or 0 for each of n pairs of films, by the short level in the clip of the contact and by
    the macro level: whether bodies that fly through each other surprise more than the lawful
    contact; dict of arrays (n,)."""
    config = seer.run.config
    pairs = films.make_pairs("pass-through", hjepa.build_world(config), config, n, config.test_seed)
    boxes = seer.boxes(torch.tensor(config.masses)[None])
    clip = pairs.event.numpy() // config.clip_frames
    short, macro = [], []
    for film, forces in zip(pairs.films, pairs.forces):
        error1, error2 = surprises.film_surprise(seer.run, boxes, pairs.clip, film, forces, device)
        short.append(error1[range(n), clip])
        macro.append(error2)
    levels = {"short": short, "macro": macro}
    return {level: surprises.wins(broken, lawful) for level, (lawful, broken) in levels.items()}


# ---- masses

FEWEST = 16                                     # bodies behind an R2
# The last two are of a prediction, P1 rolled out: is a mass that was found out remembered?
SITUATIONS = ("no force, no contact yet", "a contact, no force yet", "a clip of pushing",
              "a clip of pushing, deep tap", "three clips of pushing, mean",
              "pushing, then 5 clips imagined", "no force, then 5 clips imagined")


def struck(states):
    """states (N, T, bodies, 4) of a clip without forces -> whether a contact changed the velocity
    of a body (N, bodies). A wall only changes signs."""
    speed = states[..., 2:].abs()
    return ((speed[:, 1:] - speed[:, :1]).abs() > 1e-3).any(-1).any(1)


@torch.no_grad()
def mass_samples(seer, n, seed, device):
    """n sequences of drawn masses -> dict situation -> (embeddings of bodies (M, D), what was seen
    of them (M, T PER_BODY), log2 of their masses (M, 1)), of the bodies that are in it."""
    config = seer.run.config
    model = seer.run.model
    groups = max(2, n // worlds.GROUP)
    masses = worlds.draw_masses(groups, len(config.masses), hjepa.generator(seed, "probed masses"))
    found = {situation: [] for situation in SITUATIONS}
    for i in hjepa.progress(range(groups), "masses", groups):
        states, forces, contacts = worlds.film(config, masses[i], max(2, n // groups),
                                               hjepa.generator(seed, "probe masses", i))
        told = masses[i] if "mass" in seer.tells else None
        obs = worlds.observe(states, told, forces, config.force_limit).to(device)
        first, _ = model.context(obs[:, 0])
        later, deep = model.context(obs[:, 1])
        three = torch.stack([later, *[model.context(obs[:, k])[0] for k in (2, 3)]]).mean(0)
        imagined = model.rollout(first, forces[:, 1:].to(device))[:, -1]
        idle = (forces[:, 0] == 0).all(1)[:, None]
        hit = struck(states[:, 0])
        alone = ~contacts[:, 1].any(1)[:, None].expand_as(hit)
        long_alone = ~contacts[:, 1:4].flatten(1).any(1)[:, None].expand_as(hit)
        calm = ~contacts[:, 0].any(1)[:, None].expand_as(hit)
        whose = (idle & ~hit & calm, idle & hit, alone, alone, long_alone, ~idle & calm,
                 idle & calm)
        z = (first, first, later, deep, three, imagined, imagined)
        clips = (0, 0, 1, 1, 1, 0, 0)
        target = masses[i].log2().expand(len(states), -1)
        for situation, who, what, clip in zip(SITUATIONS, whose, z, clips):
            raw = obs[:, clip].unflatten(-1, (-1, worlds.PER_BODY))
            raw = raw.transpose(1, 2).flatten(2).cpu()
            bodies = objects_model.by_body(what, model.latent).cpu()
            found[situation].append((bodies[who], raw[who], target[who][:, None]))
    return {situation: [torch.cat(part) for part in zip(*parts)]
            for situation, parts in found.items()}


def mass_rows(name, seer, n, device):
    """-> a row per situation: R2 of log mass on test worlds, read linearly from a body's embedding
    and from what was seen of it in the clip; None where hardly a body is in the situation. Maps are
    fitted on worlds of the training seed."""
    config = seer.run.config
    sets = [mass_samples(seer, count, seed, device)
            for count, seed in ((4 * n, config.seed), (n, config.validation_seed),
                                (n, config.test_seed))]
    rows = []
    for situation in SITUATIONS:
        (z, raw, mass), validation, test = (one[situation] for one in sets)
        row = {"model": name, "situation": situation, "bodies": len(test[2]), "embedding": None,
               "clip": None}
        rows.append(row)
        if min(len(mass), len(validation[2]), len(test[2])) < FEWEST:
            continue
        for column, (train, other, judged) in {"embedding": (z, validation[0], test[0]),
                                               "clip": (raw, validation[1], test[1])}.items():
            weight, offset = hjepa.ridge((train, mass), (other, validation[2]))
            guess = judged.double() @ weight + offset
            row[column] = hjepa.r2(guess, test[2].double()).item()
    return rows
