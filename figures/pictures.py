"""JEPAs of real pictures: what do two views of a digit, and films of moving digits, teach?

    python figures/pictures.py                             # trains in runs/pictures, measures
    python figures/pictures.py --only images --seeds 0 1 2
    python figures/pictures.py --preset smoke --films 8    # every step, learns nothing

Data: 5,000 digits of MNIST (lib/pictures_data.py says where from): 3,500 to train, 500 to choose,
1,000 to test. No label and no place is seen in training; the probes read them from the frozen
embedding of pictures as they are, not of views.

images: two random views of a digit, the identity as predictor; VICReg or SIGReg, each on the
    embedding itself and behind a projector. Rows: accuracy on test digits of a linear probe and of
    the nearest neighbours. Controls: raw pixels, the encoder with its start weights.
video: two digits that move and bounce in 64 x 64. Two frames are embedded together; a predictor of
    the last two embeddings is rolled out after three frames. Trained with roll-outs of 1, 4 and 8
    steps. Rows: how far the places that a linear probe reads from imagined embeddings are from the
    digits, step by step; the digits are paired the better way, so their order does not matter.
    Controls: places as last seen, and straight on without a bounce, both from the true places; read
    from the frames to come; the model with its start weights. As nothing is decoded, the picture
    shows the training frame nearest to what is imagined.

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

# Settings of images, of video.
PRESETS = {"small": ({}, {}),
           "smoke": (dict(epochs=1, steps=2, batch=8, width=4, latent=16, hidden=16),
                     dict(epochs=1, steps=2, batch=3, width=4, latent=8, hidden=16,
                          predictor_width=16, frames=11))}
SIGREG = dict(regulariser="SIGReg", pred=1.0, gauss=10.0, std=0.0, cov=0.0)
IMAGES = {"VICReg, projector": {}, "VICReg": dict(projected=0),
          "SIGReg, projector": dict(projected=128, **SIGREG),
          "SIGReg": dict(projected=0, **SIGREG)}
ROLLOUTS = (1, 4, 8)                            # K of the trainings
HORIZON = 16                                    # steps that are imagined after three frames
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
    encoders["untrained"] = [build(image_settings(args, seed)).to(args.device).eval().embed
                             for seed in args.seeds]
    seconds = {}
    for name, options in IMAGES.items():
        trained = [train(args, "image " + name, image_settings(args, seed, **options), parts)
                   for seed in args.seeds]
        encoders[name] = [model.embed for model, _ in trained]
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

def draw_films(pictures, n, purpose):
    """-> films (n, HORIZON + 3, 64, 64), centres (n, HORIZON + 3, 2, 2): 3 frames are seen."""
    gen = hjepa.generator(FILM_SEED, "pictures films, " + purpose)
    return pictures_data.draw_films(pictures, n, HORIZON + 1 + VideoSettings.window, gen)


@torch.no_grad()
def embed_films(model, films, centres):
    """-> z (n, HORIZON + 2, D), and the centres in the last frame that each z has seen, on the
    CPU."""
    z = torch.cat([model.embed(chunk) for chunk in films.split(50)])
    return z.float().cpu(), centres[:, model.window - 1:].cpu()


@torch.no_grad()
def imagine(model, z, device):
    """z (B, Z, D) -> p (B, HORIZON, D) after the first two, on the CPU."""
    first, second = z[:, 0].to(device), z[:, 1].to(device)
    return model.rollout(first, second, HORIZON).float().cpu()


def video_errors(model, parts, films, device):
    """-> dict of errors in pixels (films, HORIZON): read from what is imagined, and from the frames
    themselves.

    Each has a probe of its own: fitted on embeddings of training films, with the penalty that is
    best, on validation films, for what it is to read.
    """
    sets = {name: embed_films(model, *draw_films(parts[name][0], count, name))
            for name, count in (("train", 3 * films), ("validation", films), ("test", films))}
    train = [part.flatten(0, 1) for part in sets["train"]]
    errors = {}
    for name, predict in (("imagined", lambda z: imagine(model, z, device)),
                          ("read from the frames", lambda z: z[:, 2:])):
        z, centres = sets["validation"]
        validation = predict(z).flatten(0, 1), centres[:, 2:].flatten(0, 1)
        read = pictures_probes.place_reader(train, validation)
        z, centres = sets["test"]
        errors[name] = pictures_probes.place_error(read(predict(z)), centres[:, 2:])
    return errors


def blind_errors(parts, films):
    """-> dict of errors in pixels (films, HORIZON) of guesses without a model: places as last seen,
    and places that go on as they went, without a bounce."""
    _, centres = draw_films(parts["test"][0], films, "test")
    centres = centres[:, VideoSettings.window - 1:].cpu()
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
    settings = [video_settings(args, seed) for seed in args.seeds]
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
    film, film_centres = draw_films(parts["test"][0], 1, "test")
    films, bank_centres = draw_films(parts["train"][0], known, "shown")
    index = torch.tensor(SHOWN)
    first = VideoSettings.window - 1            # the frame that ends the first embedding
    frames = films[:, first:].flatten(0, 1).cpu()
    strips = [("the film", film[0, index + 1 + first].cpu())]
    for name in (f"{ROLLOUTS[0]} step", f"{ROLLOUTS[-1]} steps"):
        model = models[name]
        z, _ = embed_films(model, film, film_centres)
        bank, _ = embed_films(model, films, bank_centres)
        bank = bank.flatten(0, 1)
        to_come = z[0, index + 1]
        imagined = imagine(model, z, device)[0, index - 1]
        strips.append((f"{name}: nearest to the frame",
                       frames[pictures_probes.nearest(to_come, bank)]))
        strips.append((f"{name}: nearest to what is imagined",
                       frames[pictures_probes.nearest(imagined, bank)]))
    return strips


# ---- the study

def image_settings(args, seed, **options):
    """-> ImageSettings of the command line and a row."""
    settings = ImageSettings(seed=seed, **{**PRESETS[args.preset][0], **options})
    return dataclasses.replace(settings, epochs=args.epochs or settings.epochs)


def video_settings(args, seed):
    """-> VideoSettings of the command line."""
    settings = VideoSettings(seed=seed, **PRESETS[args.preset][1])
    return dataclasses.replace(settings, epochs=args.epochs or settings.epochs)


def train(args, name, settings, parts):
    """-> model, rows of its training, which is now if it was not before."""
    name = name.replace(",", "").replace(" ", "-")
    path = args.run / f"{name}-{settings.seed}.pt"
    print(f"{path}: {settings.epochs} epochs of {settings.steps} steps", flush=True)
    return pictures_training.train(path, settings, parts["train"][0])


def seconds_of(trained):
    """-> mean seconds that a training took, over its seeds."""
    total = sum(row["seconds"] for _, rows in trained for row in rows)
    return total / len(trained)


def settings_without_seed(settings):
    """-> a dict for the JSON, which has the seeds elsewhere."""
    values = dataclasses.asdict(settings)
    del values["seed"]
    return values


def measure(args):
    """-> runs, as cli.publish wants them, cli.Results."""
    pictures, labels = pictures_data.read_digits()
    parts = {name: (x.to(args.device), y)
             for name, (x, y) in pictures_data.split_digits(pictures, labels).items()}
    summary = {"digits": {name: len(y) for name, (_, y) in parts.items()}}
    arrays, draws = {}, {}
    if args.only != "video":
        rows, found, seconds = measure_images(args, parts)
        summary.update(images=rows, images_settings=settings_without_seed(image_settings(args, 0)),
                       images_variants=IMAGES, images_seconds=seconds)
        arrays.update(found)
        draws["images"] = rows
    if args.only != "images":
        rows, found, seconds, strips = measure_video(args, parts)
        summary.update(films=args.films, horizon=HORIZON, video=rows,
                       video_settings=settings_without_seed(video_settings(args, 0)), video_seconds=seconds)
        arrays.update(found)
        draws["video"] = rows
        draws["strips"] = strips
    kind = video_settings if args.only == "video" else image_settings
    settings = [kind(args, seed) for seed in args.seeds]
    runs = [cli.Run(None, each, each.epochs) for each in settings]
    results = cli.Results(len(parts["test"][1]), summary, arrays,
                          lambda: pictures_draw.draw(SHOWN, **draws))
    return runs, results


def make_parser():
    parser = hjepa.Parser(prog="figures/pictures.py", description=__doc__, allow_abbrev=False,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("images", "video"), help="one half of the study")
    parser.add_argument("--preset", choices=PRESETS, default="small", help="default: small")
    parser.add_argument("--run", type=Path, help="where models are kept (default: runs/pictures, "
                        "or runs/pictures-smoke)")
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
    where = "runs/pictures" if args.preset == "small" else f"runs/pictures-{args.preset}"
    args.run = args.run or Path(where)
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
