"""Does it answer "what if"? The response to a force on one body.

    python figures/response.py --run runs/paper
    python figures/response.py --run runs/quick --n 512
    python figures/response.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

Every test world is continued with no force and with a constant random force on one body, in turn on
each. The change of place between the two, as a linear probe reads it from the predictions, is
compared with the change in the simulator. A figure that the worlds drawn cannot give is null.

counterfactuals: for the pushed body, both axes pooled,
    pearson, slope    decoded against true change
    sign_agreement    where the true change exceeds `threshold`, a tenth of what the largest force
                      moves that body freely
    leakage           decoded change of another body, mean, over that of the pushed one, in worlds
                      where no bodies met under either force (0 is right)
Body "others": the same for the bodies that were not pushed, in worlds where bodies met.

masses: decoded acceleration per unit force of the pushed body, in worlds where neither a wall nor a
contact interfered, and its slope against 1 / mass: 1 if the model knows Newton's law.

The probes are described in figures/lib/readouts.py.
"""
import collections
import sys

from lib import cli, readouts, stats
import hjepa
import numpy as np
import torch

# One continuation of N worlds. places (N, frames, bodies, 2) and contacts (N, frames): true.
# short (N, K, bodies, 2), macro (N, bodies, 2): places read from the predictions of both levels.
Continuation = collections.namedtuple("Continuation", "places contacts short macro")

# How N worlds answer a force on each body. guess, true (N, pushed, bodies, 2): change of place
# against no force; met (N, pushed): did bodies meet, with the force or without it?
Response = collections.namedtuple("Response", "guess true met")

# Worlds in the scatter plot.
SHOWN = 600

# Half boxes. Rounding in float32 moves an undisturbed body by less, a wall or a contact by more.
UNDISTURBED = 1e-4


def draw_pushes(config, n):
    """-> forces (n, bodies, 2): of world i, on each body in its turn."""
    gen = hjepa.generator(config.test_seed, "pushes")
    unit = torch.rand(n, len(config.masses), 2, generator=gen)
    return config.force_limit * (2 * unit - 1)


def continue_with(run, world, start, z, force, reads, device):
    """start (N, bodies, 4), constant force (N, bodies, 2) -> Continuation."""
    clips = run.config.event_clips
    forces = force.flatten(1)[:, None].repeat(1, clips, 1)                # (N, K, A)
    states, contacts = world.rollout(start, forces, run.config.clip_frames)
    p1, p2 = readouts.predict(run, z, forces, device)
    short = reads.place1(p1).unflatten(-1, (-1, 2))
    macro = reads.place2(p2).unflatten(-1, (-1, 2))
    return Continuation(states[..., :2], contacts, short, macro)


def decoded_places(continuation, level, clips):
    """-> (N, bodies, 2), `clips` clips ahead."""
    return continuation.short[:, clips - 1] if level == "short" else continuation.macro


def run_responses(run, world, start, z, reads, pushes, device):
    """start (N, bodies, 4), pushes (N, bodies, 2) -> dict (level, frames) -> Response."""
    config = run.config
    def continued(force):
        return continue_with(run, world, start, z, force, reads, device)
    idle = continued(torch.zeros_like(pushes))
    pushed = []
    for body in range(len(config.masses)):
        force = torch.zeros_like(pushes)
        force[:, body] = pushes[:, body]
        pushed.append(continued(force))
    responses = {}
    last = config.event_clips
    for level, clips in (("short", 1), ("short", last), ("macro", last)):
        frames = clips * config.clip_frames
        guess, true, met = [], [], []
        met_idle = idle.contacts[:, :frames].any(-1)
        for one in pushed:
            guess.append(decoded_places(one, level, clips) - decoded_places(idle, level, clips))
            true.append(one.places[:, frames - 1] - idle.places[:, frames - 1])
            met.append(one.contacts[:, :frames].any(-1) | met_idle)
        responses[level, frames] = Response(torch.stack(guess, 1), torch.stack(true, 1),
                                            torch.stack(met, 1))
    return responses


def stack_runs(responses, case):
    """The Responses of all runs -> one Response of arrays (runs, N, ...)."""
    guess = np.stack([found[case].guess.double().numpy() for found in responses])
    true = np.stack([found[case].true.double().numpy() for found in responses])
    met = np.stack([found[case].met.numpy() for found in responses])
    return Response(guess, true, met)


def estimate(statistic, numbers):
    """numbers: dict name -> (runs, N), a number per world. statistic: dict of their means -> dict
    of figures. -> dict of the figures and their intervals; None where the worlds do not give one.
    """
    means = {name: values.mean() for name, values in numbers.items()}
    resampled = {name: stats.resampled_means(values) for name, values in numbers.items()}
    with np.errstate(all="ignore"):                                       # 0 / 0 gives None below
        figures = statistic(means)
        draws = statistic(resampled)
    row = {}
    for name, value in figures.items():
        row[name] = None
        row[name + "_ci"] = None
        if np.isfinite(value):
            finite = draws[name][np.isfinite(draws[name])]
            row[name] = float(value)
            row[name + "_ci"] = stats.percentiles(finite)
    return row


def line_statistic(mean):
    """Means of 1, x, y and their products -> correlation and slope of y over x, sign agreement."""
    n = mean["n"]
    x = mean["x"] / n
    y = mean["y"] / n
    covariance = mean["xy"] / n - x * y
    variance_x = mean["xx"] / n - x * x
    variance_y = mean["yy"] / n - y * y
    return {"pearson": covariance / np.sqrt(variance_x * variance_y),
            "slope": covariance / variance_x,
            "sign_agreement": mean["same"] / mean["judged"]}


def agreement(true, guess, count, threshold):
    """Changes (runs, N, ...), which of them to count, the smallest change whose sign counts ->
    row of pearson, slope, sign_agreement. A world is resampled with all its numbers."""
    judged = np.abs(true) > threshold
    numbers = {"n": np.ones_like(true), "x": true, "y": guess, "xx": true * true,
               "yy": guess * guess, "xy": true * guess, "same": judged & (true * guess > 0),
               "judged": judged}
    per_world = {}
    for name, values in numbers.items():
        counted = count * values
        per_world[name] = counted.reshape(*true.shape[:2], -1).sum(-1)
    return estimate(line_statistic, per_world)


def leakage(size, body, apart):
    """size (runs, N, pushed, bodies): length of the decoded change -> row."""
    bodies = size.shape[-1]
    others = [other for other in range(bodies) if other != body]
    leaked = size[:, :, body, others].sum(-1) / max(1, len(others))
    own = size[:, :, body, body]
    return estimate(lambda mean: {"leakage": mean["others"] / mean["own"]},
                    {"others": apart * leaked, "own": apart * own})


def free_change(config, frames):
    """-> (bodies,): how far a unit force moves each body in `frames` frames, if nothing is met."""
    seconds = frames * config.dt
    return seconds ** 2 / 2 / np.array(config.masses)


def counterfactual_rows(responses, config):
    """responses: what `run_responses` gave for each run -> a row per case and pushed body, and one
    for the others."""
    rows = []
    bodies = len(config.masses)
    for case in responses[0]:
        level, frames = case
        guess, true, met = stack_runs(responses, case)
        size = np.linalg.norm(guess, axis=-1)
        threshold = 0.1 * config.force_limit * free_change(config, frames)
        for body in range(bodies):
            apart = ~met[:, :, body]
            own = guess[:, :, body, body]
            own_true = true[:, :, body, body]
            row = {"level": level, "frames": frames, "body": body, "mass": config.masses[body],
                   "n": guess.shape[1], "threshold": threshold[body]}
            row.update(agreement(own_true, own, True, threshold[body]))
            row["n_without_contact"] = int(apart[0].sum())
            row.update(leakage(size, body, apart))
            rows.append(row)
        another = ~np.eye(bodies, dtype=bool)                             # (pushed, bodies)
        counted = met[..., None, None] & another[..., None]
        worlds = met[0].any(-1).sum()
        row = {"level": level, "frames": frames, "body": "others", "n": int(worlds)}
        row.update(agreement(true, guess, counted, threshold[:, None]))
        rows.append(row)
    return rows


def newton_statistic(inverse):
    """inverse (bodies,): 1 / mass -> a statistic: the acceleration of each body, and its slope."""
    centred = inverse - inverse.mean()
    def statistic(mean):
        figures = {}
        slope = 0
        for body, weight in enumerate(centred):
            acceleration = mean[f"answer_{body}"] / mean[f"force_{body}"]
            figures[f"acceleration_{body}"] = acceleration
            slope = slope + weight * acceleration
        figures["slope"] = slope / (centred ** 2).sum()
        return figures
    return statistic


def newton_rows(responses, pushes, config):
    """-> a row per case: acceleration per unit force, least squares over the undisturbed worlds."""
    rows = []
    force = pushes.numpy()                                                # (N, pushed, 2)
    inverse = 1 / np.array(config.masses)
    for case in responses[0]:
        level, frames = case
        guess, true, _ = stack_runs(responses, case)
        free = free_change(config, frames)
        seconds = frames * config.dt
        numbers = {}
        n = []
        for body in range(len(inverse)):
            own = guess[:, :, body, body]
            own_true = true[:, :, body, body]
            push = force[:, body]
            disturbed = np.abs(own_true - push * free[body]).max(-1)
            clear = disturbed < UNDISTURBED                               # no wall, no contact
            answer = (own * push).sum(-1) * 2 / seconds ** 2
            numbers[f"answer_{body}"] = clear * answer
            numbers[f"force_{body}"] = clear * (push ** 2).sum(-1)
            n.append(int((numbers[f"force_{body}"][0] > 0).sum()))
        rows.append({"level": level, "frames": frames, "inverse_mass": inverse.tolist(),
                     **estimate(newton_statistic(inverse), numbers), "n": n})
    return rows


def print_row(row, names):
    """The figures of a row that are known."""
    known = [f"{name} {row[name]:.3f}" for name in names if row.get(name) is not None]
    body = f"body {row['body']}" if "body" in row else "accelerations"
    print(f"{row['level']}, {row['frames']:2} frames, {body}: {', '.join(known)}")


def draw_changes(ax, response, masses):
    """Decoded against true change of the pushed body, of the first worlds."""
    for body, mass in enumerate(masses):
        guess = response.guess[:SHOWN, body, body].flatten()
        true = response.true[:SHOWN, body, body].flatten()
        colour = hjepa.COLOURS[body % len(hjepa.COLOURS)]
        ax.plot(true, guess, ".", ms=3, color=colour, label=f"mass {mass:g}")


def draw_newton(ax, newton):
    """Accelerations over 1 / mass, one line per level and horizon."""
    for row, colour in zip(newton, hjepa.COLOURS):
        accelerations = []
        for body in range(len(row["inverse_mass"])):
            value = row[f"acceleration_{body}"]
            accelerations.append(np.nan if value is None else value)
        ax.plot(row["inverse_mass"], accelerations, "o-", color=colour,
                label=f"{row['level']}, {row['frames']} frames")


def draw(response, newton, config):
    """-> figure: the answers of the macro level, and Newton's law."""
    figure, ((cloud, law),) = hjepa.new_figure(1, 2, 13, 4.5)
    draw_changes(cloud, response, config.masses)
    draw_newton(law, newton)
    last = config.event_clips * config.clip_frames
    cloud.set(title=f"macro level: one body pushed for {last} frames", ylabel="decoded change",
              xlabel="true change of place")
    law.set(title="decoded acceleration per unit force", xlabel="1 / mass")
    for ax in (cloud, law):
        ax.axline((0, 0), slope=1, color="0.6", lw=0.8)
        ax.legend(fontsize=7)
    return figure


def measure(args, runs):
    """-> Results: both tables and the figure."""
    config = runs[0].config
    world = hjepa.build_world(config)
    states, _, _ = hjepa.draw_sequences(world, config, args.n, config.test_seed, "dynamics", "cpu")
    pushes = draw_pushes(config, args.n)
    responses = []
    for run in hjepa.progress(runs, "runs", len(runs)):
        reads = readouts.fit(run, world, args.n, args.device)
        z = readouts.encode(run, world, states, args.device)
        start = states[:, 0, -1]
        responses.append(run_responses(run, world, start, z, reads, pushes, args.device))
    changes = counterfactual_rows(responses, config)
    newton = newton_rows(responses, pushes, config)
    for row in changes + newton:
        print_row(row, ("pearson", "slope", "sign_agreement", "leakage"))
    macro = responses[0]["macro", config.event_clips * config.clip_frames]
    return cli.Results(args.n, {"counterfactuals": changes, "masses": newton},
                       figure=lambda: draw(macro, newton, config))


if __name__ == "__main__":
    parser = cli.make_parser("response", __doc__, n=(4096, "test worlds"))
    sys.exit(cli.main(parser, measure))
