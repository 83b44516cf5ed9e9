"""Planning in Two Rooms with a model of it: the cost of a plan, a first guess that is imagined
forward, and the rows of the table."""
import hjepa
import torch

from lib import rooms_world

STEPS = 200                                     # of an episode
HORIZON = 24                                    # clips that a plan looks ahead


def path_cost(model, z, goal, metric=None, last=False, horizon=HORIZON):
    """z, goal (B, D) -> a cost for `cem`: how far the imagined path is from the goal, summed over
    its clips. last: only where it ends. Clips beyond the horizon do not count."""
    if metric is not None:
        goal = goal @ metric

    def cost(plans):
        goals, samples = plans.shape[:2]
        plans = plans[:, :, :horizon]
        now = z[:, None].expand(-1, samples, -1).flatten(0, 1)
        total = 0
        for action in plans.flatten(0, 1).unbind(1):
            now = model.predictor(now, action.repeat(1, model.clip))
            if not last:
                total = total + gap(now)
        if last:
            total = gap(now)
        return total.unflatten(0, (goals, samples))

    def gap(now):
        turned = now if metric is None else now @ metric
        samples = len(now) // len(goal)
        return (turned - goal.repeat_interleave(samples, 0)).norm(dim=-1)
    return cost


@torch.no_grad()
def imagine(model, z, goal, clips):
    """z, goal (B, D) -> actions (B, clips, 2): the first guess, asked again after each clip that the
    predictor imagines."""
    limit = rooms_world.Rooms.force_limit
    actions = []
    for _ in range(clips):
        action = model.guess(torch.cat([z, goal], -1))[:, :2] * limit
        action = action.clamp(-limit, limit)
        z = model.predictor(z, action.repeat(1, model.clip))
        actions.append(action)
    return torch.stack(actions, 1)


def follow_guess(model, start, goal, steps=STEPS):
    world = rooms_world.Rooms()
    zg = model.embed(goal)
    state, states = start, []
    for _ in range(steps // model.clip):
        action = imagine(model, model.embed(state), zg, 1)
        moved, _ = world.rollout(state, action, model.clip)
        states.append(moved)
        state = moved[:, -1]
    return torch.cat(states, 1)


def search(model, start, goal, gens, metric=None, last=False, from_guess=True, horizon=HORIZON,
           steps=STEPS, init_std=0.6, guess_std=0.3, **budget):
    zg = model.embed(goal)

    def cost_to_go(clip, left):
        return path_cost(model, model.embed(clip[:, -1]), zg, metric, last, horizon)

    def guess(clip, left):
        clips = min(left, horizon)
        actions = imagine(model, model.embed(clip[:, -1]), zg, clips)
        rest = actions.new_zeros(len(actions), left - clips, 2)
        return torch.cat([actions, rest], 1)
    states, _ = hjepa.replan(rooms_world.Rooms(), start[:, None], steps // model.clip, cost_to_go,
                             gens, guess if from_guess else None, init_std, model.clip, guess_std,
                             **budget)
    return states
