"""Scoring: distances → anomaly scores, maps, thresholds.

A patch's score is its distance to the memory; an image's score is its worst patch; a map is the grid of patch scores
brought to the size of the image and smoothed. No score is squashed or scaled to 0-1 here: scores are distances.

Taught in notebooks 05 and 06. Source: ReConPatch, Eqs 9-10; Roth et al., PatchCore (arXiv 2106.08265), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import beta
from torch import Tensor

from rcp.images import Geometry
from rcp.memory import MemoryBank

REWEIGHTS = ("off", "image", "patch")


def score_images(
    features: Tensor, bank: MemoryBank, *, reweight: str = "off", neighbours: int = 9, squared: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the image scores and the patch scores of a few images (Eqs 9-10).

    Args:
        features: (n, H, W, D) patch features, in the space of the memory.
        bank: the memory.
        reweight: Eq. 10 on every "patch", or only on the "image" score, i.e. on its worst patch, or "off".
        neighbours: b of Eq. 10, at least 2; a bank with fewer rows uses all it has.
        squared: squared L2 instead of L2, as one published variant has it.

    Returns:
        (n,) image scores, the largest patch score of each image; (n, H, W) patch scores; float32, not negative, L2
        (rooted) unless `squared`.

    Source: ReConPatch, Eqs 9 and 10; PatchCore, section 3.3 (re-weighting of the image score).
    """
    if reweight not in REWEIGHTS:
        raise ValueError(f"reweight must be one of {', '.join(REWEIGHTS)}, got {reweight!r}")
    n, h, w, _ = features.shape
    queries = features.flatten(0, 2)  # (n·H·W, D)
    if reweight == "patch":
        distance, around = bank.around(queries, _bounded(neighbours, bank))
    else:
        distance = bank.nearest(queries)[0][:, 0]
    score = distance.square() if squared else distance  # Eq. 9
    if reweight == "patch":
        score = score * reweighting(distance, around)
    grids = score.view(n, h, w)
    images = image_scores(grids)
    if reweight == "image":
        worst = grids.flatten(1).argmax(1) + torch.arange(n, device=grids.device) * h * w  # (n,) positions among queries
        images = images * reweighting(*bank.around(queries[worst], _bounded(neighbours, bank)))
    return images, grids


def reweighting(distance: Tensor, around: Tensor) -> Tensor:
    """Return the factor of Eq. 10: 1 - exp(d*) / Σ exp(d'), in logarithms, as exp of a distance overflows.

    Args:
        distance: (Q,) L2 distances d* to the nearest row r*.
        around: (Q, b) L2 distances d' to the rows of N_b(r*), r* among them.

    Returns:
        (Q,) in [0, 1); 1 where b is 1, as a memory of one row has nothing to compare with.

    Source: ReConPatch, Eq. 10.
    """
    if around.shape[1] == 1:
        return torch.ones_like(distance)
    return 1 - torch.exp(distance - torch.logsumexp(around, 1)).clamp_max(1)


def _bounded(b: int, bank: MemoryBank) -> int:
    if b < 2:
        raise ValueError(f"neighbours (b of Eq. 10) must be at least 2, got {b}: with r* alone every score would be 0")
    return min(b, len(bank))


def image_scores(grids: Tensor) -> Tensor:
    """Return each image's score: the largest of its patch scores.

    Args:
        grids: (n, H, W) patch scores, before any resizing or smoothing.

    Returns:
        (n,).
    """
    return grids.flatten(1).amax(1)


def pixel_maps(
    grids: Tensor,
    size: tuple[int, int],
    sigma: float = 4.0,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """Return the patch scores as maps: brought to `size` bilinearly, then smoothed by a Gaussian.

    Both steps are linear and act on rows and columns alone, so they are one small matrix a side: M = A_h · grid · A_wᵀ.

    Args:
        grids: (n, H, W) patch scores.
        size: (height, width) of the maps in pixels.
        sigma: of the Gaussian, in pixels of the map; 0 for none. Cut at 4 sigma, reflected at the border.
        box: (top, left, bottom, right), in pixels of the map, of the region that the grids cover, if they saw only a crop;
            outside it nothing was looked at, and the nearest score at its edge stands there.

    Returns:
        (n, height, width) float32.
    """
    top, left, bottom, right = box or (0, 0, *size)
    down = _side(grids.shape[1], size[0], float(top), float(bottom), sigma, grids.device)
    across = _side(grids.shape[2], size[1], float(left), float(right), sigma, grids.device)
    return down @ grids.float() @ across.T


@lru_cache(maxsize=256)
def _side(n: int, length: int, start: float, stop: float, sigma: float, device: torch.device) -> Tensor:
    """(length, n): linear interpolation of n scores, spread over [start, stop], at the centres of `length` pixels."""
    where = (np.arange(length) + 0.5 - start) / (stop - start) * n - 0.5  # in units of the grid
    where = where.clip(0, n - 1)
    low = np.floor(where).astype(int)
    matrix = np.zeros((length, n))
    pixels = np.arange(length)
    matrix[pixels, low] = 1 - (where - low)
    matrix[pixels, np.minimum(low + 1, n - 1)] += where - low
    if sigma > 0:
        matrix = gaussian_filter1d(matrix, sigma, axis=0, mode="reflect", truncate=4.0)
    return torch.from_numpy(matrix).float().to(device)


@dataclass(frozen=True)
class Scores:
    """The scores of a set of images; `image_scores, maps = scores` unpacks the two that matter most.

    Attributes:
        image_scores: (n,) float32.
        patch_scores: (n, H, W) float32, one a patch, neither resized nor smoothed.
        indices: positions of the n images in what was asked for.
        sizes: per image (height, width) of the file in pixels.
        skipped: (path, reason) of unreadable images, with on_error="skip".
        geometry: the resize and crop that the network saw.
        smoothing: sigma of the maps' Gaussian, in pixels of the map.
        unit: what the scores count, for the axes of figures.
    """

    image_scores: Tensor
    patch_scores: Tensor
    indices: list[int]
    sizes: list[tuple[int, int]]
    skipped: list[tuple[Path, str]]
    geometry: Geometry
    smoothing: float
    unit: str = "L2 distance"

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.image_scores, self.maps))

    def __len__(self) -> int:
        return len(self.image_scores)

    @cached_property
    def maps(self) -> Tensor:
        """(n, h, w) float32: the patch scores at the size of the crop, smoothed."""
        return pixel_maps(self.patch_scores, self.geometry.output_size(*self.sizes[0]), self.smoothing)

    def original_map(self, position: int) -> Tensor:
        """Return one map at the size of the image file, (height, width); what lies outside the crop takes the edge's score.

        Args:
            position: of the image among the n.
        """
        size = self.sizes[position]
        grid = self.patch_scores[position : position + 1]
        return pixel_maps(grid, size, self.smoothing, self.geometry.crop_box(*size))[0]


def modified_z_score(scores: Tensor, median: float, mad: float) -> Tensor:
    """Return the scores in robust standard deviations above the normal median.

    Args:
        scores: any shape.
        median: of the scores of *normal* images.
        mad: their median absolute deviation from it, > 0.

    Returns:
        The same shape.

    Raises:
        ValueError: if the deviation is 0, i.e. more than half of the normal scores are equal.

    Source: ReConPatch, section 3.4: (s - median) / (1.4826 · MAD). Where we differ: MAD is the *median* absolute
    deviation, to which the constant 1.4826 belongs, although two summaries of the paper write "mean".
    """
    if not mad > 0:
        raise ValueError("the median absolute deviation of the normal scores is 0: most of them are equal")
    return (scores - median) / (1.4826 * mad)


@dataclass(frozen=True)
class Threshold:
    """A decision limit on image scores, from held-out normal images alone.

    Attributes:
        value: an image is called anomalous if its score is *above* it.
        false_alarm_rate: the rate asked for: the expected share of normal images above it is at most this.
        normals: how many held-out normal images it rests on.
        interval: 95 % interval of the rate that this very limit has, for images like those.
    """

    value: float
    false_alarm_rate: float
    normals: int
    interval: tuple[float, float]


def threshold(normal_scores: Tensor, false_alarm_rate: float = 0.05) -> Threshold:
    """Return the limit that at most this share of normal images is expected to exceed.

    With n held-out scores the limit is the ⌈(n+1)(1-rate)⌉-th smallest (split-conformal quantile). The share of future
    normals above the r-th smallest of n follows Beta(n+1-r, r): that is the interval.

    Args:
        normal_scores: (n,) image scores of normal images that were *not* in the memory that scored them.
        false_alarm_rate: in (0, 1).

    Returns:
        A `Threshold`.

    Raises:
        ValueError: if the rate is out of range, or too small for n images.

    Source: Vovk et al., *Algorithmic Learning in a Random World*, 2005, ch. 2; Clopper & Pearson, 1934.
    """
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate must lie in (0, 1), got {false_alarm_rate}")
    n = len(normal_scores)
    rank = max(1, int(np.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)))
    if n == 0 or rank > n:
        raise ValueError(
            f"{n} held-out normal images cannot support a false-alarm rate of {false_alarm_rate}: it takes at least "
            f"{int(np.ceil(1 / false_alarm_rate - 1 - 1e-9))}"
        )
    value = float(normal_scores.sort().values[rank - 1])
    low, high = beta.ppf([0.025, 0.975], n + 1 - rank, rank)
    return Threshold(value, false_alarm_rate, n, (float(low), float(high)))
