"""Trains a whole run on, on new worlds, more of them with a contact than chance gives.

    python figures/refine.py --run runs/quick --to runs/quick-refined --epochs 4
    python figures/planning.py --run runs/quick-refined --frames 25
    python figures/planning.py --run figures/weights/refined.pt --frames 25     # of the 300 epochs

The paper's 300 epochs see the same 49,000 sequences, so in the end the errors on training worlds
are well below those on others; and what a model of this world gets wrong are contacts between
bodies, which three in four sequences do not have. Here everything, the encoders included, trains on
with the loop and the objective of hjepa.py: each epoch draws as many sequences as the run's, none
seen before, and picks them so that --contacts percent have a contact in the clips to be predicted,
or as many as three times as many draws give. The optimiser starts anew: its rate rises to half of
training's highest and falls to zero. What of all this helps how much, one such training cannot
tell.

The picking looks at the simulator's record of contacts, in training worlds only. Nothing else does:
the model is not told, and worlds to validate and test on are as they come.

The result is a checkpoint like any other with one entry more, `refined`; the studies write into
their JSON that they were given one. An interrupted training goes on from its last epoch.
refine.json and .png hold, on validation worlds, the errors before and after, with and without a
contact on the way to what is predicted, as shares of the variance: 1 is as bad as always to expect
the mean. The encoders move, so each error is in an embedding of its own, and one that falls may
only have become easier; the goals reached, which are there too, are in the same world before and
after.
"""
import dataclasses
import functools
import sys
from pathlib import Path

from lib import cli, drawing, goals, stats, training
import hjepa
import numpy as np
import torch

SAME = ("epochs", "contacts", "precision", "start", "n")      # with others it is another training
OTHERWISE = "another run, --epochs, --contacts, --precision or --n"
POOL = 3                                        # sequences drawn for each that is picked
PLANNERS = ("macro open loop", "short replanned")


def draw_worlds(world, config, share, gen, device):
    """-> observed clips (n, K, T, F), forces (n, K-1, A), contact (n,), n as in the run's config: a
    `share` of them with a contact after the first clip, as far as so many were drawn."""
    n = config.sequences
    states, forces, contacts = hjepa.make_sequences(world, POOL * n, config.event_clips + 1, gen,
                                                    config.clip_frames, config.start_speed, device)
    contact = contacts[:, 1:].flatten(1).any(1)
    met = contact.nonzero()[:, 0]
    free = (~contact).nonzero()[:, 0]
    many = round(share * n)
    pick = torch.cat([met[:many], free, met[many:]])[:n].sort().values
    return world.observe(states[pick]), forces[pick], contact[pick]


def same_training(record, theirs):
    """The records of two trainings: is it one, of one run?"""
    return all(theirs.get(key) == record[key] for key in SAME)


def new_record(run, args):
    """What a training says of itself before its first step."""
    return {"of": str(args.run[0]), "what": "all of it, on new worlds,", "epochs": args.epochs,
            "steps": args.epochs * (run.config.sequences // run.config.batch),
            "contacts": args.contacts, "start": cli.fingerprint([run])[:16], "n": args.n, "done": 0,
            "seconds": 0.0, "precision": args.precision, "rows": [],
            "device": hjepa.device_name(args.device)}


def train(run, saved, out, record, args, errors_of):
    """Run, its checkpoint, directory of the new one, errors_of(model) on validation worlds. Writes
    the new checkpoint."""
    model, world = run.model, hjepa.build_world(run.config)
    config = dataclasses.replace(run.config, epochs=args.epochs, lr=run.config.lr / 2)
    optimizer = hjepa.make_optimizer(model, config, args.device)
    loss = functools.partial(hjepa.objective, model, weights=config.loss_weights)
    shown = []

    def advance(record):
        """Train the next epoch -> its row, epochs done."""
        epoch = record["done"]
        if epoch == args.epochs:
            return None
        gen = hjepa.generator(config.seed, "refine", epoch)
        obs, forces, contact = draw_worlds(world, config, args.contacts / 100, gen, args.device)
        means, _ = hjepa.train_epoch(loss, model.train(), optimizer, (obs, forces), config, epoch,
                                     args.device, args.precision)
        row = {"epoch": epoch + 1, **means, "contacts": contact.float().mean().item(),
               **{name: gaps.mean().item() for name, gaps in errors_of(model.eval()).items()}}
        hjepa.print_row(row, head=not shown)
        shown.append(epoch)
        return row, epoch + 1
    record = training.train_on(out / "refining.pt", model, optimizer, record, advance,
                               lambda content: same_training(record, content["record"]), OTHERWISE)
    training.write_run(out, saved, run, refined=record)


@torch.no_grad()
def errors(model, obs, forces, chunk=1024):
    """-> dict of errors (N,) of P1 after one clip, P1 rolled out to the last clip, and P2: squared,
    the mean over dimensions, as a share of the truth's variance."""
    parts = []
    for o, f in zip(obs.split(chunk), forces.split(chunk)):
        z1, z2 = model.context(o[:, 0])
        path = model.rollout(z1, f)
        t1, t2 = model.target(o[:, -1])
        next_t1, _ = model.target(o[:, 1])
        parts.append({"P1, one clip": (path[:, 0], next_t1), "P1, rolled out": (path[:, -1], t1),
                      "P2": (model.jump(z2, f), t2)})
    found = {}
    for name in parts[0]:
        guess, truth = (torch.cat(x).cpu() for x in zip(*(part[name] for part in parts)))
        found[name] = (guess - truth).square().mean(-1) / truth.var(0).mean()
    return found


def draw(rows, history):
    """Left: error against epoch. Right: before and after, with and without a contact."""
    figure, ((left, right),) = hjepa.new_figure(1, 2, 12, 4.2)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name, colour in zip(names, hjepa.COLOURS):
        mine = {(row["when"], row["worlds"]): row for row in rows if row["name"] == name}
        left.plot([0, *(row["epoch"] for row in history)],
                  [mine["before", "all"]["error"], *(row[name] for row in history)], ".-",
                  color=colour, label=name)
        for i, (when, alpha) in enumerate((("before", 0.35), ("after", 1.0))):
            for x, worlds in enumerate(("with contact", "without contact")):
                row = mine.get((when, worlds))
                if row:
                    right.bar(x + 0.14 * (2 * names.index(name) + i - 2.5), row["error"], 0.13,
                              color=colour, alpha=alpha, yerr=drawing.whiskers(row, "error"))
    left.set(title="validation worlds, as they come", xlabel="further epoch", yscale="log",
             ylabel="squared error / variance")
    left.legend(fontsize=8)
    right.set(title="before (pale) and after", xticks=[0, 1])
    right.set_xticklabels(["with contact", "without contact"])
    for ax in (left, right):
        ax.grid(axis="y", color="0.9")
    return figure


def measure(args, runs):
    run, saved, out = training.run_to_train_on(args, runs, "-refined")
    config = run.config
    if args.contacts > 100:
        raise hjepa.Refusal(f"--contacts is {args.contacts}: give a percentage, 1 to 100")
    if args.n < 2:
        raise hjepa.Refusal("--n 1: a variance needs at least 2 worlds")
    world = hjepa.build_world(config)
    states, forces, contacts = hjepa.make_sequences(
        world, args.n, config.event_clips + 1, hjepa.generator(config.validation_seed, "refine"),
        config.clip_frames, config.start_speed, args.device)
    obs = world.observe(states)
    contacts = contacts[:, 1:].any(-1).cpu()                              # (n, clips)
    drawn = goals.goals_of(config, args.goals, "validation")

    def errors_of(model):
        return errors(model, obs, forces)

    def measured(model, when):
        """-> rows of errors, rows of goals reached."""
        gaps, plans = [], []
        for name, gap in errors_of(model).items():
            contact = contacts[:, 0] if name == "P1, one clip" else contacts.any(1)
            for worlds, some in (("all", torch.ones_like(contact)), ("with contact", contact),
                                 ("without contact", ~contact)):
                if some.any():
                    gaps.append({"name": name, "when": when, "worlds": worlds, "n": int(some.sum()),
                                 "error": gap[some].mean().item(),
                                 "error_ci": stats.interval(gap[some])})
        for planner in PLANNERS:
            final, *_ = hjepa.try_goals(planner, model, world, config, drawn,
                                        config.validation_seed, args.device)
            found = goals.summary(final[None])
            plans.append({"planner": planner, "when": when, **{key: found[key] for key in (
                "mean_body", "success", "strict", "error", "mean_body_ci", "success_ci")}})
            print("{when}, {planner}: mean body within 0.1 {mean_body:.1%}, worst body "
                  "{success:.1%}".format(**plans[-1]), flush=True)
        return gaps, plans
    record = new_record(run, args)
    with hjepa.locked(out):
        if not (out / "last.pt").exists():
            train(run, saved, out, record, args, errors_of)
        elif not same_training(record, hjepa.read_checkpoint(out).get("refined", {})):
            raise hjepa.Refusal(f"{out} is of {OTHERWISE}: give another --to")
        (out / "refining.pt").unlink(missing_ok=True)
        before, after = (measured(hjepa.load(where, args.device)[0], when)
                         for where, when in ((args.run[0], "before"), (out, "after")))
        record = hjepa.read_checkpoint(out)["refined"]
    rows, plans = (old + new for old, new in zip(before, after))
    history = record["rows"]
    arrays = {f"history/{key}": np.array([row[key] for row in history]) for key in history[0]}
    told = {key: record[key] for key in ("of", "what", "epochs", "steps", "contacts", "done",
                                         "seconds", "precision", "device", "n")}
    told["contact_share"] = arrays["history/contacts"].mean().item()
    return cli.Results(args.n, {
        "to": str(out), "frames": goals.event_frames(config), "minutes": record["seconds"] / 60,
        "goals": args.goals, "refined": told, "rows": rows, "plans": plans}, arrays,
        lambda: draw(rows, history))


def make_parser():
    parser = cli.make_parser(
        "refine", __doc__, trains=True, epochs=(70, "further epochs"),
        contacts=(50, "percent of the sequences with a contact between bodies"),
        n=(4096, "validation worlds that the errors are measured on"),
        goals=(200, "validation goals tried before and after"))
    parser.add_argument("--to", type=Path, metavar="DIR",
                        help="directory of the new run (default: --run with -refined behind)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
