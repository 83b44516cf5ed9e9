"""Planners of other libraries behind the interface of ours, for figures/speed_plan.py.

A planner takes (problem, config, seed) and returns a function that makes one plan (1, K, A). All
search the same cost, with the samples and iterations of the config. ImportError where the library
is not installed: figures/requirements-speed.txt has them all.
"""
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import math
import sys
import types
from typing import Callable

import hjepa
import torch


@dataclasses.dataclass(frozen=True)
class Problem:
    """One goal to plan for. A plan is K clips of A numbers within the limit of the forces.

    predict         embeddings (S, D), plans (S, K, A) -> (S, D): from the start to the goal
    step            embeddings (S, D), forces (S, K A / steps) -> (S, D): one prediction
    steps           predictions from start to goal: 1 for the macro level, K for the short one
    start, goal     (1, D)
    """
    predict: Callable
    step: Callable
    steps: int
    start: torch.Tensor
    goal: torch.Tensor
    clips: int
    actions: int
    limit: float

    def cost(self, plans):
        """plans (1, S, K, A) -> (1, S)."""
        return hjepa.latent_cost(self.predict, self.start, self.goal)(plans)


def load(package, module):
    """Imports package.module and not the rest of the package, which may need much that is not here:
    an empty package with the right path takes its place."""
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ImportError(f"{package} is not installed")
        empty = types.ModuleType(package)
        empty.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = empty
    return importlib.import_module(f"{package}.{module}")


def ours(problem, config, seed):
    """hjepa.cem as `hjepa.py plan` calls it."""
    mean = problem.start.new_zeros(1, problem.clips, problem.actions)
    std = torch.full_like(mean, config.init_std * problem.limit)
    settings = dict(
        samples=config.samples, iterations=config.iterations, elites=config.elites,
        low=-problem.limit, high=problem.limit)

    def plan():
        gens = [hjepa.generator(seed, "plan")]
        best, _ = hjepa.cem(problem.cost, mean, std, gens, **settings)
        return best
    return plan


def stable_worldmodel(problem, config, seed):
    """CEM of stable-worldmodel as it ships: a tenth are elites, the first deviation is 1."""
    CEMSolver = load("stable_worldmodel", "solver.cem").CEMSolver
    from gymnasium.spaces import Box
    # It plans in units of the training actions' deviation: that of a uniform force is this.
    unit = problem.limit / math.sqrt(3)

    def to_forces(plans):
        return (unit * plans).clamp(-problem.limit, problem.limit)

    world_model = types.SimpleNamespace(
        get_cost=lambda info, plans: problem.cost(to_forces(plans)))
    solver = CEMSolver(world_model, num_samples=config.samples, n_steps=config.iterations,
                       topk=max(2, config.samples // 10), device=problem.start.device, seed=seed)
    solver.configure(action_space=Box(-1, 1, (1, problem.actions)), n_envs=1,
                     config=types.SimpleNamespace(horizon=problem.clips, action_block=1))

    def plan():
        with contextlib.redirect_stdout(io.StringIO()):                   # it prints its time
            found = solver.solve({"start": problem.start})
        return to_forces(found["actions"])
    return plan


def mbrl(problem, config, seed):
    """CEM of mbrl-lib with the settings of its PETS example: a tenth are elites, momentum 0.1."""
    CEMOptimizer = load("mbrl", "planning.trajectory_opt").CEMOptimizer
    mean = problem.start.new_zeros(problem.clips, problem.actions)
    high = torch.full_like(mean, problem.limit)
    optimizer = CEMOptimizer(
        num_iterations=config.iterations, elite_ratio=0.1, population_size=config.samples,
        lower_bound=(-high).tolist(), upper_bound=high.tolist(), alpha=0.1, device=mean.device)

    def reward(plans):
        return -problem.cost(plans[None])[0]

    def plan():
        torch.manual_seed(seed)                                           # it draws from the global
        return optimizer.optimize(reward, mean)[None]
    return plan


def mppi(problem, config, seed, temperature=0.001):
    """MPPI of pytorch-mppi, which rolls out `step` by itself and calls no cost of ours. Its cost
    includes the control effort, as published; the temperature weighs one against the other."""
    from pytorch_mppi import MPPI
    size = problem.clips * problem.actions // problem.steps
    limit = problem.start.new_full((size,), problem.limit)
    variance = (config.init_std * limit) ** 2
    nothing = problem.start.new_zeros(config.samples)

    def distance(states, actions):                                        # (1, S, steps, D)
        return (states[:, :, -1] - problem.goal).square().mean(-1)

    controller = MPPI(
        problem.step, lambda z, force: nothing, problem.start.shape[1], torch.diag(variance),
        num_samples=config.samples, horizon=problem.steps, device=problem.start.device,
        lambda_=temperature, terminal_state_cost=distance, u_min=-limit, u_max=limit,
        U_init=problem.start.new_zeros(problem.steps, size))

    def plan():
        torch.manual_seed(seed)
        controller.U = torch.zeros_like(controller.U)
        for _ in range(config.iterations):
            controller.command(problem.start[0], shift_nominal_trajectory=False)
        return controller.U.reshape(1, problem.clips, problem.actions)
    return plan


PLANNERS = {
    "ours": ours,
    "stable-worldmodel CEM": stable_worldmodel,
    "mbrl-lib CEM": mbrl,
    "pytorch-mppi": mppi,
}
