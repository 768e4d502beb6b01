"""A grid that runs in a second: two categories of the painted pictures, the smallest network, trainings of two epochs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import rcp
from rcp.experiments import Data, Grid, Method

TINY = rcp.FeatureSettings("test_resnet", pretrained=False, resize=72, crop=(64, 96))
TRAINING = {"epochs": 2, "steps": 2, "dimension": 16, "projection": 16, "batch_size": 64}
BANK = {"coreset": 0.1}
METHODS = (
    Method("PatchCore", "patchcore"),
    Method("ReConPatch", "reconpatch", snapshots=(0, 1)),
)


def dataset(category: rcp.data.Category, root: Path, names: tuple[str, ...] = ("thing", "other")) -> Path:
    """Copy a category into a new data set, once under each name; each copy lacks another training image."""
    for number, name in enumerate(names):
        shutil.copytree(category.root, root / name)
        (root / name / "train" / "good" / f"{number}.png").unlink()
    return root


def grid(methods=METHODS, *, data=(Data("painted"),), seeds=(0, 1), backbones=None, training=TRAINING) -> Grid:
    return Grid("a small grid", tuple(data), backbones or {"tiny": TINY}, tuple(methods), seeds, BANK, training)


def found(folder: Path, names) -> dict:
    """What was measured, without how long it took, by address."""
    return {name: without_times(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))) for name in names}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in ("seconds", "threads", "cost")}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def toml(path: Path, methods: str = "", *, data: str = '[[data]]\nname = "painted"\n', head: str = "seeds = [0, 1]\n") -> Path:
    """Write the same grid as a file."""
    methods = methods or (
        '[[methods]]\nname = "PatchCore"\ndetector = "patchcore"\n'
        '[[methods]]\nname = "ReConPatch"\ndetector = "reconpatch"\nsnapshots = [0, 1]\n'
    )
    settings = "".join(f"{key} = {value}\n" for key, value in TRAINING.items())
    path.write_text(
        f'title = "a small grid"\n{head}[training]\n{settings}[bank]\ncoreset = 0.1\n{data}'
        f'[[backbones]]\nname = "tiny"\nbackbone = "test_resnet"\npretrained = false\nresize = 72\ncrop = [64, 96]\n{methods}',
        encoding="utf-8",
    )
    return path
