"""The paper's Tables 1 to 4 beside what was measured, for notebook 07: as directions, not as numbers.

The paper measured MVTec AD with a WideResNet-50; the grids measure other pictures with a smaller network. So no difference
between a published and a measured number is taken here, only between the *changes* that both found.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rcp import published
from rcp.course.ablations import CHOICES, CONTROLS, DATA, DEGRADED, Choice, Level, change, seed_means, values
from rcp.course.ablations_words import words
from rcp.experiments.collection import Row
from rcp.experiments.summary import Interval, differences, over_seeds

WIDTHS = ("1024", "512", "256", "128", "64")


@dataclass(frozen=True)
class Column:
    """A method of a published table.

    Attributes:
        name: shown.
        published: label → the table's word for the method, {} if the paper has no such column.
        measured: the choice whose levels bear the same labels.
        base: the label that changes are counted from.
    """

    name: str
    published: Mapping[str, str]
    measured: Choice
    base: str


@dataclass(frozen=True)
class Sheet:
    """A published table with our columns.

    Attributes:
        number: of the paper's table.
        setting: what its rows are.
        labels: its rows, in the paper's order.
        columns: see `Column`.
    """

    number: int
    setting: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]


def _widths(name: str, text: str | None, choice: Choice, base: str = "1024") -> Column:
    return Column(name, {w: text.format(w) for w in WIDTHS} if text else {}, choice, base)


def _relabelled(choice: Choice) -> Choice:
    """Levels of s with labels of one line."""
    return replace(
        choice, levels=tuple(replace(level, label=_S[i]) for i, level in enumerate(choice.levels)),
        reference=replace(choice.reference, label=_S[0]),
    )  # fmt: skip


_S = ("s = 3, levels 2+3", "s = 5, levels 2+3", "s = 5, levels 1+2+3")
_S_PAPER = dict(zip(_S, (f"ReConPatch {x} f=512 coreset=1%" for x in ("s=3 L2+3", "s=5 L2+3", "s=5 L1+2+3")), strict=True))
_PCA = replace(
    CONTROLS["PCA"], levels=tuple(replace(level, label=level.label.replace("all", "512")) for level in CONTROLS["PCA"].levels),
    reference=replace(CONTROLS["PCA"].reference, label="512"),
)  # fmt: skip
SHEETS = {
    1: Sheet(1, "coreset (f 1024 wide)", ("25 %", "10 %", "1 %"), (
        Column("ReConPatch", {f"{x} %": f"ReConPatch coreset={x}% s=3 L2+3 f=1024" for x in (25, 10, 1)}, CHOICES["coreset"], "25 %"),
        Column("PatchCore", {}, CONTROLS["coreset of PatchCore"], "25 %"),
    )),
    2: Sheet(2, "width", WIDTHS, (
        _widths("ReConPatch", "ReConPatch f={} coreset=1%", CHOICES["width"]),
        _widths("untrained f", None, CONTROLS["width, untrained"]),
        _widths("PatchCore, random projection", "PatchCore f={}", CONTROLS["random projection"]),
        _widths("PatchCore, PCA", None, _PCA, "512"),
    )),
    3: Sheet(3, "patch size, levels", _S, (
        Column("ReConPatch", _S_PAPER, _relabelled(CHOICES["patches"]), _S[0]),
        Column("PatchCore", {}, _relabelled(CONTROLS["patches of PatchCore"]), _S[0]),
    )),
}  # fmt: skip


def level(column: Column, label: str) -> Level | None:
    """Return the level that was measured for a row of a table, or None."""
    return next((one for one in column.measured.levels if one.label == label), None)


def number(sheet: Sheet, column: Column, label: str) -> published.Number | None:
    """Return the published image AUROC, in %, or None."""
    if label not in column.published:
        return None
    return published.find(table=sheet.number, method=column.published[label], category="mean", metric="image_auroc")


def markdown(rows: Sequence[Row], n: int, quantity: str = "image_auroc") -> str:
    """Return one of Tables 1 to 3 with published and measured values in columns of their own, sources and troubles below.

    Args:
        rows: of the collection "ablations".
        n: of the table.
        quantity: that was measured; what is published is the image AUROC.
    """
    sheet = SHEETS[n]
    printed = [c for c in sheet.columns if c.published]
    heads = [sheet.setting, *(f"published: {_paper_name(c)}" for c in printed), *(f"measured: {c.name}" for c in sheet.columns)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    numbers = []
    for label in sheet.labels:
        own = [number(sheet, column, label) for column in printed]
        numbers += own
        cells = [f"{one.value:.2f}" for one in own]
        cells += [_mean(rows, level(column, label), quantity) for column in sheet.columns]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    notes = [f"*Published:* {numbers[0].source}; MVTec AD, mean of 15 categories, {numbers[0].backbone} at {numbers[0].image_size} px, image AUROC in %."]
    notes += [f"*Trouble:* {sentence}" for sentence in published.troubles(numbers)]
    return "\n".join(lines) + "\n\n" + "  \n".join(notes)


def _paper_name(column: Column) -> str:
    return column.name.split(",")[0]


def _mean(rows: Sequence[Row], one: Level | None, quantity: str) -> str:
    means = list(seed_means(values(rows, one, quantity)).values()) if one else []
    if not means:
        return "–"
    return f"{statistics.fmean(means):.2f}" + (f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else "")


@dataclass(frozen=True)
class Direction:
    """What a table's change is in the paper and here.

    Attributes:
        sheet, column, label: which; the change is from column.base to label.
        paper: published, in points; None if the paper has no such number.
        ours: measured, in points.
    """

    sheet: Sheet
    column: Column
    label: str
    paper: float | None
    ours: Interval

    @property
    def agrees(self) -> bool | None:
        """Whether both have one direction; None if ours is not told apart from no change, or nothing was published."""
        if not self.paper or not self.ours.clear:
            return None
        return (self.paper > 0) == (self.ours.mean > 0)


def directions(rows: Sequence[Row], n: int) -> list[Direction]:
    """Return all changes of one of Tables 1 to 3, as far as they were measured.

    Args:
        rows: of the collection "ablations".
        n: of the table.
    """
    sheet, found = SHEETS[n], []
    for column in sheet.columns:
        base = level(column, column.base)
        if base is None or not values(rows, base, "image_auroc"):
            continue
        for label in sheet.labels:
            one = level(column, label)
            if label == column.base or one is None or not values(rows, one, "image_auroc"):
                continue
            before, after = number(sheet, column, column.base), number(sheet, column, label)
            paper = None if before is None or after is None else after.value - before.value
            found.append(Direction(sheet, column, label, paper, change(rows, one, base, "image_auroc")))
    return found


def said(found: Sequence[Direction]) -> str:
    """Return Markdown: how many of the published directions were met, one line for each that has a published number."""
    lines = []
    for one in found:
        if one.paper is not None:
            verdict = {True: "same direction", False: "**opposite direction**", None: "no direction"}[one.agrees]
            lines.append(
                f"* Table {one.sheet.number}, {one.column.name}, {one.column.base} → {one.label}: published {one.paper:+.2f}, "
                f"measured {words(one.ours)} – {verdict}."
            )
    with_paper = [one for one in found if one.paper is not None]
    same, other = (sum(one.agrees is truth for one in with_paper) for truth in (True, False))
    small = sum(abs(one.paper) < 0.5 for one in with_paper)
    head = (
        f"Of {len(with_paper)} published changes, {same} have the same direction here, {other} the opposite one, and "
        f"{len(with_paper) - same - other} are not told apart from no change. {small} of the published ones are smaller than half a point."
    )
    return head + "\n\n" + "\n".join(lines)


# Table 4

METHODS = {"PatchCore": Level("", "PatchCore"), "untrained f": Level("", "ReConPatch", epoch=0), "ReConPatch": Level("", "ReConPatch")}


def losses(rows: Sequence[Row], quantity: str = "image_auroc") -> dict[str, dict[str, Interval]]:
    """Return what was done to the images → method → change against clean images, in points, over seeds.

    Args:
        rows: of the collection "quality".
        quantity: of `rcp.course.ablations.QUANTITIES`.
    """
    found: dict[str, dict[str, Interval]] = {}
    for name, data in DEGRADED.items():
        for method, one in METHODS.items():
            worse, clean = replace(one, data=data), replace(one, data=DATA)
            if values(rows, worse, quantity) and values(rows, clean, quantity):
                found.setdefault(name, {})[method] = change(rows, worse, clean, quantity)
    return found


def advantage(rows: Sequence[Row], name: str, rival: str, quantity: str = "image_auroc") -> Interval:
    """Return how much less ReConPatch loses than a rival, in points, over seeds: a difference of differences.

    Args:
        rows: of the collection "quality".
        name: what was done to the images, a key of `losses`.
        rival: "PatchCore" or "untrained f".
        quantity: of `rcp.course.ablations.QUANTITIES`.
    """
    lost = []
    for method in ("ReConPatch", rival):
        one = METHODS[method]
        worse, clean = (values(rows, replace(one, data=data), quantity) for data in (DEGRADED[name], DATA))
        lost.append(differences(worse, clean))
    return over_seeds(differences(*lost))


def quality_markdown(rows: Sequence[Row]) -> str:
    """Return the changes of the image AUROC by degraded images: the paper's Table 4 above, ours below, with troubles."""
    numbers = {
        (method, group, aug): published.find(table=4, method=f"{method} {aug} aug", category=group, metric="image_auroc")
        for method in ("PatchCore", "ReConPatch") for group in ("mean_object", "mean_texture") for aug in ("w/o", "w/")
    }  # fmt: skip
    lines = ["| degraded images | PatchCore | untrained f | ReConPatch |", "|---|---|---|---|"]
    for group, title in (("mean_object", "objects"), ("mean_texture", "textures")):
        paper = {m: numbers[m, group, "w/"].value - numbers[m, group, "w/o"].value for m in ("PatchCore", "ReConPatch")}
        lines.append(f"| published: {title} | {paper['PatchCore']:+.2f} | – | {paper['ReConPatch']:+.2f} |")
    for name, by_method in losses(rows).items():
        cells = [f"{c.mean:+.2f} ({c.low:+.2f} to {c.high:+.2f})" if (c := by_method.get(m)) else "–" for m in METHODS]
        lines.append(f"| measured: {name} | {' | '.join(cells)} |")
    first = next(iter(numbers.values()))
    notes = [f"*Published:* {first.source}; MVTec AD, {first.backbone} at {first.image_size} px; the paper states neither magnitudes nor which images."]
    notes += [f"*Trouble:* {sentence}" for sentence in published.troubles(numbers.values())]
    return "\n".join(lines) + "\n\n" + "  \n".join(notes)


def quality_said(rows: Sequence[Row]) -> str:
    """Return Markdown: what costs most, and whether ReConPatch loses less than PatchCore and than its own untrained f."""
    found = losses(rows)
    single = {name: by["ReConPatch"] for name, by in found.items() if name.endswith("on test") and not name.startswith("all") and "ReConPatch" in by}
    lines = []
    if single:
        worst = min(single, key=lambda name: single[name].mean)
        lines.append(f"* Of the single faults, ReConPatch loses most by *{worst}*: {words(single[worst])}.")
    for name in ("all on train", "all on test", "all on both"):
        if {"PatchCore", "untrained f", "ReConPatch"} <= set(found.get(name, {})):
            by = found[name]
            beside = []
            for rival in ("PatchCore", "untrained f"):
                gained = advantage(rows, name, rival)
                verdict = ("it loses less" if gained.mean > 0 else "it loses more") if gained.clear else "no difference is told"
                beside.append(f"{rival} {by[rival].mean:+.2f}, so {gained.mean:+.2f} apart ({gained.low:+.2f} to {gained.high:+.2f}): {verdict}")
            lines.append(f"* *{name}*: ReConPatch changes by {by['ReConPatch'].mean:+.2f}; {'; '.join(beside)}.")
    return "\n".join(lines)
