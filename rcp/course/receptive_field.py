"""Notebook 01, its first half: how far a unit sees. A stack of convolutions, and the real network's fields on an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter
from torch import Tensor

from rcp import plots, widgets
from rcp.plots import GREEN

TYPE, BLUE, RED = plots.TYPE, plots.NORMAL, plots.ANOMALOUS
LEVEL = {
    1: (BLUE, "o", "-"),
    2: (GREEN, "s", "--"),
    3: (RED, "^", "-."),
    4: ("#000000", "D", ":"),
}  # colour, marker, line
Layers = Sequence[tuple[int, int]]  # (kernel, stride) a layer


# --- a stack of one-dimensional convolutions


def sizes(layers: Layers, pixels: int) -> list[int]:
    """Return how many units each layer has, the input first; nothing is padded."""
    counts = [pixels]
    for kernel, stride in layers:
        counts.append((counts[-1] - kernel) // stride + 1)
    return counts


def ways(layers: Layers, pixels: int, layer: int, unit: int) -> list[np.ndarray]:
    """Return, from the input up to `layer`, in how many ways each unit reaches the one asked for.

    Args:
        layers: (kernel, stride) each, from the input upwards.
        pixels: of the input.
        layer: 0 is the input.
        unit: position in that layer.

    Returns:
        An int64 array a layer; its nonzero entries in the first one are the receptive field.
    """
    counts = [np.zeros(size, np.int64) for size in sizes(layers, pixels)[: layer + 1]]
    counts[layer][unit] = 1
    for below in range(layer - 1, -1, -1):
        kernel, stride = layers[below]
        for position, count in enumerate(counts[below + 1]):
            counts[below][position * stride : position * stride + kernel] += count
    return counts


def stack_figure(layers: Layers, pixels: int = 21, layer: int | None = None, unit: int | None = None) -> Figure:
    """Return a stack of 1-D convolutions with one unit's field in it, and the number of ways from each pixel to that unit.

    Args:
        layers: (kernel, stride) each, from the input upwards.
        pixels: of the input.
        layer, unit: whose field; None: the last layer's middle unit.
    """
    counts = sizes(layers, pixels)
    layer = len(layers) if layer is None else min(layer, len(layers))
    unit = counts[layer] // 2 if unit is None else min(max(unit, 0), counts[layer] - 1)
    reached, places = ways(layers, pixels, layer, unit), _places(layers, pixels)
    field = int((reached[0] > 0).sum())
    figure = Figure(figsize=(11.5, 5.2))  # fixed places: an automatic layout takes as long as the drawing
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    figure.subplots_adjust(left=0.19, right=0.99, top=0.92, bottom=0.12, hspace=0.08)
    for colour, width, chosen in (("#D9D9D9", 0.8, False), (RED, 1.6, True)):
        top.plot(
            *_connections(layers, places, reached if chosen else None),
            color=colour,
            lw=width,
            zorder=2 if chosen else 1,
        )
    for level, x in enumerate(places):
        inside = reached[level] > 0 if level <= layer else np.zeros(len(x), bool)
        top.plot(x[~inside], np.full((~inside).sum(), level), "o", color="#BDBDBD", ms=5, zorder=3)
        top.plot(x[inside], np.full(inside.sum(), level), "s", color=RED, ms=8, zorder=4)
    names = ["input"] + [f"layer {i}: k = {k}, stride {s}" for i, (k, s) in enumerate(layers, 1)]
    top.set_yticks(range(len(places)), names, fontsize=TYPE - 2)
    top.set_ylim(-0.4, len(places) - 0.6)
    top.set_title(
        f"this unit of layer {layer} sees {field} pixel{'s' * (field > 1)}; {_even(reached[0])}", fontsize=TYPE
    )
    bottom.stairs(reached[0], np.arange(pixels + 1) - 0.5, color=RED, fill=True)
    bottom.set_xlabel("pixel of the input", fontsize=TYPE - 1)
    bottom.set_ylabel("ways up", fontsize=TYPE - 1)
    bottom.yaxis.get_major_locator().set_params(integer=True)
    top.spines[["top", "right", "left", "bottom"]].set_visible(False)
    top.tick_params(length=0)
    bottom.spines[["top", "right"]].set_visible(False)
    bottom.tick_params(labelsize=TYPE - 2)
    return figure


def stack_explorer(pixels: int = 49) -> widgets.Explorer:
    """Return sliders for kernel, depth and the place of a stride, above a stack whose units can be clicked.

    Args:
        pixels: of the input.
    """

    def stack(kernel: int, depth: int, stride_at: int) -> Layers:
        return [(kernel, 2 if at == stride_at else 1) for at in range(1, depth + 1)]

    def draw(kernel: int, depth: int, stride_at: int, unit: tuple[int, int] | None) -> Figure:
        return stack_figure(stack(kernel, depth, stride_at), pixels, *(unit or (None, None)))

    def on_touch(touch: widgets.Touch, values: dict[str, Any]) -> dict[str, Any]:
        if touch.panel != 0 or touch.phase == "up":
            return {}
        places = _places(stack(values["kernel"], values["depth"], values["stride_at"]), pixels)
        layer = int(np.clip(round(touch.y), 0, len(places) - 1))
        return {"unit": (layer, int(np.abs(places[layer] - touch.x).argmin()))}

    controls = {
        "kernel": widgets.slider(3, 5, 3, "kernel k", step=2),
        "depth": widgets.slider(1, 6, 3, "layers"),
        "stride_at": widgets.slider(0, 6, 2, "layer with stride 2 (0: none)"),
    }
    return widgets.explore(
        draw,
        controls,
        state={"unit": None},
        on_touch=on_touch,
        alt="a stack of layers, one unit's field, and the ways to it",
    )


def _places(layers: Layers, pixels: int) -> list[np.ndarray]:
    """Where the units of each layer stand above the input: at the middles of their fields."""
    places = [np.arange(pixels, dtype=float)]
    for (kernel, stride), count in zip(layers, sizes(layers, pixels)[1:], strict=True):
        below = places[-1]
        places.append(np.array([below[i * stride : i * stride + kernel].mean() for i in range(count)]))
    return places


def _connections(
    layers: Layers, places: list[np.ndarray], reached: list[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """x and y of all connections, or of those that end in a unit that was reached; one line with gaps is drawn faster."""
    ends = []
    for level, (kernel, stride) in enumerate(layers, 1):
        units = np.arange(len(places[level]))
        if reached is not None:
            units = np.flatnonzero(reached[level]) if level < len(reached) else units[:0]
        above, steps = np.repeat(units, kernel), np.tile(np.arange(kernel), len(units))
        gap = np.full(len(above), np.nan)
        x = np.stack([places[level][above], places[level - 1][above * stride + steps], gap], 1)
        ends.append(np.stack([x, np.broadcast_to([level, level - 1, np.nan], x.shape)]))  # (2, lines, 3)
    joined = np.concatenate(ends, 1).reshape(2, -1) if ends else np.zeros((2, 0))
    return joined[0], joined[1]


def _even(reached: np.ndarray) -> str:
    low, high = reached[reached > 0].min(), reached.max()
    return "all count the same" if low == high else f"the middle has up to {high} ways to it, the ends {low}"


# --- fields of the real network


@dataclass(frozen=True)
class Field:
    """What a patch of one level sees.

    Attributes:
        level: as PatchCore counts them.
        patch_size: s of the neighbourhood average.
        jump: pixels between two neighbouring patches of this level.
        side: of the theoretical field, in pixels.
        row, column: of the patch, in the level's grid, whose energy was measured.
        energy: (h, w), the share of the squared gradient that falls on each pixel; its sum is 1.
    """

    level: int
    patch_size: int
    jump: int
    side: int
    row: int
    column: int
    energy: Tensor

    @property
    def centre(self) -> tuple[float, float]:
        """(y, x) in pixels of the middle of the patch's own cell; a pixel's middle has whole numbers."""
        return (self.row + 0.5) * self.jump - 0.5, (self.column + 0.5) * self.jump - 0.5

    @property
    def offset(self) -> tuple[float, float]:
        """(y, x) in pixels from the middle of the patch's own cell to the middle of its energy."""
        h, w = self.energy.shape
        y, x = self.energy.sum(1) @ torch.arange(h).float(), self.energy.sum(0) @ torch.arange(w).float()
        return float(y) - self.centre[0], float(x) - self.centre[1]

    def width(self, share: float) -> int:
        """Return the side in pixels of the smallest square around the patch that holds this share of the energy."""
        return int(np.argmax(self.growth() >= share)) if share > 0 else 0

    def growth(self) -> np.ndarray:
        """Return the share of the energy within squares around the patch of side 0, 1, 2, … pixels."""
        h, w = self.energy.shape
        y, x = (torch.arange(length) - middle for length, middle in ((h, self.centre[0]), (w, self.centre[1])))
        reach = torch.maximum(y.abs()[:, None], x.abs()[None, :])  # (h, w): to a pixel's middle
        smallest = (2 * reach + 1).ceil().long()  # side of the smallest square that holds the pixel whole
        shares = torch.zeros(int(smallest.max()) + 1, dtype=torch.float64)
        shares.index_add_(0, smallest.flatten(), self.energy.double().flatten())
        return shares.cumsum(0).clamp(max=1).numpy()


def fields_figure(image: np.ndarray, fields: Sequence[Field], place: tuple[float, float], title: str) -> Figure:
    """Return an image a level, lit up where the patch at a place really looks, with its theoretical field around.

    Args:
        image: (h, w, 3) uint8, as the network sees it.
        place: (y, x) in pixels; the patch there is chosen, at each level, and the field is moved to it.
        title: of the figure.
        fields: one each; where the theoretical one is larger than the image, the panel shows what lies around, too.
    """
    figure = plots.new_figure(3.9 * len(fields), 5.6)
    for axes, field in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields, strict=True):
        row, column = _patch(field, place, image.shape[:2])
        far = max(abs((at + 0.5) * field.jump - n / 2) for at, n in zip((row, column), image.shape[:2], strict=True))
        margin = min((field.side - min(image.shape[:2])) / 2 + far + 12, max(image.shape[:2]))
        _lit(axes, image, field, row, column, max(margin, 4))
        axes.set_title(f"level {field.level}, s = {field.patch_size}\n{_widths(field)}", fontsize=TYPE - 2)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=TYPE - 2, frameon=False)
    scale = f"each panel has its own scale, the image is {image.shape[1]} px wide"
    figure.suptitle(f"{title}\nbright where the energy is (square root); {scale}", fontsize=TYPE - 1)
    return figure


def growth_figure(fields: Sequence[Field]) -> Figure:
    """Return, a line a level, the share of the gradient's energy within squares around the patch, over their side.

    Args:
        fields: one a level.
    """
    figure = plots.new_figure(10.5, 5.2)
    axes = figure.subplots()
    for field in fields:
        colour, marker, line = LEVEL[field.level]
        share, half = field.growth(), field.width(0.9)
        axes.plot(np.arange(1, len(share)), 100 * share[1:], line, color=colour, lw=2.5)
        axes.plot(
            half,
            100 * share[half],
            marker,
            color=colour,
            ms=10,
            label=f"level {field.level}: 90 % within {half} px, theory {field.side} px",
        )
        axes.plot(field.side, 100, marker, color=colour, ms=12, mfc="white", mew=2, clip_on=False, zorder=5)
    axes.set_xscale("log", base=2)
    ticks = [2**n for n in range(1, 11) if 2**n <= 1.2 * max(field.side for field in fields)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    axes.set_ylim(0, 105)
    axes.set_xlabel(
        "side of a square around the patch, in pixels (log scale); open markers: the theoretical field",
        fontsize=TYPE - 2,
    )
    axes.set_ylabel("energy inside, in %", fontsize=TYPE - 1)
    axes.tick_params(labelsize=TYPE - 2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=TYPE - 2, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=2)
    return figure


def field_explorer(images: np.ndarray, fields: Mapping[tuple[int, int], Field]) -> widgets.Explorer:
    """Return sliders for image, level and s, above an image whose patches can be clicked: what that patch sees.

    Args:
        images: (n, h, w, 3) uint8.
        fields: (level, s) → its field, measured in the middle; it is moved to the patch that is clicked.
    """
    levels, sides = sorted({level for level, _ in fields}), sorted({s for _, s in fields})

    def draw(image: int, level: int, s: int, y: float, x: float) -> Figure:
        field, (h, w) = fields[level, s], images.shape[1:3]
        row, column = _patch(field, (y, x), (h, w))
        figure = plots.new_figure(9.6, 5.2)
        axes = figure.subplots()
        _lit(axes, images[image], field, row, column, 45)
        grid = f"{-(-h // field.jump)} × {-(-w // field.jump)}"
        title = f"level {level}, s = {s}, patch ({row}, {column}) of {grid}\n{_widths(field)}"
        axes.set_title(title, fontsize=TYPE - 1)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=TYPE - 2, frameon=False)
        return figure

    def on_touch(touch: widgets.Touch, values: dict[str, Any]) -> dict[str, Any]:
        return {} if touch.phase == "up" else {"y": touch.y, "x": touch.x}

    controls = {
        "image": widgets.slider(0, len(images) - 1, 0, "image"),
        "level": widgets.slider(levels[0], levels[-1], 2, "level"),
        "s": widgets.slider(sides[0], sides[-1], 3, "s (neighbourhood)", step=2),
    }
    middle = {"y": images.shape[1] / 2, "x": images.shape[2] / 2}
    return widgets.explore(
        draw, controls, state=middle, on_touch=on_touch, alt="an image, lit up where the clicked patch looks"
    )


def _lit(axes: Axes, image: np.ndarray, field: Field, row: int, column: int, margin: float) -> None:
    """The image, bright where the patch looks, and three squares: its cell, 90 % of its energy, the theoretical field."""
    h, w = image.shape[:2]
    light = gaussian_filter(
        _moved(field.energy.numpy(), (row - field.row) * field.jump, (column - field.column) * field.jump), 1.5
    )
    light = np.sqrt(light / max(light.max(), 1e-12))[..., None]
    bright = np.clip(image / max(np.percentile(image, 99), 1), 0, 1)  # dark parts are to be seen when they are dimmed
    axes.imshow(bright * (0.3 + 0.7 * light), extent=(-0.5, w - 0.5, h - 0.5, -0.5))
    y, x = (row + 0.5) * field.jump - 0.5, (column + 0.5) * field.jump - 0.5
    for side, colour, line, name in (
        (field.side, BLUE, "--", "theoretical field"),
        (field.width(0.9), RED, "-", "90 % of the gradient's energy"),
        (field.jump, "#FFFFFF", "-", "the patch's own cell"),
    ):
        edge = "#000000" if colour == "#FFFFFF" else colour
        axes.add_patch(
            Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=edge, ls=line, lw=2.6, label=name)
        )
        if edge != colour:  # white on black, to be seen on any image
            axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, ec=colour, lw=1.2))
    axes.set(xlim=(-margin, w + margin), ylim=(h + margin, -margin), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _patch(field: Field, place: tuple[float, float], shape: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the patch whose cell a place (y, x) lies in, in an image of this height and width."""
    row, column = (
        int(np.clip((v + 0.5) // field.jump, 0, -(-n // field.jump) - 1)) for v, n in zip(place, shape, strict=True)
    )
    return row, column


def _moved(energy: np.ndarray, down: int, right: int) -> np.ndarray:
    h, w = energy.shape
    moved = np.zeros_like(energy)
    rows, columns = (slice(max(0, d), min(n, n + d)) for d, n in ((down, h), (right, w)))
    back = tuple(slice(part.start - d, part.stop - d) for part, d in ((rows, down), (columns, right)))
    if rows.start < rows.stop and columns.start < columns.stop:
        moved[rows, columns] = energy[back]
    return moved


def _widths(field: Field) -> str:
    return f"theory {field.side} px, 90 % within {field.width(0.9)} px"
