"""Euclidean distances between rows: the one place where they are computed.

Everything in this project is a distance between patch features, so three traps are settled here once: distances are
*rooted* L2 unless a name says ``squared``; the matrix-product form is made safe (rows are centred first, which costs
nothing and removes most of the cancellation, and rounding below zero is cut off); and the root has a zero gradient, not
an infinite one, where two rows coincide.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Return the squared L2 distance of every row of `a` to every row of `b`.

    Args:
        a: (N, D) floating point.
        b: (M, D), or None for `a` itself; then the diagonal is exactly 0.

    Returns:
        (N, M), not negative.
    """
    centre = a.detach().mean(0)
    a = a - centre
    own = b is None
    b = a if own else b - centre
    a2 = a.square().sum(1)  # (N,)
    b2 = a2 if own else b.square().sum(1)  # (M,)
    d2 = (a2[:, None] + b2).addmm_(a, b.T, alpha=-2).clamp_min_(0)  # (N, M), one matrix, written over in place
    return d2.fill_diagonal_(0) if own else d2


def root(squared: Tensor) -> Tensor:
    """Return the square root with gradient 0 (instead of infinity) where the argument is 0.

    Args:
        squared: any shape, not negative.

    Returns:
        The same shape.
    """
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Return the L2 distance (rooted) of every row of `a` to every row of `b`.

    Args:
        a: (N, D) floating point.
        b: (M, D), or None for `a` itself.

    Returns:
        (N, M); where the distance is 0 its gradient is 0, too.
    """
    return root(squared_distances(a, b))
