"""A grid: what is to be measured, said once, in Python or in a short TOML file (`rcp.experiments.gridfile`).

A grid is data × categories × backbones × methods × seeds; each point of it is a `Cell`, and each cell becomes one result
file. A method may vary some of its settings, one cell a value. What a cell means is said by its settings with every default
written out, so that a default that changes one day cannot pass an old result off as a new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rcp.detectors import SYSTEMS, BankSettings
from rcp.detectors.patchcore import VARIANTS
from rcp.detectors.reduced import METHODS
from rcp.evaluation import PROTOCOLS
from rcp.exact import exact, exact_by
from rcp.features import FeatureSettings
from rcp.head import TrainSettings
from rcp.ports import BUGS
from rcp.quality import QUALITIES, SIDES, Quality
from rcp.scoring import REWEIGHTS

EMBEDDED = "embedded"  # the one data set that needs no folder
OPTIONS = {  # detector → what it can be told besides features, bank and training, with the defaults
    "patchcore": {"variant": "concat"},
    "reduced": {"method": "pca", "dimension": 512, "reweight": "off"},
    "reconpatch": {"reweight": "patch"},
    "ported": {"bug": None, "reweight": "patch"},
} | {kind: asdict(system.Options()) for kind, system in SYSTEMS.items()}
GENERALISTS = tuple(kind for kind, system in SYSTEMS.items() if hasattr(system, "pretrain"))  # they learn from other categories:
OPTIONS |= {kind: {"auxiliary": "embedded"} | OPTIONS[kind] for kind in GENERALISTS}  # the embedded ones, or the same data set's
TRAINED = ("reconpatch", "ported")
CHOICES = {"variant": tuple(VARIANTS), "method": METHODS, "reweight": REWEIGHTS, "bug": (None, *BUGS), "auxiliary": ("embedded", "others")}


@dataclass(frozen=True)
class Data:
    """A data set of the grid, as it comes or with degraded images.

    Attributes:
        name: "embedded", or a name whose folder is given when the grid is run; it is what tables show.
        categories: some of its categories; None: all that are found.
        quality: what is done to the images, or None.
        sides: which images: "train", "test" or "both".
        pooled: one model for all categories: each is tested on its own, after a fit on the good images of all.
    """

    name: str
    categories: tuple[str, ...] | None = None
    quality: Quality | None = None
    sides: str = "test"
    pooled: bool = False

    def __post_init__(self):
        if not self.name or Path(self.name).name != self.name:  # copies with degraded images lie in a folder of that name
            raise ValueError(f"data must have a name without slashes, got {self.name!r}")
        if self.sides not in SIDES:
            raise ValueError(f"data {self.name!r}: sides must be one of {', '.join(SIDES)}, got {self.sides!r}")
        if self.categories is not None and (not self.categories or len(set(self.categories)) < len(self.categories)):
            raise ValueError(f"data {self.name!r}: categories must be different names, at least one; without the key, all")

    @property
    def label(self) -> str:
        """The name, and what was done to the images."""
        name = f"{self.name}, one model" if self.pooled else self.name
        return name if self.quality is None else f"{name}, {self._what()} on {self.sides}"

    def _what(self) -> str:
        """The quality by its name, else by the magnitudes that differ from the defaults of `Quality`."""
        for name, quality in QUALITIES.items():
            if quality == self.quality:
                return name
        usual, given = asdict(Quality()), asdict(self.quality)
        return " ".join(f"{key} {value}" for key, value in given.items() if value != usual[key])


@dataclass(frozen=True)
class Method:
    """A line of the table: a detector with settings, of which some may vary.

    Attributes:
        name: what tables show.
        detector: "patchcore", "reduced", "reconpatch", "ported", one of the other systems (`rcp.detectors.SYSTEMS`), or
            "ensemble".
        features, bank, training: fields that differ from the grid's.
        options: of the detector, see `OPTIONS`; of an ensemble: `member`, a detector, and its options.
        vary: "training.alpha" and the like → the values that it takes; several are combined.
        snapshots: epochs at which a training is measured on its way; the last epoch always is.
        members: names of the backbones that an ensemble joins.
        data, backbones, seeds: those of the grid that this method is measured on; None: all. Data that come in several
            qualities can be told apart by their labels, as "mvtec, blur on test".
    """

    name: str
    detector: str
    features: Mapping[str, Any] = field(default_factory=dict)
    bank: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    snapshots: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    data: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One point of a grid, with every setting written out.

    Attributes:
        data, category: what it is measured on.
        backbone, method, varied: how tables call it; `varied` maps the names of the varied settings to their values.
        detector: which one; of an ensemble, its members'.
        features: one entry, or one a member of an ensemble.
        bank, training: settings; training is None for what does not train.
        options: of the detector, see `OPTIONS`.
        snapshots: epochs, rising.
        seed: of f, the batches and the coreset.
        protocol: see `rcp.evaluation`.
    """

    data: Data
    category: str
    backbone: str
    method: str
    varied: Mapping[str, Any]
    detector: str
    features: tuple[FeatureSettings, ...]
    bank: BankSettings
    training: TrainSettings | None
    options: Mapping[str, Any]
    snapshots: tuple[int, ...]
    seed: int
    protocol: str

    @property
    def looks_at_pixels(self) -> bool:
        """Whether the detector is one of the other systems, which take images, or one that takes patch features."""
        return self.detector in SYSTEMS

    @property
    def own_options(self) -> dict[str, Any]:
        """The options of the detector itself: without those that say what a generalist learns from."""
        return {name: value for name, value in self.options.items() if name != "auxiliary"}

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result besides data and weights, as plain data."""
        features = [{k: v for k, v in asdict(one).items() if k != "weights"} for one in self.features]  # they have a hash
        return {
            "detector": self.detector, "features": features, "bank": asdict(self.bank),
            "training": asdict(self.training) if self.training else None, "options": dict(self.options),
            "snapshots": list(self.snapshots), "seed": self.seed, "protocol": self.protocol,
        }  # fmt: skip

    def names(self) -> dict[str, Any]:
        """Return how tables call the cell, as plain data."""
        return {
            "data": self.data.label, "category": self.category, "backbone": self.backbone, "method": self.method,
            "varied": dict(self.varied), "seed": self.seed,
        }  # fmt: skip

    def __str__(self) -> str:
        varied = "".join(f", {key.split('.')[-1]} {value}" for key, value in self.varied.items())
        return f"{self.data.label} {self.category}, {self.backbone}, {self.method}{varied}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """What is to be measured.

    Attributes:
        title: one line.
        data, methods: see there.
        backbones: name → the features that it stands for.
        seeds: every method is measured with each.
        bank, training: fields that differ from the defaults, for all methods. Thresholds are not measured here, so
            `folds` is 0 unless it is said.
        protocol: see `rcp.evaluation`.
    """

    title: str
    data: tuple[Data, ...]
    backbones: Mapping[str, FeatureSettings]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0,)
    bank: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = "crop"

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        for what, items in {"data": self.data, "backbones": self.backbones, "methods": self.methods, "seeds": self.seeds}.items():
            if not items:
                raise ValueError(f"a grid needs {what}: there are none")
        for what, given, known in (("bank", self.bank, BankSettings), ("training", self.training, TrainSettings)):
            if unknown := sorted(set(given) - _names(known)):
                raise ValueError(f"{what}: unknown {unknown[0]!r}; known: {', '.join(sorted(_names(known)))}")
        _check_seeds(self.seeds, "the grid")
        _check_data(self.data)
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"two methods are called {max(names, key=names.count)!r}: tables could not tell them apart")
        for method in self.methods:
            _check_method(self, method)

    def cells(self, categories: Callable[[Data], Sequence[str]]) -> list[Cell]:
        """Return all cells, those that share features side by side.

        Args:
            categories: the names found in a data set, asked where the grid names none.

        Raises:
            ValueError: if a setting is out of its range or unknown; the message names the method.
        """
        found = []
        for data in self.data:
            for category in data.categories or categories(data):
                of_category = [c for method in self.methods for c in self._of(method, data, category)]
                order = list(dict.fromkeys(cell.features for cell in of_category))
                found += sorted(of_category, key=lambda cell: order.index(cell.features))
        return found

    def _of(self, method: Method, data: Data, category: str) -> Iterator[Cell]:
        if method.data is not None and not {data.name, data.label} & set(method.data):
            return
        seeds = self.seeds if method.seeds is None else method.seeds
        names = list(self.backbones) if method.backbones is None else method.backbones
        for backbone in ["+".join(method.members)] if method.members else names:
            for values in itertools.product(*method.vary.values()):
                for seed in seeds:
                    yield self._cell(method, data, category, backbone, dict(zip(method.vary, values, strict=True)), seed)

    def _cell(self, method: Method, data: Data, category: str, backbone: str, varied: dict[str, Any], seed: int) -> Cell:
        detector = method.options["member"] if method.detector == "ensemble" else method.detector
        given = {
            "features": dict(method.features),
            "bank": {"folds": 5 if method.members else 0, **self.bank, **method.bank},
            "training": {**self.training, **method.training},
            "options": OPTIONS[detector] | {k: v for k, v in method.options.items() if k != "member"},
        }
        for key, value in varied.items():
            part, name = key.split(".")
            given[part][name] = value
        try:
            given = _exact(detector, given)
            for name, value in given["options"].items():
                if name in CHOICES and value not in CHOICES[name]:
                    raise ValueError(f"{name} must be one of {', '.join(map(str, CHOICES[name]))}, got {value!r}")
            bases = [self.backbones[name] for name in (method.members or (backbone,))]
            if detector in SYSTEMS:
                bases = [SYSTEMS[detector].features_like(base) for base in bases]
            features = tuple(replace(base, **given["features"]) for base in bases)
            if detector == "patchcore":  # its variant decides how levels are merged
                features = tuple(replace(one, merge=VARIANTS[given["options"]["variant"]][0]) for one in features)
            training = TrainSettings(**given["training"]) if detector in TRAINED else None
            bank = BankSettings(folds=0) if detector in SYSTEMS else BankSettings(**given["bank"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"method {method.name!r}: {error}") from error
        varied = {key: given[key.split(".")[0]][key.split(".")[1]] for key in varied}
        epochs = training.epochs if training else 0
        snapshots = tuple(sorted(epoch for epoch in set(method.snapshots) if epoch < epochs))
        return Cell(
            data, category, backbone, method.name, varied, detector, features, bank, training, given["options"],
            snapshots, seed, self.protocol,
        )  # fmt: skip


def _exact(detector: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of a cell, each number in the type that it has there."""
    made = {"features": FeatureSettings, "bank": BankSettings, "training": TrainSettings}
    found = {part: exact(kind, given[part]) for part, kind in made.items()}
    if detector in SYSTEMS:
        system, rest = SYSTEMS[detector], dict(given["options"])
        learned = {"auxiliary": rest.pop("auxiliary")} if detector in GENERALISTS else {}
        return found | {"options": learned | asdict(system.options_of(exact(system.Options, rest)))}
    usual = {name: {type(value)} for name, value in OPTIONS[detector].items()}
    return found | {"options": exact_by(usual, given["options"])}


def _check_seeds(seeds: Sequence[int], where: str) -> None:
    if any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"{where}: seeds must be different whole numbers from 0, got {', '.join(map(repr, seeds))}")


def _check_data(data: Sequence[Data]) -> None:
    """The same category of the same data must not be asked for twice: tables would count it double."""
    for one, other in itertools.combinations(data, 2):
        if one.label == other.label and (one.categories is None or other.categories is None or {*one.categories} & {*other.categories}):
            raise ValueError(f"data {one.label!r} are there twice with the same categories: take one away")


def _check_method(grid: Grid, method: Method) -> None:
    """One sentence for every way in which a method can be wrong without its settings being so."""
    where = f"method {method.name!r}"
    detector = method.options.get("member") if method.detector == "ensemble" else method.detector
    if detector not in OPTIONS:
        raise ValueError(f"{where}: detector must be one of {', '.join((*OPTIONS, 'ensemble'))} (an ensemble's member: "
                         f"one of {', '.join(OPTIONS)}), got {detector!r}")
    if (method.detector == "ensemble") != bool(method.members):
        raise ValueError(f"{where}: an ensemble, and nothing else, has members (names of backbones)")
    parts = {
        "features": _names(FeatureSettings), "bank": _names(BankSettings), "training": _names(TrainSettings),
        "options": {*OPTIONS[detector], "member"} if method.members else set(OPTIONS[detector]),
    }  # fmt: skip
    for what, items in {"data": method.data, "backbones": method.backbones, "seeds": method.seeds, **method.vary}.items():
        if items is not None and (not items or isinstance(items, str)):
            raise ValueError(f"{where}: {what} must be a list with something in it, got {items!r}")
    _check_seeds(method.seeds or (), where)
    if any(type(epoch) is not int or epoch < 0 for epoch in method.snapshots):
        raise ValueError(f"{where}: snapshots must be epochs, whole numbers from 0, got {list(method.snapshots)}")
    asked = [(part, name) for part in parts for name in getattr(method, part)]
    for key in method.vary:
        if key.count(".") != 1 or key == "options.member":
            raise ValueError(f"{where}: vary takes names like 'training.alpha', got {key!r}")
        asked.append(tuple(key.split(".")))
    for part, name in asked:
        if part not in parts or name not in parts[part]:
            known = ", ".join(sorted(parts[part])) if part in parts else ", ".join(parts)
            raise ValueError(f"{where}: there is no {part}.{name} for {detector}; known: {known}")
    if detector not in TRAINED and (method.training or method.snapshots or any(p == "training" for p, _ in asked)):
        raise ValueError(f"{where}: {detector} does not train f, so training and snapshots have no effect")
    if detector in SYSTEMS and (method.members or method.bank or any(p == "bank" for p, _ in asked)):
        raise ValueError(f"{where}: {detector} has no memory of patches, so bank has no effect, and it joins no ensemble")
    for what, names, known in (
        ("backbones", (*(method.backbones or ()), *method.members), grid.backbones),
        ("data", method.data or (), list(dict.fromkeys(name for data in grid.data for name in (data.name, data.label)))),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{where}: the grid has no {what} {unknown[0]!r}; it has {', '.join(known)}")


def _names(settings: type) -> set[str]:
    return {one.name for one in fields(settings)}
