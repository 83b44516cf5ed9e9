"""Does it know what cannot happen?

    python figures/surprise.py --run runs/paper
    python figures/surprise.py --run runs/quick --n 100
    python figures/surprise.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

Matched pairs of test worlds: the same first clip and the same forces, but in one of the two films
a rule is broken after the first clip:

    pass-through      bodies fly through each other              the films differ from the first hit
    energy injection  a hit leaves both bodies 1.5 times as fast                  from the first hit
    teleport          a body jumps to another free place, at least 0.3 away, and flies on
    velocity flip     the velocity of a body, at least 0.3, turns round
    mass swap         two bodies of different mass exchange it, but not their size    from the start
    wall tunnelling   a body flies on beyond the wall         from the first time one meets a wall

Teleport and flip happen to a body and in a frame drawn at random. Only starts where the rule
matters: at the end a body must be at least 0.1 half boxes from where it should be; in tunnelling no
bodies meet after the wall.

Surprise is the squared error of the predicted embedding, the mean over dimensions:

    short   P1(z1(clip k), force k) against t1(clip k+1), for each of the five clips, put together
            over a window that begins with the event's clip, the same for both films. Window, and
            largest or mean, are chosen on pairs of validation worlds ("candidates" in the JSON).
    macro   P2(z2(clip 0), forces) against t2(clip 5)
    both    their sum, each divided by its mean over the lawful films of validation worlds

rows: share of pairs in which the impossible film is the more surprising one (chance: 0.5); AUROC of
impossible against lawful films, unpaired; the same against lawful films with a hit that matters
(auroc_collision). Rule "all" pools the six. Control, so that surprise is not a mere collision
detector: a lawful hit in the place of the impossible film; its partner is the same start under
other forces, without a hit. A model that foresees hits is near 0.5 there. One that does not is
below 0.5 in pass-through, and its share in energy injection then means only that a stronger hit
surprises it more. over_time: quartiles of the short level's surprise, clips counted from the event.
"""
import sys

import common
import hjepa
import numpy as np
import torch
from dynamics import Ghosts

MATTERS = 0.1                                   # how far a body must end from its lawful place
LEVELS = ("short", "macro", "both")
CONTROL = "lawful hit (control)"
WINDOWS = {"event": 1, "event and next": 2, "event and all after": 10**9}           # in clips
# Largest and mean of one clip are the same: the first is left out.
STATISTICS = [(window, how) for window in WINDOWS for how in ("largest", "mean")][1:]

class Springs(hjepa.World):
    """A hit leaves both bodies 1.5 times as fast as it should."""

    def _collide(self, x, v, dt, hit):
        before = v.clone()
        super()._collide(x, v, dt, hit)
        v.mul_(1 + 0.5 * (v != before).any(1, keepdim=True))

class Scene:
    """n lawful films: clip (n, T, bodies, 4), then forces (n, K, bodies, 2), states (n, frames,
    bodies, 4), hits (n, frames); and the generator from which a rule may draw."""

    def __init__(self, world, config, n, gen):
        states, forces, hits = hjepa.make_sequences(world, n, config.steps + 1, gen, config.hold,
                                                    config.start_speed)
        self.n, self.config, self.world, self.gen = n, config, world, gen
        self.clip, self.start = states[:, 0], states[:, 0, -1]
        self.states = states[:, 1:].flatten(1, 2)
        self.forces, self.hits = forces.unflatten(-1, (-1, 2)), hits[:, 1:].flatten(1)
        self.frames, self.bodies = self.hits.shape[1], states.shape[3]

    def other_world(self, kind):
        c = self.config
        return kind(c.masses, c.radius, c.frame, c.substeps, c.force_limit)

    def draw_event(self):
        """-> a frame (n,), and a body as a mask (n, bodies, 1)."""
        event = torch.randint(self.frames, (self.n,), generator=self.gen)
        body = torch.randint(self.bodies, (self.n, 1), generator=self.gen)
        return event, (torch.arange(self.bodies) == body)[..., None]

    def edited(self, event, edit):
        """The film, with its state replaced by edit(state) in frame `event`, lawful again after."""
        state, film = self.start, []
        for t, force in enumerate(self.forces.repeat_interleave(self.config.hold, 1).split(1, 1)):
            state = self.world.rollout(state, force, 1)[0][:, 0]
            state = torch.where((event == t)[:, None, None], edit(state), state)
            film.append(state)
        return torch.stack(film, 1)

# A rule broken: Scene -> the film (n, frames, bodies, 4), the first frame that may differ (n,), and
# which films are fit (n,).

def pass_through(scene, kind=Ghosts):
    film, _ = scene.other_world(kind).rollout(scene.start, scene.forces, scene.config.hold)
    return film, scene.hits.int().argmax(1), scene.hits.any(1)

def energy_injection(scene):
    return pass_through(scene, Springs)

def teleport(scene):
    event, body = scene.draw_event()
    radius, now = torch.tensor(scene.world.radii), torch.arange(scene.n)
    place = 2 * torch.rand(scene.n, scene.bodies, 2, generator=scene.gen) - 1
    place = place * (1 - radius)[:, None]
    film = scene.edited(event, lambda s: torch.where(
        body & torch.tensor([True, True, False, False]), torch.cat([place, s[..., 2:]], -1), s))
    there, before = film[now, event, :, :2], scene.states[now, event, :, :2]
    gap = (there[:, :, None] - there[:, None]).norm(dim=-1) - radius[:, None] - radius
    free = (gap + 10 * torch.eye(scene.bodies) > 0).flatten(1).all(1)
    return film, event, free & ((there - before).norm(dim=-1).amax(1) >= 0.3)

def velocity_flip(scene):
    event, body = scene.draw_event()
    film = scene.edited(event, lambda s: torch.where(body, s * s.new_tensor([1, 1, -1, -1]), s))
    speed = film[torch.arange(scene.n), event, :, 2:].norm(dim=-1)
    return film, event, (speed * body[..., 0]).amax(1) >= 0.3

def mass_swap(scene):
    masses = scene.config.masses
    swaps = [(i, j) for i in range(len(masses)) for j in range(i) if masses[i] != masses[j]]
    which = torch.randint(max(1, len(swaps)), (scene.n,), generator=scene.gen)
    film, start = scene.states.clone(), torch.zeros(scene.n, dtype=torch.long)
    for s, (i, j) in enumerate(swaps):
        world, swapped, mine = scene.other_world(hjepa.World), list(masses), which == s
        swapped[i], swapped[j] = swapped[j], swapped[i]
        world.masses = tuple(swapped)                                     # the radii stay
        film[mine], _ = world.rollout(scene.start[mine], scene.forces[mine], scene.config.hold)
    return film, start, torch.ones(scene.n, dtype=torch.bool)

def wall_tunnelling(scene):
    """Without hits the axes are independent: only the coordinate that meets the wall changes."""
    dt, hold = scene.config.frame, scene.config.hold
    path = torch.cat([scene.start[:, None], scene.states], 1)
    a = (scene.forces / torch.tensor(scene.world.masses)[:, None]).repeat_interleave(hold, 1)
    turn = (path[:, 1:, :, 2:] - path[:, :-1, :, 2:] - a * dt).abs() > 1e-3
    turn = (turn & ~scene.hits[..., None, None]).flatten(2)               # (n, frames, 2 bodies)
    event, now = turn.any(-1).int().argmax(1), torch.arange(scene.n)
    axis = torch.arange(turn.shape[-1]) == turn[now, event].int().argmax(1)[:, None]
    axis, film = axis.unflatten(1, (-1, 2)), [scene.start]
    for t in range(scene.frames):
        x, v = film[-1].split(2, -1)
        fly = torch.cat([x + v * dt + a[:, t] * dt * dt / 2, v + a[:, t] * dt], -1)
        gone = (axis & (t >= event)[:, None, None]).repeat(1, 1, 2)
        film.append(torch.where(gone, fly, scene.states[:, t]))
    after = torch.arange(scene.frames) >= event[:, None]
    return torch.stack(film[1:], 1), event, turn.any(-1).any(1) & ~(scene.hits & after).any(1)

RULES = {"pass-through": pass_through, "energy injection": energy_injection, "teleport": teleport,
         "velocity flip": velocity_flip, "mass swap": mass_swap, "wall tunnelling": wall_tunnelling}

def make_pairs(rule, world, config, n, seed):
    """n pairs -> dict: clip (n, T, bodies, 4), two films (lawful, broken) and their forces
    (n, K, A), the event's frame (n,), and the share of starts that were fit."""
    gen, parts, tried, found = hjepa.generator(seed, "surprise, " + rule), [], 0, 0
    while found < n:
        scene = Scene(world, config, 4 * n + 64, gen)
        film, event, fit = RULES.get(rule, pass_through)(scene)
        gap = (film[:, -1, :, :2] - scene.states[:, -1, :, :2]).norm(dim=-1)
        fit = fit & (gap.amax(1) >= MATTERS)
        films = scene.states, film, scene.forces, scene.forces
        if rule == CONTROL:
            other = world.random_forces(scene.n, config.steps, gen)
            flight, met = world.rollout(scene.start, other, config.hold)
            fit, films = fit & ~met.any(1), (flight, scene.states, other, scene.forces)
        parts.append([x[fit] for x in (scene.clip, *films, event)])
        tried, found = tried + scene.n, found + int(fit.sum())
        if tried > 100 * n + 10_000:
            raise hjepa.Refusal(f"{rule}: only {found} of {tried} starts are fit, {n} are wanted: "
                                "it needs bodies that meet, of different mass")
    clip, lawful, broken, f, g, event = (torch.cat(x)[:n] for x in zip(*parts))
    return {"clip": clip, "films": (lawful, broken), "forces": (f.flatten(2), g.flatten(2)),
            "event": event, "fit": found / tried}

@torch.no_grad()
def surprise(run, world, clip, film, forces, args, chunk=512):
    """-> squared error of P1 for each clip (n, K) and of P2 (n,), numpy."""
    parts, hold = [], clip.shape[1]
    for c, x, f in zip(*(v.to(args.device).split(chunk) for v in (clip, film, forces))):
        obs = world.observe(torch.cat([c[:, None], x.unflatten(1, (-1, hold))], 1))
        with hjepa.autocast(args.device, args.precision):
            z1, _ = run.model.context(obs[:, :-1].flatten(0, 1))
            t1, t2 = run.model.target(obs[:, 1:].flatten(0, 1))
            p1 = run.model.rollout(z1, f.flatten(0, 1)[:, None])[:, 0]
            p2 = run.model.jump(run.model.context(obs[:, 0])[1], f)
        error1, error2 = p1 - t1, p2 - t2.unflatten(0, f.shape[:2])[:, -1]
        parts.append([e.float().square().mean(-1).cpu()
                      for e in (error1.unflatten(0, f.shape[:2]), error2)])
    return [torch.cat(e).double().numpy() for e in zip(*parts)]

def watch(runs, world, rules, seed, args):
    """-> dict rule -> short (2, seeds, n, K) and macro (2, seeds, n) surprise, lawful and broken;
    clip of the event (n,), counted from 0; share of starts that were fit."""
    seen = {}
    for rule in hjepa.bar(rules, "pairs", len(rules)):
        pairs = make_pairs(rule, world, runs[0].config, args.n, seed)
        found = [[surprise(run, world, pairs["clip"], film, forces, args) for run in runs]
                 for film, forces in zip(pairs["films"], pairs["forces"])]
        short, macro = (np.array([[r[i] for r in side] for side in found]) for i in (0, 1))
        seen[rule] = {"short": short, "macro": macro, "fit": pairs["fit"],
                      "clip": pairs["event"].numpy() // runs[0].config.hold}
    return seen

def gather(short, clip, statistic):
    """Surprise per clip (..., n, K), clip of the event (n,) -> (..., n) over the window."""
    window, how = statistic
    after = np.arange(short.shape[-1]) - clip[:, None]
    inside = (after >= 0) & (after < WINDOWS[window])
    if how == "largest":
        return np.where(inside, short, 0).max(-1)
    return (short * inside).sum(-1) / inside.sum(-1)

def wins(a, b):
    """1 where a > b, 0.5 where equal, else 0."""
    return (a > b) + 0.5 * (a == b)

def auroc(broken, lawful):
    """(seeds, n) each -> AUROC, [low, high]. Each film contributes the share of films of the other
    kind that it beats; the interval is that of the mean of these contributions (DeLong)."""
    table = np.stack([wins(b[:, None], a) for b, a in zip(broken, lawful)])    # (seeds, n, n)
    area = table.mean((1, 2), keepdims=True)[..., 0]
    low, high = common.interval(table.mean(1) + table.mean(2) - area)
    return area.mean().item(), [max(0.0, low), min(1.0, high)]

def measure(args, runs):
    """-> figure, n, rows and what stands behind them."""
    world, config = hjepa.build_world(runs[0].config), runs[0].config
    tried = watch(runs, world, list(RULES), config.validation_seed, args)
    candidates = []
    for statistic in STATISTICS:
        shares = [wins(*gather(s["short"], s["clip"], statistic)[::-1]).mean()
                  for s in tried.values()]
        candidates.append({"window": statistic[0], "how": statistic[1], "share": np.mean(shares),
                           "by_rule": dict(zip(RULES, shares))})
    best = STATISTICS[int(np.argmax([c["share"] for c in candidates]))]

    def levels(s):
        return {"short": gather(s["short"], s["clip"], best), "macro": s["macro"]}
    unit = {level: np.concatenate([levels(s)[level][0] for s in tried.values()], -1).mean(-1)
            for level in LEVELS[:2]}                                      # (seeds,)
    seen, scores = watch(runs, world, [*RULES, CONTROL], config.test_seed, args), {}
    for rule, s in seen.items():
        scores[rule] = levels(s)
        scores[rule]["both"] = sum(x / unit[level][:, None] for level, x in scores[rule].items())
    scores["all"] = {k: np.concatenate([scores[r][k] for r in RULES], -1) for k in LEVELS}
    rows, hit = [], scores[CONTROL]
    for rule, level in ((r, level) for r in (*RULES, "all", CONTROL) for level in LEVELS):
        lawful, broken = scores[rule][level]
        more, row = wins(broken, lawful), {"rule": rule, "level": level, "n": broken.shape[1]}
        row["share"], row["share_ci"] = more.mean(), common.interval(more)
        row["auroc"], row["auroc_ci"] = auroc(broken, lawful)
        if rule != CONTROL:
            same = np.tile(hit[level][1], broken.shape[1] // args.n)              # as many
            row["auroc_collision"], row["auroc_collision_ci"] = auroc(broken, same)
        rows.append(row)
    over_time = []
    for rule, s in seen.items():
        after = np.arange(config.steps) - s["clip"][:, None]
        for kind, short in zip(("lawful", "broken"), s["short"]):
            for k in np.unique(after):
                quartiles = np.percentile(short[:, after == k], [25, 50, 75]).tolist()
                over_time.append({"rule": rule, "film": kind, "clip": int(k),
                                  "n": int((after == k).sum()), "quartiles": quartiles})
    content = {"statistic": best, "candidates": candidates, "rows": rows, "over_time": over_time,
               "share_of_starts_fit": {rule: s["fit"] for rule, s in seen.items()}}
    print(f"short level: {best[1]} over {best[0]}, the best of {len(STATISTICS)} on validation")
    for rule in (*RULES, "all", CONTROL):
        print(f"{rule:>20}: " + "; ".join(
            f"{r['level']} {r['share']:6.1%} of pairs, AUROC {r['auroc']:.2f}"
            for r in rows if r["rule"] == rule))
    return draw(content), args.n, content

def draw(content):
    """-> figure: shares with intervals; below, surprise from clip to clip."""
    figure, _ = hjepa.canvas(1, 1, 17, 8.5)
    figure.clear()
    grid, names = figure.add_gridspec(2, len(RULES) + 1), [*RULES, "all", CONTROL]
    top = figure.add_subplot(grid[0, :])
    for i, level in enumerate(LEVELS):
        rows = [r for r in content["rows"] if r["level"] == level]
        at, value = np.arange(len(rows)) + 0.27 * (i - 1), np.array([r["share"] for r in rows])
        low, high = np.array([r["share_ci"] for r in rows]).T
        top.bar(at, value, 0.25, color=hjepa.COLOURS[i], label=level)
        top.errorbar(at, value, [value - low, high - value], fmt="none", ecolor="0.3", lw=1)
        top.plot(at, [r["auroc"] for r in rows], "k_", ms=14, label="AUROC" if i == 0 else None)
    top.axhline(0.5, color="0.4", lw=0.8, ls=":")
    top.set(title="share of pairs in which the impossible film is more surprising (chance: 0.5)",
            ylim=(0, 1.02), xlim=(-0.6, len(names) - 0.4))
    top.set_xticks(range(len(names)), names)
    top.legend(fontsize=8, loc="lower right", ncols=4)
    first = None
    for column, rule in enumerate([*RULES, CONTROL]):
        ax = first = figure.add_subplot(grid[1, column], sharey=first)
        for film, colour in (("lawful", hjepa.COLOURS[0]), ("broken", hjepa.COLOURS[1])):
            rows = [r for r in content["over_time"] if (r["rule"], r["film"]) == (rule, film)
                    and -2 <= r["clip"] <= 2]
            k = [r["clip"] for r in rows]
            low, middle, high = np.array([r["quartiles"] for r in rows]).T
            ax.plot(k, middle, ".-", color=colour, label=film)
            ax.fill_between(k, low, high, color=colour, alpha=0.2, lw=0)
        ax.set(title=rule, xlabel="clips from the event", yscale="log", xticks=range(-2, 3))
    figure.axes[1].set(ylabel="surprise, short level: median, quartiles")
    figure.axes[1].legend(fontsize=8)
    return figure

if __name__ == "__main__":
    parser = common.make_parser("surprise", __doc__, n=(500, "pairs per rule"))
    sys.exit(common.main(parser, measure))
