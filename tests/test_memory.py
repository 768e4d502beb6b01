"""The memory: all searches against loops in double precision, whole or in blocks; the approximate ones never too low."""

import math
from functools import cache

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcp import memory
from rcp.memory import APPROXIMATE_FROM, SEARCHES, MemoryBank, nearest_neighbours

EXACT, APPROXIMATE = SEARCHES[:2], SEARCHES[2:]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_nearest(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One pair at a time, in Python's own floats."""
    found = [sorted((math.dist(q, r), i) for i, r in enumerate(rows.tolist()))[:k] for q in queries.tolist()]
    return torch.tensor([[d for d, _ in row] for row in found]), torch.tensor([[i for _, i in row] for row in found])


def all_distances(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(Q, M) float64, from differences and not from products."""
    return torch.cdist(queries.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")


def check(found: tuple[torch.Tensor, torch.Tensor], every: torch.Tensor, exact: bool) -> None:
    """Distances are those to the rows named, sorted; the j-th is the j-th smallest, or more in an approximate search."""
    distances, places = found
    k = places.shape[1]
    assert distances.dtype == torch.float32 and places.dtype == torch.int64
    assert all(len(set(row)) == k for row in places.tolist())
    assert bool((distances.diff(dim=1) >= 0).all())
    torch.testing.assert_close(distances.double(), every.gather(1, places), rtol=2e-6, atol=1e-30)
    least = every.sort(1).values[:, :k]
    assert bool((distances >= least * (1 - 2e-6)).all())
    if exact:
        torch.testing.assert_close(distances.double(), least, rtol=2e-6, atol=1e-30)


@pytest.fixture
def second_looks(monkeypatch) -> list[int]:
    """How many queries were looked at again, call by call."""
    seen, real = [], memory.MemoryBank._again
    monkeypatch.setattr(MemoryBank, "_again", lambda self, q, n: seen.append(len(q)) or real(self, q, n))
    return seen


# --- all searches, in small banks ------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 2, 7, 37, 38, 40])
def test_all_searches_equal_a_loop(search, k):
    queries, rows = draw(30, 11, seed=1), draw(40, 11)
    found, slow = MemoryBank(rows, search).nearest(queries, k), slow_nearest(queries, rows, k)
    assert found[0].shape == found[1].shape == (30, k) and found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], slow[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1], slow[1])


@pytest.mark.parametrize("search", SEARCHES)
def test_distances_are_rooted(search):
    rows = torch.tensor([[30.0, 40.0], [3.0, 4.0]])
    distances, places = nearest_neighbours(torch.zeros(1, 2), rows, 2, search=search)
    assert distances.tolist() == [[5.0, 50.0]] and places.tolist() == [[1, 0]]


@settings(max_examples=60, deadline=None)
@given(
    search=st.sampled_from(EXACT), k=st.integers(1, 9), rows=st.integers(9, 700), width=st.integers(1, 40),
    clusters=st.integers(1, 5), twins=st.booleans(), seed=st.integers(0, 99),
    scales=st.sampled_from([(0.0, 1.0), (1.0, 1e-3), (100.0, 1e-3), (100.0, 30.0), (1e4, 1.0)]),
)  # fmt: skip
def test_exact_searches_find_the_nearest_in_tight_clusters_far_apart_and_among_twins(
    search, k, rows, width, clusters, twins, seed, scales
):
    far, spread = scales  # a spread of at least a hundred times what float32 resolves there
    generator = torch.Generator().manual_seed(seed)
    centres = far * torch.randn(clusters, width, generator=generator) + far
    which = torch.randint(clusters, (rows + 20,), generator=generator)
    points = centres[which] + spread * torch.randn(rows + 20, width, generator=generator)
    queries, bank = points[:20].clone(), points[20:]
    queries[::5] = bank[:4]  # some are rows themselves
    if twins:
        bank[rows // 2 :] = bank[: rows - rows // 2].clone()
    check(MemoryBank(bank, search).nearest(queries, k), all_distances(queries, bank), exact=True)


@pytest.mark.parametrize("search", EXACT)
def test_ordinary_rows_need_no_second_look_wherever_the_origin_lies(search, second_looks):
    queries, rows = draw(500, 64, seed=1), draw(1000, 64)
    for offset in (0, 30):
        MemoryBank(rows + offset, search).nearest(queries + offset)
    assert second_looks == []


def test_what_rounding_could_confuse_is_looked_at_again_and_nothing_else(second_looks):
    rows = draw(300, 16)
    rows[:9] = 50 + 1e-6 * draw(9, 16, seed=2)  # products cannot tell these nine apart
    queries = torch.cat([draw(40, 16, seed=1), torch.full((3, 16), 50.0)])
    check(MemoryBank(rows).nearest(queries), all_distances(queries, rows), exact=True)
    assert second_looks == [3]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_common_offset_and_far_queries_cost_no_accuracy(search):
    queries, rows = draw(20, 8, seed=1) + 100, draw(50, 8) + 100
    queries[0] += 1000
    check(MemoryBank(rows, search).nearest(queries, 3), all_distances(queries, rows), exact=True)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 5])
def test_blocks_and_tiles_change_nothing(search, k, monkeypatch):
    queries, rows = draw(53, 6, seed=1), draw(300, 6)
    whole = MemoryBank(rows, search).nearest(queries, k)
    for block, tile in [(1, 1), (100, 7), (700, 128), (5000, 300), (20_000, 192)]:  # none divides everything
        monkeypatch.setattr(memory, "BLOCK", block)
        monkeypatch.setattr(memory, "TILE", tile)
        parts = MemoryBank(rows, search).nearest(queries, k)
        torch.testing.assert_close(parts[0], whole[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(parts[1], whole[1])


def test_no_block_holds_more_numbers_than_the_bound(monkeypatch):
    seen, gathered, real, norm = [], [], memory._ranks, torch.linalg.vector_norm
    monkeypatch.setattr(memory, "_ranks", lambda r, n, q: seen.append((len(q), len(r))) or real(r, n, q))
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda t, dim: gathered.append(t.numel()) or norm(t, dim=dim))
    monkeypatch.setattr(memory, "BLOCK", 1000)
    monkeypatch.setattr(memory, "TILE", 20)
    MemoryBank(draw(31, 6)).nearest(draw(53, 6), 20)
    assert len(seen) > 2 and all(q * m <= 1000 for q, m in seen)
    assert len(gathered) > 2 and max(gathered) <= 1000


@pytest.mark.parametrize("search", EXACT)
def test_a_batch_of_one_equals_a_batch_of_n(search):
    queries, bank = draw(40, 64, seed=1), MemoryBank(draw(900, 64), search)
    for k in (1, 4):
        distances, places = bank.nearest(queries, k)
        alone = [bank.nearest(query[None], k) for query in queries]
        assert torch.equal(torch.cat([d for d, _ in alone]), distances)
        assert torch.equal(torch.cat([p for _, p in alone]), places)


@pytest.mark.parametrize("search", SEARCHES)
def test_more_neighbours_come_sorted_and_begin_with_the_nearest(search):
    bank, queries = MemoryBank(draw(60, 5), search), draw(40, 5, seed=1)
    distances, places = bank.nearest(queries, 9)
    first = bank.nearest(queries)
    assert torch.equal(first[0], distances[:, :1]) and torch.equal(first[1], places[:, :1])


@pytest.mark.parametrize("search", SEARCHES)
def test_near_ties_are_sorted_by_their_exact_distances(search):
    base = draw(1, 16) * 10
    rows = (base.double() + 1e-5 * draw(12, 16, seed=1).double()).float()  # a product form cannot tell them apart
    queries = torch.cat([base, -base])
    check(MemoryBank(rows, search).nearest(queries, 12), all_distances(queries, rows), exact=True)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_row_of_a_tight_cluster_finds_itself(search):
    centres = 10 * draw(20, 64)
    rows = (centres[:, None] + 1e-3 * draw(20, 50, 64, seed=1)).flatten(0, 1)
    distances, places = MemoryBank(rows, search).nearest(rows[::7])
    assert float(distances.max()) == 0.0 and places[:, 0].tolist() == list(range(0, 1000, 7))


@pytest.mark.parametrize("search", SEARCHES)
def test_equal_rows_are_all_found(search):
    distances, places = MemoryBank(torch.ones(5, 3), search).nearest(torch.ones(1, 3), 5)
    assert distances.tolist() == [[0.0] * 5] and sorted(places[0].tolist()) == [0, 1, 2, 3, 4]
    assert MemoryBank(torch.ones(500, 3), search).nearest(torch.ones(4, 3), 3)[0].eq(0).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_half_and_double_precision_queries_are_taken(search):
    queries, rows = draw(6, 5, seed=1), draw(9, 5)
    expected = slow_nearest(queries.half().float(), rows, 2)[0]
    found = MemoryBank(rows.double(), search).nearest(queries.half(), 2)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_stay_in_their_file_and_count_as_they_are(search, dtype, tmp_path):
    path = tmp_path / "rows"
    given_rows = (3 + draw(400, 6)).to(dtype)
    path.write_bytes(given_rows.view(torch.uint8).numpy().tobytes())
    rows = torch.from_file(str(path), shared=False, size=2400, dtype=dtype).view(400, 6)
    bank, queries = MemoryBank(rows, search), 3 + draw(20, 6, seed=1)
    check(bank.nearest(queries, 3), all_distances(queries, given_rows), exact=True)
    assert bank.rows.data_ptr() == rows.data_ptr() and bank.neighbourhoods(2).shape == (400, 2)


@pytest.mark.parametrize("search", SEARCHES)
def test_one_row_is_a_memory(search):
    bank = MemoryBank(torch.tensor([[1.0, 2.0]]), search)
    assert len(bank) == 1 and bank.nearest(torch.tensor([[4.0, 6.0]]))[0].item() == 5.0


@pytest.mark.parametrize("search", EXACT)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_query_that_is_no_number_harms_no_other(search, bad):
    queries, bank = draw(5, 7, seed=1), MemoryBank(draw(300, 7), search)
    clean = bank.nearest(queries)
    queries[2, 3] = bad
    distances, places = bank.nearest(queries)
    others = [0, 1, 3, 4]
    assert not math.isfinite(distances[2]) and 0 <= int(places[2]) < 300
    assert torch.equal(distances[others], clean[0][others]) and torch.equal(places[others], clean[1][others])


@settings(max_examples=80, deadline=None)
@given(m=st.sampled_from([1, 63, 64, 128, 256, 640, 650]), q=st.integers(0, 5), n=st.integers(1, 12),
       levels=st.sampled_from([2, 1000]), seed=st.integers(0, 99))  # fmt: skip
def test_the_smallest_of_groups_are_the_smallest_of_all(m, q, n, levels, seed):
    table = torch.randint(levels, (m, q), generator=torch.Generator().manual_seed(seed)).float()
    values, places = memory._smallest(table, n, 1000)
    assert torch.equal(values, table.sort(0).values[:n].T)
    assert torch.equal(table.T.gather(1, places - 1000), values)
    assert all(len(set(row)) == min(n, m) for row in places.tolist())


@pytest.mark.parametrize("k", [0, -1, 8])
def test_k_out_of_range_is_refused(k):
    bank = MemoryBank(draw(7, 3))
    for ask in (lambda: bank.nearest(draw(2, 3), k), lambda: bank.around(draw(2, 3), k), lambda: bank.neighbourhoods(k)):
        with pytest.raises(ValueError, match=f"between 1 and the 7 rows.*got {k}"):
            ask()


@pytest.mark.parametrize("shape", [(2, 4), (3,), (1, 2, 3)])
def test_queries_of_another_width_are_refused(shape):
    for ask in (MemoryBank(draw(7, 3)).nearest, lambda queries: MemoryBank(draw(7, 3)).around(queries, 2)):
        with pytest.raises(ValueError, match=r"queries must be \(Q, 3\)"):
            ask(draw(*shape))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)])
def test_rows_that_are_no_table_are_refused(shape):
    with pytest.raises(ValueError, match=r"a memory bank needs \(M, D\) rows"):
        MemoryBank(draw(*shape))


def test_an_unknown_search_is_refused():
    with pytest.raises(ValueError, match="one of torch, faiss, faiss-ivf, faiss-pq, faiss-hnsw, got 'annoy'"):
        MemoryBank(draw(3, 3), "annoy")


# --- neighbourhoods (Eq. 10) -----------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_a_neighbourhood_begins_with_the_row_itself_and_equals_a_loop(search):
    rows = draw(25, 4)
    table = MemoryBank(rows, search).neighbourhoods(6)
    assert table[:, 0].tolist() == list(range(25))
    assert torch.equal(table, slow_nearest(rows, rows, 6)[1])


def test_neighbourhoods_of_any_width_agree_in_any_order_of_asking():
    bank, queries = MemoryBank(draw(25, 4)), draw(3, 4, seed=1)
    bank.around(queries, 2)  # knows those of three rows at most
    few, many, fewer = bank.neighbourhoods(3), bank.neighbourhoods(8), bank.neighbourhoods(2)
    assert few.shape == (25, 3) and many.shape == (25, 8) and fewer.shape == (25, 2)
    assert torch.equal(few, many[:, :3]) and torch.equal(fewer, many[:, :2])
    assert torch.equal(bank.around(queries, 3)[1], MemoryBank(draw(25, 4)).around(queries, 3)[1])


def test_a_row_with_many_twins_is_in_its_own_neighbourhood():
    table = MemoryBank(torch.ones(20, 4)).neighbourhoods(3)
    assert bool((table == torch.arange(20)[:, None]).any(1).all())


@pytest.mark.parametrize("search", SEARCHES)
def test_around_is_the_distance_to_each_row_of_the_nearest_rows_neighbourhood(search):
    rows = torch.cat([draw(30, 6) / 100 + 50, draw(30, 6, seed=2) / 100 - 50])  # two clusters, far apart
    queries = rows[::4] + draw(15, 6, seed=1) / 1000
    every = all_distances(queries, rows)
    table = all_distances(rows, rows).argsort(dim=1, stable=True)[:, :4]
    distance, around = MemoryBank(rows, search).around(queries, 4)
    torch.testing.assert_close(distance.double(), every.min(1).values, rtol=2e-6, atol=0)
    torch.testing.assert_close(around.double(), every.gather(1, table[every.argmin(1)]), rtol=2e-6, atol=0)


# --- approximate searches, in banks that are large enough ------------------------------------------------


@cache
def clustered(width: int = 8, rows: int = 12_000) -> tuple[torch.Tensor, torch.Tensor]:
    """(M, D) rows of 60 clusters, one after the other, and 300 queries; far from the origin."""
    centres = 5 * draw(60, width) + 20
    which = torch.randint(60, (300,), generator=torch.Generator().manual_seed(1))
    return centres.repeat_interleave(rows // 60, 0) + draw(rows, width, seed=2), centres[which] + draw(300, width, seed=3)


@cache
def approximate(search: str) -> MemoryBank:
    return MemoryBank(clustered()[0], search)


@pytest.mark.parametrize("search", APPROXIMATE)
def test_approximate_searches_find_nearly_all(search):
    rows, queries = clustered()
    every = all_distances(queries, rows)
    for k in (1, 5):
        found = approximate(search).nearest(queries, k)
        check(found, every, exact=False)
        assert float((found[0] <= every.sort(1).values[:, :k] * (1 + 2e-6)).float().mean()) >= 0.97


@settings(max_examples=25, deadline=None)
@given(search=st.sampled_from(APPROXIMATE), k=st.integers(1, 40), scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
       seed=st.integers(0, 99))  # fmt: skip
def test_an_approximate_distance_is_never_too_low(search, k, scale, seed):
    rows, _ = clustered()
    queries = rows[seed::1999] + scale * draw(*rows[seed::1999].shape, seed=seed)
    check(approximate(search).nearest(queries, k), all_distances(queries, rows), exact=False)


@pytest.mark.parametrize("search", ["faiss-ivf", "faiss-pq"])
def test_where_the_cells_hold_too_few_rows_the_answer_is_exact(search, second_looks):
    rows, queries = clustered()
    check(approximate(search).nearest(queries[:5], 6000), all_distances(queries[:5], rows), exact=True)
    assert second_looks == [5]


@pytest.mark.parametrize("search", APPROXIMATE)
def test_an_index_comes_out_bit_for_bit_the_same(search):
    rows, threads = clustered()[0], faiss.omp_get_max_threads()
    first = faiss.serialize_index(approximate(search)._index).tobytes()
    faiss.omp_set_num_threads(1 if threads > 1 else 3)
    try:
        assert faiss.serialize_index(MemoryBank(rows.clone(), search)._index).tobytes() == first
    finally:
        faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize("search", APPROXIMATE)
def test_neighbourhoods_come_from_the_index(search, monkeypatch):
    rows, queries = clustered()
    bank = approximate(search)
    monkeypatch.setattr(memory, "_ranks", None)
    monkeypatch.setattr(memory, "squared_distances", None)
    table = bank.neighbourhoods(3)[::50]
    assert bool((table == torch.arange(0, 12_000, 50)[:, None]).any(1).all())
    slow = all_distances(rows[::50], rows).argsort(1)[:, :3]
    assert float((table.sort(1).values == slow.sort(1).values).all(1).float().mean()) > 0.95
    assert bank.around(queries, 3)[1].shape == (300, 3)


@pytest.mark.parametrize("search", APPROXIMATE)
@pytest.mark.parametrize("kind", ["ordinary", "equal", "half"])
def test_the_smallest_approximate_bank_answers_and_faiss_has_no_complaint(search, kind, capfd):
    rows, queries = (t[:APPROXIMATE_FROM] for t in clustered(3))
    rows = {"ordinary": rows, "equal": torch.ones_like(rows), "half": rows.half()}[kind]
    check(MemoryBank(rows, search).nearest(queries, 2), all_distances(queries, rows), exact=False)
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize("search", APPROXIMATE)
def test_a_smaller_bank_is_searched_exactly(search):
    rows, queries = (t[: APPROXIMATE_FROM - 1] for t in clustered(3))
    bank = MemoryBank(rows, search)
    check(bank.nearest(queries), all_distances(queries, rows), exact=True)
    assert bank.index_bytes == rows.nbytes == MemoryBank(rows, "faiss").index_bytes


@pytest.mark.parametrize("search", SEARCHES[1:])
def test_the_bytes_of_an_index_are_about_those_of_its_file(search):
    bank = MemoryBank(clustered()[0], search) if search == "faiss" else approximate(search)
    order = 8 * 12_000 if search == "faiss-hnsw" else 0
    assert bank.index_bytes - order == pytest.approx(faiss.serialize_index(bank._index).nbytes, rel=0.02)


def test_the_torch_search_holds_a_copy_of_the_rows():
    assert MemoryBank(draw(640, 9)).index_bytes == 640 * (9 + 1) * 4


def test_codes_take_a_byte_for_four_numbers_at_an_awkward_width_too():
    rows, queries = (t[:APPROXIMATE_FROM] for t in clustered(13))
    bank = MemoryBank(rows, "faiss-pq")
    check(bank.nearest(queries), all_distances(queries, rows), exact=False)
    assert bank._index.code_size == 4
