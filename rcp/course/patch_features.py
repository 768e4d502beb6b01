"""Notebook 01, its second half: joined levels, which level tells patches apart, what a level finds; and all its checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ipywidgets import Dropdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from rcp import metrics, plots, scoring, widgets
from rcp.course import checks
from rcp.data import Sample, Split
from rcp.distances import distances
from rcp.features import STORED, FeatureSettings, neighbourhood_average
from rcp.images import Geometry, read_image, read_mask

TYPE = plots.TYPE
FAR = 2.0  # end of the colour scale of likeness maps, in mean distances


# --- levels, joined and side by side


def join_figure(deep: Tensor, grid: tuple[int, int], caption: str) -> Figure:
    """Return one channel of a deep level as it is, and on a finer grid: by the nearest position, and bilinearly.

    Args:
        deep: (H, W), a channel.
        grid: (H', W') to bring it to.
        caption: what it is.
    """
    figure = plots.new_figure(11.5, 4.4)
    panels = figure.subplots(1, 3)
    near, smooth = (F.interpolate(deep[None, None], grid, mode=mode)[0, 0] for mode in ("nearest", "bilinear"))
    low, high = float(deep.min()), float(deep.max())
    names = ("as it is", "nearest: blocks", "bilinear: as the library does")
    for axes, values, name in zip(panels, (deep, near, smooth), names, strict=True):
        drawn = axes.imshow(values.numpy(), cmap=plots.HEAT, vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(f"{name}\n{values.shape[0]} × {values.shape[1]}", fontsize=TYPE - 1)
        axes.set(xticks=[], yticks=[])
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.85, aspect=16)
    bar.set_label(caption, fontsize=TYPE - 3)
    bar.ax.tick_params(labelsize=TYPE - 3)
    return figure


@dataclass(frozen=True)
class Views:
    """Some images and their features, for likeness maps.

    Attributes:
        images: (n, h, w, 3) uint8, as the network sees them.
        names: of each, e.g. its defect.
        maps: level → (n, H_l, W_l, C_l).
    """

    images: np.ndarray
    names: Sequence[str]
    maps: dict[int, Tensor]


def likeness(grid: Tensor, row: int, column: int, measure: str = "L2") -> Tensor:
    """Return how far every patch is from one of them, in units of the mean over all of them: 0 for itself.

    Args:
        grid: (H, W, C).
        row, column: of the patch.
        measure: "L2" (rooted), or "cosine" (1 - cosine of the angle).

    Returns:
        (H, W).
    """
    one = grid[row, column]
    if measure == "L2":
        far = distances(grid.flatten(0, 1), one[None]).view(grid.shape[:2])
    else:
        far = (1 - F.cosine_similarity(grid, one.expand_as(grid), dim=-1)).clamp(min=0)
    return far / far.mean().clamp(min=1e-12)


def likeness_figure(views: Views, image: int, y: float, x: float, measure: str = "L2") -> Figure:
    """Return an image with one place marked and, a panel a level, how far all patches are from the one at that place.

    Args:
        views: images and features.
        image: which.
        y, x: the place, in pixels of the image.
        measure: as `likeness` takes it.
    """
    h, w = views.images.shape[1:3]
    figure = Figure(figsize=(12, 3.1))  # fixed places: an automatic layout takes as long as the drawing
    panels = figure.subplots(1, 1 + len(views.maps))
    figure.subplots_adjust(left=0.01, right=0.89, top=0.9, bottom=0.02, wspace=0.04)
    panels[0].imshow(views.images[image])
    panels[0].set_title(views.names[image].replace("_", " "), fontsize=TYPE - 1)
    extent = (-0.5, w - 0.5, h - 0.5, -0.5)  # all panels in pixels of the image: a touch means the same in each
    for axes, (level, maps) in zip(panels[1:], views.maps.items(), strict=True):
        rows, columns = maps.shape[1:3]
        row, column = _cell(y, h, rows), _cell(x, w, columns)
        values = likeness(maps[image], row, column, measure)
        drawn = axes.imshow(values.numpy(), cmap=plots.HEAT, vmin=0, vmax=FAR, extent=extent, interpolation="nearest")
        axes.set_title(f"level {level}: {rows} × {columns}", fontsize=TYPE - 1)
        _mark(axes, column * w / columns, row * h / rows, w / columns, h / rows)
    _mark(panels[0], x - 4, y - 4, 8, 8)
    for axes in panels:
        axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.905, 0.08, 0.012, 0.76)), extend="max")
    bar.set_label(f"{measure} distance\n/ its mean", fontsize=TYPE - 3)
    bar.ax.tick_params(labelsize=TYPE - 3)
    return figure


def likeness_explorer(views: Views) -> widgets.Explorer:
    """Return a slider over images, a choice of distance, and likeness maps whose patches can be clicked.

    Args:
        views: images and features.
    """

    def on_touch(touch: widgets.Touch, values: dict[str, Any]) -> dict[str, Any]:
        if touch.phase == "up" or touch.panel > len(views.maps):
            return {}
        return {"y": touch.y, "x": touch.x}

    controls = {
        "image": widgets.slider(0, len(views.images) - 1, 0, "image"),
        "measure": Dropdown(options=["L2", "cosine"], value="L2", description="distance"),
    }
    middle = {"y": views.images.shape[1] / 2, "x": views.images.shape[2] / 2}
    return widgets.explore(
        lambda image, measure, y, x: likeness_figure(views, image, y, x, measure), controls,
        state=middle, on_touch=on_touch, alt="an image, and how far its patches are from the clicked one, level by level",
    )  # fmt: skip


def middle(sample: Sample, geometry: Geometry) -> tuple[float, float]:
    """Return (y, x) of a defect's pixel that is next to the defect's mean, or of the image's middle if there is no mask.

    Args:
        sample: an image.
        geometry: resize and crop.
    """
    places = np.argwhere(_mask(sample, geometry))
    if not len(places):
        h, w = geometry.output_size(*read_image(sample.path).shape[:2])
        return h / 2, w / 2
    nearest = np.square(places - places.mean(0)).sum(1).argmin()  # the mean itself may lie outside of a ring
    return float(places[nearest][0]), float(places[nearest][1])


@dataclass(frozen=True)
class Look:
    """What one setting found on test images that have labels: for looking at, not for choosing.

    Attributes:
        name: of the setting.
        image: image AUROC, one a seed.
        pixel: pixel AUROC, one a seed; nan without masks.
        kinds: defect → AUROC against the good images, mean over the seeds.
    """

    name: str
    image: Sequence[float]
    pixel: Sequence[float]
    kinds: dict[str, float]


def masks(test: Split, geometry: Geometry) -> np.ndarray | None:
    """Return the true masks, (n, h, w) bool, as the network sees the images; None if the split has none."""
    return np.stack([_mask(sample, geometry) for sample in test]) if test.has_masks else None


def look_at(name: str, grids: Sequence[Tensor], test: Split, truth: np.ndarray | None) -> Look:
    """Return what scores of all images of a test split find, by the labels.

    Args:
        name: of the setting.
        grids: (n, H, W) patch scores, one tensor a seed; the larger, the more anomalous.
        test: the n images.
        truth: their masks, of `masks`.
    """
    defects, kinds, image, pixel = np.array(test.defects), {}, [], []
    for each in grids:
        scores = scoring.image_scores(each).numpy()
        image.append(metrics.auroc(test.labels, scores))
        for kind in sorted(set(test.defects) - {"good"}):
            own = (defects == kind) | (defects == "good")
            kinds.setdefault(kind, []).append(metrics.auroc(test.labels[own], scores[own]))
        if truth is None:
            pixel.append(float("nan"))
        else:
            pixel.append(metrics.auroc(truth.ravel(), scoring.pixel_maps(each, truth.shape[1:]).numpy().ravel()))
    return Look(name, image, pixel, {kind: float(np.mean(values)) for kind, values in kinds.items()})


def look_figure(looks: Sequence[Look], title: str) -> Figure:
    """Return image and pixel AUROC of each setting, beside a table of the image AUROC of each kind of defect.

    Args:
        looks: one a setting, all with the same kinds.
        title: what varies, on which data.
    """
    figure = plots.new_figure(12, 0.55 * len(looks) + 2.3)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.25])
    at, names = np.arange(len(looks)), [look.name for look in looks]
    for values, shift, style in (  # one above the other, as they may lie at the same place
        ([look.image for look in looks], -0.14, {"fmt": "o", "color": plots.NORMAL, "label": "image AUROC ± sd"}),
        (
            [look.pixel for look in looks],
            0.14,
            {"fmt": "D", "color": plots.ANOMALOUS, "mfc": "white", "mew": 2, "label": "pixel AUROC ± sd"},
        ),
    ):
        means = [100 * float(np.mean(seeds)) for seeds in values]
        spread = [100 * float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0 for seeds in values]
        left.errorbar(means, at + shift, xerr=spread, ms=9, capsize=5, lw=2.5, **style)
    left.set_yticks(at, names, fontsize=TYPE - 1)
    left.set_xlabel("%", fontsize=TYPE - 1)
    left.set_xlim(right=101)
    left.grid(axis="x", color="#DDDDDD")
    left.tick_params(labelsize=TYPE - 2)
    left.spines[["top", "right"]].set_visible(False)
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=TYPE - 3, frameon=False)
    kinds = list(looks[0].kinds)
    table = 100 * np.array([[look.kinds[kind] for kind in kinds] for look in looks])
    right.imshow(table, cmap="cividis", vmin=50, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if value < 80 else "black"
        right.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=TYPE)
    right.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=TYPE - 2)
    right.tick_params(length=0)
    right.set_title("image AUROC of each defect, %", fontsize=TYPE - 2)
    right.spines[:].set_visible(False)
    left.set_ylim(len(looks) - 0.5, -0.5)
    figure.suptitle(title, fontsize=TYPE)
    return figure


def _mask(sample: Sample, geometry: Geometry) -> np.ndarray:
    size = read_image(sample.path).shape[:2]
    return geometry.apply_mask(np.zeros(size, bool) if sample.mask is None else read_mask(sample.mask, size))


def _cell(place: float, pixels: int, cells: int) -> int:
    return int(np.clip((place + 0.5) / pixels * cells, 0, cells - 1))


def _mark(axes: Axes, x: float, y: float, width: float, height: float) -> None:
    for colour, line in (("#000000", 3.4), (plots.CONTOUR, 1.8)):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec=colour, lw=line))


# --- checks of the exercises

RESNET18 = (
    (7, 2),
    (3, 2),
    (3, 1),
    (3, 1),
    (3, 1),
    (3, 1),
)  # up to the end of its level 1; the pooling counts like a kernel


def check_1(given: Any) -> checks.Outcome:
    """Return what the answer to exercise 1.1 says: the receptive field of ResNet-18's level 1, in pixels."""
    mistakes = (
        (
            1 + sum(k - 1 for k, _ in RESNET18),
            "behind a stride a step of the kernel is more than one pixel: multiply by the jump.",
        ),
        (
            _field(RESNET18, late=False),
            "a layer's own stride does not widen its own kernel, only those after it: jump grows last.",
        ),
        (_field(RESNET18, start=0), "the recursion starts with r = 1: a pixel sees itself."),
        (_field(RESNET18, less=0), "a kernel of k adds k - 1 steps, as its first position is already counted."),
        (
            int(np.prod([s for _, s in RESNET18])),
            "this is the jump, the distance between two units, not how far one sees.",
        ),
    )
    because = (
        "And the gradient of a stack of ones is nonzero on just as many pixels: that is how this check computed it."
    )
    return checks.answer("1.1", given, _measured(RESNET18), because, mistakes)


def check_2(given: Callable[..., Any]) -> checks.Outcome:
    """Return what the answer to exercise 1.2 says: a function (grid, row, column, s) → mean of the s×s neighbourhood."""
    grid = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) + 3  # far from 0: padding shows
    cases = [(grid, 2, 3, 3), (grid, 0, 0, 3), (grid, 3, 0, 3), (grid, 1, 4, 5)]
    mistakes = (
        (
            _mean_of_real,
            "at the border you divide by the numbers that are there. Padding counts as zeros: always divide by s².",
        ),
        (_mean_of_edge, "at the border you repeat the edge. The library, like PatchCore, pads with zeros."),
        (
            lambda g, r, c, s: neighbourhood_average(g[None, None], s)[0, 0, r, c] * s**2,
            "this is the sum: divide by s².",
        ),
        (
            lambda g, r, c, s: g[r : r + s, c : c + s].sum() / s**2,
            "your window begins at the position; it should be centred there.",
        ),
        (lambda g, r, c, s: neighbourhood_average(g.T[None, None], s)[0, 0, r, c], "rows and columns are swapped."),
    )
    because = "Near the border the mean is pulled towards zero, the same way in every image."
    return checks.function(
        "1.2", given, _average, cases, because, mistakes, hint="Is the window centred, and cut at the border?"
    )


def check_3(given: Any) -> checks.Outcome:
    """Return what the answer to exercise 1.3 says: the finest level that sees a letter of 60 pixels whole."""
    options = {
        "1": "a patch of level 1 sees a stroke of the letter. Each stroke is normal, only their order is not.",
        "2": "its *theoretical* field is wide enough, but 90 % of what moves it lies within a square that is smaller "
        "than the letter. That is the illusion.",
        "3": "It is the finest level whose effective field holds the letter. Level 4's does so, too, but with a quarter "
        "of the patches.",
        "4": "it sees the letter whole, but so does a finer level, which says better where the letter is.",
    }
    return checks.choice("1.3", given if given is None or given is ... else str(given), options, "3")


def check_4(given: Any) -> checks.Outcome:
    """Return what the answer to exercise 1.4 says: the bytes of 280 images at 480 px, 512 + 1024 halves each row."""
    n, width, wide = 280, 512 + 1024, STORED["float16"].itemsize
    settings = FeatureSettings("wide_resnet50_2.tv_in1k", resize=512, crop=480, stored="float16")
    h, w = (side // 8 for side in settings.geometry.output_size(900, 900))
    right = n * h * w * width * wide
    mistakes = (
        (2 * right, "this is float32, four bytes a number; float16 has two."),
        (n * 28 * 28 * width * wide, "28 × 28 is the grid at 224 px; at 480 px and stride 8 it is larger."),
        (
            n * (h * w * 512 + h * w // 4 * 1024) * wide,
            "level 3 is brought to the grid of level 2 before it is joined: all 1536 numbers for each row.",
        ),
        (n * h * w * wide, "these are the rows times two bytes: each row has 512 + 1024 numbers."),
        (n * 480 * 480 * width * wide, "a row a patch, not a row a pixel: divide each side by the stride."),
        (right / 1e9, "asked for in bytes, not in GB."),
    )
    return checks.answer("1.4", given, right, f"{n} · {h} · {w} · {width} · {wide} bytes.", mistakes)


def _measured(layers: Sequence[tuple[int, int]], pixels: int = 201) -> int:
    """How many pixels have a gradient, in a stack of ones."""
    x = torch.ones(1, 1, pixels, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride in layers:
        y = F.conv1d(y, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
    y[0, 0, y.shape[-1] // 2].backward()
    return int((x.grad != 0).sum())


def _field(layers: Sequence[tuple[int, int]], *, late: bool = True, start: int = 1, less: int = 1) -> int:
    """The recursion, with the slips that people make in it."""
    size, jump = start, 1
    for kernel, stride in layers:
        size += (kernel - less) * (jump if late else jump * stride)
        jump *= stride
    return size


def _average(grid: Tensor, row: int, column: int, s: int) -> Tensor:
    return neighbourhood_average(grid[None, None], s)[0, 0, row, column]


def _mean_of_real(grid: Tensor, row: int, column: int, s: int) -> Tensor:
    return F.avg_pool2d(grid[None, None], s, 1, s // 2, count_include_pad=False)[0, 0, row, column]


def _mean_of_edge(grid: Tensor, row: int, column: int, s: int) -> Tensor:
    padded = F.pad(grid[None, None], (s // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, s, 1)[0, 0, row, column]
