"""Side by side: several detectors on the same features, over several seeds, as one table.

ReConPatch is never shown alone: beside it stand PatchCore and an *untrained* f, fitted on the very same features with the
same seeds. A difference that is smaller than its spread is no difference.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rcp.data import Category
from rcp.detectors import BankDetector, BankSettings, PatchCore, ReConPatch
from rcp.estimate import estimate
from rcp.evaluation import METRICS, evaluate
from rcp.features import FeatureSettings, PatchExtractor
from rcp.head import TrainSettings

NAMES = ("PatchCore", "untrained f", "ReConPatch")
SHOWN = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro": "AUPRO@0.3"}


@dataclass(frozen=True)
class Row:
    """One cell of the grid: a detector with a seed on a category, and its metrics as shares."""

    category: str
    detector: str
    seed: int
    metrics: dict[str, float]


def contenders(
    features: FeatureSettings, training: TrainSettings, seed: int, device: str = "auto"
) -> dict[str, BankDetector]:
    """Return the three detectors that are always compared, not fitted, all with one seed.

    Args:
        features: shared by all.
        training: of ReConPatch; the untrained f has the same with 0 epochs.
        seed: of f, the batches and the coreset.
        device: where to compute.
    """
    bank = BankSettings(folds=0)  # no thresholds here, so no calibration
    return {
        "PatchCore": PatchCore(features, bank=bank, seed=seed, device=device),
        "untrained f": ReConPatch(features, training=replace(training, epochs=0), bank=bank, seed=seed, device=device),
        "ReConPatch": ReConPatch(features, training=training, bank=bank, seed=seed, device=device),
    }


def compare(
    categories: Sequence[Category],
    *,
    features: FeatureSettings = FeatureSettings(),
    training: TrainSettings = TrainSettings(),
    seeds: Sequence[int] = (0, 1, 2),
    protocol: str = "crop",
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> list[Row]:
    """Return the metrics of the three detectors for every category and seed; features are extracted once a category.

    Args:
        categories: with labelled test splits.
        features, training: of the detectors.
        seeds: one fit each.
        protocol: see `rcp.evaluation`.
        device: where to compute.
        say: receives a prediction a category (rows, bytes, seconds) and a line a fit.

    Returns:
        One `Row` per category, seed and detector.
    """
    for category in categories:
        if len(category.test) == 0:
            raise ValueError(f"{category.name} has no test images in {category.root}: nothing can be compared")
    extractor, rows = PatchExtractor(features, device=device), []
    for category in categories:
        if say:
            longest = contenders(features, training, seeds[0], device)["ReConPatch"]
            longest.extractor = extractor
            predicted = estimate(longest, category.train, category.test)
            say(f"{category.name}: {len(seeds)} x 3 fits; features once, and for ReConPatch, the longest: {predicted}")
        train, test = extractor.extract(category.train), extractor.extract(category.test)
        for seed in seeds:
            for name, detector in contenders(features, training, seed, device).items():
                detector.extractor = extractor  # one backbone for all
                detector.fit(train)
                if isinstance(detector, ReConPatch) and len(detector.history) < detector.training.epochs:
                    raise KeyboardInterrupt  # the table must not claim epochs that were not run
                result = evaluate(detector, category.test, features=test, protocol=protocol)
                rows.append(Row(category.name, name, seed, result.metrics))
                if say:
                    say(f"{category.name}  seed {seed}  {name}: {result}")
    return rows


def summary(rows: Sequence[Row], metric: str) -> dict[tuple[str, str], tuple[float, float]]:
    """Return (category, detector) → (mean, standard deviation over seeds), and the mean over categories as "mean".

    With one seed the deviation is nan. For "mean", the metric is averaged over categories within each seed first, so its deviation is that of the average.

    Args:
        rows: from `compare`, the same seeds for every category and detector.
        metric: a key of `Row.metrics`.
    """
    names, found = sorted({row.category for row in rows}, key=[r.category for r in rows].index), {}
    for detector in dict.fromkeys(row.detector for row in rows):
        own = [row for row in rows if row.detector == detector]
        for name in names:
            found[name, detector] = _mean_std([row.metrics[metric] for row in own if row.category == name])
        by_seed: dict[int, list[float]] = {}
        for row in own:
            by_seed.setdefault(row.seed, []).append(row.metrics[metric])
        if len(names) > 1:
            found["mean", detector] = _mean_std([statistics.fmean(values) for values in by_seed.values()])
    return found


def markdown(rows: Sequence[Row], caption: str, metrics: Sequence[str] = tuple(SHOWN)) -> str:
    """Return the summary as a Markdown table in percent, under a caption that says what was measured, and how.

    Args:
        rows: from `compare`.
        caption: dataset, backbone, protocol, seeds.
        metrics: columns.
    """
    tables = {metric: summary(rows, metric) for metric in metrics}
    lines = [caption, "", "| category | detector | " + " | ".join(SHOWN.get(m, m) for m in metrics) + " |"]
    lines.append("|---|---|" + "---:|" * len(metrics))
    cells_of = tables[metrics[0]]
    order = list(dict.fromkeys(category for category, _ in cells_of))  # the detectors of a category side by side
    for category, detector in sorted(cells_of, key=lambda cell: order.index(cell[0])):
        cells = (_cell(*tables[metric][category, detector]) for metric in metrics)
        lines.append(f"| {category} | {detector} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Return one line per category, detector and seed, metrics as shares, for whoever computes on."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category", "detector", "seed", *METRICS])
    for row in rows:
        writer.writerow([row.category, row.detector, row.seed, *(f"{row.metrics[m]:.6f}" for m in METRICS)])
    return text.getvalue()


def caption(dataset: str, features: FeatureSettings, training: TrainSettings, seeds: Sequence[int], protocol: str) -> str:
    """Return the line that every table needs: dataset, backbone, protocol, seeds, training."""
    steps = f" of {training.steps} steps" if training.steps else ""
    return (
        f"{dataset}; {features.backbone}, levels {features.strides or features.levels}, resize {features.resize}, "
        f"crop {features.crop}, protocol {protocol}, coreset {100 * BankSettings().coreset:g} %; ReConPatch after "
        f"{training.epochs} epochs{steps}; "
        + (f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}")
        + ", in %."
    )


def _cell(mean: float, std: float) -> str:
    if mean != mean:
        return "–"
    return f"{100 * mean:.2f}" + ("" if std != std else f" ± {100 * std:.2f}")  # one seed has no deviation


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
