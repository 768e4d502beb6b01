"""Measurements of notebook 06: what an ensemble gains over its members, and over one network with several seeds.

`python -m rcp.course.ensemble_gains` measures the embedded categories and prints what stands in `ensemble_measured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from rcp import comparison, synthetic
from rcp.calibration import Calibration
from rcp.comparison import Row
from rcp.course.ensemble_measured import TABLE
from rcp.data import Category, Split, mvtec
from rcp.detectors import BankDetector, BankSettings, Ensemble, PatchCore
from rcp.evaluation import evaluate
from rcp.features import FeatureSettings, PatchExtractor, PatchFeatures
from rcp.scoring import Scores, Threshold
from rcp.timing import Stopwatch

BACKBONES = {"Lite0": "efficientnet_lite0", "Lite1": "efficientnet_lite1", "Lite2": "efficientnet_lite2"}
SHOWN = ("image_auroc", "pixel_auroc", "aupro")
ONE, BIG, SEEDS = "one backbone, one seed", "one backbone, 3 % coreset", "one backbone, mean z of three seeds"
RAW, MEAN_Z = "three backbones, raw mean", "three backbones, mean z"
SYSTEMS = (ONE, BIG, SEEDS, RAW, MEAN_Z)


class Scored:
    """A fitted detector with the test scores it gave: whoever combines several asks it, and no image is read again.

    It has what `rcp.Ensemble` and `rcp.evaluate` ask of a detector.
    """

    def __init__(self, detector: BankDetector, scores: Scores):
        self.features, self.bank, self.stopwatch = detector.features, detector.bank, Stopwatch()
        self.scores, self._detector = scores, detector

    def score(self, images: Split, *, on_error: str = "raise") -> Scores:
        """Return the scores, which are those of all test images."""
        return self.scores

    def normal_scores(self) -> Calibration:
        """Return what held-out normal images scored."""
        return self._detector.normal_scores()

    def threshold(self, false_alarm_rate: float = 0.05) -> Threshold:
        """Return the detector's limit."""
        return self._detector.threshold(false_alarm_rate)


def raw_mean(members: Sequence[Scored]) -> Scored:
    """Return a detector whose scores are the plain mean of the members': what section 2 warns of."""
    parts = [member.scores for member in members]
    image, patch = (torch.stack(column).mean(0) for column in zip(*((p.image_scores, p.patch_scores) for p in parts)))
    return Scored(members[0]._detector, replace(parts[0], image_scores=image, patch_scores=patch))


def fit_and_score(
    name: str, train: PatchFeatures, test: PatchFeatures, seed: int, extractor: PatchExtractor, bank: BankSettings | None = None
) -> Scored:
    """Return a PatchCore with its test scores.

    Args:
        name: of the backbone.
        train, test: features, of that backbone.
        seed: of the coreset and the folds.
        extractor: the backbone, loaded once for all seeds.
        bank: settings; None: the usual ones.
    """
    detector = PatchCore(name, bank=bank or BankSettings(), seed=seed)
    detector.extractor = extractor
    return Scored(detector.fit(train), detector.score(test))


def gains(category: Category, members: Mapping[tuple[str, int], Scored]) -> list[Row]:
    """Return the metrics of members alone, of seeds combined, and of backbones combined.

    Args:
        category: whose test split was scored.
        members: (backbone, seed) → its scores; every backbone with every seed.

    Returns:
        Rows of `SYSTEMS` without `BIG`; where a system has no seed of its own (three seeds combined), the number of the
        backbone stands in its place, so that a deviation is over three draws in each line.
    """
    names, seeds = (list(dict.fromkeys(key[i] for key in members)) for i in (0, 1))
    rows = []

    def add(system: str, draw: int, detector: Scored | Ensemble) -> None:
        found = evaluate(detector, category.test).metrics
        rows.append(Row(category.name, system, draw, found))

    for b, name in enumerate(names):
        for s, seed in enumerate(seeds):
            add(ONE, len(seeds) * b + s, members[name, seed])
        add(SEEDS, b, Ensemble([members[name, seed] for seed in seeds]))
    for s, seed in enumerate(seeds):
        own = [members[name, seed] for name in names]
        add(RAW, s, raw_mean(own))
        add(MEAN_Z, s, Ensemble(own))
    return rows


def measured() -> list[Row]:
    """Return the rows that were measured on all four embedded categories, three seeds, when the notebook was written."""
    rows = []
    for line in TABLE.strip().splitlines():
        category, system, draw, *values = line.split(";")
        rows.append(Row(category, SYSTEMS[int(system)], int(draw), dict(zip(SHOWN, map(float, values), strict=True))))
    return rows


def markdown(rows: Sequence[Row], caption: str) -> str:
    """Return the rows as a table, mean ± standard deviation over draws."""
    return comparison.markdown(rows, caption, SHOWN)


def mean_over_categories(system: str, metric: str = "image_auroc") -> float:
    """Return a system's mean over categories and draws in `measured`, as a share."""
    return float(np.mean([row.metrics[metric] for row in measured() if row.detector == system]))


def backbone_means() -> list[float]:
    """The mean image AUROC of each single backbone; draws 0-2 are the first one's."""
    rows = [row for row in measured() if row.detector == ONE]
    return [float(np.mean([row.metrics["image_auroc"] for row in rows if row.seed // 3 == b])) for b in range(3)]


def largest_difference(here: Sequence[Row], there: Sequence[Row]) -> float | None:
    """Return by how many points the means of two runs differ at most, over what both have measured; None if that is nothing."""
    gaps = []
    for metric in SHOWN:
        ours, theirs = comparison.summary(list(here), metric), comparison.summary(list(there), metric)
        gaps += [100 * abs(ours[key][0] - theirs[key][0]) for key in ours.keys() & theirs.keys() if key[0] != "mean"]
    return max(gaps, default=None)


def main() -> None:
    """Print the table of `ensemble_measured`: the embedded categories, seeds 0, 1, 2."""
    extractors = {name: PatchExtractor(FeatureSettings(backbone)) for name, backbone in BACKBONES.items()}
    for title in synthetic.CATEGORIES:
        category, members, big = mvtec(synthetic.cached(), title), {}, []
        for name, extractor in extractors.items():
            train, test = extractor.extract(category.train), extractor.extract(category.test)
            for seed in (0, 1, 2):
                members[name, seed] = fit_and_score(BACKBONES[name], train, test, seed, extractor)
                large = BankSettings(coreset=0.03, folds=0)
                big.append(fit_and_score(BACKBONES[name], train, test, seed, extractor, large))
        rows = gains(category, members)
        rows += [Row(title, BIG, draw, evaluate(own, category.test).metrics) for draw, own in enumerate(big)]
        for row in sorted(rows, key=lambda row: (SYSTEMS.index(row.detector), row.seed)):
            values = ";".join(f"{row.metrics[m]:.6f}" for m in SHOWN)
            print(f"{row.category};{SYSTEMS.index(row.detector)};{row.seed};{values}", flush=True)


if __name__ == "__main__":
    main()
