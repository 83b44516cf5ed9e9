"""Does it know what cannot happen?

    python figures/surprise.py --run runs/paper
    python figures/surprise.py --run runs/quick --n 100
    python figures/surprise.py --run runs/s0 --run runs/s1 --run runs/s2      # training seeds

Matched pairs of test worlds: the same first clip and the same forces, but in one of the two films
a law is broken after the first clip:

    pass-through      bodies fly through each other          the films differ from the first contact
    energy injection  a contact leaves both bodies 1.5 times as fast          from the first contact
    teleport          a body jumps to another free place, at least 0.3 away, and flies on
    velocity flip     the velocity of a body, at least 0.3, turns round
    mass swap         two bodies of different mass exchange it, but not their size    from the start
    wall tunnelling   a body flies on beyond the wall         from the first time one meets a wall

Teleport and flip happen to a body and in a frame drawn at random. Only starts are used where the
law matters: at the end a body must be at least 0.1 half boxes from where it should be. In
tunnelling no bodies meet after the wall.

Surprise is the squared error of the predicted embedding, the mean over dimensions:

    short   P1(z1(clip k), force k) against t1(clip k+1), for each of the five clips, put together
            over a window that begins with the clip of the event, the same for both films. Window,
            and largest or mean, are chosen on pairs of validation worlds ("candidates").
    macro   P2(z2(clip 0), forces) against t2(clip 5)
    both    their sum, each divided by its mean over the lawful films of validation worlds

rows: share of pairs in which the impossible film is the more surprising one (chance: 0.5); AUROC of
impossible against lawful films, unpaired; the same against lawful films with a contact that matters
(auroc_collision). Rule "all" pools the six.

The control asks whether surprise only detects contacts. In the place of the impossible film it has
a lawful one with a contact, and in the place of the lawful one the same start under other forces,
without a contact. A model that foresees contacts is near 0.5 there. One that does not is below 0.5
in pass-through, and its share in energy injection then means only that a harder contact surprises
it more.

The NPZ has over_time, quartiles of the short level's surprise by clips since the event, and the
surprise of every film.
"""
import sys

from lib import cli, films, stats, surprises
from lib.films import CONTROL, RULES
import hjepa
import numpy as np

LEVELS = ("short", "macro", "both")

# Windows in clips, and how the surprise of their clips becomes one number. Over one clip the
# largest and the mean are the same.
WINDOWS = {"event": 1, "event and next": 2, "event and all after": 10**9}
STATISTICS = (("event", "mean"), ("event and next", "largest"), ("event and next", "mean"),
              ("event and all after", "largest"), ("event and all after", "mean"))


def rule_surprise(rule, runs, world, seed, args):
    """-> dict: short (2, runs, n, K), macro (2, runs, n): of the lawful and the broken films; clip
    (n,): the clip of the event, counted from 0; fit: the share of starts that were fit."""
    config = runs[0].config
    pairs = films.make_pairs(rule, world, config, args.n, seed)
    short, macro = [], []
    for film, forces in zip(pairs.films, pairs.forces):
        of_runs = [surprises.film_surprise(run, world, pairs.clip, film, forces, args.device)
                   for run in runs]
        short.append([error1 for error1, error2 in of_runs])
        macro.append([error2 for error1, error2 in of_runs])
    return {"short": np.array(short), "macro": np.array(macro), "fit": pairs.fit,
            "clip": pairs.event.numpy() // config.clip_frames}


def all_surprises(rules, runs, world, seed, args):
    """-> dict rule -> what `rule_surprise` gives."""
    found = {}
    for rule in hjepa.progress(rules, "pairs", len(rules)):
        found[rule] = rule_surprise(rule, runs, world, seed, args)
    return found


def over_window(short, clip, statistic):
    """Surprise per clip (..., n, K), clip of the event (n,) -> (..., n) over the window."""
    window, how = statistic
    since = np.arange(short.shape[-1]) - clip[:, None]                    # (n, K)
    inside = (since >= 0) & (since < WINDOWS[window])
    if how == "largest":
        return np.where(inside, short, 0).max(-1)
    return (short * inside).sum(-1) / inside.sum(-1)


def auroc(broken, lawful):
    """(runs, n) each -> AUROC, [low, high].

    Each film contributes the share of films of the other kind that it beats. The interval is that
    of the mean of these contributions (DeLong).
    """
    tables = []
    for b, a in zip(broken, lawful):
        tables.append(surprises.wins(b[:, None], a))
    table = np.stack(tables)                                              # (runs, n, n)
    area = table.mean((1, 2))[:, None]
    contributions = table.mean(1) + table.mean(2) - area
    low, high = stats.interval(contributions)
    return area.mean().item(), [max(0.0, low), min(1.0, high)]


def judge_statistics(found):
    """Surprises of validation pairs -> a candidate per statistic, with its share over all rules."""
    candidates = []
    for statistic in STATISTICS:
        by_rule = {}
        for rule, surprise in found.items():
            lawful, broken = over_window(surprise["short"], surprise["clip"], statistic)
            by_rule[rule] = surprises.wins(broken, lawful).mean()
        share = np.mean(list(by_rule.values()))
        candidates.append({"window": statistic[0], "how": statistic[1], "share": share,
                           "by_rule": by_rule})
    return candidates


def two_levels(surprise, statistic):
    """What `rule_surprise` gave -> dict short, macro: (2, runs, n) each."""
    short = over_window(surprise["short"], surprise["clip"], statistic)
    return {"short": short, "macro": surprise["macro"]}


def units(found, statistic):
    """Surprises of validation pairs -> dict level -> (runs,): mean over all lawful films."""
    lawful = {"short": [], "macro": []}
    for surprise in found.values():
        for level, values in two_levels(surprise, statistic).items():
            lawful[level].append(values[0])
    return {level: np.concatenate(values, -1).mean(-1) for level, values in lawful.items()}


def score(found, statistic, unit):
    """Surprises of test pairs -> dict rule -> dict level -> (2, runs, n); with rule "all"."""
    scores = {}
    for rule, surprise in found.items():
        levels = two_levels(surprise, statistic)
        short = levels["short"] / unit["short"][:, None]
        macro = levels["macro"] / unit["macro"][:, None]
        scores[rule] = {**levels, "both": short + macro}
    pooled = {}
    for level in LEVELS:
        pooled[level] = np.concatenate([scores[rule][level] for rule in RULES], -1)
    scores["all"] = pooled
    return scores


def make_row(rule, level, scores, n):
    """-> row of a rule and a level."""
    lawful, broken = scores[rule][level]
    more = surprises.wins(broken, lawful)
    row = {"rule": rule, "level": level, "n": broken.shape[1],
           "share": more.mean(), "share_ci": stats.interval(more)}
    row["auroc"], row["auroc_ci"] = auroc(broken, lawful)
    if rule != CONTROL:
        contact = scores[CONTROL][level][1]                               # lawful, with a contact
        as_many = np.tile(contact, broken.shape[1] // n)
        row["auroc_collision"], row["auroc_collision_ci"] = auroc(broken, as_many)
    return row


def over_time(found):
    """-> arrays QUANTITY/RULE/FILM of the short level: clip (clips,), counted from the event, n
    (clips,) and quartiles (clips, 3) of surprise."""
    arrays = {}
    for rule, surprise in found.items():
        clips = surprise["short"].shape[-1]
        since = np.arange(clips) - surprise["clip"][:, None]              # (n, K)
        for film, short in zip(("lawful", "broken"), surprise["short"]):
            steps = np.unique(since)
            counts, quartiles = [], []
            for step in steps:
                chosen = since == step
                counts.append(chosen.sum())
                quartiles.append(np.percentile(short[:, chosen], [25, 50, 75]))
            arrays[f"over_time/clip/{rule}/{film}"] = steps
            arrays[f"over_time/n/{rule}/{film}"] = np.array(counts)
            arrays[f"over_time/quartiles/{rule}/{film}"] = np.array(quartiles, dtype=np.float32)
    return arrays


def of_films(found):
    """-> arrays: short/RULE (2, runs, n, K), macro/RULE (2, runs, n), clip/RULE (n,)."""
    arrays = {}
    for rule, surprise in found.items():
        arrays[f"short/{rule}"] = surprise["short"].astype(np.float32)
        arrays[f"macro/{rule}"] = surprise["macro"].astype(np.float32)
        arrays[f"clip/{rule}"] = surprise["clip"]
    return arrays


def draw_shares(ax, rows):
    """Shares with intervals, AUROC as ticks."""
    for i, level in enumerate(LEVELS):
        of_level = [row for row in rows if row["level"] == level]
        at = np.arange(len(of_level)) + 0.27 * (i - 1)
        share = np.array([row["share"] for row in of_level])
        low, high = np.array([row["share_ci"] for row in of_level]).T
        area = [row["auroc"] for row in of_level]
        ax.bar(at, share, 0.25, color=hjepa.COLOURS[i], label=level)
        ax.errorbar(at, share, [share - low, high - share], fmt="none", ecolor="0.3", lw=1)
        ax.plot(at, area, "k_", ms=14, label="AUROC" if i == 0 else None)
    names = [row["rule"] for row in of_level]
    ax.axhline(0.5, color="0.4", lw=0.8, ls=":")
    ax.set(title="share of pairs in which the impossible film is more surprising (chance: 0.5)",
           ylim=(0, 1.02), xlim=(-0.6, len(names) - 0.4))
    ax.set_xticks(range(len(names)), names)
    ax.legend(fontsize=8, loc="lower right", ncols=4)


def draw_over_time(ax, rule, arrays):
    """Median and quartiles of both films, two clips before the event to two after."""
    for film, colour in zip(("lawful", "broken"), hjepa.COLOURS):
        clip = arrays[f"over_time/clip/{rule}/{film}"]
        near = np.abs(clip) <= 2
        low, median, high = arrays[f"over_time/quartiles/{rule}/{film}"][near].T
        ax.plot(clip[near], median, ".-", color=colour, label=film)
        ax.fill_between(clip[near], low, high, color=colour, alpha=0.2, lw=0)
    ax.set(title=rule, xlabel="clips from the event", yscale="log", xticks=range(-2, 3))
    ax.title.set_fontsize(10)


def draw(rows, arrays):
    """-> figure: shares with intervals; below, surprise from clip to clip."""
    figure, _ = hjepa.new_figure(1, 1, 17, 8.5)
    figure.clear()
    rules = [*RULES, CONTROL]
    grid = figure.add_gridspec(2, len(rules))
    draw_shares(figure.add_subplot(grid[0, :]), rows)
    first = None
    for column, rule in enumerate(rules):
        ax = figure.add_subplot(grid[1, column], sharey=first)
        draw_over_time(ax, rule, arrays)
        if first is None:
            first = ax
            ax.set(ylabel="surprise, short level: median, quartiles")
            ax.legend(fontsize=8)
    return figure


def print_rule(rule, rows):
    """Share and AUROC of each level."""
    parts = []
    for row in rows:
        if row["rule"] == rule:
            parts.append(f"{row['level']} {row['share']:6.1%} of pairs, AUROC {row['auroc']:.2f}")
    print(f"{rule:>24}: {'; '.join(parts)}")


def measure(args, runs):
    """-> Results: rows, what was chosen and from what; surprise of every film and over time."""
    config = runs[0].config
    world = hjepa.build_world(config)
    validation = all_surprises(list(RULES), runs, world, config.validation_seed, args)
    candidates = judge_statistics(validation)
    best = int(np.argmax([candidate["share"] for candidate in candidates]))
    statistic = STATISTICS[best]
    test = all_surprises([*RULES, CONTROL], runs, world, config.test_seed, args)
    scores = score(test, statistic, units(validation, statistic))
    rules = [*RULES, "all", CONTROL]
    rows = [make_row(rule, level, scores, args.n) for rule in rules for level in LEVELS]
    window, how = statistic
    print(f"short level: {how} over {window}, the best of {len(STATISTICS)} on validation")
    for rule in rules:
        print_rule(rule, rows)
    fit = {rule: surprise["fit"] for rule, surprise in test.items()}
    summary = {"statistic": statistic, "candidates": candidates, "rows": rows,
               "share_of_starts_fit": fit}
    arrays = {**over_time(test), **of_films(test)}
    return cli.Results(args.n, summary, arrays, lambda: draw(rows, arrays))


if __name__ == "__main__":
    parser = cli.make_parser("surprise", __doc__, n=(500, "pairs per rule"))
    sys.exit(cli.main(parser, measure))
