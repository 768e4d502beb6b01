"""Pictures and checks of notebook 05, second half: ROC, regions, masks, and the limit from normal images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from scipy.stats import beta
from torch import Tensor

from rcp import metrics, plots, widgets
from rcp.course import checks
from rcp.course.scoring import ANSWER, ASKED, caption
from rcp.images import Geometry
from rcp.plots import ANOMALOUS, CONTOUR, GREEN, HEAT, LIMIT, NORMAL, ORANGE, SKY, TYPE
from rcp.scoring import Threshold, threshold

CLASSES = ((0, "normal", NORMAL, "o"), (1, "anomalous", ANOMALOUS, "^"))
RATE = 0.05  # false alarms asked for, in the simulation
DRAWS = 3000  # calibration sets that are simulated


def squared_figure(rooted: Tensor, squared: Tensor, name: str) -> Figure:
    """Return the map of distances beside the map of squared distances, and both along the row of the maximum.

    Args:
        rooted, squared: (h, w) maps of one image, drawn as shares of their maxima.
        name: of the image.
    """
    figure = plots.new_figure(12, 4)
    *panels, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    row = int(rooted.flatten().argmax()) // rooted.shape[1]
    for axes, values, title, (colour, line) in zip(panels, (rooted, squared), ("L2", "squared L2"), (ANSWER, ASKED), strict=True):
        drawn = axes.imshow((values / values.max()).numpy(), cmap=HEAT, vmin=0, vmax=1)
        axes.axhline(row, color="white", lw=1.5, ls=":")
        axes.set_title(f"{name}, {title}", fontsize=TYPE)
        plots.bare(axes)
        right.plot((values[row] / values.max()).numpy(), line, color=colour, lw=2.5, label=title)
    figure.colorbar(drawn, ax=panels, shrink=0.8, pad=0.01).set_label("share of the map's maximum", fontsize=TYPE - 2)
    right.set_ylim(0, 1.05)
    caption(right, "pixel along the dotted line", "share of the map's maximum", "squaring hides what is not the peak")
    right.legend(fontsize=TYPE - 2, frameon=False)
    return figure


def rules_figure(found: Mapping[str, Sequence[float]]) -> Figure:
    """Return the image AUROC of every rule that makes one score of a map, a mark a seed.

    Args:
        found: rule → image AUROC of each seed, as shares.
    """
    figure = plots.new_figure(10, 0.55 * len(found) + 1.6)
    axes = figure.subplots()
    for at, values in enumerate(found.values()):
        axes.plot(np.mean(values), at, "|", color=LIMIT, ms=26, mew=3, label="mean" if at == 0 else None)
        for seed, (value, marker) in enumerate(zip(values, "osD^v", strict=False)):
            axes.plot(value, at, marker, color=NORMAL, ms=9, alpha=0.8, label=f"seed {seed}" if at == 0 else None)
    axes.set_yticks(range(len(found)), list(found), fontsize=TYPE - 1)
    axes.invert_yaxis()
    axes.margins(y=0.12)
    caption(axes, "image AUROC", "", "one score of a map: the rule matters, and so does the seed")
    axes.legend(fontsize=TYPE - 3, frameon=False, loc="best")
    return figure


# ROC by sorting


def staircase_figure(labels: Sequence[int], scores: Sequence[float], steps: Sequence[tuple[float, float]]) -> Figure:
    """Return a few scores on a line, and the staircase that walking down through them draws.

    Args:
        labels: 0 normal, 1 anomalous.
        scores: of the same length.
        steps: (FPR, TPR) after every step, (0, 0) first.
    """
    figure = plots.new_figure(12, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    for kind, name, colour, marker in CLASSES:
        own = [score for label, score in zip(labels, scores, strict=True) if label == kind]
        left.plot(own, [kind] * len(own), marker, color=colour, ms=15, label=name)
    left.set_yticks([0, 1], ["normal", "anomalous"], fontsize=TYPE)
    left.set_ylim(-0.6, 1.6)
    left.invert_xaxis()
    caption(left, "score (walk from left to right: high to low)", "", "a limit moves down through the sorted scores")
    x, y = np.array(steps).T
    right.plot(x, y, color=LIMIT, lw=2)
    for (_, y0), (x1, y1) in pairwise(steps):
        _, _, colour, marker = CLASSES[int(y1 > y0)]
        right.plot(x1, y1, marker, color=colour, ms=11)
    right.fill_between(x, y, color=SKY, alpha=0.35, lw=0)
    right.set_aspect("equal")
    caption(right, "false positive rate", "true positive rate", f"area {metrics.auroc(labels, scores):.4f}")
    return figure


def roc_figure(labels: np.ndarray, scores: np.ndarray, limit: float, unit: str = "L2 distance") -> Figure:
    """Return the histogram of image scores with a limit, and its point on the ROC curve.

    Args:
        labels: (n,) 0 normal, 1 anomalous.
        scores: (n,).
        limit: flagged is what scores at least this.
        unit: of the scores.
    """
    figure = plots.new_figure(12, 4.4)
    figure.set_layout_engine("none")
    left, right = figure.add_axes([0.06, 0.16, 0.5, 0.7]), figure.add_axes([0.66, 0.16, 0.27, 0.7])
    histogram(left, labels, scores, unit)
    left.axvline(limit, color=LIMIT, lw=2.5, ls="--")
    x, y = roc_curve(labels, scores)
    right.plot(x, y, color=NORMAL, lw=2.5)
    right.plot([0, 1], [0, 1], ":", color="0.5", lw=1.5)
    at = [float((scores[labels == kind] >= limit).mean()) for kind in (0, 1)]
    right.plot(*at, "o", color=LIMIT, ms=13, mfc="none", mew=3)
    found = [int((scores[labels == kind] >= limit).sum()) for kind in (1, 0)]
    left.set_title(f"limit {limit:.1f}: {found[0]} of {int(labels.sum())} defects, {found[1]} false alarms", fontsize=TYPE)
    caption(right, "false positive rate", "true positive rate", f"image AUROC {metrics.auroc(labels, scores):.3f}")
    right.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return figure


def roc_explorer(labels: np.ndarray, scores: np.ndarray, limit: float, unit: str = "L2 distance") -> widgets.Explorer:
    """Return a slider over the limit: its point moves on the ROC curve; a click into the histogram moves it, too.

    The static twin is `roc_figure`.
    """
    low, high = float(np.floor(scores.min())), float(np.ceil(scores.max()))
    slider = widgets.slider(low, high, limit, "limit", (high - low) / 200)

    def touched(touch: widgets.Touch, values: dict[str, Any]) -> dict[str, Any]:
        return {"limit": min(max(touch.x, low), high)} if touch.panel == 0 and touch.phase != "up" else {}

    alt = "histogram of image scores with a limit, and its point on the ROC curve"
    return widgets.explore(lambda limit: roc_figure(labels, scores, limit, unit), {"limit": slider}, on_touch=touched, alt=alt)


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (FPR, TPR) at every distinct score as the limit, from (0, 0) on, for drawing."""
    limits = np.unique(scores)[::-1]
    rates = [1 - np.searchsorted(np.sort(scores[labels == kind]), limits) / (labels == kind).sum() for kind in (0, 1)]
    return np.r_[0, rates[0]], np.r_[0, rates[1]]


def histogram(axes: Axes, labels: np.ndarray, scores: np.ndarray, unit: str) -> None:
    """Draw a histogram of normal and anomalous image scores."""
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 31)
    for kind, name, colour, _ in CLASSES:
        counts, style = np.histogram(scores[labels == kind], bins)[0], {"hatch": "//", "ec": "white"} if kind else {}
        axes.stairs(counts, bins, fill=True, fc=colour, alpha=0.7, lw=0, label=name, **style)
    caption(axes, f"image score ({unit})", "images", "")
    axes.legend(fontsize=TYPE - 2, frameon=False)


# AUPRO by regions


def regions_figure(mask: np.ndarray, heat: np.ndarray, curve: np.ndarray, limit: float) -> Figure:
    """Return a map with its regions and what a limit flags, and the limit's point on the PRO curve.

    Args:
        mask: (H, W) bool.
        heat: (H, W) scores.
        curve: (T, 2) points (FPR, PRO).
        limit: flagged is what scores at least this.
    """
    figure = plots.new_figure(12, 4.2)
    figure.set_layout_engine("none")
    left, right = figure.add_axes([0.01, 0.04, 0.52, 0.82]), figure.add_axes([0.63, 0.17, 0.34, 0.69])
    left.imshow(heat, cmap=HEAT)
    flagged = heat >= limit
    left.plot(*np.nonzero(flagged)[::-1], "s", ms=4.5, mfc="none", mec=GREEN, mew=2)
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    for region in range(1, count + 1):
        left.contour(regions == region, levels=[0.5], colors=[CONTOUR], linewidths=2.5)
    plots.bare(left)
    shares = [100 * flagged[regions == region].mean() for region in range(1, count + 1)]
    left.set_title("found: " + ", ".join(f"region {i} {share:.0f} %" for i, share in enumerate(shares, 1)), fontsize=TYPE)
    draw_pro(right, curve, "-", NORMAL, "mean over regions")
    right.plot(float(flagged[~mask].mean()), float(np.mean(shares)) / 100, "o", color=LIMIT, ms=13, mfc="none", mew=3)
    right.fill_between(*_up_to(curve, 0.3), color=SKY, alpha=0.35, lw=0)
    caption(right, "false positive rate", "per-region overlap", f"AUPRO {metrics.aupro([mask], [heat]):.3f}: the area up to 0.3, / 0.3")
    return figure


def regions_explorer(mask: np.ndarray, heat: np.ndarray, curve: np.ndarray) -> widgets.Explorer:
    """Return a slider over the limit on a toy map; the static twin is `regions_figure`."""
    low, high = float(heat.min()), float(heat.max())
    slider = widgets.slider(low, high, low + 0.55 * (high - low), "limit", (high - low) / 25)
    return widgets.explore(
        lambda limit: regions_figure(mask, heat, curve, limit), {"limit": slider},
        alt="a map with two defects and what the limit flags, and the point on the curve of per-region overlap",
    )  # fmt: skip


def coarse_figure(curves: Mapping[str, np.ndarray], areas: Mapping[str, float], max_fpr: float = 0.3) -> Figure:
    """Return PRO curves of the same maps, made in different ways.

    Args:
        curves: way → (T, 2) points (FPR, PRO).
        areas: way → AUPRO.
        max_fpr: the curve is drawn up to here.
    """
    figure = plots.new_figure(10, 4.6)
    axes = figure.subplots()
    for (name, curve), (line, colour) in zip(curves.items(), (("-", NORMAL), ("--o", GREEN), (":^", ANOMALOUS)), strict=False):
        draw_pro(axes, curve, line, colour, f"{name}: {areas[name]:.4f}")
    axes.set_xlim(-0.005, max_fpr)
    caption(axes, "false positive rate, all test pixels", "per-region overlap", "one outlier pixel, and a grid of limits misses the curve")
    axes.legend(fontsize=TYPE - 2, frameon=False, title="AUPRO", title_fontsize=TYPE - 2)
    return figure


def draw_pro(axes: Axes, curve: np.ndarray, line: str, colour: str, name: str) -> None:
    """Draw a PRO curve."""
    axes.plot(*curve.T, line, color=colour, lw=2.5, ms=7, label=name)
    axes.set_ylim(-0.03, 1.03)


def _up_to(curve: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    x = curve[:, 0]
    inside = x <= limit
    return np.r_[x[inside], limit], np.r_[curve[inside, 1], np.interp(limit, *curve.T)]


# Masks


def masks_figure(ways: Mapping[str, Sequence[np.ndarray]], expected: Sequence[float]) -> Figure:
    """Return the same few defects under several ways of shrinking their masks.

    Args:
        ways: name → masks, bool (h, w), of any resolution; the first way is the truth.
        expected: areas that the shrunk masks should have, in their own pixels.
    """
    names, count = list(ways), len(expected)
    figure = plots.new_figure(2.7 * len(names), 2.5 * count + 0.3)
    rows = figure.subplots(count, len(names), squeeze=False)
    for row, item in zip(rows, range(count), strict=True):
        truth = ways[names[0]][item]
        box = [(int(where.min()) / side, int(where.max() + 1) / side) for where, side in zip(np.nonzero(truth), truth.shape, strict=True)]
        reach = 0.5 * max(high - low for low, high in box) + 0.03
        for axes, name in zip(row, names, strict=True):
            mask = ways[name][item]
            axes.imshow(mask, cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
            (y, x), (h, w) = (sum(side) / 2 for side in box), mask.shape
            axes.set(xlim=((x - reach) * w - 0.5, (x + reach) * w - 0.5), ylim=((y + reach) * h - 0.5, (y - reach) * h - 0.5))
            area = f"{int(mask.sum())} pixels"
            axes.set_xlabel(area if name == names[0] else f"{area}, due: {expected[item]:.1f}", fontsize=TYPE - 2)
            axes.set_xticks([]), axes.set_yticks([])
    for axes, name in zip(rows[0], names, strict=True):
        axes.set_title(name, fontsize=TYPE)
    return figure


# The limit from normal images


def limits_figure(labels: np.ndarray, scores: np.ndarray, held: np.ndarray, limit: Threshold, oracle: float, unit: str) -> Figure:
    """Return held-out normal scores above the test scores, with the limit from the former and the oracle's.

    Args:
        labels, scores: (n,) of the test images.
        held: (m,) scores of held-out normal images.
        limit: from them.
        oracle: the limit with the best F1, chosen on the test labels.
        unit: of the scores.
    """
    figure = plots.new_figure(12, 5.4)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    top.plot(held, np.linspace(0.3, 0.7, len(held)), "o", color=NORMAL, mfc="none", ms=7)
    top.set_yticks([])
    top.set_ylim(0, 1)
    caption(top, "", "", f"{len(held)} held-out good images set the limit; test images are judged by it")
    histogram(below, labels, scores, unit)
    for axes in (top, below):
        axes.axvline(limit.value, color=LIMIT, lw=2.5, ls="--", label=f"limit for {100 * limit.false_alarm_rate:.0f} % false alarms")
        axes.axvline(oracle, color=ORANGE, lw=3, ls=":", label="oracle: best F1 on the test labels")
    below.legend(fontsize=TYPE - 3, frameon=False)
    return figure


def rates_figure(counts: Sequence[int]) -> Figure:
    """Return how the false-alarm rates that limits really have scatter, simulated, with the Beta density.

    Args:
        counts: n, the held-out normal images; a panel each.
    """
    figure = plots.new_figure(12 if len(counts) > 1 else 8, 4.4)
    figure.set_layout_engine("none")
    for at, n in enumerate(counts):
        width = 1 / len(counts)
        _rates(figure.add_axes([(at + 0.12) * width, 0.17, 0.8 * width, 0.66]), n)
    return figure


def rates_explorer() -> widgets.Explorer:
    """Return a slider over the number of held-out images; the static twin is `rates_figure`."""
    return widgets.explore(
        lambda n: rates_figure([n]), {"n": widgets.slider(20, 1000, 64, "n (held-out good images)")},
        alt="histogram of the false-alarm rates that simulated limits have, and the Beta density",
    )  # fmt: skip


@lru_cache(maxsize=64)
def simulated_rates(n: int, rate: float = RATE, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the false-alarm rates that limits from n normal scores really have, one a simulated calibration set.

    Args:
        n: scores a set; they follow the exponential distribution, whose tail is known: exp(-limit).
        rate: asked for.
        draws: sets.
        seed: of the draws.

    Returns:
        (draws,).
    """
    rank = int(threshold(torch.arange(1.0, n + 1), rate).value)  # among 1, 2, ... n the limit is its own rank
    sets = np.random.default_rng(seed).standard_exponential((draws, n), dtype=np.float32)
    return np.exp(-np.partition(sets, rank - 1, axis=1)[:, rank - 1])


def _rates(axes: Axes, n: int) -> None:
    rates, rank = simulated_rates(n), int(threshold(torch.arange(1.0, n + 1), RATE).value)
    x = np.linspace(0, 0.2, 401)
    counts, bins = np.histogram(rates, np.linspace(0, 0.2, 61))
    axes.stairs(counts / (len(rates) * np.diff(bins)), bins, fill=True, color=SKY, label="simulated")
    axes.plot(x, beta.pdf(x, n + 1 - rank, rank), color=LIMIT, lw=2, label=f"Beta({n + 1 - rank}, {rank})")
    low, high = beta.ppf([0.025, 0.975], n + 1 - rank, rank)
    axes.vlines([low, high], 0, 1, ANOMALOUS, "--", lw=1.5, transform=axes.get_xaxis_transform())
    axes.set_xlim(0, 0.2)
    axes.set_yticks([])
    caption(axes, "false-alarm rate of the limit", "", f"n = {n}: {100 * low:.1f}–{100 * high:.1f} %\nmean {100 * rates.mean():.1f} %, asked {100 * RATE:.0f} %")
    axes.legend(fontsize=TYPE - 3, edgecolor="none", framealpha=1)


# Checks


def check_2(given: Any) -> checks.Outcome:
    """Exercise 5.2: the AUROC of six scores with a tie."""
    labels, scores = np.array([1, 0, 1, 0, 1, 0]), np.array([6, 5, 4, 4, 3, 2])
    differences = scores[labels == 1][:, None] - scores[labels == 0]
    above, ties, pairs = int((differences > 0).sum()), int((differences == 0).sum()), differences.size
    right = metrics.auroc(labels, scores)
    lost = "this counts the tie (4 against 4) as lost. A coin would win it half of the time: it counts ½."
    won = "this counts the tie (4 against 4) as won: then equal scores for all images would give 1. A tie counts ½."
    every = "this divides by all pairs of images. Only those of one anomalous and one normal image count: P·N."
    mistakes = [
        (above / pairs, lost),
        ((above + ties) / pairs, won),
        (1 - right, "this is the share of pairs in the *wrong* order: high is anomalous."),
        (above + ties / 2, "these are the pairs in order; divide by their number, P·N."),
        ((above + ties / 2) / (len(labels) * (len(labels) - 1) / 2), every),
    ]
    because = f"{above} pairs in order and {ties} tie, of {pairs}: ({above} + ½) / {pairs}."
    return checks.answer("5.2", given, right, because, mistakes, hint="list the 3 · 3 pairs of one anomalous and one normal score.")


def check_3(given: Any) -> checks.Outcome:
    """Exercise 5.3: the share of positions at which nearest neighbour makes a 3 × 3 defect vanish."""
    gone = 0
    for row in range(4):
        for column in range(4):
            mask = np.zeros((32, 32), bool)
            mask[8 + row : 11 + row, 8 + column : 11 + column] = True
            gone += not Geometry(resize=8, crop=None).apply_mask(mask).any()
    mistakes = [
        (1 / 4, "this looks at one axis. The defect is gone if *either* its rows or its columns lie between two samples."),
        (1 / 16, "this is the chance that rows *and* columns miss every sample; one of the two is enough."),
        (9 / 16, "this is the share at which it survives."),
        (0, "it can vanish: the samples lie 4 pixels apart, and the defect is only 3 wide."),
        (gone, "these are the positions, of 16; give the share."),
    ]
    because = "A side of 3 covers a sample in 3 of 4 positions, both sides in 9 of 16. On average the area is right, but no single one is."
    return checks.answer("5.3", given, gone / 16, because, mistakes, hint="try the 4 positions along one axis first.")


def check_4(given: Any) -> checks.Outcome:
    """Exercise 5.4: the rank of the limit among 209 held-out scores, for 2 % false alarms."""
    n, rate = 209, 0.02
    right = int(threshold(torch.arange(1.0, n + 1), rate).value)
    low = "Either way 5 of the 210 places lie above it: 2.4 %, more than asked for."
    mistakes = [
        (205, f"205 is ⌈n·(1-rate)⌉, without the +1 for the new image, or ⌊(n+1)·(1-rate)⌋, rounded down. {low}"),
        (204, "204 is ⌊n·(1-rate)⌋: the new image takes one of n+1 places, and rounding down allows too many above."),
        (205.8, "this is (n+1)·(1-rate); a rank is a whole number. Round it up, so that the rate is at most 2 %."),
        (204.82, "this is n·(1-rate); the new image takes one of n+1 places, and a rank is a whole number."),
        (n + 1 - right, "this counts from the largest; the rank is counted from the smallest."),
        (n, "above the largest of all 1/210 = 0.5 % is expected; 2 % allows a lower limit, which finds more."),
    ]
    because = f"⌈210 · 0.98⌉ = {right}: 4 of the 210 places lie above it, 4/210 = 1.9 %, and that is at most 2 %."
    return checks.answer("5.4", given, right, because, mistakes, tolerance=1e-6, hint="the new image is equally likely to take each of the 210 places.")
