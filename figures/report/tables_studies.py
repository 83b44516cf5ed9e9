"""Tables of the studies beside the run: variants, rivals, searches, bodies, what is not known.

As in tables.py, a table is named after its function and returns Markdown.
"""
from tables import grid, number, percent, points, share, uses, value


# Variants.

def apart_from_the_run(row):
    """Does the interval of its gain in closed loop leave zero out?"""
    low, high = row.get("closed_gain_ci", (0, 0))
    return low > 0 or high < 0


def cells_of_variant(row):
    """The columns of both tables of variants, without the name."""
    gain = points(row["closed_gain"], row["closed_gain_ci"]) if "closed_gain" in row else ""
    jump = percent(row["macro"]) if "macro" in row else ""
    error = number(row["macro_error"]) if "macro_error" in row else ""
    return [percent(row["closed"]), gain, jump,
            percent(row["t1"]), percent(row["t2"]), error,
            f"{row['rank1']:.0f}, {row['rank2']:.0f}"]


VARIANT_HEAD = ["closed loop", "difference", "one jump", "simulator, t1", "simulator, t2",
                "error of P2", "ranks"]


@uses("variants")
def variants(content):
    """The longest training: the run, and what differs from it beyond the interval."""
    longest = max(content["epochs"])
    rows = [row for row in content["rows"] if row["epochs"] == longest and "closed" in row]
    rows = [row for row in rows if row["variant"] == "the run" or apart_from_the_run(row)]
    rows.sort(key=lambda row: -row["closed"])
    return grid(["variant", *VARIANT_HEAD],
                [[row["variant"], *cells_of_variant(row)] for row in rows])


@uses("variants")
def variants_all(content):
    """Every variant at every length, in the order of the list."""
    rows = []
    for row in content["rows"]:
        if "broken" in row:
            rows.append([row["variant"], row["epochs"], row["broken"], *[""] * 6])
        else:
            rows.append([row["variant"], row["epochs"], *cells_of_variant(row)])
    return grid(["variant", "epochs", *VARIANT_HEAD], rows)


# What cannot be predicted.

LATENT_SHOWN = ("told", "K = 1", "K = 2", "K = 16", "d = 2, penalty", "d = 256, penalty",
                "d = 256, free", "d = 256, from scratch")


def latent_row(row):
    """A row of latent.json -> cells."""
    over = value(row, "over_told", 2) if "over_told" in row else "1"
    energies = [number(row[key], digits=4) if key in row else ""
                for key in ("energy", "energy_twice", "energy_body")]
    return [{"two": "left or right", "ring": "any direction"}[row["kicks"]], row["name"], over,
            *energies, percent(row["assigned"]) if "assigned" in row else ""]


LATENT_HEAD = ["kick", "zeta", "error / told", "energy of what happened", "of a kick twice as strong",
               "of another body kicked", "side of the kick named"]


@uses("latent")
def latent(content):
    """Some kinds of zeta, for a kick to the left or right."""
    rows = [row for row in content["rows"]
            if row["kicks"] == "two" and row["name"] in LATENT_SHOWN]
    return grid(LATENT_HEAD, [latent_row(row) for row in rows])


@uses("latent")
def latent_all(content):
    """Every kind of zeta."""
    return grid(LATENT_HEAD, [latent_row(row) for row in content["rows"]])


@uses("latent")
def latent_plans(content):
    """Plans made before the kick."""
    rows = [[{"two": "left or right", "ring": "any direction"}[row["kicks"]], row["planner"],
             value(row, "mean"), value(row, "worst")] for row in content["plans"]]
    return grid(["kick", "planned for", "error at the goal, mean over kicks", "of the worst kick"],
                rows)


# Pictures.

@uses("pictures")
def digits(content):
    """Accuracy on test digits."""
    rows = [[row["encoder"], share(row, "linear"), share(row, "neighbours")]
            for row in content["images"]]
    return grid(["encoder", "linear probe", "nearest neighbours"], rows)


@uses("pictures")
def films(content):
    """How far read places are from the digits, in pixels."""
    steps = (1, 4, 8, 16)
    rows = [[row["row"], *(value(row, f"step_{step}", 1) for step in steps)]
            for row in content["video"]]
    return grid(["places", *(f"step {step}" for step in steps)], rows)


# Rivals.

WORLD_NAMES = {"plain": "plain", "noise": "12 numbers of noise", "second": "a second world"}


def rows_by_rival(content, frames):
    """-> dict (rival, world) -> row at a horizon; rivals in the order of their success in the plain
    world, without zero force."""
    rows = [row for row in content["rows"] if row["frames"] == frames]
    found = {(row["rival"], row["world"]): row for row in rows}
    plain = [row for row in rows if row["world"] == "plain" and row["rival"] != "zero"]
    rivals = [row["rival"] for row in sorted(plain, key=lambda row: -row["success"])]
    return found, rivals


def gain_of(row):
    """The difference from the JEPA, or nothing."""
    return points(row["gain"], row["gain_ci"]) if "gain" in row else ""


@uses("baselines")
def rivals(content):
    """Closed loop at the nearest horizon: each rival in each world, with its difference from the
    JEPA."""
    found, names = rows_by_rival(content, min(row["frames"] for row in content["rows"]))
    worlds = [world for world in WORLD_NAMES if any(kind == world for _, kind in found)]
    head = ["rival"]
    for world in worlds:
        head += [WORLD_NAMES[world], "difference"]
    table = []
    for name in names:
        cells = [name]
        for world in worlds:
            row = found.get((name, world))
            cells += ["", ""] if row is None else [percent(row["success"]), gain_of(row)]
        table.append(cells)
    return grid(head, table)


@uses("baselines")
def rivals_all(content):
    """Every rival, world and horizon."""
    rows = []
    for row in content["rows"]:
        rows.append([row["frames"], WORLD_NAMES[row["world"]], row["rival"], share(row, "success"),
                     gain_of(row), share(row, "mean_body"),
                     *(percent(row[part]) if part in row else ""
                       for part in ("contact", "no contact", "matters"))])
    return grid(["frames", "world", "rival", "worst body within 0.1", "difference",
                 "mean body within 0.1", "contact goals", "no contact", "contact matters"], rows)


@uses("baselines")
def rival_models(content):
    """What each rival predicts, and what was tuned."""
    rows = []
    for row in content["models"]:
        places = row.get("places", [])
        rows.append([WORLD_NAMES[row["world"]], row["rival"], f"{row['parameters']:,}",
                     row["tuned"],
                     *(number(places[k]) if places else "" for k in (0, -1)),
                     *(number(row[key]) if row.get(key) is not None else ""
                       for key in ("places_no_contact", "places_contact")),
                     percent(row["pass_through"]) if row.get("pass_through") is not None else "",
                     number(row["kept"]) if "kept" in row else ""])
    return grid(["world", "rival", "parameters", "tuned", "error of places, first clip",
                 "last clip", "no contact", "contact", "pass-through", "R2 of distractors"], rows)


# Searches and costs.

@uses("planners")
def searches(content):
    """Each planner with the distance of the last step: a column per horizon and number of plans."""
    columns = [(part["frames"], plans) for part in content["strata"] for plans in content["plans"]]
    rows = [row for row in content["rows"] if row["cost"] == "last step"]
    table = {}
    for name in dict.fromkeys(row["planner"] for row in rows):
        mine = {(row["frames"], row["plans"]): row for row in rows if row["planner"] == name}
        table[name] = [percent(mine[key]["success"]) if key in mine else "" for key in columns]
        if (columns[0][0], 0) in mine:          # it needs no plans
            table[name][0] = percent(mine[columns[0][0], 0]["success"])
    head = [f"{frames} frames, {plans} plans" for frames, plans in columns]
    return grid(["planner", *head], [[name, *cells] for name, cells in table.items()])


@uses("planners")
def search_costs(content):
    """Costs, with the planners that try them all."""
    rows = []
    for row in content["rows"]:
        if row["planner"] in ("CEM", "MPPI") and row["plans"] == max(content["plans"]):
            rows.append([row["frames"], row["cost"], row["planner"], share(row, "success"),
                         percent(row["contact"]), percent(row["no_contact"])])
    rows.sort(key=lambda cells: (cells[0], cells[2]))
    return grid(["frames", "cost", "planner", "worst body within 0.1", "contact goals",
                 "no contact"], rows)


@uses("planners")
def searches_all(content):
    """Every planner and number of plans, with the distance of the last step."""
    rows = [[row["frames"], row["planner"], row["plans"], share(row, "success"),
             percent(row["strict"]), percent(row["contact"]), percent(row["no_contact"]),
             f"{row['calls']:,}", f"{row['ms']:g}"]
            for row in content["rows"] if row["cost"] == "last step"]
    return grid(["frames", "planner", "plans", "worst body within 0.1", "within 0.05",
                 "contact goals", "no contact", "predictor calls", "ms per search"], rows)


# An embedding per body.

def bodies_row(row):
    """A row of objects.json -> cells after case and model."""
    cells = [share(row, "success"), percent(row["mean_body"])]
    cells.append(percent(row["contact"]) if row.get("contact") is not None else "")
    cells.append(share(row, "that_body") if "that_body" in row else "")
    return cells


BODIES_HEAD = ["worst body within 0.1", "mean body", "contact goals", "the body met"]


@uses("objects")
def bodies(content):
    """Every case, model and planner."""
    rows = [[row["case"], row["model"], row["planner"], *bodies_row(row)]
            for row in content["plans"]]
    return grid(["goals", "model", "planner", *BODIES_HEAD], rows)


@uses("objects")
def hidden_masses(content):
    """How well the log of a mass is read."""
    rows = [[row["model"], row["situation"],
             *(number(row[key]) if row[key] is not None else "too few"
               for key in ("embedding", "clip"))] for row in content["masses"]]
    return grid(["model", "after", "R2 of log mass, from the embedding", "from the clip"], rows)
