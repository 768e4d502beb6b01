"""InCTRL's formulae, from residuals to the score, and the small networks that weigh them; `rcp.detectors.inctrl` has the idea."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.features import FeatureSettings
from rcp.training import TrainingOptions, drawn_from

FUSIONS = ("residual", "concat", "average")
SIDE = 8  # of the map that its head sees
HIDDEN = 64  # width of the heads' hidden layer


@dataclass(frozen=True)
class InCTRLOptions:
    """What can be chosen besides the backbone.

    Attributes:
        prompts: K, the normal images that a query is compared with.
        patch: use the patch residuals (P).
        image: use the image residual (I); at least one of the two.
        text: use the text prior (T); needs `clip_weights`, and CLIP's image tower as the backbone.
        fusion: how query and prompts meet at the image level: "residual", or the ablations "concat" and "average".
        clip: name of the model in open_clip.
        clip_weights: its weights, a local file.
        noun: what the images show, for the text prior's sentences (ours: one word for all categories).
        steps, batch_size, learning_rate: of the pretraining, with Adam; as many normal as anomalous queries.
        image_rate: what the learning rate is multiplied with for adapter and image head (ours); the published code: 1.
        training_prompts: the values of K that its steps draw from (ours).
        pool: training images of each auxiliary category that its prompts are drawn from (ours); all, where there are fewer.
        gamma: of the focal loss; 0 is the cross-entropy.
        pretrain_seed: of the pretraining; the detector's `seed` draws the prompts.
        calibration: held-out normal images at most that are scored for the threshold (ours); 0 for none.
        smoothing: sigma of the maps' Gaussian, in pixels of the map (ours).
    """

    prompts: int = 8
    patch: bool = True
    image: bool = True
    text: bool = False
    fusion: str = "residual"
    clip: str = "ViT-B-16-plus-240"
    clip_weights: str | None = None
    noun: str = "object"
    steps: int = 200
    batch_size: int = 48
    learning_rate: float = 1e-3
    image_rate: float = 0.03
    training_prompts: tuple[int, ...] = (2, 4, 8)
    pool: int = 16
    gamma: float = 2.0
    pretrain_seed: int = 0
    calibration: int = 64
    smoothing: float = 4.0

    def __post_init__(self):
        object.__setattr__(self, "training_prompts", tuple(self.training_prompts))  # lists are what JSON makes of tuples
        if self.clip_weights is not None:
            object.__setattr__(self, "clip_weights", str(self.clip_weights))
        _ = self.training  # raises on steps, batch size, rate and smoothing that cannot be
        if self.prompts < 1 or not self.training_prompts or min(self.training_prompts) < 1:
            raise ValueError(f"prompts must be positive, got {self.prompts} and training_prompts {self.training_prompts}")
        if self.pool < max(self.training_prompts):
            raise ValueError(f"pool must hold the largest of training_prompts {self.training_prompts}, got {self.pool}")
        if not (self.patch or self.image):
            raise ValueError("without patch and image there is no residual: at least one of them must be used")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {self.fusion!r}")
        if self.fusion != "residual" and not self.image:
            raise ValueError(f"fusion={self.fusion!r} is about the image level, but image is False")
        if self.text != (self.clip_weights is not None):
            raise ValueError("text=True needs clip_weights=FILE with CLIP's weights, and clip_weights needs text=True")
        if not self.image_rate > 0:
            raise ValueError(f"image_rate must be positive, got {self.image_rate}; image=False leaves the image residual out")
        if self.gamma < 0 or self.calibration < 0:
            raise ValueError(f"gamma and calibration must not be negative, got {self.gamma} and {self.calibration}")

    @property
    def training(self) -> TrainingOptions:
        """What the training loop needs."""
        return TrainingOptions(self.steps, self.batch_size, self.learning_rate, smoothing=self.smoothing)


PAPER = InCTRLOptions(steps=1000, image_rate=1.0, training_prompts=(8,))  # and text=True, where CLIP's weights are at hand
PAPER_FEATURES = FeatureSettings(
    "vit_base_patch16_plus_clip_240.laion400m_e32", levels=(7, 9, 11), patch_size=1, resize=240, crop=240, normalization="model"
)  # CLIP's image tower


def nearest_residual(query: Tensor, prompts: Tensor) -> Tensor:
    """Return, per query patch and prompt image, ½ (1 - cosine) to the prompt's most similar patch.

    Args:
        query: (b, C, H, W) one level of the queries.
        prompts: (P, C, H', W') the same level of P prompt images.

    Returns:
        (b, P, H, W) in [0, 1]: 0 is the same direction. The residual to a set of prompts is the least of theirs.

    Source: section 3.3, per layer; in blocks of one query and one prompt.
    """
    rows, columns = F.normalize(query.flatten(2), dim=1), F.normalize(prompts.flatten(2), dim=1)  # (b, C, HW), (P, C, H'W')
    cosine = torch.stack([torch.stack([(one.T @ other).amax(1) for other in columns]) for one in rows])  # (b, P, HW)
    return (0.5 * (1 - cosine)).clamp(0, 1).unflatten(2, query.shape[-2:])


def residual_map(levels: Sequence[Tensor]) -> Tensor:
    """Return M, the mean over the levels' residuals, brought bilinearly to the first level's grid.

    Args:
        levels: (b, H_l, W_l) each.

    Returns:
        (b, H, W).

    Source: section 3.3.
    """
    grid = levels[0].shape[-2:]
    return torch.stack([F.interpolate(one[:, None], grid, mode="bilinear")[:, 0] for one in levels]).mean(0)


def fuse(query: Tensor, prompts: Tensor, how: str = "residual") -> Tensor:
    """Return how a query's embedding stands to its prompts' mean: (b, C), or (b, 2C) with "concat".

    Args:
        query: (b, C) adapted.
        prompts: (b, K, C) adapted.
        how: "residual": mean of the prompts - query; "concat" and "average" are the ablations.

    Source: section 3.4.
    """
    mean = prompts.mean(1)
    if how == "residual":
        return mean - query
    return torch.cat([mean, query], 1) if how == "concat" else (mean + query) / 2


def focal_loss(probability: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the mean of -(1 - p)^γ log p, where p is the probability that was given to the truth.

    Args:
        probability: (b,) of "anomalous".
        label: (b,) 0 or 1.
        gamma: how little the easy ones count.

    Source: Lin et al., *Focal Loss for Dense Object Detection* (arXiv 1708.02002), Eq. 4; section 3.6.
    """
    p = torch.where(label == 1, probability, 1 - probability).clamp(1e-6, 1)
    return (-((1 - p) ** gamma) * p.log()).mean()


class Heads(nn.Module):
    """All that is trained: adapter, image head and map head; `record` says with which options, on what, and how it went.

    The sigmoids belong to the system: the final score is the mean of a probability and a residual, both in [0, 1].
    """

    def __init__(self, width: int, options: InCTRLOptions, generator: torch.Generator):
        """Draw the weights; the image score starts at ½ for all.

        Args:
            width: C of the embedding.
            options: which of patch, image and text there are, and how the image level is fused.
            generator: on the CPU.
        """
        super().__init__()
        self.options, self.record = options, {}
        with drawn_from(generator):
            self.map_head = _classifier(SIDE * SIDE)
            if options.image:
                narrow = max(1, width // 4)
                self.adapter = nn.Sequential(nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False))
                self.image_head = _classifier(width * (2 if options.fusion == "concat" else 1))
                nn.init.zeros_(self.image_head[-1].weight)
                nn.init.zeros_(self.image_head[-1].bias)

    def forward(self, residual: Tensor, query: Tensor, prompts: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the final scores and the image scores s_I.

        Args:
            residual: (b, H, W) M, in [0, 1]; zeros without patches.
            query: (b, C) embeddings.
            prompts: (b, K, C) embeddings.
            text: (b,) s_T; zeros without text.

        Returns:
            (b,) in [0, 1]; (b,) in [0, 1], zeros without the image residual.

        Source: sections 3.4 to 3.6.
        """
        image = torch.zeros_like(text)  # (b,)
        if self.options.image:
            image = self.image_head(fuse(self.adapt(query), self.adapt(prompts), self.options.fusion)).sigmoid()[:, 0]
        holistic = residual + (image + text)[:, None, None]  # (b, H, W)
        final = self.map_head(F.adaptive_max_pool2d(holistic, SIDE).flatten(1)).sigmoid()[:, 0]  # (b,)
        if self.options.patch:
            final = (final + residual.flatten(1).amax(1)) / 2
        return final, image

    def adapt(self, embedding: Tensor) -> Tensor:
        """Return ψ of embeddings (..., C): themselves, and a small correction."""
        return embedding + self.adapter(embedding)


def _classifier(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
