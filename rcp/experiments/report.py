"""Does the training help? The study's tables in Markdown, from collected results alone.

    python -m rcp.experiments.report figures/results

prints what stands in REPRODUCIBILITY.md (a test holds that). Nothing is measured here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import (
    Interval,
    Key,
    by_category,
    choose,
    differences,
    over_categories,
    over_seeds,
    values_of,
)

OPPONENT, UNTRAINED = "PatchCore + Eq. 10", "untrained f"
# What is compared → method and epoch in the grid "study"; the first is what all differences are taken from.
CONTENDERS: dict[str, tuple[str, int | None]] = {
    OPPONENT: (OPPONENT, None),
    "PatchCore, plain distance": ("PatchCore", None),
    "random projection to 512": ("random projection", None),
    "random projection to 64": ("random projection to 64", None),
    "PCA to 64": ("PCA to 64", None),
    "whitening": ("whitening", None),
    UNTRAINED: ("ReConPatch", 0),
    "ReConPatch, 1 epoch": ("ReConPatch", 1),
    "ReConPatch, 10 epochs": ("ReConPatch", 10),
    "ReConPatch, 40 epochs": ("ReConPatch", 40),
    "ReConPatch, 120 epochs": ("ReConPatch", None),
    "ReConPatch, 120 epochs, rate × 10": ("ReConPatch, rate x 10", None),
}
QUANTITIES = {  # name in tables → key, and what a value is multiplied by
    "image AUROC": ("image_auroc", 100), "pixel AUROC": ("pixel_auroc", 100), "AUPRO@0.3": ("aupro", 100), "d′": ("d_prime", 1),
}  # fmt: skip
PROBES = {"position share": "position_share", "position R²": "position_r2", "effective rank": "effective_rank"}


def contenders(rows: Sequence[Row], quantity: str, data: str | None = None, backbone: str | None = None) -> dict[str, dict[Key, float]]:
    """Return one quantity of every contender of the study that was measured: name → values by cell.

    Args:
        rows: of the grid "study".
        quantity: a metric's or a probe's key.
        data, backbone: one of each, or None for all.
    """
    there = {(row.method, None if row.last else row.epoch) for row in rows
             if data in (None, row.data) and backbone in (None, row.backbone)}
    return {
        name: values_of(choose(rows, method=method, epoch=epoch, data=data, backbone=backbone), quantity)
        for name, (method, epoch) in CONTENDERS.items() if (method, epoch) in there
    }  # fmt: skip


def difference_table(rows: Sequence[Row], quantity: str = "image AUROC") -> str:
    """Return, in Markdown, how far each contender lies from two opponents, paired, with 95 % intervals.

    Args:
        rows: of the grid "study".
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    values, lines = contenders(rows, key), []
    opponents = (OPPONENT, UNTRAINED)
    heads = [f"against {name}: over {what}" for name in opponents for what in ("seeds", "categories")]
    lines += ["| | cells | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(heads)]
    for name, own in values.items():
        cells = []
        for opponent in opponents:
            if name == opponent:
                cells += ["", ""]
                continue
            apart = differences(own, values[opponent])
            cells += [spelled(over_seeds(apart), scale), spelled(over_categories(apart), scale)]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def category_table(rows: Sequence[Row], ours: str, theirs: str, quantity: str = "image AUROC") -> str:
    """Return, in Markdown, the paired difference of two contenders for every category and backbone, over seeds.

    Args:
        rows: of the grid "study".
        ours, theirs: keys of `CONTENDERS`.
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    values = contenders(rows, key)
    found = by_category(differences(values[ours], values[theirs]))
    backbones = list(dict.fromkeys(backbone for _, _, backbone in found))
    lines = ["| category | " + " | ".join(backbones) + " |", "|---|" + "---:|" * len(backbones)]
    for data, category in dict.fromkeys((data, category) for data, category, _ in found):
        cells = [spelled(found[data, category, b], scale) if (data, category, b) in found else "–" for b in backbones]
        lines.append(f"| {data} {category} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_table(rows: Sequence[Row], data: str, backbone: str) -> str:
    """Return, in Markdown, all quantities of one data set under one backbone: mean over categories ± deviation over seeds."""
    tables = {name: contenders(rows, key, data, backbone) for name, (key, _) in QUANTITIES.items()}
    probes = {name: contenders(rows, key, data, backbone) for name, key in PROBES.items()}
    heads = [*tables, *probes]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in tables["image AUROC"]:
        cells = [_mean_std(tables[quantity][name], scale) for quantity, (_, scale) in QUANTITIES.items()]
        cells += [_mean_std(probes[quantity].get(name, {}), 1) for quantity in PROBES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def port_table(rows: Sequence[Row], quantity: str = "image AUROC") -> str:
    """Return, in Markdown, what each bug of the ports changes against ReConPatch without it, paired.

    Args:
        rows: of the grid "ports".
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    ours = values_of(choose(rows, method="ReConPatch"), key)
    bugs = dict.fromkeys(row.varied["options.bug"] for row in rows if row.method == "ported")
    lines = ["| bug | cells | over seeds | over categories |", "|---|---:|---:|---:|"]
    for bug in bugs:
        own = values_of(choose(rows, method="ported", varied={"options.bug": bug}), key)
        apart = differences(own, ours)
        lines.append(f"| {bug} | {len(apart)} | {spelled(over_seeds(apart), scale)} | {spelled(over_categories(apart), scale)} |")
    return "\n".join(lines) + "\n"


def spelled(found: Interval, scale: float = 100) -> str:
    """Return an interval as tables show it: mean [low, high], in bold where zero lies outside."""
    mean, low, high = (f"{scale * value:+.2f}" for value in (found.mean, found.low, found.high))
    text = mean if found.n == 1 else f"{mean} [{low}, {high}]"
    return f"**{text}**" if found.clear else text


def _mean_std(values: Mapping[Key, float], scale: float) -> str:
    """Mean over categories within each seed, then mean ± deviation over seeds."""
    by_seed: dict[int, list[float]] = {}
    for key, value in values.items():
        by_seed.setdefault(key[3], []).append(scale * value)
    means = [statistics.fmean(own) for own in by_seed.values()]
    if not means:
        return "–"
    return f"{statistics.fmean(means):.2f}" + (f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else "")


def report(folder: str | Path) -> str:
    """Return all tables of the study in Markdown.

    Args:
        folder: with `study.json`, `ports.json` and `full.json`, as `rcp experiments … --collect` writes them.
    """
    folder = Path(folder)
    study, ports, full = (read_rows(folder / f"{name}.json") for name in ("study", "ports", "full"))
    parts = ["### Differences in image AUROC, in percentage points\n", difference_table(study)]
    parts += ["### Differences in d′\n", difference_table(study, "d′")]
    parts += ["### ReConPatch after 120 epochs against its untrained f, image AUROC, category by category, over seeds\n",
              category_table(study, "ReConPatch, 120 epochs", UNTRAINED)]  # fmt: skip
    parts += ["### ReConPatch at ten times the rate against its untrained f, image AUROC, over seeds\n",
              category_table(study, "ReConPatch, 120 epochs, rate × 10", UNTRAINED)]  # fmt: skip
    for data in dict.fromkeys(row.data for row in study):
        for backbone in dict.fromkeys(row.backbone for row in study):
            parts += [f"### {data}, {backbone}: means over categories ± standard deviation over seeds\n",
                      mean_table(study, data, backbone)]  # fmt: skip
    parts += ["### The ports' bugs: ReConPatch with one, against ReConPatch without, image AUROC\n", port_table(ports)]
    values = values_of(choose(full, method="ReConPatch"), "image_auroc")
    start = values_of(choose(full, method="ReConPatch", epoch=0), "image_auroc")
    apart = by_category(differences(values, start))
    parts.append("### With the full number of steps: 120 epochs against the untrained f, image AUROC, over seeds\n")
    parts.append("\n".join(f"* {category}: {spelled(found)}" for (_, category, _), found in apart.items()) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(report(sys.argv[1] if len(sys.argv) > 1 else "figures/results"), end="")
