"""Figures: what was found, drawn so that the last row can read it.

One colour scale per detector and category, set on held-out normal images, never per image; Okabe & Ito's colours, which
colour-blind people tell apart; units on every axis. Functions return a Matplotlib `Figure` and keep no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from rcp.data import Split
from rcp.evaluation import Result
from rcp.files import write_atomically
from rcp.images import read_image, read_mask
from rcp.metrics import dprime
from rcp.scoring import Scores, Threshold

NORMAL, ANOMALOUS, LIMIT, CONTOUR = "#0072B2", "#D55E00", "#000000", "#00E5FF"
GREEN, ORANGE, PINK, SKY, GREY = "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#777777"  # Okabe and Ito's, and grey
HEAT = "inferno"
TYPE = 15  # points: read from the last row when the figure is 12 inches wide

Limits = tuple[float, float] | None


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with automatic layout, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def write(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write a figure as PNG, atomically."""
    FigureCanvasAgg(figure)
    return write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format="png"))


def score_histogram(results: dict[str, Result]) -> Figure:
    """Return one histogram of image scores per detector: normal against anomalous, with the limit and d'.

    Args:
        results: title → `Result`.

    Returns:
        A figure, one panel a detector, each on its own axis: scores of different detectors have different units.

    Source: after ReConPatch, Figure 4, which scales scores to 0-1; here they keep their unit.
    """
    figure = new_figure(6.2 * len(results), 4.6)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (title, result) in zip(panels, results.items(), strict=True):
        scores = result.scores.image_scores.numpy()
        bins = np.linspace(scores.min(), scores.max() + 1e-9, 31)
        for label, name, colour in ((0, "normal", NORMAL), (1, "anomalous", ANOMALOUS)):
            chosen = scores[result.labels == label]
            axes.hist(chosen, bins, color=colour, alpha=0.75, label=f"{name} ({len(chosen)})")
        if result.verdict:
            axes.axvline(result.verdict.threshold.value, color=LIMIT, lw=2, ls="--", label="limit from held-out normals")
        both = 0 < result.labels.sum() < len(result.labels)
        detail = f"\nimage AUROC {result.metrics['image_auroc']:.3f}, d' = {dprime(result.labels, scores):.2f}"
        axes.set_title(title + (detail if both else ""), fontsize=TYPE)
        axes.set_xlabel(f"image score ({result.scores.unit} of the worst patch)", fontsize=TYPE - 1)
        axes.set_ylabel("images", fontsize=TYPE - 1)
        plain(axes)
        axes.legend(fontsize=TYPE - 3, frameon=False)
    return figure


def map_sheet(
    test: Split, results: dict[str, tuple[Result, Limits]], positions: Sequence[int] | None = None
) -> Figure:
    """Return images above their heat maps: a column an image, a row a detector, one colour scale a detector.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits from held-out normals; None: the maps' own 0 and 100 %).
        positions: which of the scored images; None: a good one and one of each defect, the median of their kind.

    Returns:
        A figure; the defect's true outline is drawn into the image where there is a mask, the image score into the map.
    """
    first = next(iter(results.values()))[0]
    positions = typical(first) if positions is None else positions
    figure = new_figure(2.6 * len(positions) + 1.6, 2.75 * (1 + len(results)))
    grid = figure.subplots(1 + len(results), len(positions), squeeze=False)
    for axes, position in zip(grid[0], positions, strict=True):
        _show_image(axes, *_seen(test, first.scores.indices[position], first))
        axes.set_title(first.defects[position].replace("_", " "), fontsize=TYPE + 1)
    for row, (title, (result, limits)) in zip(grid[1:], results.items(), strict=True):
        maps = result.scores.maps.numpy()
        low, high = limits or (float(maps.min()), float(maps.max()))
        for axes, position in zip(row, positions, strict=True):
            drawn = axes.imshow(maps[position], cmap=HEAT, vmin=low, vmax=high)
            score = f"{float(result.scores.image_scores[position]):.1f}"
            axes.text(0.04, 0.95, score, transform=axes.transAxes, color="white", fontsize=TYPE, va="top", weight="bold")
            bare(axes)
        row[0].set_ylabel(title, fontsize=TYPE + 1)
        bar = figure.colorbar(drawn, ax=list(row), shrink=0.92, aspect=14, pad=0.01, extend="both")
        bar.set_label(f"{result.scores.unit}\nlower half: normal", fontsize=TYPE - 3)
        bar.ax.tick_params(labelsize=TYPE - 3)
    grid[0, 0].set_ylabel("image, true outline", fontsize=TYPE + 1)
    return figure


def one_image(test: Split, results: dict[str, tuple[Result, Limits]], position: int) -> Figure:
    """Return one image, with its true outline, beside its heat map of each detector.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits from held-out normals).
        position: among the scored images.
    """
    first = next(iter(results.values()))[0]
    figure = Figure((3.7 * (1 + len(results)), 3.9))  # laid out by hand: automatic layout takes half of a slider's time
    figure.subplots_adjust(left=0.01, right=0.93, bottom=0.03, top=0.88, wspace=0.3)
    panels = figure.subplots(1, 1 + len(results))
    _show_image(panels[0], *_seen(test, first.scores.indices[position], first))
    panels[0].set_title(first.defects[position].replace("_", " "), fontsize=TYPE)
    for axes, (title, (result, limits)) in zip(panels[1:], results.items(), strict=True):
        low, high = limits or (None, None)
        drawn = axes.imshow(result.scores.maps[position].numpy(), cmap=HEAT, vmin=low, vmax=high)
        score = float(result.scores.image_scores[position])
        word = ""
        if result.verdict:
            word = ": anomalous" if score > result.verdict.threshold.value else ": normal"
        axes.set_title(f"{title} {score:.1f}{word}", fontsize=TYPE)
        bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03, shrink=0.85, extend="both")
        bar.set_label(result.scores.unit, fontsize=TYPE - 3)
        bar.ax.tick_params(labelsize=TYPE - 3)
        bare(axes)
    return figure


def typical(result: Result) -> list[int]:
    """Return positions of one good image and one of each defect: the one with the median score of its kind."""
    scores, defects = result.scores.image_scores.numpy(), np.array(result.defects)
    kinds = sorted(set(result.defects), key=lambda kind: (kind != "good", kind))
    chosen = []
    for kind in kinds:
        own = np.flatnonzero(defects == kind)
        chosen.append(int(own[np.argsort(scores[own])[len(own) // 2]]))
    return chosen


def contact_sheet(test: Split, per_kind: int = 4) -> Figure:
    """Return a first look at a split: some images of each kind, the defects outlined.

    Args:
        test: a split.
        per_kind: images a kind.
    """
    kinds = sorted(set(test.defects), key=lambda kind: (kind != "good", kind))
    figure = new_figure(2.1 * per_kind + 0.5, 2.1 * len(kinds))
    for row, kind in zip(figure.subplots(len(kinds), per_kind, squeeze=False), kinds, strict=True):
        samples = [sample for sample in test if sample.defect == kind][:per_kind]
        for axes in row:
            bare(axes)
        for axes, sample in zip(row, samples, strict=False):
            image = read_image(sample.path)
            mask = None if sample.mask is None else read_mask(sample.mask, image.shape[:2])
            _show_image(axes, image, mask)
        row[0].set_ylabel(kind.replace("_", " "), fontsize=TYPE)
    return figure


def verdict_figure(path: Path, scores: Scores, position: int, limits: Limits, limit: Threshold | None) -> Figure:
    """Return one image beside its heat map, with its score and the verdict: what `rcp predict` writes.

    The dashed frame is the crop that the network saw; outside it the map repeats the score at the frame.

    Args:
        path: the image file.
        scores: that hold its score and map.
        position: of the image among them.
        limits: colour limits from held-out normals.
        limit: the decision limit, or None.
    """
    score, heat = float(scores.image_scores[position]), scores.original_map(position).numpy()
    figure = new_figure(11, 5.4)
    left, right = figure.subplots(1, 2)
    _show_image(left, read_image(path), None)
    low, high = limits or (float(heat.min()), float(heat.max()))
    drawn = right.imshow(heat, cmap=HEAT, vmin=low, vmax=high)
    top, left_edge, bottom, right_edge = scores.geometry.crop_box(*heat.shape)
    if (bottom - top) * (right_edge - left_edge) < heat.size:
        right.plot(
            [left_edge, right_edge, right_edge, left_edge, left_edge], [top, top, bottom, bottom, top], "--", color="white"
        )
    bare(right)
    bar = figure.colorbar(drawn, ax=right, shrink=0.85, extend="both")
    bar.set_label(scores.unit, fontsize=TYPE - 2)
    left.set_title(path.name, fontsize=TYPE)
    word = "" if limit is None else f" — {'anomalous' if score > limit.value else 'normal'} (limit {limit.value:.2f})"
    right.set_title(f"score {score:.2f}{word}", fontsize=TYPE)
    return figure


def growth_figure(curve: dict[str, Any], machine: str) -> Figure:
    """Return seconds over a size on logarithmic axes, with the line whose slope is the fitted exponent.

    Args:
        curve: an entry of the growth suite of `rcp bench`: axis, what, sizes, seconds, exponent; and extra_bytes, the memory
            besides the rows, drawn below where it was measured.
        machine: on which it was measured, for the title.

    Returns:
        A figure.
    """
    sizes, values = np.array(curve["sizes"], float), np.array(curve["seconds"])
    figure = new_figure(8.6, 9.4 if "extra_bytes" in curve else 5.2)
    panels = figure.subplots(2 if "extra_bytes" in curve else 1, 1, squeeze=False)[:, 0]
    slope, level = np.polyfit(np.log(sizes), np.log(values), 1)
    label = f"seconds ≈ a · size$^{{{slope:.2f}}}$"
    panels[0].plot(sizes, np.exp(level) * sizes**slope, "--", color=LIMIT, lw=2, label=label)
    panels[0].plot(sizes, values, "o", color=NORMAL, ms=10, label="measured")
    panels[0].set(xscale="log", yscale="log")
    panels[0].set_xticks(sizes, [f"{size:,.10g}" for size in sizes])
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # less than a decade, too, has numbers on its axis
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylim(_round_number(values.min(), -1), _round_number(values.max(), 1))
    panels[0].minorticks_off()
    panels[0].set_ylabel("seconds", fontsize=TYPE)
    if "extra_bytes" in curve:
        slope, level = np.polyfit(sizes, curve["extra_bytes"], 1)
        label = f"{level / 1e6:.0f} MB + {slope:.0f} bytes a row"
        panels[1].plot(sizes, (level + slope * sizes) / 1e6, "--", color=LIMIT, lw=2, label=label)
        panels[1].plot(sizes, np.array(curve["extra_bytes"]) / 1e6, "o", color=NORMAL, ms=10, label="measured")
        panels[1].set_ylabel("MB besides the rows", fontsize=TYPE)
        panels[1].set_ylim(bottom=0)
        panels[1].locator_params(axis="x", nbins=5)
        panels[1].xaxis.set_major_formatter("{x:,.0f}")
    for axes in panels:
        axes.set_xlabel(curve["axis"], fontsize=TYPE)
        plain(axes)
        axes.legend(fontsize=TYPE - 1, frameon=False)
    figure.suptitle(f"{curve['what']}\n{machine}", fontsize=TYPE)
    return figure


def _round_number(value: float, direction: int) -> float:
    """The nearest 1, 2 or 5 times a power of ten that is not above (direction -1) or not below (1) the value."""
    decade = 10 ** np.floor(np.log10(value))
    around = decade * np.array([1, 2, 5, 10])
    return float(around[around <= value].max() if direction < 0 else around[around >= value].min())


def _seen(test: Split, index: int, result: Result) -> tuple[np.ndarray, np.ndarray | None]:
    """The image and mask as the network saw them: resized and cropped."""
    sample, geometry = test[index], result.scores.geometry
    image = read_image(sample.path)
    mask = None if sample.mask is None else geometry.apply_mask(read_mask(sample.mask, image.shape[:2]))
    return geometry.apply(image), mask


def _show_image(axes: Axes, image: np.ndarray, mask: np.ndarray | None) -> None:
    axes.imshow(image)
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[CONTOUR], linewidths=2)
    bare(axes)


def bare(axes: Axes) -> None:
    """Take the ticks and the frame off axes that show a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def plain(axes: Axes) -> None:
    """Take the upper and right side of the frame off a diagram, and set the size of its numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TYPE - 2)
