"""The cheap rivals of f: PatchCore on features that are reduced by a linear map without any training.

ReConPatch trains a linear layer f and then does what PatchCore does. A gain over PatchCore says nothing for the training as
long as a linear map for free does the same. So these are the fair opponents, at the same width, on the same features:

=============  =========================================================================================
method         the linear map
=============  =========================================================================================
"random"       Gaussian, N(0, 1/dimension): keeps squared distances on average; it may widen, as f may
"pca"          the leading principal components of the training patches: the least loss at this width
"whitening"    the same components, each divided by its standard deviation: what varies little counts as much
=============  =========================================================================================

A common shift of all rows changes no distance, so the mean is never subtracted from the features; only the covariance is
that of centred rows. "pca" as wide as the features is a rotation: PatchCore itself, but for rounding and the coreset's draw.

Source: Jolliffe, *Principal Component Analysis*, 2nd edition, 2002; Johnson & Lindenstrauss, 1984, for "random".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from rcp.coreset import projection_matrix
from rcp.detectors.bank import BankDetector, BankSettings
from rcp.features import FeatureSettings, PatchFeatures
from rcp.modelfile import ModelFile
from rcp.store import MemoryLimit

METHODS = ("random", "pca", "whitening")
EPS = 1e-3  # of the mean eigenvalue, added before whitening divides (ours): directions that hardly vary stay small
BLOCK = 4096  # rows whose products are added up in float32; the sums of blocks are float64


class ReducedPatchCore(BankDetector):
    """PatchCore on linearly reduced features, without training."""

    kind = "reduced"

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        method: str = "pca",
        dimension: int = 512,
        bank: BankSettings = BankSettings(),
        reweight: str = "off",
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, or `FeatureSettings` for all there is to choose.
            method: "random", "pca" or "whitening", see the module's table.
            dimension: width of the reduced features; "pca" and "whitening" are at most as wide as the features.
            bank: `BankSettings`: coreset, re-weighting neighbours, smoothing, calibration.
            reweight: Eq. 10: "off" as PatchCore's "concat", or "patch" as ReConPatch, or on the "image" score only.
            seed: of the random map, the coreset's projection and start, and the calibration's folds.
            device: "auto", or torch's name of one.
            limit: a bound on memory; features beyond it wait in a mapped file.

        Raises:
            ValueError: if the method is unknown, or the dimension not positive.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if dimension < 1:
            raise ValueError(f"dimension must be positive, got {dimension}")
        features = FeatureSettings(backbone) if isinstance(backbone, str) else backbone
        super().__init__(
            features, bank, reweight=reweight, squared=False, seed=seed, device=device, limit=limit
        )
        self.method, self.dimension = method, dimension
        self.weight: Tensor | None = None  # (output_width, C): the linear map

    def _learn(self, features: PatchFeatures) -> None:
        where = self.extractor.device
        if self.method == "random":
            # From a seed of its own: the coreset's projection comes from `seed`, and must not be made of the same numbers.
            seed = torch.randint(2**31, (), generator=torch.Generator().manual_seed(self.seed))
            weight = projection_matrix(features.rows.shape[1], self.dimension, torch.Generator().manual_seed(int(seed))).T
        else:
            scatter = covariance(features.rows, device=where, release=features.release)
            weight = principal_map(scatter, self.dimension, whiten=self.method == "whitening")
        self.weight = weight.float().contiguous().to(where)

    @torch.inference_mode()
    def embed(self, rows: Tensor) -> Tensor:
        """Return the reduced rows: (n, C) → (n, output_width)."""
        return rows.to(self.weight.device).float() @ self.weight.T  # (n, output_width)

    @property
    def output_width(self) -> int:
        """Width of the memory's rows: `dimension`, but no more components than the features have numbers."""
        return self.dimension if self.method == "random" else min(self.dimension, self.extractor.width)

    def _settings(self) -> dict:
        return {"method": self.method, "dimension": self.dimension, "reweight": self.reweight}

    def _tensors(self) -> dict[str, Tensor]:
        return {"map": self.weight}

    def _restore(self, file: ModelFile) -> None:
        file.check_shape("map", (self.output_width, self.extractor.width))
        self.weight = file.tensors["map"].to(self.extractor.device)

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        return cls(
            features,
            method=settings["method"],
            dimension=settings["dimension"],
            bank=bank,
            reweight=settings["reweight"],
            seed=settings["seed"],
            device=device,
        )


@torch.no_grad()
def covariance(
    rows: Tensor, *, device: torch.device | str = "cpu", release: Callable[[], None] = lambda: None
) -> Tensor:
    """Return the covariance of the columns of `rows`, in one pass over blocks of rows.

    Args:
        rows: (N, C) floating point of any precision, N >= 1, in memory or in a mapped file.
        device: where the blocks are multiplied, in float32 (float64 for float64 rows).
        release: called after every block, to let go of the pages of a mapped file.

    Returns:
        (C, C) float64 on the CPU; divided by N.

    Raises:
        ValueError: if rows is not a matrix with at least one row.
    """
    if rows.ndim != 2 or len(rows) < 1:
        raise ValueError(f"rows must be (N, C) with at least one row, got {tuple(rows.shape)}")
    n, c = rows.shape
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    # Products of rows that are nearly centred: the first block's mean takes out what would cancel in the last line.
    shift = rows[:BLOCK].double().mean(0).to(dtype).to(device)  # (C,)
    total, products = torch.zeros(c, dtype=torch.float64), torch.zeros(c, c, dtype=torch.float64)
    for at in range(0, n, BLOCK):
        block = rows[at : at + BLOCK].to(device).to(dtype) - shift  # (b, C)
        total += block.sum(0).cpu()
        products += (block.T @ block).cpu()
        release()
    mean = total / n
    return products / n - mean[:, None] * mean


def principal_map(scatter: Tensor, dimension: int, *, whiten: bool = False) -> Tensor:
    """Return the leading eigenvectors of a covariance, as rows of a linear map.

    Args:
        scatter: (C, C) covariance.
        dimension: how many, at most; there are C.
        whiten: divide each by √(its eigenvalue + 0.001 of the mean eigenvalue), so that what is mapped varies by about 1 in
            every direction that varies at all.

    Returns:
        (min(dimension, C), C) float64, largest eigenvalue first; the largest entry of every eigenvector is positive, so that
        a map does not depend on the signs that the decomposition happened to choose.

    Raises:
        ValueError: if whitening meets rows that are all equal.
    """
    values, vectors = torch.linalg.eigh(scatter.double().cpu())  # ascending; columns
    values, vectors = values.flip(0)[:dimension].clamp_min(0), vectors.flip(1).T[:dimension]  # (D,), (D, C)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))  # (D, 1)
    vectors = vectors * largest.sign()
    if not whiten:
        return vectors
    mean = scatter.diagonal().double().mean().cpu()  # of all C eigenvalues
    if not mean > 0:
        raise ValueError("whitening needs training patches that differ, but all are equal: use method 'pca' or 'random'")
    return vectors / (values + EPS * mean).sqrt()[:, None]
