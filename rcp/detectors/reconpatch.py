"""ReConPatch: PatchCore on features that were trained, without labels, to keep apart what the backbone keeps apart.

A linear layer f is trained on the patch features of the good images with the relaxed contrastive loss; the memory is the
coreset of f(p), and everything after that is PatchCore's. `TrainSettings(epochs=0)` is the *untrained* f, the control that
every claim about the training has to beat.

Source: Hyun et al., *ReConPatch: Contrastive Patch Representation Learning for Industrial Anomaly Detection*, WACV 2024
(arXiv 2305.16713).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from rcp.detectors.bank import BankDetector, BankSettings
from rcp.features import FeatureSettings, Images, PatchFeatures
from rcp.head import Callback, EpochRecord, TrainSettings, train_head
from rcp.modelfile import ModelFile
from rcp.store import MemoryLimit


class ReConPatch(BankDetector):
    """ReConPatch; its history says how the training went."""

    kind = "reconpatch"
    _run_class = None  # of `train_head`: a training that differs in one place has another (`rcp.ports`)

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        training: TrainSettings = TrainSettings(),
        bank: BankSettings = BankSettings(),
        reweight: str = "patch",
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, or `FeatureSettings` for all there is to choose.
            training: `TrainSettings`; epochs=0 leaves f untrained.
            bank: `BankSettings`: coreset, re-weighting neighbours, smoothing, calibration.
            reweight: Eq. 10 on every "patch" as the paper has it, on the "image" score only, or "off".
            seed: of f's weights, the batches, the coreset's projection and start, and the calibration's folds.
            device: "auto", or torch's name of one.
            limit: a bound on memory; features beyond it wait in a mapped file.
        """
        features = FeatureSettings(backbone) if isinstance(backbone, str) else backbone
        super().__init__(
            features, bank, reweight=reweight, squared=False, seed=seed, device=device, limit=limit
        )
        self.training = training
        self.history: list[EpochRecord] = []
        self.weight: Tensor | None = None  # (dimension, C): f, all that is left of the head after training
        self._callbacks: Sequence[Callback] = ()
        self._checkpoint: str | Path | None = None

    def fit(
        self,
        images: Images | PatchFeatures,
        *,
        on_error: str = "raise",
        callbacks: Sequence[Callback] = (),
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Train f on good images and fill the memory with the coreset of f(p).

        Args:
            images: good images (a split, or paths), or their `PatchFeatures` where several detectors share them.
            on_error: "raise", or "skip" to leave unreadable files out.
            callbacks: called before the first step and after every epoch with a `rcp.head.EpochEnd`, for plots.
            checkpoint: a file that is written after every epoch, and from which a killed training goes on.

        Returns:
            The detector itself; Ctrl-C during the training keeps the last full epoch and goes on from there.

        Raises:
            ValueError: if there are no images, or the features or the checkpoint were made with other settings.
            ImageError: for a file that cannot be read.
        """
        self._callbacks, self._checkpoint = callbacks, checkpoint
        return super().fit(images, on_error=on_error)

    def _learn(self, features: PatchFeatures) -> None:
        _, h, w, _ = features.values.shape
        head, self.history = train_head(
            features.rows,
            self.training,
            seed=self.seed,
            patches_per_image=h * w,
            device=self.extractor.device,
            callbacks=self._callbacks,
            checkpoint=self._checkpoint,
            run_class=self._run_class,
        )
        self.weight = head.f.weight.detach()

    @property
    def finished(self) -> bool:
        """Whether all epochs were run: Ctrl-C may have cut the training short."""
        return len(self.history) >= self.training.epochs

    @torch.inference_mode()
    def embed(self, rows: Tensor) -> Tensor:
        """Return f(p): (n, C) → (n, dimension)."""
        return rows.to(self.weight.device).float() @ self.weight.T  # (n, dimension) = f(p)

    @property
    def output_width(self) -> int:
        """Width of the memory's rows: that of f."""
        return self.training.dimension

    def _settings(self) -> dict:
        return {"training": asdict(self.training), "reweight": self.reweight}

    def _learned(self) -> dict:
        return {"history": [asdict(record) for record in self.history]}

    def _tensors(self) -> dict[str, Tensor]:
        return {"f": self.weight}

    def _restore(self, file: ModelFile) -> None:
        file.check_shape("f", (self.training.dimension, self.extractor.width))
        self.weight = file.tensors["f"].to(self.extractor.device)
        self.history = [EpochRecord.of(record) for record in file.settings["history"]]

    @classmethod
    def _from_settings(cls, settings: dict, features: FeatureSettings, bank: BankSettings, device: str) -> Self:
        return cls(
            features,
            training=TrainSettings(**settings["training"]),
            bank=bank,
            reweight=settings["reweight"],
            seed=settings["seed"],
            device=device,
        )
