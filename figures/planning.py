"""Does it reach goals, and because of the model?

    python figures/planning.py --run runs/paper                    # all rows, 25, 50 and 75 frames
    python figures/planning.py --run runs/quick --frames 25 --goals 40
    python figures/planning.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds
    python figures/planning.py --run runs/quick --only oracle "short replanned"
    python figures/planning.py --run runs/quick --frames 25 --only "macro open loop" --samples 500

A goal is what a test world shows some frames after a context clip, under hidden random forces. A
planner chooses forces. What counts is where the bodies are at the last frame. No planner may ask
whether it has arrived, and goals that zero force comes near are left out. Eleven rows:

    zero, random             no planner at all: how hard are the goals?
    shuffled goal            short replanned, sent to another goal and judged on its own
    untrained                short replanned with the start weights: is it the training?
    oracle                   search in the true simulator with true positions: is it the search?
    simulator + latent cost  the true simulator, distance of embeddings: is the cost at fault?
    model + decoded cost     the model, distance of decoded positions: are the dynamics at fault?
    macro open loop          P2 plans 25 frames once
    short open loop          P1 rolled out, plans once
    short replanned          P1 rolled out, replanned every clip
    both levels              macro jumps to the goal, short steps to where they begin; replanned

The goals 25 frames ahead, one macro-event, are those of `hjepa.py plan`. There the two levels need
not meet, so `both levels` begins at 50. `macro open loop` ends at 25 frames; `shuffled goal` and
`untrained` are answered there. All searches have the same budget. The noise of a search depends on
(test seed, planner, number of the goal) alone. planning.npz holds the goals and every final error,
so that the table can be computed again.
"""
import dataclasses
import sys

from lib import cli, drawing, goals, levels, probes, stats
import hjepa
import torch

NAMES = ("zero", "random", "shuffled goal", "untrained", "oracle", "simulator + latent cost",
         "model + decoded cost", "macro open loop", "short open loop", "short replanned",
         "both levels")
NOT_LATER = ("shuffled goal", "untrained", "macro open loop")     # tried one macro-event ahead only
PLAIN = ("zero", "random", "oracle")            # these do not look at the model: one run is enough
SIDE_BY_SIDE = {"oracle": 20, "simulator + latent cost": 20}      # goals at once, else one by one
PAIRS = [("short replanned", other) for other in NAMES[:9]] + [("both levels", "short replanned")]
GREY, GREEN, PURPLE, BLUE = "0.45", "#1b7837", "#762a83", "#2166ac"
COLOURS = {"oracle": GREEN, "simulator + latent cost": GREEN, "model + decoded cost": PURPLE,
           "macro open loop": BLUE, "short open loop": BLUE, "short replanned": BLUE,
           "both levels": BLUE}


# ---- one row of the table

def simulated_latent_cost(run, world, goal, meter):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: the true simulator, distance of embeddings."""
    config = run.config
    target = run.model.target

    def embed(clips, together):
        """Clips of one goal at a time: then a matrix product does not depend on other goals."""
        parts = [target.shallow(target.tokens(world.observe(part)))
                 for part in clips.split(together)]
        return torch.cat(parts)

    def reached(start, plans):
        clips = levels.simulate(world, start, plans, config.clip_frames, meter)
        return embed(clips, config.samples)

    def cost_to_go(clip, left):
        return hjepa.latent_cost(reached, clip[:, -1].flatten(1), embed(goal, 1))
    return cost_to_go


def decoded_cost(run, world, goal, decode):
    """Goal clips (B, T, bodies, 4) -> cost_to_go: the model, distance of decoded positions."""
    def make_cost(model, clip, goal):
        z1, _ = model.context(clip)
        t1, _ = model.target(goal)

        def reached(z, plans):
            return decode(model.rollout(z, plans)[:, -1])
        return hjepa.latent_cost(reached, z1, decode(t1))

    def cost_to_go(clip, left):
        return make_cost(run.model, world.observe(clip), world.observe(goal))
    return cost_to_go


def solve(name, run, world, drawn, pick, decode=None, meter=None, device="cpu"):
    """Row `name` on the goals `pick`, side by side -> states (B, frames, bodies, 4)."""
    config = run.config
    clips = drawn["forces"].shape[1]
    gens = [hjepa.generator(config.test_seed, name, i) for i in pick.tolist()]
    aim = (pick + 1) % len(drawn["goal"]) if name == "shuffled goal" else pick
    clip = drawn["clip"][pick].to(device)
    goal = drawn["goal"][aim].to(device)
    if name in ("shuffled goal", "untrained", *hjepa.PLANNERS):
        planner = name if name in hjepa.PLANNERS else "short replanned"
        states, _ = hjepa.run_planner(planner, run.model, world, config, clip, goal, gens, clips)
        return states
    if name == "oracle":
        cost_to_go = levels.oracle_cost(world, goal, config.clip_frames, meter)
    elif name == "simulator + latent cost":
        cost_to_go = simulated_latent_cost(run, world, goal, meter)
    elif name == "model + decoded cost":
        cost_to_go = decoded_cost(run, world, goal, decode)
    elif name == "both levels":
        cost_to_go = levels.mixed_cost(run, world, goal)
    states, _ = hjepa.replan(world, clip, clips, cost_to_go, gens, None, config.init_std,
                             config.clip_frames, samples=config.samples,
                             iterations=config.iterations, elites=config.elites)
    return states


def untrained(run, device):
    """-> the run with the weights that its training started from."""
    return run._replace(model=hjepa.build_model(run.config).to(device).eval())


def try_row(name, runs, world, drawn, decoders, device):
    """decoders: seed -> what fit_decoder gives -> goals.Tried."""
    if name in PLAIN:
        runs = runs[:1]
    if name == "untrained":
        runs = [untrained(run, device) for run in runs]

    def solve_row(run, pick, meter):
        decode = decoders.get(run.config.seed)
        return solve(name, run, world, drawn, pick, decode, meter, device)
    label = f"{drawn['forces'].shape[1]} clips, {name}"
    return goals.try_goals(solve_row, runs, drawn, label, SIDE_BY_SIDE.get(name, 1))


# ---- the table

def skill(errors, zero):
    """1 - error / error of zero force, both over the same resampled goals."""
    mine = stats.resampled_means(errors.mean(-1))
    idle = stats.resampled_means(zero.mean(-1))
    return {"skill": 1 - (errors.mean() / zero.mean()).item(),
            "skill_ci": stats.percentiles(1 - mine / idle)}


def short_summary(errors):
    """-> what the table says of the goals with, and without, a contact."""
    whole = goals.summary(errors)
    return {key: whole[key] for key in ("success", "success_ci", "strict", "mean_body")}


def make_row(name, frames, tried, zero, contact):
    """What was tried, errors of zero force on the same goals (1, n, bodies) -> a row."""
    errors = tried.errors
    row = {"planner": name, "frames": frames, "n": errors.shape[1], **goals.summary(errors),
           **skill(errors, zero), **goals.by_contact(errors, contact, short_summary),
           "predictor_calls": tried.calls, "seconds": tried.seconds}
    if len(errors) > 1:
        reached = goals.outcomes(errors)
        for key in ("mean_body", "success"):
            row[key + "_runs"] = reached[key].mean(1).tolist()
    return row


def compare(errors, frames):
    """errors: planner -> (runs, n, bodies) -> rows: a minus b on the same goals."""
    return [{"frames": frames, "a": a, "b": b,
             **goals.differences(errors[a], errors[b], ("success", "error"))}
            for a, b in PAIRS if a in errors and b in errors]


def not_tried(frames, event):
    """-> the rows that a horizon has not."""
    return ("both levels",) if frames == event else NOT_LATER


def make_arrays(drawn, frames, errors):
    """-> entries of planning.npz: the goals of a horizon, each planner's final errors. A state is
    x, y, vx, vy of each body, at the last frame of the clip."""
    arrays = {f"goals/{frames}/start": drawn["clip"][:, -1].flatten(1).numpy(),
              f"goals/{frames}/goal": drawn["goal"][:, -1].flatten(1).numpy(),
              f"goals/{frames}/forces": drawn["forces"].flatten(1).numpy(),
              f"goals/{frames}/contact": drawn["contact"].numpy()}
    for name, error in errors.items():
        arrays[f"errors/{name}/{frames}"] = error.numpy()
    return arrays


# ---- the picture

def draw(rows, arrays, horizons, n):
    """Success above, mean error below; one column of panels per horizon."""
    figure, axes = hjepa.new_figure(2, len(horizons), 4 + 4 * len(horizons), 8.5)
    tried = {row["planner"] for row in rows}
    names = [name for name in NAMES if name in tried]
    for row in rows:
        name, frames = row["planner"], row["frames"]
        y = names.index(name)
        errors = arrays[f"errors/{name}/{frames}"]
        contact = arrays[f"goals/{frames}/contact"]
        for ax, key in zip(axes[:, horizons.index(frames)], ("success", "error")):
            drawing.dot(ax, row, key, y, COLOURS.get(name, GREY))
            for who, marker in ((contact, "x"), (~contact, "+")):
                if who.any():
                    x = goals.outcomes(errors[:, who])[key].mean()
                    ax.plot(x, y, marker, color="0.1", ms=5)
    for ax in axes.flat:
        ax.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)))
        ax.set_yticklabels(names if ax in axes[:, 0] else [])
        ax.grid(axis="x", color="0.9")
    for frames, (top, bottom) in zip(horizons, axes.T):
        top.set(xlim=(-0.03, 1.03), title=f"{frames} frames: share of {n} goals reached")
        bottom.set(xlim=(-0.02, None), title=f"{frames} frames: final error, mean over bodies")
    figure.supxlabel("reached: every body within 0.1    dot and band: all goals, 95 % interval    "
                     "x: contact on the hidden way, +: none\n"
                     "green: true simulator, blue: the model, purple: positions decoded from it, "
                     "grey: controls", fontsize=8)
    return figure


# ---- the study

def check(args, config):
    """-> horizons in frames, rows to try. Refusal of what cannot be tried."""
    event = goals.event_frames(config)
    horizons = sorted(set(args.frames or [event, 2 * event, 3 * event]))
    for frames in horizons:
        if frames % config.clip_frames or frames < event:
            raise hjepa.Refusal(f"--frames {frames}: give multiples of {config.clip_frames}, "
                                f"{event} or more")
    if args.goals < 2:
        raise hjepa.Refusal("--goals 1: a shuffled goal needs at least 2")
    for name in args.only or ():
        if all(name in not_tried(frames, event) for frames in horizons):
            raise hjepa.Refusal(f"--only {name!r}: not tried at these --frames (see --help)")
    names = [name for name in NAMES if not args.only or name in ("zero", *args.only)]
    return horizons, names


def measure(args, runs):
    if args.samples is not None:
        runs = [run._replace(config=dataclasses.replace(run.config, samples=args.samples))
                for run in runs]
    config = runs[0].config
    horizons, names = check(args, config)
    world = hjepa.build_world(config)
    decoders = {}
    if "model + decoded cost" in names:
        decoders = {run.config.seed: probes.fit_decoder(run, world, args.device) for run in runs}
    rows, pairs, manifest, arrays = [], [], [], {}
    for frames in horizons:
        drawn = goals.goals_of(config, args.goals, frames=frames)
        manifest.append({"frames": frames,
                         "generator": goals.goals_source(config, "test", frames)})
        errors = {}
        for name in names:
            if name in not_tried(frames, goals.event_frames(config)):
                continue
            tried = try_row(name, runs, world, drawn, decoders, args.device)
            errors[name] = tried.errors
            rows.append(make_row(name, frames, tried, errors["zero"], drawn["contact"]))
            print("{frames} frames, {planner:>23}: worst body within 0.1 {success:6.1%}, within "
                  "0.05 {strict:6.1%}, error {error:.3f}, skill {skill:7.1%}, {seconds:.2f} s"
                  .format(**rows[-1]), flush=True)
        pairs += compare(errors, frames)
        arrays.update(make_arrays(drawn, frames, errors))
    budget = {key: getattr(config, key) for key in ("samples", "iterations", "elites")}
    summary = {"budget": budget, "goals_side_by_side": SIDE_BY_SIDE, "rows": rows, "pairs": pairs,
               "manifest": manifest}
    return cli.Results(args.goals, summary, arrays,
                       lambda: draw(rows, arrays, horizons, args.goals))


def make_parser():
    parser = cli.make_parser("planning", __doc__, goals=(200, "test goals per horizon"))
    parser.add_argument("--frames", type=int, nargs="+",
                        help="horizons (default: 1, 2 and 3 macro-events: 25 50 75)")
    parser.add_argument("--samples", type=int, help="plans per iteration (default: as in the run)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="ROW",
                        help="rows to try beside zero (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
