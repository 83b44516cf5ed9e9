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
