"""The repository's own promises: pins in step, two commands, rooms that one reads in one sitting, data that flow one way."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("detectors", "bench", "course", "experiments", "published", "reproduce")


def pins(*extras: str) -> list[str]:
    """The package's pins and those of some of its extras, or of all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return project["dependencies"] + [pin for extra in extras or optional for pin in optional[extra]]


def test_environment_yml_has_the_pins_of_pyproject():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = next(entry["pip"] for entry in packages if isinstance(entry, dict))
    assert sorted(by_pip) == sorted([*pins("notebooks", "test", "site"), "-c constraints.txt", "-e ."])


def test_every_direct_dependency_is_pinned_and_the_constraints_agree():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))
    for pin in pins():
        name, version = pin.split("==")
        assert fixed[name] == version


@pytest.mark.parametrize("name", ["torch", "timm", "faiss-cpu", "matplotlib", "umap-learn", "ipywidgets", "jupytext", "nbval"])
def test_the_packages_asked_for_by_name_are_there(name):
    assert name in {pin.split("==")[0] for pin in pins()}


def test_ci_runs_the_test_command_that_the_readme_names():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in script.splitlines() if line.strip() and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "$0")/.."',
        "make test",
        "if ! command -v chromium >/dev/null; then",
        "apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null",
        "fi",
        "make test-browser",
    ]
    assert all(command in readme for command in ("make test", "make test-browser", "apt install chromium", "make demo"))


def test_the_rooms_stay_readable():
    for path in (ROOT / "rcp").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{path.name} has grown out of one room"


def test_data_flows_one_way():
    """No room imports one that stands above it; plots and widgets are for notebooks and commands alone."""
    order = [
        "published", "official", "exact", "allocator", "progress", "timing", "store", "files", "synthetic_surface", "synthetic_textures", "synthetic_objects", "synthetic",
        "miniatures", "distances", "positions", "data", "semantic", "auxiliary", "images", "census", "quality", "backbones", "levels", "features", "pixels", "similarity", "loss",
        "adamp", "checkpoint", "training", "head", "coreset", "partitioned", "memory", "scoring", "calibration", "metrics", "modelfile", "detectors",
        "ports", "probes", "presets", "evaluation", "hits", "estimate", "comparison", "experiments", "plots", "plots_paper", "plots_grids",
        "reproduce",
        "widgets", "course", "run", "bench", "options", "cli",
    ]  # fmt: skip
    for path in (ROOT / "rcp").rglob("*.py"):
        room = path.parent.name if path.parent.name in PACKAGES else path.stem
        if room in ("__init__", "__main__"):
            continue
        assert room in order, f"where does {path.name} stand? Put it into the order"
        for name in imported_rooms(path):
            assert name == room in PACKAGES or order.index(name) < order.index(room), f"{path.name} imports {name}"


def imported_rooms(path: Path) -> set[str]:
    """The rooms of rcp that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "rcp":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rcp."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("rcp.")}
    return found
