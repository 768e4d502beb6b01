"""The paper's Figures 3 to 5 for `rcp reproduce`: measured into a result file each, and drawn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rcp import data as datasets
from rcp.experiments.measure import Material
from rcp.plots_paper import read
from rcp.reproduce.figure_files import picture
from rcp.reproduce.figures import FIGURES, QUICK, Settings, identity, prepare
from rcp.reproduce.setup import Setup
from rcp.store import MemoryLimit

SHOWN = {"figure3": "capsule", "figure4": "bottle", "figure5": "bottle"}  # as in the paper; 5 shows many there, one here


def draw(
    names: Sequence[str],
    setup: Setup,
    root: Path,
    out: Path,
    *,
    device: str = "auto",
    limit: MemoryLimit = MemoryLimit(),
    say: Callable[[str], None],
) -> list[Path]:
    """Return the PNGs of some figures; what was measured with the same data, weights and settings is not measured again.

    Args:
        names: of `FIGURES`.
        setup: data, backbone, seeds, quick or not.
        root: where the data lie.
        out: the folder; a figure is out/<name>.png beside out/<name>.json.
        device: where to compute.
        limit: a bound on memory.
        say: receives a line a figure.

    Raises:
        ValueError: if the category has no test images, or of one kind only.
        WeightsError: if the backbone's weights cannot be had.
    """
    preset = setup.preset("single-224")
    settings = QUICK if setup.quick else Settings(preset.training, seeds=setup.seeds)
    shared: dict[str, Material] = {}
    drawn = []
    for name in names:
        category = SHOWN[name] if SHOWN[name] in setup.categories else setup.categories[0]
        if category not in shared:
            shared[category] = prepare(datasets.find(root, category), preset.features[0], device=device, limit=limit)
        path = out / f"{name}.json"
        if _is_measured(path, name, shared[category], settings):
            say(f"{name}: {path} is there already")
        else:
            say(f"{name}: {category}, {settings.training.epochs} epochs")
            FIGURES[name](shared[category], out, settings)
        drawn.append(picture(path))
    return drawn


def _is_measured(path: Path, name: str, material: Material, settings: Settings) -> bool:
    """Whether the file is what would be measured now."""
    if not path.is_file():
        return False
    there, extractor = read(path, name), material.extractors[0]
    given = there["settings"]
    wanted = {"features": asdict(extractor.settings), "training": asdict(settings.training)}
    own = {"seeds": settings.seeds, "epochs": settings.epochs, "seed": settings.seeds[0]}
    wanted |= {key: value for key, value in own.items() if key in given}  # each figure names those that it depends on
    return (
        there["dataset"] == identity(material.category)
        and there["backbone"]["sha256"] == extractor.backbone.sha256
        and {key: given[key] for key in wanted} == json.loads(json.dumps(wanted))  # as a file would give it back
    )
