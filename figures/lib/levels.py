"""Planning with the two levels: chained predictions, their costs, and planners that use both."""
import hjepa
import torch

# What all costs here have in common: `cost_to_go(clip, left)`, clip (B, T, bodies, 4) and the clips
# left, as hjepa.replan wants it; `make_cost(model, clip, goal)`, clips observed (B, T, F), as
# hjepa.short_cost has it.


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


def chained_cost(first, span):
    """-> make_cost: `first` short steps, then jumps to the goal, as in chain."""
    def make_cost(model, clip, goal):
        z1, z2 = model.context(clip)
        _, t2 = model.target(goal)

        def predict(z, plans):
            return chain(model, z, plans, first, span)
        return hjepa.latent_cost(predict, z1 if first > 0 else z2, t2)
    return make_cost


def mixed_cost(run, world, goal):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: short steps up to the next whole number of
    macro-events before the goal, then jumps; within the last macro-event only short steps."""
    config = run.config
    span = config.event_clips

    def cost_to_go(clip, left):
        make_cost = hjepa.short_cost if left <= span else chained_cost(left % span, span)
        return make_cost(run.model, world.observe(clip), world.observe(goal))
    return cost_to_go


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


# ---- planners

class Levels:
    """Planners of one and of two levels. Each is a method

        clip (B, T, bodies, 4), clips left, memory -> force for the next clip (B, A), memory

    where memory is what it wants to be given at the next clip, None at first.
    goal (B, T, bodies, 4); gens: a CPU generator per goal; budget: samples, iterations and elites.
    """

    def __init__(self, run, world, goal, gens, budget):
        self.model, self.config = run.model, run.config
        self.world, self.gens, self.budget = world, gens, budget
        self.span = run.config.event_clips
        self.goal = world.observe(goal)

    def search(self, make_cost, clip, mean, **other):
        """Start mean (B, K, A) -> the best plan (B, K, A). other: what differs from the budget."""
        limit = self.world.force_limit
        cost = make_cost(self.model, self.world.observe(clip), self.goal)
        std = torch.full_like(mean, self.config.init_std * limit)
        plan, _ = hjepa.cem(cost, mean, std, self.gens, low=-limit, high=limit,
                            **{**self.budget, **other})
        return plan

    def no_force(self, clip, clips):
        """-> the mean of a first search (B, clips, A)."""
        return clip.new_zeros(len(clip), clips, 2 * clip.shape[2])

    def flat(self, clip, left, plan):
        """P1 rolled out to the goal."""
        if plan is None:
            plan = self.no_force(clip, left)
        plan = self.search(hjepa.short_cost, clip, plan)
        return plan[:, 0], plan[:, 1:]

    def flat_held(self, clip, left, plan):
        """The same, with one force per macro-event, counted back from the goal."""
        event = torch.tensor([(-left % self.span + k) // self.span for k in range(left)])

        def make_cost(model, clip, goal):
            cost = hjepa.short_cost(model, clip, goal)
            return lambda plans: cost(plans[..., event, :])
        if plan is None:
            plan = self.no_force(clip, event[-1] + 1)
        plan = self.search(make_cost, clip, plan)
        event_ends = (left - 1) % self.span == 0
        return plan[:, 0], plan[:, 1:] if event_ends else plan

    def macro_alone(self, clip, left, plan):
        """P2, jump after jump; plans again every macro-event."""
        if left % self.span == 0:
            if plan is None:
                plan = self.no_force(clip, left)
            plan = self.search(chained_cost(0, self.span), clip, plan)
        return plan[:, 0], plan[:, 1:]

    def mixed(self, clip, left, plan):
        """Short steps up to the next macro-event before the goal, then jumps."""
        if left <= self.span:
            return self.flat(clip, left, plan)
        if plan is None:
            plan = self.no_force(clip, left)
        plan = self.search(chained_cost(left % self.span, self.span), clip, plan)
        return plan[:, 0], plan[:, 1:]

    def top_down(self, clip, left, memory):
        """Jumps set a sub-goal, short steps aim at it.

        memory: the forces of both levels' plans (B, left, A), the sub-goal (B, D).
        P2 predicts a target z2 and P1 a target z1; they are compared as context z2.
        """
        plan, subgoal = memory or (self.no_force(clip, left), None)
        if left < 2 * self.span:
            force, plan = self.flat(clip, left, plan)
            return force, (plan, None)
        if left % self.span == 0:
            plan = self.search(chained_cost(0, self.span), clip, plan)
            _, z2 = self.model.context(self.world.observe(clip))
            landed = self.model.jump(z2, plan[:, :self.span])
            subgoal = self.model.bridge(landed)

        def make_cost(model, clip, goal):
            z1, _ = model.context(clip)

            def predict(z, plans):
                return model.lift(model.rollout(z, plans)[:, -1])
            return hjepa.latent_cost(predict, z1, subgoal)
        first = left % self.span or self.span
        near = self.search(make_cost, clip, plan[:, :first])
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
        span = self.span
        first = left % span or span
        near = plan[:, :first]
        far = plan[:, first:]

        def jumps_behind(model, clip, goal):
            z1, _ = model.context(clip)
            _, t2 = model.target(goal)
            reached = model.rollout(z1, near)[:, -1]

            def predict(z, plans):
                return chain(model, z, plans, 0, span)
            return hjepa.latent_cost(predict, model.lift(reached), t2)

        def steps_before(model, clip, goal):
            z1, _ = model.context(clip)
            _, t2 = model.target(goal)

            def predict(z, plans):
                fixed = far.repeat_interleave(len(plans) // len(far), 0)
                return chain(model, z, torch.cat([plans, fixed], 1), first, span)
            return hjepa.latent_cost(predict, z1, t2)
        share = max(1, self.budget["iterations"] // rounds)
        for _ in range(rounds):
            far = self.search(jumps_behind, clip, far, iterations=share)
            near = self.search(steps_before, clip, near, iterations=share)
        return near[:, 0], torch.cat([near[:, 1:], far], 1)


PLANS = {"flat": Levels.flat, "flat, held": Levels.flat_held, "macro alone": Levels.macro_alone,
         "mixed": Levels.mixed, "top-down": Levels.top_down, "joint": Levels.joint}


def replan_levels(name, levels, clip, clips, clip_frames):
    """Planner `name` of PLANS, planning again at each clip -> the last clip (B, T, bodies, 4)."""
    memory = None
    for left in range(clips, 0, -1):
        force, memory = PLANS[name](levels, clip, left, memory)
        clip, _ = levels.world.rollout(clip[:, -1], force[:, None], clip_frames)
    return clip
