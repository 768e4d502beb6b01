"""Choices, effects, tables and checks of notebook 07: what does each choice do?

Everything is computed from collected grids ("ablations" and "quality" of `rcp.experiments`); nothing is measured here, and no
number of a result stands here. Words: `rcp.course.ablations_words`; figures and interactive twins: `rcp.course.ablations_figures`;
the paper's tables beside ours: `rcp.course.ablations_paper`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rcp import synthetic
from rcp.course import results_folder
from rcp.course.checks import Outcome, answer, function
from rcp.experiments import Data, Grid, Method
from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import Interval, Key, choose, differences, over_seeds, values_of
from rcp.features import FeatureSettings

FOLDER = Path("figures", "results")
DATA = "embedded"
QUANTITIES = {  # name → (words, unit, factor)
    "image_auroc": ("image AUROC", "%", 100.0), "pixel_auroc": ("pixel AUROC", "%", 100.0),
    "aupro": ("AUPRO@0.3", "%", 100.0), "d_prime": ("d'", "", 1.0), "position_share": ("position share", "%", 100.0),
}  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One value of a choice, and which rows of a collection measured it.

    Attributes:
        label: for axes.
        method, varied, epoch, data: as `rcp.experiments.summary.choose` takes them.
    """

    label: str
    method: str
    varied: Mapping[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    data: str = DATA


@dataclass(frozen=True)
class Choice:
    """One thing that can be chosen, everything else left as it is.

    Attributes:
        title: for figures.
        levels: in the order of the axis.
        reference: the one that the others are compared with; it is one of them.
        sorted_by_size: whether a line between the levels means anything.
    """

    title: str
    levels: tuple[Level, ...]
    reference: Level
    sorted_by_size: bool = True

    @property
    def others(self) -> tuple[Level, ...]:
        """The levels without the reference."""
        return tuple(level for level in self.levels if level != self.reference)


def _varied(title: str, method: str, key: str, values: Sequence[Any], reference: Any, labels: Sequence[str] = ()) -> Choice:
    names = labels or [f"{value:g}" for value in values]
    levels = tuple(Level(name, method, {key: value}) for name, value in zip(names, values, strict=True))
    return Choice(title, levels, levels[list(values).index(reference)])


DEFAULT = Level("default", "epochs")  # the end of the training that every other row is compared with
_WIDTHS, _SHARES, _PERCENT = [64, 128, 256, 512, 1024], [0.01, 0.1, 0.25], ["1 %", "10 %", "25 %"]
_WIDTH = "options.dimension"


def _beside(title: str, *others: Level, default: str, first: bool = True) -> Choice:
    base = replace(DEFAULT, label=default)
    return Choice(title, (base, *others) if first else (*others, base), base, sorted_by_size=False)


# The choices of ReConPatch, each compared with the default …
CHOICES: dict[str, Choice] = {
    "coreset": _varied("coreset share (f 1024 wide)", "coreset, f 1024 wide", "bank.coreset", _SHARES, 0.01, _PERCENT),
    "width": _varied("width of f", "width of f", "training.dimension", _WIDTHS, 512),
    "patches": _beside("patch size s, levels", Level("s 5", "s = 5"), Level("s 5\nL1+2+3", "s = 5, levels 1+2+3"), default="s 3"),
    "alpha": _varied("α", "alpha (0: contextual alone, 1: pairwise alone)", "training.alpha", [0.0, 0.5, 1.0], 0.5),
    "k": _varied("k (neighbours)", "k", "training.k", [2, 3, 5, 10], 5),
    "margin": _varied("margin m", "margin", "training.margin", [0.1, 0.5, 1.0, 2.0], 1.0),
    "sigma": _varied("σ", "sigma", "training.sigma", [0.3, 1.0, 3.0], 1.0),
    "momentum": _varied("momentum γ", "momentum (0: no EMA)", "training.momentum", [0.0, 0.99, 0.999], 0.999),
    "normalised": _beside("z brought to length 1", Level("no", "not normalised"), default="yes", first=False),
    "labels": replace(_varied("pseudo-labels", "labels", "training.labels", ["soft", "hard"], "soft", ["soft", "hard"]), sorted_by_size=False),
    "batch": _varied("batch size (patches)", "batch size", "training.batch_size", [32, 128, 512], 128),
    "images": _beside("batch of", Level("whole\nimages", "batch of whole images"), default="patches"),
    "rate": _varied("learning rate", "learning rate", "training.learning_rate", [1e-5, 1e-4, 1e-3], 1e-4, ["1e-5", "1e-4", "1e-3"]),
    "epochs": Choice("epochs", (*(Level(str(e), "epochs", epoch=e) for e in (0, 1, 10)), replace(DEFAULT, label="40")), replace(DEFAULT, label="40")),
    "detector": _beside(
        "another detector", Level("Patch-\nCore", "PatchCore", {"bank.coreset": 0.01}),
        Level("random\nproj.", "random projection", {_WIDTH: 512}), Level("PCA", "PCA", {_WIDTH: 512}), default="ReCon-\nPatch",
    ),
}  # fmt: skip
# … and those of others, which are shown beside it.
CONTROLS: dict[str, Choice] = {
    "coreset of PatchCore": _varied("coreset share, PatchCore", "PatchCore", "bank.coreset", _SHARES, 0.01, _PERCENT),
    "width, untrained": _varied("width of an untrained f", "width of f, untrained", "training.dimension", _WIDTHS, 512),
    "random projection": _varied("width of a random projection", "random projection", _WIDTH, _WIDTHS, 1024),
    "PCA": _varied("components of PCA", "PCA", _WIDTH, [64, 128, 512], 512, ["64", "128", "all"]),
    "patches of PatchCore": Choice(
        "s and levels, PatchCore",
        (base := Level("s 3", "PatchCore", {"bank.coreset": 0.01}), Level("s 5", "PatchCore, s = 5"),
         Level("s 5\nL1+2+3", "PatchCore, s = 5, levels 1+2+3")), base, sorted_by_size=False,
    ),
}  # fmt: skip
_CLEAN = Level("clean", "ReConPatch")
DEGRADED = {f"{name} on {side}": f"{DATA}, {name} on {side}" for name, side in (
    ("rotation", "test"), ("translation", "test"), ("light", "test"), ("blur", "test"), ("all", "train"), ("all", "test"), ("all", "both"),
)}  # fmt: skip
QUALITY = Choice(
    "image quality", (_CLEAN, *(Level(name.replace(" on ", "\n"), "ReConPatch", data=data) for name, data in DEGRADED.items())), _CLEAN,
    sorted_by_size=False,
)  # fmt: skip


# Reading


def read(name: str, folder: str | Path | None = None) -> list[Row]:
    """Return the rows of a collection that is committed with the repository.

    Args:
        name: of the grid, "ablations" or "quality".
        folder: that holds it; None: figures/results of the repository, looked for above the notebook and above this package.

    Raises:
        FileNotFoundError: if it is not there; the message says how it is made.
    """
    path = (results_folder() if folder is None else Path(folder)) / f"{name}.json"
    if path.is_file():
        return read_rows(path)
    raise FileNotFoundError(
        f"there is no {(FOLDER / name).as_posix()}.json: it comes with the repository, and `rcp experiments {name} --out DIR "
        f"--collect {(FOLDER / name).as_posix()}.json` measures it anew"
    )


def values(rows: Iterable[Row], level: Level, quantity: str, categories: Sequence[str] | None = None) -> dict[Key, float]:
    """Return one quantity of a level's rows, in % or as a number; {} if nothing was measured.

    Args:
        rows: of a collection.
        level: which of them.
        quantity: of `QUANTITIES`.
        categories: only these; None: all.

    Returns:
        (data set, category, backbone, seed) → value; the data set's name is without what was done to its images, so that
        degraded and clean images can be paired.
    """
    own = [row for row in rows if categories is None or row.category in categories]
    try:
        chosen = choose(own, method=level.method, epoch=level.epoch, varied=level.varied, data=level.data)
    except ValueError:  # not measured yet, or not in a smaller grid
        return {}
    factor = QUANTITIES[quantity][2]
    return {(DATA, *key[1:]): factor * value for key, value in values_of(chosen, quantity).items()}


def measured(rows: Sequence[Row], choices: Mapping[str, Choice] = CHOICES) -> dict[str, Choice]:
    """Return the choices, with those levels that were measured; a choice without its reference, or with nothing else, is left out."""
    found = {}
    for name, one in choices.items():
        levels = tuple(level for level in one.levels if values(rows, level, "image_auroc"))
        if one.reference in levels and len(levels) > 1:
            found[name] = replace(one, levels=levels)
    return found


def seed_means(found: Mapping[Key, float]) -> dict[int, float]:
    """Return seed → mean over categories; seeds that lack a category are left out."""
    by_seed: dict[int, list[float]] = {}
    for key, value in found.items():
        by_seed.setdefault(key[3], []).append(value)
    whole = max(map(len, by_seed.values()), default=0)
    return {seed: statistics.fmean(own) for seed, own in sorted(by_seed.items()) if len(own) == whole}


# Effects


@dataclass(frozen=True)
class Effect:
    """What one level does, compared with the reference on the same features with the same seeds.

    Attributes:
        choice, level: which.
        change: 95 % interval over seeds of the mean paired difference, in points (of d': as a number).
        size: change.mean in units of the seeds' standard deviation.
    """

    choice: Choice
    level: Level
    change: Interval
    size: float

    @property
    def name(self) -> str:
        """The choice and its level, in a line."""
        return f"{self.choice.title}: {self.level.label}".replace("-\n", "").replace("\n", " ")


def change(rows: Sequence[Row], level: Level, reference: Level, quantity: str, categories: Sequence[str] | None = None) -> Interval:
    """Return the interval over seeds of a level's paired difference from another."""
    return over_seeds(differences(values(rows, level, quantity, categories), values(rows, reference, quantity, categories)))


def spread(rows: Sequence[Row], choices: Iterable[Choice], quantity: str) -> float:
    """Return the seeds' standard deviation of a mean over categories, pooled over all levels.

    Three seeds tell a standard deviation badly; but every level was measured with them, so the root of the mean of all
    levels' variances is used. Levels that are one and the same (the default of every choice) count once.
    """
    distinct = set()
    for one in choices:
        for level in one.levels:
            means = tuple(seed_means(values(rows, level, quantity)).values())
            if len(means) > 1:
                distinct.add(means)
    if not distinct:
        raise ValueError("no level was measured with two seeds: there is no spread to compare with")
    return math.sqrt(statistics.fmean(statistics.variance(means) for means in distinct))


def effects(rows: Sequence[Row], choices: Mapping[str, Choice], quantity: str, unit: float,
            categories: Sequence[str] | None = None) -> list[Effect]:
    """Return the effect of every level but the references.

    Args:
        rows: of a collection.
        choices: from `measured`.
        quantity: of `QUANTITIES`.
        unit: the seeds' standard deviation, from `spread`.
        categories: only these; None: all.
    """
    found = []
    for one in choices.values():
        base = values(rows, one.reference, quantity, categories)
        for level in one.others:
            own = values(rows, level, quantity, categories)
            if not own.keys() & base.keys():  # not measured on these categories
                continue
            moved = over_seeds(differences(own, base))
            found.append(Effect(one, level, moved, moved.mean / unit))
    return found


def league(found: Iterable[Effect]) -> list[list[Effect]]:
    """Return effects by choice: the choice with the largest one first, within each the largest first."""
    groups: dict[str, list[Effect]] = {}
    for effect in sorted(found, key=lambda effect: -abs(effect.size)):
        groups.setdefault(effect.choice.title, []).append(effect)
    return list(groups.values())


def largest_by_chance(n: int, seeds: int = 3, *, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """Return median and 95 % quantile of the largest of n effects that are none, in units of the seeds' standard deviation.

    Simulated: every level's seeds, and the reference's, are independent normal numbers of one mean. Pairing makes real
    differences smaller than that, so this is rather too large than too small.
    """
    generator = np.random.default_rng(seed)
    means = generator.normal(0, 1 / math.sqrt(seeds), (draws, n + 1))  # the reference first: all effects share it
    return tuple(np.quantile(np.abs(means[:, 1:] - means[:, :1]).max(1), [0.5, 0.95]).tolist())


# A grid that runs while the class waits


def live_grid(category: Any, values: Sequence[float], seeds: Sequence[int], training: Mapping[str, Any]) -> tuple[Grid, dict[str, Path]]:
    """Return a grid of one category and some values of α, and the folders of its data (none for the embedded ones)."""
    embedded = category.root.parent == synthetic.cached()
    name = DATA if embedded else category.dataset
    grid = Grid(
        "α, live", (Data(name, (category.name,)),), {"Lite0": FeatureSettings("efficientnet_lite0")},
        (Method("alpha", "reconpatch", vary={"training.alpha": list(values)}),), tuple(seeds), training=dict(training),
    )  # fmt: skip
    return grid, {} if embedded else {name: category.root.parent}


# Checks

EXERCISE_GRID = Grid(
    "exercise", (Data(DATA, ("brick", "terminal")),),
    {name: FeatureSettings(f"efficientnet_{name.lower()}") for name in ("Lite0", "Lite1", "Lite2")},
    (Method("PatchCore", "patchcore", vary={"bank.coreset": [0.25, 0.1, 0.01]}),
     Method("ReConPatch", "reconpatch", vary={"training.alpha": [0, 0.25, 0.5, 0.75, 1], "training.k": [3, 5]}, snapshots=(0, 1))),
    (0, 1, 2, 3, 4),
)  # fmt: skip


def check_1(given: object) -> Outcome:
    """Say whether the number of result files of the exercise's grid is right."""
    right = len(EXERCISE_GRID.cells(lambda data: data.categories))
    return answer(
        "7.1", given, right, "2 categories × 3 backbones × 5 seeds = 30, and 3 + 5 · 2 = 13 settings for each.",
        [
            (30 * (3 + 7), "α and k are varied *together*: every α with every k, 5 · 2 settings, not 5 + 2."),
            (30 * (3 * 10), "the methods are measured beside each other, not combined: their settings add up."),
            (30 * (3 + 30), "the snapshots are measured on the way of one training, and stand in its file: no cells of their own."),
            (6 * 13, "you forgot the seeds: each is a cell."),
            (10 * 13, "you forgot the backbones: each has cells of its own."),
            (15 * 13, "you forgot the categories: each has cells of its own."),
            (2, "this counts the methods; a cell is *one* fit."),
        ],
        tolerance=1e-9, hint="count the settings of each method, add them up, and multiply by what every method is measured on.",
    )  # fmt: skip


def check_2(given: object) -> Outcome:
    """Say whether a function from two lists of values, seed by seed, to the paired and unpaired deviation is right."""
    ours, theirs = [91.0, 93.5, 90.0, 95.0], [90.6, 92.8, 90.0, 94.1]
    cases = [(np.array(a), np.array(b)) for a, b in ((ours, theirs), ([50.0, 60.0, 54.0], [61.0, 49.0, 57.5]))]

    def form(first: int, second: int, root: bool = True) -> Any:
        def found(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
            paired = (a - b).std(ddof=first)
            parts = a.var(ddof=second) + b.var(ddof=second) if root else a.std(ddof=second) + b.std(ddof=second)
            return float(paired), float(np.sqrt(parts) if root else parts)

        return found

    right = form(1, 1)
    return function(
        "7.2", given, right, cases,
        "If the seeds move both alike, the differences spread less than the two alone would have it: that is what pairing buys.",
        [
            (form(0, 0), "these are deviations of the whole population (divided by n); of a sample they are divided by n - 1: ddof=1."),
            (form(1, 1, root=False), "deviations of independent things do not add up; their *variances* do. Take the root of the sum."),
            (lambda a, b: right(a, b)[::-1], "the two are swapped: the paired one comes first."),
            (lambda a, b: (abs(a - b).std(ddof=1), right(a, b)[1]), "the sign belongs to the difference: without it, changes up and down look alike."),
            (lambda a, b: tuple(x / np.sqrt(len(a)) for x in right(a, b)), "this is the uncertainty of the mean; asked for is the spread of single seeds."),
        ],
    )  # fmt: skip


def check_3(given: object, n: int) -> Outcome:
    """Say whether the number of intervals that exclude zero by chance is right.

    Args:
        given: the answer.
        n: how many 95 % intervals there are.
    """
    return answer(
        "7.3", given, 0.05 * n,
        f"each of the {n} excludes zero with probability 0.05 if it should not, and such numbers add up, whether independent or not.",
        [
            (0.95 * n, "this is how many *hold* zero; asked for is how many exclude it."),
            (0.025 * n, "an interval can miss zero on either side: 2.5 % above and 2.5 % below."),
            (1 - 0.95**n, "this is the chance that at least one does (if they were independent); asked for is how many do."),
            (0.05, "this is one interval's chance; there are many."),
            (0, "then an interval that excludes zero would be a proof. It excludes the truth once in twenty times."),
            (5, "five in a hundred, but there are not a hundred."),
        ],
        hint="a 95 % interval misses what is true with probability 0.05.",
    )  # fmt: skip
