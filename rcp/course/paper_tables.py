"""What notebook 08 reads and says: committed results, paired and with intervals, beside the papers' tables.

Every sentence of judgement is computed from the results, so that it stays true whatever they are. The statistics are
`rcp.experiments.summary`'s; here they are asked for, and put into words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import t as student

from rcp import published
from rcp.course import results_folder
from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import (
    Interval,
    Key,
    by_category,
    choose,
    differences,
    over_categories,
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


UNTRAINED, EQ10, TRAINED = "untrained f", "PatchCore + Eq. 10", "ReConPatch, 120 epochs"
OPPONENTS = {EQ10: Who(EQ10), UNTRAINED: Who("ReConPatch", 0), "PatchCore": Who("PatchCore")}
CONTENDERS = {
    "random projection": Who("random projection"),
    "random projection to 64": Who("random projection to 64"),
    "PCA to 64": Who("PCA to 64"),
    "whitening": Who("whitening"),
    UNTRAINED: Who("ReConPatch", 0),
    "ReConPatch, 1 epoch": Who("ReConPatch", 1),
    "ReConPatch, 10 epochs": Who("ReConPatch", 10),
    "ReConPatch, 40 epochs": Who("ReConPatch", 40),
    TRAINED: Who("ReConPatch"),
    "ReConPatch, rate x 10": Who("ReConPatch, rate x 10"),
}
EPOCHS = {0: UNTRAINED, 1: "ReConPatch, 1 epoch", 10: "ReConPatch, 10 epochs", 40: "ReConPatch, 40 epochs", 120: TRAINED}
BUGS = {f"bug: {bug}": Who("ported", bug=bug) for bug in ("labels", "frozen teacher", "mixed teacher", "scale")}
KNOWN = OPPONENTS | CONTENDERS | BUGS


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
        names = dict.fromkeys(f"{row.category} ({row.data})" for row in self.rows)
        return f"{self.name}: {part}, {len({row.seed for row in self.rows})} seeds; {', '.join(names)}"


def measured(name: str, folder: Path | None = None) -> Measured:
    """Return a collected grid; one without rows if it was not collected yet.

    Args:
        name: "study", "ports" or "full".
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


@dataclass(frozen=True)
class Line:
    """A line of a forest plot: one paired comparison.

    Attributes:
        who: the contender.
        seeds, categories: the two intervals of `rcp.experiments.summary`.
        by_backbone: mean difference of each backbone.
    """

    who: str
    seeds: Interval
    categories: Interval
    by_backbone: dict[str, float]

    @property
    def label(self) -> str:
        """The contender, and the backbone where it was measured with one alone."""
        return f"{self.who} ({next(iter(self.by_backbone))})" if len(self.by_backbone) == 1 else self.who


def forest(
    rows: Sequence[Row], theirs: str, quantity: str, backbone: str = ALL, contenders: Iterable[str] = CONTENDERS
) -> list[Line]:
    """Return a line for every contender that can be paired with the opponent."""
    lines = []
    for who in contenders:
        found = gains(rows, who, theirs, quantity, backbone) if who != theirs else {}
        if found:
            parts: dict[str, list[float]] = {}
            for key, value in found.items():
                parts.setdefault(key[2], []).append(value)
            means = {name: statistics.fmean(own) for name, own in parts.items()}
            lines.append(Line(who, over_seeds(found), over_categories(found), means))
    return lines


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


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, and never a negative zero."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def shown(one: Interval, digits: int = 2) -> str:
    """Return "+0.31 [−0.10, +0.72]"; without ends for a single value."""
    numbers = [signed(value, digits) for value in (one.mean, one.low, one.high)]
    return numbers[0] if math.isnan(one.low) else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def verdict(one: Interval) -> str:
    """Return what an interval of a difference allows to say: "clearly above", "clearly below" or "not clear"."""
    return "not clear" if not one.clear else "clearly above" if one.mean > 0 else "clearly below"


# Tables


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def study_table(rows: Sequence[Row], theirs: str, contenders: Iterable[str] = CONTENDERS) -> str:
    """Return the paired differences in all four quantities, with the interval over categories; clear ones are bold."""
    kept = {q: {line.label: line.categories for line in forest(rows, theirs, q, contenders=contenders)} for q in QUANTITIES}
    lines = []
    for who in kept["image_auroc"]:
        cells = [kept[q].get(who) for q in QUANTITIES]
        lines.append([who, *("–" if one is None else f"**{shown(one)}**" if one.clear else shown(one) for one in cells)])
    units = [f"{name}{', points' if quantity in PERCENT else ''}" for quantity, name in QUANTITIES.items()]
    return table([f"against {theirs}", *units], lines)


def space_table(rows: Sequence[Row], backbone: str) -> str:
    """Return the probes of each method's feature space: means over categories and seeds with one backbone."""
    lines = []
    for who in (EQ10, *CONTENDERS):
        try:
            found = [values(rows, who, probe, backbone).values() for probe in PROBES]
        except ValueError:  # not measured yet
            continue
        lines.append([who, *(f"{statistics.fmean(own):.{digits}f}" for own, digits in zip(found, (2, 4, 1), strict=True))])
    return table([f"space ({backbone})", *PROBES.values()], lines)


DOUBT = "the paper's value looks misplaced, see below"
THIRD = "third_party_mvtec"
CLAIMS = (  # what is printed in the table of means: label and how to find it
    ("paper: PatchCore, 25 % coreset", {"table": 5, "method": "PatchCore (25% coreset)", "category": "mean"}),
    ("PatchCore's own paper: 1 % coreset", {"file": "headlines", "method": "PatchCore-1%", "category": "mean"}),
    ("paper: ReConPatch, WRN-50, 224 px", {"table": 5, "method": "ReConPatch (Ours, single)", "image_size": 224, "category": "mean"}),
    ("paper: ReConPatch, WRN-101, 480 px", {"table": 5, "method": "ReConPatch (Ours, single)", "image_size": 480, "category": "mean"}),
    ("third party: PatchCore", {"file": THIRD, "method": "PatchCore (re-implementation, last logged)"}),
    ("third party: ReConPatch, first epoch logged", {"file": THIRD, "method": "ReconPatch (re-implementation, first logged)"}),
    ("third party: ReConPatch, last epoch logged", {"file": THIRD, "method": "ReconPatch (re-implementation, last logged)"}),
)  # fmt: skip
PAIRS = {  # source → the two methods per category: PatchCore, ReConPatch
    "paper": ({"table": 5, "method": "PatchCore (25% coreset)"}, {"table": 5, "method": "ReConPatch (Ours, single)", "image_size": 224}),
    "third party": (
        {"file": THIRD, "method": "PatchCore (re-implementation, last logged, epoch 1)"},
        {"file": THIRD, "method": "ReconPatch (re-implementation, last logged, epoch 119)"},
    ),
}  # fmt: skip


def claims_table() -> str:
    """Return the published means, the third party's beside the paper's, with their troubles below."""
    lines, used = [], []
    for label, where in CLAIMS:
        found = [published.find(metric=metric, **where) for metric in ("image_auroc", "pixel_auroc")]
        used += found
        lines.append([label, *(f"{number.value:g}" for number in found)])
    return table(["MVTec AD, mean of 15 categories, %", "image AUROC", "pixel AUROC"], lines) + _troubles(used)


def published_gains(source: str, metric: str = "image_auroc") -> dict[str, float]:
    """Return category → ReConPatch − PatchCore in points, from the paper's Table 5 or the third party's files."""
    base, ours = ({n.category: n.value for n in published.select(metric=metric, **where)} for where in PAIRS[source])
    return {name: ours[name] - base[name] for name in ours if name in base and not name.startswith("mean")}


def cells_table(rows: Sequence[Row], categories: Sequence[str] = ("bottle", "pill")) -> str:
    """Return published beside measured, cell by cell, with the difference and what it can and cannot mean."""
    lines, used = [], []
    for category in categories:
        for metric in ("image_auroc", "pixel_auroc"):
            printed = [[published.find(metric=metric, category=category, **w) for w in pair] for pair in PAIRS.values()]
            used += [number for pair in printed for number in pair]
            doubtful = any("permuted" in sentence for sentence in printed[0][1].troubles)
            for i, who in enumerate(("PatchCore", TRAINED)):
                here = _level(_own(rows, who, metric, category), printed[0][i].value)
                here[1:] = ["–", DOUBT] if doubtful and i else here[1:]
                lines.append([category, QUANTITIES[metric], who, *(f"{pair[i].value:g}" for pair in printed), *here])
            claimed = [pair[1].value - pair[0].value for pair in printed]
            own = {key: value for key, value in gains(rows, TRAINED, "PatchCore", metric).items() if key[1] == category}
            here = _gain(own, claimed[0])
            here[1:] = ["–", DOUBT] if doubtful else here[1:]
            lines.append([category, QUANTITIES[metric], "**gain**", *(signed(value) for value in claimed), *here])
    header = ["category", "metric", "method", "paper", "third party", "measured here", "here − paper", "why"]
    return table(header, lines) + _troubles(used)


def _own(rows: Sequence[Row], who: str, metric: str, category: str) -> list[float]:
    try:
        return [value for key, value in values(rows, who, metric).items() if key[1] == category]
    except ValueError:
        return []


def _level(here: list[float], printed: float) -> list[str]:
    if not here:
        return ["not measured yet", "–", "–"]
    mean = statistics.fmean(here)
    return [f"{mean:.2f} ± {statistics.stdev(here) if len(here) > 1 else 0:.2f}", signed(mean - printed), "another network; smaller image files"]


def _gain(own: Mapping[Key, float], claimed: float) -> list[str]:
    if not own:
        return ["not measured yet", "–", "–"]
    found = over_seeds(own)
    if found.low <= claimed <= found.high:
        why = "the paper's gain lies inside our interval"
    else:
        why = "outside our interval over seeds: other network, shorter training, other test scores"
    return [shown(found), signed(found.mean - claimed), why]


def _troubles(numbers: Sequence[published.Number]) -> str:
    return "\n\nKnown troubles of the published numbers:\n\n" + "\n".join(f"* {line}" for line in published.troubles(numbers))


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
