"""Training a finished run further, for extend.py and refine.py.

What such a training says of itself is its record, a dict: its settings, steps, done (how far it
is), seconds, and rows (one per piece of training). It is kept with the unfinished weights, and in
the end inside the new checkpoint.
"""
import io
import time

import hjepa
import torch


def save(path, content):
    """torch.save, whole or not at all."""
    whole = io.BytesIO()                        # torch.save to a full disk raises no OSError
    torch.save(content, whole)
    with hjepa.whole_file(path) as part:
        part.write_bytes(whole.getbuffer())


def run_to_train_on(args, runs, suffix):
    """-> the run, its checkpoint, the directory of the new one: --to, or the run's with the suffix.

    Refusal of what is not one whole training.
    """
    if len(runs) > 1:
        raise hjepa.Refusal("one --run at a time: each is trained further by itself")
    run, path = runs[0], args.run[0]
    if not args.to and not path.is_dir():
        raise hjepa.Refusal("--to DIR is needed: where the new run is to be kept")
    if run.further:
        raise hjepa.Refusal(f"{path} has been trained further already: give the run that it came "
                            "from")
    if run.epochs < run.config.epochs:
        left = run.config.epochs - run.epochs
        raise hjepa.Refusal(f"{path} has {left} epochs to go: train it to the end first")
    return run, hjepa.read_checkpoint(path), args.to or path.with_name(path.name + suffix)


def resume(path, model, optimizer, fits, otherwise):
    """Fill model and optimizer from the unfinished training in the file `path` -> its record.

    Refusal if the file is damaged, or not fits(its content). `otherwise` says what else it may be.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not fits(content):
            raise ValueError(f"it is of {otherwise}")
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        return content["record"]
    except Exception as error:                  # torch.load has a dozen ways to say the same thing
        raise hjepa.Refusal(f"{path} cannot be gone on from ({hjepa.first_line(error)[:80]}): move "
                            "it away, or give another --to") from None


def train_on(path, model, optimizer, record, advance, fits, otherwise):
    """Train from where the file `path` stands, if there is one, to the end -> the record.

    record: what a training says before its first piece. advance(record) trains one piece -> a row
    and how far it is then, or None if nothing is left to do. After each piece all is saved.
    """
    if path.exists():
        record = resume(path, model, optimizer, fits, otherwise)
    while True:
        start = time.perf_counter()
        piece = advance(record)
        if piece is None:
            return record
        row, record["done"] = piece
        record["rows"].append(row)
        record["seconds"] += time.perf_counter() - start
        save(path, {"record": record, "model": model.state_dict(),
                    "optimizer": optimizer.state_dict()})


def write_run(out, saved, run, **entry):
    """Write the run trained further as a checkpoint in `out`: what it came from, its new weights,
    and the record as one entry more.

    The moments of the optimizer belonged to the old weights: they start fresh.
    """
    fresh = hjepa.make_optimizer(run.model, run.config, torch.device("cpu")).state_dict()
    save(out / "last.pt", {**saved, "model": run.model.state_dict(), "optimizer": fresh, **entry})
