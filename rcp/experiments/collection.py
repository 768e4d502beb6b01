"""Many results as one file: small enough for a repository, and all that notebooks and tables need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcp.experiments.grid import Grid
from rcp.experiments.results import SCHEMA, Results, write_collection
from rcp.experiments.watch import Group
from rcp.files import read_json

KEPT = ("metrics", "probes", "memory_rows", "cost", "seconds")  # of each state; images only where they are asked for


@dataclass(frozen=True)
class Row:
    """What a cell measured at one moment of its training, or at its end.

    Attributes:
        data, category, backbone, method, varied, seed: as the grid called the cell.
        epoch: of the training; None for what does not train.
        metrics: shares; d_prime as a number; None where undefined.
        probes: position_r2, position_share, effective_rank (`rcp.probes`).
        last: whether this is the end of the training.
        cost: fit_seconds, image_seconds, state_bytes (`rcp.experiments.measure`); empty in results from before they were kept.
    """

    data: str
    category: str
    backbone: str
    method: str
    varied: dict[str, Any]
    seed: int
    epoch: int | None
    metrics: dict[str, float | None]
    probes: dict[str, float]
    last: bool = True
    cost: dict[str, float] = field(default_factory=dict)


def collect(grid: Grid, groups: Sequence[Group], folder: str | Path, path: str | Path, *, images: bool = False) -> Path:
    """Write what a grid has measured into one JSON file, a line a cell.

    Args:
        grid, groups: from `read_grid` and `plan`.
        folder: where the results lie.
        path: the file.
        images: keep the score of every test image, too.

    Returns:
        The path. Cells without a result are counted in the file as missing. A result that two methods of the grid ask for
        is there under both names.
    """
    results, rows, missing, versions = Results(folder), [], 0, []
    for group in groups:
        there = results.done(group.names)
        missing += len(set(group.names) - there)  # two methods may ask for one and the same
        for cell, name in zip(group.cells, group.names, strict=True):
            if name in there:
                record = results.read(name)
                rows.append({"address": name} | cell.names() | _short(record, images))
                versions.append(record["versions"])
    keys = sorted({key for one in versions for key in one})
    common = {key: sorted({one.get(key, "not told") for one in versions}) for key in keys}
    head = {
        "schema": SCHEMA, "title": grid.title, "protocol": grid.protocol, "missing": missing,
        "versions": {key: values[0] if len(values) == 1 else values for key, values in common.items()},
    }  # fmt: skip
    return write_collection(path, head, rows)


def _short(record: dict[str, Any], images: bool) -> dict[str, Any]:
    keys = (*KEPT, *(("images",) if images else ()))
    found = {key: record[key] for key in keys if key in record}
    if record.get("history"):
        found["epochs"] = len(record["history"])
        last = record["history"][-1]
        found["last_epoch"] = {key: last[key] for key in ("loss", "pushed_share", "pairwise_mean", "contextual_mean")}
    if record.get("snapshots"):
        found["snapshots"] = {
            epoch: {key: state[key] for key in keys if key in state} for epoch, state in record["snapshots"].items()
        }
    return found


def read_rows(path: str | Path) -> list[Row]:
    """Return a row for every state that a collected file has: snapshots as well as the end.

    Args:
        path: what `collect` wrote.

    Raises:
        FileNotFoundError: if there is none; ValueError: if it is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "rows" not in content:
        raise ValueError(f"{path} is no collection of results of schema {SCHEMA}: collect them anew")
    try:
        return _rows(content["rows"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): collect the results anew") from error


def _rows(cells: list[dict[str, Any]]) -> list[Row]:
    rows = []
    for cell in cells:
        names = {key: cell[key] for key in ("data", "category", "backbone", "method", "varied", "seed")}
        for epoch, state in cell.get("snapshots", {}).items():
            rows.append(Row(**names, epoch=int(epoch), metrics=state["metrics"], probes=state.get("probes", {}), last=False))
        rows.append(Row(**names, epoch=cell.get("epochs"), metrics=cell["metrics"], probes=cell.get("probes", {}), cost=cell.get("cost", {})))
    return rows
