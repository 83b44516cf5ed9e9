"""The training of figures/pictures.py: any model of lib/pictures_model.py, resumed after a stop."""
import dataclasses
import time

import hjepa
import torch

from lib import pictures_data, pictures_model, trainings

SCRIPT = "figures/pictures.py"
KINDS = {"ImageSettings": pictures_model.ImageSettings,
         "VideoSettings": pictures_model.VideoSettings}


def draw_batches(pictures, settings, epoch):
    """-> yields a batch per step: pictures (N, 28, 28), or films (B, T, 64, 64).

    Pictures come in an order of their own in each epoch; films are new in each step.
    """
    gen = hjepa.generator(settings.seed, "pictures data", epoch)
    if isinstance(settings, pictures_model.VideoSettings):
        for _ in range(settings.steps):
            yield pictures_data.draw_films(pictures, settings.batch, settings.frames, gen)[0]
        return
    order = torch.randperm(len(pictures), generator=gen)
    for number in range(settings.steps):
        index = (number * settings.batch + torch.arange(settings.batch)) % len(order)
        yield pictures[order[index].to(pictures.device)]


def train_epoch(model, optimizer, pictures, settings, epoch):
    """-> dict of terms, means over the epoch. Refusal if one of them is not finite."""
    objective = pictures_model.image_objective
    if isinstance(settings, pictures_model.VideoSettings):
        objective = pictures_model.video_objective
    gen = hjepa.generator(settings.seed, "pictures views", epoch)
    all_steps = settings.epochs * settings.steps
    log = []
    for number, batch in enumerate(draw_batches(pictures, settings, epoch)):
        rate = hjepa.learning_rate(epoch * settings.steps + number, all_steps, settings.lr,
                                   all_steps // 10)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, terms = objective(model, batch, settings, gen)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        log.append(torch.stack([value.detach() for value in terms.values()]))
    means = torch.stack(log).mean(0)
    if not means.isfinite().all():
        raise hjepa.Refusal(f"epoch {epoch + 1}: the loss is not finite")
    return dict(zip(terms, means.tolist()))


def describe(settings):
    """Settings -> a dict that says which they are, for a file."""
    return {"kind": type(settings).__name__, **dataclasses.asdict(settings)}


def build_from(saved):
    """What `describe` gave -> the model."""
    values = dict(saved)
    return pictures_model.build(KINDS[values.pop("kind")](**values))


def train(path, settings, pictures):
    """Train from where the file stands to the end, on the pictures' device -> the model in eval
    mode, a row per epoch. Refusal if the file belongs to a training with other settings."""
    model = pictures_model.build(settings).to(pictures.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr,
                                  weight_decay=settings.weight_decay)
    mine = describe(settings)
    rows = []
    if path.exists():
        saved = trainings.read(path, build_from, f"no model at {path}", SCRIPT)
        if saved["settings"] != mine:
            raise hjepa.Refusal(f"{path} was trained with other settings: repeat those, or choose "
                                "another --run")
        model.load_state_dict(saved["model"])
        rows = saved["rows"]
        if len(rows) < settings.epochs:
            optimizer.load_state_dict(saved["optimizer"])
    model.train()
    for epoch in range(len(rows), settings.epochs):
        start = time.perf_counter()
        terms = train_epoch(model, optimizer, pictures, settings, epoch)
        rows.append({"epoch": epoch + 1, **terms, "seconds": time.perf_counter() - start})
        unfinished = optimizer.state_dict() if len(rows) < settings.epochs else None
        trainings.save(path, {"settings": mine, "epochs": settings.epochs,
                              "model": model.state_dict(), "optimizer": unfinished, "rows": rows})
        trainings.say(rows[-1])
    return model.eval(), rows
