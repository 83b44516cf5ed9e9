"""The training of any network in one file: resumed, whole or absent, another one's refused.

It is the loop of hjepa.train without its gauges: the same batches, symmetries, optimiser and
schedule, for any network and any loss.
"""
import io
import json
import time

import hjepa
import torch


def read(path, build, missing, script):
    """File of `train` -> dict(settings, epochs, model, optimizer, rows). Nothing in it is executed.

    build(settings) -> the network. Refusal, in the words `missing`, if there is no file, and if it
    is damaged: then script trains it again.
    """
    if not path.is_file():
        raise hjepa.Refusal(missing)
    try:
        hjepa.check_archive(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        build(saved["settings"]).load_state_dict(saved["model"])
        if len(saved["rows"]) > saved["epochs"]:
            raise ValueError("the parts do not fit")
        return saved
    except Exception as error:                  # torch.load has a dozen ways to say the same thing
        raise hjepa.Refusal(f"{path} is damaged or not of {script} "
                            f"({hjepa.first_line(error)[:80]}): move it away and train again"
                            ) from None


def save(path, content, log=None):
    """Write the file, and a line per epoch to the file log, if there is one; whole or not at
    all."""
    whole = io.BytesIO()                        # torch.save to a full disk raises no OSError
    torch.save(content, whole)
    with hjepa.whole_file(path) as part:
        part.write_bytes(whole.getbuffer())
    if log is not None:
        lines = [json.dumps(row) + "\n" for row in content["rows"]]
        with hjepa.whole_file(log) as part:
            part.write_text("".join(lines))


def say(row):
    """One line per epoch."""
    words = [f"{name} {value:.5f}" for name, value in row.items()
             if name not in ("epoch", "seconds")]
    print(f"epoch {row['epoch']}: {', '.join(words)}, {row['seconds']:.0f} s", flush=True)


def train(path, saved, settings, network, loss, draw, config, device, precision, watch=None,
          log=None):
    """Train to config.epochs from where `saved`, what `read` gave, or None stands -> a row per
    epoch. The file `path` is written after each.

    settings: a dict that tells this training from others. loss(obs, forces, shares) -> total,
    terms. draw() -> obs, forces, shares, all of them; it is called only if there is something to
    train. watch() -> what a row has beside the terms. Refusal of another training's file, and if a
    term or a weight is not finite.
    """
    optimizer = hjepa.make_optimizer(network, config, device)
    rows = []
    if saved is not None:
        if saved["settings"] != settings or saved["epochs"] != config.epochs:
            raise hjepa.Refusal(f"{path} holds a network of other settings or --epochs: repeat "
                                "those, or choose another file")
        network.load_state_dict(saved["model"])
        rows = saved["rows"]
    if len(rows) == config.epochs:
        return rows
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
        for group in optimizer.param_groups:    # the file has those of its own device
            group["fused"] = device.type != "mps"
    data = draw()
    for epoch in range(len(rows), config.epochs):
        start = time.perf_counter()
        means, _ = hjepa.train_epoch(loss, network, optimizer, data, config, epoch, device,
                                     precision)
        watched = watch() if watch else {}
        rows.append({"epoch": epoch + 1, **means, **watched,
                     "seconds": time.perf_counter() - start})
        # A finished file is small: nothing needs the state of the optimizer any more.
        unfinished = optimizer.state_dict() if len(rows) < config.epochs else None
        save(path, {"settings": settings, "epochs": config.epochs, "model": network.state_dict(),
                    "optimizer": unfinished, "rows": rows}, log)
        say(rows[-1])
    return rows
