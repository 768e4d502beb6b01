"""What repeats, and how exactly? The same ReConPatch twice, with one circumstance changed, compared stage by stage.

A stage that is not bit-equal hands its roundings on, and the coreset can make more of them: of two nearly equal rows it
picks the other one, and later picks may follow. So scores are compared twice: with the first run's f and memory, and
after everything was fitted anew. Another seed is the scale for both.

Two numbers are equal if their bits are. Else the difference is the largest |a - b| over the largest |a| of that stage;
of picks it is the share that only one run has; of metrics it counts in percentage points. Everything runs on the CPU.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rcp import synthetic
from rcp.bench.measure import answer_of
from rcp.data import find
from rcp.detectors import BankSettings, ReConPatch
from rcp.evaluation import Result, evaluate
from rcp.features import FeatureSettings, PatchExtractor
from rcp.files import read_json, read_tensors, write_json, write_tensors
from rcp.head import TrainSettings
from rcp.memory import MemoryBank

if TYPE_CHECKING:
    from rcp.bench import Choice

FEATURES, TRAINING, BANK = FeatureSettings(), TrainSettings(epochs=2, steps=16), BankSettings(folds=0)
SEEDS = (0, 1, 2)
METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro"}
SAME = ", same f and memory"
AGAIN = tuple(name + SAME for name in ("image scores", "maps", "image AUROC"))
STAGES = ("features", "f", "picks", *AGAIN, "image scores", "maps", *METRICS)
RELATIVE, SHARE, POINTS = "of the stage's largest number", "of the picks", "percentage points"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # of torch and faiss; of MKL; of numpy

Tensors = dict[str, Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What decides a run: where `find` finds images, `ReConPatch`'s settings and seed, images a pass of the network."""

    root: str
    category: str
    features: FeatureSettings
    training: TrainSettings
    bank: BankSettings
    seed: int = 0
    images: int = 8


def run(recipe: Recipe, first: Tensors | None = None) -> Tensors:
    """Return what each stage of a run made.

    Args:
        recipe: all that decides it.
        first: of another run; its f and memory then score this run's test features, too.

    Returns:
        By name, on the CPU: the memory and `STAGES`, without metrics that are not defined. Features are those of the
        training images, then of the test images; metrics are float64 shares.
    """
    category = find(recipe.root, recipe.category)
    extractor = PatchExtractor(recipe.features, device="cpu", batch_size=recipe.images)
    train, test = extractor.extract(category.train), extractor.extract(category.test)
    detector = ReConPatch(recipe.features, training=recipe.training, bank=recipe.bank, seed=recipe.seed, device="cpu")
    detector.extractor = extractor  # which knows how many images go through at a time
    detector.fit(train)
    found = {
        "features": torch.cat([train.values, test.values]),  # (n, H, W, C)
        "f": detector.weight,  # (dimension, C)
        "picks": detector.coreset.indices,  # (M,), in the order of picking
        "memory": detector.memory.rows,  # (M, dimension)
    }
    found |= _outcome(evaluate(detector, category.test, features=test))
    if first is not None:
        detector.weight, detector.memory = first["f"], MemoryBank(first["memory"], recipe.bank.search)
        found |= {name + SAME: it for name, it in _outcome(evaluate(detector, category.test, features=test)).items()}
    return found


def _outcome(result: Result) -> Tensors:
    found = {"image scores": result.scores.image_scores, "maps": result.scores.maps}  # (n,), (n, h, w)
    defined = {name: key for name, key in METRICS.items() if not math.isnan(result.metrics[key])}
    return found | {name: torch.tensor(result.metrics[key], dtype=torch.float64) for name, key in defined.items()}


def run_elsewhere(recipe: Recipe, threads: int, folder: Path, first: Tensors | None = None) -> Tensors:
    """Return what `run` returns, from a process of its own.

    Args:
        recipe, first: as for `run`.
        threads: of that process: torch's, and by its environment those of faiss and numpy.
        folder: an existing one, for the files by which the processes speak.

    Raises:
        ValueError: if the process fails, or does not have that many threads.
    """
    files = [write_json(folder / "recipe.json", asdict(recipe) | {"threads": threads}), folder / "found.safetensors"]
    if first is not None:
        files.append(write_tensors(folder / "first.safetensors", {name: first[name] for name in ("f", "memory")}, {}))
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    got = answer_of([sys.executable, "-m", "rcp.bench.repeat", *files], environment)
    if got != {"torch": threads, "faiss": threads}:
        raise ValueError(f"{threads} threads were asked for by {', '.join(THREADS)}, the process had {got}")
    return read_tensors(folder / "found.safetensors")[0]


def _answer(recipe: str, out: str, first: str | None = None) -> dict[str, int]:
    """The other process: run a recipe from a file, write what was found, return the numbers of threads."""
    import faiss  # here: only to ask it

    kinds, given = {"features": FeatureSettings, "training": TrainSettings, "bank": BankSettings}, read_json(recipe)
    torch.set_num_threads(given.pop("threads"))
    made = Recipe(**given | {name: kind(**given[name]) for name, kind in kinds.items()})
    write_tensors(out, run(made, read_tensors(first)[0] if first else None), {})
    return {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors agree in type, shape and every bit: nan equals itself, 0 does not equal -0."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def difference(stage: str, a: Tensor, b: Tensor) -> tuple[float, str]:
    """Return how far a stage of two runs is apart, and the unit (see the module); a ValueError if the shapes differ."""
    if stage == "picks":
        mine, other = set(a.tolist()), set(b.tolist())
        return 1 - len(mine & other) / max(len(mine), len(other)), SHARE
    if a.shape != b.shape:
        raise ValueError(f"{stage}: the runs made {tuple(a.shape)} and {tuple(b.shape)}, which cannot be compared")
    apart = float((a.double() - b.double()).abs().max())
    if stage.removesuffix(SAME) in METRICS:
        return 100 * apart, POINTS
    return (apart and apart / max(float(a.double().abs().max()), sys.float_info.min)), RELATIVE


def compare(pair: str, first: Tensors, second: Tensors) -> list[Row]:
    """Return a row a stage: {pair, stage, equal, largest_difference, unit, note}.

    Args:
        pair: what is compared, in words.
        first, second: from `run`; what the second found with the first's f and memory is held against the first's own.
    """
    rows, clean = [], True
    for stage in (stage for stage in STAGES if stage in second):
        a, b = first[stage.removesuffix(SAME)], second[stage]
        equal, (apart, unit) = same_bits(a, b), difference(stage, a, b)
        note = "the first stage that differs" if clean and not equal else ""
        note = "the same, in another order" if stage == "picks" and not equal and apart == 0 else note
        found = {"equal": equal, "largest_difference": apart, "unit": unit, "note": note}
        rows.append({"pair": pair, "stage": stage} | found)
        clean = clean and equal
    return rows


def worst(comparisons: Sequence[list[Row]]) -> list[Row]:
    """Return, stage by stage, the row of the comparison that is farthest apart; it is equal only if all are."""
    far = partial(max, key=lambda row: (not row["equal"], row["largest_difference"]))
    return [far(rows) for rows in zip(*comparisons, strict=True)]


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the settings, a row per pair and stage, and what seeds change.

    Args:
        choice: `repeats` counts the second runs in one and in other processes; `category` replaces `terminal`.
        say: receives the table of `markdown`; what is at work is told on stderr.
    """
    category = choice.category or find(synthetic.cached(), "terminal")
    recipe = Recipe(category.root.parent.as_posix(), category.name, FEATURES, TRAINING, BANK)
    by_faiss, rows = replace(recipe, bank=replace(BANK, search="faiss")), []

    def pair(name: str, first: Tensors, seconds: Sequence[Callable[[], Tensors]]) -> list[Tensors]:
        found = []
        for at, second in enumerate(seconds, 1):
            print(f"  {name} ({at} of {len(seconds)})", file=sys.stderr, flush=True)
            found.append(second())
        rows.extend(worst([compare(name, first, second) for second in found]))
        return found

    first, threads = run(recipe), torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=choice.folder) as temporary:
        folder = Path(temporary)
        pair("again in one process", first, [partial(run, recipe, first)] * choice.repeats)
        pair("in another process", first, [partial(run_elsewhere, recipe, threads, folder, first)] * choice.repeats)
        for name, some in (("", recipe), (", searched by faiss", by_faiss)):
            one = run_elsewhere(some, 1, folder)
            pair(f"1 against 2 threads{name}", one, [partial(run_elsewhere, some, 2, folder, one)])
    changes = {
        "faiss against torch search": by_faiss,
        "1 against 8 images at a time": replace(recipe, images=1),
        "stored in float16 against float32": replace(recipe, features=replace(FEATURES, stored="float16")),
        "network in bfloat16 against float32": replace(recipe, features=replace(FEATURES, precision="bfloat16")),
    }
    for name, other in changes.items():
        pair(name, first, [partial(run, other, first)])
    others = pair("another seed", first, [partial(run, replace(recipe, seed=seed), first) for seed in SEEDS[1:]])
    percent = {name: [100 * float(found[name]) for found in (first, *others)] for name in METRICS if name in first}
    report = {
        "data": {"layout": category.dataset, "category": category.name, "images": len(first["features"])},
        "settings": {name: value for name, value in asdict(recipe).items() if name not in ("root", "category")},
        "threads": threads, "repeats": choice.repeats, "rows": rows,
        "seeds": {name: {"percent": of, "standard_deviation": statistics.stdev(of)} for name, of in percent.items()},
    }  # fmt: skip
    say(markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """Return what `measure` returned as a Markdown table, a line a pair, with the seeds' spread below."""
    cells: dict[str, dict[str, str]] = {}
    for row in report["rows"]:
        cells.setdefault(row["pair"], {})[row["stage"]] = _cell(row)
    stages = [stage for stage in STAGES if all(stage in found for found in cells.values())]
    lines = ["| pair | " + " | ".join(stages) + " |", "|---|" + "---:|" * len(stages)]
    lines += [f"| {pair} | " + " | ".join(found[stage] for stage in stages) + " |" for pair, found in cells.items()]
    means = {name: (statistics.fmean(of["percent"]), of["standard_deviation"]) for name, of in report["seeds"].items()}
    spread = ", ".join(f"{name} {mean:.2f} ± {deviation:.2f} %" for name, (mean, deviation) in means.items())
    return "\n".join([*lines, "", f"Seeds {SEEDS[0]} to {SEEDS[-1]}: {spread}."]) + "\n"


def _cell(row: Row) -> str:
    if row["equal"]:
        return "bit-equal"
    if (apart := row["largest_difference"]) and row["unit"] == SHARE:
        return f"{100 * (1 - apart):.1f} % in common"
    if row["unit"] == POINTS:
        return f"{apart:.2f} points" if apart >= 0.005 else "< 0.005 points"
    return f"{apart:.1e}" if apart else row["note"]


if __name__ == "__main__":
    print(json.dumps(_answer(*sys.argv[1:])))
