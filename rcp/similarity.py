"""Pseudo-labels: how alike are two patches, from what the frozen network already knows? (Eqs 1-6)

Two answers are mixed. *Pairwise* similarity looks at the distance of the two patches alone. *Contextual* similarity asks
whether they have the same neighbours: it tells apart two pairs at equal distance, one inside a dense cluster and one
across a gap. Both come from the teacher's output z̄ and carry no gradient.

Taught in notebook 02. Source of all equations: Hyun et al., ReConPatch, WACV 2024 (arXiv 2305.16713).
"""

from __future__ import annotations

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
    return _contextual(squared_distances(_checked(z)), k)


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
        (N, N), symmetric, in [0, 1].

    Raises:
        ValueError: if alpha, sigma or k is out of range.

    Source: Eq. 6; the normalisation is our reading (STML, arXiv 2205.01903), the paper does not state one.
    """
    pairwise, contextual = similarities(z, sigma, k, normalize, relative_sigma)
    return mix(pairwise, contextual, alpha)


@torch.no_grad()
def similarities(
    z: Tensor, sigma: float = 1.0, k: int = 5, normalize: bool = True, relative_sigma: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (w^P, w^C) from one and the same distance matrix, as training needs both.

    Args:
        z: (N, D) teacher outputs z̄.
        sigma, k, normalize, relative_sigma: as in `pseudo_labels`.

    Returns:
        Two (N, N) tensors.

    Source: Eqs 1-5.
    """
    z = _checked(z)
    d2 = squared_distances(F.normalize(z, dim=1) if normalize else z)  # (N, N)
    if relative_sigma and sigma > 0:
        sigma = sigma * float(d2.mean()) or 1.0  # all rows equal: every distance is 0, any bandwidth gives 1
    return _pairwise(d2, sigma), _contextual(d2, k)


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
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    return torch.lerp(contextual, pairwise, alpha)


def _pairwise(d2: Tensor, sigma: float) -> Tensor:
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    return torch.exp(d2 / -sigma)  # (N, N)


def _contextual(d2: Tensor, k: int) -> Tensor:
    """Eqs 2-5 from squared distances. A row of ŵ has at most (k/2)·k entries that are not 0: only those are computed."""
    n = len(d2)
    if not 2 <= k <= n:
        raise ValueError(f"k must lie between 2 and the number of patches ({n}), got {k}")
    # The diagonal goes below every distance, so that a row is its own first neighbour even beside an exact copy.
    own = torch.eye(n, dtype=torch.bool, device=d2.device)
    near = d2.masked_fill(own, -1).topk(k, largest=False).indices  # (N, k), nearest first
    members = near[near]  # (N, k, k): the neighbours of each neighbour
    common = (members[:, :, :, None] == near[:, None, None, :]).sum((2, 3))  # (N, k) = |N_k(i) ∩ N_k(j)|
    overlap = common.to(d2.dtype) / k  # (N, k): the row of w̃ (Eq. 2) at its only non-zero places

    half = near[:, : k // 2]  # (N, k/2)
    rows = torch.arange(n, device=d2.device)
    mutual = (near[half][:, :, : k // 2] == rows[:, None, None]).any(2)  # (N, k/2): l ∈ R_{k/2}(i), Eq. 3
    share = mutual.to(d2.dtype) / mutual.sum(1, keepdim=True)  # i itself is mutual: never 0/0

    places = near[half].flatten(1)  # (N, k/2·k): the j at which row l of w̃ is not 0
    values = (share[:, :, None] * overlap[half]).flatten(1)
    expanded = torch.zeros_like(d2).scatter_add_(1, places, values)  # (N, N) = ŵ, Eq. 4
    return (expanded + expanded.T) / 2  # Eq. 5


def _checked(z: Tensor) -> Tensor:
    if z.ndim != 2 or not z.is_floating_point():
        raise ValueError(f"z must be a (N, D) floating-point tensor, got {tuple(z.shape)} {z.dtype}")
    return z
