"""Cuts the slides from a notebook's tagged cells, and marks them as nbconvert reads it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from titles import front, tags

if TYPE_CHECKING:
    from nbformat import NotebookNode

REMOTE_PICTURE = re.compile(r"!\[([^\]]*)\]\(https?:[^)]*\)")
RELATIVE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)[^)\s]+\)")  # the other notebooks do not lie beside the slides


def deck(notebook: NotebookNode, name: str) -> NotebookNode | None:
    """Return a notebook of the slides alone; None if no cell is tagged `slide`.

    The title cell becomes a slide with title, goal and time, and one with the question to predict. A slide without a heading
    of its own carries its section's, small.
    """
    said = front(notebook, name)
    times = " · ".join(f"{value} to {what}" for value, what in ((said.teach, "teach"), (said.run, "run")) if value != "–")
    cells = [_opening(f"# {said.title}\n\n{said.goal}\n\n{times}", "title")]
    if said.predict:
        cells.append(_opening(f"## Predict first\n\n{said.predict}", "predict"))
    started, section = False, ""
    for number, cell in enumerate(notebook.cells[1:], 1):
        headings = re.findall(r"(?m)^(#+) (.+)", cell.source) if cell.cell_type == "markdown" else []
        for _, heading in (found for found in headings if found[0] == "##"):
            section = re.sub(r"\s*\(\d+ min\)$", "", heading.strip())
        kind = slide_type(cell, started)
        if kind == "skip":
            continue
        if kind == "slide" and section and not headings:
            cells.append(_opening(f'<p class="running">{section}</p>', f"running-{number}"))
            kind = "-"
        started |= bool(tags(cell) & {"slide", "sub"})
        cell.metadata["slideshow"] = {"slide_type": kind}
        if tags(cell) & {"hide-input", "remove-input"}:
            cell.metadata["transient"] = {"remove_source": True}
        if cell.cell_type == "markdown":
            text = REMOTE_PICTURE.sub(r"\1", cell.source).replace("<details>", "<details open>")
            cell.source = RELATIVE_LINK.sub(r"\1", text)
        else:
            cell.metadata["alternative"] = alternative_text(cell.source, name) or "Figure"
        if kind == "notes":  # up to the slide's first cell: the lecturer's view shows no notes from within a fragment
            first = max(i for i, earlier in enumerate(cells) if earlier.metadata.slideshow.slide_type == "slide")
            spoken = sum(earlier.metadata.slideshow.slide_type == "notes" for earlier in cells[first:])
            cells.insert(first + spoken + 1, cell)
        else:
            cells.append(cell)
    notebook.cells = cells
    return notebook if started else None


def slide_type(cell: NotebookNode, started: bool) -> str:
    """Return nbconvert's word for a cell: "slide", "-" (goes on below), "fragment" (below, at a key press), "notes" or "skip".

    Args:
        cell: with its tags.
        started: whether a slide of the notebook's own stands before; otherwise what should go on below starts one.
    """
    marked = tags(cell)
    if "remove-cell" in marked:
        return "skip"
    if "slide" in marked or ("sub" in marked and not started):
        return "slide"
    if "sub" in marked:
        return "fragment" if "solution" in marked else "-"
    return "notes" if "notes" in marked else "skip"


def alternative_text(code: str, name: str) -> str:
    """Return words for the picture that a cell shows, from the name of the file that it is kept in; "" if it keeps none."""
    found = re.search(rf'"{re.escape(name)}_(\w+)(?:\.png)?"', code)
    return f"Figure: {found[1].replace('_', ' ')}" if found else ""


def _opening(text: str, kind: str) -> NotebookNode:
    """Return a cell that starts a slide; the style sheet knows its kind."""
    from nbformat.v4 import new_markdown_cell

    cell = new_markdown_cell(text, metadata={"slideshow": {"slide_type": "slide", "data": {"kind": kind.split("-")[0]}}})
    cell.id = kind
    return cell
