"""Pictures and checks of notebook 05, first half: nearest normal patch, Eq. 10, maps, image scores, one colour scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from rcp import plots, widgets
from rcp.course import checks
from rcp.data import Category, Sample
from rcp.evaluation import Result
from rcp.images import Geometry, read_image, read_mask
from rcp.plots import ANOMALOUS, CONTOUR, GREEN, HEAT, LIMIT, NORMAL, SKY, TYPE
from rcp.scoring import pixel_maps

REACH = 3  # grid cells: how far a crop reaches from the centre of its patch
ASKED, ANSWER = (ANOMALOUS, "-"), (NORMAL, "--")  # colour and line of the two frames: the patch, and its nearest normal one


@dataclass(frozen=True)
class Scene:
    """What the pictures of this half look at: a category, a detector's verdicts, and who is nearest to whom.

    Attributes:
        category: training and test images.
        result: of the evaluation of all test images.
        limits: (low, high) of the one colour scale, L2 distance.
        distance: (n, H, W) float32, L2 to the nearest row of the memory.
        home: (n, H, W, 3) int64, where that row comes from: training image, row and column of its grid.
    """

    category: Category
    result: Result
    limits: tuple[float, float]
    distance: Tensor
    home: Tensor

    @property
    def ranked(self) -> np.ndarray:
        """(n,) positions of the test images, from the lowest to the highest score."""
        return np.argsort(self.result.scores.image_scores.numpy(), kind="stable")

    def worst(self, position: int) -> tuple[int, int]:
        """Return (row, column) of the patch that is farthest from all normal ones."""
        grid = self.distance[position]
        return divmod(int(grid.argmax()), grid.shape[1])

    def image(self, position: int) -> np.ndarray:
        """Return a test image as the network saw it, uint8 (h, w, 3)."""
        return _pixels(self._sample(position).path, self.result.scores.geometry)

    def mask(self, position: int) -> np.ndarray | None:
        """Return its true outline, bool (h, w), or None."""
        mask = self._sample(position).mask
        return None if mask is None else _mask(mask, self.result.scores.geometry)

    def train_image(self, index: int) -> np.ndarray:
        """Return a training image as the network saw it."""
        return _pixels(self.category.train[index].path, self.result.scores.geometry)

    def defect(self, position: int) -> str:
        """Return what kind of image it is, in words."""
        return self.result.defects[position].replace("_", " ")

    def _sample(self, position: int) -> Sample:
        return self.category.test[self.result.scores.indices[position]]


# The nearest normal patch


def nearest_figure(scene: Scene, positions: Sequence[int] | None = None) -> Figure:
    """Return a column an image: the image, its worst patch, the nearest normal patch, and where that one comes from.

    Args:
        scene: to look at.
        positions: of test images; None: four defective ones, the median of their kinds if there are so many, and a good one.
    """
    positions = four_and_one(scene) if positions is None else positions
    figure = plots.new_figure(2.3 * len(positions) + 0.5, 9.4)
    rows = figure.subplots(4, len(positions), squeeze=False)
    for column, position in zip(rows.T, positions, strict=True):
        _four(column, scene, position, scene.worst(position))
    _rows(rows, "test image", "its worst patch", "nearest normal", "where that is from")
    return figure


def nearest_explorer(scene: Scene) -> widgets.Explorer:
    """Return a test image to click on: beside it the patch, the nearest normal patch, and where that one comes from.

    The static twin is `nearest_figure`.
    """
    order, shape = scene.ranked, scene.distance.shape[1:]
    rank = widgets.slider(0, len(order) - 1, len(order) - 1, "image, by rank of its score")

    def draw(rank: int, at: tuple[int, int, int] | None) -> Figure:
        position = int(order[rank])
        return _one_scene(scene, position, at[1:] if at and at[0] == rank else scene.worst(position))

    def touched(touch: widgets.Touch, values: dict) -> dict:
        if touch.panel > 1 or touch.phase == "up":
            return {}
        size = scene.image(int(order[values["rank"]])).shape
        cells = (int((where + 0.5) / side * n) for where, side, n in zip((touch.y, touch.x), size, shape, strict=False))
        return {"at": (values["rank"], *(min(max(cell, 0), n - 1) for cell, n in zip(cells, shape, strict=True)))}

    alt = "a test image, its heat map, the chosen patch, the nearest normal patch, and the training image it is from"
    return widgets.explore(draw, {"rank": rank}, state={"at": None}, on_touch=touched, alt=alt)


def four_and_one(scene: Scene) -> list[int]:
    """Return positions of four defective images, of as many kinds as there are, and of one good image."""
    labels, typical = scene.result.labels, plots.typical(scene.result)
    bad = [position for position in typical if labels[position]]
    bad += [int(position) for position in scene.ranked[::-1] if labels[position] and position not in bad]
    return bad[:4] + [position for position in typical if not labels[position]]


def _four(panels: Sequence[Axes], scene: Scene, position: int, patch: tuple[int, int]) -> None:
    """Draw an image, the crop around a patch, the one around the nearest normal patch, and its training image."""
    image, mask = scene.image(position), scene.mask(position)
    train, *home = (int(value) for value in scene.home[position][patch])
    other, shape = scene.train_image(train), scene.distance.shape[1:]
    _show(panels[0], image, mask)
    panels[0].set_title(scene.defect(position), fontsize=TYPE)
    _frame(panels[0], _around(image, shape, patch), ASKED)
    for axes, pixels, place, line in ((panels[1], image, patch, ASKED), (panels[2], other, home, ANSWER)):
        axes.imshow(pixels)
        _zoom(axes, pixels, shape, place)
        _frame(axes, _box(pixels, shape, place), line)
        plots.bare(axes)
    panels[2].set_title(f"distance {float(scene.distance[position][patch]):.1f}", fontsize=TYPE)
    _show(panels[3], other, None)
    panels[3].set_title(f"training image {train}", fontsize=TYPE - 1)
    _frame(panels[3], _around(other, shape, home), ANSWER)


def _one_scene(scene: Scene, position: int, patch: tuple[int, int]) -> Figure:
    """The picture of `nearest_explorer`, laid out by hand: an automatic layout takes as long as all the rest."""
    figure = plots.new_figure(12, 4.1)
    figure.set_layout_engine("none")
    places = (
        (0.1, 0.15, 3.3, 3.5), (3.5, 0.15, 3.3, 3.5), (6.88, 0.35, 0.12, 3.0), (7.5, 2.2, 1.5, 1.5), (7.5, 0.1, 1.5, 1.5),
        (9.15, 0.15, 2.8, 3.5),
    )  # fmt: skip
    image, heat, bar, asked, answer, source = (figure.add_axes([x / 12, y / 4.1, w / 12, h / 4.1]) for x, y, w, h in places)
    # The first two panels are those that answer to a touch: figure.axes keeps the order in which they were added.
    _four((image, asked, answer, source), scene, position, patch)
    low, high = scene.limits
    drawn = heat.imshow(scene.result.scores.maps[position].numpy(), cmap=HEAT, vmin=low, vmax=high)
    _frame(heat, _box(scene.image(position), scene.distance.shape[1:], patch), ASKED)
    plots.bare(heat)
    heat.set_title(f"image score {float(scene.result.scores.image_scores[position]):.1f}", fontsize=TYPE)
    figure.colorbar(drawn, cax=bar, extend="both").ax.tick_params(labelsize=TYPE - 3)
    asked.set_title("this patch", fontsize=TYPE - 2)
    answer.set_title(f"nearest normal:\n{float(scene.distance[position][patch]):.1f} away (L2)", fontsize=TYPE - 3, linespacing=1)
    return figure


# Equation 10


def reweighting_figure(factor: Tensor, b: int, plain: Tensor, weighted: Tensor, labels: np.ndarray) -> Figure:
    """Return what Eq. 10 takes from every patch score, and what it does to image scores.

    Args:
        factor: (Q,) of Eq. 10.
        b: the neighbourhood's size.
        plain, weighted: (n,) image scores without and with it.
        labels: (n,) 0 normal, 1 anomalous.
    """
    figure = plots.new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    taken = (100 * (1 - factor)).double().clamp_min(1e-4).numpy()  # below it float32 hardly tells the factor from 1
    left.hist(taken, np.geomspace(1e-4, 100, 61), color=SKY, edgecolor="white", lw=0.3)
    left.axvline(100 / b, color=LIMIT, ls="--", lw=2)
    little = 100 * float((taken == 1e-4).mean())
    left.text(2e-4, 0.8, f"{little:.0f} % of the patches\nlose less than this", transform=left.get_xaxis_transform(), fontsize=TYPE - 2)
    words = f"never more\nthan 1/b = {100 / b:.0f} %"
    left.text(80 / b, 0.97, words, transform=left.get_xaxis_transform(), ha="right", va="top", fontsize=TYPE - 2)
    left.set_xscale("log")
    caption(left, "taken from a patch score, %", "patches", f"the most that it takes: {taken.max():.2g} %")
    for label, name, colour, marker in ((0, "normal", NORMAL, "o"), (1, "anomalous", ANOMALOUS, "^")):
        right.plot(plain[labels == label], weighted[labels == label], marker, color=colour, ms=7, alpha=0.75, label=name)
    right.axline((float(plain.min()),) * 2, slope=1, color=LIMIT, lw=1, label="no change")
    caption(right, "image score, plain distance", "image score with Eq. 10", "image scores before and after")
    right.legend(fontsize=TYPE - 3, frameon=False)
    return figure


# Maps


def smoothing_figure(scene: Scene, position: int, curve: Mapping[int, Mapping[str, float]], sigmas: Sequence[int] = (0, 4, 12)) -> Figure:
    """Return a grid of patch scores and its maps at some sigmas, above the pixel metrics over sigma.

    Args:
        scene: to look at.
        position: of a test image.
        curve: sigma → pixel metrics of all test images, a look only.
        sigmas: in pixels.
    """
    figure = plots.new_figure(12, 6.6)
    *top, below = figure.subplot_mosaic([[*range(5)], [5] * 5], height_ratios=[1, 1.15]).values()
    _show(top[0], scene.image(position), scene.mask(position))
    top[0].set_title(scene.defect(position), fontsize=TYPE)
    low, high = scene.limits
    drawn = top[1].imshow(scene.distance[position].numpy(), cmap=HEAT, vmin=low, vmax=high)
    top[1].set_title("{} × {} patches".format(*scene.distance.shape[1:]), fontsize=TYPE)
    plots.bare(top[1])
    for axes, sigma in zip(top[2:], sigmas, strict=True):
        _heat(axes, scene, position, sigma)
    figure.colorbar(drawn, ax=top, shrink=0.8, pad=0.01, extend="both", label=scene.result.scores.unit)
    _curve(below, curve)
    return figure


def smoothing_explorer(scene: Scene, curve: Mapping[int, Mapping[str, float]]) -> widgets.Explorer:
    """Return a slider over sigma, and one over the images, with image, map and pixel metrics.

    The static twin is `smoothing_figure`.
    """
    order = scene.ranked

    def draw(sigma: int, rank: int) -> Figure:
        position = int(order[rank])
        figure = plots.new_figure(12, 4.1)
        figure.set_layout_engine("none")
        image, heat, right = (
            figure.add_axes([left, bottom, width, 0.88 - bottom])
            for left, bottom, width in ((0.01, 0.04, 0.29), (0.31, 0.04, 0.29), (0.69, 0.17, 0.3))
        )
        _show(image, scene.image(position), scene.mask(position))
        image.set_title(scene.defect(position), fontsize=TYPE)
        _heat(heat, scene, position, sigma)
        _curve(right, curve, sigma)
        return figure

    controls = {
        "sigma": widgets.slider(0, 12, 4, "sigma (pixels)"),
        "rank": widgets.slider(0, len(order) - 1, len(order) - 1, "image, by rank of its score"),
    }
    return widgets.explore(draw, controls, alt="a test image, its map smoothed by sigma, and the pixel metrics over sigma")


# One colour scale


def illusion_figure(scene: Scene, positions: Sequence[int] | None = None) -> Figure:
    """Return three good images and two bad ones above their maps, on scales of their own and then on one scale.

    Args:
        scene: to look at.
        positions: of test images; None: some of low, middle and high score.
    """
    positions = three_and_two(scene) if positions is None else positions
    figure = plots.new_figure(2.2 * len(positions) + 1, 7)
    rows = figure.subplots(3, len(positions), squeeze=False)
    maps, (low, high) = scene.result.scores.maps.numpy(), scene.limits
    for top, middle, bottom, position in zip(*rows, positions, strict=True):
        _show(top, scene.image(position), scene.mask(position))
        top.set_title(scene.defect(position), fontsize=TYPE)
        middle.imshow(maps[position], cmap=HEAT)
        drawn = bottom.imshow(maps[position], cmap=HEAT, vmin=low, vmax=high)
        bottom.set_title(f"score {float(scene.result.scores.image_scores[position]):.1f}", fontsize=TYPE - 1)
        plots.bare(middle), plots.bare(bottom)
    _rows(rows, "image", "each its own scale", "one scale")
    figure.colorbar(drawn, ax=list(rows[2]), shrink=0.9, pad=0.01, extend="both", label="L2; lower half:\nnormal")
    return figure


def three_and_two(scene: Scene) -> list[int]:
    """Return positions of three good images of low, middle and high score, and of two bad ones that score high."""
    good, bad = ([int(p) for p in scene.ranked if scene.result.labels[p] == label] for label in (0, 1))
    return [good[int(share * (len(good) - 1))] for share in (0.1, 0.5, 0.9)] + [bad[int(s * (len(bad) - 1))] for s in (0.6, 0.9)]


# Checks


def mean_of_top(grids: Tensor) -> Tensor:
    """Return each image's mean over its largest 1 % of patch scores, at least one: (n, H, W) → (n,)."""
    return grids.flatten(1).topk(_k(grids)).values.mean(1)


def check_1(given: Callable[..., Tensor]) -> checks.Outcome:
    """Exercise 5.1: the mean of the largest 1 % of an image's patch scores."""
    generator = torch.Generator().manual_seed(0)
    cases = [(torch.rand(*shape, generator=generator),) for shape in ((3, 10, 20), (2, 28, 28), (1, 3, 4))]
    batch = "this takes the largest of the whole batch; an image's score must not depend on the others: flatten(1)."
    mistakes = [
        (lambda g: g.flatten(1).amax(1), "this is the maximum. Take the mean of the k largest of the H·W patches."),
        (lambda g: g.flatten(1).mean(1), "this is the mean over all patches: a small defect drowns in it."),
        (lambda g: g.flatten(1).quantile(0.99, dim=1), "this is the score at the edge of the top 1 %. Average what lies above."),
        (lambda g: g.flatten().topk(_k(g)).values.mean().repeat(len(g)), batch),
        (lambda g: g.flatten(1).topk(_k(g), largest=False).values.mean(1), "these are the lowest 1 %; high is anomalous."),
        (lambda g: g.flatten(1).topk(_k(g)).values.amin(1), "this is the smallest of the top 1 %; take their mean."),
    ]
    because = "28 × 28 patches have 8 in their top 1 %; a single wild patch weighs an eighth."
    hint = "k = max(1, round(0.01 · H · W)), then topk(k) of each flattened image, then the mean."
    return checks.function("5.1", given, mean_of_top, cases, because, mistakes, hint=hint)


def _k(grids: Tensor) -> int:
    return max(1, round(0.01 * grids.shape[1] * grids.shape[2]))


# Small parts


@lru_cache(maxsize=256)
def _pixels(path: Path, geometry: Geometry) -> np.ndarray:
    return geometry.apply(read_image(path))


@lru_cache(maxsize=256)
def _mask(path: Path, geometry: Geometry) -> np.ndarray:
    return geometry.apply_mask(read_mask(path))


def _box(image: np.ndarray, shape: Sequence[int], patch: Sequence[int]) -> tuple[float, float, float, float]:
    """(top, left, height, width) of a grid cell in pixels; the first pixel's centre is 0."""
    height, width = (side / cells for side, cells in zip(image.shape, shape, strict=False))
    return patch[0] * height - 0.5, patch[1] * width - 0.5, height, width


def _frame(axes: Axes, box: tuple[float, float, float, float], line: tuple[str, str]) -> None:
    top, left, height, width = box
    axes.add_patch(Rectangle((left, top), width, height, fill=False, ec="white", lw=4))
    axes.add_patch(Rectangle((left, top), width, height, fill=False, ec=line[0], ls=line[1], lw=2.2))


def _around(image: np.ndarray, shape: Sequence[int], patch: Sequence[int]) -> tuple[float, float, float, float]:
    """(top, left, side, side) of a square that reaches a few cells from a grid cell."""
    top, left, height, width = _box(image, shape, patch)
    side = (2 * REACH + 1) * max(height, width)
    return top + (height - side) / 2, left + (width - side) / 2, side, side


def _zoom(axes: Axes, image: np.ndarray, shape: Sequence[int], patch: Sequence[int]) -> None:
    """Show the surroundings of a grid cell; what lies beyond the image stays grey."""
    top, left, side, _ = _around(image, shape, patch)
    axes.set(xlim=(left, left + side), ylim=(top + side, top), facecolor="0.8")


def _heat(axes: Axes, scene: Scene, position: int, sigma: int) -> None:
    scores, (low, high) = scene.result.scores, scene.limits
    size = scores.geometry.output_size(*scores.sizes[position])
    drawn = pixel_maps(scene.distance[position : position + 1], size, float(sigma))[0]
    axes.imshow(drawn.numpy(), cmap=HEAT, vmin=low, vmax=high)
    axes.set_title(f"sigma {sigma}", fontsize=TYPE)
    plots.bare(axes)


def _curve(axes: Axes, curve: Mapping[int, Mapping[str, float]], sigma: int | None = None) -> None:
    for name, title, colour, marker in (("pixel_auroc", "pixel AUROC", NORMAL, "o"), ("aupro", "AUPRO (FPR ≤ 0.3)", GREEN, "s")):
        axes.plot(list(curve), [metrics[name] for metrics in curve.values()], f"-{marker}", color=colour, ms=8, lw=2, label=title)
    axes.axvline(4 if sigma is None else sigma, color=LIMIT, ls="--", lw=1.5)
    title = "a look, not a choice" + (": it takes test labels (dashed: PatchCore's 4)" if sigma is None else "")
    axes.set_xticks(list(curve))
    caption(axes, "sigma, pixels", "share", title)
    axes.legend(fontsize=TYPE - 3, frameon=False)


def _rows(grid: np.ndarray, *names: str) -> None:
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=TYPE)


def _show(axes: Axes, image: np.ndarray, mask: np.ndarray | None) -> None:
    axes.imshow(image)
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[CONTOUR], linewidths=1.5)
    plots.bare(axes)



def caption(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x, fontsize=TYPE - 1)
    axes.set_ylabel(y, fontsize=TYPE - 1)
    axes.set_title(title, fontsize=TYPE)
    axes.tick_params(labelsize=TYPE - 2)
    axes.spines[["top", "right"]].set_visible(False)
