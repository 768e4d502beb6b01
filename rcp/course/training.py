"""Figures and explorers of notebook 03: what the loss does to points in the plane, trained live, and to real patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from rcp import plots, widgets
from rcp.course import contrastive_loss as lesson
from rcp.course.contrastive_loss import BLUE, VERMILION, legend_below
from rcp.distances import distances
from rcp.head import EpochRecord
from rcp.loss import loss_and_gradient, loss_of_distances, pushed_share, relative_distances
from rcp.plots import GREEN, GREY, ORANGE

KINDS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"))  # colour and marker of the toy's three clusters
STEPS, RATE = 60, 0.2  # of the toy's gradient descent
ARROW = 2.5  # length of an arrow for a gradient of 1
FRAME = ((-2.1, 3.6), (-2.0, 3.5))  # x and y of the toy's pictures


# --- a toy that the loss moves --------------------------------------------------------------------


class Descent(NamedTuple):
    """A path of gradient descent.

    Attributes:
        points: (steps + 1, N, 2).
        arrows: (steps + 1, N, 2), minus the gradients there.
        losses: (steps + 1,).
    """

    points: Tensor
    arrows: Tensor
    losses: Tensor


def descend(start: Tensor, w: Tensor, margin: float = 1.0, steps: int = STEPS, rate: float = RATE) -> Descent:
    """Return the path of points that move against the gradient of Eq. 7, their labels fixed.

    Args:
        start: (N, 2).
        w: (N, N) labels.
        margin: m.
        steps: of gradient descent.
        rate: how far a point moves for a gradient of 1.
    """
    z, points, arrows, losses = start, [], [], []
    for _ in range(steps + 1):
        now = loss_and_gradient(z, w, margin)
        points.append(z), arrows.append(-now.gradient), losses.append(now.loss)
        z = z - rate * now.gradient
    return Descent(torch.stack(points), torch.stack(arrows), torch.stack(losses))


def toy_figure(toy: lesson.Toy, path: Descent, stages: Sequence[int] = (0, 10, 30, STEPS)) -> Figure:
    """Return what the teacher sees, and the student's points with their arrows at some steps.

    Args:
        toy: the points.
        path: of the student.
        stages: steps to draw.
    """
    figure = plots.new_figure(12, 3.2)
    panels = figure.subplots(1, 1 + len(stages), sharey=True)
    _points(panels[0], toy.seen, toy.kind)
    panels[0].set_title("what the\nteacher sees", fontsize=plots.TYPE)
    for axes, step in zip(panels[1:], stages, strict=True):
        _points(axes, path.points[step], toy.kind, path.arrows[step])
        axes.set_title(f"step {step}\nloss {float(path.losses[step]):.2f}", fontsize=plots.TYPE)
    return figure


def toy_explorer(toy: lesson.Toy) -> ipywidgets.VBox:
    """Return a play button and sliders for step, margin and α over the points, their arrows and the loss; a click on a
    point shows who pulls and who pushes it."""

    @lru_cache(maxsize=256)
    def path(margin: float, alpha: float) -> tuple[Descent, Tensor]:
        w = lesson.toy_labels(toy.seen, alpha)
        return descend(toy.start, w, margin), w

    def draw(step: int, margin: float, alpha: float, chosen: int | None) -> Figure:
        walked, w = path(round(margin, 2), round(alpha, 2))
        figure = Figure(figsize=(11, 4.8))
        left, right = figure.add_axes((0.02, 0.04, 0.5, 0.84)), figure.add_axes((0.61, 0.15, 0.36, 0.73))
        points = walked.points[step]
        if chosen is not None:
            _forces(left, points, pair_forces(points, w, margin), chosen)
        _points(left, points, toy.kind, walked.arrows[step])
        share = pushed_share(relative_distances(points), margin)
        left.set_title(f"step {step}: {100 * share:.0f} % of the pairs pushed", fontsize=plots.TYPE)
        right.plot(walked.losses, color=plots.LIMIT, lw=2)
        right.plot(step, walked.losses[step], "D", color=ORANGE, ms=12, mec="black")
        right.set_title(f"loss {float(walked.losses[step]):.2f}", fontsize=plots.TYPE)
        right.set_xlabel("step", fontsize=plots.TYPE - 1)
        right.set_ylim(0, float(walked.losses.max()) * 1.05 + 0.01)
        plots.plain(right)
        return figure

    def click(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.phase != "down" or touch.panel != 0:
            return {}
        points = path(round(values["margin"], 2), round(values["alpha"], 2))[0].points[values["step"]]
        away = (points - torch.tensor([touch.x, touch.y])).norm(dim=1)
        return {"chosen": int(away.argmin()) if float(away.min()) < 0.5 else None}

    step, play = widgets.player(STEPS, "step", 250)
    controls = {
        "step": step,
        "margin": widgets.slider(0.0, 2.0, 1.0, "m (margin)", 0.1),
        "alpha": widgets.slider(0.0, 1.0, 0.5, "α (share of pairwise)", 0.1),
    }
    explorer = widgets.explore(
        draw, controls, state={"chosen": None}, on_touch=click, alt="points with arrows against the gradient, and the loss"
    )  # fmt: skip
    return _with(play, explorer)


def pair_forces(z: Tensor, w: Tensor, margin: float = 1.0, fixed_mean: bool = False) -> Tensor:
    """Return how strongly each pair draws together (> 0) or apart (< 0): (N, N), symmetric, diagonal 0.

    Row i times the unit vectors from i to j adds up to minus the gradient at z_i. Autograd finds it, with the distances
    themselves as the variables.

    Args:
        z: (N, 2) points.
        w: (N, N) labels.
        margin: m.
        fixed_mean: take the mean distance of each row for a constant, which is wrong, to see what that leaves out.
    """
    d = distances(z).requires_grad_()
    mean = d.mean(1, keepdim=True)
    loss_of_distances(d / (mean.detach() if fixed_mean else mean), w, margin).backward()
    both = d.grad + d.grad.T
    return both.fill_diagonal_(0)


def forces_figure(toy: lesson.Toy, path: Descent, chosen: int, stages: Sequence[int] = (0, 10, 30)) -> Figure:
    """Return who pulls and who pushes one point, at some steps of a path with the toy's labels and margin 1."""
    figure, w = plots.new_figure(12, 4.9), lesson.toy_labels(toy.seen)
    for axes, step in zip(figure.subplots(1, len(stages), sharey=True), stages, strict=True):
        points = path.points[step]
        _forces(axes, points, pair_forces(points, w), chosen)
        _points(axes, points, toy.kind)
        arrow = path.arrows[step][chosen]
        axes.quiver(*points[chosen], *arrow, angles="xy", scale_units="xy", scale=1 / ARROW, width=0.015, zorder=4)
        axes.set_title(f"step {step}: together {float(arrow.norm()):.2f}", fontsize=plots.TYPE - 1)
    axes.plot([], [], "-", color=BLUE, lw=4, label="pulls")
    axes.plot([], [], "--", color=VERMILION, lw=4, label="pushes")
    legend_below(figure, axes, 2)
    return figure


# --- hard labels ----------------------------------------------------------------------------------


def hard_figure(toy: lesson.Toy, labels: dict[str, Tensor]) -> Figure:
    """Return where different labels (title → (N, N)) have moved the points to, beside what the teacher sees."""
    figure = plots.new_figure(12, 3.4)
    panels = figure.subplots(1, 1 + len(labels), sharey=True)
    _points(panels[0], toy.seen, toy.kind)
    panels[0].set_title("what the teacher sees", fontsize=plots.TYPE)
    for axes, (title, w) in zip(panels[1:], labels.items(), strict=True):
        _points(axes, descend(toy.start, w).points[-1], toy.kind)
        axes.set_title(f"{title}, step {STEPS}", fontsize=plots.TYPE - 1)
    return figure


def hard_explorer(toy: lesson.Toy) -> ipywidgets.VBox:
    """Return both kinds of labels side by side, with sliders for the step and for the limit above which w counts as 1."""
    w = lesson.toy_labels(toy.seen)
    relaxed = descend(toy.start, w)

    @lru_cache(maxsize=64)
    def hard(limit: float) -> Descent:
        return descend(toy.start, (w > limit).float())

    def draw(step: int, limit: float) -> Figure:
        figure = Figure(figsize=(11, 5.0))
        both = {"relaxed: w": relaxed, f"hard: 1 if w > {limit:.2f}": hard(round(limit, 2))}
        for number, (title, path) in enumerate(both.items()):
            axes = figure.add_axes((0.02 + 0.5 * number, 0.04, 0.46, 0.85))
            _points(axes, path.points[step], toy.kind, path.arrows[step])
            axes.set_title(f"{title}, step {step}", fontsize=plots.TYPE)
        return figure

    step, play = widgets.player(STEPS, "step", 250)
    controls = {"step": step, "limit": widgets.slider(0.05, 0.95, 0.5, "limit for hard labels", 0.05)}
    return _with(play, widgets.explore(draw, controls, alt="the same points moved by relaxed and by hard labels"))


def _points(axes: Axes, points: Tensor, kind: Tensor, arrows: Tensor | None = None) -> None:
    for number, (colour, marker) in enumerate(KINDS):
        own = points[kind == number]
        axes.scatter(*own.T, c=colour, marker=marker, s=60, edgecolors="black", linewidths=0.6, zorder=3)
    if arrows is not None:
        axes.quiver(
            *points.T, *arrows.T, angles="xy", scale_units="xy", scale=1 / ARROW, width=0.009, color=plots.LIMIT, zorder=2
        )
    axes.set(xlim=FRAME[0], ylim=FRAME[1], xticks=[], yticks=[])
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_color("#BBBBBB")


def _forces(axes: Axes, points: Tensor, forces: Tensor, chosen: int) -> None:
    """Draw a line from one point to each other one, as wide as the pair's force."""
    widths = 7 * forces[chosen].abs() / float(forces.abs().max().clamp_min(1e-9)) + 0.7
    for sign, colour, style in ((1, BLUE, "solid"), (-1, VERMILION, (0, (2, 1)))):
        acting = (sign * forces[chosen] > 1e-6).nonzero()[:, 0]
        lines = [torch.stack([points[chosen], points[other]]).numpy() for other in acting]
        axes.add_collection(LineCollection(lines, colors=colour, linestyles=[style], linewidths=widths[acting].tolist(), alpha=0.75))
    axes.scatter(*points[chosen], s=330, facecolors="none", edgecolors="black", linewidths=2.5, zorder=5)


def _with(button: ipywidgets.Widget, explorer: widgets.Explorer) -> ipywidgets.VBox:
    return ipywidgets.VBox([button, explorer])


# --- real patches ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One batch of patches, always the same, looked at between two epochs.

    Attributes:
        epoch: 0 before the first step.
        moving: L_RC with the labels of this epoch's teacher.
        frozen: L_RC with the labels of the teacher at the start.
        floor: what L_RC cannot fall below with the labels of this epoch's teacher.
        label: (bins,) mean label at the start, of the pairs of each bin of it.
        delta: (bins,) mean δ of the outputs z of these pairs.
        kept: (bins,) the same for f(p), which the memory keeps.
    """

    epoch: int
    moving: float
    frozen: float
    floor: float
    label: np.ndarray
    delta: np.ndarray
    kept: np.ndarray


EDGES = (0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.01)  # of the bins of w
FEWEST = 20  # pairs without which a bin has no mean
RUNS = ((BLUE, "o", "-"), (GREEN, "^", "-."), (VERMILION, "s", "--"))  # colour, marker and line of each training


def by_label(delta: Tensor, w: Tensor) -> np.ndarray:
    """Return the mean relative distance of the pairs i ≠ j in each bin of their label: (bins,), nan for too few pairs.

    Args:
        delta: (N, N) relative distances.
        w: (N, N) labels.
    """
    others = ~torch.eye(len(w), dtype=torch.bool)
    means = []
    for low, high in pairwise(EDGES):
        within = delta[others & (w >= low) & (w < high)]
        means.append(float(within.mean()) if len(within) >= FEWEST else float("nan"))
    return np.array(means)


def history_figure(histories: dict[str, list[EpochRecord]], said: str) -> Figure:
    """Return the histories of some trainings: what each epoch's record says.

    Args:
        histories: title → records.
        said: what the data are.
    """
    figure = plots.new_figure(12, 7.6)
    panels = figure.subplots(2, 3)
    what = {
        "loss L_RC, mean of the steps": lambda r: r.loss,
        "pushed pairs in %": lambda r: 100 * r.pushed_share,
        "mean w$^P$": lambda r: r.pairwise_mean,
        "mean w$^C$ in ‰": lambda r: 1000 * r.contextual_mean,
        "δ: median and 5–95 %": lambda r: r.delta_quantiles[2],
        "teacher's distance in %": lambda r: 100 * r.ema_distance,
    }
    for axes, (name, value) in zip(panels.flat, what.items(), strict=True):
        for (title, records), (colour, marker, line) in zip(histories.items(), RUNS, strict=False):
            epochs = [record.epoch for record in records]
            axes.plot(epochs, list(map(value, records)), line, marker=marker, color=colour, ms=8, lw=2, label=title)
            if name.startswith("δ"):
                low, high = ([record.delta_quantiles[end] for record in records] for end in (0, -1))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15)
        axes.set_title(name, fontsize=plots.TYPE)
        axes.set_xticks(epochs)
        plots.plain(axes)
    panels[1, 0].set_ylim(0, 1.3 * panels[1, 0].get_ylim()[1])  # or a change in the fourth digit would look like one
    for axes in panels[1]:
        axes.set_xlabel("epoch", fontsize=plots.TYPE)
    legend_below(figure, axes, 3)
    figure.suptitle(f"What the trainings write down ({said})", fontsize=plots.TYPE)
    return figure


def labels_figure(looks: dict[str, list[Look]]) -> Figure:
    """Return the loss of one and the same batch with moving and with frozen labels, and the moving labels' floor.

    Args:
        looks: title → a look before each epoch and after the last.
    """
    figure = plots.new_figure(12, 4.9)
    panels = figure.subplots(1, len(looks), squeeze=False)[0]
    for axes, (title, seen) in zip(panels, looks.items(), strict=True):
        _losses(axes, seen)
        axes.set_title(title, fontsize=plots.TYPE)
        axes.set_xlabel("epoch", fontsize=plots.TYPE)
    panels[0].set_ylabel("loss of one batch", fontsize=plots.TYPE)
    legend_below(figure, axes, 3)
    return figure


def moved_figure(looks: dict[str, list[Look]], said: str) -> Figure:
    """Return the mean relative distance by starting label, before and after each training, for z and for f(p).

    Args:
        looks: title → a look before each epoch and after the last.
        said: what the data are.
    """
    figure = plots.new_figure(12, 5.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("delta", "kept"), strict=True):
        for (title, seen), style in zip(looks.items(), RUNS, strict=False):
            _by_bin(axes, seen[0].label, getattr(seen[-1], name), *style, f"after: {title}")
        _by_bin(axes, seen[0].label, getattr(seen[0], name), plots.LIMIT, "D", ":", "before")
        axes.plot([0, 1], [1, 0], color=GREY, lw=2, label="what the label orders, m = 1")
        axes.set_xlabel("label w at the start", fontsize=plots.TYPE)
    panels[0].set_title("outputs z = g(f(p)): what is trained", fontsize=plots.TYPE)
    panels[1].set_title("f(p): what the memory keeps", fontsize=plots.TYPE)
    panels[0].set_ylabel("mean δ of the pairs", fontsize=plots.TYPE)
    legend_below(figure, axes, 3)
    figure.suptitle(said, fontsize=plots.TYPE - 1)
    return figure


def epoch_explorer(looks: dict[str, list[Look]]) -> widgets.Explorer:
    """Return a choice of the training and a slider over its epochs, over the losses and the distances by label.

    Args:
        looks: title → a look before each epoch and after the last.
    """

    def draw(training: str, epoch: int) -> Figure:
        seen = looks[training]
        epoch = min(epoch, len(seen) - 1)
        figure = Figure(figsize=(11.5, 4.6))
        left, right = figure.add_axes((0.08, 0.15, 0.4, 0.73)), figure.add_axes((0.57, 0.15, 0.4, 0.73))
        _losses(left, seen, epoch)
        left.set_xlabel("epoch", fontsize=plots.TYPE - 1)
        left.set_title("L_RC of one batch", fontsize=plots.TYPE)
        left.legend(fontsize=plots.TYPE - 3, frameon=False)
        _by_bin(right, seen[0].label, seen[0].delta, plots.LIMIT, "D", ":", "before")
        _by_bin(right, seen[0].label, seen[epoch].delta, *RUNS[0], f"after epoch {epoch}")
        right.set_xlabel("label w at the start", fontsize=plots.TYPE - 1)
        right.set_title("mean δ of z, by label", fontsize=plots.TYPE)
        right.legend(fontsize=plots.TYPE - 3, frameon=False)
        values = np.concatenate([look.delta for all_looks in looks.values() for look in all_looks])
        right.set_ylim(np.nanmin(values) - 0.1, np.nanmax(values) + 0.1)
        return figure

    last = max(len(seen) for seen in looks.values()) - 1
    choice = ipywidgets.Dropdown(options=list(looks), description="training", layout=ipywidgets.Layout(width="420px"))
    controls = {"training": choice, "epoch": widgets.slider(0, last, last, "epoch")}
    return widgets.explore(draw, controls, alt="losses over the epochs, and distances of patches by their label")


def _losses(axes: Axes, seen: Sequence[Look], marked: int | None = None) -> None:
    epochs = [look.epoch for look in seen]
    axes.plot(epochs, [look.moving for look in seen], "s-", color=VERMILION, lw=2.5, ms=8, label="moving labels")
    axes.plot(epochs, [look.frozen for look in seen], "o--", color=BLUE, lw=2.5, ms=8, label="labels of the start")
    axes.plot(epochs, [look.floor for look in seen], ":", color=plots.LIMIT, lw=2.5, label="floor of moving labels")
    if marked is not None:
        axes.axvline(marked, color=GREY, lw=1.5)
    axes.set_xticks(epochs)
    plots.plain(axes)


def _by_bin(axes: Axes, at: np.ndarray, means: np.ndarray, colour: str, marker: str, line: str, label: str) -> None:
    axes.plot(at, means, line, marker=marker, color=colour, lw=2, ms=8, label=label)
    plots.plain(axes)
