"""Does it predict, and does it answer "what if"?

    python figures/dynamics.py --run runs/paper
    python figures/dynamics.py --run runs/quick --n 512
    python figures/dynamics.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

Three sections, all on test worlds:

    rows             error against horizon: P1 rolled out to 5, 10, 15, 20, 25 frames, P2's jump to
                     25. Latent: squared error over the variance of the embedding to be predicted
                     (1: no better than its mean). Position: what a linear probe reads from the
                     prediction, mean distance over bodies, in half boxes. Beside them
                         probe alone        read from the embedding itself: what the probe adds
                         copy last          nothing changes
                         fly and fold       parabola and walls, from the true state, no hits
                         decoded simulator  the true simulator from place and velocity read from z1
                     each also by contacts: frames up to the horizon in which two bodies met.
    actions          the same predictions given true forces, another world's forces, none.
    counterfactuals  same start, a constant force on ONE body against none. For the pushed body:
                     decoded against true change of its place, both axes pooled: Pearson r, slope,
                     and sign agreement where the true change exceeds a tenth of what the largest
                     force moves that body freely. The same for the other bodies in worlds where a
                     contact happened (body "others"). Leakage: decoded change of another body, mean,
                     over that of the pushed one, in worlds where neither rollout has a contact.
    masses           decoded acceleration per unit force, where neither wall nor hit interfered,
                     and its slope against 1 / mass: 1 if the model knows Newton's law.

Probes are linear (ridge), from the target encoder's embedding to place, fitted on embeddings of
training worlds. Their strength is the one that reads the predictions for validation worlds best:
chosen on embeddings it would be too weak, and read directions no predictor can know.
A figure that the worlds drawn cannot give (no world with 2+ contacts, say) is null.
"""
import sys

import common
import hjepa
import numpy as np
import torch

CONTACTS = {"all": (0, 10**9), "0": (0, 0), "1": (1, 1), "2+": (2, 10**9)}      # at least, at most
LEVELS = ("short", "macro")


class Ghosts(hjepa.World):
    """The same box and the same forces, but bodies fly through each other."""

    def _collide(self, x, v, dt, hit):
        pass


def per_body(forces):
    """(N, K, A) -> (N, K, bodies, 2): forces as the simulator takes them."""
    return forces.unflatten(-1, (-1, 2))


@torch.no_grad()
def look(run, world, states, args, chunk=1024):
    """states (N, K, T, bodies, 4) -> dict on the CPU: z1, z2 (N, D) of the first clip and t1
    (N, K, D), t2 (N, 2, D): of all clips, of the first and the last."""
    parts = []
    for part in states.to(args.device).split(chunk):
        obs = world.observe(part)
        with hjepa.autocast(args.device, args.precision):
            z1, z2 = run.model.context(obs[:, 0])
            t1, t2 = zip(*(run.model.target(clip) for clip in obs.unbind(1)))
        parts.append((z1, z2, torch.stack(t1, 1), torch.stack((t2[0], t2[-1]), 1)))
    return {k: torch.cat(z).float().cpu() for k, z in zip(("z1", "z2", "t1", "t2"), zip(*parts))}


@torch.no_grad()
def imagine(run, z, forces, args, chunk=4096):
    """What `look` returned, forces (N, K, A) -> p1 (N, K, D), p2 (N, D): predictions, on the CPU."""
    parts = []
    for z1, z2, f in zip(*(x.to(args.device).split(chunk) for x in (z["z1"], z["z2"], forces))):
        with hjepa.autocast(args.device, args.precision):
            parts.append((run.model.rollout(z1, f), run.model.jump(z2, f)))
    return [torch.cat(p).float().cpu() for p in zip(*parts)]


def linear(train, validation):
    """Two pairs x (N, P), y (N, Q) -> function (..., P) -> (..., Q): hjepa.ridge's read-out."""
    (x, y), basis = train, torch.eye(train[0].shape[1])
    points = torch.cat([basis[:1] * 0, basis])            # an affine map is known by its values here
    _, values = hjepa.ridge(train, validation, (points, y.new_zeros(len(points), y.shape[1])))
    return lambda z: (z.double() @ (values[1:] - values[0]) + values[0]).float()


def fit_probes(run, world, n, args):
    """-> functions: place from t1, place from t2, place and velocity from z1."""
    pairs = []
    for seed, count in ((run.config.seed, 4 * n), (run.config.validation_seed, n)):
        states, forces, _ = hjepa.sequences(world, run.config, count, seed, "dynamics probe", "cpu")
        z, last = look(run, world, states, args), states[:, :, -1]        # (count, K, bodies, 4)
        x1, x2 = z["t1"][:, 1:], z["t2"][:, 1]
        if seed == run.config.validation_seed:
            x1, x2 = imagine(run, z, forces, args)
        place = last[..., :2].flatten(2)                                  # (count, K, 2 bodies)
        pairs.append(((x1.flatten(0, 1), place[:, 1:].flatten(0, 1)), (x2, place[:, -1]),
                      (z["z1"], last[:, 0].flatten(1))))
    return [linear(*pair) for pair in zip(*pairs)]


def horizon_errors(run, world, states, forces, z, p1, p2, probes):
    """-> dict (method, level or None, clips ahead) -> (latent error or None, position error), (N,).

    z, p1, p2: from look and imagine."""
    config, (place1, place2, state1) = run.config, probes
    true, start, out = states[:, 1:, -1, :, :2], states[:, 0, -1], {}      # true (N, K, bodies, 2)

    def gone(guess, k):
        return (guess.reshape(len(guess), -1, 2) - true[:, k - 1]).norm(dim=-1).mean(-1)

    def share(guess, target):
        return (guess - target).square().sum(-1) / target.var(0).sum().clamp_min(1e-12)
    ghosts = Ghosts(config.masses, config.radius, config.frame, config.substeps, config.force_limit)
    fold, _ = ghosts.rollout(start, per_body(forces), config.hold)
    again, _ = world.rollout(state1(z["z1"]).unflatten(-1, (-1, 4)), per_body(forces), config.hold)
    last = config.steps
    for k in range(1, last + 1):
        t1, frame = z["t1"][:, k], k * config.hold - 1
        out["P1", "short", k] = share(p1[:, k - 1], t1), gone(place1(p1[:, k - 1]), k)
        out["probe alone", "short", k] = None, gone(place1(t1), k)
        out["copy last", "short", k] = share(z["t1"][:, 0], t1), gone(start[..., :2], k)
        out["fly and fold", None, k] = None, gone(fold[:, frame, :, :2], k)
        out["decoded simulator", None, k] = None, gone(again[:, frame, :, :2], k)
    t2 = z["t2"][:, 1]
    out["P2", "macro", last] = share(p2, t2), gone(place2(p2), last)
    out["probe alone", "macro", last] = None, gone(place2(t2), last)
    out["copy last", "macro", last] = share(z["t2"][:, 0], t2), gone(start[..., :2], last)
    return out


def push(run, world, start, z, probes, args):
    """The counterfactual. -> forces (N, pushed, 2), and a dict (level, frames) -> decoded change,
    true change (N, pushed, bodies, 2), whether bodies met in either rollout (N, pushed)."""
    config, bodies, n = run.config, len(run.config.masses), len(start)
    gen = hjepa.generator(config.test_seed, "pushes")
    f = config.force_limit * (2 * torch.rand(n, bodies, 2, generator=gen) - 1)
    rollouts, out = [], {}
    for body in (None, *range(bodies)):                                   # the first: no force at all
        forces = torch.zeros(n, config.steps, bodies, 2)
        if body is not None:
            forces[:, :, body] = f[:, None, body]
        states, hits = world.rollout(start, forces, config.hold)
        p1, p2 = imagine(run, z, forces.flatten(2), args)
        rollouts.append((states[..., :2], hits, probes[0](p1), probes[1](p2)))
    states, hits, decoded1, decoded2 = (torch.stack(x, 1) for x in zip(*rollouts))
    for level, clips in (("short", 1), ("short", config.steps), ("macro", config.steps)):
        guess = (decoded1[:, :, clips - 1] if level == "short" else decoded2).unflatten(-1, (-1, 2))
        frames = clips * config.hold
        true, met = states[:, :, frames - 1], hits[:, :, :frames].any(-1)
        out[level, frames] = (guess[:, 1:] - guess[:, :1], true[:, 1:] - true[:, :1],
                              met[:, 1:] | met[:, :1])
    return f, out


def estimate(names, statistic, moments):
    """statistic(*means of moments) gives one figure per name; moments: (seeds, N) each.
    -> dict of the figures and their intervals; None where the worlds drawn do not give them."""
    with np.errstate(all="ignore"):
        point = statistic(*(m.mean() for m in moments))
        spread = statistic(*(common.resampled_means(m) for m in moments))
    row = {}
    for name, value, draws in zip(names, point, spread):
        known = np.isfinite(value)
        row[name] = float(value) if known else None
        row[name + "_ci"] = common.percentiles(draws[np.isfinite(draws)]) if known else None
    return row


def agreement(true, guess, count, enough):
    """Changes (seeds, N, ...), which of them to count, the smallest change whose sign counts ->
    Pearson, slope of guess over true, sign agreement. A world is one outcome, all its numbers go
    together."""
    def statistic(n, x, y, xx, yy, xy, same, judged):
        x, y, xx, yy, xy = x / n, y / n, xx / n, yy / n, xy / n
        cov, var = xy - x * y, xx - x * x
        return cov / np.sqrt(var * (yy - y * y)), cov / var, same / judged
    judged = np.abs(true) > enough
    numbers = (np.ones_like(true), true, guess, true * true, guess * guess, true * guess,
               judged & (true * guess > 0), judged)
    return estimate(("pearson", "slope", "sign_agreement"), statistic,
                    [(count * v).reshape(*true.shape[:2], -1).sum(-1) for v in numbers])


def counterfactual_rows(pushes, masses, limit, frame):
    """pushes: what `push` gave for each run -> rows of counterfactuals, rows of masses."""
    rows, newton, bodies, inverse = [], [], len(masses), 1 / np.array(masses)
    force, other = pushes[0][0].numpy(), ~np.eye(bodies, dtype=bool)      # (N, pushed, 2)
    for level, frames in pushes[0][1]:
        guess, true, met = (np.stack([out[level, frames][i].numpy() for _, out in pushes])
                            for i in range(3))                  # (seeds, N, pushed, bodies, 2)
        guess, true = guess.astype(float), true.astype(float)
        key, free = {"level": level, "frames": frames}, (frames * frame) ** 2 / 2 * inverse
        enough, moments = 0.1 * limit * free, []                          # (bodies,)
        size = np.linalg.norm(guess, axis=-1)                             # (seeds, N, pushed, bodies)
        for b in range(bodies):
            own, own_true = guess[:, :, b, b], true[:, :, b, b]           # (seeds, N, 2)
            leak, apart = size[:, :, b, other[b]].sum(-1) / max(1, bodies - 1), ~met[:, :, b]
            rows.append({**key, "body": b, "mass": masses[b], "n": len(force),
                         "threshold": enough[b], **agreement(own_true, own, True, enough[b]),
                         "n_without_contact": int(apart[0].sum()),
                         **estimate(("leakage",), lambda top, bottom: (top / bottom,),
                                    [apart * leak, apart * size[:, :, b, b]])})
            clear = np.abs(own_true - force[:, b] * free[b]).max(-1) < 1e-4    # no wall, no hit
            moments += [clear * (own * force[:, b]).sum(-1) * 2 / (frames * frame) ** 2,
                        clear * (force[:, b] ** 2).sum(-1)]
        rows.append({**key, "body": "others", "n": int(met[0].any(-1).sum()), **agreement(
            true, guess, met[..., None, None] & other[..., None], enough[:, None])})

        def law(*sums):
            a = [top / bottom for top, bottom in zip(sums[::2], sums[1::2])]
            centred = inverse - inverse.mean()
            return (*a, sum(c * v for c, v in zip(centred, a)) / (centred ** 2).sum())
        names = *(f"acceleration_{b}" for b in range(bodies)), "slope"
        newton.append({**key, "inverse_mass": inverse.tolist(), **estimate(names, law, moments),
                       "n": [int((m[0] > 0).sum()) for m in moments[1::2]]})
    return rows, newton


def mean_row(key, latent, position):
    """Outcomes (seeds, N) or None -> a row with means and intervals, None where there are none."""
    row = {**key, "n": position.shape[1]}
    for name, values in (("latent_error", latent), ("position_error", position)):
        known = values is not None and values.size > 0
        row[name] = values.mean().item() if known else None
        row[name + "_ci"] = common.interval(values) if known else None
    return row


def study(run, world, args):
    """All outcomes of one run, on test worlds; contacts (N, K) are counted up to each clip."""
    config = run.config
    states, forces, hits = hjepa.sequences(world, config, args.n, config.test_seed, "dynamics", "cpu")
    probes = fit_probes(run, world, args.n, args)
    z = look(run, world, states, args)
    errors, actions = {}, {}
    for name, f in (("true", forces), ("shuffled", forces.roll(1, 0)), ("zero", 0 * forces)):
        p1, p2 = imagine(run, z, f, args)
        found = horizon_errors(run, world, states, f, z, p1, p2, probes)
        errors = errors or found                                          # the first are the true ones
        for method, level, k in (("P1", "short", 1), ("P1", "short", config.steps),
                                 ("P2", "macro", config.steps)):
            actions[level, k * config.hold, name] = found[method, level, k]
    pushes = push(run, world, states[:, 0, -1], z, probes, args)
    return errors, actions, pushes, hits[:, 1:].sum(-1).cumsum(1).numpy()


def stack(outcomes):
    """[one (N,) tensor or None per run] -> (seeds, N) or None."""
    return None if outcomes[0] is None else torch.stack(outcomes).numpy()


def measure(args, runs):
    """-> figure, n, the four sections."""
    config, world = runs[0].config, hjepa.build_world(runs[0].config)
    errors, actions, pushes, met = zip(*(study(run, world, args) for run in runs))
    rows, responses = [], []
    for method, level, k in errors[0]:
        latent, position = (stack([e[method, level, k][i] for e in errors]) for i in (0, 1))
        for contacts, (low, high) in CONTACTS.items():
            pick = (met[0][:, k - 1] >= low) & (met[0][:, k - 1] <= high)
            key = {"method": method, "level": level, "frames": k * config.hold, "contacts": contacts}
            rows.append(mean_row(key, None if latent is None else latent[:, pick],
                                 position[:, pick]))
    for level, frames, name in actions[0]:
        latent, position = (stack([a[level, frames, name][i] for a in actions]) for i in (0, 1))
        base, _ = (stack([a[level, frames, "true"][i] for a in actions]) for i in (0, 1))
        more, ci = common.paired_interval(latent, base)
        responses.append({**mean_row({"level": level, "frames": frames, "forces": name}, latent,
                                     position), "latent_more": more, "latent_more_ci": ci})
    changes, newton = counterfactual_rows(pushes, config.masses, config.force_limit, config.frame)
    content = {"rows": rows, "actions": responses, "counterfactuals": changes, "masses": newton}
    say(content, config.steps * config.hold)
    return draw(content, pushes[0], config), args.n, content


def say(content, frames):
    """The findings in words."""
    for row in content["rows"]:
        if row["contacts"] == "all" and row["frames"] == frames:
            latent = "" if row["latent_error"] is None else f", latent {row['latent_error']:.3f}"
            print(f"{row['method']:>18} {row['level'] or '':5}: position error "
                  f"{row['position_error']:.4f} at {frames} frames{latent}")
    for row in content["actions"]:
        print(f"{row['level']:>6} level, {row['frames']:2d} frames, {row['forces']:>8} forces: latent "
              f"{row['latent_error']:.3f}, position {row['position_error']:.4f}")

    def figures(row, names):
        return ", ".join(f"{n} " + ("-" if row[n] is None else f"{row[n]:.3f}") for n in names)
    for row in content["counterfactuals"]:
        names = ("pearson", "slope", "sign_agreement", "leakage")[:3 if row["body"] == "others" else 4]
        print(f"{row['level']:>6} level, {row['frames']:2d} frames, body {row['body']}: "
              + figures(row, names))
    for row in content["masses"]:
        print(f"{row['level']:>6} level, {row['frames']:2d} frames, acceleration over 1/mass: "
              + figures(row, ("slope",)))


def draw(content, pushes, config):
    """-> figure: errors over the horizon, by contacts, by forces; counterfactuals; Newton's law."""
    figure, axes = hjepa.canvas(2, 3, 17, 9)
    (far, near, latent), (acts, cloud, law) = axes
    methods = {m: c for m, c in zip(("P1", "P2", "copy last", "fly and fold", "decoded simulator",
                                     "probe alone"), hjepa.COLOURS)}
    last = config.steps * config.hold

    def line(ax, kind, method, contacts="all", **style):
        found = [r for r in content["rows"] if r["method"] == method and r["contacts"] == contacts
                 and r[kind] is not None and r["level"] == ("macro" if method == "P2" else r["level"])]
        found = [r for r in found if method == "P2" or r["level"] != "macro"]
        ax.plot([r["frames"] for r in found], [r[kind] for r in found], marker=".", ms=9,
                **{"color": methods[method], "label": method, **style})
    for method in methods:
        line(far, "position_error", method)
    for contacts, alpha in zip(CONTACTS, (1, 0.3, 0.55, 0.8)):
        marks = {"alpha": alpha, "ls": "-" if contacts == "all" else ":"}
        for method in ("P1", "P2", "copy last")[:3 if contacts == "all" else 2]:
            line(latent, "latent_error", method, contacts, **marks, label=f"{method}, {contacts}")
    for i, (method, colour) in enumerate(methods.items()):
        found = [r for r in content["rows"] if r["method"] == method and r["frames"] == last
                 and r["contacts"] != "all" and (method == "P2" or r["level"] != "macro")]
        bars(near, found, "position_error", np.arange(3) + 0.13 * (i - 2.5), 0.12, colour, method)
    counts = [r["n"] for r in found]
    near.set_xticks(range(3), [f"{c}\n({n} worlds)" for c, n in zip(list(CONTACTS)[1:], counts)])
    kinds = list(dict.fromkeys((r["level"], r["frames"]) for r in content["actions"]))
    for i, name in enumerate(("true", "shuffled", "zero")):
        found = [r for r in content["actions"] if r["forces"] == name]
        bars(acts, found, "latent_error", np.arange(len(kinds)) + 0.25 * (i - 1), 0.24,
             hjepa.COLOURS[i], f"{name} forces")
    acts.set_xticks(range(len(kinds)), [f"{level}, {frames} frames" for level, frames in kinds])
    guess, true, _ = (x.numpy() for x in pushes[1]["macro", last])
    for b, mass in enumerate(config.masses):
        colour = hjepa.COLOURS[b % len(hjepa.COLOURS)]
        cloud.plot(true[:600, b, b].ravel(), guess[:600, b, b].ravel(), ".", ms=3, color=colour,
                   label=f"mass {mass:g}")
    cloud.axline((0, 0), slope=1, color="0.6", lw=0.8)
    for row, colour in zip(content["masses"], hjepa.COLOURS):
        values = [row[f"acceleration_{b}"] for b in range(len(config.masses))]
        slope = "-" if row["slope"] is None else f"{row['slope']:.2f}"
        law.plot(row["inverse_mass"], [np.nan if v is None else v for v in values], "o-", color=colour,
                 label=f"{row['level']}, {row['frames']} frames: slope {slope}")
    law.axline((0, 0), slope=1, color="0.6", lw=0.8)
    far.set(title="position decoded from the prediction", xlabel="frames ahead", yscale="log",
            ylabel="mean distance, half boxes")
    near.set(title=f"the same at {last} frames, by contacts until then", ylabel="half boxes")
    latent.set(title="error / variance of the embedding, by contacts", xlabel="frames ahead",
               yscale="log")
    acts.set(title="error / variance of the embedding, given", yscale="log")
    cloud.set(title=f"macro level: one body pushed for {last} frames", xlabel="true change of place",
              ylabel="decoded change")
    law.set(title="decoded acceleration per unit force", xlabel="1 / mass")
    for ax in axes.flat:
        ax.legend(fontsize=7)
    return figure


def bars(ax, rows, name, at, width, colour, label):
    """Bars with intervals; where there is no figure, none."""
    value, low, high = (np.array([np.nan if r[name] is None else (r[name], *r[name + "_ci"])[i]
                                  for r in rows]) for i in range(3))
    ax.bar(at, value, width, color=colour, label=label)
    ax.errorbar(at, value, [value - low, high - value], fmt="none", ecolor="0.3", lw=1)


if __name__ == "__main__":
    sys.exit(common.main(common.make_parser("dynamics", __doc__, n=(4096, "test worlds")), measure))
