"""Which part carries it? The run is trained again without each.

    python figures/ablation.py --run runs/quick                    # nine more trainings like it
    python figures/ablation.py --run runs/quick --only "shared encoder" "positions only"
    python figures/ablation.py --run runs/s0 --run runs/s1         # training seeds

`full` is the run itself. A variant has the run's settings, seed, precision and number of epochs. It
is trained in RUN/without/NAME and continued from there if it was interrupted. A finished one is
only measured.

    no variance term       nothing forbids a constant embedding
    no covariance term     dimensions may repeat each other
    stopped targets        the prediction error does not reach the target encoder
    shared encoder         one encoder for context and target instead of two
    no symmetries          without random flips and axis swaps of the box
    one-step training      P1 learns from each clip to the next, never from its own predictions
    no macro level         the deep embedding, P2 and the maps take no part in the objective
    no maps                bridge and lift take no part: the paper's own objective
    positions only         velocity is not observed: a 0 stands in its place

rows: shares of goals reached on the same test goals (replanned: P1, replanned every clip; macro:
P2, one jump, open loop; mean and worst body within 0.1) and the difference from `full` with its
paired interval; then, on test worlds, R2 of position and velocity from the shallow embedding
(ridge, strength chosen on validation worlds), the smallest deviation of any dimension and the
smallest effective rank of the embeddings. Without the macro level there is no macro plan, and only
the shallow embeddings are gauged. The NPZ has the mean distance from each goal.
"""
import collections
import functools
import sys

from lib import cli, drawing, goals, probes, worlds
import hjepa
import torch

PLANS = {"replanned": "short replanned", "macro": "macro open loop"}
SHARES = ("mean_body", "success")
PROBED = ("position", "velocity")


def stopped_targets(e):
    """prediction_errors without a gradient to the target encoder."""
    stopped = {"t1": e["t1"].detach(), "t2": e["t2"].detach()}
    return hjepa.prediction_errors({**e, **stopped})


def one_step(model, obs, forces):
    """embeddings, but P1 is always told the clip before, as the context encoder sees it."""
    e = hjepa.embeddings(model, obs, forces)
    before = obs[:, :-1].transpose(0, 1)                                  # (K - 1, B, T, F)
    tokens = model.context.tokens(before.flatten(0, 1))
    z1 = model.context.shallow(tokens)
    p1 = model.short(z1, forces.transpose(0, 1).flatten(0, 1))
    e["p1"] = p1.unflatten(0, before.shape[:2])
    return e


def no_macro_level(model, obs, forces):
    """embeddings, but nothing at the macro level carries a gradient. Its terms are in the log, and
    in the composite of the log, but they train nothing."""
    e = hjepa.embeddings(model, obs, forces)
    for name in ("z2", "t2", "p2", "t2_before"):
        e[name] = e[name].detach()
    return e


def without_velocity(obs):
    """obs (..., 4 bodies) -> the same, with 0 for each velocity."""
    states = obs.unflatten(-1, (-1, 4))
    return (states * states.new_tensor([1.0, 1.0, 0.0, 0.0])).flatten(-2)


def positions_only(model, obs, forces, weights, shares=None, **functions):
    """objective, of clips without velocity. (hjepa.train itself still observes it, so the std_min,
    std_avg and rank in the log of this variant are of no use.)"""
    return hjepa.objective(model, without_velocity(obs), forces, weights, shares, **functions)


class PositionsOnly(hjepa.World):
    """Velocity is not observed."""

    def observe(self, state):
        return without_velocity(super().observe(state))


# What a variant changes: settings of the config, the objective, the world in which it is measured.
Variant = collections.namedtuple("Variant", "settings objective world",
                                 defaults=[{}, hjepa.objective, hjepa.World])

VARIANTS = {
    "full": Variant(),
    "no variance term": Variant({"std_weight": 0.0}),
    "no covariance term": Variant({"cov_weight": 0.0}),
    "stopped targets": Variant(
        objective=functools.partial(hjepa.objective, predict=stopped_targets)),
    "shared encoder": Variant({"shared": True}),
    "no symmetries": Variant({"symmetries": False}),
    "one-step training": Variant(
        objective=functools.partial(hjepa.objective, embed=one_step)),
    "no macro level": Variant(
        {"map_weight": 0.0}, functools.partial(hjepa.objective, embed=no_macro_level)),
    "no maps": Variant({"map_weight": 0.0}),
    "positions only": Variant(objective=positions_only, world=PositionsOnly),
}


def variant_config(name, saved, device):
    """The checkpoint of the full run -> Config of a variant."""
    settings = {**saved["config"], **VARIANTS[name].settings, "epochs": saved["epoch"],
                "precision": saved["precision"], "device": device.type, "validate_every": 0}
    return hjepa.Config(**settings)


def trained(path, name, device):
    """Run directory or checkpoint file of the full run, variant -> its Run, trained as far."""
    if name != "full":
        config = variant_config(name, hjepa.read_checkpoint(path), device)
        home = path if path.is_dir() else path.parent
        path = home / "without" / name.replace(" ", "-")
        print(f"{name}:", flush=True)
        hjepa.train(config, path, objective=VARIANTS[name].objective)
    model, config = hjepa.load(path, device)
    return cli.Run(model, config, hjepa.read_checkpoint(path)["epoch"])


def has_macro_level(name):
    """Can the variant plan at the macro level?"""
    return name != "no macro level"


def probe_and_gauge(name, run, world, args):
    """-> dict: R2 of what is read from z1 of test worlds; the smallest deviation and rank."""
    config = run.config
    z1, targets = [], []
    for seed, n in ((config.seed, 2 * args.n), (config.validation_seed, args.n),
                    (config.test_seed, args.n)):
        states, forces, _ = hjepa.draw_sequences(world, config, n, seed, "probe", args.device)
        z = hjepa.latents(run.model, world.observe(states), forces)
        z1.append(z["z1"])
        targets.append(hjepa.probe_targets(states[:, 0, -1], config.masses))
    found = {}
    for what in PROBED:
        training, validation, test = ((x, y[what]) for x, y in zip(z1, targets))
        weight, offset = hjepa.ridge(training, validation)
        guess = test[0].double() @ weight + offset
        found[f"{what} r2"] = hjepa.r2(guess, test[1].double()).mean().item()
    sets = [z["z1"], z["t1"]]                                             # of the test worlds
    if has_macro_level(name):
        sets += [z["z2"], z["t2"]]
    found.update(probes.worst_gauges(sets))
    return found


def plan_errors(name, run, world, test_goals, device):
    """-> dict plan -> final errors (goals, bodies)."""
    errors = {}
    for plan, planner in PLANS.items():
        if plan == "macro" and not has_macro_level(name):
            continue
        errors[plan], *_ = hjepa.try_goals(planner, run.model, world, run.config, test_goals,
                                           run.config.test_seed, device)
    return errors


def measure_variant(name, args, test_goals):
    """Trains what is not trained yet -> errors: dict plan -> (runs, goals, bodies); and what is in
    the embeddings, the mean over runs."""
    errors = collections.defaultdict(list)
    found = []
    for path in args.run:
        run = trained(path, name, args.device)
        world = worlds.same_box(VARIANTS[name].world, run.config)
        for plan, values in plan_errors(name, run, world, test_goals, args.device).items():
            errors[plan].append(values)
        found.append(probe_and_gauge(name, run, world, args))
    mean = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
    return {plan: torch.stack(values) for plan, values in errors.items()}, mean


def make_row(name, errors, found, full):
    """Errors of the variant and of the full run, what is in the embeddings -> row."""
    row = {"variant": name}
    for plan, values in errors.items():
        summary = goals.summary(values)
        for share in SHARES:
            row[f"{plan} {share}"] = summary[share]
            row[f"{plan} {share}_ci"] = summary[share + "_ci"]
    row.update(found)
    for plan, values in errors.items():
        gain = goals.differences(values, full[plan], SHARES)
        for share in SHARES:
            row[f"{plan} {share} gain"] = gain[share]
            row[f"{plan} {share} gain_ci"] = gain[share + "_ci"]
    return row


def print_row(row):
    """The main figures of a variant in one line."""
    macro = f"{row['macro mean_body']:6.1%}" if "macro mean_body" in row else "  none"
    print(f"{row['variant']:>20}: replanned, mean body {row['replanned mean_body']:6.1%}, worst "
          f"body {row['replanned success']:6.1%}; macro {macro}; velocity R2 "
          f"{row['velocity r2']:.4f}, rank {row['rank']:.0f}", flush=True)


def draw_panel(ax, rows, key, title):
    """A bar per variant; below 0 as 0."""
    for i, row in enumerate(rows):
        if key not in row:
            ax.annotate(" none", (0, i), va="center", fontsize=8)
            continue
        spread = drawing.whiskers(row, key) if key + "_ci" in row else None
        colour = hjepa.COLOURS[0] if row["variant"] == "full" else hjepa.COLOURS[1]
        ax.barh(i, max(row[key], 0), xerr=spread, ecolor="0.4", color=colour)
    ax.set_title(title, fontsize=10)
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    ax.invert_yaxis()


def draw(rows):
    """-> figure: goals reached, probes, rank."""
    figure, axes = hjepa.new_figure(1, 4, 18, 0.6 + 0.42 * len(rows))
    panels = (("replanned success", "replanned, worst body within 0.1"),
              ("macro mean_body", "macro jump, mean body within 0.1"),
              ("velocity r2", "velocity R2, shallow embedding (below 0: 0)"),
              ("rank", "smallest effective rank"))
    for ax, (key, title) in zip(axes[0], panels):
        draw_panel(ax, rows, key, title)
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    return figure


def measure(args, runs):
    """-> Results: a row per variant, the distances from each goal, the figure."""
    config = runs[0].config
    test_goals = goals.goals_of(config, args.goals)
    variants = args.only or [name for name in VARIANTS if name != "full"]
    arrays = {"contact": test_goals["contact"].numpy()}
    rows = []
    full = None
    for name in ["full", *variants]:
        errors, found = measure_variant(name, args, test_goals)
        full = full or errors
        rows.append(make_row(name, errors, found, full))
        print_row(rows[-1])
        for plan, values in errors.items():
            arrays[f"errors/{name}/{plan}"] = values.mean(-1).numpy()     # (runs, goals)
    content = {"frames": goals.event_frames(config), "goals": args.goals,
               "n_contact": int(arrays["contact"].sum()), "rows": rows}
    return cli.Results(args.n, content, arrays, lambda: draw(rows))


if __name__ == "__main__":
    parser = cli.make_parser("ablation", __doc__, n=(4096, "test worlds that are encoded"),
                             goals=(200, "test goals"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS)[1:], metavar="NAME",
                        help="variants to train and measure (default: all)")
    sys.exit(cli.main(parser, measure))
