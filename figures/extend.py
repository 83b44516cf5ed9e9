"""Trains a run's macro level on, for goals three macro-events away, encoders and P1 frozen.

    python figures/extend.py --run runs/quick --to runs/quick-far
    python figures/hierarchy.py --run runs/quick-far               # what it is for
    python figures/hierarchy.py --run figures/weights/far.pt       # of the 300 epochs: it is here

hjepa.py trains P2 for one jump of 25 frames, from an observed clip. A planner for goals at 75
frames applies it up to three times, each to what it has predicted itself, in worlds that forces
have made faster than those of training. If the goal is not a whole number of jumps away, the first
jump starts behind 1 to 4 short steps of P1. Here P2 and the two maps learn just that, on new worlds
at each step. The encoders stay as they are: trained along, the deep target could make its task easy
by dropping what cannot be foreseen so far, which VICReg does not notice. P1 stays as well, so that
a planner with one level is the one that was trained by hjepa.py.

Each step draws `first`, 1 to 4 short steps. Errors, all mean squares over a batch; t2 is the deep
target embedding of a clip, z2' the deep context embedding of the same clip:

    jump      P2 from the observed clip on, a bridge between: against t2 of each jump's last clip
    mixed     the same from behind `first` short steps and a lift
    bridge    of what P2 predicted, against z2' there
    lift      of P1's prediction, against z2' there

The loss is the mean of their logarithms, the maps' by a quarter. In logarithms one percent less
counts as much behind one jump as behind three; in a plain sum the far errors, many times as large
and for the most part not to be foreseen, would spoil the near ones, which decide whether a goal is
reached in the end. A quarter: a map need not get all of z2' right, only what the next jump uses,
and that jump's error trains the map as well. Of the planners of hierarchy.py `mixed` does just
this; `top-down` and `joint` also lift behind five short steps, which is not trained here.

The result is a checkpoint like any other with one entry more, `extended`; the studies write into
their JSON that they were given one. An interrupted training goes on from its last hundred steps.
extend.json and .png hold the errors on validation worlds, before and after, as shares of the
variance of what is predicted: 1 is as bad as always to expect the mean.
"""
import math
import sys
from pathlib import Path

from lib import cli, goals, levels, stats, training
import hjepa
import numpy as np
import torch

EVENTS = 3                                      # macro-events of a training sequence
BLOCK = 100                                     # steps between two saves
SAME = ("steps", "batch", "precision", "objective")     # with others it is another training
OTHERWISE = "another run, other --steps or another --precision"
WARMUP = 100                                    # steps, to half of training's learning rate
WEIGHTS = {"jump": 1.0, "mixed": 1.0, "bridge": 0.25, "lift": 0.25}
TRAINED = ("macro.", "bridge.", "lift.")        # the rest of a model is frozen


def objective(model, obs, forces, first, span):
    """obs (B, K, T, F), forces (B, K-1, A), `first` short steps from 1 to span - 1 -> what is to be
    made small, dict of errors (some,). Encoders and P1 get no gradient."""
    clips = forces.shape[1]
    errors = {name: [] for name in WEIGHTS}
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        reached = model.rollout(z1, forces[:, :first])[:, -1]

    def note(name, guess, encoder, k):
        """Guess of clip k's deep embedding, whose truth the encoder gives -> the guess."""
        with torch.no_grad():
            truth = encoder(obs[:, k])[1]
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
    states, forces, _ = hjepa.make_sequences(world, n, EVENTS * config.event_clips + 1, gen,
                                             config.clip_frames, config.start_speed, device)
    return world.observe(states), forces


def same_training(weights, theirs, record, their_record):
    """Two state dicts and their records: is it one training, of one run?"""
    frozen = [name for name in weights if not name.startswith(TRAINED)]
    return (all(torch.equal(weights[name].cpu().float(), theirs[name].cpu().float())
                for name in frozen)
            and all(their_record.get(key) == record[key] for key in SAME))


def new_record(config, args):
    """What a training says of itself before its first step."""
    return {"of": str(args.run[0]), "steps": args.steps, "done": 0, "batch": config.batch,
            "objective": WEIGHTS, "seconds": 0.0, "device": hjepa.device_name(args.device),
            "precision": args.precision, "rows": []}


def train(run, saved, out, args):
    """Run, its checkpoint, directory of the new one. Writes the new checkpoint -> its Run."""
    model, config = run.model, run.config
    world = hjepa.build_world(config)
    for frozen in (model.context, model.target, model.short):
        frozen.requires_grad_(False)
    optimizer = hjepa.make_optimizer(model, config, args.device)
    record = new_record(config, args)

    def train_step(step, obs, forces, gen):
        first = torch.randint(1, config.event_clips, (), generator=gen).item()
        for group in optimizer.param_groups:
            group["lr"] = hjepa.learning_rate(step, args.steps, config.lr / 2, WARMUP)
        with hjepa.autocast(args.device, args.precision):
            total, errors = objective(model, obs, forces, first, config.event_clips)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return {"objective": total.detach(),
                **{name: error.detach().mean() for name, error in errors.items()}}

    def advance(record):
        """Train the next block -> its row, steps done."""
        done = record["done"]
        if done == args.steps:
            return None
        until = min(args.steps, done + BLOCK)
        gen = hjepa.generator(config.seed, "extend", done)
        drawn = draw_worlds(world, config, (until - done) * config.batch, gen, args.device)
        batches = zip(*(x.split(config.batch) for x in drawn))
        batches = hjepa.progress(batches, f"steps to {until} of {args.steps}", until - done)
        logs = [train_step(step, *batch, gen) for step, batch in enumerate(batches, done)]
        means = {name: torch.stack([log[name] for log in logs]).mean().item() for name in logs[0]}
        weights_finite = all(p.isfinite().all() for p in model.parameters())
        if not weights_finite or not all(map(math.isfinite, means.values())):
            raise hjepa.Refusal(f"an error or a weight is not finite before step {until}: give a "
                                "run that was trained with a smaller --lr")
        print(f"{until:6d}", *(f"{name} {value:.4f}" for name, value in means.items()), flush=True)
        return {"step": until, **means}, until

    def fits(content):
        return same_training(model.state_dict(), content["model"], record, content["record"])
    record = training.train_on(out / "extending.pt", model.train(), optimizer, record, advance,
                               fits, OTHERWISE)
    training.write_run(out, saved, run, extended=record)
    return run._replace(model=model.eval())


@torch.no_grad()
def far_errors(model, config, obs, forces):
    """-> dict name -> dict of clips ahead -> errors (N,): squared, the mean over dimensions, as a
    share of the truth's variance. P1: rolled out. P2: the clips that are no whole macro-event are
    short steps before its first jump."""
    def gap(guess, truth):
        return ((guess - truth).square().mean(-1) / truth.var(0).mean()).cpu()
    z1, z2 = model.context(obs[:, 0])
    path, span = model.rollout(z1, forces), config.event_clips
    found = {"P1": {}, "P2": {}}
    for k, clip in enumerate(obs[:, 1:].unbind(1), 1):
        t1, t2 = model.target(clip)
        found["P1"][k] = gap(path[:, k - 1], t1)
        if k >= span:
            start = z1 if k % span else z2
            found["P2"][k] = gap(levels.chain(model, start, forces[:, :k], k % span, span), t2)
    return found


def draw(rows, clip_frames):
    """Error against frames, shallow left, deep right; before: dashed."""
    figure, axes = hjepa.new_figure(1, 2, 11, 4)
    for name, when in dict.fromkeys((row["name"], row["when"]) for row in rows):
        mine = [row for row in rows if (row["name"], row["when"]) == (name, when)]
        axes[0, int(name != "P1")].plot(
            [row["clips"] * clip_frames for row in mine], [row["error"] for row in mine],
            "o--" if when == "before" else "o-", ms=4, color=hjepa.COLOURS[int(name != "P1")],
            label=name if name == "P1" else f"{name}, {when}")
    for ax, title in zip(axes[0], ("shallow: P1, rolled out (frozen)",
                                   "deep: short steps, lift, P2 chained")):
        ax.set(title=title, xlabel="frames ahead", ylabel="squared error / variance", yscale="log")
        ax.grid(color="0.9")
        ax.legend(fontsize=8)
    return figure


def measure(args, runs):
    run, saved, out = training.run_to_train_on(args, runs, "-far")
    config = run.config
    if config.event_clips < 2:
        raise hjepa.Refusal(f"{args.run[0]} has macro-events of one clip: no short step fits "
                            "before a jump")

    def errors_of(run):
        obs, forces = draw_worlds(hjepa.build_world(config), config, args.n,
                                  hjepa.generator(config.validation_seed, "extend"), args.device)
        return far_errors(run.model, config, obs, forces)
    with hjepa.locked(out):
        finished = (out / "last.pt").exists()
        if finished:
            far = hjepa.read_checkpoint(out)
            if far["config"] != saved["config"] or not same_training(
                    saved["model"], far["model"], new_record(config, args),
                    far.get("extended", {})):
                raise hjepa.Refusal(f"{out} is of {OTHERWISE}: give another --to")
        before = errors_of(run)
        if finished:
            after = errors_of(run._replace(model=hjepa.load(out, args.device)[0]))
        else:
            after = errors_of(train(run, saved, out, args))
        (out / "extending.pt").unlink(missing_ok=True)
        record = hjepa.read_checkpoint(out)["extended"]
    rows = [{"name": name, "when": when, "clips": k, "error": gaps.mean().item(),
             "error_ci": stats.interval(gaps)}
            for when, found in (("before", before), ("after", after))
            for name, by_clips in found.items() for k, gaps in by_clips.items()
            if (name, when) != ("P1", "after")]                           # P1 is frozen
    history = record["rows"]
    arrays = {f"history/{key}": np.array([row[key] for row in history]) for key in history[0]}
    told = {key: record[key] for key in ("of", "steps", "done", "batch", "seconds", "device",
                                         "precision")}
    return cli.Results(args.n, {
        "to": str(out), "frames": goals.event_frames(config), "minutes": record["seconds"] / 60,
        "extended": told, "rows": rows}, arrays, lambda: draw(rows, config.clip_frames))


def make_parser():
    parser = cli.make_parser("extend", __doc__, trains=True, steps=(4000, "training steps"),
                             n=(1024, "validation worlds that the errors are measured on"))
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="directory of the new run (default: --run with -far behind)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
