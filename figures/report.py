"""Writes figures/report.md, the technical report, from the JSON files beside this script, and report.html: the
same on one page that needs no other file, with a player for the planning episode, fit to be printed.

    python figures/report.py [--figures figures] [--readme]

--readme also brings the numbers of README.md up to date. The page needs one package more than the rest,
pip install -r figures/requirements-report.txt; without it report.md alone is written.

Text stands here, numbers only in the JSON files, each written by the command named in it. A study that has
not been run is named as missing, with the command that runs it. In README a number is followed by a comment
that says where it comes from, `<!-- FILE PATH [%] DIGITS -->`; only such numbers are touched.
"""
import argparse
import dataclasses
import json
import math
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import page                                                               # noqa: E402


def table(head, rows):
    """Column names, rows of strings -> a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


CAPTIONS = {
    "curves": "training, epoch by epoch: the composite, the prediction errors and maps, variance and covariance "
              "terms, and what is watched on validation worlds.",
    "diagnose": "the diagnostic protocol, a column per set: deviation of each dimension, covariance, correlation, "
                "spectrum. Last row: the gauges over training.",
    "probe": "linear probes. Left: decoded against true position, shallow tap. Right: R2 of each source.",
    "representation": "gauges and probes of both taps of both encoders, with controls.",
    "dynamics": "error against horizon, by contacts and by the forces told; the response to forces on one body.",
    "surprise": "share of pairs in which the impossible film surprises more (ticks: AUROC), and surprise around the "
                "event.",
    "plan": "where three planners leave the bodies (solid) against the goal (dashed); share of goals reached.",
    "episode": "an episode. Filled: bodies with their way so far; dashed: goals; arrows: the forces of the next clip.",
    "planning": "share of goals reached and final error, each row with its interval; crosses split by contact.",
    "extend": "squared error against frames ahead, before and after the macro level was trained on (validation "
              "worlds), as a share of the variance.",
    "search": "how a search spends its plans. Left: error at as many plans, iteration count and elites varied; middle: goals "
              "reached with more samples, both on validation goals; right: test goals.",
    "refine": "squared errors, epoch by epoch on new worlds; with and without a hit, before and after (validation "
              "worlds).",
    "hierarchy": "share of goals reached against predictor calls (above) and seconds (below), a column per horizon.",
    "ablation": "the run without each part.",
    "speed": "time to train, to step and to plan (blue lines: our planner, iteration by iteration), simulators, "
             "growth."}


def picture(name, caption=None):
    """A picture of this folder and its caption, which `count` will number."""
    return f"![{name}]({name}.png)\n\n*Figure: {caption or CAPTIONS[name]}*"


def percent(x, ci=None):
    """0.954, [0.92, 0.98] -> '95.4 % (92.0 to 98.0)'."""
    return f"{100 * x:.1f} %" + (f" ({100 * ci[0]:.1f} to {100 * ci[1]:.1f})" if ci else "")


def points(x, ci):
    """0.031, [-0.01, 0.07] -> '+3.1 (-1.0 to +7.0)': a difference of two shares, in points."""
    return f"{100 * x:+.1f} ({100 * ci[0]:+.1f} to {100 * ci[1]:+.1f})"


def number(x, ci=None, digits=3):
    """0.954, [0.92, 0.98] -> '0.954 (0.920 to 0.980)'."""
    return f"{x:.{digits}f}" + (f" ({ci[0]:.{digits}f} to {ci[1]:.{digits}f})" if ci else "")


def listed(words):
    """['a', 'b', 'c'] -> 'a, b and c'."""
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def one(rows, **chosen):
    """The first row with these values, or None."""
    return next((row for row in rows if all(row[k] == v for k, v in chosen.items())), None)


def further(content):
    """What figures/extend.py or figures/refine.py has added to the training."""
    if "further_steps" not in content:
        return ""
    return f", {content.get('further', 'the macro level')} trained on for {content['further_steps']:,} steps"


def source(content):
    """The line under each table: where its numbers come from."""
    seeds = ", ".join(str(s) for s in content["seeds"])
    return (f"\n*`{content['command']}`; n = {content['n']}, training seed {seeds}, {content['epochs']} epochs of "
            f"{content['sequences']:,} sequences{further(content)}; measured on {content['device']}, torch {content['torch']}.*\n")


# The sections, in the order of the report. Each takes `found`, JSON contents by name, and returns Markdown without
# its heading.

def abstract(found):
    """The report in one paragraph, as far as it was measured."""
    text = ["""H-JEPA predicts in representation space, at two time scales, and plans there: the cross-entropy method
searches forces whose predicted embedding equals that of a goal. Nothing is reconstructed, no reward is given."""]
    if "curves" in found:
        c = found["curves"]
        text.append(f"""The model of this report has {c['parameters'] / 1e6:.2f} M parameters; {c['epochs']} epochs of
{c['sequences']:,} sequences took {c['minutes']:.0f} minutes ({c['trained_on']}, with whatever else it was doing).""")
    if "diagnose" in found:
        rows = found["diagnose"]["rows"]
        low, rank = min(r["std_min"] for r in rows), min(r["rank"] for r in rows)
        text.append(f"""The smallest standard deviation of any dimension of its embeddings is {low:.2f}, where the loss
aims at 1; the smallest effective rank is {rank:.0f} of {rows[0]['dimensions']}.""")
    if "plan" in found:
        c = found["plan"]
        best, jump, idle = (one(c["rows"], planner=name) for name in ("short replanned", "macro open loop", "zero"))
        text.append(f"""Of {c['n']} goals in test worlds, {c['frames']} frames ahead, replanning every clip with the
short predictor reaches {percent(best['mean_body'], best['mean_body_ci'])} by the mean body,
{percent(best['success'], best['success_ci'])} by the worst. By the mean body, one jump of the macro predictor reaches
{percent(jump['mean_body'])}, zero force {percent(idle['mean_body'])}.""")
    row = one(found["planning"]["rows"], planner="short replanned") if "planning" in found else None
    if row and row["contact"]["n"] and row["no contact"]["n"]:
        hit, free = row["contact"]["success"], row["no contact"]["success"]
        hard = "the hard part" if hit < free else "no harder than free flight"
        text.append(f"""Hits between bodies are {hard}: by the worst body, {percent(hit)} of the goals with a hit on the
way are reached, {percent(free)} of those without.""")
    if "hierarchy" in found:
        more = further(found["hierarchy"])[2:]
        text.append(f"Two levels against one{f' ({more})' if more else ''}: " + two_levels(found["hierarchy"]["pairs"]))
    return "\n".join(text) + "\n"


def system(found):
    curves = found["curves"]
    c = curves["config"]
    return f"""H-JEPA (Patil, *Micro-World Models*, Zenodo 2026, doi 10.5281/zenodo.20403374) is a hierarchical
joint-embedding predictive architecture for a small physical world. A generative world model predicts the next
observation. A JEPA predicts the *embedding* of the next observation, and is free to leave out what cannot be
predicted. *Hierarchical* means two time scales: a shallow embedding is predicted one clip ahead and rolled out; a
deep one is predicted a whole macro-event ahead, in one jump. Forces enter both predictors, so the model answers "what
if", and searching over the answers is planning.

Only the paper's abstract is public. What it does not fix is our choice; the section on deviations lists what is fixed
and what is not.

**World.** {len(c['masses'])} discs of mass {', '.join(f'{m:g}' for m in c['masses'])} in the box [-1, 1]², area
proportional to mass, elastic hits, reflecting walls. A force of at most {c['force_limit']:g} per body and axis is
held for {c['hold']} frames of {c['frame']:g} s. Position and velocity of each body are observed. Between hits a body
flies a parabola, which is easy to learn. A hit depends on two places, two velocities and two masses at once, and
magnifies small errors: there a model has to show what it knows.

**Clips.** A clip is {c['hold']} frames, a macro-event {c['steps']} clips, {c['steps'] * c['hold']} frames. The model
sees one clip and predicts those that follow, given the forces. Clips do not overlap, so that nothing but what physics
carries over can be predicted.
{'Each training sample is seen in a random one of the eight flips and swaps of the box.' if c['symmetries'] else ''}

**Encoders.** Context and target encoder, each a one-dimensional Vision Transformer over the frames of a clip (width
{c['width']}, {c['heads']} heads): the shallow tap after block {c['tap']}, the deep tap after block {c['depth']},
{c['latent']} dimensions each. A tap reads all frames at once, each from its own place, so order in time is kept.
{'One encoder serves both roles.' if c['shared'] else 'Both are trained; no moving average, and no gradient is stopped in prediction, variance and covariance.'}

**Predictors.** The short one, P1, predicts the next clip's shallow embedding and is trained rolled out on its own
predictions, as the planner will use it; the macro one, P2, predicts the deep embedding {c['steps'] * c['hold']}
frames ahead in one jump. Both are residual networks whose blocks are shifted, scaled and gated by the forces (widths
{c['short_width']} and {c['macro_width']}), so that one force can act differently in different states.
{curves['parameters'] / 1e6:.2f} M parameters in all.

**Bridge and lift.** P2 leads from the context encoder's space to the target encoder's. So it could not be applied
twice, and the two levels could not talk. Two small maps mend that: bridge turns a deep target embedding into the
context encoder's deep embedding of the same clip, lift does the same from a shallow target embedding.
"""


def diagram(found):
    d = found["diagram"]
    return picture("diagram", f"""the system. The context encoder sees clip 0, the target encoder the
{d['steps']} clips to be predicted. P1 is rolled out on its own predictions, P2 jumps {d['steps'] * d['hold']} frames.
Green rings: embeddings that VICReg acts on; red: prediction errors; violet: the maps from the target encoder's space
to the context encoder's, whose own embedding of the last clip, z2', is held fixed. Embeddings have {d['latent']}
dimensions, the model has {d['parameters']:,} parameters.""") + "\n"


def objective(found):
    c, last = found["curves"]["config"], found["curves"]["rows"][-1]
    spread, tied = (sum(last[f"{kind}_{z}"] for z in ("c1", "t1", "c2", "t2")) for kind in ("std", "cov"))
    terms = [("prediction, short", last["pred1"], c["pred_weight"]),
             ("prediction, macro", last["pred2"], c["pred_weight"]),
             ("variance, four sets", spread, c["std_weight"]), ("covariance, four sets", tied, c["cov_weight"])]
    shares = [[name, number(value), f"{weight:g}", percent(value * weight / last["composite"])]
              for name, value, weight in terms]
    a, b, g = (f"{c[name]:g}" for name in ("pred_weight", "std_weight", "cov_weight"))
    return f"""With z the four sets of embeddings (context and target, shallow and deep):

    composite = {a} [ mean_k MSE(P1^k, t1_k) + MSE(P2, t2) ] + {b} sum std(z) + {g} sum cov(z)
    total     = composite + {c['map_weight']:g} [ MSE(bridge(t2), z2') + MSE(lift(t1), z2') ]

    std(z) = 1/D sum_j max(0, 1 - sqrt(Var(z_j) + 1e-4))          VICReg eq. 1-2
    cov(z) = 1/D sum_(i != j) Cov(z)_ij^2                         VICReg eq. 3-4

**Prediction.** Mean squared errors, over samples and dimensions. Their gradient reaches both encoders: the context
encoder learns to say what is needed, the target encoder learns to be predictable. Alone, they have a perfect and
useless solution: embed everything as one point.

**Variance.** Forbids that point: each dimension shall have a standard deviation of 1 over the batch. It is a hinge
and stops pulling at 1, so it sets a scale without rewarding size. It must be taken over samples, never over time: an
embedding that only counts frames would pass, and would tell no two worlds apart.

**Covariance.** Variance alone is content if all dimensions repeat the same number. This term asks that no two say the
same. It does not fall to 0 even for independent noise: with a batch of {c['batch']} and {c['latent']} dimensions, the
error of estimating so many covariances alone is worth about {c['latent'] / c['batch']:.1f} per set. At the end of
training the sets score {listed(f"{last[f'cov_{z}']:.1f}" for z in ("c1", "t1", "c2", "t2"))}.

**Bridge and lift.** Variance and covariance do not notice if the deep target drops what is hard to predict and fills
its dimensions with what is easy. The maps ask that the context encoder's deep embedding can be told from the
target's, which is meant to keep what matters in it. Only z2' is held fixed: the maps shall reach the context
encoder's space, not pull it. Weight {c['map_weight']:g}; at 0 the objective is the paper's.

What the composite, {last['composite']:.1f} over the last epoch, is made of:

{table(['term', 'value', 'weight', 'share of the composite'], shares)}
{source(found['curves'])}"""


def planner(found):
    c = found["curves"]["config"]
    once = c["samples"] * c["iterations"] + 1
    calls = c["views"] * once * sum(range(1, c["steps"] + 1))
    return f"""The weights are frozen. The goal is a clip, seen by the target encoder; a plan, one force per body and
clip, is good if the embedding predicted for it is near to the goal's: mean squared distance. No reward, no decoder,
no gradient. Gradients mislead in a landscape full of hits; sampling does not mind.

The cross-entropy method starts from a Gaussian around no force at all (deviation {c['spread']:g} of the largest
force). In each of {c['iterations']} iterations it draws {c['samples']} plans, clips them to what is allowed, keeps
the best {c['elites']} and fits the next Gaussian to them. A small deviation is added each time, else a plan freezes
before it is good. The mean competes with the samples, and once more at the end; the best plan ever seen is returned.
A cost is averaged over {c['views']} mirror images of the box: the physics is the same in each, the model's errors are
not.

*Open loop* plans once and applies the whole plan. *Replanned* applies the first force for one clip, looks, and plans
what is left again, from the rest of the last plan on. The simulator only moves on: it is never asked what would
happen, nor whether the goal is reached. One plan of the short predictor over a macro-event costs
{c['views'] * once * c['steps']:,} predictor calls, one of the macro predictor {c['views'] * once:,}, an episode
replanned every clip {calls:,}. The noise of a search depends on the test seed, the planner and the number of the task
alone, so that a row can be repeated task by task, and does not depend on its neighbours.
"""


def protocol(found):
    c = found["curves"]["config"]
    made = next((content["intervals"] for content in map(found.get, ("planning", "dynamics", "hierarchy")) if content),
                "95 %, bootstrap")
    trained = {seed for name, content in found.items() if "/" not in name for seed in content["seeds"]}
    return f"""**Worlds.** Training, validation and test worlds are drawn from seeds of their own ({c['seed']},
{c['validation_seed']:,} and {c['test_seed']:,}); every draw comes from a generator made from seed, purpose and
number, so that measuring more often, resuming or changing the device draws the same. What was tuned was chosen on
validation worlds. Where nothing else is said, the numbers below are of test worlds.

**Goals.** A task is a test world, the clip it begins with, and the clip it shows some frames later under hidden
random forces. So each goal can be reached. Goals that need no force are left out: at zero force, the worst body must
miss by more than twice the threshold (so zero force reaches none by the worst body, by construction). A task counts as a *contact* task if two bodies meet on the hidden way.

**Measures.** What counts is how far each body is from its goal at the goal's last frame, in box half-widths: the box
is 2 wide. *Mean body within 0.1*: the mean over the bodies, which forgives one that is off if the others are near;
*worst body within 0.1*: the farthest, which does not; *within 0.05* is the strict
form. Speed at the goal is in the goal clip and so in the cost, but is not judged.

**Intervals.** {made}. Tasks are drawn with replacement, the mean of each draw is noted, and the
middle 95 % of the means are given. Two planners are compared on the same tasks: the difference is taken task by task and
then resampled, which removes what makes a task hard for both. Where all outcomes are alike, the interval has no width:
"nothing else was seen", not "certain". Each JSON file says under `intervals` how its own were made.
{"They speak about the choice of worlds, not about another training." if len(trained) == 1 else ""}

**Controls.** A number means little without the one it should differ from.

{table(['control', 'what it tells'], [
    ['zero force, random force', 'how hard the tasks are without any planner'],
    ["another task's goal", 'whether the planner goes where it is sent, or to places that are likely anyway'],
    ['untrained model', 'whether it is the training, or the search and the architecture alone'],
    ['oracle: true simulator, true positions', 'whether the search and its budget suffice'],
    ['true simulator, latent cost', 'whether distance in the embedding is a good cost'],
    ['model, cost on decoded positions', 'with the same dynamics, whether distance in the embedding or in decoded places is the better cost'],
    ['raw clip, untrained encoder, shuffled labels', 'what a probe finds without a trained encoder, and by chance'],
    ['copy last; fly and fold', 'how far prediction comes without dynamics, and with all of them but hits'],
    ['shuffled or zero forces', 'whether a predictor listens to the forces it is told'],
    ['a lawful hit', 'whether surprise marks what cannot happen, or just any hit']])}
"""


def training(found):
    curves = found["curves"]
    rows, marks = curves["rows"], []
    for epoch in sorted({1, 2, 5, 10, 30, 100, 200, 300, rows[-1]["epoch"]}):
        marks += [row for row in rows if row["epoch"] == epoch]
    names = ("composite", "pred1", "pred2", "bridge", "lift", "std_min", "std_avg", "rank")
    shown = [[row["epoch"]] + [f"{row[k]:.3f}" if k in row else "" for k in names] for row in marks]
    return f"""The composite falls from {rows[0]['first_step']:.1f} at the first step to {rows[-1]['composite']:.1f}
over epoch {rows[-1]['epoch']} (the paper: about {curves['paper'][0]} to about {curves['paper'][1]}). Absolute values
depend on how the terms are averaged, which the abstract does not say; the course is what can be compared.
{curves['minutes']:.0f} minutes on {curves['trained_on']} with whatever else it was doing (so this is no measurement of
speed), {curves['precision']} matrix products, what is watched included.

{table(['epoch', *names], shown)}

{picture('curves')}

std_min, std_avg, rank: smallest and mean standard deviation over the dimensions of all four sets, and the smallest
effective rank, on validation worlds. A collapse would show here first.
{source(curves)}"""


def course(measured, n):
    """[(epoch, share)], of n goals -> in words: did it rise or fall between the best and the last measurement?"""
    (best_epoch, best), (last_epoch, last) = max(measured, key=lambda pair: pair[1]), measured[-1]
    top, end = f"{percent(best)} after epoch {best_epoch}", f"{percent(last)} after epoch {last_epoch}"
    if len(measured) == 1:
        return f"was measured once: {end}"
    if best_epoch == last_epoch:
        return f"rose to the end: the last measurement, {end}, is the best"
    if best == last:
        return f"neither rose nor fell between its best, {top}, and the last measurement, {end}"
    noise = 2 * math.sqrt((best * (1 - best) + last * (1 - last)) / n)
    return (f"fell from its best, {top}, to the last measurement, {end}: by {100 * (best - last):.1f} points, "
            f"{'more' if best - last > noise else 'no more'} than the {100 * noise:.1f} points (two standard errors) "
            "that chance explains")


def watched(found):
    curves = found["curves"]
    n = curves["config"]["measure_tasks"]
    rows = [row for row in curves["rows"] if "closed" in row]
    if not rows:
        return "No plans were tried during this training (`--measure-every 0`).\n"
    keep = {round(i * (len(rows) - 1) / 11) for i in range(12)} | {                       # a dozen, and the best ones
        max(range(len(rows)), key=lambda i: rows[i][key]) for key in ("closed", "macro")}
    names = ("closed", "macro", "decode1", "decode2")
    shown = [[row["epoch"], *(percent(row[k]) for k in names[:2]), *(number(row[k]) for k in names[2:])]
             for i, row in enumerate(rows) if i in keep]
    said = "\n".join(
        f"- {title}: the share of goals\n  {course([(row['epoch'], row[key]) for row in rows], n)}." for key, title in (
            ("closed", "Replanned every clip with the short predictor (closed)"),
            ("macro", "One open-loop jump of the macro predictor (macro)")))
    return f"""The losses alone can fall while planning gets worse, so {n} goals of validation worlds are tried from
time to time (mean body within 0.1); the last panel above shows the course. One goal is {100 / n:.1f} points: the
course is to be read from many measurements, and the best of several is flattered by chance.

{said}

{table(['epoch', *names], shown)}

decode1, decode2: R2 of the positions decoded linearly from what P1, rolled out, and P2 predict for the end of the
macro-event.
{source(curves)}"""


def diagnostics(found):
    content = found["diagnose"]
    rows = [[r["set"], number(r["std_min"]), number(r["std_mean"]), number(r["std_max"]), number(r["correlation"]),
             f"{r['rank']:.0f} of {r['dimensions']}"] for r in content["rows"]]
    low, rank = min(content["rows"], key=lambda r: r["std_min"]), min(content["rows"], key=lambda r: r["rank"])
    return f"""Per tap and branch: standard deviation of each dimension, mean absolute off-diagonal correlation,
spectrum of the covariance, and effective rank (RankMe: the exponential of the entropy of the normalised singular
values). A collapsed representation has deviations at 0 or a rank of a few. Here the smallest deviation is
{number(low['std_min'])} ({low['set']}), the smallest rank {rank['rank']:.0f} of {rank['dimensions']} ({rank['set']}).
A rank below the number of dimensions is to be expected: what is seen has far fewer degrees of freedom.

{table(['set', 'smallest deviation', 'mean', 'largest', 'mean abs. correlation', 'effective rank'], rows)}

{picture('diagnose')}
{source(content)}"""


def probes(found):
    content = found["probe"]
    targets = list(dict.fromkeys(r["target"] for r in content["rows"]))
    sources = list(dict.fromkeys(r["source"] for r in content["rows"]))
    r2 = {(r["source"], r["target"]): r["r2"] for r in content["rows"]}
    return f"""Ridge regression on the frozen embedding of one clip: fitted on training worlds, strength chosen on
validation worlds, R2 on test worlds. Position and velocity are in the observation, so decoding them is a sanity
check, which the raw clip and even an untrained encoder pass. Energy and pair distance are not linear in the raw clip:
what the encoder adds shows there, and what training adds shows against the untrained encoder.

{picture('probe')}

{table(['from', *targets], [[s, *(number(r2[s, t], digits=4) for t in targets)] for s in sources])}
{source(content)}"""


def representation(found):
    content = found["representation"]
    targets = list(dict.fromkeys(r["target"] for r in content["rows"]))
    r2 = {(r["source"], r["target"]): number(r["r2"], r["r2_ci"], 4) for r in content["rows"]}
    sources = list(dict.fromkeys(r["source"] for r in content["rows"]))
    bent = [r for r in content["rows"] if r["source"].endswith(", network") and "untrained" not in r["source"]]
    least = min(bent, key=lambda r: r["r2"], default=None)
    kept = "" if not least else (
        f"The least that a network reads is {least['target']} from {least['source'].split(',')[0]}, R2 {least['r2']:.4f}. "
        "What a linear probe\nmisses beyond that is bent and not lost, also where the prediction error would be smaller "
        "without it. The untrained\nencoder loses nothing either: training arranges the state, it does not add to it.\n")
    gauges = [[g["set"], number(g["std_min"]), f"{g['rank']:.0f} of {g['dimensions']}", percent(g["within_mean"]),
               percent(g["within_min"])] for g in content["gauges"]]
    return f"""Within a world: the share of a dimension's variance that is found between clips of one sequence. A
representation can pass VICReg by encoding what never changes, such as where a world began; then this share would be
near 0.

{table(['set', 'smallest deviation', 'effective rank', 'variance within a world, mean', 'smallest'], gauges)}

{picture('representation')}

R2 of probes on test worlds, with controls (raw clip, untrained model, shuffled labels). All are linear but those that
end in "network": there a network of two hidden layers reads beside the linear map, which tells what is lost from what is
bent (never from predictions: a network could foresee what the predictors did not). No probe is used in training or
planning. Columns with +25 ask
for the end of the macro-event: encoders and raw clip do not know the forces, the predictions and "raw clip + forces"
do. There the predictions must beat both the raw clip with forces and the untrained predictors.

{table(['from', *targets], [[s, *(r2.get((s, t), '') for t in targets)] for s in sources])}
{kept}
{source(content)}"""


def dynamics(found):
    content = found["dynamics"]
    split = [r for r in content["rows"] if r["forces"] not in ("shuffled", "zero")]
    last = max(r["frames"] for r in split)

    def name(row):
        reader = {"short": ", of P1", "macro": ", of P2"}.get(row["level"]) if row["method"] == "probe alone" else ""
        return row["method"] + (reader or "")
    methods = list(dict.fromkeys(name(r) for r in split if r["frames"] == last))
    contacts = list(dict.fromkeys(str(r["contacts"]) for r in split))
    error = {(name(r), str(r["contacts"])): number(r["position_error"], r["position_error_ci"])
             for r in split if r["frames"] == last and "position_error" in r}
    told = [[r["method"], r["forces"], number(r["position_error"], r["position_error_ci"])] for r in content["rows"]
            if r["frames"] == last and str(r["contacts"]) == "all" and r["method"] in ("P1", "P2")]
    pushed = [[r["level"], r["frames"], f"{r['mass']:g}", *(number(r[k], r[k + "_ci"]) for k in (
        "pearson", "slope", "sign_agreement", "leakage"))] for r in content["counterfactuals"] if r["body"] != "others"]
    law = ", ".join(f"{r['level']}, {r['frames']} frames: {number(r['slope'], r['slope_ci'], 2)}" for r in content["masses"])
    moved = [[r["level"], r["frames"], r["n"], *(number(r[k], r[k + "_ci"]) for k in (
        "pearson", "slope", "sign_agreement"))] for r in content["counterfactuals"] if r["body"] == "others"]
    return f"""Decoded position error after {last} frames, in box half-widths, by the number of body-body contacts on
the way. "Probe alone" is what the read-out itself misses on the true embedding: an error near it cannot be told from
none. (The strength of a read-out is chosen on predictions for validation worlds, so it is not the best one for true
embeddings.) "Decoded simulator" is the true simulator, started from place and velocity as read from z1. "Fly and fold"
knows everything but hits; where it is better than the model without contacts, the model has not yet learnt even flight
to the last digit, and where the model is better with contacts, it has learnt something of hits.

{picture('dynamics')}

{table(['method', *contacts], [[m, *(error.get((m, c), '') for c in contacts)] for m in methods])}

The same with true, shuffled and zero forces told to the model, all worlds. A model that ignores forces would show the
same error three times:

{table(['predictor', 'forces', 'position error'], told)}

Counterfactuals: the same start, a force on one body against none. Decoded change of the pushed body against the
simulator's: 1 is right in the first three columns. Leakage is how far the other bodies seem to move before any
contact, as a share of the pushed one's move: 0 would be right.

{table(['level', 'frames', 'mass', 'Pearson', 'slope', 'sign agreement', 'leakage'], pushed)}

Decoded acceleration of the pushed body against 1 / mass, relative to force / mass: a slope of 1 is Newton's law. {law}.

After one clip the true changes of heavy bodies are small against the error of the read-out ("probe alone", above), so
low slopes and high leakage there may be the read-out's and not P1's: that was not told apart. The same for bodies that
were not pushed, where the simulator says that a hit has moved them. It is the direct test of hits:

{table(['level', 'frames', 'n', 'Pearson', 'slope', 'sign agreement'], moved)}
{source(content)}"""


def surprise(found):
    content = found["surprise"]
    rules = list(dict.fromkeys(r["rule"] for r in content["rows"]))
    levels = list(dict.fromkeys(r["level"] for r in content["rows"]))
    share = {(r["rule"], r["level"]): percent(r["share"], r["share_ci"]) for r in content["rows"]}
    auroc = {r["rule"]: number(r["auroc"], r.get("auroc_ci"), 2) for r in content["rows"] if r["level"] == "both"}
    ghost = [r for r in content["rows"] if r["rule"] == "pass-through"]

    def word(ci):
        return "less often than chance" if ci[1] < 0.5 else "more often than chance" if ci[0] > 0.5 else "chance"
    said = "" if not ghost else "Bodies that pass through each other surprise it more than the truth " + ", ".join(
        f"in {percent(r['share'], r['share_ci'])} of the pairs by {r['level']} ({word(r['share_ci'])})" for r in ghost
    ) + ".\n"
    return f"""Matched pairs with the same start and forces, one rule broken in one of the two films:

- *pass-through*: bodies fly through each other
- *energy injection*: a hit leaves both bodies 1.5 times as fast
- *teleport*: a body jumps to another free place, at least 0.3 away, and flies on
- *velocity flip*: the velocity of a body, at least 0.3, turns round
- *mass swap*: two bodies of different mass exchange it, but not their size
- *wall tunnelling*: a body flies on beyond the wall

Only pairs are kept in which, at the end, a body is at least 0.1 from where it should be. Surprise is the squared error
of the predicted embedding: *short*, of P1 from clip to clip, the {content['statistic'][1]} over
"{content['statistic'][0]}" (chosen on validation pairs); *macro*, of P2; *both*, their sum, each divided by its mean
over lawful films. Share of pairs in which the impossible film surprises more (chance: 50 %). AUROC, by both levels,
compares films of different starts, which is harder (chance: 0.5). Control: a lawful hit against lawful free flight. A
share near 100 % there means that the model is surprised by any hit: it has not learnt to foresee them, and the rules
that come with a hit must be read with that in mind. {said}
{picture('surprise')}

{table(['rule', *levels, 'AUROC'], [[r, *(share.get((r, k), '') for k in levels), auroc.get(r, '')] for r in rules])}
{source(content)}"""


def plans(found):
    content = found["plan"]
    rows = [[r["planner"], percent(r["mean_body"], r["mean_body_ci"]), percent(r["success"], r["success_ci"]),
             percent(r["strict"]), number(r["error"])] for r in content["rows"]]
    return f"""{content['n']} goals in test worlds, {content['frames']} frames ahead; {sum(content['contact'])} of
them have a body-body hit on the hidden way. The cross-entropy method with {content['samples']} samples,
{content['iterations']} iterations and {content['elites']} elites, seen in {content['views']} images of the box, the
same for each planner, {content['precision']}.

{table(['planner', 'mean body within 0.1', 'worst body within 0.1', 'worst within 0.05', 'mean error'], rows)}

{picture('plan')}
{source(content)}"""


def episode(found):
    c = found["episode"]
    errors, budget = c["errors"], c["budget"]
    return f"""The first task with a hit on the hidden way (number {c['task']} of {c['tasks']}, counted from 0), so it
is not chosen by how it ended. *{c['planner']}*, {budget['samples']} samples, {budget['iterations']} iterations,
{budget['elites']} elites, {budget['views']} images, {c['precision']}. After {c['frames']} frames the bodies are
{listed(number(e) for e in errors)} from their goals, {number(sum(errors) / len(errors))} on average: the goal is
{'reached' if sum(errors) / len(errors) < 0.1 else 'missed'} by the mean body,
{'reached' if max(errors) < 0.1 else 'missed'} by the worst.

{picture('episode')}

{page.PLAYER}
{source(c)}"""


def planning(found):
    content = found["planning"]
    parts = []
    for frames in dict.fromkeys(r["frames"] for r in content["rows"]):
        here = [r for r in content["rows"] if r["frames"] == frames]
        rows = [[r["planner"], percent(r["success"], r["success_ci"]), percent(r["strict"], r["strict_ci"]),
                 percent(r["mean_body"], r["mean_body_ci"]), *(
                     percent(r[part]["success"], r[part]["success_ci"]) if "success" in r[part] else ""
                     for part in ("contact", "no contact")),
                 number(r["skill"], r["skill_ci"], 2),
                 f"{r['predictor_calls']:,.0f}", f"{r['seconds']:.2f}"]
                for r in here]
        met, free = here[0]["contact"]["n"], here[0]["no contact"]["n"]
        parts.append(f"**{frames} frames**, {met} goals with contact and {free} without:\n\n" + table(
            ["planner", "worst body within 0.1", "within 0.05", "mean body within 0.1", "with contact", "without",
             "skill", "predictor calls", "seconds"], rows) + "\n")
    pairs = [[r["frames"], r["a"], r["b"], points(r["success"], r["success_ci"]),
              "{:+.3f} ({:+.3f} to {:+.3f})".format(r["error"], *r["error_ci"])] for r in content["pairs"]]
    return f"""The protocol's rows, with every control. "With contact" and "without" split the worst body's success by
whether the hidden way had a body-body hit. Skill is 1 - error / error of zero force: 1 is perfect, 0 as good as doing
nothing, negative worse. Predictor calls count samples, once for each image of the box; for simulator rows, which need
one image only, simulated clips.

{chr(10).join(parts)}
How to read it. The oracle bounds what the search can do; "simulator + latent cost" shows what the cost in the
embedding loses of that while all is predicted well. "Model + decoded cost" has the dynamics of "short replanned" and a
read-out with an error of its own, and asks for places only: where it is worse than "short replanned" the read-out is
at fault, where it is better the latent cost is. "Shuffled goal" and "untrained" should do no better than zero force,
which reaches nothing by the worst body because goals are chosen so. Seconds: rows of the model try one task at a time,
rows of the simulator {listed(sorted(set(map(str, content['tasks_side_by_side'].values()))))} side by side; these are not
to be compared. Paired differences, in points of success (worst body within 0.1), and of the mean error:

{table(['frames', 'planner', 'minus', 'success', 'error'], pairs)}

{picture('planning')}
{source(content)}"""


def two_levels(pairs):
    """The outcome of the comparison with flat planners, in one sentence."""
    text = []
    for key, words in (("gain_calls", "as many predictor calls"), ("gain_seconds", "as many seconds")):
        judged = [pair[key + "_ci"] for pair in pairs if key in pair]
        better, worse = (sum(ahead(ci) for ci in judged) for ahead in (lambda ci: ci[0] > 0, lambda ci: ci[1] < 0))
        if judged:
            text.append(f"at {words}, two levels reach\nmore goals than flat in {better} of {len(judged)} comparisons "
                        f"and fewer in {worse}")
    if not text:
        return "no flat planner was tried with as much to spend."
    return "; ".join(text) + ". In the rest the interval contains 0."


def extended(found):
    content = found["extend"]
    event = min(row["clips"] for row in content["rows"] if row["name"] == "P2")
    last = max(row["clips"] for row in content["rows"])
    shown_at = sorted({1, event, event + (event + 1) // 2, 2 * event, last})
    gaps = {(row["name"], row["when"], row["clips"]): number(row["error"], row["error_ci"]) for row in content["rows"]}
    shown = [[name, "" if name == "P1" else when, *(gaps.get((name, when, k), "") for k in shown_at)]
             for name, when in dict.fromkeys((row["name"], row["when"]) for row in content["rows"])]
    return f"""Training asks P2 for one jump of {event} clips, from an observed clip. A planner for goals {content['frames'] * last // event} frames away
applies it up to {last // event} times, each to what it has predicted itself, in worlds that forces have made faster than
those of training. Trained that far together with the encoders, the deep target could make its task easy by dropping
what cannot be foreseen, which VICReg does not notice. So encoders and P1 are frozen, and P2 and the two maps alone
trained on: {content['extended']['steps']:,} steps of
{content['extended']['batch']} new worlds, {content['minutes']:.0f} minutes on {content['extended']['device']} with
whatever else it was doing. Each step asks for jumps with a bridge between, once from the observed clip and once from
behind 1 to {event - 1} short steps and a lift, as the planner *mixed* below will. Made small is the mean logarithm of the
errors, so that the far ones do not spoil the near ones; the maps' count a quarter.

{table(['predictor', 'training on', *(f"{k} clip{'s' * (k > 1)}" for k in shown_at)], shown)}

Squared error of the predicted embedding, as a share of the variance: 1 is as bad as always to expect the mean.
P2 is chained; the clips that are no whole macro-event are short steps before its first jump. Each level is judged in
its own embedding. Where the chained jumps err no less than P1 rolled out, two levels offer fewer calls and no better
forecast. What training on gives a planner is not among these figures: the study below with
`--run figures/hjepa.pt` answers that.

{picture('extend')}
{source(content)}"""


SHOWN = 6                                       # settings of the search, the best ones


def spent(row):
    """A row, or a dict, of one setting of the search -> in words."""
    return f"{row['samples']} x {row['iterations']}, {row['elites']} elites"


def searched(found):
    content = found["search"]
    own, best = content["own"], content["best"]
    planners = tuple(dict.fromkeys(r["planner"] for r in content["rows"]))
    rows = [dict(row, setting=spent(row)) for row in content["rows"]]
    first, more, test = ([row for row in rows if row["part"] == part] for part in ("as many plans", "more plans", "test"))
    shares = (("mean body within 0.1", "mean_body"), ("worst body within 0.1", "success"), ("within 0.05", "strict"))
    equal = [[spent(ranked), f"{ranked['score']:.3f}", *(
        f"{row['error']:.4f}, {percent(row['success'])}" for row in first if row["setting"] == spent(ranked))]
        for rank, ranked in enumerate(content["scores"]) if rank < SHOWN or spent(ranked) == spent(own)]
    larger = [[row["planner"], row["setting"], f"{row['samples'] * row['iterations']:,}",
               *(percent(row[key], row[key + "_ci"]) for _, key in shares)]
              for name in planners if one(more, planner=name) for row in first + more
              if row["planner"] == name and (row in more or row["setting"] == spent(best))]
    judged = [[row["planner"], row["setting"], *(percent(row[key], row[key + "_ci"]) for _, key in shares),
               number(row["error"], row["error_ci"], 4)] for name in planners for row in test if row["planner"] == name]
    gained = [[pair["planner"], spent(pair["a"]), spent(pair["b"]), *(points(pair[key], pair[key + "_ci"]) for _, key in shares),
               f"{pair['error']:+.4f} ({pair['error_ci'][0]:+.4f} to {pair['error_ci'][1]:+.4f})"] for pair in content["pairs"]]
    lowest = "the run's own setting" if own == best else spent(best)
    seen = "" if "refined/before-500/planning" not in found else (
        "Not new to test goals: *macro open loop* with more samples, which the section on new worlds had tried on them.\n")
    slower = "" if own == best else (
        "With as many plans, more iterations evaluate fewer side by side. One search at the best setting takes "
        + listed(f"{row['ratio']:.2f} times the seconds of one at the run's own with *{row['planner']}*" for row in content["seconds"])
        + f" (tried in turn, one goal, {content['device']}).")
    titles = [title for title, _ in shares]
    others = ", and the run's own" if len(equal) > SHOWN else ""
    return f"""The run's own setting, behind *Goals reached* and the rows above, is {own['iterations']} iterations of {own['samples']} samples, {own['elites']} of
them elites. Is that well spent, and what would more buy? Tried on {content['n']} validation goals, {content['frames']} frames ahead,
in {content['precision']}: as many plans in few large iterations or many small ones, with few elites or many; then the best of these
with {listed(sorted({row['samples'] // best['samples'] for row in more}))} times its samples. The best has the lowest score: mean final error over that of the run's own setting,
the mean of the {len(planners)} planners.

{table(['setting', 'score', *(f'{name}: error, worst body within 0.1' for name in planners)], equal)}

Of {len(content['scores'])} settings these are the best{others}; the picture has all. Lowest is {lowest}; the lowest of so many is
flattered by the choice. With more samples, the same validation goals:

{table(['planner', 'setting', 'plans', *titles], larger)}

On test goals, with what was fixed before:

{table(['planner', 'setting', *titles, 'error'], judged)}

Differences, goal by goal, in points and in error:

{table(['planner', 'setting', 'minus', *titles, 'error'], gained)}

{seen}{slower}

{picture('search')}
{source(content)}"""


REFINED = {                                     # what else the section on figures/refine.py shows: file, its command
    f"refined/{when}{more}/planning": f"figures/planning.py --run figures/{weights}.pt --frames 25 --only {rows} "
                                      f"--out figures/refined/{when}{more}"
    for when, weights in (("before", "hjepa"), ("after", "refined"))
    for more, rows in (("", '"macro open loop" "short open loop" "short replanned"'),
                       ("-500", '"macro open loop" --samples 500'))}
REFINED["refined/after/surprise"] = "figures/surprise.py --run figures/refined.pt --out figures/refined/after"


def same_goals(before, after):
    """Two contents of planning.json on the same tasks -> rows of both shares, and the difference goal by goal."""
    import common
    rows = []
    for new in after["rows"]:
        old = one(before["rows"], planner=new["planner"], frames=new["frames"])
        if not old or new["planner"] == "zero":
            continue
        for title, key, merge in (("mean body within 0.1", "mean_body", lambda task: sum(task) / len(task)),
                                  ("worst body within 0.1", "success", max),
                                  ("worst body within 0.05", "strict", max)):
            near = 0.05 if key == "strict" else 0.1
            gap = common.paired_interval(*([[merge(task) < near for task in run] for run in row["errors"]]
                                           for row in (new, old)))
            rows.append([new["planner"], str(after["budget"]["samples"]), title, percent(old[key], old[key + "_ci"]),
                         percent(new[key], new[key + "_ci"]), points(*gap),
                         *(f"{percent(old[part][key])}, {percent(new[part][key])}" if key in new[part] else ""
                           for part in ("contact", "no contact"))])
    return rows


def refined_goals(found):
    """The part of `refined` on test goals: '' if no two files are of the same ones."""
    files = [tuple(f"refined/{when}{more}/planning" for when in ("before", "after")) for more in ("", "-500")]
    pairs = [[found[name] for name in pair] for pair in files if all(name in found for name in pair)]
    pairs = [(a, b) for a, b in pairs if a["manifest"] == b["manifest"] and a["budget"] == b["budget"]]
    if not pairs:
        return ""
    (_, first), *more = pairs
    jump, path = (one(first["rows"], planner=f"{who} open loop") for who in ("macro", "short"))
    said = []
    for planner, name in (("macro open loop", "P2"), ("short open loop", "P1, rolled out")):
        old, new = (one(content["rows"], planner=planner) for content in pairs[0])
        fell = [one(found["refine"]["rows"], name=name, worlds="all", when=when) for when in ("before", "after")]
        if old and new and all(fell) and fell[1]["error"] < fell[0]["error"] and new["success"] < old["success"]:
            said.append(f"""
The error of {name.split(',')[0]} falls from {fell[0]['error']:.4f} to {fell[1]['error']:.4f} of the variance, and *{planner}* reaches fewer goals by the
worst body, {percent(new['success'])} instead of {percent(old['success'])}. Why is not settled; neither the losses nor variance and covariance
tell, goals do.
""")
    why = "" if not (more and jump and path) else f"""
One jump makes {jump['predictor_calls']:,.0f} predictor calls a plan, the short predictor rolled out
{path['predictor_calls']:,.0f}; so a jump with {more[0][1]['budget']['samples']} samples instead of {first['budget']['samples']} is tried as well."""
    return f"""On test goals, {first['rows'][0]['frames']} frames ahead, {first['precision']}, the same for both weights.{why}

{table(['planner', 'samples', 'goal reached', 'before', 'after', 'difference',
        'with a hit on the hidden way: before, after', 'without'], [row for pair in pairs for row in same_goals(*pair)])}
{"".join(said)}{"".join(source(content) for pair in pairs for content in pair)}"""


def refined(found):
    content = found["refine"]
    told, when = content["refined"], ("before", "after")
    gaps = {(r["name"], r["worlds"], r["when"]): number(r["error"], r["error_ci"], 4) for r in content["rows"]}
    errors = [[name, worlds, *(gaps[name, worlds, w] for w in when)]
              for name, worlds in dict.fromkeys((r["name"], r["worlds"]) for r in content["rows"])]
    plans = {(r["planner"], r["when"]): r for r in content["plans"]}
    tried = [[planner, title, *(percent(plans[planner, w][key], plans[planner, w][key + "_ci"]) for w in when)]
             for planner in dict.fromkeys(r["planner"] for r in content["plans"])
             for title, key in (("mean body", "mean_body"), ("worst body", "success"))]
    hits = sum(row["hits"] for row in told["rows"]) / len(told["rows"])
    text = [f"""The paper's epochs see the same sequences again and again, and what this model gets wrong are hits
between bodies, which most sequences do not have. So the whole model, encoders included, is trained on with the same
objective for {told['epochs']} epochs of as many sequences, all of them new in each epoch, and picked: {percent(hits)} have a hit in
the clips to be predicted ({content['minutes']:.0f} minutes on {told['device']}, {told['precision']}, with whatever else it was doing).
The optimiser starts anew, its rate rises to half of training's highest and falls to zero. The picking uses the
simulator's record of hits in training worlds; the model is not told, and worlds to validate and test on are as they
come. New worlds, more hits and more epochs come together here: which of them helps was not tried.

{table(['error on validation worlds', 'hit on the way', *when], errors)}

Squared error of the predicted embedding as a share of its variance. The encoders move, so each is measured in an
embedding of its own: one that falls may only have become easier. The goals reached are in the same world before and
after, and so say whether it did.

{table([f'of {content["tasks"]} validation goals', 'within 0.1', *when], tried)}

{picture('refine')}
{source(content)}""", refined_goals(found)]
    if "surprise" in found and "refined/after/surprise" in found:
        old, new = ({(r["rule"], r["level"]): r for r in found[name]["rows"]}
                    for name in ("surprise", "refined/after/surprise"))
        rows = [[rule, *(percent(r[rule, level]["share"], r[rule, level]["share_ci"]) for r in (old, new))]
                for rule, level in new if level == "both" and (rule, level) in old]
        text.append(f"""Does it know better what cannot happen? Share of pairs in which the film that breaks the rule surprises
more than the lawful one, both levels together. The control is no broken rule but a lawful hit against free flight: a
model that foresees hits is near 50 % there.

{table(['film', *when], rows)}
{source(found['refined/after/surprise'])}""")
    return "\n".join(text)


def hierarchy(found):
    content = found["hierarchy"]
    parts = []
    for frames in dict.fromkeys(r["frames"] for r in content["rows"]):
        rows = [[r["planner"], f"{r['samples']} x {r['iterations']}", percent(r["mean_body"], r["mean_body_ci"]),
                 *(percent(r[part]["mean_body"]) if "mean_body" in r.get(part, {}) else ""
                   for part in ("contact", "no contact")),
                 percent(r["success"]), f"{r['predictor_calls']:,.0f}", f"{r['seconds']:.2f}"]
                for r in content["rows"] if r["frames"] == frames]
        parts.append(f"**{frames} frames**\n\n" + table(
            ["planner", "setting", "mean body", "with contact", "without", "worst body", "calls", "seconds"], rows) + "\n")
    pairs = [[p["frames"], p["planner"], f"{p['samples']} x {p['iterations']}",
              *(points(p[k], p[k + "_ci"]) if k in p else "" for k in ("gain_calls", "gain_seconds")),
              number(p["saving"], p["saving_ci"], 1) if "saving" in p else ""] for p in content["pairs"]]
    return f"""Do two levels plan farther than one, or with less? Every planner chooses one force per clip, sees the
outcome and plans again, on {content['n']} goals of {content['tasks_of']} worlds per horizon. Each is tried with
several settings of the search (samples per image x iterations), so that success can be read against what it cost.

- *flat*: P1 rolled out to the goal; *flat, held*: the same, one force held for a macro-event: coarse actions without
  a coarse model
- *macro alone*: P2, jump after jump with a bridge between, planned again at each macro-event
- *mixed*: short steps up to the next macro-event before the goal, lift, then jumps
- *top-down*: jumps are planned to the goal; where the first of them lands is what the short level aims at
- *joint*: as mixed, but both levels' plans are improved in turn
- *oracle*: flat, in the true simulator with true positions

A call is one sample that a predictor evaluates, whichever: P2 is the larger one, which the seconds show. Seconds per
task are those of {content['tasks_side_by_side']} tasks side by side. Mean and worst body: within 0.1; "with contact" and
"without" split the mean body's share by whether the hidden way had a hit. Mixed and joint are
flat for the last five clips, top-down for the last nine: with one macro-event to go they are flat, and not tried.

{chr(10).join(parts)}
Against flat on the same tasks, mean body within 0.1, read off the line through flat's settings (linear in the
logarithm of what was spent). Gains, in points: the planner's share minus flat's at as many calls, or as many seconds.
Saving: the calls that flat needs for the same share, over the planner's own; 0 as an end of an interval says "as cheap
as flat's cheapest setting, or cheaper". Empty: outside of that line. Over all horizons and settings,
{two_levels(content['pairs'])} Some of many intervals miss 0 by chance.

{table(['frames', 'planner', 'setting', 'gain at equal calls', 'gain at equal seconds', 'saving of calls'], pairs)}

{picture('hierarchy')}
{source(content)}"""


def ablation(found):
    content = found["ablation"]

    def gain(row, key):
        return points(row[key], row[key + "_ci"])

    rows = [[r["variant"], *(part for key in ("closed mean_body", "closed success", "macro mean_body", "macro success")
                             for part in ((percent(r[key]), gain(r, key + " gain")) if key in r else ("", ""))),
             number(r["position r2"], digits=4), number(r["velocity r2"], digits=4), number(r["std_min"], digits=2),
             f"{r['rank']:.0f}"] for r in content["rows"]]
    return f"""The run trained again, with the same settings, seed and epochs, without each part; then
{content['tasks']} test goals, {content['frames']} frames ahead. Behind each share, in points, the paired difference
from the full model and its interval.

How to read it. Without the variance term embeddings may shrink to a point, without the covariance term to a few
directions: deviation and rank show which. P1 leads from the context encoder's space into the target encoder's, so in
one-step training it never meets what it must build on when it is rolled out: that row says that the two spaces
differ, not how much training on roll-outs is worth (with one shared encoder it would; not tried). With stopped targets the target encoder
is shaped by variance, covariance and maps alone. Position and velocity are read out linearly: a variant may score
well there and still not plan, since a plan needs distances that mean something.

{picture('ablation')}

{table(['variant', 'closed loop, mean body', 'gain', 'closed loop, worst body', 'gain', 'macro jump, mean body', 'gain',
        'macro jump, worst body', 'gain', 'position R2', 'velocity R2', 'smallest deviation', 'effective rank'], rows)}
{source(content)}"""


def speed(found):
    content = found["speed"]

    def rows(part, **chosen):
        return [r for r in content["rows"] if r["part"] == part and all(r[k] == v for k, v in chosen.items())]

    def seconds(x):
        return "not reached" if x is None else f"{x:,.0f} s"
    text = [picture("speed") + "\n"]
    if rows("time"):
        c = content["time"]
        ends = [[r["schedule"], seconds(r["seconds"]), percent(r["success"], r["success_ci"])] for r in rows("time")
                if r["epoch"] == r["schedule"]]
        text.append(f"""Training from scratch until {percent(c['goal'])} of {c['tasks']} validation goals are reached
(mean body within 0.1, replanned every clip; data generation counts, the start of Python and trying the goals do not):
{seconds(c['seconds_on_the_way'])} in the longest schedule; the shortest complete schedule that gets there:
{seconds(c['seconds_of_shortest_schedule'])}.

{table(['epochs, a complete schedule each', 'training', 'goals reached'], ends)}
""")
    if rows("step"):
        c = content["step"]
        rate = one(rows("step"), arm="shipped")["sequences_per_second"]
        arms = [[r["arm"], f"{1000 * r['seconds']:.1f} ms", f"{r['sequences_per_second']:,.0f}", number(r["times_shipped"], digits=2)]
                for r in rows("step")]
        text.append(f"""A training step of {c['batch']} sequences. Its {c['products']} matrix products
({c['operations'] / 1e9:.1f} billion operations), run by themselves in the same shapes and precision, take
{number(c['share'], c['share_quartiles'], 2)} of its time (median, quartiles of {c['repeats']} repetitions):
{c['operations_per_second'] / 1e9:,.0f} billion operations per second.

{table(['step', 'time', 'sequences per second', 'times the shipped one'], arms)}

At the shipped step's rate 300 epochs of 49,000 sequences are {300 * 49_000 / rate / 60:,.0f} minutes of steps alone.
""")
    for level, title in (("macro", "macro jump"), ("short", "short predictor rolled out")):
        if rows("plan", level=level):
            plans = [[r["planner"], r["calls"], f"{1000 * r['seconds']:.1f} ms", percent(r["overhead"]), number(r["cost"], r["cost_ci"], 4),
                      *(("", "") if r["planner"].startswith("ours") else (
                          number(r[k], r[k + "_ci"], 4) for k in ("ours_lower_by", "half_lower_by")))]
                     for r in rows("plan", level=level)]
            whole, half = (one(rows("plan", level=level), planner=who) for who in ("ours", "ours, half the calls"))
            slower = f", in {half['seconds'] / whole['seconds']:.1f} times the time here" if half else ""
            text.append(f"""One plan for one of {content['goals']} tasks, {title}: same model, cost and bounds. Same
samples and iterations, but for the row of half the plans: fewer samples and more iterations{slower}. What it gains is
the gain of that split, which was chosen on validation tasks; the others were not tried with it.

{table(['planner', 'plans tried', 'time', 'outside the predictor', 'cost reached', 'ours is lower by', 'with half the calls'], plans)}
""")
    if rows("simulator"):
        kinds = list(dict.fromkeys(e["hits"] for r in rows("simulator") for e in r["error"]))
        lines = []
        for r in rows("simulator"):
            error = {e["hits"]: f"{number(e['mean'], e['ci'], 5)}, n = {e['n']}" for e in r["error"]}
            lines.append([r["simulator"], f"{r['body_frames_per_second']:,.0f}", *(error.get(k, "") for k in kinds)])
        text.append(f"""Simulators on one core, {content['worlds']} worlds, {content['steps_per_frame']} steps per
frame. Error: mean distance from an event-driven solution after {content['frames']} frames, by the number of hits
between bodies.

{table(['simulator', 'body-frames per second', *(f'error, hits: {k}' for k in kinds)], lines)}
""")
    if rows("growth"):
        lines = []
        for what, slope in content["exponents"].items():
            points = [f"{r['size']:,}: {r['seconds']:.3g} s" for r in rows("growth", what=what)]
            lines.append([what, ", ".join(points), "" if slope is None else f"{slope:.2f}"])
        text.append(f"""Growth. sequences: data generation and a share of {content['share_of_an_epoch']:g} of an
epoch. frames, samples: one plan, short predictor. processes: an epoch of {content['sequences_of_processes']:,}
sequences, one thread each. Time goes with size to the power of the exponent.

{table(['what', 'time', 'exponent'], lines)}
""")
    if content["skipped"]:
        text.append(f"Not installed or not possible there, so skipped: {', '.join(content['skipped'])}.\n")
    lines = [[part, f"`{how['command']}`", f"{how['processor']}; {how['device']}", how["precision"]]
             for part, how in content["measured"].items()]
    text.append("Where each part was measured; times of different processors are not to be compared.\n\n"
                + table(["part", "command", "processor", "precision"], lines) + "\n")
    return "\n".join(text) + source(content)


def deviations(found):
    import hjepa
    c = found["curves"]["config"]
    fields = [f for f in dataclasses.fields(hjepa.Config) if f.name in c]

    def of(origin):
        return [f for f in fields if f.metadata["source"] == origin]

    def values(origin):
        return "; ".join(f"{f.name} {readable(c[f.name])}" for f in of(origin))

    def without(variant):
        row = one(found["ablation"]["rows"], variant=variant) if "ablation" in found else None
        if not row or "closed mean_body gain" not in row:
            return "the ablation has not been run yet"
        closed, jump = (points(row[k], row[k + "_ci"]) for k in ("closed mean_body gain", "macro success gain"))
        return f"without: closed loop, mean body, {closed} points;\n  macro jump, worst body, {jump}"
    fixed = [[f.name, readable(f.default), readable(c[f.name]), f.metadata["meaning"]] for f in of("paper")]
    return f"""Only the abstract is public. It fixes joint training without a moving average, VICReg, two taps of a
one-dimensional ViT, a short predictor and one that forecasts a macro-event, forces as conditions, the cross-entropy
method in the latent, and these settings:

{table(['setting', "the paper's", 'this run', 'meaning'], fixed)}

Where we go another way, and why:

- **Bridge and lift.** Two small maps (weight {c['map_weight']:g}; `--map-weight 0` removes them) lead from target
  embeddings to the context's deep one. They let the levels be chained, and are meant to keep the deep target from
  dropping what is hard to predict ({without('no maps')}).
- **Velocity is observed.** Positions alone would leave velocity to differences of a few hundredths
  ({without('positions only')}).
- **Clips.** Inputs are clips of {c['hold']} frames that do not overlap, so nothing but physics can be predicted.
- **Adaptive predictors.** Forces shift, scale and gate each block instead of being added.
- **Symmetries.** Training samples are seen in random flips and swaps of the box ({without('no symmetries')}).
  Plans are judged by the mean over {c['views']} such images (`--views 1` for one).
- **Mean, not sum.** The squared error is averaged over dimensions, as in the code of VICReg's authors; their paper
  sums. The variance term is summed over both branches; that code halves it.
- **Comparison** with the paper ends at the composite (about {found['curves']['paper'][0]} to about
  {found['curves']['paper'][1]}): it gives nothing else.

What the abstract leaves open, {len(of('design') + of('tuned'))} of {len(fields)} settings, we had to choose. Values
of this run:

- Before training, by what the world needs or by common practice: {values('design')}.
- On validation worlds: {values('tuned')}.
- As VICReg's authors: {values('vicreg')}.

`python hjepa.py config` says what each of them means.
"""


def seeds(found):
    content = found[EXTRA]
    named = {"zero": "zero force", "oracle": "oracle: true simulator, true positions",
             "macro open loop": "macro, one jump", "short open loop": "short, open loop",
             "short replanned": "short, replanned every clip"}
    near, rows = 0.1, []
    for r in content["rows"]:
        gaps = r["errors"] if len(r["errors"]) == len(content["seeds"]) else []
        for title, key, merge in (("mean body", "mean_body", lambda task: sum(task) / len(task)),
                                  ("worst body", "success", max)):
            each = [percent(sum(merge(task) < near for task in run) / len(run)) for run in gaps]
            rows.append([named.get(r["planner"], r["planner"]), title, *(each or ["" for _ in content["seeds"]]),
                         percent(r[key], r[key + "_ci"])])
    many = len(content["seeds"])
    return f"""How much does another training differ? The preset `quick`, {content['epochs']} epochs, trained {many} times with
other start weights, batches and training worlds, on the same {content['n']} test goals,
{content['rows'][0]['frames']} frames ahead. Where there are shares seed by seed, the intervals of the last column draw seeds first and tasks
within them. {many} seeds show a spread and do not measure it well.

{table(['planner', 'within 0.1', *(f'seed {seed}' for seed in content['seeds']), 'all'], rows)}
{source(content)}"""


def readable(value):
    """A setting without brackets and trailing zeros."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(readable, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def limits(found):
    trained = {seed for name, content in found.items() if "/" not in name for seed in content["seeds"]}
    short = ", but for the section *Other training seeds*" if EXTRA in found else ""
    one_seed = f"One training seed{short}: how much another training of this length would differ is not\n  known."
    known = [
        "One micro-world, full state in the observation: what is shown here is a mechanism, not a method for pictures\n"
        "  or robots.",
        "Goals are clips of the same world and so always reachable. Nobody asks for the impossible, and nothing tells\n"
        "  when to give up.",
        one_seed if len(trained) < 2 else f"{len(trained)} training seeds: enough to see a spread, not to measure it well.",
        "Decoded positions and linear probes see what is linear in the embedding; what they miss may still be in it.",
        "The length of preset `quick` (9 epochs, not 8) and the two images that plans are judged by were settled on\n"
        "  validation goals, where neither made a difference beyond chance, but after both had been seen on the test\n"
        "  goals of this report too.",
        "Nothing here is compared with a model that predicts the state itself, or reconstructs it: that predicting\n"
        "  embeddings is better is not shown.",
        "How two levels are compared with flat (at equal calls and seconds, and by the calls saved) was settled after\n"
        "  test goals had been seen, each time towards the stricter reading; a fifth setting of the search was dropped\n"
        "  for time after its rows at 25 frames. Flat has the settings of the others, not some of its own: splits of the same\n"
        "  calls into 6 x 12 or 24 x 3 instead of 12 x 6 did not help it, nor mixed, on 96 validation goals.",
        "Seconds are of the machine named under each table, with whatever else it was doing.",
        "Only the abstract of the paper is public, so nothing here can be compared with its figures beyond the\n"
        "  composite's start and end."]
    ghost = one(found["surprise"]["rows"], rule="pass-through", level="both") if "surprise" in found else None
    if ghost and ghost["share"] < 0.75:
        known.insert(2, "Hits between bodies are not well learnt: a film in which bodies pass through each other\n"
                        f"  surprises the model more than the truth in {percent(ghost['share'], ghost['share_ci'])} of "
                        "the pairs only.")
    return "".join(f"- {point}\n" for point in known)


EXTRA = "seeds/planning"                        # a shorter training, with several seeds
BESIDE = {**REFINED, EXTRA: "figures/planning.py --run runs/quick --run runs/quick-1 --run runs/quick-2 --frames 25 "
                            "--out figures/seeds"}          # files that are not of this very folder: their commands
CHAPTERS = (                                    # title, its sections: title, JSON file, function
    ("The system", (("", "curves", system), ("", "diagram", diagram))),
    ("The objective, and why each term", (("", "curves", objective),)),
    ("The planner", (("", "curves", planner),)),
    ("Protocol: worlds, goals, intervals, controls", (("", "curves", protocol),)),
    ("Training behaviour", (("Losses", "curves", training), ("Planning on validation worlds", "curves", watched))),
    ("The representation", (("Diagnostic protocol: did it collapse?", "diagnose", diagnostics),
                            ("Linear probes", "probe", probes),
                            ("What is in the representation", "representation", representation))),
    ("Prediction", (('Does it predict, does it answer "what if"?', "dynamics", dynamics),
                    ("Does it know what cannot happen?", "surprise", surprise))),
    ("Planning", (("Goals reached", "plan", plans), ("One episode", "episode", episode),
                  ("Does it reach goals because of the model?", "planning", planning),
                  ("How a search spends its plans", "search", searched),
                  ("Other training seeds", EXTRA, seeds),
                  ("New worlds, and more hits", "refine", refined),
                  ("The macro level, trained on", "extend", extended),
                  ("Two levels against one", "hierarchy", hierarchy))),
    ("Which part carries it?", (("", "ablation", ablation),)),
    ("How fast is it, and how does it grow?", (("", "speed", speed),)),
    ("Deviations from the paper, and what it leaves open", (("", "curves", deviations),)))
ORDER = tuple(dict.fromkeys(name for _, sections in CHAPTERS for _, name, _ in sections))
TITLE = "H-JEPA on a three-body micro-world: technical report"


def count(text):
    """Markdown -> the same with chapters, sections and figures numbered in their order."""
    chapter = section = figures = 0
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("## "):
            chapter, section = chapter + 1, 0
            lines[i] = f"## {chapter}. {line[3:]}"
        elif line.startswith("### "):
            section += 1
            lines[i] = f"### {chapter}.{section} {line[4:]}"
        elif line.startswith("*Figure: "):
            figures += 1
            lines[i] = f"*Figure {figures}: {line[9:]}"
    return "\n".join(lines)


def command(name):
    """What writes NAME.json."""
    if name in BESIDE:
        return BESIDE[name]
    return f"figures/{name}.py" if (HERE / f"{name}.py").exists() else f"hjepa.py {name}"


def compose(found, blame):
    """JSON contents by name -> the report in Markdown. blame(name) is told whose section comes next."""
    body = []
    for title, sections in CHAPTERS:
        there = [section for section in sections if section[1] in found]
        if there:
            body.append(f"## {title}\n")
        for subtitle, name, write_section in there:
            blame(name)
            body += [f"### {subtitle}\n"] * bool(subtitle) + [write_section(found).strip() + "\n"]
    blame(None)
    missing = [name for name in (*ORDER, *(REFINED if "refine" in found else ())) if name not in found]
    if missing:
        body.append("## Not run yet\n\n" + "\n".join(
            f"- `python {command(name)}`" for name in missing) + "\n")
    body.append("## Limits\n\n" + limits(found))
    lengths = {tuple(content.get(k) for k in ("epochs", "sequences", "further_steps"))
               for name, content in found.items() if "/" not in name}
    head = f"""# {TITLE}

Generated by `python figures/report.py`; each number comes from a JSON file of this folder, named under its table.
{'**The files are not all of trainings of the same length: compare what stands under the tables.**' if len(lengths) > 1 else ''}

{abstract(found)}"""
    return count("\n".join([head, *body]))


def find(content, path):
    """JSON content, 'rows[planner=zero][frames=25].error' or 'rows[-1].error' -> the value there."""
    for step in re.findall(r"[^.\[]+|\[[^\]]*\]", path):
        if "=" in step and step.startswith("["):
            key, value = step[1:-1].split("=", 1)
            content = [row for row in content if str(row[key]) == value]
        elif step.startswith("["):
            content = content[int(step[1:-1])]
        else:
            content = (content[0] if isinstance(content, list) else content)[step]
    return content


def refresh(text, root):
    """README text -> the same with each annotated number as its JSON file says."""
    def renew(match):
        unit, file, path, share, digits = match.groups()
        value = find(json.loads((root / file).read_text()), path) * (100 if share else 1)
        return f"{value:.{digits}f}{unit}<!-- {file} {path}{share or ''} {digits} -->"
    return re.sub(r"-?\d[\d,.]*([^\d|\n<>]{0,16})<!-- (\S+\.json) (.+?)( %)? (\d+) -->", renew, text)


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake with one line."""

    def error(self, message):
        raise ValueError(f"{message} (see --help)")


def write(path, text):
    """Whole or not at all."""
    part = path.with_name(".part." + path.name)
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(argv=None):
    """-> exit code: 0 done, 2 something to mend (one line says what)."""
    parser = Parser(prog="report", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--figures", type=Path, default=HERE, help="folder of the JSON files and of the report")
    parser.add_argument("--readme", action="store_true", help="also bring README's numbers up to date")
    reading = None                                                        # the file to blame

    def blame(name):
        nonlocal reading
        reading = name and folder / f"{name}.json"
    try:
        args = parser.parse_args(argv)
        folder, readme, found = args.figures, HERE.parent / "README.md", {}
        for name in (*ORDER, *REFINED):
            blame(name)
            if reading.exists():
                found[name] = json.loads(reading.read_text())
        text = compose(found, blame)
        blame("episode")
        try:
            whole = page.whole(text, TITLE, folder, page.player(found["episode"]) if "episode" in found else "")
        except ImportError as e:
            if e.name != "markdown":
                raise
            whole = None
        blame(None)
        write(folder / "report.md", text)
        print(f"wrote {folder / 'report.md'}")
        if whole is None:
            print("report.html was not written: it needs `pip install -r figures/requirements-report.txt`")
        else:
            write(folder / "report.html", whole)
            print(f"wrote {folder / 'report.html'}, {len(whole) / 1e6:.1f} MB")
        if args.readme:
            reading = readme
            write(readme, refresh(readme.read_text(), HERE.parent))
            print(f"brought the numbers of {readme.name} up to date")
    except OSError as e:
        what = f"{e.filename or reading or folder}: {e.strerror or e}"
        print(f"report: {what}: mend that, or choose another --figures", file=sys.stderr)
        return 2
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as e:
        # A file of another form, or half of one.
        why = str(e) if reading is None else (f"{reading} is not what its command writes ({type(e).__name__}: {e}): "
                                              "run that command again")
        print(f"report: {' '.join(why.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
