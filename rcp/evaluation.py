"""Evaluation: a fitted detector and labelled test images → metrics, under a named protocol.

Two protocols, and every result says which:

* ``crop`` — the papers': what the network saw (e.g. 224×224) is what is judged; masks go through the same resize (nearest)
  and crop as the images.
* ``original`` — masks stay as they are; each *map* is brought to the size of its mask. Pixels outside the crop count, too:
  there the nearest score at the crop's edge stands, and `unseen_share` says how many they are.

Nothing is chosen on test labels here. The F1-optimal figures are oracles; the verdict uses the threshold from held-out
normal training images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rcp import metrics, progress
from rcp.data import Split
from rcp.detectors import Detector, Ensemble
from rcp.features import PatchFeatures
from rcp.images import read_mask
from rcp.pixels import Pixels
from rcp.scoring import Scores, Threshold

PROTOCOLS = ("crop", "original")
METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")


@dataclass(frozen=True)
class Verdict:
    """What the threshold from held-out normal images does on the test images.

    Attributes:
        threshold: the limit, and the false-alarm rate that was asked for.
        false_alarms, normals: normal test images above it, of how many.
        detected, anomalies: anomalous test images above it, of how many.
    """

    threshold: Threshold
    false_alarms: int
    normals: int
    detected: int
    anomalies: int


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        metrics: image_auroc, image_ap, image_f1_max, pixel_auroc, pixel_ap, aupro (at FPR <= 0.3), as shares in [0, 1];
            nan where they are not defined (no anomalies, no masks).
        protocol: "crop" or "original": at which resolution the pixel metrics count.
        labels: (n,) 0 normal, 1 anomalous, of the images that could be read.
        defects: per image its defect's name, "good" for normal ones.
        scores: the detector's `Scores`.
        verdict: None if the detector has no calibration, or too few images for the rate.
        unseen_share: of the judged pixels, the share outside the crop.
    """

    metrics: dict[str, float]
    protocol: str
    labels: np.ndarray
    defects: list[str]
    scores: Scores
    verdict: Verdict | None
    unseen_share: float

    def __str__(self) -> str:
        values = "  ".join(f"{name} {self.metrics[name]:.4f}" for name in METRICS)
        return f"{values}  (protocol {self.protocol}, {len(self.labels)} images)"


def evaluate(
    detector: Detector | Ensemble,
    test: Split,
    *,
    features: PatchFeatures | Pixels | Sequence[PatchFeatures] | None = None,
    protocol: str = "crop",
    false_alarm_rate: float = 0.05,
    on_error: str = "raise",
) -> Result:
    """Return the metrics of a fitted detector on labelled images.

    Args:
        detector: fitted.
        test: a split with labels, and masks if pixel metrics are wanted.
        features: what the detector looks at, if it is at hand already (`PatchFeatures`, or `Pixels`; of all the split's
            images, in its order); for an ensemble one for each member.
        protocol: "crop" or "original", see the module.
        false_alarm_rate: for the verdict.
        on_error: "raise", or "skip" to leave unreadable images out (listed in `scores.skipped`).

    Returns:
        A `Result`.

    Raises:
        ValueError: if the split is empty, the protocol unknown, or the features are those of other images.
        ImageError: for an image or mask that cannot be read.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if len(test) == 0:
        raise ValueError(f"the test split of {test.root} is empty: there is nothing to evaluate")
    given = [features] if isinstance(features, (PatchFeatures, Pixels)) else features or []
    if any(one.paths != test.paths for one in given):
        raise ValueError(f"these features belong to other images than the test split of {test.root}")
    scores = detector.score(features if features is not None else test, on_error=on_error)
    samples = [test[i] for i in scores.indices]
    labels = np.array([sample.label for sample in samples])
    found = dict.fromkeys(METRICS, math.nan)
    with detector.stopwatch("metrics"):
        found |= metrics.image_metrics(labels, scores.image_scores.numpy())
        if test.has_masks:
            masks = _masks(test, scores, protocol)
            found |= metrics.pixel_metrics(masks, _maps(scores, protocol))
    unseen = _unseen_share(scores) if protocol == "original" else 0.0
    verdict = _verdict(detector, labels, scores, false_alarm_rate)
    return Result(found, protocol, labels, [sample.defect for sample in samples], scores, verdict, unseen)


def _masks(test: Split, scores: Scores, protocol: str) -> list[np.ndarray]:
    masks = []
    with progress.bar("masks", len(scores), "mask") as shown:
        for index, size in zip(scores.indices, scores.sizes, strict=True):
            sample = test[index]
            mask = np.zeros(size, bool) if sample.mask is None else read_mask(sample.mask, size)
            masks.append(scores.geometry.apply_mask(mask) if protocol == "crop" else mask)
            shown.update(1)
    return masks


def _maps(scores: Scores, protocol: str) -> np.ndarray | list[np.ndarray]:
    if protocol == "crop":
        return scores.maps.numpy()
    return [scores.original_map(i).numpy() for i in range(len(scores))]


def _unseen_share(scores: Scores) -> float:
    seen = total = 0.0
    for size in scores.sizes:
        top, left, bottom, right = scores.geometry.crop_box(*size)
        seen += (bottom - top) * (right - left)
        total += size[0] * size[1]
    return 1 - seen / total


def _verdict(detector: Detector | Ensemble, labels: np.ndarray, scores: Scores, rate: float) -> Verdict | None:
    try:
        limit = detector.threshold(rate)
    except RuntimeError:  # fitted without calibration, as wished
        return None
    except ValueError as error:  # too few normals for this rate: a result without a verdict, and a word about it
        warnings.warn(f"no verdict: {error}", stacklevel=3)
        return None
    above = scores.image_scores.numpy() > limit.value
    normal = labels == 0
    return Verdict(limit, int(above[normal].sum()), int(normal.sum()), int(above[~normal].sum()), int((~normal).sum()))


