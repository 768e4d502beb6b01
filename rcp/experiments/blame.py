"""Whose fault it is that a worker died, on this machine or on a cluster: one cell's, and the rest goes on.

The cells of a group are measured in order, and each is written as soon as it is there. So a worker that dies does so at the
first cell of its task that has no result, or before it, at the features that all of them share: that cell is tried again, and
blamed when workers die there again.
"""

from __future__ import annotations

from dataclasses import dataclass

from rcp.experiments.watch import Group, Watcher


@dataclass(frozen=True)
class Task:
    """What a worker is given.

    Attributes:
        group: cells that share features; a group of the plan, or a part of one.
        deaths: how many workers have died at its first cell.
        blamed: whether other cells of it have been blamed for a worker's death, with nothing done since.
    """

    group: Group
    deaths: int = 0
    blamed: bool = False


def failed(watcher: Watcher, task: Task, error: str, trace: str = "") -> None:
    """Record an error that holds for all that is left of a task.

    Args:
        watcher: of the run.
        task: from its worker.
        error: in one line.
        trace: where it happened.
    """
    watcher.look()
    _record(watcher, watcher.pending(task.group), error, trace)


def died(watcher: Watcher, task: Task, error: str, *, lives: int) -> list[Task]:
    """Record a worker's death at the cell that it was at, if that has cost enough of them; return what is left to do.

    When a cell is blamed, the others are tried from the other end, as neighbours are alike. If those kill as well, with
    nothing done before, the fault is not a single cell's: all that is left of the task is blamed. So there is an end to it.

    Args:
        watcher: of the run.
        task: what the worker had in hand.
        error: in one line.
        lives: workers that may die at a cell until it has failed.

    Returns:
        No task or one, to be handed to another worker.
    """
    watcher.look()
    rest = watcher.pending(task.group)
    if not rest.cells:
        return []
    stuck = rest == task.group  # nothing has been done since the task was handed over
    deaths = 1 + (task.deaths if stuck else 0)
    blamed = task.blamed and stuck
    if deaths < lives:
        return [Task(rest, deaths, blamed)]
    if blamed:
        _record(watcher, rest, error, "")
        return []
    _record(watcher, Group(rest.root, rest.cells[:1], rest.names[:1]), error, "")
    others = Group(rest.root, rest.cells[:0:-1], rest.names[:0:-1])
    return [Task(others, blamed=True)] if others.cells else []


def _record(watcher: Watcher, group: Group, error: str, trace: str) -> None:
    for cell, name in zip(group.cells, group.names, strict=True):
        watcher.results.write_failure(name, cell, {}, error, trace)
    watcher.look()
