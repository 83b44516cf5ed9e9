"""Where does the time of a training step go?

    python figures/speed_step.py --run runs/quick --precision auto

The step as shipped against the same step written plainly (float32, the library's attention, an
optimiser that is not fused), and against each of the three changes alone.

Then the share of the step that its matrix products need. All products of a step, forward and
backward, are noted and run again by themselves, with the same shapes, strides and precision. A
share of 1 would be a step that does nothing else.
"""
import collections
import math
import statistics
import sys

from lib import cli, timing
import hjepa
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

# What one matrix product needs to be run again: shapes, strides and type of its two factors.
Product = collections.namedtuple("Product", "left right left_stride right_stride dtype")


class LibraryBlock(hjepa.Block):
    """hjepa.Block with the library's attention."""

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                              # (N, heads, T, W / heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def make_step(config, data, device, precision, attention="written out", fused=True):
    """data: obs, forces -> a function that takes the next optimiser step of a run of its own and
    returns the loss."""
    model = hjepa.build_model(config).to(device)
    if attention == "library":
        for module in model.modules():
            if isinstance(module, hjepa.Block):
                # Another forward on the same weights: both arms start from one model.
                module.__class__ = LibraryBlock
    optimizer = hjepa.make_optimizer(model, config, device)
    if not fused:
        groups = [{"params": group["params"], "weight_decay": group["weight_decay"]}
                  for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, config.lr, (0.9, config.beta2))
    done = 0

    def step():
        nonlocal done
        gen = hjepa.generator(config.seed, "batches", done)
        obs, forces, shares = next(
            hjepa.epoch_batches(*data, config.batch, gen, config.symmetries))
        with hjepa.autocast(device, precision):
            total, _ = hjepa.objective(model, obs, forces, config.loss_weights, shares)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        done += 1
        return total
    return step


class Products(TorchDispatchMode):
    """Counts every matrix product that runs under it: counts[Product].

    A dispatch mode sees what reaches the kernels, the backward pass included. Hooks on modules see
    neither that nor products outside of modules, as in attention.
    """

    def __init__(self):
        super().__init__()
        aten = torch.ops.aten
        self.counts = collections.Counter()
        self.first_factor = {                   # which argument it is
            aten.mm.default: 0,
            aten.bmm.default: 0,
            aten.addmm.default: 1,
            aten.baddbmm.default: 1,
        }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.first_factor:
            at = self.first_factor[func]
            a, b = args[at:at + 2]
            shapes = tuple(a.shape), tuple(b.shape)
            self.counts[Product(*shapes, a.stride(), b.stride(), a.dtype)] += 1
        return func(*args, **(kwargs or {}))


def operations(product):
    """Multiplications and additions of one product."""
    return 2 * math.prod(product.left) * product.right[-1]


def ones(shape, stride, dtype, device):
    """A tensor of ones with this shape and these strides."""
    last = sum((n - 1) * s for n, s in zip(shape, stride))
    return torch.ones(last + 1, dtype=dtype, device=device).as_strided(shape, stride)


def replay(counts, device):
    """Counts of products -> a function that runs them all, on factors of their own."""
    jobs = []
    for product, count in counts.items():
        a = ones(product.left, product.left_stride, product.dtype, device)
        b = ones(product.right, product.right_stride, product.dtype, device)
        multiply = torch.mm if len(product.left) == 2 else torch.bmm
        jobs.append((multiply, a, b, count))

    def run():
        for multiply, a, b, count in jobs:
            for _ in range(count):
                multiply(a, b)
    return run


def draw(summary):
    """-> figure: a bar per arm, as a share of the shipped step."""
    figure, axes = hjepa.new_figure(1, 1, 7, 3)
    ax = axes[0, 0]
    bars = {row["arm"]: row["times_shipped"] for row in summary["rows"]}
    bars["its products alone"] = summary["share"]
    for i, value in enumerate(bars.values()):
        ax.barh(i, value, color=hjepa.COLOURS[i % len(hjepa.COLOURS)])
    ax.set_yticks(range(len(bars)), bars)
    ax.invert_yaxis()
    ax.set(title="time of a training step (shipped: 1)")
    return figure


def measure(args, runs):
    config = cli.one_run(runs).config
    device = args.device
    world = hjepa.build_world(config)
    states, forces, _ = hjepa.draw_sequences(
        world, config, 4 * config.batch, config.seed, "train", device)
    data = world.observe(states), forces, torch.ones(len(forces), device=device)

    shipped = dict(precision=args.precision, attention="written out", fused=True)
    plain = dict(precision="fp32", attention="library", fused=False)
    arms = {
        "shipped": shipped,
        "float32": {**shipped, "precision": "fp32"},
        "library attention": {**shipped, "attention": "library"},
        "optimiser not fused": {**shipped, "fused": False},
        "written plainly": plain,
    }
    actions = {name: make_step(config, data, device, **arm) for name, arm in arms.items()}
    with Products() as noted:
        make_step(config, data, device, **shipped)()
    actions["products"] = replay(noted.counts, device)
    seconds = timing.race(actions, args.repeats, device)

    rows = []
    for name, arm in arms.items():
        median = statistics.median(seconds[name])
        ratios = np.divide(seconds[name], seconds["shipped"])
        rows.append({"arm": name, **arm, "seconds": median,
                     "sequences_per_second": config.batch / median,
                     "times_shipped": statistics.median(ratios.tolist()),
                     "times_shipped_quartiles": timing.quartiles(ratios)})
        print("{arm}: {seconds:.4f} s, {times_shipped:.2f} of the shipped step".format(**rows[-1]))
    shares = np.divide(seconds["products"], seconds["shipped"])
    work = sum(operations(product) * count for product, count in noted.counts.items())
    seconds_of_products = statistics.median(seconds["products"])
    summary = {
        "processor": timing.processor(), "batch": config.batch, "repeats": args.repeats,
        "operations": work, "products": sum(noted.counts.values()),
        "seconds_of_products": seconds_of_products,
        "operations_per_second": work / seconds_of_products,
        "share": statistics.median(shares.tolist()), "share_quartiles": timing.quartiles(shares),
        "rows": rows}
    print(f"products alone: {summary['share']:.2f} of the step")
    return cli.Results(args.repeats, summary, figure=lambda: draw(summary))


if __name__ == "__main__":
    parser = cli.make_parser("speed_step", __doc__, trains=True, repeats=(15, "repetitions"))
    sys.exit(cli.main(parser, measure))
