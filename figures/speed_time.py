"""How long does it take to train a planner that works?

    python figures/speed_time.py --run runs/quick --precision auto --epochs 3 4 5 6

The run's settings are trained from scratch. After an epoch the clock stops and validation goals are
tried, replanned every clip. Wanted: the mean body within 0.1 in 95 % of them. The clock counts the
making of the data and the training; it does not count the trying of goals and the start of Python.

The learning rate falls to zero at the end, so an epoch in the middle of a long schedule is no
substitute for a short one: each number of --epochs is trained as a schedule of its own. The longest
is tried after every epoch, the others at their end.
"""
import dataclasses
import sys

from lib import cli, stats, timing
from lib.goals import goals_of
import hjepa

WANTED = 0.95                                   # share of goals


def is_reached(model, config, goals, device):
    """-> for each goal, whether the mean body comes near enough (n,), bool."""
    world = hjepa.build_world(config)
    errors, *_ = hjepa.try_goals("short replanned", model, world, config, goals,
                                 config.validation_seed, device)
    return (errors.mean(-1) < hjepa.REACHED).numpy()


def make_data(config, device):
    """-> obs, forces, shares of the training sequences."""
    world = hjepa.build_world(config)
    states, forces, shares = hjepa.draw_training(world, config, device)
    return world.observe(states), forces, shares


def train_schedule(config, every_epoch, goals, device, precision):
    """Train config.epochs from scratch -> rows, one per epoch or only one for the last."""
    model = hjepa.build_model(config).to(device)
    optimizer = hjepa.make_optimizer(model, config, device)

    def loss(obs, forces, shares):
        return hjepa.objective(model, obs, forces, config.loss_weights, shares)

    clock, data = timing.timed(lambda: make_data(config, device), device)
    rows = []
    for epoch in range(config.epochs):
        def train():
            hjepa.train_epoch(loss, model, optimizer, data, config, epoch, device, precision)
        seconds, _ = timing.timed(train, device)
        clock += seconds
        if every_epoch or epoch + 1 == config.epochs:
            reached = is_reached(model, config, goals, device)
            row = {"schedule": config.epochs, "epoch": epoch + 1, "seconds": clock,
                   "mean_body": reached.mean().item(), "mean_body_ci": stats.interval(reached)}
            rows.append(row)
            print("schedule of {schedule} epochs, after {epoch}: {seconds:.0f} s, {mean_body:.1%} "
                  "of the goals".format(**row), flush=True)
    return rows


def draw(rows):
    """-> figure: share of goals over seconds, a line per schedule."""
    figure, axes = hjepa.new_figure(1, 1, 6, 4)
    ax = axes[0, 0]
    for i, schedule in enumerate(sorted({row["schedule"] for row in rows})):
        chosen = [row for row in rows if row["schedule"] == schedule]
        seconds = [row["seconds"] for row in chosen]
        shares = [row["mean_body"] for row in chosen]
        colour = hjepa.COLOURS[i % len(hjepa.COLOURS)]
        ax.plot(seconds, shares, "o-", color=colour, label=f"{schedule} epochs")
    ax.axhline(WANTED, color="0.5", lw=0.8, ls=":")
    ax.set(title="validation goals reached", xlabel="seconds of training", ylim=(0, 1.02))
    ax.legend(fontsize=7)
    return figure


def measure(args, runs):
    config = cli.one_run(runs).config
    schedules = sorted(set(args.epochs or [config.epochs]))
    goals = goals_of(config, args.n, "validation")
    rows = []
    for epochs in schedules:
        shorter = dataclasses.replace(config, epochs=epochs)
        every_epoch = epochs == schedules[-1]
        rows += train_schedule(shorter, every_epoch, goals, args.device, args.precision)
    enough = [row for row in rows if row["mean_body"] >= WANTED]
    complete = [row for row in enough if row["epoch"] == row["schedule"]]
    summary = {
        "processor": timing.processor(),
        "share_wanted": WANTED,
        "seconds_on_the_way": min((row["seconds"] for row in enough), default=None),
        "shortest_schedule": min((row["schedule"] for row in complete), default=None),
        "seconds_of_shortest_schedule": min((row["seconds"] for row in complete), default=None),
        "rows": rows,
    }
    return cli.Results(args.n, summary, figure=lambda: draw(rows))


if __name__ == "__main__":
    parser = cli.make_parser("speed_time", __doc__, trains=True, n=(200, "validation goals"))
    parser.add_argument("--epochs", type=int, nargs="+", metavar="N",
                        help="schedules to train (default: the run's)")
    sys.exit(cli.main(parser, measure))
