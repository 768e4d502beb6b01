"""The papers' tables as data: every published number with its source, and what is known to be wrong with it.

    number = published.find(table=5, method="CFA", category="carpet", metric="image_auroc")
    number.value, number.troubles  # the value as printed; the sentences to print beside it
    published.table(7)  # all numbers of the ReConPatch paper's Table 7
    published.troubles(published.table(7))  # the footnotes of the whole table

Values are as printed: in percent, except `inference_ms`, `inference_s` and `d_prime`. `rcp.evaluate` returns shares in
[0, 1]: multiply by 100 before taking a difference. README.md in this folder tells each file, its columns and sources.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields

# The papers' names of the metrics, and ours. PRO need not be our AUPRO (exact, up to FPR 0.3): the tables tell neither
# thresholds nor limit. Likewise an area under the precision-recall curve need not be our average precision.
METRICS = {"image_AUROC": "image_auroc", "pixel_AUROC": "pixel_auroc", "PRO": "aupro", "image_AUPRC": "image_ap"}

TABLES = range(1, 8)  # of the ReConPatch paper
_TABLE = re.compile(r"ReConPatch paper, Table (\d)")


@dataclass(frozen=True)
class Number:
    """One published number, as one row of a CSV file has it.

    Attributes:
        method, backbone, image_size, dataset, category, metric: words of the table. image_size is text, since some
            tables say more than a size: `resolution` is the number in it.
        value: as printed; in percent unless the metric says otherwise.
        source: the paper or log from which it was read.
    """

    method: str
    backbone: str
    image_size: str
    dataset: str
    category: str
    metric: str
    value: float
    source: str

    @property
    def table(self) -> int | None:
        """The number of the ReConPatch paper's table that holds it, or None."""
        found = _TABLE.fullmatch(self.source)
        return int(found[1]) if found else None

    @property
    def resolution(self) -> int | None:
        """The image size in pixels with which `image_size` begins, or None if it begins with none."""
        found = re.match(r"\d+", self.image_size)
        return int(found[0]) if found else None

    @property
    def our_metric(self) -> str | None:
        """Our name of its metric, as `rcp.evaluate` returns it, or None if we have no such metric."""
        return METRICS.get(self.metric)

    @property
    def troubles(self) -> list[str]:
        """The sentences that tell what is known to be wrong with this number; mostly none."""
        return troubles([self])


COLUMNS = tuple(field.name for field in fields(Number))


def tables() -> list[str]:
    """Return the names of the files with published numbers, sorted, as `rows` takes them."""
    folder = importlib.resources.files(__package__)
    return sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))


def rows(file: str) -> list[Number]:
    """Return all numbers of one file, in its order.

    Args:
        file: a name from `tables()`.

    Raises:
        ValueError: no such file, or a line of it cannot be read.
    """
    if file not in tables():
        raise ValueError(f"There is no published table file {file!r}; there are {', '.join(tables())}.")
    return list(_rows(file))


def table(n: int) -> list[Number]:
    """Return the numbers of Table n of the ReConPatch paper, in the order of the file that holds them.

    Args:
        n: 1 coreset, 2 width of f, 3 patch size and levels, 4 image quality, 5 MVTec AD per category with the compared
            systems, 6 ensembles, 7 BTAD.

    Raises:
        ValueError: n is not in 1…7.

    Source:
        Hyun et al., ReConPatch (arXiv 2305.16713).
    """
    return select(table=n)


def select(
    *,
    file: str | None = None,
    table: int | None = None,
    method: str | None = None,
    backbone: str | None = None,
    image_size: str | int | None = None,
    dataset: str | None = None,
    category: str | None = None,
    metric: str | None = None,
) -> list[Number]:
    """Return the published numbers that meet every condition given: at least one.

    Args:
        file: a name from `tables()`.
        table: a table of the ReConPatch paper, 1…7.
        method, backbone, dataset, category: the table's word, exactly.
        image_size: the table's text, or its pixels as an integer.
        metric: the paper's name (`PRO`) or ours (`aupro`).

    Raises:
        ValueError: no number meets them; the message tells what was asked and what there is.
    """
    return _select(_given(file, table, method, backbone, image_size, dataset, category, metric))


def find(
    *,
    file: str | None = None,
    table: int | None = None,
    method: str | None = None,
    backbone: str | None = None,
    image_size: str | int | None = None,
    dataset: str | None = None,
    category: str | None = None,
    metric: str | None = None,
) -> Number:
    """Return the one published number that meets every condition given.

    Args:
        file, table, method, backbone, image_size, dataset, category, metric: as `select`.

    Raises:
        ValueError: none does, or several do; the message tells what was asked and in what they differ.
    """
    asked = _given(file, table, method, backbone, image_size, dataset, category, metric)
    found = _select(asked)
    if len(found) > 1:
        choices = {name: list(dict.fromkeys(getattr(number, name) for number in found)) for name in COLUMNS}
        choices["file"] = [name for name in tables() if set(_rows(name)) & set(found)]
        differ = [f"{n} ({_some(c)})" for n, c in choices.items() if n not in ("value", "source") and len(c) > 1]
        raise ValueError(
            f"{len(found)} published numbers have {_told(asked)}; they differ in {', '.join(differ)}. Name more."
        )
    return found[0]


def troubles(numbers: Iterable[Number]) -> list[str]:
    """Return the sentences that tell what is known to be wrong with any of these numbers, each sentence once.

    Args:
        numbers: those of a table, of a line, or one; as `table`, `select` and `rows` return them.
    """
    numbers = list(numbers)
    return [sentence for sentence, touched in _troubles() if any(_meets(number, touched) for number in numbers)]


def _given(file, table, method, backbone, image_size, dataset, category, metric) -> dict[str, str | int]:
    """The conditions that were given, by name, in the papers' words."""
    ours = {our: theirs for theirs, our in METRICS.items()}
    asked = {
        "file": file, "table": table, "method": method, "backbone": backbone, "image_size": image_size,
        "dataset": dataset, "category": category, "metric": ours.get(metric, metric),
    }  # fmt: skip
    return {name: wanted for name, wanted in asked.items() if wanted is not None}


def _select(asked: dict[str, str | int]) -> list[Number]:
    names = [asked["file"]] if "file" in asked else tables()
    numbers = [number for name in names for number in rows(name)]
    conditions = {name: [wanted] for name, wanted in asked.items() if name != "file"}
    found = [number for number in numbers if _meets(number, conditions)]
    if found:
        return found
    hints = []
    for name, [wanted] in conditions.items():  # what there would be, were it not for this one condition
        others = {key: values for key, values in conditions.items() if key != name}
        choices = {getattr(number, name) for number in numbers if _meets(number, others)} - {None}
        if choices:
            hints.append(f"{name}: {_some(_nearest(wanted, choices))}")
    hint = f"With one condition changed there is {'; '.join(hints)}" if hints else "No single condition is to blame"
    raise ValueError(f"No published number has {_told(asked)}. {hint}.")


def _meets(number: Number, conditions: dict[str, list[str | int]]) -> bool:
    """Whether each condition's list holds what the number has there; an integer image size means pixels."""
    return all(
        getattr(number, name) in wanted or (name == "image_size" and number.resolution in wanted)
        for name, wanted in conditions.items()
    )


def _nearest(wanted: str | int, choices: set[str | int]) -> list[str | int]:
    """The choices, the most alike first."""
    likeness = {c: difflib.SequenceMatcher(None, str(wanted).lower(), str(c).lower()).ratio() for c in choices}
    return sorted(choices, key=lambda choice: (-likeness[choice], str(choice)))


def _some(choices: list[str | int], most: int = 5) -> str:
    more = f" and {len(choices) - most} more" if len(choices) > most else ""
    return ", ".join(repr(choice) for choice in choices[:most]) + more


def _told(asked: dict[str, str | int]) -> str:
    return ", ".join(f"{name} {wanted!r}" for name, wanted in asked.items()) or "no condition at all"


@functools.cache
def _rows(file: str) -> tuple[Number, ...]:
    text = (importlib.resources.files(__package__) / f"{file}.csv").read_text(encoding="utf-8")
    return tuple(_parse(text, f"{file}.csv"))


def _parse(text: str, name: str) -> list[Number]:
    """The numbers of a CSV text; a ValueError names the file and the line that is none."""
    reader = csv.reader(text.splitlines())
    if tuple(next(reader, ())) != COLUMNS:
        raise ValueError(f"{name}: the first line must be {','.join(COLUMNS)}.")
    numbers = []
    for cells in reader:
        where = f"{name}, line {reader.line_num}"
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{where}: {len(cells)} cells, expected {len(COLUMNS)}.")
        row = dict(zip(COLUMNS, cells))
        try:
            number = float(row.pop("value"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{where}: the value is no number: {cells[COLUMNS.index('value')]!r}.")
        numbers.append(Number(value=number, **row))
    return numbers


@functools.cache
def _troubles() -> tuple[tuple[str, dict[str, list[str | int]]], ...]:
    """Each trouble's sentence and the conditions of the numbers that it touches."""
    text = (importlib.resources.files(__package__) / "troubles.toml").read_text(encoding="utf-8")
    entries = tomllib.loads(text)["trouble"]
    as_lists = [{name: v if isinstance(v, list) else [v] for name, v in entry.items()} for entry in entries]
    return tuple((entry.pop("sentence")[0], entry) for entry in as_lists)
