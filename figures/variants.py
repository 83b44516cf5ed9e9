"""Every system of the literature on one world: what does one change do?

    python figures/variants.py --run runs/quick                   # all variants, 3 and 9 epochs
    python figures/variants.py --run runs/quick --table           # what is done, what is missing
    python figures/variants.py --run runs/quick --only SIGReg "EMA target" --epochs 3 9 27
    python figures/variants.py --run runs/quick --only "the run" SIGReg --seeds 0 1 2
    python figures/variants.py --run runs/quick --seeds 0 1 2 --epochs 3 9 27 --gather

A variant has the settings of the run, its sequences and its start weights, and one thing changed:
lib/variants_list.py names them all, with their sources; `--table` lists them. It is trained for
each number of --epochs and each of --seeds in RUN/variants. The run itself is trained there, too.
Start the command in several terminals to share the work: each training is taken by one of them. A
stopped command goes on where it was. --gather trains nothing and publishes what is measured.

One number of each variant is tuned, with three trials each, of --trial-epochs: see "tuned" in the
JSON. A trial counts goals reached on validation worlds, closed loop and by one macro jump. The
first value stays unless another one is better beyond its 95 % interval.

rows, one per variant and length: shares of test goals reached (worst body within 0.1) in closed
loop (P1, replanned every clip), by macro (P2, open loop) and by short (P1, open loop); "gain_ci":
the paired interval of the difference from the run with as many epochs, on the same goals and seeds;
t1, t2: the landscape, where the true simulator predicts and the distance is that of t1 or t2;
macro_error: squared error of P2 as a share of the variance; rank1, rank2: effective rank of t1, t2.
All searches begin at no force, with the plain distance and the run's budget.

The NPZ has the rest. columns/NAME holds a number per row, as they stand in the JSON: mean body,
goals with and without a contact, of the landscapes, too; errors with and without a contact;
Spearman correlations of the distance in t1 and t2 with the true one, near ("order near": neighbours
of a clip) and far (other worlds), and with the clips that a search in the true simulator needs
("order clips"); pass-through surprise; probes; ranks; training sequences per second.
errors/VARIANT/EPOCHS/PLAN (seeds, goals) is the distance of the worst body.
"""
import sys

from lib import cli, goals, stats
from lib import variants_judge as judge
from lib import variants_list as lists
from lib import variants_runs as runs
import hjepa
import numpy as np
import torch

COLOURS = dict(zip(lists.FAMILIES, ("0.1", "#b2182b", "#2166ac", "#1b7837", "#762a83", "#e08214")))
MARKERS = ("o", "s", "^", "D", "v", "P")        # of the lengths


# ---- rows

def errors_of(notes, plan, seeds):
    """measured.json of each seed -> final errors (seeds, goals, bodies), or None if one of them has
    none: no macro level, or a training that broke down."""
    found = [notes[seed]["errors"].get(plan) for seed in seeds]
    return None if None in found else torch.tensor(found)


def rounded(value):
    """Numbers to four digits: the table has many."""
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def mean_column(notes, column):
    """-> the mean of a column over seeds; None if one of them has no number there."""
    values = [note["columns"].get(column) for note in notes.values()]
    return None if None in values else sum(values) / len(values)


def make_row(name, epochs, notes, of_run):
    """Notes of a variant and of the run (or None), both by seed -> a row of the JSON."""
    broken = [note["broken"] for note in notes.values() if note["broken"]]
    row = {"variant": name, "epochs": epochs, "seeds": len(notes)}
    if broken:
        return {**row, "broken": broken[0]}
    common = [seed for seed in notes if of_run and seed in of_run]
    for plan in judge.PLANS:
        errors = errors_of(notes, plan, list(notes))
        if errors is None:
            continue
        row[plan] = goals.outcomes(errors)["success"].mean().item()
        theirs = errors_of(of_run, plan, common) if common else None
        if theirs is not None and name != "the run":
            mine = errors_of(notes, plan, common)
            gain = goals.differences(mine, theirs, ("success",))
            if plan == "closed":
                row["closed_gain"] = gain["success"]
            row[f"{plan}_gain_ci"] = gain["success_ci"]
    for tap in judge.TAPS:
        errors = errors_of(notes, f"landscape {tap}", list(notes))
        row[tap] = goals.outcomes(errors)["success"].mean().item()
    for key, column in (("macro_error", "macro error"), ("rank1", "rank t1"), ("rank2", "rank t2")):
        if key != "macro_error" or "macro" in row:
            row[key] = mean_column(notes, column)
    return {key: rounded(value) for key, value in row.items()}


def make_columns(found, contact):
    """-> dict of arrays: columns/NAME (rows,), NaN where there is no number; and the errors."""
    table = []
    arrays = {"contact": contact.numpy()}
    for (name, epochs), notes in found.items():
        keys = {key for note in notes.values() for key in note["columns"]}
        row = {key: mean_column(notes, key) for key in sorted(keys)}
        for plan in (*judge.PLANS, *(f"landscape {tap}" for tap in judge.TAPS)):
            errors = errors_of(notes, plan, list(notes))
            if errors is None:
                continue
            reached = goals.outcomes(errors)
            row[f"{plan} reached"] = reached["success"].mean()
            row[f"{plan} mean body"] = reached["mean_body"].mean()
            for which, who in (("contact", contact), ("no contact", ~contact)):
                if who.any():
                    row[f"{plan} {which}"] = reached["success"][:, who].mean()
            arrays[f"errors/{name}/{epochs}/{plan}"] = errors.amax(-1).numpy()
        table.append(row)
    for key in {key: None for row in table for key in row}:
        values = [row.get(key) for row in table]
        numbers = [np.nan if value is None else value for value in values]
        arrays[f"columns/{key}"] = np.array(numbers, dtype=np.float32)
    return arrays


def print_rows(rows):
    """A line per row, the best closed loop first."""
    for row in sorted(rows, key=lambda row: (row["epochs"], -row.get("closed", 0))):
        if "broken" in row:
            print(f"{row['variant']:>28}, {row['epochs']:2} epochs: {row['broken']}")
            continue
        macro = f"{row['macro']:6.1%}" if "macro" in row else "  none"
        print(f"{row['variant']:>28}, {row['epochs']:2} epochs: closed loop {row['closed']:6.1%}, "
              f"macro {macro}, short {row['short']:6.1%}, rank {row['rank1']:.0f} and "
              f"{row['rank2']:.0f}")


# ---- the picture

def draw_dots(ax, rows, lengths, x, y):
    """A dot per row, coloured by family; a line joins the lengths of a variant. Named at its longest
    length is the run, and what differs from it there beyond the interval."""
    for name in {row["variant"]: None for row in rows}:
        mine = [row for row in rows if row["variant"] == name]
        mine = [row for row in mine if row.get(x) is not None and row.get(y) is not None]
        if not mine:
            continue
        colour = COLOURS[lists.VARIANTS[name].family]
        at = [(row[x], row[y]) for row in mine]
        ax.plot(*zip(*at), color=colour, lw=0.5, alpha=0.4)
        for row in mine:
            marker = MARKERS[lengths.index(row["epochs"]) % len(MARKERS)]
            ax.plot(row[x], row[y], marker, color=colour, ms=9 if name == "the run" else 5)
        low, high = mine[-1].get(f"{y}_gain_ci", (0, 0))
        if name == "the run" or low > 0 or high < 0:
            ax.annotate(name, at[-1], fontsize=8, xytext=(5, 3), textcoords="offset points",
                        color=colour)
    ax.grid(color="0.9")


def draw(rows, lengths):
    """-> figure: one macro jump against macro error; closed loop against effective rank."""
    figure, axes = hjepa.new_figure(1, 2, 15, 7)
    panels = (("macro_error", "macro", "error of P2, share of the variance", "one macro jump"),
              ("rank1", "closed", "effective rank of t1", "closed loop"))
    for ax, (x, y, what, plan) in zip(axes[0], panels):
        draw_dots(ax, rows, lengths, x, y)
        ax.set(xscale="log", xlabel=what, ylabel=f"goals reached by the worst body, {plan}")
        ax.margins(x=0.12)
    for family, colour in COLOURS.items():
        axes[0, 0].plot([], [], "o", color=colour, label=family)
    for epochs, marker in zip(lengths, MARKERS):
        axes[0, 0].plot([], [], marker, color="0.5", label=f"{epochs} epochs")
    axes[0, 0].legend(fontsize=8)
    return figure


# ---- the study

def check(args, config):
    """Refusal of what cannot be studied."""
    for flag in ("epochs", "seeds"):
        values = getattr(args, flag)
        if len(set(values)) < len(values):
            raise hjepa.Refusal(f"--{flag} has a number twice: give each once")
    for epochs in args.epochs:
        cli.check_number("epochs", epochs)
    cli.check_number("trial-epochs", args.trial_epochs)
    cli.check_number("trial-goals", args.trial_goals)
    for seed in args.seeds:
        if not 0 <= seed <= 999_999:
            raise hjepa.Refusal(f"--seeds {seed}: give 0 to 999999")
    if config.event_clips < 3 or config.clip_frames < 4:
        raise hjepa.Refusal("the variants need a run with 3 clips or more in a macro-event and 4 "
                            "frames or more in a clip")
    if config.shared:
        raise hjepa.Refusal("the run has one encoder for context and target: the variants need two")
    for name in args.only or ():
        if lists.as_the_run(name, config):
            raise hjepa.Refusal(f"--only {name!r}: this run is already trained so")


def names_of(args, config):
    """-> the variants to be trained: the run is always one of them."""
    wanted = [name for name in lists.VARIANTS if not lists.as_the_run(name, config)]
    return [name for name in wanted if not args.only or name in ("the run", *args.only)]


def open_study(args, run):
    """-> runs.Study, how many goals and worlds it measures on."""
    saved = hjepa.read_checkpoint(args.run[0])
    base = hjepa.Config(**{**saved["config"], "precision": saved["precision"],
                           "device": args.device.type})
    study = runs.Study(base, runs.home_of(args.run[0]), args.device, args.trial_epochs,
                       run.config.seed, args.trial_goals)
    sizes = {"goals": args.goals, "n": args.n, "pairs": args.pairs, "oracle": args.oracle}
    return study, sizes


def gather(study, names, args, sizes):
    """-> Results: what is measured."""
    found = runs.measured(study, names, args.epochs, args.seeds, sizes)
    if not found:
        raise hjepa.Refusal("nothing is measured yet: leave --gather out, or wait for those at "
                            "work (see --table)")
    rows = [make_row(name, epochs, notes, found.get(("the run", epochs)))
            for (name, epochs), notes in found.items()]
    print_rows(rows)
    contact = goals.goals_of(study.base, sizes["goals"])["contact"]
    tuned = {name: runs.how_tuned(study, name) for name in names}
    missing = [f"{name}, {epochs}" for epochs in args.epochs for name in names
               if (name, epochs) not in found]
    summary = {"sizes": sizes, "n_contact": int(contact.sum()), "epochs": args.epochs,
               "seeds": args.seeds, "trial_epochs": study.trial_epochs,
               "trial_goals": study.trial_goals,
               "intervals": stats.interval_note(args.seeds), "missing": missing, "tuned": tuned,
               "rows": rows}
    return cli.Results(args.goals, summary, make_columns(found, contact),
                       lambda: draw(rows, args.epochs))


def make_parser():
    parser = cli.make_parser("variants", __doc__, goals=(200, "test goals"),
                             n=(4096, "test worlds that are encoded"),
                             pairs=(200, "pairs of films"),
                             oracle=(60, "goals whose distance the oracle measures, in clips"))
    parser.add_argument("--trial-epochs", type=int, default=3, help="epochs of a trial (3)")
    parser.add_argument("--trial-goals", type=int, default=100,
                        help="validation goals of a trial (100)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 9],
                        help="lengths of training (3 9)")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (that of the run)")
    parser.add_argument("--only", nargs="+", choices=lists.VARIANTS, metavar="NAME",
                        help="variants to train and measure (default: all)")
    parser.add_argument("--table", action="store_true",
                        help="print what is done and what is missing, and do nothing")
    parser.add_argument("--gather", action="store_true",
                        help="train nothing; publish what is measured")
    return parser


def main(argv=None):
    """-> exit code."""
    parser = make_parser()

    def work():
        args, opened = cli.parse(parser, argv)
        run = cli.one_run(opened)
        args.seeds = args.seeds or [run.config.seed]
        args.epochs = sorted(args.epochs)
        check(args, run.config)
        study, sizes = open_study(args, run)
        names = names_of(args, run.config)
        if args.table:
            names = list(lists.VARIANTS) if not args.only else names
            print("\n".join(runs.table(study, names, args.epochs, args.seeds, sizes)))
            return
        if not args.gather:
            missing = runs.work(study, names, args.epochs, args.seeds, sizes,
                                judge.Judge(study, sizes))
            for training in missing:
                print(f"another process is at {training.name}, {training.epochs} epochs")
        cli.publish(args, opened, gather(study, names, args, sizes))
    return cli.exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
