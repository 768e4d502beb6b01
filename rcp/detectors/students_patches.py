"""What a teacher of Uninformed Students learns from: patches of many pictures, their near copies, and what the backbone says of them.

Source: Bergmann et al., Uninformed Students, CVPR 2020 (arXiv 1911.02357), section 3.1; pictures and sizes are ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rcp import progress, synthetic
from rcp.features import PatchExtractor

PHOTOGRAPHS = (  # without the two that the embedded textures are cut from
    "astronaut.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
BRIGHTNESS, NOISE = 0.2, 25.5  # of a positive: up to a fifth brighter or darker; the deviation in grey values is the paper's 0.1
BLOCK = 64  # patches that the backbone looks at together


def pictures() -> list[list[Tensor]]:
    """Return what teachers learn from: (3, h, w) uint8 pictures in two groups, of which equally many patches are cut."""
    root = synthetic.cached()
    good = sorted(root.glob("*/train/good/*.png"))
    photographs = [Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS]
    return [[_opened(path) for path in group] for group in (good, photographs)]


def _opened(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def cut(groups: list[list[Tensor]], field: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return patches with some pixels around them, of random place and scale, and from which picture each one is.

    As in the paper, a picture is thought to be brought to a short side between 4p and 16p. The rim is as wide as a positive
    may be moved.

    Args:
        groups: pictures (3, h, w) uint8; the groups take turns.
        field: p.
        count: n, how many.
        generator: draws them.

    Returns:
        (n, 3, p + 2m, p + 2m) uint8, m = (p-1)/4; (n,) int64.
    """
    whole = field + 2 * ((field - 1) // 4)  # p + 2m
    patches, sources = torch.empty(count, 3, whole, whole, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    firsts = np.cumsum([0, *map(len, groups)])
    for i in range(count):
        which = i % len(groups)
        number = int(torch.randint(len(groups[which]), (), generator=generator))
        picture = groups[which][number]
        scale, down, across = torch.rand(3, generator=generator).tolist()
        short = min(picture.shape[1:])
        side = max(2, min(short, round(short * whole / (field * (4 + 12 * scale)))))
        top, left = (int(where * (length - side + 1)) for where, length in zip((down, across), picture.shape[1:], strict=True))
        crop = picture[None, :, top : top + side, left : left + side].float()
        patches[i] = F.interpolate(crop, (whole, whole), mode="bilinear", antialias=True)[0].round().clamp(0, 255)
        sources[i] = int(firsts[which]) + number
    return patches, sources


def centres(patches: Tensor, field: int) -> Tensor:
    """Return patches without their rims: (b, 3, p + 2m, p + 2m) → (b, 3, p, p)."""
    rim = (patches.shape[-1] - field) // 2
    return patches[..., rim : rim + field, rim : rim + field]


def positives(patches: Tensor, field: int, generator: torch.Generator) -> Tensor:
    """Return nearly the same patches: moved within their rims, brighter or darker, with noise.

    Args:
        patches: (b, 3, p + 2m, p + 2m) uint8.
        field: p.
        generator: draws places, brightness and noise.

    Returns:
        (b, 3, p, p) float32 in [0, 255].
    """
    b, places = len(patches), patches.shape[-1] - field + 1
    offsets = torch.randint(places, (b, 2), generator=generator).tolist()
    moved = torch.stack([one[:, y : y + field, x : x + field] for one, (y, x) in zip(patches, offsets, strict=True)]).float()
    moved *= 1 + BRIGHTNESS * (2 * torch.rand(b, 1, 1, 1, generator=generator) - 1)
    return (moved + NOISE * torch.randn(moved.shape, generator=generator)).clamp(0, 255)


def backbone_descriptors(patches: Tensor, extractor: PatchExtractor, side: int) -> Tensor:
    """Return P(p), standardised over all patches.

    Args:
        patches: (n, 3, p, p) uint8.
        extractor: P; the means of its maps are joined.
        side: pixels to which a patch is brought before.

    Returns:
        (n, K) float32 on the CPU.
    """
    rows = []
    with progress.bar("teacher's targets", len(patches), "patch") as shown:
        for block in patches.split(BLOCK):
            large = F.interpolate(block.float(), (side, side), mode="bilinear", antialias=True).clamp(0, 255)
            rows.append(torch.cat([m.mean((2, 3)) for m in extractor.maps(large)], 1).cpu())  # (block, K)
            shown.update(len(block))
    targets = torch.cat(rows)
    return (targets - targets.mean(0)) / targets.std(0).clamp_min(1e-6)
