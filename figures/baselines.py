"""Is it the embedding? The JEPA beside rivals of the same size, and who plans among distractors.

    python figures/baselines.py --run runs/quick                    # all rivals, all worlds
    python figures/baselines.py --run runs/quick --table            # what is done, what is missing
    python figures/baselines.py --run runs/quick --worlds plain --only "state network"
    python figures/baselines.py --run runs/quick --epochs 9 --gather

    JEPA                 the model of the run, by its short level
    JEPA and decoder     the same, and each embedding is decoded into its clip; the reconstruction
                         error is part of the loss
    reconstruction       an autoencoder, trained by reconstruction alone, and a predictor in its
                         space
    state network        predicts what is observed in the last frame of a clip (figures/state.py)
    inverse model        clip now and goal clip to forces: no world model, no search
    interaction network  predicts the state, body by body, with masses given: what these sequences
                         can teach one that knows what bodies are. Left out among distractors, where
                         it would be told what is a body and what is not

All learn from the sequences of the run, in its batches, with its optimiser and schedule, for
--epochs. Each has as many parameters as the JEPA, within 10 %; the interaction network has fewer,
and the decoder of "JEPA and decoder" comes on top.
Of each, the JEPA included, one number is tuned in each world, with three trials of --trial-epochs:
goals reached on validation worlds in closed loop. The first value stays unless another one is
better beyond its 95 % interval. What came before is not equal: the JEPA's other settings were
chosen for it in the making of this project, and rivals take them over.

Worlds: "plain"; "noise" and "second" have as many numbers again beside those of the bodies, which
no force moves: independent noise in each frame, or a second world that nobody pushes. The goal is
given for all of them: what the second world shows at the goal's time, or other noise. A plan is
judged in the space that is predicted, or, by those that predict states, by all places that are
observed. Nobody is told what is a distractor.

All plan in closed loop, by the same search from no force, with the budget of the run, and with the
same noise. With distractors, and for the inverse model, the nearest horizon alone is tried.

Trainings lie in RUN/baselines. Start the command in several terminals to share the work. A stopped
command goes on where it was. --gather trains nothing and publishes what is measured.

rows, one per rival, world and horizon: success (worst body within 0.1), strict (0.05),
mean_body; success on goals with a contact on the hidden way, without, and where the contact
matters; gain: success minus that of the JEPA in the same world on the same goals, paired. "zero"
and "fly and fold" (exact flight and walls, blind to contacts, nothing learnt) are those of
planning.py. models, one per rival and world: parameters; what is tuned; places: error of places
that a linear map reads from predictions, clip by clip up to a macro-event, in half boxes, and at
its end with and without a contact; pass_through: share of pairs of films in which bodies that
fly through each other surprise more than a lawful contact does; kept: R2 with which a linear map
reads the distractors from the embedding of a clip. baselines.npz has errors/NAME/FRAMES (seeds,
goals), the distance of the worst body.
"""
import sys

from lib import baselines_list as lists
from lib import baselines_runs as runs
from lib import cli, drawing, goals, stats, table_rows
from lib.baselines_judge import Judge, mean_kept
from lib.baselines_worlds import WORLDS
import hjepa
import torch

REFERENCES = ("zero", "fly and fold")           # they learn nothing
SIDE_BY_SIDE = 25                               # goals of a reference at once, as in planning.py
TITLES = {"plain": "plain", "noise": "with 12 numbers of noise",
          "second": "with a second world that nobody pushes"}


# ---- rows

def reference_errors(name, config, drawn, device):
    """-> final errors (1, goals, bodies) of one of REFERENCES."""
    world = hjepa.build_world(config)
    clips = drawn["forces"].shape[1]

    def solve(run, pick, meter):
        gens = [hjepa.generator(config.test_seed, name, i) for i in pick.tolist()]
        clip, goal = drawn["clip"][pick].to(device), drawn["goal"][pick].to(device)
        states, _ = hjepa.run_planner(name, None, world, config, clip, goal, gens, clips)
        return states
    run = cli.Run(torch.nn.Module(), config, 0)
    return goals.try_goals(solve, [run], drawn, name, SIDE_BY_SIDE).errors


def make_row(rival, kind, frames, errors, of_jepa, parts):
    """Final errors (seeds, goals, bodies), those of the JEPA or None, goals.strata -> a row."""
    row = {"rival": rival, "world": kind, "frames": frames, "seeds": len(errors)}
    reached = goals.outcomes(errors)
    for key in ("success", "strict", "mean_body"):
        table_rows.share(row, key, reached[key])
    row.pop("strict_ci")                        # the JSON stays small
    for part, who in parts.items():
        if who.any():
            row[part] = round(reached["success"][:, who].mean().item(), 5)
    row["error"] = errors.mean().item()
    if of_jepa is not None and rival != "JEPA":
        found = goals.differences(errors, of_jepa, ("success",))
        row["gain"], row["gain_ci"] = found["success"], found["success_ci"]
    return table_rows.tidy(row)


def errors_of(notes, frames, seeds):
    """measured.json of each seed -> final errors (seeds, goals, bodies), or None if one of them has
    none at this horizon."""
    found = [notes[seed]["errors"].get(str(frames)) for seed in seeds]
    return None if None in found or not found else torch.tensor(found)


def plan_rows(found, frames, parts):
    """name -> notes by seed -> rows at a horizon."""
    rows = []
    for name, notes in found.items():
        errors = errors_of(notes, frames, list(notes))
        if errors is None:
            continue
        rival, kind = lists.parts_of(name)
        jepa = found.get(lists.name_of("JEPA", kind), {})
        common = [seed for seed in notes if seed in jepa]
        of_jepa = errors_of(jepa, frames, common)
        mine = errors
        if of_jepa is not None and len(common) < len(notes):
            mine = errors_of(notes, frames, common)
        rows.append(make_row(rival, kind, frames, mine, of_jepa, parts))
    return rows


def model_row(name, notes, how_tuned, clips, clip_frames, kept=None):
    """Notes by seed -> a row of what is not asked of a horizon. kept: see the top of the file."""
    rival, kind = lists.parts_of(name)
    row = {"rival": rival, "world": kind, "seeds": len(notes), "tuned": how_tuned}
    broken = [note["broken"] for note in notes.values() if note["broken"]]
    if broken:
        return {**row, "broken": broken[0]}

    def mean(column):
        values = [note["columns"].get(column) for note in notes.values()]
        return None if None in values else float(f"{sum(values) / len(values):.4g}")
    row["parameters"] = next(iter(notes.values()))["columns"]["parameters"]
    row["sequences_per_second"] = mean("sequences per second")
    places = [mean(f"place error {(k + 1) * clip_frames}") for k in range(clips)]
    if places[0] is not None:
        row.update(places=places, places_contact=mean("place error contact"),
                   places_no_contact=mean("place error no contact"),
                   pass_through=mean("pass-through"))
    if kept is not None:
        row["kept"] = float(f"{kept:.4g}")
    return row


def print_rows(rows):
    """A line per row, the best of each world and horizon first."""
    def order(row):
        return row["frames"], WORLDS.index(row["world"]), -row["success"]
    for row in sorted(rows, key=order):
        gain = f", {row['gain']:+6.1%} against the JEPA" if "gain" in row else ""
        print(f"{row['frames']} frames, {row['world']:>6}, {row['rival']:>19}: worst body within "
              f"0.1 {row['success']:6.1%}, mean body {row['mean_body']:6.1%}{gain}")


# ---- the picture

def draw_success(ax, rows, names, horizons):
    """Bars of one world: success of each rival at each horizon; x and +: with and without a
    contact."""
    nothing = {"success": None}
    groups = {}
    for i, frames in enumerate(horizons):
        of = {row["rival"]: row for row in rows if row["frames"] == frames}
        groups[f"{frames} frames"] = [of.get(name, nothing) for name in names]
        shift = 0.8 * ((i + 0.5) / len(horizons) - 0.5)
        for place, name in enumerate(names):
            for part, marker in (("contact", "x"), ("no contact", "+")):
                if part in of.get(name, ()):
                    ax.plot(place + shift, of[name][part], marker, color="0.1", ms=4)
    drawing.bars(ax, groups, names, "success")
    ax.tick_params(axis="x", labelrotation=30)
    ax.set(ylim=(0, 1.02), ylabel="goals reached by the worst body")
    ax.legend(fontsize=7)


def draw_places(ax, models, clip_frames):
    """Lines of one world: errors of places against horizon."""
    for row, colour in zip(models, hjepa.COLOURS):
        if "places" in row:
            frames = [(k + 1) * clip_frames for k in range(len(row["places"]))]
            ax.plot(frames, row["places"], "o-", color=colour, label=row["rival"])
    ax.set(xlabel="frames ahead", ylabel="error of decoded places, half boxes", yscale="log")
    ax.grid(color="0.9")
    if any("places" in row for row in models):
        ax.legend(fontsize=7)


def draw(rows, models, horizons, clip_frames):
    """-> figure: a column per world, success above, places below."""
    kinds = [kind for kind in WORLDS if any(row["world"] == kind for row in models)]
    figure, axes = hjepa.new_figure(2, len(kinds), 6.5 * len(kinds), 9)
    for kind, (top, bottom) in zip(kinds, axes.T):
        mine = [row for row in rows if row["world"] == kind]
        names = list(dict.fromkeys(row["rival"] for row in mine))
        if names:
            draw_success(top, mine, names, horizons)
        top.set_title(TITLES[kind])
        draw_places(bottom, [row for row in models if row["world"] == kind], clip_frames)
    figure.supxlabel("x: goals with a contact on the hidden way, +: without", fontsize=8)
    return figure


# ---- the study

def check(args, config):
    """Refusal of what cannot be studied."""
    event = goals.event_frames(config)
    for frames in args.frames:
        if frames % config.clip_frames or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {config.clip_frames}, "
                                f"{event} or more")
    for flag in ("frames", "seeds", "worlds"):
        values = getattr(args, flag)
        if len(set(values)) < len(values):
            raise hjepa.Refusal(f"--{flag} has a value twice: give each once")
    for seed in args.seeds:
        if not 0 <= seed <= 999_999:
            raise hjepa.Refusal(f"--seeds {seed}: give 0 to 999999")
    if config.shared:
        raise hjepa.Refusal("the run has one encoder for context and target: the rivals are "
                            "compared with a JEPA that has two")


def open_study(args, run):
    """-> runs.Study, the names of its trainings, what they are measured on."""
    saved = hjepa.read_checkpoint(args.run[0])
    base = hjepa.Config(**{**saved["config"], "precision": args.precision,
                           "device": args.device.type})
    study = runs.Study(base, runs.home_of(args.run[0]), args.device, args.trial_epochs,
                       run.config.seed, args.trial_goals)
    rivals = [name for name in lists.RIVALS if not args.only or name in ("JEPA", *args.only)]
    names = lists.names_of(rivals, args.worlds)
    return study, names, {"goals": args.goals, "n": args.n, "pairs": args.pairs,
                          "frames": args.frames}


def gather(study, names, args, sizes):
    """-> Results: what is measured."""
    measured = runs.measured(study, names, [args.epochs], args.seeds, sizes)
    found = {name: notes for (name, _), notes in measured.items()}
    if not found:
        raise hjepa.Refusal("nothing is measured yet: leave --gather out, or wait for those at "
                            "work (see --table)")
    rows, arrays, parts_n = [], {}, {}
    for frames in args.frames:
        drawn = goals.goals_of(study.base, args.goals, frames=frames)
        parts = goals.strata(drawn)
        parts_n[frames] = {part: int(who.sum()) for part, who in parts.items()}
        for name in REFERENCES if "plain" in args.worlds else ():
            errors = reference_errors(name, study.base, drawn, args.device)
            rows.append(make_row(name, "plain", frames, errors, None, parts))
        here = {name: notes for name, notes in found.items()
                if frames in runs.horizons_of(name, study.base, args.frames)}
        rows += plan_rows(here, frames, parts)
        arrays[f"contact/{frames}"] = drawn["contact"].numpy()
        for name, notes in here.items():
            errors = errors_of(notes, frames, list(notes))
            if errors is not None:
                arrays[f"errors/{name}/{frames}"] = errors.amax(-1).numpy()
    config = study.base
    models = []
    for name, notes in found.items():
        kept = None
        if not any(note["broken"] for note in notes.values()):
            kept = mean_kept(study, name, args.epochs, list(notes), args.n)
        models.append(model_row(name, notes, runs.how_tuned(study, name), config.event_clips,
                                config.clip_frames, kept))
    print_rows(rows)
    missing = [name for name in names if name not in found]
    budget = {key: getattr(config, key) for key in ("samples", "iterations", "elites", "init_std")}
    summary = {"trained_epochs": args.epochs, "training_seeds": args.seeds, "sizes": sizes,
               "goals_of_a_part": parts_n, "budget": budget, "trial_epochs": args.trial_epochs,
               "trial_goals": args.trial_goals, "goals_side_by_side": runs.TOGETHER,
               "intervals": stats.interval_note(args.seeds), "missing": missing, "rows": rows,
               "models": models}
    return cli.Results(args.goals, summary, arrays,
                       lambda: draw(rows, models, args.frames, config.clip_frames))


def make_parser():
    parser = cli.make_parser("baselines", __doc__, trains=True, goals=(200, "test goals"),
                             n=(4096, "test worlds in which places are read"),
                             pairs=(200, "pairs of films"), epochs=(9, "epochs of a training"),
                             trial_epochs=(3, "epochs of a trial"),
                             trial_goals=(100, "validation goals of a trial"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="how far ahead goals are (one, two and three macro-events)")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (that of the run)")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS),
                        help="worlds (all three)")
    parser.add_argument("--only", nargs="+", choices=lists.RIVALS, metavar="NAME",
                        help="rivals to train and measure; the JEPA always is (default: all)")
    parser.add_argument("--table", action="store_true",
                        help="print what is done and what is missing, and do nothing")
    parser.add_argument("--gather", action="store_true",
                        help="train nothing; publish what is measured")
    return parser


def main(argv=None):
    """-> exit code."""
    parser = make_parser()

    def work():
        args, opened = cli.parse(parser, argv)
        run = cli.one_run(opened)
        event = goals.event_frames(run.config)
        args.frames = sorted(args.frames or [event, 2 * event, 3 * event])
        args.seeds = args.seeds or [run.config.seed]
        check(args, run.config)
        study, names, sizes = open_study(args, run)
        if args.table:
            print("\n".join(runs.table(study, names, [args.epochs], args.seeds, sizes)))
            return
        if not args.gather:
            missing = runs.work(study, names, [args.epochs], args.seeds, sizes,
                                Judge(study, sizes))
            for training in missing:
                print(f"another process is at {training.name}")
        cli.publish(args, opened, gather(study, names, args, sizes))
    return cli.exit_code(parser.prog, work)


if __name__ == "__main__":
    sys.exit(main())
