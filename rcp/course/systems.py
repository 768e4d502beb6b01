"""What notebook 10 reads: all systems side by side, from committed results, with published numbers and costs beside.

Every sentence of judgement is computed from the results, so that it stays true whatever they are. Intervals are those of
`rcp.experiments.summary`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcp import published
from rcp.course import results_folder
from rcp.experiments.collection import Row, read_rows
from rcp.experiments.summary import Interval, by_category, choose, differences, over_both, over_categories, values_of
from rcp.files import read_json
from rcp.published import Number
from rcp.reproduce.systems import METRICS, PUBLISHED

PROMPTS = "options.prompts"  # what InCTRL's rows vary
SHOTS = (2, 4, 8)
MAIN = 8  # the number of prompts in the tables where there is one line for InCTRL
BASELINE = "brightness histogram"
NEAR = 10  # points behind the best at which a system is still recommended for being cheap
IDEAS = {  # the five ideas, and who has them
    "memory": ("PatchCore", "ReConPatch", "SPADE"),
    "distribution": ("PaDiM", "Focus Your Distribution"),
    "distillation": ("Uninformed Students", "MKD"),
    "reconstruction": ("RD4AD", "ReContrast"),
    "generalist": ("InCTRL",),
}
NAMES = tuple(name for names in IDEAS.values() for name in names)  # in the order of the ideas
KINDS = {  # table's name → detector's kind, as `rcp run` takes it
    BASELINE: "histogram", "PatchCore": "patchcore", "ReConPatch": "reconpatch", "SPADE": "spade", "PaDiM": "padim",
    "Focus Your Distribution": "fyd", "Uninformed Students": "students", "MKD": "mkd", "RD4AD": "rd4ad",
    "ReContrast": "recontrast", "InCTRL": "inctrl",
}  # fmt: skip


def idea_of(name: str) -> str:
    """Return the idea of a system; the baseline has none."""
    return next((idea for idea, names in IDEAS.items() if name in names), "–")


def read(name: str, folder: Path | None = None) -> tuple[Row, ...]:
    """Return the rows of a collected grid.

    Args:
        name: of the grid, "systems" and the like.
        folder: None: `results_folder()`.

    Raises:
        FileNotFoundError: if it was not collected; the message says how it is made.
    """
    path = (folder or results_folder()) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}: `rcp experiments {name} --collect {path.name}` measures it")
    return tuple(read_rows(path))


def of(rows: Iterable[Row], name: str, prompts: int = MAIN) -> list[Row]:
    """Return the rows of one system.

    Args:
        rows: of the grid "systems".
        name: of the system.
        prompts: for InCTRL.
    """
    return choose(rows, method=name, varied={PROMPTS: prompts} if name == "InCTRL" else {})


def values(rows: Iterable[Row], name: str, metric: str, *, data: str | None = None, prompts: int = MAIN) -> dict:
    """Return a metric of one system in %: (data, category, backbone, seed) → value.

    Args:
        rows: of the grid "systems".
        name, prompts: as for `of`.
        metric: of `METRICS`.
        data: only this data set; None: all.
    """
    own = [row for row in of(rows, name, prompts) if data in (None, row.data)]
    return {key: 100 * value for key, value in values_of(own, metric).items()}


def mean_std(found: Mapping) -> str:
    """Return "96.12 ± 0.31": the mean over categories, and its deviation over seeds; a system without chance has none."""
    by_seed: dict[int, list[float]] = {}
    for (*_, seed), value in found.items():
        by_seed.setdefault(seed, []).append(value)
    whole = max(map(len, by_seed.values()))
    means = [statistics.fmean(own) for own in by_seed.values() if len(own) == whole]
    spread = f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else ""
    return f"{statistics.fmean(means):.2f}{spread}"


@dataclass(frozen=True)
class Cost:
    """What a system costs on one embedded category (`rcp bench systems`).

    Attributes:
        fit_seconds: from files to the fitted detector.
        image_seconds: from a file to its score.
        peak_bytes: of the process's own memory.
        disk_bytes: of what `save` writes.
        pretraining_seconds: of a generalist, before it meets the category.
    """

    fit_seconds: float
    image_seconds: float
    peak_bytes: float
    disk_bytes: float
    pretraining_seconds: float


def costs(folder: Path | None = None) -> dict[str, Cost]:
    """Return what each system costs, by its table's name.

    Args:
        folder: that holds bench_systems.json; None: figures/ of the repository.
    """
    content = read_json((folder or results_folder().parent) / "bench_systems.json")
    names = {kind: name for name, kind in KINDS.items()}
    fields = Cost.__dataclass_fields__
    return {names[line["detector"]]: Cost(**{key: line[key] for key in fields}) for line in content["systems"]["lines"]}


def cost_words(folder: Path | None = None) -> str:
    """Return on what the costs were measured, in a sentence."""
    content = read_json((folder or results_folder().parent) / "bench_systems.json")
    machine, about = content["machine"], content["systems"]
    runs = len(about["lines"][0]["runs"])
    return (
        f"Costs: {about['category']}, {about['train']} good and {about['test']} test images, {machine['cores']} cores ({machine['processor']}), "
        f"{'one run' if runs == 1 else f'median of {runs} runs'} in a process of its own. ReConPatch: `rcp run`'s training, 10 passes "
        "over all patches. InCTRL: besides, once, what it learns from other products. Uninformed Students: without the teacher, which is "
        "distilled once a machine"
    )


def _published(name: str) -> dict[str, Number]:
    """What a system's own paper has for the mean of MVTec AD: our metric's name → number."""
    found: dict[str, Number] = {}
    for method in PUBLISHED.get(name, ()):
        for number in published.select(method=method, dataset="MVTec AD", category="mean"):
            if number.our_metric in METRICS and (number.resolution in (None, 224, 256, 128) or not found):
                found.setdefault(number.our_metric, number)
    return found


def printed(name: str) -> dict[str, float]:
    """Return what a system's own paper has for the mean of MVTec AD: our metric's name → value in %; {} if nothing is known."""
    return {metric: number.value for metric, number in _published(name).items()}


def troubles_told() -> str:
    """Return what is known to be wrong with the published numbers of the one table, in Markdown; "" if nothing is."""
    told: dict[str, list[str]] = {}
    for name in NAMES:
        for sentence in published.troubles(_published(name).values()):
            told.setdefault(sentence, []).append(name)
    return "\n".join(f"* {', '.join(names)}: {sentence}" for sentence, names in told.items())


def side_by_side(rows: Sequence[Row], cost: Mapping[str, Cost]) -> str:
    """Return the one table in Markdown: every system on both data sets, what was published, what it costs.

    Args:
        rows: of the grid "systems".
        cost: from `costs`.
    """
    sets = list(dict.fromkeys(row.data for row in rows))
    shown = {"embedded": "embedded", "mvtec": "bottle, pill"}
    head = ["system", "idea"]
    head += [f"{shown.get(data, data)}: {title}" for data in sets for title in METRICS.values()]
    head += ["published: image AUROC", "pixel AUROC", "PRO", "fit, s", "an image, ms", "peak, GB", "disk, MB"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for name in (BASELINE, *NAMES):
        cells = [name if name != "InCTRL" else f"InCTRL, {MAIN} prompts", idea_of(name)]
        for data in sets:
            cells += [mean_std(found) if (found := values(rows, name, metric, data=data)) else "–" for metric in METRICS]
        theirs = printed(name)
        cells += [f"{theirs[key]:.1f}" if key in theirs else "–" for key in ("image_auroc", "pixel_auroc", "aupro")]
        one = cost[name]
        cells += [fit_told(one), f"{1000 * one.image_seconds:.0f}", f"{one.peak_bytes / 1e9:.2f}", f"{one.disk_bytes / 1e6:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_words(rows: Sequence[Row]) -> str:
    """Return what the table's columns are, in a sentence."""
    seeds = sorted({row.seed for row in rows})
    return (
        "Measured in %: means over categories ± deviation over seeds " + ", ".join(map(str, seeds)) + "; EfficientNet-Lite0, resize 256, crop "
        "224, protocol crop, teaching presets; *embedded*: four synthetic categories; *bottle, pill*: MVTec AD, stored at 384 px. "
        "Published: mean of MVTec AD's 15 categories, each paper's own backbone and image size; PRO as the papers compute it; none of them "
        "prints image AP"
    )


def against(
    rows: Sequence[Row],
    opponent: str,
    metric: str = "image_auroc",
    names: Sequence[str] = NAMES,
    over: Callable[[Mapping], Interval] = over_both,
) -> dict[str, Interval]:
    """Return each system less an opponent, in points, with an interval.

    Args:
        rows: of the grid "systems".
        opponent: a system, or the baseline.
        metric: of `METRICS`.
        names: which systems.
        over: of `rcp.experiments.summary`: what the interval is for; another category with another seed, if nothing is said.
    """
    theirs = values(rows, opponent, metric)
    return {name: over(differences(values(rows, name, metric), theirs)) for name in names if name != opponent}


def signed(value: float) -> str:
    """Return "+1.23"; a true minus sign."""
    return f"{value:+.2f}".replace("-", "−")


def shown(found: Interval) -> str:
    """Return "+1.23 [−0.50, +2.96]"."""
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def difference_table(rows: Sequence[Row], opponent: str = "PatchCore") -> str:
    """Return every system less an opponent in each metric, in Markdown; bold where zero lies outside the interval."""
    lines = ["| system | " + " | ".join(METRICS.values()) + " |", "|---|" + "---:|" * len(METRICS)]
    found = {metric: against(rows, opponent, metric, [n for n in NAMES if values(rows, n, metric)]) for metric in METRICS}
    for name in NAMES:
        cells = [found[metric].get(name) for metric in METRICS]
        if name != opponent:
            texts = [("**{}**" if one.clear else "{}").format(shown(one)) if one else "–" for one in cells]
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def when_to_use(rows: Sequence[Row], cost: Mapping[str, Cost]) -> str:
    """Return what was measured as advice: who leads in what, and who cannot be told from the leader.

    Args:
        rows: of the grid "systems".
        cost: from `costs`.
    """
    lines = ["| if what matters is … | take | because |", "|---|---|---|"]
    for metric, what in (("image_auroc", "which parts are bad"), ("aupro", "where the defect is")):
        means = {name: statistics.fmean(found.values()) for name in NAMES if (found := values(rows, name, metric))}
        best = max(means, key=means.get)
        worse = against(rows, best, metric, list(means), over_categories)
        close = [name for name, one in worse.items() if not one.clear]
        told = f"; not clearly behind it: {', '.join(close)}" if close else "; all others are clearly behind it"
        lines.append(f"| {what} | {best} | {METRICS[metric]} {means[best]:.2f}, mean of all categories{told} |")
    good = useful(rows)
    for what, unit, scale, of_one in (
        ("a short set-up", "s until it is ready", 1.0, lambda one: one.fit_seconds + one.pretraining_seconds),
        ("many images a second", "ms an image", 1000.0, lambda one: one.image_seconds),
        ("a small model", "MB on disk", 1e-6, lambda one: one.disk_bytes), ("little memory", "GB at the peak", 1e-9, lambda one: one.peak_bytes),
    ):  # fmt: skip
        ranks = sorted(good, key=lambda name, of_one=of_one: of_one(cost[name]))
        best, *others = (f"{name} with {scale * of_one(cost[name]):.3g}" for name in ranks[:2])
        lines.append(f"| {what} | {ranks[0]} | {best.rpartition(' ')[2]} {unit}" + "".join(f"; next {other}" for other in others) + " |")
    shots = {k: statistics.fmean(values(rows, "InCTRL", "image_auroc", prompts=k).values()) for k in SHOTS}
    told = ", ".join(f"{k}: {value:.2f}" for k, value in shots.items())
    lines.append(f"| only a few good images | not decided here | InCTRL's image AUROC by the number of prompts: {told}; the others were given all good images, of which those that train hold a tenth out (PatchCore with fewer: notebook 11) |")
    last = f"*Clearly: by 95 % intervals for another category with these seeds. The cheap ones are chosen among systems whose mean image AUROC lies within {NEAR} points of the best: {', '.join(good)}.*"
    return "\n".join(lines) + f"\n\n{last}"


def useful(rows: Sequence[Row]) -> list[str]:
    """Return the systems whose mean image AUROC lies within `NEAR` points of the best: nobody takes a fast one that finds nothing."""
    means = {name: statistics.fmean(values(rows, name, "image_auroc").values()) for name in NAMES}
    return [name for name, mean in means.items() if mean >= max(means.values()) - NEAR]


def below_baseline(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return where a system's image AUROC, mean of the seeds, lies below that of brightness alone: system → categories."""
    found: dict[str, list[str]] = {}
    base = values(rows, BASELINE, "image_auroc")
    for name in NAMES:
        for (data, category, *_), one in by_category(differences(values(rows, name, "image_auroc"), base)).items():
            if one.mean < 0:
                found.setdefault(name, []).append(category)
    return found


def fit_told(cost: Cost) -> str:
    """Return "1.2 + 6.0": seconds to fit, and those that a generalist has learned before, if it has."""
    return f"{cost.fit_seconds:.1f}" + (f" + {cost.pretraining_seconds:.1f}" if cost.pretraining_seconds else "")
