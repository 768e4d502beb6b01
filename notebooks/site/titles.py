"""What a notebook is about, read from its title cell, so that the site's index and the slides' titles cannot go stale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!vs)(?<!Eq)(?<!Eqs)(?<!Fig)[.?!][*_)]*(?=\s+[A-Z`*\"(]|\s*$)")  # its end
DURATION = r"(\d+(?: ?[–-] ?\d+)? (?:s|min|h))"


class Refused(Exception):
    """What stands in the way, in one sentence for whoever typed the command."""


@dataclass(frozen=True)
class Front:
    """What a title cell says, as Markdown; `teach` and `run` are like "25 min" and "40 s", or "–" where nothing is said."""

    title: str
    goal: str
    predict: str
    teach: str
    run: str

    @property
    def about(self) -> str:
        """The goal's first sentences, as many as fit into 200 characters, but one at least; without links."""
        goal = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", self.goal)
        ends = [found.end() for found in SENTENCE.finditer(goal)] or [len(goal)]
        return goal[: max([ends[0], *(end for end in ends if end <= 200)])]


def front(notebook: NotebookNode, name: str) -> Front:
    """Return what a notebook's title cell says: `# NN · Title`, **Goal.**, **Time.** (or "N minutes to teach" anywhere in it)
    and **Predict first.**

    Raises:
        Refused: without title or goal.
    """
    text = notebook.cells[0].source if notebook.cells else ""
    heading, goal = re.match(r"# (\d+ · .+)", text), _paragraph(text, "Goal")
    if not heading or not goal:
        raise Refused(f"notebooks/{name}.ipynb: its first cell must begin with '# NN · Title' and have a paragraph '**Goal.** …'")
    plain = " ".join(text.replace("*", "").split())
    for words, short in ((r"(?:about )?an? (minute|hour)", r"1 \1"), (r"(min|s|h)(?:ute|econd|our)s?", r"\1")):
        plain = re.sub(rf"\b{words}\b", short, plain)
    teach, run = (re.search(rf"{DURATION} to {what}", plain) for what in ("teach", "run"))
    goal = re.sub(r"\s*\([^()]*to teach[^()]*\)", "", goal)
    return Front(heading[1].strip(), goal, _paragraph(text, "Predict first"), teach[1] if teach else "–", run[1] if run else "–")


def _paragraph(text: str, opening: str) -> str:
    """Return the paragraph that starts with a bold word, without that word, on one line; "" if there is none."""
    found = re.search(rf"(?ms)^\*\*{opening}\.?\*\*\.?(.*?)(?=\n\s*\n|\Z|\n\*\*[A-Z])", text)
    return " ".join(found[1].split()) if found else ""


def names(root: Path) -> list[str]:
    """Return the course's notebooks, by name, in order.

    Raises:
        Refused: for a source that has not been executed yet, and where there is no notebook.
    """
    made = sorted(path.stem for path in (root / "notebooks").glob("[0-9]*.ipynb"))
    if missing := sorted({path.stem for path in (root / "notebooks").glob("[0-9]*.py")} - set(made)):
        raise Refused(f"notebooks/{missing[0]}.ipynb is missing: make it with `python notebooks/build.py {missing[0]}`")
    if not made:
        raise Refused(f"there is no notebook in {root / 'notebooks'}")
    return made


def read(path: Path) -> NotebookNode:
    """Return a notebook from its file."""
    import nbformat

    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


def package(name: str) -> Path:
    """Return the folder of an installed package, by the name that it is imported under.

    Raises:
        Refused: if it is not installed, with the command that mends it.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise Refused(f'the package {name} is not installed: pip install -c constraints.txt -e ".[notebooks,site]"')
    return Path(spec.origin).parent
