"""What is asked of the JEPA and of every rival: plans, places against horizon, surprise."""
import hjepa
import torch

from lib import baselines_list as lists
from lib import baselines_models as models
from lib import baselines_runs as runs
from lib import baselines_worlds as worlds
from lib import films, goals, probes, readouts, surprises
from lib.variants_judge import finite

CHUNK = 1024                                    # sequences that are encoded at once


# ---- places against horizon

@torch.no_grad()
def seen_and_predicted(model, obs, forces, device):
    """obs (N, K, T, F), forces (N, K - 1, A) on the CPU -> what a clip is in the model's space, and
    what is predicted for it, of the clips 1 to K - 1: (N, K - 1, S') each, on the CPU."""
    seen, predicted = [], []
    for some, some_forces in zip(obs.split(CHUNK), forces.split(CHUNK)):
        some = some.to(device)
        later = some[:, 1:]
        aims = model.aim(later.flatten(0, 1)).unflatten(0, later.shape[:2])
        path = model.rollout(model.start(some[:, 0]), some_forces.to(device))
        seen.append(aims.float().cpu())
        predicted.append(path.float().cpu())
    return torch.cat(seen), torch.cat(predicted)


def sequences(kind, world, config, n, seed, purpose):
    """-> obs (n, K, T, F), forces (n, K - 1, A), places (n, K - 1, bodies, 2) at the end of each
    later clip, and whether bodies have met by then (n, K - 1)."""
    states, forces, contacts = hjepa.draw_sequences(world, config, n, seed, purpose, "cpu")
    gen = hjepa.generator(seed, f"distractors, {kind}, {purpose}")
    others = worlds.distractors(kind, world, config, *states.shape[:2], gen)
    met = contacts[:, 1:].any(-1).int().cumsum(1) > 0
    return worlds.observe(world, states, others), forces, states[:, 1:, -1, :, :2], met


def place_columns(model, kind, world, config, n, device):
    """-> "place error FRAMES": how far the places that a linear map reads from predictions are from
    the true ones, in half boxes, the mean over bodies and n test worlds; at the last horizon with
    and without a contact, too.

    The map is fitted on what clips of 4 n training worlds are in the model's space. Its strength is
    the one that reads predictions for validation worlds best (see lib/readouts.py).
    """
    n = max(n, readouts.FEWEST)
    pairs = []
    for seed, count in ((config.seed, 4 * n), (config.validation_seed, n)):
        obs, forces, place, _ = sequences(kind, world, config, count, seed, "places")
        seen, predicted = seen_and_predicted(model, obs, forces, device)
        x = seen if seed == config.seed else predicted
        pairs.append((x.flatten(0, 1), place.flatten(2).flatten(0, 1)))
    read = probes.linear(*pairs)
    obs, forces, place, met = sequences(kind, world, config, n, config.test_seed, "places")
    _, predicted = seen_and_predicted(model, obs, forces, device)
    guess = read(predicted).unflatten(-1, (-1, 2))                        # (n, K - 1, bodies, 2)
    error = (guess - place).norm(dim=-1).mean(-1)                         # (n, K - 1)
    found = {f"place error {(k + 1) * config.clip_frames}": error[:, k].mean().item()
             for k in range(error.shape[1])}
    found["place error contact"] = error[met[:, -1], -1].mean().item()
    found["place error no contact"] = error[~met[:, -1], -1].mean().item()
    return found


# ---- distractors

@torch.no_grad()
def distractors_kept(model, kind, world, config, n, device):
    """-> R2 with which a linear map reads the distractors in the last frame of a clip from what the
    clip is in the model's space: the mean over their numbers, on n test worlds."""
    numbers_of_bodies = 4 * len(config.masses)
    sets = []
    for seed in (config.seed, config.validation_seed, config.test_seed):
        obs, _, _, _ = sequences(kind, world, config, n, seed, "distractors")
        clip = obs[:, -1]
        seen = model.aim(clip.to(device)).float().cpu()
        sets.append((seen, clip[:, -1, numbers_of_bodies:]))
    training, validation, (seen, true) = sets
    weight, offset = hjepa.ridge(training, validation)
    guess = seen.double() @ weight + offset
    return hjepa.r2(guess, true.double()).mean().item()


def mean_kept(study, name, epochs, seeds, n):
    """-> distractors_kept of the trainings of a rival, the mean over seeds. None where there are no
    distractors, or where a clip is not predicted."""
    _, kind = lists.parts_of(name)
    if kind == "plain":
        return None
    found = []
    for seed in seeds:
        training = runs.Training(name, epochs, seed, runs.chosen_value(study, name))
        model = runs.open_model(study, training)
        if not hasattr(model, "rollout"):
            return None
        config = runs.config_of(study, training)
        found.append(distractors_kept(model, kind, hjepa.build_world(config), config,
                                      max(n, readouts.FEWEST), study.device))
    return sum(found) / len(found)


# ---- surprise

@torch.no_grad()
def surprise_columns(model, kind, world, config, n, device):
    """-> share of pairs in which bodies that fly through each other surprise more than a lawful
    contact does: the squared error of one prediction, in the clip of the event."""
    pairs = films.make_pairs("pass-through", world, config, n, config.test_seed)
    number = torch.arange(n)
    clip = pairs.event // config.clip_frames
    gen = hjepa.generator(config.test_seed, f"distractors of films, {kind}")
    others = worlds.distractors(kind, world, config, n, config.event_clips + 1, gen)
    errors = []
    for film, forces in zip(pairs.films, pairs.forces):
        later = film.unflatten(1, (-1, config.clip_frames))
        clips = torch.cat([pairs.clip[:, None], later], 1)
        obs = worlds.observe(world, clips, others).to(device)
        force = forces[number, clip].to(device)
        predicted = model.rollout(model.start(obs[number, clip]), force[:, None])[:, 0]
        gap = predicted.float() - model.aim(obs[number, clip + 1]).float()
        errors.append(gap.square().mean(-1).cpu().numpy())
    lawful, broken = errors
    return {"pass-through": surprises.wins(broken, lawful).mean().item()}


# ---- all of it

class Judge:
    """What all trainings of a study are measured on. sizes: goals, n worlds, pairs of films, and
    frames, the horizons of the goals."""

    def __init__(self, study, sizes):
        self.study = study
        self.sizes = sizes
        config = study.base
        self.world = hjepa.build_world(config)
        self.drawn = {frames: goals.goals_of(config, sizes["goals"], frames=frames)
                      for frames in sizes["frames"]}

    def __call__(self, training):
        """Trains what is not trained, measures it, and writes measured.json: columns, errors of
        each horizon (goals, bodies), and why the training broke down, or null."""
        study, sizes = self.study, self.sizes
        print(f"{training.name}, {training.epochs} epochs, seed {training.seed}:", flush=True)
        broken = runs.train(study, training)
        if broken is not None:
            self.write(training, {}, {}, broken)
            return
        _, kind = lists.parts_of(training.name)
        config = runs.config_of(study, training)
        model = runs.open_model(study, training)
        errors = {}
        for frames in runs.horizons_of(training.name, config, sizes["frames"]):
            drawn = worlds.with_distractors(kind, self.world, config, self.drawn[frames],
                                            config.test_seed)
            errors[frames] = runs.closed_loop(model, self.world, config, drawn, config.test_seed,
                                              study.device)
        columns = {"parameters": models.count(model),
                   "sequences per second": runs.speed(study, training)}
        if hasattr(model, "rollout"):
            given = (model, kind, self.world, config)
            columns.update(place_columns(*given, sizes["n"], study.device))
            columns.update(surprise_columns(*given, sizes["pairs"], study.device))
        self.write(training, finite(columns), errors, None)

    def write(self, training, columns, errors, broken):
        """measured.json"""
        errors = {str(frames): values.tolist() for frames, values in errors.items()}
        runs.write_note(self.study, training, "measured.json", self.sizes,
                        {"columns": columns, "errors": errors, "broken": broken})
