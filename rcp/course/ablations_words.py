"""Notebook 07's judgements, computed: what effects and their intervals allow to say."""

from __future__ import annotations

from collections.abc import Sequence

from rcp.course.ablations import QUANTITIES, Effect, largest_by_chance
from rcp.experiments.summary import Interval


def words(found: Interval, unit: str = "points") -> str:
    """Return a change with its interval, and what it says."""
    said = ("more" if found.mean > 0 else "less") if found.clear else "not told apart from no change"
    inside = "one seed" if found.n == 1 else f"95 % interval {found.low:+.2f} to {found.high:+.2f}"
    return f"{found.mean:+.2f} {unit} ({inside}): {said}"


def summary(found: Sequence[Effect], unit: float, quantity: str = "image_auroc") -> str:
    """Return Markdown that says which effects stand out, of how many, and how many would by chance."""
    name, sign, _ = QUANTITIES[quantity]
    clear = [effect for effect in found if effect.change.clear]
    top = max(found, key=lambda effect: abs(effect.size))
    half, high = largest_by_chance(len(found), max(effect.change.n for effect in found))
    beyond = [effect for effect in found if abs(effect.size) > high]
    names = "; ".join(f"{e.name} ({e.change.mean:+.2f})" for e in sorted(beyond, key=lambda e: -abs(e.size))) or "none"
    points = "points" if sign else "units"
    return (
        f"Of **{len(found)} changes**, {name}: the largest is *{top.name}*, {top.change.mean:+.2f} {points}, "
        f"{abs(top.size):.1f} standard deviations of the seeds (one is {unit:.2f} {points}). If no choice did anything, the "
        f"largest of so many would be {half:.1f} in the middle, and above {high:.1f} once in twenty times. Beyond {high:.1f}: {names}.\n\n"
        f"{len(clear)} of the {len(found)} paired intervals exclude zero; by chance alone {0.05 * len(found):.1f} would."
    )


def moved(found: Sequence[Effect], unit: float) -> str:
    """Return Markdown that says how far the image AUROC was moved at most, and how many changes are clear.

    Args:
        found: effects on the image AUROC.
        unit: the seeds' standard deviation, in points.
    """
    widest = max(found, key=lambda effect: abs(effect.change.mean))
    clear = sum(effect.change.clear for effect in found)
    return (
        f"No change moves the mean by more than **{abs(widest.change.mean):.2f} points** ({widest.name}); the seeds' own standard deviation "
        f"is **{unit:.2f} points**. {clear} of {len(found)} changes are clear: zero lies outside the paired interval. "
        f"By chance alone {0.05 * len(found):.1f} would be."
    )
