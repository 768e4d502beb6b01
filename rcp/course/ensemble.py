"""Figures and interactive twins of notebook 06: scores of several feature spaces, made comparable.

What an ensemble gains is measured in `rcp.course.ensemble_gains`; the exercises are checked in `rcp.course.ensemble_checks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from rcp import comparison, metrics, plots, widgets
from rcp.calibration import Calibration
from rcp.comparison import Row
from rcp.course.ensemble_checks import SEVEN, robust
from rcp.course.ensemble_gains import SYSTEMS
from rcp.data import Split
from rcp.evaluation import Result
from rcp.images import read_image, read_mask
from rcp.scoring import modified_z_score

COLOURS, STYLES = (plots.NORMAL, plots.ORANGE, plots.GREEN), (":", "--", "-.")
MEAN, Z = plots.PINK, plots.LIMIT  # of the raw mean and of the mean z-score
WAYS = {"raw": "raw distances", "z": "modified z-scores", "rank": "ranks among the test images"}
FACTORS = np.logspace(-2, 2, 81)
Parts = Mapping[str, tuple[Tensor, Calibration]]  # name → (image scores of the test images, held-out normals)


# Figures


def members_figure(labels: np.ndarray, parts: Parts) -> Figure:
    """Return the members' image scores on one axis of raw distances: three units, three spreads.

    Args:
        labels: (n,) 0 normal, 1 anomalous.
        parts: name → (image scores, held-out normals).
    """
    figure = plots.new_figure(11, 6)
    panels = figure.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
    everything = torch.cat([scores for scores, _ in parts.values()])
    bins = np.linspace(float(everything.min()), float(everything.max()), 60)
    for axes, (name, (scores, normal)) in zip(panels, parts.items(), strict=True):
        _two_classes(axes, labels, scores.numpy(), bins)
        low, wide = normal.image_median, 1.4826 * normal.image_mad
        axes.axvspan(low - wide, low + wide, color="0.85", zorder=0)
        axes.axvline(low, color=plots.LIMIT, lw=2, ls="--", label="held-out normals: median ± 1.4826 MAD")
        found = f"image AUROC {metrics.auroc(labels, scores.numpy()):.3f}; held-out normals {low:.1f} ± {wide:.2f}"
        axes.set_title(f"{name}: {found}", fontsize=plots.TYPE - 1, loc="left")
        axes.set_ylabel("images", fontsize=plots.TYPE - 1)
        _plain(axes)
    panels[0].legend(fontsize=plots.TYPE - 3, frameon=False)
    panels[-1].set_xlabel("image score (L2 distance of the worst patch, raw)", fontsize=plots.TYPE)
    return figure


def scale_figure(labels: np.ndarray, parts: Parts, member: str = "Lite0", factor: float = 1.0) -> Figure:
    """Return who decides in the raw mean when one member's unit is changed, and what that does to the AUROC.

    Args:
        labels, parts: as in `members_figure`.
        member: whose scores are multiplied.
        factor: by how much, > 0.
    """
    return _scale(labels, parts, _scale_curves(labels, parts, member), member, factor)


def scale_explorer(labels: np.ndarray, parts: Parts) -> widgets.Explorer:
    """Return the twin of `scale_figure`: choose a member, and move or drag its factor."""
    curves = {name: _scale_curves(labels, parts, name) for name in parts}

    def draw(member: str, exponent: float) -> Figure:
        return _scale(labels, parts, curves[member], member, 10**exponent)

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.panel != 1 or touch.phase == "up" or touch.x <= 0:
            return {}
        return {"exponent": float(np.clip(np.round(np.log10(touch.x), 2), -2, 2))}

    controls = {
        "member": _dropdown(list(parts), "multiply the scores of"),
        "exponent": widgets.slider(-2.0, 2.0, 0.0, "by 10 to the power of", 0.05),
    }
    return widgets.explore(
        draw, controls, on_touch=moved, alt="bars: rank correlation of the mean with each member; curves: AUROC over the factor"
    )  # fmt: skip


def robust_figure(values: Tensor = SEVEN) -> Figure:
    """Return numbers on a line with two summaries: mean ± standard deviation, and median ± 1.4826 MAD.

    Args:
        values: (n,), n >= 2; the last one is drawn as the outlier.
    """
    figure = Figure((11, 3.3))
    figure.subplots_adjust(left=0.27, right=0.98, bottom=0.2, top=0.86)
    axes = figure.subplots()
    numbers = values.numpy()
    axes.plot(numbers[:-1], np.full(len(numbers) - 1, 2.0), "o", ms=11, color=plots.NORMAL)
    axes.plot(numbers[-1], 2.0, "D", ms=13, color=plots.ANOMALOUS)
    centre, wide = robust(numbers)
    for y, (middle, half), colour, mark in ((1, (numbers.mean(), numbers.std(ddof=1)), MEAN, "s"), (0, (centre, wide), Z, "^")):
        axes.errorbar(middle, y, xerr=half, fmt=mark, ms=11, color=colour, capsize=8, lw=3)
        axes.text(middle, y + 0.22, f"{middle:.2f} ± {half:.2f}", ha="center", fontsize=plots.TYPE - 1, color=colour)
    axes.set_yticks([2, 1, 0], ["scores (◆ the outlier)", "mean ± deviation", "median ± 1.4826 MAD"], fontsize=plots.TYPE - 1)
    axes.set_ylim(-0.5, 2.5)
    axes.set_xlim(-5, 45)
    axes.set_xlabel("score", fontsize=plots.TYPE - 1)
    axes.set_title("one outlier moves the mean; the median does not follow it", fontsize=plots.TYPE)
    _plain(axes)
    return figure


def robust_explorer(values: Tensor = SEVEN) -> widgets.Explorer:
    """Return the twin of `robust_figure`: the outlier follows a slider, and the pointer."""

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {} if touch.phase == "up" else {"outlier": float(np.clip(round(touch.x, 1), 0, 40))}

    return widgets.explore(
        lambda outlier: robust_figure(torch.cat([values[:-1], torch.tensor([outlier])])),
        {"outlier": widgets.slider(0.0, 40.0, float(values[-1]), "the outlier", 0.5)},
        on_touch=moved, alt="seven numbers, their mean with deviation, their median with MAD",
    )  # fmt: skip


def illusion_figure(parts: Mapping[str, Sequence[Tensor]]) -> Figure:
    """Return what normal images score: those in the memory, the same held out, and new ones.

    Args:
        parts: detector → image scores of (training images under the memory that holds them, the same held out, good test images).
    """
    kinds = ("training images, in the memory", "the same images, held out", "good test images")
    figure = plots.new_figure(12, 4.8)
    axes = figure.subplots()
    for m, columns in enumerate(parts.values()):
        for k, (scores, colour, mark) in enumerate(zip(columns, (plots.SKY, plots.NORMAL, plots.GREEN), "vo^", strict=True)):
            x = 4 * m + k + np.linspace(-0.28, 0.28, len(scores))
            axes.plot(x, scores.numpy(), mark, color=colour, ms=5, alpha=0.6, label=None if m else kinds[k])
            middle = float(np.median(scores))
            axes.plot([4 * m + k - 0.4, 4 * m + k + 0.4], [middle, middle], color=plots.LIMIT, lw=3)
            axes.annotate(f"{middle:.1f}", (4 * m + k, float(scores.max())), (0, 5), textcoords="offset points", ha="center",
                          fontsize=plots.TYPE - 2)  # fmt: skip
    axes.set_xticks([4 * m + 1 for m in range(len(parts))], list(parts), fontsize=plots.TYPE)
    axes.margins(y=0.1)
    axes.set_ylabel("image score (L2 distance)", fontsize=plots.TYPE - 1)
    axes.set_title("what normal images score (bars and numbers: medians)", fontsize=plots.TYPE)
    figure.legend(loc="outside lower center", ncols=3, fontsize=plots.TYPE - 2, frameon=False, markerscale=2)
    _plain(axes, x=False)
    return figure


def combine(parts: Parts, way: str, weights: Sequence[float]) -> np.ndarray:
    """Return (n,) the weighted mean of the members' scores.

    Args:
        parts: name → (image scores, held-out normals).
        way: "raw", "z" or "rank".
        weights: one a member, not all 0.
    """
    columns = []
    for scores, normal in parts.values():
        if way == "z":
            scores = modified_z_score(scores, normal.image_median, normal.image_mad)
        columns.append(rankdata(scores.numpy()) if way == "rank" else scores.numpy())
    return np.average(columns, axis=0, weights=weights)


def combine_figure(labels: np.ndarray, parts: Parts, way: str = "z", weights: Sequence[float] = (1.0, 1.0, 1.0)) -> Figure:
    """Return the histogram of the combined score, and the AUROC beside those of the members.

    Args:
        labels, parts: as in `members_figure`.
        way, weights: as in `combine`; weights that are all 0 leave the figure empty.
    """
    figure = Figure((12, 4.4))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.15, top=0.88, wspace=0.3)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    alone = [metrics.auroc(labels, scores.numpy()) for scores, _ in parts.values()]
    names, values = list(parts), alone
    if sum(weights) > 0:
        score = combine(parts, way, weights)
        values, names = [*alone, metrics.auroc(labels, score)], [*names, "together"]
        _two_classes(left, labels, score, np.linspace(score.min(), score.max() + 1e-9, 31))
        left.legend(fontsize=plots.TYPE - 2, frameon=False)
        shares = " : ".join(f"{w:.2g}" for w in weights)
        left.set_title(f"mean of {WAYS[way]}, weights {shares}", fontsize=plots.TYPE - 1)
    else:
        left.set_title("all weights are 0: no member is asked", fontsize=plots.TYPE - 1)
    left.set_xlabel({"raw": "L2 distance", "z": "robust deviations above normal", "rank": "rank"}[way], fontsize=plots.TYPE - 1)
    left.set_ylabel("images", fontsize=plots.TYPE - 1)
    bars = right.barh(names, values, color=[*COLOURS[: len(parts)], Z][: len(names)], height=0.6)
    right.bar_label(bars, [f"{v:.3f}" for v in values], fontsize=plots.TYPE - 1, padding=4)
    right.set_xlim(min(0.8, min(values) - 0.02), 1.03)
    right.invert_yaxis()
    right.set_xlabel("image AUROC (axis does not start at 0)", fontsize=plots.TYPE - 2)
    for axes in (left, right):
        _plain(axes)
    right.tick_params(axis="y", labelsize=plots.TYPE - 1)
    return figure


def combine_explorer(labels: np.ndarray, parts: Parts) -> widgets.Explorer:
    """Return the twin of `combine_figure`: a slider a weight, and the way of combining."""
    names = list(parts)

    def draw(way: str, **weights: float) -> Figure:
        return combine_figure(labels, parts, way, [weights[name] for name in names])

    controls = {"way": _dropdown([(text, way) for way, text in WAYS.items()], "average the", "z")}
    controls |= {name: widgets.slider(0.0, 1.0, 1.0, f"weight of {name}", 0.05) for name in names}
    return widgets.explore(draw, controls, alt="histogram of the combined score, and AUROC of members and combination")


def maps_figure(test: Split, results: Mapping[str, tuple[Result, plots.Limits]], position: int) -> Figure:
    """Return one test image with its true outline beside the heat map of every member and of the ensemble.

    Args:
        test: the split that was scored.
        results: title → (`Result`, colour limits from held-out normals).
        position: among the scored images.
    """
    first = next(iter(results.values()))[0]
    sample, geometry = test[first.scores.indices[position]], first.scores.geometry
    image = read_image(sample.path)
    figure = Figure((12, 3.3))
    figure.subplots_adjust(left=0.005, right=0.96, bottom=0.02, top=0.8, wspace=0.22)
    panels = figure.subplots(1, 1 + len(results))
    panels[0].imshow(geometry.apply(image))
    if sample.mask is not None:
        panels[0].contour(geometry.apply_mask(read_mask(sample.mask, image.shape[:2])), [0.5], colors=[plots.CONTOUR], linewidths=2)
    panels[0].set_title(sample.defect.replace("_", " "), fontsize=plots.TYPE - 1)
    for axes, (title, (result, limits)) in zip(panels[1:], results.items(), strict=True):
        low, high = limits or (None, None)
        drawn = axes.imshow(result.scores.maps[position].numpy(), cmap=plots.HEAT, vmin=low, vmax=high)
        axes.set_title(f"{title}\n{float(result.scores.image_scores[position]):.1f}", fontsize=plots.TYPE - 1)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=14, pad=0.03)
        bar.ax.tick_params(labelsize=plots.TYPE - 3)
    for axes in panels:
        plots.bare(axes)
    return figure


def maps_explorer(test: Split, results: Mapping[str, tuple[Result, plots.Limits]]) -> widgets.Explorer:
    """Return the twin of `maps_figure`: a slider over the test images, from the lowest to the highest score of the ensemble."""
    order = np.argsort(list(results.values())[-1][0].scores.image_scores.numpy(), kind="stable")
    rank = widgets.slider(0, len(order) - 1, len(order) - 1, "rank by the ensemble's score")
    return widgets.explore(
        lambda rank: maps_figure(test, results, int(order[rank])), {"rank": rank}, alt="a test image and four heat maps"
    )


def gains_figure(rows: Sequence[Row], metric: str = "image_auroc") -> Figure:
    """Return every system's metric in each category: a dot a draw, a bar their mean.

    Args:
        rows: from `gains` or `measured`.
        metric: image_auroc, pixel_auroc or aupro.
    """
    names = list(dict.fromkeys(row.category for row in rows))
    systems = [system for system in SYSTEMS if any(row.detector == system for row in rows)]
    figure = plots.new_figure(12, 5)
    axes = figure.subplots()
    colours = dict(zip(SYSTEMS, (plots.SKY, plots.ORANGE, plots.GREEN, MEAN, Z), strict=True))
    marks = dict(zip(SYSTEMS, "oDs^*", strict=True))
    step = len(systems) + 1.5
    for c, name in enumerate(names):
        for s, system in enumerate(systems):
            values = [100 * row.metrics[metric] for row in rows if (row.category, row.detector) == (name, system)]
            x = c * step + s
            axes.plot(x + np.linspace(-0.25, 0.25, len(values)), values, marks[system], color=colours[system], ms=8, alpha=0.75,
                      label=None if c else system)  # fmt: skip
            axes.plot([x - 0.42, x + 0.42], [np.mean(values)] * 2, color=colours[system], lw=4)
    axes.set_xticks([c * step + (len(systems) - 1) / 2 for c in range(len(names))], names, fontsize=plots.TYPE)
    axes.set_ylabel(f"{comparison.SHOWN[metric]} (%)", fontsize=plots.TYPE)
    figure.legend(loc="outside lower center", ncols=2, fontsize=plots.TYPE - 2, frameon=False)
    _plain(axes, x=False)
    return figure


# Helpers


def _scaled(parts: Parts, member: str, factor: float) -> dict[str, tuple[Tensor, Calibration]]:
    """The same scores in another unit for one member: its held-out normals change with it, as they would."""
    scores, normal = parts[member]
    changed = replace(normal, image_scores=normal.image_scores * factor)
    return {**parts, member: (scores * factor, changed)}


def _scale_curves(labels: np.ndarray, parts: Parts, member: str) -> dict[str, list[float]]:
    """AUROC of the raw mean and of the mean z over `FACTORS`."""
    equal = [1.0] * len(parts)
    return {
        way: [metrics.auroc(labels, combine(_scaled(parts, member, factor), way, equal)) for factor in FACTORS]
        for way in ("raw", "z")
    }


def _scale(labels: np.ndarray, parts: Parts, curves: Mapping[str, list[float]], member: str, factor: float) -> Figure:
    figure = Figure((12, 4.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.16, top=0.84, wspace=0.22)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    changed, equal = _scaled(parts, member, factor), [1.0] * len(parts)
    for way, colour, hatch, shift in (("raw", MEAN, "", -0.2), ("z", Z, "//", 0.2)):
        together = combine(changed, way, equal)
        values = [float(spearmanr(together, scores).statistic) for scores, _ in changed.values()]
        bars = left.bar(np.arange(len(parts)) + shift, values, 0.38, color=colour, hatch=hatch, edgecolor="white", label=f"mean of {way}")
        left.bar_label(bars, [f"{v:.2f}" for v in values], fontsize=plots.TYPE - 3)
    left.set_xticks(range(len(parts)), [f"{n}\n× {factor:.3g}" if n == member else n for n in parts], fontsize=plots.TYPE - 1)
    left.set_ylim(0, 1.3)
    left.set_yticks([0, 0.5, 1])
    left.set_ylabel("rank correlation with the mean", fontsize=plots.TYPE - 2)
    left.set_title("whose order does the mean follow?", fontsize=plots.TYPE - 1)
    left.legend(fontsize=plots.TYPE - 3, frameon=False, ncols=2, loc="upper center")
    right.plot(FACTORS, curves["raw"], color=MEAN, lw=3, label="mean of raw")
    right.plot(FACTORS, curves["z"], color=Z, lw=3, ls="--", label="mean of z")
    alone = {name: metrics.auroc(labels, scores.numpy()) for name, (scores, _) in parts.items()}
    places = _apart(list(alone.values()), 0.09 * (max(*alone.values(), *curves["raw"]) - min(*alone.values(), *curves["raw"])))
    for (name, value), place, colour, style in zip(alone.items(), places, COLOURS, STYLES):
        right.axhline(value, 0, 0.88, color=colour, lw=1.5, ls=style, zorder=0)
        right.text(140, place, name, color=colour, fontsize=plots.TYPE - 3, va="center")
    right.axvline(factor, color="0.5", lw=1.5)
    right.plot(factor, np.interp(np.log10(factor), np.log10(FACTORS), curves["raw"]), "o", color=MEAN, ms=12)
    right.set_xscale("log")
    right.xaxis.set_minor_locator(NullLocator())  # they would take a sixth of the time that a slider has
    right.set_xlim(0.008, 400)
    right.set_xlabel(f"factor on the scores of {member}", fontsize=plots.TYPE - 1)
    right.set_ylabel("image AUROC", fontsize=plots.TYPE - 1)
    right.set_title("a change of unit changes the raw mean, not the z mean", fontsize=plots.TYPE - 1)
    right.legend(fontsize=plots.TYPE - 3, frameon=False, loc="lower left")
    for axes in (left, right):
        _plain(axes, x=axes is right)
    return figure


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Places for labels beside these values, in their order, none nearer to the next than this."""
    places, last = [0.0] * len(values), -np.inf
    for i in np.argsort(values, kind="stable"):
        places[i] = last = max(values[i], last + least)
    return places


def _two_classes(axes, labels: np.ndarray, scores: np.ndarray, bins: np.ndarray) -> None:
    for label, name, colour, hatch in ((0, "normal", plots.NORMAL, ""), (1, "anomalous", plots.ANOMALOUS, "//")):
        chosen = scores[labels == label]
        axes.hist(chosen, bins, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", lw=0.3, label=f"{name} ({len(chosen)})")


def _plain(axes, x: bool = True) -> None:
    axes.tick_params(axis="both" if x else "y", labelsize=plots.TYPE - 2)
    axes.spines[["top", "right"]].set_visible(False)


def _dropdown(options: list, name: str, value: str | None = None) -> ipywidgets.Dropdown:
    style, wide = {"description_width": "initial"}, ipywidgets.Layout(width="420px")
    first = value or (options[0][1] if isinstance(options[0], tuple) else options[0])
    return ipywidgets.Dropdown(options=options, value=first, description=name, style=style, layout=wide)
