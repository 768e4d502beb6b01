"""MKD's cloner: a slim network that has the source's shapes at the critical layers.

Source: Salehi et al., *Multiresolution Knowledge Distillation for Anomaly Detection*, CVPR 2021 (arXiv 2011.11108).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


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
