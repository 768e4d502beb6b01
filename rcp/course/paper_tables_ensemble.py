"""The ensemble for notebook 08: three networks together against one alone, with f trained and untrained, paired.

The grid "ensemble" holds each PatchCore alone, and ensembles of PatchCore, of untrained f and of ReConPatch, all of the same three
backbones. "Best of its members" is chosen on the test labels, quantity by quantity and cell by cell: nobody could choose so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from rcp.course.paper_tables import (
    FASTER,
    PLAIN,
    QUANTITIES,
    UNTRAINED,
    Line,
    compared,
    gains,
    quantity_table,
    shown,
    values,
    verdict,
)
from rcp.experiments.collection import Row
from rcp.experiments.summary import Key, differences

_OF = "ensemble of {}"
PAIRS = {  # shown → two ensembles
    "ReConPatch − untrained f": (_OF.format("ReConPatch"), _OF.format(UNTRAINED)),
    "ReConPatch − PatchCore": (_OF.format("ReConPatch"), _OF.format(PLAIN)),
    "ReConPatch, rate x 10 − untrained f": (_OF.format(FASTER), _OF.format(UNTRAINED)),
    "ReConPatch, rate x 10 − PatchCore": (_OF.format(FASTER), _OF.format(PLAIN)),
}
ALONE: dict[str, Callable[[Iterable[float]], float]] = {  # shown → what is taken of the members alone
    "PatchCore − mean of its members": statistics.fmean, "PatchCore − best of its members": max,
}  # fmt: skip
TRAINING, JOINING, BEST = "ReConPatch − untrained f", *ALONE


def members(rows: Sequence[Row], quantity: str, taken: Callable[[Iterable[float]], float]) -> dict[Key, float]:
    """Return, under the keys of the ensemble of PatchCore, one number of the PatchCores that it joins.

    Args:
        rows: of the grid.
        quantity: of `QUANTITIES`.
        taken: of the members' values, e.g. their mean.

    Raises:
        ValueError: if there is no ensemble or no PatchCore alone.
    """
    single = values([row for row in rows if "+" not in row.backbone], PLAIN, quantity)
    found = {}
    for data, category, joined, seed in values(rows, _OF.format(PLAIN), quantity):
        own = [single.get((data, category, backbone, seed)) for backbone in joined.split("+")]
        if None not in own:
            found[data, category, joined, seed] = taken(own)
    return found


def comparisons(rows: Sequence[Row], quantity: str) -> dict[str, dict[Key, float]]:
    """Return what is compared → paired differences; without what was not measured.

    Args:
        rows: of the grid "ensemble".
        quantity: of `QUANTITIES`.
    """
    found = {name: gains(rows, ours, theirs, quantity) for name, (ours, theirs) in PAIRS.items()}
    for name, taken in ALONE.items():
        try:
            found[name] = differences(values(rows, _OF.format(PLAIN), quantity), members(rows, quantity, taken))
        except ValueError:  # nothing to pair: not measured yet
            continue
    return {name: own for name, own in found.items() if own}


def lines_of(rows: Sequence[Row], quantity: str) -> list[Line]:
    """Return a line a comparison, with the categories as its parts."""
    return [compared(name, found, part=1) for name, found in comparisons(rows, quantity).items()]


def ensemble_table(rows: Sequence[Row]) -> str:
    """Return the comparisons in all four quantities; "" without results."""
    kept = {quantity: {one.who: one for one in lines_of(rows, quantity)} for quantity in QUANTITIES}
    return quantity_table("ensembles of three networks", kept) if any(kept.values()) else ""


def said(rows: Sequence[Row]) -> str:
    """Return what the ensemble shows of the image AUROC, in a few sentences."""
    found = {one.who: one for one in lines_of(rows, "image_auroc")}
    if not {TRAINING, JOINING, BEST} <= found.keys():
        return "The grid `ensemble` is not measured yet: nothing can be said about ensembles."
    joined, best, trained = (found[name] for name in (JOINING, BEST, TRAINING))
    return (
        f"Image AUROC, points, over both. *Joining three networks* against one of them at random: {_judged(joined)}; against the best of "
        f"them, which only the test labels tell: {_judged(best)}. *Training f in the ensemble*: {_judged(trained)}."
    )


def _judged(one: Line) -> str:
    alone = f", over seeds alone {verdict(one.seeds)}" if one.seeds.clear and not one.both.clear else ""
    return f"{shown(one.both)}, {verdict(one.both)}{alone}"
