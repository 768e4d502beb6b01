"""The paper's figures, drawn from result files alone.

Nothing is measured here: no data set is opened, no network loaded, no neighbour searched. What a figure shows stands in its
file, with all settings, hashes and versions; `rcp.reproduce.figures` measures and writes these files. What is drawn from
whole grids of experiments stands in `rcp.plots_grids`.

Source: Hyun et al., ReConPatch (arXiv 2305.16713), Figures 3 to 5.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from rcp import plots, published
from rcp.files import read_json
from rcp.images import read_image

SCHEMA = 1
MARKS = (
    (plots.NORMAL, "o"),
    (plots.ANOMALOUS, "s"),
    (plots.GREEN, "^"),
    (plots.PINK, "D"),
)  # colour and shape of a group
TYPE = plots.TYPE


def read(path: str | Path, figure: str) -> dict[str, Any]:
    """Return the content of a figure's result file.

    Args:
        path: the file.
        figure: "figure3", "figure4" or "figure5": what it has to be.

    Raises:
        FileNotFoundError: if there is none; ValueError: if it is damaged, or something else. Both say what to do.
    """
    again = f"measure it anew, by rcp.reproduce.figures.{figure}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}: {again}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {again}") from error
    if not isinstance(content, dict) or (content.get("schema"), content.get("figure")) != (SCHEMA, figure):
        raise ValueError(f"{path} is no result file of {figure}, schema {SCHEMA}: {again}")
    return content


def caption(content: Mapping[str, Any]) -> str:
    """Return what a figure was measured on and how, in a few words, from the content of its file."""
    settings, training = content["settings"], content["settings"]["training"]
    if content["figure"] == "figure3":
        own = "UMAP with {n_neighbors} neighbours, {n_epochs} rounds, seed {seed}".format(**settings["umap"])
        own += ", each layout started from the one before; coordinates have no unit"
    elif content["figure"] == "figure4":
        own = f"scores of each seed scaled to 0–1, bars are means over {len(settings['seeds'])} seeds, ± is over seeds"
    else:
        own = "patch scores as they are, dashed line and cross of the smoothed map; one colour scale a detector, its lower half "
        own += "is what held-out normal patches score"
    return (
        f"{content['source']}, {content['images']} training images; {content['backbone']['tag']}, crop {content['size'][0]} × "
        f"{content['size'][1]}; training set to {training['epochs']} epochs of {content['steps']} steps of "
        f"{training['batch_size']} patches, rate {training['learning_rate']:g}; {own}."
    )


# Figure 3: layouts


def figure3(path: str | Path) -> Figure:
    """Return UMAP layouts of the patch features at four grid positions: PatchCore's, then f(p) over the epochs.

    Args:
        path: from `rcp.reproduce.figures.figure3`.

    Returns:
        A figure; below each layout stands a number of the feature space, not of the picture.

    Raises:
        FileNotFoundError, ValueError: see `read`.

    Source: ReConPatch, Figure 3.
    """
    content = read(path, "figure3")
    layouts = {row["stage"]: np.array(row["coordinates"]) for row in content["rows"]}
    ratios = [row["ratio"] for row in content["rows"]]
    names = [str(tuple(place)) for place in content["positions"]]
    return stages_figure(layouts, ratios, np.array(content["groups"]), names)


def stages_figure(
    layouts: Mapping[str, np.ndarray], ratios: Sequence[float], groups: np.ndarray, names: Sequence[str]
) -> Figure:
    """Return layouts of some stages side by side, with the ratio of true distances below each.

    Args:
        layouts: title → (N, 2) coordinates.
        ratios: between-position over within-position distance in the feature space, one a layout.
        groups: (N,) grid position of each row, from 0.
        names: of the positions.
    """
    figure = plots.new_figure(12, 4.1)
    panels = figure.subplots(1, len(layouts), squeeze=False)[0]
    for axes, (title, coords), ratio in zip(panels, layouts.items(), ratios, strict=True):
        cloud(axes, coords, groups, title, size=12)
        axes.set_xlabel(f"between / within\n= {ratio:.2f}", fontsize=TYPE - 1)
    group_legend(figure, names)
    return figure


def cloud(
    axes: Axes, coords: np.ndarray, groups: np.ndarray, title: str, size: float = 18, window: tuple | None = None
) -> None:
    """Draw a layout, a colour and shape a group; equal units both ways, no ticks, as the coordinates have no unit.

    Args:
        axes: where.
        coords: (N, 2).
        groups: (N,) a number a row, from 0.
        title: above it.
        size: of a point, in square points.
        window: ((left, right), (bottom, top)), a square; None: what holds all points.
    """
    groups = np.asarray(groups)
    for group, (colour, marker) in zip(range(int(groups.max()) + 1), MARKS, strict=False):
        axes.scatter(*coords[groups == group].T, color=colour, marker=marker, s=size, alpha=0.75, lw=0)
    without_unit(axes)
    if window is not None:
        axes.set_aspect("equal", adjustable="box")
        axes.set(xlim=window[0], ylim=window[1])
    axes.set_title(title, fontsize=TYPE - 1)


def without_unit(axes: Axes) -> None:
    """Take the ticks of a layout away, and give both directions the same scale."""
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")


def group_legend(figure: Figure, names: Sequence[str]) -> None:
    """Say below a figure which colour and shape is which group."""
    handles = [
        Line2D([], [], ls="", marker=m, color=c, ms=10, label=n) for n, (c, m) in zip(names, MARKS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=TYPE - 2, frameon=False)


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Name the axes of a diagram."""
    axes.set_xlabel(x, fontsize=TYPE - 1)
    axes.set_ylabel(y, fontsize=TYPE - 1)
    axes.tick_params(labelsize=TYPE - 3)
    axes.spines[["top", "right"]].set_visible(False)


# Figure 4: histograms


def figure4(path: str | Path) -> Figure:
    """Return a histogram of image scores a detector, normal against abnormal, with d' over the seeds and as published.

    Args:
        path: from `rcp.reproduce.figures.figure4`.

    Returns:
        A figure; each seed's scores are scaled to 0-1, for drawing only, and bars are means over the seeds.

    Raises:
        FileNotFoundError, ValueError: see `read`.

    Source: ReConPatch, Figure 4.
    """
    content = read(path, "figure4")
    detectors = list(dict.fromkeys(row["detector"] for row in content["rows"]))
    figure = plots.new_figure(12, 4.8)
    panels = figure.subplots(1, len(detectors), sharey=True, squeeze=False)[0]
    for axes, detector in zip(panels, detectors, strict=True):
        rows = [row for row in content["rows"] if row["detector"] == detector]
        _histogram(axes, rows)
        theirs = published_dprime().get(detector)
        below = "no published number" if theirs is None else f"published (MVTec AD bottle): {theirs:.2f}"
        axes.set_title(f"{detector}: d' = {spread([row['d_prime'] for row in rows])}\n{below}", fontsize=TYPE - 1)
        name_axes(axes, "image score, scaled to 0–1", "images" if axes is panels[0] else "")
        axes.legend(fontsize=TYPE - 3, frameon=False, loc="upper center", ncols=2, columnspacing=1, handlelength=1.2)
    panels[0].set_ylim(top=1.25 * panels[0].get_ylim()[1])  # room for the legends
    return figure


def _histogram(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The images of each class by their score, counted in every seed and divided by the number of seeds."""
    values = np.concatenate([scaled(np.array([score for _, score in row["images"]])) for row in rows])
    good = np.array([defect == "good" for row in rows for defect, _ in row["images"]])
    for kind, name, colour, hatch in ((good, "normal", plots.NORMAL, ""), (~good, "abnormal", plots.ANOMALOUS, "//")):
        weights = np.full(kind.sum(), 1 / len(rows))
        label = f"{name} ({kind.sum() // len(rows)})"
        axes.hist(
            values[kind],
            np.linspace(0, 1, 21),
            weights=weights,
            color=colour,
            alpha=0.7,
            hatch=hatch,
            ec="white",
            label=label,
        )


def published_dprime() -> dict[str, float]:
    """Return the d' that the paper states for bottle, by detector."""
    return {number.method: number.value for number in published.select(metric="d_prime", category="bottle")}


def scaled(scores: np.ndarray) -> np.ndarray:
    """Return scores moved and stretched to 0-1, for drawing: never before a metric. Equal scores become 0."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low if high > low else 1)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return "mean ± standard deviation" of some numbers (n - 1 in the denominator), or one number as it is."""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


# Figure 5: contours


def figure5(path: str | Path) -> Figure:
    """Return images above details of their patch scores, with true outline, contour of the map, and its maximum.

    The details show the dotted window around the defect, or, on a good image, around the first detector's maximum.

    Args:
        path: from `rcp.reproduce.figures.figure5`; its pictures lie beside it.

    Returns:
        A figure; the threshold of the contours is F1-optimal on the test masks, an oracle, and called so.

    Raises:
        FileNotFoundError, ValueError: see `read`.

    Source: ReConPatch, Figure 5.
    """
    content = read(path, "figure5")
    rows, detectors, (h, w) = content["rows"], content["detectors"], content["size"]
    figure = plots.new_figure(min(12, 2.4 * len(rows) + 1.5), 2.3 * (1 + len(detectors)) + 0.5)
    grid = figure.subplots(1 + len(detectors), len(rows), squeeze=False)
    windows = [_window(row, next(iter(detectors)), (h, w)) for row in rows]
    for axes, row, (left, right, top, bottom) in zip(grid[0], rows, windows, strict=True):
        axes.imshow(read_image(Path(path).parent / row["picture"]))
        axes.set_title(row["defect"].replace("_", " "), fontsize=TYPE)
        outline(axes, row["outline"], plots.CONTOUR, "solid")
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], ":", color="white", lw=2)
        axes.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
        plots.bare(axes)
    for line, (name, detector) in zip(grid[1:], detectors.items(), strict=True):
        for axes, row, (left, right, top, bottom) in zip(line, rows, windows, strict=True):
            drawn = _scored(axes, row, row["scores"][name], detector["limits"], (h, w))
            axes.set(xlim=(left, right), ylim=(bottom, top))
        line[0].set_ylabel(name, fontsize=TYPE)
        bar = figure.colorbar(drawn, ax=list(line), shrink=0.9, aspect=14, pad=0.01, extend="both")
        bar.set_label(detector["unit"].replace(", ", "\n"), fontsize=TYPE - 3)
    grid[0, 0].set_ylabel("image", fontsize=TYPE)
    contour_legend(figure)
    return figure


def _scored(
    axes: Axes, row: Mapping[str, Any], scores: Mapping[str, Any], limits: Sequence[float], size: tuple[int, int]
):
    h, w = size
    heat, (low, high) = np.array(scores["patch_scores"]), limits
    extent = (-0.5, w - 0.5, h - 0.5, -0.5)  # every patch covers its share of the crop
    drawn = axes.imshow(heat, cmap=plots.HEAT, vmin=low, vmax=high, extent=extent, interpolation="bilinear")
    outline(axes, row["outline"], plots.CONTOUR, "solid")
    outline(axes, scores["contour"], "white", "dashed")
    axes.plot(*scores["maximum"], "X", ms=12, color="white", mec="black", mew=1.5)
    plots.bare(axes)
    return drawn


def _window(row: Mapping[str, Any], first: str, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, right, top, bottom) of a square inside the crop around the defect, or around the first map's maximum."""
    spots = np.array([xy for line in row["outline"] for xy in line] or [row["scores"][first]["maximum"]])
    low, high = spots.min(0), spots.max(0)
    half = min(max(0.16 * max(size), 0.75 * float((high - low).max())), min(size) / 2)
    x, y = ((low + high) / 2).clip(half - 0.5, np.array(size[::-1]) - half - 0.5)
    return x - half, x + half, y - half, y + half


def outline(axes: Axes, lines: Sequence[Sequence[Sequence[float]]], colour: str, style: str) -> None:
    """Draw lines of (x, y) points so that they are seen on light and on dark ground."""
    if lines:
        drawn = LineCollection([np.array(line) for line in lines], colors=colour, linestyles=style, linewidths=2)
        drawn.set_path_effects([Stroke(linewidth=3.5, foreground="black"), Normal()])
        axes.add_collection(drawn)


def contour_legend(figure: Figure, factor: float = 1.0) -> None:
    """Say below a figure what its lines and its cross are; the threshold may be a multiple of the oracle's."""
    name = "F1-optimal threshold (oracle)" + ("" if factor == 1 else f" × {factor:.2f}")
    handles = [
        Line2D([], [], color=plots.CONTOUR, lw=3, label="true outline"),
        Line2D([], [], color="white", lw=3, ls="--", label=name),
        Line2D([], [], ls="", marker="X", color="white", mec="black", ms=12, label="maximum"),
    ]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=TYPE - 2)
    legend.get_frame().set(facecolor="#555555", edgecolor="none", alpha=1)
    for text in legend.get_texts():
        text.set_color("white")
