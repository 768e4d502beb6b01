"""InCTRL: a generalist, trained once on other products, that tells anomalies of a new one by a few normal pictures of it.

A system that learns what a crack looks like must learn anew for every product. This one learns what a *difference* looks like:
how far is a query from K normal pictures (the prompts) of its own kind? A large residual means an anomaly for whatever product,
so the small networks that weigh residuals are trained once, on auxiliary categories with labelled anomalies (`pretrain`). For a
new product `fit` draws K prompts from the good images and computes their features: nothing is trained there.

Source: Zhu & Pang, *Toward Generalist Anomaly Detection via In-context Residual Learning with Few-shot Sample Prompts*, CVPR
2024 (arXiv 2403.06495), and its published code.

Where we differ: any backbone serves; its levels, each on its own grid, stand for the blocks 7, 9 and 11 of CLIP's image tower.
The image's embedding is the mean of the last level, at length √C, instead of CLIP's class token; the adapter has a skip
connection. The map is max-pooled to 8x8 before its head (published: 15x15). The losses take probabilities as they are (the
published code: through one more sigmoid). The number of prompts changes from step to step, so one pretraining serves all. Patch
residuals are the heat map. The text prior is off unless CLIP's weights are at hand, and its sentences are ours. From three
categories, not the paper's 15, the heads learn what these score, so they are taught gently: few steps, no batch normalisation
(the published heads have it), a low rate for the image level (`image_rate`). Mostly the largest patch residual decides; `PAPER`
is the other end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.data import Category
from rcp.detectors.inctrl_heads import PAPER, PAPER_FEATURES, Heads, InCTRLOptions, nearest_residual, residual_map
from rcp.detectors.inctrl_pretraining import Auxiliary, gather, pretrained
from rcp.detectors.inctrl_text import TextPrior, check_tower, load_prior
from rcp.detectors.pixel import Normal, PixelDetector
from rcp.features import FeatureSettings, Images
from rcp.levels import neighbourhood_average
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME, Pixels, load_pixels
from rcp.store import MemoryLimit
from rcp.training import Callback, StepRecord

__all__ = ["PAPER", "PAPER_FEATURES", "Heads", "InCTRL", "InCTRLOptions"]
OWN = ("prompts", "calibration", "smoothing")  # options of one detector; the others decide the pretraining


class InCTRL(PixelDetector):
    """A generalist: `pretrain` once on other products with labelled anomalies, `fit` on a few good images without training."""

    kind = "inctrl"
    missing = "prompts"
    levels = (2, 3, 4)
    Options = InCTRLOptions
    unused = ("merge", "pooled_width", "stored")
    to_calibrate = "fit it on more images than it takes as prompts, with calibration above 0"

    def __init__(
        self,
        backbone: str | FeatureSettings = "efficientnet_lite0",
        *,
        options: InCTRLOptions | None = None,
        auxiliary: Sequence[Category] = (),
        heads: Heads | None = None,
        seed: int = 0,
        device: str = "auto",
        limit: MemoryLimit = MemoryLimit(),
    ):
        """Choose the settings; nothing is loaded before it is needed.

        Args:
            backbone: a backbone's name, or `FeatureSettings` for all there is to choose.
            options: `InCTRLOptions`; None: the defaults, or those of `heads`.
            auxiliary: categories that the first `fit` pretrains on, if nothing was pretrained.
            heads: the `heads` of a pretrained InCTRL; several detectors may share them.
            seed: draws the prompts.
            device: "auto", or torch's name of one.
            limit: a bound on memory; pixels beyond it wait in a mapped file.
        """
        if heads is not None and options is None:
            options = heads.options
        super().__init__(backbone, options=options, seed=seed, device=device, limit=limit)
        self.auxiliary, self.heads = tuple(auxiliary), heads
        self.chosen: list[int] = []
        self.prompts: list[Tensor] | None = None  # per level (K, C_l, H_l, W_l)
        self.embeddings: Tensor | None = None  # (K, C)

    @cached_property
    def prior(self) -> TextPrior | None:
        """The text prior; None if it is not used."""
        if not self.options.text:
            return None
        prior = load_prior(self.options.clip, self.options.clip_weights, self.options.noun, self.extractor.device)
        check_tower(prior.model, self.extractor.model)
        return prior

    def pretraining(self) -> dict:
        """Return the options that decide the pretraining, as JSON has them: heads serve all detectors that have these."""
        options = {name: value for name, value in asdict(self.options).items() if name not in OWN}
        return options | {"training_prompts": list(self.options.training_prompts)}

    def pretrain(
        self, categories: Sequence[Category], *, callbacks: Sequence[Callback] = (), checkpoint: str | Path | None = None
    ) -> Self:
        """Train the heads on the labelled test images of other categories; the backbone stays as it is.

        Args:
            categories: with normal and anomalous test images; their prompts are drawn from their training images. Never those
                on which the generalist is to be judged.
            callbacks: called with a `StepRecord` some twenty times, for plots.
            checkpoint: a file that is written as often, and from which a killed pretraining goes on.

        Returns:
            The detector itself; its `heads` can be passed to others.

        Raises:
            ValueError: if there are too few training images, or no anomalous or no normal test images.
            ImageError: for a file that cannot be read.
        """
        generator = torch.Generator().manual_seed(self.options.pretrain_seed)
        with self.stopwatch("auxiliary features"):
            auxiliary = self._auxiliary(categories, generator)
        seen = [{"dataset": one.dataset, "name": one.name, "sha256": one.test.fingerprint()} for one in categories]
        record = {"options": self.pretraining(), "features": self._feature_record(), "auxiliary": seen}
        with self.stopwatch("pretraining"):
            heads = pretrained(auxiliary, self.options, generator, self.extractor.device, record, callbacks, checkpoint)
        self.heads = heads.requires_grad_(False)
        self.prompts = self.calibration = None  # those of older heads
        return self

    def _auxiliary(self, categories: Sequence[Category], generator: torch.Generator) -> Auxiliary:
        def read(images: Images) -> Tensor:
            return load_pixels(images, self.features.geometry, workers=self.extractor.workers, limit=self.limit).values

        return gather(categories, self.options, generator, read, self._features, self._text)

    def fit(self, images: Images | Pixels, *, on_error: str = "raise") -> Self:
        """Draw the prompts from good images and return the detector itself; nothing is trained.

        Args:
            images: good images (a split, or paths), or their `Pixels`: K become prompts, of the others `calibration` are scored.
            on_error: "raise", or "skip" to leave unreadable files out (they are listed in `fitted_on`).

        Raises:
            RuntimeError: if it is not pretrained.
            ValueError: if there are fewer than K images, or the heads were pretrained with other options or features.
            ImageError: for a file that cannot be read.
        """
        if self.heads is None:
            if not self.auxiliary:
                raise RuntimeError("this InCTRL is not pretrained: call pretrain(categories) first, or pass heads=")
            self.pretrain(self.auxiliary)
        for name, own in (("options", self.pretraining()), ("features", self._feature_record())):
            kept = self.heads.record[name]
            if other := [f"{key} {kept[key]} (here {value})" for key, value in own.items() if kept[key] != value]:
                raise ValueError(f"these heads were pretrained with other {name}: {', '.join(other)}")
        return super().fit(images, on_error=on_error)

    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        k = self.options.prompts
        if len(pixels) < k:
            raise ValueError(f"{k} prompts need at least as many good images, got {len(pixels)}: take fewer prompts")
        order = torch.randperm(len(pixels), generator=generator)
        self.chosen = order[:k].tolist()
        self.heads.to(self.extractor.device)
        self.prompts, self.embeddings = self._features(pixels[order[:k]])
        return self._scores_of(pixels[order[k : k + self.options.calibration].sort().values])

    @torch.no_grad()
    def _score(self, values: Tensor) -> tuple[Tensor, Tensor]:
        maps, query = self._features(values)
        residual = query.new_zeros(len(query), 1, 1)  # (b, 1, 1): no patches, one score a picture
        if self.options.patch:
            pairs = zip(maps, self.prompts, strict=True)
            residual = residual_map([nearest_residual(*pair).amin(1) for pair in pairs])  # (b, H, W)
        prompts = self.embeddings.expand(len(query), -1, -1)  # (b, K, C)
        final, image = self.heads(residual, query, prompts, self._text(values))
        return final, residual if self.options.patch else image[:, None, None]

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Per level (n, C_l, H_l, W_l), and (n, C) embeddings of length √C."""
        parts = [self.extractor.maps(part) for part in pixels.split(AT_A_TIME)]
        levels = [torch.cat(column) for column in zip(*parts, strict=True)]
        embedding = F.normalize(levels[-1].mean((2, 3)), dim=1) * levels[-1].shape[1] ** 0.5
        return [neighbourhood_average(level, self.features.patch_size).contiguous() for level in levels], embedding

    def _text(self, pixels: Tensor) -> Tensor:
        """(b,) s_T."""
        return self.prior(pixels) if self.prior is not None else torch.zeros(len(pixels), device=self.extractor.device)

    @property
    def unit(self) -> str:
        return "½ (1 - cosine)" if self.options.patch else "image score"

    @property
    def fewest(self) -> int:
        return self.options.prompts

    @property
    def finished(self) -> bool:
        steps = self.options.steps
        return self.heads is not None and (not steps or any(one.step == steps for one in self.history))

    @property
    def history(self) -> list[StepRecord]:
        return [StepRecord(**one) for one in self.heads.record["history"]] if self.heads is not None else []

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes heads and prompts take: as many for any number of good images."""
        backbone = self.extractor.backbone
        heads = Heads(backbone.channels[-1], self.options, torch.Generator())
        positions = [-(-size[0] // stride) * -(-size[1] // stride) for stride in backbone.strides]
        numbers = sum(c * n for c, n in zip(backbone.channels, positions, strict=True)) + backbone.channels[-1]
        return 4 * (self.options.prompts * numbers + sum(parameter.numel() for parameter in heads.parameters()))

    def _feature_record(self) -> dict:
        """What heads depend on of the features: not on resize and crop."""
        names = ("levels", "strides", "patch_size", "normalization", "precision")
        plain = {name: getattr(self.features, name) for name in names}
        plain |= {name: list(plain[name]) for name in ("levels", "strides") if plain[name] is not None}
        return plain | {"weights": self.extractor.backbone.sha256, "text": self.prior.sha256 if self.prior is not None else None}

    def _is_fitted(self) -> bool:
        return self.prompts is not None

    def _facts(self) -> dict:
        return {"prompts": self.chosen, "auxiliary": self.heads.record["auxiliary"]}

    def _learned(self) -> dict:
        return {"heads": self.heads.record}

    def _state(self) -> dict[str, Tensor]:
        prompts = {f"prompts.{i}": level for i, level in enumerate(self.prompts)}
        return {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()} | prompts | {"embeddings": self.embeddings}

    def _take(self, file: ModelFile) -> None:
        channels, where, k = self.extractor.backbone.channels, self.extractor.device, self.options.prompts
        heads = Heads(channels[-1], self.options, torch.Generator())
        for name, tensor in heads.state_dict().items():
            file.check_shape(f"heads.{name}", tuple(tensor.shape))
        heads.load_state_dict({name: file.tensors[f"heads.{name}"] for name in heads.state_dict()})
        heads.record = file.settings["heads"]
        for i, c in enumerate(channels):
            file.check_shape(f"prompts.{i}", (k, c, *file.tensors[f"prompts.{i}"].shape[2:]))
        file.check_shape("embeddings", (k, channels[-1]))
        self.heads = heads.to(where).eval().requires_grad_(False)
        self.prompts = [file.tensors[f"prompts.{i}"].to(where) for i in range(len(channels))]
        self.embeddings, self.chosen = file.tensors["embeddings"].to(where), file.fitted_on["prompts"]
