"""Packs a trained run into one small file that needs no training: figures/hjepa.pt.

    python figures/ship.py --run runs/paper
    python hjepa.py plan --run figures/hjepa.pt        # and every other command and script

Weights in half precision, no state of the optimizer, the rest of the checkpoint as it is. It is
loaded as any checkpoint is, with weights_only=True, and computes in float32 again. What is rounded
stays rounded: to go on with the training itself, the run's own directory is needed.
"""
import argparse
import io
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import hjepa                                                              # noqa: E402
import torch                                                              # noqa: E402


def packed(saved):
    """A checkpoint's content -> the content of the small file."""
    config = hjepa.Config(**saved["config"])
    fresh = hjepa.make_optimizer(hjepa.build(config), config, torch.device("cpu"))
    half = {name: weight.half() for name, weight in saved["model"].items()}
    return {**saved, "model": half, "optimizer": fresh.state_dict()}


def main(argv=None):
    """-> exit code: 0 done, 2 something to mend (one line says what)."""
    parser = hjepa.Parser(prog="figures/ship.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/paper"), help="or a checkpoint")
    parser.add_argument("--to", type=Path, metavar="FILE",
                        help="to write (default, for runs/paper alone: figures/hjepa.pt)")
    try:
        args, whole = parser.parse_args(argv), io.BytesIO()
        if not args.to and args.run != Path("runs/paper"):
            raise hjepa.Refusal("--to FILE is needed: figures/hjepa.pt is for runs/paper alone")
        args.to = args.to or Path(os.path.relpath(HERE / "hjepa.pt"))
        given = args.run / "last.pt" if args.run.is_dir() else args.run
        if args.to.exists() and given.exists() and args.to.samefile(given):
            raise hjepa.Refusal(f"{args.to} is the run itself: give another --to")
        saved = hjepa.read_checkpoint(args.run)
        left = hjepa.Config(**saved["config"]).epochs - saved["epoch"]
        if left:
            raise hjepa.Refusal(f"{args.run} has {left} epochs to go: train it to the end first")
        torch.save(packed(saved), whole)
        with hjepa.atomic(args.to) as part:
            part.write_bytes(whole.getbuffer())
            hjepa.load(part)                    # looked at before it takes the old one's place
    except (hjepa.Refusal, ValueError, OSError) as e:
        print(f"{parser.prog}:", str(e).splitlines()[0], file=sys.stderr)
        return 2
    print(f"wrote {args.to}, {len(whole.getbuffer()) / 1e6:.1f} MB: "
          f"seed {saved['config']['seed']}, {saved['epoch']} epochs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
