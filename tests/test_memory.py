"""The memory: both backends against a loop in float64, in rooted L2, whole or in chunks."""

import math

import pytest
import torch

from rcp import memory
from rcp.memory import SEARCHES, MemoryBank, nearest_neighbours


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_nearest(queries: torch.Tensor, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One pair at a time, in Python's own floats."""
    found = [sorted((math.dist(q, r), i) for i, r in enumerate(rows.tolist()))[:k] for q in queries.tolist()]
    return torch.tensor([[d for d, _ in row] for row in found]), torch.tensor([[i for _, i in row] for row in found])


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_both_backends_equal_a_loop(search, k):
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


@pytest.mark.parametrize("search", SEARCHES)
def test_a_common_offset_and_far_queries_cost_no_accuracy(search):
    queries, rows = draw(20, 8, seed=1) + 100, draw(50, 8) + 100
    queries[0] += 1000
    found, slow = MemoryBank(rows, search).nearest(queries, 3), slow_nearest(queries, rows, 3)
    torch.testing.assert_close(found[0], slow[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("k", [1, 5])
def test_chunks_change_nothing(search, k, monkeypatch):
    queries, rows = draw(53, 6, seed=1), draw(31, 6)
    whole = MemoryBank(rows, search).nearest(queries, k)
    for block in (1, 100, 700):  # one query, a few, not a divisor of 53
        monkeypatch.setattr(memory, "BLOCK", block)
        parts = MemoryBank(rows, search).nearest(queries, k)
        torch.testing.assert_close(parts[0], whole[0], atol=1e-6, rtol=1e-6)
        assert torch.equal(parts[1], whole[1])


def test_no_chunk_holds_more_distances_than_the_bound(monkeypatch):
    seen = []
    real = memory.squared_distances
    monkeypatch.setattr(memory, "squared_distances", lambda a, b: seen.append((len(a), len(b))) or real(a, b))
    monkeypatch.setattr(memory, "BLOCK", 1000)
    MemoryBank(draw(31, 6)).nearest(draw(53, 6))
    MemoryBank(draw(31, 6)).nearest(draw(53, 6), 20)  # (Q, k, D) must fit, too
    assert sum(q for q, _ in seen) == 2 * 53 and len(seen) > 2
    assert all(q * m <= 1000 for q, m in seen) and min(q for q, _ in seen[2:]) <= 1000 // (20 * 6)


@pytest.mark.parametrize("search", SEARCHES)
def test_more_neighbours_come_sorted_and_begin_with_the_nearest(search):
    bank, queries = MemoryBank(draw(60, 5), search), draw(40, 5, seed=1)
    distances, places = bank.nearest(queries, 9)
    assert bool((distances.diff(dim=1) >= 0).all())
    assert all(len(set(row)) == 9 for row in places.tolist())
    first = bank.nearest(queries)
    assert torch.equal(first[0], distances[:, :1]) and torch.equal(first[1], places[:, :1])


@pytest.mark.parametrize("search", SEARCHES)
def test_near_ties_are_sorted_by_their_exact_distances(search):
    base = draw(1, 16) * 10
    rows = (base.double() + 1e-5 * draw(12, 16, seed=1).double()).float()  # a product form cannot tell them apart
    queries = torch.cat([base, -base])  # their mean, from which the products are taken, lies far from the rows
    distances, places = (t[:1] for t in MemoryBank(rows, search).nearest(queries, 12))
    exact = (rows.double() - base.double()).norm(dim=1)
    assert bool((distances.diff(dim=1) >= 0).all()) and sorted(places[0].tolist()) == list(range(12))
    torch.testing.assert_close(distances[0].double(), exact[places[0]], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_a_row_of_a_tight_cluster_finds_itself(search):
    centres = 10 * draw(20, 64)
    rows = (centres[:, None] + 1e-3 * draw(20, 50, 64, seed=1)).flatten(0, 1)
    distances, places = MemoryBank(rows, search).nearest(rows[::7])
    assert float(distances.max()) == 0.0 and places[:, 0].tolist() == list(range(0, 1000, 7))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_row_is_at_distance_zero_from_itself(search):
    rows = draw(80, 12) * 5
    distances, places = MemoryBank(rows, search).nearest(rows)
    assert bool((distances == 0).all()) and places[:, 0].tolist() == list(range(80))


@pytest.mark.parametrize("search", SEARCHES)
def test_equal_rows_are_all_found(search):
    distances, places = MemoryBank(torch.ones(5, 3), search).nearest(torch.ones(1, 3), 5)
    assert distances.tolist() == [[0.0] * 5] and sorted(places[0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("search", SEARCHES)
def test_half_and_double_precision_queries_are_taken(search):
    queries, rows = draw(6, 5, seed=1), draw(9, 5)
    expected = slow_nearest(queries.half().float(), rows, 2)[0]
    found = MemoryBank(rows.double(), search).nearest(queries.half(), 2)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("search", SEARCHES)
def test_one_row_is_a_memory(search):
    bank = MemoryBank(torch.tensor([[1.0, 2.0]]), search)
    assert len(bank) == 1 and bank.nearest(torch.tensor([[4.0, 6.0]]))[0].item() == 5.0


@pytest.mark.parametrize("k", [0, -1, 8])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"between 1 and the 7 rows.*got {k}"):
        MemoryBank(draw(7, 3)).nearest(draw(2, 3), k)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (1, 2, 3)])
def test_queries_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"queries must be \(Q, 3\)"):
        MemoryBank(draw(7, 3)).nearest(draw(*shape))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)])
def test_rows_that_are_no_table_are_refused(shape):
    with pytest.raises(ValueError, match=r"a memory bank needs \(M, D\) rows"):
        MemoryBank(draw(*shape))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="search must be one of torch, faiss, got 'annoy'"):
        MemoryBank(draw(3, 3), "annoy")


@pytest.mark.parametrize("search", SEARCHES)
def test_a_neighbourhood_begins_with_the_row_itself_and_equals_a_loop(search):
    rows = draw(25, 4)
    table = MemoryBank(rows, search).neighbourhoods(6)
    assert table[:, 0].tolist() == list(range(25))
    assert torch.equal(table, slow_nearest(rows, rows, 6)[1])


def test_neighbourhoods_of_any_width_agree_in_any_order_of_asking():
    bank = MemoryBank(draw(25, 4))
    few, many, fewer = bank.neighbourhoods(3), bank.neighbourhoods(8), bank.neighbourhoods(2)
    assert few.shape == (25, 3) and many.shape == (25, 8) and fewer.shape == (25, 2)
    assert torch.equal(few, many[:, :3]) and torch.equal(fewer, many[:, :2])


def test_a_row_with_many_twins_is_in_its_own_neighbourhood():
    table = MemoryBank(torch.ones(20, 4)).neighbourhoods(3)
    assert bool((table == torch.arange(20)[:, None]).any(1).all())
