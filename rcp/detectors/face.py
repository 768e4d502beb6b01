"""The face that all detectors have: `fit`, `score`, `threshold`, `save`, `load`, and what a held-out normal image scores.

What stands here, every system uses. What a system does with the images stands in its own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rcp.calibration import Calibration
from rcp.features import FeatureSettings, Images, PatchExtractor
from rcp.modelfile import ModelFile, read_model, write_model
from rcp.scoring import Scores, Threshold, threshold
from rcp.store import MemoryLimit
from rcp.timing import Stopwatch

Batches = Iterator[tuple[Tensor, Sequence[int], Sequence[tuple[int, int]]]]  # what a detector looks at, indices, file sizes


class Detector:
    """A system that is fitted on good images and scores others."""

    kind: ClassVar[str]
    missing: ClassVar[str]  # what there is not before `fit`
    to_calibrate: ClassVar[str] = "fit it on at least two images"  # what to do to have held-out normal scores

    def __init__(self, features: FeatureSettings, *, seed: int, device: str, limit: MemoryLimit, smoothing: float):
        self.features, self.seed, self.device, self.limit, self.smoothing = features, seed, device, limit, smoothing
        self.calibration: Calibration | None = None
        self.fitted_on: dict = {}
        self.stopwatch = Stopwatch()

    @cached_property
    def extractor(self) -> PatchExtractor:
        """The frozen backbone, loaded when it is first needed."""
        return PatchExtractor(self.features, device=self.device)

    def score(self, images: Images | Any, *, on_error: str = "raise") -> Scores:
        """Return how anomalous images are: image scores and maps.

        Args:
            images: a split, paths, or what the detector looks at, prepared (`PatchFeatures` for those with a memory of patches,
                `Pixels` for the others); files are streamed and not kept.
            on_error: "raise", or "skip" to leave unreadable files out.

        Returns:
            `Scores`.

        Raises:
            RuntimeError: before `fit` or `load`.
            ValueError: if what was prepared was made with other settings.
            ImageError: for a file that cannot be read.
        """
        self._check_fitted()
        skipped: list[tuple[Path, str]] = []
        parts, indices, sizes = [], [], []
        with self.stopwatch("scoring"):
            for values, where, size in self._batches(images, on_error, skipped):
                parts.append([t.cpu() for t in self._score(values)])
                indices += where
                sizes += size
        if not parts:
            raise ValueError(f"none of the images could be read; the first, {skipped[0][0]}: {skipped[0][1]}")
        image, grid = (torch.cat(column) for column in zip(*parts, strict=True))
        return Scores(image, grid, indices, sizes, skipped, self.features.geometry, self.smoothing, self.unit)

    def threshold(self, false_alarm_rate: float = 0.05) -> Threshold:
        """Return the limit on image scores, from held-out normal images.

        Args:
            false_alarm_rate: the share of normal images that may be called anomalous.

        Returns:
            A `rcp.scoring.Threshold`.

        Raises:
            RuntimeError: if the detector is not fitted, or was fitted without calibration.
            ValueError: if there were too few images for the rate.
        """
        return threshold(self.normal_scores().image_scores, false_alarm_rate)

    def normal_scores(self) -> Calibration:
        """Return what held-out normal images scored (`rcp.calibration`); a RuntimeError if that was not measured."""
        self._check_fitted()
        if self.calibration is None:
            raise RuntimeError(f"this detector has no held-out normal scores: {self.to_calibrate}")
        return self.calibration

    def colour_limits(self) -> tuple[float, float] | None:
        """Return the ends of the one colour scale for maps, from held-out normals; None without calibration."""
        return self.calibration.colour_limits() if self.calibration else None

    def save(self, path: str | Path) -> Path:
        """Write the detector into a folder, as JSON and safetensors; the backbone's weights stay outside, by hash.

        Args:
            path: the folder; made if it is missing, an older detector in it is replaced.

        Returns:
            The folder.

        Raises:
            RuntimeError: before `fit`.
        """
        tensors, settings = self._all_tensors(), self.settings() | self._learned()
        return write_model(path, ModelFile(self.kind, settings, self.backbone_record(), self._fitted_record(), tensors))

    def nbytes(self) -> int:
        """Return the bytes of all that `fit` left, as `save` writes them; a RuntimeError before `fit`."""
        return sum(tensor.nbytes for tensor in self._all_tensors().values())

    def backbone_record(self) -> dict[str, str]:
        """Return which weights the features came from: tag, source and hash."""
        backbone = self.extractor.backbone
        return {"tag": backbone.tag, "source": backbone.source, "sha256": backbone.sha256}

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", weights: str | None = None) -> Self:
        """Return the detector that `save` wrote.

        Args:
            path: the folder.
            device: where to compute.
            weights: the backbone's local weight file, if it lies elsewhere now.

        Returns:
            The detector, ready to score.

        Raises:
            FileNotFoundError: if there is no detector in the folder.
            ValueError: if the file is damaged, of another schema or kind, or the backbone's weights differ.
            WeightsError: if the backbone's weights cannot be had.
        """
        file = read_model(path, kind=cls.kind)
        try:
            features = FeatureSettings(**file.settings["features"])
            if weights is not None:
                features = replace(features, weights=weights)
            detector = cls._made(file.settings, features, device)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: the settings do not fit this version of rcp ({error}): fit again") from error
        file.check_backbone(detector.backbone_record())
        detector._take(file)
        detector.calibration = Calibration.from_tensors(file.tensors)
        detector.fitted_on = file.fitted_on
        return detector

    # What a system says of itself

    def settings(self) -> dict:
        """Return all settings as plain data, for result and model files."""
        raise NotImplementedError

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether a training, if there is one, was run to its end: Ctrl-C may have cut it short."""
        return True

    def _check_fitted(self) -> None:
        """Raise a RuntimeError before `fit` or `load`."""
        if not self._is_fitted():
            raise RuntimeError(f"this {type(self).__name__} has no {self.missing} yet: call fit(images) or load(folder) first")

    def _all_tensors(self) -> dict[str, Tensor]:
        self._check_fitted()
        return self._state() | (self.calibration.tensors() if self.calibration is not None else {})

    def _is_fitted(self) -> bool:
        raise NotImplementedError

    def _batches(self, images: Any, on_error: str, skipped: list[tuple[Path, str]]) -> Batches:
        """What the detector looks at, a few images at a time."""
        raise NotImplementedError

    def _score(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(b,) image scores and (b, H, W) patch scores of a few images."""
        raise NotImplementedError

    def _state(self) -> dict[str, Tensor]:
        """All tensors that `fit` left, for the model's file."""
        raise NotImplementedError

    def _take(self, file: ModelFile) -> None:
        """Take back what `_state` and `_learned` gave, its shapes checked."""
        raise NotImplementedError

    def _learned(self) -> dict:
        """What `fit` left besides tensors, for the model's file."""
        return {}

    def _fitted_record(self) -> dict:
        """What the model's file tells of the images that it was fitted on."""
        return self.fitted_on

    @classmethod
    def _made(cls, settings: dict, features: FeatureSettings, device: str) -> Self:
        """The detector that a file's settings describe, not fitted."""
        raise NotImplementedError
