"""The degraded copies of images that Table 4 is measured on: how much they are is told before they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rcp.data import Category
from rcp.estimate import size
from rcp.experiments.runner import find_category, folder_of_copies
from rcp.quality import check_room, missing
from rcp.reproduce.sheet import Sheet


def write(
    sheets: Sequence[Sheet], categories: Sequence[Category], root: Path, cells: Path, say: Callable[[str], None]
) -> None:
    """Write the degraded copies that tables need and that are not there yet, a line a category.

    Args:
        sheets: the tables.
        categories: that are measured.
        root: their data set.
        cells: the folder of results; the copies lie in `cells`/degraded.
        say: receives the lines.

    Raises:
        OSError: if the disk has no room for all of them; nothing is written then.
    """
    wanted = [(one.number, data, category) for one in sheets for data in one.grid.data if data.quality for category in categories]
    rest = [(number, data, category, *missing(category, folder_of_copies(data, cells), data.sides)) for number, data, category in wanted]
    rest = [one for one in rest if one[3]]
    if not rest:
        return
    count, needed = sum(one[3] for one in rest), sum(one[4] for one in rest)
    say(f"table{rest[0][0]}: {count:,} degraded copies of images, about {size(needed)}, are written into {cells / 'degraded'}")
    check_room(cells, needed)
    for place, (number, data, category, copies, _) in enumerate(rest, start=1):
        say(f"table{number}: [{place}/{len(rest)}] {category.name}, {data.sides}: {copies} images")
        find_category(data, category.name, str(root), cells)
