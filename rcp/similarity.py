"""Pseudo-labels: how alike are two patches, from what the frozen network already knows? (Eqs 1-6)

Two answers are mixed. *Pairwise* similarity looks at the distance of the two patches alone. *Contextual* similarity asks
whether they have the same neighbours: it tells apart two pairs at equal distance, one inside a dense cluster and one
across a gap. Both come from the teacher's output z̄ and carry no gradient.

Taught in notebook 02. Source of all equations: Hyun et al., ReConPatch, WACV 2024 (arXiv 2305.16713).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.distances import squared_distances


@torch.no_grad()
def pairwise_similarity(z: Tensor, sigma: float = 1.0) -> Tensor:
    """Return w^P, the Gaussian similarity of every pair of rows (Eq. 1).

    Args:
        z: (N, D) teacher outputs z̄; taken as they are, see `pseudo_labels` for the normalisation.
        sigma: bandwidth, in units of *squared* distance; > 0.

    Returns:
        (N, N), symmetric, in [0, 1], diagonal 1.

    Source: Eq. 1.
    """
    return _pairwise(squared_distances(_checked(z)), sigma)


@torch.no_grad()
def contextual_similarity(z: Tensor, k: int = 5) -> Tensor:
    """Return w^C, the share of common neighbours, expanded over close reciprocal neighbours (Eqs 2-5).

    Args:
        z: (N, D) teacher outputs z̄.
        k: neighbourhood size, 2 <= k <= N; a row counts as its own nearest neighbour, and the query expansion uses the
            floor(k / 2) nearest.

    Returns:
        (N, N), symmetric, in [0, 1].

    Raises:
        ValueError: if k is out of range.

    Source: Eqs 2-5. Where we differ: i ∈ N_k(i) is fixed here, so that R_{k/2}(i) is never empty in Eq. 4.
    """
    return _dense(_expanded(squared_distances(_checked(z)), k), len(z))


@torch.no_grad()
def pseudo_labels(
    z: Tensor,
    alpha: float = 0.5,
    sigma: float = 1.0,
    k: int = 5,
    normalize: bool = True,
    relative_sigma: bool = False,
) -> Tensor:
    """Return w, the soft pseudo-label of every pair of patches (Eq. 6).

    Args:
        z: (N, D) teacher outputs z̄.
        alpha: share of the pairwise similarity, in [0, 1].
        sigma: bandwidth of Eq. 1, in units of squared distance.
        k: neighbourhood size of Eqs 2-5.
        normalize: bring the rows to length 1 first, as the method's ancestors do; without it w^P collapses to 0 or 1
            unless sigma follows the scale of the features.
        relative_sigma: sigma counts in mean squared distances of this batch instead; for un-normalised z̄.

    Returns:
        (N, N), symmetric (to rounding), in [0, 1].

    Raises:
        ValueError: if alpha, sigma or k is out of range.

    Source: Eq. 6; the normalisation is our reading (STML, arXiv 2205.01903), the paper does not state one.
    """
    return labels_with_means(z, alpha, sigma, k, normalize, relative_sigma).w


class Labels(NamedTuple):
    """What a step of the training needs: w, and two numbers for its history.

    Attributes:
        w: (N, N) pseudo-labels.
        pairwise_mean, contextual_mean: (), means of w^P and w^C over the pairs i ≠ j.
    """

    w: Tensor
    pairwise_mean: Tensor
    contextual_mean: Tensor


@torch.no_grad()
def labels_with_means(
    z: Tensor,
    alpha: float = 0.5,
    sigma: float = 1.0,
    k: int = 5,
    normalize: bool = True,
    relative_sigma: bool = False,
) -> Labels:
    """Return `pseudo_labels` with the means of both parts, from one (N, N) matrix that is written over in place.

    Args:
        z: (N, D) teacher outputs z̄; N >= 2.
        alpha, sigma, k, normalize, relative_sigma: as in `pseudo_labels`.

    Returns:
        `Labels`; nothing is read back to the host.

    Source: Eqs 1-6.
    """
    _check_alpha(alpha)
    d2, sigma = _prepared(z, sigma, normalize, relative_sigma)
    places, values = _expanded(d2, k)  # (N, E) each
    pairwise = _pairwise(d2, sigma, out=d2)
    n, pairs = len(d2), len(d2) * (len(d2) - 1)
    own = torch.arange(n, device=d2.device)[:, None]
    means = (pairwise.sum() - n) / pairs, values.masked_fill(places == own, 0).sum() / pairs
    w, half = pairwise.mul_(alpha).view(-1), ((1 - alpha) / 2 * values).flatten()  # Eq. 5 is linear: i → j, then j → i
    w.scatter_add_(0, (own * n + places).flatten(), half).scatter_add_(0, (places * n + own).flatten(), half)
    return Labels(w.view(n, n), *means)


@torch.no_grad()
def similarities(
    z: Tensor, sigma: float = 1.0, k: int = 5, normalize: bool = True, relative_sigma: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (w^P, w^C) from one and the same distance matrix, to look at them side by side.

    Args:
        z: (N, D) teacher outputs z̄.
        sigma, k, normalize, relative_sigma: as in `pseudo_labels`.

    Returns:
        Two (N, N) tensors.

    Source: Eqs 1-5.
    """
    d2, sigma = _prepared(z, sigma, normalize, relative_sigma)
    return _pairwise(d2, sigma), _dense(_expanded(d2, k), len(z))


def neighbours(z: Tensor, k: int) -> Tensor:
    """Return N_k, the k nearest rows of every row, itself first.

    Args:
        z: (N, D).
        k: 1 <= k <= N.

    Returns:
        (N, k) int64, nearest first.

    Source: the definition below Eq. 2.
    """
    return _nearest(squared_distances(_checked(z)), k)


def mix(pairwise: Tensor, contextual: Tensor, alpha: float = 0.5) -> Tensor:
    """Return w = α w^P + (1-α) w^C (Eq. 6).

    Args:
        pairwise, contextual: (N, N) each.
        alpha: in [0, 1].

    Returns:
        (N, N).

    Raises:
        ValueError: if alpha is outside [0, 1].

    Source: Eq. 6.
    """
    _check_alpha(alpha)
    return torch.lerp(contextual, pairwise, alpha)


def _prepared(z: Tensor, sigma: float, normalize: bool, relative_sigma: bool) -> tuple[Tensor, float | Tensor]:
    """The squared distances, and sigma in their unit."""
    z = _checked(z)
    d2 = squared_distances(F.normalize(z, dim=1) if normalize else z)  # (N, N)
    if relative_sigma and sigma > 0:
        mean = d2.mean()
        sigma = sigma * torch.where(mean > 0, mean, 1.0)  # all rows equal: every distance is 0, any bandwidth gives 1
    return d2, sigma


def _pairwise(d2: Tensor, sigma: float | Tensor, out: Tensor | None = None) -> Tensor:
    if isinstance(sigma, (int, float)) and not sigma > 0:  # a tensor is positive by its making, and stays on its device
        raise ValueError(f"sigma must be positive, got {sigma}")
    return torch.div(d2, -sigma, out=out).exp_()  # (N, N)


def _expanded(d2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ŵ (Eq. 4) where it is not 0: in row i, `values[i]` are added up at the columns `places[i]`; (N, floor(k/2)·k) each.

    Everything follows from the (N, k) table of neighbours; of the (N, N) matrix only that table is taken.
    """
    n = len(d2)
    if not 2 <= k <= n:
        raise ValueError(f"k must lie between 2 and the number of patches ({n}), got {k}")
    near = _nearest(d2, k)
    members = near[near]  # (N, k, k): the neighbours of each neighbour
    common = (members[:, :, :, None] == near[:, None, None, :]).sum((2, 3))  # (N, k) = |N_k(i) ∩ N_k(j)|
    overlap = common.to(d2.dtype) / k  # (N, k): the row of w̃ (Eq. 2) at its only non-zero places

    half = near[:, : k // 2]  # (N, k/2)
    rows = torch.arange(n, device=d2.device)
    mutual = (near[half][:, :, : k // 2] == rows[:, None, None]).any(2)  # (N, k/2): l ∈ R_{k/2}(i), Eq. 3
    share = mutual.to(d2.dtype) / mutual.sum(1, keepdim=True)  # i itself is mutual: never 0/0
    return near[half].flatten(1), (share[:, :, None] * overlap[half]).flatten(1)


def _nearest(d2: Tensor, k: int) -> Tensor:
    """(N, N) squared distances → (N, k) places of the smallest of each row."""
    # The diagonal goes below every distance, so that a row is its own first neighbour even beside an exact copy.
    near = d2.fill_diagonal_(-1).topk(k, largest=False).indices  # (N, k), nearest first
    d2.fill_diagonal_(0)
    return near


def _dense(expanded: tuple[Tensor, Tensor], n: int) -> Tensor:
    """Eq. 5 as a (N, N) matrix."""
    places, values = expanded
    full = values.new_zeros(n, n).scatter_add_(1, places, values)  # ŵ
    return (full + full.T) / 2


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")


def _checked(z: Tensor) -> Tensor:
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"z must be a (N, D) floating-point tensor, got {tuple(z.shape)} {z.dtype}")
    return z
