"""The repository's own promises: pins in step, notebooks fresh and readable, two commands, no paths of one machine."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
sys.path.insert(0, str(ROOT / "notebooks"))

import build  # noqa: E402


def pins() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"] + [pin for extra in project["optional-dependencies"].values() for pin in extra]


def test_environment_yml_has_the_pins_of_pyproject():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(entry["pip"] for entry in packages if isinstance(entry, dict))
    assert sorted(by_pip) == sorted([*pins(), "-c constraints.txt", "-e ."])


def test_every_direct_dependency_is_pinned_and_the_constraints_agree():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    fixed = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    for pin in pins():
        name, version = pin.split("==")
        assert fixed[name] == version


@pytest.mark.parametrize("name", ["torch", "timm", "faiss-cpu", "matplotlib", "umap-learn", "ipywidgets", "jupytext", "nbval"])
def test_the_packages_asked_for_by_name_are_there(name):
    assert name in {pin.split("==")[0] for pin in pins()}


def test_ci_runs_the_test_command_that_the_readme_names():
    script = (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "make test" in script and "make test" in readme and "make demo" in readme


def test_every_notebook_has_its_source_and_every_source_its_notebook():
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert NOTEBOOKS


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_in_step_with_its_source(self, source):
        made, kept = build.convert(source.stem), nbformat.read(source.with_suffix(".ipynb"), as_version=4)
        assert [(c.cell_type, c.source, c.id) for c in made.cells] == [(c.cell_type, c.source, c.id) for c in kept.cells]

    def test_is_valid_and_was_executed_in_order_without_errors(self, source):
        notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]

    def test_carries_no_debris(self, source):
        text = source.with_suffix(".ipynb").read_text()
        notebook = json.loads(text)
        outputs = [o for cell in notebook["cells"] for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o.get("name") == "stderr"]
        assert "widgets" not in notebook["metadata"] and "widget-view" not in text
        assert not re.search(r"/(home|Users|root|tmp|work)/\w", text)
        assert len(text) < 2_000_000

    def test_has_short_cells_and_speaks_between_them(self, source):
        cells = jupytext.read(source).cells
        lengths = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code"]
        assert max(lengths) <= 30 and sorted(lengths)[len(lengths) // 2] <= 15
        assert sum(cell.cell_type == "markdown" for cell in cells) >= len(lengths) * 0.6

    def test_sets_some_outputs_that_nbval_compares(self, source):
        tagged = [c for c in jupytext.read(source).cells if "nbval-check-output" in c.metadata.get("tags", [])]
        assert tagged


def test_the_rooms_stay_readable():
    for path in (ROOT / "rcp").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, f"{path.name} has grown out of one room"


def test_data_flows_one_way():
    """No room imports one that stands above it; plots and widgets are for notebooks and commands alone."""
    order = [
        "allocator", "progress", "timing", "store", "files", "synthetic_surface", "synthetic_textures", "synthetic_objects", "synthetic",
        "distances", "data", "images", "backbones", "features", "similarity", "loss",
        "checkpoint", "adamp", "head", "coreset", "partitioned", "memory", "scoring", "calibration", "metrics", "modelfile", "detectors",
        "evaluation", "estimate", "comparison", "plots", "widgets", "run", "bench", "options", "cli",
    ]  # fmt: skip
    for path in (ROOT / "rcp").rglob("*.py"):
        room = path.parent.name if path.parent.name in ("detectors", "bench") else path.stem
        if room in ("__init__", "__main__"):
            continue
        assert room in order, f"where does {path.name} stand? Put it into the order"
        for name in imported_rooms(path):
            assert name == room in ("detectors", "bench") or order.index(name) < order.index(room), f"{path.name} imports {name}"


def imported_rooms(path: Path) -> set[str]:
    """The rooms of rcp that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rcp":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rcp."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rcp.")}
    return found
