"""Execute notebooks: the .py file is the source, the .ipynb beside it is made from it, with fresh outputs.

    python notebooks/build.py                          all notebooks, in place; figures go to figures/
    python notebooks/build.py --out demo 00_quickstart one notebook into a folder, with its figures and tables
    python notebooks/build.py --address YOU/NAME       write the repository's public address into badges and first cells

One source, two notebooks. Cells of the source may be tagged:

    setup      also stands in the solutions' notebook, which begins with these cells
    exercise   text of an exercise, or the cell that a student fills in
    solution   its solution: folded text in the notebook, an executed cell in notebooks/solutions/
    check      says whether the answer is right, and why not; stands in both

`make slides` reads the tags slide (a new one), sub (goes on below) and notes (for the lecturer); `hide-input` shows the output alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SOLUTIONS = HERE / "solutions"
WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDED = "<details><summary><b>Solution</b></summary>\n\n```python\n{code}\n```\n\n</details>"
OPENING = """# Solutions to [{name}](../{name}.ipynb)

Cut from the same source as the notebook, and executed: `notebooks/{name}.py`, cells tagged *exercise*, *solution* and *check*."""


def names() -> list[str]:
    """Return the notebooks, by name, in the order of the course."""
    return sorted(path.stem for path in HERE.glob("[0-9]*.py"))


def convert(name: str) -> nbformat.NotebookNode:
    """Return the notebook that a .py source stands for, without outputs: solutions are folded text below their checks."""
    cells = []
    for cell in jupytext.read(HERE / f"{name}.py").cells:
        if "solution" in tags(cell):
            folded = nbformat.v4.new_markdown_cell(FOLDED.format(code=cell.source), metadata={"tags": ["solution"]})
            cells.append(folded)
        elif "check" in tags(cell) and cells and "solution" in tags(cells[-1]):
            cells.insert(len(cells) - 1, cell)
        else:
            cells.append(cell)
    return _notebook(cells)


def solutions(name: str) -> nbformat.NotebookNode:
    """Return the notebook of a source's solutions, without outputs; a stub gives way to the solution that follows it."""
    cells = [nbformat.v4.new_markdown_cell(OPENING.format(name=name))]
    for cell in jupytext.read(HERE / f"{name}.py").cells:
        if "solution" in tags(cell) and cells[-1].cell_type == "code" and "exercise" in tags(cells[-1]):
            cells[-1] = cell
        elif tags(cell) & {"setup", "exercise", "solution", "check"}:
            cells.append(cell)
    return _notebook(cells)


def tags(cell: nbformat.NotebookNode) -> set[str]:
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", []))


def _notebook(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:02d}"  # random ones would change with every build
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python", "file_extension": ".py"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": language})


def execute(notebook: nbformat.NotebookNode, out: Path, folder: Path = HERE) -> nbformat.NotebookNode:
    """Return the notebook, executed in a folder; its figures and tables go to `out`."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # as `import rcp` does, for kernels that import torch first
    environment |= {"RCP_OUT": str(out.resolve()), "RCP_PROGRESS": "0"}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", extra_arguments=["--log-level=40"], record_timing=False, store_widget_state=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(env=environment)
    notebook.metadata.language_info = {"name": "python", "file_extension": ".py"}  # without the version: no churn
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a widget without its kernel is an empty box: the figure beside it stays
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole, or not at all."""
    nbformat.validate(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def build(name: str, out: Path | None) -> dict[Path, float]:
    """Execute and write a notebook, and in place also its solutions' notebook; return what was written, and the seconds."""
    if out is not None:
        return _made(convert(name), out, out / f"{name}.ipynb")
    figures, solved = HERE.parent / "figures", solutions(name)
    written = _made(convert(name), figures, HERE / f"{name}.ipynb")
    if any("solution" in tags(cell) for cell in solved.cells):
        written |= _made(solved, figures, SOLUTIONS / f"{name}.ipynb")
    return written


def _made(notebook: nbformat.NotebookNode, figures: Path, path: Path) -> dict[Path, float]:
    started = time.perf_counter()
    write(execute(notebook, figures), path)
    return {path: time.perf_counter() - started}


def set_address(address: str, root: Path = HERE.parent) -> list[Path]:
    """Write the repository's public address, "owner/name", wherever the old one stands; return the files that changed.

    Binder, Colab and the first cell of each notebook need to know it. pyproject.toml says what it is now.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", address):
        raise ValueError(f"the address must look like owner/name, got {address!r}")
    url = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    old = "/".join(url.rstrip("/").split("/")[-2:])
    changed = []
    for path in [root / "pyproject.toml", root / "README.md", *sorted((root / "notebooks").rglob("[0-9]*.*"))]:
        text = path.read_text(encoding="utf-8")
        if old in text:
            path.write_text(text.replace(old, address), encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}; default: all")
    parser.add_argument("--out", metavar="DIR", help="put notebook, figures and tables there instead of in place")
    parser.add_argument("--address", metavar="YOU/NAME", help="write the public address everywhere, and do nothing else")
    options = parser.parse_args()
    if options.address:
        print(*set_address(options.address), sep="\n")
        return 0
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"there is no notebook {unknown[0]!r}; there are {', '.join(names())}")
    for name in options.names or names():
        for path, seconds in build(name, Path(options.out) if options.out else None).items():
            print(f"{path}  {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
