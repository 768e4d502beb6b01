"""Published beside measured: a sheet and the rows that a grid has measured → a table, with every reason as a footnote.

All values are in percent. A number that was not measured is None; nothing is filled in.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rcp.experiments.collection import Row
from rcp.published import Number
from rcp.reproduce.setup import Setup, means, published_name
from rcp.reproduce.sheet import METRICS, Line, Sheet

NAMES = {"mean": "mean", "mean_object": "mean of objects", "mean_texture": "mean of textures"}


@dataclass(frozen=True)
class Value:
    """One number of the paper, and ours; in percent.

    Attributes:
        published: as printed, None if there is none.
        measured: mean over seeds, None if there is none.
        std: sample standard deviation over seeds, None with fewer than two.
        seeds: how many went into it.
        published_notes, measured_notes: positions, from 1, in the table's footnotes.
    """

    published: float | None = None
    measured: float | None = None
    std: float | None = None
    seeds: int = 0
    published_notes: tuple[int, ...] = ()
    measured_notes: tuple[int, ...] = ()

    @property
    def difference(self) -> float | None:
        """Measured less published, of the numbers as they are, not as they are rounded."""
        return None if None in (self.measured, self.published) else self.measured - self.published


@dataclass(frozen=True)
class Entry:
    """A row of the finished table: a line of the sheet on a category, or on a mean over categories."""

    category: str
    label: str
    values: Mapping[str, Value]  # a metric each
    source: str  # of what is published
    notes: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A finished table.

    Attributes:
        number, title: of the paper's table.
        caption: what was measured, how.
        reasons: why the two columns differ, as far as it is known for the whole table.
        entries: its rows, those of one category side by side.
        footnotes: sentences that rows and numbers refer to, by position from 1.
        metrics: our names of the metrics, and how the head calls them.
    """

    number: int
    title: str
    caption: str
    reasons: tuple[str, ...]
    entries: tuple[Entry, ...]
    footnotes: tuple[str, ...]
    metrics: Mapping[str, str] = field(default_factory=lambda: METRICS)


@dataclass
class _Footnotes:
    sentences: list[str] = field(default_factory=list)

    def marks(self, sentences: Sequence[str]) -> tuple[int, ...]:
        for one in sentences:
            if one not in self.sentences:
                self.sentences.append(one)
        return tuple(sorted({self.sentences.index(one) + 1 for one in sentences}))


@dataclass(frozen=True)
class Failure:
    """A cell without a result: as the grid calls it (`Cell.names`), and why."""

    names: Mapping[str, object]
    error: str


def compare(
    sheet: Sheet, setup: Setup, rows: Sequence[Row], failures: Sequence[Failure], caption: str, reasons: Sequence[str]
) -> Table:
    """Return the table: each line of the sheet with what was published and what was measured.

    Args:
        sheet, setup: what was asked for.
        rows: what was measured, from `rcp.experiments.collection.read_rows`.
        failures: the cells that failed.
        caption, reasons: from `rcp.reproduce.words`.

    Returns:
        A `Table`. A mean stands beside a published one only if it is over the same categories; a part of them gets a mean of
        its own, beside the mean of the same published numbers where all of them are published.
    """
    work, entries = _Work(sheet, setup, rows, failures), []
    for category in work.categories():
        entries += [entry for line in sheet.lines if (entry := work.entry(line, category)) is not None]
    return Table(sheet.number, sheet.title, caption, tuple(reasons), tuple(entries), tuple(work.footnotes.sentences), sheet.metrics)


class _Work:
    def __init__(self, sheet: Sheet, setup: Setup, rows: Sequence[Row], failures: Sequence[Failure]):
        self.setup, self.rows, self.failures, self.footnotes = setup, rows, failures, _Footnotes()
        self.metrics = sheet.metrics
        self.means = means(setup)
        self.part = f"mean of these {len(setup.categories)}" if setup.missing and len(setup.categories) > 1 else None
        named = {number.category for line in sheet.lines for number in line.published}
        # One by one where the paper has them so, where it has none of the data, or where no mean can be compared.
        self.singly = bool(named - set(NAMES)) or not named or bool(setup.missing)
        self.folders = {published_name(setup.data, name): name for name in setup.released}

    def categories(self) -> list[str]:
        """All that may have a row; those with nothing to say get none."""
        return [*self.means, *([self.part] if self.part else []), *(self.folders if self.singly else [])]

    def entry(self, line: Line, category: str) -> Entry | None:
        numbers = [number for number in line.published if number.category == category]
        sources = list(dict.fromkeys(number.source for number in numbers))
        values = {metric: self._value(line, category, metric) for metric in self.metrics}
        if not any(value.published is not None or value.measured is not None or value.measured_notes for value in values.values()):
            return None
        if not numbers and any(value.published is not None for value in values.values()):
            sources = list(dict.fromkeys(number.source for number in line.published))  # a mean of several
        notes = self.footnotes.marks(line.notes)
        return Entry(NAMES.get(category, category), line.label, values, "; ".join(sources), notes)

    def _value(self, line: Line, category: str, metric: str) -> Value:
        published, sentences = self._published(line, category, metric)
        marks = self.footnotes.marks(sentences)
        if line.cells is None:
            return Value(published, published_notes=marks)
        by_seed, why = self._by_seed(line, self._members(category), metric)
        std = statistics.stdev(by_seed) if len(by_seed) > 1 else None
        measured = statistics.fmean(by_seed) if by_seed else None
        if published is None and measured is None and not self._asked(category):
            why = []  # neither published nor asked for: nothing to say
        return Value(published, measured, std, len(by_seed), marks, self.footnotes.marks(why))

    def _asked(self, category: str) -> bool:
        return all(folder in self.setup.categories for folder in self._members(category))

    def _members(self, category: str) -> tuple[str, ...]:
        """The folders of the categories that a row is about."""
        if category == self.part:
            return self.setup.categories
        return self.means.get(category) or (self.folders[category],)

    def _published(self, line: Line, category: str, metric: str) -> tuple[float | None, list[str]]:
        numbers = [number for number in line.published if number.our_metric == metric]
        if category != self.part:
            found = [number for number in numbers if number.category == category]
            return (found[0].value, found[0].troubles) if found else (None, [])
        wanted = {published_name(self.setup.data, name) for name in self.setup.categories}
        found = [number for number in numbers if number.category in wanted]
        if {number.category for number in found} != wanted:
            return None, []
        note = "The published value is computed here: the mean of the published values of these categories."
        return statistics.fmean(number.value for number in found), [note, *_troubles(found)]

    def _by_seed(self, line: Line, folders: tuple[str, ...], metric: str) -> tuple[list[float], list[str]]:
        """The metric in percent, a mean over folders, of each seed that has all of them; and why others have none."""
        absent = [name for name in folders if name not in self.setup.categories]
        if absent and len(folders) == 1:
            return [], ["Not run: the data or the categories asked for do not hold it."]
        if absent:
            return [], [f"Not compared: {len(folders) - len(absent)} of the {len(folders)} categories of this mean were run."]
        own = {(row.category, row.seed): row.metrics[metric] for row in self.rows if line.cells.has(row) and row.category in folders}
        values, why = [], []
        for seed in self.setup.seeds:
            found = [own.get((name, seed)) for name in folders]
            if None not in found:
                values.append(100 * statistics.fmean(found))
                continue
            for name, value in zip(folders, found, strict=True):
                if value is None:
                    why.append(self._why(line, name, seed, (name, seed) in own))
        return values, why

    def _why(self, line: Line, folder: str, seed: int, there: bool) -> str:
        if there:
            return f"{folder}: not defined on these data (no masks, or no anomalous images)."
        for failure in self.failures:
            names = failure.names
            if line.cells.of(names) and (names["category"], names["seed"]) == (folder, seed):
                return f"{folder}, seed {seed}: failed, {failure.error}"
        return f"{folder}, seed {seed}: not run."


def _troubles(numbers: Sequence[Number]) -> list[str]:
    return list(dict.fromkeys(sentence for number in numbers for sentence in number.troubles))
