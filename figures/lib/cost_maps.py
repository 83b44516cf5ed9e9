"""Maps of the cost over two coordinates of a plan, and where gradient descent on them ends."""
import hjepa
import torch

SPACES = ("positions", "t1", "t2")
FUTURES = ("simulator", "model")

# The plan that is changed: the force on this body, the lightest one, while this clip is filmed.
BODY = 0
CLIP = 0


def plans_around(forces, limit, grid):
    """forces (K, A) of a plan -> plans (grid * grid, K, A): the force on one body in one clip runs
    over all of its range, fx from plan to plan of a row, fy from row to row; the rest stays."""
    axis = torch.linspace(-limit, limit, grid, device=forces.device)
    fy, fx = torch.meshgrid(axis, axis, indexing="ij")
    plans = forces.repeat(grid * grid, 1, 1)
    plans[:, CLIP, 2 * BODY] = fx.flatten()
    plans[:, CLIP, 2 * BODY + 1] = fy.flatten()
    return plans


@torch.no_grad()
def cost_maps(run, world, decode, clip, goal, plans):
    """clip, goal (1, T, bodies, 4), plans (P, K, A) -> dict (space, future) -> costs (P,); and how
    far the worst body ends from the goal (P,).

    A cost is the mean squared distance from the goal in that space. decode: see probes.fit_decoder;
    it reads positions where the model predicts.
    """
    model, frames = run.model, run.config.clip_frames
    many = len(plans)
    states, _ = world.rollout(clip[:, -1].expand(many, -1, -1), plans, frames)
    ends = states[:, -frames:]
    t1, t2 = model.target(world.observe(ends))
    goal1, goal2 = model.target(world.observe(goal))
    z1, z2 = model.context(world.observe(clip))
    p1 = model.rollout(z1.expand(many, -1), plans)[:, -1]
    p2 = model.jump(z2.expand(many, -1), plans)
    place = goal[:, -1, :, :2].flatten(1)
    reached = {("positions", "simulator"): ends[:, -1, :, :2].flatten(1) - place,
               ("positions", "model"): decode(p1) - place,
               ("t1", "simulator"): t1 - goal1, ("t1", "model"): p1 - goal1,
               ("t2", "simulator"): t2 - goal2, ("t2", "model"): p2 - goal2}
    costs = {key: gap.square().mean(-1).cpu() for key, gap in reached.items()}
    worst = hjepa.distance(ends[:, -1], goal[:, -1]).amax(-1)
    return costs, worst.cpu()


def descend(costs):
    """costs (grid, grid) -> (grid * grid,): the number of the point where each point ends that goes
    on to the cheapest of its 8 neighbours as long as that is cheaper."""
    grid = len(costs)
    number = torch.arange(grid * grid).view(grid, grid)
    padded = torch.nn.functional.pad(costs[None, None], (1, 1, 1, 1), value=torch.inf)[0, 0]
    numbers = torch.nn.functional.pad(number[None, None].double(), (1, 1, 1, 1))[0, 0].long()
    moves = [(0, 0)] + [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    near = torch.stack([padded[1 + i:1 + i + grid, 1 + j:1 + j + grid] for i, j in moves])
    there = torch.stack([numbers[1 + i:1 + i + grid, 1 + j:1 + j + grid] for i, j in moves])
    # Of equal costs the point itself comes first: nothing goes round in circles.
    best = near.argmin(0)
    best = torch.where(near.amin(0) < near[0], best, 0)
    ends = there.gather(0, best[None])[0].flatten()
    while not torch.equal(ends[ends], ends):
        ends = ends[ends]
    return ends


def gauges(costs, worst):
    """costs, worst (P,) of a square grid -> dict.

    to_minimum: share of points from which descent ends at the cheapest point of all. to_goal: share
    of points from which it ends where the worst body is within hjepa.REACHED. minima: local ones.
    best: how far the worst body is from the goal at the cheapest point, in half boxes.
    """
    grid = round(len(costs) ** 0.5)
    ends = descend(costs.view(grid, grid))
    return {"to_minimum": (ends == costs.argmin()).float().mean().item(),
            "to_goal": (worst[ends] < hjepa.REACHED).float().mean().item(),
            "minima": len(ends.unique()),
            "best": worst[costs.argmin()].item()}
