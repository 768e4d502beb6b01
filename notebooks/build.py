"""Execute notebooks: the .py file is the source, the .ipynb beside it is made from it, with fresh outputs.

    python notebooks/build.py                          all notebooks, in place; figures go to figures/
    python notebooks/build.py --out demo 00_quickstart one notebook into a folder, with its figures and tables
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def names() -> list[str]:
    """Return the notebooks, by name, in the order of the course."""
    return sorted(path.stem for path in HERE.glob("[0-9]*.py"))


def convert(name: str) -> nbformat.NotebookNode:
    """Return the notebook that a .py source stands for, without outputs, with lasting cell ids."""
    notebook = jupytext.read(HERE / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"  # random ones would change with every build
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py"},
    })  # fmt: skip
    return notebook


def execute(name: str, out: Path) -> nbformat.NotebookNode:
    """Return the executed notebook; its figures and tables go to `out`."""
    notebook = convert(name)
    os.environ["RCP_OUT"] = str(out.resolve())
    os.environ["RCP_PROGRESS"] = "0"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `import rcp` does, for kernels that import torch first
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", extra_arguments=["--log-level=40"], record_timing=False, store_widget_state=False,
        resources={"metadata": {"path": str(HERE)}},
    )  # fmt: skip
    client.execute()
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


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}; default: all")
    parser.add_argument("--out", metavar="DIR", help="put notebook, figures and tables there instead of in place")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names()))
    if unknown:
        parser.error(f"there is no notebook {unknown[0]!r}; there are {', '.join(names())}")
    for name in options.names or names():
        started = time.perf_counter()
        out = Path(options.out) if options.out else HERE.parent / "figures"
        notebook = execute(name, out)
        target = (out if options.out else HERE) / f"{name}.ipynb"
        write(notebook, target)
        print(f"{target}  {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
