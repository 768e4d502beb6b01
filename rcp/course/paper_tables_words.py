"""Notebook 08's judgements, computed: what intervals allow to say, in words that stay true whatever the results are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rcp.course.paper_tables import (
    BUGS,
    EQ10,
    QUANTITIES,
    TRAINED,
    UNTRAINED,
    Measured,
    cells_clear,
    gains,
    per_category,
    published_gains,
    shown,
    verdict,
    widened,
)
from rcp.experiments.collection import Row
from rcp.experiments.summary import Interval, interval, over_categories, over_seeds

FASTER, ABSENT = "ReConPatch, rate x 10", "not measured yet"


def told(one: Interval, digits: int = 2) -> str:
    """Return an interval of differences with what it allows to say."""
    words = {"clearly above": "clearly above zero", "clearly below": "clearly below zero", "not clear": "zero lies inside: not clear"}
    return f"{shown(one, digits)}, " + (words[verdict(one)] if one.n > 1 else "a single value: no interval")


def counted(intervals: Mapping[str, Interval], *, names: bool = True) -> str:
    """Return how many of several differences are clear, which way, without and with a correction for their number.

    Args:
        intervals: what was compared → its interval.
        names: whether to list the clear ones.
    """
    n = len(intervals)
    above, below = ([name for name, one in intervals.items() if verdict(one) == f"clearly {way}"] for way in ("above", "below"))
    listed = [f"{found} ({', '.join(own)})" if own and names else f"{found}" for found, own in ((len(above), above), (len(below), below))]
    kept = sum(widened(one, n).clear for one in intervals.values())
    return (
        f"of {n}, {listed[0]} clearly above zero, {listed[1]} clearly below, {n - len(above) - len(below)} not clear; "
        f"{0.05 * n:.2g} would be clear by chance, and {kept} {'is' if kept == 1 else 'are'} still clear when corrected for {n} comparisons"
    )


def over_metrics(rows: Sequence[Row], ours: str, theirs: str) -> str:
    """Return the verdict over categories in each of the four quantities, in one line."""
    parts = []
    for quantity, name in QUANTITIES.items():
        found = gains(rows, ours, theirs, quantity)
        if found:
            one = over_categories(found)
            parts.append(f"{name} {shown(one)} ({verdict(one)})")
    return "; ".join(parts) or ABSENT


def full_steps(rows: Sequence[Row]) -> str:
    """Return what the full number of steps gives: after the last epoch, against the untrained f, by category."""
    found = gains(rows, TRAINED, UNTRAINED, "image_auroc")
    if not found:
        return "The grid `full` is not measured yet: nothing can be said about more steps."
    parts = "; ".join(f"{name} {told(one)}" for name, one in per_category(found).items())
    return f"**What this tells you.** With 64 steps of 128 patches an epoch (Lite0), image AUROC against the untrained f, over seeds: {parts}."


def bugs(rows: Sequence[Row]) -> str:
    """Return which bugs of the ports change the image AUROC clearly over seeds, and which way."""
    found = {bug.removeprefix("bug: "): gains(rows, bug, TRAINED, "image_auroc") for bug in BUGS}
    found = {bug: over_seeds(own) for bug, own in found.items() if own}
    return "; ".join(f"{bug} {shown(one)} ({verdict(one)})" for bug, one in found.items()) or ABSENT


def conclusion(study: Measured, ports: Measured, full: Measured) -> str:
    """Return what holds and what does not, as a list, from the results alone.

    Args:
        study, ports, full: from `measured`.
    """
    rows = study.rows
    paper, third = (interval(published_gains(source).values()) for source in ("paper", "third party"))
    by_category = per_category(gains(rows, TRAINED, UNTRAINED, "image_auroc"))
    share = gains(rows, TRAINED, UNTRAINED, "position_share")
    claim = f"the paper {shown(paper)} ({verdict(paper)}); a third party's port {shown(third)} ({verdict(third)})"
    missing = f" **{study.missing} cells of the study are still missing: all of this is preliminary.**" if study.missing else ""
    lines = [
        f"Differences, with intervals over categories unless it is said otherwise.{missing}",
        "",
        f"* **The claim, as published** (image AUROC over 15 categories, ReConPatch − PatchCore): {claim}.",
        f"* **The training alone** (120 epochs − untrained f): {over_metrics(rows, TRAINED, UNTRAINED)}.",
        f"* **Category by category**, image AUROC, over seeds: {counted(by_category)}.",
        f"* **Category and network**, image AUROC, over seeds: {counted(cells_clear(rows, TRAINED, UNTRAINED), names=False)}.",
        f"* **The whole method** (− PatchCore + Eq. 10): {over_metrics(rows, TRAINED, EQ10)}.",
        f"* **f without training** (− PatchCore + Eq. 10): {over_metrics(rows, UNTRAINED, EQ10)}.",
        f"* **Ten times the rate** (Lite0, − untrained f): {over_metrics(rows, FASTER, UNTRAINED)}.",
        f"* **Four times the steps** (Lite0, two synthetic categories, − untrained f): {over_metrics(full.rows, TRAINED, UNTRAINED)}.",
        f"* **The ports' bugs** (image AUROC, with − without, over seeds): {bugs(ports.rows)}.",
        f"* **Position share**, in points (120 epochs − untrained f): {told(over_categories(share)) if share else ABSENT}.",
        f"* **Whitening**, which trains nothing (− ReConPatch, 120 epochs): {over_metrics(rows, 'whitening', TRAINED)}.",
    ]
    return "\n".join(lines)
