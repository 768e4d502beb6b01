"""What notebook 10 says of its results: sentences and small tables, computed from the committed files.

    python -m rcp.course.systems_words     prints those that REPRODUCIBILITY.md shows
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rcp.course import results_folder
from rcp.course.systems import NAMES, Cost, against, mean_std, read, shown, signed, values
from rcp.experiments.collection import Row
from rcp.experiments.summary import choose, interval, values_of
from rcp.files import read_json
from rcp.reproduce.systems import METRICS

REIMPLEMENTED = {3: 85.5, 50: 80.1}  # K → SPADE's image AUROC on MVTec AD, as re-implementations report it
ALIGNMENT, VARIANCE, FIELDS, GRADIENT, FUSION, REDUCTION = (
    f"options.{name}" for name in ("alignment", "variance", "fields", "gradient", "fusion", "reduction")
)
SETTINGS = {  # system → what the picture calls a setting → (method of the grid, what it varies)
    "Focus Your Distribution": {
        "image + features": ("FYD", {ALIGNMENT: "both"}), "image only": ("FYD", {ALIGNMENT: "image"}), "no alignment": ("FYD", {ALIGNMENT: "none"}),
        "no dense loss": ("FYD without the dense loss", {}),
    },
    "Uninformed Students": {
        "error + variance": ("Students", {VARIANCE: True}), "error alone": ("Students", {VARIANCE: False}),
        "field 17": ("Students, fields", {FIELDS: [17]}), "field 65": ("Students, fields", {FIELDS: [65]}),
        "17, 33 and 65": ("Students, fields", {FIELDS: [17, 33, 65]}),
    },
    "MKD": {
        "whole": ("MKD", {GRADIENT: "plain"}), "SmoothGrad": ("MKD", {GRADIENT: "smoothgrad"}), "guided": ("MKD", {GRADIENT: "guided"}),
        "no direction": ("MKD without the direction", {}),
    },
    "ReContrast": {
        "whole": ("ReContrast", {}), "no hard mining": ("ReContrast without hard mining", {}),
        "no global cosine": ("ReContrast without global cosine", {}), "no stop-gradient": ("ReContrast without stop-gradient", {}),
        "no contrast": ("ReContrast without contrast", {}), "trained enc. alone": ("the trained encoder alone, it collapses", {}),
        "RD4AD": ("RD4AD, trained alike", {}),
    },
    "InCTRL": {
        "P + I": ("InCTRL", {}), "P alone": ("InCTRL, P alone", {}), "I alone": ("InCTRL, I alone", {}),
        "I: concatenated": ("InCTRL, fusion", {FUSION: "concat"}), "I: averaged": ("InCTRL, fusion", {FUSION: "average"}),
    },
    "PaDiM": {"random channels": ("PaDiM", {REDUCTION: "random"}), "PCA": ("PaDiM", {REDUCTION: "pca"})},
}  # fmt: skip


def spade_by_k(folder: Path | None = None) -> dict[str, dict[int, float]]:
    """Return SPADE's image AUROC: category → K → share.

    Args:
        folder: None: `results_folder()`.
    """
    content = read_json((folder or results_folder()) / "systems_spade.json")
    return {name: {int(k): value for k, value in found.items()} for name, found in content["image_auroc"].items()}


def spade_said(by_k: Mapping[str, Mapping[int, float]]) -> str:
    """Return what K did here, in a sentence; nothing in SPADE is drawn, so the interval is over categories."""
    lost = interval(100 * (found[3] - found[50]) for found in by_k.values())
    side = "with" if lost.low > 0 else ("against" if lost.high < 0 else "cannot tell; it does not contradict")
    best = {name: max(found, key=found.get) for name, found in by_k.items()}
    return (
        f"**What this tells you.** K = 3 less K = 50, image AUROC: {shown(lost)} points over these {lost.n} categories. That speaks "
        f"{side} the re-implementations ({REIMPLEMENTED[3]} against {REIMPLEMENTED[50]}). The best K of each category (an oracle: it "
        f"was found on test labels, so nobody may use it): {', '.join(f'{name} {k}' for name, k in best.items())}."
    )


def verdict(rows: Sequence[Row], cost: Mapping[str, Cost]) -> str:
    """Return the answers to the questions that the notebook opens with.

    Args:
        rows: of the grid "systems".
        cost: from `rcp.course.systems.costs`.
    """
    found = against(rows, "PatchCore")
    better = [name for name, one in found.items() if one.low > 0]
    worse = [name for name, one in found.items() if one.high < 0]
    slow = max(NAMES, key=lambda name: cost[name].fit_seconds)
    n = len(found)
    return (
        f"**What this tells you.** Clearly better than PatchCore in image AUROC: {_listed(better)} of {n}; clearly worse: {_listed(worse)}. "
        f"For the other {n - len(better) - len(worse)} these categories and seeds cannot tell. One of twenty true zeros would be bold by chance, and there are "
        f"{n * len(METRICS)} numbers in that table. The slowest to fit is {slow} ({cost[slow].fit_seconds:.0f} s)."
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def ablations(folder: Path | None = None) -> dict[str, dict[str, list[Row]]]:
    """Return the rows of every switch: system → setting → rows.

    Args:
        folder: None: `results_folder()`.
    """
    rows = read("systems_ablations", folder)
    return {
        system: {name: choose(rows, method=method, varied=varied) for name, (method, varied) in settings.items()}
        for system, settings in SETTINGS.items()
    }


def ablations_said(groups: Mapping[str, Mapping[str, Sequence[Row]]], metric: str = "image_auroc") -> str:
    """Return every switch less its whole system, in Markdown: paired by category and seed, with the interval over the pairs."""
    lines = [f"| system | without, or instead | {METRICS[metric]}, points | pixel AUROC, points |", "|---|---|---:|---:|"]
    for system, settings in groups.items():
        whole, *others = settings
        for name in others:
            cells = []
            for one in (metric, "pixel_auroc"):
                ours, theirs = (values_of(settings[key], one) for key in (name, whole))
                cells.append(shown(interval(100 * (ours[key] - theirs[key]) for key in ours if key in theirs)))
            lines.append(f"| {system} | {name} | " + " | ".join(cells) + " |")
    count = len(next(iter(next(iter(groups.values())).values())))
    return "\n".join(lines) + f"\n\n*95 % intervals over {count} pairs of category and seed, for these two categories; 128 px.*"


def pooled_table(rows: Sequence[Row], folder: Path | None = None) -> str:
    """Return one model for all embedded categories beside one a category, in Markdown.

    Args:
        rows: of the grid "systems".
        folder: of the results; None: `results_folder()`.
    """
    pooled = read("systems_pooled", folder)
    seeds = sorted({row.seed for row in pooled})
    lines = ["| system | image AUROC: one a category | one for all | difference | pixel AUROC: one a category | one for all | difference |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in dict.fromkeys(row.method for row in pooled):
        cells = []
        for metric in ("image_auroc", "pixel_auroc"):
            own = {k: v for k, v in values(rows, name, metric, data="embedded").items() if k[3] in seeds}
            all_ = {key: 100 * value for key, value in values_of(choose(pooled, method=name), metric).items()}
            apart = statistics.fmean(all_.values()) - statistics.fmean(own.values())
            cells += [mean_std(own), mean_std(all_), signed(apart)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n*Embedded synthetic data, Lite0 at 224 px, seeds {', '.join(map(str, seeds))}; the published ReContrast (WRN-50, MVTec AD): 99.5 one a category, 98.3 one for all.*"


def transfer_table(folder: Path | None = None) -> str:
    """Return what InCTRL takes from one domain into another, in Markdown: a real category by what it learned from.

    Args:
        folder: of the results; None: `results_folder()`.
    """
    rows = read("systems_transfer", folder)
    names = list(dict.fromkeys(row.category for row in rows))
    lines = ["| tested on MVTec AD, stored at 384 px | " + " | ".join(f"{name}: image AUROC | AP" for name in names) + " |",
             "|---|" + "---:|---:|" * len(names)]  # fmt: skip
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for name in names:
            own = [row for row in choose(rows, method=method) if row.category == name]
            cells += [mean_std({k: 100 * v for k, v in values_of(own, metric).items()}) for metric in ("image_auroc", "image_ap")]
        lines.append(f"| {method}{'' if method == 'PatchCore' else ', 8 prompts'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n*Mean ± deviation over 3 seeds: of the prompts, and of PatchCore's coreset (all good images).*"


def digits_table(folder: Path | None = None) -> str:
    """Return the semantic protocols on digits, in Markdown: means over the ten digits.

    Args:
        folder: of the results; None: `results_folder()`.
    """
    rows = read("systems_digits", folder)
    protocols = {"one digit normal, nine anomalous": "rest-", "one digit anomalous, nine normal": "one-"}
    lines = ["| system | " + " | ".join(f"{title}: image AUROC | AP" for title in protocols) + " |", "|---|" + "---:|---:|" * len(protocols)]
    for method in dict.fromkeys(row.method for row in rows):
        cells = []
        for start in protocols.values():
            own = [row for row in choose(rows, method=method) if row.category.startswith(start)]
            cells += [mean_std({k: 100 * v for k, v in values_of(own, metric).items()}) for metric in ("image_auroc", "image_ap")]
        lines.append(f"| {method}{', 8 prompts' if method == 'InCTRL' else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n*scikit-learn's digits (8 x 8, enlarged to 64 px) in the place of MNIST; mean over the ten digits ± deviation over 3 seeds. InCTRL learned from synthetic industrial parts.*"


def main() -> None:
    """Print what REPRODUCIBILITY.md tells of the other systems, from the committed files."""
    print(spade_said(spade_by_k()), transfer_table(), digits_table(), sep="\n\n")


if __name__ == "__main__":
    main()
