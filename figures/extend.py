"""Trains the predictors of a run on, three macro-events far, with both encoders frozen.

    python figures/extend.py --run runs/quick --to runs/quick-far
    python figures/hierarchy.py --run runs/quick-far               # what it is for

hjepa.py trains both predictors one macro-event far. A planner for goals at 75 frames applies P1
fifteen times and P2 three times, each to what it has predicted itself, in worlds that forces have
made faster than those of training. Here they learn just that, on new worlds at each step. The
encoders stay as they are: trained along, the deep target could make its task easy by dropping what
cannot be foreseen so far, which VICReg does not notice. Frozen, it cannot.

Each step rolls out what the planner `mixed` of hierarchy.py will: P1 for `first` clips (0 to 4, at
random), lift, then macro-events with a bridge between. Errors, all mean squares over a batch:

    P1        rolled out to the end, against t1 of each clip
    lift      of P1's prediction after `first` clips, against z2' there
    P2        each jump, against t2 of its last clip
    bridge    of what P2 predicted, against z2' there

What is made small is the mean of their logarithms. Then one percent less counts as much one clip
ahead as fifteen. In a plain sum the far errors, fifty times as large and for the most part not to
be foreseen, would spoil the near ones, which decide whether a goal is reached in the end.

The result is a checkpoint like any other with one entry more, `extended`; scripts of this folder
write into their JSON that they were given one. An interrupted training goes on from its last
hundred steps. extend.json and .png hold the errors on validation worlds, before and after, as
shares of the variance of what is predicted: 1 is as bad as always to expect the mean.
"""
import io
import math
import sys
import time
from pathlib import Path

import common
import hjepa
import planning
import torch

EVENTS, BLOCK = 3, 100                          # macro-events; steps between two saves
WARMUP = 100                                    # steps, to half of training's learning rate


def objective(model, obs, forces, first, span):
    """obs (B, K, T, F), forces (B, K-1, A), `first` short steps before the first jump -> what is to
    be made small, dict of errors (some,). The encoders get no gradient."""
    clips, ends = forces.shape[1], range(first + span, forces.shape[1] + 1, span)
    with torch.no_grad():
        z1, z2 = model.context(obs[:, 0])
        tokens, t1 = model.target.shallow(obs[:, 1:].transpose(0, 1).flatten(0, 1))
        t1, tokens = (x.unflatten(0, (clips, len(obs))) for x in (t1, tokens))
        same = {end: model.context(obs[:, end])[1] for end in (first, *ends[:-1]) if end}

    def gap(guess, truth):
        return (guess.float() - truth.float()).square().mean((-2, -1))
    path = model.rollout(z1, forces).transpose(0, 1)
    errors = {"P1": [*gap(path, t1)], "lift": [], "P2": [], "bridge": []}
    if first:
        z2 = model.lift(path[first - 1])
        errors["lift"].append(gap(z2, same[first]))
    for end in ends:
        z2 = model.jump(z2, forces[:, end - span:end])
        errors["P2"].append(gap(z2, model.target.deep(tokens[end - 1])))
        if end < ends[-1]:
            z2 = model.bridge(z2)
            errors["bridge"].append(gap(z2, same[end]))
    errors = {name: torch.stack(parts) for name, parts in errors.items() if parts}
    return sum(error.log().mean() for error in errors.values()), errors


def draw_worlds(world, config, n, gen, device):
    """n sequences of three macro-events -> observed clips (n, K, T, F), forces (n, K-1, A)."""
    states, forces, _ = hjepa.make_sequences(world, n, EVENTS * config.steps + 1, gen, config.hold,
                                             config.start_speed, device)
    return world.observe(states), forces


def save(path, content):
    """Whole or not at all."""
    whole = io.BytesIO()                        # on a full disk torch.save raises no OSError
    torch.save(content, whole)
    with hjepa.atomic(path) as part:
        part.write_bytes(whole.getbuffer())


def same_encoders(a, b):
    """Two state dicts of models: do they have the same encoders?"""
    return all(torch.equal(a[k].cpu().float(), b[k].cpu().float()) for k in a
               if k.startswith(("context.", "target.")))


def unfinished_training(path, told, model, optimizer):
    """Goes on from the file at `path`: fills model and optimizer. -> what it tells."""
    try:
        half = torch.load(path, map_location="cpu", weights_only=True)
        theirs = half["told"]
        if not same_encoders(model.state_dict(), half["model"]) or any(
                theirs[k] != told[k] for k in ("steps", "batch")):
            raise ValueError("it is of another run or of other --steps")
        model.load_state_dict(half["model"])
        optimizer.load_state_dict(half["optimizer"])
    except Exception as e:                      # torch.load has a dozen ways to say the same thing
        why = (str(e).splitlines() or [""])[0][:80] or type(e).__name__
        raise hjepa.Refusal(f"{path} cannot be gone on from ({why}): move it away, or give another "
                            "--to") from None
    return theirs


def train(run, saved, out, args):
    """Run, its checkpoint, directory of the new one. Writes the new checkpoint -> its Run."""
    model, config, world = run.model, run.config, hjepa.build_world(run.config)
    model.context.requires_grad_(False)
    model.target.requires_grad_(False)
    optimizer, unfinished = hjepa.make_optimizer(model, config, args.device), out / "extending.pt"
    told = {"of": str(args.run[0]), "steps": args.steps, "done": 0, "batch": config.batch,
            "seconds": 0.0, "device": hjepa.device_name(args.device),
            "precision": saved["precision"], "rows": []}
    if unfinished.exists():
        told = unfinished_training(unfinished, told, model, optimizer)
    model.train()
    while told["done"] < args.steps:
        done, start, seen = told["done"], time.perf_counter(), {}
        until = min(args.steps, done + BLOCK)
        gen = hjepa.generator(config.seed, "extend", done)
        drawn = draw_worlds(world, config, (until - done) * config.batch, gen, args.device)
        batches = zip(*(x.split(config.batch) for x in drawn))
        for step, (obs, forces) in enumerate(
                hjepa.bar(batches, f"steps to {until} of {args.steps}", until - done), done):
            first = torch.randint(config.steps, (), generator=gen).item()
            for group in optimizer.param_groups:
                group["lr"] = hjepa.learning_rate(step, args.steps, config.lr / 2, WARMUP)
            with hjepa.autocast(args.device, saved["precision"]):
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
        save(unfinished, {"told": told, "model": model.state_dict(),
                          "optimizer": optimizer.state_dict()})
    fresh = hjepa.make_optimizer(model, config, args.device).state_dict()  # the old moments are of
    save(out / "last.pt", {**saved, "model": model.state_dict(),          # other weights
                           "optimizer": fresh, "extended": told})
    return run._replace(model=model.eval())


@torch.no_grad()
def far_errors(model, config, obs, forces):
    """-> dict name -> dict of clips ahead -> errors (N,): squared, the mean over dimensions, as a
    share of the truth's variance. P2: the short steps that are no whole macro-event come first."""
    def gap(guess, truth):
        guess, truth = guess.float(), truth.float()
        return ((guess - truth).square().mean(-1) / truth.var(0).mean()).cpu()
    z1, z2 = model.context(obs[:, 0])
    path, truth = model.rollout(z1, forces), [model.target(clip) for clip in obs[:, 1:].unbind(1)]
    span, found = config.steps, {"P1": {}, "P2": {}}
    for k, (t1, t2) in enumerate(truth, 1):
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
            "o--" if when == "before" else "o-", ms=4, label=f"{name}, {when}",
            color=hjepa.COLOURS[int(name != "P1")])
    for ax, title in zip(axes[0], ("shallow: P1, rolled out", "deep: short steps, lift, P2 chained")):
        ax.set(title=title, xlabel="frames ahead", ylabel="squared error / variance", ylim=0)
        ax.grid(color="0.9")
        ax.legend(fontsize=8)
    return figure


def measure(args, runs):
    if len(runs) > 1:
        raise hjepa.Refusal("one --run at a time: each is trained on by itself")
    run, path = runs[0], args.run[0]
    if not args.to and not path.is_dir():
        raise hjepa.Refusal("--to DIR is needed: where the new run is to be kept")
    out = args.to or path.with_name(path.name + "-far")
    saved, config = hjepa.read_checkpoint(path), run.config
    if "extended" in saved:
        raise hjepa.Refusal(f"{path} has been trained on already: give the run that it came from")
    if saved["epoch"] < config.epochs:
        left = config.epochs - saved["epoch"]
        raise hjepa.Refusal(f"{path} has {left} epochs to go: train it to the end first")
    def measured(run):
        obs, forces = draw_worlds(hjepa.build_world(config), config, args.n,
                                  hjepa.generator(config.validation_seed, "extend"), args.device)
        with hjepa.autocast(args.device, args.precision):
            return far_errors(run.model, config, obs, forces)
    with hjepa.locked(out):
        if done := (out / "last.pt").exists():
            far = hjepa.read_checkpoint(out)
            if far.get("extended", {}).get("steps") != args.steps or far["config"] != saved[
                    "config"] or not same_encoders(saved["model"], far["model"]):
                raise hjepa.Refusal(f"{out} is of another run or of other --steps: give another "
                                    "--to")
        before = measured(run)
        after = measured(run._replace(model=hjepa.load(out, args.device)[0]) if done else
                         train(run, saved, out, args))
        (out / "extending.pt").unlink(missing_ok=True)
        there = hjepa.read_checkpoint(out)["extended"]
    rows = [{"name": name, "when": when, "clips": k, "error": gaps.mean().item(),
             "error_ci": common.interval(gaps)}
            for when, found in (("before", before), ("after", after))
            for name, of in found.items() for k, gaps in of.items()]
    return draw(rows, config.hold), args.n, {
        "to": str(out), "frames": config.steps * config.hold, "minutes": there["seconds"] / 60,
        "extended": there, "rows": rows}


if __name__ == "__main__":
    parser = common.make_parser("extend", __doc__, steps=(6000, "training steps"),
                                n=(1024, "validation worlds that the errors are measured on"))
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="directory of the new run (default: --run with -far behind)")
    sys.exit(common.main(parser, measure))
