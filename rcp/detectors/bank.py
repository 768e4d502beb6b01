"""What PatchCore and ReConPatch share: features → (embedding) → coreset → memory → scores, and their files.

A detector is the only thing here that holds state. Everything it does is a call to a stage function of another room. What
detectors without a memory of patches have, too, is in `rcp.detectors.face`.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from rcp.calibration import Calibration, fold_of
from rcp.coreset import Coreset, greedy_coreset, projection_matrix
from rcp.detectors.face import Batches, Detector
from rcp.features import FeatureSettings, Images, PatchFeatures, paths_of
from rcp.memory import SEARCHES, MemoryBank
from rcp.modelfile import ModelFile
from rcp.partitioned import partitioned_coreset
from rcp.scoring import REWEIGHTS, score_images
from rcp.store import MemoryLimit

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


class BankDetector(Detector):
    """A memory of normal patches. Subclasses say what is learned and how rows are embedded."""

    missing = "memory"
    to_calibrate = "fit it with folds >= 2 on at least two images"

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
        super().__init__(features, seed=seed, device=device, limit=limit, smoothing=bank.smoothing)
        self.bank, self.reweight, self.squared = bank, reweight, squared
        self.memory: MemoryBank | None = None
        self.coreset: Coreset | None = None

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

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        return ("squared L2 distance" if self.squared else "L2 distance") + (", Eq. 10" if self.reweight == "patch" else "")

    def settings(self) -> dict:
        """Return all settings as plain data, for result and model files."""
        return self._settings() | {"features": asdict(self.features), "bank": asdict(self.bank), "seed": self.seed}

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

    def _tensors(self) -> dict[str, Tensor]:
        """The subclass's own tensors, for the file."""
        return {}

    def _restore(self, file: ModelFile) -> None:
        """Take the subclass's own tensors back from the file."""

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        raise NotImplementedError

    # What the face asks for

    def _is_fitted(self) -> bool:
        return self.memory is not None

    def _score(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._scored(self.embed(values.flatten(0, 2)).unflatten(0, values.shape[:3]), self.memory)  # (b, H, W, D)

    def _state(self) -> dict[str, Tensor]:
        tensors = {"memory": self.memory.rows} | self._tensors()
        if self.coreset is not None:
            tensors |= {"coreset_indices": self.coreset.indices, "coreset_radii": self.coreset.radii}
        return tensors

    def _fitted_record(self) -> dict:
        return self.fitted_on | {"coreset_dimension": self.coreset.dimension if self.coreset else None}

    def _take(self, file: ModelFile) -> None:
        file.check_width("memory", self.output_width)
        self.memory = MemoryBank(file.tensors["memory"].to(self.extractor.device), self.bank.search)
        if "coreset_indices" in file.tensors:
            dimension = file.fitted_on.pop("coreset_dimension")
            self.coreset = Coreset(file.tensors["coreset_indices"], file.tensors["coreset_radii"], dimension)
        self._restore(file)

    @classmethod
    def _made(cls, settings: dict, features: FeatureSettings, device: str) -> Self:
        return cls._from_settings(settings, features, BankSettings(**settings["bank"]), device)

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

    def _batches(self, images: Images | PatchFeatures, on_error: str, skipped: list[tuple[Path, str]]) -> Batches:
        if isinstance(images, PatchFeatures):
            features, size = self._own(images), self.extractor.batch_size
            skipped += features.skipped
            for at in range(0, len(features), size):
                part = slice(at, at + size)
                yield features.values[part], features.indices[part], features.sizes[part]
        else:
            for batch in self.extractor.stream(paths_of(images), on_error=on_error, skipped=skipped):
                yield batch.values, batch.indices, batch.sizes
