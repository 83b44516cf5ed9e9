"""Planning when something unseen will happen: for the mean future, for the mean of all futures, for
the worst one.

All forces of a macro-event are planned at once, before the kick, by the same search and with the
same noise. Each plan is then flown under every kick.
"""
import hjepa
import torch

from lib import latent_world

PLANNERS = ("no kick", "mean future", "mean over zeta", "worst over zeta", "told")
COUNT = {"two": 2, "ring": 16}                  # K of the discrete zeta that is planned with
SIDE_BY_SIDE = 8                                # goals in one search
FLOWN = 8                                       # directions of "ring" that a plan is flown under


def cost_under_kicks(model, predict, z1, goal, worst=False):
    """predict: p (N, D), forces (N, A) -> embeddings after the kick (N, M, D), for M zetas.
    z1, goal (B, D): of the clip seen, and shallow target of the goal.

    -> a cost for hjepa.cem: the squared distance of the last predicted clip from the goal, as a
    mean over dimensions and over zetas, or of the worst zeta. P1 goes on from what P predicts.
    """
    def cost(plans):
        goals, samples, clips = plans.shape[:3]
        start = z1[:, None].expand(-1, samples, -1).flatten(0, 1)
        forces = plans.flatten(0, 1)                                      # (B S, K, A)
        expected = model.rollout(start, forces[:, :1])[:, 0]
        reached = predict(expected, forces[:, 0])                         # (B S, M, D)
        many = reached.shape[1]
        if clips > 1:
            rest = forces[:, 1:].repeat_interleave(many, 0)
            reached = model.rollout(reached.flatten(0, 1), rest)[:, -1]
        reached = reached.reshape(goals, samples, many, -1)
        costs = (reached - goal[:, None, None]).square().mean(-1)         # (B, S, M)
        return costs.amax(-1) if worst else costs.mean(-1)
    return cost


def predictor_of(planner, networks, count, push):
    """Name of a planner, ModuleDict, K, pushes (B, 2) that the told one knows -> predict, as
    cost_under_kicks takes it."""
    if planner == "no kick":
        return lambda p, forces: p[:, None]
    if planner == "mean future":
        return networks["K = 1"].all_predictions
    if planner == "told":
        def predict(p, forces):
            known = push.repeat_interleave(len(p) // len(push), 0) / latent_world.SIZE
            return networks["told"](p, forces, known)[:, None]
        return predict
    return networks[f"K = {count}"].all_predictions


@torch.no_grad()
def plan(planner, run, networks, kind, clip, goal, push, gens):
    """clip, goal (B, T, bodies, 4), push (B, 2) -> forces (B, event_clips, A)."""
    config = run.config
    world = hjepa.build_world(config)
    z1, _ = run.model.context(world.observe(clip))
    t1, _ = run.model.target(world.observe(goal))
    predict = predictor_of(planner, networks, COUNT[kind], push)
    cost = cost_under_kicks(run.model, predict, z1, t1, worst=planner == "worst over zeta")
    mean = clip.new_zeros(len(clip), config.event_clips, 2 * clip.shape[2])
    std = torch.full_like(mean, config.init_std * world.force_limit)
    forces, _ = hjepa.cem(cost, mean, std, gens, samples=config.samples,
                          iterations=config.iterations, elites=config.elites,
                          low=-world.force_limit, high=world.force_limit)
    return forces


@torch.no_grad()
def fly(world, clip, goal, forces, pushes):
    """clip, goal (B, T, bodies, 4), forces (B, K, A), pushes (M, 2) -> final distances from the
    goal (B, M, bodies): each plan under each push."""
    errors = []
    for push in pushes:
        states = latent_world.future_of(world, clip, forces, push.expand(len(clip), 2))
        errors.append(hjepa.distance(states[:, -1], goal[:, -1]))
    return torch.stack(errors, 1)


def try_planner(planner, run, networks, kind, goals, device):
    """goals: what hjepa.make_goals gives -> final distances (n, M, bodies) under M kicks, CPU.

    The told one plans anew for each kick; the others cannot.
    """
    world = hjepa.build_world(run.config)
    pushes = latent_world.possible_pushes(kind, FLOWN).to(device)
    numbers = torch.arange(len(goals["clip"]))
    found = []
    for pick in hjepa.progress(numbers.split(SIDE_BY_SIDE), f"{kind}, {planner}",
                               -(-len(numbers) // SIDE_BY_SIDE)):
        clip = goals["clip"][pick].to(device)
        goal = goals["goal"][pick].to(device)

        def searched(push):
            gens = [hjepa.generator(run.config.test_seed, "latent plan", int(i)) for i in pick]
            return plan(planner, run, networks, kind, clip, goal, push.expand(len(clip), 2), gens)
        if planner == "told":
            parts = [fly(world, clip, goal, searched(push), push[None]) for push in pushes]
            found.append(torch.cat(parts, 1).cpu())
        else:
            found.append(fly(world, clip, goal, searched(pushes[0]), pushes).cpu())
    return torch.cat(found)
