"""Patch features: images → one row of numbers per patch, from a frozen backbone.

A patch feature describes a position of the feature map together with its s×s neighbourhood. Levels of different
resolution are brought to the finest grid among them and joined, so that a patch knows detail (level 2) and context
(level 3). At 224 pixels and stride 8 an image gives 28×28 = 784 rows.

Taught in notebook 01. Source: Roth et al., PatchCore (arXiv 2106.08265), section 3.1, which ReConPatch takes over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from rcp import progress
from rcp.backbones import load_backbone
from rcp.data import Split
from rcp.images import Geometry, ImageError, stream
from rcp.levels import join_levels, neighbourhood_average, neighbourhood_pool
from rcp.store import MemoryLimit, Store

Images = Split | Sequence[str | Path]
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PASS = 8 * 224 * 224  # pixels of a pass of the network: more are not faster, and take more memory
RELEASE = 2**26  # bytes of a mapped file that may be in memory before they are let go


@dataclass(frozen=True)
class FeatureSettings:
    """What decides the features; two runs with equal settings and weights have equal features.

    Attributes:
        backbone: a preset's name, or a timm model with its weight tag.
        levels: feature maps to join, as PatchCore counts them (2 and 3 are strides 8 and 16).
        strides: the same by stride, instead of levels.
        patch_size: s, the side of the neighbourhood, odd.
        merge: "concat" averages each s×s neighbourhood and joins the levels; "pool" flattens it and brings each level, and
            then all of them together, to `pooled_width` numbers by adaptive average pooling (PatchCore's own code).
        pooled_width: for "pool".
        resize: the short side in pixels (int), both sides (pair: height, width), or None to leave the size.
        crop: of the centre: a side, (height, width), or None.
        pretrained: False takes random weights.
        weights: a local weight file.
        normalization: of the input: "imagenet" (mean and deviation of ImageNet's colours, as PatchCore's code and its
            re-implementations do for every backbone: numbers compare) or "model" (what the weights were trained with; it
            differs for the EfficientNets).
        precision: "float32", or "bfloat16" for the network's products.
        stored: how exactly the features are kept, for half the memory or disk: "float32", "float16" or "bfloat16"; all that
            is computed from them is computed in float32.
    """

    backbone: str = "efficientnet_lite0"
    levels: tuple[int, ...] = (2, 3)
    strides: tuple[int, ...] | None = None
    patch_size: int = 3
    merge: str = "concat"
    pooled_width: int = 1024
    resize: int | tuple[int, int] | None = 256
    crop: int | tuple[int, int] | None = 224
    pretrained: bool = True
    weights: str | Path | None = None
    normalization: str = "imagenet"
    precision: str = "float32"
    stored: str = "float32"

    def __post_init__(self):
        for name in ("levels", "strides", "resize", "crop"):  # lists are what JSON makes of tuples
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.weights, Path):
            object.__setattr__(self, "weights", str(self.weights))
        if self.pooled_width < 1:
            raise ValueError(f"pooled_width must be positive, got {self.pooled_width}")
        if self.patch_size < 1 or self.patch_size % 2 == 0:
            raise ValueError(f"patch_size must be odd and positive, got {self.patch_size}")
        if self.merge not in ("concat", "pool"):
            raise ValueError(f"merge must be 'concat' or 'pool', got {self.merge!r}")
        if self.normalization not in ("imagenet", "model"):
            raise ValueError(f"normalization must be 'imagenet' or 'model', got {self.normalization!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.stored not in STORED:
            raise ValueError(f"stored must be one of {', '.join(STORED)}, got {self.stored!r}")
        Geometry(self.resize, self.crop)  # raises on sizes that cannot be

    @property
    def geometry(self) -> Geometry:
        """The resize and crop that every image and mask goes through."""
        return Geometry(self.resize, self.crop)


@dataclass(frozen=True)
class FeatureBatch:
    """Features of a few images, on their way.

    Attributes:
        indices: positions of the images in what was asked for.
        values: (b, H, W, C), on the extractor's device, in the type in which they are stored.
        sizes: per image (height, width) of the file in pixels.
    """

    indices: list[int]
    values: Tensor
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class PatchFeatures:
    """The features of a set of images, and where they come from.

    Attributes:
        values: (n, H, W, C) on the CPU, in memory or in a mapped file, in the type that `settings.stored` names: n images
            that could be read, in their order.
        paths: of all images asked for.
        indices: positions, in `paths`, of the n images.
        sizes: per image (height, width) of the file in pixels.
        skipped: (path, reason) of the images that could not be read, with on_error="skip".
        settings: what decided them.
        weights_sha256: of the backbone.
        store: where the values lie, if `PatchExtractor.extract` made room for them.
    """

    values: Tensor
    paths: list[Path]
    indices: list[int]
    sizes: list[tuple[int, int]]
    skipped: list[tuple[Path, str]]
    settings: FeatureSettings
    weights_sha256: str
    store: Store | None = None

    @property
    def rows(self) -> Tensor:
        """(n·H·W, C): a view, a row a patch, image by image."""
        return self.values.flatten(0, 2)

    def __len__(self) -> int:
        return len(self.values)

    def release(self) -> None:
        """Let go of the pages of a mapped file, if the values lie in one."""
        if self.store is not None:
            self.store.release()


def paths_of(images: Images) -> list[Path]:
    """Return the files of a split, or of a sequence of paths; one sentence if there are none."""
    paths = list(images.paths) if isinstance(images, Split) else [Path(p) for p in images]
    if not paths:
        raise ValueError("there are no images: the split or list is empty")
    return paths


def choose_device(wish: str = "auto") -> torch.device:
    """Return the device to compute on: CUDA, else Apple's MPS, else the CPU; or the one wished for."""
    if wish != "auto":
        try:
            return torch.empty(0, device=wish).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {wish!r} cannot be used here: {reason}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class PatchExtractor:
    """A frozen backbone that turns image files into patch features, batch by batch."""

    def __init__(
        self,
        settings: FeatureSettings = FeatureSettings(),
        *,
        device: str = "auto",
        batch_size: int | None = None,
        workers: int = min(4, os.cpu_count() or 1),
    ):
        """Load the backbone.

        Args:
            settings: what decides the features.
            device: "auto", or torch's name of one.
            batch_size: images per pass of the network; None: as many as have about 400,000 pixels, at least one.
            workers: threads that decode ahead of the network; 0 decodes in between.

        Raises:
            ValueError: if the model, a level or the device does not exist, or a batch is to have no image.
            WeightsError: if the weights cannot be had.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive or None, got {batch_size}")
        self.settings = settings
        self.device = choose_device(device)
        self.batch_size = _images_a_pass(settings.geometry) if batch_size is None else batch_size
        self.workers = workers
        self.backbone = load_backbone(
            settings.backbone,
            levels=settings.levels,
            strides=settings.strides,
            pretrained=settings.pretrained,
            weights=settings.weights,
        )
        self.model = self.backbone.model.to(self.device, memory_format=torch.channels_last)
        if settings.precision == "bfloat16":
            for module in self.model.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(torch.bfloat16)  # rounded once, here, and not by autocast in every pass
        own = settings.normalization == "model"
        mean = torch.tensor(self.backbone.mean if own else IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
        std = torch.tensor(self.backbone.std if own else IMAGENET_DEFAULT_STD).view(3, 1, 1)
        self._scale, self._shift = (1 / (255 * std)).to(self.device), (mean / std).to(self.device)

    @property
    def width(self) -> int:
        """C, the numbers a patch."""
        return self.settings.pooled_width if self.settings.merge == "pool" else sum(self.backbone.channels)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W), the patches down and across an image file of this size in pixels."""
        h, w = self.settings.geometry.output_size(height, width)
        stride = self.backbone.strides[0]
        return -(-h // stride), -(-w // stride)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return images as the network takes them: (B, 3, h, w) uint8 or float in [0, 255] → float32 on the device."""
        x = pixels.to(self.device, non_blocking=True).float()
        return (x * self._scale - self._shift).contiguous(memory_format=torch.channels_last)  # (B, 3, h, w)

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the network's feature maps of images that are resized and cropped already, without gradient.

        Args:
            pixels: (B, 3, h, w) uint8, RGB.

        Returns:
            Per level (B, C_l, H_l, W_l) float32 on the extractor's device.
        """
        return self.maps_of(self.normalised(pixels))

    def maps_of(self, x: Tensor) -> list[Tensor]:
        """Return the same of images as the network takes them, (B, 3, h, w) float32, with gradient to them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            maps = self.model(x)
        if self.backbone.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [m.float() for m in maps]

    @torch.inference_mode()
    def patches(self, pixels: Tensor) -> Tensor:
        """Return the patch features of images that are resized and cropped already.

        Args:
            pixels: (B, 3, h, w) uint8, RGB.

        Returns:
            (B, H, W, C) on the extractor's device, in the type in which features are stored.

        Raises:
            ValueError: if a feature is too large for float16.
        """
        maps, s = self.maps(pixels), self.settings.patch_size  # (B, C_l, H_l, W_l)
        if self.settings.merge == "concat":
            return self._rounded(join_levels([neighbourhood_average(m, s) for m in maps]))
        joined = join_levels([neighbourhood_pool(m, s, self.settings.pooled_width) for m in maps])
        pooled = F.adaptive_avg_pool1d(joined.flatten(1, 2), self.settings.pooled_width)  # (B, H·W, width)
        return self._rounded(pooled.unflatten(1, joined.shape[1:3]))

    def _rounded(self, values: Tensor) -> Tensor:
        """The values in the type in which they are stored: streamed and stored features are the same numbers."""
        stored = values.to(STORED[self.settings.stored])
        if stored.dtype == torch.float16 and not bool(stored.abs().amax().isfinite()):
            raise ValueError("a feature is too large for float16, which ends at 65504: take stored='bfloat16'")
        return stored

    def stream(
        self, images: Images, *, on_error: str = "raise", skipped: list[tuple[Path, str]] | None = None
    ) -> Iterator[FeatureBatch]:
        """Yield the features batch by batch; nothing is kept, and files are decoded ahead while the network works.

        Args:
            images: a split, or paths.
            on_error: "raise", or "skip" to leave unreadable files out and list them in `skipped`.
            skipped: receives (path, reason).

        Yields:
            `FeatureBatch`.

        Raises:
            ImageError: for a file that cannot be read, or whose size after resize and crop differs.
        """
        paths = paths_of(images)
        batches = stream(
            paths,
            self.settings.geometry,
            batch_size=self.batch_size,
            workers=self.workers,
            on_error=on_error,
            skipped=skipped,
            pin=self.device.type == "cuda",
        )
        with closing(batches), progress.bar("features", len(paths), "image") as shown:
            for batch in batches:
                yield FeatureBatch(batch.indices, self.patches(batch.pixels), batch.sizes)
                shown.update(len(batch.indices))

    def extract(
        self, images: Images, *, on_error: str = "raise", limit: MemoryLimit = MemoryLimit()
    ) -> PatchFeatures:
        """Return the features of all images, written once into one tensor of known size.

        Args:
            images: a split, or paths.
            on_error: "raise", or "skip": unreadable files are left out and listed in the result.
            limit: beyond it the tensor lies in a mapped file.

        Returns:
            `PatchFeatures`.

        Raises:
            ImageError: as `stream`; also if no file at all could be read.
        """
        paths = paths_of(images)
        store = _Collected(len(paths), limit)
        for batch in self.stream(paths, on_error=on_error, skipped=store.skipped):
            store.add(batch)
        if store.room is None:
            path, reason = store.skipped[0]
            raise ImageError(f"none of the {len(paths)} images could be read; the first, {path}: {reason}")
        values = store.room.values[: len(store.indices)]
        return PatchFeatures(
            values, paths, store.indices, store.sizes, store.skipped, self.settings, self.backbone.sha256, store.room
        )


@dataclass
class _Collected:
    """All features, in room that is made when the first batch tells their shape."""

    capacity: int
    limit: MemoryLimit
    room: Store | None = None
    indices: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    written: int = 0  # bytes since the pages of a mapped file were last let go

    def add(self, batch: FeatureBatch) -> None:
        if self.room is None:
            self.room = self.limit.empty((self.capacity, *batch.values.shape[1:]), batch.values.dtype)
        at = len(self.indices)
        self.room.values[at : at + len(batch.indices)] = batch.values
        self.indices += batch.indices
        self.sizes += batch.sizes
        self.written += batch.values.nbytes
        if self.written > RELEASE:
            self.room.release()
            self.written = 0


def _images_a_pass(geometry: Geometry) -> int:
    side = geometry.crop or geometry.resize
    if side is None:
        return 1  # images of any size
    h, w = (side, side) if isinstance(side, int) else side
    return max(1, round(PASS / (h * w)))
