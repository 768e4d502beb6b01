"""Calibration: what do *held-out* normal images score?

A training image scored against a memory that holds its own patches looks too normal. So the training images are split into
folds, and each fold is scored against a memory built from the others. These scores set thresholds, colour scales and the
ensemble's normalisation; test images, and labels, never do.

Taught in notebook 05.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out normal images.

    Attributes:
        image_scores: (n,) float32.
        patch_quantiles: (1001,) float32: the 0, 0.1, … 100 % quantiles of all their patch scores.
        patch_mad: () float32: median absolute deviation of the patch scores from their median.
    """

    image_scores: Tensor
    patch_quantiles: Tensor
    patch_mad: Tensor

    @classmethod
    def of(cls, image_scores: Tensor, patch_scores: Tensor) -> Self:
        """Return the summary of (n,) image scores and (n, H, W) patch scores."""
        flat = patch_scores.flatten().sort().values
        places = torch.linspace(0, len(flat) - 1, 1001, dtype=torch.float64).round().long()
        return cls(image_scores, flat[places], torch.tensor(_mad(flat)))

    @property
    def image_median(self) -> float:
        """Median image score."""
        return float(np.median(self.image_scores))

    @property
    def image_mad(self) -> float:
        """Median absolute deviation of the image scores from their median."""
        return _mad(self.image_scores)

    @property
    def patch_median(self) -> float:
        """Median patch score."""
        return float(self.patch_quantiles[500])

    def colour_limits(self) -> tuple[float, float]:
        """Return (low, high) of the one colour scale of a category: its lower half is what normal patches score.

        It runs from the normal median to as far above the normal 99.9 % quantile as that lies above the median.
        """
        low, normal = float(self.patch_quantiles[500]), float(self.patch_quantiles[999])
        return low, low + 2 * (normal - low)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by the names under which a model file keeps them."""
        return {
            "normal_image_scores": self.image_scores,
            "normal_patch_quantiles": self.patch_quantiles,
            "normal_patch_mad": self.patch_mad.reshape(1),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self | None:
        """Return what `tensors` gave, or None if a model file has none of it."""
        if "normal_image_scores" not in tensors:
            return None
        return cls(
            tensors["normal_image_scores"], tensors["normal_patch_quantiles"], tensors["normal_patch_mad"].reshape(())
        )


def _mad(values: Tensor) -> float:
    """Median absolute deviation from the median (numpy's: torch takes the lower of two middle values)."""
    values = values.numpy()
    return float(np.median(np.abs(values - np.median(values))))


def fold_of(n: int, folds: int, generator: torch.Generator) -> Tensor:
    """Return (n,) int64: each image's fold, at random, all folds equally large but for one.

    Args:
        n: images, at least 2.
        folds: how many; n if there are fewer images.
        generator: deals them.
    """
    return (torch.arange(n) % min(folds, n))[torch.randperm(n, generator=generator)]
