"""Notebook 09, second half: what is looked at, scores beside the picture of the feature space, d', contours to move.

The paper's Figures 3 to 5 themselves are drawn by `rcp.plots_paper`. Thresholds chosen on test labels are called
oracles here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from rcp import plots, widgets
from rcp.course.feature_map import crop, nearest_point, patch_centre
from rcp.data import Split
from rcp.evaluation import Result
from rcp.hits import peaks
from rcp.images import Geometry, read_image
from rcp.plots_paper import MARKS, contour_legend, group_legend, name_axes, without_unit
from rcp.positions import positions

TYPE = plots.TYPE
Judged = tuple[
    Result, tuple[float, float] | None, float
]  # result, colour limits from held-out normals, threshold on the maps


# Section 3: where the patches are


def positions_figure(
    test: Split, geometry: Geometry, grid: tuple[int, int], images: Sequence[int] = (0, 1, 2, 3), reach: float = 1.5
) -> Figure:
    """Return one image with the four grid positions marked, beside what several images have there.

    Args:
        test: any split.
        geometry: resize and crop.
        grid: (H, W) of the patches.
        images: which images the crops come from; the first is shown whole.
        reach: half the side of a crop, in patches.
    """
    figure = plots.new_figure(12, 6.2)
    layout = figure.add_gridspec(4, 4 + len(images), wspace=0.02)
    seen = [geometry.apply(read_image(test[i].path)) for i in images]
    whole = figure.add_subplot(layout[:, :4])
    whole.imshow(seen[0])
    whole.set_title("(row, column) on the patch grid", fontsize=TYPE)
    plots.bare(whole)
    for line, ((row, column), (colour, marker)) in enumerate(zip(positions(*grid), MARKS, strict=True)):
        y, x = patch_centre(row, column, grid, seen[0].shape)
        whole.plot(x, y, marker, ms=12, color=colour, markeredgecolor="white", markeredgewidth=2)
        for place, image in enumerate(seen):
            axes = figure.add_subplot(layout[line, 4 + place])
            crop(axes, image, (row, column), grid, reach)
            for spine in axes.spines.values():
                spine.set(color=colour, linewidth=4)
            if place == 0:
                axes.set_ylabel(f"({row}, {column})", fontsize=TYPE - 1, rotation=0, ha="right", va="center")
            if line == 0:
                axes.set_title(f"image {images[place]}", fontsize=TYPE - 2)
    group_legend(figure, [str(place) for place in positions(*grid)])
    return figure


# Section 4: a picture is no score


@dataclass(frozen=True)
class Crowd:
    """Rows of a memory and test patches in one layout.

    Attributes:
        coords: (M + Q, 2) layout: M rows of the memory, then Q test patches.
        drawn: (Q,) distance to the nearest row of the memory in the picture, no unit.
        scores: (Q,) that distance in the feature space, L2: the patch scores of Eq. 9.
        defective: (Q,) bool.
    """

    coords: np.ndarray
    drawn: np.ndarray
    scores: np.ndarray
    defective: np.ndarray

    @property
    def memory(self) -> np.ndarray:
        """(M, 2): where the memory is drawn."""
        return self.coords[: -len(self.scores)]

    @property
    def here(self) -> np.ndarray:
        """(Q, 2): where the test patches are drawn."""
        return self.coords[-len(self.scores) :]

    @property
    def compared(self) -> np.ndarray:
        """(Q, 2): drawn and true distance."""
        return np.stack([self.drawn, self.scores], 1)


def score_figure(crowd: Crowd, title: str, view: tuple | None = None, chosen: int | None = None) -> Figure:
    """Return a layout of memory and test patches, coloured by score, beside the score over the drawn distance.

    Args:
        crowd: what to draw.
        title: of the right panel.
        view: (image, (y, x) of the patch, half its side, words): shown in a third panel.
        chosen: the test patch to mark.
    """
    figure = plots.new_figure(12, 4.6)
    if view is None:
        panels = figure.subplots(1, 2)
        room = {"ax": panels[0], "shrink": 0.8, "location": "left"}
    else:  # fixed places: finding them takes as long as drawing, and this is drawn anew at every touch
        figure.set_layout_engine("none")
        boxes = (0.1, 0.25, 0.25, 0.66), (0.43, 0.25, 0.25, 0.66), (0.71, 0.17, 0.28, 0.74)
        panels = [figure.add_axes(box) for box in boxes]
        room = {"cax": figure.add_axes((0.062, 0.27, 0.011, 0.6)), "ticklocation": "left"}
    panels[0].scatter(*crowd.memory.T, color="#BBBBBB", s=8)
    colours = {"cmap": plots.HEAT, "vmin": crowd.scores.min(), "vmax": crowd.scores.max(), "ec": "#666666", "lw": 0.5}
    for axes, xy in ((panels[0], crowd.here), (panels[1], crowd.compared)):
        for flag, marker in ((False, "o"), (True, "^")):
            some = crowd.defective == flag
            shown = axes.scatter(*xy[some].T, c=crowd.scores[some], marker=marker, s=40, **colours)
        if chosen is not None:
            axes.plot(*xy[chosen], "o", ms=20, mfc="none", mec=plots.SKY, mew=3)
    without_unit(panels[0])
    panels[0].set_title("UMAP of memory and test patches", fontsize=TYPE)
    panels[1].set_title(title, fontsize=TYPE)
    name_axes(panels[1], "drawn distance to the memory (no unit)", "score: true distance (L2)")
    bar = figure.colorbar(shown, **room)
    bar.set_label("score (L2)", fontsize=TYPE - 3)
    shapes = (("o", "#BBBBBB", "memory"), ("o", "white", "test, good"), ("^", "white", "test, defect"))
    handles = [Line2D([], [], ls="", marker=m, color=c, mec="#666666", ms=9, label=name) for m, c, name in shapes]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=TYPE - 2, frameon=False)
    if view is not None:
        image, (y, x), (dy, dx), words = view
        panels[2].imshow(image)
        panels[2].plot(
            [x - dx, x + dx, x + dx, x - dx, x - dx], [y - dy, y - dy, y + dy, y + dy, y - dy], color=plots.SKY, lw=4
        )
        panels[2].set_title(words, fontsize=TYPE - 1)
        plots.bare(panels[2])
    return figure


def score_explorer(crowd: Crowd, test: Split, result: Result, picked: Tensor) -> widgets.Explorer:
    """Return `score_figure` in which a click, or the slider, chooses a test patch and shows it in its image.

    Args:
        crowd: what to draw.
        test: the split that was scored.
        result: of any detector on it, for the grid and the crop.
        picked: (Q,) which of all n·H·W patches the test patches are.
    """
    _, h, w = result.scores.patch_scores.shape
    order = np.argsort(crowd.scores)

    def draw(rank: int) -> Figure:
        chosen = int(order[rank])
        image, cell = divmod(int(picked[chosen]), h * w)
        pixels = result.scores.geometry.apply(read_image(test[result.scores.indices[image]].path))
        where = patch_centre(*divmod(cell, w), (h, w), pixels.shape)
        half = 1.5 * pixels.shape[0] / h, 1.5 * pixels.shape[1] / w
        words = f"{result.defects[image].replace('_', ' ')}: score {crowd.scores[chosen]:.1f}"
        return score_figure(crowd, "drawn against true", (pixels, where, half, words), chosen)

    def on_touch(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.phase != "down" or touch.panel > 1:
            return {}
        chosen = nearest_point(crowd.here if touch.panel == 0 else crowd.compared, touch)
        return {"rank": int(np.flatnonzero(order == chosen)[0])}

    rank = widgets.slider(0, len(order) - 1, len(order) - 1, "rank by score")
    return widgets.explore(
        draw, {"rank": rank}, on_touch=on_touch, alt="test patches in a UMAP layout, one in its image"
    )


# Section 5: d'


def dprime_figure(value: float) -> Figure:
    """Return two normal distributions with a given d', and the AUROC that two such classes have."""
    figure = plots.new_figure(9, 3.6)
    axes = figure.subplots()
    x = np.linspace(-4, 11, 400)
    for mean, colour, style, name in ((0, plots.NORMAL, "-", "normal"), (value, plots.ANOMALOUS, "--", "abnormal")):
        y = np.exp(-((x - mean) ** 2) / 2) / np.sqrt(2 * np.pi)
        axes.plot(x, y, color=colour, ls=style, lw=3, label=name)
        axes.fill_between(x, y, color=colour, alpha=0.2)
    axes.set(ylim=(0, 0.45))
    axes.set_title(
        f"d' = {value:.2f}: AUROC {NormalDist().cdf(value / 2**0.5):.4f} for two normal distributions", fontsize=TYPE
    )
    name_axes(axes, "score, in standard deviations", "density")
    axes.legend(fontsize=TYPE - 2, frameon=False, loc="upper right")
    return figure


def dprime_explorer(value: float) -> widgets.Explorer:
    """Return `dprime_figure` with a slider."""
    control = widgets.slider(0.0, 7.0, round(min(value, 7.0), 2), "d'", 0.01)
    return widgets.explore(lambda value: dprime_figure(value), {"value": control}, alt="two normal distributions")


# Section 6: contours


def contour_explorer(test: Split, results: Mapping[str, Judged], masks: np.ndarray) -> widgets.Explorer:
    """Return one image beside its maps, with sliders over the images, by score, and over the threshold.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits from held-out normals, threshold on the maps).
        masks: (n, h, w) bool, see `rcp.hits.masks_of`.
    """
    first = next(iter(results.values()))[0]
    order = np.argsort(first.scores.image_scores.numpy(), kind="stable")

    def draw(rank: int, factor: float) -> Figure:
        i = int(order[rank])
        n = 1 + len(results)
        figure = plots.new_figure(4 * n, 4.4)
        figure.set_layout_engine("none")  # fixed places: finding them takes as long as drawing
        panels = [figure.add_axes((j / n + 0.005, 0.14, 0.76 / n, 0.76)) for j in range(n)]
        _photo(panels[0], test, first, masks[i], i)
        for j, (axes, (title, judged)) in enumerate(zip(panels[1:], results.items(), strict=True), 1):
            drawn = _judged_map(axes, judged, masks[i], i, factor)
            bar = figure.colorbar(drawn, cax=figure.add_axes(((j + 0.79) / n, 0.2, 0.03 / n, 0.64)), extend="both")
            bar.set_label(judged[0].scores.unit, fontsize=TYPE - 3)
            share = float((judged[0].scores.maps[i] >= factor * judged[2]).float().mean())
            axes.set_title(f"{title}: {100 * share:.1f} % flagged", fontsize=TYPE)
        contour_legend(figure, factor)
        return figure

    rank = widgets.slider(0, len(order) - 1, len(order) - 1, "rank by score")
    factor = widgets.slider(0.5, 1.5, 1.0, "threshold, in oracles", 0.05)
    return widgets.explore(draw, {"rank": rank, "factor": factor}, alt="a test image and its maps, with contours")


def _photo(axes: Axes, test: Split, result: Result, mask: np.ndarray, i: int) -> None:
    axes.imshow(result.scores.geometry.apply(read_image(test[result.scores.indices[i]].path)))
    axes.set_title(result.defects[i].replace("_", " "), fontsize=TYPE)
    _contour(axes, mask, 0.5, plots.CONTOUR, "solid")
    plots.bare(axes)


def _judged_map(axes: Axes, judged: Judged, mask: np.ndarray, i: int, factor: float) -> AxesImage:
    result, limits, threshold = judged
    heat = result.scores.maps[i].numpy()
    low, high = limits or (float(result.scores.maps.min()), float(result.scores.maps.max()))
    drawn = axes.imshow(heat, cmap=plots.HEAT, vmin=low, vmax=high)
    _contour(axes, mask, 0.5, plots.CONTOUR, "solid")
    _contour(axes, heat, factor * threshold, "white", "dashed")
    y, x = peaks(heat[None])[0]
    axes.plot(x, y, "X", ms=12, color="white", mec="black", mew=1.5)
    plots.bare(axes)
    return drawn


def _contour(axes: Axes, values: np.ndarray, level: float, colour: str, style: str) -> None:
    if values.min() < level < values.max():  # else there is no line, and Matplotlib would warn
        drawn = axes.contour(values, levels=[level], colors=[colour], linestyles=style, linewidths=2)
        drawn.set_path_effects([Stroke(linewidth=3.5, foreground="black"), Normal()])  # seen on light and dark ground
