"""What notebook 10 says of its results: sentences and small tables, computed from the committed files.

    python -m rcp.course.systems_words             prints what REPRODUCIBILITY.md tells of the other systems
    python -m rcp.course.systems_words --short     prints what README.md shows
    python -m rcp.course.systems_words --costs     prints what BENCHMARKS.md shows
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rcp import published
from rcp.course import results_folder
from rcp.course.systems import (
    BASELINE,
    NAMES,
    Cost,
    against,
    below_baseline,
    cost_words,
    costs,
    difference_table,
    fit_told,
    idea_of,
    mean_std,
    printed,
    read,
    shown,
    side_by_side,
    table_words,
    troubles_told,
    values,
    when_to_use,
)
from rcp.experiments.collection import Row
from rcp.experiments.summary import Interval, choose, differences, interval, over_both, over_categories, values_of
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
        "field 17, not 65": ("Students, fields", {FIELDS: [17]}), "17, 33 and 65": ("Students, fields", {FIELDS: [17, 33, 65]}),
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

NO_MAP = ("I alone",)  # one number an image
MEANT = {  # what a setting's name says
    "image + features": "alignment at both levels", "image only": "only whole pictures are aligned",
    "no dense loss": "the backbone stays as ImageNet left it",
    "error alone": "the variance between the students does not count", "field 17, not 65": "smaller patches", "17, 33 and 65": "three sizes of patches, averaged",
    "SmoothGrad": "the mean gradient over noisy copies", "guided": "negative gradients are cut at every rectifier", "no direction": "the value term alone",
    "no contrast": "each encoder is given back from its own features", "trained enc. alone": "no frozen encoder, no stop-gradient, no mining: it may collapse",
    "RD4AD": "the frozen encoder alone, trained alike", "P": "the patch residual", "I": "the residual of the whole image",
    "I: concatenated": "query and prompts side by side, not their difference", "I: averaged": "their mean",
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
    others = f"the re-implementations ({REIMPLEMENTED[3]} against {REIMPLEMENTED[50]})"
    side = f"That speaks with {others}." if lost.low > 0 else f"That speaks against {others}." if lost.high < 0 else f"That cannot tell, and does not contradict {others}."
    best = {name: "/".join(str(k) for k, value in found.items() if value == max(found.values())) for name, found in by_k.items()}
    return (
        f"**What this tells you.** K = 3 less K = 50, image AUROC: {shown(lost)} points over these {lost.n} categories. {side} The best K of "
        f"each category (an oracle: it was found on test labels, so nobody may use it): {', '.join(f'{name} {k}' for name, k in best.items())}."
    )


def compared(rows: Sequence[Row]) -> str:
    """Return which systems are clearly better and worse than PatchCore, in two sentences.

    Args:
        rows: of the grid "systems".
    """
    both, categories = (against(rows, "PatchCore", over=over) for over in (over_both, over_categories))
    seeds = len({row.seed for row in rows})
    better, worse, rest = _clear(both)
    surely, surely_not, _ = _clear(categories)
    below = "; ".join(f"{name} on {', '.join(places)}" for name, places in below_baseline(rows).items())
    return (
        f"Of {len(both)} systems, clearly better than PatchCore in image AUROC: {_listed(better)}; clearly worse: {_listed(worse)}; not to be "
        f"told with these categories and seeds: {_listed(rest)}. That is by 95 % intervals for another category with another seed, which {seeds} seeds "
        f"make cautious. For another category with these seeds, clearly better: {_listed(surely)}; clearly worse: {_listed(surely_not)}. "
        f"Below brightness alone: {below or 'none anywhere'}."
    )


def _clear(found: Mapping[str, Interval]) -> tuple[list[str], list[str], list[str]]:
    """Names of those above zero, below zero, and of the rest."""
    better = [name for name, one in found.items() if one.low > 0]
    worse = [name for name, one in found.items() if one.high < 0]
    return better, worse, [name for name in found if name not in better + worse]


def verdict(rows: Sequence[Row], cost: Mapping[str, Cost]) -> str:
    """Return the answers to the questions that the notebook opens with.

    Args:
        rows: of the grid "systems".
        cost: from `rcp.course.systems.costs`.
    """
    slow = max(NAMES, key=lambda name: cost[name].fit_seconds)
    return (
        f"**What this tells you.** {compared(rows)} About one in twenty true zeros would be bold by chance. The slowest to fit is {slow} ({cost[slow].fit_seconds:.0f} s)."
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


def settings_said() -> str:
    """Return what the settings' names mean, in Markdown."""
    return "*" + "; ".join(f"{name}: {meaning}" for name, meaning in MEANT.items()) + ".*"


def ablations_said(groups: Mapping[str, Mapping[str, Sequence[Row]]], metric: str = "image_auroc") -> str:
    """Return every switch less its whole system, in Markdown: paired by category and seed, with the interval over the pairs."""
    lines = [f"| system | without, or instead | pairs | {METRICS[metric]}, points | pixel AUROC, points |", "|---|---|---:|---:|---:|"]
    for system, settings in groups.items():
        whole, *others = settings
        for name in others:
            cells = []
            for one in (metric, "pixel_auroc"):
                ours, theirs = (values_of(settings[key], one) for key in (name, whole))
                apart = [100 * (ours[key] - theirs[key]) for key in ours if key in theirs]
                cells.append(shown(interval(apart)) if any(apart) else "the same")
            lines.append(f"| {system} | {name} | {len(apart)} | {cells[0]} | {cells[1] if name not in NO_MAP else 'no map'} |")
    return "\n".join(lines) + (
        "\n\n*95 % intervals over pairs of category and seed, as if these were independent, so they are rather too narrow, and hold for these "
        "two categories; 128 px.*"
    )


def alignment_said(groups: Mapping[str, Mapping[str, Sequence[Row]]], metric: str = "image_auroc") -> str:
    """Return what alignment is worth on each category, in a sentence: it is made for parts that lie at any angle."""
    whole, without = (values_of(groups["Focus Your Distribution"][name], metric) for name in ("image + features", "no alignment"))
    told = []
    for category in dict.fromkeys(key[1] for key in whole):
        apart = [100 * (without[key] - whole[key]) for key in whole if key[1] == category]
        told.append(f"{category} {shown(interval(apart))}")
    return f"Focus Your Distribution without its alignment, {METRICS[metric]} in points, over seeds: {'; '.join(told)}. (`flange` lies at any angle, `terminal` never turns.)"


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
            all_ = {("embedded", *key[1:]): 100 * value for key, value in values_of(choose(pooled, method=name), metric).items()}
            cells += [mean_std(own), mean_std(all_), shown(over_categories(differences(all_, own)))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (theirs,) = published.select(method="ReContrast (multi-class)", dataset="MVTec AD", category="mean", metric="image_auroc")
    alone = printed("ReContrast")["image_auroc"]
    return "\n".join(lines) + (
        f"\n\n*Embedded synthetic data, Lite0 at 224 px, seeds {', '.join(map(str, seeds))}; differences with 95 % intervals for another category "
        f"with these seeds. Published of ReContrast (WRN-50, MVTec AD): {alone:.1f} one a category, {theirs.value:.1f} one for all "
        f"({' '.join(published.troubles([theirs])).rstrip('.')}).*"
    )


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


def report() -> str:
    """Return what REPRODUCIBILITY.md tells of the other systems, in Markdown, from the committed files."""
    rows, cost = read("systems"), costs()
    parts = {
        "Side by side": [side_by_side(rows, cost), f"*{table_words(rows)}. {cost_words()}.*", f"Known of the published numbers:\n\n{troubles_told()}"],
        "Less PatchCore, points": [
            difference_table(rows), "*95 % intervals for another category with another seed; bold where zero lies outside.*", verdict(rows, cost),
        ],
        "When to use which": [when_to_use(rows, cost)],
        "What each idea is worth": [ablations_said(ablations()), settings_said(), alignment_said(ablations())],
        "SPADE's K": [spade_said(spade_by_k())],
        "One model for all categories": [pooled_table(rows)],
        "Into another domain": [transfer_table()],
        "Another kind of anomaly": [digits_table()],
    }  # fmt: skip
    return "\n\n".join(f"### {title}\n\n" + "\n\n".join(texts) for title, texts in parts.items()) + "\n"


def short_table(rows: Sequence[Row], cost: Mapping[str, Cost]) -> str:
    """Return what fits on a slide, in Markdown: image AUROC, the published one, and what it costs.

    Args:
        rows: of the grid "systems".
        cost: from `rcp.course.systems.costs`.
    """
    lines = ["| system | idea | four synthetic categories | bottle and pill | published, 15 categories | fit, s | an image, ms | disk, MB |",
             "|---|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in (BASELINE, *NAMES):
        measured = [mean_std(values(rows, name, "image_auroc", data=data)) for data in ("embedded", "mvtec")]
        theirs, one = printed(name).get("image_auroc"), cost[name]
        spent = [fit_told(one), f"{1000 * one.image_seconds:.0f}", f"{one.disk_bytes / 1e6:.1f}"]
        cells = [name, idea_of(name), *measured, f"{theirs:.1f}" if theirs else "–", *spent]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table(cost: Mapping[str, Cost]) -> str:
    """Return what BENCHMARKS.md shows, in Markdown: what each system costs.

    Args:
        cost: from `rcp.course.systems.costs`.
    """
    lines = ["| system | fit, s | an image, ms | peak, GB | disk, MB |", "|---|---:|---:|---:|---:|"]
    for name in (BASELINE, *NAMES):
        one = cost[name]
        lines.append(f"| {name} | {fit_told(one)} | {1000 * one.image_seconds:.1f} | {one.peak_bytes / 1e9:.2f} | {one.disk_bytes / 1e6:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="what README.md shows")
    parser.add_argument("--costs", action="store_true", help="what BENCHMARKS.md shows")
    given = parser.parse_args(arguments)
    if given.costs:
        print(cost_table(costs()))
    elif given.short:
        rows = read("systems")
        print(short_table(rows, costs()), compared(rows), sep="\n\n")
    else:
        print(report(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
