"""The metric of change: a distance in which a clip far away in time is far away.

It was part of the planner until temporal similarity was part of the loss. Since then it wins
nothing on validation goals, and only studies of spaces and costs measure it.
"""
import hjepa
import torch

EASE = 0.1                                      # chosen on validation goals when it still won
WORLDS = 2048                                   # of training, to measure change on


def change_metric(change, ease):
    r"""change (D, D): covariance of how an embedding changes from clip to clip -> metric (D, D).

    A gap times the metric has the squared length gap' (change + ease c I)^-1 gap, up to a factor; c
    is the mean eigenvalue of change. What changes fast in ordinary life then counts little, what
    changes slowly counts much: a linear stand-in for "how many clips away". The larger ease, the
    closer to the plain distance; 0 stands for the plain distance itself.
    """
    if ease == 0:
        return torch.eye(len(change), device=change.device)
    values, directions = torch.linalg.eigh(change.float().cpu())          # not on every device
    values = values.clamp_min(1e-12)                                      # all 0: plain distance
    scale = (values + ease * values.mean()).rsqrt()
    scale = scale / scale.square().mean().sqrt()
    return (directions * scale).to(change.device)


@torch.no_grad()
def measure_change(model, obs, chunk=512):
    """obs (N, K, T, F) -> covariances (D, D) of how t1, and t2, change from clip to clip."""
    steps1, steps2 = [], []
    for some in obs.split(chunk):
        t1, t2 = model.target(some.flatten(0, 1))
        for z, steps in ((t1, steps1), (t2, steps2)):
            z = z.unflatten(0, (len(some), -1))                           # (chunk, K, D)
            steps.append((z[:, 1:] - z[:, :-1]).flatten(0, 1))
    return torch.cov(torch.cat(steps1).T), torch.cov(torch.cat(steps2).T)


def metrics(run, world, device):
    """-> the metrics (D, D) of t1 and of t2, measured on training worlds."""
    states, _, _ = hjepa.draw_sequences(world, run.config, WORLDS, run.config.seed, "change",
                                        device)
    changes = measure_change(run.model, world.observe(states))
    return [change_metric(change, EASE) for change in changes]
