"""The system on one page: what sees which clip, what is predicted from what, where the loss acts.

    python figures/report/diagram.py --run runs/quick

Sizes are those of the run's config. The clips are a film of a test world with a contact. Time runs
to the right, abstraction upwards: clips, encoders, the short level, the macro level. Nothing is
measured; the run's parameters are counted.
"""
import shlex
import sys
from pathlib import Path

from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

FIGURES = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(FIGURES)]

from lib import cli                                                       # noqa: E402
import hjepa                                                              # noqa: E402

INK, SOFT = "0.15", "0.42"
BLUE, RED, GREEN, VIOLET, ORANGE = hjepa.COLOURS[:5]
WIDTH, HEIGHT = 14.9, 8.35
CLIP, ENCODER, SEEN, PATH, FAR = 1.95, 3.55, 4.75, 6.15, 7.65             # rows, from below
FIRST, LAST, DEEP, SAME = 2.65, 11.4, 12.6, 14.1                          # columns
SMALL, LARGE = 0.27, 0.345                      # an embedding, the ring around it
ROOM = 8                                        # clips that fit
SIZES = ("latent", "width", "depth", "shallow_depth", "heads", "short_width", "macro_width",
         "event_clips", "clip_frames", "pred_weight", "std_weight", "cov_weight", "map_weight")


def box(ax, x, y, width, height, text, colour):
    """A rounded box with its middle at x, y."""
    corner = (x - width / 2, y - height / 2)
    for face, edge, alpha in (("white", "none", 1), (colour, "none", 0.14), ("none", colour, 1)):
        ax.add_patch(FancyBboxPatch(corner, width, height, fc=face, ec=edge, alpha=alpha, lw=1.3,
                                    zorder=3, boxstyle="round,pad=0,rounding_size=0.1"))
    ax.text(x, y, text, ha="center", va="center", color=INK, fontsize=9, zorder=4)


def node(ax, x, y, text, vicreg=False, colour=INK, size=SMALL):
    """An embedding. Those that VICReg acts on have a green ring."""
    if vicreg:
        ax.add_patch(Circle((x, y), LARGE, fc="white", ec=GREEN, lw=2.4, zorder=3))
    ax.add_patch(Circle((x, y), size, fc="white", ec=colour, lw=1.2, zorder=3))
    ax.text(x, y, text, ha="center", va="center_baseline", fontsize=9, color=colour, zorder=4)


def line(ax, *points, colour=INK, style="-|>"):
    """A path of straight pieces, the last an arrow. A white edge shows what it passes over."""
    for width, shade in ((4, "white"), (1.2, colour)):
        ax.plot(*zip(*points[:-1]), color=shade, lw=width, solid_capstyle="butt")
        if width > 2:
            (x0, y0), (x1, y1) = points[-2:]
            near_end = (0.8 * x1 + 0.2 * x0, 0.8 * y1 + 0.2 * y0)
            ax.plot([x0, near_end[0]], [y0, near_end[1]], color=shade, lw=width,
                    solid_capstyle="butt")
    ax.annotate("", points[-1], points[-2], arrowprops=dict(
        arrowstyle=style, color=colour, lw=1.2, shrinkA=0, shrinkB=0, mutation_scale=10))


def thumbnail(ax, x, clip, world, side):
    """A clip (frames, bodies, 4): where the bodies end, and how they came there."""
    ax.add_patch(Rectangle((x - side / 2, CLIP - side / 2), side, side, fc="white", ec=SOFT, lw=1))
    for body, radius in enumerate(world.radii):
        way = clip[:, body, :2] * side / 2
        colour = hjepa.COLOURS[body % len(hjepa.COLOURS)]
        ax.plot(x + way[:, 0], CLIP + way[:, 1], color=colour, lw=1)
        ax.add_patch(Circle((x + way[-1, 0], CLIP + way[-1, 1]), radius * side / 2, color=colour,
                            alpha=0.85, lw=0))


def film(config, world):
    """-> states (clips, frames, bodies, 4): of 64 test worlds, the fastest one with a contact."""
    states, _, contacts = hjepa.make_sequences(
        world, 64, config.event_clips + 1, hjepa.generator(config.test_seed, "diagram"),
        config.clip_frames, config.start_speed)
    speed = states[..., 2:].norm(dim=-1).flatten(1).mean(1)
    with_contact = contacts[:, 1:].flatten(1).any(1)
    return states[int((speed * with_contact).argmax())]


def label_rows(ax, config):
    """What a row is, in the left margin."""
    c = config
    labels = {CLIP: f"clips of\n{c.clip_frames} frames",
              ENCODER: f"encoders\nwidth {c.width}\n{c.depth} blocks",
              SEEN: f"shallow tap\nblock {c.shallow_depth}\n{c.latent} d",
              PATH: f"short level\nP1, width {c.short_width}\na clip a step",
              FAR: f"macro level\ndeep tap\n{c.latent} d"}
    for y, text in labels.items():
        ax.text(0.1, y, text, ha="left", va="center", fontsize=9, color=SOFT)


def label_losses(ax, config):
    """The last row: what the colours mean, and what each term weighs."""
    c = config
    y = 0.22
    ax.add_patch(Circle((0.45, y), 0.17, fc="white", ec=GREEN, lw=2.4))
    ax.annotate("", (7.15, y), (6.5, y), arrowprops=dict(arrowstyle="<|-|>", color=RED, lw=1.2))
    ax.annotate("", (10.85, y), (10.2, y), arrowprops=dict(arrowstyle="-|>", color=VIOLET, lw=1.2))
    ax.add_patch(Circle((13.45, y), 0.17, fc="white", ec=ORANGE, lw=1.2))
    labels = {0.8: f"VICReg: variance \u00d7 {c.std_weight:g}, covariance \u00d7 {c.cov_weight:g}",
              7.3: f"prediction error \u00d7 {c.pred_weight:g}",
              11.0: f"maps \u00d7 {c.map_weight:g}",
              13.75: "force"}
    for x, text in labels.items():
        ax.text(x, y, text, ha="left", va="center_baseline", fontsize=9, color=INK)


def draw_clips(ax, config, world, at, gap):
    """What is seen, the encoders, and the taps: shallow ones go up, deep ones leave sideways."""
    side = min(1.2, 0.7 * gap)                  # of a clip's picture
    wide = min(1.15, 0.82 * gap)                # an encoder
    tight = gap < 1.4
    ax.annotate("", (LAST + 1.3, 0.95), (FIRST - 0.8, 0.95),
                arrowprops=dict(arrowstyle="-|>", color=SOFT, lw=1))
    ax.text(LAST + 1.4, 0.95, "time", ha="left", va="center_baseline", fontsize=9, color=SOFT)
    clips = film(config, world)
    for k, x in enumerate(at):
        thumbnail(ax, x, clips[k], world, side)
        ax.text(x, 1.15, str(k) if tight else f"clip {k}", ha="center", va="center_baseline",
                fontsize=9, color=SOFT)
        role = "target" if k else "context"
        if config.shared:
            role = ""
        name = role[:1] if tight else f"{role}\nencoder".strip()
        line(ax, (x, CLIP + side / 2), (x, ENCODER - 0.38))
        line(ax, (x, ENCODER + 0.38), (x, (SEEN if k else PATH) - LARGE))
        box(ax, x, ENCODER, wide, 0.76, name, SOFT if k else BLUE)
    line(ax, (FIRST - wide / 2, ENCODER), (FIRST - 1.05, ENCODER), (FIRST - 1.05, FAR),
         (FIRST - 0.4 - LARGE, FAR))
    line(ax, (LAST + wide / 2, ENCODER), (DEEP, ENCODER), (DEEP, FAR - LARGE))


def draw_forces(ax, at, gap):
    """Forces enter both levels."""
    for k, x in enumerate(at[:-1]):
        middle = x + gap / 2
        branch = middle - 0.24 * gap
        line(ax, (middle, CLIP + 0.22), (middle, PATH - 0.3), colour=ORANGE)
        line(ax, (middle, SEEN + 0.5), (branch, SEEN + 0.5), (branch, FAR - 0.35), colour=ORANGE)
        ax.plot(middle, SEEN + 0.5, "o", color=ORANGE, ms=3)
        node(ax, middle, CLIP, f"$a_{k}$", colour=ORANGE, size=0.22)


def draw_short_level(ax, at, gap):
    """P1 on its own predictions."""
    for k, x in enumerate(at[:-1]):
        middle = x + gap / 2
        end = at[k + 1]
        line(ax, (x + (SMALL if k else LARGE), PATH), (middle - 0.17 * gap, PATH))
        line(ax, (middle + 0.17 * gap, PATH), (end - SMALL, PATH))
        box(ax, middle, PATH, 0.34 * gap, 0.6, "P1", BLUE)
        line(ax, (end, PATH - SMALL), (end, SEEN + LARGE), colour=RED, style="<|-|>")
        node(ax, end, PATH, rf"$p_1^{k + 1}$")
        node(ax, end, SEEN, f"$t_1^{k + 1}$", vicreg=True)
    node(ax, FIRST, PATH, "$z_1$", vicreg=True)


def draw_macro_level(ax, config, gap):
    """One jump."""
    start, end = FIRST + 0.2 * gap, LAST - 0.28 * gap
    frames = config.event_clips * config.clip_frames
    line(ax, (FIRST - 0.4 + LARGE, FAR), (start, FAR))
    line(ax, (end, FAR), (LAST - SMALL, FAR))
    box(ax, (start + end) / 2, FAR, end - start, 0.7,
        f"P2, width {config.macro_width}: one jump of {frames} frames", BLUE)
    line(ax, (LAST + SMALL, FAR), (DEEP - LARGE, FAR), colour=RED, style="<|-|>")
    node(ax, FIRST - 0.4, FAR, "$z_2$", vicreg=True)
    node(ax, LAST, FAR, "$p_2$")
    node(ax, DEEP, FAR, "$t_2$", vicreg=True)


def draw_maps(ax, config):
    """Bridge and lift, from the target encoder's space to the context encoder's."""
    between = (DEEP + SAME) / 2 + 0.1
    line(ax, (DEEP + LARGE, FAR), (SAME, FAR), (SAME, PATH + SMALL), colour=VIOLET)
    line(ax, (LAST + LARGE, SEEN), (SAME, SEEN), (SAME, PATH - SMALL), colour=VIOLET)
    box(ax, between, FAR, 0.85, 0.46, "bridge", VIOLET)
    box(ax, between, SEEN, 0.85, 0.46, "lift", VIOLET)
    node(ax, SAME, PATH, "$z_2'$")
    ax.text(SAME - 0.38, PATH, f"context\n$z_2$ of\nclip {config.event_clips}", ha="right",
            va="center", fontsize=9, color=SOFT)


def draw(config, world):
    """-> figure. It is drawn at twice the size of a page, to be sharp on any screen."""
    figure, axes = hjepa.new_figure(1, 1, 10, 10 * HEIGHT / WIDTH)
    figure.set_dpi(180)
    ax = axes[0, 0]
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    ax.axis("off")
    gap = (LAST - FIRST) / config.event_clips
    at = [FIRST + gap * k for k in range(config.event_clips + 1)]
    label_rows(ax, config)
    label_losses(ax, config)
    draw_clips(ax, config, world, at, gap)
    draw_forces(ax, at, gap)
    draw_short_level(ax, at, gap)
    draw_macro_level(ax, config, gap)
    draw_maps(ax, config)
    return figure


def measure(args, runs):
    """-> Results: the sizes, and the figure."""
    run = cli.one_run(runs)
    config = run.config
    if config.event_clips > ROOM:
        raise hjepa.Refusal(f"a macro-event has {config.event_clips} clips: the diagram has room "
                            f"for {ROOM}")
    sizes = {name: getattr(config, name) for name in SIZES}
    parameters = sum(p.numel() for p in run.model.parameters())
    command = f"python figures/report/diagram.py {shlex.join(args.argv)}"
    return cli.Results(1, {"command": command, "parameters": parameters, **sizes},
                       figure=lambda: draw(config, hjepa.build_world(config)))


if __name__ == "__main__":
    parser = cli.make_parser("diagram", __doc__)
    parser.prog = "figures/report/diagram.py"
    sys.exit(cli.main(parser, measure))
