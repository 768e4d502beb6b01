"""Figures, explorers and checks of notebook 03: the relaxed contrastive loss, its margin, and the slow teacher.

What the loss does to points and to real patches is drawn in `rcp.course.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rcp import plots, widgets
from rcp.course import checks
from rcp.distances import distances, squared_distances
from rcp.head import Head
from rcp.loss import loss_of_distances, pushed_share, relative_distances, relaxed_contrastive_loss
from rcp.plots import GREEN, GREY, ORANGE
from rcp.similarity import pseudo_labels

BLUE, VERMILION = plots.NORMAL, plots.ANOMALOUS


# --- the two terms of Eq. 7 -----------------------------------------------------------------------


def bracket(delta: Sequence[float] | Tensor, w: float, margin: float) -> np.ndarray:
    """Return the bracket of Eq. 7 for one pair at each of the given relative distances: (n,).

    Args:
        delta: (n,) relative distances.
        w: the pair's label.
        margin: m.
    """
    label = torch.full((1, 1), float(w), dtype=torch.float64)
    pairs = torch.as_tensor(delta, dtype=torch.float64).view(-1, 1, 1)
    return np.array([float(loss_of_distances(pair, label, margin)) for pair in pairs])


def term_curves(weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), margin: float = 1.0) -> Figure:
    """Return pull, push and their sum over δ, a panel a label w, with the lowest point of the sum.

    Args:
        weights: labels w.
        margin: m.
    """
    figure = plots.new_figure(12, 4.1)
    for number, (axes, w) in enumerate(zip(figure.subplots(1, len(weights), sharey=True), weights, strict=True)):
        low = _terms(axes, w, margin)
        axes.set_title(f"w = {w:g}\nlowest at δ = {low:g}", fontsize=plots.TYPE - 1)
        axes.set_xlabel("δ", fontsize=plots.TYPE)
        if number == 0:
            axes.set_ylabel("what the pair costs", fontsize=plots.TYPE)
    legend_below(figure, axes, 4)
    return figure


def terms_explorer() -> widgets.Explorer:
    """Return sliders for w and m under which both terms move; a click places a pair, and an arrow says where it is drawn."""

    def draw(w: float, margin: float, delta: float) -> Figure:
        figure = Figure(figsize=(9, 4.6))
        axes = figure.add_axes((0.09, 0.15, 0.87, 0.7))
        low = _terms(axes, w, margin)
        here = float(bracket([delta], w, margin)[0])
        ahead = here - float(bracket([delta + 1e-4], w, margin)[0])  # > 0: downhill is to the right
        axes.plot(delta, here, "D", color=ORANGE, ms=13, mec="black", zorder=5)
        word = "stays: no force"
        if abs(ahead) > 1e-7:
            word = "is pushed apart →" if ahead > 0 else "← is pulled together"
        axes.set_title(f"sum lowest at δ = {low:.2f}; the pair at δ = {delta:.2f} {word}", fontsize=plots.TYPE)
        axes.set_xlabel("δ, the pair's relative distance", fontsize=plots.TYPE - 1)
        axes.set_ylabel("what the pair costs", fontsize=plots.TYPE - 1)
        axes.legend(fontsize=plots.TYPE - 3, frameon=False, loc="upper center", ncols=4)
        return figure

    controls = {
        "w": widgets.slider(0.0, 1.0, 0.25, "w (label)", 0.05),
        "margin": widgets.slider(0.0, 2.0, 1.0, "m (margin)", 0.05),
    }
    return widgets.explore(
        draw, controls, state={"delta": 1.4},
        on_touch=lambda touch, values: {} if touch.phase == "up" else {"delta": min(max(touch.x, 0.0), 2.0)},
        alt="pull, push and their sum over the relative distance, and one pair on the sum",
    )  # fmt: skip


def _terms(axes: Axes, w: float, margin: float) -> float:
    """Draw both terms and their sum; return where the sum is lowest."""
    delta = np.linspace(0, 2, 61)
    pull, push = w * bracket(delta, 1, margin), (1 - w) * bracket(delta, 0, margin)
    both = bracket(delta, w, margin)
    axes.plot(delta, pull, "--", color=BLUE, lw=2.5, label="pull")
    axes.plot(delta, push, ":", color=VERMILION, lw=3.5, label="push")
    axes.plot(delta, both, "-", color=plots.LIMIT, lw=2, label="sum")
    low = lowest(w, margin)
    axes.plot(low, bracket([low], w, margin), "o", color=plots.LIMIT, ms=9, label="lowest point")
    axes.axvline(margin, color=GREY, lw=1)
    axes.text(margin + 0.03, 1.9, "m", color=GREY, fontsize=plots.TYPE - 2)
    axes.set(ylim=(-0.1, 2.4), xlim=(-0.05, 2.05))
    plots.plain(axes)
    return low


def lowest(w: float, margin: float) -> float:
    """Return the relative distance at which the bracket of Eq. 7 is lowest, to 0.0005: searched, not derived."""
    rough = np.linspace(0, 2, 81)
    rough = rough[bracket(rough, w, margin).argmin()]
    fine = np.clip(rough + np.linspace(-0.025, 0.025, 101), 0, None)
    return round(float(fine[bracket(fine, w, margin).argmin()]), 4)


# --- the margin -----------------------------------------------------------------------------------


def margin_figure(delta: Tensor, said: str, margins: Sequence[float] = (0.1, 0.5, 1.0, 1.5)) -> Figure:
    """Return the histogram of δ with margins drawn in, beside the share of pushed pairs over the margin.

    Args:
        delta: (N, N) relative distances.
        said: what the data are.
        margins: to mark.
    """
    figure = plots.new_figure(12, 4.6)
    left, right = figure.subplots(1, 2)
    left.hist(_pairs(delta), np.linspace(0, 2, 61), color=GREY, density=True)
    for margin, style in zip(margins, ("-", ":", "--", "-."), strict=False):
        share = pushed_share(delta, margin)
        left.axvline(margin, 0, 0.64, color=VERMILION, ls=style, lw=2.5, label=f"m = {margin:g}: {100 * share:.1f} %")
        right.plot(margin, 100 * share, "o", color=VERMILION, ms=10)
    left.legend(title="pairs nearer than", fontsize=plots.TYPE - 3, title_fontsize=plots.TYPE - 3, frameon=False, ncols=2)
    left.set(xlim=(0, 2), ylim=(0, 1.5 * left.get_ylim()[1]))
    left.set_title(f"Distances between patches\n({said})", fontsize=plots.TYPE - 1)
    left.set_xlabel("δ", fontsize=plots.TYPE)
    left.set_ylabel("density of pairs", fontsize=plots.TYPE)
    over = np.linspace(0, 2, 81)
    right.plot(over, [100 * pushed_share(delta, float(m)) for m in over], color=plots.LIMIT, lw=2.5)
    right.set_title("The margin decides who is pushed", fontsize=plots.TYPE)
    right.set_xlabel("margin m", fontsize=plots.TYPE)
    right.set_ylabel("pushed pairs in %", fontsize=plots.TYPE)
    for axes in (left, right):
        plots.plain(axes)
    return figure


def margin_explorer(delta: Tensor) -> widgets.Explorer:
    """Return the histogram of δ with a margin that a slider or a click moves; the pushed pairs are coloured.

    Args:
        delta: (N, N) relative distances.
    """
    counts, edges = np.histogram(_pairs(delta), np.linspace(0, 2, 81), density=True)
    shares = {round(m, 3): pushed_share(delta, m) for m in edges.tolist()}

    def draw(margin: float) -> Figure:
        figure = Figure(figsize=(9, 4.2))
        axes = figure.add_axes((0.1, 0.17, 0.87, 0.7))
        pushed = edges[:-1] < margin - 1e-9
        axes.stairs(np.where(pushed, counts, 0), edges, fill=True, color=VERMILION, hatch="//", label="pushed, too")
        axes.stairs(np.where(pushed, 0, counts), edges, fill=True, color=BLUE, label="only pulled")
        axes.axvline(margin, color=plots.LIMIT, lw=2.5)
        share = 100 * shares[round(margin, 3)]
        axes.set_title(f"margin {margin:.3g}: {share:.1f} % of the pairs are pushed", fontsize=plots.TYPE)
        axes.set_xlabel("δ, the pair's relative distance", fontsize=plots.TYPE - 1)
        axes.set_ylabel("density of pairs", fontsize=plots.TYPE - 1)
        axes.legend(fontsize=plots.TYPE - 2, frameon=False, loc="upper left")
        axes.set_xlim(0, 2)
        plots.plain(axes)
        return figure

    def click(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        return {} if touch.phase == "up" else {"margin": round(min(max(touch.x, 0.0), 2.0) * 40) / 40}

    control = widgets.slider(0.0, 2.0, 1.0, "m (margin)", 0.025)
    return widgets.explore(
        draw, {"margin": control}, on_touch=click, alt="histogram of relative distances; those within the margin hatched"
    )  # fmt: skip


# --- points in the plane, and the teacher ---------------------------------------------------------


class Toy(NamedTuple):
    """Points in the plane, in three loose clusters."""

    seen: Tensor  # (24, 2): what the teacher sees
    start: Tensor  # (24, 2): the same, shrunk and displaced at random: where the student begins
    kind: Tensor  # (24,): the cluster, 0 to 2


def toy(seed: int = 0) -> Toy:
    """Return 24 points of three loose clusters, as the teacher sees them and as the student begins."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [2.4, 0.2], [1.1, 2.0]])
    kind = torch.arange(24) // 8
    seen = centres[kind] + 0.5 * torch.randn(24, 2, generator=generator)
    return Toy(seen, 0.6 * seen + 0.7 * torch.randn(24, 2, generator=generator), kind)


def toy_labels(points: Tensor, alpha: float = 0.5) -> Tensor:
    """Return the labels of points in the plane (Eqs 1-6): not brought to length 1, which would leave only their angles.

    Args:
        points: (N, 2).
        alpha: of Eq. 6.
    """
    return pseudo_labels(points, alpha, sigma=0.25, k=5, normalize=False, relative_sigma=True)


def follow(student: Sequence[float], momentum: float) -> np.ndarray:
    """Return where a teacher of one weight is after each step of a student of one weight (Eq. 8): (steps,).

    Args:
        student: the student's weight after each step; both begin at 0.
        momentum: γ.
    """
    head = Head(1, 1, 1, generator=torch.Generator().manual_seed(0))
    teacher = []
    with torch.no_grad():
        head.teacher_f.weight.zero_()
        for value in student:
            head.f.weight.fill_(value)
            head.update_teacher(momentum)
            teacher.append(float(head.teacher_f.weight))
    return np.array(teacher)


def square_wave(period: int, steps: int) -> np.ndarray:
    """Return a student that jumps between 1 and 0, first to 1: (steps,)."""
    return (np.arange(steps) // max(1, period // 2) % 2 == 0).astype(float)


def teacher_figure() -> Figure:
    """Return how three teachers follow a student that jumps once, and one that jumps to and fro."""
    figure = plots.new_figure(12, 4.6)
    once, often = figure.subplots(1, 2, sharey=True)
    steps, period = 3000, 100
    for momentum, colour, style in ((0.9, VERMILION, "--"), (0.99, GREEN, "-."), (0.999, BLUE, "-")):
        way = follow(np.ones(steps), momentum)
        once.plot(np.arange(1, steps + 1), way, style, color=colour, lw=2.5, label=f"γ = {momentum:g}")
        half = int((way >= 0.5).argmax()) + 1
        once.plot(half, way[half - 1], "o", color=colour, ms=9)
        once.annotate(f"{half}", (half, way[half - 1]), (6, -18), textcoords="offset points", fontsize=plots.TYPE - 2)
        often.plot(follow(square_wave(period, 300), momentum), style, color=colour, lw=2.5)
    often.plot(square_wave(period, 300), ":", color=plots.LIMIT, lw=2, label="student")
    once.set(xscale="log", ylim=(-0.05, 1.22))
    once.set_title("The student jumps to 1 once\n(dot: step at which half the way is done)", fontsize=plots.TYPE - 1)
    often.set_title(f"The student jumps every {period // 2} steps:\na slow teacher hardly sees it", fontsize=plots.TYPE - 1)
    once.set_ylabel("weight of the teacher", fontsize=plots.TYPE)
    for axes in (once, often):
        axes.set_xlabel("step", fontsize=plots.TYPE)
        axes.legend(fontsize=plots.TYPE - 2, frameon=False, loc="upper left" if axes is once else "upper right")
        plots.plain(axes)
    return figure


def teacher_explorer(steps: int = 400) -> widgets.Explorer:
    """Return sliders for γ and for how often the student jumps, over both weights.

    Args:
        steps: to show.
    """

    def draw(momentum: float, period: int) -> Figure:
        student = square_wave(period, steps)
        teacher = follow(student, momentum)
        figure = Figure(figsize=(10, 4.2))
        axes = figure.add_axes((0.08, 0.17, 0.9, 0.7))
        axes.plot(student, ":", color=plots.LIMIT, lw=2, label="student")
        axes.plot(teacher, "-", color=BLUE, lw=2.5, label="teacher")
        half = "less than a step" if momentum < 0.5 else f"{math.log(0.5) / math.log(momentum):.3g} steps"
        axes.set_title(f"γ = {momentum:.3f}: half of any way takes {half}", fontsize=plots.TYPE)
        axes.set_xlabel("step", fontsize=plots.TYPE - 1)
        axes.set_ylabel("weight", fontsize=plots.TYPE - 1)
        axes.set_ylim(-0.05, 1.3)
        axes.legend(fontsize=plots.TYPE - 2, frameon=False, ncols=2, loc="upper right")
        plots.plain(axes)
        return figure

    controls = {
        "momentum": widgets.slider(0.0, 0.999, 0.99, "γ (momentum)", 0.001),
        "period": widgets.slider(2, 2 * steps, 100, "period (steps)", 2),
    }
    return widgets.explore(draw, controls, alt="a student that jumps between 0 and 1, and the teacher that follows")


# --- exercises ------------------------------------------------------------------------------------


def check_1(given: Callable[[Tensor], Tensor]) -> checks.Outcome:
    """Return what there is to say about a function that computes relative distances: (N, D) → (N, N)."""

    def others(z: Tensor) -> Tensor:
        return distances(z) / (distances(z).sum(1, keepdim=True) / (len(z) - 1))

    def squared(z: Tensor) -> Tensor:
        return squared_distances(z) / squared_distances(z).mean(1, keepdim=True)

    one_mean = "you divided by one mean of the whole matrix. Each row has its own mean: it says what far means for that patch."
    columns = "that divides each *column* by its mean: the transpose of δ. mean(1, keepdim=True) stays beside its rows."
    no_self = "you divided by the mean over the other N-1 rows. The mean is (1/N) Σ_n with n = i included, whose distance is 0."
    squares = "these are squared distances, relative to their mean. δ is made of plain L2; Eq. 7 squares later."
    return checks.function(
        "3.1", given, relative_distances, [(_random(5, 2, seed=1),), (_random(7, 3, seed=2),)],
        "Each row is divided by its own mean, over all N entries, the zero on the diagonal included.",
        [
            (lambda z: distances(z) / distances(z).mean(), one_mean),
            (lambda z: distances(z) / distances(z).mean(0), columns),
            (others, no_self),
            (squared, squares),
            (distances, "these are the distances themselves; divide each row by its mean."),
        ],
        hint="a (N, N) matrix of L2 distances, each row divided by its mean over all N columns.",
    )  # fmt: skip


def check_2(given: Any) -> checks.Outcome:
    """Return what there is to say about the lowest point of the sum, for w = 0.3 and m = 1.5."""
    w, margin = 0.3, 1.5
    return checks.answer(
        "3.2", given, lowest(w, margin),
        "Below the margin the derivative is 2wδ - 2(1-w)(m-δ), which is 0 at δ = (1-w)m = 0.7 · 1.5. A label is an order for "
        "a distance: the surer a pair is the same, the nearer it shall be.",
        [
            (w * margin, "that is w·m, the order turned round: a pair with w = 1 would be sent to the margin."),
            (1 - w, "that is 1-w: right for a margin of 1 only. How does the place scale with m?"),
            (margin, "at the margin only the push has gone; the pull, w·δ², still has a slope there."),
            (0.0, "at 0 the pull is at its lowest, but the push has the slope -2(1-w)m there, and wins."),
            (w * (1 - w) * margin**2, "that is how high the lowest point lies; asked is where: the δ."),
        ],
        hint="set the derivative of w δ² + (1-w)(m-δ)² to 0 and solve for δ.",
    )  # fmt: skip


def check_3(given: Any) -> checks.Outcome:
    """Return what there is to say about the factor by which the loss of a batch of copies is larger."""
    z, w = _random(6, 2, seed=3), torch.full((6, 6), 0.5)
    twice = relaxed_contrastive_loss(torch.cat([z, z, z]), w.repeat(3, 3))
    factor = float(twice / relaxed_contrastive_loss(z, w))
    return checks.answer(
        "3.3", given, round(factor, 4),
        "There are 9 times as many pairs, and Eq. 7 divides by N, which is 3 times as large. The loss of a batch grows with the "
        "batch: losses of different batch sizes cannot be compared.",
        [
            (1, "that would be a mean over pairs, 1/N². Eq. 7 divides by N only."),
            (9, "that is how many more pairs there are; the sum over them is divided by N."),
            (1 / 3, "the sum over pairs grows faster than N, not slower."),
            (math.sqrt(3), "δ does not change at all: row means of distances are the same with copies. Count the pairs."),
        ],
        hint="how many pairs are there now, and by what does Eq. 7 divide?",
    )  # fmt: skip


def check_4(given: Any, momentum: float = 0.999) -> checks.Outcome:
    """Return what there is to say about the steps after which a teacher with momentum γ has gone half the way."""
    equal = "that counts equal steps. Each step takes 1-γ of what is *left*, so the steps get shorter: what is left is γⁿ."
    return checks.answer(
        "3.4", given, math.log(0.5) / math.log(momentum),
        "γⁿ = 1/2 gives n = ln 2 / -ln γ, for γ near 1 about ln 2 / (1-γ). In a training much shorter than that, the teacher "
        "stays near its start.",
        [
            (0.5 / (1 - momentum), equal),
            (1 / (1 - momentum), "after 1/(1-γ) steps 1/e = 37 % of the distance is left, not half."),
            (math.log10(2) / (1 - momentum), "that is the decimal logarithm; math.log is the natural one."),
            (math.log(momentum) / math.log(0.5), "upside down: n = ln(1/2) / ln γ."),
            (math.log(0.5) / math.log(1 - momentum), "γ is what *stays* in a step; 1-γ is what goes."),
        ],
        tolerance=5e-3, hint="the distance left after n steps is γⁿ.",
    )  # fmt: skip


# --- small things ---------------------------------------------------------------------------------



def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Put the legend of one panel below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=plots.TYPE - 2, frameon=False)


def _random(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pairs(delta: Tensor) -> np.ndarray:
    """The entries off the diagonal."""
    return delta[~torch.eye(len(delta), dtype=torch.bool)].numpy()
