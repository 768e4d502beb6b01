"""Does the training help? The study's tables in Markdown, from collected results alone.

    python -m rcp.experiments.report figures/results

prints what stands in REPRODUCIBILITY.md (a test holds that). Nothing is measured here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import (
    Interval,
    Key,
    by_category,
    choose,
    differences,
    over_both,
    over_categories,
    over_seeds,
    values_of,
)
from rcp.files import read_json

PLAIN, UNTRAINED = "PatchCore", "untrained f"
SOURCES = {"embedded": "4 synthetic", "mvtec": "bottle and pill"}  # data of the grid → how tables call its categories
CONTENDERS: dict[str, tuple[str, int | None]] = {  # what is compared → method and epoch in the grid "study"
    PLAIN: ("PatchCore", None),
    "PatchCore + Eq. 10": ("PatchCore + Eq. 10", None),
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
PROBES = {  # name in tables → key, and digits of a difference
    "position share": ("position_share", 4), "position R²": ("position_r2", 6), "effective rank": ("effective_rank", 2),
}  # fmt: skip


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


def difference_table(rows: Sequence[Row], quantity: str, opponent: str) -> str:
    """Return, in Markdown, how far each contender lies from one opponent, paired, with 95 % intervals.

    Args:
        rows: of the grid "study".
        quantity: a key of `QUANTITIES`.
        opponent: a key of `CONTENDERS`.
    """
    key, scale = QUANTITIES[quantity]
    values = contenders(rows, key)
    parts = {one: contenders(rows, key, one) for one in dict.fromkeys(row.data for row in rows)}
    heads = ["over both", "over seeds", "over categories", *(f"{SOURCES.get(one, one)}, over seeds" for one in parts)]
    lines = ["| | cells | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(heads)]
    for name, own in values.items():
        if name != opponent:
            apart = differences(own, values[opponent])
            found = [over_both(apart), over_seeds(apart), over_categories(apart)]
            found += [over_seeds(differences(part[name], part[opponent])) for part in parts.values()]
            lines.append(f"| {name} | {len(own)} | " + " | ".join(spelled(one, scale) for one in found) + " |")
    return "\n".join(lines) + "\n"


def probe_table(rows: Sequence[Row]) -> str:
    """Return, in Markdown, how far the probes of each contender lie from the untrained f's, paired, over both.

    Args:
        rows: of the grid "study".
    """
    lines = ["| | " + " | ".join(PROBES) + " |", "|---|" + "---:|" * len(PROBES)]
    tables = [(contenders(rows, key), digits) for key, digits in PROBES.values()]
    for name in tables[0][0]:
        if name != UNTRAINED:
            found = (spelled(over_both(differences(table[name], table[UNTRAINED])), 1, digits) for table, digits in tables)
            lines.append(f"| {name} | " + " | ".join(found) + " |")
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
    probes = {name: contenders(rows, key, data, backbone) for name, (key, _) in PROBES.items()}
    heads = [*tables, *probes]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in tables["image AUROC"]:
        cells = [_mean_std(tables[quantity][name], scale) for quantity, (_, scale) in QUANTITIES.items()]
        cells += [_mean_std(probes[quantity].get(name, {}), 1) for quantity in PROBES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def port_table(rows: Sequence[Row], quantity: str = "image AUROC") -> str:
    """Return, in Markdown, what each bug of the ports changes against ReConPatch without it, paired, over seeds.

    Args:
        rows: of the grid "ports".
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    ours = values_of(choose(rows, method="ReConPatch"), key)
    bugs = dict.fromkeys(row.varied["options.bug"] for row in rows if row.method == "ported")
    apart = {bug: differences(values_of(choose(rows, method="ported", varied={"options.bug": bug}), key), ours) for bug in bugs}
    places = list(dict.fromkeys(place for own in apart.values() for place in by_category(own)))
    heads = ["all, over both", "all, over seeds", *(f"{data} {category}, over seeds" for data, category, _ in places)]
    lines = ["| bug | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for bug, own in apart.items():
        cells = [over_both(own), over_seeds(own), *(by_category(own)[place] for place in places)]
        lines.append(f"| {bug} | " + " | ".join(spelled(one, scale) for one in cells) + " |")
    return "\n".join(lines) + "\n"


def full_table(rows: Sequence[Row], *, whole: bool = True) -> str:
    """Return, in Markdown, ReConPatch at its end against its untrained f, by category, paired, over seeds, in all quantities.

    Args:
        rows: of the grid "full".
        whole: whether every category was measured with every seed, so that a last line over both has a meaning.
    """
    apart = {
        name: differences(*(values_of(choose(rows, method="ReConPatch", epoch=epoch), key) for epoch in (None, 0)))
        for name, (key, _) in QUANTITIES.items()
    }
    lines = ["| category | " + " | ".join(apart) + " |", "|---|" + "---:|" * len(apart)]
    for place in by_category(apart["image AUROC"]):
        cells = (spelled(by_category(own)[place], QUANTITIES[name][1]) for name, own in apart.items())
        lines.append(f"| {place[0]} {place[1]} | " + " | ".join(cells) + " |")
    if whole:
        cells = (spelled(over_both(own), QUANTITIES[name][1]) for name, own in apart.items())
        lines.append("| all, over both | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


FIRST = {(category, seed) for category in ("brick", "terminal") for seed in range(3)}  # of "full": see grids/full.toml


def added_table(rows: Sequence[Row]) -> str:
    """Return, in Markdown, `full_table` of the cells alone that were added when the first ones had been looked at."""
    added = [row for row in rows if (row.category, row.seed) not in FIRST]
    lead = (
        "Only the cells that were added when the first ones (brick and terminal, seeds 0 to 2) had been looked at. Of brick and "
        "terminal these are two seeds: their intervals, of one degree of freedom, are to be read as two numbers close together or not."
    )
    return f"{lead}\n\n{full_table(added, whole=False)}"


def quality_table(rows: Sequence[Row], quantity: str = "image AUROC") -> str:
    """Return, in Markdown, what worse pictures change against clean ones, and by how much ReConPatch loses less, paired.

    Args:
        rows: of the grid "quality".
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    clean, *worse = dict.fromkeys(row.data for row in rows)
    states = {PLAIN: ("PatchCore", None), UNTRAINED: ("ReConPatch", 0), "ReConPatch": ("ReConPatch", None)}

    def values(data: str, name: str) -> dict[Key, float]:
        method, epoch = states[name]
        return {(clean, *place[1:]): value for place, value in values_of(choose(rows, method=method, epoch=epoch, data=data), key).items()}

    rivals = [f"ReConPatch less {rival}, {over}" for rival in (PLAIN, UNTRAINED) for over in ("over both", "over seeds")]
    lines = ["| pictures | " + " | ".join([*(f"{name}, over seeds" for name in states), *rivals]) + " |", "|---|" + "---:|" * (len(states) + 4)]
    for data in worse:
        lost = {name: differences(values(data, name), values(clean, name)) for name in states}
        cells = [over_seeds(own) for own in lost.values()]
        for rival in (PLAIN, UNTRAINED):
            apart = differences(lost["ReConPatch"], lost[rival])
            cells += [over_both(apart), over_seeds(apart)]
        lines.append(f"| {data.removeprefix(f'{clean}, ')} | " + " | ".join(spelled(one, scale) for one in cells) + " |")
    return "\n".join(lines) + "\n"


TOGETHER = "all backbones"  # what a mean over backbones, and an ensemble of them, is called in place of a backbone
ENSEMBLES = ("ensemble of PatchCore", "ensemble of untrained f", "ensemble of ReConPatch", "ensemble of ReConPatch, rate x 10")
ALONE = "PatchCore alone, mean of the backbones"
PAIRS = (  # what is compared in the grid "ensemble"
    ("ensemble of PatchCore", ALONE), ("ensemble of ReConPatch", "ensemble of untrained f"),
    ("ensemble of ReConPatch, rate x 10", "ensemble of untrained f"), ("ensemble of ReConPatch", "ensemble of PatchCore"),
    ("ensemble of ReConPatch, rate x 10", "ensemble of PatchCore"),
)  # fmt: skip


def ensembles(rows: Sequence[Row], quantity: str) -> dict[str, dict[Key, float]]:
    """Return one quantity of every ensemble, and the mean of PatchCores alone: name → values by cell.

    Args:
        rows: of the grid "ensemble".
        quantity: a metric's key.
    """
    found = {name: choose(rows, method=name) for name in ENSEMBLES} | {ALONE: choose(rows, method="PatchCore")}
    together: dict[str, dict[Key, list[float]]] = {name: {} for name in found}
    for name, own in found.items():
        for (data, category, _, seed), value in values_of(own, quantity).items():
            together[name].setdefault((data, category, TOGETHER, seed), []).append(value)
    return {name: {key: statistics.fmean(values) for key, values in own.items()} for name, own in together.items()}


def ensemble_table(rows: Sequence[Row], quantity: str) -> str:
    """Return, in Markdown, what ensembles gain over one another and over a PatchCore alone, paired: over both, and by category.

    Args:
        rows: of the grid "ensemble".
        quantity: a key of `QUANTITIES`.
    """
    key, scale = QUANTITIES[quantity]
    values = ensembles(rows, key)
    apart = {f"{ours} − {theirs}": differences(values[ours], values[theirs]) for ours, theirs in PAIRS}
    places = list(dict.fromkeys(place for own in apart.values() for place in by_category(own)))
    heads = ["over both", *(f"{data} {category}, over seeds" for data, category, _ in places)]
    lines = [f"| {quantity} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, own in apart.items():
        cells = [spelled(over_both(own), scale), *(spelled(by_category(own)[place], scale) for place in places)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ensemble_means(rows: Sequence[Row]) -> str:
    """Return, in Markdown, the ensembles, and each PatchCore alone: mean over categories ± standard deviation over seeds.

    Args:
        rows: of the grid "ensemble".
    """
    alone = {f"PatchCore, {b}": b for b in dict.fromkeys(row.backbone for row in rows if row.method == "PatchCore")}
    tables = {
        name: ensembles(rows, key) | {
            label: values_of(choose(rows, method="PatchCore", backbone=b), key) for label, b in alone.items()
        } for name, (key, _) in QUANTITIES.items()
    }  # fmt: skip
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---:|" * len(tables)]
    for name in (*alone, *ENSEMBLES):
        lines.append(f"| {name} | " + " | ".join(_mean_std(tables[q][name], scale) for q, (_, scale) in QUANTITIES.items()) + " |")
    return "\n".join(lines) + "\n"


def spelled(found: Interval, scale: float = 100, digits: int | None = None) -> str:
    """Return an interval as tables show it: mean [low, high], in bold where zero lies outside; points with two digits, others three."""
    digits = digits or (2 if scale == 100 else 3)
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (found.mean, found.low, found.high))
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
        folder: with `study.json`, `ports.json`, `full.json`, `ensemble.json`, `ablations.json` and `quality.json`, as
            `rcp experiments … --collect` writes them; of all but the first, what was not measured completely is said to be missing.
    """
    study, parts = _complete(folder, "study"), []
    if not study:
        raise ValueError(f"{folder} has no study.json in which every cell is measured: `rcp experiments study … --collect` makes it")
    for opponent in (UNTRAINED, PLAIN):
        for quantity, (_, scale) in QUANTITIES.items():
            unit = ", percentage points" if scale == 100 else ""
            parts += [f"### {quantity}: differences from {opponent}{unit}\n", difference_table(study, quantity, opponent)]
    parts += ["### The feature space: differences from untrained f, over both\n", probe_table(study)]
    parts += ["### ReConPatch after 120 epochs against its untrained f, image AUROC, category by category, over seeds\n",
              category_table(study, "ReConPatch, 120 epochs", UNTRAINED)]  # fmt: skip
    parts += ["### ReConPatch at ten times the rate against its untrained f, image AUROC, over seeds\n",
              category_table(study, "ReConPatch, 120 epochs, rate × 10", UNTRAINED)]  # fmt: skip
    for data in dict.fromkeys(row.data for row in study):
        for backbone in dict.fromkeys(row.backbone for row in study):
            parts += [f"### {SOURCES.get(data, data)}, {backbone}: means over categories ± standard deviation over seeds\n",
                      mean_table(study, data, backbone)]  # fmt: skip
    for name, title, tables in (
        ("ports", "The ports' bugs: ReConPatch with one or with all, against ReConPatch without; Lite0, rate × 10, image AUROC",
         (port_table,)),
        ("full", "64 steps an epoch instead of 16 (Lite0): 120 epochs against untrained f, over seeds", (full_table, added_table)),
        ("ensemble", "Ensembles of Lite0, 1 and 2: means over three categories ± standard deviation over seeds, and paired differences",
         (ensemble_means, *(partial(ensemble_table, quantity=quantity) for quantity in QUANTITIES))),
        ("quality", "Worse pictures, one draw of them, against clean ones (Lite0, synthetic categories): changes of image AUROC, points",
         (quality_table,)),
    ):  # fmt: skip
        rows = _complete(folder, name)
        parts.append(f"### {title}\n")
        parts += [table(rows) for table in tables] if rows else [f"Not measured yet: `rcp experiments {name}`.\n"]
    hours = {name: seconds / 3600 for name, seconds in _seconds(folder).items()}
    told = ", ".join(f"{name} {one:.1f}" for name, one in hours.items())
    parts.append(
        f"Hours of one worker with one thread that the cells took, features not counted, a cell of several grids in the first: {told}; "
        f"together {sum(hours.values()):.1f}, so about {sum(hours.values()) / 2:.1f} hours with two workers on two cores.\n"
    )
    return "\n".join(parts)


def _complete(folder: str | Path, name: str) -> list[Row]:
    """The rows of a collected grid; none if it is not there, or not all of it."""
    path = Path(folder) / f"{name}.json"
    return read_rows(path) if path.is_file() and not read_json(path)["missing"] else []


def _seconds(folder: str | Path) -> dict[str, float]:
    """What the cells of each collected grid took; one that several grids have counts in the first."""
    found, counted = {}, set()
    for name in ("study", "ports", "full", "ensemble", "ablations", "quality"):
        path = Path(folder) / f"{name}.json"
        if not path.is_file():
            continue
        rows = {row["address"]: row["seconds"] for row in read_json(path)["rows"]}
        found[name] = sum(seconds for address, seconds in rows.items() if address not in counted)
        counted |= set(rows)
    return found


if __name__ == "__main__":
    print(report(sys.argv[1] if len(sys.argv) > 1 else "figures/results"), end="")
