"""The baseline that every system has to beat: how bright is the image, and where?

An image is described by the histogram of its grey levels; its score is the distance to the nearest training image's. The map
compares the mean brightness of small tiles with what is usual at that place. No network looks at anything. What this finds,
light alone gives away; a system whose scores are no better has learned nothing about structure.

Source: a baseline of this project, from no paper. The distance between histograms is Swain & Ballard's, *Color Indexing*, IJCV
1991: one less their intersection, but for the factor 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp.detectors.pixel import Normal, PixelDetector
from rcp.features import FeatureSettings
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in a grey level: ITU-R BT.601, as Pillow's


@dataclass(frozen=True)
class BrightnessHistogramOptions:
    """What can be chosen.

    Attributes:
        bins: of the histogram, over the grey levels 0 to 255.
        tile: side of a tile of the map, in pixels.
        smoothing: sigma of the maps' Gaussian, in pixels of the map.
    """

    bins: int = 32
    tile: int = 16
    smoothing: float = 4.0

    def __post_init__(self):
        if not 1 <= self.bins <= 256 or self.tile < 1:
            raise ValueError(f"bins must be 1 to 256 and tile at least 1, got {self.bins} and {self.tile}")
        if self.smoothing < 0:
            raise ValueError(f"smoothing must not be negative, got {self.smoothing}")


PAPER, PAPER_FEATURES = BrightnessHistogramOptions(), FeatureSettings(levels=(1,), patch_size=1)  # no paper's: the defaults


def grey(pixels: Tensor) -> Tensor:
    """Return grey levels: (b, 3, h, w) uint8 RGB → (b, h, w) float32 in [0, 255]."""
    return torch.einsum("bchw,c->bhw", pixels.float(), torch.tensor(LUMA, device=pixels.device))


def histograms(levels: Tensor, bins: int) -> Tensor:
    """Return the share of pixels in every bin.

    Args:
        levels: (b, h, w) grey levels in [0, 255].
        bins: equally wide, over [0, 256).

    Returns:
        (b, bins) float32, rows of sum 1.
    """
    places = (levels.flatten(1) * (bins / 256)).long()  # (b, h·w)
    counts = torch.zeros(len(levels), bins, device=levels.device)
    return counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.float32)) / places.shape[1]


def tile_means(levels: Tensor, tile: int) -> Tensor:
    """Return the mean grey level of every tile: (b, h, w) → (b, ⌈h/tile⌉, ⌈w/tile⌉); tiles at the border may be smaller."""
    h, w = levels.shape[-2:]
    padded = F.pad(levels, (0, -w % tile, 0, -h % tile))
    inside = F.pad(torch.ones_like(levels), (0, -w % tile, 0, -h % tile))
    return (F.avg_pool2d(padded[:, None], tile) / F.avg_pool2d(inside[:, None], tile))[:, 0]


class BrightnessHistogram(PixelDetector):
    """Distance to the nearest training histogram; the map is each tile's distance to its usual brightness."""

    kind = "histogram"
    Options = BrightnessHistogramOptions
    levels = (1,)  # the backbone is named in the files, like everywhere, but looks at nothing
    missing = "histograms"

    histograms: Tensor | None = None  # (n, bins) of the training images
    means: Tensor | None = None  # (H, W): the training images' mean grey level at every tile

    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        described = [self._describe(part) for part in pixels.split(AT_A_TIME)]
        self.histograms, tiles = (torch.cat(column) for column in zip(*described, strict=True))  # (n, bins), (n, H, W)
        self.means, n = tiles.mean(0), len(tiles)
        if n < 2:
            return None
        # Each image as if the others had been the training images: what normal images score that were not seen.
        distances = torch.cdist(self.histograms, self.histograms, p=1).fill_diagonal_(torch.inf)  # (n, n)
        others = (self.means * n - tiles) / (n - 1)  # (n, H, W)
        return distances.amin(1), (tiles - others).abs()

    def _describe(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        levels = grey(pixels)
        return histograms(levels, self.options.bins), tile_means(levels, self.options.tile)

    def _score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found, tiles = self._describe(pixels)
        return torch.cdist(found, self.histograms, p=1).amin(1), (tiles - self.means).abs()

    @property
    def unit(self) -> str:
        """What a score counts, for the axes of figures."""
        return "L1 distance of histograms; maps: grey levels"

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes the histograms and the tiles' means take.

        Args:
            images: good images.
            size: (height, width) of a crop in pixels.
        """
        tiles = -(-size[0] // self.options.tile) * -(-size[1] // self.options.tile)
        return 4 * (images * self.options.bins + tiles)

    def _is_fitted(self) -> bool:
        return self.histograms is not None

    def _state(self) -> dict[str, Tensor]:
        return {"histograms": self.histograms, "means": self.means}

    def _take(self, file: ModelFile) -> None:
        file.check_width("histograms", self.options.bins)
        if "means" not in file.tensors or file.tensors["means"].ndim != 2:
            raise ValueError(f"{file.path}: the tensor 'means' should have two dimensions")
        self.histograms, self.means = file.tensors["histograms"], file.tensors["means"]
