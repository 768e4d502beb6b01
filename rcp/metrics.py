"""How good are the scores? AUROC, AP, F1-max, AUPRO and d', each exact, with its level and its denominator.

Higher is more anomalous; "flagged at t" means ``score >= t``. P counts anomalous samples, N normal ones.
*Image* metrics: one sample per image. *Pixel* metrics: every pixel of every test image, good images included.

* AUROC: share of the P·N (anomalous, normal) pairs in the right order; a tie counts half.
* AP: Σ (R_n − R_{n−1}) P_n over the distinct thresholds; recall is TP / P, precision TP / (TP + FP).
* F1-max: the largest 2TP / (TP + FP + P) over all thresholds; an oracle: it is chosen on test labels.
* AUPRO: area under PRO(FPR) from (0, 0) to FPR = max_fpr, linear between neighbouring distinct thresholds,
  divided by max_fpr (not by the last FPR reached). PRO is the mean over all regions (8-connected components
  of each mask) of a region's flagged share; FPR is the flagged share of all N normal pixels of all images.
* d': distance between the class means, divided by the root mean square of the two standard deviations.

Every distinct threshold counts: 200 evenly spaced ones are points off once one outlier stretches the range.
Scores are never rescaled (no sigmoid, no min-max). Takes numpy arrays and torch CPU tensors. Notebook 05.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

Images = Sequence[ArrayLike]  # n arrays (H, W), sizes may differ, or one array (n, H, W)


class MetricWarning(UserWarning):
    """A metric is undefined (nan) because one of the two classes has no samples."""


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve: the share of (anomalous, normal) pairs in order, ties half.

    Args:
        labels: (n,) bool or {0, 1}, 1 is anomalous; other shapes are flattened.
        scores: the shape of `labels`; real, finite.
    Returns: in [0, 1]; constant scores give 0.5; nan with a `MetricWarning` if a class is missing.
    Raises: ValueError if there are no samples, shapes differ, a label is not 0 or 1, a score is NaN or inf.
    Source: Mann and Whitney 1947, U / (P·N).
    """
    ranks = _sample_ranks(labels, scores)
    return ranks.auroc() if ranks else math.nan


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the step-wise average precision Σ (R_n − R_{n−1}) P_n over the distinct thresholds.

    Args, Raises: as `auroc`; labels (n,) bool or {0, 1}, scores (n,) real.
    Returns: in (0, 1]; constant scores give P / (P + N); nan with a `MetricWarning` if a class is missing.
    Source: scikit-learn, `average_precision_score` (no interpolation).
    """
    ranks = _sample_ranks(labels, scores)
    return ranks.average_precision() if ranks else math.nan


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the largest F1 over all thresholds: an ORACLE, the first half of `f1_threshold`.

    Args, Raises: as `auroc`; labels (n,) bool or {0, 1}, scores (n,) real.
    Returns: in (0, 1]; constant scores give 2P / (2P + N); nan with a `MetricWarning` if a class is missing.
    """
    ranks = _sample_ranks(labels, scores)
    return ranks.best_f1()[0] if ranks else math.nan


def f1_threshold(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Return the largest F1 and its threshold: an ORACLE, for display only, never for decisions.

    It is chosen on the test labels it is judged by. To decide, use a quantile of held-out normal images.

    Args, Raises: as `auroc`; labels (n,) bool or {0, 1}, scores (n,) real.
    Returns: (f1, highest of the best thresholds); both nan with a `MetricWarning` if a class is missing.
    """
    ranks = _sample_ranks(labels, scores)
    return ranks.best_f1() if ranks else (math.nan, math.nan)


def dprime(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the sensitivity index d' = |μ_a − μ_n| / sqrt((σ_a² + σ_n²) / 2), with population deviations.

    Args, Raises: as `auroc`; labels (n,) bool or {0, 1}, scores (n,) real (values matter, not just order).
    Returns: >= 0; 0 if all scores are equal, inf if each class is constant and the two differ; nan with a
        `MetricWarning` if a class is missing.
    Source: d' of Fig. 4, Hyun et al., ReConPatch, WACV 2024 (arXiv 2305.16713); this form is our choice.
    """
    if not (ranks := _sample_ranks(labels, scores)):
        return math.nan
    (mean_a, std_a), (mean_n, std_n) = _mean_std(ranks.anomalous), _mean_std(ranks.normal)
    gap, spread = abs(mean_a - mean_n), math.sqrt((std_a**2 + std_n**2) / 2)
    if spread == 0:
        return math.inf if gap > 0 else 0.0
    return gap / spread


def aupro(masks: Images, maps: Images, max_fpr: float = 0.3) -> float:
    """Return the area under the per-region-overlap curve up to a false positive rate, divided by that rate.

    Args:
        masks: n arrays (H, W), or (n, H, W); bool, or integer with > 0 anomalous; empty for a good image.
        maps: n arrays (H, W), each of its mask's size; real, finite. Sizes may differ between images.
        max_fpr: limit of the false positive rate over all normal pixels of all images, in (0, 1].
    Returns: in [0, 1]; constant scores give max_fpr / 2; nan with a `MetricWarning` if a class is missing.
    Raises: ValueError if `max_fpr` is out of range, there are no pixels, the numbers of masks and maps or the
        shapes of a pair differ, a mask is neither bool nor integer, a score is NaN or inf.
    Source: Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021.
    """
    ranks = _pixel_ranks(masks, maps, max_fpr)
    return ranks.aupro(max_fpr) if ranks else math.nan


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Return image AUROC, image AP and image F1-max (an oracle) from one sort.

    Args, Raises: as `auroc`; labels (n,) bool or {0, 1}, scores (n,) real, one of each per image.
    Returns: `image_auroc`, `image_ap`, `image_f1_max`; nan with a `MetricWarning` if a class is missing.
    """
    ranks = _sample_ranks(labels, scores)
    values = (ranks.auroc(), ranks.average_precision(), ranks.best_f1()[0]) if ranks else (math.nan,) * 3
    return dict(zip(("image_auroc", "image_ap", "image_f1_max"), values))


def pixel_metrics(masks: Images, maps: Images, max_fpr: float = 0.3) -> dict[str, float]:
    """Return pixel AUROC and pixel AP over all test pixels, and AUPRO at FPR <= `max_fpr`, from one sort.

    Args, Raises: as `aupro`; masks n × (H, W) bool or integer, maps n × (H, W) real, max_fpr in (0, 1].
    Returns: `pixel_auroc`, `pixel_ap`, `aupro`; nan with a `MetricWarning` if a class is missing.
    """
    ranks = _pixel_ranks(masks, maps, max_fpr)
    values = (ranks.auroc(), ranks.average_precision(), ranks.aupro(max_fpr)) if ranks else (math.nan,) * 3
    return dict(zip(("pixel_auroc", "pixel_ap", "aupro"), values))


class _Ranks(NamedTuple):
    """The anomalous values as thresholds, and how many samples are flagged at each: (P,), counts int64."""

    anomalous: np.ndarray  # ascending
    normal: np.ndarray  # (N,) ascending
    weights: np.ndarray | None  # what each anomalous pixel adds to PRO, sum 1; None without regions
    true_positives: np.ndarray  # anomalous >= value
    normal_above: np.ndarray  # normal > value
    false_positives: np.ndarray  # normal >= value

    def auroc(self) -> float:
        # 2 · (normal below) + ties = 2N − (normal >= it) − (normal > it): whole numbers, summed exactly.
        doubled = (2 * len(self.normal) - self.false_positives - self.normal_above).sum(dtype=np.int64)
        return int(doubled) / (2 * len(self.anomalous) * len(self.normal))

    # AP and F1 need no thresholds but the anomalous values: one that only normal samples have adds FP, no TP.
    # Recall stays (an AP step of width 0), and F1 = 2TP / (TP + FP + P) falls.
    def average_precision(self) -> float:
        # k anomalous samples at one threshold are a step of k / P: the mean over samples sums over steps.
        return float((self.true_positives / (self.true_positives + self.false_positives)).mean())

    def best_f1(self) -> tuple[float, float]:
        f1 = 2 * self.true_positives / (self.true_positives + self.false_positives + len(self.anomalous))
        best = len(f1) - 1 - int(f1[::-1].argmax())  # from the top: the highest of equally good thresholds
        return float(f1[best]), float(self.anomalous[best])

    def aupro(self, max_fpr: float) -> float:
        # A pixel lifts PRO by its weight on a ramp from FPR a (normal > it) to b (normal >= it). The area
        # up to the limit L: a triangle over [a, min(b, L)], a rectangle over [b, L]; in pixels (times N).
        limit = max_fpr * len(self.normal)
        ties = self.false_positives - self.normal_above  # b − a
        run = np.clip(limit - self.normal_above, 0, ties)  # min(b, L) − a, or 0
        area = run**2 / (2 * np.maximum(ties, 1)) + np.maximum(limit - self.false_positives, 0)
        return float((self.weights * area).sum() / limit)


def _rank(anomalous: np.ndarray, normal: np.ndarray, weights: np.ndarray | None = None) -> _Ranks | None:
    """Return the counts for two sorted arrays, or None (and warn) if one is empty."""
    if (total := len(anomalous) + len(normal)) == 0:
        raise ValueError("no samples")
    if not (len(anomalous) and len(normal)):
        missing = "normal" if len(anomalous) else "anomalous"
        warnings.warn(f"no {missing} samples among {total}: nan", MetricWarning, stacklevel=4)
        return None
    # Sorting the normal *values* is far cheaper than an argsort of everything; ascending needles walk through
    # them in order, which keeps the binary search in the cache.
    true_positives = len(anomalous) - np.searchsorted(anomalous, anomalous, side="left")
    normal_above = len(normal) - np.searchsorted(normal, anomalous, side="right")
    false_positives = len(normal) - np.searchsorted(normal, anomalous, side="left")
    return _Ranks(anomalous, normal, weights, true_positives, normal_above, false_positives)


def _sample_ranks(labels: ArrayLike, scores: ArrayLike) -> _Ranks | None:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape:
        raise ValueError(f"labels have shape {labels.shape}, scores {scores.shape}")
    if (wrong := labels[(labels != 0) & (labels != 1)]).size:
        raise ValueError(f"labels must be 0 or 1: {wrong.size} of {labels.size} are not, e.g. {wrong[0]}")
    _check_finite(scores, "scores")
    return _rank(np.sort(scores[labels == 1]), np.sort(scores[labels == 0]))


def _pixel_ranks(masks: Images, maps: Images, max_fpr: float) -> _Ranks | None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr}")
    anomalous, weights, normal = _collect(_checked_pairs(masks, maps))
    normal.sort()  # the one big sort: of values, in place
    order = anomalous.argsort()  # few; only they must remember their region
    return _rank(anomalous[order], normal, weights[order])


def _checked_pairs(masks: Images, maps: Images) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(masks) != len(maps) or len(masks) == 0:
        raise ValueError(f"{len(masks)} masks for {len(maps)} maps")
    pairs = [(np.asarray(mask), np.asarray(scores)) for mask, scores in zip(masks, maps)]
    for i, (mask, scores) in enumerate(pairs):
        if mask.shape != scores.shape or mask.ndim != 2:
            raise ValueError(f"image {i}: mask {mask.shape} and map {scores.shape} must be the same (H, W)")
        if mask.dtype.kind not in "biu":  # float masks may hold interpolated edges: no cut-off is right
            raise ValueError(f"image {i}: mask is {mask.dtype}; give bool, or integer with > 0 anomalous")
        _check_finite(scores, f"map {i}")
    return pairs


def _collect(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return anomalous values (P,), their weights 1 / (regions · region size) (P,), normal values (N,)."""
    dtype = np.result_type(*(scores.dtype for _, scores in pairs))  # float32 stays float32
    n_anomalous = sum(np.count_nonzero(mask > 0) for mask, _ in pairs)
    anomalous, weights = np.empty(n_anomalous, dtype), np.empty(n_anomalous)
    normal = np.empty(sum(mask.size for mask, _ in pairs) - n_anomalous, dtype)
    a = n = n_regions = 0
    for mask, scores in pairs:
        mask = mask > 0
        region, found = ndimage.label(mask, structure=np.ones((3, 3)))  # 8-connected
        region = region[mask]  # from here on, only the anomalous pixels
        a_end, n_end = a + len(region), n + mask.size - len(region)
        anomalous[a:a_end], normal[n:n_end] = scores[mask], scores[~mask]
        weights[a:a_end] = 1 / np.bincount(region)[region]
        a, n, n_regions = a_end, n_end, n_regions + found
    weights /= max(n_regions, 1)
    return anomalous, weights, normal


def _check_finite(scores: np.ndarray, name: str) -> None:
    if bad := scores.size - np.count_nonzero(np.isfinite(scores)):
        raise ValueError(f"{name}: {bad} of {scores.size} are NaN or inf")


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    # In float64 and from the first value on, so that rounding cannot give a constant class a spread.
    offset = values.astype(np.float64) - values[0]
    return float(values[0] + offset.mean()), float(offset.std())
