"""The trainings of figures/objects.py: what differs between them, where they lie, how they are
read."""
import collections
import dataclasses

import hjepa
import torch

from lib import cli, objects_model, trainings
from lib import objects_world as worlds

# What a training is. tells: what the model is told of a world beside its states. drawn: masses
# differ from world to world, else they are the run's. masked: a body of the context is hidden in
# half of the sequences.
Kind = collections.namedtuple("Kind", "tells drawn masked")

KINDS = {"plain": Kind(("mass",), False, False),
         "masked": Kind(("mass",), False, True),
         "told": Kind(("mass", "force"), True, False),
         "hidden": Kind(("force",), True, False)}

VALIDATION = 1024                               # sequences that are looked at after an epoch


def home_of(run):
    """Run directory or checkpoint file -> where its trainings lie, not beside packed weights."""
    return hjepa.default_out(run).parent / "objects"


def config_of(run, args):
    """-> Config of all trainings: the run's, but for the epochs and the size of a batch."""
    batch = args.batch or max(2, run.config.batch // 2)
    return dataclasses.replace(run.config, epochs=args.epochs, batch=batch)


def settings_of(name, config):
    """-> a dict that tells a training from others: its name and all settings that matter to it."""
    settings = dataclasses.asdict(config)
    for free in ("device", "precision", "goals", "validate_every", "validate_goals"):
        settings.pop(free)
    settings["masses"] = list(config.masses)
    return {"name": name, **settings}


def build_saved(settings):
    """settings of a file -> Objects with the start weights."""
    rest = dict(settings)
    rest.pop("name")
    return objects_model.build(hjepa.Config(**rest))


def read(path, name):
    """File of a training -> see trainings.read."""
    return trainings.read(path, build_saved, f"no network of objects at {path}: train it with "
                          f"`python figures/objects.py --run RUN --only {name}`",
                          "figures/objects.py")


def data_of(name, config, device):
    """-> obs, forces and (n, 2): shares and the hidden body of each training sequence."""
    kind = KINDS[name]
    if kind.drawn:
        return worlds.drawn_data(config, kind.tells, device)
    return worlds.run_data(config, device, kind.masked)


def validation_data(name, config, n):
    """-> obs, forces (n, K - 1, A) of worlds that no training has (their seed is the largest),
    drawn as those of the training, no body hidden, contacts as they come."""
    seed = hjepa.ALLOWED["seed"][1] - config.seed
    config = dataclasses.replace(config, sequences=n, batch=2, contact_share=0.0, seed=seed)
    if KINDS[name].drawn:
        obs, forces, _ = worlds.drawn_data(config, KINDS[name].tells, "cpu")
    else:
        obs, forces, _ = worlds.run_data(config, torch.device("cpu"), False)
    return obs, forces


@torch.no_grad()
def gauges(model, obs, forces):
    """-> what a row of a training has beside its losses: errors of both levels as shares of the
    variance, smallest deviation and smallest effective rank of an embedding of single bodies."""
    z = hjepa.latents(model, obs, forces)
    found = {}
    for level, p, t in (("short", "p1", "t1"), ("macro", "p2", "t2")):
        spread = z[t].var(0).sum()
        found[f"{level}_error"] = ((z[p] - z[t]).square().sum(1).mean() / spread).item()
    sets = [objects_model.by_body(z[name], model.latent).flatten(0, 1)
            for name in ("z1", "t1", "z2", "t2")]
    found["std_min"] = min(one.std(0).min().item() for one in sets)
    found["rank"] = min(hjepa.effective_rank(one) for one in sets)
    return found


def train(name, run, home, args):
    """Train `name` to args.epochs from where its file stands -> a row per epoch.

    hjepa.train is not used: it looks at a world of fixed masses after each epoch, and here masses
    may differ from world to world. Its loop, batches and schedule are.
    """
    config = config_of(run, args)
    path = home / f"{name}.pt"
    model = objects_model.build(config).to(args.device)
    saved = read(path, name) if path.exists() else None
    if saved is None or len(saved["rows"]) < args.epochs:
        obs, forces = (part.to(args.device) for part in validation_data(name, config, VALIDATION))

    def loss(obs, forces, more):
        return objects_model.objective(model, obs, forces, config.loss_weights, more)

    def draw():
        return data_of(name, config, args.device)

    def watch():
        return gauges(model, obs, forces)
    home.mkdir(parents=True, exist_ok=True)
    with hjepa.locked(home / name):
        return trainings.train(path, saved, settings_of(name, config), model, loss, draw, config,
                               args.device, args.precision, watch, home / f"{name}.jsonl")


def load(name, run, home, args):
    """-> cli.Run of a training that has ended."""
    config = config_of(run, args)
    saved = read(home / f"{name}.pt", name)
    model = objects_model.build(config)
    model.load_state_dict(saved["model"])
    return cli.Run(model.to(args.device).eval(), config, args.epochs)
