"""Multiresolution Knowledge Distillation: a small network learns to imitate a large one on good images, and fails on others.

The source, a frozen ImageNet network, has seen everything; the cloner, a few per cent of its size, sees good images only. It
learns to give the source's activations at several critical layers, from edges to objects. Where an image is not like the
training images the two disagree. How much is the image's score; which pixels are to blame is the gradient of that
disagreement with respect to the image.

=============  ================================================================================================
gradient       what is taken
=============  ================================================================================================
"plain"        the gradient itself
"smoothgrad"   its mean over noisy copies of the image, which averages flicker away; costs as many passes as copies
"guided"       guided backpropagation: what reaches a ReLU from above with a minus is cut, in both networks
=============  ================================================================================================

Where we differ. The source is whatever backbone was chosen, so the cloner follows its strides and channels; the paper's is a
VGG-16 with all inner layers cut to 16 channels, as here. Critical layers may be linear (EfficientNet's are), so the cloner's
are linear, too, and rectified on the way to the next stage. The authors' code scales every map to [0, 1] by its own image
before the metric and leaves good images out of the pixel metric; here gradients keep their size, and all images count. It
drops the first critical layer from the image's score; here the score is the loss that was trained. It blends by 0.5 on the
value term; by default ours makes both terms equal on the untrained cloner. It averages the absolute gradients of
noisy copies, the formula the gradients. It guides the cloner's ReLUs only. It feeds colours in [0, 1], we normalised ones. Of
VGG-16 it compares what leaves the poolings; timm offers what enters them, but for the last. The opening's window is a square.
A tenth of the good images is held out for the threshold; the paper trains on all.

Source: Salehi et al., *Multiresolution Knowledge Distillation for Anomaly Detection*, CVPR 2021 (arXiv 2011.11108); Smilkov
et al., *SmoothGrad* (arXiv 1706.03825); Springenberg et al., *Striving for Simplicity* (arXiv 1412.6806) for "guided".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.detectors.mkd_map import check_guidable, guided, input_gradient, saliency, smooth_gradient
from rcp.detectors.mkd_network import Cloner
from rcp.detectors.pixel import TrainedDetector
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME
from rcp.training import StepRecord, TrainingOptions, drawn_from, train

GRADIENTS = ("plain", "smoothgrad", "guided")


@dataclass(frozen=True)
class MKDOptions(TrainingOptions):
    """What can be chosen. Besides what every training needs (a learning rate ten times the paper's: EfficientNet's activations are
    that much larger):

    Attributes:
        width: channels of the cloner's inner layers.
        direction_weight: λ, what the direction term counts beside the value term; None: as much as makes both equal on the
            untrained cloner (ours).
        gradient: "plain", "smoothgrad" or "guided", see the module's table; "guided" wants a backbone with ReLUs.
        samples: noisy copies, for "smoothgrad".
        noise: their standard deviation, as a share of the image's range of values, for "smoothgrad".
        sigma: of the Gaussian over the gradient's map, in pixels.
        opening: side, in pixels, of the square that opens the map behind the Gaussian; odd, 1 for none.
        smoothing: of the finished maps once more (0, as `sigma` did it before the opening).
    """

    steps: int = 400
    learning_rate: float = 1e-2
    smoothing: float = 0.0
    width: int = 16
    direction_weight: float | None = None
    gradient: str = "plain"
    samples: int = 8
    noise: float = 0.05
    sigma: float = 4.0
    opening: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.width < 1 or self.samples < 1:
            raise ValueError(f"width and samples must be at least 1, got {self.width} and {self.samples}")
        if self.direction_weight is not None and self.direction_weight < 0:
            raise ValueError(f"direction_weight must not be negative, got {self.direction_weight}")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, got {self.gradient!r}")
        if self.noise < 0 or self.sigma < 0:
            raise ValueError(f"noise and sigma must not be negative, got {self.noise} and {self.sigma}")
        if self.opening < 1 or self.opening % 2 == 0:
            raise ValueError(f"opening must be odd and positive, got {self.opening}; 1 is none")


PAPER = MKDOptions(steps=2400, batch_size=64, learning_rate=1e-3, samples=50)  # 600 epochs of 209 images
PAPER_FEATURES = FeatureSettings("vgg16.tv_in1k", levels=(1, 2, 3, 4), patch_size=1, resize=(128, 128), crop=None)


# --- the loss: what is trained, and an image's score ----------------------------------------------


def value_distance(source: Sequence[Tensor], cloned: Sequence[Tensor]) -> Tensor:
    """Return L_val: the mean squared difference of the activations, summed over the critical layers.

    Args:
        source: (b, C_l, H_l, W_l) a layer.
        cloned: the same shapes.

    Returns:
        (b,), not negative.

    Source: the paper's value loss; each layer is divided by its number of neurons.
    """
    return sum((s - c).square().flatten(1).mean(1) for s, c in zip(source, cloned, strict=True))


def direction_distance(source: Sequence[Tensor], cloned: Sequence[Tensor]) -> Tensor:
    """Return L_dir: 1 - cosine of the flattened activations, summed over the critical layers.

    Args and shapes as for `value_distance`; from 0 to twice the number of layers.

    Source: the paper's direction loss: activations that are equally far off in value may point elsewhere.
    """
    return sum(1 - F.cosine_similarity(s.flatten(1), c.flatten(1)) for s, c in zip(source, cloned, strict=True))


def distillation_loss(source: Sequence[Tensor], cloned: Sequence[Tensor], direction_weight: float) -> Tensor:
    """Return L_total = L_val + λ·L_dir, (b,), the paper's total loss: what is trained, and an image's score."""
    return value_distance(source, cloned) + direction_weight * direction_distance(source, cloned)


class MKD(TrainedDetector):
    """Multiresolution Knowledge Distillation."""

    kind = "mkd"
    Options = MKDOptions
    levels = (1, 2, 3, 4)

    cloner: Cloner | None = None
    direction_weight: float = 0.0  # λ, chosen or measured

    def _learn(self, pixels: Tensor, held: Tensor, generator: torch.Generator) -> list[StepRecord]:
        if self.options.gradient == "guided":
            check_guidable(self.extractor.model)  # before the training, not behind it
        source = self._source_maps(pixels)
        cloner = self._new_cloner(generator)
        first = slice(self.options.batch_size)
        self.direction_weight = self._balance(cloner, pixels[first], [maps[first] for maps in source])
        optimizer = torch.optim.Adam(cloner.parameters(), lr=self.options.learning_rate)

        def step(indices: Tensor, number: int) -> dict[str, Tensor]:
            wanted = [maps[indices].to(self.extractor.device) for maps in source]  # (b, C_l, H_l, W_l) each
            cloned = cloner(self.extractor.normalised(pixels[indices]), [m.shape[-2:] for m in wanted])
            value, direction = value_distance(wanted, cloned).mean(), direction_distance(wanted, cloned).mean()
            return {"loss": value + self.direction_weight * direction, "value": value, "direction": direction}

        history = train(
            step, cloner, optimizer, images=pixels, options=self.options, generator=generator, identity=self._identity(),
            what="cloner", callbacks=self._callbacks, checkpoint=self._checkpoint,
        )  # fmt: skip
        self.cloner = cloner.requires_grad_(False)
        return history

    def _source_maps(self, pixels: Tensor) -> list[Tensor]:
        """The source's activations of all training images, computed once: (n, C_l, H_l, W_l) each, in memory or in files."""
        rooms: list[Tensor] = []
        for at in range(0, len(pixels), AT_A_TIME):
            maps = self.extractor.maps(pixels[at : at + AT_A_TIME])
            rooms = rooms or [self.limit.empty((len(pixels), *m.shape[1:])).values for m in maps]
            for room, m in zip(rooms, maps, strict=True):
                room[at : at + len(m)] = m
        return rooms

    def _new_cloner(self, generator: torch.Generator) -> Cloner:
        backbone = self.extractor.backbone
        with drawn_from(generator):
            cloner = Cloner(backbone.channels, backbone.strides, self.options.width)
        return cloner.to(self.extractor.device)

    @torch.no_grad()
    def _balance(self, cloner: Cloner, pixels: Tensor, source: list[Tensor]) -> float:
        """λ: the one chosen, or what makes both terms equal on the untrained cloner."""
        if self.options.direction_weight is not None:
            return self.options.direction_weight
        source = [m.to(self.extractor.device) for m in source]
        cloned = cloner.eval()(self.extractor.normalised(pixels), [m.shape[-2:] for m in source])
        return float(value_distance(source, cloned).mean() / direction_distance(source, cloned).mean())

    def _loss(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) normalised → (b,): the total loss, through both networks, with gradient."""
        source = self.extractor.maps_of(x)
        return distillation_loss(source, self.cloner(x, [m.shape[-2:] for m in source]), self.direction_weight)

    def _score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x, options = self.extractor.normalised(pixels), self.options
        if options.gradient == "smoothgrad":
            with torch.no_grad():
                loss = self._loss(x)
            generator = torch.Generator().manual_seed(self.seed)  # anew every time: an image's noise is always the same
            noise = torch.randn(options.samples, *x.shape[1:], generator=generator).to(x.device)
            gradient = smooth_gradient(self._loss, x, noise, options.noise)
        else:
            with guided(self.extractor.model, self.cloner) if options.gradient == "guided" else nullcontext():
                loss, gradient = input_gradient(self._loss, x)
        return loss, saliency(gradient, options.sigma, options.opening)

    # What it says of itself

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        return "distillation loss; maps: its gradient"

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes the cloner holds: `images` and `size` change nothing.

        Args:
            images: good images.
            size: (height, width) of a crop in pixels.
        """
        backbone = self.extractor.backbone
        with torch.device("meta"):
            state = Cloner(backbone.channels, backbone.strides, self.options.width).state_dict()
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())

    def _is_fitted(self) -> bool:
        return self.cloner is not None

    def _facts(self) -> dict:
        sizes = [sum(p.numel() for p in network.parameters()) for network in (self.cloner, self.extractor.model)]
        return super()._facts() | {"parameter_share": sizes[0] / sizes[1], "direction_weight": self.direction_weight}

    def _state(self) -> dict[str, Tensor]:
        weights = {f"cloner.{name}": tensor for name, tensor in self.cloner.state_dict().items()}
        return weights | {"direction_weight": torch.tensor([self.direction_weight], dtype=torch.float64)}

    def _take(self, file: ModelFile) -> None:
        super()._take(file)
        cloner = self._new_cloner(torch.Generator())
        for name, tensor in cloner.state_dict().items():
            file.check_shape(f"cloner.{name}", tuple(tensor.shape))
        file.check_shape("direction_weight", (1,))
        cloner.load_state_dict({name: file.tensors[f"cloner.{name}"] for name in cloner.state_dict()})
        self.cloner = cloner.eval().requires_grad_(False)
        self.direction_weight = float(file.tensors["direction_weight"])
