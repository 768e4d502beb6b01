"""What the detectors that look at decoded images share; and what those of them share that train a network.

A system's own file says which levels of the backbone it takes (`levels`), which feature settings it has no use for (`unused`),
what can be chosen (`Options`), what it learns (`_fit` or `_learn`) and how it scores (`_score`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rcp.calibration import Calibration
from rcp.detectors.face import Batches, Detector
from rcp.exact import exact
from rcp.features import FeatureSettings, Images
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME, Pixels, load_pixels, stream_pixels
from rcp.store import MemoryLimit
from rcp.training import Callback, StepRecord, held_out

Normal = tuple[Tensor, Tensor] | None  # (n,) image scores and (n, H, W) patch scores of held-out normal images


class PixelDetector(Detector):
    """A detector that looks at decoded images."""

    Options: ClassVar[type]  # a frozen dataclass: all that can be chosen besides backbone and geometry
    levels: ClassVar[tuple[int, ...]]  # of the backbone, where nothing else is said
    unused: ClassVar[tuple[str, ...]] = ("patch_size", "merge", "pooled_width", "stored")  # feature settings that would do nothing

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        options: Any = None,
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, which takes the system's own levels; or `FeatureSettings` for all there is to choose.
            options: the system's `Options`; None: its defaults.
            seed: of all that is drawn.
            device: "auto", or torch's name of one.
            limit: a bound on memory; pixels beyond it wait in a mapped file.

        Raises:
            ValueError: if the options are another system's or no numbers, or a feature setting would do nothing.
        """
        options = self.Options() if options is None else options
        if type(options) is not self.Options:  # another system's may extend them, and say things that this one does not know
            raise ValueError(f"{type(self).__name__} takes {self.Options.__name__}, got {type(options).__name__}")
        options = replace(options, **exact(self.Options, {field.name: getattr(options, field.name) for field in fields(options)}))
        features = self.features_of(backbone) if isinstance(backbone, str) else backbone
        usual = self.features_of(features.backbone)
        for name in self.unused:
            if (value := getattr(features, name)) not in (getattr(usual, name), getattr(FeatureSettings, name)):
                raise ValueError(f"{type(self).__name__} has no use for {name}={value!r}: leave it out")
        super().__init__(features, seed=seed, device=device, limit=limit, smoothing=options.smoothing)
        self.options = options

    @classmethod
    def features_of(cls, backbone: str) -> FeatureSettings:
        """Return the features that a backbone's name stands for: the system's levels, each position by itself."""
        return cls.features_like(FeatureSettings(backbone))

    @classmethod
    def features_like(cls, features: FeatureSettings) -> FeatureSettings:
        """Return other detectors' features as this system takes them: its own levels, and nothing that would do nothing."""
        plain = {name: getattr(FeatureSettings, name) for name in cls.unused}
        return replace(features, **plain | {"levels": cls.levels, "patch_size": 1})

    @classmethod
    def options_of(cls, plain: Mapping[str, Any]) -> Any:
        """Return the system's `Options` from plain data, such as JSON or TOML makes: lists become tuples."""
        return cls.Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def fit(self, images: Images | Pixels, *, on_error: str = "raise") -> Self:
        """Learn what normal looks like.

        Args:
            images: good images (a split, or paths), or their `Pixels` where several detectors share them.
            on_error: "raise", or "skip" to leave unreadable files out (they are listed in `fitted_on`).

        Returns:
            The detector itself.

        Raises:
            ValueError: if there are no images, or too few for the system.
            ImageError: for a file that cannot be read.
        """
        pixels = self._pixels(images, on_error)
        generator = torch.Generator().manual_seed(self.seed)
        with self.stopwatch("training"):
            normal = self._fit(pixels.values, generator)
        self.calibration = Calibration.of(*normal) if normal is not None else None
        if normal is None:
            warnings.warn("no threshold: no normal image was held out", stacklevel=2)
        skipped = [[path.as_posix(), reason] for path, reason in pixels.skipped]
        self.fitted_on = {"images": len(pixels), "skipped": skipped} | self._facts()
        return self

    def settings(self) -> dict:
        """Return all settings as plain data, for result and model files."""
        return {"features": asdict(self.features), "options": asdict(self.options), "seed": self.seed}

    # What a system says of itself

    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        """Learn from (n, 3, h, w) uint8; return what normal images score that it had not seen, or None if there are none."""
        raise NotImplementedError

    def _facts(self) -> dict:
        """What is worth telling of the fit, for the result file."""
        return {}

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes the fitted detector holds, besides the backbone.

        Args:
            images: good images.
            size: (height, width) of a crop in pixels.
        """
        raise NotImplementedError

    # The stages

    def _pixels(self, images: Images | Pixels, on_error: str) -> Pixels:
        if not isinstance(images, Pixels):
            with self.stopwatch("images"):
                workers = self.extractor.workers
                return load_pixels(images, self.features.geometry, workers=workers, on_error=on_error, limit=self.limit)
        if images.geometry != self.features.geometry:
            raise ValueError(f"these pixels were made with {images.geometry}, this detector needs {self.features.geometry}")
        return images

    def _batches(self, images: Images | Pixels, on_error: str, skipped: list[tuple[Path, str]]) -> Batches:
        if isinstance(images, Pixels):
            pixels = self._pixels(images, on_error)
            skipped += pixels.skipped
            for at in range(0, len(pixels), AT_A_TIME):
                part = slice(at, at + AT_A_TIME)
                yield pixels.values[part], pixels.indices[part], pixels.sizes[part]
        else:
            geometry, workers = self.features.geometry, self.extractor.workers
            for batch in stream_pixels(images, geometry, workers=workers, on_error=on_error, skipped=skipped):
                yield batch.pixels, batch.indices, batch.sizes

    def _scores_of(self, pixels: Tensor) -> Normal:
        """The scores of (n, 3, h, w) uint8; None if there are none."""
        parts = [tuple(t.cpu() for t in self._score(part)) for part in pixels.split(AT_A_TIME)] if len(pixels) else []
        return tuple(torch.cat(column) for column in zip(*parts, strict=True)) if parts else None

    @classmethod
    def _made(cls, settings: dict, features: FeatureSettings, device: str) -> Self:
        return cls(features, options=cls.options_of(settings["options"]), seed=settings["seed"], device=device)

    @property
    def fewest(self) -> int:
        """How many good images a fit takes at least."""
        return 1


class TrainedDetector(PixelDetector):
    """A detector that trains a network; its history says how the training went. `Options` extends `TrainingOptions`."""

    missing = "trained network"
    to_calibrate = "fit it on at least two images, with held_out above 0"

    history: Sequence[StepRecord] = ()
    _callbacks: Sequence[Callback] = ()
    _checkpoint: str | Path | None = None

    def fit(
        self,
        images: Images | Pixels,
        *,
        on_error: str = "raise",
        callbacks: Sequence[Callback] = (),
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Train on good images; a share of them is held out, and tells what normal images score.

        Args:
            images: good images (a split, or paths), or their `Pixels` where several detectors share them.
            on_error: "raise", or "skip" to leave unreadable files out (they are listed in `fitted_on`).
            callbacks: called with a `rcp.training.StepRecord` some twenty times in the training, for plots.
            checkpoint: a file that is written as often, and from which a killed training goes on.

        Returns:
            The detector itself; Ctrl-C during the training keeps its last record and goes on from there.

        Raises:
            ValueError: if there are no images, or the checkpoint was made with other settings or images.
            ImageError: for a file that cannot be read.
        """
        self._callbacks, self._checkpoint = callbacks, checkpoint
        return super().fit(images, on_error=on_error)

    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        learned, held = held_out(len(pixels), self.options.held_out, generator)
        self.history = self._learn(pixels[learned], pixels[held], generator)
        return self._scores_of(pixels[held])

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        """Train on (n, 3, h, w) uint8 and return the history; `held` are images to set scales on, not to train on."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether the training was run to its end: Ctrl-C may have cut it short."""
        return (self.history[-1].step if self.history else 0) == sum(self.options.stages)

    def _facts(self) -> dict:
        return {"steps": self.history[-1].step if self.history else 0}

    def _identity(self) -> dict:
        """What a checkpoint has to agree with."""
        return self.settings() | {"weights": self.extractor.backbone.sha256}

    def _learned(self) -> dict:
        return {"history": [asdict(record) for record in self.history]}

    def _take(self, file: ModelFile) -> None:
        self.history = [StepRecord(**record) for record in file.settings["history"]]
