"""Small pictures with H != W, and the smallest network that timm has, for the rooms after `images`."""

import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:  # side by side: each its share of the cores, as the
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))  # kernels that it starts. Before torch

import numpy as np
import pytest
from PIL import Image

import rcp

SIZES = ((90, 130), (80, 120), (100, 150), (84, 126))  # (height, width): all hold the crop after the resize


def paint(path: Path, seed: int, size: tuple[int, int] = (90, 130), defect: tuple[slice, slice] | None = None) -> Path:
    """Write a smooth picture, of one kind but never the same; a defect is a black and white chequer."""
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(99).integers(60, 200, (4, 6, 3)) + rng.integers(-25, 26, (4, 6, 3))
    pixels = np.array(Image.fromarray(coarse.astype(np.uint8)).resize(size[::-1]))
    if defect:
        rows, columns = np.indices(size)
        pixels[defect] = ((rows // 4 + columns // 4) % 2 * 255)[..., None][defect]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def fresh() -> Callable[[int], np.ndarray]:
    """Makes arrays on pages of their own: the C library may serve others from memory that earlier tests left with it."""

    def make(size: int) -> np.ndarray:
        # Private where that is a choice: shared anonymous pages are not what the kernel calls anonymous.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform != "win32" else {}
        return np.frombuffer(mmap.mmap(-1, size, **private), np.uint8)

    return make


@pytest.fixture(scope="session")
def tiny() -> rcp.FeatureSettings:
    """64x96 pixels in, 8x12 patches of 240 numbers out, in milliseconds; weights drawn at random."""
    return rcp.FeatureSettings("test_resnet", pretrained=False, resize=72, crop=(64, 96))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    """Seven normal pictures of four sizes."""
    folder = tmp_path_factory.mktemp("photos")
    return [paint(folder / f"{i}.png", i, SIZES[i % 4]) for i in range(7)]


@pytest.fixture(scope="session")
def category(tmp_path_factory) -> rcp.data.Category:
    """MVTec's layout: 8 for training; 4 good and 3 defective ones with masks for testing."""
    root = tmp_path_factory.mktemp("data") / "thing"
    for i in range(8):
        paint(root / "train" / "good" / f"{i}.png", i, SIZES[i % 4])
    for i in range(4):
        paint(root / "test" / "good" / f"{i}.png", 20 + i, SIZES[i % 4])
    for i in range(3):
        h, w = SIZES[i]
        place = np.s_[h // 3 : h // 3 + 20, w // 2 : w // 2 + 24 + 6 * i]
        paint(root / "test" / "scratch" / f"{i}.png", 40 + i, (h, w), place)
        mask = np.zeros((h, w), np.uint8)
        mask[place] = 255
        (root / "ground_truth" / "scratch").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "ground_truth" / "scratch" / f"{i}_mask.png")
    return rcp.mvtec(root.parent, "thing")
