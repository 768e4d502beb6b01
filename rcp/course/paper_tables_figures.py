"""The pictures of notebook 08: forest plots, a map of categories, curves over epochs, and the explorer of all comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from rcp import plots, widgets
from rcp.course.paper_tables import (
    ALL,
    BUGS,
    CONTENDERS,
    EPOCHS,
    OPPONENTS,
    PERCENT,
    PLAIN,
    PROBES,
    QUANTITIES,
    SPACES,
    TRAINED,
    UNTRAINED,
    Line,
    compared,
    forest,
    gains,
    per_category,
    signed,
    values,
)  # fmt: skip
from rcp.course.paper_tables_claims import published_gains
from rcp.course.paper_tables_ensemble import lines_of
from rcp.experiments.collection import Row
from rcp.experiments.summary import Interval, interval

MARKS = {"Lite0": ("o", plots.SKY), "Lite1": ("^", plots.ORANGE), "Lite2": ("D", plots.PINK)}
OTHERS = (("s", plots.GREEN), ("o", plots.SKY), ("^", plots.ORANGE), ("D", plots.PINK))  # categories
SMALL = plots.TYPE - 3
DIVERGING = "PuOr"


def toy_figure(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Return five pairs of values as lines, and the unpaired and the paired difference with their 95 % intervals.

    Args:
        ours, theirs: one value a seed, in percent.
    """
    figure = plots.new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for seed, pair in enumerate(zip(theirs, ours, strict=True)):
        left.plot([0, 1], pair, "o-", color=plots.NORMAL, lw=2, ms=8)
        left.annotate(f"seed {seed}", (1.05, pair[1]), fontsize=SMALL, va="center")
    left.set(xticks=[0, 1], xlim=(-0.3, 1.5))
    left.set_xticklabels(["theirs", "ours"], fontsize=plots.TYPE)
    left.set_ylabel("image AUROC, %", fontsize=plots.TYPE - 1)
    left.set_title("every pair rises; the pairs lie far apart", fontsize=plots.TYPE - 1)
    n, mean = len(ours), statistics.fmean(ours) - statistics.fmean(theirs)
    paired = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    t = (paired.high - mean) / (statistics.stdev(a - b for a, b in zip(ours, theirs, strict=True)) / n**0.5)
    half = t * ((statistics.variance(ours) + statistics.variance(theirs)) / n) ** 0.5
    for y, low, high, colour in ((1, mean - half, mean + half, plots.GREY), (0, paired.low, paired.high, plots.NORMAL)):
        right.plot([low, high], [y, y], color=colour, lw=6, solid_capstyle="butt")
        right.plot([mean], [y], "o", color=plots.LIMIT, ms=9)
    _zero(right)
    right.set(yticks=[0, 1], ylim=(-0.6, 1.6))
    right.set_yticklabels(["paired", "unpaired"], fontsize=plots.TYPE)
    right.set_xlabel("difference, points", fontsize=plots.TYPE - 1)
    right.set_title("the same mean difference, two intervals", fontsize=plots.TYPE - 1)
    for axes in (left, right):
        plots.plain(axes)
    return figure


def claims_figure() -> Figure:
    """Return the gain of ReConPatch over PatchCore in each MVTec category: the paper's, and a third party's."""
    found = {source: published_gains(source) for source in ("paper", "third party")}
    names = sorted(found["paper"], key=lambda name: -found["paper"][name])
    figure = plots.new_figure(12, 4.6)
    axes = figure.subplots()
    looks = {"paper": (-0.2, plots.NORMAL, ""), "third party": (0.2, plots.ORANGE, "//")}
    for source, (shift, colour, hatch) in looks.items():
        mean = interval(found[source].values())
        label = f"{source}: mean {signed(mean.mean)} [{signed(mean.low)}, {signed(mean.high)}]"
        axes.bar(np.arange(len(names)) + shift, [found[source][n] for n in names], 0.38, color=colour, hatch=hatch, ec="white", label=label)
    axes.axhline(0, color=plots.LIMIT, lw=1)
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels(names, rotation=35, ha="right", rotation_mode="anchor", fontsize=SMALL)
    axes.set_ylabel("image AUROC, points", fontsize=plots.TYPE - 1)
    axes.set_title("ReConPatch − PatchCore, as published (no bar: equal)", fontsize=plots.TYPE)
    axes.legend(fontsize=SMALL, frameon=False)
    plots.plain(axes)
    return figure


def forest_figure(rows: Sequence[Row], quantity: str = "image_auroc", opponents: Sequence[str] = (UNTRAINED, PLAIN)) -> Figure:
    """Return the paired differences of all contenders, a panel an opponent, over both and over seeds alone.

    Args:
        rows: of the study.
        quantity: of `QUANTITIES`.
        opponents: of `OPPONENTS`.
    """
    figure = plots.new_figure(12, 6.4)
    panels = figure.subplots(1, len(opponents), squeeze=False, sharey=True)[0]
    found = {theirs: forest(rows, theirs, quantity) for theirs in opponents}
    names = [who for who in CONTENDERS if any(line.who == who for lines in found.values() for line in lines)]
    for axes, (theirs, lines) in zip(panels, found.items(), strict=True):
        draw_forest(axes, lines, names, unit(quantity))
        axes.set_title(f"against {theirs}", fontsize=plots.TYPE)
    _legend(figure, panels[0])
    return figure


def draw_forest(axes: Axes, lines: Sequence[Line], names: Sequence[str], xlabel: str, chosen: str = "") -> None:
    """Draw a line a contender: thick the interval over both, thin that over seeds alone, small marks the parts.

    Args:
        axes: where.
        lines: from `forest`.
        names: of the contenders, from above; those without a line leave a gap.
        xlabel: of the difference.
        chosen: one to be marked.
    """
    if chosen in names:
        axes.axhspan(names.index(chosen) - 0.45, names.index(chosen) + 0.45, color="#EEEEEE", lw=0, zorder=0)
    y = np.array([names.index(line.who) for line in lines], float)
    looks = (("both", "over both", -0.14, plots.NORMAL, 6), ("seeds", "over seeds alone", 0.1, plots.GREY, 2))
    for kind, words, shift, colour, width in looks if lines else ():
        ends = np.array([[getattr(line, kind).low, getattr(line, kind).high] for line in lines])
        axes.hlines(y + shift, *ends.T, color=colour, lw=width, label=f"95 % {words}")
    if lines:
        axes.plot([line.both.mean for line in lines], y, "|", color=plots.LIMIT, ms=16, mew=3, label="mean")
    for number, name in enumerate(dict.fromkeys(name for line in lines for name in line.parts)):
        mark, colour = MARKS.get(name, OTHERS[number % len(OTHERS)])
        own = [(line.parts[name], at + 0.31) for line, at in zip(lines, y, strict=True) if name in line.parts]
        axes.plot(*zip(*own, strict=True), mark, color=colour, ms=6, label=f"mean, {name}")
    axes.set(yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticklabels(names, fontsize=SMALL + 1)
    axes.set_xlabel(xlabel, fontsize=plots.TYPE - 1)
    _zero(axes)
    plots.plain(axes)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)  # more, and "−0.25" and "−0.20" run into each other


def unit(quantity: str) -> str:
    """Return a difference's name with its unit."""
    name = (QUANTITIES | PROBES)[quantity].removesuffix(", %")
    return f"difference in {name}{', points' if quantity in PERCENT else ''}"


def map_figure(rows: Sequence[Row], theirs: str = UNTRAINED, quantity: str = "image_auroc") -> Figure:
    """Return the paired differences a category and contender as a map; frames mark those whose interval over seeds is clear."""
    found = {who: per_category(gains(rows, who, theirs, quantity)) for who in CONTENDERS if who != theirs}
    found = {who: own for who, own in found.items() if own}
    columns = list(dict.fromkeys(name for own in found.values() for name in own))
    grid = np.array([[own[c].mean if c in own else np.nan for c in columns] for own in found.values()])
    most = max(float(np.nanmax(np.abs(grid))), 1e-6)
    figure = plots.new_figure(12, 5.6)
    axes = figure.subplots()
    image = axes.imshow(grid, cmap=DIVERGING, norm=TwoSlopeNorm(0, -most, most), aspect="auto")
    for y, own in enumerate(found.values()):
        for x, name in enumerate(columns):
            if name not in own:
                continue
            clear = own[name].clear
            white = abs(own[name].mean) > 0.6 * most
            text = signed(own[name].mean) + (" *" if clear else "")
            axes.text(x, y, text, ha="center", va="center", fontsize=SMALL + 1, color="white" if white else "black",
                      weight="bold" if clear else "normal")  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, fontsize=plots.TYPE - 1)
    axes.set_yticks(range(len(found)), list(found), fontsize=SMALL + 1)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"against {theirs}; bold with *: zero lies outside the interval over seeds", fontsize=plots.TYPE - 1)
    figure.colorbar(image, ax=axes).set_label(unit(quantity), fontsize=plots.TYPE - 1)
    return figure


def epochs_figure(rows: Sequence[Row], quantities: Sequence[str] = ("image_auroc", "d_prime")) -> Figure:
    """Return the difference to the untrained f over the epochs: mean, band over both, dotted over seeds; thin the categories."""
    figure = plots.new_figure(12, 4.6)
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axes, quantity in zip(panels, quantities, strict=True):
        found = {who: own for who in EPOCHS.values() if (own := gains(rows, who, UNTRAINED, quantity))}  # the untrained: zeros
        x = [i for i, who in enumerate(EPOCHS.values()) if who in found]
        lines = [compared(who, own) for who, own in found.items()]
        axes.fill_between(x, [one.both.low for one in lines], [one.both.high for one in lines], color=plots.NORMAL, alpha=0.22, lw=0, label="95 % over both")
        for end in ("low", "high"):
            axes.plot(x, [getattr(one.seeds, end) for one in lines], ":", color=plots.NORMAL, lw=2, label="over seeds alone")
        axes.plot(x, [one.both.mean for one in lines], "o-", color=plots.NORMAL, lw=3, ms=9, label="mean")
        parts = {who: per_category(own) for who, own in found.items()}
        for number, name in enumerate(dict.fromkeys(n for own in parts.values() for n in own)):
            ends = [(i, parts[who][name].mean) for i, who in enumerate(EPOCHS.values()) if name in parts.get(who, {})]
            axes.plot(*zip(*ends, strict=True), color=plots.GREY, lw=1.2, ls=("-", "--", ":", "-.")[number % 4], marker="osv^D<"[number % 6], ms=4, label=name)
        axes.axhline(0, color=plots.LIMIT, lw=1)
        axes.set_xticks(range(len(EPOCHS)), [str(epoch) for epoch in EPOCHS], fontsize=plots.TYPE - 1)
        axes.set_xlabel("epoch (0: untrained; not to scale)", fontsize=plots.TYPE - 1)
        axes.set_ylabel(unit(quantity), fontsize=plots.TYPE - 1)
        plots.plain(axes)
    figure.suptitle("ReConPatch − untrained f, the same seed", fontsize=plots.TYPE)
    _legend(figure, panels[0], 5)
    return figure


def ports_figure(rows: Sequence[Row]) -> Figure:
    """Return what each bug of the ports, and all at once, change against ours with the same seed; a sentence without results."""
    return _two_panels(lambda quantity: forest(rows, TRAINED, quantity, contenders=BUGS) if rows else [], list(BUGS), "with the bug − without")


def ensemble_figure(rows: Sequence[Row]) -> Figure:
    """Return the comparisons of ensembles, with a mark a category; a sentence if there are no results."""
    return _two_panels(lambda quantity: lines_of(rows, quantity), [], "first − second; each score is an ensemble's unless it says members")


def _two_panels(found: Callable[[str], list[Line]], names: list[str], title: str) -> Figure:
    """Two forests side by side, image AUROC and d'.

    Args:
        found: quantity → its lines.
        names: of lines that are expected; those that are not there leave no gap, unless none is.
        title: above both.
    """
    lines = {quantity: found(quantity) for quantity in ("image_auroc", "d_prime")}
    there = list(dict.fromkeys(line.who for own in lines.values() for line in own)) or names
    figure = plots.new_figure(12, 1.6 + 0.5 * max(len(there), 4))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (quantity, own) in zip(panels, lines.items(), strict=True):
        draw_forest(axes, own, there, unit(quantity))
        if not own:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", fontsize=plots.TYPE)
    figure.suptitle(title, fontsize=plots.TYPE)
    if lines["image_auroc"]:
        _legend(figure, panels[0])
    return figure


def space_figure(rows: Sequence[Row], backbone: str) -> Figure:
    """Return the probes of each method's feature space: means, and a thin mark a category.

    Args:
        rows: of the study.
        backbone: one with which all methods were measured.
    """
    names = [who for who in SPACES if _measured(rows, who, backbone)]
    figure = plots.new_figure(12, 5.6)
    panels = figure.subplots(1, len(PROBES), sharey=True)
    for axes, (probe, name) in zip(panels, PROBES.items(), strict=True):
        for y, who in enumerate(names):
            parts: dict[str, list[float]] = {}
            for key, value in values(rows, who, probe, backbone).items():
                parts.setdefault(key[1], []).append(value)
            means = [statistics.fmean(own) for own in parts.values()]
            axes.plot(means, [y] * len(means), "|", color=plots.GREY, ms=12, mew=1.5, label="a category")
            axes.plot([statistics.fmean(means)], [y], "o", color=plots.NORMAL, ms=10, label="mean")
        axes.set_xlabel(name, fontsize=plots.TYPE - 1)
        axes.set_yticks(range(len(names)), names, fontsize=SMALL + 1)
        plots.plain(axes)
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


def explorer_figure(rows: Sequence[Row], opponent: str, quantity: str, backbone: str, method: str) -> Figure:
    """Return the forest plot against one opponent, and the chosen method's categories beside it."""
    figure = Figure(figsize=(12, 5))  # with fixed margins: a layout that is searched for would take half of the time
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.subplots_adjust(left=0.2, right=0.98, bottom=0.14, top=0.87, wspace=0.3)
    draw_forest(left, forest(rows, opponent, quantity, backbone), list(CONTENDERS), unit(quantity), method)
    left.set_title(f"against {opponent}, backbone: {backbone}", fontsize=plots.TYPE - 1)
    parts: Mapping[str, Interval] = per_category(gains(rows, method, opponent, quantity, backbone)) if method != opponent else {}
    if parts:
        right.hlines(range(len(parts)), *zip(*((one.low, one.high) for one in parts.values()), strict=True), color=plots.NORMAL, lw=7)
        right.plot([one.mean for one in parts.values()], range(len(parts)), "|", color=plots.LIMIT, ms=18, mew=3)
    right.set_ylim(len(parts) - 0.4 if parts else 1, -0.6)
    right.set_yticks(range(len(parts)), list(parts), fontsize=SMALL + 1)
    right.set_xlabel(unit(quantity), fontsize=plots.TYPE - 1)
    right.set_title(f"{method}:\n" + ("95 % over seeds" if parts else "nothing to compare"), fontsize=plots.TYPE - 1)
    _zero(right)
    plots.plain(right)
    return figure


def explorer(rows: Sequence[Row]) -> widgets.Explorer:
    """Return the forest plot with opponent, quantity, backbone and method to choose; a click on a line chooses its method."""
    backbones = [ALL, *sorted({row.backbone for row in rows})]
    shown = {name: quantity for quantity, name in QUANTITIES.items()}
    controls = {
        "opponent": _dropdown(list(OPPONENTS), UNTRAINED, "against"), "quantity": _dropdown(list(shown), "image AUROC", "metric"),
        "backbone": _dropdown(backbones, ALL, "backbone"), "method": _dropdown(list(CONTENDERS), TRAINED, "method"),
    }  # fmt: skip

    def draw(opponent: str, quantity: str, backbone: str, method: str) -> Figure:
        return explorer_figure(rows, opponent, shown[quantity], backbone, method)

    def touched(touch: widgets.Touch, now: dict) -> dict:
        line = round(touch.y)
        return {"method": list(CONTENDERS)[line]} if touch.panel == 0 and 0 <= line < len(CONTENDERS) else {}

    return widgets.explore(
        draw, controls, on_touch=touched,
        alt="a line a method: its paired difference to the opponent with two intervals; beside it the chosen method's categories",
    )  # fmt: skip


def _dropdown(options: list[str], value: str, name: str) -> ipywidgets.Dropdown:
    return ipywidgets.Dropdown(options=options, value=value, description=name, layout=ipywidgets.Layout(width="330px"))


def _measured(rows: Sequence[Row], who: str, backbone: str) -> bool:
    try:
        return bool(values(rows, who, next(iter(PROBES)), backbone))
    except ValueError:
        return False


def _zero(axes: Axes) -> None:
    axes.axvline(0, color=plots.LIMIT, lw=1, ls="--", zorder=0)


def _legend(figure: Figure, axes: Axes, columns: int = 6) -> None:
    named = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False)
