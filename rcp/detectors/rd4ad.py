"""RD4AD: a decoder learns to give a frozen encoder's features back; on a defect it cannot.

A student that has the teacher's form and sees the same image tends to copy it, defects and all. Here the student is turned
round. The teacher is an encoder; the student is a *decoder* that starts from the teacher's deepest knowledge and works
back to its finer maps. Between them lies a one-class *bottleneck*: it brings the levels together on a grid coarser than
each of them, so that only what is needed for normal images passes. A defect's features get lost there, the decoder paints
normal ones instead, and where the two differ is the defect.

    image → encoder E (frozen) → maps f¹, f², f³ → bottleneck → one small map φ → decoder D → maps f̂³, f̂², f̂¹
    training: Σ over levels of 1 - cos(fˡ, f̂ˡ), each map taken as one long vector
    scoring:  Σ over levels of 1 - cos(fˡ, f̂ˡ) at each position

Source: Deng & Li, *Anomaly Detection via Reverse Distillation from One-Class Embedding*, CVPR 2022 (arXiv 2201.10703).

Where we differ. The paper writes the loss as a mean over positions (Eqs 1-2), its published code takes each map as one
vector; the default is the code's, `global_cosine=False` the paper's text. The decoder upsamples bilinearly to the size
that the encoder's map has, not by learned 2×2 steps: any image size works. A 1×1 convolution per level ends the decoder
(as in ReContrast's code), since not every encoder's features are positive, as a ReLU's are. Batches are drawn anew at
every step instead of in epochs. A tenth of the good images is held out for the threshold; the paper trains on all. The
teaching preset has fewer blocks, and wider ones (`widen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.detectors.pixel import TrainedDetector
from rcp.detectors.rd4ad_network import FrozenMaps, ReverseNetwork, resized
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.scoring import pixel_maps
from rcp.training import StepRecord, TrainingOptions, drawn_from, train

BETAS = (0.5, 0.999)  # of Adam, as in the paper


@dataclass(frozen=True)
class RD4ADOptions(TrainingOptions):
    """What can be chosen; the defaults are for a laptop (*ours*), `PAPER` has the paper's values.

    Attributes:
        steps, batch_size, learning_rate, held_out, smoothing: as in `TrainingOptions`; the rate and sigma are the paper's.
        blocks: residual blocks of the decoder, a number for each level, the coarsest first.
        embedding_blocks: residual blocks of the bottleneck behind the fusion; the first halves the grid.
        squeeze: inner width of a residual block, as a share of the width that it ends with; 0.5 is WRN-50's.
        widen: how many times as wide as the encoder's maps the decoder is inside. The paper's has the encoder's widths, 1; that is
            little for a backbone like EfficientNet, whose blocks are six times as wide inside as the maps between them.
        global_cosine: a map is compared as one vector, as the published code does; False: position by position.
    """

    steps: int = 1000
    batch_size: int = 4
    learning_rate: float = 5e-3
    blocks: tuple[int, ...] = (1, 1, 1)
    embedding_blocks: int = 1
    squeeze: float = 0.25
    widen: int = 4
    global_cosine: bool = True

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "blocks", tuple(self.blocks))  # a list is what JSON makes of a tuple
        if self.widen < 1:
            raise ValueError(f"widen must be at least 1, got {self.widen}; 1 takes the encoder's widths")
        if not self.blocks or min(*self.blocks, self.embedding_blocks) < 1:
            raise ValueError(f"every part needs a block at least, got blocks {self.blocks}, embedding_blocks {self.embedding_blocks}")
        if not self.squeeze > 0:
            raise ValueError(f"squeeze must be positive, got {self.squeeze}; 0.5 halves the width inside a block")


# 200 epochs of 240 images, the mean of MVTec AD's categories, in batches of 16.
PAPER = RD4ADOptions(steps=3000, batch_size=16, blocks=(3, 4, 6), embedding_blocks=3, squeeze=0.5, widen=1)
PAPER_FEATURES = FeatureSettings("wide_resnet50_2", levels=(1, 2, 3), patch_size=1, resize=(256, 256), crop=None)


# The formulae


def position_distance(target: Tensor, output: Tensor) -> Tensor:
    """Return 1 - cosine at every position (Eq. 1).

    Args:
        target, output: (b, C, H, W).

    Returns:
        (b, H, W), in [0, 2].
    """
    return 1 - F.cosine_similarity(target, output, dim=1)


def global_distance(target: Tensor, output: Tensor) -> Tensor:
    """Return 1 - cosine of the flattened maps: every position counts by its features' length.

    Args:
        target, output: (b, C, H, W).

    Returns:
        (b,), in [0, 2].

    Source: the paper's published code; named and studied by ReContrast (arXiv 2306.02602), section 3.
    """
    return 1 - F.cosine_similarity(target.flatten(1), output.flatten(1), dim=1)


def reconstruction_loss(targets: Sequence[Tensor], outputs: Sequence[Tensor], global_cosine: bool = True) -> Tensor:
    """Return the sum over levels of the mean distance (Eq. 2).

    Args:
        targets, outputs: per level (b, C_l, H_l, W_l).
        global_cosine: a map as one vector, or position by position.

    Returns:
        ().
    """
    distance = global_distance if global_cosine else position_distance
    return sum(distance(f, g).mean() for f, g in zip(targets, outputs, strict=True))


def anomaly_map(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """Return the sum over levels of the distance at each position, on the first level's grid (Eq. 3, section 3.3).

    Args:
        targets, outputs: per level (b, C_l, H_l, W_l), the finest first.

    Returns:
        (b, H_1, W_1); coarser levels are brought there bilinearly.
    """
    maps = [position_distance(f, g)[:, None] for f, g in zip(targets, outputs, strict=True)]  # (b, 1, H_l, W_l)
    return sum(resized(m, maps[0].shape[-2:]) for m in maps)[:, 0]


# The detector


class RD4AD(TrainedDetector):
    """Reverse distillation. An image's score is the largest value of its smoothed map, as in the published code."""

    kind = "rd4ad"
    Options = RD4ADOptions
    levels = (1, 2, 3)

    network: nn.Module | None = None

    def _network(self) -> nn.Module:
        return ReverseNetwork(self.extractor.backbone.channels, self.options)

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        maps, options = FrozenMaps(self.extractor, pixels, self.limit), self.options
        with drawn_from(generator):
            network = self._network()
        self.network = network.to(self.extractor.device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(self.network.parameters(), options.learning_rate, BETAS)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            targets = maps[indices]
            return {"loss": reconstruction_loss(targets, self.network(targets), options.global_cosine)}

        return train(
            step, self.network, optimizer, images=pixels, options=options, generator=generator, identity=self._identity(),
            what="training", callbacks=self._callbacks, checkpoint=self._checkpoint,
        )  # fmt: skip

    @torch.inference_mode()
    def _score(self, values: Tensor) -> tuple[Tensor, Tensor]:
        grids = self._grids(values)  # (b, H_1, W_1)
        smooth = pixel_maps(grids, tuple(values.shape[-2:]), self.smoothing)  # (b, h, w)
        return smooth.flatten(1).amax(1), grids

    def _grids(self, values: Tensor) -> Tensor:
        """(b, H_1, W_1): how badly each position is given back."""
        maps = self.extractor.maps(values)
        return anomaly_map(maps, self.network(maps))

    @property
    def unit(self) -> str:
        return "summed cosine distance"

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        _ = self.extractor  # loaded here: below, tensors are mere shapes
        with torch.device("meta"):
            state = self._network().state_dict()
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def _is_fitted(self) -> bool:
        return self.network is not None

    def _state(self) -> dict[str, Tensor]:
        return {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}

    def _take(self, file: ModelFile) -> None:
        super()._take(file)
        with torch.device("meta"):
            network = self._network()
        expected = network.state_dict()
        for name, tensor in expected.items():
            file.check_shape(f"network.{name}", tuple(tensor.shape))
        network.load_state_dict({name: file.tensors[f"network.{name}"] for name in expected}, assign=True)
        self.network = network.to(self.extractor.device, memory_format=torch.channels_last).eval()
