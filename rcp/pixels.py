"""Decoded images: what systems that train a network on the images, and not a layer on their features, keep in memory.

An image of 224 x 224 pixels takes 150 kB, a category of MVTec AD 9 to 60 MB: far less than its features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rcp import progress
from rcp.features import Images, paths_of
from rcp.images import Batch, Geometry, ImageError, stream
from rcp.store import MemoryLimit

AT_A_TIME = 8  # images that are decoded together


@dataclass(frozen=True)
class Pixels:
    """A set of images as a network takes them, and where they come from.

    Attributes:
        values: (n, 3, h, w) uint8, RGB: n images that could be read, in their order.
        paths: of all images asked for.
        indices: positions, in `paths`, of the n images.
        sizes: per image (height, width) of the file in pixels.
        skipped: (path, reason) of the images that could not be read, with on_error="skip".
        geometry: the resize and crop that they went through.
    """

    values: Tensor
    paths: list[Path]
    indices: list[int]
    sizes: list[tuple[int, int]]
    skipped: list[tuple[Path, str]]
    geometry: Geometry

    def __len__(self) -> int:
        return len(self.values)


def stream_pixels(
    images: Images, geometry: Geometry, *, workers: int, on_error: str = "raise", skipped: list[tuple[Path, str]] | None = None
) -> Iterator[Batch]:
    """Yield decoded images a few at a time, with a progress bar; `rcp.images.stream` says what a batch is, and what is raised.

    Args:
        images: a split, or paths.
        geometry: resize and crop.
        workers: decoding threads.
        on_error: "raise", or "skip" to leave unreadable files out and list them in `skipped`.
        skipped: receives (path, reason).
    """
    paths = paths_of(images)
    batches = stream(paths, geometry, batch_size=AT_A_TIME, workers=workers, on_error=on_error, skipped=skipped)
    with closing(batches), progress.bar("images", len(paths), "image") as shown:
        for batch in batches:
            yield batch
            shown.update(len(batch.indices))


def load_pixels(
    images: Images, geometry: Geometry, *, workers: int = 2, on_error: str = "raise", limit: MemoryLimit = MemoryLimit()
) -> Pixels:
    """Return all images, decoded, resized and cropped.

    Args:
        images: a split, or paths.
        geometry: resize and crop; all must come out at one size.
        workers: decoding threads.
        on_error: "raise", or "skip": unreadable files are left out and listed in the result.
        limit: beyond it the pixels lie in a mapped file.

    Returns:
        `Pixels`.

    Raises:
        ImageError: for a file that cannot be read; also if no file at all could be read.
    """
    paths, skipped = paths_of(images), []
    values, indices, sizes = None, [], []
    for batch in stream_pixels(images, geometry, workers=workers, on_error=on_error, skipped=skipped):
        if values is None:
            values = limit.empty((len(paths), *batch.pixels.shape[1:]), batch.pixels.dtype).values
        values[len(indices) : len(indices) + len(batch.indices)] = batch.pixels
        indices += batch.indices
        sizes += batch.sizes
    if values is None:
        path, reason = skipped[0]
        raise ImageError(f"none of the {len(paths)} images could be read; the first, {path}: {reason}")
    return Pixels(values[: len(indices)], paths, indices, sizes, skipped, geometry)
