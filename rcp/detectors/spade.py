"""SPADE: the nearest good images say whether an image is odd; all positions of those images say where.

Nothing is learned: the good images' features are kept as they are. Twice a nearest neighbour is asked for. First by one row
an image, its last feature map averaged over all positions: the K nearest good images are *retrieved*, and their mean distance
is the image's score. Then, inside these images only, every position of the test image looks for the position that looks most
like it, anywhere: parts may lie elsewhere, but in the same kind of image. Positions are described by all the finer feature
maps together (a *pyramid*), so detail and context both count.

Source: Cohen & Hoshen, *Sub-Image Anomaly Detection with Deep Pyramid Correspondences* (arXiv 2005.02357).

Where we differ: a pixel's score is the rooted distance, as everywhere here, while the image's stays squared, as in the
paper. By default positions are matched at stride 8, 16 times cheaper than the paper's stride 4. Good images' maps are kept
as they come, and joined to pyramids where they are retrieved: joined at stride 4 they take four times as much. The published
image AUROC of 85.5 is met by re-implementations with K = 3, and not with the paper's K = 50 (80.1): `SPADE.image_distances`
and `image_scores_for` show what K does without looking at a pixel again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from rcp import progress
from rcp.detectors.pixel import Normal, PixelDetector
from rcp.distances import root, squared_distances
from rcp.features import FeatureSettings, Images
from rcp.modelfile import ModelFile
from rcp.pixels import AT_A_TIME, Pixels


@dataclass(frozen=True)
class SPADEOptions:
    """What can be chosen. Defaults: the paper's where nothing else is said.

    Attributes:
        neighbours: K, good images that are retrieved; all, if there are fewer.
        matches: κ, positions among theirs whose distances are averaged for a pixel's score.
        grid: which map of the pyramid lends its grid to the positions, from 1, the finest: the paper's, at stride 4. Here 2,
            at stride 8 (ours: 16 times cheaper).
        left_out: good images, at most, whose pixels are scored against the others for the colour scale (ours: each costs as
            much as an image to score); image scores, for the threshold, are had of all of them. 0 for neither.
        smoothing: sigma of the maps' Gaussian, in pixels of the map.
    """

    neighbours: int = 50
    matches: int = 1
    grid: int = 2
    left_out: int = 64
    smoothing: float = 4.0

    def __post_init__(self):
        for name in ("neighbours", "matches", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.left_out < 0 or self.smoothing < 0:
            raise ValueError(f"left_out and smoothing must not be negative, got {self.left_out} and {self.smoothing}")


PAPER = SPADEOptions(grid=1)
PAPER_FEATURES = FeatureSettings("wide_resnet50_2", levels=(1, 2, 3, 4), patch_size=1)


def image_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the squared distance of every image to every good image (SPADE, section 3.2).

    Args:
        queries: (q, C) floating point, pooled features.
        gallery: (n, C), those of the good images.

    Returns:
        (q, n) squared L2; differences are squared, not multiplied out, so that equal images are exactly 0 apart.
    """
    return torch.stack([(gallery - query).square().sum(1) for query in queries])


def image_scores_for(distances: Tensor, ks: Sequence[int]) -> Tensor:
    """Return the image scores for several K at once: sorted once, summed along, divided.

    Args:
        distances: (q, n) squared L2, of `image_distances`; infinite where an image must not be its own neighbour.
        ks: the K asked for, each at least 1; one beyond the finite distances of a row takes all of them.

    Returns:
        (len(ks), q) float32: the mean squared distance to the K nearest good images.

    Raises:
        ValueError: if a K is not positive.

    Source: SPADE, section 3.2, Eq. 2.
    """
    if min(ks) < 1:
        raise ValueError(f"K must be at least 1, got {min(ks)}")
    known = distances.isfinite().sum(1)  # (q,)
    sums = distances.double().sort(1).values.cumsum(1)  # (q, n)
    columns = [torch.clamp(known, max=k) for k in ks]  # (q,) each: how many are averaged
    return torch.stack([(sums.gather(1, k[:, None] - 1)[:, 0] / k).float() for k in columns])


def retrieve(distances: Tensor, neighbours: int) -> Tensor:
    """Return which good images are nearest (SPADE, section 3.2): (q, n) distances → (q, min(K, n)) int64."""
    return distances.topk(min(neighbours, distances.shape[1]), largest=False).indices


def pyramid(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Return one row a position (SPADE, section 3.4): all maps brought to one grid, and joined, (b, H·W, ΣC_l).

    Args:
        maps: (b, C_l, H_l, W_l) each.
        grid: (H, W); coarser maps are brought to it bilinearly, finer ones averaged.
    """
    finer = [m.shape[2] > grid[0] or m.shape[3] > grid[1] for m in maps]
    brought = [F.adaptive_avg_pool2d(m, grid) if f else F.interpolate(m, grid, mode="bilinear") for m, f in zip(maps, finer, strict=True)]
    return torch.cat(brought, 1).flatten(2).transpose(1, 2).contiguous()


def pixel_scores(queries: Tensor, chosen: Tensor, gallery: Callable[[int], Tensor], matches: int) -> Tensor:
    """Return how far every position lies from its κ nearest among all positions of the images retrieved.

    Args:
        queries: (q, P, C) pyramids of the images to score.
        chosen: (q, K) int64, which good images each of them retrieved.
        gallery: gives the pyramid (P, C) of a good image; called once an image, whoever retrieved it.
        matches: κ; no more than there are positions.

    Returns:
        (q, P) L2, rooted: the mean of the κ distances. Nothing larger than (P, P) is made.

    Source: SPADE, section 3.3, Eq. 3.
    """
    q, p, _ = queries.shape
    matches = min(matches, chosen.shape[1] * p)
    best = queries.new_full((q, p, matches), inf)  # squared
    for image in chosen.unique().tolist():
        rows = gallery(image)  # (P, C)
        for j in (chosen == image).any(1).nonzero()[:, 0].tolist():
            apart = squared_distances(queries[j], rows)  # (P, P)
            if matches == 1:  # a plain minimum is faster than a sorted choice of one
                best[j] = torch.minimum(best[j], apart.amin(1, keepdim=True))
            else:
                here = apart.topk(min(matches, p), largest=False).values  # (P, κ)
                best[j] = torch.cat([best[j], here], 1).topk(matches, largest=False).values
    return root(best).mean(2)


class SPADE(PixelDetector):
    """Retrieval of good images, then of their positions, without training."""

    kind = "spade"
    Options = SPADEOptions
    levels = (1, 2, 3, 4)
    missing = "gallery of good images"
    to_calibrate = "fit it on at least two images, with left_out above 0"

    pooled: Tensor | None = None  # (n, C): the last map of each good image, averaged over its positions
    maps: tuple[Tensor, ...] = ()  # (n, C_l, H_l, W_l) each: the others, as the network gave them

    def image_distances(self, images: Images | Pixels) -> Tensor:
        """Return (q, n) squared distances of images to the good ones, for `image_scores_for`; pixels are not matched.

        Args:
            images: a split, paths, or `Pixels`.

        Raises:
            RuntimeError: before `fit` or `load`.
            ImageError: for a file that cannot be read.
        """
        self._check_fitted()
        batches = self._batches(images, "raise", [])
        return torch.cat([image_distances(self._described(values)[0], self.pooled).cpu() for values, _, _ in batches])

    @torch.inference_mode()
    def _fit(self, pixels: Tensor, generator: torch.Generator) -> Normal:
        count = len(self.extractor.backbone.channels) - 1
        if not 1 <= self.options.grid <= count:
            raise ValueError(f"grid names one of the pyramid's {count} maps, from 1; got {self.options.grid}")
        pooled, maps = [], None
        for at in range(0, len(pixels), AT_A_TIME):
            rows, parts = self._described(pixels[at : at + AT_A_TIME])
            if maps is None:
                maps = tuple(self.limit.empty((len(pixels), *part.shape[1:])).values for part in parts)
            for room, part in zip(maps, parts, strict=True):
                room[at : at + len(part)] = part
            pooled.append(rows)
        self.pooled, self.maps = torch.cat(pooled), maps
        return self._left_out(generator) if len(pixels) > 1 and self.options.left_out else None

    def _left_out(self, generator: torch.Generator) -> Normal:
        """Each good image scored against the others: exactly what a detector that never saw it would say."""
        distances = image_distances(self.pooled, self.pooled).fill_diagonal_(inf)  # (n, n)
        chosen = retrieve(distances, min(self.options.neighbours, len(distances) - 1))  # (n, K), never the image itself
        drawn = torch.randperm(len(distances), generator=generator)[: self.options.left_out]
        grids = []
        with progress.bar("good images, each left out", len(drawn), "image") as shown:
            for part in drawn.split(AT_A_TIME):
                maps = [m[part].to(self.pooled.device) for m in self.maps]
                grids.append(self._pixel_scores(maps, chosen[part.to(chosen.device)]).cpu())
                shown.update(len(part))
        return image_scores_for(distances, [self.options.neighbours])[0].cpu(), torch.cat(grids)

    @torch.inference_mode()
    def _score(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled, maps = self._described(pixels)
        distances = image_distances(pooled, self.pooled)  # (b, n)
        scores = image_scores_for(distances, [self.options.neighbours])[0]
        return scores, self._pixel_scores(maps, retrieve(distances, self.options.neighbours))

    def _pixel_scores(self, maps: Sequence[Tensor], chosen: Tensor) -> Tensor:
        """(b, H, W) from the maps of b images and (b, K) images retrieved."""
        grid = tuple(maps[self.options.grid - 1].shape[2:])

        def gallery(image: int) -> Tensor:
            return pyramid([m[image : image + 1].to(chosen.device) for m in self.maps], grid)[0]

        return pixel_scores(pyramid(maps, grid), chosen, gallery, self.options.matches).unflatten(1, grid)

    def _described(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(b, C) of the last map, averaged over its positions, and (b, C_l, H_l, W_l) of the others."""
        *maps, last = self.extractor.maps(pixels)
        return last.mean((2, 3)), maps

    @property
    def unit(self) -> str:
        return "L2 distance (of images: squared)"

    def state_bytes(self, images: int, size: tuple[int, int]) -> int:
        """Return how many bytes the fitted detector holds: all feature maps of all good images, and a row for each."""
        backbone = self.extractor.backbone
        grids = [-(-size[0] // s) * -(-size[1] // s) for s in backbone.strides[:-1]] + [1]
        return images * sum(c * positions for c, positions in zip(backbone.channels, grids, strict=True)) * 4

    def _is_fitted(self) -> bool:
        return self.pooled is not None

    def _state(self) -> dict[str, Tensor]:
        return {"pooled": self.pooled} | {f"map_{i}": m for i, m in enumerate(self.maps, 1)}

    def _take(self, file: ModelFile) -> None:
        *channels, last = self.extractor.backbone.channels
        file.check_width("pooled", last)
        n, names = len(file.tensors["pooled"]), [f"map_{i}" for i in range(1, len(channels) + 1)]
        for name, width in zip(names, channels, strict=True):
            found = file.tensors[name].shape if name in file.tensors else ()
            file.check_shape(name, (n, width, *found[2:]))
        self.pooled = file.tensors["pooled"].to(self.extractor.device)
        self.maps = tuple(file.tensors[name] for name in names)
