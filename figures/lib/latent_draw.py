"""The picture of figures/latent.py."""
import hjepa
import numpy as np

from lib import latent_measure, latent_model, latent_plan, latent_world

CAPACITY = {"energy": "the future that happened", "energy_other": "another possible kick",
            "energy_twice": "a kick twice as strong", "energy_body": "another body kicked",
            "energy_world": "another world"}
FAMILIES = {"told": "0.2", "discrete": "#2166ac", "vector": "#b2182b", "minimised": "#e08214",
         "noisy": "#762a83"}


def of(rows, **values):
    """-> the rows that have all these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def draw_wells(ax, line, energies):
    """Energy of the true futures of all kicks from left to right, a curve per K."""
    for i, (name, energy) in enumerate(energies.items()):
        ax.semilogy(line, energy, color=hjepa.COLOURS[i], label=name)
    for kick in (-1, 1):
        ax.axvline(kick, color="0.6", lw=0.8, ls=":")
    ax.set(title="two outcomes: wells from one future to the other", ylabel="energy",
           xlabel="true kick, from left to right (dotted: in training)")
    ax.legend(fontsize=8)


def draw_errors(ax, rows):
    """Error of the best zeta over that of the told one, both kinds of kick."""
    names = [row["name"] for row in of(rows, kicks="two") if row["family"] != "told"]
    for kind, offset, marker in (("two", -0.15, "o"), ("ring", 0.15, "s")):
        for i, name in enumerate(names):
            row, = of(rows, kicks=kind, name=name)
            low, high = row["over_told_ci"]
            colour = FAMILIES[row["family"]]
            ax.plot([i + offset] * 2, [low, high], color=colour, lw=1)
            ax.plot(i + offset, row["over_told"], marker, color=colour, ms=5,
                    mfc=colour if kind == "two" else "white")
    ax.axhline(1, color="0.2", lw=0.8)
    ax.axhspan(0.9, 1.1, color="0.9")
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    ax.set(yscale="log", title="error of the best zeta / of the told one (grey: within 10 %)\n"
           "filled: two outcomes; open: any direction")


def draw_capacity(ax, rows, kind, ending, title):
    """Energy of right and wrong futures against d, of the vectors whose names end like this."""
    sizes = latent_model.SIZES
    mine = [of(rows, kicks=kind, name=f"d = {size}, {ending}")[0] for size in sizes]
    for i, (key, label) in enumerate(CAPACITY.items()):
        style = "-" if key in ("energy", "energy_other") else "--"
        ax.loglog(sizes, [row[key] for row in mine], "o" + style, ms=4, color=hjepa.COLOURS[i],
                  label=label)
    ax.set(title=title, xlabel="numbers in zeta, d", ylabel="energy (dashed: never happens)",
           ylim=(3e-4, 4))
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()


def draw_zeta(axes, arrays):
    """Any direction: which zeta of 16 wins for which kick, and two numbers of zeta by kick."""
    push = arrays["push/ring"]
    direction = np.degrees(np.arctan2(push[:, 1], push[:, 0]))
    number = arrays["zeta/ring/K = 16"][:, 0]
    axes[0].scatter(direction, number, c=direction, cmap="twilight", s=7)
    axes[0].set(title="any direction, K = 16: which zeta wins", ylabel="number of zeta",
                xlabel="true kick, degrees", xticks=range(-180, 181, 90))
    zeta = arrays["zeta/ring/d = 2, penalty"]
    axes[1].scatter(zeta[:, 0], zeta[:, 1], c=direction, cmap="twilight", s=7)
    axes[1].set(title="any direction, d = 2, penalty:\nzeta, coloured by the true kick",
                xlabel="first number of zeta", ylabel="second number")


def draw_plans(ax, plans):
    """Final error by planner: mean and worst over kicks."""
    for i, kind in enumerate(latent_world.KINDS):
        for j, planner in enumerate(latent_plan.PLANNERS):
            row, = of(plans, kicks=kind, planner=planner)
            at = j + 0.36 * (i - 0.5)
            low, high = row["mean_ci"]
            value = row["mean"]
            label = latent_world.KINDS[kind] if j == 0 else None
            ax.bar(at, value, 0.34, color=hjepa.COLOURS[i], label=label, ecolor="0.3",
                   yerr=[[value - low], [high - value]])
            ax.plot(at, row["worst"], "k_", ms=12)
    ax.set_xticks(range(len(latent_plan.PLANNERS)),
                  [planner.replace(" over ", "\nover ") for planner in latent_plan.PLANNERS],
                  fontsize=8)
    ax.set(title="plans under a hidden kick: error at the goal,\nmean over kicks; tick: worst kick",
           ylabel="half boxes, mean over bodies")
    ax.margins(y=0.25)
    ax.legend(fontsize=8, loc="upper right", ncols=2)


def draw_map(ax, energy, kind, name, limits):
    """Energy of the futures of all kicks, in colours common to all maps; white: the kicks of
    training."""
    edge = latent_measure.REACH
    image = ax.imshow(np.log10(energy), origin="lower", extent=[-edge, edge, -edge, edge],
                      cmap="viridis", vmin=limits[0], vmax=limits[1])
    pushes = latent_world.possible_pushes(kind, 64) / latent_world.SIZE
    if kind == "two":
        ax.plot(pushes[:, 0], pushes[:, 1], "wx", ms=5)
    else:
        ring = np.concatenate([pushes, pushes[:1]])
        ax.plot(ring[:, 0], ring[:, 1], "w:", lw=0.8)
    ax.set_title(name, fontsize=8)
    ax.set(xticks=[], yticks=[])
    return image


def draw(rows, plans, arrays):
    """-> figure. Above: wells, errors, zeta, capacity, plans. Below: energy over the plane of
    kicks."""
    figure, _ = hjepa.new_figure(1, 1, 19, 18)
    figure.clear()
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.05])
    axes = list(above.subplots(2, 4).flat)
    lines = {name: arrays[f"line/two/{name}"] for name in
             (f"K = {k}" for k in latent_model.COUNTS)}
    draw_wells(axes[0], arrays["line/kick"], lines)
    draw_errors(axes[1], rows)
    draw_zeta(axes[2:4], arrays)
    draw_capacity(axes[4], rows, "ring", "penalty", "any direction, zeta penalised")
    draw_capacity(axes[5], rows, "ring", "free", "any direction, zeta free")
    draw_capacity(axes[6], rows, "ring", "from scratch", "any direction, zeta free, P from scratch")
    axes[4].legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 0.62))
    draw_plans(axes[7], plans)

    table = [[f"K = {count}" for count in latent_model.COUNTS] + ["d = 2, noisy"],
             *[[f"d = {size}, {ending}" for size in latent_model.SIZES]
               for ending in ("penalty", "free", "from scratch")]]
    grid = below.subplots(4, 10)
    values = np.log10(np.concatenate([arrays[f"map/{kind}/{name}"].ravel() for kind in
                                      latent_world.KINDS for line in table for name in line]))
    limits = np.percentile(values, [1, 99])
    for half, kind in enumerate(latent_world.KINDS):
        for axes_row, line in zip(grid, table):
            for ax, name in zip(axes_row[5 * half:], line):
                image = draw_map(ax, arrays[f"map/{kind}/{name}"], kind, name, limits)
    below.colorbar(image, ax=grid, label="log10 of the energy", shrink=0.5)
    below.suptitle("energy of the true futures of all kicks, over the plane of kicks: left, "
                   "trained on two outcomes (crosses); right, on any direction (dotted ring). "
                   "Dark: low. All dark: collapsed", fontsize=10)
    return figure
