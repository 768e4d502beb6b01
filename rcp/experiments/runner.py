"""Running a grid: what is missing is measured, group by group; a kill loses at most the cell in flight.

The cells of a *group* share data and backbone, so its features are computed once, and dropped with it. A group is also what
a worker gets, on this machine (`jobs`) or on a cluster (`rcp.experiments.cluster`). Workers write the results themselves,
each as soon as it is there: whoever dies, the next run, or the next worker, finds what is done and goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rcp import data as datasets
from rcp import synthetic
from rcp.backbones import load_backbone
from rcp.data import Category
from rcp.experiments.grid import EMBEDDED, Cell, Data, Grid
from rcp.experiments.measure import Material, measure
from rcp.experiments.results import Results, address, fingerprints
from rcp.experiments.watch import Group, Outcome, Watcher, spread
from rcp.features import FeatureSettings, PatchExtractor
from rcp.quality import degrade
from rcp.store import MemoryLimit

LOOK = 0.5  # seconds between two looks at what the workers have written


@dataclass(frozen=True)
class Machine:
    """Where and how cells are computed.

    Attributes:
        device: "auto", or torch's name of one.
        threads: of torch in each worker; None: torch's choice for one worker, a fair share for several.
        max_memory: a bound on a worker's own memory in bytes, beyond which features lie in a file; None: none.
    """

    device: str = "auto"
    threads: int | None = None
    max_memory: int | None = None


def plan(grid: Grid, roots: Mapping[str, str | Path], folder: str | Path) -> list[Group]:
    """Return all cells of a grid with the addresses of their results, grouped by the features that they share.

    Args:
        grid: what is to be measured.
        roots: folder of each of its data sets by name; the embedded data need none.
        folder: where results lie; copies with degraded images are made below it.

    Raises:
        ValueError, DataError: if a data set has no folder, or a category is not there.
        WeightsError: if a backbone's weights cannot be had.
    """
    def categories(data: Data) -> list[str]:
        return list(synthetic.CATEGORIES) if data.name == EMBEDDED else datasets.categories(_root(data, roots))

    groups: dict[tuple, list[Cell]] = {}
    for cell in grid.cells(categories):
        groups.setdefault((cell.data, cell.category, cell.features), []).append(cell)
    weights: dict[FeatureSettings, str] = {}
    found, known = [], {}
    for (data, category, features), cells in groups.items():
        root = None if data.name == EMBEDDED else str(_root(data, roots))
        if (data, category) not in known:
            known[data, category] = fingerprints(find_category(data, category, root, Path(folder)))
        for one in features:
            if one not in weights:
                weights[one] = _weights(one)
        names = [address(cell, known[data, category], [weights[one] for one in features]) for cell in cells]
        found.append(Group(root, tuple(cells), tuple(names)))  # two methods may ask for one and the same: both are shown
    return found


def _root(data: Data, roots: Mapping[str, str | Path]) -> Path:
    if data.name not in roots:
        raise ValueError(f"the grid measures on {data.name!r}: say where it lies, --data {data.name}=DIR")
    return Path(roots[data.name]).expanduser().absolute()  # workers may have another working folder


def _weights(features: FeatureSettings) -> str:
    """The hash of a backbone's tensors; they depend on levels, as unused blocks are cut off."""
    return load_backbone(
        features.backbone, levels=features.levels, strides=features.strides, pretrained=features.pretrained,
        weights=features.weights,
    ).sha256  # fmt: skip


def find_category(data: Data, category: str, root: str | None, folder: Path) -> Category:
    """Return a category of a grid's data set, its images degraded if the grid says so (copies lie in `folder`/degraded)."""
    found = datasets.find(synthetic.cached() if root is None else root, category)
    if data.quality is None:
        return found
    where = folder / "degraded" / data.label.replace(", ", "-").replace(" ", "-")
    return degrade(found, where, data.quality, data.sides)


def work(group: Group, folder: str, machine: Machine, after_each: Callable[[], None] | None = None) -> int:
    """Measure what is missing of a group, and write it; return the number of cells that failed.

    Args:
        group: from `plan`.
        folder: where results lie.
        machine: how to compute.
        after_each: called when a cell is over; what it raises ends the work.
    """
    results = Results(folder)
    group = group.only(set(group.names) - results.done(group.names))
    if not group.cells:
        return 0
    threads = torch.get_num_threads()
    torch.set_num_threads(machine.threads or threads)
    try:
        return _work(group, results, machine, after_each or (lambda: None))
    finally:
        torch.set_num_threads(threads)


def _work(group: Group, results: Results, machine: Machine, after_each: Callable[[], None]) -> int:
    first, dataset, failures = group.cells[0], {}, 0
    try:
        category = find_category(first.data, first.category, group.root, results.folder)
        dataset = fingerprints(category)
        material = _material(category, first, machine, str(results.folder))
        _check_address(group, dataset, material)
    except Exception as error:  # whatever it is, it is written into the result of every cell that needed it
        for cell, name in zip(group.cells, group.names, strict=True):
            results.write_failure(name, cell, dataset, said(error), traceback.format_exc())
        after_each()
        return len(group.cells)
    backbones = [
        {"tag": e.backbone.tag, "source": e.backbone.source, "sha256": e.backbone.sha256} for e in material.extractors
    ]
    for cell, name in zip(group.cells, group.names, strict=True):
        try:
            found = measure(cell, material)
            results.write(name, cell, dataset, backbones, found, str(material.extractors[0].device))
        except Exception as error:  # recorded with its cause; the rest goes on
            results.write_failure(name, cell, dataset, said(error), traceback.format_exc())
            failures += 1
        after_each()
    return failures


def _check_address(group: Group, dataset: dict, material: Material) -> None:
    """What is measured must be what the address says: files may have changed, or another machine may have others."""
    weights = [extractor.backbone.sha256 for extractor in material.extractors]
    if address(group.cells[0], dataset, weights) != group.names[0]:
        raise ValueError(
            f"images or weights are not those that this run was planned with: {group.root or 'the embedded data'} has changed "
            "since it began, or looks different from this machine; start it again"
        )


def _material(category: Category, cell: Cell, machine: Machine, folder: str) -> Material:
    if len(category.test) == 0:
        raise ValueError(f"{category.name} has no test images in {category.root}: nothing can be measured")
    limit = MemoryLimit(machine.max_memory, folder if machine.max_memory else None)
    extractors = [PatchExtractor(features, device=machine.device) for features in cell.features]
    train, test = ([e.extract(s, limit=limit) for e in extractors] for s in (category.train, category.test))
    return Material(category, extractors, train, test, limit)


def said(error: BaseException) -> str:
    """Return an error as results tell it."""
    return f"{type(error).__name__}: {error}"


def run_grid(
    groups: list[Group],
    folder: str | Path,
    *,
    machine: Machine = Machine(),
    jobs: int = 1,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Measure what is missing of a grid on this machine.

    Args:
        groups: from `plan`.
        folder: where results lie.
        machine: how to compute; with several jobs each gets its share of the threads unless that is said.
        jobs: processes side by side; 1 computes in this one.
        say: receives a line a cell, with the time left.

    Returns:
        What is done, what failed, and what is missing because of an interruption.

    Raises:
        OSError: if the folder cannot be written into, or a process died (say, for want of memory); given again, the call goes
            on.
    """
    folder = Path(folder).absolute()
    Results(folder).prepare()
    with Watcher(groups, Results(folder), say) as watcher:
        if jobs == 1:
            for group in watcher.open_groups():
                work(group, str(folder), machine, watcher.look)
        else:
            _run_processes(watcher, str(folder), machine, jobs)
    return watcher.outcome()


def _run_processes(watcher: Watcher, folder: str, machine: Machine, jobs: int) -> None:
    if machine.threads is None:
        machine = replace(machine, threads=max(1, (os.cpu_count() or 1) // jobs))
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads
    here, there = context.Pipe(duplex=False)
    with there, here, ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with, initargs=(here,)) as pool:
        try:
            waiting = {pool.submit(work, group, folder, machine) for group in spread(watcher.open_groups(), jobs)}
            while waiting:
                over, waiting = wait(waiting, timeout=LOOK, return_when=FIRST_COMPLETED)
                watcher.look()
                for future in over:
                    future.result()  # raises what no cell could have recorded
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died (killed, or out of memory): what was measured is kept, and the same command goes on; "
                "take fewer jobs, or a bound on memory, if it dies again"
            ) from error
        except BaseException:
            there.close()  # ends the workers at once, so that there is not long to wait for
            pool.shutdown(cancel_futures=True)
            raise


def _end_with(run: Connection) -> None:
    """Have this worker die with the run that it belongs to, however that ends: it must not go on beside the next one."""

    def watch() -> None:
        with contextlib.suppress(EOFError):
            run.recv_bytes()  # nothing is ever sent: this returns when the other end, which only the run holds, is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
