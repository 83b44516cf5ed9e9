"""Intervals of means, differences and ratios, by resampling seeds and goals."""
import numpy as np

DRAWS = 10_000                                  # resamples behind every interval
PARTS = 20                                      # they are drawn in parts, to save memory


def resampled_means(outcomes):
    """Outcomes (seeds, goals) or (goals,) -> (DRAWS,) means, each over resampled seeds and goals.

    Hierarchical: seeds are drawn, and goals within them. All seeds are measured on the same goals,
    so a draw takes the same goals from each seed. With one seed only goals are drawn. The generator
    is always fresh: two arrays of one shape are resampled alike, so differences and ratios of what
    this returns are paired.
    """
    table = np.atleast_2d(np.asarray(outcomes, dtype=float))
    rng = np.random.default_rng(0)
    seeds, goals = table.shape
    means = np.empty((seeds, DRAWS))                                      # of each seed, each draw
    for part in np.split(np.arange(DRAWS), PARTS):
        pick = rng.integers(0, goals, (len(part), goals))
        for row, mean in zip(table, means):
            mean[part] = row[pick].mean(1)
    drawn = rng.integers(0, seeds, (seeds, DRAWS))
    return np.take_along_axis(means, drawn, 0).mean(0)


def percentiles(draws):
    """Draws (DRAWS,) -> [low, high], the middle 95 %."""
    return np.percentile(draws, [2.5, 97.5]).tolist()


def interval(outcomes):
    """Outcomes (seeds, goals) or (goals,), numbers or bools -> [low, high]: 95 %, of their mean.

    Outcomes that are all alike cannot be resampled into others: 200 goals reached of 200 give
    [1, 1], which says "nothing else was seen", not "certain" (by the rule of three: above 0.985).
    """
    return percentiles(resampled_means(outcomes))


def paired_interval(a, b):
    """Mean of a minus b on the same seeds and goals -> difference, [low, high].

    Shapes broadcast: what does not depend on the seed may be (goals,) or (1, goals).
    """
    gap = np.subtract(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return gap.mean().item(), interval(gap)


def interval_note(runs, draws=DRAWS):
    """-> how the intervals were made, in words, for the JSON."""
    over = "seeds, then goals" if len(runs) > 1 else "goals only: there is one training seed"
    return f"95 %, {draws:,} bootstrap resamples over {over}"
