"""The figure of figures/pictures.py."""
import hjepa


def draw_accuracy(ax, rows):
    """Test accuracy of each encoder under both probes, with intervals."""
    for shift, key, colour in ((-0.12, "linear", "#2166ac"), (0.12, "neighbours", "#b2182b")):
        for y, row in enumerate(rows):
            low, high = row[key + "_ci"]
            ax.plot([100 * low, 100 * high], [y + shift] * 2, color=colour, lw=1.5)
            ax.plot(100 * row[key], y + shift, "o", color=colour, ms=5,
                    label=key if y == 0 else None)
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5), xlabel="%")
    ax.set_yticklabels([row["encoder"] for row in rows])
    ax.set_title("test digits that a probe names", fontsize=10)
    ax.grid(axis="x", color="0.9")
    ax.legend(fontsize=8)


def draw_horizon(ax, rows):
    """Error of places against horizon, a line per row. Dotted: read from the frames themselves."""
    for row in rows:
        dotted = row["row"].endswith("read from the frames")
        if dotted and row["row"].startswith("untrained"):
            continue
        steps = range(1, len(row["by_step"]) + 1)
        ax.plot(steps, row["by_step"], ":" if dotted else "-", lw=1.5, label=row["row"])
    ax.set(xlabel="steps imagined", ylabel="pixels", yscale="log")
    ax.set_title("places of two digits: mean error, 64 x 64 frames", fontsize=10)
    ax.grid(color="0.9")
    ax.legend(fontsize=7)


def draw_strip(ax, title, frames):
    """Frames (n, 64, 64) side by side."""
    joined = frames.permute(1, 0, 2).flatten(1)
    ax.imshow(joined, cmap="Greys", vmin=0, vmax=1)
    for number in range(1, len(frames)):
        ax.axvline(number * frames.shape[2] - 0.5, color="0.6", lw=0.8)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=8)


def draw(shown, images=None, video=None, strips=()):
    """-> a figure of what was measured. shown: steps of the strips' frames."""
    plots = [(draw_accuracy, images), (draw_horizon, video)]
    plots = [(plot, rows) for plot, rows in plots if rows]
    columns = len(plots) + bool(strips)
    figure, axes = hjepa.new_figure(1, columns, 6 * columns, 5)
    for ax, (plot, rows) in zip(axes[0], plots):
        plot(ax, rows)
    if strips:
        place = axes[0, -1].get_subplotspec()
        axes[0, -1].remove()
        grid = place.subgridspec(len(strips), 1)
        for number, (title, frames) in enumerate(strips):
            if number == 0:
                title += ", steps " + ", ".join(str(step) for step in shown)
            draw_strip(figure.add_subplot(grid[number]), title, frames)
    return figure
