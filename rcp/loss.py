"""The relaxed contrastive loss: soft pseudo-labels pull and push (Eq. 7).

Distances are taken relative to each patch's mean distance to the batch, so that the margin means the same whatever the
scale of the features. A pair with label w is pulled together with weight w, and pushed apart with weight 1-w as long as
it is nearer than the margin.

Taught in notebook 03. Source: Hyun et al., ReConPatch, WACV 2024; the loss itself is Kim et al., *Embedding Transfer with
Label Relaxation*, CVPR 2021.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.distances import distances, squared_distances

BLOCK = 1024  # rows and columns that large matrices are worked on at a time


def relative_distances(z: Tensor) -> Tensor:
    """Return δ, the L2 distances divided by each row's mean distance to the whole batch.

    Args:
        z: (N, D) student outputs, N >= 2; the gradient flows through the mean, too.

    Returns:
        (N, N), rows of mean 1, diagonal 0; not symmetric. All 0 if all rows are equal.

    Source: the definition of δ_ij above Eq. 7; the mean runs over all N rows, itself included.
    """
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be (N, D) with at least two rows, got {tuple(z.shape)}")
    d = distances(z)  # (N, N)
    mean = d.mean(1, keepdim=True)  # (N, 1)
    return d / mean.masked_fill(mean == 0, 1)


def relaxed_contrastive_loss(z: Tensor, w: Tensor, margin: float = 1.0) -> Tensor:
    """Return L_RC, the relaxed contrastive loss of a batch of patches (Eq. 7).

    Args:
        z: (N, D) student outputs z = g(f(p)).
        w: (N, N) pseudo-labels in [0, 1], without gradient.
        margin: m, in relative distance.

    Returns:
        A scalar. It is divided by N, not by N².

    Raises:
        ValueError: if w does not fit z, or the margin is negative.

    Source: Eq. 7.
    """
    _check(z, w, margin)
    return loss_of_distances(relative_distances(z), w, margin)


def loss_of_distances(delta: Tensor, w: Tensor, margin: float = 1.0) -> Tensor:
    """Return Eq. 7 for relative distances that are already at hand.

    Args:
        delta: (N, N) relative distances.
        w: (N, N) pseudo-labels.
        margin: m.

    Returns:
        A scalar.

    Source: Eq. 7.
    """
    pull = w * delta.square()
    push = (1 - w) * (margin - delta).clamp_min(0).square()
    return (pull + push).sum() / len(delta)


class LossAndGradient(NamedTuple):
    """Eq. 7 with its gradient.

    Attributes:
        loss: ().
        gradient: (N, D), of the loss with respect to z.
        delta: (N, N) relative distances.
    """

    loss: Tensor
    gradient: Tensor
    delta: Tensor


@torch.no_grad()
def loss_and_gradient(z: Tensor, w: Tensor, margin: float = 1.0) -> LossAndGradient:
    """Return Eq. 7 and its gradient, derived by hand: a third of the passes, and of the memory, that autograd takes.

    With d the distances, μ_i their mean over row i, δ = d / μ, and G = w δ - (1-w) max(m - δ, 0), which is half the
    derivative of the bracket of Eq. 7:

        ∂L/∂d_ij = 2/N (G_ij - 1/N Σ_n G_in δ_in) / μ_i        (the sum: μ_i moves with every d_in)
        ∂L/∂z_i  = Σ_j (C_ij + C_ji) (z_i - z_j),              C_ij = (∂L/∂d_ij) / d_ij, 0 where d_ij = 0

    and the last line is one matrix product.

    Args:
        z: (N, D) student outputs, N >= 2.
        w: (N, N) pseudo-labels in [0, 1].
        margin: m >= 0, in relative distance.

    Returns:
        `LossAndGradient`; equal to `relaxed_contrastive_loss` and what autograd makes of it.

    Raises:
        ValueError: as `relaxed_contrastive_loss`.

    Source: Eq. 7, and its derivative.
    """
    _check(z, w, margin)
    n = len(z)
    z = z - z.mean(0)  # the gradient is that of differences: a common part would only cost digits
    delta = squared_distances(z).sqrt_()  # (N, N), still d
    mean = delta.mean(1, keepdim=True)  # (N, 1) = μ
    mean.masked_fill_(mean == 0, 1)
    delta /= mean
    push = (margin - delta).clamp_min_(0)
    push.addcmul_(w, push, value=-1)  # (1-w) max(m - δ, 0)
    pushed = push.sum()
    g = push.neg_().addcmul_(w, delta)  # (N, N) = G
    rows = torch.cat([torch.linalg.vecdot(*parts) for parts in zip(g.split(BLOCK), delta.split(BLOCK), strict=True)])
    rows = rows[:, None] / n  # (N, 1) = 1/N Σ_n G_in δ_in
    loss = rows.sum() + margin / n * pushed  # as (1-w) max(m - δ, 0)² = (1-w) max(m - δ, 0) (m - δ)
    c = g.sub_(rows).mul_(2 / n / mean.square())
    for part, divisor in zip(c.split(BLOCK), delta.split(BLOCK), strict=True):
        part.div_(F.threshold(divisor, 0, math.inf))  # (N, N) = C; 0 where δ is 0
    both = _plus_transpose(c)
    return LossAndGradient(loss, both.sum(1, keepdim=True) * z - both @ z, delta)


def _plus_transpose(c: Tensor) -> Tensor:
    """c + cᵀ; for large matrices in place, block by block, as a third (N, N) matrix is all that a batch can pay for."""
    n = len(c)
    if n <= BLOCK:
        return c + c.T
    for i in range(0, n, BLOCK):
        for j in range(i, n, BLOCK):
            upper, lower = c[i : i + BLOCK, j : j + BLOCK], c[j : j + BLOCK, i : i + BLOCK]
            both = upper + lower.T
            upper.copy_(both)
            lower.copy_(both.T)
    return c


def pushed_share(delta: Tensor, margin: float = 1.0) -> float:
    """Return the share of pairs i ≠ j that lie within the margin, i.e. on which the push term acts at all.

    Args:
        delta: (N, N) relative distances.
        margin: m.

    Returns:
        A share in [0, 1].
    """
    n = len(delta)
    within = torch.count_nonzero(delta < margin) - torch.count_nonzero(delta.diagonal() < margin)
    return float(within) / (n * (n - 1))


def _check(z: Tensor, w: Tensor, margin: float) -> None:
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z must be (N, D) with at least two rows, got {tuple(z.shape)}")
    if w.shape != (len(z), len(z)):
        raise ValueError(f"w must be ({len(z)}, {len(z)}) for {len(z)} patches, got {tuple(w.shape)}")
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
