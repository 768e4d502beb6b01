"""What notebook 10 shows besides grids, measured once: maps of all systems on the same images, and what SPADE's K does.

    python -m rcp.course.systems_measure figures/results                            # maps, and K on the embedded data
    python -m rcp.course.systems_measure figures/results --data mvtec=DIR           # K on real categories, too

A map is kept on a grid of at most 28 x 28, as means of what the system gave: enough to look at, no metric is computed from it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import rcp
from rcp import data, synthetic
from rcp.auxiliary import auxiliary
from rcp.course.systems import BASELINE, KINDS, NAMES
from rcp.data import Category, Split
from rcp.detectors import SYSTEMS, Detector
from rcp.detectors.spade import image_scores_for
from rcp.files import write_json
from rcp.metrics import image_metrics
from rcp.modelfile import versions

SCHEMA = 1
CATEGORY, SIDE = "terminal", 28
KS = (1, 2, 3, 5, 10, 20, 30, 40, 50)
BOTTLE, PILL = "bottle", "pill"  # what is measured of MVTec AD where its folder is given


def detector_of(name: str, category: Category, seed: int = 0) -> Detector:
    """Return a system as the grid measures it, not fitted; a generalist has learned from the other embedded categories.

    Args:
        name: as tables call it.
        category: that it will meet.
        seed: of the system.
    """
    kind = KINDS[name]
    if kind == "patchcore":
        return rcp.PatchCore(seed=seed)
    if kind == "reconpatch":
        return rcp.ReConPatch(training=rcp.TrainSettings(epochs=120, steps=16, batch_size=128), seed=seed)
    detector = SYSTEMS[kind](seed=seed)
    return detector.pretrain(auxiliary(category)) if kind == "inctrl" else detector


def looked_at(category: Category) -> list[int]:
    """Return which test images are shown: the first of every kind."""
    defects = category.test.defects
    return [defects.index(kind) for kind in dict.fromkeys(defects)]


def measure_maps(category: Category, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the maps of every system on the first test image of every kind, with its colour scale and unit."""
    places = looked_at(category)
    some = Split("test", category.test.root, tuple(category.test[i] for i in places))
    found = {}
    for name in (BASELINE, *NAMES):
        detector = detector_of(name, category).fit(category.train)
        scores = detector.score(some)
        grid = scores.patch_scores[:, None]  # (n, 1, H, W)
        side = tuple(min(SIDE, size) for size in grid.shape[2:])
        limits = detector.colour_limits()
        found[name] = {
            "unit": scores.unit, "limits": [float(f"{value:.5g}") for value in limits],
            "image_scores": [float(f"{value:.5g}") for value in scores.image_scores.tolist()],
            "maps": [[[float(f"{v:.4g}") for v in row] for row in one] for one in F.adaptive_avg_pool2d(grid, side)[:, 0].tolist()],
        }  # fmt: skip
        say(f"{name}: maps of {len(some)} images")
    files = [one.path.relative_to(category.root).as_posix() for one in some]
    return {"category": category.name, "files": files, "defects": some.defects, "seed": 0, "systems": found}


def measure_k(categories: Mapping[str, Category], say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Return SPADE's image AUROC for every K of `KS` on each category; nothing in it is drawn, so there is no spread over seeds."""
    found = {}
    for label, category in categories.items():
        detector = rcp.SPADE(options=rcp.SPADEOptions(left_out=1)).fit(category.train)
        scores = image_scores_for(detector.image_distances(category.test), KS)  # (len(KS), n)
        labels = category.test.labels
        found[label] = {str(k): image_metrics(labels, own.numpy())["image_auroc"] for k, own in zip(KS, scores, strict=True)}
        say(f"SPADE, {label}: " + ", ".join(f"K {k}: {value:.3f}" for k, value in found[label].items()))
    return found


def _categories(root: Path | None) -> Iterator[tuple[str, Category]]:
    for name in synthetic.CATEGORIES:
        yield name, data.mvtec(synthetic.cached(), name)
    for name in (BOTTLE, PILL) if root else ():
        yield name, data.mvtec(root, name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for systems_maps.json and systems_spade.json")
    parser.add_argument("--data", metavar="mvtec=DIR", help="where MVTec AD lies")
    given = parser.parse_args(arguments)
    root = Path(given.data.partition("=")[2]) if given.data else None
    head = {"schema": SCHEMA, "versions": versions(), "threads": torch.get_num_threads()}
    by_k = measure_k(dict(_categories(root)), print)
    write_json(given.folder / "systems_spade.json", head | {"image_auroc": by_k})
    maps = measure_maps(data.mvtec(synthetic.cached(), CATEGORY), print)
    write_json(given.folder / "systems_maps.json", head | maps, compact=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
