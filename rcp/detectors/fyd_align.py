"""Alignment for Focus Your Distribution: movements of a picture, their inverses, the network that predicts them, coarse turns.

A movement is a (2, 3) matrix in torch's convention: it maps a place in the *moved* picture to the place in the *original*
from which its value is taken, both in [-1, 1] across the picture. One movement after another is a product of matrices.

Source: Jaderberg et al., Spatial Transformer Networks (arXiv 1506.02025); Zheng et al., Focus Your Distribution (arXiv
2110.04538), the coarse alignment of images and features; Learned-Miller, Data driven image models through continuous joint
alignment, PAMI 2006, for bringing pictures to the mean of all, again and again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.features import PatchExtractor
from rcp.pixels import AT_A_TIME

GRID = 14  # positions a side that a localisation network looks at
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


class Localisation(nn.Module):
    """A small network from a feature map to a movement; at first it moves nothing."""

    def __init__(self, channels: int, limits: Sequence[float], hidden: int = 64):
        """Build it.

        Args:
            channels: C of the map.
            limits: of angle, shift across, shift down and logarithm of scale: no movement is larger.
            hidden: width of the layer in between.
        """
        super().__init__()
        self.look = nn.Conv2d(channels, 16, 1)
        self.first, self.last = nn.Linear(16 * GRID * GRID, hidden), nn.Linear(hidden, 4)
        nn.init.zeros_(self.last.weight), nn.init.zeros_(self.last.bias)
        self.register_buffer("limits", torch.tensor(limits), persistent=False)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (b, 2, 3) movements of the (b, C, H, W) maps of pictures whose (height, width) is given."""
        # Every channel to mean 0 and variance 1 over the picture: what all positions have in common says nothing of the pose.
        x = F.adaptive_avg_pool2d(self.look(F.instance_norm(maps)).relu(), GRID).flatten(1)  # (b, 16·GRID²)
        return similarity(self.last(self.first(x).relu()).tanh() * self.limits, size)


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


# --- the networks that align -------------------------------------------------------------------------


def through(extractor: PatchExtractor, model: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return the maps of (b, 3, h, w) pixels in [0, 255] as `PatchExtractor.maps` does, but with gradient."""
    with torch.autocast(extractor.device.type, torch.bfloat16, enabled=extractor.settings.precision == "bfloat16"):
        maps = model(extractor.normalised(pixels))
    return [(m.permute(0, 3, 1, 2) if extractor.backbone.channels_last else m).float() for m in maps]


class ImageAligner(nn.Module):
    """Image-level alignment: the best of some coarse turns, then a localisation network, on smaller pictures."""

    def __init__(self, extractor: PatchExtractor, limits: Sequence[float], *, angles: int, shrink: int):
        """Build it; at first it moves nothing.

        Args:
            extractor: its frozen network sees the pictures.
            limits: of the localisation network.
            angles: coarse turns that are tried; 1: none.
            shrink: how many times smaller the pictures are.
        """
        super().__init__()
        self.extractor, self.angles, self.shrink = [extractor], angles, shrink  # in a list: its tensors are not this module's
        self.locator = Localisation(extractor.backbone.channels[0], limits)
        self.reference: list[Tensor] = []  # a level each, (C, H, W)

    def look(self, pixels: Tensor, movement: Tensor) -> list[Tensor]:
        """Return unit features of moved pictures at the smaller size, a level each, with gradient to the movement."""
        size = [max(1, side // self.shrink) for side in pixels.shape[2:]]
        batch = moved(pixels.to(movement.device).float(), movement, size=size)
        return unit(through(self.extractor[0], self.extractor[0].model, batch))

    @torch.no_grad()
    def find_reference(self, pixels: Tensor) -> None:
        """Congeal (n, 3, h, w) pictures into the reference for coarse turns."""
        maps = [self._in_every_turn(one) for one in pixels]
        self.reference = congealed([torch.stack(level) for level in zip(*maps, strict=True)])

    @torch.no_grad()
    def turn(self, pixels: Tensor) -> Tensor:
        """Return the turn of every picture that is nearest to the reference: (b, 3, h, w) → (b, 2, 3)."""
        every = turns(self.angles, pixels.shape[2:]).to(self.extractor[0].device)
        if not self.reference:
            return every[:1].expand(len(pixels), -1, -1)
        return torch.stack([every[turn_distances(self._in_every_turn(one), self.reference).argmin()] for one in pixels])

    def _in_every_turn(self, picture: Tensor) -> list[Tensor]:
        """The unit features of one picture, (3, h, w), in every turn: (angles, C, H, W) a level."""
        every = turns(self.angles, picture.shape[1:]).to(self.extractor[0].device)
        parts = [self.look(picture.expand(len(some), -1, -1, -1), some) for some in every.split(AT_A_TIME)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    @torch.no_grad()
    def forward(self, pixels: Tensor, turned: Tensor | None = None) -> Tensor:
        """Return the movements that align pictures, whose coarse turns may be known: (b, 3, h, w) → (b, 2, 3)."""
        turned = self.turn(pixels) if turned is None else turned
        return after(turned, self.locator(self.look(pixels, turned)[0], pixels.shape[2:]))

    def losses(self, pixels: Tensor, turned: Tensor, jitter: Tensor, anchor: float) -> dict[str, Tensor]:
        """Return how much a batch differs when it is aligned, and what is minimised.

        Args:
            pixels: (b, 3, h, w).
            turned: (b, 2, 3) its coarse turns.
            jitter: (b, 2, 3) random movements that come after them.
            anchor: weight of the squared mean movement.
        """
        start = after(turned, jitter)
        with torch.no_grad():
            found = self.look(pixels, start)[0]
        move = self.locator(found, pixels.shape[2:])
        whole = after(start, move)
        apart = torch.stack([pairwise_l2(m, seen(whole, m.shape[2:])) for m in self.look(pixels, whole)]).mean()
        common = (after(jitter, move).mean(0) - torch.eye(2, 3, device=move.device)).square().sum()
        return {"loss": apart + anchor * common, "pairwise_l2": apart}


class Focused(nn.Module):
    """The backbone, with a spatial transformer after every stage where features are aligned, too."""

    def __init__(self, extractor: PatchExtractor, limits: Sequence[float] | None):
        """Copy the extractor's network; `limits` are those of the transformers, None for a network without any."""
        super().__init__()
        backbone, self.extractor = extractor.backbone, [extractor]  # in a list: its tensors are not this module's
        self.backbone = copy.deepcopy(extractor.model).float()
        self.movements: list[Tensor] = []  # of the last pass, a level each
        self.size = (0, 0)
        self.aligners = nn.ModuleList(Localisation(c, limits) for c in backbone.channels if limits is not None)
        for aligner, name in zip(self.aligners, extractor.model.feature_info.module_name(), strict=False):
            self.backbone.get_submodule(name).register_forward_hook(self._align(aligner))

    def train(self, mode: bool = True) -> Focused:
        """Train the new layers; BatchNorm of the backbone keeps its statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps of (b, 3, h, w) pixels in [0, 255], a level each; `movements` are those of the stages."""
        self.movements, self.size = [], tuple(pixels.shape[2:])
        return through(self.extractor[0], self.backbone, pixels)

    def _align(self, aligner: Localisation):
        last = self.extractor[0].backbone.channels_last

        def hook(module: nn.Module, given: tuple, maps: Tensor) -> Tensor:
            maps = maps.permute(0, 3, 1, 2) if last else maps
            self.movements.append(aligner(maps.float(), self.size))
            out = moved(maps, self.movements[-1].to(maps.dtype), padding="border")
            return out.permute(0, 2, 3, 1) if last else out

        return hook
