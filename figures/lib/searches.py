"""Searches for a plan that asks little of its cost: each may look at so many plans and no more.

    search(cost, start, gens, plans, limit, memory, **settings) -> plan, cost, memory

cost      plans (B, S, K, A) -> (B, S), of any model or none
start     (B, K, A): where it begins
gens      a CPU generator per goal: goal b draws from gens[b] alone
plans     it asks for the cost of exactly plans + 1 plans per goal
limit     the largest force
memory    what it returned one clip earlier, or None
settings  its own; deviations and rates are in force limits, elites are a share of the samples
->        the plan it would act on (B, K, A), its cost (B,), its memory for the next clip

A cost that is no number counts as enormous. Goals are searched side by side and do not meet.
"""
import hjepa
import torch

ENORMOUS = 1e30


def ask(cost, plans):
    """-> cost of plans (B, S, K, A), all finite: (B, S)."""
    return cost(plans).nan_to_num(nan=ENORMOUS, posinf=ENORMOUS, neginf=-ENORMOUS)


def noise(mean, samples, gens):
    """-> (B, S, K, A) of standard Gaussian numbers for mean (B, K, A)."""
    shape = (samples, *mean.shape[1:])
    drawn = [torch.randn(shape, generator=gen) for gen in gens]
    return torch.stack(drawn).to(mean.device)


def coloured(white, colour):
    """white (B, S, K, A) of Gaussian numbers -> the same shape, variance 1, with a power spectrum
    of 1 / frequency^colour over the K clips; 0: white. The mean counts as the lowest frequency."""
    clips = white.shape[2]
    frequency = torch.fft.fftfreq(clips, device=white.device).abs()
    scale = frequency.clamp_min(1 / clips) ** (-colour / 2)
    scale = scale / scale.square().mean().sqrt()
    spectrum = torch.fft.fft(white, dim=2) * scale[:, None]
    return torch.fft.ifft(spectrum, dim=2).real


def sizes_of(plans, iterations, decay=1.0):
    """-> how many plans each iteration samples, each 1 / decay of the one before: `plans` in
    all."""
    shares = [decay ** -i for i in range(iterations)]
    ends = [round(plans * sum(shares[:i]) / sum(shares)) for i in range(iterations + 1)]
    sizes = [end - begin for begin, end in zip(ends, ends[1:])]
    if min(sizes) < 2:
        raise ValueError(f"{plans} plans are too few for {iterations} iterations")
    return sizes


def parts_of(plans, count, what):
    """-> plans // count. ValueError if there is a rest."""
    if plans % count:
        raise ValueError(f"{plans} plans cannot be shared by {count} {what}")
    return plans // count


def cheapest(plans, costs, count):
    """plans (B, S, K, A), costs (B, S) -> the `count` cheapest, best first, and their costs."""
    found, index = costs.topk(count, largest=False)
    return plans.take_along_dim(index[:, :, None, None], 1), found


def some_of(share, samples, least):
    """-> how many of the samples a share is: `least` or more."""
    return min(samples, max(least, round(share * samples)))


# ---- the searches

def cem(cost, start, gens, plans, limit, memory=None, *, iterations, elites, deviation):
    """hjepa.cem. The one plan more is its last mean."""
    samples = parts_of(plans, iterations, "iterations")
    std = torch.full_like(start, deviation * limit)
    plan, found = hjepa.cem(cost, start, std, gens, samples=samples, iterations=iterations,
                            elites=some_of(elites, samples, 2), low=-limit, high=limit)
    return plan, found, None


def icem(cost, start, gens, plans, limit, memory=None, *, iterations, elites, deviation, colour,
         kept=0.3, momentum=0.1, decay=1.25):
    """iCEM (Pinneri et al. 2020): coloured noise, elites that are kept, fewer samples from
    iteration to iteration, and the last mean as one plan more.

    A share `kept` of the elites stays for the next iteration; their costs are known. Those of the
    last iteration, without their first clip, are among the first samples of the next clip's search.
    """
    mean = start.clamp(-limit, limit)
    std = torch.full_like(mean, deviation * limit)
    sizes = sizes_of(plans, iterations, decay)
    count = some_of(elites, sizes[-1], 2)
    stay = some_of(kept, count, 1)
    pool = mean[:, None][:, :0]                                           # nothing is kept yet
    pool_costs = mean.new_zeros(len(mean), 0)
    for i, samples in enumerate(sizes):
        fresh = mean[:, None] + std[:, None] * coloured(noise(mean, samples, gens), colour)
        fresh = fresh.clamp(-limit, limit)
        if i == 0 and memory is not None:
            old = memory[:, :samples]
            fresh[:, :old.shape[1]] = old
        if i == iterations - 1:
            fresh = torch.cat([fresh, mean[:, None]], 1)
        pool = torch.cat([pool, fresh], 1)
        pool_costs = torch.cat([pool_costs, ask(cost, fresh)], 1)
        elite, elite_costs = cheapest(pool, pool_costs, count)
        mean = momentum * mean + (1 - momentum) * elite.mean(1)
        std = momentum * std + (1 - momentum) * elite.std(1)
        pool, pool_costs = elite[:, :stay], elite_costs[:, :stay]
    return pool[:, 0], pool_costs[:, 0], pool[:, :, 1:]


def mppi(cost, start, gens, plans, limit, memory=None, *, iterations, elites, deviation,
         temperature):
    """Model predictive path integral control, algorithm 1 of EB-JEPA: noise of one deviation in all
    iterations, elites weighted by exp(-cost / temperature), and their mean is the plan.

    The one plan more is that mean: its cost is not used, only told.
    """
    mean = start.clamp(-limit, limit)
    for samples in sizes_of(plans, iterations):
        fresh = mean[:, None] + deviation * limit * noise(mean, samples, gens)
        fresh = fresh.clamp(-limit, limit)
        count = some_of(elites, samples, 2)
        elite, elite_costs = cheapest(fresh, ask(cost, fresh), count)
        weights = (-elite_costs / temperature).softmax(1)
        mean = (weights[:, :, None, None] * elite).sum(1)
    return mean, ask(cost, mean[:, None])[:, 0], None


def adam(cost, start, gens, plans, limit, memory=None, *, restarts, deviation, rate):
    """Gradient descent on the plan by Adam, from `restarts` places at once: the start and others
    around it. The best plan ever seen is returned.

    A plan whose gradient is taken counts once. The one plan more is where the best of the restarts
    stands after its last step.
    """
    steps = parts_of(plans, restarts, "restarts")
    start = start.clamp(-limit, limit)
    places = start[:, None] + deviation * limit * noise(start, restarts, gens)
    places[:, 0] = start
    places = places.clamp(-limit, limit).requires_grad_()
    optimizer = torch.optim.Adam([places], rate * limit)
    best = start
    best_cost = torch.full_like(start[:, 0, 0], ENORMOUS)
    for _ in range(steps):
        with torch.enable_grad():
            costs = ask(cost, places)
            gradient, = torch.autograd.grad(costs.sum(), places)
        lowest, lowest_cost = cheapest(places.detach(), costs.detach(), 1)
        best, best_cost = hjepa.better_of(best, best_cost, lowest[:, 0], lowest_cost[:, 0])
        places.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        with torch.no_grad():
            places.clamp_(-limit, limit)
    last, _ = cheapest(places.detach(), costs.detach(), 1)
    best, best_cost = hjepa.better_of(best, best_cost, last[:, 0], ask(cost, last)[:, 0])
    return best, best_cost, None


def random_shooting(cost, start, gens, plans, limit, memory=None, *, deviation):
    """The best of Gaussian plans around the start, which is the one plan more."""
    fresh = start[:, None] + deviation * limit * noise(start, plans, gens)
    fresh = torch.cat([start[:, None], fresh], 1).clamp(-limit, limit)
    best, found = cheapest(fresh, ask(cost, fresh), 1)
    return best[:, 0], found[:, 0], None


def library_is_here():
    """Whether pytorch-mppi can be imported."""
    try:
        import pytorch_mppi                                               # noqa: F401
    except ImportError:
        return False
    return True


def pytorch_mppi(cost, start, gens, plans, limit, memory=None, *, iterations, deviation,
                 temperature):
    """MPPI of the library pytorch-mppi, one goal at a time. Its cost includes the control effort,
    as published. ImportError where it is not installed: ask `library_is_here` first.

    It rolls a state out step by step. Our cost sees a whole plan, so the state is nothing, and the
    plan is judged at its end. The one plan more is the one it returns.
    """
    from pytorch_mppi import MPPI
    samples = parts_of(plans, iterations, "iterations")
    clips, actions = start.shape[1:]
    nothing = start.new_zeros(samples, 1)
    bound = start.new_full((actions,), limit)

    def judge(states, sampled):                                           # (1, S, K, A)
        return ask(cost, sampled)
    controller = MPPI(
        lambda state, force: state, lambda state, force: nothing[:, 0], 1,
        torch.diag((deviation * bound) ** 2), num_samples=samples, horizon=clips,
        device=start.device, lambda_=temperature, terminal_state_cost=judge, u_min=-bound,
        u_max=bound, U_init=start[0].clone())
    seed = torch.randint(2 ** 31, (), generator=gens[0]).item()
    with torch.random.fork_rng(devices=[]):     # it draws from the global generator
        torch.manual_seed(seed)
        for _ in range(iterations):
            controller.command(nothing[0], shift_nominal_trajectory=False)
    plan = controller.U[None].clamp(-limit, limit)
    return plan, ask(cost, plan[:, None])[:, 0], None


# ---- acting

@torch.no_grad()
def replan(search, world, clip, clips, cost_to_go, gens, guess=None, far=0.6, clip_frames=5,
           **settings):
    """hjepa.replan with any search: plan all that is left, apply the first force for one clip, look,
    plan again. -> the last clip (B, T, bodies, 4).

    guess(clip, clips left) -> forces, or None: as there, the start is then the guess or the rest of
    the last plan, whichever costs less. That is asked of two plans beside those of the search. far:
    the deviation where a planner with a guess has none.  settings: plans, and the search's own.
    """
    limit = world.force_limit
    plan = clip.new_zeros(len(clip), clips, 2 * clip.shape[2])
    memory = None
    for left in range(clips, 0, -1):
        cost = cost_to_go(clip, left)
        now = dict(settings)
        if guess is not None:
            fresh = guess(clip, left)
            if fresh is None:
                now["deviation"] = far
            else:
                plan = hjepa.cheaper_of(cost, plan, fresh)
        plan, _, memory = search(cost, plan, gens, limit=limit, memory=memory, **now)
        clip, _ = world.rollout(clip[:, -1], plan[:, :1], clip_frames)
        plan = plan[:, 1:]
    return clip
