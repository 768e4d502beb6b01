"""What notebook 08 reads: committed results, paired and with intervals.

Every sentence of judgement is computed from the results, so that it stays true whatever they are. The statistics are
`rcp.experiments.summary`'s; here they are asked for. Main is the interval *over both*, categories and seeds. Published numbers
beside measured ones: `rcp.course.paper_tables_claims`; the ensemble: `rcp.course.paper_tables_ensemble`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import t as student

from rcp.course import results_folder
from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import (
    Interval,
    Key,
    by_category,
    choose,
    differences,
    over_both,
    over_seeds,
    values_of,
)
from rcp.files import read_json

QUANTITIES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "d_prime": "d'"}
PROBES = {"position_share": "position share, %", "position_r2": "position R²", "effective_rank": "effective rank"}
PERCENT = ("image_auroc", "pixel_auroc", "aupro", "position_share")  # shown times 100: their differences are points
ALL = "all"  # backbones


@dataclass(frozen=True)
class Who:
    """A method of a grid at one moment.

    Attributes:
        method: its name in the grid.
        epoch: of its training; None: its end.
        bug: of a ported method.
    """

    method: str
    epoch: int | None = None
    bug: str | None = None


UNTRAINED, PLAIN, EQ10 = "untrained f", "PatchCore", "PatchCore + Eq. 10"
TRAINED, FASTER = "ReConPatch, 120 epochs", "ReConPatch, rate x 10"
OPPONENTS = {UNTRAINED: Who("ReConPatch", 0), PLAIN: Who(PLAIN), EQ10: Who(EQ10)}
CONTENDERS = {
    PLAIN: Who(PLAIN),
    EQ10: Who(EQ10),
    "random projection": Who("random projection"),
    "random projection to 64": Who("random projection to 64"),
    "PCA to 64": Who("PCA to 64"),
    "whitening": Who("whitening"),
    UNTRAINED: Who("ReConPatch", 0),
    "ReConPatch, 1 epoch": Who("ReConPatch", 1),
    "ReConPatch, 10 epochs": Who("ReConPatch", 10),
    "ReConPatch, 40 epochs": Who("ReConPatch", 40),
    TRAINED: Who("ReConPatch"),
    FASTER: Who(FASTER),
}
EPOCHS = {0: UNTRAINED, 1: "ReConPatch, 1 epoch", 10: "ReConPatch, 10 epochs", 40: "ReConPatch, 40 epochs", 120: TRAINED}
SPACES = [who for who in CONTENDERS if who != EQ10]  # Eq. 10 weighs scores: the space is PatchCore's, turned
ALL_BUGS = "all four bugs"
BUGS = {f"bug: {bug}": Who("ported", bug=bug) for bug in ("labels", "frozen teacher", "mixed teacher", "scale")} | {ALL_BUGS: Who("ported", bug="all")}
ENSEMBLES = {name: Who(name) for name in (f"ensemble of {one}" for one in (PLAIN, UNTRAINED, "ReConPatch", FASTER))}
KNOWN = OPPONENTS | CONTENDERS | BUGS | ENSEMBLES


@dataclass(frozen=True)
class Measured:
    """What a collected grid holds.

    Attributes:
        name: of the grid.
        rows: a row a state.
        cells, missing: how many cells were measured, and how many were not.
    """

    name: str
    rows: tuple[Row, ...]
    cells: int
    missing: int

    def told(self) -> str:
        """Return one line: how much of the grid is there."""
        if not self.rows:
            return f"{self.name}: not measured yet. `rcp experiments {self.name}` does it."
        part = f"{self.cells} of {self.cells + self.missing} cells" if self.missing else f"all {self.cells} cells"
        names = dict.fromkeys(f"{row.category} ({row.data.partition(', ')[0]})" for row in self.rows)
        worse = {row.data for row in self.rows if ", " in row.data}
        told = f"{self.name}: {part}, {len({row.seed for row in self.rows})} seeds; {', '.join(names)}"
        return f"{told}; clean, and degraded in {len(worse)} ways" if worse else told


def measured(name: str, folder: Path | None = None) -> Measured:
    """Return a collected grid; one without rows if it was not collected yet.

    Args:
        name: "study", "ports", "full" or "ensemble".
        folder: None: `results_folder()`.

    Raises:
        FileNotFoundError: if there is no folder of results; ValueError: if the file is damaged.
    """
    path = (folder or results_folder()) / f"{name}.json"
    if not path.is_file():
        return Measured(name, (), 0, 0)
    rows, content = tuple(read_rows(path)), read_json(path)
    return Measured(name, rows, len(content["rows"]), content["missing"])


def values(rows: Iterable[Row], who: str, quantity: str, backbone: str = ALL) -> dict[Key, float]:
    """Return one quantity of one method, a value a (data, category, backbone, seed); shares in percent.

    Args:
        rows: of a grid.
        who: a name of `KNOWN`.
        quantity: of `QUANTITIES` or `PROBES`.
        backbone: of the grid, or "all".

    Raises:
        ValueError: if it was not measured.
    """
    wanted = KNOWN[who]
    found = choose(
        rows, method=wanted.method, epoch=wanted.epoch, varied={"options.bug": wanted.bug} if wanted.bug else None,
        backbone=None if backbone == ALL else backbone,
    )  # fmt: skip
    scale = 100 if quantity in PERCENT else 1
    return {key: scale * value for key, value in values_of(found, quantity).items()}


def gains(rows: Sequence[Row], ours: str, theirs: str, quantity: str, backbone: str = ALL) -> dict[Key, float]:
    """Return ours − theirs on the same features with the same seed; {} where nothing can be paired (not measured yet)."""
    try:
        return differences(values(rows, ours, quantity, backbone), values(rows, theirs, quantity, backbone))
    except ValueError:
        return {}


def both(found: Mapping[Key, float]) -> Interval:
    """Return the interval that counts: for another category with another seed; without ends where there are too few for it.

    Args:
        found: differences, at least one. One category, one seed or a cell that is missing: no ends.
    """
    try:
        return over_both(found)
    except ValueError:
        return Interval(statistics.fmean(found.values()), math.nan, math.nan, 1)


@dataclass(frozen=True)
class Line:
    """A line of a forest plot: one paired comparison.

    Attributes:
        who: the contender.
        both: the interval over categories and seeds, which is the one to go by.
        seeds: the interval over seeds alone.
        parts: mean difference of each backbone, or of each category.
    """

    who: str
    both: Interval
    seeds: Interval
    parts: dict[str, float]

    @property
    def label(self) -> str:
        """The contender, and the backbone where it was measured with one alone."""
        return f"{self.who} ({next(iter(self.parts))})" if len(self.parts) == 1 else self.who


def compared(who: str, found: Mapping[Key, float], part: int = 2) -> Line:
    """Return the line of a comparison.

    Args:
        who: its name.
        found: differences, at least one.
        part: place in the key of what small marks are drawn for: 1 the category, 2 the backbone.
    """
    parts: dict[str, list[float]] = {}
    for key, value in found.items():
        parts.setdefault(key[part], []).append(value)
    return Line(who, both(found), over_seeds(found), {name: statistics.fmean(own) for name, own in parts.items()})


def forest(
    rows: Sequence[Row], theirs: str, quantity: str, backbone: str = ALL, contenders: Iterable[str] = CONTENDERS
) -> list[Line]:
    """Return a line for every contender that can be paired with the opponent."""
    found = {who: gains(rows, who, theirs, quantity, backbone) for who in contenders if who != theirs}
    return [compared(who, own) for who, own in found.items() if own]


def per_category(found: Mapping[Key, float]) -> dict[str, Interval]:
    """Return category → the interval over seeds of its mean over backbones."""
    parts: dict[str, dict[Key, float]] = {}
    for key, value in found.items():
        parts.setdefault(key[1], {})[key] = value
    return {name: over_seeds(own) for name, own in parts.items()}


def widened(one: Interval, comparisons: int) -> Interval:
    """Return a 95 % interval made wider for one of several comparisons (Bonferroni): all of them hold in 95 % of studies."""
    if one.n < 2 or comparisons < 2:
        return one
    factor = float(student.ppf(1 - 0.025 / comparisons, one.n - 1) / student.ppf(0.975, one.n - 1))
    return replace(one, low=one.mean - factor * (one.mean - one.low), high=one.mean + factor * (one.high - one.mean))


def signed(value: float, places: int = 2) -> str:
    """Return a number with its sign, and never a negative zero."""
    return f"{round(value, places) + 0.0:+.{places}f}".replace("-", "−")


def shown(one: Interval, places: int = 2) -> str:
    """Return "+0.31 [−0.10, +0.72]"; without ends for a single value."""
    numbers = [signed(value, places) for value in (one.mean, one.low, one.high)]
    return numbers[0] if math.isnan(one.low) else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def verdict(one: Interval) -> str:
    """Return what an interval of a difference allows to say: "clearly above", "clearly below" or "not clear"."""
    return "not clear" if not one.clear else "clearly above" if one.mean > 0 else "clearly below"


# Tables


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def digits(quantity: str) -> int:
    """Return how many digits a difference is shown with: points have two, d' three."""
    return 2 if quantity in PERCENT else 3


def cell(one: Line | None, quantity: str) -> str:
    """Return a comparison for a table: over both, bold where zero lies outside; *s* where it does so over seeds alone."""
    if one is None:
        return "–"
    text = shown(one.both, digits(quantity))
    text = f"**{text}**" if one.both.clear else text
    return f"{text} *s*" if one.seeds.clear and not one.both.clear else text


def study_table(rows: Sequence[Row], theirs: str, contenders: Iterable[str] = CONTENDERS) -> str:
    """Return the paired differences to an opponent in all four quantities, a line a contender, as `cell` shows them."""
    kept = {q: {one.label: one for one in forest(rows, theirs, q, contenders=contenders)} for q in QUANTITIES}
    return quantity_table(f"against {theirs}", kept)


def quantity_table(corner: str, kept: Mapping[str, Mapping[str, Line]]) -> str:
    """Return a table with a column a quantity.

    Args:
        corner: what the lines are.
        kept: quantity → name of a line → its comparison.
    """
    units = [f"{QUANTITIES[quantity]}{', points' if quantity in PERCENT else ''}" for quantity in kept]
    names = dict.fromkeys(name for own in kept.values() for name in own)
    return table([corner, *units], [[name, *(cell(own.get(name), quantity) for quantity, own in kept.items())] for name in names])


def space_table(rows: Sequence[Row], backbone: str) -> str:
    """Return the probes of each method's feature space: means over categories and seeds with one backbone."""
    lines = []
    for who in SPACES:
        try:
            found = [values(rows, who, probe, backbone).values() for probe in PROBES]
        except ValueError:  # not measured yet
            continue
        lines.append([who, *(f"{statistics.fmean(own):.{places}f}" for own, places in zip(found, (2, 4, 1), strict=True))])
    return table([f"space ({backbone})", *PROBES.values()], lines)


def full_table(rows: Sequence[Row]) -> str:
    """Return the paired differences to the untrained f of the grid `full`, a line a category and moment; "" without results."""
    lines = []
    for epoch, who in list(EPOCHS.items())[1:]:
        parts = {quantity: per_category(gains(rows, who, UNTRAINED, quantity)) for quantity in QUANTITIES}
        for name in parts["image_auroc"]:
            lines.append([f"{epoch}", name, *(shown(parts[quantity][name]) for quantity in QUANTITIES)])
    return "" if not lines else table(["epochs", "category", *QUANTITIES.values()], sorted(lines, key=lambda cells: (cells[1], int(cells[0]))))


def cells_clear(rows: Sequence[Row], ours: str, theirs: str, quantity: str = "image_auroc") -> dict[str, Interval]:
    """Return "category, backbone" → the interval over seeds: the finest comparisons there are."""
    return {f"{key[1]}, {key[2]}": one for key, one in by_category(gains(rows, ours, theirs, quantity)).items()}
