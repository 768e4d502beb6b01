"""The coreset: few rows such that every row has one of them near (greedy k-center).

Greedy k-center picks, again and again, the row that is farthest from all rows picked so far. The distance at which a row
is picked is at the same time the *covering radius* of the picks before it.

The plain loop passes over all N rows for each of the M picks. This one gives the same picks without that, by one
observation: a row's distance to its nearest centre can only shrink. So a distance that was computed long ago is an *upper
bound* today, and a row whose old bound is below the current maximum cannot be the farthest: it is left alone. Only the few
rows with the highest bounds are brought up to date, in blocks, by one matrix product over the centres that they missed.
The best of them are then compared among themselves (one more product), which yields many picks at once.

Taught in notebook 04. Source: Roth et al., PatchCore (arXiv 2106.08265), algorithm 1; Sener & Savarese, ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcp import progress

REFRESH = 4096  # rows whose bounds are refreshed together
CANDIDATES = 1024  # of those, rows that compete for the next picks: their (1024, 1024) distances stay in the cache
CENTRES = 2048  # centres per matrix product, so that a block stays at 4096 x 2048 numbers
PICKED = -1.0  # the bound of a row that is a centre already: below every distance


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


def coreset_size(n: int, ratio: float) -> int:
    """Return how many of n rows a coreset of this ratio has: rounded down, at least 1."""
    if not 0 < ratio <= 1:
        raise ValueError(f"the coreset ratio must lie in (0, 1], got {ratio}; 0.01 keeps 1 % of the rows")
    return max(1, int(n * ratio + 1e-9))  # 100 × 0.29 is 28.999… in floating point


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
    dtype = torch.promote_types(rows.dtype, torch.float32)
    matrix = projection_matrix(rows.shape[1], dimension, generator, dtype).to(rows.device)
    out = torch.empty(len(rows), dimension, dtype=dtype, device=rows.device)
    for at in range(0, len(rows), chunk):
        out[at : at + chunk] = rows[at : at + chunk].to(dtype) @ matrix
    return out


def greedy_coreset(
    rows: Tensor | np.ndarray,
    ratio: float = 0.01,
    size: int | None = None,
    *,
    generator: torch.Generator | None = None,
    projection: int | None = 128,
    start: int | None = None,
) -> Coreset:
    """Return the exact greedy k-center coreset of the rows: the picks of the plain loop, ties to the lowest index.

    (Which of several exact copies of a row is picked can differ from the plain loop, as products round; the points do not.)

    Args:
        rows: (N, D) floating point; not changed. Distances are computed in its dtype, half precisions in float32.
        ratio: share of the rows to keep, in (0, 1]; at least one row is kept.
        size: number of rows to keep instead, 1 <= size <= N.
        generator: draws the projection and the start; needed for either.
        projection: pick in a random projection to this many dimensions, if the rows have more; None: in their own space.
        start: the first row picked; None: drawn at random.

    Returns:
        A `Coreset`. Memory besides the rows (and their projection): O(N), plus blocks of 4096 x 2048 numbers.

    Raises:
        ValueError: if a size, ratio, start or row is out of range or not finite, or the generator is missing.

    Source: PatchCore (arXiv 2106.08265), algorithm 1, with the start included in the coreset.
    """
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or len(rows) == 0 or not rows.is_floating_point():
        raise ValueError(f"rows must be (N, D), N >= 1, floating point, got {tuple(rows.shape)} {rows.dtype}")
    n, width = rows.shape
    m = coreset_size(n, ratio) if size is None else size
    if not 1 <= m <= n:
        raise ValueError(f"the coreset size must lie between 1 and the number of rows ({n}), got {m}")
    project = projection is not None and projection < width
    if generator is None and (project or start is None):
        raise ValueError("pass generator=torch.Generator().manual_seed(...): the projection and the start are random")
    points = random_projection(rows, projection, generator) if project else rows
    if start is None:
        start = int(torch.randint(n, (1,), generator=generator))
    if not 0 <= start < n:
        raise ValueError(f"start must be a row between 0 and {n - 1}, got {start}")
    indices, squared = _Greedy(points, start, m).run()
    return Coreset(torch.tensor(indices), torch.tensor(squared, dtype=torch.float64).sqrt(), points.shape[1])


class _Greedy:
    """The state of one selection: stale upper bounds, and how many centres each of them has seen."""

    def __init__(self, points: Tensor, start: int, size: int):
        dtype = torch.promote_types(points.dtype, torch.float32)
        self.x = points.to(dtype)
        # Products are taken relative to a row of the data (less cancellation; the mean would round whole numbers).
        self.origin = self.x[start].clone()
        if not bool(torch.isfinite(self.x.sum(0)).all()):
            raise ValueError("rows hold values that are not finite (nan or inf), or too large to add up")
        self.size = size
        self.picks: list[int] = []
        self.squared_radii: list[float] = []
        self.centres = self.x.new_empty(size, points.shape[1])  # (M, D), from the origin
        self.norms = torch.empty(len(points), dtype=dtype, device=points.device)
        for at in range(0, len(points), 65536):
            self.norms[at : at + 65536] = (self.x[at : at + 65536] - self.origin).square().sum(1)
        if not bool(torch.isfinite(self.norms).all()):
            raise ValueError(f"rows are too large: their squares are not finite in {dtype}; scale them down")
        self.bounds = torch.full((len(points),), float("inf"), dtype=dtype, device=points.device)
        self.seen = torch.zeros(len(points), dtype=torch.int32, device=points.device)
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
        count = min(REFRESH, len(self.bounds))
        top = self.bounds.topk(count).indices.sort().values  # (B,), ascending: ties go to the lowest index
        ceiling = float(self.bounds[top].min()) if count < len(self.bounds) else -float("inf")  # no other is above it
        block = self._refresh(top)  # (B, D)
        bounds = self.bounds[top]
        ahead = torch.nonzero(bounds > ceiling).flatten()
        if len(ahead) > CANDIDATES:
            best = bounds[ahead].topk(CANDIDATES + 1)
            ceiling = float(best.values[-1])
            ahead = ahead[bounds[ahead] > ceiling]
        if len(ahead):
            self._pick_among(top[ahead], block[ahead], ceiling)
        else:
            self._settle_tie(ceiling)

    def _pick_among(self, rows: Tensor, block: Tensor, ceiling: float) -> None:
        """Pick from fresh candidates while the farthest of them lies above every bound elsewhere."""
        norms = self.norms[rows]
        between = torch.addmm(norms[:, None] + norms, block, block.T, alpha=-2).clamp_min_(0).cpu().numpy()  # (C, C)
        bounds, index = self.bounds[rows].cpu().numpy(), rows.tolist()
        chosen: list[int] = []
        while len(self.squared_radii) < self.size:
            j = int(bounds.argmax())
            farthest = float(bounds[j])
            if not farthest > ceiling:
                break
            self.squared_radii.append(max(farthest, 0.0))
            if len(self.picks) + len(chosen) == self.size:
                break
            chosen.append(index[j])
            np.minimum(bounds, between[j], out=bounds)
            bounds[j] = PICKED
        self._take(chosen)
        self.bounds[rows] = torch.from_numpy(bounds).to(self.bounds.device)
        self.seen[rows] = len(self.picks)

    def _settle_tie(self, ceiling: float) -> None:
        """No candidate is strictly above the others: bring all rows at the ceiling up to date and compare these."""
        tied = torch.nonzero(self.bounds >= ceiling).flatten()
        if not len(tied):
            return  # the bounds of this block were stale, and have fallen below the others: another round
        for part in tied.split(REFRESH):
            self._refresh(part)
        farthest = self.bounds[tied].max()
        if float(farthest) < ceiling:
            return  # likewise
        row = int(tied[self.bounds[tied] == farthest][0])
        self.squared_radii.append(max(float(farthest), 0.0))
        if len(self.picks) < self.size:
            self._take([row])
            self.bounds[row] = PICKED

    def _refresh(self, rows: Tensor) -> Tensor:
        """Bring the bounds of these rows up to date; return the rows, from the origin, (B, D)."""
        block = self.x[rows] - self.origin
        bounds, norms = self.bounds[rows], self.norms[rows][:, None]
        first, last = int(self.seen[rows].min()), len(self.picks)
        for at in range(first, last, CENTRES):
            centres = self.centres[at : min(at + CENTRES, last)]
            d2 = torch.addmm(norms + centres.square().sum(1), block, centres.T, alpha=-2)  # (B, centres)
            bounds = torch.minimum(bounds, d2.amin(1).clamp_min_(0))
        self.bounds[rows] = bounds
        self.seen[rows] = last
        return block

    def _take(self, rows: list[int]) -> None:
        n = len(self.picks)
        self.centres[n : n + len(rows)] = self.x[rows] - self.origin
        self.picks.extend(rows)
