"""Notebook 04 on toys: discs that cover, what greedy promises, three ways to choose centres; and the exercises.

The figures of real patches, and of stale bounds, stand in `rcp.course.coreset_patches`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from scipy.cluster.vq import kmeans2
from torch import Tensor

from rcp import plots, widgets
from rcp.coreset import Coreset, coreset_size, covering_radius, greedy_coreset
from rcp.course import checks
from rcp.distances import distances
from rcp.plots import ANOMALOUS, GREEN, LIMIT, NORMAL, ORANGE, PINK, TYPE

MOST = 24  # picks of the toy that the explorers go up to
STYLES = {  # method → colour, marker, line
    "random": (ORANGE, "s", ":"),
    "greedy": (NORMAL, "o", "-"),
    "k-means": (GREEN, "^", "--"),
    "k-means, snapped": (PINK, "D", "-."),
}
FULL, HALF = "r: they cover all points", "r/2: they do not overlap"


def toy() -> Tensor:
    """Return the toy of notebook 04: 34 points of a dense cluster, 20 of a sparse one, then 6 that stand apart.

    Returns:
        (60, 2) float64, with two decimals, all distinct.
    """
    rng = np.random.default_rng(4)
    dense = rng.normal((2.4, 2.8), 0.45, (34, 2))
    sparse = rng.normal((7.2, 5.6), 1.2, (20, 2))
    apart = [(0.6, 7.4), (10.4, 0.9), (5.2, 0.5), (10.6, 8.6), (3.4, 6.6), (0.5, 0.6)]
    return torch.from_numpy(np.round(np.concatenate([dense, sparse, apart]), 2))


def kmeans(rows: Tensor, k: int, seed: int, passes: int = 10) -> Tensor:
    """Return the centres of k-means, as faiss computes them: each is the mean of the rows that are nearest to it.

    Args:
        rows: (N, D) floating point; all are used.
        k: how many centres.
        seed: which rows it begins with.
        passes: how often rows are assigned and means taken.

    Returns:
        (k, D) float32. They are means, not rows.
    """
    import faiss  # here and not above: on macOS it and torch each bring an OpenMP

    learner = faiss.Kmeans(rows.shape[1], k, niter=passes, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(rows))
    learner.train(rows.float().contiguous().numpy())
    return torch.from_numpy(learner.centroids)


# Greedy, pick by pick


def line_figure(points: Tensor, coreset: Coreset, steps: int = 4) -> Figure:
    """Return points on a line, a row a step: what is picked, and how far every point is from its nearest pick.

    Args:
        points: (N, 1) distinct.
        coreset: its picks.
        steps: how many picks to show.
    """
    figure = plots.new_figure(11, 1.15 * steps + 0.6)
    for step, axes in enumerate(figure.subplots(steps, 1, sharex=True), start=1):
        picks, radius = coreset.indices[:step], float(coreset.radii[step - 1])
        near = distances(points, points[picks]).amin(1)  # (N,)
        axes.axhline(0, color="#bbbbbb", lw=1, zorder=0)
        for c in points[picks, 0].tolist():
            axes.plot([c - radius, c + radius], [0, 0], color=NORMAL, lw=9, alpha=0.18, solid_capstyle="butt")
        _dots(axes, torch.cat([points, 0 * points], 1), picks, 130)
        for x, d in zip(points[:, 0].tolist(), near.tolist(), strict=True):
            axes.annotate(f"{d:g}", (x, 0), (0, 13), textcoords="offset points", ha="center", fontsize=TYPE - 2)
        word = f"{step} pick{'s' * (step > 1)}\nradius {radius:g}"
        axes.set_ylabel(word, rotation=0, ha="right", va="center", fontsize=TYPE - 1)
        axes.set(ylim=(-0.6, 1), yticks=[], xlim=(float(points.min()) - 0.6, float(points.max()) + 0.6))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=TYPE - 2)
    axes.set_xlabel("position; above each point: distance to its nearest pick", fontsize=TYPE - 1)
    return figure


def steps_figure(points: Tensor, coreset: Coreset, steps: Sequence[int] = (1, 3, 6, 12)) -> Figure:
    """Return the toy after some numbers of picks, with discs of the covering radius.

    Args:
        points: (N, 2).
        coreset: its picks, at least as many as the last step.
        steps: numbers of picks.
    """
    figure = plots.new_figure(12, 3.2)
    for axes, step in zip(figure.subplots(1, len(steps)), steps, strict=True):
        _cover(axes, points, coreset, step)
        axes.set_title(f"{step} pick{'s' * (step > 1)}, r = {float(coreset.radii[step - 1]):.2f}", fontsize=TYPE)
    return figure


def step_figure(points: Tensor, coreset: Coreset, picks: int, discs: str = FULL) -> Figure:
    """Return the toy after some picks beside the covering radius over all picks.

    Args:
        points: (N, 2).
        coreset: more than `picks` picks.
        picks: how many to show.
        discs: `FULL`, of the covering radius; or `HALF`, of half of it, around the picks and the next one.
    """
    figure = plots.new_figure(10.6, 5.5)
    left, right = figure.subplots(1, 2, width_ratios=(6.4, 3.6))
    radius = float(coreset.radii[picks - 1])
    _cover(left, points, coreset, picks, half=discs == HALF)
    many = f"{picks} pick{'s' * (picks > 1)}"
    title = f"{many}: every point within r = {radius:.2f}"
    if discs == HALF:
        title = f"{picks + 1} discs of r/2 = {radius / 2:.2f}, none overlap"
    left.set_title(title, fontsize=TYPE)
    radii = coreset.radii.numpy()
    right.plot(range(1, len(radii) + 1), radii, "o-", color=NORMAL, ms=5, label="greedy's r")
    right.plot(range(1, len(radii) + 1), radii / 2, "--", color=LIMIT, lw=1.5, label="r/2: no choice is below")
    right.plot([picks], [radius], "*", color=ANOMALOUS, ms=18, label="now")
    right.set(ylim=(0, float(radii.max()) * 1.08), xlim=(0, len(radii) + 1))
    right.set_xlabel("picks", fontsize=TYPE - 1)
    right.set_ylabel("covering radius", fontsize=TYPE - 1)
    right.legend(fontsize=TYPE - 2, frameon=False)
    plots.plain(right)
    return figure


def steps_explorer(points: Tensor) -> widgets.Explorer:
    """Return the toy with a slider (and a play button) over the picks; a click on a point makes it the start.

    A click on the curve goes to that number of picks. The static twin is `steps_figure`.

    Args:
        points: (N, 2), N > `MOST`.
    """
    position, button = widgets.player(MOST, "picks", interval=700)
    for widget in (button, position):
        widget.min = widget.value = 1
    discs = ipywidgets.ToggleButtons(options=[FULL, HALF], description="discs of", style={"button_width": "190px"})
    picked = lru_cache(maxsize=len(points))(partial(_from, points))

    def touched(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.phase != "down":
            return {}
        if touch.panel == 1:
            return {"picks": int(np.clip(round(touch.x), 1, MOST))}
        return {"start": nearest_to(points, touch.x, touch.y)}

    explorer = widgets.explore(
        lambda picks, discs, start: step_figure(points, picked(start), picks, discs),
        {"picks": position, "discs": discs}, state={"start": 0}, on_touch=touched,
        alt="points with discs around those picked so far, and the covering radius as a curve",
    )  # fmt: skip
    explorer.children = (button, *explorer.children)
    return explorer


def nearest_to(points: Tensor, x: float, y: float) -> int:
    """Return which of (N, 2) points is nearest to a place."""
    return int((points - points.new_tensor([x, y])).square().sum(1).argmin())


# What greedy promises


def proof_figure(points: Tensor, coreset: Coreset, picks: int = 5) -> Figure:
    """Return the pigeonhole argument: discs of r around the picks cover all; those of r/2, with the next pick, are disjoint.

    Args:
        points: (N, 2).
        coreset: more than `picks` picks.
        picks: M of the argument.
    """
    figure = plots.new_figure(12, 5)
    for axes, half in zip(figure.subplots(1, 2), (False, True), strict=True):
        _cover(axes, points, coreset, picks, half=half)
        text = f"{picks + 1} discs of r/2, none overlap" if half else f"{picks} discs of r cover all points"
        axes.set_title(text, fontsize=TYPE)
    return figure


def factor_figure(ratios: np.ndarray) -> Figure:
    """Return a histogram of greedy's radius over the best possible one, with the limits 1 and 2.

    Args:
        ratios: (n,), at least 1.
    """
    figure = plots.new_figure(9, 3.6)
    axes = figure.subplots()
    axes.hist(ratios, np.linspace(1, 2, 31), color=NORMAL, alpha=0.8)
    axes.axvline(2, color=LIMIT, ls="--", lw=2)
    place = axes.get_xaxis_transform()
    axes.text(1.985, 0.95, "proved: never above 2", transform=place, ha="right", va="top", fontsize=TYPE - 1)
    title = f"greedy is {np.median(ratios):.2f} times the optimum at the median, {ratios.max():.2f} at worst"
    axes.set_title(title, fontsize=TYPE)
    axes.set_xlabel("greedy's radius / best radius of all subsets", fontsize=TYPE - 1)
    axes.set_ylabel("toys and starts", fontsize=TYPE - 1)
    axes.set_xlim(0.98, 2.03)
    plots.plain(axes)
    return figure


# Random, greedy, k-means


def methods_figure(points: Tensor, size: int = 6, seed: int = 0) -> Figure:
    """Return the toy covered by random rows, by greedy picks and by means, each with its radius and its mean distance.

    Args:
        points: (N, 2).
        size: centres of each.
        seed: of the random rows, of k-means, and of greedy's start.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(points), generator=generator)
    greedy = greedy_coreset(points, size=size, projection=None, start=int(order[0]))
    chosen = {
        "random": points[order[:size]],
        "greedy": points[greedy.indices],
        "k-means": torch.from_numpy(kmeans2(points.numpy(), size, minit="points", rng=seed)[0]),  # faiss is slow on few
    }
    figure = plots.new_figure(12, 4.4)
    for axes, (method, centres) in zip(figure.subplots(1, 3), chosen.items(), strict=True):
        radius, mean = covering_radius(points, centres), float(distances(points, centres).amin(1).mean())
        colour, marker, _ = STYLES[method]
        _stage(axes, points)
        _discs(axes, centres, radius, colour)
        axes.scatter(*points.T, s=18, color="#666666")
        axes.scatter(*centres.T, s=110, color=colour, marker=marker, edgecolor="black", zorder=4)
        axes.set_title(f"{method}\nlargest {radius:.2f}, mean {mean:.2f}", fontsize=TYPE)
    return figure


def methods_explorer(points: Tensor) -> widgets.Explorer:
    """Return `methods_figure` with sliders for the number of centres and the seed."""
    return widgets.explore(
        partial(methods_figure, points),
        {"size": widgets.slider(1, MOST, 6, "centres"), "seed": widgets.slider(0, 9, 0, "seed")},
        alt="the same points covered by random rows, by greedy picks and by means",
    )  # fmt: skip


# The exercises


def check_1(given: Callable[[Tensor, list[int]], int]) -> checks.Outcome:
    """Return whether a function makes one greedy step."""
    points = toy()
    cases = [(points, picks) for picks in ([3], [40, 3], [57, 12, 44, 3], [5, 55, 20, 59, 36])]
    farthest = "it is the row that is farthest from the picks, by"
    least = "What counts is the nearest pick: a minimum."
    mistakes = [
        (_step(lambda d: d.amin(1), "nearest"), "that is the row *nearest* to the picks; the farthest one is needed."),
        (_step(lambda d: -d.amin(1), "plain"), "that is a row picked already: its distance 0 is the smallest of all."),
        (_step(lambda d: d[:, -1], "plain"), f"{farthest} the last pick alone. The minimum over *all* picks is missing."),
        (_step(lambda d: d[:, 0], "plain"), f"{farthest} the first pick alone. The minimum over *all* picks is missing."),
        (_step(lambda d: d.sum(1), "plain"), f"{farthest} the *sum* of distances. {least}"),
        (_step(lambda d: d.amax(1), "plain"), f"{farthest} the *largest* distance. {least}"),
    ]
    because = "The minimum over the picks says how well a row is covered; the argmax of these takes the worst."
    return checks.function("4.1", given, _next, cases, because, mistakes)


def check_2(given: Callable[[Tensor, int, int], list[int]]) -> checks.Outcome:
    """Return whether a function makes all picks, the start among them."""
    points = toy()
    cases = [(points, 0, 1), (points, 7, 5), (points, 40, 12)]
    mistakes = [
        (lambda x, start, size: _picks(x, start, size + 1)[1:], "the *start is left out*: so many rows, but the first is not among them."),
        (lambda x, start, size: _picks(x, start, size)[1:], "the *start is left out*, and one row is missing."),
        (lambda x, start, size: _picks(x, start, size + 1), "one row too many: the start counts as one of the `size`."),
        (lambda x, start, size: [start] * size, "every pick is the start: append each new one before the next step."),
        (lambda x, start, size: _picks(x, 0, size), "your picks begin at row 0, whatever the start."),
    ]  # fmt: skip
    because = "The start is a normal patch like the others, and as long as it is kept, it covers its neighbours."
    return checks.function("4.2", given, _picks, cases, because, mistakes)


def check_3(given: str) -> checks.Outcome:
    """Return what a choice says: which memory does not change when one good image is copied 999 times."""
    options = {
        "greedy": "A copy lies at distance 0 of its twin, so it never becomes the farthest row. Greedy sees *which* patches "
        "there are, not how many of each.",
        "random": "nearly every random row would then come from that image: of 1,063 images 1,000 would be the same.",
        "k-means": "it lowers the mean (squared) distance, which that image would dominate: centres would move there.",
        "all": "two of the three go by how *often* a patch occurs, and that changes.",
        "none": "for one of the three, a copy at distance 0 changes nothing. Which one looks only at the farthest row?",
    }  # fmt: skip
    return checks.choice("4.3", given, options, "greedy")


def check_4(given: Sequence[float]) -> checks.Outcome:
    """Return whether rows and megabytes (to 1 %) of a memory are right: 280 images, 40 × 40 patches, 1 %, 1536 float32."""
    n, width, unit = 280 * 40 * 40, 1536, 4 / 1e6
    m, small = coreset_size(n, 0.01), coreset_size(280 * 28 * 28, 0.01)
    mistakes = [
        ([m, m * width / 1e6], "every number takes 4 bytes in float32."),
        ([m, m * 128 * unit], "the projection is only for *picking*; the memory keeps the rows themselves: 1536 numbers."),
        ([m, n * width * unit], "these are the bytes of *all* rows; the memory keeps 1 % of them."),
        ([n, n * width * unit], "this is *every* row; the memory keeps 1 % of them."),
        ([small, small * width * unit], "28 × 28 patches are those of 224 pixels; at 320 pixels there are 40 × 40."),
        ([m, m * width * 4], "that is in bytes; the question was for megabytes (10^6 bytes)."),
        ([m, m * width * 4 / 2**20], "a megabyte has 10^6 bytes here; 2^20 bytes are a mebibyte."),
    ]
    because = f"{n:,} rows, of which {m:,} stay: {m * width * unit:.2f} MB instead of {n * width * unit:,.0f} MB."
    hint = "give two numbers, [rows, megabytes]; megabytes are rows × 1536 × 4 / 10⁶."
    right = [m, m * width * unit]
    for rows, size in (right, *(wrong for wrong, _ in mistakes)):  # megabytes may be rounded, rows may not
        if checks.same(given, [rows, size], 0.01) and given[0] == rows and abs(given[1] - size) <= 0.01 * size:
            given = [rows, size]
    return checks.answer("4.4", given, right, because, mistakes, tolerance=1e-5, hint=hint)


# What the above share


def _from(points: Tensor, start: int, size: int | None = None) -> Coreset:
    """The greedy picks from a start, one more than the explorer shows."""
    return greedy_coreset(points, size=size or MOST, projection=None, start=start)


def _picks(points: Tensor, start: int, size: int) -> list[int]:
    return _from(points, start, size).indices.tolist()


def _next(points: Tensor, picks: list[int]) -> int:
    return int(distances(points, points[picks]).amin(1).argmax())


def _step(far: Callable[[Tensor], Tensor], how: str) -> Callable[[Tensor, list[int]], int]:
    """A step that goes wrong: by another notion of far, or to the nearest row that is not picked."""

    def step(points: Tensor, picks: list[int]) -> int:
        d = far(distances(points, points[picks]))  # (N,)
        if how == "nearest":
            d = -d
            d[picks] = -torch.inf
        return int(d.argmax())

    return step


def _cover(axes: Axes, points: Tensor, coreset: Coreset, picks: int, *, half: bool = False) -> None:
    """The toy with the first picks, their discs, the newest pick, and the farthest point, which comes next."""
    chosen, radius = coreset.indices[:picks], float(coreset.radii[picks - 1])
    near, which = distances(points, points[chosen]).min(1)
    far = int(near.argmax())
    _stage(axes, points)
    if half:
        _discs(axes, points[[*chosen.tolist(), far]], radius / 2, GREEN)
    else:
        _discs(axes, points[chosen], radius, NORMAL)
    _dots(axes, points, chosen, 90)
    line = torch.stack([points[far], points[chosen[which[far]]]])
    axes.plot(*line.T, "--", color=LIMIT, lw=1.5)
    axes.scatter(*points[far], s=150, facecolor="none", edgecolor=LIMIT, linewidth=2, zorder=4)
    if picks > 1:
        axes.scatter(*points[chosen[-1]], s=260, marker="*", color=ANOMALOUS, edgecolor="black", zorder=5)


def _dots(axes: Axes, points: Tensor, picks: Tensor, size: float) -> None:
    axes.scatter(*points.T, s=size / 4, color="#666666", zorder=2)
    axes.scatter(*points[picks].T, s=size, marker="s", color=NORMAL, edgecolor="black", zorder=3)


def _discs(axes: Axes, centres: Tensor, radius: float, colour: str) -> None:
    size = np.full(len(centres), 2 * radius)
    for face, edge, alpha, order in ((colour, "none", 0.13, 0), ("none", colour, 0.6, 1)):
        discs = EllipseCollection(
            size, size, np.zeros(len(size)), units="xy", offsets=centres.numpy(), offset_transform=axes.transData,
            facecolor=face, edgecolor=edge, alpha=alpha, linewidth=1.2, zorder=order,
        )  # fmt: skip
        axes.add_collection(discs)


def _stage(axes: Axes, points: Tensor) -> None:
    low, high = (points.amin(0) - 0.8).tolist(), (points.amax(0) + 0.8).tolist()
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#cccccc")
