"""Measurements of notebook 11: what a detector makes of few good images.

`rcp.course.learning_measure` measures the embedded categories by these functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rcp import synthetic
from rcp.coreset import coreset_size
from rcp.course.learning_measured import CURVES
from rcp.data import Category, mvtec
from rcp.detectors import BankDetector, BankSettings, PatchCore, ReConPatch
from rcp.evaluation import evaluate
from rcp.features import FeatureSettings, PatchExtractor, PatchFeatures
from rcp.head import TrainSettings

PERCENT, EQUAL, TRAINED = "PatchCore, 1 % of the rows", "PatchCore, same number of rows", "ReConPatch (short), 1 % of the rows"
SYSTEMS = (PERCENT, EQUAL, TRAINED)
METRICS = {"image_auroc": "image AUROC", "aupro": "AUPRO@0.3"}
SHORT = TrainSettings(epochs=3, steps=16)


@dataclass(frozen=True)
class Point:
    """One fit of a learning curve.

    Attributes:
        category, system: what was fitted; systems are in `SYSTEMS`.
        images: good images that it was given.
        draw: seed of the subset and of the coreset.
        metrics: "image_auroc" and "aupro", shares.
    """

    category: str
    system: str
    images: int
    draw: int
    metrics: dict[str, float]


def sizes(n: int) -> list[int]:
    """Return 1, 2, 4, 8, …, and n itself; the last power is left out if it is nearly n."""
    return [2**i for i in range(n.bit_length()) if 2**i * 1.25 < n] + [n]


def subset(features: PatchFeatures, which: Sequence[int]) -> PatchFeatures:
    """Return the features of some of the images; nothing is extracted again.

    Args:
        features: of n images that all could be read.
        which: positions of the images, in the wished order.
    """
    which = [int(i) for i in which]
    return replace(
        features, values=features.values[which], paths=[features.paths[i] for i in which], indices=list(range(len(which))),
        sizes=[features.sizes[i] for i in which], skipped=[], store=None,
    )  # fmt: skip


def shuffled(n: int, seed: int) -> list[int]:
    """Return 0 … n-1 in a random order; its first 4 are among its first 8, so that subsets grow."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


def detector(system: str, every: PatchFeatures, images: int, seed: int, folds: int = 0) -> BankDetector:
    """Return a system's detector, not fitted.

    Args:
        system: of `SYSTEMS`.
        every: features of all training images; of their rows `EQUAL` keeps 1 %, whatever it is given (or all that there are).
        images: that it will be given.
        seed: of everything random.
        folds: of the calibration; 0: none.
    """
    ratio, per_image = 0.01, every.values.shape[1] * every.values.shape[2]
    if system == EQUAL:  # half a row more, so that rounding down gives the number
        ratio = min(1.0, (coreset_size(len(every.rows), 0.01) + 0.5) / (images * per_image))
    bank = BankSettings(coreset=ratio, folds=folds)
    if system == TRAINED:
        return ReConPatch(every.settings, training=SHORT, bank=bank, seed=seed)
    return PatchCore(every.settings, bank=bank, seed=seed)


def learning_curve(
    category: Category,
    train: PatchFeatures,
    test: PatchFeatures,
    extractor: PatchExtractor,
    *,
    system: str = PERCENT,
    counts: Sequence[int],
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Point]:
    """Return one `Point` a number of images and seed: fitted on a random subset, judged on all test images.

    Args:
        category: with a labelled test split.
        train, test: its features.
        extractor: that made them, so that no detector loads a backbone of its own.
        system: of `SYSTEMS`.
        counts: numbers of good images.
        seeds: one random order of the training images each.
    """
    points = []
    for count in counts:
        for seed in seeds:
            fitted = detector(system, train, count, seed)
            fitted.extractor = extractor
            fitted.fit(subset(train, shuffled(len(train), seed)[:count]))
            found = evaluate(fitted, category.test, features=test).metrics
            points.append(Point(category.name, system, count, seed, {name: found[name] for name in METRICS}))
    return points


def measured() -> list[Point]:
    """Return the points that were measured on all four embedded categories when the notebook was written."""
    points = []
    for line in CURVES.strip().splitlines():
        category, system, images, draw, auroc, aupro = line.split(";")
        found = {"image_auroc": float(auroc), "aupro": float(aupro)}
        points.append(Point(category, SYSTEMS[int(system)], int(images), int(draw), found))
    return points


def summary(points: Sequence[Point], metric: str = "image_auroc") -> dict[tuple[str, str], list[tuple[int, float, float]]]:
    """Return (category, system) → [(images, mean, standard deviation over draws)], in %."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for point in points:
        by_count = found.setdefault((point.category, point.system), {})
        by_count.setdefault(point.images, []).append(100 * point.metrics[metric])
    return {
        key: [(n, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for n, v in sorted(by_count.items())]
        for key, by_count in found.items()
    }


def largest_difference(here: Sequence[Point], there: Sequence[Point], metric: str = "image_auroc") -> float | None:
    """Return by how many points the means of two runs differ at most, over what both have measured; None if that is nothing."""
    ours, theirs = summary(here, metric), summary(there, metric)
    both = [[{n: m for n, m, _ in run[key]} for run in (ours, theirs)] for key in ours.keys() & theirs.keys()]
    return max((abs(a[n] - b[n]) for a, b in both for n in a.keys() & b.keys()), default=None)


def markdown(points: Sequence[Point], metric: str = "image_auroc") -> str:
    """Return a table, a line a category and system, a column a number of images: mean ± deviation in %."""
    table = summary(points, metric)
    counts = [n for n, _, _ in next(iter(table.values()))]
    lines = [f"| {METRICS[metric]}, % | good images: | " + " | ".join(map(str, counts)) + " |", "|---|---|" + "---:|" * len(counts)]
    for (category, system), cells in table.items():
        lines.append(f"| {category} | {system} | " + " | ".join(f"{m:.1f} ± {s:.1f}" for _, m, s in cells) + " |")
    return "\n".join(lines)


def embedded() -> Mapping[str, tuple[Category, PatchFeatures, PatchFeatures]]:
    """Return name → (category, training features, test features) of the embedded data, under EfficientNet-Lite0."""
    extractor, found = PatchExtractor(FeatureSettings()), {}
    for name in synthetic.CATEGORIES:
        category = mvtec(synthetic.cached(), name)
        found[name] = (category, extractor.extract(category.train), extractor.extract(category.test))
    return found
