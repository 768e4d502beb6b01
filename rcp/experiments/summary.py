"""What a grid's results mean: paired differences with their uncertainty, and tables of means.

Two methods are compared on the same features, with the same seeds, so the difference is taken cell by cell *before* any mean.
How sure is it? Three answers to three questions, all 95 % intervals of Student's t, for the backbones as they are:

* *over seeds* (the categories held fixed): would other seeds give the same? Seeds move f's weights, batches, projection and
  the coreset's start, and nothing else.
* *over categories* (the seeds held fixed): would other categories give the same?
* *over both*: would another category with another seed? That is the question that a user has, and its interval the widest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from scipy.stats import t as student

from rcp.experiments.collection import Row

LEVEL = 0.95
Key = tuple[str, str, str, int]  # data, category, backbone, seed


@dataclass(frozen=True)
class Interval:
    """A mean, and where it would lie if it were measured again.

    Attributes:
        mean: of n values.
        low, high: ends of the 95 % interval; nan for a single value.
        n: how many values.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def interval(values: Iterable[float], level: float = LEVEL) -> Interval:
    """Return the mean of some values with its interval by Student's t.

    Args:
        values: at least one; independent, roughly normal.
        level: the share of such intervals that hold the true mean.

    Raises:
        ValueError: if there are no values.
    """
    values = list(values)
    if not values:
        raise ValueError("there are no values to take an interval of")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(student.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def values_of(rows: Iterable[Row], quantity: str) -> dict[Key, float]:
    """Return one quantity of some rows: (data, category, backbone, seed) → value; undefined ones are left out.

    Args:
        rows: of one method at one epoch.
        quantity: a metric or a probe.

    Raises:
        ValueError: if two rows have one key, i.e. several methods, settings or epochs were mixed.
    """
    found: dict[Key, float] = {}
    for row in rows:
        key = (row.data, row.category, row.backbone, row.seed)
        if key in found:
            raise ValueError(f"two rows for {key}: choose one method, one setting and one epoch")
        value = row.metrics.get(quantity, row.probes.get(quantity))
        if value is not None:
            found[key] = value
    return found


def differences(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> dict[Key, float]:
    """Return ours − theirs wherever both were measured; a ValueError if that is nowhere."""
    common = [key for key in ours if key in theirs]
    if not common:
        raise ValueError("the two have no data, category, backbone and seed in common: nothing can be paired")
    return {key: ours[key] - theirs[key] for key in common}


def by_category(values: Mapping[Key, float]) -> dict[tuple[str, str, str], Interval]:
    """Return (data, category, backbone) → the interval over seeds."""
    return {key: interval(own) for key, own in _grouped(values, lambda key: key[:3]).items()}


def over_seeds(values: Mapping[Key, float]) -> Interval:
    """Return the interval over seeds of the mean over all categories and backbones.

    Seeds for which some category is missing are left out: their means would be those of other categories.

    Raises:
        ValueError: if no seed has all of them.
    """
    by_seed = _grouped(values, lambda key: key[3])
    whole = max(len(own) for own in by_seed.values())
    return interval(statistics.fmean(own) for own in by_seed.values() if len(own) == whole)


def over_categories(values: Mapping[Key, float]) -> Interval:
    """Return the interval over categories of the mean over seeds and backbones."""
    own = _grouped(values, lambda key: key[:2])
    return interval(statistics.fmean(of_category) for of_category in own.values())


def over_both(values: Mapping[Key, float]) -> Interval:
    """Return the interval of the mean if categories and seeds are both a sample: each category was measured with each seed.

    The variance of the mean comes from the mean squares of a two-way table (categories × seeds, averaged over backbones):
    MS_c + MS_s - MS_e over the number of cells, but not less than either factor gives alone; degrees of freedom are those of the
    factor with fewer values.

    Args:
        values: for every category and backbone the same seeds; at least two categories and two seeds.

    Raises:
        ValueError: if there is one category or one seed only, or a cell is missing.

    Source: two-way crossed random effects, e.g. Searle, Casella & McCulloch, *Variance Components*, 1992; the floor is ours.
    """
    cells = {key: statistics.fmean(own) for key, own in _grouped(values, lambda key: (key[:2], key[3])).items()}
    categories = list(dict.fromkeys(category for category, _ in cells))
    seeds = list(dict.fromkeys(seed for _, seed in cells))
    c, s = len(categories), len(seeds)
    if min(c, s) < 2 or len(cells) < c * s:
        raise ValueError(f"an interval over both needs each of several categories with each of several seeds, got {len(cells)} of {c} x {s}")
    mean = statistics.fmean(cells.values())
    rows = {one: statistics.fmean(cells[one, seed] for seed in seeds) for one in categories}
    columns = {seed: statistics.fmean(cells[one, seed] for one in categories) for seed in seeds}
    ms_c = s * sum((value - mean) ** 2 for value in rows.values()) / (c - 1)
    ms_s = c * sum((value - mean) ** 2 for value in columns.values()) / (s - 1)
    rest = sum((cells[one, seed] - rows[one] - columns[seed] + mean) ** 2 for one in categories for seed in seeds)
    ms_e = rest / ((c - 1) * (s - 1))
    error = math.sqrt(max(ms_c, ms_s, ms_c + ms_s - ms_e) / (c * s))
    half = float(student.ppf((1 + LEVEL) / 2, min(c, s) - 1)) * error
    return Interval(mean, mean - half, mean + half, c * s)


def _grouped(values: Mapping[Key, float], part: Callable[[Key], object]) -> dict:
    found: dict = {}
    for key, value in values.items():
        found.setdefault(part(key), []).append(value)
    return found


def choose(rows: Iterable[Row], *, method: str, epoch: int | None = None, varied: Mapping[str, object] | None = None,
           data: str | None = None, backbone: str | None = None) -> list[Row]:
    """Return the rows of one method.

    Args:
        rows: from `rcp.experiments.collection.read_rows`.
        method: its name in the grid.
        epoch: of its training; None: the end.
        varied: values of the settings that it varies; None: whatever they are.
        data, backbone: one of each, or None for all.

    Raises:
        ValueError: if there are none; the message names the methods that there are.
    """
    rows = list(rows)
    found = [
        row for row in rows
        if row.method == method and (row.last if epoch is None else row.epoch == epoch)
        and (varied is None or dict(row.varied) == dict(varied))
        and data in (None, row.data) and backbone in (None, row.backbone)
    ]  # fmt: skip
    if not found:
        known = ", ".join(sorted({row.method for row in rows}))
        raise ValueError(f"no result of {method!r} (epoch {epoch}, {dict(varied or {})}, {data}, {backbone}); there are {known}")
    return found
