"""PaDiM: at every position of the image a Gaussian of its own, and the Mahalanobis distance to it.

Parts lie where they always lie. So what is normal may be asked position by position: over the good images, the features at
one position have a mean and a covariance. The covariance knows which channels move together, and so a feature is odd that has
ordinary numbers in an unusual combination. Nothing is searched: a test image costs one small triangular system a position.

    M(x) = √((x - μ)ᵀ Σ⁻¹ (x - μ)),    Σ = Σₖ (xₖ - μ)(xₖ - μ)ᵀ / (n - 1) + ε I

With fewer images than channels the sum has no full rank: ε I alone makes Σ invertible. To keep d² numbers a position small,
d channels are drawn at random, once, by the seed; principal components are the alternative.

Source: Defard et al., *PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization*, ICPR 2020
workshops (arXiv 2011.08785).

Where we differ: coarser levels are brought to the finest grid bilinearly (the paper repeats the nearest), and so are maps
(the paper: bicubically). An image's score is the largest of its distances before smoothing, as the paper's text has it;
published re-implementations take it after. Σ is kept as its Cholesky factor, in float32 (125 MB for 56x56 positions and d = 100,
3.8 GB for the paper's 550); it is computed, and used, in float64, a block of positions at a time.
What a held-out normal image scores is known exactly, without fitting again (`leave_one_out`); principal components alone have
seen it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rcp.detectors.gaussians import fit_gaussians, leave_one_out, mahalanobis
from rcp.detectors.pixel import Normal, PixelDetector
from rcp.detectors.reduced import covariance, principal_map
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME
from rcp.scoring import image_scores
from rcp.store import Store

REDUCTIONS = ("random", "pca")


@dataclass(frozen=True)
class PaDiMOptions:
    """What can be chosen. Defaults: the paper's for its small network.

    Attributes:
        dimension: d, channels a position; no more than the features have.
        reduction: how d of them are got: "random" channels, drawn by the seed; or "pca", the leading principal components of
            the features of all positions.
        epsilon: ε, added to the diagonal of every covariance.
        smoothing: sigma of the maps' Gaussian, in pixels of the map.
    """

    dimension: int = 100
    reduction: str = "random"
    epsilon: float = 0.01
    smoothing: float = 4.0

    def __post_init__(self):
        if self.dimension < 1:
            raise ValueError(f"dimension must be positive, got {self.dimension}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}: without it few images give no covariance of full rank")
        if self.smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {self.smoothing}")


PAPER = PaDiMOptions(dimension=550)  # with the features below: 550 of their 1792 channels
PAPER_FEATURES = FeatureSettings("wide_resnet50_2", levels=(1, 2, 3), patch_size=1)


def reduced(features: Tensor, chosen: Tensor) -> Tensor:
    """Return the features with fewer channels.

    Args:
        features: (..., C).
        chosen: (d,) int64, channels to keep; or (d, C), a linear map.

    Returns:
        (..., d).
    """
    return features[..., chosen] if chosen.ndim == 1 else features @ chosen.T


class PaDiM(PixelDetector):
    """A Gaussian a position, without training."""

    kind = "padim"
    Options = PaDiMOptions
    levels = (1, 2, 3)
    missing = "Gaussians"
    unused = ()
    to_calibrate = "fit it on at least three images: each is scored by the Gaussians of the others"

    chosen: Tensor | None = None  # (d,) channels, or (d, C): how channels are reduced
    mean: Tensor | None = None  # (H, W, d)
    factor: Tensor | None = None  # (H, W, d, d)

    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        if len(pixels) < 2:
            raise ValueError("PaDiM needs at least 2 good images: one has no covariance")
        rows = self._rows(pixels, generator)
        n, h, w, d = rows.values.shape
        flat = rows.values.flatten(1, 2)  # (n, P, d)
        mean, factor = fit_gaussians(flat, self.options.epsilon, limit=self.limit, device=self._where)
        self.mean, self.factor = mean.view(h, w, d).to(self._where), factor.view(h, w, d, d).to(self._where)
        if n < 3:
            return None
        grids = leave_one_out(flat, self.options.epsilon, device=self._where).view(n, h, w)
        return image_scores(grids), grids

    def _rows(self, pixels: Tensor, generator: torch.Generator) -> Store:
        """Choose how channels are reduced; return the reduced features (n, H, W, d) of all images."""
        n, parts, where = len(pixels), pixels.split(AT_A_TIME), self.extractor.device
        if self.options.reduction == "random":
            self.chosen = torch.randperm(self.extractor.width, generator=generator)[: self._width].sort().values.to(where)
            return self._collected(n, (self._features(part) for part in parts))
        whole = self._collected(n, (self.extractor.patches(part) for part in parts))
        scatter = covariance(whole.values.flatten(0, 2), device=where, release=whole.release)
        self.chosen = principal_map(scatter, self._width).float().to(where)
        return self._collected(n, (reduced(part.to(where).float(), self.chosen) for part in whole.values.split(AT_A_TIME)))

    @torch.inference_mode()
    def _score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self._features(pixels)  # (b, H, W, d)
        if features.shape[1:3] != self.mean.shape[:2]:
            found, known = ("{}x{}".format(*shape) for shape in (features.shape[1:3], self.mean.shape[:2]))
            raise ValueError(f"these images have {found} positions, the Gaussians {known}: PaDiM needs images of one size")
        rows = features.flatten(1, 2).to(self._where)
        grids = mahalanobis(rows, self.mean.flatten(0, 1), self.factor.flatten(0, 1)).view(features.shape[:3])
        return image_scores(grids), grids

    def _features(self, pixels: Tensor) -> Tensor:
        """(b, H, W, d) float32 on the extractor's device."""
        return reduced(self.extractor.patches(pixels).float(), self.chosen)

    def _collected(self, n: int, parts: Iterable[Tensor]) -> Store:
        """All features of n images, in memory or in a mapped file."""
        store, at = None, 0
        for part in parts:
            if store is None:
                store = self.limit.empty((n, *part.shape[1:]), part.dtype)
            store.values[at : at + len(part)] = part
            at += len(part)
        return store

    @property
    def _width(self) -> int:
        return min(self.options.dimension, self.extractor.width)

    @property
    def _where(self) -> torch.device:
        """Where Gaussians are computed: Apple's MPS has no float64."""
        return self.extractor.device if self.extractor.device.type == "cuda" else torch.device("cpu")

    # What is kept

    @property
    def unit(self) -> str:
        return "Mahalanobis distance"

    def _facts(self) -> dict:
        return {"channels": self._width, "positions": prod(self.mean.shape[:2])}

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes the fitted detector holds: d + d² numbers a position, however many images there are."""
        stride, d = self.extractor.backbone.strides[0], self._width
        return -(-size[0] // stride) * -(-size[1] // stride) * (d + d * d) * 4

    def _is_fitted(self) -> bool:
        return self.factor is not None

    def _state(self) -> dict[str, Tensor]:
        return {"chosen": self.chosen, "mean": self.mean, "factor": self.factor}

    def _take(self, file: ModelFile) -> None:
        d = self._width
        file.check_shape("chosen", (d,) if self.options.reduction == "random" else (d, self.extractor.width))
        grid = tuple(file.tensors["mean"].shape[:2]) if "mean" in file.tensors else ()
        file.check_shape("mean", (*grid, d))
        file.check_shape("factor", (*grid, d, d))
        self.chosen = file.tensors["chosen"].to(self.extractor.device)
        self.mean, self.factor = (file.tensors[name].to(self._where) for name in ("mean", "factor"))
