"""Every metric against a slow twin, against scikit-learn, and against the traps that made others wrong."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from rcp.metrics import (
    MetricWarning,
    aupro,
    auroc,
    average_precision,
    dprime,
    f1_max,
    f1_threshold,
    image_metrics,
    pixel_metrics,
)

TOL = dict(rel=0, abs=1e-9)
SAMPLE_METRICS = [auroc, average_precision, f1_max, dprime]
RANK_METRICS = [auroc, average_precision, f1_max]
LIMITS = [0.05, 0.3, 1 / 3, 0.5, 1.0]


# --- slow twins: the definitions, word by word ----------------------------------------------------


def slow_auroc(labels, scores) -> float:
    pairs = [(a > n) + 0.5 * (a == n) for a in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def slow_thresholds(scores):
    return sorted({float(s) for s in np.ravel(scores)}, reverse=True)


def slow_average_precision(labels, scores) -> float:
    area = recall = 0.0
    for t in slow_thresholds(scores):
        flagged = scores >= t
        true_positives = (flagged & (labels == 1)).sum()
        area += (true_positives / (labels == 1).sum() - recall) * true_positives / flagged.sum()
        recall = true_positives / (labels == 1).sum()
    return area


def slow_f1(labels, scores) -> tuple[float, float]:
    best = (-1.0, math.nan)
    for t in slow_thresholds(scores):
        flagged = scores >= t
        true_positives = (flagged & (labels == 1)).sum()
        f1 = 2 * true_positives / (flagged.sum() + (labels == 1).sum())
        if f1 > best[0]:
            best = (f1, t)
    return best


def slow_regions(mask) -> list[list[tuple[int, int]]]:
    """Flood fill over the eight neighbours."""
    left, regions = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask))}, []
    while left:
        region, front = [], [left.pop()]
        while front:
            y, x = front.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


def slow_pro_curve(masks, maps) -> tuple[list[float], list[float]]:
    normal = [float(s) for mask, scores in zip(masks, maps) for s in scores[mask == 0]]
    regions = [[float(s[y, x]) for y, x in region] for m, s in zip(masks, maps) for region in slow_regions(m)]
    fpr, pro = [0.0], [0.0]
    for t in slow_thresholds(np.concatenate([np.ravel(s) for s in maps])):
        fpr.append(sum(s >= t for s in normal) / len(normal))
        pro.append(sum(sum(s >= t for s in region) / len(region) for region in regions) / len(regions))
    return fpr, pro


def slow_aupro(masks, maps, limit) -> float:
    fpr, pro = slow_pro_curve(masks, maps)
    last = max(i for i, rate in enumerate(fpr) if rate <= limit)
    x, y = fpr[: last + 1], pro[: last + 1]
    if last + 1 < len(fpr):
        share = (limit - fpr[last]) / (fpr[last + 1] - fpr[last])
        x, y = x + [limit], y + [pro[last] + share * (pro[last + 1] - pro[last])]
    return float(np.trapezoid(y, x) / limit)


# --- makers ---------------------------------------------------------------------------------------


def random_images(seed, n=5, sizes=((7, 11), (6, 6), (13, 4)), levels=None):
    """Masks with several regions (the last image is good) and maps that see them a little."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(sizes[i % len(sizes)]) < 0.18 for i in range(n)]
    masks[-1][:] = False
    maps = [(rng.normal(size=m.shape) + 0.8 * m).astype(np.float32) for m in masks]
    if levels:
        maps = [np.round(s * levels).astype(np.int64) for s in maps]
    return masks, maps


@st.composite
def labelled_scores(draw):
    n = draw(st.integers(2, 30))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda v: 0 < sum(v) < n))
    scores = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    return np.array(labels), np.array(scores)


@st.composite
def labelled_images(draw):
    images = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.integers(1, 5)), draw(st.integers(1, 6))
        size = shape[0] * shape[1]
        mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        scores = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
        images.append((np.array(mask).reshape(shape), np.array(scores).reshape(shape)))
    masks, maps = zip(*images)
    return list(masks), list(maps)


# --- image level ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(labelled_scores())
def test_sample_metrics_equal_slow_twins_and_sklearn_under_many_ties(case):
    labels, scores = case
    assert auroc(labels, scores) == pytest.approx(slow_auroc(labels, scores), **TOL)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), **TOL)
    assert average_precision(labels, scores) == pytest.approx(slow_average_precision(labels, scores), **TOL)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), **TOL)
    assert f1_max(labels, scores) == pytest.approx(sklearn_f1_max(labels, scores), **TOL)
    assert f1_threshold(labels, scores) == pytest.approx(slow_f1(labels, scores), **TOL)


def sklearn_f1_max(labels, scores) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("prevalence", [0.003, 0.4, 0.99])
def test_sample_metrics_equal_sklearn_on_many_scores(dtype, prevalence):
    rng = np.random.default_rng(1)
    labels = rng.random(20_000) < prevalence
    scores = (rng.normal(size=20_000) + labels).astype(dtype)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), **TOL)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), **TOL)
    f1, threshold = f1_threshold(labels, scores)
    assert f1 == f1_max(labels, scores) == pytest.approx(sklearn_f1_max(labels, scores), **TOL)
    flagged = scores >= threshold
    assert 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum()) == pytest.approx(f1, **TOL)


def test_small_case_by_hand():
    labels, scores = [0, 0, 1, 0, 1], [1, 2, 2, 3, 4]
    assert auroc(labels, scores) == (1 + 0.5 + 3) / 6
    assert average_precision(labels, scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4, **TOL)
    assert f1_threshold(labels, scores) == (pytest.approx(2 / 3), 4.0)  # 2 gives 2/3 too: the highest wins
    assert dprime([0, 0, 1, 1], [0, 2, 4, 8]) == pytest.approx(5 / math.sqrt((1 + 4) / 2), **TOL)


def test_f1_is_called_an_oracle():
    assert "ORACLE" in f1_max.__doc__ and "never for decisions" in f1_threshold.__doc__


def test_image_metrics_are_the_single_ones():
    rng = np.random.default_rng(2)
    labels, scores = rng.random(60) < 0.5, rng.integers(0, 9, 60)
    values = [metric(labels, scores) for metric in RANK_METRICS]
    assert image_metrics(labels, scores) == dict(zip(("image_auroc", "image_ap", "image_f1_max"), values))


def test_labels_may_be_bool_integer_or_float_and_of_any_shape():
    labels = np.array([[0, 1, 1], [0, 0, 1]])
    scores = np.array([[0.1, 0.5, 0.2], [0.3, 0.2, 0.9]], np.float32)
    for metric in SAMPLE_METRICS:
        expected = metric(labels.ravel().tolist(), scores.ravel())
        for same in (labels, labels.astype(bool), labels.astype(np.float32), torch.tensor(labels)):
            assert metric(same, torch.tensor(scores)) == expected
            assert type(metric(same, scores)) is float


@pytest.mark.parametrize("transform", [np.exp, np.cbrt, lambda s: 5 * s - 40, lambda s: 1 / (1 + np.exp(-s))])
def test_only_the_order_matters(transform):
    rng = np.random.default_rng(3)
    scores = rng.integers(-8, 8, 300).astype(np.float64)
    labels = rng.random(300) < 0.3
    for metric in RANK_METRICS:
        assert metric(labels, transform(scores)) == metric(labels, scores)
    masks, maps = random_images(3, levels=2)
    assert pixel_metrics(masks, [transform(s.astype(np.float64)) for s in maps]) == pixel_metrics(masks, maps)


def test_high_scores_that_a_float32_sigmoid_would_merge_stay_apart():
    assert auroc([0, 0, 1, 1], np.array([20, 21, 30, 31], np.float32)) == 1.0


def test_dprime_ignores_shift_and_scale_but_not_constant_classes():
    rng = np.random.default_rng(4)
    labels, scores = np.arange(50) % 2, rng.normal(size=50)
    a, n = scores[labels == 1], scores[labels == 0]
    expected = abs(a.mean() - n.mean()) / np.sqrt((a.var() + n.var()) / 2)
    assert dprime(labels, scores) == pytest.approx(expected, **TOL)
    assert dprime(labels, 1e6 * scores + 7) == pytest.approx(expected, rel=1e-6)
    assert dprime(1 - labels, scores) == pytest.approx(expected, **TOL)
    assert dprime([0, 0, 0, 1], [0.1, 0.1, 0.1, 0.1]) == 0.0  # the mean of three 0.1 is not 0.1
    assert dprime([0, 0, 0, 1, 1, 1], [0.1] * 3 + [0.7] * 3) == math.inf


# --- pixel level ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(labelled_images(), st.sampled_from(LIMITS))
def test_pixel_metrics_equal_slow_twins_under_many_ties(case, limit):
    masks, maps = case
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([s.ravel() for s in maps])
    if labels.all() or not labels.any():
        with pytest.warns(MetricWarning):
            assert all(map(math.isnan, pixel_metrics(masks, maps, limit).values()))
        return
    values = pixel_metrics(masks, maps, limit)
    assert values["pixel_auroc"] == pytest.approx(slow_auroc(labels, scores), **TOL)
    assert values["pixel_ap"] == pytest.approx(slow_average_precision(labels, scores), **TOL)
    assert values["aupro"] == pytest.approx(slow_aupro(masks, maps, limit), **TOL)
    assert values["aupro"] == aupro(masks, maps, limit)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("levels", [None, 1, 4])
def test_aupro_equals_slow_twin_on_images_of_different_sizes(limit, levels):
    masks, maps = random_images(5, levels=levels)
    assert len({m.shape for m in masks}) == 3
    assert aupro(masks, maps, limit) == pytest.approx(slow_aupro(masks, maps, limit), **TOL)


def test_pixel_auroc_and_ap_equal_sklearn_over_all_pixels():
    masks, maps = random_images(6)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([s.ravel() for s in maps])
    values = pixel_metrics(masks, maps)
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), **TOL)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), **TOL)


def test_aupro_by_hand_with_a_cut_ramp():
    # Ten normal pixels. One pixel of the region is above all, the other ties with four normal ones: a ramp
    # from FPR 0 to 0.4. At the limit 0.2 half of it is climbed: (0.5·0.2 + 0.2·0.25/2) / 0.2 = 0.625.
    mask = np.array([[1, 1] + [0] * 10], bool)
    scores = np.array([[9, 5] + [5] * 4 + [1] * 6])
    assert aupro([mask], [scores], 0.2) == pytest.approx(0.625, **TOL)
    assert aupro([mask], [scores], 0.4) == pytest.approx(0.75, **TOL)
    assert aupro([mask], [scores], 1.0) == pytest.approx((0.4 * 0.75 + 0.6) / 1, **TOL)


def test_diagonal_pixels_are_one_region():
    diagonal = np.eye(4, 6, dtype=bool)  # one region of 4 (4-connected: four of 1)
    single = np.zeros((4, 6), bool)
    single[1, 1] = True
    maps = [np.zeros((4, 6)), np.zeros((4, 6))]
    maps[0][0, 0] = 1.0  # a quarter of the diagonal is found, before any normal pixel
    maps[0][~diagonal] = maps[1][~single] = 0.5
    maps[1][2, 2] = 0.75
    assert aupro([diagonal, single], maps) == pytest.approx(0.25 / 2, **TOL)
    assert slow_aupro([diagonal, single], maps, 0.3) == pytest.approx(0.25 / 2, **TOL)


def test_regions_count_the_same_whatever_their_size():
    mask, scores = np.zeros((20, 30), bool), np.zeros((20, 30))
    mask[:10, :10] = mask[15, 15] = True
    scores[mask] = -1.0
    scores[15, 15] = 1.0
    assert aupro([mask], [scores]) == pytest.approx(0.5, **TOL)


def test_touching_regions_of_different_images_stay_apart():
    mask, maps = np.array([[0, 0, 1], [0, 0, 1]], bool), np.array([[[0, 0, 1.0]] * 2, [[0, 0, -1.0]] * 2])
    masks = np.stack([mask, mask])
    assert aupro(masks, maps) == pytest.approx(0.5, **TOL)


def test_good_images_count_in_the_false_positive_rate():
    mask, scores = np.array([[1, 0, 0, 0]], bool), np.array([[0.5, 0.1, 0.1, 0.1]])
    good = np.zeros((1, 4), bool), np.array([[0.9, 0.9, 0.1, 0.1]])
    assert aupro([mask], [scores]) == 1.0
    # 2 of the 7 normal pixels stand above the defect: it is found from FPR 2/7 on.
    expected = {limit: max(0.0, limit - 2 / 7) / limit for limit in (0.2, 0.3, 1.0)}
    for limit, value in expected.items():
        assert aupro([mask, good[0]], [scores, good[1]], limit) == pytest.approx(value, **TOL)
    assert pixel_metrics([mask, good[0]], [scores, good[1]])["pixel_auroc"] == pytest.approx(5 / 7, **TOL)


def test_the_area_is_divided_by_the_limit_not_by_the_last_rate():
    # FPR jumps from 0 to 1/2: thresholds up to the limit reach no further than 0, and the ramp must be cut.
    masks, maps = [np.array([[1, 1, 0, 0]], bool)], [np.array([[3, 2, 2, 1]])]
    assert aupro(masks, maps, 0.3) == pytest.approx(slow_aupro(masks, maps, 0.3), **TOL)
    assert aupro(masks, maps, 0.3) == pytest.approx(0.5 + 0.5 * 0.6 / 2, **TOL)
    for seed in range(20):
        assert 0 <= aupro(*random_images(seed, levels=1), 0.05) <= 1


def test_one_outlier_pixel_changes_nothing_that_it_should_not():
    # The trap: with 200 evenly spaced thresholds, one far outlier leaves almost all of the curve in one step.
    masks, maps = random_images(7, n=6, sizes=((40, 60),))
    before = pixel_metrics(masks, maps)
    top = max(zip(maps, masks), key=lambda pair: pair[0].max())[0]
    top[np.unravel_index(top.argmax(), top.shape)] = 1e6  # it was the highest already: the order is as before
    assert pixel_metrics(masks, maps) == before
    assert abs(aupro_by_even_thresholds(masks, maps) - before["aupro"]) > 0.02


def aupro_by_even_thresholds(masks, maps, limit=0.3, n=200) -> float:
    values = np.concatenate([s.ravel() for s in maps])
    normal = np.concatenate([s[~m] for s, m in zip(maps, masks)])
    regions = [s[tuple(zip(*region))] for s, m in zip(maps, masks) for region in slow_regions(m)]
    thresholds = np.linspace(values.max(), values.min(), n)
    fpr = np.array([0.0] + [(normal >= t).mean() for t in thresholds])
    pro = np.array([0.0] + [np.mean([(r >= t).mean() for r in regions]) for t in thresholds])
    grid = np.linspace(0, limit, 2001)
    return float(np.trapezoid(np.interp(grid, fpr, pro), grid) / limit)


def test_order_of_images_and_flips_do_not_matter():
    masks, maps = random_images(8, levels=3)
    expected = pixel_metrics(masks, maps)
    assert pixel_metrics(masks[::-1], maps[::-1]) == pytest.approx(expected, **TOL)
    assert pixel_metrics([m.T for m in masks], [s.T for s in maps]) == pytest.approx(expected, **TOL)


def test_arrays_lists_and_tensors_agree():
    masks, maps = random_images(9, sizes=((6, 9),))
    expected = pixel_metrics(masks, maps)
    stack = np.stack(masks)
    for form in (stack, 255 * stack.astype(np.uint8), torch.tensor(stack), tuple(masks)):
        assert pixel_metrics(form, torch.tensor(np.stack(maps))) == expected
        assert pixel_metrics(form, np.stack(maps)) == expected
    assert all(type(value) is float for value in expected.values())


def test_mixed_dtypes_lose_nothing():
    mask, close = np.array([[1, 0]], bool), np.array([[1 + 1e-12, 1.0]])  # equal in float32
    maps = [close, np.array([[2.0, 1.0]], np.float32)]
    assert aupro([mask, mask], maps) == pixel_metrics([mask, mask], maps)["pixel_auroc"] == 1.0


def test_inputs_are_not_changed():
    masks, maps = random_images(10)
    before = [m.copy() for m in masks], [s.copy() for s in maps]
    pixel_metrics(masks, maps)
    image_metrics(masks[0], maps[0])
    for old, new in zip(before, (masks, maps)):
        assert all(np.array_equal(a, b) for a, b in zip(old, new))


# --- defined answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("labels, missing", [([0, 0, 0], "no anomalous samples among 3"), ([1], "no normal")])
def test_a_missing_class_is_nan_with_a_warning(labels, missing):
    scores = np.arange(len(labels))
    for metric in SAMPLE_METRICS:
        with pytest.warns(MetricWarning, match=missing) as caught:
            assert math.isnan(metric(labels, scores))
        assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(MetricWarning, match=missing):
        assert all(map(math.isnan, image_metrics(labels, scores).values()))
    with pytest.warns(MetricWarning, match=missing):
        assert all(map(math.isnan, f1_threshold(labels, scores)))
    for metric in (aupro, lambda *images: pixel_metrics(*images)["pixel_ap"]):
        with pytest.warns(MetricWarning, match=missing):
            assert math.isnan(metric([np.array([labels])], [scores[None]]))


@pytest.mark.parametrize("constant", [0, 0.1, -1e30])
def test_constant_scores(constant):
    labels, scores = np.array([1, 0, 0, 0, 1, 0]), np.full(6, constant)
    assert auroc(labels, scores) == 0.5
    assert average_precision(labels, scores) == pytest.approx(2 / 6, **TOL)
    assert f1_threshold(labels, scores) == (pytest.approx(2 * 2 / (2 * 2 + 4), **TOL), constant)
    assert dprime(labels, scores) == 0.0
    for limit in LIMITS:
        assert aupro([labels[None]], [scores[None]], limit) == pytest.approx(limit / 2, **TOL)


def test_perfect_and_reversed_scores():
    labels = np.array([0, 0, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_metrics(labels, labels) == dict(image_auroc=1.0, image_ap=1.0, image_f1_max=1.0)
        assert auroc(labels, -labels) == 0.0
        assert aupro([labels[None]], [labels[None]]) == 1.0
        assert aupro([labels[None]], [-labels[None]], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_refused_and_counted(bad):
    labels, scores = [0, 1, 1, 0], np.array([0.5, bad, 1.0, bad], np.float32)
    for metric in SAMPLE_METRICS + [f1_threshold, image_metrics]:
        with pytest.raises(ValueError, match="2 of 4 are NaN or inf"):
            metric(labels, scores)
    mask = np.array([labels], bool)
    for metric in (aupro, pixel_metrics):
        with pytest.raises(ValueError, match="map 1: 2 of 4 are NaN or inf"):
            metric([mask, mask], [np.zeros((1, 4)), scores[None]])


def test_wrong_inputs_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"labels must be 0 or 1: 2 of 3 are not, e.g. 2"):
        auroc([0, 2, -1], [1, 2, 3])
    with pytest.raises(ValueError, match=r"labels must be 0 or 1: 1 of 2"):
        auroc([math.nan, 1], [1, 2])
    with pytest.raises(ValueError, match=r"labels have shape \(2, 3\), scores \(3, 2\)"):  # H and W swapped
        auroc(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="no samples"):
        auroc([], [])
    mask, scores = np.zeros((2, 3), bool), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"image 1: mask \(2, 3\) and map \(3, 2\)"):
        aupro([mask, mask], [scores, scores.T])
    with pytest.raises(ValueError, match=r"image 0: mask \(1, 2, 3\) and map \(1, 2, 3\)"):
        aupro([mask[None]], [scores[None]])
    with pytest.raises(ValueError, match="image 0: mask is float64"):
        aupro([scores], [scores])
    with pytest.raises(ValueError, match="2 masks for 1 maps"):
        aupro([mask, mask], [scores])
    with pytest.raises(ValueError, match="0 masks for 0 maps"):
        aupro([], [])
    with pytest.raises(ValueError, match="no samples"):
        aupro([mask[:0]], [scores[:0]])


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, 30, math.nan])
def test_limit_outside_its_range_is_refused(limit):
    for metric in (aupro, pixel_metrics):
        with pytest.raises(ValueError, match=r"max_fpr must be in \(0, 1\]"):
            metric([np.array([[0, 1]])], [np.array([[0, 1]])], limit)


# --- counts beyond what float32 holds -------------------------------------------------------------


def test_more_normal_pixels_than_float32_can_count():
    side = 4100  # 4100² = 16,810,000 > 2^24 = 16,777,216
    scores, mask = np.zeros((side, side), np.float32), np.zeros((side, side), bool)
    mask[0, :4], n = True, side * side - 4
    scores[0, :4] = [2, 0, 0, -1]
    scores[1, 0] = 1
    values = pixel_metrics([mask], [scores], 1.0)
    doubled = 2 * n + 2 * (n - 1)  # pairs, ties once: the 2 wins n, each 0 ties with n − 1
    assert values["pixel_auroc"] == doubled / (2 * 4 * n)
    assert values["pixel_ap"] == pytest.approx((1 + 2 * 3 / (n + 3) + 4 / (n + 4)) / 4, rel=1e-12)
    ramp = (1 - 1 / n) / 2  # mean of 1 − FPR on the ramp from 1/n to 1
    assert values["aupro"] == pytest.approx((1 + 2 * ramp) / 4, rel=1e-12)


def test_more_pairs_than_float32_can_count():
    p, n = 3001, 6007  # 18,027,007 pairs > 2^24
    labels, scores = np.arange(p + n) < p, np.where(np.arange(p + n) < p, 2, 0).astype(np.float32)
    scores[0], scores[-1], scores[-2] = 1, 2, 1
    doubled = 2 * (p - 1) * (n - 1) + (p - 1) + 2 * (n - 2) + 1  # rows: the p − 1 at 2, then the one at 1
    assert auroc(labels, scores) == doubled / (2 * p * n)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), **TOL)
