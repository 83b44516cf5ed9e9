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
import io
import sys
import time
from pathlib import Path

from lib import cli, state_network
import hjepa
import torch
import torch.nn.functional as F

VALIDATION = 2048                               # worlds


def training_data(world, config, device):
    """-> the run's training sequences, the last frame of each clip: (n, K, F), and what hjepa draws
    beside them, forces (n, K - 1, A) first."""
    states, *others = hjepa.draw_training(world, config, device)
    return world.observe(states[:, :, -1]), *others


def prediction_error(network, seen, forces):
    """seen (B, K, F) in the last frame of each clip, forces (B, K - 1, A) -> mean squared error."""
    predicted = network.rollout(seen[:, 0], forces)
    return F.mse_loss(predicted, seen[:, 1:])


@torch.no_grad()
def position_error(network, world, config, device):
    """-> mean distance of bodies from where they are predicted after a macro-event, half boxes."""
    states, forces, _ = hjepa.draw_sequences(world, config, VALIDATION, config.validation_seed,
                                             "state network", device)
    seen = world.observe(states[:, :, -1])
    predicted = network.rollout(seen[:, 0], forces)[:, -1]
    there = state_network.states(world, predicted)
    return hjepa.distance(there, states[:, -1, -1]).mean().item()


def save(path, settings, epochs, network, optimizer, rows):
    """Write the file, whole or not at all. When the training is finished it is small: the state of
    the optimizer is left out."""
    whole = io.BytesIO()                        # torch.save to a full disk raises no OSError
    unfinished = optimizer.state_dict() if len(rows) < epochs else None
    torch.save({"settings": settings, "epochs": epochs, "model": network.state_dict(),
                "optimizer": unfinished, "rows": rows}, whole)
    with hjepa.whole_file(path) as part:
        part.write_bytes(whole.getbuffer())


def resume(path, settings, epochs, network, optimizer):
    """Fill network and optimizer from the file -> its rows. Refusal of another training's file."""
    saved = state_network.read(path)
    if saved["settings"] != settings or saved["epochs"] != epochs:
        raise hjepa.Refusal(f"{path} holds a network of other settings or --epochs: repeat those, "
                            "or give another --to")
    network.load_state_dict(saved["model"])
    if len(saved["rows"]) < epochs:
        optimizer.load_state_dict(saved["optimizer"])
    return saved["rows"]


def train(run, path, args):
    """Train from where the file stands to the end -> network, a row per epoch."""
    settings = state_network.settings_of(run.config)
    config = dataclasses.replace(run.config, epochs=args.epochs)
    world = hjepa.build_world(config)
    network = state_network.build(settings).to(args.device)
    optimizer = hjepa.make_optimizer(network, config, args.device)
    rows = []
    if path.exists():
        rows = resume(path, settings, args.epochs, network, optimizer)
    if len(rows) == args.epochs:
        return network, rows

    def loss(seen, forces, *others):
        error = prediction_error(network, seen, forces)
        return error, {"error": error}
    data = training_data(world, config, args.device)
    for epoch in range(len(rows), args.epochs):
        start = time.perf_counter()
        means, _ = hjepa.train_epoch(loss, network, optimizer, data, config, epoch, args.device,
                                     args.precision)
        rows.append({"epoch": epoch + 1, **means,
                     "position_error": position_error(network, world, config, args.device),
                     "seconds": time.perf_counter() - start})
        save(path, settings, args.epochs, network, optimizer, rows)
        print("epoch {epoch}: error {error:.5f}, position error {position_error:.4f}, "
              "{seconds:.0f} s".format(**rows[-1]), flush=True)
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
