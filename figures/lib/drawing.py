"""Marks that several pictures share."""
import hjepa
import numpy as np


def whiskers(row, key):
    """A row with `key` and `key`_ci -> error bars for matplotlib's xerr or yerr."""
    low, high = row[key + "_ci"]
    return [[row[key] - low], [high - row[key]]]


def bars(ax, groups, ticks, key):
    """groups: label -> one row per tick. Bars side by side, with intervals. Where a row's value is
    None, there is no bar."""
    for i, (label, rows) in enumerate(groups.items()):
        value = np.array([np.nan if row[key] is None else row[key] for row in rows])
        low, high = np.array([[np.nan] * 2 if row[key] is None else row[key + "_ci"]
                              for row in rows]).T
        at = np.arange(len(ticks)) + 0.8 * ((i + 0.5) / len(groups) - 0.5)
        ax.bar(at, value, 0.75 / len(groups), color=hjepa.COLOURS[i], label=label)
        ax.errorbar(at, value, [value - low, high - value], fmt="none", ecolor="0.3", lw=1)
    ax.set_xticks(range(len(ticks)), ticks)


def dot(ax, row, key, y, colour):
    """A dot at row[key] in line y, on a band that is its interval."""
    ax.plot(row[key + "_ci"], [y, y], color=colour, lw=6, alpha=0.35, solid_capstyle="butt")
    ax.plot(row[key], y, "o", color=colour, ms=7)
