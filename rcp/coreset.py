"""The coreset: few rows such that every row has one of them near (greedy k-center).

Greedy k-center picks, again and again, the row that is farthest from all rows picked so far. The distance at which a row
is picked is at the same time the *covering radius* of the picks before it.

The plain loop passes over all N rows for each of the M picks. This one gives the same picks without that, by one
observation: a row's distance to its nearest centre can only shrink. So a distance that was computed long ago is an *upper
bound* today, and a row whose old bound is below the current maximum cannot be the farthest: it is left alone. Only the
rows with the highest bounds are shown the centres that they missed, some hundreds at a time by one matrix product; and a
row that finds one of these near enough goes back to sleep before it has met the others. The few that stay far are compared
among themselves (one more product), which yields many picks at once. A row meets about a quarter of the centres in the end.

For more rows than even that can do there is `rcp.partitioned`.

Taught in notebook 04. Source: Roth et al., PatchCore (arXiv 2106.08265), algorithm 1; Sener & Savarese, ICLR 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcp import progress

BLOCK = 4096  # rows per matrix product
CENTRES = 512  # centres per matrix product: a block's (4096, 512) distances stay in the cache
CANDIDATES = 1024  # rows that compete for the next picks: so do their (1024, 1024) distances
SHARE = 16  # a round looks at one row in 16, so that the number of rounds does not grow with the number of rows
PICKED = -1.0  # the bound of a row that is a centre already, or does not take part: below every distance


@dataclass(frozen=True)
class Coreset:
    """The rows picked, in the order of picking, and how well each prefix covers all rows.

    Attributes:
        indices: (M,) int64, distinct rows; the start is the first.
        radii: (M,) float64; `radii[j]` is the covering radius after pick j: the largest L2 distance (rooted) of any row to
            the nearest of the first j+1 picks, measured in the space where the picking was done (`dimension`).
        dimension: width of that space: the projection's, or the rows' own.
    """

    indices: Tensor
    radii: Tensor
    dimension: int


def coreset_size(n: int, ratio: float, size: int | None = None) -> int:
    """Return how many of n rows a coreset has: the size if it is given, else the ratio's share, rounded down, at least 1."""
    if size is not None:
        if not 1 <= size <= n:
            raise ValueError(f"the coreset size must lie between 1 and the number of rows ({n}), got {size}")
        return size
    if not 0 < ratio <= 1:
        raise ValueError(f"the coreset ratio must lie in (0, 1], got {ratio}; 0.01 keeps 1 % of the rows")
    return max(1, int(n * ratio + 1e-9))  # 100 × 0.29 is 28.999… in floating point


def as_rows(rows: Tensor | np.ndarray) -> Tensor:
    """Return the rows as a tensor (no copy), or raise a ValueError if they are not (N, D), N >= 1, floating point."""
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(f"rows must be (N, D), N >= 1, floating point, got {tuple(rows.shape)} {rows.dtype}")
    return rows


def projection_matrix(width: int, dimension: int, generator: torch.Generator, dtype=torch.float32) -> Tensor:
    """Return a random Gaussian matrix that keeps distances on average (Johnson & Lindenstrauss).

    Args:
        width: D, of the rows.
        dimension: d, of the projection.
        generator: draws it, on the CPU, so that every device gets the same one.
        dtype: floating point.

    Returns:
        (D, d), to multiply rows with.
    """
    return torch.randn(width, dimension, generator=generator, dtype=dtype) / dimension**0.5


def random_projection(rows: Tensor, dimension: int, generator: torch.Generator, chunk: int = 65536) -> Tensor:
    """Return the rows times a `projection_matrix`, chunk by chunk.

    Args:
        rows: (N, D) floating point.
        dimension: width of the result, d.
        generator: draws the matrix.
        chunk: rows per matrix product.

    Returns:
        (N, d), float32 (float64 for float64 rows).
    """
    return projected(rows, projection_matrix(rows.shape[1], dimension, generator, _working(rows)), chunk)


def projected(rows: Tensor, matrix: Tensor, chunk: int = 65536) -> Tensor:
    """Return the rows times a matrix, chunk by chunk.

    Args:
        rows: (N, D) floating point, half precisions and memory-mapped ones too.
        matrix: (D, d), float32 (float64 for float64 rows), on any device.
        chunk: rows per matrix product.

    Returns:
        (N, d), in the matrix' dtype, on the rows' device.
    """
    matrix = matrix.to(rows.device)
    out = torch.empty(len(rows), matrix.shape[1], dtype=matrix.dtype, device=rows.device)
    for at in range(0, len(rows), chunk):
        torch.mm(rows[at : at + chunk].to(matrix.dtype), matrix, out=out[at : at + chunk])
    return out


def greedy_coreset(
    rows: Tensor | np.ndarray,
    ratio: float = 0.01,
    size: int | None = None,
    *,
    generator: torch.Generator | None = None,
    projection: int | None = 128,
    start: int | None = None,
    among: Tensor | np.ndarray | None = None,
) -> Coreset:
    """Return the exact greedy k-center coreset of the rows: the picks of the plain loop, ties to the lowest index.

    (Which of several exact copies of a row is picked can differ from the plain loop, as products round; the points do not.)

    Args:
        rows: (N, D) floating point; not changed. Distances are computed in its dtype, half precisions in float32. No
            copy is made, so they may be memory-mapped; after one pass from front to back, single rows are read here and there.
        ratio: share of the rows to keep, in (0, 1]; at least one row is kept.
        size: number of rows to keep instead, 1 <= size <= N.
        generator: draws the projection and the start; needed for either.
        projection: pick in a random projection to this many dimensions, if the rows have more; None: in their own space.
        start: the first row picked; None: drawn at random.
        among: (N,) bool, the rows that exist for this selection: no other is picked, covered or counted (as N above). The
            picks are those of `rows[among]`, as positions in `rows`, without that copy. None: all rows.

    Returns:
        A `Coreset`. Memory besides the rows (and their projection) and the picks: O(N), plus blocks of 4096 rows.

    Raises:
        ValueError: if a size, ratio, start or mask is out of range, a row (also one that is not among them) is not finite,
            or the generator is missing.

    Source: PatchCore (arXiv 2106.08265), algorithm 1, with the start included in the coreset.
    """
    rows = as_rows(rows)
    n = len(rows)
    if among is not None:
        among = torch.as_tensor(among, device=rows.device)
        if among.shape != (n,) or among.dtype != torch.bool or not bool(among.any()):
            raise ValueError(f"among must be ({n},) bool with at least one True, got {tuple(among.shape)} {among.dtype}")
        n = int(among.sum())
    m = coreset_size(n, ratio, size)
    project = projection is not None and projection < rows.shape[1]
    if generator is None and (project or start is None):
        raise ValueError("pass generator=torch.Generator().manual_seed(...): the projection and the start are random")
    points = random_projection(rows, projection, generator) if project else rows
    if start is None:
        start = int(torch.randint(n, (1,), generator=generator))
        start = start if among is None else int(torch.nonzero(among)[start])
    if not 0 <= start < len(rows) or (among is not None and not bool(among[start])):
        raise ValueError(f"start must be a row between 0 and {len(rows) - 1} that takes part, got {start}")
    indices, squared = _Greedy(points, start, m, among).run()
    return Coreset(torch.tensor(indices), torch.tensor(squared, dtype=torch.float64).sqrt(), points.shape[1])


def covering_radius(
    rows: Tensor | np.ndarray, centres: Tensor | np.ndarray, *, matrix: Tensor | None = None, chunk: int = BLOCK
) -> float:
    """Return the largest L2 distance (rooted) of any row to the nearest of the centres.

    Exact, but not all N x M distances are computed: a row is done with when it has met a centre that is nearer than the
    largest distance known by then.

    Args:
        rows: (N, D) floating point; read chunk by chunk, so they may be memory-mapped.
        centres: (M, d) floating point, say `rows[coreset.indices]`.
        matrix: (D, d), a `projection_matrix` that the rows are multiplied with first; None: d = D.
        chunk: rows per matrix product.

    Returns:
        The radius, computed in the rows' dtype, half precisions in float32.

    Raises:
        ValueError: if the shapes do not fit, or a row or centre is not finite.

    Source: Sener & Savarese, ICLR 2018, section 4.2: what k-center minimises.
    """
    rows, centres = as_rows(rows), as_rows(centres)
    width = rows.shape[1] if matrix is None else matrix.shape[1]
    if centres.shape[1] != width:
        raise ValueError(f"the centres must be {width} wide like the rows, got {centres.shape[1]}")
    dtype = _working(rows)
    origin = centres[0].to(dtype)
    from_origin = centres.to(dtype) - origin  # (M, d)
    centre_norms = _squares(from_origin)
    largest, farthest = -1.0, origin
    for part in rows.split(chunk):
        block = (part.to(dtype) if matrix is None else projected(part, matrix)) - origin  # (B, d)
        norms = _squares(block)
        bounds = torch.full_like(norms, math.inf)
        for first in range(0, len(centres), CENTRES):
            seen = slice(first, first + CENTRES)
            bounds = torch.minimum(bounds, _nearest_squared(block, norms, from_origin[seen], centre_norms[seen]))
            far = torch.nonzero(bounds > largest).flatten()
            block, norms, bounds = block.index_select(0, far), norms[far], bounds[far]
            if not len(far):
                break
        else:
            largest, farthest = float(bounds.max()), block[bounds.argmax()]
    # Without the product's rounding: a row that is a centre itself lies at distance 0.
    return float((from_origin - farthest).square().sum(1).min().sqrt())


class _Greedy:
    """The state of one selection: stale upper bounds, and how many centres each of them has seen."""

    def __init__(self, points: Tensor, start: int, size: int, among: Tensor | None):
        self.x, self.dtype = points, _working(points)
        # Products are taken relative to a row of the data (less cancellation; the mean would round whole numbers).
        self.origin = points[start].to(self.dtype)
        self.size = size
        self.picks: list[int] = []
        self.squared_radii: list[float] = []
        self.centres = torch.empty(size, points.shape[1], dtype=self.dtype, device=points.device)  # from the origin
        self.centre_norms = self.centres.new_empty(size)
        self.norms = torch.empty(len(points), dtype=self.dtype, device=points.device)
        for at in range(0, len(points), BLOCK):
            self.norms[at : at + BLOCK] = _squares(points[at : at + BLOCK].to(self.dtype) - self.origin)
        self.bounds = self.norms.clone()  # the start is the origin
        if among is not None:
            self.bounds[~among] = PICKED
        self.seen = torch.ones(len(points), dtype=torch.int32, device=points.device)
        self._take([start])
        self.bounds[start] = PICKED

    def run(self) -> tuple[list[int], list[float]]:
        with progress.bar("coreset", self.size, "row") as shown:
            while len(self.squared_radii) < self.size:
                before = len(self.picks)
                self._round()
                shown.update(len(self.picks) - before)
        return self.picks, self.squared_radii

    def _round(self) -> None:
        """Refresh the rows with the highest bounds, and pick among them as long as no other row can be farther."""
        count = min(max(BLOCK, len(self.bounds) // SHARE), len(self.bounds))
        ceiling = float(self.bounds.topk(count, sorted=False).values.min())
        rows = torch.nonzero(self.bounds > ceiling).flatten()  # ascending: ties go to the lowest index
        self._refresh(rows, ceiling)
        rows = rows[self.bounds[rows] > ceiling]
        if len(rows) > CANDIDATES:
            ceiling = float(self.bounds[rows].topk(CANDIDATES + 1).values[-1])
            rows = rows[self.bounds[rows] > ceiling]
        if len(rows):
            self._pick_among(rows, ceiling)
        elif ceiling > PICKED:
            self._settle_tie(ceiling)
        else:
            self.squared_radii.append(0.0)  # all rows are picked

    def _settle_tie(self, ceiling: float) -> None:
        """No row lies above the ceiling: bring those at it up to date, and pick among the first of these."""
        tied = torch.nonzero(self.bounds == ceiling).flatten()
        self._refresh(tied, ceiling)
        tied = tied[self.bounds[tied] == ceiling][:CANDIDATES]
        if len(tied):  # or else these bounds were stale, too: another round
            self._pick_among(tied, math.nextafter(ceiling, -math.inf))

    def _pick_among(self, rows: Tensor, ceiling: float) -> None:
        """Pick from fresh candidates while the farthest of them lies above every bound elsewhere."""
        block, norms = self._from_origin(rows), self.norms[rows]
        between = torch.addmm(norms[:, None] + norms, block, block.T, alpha=-2).clamp_min_(0).cpu().numpy()  # (C, C)
        bounds, index = self.bounds[rows].cpu().numpy(), rows.tolist()
        chosen: list[int] = []
        while len(self.squared_radii) < self.size:
            j = int(bounds.argmax())
            farthest = float(bounds[j])
            if not farthest > ceiling:
                break
            self.squared_radii.append(farthest)
            if len(self.picks) + len(chosen) == self.size:
                break
            chosen.append(index[j])
            np.minimum(bounds, between[j], out=bounds)
            bounds[j] = PICKED
        self._take(chosen)
        self.bounds[rows] = torch.from_numpy(bounds).to(self.bounds.device)
        self.seen[rows] = len(self.picks)

    def _refresh(self, rows: Tensor, ceiling: float) -> None:
        """Show the rows the centres that they missed; a row whose bound falls below the ceiling sees no more of them."""
        rows = rows[self.seen[rows].argsort(stable=True)]  # those that missed the same centres share a block
        for at in range(0, len(rows), BLOCK):
            part = rows[at : at + BLOCK]
            block, norms, bounds = self._from_origin(part), self.norms[part], self.bounds[part]
            for first in range(int(self.seen[part[0]]), len(self.picks), CENTRES):
                last = min(first + CENTRES, len(self.picks))
                near = _nearest_squared(block, norms, self.centres[first:last], self.centre_norms[first:last])
                bounds = torch.minimum(bounds, near)
                self.bounds[part] = bounds
                self.seen[part] = self.seen[part].clamp_min(last)
                far = torch.nonzero(bounds >= ceiling).flatten()
                if not len(far):
                    break
                if len(far) < len(part):
                    part, block, norms, bounds = part[far], block.index_select(0, far), norms[far], bounds[far]

    def _from_origin(self, rows: Tensor) -> Tensor:
        """(B, D): some rows as products need them. Only here are rows read after the first pass, a block at a time."""
        return self.x.index_select(0, rows).to(self.dtype).sub_(self.origin)  # on CPUs faster than x[rows]

    def _take(self, picks: list[int]) -> None:
        rows = torch.tensor(picks, dtype=torch.int64, device=self.x.device)
        where = slice(len(self.picks), len(self.picks) + len(rows))
        self.centres[where], self.centre_norms[where] = self._from_origin(rows), self.norms[rows]
        self.picks.extend(picks)


def _working(rows: Tensor) -> torch.dtype:
    """The dtype in which distances are computed."""
    return torch.promote_types(rows.dtype, torch.float32)


def _squares(block: Tensor) -> Tensor:
    """(B, D) rows from the origin → (B,) their squared lengths; a ValueError if one is not finite."""
    squares = block.square().sum(1)
    if not bool(torch.isfinite(squares).all()):
        raise ValueError("rows hold values that are not finite (nan or inf), or so large that their squares are not")
    return squares


def _nearest_squared(block: Tensor, norms: Tensor, centres: Tensor, centre_norms: Tensor) -> Tensor:
    """(B, D) rows and (C, D) centres from the same origin → (B,) the squared distance to the nearest centre."""
    product = torch.addmm(centre_norms, block, centres.T, alpha=-2)  # (B, C): |c|² - 2 x·c; |x|² is the same for all c
    return product.amin(1).add_(norms).clamp_min_(0)
