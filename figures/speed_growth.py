"""How does the cost grow with the size of the problem?

    python figures/speed_growth.py --run runs/quick --precision auto

sequences   seconds to make the training data and to train on a twentieth of an epoch
frames      seconds of one plan of the short predictor, by its horizon
samples     seconds of the same plan, by the samples of CEM

The exponent is the slope of log seconds over log size, by least squares: 1 is linear, less means
that a part of the cost is fixed.

Several processes are not measured here. Two processes on the two cores of one machine trained no
faster than one, beyond the spread of the repetitions (an earlier version, 25 s against 27 s).
"""
import dataclasses
import statistics
import sys

from lib import cli, timing
from lib.goals import goals_of
import hjepa
import numpy as np
import torch

PARTS = 20                                      # of an epoch, of which one is trained


def exponent(sizes, seconds):
    """-> slope of log seconds over log size, by least squares; None for fewer than two sizes."""
    if len(set(sizes)) < 2:
        return None
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return slope.item()


def training(config, n, device, precision):
    """-> a function that makes n sequences and trains a fresh model on a part of them."""
    part = dataclasses.replace(config, sequences=max(config.batch, n // PARTS), epochs=1)
    world = hjepa.build_world(config)

    def run():
        states, forces, _ = hjepa.draw_sequences(world, config, n, config.seed, "train", device)
        shares = torch.ones(n, device=device)
        data = [x[:part.sequences] for x in (world.observe(states), forces, shares)]
        model = hjepa.build_model(part).to(device)
        optimizer = hjepa.make_optimizer(model, part, device)

        def loss(obs, forces, shares):
            return hjepa.objective(model, obs, forces, part.loss_weights, shares)

        hjepa.train_epoch(loss, model, optimizer, data, part, 0, device, precision)
    return run


def planning(run, clips, samples, device):
    """-> a function that makes one plan of `clips` clips for one goal with the short predictor."""
    config = run.config
    world = hjepa.build_world(config)
    goals = goals_of(config, 1, "validation")
    clip, goal = (world.observe(goals[name].to(device)) for name in ("clip", "goal"))
    with torch.no_grad():
        cost = hjepa.short_cost(run.model, clip, goal)
    limit = config.force_limit
    mean = clip.new_zeros(1, clips, 2 * len(config.masses))
    std = torch.full_like(mean, config.init_std * limit)
    elites = min(config.elites, samples)

    def plan():
        gens = [hjepa.generator(0, "plan")]
        hjepa.cem(cost, mean, std, gens, samples=samples, iterations=config.iterations,
                  elites=elites, low=-limit, high=limit)
    return plan


def draw(summary):
    """-> figure: seconds over size, both as multiples of the smallest."""
    figure, axes = hjepa.new_figure(1, 1, 6, 4)
    ax = axes[0, 0]
    for i, (what, slope) in enumerate(summary["exponents"].items()):
        chosen = [row for row in summary["rows"] if row["what"] == what]
        sizes = np.array([row["size"] for row in chosen])
        seconds = np.array([row["seconds"] for row in chosen])
        label = f"{what}, {sizes[0]:,} to {sizes[-1]:,}"
        if slope is not None:
            label += f": exponent {slope:.2f}"
        style = dict(color=hjepa.COLOURS[i], label=label)
        ax.loglog(sizes / sizes[0], seconds / seconds[0], "o-", **style)
    ax.set(title="seconds against size, smallest: 1", xlabel="times the smallest size")
    ax.legend(fontsize=7)
    return figure


def measure(args, runs):
    run = cli.one_run(runs)
    config = run.config
    device = args.device
    races = {
        "sequences": {n: training(config, n, device, args.precision) for n in args.sequences},
        "frames": {}, "samples": {},
    }
    for frames in args.frames:
        clips = max(1, frames // config.clip_frames)
        races["frames"][frames] = planning(run, clips, config.samples, device)
    for samples in args.samples:
        races["samples"][samples] = planning(run, config.event_clips, samples, device)
    rows = []
    exponents = {}
    for what, actions in races.items():
        repeats = min(args.repeats, 3) if what == "sequences" else args.repeats
        seconds = timing.race(actions, repeats, device)
        medians = [statistics.median(seconds[size]) for size in actions]
        exponents[what] = exponent(list(actions), medians)
        for size, median in zip(actions, medians):
            rows.append({"what": what, "size": size, "seconds": median,
                         "quartiles": timing.quartiles(seconds[size])})
            print(f"{what} {size:,}: {median:.3f} s", flush=True)
    summary = {
        "processor": timing.processor(),
        "share_of_an_epoch": 1 / PARTS,
        "exponents": exponents,
        "rows": rows,
    }
    return cli.Results(args.repeats, summary, figure=lambda: draw(summary))


if __name__ == "__main__":
    parser = cli.make_parser("speed_growth", __doc__, trains=True, repeats=(15, "repetitions"))
    for flag, default, meaning in (
            ("sequences", [12_250, 24_500, 49_000, 98_000, 196_000], "sizes of the training set"),
            ("frames", [25, 50, 75, 100], "horizons"),
            ("samples", [50, 200, 800, 3200], "samples of CEM")):
        parser.add_argument("--" + flag, type=int, nargs="+", default=default, metavar="N",
                            help=f"{meaning} ({default})")
    sys.exit(cli.main(parser, measure))
