"""Figures, interactive twins and checks of notebook 11: how many good images are enough?

The measurements stand in `rcp.course.learning_runs`; what bad images among the good ones do, in `rcp.course.contamination`.
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from rcp import plots, widgets
from rcp.course.checks import Outcome, choice, function
from rcp.course.learning_runs import EQUAL, METRICS, PERCENT, TRAINED, Point, summary
from rcp.memory import nearest_neighbours
from rcp.scoring import Threshold, threshold

STYLE = {PERCENT: (plots.NORMAL, "o", "-"), EQUAL: (plots.ORANGE, "s", "--"), TRAINED: (plots.PINK, "^", "-.")}
RATES = (0.05, 0.01)
CATEGORY_STYLE = ((plots.NORMAL, "o", "-"), (plots.ORANGE, "s", "--"), (plots.GREEN, "^", "-."), (plots.PINK, "D", ":"))


def limit_of(images: int, rate: float) -> Threshold | None:
    """Return the `Threshold` from this many held-out images (its interval depends on their number alone), or None: too few."""
    try:
        return threshold(torch.arange(float(images)), rate)
    except ValueError:
        return None


# Figures


def toy_points(n: int, seed: int = 0) -> Tensor:
    """Return (n, 2) good points, uniform in the unit square; the first 4 are the same for every n."""
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


def toy_figure(n: int = 8, x: float = 1.25, y: float = 0.6, copied: bool = False) -> Figure:
    """Return good points in a square with a bad one beside it, and both kinds' nearest distances over n.

    Args:
        n: good points in the memory, 1 to 256.
        x, y: of the bad point.
        copied: whether one copy of the bad point is in the memory, too.
    """
    figure = Figure((12, 4.6))
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.15, top=0.87, wspace=0.2)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    memory, bad = toy_points(n), torch.tensor([[x, y]])
    shown = torch.cat([memory, bad]) if copied else memory
    distance, nearest = nearest_neighbours(bad, shown)
    left.plot(*memory.T, "o", color=plots.NORMAL, ms=8 if n < 65 else 5, label=f"{n} good in the memory")
    left.plot(x, y, "D", color=plots.ANOMALOUS, ms=12, label="a bad part")
    left.plot(*torch.stack([bad[0], shown[nearest[0, 0]]]).T, color=plots.LIMIT, lw=2.5)
    left.set(xlim=(-0.15, 1.75), ylim=(-0.15, 1.3), aspect="equal")
    left.set_title(f"nearest neighbour at {float(distance[0, 0]):.2f}" + (": its own copy" if copied else ""), fontsize=plots.TYPE)
    left.legend(fontsize=plots.TYPE - 3, frameon=False, loc="upper right")
    counts, fresh = [2**i for i in range(9)], toy_points(400, seed=1)
    everything = toy_points(256)
    good = [float(nearest_neighbours(fresh, everything[:k])[0].median()) for k in counts]
    wrong = [0.0 if copied else float(nearest_neighbours(bad, everything[:k])[0]) for k in counts]
    right.plot(counts, wrong, "D-", color=plots.ANOMALOUS, lw=3, ms=8, label="the bad part")
    right.plot(counts, good, "o--", color=plots.NORMAL, lw=3, ms=8, label="new good parts (median)")
    right.axvline(n, color="0.5", lw=1.5)
    right.set_ylim(-0.05, 1.3)
    right.set_ylabel("distance to the memory", fontsize=plots.TYPE - 1)
    right.set_title("good parts come ever nearer, a bad part does not", fontsize=plots.TYPE)
    _counts_axis(right, counts, "good points in the memory")
    right.legend(fontsize=plots.TYPE - 2, frameon=False)
    for axes in (left, right):
        plots.plain(axes)
    return figure


def toy_explorer() -> widgets.Explorer:
    """Return the twin of `toy_figure`: move n, click where the bad part lies, put a copy of it into the memory."""

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {} if touch.panel != 0 or touch.phase == "up" else {"x": round(touch.x, 3), "y": round(touch.y, 3)}

    controls = {
        "power": widgets.slider(0, 8, 3, "good points: 2 to the power of"),
        "copied": ipywidgets.Checkbox(value=False, description="one copy of the bad part is in the memory", indent=False),
    }
    return widgets.explore(
        lambda power, copied, x, y: toy_figure(2**power, x, y, copied), controls, state={"x": 1.25, "y": 0.6}, on_touch=moved,
        alt="good points in a square, a bad one, and nearest distances over the number of good points",
    )  # fmt: skip


def curves_figure(points: Sequence[Point]) -> Figure:
    """Return one category's curves over the number of good images: image AUROC and AUPRO, a line a system, ± deviation."""
    figure = plots.new_figure(12, 5)
    for axes, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
        for (_, system), cells in summary(points, metric).items():
            _curve(axes, cells, *STYLE[system], system)
        _counts_axis(axes, [n for n, _, _ in cells], "good images")
        axes.set_ylabel(f"{METRICS[metric]} (%)", fontsize=plots.TYPE)
        plots.plain(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=plots.TYPE - 1, frameon=False)
    return figure


def categories_figure(points: Sequence[Point], metric: str = "image_auroc", systems: Sequence[str] = (PERCENT, EQUAL)) -> Figure:
    """Return a panel a system, a curve a category."""
    figure = plots.new_figure(12, 5)
    table = summary(points, metric)
    panels = figure.subplots(1, len(systems), sharey=True, squeeze=False)[0]
    for axes, system in zip(panels, systems, strict=True):
        own = {category: cells for (category, name), cells in table.items() if name == system}
        for (category, cells), style in zip(own.items(), CATEGORY_STYLE, strict=False):
            _curve(axes, cells, *style, category)
        _counts_axis(axes, [n for n, _, _ in cells], "good images")
        axes.set_title(system.replace(", ", "\n"), fontsize=plots.TYPE)
        plots.plain(axes)
    panels[0].set_ylabel(f"{METRICS[metric]} (%)", fontsize=plots.TYPE)
    panels[-1].legend(fontsize=plots.TYPE - 1, frameon=False, loc="lower right")
    return figure


def limit_figure(images: int = 64, rate: float = 0.05) -> Figure:
    """Return what a false-alarm rate may really be, over the number of held-out good images.

    Args:
        images: marked in the figure.
        rate: asked for.
    """
    figure = Figure((11, 4.6))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.16, top=0.86)
    axes = figure.subplots()
    counts = np.unique(np.round(np.logspace(0.5, 3.3, 140)).astype(int))
    limits = {int(n): limit_of(int(n), rate) for n in counts}
    able = {n: limit for n, limit in limits.items() if limit is not None}
    axes.fill_between(list(able), *(np.array([limit.interval[i] for limit in able.values()]) * 100 for i in (0, 1)),
                      color=plots.NORMAL, alpha=0.25, label="95 % interval of the rate that the limit really has")  # fmt: skip
    axes.axhline(100 * rate, color=plots.LIMIT, lw=2, ls="--", label=f"asked for: at most {100 * rate:g} %")
    least = 1 / rate - 1
    axes.axvspan(counts[0], least, color="0.9", label=f"no limit possible: fewer than {np.ceil(least - 1e-9):.0f} images")
    here = limit_of(images, rate)
    if here is None:
        found = f"{images} images cannot support {100 * rate:g} %"
    else:
        low, high = (100 * share for share in here.interval)
        axes.plot([images, images], [low, high], "o-", color=plots.ANOMALOUS, lw=3, ms=9)
        found = f"{images} images: the rate is between {low:.1f} and {high:.1f} %"
    axes.axvline(images, color=plots.ANOMALOUS, lw=1)
    axes.set_xscale("log")
    axes.set_xlim(counts[0], counts[-1])
    axes.set_ylim(0, min(100, 500 * rate))
    axes.set_xticks([3, 10, 30, 100, 300, 1000], ["3", "10", "30", "100", "300", "1000"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("held-out good images", fontsize=plots.TYPE)
    axes.set_ylabel("false alarms (%)", fontsize=plots.TYPE)
    axes.set_title(found, fontsize=plots.TYPE)
    axes.legend(fontsize=plots.TYPE - 2, frameon=False, loc="upper right")
    plots.plain(axes)
    return figure


def limit_explorer() -> widgets.Explorer:
    """Return the twin of `limit_figure`: sliders for the number of images and the rate; the picture can be clicked."""

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {} if touch.phase == "up" else {"images": int(np.clip(round(touch.x), 4, 2000))}

    controls = {
        "images": widgets.slider(4, 2000, 64, "held-out good images"),
        "percent": widgets.slider(0.5, 20.0, 5.0, "false alarms asked for (%)", 0.5),
    }
    return widgets.explore(
        lambda images, percent: limit_figure(images, percent / 100), controls, on_touch=moved,
        alt="interval of the real false-alarm rate over the number of held-out images",
    )  # fmt: skip


# Checks


def check_1(given: object) -> Outcome:
    """Say whether a function from a false-alarm rate to the least number of held-out images is right."""

    def right(rate: float) -> int:
        return next(n for n in range(1, 10_000) if limit_of(n, rate) is not None)

    return function(
        "11.2", given, right, [(0.05,), (0.01,), (0.2,), (0.3,), (0.002,)],
        "With n images the highest score is exceeded by a new good one with probability 1 / (n + 1): so 0.05 "
        "takes 19, 0.01 takes 99.",
        [
            (lambda rate: int(np.ceil(1 / rate - 1e-9)),
                ("one too many: the new image counts, too. n old ones and the new one are n + 1 that are equally "
                "likely to be the highest.")),
            (lambda rate: int(1 / rate - 1 + 1e-9),
                "rounded down: the rate would be a little above what was asked for. Round up."),
            (lambda rate: 1 / rate - 1, "this is not always a whole number; round up."),
            (lambda rate: int(np.ceil(1 / rate - 1e-9)) + 1,
                "the new image is one of the n + 1, so n is one *less* than 1 / rate."),
        ],
        tolerance=1e-6,
        hint=
            "the highest of n held-out scores is exceeded by a new good image with probability 1 / (n + 1); that "
            "must be at most the rate.",
    )  # fmt: skip


def check_2(given: object) -> Outcome:
    """Say why few images with all their rows may beat few images with 1 % of them."""
    return choice(
        "11.1", given,
        {
            "rows":
                "The images are the same, only the memory is larger: what was missing were rows, not photographs. "
                "With few images, keep a larger share.",
            "images": "the two curves were given the very same images at every point; only the number of rows differs.",
            "noise": "look at the bars: in the middle of the curve the two systems lie further apart than their deviations.",
            "test": "both were judged on the same test images.",
        },
        "rows",
    )  # fmt: skip


# Helpers


def _curve(axes: Axes, cells: Sequence[tuple[int, float, float]], colour: str, mark: str, style: str, label: str) -> None:
    counts, means, deviations = (np.array(column) for column in zip(*cells, strict=True))
    axes.errorbar(counts, means, deviations, fmt=mark, ls=style, color=colour, lw=2.5, ms=8, capsize=4, elinewidth=1.5, label=label)


def _counts_axis(axes: Axes, counts: Sequence[int], label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label, fontsize=plots.TYPE)
