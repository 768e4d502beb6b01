"""The checks of notebook 08's exercises: a paired interval by hand, how much data an answer takes, a row of two models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from scipy.stats import t as student

from rcp import published
from rcp.course.checks import Outcome, answer, choice, function

OURS, THEIRS, T = (95.1, 96.0, 94.2, 95.5, 96.3), (94.6, 95.2, 94.0, 94.7, 95.9), 2.776  # t for 5 values
CASES = ((OURS, THEIRS, T), ((80.0, 82.0, 81.0), (81.0, 81.5, 79.0), 4.303))
Paired = Callable[[tuple, tuple, float], tuple[float, float, float]]


def _interval(deviation: Callable[[list, tuple, tuple], float]) -> Paired:
    """A function of an answer's form, from the standard error of the mean that it takes."""

    def made(ours: tuple, theirs: tuple, t: float) -> tuple[float, float, float]:
        d = [a - b for a, b in zip(ours, theirs, strict=True)]
        half, mean = t * deviation(d, ours, theirs), statistics.fmean(d)
        return mean, mean - half, mean + half

    return made


def check_1(given: Paired) -> Outcome:
    """Return what there is to say of a function (ours, theirs, t) → (mean, low, high) of the paired difference."""
    n, sd = len, statistics.stdev
    right = _interval(lambda d, ours, theirs: sd(d) / math.sqrt(n(d)))
    mistakes = [
        (_interval(lambda d, ours, theirs: math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / n(d))),
         "these are the spreads of the two columns: unpaired. Take the differences first; what both runs share falls out."),
        (_interval(lambda d, ours, theirs: statistics.pstdev(d) / math.sqrt(n(d))),
         "the sum of squares was divided by n; the mean was estimated from the same values, so it is n − 1."),
        (_interval(lambda d, ours, theirs: sd(d)), "that is the spread of single differences; that of their mean is smaller by √n."),
        (_interval(lambda d, ours, theirs: sd(d) / n(d)), "divided by n; the deviation of a mean falls with √n."),
        (lambda ours, theirs, t: right(ours, theirs, 1.96), "1.96 is for many values; for so few it is t, which was given."),
    ]  # fmt: skip
    because = "It is `rcp.experiments.summary.interval` of the differences."
    return function("8.1", given, right, CASES, because, mistakes, hint="Return (mean, low, high).")


def needed(deviation: float, half: float) -> int:
    """Return how many values an interval mean ± half takes if single ones deviate by so much (t ≈ 2)."""
    return math.ceil((2 * deviation / half) ** 2 - 1e-9)


def needed_exactly(deviation: float, half: float) -> int:
    """Return the same with Student's t for that number of values, which matters where they are few."""
    n = 2
    while student.ppf(0.975, n - 1) * deviation / math.sqrt(n) > half:
        n += 1
    return n


def check_2(given: int, deviation: float, half: float) -> Outcome:
    """Return what there is to say of the number of categories that an interval of ± half takes."""
    right = needed(deviation, half)
    mistakes = [
        (math.ceil(2 * deviation / half), "the half width falls with √n, so the ratio has to be squared."),
        (needed(deviation / 2, half), "the factor 2 is missing, or the half width was taken for the whole: that is ± one standard error."),
        (needed(2 * deviation, half), "that makes the *whole* interval as narrow as its half was to be."),
        (right - 1, "rounded down, the interval is a little too wide."),
    ]  # fmt: skip
    because = "Half the width takes four times as many categories. MVTec AD has 15."
    return answer("8.2", given, right, because, mistakes, tolerance=1e-9, hint="n ≥ (2 · deviation / half)².")


ROWS = {
    "patchcore 224": {"method": "PatchCore (25% coreset)"},
    "reconpatch 224": {"method": "ReConPatch (Ours, single)", "image_size": 224},
    "reconpatch 480": {"method": "ReConPatch (Ours, single)", "image_size": 480},
    "cflow 256": {"method": "CFLOW-AD"},
    "cfa 224": {"method": "CFA"},
}


def check_3(given: str) -> Outcome:
    """Return what there is to say of the row of Table 5 whose two means are those of two models."""
    said = {name: published.troubles(published.select(table=5, category="mean", **where)) for name, where in ROWS.items()}
    right = next(name for name, lines in said.items() if "mixes two models" in " ".join(lines))
    other = "this row has another trouble: {}"
    none = "of this row nothing is known to be wrong: both of its means are those of one model."
    options = {name: other.format(" ".join(lines)) if lines else none for name, lines in said.items()}
    return choice("8.3", given, options | {right: " ".join(said[right])}, right)
