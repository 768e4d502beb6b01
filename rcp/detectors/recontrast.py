"""ReContrast: the reconstruction trains the encoder, too, and what contrastive learning knows keeps it from collapsing.

RD4AD's encoder stays as ImageNet left it, although the parts that it looks at are no natural images. Train it along with
the decoder, and it finds the easy way out: features that hardly vary are easily given back. ReContrast takes three
things from contrastive learning against that, and a fourth for the easy positions, which are most:

1. *Two views without augmentation.* An encoder that stays frozen and a copy of it that is trained see the same image. They
   share one bottleneck and one decoder; from the features of one the decoder gives back those of *the other*.
2. *Stop-gradient.* What is to be given back is a constant: the trained encoder must not move towards what is easy.
3. *Global cosine.* A level's map is compared as one vector, not position by position.
4. *Hard mining.* Positions whose distance is below mean + α·deviation get no gradient; α rises from -3 (hardly any) to 1
   (most of them) over the first tenth of the training.

The maps of both views, a level each, are summed: six for three levels.

The switches of `ReContrastOptions` take each ingredient away (an *encoder* below is the frozen or the trained one):

====================================  ==============  ==============  ========  =============  =============  ===========
line                                  frozen_encoder  second_encoder  contrast  stop_gradient  global_cosine  hard_mining
====================================  ==============  ==============  ========  =============  =============  ===========
ReContrast                            yes             yes             yes       yes            yes            yes
- without hard mining                 yes             yes             yes       yes            yes            **no**
- without global cosine               yes             yes             yes       yes            **no**         yes
- without stop-gradient               yes             yes             yes       **no**         yes            yes
- without contrast                    yes             yes             **no**    yes            yes            yes
the trained encoder alone             **no**          yes             no        yes            yes            no
- it collapses                        **no**          yes             no        **no**         yes            no
RD4AD, its code's loss                yes             **no**          no        yes            yes            no
RD4AD, its paper's loss               yes             **no**          no        yes            **no**         no
====================================  ==============  ==============  ========  =============  =============  ===========

The paper studies these ingredients; the lines are ours. RD4AD is trained here as ReContrast is, by AdamW. One model for several
categories is fitted on all their good images, `ReContrast().fit(bottle.train.paths + pill.train.paths)`, and the held-out share
is drawn over all of them; the paper's own multi-class models take 5000 steps instead of 2000.

Source: Guo et al., *ReContrast: Domain-Specific Anomaly Detection via Contrastive Reconstruction*, NeurIPS 2023 (arXiv
2306.02602); the decoder is RD4AD's (`rcp.detectors.rd4ad`).

Where we differ. The published code's trained encoder normalises by the batch's statistics, except in six categories of
MVTec AD and in multi-class models: chosen by what came out. The teaching preset keeps ImageNet's everywhere, as nothing
may be chosen by test images; `batch_statistics=True`, in `PAPER`, is the other way. The teaching preset has fewer steps,
and a larger rate for the encoder, so that rate times steps is the paper's. An image's score is the largest of the smoothed
map. Else as in `rcp.detectors.rd4ad`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from rcp.backbones import Backbone
from rcp.detectors.rd4ad import PAPER_FEATURES as RD4AD_FEATURES
from rcp.detectors.rd4ad import RD4AD, RD4ADOptions, anomaly_map, position_distance, reconstruction_loss
from rcp.detectors.rd4ad_network import FrozenMaps, ReverseNetwork
from rcp.training import StepRecord, drawn_from, train

WEIGHT_DECAY = 1e-5  # of AdamW, as in the published code
FIRST, LAST, RISE = -3.0, 1.0, 0.1  # α at the beginning and in the end; the share of the training in which it rises
PAPER_FEATURES = RD4AD_FEATURES  # the same backbone and size

View = tuple[Sequence[Tensor], Sequence[Tensor]]  # per level: the maps to give back, and what the decoder made


@dataclass(frozen=True)
class ReContrastOptions(RD4ADOptions):
    """What can be chosen; the defaults are for a laptop (*ours*), `PAPER` has the paper's values.

    Attributes:
        steps, batch_size, learning_rate, held_out, smoothing: as in `TrainingOptions`; the rate, of bottleneck and decoder,
            is the paper's.
        blocks, embedding_blocks, squeeze, widen, global_cosine: as in `RD4ADOptions`.
        encoder_rate: learning rate of the encoder that is trained.
        frozen_encoder: there is the frozen encoder.
        second_encoder: there is the encoder that is trained.
        contrast: from one encoder's features the other's are given back; False: each encoder's from its own.
        stop_gradient: what is to be given back gets no gradient.
        hard_mining: easy positions get no gradient.
        batch_statistics: the trained encoder's batch normalisation uses the batch's statistics, not ImageNet's.
    """

    steps: int = 250
    learning_rate: float = 2e-3
    encoder_rate: float = 8e-5
    frozen_encoder: bool = True
    second_encoder: bool = True
    contrast: bool = True
    stop_gradient: bool = True
    hard_mining: bool = True
    batch_statistics: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.encoder_rate > 0:
            raise ValueError(f"encoder_rate must be positive, got {self.encoder_rate}; to train none: second_encoder=False")
        if not (self.frozen_encoder or self.second_encoder):
            raise ValueError("without frozen_encoder and second_encoder there is nothing to give back: take one of them")
        if self.contrast and not (self.frozen_encoder and self.second_encoder):
            raise ValueError("contrast takes both encoders: with one of them alone say contrast=False")
        if not self.second_encoder and not self.stop_gradient:
            raise ValueError("without a second encoder there is no gradient to stop: stop_gradient=False would do nothing")
        if not self.second_encoder and self.batch_statistics:
            raise ValueError("without a second encoder no statistics are learned: batch_statistics=True would do nothing")


PAPER = ReContrastOptions(
    steps=2000, batch_size=16, encoder_rate=1e-5, blocks=(3, 4, 6), embedding_blocks=3, squeeze=0.5, widen=1, batch_statistics=True
)


# The formulae


def mining_threshold(number: int, steps: int) -> float:
    """Return α at a step: from -3 up to 1 over the first tenth of the training, then 1.

    Args:
        number: of the step, from 0.
        steps: of the whole training, positive.
    """
    return min(FIRST + (LAST - FIRST) * number / (RISE * steps), LAST)


def hard_positions(target: Tensor, output: Tensor, alpha: float) -> Tensor:
    """Return where the distance is not below mean + α·deviation, both of all positions of the batch: (b, H, W) bool.

    Args:
        target, output: (b, C, H, W) of one level.
        alpha: α.
    """
    distance = position_distance(target.detach(), output.detach())
    return distance >= distance.mean() + alpha * distance.std()


def mined(output: Tensor, hard: Tensor) -> Tensor:
    """Return the same numbers; a gradient comes back only at the hard positions: (b, C, H, W), (b, H, W) bool → (b, C, H, W)."""
    return torch.where(hard[:, None], output, output.detach())


def recontrast_loss(views: Sequence[View], options: ReContrastOptions, alpha: float) -> Tensor:
    """Return the mean over the views of RD4AD's loss, with what the switches ask for.

    Args:
        views: per view (targets, outputs), each per level (b, C_l, H_l, W_l).
        options: `stop_gradient`, `hard_mining` and `global_cosine`.
        alpha: α of the hard mining.
    """
    losses = []
    for targets, outputs in views:
        if options.hard_mining:
            outputs = [mined(g, hard_positions(f, g, alpha)) for f, g in zip(targets, outputs, strict=True)]
        if options.stop_gradient:
            targets = [f.detach() for f in targets]
        losses.append(reconstruction_loss(targets, outputs, options.global_cosine))
    return sum(losses) / len(losses)


# The network


class TwoEncoders(nn.Module):
    """The trained encoder, and the bottleneck and decoder that it shares with the frozen one."""

    def __init__(self, backbone: Backbone, options: ReContrastOptions):
        """Copy the encoder, draw the rest; the frozen encoder stays outside: its maps come in from there."""
        super().__init__()
        self.options, self.positions_first = options, backbone.channels_last
        self.encoder: nn.Module | None = None
        if options.second_encoder:  # in float32: steps as small as its own would be lost in bfloat16
            self.encoder = copy.deepcopy(backbone.model).float().requires_grad_(True)
        count = options.frozen_encoder + options.second_encoder
        self.reverse = ReverseNetwork(backbone.channels, options, heads=count)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.encoder is not None and not self.options.batch_statistics:
            self.encoder.eval()
        return self

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Return the trained encoder's maps of (b, 3, h, w) normalised images: per level (b, C_l, H_l, W_l)."""
        maps = self.encoder(x)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.positions_first else maps

    def forward(self, frozen: Sequence[Tensor] | None, x: Tensor | None) -> list[View]:
        """Return the views: one an encoder, each seen by that encoder.

        Args:
            frozen: the frozen encoder's maps, per level (b, C_l, H_l, W_l); None if there is none.
            x: (b, 3, h, w) normalised images for the trained encoder; None if there is none.

        Returns:
            Per view (targets, outputs).
        """
        seen = [frozen] if self.options.frozen_encoder else []
        if self.encoder is not None:
            seen.append(self.encoded(x))
        joined = [torch.cat(level) for level in zip(*seen, strict=True)]  # (views·b, C_l, H_l, W_l)
        decoded = [level.chunk(len(seen)) for level in self.reverse.decoded(joined)]
        views = []
        for i in range(len(seen)):
            target = 1 - i if self.options.contrast else i  # the other encoder, or the same
            # Each encoder that is given back has a last layer of its own, as in the published code.
            views.append((seen[target], self.reverse.ended([level[i] for level in decoded], target)))
        return views


# The detector


class ReContrast(RD4AD):
    """Contrastive reconstruction; fitted state, saving and image scores are those of `RD4AD`."""

    kind = "recontrast"
    Options = ReContrastOptions

    def _network(self) -> nn.Module:
        return TwoEncoders(self.extractor.backbone, self.options)

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        options = self.options
        maps = FrozenMaps(self.extractor, pixels, self.limit) if options.frozen_encoder else None
        with drawn_from(generator):
            network = self._network()
        self.network = network.to(self.extractor.device, memory_format=torch.channels_last)
        groups = [{"params": self.network.reverse.parameters()}]
        if options.second_encoder:
            groups.append({"params": self.network.encoder.parameters(), "lr": options.encoder_rate})
        optimizer = torch.optim.AdamW(groups, options.learning_rate, weight_decay=WEIGHT_DECAY)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            frozen = maps[indices] if options.frozen_encoder else None
            x = self.extractor.normalised(pixels[indices]) if options.second_encoder else None
            return {"loss": recontrast_loss(self.network(frozen, x), options, mining_threshold(number, options.steps))}

        return train(
            step, self.network, optimizer, images=pixels, options=options, generator=generator, identity=self._identity(),
            what="training", callbacks=self._callbacks, checkpoint=self._checkpoint,
        )  # fmt: skip

    def _grids(self, values: Tensor) -> Tensor:
        frozen = self.extractor.maps(values) if self.options.frozen_encoder else None
        x = self.extractor.normalised(values) if self.options.second_encoder else None
        return sum(anomaly_map(targets, outputs) for targets, outputs in self.network(frozen, x))  # (b, H_1, W_1)
