"""Figures, interactive twins and checks of notebook 02: pairwise and contextual similarity, and what becomes of σ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from rcp import plots, widgets
from rcp.course.checks import Outcome, answer, choice, function
from rcp.similarity import contextual_similarity, mix, neighbours, pairwise_similarity, pseudo_labels, similarities

FIRST, SECOND = plots.NORMAL, plots.ANOMALOUS
SAME = "viridis"
PAIRS = {"inside a cluster": (1, 3), "across the gap": (4, 5)}  # both 1 apart
LEFT = [(-0.1, 0.0), (0.5, 0.5), (0.55, 0.0), (0.5, -0.5), (1.0, 0.0)]
TWELVE = torch.tensor(
    [*LEFT, (2.0, 0.0), (2.5, 0.5), (2.45, 0.0), (2.5, -0.5), (3.1, 0.0), (1.5, 1.3), (1.5, -1.3)]
)
SHOWN = 14  # patches that are outlined as "same", at most


def points_figure(points: Tensor = TWELVE) -> Figure:
    """Return the twelve points with their numbers, and the two pairs that are equally far apart."""
    figure = plots.new_figure(9, 5)
    axes = figure.subplots()
    _points(axes, points, 600)
    for (title, pair), colour, style in zip(PAIRS.items(), (FIRST, SECOND), ("-", "--"), strict=True):
        axes.plot(*points[list(pair)].T, style, color=colour, lw=4, zorder=1, label=f"{title}: 1.00 apart")
    axes.legend(fontsize=plots.TYPE - 1, frameon=False, loc="lower left")
    return figure


def context_figure(points: Tensor = TWELVE, k: int = 5, sigma: float = 1.0, alpha: float = 0.5) -> Figure:
    """Return the two pairs with the neighbourhoods of their ends, and bars of w^P, w^C and w.

    Args:
        points: (N, 2) float32, the first twelve of which hold the two pairs of `PAIRS`.
        k, sigma, alpha: of Eqs 2, 1 and 6; z̄ is not normalised here, as it is the plane that one sees.

    Source: after ReConPatch, Figure 2.
    """
    figure = Figure((12, 4.6))  # laid out by hand: automatic layout takes half of the time that a slider has
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.86, wspace=0.06)
    panels = figure.subplots(1, 3, width_ratios=[1.35, 1.35, 1])
    near = neighbours(points, k).tolist()
    for axes, (title, pair) in zip(panels, PAIRS.items(), strict=False):
        common = len(set(near[pair[0]]) & set(near[pair[1]]))
        distance = float((points[pair[0]] - points[pair[1]]).norm())
        _points(axes, points)
        _neighbourhoods(axes, points, near, pair, k)
        axes.set_title(f"{title}: {distance:.2f} apart\n{common} of {k} neighbours in common", fontsize=plots.TYPE - 1)
    pairwise, contextual = similarities(points, sigma, k, normalize=False)
    labels = pseudo_labels(points, alpha, sigma, k, normalize=False)
    for place, ((title, (i, j)), colour, hatch) in enumerate(
        zip(PAIRS.items(), (FIRST, SECOND), ("", "//"), strict=True)
    ):
        values = [float(part[i, j]) for part in (pairwise, contextual, labels)]
        bars = panels[2].bar(
            np.arange(3) + 0.4 * place - 0.2, values, 0.38, color=colour, hatch=hatch, edgecolor="white", label=title
        )
        panels[2].bar_label(bars, [f"{value:.2f}" for value in values], fontsize=plots.TYPE - 2)
    panels[2].set_xticks(range(3), ["$w^P$", "$w^C$", "$w$"], fontsize=plots.TYPE)
    panels[2].set_ylim(0, 1.35)
    panels[2].set_yticks([0, 0.5, 1])
    panels[2].tick_params(axis="y", labelsize=plots.TYPE - 2)
    panels[2].legend(fontsize=plots.TYPE - 3, frameon=False, loc="upper center")
    panels[2].spines[["top", "right"]].set_visible(False)
    panels[2].set_title(f"k = {k}, σ = {sigma:.2f}, α = {alpha:.2f}", fontsize=plots.TYPE - 1)
    return figure


def context_explorer(points: Tensor = TWELVE) -> widgets.Explorer:
    """Return the playground: sliders for k, σ and α, and points that can be dragged; twin of `context_figure`."""

    def draw(k: int, sigma: float, alpha: float, places: Tensor, held: int | None) -> Figure:
        return context_figure(places, k, sigma, alpha)

    def moved(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
        if touch.panel > 1:
            return {}
        places, held, at = values["places"], values["held"], torch.tensor([touch.x, touch.y])
        if touch.phase == "down":
            gaps = (places - at).norm(dim=1)
            held = int(gaps.argmin())
            return {"held": held} if float(gaps[held]) < 0.4 else {"held": None}
        if held is None:
            return {}
        places = places.clone()
        places[held] = at
        return {"places": places, "held": None if touch.phase == "up" else held}

    controls = {
        "k": widgets.slider(2, 10, 5, "k (neighbours)"),
        "sigma": widgets.slider(0.05, 4.0, 1.0, "σ (squared distance)"),
        "alpha": widgets.slider(0.0, 1.0, 0.5, "α (share of pairwise)"),
    }
    return widgets.explore(
        draw, controls, state={"places": points.clone(), "held": None}, on_touch=moved,
        alt="two pairs of points with their neighbourhoods, and bars of their similarities",
    )  # fmt: skip


def matrices_figure(points: Tensor = TWELVE, k: int = 5, sigma: float = 1.0, alpha: float = 0.5) -> Figure:
    """Return w^P, w^C and w of all pairs as three maps on one colour scale.

    Args:
        points: (N, 2) float32.
        k, sigma, alpha: as in `context_figure`.
    """
    pairwise, contextual = similarities(points, sigma, k, normalize=False)
    labels = pseudo_labels(points, alpha, sigma, k, normalize=False)
    figure = plots.new_figure(12, 4.6)
    panels = figure.subplots(1, 3)
    titles = ("pairwise $w^P$ (Eq. 1)", "contextual $w^C$ (Eq. 5)", "label $w$ (Eq. 6)")
    for axes, part, title in zip(panels, (pairwise, contextual, labels), titles, strict=True):
        drawn = axes.imshow(part.numpy(), cmap=SAME, vmin=0, vmax=1)
        axes.set_title(title, fontsize=plots.TYPE)
        axes.set_xticks(range(0, len(points), 2))
        axes.set_yticks(range(0, len(points), 2))
        axes.tick_params(labelsize=plots.TYPE - 3)
        for (i, j), colour in zip(PAIRS.values(), (FIRST, SECOND), strict=True):
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec=colour, lw=3.5))
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="white", lw=1))
    panels[0].set_ylabel("point", fontsize=plots.TYPE - 1)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.85, pad=0.01)
    bar.set_label("similarity", fontsize=plots.TYPE - 1)
    bar.ax.tick_params(labelsize=plots.TYPE - 3)
    return figure


def sigma_figure(z: Tensor, sigma: float = 1.0) -> Figure:
    """Return histograms of w^P off the diagonal: z̄ as it comes, and z̄ brought to length 1.

    Args:
        z: (N, D) teacher outputs.
        sigma: of Eq. 1, in squared distance.
    """
    return _sigma(_halves(z), sigma)


def sigma_explorer(z: Tensor) -> widgets.Explorer:
    """Return a slider for σ (on a logarithmic scale) above the two histograms; twin of `sigma_figure`.

    Args:
        z: (N, D) teacher outputs.
    """
    halves = _halves(z)
    power = widgets.slider(-2.0, 4.0, 0.0, "log10 of σ", 0.25)
    return widgets.explore(
        lambda power: _sigma(halves, 10.0**power), {"power": power}, alt="histograms of pairwise similarities"
    )


class SameAs:
    """The patches of a few images, and which of them count as the same as a chosen one."""

    def __init__(self, pictures: Sequence[np.ndarray], z: Tensor, grid: tuple[int, int]):
        """Take images and the teacher's output for their patches.

        Args:
            pictures: n images (h, w, 3) uint8, as the network saw them.
            z: (n·H·W, D) teacher outputs, image by image.
            grid: (H, W).
        """
        self.pictures, self.z, self.grid = list(pictures), z, grid
        if len(z) != len(pictures) * grid[0] * grid[1]:
            raise ValueError(f"{len(pictures)} images with {grid[0]} × {grid[1]} patches need as many rows of z, got {len(z)}")
        unit = torch.nn.functional.normalize(z, dim=1)
        self._pairwise = pairwise_similarity(unit)
        self._contextual = lru_cache(maxsize=8)(lambda k: contextual_similarity(unit, k))

    def labels(self, patch: int, k: int = 5, alpha: float = 0.5) -> Tensor:
        """Return row `patch` of w: (N,)."""
        return mix(self._pairwise[patch], self._contextual(k)[patch], alpha)

    def figure(self, patch: int, k: int = 5, alpha: float = 0.5) -> Figure:
        """Return the images with the chosen patch (cross) and the patches of the largest labels (framed), and crops of them.

        Args:
            patch: row of z.
            k, alpha: of Eqs 2 and 6; σ is 1 on z̄ of length 1.
        """
        labels = self.labels(patch, k, alpha)
        best = [j for j in labels.argsort(descending=True, stable=True).tolist() if j != patch][:SHOWN]
        figure = Figure((12, 5.2))
        figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.94, wspace=0.03)
        panels = figure.subplots(1, len(self.pictures) + 1, width_ratios=[3] * len(self.pictures) + [1.7])
        for number, (axes, picture) in enumerate(zip(panels, self.pictures, strict=False)):
            axes.imshow(picture)
            self._frames(axes, number, [j for j in best if float(labels[j]) > 0], labels)
            if self._where(patch)[0] == number:
                y, x = self._centre(patch)
                axes.plot(x, y, "s", color="white", ms=10, mec="black", mew=1.5)
                axes.plot(x, y, "x", color="black", ms=6, mew=2)
            axes.set_axis_off()
        title = f"chosen patch: ☒     k = {k}, α = {alpha:.2f}"
        panels[0].set_title(title, fontsize=plots.TYPE, loc="left")
        self._crops(panels[-1], [patch, *best[:7]], labels)
        return figure

    def explorer(self, patch: int) -> widgets.Explorer:
        """Return the figure with sliders; a click on a patch chooses it."""

        def chosen(touch: widgets.Touch, values: widgets.Values) -> widgets.Values:
            if touch.phase != "down" or touch.panel >= len(self.pictures):
                return {}
            return {"patch": self.patch_at(touch.panel, touch.y, touch.x)}

        controls = {"k": widgets.slider(2, 20, 5, "k (neighbours)"), "alpha": widgets.slider(0.0, 1.0, 0.0, "α (share of pairwise)")}
        return widgets.explore(
            lambda k, alpha, patch: self.figure(patch, k, alpha), controls, state={"patch": patch}, on_touch=chosen,
            alt="images with the patches that are most alike to a chosen one",
        )  # fmt: skip

    def patch_at(self, image: int, y: float, x: float) -> int:
        """Return the row of z whose patch covers a pixel of an image."""
        (h, w), (rows, columns) = self.pictures[image].shape[:2], self.grid
        row = min(rows - 1, max(0, int((y + 0.5) * rows / h)))
        column = min(columns - 1, max(0, int((x + 0.5) * columns / w)))
        return (image * rows + row) * columns + column

    def _where(self, patch: int) -> tuple[int, int, int]:
        """Image, row and column of a patch."""
        rows, columns = self.grid
        return patch // (rows * columns), patch // columns % rows, patch % columns

    def _centre(self, patch: int) -> tuple[float, float]:
        image, row, column = self._where(patch)
        h, w = self.pictures[image].shape[:2]
        return (row + 0.5) * h / self.grid[0] - 0.5, (column + 0.5) * w / self.grid[1] - 0.5

    def _frames(self, axes: Axes, image: int, patches: Sequence[int], labels: Tensor) -> None:
        own = [j for j in patches if self._where(j)[0] == image]
        h, w = self.pictures[image].shape[:2]
        dy, dx = 0.5 * h / self.grid[0] - 0.6, 0.5 * w / self.grid[1] - 0.6  # a little inside, so that neighbours do not touch
        lines = []
        for j in own:
            y, x = self._centre(j)
            lines.append([(x - dx, y - dy), (x + dx, y - dy), (x + dx, y + dy), (x - dx, y + dy), (x - dx, y - dy)])
        axes.add_collection(LineCollection(lines, colors="black", linewidths=4))
        axes.add_collection(LineCollection(lines, colors=[_shade(labels[j]) for j in own], linewidths=2))

    def _crops(self, axes: Axes, patches: Sequence[int], labels: Tensor, side: int = 40) -> None:
        sheet = np.full((4 * (side + 22), 2 * (side + 6), 3), 255, np.uint8)
        for place, patch in enumerate(patches):
            picture = self.pictures[self._where(patch)[0]]
            y, x = (round(value) for value in self._centre(patch))
            top, left = (min(max(0, at - side // 2), size - side) for at, size in ((y, picture.shape[0]), (x, picture.shape[1])))
            row, column = place // 2 * (side + 22) + 20, place % 2 * (side + 6)
            sheet[row : row + side, column : column + side] = picture[top : top + side, left : left + side]
            word = "chosen ☒" if place == 0 else f"w = {float(labels[patch]):.2f}"
            colour = "black" if place == 0 else _shade(labels[patch])
            axes.add_patch(Rectangle((column, row), side - 1, side - 1, fill=False, ec=colour, lw=4))
            axes.text(column + side / 2, row - 4, word, ha="center", fontsize=plots.TYPE - 3)
        axes.imshow(sheet)
        axes.set_axis_off()


def check_1(given: float) -> Outcome:
    """Return what is to be said of w̃ (Eq. 2) of the lonely point 10 with point 4, k = 5."""
    near = neighbours(TWELVE, 5).tolist()
    mine, other = set(near[10]), set(near[4])
    common, union = len(mine & other), len(mine | other)
    return answer(
        "2.1", given, common / 5, "N_5(10) and N_5(4) have 1, 4 and 5 in common, and |N_k(i)| is 5.",
        [
            (common, "this counts the common neighbours; Eq. 2 divides by |N_k(i)| = 5."),
            (common / union, "this divides by the union (the Jaccard index); Eq. 2 divides by |N_k(i)| = 5."),
            (0, "this is w̃ of 4 with 10: 10 is not in N_5(4). Here i = 10, and 4 is one of its neighbours."),
            ((common - 1) / 5, "a point counts among its own neighbours (distance 0): 4 is in both sets."),
            ((common - 1) / 4, "a point counts among its own neighbours, so a neighbourhood has k = 5 members, not 4."),
        ],
        hint="list N_5(10) and N_5(4) in the figure of the twelve points: each has five members, the point itself included.",
    )  # fmt: skip


def check_2(given) -> Outcome:
    """Return what is to be said of a function for the reciprocal neighbours (Eq. 3): lists of neighbours → (N, N) bool."""

    def member(near):
        table = torch.zeros(len(near), len(near), dtype=torch.bool)
        for i, row in enumerate(near):
            table[i, list(row)] = True
        return table

    cases = [(neighbours(TWELVE, k).tolist(),) for k in (2, 5, 7)]
    return function(
        "2.2", given, lambda near: member(near) & member(near).T, cases,
        "Reciprocal means both ways, so the table is symmetric; point 10 has far neighbours that do not have it back.",
        [
            (member, "this is N_k itself: j ∈ N_k(i). Eq. 3 also asks that i ∈ N_k(j)."),
            (lambda near: member(near) | member(near).T, "this holds if *one* of the two has the other; Eq. 3 asks for both."),
            (lambda near: member(near) & member(near).T & ~torch.eye(len(near), dtype=torch.bool),
             "i is its own neighbour, so the diagonal is True; without it Eq. 4 could divide by zero."),
        ],
        hint="the result is a (N, N) table of True and False.",
    )  # fmt: skip


def check_3(given: float, d2: Tensor) -> Outcome:
    """Return what is to be said of the σ for which the median w^P is one half.

    Args:
        given: the answer.
        d2: (N,) squared distances.
    """
    median, log2 = float(d2.median()), float(np.log(2))
    return answer(
        "2.3", given, median / log2, "exp(-d²/σ) = ½ where σ = d² / ln 2: σ has the unit of a squared distance, so it must follow the scale of the features.",
        [
            (median, "with σ = median d² the median similarity is exp(-1) = 0.37."),
            (median * log2, "solve exp(-d²/σ) = ½ for σ: the logarithm goes below the fraction line."),
            (float(d2.sqrt().median()) / log2, "Eq. 1 has the *squared* distance in it."),
            (median / 2 / log2, "this would be the form exp(-d²/(2σ)); Eq. 1 has no 2."),
        ],
        hint="set exp(-d²/σ) = ½ for the median of d², and solve for σ.",
    )  # fmt: skip


def check_4(given: str) -> Outcome:
    """Return what is to be said of the choice: what does k = 3 do?"""
    return choice(
        "2.4", given,
        {
            "nothing changes": "k/2 is rounded down: for k = 3 it is 1, and that does change something: look at Eq. 4.",
            "no expansion": "floor(3/2) = 1, the only neighbour of i is i itself: Eq. 4 averages over one row, and ŵ = w̃.",
            "division by zero": "R_1(i) still holds i itself, as i ∈ N_k(i); it is never empty.",
        },
        "no expansion",
    )  # fmt: skip


def _shade(label: Tensor) -> tuple[float, float, float, float]:
    """A colour that is the brighter the larger the label is, and never dark."""
    return colormaps["plasma"](0.35 + 0.65 * float(label))


def _points(axes: Axes, points: Tensor, size: float = 330) -> None:
    axes.scatter(*points.T, s=size, color="white", edgecolor="black", linewidth=1.5, zorder=3)
    for number, (x, y) in enumerate(points.tolist()):
        axes.text(x, y, str(number), ha="center", va="center_baseline", fontsize=plots.TYPE - 3, zorder=4)
    axes.set(xlim=(-0.5, 3.5), ylim=(-2.4, 1.7), aspect="equal", anchor="C")
    plots.bare(axes)


def _neighbourhoods(axes: Axes, points: Tensor, near: list[list[int]], pair: tuple[int, int], k: int) -> None:
    """Rings around N_k of both ends, lines to R_{k/2}, which Eq. 4 averages over."""
    half = neighbours(points, k // 2).tolist()
    for end, colour, size, style in zip(pair, (FIRST, SECOND), (620, 1050), ("-", (0, (2, 1.2))), strict=True):
        axes.scatter(*points[near[end]].T, s=size, facecolor="none", edgecolor=colour, linewidth=3, linestyle=style, zorder=2)
        mutual = [j for j in half[end] if j != end and end in half[j]]
        for j in mutual:
            axes.plot(*points[[end, j]].T, color=colour, lw=6, zorder=2.5)
        members = ", ".join(map(str, sorted([end, *mutual])))
        axes.plot([], [], color=colour, lw=3, ls=style, label=f"$N_k({end})$;  $R_{{k/2}}({end})$ = {{{members}}}")
    axes.legend(fontsize=plots.TYPE - 3, frameon=False, loc="lower left", handlelength=1.4)


def _halves(z: Tensor) -> dict[str, Tensor]:
    z = z[:: max(1, len(z) // 400)]  # 80,000 pairs are enough for a histogram, and quick
    return {"as it comes": z, "brought to length 1": torch.nn.functional.normalize(z, dim=1)}


def _sigma(halves: dict[str, Tensor], sigma: float) -> Figure:
    figure = Figure((12, 4.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.16, top=0.91, wspace=0.08)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, z), colour in zip(panels, halves.items(), (SECOND, FIRST), strict=True):
        w = pairwise_similarity(z, sigma).numpy()[np.triu_indices(len(z), 1)]
        counts, edges = np.histogram(w, np.linspace(0, 1, 41))
        axes.stairs(100 * counts / len(w), edges, fill=True, color=colour)
        axes.set_title(f"z̄ {title}: median $w^P$ {np.median(w):.3f}", fontsize=plots.TYPE)
        axes.set_xlabel(f"pairwise similarity $w^P$, i ≠ j, σ = {sigma:.3g}", fontsize=plots.TYPE - 1)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 100)
        axes.tick_params(labelsize=plots.TYPE - 2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of pairs (%)", fontsize=plots.TYPE - 1)
    return figure
