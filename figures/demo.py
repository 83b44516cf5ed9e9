"""Writes a page to play with: figures/demo.html, one file that needs no network and no Python.

    python figures/demo.py                                        # the shipped weights
    python figures/demo.py --run runs/quick --out runs/quick/demo.html

Three discs fly in the page, and the model brings them to goals that the visitor drags. The page
holds the weights that this takes, in half precision: both encoders, the short predictor, the first
guess. The simulator and the networks are written again in plain JavaScript (lib/demo/).

The page also holds a linear probe, which reads positions from p1 so that the imagined end can be
drawn, and CASES recorded cases: what Python computes with the same rounded weights. Opened as
demo.html#check, the page computes them again and shows the largest differences. Opened as
demo.html#trials=20, it flies to random goals in 20 worlds and shows how far from them the bodies
are.
"""
import argparse
import base64
import json
import os
import sys
from pathlib import Path

from lib import ROOT, cli
import hjepa
import numpy as np
import torch

WEIGHTS = ROOT / "figures" / "weights" / "hjepa.pt"
PAGE = ROOT / "figures" / "demo.html"
PARTS = ROOT / "figures" / "lib" / "demo"
CASES = 20                                      # half of them with a contact
PROBE = 1024                                    # sequences that the probe is fitted on
LARGEST = 15e6                                  # bytes of the page

# What the page does not need: the macro level, and the deep embedding of the goal.
LEFT_OUT = ("macro.", "bridge.", "lift.", "target.upper.", "target.read_deep.")


def half(model):
    """The model with its weights rounded to half precision, in place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise hjepa.Refusal("a weight is too large for half precision")
    return model


@torch.no_grad()
def imagined(model, clips, forces):
    """clips (N, T, F), forces (N, K, A) -> z1, z2 (N, D), p1 (N, K, D)."""
    z1, z2 = model.context(clips)
    return z1, z2, model.rollout(z1, forces)


def probe_data(model, world, config, n, seed):
    """-> p1 (n K, D), and where the bodies are at the end of its clip (n K, 2 bodies)."""
    states, forces, _ = hjepa.draw_sequences(world, config, n, seed, "demo probe", "cpu")
    _, _, p1 = imagined(model, world.observe(states[:, 0]), forces)
    positions = states[:, 1:, -1, :, :2]
    return p1.flatten(0, 1), positions.flatten(2).flatten(0, 1)


def fit_probe(model, world, config):
    """-> weight (2 bodies, D), bias (2 bodies,) of a linear probe from p1 to positions, and its
    mean error at the end of a macro-event, in half boxes, on test worlds."""
    weight, offset = hjepa.ridge(probe_data(model, world, config, PROBE, config.seed),
                                 probe_data(model, world, config, PROBE, config.validation_seed))
    p1, true = probe_data(model, world, config, PROBE, config.test_seed)
    gap = (p1.double() @ weight + offset - true).unflatten(1, (-1, 2))
    gap = gap.norm(dim=-1).unflatten(0, (PROBE, -1))                      # (n, K, bodies)
    return weight.T.float(), offset.float(), gap[:, -1].mean().item()


@torch.no_grad()
def record_cases(model, world, config, weight, bias):
    """-> dict of float32 tensors, each with CASES rows: what the page is to compute again.

    clip, goal: what is given. z1, z2, t1, forces (the first guess), p1 (the end that is imagined
    under these forces), imagined (the positions read from it), next: the clip that the simulator
    makes with the first force, in float64, as the page does. In half of the cases bodies meet in it.
    """
    bodies = len(config.masses)
    gen = hjepa.generator(config.test_seed, "demo cases")
    drawn = 40 * CASES
    clips, _, _ = hjepa.make_sequences(world, drawn, 1, gen, config.clip_frames,
                                       config.start_speed)
    clip = clips[:, 0]
    goal = world.reset(drawn, gen, 0.0)
    seen = world.observe(clip)
    wanted = world.observe(hjepa.goal_clip(world, goal, config.clip_frames))
    forces = hjepa.first_guess(model, seen, wanted, config.event_clips, world.force_limit)
    z1, z2, p1 = imagined(model, seen, forces)
    t1, _ = model.target(wanted)
    following, contacts = world.rollout(clip[:, -1].double(), forces[:, :1].double(),
                                        config.clip_frames)
    met = contacts.any(1)
    pick = torch.cat([met.nonzero()[:CASES // 2, 0], (~met).nonzero()[:, 0]])[:CASES]
    if len(pick) < CASES:
        raise hjepa.Refusal(f"only {len(pick)} cases of {CASES} could be recorded")
    everything = {"clip": clip, "goal": goal, "z1": z1, "z2": z2, "t1": t1, "forces": forces,
                  "p1": p1[:, -1], "imagined": (p1[:, -1] @ weight.T + bias).unflatten(1, (bodies, 2)),
                  "next": following}
    return {name: values[pick].float().contiguous() for name, values in everything.items()}


def settings_of(config, world, error):
    """-> what the page must know beside the weights."""
    return {"masses": list(world.masses), "radii": list(world.radii), "dt": world.dt,
            "substeps": world.substeps, "forceLimit": world.force_limit,
            "startSpeed": config.start_speed, "clipFrames": config.clip_frames,
            "frames": config.clip_frames, "clips": config.event_clips,
            "actions": 2 * len(world.masses), "latent": config.latent, "width": config.width,
            "heads": config.heads, "depth": config.depth, "shallowDepth": config.shallow_depth,
            "shortWidth": config.short_width, "predictorBlocks": config.predictor_blocks,
            "reached": hjepa.REACHED, "probeError": error, "colours": hjepa.COLOURS}


def text_of(tensors, kind):
    """A dict of tensors -> its list of names and shapes, and all its numbers in base64, in lines."""
    names = [[name, list(tensor.shape)] for name, tensor in tensors.items()]
    numbers = np.concatenate([tensor.numpy().astype(kind).ravel() for tensor in tensors.values()])
    text = base64.b64encode(numbers.tobytes()).decode()
    lines = [text[i:i + 4096] for i in range(0, len(text), 4096)]
    return names, "\n".join(lines)


def make_page(model, config):
    """-> the page as a text."""
    world = hjepa.build_world(config)
    model = half(model)
    weight, bias, error = fit_probe(model, world, config)
    cases = record_cases(model, world, config, weight, bias)
    needed = {name: values for name, values in model.state_dict().items()
              if not name.startswith(LEFT_OUT)}
    content = settings_of(config, world, error)
    content["weightList"], weights = text_of(needed, "<f2")
    content["probeList"], probe = text_of({"probe.weight": weight, "probe.bias": bias}, "<f4")
    content["caseList"], recorded = text_of(cases, "<f4")

    page = (PARTS / "page.html").read_text()
    fill = {"settings": json.dumps(content), "weights": weights, "probe": probe, "cases": recorded}
    for name in ("world", "model", "controller", "page"):
        fill[f"{name}.js"] = (PARTS / f"{name}.js").read_text()
    for name, text in fill.items():
        place = "{{" + name + "}}"
        if page.count(place) != 1:
            raise RuntimeError(f"{place} must be in page.html once")
        page = page.replace(place, text)
    return page


def write(run, out):
    """Write the page, whole or not at all."""
    if out is None and run.resolve() != WEIGHTS.resolve():
        raise hjepa.Refusal("--out FILE is needed: figures/demo.html is for the shipped weights")
    out = out or Path(os.path.relpath(PAGE))
    if out.is_dir():
        raise hjepa.Refusal(f"--out {out} is a folder: name a file")
    model, config = hjepa.load(run)
    if not hasattr(model, "guess"):
        raise hjepa.Refusal(f"{run} has no first guess: train with --guess-width above 0")
    page = make_page(model, config).encode()
    if len(page) > LARGEST:
        raise hjepa.Refusal(f"the page would have {len(page) / 1e6:.1f} MB, more than "
                            f"{LARGEST / 1e6:.0f}: give a smaller run")
    with hjepa.whole_file(out) as part:
        part.write_bytes(page)
    print(f"wrote {out}, {len(page) / 1e6:.1f} MB")


def main(argv=None):
    """-> exit code: 0 done, 2 a mistake that one line describes, 130 interrupted."""
    parser = hjepa.Parser(prog="figures/demo.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path(os.path.relpath(WEIGHTS)),
                        help="directory or checkpoint (default: the shipped weights)")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="file to write (default, for the shipped weights: figures/demo.html)")

    def work():
        args = parser.parse_args(argv)
        write(args.run, args.out)
    return cli.exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
