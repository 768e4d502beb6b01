"""Notebook 08's judgements, computed: what intervals allow to say, in words that stay true whatever the results are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import t as student

from rcp.course import paper_tables_ensemble as together
from rcp.course.ablations_paper import advantage
from rcp.course.paper_tables import (
    ALL_BUGS,
    BUGS,
    FASTER,
    PLAIN,
    QUANTITIES,
    TRAINED,
    UNTRAINED,
    Measured,
    both,
    cells_clear,
    digits,
    gains,
    per_category,
    shown,
    signed,
    verdict,
    widened,
)
from rcp.course.paper_tables_claims import published_gains
from rcp.experiments.collection import Row
from rcp.experiments.report import FIRST
from rcp.experiments.summary import Interval, Key, interval, over_seeds

ABSENT = "not measured yet"


def told(one: Interval, places: int = 2) -> str:
    """Return an interval of differences with what it allows to say."""
    words = {"clearly above": "clearly above zero", "clearly below": "clearly below zero", "not clear": "zero lies inside: not clear"}
    return f"{shown(one, places)}, " + ("too few for an interval" if math.isnan(one.low) else words[verdict(one)])


def weighed(found: Mapping[Key, float], places: int = 2) -> str:
    """Return the mean with its interval over both, what it allows to say, and whether seeds alone would say more."""
    return told(both(found), places) + _alone(found)


def _alone(found: Mapping[Key, float]) -> str:
    """Words for a difference that is clear over seeds but not over both; else none."""
    seeds = over_seeds(found)
    return f" (over seeds alone {verdict(seeds)})" if seeds.clear and not both(found).clear else ""


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
    """Return the verdict over both in each of the four quantities, in one line."""
    parts = []
    for quantity, name in QUANTITIES.items():
        found = gains(rows, ours, theirs, quantity)
        if found:
            parts.append(f"{name} {shown(both(found), digits(quantity))} ({verdict(both(found))}{_alone(found).replace(' (', ', ').rstrip(')')})")
    return "; ".join(parts) or ABSENT


def answer(rows: Sequence[Row]) -> str:
    """Return the answer to the notebook's question in one plain sentence, and what it rests on."""
    found = gains(rows, TRAINED, UNTRAINED, "image_auroc")
    if not found:
        return "**Does the training help?** Not measured yet."
    plain = {
        "not clear": "Not so that it could be shown here", "clearly above": "Yes, for what could be measured here",
        "clearly below": "No: it does harm, for what could be measured here",
    }[verdict(both(found))]  # fmt: skip
    own = per_category(found)
    better, worse = (sum(verdict(one) == f"clearly {way}" for one in own.values()) for way in ("above", "below"))
    return (
        f"**Does the training help? {plain}.** Against the very f from which it started, image AUROC over both: {weighed(found)}.\n\n"
        f"Your first number: the trained layer is clearly better on **{better} of {len(own)}** categories, and clearly worse on {worse} "
        f"(over seeds, a category at a time). Your second: **{shown(both(found)).split()[0]} points**."
    )


def full_steps(rows: Sequence[Row]) -> str:
    """Return what the full number of steps gives: after the last epoch, against the untrained f, by category and over both."""
    found = gains(rows, TRAINED, UNTRAINED, "image_auroc")
    if not found:
        return "The grid `full` is not measured yet: nothing can be said about more steps."
    own = per_category(found)
    parts = "; ".join(f"{name} {told(one)}" for name, one in own.items())
    fewer = min(len(own), len({key[3] for key in found}))
    t = f" ({fewer} values leave t = {student.ppf(0.975, fewer - 1):.1f})" if fewer > 1 else ""
    added = {key: value for key, value in found.items() if (key[1], key[3]) not in FIRST}
    parted = "; ".join(f"{name} {signed(one.mean)} ({one.n} seeds)" for name, one in per_category(added).items())
    alone = f" What was added after the first look, alone: {parted}." if added else ""
    return (
        "**What this tells you.** With 64 steps of 128 patches an epoch (Lite0), image AUROC against the untrained f, over both: "
        f"{weighed(found)}{t}. Over seeds: {parts}.{alone}"
    )


def bugs(rows: Sequence[Row]) -> str:
    """Return what the bugs of the ports, one at a time and all at once, change of the image AUROC."""
    found = {bug.removeprefix("bug: "): gains(rows, bug, TRAINED, "image_auroc") for bug in BUGS}
    return "; ".join(f"{bug} {shown(both(own))} ({verdict(both(own))}{_alone(own).replace(' (', ', ').rstrip(')')})"
                     for bug, own in found.items() if own) or ABSENT  # fmt: skip


def all_bugs(rows: Sequence[Row]) -> str:
    """Return what all bugs at once change, beside the sum of what each changes alone; both paired, image AUROC."""
    found = {bug: gains(rows, bug, TRAINED, "image_auroc") for bug in BUGS}
    once = found.pop(ALL_BUGS)
    if not once or not all(found.values()):
        return "All four at once are not measured yet."
    keys = set(once).intersection(*found.values())
    total = sum(sum(own[key] for key in keys) / len(keys) for own in found.values())
    return f"All four at once: {weighed(once)}. The four effects one at a time add up to {total:+.2f}.".replace("-", "−")


def question(study: Measured, full: Measured, ensemble: Measured) -> str:
    """Return what holds and what does not of the question itself, as a list, from the results alone.

    Args:
        study, full, ensemble: from `measured`.
    """
    rows = study.rows
    paper, third = (interval(published_gains(source).values()) for source in ("paper", "third party"))
    claim = f"the paper {shown(paper)} ({verdict(paper)}); a third party's port {shown(third)} ({verdict(third)})"
    missing = f" **{study.missing} cells of the study are still missing: all of this is preliminary.**" if study.missing else ""
    found = together.comparisons(ensemble.rows, "image_auroc").get(together.TRAINING, {})
    longer = gains(full.rows, TRAINED, UNTRAINED, "image_auroc")
    each = "; ".join(f"{name} {shown(one)} ({verdict(one)})" for name, one in per_category(longer).items())
    steps = f"{weighed(longer)}. Over seeds: {each}" if longer else ABSENT
    lines = [
        f"Differences, with intervals over both unless it is said otherwise.{missing}",
        "",
        f"* **The claim, as published** (image AUROC over 15 categories, ReConPatch − PatchCore; over categories): {claim}.",
        f"* **The training alone** (120 epochs − untrained f): {over_metrics(rows, TRAINED, UNTRAINED)}.",
        f"* **The whole method** (− PatchCore): {over_metrics(rows, TRAINED, PLAIN)}.",
        f"* **Ten times the rate** (Lite0, − untrained f): {over_metrics(rows, FASTER, UNTRAINED)}.",
        f"* **Four times the steps** (image AUROC, Lite0, − untrained f): {steps}.",
        f"* **In an ensemble** (image AUROC, 60 epochs − untrained f): {weighed(found) if found else ABSENT}.",
    ]
    return "\n".join(lines)


def worse_pictures(rows: Sequence[Row]) -> str:
    """Return what the conditions of the grid "quality" say together: in how many ReConPatch loses less, and how many are clear."""
    labels = [label for label in dict.fromkeys(row.data for row in rows) if ", " in label]
    if not labels:
        return ABSENT
    found = {label.partition(", ")[2]: advantage(rows, label.partition(", ")[2], UNTRAINED) for label in labels}
    above, clear = sum(one.mean > 0 for one in found.values()), [name for name, one in found.items() if one.clear]
    return (
        f"above zero in {above} of {len(found)} conditions, clear over seeds in {len(clear)}"
        f"{' (' + ', '.join(clear) + ')' if clear else ''}; they share trainings, the clean reference, and one draw of the faults"
    )


def beyond(study: Measured, ports: Measured, quality: Measured) -> str:
    """Return what else was found: category by category, ports, worse pictures, feature space, the cheap rival.

    Args:
        study, ports, quality: from `measured`.
    """
    rows = study.rows
    by_category = per_category(gains(rows, TRAINED, UNTRAINED, "image_auroc"))
    share = gains(rows, TRAINED, UNTRAINED, "position_share")
    lines = [
        f"* **Category by category**, image AUROC, over seeds: {counted(by_category)}.",
        f"* **Category and network**, image AUROC, over seeds: {counted(cells_clear(rows, TRAINED, UNTRAINED), names=False)}.",
        f"* **f without training** (− PatchCore): {over_metrics(rows, UNTRAINED, PLAIN)}.",
        f"* **The ports' bugs** (image AUROC, with − without): {bugs(ports.rows)}.",
        f"* **Worse pictures** (image AUROC, loses less than its untrained f where positive): {worse_pictures(quality.rows)}.",
        f"* **Position share**, in points (120 epochs − untrained f): {weighed(share) if share else ABSENT}.",
        f"* **Whitening**, which trains nothing (− ReConPatch, 120 epochs): {over_metrics(rows, 'whitening', TRAINED)}.",
    ]
    return "\n".join(lines)
