"""Planning in Two Rooms with a model of it: the cost of a plan, the first guess, the planners.

Every planner sees pictures only: that of now, and that of the goal. One action is held for a clip,
and a plan goes on to the end of the episode.

The goal is near in a straight line, and the way to it leads away from it, through the door. A search
that starts from nothing ends at the wall. So there are two levels: many ways are imagined, each to a
sub-goal and on to the goal, and the cheapest one is where the search starts. A sub-goal is a place
that a dot had in some picture of the training data, in the rooms that are seen now.
"""
import hjepa
import torch

from lib import rooms_world

STEPS = 200                                     # of an episode
SUBGOALS = 128                                  # ways that are imagined
NEAR = 0.1                                      # a sub-goal is reached: see plan_ways
WORLD = rooms_world.Rooms()


def look(model, state):
    """state (B, 1, 4) -> embedding (B, D) of its picture."""
    return model.embed(state[:, None])[:, 0]


def path_cost(model, z, goal, last=False):
    """z, goal (B, D) -> a cost for hjepa.cem, plans (B, S, K, 2) -> (B, S): the distance of the
    imagined embedding from the goal's, summed over clips (EB-JEPA equation 14).

    last: the last of these distances alone.
    """
    def cost(plans):
        goals, samples = plans.shape[:2]
        now = z.repeat_interleave(samples, 0)
        there = goal.repeat_interleave(samples, 0)
        total = plans.new_zeros(goals * samples)
        for action in plans.flatten(0, 1).unbind(1):
            now = model.predict(now, action)
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
def draw_places(model, count, gen, device):
    """-> (count, D): embeddings of pictures of the training data, one of each trajectory."""
    wall, door = rooms_world.draw_layouts(count, gen)
    states, _ = rooms_world.draw_trajectories(wall, door, gen)
    number = torch.randint(states.shape[1], (count,), generator=gen)
    return look(model, states[torch.arange(count), number].to(device))


@torch.no_grad()
def plan_ways(model, z, goal, places, clips):
    """z, goal (B, D), places (M, D) -> actions (B, clips, 2): the cheapest of M + 1 imagined ways.

    Each leads to the dot of one of the places, and from there to the goal; the last one leads to the
    goal at once. On both legs the first guess acts, and the predictor imagines what follows. The
    first leg ends when the distance is below NEAR times the spread of the places. The cost is that
    of path_cost.  needs: guessed_action
    """
    batch = len(z)
    spread = (places - places.mean(0))[:, :model.dot].norm(dim=-1).mean()
    dots = places[None, :, :model.dot].expand(batch, -1, -1)
    dots = torch.cat([dots, goal[:, None, :model.dot]], 1)                # (B, M + 1, D_dot)
    ways = dots.shape[1]
    now = z.repeat_interleave(ways, 0)
    there = goal.repeat_interleave(ways, 0)
    subgoal = torch.cat([dots.flatten(0, 1), now[:, model.dot:]], -1)
    onward = torch.zeros_like(now[:, 0], dtype=torch.bool)
    total = torch.zeros_like(now[:, 0])
    actions = []
    for _ in range(clips):
        onward = onward | ((now - subgoal).norm(dim=-1) < NEAR * spread)
        target = torch.where(onward[:, None], there, subgoal)
        action = guessed_action(model, now, target)
        now = model.predict(now, action)
        total = total + (now - there).norm(dim=-1)
        actions.append(action)
    best = total.unflatten(0, (batch, ways)).argmin(1)
    actions = torch.stack(actions, 1).unflatten(0, (batch, ways))
    return actions[torch.arange(batch), best]


@torch.no_grad()
def follow_guess(model, start, goal, steps):
    """start, goal (B, 1, 4) -> states (B, steps, 1, 4): the first guess at every clip, no search."""
    there = look(model, goal)
    state = start
    states = []
    for _ in range(steps // model.clip):
        action = guessed_action(model, look(model, state), there)
        moved, _ = WORLD.rollout(state, action[:, None], model.clip)
        states.append(moved)
        state = moved[:, -1]
    return torch.cat(states, 1)


@torch.no_grad()
def search(model, start, goal, gens, steps, places=None, last=False, init_std=0.6, guess_std=0.1,
           **budget):
    """start, goal (B, 1, 4), a CPU generator each -> states (B, steps, 1, 4): hjepa.replan.

    places: sub-goals, see plan_ways. A search starts from the cheapest way, if that costs less than
    the rest of the last plan. With places (0, D) that is the way straight to the goal; with None
    it starts from no force. last: see path_cost. budget: samples, iterations, elites.
    """
    there = look(model, goal)

    def cost_to_go(clip, left):
        return path_cost(model, look(model, clip[:, -1]), there, last)

    def guess(clip, left):
        return plan_ways(model, look(model, clip[:, -1]), there, places, left)
    states, _ = hjepa.replan(WORLD, start[:, None], steps // model.clip, cost_to_go, gens,
                             guess if places is not None else None, init_std, model.clip,
                             guess_std, **budget)
    return states


def random_walk(start, steps, clip, gens):
    """start (B, 1, 4), a CPU generator each -> states: uniform actions, each held for a clip."""
    limit = WORLD.force_limit
    drawn = [torch.rand(steps // clip, 2, generator=gen) for gen in gens]
    actions = (2 * torch.stack(drawn) - 1) * limit
    states, _ = WORLD.rollout(start, actions.to(start.device), clip)
    return states
