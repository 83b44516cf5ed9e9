"""The tables of the report and of README: each a function of the result files, returning Markdown.

A table is named after its function. @uses says which files it reads; the function is given their
contents in that order. Numbers become text in percent, points and number, nowhere else.
"""
import contextlib
import dataclasses

from lib.resolve import Missing

import hjepa

TABLES = {}                                     # name -> function of ResultFiles, a Markdown table
QUANTITIES = {}                                 # name -> function of ResultFiles, a number

PRECISION = {"fp32": "float32", "bf16": "bf16 matrix products"}           # as a reader sees it

WRITTEN_BY = {                                  # commands that are not `figures/NAME.py --run RUN`
    "curves": "python hjepa.py curves --run RUN",
    "diagnose": "python hjepa.py diagnose --run RUN",
    "probe": "python hjepa.py probe --run RUN",
    "plan": "python hjepa.py plan --run RUN",
    "diagram": "python figures/report/diagram.py --run RUN",
    "seeds/planning": "python figures/planning.py --run RUN --run RUN-1 --run RUN-2 --frames 25 "
                      "--out DIR/seeds",
}

NAMES = {                                       # planners, as a reader sees them
    "zero": "zero force",
    "random": "random force",
    "shuffled goal": "short, replanned, towards another goal",
    "untrained": "short, replanned, untrained model",
    "oracle": "true simulator, true positions (oracle)",
    "simulator + latent cost": "true simulator, latent cost",
    "model + decoded cost": "short, replanned, cost on decoded positions",
    "macro open loop": "macro, one jump",
    "short open loop": "short, open loop",
    "short replanned": "short, replanned every clip",
    "both levels": "both levels, replanned every clip",
    "fly and fold": "true flight and walls, no contacts (fly and fold)",
    "first guess": "first guess, no search",
    "macro from guess": "macro, one jump, from the first guess",
    "short from guess": "short, open loop, from the first guess",
    "replanned from guess": "short, replanned, from the first guess",
    "state network": "network that predicts the state, replanned",
    "replanned from guess, a tenth": "the same with a tenth of the plans",
    "both levels from guess": "both levels, from the first guess",
}

FAR = ("oracle", "simulator + latent cost", "fly and fold", "state network", "model + decoded cost",
       "short open loop", "short from guess", "short replanned", "replanned from guess",
       "replanned from guess, a tenth", "both levels", "both levels from guess")   # at 50 and 75


def command(file):
    """-> the command that writes FILE.json of a folder of results."""
    return WRITTEN_BY.get(file, f"python figures/{file}.py --run RUN")


# Numbers as text.

def percent(x, ci=None, digits=1):
    """0.954, [0.92, 0.98] -> '95.4 % (92.0 to 98.0)'."""
    text = f"{100 * x:.{digits}f} %"
    if ci is None:
        return text
    return f"{text} ({100 * ci[0]:.{digits}f} to {100 * ci[1]:.{digits}f})"


def points(x, ci=None, digits=1):
    """0.031, [-0.01, 0.07] -> '+3.1 (-1.0 to +7.0)': a difference of two shares, in points."""
    text = f"{100 * x:+.{digits}f}"
    if ci is None:
        return text
    return f"{text} ({100 * ci[0]:+.{digits}f} to {100 * ci[1]:+.{digits}f})"


def number(x, ci=None, digits=3):
    """0.954, [0.92, 0.98] -> '0.954 (0.920 to 0.980)'; 49000 with no digits -> '49,000'."""
    text = f"{x:,.{digits}f}"
    if ci is None:
        return text
    return f"{text} ({ci[0]:,.{digits}f} to {ci[1]:,.{digits}f})"


def signed(x, ci, digits=3):
    """-0.0113, [-0.016, -0.007] -> '-0.011 (-0.016 to -0.007)': a difference of two errors."""
    return f"{x:+.{digits}f} ({ci[0]:+.{digits}f} to {ci[1]:+.{digits}f})"


def listed(words):
    """['a', 'b', 'c'] -> 'a, b and c'."""
    words = [readable(word) for word in words]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def readable(value):
    """A setting without brackets and trailing zeros."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(readable(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def grid(head, rows):
    """Column names, rows of cells -> a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    return "\n".join(lines)


# What tables share.

@contextlib.contextmanager
def blaming(file):
    """What is not there becomes Missing; a file of another form, a ValueError that names it."""
    try:
        yield
    except Missing:
        raise
    except LookupError as error:
        raise Missing(file, error) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{file}.json is not what `{command(file)}` writes ({error}): run that "
                         "again") from None


def uses(*names, kind=TABLES):
    """Registers a table that reads these files. A row or key that is not there becomes Missing."""
    def register(function):
        def of_files(files):
            contents = [files[name] for name in names]
            with blaming(names[0]):
                return function(*contents)
        of_files.files = names
        kind[function.__name__] = of_files
        return function
    return register


def one(rows, **chosen):
    """The one row with these values. LookupError if there is none, or more than one."""
    fitting = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
    if len(fitting) != 1:
        raise LookupError(f"{chosen} fits {len(fitting)} rows, not one")
    return fitting[0]


def distinct(rows, key):
    """The values of a column, in their order, each once."""
    return list(dict.fromkeys(row[key] for row in rows))


def share(row, key, **options):
    """A row with KEY and KEY_ci -> the share with its interval."""
    return percent(row[key], row[f"{key}_ci"], **options)


def value(row, key, digits=3):
    """A row with KEY and KEY_ci -> the number with its interval."""
    return number(row[key], row[f"{key}_ci"], digits)


def named(planner):
    """A planner, as a reader sees it."""
    return NAMES.get(planner, planner)


def part_of(row, part, cell):
    """cell(row of a part of the goals, such as "contact") -> text; "" if it has no such goals."""
    found = row.get(part, {"n": 0})
    return cell(found) if found["n"] else ""


def parts_of_goals(rows):
    """Rows of planning.json -> dict of the parts of the goals that they tell -> headings."""
    parts = {"contact": "contact goals", "no contact": "no contact", "matters": "contact matters"}
    return {part: title for part, title in parts.items() if any(part in row for row in rows)}


# The system and its training.

@uses("curves")
def composition(curves):
    """What the composite of the last epoch is made of."""
    config, last = curves["config"], curves["rows"][-1]
    variance = sum(last[f"std_{z}"] for z in ("z1", "t1", "z2", "t2"))
    covariance = sum(last[f"cov_{z}"] for z in ("z1", "t1", "z2", "t2"))
    terms = [("prediction, short (pred1)", last["pred1"], config["pred_weight"]),
             ("prediction, macro (pred2)", last["pred2"], config["pred_weight"]),
             ("variance, four sets", variance, config["std_weight"]),
             ("covariance, four sets", covariance, config["cov_weight"])]
    rows = []
    for name, term, weight in terms:
        rows.append([name, number(term), f"{weight:g}", percent(term * weight / last["composite"])])
    return grid(["term", "value", "weight", "share of the composite"], rows)


@uses("curves")
def epochs(curves):
    """The losses and gauges at some epochs."""
    names = ("composite", "pred1", "pred2", "bridge", "lift", "std_min", "rank")
    digits = {"composite": 1, "rank": 0, "std_min": 2}
    rows = []
    for row in curves["rows"]:
        rows.append([row["epoch"], *(number(row[k], digits=digits.get(k, 3)) for k in names)])
    return grid(["epoch", *names], rows)


@uses("curves")
def validation_goals(curves):
    """Goals reached on validation worlds while training went on."""
    rows = []
    for row in curves["rows"]:
        if "goals_replanned" in row:
            rows.append([row["epoch"], percent(row["goals_replanned"]), percent(row["goals_macro"]),
                         number(row["decode_p1"]), number(row["decode_p2"])])
    return grid(["epoch", "short, replanned", "macro, one jump", "R2 of positions from p1",
                 "from p2"], rows)


@uses("curves")
def paper_settings(curves):
    """The settings that the abstract fixes."""
    config, rows = curves["config"], []
    for field in dataclasses.fields(hjepa.Config):
        if field.metadata["source"] == "paper" and field.name in config:
            rows.append([f"`{field.name}`", readable(field.default), readable(config[field.name]),
                         field.metadata["meaning"]])
    return grid(["setting", "the paper's", "this run", "meaning"], rows)


@uses("curves")
def other_settings(curves):
    """All settings that the abstract leaves open."""
    config, rows = curves["config"], []
    for field in dataclasses.fields(hjepa.Config):
        if field.metadata["source"] != "paper" and field.name in config:
            rows.append([f"`{field.name}`", readable(config[field.name]), field.metadata["source"],
                         field.metadata["meaning"]])
    return grid(["setting", "this run", "source", "meaning"], rows)


# The representation.

@uses("diagnose")
def gauges(diagnose):
    """Variance and covariance of each set of embeddings."""
    rows = []
    for row in diagnose["rows"]:
        rows.append([row["set"], number(row["std_min"]), number(row["std_mean"]),
                     number(row["std_max"]), number(row["correlation"]),
                     f"{row['rank']:.0f} of {row['dimensions']}"])
    return grid(["set", "smallest deviation", "mean", "largest", "mean abs. correlation",
                 "effective rank"], rows)


@uses("probe")
def probes(probe):
    """Linear probes of both taps, with controls."""
    targets, rows = distinct(probe["rows"], "target"), []
    for source in distinct(probe["rows"], "source"):
        found = [one(probe["rows"], source=source, target=target) for target in targets]
        rows.append([source, *(number(row["r2"], digits=4) for row in found)])
    return grid(["R2 from", *targets], rows)


@uses("representation")
def representation(content):
    """Probes of all embeddings and predictions, linear and with a network."""
    targets, rows = distinct(content["rows"], "target"), []
    found = {(row["source"], row["target"]): value(row, "r2", 4) for row in content["rows"]}
    for source in distinct(content["rows"], "source"):
        rows.append([source, *(found.get((source, target), "") for target in targets)])
    return grid(["R2 from", *targets], rows)


@uses("representation")
def within_worlds(content):
    """How much of the variance lies between clips of one sequence."""
    rows = []
    for row in content["gauges"]:
        rows.append([row["set"], number(row["std_min"]),
                     f"{row['rank']:.0f} of {row['dimensions']}",
                     percent(row["within_mean"]), percent(row["within_min"])])
    return grid(["set", "smallest deviation", "effective rank", "variance within a world, mean",
                 "smallest"], rows)


@uses("representation", kind=QUANTITIES)
def least_network_r2(content):
    """The least that a network reads from a trained embedding."""
    trained = [row["r2"] for row in content["rows"]
               if row["source"].endswith(", network") and not row["source"].startswith("untrained")]
    if not trained:
        raise LookupError("no network was tried")
    return min(trained)


# Prediction.

def reader_of(row):
    """The method of a row of dynamics.json, with the level whose read-out it is about."""
    if row["method"] != "probe alone":
        return row["method"]
    return f"probe alone, of {'P1' if row['level'] == 'short' else 'P2'}"


def errors_by_contacts(content, cell):
    """Rows: methods; columns: number of contacts; cell(row) -> text."""
    rows, found = [], {}
    for row in content["rows"]:
        if row["forces"] in ("true", None) and "position_error" in row:
            found[reader_of(row), str(row["contacts"])] = cell(row)
    contacts = list(dict.fromkeys(contact for _, contact in found))
    for method in dict.fromkeys(method for method, _ in found):
        rows.append([method, *(found.get((method, contact), "") for contact in contacts)])
    return grid(["position error", *contacts_in_words(contacts)], rows)


def contacts_in_words(contacts):
    """'all', '0', '1', '2+' -> headings."""
    words = {"all": "all worlds", "0": "no contact", "1": "1 contact", "2+": "2 or more"}
    return [words.get(contact, contact) for contact in contacts]


@uses("dynamics")
def prediction(content):
    """Decoded position error at the end of a macro-event."""
    return errors_by_contacts(content, lambda row: number(row["position_error"]))


@uses("dynamics")
def prediction_intervals(content):
    """The same with intervals."""
    return errors_by_contacts(content, lambda row: value(row, "position_error"))


@uses("dynamics")
def forces(content):
    """Position error with true, shuffled and zero forces."""
    rows = []
    for row in content["rows"]:
        if str(row["contacts"]) == "all" and row["method"] in ("P1", "P2"):
            rows.append([row["method"], row["forces"], value(row, "position_error")])
    return grid(["predictor", "forces", "position error"], rows)


@uses("response")
def pushed_bodies(content):
    """How the body that is pushed moves, decoded against simulated."""
    rows = []
    for row in content["counterfactuals"]:
        if row["body"] != "others":
            rows.append([row["level"], row["frames"], f"{row['mass']:g}", *(
                value(row, key) for key in ("pearson", "slope", "sign_agreement", "leakage"))])
    return grid(["level", "frames", "mass", "Pearson", "slope", "sign agreement", "leakage"], rows)


@uses("response")
def moved_bodies(content):
    """How bodies move that were not pushed, but met one that was."""
    rows = []
    for row in content["counterfactuals"]:
        if row["body"] == "others":
            rows.append([row["level"], row["frames"], row["n"], *(
                value(row, key) for key in ("pearson", "slope", "sign_agreement"))])
    return grid(["level", "frames", "n", "Pearson", "slope", "sign agreement"], rows)


@uses("response")
def newton(content):
    """Decoded acceleration against 1 / mass."""
    rows = [[row["level"], row["frames"], value(row, "slope", 2)] for row in content["masses"]]
    return grid(["level", "frames", "slope"], rows)


@uses("surprise")
def surprise(content):
    """Which impossible films surprise more than lawful ones, both levels together."""
    rows = []
    for row in content["rows"]:
        if row["level"] == "both":
            rows.append([row["rule"], share(row, "share"), number(row["auroc"], digits=2)])
    return grid(["rule that is broken", "surprises more than the lawful film", "AUROC"], rows)


@uses("surprise")
def surprise_by_level(content):
    """The same by level."""
    levels, rows = distinct(content["rows"], "level"), []
    for rule in distinct(content["rows"], "rule"):
        found = [one(content["rows"], rule=rule, level=level) for level in levels]
        rows.append([rule, *(share(row, "share") for row in found)])
    return grid(["rule", *levels], rows)


# Planning.

SHOWN = ("random", "fly and fold", "state network", "macro from guess",
         "replanned from guess")                                          # in README


@uses("planning")
def goals(content):
    """Goals reached by the worst body at every horizon: the rows that README shows."""
    tried = distinct(content["rows"], "frames")
    titles = [f"{frames} frames ahead" for frames in tried]
    rows = []
    for name in SHOWN:
        mine = {row["frames"]: row for row in content["rows"] if row["planner"] == name}
        if not mine:
            continue
        cells = [share(mine[frames], "success") if frames in mine else "" for frames in tried]
        last = mine.get(tried[-1], {})
        cells.append(part_of(last, "matters", lambda found: share(found, "success")))
        rows.append([named(name), *cells])
    return grid(["planner", *titles, f"{tried[-1]}, where a contact matters"], rows)


@uses("plan")
def plan_rows(content):
    """The rows of `hjepa.py plan`, with the strict threshold and the error."""
    rows = []
    for row in content["rows"]:
        rows.append([row["frames"], named(row["planner"]), share(row, "mean_body"),
                     share(row, "success"), percent(row["strict"]), number(row["error"])])
    return grid(["frames", "planner", "mean body within 0.1", "worst body within 0.1",
                 "worst body within 0.05", "mean error"], rows)


@uses("planning")
def planning_25(content):
    """The protocol's rows at 25 frames."""
    near = [row for row in content["rows"] if row["frames"] == 25]
    parts, rows = parts_of_goals(near), []
    parts.pop("no contact", None)               # it is in the table of all rows
    for row in near:
        cells = [part_of(row, part, lambda found: percent(found["success"])) for part in parts]
        rows.append([named(row["planner"]), share(row, "success"), percent(row["strict"]),
                     percent(row["mean_body"]), *cells])
    return grid(["25 frames ahead", "worst body within 0.1", "within 0.05", "mean body within 0.1",
                 *(f"worst body, {title}" for title in parts.values())], rows)


@uses("planning")
def planning_far(content):
    """The worst body at every horizon, for planners that were tried at all of them."""
    later = distinct(content["rows"], "frames")[1:]
    tried = {(row["planner"], row["frames"]): row for row in content["rows"]}
    rows = []
    for planner in FAR:
        found = [tried[planner, frames] for frames in later if (planner, frames) in tried]
        if len(found) < len(later):
            continue
        cells = []
        for row in found:
            cells += [percent(row["mean_body"]), share(row, "success")]
        rows.append([named(planner), *cells])
    if not later or not rows:
        raise LookupError("no planner was tried at several horizons")
    head = []
    for frames in later:
        head += [f"{frames} frames: mean body", "worst body"]
    return grid(["planner", *head], rows)


@uses("planning")
def planning_all(content):
    """Every row of planning.json."""
    parts, rows = parts_of_goals(content["rows"]), []
    for row in content["rows"]:
        cells = [part_of(row, part, lambda found: share(found, "success")) for part in parts]
        rows.append([row["frames"], named(row["planner"]), share(row, "success"),
                     share(row, "strict"), share(row, "mean_body"), *cells,
                     value(row, "skill", 2), f"{row['predictor_calls']:,.0f}",
                     f"{row['seconds']:.2f}"])
    return grid(["frames", "planner", "worst body within 0.1", "within 0.05",
                 "mean body within 0.1", *parts.values(), "skill", "predictor calls", "seconds"],
                rows)


@uses("planning")
def planning_pairs(content):
    """Paired differences between planners."""
    rows = []
    for pair in content["pairs"]:
        matters = pair.get("matters")
        rows.append([pair["frames"], named(pair["a"]), named(pair["b"]),
                     points(pair["success"], pair["success_ci"]),
                     points(matters["success"], matters["success_ci"]) if matters else "",
                     signed(pair["error"], pair["error_ci"])])
    return grid(["frames", "planner", "minus", "worst body within 0.1", "where a contact matters",
                 "error"], rows)


@uses("landscapes")
def landscapes(content):
    """One plan with the true simulator, by the space in which its end is compared with the goal."""
    rows = []
    for row in content["rows"]:
        model = "untrained" if row["space"] == "untrained" else "trained"
        rows.append([model, row["tap"], row["distance"], share(row, "success"),
                     percent(row["strict"]), number(row["order"]), number(row["weakest"])])
    return grid(["encoder", "embedding", "distance", "worst body within 0.1", "within 0.05",
                 "order of distances", "weakest direction"], rows)


@uses("seeds/planning")
def seeds(content):
    """Three trainings of the preset quick."""
    rows = []
    for row in content["rows"]:
        for title, key in (("mean body", "mean_body"), ("worst body", "success")):
            if f"{key}_runs" in row:
                rows.append([named(row["planner"]), title,
                             *(percent(run) for run in row[f"{key}_runs"]), share(row, key)])
    return grid(["planner", "within 0.1", *(f"seed {seed}" for seed in content["seeds"]), "all"],
                rows)


# Two levels.

@uses("hierarchy")
def hierarchy(content):
    """Every planner and setting, per horizon."""
    rows = []
    for row in content["rows"]:
        rows.append([row["frames"], row["planner"], f"{row['samples']} x {row['iterations']}",
                     share(row, "mean_body"), *(
                         percent(row[key]) if key in row else ""
                         for key in ("contact_mean_body", "no_contact_mean_body")),
                     percent(row["success"]), f"{row['predictor_calls']:,.0f}",
                     f"{row['seconds']:.2f}"])
    return grid(["frames", "planner", "setting", "mean body", "contact goals", "no contact",
                 "worst body", "calls", "seconds"], rows)


@uses("hierarchy")
def hierarchy_pairs(content):
    """Two levels against one, at equal cost."""
    rows = []
    for pair in content["pairs"]:
        cells = [points(pair[key], pair[f"{key}_ci"]) if key in pair else ""
                 for key in ("gain_calls", "gain_seconds")]
        saving = value(pair, "saving", 1) if "saving" in pair else ""
        rows.append([pair["frames"], pair["planner"], f"{pair['samples']} x {pair['iterations']}",
                     *cells, saving])
    return grid(["frames", "planner", "setting", "gain at equal calls", "gain at equal seconds",
                 "saving of calls"], rows)


def judged(content, key):
    """Pairs of hierarchy.json -> how many intervals of this gain lie above zero, how many below."""
    intervals = [pair[f"{key}_ci"] for pair in content["pairs"] if key in pair]
    won = sum(low > 0 for low, _ in intervals)
    lost = sum(high < 0 for _, high in intervals)
    return won, lost


@uses("hierarchy", kind=QUANTITIES)
def won_at_equal_calls(content):
    """Comparisons in which two levels reach more goals than one."""
    return judged(content, "gain_calls")[0]


@uses("hierarchy", kind=QUANTITIES)
def lost_at_equal_calls(content):
    """Comparisons in which two levels reach fewer."""
    return judged(content, "gain_calls")[1]


@uses("hierarchy", kind=QUANTITIES)
def won_at_equal_seconds(content):
    """The same, for as many seconds."""
    return judged(content, "gain_seconds")[0]


@uses("hierarchy", kind=QUANTITIES)
def lost_at_equal_seconds(content):
    """The same, for as many seconds."""
    return judged(content, "gain_seconds")[1]


# Speed.

@uses("speed_time")
def speed_time(content):
    """Training time until most validation goals are reached."""
    rows = []
    for row in content["rows"]:
        if row["epoch"] == row["schedule"]:
            rows.append([row["schedule"], f"{row['seconds']:,.0f} s", share(row, "mean_body")])
    return grid(["epochs, a complete schedule each", "training",
                 f"of {content['n']} validation goals, mean body"], rows)


@uses("speed_step")
def speed_step(content):
    """One training step in several forms."""
    rows = []
    for row in content["rows"]:
        rows.append([row["arm"], f"{1000 * row['seconds']:.1f} ms",
                     f"{row['sequences_per_second']:,.0f}", number(row["times_shipped"], digits=2)])
    rows.append(["its matrix products alone", f"{1000 * content['seconds_of_products']:.1f} ms", "",
                 number(content["share"], digits=2)])
    return grid(["step", "time", "sequences per second", "times the shipped one"], rows)


@uses("speed_plan")
def speed_plan(content):
    """One plan, with our planner and others."""
    rows = []
    for row in content["rows"]:
        lower = value(row, "ours_lower_by", 4) if "ours_lower_by" in row else ""
        rows.append([row["level"], row["planner"], row["calls"], f"{1000 * row['seconds']:.1f} ms",
                     percent(row["overhead"]), value(row, "cost", 4), lower])
    return grid(["level", "planner", "plans tried", "time", "outside the predictor", "cost reached",
                 "ours is lower by"], rows)


@uses("speed_simulator")
def speed_simulator(content):
    """Simulators: speed and error against an event-driven solution."""
    kinds, rows = [], []
    for row in content["rows"]:
        kinds += [error["contacts"] for error in row["error"] if error["contacts"] not in kinds]
    for row in content["rows"]:
        found = {error["contacts"]: f"{number(error['mean'], error['ci'], 5)}, n = {error['n']}"
                 for error in row["error"]}
        rows.append([row["simulator"], f"{row['body_frames_per_second']:,.0f}",
                     *(found.get(kind, "") for kind in kinds)])
    return grid(["simulator", "body-frames per second",
                 *(f"error, contacts: {kind}" for kind in kinds)], rows)


@uses("speed_growth")
def speed_growth(content):
    """How time grows with size."""
    rows = []
    for what, exponent in content["exponents"].items():
        sizes = [f"{row['size']:,}: {row['seconds']:.3g} s" for row in content["rows"]
                 if row["what"] == what]
        rows.append([what, ", ".join(sizes), "" if exponent is None else f"{exponent:.2f}"])
    return grid(["what", "time", "exponent"], rows)
