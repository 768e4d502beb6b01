"""What PatchCore and ReConPatch share: features → (embedding) → coreset → memory → scores, and their files.

A detector is the only thing here that holds state. Everything it does is a call to a stage function of another room.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from rcp.calibration import Calibration, fold_of
from rcp.coreset import Coreset, greedy_coreset, projection_matrix
from rcp.features import FeatureSettings, Images, PatchExtractor, PatchFeatures, paths_of
from rcp.memory import SEARCHES, MemoryBank
from rcp.modelfile import ModelFile, read_model, write_model
from rcp.partitioned import partitioned_coreset
from rcp.scoring import REWEIGHTS, Scores, Threshold, score_images, threshold
from rcp.store import MemoryLimit
from rcp.timing import Stopwatch

CHUNK = 16384  # rows that are embedded at a time


@dataclass(frozen=True)
class BankSettings:
    """How the memory is made and asked.

    Attributes:
        coreset: share of the training patches that the memory keeps.
        projection: width of the random projection in which the coreset is picked; None: none.
        parts: above 1, the coreset is picked in so many parts and then among their picks (`rcp.partitioned`): not exact, for
            millions of rows.
        neighbours: b of Eq. 10 (ours: the paper does not state it; 9 as in PatchCore's re-implementations).
        search: who finds the nearest rows, one of `rcp.memory.SEARCHES`: "torch" and "faiss" exactly, the others nearly.
        smoothing: sigma of the maps' Gaussian in pixels of the map.
        folds: parts in which the training images are held out in turn to learn what normal scores look like; 0: no
            calibration, hence no threshold and no colour scale.
    """

    coreset: float = 0.01
    projection: int | None = 128
    parts: int = 1
    neighbours: int = 9
    search: str = "torch"
    smoothing: float = 4.0
    folds: int = 5

    def __post_init__(self):
        if self.search not in SEARCHES:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {self.search!r}")
        if self.neighbours < 2:
            raise ValueError(f"neighbours (b of Eq. 10) must be at least 2, got {self.neighbours}")
        if self.projection is not None and self.projection < 1:
            raise ValueError(f"projection must be positive or None, got {self.projection}")
        if self.parts < 1:
            raise ValueError(f"parts must be at least 1, got {self.parts}")
        if not 0 < self.coreset <= 1:
            raise ValueError(f"coreset must lie in (0, 1], got {self.coreset}; 0.01 keeps 1 %")
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"folds must be 0 or at least 2, got {self.folds}")
        if self.smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {self.smoothing}")


class BankDetector:
    """A memory of normal patches. Subclasses say what is learned and how rows are embedded."""

    kind: ClassVar[str]

    def __init__(
        self,
        features: FeatureSettings,
        bank: BankSettings,
        *,
        reweight: str,
        squared: bool,
        seed: int,
        device: str,
        limit: MemoryLimit,
    ):
        if reweight not in REWEIGHTS:
            raise ValueError(f"reweight must be one of {', '.join(REWEIGHTS)}, got {reweight!r}")
        self.features, self.bank = features, bank
        self.reweight, self.squared, self.seed = reweight, squared, seed
        self.device, self.limit = device, limit
        self.memory: MemoryBank | None = None
        self.coreset: Coreset | None = None
        self.calibration: Calibration | None = None
        self.fitted_on: dict = {}
        self.stopwatch = Stopwatch()

    @cached_property
    def extractor(self) -> PatchExtractor:
        """The frozen backbone, loaded when it is first needed."""
        return PatchExtractor(self.features, device=self.device)

    def fit(self, images: Images | PatchFeatures, *, on_error: str = "raise") -> Self:
        """Learn what normal looks like.

        Args:
            images: good images (a split, or paths), or their `PatchFeatures` where several detectors share them.
            on_error: "raise", or "skip" to leave unreadable files out (they are listed in `fitted_on`).

        Returns:
            The detector itself.

        Raises:
            ValueError: if there are no images, or the features were made with other settings.
            ImageError: for a file that cannot be read.
        """
        features = self._features(images, on_error)
        generator = torch.Generator().manual_seed(self.seed)
        with self.stopwatch("training"):
            self._learn(features)
        with self.stopwatch("coreset"):
            points = self._points(features, generator)
            self.coreset = self._pick(points, generator)
            self.memory = self._bank(features.rows, self.coreset.indices)
            features.release()
        with self.stopwatch("calibration"):
            self.calibration = self._calibrate(features, points, generator)
        self.fitted_on = {
            "images": len(features),
            "patches": len(features.rows),
            "grid": list(features.values.shape[1:3]),
            "memory_rows": len(self.memory),
            "covering_radius": float(self.coreset.radii[-1]),
            "skipped": [[path.as_posix(), reason] for path, reason in features.skipped],
        }
        return self

    def score(self, images: Images | PatchFeatures, *, on_error: str = "raise") -> Scores:
        """Return how anomalous images are: image scores and maps.

        Args:
            images: a split, paths, or `PatchFeatures`; files are streamed, their features are not kept.
            on_error: "raise", or "skip" to leave unreadable files out.

        Returns:
            `Scores`.

        Raises:
            RuntimeError: before `fit` or `load`.
            ValueError: if the features were made with other settings.
            ImageError: for a file that cannot be read.
        """
        memory = self._fitted()
        skipped: list[tuple[Path, str]] = []
        parts, indices, sizes = [], [], []
        with self.stopwatch("scoring"):
            for values, where, size in self._batches(images, on_error, skipped):
                embedded = self.embed(values.flatten(0, 2)).unflatten(0, values.shape[:3])  # (b, H, W, D)
                parts.append([t.cpu() for t in self._scored(embedded, memory)])
                indices += where
                sizes += size
        if not parts:
            raise ValueError(f"none of the images could be read; the first, {skipped[0][0]}: {skipped[0][1]}")
        image, grid = (torch.cat(column) for column in zip(*parts, strict=True))
        return Scores(image, grid, indices, sizes, skipped, self.features.geometry, self.bank.smoothing, self.unit)

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        return ("squared L2 distance" if self.squared else "L2 distance") + (", Eq. 10" if self.reweight == "patch" else "")

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
        self._fitted()
        if self.calibration is None:
            raise RuntimeError(
                "this detector has no held-out normal scores: fit it with folds >= 2 on at least two images"
            )
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
        tensors = {"memory": self._fitted().rows} | self._tensors()
        if self.coreset is not None:
            tensors |= {"coreset_indices": self.coreset.indices, "coreset_radii": self.coreset.radii}
        if self.calibration is not None:
            tensors |= self.calibration.tensors()
        return write_model(path, ModelFile(
            kind=self.kind,
            settings=self.settings() | self._learned(),
            backbone=self.backbone_record(),
            fitted_on=self.fitted_on | {"coreset_dimension": self.coreset.dimension if self.coreset else None},
            tensors=tensors,
        ))  # fmt: skip

    def settings(self) -> dict:
        """Return all settings as plain data, for result and model files."""
        return self._settings() | {"features": asdict(self.features), "bank": asdict(self.bank), "seed": self.seed}

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
            detector = cls._from_settings(file.settings, features, BankSettings(**file.settings["bank"]), device)
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: the settings do not fit this version of rcp ({error}): fit again") from error
        file.check_backbone(detector.backbone_record())
        file.check_width("memory", detector.output_width)
        where = detector.extractor.device
        detector.memory = MemoryBank(file.tensors["memory"].to(where), detector.bank.search)
        if "coreset_indices" in file.tensors:
            dimension = file.fitted_on.pop("coreset_dimension")
            detector.coreset = Coreset(file.tensors["coreset_indices"], file.tensors["coreset_radii"], dimension)
        detector.calibration = Calibration.from_tensors(file.tensors)
        detector.fitted_on = file.fitted_on
        detector._restore(file)
        return detector

    # What a subclass says of itself

    def _learn(self, features: PatchFeatures) -> None:
        """Train whatever the embedding needs."""

    def embed(self, rows: Tensor) -> Tensor:
        """Return patch features as the memory keeps them: (n, C) on any device → (n, D) on the extractor's device."""
        raise NotImplementedError

    @property
    def output_width(self) -> int:
        """D, the width of the memory's rows."""
        raise NotImplementedError

    def _settings(self) -> dict:
        """The subclass's own settings, for the file."""
        raise NotImplementedError

    def _learned(self) -> dict:
        """What `fit` left besides tensors, for the model's file."""
        return {}

    def _tensors(self) -> dict[str, Tensor]:
        """The subclass's own tensors, for the file."""
        return {}

    def _restore(self, file: ModelFile) -> None:
        """Take the subclass's own tensors back from the file."""

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        raise NotImplementedError

    # The stages

    def _features(self, images: Images | PatchFeatures, on_error: str) -> PatchFeatures:
        if isinstance(images, PatchFeatures):
            return self._own(images)
        with self.stopwatch("features"):
            return self.extractor.extract(images, on_error=on_error, limit=self.limit)

    def _own(self, features: PatchFeatures) -> PatchFeatures:
        if features.settings != self.features:
            raise ValueError(f"these features were made with {features.settings}, this detector needs {self.features}")
        if features.weights_sha256 != self.extractor.backbone.sha256:
            raise ValueError("these features were made with other weights of the backbone than this detector has")
        return features

    def _points(self, features: PatchFeatures, generator: torch.Generator) -> Tensor:
        """(N, d): the embedded rows in the space where the coreset is picked, made chunk by chunk."""
        rows, width, where = features.rows, self.output_width, self.extractor.device
        project = self.bank.projection is not None and self.bank.projection < width
        matrix = projection_matrix(width, self.bank.projection, generator).to(where) if project else None
        shape = (len(rows), self.bank.projection if project else width)
        on_host = where.type == "cpu"
        out = self.limit.empty(shape).values if on_host else torch.empty(shape, device=where)
        for at in range(0, len(rows), CHUNK):
            embedded = self.embed(rows[at : at + CHUNK])
            out[at : at + CHUNK] = embedded @ matrix if project else embedded
            features.release()
        return out

    def _pick(self, points: Tensor, generator: torch.Generator, among: Tensor | None = None) -> Coreset:
        ratio, parts = self.bank.coreset, self.bank.parts
        if parts == 1:
            return greedy_coreset(points, ratio, generator=generator, projection=None, among=among)
        where = None if among is None else among.nonzero().flatten().to(points.device)
        some = points if where is None else self._copied(points, where)
        found = partitioned_coreset(some, ratio, parts=parts, generator=generator, projection=None)
        return found if where is None else replace(found, indices=where.cpu()[found.indices])

    def _copied(self, points: Tensor, where: Tensor) -> Tensor:
        """points[where], under the same bound as the points."""
        if points.device.type != "cpu":
            return points[where]
        out = self.limit.empty((len(where), points.shape[1])).values
        for at in range(0, len(where), CHUNK):
            out[at : at + CHUNK] = points[where[at : at + CHUNK]]
        return out

    def _bank(self, rows: Tensor, chosen: Tensor) -> MemoryBank:
        return MemoryBank(self.embed(rows[chosen]), self.bank.search)

    def _calibrate(self, features: PatchFeatures, points: Tensor, generator: torch.Generator) -> Calibration | None:
        """Score every training image against a memory built without its fold."""
        if self.bank.folds == 0:
            return None
        if len(features) < 2:
            warnings.warn("no threshold: a single training image cannot be held out", stacklevel=3)
            return None
        n, h, w, _ = features.values.shape
        folds = fold_of(n, self.bank.folds, generator)
        images, grids = torch.empty(n), torch.empty(n, h, w)
        for fold in range(int(folds.max()) + 1):
            out = (folds == fold).nonzero().flatten()
            others = (folds != fold).repeat_interleave(h * w)  # (N,) the rows of the other images
            memory = self._bank(features.rows, self._pick(points, generator, others).indices)
            for part in out.split(self.extractor.batch_size):
                embedded = self.embed(features.values[part].flatten(0, 2)).unflatten(0, (len(part), h, w))
                images[part], grids[part] = (t.cpu() for t in self._scored(embedded, memory))
            features.release()
        return Calibration.of(images, grids)

    def _scored(self, embedded: Tensor, memory: MemoryBank) -> tuple[Tensor, Tensor]:
        return score_images(
            embedded, memory, reweight=self.reweight, neighbours=self.bank.neighbours, squared=self.squared
        )

    def _batches(
        self, images: Images | PatchFeatures, on_error: str, skipped: list[tuple[Path, str]]
    ) -> Iterator[tuple[Tensor, Sequence[int], Sequence[tuple[int, int]]]]:
        if isinstance(images, PatchFeatures):
            features, size = self._own(images), self.extractor.batch_size
            skipped += features.skipped
            for at in range(0, len(features), size):
                part = slice(at, at + size)
                yield features.values[part], features.indices[part], features.sizes[part]
        else:
            for batch in self.extractor.stream(paths_of(images), on_error=on_error, skipped=skipped):
                yield batch.values, batch.indices, batch.sizes

    def _fitted(self) -> MemoryBank:
        if self.memory is None:
            raise RuntimeError(f"this {type(self).__name__} has no memory yet: call fit(images) or load(folder) first")
        return self.memory
