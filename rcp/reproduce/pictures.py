"""The paper's Figures 3 to 5 for `rcp reproduce`: measured into a result file each, and drawn from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rcp import data as datasets
from rcp.backbones import load_backbone
from rcp.data import Category
from rcp.experiments import Machine
from rcp.experiments.measure import Material
from rcp.experiments.runner import said
from rcp.features import FeatureSettings
from rcp.plots_paper import read
from rcp.reproduce.figure_files import picture
from rcp.reproduce.figures import FIGURES, QUICK, Settings, identity, prepare
from rcp.reproduce.pace import Training, steps
from rcp.reproduce.setup import Setup
from rcp.store import MemoryLimit

SHOWN = {"figure3": "capsule", "figure4": "bottle", "figure5": "bottle"}  # as in the paper; 5 shows many there, one here
PRESET = "single-224"


@dataclass(frozen=True)
class Drawn:
    """What became of the figures.

    Attributes:
        paths: the PNGs.
        failures: name of a figure → why it has none.
    """

    paths: tuple[Path, ...]
    failures: dict[str, str]


def draw(
    names: Sequence[str],
    setup: Setup,
    root: Path,
    out: Path,
    *,
    machine: Machine = Machine(),
    say: Callable[[str], None],
) -> Drawn:
    """Return the PNGs of some figures; what was measured with the same data, weights and settings is not measured again.

    Args:
        names: of `FIGURES`.
        setup: data, backbone, seeds, quick or not.
        root: where the data lie.
        out: the folder; a figure is out/<name>.png beside out/<name>.json.
        machine: device, threads, and a bound on memory.
        say: receives a line a figure.

    Returns:
        What was drawn; a figure that fails is told with its reason, and the others are drawn all the same.
    """
    work = _Work(setup, root, out, machine, say)
    threads, paths, failures = torch.get_num_threads(), [], {}
    torch.set_num_threads(machine.threads or threads)
    try:
        for name in sorted(names, key=lambda name: (shown(name, setup), name)):  # those of one category side by side
            try:
                paths.append(work.figure(name))
            except Exception as error:  # whatever it is, it is told; the rest goes on
                failures[name] = said(error)
    finally:
        torch.set_num_threads(threads)
    return Drawn(tuple(sorted(paths)), failures)


def shown(name: str, setup: Setup) -> str:
    """Return the category that a figure shows: the paper's, or the first one where that is not measured."""
    return SHOWN[name] if SHOWN[name] in setup.categories else setup.categories[0]


def settings_of(setup: Setup) -> Settings:
    """Return how the figures are measured."""
    return QUICK if setup.quick else Settings(setup.preset(PRESET).training, seeds=setup.seeds)


def trainings(
    names: Sequence[str], setup: Setup, images: Mapping[str, tuple[int, int]], grid: tuple[int, int]
) -> dict[tuple, Training]:
    """Return the trainings that figures need, for `rcp.reproduce.pace`; Figure 4 shares the tables' cells.

    Args:
        names, setup: as for `draw`.
        images: category → number of training and test images.
        grid: patches an image, and numbers a patch.
    """
    settings, features = settings_of(setup), setup.preset(PRESET).features
    found, (patches, width) = {}, grid
    for name in names:
        category = shown(name, setup)
        one = Training(steps(settings.training, images[category][0], patches), width, settings.training)
        if name == "figure4":
            shared = (setup.data, category, features, 0, "reconpatch", None, settings.training)
            found |= {(*shared, seed): one for seed in settings.seeds}
        elif name == "figure3":  # ends with the last epoch that is drawn
            found[name] = replace(one, steps=one.steps // settings.training.epochs * settings.epochs[-1])
        else:
            found[name] = one
    return found


class _Work:
    """Draws one figure after the other; the features of the last category wait for the next figure."""

    def __init__(self, setup: Setup, root: Path, out: Path, machine: Machine, say: Callable[[str], None]):
        self.setup, self.root, self.out, self.machine, self.say = setup, root, out, machine, say
        self.features, self.settings = setup.preset(PRESET).features[0], settings_of(setup)
        self.material: Material | None = None

    def figure(self, name: str) -> Path:
        category = datasets.find(self.root, shown(name, self.setup))
        path = self.out / f"{name}.json"
        if _is_measured(path, name, category, self.features, self.settings):
            self.say(f"{name}: {path} is there already")
        else:
            self.say(f"{name}: {category.name}, {self.settings.training.epochs} epochs")
            FIGURES[name](self._material(category), self.out, self.settings)
        return picture(path)

    def _material(self, category: Category) -> Material:
        if self.material is None or self.material.category != category:
            self.material = None  # never the features of two categories at once
            bound, scratch = self.machine.max_memory, Path(self.machine.scratch or self.out)
            if bound:
                scratch.mkdir(parents=True, exist_ok=True)
            limit = MemoryLimit(bound, scratch if bound else None)
            self.material = prepare(category, self.features, device=self.machine.device, limit=limit)
        return self.material


def _is_measured(path: Path, name: str, category: Category, features: FeatureSettings, settings: Settings) -> bool:
    """Whether the file is what would be measured now; looks at the images and the weights, and computes no features."""
    if not path.is_file():
        return False
    there = read(path, name)
    given = there["settings"]
    wanted = {"features": asdict(features), "training": asdict(settings.training)}
    own = {"seeds": settings.seeds, "epochs": settings.epochs, "seed": settings.seeds[0]}
    wanted |= {key: value for key, value in own.items() if key in given}  # each figure names those that it depends on
    return (
        {key: given[key] for key in wanted} == json.loads(json.dumps(wanted))  # as a file would give it back
        and there["dataset"] == identity(category)
        and there["backbone"]["sha256"] == _sha256(features)
    )


def _sha256(features: FeatureSettings) -> str:
    return load_backbone(
        features.backbone, levels=features.levels, strides=features.strides, pretrained=features.pretrained,
        weights=features.weights,
    ).sha256  # fmt: skip
