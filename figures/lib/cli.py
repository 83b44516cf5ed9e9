"""The command line of a study: flags, runs, errors in one line, results on disk.

A study asks one question of trained runs. Its file looks like this:

    from lib import cli, stats
    import hjepa

    def draw(rows):
        return figure

    def measure(args, runs):
        rows = ...
        return cli.Results(args.n, {"rows": rows}, figure=lambda: draw(rows))

    if __name__ == "__main__":
        parser = cli.make_parser("dynamics", __doc__, n=(4096, "test worlds"))
        sys.exit(cli.main(parser, measure))

It is run as `python figures/NAME.py --run DIR_OR_CHECKPOINT`.
"""
import argparse
import dataclasses
import hashlib
import json
import shlex
import sys
from collections import namedtuple
from pathlib import Path

import hjepa
import numpy as np
import torch

from lib import stats

# What open_runs gives: the model in eval mode on the device, its Config, the epochs it was trained.
Run = namedtuple("Run", "model config epochs")

# What `measure` returns. n: how many test worlds, goals or pairs. summary: content of NAME.json.
# arrays: the content of NAME.npz, a dict of arrays, or None. figure: a function without arguments
# that draws NAME.png; it is called when the numbers are already on disk.
Results = namedtuple("Results", "n summary arrays figure", defaults=[None, None])

LARGEST = 100_000                               # of a number flag: more would fill the memory


def make_parser(name, doc, trains=False, **numbers):
    """-> a parser with the flags that every study has.

    trains: the study trains, so it has --precision. What is evaluated is float32 always.
    numbers: flag=(default, meaning), whole numbers from 1 to LARGEST.
    """
    parser = hjepa.Parser(prog=f"figures/{name}.py", allow_abbrev=False, description=doc,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(name=name, precision="fp32", numbers=tuple(numbers))
    parser.add_argument("--run", type=Path, action="append", metavar="DIR_OR_CHECKPOINT",
                        help="repeat it for several training seeds (default: runs/paper)")
    parser.add_argument("--out", type=Path,
                        help=f"where {name}.json and {name}.png go (default: the figures folder of "
                             "the run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    if trains:
        parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16"),
                            help="of matrix products in training (default: fp32)")
    for flag, (default, meaning) in numbers.items():
        parser.add_argument("--" + flag.replace("_", "-"), type=int, default=default,
                            help=f"{meaning} ({default})")
    return parser


def open_runs(paths, device):
    """Run directories or checkpoint files -> [Run].

    Refusal unless the runs differ in their seeds and in nothing that matters for a result.
    """
    runs = []
    for path in paths:
        saved = hjepa.read_checkpoint(path)
        model, config = hjepa.restore(saved, device)
        runs.append(Run(model, config, saved["epoch"]))
    may_differ = ("seed", "device", "precision", "goals")
    settings = [{**dataclasses.asdict(run.config), "epochs trained": run.epochs} for run in runs]
    first = settings[0]
    for path, other in zip(paths[1:], settings[1:]):
        differ = [name for name in first if first[name] != other[name] and name not in may_differ]
        if differ:
            raise hjepa.Refusal(f"{path} differs from {paths[0]} in {', '.join(differ)}: give runs "
                                "that differ in --seed only")
    if len({run.config.seed for run in runs}) < len(runs):
        raise hjepa.Refusal("two runs have the same seed: give each --run once")
    return runs


def one_run(runs):
    """-> the only run. Refusal if there are several."""
    if len(runs) > 1:
        raise hjepa.Refusal("this study is of one run: give one --run")
    return runs[0]


def fingerprint(models):
    """-> a hex digest of all weights: it tells the models of one study from those of another."""
    digest = hashlib.sha256()
    for model in models:
        for weight in model.state_dict().values():
            digest.update(weight.cpu().numpy().tobytes())
    return digest.hexdigest()


class KeptRows:
    """Finished rows of a study in OUT/NAME.part.json, so that an interrupted study goes on there.

    study: a dict that tells this study from others (weights, number of goals, ...). Refusal if the
    file is damaged or belongs to another study. `publish` removes it when the study is finished.
    """

    def __init__(self, args, study):
        self.path = part_file(args)
        self.study = study
        self.rows = []
        if not self.path.exists():
            return
        try:
            content = json.loads(self.path.read_text())
            other, self.rows = content["study"], content["rows"]
        except (ValueError, KeyError, TypeError):
            raise hjepa.Refusal(f"{self.path} is damaged: move it away") from None
        differ = [name for name in study if other.get(name) != study[name]]
        if differ:
            raise hjepa.Refusal(f"{self.path} belongs to an unfinished study with other "
                                f"{', '.join(differ)}: repeat that one, or move the file away")

    def find(self, **values):
        """-> the kept row that has all these values, or None."""
        for row in self.rows:
            if all(row[name] == value for name, value in values.items()):
                return row
        return None

    def add(self, row):
        """Keep a row: a dict of what JSON can hold. Floats are kept exactly."""
        self.rows.append(row)
        with hjepa.whole_file(self.path) as part:
            part.write_text(json.dumps({"study": self.study, "rows": self.rows}))


def part_file(args):
    """-> the path of the file that keeps the rows of an unfinished study."""
    return args.out / f"{args.name}.part.json"


def head(args, runs, n):
    """-> what every JSON begins with: what was run, where, on which seeds, how much."""
    return {"command": f"python figures/{args.name}.py " + shlex.join(args.argv),
            "device": hjepa.device_name(args.device), "precision": args.precision,
            "torch": torch.__version__, "seeds": [run.config.seed for run in runs], "n": n,
            "epochs": runs[0].epochs, "sequences": runs[0].config.sequences,
            "intervals": stats.interval_note(runs)}


def write_json(path, content):
    """As hjepa.write_json, but a table, a list of dicts, has a line per row: shorter, and to be
    read like a table."""
    entries = []
    for key, value in hjepa.rounded(content).items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = [json.dumps(row, allow_nan=False, separators=(",", ":")) for row in value]
            text = "[\n  " + ",\n  ".join(rows) + "\n ]"
        entries.append(f" {json.dumps(key)}: {text}")
    with hjepa.whole_file(path) as part:
        part.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def publish(args, runs, results):
    """Write NAME.json and NAME.npz, then draw and write NAME.png; each whole or not at all."""
    written = [f"{args.name}.json"]
    write_json(args.out / f"{args.name}.json", {**head(args, runs, results.n), **results.summary})
    if results.arrays is not None:
        written.append(f"{args.name}.npz")
        with hjepa.whole_file(args.out / f"{args.name}.npz") as part:
            with open(part, "wb") as file:
                np.savez_compressed(file, **results.arrays)
    part_file(args).unlink(missing_ok=True)
    if results.figure is not None:
        written.append(f"{args.name}.png")
        figure = results.figure()
        with hjepa.whole_file(args.out / f"{args.name}.png") as part:
            figure.savefig(part, format="png")
    print(f"wrote {', '.join(written)} in {args.out}")


def exit_code(program, work):
    """Call work() -> 0 done, 2 a mistake that one line on stderr describes, 130 interrupted."""
    try:
        work()
    except Exception as error:
        line = hjepa.mistake(error)
        if line is None:                        # a bug of ours: it keeps its traceback
            raise
        print(f"{program}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program}: stopped, no file is half-written", file=sys.stderr)
        return 130
    return 0


def parse(parser, argv=None):
    """Command line -> (args, runs). args has out, device, precision and argv filled in."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "" in argv:                              # as in --run "$UNSET"
        raise hjepa.Refusal("an argument is empty: give a value, or leave the flag out")
    args = parser.parse_args(argv)
    for flag in args.numbers:
        check_number(flag.replace("_", "-"), getattr(args, flag))
    args.argv = argv
    args.run = args.run or [Path("runs/paper")]
    args.out = args.out or hjepa.default_out(args.run[0])
    args.device = hjepa.pick_device(args.device)
    args.precision = hjepa.pick_precision(args.precision, args.device)
    runs = open_runs(args.run, args.device)
    hjepa.try_out(args.out)
    return args, runs


def check_number(flag, value):
    """Refusal unless the value of a number flag lies between 1 and LARGEST."""
    if not 1 <= value <= LARGEST:
        raise hjepa.Refusal(f"--{flag} is {value}: give 1 to {LARGEST}")


def main(parser, measure, argv=None):
    """Parse the command line, measure(args, runs) -> Results, publish them. -> exit code."""
    def work():
        args, runs = parse(parser, argv)
        publish(args, runs, measure(args, runs))
    return exit_code(parser.prog, work)
