"""Rows of a table of planners: what was reached, with intervals and parts of the goals."""
from lib import goals, stats


def share(row, name, reached):
    """Write the share of goals that are reached (runs, n), and its interval, into the row."""
    row[name] = round(reached.mean().item(), 5)
    row[name + "_ci"] = stats.interval(reached)


def tidy(row):
    """The same row without digits that nobody needs: the JSON stays small."""
    for key, value in row.items():
        if key.endswith("_ci"):
            row[key] = [round(bound, 4 if key == "error_ci" else 3) for bound in value]
        elif key in ("error", "skill", "velocity", "seconds"):
            row[key] = float(f"{value:.4g}")
    return row


def make_row(name, frames, tried, zero, parts):
    """What was tried, errors of zero force on the same goals (1, n, bodies), goals.strata of them
    -> a row."""
    errors = tried.errors
    reached = goals.outcomes(errors)
    row = {"planner": name, "frames": frames, "n": errors.shape[1]}
    for key in ("success", "strict", "mean_body"):
        share(row, key, reached[key])
    row.update(error=errors.mean().item(), **goals.skill(errors, zero),
               velocity=tried.velocity.mean().item())
    for part, who in parts.items():
        row[part] = {"n": int(who.sum())}
        if who.any():
            share(row[part], "success", reached["success"][:, who])
            tidy(row[part])
    row.update(predictor_calls=round(tried.calls), seconds=tried.seconds)
    if len(errors) > 1:
        for key in ("mean_body", "success"):
            row[key + "_runs"] = reached[key].mean(1).round(5).tolist()
    return tidy(row)
