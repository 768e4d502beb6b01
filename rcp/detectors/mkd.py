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
value term where the text balances both terms on the untrained cloner (our default). It averages the absolute gradients of
noisy copies, the formula the gradients. It guides the cloner's ReLUs only. It feeds colours in [0, 1], we normalised ones. Of
VGG-16 it compares what leaves the poolings; timm offers what enters them, but for the last. The opening's window is a square.

Source: Salehi et al., *Multiresolution Knowledge Distillation for Anomaly Detection*, CVPR 2021 (arXiv 2011.11108); Smilkov
et al., *SmoothGrad* (arXiv 1706.03825); Springenberg et al., *Striving for Simplicity* (arXiv 1412.6806) for "guided".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.detectors.pixel import TrainedDetector
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME
from rcp.scoring import pixel_maps
from rcp.training import StepRecord, TrainingOptions, drawn_from, train

GRADIENTS = ("plain", "smoothgrad", "guided")
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)  # rise or stay level: the sign of a gradient means the same on both sides


@dataclass(frozen=True)
class MKDOptions(TrainingOptions):
    """What can be chosen. Besides what every training needs (a learning rate ten times the paper's: EfficientNet's activations are
    that much larger):

    Attributes:
        width: channels of the cloner's inner layers.
        direction_weight: λ, what the direction term counts beside the value term; None: as much as makes both equal on the
            untrained cloner, the paper's rule.
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


class Cloner(nn.Module):
    """A slim network with the source's shapes at the critical layers.

    A stage a critical layer: 3×3 convolutions of `width` channels with batch norm and ReLU, strided until the layer's stride
    is reached, one more, and a linear 3×3 convolution to the source's channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int):
        """Build it for a source's channels and strides, rising, at the critical layers."""
        super().__init__()
        self.stages, self.critical, self.rectified = nn.ModuleList(), nn.ModuleList(), nn.ReLU()
        halved, before = 0, 3
        for depth, stride in zip(channels, strides, strict=True):
            halvings = max(0, round(math.log2(stride)) - halved)
            widths = [before] + [width] * halvings
            blocks = [_block(c, width, 2) for c in widths[:halvings]] + [_block(widths[-1], width, 1)]
            self.stages.append(nn.Sequential(*blocks))
            self.critical.append(nn.Conv2d(width, depth, 3, padding=1))
            halved, before = halved + halvings, depth

    def forward(self, x: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Return the activations at the critical layers: (b, 3, h, w) and their (H_l, W_l) → (b, C_l, H_l, W_l) each."""
        maps = []
        for stage, critical, grid in zip(self.stages, self.critical, grids, strict=True):
            x = critical(stage(x))  # (b, C_l, ≈H_l, ≈W_l)
            if x.shape[-2:] != grid:  # the source rounds odd sizes down
                x = F.interpolate(x, grid, mode="bilinear")
            maps.append(x)
            x = self.rectified(x)
        return maps


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


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


# --- the map: which pixels are to blame -----------------------------------------------------------


def input_gradient(loss_of: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of images, (b,), and the gradient of each with respect to its own image, (b, 3, h, w).

    Args:
        loss_of: (b, 3, h, w) → (b,), each loss a function of its own image alone.
        x: (b, 3, h, w).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = loss_of(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient


def smooth_gradient(loss_of: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return the mean gradient over noisy copies of every image.

    Args:
        loss_of: as for `input_gradient`.
        x: (b, 3, h, w).
        noise: (samples, 3, h, w) of variance 1; the same for all images, so that none depends on its company.
        share: the noise's standard deviation, as a share of each image's range.

    Returns:
        (b, 3, h, w).

    Source: Smilkov et al., *SmoothGrad*.
    """
    spread = share * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))  # (b, 1, 1, 1)
    total = torch.zeros_like(x)
    for sample in noise:  # (3, h, w)
        total += input_gradient(loss_of, x + spread * sample)[1]
    return total / len(noise)


def check_guidable(network: nn.Module) -> None:
    """Raise a ValueError if a network has other activations than rectifiers: guided backpropagation is not defined there."""
    found = [m for m in network.modules() if ".activation" in type(m).__module__ and not isinstance(m, RECTIFIERS)]
    if found:
        other = ", ".join(sorted({type(m).__name__ for m in found}))
        raise ValueError(f"guided backpropagation needs ReLUs, the backbone has {other}: take gradient 'plain' or 'smoothgrad'")


@contextmanager
def guided(*networks: nn.Module) -> Iterator[None]:
    """Cut negative gradients where they enter a rectifier of these networks from above, in passes inside the context.

    Raises:
        ValueError: if a network has activations that are no rectifiers.

    Source: Springenberg et al., *Striving for Simplicity*.
    """

    def cut(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp_min(0))

    for network in networks:
        check_guidable(network)
    rectifiers = {m for network in networks for m in network.modules() if isinstance(m, RECTIFIERS)}
    handles = [m.register_forward_hook(cut) for m in rectifiers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def opened(maps: Tensor, side: int) -> Tensor:
    """Return the grey opening of maps: erosion, then dilation; what is bright on less than a square goes.

    Thresholding the opened map is the same as opening the thresholded one, which is what the paper does.

    Args:
        maps: (b, h, w).
        side: of the square, odd; 1 leaves the maps as they are.

    Returns:
        (b, h, w), nowhere above `maps`.
    """
    eroded = -F.max_pool2d(-maps[:, None], side, stride=1, padding=side // 2)  # (b, 1, h, w)
    return F.max_pool2d(eroded, side, stride=1, padding=side // 2)[:, 0]


def saliency(gradient: Tensor, sigma: float, opening: int) -> Tensor:
    """Return maps of the pixels to blame, not negative: the absolute gradient over all colours, blurred, then opened.

    Args:
        gradient: (b, 3, h, w); the maps are (b, h, w).
        sigma: of the Gaussian, in pixels; 0 for none.
        opening: side of the opening's square, odd.
    """
    strength = gradient.abs().sum(1)  # (b, h, w)
    return opened(pixel_maps(strength, strength.shape[-2:], sigma), opening)


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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.features.precision == "bfloat16"):
            source = self.extractor.model(x)
        if self.extractor.backbone.channels_last:
            source = [m.permute(0, 3, 1, 2) for m in source]
        source = [m.float() for m in source]
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
