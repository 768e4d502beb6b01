"""The coreset of very many rows: greedy in each part, then greedy among what the parts picked.

The exact selection (`rcp.coreset`) holds all rows at once and compares a row with a share of all picks, so its time grows
almost with the square of the number of rows. Here only one part is held at a time, and a row is compared with the picks of
its own part alone. What a part picked stands for the part; a second greedy run among these few makes the coreset.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rcp.coreset import Coreset, as_rows, coreset_size, covering_radius, greedy_coreset, projected, projection_matrix


def partitioned_coreset(
    rows: Tensor | np.ndarray,
    ratio: float = 0.01,
    size: int | None = None,
    *,
    parts: int,
    generator: torch.Generator,
    projection: int | None = 128,
    oversampling: float = 2.0,
) -> Coreset:
    """Return a good coreset of more rows than `greedy_coreset` can do, and its exact covering radius.

    The parts are contiguous, so that a file is read one part after another, and each part from front to back. The theory
    holds for any split; and measured (401,408 rows, 4 to 16 parts) whole categories, mixed images and random rows as parts
    gave the same radii within their scatter.

    If every part offers M rows (`oversampling=parts`), the radius is at most 4 times the optimum (`greedy_coreset`: 2), but
    that takes longer than the exact selection. By default the parts offer 2 M rows together. This has no guarantee
    beforehand, but one afterwards: M rows lie at least `radii[-2]` apart, so with M-1 rows no radius below `radii[-2] / 2`
    is possible. BENCHMARKS.md has its radius beside the exact one's.

    Args:
        rows: (N, D) floating point, half precisions and memory-mapped ones too; not changed.
        ratio: share of the rows to keep, in (0, 1]; at least one row is kept.
        size: number of rows to keep instead, 1 <= size <= N.
        parts: how many parts of (nearly) equal length, 1 <= parts <= N.
        generator: draws the projection, and the start in every part.
        projection: pick in a random projection to this many dimensions, if the rows have more; None: in their own space.
        oversampling: rows that the parts offer together, as a multiple of M, at least 1; a part offers no more than M.

    Returns:
        A `Coreset`. The last of its `radii` is the covering radius over all rows, measured in a second pass over them; the
        others are over the rows on offer only, so not above those over all rows. One part gives `greedy_coreset`'s picks.
        Memory besides the rows: one part, projected, in float32; what the parts offer; and O(N / parts).

    Raises:
        ValueError: if a size, ratio, number of parts or oversampling is out of range, or a row is not finite.

    Source: Malkomes et al., *Fast distributed k-center clustering*, NIPS 2015 (two rounds of greedy, factor 4); Ceccarello
    et al., VLDB 2019 (more rows on offer bring it near 2).
    """
    rows = as_rows(rows)
    n, width = rows.shape
    m = coreset_size(n, ratio, size)
    if not 1 <= parts <= n:
        raise ValueError(f"the number of parts must lie between 1 and the number of rows ({n}), got {parts}")
    if not 1 <= oversampling < math.inf:
        raise ValueError(f"oversampling must be a number from 1 on, or the parts offer too few rows, got {oversampling}")
    project = projection is not None and projection < width
    dtype = torch.promote_types(rows.dtype, torch.float32)
    matrix = projection_matrix(width, projection, generator, dtype) if project else None
    indices, points = [], []
    for low, high in ((n * p // parts, n * (p + 1) // parts) for p in range(parts)):
        part = projected(rows[low:high], matrix) if project else rows[low:high].to(dtype)  # (high - low, d)
        offer = min(m, len(part), math.ceil(oversampling * m * len(part) / n))
        picked = greedy_coreset(part, size=offer, generator=generator, projection=None).indices
        indices.append(low + picked)
        points.append(part[picked])
    offered = torch.cat(points)  # (about oversampling x M, d)
    coreset = greedy_coreset(offered, size=m, projection=None, start=0)  # the start of the first part
    radius = covering_radius(rows, offered[coreset.indices], matrix=matrix)
    radii = torch.cat([coreset.radii[:-1], coreset.radii.new_tensor([radius])])
    return Coreset(torch.cat(indices)[coreset.indices], radii, coreset.dimension)
