"""Watching a grid: what is done, what failed, how long it will still take.

Workers may be this process, others on this machine, or others on a cluster: all that is watched are the files they write.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from rcp import progress
from rcp.experiments.grid import Cell
from rcp.experiments.results import Results

LOOK = 0.5  # seconds between two looks at what the workers have written


@dataclass(frozen=True)
class Group:
    """Cells that share features, with the addresses of their results."""

    root: str | None  # folder of the data set; None for the embedded data, which every machine makes for itself
    cells: tuple[Cell, ...]
    names: tuple[str, ...]  # of two cells that differ in nothing but how tables call them, the same

    def only(self, names: set[str]) -> Group:
        """Return the group with some of its cells; of those that have one address, two names for one thing, the first."""
        some, rest = [], set(names)
        for cell, name in zip(self.cells, self.names, strict=True):
            if name in rest:
                rest.discard(name)
                some.append((cell, name))
        return Group(self.root, tuple(cell for cell, _ in some), tuple(name for _, name in some))

    def parts(self, count: int) -> list[Group]:
        """Return the group in so many parts: by seeds, so that each has about as much of everything."""
        whole = self.only(set(self.names))
        names = [name for _, name in sorted(zip(whole.cells, whole.names, strict=True), key=lambda pair: pair[0].seed)]
        ends = [len(names) * i // count for i in range(count + 1)]
        return [whole.only(set(names[low:high])) for low, high in itertools.pairwise(ends) if low < high]


@dataclass(frozen=True)
class Outcome:
    """How a run of a grid ended: addresses by what became of them."""

    done: list[str]
    failed: list[str]
    missing: list[str]

    @property
    def complete(self) -> bool:
        """Whether every cell has a result."""
        return not (self.failed or self.missing)


class Watcher:
    """A progress bar over the whole grid, and a line a cell."""

    def __init__(self, groups: list[Group], results: Results, say: Callable[[str], None] | None = None):
        """Look at what there is already.

        Args:
            groups: from `rcp.experiments.runner.plan`.
            results: where workers write.
            say: receives a line a cell.

        Raises:
            ValueError: if a result that is there is damaged; the message names the file.
        """
        self.groups, self.results, self.say = groups, results, say
        self.cells: dict[str, Cell] = {}
        for group in groups:
            for cell, name in zip(group.cells, group.names, strict=True):
                self.cells.setdefault(name, cell)
        self.finished = results.done(self.cells)
        self.before = len(self.finished)
        self.failures = {name: results.failure(name) for name in results.failed(self.cells)}  # of earlier runs
        self.seen_failures: set[str] = set()
        self.seconds: dict[str, float] = {name: results.read(name)["seconds"] for name in self.finished}
        self.spent, self.started = 0.0, None  # seconds in cells of this run, and when the first of them began
        self.noted: set[str] = set()
        self.bar = progress.bar("cells", len(self.cells), "cell")

    def __enter__(self) -> Watcher:
        if self.before and self.say:
            self.say(f"{self.before} of {len(self.cells)} cells are there already")
        self.bar.update(self.before)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.look()
        finally:
            self.bar.close()

    def open_groups(self) -> list[Group]:
        """Return the groups with only what is missing of them, each address once, without those of which nothing is."""
        missing, some = set(self.cells) - self.finished, []
        for group in self.groups:
            some.append(group.only(missing))
            missing -= set(group.names)  # the same data under two names: measured once
        return [group for group in some if group.cells]

    def pending(self, group: Group) -> Group:
        """Return what of a group has neither a result nor, in this run, failed, as of the last look."""
        return group.only(set(group.names) - self.finished - self.seen_failures)

    def look(self) -> None:
        """Take notice of what has been written since the last look."""
        for name in sorted(self.results.done(set(self.cells) - self.finished)):
            record = self.results.read(name)
            again = name in self.seen_failures  # a second worker had better luck
            self.seen_failures.discard(name)
            self.finished.add(name)
            self._count(name, record["seconds"])
            auroc = record["metrics"]["image_auroc"]
            value = "" if auroc is None else f"image AUROC {auroc:.4f}, "
            self._tell(name, f"{value}{record['seconds']:.1f} s", 0 if again else 1)
        for name in sorted(self.results.failed(set(self.cells) - self.finished - self.seen_failures)):
            try:
                if self.results.failure(name) == self.failures.get(name):
                    continue  # of an earlier run: it is tried again
                error = self.results.error(name)
            except FileNotFoundError:
                continue  # overtaken by the result of a second worker
            self.seen_failures.add(name)
            self._tell(name, f"FAILED: {error}", 1)

    def note(self, line: str) -> None:
        """Say something about the whole run, once."""
        if self.say and line not in self.noted:
            self.noted.add(line)
            self.say(line)

    def outcome(self) -> Outcome:
        """Return how it ended."""
        failed = self.results.failed(set(self.cells) - self.finished)
        rest = set(self.cells) - self.finished - failed
        return Outcome(sorted(self.finished), sorted(failed), sorted(rest))

    def _count(self, name: str, seconds: float) -> None:
        now = time.monotonic()
        self.seconds[name] = seconds
        self.spent += seconds
        begun = now - seconds
        self.started = begun if self.started is None else min(self.started, begun)

    def _tell(self, name: str, what: str, more: int) -> None:
        self.bar.update(more)
        if self.say:
            over = len(self.finished) + len(self.seen_failures)
            self.say(f"[{over}/{len(self.cells)}] {self.cells[name]}: {what}; {self.left()}")

    @staticmethod
    def _kinds(cell: Cell) -> list[tuple]:
        """What a cell is like: from those that take about as long to those that at least do the same."""
        epochs = cell.training.epochs if cell.training else None
        does = (cell.detector, epochs, len(cell.snapshots))
        return [(cell.data.name, cell.category, cell.backbone, cell.method, *does), (cell.data.name, *does), does]

    def left(self) -> str:
        """Return the time that is left, in words.

        A cell is expected to take as long as those like it, else as the mean of all; how fast seconds of cells pass is what
        this run has shown since its first cell began: several workers, and features, are in it.
        """
        rest = [self.cells[name] for name in set(self.cells) - self.finished - self.seen_failures]
        if not rest:
            return "all done"
        if not self.seconds:
            return "time left unknown"
        known: dict[tuple, list[float]] = {}
        for name, seconds in self.seconds.items():
            for kind in self._kinds(self.cells[name]):
                known.setdefault(kind, []).append(seconds)
        means = {kind: statistics.fmean(values) for kind, values in known.items()}
        overall = statistics.fmean(self.seconds.values())
        work = sum(next((means[kind] for kind in self._kinds(cell) if kind in means), overall) for cell in rest)
        pace = (time.monotonic() - self.started) / self.spent if self.spent else 1.0
        seconds = work * pace
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def spread(groups: list[Group], workers: int) -> list[Group]:
    """Return the groups, the large ones in parts, so that no worker is left with much when all others are done.

    Args:
        groups: features are computed once a part, so parts are not made smaller than that takes: half a worker's share.
        workers: how many work side by side; 1 leaves the groups as they are.
    """
    if workers <= 1:
        return list(groups)
    total = sum(len(group.cells) for group in groups)
    largest = max(1, -(-total // (2 * workers)))
    return [part for group in groups for part in group.parts(-(-len(group.cells) // largest))]
