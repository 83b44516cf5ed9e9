"""Planning in Two Rooms with a model of it: the cost of a plan, the first guess, the planners.

Every planner sees pictures only: that of now, and that of the goal. One action is held for a clip.
"""
import hjepa
import torch

from lib import rooms_world

STEPS = 200                                     # of an episode
HORIZON = 24                                    # clips that a plan looks ahead
WORLD = rooms_world.Rooms()


def path_cost(model, z, goal, last=False, horizon=HORIZON):
    """z, goal (B, D) -> a cost for hjepa.cem, plans (B, S, K, 2) -> (B, S): the distance of the
    imagined embedding from the goal's, summed over clips (EB-JEPA equation 14).

    last: the last of these distances alone. Clips beyond the horizon do not count.
    """
    def cost(plans):
        goals, samples = plans.shape[:2]
        now = z.repeat_interleave(samples, 0)
        there = goal.repeat_interleave(samples, 0)
        total = plans.new_zeros(goals * samples)
        for action in plans[:, :, :horizon].flatten(0, 1).unbind(1):
            now = model.predictor(now, action.repeat(1, model.clip))
            gap = (now - there).norm(dim=-1)
            total = gap if last else total + gap
        return total.unflatten(0, (goals, samples))
    return cost


def guessed_action(model, z, goal):
    """z, goal (B, D) -> the first guess's action (B, 2)."""
    limit = WORLD.force_limit
    guess = model.guess(torch.cat([z, goal], -1)) * limit
    return guess.clamp(-limit, limit)


@torch.no_grad()
def imagined_plan(model, z, goal, clips):
    """z, goal (B, D) -> actions (B, clips, 2): the first guess, asked again after each clip that the
    predictor imagines.  needs: guessed_action"""
    actions = []
    for _ in range(clips):
        action = guessed_action(model, z, goal)
        z = model.predictor(z, action.repeat(1, model.clip))
        actions.append(action)
    return torch.stack(actions, 1)


@torch.no_grad()
def follow_guess(model, start, goal, steps):
    """start, goal (B, 1, 4) -> states (B, steps, 1, 4): the first guess at every clip, no search."""
    there = model.embed(goal)
    state = start
    states = []
    for _ in range(steps // model.clip):
        action = guessed_action(model, model.embed(state), there)
        moved, _ = WORLD.rollout(state, action[:, None], model.clip)
        states.append(moved)
        state = moved[:, -1]
    return torch.cat(states, 1)


@torch.no_grad()
def search(model, start, goal, gens, steps, last=False, from_guess=True, init_std=0.6,
           guess_std=0.3, **budget):
    """start, goal (B, 1, 4), a CPU generator each -> states (B, steps, 1, 4): hjepa.replan.

    last: see path_cost. from_guess: start each search from the imagined plan of the first guess, if
    that costs less than the rest of the last plan. budget: samples, iterations, elites.
    """
    there = model.embed(goal)

    def cost_to_go(clip, left):
        return path_cost(model, model.embed(clip[:, -1]), there, last)

    def guess(clip, left):
        seen = min(left, HORIZON)
        actions = imagined_plan(model, model.embed(clip[:, -1]), there, seen)
        rest = actions.new_zeros(len(actions), left - seen, 2)
        return torch.cat([actions, rest], 1)
    states, _ = hjepa.replan(WORLD, start[:, None], steps // model.clip, cost_to_go, gens,
                             guess if from_guess else None, init_std, model.clip, guess_std,
                             **budget)
    return states


def random_walk(start, steps, clip, gens):
    """start (B, 1, 4), a CPU generator each -> states: uniform actions, each held for a clip."""
    limit = WORLD.force_limit
    drawn = [torch.rand(steps // clip, 2, generator=gen) for gen in gens]
    actions = (2 * torch.stack(drawn) - 1) * limit
    states, _ = WORLD.rollout(start, actions.to(start.device), clip)
    return states
