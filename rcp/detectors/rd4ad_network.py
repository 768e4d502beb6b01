"""The network of reverse distillation: a bottleneck that brings all levels together, and a decoder that mirrors the encoder.

Source: Deng & Li, *Anomaly Detection via Reverse Distillation from One-Class Embedding*, CVPR 2022 (arXiv 2201.10703).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp import progress
from rcp.features import PatchExtractor
from rcp.pixels import AT_A_TIME
from rcp.store import MemoryLimit

if TYPE_CHECKING:
    from rcp.detectors.rd4ad import RD4ADOptions


def resized(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return (b, C, H, W) maps at another size, bilinearly; as they are if that is None or theirs."""
    if size is None or maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear")


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a padded convolution with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    """A residual block 1×1, 3×3, 1×1 that halves the grid (stride 2), keeps it, or brings it to the size asked for."""

    def __init__(self, inputs: int, outputs: int, squeeze: float, stride: int = 1):
        super().__init__()
        inner = max(1, round(outputs * squeeze))
        self.first = convolution(inputs, inner, 1)
        self.second = convolution(inner, inner, 3, stride)
        self.third = convolution(inner, outputs, 1)
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        # The 1×1 convolutions come before the upsampling: there are a quarter of the positions.
        y = resized(F.relu(self.first(x)), size)
        y = self.third(F.relu(self.second(y)))
        return F.relu(y + resized(self.shortcut(x), size))


class Bottleneck(nn.Module):
    """Multi-scale feature fusion and the one-class embedding (section 3.2): all levels → one map φ, twice as coarse."""

    def __init__(self, channels: Sequence[int], blocks: int, squeeze: float):
        super().__init__()
        last = channels[-1]
        self.down = nn.ModuleList(  # level l goes through all the strides that part it from the coarsest
            nn.ModuleList(convolution(a, b, 3, stride=2) for a, b in zip(channels[i:-1], channels[i + 1 :], strict=True))
            for i in range(len(channels))
        )
        self.embed = nn.Sequential(
            Residual(last * len(channels), 2 * last, squeeze, stride=2),
            *(Residual(2 * last, 2 * last, squeeze) for _ in range(blocks - 1)),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fused = []
        for x, steps in zip(maps, self.down, strict=True):
            for step in steps:
                x = F.relu(step(x))
            fused.append(resized(x, maps[-1].shape[-2:]))  # as it is, unless the levels are not a factor of 2 apart
        return self.embed(torch.cat(fused, 1))  # (b, 2·C_L, ⌈H_L/2⌉, ⌈W_L/2⌉)


class ReverseNetwork(nn.Module):
    """Bottleneck and decoder: maps of all levels → maps of the same shapes (section 3.1)."""

    def __init__(self, channels: Sequence[int], options: RD4ADOptions, heads: int = 1):
        """Draw the weights.

        Args:
            channels: per level, the finest first.
            options: blocks and their width.
            heads: last layers side by side, for as many encoders whose maps are to be given back.

        Raises:
            ValueError: if there is not one number of blocks for each level.
        """
        super().__init__()
        if len(options.blocks) != len(channels):
            raise ValueError(f"blocks needs a number for each of the {len(channels)} levels, got {options.blocks}")
        self.bottleneck = Bottleneck(channels, options.embedding_blocks, options.squeeze)
        wide = [options.widen * c for c in channels]
        widths = [2 * channels[-1], *reversed(wide)]
        self.stages = nn.ModuleList(
            nn.ModuleList(Residual(b if i else a, b, options.squeeze) for i in range(count))
            for a, b, count in zip(widths[:-1], widths[1:], options.blocks, strict=True)
        )
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(wide, channels, strict=True)) for _ in range(heads))

    def decoded(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what the decoder makes of the maps, before its last layer: the finest level first."""
        x, found = self.bottleneck(maps), []
        for stage, wanted in zip(self.stages, reversed(maps), strict=True):
            for block in stage:
                x = block(x, wanted.shape[-2:])
            found.append(x)
        return found[::-1]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return self.ended(self.decoded(maps), 0)

    def ended(self, decoded: Sequence[Tensor], head: int) -> list[Tensor]:
        """Return the decoder's output: the last layer, for one of the encoders that are given back."""
        return [layer(x) for layer, x in zip(self.heads[head], decoded, strict=True)]


class FrozenMaps:
    """The frozen encoder's maps of the training images: they never change, so they are computed once, if there is room."""

    def __init__(self, extractor: PatchExtractor, pixels: Tensor, limit: MemoryLimit):
        """Compute the maps of (n, 3, h, w) uint8, unless they would not fit `limit`: then each batch is computed anew."""
        self.extractor, self.pixels = extractor, pixels
        shapes = [m.shape[1:] for m in extractor.maps(pixels[:1])]
        self.kept: list[Tensor] | None = None
        if limit.fits(4 * len(pixels) * sum(shape.numel() for shape in shapes)):
            self.kept = [torch.empty(len(pixels), h, w, c) for c, h, w in shapes]  # channels last, as the network likes it
            with progress.bar("features", len(pixels), "image") as shown:
                for at in range(0, len(pixels), AT_A_TIME):
                    for room, m in zip(self.kept, extractor.maps(pixels[at : at + AT_A_TIME]), strict=True):
                        room[at : at + AT_A_TIME] = m.permute(0, 2, 3, 1)
                    shown.update(min(AT_A_TIME, len(pixels) - at))

    def __getitem__(self, indices: Tensor) -> list[Tensor]:
        """Return, per level, (b, C_l, H_l, W_l) on the extractor's device."""
        if self.kept is None:
            return self.extractor.maps(self.pixels[indices])
        return [room[indices].to(self.extractor.device).permute(0, 3, 1, 2) for room in self.kept]
