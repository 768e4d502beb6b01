"""Notebook 04 on real patches: which are kept, where they lie, what they cover, what that does, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from rcp import plots, widgets
from rcp.coreset import Coreset, projected, projection_matrix
from rcp.course.coreset import STYLES
from rcp.distances import distances
from rcp.features import PatchFeatures
from rcp.images import Geometry, read_image
from rcp.plots import ANOMALOUS, LIMIT, NORMAL, ORANGE, TYPE

SIDE = 40  # pixels of a crop
OUTSIDE = 255  # what a crop shows beyond the picture: white

Curves = Mapping[str, np.ndarray]  # method → (seeds, sizes, 2): covering radius, mean distance


@lru_cache(maxsize=80)
def _picture(path: Path, geometry: Geometry) -> np.ndarray:
    return geometry.apply(read_image(path))


def picture(features: PatchFeatures, row: int) -> tuple[np.ndarray, int, int]:
    """Return the picture that a row comes from, as the network saw it, and the centre of the row's patch in it.

    Args:
        features: whose `rows` are meant.
        row: position among them.

    Returns:
        (h, w, 3) uint8; y and x in pixels.
    """
    _, height, width, _ = features.values.shape
    image, place = divmod(row, height * width)
    pixels = _picture(features.paths[features.indices[image]], features.settings.geometry)
    r, c = divmod(place, width)
    return pixels, int((r + 0.5) * pixels.shape[0] / height), int((c + 0.5) * pixels.shape[1] / width)


def crop(features: PatchFeatures, row: int, side: int = SIDE) -> np.ndarray:
    """Return the pixels around the centre of a row's patch, (side, side, 3) uint8; white outside the picture."""
    pixels, y, x = picture(features, row)
    half = side // 2
    padded = np.pad(pixels, ((half, half), (half, half), (0, 0)), constant_values=OUTSIDE)
    return padded[y : y + side, x : x + side]


def counts(features: PatchFeatures, rows: Tensor) -> np.ndarray:
    """Return how many of the rows lie at every position of the grid, (H, W)."""
    _, height, width, _ = features.values.shape
    return torch.bincount(rows % (height * width), minlength=height * width).view(height, width).numpy()


def coverage_figure(shares: Sequence[float], curves: Curves) -> Figure:
    """Return covering radius and mean distance over the share of rows kept, per method, with the range over seeds.

    Args:
        shares: of the rows, in (0, 1].
        curves: method → (seeds, sizes, 2); "greedy" gives the line below which no choice of centres can come.
    """
    figure = plots.new_figure(12, 4.8)
    percent = 100 * np.asarray(shares)
    titles = ("largest distance: the covering radius", "mean distance")
    for i, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for method, values in curves.items():
            colour, marker, line = STYLES[method]
            axes.fill_between(percent, values[..., i].min(0), values[..., i].max(0), color=colour, alpha=0.2, lw=0)
            axes.plot(percent, values[..., i].mean(0), line, marker=marker, color=colour, ms=8, lw=2.2, label=method)
        if i == 0:
            axes.plot(percent, curves["greedy"][..., 0].max(0) / 2, color=LIMIT, lw=1.2, label="greedy / 2: none is below")
        axes.set(xscale="log", ylim=(0, None))
        axes.set_xticks(percent, [f"{p:g}" for p in percent])
        axes.minorticks_off()
        axes.set_title(title, fontsize=TYPE)
        axes.set_xlabel("rows kept, %", fontsize=TYPE - 1)
        axes.set_ylabel("L2 distance to the nearest centre", fontsize=TYPE - 1)
        plots.plain(axes)
        axes.legend(fontsize=TYPE - 3, frameon=False, loc="lower left")
    return figure


def crops_figure(features: PatchFeatures, groups: Mapping[str, Sequence[int]], columns: int = 12) -> Figure:
    """Return crops around some patches, a block of rows per group.

    Args:
        features: whose `rows` are meant.
        groups: title → positions of rows; as many in every group.
        columns: crops side by side.
    """
    lines = -(-len(next(iter(groups.values()))) // columns)
    figure = plots.new_figure(12, (1.0 * lines + 0.45) * len(groups))
    for part, (title, rows) in zip(figure.subfigures(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True):
        part.suptitle(title, fontsize=TYPE)
        grid = part.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, row in zip(grid.flat, rows, strict=False):
            axes.imshow(crop(features, int(row)))
    return figure


def where_figure(features: PatchFeatures, rows: Tensor) -> Figure:
    """Return one training picture, the mean of several, and how many picks come from every grid position.

    Args:
        features: of the training images.
        rows: (M,) the picks.
    """
    n, height, width, _ = features.values.shape
    first = [picture(features, i * height * width)[0] for i in range(min(n, 12))]
    same = [p for p in first if p.shape == first[0].shape]
    figure = plots.new_figure(12, 4.2)
    left, middle, right = figure.subplots(1, 3)
    left.imshow(first[0])
    left.set_title("one training image", fontsize=TYPE)
    middle.imshow(np.mean(same, 0).astype(np.uint8))
    middle.set_title(f"mean of {len(same)} of them", fontsize=TYPE)
    heat = counts(features, rows)
    drawn = right.imshow(heat, cmap=plots.HEAT, vmin=0)
    right.set_title(f"where {len(rows)} picks come from", fontsize=TYPE)
    bar = figure.colorbar(drawn, ax=right, shrink=0.85)
    bar.set_label("picks at this position", fontsize=TYPE - 2)
    bar.ax.tick_params(labelsize=TYPE - 3)
    for axes in (left, middle, right):
        axes.set(xticks=[], yticks=[])
    return figure


def pick_figure(features: PatchFeatures, coreset: Coreset, pick: int) -> Figure:
    """Return one pick: its patch framed in its picture, among the other picks of it; its crop; and the radius curve.

    Args:
        features: of the training images.
        coreset: of their rows.
        pick: which, from 1.
    """
    row = int(coreset.indices[pick - 1])
    area = features.values[0, ..., 0].numel()
    pixels, y, x = picture(features, row)
    earlier = coreset.indices[: pick - 1]
    others = [picture(features, int(i))[1:] for i in earlier[earlier // area == row // area]]
    figure = plots.new_figure(12, 4.3)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 3, 4.6))
    left.imshow(pixels)
    if others:
        left.plot(*np.array(others)[:, ::-1].T, "s", ms=7, mfc="none", mec="white", mew=2)
    left.add_patch(Rectangle((x - SIDE / 2, y - SIDE / 2), SIDE, SIDE, fill=False, color=plots.CONTOUR, lw=3))
    left.set_title(f"image {row // area}, earlier picks: {len(others)}", fontsize=TYPE)
    left.set(xlim=(0, pixels.shape[1]), ylim=(pixels.shape[0], 0))
    middle.imshow(crop(features, row))
    middle.set_title(f"pick {pick}", fontsize=TYPE)
    for axes in (left, middle):
        axes.set(xticks=[], yticks=[])
    radii = coreset.radii.numpy()
    right.plot(range(1, len(radii) + 1), radii, color=NORMAL, lw=2)
    right.plot([pick], [radii[pick - 1]], "*", color=ANOMALOUS, ms=18)
    right.set(ylim=(0, None))
    right.set_title(f"r = {radii[pick - 1]:.1f} after it", fontsize=TYPE)
    right.set_xlabel("picks", fontsize=TYPE - 1)
    right.set_ylabel("covering radius", fontsize=TYPE - 1)
    plots.plain(right)
    return figure


def picks_explorer(features: PatchFeatures, coreset: Coreset) -> widgets.Explorer:
    """Return `pick_figure` with a slider over the picks.

    A click on the picture goes to the pick of this image that is nearest to it; one on the curve to that number.
    The static twin is `crops_figure`.
    """
    _, height, width, _ = features.values.shape
    last, area = len(coreset.indices), height * width

    def touched(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.phase != "down" or touch.panel == 1:
            return {}
        if touch.panel == 2:
            return {"pick": int(np.clip(round(touch.x), 1, last))}
        image = int(coreset.indices[values["pick"] - 1]) // area
        own = torch.nonzero(coreset.indices // area == image).flatten().tolist()
        place = np.array([picture(features, int(coreset.indices[i]))[1:] for i in own])  # (m, 2): y, x
        return {"pick": own[int(((place - [touch.y, touch.x]) ** 2).sum(1).argmin())] + 1}

    return widgets.explore(
        partial(pick_figure, features, coreset), {"pick": widgets.slider(1, last, 2, "pick")}, on_touch=touched,
        alt="a pick framed in its picture, its crop, and the covering radius as a curve",
    )  # fmt: skip


def detection_figure(aurocs: Mapping[str, Sequence[float]], scores: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Return the image AUROC of each memory over seeds, beside the image scores of one seed.

    Args:
        aurocs: method → one number per seed.
        scores: method → (n,) image scores of one seed.
        labels: (n,) 1 is anomalous.
    """
    figure = plots.new_figure(12, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35), sharey=True)
    names = list(aurocs)
    for y, name in enumerate(names):
        colour, marker, _ = STYLES[name]
        left.plot(aurocs[name], [y] * len(aurocs[name]), marker, color=colour, ms=11, mec="black", alpha=0.85)
        mean = np.mean(aurocs[name])
        left.text(mean, y - 0.22, f"{mean:.3f}", ha="center", va="bottom", fontsize=TYPE - 1)
        for label, shift, mark, kind in ((0, -0.14, "o", NORMAL), (1, 0.14, "x", ANOMALOUS)):
            chosen = scores[name][labels == label]
            word = ("normal", "anomalous")[label] if y == 0 else None
            right.plot(chosen, np.full(len(chosen), y + shift), mark, color=kind, ms=8, alpha=0.6, mew=2, label=word)
    left.set_yticks(range(len(names)), names, fontsize=TYPE - 1)
    left.set_ylim(len(names) - 0.5, -0.75)
    left.set_title(f"image AUROC, {len(aurocs[names[0]])} seeds and their mean", fontsize=TYPE)
    left.set_xlabel("image AUROC", fontsize=TYPE - 1)
    right.set_title("image scores, seed 0", fontsize=TYPE)
    right.set_xlabel("L2 distance of the worst patch", fontsize=TYPE - 1)
    right.legend(fontsize=TYPE - 2, frameon=False, ncols=2, loc="upper right")
    for axes in (left, right):
        plots.plain(axes)
    return figure


def alarms_figure(
    test: PatchFeatures,
    train: PatchFeatures,
    worst: Sequence[int],
    nearest: Mapping[str, tuple[Sequence[int], Sequence[float]]],
) -> Figure:
    """Return patches of good test images above the training patch that each memory has nearest, with distances.

    Args:
        test: whose rows `worst` are.
        train: whose rows the memories are made of.
        worst: positions of rows of `test`.
        nearest: method → (positions of rows of `train`, distances), one per row of `worst`.
    """
    figure = plots.new_figure(1.75 * len(worst) + 1.6, 2.05 * (1 + len(nearest)))
    grid = figure.subplots(1 + len(nearest), len(worst), squeeze=False)
    for axes, row in zip(grid[0], worst, strict=True):
        _show(axes, crop(test, int(row)))
    grid[0, 0].set_ylabel("good\ntest patch", fontsize=TYPE)
    for line, (method, (rows, far)) in zip(grid[1:], nearest.items(), strict=True):
        for axes, row, d in zip(line, rows, far, strict=True):
            _show(axes, crop(train, int(row)))
            axes.set_title(f"{float(d):.1f} away", fontsize=TYPE - 1)
        line[0].set_ylabel(f"nearest,\n{method}", fontsize=TYPE)
    return figure


def bounds_figure(points: Tensor, picks: Sequence[int], log: Sequence[tuple[list[int], np.ndarray]], step: int) -> Figure:
    """Return, for one pick of the lazy loop, each row's stale bound above its true distance, and which rows it looked at.

    Args:
        points: (N, D).
        picks: of the lazy loop, the start first.
        log: per pick after the start: (rows whose bound was brought up to date, (N,) bounds at the moment of the pick).
        step: which of the picks after the start, from 1.
    """
    looked, bounds = log[step - 1]
    true = distances(points, points[list(picks[:step])]).amin(1).numpy()  # (N,)
    order = np.argsort(-bounds, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    figure = plots.new_figure(12, 4.2)
    axes = figure.subplots()
    gap = [((i, true[row]), (i, bounds[row])) for i, row in enumerate(order)]
    axes.add_collection(LineCollection(gap, color="#999999", lw=3))
    axes.plot(bounds[order], "v", color=ORANGE, ms=9, label="bound, perhaps stale")
    axes.plot(true[order], "o", color=NORMAL, ms=6, label="true distance")
    seen = rank[np.array(sorted(set(looked)), int)]
    below = np.full(len(seen), -0.04 * bounds.max())
    axes.plot(seen, below, "|", color=LIMIT, ms=11, mew=2.5, label="looked at for this pick")
    axes.axhline(true[picks[step]], color=ANOMALOUS, ls="--", lw=1.5)
    axes.plot(rank[picks[step]], true[picks[step]], "*", color=ANOMALOUS, ms=18, label="picked")
    axes.set_title(f"pick {step + 1}: {len(seen)} of {len(order)} rows looked at; no bound is above the pick", fontsize=TYPE)
    axes.set_xlabel("rows, highest bound first", fontsize=TYPE - 1)
    axes.set_ylabel("distance to the\nnearest pick", fontsize=TYPE - 1)
    axes.set_ylim(-0.09 * bounds.max(), bounds.max() * 1.08)
    axes.legend(fontsize=TYPE - 2, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
    plots.plain(axes)
    return figure


def bounds_explorer(points: Tensor, picks: Sequence[int], log: Sequence[tuple[list[int], np.ndarray]]) -> widgets.Explorer:
    """Return `bounds_figure` with a slider over the picks."""
    return widgets.explore(
        partial(bounds_figure, points, picks, log),
        {"step": widgets.slider(1, len(log), min(4, len(log)), "pick after the start")},
        alt="for every row its stale bound above its true distance to the nearest pick",
    )  # fmt: skip


def met_figure(met: np.ndarray, size: int) -> Figure:
    """Return a histogram of how many centres each row was compared with, beside the plain loop's number.

    Args:
        met: (N,) centres met.
        size: M, all of them.
    """
    figure = plots.new_figure(9, 3.8)
    axes = figure.subplots()
    axes.hist(met, np.arange(0.5, size + 1.5, max(1, size // 40)), color=NORMAL, alpha=0.8)
    axes.axvline(met.mean(), color=ANOMALOUS, lw=2.5, label=f"lazy: {met.mean():.0f} on average")
    axes.axvline(size, color=LIMIT, ls="--", lw=2.5, label=f"plain loop: {size}, every row")
    axes.set_title(f"the lazy loop computes {100 * met.mean() / size:.0f} % of the distances", fontsize=TYPE)
    axes.set_xlabel("centres that a row was compared with", fontsize=TYPE - 1)
    axes.set_ylabel("rows", fontsize=TYPE - 1)
    axes.legend(fontsize=TYPE - 2, frameon=False)
    plots.plain(axes)
    return figure


def distance_ratios(rows: Tensor, dimension: int, pairs: int = 2000, seed: int = 0) -> np.ndarray:
    """Return distances of random pairs of rows after a random projection, over those before it.

    Args:
        rows: (N, D).
        dimension: of the projection.
        pairs: how many, at most; pairs of equal rows are left out.
        seed: draws the pairs and the projection.

    Returns:
        (pairs,) float64.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(len(rows), (2, pairs), generator=generator)
    apart = rows[a].float() - rows[b].float()  # (pairs, D)
    apart = apart[apart.square().sum(1) > 0]
    matrix = projection_matrix(rows.shape[1], dimension, generator)
    return (projected(apart, matrix).norm(dim=1) / apart.norm(dim=1)).double().numpy()


def projection_figure(ratios: Mapping[int, np.ndarray]) -> Figure:
    """Return histograms of projected over true distances, one panel per dimension.

    Args:
        ratios: dimension → (pairs,).
    """
    figure = plots.new_figure(4 * len(ratios), 3.9)
    for axes, (dimension, values) in zip(figure.subplots(1, len(ratios), squeeze=False)[0], ratios.items(), strict=True):
        axes.hist(values, np.linspace(0, 2, 61), color=NORMAL, alpha=0.8)
        axes.axvline(1, color=LIMIT, ls="--", lw=2)
        measured, theory = f"{values.mean():.2f} ± {values.std():.2f}", f"1 ± {(2 * dimension) ** -0.5:.2f}"
        axes.set_title(f"{dimension} dimensions: {measured}\n(theory: {theory})", fontsize=TYPE)
        axes.set_xlabel("projected / true distance", fontsize=TYPE - 1)
        axes.set(yticks=[], xlim=(0, 2))
        plots.plain(axes)
        axes.spines["left"].set_visible(False)
    return figure


def projection_explorer(rows: Tensor) -> widgets.Explorer:
    """Return `projection_figure` of one panel with sliders for dimension and seed."""

    def draw(dimension: int, seed: int) -> Figure:
        return projection_figure({dimension: distance_ratios(rows, dimension, seed=seed)})

    return widgets.explore(
        draw, {"dimension": widgets.slider(1, 256, 16, "dimensions"), "seed": widgets.slider(0, 9, 0, "seed")},
        alt="histogram of distances after a random projection over those before",
    )  # fmt: skip


def _show(axes: Axes, pixels: np.ndarray) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
