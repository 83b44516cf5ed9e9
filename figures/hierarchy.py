"""Do two levels plan farther than one, or with less?

    python figures/hierarchy.py --run figures/weights/hjepa.pt     # 25, 50 and 75 frames
    python figures/hierarchy.py --run runs/quick --frames 75 --goals 60 --validation
    python figures/hierarchy.py --run runs/paper --plain           # without the guess

The goals are those of planning.py. Every planner chooses one force per clip, sees the outcome and
plans again; the state at the last frame counts. Each is tried with the same settings of CEM, from
few plans to many, so that success can be read against what it cost.

    flat          P1 rolled out to the goal
    macro alone   P2, jump after jump with a bridge between; plans again every 25 frames
    mixed         short steps up to the next multiple of 25 frames before the goal, lift, jumps
    top-down      every 25 frames jumps are planned to the goal; where the first of them lands is
                  what the short level aims at until then, planning again every clip
    joint         as mixed, but both levels' plans are improved in turn: the jumps from where the
                  short steps lead, then the short steps with the jumps fixed behind them
    oracle        flat, in the true simulator with true positions

Mixed and joint are flat for the last five clips, top-down for the last nine: at 25 frames all three
are flat, and not tried.

If the model has a first guess, all planners but the oracle use it alike: within the last 25 frames
a search starts from the guess, with a small deviation, if that costs less than the rest of the last
plan. `from_guess` in the JSON says so. --plain, or a model without a guess: the paper's search, from
no force. A sub-goal of top-down has no guess: it is no target embedding.

A call is one sample that a predictor evaluates, whichever: P2 is the larger one, which the seconds
show; the first guess calls none. Sixteen goals are tried side by side, each with its own generator:
seconds per goal are those of a batch, and other batches would round otherwise.

An interrupted study goes on: its rows are kept in OUT/hierarchy.part.json until it is finished.

rows: a planner, a horizon, a setting. pairs: a row of a two-level planner against flat on the same
goals, by the mean body within 0.1; names with `worst_` in front are by the worst body. Flat's share
between two of its settings is taken as linear in the logarithm of what was spent. `gain_calls`,
`gain_seconds`: its share minus flat's at as many calls, as many seconds. `saving`: the calls that
flat needs for the same share over its own; 0 in an interval says "as cheap as flat's cheapest
setting, or cheaper". Absent: outside of flat's settings. All with paired intervals. hierarchy.npz
holds every final error.
"""
import sys

from lib import cli, goals, levels, stats
import hjepa
import numpy as np

SETTINGS = ((12, 3), (12, 6), (25, 6), (50, 6))       # of CEM: samples, iterations
TOGETHER = 16                                         # goals side by side
PLANNERS = (*levels.PLANS, "oracle")
TWO_LEVELS = ("mixed", "top-down", "joint")
MEASURES = {"mean_body": "", "success": "worst_"}     # of success, and how a pair names it
PARTS = {"contact_mean_body": ("contact", "mean_body"),
         "no_contact_mean_body": ("no contact", "mean_body"),
         "contact_success": ("contact", "success"), "matters_success": ("matters", "success")}
COLOURS = {"flat": "#2166ac", "macro alone": "#999999", "mixed": "#d6604d", "top-down": "#b2182b",
           "joint": "#762a83", "oracle": "#1b7837"}
PANELS = (("mean_body", "predictor_calls"), ("success", "predictor_calls"), ("success", "seconds"))
TITLES = {"mean_body": "mean body", "success": "worst body"}


# ---- one row: a planner, a horizon, a setting

def budget(config, samples, iterations):
    """What `cem` may spend. A tenth of the samples are elites, 3 at least, the run's at most."""
    elites = min(config.elites, max(3, samples // 10))
    return {"samples": samples, "iterations": iterations, "elites": elites}


def solve(name, run, world, drawn, pick, setting, from_guess, meter=None, device="cpu"):
    """Planner `name` on the goals `pick`, side by side -> the last clip (B, T, bodies, 4)."""
    config = run.config
    clips = drawn["forces"].shape[1]
    spend = budget(config, *setting)
    gens = [hjepa.generator(config.test_seed, f"hierarchy, {name}", i) for i in pick.tolist()]
    clip = drawn["clip"][pick].to(device)
    goal = drawn["goal"][pick].to(device)
    if name == "oracle":
        cost_to_go = levels.oracle_cost(world, goal, config.clip_frames, meter)
        states, _ = hjepa.replan(world, clip, clips, cost_to_go, gens, None, config.init_std,
                                 config.clip_frames, **spend)
        return states[:, -config.clip_frames:]
    planners = levels.Levels(run, world, goal, gens, spend, from_guess)
    return levels.replan_levels(name, planners, clip, clips, config.clip_frames)


def try_setting(name, runs, world, drawn, setting, from_guess, device):
    """setting: samples, iterations -> goals.Tried."""
    def solve_setting(run, pick, meter):
        return solve(name, run, world, drawn, pick, setting, from_guess, meter, device)
    label = f"{drawn['forces'].shape[1]} clips, {name} {setting[0]} x {setting[1]}"
    return goals.try_goals(solve_setting, runs[:1] if name == "oracle" else runs, drawn, label,
                           TOGETHER)


def make_row(name, frames, setting, tried, parts):
    """What was tried, goals.strata -> a row, its errors (runs, n, bodies) included."""
    outcomes = goals.outcomes(tried.errors)
    row = {"planner": name, "frames": frames, "samples": setting[0], "iterations": setting[1],
           "predictor_calls": tried.calls, "seconds": tried.seconds}
    for key in MEASURES:
        row[key] = outcomes[key].mean().item()
        row[key + "_ci"] = [round(bound, 4) for bound in stats.interval(outcomes[key])]
    for key, (part, measure) in PARTS.items():
        who = parts[part]
        row[key] = round(outcomes[measure][:, who].mean().item(), 4) if who.any() else None
    return {**row, "errors": tried.errors.tolist()}


# ---- two levels against flat

def reached(row, measure):
    """-> bools (runs, n): within 0.1, by one of MEASURES."""
    return goals.outcomes(row["errors"])[measure]


def calls_saved(row, flat, measure):
    """Calls that flat needs for the row's success, over the row's own -> ratio, [low, high].

    flat: its rows, the cheapest first. Between two of them success is taken as linear in the
    logarithm of the calls. None if no flat row reaches as many goals, or each does.
    """
    calls = np.log([rival["predictor_calls"] for rival in flat])

    def ratio(mine, theirs):                    # 0 where flat's cheapest setting is good enough
        needed = np.interp(mine, np.maximum.accumulate(theirs), calls, left=-np.inf)
        return np.exp(needed) / row["predictor_calls"]
    mine = reached(row, measure)
    theirs = [reached(rival, measure) for rival in flat]
    shares = [outcome.mean() for outcome in theirs]
    if not flat or not shares[0] <= mine.mean() <= max(shares):
        return None
    my_draws = stats.resampled_means(mine)
    their_draws = np.transpose([stats.resampled_means(outcome) for outcome in theirs])
    ratios = [ratio(*pair) for pair in zip(my_draws, their_draws)]
    return ratio(mine.mean(), shares).item(), stats.percentiles(ratios)


def flat_at(row, flat, key, measure):
    """What flat reaches where it spends as much of `key` as the row -> floats (runs, n).

    Between two of its settings it is taken as linear in the logarithm. None outside of them.
    """
    flat = sorted(flat, key=lambda rival: rival[key])
    spent = np.log([rival[key] for rival in flat])
    mine = np.log(row[key])
    if len(flat) < 2 or not spent[0] <= mine <= spent[-1]:
        return None
    k = max(1, np.searchsorted(spent, mine))
    share = (mine - spent[k - 1]) / (spent[k] - spent[k - 1])
    return (1 - share) * reached(flat[k - 1], measure) + share * reached(flat[k], measure)


def gains(row, flat, measure):
    """A row of two levels, the rows of flat -> dict: gains at equal calls and seconds, saving."""
    prefix = MEASURES[measure]
    found = {}
    for name, key in (("gain_calls", "predictor_calls"), ("gain_seconds", "seconds")):
        rival = flat_at(row, flat, key, measure)
        if rival is not None:
            found[prefix + name] = stats.paired_interval(reached(row, measure), rival)
    saved = calls_saved(row, flat, measure)
    if saved is not None:
        found[prefix + "saving"] = saved
    pair = {}
    for name, (value, interval) in found.items():
        pair[name] = float(f"{value:.4g}")
        pair[name + "_ci"] = [float(f"{bound:.4g}") for bound in interval]
    return pair


def compare(rows, frames):
    """What two levels gain over flat, for one horizon -> pairs."""
    rows = [row for row in rows if row["frames"] == frames]
    flat = sorted((row for row in rows if row["planner"] == "flat"),
                  key=lambda row: row["predictor_calls"])
    pairs = []
    for row in rows:
        if row["planner"] not in TWO_LEVELS:
            continue
        pair = {key: row[key] for key in ("frames", "planner", "samples", "iterations")}
        for measure in MEASURES:
            pair.update(gains(row, flat, measure))
        pairs.append(pair)
    return pairs


# ---- the picture

def draw_curves(ax, rows, measure, key):
    """Success against what it cost: a line per planner, with its interval."""
    for name in PLANNERS:
        mine = [row for row in rows if row["planner"] == name]
        if not mine or (name == "oracle" and key == "predictor_calls"):
            continue                                          # the oracle calls no predictor
        x = [row[key] for row in mine]
        low, high = zip(*(row[measure + "_ci"] for row in mine))
        ax.plot(x, [row[measure] for row in mine], "o-", color=COLOURS[name], label=name, ms=4)
        ax.fill_between(x, low, high, color=COLOURS[name], alpha=0.12, lw=0)
    ax.set(xscale="log", ylim=(-0.02, 1.02), xlabel=f"{key.replace('_', ' ')} per goal",
           ylabel=f"{TITLES[measure]} within 0.1")
    ax.grid(color="0.9")
    ax.xaxis.set_minor_formatter("")                          # its labels would overlap


def draw(rows, horizons, n):
    """Success by both measures against predictor calls, then against seconds; a column per
    horizon."""
    figure, axes = hjepa.new_figure(len(PANELS), len(horizons), 5 * len(horizons),
                                    4 * len(PANELS))
    for column, frames in zip(axes.T, horizons):
        near = [row for row in rows if row["frames"] == frames]
        for ax, (measure, key) in zip(column, PANELS):
            draw_curves(ax, near, measure, key)
        column[0].set_title(f"{frames} frames: share of {n} goals")
    for ax in axes[:, -1]:
        ax.legend(fontsize=8, loc="lower right")
    return figure


# ---- the study

def check(args, event):
    """-> horizons in frames, settings. Refusal of what cannot be tried."""
    horizons = sorted(set(args.frames or [event, 2 * event, 3 * event]))
    settings = [tuple(pair) for pair in args.setting or SETTINGS]
    for frames in horizons:
        if frames % event or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {event}")
    for samples, iterations in settings:
        if samples < 3 or iterations < 1:
            raise hjepa.Refusal(f"--setting {samples} {iterations}: give 3 samples or more, and 1 "
                                "iteration or more")
    return horizons, settings


def measure(args, runs):
    config = runs[0].config
    world = hjepa.build_world(config)
    event = goals.event_frames(config)
    horizons, settings = check(args, event)
    split = "validation" if args.validation else "test"
    from_guess = hasattr(runs[0].model, "guess") and not args.plain
    kept = cli.KeptRows(args, {"weights": cli.fingerprint([run.model for run in runs]),
                               "n": args.goals, "goals_of": split, "from_guess": from_guess})
    rows, pairs, arrays = [], [], {}
    for frames in horizons:
        drawn = goals.goals_of(config, args.goals, split, frames)
        for part in ("contact", "matters"):
            arrays[f"{part}/{frames}"] = drawn[part].numpy()
        trials = [(name, setting) for name in args.only or PLANNERS for setting in settings
                  if frames > event or name not in TWO_LEVELS]
        for name, setting in trials:
            row = kept.find(planner=name, frames=frames, samples=setting[0], iterations=setting[1])
            if row is None:
                tried = try_setting(name, runs, world, drawn, setting, from_guess, args.device)
                row = make_row(name, frames, setting, tried, goals.strata(drawn))
                kept.add(row)
                print("{frames} frames, {planner:>11} {samples:3d} x {iterations}: mean body "
                      "within 0.1 {mean_body:6.1%}, worst body {success:6.1%}, "
                      "{predictor_calls:7.0f} calls, {seconds:.2f} s".format(**row), flush=True)
            rows.append(row)
            arrays["errors/{planner}/{frames}/{samples} x {iterations}".format(**row)] = np.array(
                row["errors"], dtype=np.float32)
        pairs += compare(rows, frames)
    table = [{key: value for key, value in row.items() if key != "errors"} for row in rows]
    search = {key: getattr(config, key) for key in ("init_std", "guess_std")}
    summary = {"goals_of": split, "from_guess": from_guess, "search": search, "settings": settings,
               "goals_side_by_side": TOGETHER, "rows": table, "pairs": pairs}
    return cli.Results(args.goals, summary, arrays, lambda: draw(rows, horizons, args.goals))


def make_parser():
    parser = cli.make_parser("hierarchy", __doc__, goals=(200, "goals per horizon"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    settings = ", ".join(f"{samples} x {iterations}" for samples, iterations in SETTINGS)
    parser.add_argument("--setting", type=int, nargs=2, action="append",
                        metavar=("SAMPLES", "ITERATIONS"),
                        help=f"of CEM; repeat it (default: {settings})")
    parser.add_argument("--only", nargs="+", choices=PLANNERS, metavar="PLANNER",
                        help="planners to try (default: all)")
    parser.add_argument("--plain", action="store_true",
                        help="no first guess, whatever the model has")
    parser.add_argument("--validation", action="store_true",
                        help="goals of validation worlds: to choose on, not to report")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
