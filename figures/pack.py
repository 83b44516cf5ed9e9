"""Packs a trained run into one small file that needs no training: figures/weights/hjepa.pt.

    python figures/pack.py --run runs/paper
    python hjepa.py plan --run figures/weights/hjepa.pt        # and every other command and study

Weights in half precision, no state of the optimizer, the rest of the checkpoint as it is. It is
loaded as any checkpoint is, with weights_only=True, and computes in float32 again. What is rounded
stays rounded: to go on with the training itself, the run's own directory is needed.
"""
import argparse
import io
import os
import sys
from pathlib import Path

from lib import ROOT, cli
import hjepa
import torch

PAPER = Path("runs/paper")
WEIGHTS = ROOT / "figures" / "weights" / "hjepa.pt"


def packed(saved):
    """The content of a checkpoint -> the content of the small file."""
    config = hjepa.Config(**saved["config"])
    fresh = hjepa.make_optimizer(hjepa.build_model(config), config, torch.device("cpu"))
    half = {name: weight.half() for name, weight in saved["model"].items()}
    return {**saved, "model": half, "optimizer": fresh.state_dict()}


def check(run, to):
    """-> the checkpoint of the run. Refusal of what is not to be packed, or not there."""
    source = run / "last.pt" if run.is_dir() else run
    if to.exists() and source.exists() and to.samefile(source):
        raise hjepa.Refusal(f"{to} is the run itself: give another --to")
    saved = hjepa.read_checkpoint(run)
    left = saved["config"]["epochs"] - saved["epoch"]
    if left > 0:
        raise hjepa.Refusal(f"{run} has {left} epochs to go: train it to the end first")
    return saved


def pack(run, to):
    """Write the small file, whole or not at all."""
    if to is None and run != PAPER:
        raise hjepa.Refusal(f"--to FILE is needed: figures/weights/hjepa.pt is for {PAPER} alone")
    to = to or Path(os.path.relpath(WEIGHTS))
    saved = check(run, to)
    whole = io.BytesIO()                        # torch.save to a full disk raises no OSError
    torch.save(packed(saved), whole)
    with hjepa.whole_file(to) as part:
        part.write_bytes(whole.getbuffer())
        hjepa.load(part)                        # looked at before it takes the old one's place
    print(f"wrote {to}, {to.stat().st_size / 1e6:.1f} MB: seed {saved['config']['seed']}, "
          f"{saved['epoch']} epochs")


def main(argv=None):
    """-> exit code: 0 done, 2 a mistake that one line describes, 130 interrupted."""
    parser = hjepa.Parser(prog="figures/pack.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=PAPER, help="directory or checkpoint")
    parser.add_argument("--to", type=Path, metavar="FILE",
                        help="file to write (default, for runs/paper: figures/weights/hjepa.pt)")

    def work():
        args = parser.parse_args(argv)
        pack(args.run, args.to)
    return cli.exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
