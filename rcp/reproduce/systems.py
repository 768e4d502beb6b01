"""The other systems beside PatchCore and ReConPatch: one table, each with its own paper's numbers, and what each costs here."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rcp import published
from rcp.detectors import PAPERS, SYSTEMS
from rcp.experiments import Grid, Method
from rcp.experiments.collection import Row
from rcp.experiments.grid import Data
from rcp.features import FeatureSettings
from rcp.files import write_atomically
from rcp.published import Number
from rcp.reproduce.setup import QUICK, Setup
from rcp.reproduce.sheet import SYSTEMS as NUMBER
from rcp.reproduce.sheet import Cells, Line, Sheet

TITLES = {  # kind → how tables call it, in the order of the ideas: memory, distribution, distillation, reconstruction, generalist
    "histogram": "brightness histogram", "spade": "SPADE", "padim": "PaDiM", "fyd": "Focus Your Distribution",
    "students": "Uninformed Students", "mkd": "MKD", "rd4ad": "RD4AD", "recontrast": "ReContrast", "inctrl": "InCTRL",
}  # fmt: skip
PUBLISHED = {  # title → how the published tables call it
    "PatchCore": ("PatchCore-1%",), "SPADE": ("SPADE",), "PaDiM": ("PaDiM-WR50-Rd550", "PaDiM"),
    "ReConPatch": ("ReConPatch",), "Focus Your Distribution": ("FYD",),
    "Uninformed Students": ("Uninformed Students multiscale", "Uninformed Students p=65"), "MKD": ("MKD",), "RD4AD": ("RD4AD",),
    "ReContrast": ("ReContrast (2000 it, last iteration)", "ReContrast"),
}  # fmt: skip
NOTES = {"Uninformed Students": ("Published a category at a time with p = 65 alone, in the mean with three receptive fields.",)}
METRICS = {"image_auroc": "image AUROC", "image_ap": "image AP", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
QUICK_STEPS = 4
REMARKS = (
    "Each published number is of its own paper's backbone and image size; its PRO may be another area than our AUPRO (exact, up to an FPR of 0.3).",
    "The brightness histogram is this project's baseline: what a system that sees nothing but brightness finds.",
    "InCTRL learned from the embedded synthetic categories, with their defects, and saw eight good images of the category itself; "
    "its paper has no numbers on MVTec AD here.",
    "Systems that train hold a tenth of the good images out, to learn what normal images score.",
)


def sheet(setup: Setup) -> Sheet:
    """Return the table of the other systems before it is measured.

    Args:
        setup: with backbone "paper" each system has its paper's options, backbone and image size; else its teaching preset on
            one backbone.

    Raises:
        ValueError: if weights are given without a name where several backbones are used.
    """
    backbones, methods = _backbones(setup), _methods(setup)
    training = {"epochs": 120 if setup.backbone == "paper" else 10, "learning_rate": 1e-5} | (QUICK if setup.quick else {})
    data = (Data(setup.data, setup.categories),)
    grid = Grid("The systems side by side", data, backbones, tuple(methods), setup.seeds, training=training)
    lines = [Line(one.name, _numbers(one.name), Cells(one.name, one.backbones[0], setup.data), NOTES.get(one.name, ())) for one in methods]
    preset = f"{'its own paper’s settings and backbone' if setup.backbone == 'paper' else 'its teaching preset'}"
    remarks = (f"Every system has {preset}.", *REMARKS)
    if setup.quick:
        remarks = (f"--quick: {QUICK_STEPS} steps of every training.", *remarks)
    return Sheet(NUMBER, grid.title, grid, tuple(lines), (), (), remarks, METRICS)


def _backbones(setup: Setup) -> dict[str, FeatureSettings]:
    """Name of a column → features. With each paper's own backbone, a system has a column of its own."""
    if setup.backbone == "paper":
        found = {title: PAPERS[kind][1] for kind, title in TITLES.items()} | {"PatchCore": FeatureSettings("wide_resnet50_2")}
    else:
        name = FeatureSettings.backbone if setup.backbone == "embedded" else setup.backbone
        found = {name: FeatureSettings(name)}
    names = {one.backbone for one in found.values()}
    if "" in setup.weights and len(names) > 1:
        raise ValueError(f"systems needs the weights of {', '.join(sorted(names))}: give each with --weights NAME=FILE")
    files = setup.weights
    return {title: replace(one, weights=files.get(one.backbone, files.get(""))) for title, one in found.items()}


def _methods(setup: Setup) -> list[Method]:
    names = list(_backbones(setup))
    paper = setup.backbone == "paper"
    common = "PatchCore" if paper else names[0]
    found = [Method("PatchCore", "patchcore", backbones=(common,)), Method("ReConPatch", "reconpatch", backbones=(common,))]
    for kind, title in TITLES.items():
        options: dict[str, Any] = asdict(PAPERS[kind][0]) if paper else {}
        if setup.quick:  # of every training, of a teacher's as well
            options |= {one.name: QUICK_STEPS for one in fields(SYSTEMS[kind].Options) if one.name.endswith("steps")}
        features = {"levels": PAPERS[kind][1].levels} if paper else {}
        found.append(Method(title, kind, options=options, features=features, backbones=(title if paper else names[0],)))
    return found


def _numbers(title: str) -> tuple[Number, ...]:
    names = PUBLISHED.get(title, ())
    return tuple(number for name in names for number in published.select(method=name, dataset="MVTec AD"))


def costs(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return what each system cost: method → medians over categories and seeds.

    Args:
        rows: of the table's grid.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row.last and row.cost:
            found.setdefault(row.method, []).append(row.cost)
    return {name: {key: statistics.median(one[key] for one in every) for key in every[0]} for name, every in found.items()}


def cost_table(rows: Sequence[Row], machine: str) -> str:
    """Return the costs in Markdown.

    Args:
        rows: of the table's grid.
        machine: what they were measured on, in words.
    """
    lines = [
        f"What each cost on {machine}: medians over categories and seeds, measured beside whatever else ran there. Seconds count from the files "
        "on; the peak of memory has libraries, network and all images of the category in it; on disk lies what `save` writes.", "",
        "| system | fit, s | an image, ms | peak of memory, GB | on disk, MB |", "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, cost in costs(rows).items():
        lines.append(
            f"| {name} | {cost['fit_seconds']:.1f} | {1000 * cost['image_seconds']:.1f} | {cost['peak_bytes'] / 1e9:.2f} | "
            f"{cost['state_bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines) + "\n"


def write_costs(rows: Sequence[Row], machine: str, folder: str | Path) -> list[Path]:
    """Write systems_cost.md and .csv into a folder; return their paths.

    Args:
        rows, machine: as for `cost_table`.
        folder: made if need be.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("fit_seconds", "image_seconds", "peak_bytes", "state_bytes")
    writer.writerow(("system", *keys))
    writer.writerows((name, *(f"{cost[key]:g}" for key in keys)) for name, cost in costs(rows).items())
    contents = {"md": cost_table(rows, machine), "csv": text.getvalue()}
    return [
        write_atomically(Path(folder) / f"systems_cost.{suffix}", lambda path, text=text: path.write_text(text, encoding="utf-8"))
        for suffix, text in contents.items()
    ]
