"""JEPAs of real pictures: what do two views of a digit, and films of moving digits, teach?

    python figures/pictures.py                             # trains in runs/pictures, measures
    python figures/pictures.py --only images --seeds 0 1 2
    python figures/pictures.py --epochs 1 --films 8        # every step, learns little

Data: 5,000 digits of MNIST (lib/pictures_data.py says where from): 3,500 to train, 500 to choose,
1,000 to test. No label and no place is seen in training; the probes read them from the frozen
embedding of pictures as they are, not of views.

images: two random views of a digit, the identity as predictor; VICReg or SIGReg, each on the
    embedding itself and behind a projector. Rows: accuracy on test digits of a linear probe and of
    the nearest neighbours. Controls: raw pixels, the encoder with its start weights.
video: two digits that move and bounce in 64 x 64. A frame is embedded; a predictor of the last two
    embeddings is rolled out. Trained with roll-outs of 1, 4 and 8 steps. Rows: how far the places
    that a linear probe reads from imagined embeddings are from the digits, step by step. Controls:
    places as they were last seen; read from the frames to come; the model with its start weights.
    As nothing is decoded, the picture shows the training frame nearest to what is imagined.

The models and losses are in lib/pictures_model.py, the probes in lib/pictures_probes.py. VICReg
terms, predictor, schedule and ridge probe are hjepa.py's own. The task and the rows are those of
EB-JEPA (Terver et al. 2026, section 5), but for CIFAR-10. An interrupted training goes on.
"""
import argparse
import dataclasses
import sys
from pathlib import Path

from lib import cli, pictures_data, pictures_draw, pictures_probes, pictures_training, stats
from lib.pictures_model import ImageSettings, VideoSettings, build
import hjepa
import torch

SIGREG = dict(regulariser="SIGReg", pred=1.0, gauss=10.0, std=0.0, cov=0.0)
IMAGES = {"VICReg, projector": {}, "VICReg": dict(projected=0),
          "SIGReg, projector": dict(projected=128, **SIGREG),
          "SIGReg": dict(projected=0, **SIGREG)}
ROLLOUTS = (1, 4, 8)                            # K of the trainings
HORIZON = 16                                    # steps that are imagined after two frames
FILM_SEED = 2_000_000                           # as in hjepa.py: no training has it
SHOWN = (1, 2, 4, 6, 8, 12, 16)                 # steps in the picture


# ---- images

@torch.no_grad()
def embed_digits(encode, parts):
    """-> dict part -> (embeddings (N, P), labels), on the CPU."""
    found = {}
    for name, (pictures, labels) in parts.items():
        chunks = [encode(chunk).float().cpu() for chunk in pictures.split(500)]
        found[name] = (torch.cat(chunks), labels.cpu())
    return found


def image_row(name, encoders, parts):
    """encoders: one per seed -> a row, and bools (seeds, test digits) of each probe."""
    outcomes = {"linear": [], "neighbours": []}
    chosen = {"linear": [], "neighbours": []}
    ranks = []
    for encode in encoders:
        embedded = embed_digits(encode, parts)
        for key, probe in (("linear", pictures_probes.linear_probe),
                           ("neighbours", pictures_probes.neighbour_probe)):
            right = probe(embedded)
            outcomes[key].append(right["test"])
            chosen[key].append(right["validation"].float().mean())
        ranks.append(hjepa.effective_rank(embedded["train"][0]))
    row = {"encoder": name}
    for key, right in outcomes.items():
        outcomes[key] = torch.stack(right)
        row[key] = outcomes[key].float().mean().item()
        row[key + "_ci"] = stats.interval(outcomes[key].numpy())
        row[key + "_validation"] = torch.stack(chosen[key]).mean().item()
    row["rank"] = sum(ranks) / len(ranks)
    return row, outcomes


def measure_images(args, parts):
    """-> rows, arrays, seconds of training per model."""
    encoders = {"raw pixels": [lambda pictures: pictures.flatten(1)]}
    untrained = [build(ImageSettings(seed=seed)).encoder.to(args.device).eval()
                 for seed in args.seeds]
    encoders["untrained"] = untrained
    seconds = {}
    for name, options in IMAGES.items():
        trained = [train(args, "image " + name, ImageSettings(seed=seed, **options), parts)
                   for seed in args.seeds]
        encoders[name] = [model.encoder for model, _ in trained]
        seconds[name] = seconds_of(trained)
    rows, arrays = [], {}
    for name, several in encoders.items():
        row, outcomes = image_row(name, several, parts)
        rows.append(row)
        for key, right in outcomes.items():
            arrays[f"{key}/{name}"] = right.numpy()
        print("{encoder:>20}: linear {linear:.1%}, neighbours {neighbours:.1%}".format(**row),
              flush=True)
    return rows, arrays, seconds


# ---- video

@torch.no_grad()
def draw_embedded(model, pictures, n, purpose):
    """-> z (n, T, D), centres (n, T, 2, 2), on the CPU, films on the pictures' device."""
    gen = hjepa.generator(FILM_SEED, "pictures films, " + purpose)
    films, centres = pictures_data.draw_films(pictures, n, HORIZON + 2, gen)
    z = torch.cat([model.embed(chunk) for chunk in films.split(50)])
    return z.float().cpu(), centres.cpu(), films


@torch.no_grad()
def imagine(model, z, device):
    """z (B, T, D) -> p (B, HORIZON, D) after its first two frames, on the CPU."""
    first, second = z[:, 0].to(device), z[:, 1].to(device)
    return model.rollout(first, second, HORIZON).float().cpu()


def video_errors(model, parts, films, device):
    """-> dict of errors in pixels (films, HORIZON): read from what is imagined, and from the frames
    themselves."""
    sets = [draw_embedded(model, parts[name][0], count, name)[:2]
            for name, count in (("train", 3 * films), ("validation", films))]
    read = pictures_probes.place_reader(*[(z.flatten(0, 1), centres.flatten(0, 1))
                                          for z, centres in sets])
    z, centres, _ = draw_embedded(model, parts["test"][0], films, "test")
    to_come = centres[:, 2:]
    return {"imagined": pictures_probes.place_error(read(imagine(model, z, device)), to_come),
            "read from the frames": pictures_probes.place_error(read(z[:, 2:]), to_come)}


def blind_errors(parts, films):
    """-> dict of errors in pixels (films, HORIZON) of guesses without a model: places as last seen,
    and places that go on as they went, without a bounce."""
    gen = hjepa.generator(FILM_SEED, "pictures films, test")
    _, centres = pictures_data.draw_films(parts["test"][0], films, HORIZON + 2, gen)
    centres = centres.cpu()
    last = centres[:, 1:2]
    steps = torch.arange(1, HORIZON + 1)[:, None, None]
    straight = last + steps * (last - centres[:, :1])
    return {"as last seen": pictures_probes.place_error(last.expand_as(straight), centres[:, 2:]),
            "straight on": pictures_probes.place_error(straight, centres[:, 2:])}


def video_row(name, errors):
    """errors: (films, HORIZON) of each seed -> a row: mean and interval at horizons 1, 2, 4, 8, 16,
    and the mean of each."""
    errors = torch.stack(errors)                                          # (seeds, films, HORIZON)
    row = {"row": name, "mean": errors.mean().item(),
           "mean_ci": stats.interval(errors.mean(-1).numpy())}
    for step in (1, 4, 8, 16):
        row[f"step_{step}"] = errors[..., step - 1].mean().item()
        row[f"step_{step}_ci"] = stats.interval(errors[..., step - 1].numpy())
    row["by_step"] = errors.mean((0, 1)).tolist()
    return row


def measure_video(args, parts):
    """-> rows, arrays, seconds of training per model, what the picture of roll-outs shows."""
    found, seconds, models = {}, {}, {}
    for name, errors in blind_errors(parts, args.films).items():
        found[name] = [errors]
    settings = [VideoSettings(seed=seed) for seed in args.seeds]
    start = [build(each).to(args.device).eval() for each in settings]
    runs = {"untrained": start}
    for orders in ROLLOUTS:
        trained = [train(args, f"video {orders}", dataclasses.replace(each, rollout=orders), parts)
                   for each in settings]
        name = f"{orders} step" if orders == 1 else f"{orders} steps"
        runs[name] = [model for model, _ in trained]
        seconds[name] = seconds_of(trained)
    for name, several in runs.items():
        for model in several:
            for key, errors in video_errors(model, parts, args.films, args.device).items():
                found.setdefault(f"{name}, {key}", []).append(errors)
        models[name] = several[0]
    rows, arrays = [], {}
    for name, errors in found.items():
        rows.append(video_row(name, errors))
        arrays[f"pixels/{name}"] = torch.stack(errors).half().numpy()
        print("{row:>32}: step 1 {step_1:5.2f}, 4 {step_4:5.2f}, 8 {step_8:5.2f}, 16 "
              "{step_16:5.2f} pixels".format(**rows[-1]), flush=True)
    strips = show_rollouts(models, parts, args.device)
    return rows, arrays, seconds, strips


@torch.no_grad()
def show_rollouts(models, parts, device, known=150):
    """-> list of (title, frames (len(SHOWN), 64, 64)): a test film, and what the models imagine, as
    the training frame whose embedding is nearest."""
    strips = []
    for name in (f"{ROLLOUTS[0]} step", f"{ROLLOUTS[-1]} steps"):
        model = models[name]
        z, _, films = draw_embedded(model, parts["test"][0], 1, "test")
        bank, _, frames = draw_embedded(model, parts["train"][0], known, "shown")
        bank, frames = bank.flatten(0, 1), frames.flatten(0, 1).cpu()
        index = torch.tensor(SHOWN)
        if not strips:
            strips.append(("the film", films[0, index + 1].cpu()))
        to_come = z[0, index + 1]
        imagined = imagine(model, z, device)[0, index - 1]
        strips.append((f"{name}: nearest to the frame",
                       frames[pictures_probes.nearest(to_come, bank)]))
        strips.append((f"{name}: nearest to what is imagined",
                       frames[pictures_probes.nearest(imagined, bank)]))
    return strips


# ---- the study

def train(args, name, settings, parts):
    """-> model, rows of its training, which is now if it was not before."""
    if args.epochs is not None:
        settings = dataclasses.replace(settings, epochs=args.epochs)
    name = name.replace(",", "").replace(" ", "-")
    path = args.run / f"{name}-{settings.seed}.pt"
    print(f"{path}: {settings.epochs} epochs of {settings.steps} steps", flush=True)
    return pictures_training.train(path, settings, parts["train"][0])


def seconds_of(trained):
    """-> mean seconds that a training took, over its seeds."""
    total = sum(row["seconds"] for _, rows in trained for row in rows)
    return total / len(trained)


def measure(args):
    """-> runs, as cli.publish wants them, cli.Results."""
    pictures, labels = pictures_data.read_digits()
    parts = {name: (x.to(args.device), y)
             for name, (x, y) in pictures_data.split_digits(pictures, labels).items()}
    summary = {"digits": {name: len(y) for name, (_, y) in parts.items()}}
    arrays, draws = {}, {}
    if args.only != "video":
        rows, found, seconds = measure_images(args, parts)
        summary.update(images=rows, images_settings=dataclasses.asdict(ImageSettings()),
                       images_variants=IMAGES, images_seconds=seconds)
        arrays.update(found)
        draws["images"] = rows
    if args.only != "images":
        rows, found, seconds, strips = measure_video(args, parts)
        summary.update(films=args.films, horizon=HORIZON, video=rows,
                       video_settings=dataclasses.asdict(VideoSettings()), video_seconds=seconds)
        arrays.update(found)
        draws["video"] = rows
        draws["strips"] = strips
    kind = VideoSettings if args.only == "video" else ImageSettings
    epochs = args.epochs or kind().epochs
    runs = [cli.Run(None, kind(seed=seed, epochs=epochs), epochs) for seed in args.seeds]
    results = cli.Results(len(parts["test"][1]), summary, arrays,
                          lambda: pictures_draw.draw(SHOWN, **draws))
    return runs, results


def make_parser():
    parser = hjepa.Parser(prog="figures/pictures.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("images", "video"), help="one half of the study")
    parser.add_argument("--run", type=Path, default=Path("runs/pictures"),
                        help="where models are kept (runs/pictures)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training (0)")
    parser.add_argument("--epochs", type=int, help="of every training (default: "
                        f"{ImageSettings().epochs}, video {VideoSettings().epochs})")
    parser.add_argument("--films", type=int, default=300, help="test films (300)")
    parser.add_argument("--out", type=Path, help="where pictures.json, .npz and .png go (default: "
                        "the figures folder of --run)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    return parser


def parse(argv=None):
    """-> args, checked and filled in."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(argv)
    cli.check_number("films", args.films)
    if args.epochs is not None:
        cli.check_number("epochs", args.epochs)
    if len(set(args.seeds)) < len(args.seeds):
        raise hjepa.Refusal("--seeds: give each seed once")
    args.name = "pictures"
    args.argv = argv
    args.precision = "fp32"
    args.out = args.out or args.run / "figures"
    args.device = hjepa.pick_device(args.device)
    hjepa.try_out(args.out)
    return args


def main(argv=None):
    """-> exit code: 0 done, 2 a mistake that one line describes, 130 interrupted."""
    def work():
        args = parse(argv)
        with hjepa.locked(args.run):
            runs, results = measure(args)
        cli.publish(args, runs, results)
    return cli.exit_code("figures/pictures.py", work)


if __name__ == "__main__":
    sys.exit(main())
