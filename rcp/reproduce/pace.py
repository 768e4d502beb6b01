"""How long the trainings will take: their steps are counted, their pace is measured on this machine in a second.

The training is what makes a full table long: Table 5 on MVTec AD has 12.5 million steps. Features, coreset and scoring come on
top; they are not predicted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from rcp.experiments import Cell, Machine
from rcp.features import choose_device
from rcp.head import TrainSettings, train_head

PROBE = 2  # steps that are timed, after as many to warm up
# A step costs the products with f and g, and what it does with all pairs of the batch; in multiplications and additions, fitted to
# widths of f from 64 to 1024 at 1536 numbers a patch and batches of 784.
PAIR = 8000


@dataclass(frozen=True)
class Training:
    """One training of a table.

    Attributes:
        steps: of all its epochs.
        width: numbers a patch.
        settings: of the training.
    """

    steps: int
    width: int
    settings: TrainSettings

    @property
    def work(self) -> float:
        """Of a step, in multiplications and additions: what paces are compared by."""
        s = self.settings
        return s.batch_size * (6 * self.width * s.dimension + 8 * s.dimension * s.projection + PAIR * s.batch_size)


def of_cells(
    cells: Iterable[Cell], images: Mapping[str, int], grids: Mapping[object, tuple[int, int]]
) -> dict[tuple, Training]:
    """Return the different trainings of some cells, by what decides them: cells that differ behind the training share one.

    Args:
        cells: of a grid.
        images: category → number of training images.
        grids: settings of features → patches an image, and numbers a patch.
    """
    found = {}
    for cell in cells:
        if cell.training is None or cell.training.epochs == 0:
            continue
        for member, features in enumerate(cell.features):
            patches, width = grids[features]
            key = (cell.data.label, cell.category, cell.features, member, cell.detector, cell.options.get("bug"), cell.training, cell.seed)
            found[key] = Training(steps(cell.training, images[cell.category], patches), width, cell.training)
    return found


def steps(settings: TrainSettings, images: int, patches: int) -> int:
    """Return the steps of a training.

    Args:
        settings: of it.
        images: training images.
        patches: an image.
    """
    whole = settings.batch == "images"
    units = images if whole else images * patches
    draw = min(units, max(1, settings.batch_size // patches if whole else settings.batch_size))
    full = units // draw
    return settings.epochs * min(full, settings.steps or full)


class Pace:
    """Seconds a step on this machine, measured once for trainings of a kind."""

    def __init__(self, machine: Machine, jobs: int = 1):
        """Take device, threads, and how many processes work side by side."""
        self.device, self.jobs = choose_device(machine.device), jobs
        shared = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else torch.get_num_threads()
        self.threads = machine.threads or shared
        self._measured: dict[tuple, float] = {}

    def seconds(self, trainings: Iterable[Training]) -> float:
        """Return about how long some trainings take at best: on the CPU, all jobs are taken for as fast as one; a GPU is one for all.

        The kind with most work is timed, for a moment; the others are counted at its pace by the work of their steps.
        """
        trainings = list(trainings)
        if not trainings:
            return 0.0
        kinds: dict[tuple, float] = {}
        for one in trainings:
            kinds[_kind(one)] = kinds.get(_kind(one), 0.0) + one.steps * one.work
        heaviest = next(one for one in trainings if _kind(one) == max(kinds, key=kinds.get))
        return sum(kinds.values()) / heaviest.work * self._step(heaviest) / (self.jobs if self.device.type == "cpu" else 1)

    def _step(self, training: Training) -> float:
        if _kind(training) not in self._measured:
            threads = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                self._measured[_kind(training)] = _timed(training, self.device)
            finally:
                torch.set_num_threads(threads)
        return self._measured[_kind(training)]


def _kind(training: Training) -> tuple:
    return training.width, replace(training.settings, epochs=1, steps=None, learning_rate=1.0)


def _timed(training: Training, device: torch.device) -> float:
    """Seconds a step, on random numbers."""
    settings = replace(training.settings, epochs=2, steps=PROBE, batch="patches")
    noise = torch.randn(PROBE * settings.batch_size, training.width, generator=torch.Generator().manual_seed(0))
    _, history = train_head(noise, settings, seed=0, device=device)
    if len(history) < 2:
        raise KeyboardInterrupt  # the training that was interrupted was only the probe
    return history[1].seconds / PROBE


def told(trainings: Mapping[tuple, Training], pace: Pace | None) -> str:
    """Return how much there is to train, in a line.

    Args:
        trainings: from `of_cells`.
        pace: of this machine; None where others compute.
    """
    if not trainings:
        return "nothing to train"
    every = trainings.values()
    sizes = " or ".join(map(str, sorted({one.settings.batch_size for one in every})))
    line = f"{len(every):,} trainings of {_count(sum(one.steps for one in every))} steps in all, {sizes} patches a step"
    if pace is None:
        return line
    jobs = f", {pace.jobs} jobs" if pace.jobs > 1 else ""
    return f"{line}: about {spoken(pace.seconds(every))} on this machine ({pace.device}{jobs}); features, coreset and scoring come on top"


def spoken(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 30 h, 520 h (22 days)."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:,.0f} h ({hours / 24:,.0f} days)" if hours >= 48 else f"{hours:.0f} h"


def _count(number: int) -> str:
    """12.5 million, or 3,240."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"
