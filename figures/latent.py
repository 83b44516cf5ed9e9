"""What cannot be predicted: a latent variable, its wells, and its collapse.

    python figures/latent.py --run figures/weights/hjepa.pt
    python figures/latent.py --run runs/quick --sequences 4096 --epochs 2 --n 128 --goals 8

One body is kicked between the clip that is seen and the next one, and nothing tells in which
direction: left or right ("two"), or any ("ring"; lib/latent_world.py). Encoders and P1 of the run
are frozen, so no embedding can collapse. What is trained are small predictors P(p, f, zeta) with a
latent variable zeta (LeCun 2022, sections 4.4, 4.5 and 4.8; lib/latent_model.py): zeta discrete, a
vector with and without a penalty, noisy, found by an encoder or by minimisation; beside one without
zeta, K = 1, which says the mean of all futures, and one that is told the kick. The energy of a
future is the smallest error over zeta, plus the penalty.

rows, on test worlds:
    error              of the best zeta, for the future that happened; over_told: divided by that of
                       the told one
    energy             of that future; energy_other: of the same world under another possible kick;
                       energy_twice, energy_body, energy_world: of futures that never happen: a kick
                       twice as strong, another body kicked, another world
    apart_twice, _body share of worlds in which that other future has the higher energy
    kick_r2            of the hidden kick, guessed from zeta (by neighbours among validation worlds)
    assigned           discrete zeta, two outcomes: share of test worlds in which the kick is on the
                       side that its zeta stands for on validation worlds; used: how many zetas win
    amortised          energy at the zeta that the encoder says, before any minimisation
    drawn, best_drawn  noisy: error of one future that is drawn, and of the best of 16

plans: all forces of a macro-event are planned before the kick, for the future without a kick, for
the mean future (K = 1), for the mean cost over zeta, for the worst zeta, or knowing the kick. Error
is the final distance from the goal, a mean over bodies: mean over kicks, and of the worst kick.

An interrupted training goes on where its files in --trainings stand; an interrupted measurement at
its first missing row.
"""
import sys
from pathlib import Path

from lib import (cli, latent_draw, latent_measure, latent_model, latent_plan, latent_training,
                 latent_world, stats)
import hjepa
import numpy as np
import torch

SHOWN = 512                                     # worlds whose zeta is kept in the NPZ


def say(row):
    """One line of the table."""
    words = [f"{row['kicks']:>4}, {row['name']:<16} error {row['error']:.5f}"]
    for key in ("over_told", "kick_r2", "assigned", "energy_other", "energy_twice", "energy_body",
                "energy_world"):
        if key in row:
            words.append(f"{key} {row[key]:.4g}")
    print(", ".join(words), flush=True)


def measure_kind(run, kind, networks, args, kept):
    """-> rows of all predictors, arrays; rows that are kept are not measured again."""
    measured = latent_measure.Measured(run, kind, args.n, args.device)
    measured.told_errors(networks["told"])
    rows, arrays = [], {}
    for name, network in hjepa.progress(networks.items(), kind, len(networks)):
        found = kept.find(what="row", kicks=kind, name=name)
        if found is None:
            row, zeta = measured.row(network)
            zeta = None if zeta is None else zeta[:SHOWN, :2].tolist()
            found = {"what": "row", "kicks": kind, "name": name, "row": row, "zeta": zeta}
            kept.add(found)
            say(row)
        rows.append(found["row"])
        if found["zeta"] is not None:
            arrays[f"zeta/{kind}/{name}"] = np.array(found["zeta"], dtype=np.float32)
    push = measured.kicked["test"].push[:SHOWN].cpu().numpy()
    arrays[f"push/{kind}"] = push
    for name, energy in measured.map_of(networks).items():
        arrays[f"map/{kind}/{name}"] = energy
    arrays["line/kick"], lines = measured.line_of(networks)
    for name, energy in lines.items():
        arrays[f"line/{kind}/{name}"] = energy
    return rows, arrays


def plan_row(kind, planner, errors):
    """errors (n, M, bodies) -> row: mean over kicks and worst kick of the mean over bodies, and of
    the kicked body, with intervals over goals."""
    row = {"kicks": kind, "planner": planner}
    for name, values in (("", errors.mean(-1)), ("kicked_", errors[..., latent_world.BODY])):
        for how, outcome in (("mean", values.mean(1)), ("worst", values.amax(1))):
            row[name + how] = outcome.mean().item()
            row[name + how + "_ci"] = stats.interval(outcome.numpy())
    return row


def plan_all(run, kind, networks, goals, args, kept):
    """-> a row per planner, and the differences worst - mean over zeta."""
    rows, outcomes = [], {}
    for planner in latent_plan.PLANNERS:
        found = kept.find(what="plan", kicks=kind, planner=planner)
        if found is None:
            errors = latent_plan.try_planner(planner, run, networks, kind, goals, args.device)
            found = {"what": "plan", "kicks": kind, "planner": planner, "errors": errors.tolist()}
            kept.add(found)
        errors = torch.tensor(found["errors"])
        outcomes[planner] = errors.mean(-1)
        rows.append(plan_row(kind, planner, errors))
        print(f"{kind}, {planner}: error {rows[-1]['mean']:.3f}, worst kick "
              f"{rows[-1]['worst']:.3f}", flush=True)
    worst, mean = outcomes["worst over zeta"], outcomes["mean over zeta"]
    difference = {"kicks": kind}
    pairs = {"mean": (worst.mean(1), mean.mean(1)), "worst": (worst.amax(1), mean.amax(1))}
    for how, (a, b) in pairs.items():
        difference[how], difference[how + "_ci"] = stats.paired_interval(a.numpy(), b.numpy())
    return rows, difference


def measure(args, runs):
    run = cli.one_run(runs)
    if args.sequences < 2:
        raise hjepa.Refusal("--sequences is 1: give 2 or more")
    latent_world.check(run.config)
    fingerprint = cli.fingerprint([run.model])
    trained = {}
    with hjepa.locked(args.trainings):
        for kind in latent_world.KINDS:
            path = args.trainings / f"{kind}.pt"
            trained[kind] = latent_training.train(run, kind, path, args.sequences, args.epochs,
                                                  fingerprint, args.device)
    kept = cli.KeptRows(args, {"weights": cli.fingerprint([nets for nets, _ in trained.values()]),
                               "n": args.n, "goals": args.goals})
    goals = hjepa.make_goals(hjepa.build_world(run.config), args.goals, run.config.event_clips,
                             hjepa.generator(run.config.test_seed, "latent goals"),
                             run.config.clip_frames, run.config.start_speed)
    rows, plans, differences, arrays = [], [], [], {}
    for kind, (networks, _) in trained.items():
        more_rows, more_arrays = measure_kind(run, kind, networks, args, kept)
        more_plans, difference = plan_all(run, kind, networks, goals, args, kept)
        rows += more_rows
        plans += more_plans
        differences.append(difference)
        arrays.update(more_arrays)
    best = latent_draw.of(rows, kicks="two", name="K = 2")[0]
    print(f"K = 2, two outcomes: error {best['over_told']:.3f} of the told one's (target: 1.10), "
          f"assigned {best['assigned']:.1%} (target: 98 %)")
    summary = {"training_sequences": args.sequences, "training_epochs": args.epochs,
               "kick": latent_world.SIZE, "kicked_body": latent_world.BODY, "rows": rows,
               "goals": args.goals, "plans": plans, "worst_minus_mean": differences}
    return cli.Results(args.n, summary, arrays, lambda: latent_draw.draw(rows, plans, arrays))


def make_parser():
    parser = cli.make_parser("latent", __doc__, n=(1024, "test worlds"), goals=(48, "test goals"),
                             sequences=(32768, "training sequences"), epochs=(8, "epochs"))
    parser.add_argument("--trainings", type=Path, default=Path("runs/latent"), metavar="DIR",
                        help="where the trained predictors are kept (default: runs/latent)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(make_parser(), measure))
