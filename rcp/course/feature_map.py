"""Notebook 09, first half: pictures of the feature space (UMAP), numbers beside them, and the checks of the exercises.

No layout is made here: the notebook calls UMAP and hands its coordinates over. They have no unit, so no axis has ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from rcp import plots, widgets
from rcp.data import Split
from rcp.distances import distances
from rcp.images import Geometry, read_image
from rcp.memory import nearest_neighbours
from rcp.plots_paper import MARKS, cloud, group_legend, name_axes

TYPE = plots.TYPE

# Numbers that go with the pictures


def kept_neighbours(rows: Tensor, drawn: Tensor, k: int = 10) -> float:
    """Return the share of every row's k nearest other rows that are among its k nearest in the picture, too.

    Args:
        rows: (N, D).
        drawn: (N, 2) its coordinates.
        k: how many, below N.
    """
    near = [torch.zeros(len(x), len(x), dtype=torch.bool) for x in (rows, drawn)]
    for table, x in zip(near, (rows, drawn), strict=True):
        d = distances(x.double()).fill_diagonal_(float("inf"))
        table.scatter_(1, d.topk(k, largest=False).indices, True)
    return float((near[0] & near[1]).sum() / near[0].sum())


def parts(rows: Tensor, n_neighbors: int) -> int:
    """Return into how many parts, with no link between them, UMAP's graph of some rows falls.

    Args:
        rows: (N, D).
        n_neighbors: k, the row itself among them, as UMAP counts.
    """
    near = distances(rows).topk(n_neighbors, largest=False).indices.numpy()  # (N, k)
    ends = np.repeat(np.arange(len(rows)), n_neighbors), near.ravel()
    return int(connected_components(coo_array((np.ones(near.size), ends), shape=(len(rows),) * 2), directed=False)[0])


# Section 1: memberships


def membership_figure(
    points: Tensor, memberships: Callable[[Tensor], Tensor], k: int = 6, chosen: Sequence[int] = (0, 20)
) -> Figure:
    """Return points in the plane with the fuzzy neighbours of some, beside membership over distance.

    Args:
        points: (N, 2).
        memberships: (k,) sorted distances, the point itself first → (k - 1,) memberships of the others.
        k: neighbours, the point itself among them, as UMAP counts.
        chosen: which points.
    """
    figure = plots.new_figure(12, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    left.scatter(*points.T, color="#BBBBBB", s=45)
    for (colour, marker), i in zip(MARKS, chosen, strict=False):
        d, near = nearest_neighbours(points[i : i + 1], points, k)  # (1, k), itself first
        d, near, values = d[0].sort().values, near[0, d[0].argsort()], memberships(d[0].sort().values)
        lines = [(points[i].tolist(), points[j].tolist()) for j in near[1:]]
        left.add_collection(LineCollection(lines, colors=colour, linewidths=(1 + 6 * values).tolist(), alpha=0.6))
        left.scatter(*points[i], color=colour, marker=marker, s=130, zorder=3, edgecolor="black")
        right.plot(d[1:], values, color=colour, marker=marker, ms=10, lw=1.5, label=f"point {i}")
    left.set_title(f"k = {k}: thick lines are strong neighbours", fontsize=TYPE)
    left.set_aspect("equal")
    right.set(ylim=(-0.04, 1.08), xlim=(0, 0.6 * float(distances(points).max())))
    right.set_title("the nearest has membership 1, near or far", fontsize=TYPE)
    name_axes(right, "L2 distance to the neighbour", "membership")
    name_axes(left, "x", "y")
    right.legend(fontsize=TYPE - 2, frameon=False)
    return figure


def membership_explorer(
    points: Tensor, memberships: Callable[[Tensor], Tensor], chosen: tuple[int, int] = (0, 20)
) -> widgets.Explorer:
    """Return `membership_figure` with a slider for k; a click on a point of the left panel chooses it.

    Args:
        points, memberships, chosen: as `membership_figure`.
    """

    def draw(k: int, first: int, second: int) -> Figure:
        return membership_figure(points, memberships, k, (first, second))

    def on_touch(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.panel != 0 or touch.phase != "down":
            return {}
        return {"first": nearest_point(points.numpy(), touch), "second": values["first"]}

    k = widgets.slider(3, 15, 6, "k (neighbours, itself included)")
    return widgets.explore(
        draw,
        {"k": k},
        state={"first": chosen[0], "second": chosen[1]},
        on_touch=on_touch,
        alt="points and their fuzzy neighbours",
    )


# Sections 2 and 3: layouts


def seeds_figure(
    layouts: Mapping[str, np.ndarray], groups: Tensor, names: Sequence[str] = (), title: str = ""
) -> Figure:
    """Return layouts of the same rows side by side, coloured by group.

    Args:
        layouts: title → (N, 2) coordinates.
        groups: (N,) a number a row, from 0.
        names: of the groups, for the legend; none: no legend.
        title: above all of them.
    """
    figure = plots.new_figure(min(12, 4 * len(layouts)), 4.6 if names else 4.1)
    for axes, (name, coords) in zip(figure.subplots(1, len(layouts), squeeze=False)[0], layouts.items(), strict=True):
        cloud(axes, coords, groups, name)
    if title:
        figure.suptitle(title, fontsize=TYPE + 1)
    if names:
        group_legend(figure, names)
    return figure


def neighbours_explorer(
    layouts: Mapping[int, Mapping[str, np.ndarray]], groups: Tensor, start: int, title: str, names: Sequence[str] = ()
) -> widgets.Explorer:
    """Return `seeds_figure` with a slider over n_neighbors.

    Args:
        layouts: n_neighbors → what `seeds_figure` takes.
        groups: (N,) a number a row.
        start: the first n_neighbors.
        title: above all panels; n_neighbors is added.
        names: of the groups.
    """
    k = ipywidgets.SelectionSlider(
        options=list(layouts), value=start, description="n_neighbors",
        style={"description_width": "initial"}, layout=ipywidgets.Layout(width="420px"),
    )  # fmt: skip
    return widgets.explore(
        lambda k: seeds_figure(layouts[k], groups, names, f"{title}, n_neighbors = {k}"),
        {"k": k},
        alt="UMAP layouts of the same rows with three seeds",
    )  # fmt: skip


def clouds_figure(rows: Tensor, groups: Tensor, layouts: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Return the first two coordinates of some clouds, to scale, above UMAP layouts of them.

    Args:
        rows: (N, D).
        groups: (N,) cloud of each row.
        layouts: title → (N, 2) coordinates.
        names: of the clouds.
    """
    figure = plots.new_figure(12, 7)
    grid = figure.add_gridspec(2, len(layouts), height_ratios=(0.8, 1.7))
    top = figure.add_subplot(grid[0, :])
    for group, (colour, marker) in zip(range(len(names)), MARKS, strict=False):
        top.scatter(*rows[groups == group, :2].T, color=colour, marker=marker, s=14, alpha=0.7)
    top.set_aspect("equal")
    top.set_title("the truth, to scale: first two of ten coordinates", fontsize=TYPE)
    top.tick_params(labelsize=TYPE - 3)
    top.spines[["top", "right"]].set_visible(False)
    for column, (name, coords) in enumerate(layouts.items()):
        cloud(figure.add_subplot(grid[1, column]), coords, groups, name)
    group_legend(figure, names)
    return figure


def epochs_explorer(
    patchcore: np.ndarray,
    layouts: Sequence[np.ndarray],
    curves: Mapping[str, Sequence[float]],
    reference: float,
    groups: Tensor,
    names: Sequence[str],
) -> ipywidgets.VBox:
    """Return PatchCore's layout beside that of an epoch, and numbers over the epochs; with play button.

    Args:
        patchcore: (N, 2) layout of the features without f.
        layouts: (N, 2) a layout an epoch, from 0.
        curves: name → a number an epoch.
        reference: PatchCore's number, a horizontal line.
        groups: (N,) grid position of each row.
        names: of the positions.
    """
    last = len(layouts) - 1
    every = np.concatenate([patchcore, *layouts])
    middle, half = (every.min(0) + every.max(0)) / 2, float(np.ptp(every, axis=0).max()) / 2 + 0.5
    window = tuple((m - half, m + half) for m in middle)  # one for all epochs, or the eye would see the window move

    def draw(epoch: int) -> Figure:
        figure = plots.new_figure(12, 4.6)
        panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
        cloud(panels[0], patchcore, groups, "PatchCore: no f, no training", window=window)
        cloud(panels[1], layouts[epoch], groups, f"ReConPatch, epoch {epoch} of {last}", window=window)
        for (name, values), style in zip(curves.items(), ("o-", "s--"), strict=False):
            panels[2].plot(values, style, color="#555555" if style == "s--" else plots.NORMAL, lw=2, label=name)
        panels[2].axhline(reference, color="black", ls=":", lw=2, label="PatchCore, feature space")
        panels[2].axvline(epoch, color=plots.ANOMALOUS, lw=3, alpha=0.5)
        panels[2].set_ylim(0, 1.45 * max(reference, *(max(v) for v in curves.values())))
        name_axes(panels[2], "epoch", "between / within")
        panels[2].legend(fontsize=TYPE - 3, frameon=False, loc="upper center")
        group_legend(figure, names)
        return figure

    def on_touch(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {"epoch": min(last, max(0, round(touch.x)))} if touch.panel == 2 and touch.phase != "up" else {}

    epoch, button = widgets.player(last, "epoch")
    explorer = widgets.explore(
        draw, {"epoch": epoch}, on_touch=on_touch, alt="patch features over the epochs of the training"
    )
    return ipywidgets.VBox([button, explorer])


def order_around(coords: np.ndarray) -> np.ndarray:
    """Return the order in which (N, 2) points lie around their mean, counter-clockwise."""
    y, x = (coords - coords.mean(0)).T[::-1]
    return np.argsort(np.arctan2(y, x), kind="stable")


def strip_figure(
    split: Split,
    geometry: Geometry,
    grid: tuple[int, int],
    place: tuple[int, int],
    chosen: Sequence[int],
    reach: float = 1.5,
) -> Figure:
    """Return what some images have at one grid position, side by side.

    Args:
        split: the images.
        geometry: resize and crop.
        grid: (H, W) of the patches.
        place: (row, column).
        chosen: which images, in this order.
        reach: half the side of a crop, in patches.
    """
    figure = plots.new_figure(12, 1.7)
    for axes, i in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        crop(axes, geometry.apply(read_image(split[i].path)), place, grid, reach)
        axes.set_title(f"image {i}", fontsize=TYPE - 3)
    return figure


# Drawing


def patch_centre(row: int, column: int, grid: tuple[int, int], size: Sequence[int]) -> tuple[float, float]:
    """Return (y, x) of a patch's centre in pixels of the crop, whose size begins with (height, width)."""
    return (row + 0.5) * size[0] / grid[0] - 0.5, (column + 0.5) * size[1] / grid[1] - 0.5


def crop(axes: Axes, image: np.ndarray, place: tuple[int, int], grid: tuple[int, int], reach: float) -> None:
    """Draw the surroundings of a patch; what lies beyond the image stays white."""
    y, x = patch_centre(*place, grid, image.shape)
    dy, dx = (reach * side / n for side, n in zip(image.shape, grid, strict=False))
    axes.imshow(image, interpolation="nearest")
    axes.set(xlim=(x - dx, x + dx), ylim=(y + dy, y - dy), xticks=[], yticks=[])


def nearest_point(points: np.ndarray, touch: widgets.Touch) -> int:
    """Return which of (N, 2) points lies nearest to a touch, both directions counted in spans of the points."""
    span = points.max(0) - points.min(0)
    return int((((points - (touch.x, touch.y)) / span) ** 2).sum(1).argmin())
