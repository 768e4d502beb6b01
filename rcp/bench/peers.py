"""Beside anomalib: the same files, the same rows, the same maps, each system in a process of its own, in turn.

anomalib lives in an environment that the user names; the scripts `peer_*.py` here run in it and print one line of JSON, as
`ours.py` does in this one. Both sides start their clock when everything is imported, and measure their own peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import rcp
from rcp.bench.measure import FULL, answer_of, line, table
from rcp.data import Category
from rcp.features import FeatureSettings, PatchExtractor

if TYPE_CHECKING:
    from rcp.bench import Choice

HERE = Path(__file__).parent
MAPS = (167, 800, 800)


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the lines, and what both sides printed."""
    with tempfile.TemporaryDirectory(dir=choice.folder) as name:
        folder, peer = Path(name), str(choice.peer)
        root = full_size(choice.category, folder / "full")
        say(f"  {choice.category.name}: {len(choice.category.train)} + {len(choice.category.test)} images as {FULL} px PNG")
        rows = folder / "rows.npy"
        np.save(rows, PatchExtractor(FeatureSettings(), device="cpu").extract(choice.category.train).rows.numpy())
        maps = _maps(folder)
        found, lines = {}, []
        others = {name: value for name, value in os.environ.items() if name not in rcp.SET_HERE}  # as anomalib's users run it
        own = [root, choice.category.name]
        for what, ours, theirs in (
            ("files", ["files", *own, "float32", 0], ["peer_files.py", *own]),
            ("files, bfloat16", ["files", *own, "bfloat16", 0], None),
            ("files, calibrated", ["files", *own, "float32", 5], None),
            ("files, calibrated, bfloat16", ["files", *own, "bfloat16", 5], None),
            ("coreset", ["coreset", rows], ["peer_coreset.py", rows]),
            ("metrics", ["metrics", *maps], ["peer_metrics.py", *maps]),
        ):
            pairs = []
            for number in range(choice.repeats):
                mine = answer_of([sys.executable, "-m", "rcp.bench.ours", *ours])
                if theirs:
                    peers = answer_of([peer, HERE / theirs[0], *theirs[1:]], others)
                else:  # anomalib does its one thing, float32 without calibration: its runs of the first line
                    peers = found["files"][number]["anomalib"]
                pairs.append({"rcp": mine, "anomalib": peers})
                say(f"  {what}: {json.dumps(pairs[-1])}")
            found[what] = pairs
            lines.append(line(what, "anomalib", [(p["rcp"]["seconds"], p["anomalib"]["seconds"]) for p in pairs]))
    table(lines, say)
    return {"lines": lines, "runs": found}


def full_size(category: Category, root: Path) -> Path:
    """Write a category again in MVTec AD's layout, its images as PNG of 900 × 900 pixels; return the root."""
    for source in sorted(category.root.rglob("*.*")):
        if source.suffix.lower() in (".png", ".jpg", ".jpeg"):
            target = (root / category.name / source.relative_to(category.root)).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            mask = "ground_truth" in source.parts
            resample = Image.Resampling.NEAREST if mask else Image.Resampling.BICUBIC
            Image.open(source).resize((FULL, FULL), resample).save(target)
    return root


def _maps(folder: Path) -> tuple[Path, Path]:
    """Maps as a detector makes them (smooth, higher where the mask is), and masks, on disk for both."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(0)
    n, h, w = MAPS
    maps, masks = np.empty(MAPS, np.float32), np.zeros(MAPS, bool)
    for i in range(n):
        maps[i] = np.kron(generator.random((h // 8, w // 8), np.float32), np.ones((8, 8), np.float32))
        if i % 4:  # a quarter of the images is good
            top, left = generator.integers(0, h - 150), generator.integers(0, w - 150)
            masks[i, top : top + 90, left : left + 120] = True
            maps[i][masks[i]] += 0.2
        maps[i] = gaussian_filter(maps[i], 4)
    paths = folder / "maps.npy", folder / "masks.npy"
    np.save(paths[0], maps)
    np.save(paths[1], masks)
    return paths
