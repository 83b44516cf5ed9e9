"""What the evidence scripts share: command line, errors, intervals, and the JSON behind a picture.

A script of this folder asks one question of trained runs. It looks like this:

    def measure(args, runs):                       # runs: a list of Run, one per --run
        ...                                        # args.device, args.precision, args.n
        return figure, args.n, {"rows": rows}      # what publish writes as NAME.png and NAME.json

    if __name__ == "__main__":
        parser = common.make_parser("dynamics", __doc__, n=(1024, "test worlds"))
        sys.exit(common.main(parser, measure))

and reports each mean with interval(outcomes), and each difference with paired_interval(a, b).
"""
import argparse
import dataclasses
import hashlib
import io
import json
import os
import shlex
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import hjepa                                                              # noqa: E402

DRAWS = 10_000                                  # resamples behind every interval
# model in eval mode, on args.device; epochs trained so far; what extend.py or refine.py tells, if any
Run = namedtuple("Run", "model config epochs extended", defaults=[None])

def make_parser(name, doc, **numbers):
    """A parser with the flags every script has. numbers: flag=(default, meaning), whole and > 0."""
    parser = hjepa.Parser(prog=f"figures/{name}.py", allow_abbrev=False, description=doc,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(name=name)
    parser.add_argument("--run", type=Path, action="append", metavar="DIR_OR_CHECKPOINT",
                        help="repeat it for several training seeds (default: runs/paper)")
    parser.add_argument("--out", type=Path, default=Path(os.path.relpath(HERE)),
                        help=f"where {name}.png and {name}.json go (default: figures)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16"),
                        help="of matrix products (default: fp32)")
    for flag, (default, meaning) in numbers.items():
        parser.add_argument("--" + flag, type=int, default=default, help=f"{meaning} ({default})")
    parser.set_defaults(numbers=tuple(numbers))
    return parser

def further_steps(run):
    """Steps that figures/extend.py has trained the macro level on, or figures/refine.py all of it."""
    return run.extended["steps"] if run.extended else 0

def further_part(run):
    """What of the run they have trained on, in words."""
    return run.extended.get("what", "the macro level") if run.extended else ""

def open_runs(paths, device):
    """Paths -> [Run]. Refusal unless the runs differ in their seeds and in nothing else."""
    runs = []
    for path in paths:
        model, config = hjepa.load(path, device)
        saved = hjepa.read_checkpoint(path)
        more = saved.get("extended", saved.get("refined"))
        runs.append(Run(model, config, saved["epoch"], more))
    free = ("seed", "device", "precision", "tasks")
    first, *others = ({**dataclasses.asdict(run.config), "epochs trained": run.epochs,
                       "further steps": further_steps(run),
                       "what was trained on": further_part(run)} for run in runs)
    for path, other in zip(paths[1:], others):
        differ = [k for k in first if first[k] != other[k] and k not in free]
        if differ:
            raise hjepa.Refusal(f"{path} differs from {paths[0]} in {', '.join(differ)}: give runs "
                                "that differ in --seed only")
    if len({run.config.seed for run in runs}) < len(runs):
        raise hjepa.Refusal("two runs have the same seed: give each --run once")
    return runs

def run_to_train_on(args, runs, suffix):
    """For a script that trains a run on -> the one Run, its checkpoint, the directory of the new one:
    --to, or that of the run with `suffix` behind. Refusal of what is not one whole training."""
    if len(runs) > 1:
        raise hjepa.Refusal("one --run at a time: each is trained on by itself")
    run, path = runs[0], args.run[0]
    if not args.to and not path.is_dir():
        raise hjepa.Refusal("--to DIR is needed: where the new run is to be kept")
    if run.extended:
        raise hjepa.Refusal(f"{path} has been trained on already: give the run that it came from")
    if run.epochs < run.config.epochs:
        left = run.config.epochs - run.epochs
        raise hjepa.Refusal(f"{path} has {left} epochs to go: train it to the end first")
    return run, hjepa.read_checkpoint(path), args.to or path.with_name(path.name + suffix)

def save(path, content):
    """Whole or not at all."""
    whole = io.BytesIO()                        # on a full disk torch.save raises no OSError
    torch.save(content, whole)
    with hjepa.atomic(path) as part:
        part.write_bytes(whole.getbuffer())

def go_on(path, model, optimizer, fits, otherwise):
    """Goes on from the unfinished training in the file at `path`, which save({"told": dict, "model",
    "optimizer"}) wrote: fills model and optimizer. -> what it tells. Refusal if it is damaged, or
    not fits(its content); `otherwise` says what it may be then."""
    try:
        half = torch.load(path, map_location="cpu", weights_only=True)
        if not fits(half):
            raise ValueError(f"it is of {otherwise}")
        model.load_state_dict(half["model"])
        optimizer.load_state_dict(half["optimizer"])
    except Exception as e:                      # torch.load has a dozen ways to say the same thing
        why = (str(e).splitlines() or [""])[0][:80] or type(e).__name__
        raise hjepa.Refusal(f"{path} cannot be gone on from ({why}): move it away, or give another "
                            "--to") from None
    return half["told"]

def keep(out, saved, run, **told):
    """The run trained on, as a checkpoint in `out`: what it came from, new weights, `told`."""
    fresh = hjepa.make_optimizer(run.model, run.config, torch.device("cpu")).state_dict()
    save(out / "last.pt", {**saved, "model": run.model.state_dict(),      # the old moments are of
                           "optimizer": fresh, **told})                   # other weights

def fingerprint(runs):
    """What tells the weights of one list of runs from those of another."""
    digest = hashlib.sha256()
    for run in runs:
        for weight in run.model.state_dict().values():
            digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()

def kept_rows(path, told):
    """Rows of a study that was interrupted, from its NAME.part.json {"told", "rows"}, if there is one.
    Refusal if it is another one. `publish` removes the file when the study is finished."""
    if not path.exists():
        return []
    try:
        half = json.loads(path.read_text())
        theirs, rows = half["told"], half["rows"]
    except (ValueError, KeyError, TypeError):
        raise hjepa.Refusal(f"{path} is damaged: move it away") from None
    if theirs != told:
        differ = ", ".join(k for k in told if theirs.get(k) != told[k])
        raise hjepa.Refusal(f"{path} is what is left of a study with other {differ}: repeat that one, "
                            "or move it away")
    return rows

def resampled_means(outcomes):
    """Outcomes (seeds, tasks) or (tasks,) -> (DRAWS,) means, each over resampled seeds and tasks.

    Hierarchical: seeds are drawn, and tasks within them. All seeds are measured on the same tasks,
    so a draw takes the same tasks from each seed it took. With one seed only tasks are drawn. The
    generator is always fresh: two arrays of one shape are resampled alike, so that differences
    and ratios of what this returns are paired.
    """
    table, rng = np.atleast_2d(np.asarray(outcomes, dtype=float)), np.random.default_rng(0)
    seeds, tasks = table.shape
    means = np.empty((seeds, DRAWS))                                      # of each seed, each draw
    for part in np.split(np.arange(DRAWS), 20):                           # not all at once: memory
        pick = rng.integers(0, tasks, (len(part), tasks))
        for row, mean in zip(table, means):
            mean[part] = row[pick].mean(1)
    return np.take_along_axis(means, rng.integers(0, seeds, (seeds, DRAWS)), 0).mean(0)

def percentiles(draws):
    """Draws (DRAWS,) -> [low, high], the middle 95 %."""
    return np.percentile(draws, [2.5, 97.5]).tolist()

def interval(outcomes):
    """Outcomes (seeds, tasks) or (tasks,), numbers or bools -> [low, high]: 95 %, of their mean.

    Outcomes that are all alike cannot be resampled into others: 200 goals reached of 200 give
    [1, 1], which says "nothing else was seen", not "certain" (by the rule of three: above 0.985).
    """
    return percentiles(resampled_means(outcomes))

def paired_interval(a, b):
    """Mean of A minus B on the same seeds and tasks -> difference, [low, high]. Shapes broadcast:
    what does not depend on the seed may be (tasks,) or (1, tasks)."""
    gap = np.subtract(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return gap.mean().item(), interval(gap)

def interval_note(runs, draws=DRAWS):
    """How the intervals were made, in words, for the JSON."""
    over = "seeds, then tasks" if len(runs) > 1 else "tasks only: there is one training seed"
    return f"95 %, {draws:,} bootstrap resamples over {over}"

def head(args, runs, n):
    """What every JSON begins with: what was run, where, on which seeds, how much, after what."""
    return {"command": f"python figures/{args.name}.py " + shlex.join(args.argv),
            "device": hjepa.device_name(args.device), "precision": args.precision,
            "torch": torch.__version__, "seeds": [run.config.seed for run in runs], "n": n,
            "epochs": runs[0].epochs, "sequences": runs[0].config.sequences,
            **({"further_steps": further_steps(runs[0]), "further": further_part(runs[0])}
               if runs[0].extended else {}),
            "intervals": interval_note(runs)}

def publish(args, runs, n, figure, content):
    """Writes NAME.png and NAME.json, whole or not at all; what a script kept in NAME.part.json, to
    go on from after an interruption, is done with."""
    with hjepa.atomic(args.out / f"{args.name}.png") as part:
        figure.savefig(part, format="png")
    hjepa.write_json(args.out / f"{args.name}.json", {**head(args, runs, n), **content})
    (args.out / f"{args.name}.part.json").unlink(missing_ok=True)
    print(f"wrote {args.out / args.name}.png and .json")

def main(parser, measure, argv=None):
    """Parse, load the runs, measure(args, runs) -> figure, n, content; publish. -> exit code:
    0 done, 2 something to mend (one line says what), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "" in argv:
            raise hjepa.Refusal("an argument is empty: give a value, or leave the flag out")
        args = parser.parse_args(argv)
        for flag in args.numbers:
            if not 1 <= getattr(args, flag) <= 100_000:                   # more would fill memory
                raise hjepa.Refusal(f"--{flag} is {getattr(args, flag)}: give 1 to 100000")
        args.argv, args.device = argv, hjepa.pick_device(args.device)
        args.run = args.run or [Path("runs/paper")]
        args.precision = hjepa.pick_precision(args.precision, args.device)
        runs = open_runs(args.run, args.device)
        figure, n, content = measure(args, runs)
        publish(args, runs, n, figure, content)
    except (hjepa.Refusal, ValueError, OSError, MemoryError, torch.OutOfMemoryError) as e:
        mend = ": mend that, or choose another --run or --out" if isinstance(e, OSError) else ""
        print(f"{parser.prog}:", (str(e) or "out of memory").splitlines()[0] + mend,
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: stopped, nothing is half-written", file=sys.stderr)
        return 130
    return 0
