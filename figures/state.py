"""How far does a network come that is told what to keep? The supervised rival of planning.py.

    python figures/state.py --run runs/paper                       # writes runs/paper/state.pt
    python figures/state.py --run figures/weights/hjepa.pt --to figures/weights/state.pt
    python figures/planning.py --run runs/paper --state runs/paper/state.pt

It has the shape of the run's short predictor and learns from the run's own training sequences, in
the same batches and symmetries, with the same optimiser and schedule. But it is given the state:
from the 4 numbers observed of each body in the last frame of a clip, and one force per clip, it
predicts the same numbers in the last frame of each later clip, rolled out on its own predictions.
The loss is their mean squared error. There is no encoder, no embedding and no VICReg.

An interrupted training goes on where the file stands. state.json has a row per epoch: error, the
loss; position_error, how far the bodies are from where it puts them after a macro-event, on
validation worlds, as a mean in half boxes.
"""
import dataclasses
import sys
from pathlib import Path

from lib import cli, state_network, trainings
import hjepa
import torch

VALIDATION = 2048                               # worlds


def training_data(world, config, device):
    """-> the run's training sequences, the last frame of each clip: (n, K, F), and what hjepa draws
    beside them, forces (n, K - 1, A) first."""
    states, *others = hjepa.draw_training(world, config, device)
    return world.observe(states[:, :, -1]), *others


@torch.no_grad()
def position_error(network, world, config, device):
    """-> mean distance of bodies from where they are predicted after a macro-event, half boxes."""
    states, forces, _ = hjepa.draw_sequences(world, config, VALIDATION, config.validation_seed,
                                             "state network", device)
    seen = world.observe(states[:, :, -1])
    predicted = network.rollout(seen[:, 0], forces)[:, -1]
    there = state_network.states(world, predicted)
    return hjepa.distance(there, states[:, -1, -1]).mean().item()


def train(run, path, args):
    """Train from where the file stands to the end -> network, a row per epoch."""
    settings = state_network.settings_of(run.config)
    config = dataclasses.replace(run.config, epochs=args.epochs)
    world = hjepa.build_world(config)
    network = state_network.build(settings).to(args.device)
    saved = state_network.read(path) if path.exists() else None

    def loss(seen, forces, *others):
        error = state_network.prediction_error(network, seen, forces)
        return error, {"error": error}

    def draw():
        return training_data(world, config, args.device)

    def watch():
        return {"position_error": position_error(network, world, config, args.device)}
    rows = trainings.train(path, saved, settings, network, loss, draw, config, args.device,
                           args.precision, watch)
    return network, rows


def measure(args, runs):
    run = cli.one_run(runs)
    path = args.to or args.run[0] / "state.pt"
    if args.to is None and not args.run[0].is_dir():
        raise hjepa.Refusal("--to FILE is needed: where the network is to be kept")
    network, rows = train(run, path, args)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{path}: {len(rows)} epochs, position error {rows[-1]['position_error']:.4f}")
    return cli.Results(run.config.sequences, {"parameters": parameters, "rows": rows})


def make_parser():
    parser = cli.make_parser("state", __doc__, trains=True, epochs=(60, "epochs"))
    parser.add_argument("--to", type=Path, metavar="FILE",
                        help="where the network goes (default: state.pt in the run's directory)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
