"""What the paper's figures show, measured once and written as result files; `rcp.plots_paper` draws them.

    material = figures.prepare(rcp.mvtec("/data/mvtec", "bottle"))  # features, shared by the three
    path = figures.figure3(material, "runs/figures")                # runs/figures/figure3.json
    plots_paper.figure3(path)                                       # a Matplotlib figure

A file holds all that its figure shows, with every setting, the fingerprints of the data, the hash of the weights and the
versions; Figure 5 has its pictures beside it. `python -m rcp.reproduce.figure_files` writes those of figures/results.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contourpy import contour_generator
from PIL import Image
from torch import Tensor

from rcp import metrics, synthetic
from rcp.data import Category
from rcp.detectors import BankDetector, BankSettings, PatchCore, ReConPatch
from rcp.evaluation import Result, evaluate
from rcp.experiments.grid import EMBEDDED, Cell, Data, Grid, Method
from rcp.experiments.measure import Material, measure
from rcp.experiments.results import Results, address, fingerprints, write_collection
from rcp.features import FeatureSettings, PatchExtractor
from rcp.files import write_atomically
from rcp.head import PAPER_SINGLE, EpochEnd, TrainSettings, train_head
from rcp.hits import masks_of, peaks, peaks_inside
from rcp.images import read_image
from rcp.modelfile import versions
from rcp.plots import typical
from rcp.plots_paper import SCHEMA
from rcp.positions import neighbour_agreement, positions, separation
from rcp.reproduce.words import is_miniature
from rcp.store import MemoryLimit

STUDY = replace(PAPER_SINGLE, steps=16, batch_size=128)  # of grids/study.toml: an epoch is a random part of the patches


@dataclass(frozen=True)
class Settings:
    """How the figures are measured.

    Attributes:
        training: of ReConPatch.
        epochs: of Figure 3, rising; the training ends with the last of them, its learning rate falls as for all epochs.
        seeds: of Figure 4; the other two take the first.
        n_neighbors, rounds: of UMAP.
    """

    training: TrainSettings = PAPER_SINGLE
    epochs: tuple[int, ...] = (1, 40, 58)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_neighbors: int = 15
    rounds: int = 500

    def __post_init__(self):
        if not self.epochs or not self.seeds:
            raise ValueError("the figures need epochs and seeds: one at least of each")
        if (
            list(self.epochs) != sorted(set(self.epochs))
            or not 0 <= self.epochs[0] <= self.epochs[-1] <= self.training.epochs
        ):
            raise ValueError(f"epochs must rise from 0 to {self.training.epochs} at most, got {self.epochs}")


QUICK = Settings(TrainSettings(epochs=6, steps=8, batch_size=128), (1, 4, 6), (0, 1), rounds=200)


def prepare(
    category: Category,
    features: FeatureSettings = FeatureSettings(),
    *,
    device: str = "auto",
    limit: MemoryLimit = MemoryLimit(),
) -> Material:
    """Return a category with the features of both splits, for all three figures.

    Args:
        category: with a labelled test split.
        features: which.
        device: where to compute.
        limit: a bound on memory.

    Raises:
        ValueError: if there are no test images.
    """
    if len(category.test) == 0:
        raise ValueError(f"{category.name} has no test images in {category.root}: the figures need them")
    extractor = PatchExtractor(features, device=device)
    train, test = (extractor.extract(split, limit=limit) for split in (category.train, category.test))
    return Material(category, [extractor], [train], [test], limit)


def figure3(material: Material, out: str | Path, settings: Settings = Settings()) -> Path:
    """Return the file with UMAP layouts of all training images' patch features at four positions, over the epochs.

    Args:
        material: from `prepare`.
        out: the folder; the file is out/figure3.json.
        settings: see there.

    Raises:
        ImportError: without the package umap-learn.

    Source: ReConPatch, Figure 3.
    """
    try:
        from umap import UMAP  # not needed elsewhere, and slow to import
    except ImportError as error:
        raise ImportError("Figure 3 needs the package umap-learn: pip install 'rcp[notebooks]'") from error
    started = time.perf_counter()
    n, h, w, _ = material.train[0].values.shape
    places = positions(h, w)
    four = torch.cat([material.train[0].values[:, r, c] for r, c in places]).float()  # (4n, C), position by position
    groups = torch.arange(4).repeat_interleave(n)  # (4n,)
    kept = _weights(material, settings)
    stages = {"PatchCore": four} | {f"epoch {epoch}": four @ f.T for epoch, f in kept.items()}
    options = {"n_neighbors": min(settings.n_neighbors, 4 * n - 1), "n_epochs": settings.rounds}
    rows, init = [], "spectral"
    for name, embedded in stages.items():
        reducer = UMAP(**options, init=init, random_state=settings.seeds[0], n_jobs=1)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Graph is not fully connected"
            )  # the positions are apart: that is the figure
            init = reducer.fit_transform(embedded.numpy())  # the next stage starts from here
        within, between = separation(embedded, groups)
        rows.append({
            "stage": name, "within": _short(within), "between": _short(between), "ratio": _short(between / within),
            "agreement": _short(neighbour_agreement(embedded, groups, min(10, 4 * n - 1))),
            "coordinates": init.astype(float).round(3).tolist(),
        })  # fmt: skip
    umap = options | {"seed": settings.seeds[0]}
    head = _head(
        "figure3",
        material,
        settings,
        {"umap": umap, "epochs": list(settings.epochs), "seed": settings.seeds[0]},
        started,
    )
    head["versions"] |= {name: version(name) for name in ("umap-learn", "numba")}
    return write_collection(Path(out) / "figure3.json", head | {"positions": places, "groups": groups.tolist()}, rows)


class _Enough(Exception):
    """The training has reached the last epoch that is drawn."""


def _weights(material: Material, settings: Settings) -> dict[int, Tensor]:
    """f, (dimension, C), after each of the epochs asked for."""
    kept: dict[int, Tensor] = {}

    def keep(event: EpochEnd) -> None:
        if event.epoch in settings.epochs:
            kept[event.epoch] = event.head.f.weight.detach().cpu().clone()
        if event.epoch == settings.epochs[-1]:
            raise _Enough

    features, device = material.train[0], material.extractors[0].device
    per_image = features.values.shape[1] * features.values.shape[2]
    try:
        train_head(
            features.rows,
            settings.training,
            seed=settings.seeds[0],
            patches_per_image=per_image,
            device=device,
            callbacks=[keep],
        )
    except _Enough:
        return kept
    raise KeyboardInterrupt  # train_head ends early on Ctrl-C: no file must claim epochs that were not run


def figure4(
    material: Material, out: str | Path, settings: Settings = Settings(), *, cells: str | Path | None = None
) -> Path:
    """Return the file with the image scores of PatchCore, an untrained f and ReConPatch, over seeds.

    Args:
        material: from `prepare`.
        out: the folder; the file is out/figure4.json.
        settings: see there.
        cells: a folder of `rcp experiments`: results that are there are not measured again, missing ones are added; None: out/cells.

    Raises:
        ValueError: if all test images are normal, or none is.

    Source: ReConPatch, Figure 4.
    """
    started, category = time.perf_counter(), material.category
    rows, results = [], Results(Path(out) / "cells" if cells is None else cells)
    for cell in _cells(material, settings):
        record = _measured(cell, material, results)
        states = {cell.method: record}
        if cell.training is not None:
            states = {"untrained f": record["snapshots"]["0"]} | states
        rows += [
            {"detector": name, "seed": cell.seed, "d_prime": state["metrics"]["d_prime"],
             "image_auroc": state["metrics"]["image_auroc"], "images": state["images"]}
            for name, state in states.items()
        ]  # fmt: skip
    order = ("PatchCore", "untrained f", "ReConPatch")
    rows.sort(key=lambda row: (order.index(row["detector"]), row["seed"]))
    if any(row["d_prime"] is None for row in rows):
        raise ValueError(f"{category.name} has test images of one kind only: Figure 4 sets normal against abnormal")
    head = _head("figure4", material, settings, {"seeds": list(settings.seeds)}, started)
    return write_collection(Path(out) / "figure4.json", head, rows)


def _cells(material: Material, settings: Settings) -> list[Cell]:
    """The cells of Figure 4: those of grids/study.toml, if the training is the study's."""
    features, name = material.extractors[0].settings, material.category.name
    snapshots = (0, 1, 10, 40) if settings.training == STUDY else (0,)
    methods = (Method("PatchCore", "patchcore"), Method("ReConPatch", "reconpatch", snapshots=snapshots))
    return Grid(
        "Figure 4", (Data(dataset_of(material.category), (name,)),), {features.backbone: features}, methods, settings.seeds,
        training=asdict(settings.training),
    ).cells(lambda data: [name])  # fmt: skip


def _measured(cell: Cell, material: Material, results: Results) -> dict[str, Any]:
    """The result of a cell, from its file, or measured now."""
    backbone = material.extractors[0].backbone
    dataset = fingerprints(material.category)
    name = address(cell, dataset, [backbone.sha256])
    if not results.done([name]):
        found = measure(cell, material)
        record = {"tag": backbone.tag, "source": backbone.source, "sha256": backbone.sha256}
        results.write(name, cell, dataset, [record], found, str(material.extractors[0].device))
    return results.read(name)


def figure5(material: Material, out: str | Path, settings: Settings = Settings()) -> Path:
    """Return the file with patch scores, outlines and maxima of one test image a kind; its pictures lie beside it.

    Args:
        material: from `prepare`.
        out: the folder; the file is out/figure5.json, the pictures (as the network saw them) lie in out/figure5.
        settings: see there.

    Returns:
        The file. For each kind it has the image with PatchCore's median score. The threshold of a detector is F1-optimal
        over all test pixels: an oracle.

    Raises:
        ValueError: if the test split has no masks.

    Source: ReConPatch, Figure 5.
    """
    started, test = time.perf_counter(), material.category.test
    if not test.has_masks:
        raise ValueError(f"{material.category.name} has no masks: Figure 5 draws true outlines")
    fitted = _fitted(material, settings)
    results = {name: evaluate(detector, test, features=material.test[0]) for name, detector in fitted.items()}
    masks = masks_of(test, results["PatchCore"])
    detectors = {name: _judged(fitted[name], result, masks) for name, result in results.items()}
    rows = []
    for i in typical(results["PatchCore"])[:5]:
        seen, defect = results["PatchCore"], results["PatchCore"].defects[i]
        sample = test[seen.scores.indices[i]]
        pixels = seen.scores.geometry.apply(read_image(sample.path))
        picture = f"figure5/{defect}_{hashlib.sha256(pixels.tobytes()).hexdigest()[:8]}.jpg"
        write_atomically(
            Path(out) / picture, lambda path, pixels=pixels: Image.fromarray(pixels).save(path, quality=92)
        )
        rows.append({
            "defect": defect, "image": sample.path.relative_to(test.root).as_posix(), "picture": picture,
            "outline": _lines(masks[i].astype(float), 0.5, closed=True),
            "scores": {name: _found(result, detectors[name]["threshold"], i) for name, result in results.items()},
        })  # fmt: skip
    head = _head("figure5", material, settings, {"seed": settings.seeds[0]}, started)
    return write_collection(Path(out) / "figure5.json", head | {"detectors": detectors}, rows)


def _fitted(material: Material, settings: Settings) -> dict[str, BankDetector]:
    """The three detectors that are always shown together, with held-out folds for their colour scales."""
    extractor, bank = material.extractors[0], BankSettings(folds=min(5, len(material.train[0])))
    common = {"bank": bank, "seed": settings.seeds[0], "device": str(extractor.device), "limit": material.limit}
    found = {
        "PatchCore": PatchCore(extractor.settings, **common),
        "untrained f": ReConPatch(extractor.settings, training=replace(settings.training, epochs=0), **common),
        "ReConPatch": ReConPatch(extractor.settings, training=settings.training, **common),
    }
    for detector in found.values():
        detector.extractor = extractor
        detector.fit(material.train[0])
    if len(found["ReConPatch"].history) < settings.training.epochs:
        raise KeyboardInterrupt  # as in Figure 3
    return found


def _judged(detector: BankDetector, result: Result, masks: np.ndarray) -> dict[str, Any]:
    """What all maps of a detector have in common; the counts are told beside the figure."""
    maps = result.scores.maps.numpy()  # (n, h, w)
    f1, threshold = metrics.f1_threshold(masks, maps)
    inside, abnormal = peaks_inside(maps, masks)
    return {
        "unit": result.scores.unit, "limits": [_short(x) for x in detector.colour_limits()], "threshold": threshold,
        "pixel_f1": _short(f1), "abnormal": abnormal, "maximum_inside": inside,
        "reached": int((maps[result.labels == 1] >= threshold).any((1, 2)).sum()),
    }  # fmt: skip


def _found(result: Result, threshold: float, i: int) -> dict[str, Any]:
    heat = result.scores.maps[i].numpy().astype(float)  # (h, w)
    y, x = peaks(heat[None])[0]
    patches = [[float(f"{value:.4g}") for value in row] for row in result.scores.patch_scores[i].tolist()]
    return {"patch_scores": patches, "contour": _lines(heat, threshold), "maximum": [int(x), int(y)]}


def _lines(values: np.ndarray, level: float, closed: bool = False) -> list[list[list[float]]]:
    """Lines of (x, y) points, in pixels of the crop, around what lies above a level; closed at the border, too, if so wished."""
    shift = 0
    if closed:
        values, shift = np.pad(values, 1), 1
    lines = contour_generator(z=values).lines(level)
    return [_bends(line - shift).round(1).tolist() for line in lines]


def _bends(line: np.ndarray) -> np.ndarray:
    """The points at which a line turns: others add nothing."""
    ahead, behind = np.diff(line, axis=0)[1:], np.diff(line, axis=0)[:-1]
    turns = np.abs(ahead[:, 0] * behind[:, 1] - ahead[:, 1] * behind[:, 0]) > 1e-3
    return line[np.concatenate([[True], turns, [True]])]


# What all files say


def _head(
    figure: str, material: Material, settings: Settings, own: Mapping[str, Any], started: float
) -> dict[str, Any]:
    category, features, extractor = material.category, material.train[0], material.extractors[0]
    training, rows = settings.training, len(features.rows)
    steps = rows // min(rows, training.batch_size) if training.batch == "patches" else len(features)
    return {
        "schema": SCHEMA, "figure": figure, "source": source(category), "dataset": identity(category),
        "backbone": {"tag": extractor.backbone.tag, "sha256": extractor.backbone.sha256},
        "settings": {"features": asdict(features.settings), "training": asdict(training), **own},
        "steps": min(steps, training.steps or steps),
        "size": list(features.settings.geometry.output_size(*features.sizes[0])), "grid": list(features.values.shape[1:3]),
        "images": len(features), "device": str(extractor.device), "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started, 1), "versions": versions(),
    }  # fmt: skip


def identity(category: Category) -> dict[str, Any]:
    """Return which images a category has, by name and fingerprint, as the files say it."""
    return {"name": dataset_of(category), "category": category.name, **fingerprints(category)}


def dataset_of(category: Category) -> str:
    """Return "embedded", or the layout of real data."""
    inside = category.root.resolve().is_relative_to(synthetic.cached().resolve())
    return EMBEDDED if inside else category.dataset


def source(category: Category) -> str:
    """Return the words that every caption needs: whether the data are real or drawn, and which."""
    name = dataset_of(category)
    if name == EMBEDDED:
        return f"embedded synthetic data, {category.name}"
    drawn = any(is_miniature(root) for root in (category.root, category.root.parent))  # VisA's categories share a root
    return f"a drawn miniature of {name} {category.name}" if drawn else f"{name} {category.name}"


def _short(value: float) -> float:
    return float(f"{value:.7g}")


FIGURES = {"figure3": figure3, "figure4": figure4, "figure5": figure5}
