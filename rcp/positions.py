"""Grid positions as groups: the four of the paper's Figure 3, and how well the features of a position keep together.

No number here depends on a picture: they are measured in the feature space, and stand beside the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcp.distances import distances

POSITIONS = ((9, 14), (15, 15), (10, 16), (16, 17))  # of the paper's Figure 3, read as (row, column) of a 28×28 grid


def positions(h: int, w: int) -> list[tuple[int, int]]:
    """Return the paper's four grid positions on an (h, w) grid: as they are at 28×28, elsewhere the same places."""
    return [(int((r + 0.5) * h / 28), int((c + 0.5) * w / 28)) for r, c in POSITIONS]


def separation(rows: Tensor, groups: Tensor) -> tuple[float, float]:
    """Return the mean distance of two rows of the same group, and of different groups.

    Args:
        rows: (N, D).
        groups: (N,) a number a row.

    Returns:
        (within, between), L2; pairs of different rows only.
    """
    d, same = distances(rows), groups[:, None] == groups
    other = ~torch.eye(len(rows), dtype=torch.bool)
    return float(d[same & other].mean()), float(d[~same].mean())


def neighbour_agreement(rows: Tensor, groups: Tensor, k: int = 10) -> float:
    """Return the share of the k nearest other rows that belong to the same group, averaged over all rows.

    Args:
        rows: (N, D).
        groups: (N,) a number a row.
        k: how many, below N.
    """
    return agreement_of(distances(rows), groups, k)


def agreement_of(d: Tensor, groups: Tensor, k: int) -> float:
    """Return the same from the (N, N) distances of the rows."""
    nearest = d.clone().fill_diagonal_(float("inf")).topk(k, largest=False).indices  # (N, k)
    return float((groups[nearest] == groups[:, None]).double().mean())
