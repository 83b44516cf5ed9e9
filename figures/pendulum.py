"""Sequences of your own, worked out: gymnasium's Pendulum, swung up by a JEPA of it.

    pip install --no-deps -r figures/requirements-gym.txt
    python figures/pendulum.py                     # records, trains and plans: minutes on a core
    python figures/pendulum.py --episodes 40 --epochs 1 --tries 4 --run runs/try

Three steps, which are those of any world of one's own:

1. Record. Random torques, each held for a clip of FRAMES steps, from random states. They go to
   RUN/data.npz as `observations` (N, clips, frames, F = 3: cos, sin, speed) and `actions`
   (N, clips - 1, A = 1). `python hjepa.py train --data RUN/data.npz` would train on them.
2. Train: hjepa.train with these data. Nothing in it knows what a pendulum is.
3. Plan. The goal is a clip that stands upright. In each clip, hjepa.cem looks for the torques of the
   next HORIZON clips whose predicted embeddings are near the goal's, summed; the first one acts.

rows, on starts that gymnasium draws, hanging ones included: upright, the share of episodes in which
the pole is within UPRIGHT of vertical through the whole last second; reward, gymnasium's own, summed
over the 200 steps of an episode.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

import gymnasium
from lib import cli, drawing, stats
import hjepa
import numpy as np
import torch

ID = "Pendulum-v1"
STEPS = 200                                     # of an episode, as gymnasium has it
FRAMES = 4                                      # steps in a clip: 0.2 s
CLIPS = 10                                      # in a training sequence
HORIZON = 12                                    # clips that a plan looks ahead
LIMIT = 2.0                                     # torque
UPRIGHT = 0.2                                   # radians
LAST = 20                                       # steps: the last second
FASTEST = 8.0                                   # gymnasium cuts the speed there
BUDGET = dict(samples=64, iterations=3, elites=8)
MODEL = dict(latent=64, width=64, depth=2, short_width=192, macro_width=128, predictor_blocks=2,
             macro_blocks=CLIPS - 1, guess_width=0, guess_weight=0.0,
             batch=128, precision="fp32", device="cpu")
PLANNERS = ("no torque", "random torque", "untrained", "model")
TEST_SEED = 2_000_000


# ---- 1. record

def put(env, angle, speed):
    """Set the state of gymnasium's pendulum. Angle 0 is upright."""
    env.reset(seed=0)
    env.unwrapped.state = np.array([angle, speed])


def film(env, torque):
    """One clip under a torque -> observations (FRAMES, 3), sum of rewards."""
    seen, total = [], 0.0
    for _ in range(FRAMES):
        observation, reward, *_ = env.step(np.array([torque], dtype=np.float32))
        seen.append(observation)
        total += float(reward)
    return np.stack(seen), total


def record(episodes, seed):
    """-> observations (N, CLIPS, FRAMES, 3), actions (N, CLIPS - 1, 1): each episode of STEPS steps
    is cut into sequences of CLIPS clips."""
    env = gymnasium.make(ID).unwrapped
    draw = np.random.default_rng(hjepa.generator(seed, "pendulum data").initial_seed())
    clips_of_episode = STEPS // FRAMES
    observations, actions = [], []
    for _ in range(episodes):
        put(env, draw.uniform(-np.pi, np.pi), draw.uniform(-FASTEST, FASTEST))
        torques = draw.uniform(-LIMIT, LIMIT, clips_of_episode)
        clips = np.stack([film(env, torque)[0] for torque in torques])
        for first in range(0, clips_of_episode - CLIPS + 1, CLIPS):
            observations.append(clips[first:first + CLIPS])
            actions.append(torques[first + 1:first + CLIPS, None])        # acts while k + 1 is filmed
    return np.stack(observations).astype(np.float32), np.stack(actions).astype(np.float32)


def data_of(args):
    """-> what hjepa.read_data says of RUN/data.npz, which is recorded if it is not there."""
    path = args.run / "data.npz"
    if not path.exists():
        observations, actions = record(args.episodes, args.seed)
        with hjepa.whole_file(path) as part, open(part, "wb") as file:
            np.savez(file, observations=observations, actions=actions)
    return hjepa.read_data(path)


# ---- 2. train

def model_of(args, data):
    """-> the trained model, its Config."""
    given = {**MODEL, "epochs": args.epochs, "seed": args.seed}
    given["batch"] = min(MODEL["batch"], len(data["actions"]) // 2)
    config = hjepa.Config(**hjepa.own_settings(data, given))
    hjepa.train(config, args.run, data=data)
    return hjepa.load(args.run)


# ---- 3. plan

def cost_to_go(model, clips, goal):
    """clips, goal (B, FRAMES, 3) -> a cost for hjepa.cem, torques (B, S, HORIZON, 1) -> (B, S): the
    distance of P1's predictions from the goal, summed over clips (EB-JEPA equation 14)."""
    z1, _ = model.context(model.scale.observe(clips))
    t1, _ = model.target(model.scale.observe(goal))

    def cost(plans):
        batch, samples = plans.shape[:2]
        start = z1.repeat_interleave(samples, 0)
        path = model.rollout(start, model.scale.forces(plans.flatten(0, 1)))
        path = path.unflatten(0, (batch, samples))                        # (B, S, HORIZON, D)
        return (path - t1[:, None, None]).norm(dim=-1).sum(-1)
    return cost


def chooser(name, model, tries):
    """-> choose(clips (tries, FRAMES, 3)), the torques of the next clip (tries,)."""
    gens = [hjepa.generator(TEST_SEED, f"pendulum, {name}", i) for i in range(tries)]
    goal = torch.tensor([1.0, 0.0, 0.0]).expand(tries, FRAMES, 3)
    plan = torch.zeros(tries, HORIZON, 1)

    @torch.no_grad()
    def choose(clips):
        nonlocal plan
        if name == "no torque":
            return torch.zeros(tries)
        if name == "random torque":
            return torch.cat([LIMIT * (2 * torch.rand(1, generator=gen) - 1) for gen in gens])
        rest = torch.cat([plan[:, 1:], torch.zeros(tries, 1, 1)], 1)
        plan, _ = hjepa.cem(cost_to_go(model, clips, goal), rest, torch.ones_like(rest), gens,
                            low=-LIMIT, high=LIMIT, **BUDGET)
        return plan[:, 0, 0]
    return choose


def fly(name, model, tries):
    """-> angles (tries, steps) in radians, 0 upright; rewards (tries,) of whole episodes."""
    envs = [gymnasium.make(ID).unwrapped for _ in range(tries)]
    first = [env.reset(seed=TEST_SEED + i)[0] for i, env in enumerate(envs)]
    clips = torch.from_numpy(np.stack(first))[:, None].repeat(1, FRAMES, 1)
    choose = chooser(name, model, tries)
    angles, rewards = [], np.zeros(tries)
    for _ in range(STEPS // FRAMES):
        torques = choose(clips)
        filmed = [film(env, float(torque)) for env, torque in zip(envs, torques)]
        clips = torch.from_numpy(np.stack([seen for seen, _ in filmed]))
        rewards += [reward for _, reward in filmed]
        angles.append(torch.atan2(clips[..., 1], clips[..., 0]))
    return torch.cat(angles, 1).numpy(), rewards


def row_of(name, angles, rewards):
    """-> a row of the JSON."""
    upright = (np.abs(angles[:, -LAST:]) < UPRIGHT).all(1)
    return {"planner": name, "upright": float(upright.mean()),
            "upright_ci": stats.interval(upright), "reward": float(rewards.mean()),
            "reward_ci": stats.interval(rewards)}


def draw(rows, angles):
    """-> figure: who stands upright; the angles of the first episodes."""
    figure, axes = hjepa.new_figure(1, 2, 12, 4)
    bars, ways = axes[0]
    drawing.bars(bars, {"": rows}, [row["planner"] for row in rows], "upright")
    bars.set(ylim=(0, 1.02), ylabel="upright through the last second")
    seconds = 0.05 * np.arange(1, STEPS + 1)
    for way in angles[:10]:
        ways.plot(seconds, np.degrees(np.abs(way)), lw=0.8)
    ways.set(xlabel="seconds", ylabel="degrees from upright", title="model, the first episodes",
             ylim=(0, 180))
    return figure


# ---- all of it

def measure(args):
    """-> [cli.Run], Results."""
    data = data_of(args)
    model, config = model_of(args, data)
    untrained = hjepa.build_model(config).eval()
    untrained.scale.load_state_dict(model.scale.state_dict())
    models = {"untrained": untrained, "model": model}
    rows, arrays = [], {}
    for name in PLANNERS:
        angles, rewards = fly(name, models.get(name), args.tries)
        rows.append(row_of(name, angles, rewards))
        arrays[f"angles/{name}"] = angles.astype(np.float32)
        print("{planner:>14}: upright {upright:6.1%}, reward {reward:7.1f}".format(**rows[-1]),
              flush=True)
    summary = {"config": {key: value for key, value in dataclasses.asdict(config).items()
                          if key not in hjepa.OF_A_WORLD},
               "parameters": sum(p.numel() for p in model.parameters()), "budget": BUDGET,
               "horizon": HORIZON, "rows": rows}
    return ([cli.Run(model, config, config.epochs)],
            cli.Results(args.tries, summary, arrays, lambda: draw(rows, arrays["angles/model"])))


def parse(argv=None):
    """-> args, checked and filled in."""
    parser = hjepa.Parser(prog="figures/pendulum.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/pendulum"),
                        help="where data and model are kept (runs/pendulum)")
    parser.add_argument("--out", type=Path, help="where pendulum.json, .npz and .png go (default: "
                        "the figures folder of --run)")
    numbers = {"episodes": (1200, "that are recorded"), "epochs": (20, "of training"),
               "tries": (50, "test episodes")}
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (0)")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    for name in numbers:
        cli.check_number(name, getattr(args, name))
    args.name, args.argv, args.precision = "pendulum", argv, "fp32"
    args.device = torch.device("cpu")
    args.out = args.out or args.run / "figures"
    hjepa.try_out(args.out)
    return args


def main(argv=None):
    """-> exit code: 0 done, 2 a mistake that one line describes, 130 interrupted."""
    def work():
        args = parse(argv)
        runs, results = measure(args)
        cli.publish(args, runs, results)
    return cli.exit_code("figures/pendulum.py", work)


if __name__ == "__main__":
    sys.exit(main())
