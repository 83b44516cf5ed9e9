"""Where the bodies are, read from embeddings and from predictions by linear maps.

The maps are fitted on embeddings of training worlds. Their strength is the one that reads the
predictions for validation worlds best. A strength chosen on embeddings would be too weak: the map
would read directions that no predictor can know.
"""
import collections

import hjepa
import torch

from lib import probes

# A read-out is fitted on four times as many training worlds as a study tries, or as this number.
FEWEST = 1024

# Three functions (..., D) -> (..., Q). place1, place2: from t1, t2 to the places of the bodies in
# the last frame of the clip (Q = 2 bodies). state1: from z1 to places and velocities (4 bodies).
ReadOuts = collections.namedtuple("ReadOuts", "place1 place2 state1")


@torch.no_grad()
def encode(run, world, states, device, chunk=1024):
    """states (N, K, T, bodies, 4) of K clips -> dict of embeddings, on the CPU.

    z1, z2 (N, D): of the first clip; t1 (N, K, D): of all clips; t2 (N, 2, D): of the first and the
    last clip.
    """
    parts = {"z1": [], "z2": [], "t1": [], "t2": []}
    for part in states.to(device).split(chunk):
        obs = world.observe(part)
        z1, z2 = run.model.context(obs[:, 0])
        targets = [run.model.target(clip) for clip in obs.unbind(1)]
        shallow = [t1 for t1, _ in targets]
        deep = [t2 for _, t2 in targets]
        parts["z1"].append(z1)
        parts["z2"].append(z2)
        parts["t1"].append(torch.stack(shallow, 1))
        parts["t2"].append(torch.stack([deep[0], deep[-1]], 1))
    return {name: torch.cat(part).cpu() for name, part in parts.items()}


@torch.no_grad()
def predict(run, z, forces, device, chunk=4096):
    """What `encode` gave, forces (N, K, A) -> p1 (N, K, D), p2 (N, D), on the CPU."""
    p1, p2 = [], []
    for start in range(0, len(forces), chunk):
        some = slice(start, start + chunk)
        force = forces[some].to(device)
        p1.append(run.model.rollout(z["z1"][some].to(device), force).cpu())
        p2.append(run.model.jump(z["z2"][some].to(device), force).cpu())
    return torch.cat(p1), torch.cat(p2)


def probe_worlds(run, world, n, seed, device):
    """-> n worlds as a dict of pairs (x, y) to fit or choose on, one pair per read-out.

    Of training worlds x is the embedding; of validation worlds it is the prediction.
    """
    config = run.config
    states, forces, _ = hjepa.draw_sequences(world, config, n, seed, "dynamics probe", "cpu")
    z = encode(run, world, states, device)
    if seed == config.validation_seed:
        x1, x2 = predict(run, z, forces, device)
    else:
        x1 = z["t1"][:, 1:]
        x2 = z["t2"][:, 1]
    last = states[:, :, -1]                                               # (n, K, bodies, 4)
    place = last[..., :2].flatten(2)                                      # (n, K, 2 bodies)
    return {"place1": (x1.flatten(0, 1), place[:, 1:].flatten(0, 1)),
            "place2": (x2, place[:, -1]),
            "state1": (z["z1"], last[:, 0].flatten(1))}


def fit(run, world, n, device):
    """-> ReadOuts, fitted on 4 n training worlds; n is at least FEWEST."""
    n = max(n, FEWEST)
    training = probe_worlds(run, world, 4 * n, run.config.seed, device)
    validation = probe_worlds(run, world, n, run.config.validation_seed, device)
    maps = {name: probes.linear(training[name], validation[name]) for name in training}
    return ReadOuts(**maps)
