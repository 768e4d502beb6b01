"""Figures, interactive twins and checks of notebook 11: what do bad images among the good ones do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rcp import plots, widgets
from rcp.course.checks import Outcome, answer, choice
from rcp.course.contamination import DROPPED, RATE, SHARES, Fade, Trial, mean
from rcp.scoring import threshold


def contamination_figure(found: Sequence[Trial]) -> Figure:
    """Return AUROC over the share of bad images, and the share of defects found at the limit, without and with a remedy.

    Bars are the deviation of the change against no bad images (`rcp.course.contamination.mean`).

    Args:
        found: trials of one category, or of several, over which it averages.
    """
    figure = plots.new_figure(12, 5.4)
    panels = figure.subplots(1, 3, sharex=True)
    lines = (
        ("auroc_same", plots.ANOMALOUS, "o", "-", "greedy coreset, same kinds"),
        ("auroc_other", plots.NORMAL, "s", "-", "greedy coreset, other kinds"),
        ("random_same", plots.ANOMALOUS, "o", ":", "random coreset, same kinds"),
        ("random_other", plots.NORMAL, "s", ":", "random coreset, other kinds"),
    )
    _over_shares(panels[0], found, lines)
    panels[0].set_title("image AUROC (%)", fontsize=plots.TYPE)
    for axes, group, title in ((panels[1], "same", "same kinds found (%)"), (panels[2], "other", "other kinds found (%)")):
        _over_shares(axes, found, (
            (f"found_{group}", plots.LIMIT, "o", "-", "limit as usual"),
            (f"robust_found_{group}", plots.GREEN, "^", "--", "robust limit"),
            (f"dropped_found_{group}", plots.PINK, "D", "-.", "10 % dropped first"),
        ))  # fmt: skip
        axes.set_ylim(-4, 104)
        axes.set_title(title, fontsize=plots.TYPE)
    for axes in panels[:2]:
        axes.legend(fontsize=plots.TYPE - 3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    panels[1].set_xlabel("bad images among the training images (%)", fontsize=plots.TYPE)
    return figure


def rows_figure(found: Sequence[Trial]) -> Figure:
    """Return how many of the coreset's rows come from bad images, over the share of bad images, and what held-out scores catch."""
    figure = plots.new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    _over_shares(left, found, (("bad_rows", plots.ANOMALOUS, "o", "-", "greedy coreset"),))
    shares = [100 * share for share in SHARES]
    left.plot(shares, shares, "--", color=plots.LIMIT, lw=2, label="equal shares")
    left.set_title("rows from bad images (%)", fontsize=plots.TYPE)
    left.legend(fontsize=plots.TYPE - 2, frameon=False)
    _over_shares(right, [trial for trial in found if trial.share], (("caught", plots.PINK, "D", "-.", "caught"),))
    right.plot(shares[1:], [100 * min(1, DROPPED / share) for share in SHARES[1:]], "--", color=plots.LIMIT, lw=2, label="possible")
    right.set_ylim(0, 105)
    right.set_title("bad images among the dropped tenth (%)", fontsize=plots.TYPE)
    right.legend(fontsize=plots.TYPE - 2, frameon=False)
    for axes in (left, right):
        axes.set_xlabel("bad images among the training images (%)", fontsize=plots.TYPE - 2)
    return figure


def fade_figure(faded: Fade, count: int = -1, step: int = 0) -> Figure:
    """Return the image, its heat map under one memory, and its score under all memories with as many good images.

    Args:
        faded: from `fade`.
        count, step: positions in its `counts` and `steps`.
    """
    figure = Figure((12, 4.4))
    figure.subplots_adjust(left=0.01, right=0.98, bottom=0.16, top=0.84, wspace=0.25)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.12, 1.3])
    left.imshow(faded.image)
    if faded.mask is not None:
        left.contour(faded.mask, [0.5], colors=[plots.CONTOUR], linewidths=2)
    left.set_title(f"test image: {faded.defect}", fontsize=plots.TYPE)
    low, high = faded.limits
    drawn = middle.imshow(faded.maps[count, step].numpy(), cmap=plots.HEAT, vmin=low, vmax=high)
    bar = figure.colorbar(drawn, ax=middle, shrink=0.9, aspect=16, pad=0.02, extend="both")
    bar.set_label("L2 distance", fontsize=plots.TYPE - 2)
    bar.ax.tick_params(labelsize=plots.TYPE - 3)
    middle.set_title(f"{faded.counts[count]} good, {faded.word(step)}", fontsize=plots.TYPE)
    for axes in (left, middle):
        plots.bare(axes)
    places = np.arange(len(faded.steps))
    right.plot(places, faded.scores[count], "D-", color=plots.ANOMALOUS, lw=3, ms=8, label="this image")
    right.plot(places, faded.normal[count], "o--", color=plots.NORMAL, lw=3, ms=7, label="good test images (median)")
    right.plot(step, faded.scores[count, step], "D", color=plots.ANOMALOUS, ms=16, mec=plots.LIMIT, mew=2.5)
    right.set_xticks(places, [*map(str, faded.steps[:-1]), "itself"])
    right.set_ylim(0, 1.12 * float(faded.scores.max()))
    right.set_xlabel("images of its kind in the memory", fontsize=plots.TYPE - 1)
    right.set_title("image score (L2 distance)", fontsize=plots.TYPE)
    right.legend(fontsize=plots.TYPE - 3, frameon=False, loc="lower left")
    plots.plain(right)
    return figure


def fade_explorer(faded: Fade) -> widgets.Explorer:
    """Return the twin of `fade_figure`: sliders for good and bad images; a click on the curve chooses a memory, too."""

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.panel != 2 or touch.phase == "up":
            return {}
        return {"bad": int(np.clip(round(touch.x), 0, len(faded.steps) - 1))}

    controls = {
        "good": widgets.slider(0, len(faded.counts) - 1, len(faded.counts) - 1, f"good images ({', '.join(map(str, faded.counts))})"),
        "bad": widgets.slider(0, len(faded.steps) - 1, 0, "bad images (the last: itself)"),
    }
    return widgets.explore(
        lambda good, bad: fade_figure(faded, good, bad), controls, on_touch=moved,
        alt="a defective image, its heat map, and its score over the bad images in the memory",
    )  # fmt: skip


def strip_figure(faded: Fade) -> Figure:
    """Return the heat maps of all steps in a row, at the largest number of good images."""
    figure = plots.new_figure(12, 3.1)
    panels = figure.subplots(1, 1 + len(faded.steps))
    panels[0].imshow(faded.image)
    if faded.mask is not None:
        panels[0].contour(faded.mask, [0.5], colors=[plots.CONTOUR], linewidths=2)
    panels[0].set_title(faded.defect, fontsize=plots.TYPE - 2)
    for step, axes in enumerate(panels[1:]):
        drawn = axes.imshow(faded.maps[-1, step].numpy(), cmap=plots.HEAT, vmin=faded.limits[0], vmax=faded.limits[1])
        axes.set_title(f"{faded.word(step).replace(' and', chr(10) + 'and')}\n{float(faded.scores[-1, step]):.1f}", fontsize=plots.TYPE - 2)
    for axes in panels:
        plots.bare(axes)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.7, aspect=16, pad=0.01, extend="both")
    bar.set_label("L2 distance", fontsize=plots.TYPE - 3)
    bar.ax.tick_params(labelsize=plots.TYPE - 3)
    return figure


# Checks


def check_1(given: object) -> Outcome:
    """Say how many bad images among 100 held-out ones it takes until the limit for 5 % is one of theirs."""

    def takes(rank: float) -> int:
        return int(100 - rank + 1)

    ranks = threshold(torch.arange(1.0, 101.0), RATE).value  # the limit's rank among 100 scores
    return answer(
        "11.3", given, takes(ranks),
        "The limit is the 96th smallest of 100. With five bad images the 96th *is* a bad one: a quantile "
        "holds only while the share of bad images stays below the rate.",
        [
            (takes(ranks) - 1, "with so many the 96th smallest is still the highest good score. One more."),
            (takes(ranks) + 1, "one fewer is enough: ranks are counted from 1, and the limit is rank ⌈101 · 0.95⌉ = 96."),
            (1, "a single bad image has the highest score, but the limit is not the highest score."),
            (50, "half of the images: so many it takes to move the *median*. The limit is a quantile near the end."),
        ],
        tolerance=1e-6, hint="the limit is the ⌈(n + 1)(1 - rate)⌉-th smallest; bad images take the highest ranks.",
    )  # fmt: skip


def check_2(given: object) -> Outcome:
    """Say why kinds of defect that are not in the training are found less often, too."""
    return choice(
        "11.4", given,
        {
            "limit":
                "Their AUROC hardly moves, so the order of the scores is as good as before; but bad images, held out, "
                "score high and lift the limit above everybody.",
            "memory":
                "then their AUROC would fall as well: an AUROC knows no limit, only the order of scores, and for "
                "these kinds it hardly moves.",
            "coreset": "the coreset has fewer rows of good images then, but their AUROC shows that this costs little.",
            "chance": "the fall is many times the deviation over draws.",
        },
        "limit",
    )  # fmt: skip


# Helpers


def _over_shares(axes: Axes, found: Sequence[Trial], lines: Sequence[tuple[str, str, str, str, str]]) -> None:
    shares = sorted({trial.share for trial in found})
    for k, (name, colour, mark, style, label) in enumerate(lines):
        means, deviations = zip(*(mean(found, name, share) for share in shares), strict=True)
        x = 100 * np.array(shares) + 0.25 * (k - (len(lines) - 1) / 2)
        axes.errorbar(x, means, deviations, fmt=mark, ls=style, color=colour, lw=2.5, ms=8, capsize=3, elinewidth=1.2, label=label)
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])
    plots.plain(axes)
