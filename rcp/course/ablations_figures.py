"""Figures and interactive twins of notebook 07: what does each choice do?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rcp import plots, quality, widgets
from rcp.course.ablations import QUANTITIES, Choice, Effect, change, largest_by_chance, league, seed_means, values
from rcp.course.ablations_paper import SHEETS, Direction, level
from rcp.data import Split
from rcp.experiments.collection import Row
from rcp.experiments.summary import differences
from rcp.images import read_image, read_mask

TYPE = plots.TYPE
SEEDS = ("o", "s", "^", "D", "v")  # a shape a seed
LINES = {  # columns of the paper's tables
    "ReConPatch": (plots.ANOMALOUS, "o", "-"), "untrained f": (plots.SKY, "s", "--"), "PatchCore": (plots.GREY, "D", ":"),
    "PatchCore, random projection": (plots.GREEN, "^", "-."), "PatchCore, PCA": (plots.PINK, "v", ":"),
}  # fmt: skip


# A toy


def toy_figure(both: float = 95.0) -> Figure:
    """Return a made-up table of two factors, and the two lines that it means: parallel only if nothing interacts.

    Args:
        both: the value with both factors changed, %.
    """
    few, many = (90.0, 89.5), (90.5, both)
    alone = few[0] + (few[1] - few[0]) + (many[0] - few[0])
    figure = Figure((12, 4.4))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.16, top=0.86, wspace=0.25)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    left.imshow([few, many], cmap="Blues", vmin=84, vmax=110)
    for row, line in enumerate((few, many)):
        for column, value in enumerate(line):
            left.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=TYPE + 5, weight="bold" if row == column == 1 else None)
    left.set_xticks([0, 1], ["rate low", "rate high"], fontsize=TYPE)
    left.set_yticks([0, 1], ["few\nepochs", "many\nepochs"], fontsize=TYPE)
    left.set_title("image AUROC, %: made up", fontsize=TYPE)
    right.plot([0, 1], few, "o-", color=plots.NORMAL, lw=3, ms=10, label="few epochs")
    right.plot([0, 1], many, "s--", color=plots.ANOMALOUS, lw=3, ms=10, label="many epochs")
    right.plot(1, alone, "X", color=plots.LIMIT, ms=13, label=f"one at a time predicts {alone:.1f}")
    right.annotate("", (1, both), (1, alone), arrowprops={"arrowstyle": "->", "lw": 2})
    right.set_xticks([0, 1], ["rate low", "rate high"], fontsize=TYPE)
    right.set(xlim=(-0.15, 1.25), ylim=(84, 98))
    right.set_ylabel("image AUROC, %", fontsize=TYPE)
    right.set_title(f"interaction {both - alone:+.1f}" + (": the lines are parallel" if both == alone else ""), fontsize=TYPE)
    right.legend(fontsize=TYPE - 1, frameon=False, loc="lower left")
    plots.plain(right)
    return figure


def toy_explorer() -> widgets.Explorer:
    """Return the twin of `toy_figure`: a slider for the fourth number, or a click at its height in the right panel."""

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {} if touch.panel != 1 or touch.phase == "up" else {"both": float(np.clip(round(2 * touch.y) / 2, 85, 97))}

    return widgets.explore(
        toy_figure, {"both": widgets.slider(85.0, 97.0, 95.0, "both changed (%)", 0.5)}, on_touch=moved,
        alt="a table of two factors and its two lines, with what one factor at a time predicts",
    )  # fmt: skip


# One choice


def _draw_levels(axes: Axes, rows: Sequence[Row], choice: Choice, quantity: str, *, seeds: bool = True) -> None:
    """Means and deviations over seeds; the band is the reference's."""
    found = [list(seed_means(values(rows, one, quantity)).values()) for one in choice.levels]
    base = found[choice.levels.index(choice.reference)]
    middle, wide = statistics.fmean(base), statistics.stdev(base) if len(base) > 1 else 0.0
    axes.axhspan(middle - wide, middle + wide, color=plots.NORMAL, alpha=0.18, lw=0)
    axes.axhline(middle, color=plots.NORMAL, lw=1.5, ls=":")
    if seeds:
        for shape, run in zip(SEEDS, zip(*found, strict=True) if len({*map(len, found)}) == 1 else (), strict=False):
            axes.plot(range(len(found)), run, shape, color="0.6", ms=6, mfc="none")
    means = [statistics.fmean(own) for own in found]
    bars = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in found]
    line = "-" if choice.sorted_by_size else "none"
    axes.errorbar(range(len(found)), means, bars, color=plots.ANOMALOUS, marker="o", ls=line, lw=2, ms=8, capsize=4)
    place = choice.levels.index(choice.reference)
    axes.plot(place, means[place], "o", color=plots.NORMAL, ms=11, mec="white", zorder=5)
    axes.set_xticks(range(len(found)), [one.label for one in choice.levels], fontsize=TYPE - 3)
    axes.set_xlim(-0.4, len(found) - 0.6)
    plots.plain(axes)


def multiples_figure(rows: Sequence[Row], choices: Mapping[str, Choice], quantity: str = "image_auroc") -> Figure:
    """Return a panel a choice, all on one y scale: means over categories ± deviation over seeds, in blue the reference's band.

    Args:
        rows: of the collection "ablations".
        choices: from `rcp.course.ablations.measured`.
        quantity: of `rcp.course.ablations.QUANTITIES`.
    """
    columns = min(4, len(choices))
    lines = math.ceil(len(choices) / columns)
    figure = plots.new_figure(12, 0.6 + 2.5 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, choice in zip(grid.flat, choices.values(), strict=False):
        _draw_levels(axes, rows, choice, quantity, seeds=False)
        axes.set_title(choice.title, fontsize=TYPE - 1)
        axes.tick_params(axis="x", labelsize=TYPE - 3)
    for axes in list(grid.flat)[len(choices) :]:
        axes.set_visible(False)
    name, unit, _ = QUANTITIES[quantity]
    figure.supylabel(name + (f", {unit}" if unit else ""), fontsize=TYPE)
    return figure


def choice_figure(rows: Sequence[Row], choice: Choice, quantity: str = "image_auroc", chosen: int | None = None) -> Figure:
    """Return one choice's levels with the reference's band, and beside them the paired differences with 95 % intervals.

    Args:
        rows: of a collection.
        choice: from `rcp.course.ablations.measured`.
        quantity: of `rcp.course.ablations.QUANTITIES`.
        chosen: position of the level whose numbers stand in the title; None: the one with the largest difference.
    """
    name, unit, _ = QUANTITIES[quantity]
    figure = Figure((12, 4.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.2, top=0.84, wspace=0.24)
    left, right = figure.subplots(1, 2)
    _draw_levels(left, rows, choice, quantity)
    left.set_ylabel(name + (f", {unit}" if unit else ""), fontsize=TYPE)
    left.set_title(f"{choice.title}: blue, {choice.reference.label}".replace("-\n", "").replace("\n", " "), fontsize=TYPE)
    moves = [change(rows, one, choice.reference, quantity) for one in choice.levels]
    if chosen is None or chosen >= len(moves):
        chosen = max(range(len(moves)), key=lambda i: abs(moves[i].mean))
    for i, (one, moved) in enumerate(zip(choice.levels, moves, strict=True)):
        if one == choice.reference:
            continue
        paired = seed_means(differences(values(rows, one, quantity), values(rows, choice.reference, quantity)))
        for shape, value in zip(SEEDS, paired.values(), strict=False):
            right.plot(i, value, shape, color="0.6", ms=6, mfc="none")
        half = 0.0 if math.isnan(moved.low) else moved.high - moved.mean
        colour = plots.ANOMALOUS if moved.clear else plots.GREY
        right.errorbar(i, moved.mean, half, color=colour, marker="o" if moved.clear else "D", ms=12 if i == chosen else 8, capsize=5, lw=2)
    right.axhline(0, color=plots.NORMAL, lw=1.5, ls=":")
    right.set_xticks(range(len(moves)), [one.label for one in choice.levels], fontsize=TYPE - 3)
    right.set_xlim(left.get_xlim())
    right.set_ylabel("paired difference" + (", points" if unit else ""), fontsize=TYPE)
    label, moved = choice.levels[chosen].label.replace("-\n", "").replace("\n", " "), moves[chosen]
    inside = "" if math.isnan(moved.low) else f", 95 %: {moved.low:+.2f} to {moved.high:+.2f}"
    right.set_title(f"{label}: {moved.mean:+.2f}{inside}", fontsize=TYPE)
    plots.plain(right)
    return figure


def explorer(rows: Sequence[Row], choices: Mapping[str, Choice]) -> widgets.Explorer:
    """Return the twin of `choice_figure`: menus for the choice and the quantity, a slider or a click for the level."""

    def draw(choice: str, quantity: str, level: int) -> Figure:
        return choice_figure(rows, choices[choice], quantity, level - 1)

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        count = len(choices[values["choice"]].levels)
        return {} if touch.phase == "up" else {"level": int(np.clip(round(touch.x), 0, count - 1)) + 1}

    controls = {
        "choice": _menu([(one.title, name) for name, one in choices.items()], "choice"),
        "quantity": _menu([(words, name) for name, (words, _, _) in QUANTITIES.items()], "quantity"),
        "level": widgets.slider(1, max(len(one.levels) for one in choices.values()), 1, "level in the title"),
    }
    return widgets.explore(draw, controls, on_touch=moved, alt="levels of one choice, and their paired differences from the default")


def _menu(options: list[tuple[str, str]], name: str) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(options=options, value=options[0][1], description=name, layout=ipywidgets.Layout(width="420px"))


# The paper's tables


def directions_figure(found: Sequence[Direction]) -> Figure:
    """Return published changes (diamonds) beside measured ones (95 % intervals over seeds), a panel a table and method.

    Args:
        found: from `rcp.course.ablations_paper.directions`, of all tables.
    """
    groups: dict[tuple[int, str], list[Direction]] = {}
    for one in found:
        if one.paper is not None:
            groups.setdefault((one.sheet.number, one.column.name), []).append(one)
    figure = plots.new_figure(12, 4.9)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=[1 + len(own) for own in groups.values()])[0]
    for axes, ((number, name), own) in zip(panels, groups.items(), strict=True):
        x = np.arange(len(own))
        axes.axhline(0, color="0.6", lw=1.5)
        axes.plot(x - 0.15, [one.paper for one in own], "D", color=plots.LIMIT, mfc="white", mew=2, ms=10, label="published: MVTec AD, WRN-50")
        means = [one.ours.mean for one in own]
        halves = [0.0 if math.isnan(one.ours.low) else one.ours.high - one.ours.mean for one in own]
        axes.errorbar(x + 0.15, means, halves, fmt="o", color=plots.ANOMALOUS, ms=10, lw=2.5, capsize=5, label="measured here: 95 % interval over seeds")
        short = [one.label.replace(", levels ", "\nL") for one in own]
        axes.set_xticks(x, short, fontsize=TYPE - 3)
        axes.set_xlim(-0.6, len(own) - 0.4)
        start = own[0].column.base.replace(", levels ", ", L")
        axes.set_title(f"Table {number}\n{name.replace(', ', chr(10))}" + ("" if "," in name else "\n"), fontsize=TYPE - 2)
        axes.set_xlabel(f"from {start} to …", fontsize=TYPE - 2)
        plots.plain(axes)
        axes.tick_params(axis="x", labelsize=TYPE - 3)
    panels[0].set_ylabel("change of image AUROC, points", fontsize=TYPE - 1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=TYPE - 2, frameon=False)
    return figure


def width_figure(rows: Sequence[Row], quantity: str = "image_auroc", features: int = 152) -> Figure:
    """Return a quantity over the width of what the memory holds: trained, untrained, by random projection and by PCA.

    Args:
        rows: of the collection "ablations".
        quantity: of `rcp.course.ablations.QUANTITIES`.
        features: numbers a patch has before any map.
    """
    figure = plots.new_figure(11, 5)
    axes = figure.subplots()
    labels = SHEETS[2].labels[::-1]
    for shift, column in zip((-0.12, -0.04, 0.04, 0.12), SHEETS[2].columns, strict=True):
        colour, shape, line = LINES[column.name]
        points = []
        for x, label in enumerate(labels):
            one = level(column, label)
            own = list(seed_means(values(rows, one, quantity)).values()) if one else []
            if own:
                full = one.method == "PCA" and int(label) > features
                points.append((np.log2(features / int(labels[0])) if full else x, statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else 0))
        if points:
            x, means, bars = (np.array(values) for values in zip(*points, strict=True))
            axes.errorbar(x + shift, means, bars, color=colour, marker=shape, ls=line, lw=2.5, ms=9, capsize=4, label=column.name)
    axes.axvline(np.log2(features / int(labels[0])), color="0.75", lw=1.5, ls="--")
    axes.text(np.log2(features / int(labels[0])) + 0.04, 0.02, f"{features} numbers a patch: PCA ends here", transform=axes.get_xaxis_transform(), fontsize=TYPE - 3)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("width (numbers a row of the memory)", fontsize=TYPE)
    name, unit, _ = QUANTITIES[quantity]
    axes.set_ylabel(name + (f", {unit}" if unit else ""), fontsize=TYPE)
    plots.plain(axes)
    figure.legend(loc="outside lower center", ncols=2, fontsize=TYPE - 1, frameon=False)
    return figure


# Image quality


def degraded_figure(test: Split, seed: int = 4) -> Figure:
    """Return one picture with a defect, as it is and with each fault; the mask moves along (dashed: where it was).

    Args:
        test: a split; its first picture with a mask is shown.
        seed: of the random numbers; one seed for all, so that "all" is turned as "rotation" is.
    """
    sample = next(sample for sample in test if sample.mask is not None)
    pixels = read_image(sample.path)
    mask = read_mask(sample.mask, pixels.shape[:2])
    figure = plots.new_figure(9.6, 6.8)
    shown = {"clean": (pixels, mask)} | {
        name: quality.degrade_pixels(pixels, mask, one, np.random.default_rng(seed)) for name, one in quality.QUALITIES.items()
    }  # fmt: skip
    for axes, (name, (picture, moved)) in zip(figure.subplots(2, 3).flat, shown.items(), strict=True):
        axes.imshow(picture)
        if name != "clean":
            axes.contour(mask, levels=[0.5], colors=["white"], linewidths=1, linestyles="dashed")
        axes.contour(moved, levels=[0.5], colors=[plots.CONTOUR], linewidths=2)
        axes.set_title(name, fontsize=TYPE)
        plots.bare(axes)
    return figure


# The league


def league_figure(found: Sequence[Effect], unit_words: str = "image AUROC") -> Figure:
    """Return all effects in units of the seeds' standard deviation, a line a choice, the largest first.

    Args:
        found: from `rcp.course.ablations.effects`.
        unit_words: what it is a deviation of.

    Returns:
        A figure. Filled circles: the paired interval excludes zero. Grey: what the largest of so many effects would be in
        nineteen cases of twenty if there were none. The axis is linear within that, and logarithmic outside.
    """
    groups = league(found)
    high = largest_by_chance(len(found), max(effect.change.n for effect in found))[1]
    figure = plots.new_figure(12, 1.6 + 0.42 * len(groups))
    axes = figure.subplots()
    axes.axvspan(-high, high, color="0.88", lw=0)
    axes.axvline(0, color=plots.LIMIT, lw=1)
    for y, group in enumerate(groups):
        for effect in group:
            fill = plots.ANOMALOUS if effect.change.clear else "white"
            axes.plot(effect.size, y, "o", color=plots.ANOMALOUS, mfc=fill, mew=2, ms=10)
        first = group[0]
        label = first.level.label.replace("-\n", "").replace("\n", " ")
        axes.text(1.01, y, f"{label}: {first.change.mean:+.2f}", transform=axes.get_yaxis_transform(), fontsize=TYPE - 2, va="center")
    axes.set_yticks(range(len(groups)), [group[0].choice.title for group in groups], fontsize=TYPE - 1)
    axes.set_xscale("symlog", linthresh=high)
    edge = max(high * 1.6, 1.3 * max(abs(effect.size) for effect in found))
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100) if t < edge]
    axes.set_xticks([-t for t in ticks[::-1]] + [0, *ticks], [f"−{t}" for t in ticks[::-1]] + ["0", *map(str, ticks)])
    axes.minorticks_off()
    axes.set_xlim(-edge, edge)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(f"effect on the {unit_words}, in standard deviations of the seeds", fontsize=TYPE - 1)
    axes.set_title(f"{len(found)} changes; grey: the largest of so many by chance, 95 %; right: the largest of each, in points", fontsize=TYPE - 2)
    plots.plain(axes)
    return figure
