"""Trains a whole run on, on new worlds in each epoch, more of them with a hit than chance gives.

    python figures/refine.py --run runs/quick --to runs/quick-refined --epochs 4
    python figures/planning.py --run runs/quick-refined --frames 25
    python figures/planning.py --run figures/refined.pt --frames 25      # of the 300 epochs: it is here

The paper's 300 epochs see the same 49,000 sequences, so in the end the errors on training worlds are
well below those on others; and what a model of this world gets wrong are hits between bodies, which
three in four sequences do not have. Here everything, the encoders included, trains on with
hjepa.py's own loop and objective: each epoch draws as many sequences as the run's, none seen before,
and picks them so that --hits percent have a hit in the clips to be predicted, or as many as three
times as many draws give. The optimiser starts anew: its rate rises to half of training's highest and
falls to zero. What of all this helps how much, one such training cannot tell.

The picking looks at the simulator's record of hits, in training worlds only. Nothing else does:
the model is not told, and worlds to validate and test on are as they come.

The result is a checkpoint like any other with one entry more, `refined`; scripts of this folder
write into their JSON that they were given one. An interrupted training goes on from its last epoch.
refine.json and .png hold, on validation worlds, the errors before and after, with and without a hit
on the way to what is predicted, as shares of the variance: 1 is as bad as always to expect the mean.
The encoders move, so each error is in an embedding of its own, and one that falls may only have
become easier; the goals reached, which are there too, are in the same world before and after. That
difference matters: see what README and the report say came of it.
"""
import dataclasses
import sys
import time
from pathlib import Path

import common
import hjepa
import torch

SAME = ("epochs", "hits", "precision", "start", "n")    # a training with others is another one
OTHERWISE = "another run, --epochs, --hits, --precision or --n"
POOL = 3                                        # sequences drawn for each that is picked


def draw_worlds(world, config, share, gen, device):
    """-> observed clips (n, K, T, F), forces (n, K-1, A), hit (n,), n as in the run's config: a
    `share` of them with a hit after the first clip, as far as so many were drawn."""
    n = config.sequences
    states, forces, hits = hjepa.make_sequences(world, POOL * n, config.steps + 1, gen, config.hold,
                                                config.start_speed, device)
    hit = hits[:, 1:].flatten(1).any(1)
    met, free = hit.nonzero()[:, 0], (~hit).nonzero()[:, 0]
    many = round(share * n)
    pick = torch.cat([met[:many], free, met[many:]])[:n].sort().values
    return world.observe(states[pick]), forces[pick], hit[pick]


def same_training(told, theirs):
    """What two trainings tell: are they one, of one run?"""
    return all(theirs.get(k) == told[k] for k in SAME)


def beginning(run, args):
    """What a training tells of itself before its first step."""
    return {"of": str(args.run[0]), "what": "all of it, on new worlds,", "epochs": args.epochs,
            "steps": args.epochs * (run.config.sequences // run.config.batch), "hits": args.hits,
            "start": common.fingerprint([run])[:16], "n": args.n, "done": 0, "seconds": 0.0,
            "precision": args.precision, "device": hjepa.device_name(args.device), "rows": []}


def train(run, saved, out, told, args, watched):
    """Run, its checkpoint, directory of the new one; watched(model) -> errors on validation worlds.
    Writes the new checkpoint."""
    model, world = run.model, hjepa.build_world(run.config)
    config = dataclasses.replace(run.config, epochs=args.epochs, lr=run.config.lr / 2)
    optimizer, unfinished = hjepa.make_optimizer(model, config, args.device), out / "refining.pt"
    if unfinished.exists():
        told = common.go_on(unfinished, model, optimizer,
                            lambda half: same_training(told, half["told"]), OTHERWISE)
    first = told["done"]
    for epoch in range(first, args.epochs):
        start, gen = time.perf_counter(), hjepa.generator(config.seed, "refine", epoch)
        obs, forces, hit = draw_worlds(world, config, args.hits / 100, gen, args.device)
        means, _ = hjepa.train_epoch(model.train(), optimizer, (obs, forces), config, epoch,
                                     args.device, args.precision)
        row = {"epoch": epoch + 1, **means, "hits": hit.float().mean().item(),
               **{k: gaps.mean().item() for k, gaps in watched(model.eval()).items()}}
        hjepa.print_row(row, head=epoch == first)
        told["rows"].append(row)
        told["done"], told["seconds"] = epoch + 1, told["seconds"] + time.perf_counter() - start
        common.save(unfinished, {"told": told, "model": model.state_dict(),
                                 "optimizer": optimizer.state_dict()})
    common.keep(out, saved, run, refined=told)


@torch.no_grad()
def errors(model, obs, forces, chunk=1024):
    """-> dict of errors (N,): squared, the mean over dimensions, as a share of the truth's variance,
    for P1 after one clip, P1 rolled out to the last clip, and P2."""
    parts = []
    for o, f in zip(obs.split(chunk), forces.split(chunk)):
        z1, z2 = model.context(o[:, 0])
        path, (t1, t2) = model.rollout(z1, f), model.target(o[:, -1])
        pairs = (path[:, 0], model.target.shallow(o[:, 1])[1]), (path[:, -1], t1), (
            model.jump(z2, f), t2)
        parts.append([(guess.float().cpu(), truth.float().cpu()) for guess, truth in pairs])
    found = {}
    for name, of in zip(("P1, one clip", "P1, rolled out", "P2"), zip(*parts)):
        guess, truth = (torch.cat(x) for x in zip(*of))
        found[name] = (guess - truth).square().mean(-1) / truth.var(0).mean()
    return found


def draw(rows, course):
    """Left: error against epoch. Right: before and after, with and without a hit."""
    figure, axes = hjepa.canvas(1, 2, 12, 4.2)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name, colour in zip(names, hjepa.COLOURS):
        start = next(row["error"] for row in rows if row["when"] == "before" and row["name"] == name
                     and row["worlds"] == "all")
        axes[0, 0].plot([0, *(row["epoch"] for row in course)],
                        [start, *(row[name] for row in course)], ".-", color=colour, label=name)
        for i, (when, fill) in enumerate((("before", 0.35), ("after", 1.0))):
            for x, worlds in enumerate(("with a hit", "without")):
                for row in rows:
                    if (row["name"], row["when"], row["worlds"]) == (name, when, worlds):
                        place = x + 0.14 * (2 * names.index(name) + i - 2.5)
                        low, high = row["error_ci"]
                        axes[0, 1].bar(place, row["error"], 0.13, color=colour, alpha=fill,
                                       yerr=[[row["error"] - low], [high - row["error"]]])
    axes[0, 0].set(title="validation worlds, as they come", xlabel="further epoch", yscale="log",
                   ylabel="squared error / variance")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set(title="before (pale) and after", xticks=[0, 1])
    axes[0, 1].set_xticklabels(["with a hit", "without"])
    for ax in axes[0]:
        ax.grid(axis="y", color="0.9")
    return figure


def measure(args, runs):
    run, saved, out = common.run_to_train_on(args, runs, "-refined")
    config = run.config
    if args.hits > 100:
        raise hjepa.Refusal(f"--hits is {args.hits}: give a percentage, 1 to 100")
    if args.n < 2:
        raise hjepa.Refusal("--n 1: a variance needs at least 2 worlds")
    world = hjepa.build_world(config)
    states, forces, hits = hjepa.make_sequences(
        world, args.n, config.steps + 1, hjepa.generator(config.validation_seed, "refine"),
        config.hold, config.start_speed, args.device)
    obs, hits = world.observe(states), hits[:, 1:].any(-1).cpu()          # (n, clips)
    tasks = hjepa.make_tasks(world, args.tasks, config.steps,
                             hjepa.generator(config.validation_seed, "tasks"), config.hold,
                             config.start_speed)

    def watched(model):
        with hjepa.autocast(args.device, args.precision):
            return errors(model, obs, forces)

    def measured(model, when):
        """-> rows of errors, rows of goals reached."""
        gaps, plans = [], []
        for name, gap in watched(model).items():
            hit = hits[:, 0] if name == "P1, one clip" else hits.any(1)
            for worlds, some in (("all", torch.ones_like(hit)), ("with a hit", hit),
                                 ("without", ~hit)):
                if some.any():
                    gaps.append({"name": name, "when": when, "worlds": worlds, "n": int(some.sum()),
                                 "error": gap[some].mean().item(),
                                 "error_ci": common.interval(gap[some])})
        for planner in ("macro open loop", "short replanned"):
            gap, *_ = hjepa.try_tasks(planner, model, world, config, tasks, config.validation_seed,
                                      args.device, args.precision)
            plans.append({"planner": planner, "when": when, **hjepa.success(gap),
                          "mean_body_ci": common.interval(gap.mean(-1) < 0.1),
                          "success_ci": common.interval(gap.amax(-1) < 0.1)})
            print("{when}, {planner}: mean body within 0.1 {mean_body:.1%}, worst body {success:.1%}"
                  .format(**plans[-1]), flush=True)
        return gaps, plans
    told = beginning(run, args)
    with hjepa.locked(out):
        if done := (out / "last.pt").exists():
            if not same_training(told, hjepa.read_checkpoint(out).get("refined", {})):
                raise hjepa.Refusal(f"{out} is of {OTHERWISE}: give another --to")
        if not done:
            train(run, saved, out, told, args, watched)
        (out / "refining.pt").unlink(missing_ok=True)
        before, after = (measured(hjepa.load(where, args.device)[0], when)
                         for where, when in ((args.run[0], "before"), (out, "after")))
        there = hjepa.read_checkpoint(out)["refined"]
    rows, plans = (old + new for old, new in zip(before, after))
    return draw(rows, there["rows"]), args.n, {
        "to": str(out), "frames": config.steps * config.hold, "minutes": there["seconds"] / 60,
        "tasks": args.tasks, "refined": there, "rows": rows, "plans": plans}


if __name__ == "__main__":
    parser = common.make_parser(
        "refine", __doc__, epochs=(70, "further epochs"),
        hits=(50, "percent of the sequences with a hit between bodies"),
        n=(4096, "validation worlds that the errors are measured on"),
        tasks=(200, "validation goals tried before and after"))
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="directory of the new run (default: --run with -refined behind)")
    sys.exit(common.main(parser, measure))
