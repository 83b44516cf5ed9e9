"""Tables of the studies beside the run: variants, rivals, searches, bodies, what is not known.

As in tables.py, a table is named after its function and returns Markdown.
"""
from tables import grid, number, percent, uses, value


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
    """Some kinds of zeta."""
    rows = [row for row in content["rows"] if row["name"] in LATENT_SHOWN]
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
