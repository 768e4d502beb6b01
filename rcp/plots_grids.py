"""Figures from collected grids of experiments: bars of Table 4, curves over the epochs of a training.

They are drawn from rows of `rcp.experiments.collection.read_rows`, hence from result files alone. A mean goes over
categories first, within each seed; what follows ± is the standard deviation over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rcp import plots
from rcp.plots_paper import MARKS, name_axes

if TYPE_CHECKING:
    from rcp.experiments.collection import Row

LOOKS = {"PatchCore": plots.GREY, "untrained f": plots.SKY, "ReConPatch": plots.ANOMALOUS}
NAMES = {"image_auroc": "image AUROC, %", "pixel_auroc": "pixel AUROC, %", "aupro": "AUPRO@0.3, %", "d_prime": "d'"}
ORDER = ("clean", "rotation", "translation", "light", "blur", "all")
SIDES = ("train", "test", "both")
TYPE = plots.TYPE


def untrained(row: Row) -> str:
    """Return what a row's method is called in the figures: a training's epoch 0 is the untrained f."""
    return "untrained f" if row.epoch == 0 else row.method


def over_seeds(rows: Iterable[Row], metric: str, categories: Sequence[str]) -> list[float]:
    """Return a mean over categories for each seed that has all of them; metrics in %, d' as it is.

    Args:
        rows: of one method at one moment.
        metric: a name of `NAMES`.
        categories: over which the mean goes.
    """
    by_seed: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.category in categories and row.metrics.get(metric) is not None:
            by_seed.setdefault(row.seed, {})[row.category] = row.metrics[metric] * (1 if metric == "d_prime" else 100)
    return [statistics.fmean(found.values()) for _, found in sorted(by_seed.items()) if len(found) == len(categories)]


def robustness(rows: Sequence[Row], *, data: str = "embedded", metric: str = "image_auroc") -> Figure:
    """Return bars of a metric on clean and on degraded images: means over categories, error bars over seeds.

    Args:
        rows: of the grid "quality", by `rcp.experiments.collection.read_rows`; of one backbone.
        data: the data set's name in the grid.
        metric: a name of `NAMES`.

    Returns:
        A figure; the axis of an AUROC starts at 50 %, where guessing is.

    Raises:
        ValueError: if there is no row to draw, or several backbones.

    Source: ReConPatch, Table 4, as a figure.
    """
    own = [r for r in rows if (r.data == data or r.data.startswith(f"{data}, ")) and (r.last or r.epoch == 0)]
    labels = list(dict.fromkeys(row.data for row in own))
    backbones = sorted({row.backbone for row in own})
    if len(backbones) != 1 or data not in labels:
        raise ValueError(
            f"the bars need rows of {data!r} as it comes, and of one backbone; there are {', '.join(labels) or 'no rows'} "
            f"with {', '.join(backbones) or 'no backbone'}: choose among them, or measure the grid first"
        )
    methods = [name for name in LOOKS if any(untrained(row) == name for row in own)]
    labels.sort(key=_severity)
    common = set.intersection(*({r.category for r in own if r.data == label} for label in labels))
    figure = plots.new_figure(12, 5.2)
    axes = figure.subplots()
    for place, method in enumerate(methods):
        values = [
            over_seeds([r for r in own if r.data == label and untrained(r) == method], metric, sorted(common))
            for label in labels
        ]
        x = np.arange(len(labels)) + (place - (len(methods) - 1) / 2) * 0.27
        means = [statistics.fmean(v) if v else np.nan for v in values]
        deviations = [statistics.stdev(v) if len(v) > 1 else np.nan for v in values]
        hatch = ("", "//", "..")[place % 3]
        axes.bar(x, means, 0.25, yerr=deviations, color=LOOKS[method], hatch=hatch, ec="white", capsize=4, label=method)
    axes.set_xticks(range(len(labels)), [_shown(label) for label in labels])
    chance = metric in ("image_auroc", "pixel_auroc")
    name_axes(axes, "", NAMES[metric] + (" (50: guessing)" if chance else ""))
    axes.tick_params(axis="x", labelsize=TYPE - 2)
    if chance:
        axes.set_ylim(50, 100)
    figure.suptitle(f"{data}, {backbones[0]}: mean of {', '.join(sorted(common))}; ± over seeds", fontsize=TYPE - 1)
    figure.legend(loc="outside lower center", ncols=len(methods), fontsize=TYPE - 1, frameon=False)
    return figure


def _severity(label: str) -> tuple[int, int, str]:
    word, side = _shown(label).split("\n")[0], label.partition(" on ")[2]
    places = [own.index(one) if one in own else len(own) for one, own in ((word, ORDER), (side, SIDES))]
    return (*places, label)


def _shown(label: str) -> str:
    """ "embedded, all on both" → "all" above "both"."""
    return label.partition(", ")[2].replace(" on ", "\n") or "clean"


def epochs_curve(
    rows: Sequence[Row], *, categories: Sequence[tuple[str, str]], backbone: str, reference: str = "PatchCore"
) -> Figure:
    """Return image AUROC and d' over the epochs of the trainings, a column a category: means and deviations over seeds.

    Args:
        rows: of the grid "study", by `rcp.experiments.collection.read_rows`.
        categories: (data, category) of each column.
        backbone: the name of one.
        reference: a method that does not train, drawn as a line across.

    Returns:
        A figure. Epochs are evenly spaced, whatever lies between them; epoch 0 is the untrained f.

    Raises:
        ValueError: if a column has no rows.
    """
    figure = plots.new_figure(12, 6.4)
    grid = figure.subplots(2, len(categories), squeeze=False, sharex=True)
    for column, (data, category) in zip(grid.T, categories, strict=True):
        own = [r for r in rows if (r.data, r.category, r.backbone) == (data, category, backbone) and not r.varied]
        if not own:
            raise ValueError(f"there is no result for {data} {category} with {backbone}: measure the grid first")
        for axes, metric in zip(column, ("image_auroc", "d_prime"), strict=True):
            _curves(axes, own, metric, reference)
            _widen(axes, 2.0 if metric == "image_auroc" else 0.2)
            name_axes(
                axes,
                "epoch" if metric == "d_prime" else "",
                NAMES[metric] if column is grid.T[0] or axes is grid[0, 0] else "",
            )
        column[0].set_title(category, fontsize=TYPE)
    for axes, metric in zip(grid[:, 0], ("image_auroc", "d_prime"), strict=True):
        axes.set_ylabel(NAMES[metric], fontsize=TYPE - 1)
    named = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=TYPE - 2, frameon=False)
    return figure


def _widen(axes: Axes, least: float) -> None:
    """Let the vertical axis span so much at least: a hundredth of a point must not look like a fall."""
    low, high = axes.get_ylim()
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    axes.ticklabel_format(axis="y", useOffset=False)


def _curves(axes: Axes, rows: Sequence[Row], metric: str, reference: str) -> None:
    category = [rows[0].category]
    epochs = sorted({row.epoch for row in rows if row.epoch is not None})
    level = over_seeds([r for r in rows if r.method == reference], metric, category)
    if level:
        mean, wide = statistics.fmean(level), statistics.stdev(level) if len(level) > 1 else 0.0
        axes.axhline(mean, color=LOOKS["PatchCore"], lw=2, ls=":", label=reference)
        axes.axhspan(mean - wide, mean + wide, color=LOOKS["PatchCore"], alpha=0.2, lw=0)
    trained = dict.fromkeys(row.method for row in rows if row.epoch is not None)
    for method, (colour, marker) in zip(trained, MARKS[1:] + MARKS[:1], strict=False):
        points = [
            (e, over_seeds([r for r in rows if r.method == method and r.epoch == e], metric, category)) for e in epochs
        ]
        points = [(epochs.index(e), v) for e, v in points if v]
        deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
        means = [statistics.fmean(v) for _, v in points]
        axes.errorbar(
            [x for x, _ in points], means, deviations, color=colour, marker=marker, ms=8, lw=2, capsize=4, label=method
        )
    axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
