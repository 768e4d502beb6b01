"""The papers' tables for notebook 08: published numbers beside other people's, and beside what was measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rcp import published
from rcp.course.paper_tables import PLAIN, QUANTITIES, TRAINED, gains, shown, signed, table, values
from rcp.experiments.collection import Row
from rcp.experiments.summary import Key, over_seeds

METRICS = ("image_auroc", "pixel_auroc")
DOUBT = "the paper's value looks misplaced, see its troubles"
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
    """Return the published means, the third party's beside the paper's."""
    lines = [[label, *(f"{number.value:g}" for number in _means(where))] for label, where in CLAIMS]
    return table(["MVTec AD, mean of 15 categories, %", "image AUROC", "pixel AUROC"], lines)


def claims_troubles() -> str:
    """Return what is known to be wrong with the published means."""
    return _troubles([number for _, where in CLAIMS for number in _means(where)])


def _means(where: Mapping[str, object]) -> list[published.Number]:
    return [published.find(metric=metric, **where) for metric in METRICS]


def published_gains(source: str, metric: str = "image_auroc") -> dict[str, float]:
    """Return category → ReConPatch − PatchCore in points, from the paper's Table 5 or the third party's files."""
    base, ours = ({n.category: n.value for n in published.select(metric=metric, **where)} for where in PAIRS[source])
    return {name: ours[name] - base[name] for name in ours if name in base and not name.startswith("mean")}


def cells_table(rows: Sequence[Row], category: str) -> str:
    """Return published beside measured for one category, with the difference and what it can and cannot mean.

    Args:
        rows: of the study.
        category: of MVTec AD.
    """
    lines = []
    for metric in METRICS:
        printed = _printed(category, metric)
        doubtful = any("permuted" in sentence for sentence in printed[0][1].troubles)
        for i, who in enumerate((PLAIN, TRAINED)):
            here = _level(_own(rows, who, metric, category), printed[0][i].value)
            here[1:] = ["–", DOUBT] if doubtful and i else here[1:]
            lines.append([QUANTITIES[metric], who, *(f"{pair[i].value:g}" for pair in printed), *here])
        claimed = [pair[1].value - pair[0].value for pair in printed]
        own = {key: value for key, value in gains(rows, TRAINED, PLAIN, metric).items() if key[1] == category}
        here = _gain(own, claimed[0])
        here[1:] = ["–", DOUBT] if doubtful else here[1:]
        lines.append([QUANTITIES[metric], "**gain**", *(signed(value) for value in claimed), *here])
    return table([f"**{category}**", "method", "paper", "third party", "measured here", "here − paper", "why"], lines)


def cells_troubles(categories: Sequence[str] = ("bottle", "pill")) -> str:
    """Return what is known to be wrong with the published numbers of some categories."""
    return _troubles([number for c in categories for metric in METRICS for pair in _printed(c, metric) for number in pair])


def _printed(category: str, metric: str) -> list[list[published.Number]]:
    """For each of `PAIRS`: PatchCore's number and ReConPatch's."""
    return [[published.find(metric=metric, category=category, **where) for where in pair] for pair in PAIRS.values()]


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
    return "Known troubles of the published numbers:\n\n" + "\n".join(f"* {line}" for line in published.troubles(numbers))
