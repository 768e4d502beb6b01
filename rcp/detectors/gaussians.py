"""A Gaussian at every position: its mean, the Cholesky factor of its covariance, and how far a feature lies from it.

    M(x) = √((x - μ)ᵀ Σ⁻¹ (x - μ)),    Σ = Σₖ (xₖ - μ)(xₖ - μ)ᵀ / (n - 1) + ε I

All of it is computed in float64, a block of positions at a time; factors are kept in float32.

Source: Defard et al., *PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization*, ICPR 2020
workshops (arXiv 2011.08785).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rcp.store import MemoryLimit

BLOCK = 2**23  # float64 numbers of the largest array of a block of positions: 64 MB


def fit_gaussians(
    rows: Tensor, epsilon: float, *, limit: MemoryLimit = MemoryLimit(), device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return a Gaussian a position: its mean, and the lower Cholesky factor of its covariance.

    Args:
        rows: (n, P, d) floating point, n >= 2 images, in memory or in a mapped file.
        epsilon: added to the covariances' diagonals.
        limit: beyond it the factors lie in a mapped file.
        device: where the blocks of positions are computed, in float64.

    Returns:
        (P, d) means and (P, d, d) factors L, L Lᵀ = Σ + ε I; float32 on the CPU.

    Raises:
        ValueError: if there is only one image.

    Source: PaDiM, section III.B, Eq. 1.
    """
    n, p, d = rows.shape
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {n}")
    mean, factor = torch.empty(p, d), limit.empty((p, d, d)).values
    for part in _blocks(n, p, d):
        centre, apart = _centred(rows[:, part].to(device))
        mean[part] = centre
        factor[part] = _factor(apart, n - 1, epsilon).to("cpu", torch.float32)
    return mean, factor


def mahalanobis(rows: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return how far features lie from the Gaussians of their positions.

    Args:
        rows: (b, P, d) floating point.
        mean: (P, d).
        factor: (P, d, d), lower Cholesky factors of the covariances.

    Returns:
        (b, P) float32 on the device of `rows`: Mahalanobis distances, rooted.

    Source: PaDiM, section III.C, Eq. 2: (x - μ)ᵀ (L Lᵀ)⁻¹ (x - μ) = ‖L⁻¹ (x - μ)‖².
    """
    b, p, d = rows.shape
    distance = rows.new_empty((b, p), dtype=torch.float32)
    for part in _blocks(b, p, d):
        apart = rows[:, part].double() - mean[part].to(rows.device)  # (b, q, d)
        squared = _squared_lengths(factor[part].to(rows.device).double(), apart.transpose(0, 1))  # (q, b)
        distance[:, part] = squared.sqrt().T.float()
    return distance


def leave_one_out(rows: Tensor, epsilon: float, *, device: torch.device | str = "cpu") -> Tensor:
    """Return how far each image lies from the Gaussians of all *other* images, without fitting n times.

    Leaving image i out takes n/(n-1) c cᵀ from the sum of products, with c = xᵢ - μ. By Sherman and Morrison one matrix,
    A = Σₖ(xₖ - μ)(xₖ - μ)ᵀ / (n-2) + ε I, then serves all images:

        M²₋ᵢ(xᵢ) = (n/(n-1))² h / (1 - n h / ((n-1)(n-2))),    h = cᵀ A⁻¹ c

    Args:
        rows: (n, P, d) floating point, n >= 3 images.
        epsilon: as in `fit_gaussians`.
        device: where the blocks of positions are computed, in float64.

    Returns:
        (n, P) float32 on the CPU: what `mahalanobis` gives with Gaussians that are fitted without the image.

    Raises:
        ValueError: if there are fewer than three images.

    Source: ours; Sherman & Morrison, 1950.
    """
    n, p, d = rows.shape
    if n < 3:
        raise ValueError(f"leaving one out takes at least 3 images, got {n}: a covariance needs 2")
    distance = torch.empty(n, p)
    for part in _blocks(n, p, d):
        _, apart = _centred(rows[:, part].to(device))
        h = _squared_lengths(_factor(apart, n - 2, epsilon), apart)  # (q, n)
        squared = (n / (n - 1)) ** 2 * h / (1 - n * h / ((n - 1) * (n - 2)))
        distance[:, part] = squared.sqrt().T.to("cpu", torch.float32)
    return distance


def _blocks(n: int, p: int, d: int) -> Iterator[slice]:
    """Blocks of positions that keep (q, d, d) and (q, n, d) small."""
    q = max(1, BLOCK // (d * max(n, d)))
    return (slice(at, at + q) for at in range(0, p, q))


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, q, d) → their means (q, d), and what is left without them, (q, n, d), float64."""
    rows = rows.double().transpose(0, 1)  # (q, n, d)
    mean = rows.mean(1)
    return mean, rows - mean[:, None]


def _factor(apart: Tensor, divisor: int, epsilon: float) -> Tensor:
    """(q, n, d) centred rows → (q, d, d), the lower Cholesky factors of their covariances with ε on the diagonals."""
    scatter = apart.mT @ apart / divisor  # (q, d, d)
    scatter.diagonal(dim1=1, dim2=2).add_(epsilon)
    return torch.linalg.cholesky(scatter)


def _squared_lengths(factor: Tensor, apart: Tensor) -> Tensor:
    """‖L⁻¹ c‖² of (q, d, d) factors and (q, n, d) rows: (q, n)."""
    return torch.linalg.solve_triangular(factor, apart.mT, upper=False).square().sum(1)
