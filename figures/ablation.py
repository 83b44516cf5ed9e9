"""Which part carries it? The run is trained again without each.

    python figures/ablation.py --run runs/quick                    # nine more trainings like it
    python figures/ablation.py --run runs/quick --only "shared encoder" "positions only"
    python figures/ablation.py --run runs/s0 --run runs/s1         # training seeds

`full` is the run itself. A variant has the run's settings, seed and number of epochs, is trained in
RUN/without/NAME, and goes on from there if it was interrupted; a finished one is only measured.

    no variance term       nothing forbids a constant embedding
    no covariance term     dimensions may repeat each other
    stopped targets        the prediction error does not reach the target encoder
    shared encoder         one encoder for context and target instead of two
    no symmetries          without random flips and axis swaps of the box
    one-step training      P1 learns from each clip to the next, never from its own predictions
    no macro level         the deep tap, P2 and the maps take no part in the objective
    no maps                bridge and lift take no part: the paper's own objective
    positions only         velocity is not observed: a 0 stands in its place

rows: shares of goals reached on the same test tasks (closed: P1, replanned every clip; macro: P2,
one jump, open loop; mean and worst body within 0.1) and the difference from `full` with its paired
interval; then, on test worlds, R2 of position and velocity from the shallow tap (ridge, strength
chosen on validation worlds), the smallest deviation of any dimension and the smallest effective
rank of the embeddings. Without the macro level there is no macro plan, and only the shallow
embeddings are gauged.
"""
import contextlib
import dataclasses
import functools
import sys
from unittest import mock

import common
import hjepa
import torch
import torch.nn.functional as F

PLANS = {"closed": "short replanned", "macro": "macro open loop"}


def objective(model, obs, forces, pred_weight=25.0, std_weight=25.0, cov_weight=1.0, map_weight=5.0,
              gather=lambda z: z, *, stop=False, one_step=False, macro=True):
    """hjepa.objective, with three more ways to leave a part out. Without them it is the same."""
    batch, clips = obs.shape[:2]
    z1, z2 = model.context(obs[:, 0])
    later = obs[:, 1:].transpose(0, 1).flatten(0, 1)                      # ((K-1) B, T, F)
    tokens, t1 = model.target.shallow(later)
    t1, t2 = t1.unflatten(0, (clips - 1, batch)), model.target.deep(tokens[-batch:])
    if one_step:                                # each clip as the context encoder sees it
        before = obs[:, :-1].transpose(0, 1).flatten(0, 1)
        path = model.short(model.context.shallow(before)[1], forces.transpose(0, 1).flatten(0, 1))
        path = path.unflatten(0, (clips - 1, batch))
    else:
        path = model.rollout(z1, forces).transpose(0, 1)
    leap = model.jump(z2, forces)

    aim1, aim2 = (t1.detach(), t2.detach()) if stop else (t1, t2)
    terms = {"pred1": F.mse_loss(path.float(), aim1.float()),
             "pred2": F.mse_loss(leap.float(), aim2.float())}
    composite = pred_weight * (terms["pred1"] + terms["pred2"] * macro)
    for name, z in (("c1", z1), ("t1", t1), ("c2", z2), ("t2", t2)):
        std, cov = terms["std_" + name], terms["cov_" + name] = hjepa.vicreg_terms(gather(z))
        if macro or name in ("c1", "t1"):
            composite = composite + std_weight * std + cov_weight * cov
    terms["composite"] = total = composite
    if map_weight > 0 and macro:
        with torch.no_grad():
            same = model.context(obs[:, -1])[1].float()
        terms["bridge"] = F.mse_loss(model.bridge(t2).float(), same)
        terms["lift"] = F.mse_loss(model.lift(t1[-1]).float(), same)
        total = composite + map_weight * (terms["bridge"] + terms["lift"])
    return total, terms


class PlaceOnly(hjepa.World):
    """Velocity is not observed."""

    def observe(self, state):
        return super().observe(state * state.new_tensor([1.0, 1.0, 0.0, 0.0]))


# What a variant changes: settings of the config, options of `objective`, the kind of world.
VARIANTS = {
    "full": ({}, {}, hjepa.World),
    "no variance term": ({"std_weight": 0.0}, {}, hjepa.World),
    "no covariance term": ({"cov_weight": 0.0}, {}, hjepa.World),
    "stopped targets": ({}, {"stop": True}, hjepa.World),
    "shared encoder": ({"shared": True}, {}, hjepa.World),
    "no symmetries": ({"symmetries": False}, {}, hjepa.World),
    "one-step training": ({}, {"one_step": True}, hjepa.World),
    "no macro level": ({"map_weight": 0.0}, {"macro": False}, hjepa.World),
    "no maps": ({"map_weight": 0.0}, {}, hjepa.World),
    "positions only": ({}, {}, PlaceOnly),
}


def world_of(name, config):
    """A variant's world: the same physics for all, not the same observation."""
    return VARIANTS[name][2](config.masses, config.radius, config.frame, config.substeps,
                             config.force_limit)


@contextlib.contextmanager
def without(name):
    """Until left, hjepa.train trains the variant."""
    with (mock.patch.object(hjepa, "objective", functools.partial(objective, **VARIANTS[name][1])),
          mock.patch.object(hjepa, "build_world", functools.partial(world_of, name))):
        yield


def retrain(path, name, device):
    """Run directory or checkpoint, variant -> its Run, trained to the same epoch as the run."""
    saved = hjepa.read_checkpoint(path)
    if name != "full":
        settings = {**saved["config"], **VARIANTS[name][0], "precision": saved["precision"],
                    "device": device.type, "epochs": saved["epoch"], "measure_every": 0}
        home = path if path.is_dir() else path.parent
        path = home / "without" / name.replace(" ", "-")
        print(f"{name}:", flush=True)
        with without(name):
            hjepa.train(hjepa.Config(**settings), path)
    model, config = hjepa.load(path, device)
    return common.Run(model, config, hjepa.read_checkpoint(path)["epoch"])


def gauges(run, world, macro, args):
    """-> what is in the embeddings of test worlds, and whether they collapsed."""
    pairs = {"position": [], "velocity": []}
    for seed, n in ((run.config.seed, 2 * args.n), (run.config.validation_seed, args.n),
                    (run.config.test_seed, args.n)):
        states, forces, _ = hjepa.sequences(world, run.config, n, seed, "probe", args.device)
        z = hjepa.latents(run.model, world.observe(states), forces)
        for what, pair in pairs.items():
            pair.append((z["z1"], hjepa.physics(states[:, 0, -1], run.config.masses)[what]))
    sets = [z[name] for name in (("z1", "t1", "z2", "t2") if macro else ("z1", "t1"))]
    return {**{f"{what} r2": hjepa.ridge(*pair)[0].mean().item() for what, pair in pairs.items()},
            "std_min": min(s.std(0).min().item() for s in sets),
            "rank": min(hjepa.effective_rank(s) for s in sets)}


def plans(run, world, macro, tasks, args):
    """-> dict plan -> final errors (tasks, bodies)."""
    config = dataclasses.replace(run.config, tasks=args.tasks)
    return {short: hjepa.try_tasks(planner, run.model, world, config, tasks, config.test_seed,
                                   args.device, args.precision)[0]
            for short, planner in PLANS.items() if short == "closed" or macro}


def summary(name, errors, measured):
    """Errors per plan (seeds, tasks, bodies), gauges per seed -> a row."""
    row = {"variant": name}
    for short, error in errors.items():
        for column, reached in (("mean_body", error.mean(-1) < 0.1),
                                ("success", error.amax(-1) < 0.1)):
            row[f"{short} {column}"] = reached.double().mean().item()
            row[f"{short} {column}_ci"] = common.interval(reached.numpy())
        row[f"{short} errors"] = error.mean(-1).tolist()
    return {**row, **{k: sum(g[k] for g in measured) / len(measured) for k in measured[0]}}


def compare(row, errors, full):
    """Adds the differences from the full model on the same tasks and seeds."""
    for short, error in errors.items():
        for column, reach in (("mean_body", lambda e: e.mean(-1)), ("success", lambda e: e.amax(-1))):
            difference = common.paired_interval(reach(error) < 0.1, reach(full[short]) < 0.1)
            row[f"{short} {column} gain"], row[f"{short} {column} gain_ci"] = difference


def draw(rows):
    """Bars per variant: goals reached, probes, rank."""
    figure, axes = hjepa.canvas(1, 4, 18, 0.6 + 0.42 * len(rows))
    panels = (("closed success", "closed loop, worst body within 0.1"),
              ("macro mean_body", "macro jump, mean body within 0.1"),
              ("velocity r2", "velocity R2, shallow tap (below 0: 0)"),
              ("rank", "smallest effective rank"))
    for ax, (key, title) in zip(axes[0], panels):
        for i, row in enumerate(rows):
            value, ci = row.get(key), row.get(key + "_ci")
            if value is None:
                ax.annotate(" none", (0, i), va="center", fontsize=8)
                continue
            spread = [[value - ci[0]], [ci[1] - value]] if ci else None
            ax.barh(i, max(value, 0), xerr=spread, ecolor="0.4", color=hjepa.COLOURS[i > 0])
        ax.set(title=title)
        ax.title.set_fontsize(10)
        ax.set_yticks(range(len(rows)), [row["variant"] for row in rows])
        ax.invert_yaxis()
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    return figure


def measure(args, runs):
    paths, rows, full = args.run, [], {}
    names = ["full", *(args.only or [name for name in VARIANTS if name != "full"])]
    config = runs[0].config
    if runs[0].extended:
        raise hjepa.Refusal(f"{paths[0]} was trained on, by extend.py or refine.py, the variants are "
                            "not: give the run that it came from")
    tasks = hjepa.make_tasks(world_of("full", config), args.tasks, config.steps,
                             hjepa.generator(config.test_seed, "tasks"), config.hold,
                             config.start_speed)
    for name in names:
        macro, errors, measured = name != "no macro level", {}, []
        for path in paths:
            run = retrain(path, name, args.device)
            world = world_of(name, run.config)
            for short, error in plans(run, world, macro, tasks, args).items():
                errors.setdefault(short, []).append(error)
            measured.append(gauges(run, world, macro, args))
        errors = {short: torch.stack(error) for short, error in errors.items()}
        full = full or errors
        rows.append(summary(name, errors, measured))
        compare(rows[-1], errors, full)
        shown = rows[-1]
        print(f"{name:>20}: closed loop, mean body {shown['closed mean_body']:6.1%}, worst body "
              f"{shown['closed success']:6.1%}; macro {shown.get('macro mean_body', 0):6.1%}; "
              f"velocity R2 {shown['velocity r2']:.4f}, rank {shown['rank']:.0f}", flush=True)
    content = {"tasks": args.tasks, "contact": tasks["contact"].tolist(), "rows": rows,
               "frames": config.steps * config.hold}
    return draw(rows), args.n, content


if __name__ == "__main__":
    parser = common.make_parser("ablation", __doc__, n=(4096, "test worlds that are encoded"),
                                tasks=(200, "test tasks"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS)[1:], metavar="NAME",
                        help="variants to train and measure (default: all)")
    sys.exit(common.main(parser, measure))
