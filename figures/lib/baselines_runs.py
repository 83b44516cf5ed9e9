"""Trainings of the JEPA and its rivals by one loop, lib/trainings.py: see lib/shared_work.py for
how processes share them. In the plain world the JEPA's is hjepa.train's to the last bit.

The names of shared_work stand here, too: chosen_value, table, work and so on.
"""
import dataclasses
import functools

import hjepa
import torch

from lib import baselines_list as lists
from lib import baselines_worlds as worlds
from lib import goals, shared_work, trainings
from lib.shared_work import (Training, chosen_value, claim, diverged, folder_of,    # noqa: F401
                             how_tuned, measured, speed, table, trials_of, work, write_note)

TOGETHER = 20                                   # goals that are searched side by side


def home_of(run):
    """Run directory or checkpoint file -> the folder of its rivals; not beside packed weights."""
    return hjepa.default_out(run).parent / "baselines"


def settings_of(study, training):
    """-> what tells a training from others, and what its model is built from."""
    config = dataclasses.asdict(config_of(study, training))
    config.pop("device")
    return {"name": training.name, "value": training.value, "config": config}


def build(settings):
    """What settings_of gave -> the model with its start weights."""
    return lists.build(settings["name"], settings["value"], hjepa.Config(**settings["config"]))


def checkpoint_of(study, training):
    return folder_of(study, training) / "last.pt"


def read(study, training):
    """-> what trainings.read gives. Refusal if there is no checkpoint, or a damaged one."""
    path = checkpoint_of(study, training)
    return trainings.read(path, build, f"no checkpoint at {path}", "figures/baselines.py")


def train(study, training):
    """Trains to the end, from where it stands -> None, or a line that says why it broke down."""
    config = config_of(study, training)
    settings = settings_of(study, training)
    _, kind = lists.parts_of(training.name)
    path = checkpoint_of(study, training)
    model = build(settings).to(study.device)
    saved = read(study, training) if path.exists() else None

    def loss(obs, forces, shares):
        return model.loss(obs, forces, shares, config.loss_weights)

    def draw():
        return worlds.training_data(kind, hjepa.build_world(config), config, study.device)
    try:
        trainings.train(path, saved, settings, model, loss, draw, config, study.device,
                        config.precision, log=path.with_name("log.jsonl"))
    except hjepa.Refusal as error:
        if not diverged(error):
            raise
        return hjepa.first_line(error)
    return None


def open_model(study, training):
    """-> the model of a training that has ended, in eval mode."""
    model = build(settings_of(study, training))
    model.load_state_dict(read(study, training)["model"])
    return model.to(study.device).eval()


# ---- plans

def cost_to_go(model, world, goal, others):
    """Goal clips (B, T, bodies, 4), distractors (B, clips + 1, T, D, 4) from now to the goal
    -> cost_to_go(clip, clips left), as hjepa.replan wants it."""
    clips = others.shape[1] - 1
    aim = model.compared(model.aim(worlds.observe(world, goal, others[:, -1])))

    def predict(start, plans):
        return model.compared(model.rollout(start, plans)[:, -1])

    def to_go(clip, left):
        seen = worlds.observe(world, clip, others[:, clips - left])
        return hjepa.latent_cost(predict, model.start(seen), aim)
    return to_go


@torch.no_grad()
def act(model, world, clip, goal, others, clip_frames):
    """As hjepa.replan with the forces of the inverse model -> the last clip (B, T, bodies, 4)."""
    clips = others.shape[1] - 1
    aim = worlds.observe(world, goal, others[:, -1])
    for left in range(clips, 0, -1):
        seen = worlds.observe(world, clip, others[:, clips - left])
        forces = model.act(seen, aim, left, world.force_limit)
        clip, _ = world.rollout(clip[:, -1], forces[:, :1], clip_frames)
    return clip


def horizons_of(name, config, frames):
    """-> those of the horizons in frames at which a rival is tried: with distractors the nearest,
    since farther ones take most of the time; for the inverse model one macro-event, since it has
    seen no goals beyond."""
    rival, kind = lists.parts_of(name)
    if kind != "plain":
        return [min(frames)]
    most = goals.event_frames(config) if rival == "inverse model" else max(frames)
    return [one for one in frames if one <= most]


def closed_loop(model, world, config, drawn, seed, device):
    """Goals with distractors -> final errors (goals, bodies): short replanned, from no force, with
    the run's budget. The noise of a search depends on (seed, number of the goal) alone."""
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)
    frames = config.clip_frames
    errors = []
    for pick in torch.arange(len(drawn["goal"])).split(TOGETHER):
        clip, goal, others = (drawn[key][pick].to(device) for key in ("clip", "goal", "others"))
        if hasattr(model, "act"):
            states = act(model, world, clip, goal, others, frames)
        else:
            gens = [hjepa.generator(seed, "short replanned", i) for i in pick.tolist()]
            states, _ = hjepa.replan(world, clip, others.shape[1] - 1,
                                     cost_to_go(model, world, goal, others), gens, None,
                                     config.init_std, frames, **budget)
        errors.append(goals.final_errors(states, goal))
    return torch.cat(errors)


# ---- what lib/shared_work.py asks of the rivals

def tuned(name):
    return lists.RIVALS[lists.parts_of(name)[0]].tuned


def values(name):
    return lists.RIVALS[lists.parts_of(name)[0]].values


def config_of(study, training):
    """-> Config of a training."""
    return lists.config_of(training.name, training.value, study.base, training.epochs,
                           training.seed)


def as_the_run(name, config):
    """The run itself is trained with others, too: never."""
    return False


def attempt(study, training):
    """Trains a trial -> goals reached (1, goals), all 0 if it broke down, and why it did."""
    broken = train(study, training)
    config = config_of(study, training)
    reached = torch.zeros(1, study.trial_goals, dtype=torch.long)
    if broken is None:
        _, kind = lists.parts_of(training.name)
        world = hjepa.build_world(config)
        drawn = goals.goals_of(config, study.trial_goals, "validation")
        drawn = worlds.with_distractors(kind, world, config, drawn, config.validation_seed)
        errors = closed_loop(open_model(study, training), world, config, drawn,
                             config.validation_seed, study.device)
        reached[0] = errors.amax(-1) < hjepa.REACHED
    return reached.numpy(), broken


KIND = shared_work.Kind(tuned, values, config_of, as_the_run, attempt)

Study = functools.partial(shared_work.Study, kind=KIND)
