"""A space of embeddings to plan in: the search that only the space can spoil, rank correlation."""
from lib import goals
import hjepa
import torch

SIDE_BY_SIDE = 20                               # goals at once


class Space:
    """One way to embed clips and to measure distance: tap 0 or 1, in a metric (D, D) or plainly."""

    def __init__(self, run, world, tap, metric=None):
        self.config = run.config
        self.encoder = run.model.target
        self.world = world
        self.tap = tap
        self.metric = metric
        self.device = next(run.model.parameters()).device

    def embed(self, clips):
        """Clips (N, T, bodies, 4) -> (N, D): plain distances there are those of the space."""
        z = self.encoder(self.world.observe(clips))[self.tap]
        return z if self.metric is None else z @ self.metric

    def cost(self, now, goal):
        """Clips (B, T, bodies, 4) -> a cost for hjepa.cem: the true simulator, distance in here."""
        frames = self.config.clip_frames

        def reached(start, plans):
            states, _ = self.world.rollout(start.unflatten(-1, (-1, 4)), plans, frames)
            return self.embed(states[:, -frames:])
        return hjepa.latent_cost(reached, now[:, -1].flatten(1), self.embed(goal))


@torch.no_grad()
def search(space, drawn, label):
    """Open loop, plain CEM with the run's budget -> final errors (1, goals, bodies)."""
    config = space.config
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)
    parts = torch.arange(len(drawn["goal"])).split(SIDE_BY_SIDE)
    errors = []
    for pick in hjepa.progress(parts, label, len(parts)):
        clip = drawn["clip"][pick].to(space.device)
        goal = drawn["goal"][pick].to(space.device)
        gens = [hjepa.generator(config.test_seed, "landscape", i) for i in pick.tolist()]

        def cost_to_go(now, left):
            return space.cost(now, goal)
        states, _ = hjepa.plan_once(space.world, clip, config.event_clips, cost_to_go, gens, None,
                                    config.init_std, config.clip_frames, **budget)
        errors.append(goals.final_errors(states, goal))
    return torch.cat(errors)[None]


def ranks(x):
    """(N,) -> the place of each number in the order of all; equal numbers share theirs."""
    below = (x[:, None] > x).sum(1)
    equal = (x[:, None] == x).sum(1)                                      # itself is one of them
    return below + (equal - 1) / 2


def spearman(a, b):
    """Two tensors (N,) -> their rank correlation; None if one of them never changes."""
    places = torch.stack([ranks(a), ranks(b)])
    if (places == places[:, :1]).all(1).any():
        return None
    return torch.corrcoef(places)[0, 1].item()
