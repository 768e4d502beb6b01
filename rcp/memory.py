"""The memory: rows of normal patches that answer "which of you is nearest?".

Two exact backends stand behind one function. Both only *find* the neighbours; the distance to them is then computed from
the rows themselves, in one place, as rooted L2. So the backends agree to rounding, and no squared distance slips through.

Taught in notebook 05. Source: Roth et al., PatchCore (arXiv 2106.08265), section 3.3; ReConPatch, Eq. 9.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from rcp.distances import squared_distances

SEARCHES = ("torch", "faiss")
BLOCK = 2**24  # query-row distances held at a time: 64 MiB


class MemoryBank:
    """Rows that answer nearest-neighbour queries exactly."""

    def __init__(self, rows: Tensor, search: str = "torch"):
        """Keep the rows, and build an index over them if the backend needs one.

        Args:
            rows: (M, D) floating point, M >= 1; kept in float32, on their device.
            search: "torch" (any device) or "faiss" (CPU).

        Raises:
            ValueError: if the backend is unknown or the rows are empty.
        """
        if search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"a memory bank needs (M, D) rows, M >= 1, got {tuple(rows.shape)}")
        self.rows = rows.float().contiguous()
        self.search = search

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows of every query, nearest first.

        Args:
            queries: (Q, D) floating point; taken in chunks, so that at most 2^24 distances are held.
            k: how many, 1 <= k <= M.

        Returns:
            (Q, k) float32 L2 distances (rooted, not squared), and (Q, k) int64 positions in `rows`.

        Raises:
            ValueError: if k is out of range or the widths differ.

        Source: ReConPatch, Eq. 9.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie between 1 and the {len(self)} rows of the memory bank, got {k}")
        if queries.ndim != 2 or queries.shape[1] != self.rows.shape[1]:
            raise ValueError(f"queries must be (Q, {self.rows.shape[1]}), got {tuple(queries.shape)}")
        queries = queries.float()
        chunk = max(1, BLOCK // max(len(self), k * self.rows.shape[1]))
        parts = [self._nearest(part, k) for part in queries.split(chunk)]
        return torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts])

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        indices = self._find(queries, k)  # (Q, k)
        exact = (queries[:, None] - self.rows[indices]).square().sum(2).sqrt()  # (Q, k)
        order = exact.argsort(dim=1, stable=True)  # the search may swap near ties
        return exact.gather(1, order), indices.gather(1, order)

    def around(self, queries: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest row r*, and to the rows of its neighbourhood N_b(r*): what Eq. 10 needs.

        Args:
            queries: (Q, D) floating point, taken in chunks.
            b: size of the neighbourhood, r* included, 1 <= b <= M.

        Returns:
            (Q,) and (Q, b) float32 L2 distances (rooted).

        Source: ReConPatch, Eq. 10.
        """
        table, width = self.neighbourhoods(b), max(len(self), b * self.rows.shape[1])
        parts = [self._around(part, table) for part in queries.float().split(max(1, BLOCK // width))]
        return torch.cat([d for d, _ in parts]), torch.cat([n for _, n in parts])

    def _around(self, queries: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        d2 = squared_distances(queries, self.rows) if self.search == "torch" else None  # (Q, M)
        nearest = self._find(queries, 1, d2)[:, 0]
        distance = (queries - self.rows[nearest]).square().sum(1).sqrt()
        places = table[nearest]  # (Q, b)
        if d2 is not None:
            return distance, d2.gather(1, places).sqrt()
        return distance, (queries[:, None] - self.rows[places]).square().sum(2).sqrt()

    def _find(self, queries: Tensor, k: int, d2: Tensor | None = None) -> Tensor:
        """(Q, k) positions; `d2` are the torch search's squared distances, where they are at hand."""
        if self.search == "faiss":
            indices = self._index.search(queries.cpu().contiguous().numpy(), k)[1]
            return torch.from_numpy(indices).to(queries.device)
        if d2 is None:
            d2 = squared_distances(queries, self.rows)  # (Q, M)
        if k == len(self):
            return d2.topk(k, largest=False).indices
        near = d2.topk(k + 1, largest=False)
        # The product form rounds: where the next row is nearer than its error, these queries are looked at again in
        # double precision (in tight clusters that lie far apart; hardly ever among patch features).
        spread = (queries - queries.mean(0)).square().sum(1) + d2.amax(1)  # (Q,) >= the numbers that cancel
        unsure = near.values[:, k] - near.values[:, k - 1] <= 16 * torch.finfo(torch.float32).eps * spread
        indices = near.indices[:, :k].clone()
        if bool(unsure.any()):
            here = queries.device if queries.device.type != "mps" else "cpu"  # Apple's GPUs have no double precision
            again = squared_distances(queries[unsure].to(here).double(), self.rows.to(here).double())
            indices[unsure] = again.topk(k, largest=False).indices.to(indices.device)
        return indices

    @cached_property
    def _index(self):
        import faiss  # here and not above: on macOS faiss and torch each bring an OpenMP, so it loads only when asked for

        index = faiss.IndexFlatL2(self.rows.shape[1])
        index.add(self.rows.cpu().numpy())
        return index

    def neighbourhoods(self, b: int) -> Tensor:
        """Return N_b(r) of every row r: the b rows nearest to it, itself among them (Eq. 10).

        Args:
            b: how many, 1 <= b <= M.

        Returns:
            (M, b) int64, computed once for the largest b asked for.
        """
        if getattr(self, "_table", None) is None or self._table.shape[1] < b:
            table, own = self.nearest(self.rows, b)[1], torch.arange(len(self), device=self.rows.device)
            missing = (table != own[:, None]).all(1)  # among more than b equal rows, a row may not find itself
            table[missing, -1] = own[missing]
            self._table = table
        return self._table[:, :b]


def nearest_neighbours(queries: Tensor, rows: Tensor, k: int = 1, *, search: str = "torch") -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of every query: `MemoryBank.nearest` without keeping a bank.

    Args:
        queries: (Q, D); rows: (M, D); floating point.
        k: how many.
        search: "torch" or "faiss".

    Returns:
        (Q, k) L2 distances (rooted), and (Q, k) positions in `rows`.
    """
    return MemoryBank(rows, search).nearest(queries, k)
