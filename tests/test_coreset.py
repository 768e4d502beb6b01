"""The coreset: the picks and radii of the plain greedy loop, whatever the blocks in which the fast one works."""

from __future__ import annotations

from itertools import combinations
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcp.coreset
import rcp.partitioned
from rcp.coreset import coreset_size, covering_radius, greedy_coreset, projected, projection_matrix, random_projection
from rcp.partitioned import partitioned_coreset


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def clusters(n: int, d: int, seed: int = 0):
    """Tight groups far apart, of very different sizes."""
    centres = gaussian(5, d, seed=seed) * 20
    which = (torch.rand(n, generator=seeded(seed + 1)) ** 3 * 5).long()
    return centres[which] + gaussian(n, d, seed=seed + 2) * 0.1


def lattice(n: int, d: int, top: int, seed: int = 0):
    """Whole numbers: distances are exact, ties and copies are many."""
    return torch.randint(top + 1, (n, d), generator=seeded(seed)).double()


def slow_coreset(rows, size: int, start: int) -> tuple[list[int], list[float]]:
    """The plain loop: after every pick a pass over all rows; the first of the farthest comes next."""
    x = np.asarray(rows, dtype=np.float64)
    nearest = np.full(len(x), np.inf)
    picks, radii = [start], []
    while True:
        nearest = np.minimum(nearest, ((x - x[picks[-1]]) ** 2).sum(1))
        free = np.where(np.isin(np.arange(len(x)), picks), -1.0, nearest)
        radii.append(float(np.sqrt(max(free.max(), 0.0))))
        if len(picks) == size:
            return picks, radii
        picks.append(int(free.argmax()))


def assert_as_slow(rows, size: int, start: int = 0, close: float = 1e-7):
    fast = greedy_coreset(rows, size=size, projection=None, start=start)
    picks, radii = slow_coreset(rows, size, start)
    assert fast.indices.tolist() == picks
    np.testing.assert_allclose(fast.radii.numpy(), radii, rtol=1e-9, atol=close)


def blocks(block: int, candidates: int, centres: int):
    return mock.patch.multiple(rcp.coreset, BLOCK=block, CANDIDATES=candidates, CENTRES=centres)


SMALL_BLOCKS = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5))


@st.composite
def selections(draw, kind: str):
    n, d, seed = draw(st.integers(1, 40)), draw(st.integers(2, 5)), draw(st.integers(0, 10**6))
    if kind == "lattice":
        rows = lattice(n, d, draw(st.integers(0, 3)), seed)
    else:
        rows = {"random": gaussian, "clustered": clusters}[kind](n, d, seed=seed)
    return rows, draw(st.integers(1, n)), draw(st.integers(0, n - 1))


# --- the picks of the plain loop ------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(selections("random"))
def test_random_rows_give_the_picks_of_the_plain_loop(selection):
    assert_as_slow(*selection)


@settings(deadline=None, max_examples=60)
@given(selections("clustered"))
def test_clustered_rows_give_the_picks_of_the_plain_loop(selection):
    assert_as_slow(*selection)


@settings(deadline=None, max_examples=70)
@given(selections("lattice"))
def test_exact_ties_and_copies_go_to_the_lowest_index_as_in_the_plain_loop(selection):
    assert_as_slow(*selection, close=0)


@settings(deadline=None, max_examples=50)
@given(selections("random"), SMALL_BLOCKS)
def test_small_blocks_give_the_picks_of_the_plain_loop_on_random_rows(selection, sizes):
    with blocks(*sizes):
        assert_as_slow(*selection)


@settings(deadline=None, max_examples=40)
@given(selections("clustered"), SMALL_BLOCKS)
def test_small_blocks_give_the_picks_of_the_plain_loop_on_clustered_rows(selection, sizes):
    with blocks(*sizes):
        assert_as_slow(*selection)


@settings(deadline=None, max_examples=120)
@given(selections("lattice"), SMALL_BLOCKS)
def test_small_blocks_give_the_picks_of_the_plain_loop_among_exact_ties(selection, sizes):
    with blocks(*sizes):
        assert_as_slow(*selection, close=0)


@pytest.mark.parametrize("sizes", [(3, 2, 1), (7, 3, 2), (64, 16, 8), (300, 40, 30), (4096, 1024, 512)])
@pytest.mark.parametrize("rows", [gaussian(300, 8), clusters(300, 8), lattice(300, 3, 4), lattice(300, 8, 1)])
def test_a_middling_set_gives_the_picks_of_the_plain_loop_whatever_the_blocks(rows, sizes):
    with blocks(*sizes):
        assert_as_slow(rows, size=70, start=17)


def test_a_set_larger_than_the_real_blocks_gives_the_picks_of_the_plain_loop():
    assert_as_slow(gaussian(6000, 4), size=300, start=5)
    assert_as_slow(lattice(6000, 4, 9), size=300, start=5, close=0)


@pytest.mark.parametrize("rows", [gaussian(400, 8), lattice(400, 8, 1)])
def test_the_candidates_compared_among_themselves_are_never_more_than_said(monkeypatch, rows):
    counts, pick_among = [], rcp.coreset._Greedy._pick_among

    def spying(self, candidates, *rest):
        counts.append(len(candidates))
        pick_among(self, candidates, *rest)

    monkeypatch.setattr(rcp.coreset._Greedy, "_pick_among", spying)
    with blocks(100, 20, 10):
        assert_as_slow(rows, size=120, start=0)
    assert 0 < max(counts) <= 20


def distances_computed(monkeypatch, rows, size: int) -> float:
    """How many distances from rows to centres a selection computes, as a share of the plain loop's."""
    counts, nearest = [], rcp.coreset._nearest_squared

    def counting(block, norms, centres, centre_norms):
        counts.append(len(block) * len(centres))
        return nearest(block, norms, centres, centre_norms)

    monkeypatch.setattr(rcp.coreset, "_nearest_squared", counting)
    with blocks(32, 16, 8):
        greedy_coreset(rows, size=size, start=0)
    monkeypatch.undo()
    return sum(counts) / (len(rows) * size)


def test_most_distances_of_the_plain_loop_are_never_computed(monkeypatch):
    """Here 0.39 and 0.43 of them; if rows that fall below the ceiling saw all they missed, it would be 0.55 for both."""
    assert distances_computed(monkeypatch, gaussian(4000, 8), 200) < 0.47
    assert distances_computed(monkeypatch, clusters(4000, 3), 200) < 0.47


@pytest.mark.parametrize("rows", [torch.eye(300, dtype=torch.float64), lattice(300, 8, 1)])
def test_many_ties_are_settled_in_a_few_rounds(monkeypatch, rows):
    rounds, play = [], rcp.coreset._Greedy._round
    monkeypatch.setattr(rcp.coreset._Greedy, "_round", lambda self: (rounds.append(1), play(self)))
    assert_as_slow(rows, size=250, start=0, close=0)
    assert len(rounds) < 10


@pytest.mark.parametrize("among", [None, torch.arange(3000) % 5 > 0])
def test_rows_are_read_in_blocks_and_never_copied_as_a_whole(monkeypatch, among):
    counts, read = [], rcp.coreset._Greedy._from_origin

    def counting(self, rows):
        counts.append(len(rows))
        return read(self, rows)

    monkeypatch.setattr(rcp.coreset._Greedy, "_from_origin", counting)
    with blocks(64, 32, 16):
        coreset = greedy_coreset(gaussian(3000, 3), size=40, start=1, among=among)
    assert len(coreset.indices) == 40 and max(counts) <= 64


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4096, 1024, 512)])
def test_every_row_can_be_picked_and_none_twice(sizes):
    for rows in (gaussian(50, 3), lattice(50, 2, 2), torch.ones(50, 3)):
        with blocks(*sizes):
            coreset = greedy_coreset(rows, size=50, start=3, projection=None)
        assert sorted(coreset.indices.tolist()) == list(range(50))
        assert coreset.radii[-1] == 0


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4096, 1024, 512)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3])
def test_rows_that_are_all_equal_are_picked_in_order(sizes, value):
    with blocks(*sizes):
        coreset = greedy_coreset(torch.full((20, 4), value), size=6, start=2, projection=None)
    assert coreset.indices.tolist() == [2, 0, 1, 3, 4, 5]
    assert (coreset.radii == 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_copies_of_arbitrary_rows_give_the_same_points_as_the_plain_loop(seed):
    """Which of two copies is picked is left to rounding (their products differ in the last bit); the point is not."""
    rows = gaussian(40, 5, seed=seed)[torch.randint(40, (120,), generator=seeded(seed))]
    for sizes in ((7, 3, 2), (4096, 1024, 512)):
        with blocks(*sizes):
            fast = greedy_coreset(rows, size=20, start=0, projection=None)
        picks, radii = slow_coreset(rows, 20, 0)
        assert torch.equal(rows[fast.indices], rows[picks])
        np.testing.assert_allclose(fast.radii.numpy(), radii, rtol=1e-7)


def test_one_row_is_its_own_coreset():
    coreset = greedy_coreset(gaussian(1, 3), start=0)
    assert coreset.indices.tolist() == [0] and coreset.radii.tolist() == [0]


# --- some of the rows -----------------------------------------------------------------------------


@st.composite
def partial_selections(draw):
    """Rows, a mask, a size, a start within the mask, and sizes of blocks."""
    rows, _, start = draw(selections(draw(st.sampled_from(["random", "clustered", "lattice"]))))
    among = torch.tensor(draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    among[start] = True
    return rows, among, draw(st.integers(1, int(among.sum()))), start, draw(SMALL_BLOCKS)


@settings(deadline=None, max_examples=100)
@given(partial_selections())
def test_rows_among_give_the_picks_of_a_copy_of_these_rows(selection):
    rows, among, size, start, sizes = selection
    own = torch.nonzero(among).flatten()
    picks, radii = slow_coreset(rows[among], size, int((own == start).nonzero()))
    for way in (mock.MagicMock(), blocks(*sizes)):
        with way:
            some = greedy_coreset(rows, size=size, projection=None, start=start, among=among)
        assert some.indices.tolist() == own[picks].tolist()
        np.testing.assert_allclose(some.radii.numpy(), radii, rtol=1e-9, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(partial_selections(), st.floats(0.01, 1), st.integers(0, 10**6), st.sampled_from([None, 1, 2]))
def test_ratio_start_and_projection_are_those_of_a_copy_of_these_rows(selection, ratio, seed, projection):
    rows, among, *_ = selection
    some = greedy_coreset(rows, ratio, generator=seeded(seed), projection=projection, among=among.numpy())
    copy = greedy_coreset(rows[among], ratio, generator=seeded(seed), projection=projection)
    assert some.dimension == copy.dimension and torch.equal(some.indices[0], torch.nonzero(among)[copy.indices[0], 0])
    assert len(some.indices) == len(copy.indices)
    torch.testing.assert_close(some.radii, copy.radii, rtol=1e-7, atol=1e-6)


def test_rows_not_among_are_neither_picked_nor_covered_however_far_they_lie():
    rows = torch.tensor([[0.0], [1e6], [1.0], [4.0], [-1e6], [10.0]])
    coreset = greedy_coreset(rows, size=3, start=2, among=torch.tensor([True, False, True, True, False, True]))
    assert coreset.indices.tolist() == [2, 5, 3]
    assert coreset.radii.tolist() == [9, 3, 1]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4096, 1024, 512)])
def test_all_rows_among_can_be_picked_and_no_other(sizes):
    among = torch.arange(50) % 3 > 0
    for rows in (gaussian(50, 3), torch.ones(50, 3)):
        with blocks(*sizes):
            coreset = greedy_coreset(rows, 1.0, start=4, among=among, projection=None)
        assert sorted(coreset.indices.tolist()) == torch.nonzero(among).flatten().tolist()
        assert coreset.radii[-1] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"among": torch.ones(19).bool()}, "among"),
        ({"among": torch.arange(20)}, "among"),
        ({"among": torch.zeros(20).bool()}, "among"),
        ({"among": torch.arange(20) < 9, "size": 10}, "number of rows .9."),
        ({"among": torch.arange(20) < 9, "start": 9}, "start"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        greedy_coreset(gaussian(20, 4), **({"size": 2, "start": 0} | options))


def test_a_row_that_is_not_finite_is_refused_although_it_takes_no_part():
    rows = gaussian(20, 4)
    rows[11, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        greedy_coreset(rows, size=3, start=0, among=torch.arange(20) != 11)


# --- what the result says -------------------------------------------------------------------------


def test_the_start_is_included_and_first():
    for start in (0, 13, 29):
        assert greedy_coreset(gaussian(30, 4), size=5, start=start, projection=None).indices[0] == start


def test_four_points_on_a_line_by_hand():
    rows = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    coreset = greedy_coreset(rows, size=4, start=0)
    assert coreset.indices.tolist() == [0, 3, 2, 1]
    assert coreset.radii.tolist() == [10, 4, 1, 0]  # rooted


def test_indices_are_distinct_int64_and_radii_float64_and_never_grow():
    coreset = greedy_coreset(gaussian(200, 6, dtype=torch.float32), size=60, start=0, projection=None)
    assert coreset.indices.dtype == torch.int64 and coreset.radii.dtype == torch.float64
    assert len(set(coreset.indices.tolist())) == len(coreset.radii) == 60
    assert (coreset.radii.diff() <= 1e-12).all()


def test_each_radius_covers_all_rows():
    rows = gaussian(100, 4)
    coreset = greedy_coreset(rows, size=12, start=0, projection=None)
    for j in range(12):
        covered = torch.cdist(rows, rows[coreset.indices[: j + 1]]).amin(1).max()
        assert float(covered) == pytest.approx(float(coreset.radii[j]), abs=1e-7)


def test_a_longer_coreset_begins_with_the_shorter_one():
    rows = gaussian(100, 4)
    short, long = (greedy_coreset(rows, size=m, start=0, projection=None) for m in (7, 30))
    assert torch.equal(long.indices[:7], short.indices)
    torch.testing.assert_close(long.radii[:7], short.radii)


@pytest.mark.parametrize(
    ("n", "ratio", "size"),
    [(1000, 0.01, 10), (1099, 0.01, 10), (99, 0.01, 1), (1, 0.01, 1), (7, 1.0, 7), (7, 0.5, 3), (5, 1e-9, 1)],
)
def test_the_ratio_is_rounded_down_to_at_least_one_row(n, ratio, size):
    assert coreset_size(n, ratio) == size
    coreset = greedy_coreset(gaussian(n, 2), ratio, start=0)
    assert len(coreset.indices) == len(coreset.radii) == size


def test_one_percent_is_kept_unless_said_and_a_size_goes_before_the_ratio():
    rows = gaussian(300, 2)
    assert len(greedy_coreset(rows, start=0).indices) == 3
    assert len(greedy_coreset(rows, 0.5, 4, start=0).indices) == 4


def test_numpy_rows_give_the_same_as_torch_rows():
    rows = gaussian(60, 4)
    a, b = (greedy_coreset(r, size=9, start=1, projection=None) for r in (rows, rows.numpy()))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.radii, b.radii)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_measured_in_float32(dtype):
    rows = gaussian(80, 6).to(dtype)
    half, single = (greedy_coreset(r, size=20, start=1, projection=None) for r in (rows, rows.float()))
    assert torch.equal(half.indices, single.indices) and torch.equal(half.radii, single.radii)
    # 300² does not fit into float16
    assert greedy_coreset(rows * 300, size=3, start=0, projection=None).radii.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_in_a_memory_mapped_file_give_the_same_as_in_memory(tmp_path, dtype):
    rows = gaussian(300, 6).to(dtype)
    rows.view(torch.uint8).numpy().tofile(tmp_path / "rows")
    mapped = torch.from_file(str(tmp_path / "rows"), size=rows.numel(), dtype=dtype).view(300, 6)
    for pick in (
        lambda r: greedy_coreset(r, size=20, start=1, projection=None),
        lambda r: greedy_coreset(r, size=20, start=1, projection=3, generator=seeded()),
        lambda r: partitioned_coreset(r, size=20, parts=4, projection=3, generator=seeded()),
        lambda r: partitioned_coreset(r, size=20, parts=4, projection=None, generator=seeded()),
    ):
        a, b = pick(mapped), pick(rows.float())
        assert torch.equal(a.indices, b.indices) and torch.equal(a.radii, b.radii)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_rows_are_not_changed(dtype):
    rows = gaussian(50, 6).to(dtype)
    before = rows.clone()
    greedy_coreset(rows, size=10, start=0, projection=None)
    greedy_coreset(rows, size=10, generator=seeded(), projection=3)
    assert torch.equal(rows, before)


def test_rows_far_from_the_origin_keep_their_picks():
    rows = lattice(200, 3, 9) + 2.0**20  # as exact as near the origin
    assert greedy_coreset(rows.float(), size=40, start=0).indices.tolist() == slow_coreset(rows, 40, 0)[0]


# --- the covering radius of given centres ---------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(selections("lattice"), st.integers(1, 50), st.integers(1, 5))
def test_the_covering_radius_is_the_largest_of_all_nearest_distances(selection, chunk, centres):
    rows, m, start = selection
    chosen = rows.roll(start, 0)[:m]
    with mock.patch.object(rcp.coreset, "CENTRES", centres):
        radius = covering_radius(rows, chosen, chunk=chunk)
    assert radius == pytest.approx(float(torch.cdist(rows, chosen).amin(1).max()), abs=1e-12)


def test_the_covering_radius_of_a_coreset_is_its_last():
    rows = gaussian(9000, 5)
    coreset = greedy_coreset(rows, size=700, start=3)
    assert covering_radius(rows, rows[coreset.indices]) == pytest.approx(float(coreset.radii[-1]), rel=1e-9)


def test_the_covering_radius_in_a_projection():
    rows, matrix = gaussian(90, 12), projection_matrix(12, 4, seeded(), torch.float64)
    points = rows @ matrix
    radius = covering_radius(rows, points[:9], matrix=matrix, chunk=20)
    assert radius == pytest.approx(float(torch.cdist(points, points[:9]).amin(1).max()), rel=1e-9)


def test_rows_that_are_centres_are_covered_at_distance_0_far_from_the_origin_too():
    rows = gaussian(500, 30, dtype=torch.float32) * 1e3 + 1e5
    assert covering_radius(rows, rows[torch.randperm(500, generator=seeded())]) == 0


def test_a_covering_radius_of_half_precision_rows_is_measured_in_float32():
    rows = (gaussian(60, 3) * 300).half()  # whose squares do not fit into float16
    radius = covering_radius(rows, rows[:5])
    assert radius == pytest.approx(float(torch.cdist(rows.float(), rows[:5].float()).amin(1).max()), rel=1e-5)
    assert covering_radius(rows.numpy(), rows[:5].numpy()) == radius


def test_most_distances_to_the_centres_are_never_computed(monkeypatch):
    rows, met, nearest = gaussian(4000, 3), [], rcp.coreset._nearest_squared
    monkeypatch.setattr(rcp.coreset, "_nearest_squared", lambda x, *rest: (met.append(len(x) * 8), nearest(x, *rest))[1])
    monkeypatch.setattr(rcp.coreset, "CENTRES", 8)
    covering_radius(rows, rows[:400], chunk=64)
    assert sum(met) < 0.25 * 4000 * 400


def test_centres_of_another_width_or_rows_that_are_not_finite_are_refused():
    rows = gaussian(9, 3)
    with pytest.raises(ValueError, match="wide"):
        covering_radius(rows, gaussian(2, 4))
    with pytest.raises(ValueError, match="wide"):
        covering_radius(rows, rows[:2], matrix=gaussian(3, 2))
    with pytest.raises(ValueError, match="rows must be"):
        covering_radius(rows, rows[:0])
    for bad in (0, 8):
        broken = rows.clone()
        broken[bad, 1] = float("nan")
        for arguments in ((broken, rows[:2]), (rows[:2], broken)):
            with pytest.raises(ValueError, match="not finite"):
                covering_radius(*arguments, chunk=4)


# --- parts ----------------------------------------------------------------------------------------


@st.composite
def partitions(draw):
    rows, size, _ = draw(selections(draw(st.sampled_from(["random", "clustered", "lattice"]))))
    return rows, size, draw(st.integers(1, len(rows))), draw(st.floats(1, 5)), draw(st.integers(0, 10**6))


@settings(deadline=None, max_examples=40)
@given(partitions())
def test_parts_give_distinct_rows_and_the_radius_that_covers_all_rows(partition):
    rows, size, parts, oversampling, seed = partition
    coreset = partitioned_coreset(rows, size=size, parts=parts, generator=seeded(seed), oversampling=oversampling)
    assert coreset.indices.dtype == torch.int64 and coreset.radii.dtype == torch.float64
    assert len(coreset.indices.unique()) == len(coreset.indices) == len(coreset.radii) == size
    exact = "donot_use_mm_for_euclid_dist"  # products round: a copy would lie 5e-7 away
    covering = [float(torch.cdist(rows, rows[coreset.indices[: j + 1]], compute_mode=exact).amin(1).max()) for j in range(0, size, 5)]
    assert all(float(coreset.radii[5 * j]) <= covering[j] + 1e-6 for j in range(len(covering)))
    last = float(torch.cdist(rows, rows[coreset.indices], compute_mode=exact).amin(1).max())
    assert float(coreset.radii[-1]) == pytest.approx(last, abs=1e-7)


@settings(deadline=None, max_examples=30)
@given(partitions(), st.booleans())
def test_one_part_and_parts_of_one_row_give_the_picks_of_the_exact_selection(partition, one):
    rows, size, _, oversampling, seed = partition
    parts = 1 if one else len(rows)
    ours = partitioned_coreset(rows, size=size, parts=parts, generator=seeded(seed), oversampling=oversampling)
    exact = greedy_coreset(rows, size=size, start=int(ours.indices[0]), projection=None)
    drawn = int(torch.randint(len(rows), (1,), generator=seeded(seed))) if one else 0
    assert ours.indices[0] == drawn
    torch.testing.assert_close(ours.radii, exact.radii, rtol=1e-7, atol=1e-6)
    assert torch.equal(ours.indices, exact.indices)


def optimum(rows, size: int) -> float:
    apart = torch.cdist(rows, rows)
    return min(float(apart[:, list(chosen)].amin(1).max()) for chosen in combinations(range(len(rows)), size))


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 9), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_parts_that_offer_as_many_rows_as_are_kept_stay_within_four_times_the_optimum(n, size, parts, tight, seed):
    rows = (clusters if tight else gaussian)(n, 2, seed=seed)
    full = partitioned_coreset(rows, size=size, parts=parts, generator=seeded(seed), oversampling=parts)
    assert float(full.radii[-1]) <= 4 * optimum(rows, size) + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 9), st.integers(2, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_half_the_last_radius_but_one_is_below_the_optimum_of_one_row_less(n, size, parts, seed):
    rows = gaussian(n, 2, seed=seed)
    some = partitioned_coreset(rows, size=size, parts=parts, generator=seeded(seed))
    assert float(some.radii[-2]) / 2 <= optimum(rows, size - 1) + 1e-9


@pytest.mark.parametrize(("n", "parts"), [(1000, 4), (1001, 7)])
def test_parts_are_contiguous_and_offer_twice_their_share(monkeypatch, n, parts):
    seen = []

    def spying(rows, **options):
        seen.append((rows, options["size"]))
        return greedy_coreset(rows, **options)

    monkeypatch.setattr(rcp.partitioned, "greedy_coreset", spying)
    rows = gaussian(n, 3)
    partitioned_coreset(rows, 0.1, parts=parts, generator=seeded())
    *each, (_, size) = seen
    assert torch.equal(torch.cat([part for part, _ in each]), rows) and len(each) == parts and size == 100
    assert all(offer == -(-200 * len(part) // n) and abs(len(part) - n / parts) < 1 for part, offer in each)


def test_parts_are_picked_in_one_projection_of_128_dimensions():
    rows = gaussian(400, 140)
    ours = partitioned_coreset(rows, size=30, parts=3, generator=seeded(4))
    points = rows @ projection_matrix(140, 128, seeded(4), torch.float64)
    assert ours.dimension == 128
    assert float(ours.radii[-1]) == pytest.approx(covering_radius(points, points[ours.indices]), rel=1e-9)
    assert partitioned_coreset(rows, size=30, parts=3, generator=seeded(4), projection=None).dimension == 140


def test_parts_cover_nearly_as_well_as_the_exact_selection_whatever_lies_in_them():
    for rows in (gaussian(4000, 3), clusters(4000, 3), clusters(4000, 3)[clusters(4000, 3)[:, 0].argsort()]):
        exact = float(greedy_coreset(rows, size=80, start=0).radii[-1])
        radius = float(partitioned_coreset(rows, size=80, parts=8, generator=seeded()).radii[-1])
        assert radius < 1.4 * exact


def test_the_same_seed_gives_the_same_parts_and_another_seed_another():
    rows = gaussian(300, 40)
    a, b, c = (partitioned_coreset(rows, size=20, parts=3, generator=seeded(s), projection=5) for s in (1, 1, 2))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.radii, b.radii)
    assert not torch.equal(a.indices, c.indices)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"parts": 0}, "parts"), ({"parts": 21}, "parts"), ({"oversampling": 0.9}, "oversampling"), ({"size": 21}, "size"),
     ({"oversampling": float("nan")}, "oversampling"), ({"size": None, "ratio": 0.0}, "ratio")],
)  # fmt: skip
def test_parts_sizes_and_oversampling_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        partitioned_coreset(gaussian(20, 4), **({"size": 2, "parts": 2, "generator": seeded()} | options))


def test_a_row_that_is_not_finite_is_refused_in_any_part():
    rows = gaussian(20, 4)
    rows[17, 2] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        partitioned_coreset(rows, size=3, parts=4, generator=seeded())


# --- randomness -----------------------------------------------------------------------------------


def test_the_start_is_drawn_from_the_generator():
    rows = gaussian(1000, 3)
    starts = [int(greedy_coreset(rows, size=1, generator=seeded(s)).indices[0]) for s in range(8)]
    again = [int(greedy_coreset(rows, size=1, generator=seeded(s)).indices[0]) for s in range(8)]
    assert starts == again and len(set(starts)) > 4


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    greedy_coreset(gaussian(50, 9), size=5, generator=seeded(), projection=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_generator_seed_gives_the_same_coreset_and_another_seed_another():
    rows = gaussian(300, 40)
    a, b, c = (greedy_coreset(rows, size=20, generator=seeded(s), projection=5) for s in (1, 1, 2))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.radii, b.radii)
    assert not torch.equal(a.indices, c.indices)


def test_the_picking_is_done_in_the_projection():
    rows = gaussian(120, 30)
    coreset = greedy_coreset(rows, size=15, generator=seeded(4), projection=6, start=2)
    points = rows @ projection_matrix(30, 6, seeded(4), torch.float64)
    picks, radii = slow_coreset(points, 15, 2)
    assert coreset.dimension == 6
    assert coreset.indices.tolist() == picks
    np.testing.assert_allclose(coreset.radii.numpy(), radii, atol=1e-7)


@pytest.mark.parametrize("projection", [None, 8, 9])
def test_rows_that_are_narrow_enough_are_picked_in_their_own_space(projection):
    rows = gaussian(60, 8)
    coreset = greedy_coreset(rows, size=9, start=0, projection=projection)  # no generator needed
    assert coreset.dimension == 8
    assert coreset.indices.tolist() == slow_coreset(rows, 9, 0)[0]


def test_the_projection_has_128_dimensions_unless_said():
    assert greedy_coreset(gaussian(20, 129), size=2, generator=seeded(), start=0).dimension == 128
    assert greedy_coreset(gaussian(20, 128), size=2, start=0).dimension == 128
    assert greedy_coreset(gaussian(20, 129), size=2, start=0, projection=None).dimension == 129


@pytest.mark.parametrize("chunk", [1, 7, 50, 65536])
def test_a_random_projection_is_one_product_whatever_the_chunks(chunk):
    rows = gaussian(50, 12)
    out = random_projection(rows, 5, seeded(3), chunk)
    assert out.shape == (50, 5)
    torch.testing.assert_close(out, rows @ projection_matrix(12, 5, seeded(3), torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_rows_are_multiplied_with_a_given_matrix_in_its_own_precision(dtype):
    rows, matrix = gaussian(20, 6).to(dtype), projection_matrix(6, 3, seeded())
    out = projected(rows, matrix, chunk=7)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, rows.float() @ matrix)


def test_a_random_projection_keeps_squared_distances_on_average():
    rows = gaussian(40, 300)
    before = torch.cdist(rows, rows).square()
    drawn = [random_projection(rows, 64, seeded(seed)) for seed in range(30)]
    ratios = [float(torch.cdist(p, p).square().sum() / before.sum()) for p in drawn]
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.03)
    off = ~torch.eye(40, dtype=torch.bool)
    spread = (torch.cdist(drawn[0], drawn[0]).square() / before)[off]
    assert 0.4 < spread.min() and spread.max() < 1.9  # single distances: ± sqrt(2/64) each


def test_a_random_projection_is_float32_and_float64_only_for_float64():
    assert random_projection(gaussian(4, 6).half(), 2, seeded()).dtype == torch.float32
    assert random_projection(gaussian(4, 6).float(), 2, seeded()).dtype == torch.float32
    assert random_projection(gaussian(4, 6), 2, seeded()).dtype == torch.float64


# --- refusals -------------------------------------------------------------------------------------


def test_a_missing_generator_is_refused_when_something_is_random():
    for options in ({"projection": None}, {"projection": 2, "start": 0}, {}):
        with pytest.raises(ValueError, match="generator"):
            greedy_coreset(gaussian(20, 4), size=2, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("projection", [None, 2])
def test_rows_that_are_not_finite_are_refused(value, projection):
    rows = gaussian(20, 4)
    rows[11, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        greedy_coreset(rows, size=3, start=0, projection=projection, generator=seeded())


def test_infinities_of_both_signs_are_refused():
    rows = gaussian(20, 4)
    rows[3, 2], rows[4, 2] = float("inf"), -float("inf")
    with pytest.raises(ValueError, match="not finite"):
        greedy_coreset(rows, size=3, start=0, projection=None)


def test_rows_whose_squares_overflow_are_refused():
    with pytest.raises(ValueError, match="finite|large"):
        greedy_coreset(gaussian(20, 4, dtype=torch.float32) * 1e20, size=5, start=0)


@pytest.mark.parametrize("size", [-1, 0, 21])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="size"):
        greedy_coreset(gaussian(20, 4), size=size, start=0)


@pytest.mark.parametrize("ratio", [-0.1, 0.0, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    for refuse in (lambda: greedy_coreset(gaussian(20, 4), ratio, start=0), lambda: coreset_size(20, ratio)):
        with pytest.raises(ValueError, match="ratio"):
            refuse()


@pytest.mark.parametrize("start", [-1, 20])
def test_a_start_out_of_range_is_refused(start):
    with pytest.raises(ValueError, match="start"):
        greedy_coreset(gaussian(20, 4), size=2, start=start)


@pytest.mark.parametrize("rows", [torch.zeros(5), torch.zeros(0, 4), torch.zeros(2, 3, 4), torch.zeros(5, 2).long()])
def test_rows_of_another_shape_or_kind_are_refused(rows):
    with pytest.raises(ValueError, match="rows must be"):
        greedy_coreset(rows, size=1, start=0)
