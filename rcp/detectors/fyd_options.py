"""What can be chosen of Focus Your Distribution, with the teaching preset as defaults, and the paper's setting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from rcp.features import FeatureSettings
from rcp.training import TrainingOptions

ALIGNMENTS = ("none", "image", "both")


@dataclass(frozen=True)
class FocusYourDistributionOptions(TrainingOptions):
    """What can be chosen; all of it ours but the rough shape, as the paper's set-up is not published.

    Attributes:
        steps: of the fine stage, which trains the backbone and the feature-level alignment.
        batch_size: pictures a step, at least 2: the losses compare them with each other.
        learning_rate: of all new layers.
        alignment: "none", "image", or "both" for image and feature level.
        contrast: train the backbone by the dense loss; False leaves it frozen, and feature-level alignment, if there is any,
            learns by pairwise L2.
        backbone_rate: learning rate of the backbone; 0 keeps it frozen.
        angles: turns that a picture is tried in before the network aligns it; 1: none.
        coarse_steps: of the image-level alignment.
        shrink: how many times smaller the pictures of the coarse stage are.
        rotation: limit of a learned turn, in degrees.
        translation: limit of a shift, as a share of the picture's side.
        scale: limit of the change of scale: 0.1 allows 1/1.1 to 1.1 times.
        jitter: how far pictures are moved at random before image alignment learns to move them back, as a share of the limits.
        anchor: weight of the squared mean movement in a batch; small, as a batch's poses need not have mean 0.
        feature_limits: limits of feature-level movements, as a share of those above.
        dimension: channels a position that PaDiM keeps; the same as `PaDiM` draws with this seed.
        epsilon: added to the diagonal of PaDiM's covariances.
    """

    steps: int = 60
    alignment: str = "both"
    contrast: bool = True
    backbone_rate: float = 1e-4
    angles: int = 24
    coarse_steps: int = 100
    shrink: int = 2
    rotation: float = 15.0
    translation: float = 0.05
    scale: float = 0.05
    jitter: float = 0.5
    anchor: float = 0.1
    feature_limits: float = 0.2
    dimension: int = 100
    epsilon: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, got {self.alignment!r}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: pictures are compared with each other")
        if min(self.angles, self.shrink, self.dimension) < 1 or self.coarse_steps < 0:
            raise ValueError("angles, shrink and dimension must be positive, coarse_steps not negative")
        if min(self.backbone_rate, self.rotation, self.translation, self.scale, self.anchor, self.feature_limits) < 0:
            raise ValueError("backbone_rate, anchor and the limits of movements must not be negative")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is a share of the limits in [0, 1], got {self.jitter}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon}: without it few images give no covariance of full rank")

    @property
    def limits(self) -> list[float]:
        """Limits as `similarity` counts: radians, halves of the sides (twice), logarithm."""
        turn, scale = torch.tensor(self.rotation).deg2rad(), torch.tensor(self.scale).log1p()
        return [float(turn), 2 * self.translation, 2 * self.translation, float(scale)]

    @property
    def stages(self) -> tuple[int, int]:
        """Steps of the coarse and of the fine stage; 0 for one that has nothing to learn."""
        return self.coarse_steps * (self.alignment != "none"), self.steps * (self.contrast or self.alignment == "both")

    def shortened(self, steps: int) -> Self:
        """Return the same with no more than so many steps a stage, for a probe of what the whole will take."""
        return replace(self, steps=min(steps, self.steps), coarse_steps=min(steps, self.coarse_steps))


# Its rates, steps and limits are not published: these are ours, without the teaching preset's shortcuts and coarse turns.
PAPER = FocusYourDistributionOptions(steps=1000, batch_size=32, coarse_steps=1000, shrink=1, angles=1, dimension=550)
PAPER_FEATURES = FeatureSettings("wide_resnet50_2", levels=(1, 2, 3), patch_size=1)
