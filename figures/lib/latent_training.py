"""The training of the predictors with a latent variable, on embeddings of a frozen run.

It is lib/trainings.py. Only the loss is new, and that noise is drawn in each step.
"""
import dataclasses

import hjepa
import torch

from lib import latent_model, latent_world, trainings

BATCH = 256
WORLD_SETTINGS = ("masses", "radius", "dt", "substeps", "force_limit", "start_speed", "clip_frames",
                  "latent", "seed")


def settings_of(config, kind, sequences, fingerprint):
    """-> what tells this training from others. fingerprint: of the frozen run."""
    world = {name: getattr(config, name) for name in WORLD_SETTINGS}
    return {**world, "actions": 2 * len(config.masses), "kind": kind, "sequences": sequences,
            "run": fingerprint, "push_size": latent_world.SIZE, "body": latent_world.BODY,
            "width": latent_model.WIDTH, "blocks": latent_model.BLOCKS, "batch": BATCH,
            "descent": latent_model.DESCENT,
            "variants": [list(variant) for variant in latent_model.VARIANTS]}


def read(path):
    """File of `train` -> see trainings.read."""
    return trainings.read(path, latent_model.build, f"no predictors at {path}",
                          "figures/latent.py")


def training_config(config, sequences, epochs):
    """Config of a run -> the one that trainings.train reads: no mirrors, since embeddings have no
    left and right of their own."""
    return dataclasses.replace(config, sequences=sequences, epochs=epochs, symmetries=False,
                               batch=min(BATCH, sequences), contact_share=0.0)


def embedded(run, kicked):
    """Kicked -> p (N, D), what the run expects without a kick, and t (N, D) of the future."""
    world = hjepa.build_world(run.config)
    p = latent_world.expected(run.model, world, kicked.clip, kicked.forces)
    return p, latent_world.embed(run.model, world, kicked.future)


def train(run, kind, path, sequences, epochs, fingerprint, device):
    """Train all predictors on one kind of kick, from where the file `path` stands -> ModuleDict in
    eval mode, a row per epoch."""
    settings = settings_of(run.config, kind, sequences, fingerprint)
    config = training_config(run.config, sequences, epochs)
    world = hjepa.build_world(config)
    networks = latent_model.build(settings).to(device)
    saved = read(path) if path.exists() else None
    steps = sequences // config.batch
    done = 0 if saved is None else len(saved["rows"])
    largest = max(v.size for v in latent_model.VARIANTS if v.family == "noisy")
    counter = {"step": done * steps}

    def loss(pair, forces, push):
        gen = hjepa.generator(config.seed, "latent noise", counter["step"])
        counter["step"] += 1
        noise = torch.randn(len(pair), largest, generator=gen).to(device)
        p, t = pair.unbind(1)
        return latent_model.joint_loss(networks, p, forces, t, push, noise)

    def draw():
        kicked = latent_world.draw(world, config, sequences, kind, config.seed, "latent train",
                                   device)
        p, t = embedded(run, kicked)
        return torch.stack([p, t], 1), kicked.forces, kicked.push
    rows = trainings.train(path, saved, settings, networks, loss, draw, config, device, "fp32")
    return networks.eval(), rows
