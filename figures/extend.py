"""Trains a run's macro level on, for goals three macro-events away, encoders and P1 frozen.

    python figures/extend.py --run runs/quick --to runs/quick-far
    python figures/hierarchy.py --run runs/quick-far               # what it is for
    python figures/hierarchy.py --run figures/far.pt               # of the 300 epochs: it is here

hjepa.py trains P2 for one jump of 25 frames, from an observed clip. A planner for goals at 75 frames
applies it up to three times, each to what it has predicted itself, in worlds that forces have made
faster than those of training. If the goal is not a whole number of jumps away, the first jump starts
behind 1 to 4 short steps of P1. Here P2 and the two maps learn just that, on new worlds at each
step. The encoders stay as they are: trained along, the deep target could make its task easy by
dropping what cannot be foreseen so far, which VICReg does not notice. P1 stays as well, so that a
planner with one level is the one that was shipped.

Each step draws `first`, 1 to 4 short steps. Errors, all mean squares over a batch; t2 is the deep
target embedding of a clip, z2' the deep context embedding of the same clip:

    jump      P2 from the observed clip on, a bridge between: against t2 of each jump's last clip
    mixed     the same from behind `first` short steps and a lift
    bridge    of what P2 predicted, against z2' there
    lift      of P1's prediction, against z2' there

What is made small is the mean of their logarithms, the maps' by a quarter. In logarithms one percent
less counts as much behind one jump as behind three; in a plain sum the far errors, many times as
large and for the most part not to be foreseen, would spoil the near ones, which decide whether a
goal is reached in the end. A quarter: a map need not get all of z2' right, only what the next jump
uses, and that jump's error trains the map as well. Of the planners of hierarchy.py `mixed` does just
this; `top-down` and `joint` also lift behind five short steps, which is not trained here.

The result is a checkpoint like any other with one entry more, `extended`; scripts of this folder
write into their JSON that they were given one. An interrupted training goes on from its last
hundred steps. --precision is of the training and of the measuring. extend.json and .png hold the
errors on validation worlds, before and after, as shares of the variance of what is predicted: 1 is
as bad as always to expect the mean.
"""
import math
import sys
import time
from pathlib import Path

import common
import hjepa
import planning
import torch

EVENTS, BLOCK = 3, 100                          # macro-events; steps between two saves
SAME = ("steps", "batch", "precision", "objective")     # a training with others is another one
OTHERWISE = "another run, other --steps or another --precision"
WARMUP = 100                                    # steps, to half of training's learning rate
WEIGHTS = {"jump": 1.0, "mixed": 1.0, "bridge": 0.25, "lift": 0.25}
TRAINED = ("macro.", "bridge.", "lift.")        # what of a model is not frozen


def objective(model, obs, forces, first, span):
    """obs (B, K, T, F), forces (B, K-1, A), `first` short steps from 1 to span - 1 -> what is to be
    made small, dict of errors (some,). Encoders and P1 get no gradient."""
    clips, errors = forces.shape[1], {name: [] for name in WEIGHTS}
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        reached = model.rollout(z1, forces[:, :first])[:, -1]

    def note(name, guess, encode, k):
        """Guess of clip k's embedding, whose truth `encode` gives -> the guess."""
        with torch.no_grad():
            truth = encode(obs[:, k])[1]
        errors[name].append((guess.float() - truth.float()).square().mean())
        return guess
    lifted = note("lift", model.lift(reached), model.context, first)
    for name, z, at in (("jump", z2, 0), ("mixed", lifted, first)):
        for end in range(at + span, clips + 1, span):
            z = note(name, model.jump(z, forces[:, end - span:end]), model.target, end)
            if end + span <= clips:
                z = note("bridge", model.bridge(z), model.context, end)
    errors = {name: torch.stack(parts) for name, parts in errors.items()}
    return sum(WEIGHTS[name] * error.log().mean() for name, error in errors.items()), errors


def draw_worlds(world, config, n, gen, device):
    """n sequences of three macro-events -> observed clips (n, K, T, F), forces (n, K-1, A)."""
    states, forces, _ = hjepa.make_sequences(world, n, EVENTS * config.steps + 1, gen, config.hold,
                                             config.start_speed, device)
    return world.observe(states), forces


def same_frozen(a, b):
    """Two state dicts of models: is what is not trained here the same in both?"""
    return all(torch.equal(a[k].cpu().float(), b[k].cpu().float()) for k in a
               if not k.startswith(TRAINED))


def same_training(weights, theirs, told, they_tell):
    """Two state dicts, what their trainings tell: is it one training, of one run?"""
    return same_frozen(weights, theirs) and all(they_tell.get(k) == told[k] for k in SAME)


def beginning(config, args):
    """What a training tells of itself before its first step."""
    return {"of": str(args.run[0]), "steps": args.steps, "done": 0, "batch": config.batch,
            "objective": WEIGHTS, "seconds": 0.0, "device": hjepa.device_name(args.device),
            "precision": args.precision, "rows": []}


def train(run, saved, out, args):
    """Run, its checkpoint, directory of the new one. Writes the new checkpoint -> its Run."""
    model, config, world = run.model, run.config, hjepa.build_world(run.config)
    for frozen in (model.context, model.target, model.short):
        frozen.requires_grad_(False)
    optimizer, unfinished = hjepa.make_optimizer(model, config, args.device), out / "extending.pt"
    told = beginning(config, args)
    if unfinished.exists():
        told = common.go_on(unfinished, model, optimizer, lambda half: same_training(
            model.state_dict(), half["model"], told, half["told"]), OTHERWISE)
    model.train()
    while told["done"] < args.steps:
        done, start, seen = told["done"], time.perf_counter(), {}
        until = min(args.steps, done + BLOCK)
        gen = hjepa.generator(config.seed, "extend", done)
        drawn = draw_worlds(world, config, (until - done) * config.batch, gen, args.device)
        batches = zip(*(x.split(config.batch) for x in drawn))
        for step, (obs, forces) in enumerate(
                hjepa.bar(batches, f"steps to {until} of {args.steps}", until - done), done):
            first = torch.randint(1, config.steps, (), generator=gen).item()
            for group in optimizer.param_groups:
                group["lr"] = hjepa.learning_rate(step, args.steps, config.lr / 2, WARMUP)
            with hjepa.autocast(args.device, args.precision):
                total, errors = objective(model, obs, forces, first, config.steps)
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            for name, error in {"objective": total, **errors}.items():
                seen.setdefault(name, []).append(error.detach().mean())   # on the device: no wait
        means = {name: torch.stack(parts).mean().item() for name, parts in seen.items()}
        if not all(map(math.isfinite, means.values())) or not all(
                p.isfinite().all() for p in model.parameters()):
            raise hjepa.Refusal(f"an error or a weight is not finite before step {until}: give a run "
                                "that was trained with a smaller --lr")
        told["done"], told["seconds"] = until, told["seconds"] + time.perf_counter() - start
        told["rows"].append({"step": until, **means})
        print(f"{until:6d}", *(f"{name} {value:.4f}" for name, value in means.items()),
              f"{time.perf_counter() - start:.0f} s", flush=True)
        common.save(unfinished, {"told": told, "model": model.state_dict(),
                                 "optimizer": optimizer.state_dict()})
    common.keep(out, saved, run, extended=told)
    return run._replace(model=model.eval())


@torch.no_grad()
def far_errors(model, config, obs, forces):
    """-> dict name -> dict of clips ahead -> errors (N,): squared, the mean over dimensions, as a
    share of the truth's variance. P1: rolled out. P2: the clips that are no whole macro-event are
    short steps before its first jump."""
    def gap(guess, truth):
        guess, truth = guess.float(), truth.float()
        return ((guess - truth).square().mean(-1) / truth.var(0).mean()).cpu()
    z1, z2 = model.context(obs[:, 0])
    path, span = model.rollout(z1, forces), config.steps
    found = {"P1": {}, "P2": {}}
    for k, clip in enumerate(obs[:, 1:].unbind(1), 1):
        t1, t2 = model.target(clip)
        found["P1"][k] = gap(path[:, k - 1], t1)
        if k >= span:
            start = z1 if k % span else z2
            found["P2"][k] = gap(planning.chain(model, start, forces[:, :k], k % span, span), t2)
    return found


def draw(rows, hold):
    """Error against frames, shallow left, deep right; before: dashed."""
    figure, axes = hjepa.canvas(1, 2, 11, 4)
    for name, when in dict.fromkeys((row["name"], row["when"]) for row in rows):
        mine = [row for row in rows if (row["name"], row["when"]) == (name, when)]
        axes[0, int(name != "P1")].plot(
            [row["clips"] * hold for row in mine], [row["error"] for row in mine],
            "o--" if when == "before" else "o-", ms=4, color=hjepa.COLOURS[int(name != "P1")],
            label=name if name == "P1" else f"{name}, {when}")
    for ax, title in zip(axes[0], ("shallow: P1, rolled out (frozen)",
                                   "deep: short steps, lift, P2 chained")):
        ax.set(title=title, xlabel="frames ahead", ylabel="squared error / variance", yscale="log")
        ax.grid(color="0.9")
        ax.legend(fontsize=8)
    return figure


def measure(args, runs):
    run, saved, out = common.run_to_train_on(args, runs, "-far")
    config = run.config
    if config.steps < 2:
        raise hjepa.Refusal(f"{args.run[0]} has macro-events of one clip: no short step fits before "
                            "a jump")
    def measured(run):
        obs, forces = draw_worlds(hjepa.build_world(config), config, args.n,
                                  hjepa.generator(config.validation_seed, "extend"), args.device)
        with hjepa.autocast(args.device, args.precision):
            return far_errors(run.model, config, obs, forces)
    with hjepa.locked(out):
        if done := (out / "last.pt").exists():
            far = hjepa.read_checkpoint(out)
            if far["config"] != saved["config"] or not same_training(
                    saved["model"], far["model"], beginning(config, args), far.get("extended", {})):
                raise hjepa.Refusal(f"{out} is of {OTHERWISE}: give another --to")
        before = measured(run)
        after = measured(run._replace(model=hjepa.load(out, args.device)[0]) if done else
                         train(run, saved, out, args))
        (out / "extending.pt").unlink(missing_ok=True)
        there = hjepa.read_checkpoint(out)["extended"]
    rows = [{"name": name, "when": when, "clips": k, "error": gaps.mean().item(),
             "error_ci": common.interval(gaps)}
            for when, found in (("before", before), ("after", after))
            for name, of in found.items() for k, gaps in of.items()
            if (name, when) != ("P1", "after")]                           # P1 is frozen
    return draw(rows, config.hold), args.n, {
        "to": str(out), "frames": config.steps * config.hold, "minutes": there["seconds"] / 60,
        "extended": there, "rows": rows}


if __name__ == "__main__":
    parser = common.make_parser("extend", __doc__, steps=(4000, "training steps"),
                                n=(1024, "validation worlds that the errors are measured on"))
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="directory of the new run (default: --run with -far behind)")
    sys.exit(common.main(parser, measure))
