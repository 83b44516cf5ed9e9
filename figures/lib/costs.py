"""What a plan may be asked to be good at: costs of the path that P1 predicts for it.

A measure takes path (..., K, D), what P1 predicts clip by clip, and goal (..., D), t1 of the goal
-> (...). A cost for a search takes plans (B, S, K, A) -> (B, S).
"""
from lib import change


def last_step(path, goal):
    """The squared distance at the end, as a mean over dimensions: hjepa.short_cost."""
    return (path[..., -1, :] - goal).square().mean(-1)


def summed(path, goal):
    """The distances of all predicted clips from the goal, summed (EB-JEPA equation 14)."""
    gap = path - goal[..., None, :]
    return gap.norm(dim=-1).sum(-1)


def smallest(path, goal):
    """The squared distance where the path comes nearest to the goal, as a mean over dimensions."""
    gap = path - goal[..., None, :]
    return gap.square().mean(-1).amin(-1)


def in_metric(metric):
    """-> the measure last_step in the metric (D, D) of change (lib/change.py)."""
    def measure(path, goal):
        gap = (path[..., -1, :] - goal) @ metric
        return gap.square().mean(-1)
    return measure


def by_network(network):
    """-> the measure d(last predicted clip, goal) of a lib.quasi_distance.QuasiDistance."""
    def measure(path, goal):
        return network(path[..., -1, :], goal)
    return measure


NAMES = ("last step", "summed", "smallest", "metric of change", "quasi-distance")


def measure_of(name, run, world, device, network=None):
    """-> the measure of one of NAMES for a run. network: what the quasi-distance needs."""
    plain = {"last step": last_step, "summed": summed, "smallest": smallest}
    if name in plain:
        return plain[name]
    if name == "metric of change":
        metric, _ = change.metrics(run, world, device)
        return in_metric(metric)
    return by_network(network)


def path_cost(model, clip, goal, measure):
    """Observed clips (B, T, F) -> a cost for a search: the measure of P1 rolled out."""
    z1, _ = model.context(clip)
    t1, _ = model.target(goal)

    def cost(plans):
        goals, samples = plans.shape[:2]
        starts = z1[:, None].expand(-1, samples, -1)                      # (B, S, D)
        path = model.rollout(starts.flatten(0, 1), plans.flatten(0, 1))   # (B S, K, D)
        path = path.float().unflatten(0, (goals, samples))
        there = t1[:, None].float().expand(-1, samples, -1)
        return measure(path, there)
    return cost


def cost_to_go(run, world, goal, measure):
    """Goal clips (B, T, bodies, 4) -> cost_to_go(clip, clips left), as hjepa.replan wants it."""
    observed = world.observe(goal)

    def to_go(clip, left):
        return path_cost(run.model, world.observe(clip), observed, measure)
    return to_go
