"""A table of the paper, before anything is measured: its rows, and for each what was published and what has to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rcp.experiments import Grid
from rcp.experiments.collection import Row
from rcp.presets import Preset
from rcp.published import Number

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}  # the paper's
SYSTEMS = 0  # the number of the table of the other systems, which is none of the paper's


def name_of(number: int) -> str:
    """Return how the command and its files call a table: "table5", or "systems"."""
    return f"table{number}" if number != SYSTEMS else "systems"


@dataclass(frozen=True)
class Cells:
    """Which cells of a grid belong to a row of the table.

    Attributes:
        method, backbone, data: as the grid calls them.
        varied: name of a varied setting → value.
        epoch: 0 for the untrained f, measured on the way; None for the end.
    """

    method: str
    backbone: str
    data: str
    varied: Mapping[str, Any] = field(default_factory=dict)
    epoch: int | None = None

    def has(self, row: Row) -> bool:
        """Whether a measured row is one of them."""
        at = row.last if self.epoch is None else not row.last and row.epoch == self.epoch
        return at and self.of(vars(row))

    def of(self, names: Mapping[str, Any]) -> bool:
        """Whether these names of a cell (`rcp.experiments.Cell.names`) are theirs, whatever the epoch."""
        return (names["method"], names["backbone"], names["data"]) == (self.method, self.backbone, self.data) and dict(
            names["varied"]
        ) == dict(self.varied)


@dataclass(frozen=True)
class Line:
    """A row of the table, or one a category.

    Attributes:
        label: how the table calls it.
        published: the numbers that the paper has for it, of all categories and metrics.
        cells: what is measured for it; None: nothing, it is shown as published.
        notes: where it is not quite the paper's row.
    """

    label: str
    published: tuple[Number, ...] = ()
    cells: Cells | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A table before it is measured.

    Attributes:
        number: of the paper's table; `SYSTEMS` for that of the other systems.
        title: what it is about.
        grid: what is to be measured.
        lines: its rows.
        presets: the settings that it uses, as they are measured.
        paper: the same as the paper has them.
        remarks: sentences that hold for all of it.
        metrics: our names of its metrics, and how its head calls them.
    """

    number: int
    title: str
    grid: Grid
    lines: tuple[Line, ...]
    presets: tuple[Preset, ...]
    paper: tuple[Preset, ...]
    remarks: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=lambda: METRICS)
