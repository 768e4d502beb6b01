"""Running a grid: what is missing is measured, group by group; a kill loses at most the cell in flight.

The cells of a *group* share data and backbone, so its features (or, for the other systems, its decoded images) are made once, and
dropped with it. A group is also what
a worker gets, on this machine (`jobs`) or on a cluster (`rcp.experiments.cluster`). Workers write the results themselves,
each as soon as it is there: whoever dies, the next run, or the next worker, finds what is done and goes on.
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from rcp import data as datasets
from rcp import synthetic
from rcp.backbones import load_backbone
from rcp.data import Category, Split
from rcp.experiments.grid import EMBEDDED, GENERALISTS, Cell, Data, Grid
from rcp.experiments.measure import Material, learned_from, measure
from rcp.experiments.processes import run_processes
from rcp.experiments.results import Results, address, fingerprints
from rcp.experiments.watch import Group, Outcome, Watcher
from rcp.features import FeatureSettings, PatchExtractor
from rcp.pixels import load_pixels
from rcp.quality import degrade
from rcp.store import MemoryLimit


@dataclass(frozen=True)
class Machine:
    """Where and how cells are computed.

    Attributes:
        device: "auto", or torch's name of one.
        threads: of torch in each worker; None: torch's choice for one worker, a fair share for several.
        max_memory: a bound on a worker's own memory in bytes, beyond which features lie in a file; None: none.
        scratch: folder for that file, on a disk of the worker's own if there is one; None: where the results lie, on a
            cluster each worker's own folder for temporary files.
    """

    device: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    scratch: str | None = None


@dataclass(frozen=True)
class Known:
    """Hashes that a plan has taken, for the plans to come: of images, and of weights.

    Attributes:
        images: (data, category) → `fingerprints`.
        weights: settings of features → the hash of their backbone's tensors.
        auxiliary: folder of a category that a generalist learns from → `fingerprints`.
    """

    images: dict[tuple[Data, str], dict] = field(default_factory=dict)
    weights: dict[FeatureSettings, str] = field(default_factory=dict)
    auxiliary: dict[Path, dict] = field(default_factory=dict)


def plan(grid: Grid, roots: Mapping[str, str | Path], folder: str | Path, known: Known | None = None) -> list[Group]:
    """Return all cells of a grid with the addresses of their results, grouped by the features that they share.

    Args:
        grid: what is to be measured.
        roots: folder of each of its data sets by name; the embedded data need none.
        folder: where results lie; copies with degraded images are made below it.
        known: hashes of earlier plans with the same roots and folder; what is missing is added.

    Raises:
        ValueError, DataError: if a data set has no folder, or a category is not there.
        WeightsError: if a backbone's weights cannot be had.
    """
    def categories(data: Data) -> list[str]:
        return list(synthetic.CATEGORIES) if data.name == EMBEDDED else datasets.categories(_root(data, roots))

    groups: dict[tuple, list[Cell]] = {}
    for cell in grid.cells(categories):
        groups.setdefault((cell.data, cell.category, cell.features, cell.looks_at_pixels), []).append(cell)
    found, known = [], known or Known()
    for (data, category, features, _), cells in groups.items():
        root = None if data.name == EMBEDDED else str(_root(data, roots))
        if (data, category) not in known.images:
            known.images[data, category] = fingerprints(find_category(data, category, root, Path(folder)))
        for one in features:
            if one not in known.weights:
                known.weights[one] = _weights(one)
        weights = [known.weights[one] for one in features]
        own = find_category(data, category, root, Path(folder))
        names = [address(cell, _seen(cell, known.images[data, category], own, root, known), weights) for cell in cells]
        found.append(Group(root, tuple(cells), tuple(names)))  # two methods may ask for one and the same: both are shown
    return found


def _seen(cell: Cell, dataset: dict, category: Category, root: str | None, known: Known) -> dict:
    """The hashes of all images that decide a cell: of a generalist also those that it learns from."""
    if cell.detector not in GENERALISTS:
        return dataset
    found = {}
    for one in learned_from(cell, category, root):
        if one.root not in known.auxiliary:
            known.auxiliary[one.root] = fingerprints(one)
        found[one.name] = known.auxiliary[one.root]
    return dataset | {"auxiliary": found}


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
    """Return a category of a grid's data set, its images degraded if the grid says so (copies lie in `folder`/degraded).

    Of pooled data its training split has the good images of all categories.
    """
    place = Path(synthetic.cached() if root is None else root)
    names = (data.categories or datasets.categories(place)) if data.pooled else [category]
    found = {name: datasets.find(place, name) for name in names}
    if data.quality is not None:
        found = {name: degrade(one, folder_of_copies(data, folder), data.quality, data.sides) for name, one in found.items()}
    if not data.pooled:
        return found[category]
    samples = tuple(sample for one in found.values() for sample in one.train)
    return replace(found[category], train=Split("train", Path(os.path.commonpath([one.train.root for one in found.values()])), samples))


def folder_of_copies(data: Data, folder: Path) -> Path:
    """Return where the degraded copies of a data set lie below the folder of results."""
    return folder / "degraded" / data.label.replace(", ", "-").replace(" ", "-")


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
    first, dataset, known, failures = group.cells[0], {}, Known(), 0
    try:
        category = find_category(first.data, first.category, group.root, results.folder)
        dataset = fingerprints(category)
        material = _material(category, group, machine, str(results.folder))
        seen = [_seen(cell, dataset, category, group.root, known) for cell in group.cells]
        _check_address(group, seen[0], material)
    except Exception as error:  # whatever it is, it is written into the result of every cell that needed it
        for cell, name in zip(group.cells, group.names, strict=True):
            results.write_failure(name, cell, dataset, said(error), traceback.format_exc())
        after_each()
        return len(group.cells)
    backbones = [
        {"tag": e.backbone.tag, "source": e.backbone.source, "sha256": e.backbone.sha256} for e in material.extractors
    ]
    for cell, name, dataset in zip(group.cells, group.names, seen, strict=True):
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


def _material(category: Category, group: Group, machine: Machine, folder: str) -> Material:
    cell = group.cells[0]
    if len(category.test) == 0:
        raise ValueError(f"{category.name} has no test images in {category.root}: nothing can be measured")
    if machine.max_memory and machine.scratch:
        Path(machine.scratch).mkdir(parents=True, exist_ok=True)  # it may be another machine's
    limit = MemoryLimit(machine.max_memory, (machine.scratch or folder) if machine.max_memory else None)
    extractors = [PatchExtractor(features, device=machine.device) for features in cell.features]
    made, seconds = [], []
    for split in (category.train, category.test):
        started = time.perf_counter()
        if cell.looks_at_pixels:
            made.append([load_pixels(split, cell.features[0].geometry, limit=limit)])
        else:
            made.append([extractor.extract(split, limit=limit) for extractor in extractors])
        seconds.append(time.perf_counter() - started)
    return Material(category, extractors, *made, limit, seconds=tuple(seconds), root=group.root)


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
        jobs: processes side by side; 1 computes in this one, and a death is the run's.
        say: receives a line a cell, with the time left.

    Returns:
        What is done, and what failed. A process that dies (say, for want of memory) is replaced; a cell at which a second one dies
        has failed, and the rest goes on.

    Raises:
        ValueError: if jobs is below 1.
        OSError: if a folder cannot be written into, or worker processes cannot be started.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    folder = Path(folder).absolute()
    Results(folder).prepare()
    if machine.scratch:
        _see_scratch(Path(machine.scratch))
    with Watcher(groups, Results(folder), say) as watcher:
        if jobs == 1:
            for group in watcher.open_groups():
                work(group, str(folder), machine, watcher.look)
        else:
            share = machine.threads or max(1, (os.cpu_count() or 1) // jobs)
            run_processes(watcher, partial(work, folder=str(folder), machine=replace(machine, threads=share)), jobs)
    return watcher.outcome()


def _see_scratch(folder: Path) -> None:
    """A folder that takes no files is told before the work, not once for every cell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"features cannot be kept in {folder} ({error.strerror}): name another folder for them") from error
