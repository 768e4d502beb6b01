"""Maps against masks, image by image: where a map is highest, and whether that lies inside the true outline."""

from __future__ import annotations

import numpy as np

from rcp.data import Split
from rcp.evaluation import Result
from rcp.images import read_mask


def masks_of(test: Split, result: Result) -> np.ndarray:
    """Return (n, h, w) bool: the true masks of the scored images, resized and cropped as the network saw them."""
    masks = []
    for index, size in zip(result.scores.indices, result.scores.sizes, strict=True):
        path = test[index].mask
        masks.append(result.scores.geometry.apply_mask(np.zeros(size, bool) if path is None else read_mask(path, size)))
    return np.stack(masks)


def peaks(maps: np.ndarray) -> np.ndarray:
    """Return (n, 2) int: row and column of the largest value of (n, h, w) maps."""
    return np.stack(np.unravel_index(maps.reshape(len(maps), -1).argmax(1), maps.shape[1:]), 1)


def peaks_inside(maps: np.ndarray, masks: np.ndarray) -> tuple[int, int]:
    """Return how many maximums lie inside the true outline, and of how many images with one; both (n, h, w)."""
    rows, columns = peaks(maps).T
    return int(masks[np.arange(len(maps)), rows, columns].sum()), int(masks.any((1, 2)).sum())
