"""The pictures of notebook 10: five ideas, all systems beside each other, what they cost, their maps on the same images."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, FancyArrowPatch, Rectangle
from matplotlib.ticker import LogLocator
from scipy import ndimage

from rcp import plots, widgets
from rcp.course import results_folder
from rcp.course.systems import BASELINE, IDEAS, NAMES, PROMPTS, SHOTS, Cost, idea_of, values
from rcp.data import Category
from rcp.experiments.collection import Row
from rcp.experiments.summary import choose
from rcp.files import read_json
from rcp.images import Geometry, read_image, read_mask
from rcp.reproduce.systems import METRICS

COLOURS = {
    "memory": plots.NORMAL, "distribution": plots.GREEN, "distillation": plots.ORANGE, "reconstruction": plots.PINK,
    "generalist": plots.ANOMALOUS, "–": plots.GREY,
}  # fmt: skip
MARKS = ("o", "s", "^", "D", "P", "X")
OF_CATEGORIES = (plots.NORMAL, plots.GREEN, plots.ORANGE, plots.PINK, plots.ANOMALOUS, plots.SKY)
SMALL = plots.TYPE - 3
SHORT = {"Focus Your Distribution": "FYD", "Uninformed Students": "Students", BASELINE: "histogram"}
GEOMETRY = Geometry(256, 224)
HEAT = colormaps[plots.HEAT]
CONTOUR = np.array(to_rgb(plots.CONTOUR)) * 255
SHOWN = "missing_screw"  # the defect that is shown first
COLUMNS, GAP = 4, 16  # of the maps' panels; between them, in pixels of the images
KEPT = {  # idea → what of the good images is kept, and what is asked of a new one
    "memory": ("patches, or whole images", "how far is the nearest?"),
    "distribution": ("a Gaussian a position", "how unlikely is it?"),
    "distillation": ("a student that imitates", "where does it fail?"),
    "reconstruction": ("a decoder behind a bottleneck", "what comes back wrong?"),
    "generalist": ("2 to 8 pictures", "how different is it?"),
}


def taxonomy_figure() -> Figure:
    """Return the five ideas as pictograms, each with its systems, what it keeps and what it asks."""
    figure = plots.new_figure(12, 4.9)
    panels = figure.subplots(1, len(IDEAS))
    draw = {"memory": _memory, "distribution": _distribution, "distillation": _distillation, "reconstruction": _reconstruction,
            "generalist": _generalist}  # fmt: skip
    for axes, (idea, systems) in zip(panels, IDEAS.items(), strict=True):
        axes.set(xlim=(0, 10), ylim=(-7.6, 10), aspect="equal")
        axes.axis("off")
        axes.set_title(idea, fontsize=plots.TYPE + 1, color=COLOURS[idea], fontweight="bold")
        draw[idea](axes, COLOURS[idea])
        kept, asked = KEPT[idea]
        axes.text(5, -0.6, kept, ha="center", va="top", fontsize=SMALL - 1)
        axes.text(5, -2.0, asked, ha="center", va="top", fontsize=SMALL - 1, style="italic")
        axes.text(5, -3.8, "\n".join(SHORT.get(name, name) for name in systems), ha="center", va="top", fontsize=SMALL + 1, fontweight="bold")
    return figure


def _cloud(seed: int = 3, n: int = 22) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (n, 2)) @ np.array([[1.2, 0.6], [0.0, 0.7]]) + np.array([4.2, 4.6])


def _memory(axes: Axes, colour: str) -> None:
    points = _cloud()
    axes.scatter(*points.T, s=34, color=colour)
    query = np.array([8.3, 8.6])
    near = points[((points - query) ** 2).sum(1).argmin()]
    axes.plot(*np.stack([query, near]).T, "--", color=plots.LIMIT, lw=2)
    axes.plot(*query, "X", ms=13, color=plots.ANOMALOUS, mec="white")


def _distribution(axes: Axes, colour: str) -> None:
    for scale in (1.6, 3.2, 4.8):
        axes.add_patch(Ellipse((4.2, 4.6), 1.7 * scale, 0.85 * scale, angle=24, fill=False, lw=2, color=colour, alpha=1.15 - scale / 6))
    axes.plot(4.2, 4.6, "+", ms=12, mew=2.5, color=colour)
    axes.plot(8.3, 8.6, "X", ms=13, color=plots.ANOMALOUS, mec="white")


def _distillation(axes: Axes, colour: str) -> None:
    x = np.linspace(0.5, 9.5, 200)
    teacher = 5 + 1.8 * np.sin(x) + 0.5 * np.cos(2.3 * x)
    student = np.where(x < 6.5, teacher + 0.12 * np.sin(5 * x), teacher - 1.2 * (x - 6.5))
    axes.plot(x, teacher, color=plots.LIMIT, lw=3)
    axes.plot(x, student, color=colour, lw=3, ls="--")
    axes.axvspan(6.5, 9.6, ymin=0.45, ymax=1, color=plots.GREY, alpha=0.15, lw=0)
    axes.text(0.4, 8.8, "teacher", fontsize=SMALL - 1, color=plots.LIMIT)
    axes.text(0.4, 1.0, "student", fontsize=SMALL - 1, color=colour)


def _reconstruction(axes: Axes, colour: str) -> None:
    for left, high in ((0.3, 7.0), (2.2, 4.6), (4.5, 1.6), (6.4, 4.6), (8.3, 7.0)):
        axes.add_patch(Rectangle((left, 5 - high / 2), 1.3, high, facecolor=colour, alpha=0.35 if left != 4.5 else 1, lw=0))
    axes.add_patch(FancyArrowPatch((1.0, 9.2), (9.0, 9.2), arrowstyle="<->", mutation_scale=16, lw=2, color=plots.LIMIT))


def _generalist(axes: Axes, colour: str) -> None:
    for i, y in enumerate((7.6, 5.0, 2.4)):
        axes.add_patch(Rectangle((0.6, y - 1), 2.4, 2, facecolor=colour, alpha=0.35, lw=0))
        axes.add_patch(FancyArrowPatch((3.2, y), (5.6, 5 + 0.5 * (1 - i)), arrowstyle="-", lw=2, color=plots.LIMIT))
    axes.add_patch(Rectangle((6.2, 3.6), 3.2, 2.8, facecolor=plots.ANOMALOUS, alpha=0.9, lw=0))
    axes.text(7.8, 5, "?", ha="center", va="center", fontsize=plots.TYPE + 8, color="white", fontweight="bold")


def overview_figure(rows: Sequence[Row], metric: str = "image_auroc") -> Figure:
    """Return one metric of every system on every category: a mark a category, a bar at the mean.

    Args:
        rows: of the grid "systems".
        metric: of `rcp.reproduce.systems.METRICS`.
    """
    categories = list(dict.fromkeys((row.data, row.category) for row in rows))
    names = [name for name in (BASELINE, *NAMES) if values(rows, name, metric)]
    figure = plots.new_figure(12, 5.2)
    axes = figure.subplots()
    for x, name in enumerate(names):
        found, colour = values(rows, name, metric), COLOURS[idea_of(name)]
        mean = statistics.fmean(found.values())
        axes.plot([x - 0.36, x + 0.36], [mean, mean], color=colour, lw=5, solid_capstyle="butt")
        for i, key in enumerate(categories):
            own = [value for (data, category, *_), value in found.items() if (data, category) == key]
            if own:
                shift = (i - (len(categories) - 1) / 2) * 0.11
                axes.plot(x + shift, statistics.fmean(own), MARKS[i], color=colour, ms=8, mec="white", mew=0.8)
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels([SHORT.get(name, name) for name in names], rotation=30, ha="right", rotation_mode="anchor", fontsize=SMALL)
    axes.set_ylabel(f"{METRICS[metric]}, %", fontsize=plots.TYPE)
    handles = [Line2D([], [], ls="", marker=MARKS[i], color=plots.LIMIT, ms=8, label=_called(*key)) for i, key in enumerate(categories)]
    handles.append(Line2D([], [], color=plots.LIMIT, lw=5, label="mean"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=SMALL, frameon=False)
    plots.plain(axes)
    return figure


def _called(data: str, category: str) -> str:
    return category if data == "embedded" else f"{category} (MVTec AD)"


def explore_overview(rows: Sequence[Row]) -> widgets.Explorer:
    """Return the overview with a choice of the metric."""
    choice = ipywidgets.Dropdown(options=[(title, name) for name, title in METRICS.items()], description="metric")
    return widgets.explore(lambda metric: overview_figure(rows, metric), {"metric": choice}, alt="every system on every category")


def cost_figure(rows: Sequence[Row], cost: Mapping[str, Cost]) -> Figure:
    """Return image AUROC against milliseconds an image, and against seconds to fit, both logarithmic.

    Args:
        rows: of the grid "systems".
        cost: from `rcp.course.systems.costs`.
    """
    figure = plots.new_figure(12, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title, of in (
        (left, "an image, ms", lambda one: 1000 * one.image_seconds), (right, "fit, s", lambda one: one.fit_seconds),
    ):  # fmt: skip
        points = {name: (of(cost[name]), statistics.fmean(values(rows, name, "image_auroc").values())) for name in NAMES}
        for name, (x, y) in points.items():
            axes.plot(x, y, "o", ms=11, color=COLOURS[idea_of(name)])
            under = any(y < b + 1e-9 < y + 3 and x / 2 < a < 2 * x for other, (a, b) in points.items() if other != name)
            axes.annotate(SHORT.get(name, name), (x, y), xytext=(7, -17 if under else 5), textcoords="offset points", fontsize=SMALL)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.2, high * 2.2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel(title, fontsize=plots.TYPE)
        plots.plain(axes)
    left.set_ylabel("image AUROC, mean, %", fontsize=plots.TYPE)
    return figure


def spade_figure(by_k: Mapping[str, Mapping[str, float]], highlighted: Mapping[int, float]) -> Figure:
    """Return SPADE's image AUROC against K, a line a category, with what others found on MVTec AD.

    Args:
        by_k: category → K → image AUROC, as shares.
        highlighted: K → published image AUROC in %, mean of MVTec AD.
    """
    figure = plots.new_figure(11, 4.6)
    axes = figure.subplots()
    for i, (name, found) in enumerate(by_k.items()):
        axes.plot([int(k) for k in found], [100 * v for v in found.values()], f"{MARKS[i]}-", color=OF_CATEGORIES[i], lw=2.5, ms=8, label=name)
    axes.plot(list(highlighted), list(highlighted.values()), "*--", color=plots.LIMIT, ms=15, lw=2, label="re-implementations, MVTec AD")
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 3, 5, 10, 20, 50], ["1", "2", "3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("K, retrieved good images", fontsize=plots.TYPE)
    axes.set_ylabel("image AUROC, %", fontsize=plots.TYPE)
    axes.legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.plain(axes)
    return figure


def ablation_figure(groups: Mapping[str, Mapping[str, Sequence[Row]]]) -> Figure:
    """Return what each idea of a system is worth: a panel a system, a line a setting, a dot a seed and category, a bar at the mean.

    Args:
        groups: system → setting → rows; the first setting is the whole system. MKD's settings change its maps, so its panel shows
            pixel AUROC, the others image AUROC.
    """
    figure = plots.new_figure(12, 4.4 * ((len(groups) + 2) // 3))
    panels = figure.subplots((len(groups) + 2) // 3, 3, squeeze=False).ravel()
    for axes, (system, settings) in zip(panels, groups.items(), strict=False):
        metric = "pixel_auroc" if system == "MKD" else "image_auroc"
        for y, rows in enumerate(settings.values()):
            found = [100 * row.metrics[metric] for row in rows]
            colour = COLOURS[idea_of(system)] if y == 0 else plots.GREY
            mean = statistics.fmean(found)
            if y == 0:
                axes.axvline(mean, color=colour, lw=1.5, ls=":")
            axes.plot([mean, mean], [y - 0.34, y + 0.34], color=colour, lw=6, solid_capstyle="butt")
            axes.plot(found, [y] * len(found), "o", color=plots.LIMIT, ms=5, alpha=0.7)
        axes.set_yticks(range(len(settings)))
        axes.set_yticklabels(list(settings), fontsize=SMALL)
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set_xlim(min(40, min(100 * r.metrics[metric] for rs in settings.values() for r in rs) - 3), 102)
        axes.set_title(system, fontsize=plots.TYPE)
        axes.set_xlabel(f"{METRICS[metric]}, %", fontsize=SMALL)
        plots.plain(axes)
    for axes in panels[len(groups):]:
        axes.axis("off")
    return figure


def shots_figure(rows: Sequence[Row], metric: str = "image_auroc") -> Figure:
    """Return InCTRL's metric against the number of prompts, a line a category, with PatchCore on all good images as dashes.

    Args:
        rows: of the grid "systems".
        metric: of `rcp.reproduce.systems.METRICS`.
    """
    figure = plots.new_figure(11, 4.6)
    axes = figure.subplots()
    categories = list(dict.fromkeys((row.data, row.category) for row in rows))
    for i, (data, category) in enumerate(categories):
        lines = [[100 * r.metrics[metric] for r in choose(rows, method="InCTRL", varied={PROMPTS: k})
                  if (r.data, r.category) == (data, category)] for k in SHOTS]  # fmt: skip
        axes.errorbar(
            [k * 1.035 ** (i - (len(categories) - 1) / 2) for k in SHOTS], [statistics.fmean(own) for own in lines],
            [statistics.stdev(own) if len(own) > 1 else 0 for own in lines],
            fmt=f"{MARKS[i]}-", color=OF_CATEGORIES[i], lw=2, ms=8, capsize=4, label=_called(data, category),
        )  # fmt: skip
        theirs = [100 * r.metrics[metric] for r in choose(rows, method="PatchCore") if (r.data, r.category) == (data, category)]
        axes.plot([9.5, 11.5], [statistics.fmean(theirs)] * 2, "--", color=OF_CATEGORIES[i], lw=3)
    axes.set_xscale("log")
    axes.set_xticks([*SHOTS, 10.45], ["2", "4", "8", "PatchCore,\nall images"])
    axes.minorticks_off()
    axes.set_xlabel("InCTRL: good images of the category (prompts)", fontsize=plots.TYPE - 1)
    axes.set_ylabel(f"{METRICS[metric]}, %", fontsize=plots.TYPE)
    axes.legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plots.plain(axes)
    return figure


def read_maps(folder: Path | None = None) -> dict[str, Any]:
    """Return the committed maps of all systems.

    Args:
        folder: None: `results_folder()`.
    """
    return read_json((folder or results_folder()) / "systems_maps.json")


def maps_figure(content: Mapping[str, Any], category: Category, which: int) -> Figure:
    """Return one image with its true outline, and the map of every system on its own one colour scale.

    Args:
        content: from `read_maps`.
        category: whose images they are.
        which: of the images.
    """
    path = category.root / content["files"][which]
    sample = next(one for one in category.test if one.path == path)
    picture = GEOMETRY.apply(read_image(path))
    mask = np.zeros(picture.shape[:2], bool)
    if sample.mask is not None:
        mask = GEOMETRY.apply_mask(read_mask(sample.mask))
    panels = [(content["defects"][which].replace("_", " "), plots.LIMIT, picture)]
    high, wide = picture.shape[:2]
    for name, found in content["systems"].items():
        low, top = found["limits"]
        values = F.interpolate(torch.tensor(found["maps"][which])[None, None], (high, wide), mode="bilinear")[0, 0].numpy()
        panels.append((SHORT.get(name, name), COLOURS[idea_of(name)], HEAT(np.clip((values - low) / (top - low), 0, 1), bytes=True)[..., :3]))
    lines = -(-len(panels) // COLUMNS)
    outline = ndimage.binary_dilation(mask, iterations=2) ^ mask
    board = np.full((lines * (high + 2 * GAP), COLUMNS * (wide + GAP) - GAP, 3), 255, np.uint8)  # one picture: twelve would take a class's patience
    figure = plots.new_figure(12, 3.1 * lines)
    axes = figure.subplots()
    for i, (title, colour, pixels) in enumerate(panels):
        left, top = i % COLUMNS * (wide + GAP), i // COLUMNS * (high + 2 * GAP) + 2 * GAP
        board[top : top + high, left : left + wide] = np.where(outline[..., None], CONTOUR, pixels)
        axes.text(left + wide / 2, top - 5, title, ha="center", va="bottom", fontsize=plots.TYPE, color=colour)
    axes.imshow(board, interpolation="nearest")
    axes.axis("off")
    return figure


def explore_maps(content: Mapping[str, Any], category: Category) -> widgets.Explorer:
    """Return the maps of all systems with a choice of the image."""
    options = [(defect.replace("_", " "), i) for i, defect in enumerate(content["defects"])]
    choice = ipywidgets.SelectionSlider(options=options, value=content["defects"].index(SHOWN), description="image")
    return widgets.explore(
        lambda which: maps_figure(content, category, which), {"which": choice}, alt="one image, and the map of every system"
    )
