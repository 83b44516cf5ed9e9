"""Writes figures/report.md, the technical report, from the JSON files beside this script.

    python figures/report.py [--figures figures] [--readme]

--readme also brings the numbers of README.md up to date.

Text stands here, numbers only in the JSON files, each written by the command named in it. A study that has
not been run is named as missing, with the command that runs it. In README a number is followed by a comment
that says where it comes from, `<!-- FILE PATH [%] DIGITS -->`; only such numbers are touched.
"""
import argparse
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def table(head, rows):
    """Column names, rows of strings -> a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def percent(x, ci=None):
    """0.954, [0.92, 0.98] -> '95.4 % (92.0 to 98.0)'."""
    return f"{100 * x:.1f} %" + (f" ({100 * ci[0]:.1f} to {100 * ci[1]:.1f})" if ci else "")


def number(x, ci=None, digits=3):
    """0.954, [0.92, 0.98] -> '0.954 (0.920 to 0.980)'."""
    return f"{x:.{digits}f}" + (f" ({ci[0]:.{digits}f} to {ci[1]:.{digits}f})" if ci else "")


def source(content):
    """The line under each table: where its numbers come from."""
    seeds = ", ".join(str(s) for s in content["seeds"])
    return (f"\n*`{content['command']}`; n = {content['n']}, training seed {seeds}, {content['epochs']} epochs of "
            f"{content['sequences']:,} sequences; measured on {content['device']}, torch {content['torch']}.*\n")


def system(curves):
    c = curves["config"]
    return f"""## 1. The system

H-JEPA (Patil, *Micro-World Models*, Zenodo 2026, doi 10.5281/zenodo.20403374) predicts in representation space, at two
time scales, and plans there. Only the paper's abstract is public; what it does not fix is our choice, marked in
`python hjepa.py config`.

**World.** {len(c['masses'])} discs of mass {', '.join(f'{m:g}' for m in c['masses'])} in the box [-1, 1]², area proportional to mass,
elastic hits, reflecting walls. A force of at most {c['force_limit']:g} per body and axis is held for {c['hold']} frames of
{c['frame']:g} s. Position and velocity of each body are observed.

**Clips.** A clip is {c['hold']} frames, a macro-event {c['steps']} clips, {c['steps'] * c['hold']} frames. The model sees one clip and predicts those
that follow, given the forces.

**Encoders.** Context and target encoder, each a one-dimensional Vision Transformer over the frames of a clip (width
{c['width']}, {c['heads']} heads): the shallow tap after block {c['tap']}, the deep tap after block {c['depth']}, {c['latent']} dimensions each.
{'One encoder serves both roles.' if c['shared'] else 'Both are trained; no moving average, no stopped gradient.'}

**Predictors.** The short one predicts the next clip's shallow embedding and is trained rolled out on its own
predictions; the macro one predicts the deep embedding {c['steps'] * c['hold']} frames ahead in one jump. Both are residual networks
whose blocks are shifted, scaled and gated by the forces (widths {c['short_width']} and {c['macro_width']}). Two small maps, bridge and
lift, lead from target embeddings to the context's deep embedding. {curves['parameters'] / 1e6:.2f} M parameters in all.

**Objective.** With z the four sets of embeddings (context and target, shallow and deep):

    composite = {c['pred_weight']:g} [ mean_k MSE(P1^k, t1_k) + MSE(P2, t2) ] + {c['std_weight']:g} sum std(z) + {c['cov_weight']:g} sum cov(z)
    total     = composite + {c['map_weight']:g} [ MSE(bridge(t2), z2) + MSE(lift(t1), z2) ]

    std(z) = 1/D sum_j max(0, 1 - sqrt(Var(z_j) + 1e-4))          VICReg eq. 1-2
    cov(z) = 1/D sum_(i != j) Cov(z)_ij^2                         VICReg eq. 3-4

**Planner.** The weights are frozen. The cross-entropy method ({c['samples']} samples, {c['iterations']} iterations, {c['elites']} elites) searches the
forces whose predicted embedding is nearest to the target encoder's embedding of a goal clip, on average over {c['views']} mirror images of the box;
no reward, no decoder.
"""


def training(curves):
    rows, marks = curves["rows"], []
    for epoch in sorted({1, 2, 5, 10, 30, 100, 200, 300, rows[-1]["epoch"]}):
        marks += [row for row in rows if row["epoch"] == epoch]
    names = ("composite", "pred1", "pred2", "bridge", "lift", "std_min", "rank")
    shown = [[row["epoch"]] + [f"{row[k]:.3f}" if k in row else "" for k in names]
             + [percent(row[k]) if k in row else "" for k in ("closed", "macro")] for row in marks]
    return f"""## 2. Training behaviour

![loss curves](curves.png)

The composite falls from {rows[0]['first_step']:.1f} at the first step to {rows[-1]['composite']:.1f} over epoch {rows[-1]['epoch']} (the paper: about
{curves['paper'][0]} to about {curves['paper'][1]}). {curves['minutes']:.1f} minutes on {curves['trained_on']}, {curves['precision']} matrix products, validation
plans included. closed and macro: share of validation goals reached (mean body within 0.1), replanned every clip with the
short predictor, and in one open-loop jump with the macro predictor.

{table(['epoch', *names, 'closed', 'macro'], shown)}
{source(curves)}"""


def diagnostics(diagnose):
    rows = [[r["set"], number(r["std_min"]), number(r["std_mean"]), number(r["std_max"]), number(r["correlation"]),
             f"{r['rank']:.0f} of {r['dimensions']}"] for r in diagnose["rows"]]
    return f"""## 3. Diagnostic protocol: did it collapse?

On test worlds, per tap and branch: standard deviation of each dimension, mean absolute off-diagonal correlation, spectrum
of the covariance, and effective rank (RankMe). A collapsed representation has deviations at 0 or a rank of a few.

![variance and covariance](diagnose.png)

{table(['set', 'smallest deviation', 'mean', 'largest', 'mean abs. correlation', 'effective rank'], rows)}
{source(diagnose)}"""


def probes(probe):
    targets = list(dict.fromkeys(r["target"] for r in probe["rows"]))
    sources = list(dict.fromkeys(r["source"] for r in probe["rows"]))
    r2 = {(r["source"], r["target"]): r["r2"] for r in probe["rows"]}
    return f"""## 4. Linear probes

Ridge regression on the frozen embedding of one clip: fitted on training worlds, strength chosen on validation worlds, R2 on
test worlds. Position and velocity are in the observation, so decoding them is a sanity check. Energy and pair distance are
not linear in the raw clip: what the encoder adds shows there.

![probes](probe.png)

{table(['from', *targets], [[s, *(number(r2[s, t], digits=4) for t in targets)] for s in sources])}
{source(probe)}"""


def plans(plan):
    rows = [[r["planner"], percent(r["mean_body"], r["mean_body_ci"]), percent(r["success"], r["success_ci"]),
             percent(r["strict"]), number(r["error"])] for r in plan["rows"]]
    return f"""## 5. Planning

{plan['n']} goals in test worlds, {plan['frames']} frames ahead: what the same world shows under hidden random forces. Left out are goals
that zero force nearly reaches. The state at the goal's last frame counts. CEM {plan['samples']} x {plan['iterations']}, seen in {plan['views']} images
of the box, {plan['elites']} elites, the same for
each planner, {plan['precision']}. {sum(plan['contact'])} of the goals have a body-body hit on the hidden way. Intervals: bootstrap over goals.

![plans](plan.png)

{table(['planner', 'mean body within 0.1', 'worst body within 0.1', 'worst within 0.05', 'mean error'], rows)}
{source(plan)}"""


def representation(content):
    targets = list(dict.fromkeys(r["target"] for r in content["rows"]))
    r2 = {(r["source"], r["target"]): number(r["r2"], r["r2_ci"]) for r in content["rows"]}
    sources = list(dict.fromkeys(r["source"] for r in content["rows"]))
    gauges = [[g["set"], number(g["std_min"]), f"{g['rank']:.0f} of {g['dimensions']}", percent(g["within_mean"]),
               percent(g["within_min"])] for g in content["gauges"]]
    return f"""## What is in the representation

Within a world: the share of a dimension's variance that is found between clips of one sequence. A representation can pass
VICReg by encoding what never changes; then this share would be near 0.

![representation](representation.png)

{table(['set', 'smallest deviation', 'effective rank', 'variance within a world, mean', 'smallest'], gauges)}

R2 of linear probes on test worlds, with controls (raw clip, untrained encoder, shuffled labels):

{table(['from', *targets], [[s, *(r2.get((s, t), '') for t in targets)] for s in sources])}
{source(content)}"""


def dynamics(content):
    split = [r for r in content["rows"] if r["forces"] not in ("shuffled", "zero")]
    last = max(r["frames"] for r in split)
    methods = list(dict.fromkeys(r["method"] for r in split if r["frames"] == last))
    contacts = list(dict.fromkeys(str(r["contacts"]) for r in split))
    error = {(r["method"], str(r["contacts"])): number(r["position_error"], r["position_error_ci"])
             for r in split if r["frames"] == last and "position_error" in r}
    told = [[r["method"], r["forces"], number(r["position_error"], r["position_error_ci"])] for r in content["rows"]
            if r["frames"] == last and str(r["contacts"]) == "all" and r["method"] in ("P1", "P2")]
    pushed = [[r["level"], r["frames"], f"{r['mass']:g}", *(number(r[k], r[k + "_ci"]) for k in (
        "pearson", "slope", "sign_agreement", "leakage"))] for r in content["counterfactuals"] if r["body"] != "others"]
    return f"""## Does it predict, does it answer "what if"?

Decoded position error after {last} frames, in box half-widths, by the number of body-body contacts on the way:

![dynamics](dynamics.png)

{table(['method', *contacts], [[m, *(error.get((m, c), '') for c in contacts)] for m in methods])}

The same with true, shuffled and zero forces told to the model, all worlds:

{table(['predictor', 'forces', 'position error'], told)}

Counterfactuals: the same start, a force on one body against none. Decoded change of the pushed body against the
simulator's; leakage is how far the other bodies seem to move before any contact, as a share of the pushed one's move.

{table(['level', 'frames', 'mass', 'Pearson', 'slope', 'sign agreement', 'leakage'], pushed)}
{source(content)}"""


def surprise(content):
    rules = list(dict.fromkeys(r["rule"] for r in content["rows"]))
    levels = list(dict.fromkeys(r["level"] for r in content["rows"]))
    share = {(r["rule"], r["level"]): percent(r["share"], r["share_ci"]) for r in content["rows"]}
    return f"""## Does it know what cannot happen?

Matched pairs with the same start and forces, one rule broken. Share of pairs in which the impossible film surprises more
(chance: 50 %). Control: a lawful hit against lawful free flight. A share near 100 % there means that the model is
surprised by any hit: it has not learnt to foresee them, and the rules that come with a hit must be read with that in mind.

![surprise](surprise.png)

{table(['rule', *levels], [[r, *(share.get((r, k), '') for k in levels)] for r in rules])}
{source(content)}"""


def planning(content):
    parts = []
    for frames in dict.fromkeys(r["frames"] for r in content["rows"]):
        rows = [[r["planner"], percent(r["success"], r["success_ci"]), percent(r["strict"], r["strict_ci"]),
                 percent(r["mean_body"], r["mean_body_ci"]), *(
                     percent(r[part]["success"]) if "success" in r[part] else "" for part in ("contact", "no contact")),
                 number(r["skill"], r["skill_ci"], 2),
                 f"{r['predictor_calls']:,.0f}", f"{r['seconds']:.2f}"]
                for r in content["rows"] if r["frames"] == frames]
        parts.append(f"### {frames} frames\n\n" + table(
            ["planner", "worst body within 0.1", "within 0.05", "mean body within 0.1", "with contact", "without", "skill",
             "predictor calls", "seconds"], rows))
    return f"""## Does it reach goals, and because of the model?

The protocol's rows. Success counts the worst body; "with contact" and "without" split it by whether the hidden way had a
body-body hit. Skill is 1 - error / error of zero force. Predictor calls count samples, once for each image of the box;
for simulator rows, which need one image only, simulated clips.

![planning](planning.png)

{chr(10).join(parts)}
{source(content)}"""


def ablation(content):
    def gain(row, key):
        return f"{100 * row[key]:+.1f} ({100 * row[key + '_ci'][0]:+.1f} to {100 * row[key + '_ci'][1]:+.1f})"
    rows = [[r["variant"], *(part for key in ("closed mean_body", "closed success", "macro mean_body")
                             for part in ((percent(r[key]), gain(r, key + " gain")) if key in r else ("", ""))),
             number(r["position r2"], digits=4), number(r["velocity r2"], digits=4), number(r["std_min"], digits=2),
             f"{r['rank']:.0f}"] for r in content["rows"]]
    return f"""## Which part carries it?

The run trained again, with the same settings, seed and epochs, without each part; then {content['tasks']} test goals, {content['frames']} frames
ahead. Behind each share, in points, the paired difference from the full model and its interval.

![ablation](ablation.png)

{table(['variant', 'closed loop, mean body', 'gain', 'closed loop, worst body', 'gain', 'macro jump, mean body', 'gain',
        'position R2', 'velocity R2', 'smallest deviation', 'effective rank'], rows)}
{source(content)}"""


def speed(content):
    def rows(part, **chosen):
        return [r for r in content["rows"] if r["part"] == part and all(r[k] == v for k, v in chosen.items())]

    def seconds(x):
        return "not reached" if x is None else f"{x:,.0f} s"
    text = ["## How fast is it, and how does it grow?\n\n![speed](speed.png)\n"]
    if rows("time"):
        c = content["time"]
        ends = [[r["schedule"], seconds(r["seconds"]), percent(r["success"], r["success_ci"])] for r in rows("time")
                if r["epoch"] == r["schedule"]]
        text.append(f"""Training from scratch until {percent(c['goal'])} of {c['tasks']} validation goals are reached (mean body within 0.1, replanned
every clip; data generation counts, trying the goals does not): {seconds(c['seconds_on_the_way'])} in the longest schedule; the shortest complete
schedule that gets there: {seconds(c['seconds_of_shortest_schedule'])}.

{table(['epochs, a complete schedule each', 'training', 'goals reached'], ends)}
""")
    if rows("step"):
        c = content["step"]
        arms = [[r["arm"], f"{1000 * r['seconds']:.1f} ms", f"{r['sequences_per_second']:,.0f}", number(r["times_shipped"], digits=2)]
                for r in rows("step")]
        text.append(f"""A training step of {c['batch']} sequences. Its {c['products']} matrix products ({c['operations'] / 1e9:.1f} billion operations), run by themselves in the same
shapes and precision, take {number(c['share'], c['share_quartiles'], 2)} of its time (median, quartiles of {c['repeats']} repetitions): {c['operations_per_second'] / 1e9:,.0f} billion operations per second.

{table(['step', 'time', 'sequences per second', 'times the shipped one'], arms)}
""")
    for level, title in (("macro", "macro jump"), ("short", "short predictor rolled out")):
        if rows("plan", level=level):
            plans = [[r["planner"], r["calls"], f"{1000 * r['seconds']:.1f} ms", percent(r["overhead"]), number(r["cost"], r["cost_ci"], 4),
                      *(("", "") if r["planner"] == "ours" else (number(r["ours_lower_by"], r["ours_lower_by_ci"], 4),
                                                                 r["calls_to_match"] or "more than three times as many"))]
                     for r in rows("plan", level=level)]
            text.append(f"""One plan for one of {content['goals']} tasks, {title}: same model, cost, bounds, samples and iterations.

{table(['planner', 'predictor calls', 'time', 'outside the predictor', 'cost reached', 'ours is lower by', 'calls in which ours gets there'], plans)}
""")
    if rows("simulator"):
        kinds = list(dict.fromkeys(e["hits"] for r in rows("simulator") for e in r["error"]))
        lines = []
        for r in rows("simulator"):
            error = {e["hits"]: f"{number(e['mean'], e['ci'], 5)}, n = {e['n']}" for e in r["error"]}
            lines.append([r["simulator"], f"{r['body_frames_per_second']:,.0f}", *(error.get(k, "") for k in kinds)])
        text.append(f"""Simulators on one core, {content['worlds']} worlds, {content['steps_per_frame']} steps per frame. Error: mean distance from an event-driven solution after
{content['frames']} frames, by the number of hits between bodies.

{table(['simulator', 'body-frames per second', *(f'error, hits: {k}' for k in kinds)], lines)}
""")
    if rows("growth"):
        lines = []
        for what, slope in content["exponents"].items():
            points = [f"{r['size']:,}: {r['seconds']:.3g} s" for r in rows("growth", what=what)]
            lines.append([what, ", ".join(points), "" if slope is None else f"{slope:.2f}"])
        text.append(f"""Growth. sequences: data generation and a share of {content['share_of_an_epoch']:g} of an epoch. frames, samples: one plan, short predictor. processes: an
epoch of {content['sequences_of_processes']:,} sequences, one thread each. Time goes with size to the power of the exponent.

{table(['what', 'time', 'exponent'], lines)}
""")
    if content["skipped"]:
        text.append(f"Not installed or not possible there, so skipped: {', '.join(content['skipped'])}.\n")
    return "\n".join(text) + source(content)


SECTIONS = {"curves": (system, training), "diagnose": (diagnostics,), "probe": (probes,), "plan": (plans,),
            "representation": (representation,), "dynamics": (dynamics,), "surprise": (surprise,),
            "planning": (planning,), "ablation": (ablation,), "speed": (speed,)}
LIMITS = """## Limits

One world, three bodies, full state in the observation: what is shown here is a mechanism, not a method for pictures or
robots. Goals are clips of the same world and so always reachable. Only the abstract of the paper is public, so nothing
here can be compared with its figures beyond the composite's start and end.
"""


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
    try:
        args = parser.parse_args(argv)
        folder, readme = args.figures, HERE.parent / "README.md"
        parts = ["# H-JEPA on a three-body micro-world: technical report\n\nGenerated by `python figures/report.py`; "
                 "each number comes from a JSON file of this folder.\n"]
        missing = []
        for name, sections in SECTIONS.items():
            path = folder / f"{name}.json"
            if path.exists():
                reading = path
                content = json.loads(path.read_text())
                parts += [section(content) for section in sections]
            else:
                missing.append(name)
        reading = None
        if missing:
            parts.append("## Not run yet\n\n" + "\n".join(
                f"- `python {'figures/' + name + '.py' if (HERE / f'{name}.py').exists() else 'hjepa.py ' + name}`"
                for name in missing) + "\n")
        write(folder / "report.md", "\n".join([*parts, LIMITS]))
        print(f"wrote {folder / 'report.md'}")
        if args.readme:
            reading = readme
            write(readme, refresh(readme.read_text(), HERE.parent))
            print(f"brought the numbers of {readme.name} up to date")
    except OSError as e:
        print(f"report: {e.filename}: {e.strerror}: mend that, or choose another --figures", file=sys.stderr)
        return 2
    except (ValueError, LookupError, TypeError, AttributeError) as e:     # a file of another form, or half of one
        why = str(e) if reading is None else (f"{reading} is not what its command writes ({type(e).__name__}: {e}): "
                                              "run that command again")
        print(f"report: {' '.join(why.split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
