"""How fast is it, against what, and how does it grow?

    pip install --no-deps -r figures/requirements-speed.txt         # what it is compared with
    python figures/speed.py --run runs/quick --precision auto       # all of it: half an hour or so
    python figures/speed.py --run runs/quick --only step plan       # parts of it: minutes
    python figures/speed.py --run runs/quick --only time --epochs 3 5 8 10

Of what is compared, everything is timed inside one run, repetition by repetition in turns, and the
median is given: a slow moment of the machine meets all alike. Packages that are not installed are
skipped and named in "skipped". With --only the parts that are not measured stay in speed.json as
they are; "measured" says of each part what it was measured with, and on what.

time        The run's settings, trained from scratch. After each epoch the clock stops, and n
            validation tasks are tried, replanned every clip: how many seconds (data included) until
            the mean body is within 0.1 in 95 % of them? The learning rate falls to zero at the end,
            so each number of --epochs is also a complete schedule of its own; the largest one is
            tried after every epoch.
step        An optimiser step as shipped, against the same model written plainly: float32, the
            library's attention, an optimiser that is not fused; and each of the three alone. Then
            the share of the step that its matrix products need: all products of a step, forward
            and backward, are noted and run again by themselves, in the same shapes, strides and
            precision. A share of 1 would be a step that does nothing else.
plan        One plan for one task, from the same start: macro jump, short roll-out. Milliseconds,
            calls (plans whose cost is asked for), the share of the time that is not spent in the bare
            predictor calls. On the same cost, bounds, samples and iterations: the cross-entropy
            methods of stable-worldmodel (a tenth are elites, deviation 1 in units of the training
            forces' deviation, as it ships) and of mbrl-lib (the settings of its PETS example), and
            pytorch-mppi (temperature chosen on other validation tasks among "temperatures"; its
            cost also counts the control effort, as published). Cost: of the plan each returns,
            clipped to the bounds. calls_to_match: after how many calls our mean cost is as low
            (null: not after three times as many either). "ours, half the calls" spends half as many
            on fewer samples and more iterations; half_lower_by: what it gains over each. The gain is
            the split's, not the code's: the others were not tried with it.
simulator   Body-frames per second, one core, against pymunk at the same steps per frame, and the
            error of both after a macro-event against an event-driven solution in float64, by the
            number of hits in it: none, one, or one and more.
growth      Time against size. sequences: data generation and a twentieth of an epoch. frames and
            samples: one plan of the short predictor. processes: an epoch under torchrun, a thread
            each. exponent: the slope of log time over log size, by least squares.
"""
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter, namedtuple
from pathlib import Path

import common
import hjepa
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

PARTS = ("time", "step", "plan", "simulator", "growth")
GOAL = 0.95                                     # share of tasks, mean body within 0.1
TEMPERATURES = (1.0, 0.1, 0.01, 0.001)          # of MPPI


def library(package, module=""):
    """The module, or None where its package is not installed.

    Of a package with a module named, only that is loaded: the rest may need much that is not here.
    """
    spec = package in sys.modules or importlib.util.find_spec(package)
    if not spec:
        return None
    if module and package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = list(spec.submodule_search_locations)
    try:
        return importlib.import_module(f"{package}.{module}" if module else package)
    except ImportError as e:
        print(f"{package} cannot be loaded: {e}", file=sys.stderr)
        return None


def seconds(action, device):
    """How long action() takes, to its last operation on the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def race(arms, repeats, device):
    """dict name -> action; each runs `repeats` times, in turns, after one turn that does not count.
    -> dict name -> list of seconds. Every second turn goes backwards: none is always first."""
    times = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name in list(arms)[::1 if turn % 2 else -1]:
            taken = seconds(arms[name], device)
            if turn:
                times[name].append(taken)
    return times


def quartiles(values):
    """-> [first, third]."""
    return np.percentile(values, [25, 75]).tolist()


@contextlib.contextmanager
def threads(n):
    """Until left, n threads compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- time

def validation_success(model, config, tasks, args):
    """-> for each task, whether the mean body comes within 0.1, replanned every clip."""
    errors = hjepa.try_tasks("short replanned", model, hjepa.build_world(config), config, tasks,
                             config.validation_seed, args.device, args.precision)[0]
    return (errors.mean(-1) < 0.1).numpy()


def schedule(config, every, tasks, args):
    """Trains config.epochs from scratch -> rows: epoch, seconds so far, success; `every` epoch or
    only the last one."""
    rows, device, world = [], args.device, hjepa.build_world(config)
    model = hjepa.build(config).to(device)
    optimizer, data = hjepa.make_optimizer(model, config, device), []

    def generate():
        states, forces, _ = hjepa.sequences(world, config, config.sequences, config.seed, "train",
                                            device)
        data.extend((world.observe(states), forces))
    clock = seconds(generate, device)
    for epoch in range(config.epochs):
        clock += seconds(lambda: hjepa.train_epoch(model, optimizer, data, config, epoch, device,
                                                   args.precision), device)
        if every or epoch + 1 == config.epochs:
            reached = validation_success(model, config, tasks, args)
            rows.append({"part": "time", "schedule": config.epochs, "epoch": epoch + 1,
                         "seconds": clock, "success": reached.mean(),
                         "success_ci": common.interval(reached)})
            print("schedule of {schedule} epochs, after {epoch}: {seconds:.0f} s, {success:.1%} of "
                  "validation goals".format(**rows[-1]), flush=True)
    return rows


def measure_time(args, run):
    config = run.config
    tasks = hjepa.make_tasks(hjepa.build_world(config), args.n, config.steps,
                             hjepa.generator(config.validation_seed, "tasks"), config.hold,
                             config.start_speed)
    lengths, rows = sorted(set(args.epochs or [config.epochs])), []
    for epochs in lengths:
        rows += schedule(dataclasses.replace(config, epochs=epochs), epochs == lengths[-1], tasks,
                         args)
    there = [row for row in rows if row["success"] >= GOAL]
    done = [row for row in there if row["epoch"] == row["schedule"]]
    return {"rows": rows, "time": {
        "goal": GOAL, "tasks": args.n,
        "seconds_on_the_way": min((row["seconds"] for row in there), default=None),
        "shortest_schedule": min((row["schedule"] for row in done), default=None),
        "seconds_of_shortest_schedule": min((row["seconds"] for row in done), default=None)}}


# ------------------------------------------------------------------------------------------- step

class LibraryBlock(hjepa.Block):
    """The same block, with the library's attention."""

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def make_step(config, data, device, precision, attention="written out", fused=True):
    """-> a function that takes the next optimiser step of a run of its own."""
    model, number = hjepa.build(config).to(device), iter(range(10**9))
    if attention == "library":
        for module in model.modules():
            if isinstance(module, hjepa.Block):
                module.__class__ = LibraryBlock
    optimizer = hjepa.make_optimizer(model, config, device)
    if not fused:
        groups = [{k: g[k] for k in ("params", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, config.lr, (0.9, config.beta2))

    def step():
        gen = hjepa.generator(config.seed, "batches", next(number))
        pair = next(iter(hjepa.epoch_batches(*data, config.batch, gen, config.symmetries)))
        with hjepa.autocast(device, precision):
            total, _ = hjepa.objective(model, *pair, config.pred_weight, config.std_weight,
                                       config.cov_weight, config.map_weight)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total
    return step


Product = namedtuple("Product", "left right left_stride right_stride dtype")


class Products(TorchDispatchMode):
    """Notes every matrix product that runs under it, backward included: counts[Product]."""

    def __init__(self):
        super().__init__()
        aten, self.counts = torch.ops.aten, Counter()
        self.first = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1,
                      aten.baddbmm.default: 1}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.first:
            a, b = args[self.first[func]:][:2]
            self.counts[Product(tuple(a.shape), tuple(b.shape), a.stride(), b.stride(),
                                a.dtype)] += 1
        return func(*args, **(kwargs or {}))


def operations(product):
    """Multiplications and additions of one product."""
    return 2 * math.prod(product.left) * product.right[-1]


def replay(counts, device):
    """counts of products -> a function that runs them all, on tensors of their own."""
    jobs = []
    for product, count in counts.items():
        pair = []
        for shape, stride in ((product.left, product.left_stride),
                              (product.right, product.right_stride)):
            size = 1 + sum((n - 1) * s for n, s in zip(shape, stride))
            pair.append(torch.ones(size, dtype=product.dtype, device=device).as_strided(shape,
                                                                                        stride))
        jobs.append((torch.mm if len(product.left) == 2 else torch.bmm, *pair, count))

    def run():
        for multiply, a, b, count in jobs:
            for _ in range(count):
                multiply(a, b)
    return run


def measure_step(args, run):
    config, device = run.config, args.device
    world, rows = hjepa.build_world(config), []
    states, forces, _ = hjepa.sequences(world, config, 4 * config.batch, config.seed, "train",
                                        device)
    data = world.observe(states), forces
    shipped = dict(precision=args.precision, attention="written out", fused=True)
    arms = {"shipped": {}, "float32": {"precision": "fp32"},
            "library attention": {"attention": "library"}, "optimiser not fused": {"fused": False},
            "written plainly": dict(precision="fp32", attention="library", fused=False)}
    steps = {name: make_step(config, data, device, **{**shipped, **change})
             for name, change in arms.items()}
    with Products() as noted:
        make_step(config, data, device, **shipped)()
    times = race({**steps, "products": replay(noted.counts, device)}, args.repeats, device)
    work = sum(operations(p) * count for p, count in noted.counts.items())
    for name in arms:
        taken = statistics.median(times[name])
        ratio = np.divide(times[name], times["shipped"])
        rows.append({"part": "step", "arm": name, **shipped, **arms[name], "seconds": taken,
                     "sequences_per_second": config.batch / taken,
                     "times_shipped": np.median(ratio),
                     "times_shipped_quartiles": quartiles(ratio)})
        print("step, {arm}: {seconds:.4f} s, {times_shipped:.2f} of the shipped one's".format(
            **rows[-1]), flush=True)
    share = np.divide(times["products"], times["shipped"])
    products = statistics.median(times["products"])
    print(f"products alone: {np.median(share):.2f} of the step", flush=True)
    return {"rows": rows, "step": {
        "batch": config.batch, "repeats": args.repeats, "operations": work,
        "products": sum(noted.counts.values()), "seconds_of_products": products,
        "operations_per_second": work / products, "share": np.median(share),
        "share_quartiles": quartiles(share)}}


# ------------------------------------------------------------------------------------------- plan

Problem = namedtuple("Problem", "level predict step start aim clips actions limit")
# predict: as in latent_cost; step: (N, D), (N, A) -> (N, D); start, aim (1, D)


def make_problem(level, model, clip, goal, config, limit):
    """One task, observed clips (1, T, F) -> Problem. The macro level has one step of all forces."""
    clips, actions = config.steps, 2 * len(config.masses)
    if level == "macro":
        return Problem(level, model.jump, lambda z, force: model.macro(z, force),
                       model.context(clip)[1], model.target(goal)[1], clips, actions, limit)
    return Problem(level, lambda z, plans: model.rollout(z, plans)[:, -1], model.short,
                   model.context.shallow(clip)[1], model.target.shallow(goal)[1], clips, actions,
                   limit)


def halved(config):
    """Config -> the same with half the calls, spent on a tenth of the samples in five times the
    iterations. With 3 elites and a floor of 0.05: chosen on validation tasks of preset quick, among
    splits of 20, 30 and 60 samples."""
    samples = max(6, config.samples // 10)
    return dataclasses.replace(config, samples=samples, elites=3,
                               iterations=config.samples * config.iterations // (2 * samples))


# A planner: Problem, cost (1, S, K, A) -> (1, S), config, seed -> a function that plans (1, K, A).

def ours(problem, cost, config, seed, floor=0.02, **_):
    mean = problem.start.new_zeros(1, problem.clips, problem.actions)
    std = torch.full_like(mean, config.spread * problem.limit)
    return lambda: hjepa.cem(cost, mean, std, [hjepa.generator(seed, "plan")],
                             samples=config.samples, iterations=config.iterations,
                             elites=config.elites, low=-problem.limit, high=problem.limit,
                             floor=floor)[0]


def half(problem, cost, config, seed, **_):
    return ours(problem, cost, halved(config), seed, floor=0.05)


def stable_worldmodel(problem, cost, config, seed, **_):
    from gymnasium.spaces import Box
    unit, limit = problem.limit / math.sqrt(3), problem.limit             # deviation of the forces
    scaled = types.SimpleNamespace(
        get_cost=lambda info, plans: cost((unit * plans).clamp(-limit, limit)))
    solver = library("stable_worldmodel", "solver.cem").CEMSolver(
        scaled, num_samples=config.samples, n_steps=config.iterations,
        topk=max(2, config.samples // 10), device=problem.start.device, seed=seed)
    solver.configure(action_space=Box(-1, 1, (1, problem.actions)), n_envs=1,
                     config=types.SimpleNamespace(horizon=problem.clips, action_block=1))

    def plan():
        with contextlib.redirect_stdout(io.StringIO()):                   # it prints its time
            return unit * solver.solve({"start": problem.start})["actions"]
    return plan


def mbrl(problem, cost, config, seed, **_):
    start = problem.start.new_zeros(problem.clips, problem.actions)
    bound = torch.full_like(start, problem.limit).tolist()
    optimizer = library("mbrl", "planning.trajectory_opt").CEMOptimizer(
        config.iterations, 0.1, config.samples, [[-x for x in row] for row in bound], bound, 0.1,
        start.device)

    def plan():
        torch.manual_seed(seed)
        return optimizer.optimize(lambda plans: -cost(plans[None])[0], start)[None]
    return plan


def mppi(problem, cost, config, seed, temperature=1.0):
    size, rows = ((problem.clips * problem.actions, 1) if problem.level == "macro" else
                  (problem.actions, problem.clips))
    one = problem.start.new_ones(size)

    def end(states, _):                                                   # (1, S, rows, D)
        return (states[:, :, -1] - problem.aim).square().mean(-1)
    nothing = problem.start.new_zeros(config.samples)
    controller = library("pytorch_mppi").MPPI(
        lambda z, force: problem.step(z, force).float(), lambda z, force: nothing,
        problem.start.shape[1], torch.diag((config.spread * problem.limit * one) ** 2),
        num_samples=config.samples, horizon=rows, device=problem.start.device, lambda_=temperature,
        terminal_state_cost=end, u_min=-problem.limit * one, u_max=problem.limit * one,
        U_init=problem.start.new_zeros(rows, size))

    def plan():
        torch.manual_seed(seed)
        controller.U = torch.zeros_like(controller.U)
        for _ in range(config.iterations):
            controller.command(problem.start[0], shift_nominal_trajectory=False)
        return controller.U.reshape(1, problem.clips, problem.actions)
    return plan


PLANNERS = {"ours": (ours, "torch", ""),
            "ours, half the calls": (half, "torch", ""),
            "stable-worldmodel CEM": (stable_worldmodel, "stable_worldmodel", "solver.cem"),
            "mbrl-lib CEM": (mbrl, "mbrl", "planning.trajectory_opt"),
            "pytorch-mppi": (mppi, "pytorch_mppi", "")}


def problems(level, run, seed, n, args):
    """-> n Problems of a level, embedded in float32."""
    config, world = run.config, hjepa.build_world(run.config)
    tasks = hjepa.make_tasks(world, n, config.steps, hjepa.generator(seed, "tasks"), config.hold,
                             config.start_speed)
    for i in range(n):
        clip, goal = (world.observe(tasks[k][i:i + 1].to(args.device)) for k in ("clip", "goal"))
        with hjepa.autocast(args.device, args.precision):
            problem = make_problem(level, run.model, clip, goal, config, world.force_limit)
        yield problem._replace(start=problem.start.float(), aim=problem.aim.float())


def cost_of(plan, problem, precision):
    """-> the cost of one plan (1, K, A), clipped to the bounds."""
    cost = hjepa.latent_cost(problem.predict, problem.start, problem.aim)
    plan = plan.to(problem.start.device).clamp(-problem.limit, problem.limit)
    with hjepa.autocast(problem.start.device, precision):
        return cost(plan[:, None]).item()


def choose_temperature(level, run, args):
    """-> MPPI's temperature with the lowest mean cost on validation tasks."""
    tried = []
    for temperature in TEMPERATURES:
        costs = []
        for i, problem in enumerate(problems(level, run, run.config.validation_seed,
                                             min(args.n, 32), args)):
            with hjepa.autocast(args.device, args.precision):
                plan = mppi(problem, None, run.config, i, temperature)()
            costs.append(cost_of(plan, problem, args.precision))
        tried.append(np.mean(costs))
    return TEMPERATURES[int(np.argmin(tried))]


def calls_alone(problem, config):
    """-> a function that makes the predictor calls of one plan and nothing else."""
    start = problem.start.expand(config.samples, -1).contiguous()
    plans = problem.start.new_zeros(config.samples, problem.clips, problem.actions)

    def run():
        for _ in range(config.iterations):
            problem.predict(start, plans)
    return run


def measure_level(level, run, planners, args):
    """-> a row per planner."""
    config, device = run.config, args.device
    times = {name: [] for name in [*planners, "calls alone", "half alone"]}
    costs, rows, reached, chosen = {name: [] for name in planners}, [], [], {}
    if "pytorch-mppi" in planners:
        chosen["temperature"] = choose_temperature(level, run, args)
    for i, problem in enumerate(problems(level, run, config.test_seed, args.n, args)):
        cost = hjepa.latent_cost(problem.predict, problem.start, problem.aim)
        best, spent = [], []

        def watched(plans):                                               # a plan that is not timed
            values = cost(plans)
            best.append(min([values.min().item(), *best[-1:]]))
            spent.append(plans.shape[1] + sum(spent[-1:]))
            return values
        with torch.no_grad(), hjepa.autocast(device, args.precision):
            longer = dataclasses.replace(config, iterations=3 * config.iterations)
            ours(problem, watched, longer, i)()
            plans, arms = {}, {}
            for name in planners:
                plan = PLANNERS[name][0](problem, cost, config, i, **chosen)
                arms[name] = lambda name=name, plan=plan: plans.update({name: plan()})
            arms["calls alone"] = calls_alone(problem, config)
            arms["half alone"] = calls_alone(problem, halved(config))
            for name in list(arms)[::1 if i % 2 else -1]:
                times[name].append(seconds(arms[name], device))
        reached.append(best)
        for name, plan in plans.items():
            costs[name].append(cost_of(plan, problem, args.precision))
    progress = np.mean(reached, 0)
    for name in planners:
        own = halved(config) if name == "ours, half the calls" else config
        alone = np.array(times["calls alone" if own is config else "half alone"])
        taken, mean = np.array(times[name]), np.mean(costs[name])
        enough = np.flatnonzero(progress <= mean * (1 + 1e-6))
        difference, with_half = (common.paired_interval(costs[mine], costs[name])
                                 for mine in ("ours", "ours, half the calls"))
        rows.append({"part": "plan", "level": level, "planner": name,
                     # ours evaluates the last mean as well
                     "calls": own.samples * own.iterations + name.startswith("ours"),
                     "seconds": np.median(taken), "cost": mean,
                     "cost_ci": common.interval(costs[name]),
                     "overhead": np.median(1 - alone / taken),
                     "overhead_quartiles": quartiles(1 - alone / taken),
                     "seconds_of_calls": np.median(alone),
                     "ours_lower_by": -difference[0],
                     "ours_lower_by_ci": [-difference[1][1], -difference[1][0]],
                     "half_lower_by": -with_half[0],
                     "half_lower_by_ci": [-with_half[1][1], -with_half[1][0]],
                     "calls_to_match": spent[enough[0]] if len(enough) else None,
                     **(chosen if name == "pytorch-mppi" else {})})
        print("{level}, {planner}: {seconds:.4f} s, {overhead:.0%} of it not in the predictor, "
              "cost {cost:.4f}, ours as low after {calls_to_match} calls".format(**rows[-1]), flush=True)
    rows[0]["cost_after"] = [{"calls": n, "cost": c} for n, c in zip(spent, progress)]
    return rows


def measure_plan(args, run):
    there = {name: library(*where) is not None for name, (_, *where) in PLANNERS.items()}
    planners = [name for name in PLANNERS if there[name]]
    config = run.config                         # the same calls, all in one image of the box: that
    config = dataclasses.replace(config, samples=config.samples * config.views, views=1)
    run = run._replace(config=config)           # is what other planners can be compared on
    rows = [row for level in ("macro", "short")
            for row in measure_level(level, run, planners, args)]
    return {"rows": rows, "temperatures": TEMPERATURES, "goals": args.n,
            "skipped": [name for name in there if not there[name]]}


# ------------------------------------------------------------------------------------- simulator

def first_root(coefficients, closing, horizon):
    """-> the first time in [0, horizon] at which the polynomial (highest power first) is zero and
    closing(t) holds; infinity if there is none. Roots are polished by two Newton steps."""
    slope, found = np.polyder(coefficients), math.inf
    roots = np.roots(coefficients)
    for t in roots.real[np.abs(roots.imag) <= 1e-6 * (1 + np.abs(roots.real))]:
        for _ in range(2):
            down = np.polyval(slope, t)
            t = t - np.polyval(coefficients, t) / down if down else t
        if -1e-12 <= t < min(found, horizon) and closing(t):
            found = max(t, 0.0)
    return found


def next_event(x, v, a, radii, horizon):
    """Places, velocities, accelerations (bodies, 2) -> time of the next contact, and who: a pair
    (i, j), or a body and an axis as (i, None, axis). (horizon, None) if nothing happens."""
    when, who = horizon, None
    for i in range(len(x)):
        for axis in range(2):
            for side in (-1, 1):
                p, q, r = x[i, axis], v[i, axis], a[i, axis]
                t = first_root([r / 2, q, p - side * (1 - radii[i])],
                               lambda t: side * (q + r * t) > 0, when)
                when, who = (t, (i, None, axis)) if t < when else (when, who)
        for j in range(i):
            d, w, b = x[i] - x[j], v[i] - v[j], a[i] - a[j]
            t = first_root([b @ b / 4, w @ b, w @ w + d @ b, 2 * d @ w,
                            d @ d - (radii[i] + radii[j]) ** 2],
                           lambda t: (d + w * t + b * t * t / 2) @ (w + b * t) < 0, when)
            when, who = (t, (i, j)) if t < when else (when, who)
    return when, who


def exact(state, forces, masses, radii, hold_seconds, most=10_000):
    """state (bodies, 4), forces (K, bodies, 2), each held for hold_seconds -> final state, number
    of hits between bodies. Between events flight is a parabola; at an event velocities change by
    the laws of elastic impact. float64. RuntimeError after `most` events."""
    x, v = np.array(state[:, :2], dtype=float), np.array(state[:, 2:], dtype=float)
    masses, hits, events = np.asarray(masses, dtype=float), 0, 0
    for force in np.asarray(forces, dtype=float):
        a, left = force / masses[:, None], hold_seconds
        while left > 0:
            t, who = next_event(x, v, a, radii, left)
            x, v, left = x + v * t + a * t * t / 2, v + a * t, left - t
            if who is None:
                break
            events += 1
            if events > most:
                raise RuntimeError(f"more than {most} events in one world")
            i, j, *axis = who
            if j is None:
                v[i, axis[0]] *= -1
            else:
                hits += 1
                n = (x[i] - x[j]) / np.linalg.norm(x[i] - x[j])
                push = -2 * (v[i] - v[j]) @ n / (1 / masses[i] + 1 / masses[j])
                v[i] += push / masses[i] * n
                v[j] -= push / masses[j] * n
    return np.concatenate([x, v], 1), hits


def pymunk_film(world, start, forces, hold):
    """One world: start (bodies, 4), forces (K, bodies, 2) -> a function that runs it and returns
    the final places (bodies, 2). The world's frame and substeps; slop and bias fit a box of 2."""
    pymunk = library("pymunk")
    space, bodies = pymunk.Space(), []
    space.collision_slop, space.collision_bias = 1e-4, 0.0
    for a, b in (((-2, -1.5), (2, -1.5)), ((-2, 1.5), (2, 1.5)), ((-1.5, -2), (-1.5, 2)),
                 ((1.5, -2), (1.5, 2))):
        wall = pymunk.Segment(space.static_body, a, b, 0.5)               # thick: none gets through
        wall.elasticity, wall.friction = 1.0, 0.0
        space.add(wall)
    for mass, radius, row in zip(world.masses, world.radii, start.tolist()):
        body = pymunk.Body(mass, math.inf)                                # discs do not turn
        disc = pymunk.Circle(body, radius)
        body.position, body.velocity, disc.elasticity, disc.friction = row[:2], row[2:], 1.0, 0.0
        space.add(body, disc)
        bodies.append(body)
    forces, dt = forces.tolist(), world.frame / world.substeps

    def run():
        for force in forces:
            for _ in range(hold * world.substeps):
                for body, push in zip(bodies, force):                     # a step forgets forces
                    body.force = tuple(push)
                space.step(dt)
        return [tuple(body.position) for body in bodies]
    return run


def measure_simulator(args, run):
    config, world = run.config, hjepa.build_world(run.config)
    gen, n = hjepa.generator(config.test_seed, "simulator"), args.worlds
    start = world.reset(n, gen, config.start_speed)
    forces = world.random_forces(n, config.steps, gen)
    frames, bodies, ends = config.steps * config.hold, len(config.masses), {}
    there = library("pymunk") is not None

    def together():
        ends["World, all together"] = world.rollout(start, forces, config.hold)[0][:, -1, :, :2]

    def apart(m):
        for i in range(m):
            world.rollout(start[i:i + 1], forces[i:i + 1], config.hold)
    few = max(1, n // 20)
    speed = {"World, all together": [], "World, one by one": [], "pymunk, one by one": []}
    with threads(1):
        for turn in range(args.repeats + 1):
            taken = {"World, all together": (seconds(together, torch.device("cpu")), n),
                     "World, one by one": (seconds(lambda: apart(few), torch.device("cpu")), few)}
            if there:
                films = [pymunk_film(world, start[i], forces[i], config.hold) for i in range(n)]
                places = []
                taken["pymunk, one by one"] = seconds(
                    lambda: places.extend(film() for film in films), torch.device("cpu")), n
                ends["pymunk, one by one"] = torch.tensor(places)
            for name, (second, worlds) in taken.items():
                if turn:
                    speed[name].append(worlds * bodies * frames / second)
    truth, hits = zip(*(exact(s, f, world.masses, world.radii, config.hold * config.frame)
                        for s, f in zip(start.double().numpy(), forces.double().numpy())))
    truth, hits, rows = torch.tensor(np.stack(truth))[..., :2], np.array(hits), []
    strata = {"none": hits == 0, "one": hits == 1, "one or more": hits > 0}
    for name in (name for name, values in speed.items() if values):
        row = {"part": "simulator", "simulator": name, "body_frames_per_second":
               statistics.median(speed[name]), "quartiles": quartiles(speed[name]), "error": []}
        if name in ends:
            gap = (ends[name].double() - truth).norm(dim=-1).mean(-1).numpy()
            row["error"] = [{"hits": k, "n": int(s.sum()), "mean": gap[s].mean(),
                             "median": np.median(gap[s]), "ci": common.interval(gap[s])}
                            for k, s in strata.items() if s.any()]
        rows.append(row)
        print(f"{name}: {row['body_frames_per_second']:,.0f} body-frames per second" + "".join(
            f", error {e['mean']:.5f} with hits: {e['hits']}" for e in row["error"]),
              flush=True)
    return {"rows": rows, "worlds": n, "frames": frames, "steps_per_frame": config.substeps,
            "skipped": [] if there else ["pymunk"]}


# ---------------------------------------------------------------------------------------- growth

def exponent(sizes, times):
    """-> slope of log time over log size, by least squares; None for fewer than two sizes."""
    return np.polyfit(np.log(sizes), np.log(times), 1)[0] if len(set(sizes)) > 1 else None


def time_sequences(config, n, args):
    """-> seconds to generate n sequences and to train on a twentieth of them."""
    device, world, data = args.device, hjepa.build_world(config), []

    def generate():
        states, forces, _ = hjepa.sequences(world, config, n, config.seed, "train", device)
        data.extend((world.observe(states), forces))
    first = seconds(generate, device)
    part = dataclasses.replace(config, sequences=max(config.batch, n // 20), epochs=1)
    model = hjepa.build(part).to(device)
    optimizer = hjepa.make_optimizer(model, part, device)
    some = [x[:part.sequences] for x in data]
    return first + seconds(lambda: hjepa.train_epoch(model, optimizer, some, part, 0, device,
                                                     args.precision), device)


def plan_action(run, steps, samples, args):
    """-> a function that makes one plan of `steps` clips for one task with the short predictor."""
    config = dataclasses.replace(run.config, steps=steps, samples=samples,
                                 elites=min(run.config.elites, samples))
    problem = next(problems("short", run, config.validation_seed, 1, args))._replace(clips=steps)
    cost = hjepa.latent_cost(problem.predict, problem.start, problem.aim)
    plan = ours(problem, cost, config, 0)

    def action():
        with torch.no_grad(), hjepa.autocast(args.device, args.precision):
            plan()
    return action


def time_processes(config, processes, args):
    """-> seconds of the second of two epochs, as `hjepa.py train` reports them."""
    config = dataclasses.replace(config, sequences=args.shared, epochs=2, measure_every=0,
                                 device=args.device.type, precision=args.precision)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--run", folder]
        for f in dataclasses.fields(config):
            value = getattr(config, f.name)
            if value == f.default:
                continue
            name = f.name.replace("_", "-")
            flags += ([f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else
                      ["--" + name, *map(str, value if isinstance(value, tuple) else [value])])
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc_per_node={processes}", "--", str(common.HERE.parent / "hjepa.py"), "train",
             *flags], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise hjepa.Refusal(f"torchrun with {processes} processes failed: "
                                + (done.stderr.strip().splitlines() or [""])[-1])
        return json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])["seconds"]


def measure_growth(args, run):
    config, rows, repeats = run.config, [], min(args.repeats, 3)
    hold = config.hold
    seats = torch.cuda.device_count() if args.device.type == "cuda" else os.cpu_count()
    processes = [p for p in args.processes if p <= seats and config.batch % p == 0
                 and args.device.type != "mps"]

    def collect(what, sizes, timed):
        rows.extend({"part": "growth", "what": what, "size": size,
                     "seconds": statistics.median(timed[size]), "runs": timed[size]}
                    for size in sizes)
        last = {row["size"]: row["seconds"] for row in rows if row["what"] == what}
        print(f"{what}: " + ", ".join(f"{k:,}: {v:.3f} s" for k, v in last.items()), flush=True)
    timed = {}
    for _ in range(repeats):
        for n in args.sequences:
            timed.setdefault(n, []).append(time_sequences(config, n, args))
    collect("sequences", args.sequences, timed)
    for what, sizes, shape in (
            ("frames", args.frames, lambda size: (max(1, size // hold), config.samples)),
            ("samples", args.samples, lambda size: (config.steps, size))):
        arms = {size: plan_action(run, *shape(size), args) for size in sizes}
        collect(what, sizes, race(arms, args.repeats, args.device))
    timed = {}
    for _ in range(repeats):
        for p in processes:
            timed.setdefault(p, []).append(time_processes(config, p, args))
    collect("processes", processes, timed)
    slopes = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        points = [(row["size"], row["seconds"]) for row in rows if row["what"] == what]
        slopes[what] = exponent(*zip(*points))
    return {"rows": rows, "exponents": slopes, "share_of_an_epoch": 1 / 20,
            "sequences_of_processes": args.shared,
            "skipped": [f"{p} processes" for p in args.processes if p not in processes]}


# ------------------------------------------------------------------------------------------ page

def draw(content):
    """-> figure: a panel per question; the place of what was not measured stays white."""
    figure, axes = hjepa.canvas(2, 4, 20, 8)
    colours = hjepa.COLOURS

    def rows(part, **chosen):
        return [r for r in content["rows"] if r["part"] == part
                and all(r[k] == v for k, v in chosen.items())]
    ax = axes[0, 0]
    for i, length in enumerate(dict.fromkeys(r["schedule"] for r in rows("time"))):
        points = [(r["seconds"], r["success"]) for r in rows("time", schedule=length)]
        ax.plot(*zip(*points), "o-", color=colours[i % 6], label=f"{length} epochs")
    ax.axhline(GOAL, color="0.5", lw=0.8, ls=":")
    ax.set(title="validation goals reached", xlabel="seconds of training", ylim=(0, 1.02))
    ax = axes[0, 1]
    bars = [(r["arm"], r["times_shipped"]) for r in rows("step")]
    if bars:
        bars.append(("its products alone", content["step"]["share"]))
    for i, (name, value) in enumerate(bars):
        ax.barh(i, value, color=colours[i % 6])
    ax.set_yticks(range(len(bars)), [name for name, _ in bars])
    ax.invert_yaxis()
    ax.set(title="time of a training step (shipped: 1)")
    for ax, level in zip(axes[0, 2:], ("macro", "short")):
        for i, r in enumerate(rows("plan", level=level)):
            if "cost_after" in r:
                ax.plot([p["calls"] for p in r["cost_after"]], [p["cost"] for p in r["cost_after"]],
                        ".-", color=colours[0])
            ax.plot(r["calls"], r["cost"], "o", color=colours[i % 6],
                    label=f"{r['planner']}, {1000 * r['seconds']:.0f} ms")
        ax.set(title=f"{level} plan", xlabel="plans tried", ylabel="cost", yscale="log")
    ax = axes[1, 0]
    for i, r in enumerate(rows("simulator")):
        ax.barh(i, r["body_frames_per_second"], color=colours[i % 6])
    ax.set_yticks(range(len(rows("simulator"))), [r["simulator"] for r in rows("simulator")])
    ax.set(title="simulated body-frames per second, one core")
    ax.set_xscale("log")
    ax = axes[1, 1]
    for i, r in enumerate(r for r in rows("simulator") if r["error"]):
        points = [(e["hits"], e["mean"]) for e in r["error"]]
        ax.plot(*zip(*points), "o", color=colours[i], label=r["simulator"])
    ax.set(title="error of the simulator, by hits", ylabel="half boxes", yscale="log")
    for i, what in enumerate(dict.fromkeys(r["what"] for r in rows("growth"))):
        ax = axes[1, 2 + (what in ("frames", "samples"))]
        found = rows("growth", what=what)
        slope = content["exponents"][what]
        ax.loglog([r["size"] / found[0]["size"] for r in found],
                  [r["seconds"] / found[0]["seconds"] for r in found], "o-", color=colours[i],
                  label=f"{what}, {found[0]['size']:,} to {found[-1]['size']:,}"
                        + ("" if slope is None else f": exponent {slope:.2f}"))
    for ax, title in zip(axes[1, 2:], ("training", "planning")):
        ax.set(title=f"{title}: time against size", xlabel="times the smallest")
    for ax, part in zip(axes.flat, ("time", "step", "plan", "plan", "simulator", "simulator",
                                    "growth", "growth")):
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7)
        if not rows(part):
            ax.clear()
            ax.set_axis_off()
    return figure


def processor():
    """The CPU's name where the system tells it (Linux), else its architecture."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else os.uname().machine


def kept_parts(path, again):
    """What the file of an earlier call says of parts that are not measured `again`: dict part ->
    (how it was measured, its rows, its entries). Refusal if unreadable: it would be lost."""
    if not path.exists():
        return {}
    try:
        old = json.loads(path.read_text())
        return {part: (how, [row for row in old["rows"] if row["part"] == part],
                       {key: old[key] for key in how["entries"]})
                for part, how in old["measured"].items() if part not in again}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise hjepa.Refusal(f"{path} is damaged or of an older version: move it away, or give "
                            "another --out") from None


def measure(args, runs):
    run, names = runs[0], args.only or PARTS
    found = kept_parts(args.out / f"{args.name}.json", names) if args.only else {}
    for part in (p for p in PARTS if p in names):
        entries = globals()[f"measure_{part}"](args, run)
        rows, skipped = entries.pop("rows"), entries.pop("skipped", [])
        told = common.head(args, runs, args.n)
        how = {key: told[key] for key in ("command", "device", "precision", "torch", "epochs",
                                          "sequences")}
        found[part] = {**how, "processor": processor(), "skipped": skipped,
                       "entries": sorted(entries)}, rows, entries
    content = {"measured": {}, "rows": [], "skipped": []}
    for part in (p for p in PARTS if p in found):
        content["measured"][part], rows, entries = found[part]
        content["rows"] += rows
        content["skipped"] += found[part][0]["skipped"]
        content.update(entries)
    if content["skipped"]:
        print("skipped: " + ", ".join(content["skipped"]))
    return draw(content), args.n, plain(content)


def plain(x):
    """Numbers of numpy as Python's own, for JSON; None for what is not a finite number."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    x = x.item() if isinstance(x, np.generic) else x
    return None if isinstance(x, float) and not math.isfinite(x) else x


def make_parser():
    parser = common.make_parser(
        "speed", __doc__, n=(200, "tasks of `time` and `plan`"), repeats=(15, "repetitions"),
        worlds=(4000, "worlds of `simulator`"),
        shared=(12_288, "sequences per epoch of `processes`"))
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to measure (default: all)")
    for flag, default, meaning in (
            ("epochs", None, "schedules to train (default: the run's)"),
            ("sequences", [12_250, 24_500, 49_000, 98_000, 196_000], "sizes of the training set"),
            ("frames", [25, 50, 75, 100], "horizons"), ("samples", [50, 200, 800, 3200], "of CEM"),
            ("processes", [1, 2], "under torchrun")):
        parser.add_argument("--" + flag, type=int, nargs="+", default=default, metavar="N",
                            help=f"{meaning}" + (f" ({default})" if default else ""))
    return parser


if __name__ == "__main__":
    sys.exit(common.main(make_parser(), measure))
