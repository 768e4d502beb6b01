"""Alignment for Focus Your Distribution: movements of a picture, their inverses, the network that predicts them, coarse turns.

A movement is a (2, 3) matrix in torch's convention: it maps a place in the *moved* picture to the place in the *original*
from which its value is taken, both in [-1, 1] across the picture. One movement after another is a product of matrices.

Source: Jaderberg et al., Spatial Transformer Networks (arXiv 1506.02025); Zheng et al., Focus Your Distribution (arXiv
2110.04538), the coarse alignment of images and features; Learned-Miller, Data driven image models through continuous joint
alignment, PAMI 2006, for bringing pictures to the mean of all, again and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONGEALED = 16  # pictures that make the reference for coarse turns: enough for a mean, and few enough to keep every turn of them
ROUNDS = 3  # of bringing them to their mean


def similarity(parameters: Tensor, size: tuple[int, int]) -> Tensor:
    """Return movements that keep shapes: a turn, a shift, a change of scale.

    Args:
        parameters: (b, 4): angle in radians, shift across and down in halves of the picture's sides, logarithm of the scale.
        size: (height, width) of the picture: a turn is one in pixels, also where the sides differ.

    Returns:
        (b, 2, 3).
    """
    angle, across, down, scale = parameters.unbind(1)  # (b,) each
    cosine, sine, ratio = scale.exp() * angle.cos(), scale.exp() * angle.sin(), size[0] / size[1]
    rows = [torch.stack([cosine, -sine * ratio, across], 1), torch.stack([sine / ratio, cosine, down], 1)]
    return torch.stack(rows, 1)  # (b, 2, 3)


def after(first: Tensor, then: Tensor) -> Tensor:
    """Return the movement that makes of a picture what `first` makes of it, and `then` of that: (b, 2, 3) each → (b, 2, 3)."""
    return torch.cat([first[:, :, :2] @ then[:, :, :2], first[:, :, :2] @ then[:, :, 2:] + first[:, :, 2:]], 2)


def inverse(movement: Tensor) -> Tensor:
    """Return the movement that brings a moved picture back: (b, 2, 3) → (b, 2, 3)."""
    back = torch.linalg.inv(movement[:, :, :2])
    return torch.cat([back, -back @ movement[:, :, 2:]], 2)


def moved(pictures: Tensor, movement: Tensor, *, size: tuple[int, int] | None = None, padding: str = "reflection") -> Tensor:
    """Return moved pictures, bilinearly; with gradient to both.

    Args:
        pictures: (b, C, h, w) float.
        movement: (b, 2, 3).
        size: (height, width) to sample at; None: as it is.
        padding: what lies beyond the picture: "reflection", or "border" for the nearest value of its edge.

    Returns:
        (b, C, height, width).
    """
    grid = F.affine_grid(movement, [len(pictures), 1, *(size or pictures.shape[2:])], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)


def brought_back(grids: Tensor, movement: Tensor) -> Tensor:
    """Return what was found in moved pictures at its place in the originals.

    Args:
        grids: (b, H, W) numbers, one a position of the moved pictures.
        movement: (b, 2, 3) by which the pictures were moved.

    Returns:
        (b, H, W) of the originals; a place that the moved picture did not show takes the nearest number at its edge.
    """
    return moved(grids[:, None], inverse(movement), padding="border")[:, 0]


def seen(movement: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which positions of moved pictures come from inside the originals: (b, 2, 3) → (b, height, width) float, 0 or 1."""
    grid = F.affine_grid(movement, [len(movement), 1, *size], align_corners=False)
    return (grid.detach().abs().amax(3) <= 1).float()


def unit(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return every position's feature at length 1, so that no level counts more and faint features do not look alike."""
    return [F.normalize(m, dim=1) for m in maps]


def pairwise_l2(maps: Tensor, weights: Tensor) -> Tensor:
    """Return how much aligned pictures differ: the mean squared L2 of the pairs' features where both see something.

    Args:
        maps: (b, C, H, W), b >= 2.
        weights: (b, H, W), 1 where a picture has something to show.

    Returns:
        A number: mean over pairs i ≠ j of Σ_p w_i w_j ‖f_i - f_j‖² / Σ_p w_i w_j.

    Source: FYD, image-level coarse alignment. By products of matrices: no (b, b, C, H, W).
    """
    flat, w = (maps * weights[:, None]).flatten(1), weights.flatten(1)  # (b, C·H·W), (b, H·W)
    squares = maps.square().sum(1).flatten(1) * w @ w.T  # (b, b)
    distance = squares + squares.T - 2 * flat @ flat.T  # (b, b)
    mean = distance.clamp_min(0) / (w @ w.T).clamp_min(1)
    return (mean.sum() - mean.diagonal().sum()) / (len(maps) * (len(maps) - 1))


# --- coarse turns: ours -----------------------------------------------------------------------------


def turns(count: int, size: tuple[int, int]) -> Tensor:
    """Return `count` turns around the centre that divide the circle, the first of them none: (count, 2, 3)."""
    parameters = torch.zeros(count, 4)
    parameters[:, 0] = torch.arange(count) * (2 * math.pi / count)
    return similarity(parameters, size)


def in_disc(size: tuple[int, int]) -> Tensor:
    """Return which positions every turn leaves in the picture: (H, W) bool, the largest disc around the centre."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    return x.square() + y.square() <= (min(h, w) / 2) ** 2


def turn_distances(maps: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Return the mean squared distance of pictures to the reference within the disc: levels of (b, C, H, W) and (C, H, W) → (b,)."""
    parts = []
    for found, wanted in zip(maps, reference, strict=True):
        disc = in_disc(wanted.shape[1:]).to(wanted.device)
        parts.append((found - wanted).square().sum(1)[:, disc].mean(1))  # (b,)
    return torch.stack(parts).mean(0)


def congealed(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of pictures that are each turned as it suits the others best.

    Args:
        maps: a level each, (n, turns, C, H, W): the features of n pictures in every turn.

    Returns:
        A level each, (C, H, W): at first the first picture; then, `ROUNDS` times, the mean of all in the turns nearest to it.
    """
    reference = [m[0, 0] for m in maps]
    n, count = maps[0].shape[:2]
    for _ in range(ROUNDS):
        best = turn_distances([m.flatten(0, 1) for m in maps], reference).view(n, count).argmin(1)  # (n,)
        reference = [m[torch.arange(n, device=m.device), best].mean(0) for m in maps]
    return reference
