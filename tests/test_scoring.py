"""Scoring: Eq. 10 against a plain loop, maps against torch and scipy, thresholds against their definition."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rcp.memory import SEARCHES, MemoryBank
from rcp.scoring import REWEIGHTS, image_scores, modified_z_score, pixel_maps, score_images, threshold


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def features() -> torch.Tensor:
    return draw(4, 3, 5, 6, seed=1)  # four images of 3x5 patches


@pytest.fixture
def rows() -> torch.Tensor:
    return draw(30, 6)


def slow_patch_score(p: list[float], rows: list[list[float]], b: int) -> tuple[float, float]:
    """Eqs 9 and 10 for one patch, with plain exp: (distance, weight)."""
    nearest = min(range(len(rows)), key=lambda i: math.dist(p, rows[i]))
    around = sorted(range(len(rows)), key=lambda i: math.dist(rows[nearest], rows[i]))[:b]
    distance = math.dist(p, rows[nearest])
    return distance, 1 - math.exp(distance) / sum(math.exp(math.dist(p, rows[i])) for i in around)


def slow_scores(features: torch.Tensor, rows: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, H, W) distances and weights."""
    pairs = [slow_patch_score(p, rows.tolist(), b) for p in features.flatten(0, 2).tolist()]
    return tuple(torch.tensor(column).view(features.shape[:3]) for column in zip(*pairs, strict=True))


# --- Eqs 9 and 10 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES)
def test_off_is_the_distance_alone(features, rows, search):
    images, grids = score_images(features, MemoryBank(rows, search))
    distance, _ = slow_scores(features, rows, 9)
    torch.testing.assert_close(grids, distance, atol=1e-5, rtol=1e-5)
    assert torch.equal(images, grids.flatten(1).max(1).values) and images.shape == (4,)


@pytest.mark.parametrize("b", [2, 3, 9, 30])
@pytest.mark.parametrize("search", SEARCHES)
def test_patch_is_eq_10_on_every_patch(features, rows, b, search):
    images, grids = score_images(features, MemoryBank(rows, search), reweight="patch", neighbours=b)
    distance, weight = slow_scores(features, rows, b)
    torch.testing.assert_close(grids, distance * weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images, (distance * weight).flatten(1).max(1).values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("b", [2, 3, 9])
def test_image_reweights_the_worst_patchs_score_and_leaves_the_patches_alone(features, rows, b):
    images, grids = score_images(features, MemoryBank(rows), reweight="image", neighbours=b)
    distance, weight = (t.flatten(1) for t in slow_scores(features, rows, b))
    worst = distance.argmax(1, keepdim=True)
    torch.testing.assert_close(images, (distance * weight).gather(1, worst)[:, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(grids, score_images(features, MemoryBank(rows))[1])


@pytest.mark.parametrize("reweight", REWEIGHTS)
def test_a_batch_of_one_equals_a_batch_of_n(features, rows, reweight):
    bank = MemoryBank(rows)
    images, grids = score_images(features, bank, reweight=reweight, neighbours=4)
    for i in range(4):
        image, grid = score_images(features[i : i + 1], bank, reweight=reweight, neighbours=4)
        torch.testing.assert_close(image[0], images[i], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(grid[0], grids[i], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("reweight", ["patch", "image"])
def test_large_distances_do_not_overflow(features, rows, scale, reweight):
    bank = MemoryBank(rows * scale)
    images, grids = score_images(features * scale, bank, reweight=reweight)
    assert math.isinf(float(grids.max().exp()))  # a plain exp would
    assert bool(torch.isfinite(images).all()) and bool(torch.isfinite(grids).all())
    assert bool((images >= 0).all()) and bool((grids >= 0).all())
    assert bool((grids <= score_images(features * scale, bank)[1]).all())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_weights_lie_between_zero_and_one(rows, scale):
    features = torch.cat([draw(2, 3, 5, 6, seed=2), rows[:15].view(1, 3, 5, 6)]) * scale  # the last image is remembered
    plain = score_images(features, MemoryBank(rows * scale))[1]
    weighted = score_images(features, MemoryBank(rows * scale), reweight="patch", neighbours=3)[1]
    assert bool((weighted >= 0).all()) and bool((weighted <= plain).all())
    assert bool((weighted[2] == 0).all())


@pytest.mark.parametrize("reweight", ["patch", "image"])
def test_scores_are_never_negative_even_where_float32_has_no_digits_left(features, rows, reweight):
    images, grids = score_images(features + 1e4, MemoryBank(rows + 1e4), reweight=reweight, neighbours=2)
    assert bool((images >= 0).all()) and bool((grids >= 0).all())


@pytest.mark.parametrize("search", SEARCHES)
def test_tight_clusters_that_lie_far_apart_cost_eq_10_no_digits(search):
    rows = torch.cat([draw(15, 6) / 100 + 50, draw(15, 6, seed=2) / 100 - 50])
    features = (rows + draw(30, 6, seed=1) / 1000).view(2, 3, 5, 6)
    grids = score_images(features, MemoryBank(rows, search), reweight="patch", neighbours=4)[1]
    distance, weight = slow_scores(features, rows, 4)
    torch.testing.assert_close(grids, distance * weight, atol=0, rtol=1e-5)


def test_a_farther_neighbourhood_weighs_more():
    rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [50.0, 0.0], [50.0, 20.0]])
    features = torch.tensor([[-2.0, 0.0], [52.0, 0.0]]).view(2, 1, 1, 2)
    near, far = score_images(features, MemoryBank(rows), reweight="patch", neighbours=2)[0].tolist()
    assert near == pytest.approx(2 * (1 - 1 / (1 + math.exp(5**0.5 - 2))), rel=1e-4)
    assert near < far == pytest.approx(2.0, rel=1e-4)  # r* is lonely: no discount


def test_a_common_offset_of_all_features_changes_little(features, rows):
    plain = score_images(features, MemoryBank(rows), reweight="patch")[1]
    moved = score_images(features + 30, MemoryBank(rows + 30), reweight="patch")[1]
    torch.testing.assert_close(moved, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("reweight", REWEIGHTS)
def test_a_memory_of_one_row_has_nothing_to_compare_with(features, rows, reweight):
    bank = MemoryBank(rows[:1])
    images, grids = score_images(features, bank, reweight=reweight)
    distance = (features - rows[0]).norm(dim=-1)
    torch.testing.assert_close(grids, distance)
    torch.testing.assert_close(images, distance.flatten(1).amax(1))


def test_fewer_rows_than_neighbours_use_all_rows(features, rows):
    bank = MemoryBank(rows[:4])
    few, all_four = (score_images(features, bank, reweight="patch", neighbours=b)[1] for b in (100, 4))
    assert torch.equal(few, all_four)


@pytest.mark.parametrize("reweight", ["patch", "image"])
@pytest.mark.parametrize("b", [1, 0])
def test_one_neighbour_is_refused_as_every_score_would_be_zero(features, rows, reweight, b):
    with pytest.raises(ValueError, match=f"must be at least 2, got {b}"):
        score_images(features, MemoryBank(rows), reweight=reweight, neighbours=b)


def test_an_unknown_reweighting_is_refused(features, rows):
    with pytest.raises(ValueError, match="off, image, patch, got 'pixel'"):
        score_images(features, MemoryBank(rows), reweight="pixel")


def test_squared_is_the_square(features, rows):
    images, grids = score_images(features, MemoryBank(rows), squared=True)
    plain = score_images(features, MemoryBank(rows))
    torch.testing.assert_close(grids, plain[1] ** 2)
    torch.testing.assert_close(images, plain[0] ** 2)


def test_an_image_scores_as_its_worst_patch():
    grids = torch.zeros(2, 3, 4)
    grids[0, 2, 3], grids[1, 0, 1] = 5, 7
    assert image_scores(grids).tolist() == [5, 7]


# --- maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("grid", "size"), [((5, 8), (40, 64)), ((5, 8), (33, 90)), ((7, 4), (7, 4)), ((1, 1), (6, 9))])
def test_maps_are_torchs_bilinear_then_scipys_gaussian(grid, size, sigma):
    grids = draw(3, *grid)
    large = F.interpolate(grids[:, None], size, mode="bilinear")[:, 0].numpy()
    slow = np.stack([scipy.ndimage.gaussian_filter(m, sigma, mode="reflect", truncate=4) for m in large])
    found = pixel_maps(grids, size, sigma)
    assert found.shape == (3, *size) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.from_numpy(slow), atol=2e-6, rtol=1e-5)


def test_the_default_gaussian_has_sigma_four():
    grids = draw(1, 5, 8)
    assert torch.equal(pixel_maps(grids, (40, 64)), pixel_maps(grids, (40, 64), 4.0))
    assert not torch.allclose(pixel_maps(grids, (40, 64)), pixel_maps(grids, (40, 64), 3.0), atol=1e-3)


def slow_box_map(grid: torch.Tensor, size: tuple[int, int], box: tuple[float, ...]) -> np.ndarray:
    """Pixel by pixel: where its centre lies among the centres of the patches, the nearest edge outside."""
    top, left, bottom, right = box
    h, w = grid.shape
    out = np.empty(size)
    for y, x in itertools.product(*map(range, size)):
        v = min(max((y + 0.5 - top) * h / (bottom - top) - 0.5, 0), h - 1)
        u = min(max((x + 0.5 - left) * w / (right - left) - 0.5, 0), w - 1)
        i, j = min(int(v), h - 2), min(int(u), w - 2)
        dv, du = v - i, u - j
        out[y, x] = (grid[i, j] * (1 - dv) * (1 - du) + grid[i, j + 1] * (1 - dv) * du
                     + grid[i + 1, j] * dv * (1 - du) + grid[i + 1, j + 1] * dv * du)  # fmt: skip
    return out


@pytest.mark.parametrize("sigma", [0.0, 2.5])
@pytest.mark.parametrize("box", [(4.0, 10.0, 28.0, 42.0), (3.3, 0.0, 30.9, 50.0), (0.0, 7.25, 32.0, 40.5)])
def test_a_box_places_the_grid_where_the_crop_was(box, sigma):
    grid = draw(4, 5)
    slow = slow_box_map(grid, (32, 50), box)
    slow = scipy.ndimage.gaussian_filter(slow, sigma, mode="reflect", truncate=4) if sigma else slow
    found = pixel_maps(grid[None], (32, 50), sigma, box)[0]
    torch.testing.assert_close(found, torch.from_numpy(slow).float(), atol=1e-5, rtol=1e-5)


def test_a_box_of_the_whole_image_is_no_box():
    grids = draw(2, 4, 5)
    assert torch.equal(pixel_maps(grids, (32, 50), 4.0, (0, 0, 32, 50)), pixel_maps(grids, (32, 50), 4.0))


def test_a_constant_grid_gives_a_constant_map():
    found = pixel_maps(torch.full((1, 4, 5), 3.25), (31, 57), 4.0, (2.0, 3.0, 25.0, 50.0))
    torch.testing.assert_close(found, torch.full((1, 31, 57), 3.25))


def test_maps_do_not_remember_each_other():
    one, other = draw(1, 4, 5), draw(1, 4, 5, seed=1)
    first = pixel_maps(one, (32, 50)).clone()
    pixel_maps(other, (32, 50)), pixel_maps(one, (50, 32))
    assert torch.equal(pixel_maps(one, (32, 50)), first)


# --- thresholds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (20, 0.05), (39, 0.05), (100, 0.1), (9, 0.1), (7, 0.25), (1, 0.5)])
def test_the_limit_is_the_split_conformal_quantile(n, rate):
    scores = torch.from_numpy(np.random.default_rng(n).permutation(n) + 1.0)  # 1 … n, so the value is the rank
    rank = next(r for r in range(1, n + 1) if r / (n + 1) >= 1 - rate - 1e-12)  # P(next <= r-th smallest) = r/(n+1)
    found = threshold(scores, rate)
    assert (found.value, found.normals, found.false_alarm_rate) == (rank, n, rate)


@pytest.mark.parametrize(("n", "rate", "least"), [(18, 0.05, 19), (0, 0.05, 19), (8, 0.1, 9), (98, 0.01, 99)])
def test_too_few_normals_say_how_many_it_takes(n, rate, least):
    with pytest.raises(ValueError, match=f"{n} held-out normal images .* {rate}: it takes at least {least}"):
        threshold(torch.zeros(n), rate)
    assert threshold(torch.zeros(least), rate).normals == least


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5])
def test_a_rate_outside_zero_to_one_is_refused(rate):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        threshold(torch.arange(100.0), rate)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=120), st.floats(0.02, 0.98))
def test_no_more_than_the_rate_of_the_calibration_scores_lies_above_the_limit(values, rate):
    scores = torch.tensor(values, dtype=torch.float32)
    try:
        limit = threshold(scores, rate)
    except ValueError:
        assert len(values) < 1 / rate - 1 + 1e-6
        return
    assert float((scores > limit.value).float().mean()) <= rate
    assert limit.value in values


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (60, 0.1), (200, 0.05)])
def test_the_interval_is_the_binomials(n, rate):
    found = threshold(torch.arange(float(n)), rate)
    rank = int(found.value) + 1
    low, high = found.interval
    # The limit's own rate is below x exactly if at most rank - 1 of n uniform draws fall below 1 - x.
    assert scipy.stats.binom.cdf(rank - 1, n, 1 - low) == pytest.approx(0.025, abs=1e-6)
    assert scipy.stats.binom.cdf(rank - 1, n, 1 - high) == pytest.approx(0.975, abs=1e-6)
    assert 0 <= low < rate < high <= 1


def test_in_simulation_the_rate_is_kept_on_average_and_the_interval_holds_it_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    limits = [threshold(torch.from_numpy(rng.random(40)), 0.1) for _ in range(3000)]
    rates = np.array([1 - limit.value for limit in limits])  # of uniform scores above the limit
    low, high = limits[0].interval
    assert rates.mean() == pytest.approx(4 / 41, abs=0.003) and rates.mean() <= 0.1
    assert np.mean((low < rates) & (rates < high)) == pytest.approx(0.95, abs=0.012)


# --- modified z-scores -----------------------------------------------------------------------------------


def test_the_modified_z_score_is_counted_in_robust_deviations():
    z = modified_z_score(torch.tensor([[2.0, 5.0], [8.0, -1.0]]), median=2.0, mad=1.5)
    torch.testing.assert_close(z, torch.tensor([[0.0, 3.0], [6.0, -3.0]]) / (1.4826 * 1.5))


def test_of_normal_scores_it_is_a_standard_deviation():
    scores = draw(200_001) * 3 + 7
    median = float(scores.median())
    z = modified_z_score(scores, median, float((scores - median).abs().median()))
    assert float(z.std()) == pytest.approx(1, abs=0.01) and float(z.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("mad", [0.0, -1.0, math.nan])
def test_without_a_spread_there_is_no_z_score(mad):
    with pytest.raises(ValueError, match="median absolute deviation of the normal scores is 0"):
        modified_z_score(torch.ones(3), 1.0, mad)
