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
            "descent": latent_model.DESCENT, "starts": latent_model.STARTS,
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
    """Kicked -> bases (see latent_world.bases) and t (N, D) of the future."""
    world = hjepa.build_world(run.config)
    bases = latent_world.bases(run.model, world, kicked.clip, kicked.forces)
    return bases, latent_world.embed(run.model, world, kicked.future)


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
    largest = max(variant.size for variant in latent_model.VARIANTS)
    counter = {"step": done * steps}

    def loss(embeddings, forces, push):
        gen = hjepa.generator(config.seed, "latent noise", counter["step"])
        counter["step"] += 1
        noise = torch.randn(len(embeddings), largest, generator=gen).to(device)
        seen, expected, t = embeddings.unbind(1)
        bases = {"seen": seen, "expected": expected}
        return latent_model.joint_loss(networks, bases, forces, t, push, noise)

    def draw():
        kicked = latent_world.draw(world, config, sequences, kind, config.seed, "latent train",
                                   device)
        bases, t = embedded(run, kicked)
        embeddings = torch.stack([bases["seen"], bases["expected"], t], 1)
        return embeddings, kicked.forces, kicked.push
    rows = trainings.train(path, saved, settings, networks, loss, draw, config, device, "fp32")
    return networks.eval(), rows
