"""Labelled categories to learn from before a new one is met: what a generalist (InCTRL) is trained on, never what it is tested on."""

from __future__ import annotations

from pathlib import Path

from rcp import data, synthetic
from rcp.data import Category


def auxiliary(target: Category, root: str | Path | None = None) -> list[Category]:
    """Return the labelled categories of a data set, without the one that is to be tested.

    Args:
        target: the category to be tested; one of the same name, or in the same folder, is left out.
        root: a folder of categories; None: the embedded data.

    Raises:
        ValueError: if there is no other category with normal and anomalous test images.
        DataError: if the folder cannot be read.
    """
    root = synthetic.cached() if root is None else Path(root)
    others = [data.find(root, name) for name in data.categories(root) if name != target.name]
    found = [one for one in others if one.root.resolve() != target.root.resolve() and len({*one.test.labels.tolist()}) == 2]
    if not found:
        raise ValueError(
            f"{root} has no category besides {target.name} with normal and anomalous test images: a generalist learns from those"
        )
    return found
