"""Focus Your Distribution's networks: spatial transformers for pictures and for the feature maps, heads of the dense loss.

Source: Zheng et al., Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly Detection and Localization,
ICME 2022 (arXiv 2110.04538); Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015 (arXiv 1506.02025).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcp.detectors.fyd_align import after, congealed, moved, pairwise_l2, seen, similarity, turn_distances, turns, unit
from rcp.features import PatchExtractor
from rcp.pixels import AT_A_TIME

GRID = 14  # positions a side that a localisation network looks at


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
            _stage(self.backbone, name).register_forward_hook(self._align(aligner))

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


def _stage(network: nn.Module, name: str) -> nn.Module:
    """The module whose output is a map; timm writes the dots of its name as _ where it has taken the network apart."""
    modules = dict(network.named_modules())
    found = modules.get(name, modules.get(name.replace(".", "_")))
    if found is None:
        raise ValueError(f"this backbone has no stage {name} to align features after: take alignment='image'")
    return found


def project(channels: int) -> nn.Sequential:
    """Return g: two 1×1 convolutions, used in training only; no BatchNorm at their end, so that a collapse would show."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1)
    )


def predict(channels: int) -> nn.Sequential:
    """Return h: two 1×1 convolutions with a bottleneck, used in training only."""
    narrow = max(1, channels // 4)
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(), nn.Conv2d(narrow, channels, 1)
    )
