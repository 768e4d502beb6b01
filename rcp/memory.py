"""The memory: rows of normal patches that answer "which of you is nearest?".

A search only *finds* candidates, a few more than asked for. The distances to them are then computed from the rows
themselves, in one place, as rooted L2, and they decide. So no squared distance slips through, all searches agree to
rounding where they find the same rows, and one that misses the nearest row reports more than its distance, never less.

Two searches are exact. "torch" ranks the rows by |r|² - 2 q·r: one matrix product and one pass over it, as |q|² is the
same for all rows. The origin lies in the mean of the rows, which leaves little to cancel; where rounding could still
hide the nearest row, the query is looked at again in double precision. "faiss" does the same on faiss' flat index.

Three look at a part of the rows, for banks of a million and more. "faiss-ivf" sorts the rows into 4·√M cells, and a
query looks into the few that are nearest. "faiss-pq" keeps one byte for every four numbers of a row in those cells.
"faiss-hnsw" walks along a graph that links each row to near ones; where clusters lie far apart, it may miss one.

Taught in notebook 05. Source: Roth et al., PatchCore (arXiv 2106.08265), section 3.3; ReConPatch, Eq. 9; Jégou et al.,
*Product quantization for nearest neighbor search*, 2011 (cells and codes); Malkov & Yashunin (arXiv 1603.09320), HNSW.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rcp.distances import squared_distances

SEARCHES = ("torch", "faiss", "faiss-ivf", "faiss-pq", "faiss-hnsw")
BLOCK = 2**22  # numbers held at a time: 16 MiB
TILE = 2560  # rows that a block of queries is compared with at a time
GROUP = 64  # rows of which at first only the smallest distance is looked at
SPARE = {"torch": 2, "faiss": 2, "faiss-ivf": 2, "faiss-pq": 63, "faiss-hnsw": 2}  # candidates beyond the k asked for
LEAST, MOST = 39, 64  # rows per centre in training: with fewer faiss warns, with more it only takes longer
APPROXIMATE_FROM = 256 * LEAST  # rows: so many train the 256 centres of one byte
NPROBE = 16  # cells that a query looks into
LINKS, EF_CONSTRUCTION, EF_SEARCH = 32, 80, 128  # the graph: links of a row; rows in view while building, and asking


class MemoryBank:
    """Rows that answer nearest-neighbour queries.

    What is held: `rows`, in float32, or as they come if that is float16 or bfloat16, perhaps in a file that is mapped
    into memory: searches gather a few candidates from them at a time. From the first query on, also what `index_bytes`
    counts: for "torch" a centred float32 copy of the rows, for the others faiss' index. From then on the rows must stay
    as they are. The table of neighbourhoods for Eq. 10 takes another 8·b bytes a row.

    The approximate searches start at 9,984 rows (`APPROXIMATE_FROM`); a smaller bank is searched exactly, by the flat
    index. Their distances are true distances to true rows: never too low, too high where the nearest row was missed. In
    the faiss that this project asks for, an index comes out bit for bit the same, whatever the number of threads.
    """

    def __init__(self, rows: Tensor, search: str = "torch"):
        """Keep the rows; what the search needs besides is made when it is first asked.

        Args:
            rows: (M, D) floating point, M >= 1; contiguous float32, float16 and bfloat16 rows are not copied.
            search: "torch" (on the rows' device), or "faiss", "faiss-ivf", "faiss-pq", "faiss-hnsw" (on the CPU).

        Raises:
            ValueError: if the search is unknown or the rows are empty.
        """
        if search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"a memory bank needs (M, D) rows, M >= 1, got {tuple(rows.shape)}")
        self.rows = (rows if rows.dtype in (torch.float16, torch.bfloat16) else rows.float()).contiguous()
        self.search = search
        self._kind = "faiss" if search.startswith("faiss-") and len(rows) < APPROXIMATE_FROM else search
        self._table: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Return the k nearest rows of every query, nearest first.

        Args:
            queries: (Q, D) floating point; taken in blocks, so that at most 2^22 distances are held.
            k: how many, 1 <= k <= M.

        Returns:
            (Q, k) float32 L2 distances (rooted, not squared), and (Q, k) int64 positions in `rows`.

        Raises:
            ValueError: if k is out of range or the widths differ.

        Source: ReConPatch, Eq. 9.
        """
        parts = [self._nearest(part, k) for part in self._checked(queries, k)]
        return torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts])

    def around(self, queries: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest row r*, and to the rows of its neighbourhood N_b(r*): what Eq. 10 needs.

        Args:
            queries: (Q, D) floating point, taken in blocks.
            b: size of the neighbourhood, r* included, 1 <= b <= M.

        Returns:
            (Q,) and (Q, b) float32 L2 distances (rooted).

        Raises:
            ValueError: if b is out of range or the widths differ.

        Source: ReConPatch, Eq. 10.
        """
        parts = []
        for part in self._checked(queries, b):
            distance, nearest = self._nearest(part, 1)
            parts.append((distance[:, 0], self._distances(part, self._neighbourhoods(nearest[:, 0], b))))
        return torch.cat([d for d, _ in parts]), torch.cat([n for _, n in parts])

    def neighbourhoods(self, b: int) -> Tensor:
        """Return N_b(r) of every row r: the b rows nearest to it, itself among them (Eq. 10).

        Args:
            b: how many, 1 <= b <= M.

        Returns:
            (M, b) int64, computed once for the largest b asked for, by the bank's own search.

        Raises:
            ValueError: if b is out of range.
        """
        self._checked(self.rows[:1], b)
        return self._neighbourhoods(torch.arange(len(self), device=self.rows.device), b)

    @property
    def index_bytes(self) -> int:
        """What the search holds besides `rows`, in bytes; it is made if it is not there yet."""
        if self._kind == "torch":
            return sum(part.nbytes for part in self._centred)
        import faiss

        index, size = self._index, 0 if self._order is None else self._order.nbytes
        if isinstance(index, faiss.IndexHNSW):
            graph = index.hnsw
            size += 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
            index = faiss.downcast_index(index.storage)
        if isinstance(index, faiss.IndexIVF):
            size += (index.code_size + 8) * index.ntotal + 4 * index.d * index.nlist  # codes, positions, centres
        if isinstance(index, faiss.IndexIVFPQ):
            size += 4 * index.pq.centroids.size()
        return size + (index.codes.size() if isinstance(index, faiss.IndexFlat) else 0)

    # How queries are answered

    def _checked(self, queries: Tensor, k: int) -> tuple[Tensor, ...]:
        """The queries, in blocks whose distances are held together."""
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie between 1 and the {len(self)} rows of the memory bank, got {k}")
        width = self.rows.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f"queries must be (Q, {width}), got {tuple(queries.shape)}")
        return self._blocks(queries.float(), k)

    def _blocks(self, queries: Tensor, k: int) -> tuple[Tensor, ...]:
        size = max(1, BLOCK // max(min(len(self), TILE), self.rows.shape[1], k))
        return queries.split(size - size % 16 if size > 16 else size)  # products are faster with such widths

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        places, sure = self._find(queries, k)  # (Q, n), n >= k, and (Q,)
        if not bool(sure.all()):  # the one time that the processor waits for the device
            places[~sure] = self._again(queries[~sure], places.shape[1])
        exact, order = self._distances(queries, places).sort(dim=1, stable=True)  # (Q, n)
        return exact[:, :k], places.gather(1, order[:, :k])

    def _distances(self, queries: Tensor, places: Tensor) -> Tensor:
        """(Q, D) and (Q, n) positions → (Q, n) L2 distances, from the rows themselves."""
        step, parts = max(1, BLOCK // (places.shape[1] * queries.shape[1])), []
        for q, p in zip(queries.split(step), places.split(step), strict=True):
            rows = self.rows.index_select(0, p.flatten()).float().view(*p.shape, -1)  # (q, n, D), ours to change
            parts.append(torch.linalg.vector_norm(rows.sub_(q[:, None]), dim=2))
        return torch.cat(parts)

    def _find(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(Q, n) positions of candidates, n >= k, and (Q,) whether they need no second look."""
        n, q = min(k + SPARE[self._kind], len(self)), queries - self._centre
        if self._kind.startswith("faiss-"):
            places = self._ask(q, n)[1]
            return places, (places >= 0).all(1)  # -1: fewer than n rows were met
        if n == len(self):
            places = torch.arange(n, device=q.device).repeat(len(q), 1)
            return places, places.new_ones(len(q), dtype=torch.bool)
        length = torch.linalg.vector_norm(q, dim=1)
        if self._kind == "torch":
            ranks, places = self._scan(q, n + 1)
            d = (ranks[:, k - 1] + length.square()).clamp_min(0).sqrt()  # (Q,)
        else:
            ranks, places = self._ask(q, n + 1)
            d = ranks[:, k - 1].clamp_min(0).sqrt()
        # A product of D terms errs by at most D·u·|q||r|, in whatever order it is summed (u = eps/2; 16 more for the
        # other steps), and a row nearer than d has |r| <= |q| + d. So two such rows may change places within twice the
        # error of |r|² - 2 q·r. Source: Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, section 3.1.
        error = (q.shape[1] + 16) * torch.finfo(torch.float32).eps * (length + d) * (3 * length + d)
        return places[:, :n], ranks[:, n] - ranks[:, k - 1] > error  # a NaN is not sure

    def _scan(self, queries: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(Q, D) centred → (Q, n): the smallest |r|² - 2 q·r as products round them, and their positions."""
        rows, norms = self._centred
        parts = []
        for at in range(0, len(rows), TILE):
            parts.append(_smallest(_ranks(rows[at : at + TILE], norms[at : at + TILE], queries), n, at))
        return _merged(parts, n)

    def _ask(self, queries: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(Q, D) centred → (Q, n): squared distances and positions as faiss finds them."""
        squared, places = (torch.from_numpy(t) for t in self._index.search(_for_faiss(queries, self._index.d), n))
        if self._order is not None:
            places = torch.where(places < 0, places, self._order[places])
        return squared.to(queries.device), places.to(queries.device)

    def _again(self, queries: Tensor, n: int) -> Tensor:
        """(Q, D) → (Q, n) positions of the nearest rows, in double precision."""
        here = queries.device if queries.device.type != "mps" else "cpu"  # Apple's GPUs have no double precision
        queries, parts = queries.to(here).double(), []
        step = max(1, BLOCK // max(queries.shape))
        for at in range(0, len(self), step):
            parts.append(_smallest(squared_distances(self.rows[at : at + step].to(here).double(), queries), n, at))
        return _merged(parts, n)[1].to(self.rows.device)

    def _neighbourhoods(self, places: Tensor, b: int) -> Tensor:
        """(P,) positions of rows → (P, b): N_b of each, found when it is first asked for, as most are never needed."""
        if self._table is None or self._table.shape[1] < b:
            self._table = torch.full((len(self), b), -1, device=self.rows.device)
        new, width = places[self._table[places, 0] < 0].unique(), self._table.shape[1]
        for own in self._blocks(new, width) if len(new) else ():
            found = self._nearest(self.rows[own].float(), width)[1]
            missing = (found != own[:, None]).all(1)  # among many equal rows, or by accident, a row may not find itself
            found[missing, -1] = own[missing]
            self._table[own] = found
        return self._table[places, :b]

    # What is held

    @cached_property
    def _centre(self) -> Tensor:
        step = max(1, BLOCK // self.rows.shape[1])
        return torch.stack([part.float().sum(0) for part in self.rows.split(step)]).sum(0) / len(self)  # (D,)

    def _chunks(self, order: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """(position, centred rows in float32), a few at a time, in the order of positions or another."""
        step = max(1, BLOCK // self.rows.shape[1])
        for at in range(0, len(self), step):
            part = self.rows[at : at + step] if order is None else self.rows[order[at : at + step].to(self.rows.device)]
            yield at, part.float() - self._centre

    @cached_property
    def _centred(self) -> tuple[Tensor, Tensor]:
        """(P, D) centred rows and (P, 1) |r|²; P is M rounded up to whole groups, by rows that are infinitely far."""
        padded = -(-len(self) // GROUP) * GROUP
        rows = torch.zeros(padded, self.rows.shape[1], device=self.rows.device)
        norms = torch.full((padded, 1), torch.inf, device=self.rows.device)
        for at, part in self._chunks():
            rows[at : at + len(part)] = part
            norms[at : at + len(part), 0] = part.square().sum(1)
        return rows, norms

    @cached_property
    def _order(self) -> Tensor | None:
        """(M,) in which the rows enter a graph: image by image, its first part would know the first images alone."""
        return _shuffled(len(self)) if self._kind == "faiss-hnsw" else None

    @cached_property
    def _index(self):
        """The faiss index over the centred rows."""
        import faiss  # here and not above: on macOS it and torch each bring an OpenMP, so it loads only when asked for

        width = self.rows.shape[1]
        if self._kind == "faiss-pq":
            width += -width % 4  # zeros change no distance, and fours fit every width
        cells = min(int(4 * len(self) ** 0.5), len(self) // LEAST)
        recipe = {
            "faiss": "Flat",
            "faiss-ivf": f"IVF{cells},Flat",
            "faiss-pq": f"IVF{cells},PQ{width // 4}",
            "faiss-hnsw": f"HNSW{LINKS},Flat",
        }[self._kind]
        index = faiss.index_factory(width, recipe)
        if self._kind == "faiss-pq":
            index.pq.cp.max_points_per_centroid = MOST
            index.do_polysemous_training = False  # it is slow, and for filters that are not used here
            index.use_precomputed_table = -1  # none: it would outweigh the codes
        if self._kind in ("faiss-ivf", "faiss-pq"):
            index.nprobe, index.cp.max_points_per_centroid = NPROBE, MOST
            few = _shuffled(len(self))[: MOST * cells].sort().values.to(self.rows.device)
            index.train(_for_faiss(self.rows[few].float() - self._centre, width))
        if self._kind == "faiss-hnsw":
            index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
        for _, part in self._chunks(self._order):
            index.add(_for_faiss(part, width))
        return index


def _shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _for_faiss(rows: Tensor, width: int) -> np.ndarray:
    """(m, D) → (m, width) float32 as faiss takes it, zeros on the right."""
    return F.pad(rows, (0, width - rows.shape[1])).cpu().contiguous().numpy()


def _ranks(rows: Tensor, norms: Tensor, queries: Tensor) -> Tensor:
    """(m, D), (m, 1) |r|² and (Q, D) → (m, Q): |r|² - 2 q·r, by which rows rank as by their distance."""
    return torch.addmm(norms, rows, queries.T, alpha=-2)


def _smallest(table: Tensor, n: int, at: int) -> tuple[Tensor, Tensor]:
    """(m, Q) → (Q, n'): the n' = min(n, m) smallest numbers of every column, sorted, and their rows, counted from `at`.

    They lie in the n groups of rows whose minima are smallest, as those minima come before all that others hold.
    So there is one quick pass over the table, and the slow selection sees n groups instead of all.
    """
    m, q = table.shape
    if m % GROUP or m < 2 * n * GROUP:
        near = table.topk(min(n, m), dim=0, largest=False)
        return near.values.T, near.indices.T + at
    groups = table.view(m // GROUP, GROUP, q)
    chosen = groups.amin(1).T.topk(n, largest=False, sorted=False).indices  # (Q, n) groups
    each = torch.arange(q, device=table.device)[:, None]
    near = groups.permute(2, 0, 1)[each, chosen].flatten(1).topk(n, largest=False)  # of (Q, n·GROUP)
    return near.values, chosen.gather(1, near.indices // GROUP) * GROUP + near.indices % GROUP + at


def _merged(parts: list[tuple[Tensor, Tensor]], n: int) -> tuple[Tensor, Tensor]:
    """Several (Q, n') values and positions → the (Q, n) smallest of all."""
    if len(parts) == 1:
        return parts[0]
    values, places = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    near = values.topk(n, largest=False)
    return near.values, places.gather(1, near.indices)


def nearest_neighbours(queries: Tensor, rows: Tensor, k: int = 1, *, search: str = "torch") -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of every query: `MemoryBank.nearest` without keeping a bank.

    Args:
        queries: (Q, D); rows: (M, D); floating point.
        k: how many.
        search: one of `SEARCHES`.

    Returns:
        (Q, k) float32 L2 distances (rooted), and (Q, k) int64 positions in `rows`.

    Raises:
        ValueError: as `MemoryBank` and its `nearest`.
    """
    return MemoryBank(rows, search).nearest(queries, k)
