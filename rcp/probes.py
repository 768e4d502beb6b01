"""Probes: what a linear map changes in the space of patch features.

ReConPatch's paper shows in a picture (its figure 3) that training sorts the patches by their position in the image. A picture
of a projection proves little, so here the claim is a number, in two readings:

* `position_probe`: how well does a *linear* probe read the grid position off the feature, on images it has not seen? A linear
  map like f cannot add to that: it can lose, or bring what is there within reach of a penalised probe.
* `position_share`: how much of the spread of the features *is* position? That is what distances, and hence scores and the
  paper's picture, are made of, and what a linear map can change freely.

And `effective_rank`: how many directions does the space use?

Source: Alain & Bengio, *Understanding intermediate layers using linear classifier probes*, 2016 (arXiv 1610.01644); Shrout &
Fleiss, *Intraclass correlations*, 1979; Roy & Vetterli, *The effective rank*, EUSIPCO 2007.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rcp.detectors.reduced import covariance


@dataclass(frozen=True)
class PositionProbe:
    """How well the grid position can be read off a feature, as R² on held-out images.

    Attributes:
        rows_r2: of the row number; 1: exactly, 0: no better than the mean, below 0: worse.
        columns_r2: of the column number.
    """

    rows_r2: float
    columns_r2: float

    @property
    def mean_r2(self) -> float:
        """Mean of both."""
        return (self.rows_r2 + self.columns_r2) / 2


@torch.no_grad()
def position_probe(
    values: Tensor,
    *,
    generator: torch.Generator,
    train_share: float = 0.5,
    ridge: float = 1e-3,
    rows: int = 20_000,
) -> PositionProbe:
    """Return how well a linear (ridge) probe reads a patch's grid position off its feature, on images it has not seen.

    The penalty counts in mean variances of the features: neither a rotation, nor a shift, nor a common scale of the feature
    space changes the answer.

    Args:
        values: (n, H, W, D) features of n >= 2 images on a grid of at least 2x2, floating point, on the CPU.
        generator: picks the images, and the patches, to fit on and to measure on.
        train_share: of the images, to fit on; at least one image is left on either side.
        ridge: penalty on the probe's weights, in mean variances of a feature; not negative.
        rows: most patches on either side; more are subsampled at random.

    Returns:
        A `PositionProbe`; R² = 1 - Σ(y - ŷ)² / Σ(y - mean y)², over the patches measured on.

    Raises:
        ValueError: if values, train_share, ridge or rows cannot be probed with.

    Source: linear probes, Alain & Bengio 2016; the position as the target is ours.
    """
    if values.ndim != 4 or len(values) < 2 or min(values.shape[1:3]) < 2:
        raise ValueError(f"values must be (n, H, W, D) with n, H and W at least 2, got {tuple(values.shape)}")
    if not 0 < train_share < 1:
        raise ValueError(f"train_share must lie between 0 and 1, got {train_share}")
    if not ridge >= 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    if rows < 2:
        raise ValueError(f"rows must be at least 2, got {rows}")
    n = len(values)
    order = torch.randperm(n, generator=generator)
    train = min(n - 1, max(1, round(train_share * n)))
    x, y = _sample(values, order[:train], rows, generator)
    unseen, truth = _sample(values, order[train:], rows, generator)

    mean, middle = x.mean(0), y.mean(0)  # (D,), (2,)
    x, y = x - mean, y - middle
    gram = x.T @ x / len(x)  # (D, D)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    # pinv, not solve: without a penalty, features may depend on one another linearly.
    probe = torch.linalg.pinv(gram, hermitian=True) @ (x.T @ y / len(x))  # (D, 2)
    error = (truth - middle - (unseen - mean) @ probe).square().sum(0)  # (2,)
    r2 = 1 - error / (truth - truth.mean(0)).square().sum(0)
    return PositionProbe(*r2.tolist())


def _sample(values: Tensor, images: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches of these images, (m, D) float64, and where they lie, (m, 2) float64: row and column."""
    _, h, w, _ = values.shape
    count = len(images) * h * w
    picks = torch.randperm(count, generator=generator)[:most].sort().values
    image, cell = images[picks // (h * w)], picks % (h * w)
    place = torch.stack([cell // w, cell % w], 1).double()
    return values.flatten(0, 2)[image * (h * w) + cell].double(), place


@torch.no_grad()
def position_share(values: Tensor) -> float:
    """Return which share of the features' variance is that between grid positions, not that among images at one position.

    An intraclass correlation, summed over the feature's numbers: the variance of the positions' means, less what chance adds
    to it, over the whole. Rotation, shift and a common scale of the feature space change nothing.

    Args:
        values: (n, H, W, D) features of n >= 2 images on a grid of at least two positions, floating point, on the CPU.

    Returns:
        At most 1 (all images equal); about 0, and a little below by chance, if the position says nothing; nan if all
        features are equal.

    Raises:
        ValueError: if values are not of that shape.

    Source: ICC(1) of Shrout & Fleiss 1979, from a one-way analysis of variance.
    """
    if values.ndim != 4 or len(values) < 2 or values.shape[1] * values.shape[2] < 2:
        raise ValueError(f"values must be (n, H, W, D) with two images and two positions or more, got {tuple(values.shape)}")
    n, positions = len(values), values.shape[1] * values.shape[2]
    means = torch.zeros(values.shape[1:], dtype=torch.float64)  # (H, W, D); image by image: all at once would be a copy
    for image in values:
        means += image.double()
    means /= n
    within = sum(float((image.double() - means).square().sum()) for image in values) / (positions * (n - 1))
    between = float((means - means.mean((0, 1))).square().sum()) / (positions - 1) - within / n
    whole = between + within
    return between / whole if whole > 0 else math.nan


def effective_rank(rows: Tensor) -> float:
    """Return how many directions the rows use: exp of the entropy of the covariance's eigenvalues, as shares of their sum.

    Args:
        rows: (N, D) floating point, N >= 1.

    Returns:
        Between 1 (all on one line) and D (alike in every direction), whatever the scale and rotation; 0 if all rows are equal.

    Source: Roy & Vetterli 2007, with the eigenvalues of the covariance for singular values.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance(rows)).clamp_min(0)
    total = eigenvalues.sum()
    if not total > 0:
        return 0.0
    return math.exp(float(torch.special.entr(eigenvalues / total).sum()))
