"""What a reproduction was asked for: data, backbone, seeds; and the presets that this makes of the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from rcp import official, presets
from rcp.features import STORED
from rcp.presets import Preset

DATA = {"mvtec": official.MVTEC, "btad": official.BTAD, "visa": official.VISA, "synthetic": official.MVTEC}
TITLES = {"mvtec": "MVTec AD", "btad": "BTAD", "visa": "VisA", "synthetic": "a drawn miniature of MVTec AD"}
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")  # MVTec's; the other ten are objects
QUICK = {"epochs": 2, "steps": 4, "batch_size": 128}
QUICK_SEEDS, SEEDS = 2, 3


@dataclass(frozen=True)
class Setup:
    """What was asked for.

    Attributes:
        data: "mvtec", "btad", "visa" or "synthetic".
        categories: those that are measured, as their folders are called.
        backbone: "paper", "embedded", or the name of one that stands in for every single one.
        weights: name of a backbone → local weight file; "" stands for the only one that a table has.
        seeds: of f, the batches and the coreset.
        quick: a training of a few steps, only to try the path.
        stored: how features are kept; None: as the presets say.
    """

    data: str
    categories: tuple[str, ...]
    backbone: str = "paper"
    weights: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = tuple(range(SEEDS))
    quick: bool = False
    stored: str | None = None

    def __post_init__(self):
        if self.data not in DATA:
            raise ValueError(f"data must be one of {', '.join(DATA)}, got {self.data!r}")
        if self.stored is not None and self.stored not in STORED:
            raise ValueError(f"stored must be one of {', '.join(STORED)}, got {self.stored!r}")

    @property
    def released(self) -> tuple[str, ...]:
        """All categories of the data set as it was released."""
        return tuple(DATA[self.data])

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of them that are not measured."""
        return tuple(name for name in self.released if name not in self.categories)

    def preset(self, name: str) -> Preset:
        """Return a preset of the paper as it is to be measured: backbone, weights, precision.

        Raises:
            ValueError: if an ensemble is asked for on one backbone.
        """
        paper = presets.get(name)
        if self.backbone == "embedded":
            found = presets.twin(paper)
        elif self.backbone == "paper":
            found = paper
        elif len(paper.features) > 1:
            raise ValueError(f"{name} joins several backbones, so --backbone {self.backbone} does not do: take paper or embedded")
        else:
            found = presets.on_backbones(paper, [self.backbone])
        found = presets.on_backbones(found, [one.backbone for one in found.features], self._files(found))
        if self.stored:
            found = replace(found, features=tuple(replace(one, stored=self.stored) for one in found.features))
        return found

    def training(self, preset: Preset, **changes: Any) -> dict[str, Any]:
        """Return the fields of a preset's training that are not the defaults of `rcp`, for a grid; with --quick its few steps."""
        own = {name: getattr(preset.training, name) for name in ("dimension", "epochs", "learning_rate")}
        return own | changes | (QUICK if self.quick else {})

    def _files(self, preset: Preset) -> dict[str, str]:
        names = [one.backbone for one in preset.features]
        files = {name: self.weights[name] for name in names if name in self.weights}
        if "" in self.weights:
            files |= dict.fromkeys(names, self.weights[""])
        return files


def check_weights(setup: Setup, table: int, used: list[Preset]) -> None:
    """Raise a ValueError if one weight file is given without a name, and several backbones of a table could be meant."""
    names = sorted({one.backbone for preset in used for one in preset.features})
    if "" in setup.weights and len(names) > 1:
        raise ValueError(f"table{table} needs the weights of {', '.join(names)}: give each with --weights NAME=FILE")


def check_named(setup: Setup, used: Mapping[str, Set[str]]) -> None:
    """Raise a ValueError if a weight file is given for a backbone that nothing takes: it would be ignored.

    Args:
        setup: what was asked for.
        used: name of a table or figure → the backbones that it uses.
    """
    names = set().union(*used.values())
    unknown = [name for name in setup.weights if name and name not in names]
    if unknown:
        verb = "takes" if len(used) == 1 else "take"
        raise ValueError(f"--weights {unknown[0]}=…: {', '.join(used)} {verb} {', '.join(sorted(names))}, and no {unknown[0]}")


def label(preset: Preset) -> str:
    """Return how the grid and the tables call a preset's backbone: "WRN-50 at 224 px, s=5, levels 1+2+3"."""
    first = preset.features[0]
    usual = (first.patch_size, first.levels) == (3, (2, 3))
    form = "" if usual else f", s={first.patch_size}, levels {'+'.join(map(str, first.levels))}"
    return f"{' + '.join(preset.backbones)} at {preset.size} px{form}"


def published_name(data: str, category: str) -> str:
    """Return how the published tables call a category: BTAD's folder 01 is class_01."""
    return f"class_{category}" if data == "btad" else category


def means(setup: Setup) -> dict[str, tuple[str, ...]]:
    """Return each mean that tables show, and the categories that it is taken over."""
    every = setup.released
    if setup.data not in ("mvtec", "synthetic"):
        return {"mean": every}
    objects = tuple(name for name in every if name not in TEXTURES)
    return {"mean": every, "mean_object": objects, "mean_texture": TEXTURES}
