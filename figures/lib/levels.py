"""Planning with the two levels: chained predictions, costs, and planners that use both."""
import hjepa
import torch

# `cost_to_go(clip, left)`: clip (B, T, bodies, 4) and the clips left -> a cost, as hjepa.replan
# wants it.


# ---- costs

def chain(model, z, plans, first, span):
    """`first` short steps, lift, then jumps of `span` clips with a bridge between them.

    z (N, D) is a z1, or a z2 if first is 0; plans (N, K, A), K - first a multiple of span.
    -> (N, D), to be compared with the deep target embedding of the last clip.
    """
    if first > 0:
        z = model.lift(model.rollout(z, plans[:, :first])[:, -1])
    *jumps, last = plans[:, first:].split(span, 1)
    for jump in jumps:
        z = model.bridge(model.jump(z, jump))
    return model.jump(z, last)


def chained_cost(model, clip, goal, first, span):
    """Observed clips (B, T, F) -> a cost for hjepa.cem: `first` short steps, then jumps to the
    goal, as in chain."""
    z1, z2 = model.context(clip)
    _, t2 = model.target(goal)

    def predict(z, plans):
        return chain(model, z, plans, first, span)
    return hjepa.latent_cost(predict, z1 if first > 0 else z2, t2)


def simulate(world, start, plans, clip_frames, meter):
    """States (N, 4 bodies), plans (N, K, A) -> the last clip (N, T, bodies, 4), truly simulated."""
    meter["calls"] += plans.shape[0] * plans.shape[1]
    states, _ = world.rollout(start.unflatten(-1, (-1, 4)), plans, clip_frames)
    return states[:, -clip_frames:]


def oracle_cost(world, goal, clip_frames, meter):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: true positions at the end, true simulator."""
    def reached(start, plans):
        last = simulate(world, start, plans, clip_frames, meter)[:, -1]
        return last[..., :2].flatten(1)

    def cost_to_go(clip, left):
        return hjepa.latent_cost(reached, clip[:, -1].flatten(1), goal[:, -1, :, :2].flatten(1))
    return cost_to_go


def simulated_latent_cost(run, world, goal, meter):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: the true simulator, plain distance of t1."""
    target = run.model.target

    def embed(clips, together):
        """Clips of one goal at a time: then a matrix product does not depend on other goals."""
        parts = [target.shallow(target.tokens(world.observe(part)))
                 for part in clips.split(together)]
        return torch.cat(parts)

    def reached(start, plans):
        clips = simulate(world, start, plans, run.config.clip_frames, meter)
        return embed(clips, len(clips) // len(goal))

    def cost_to_go(clip, left):
        return hjepa.latent_cost(reached, clip[:, -1].flatten(1), embed(goal, 1))
    return cost_to_go


# ---- planners

class Levels:
    """Planners of one and of two levels. Each is a method

        clip (B, T, bodies, 4), clips left, memory -> force for the next clip (B, A), memory

    where memory is what it wants to be given at the next clip, None at first.
    goal (B, T, bodies, 4); gens: a CPU generator per goal; budget: samples, iterations and elites.
    from_guess: within the last macro-event a search starts from the first guess if that costs less
    than the rest of the last plan.
    """

    def __init__(self, run, world, goal, gens, budget, from_guess=False):
        self.model, self.config = run.model, run.config
        self.world, self.gens, self.budget = world, gens, budget
        self.span = run.config.event_clips
        self.goal = world.observe(goal)
        self.from_guess = from_guess

    def search(self, cost, mean, deviation=None, **other):
        """Start mean (B, K, A) -> the best plan (B, K, A). deviation: the first one, in force
        limits. other: what differs from the budget."""
        limit = self.world.force_limit
        std = torch.full_like(mean, (deviation or self.config.init_std) * limit)
        plan, _ = hjepa.cem(cost, mean, std, self.gens, low=-limit, high=limit,
                            **{**self.budget, **other})
        return plan

    def search_to_goal(self, cost, clip, plan):
        """As search, from the first guess if there is one for so many clips and it costs less."""
        left = plan.shape[1]
        if not self.from_guess or left > self.span:
            return self.search(cost, plan)
        guess = hjepa.first_guess(self.model, self.world.observe(clip), self.goal, left,
                                  self.world.force_limit)
        plan = hjepa.cheaper_of(cost, plan, guess)
        return self.search(cost, plan, self.config.guess_std)

    def no_force(self, clip, clips):
        """-> the mean of a first search (B, clips, A)."""
        return clip.new_zeros(len(clip), clips, 2 * clip.shape[2])

    def chained(self, clip, first):
        """-> the cost of `first` short steps and jumps behind them to the goal."""
        return chained_cost(self.model, self.world.observe(clip), self.goal, first, self.span)

    def flat(self, clip, left, plan):
        """P1 rolled out to the goal."""
        if plan is None:
            plan = self.no_force(clip, left)
        cost = hjepa.short_cost(self.model, self.world.observe(clip), self.goal)
        plan = self.search_to_goal(cost, clip, plan)
        return plan[:, 0], plan[:, 1:]

    def macro_alone(self, clip, left, plan):
        """P2, jump after jump; plans again every macro-event."""
        if plan is None:
            plan = self.no_force(clip, left)
        if left % self.span == 0:
            plan = self.search_to_goal(self.chained(clip, 0), clip, plan)
        return plan[:, 0], plan[:, 1:]

    def mixed(self, clip, left, plan):
        """Short steps up to the next macro-event before the goal, then jumps."""
        if left <= self.span:
            return self.flat(clip, left, plan)
        if plan is None:
            plan = self.no_force(clip, left)
        plan = self.search(self.chained(clip, left % self.span), plan)
        return plan[:, 0], plan[:, 1:]

    def top_down(self, clip, left, memory):
        """Jumps set a sub-goal, short steps aim at it.

        memory: the forces of both levels' plans (B, left, A), the sub-goal (B, D).
        P2 predicts a target z2 and P1 a target z1; they are compared as context z2. So a sub-goal
        has no t1, which the first guess asks for.
        """
        plan, subgoal = memory or (self.no_force(clip, left), None)
        if left < 2 * self.span:
            force, plan = self.flat(clip, left, plan)
            return force, (plan, None)
        z1, z2 = self.model.context(self.world.observe(clip))
        if left % self.span == 0:
            plan = self.search(self.chained(clip, 0), plan)
            landed = self.model.jump(z2, plan[:, :self.span])
            subgoal = self.model.bridge(landed)

        def predict(z, plans):
            return self.model.lift(self.model.rollout(z, plans)[:, -1])
        first = left % self.span or self.span
        near = self.search(hjepa.latent_cost(predict, z1, subgoal), plan[:, :first])
        return near[:, 0], (torch.cat([near[:, 1:], plan[:, first:]], 1), subgoal)

    def joint(self, clip, left, plan, rounds=2):
        """As mixed, but both levels' plans are improved in turn.

        First the jumps from where the short steps lead, then the short steps with the jumps fixed
        behind them. Each round has its share of the iterations, rounded down.
        """
        if left <= self.span:
            return self.flat(clip, left, plan)
        if plan is None:
            plan = self.no_force(clip, left)
        first = left % self.span or self.span
        near = plan[:, :first]
        far = plan[:, first:]
        z1, _ = self.model.context(self.world.observe(clip))
        _, t2 = self.model.target(self.goal)

        def jumps(z, plans):
            return chain(self.model, z, plans, 0, self.span)

        def steps(z, plans):
            fixed = far.repeat_interleave(len(plans) // len(far), 0)
            return chain(self.model, z, torch.cat([plans, fixed], 1), first, self.span)
        share = max(1, self.budget["iterations"] // rounds)
        for _ in range(rounds):
            there = self.model.lift(self.model.rollout(z1, near)[:, -1])
            cost = hjepa.latent_cost(jumps, there, t2)
            far = self.search(cost, far, iterations=share)
            cost = hjepa.latent_cost(steps, z1, t2)
            near = self.search(cost, near, iterations=share)
        return near[:, 0], torch.cat([near[:, 1:], far], 1)


PLANS = {"flat": Levels.flat, "macro alone": Levels.macro_alone, "mixed": Levels.mixed,
         "top-down": Levels.top_down, "joint": Levels.joint}


def replan_levels(name, levels, clip, clips, clip_frames):
    """Planner `name` of PLANS, planning again at each clip -> the last clip (B, T, bodies, 4)."""
    memory = None
    for left in range(clips, 0, -1):
        force, memory = PLANS[name](levels, clip, left, memory)
        clip, _ = levels.world.rollout(clip[:, -1], force[:, None], clip_frames)
    return clip
