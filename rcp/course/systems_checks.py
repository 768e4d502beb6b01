"""The checks of notebook 10's exercises: a distance that knows the scatter, bytes of Gaussians, who is hard enough to learn from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rcp.course.checks import Outcome, answer, function

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
X, MEAN = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
SCATTER = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
CASES = ((X, MEAN, SCATTER), (torch.tensor([0.0, 3.0]), torch.zeros(2), torch.tensor([[1.0, -0.3], [-0.3, 0.5]])))


def mahalanobis(x: Tensor, mean: Tensor, scatter: Tensor) -> Tensor:
    """Return √((x − μ)ᵀ Σ⁻¹ (x − μ)) of one row: (d,), (d,), (d, d) → ()."""
    return ((x - mean) @ torch.linalg.solve(scatter, x - mean)).sqrt()


def check_1(given: Distance) -> Outcome:
    """Return what there is to say of a function (x, mean, scatter) → the Mahalanobis distance."""
    mistakes = [
        (lambda x, m, s: (x - m).norm(), "that is the plain distance: the scatter has no part in it."),
        (lambda x, m, s: (x - m) @ torch.linalg.solve(s, x - m), "the root is missing: these are squared distances."),
        (lambda x, m, s: ((x - m).square() / s.diagonal()).sum().sqrt(),
         "only the variances were used: two numbers that always move together, and now do not, go unnoticed."),
        (lambda x, m, s: ((x - m) @ s @ (x - m)).sqrt(), "multiplied by Σ instead of Σ⁻¹: what varies much would count more."),
        (lambda x, m, s: (x @ torch.linalg.solve(s, x)).sqrt(), "the mean was not taken off."),
    ]  # fmt: skip
    because = "Solving a system is better than inverting Σ; PaDiM factors Σ = LLᵀ once and solves with L for every image."
    return function("10.1", given, mahalanobis, CASES, because, mistakes, hint="d = x − mean; then √(dᵀ · solve(scatter, d)).")


def gigabytes(positions: int, width: int, number_bytes: int) -> float:
    """Return the size of one matrix a position in GB."""
    return positions * width**2 * number_bytes / 1e9


def check_2(given: float) -> Outcome:
    """Return what there is to say of the GB that PaDiM's covariances take: 56 x 56 positions, 550 channels, doubles."""
    right = gigabytes(56 * 56, 550, 8)
    mistakes = [
        (gigabytes(56 * 56, 550, 4), "that is in float32: a double has 8 bytes."),
        (gigabytes(56, 550, 8), "the grid has 56 x 56 positions, not 56."),
        (56 * 56 * 550 * 8 / 1e9, "that is one *vector* a position: a covariance has 550 x 550 numbers."),
        (gigabytes(56 * 56, 550, 8) * 1e9 / 2**30, "those are GiB (2³⁰ bytes); asked was GB (10⁹)."),
        (gigabytes(28 * 28, 550, 8), "28 x 28 is the grid of level 2; PaDiM works on that of level 1."),
    ]  # fmt: skip
    because = (
        "So the doubles live for a block of positions only; what is kept are the factors, in float32, half of it, and they may lie "
        "in a file."
    )
    return answer("10.2", given, right, because, mistakes, tolerance=0.01, hint="positions · 550² · 8 bytes, over 10⁹.")


DISTANCES = [0.02, 0.03, 0.04, 0.05, 0.06, 0.10, 0.15, 0.40]


def learned_from(distances: list[float], alpha: float) -> int:
    """Return how many positions still have a gradient: those whose distance is not under mean + α · standard deviation."""
    values = torch.tensor(distances)
    return int((values >= values.mean() + alpha * values.std()).sum())


def check_3(given: list[int]) -> Outcome:
    """Return what there is to say of the number of positions that ReContrast learns from at α = −3, 0 and 1."""
    right = [learned_from(DISTANCES, alpha) for alpha in (-3, 0, 1)]
    n, values = len(DISTANCES), sorted(DISTANCES)
    above_median = sum(value > values[n // 2] for value in values)
    mistakes = [
        ([n - one for one in right], "these are the ones that are *left out*: asked was who is learned from."),
        ([n, n, right[2]], "at α = 0 the limit is the mean: what lies under it is left out already."),
        ([right[0], above_median, right[2]], "the limit is the mean, not the median: one large distance pulls it up."),
        ([0, right[1], right[2]], "at α = −3 the limit lies below all distances: none is left out."),
    ]  # fmt: skip
    because = "So training begins with all positions, and after its first tenth only the few that are still hard pull: easy background no longer does."
    return answer("10.3", given, right, because, mistakes, hint="Count the values that are at least mean + α · std, for each α.")
