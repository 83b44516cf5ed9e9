"""What is asked of every trained variant: plans, landscapes, errors, contacts, probes, rank."""
import math

import hjepa
import torch

from lib import films, goals, levels, probes, spaces, surprises
from lib import variants_list as lists
from lib import variants_models as models
from lib import variants_runs as runs

# Column -> search of hjepa.py, from no force and with the plain distance: all variants have those.
PLANS = {"closed": "short replanned", "macro": "macro open loop", "short": "short open loop"}
TAPS = ("t1", "t2")


# ---- plans

def plan_errors(name, run, world, drawn, device):
    """-> dict: final errors (goals, bodies) of each plan, and "landscape t1" and "landscape t2":
    the same search with the true simulator and the distance in that tap's space."""
    errors = {}
    for plan, search in PLANS.items():
        if lists.VARIANTS[name].macro or plan != "macro":
            errors[plan] = goals.side_by_side(search, run, world, drawn, run.config.test_seed,
                                              device)
    for tap, tap_name in enumerate(TAPS):
        space = spaces.Space(run, world, tap)
        errors[f"landscape {tap_name}"] = spaces.search(space, drawn, tap_name)[0]
    return errors


# ---- distances

def oracle_clips(config, world, n, device):
    """-> n goals, 1, 2, ... event_clips clips ahead in turn, easy ones, too: clips now and goal
    (n, T, bodies, 4); and how many clips the search in the true simulator needs to reach them (n,):
    the fewest, or one more than there are in a macro-event."""
    most = config.event_clips
    states, _, _ = hjepa.draw_sequences(world, config, n, config.test_seed, "oracle", "cpu")
    states = states.to(device)
    ahead = torch.arange(n) % most + 1
    now = states[:, 0]
    goal = states[torch.arange(n), ahead]
    needed = torch.full((n,), most + 1)
    budget = dict(samples=config.samples, iterations=config.iterations, elites=config.elites)
    for clips in range(most, 0, -1):
        gens = [hjepa.generator(config.test_seed, f"oracle {clips}", i) for i in range(len(now))]
        cost_to_go = levels.oracle_cost(world, goal, config.clip_frames, {"calls": 0})
        states, _ = hjepa.plan_once(world, now, clips, cost_to_go, gens, None, config.init_std,
                                    config.clip_frames, **budget)
        reached = goals.final_errors(states, goal).amax(-1) < hjepa.REACHED
        needed[reached] = clips
    return now, goal, needed


@torch.no_grad()
def distance_columns(run, world, clips, oracle, device):
    """clips (N, T, bodies, 4) of other worlds, what oracle_clips gave -> Spearman correlations of
    the distance in the space of each tap with three true ones."""
    def embed(some, tap):
        return run.model.target(world.observe(some.to(device)))[tap].float().cpu()
    now, goal, needed = oracle
    half = len(clips) // 2
    one, other = clips[:2 * half].split(half)
    apart = hjepa.distance(one[:, -1], other[:, -1]).amax(-1)
    found = {}
    for tap, name in enumerate(TAPS):
        far = (embed(one, tap) - embed(other, tap)).norm(dim=-1)
        found[f"order far {name}"] = spaces.spearman(far, apart)
        to_go = (embed(now, tap) - embed(goal, tap)).norm(dim=-1)
        found[f"order clips {name}"] = spaces.spearman(to_go, needed.float())
        found[f"order near {name}"] = hjepa.order_of_distances(
            lambda some: run.model.target(world.observe(some))[tap], clips[:256].to(device),
            hjepa.generator(run.config.test_seed, "order"))
    return found


# ---- errors and surprise

def error_columns(z, contact):
    """Embeddings of test worlds (see hjepa.latents), contact (N,) -> squared errors of P1 rolled
    out and of P2 as a share of the variance: of all, with and without a contact."""
    found = {}
    for plan, p, t in (("short", z["p1"], z["t1"]), ("macro", z["p2"], z["t2"])):
        spread = t.var(0).sum().clamp_min(1e-12)
        error = (p - t).square().sum(-1) / spread
        found[f"{plan} error"] = error.mean().item()
        found[f"{plan} error contact"] = error[contact].mean().item()
        found[f"{plan} error no contact"] = error[~contact].mean().item()
    return found


def surprise_columns(run, world, n, device):
    """-> share of pairs in which bodies that fly through each other surprise more than a lawful
    contact does: the short level in the clip of the event, and the macro level."""
    config = run.config
    pairs = films.make_pairs("pass-through", world, config, n, config.test_seed)
    short, macro = [], []
    for film, forces in zip(pairs.films, pairs.forces):
        error1, error2 = surprises.film_surprise(run, world, pairs.clip, film, forces, device)
        clip = pairs.event.numpy() // config.clip_frames
        short.append(error1[range(len(clip)), clip])
        macro.append(error2)
    return {"pass-through short": surprises.wins(short[1], short[0]).mean().item(),
            "pass-through macro": surprises.wins(macro[1], macro[0]).mean().item()}


# ---- what is in the embeddings

def probe_columns(run, world, n, device):
    """-> R2 of what is read linearly from z1 and z2 of test worlds."""
    config = run.config
    counts = {config.seed: 2 * n, config.validation_seed: n, config.test_seed: n}
    sets = []
    for seed, count in counts.items():
        states, forces, _ = hjepa.draw_sequences(world, config, count, seed, "probe", device)
        z = hjepa.latents(run.model, world.observe(states), forces)
        sets.append((z, hjepa.probe_targets(states[:, 0, -1], config.masses)))
    found = {}
    for tap in ("z1", "z2"):
        for what in sets[0][1]:
            training, validation, test = ((z[tap], targets[what]) for z, targets in sets)
            read = probes.linear(training, validation)
            found[f"{what} {tap}"] = hjepa.r2(read(test[0]), test[1]).mean().item()
    return found


def calibration_columns(run, z):
    """Of the Gaussian variant: the share of target numbers within 1 and 1.96 of its deviations (of
    a Gaussian: 0.683 and 0.95), of P2 from z2. Nothing for other variants."""
    if not hasattr(run.model, "spread2"):
        return {}
    device = next(run.model.parameters()).device
    with torch.no_grad():
        spread = models.log_variance(run.model.spread2, z["z2"].to(device), z["p2"].to(device))
    deviation = (spread / 2).exp().cpu()
    gap = (z["t2"] - z["p2"]).abs()
    return {"within 1 deviation": (gap < deviation).float().mean().item(),
            "within 1.96 deviations": (gap < 1.96 * deviation).float().mean().item()}


def finite(columns):
    """-> the same, None for what is no number: a correlation with a constant, an R2 of nothing."""
    return {key: None if value is None or not math.isfinite(value) else value
            for key, value in columns.items()}


# ---- all of it

class Judge:
    """What all variants of a study are measured on: goals, worlds, and how far the oracle says the
    goals are. sizes: goals, n, pairs and oracle, how many of each."""

    def __init__(self, study, sizes):
        self.study = study
        self.sizes = sizes
        config = study.base
        self.world = hjepa.build_world(config)
        self.drawn = goals.goals_of(config, sizes["goals"])
        self.oracle = None

    def __call__(self, training):
        """Trains what is not trained, measures it, and writes measured.json: columns, errors of
        each plan (goals, bodies), and why the training broke down, or null."""
        study, n = self.study, self.sizes["n"]
        print(f"{training.name}, {training.epochs} epochs, seed {training.seed}:", flush=True)
        broken = runs.train(study, training)
        if broken is not None:
            self.write(training, {}, {}, broken)
            return
        if self.oracle is None:
            self.oracle = oracle_clips(study.base, self.world, self.sizes["oracle"],
                                       study.device)
        run = runs.open_run(study, training)
        errors = plan_errors(training.name, run, self.world, self.drawn, study.device)
        states, forces, contacts = hjepa.draw_sequences(self.world, run.config, n,
                                                        run.config.test_seed, "worlds",
                                                        study.device)
        z = hjepa.latents(run.model, self.world.observe(states), forces)
        contact = contacts[:, 1:].flatten(1).any(1).cpu()
        columns = {
            **error_columns(z, contact),
            **{f"rank {name}": hjepa.effective_rank(z[name]) for name in ("z1", "t1", "z2", "t2")},
            **distance_columns(run, self.world, states[:, 0].cpu(), self.oracle, study.device),
            **surprise_columns(run, self.world, self.sizes["pairs"], study.device),
            **probe_columns(run, self.world, n, study.device),
            **calibration_columns(run, z),
            "sequences per second": runs.speed(study, training)}
        self.write(training, finite(columns), errors, None)

    def write(self, training, columns, errors, broken):
        """measured.json"""
        errors = {plan: values.tolist() for plan, values in errors.items()}
        runs.write_note(self.study, training, "measured.json", self.sizes,
                        {"columns": columns, "errors": errors, "broken": broken})
