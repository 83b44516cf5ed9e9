"""What the rows of planning.py do: planners of hjepa.py, rivals, and what tells faults apart."""
import dataclasses

import hjepa

from lib import levels, state_network

TENTH = "replanned from guess, a tenth"
LEVELS = {"both levels": False, "both levels from guess": True}           # from the first guess?


def decoded_cost(run, world, goal, decode):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: the model, distance of decoded positions."""
    t1, _ = run.model.target(world.observe(goal))

    def reached(z, plans):
        return decode(run.model.rollout(z, plans)[:, -1])

    def cost_to_go(clip, left):
        z1, _ = run.model.context(world.observe(clip))
        return hjepa.latent_cost(reached, z1, decode(t1))
    return cost_to_go


def make_cost(name, run, world, goal, meter, tools):
    """-> cost_to_go of a row that is a plain search with another cost."""
    if name == "oracle":
        return levels.oracle_cost(world, goal, run.config.clip_frames, meter)
    if name == "simulator + latent cost":
        return levels.simulated_latent_cost(run, world, goal, meter)
    if name == "model + decoded cost":
        return decoded_cost(run, world, goal, tools["decode"])

    def cost_to_go(clip, left):
        return state_network.cost_of(tools["network"], world, clip, goal, meter)
    return cost_to_go


def tenth(config):
    """-> the same settings with a tenth of the plans: 20 in 3 iterations instead of 100 in 6."""
    samples = max(3, config.samples // 5)
    return dataclasses.replace(config, samples=samples, iterations=max(1, config.iterations // 2),
                               elites=max(2, samples // 5))


def solve(name, run, world, drawn, pick, tools=None, meter=None, device="cpu"):
    """Row `name` on the goals `pick`, side by side -> states (B, frames, bodies, 4).

    tools: dict of what a row needs beside the model, decode or network.
    """
    config = run.config
    clips = drawn["forces"].shape[1]
    gens = [hjepa.generator(config.test_seed, name, i) for i in pick.tolist()]
    aim = (pick + 1) % len(drawn["goal"]) if name == "shuffled goal" else pick
    clip = drawn["clip"][pick].to(device)
    goal = drawn["goal"][aim].to(device)
    planner = {"shuffled goal": "short replanned", "untrained": "short replanned",
               TENTH: "replanned from guess"}.get(name, name)
    if planner in hjepa.PLANNERS:
        config = tenth(config) if name == TENTH else config
        states, _ = hjepa.run_planner(planner, run.model, world, config, clip, goal, gens, clips)
        return states
    budget = {key: getattr(config, key) for key in ("samples", "iterations", "elites")}
    if name in LEVELS:
        both = levels.Levels(run, world, goal, gens, budget, LEVELS[name])
        return levels.replan_levels("mixed", both, clip, clips, config.clip_frames)
    cost_to_go = make_cost(name, run, world, goal, meter, tools)
    states, _ = hjepa.replan(world, clip, clips, cost_to_go, gens, None, config.init_std,
                             config.clip_frames, **budget)
    return states


def untrained(run, device):
    """-> the run with the weights that its training started from."""
    return run._replace(model=hjepa.build_model(run.config).to(device).eval(), epochs=0)
