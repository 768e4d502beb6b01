"""Feature maps of several levels → one row a patch: neighbourhoods averaged or pooled, levels joined on one grid.

Taught in notebook 01. Source: Roth et al., PatchCore (arXiv 2106.08265), section 3.1, which ReConPatch takes over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbourhood_average(maps: Tensor, patch_size: int = 3) -> Tensor:
    """Return the mean of the s×s neighbourhood of every position; stride 1, padded with zeros as in PatchCore.

    Args:
        maps: (B, C, H, W).
        patch_size: s, odd.

    Returns:
        (B, C, H, W).
    """
    return F.avg_pool2d(maps, patch_size, stride=1, padding=patch_size // 2)


def neighbourhood_pool(maps: Tensor, patch_size: int, width: int) -> Tensor:
    """Return every position's flattened s×s neighbourhood, brought to `width` numbers by adaptive average pooling.

    Args:
        maps: (B, C, H, W).
        patch_size: s, odd.
        width: numbers a position.

    Returns:
        (B, width, H, W).

    Source: the first of the two poolings of PatchCore's published code (section 3.1 of the paper).
    """
    b, _, h, w = maps.shape
    flat = F.unfold(maps, patch_size, padding=patch_size // 2)  # (B, C·s·s, H·W)
    pooled = F.adaptive_avg_pool1d(flat.transpose(1, 2), width)  # (B, H·W, width)
    return pooled.transpose(1, 2).reshape(b, width, h, w)


def join_levels(levels: Sequence[Tensor]) -> Tensor:
    """Return the levels joined on the first (finest) level's grid; the others are brought to it bilinearly.

    Args:
        levels: (B, C_l, H_l, W_l) each.

    Returns:
        (B, H_1, W_1, ΣC_l).
    """
    grid = levels[0].shape[-2:]
    same = [m if m.shape[-2:] == grid else F.interpolate(m, grid, mode="bilinear") for m in levels]
    return torch.cat(same, 1).permute(0, 2, 3, 1)
