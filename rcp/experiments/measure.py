"""One cell: fit, score, measure; what comes out is plain data for one result file.

Nothing is chosen on test labels here: a training is measured at epochs that the grid fixed beforehand, each as if the
training had been stopped there, and the last one is the result. Cells that differ only in what comes after the training
(the coreset's share, say) train once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rcp import metrics
from rcp.auxiliary import auxiliary
from rcp.data import Category
from rcp.detectors import SYSTEMS, BankDetector, Detector, Ensemble, PatchCore, ReConPatch
from rcp.detectors.inctrl import InCTRL
from rcp.detectors.reduced import ReducedPatchCore
from rcp.evaluation import METRICS, Result, evaluate
from rcp.experiments.grid import GENERALISTS, Cell
from rcp.features import PatchExtractor, PatchFeatures
from rcp.head import EpochEnd, EpochRecord
from rcp.pixels import Pixels
from rcp.ports import PortedReConPatch
from rcp.probes import effective_rank, position_probe, position_share
from rcp.store import MemoryLimit
from rcp.timing import MemoryWatch

PROBED = 40  # images whose patches the probes look at,
PROBED_BYTES = 2**27  # or fewer, so that these stay below
KEPT_BYTES = 2**28  # of the last trainings' f; that of the paper's widest, 1536 -> 1024, has 6 MB


@dataclass(frozen=True)
class Training:
    """What a training has left.

    Attributes:
        weights: epoch → f after it, (dimension, C), on the CPU: the epochs asked for, and the last one.
        history: a record an epoch.
    """

    weights: dict[int, Tensor]
    history: list[EpochRecord]

    @property
    def nbytes(self) -> int:
        """What the weights take."""
        return sum(weight.nbytes for weight in self.weights.values())


class Trainings:
    """The last trainings of one material, by all that decides them; as many as `KEPT_BYTES` and the bound on memory allow."""

    def __init__(self):
        """Begin with none."""
        self._kept: dict[tuple, Training] = {}  # the one that was used last stands last
        self._heads: dict[str, nn.Module] = {}  # of a generalist: small

    def heads(self, detector: InCTRL, cell: Cell, material: Material) -> nn.Module:
        """Return what a generalist has learned from other categories: once for all its prompts and their seeds."""
        decides = json.dumps([detector.pretraining(), cell.options["auxiliary"]], sort_keys=True)
        if decides not in self._heads:
            self._heads[decides] = detector.pretrain(learned_from(cell, material.category, material.root)).heads
        return self._heads[decides]

    def of(self, cell: Cell) -> Training | None:
        """Return the training of a cell, as an earlier cell has left it; it may lack epochs that this one asks for."""
        found = self._kept.pop(_decides(cell), None)
        if found is not None:
            self._kept[_decides(cell)] = found
        return found

    def keep(self, cell: Cell, training: Training, limit: MemoryLimit) -> None:
        """Keep what a cell has trained; those that were used longest ago give way."""
        self._kept.pop(_decides(cell), None)
        if training.nbytes > KEPT_BYTES or not limit.fits(training.nbytes):
            self._kept.clear()  # memory is short: what comes next needs it more
            return
        self._kept[_decides(cell)] = training
        while sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
            self._kept.pop(next(iter(self._kept)))


def _decides(cell: Cell) -> tuple:
    """All that decides a training besides the images, the weights of the backbone and the device, which a material fixes."""
    return cell.detector, cell.options.get("bug"), cell.training, cell.features, cell.seed


@dataclass(frozen=True)
class Material:
    """What the cells of one group share: a category, and its features under one backbone, or one a member.

    Attributes:
        category: the data.
        extractors: loaded backbones.
        train, test: features of both splits; for the other systems their `Pixels`.
        limit: a bound on memory.
        trainings: what cells have trained on it, for the next ones.
        seconds: what it took to make `train` and `test`: a part of every cell's own cost.
        root: the folder of the data set, for a generalist that learns from its other categories; None: the embedded data.
    """

    category: Category
    extractors: Sequence[PatchExtractor]
    train: Sequence[PatchFeatures | Pixels]
    test: Sequence[PatchFeatures | Pixels]
    limit: MemoryLimit = MemoryLimit()
    trainings: Trainings = field(default_factory=Trainings, repr=False, compare=False)
    seconds: tuple[float, float] = (0.0, 0.0)
    root: str | None = None


def measure(cell: Cell, material: Material) -> dict[str, Any]:
    """Return what a cell's detector does on its category, as plain data.

    Args:
        cell: what to fit.
        material: data and features for it.

    Returns:
        `metrics` (shares; d′ as a number), `probes`, `images` (defect and score of every test image), `history` and
        `snapshots` (epoch → metrics and probes) where it trains, `cost` (`_cost`), `seconds` (of what was done: a training that
        an earlier cell has left is not in it).

    Raises:
        ValueError: as the detectors do.
        KeyboardInterrupt: if the training was interrupted: no result must claim epochs that were not run.
    """
    started = time.perf_counter()
    with MemoryWatch() as memory:
        if cell.looks_at_pixels:
            found = _system(cell, material)
        elif len(cell.features) > 1:
            found = _state(_ensemble(cell, material), material, cell)
        elif cell.training is not None:
            found = _trained(cell, material)
        else:
            found = _state(_detector(cell, 0, material).fit(material.train[0]), material, cell)
    found["cost"]["peak_bytes"] = memory.peak_bytes
    return found | {"seconds": round(time.perf_counter() - started, 3)}


def learned_from(cell: Cell, category: Category, root: str | None) -> list[Category]:
    """Return the labelled categories that a generalist's cell learns from: never the one that it is tested on.

    Args:
        cell: of a generalist.
        category: that it is tested on.
        root: the folder of its data set; None: the embedded data.
    """
    return auxiliary(category, None if cell.options["auxiliary"] == "embedded" else root)


def _system(cell: Cell, material: Material) -> dict[str, Any]:
    """One of the other systems: fitted on images, and what a training of it told on the way."""
    kind, extractor = SYSTEMS[cell.detector], material.extractors[0]
    detector = kind(
        cell.features[0], options=kind.options_of(cell.own_options), seed=cell.seed, device=str(extractor.device), limit=material.limit
    )
    detector.extractor = extractor
    if cell.detector in GENERALISTS:
        detector.heads = material.trainings.heads(detector, cell, material)
    _complete(detector.fit(material.train[0]))
    found = _state(detector, material, cell) | {"fitted_on": detector.fitted_on}
    return found | {"records": [asdict(record) for record in getattr(detector, "history", ())]}


def _detector(cell: Cell, member: int, material: Material) -> BankDetector:
    """The detector of a cell, not fitted, with the loaded backbone."""
    common = {"bank": cell.bank, "seed": cell.seed, "limit": material.limit} | dict(cell.options)
    kinds = {"patchcore": PatchCore, "reduced": ReducedPatchCore, "reconpatch": ReConPatch, "ported": PortedReConPatch}
    if cell.training is not None:
        common["training"] = cell.training
    extractor = material.extractors[member]
    detector = kinds[cell.detector](cell.features[member], device=str(extractor.device), **common)
    detector.extractor = extractor
    return detector


def _ensemble(cell: Cell, material: Material) -> Ensemble:
    members = [_detector(cell, i, material) for i in range(len(cell.features))]
    for member, features in zip(members, material.train, strict=True):
        _complete(member.fit(features))
    return Ensemble(members)


class _Given(ReConPatch):
    """ReConPatch with an f that was trained elsewhere, or is that of an earlier epoch."""

    given: Tensor

    def _learn(self, features: PatchFeatures) -> None:
        self.weight = self.given


def _trained(cell: Cell, material: Material) -> dict[str, Any]:
    """Train, unless an earlier cell did; measure at the epochs asked for on the way, and at the end."""
    detector, training = None, material.trainings.of(cell)
    if training is None or not set(cell.snapshots) <= set(training.weights):
        detector, training = _train(cell, material, {*cell.snapshots, *(training.weights if training else ())})
    last = cell.training.epochs
    detector = detector or _given(cell, training.weights[last], material)
    found = _state(detector, material, cell) | {"history": [_rounded(asdict(record)) for record in training.history]}
    found["snapshots"] = {}
    for epoch in cell.snapshots:
        state = _state(_given(cell, training.weights[epoch], material), material, cell)
        del state["cost"]  # of a training that was done for another
        found["snapshots"][str(epoch)] = state
    return found


def _train(cell: Cell, material: Material, epochs: set[int]) -> tuple[BankDetector, Training]:
    """The fitted detector, and its training with f after some epochs; it is kept for the cells to come."""
    weights: dict[int, Tensor] = {}

    def keep(event: EpochEnd) -> None:
        if event.epoch in epochs:
            weights[event.epoch] = event.head.f.weight.detach().cpu().clone()

    detector = _detector(cell, 0, material)
    _complete(detector.fit(material.train[0], callbacks=[keep]))
    weights[cell.training.epochs] = detector.weight.cpu().clone()
    training = Training(weights, list(detector.history))
    material.trainings.keep(cell, training, material.limit)
    return detector, training


def _given(cell: Cell, weight: Tensor, material: Material) -> BankDetector:
    """The cell's detector with this f, fitted."""
    extractor = material.extractors[0]
    detector = _Given(
        cell.features[0], training=cell.training, bank=cell.bank, reweight=cell.options["reweight"], seed=cell.seed,
        device=str(extractor.device), limit=material.limit,
    )  # fmt: skip
    detector.extractor, detector.given = extractor, weight.to(extractor.device)
    return detector.fit(material.train[0])


def _complete(detector: Detector) -> None:
    if not detector.finished:
        raise KeyboardInterrupt


def _state(detector: Detector | Ensemble, material: Material, cell: Cell) -> dict[str, Any]:
    """Metrics and image scores of a fitted detector, and what probes find in its memory of patches, if it has one."""
    features = list(material.test) if isinstance(detector, Ensemble) else material.test[0]
    result = evaluate(detector, material.category.test, features=features, protocol=cell.protocol)
    values = {name: result.metrics[name] for name in METRICS}
    values["d_prime"] = metrics.dprime(result.labels, result.scores.image_scores)
    found = {"metrics": _rounded(values), "images": _image_rows(result), "cost": _cost(detector, result, material)}
    if isinstance(detector, BankDetector):
        found["memory_rows"] = detector.fitted_on["memory_rows"]
        found["probes"] = _probes(detector, material.train[0], cell.seed)
    if result.verdict:
        found["verdict"] = asdict(result.verdict)
    return found


def _cost(detector: Detector | Ensemble, result: Result, material: Material) -> dict[str, float]:
    """Seconds from files to the fitted detector, and an image's from its file to its score; bytes of what `save` writes.

    (`measure` adds the peak of the process's own memory, with libraries, network, and what the cells of the group share.) What the cells of a group share (decoding, features) counts for each of them as if it had been alone; a training that an
    earlier cell left counts nothing, as it was not done.
    """
    members = detector.members if isinstance(detector, Ensemble) else [detector]
    fitting = sum(one.stopwatch.seconds.get(stage, 0.0) for one in members for stage in ("training", "coreset", "calibration"))
    scoring = detector.stopwatch.seconds["scoring"]
    made, looked = material.seconds
    return {
        "fit_seconds": round(made + fitting, 3), "image_seconds": round((looked + scoring) / len(result.scores), 5),
        "state_bytes": sum(one.nbytes() for one in members),
    }  # fmt: skip


def _probes(detector: BankDetector, features: PatchFeatures, seed: int) -> dict[str, float]:
    """What the embedded features say of the grid position, and how many directions they fill; on normal images only."""
    _, h, w, _ = features.values.shape
    most = max(2, min(PROBED, PROBED_BYTES // (4 * h * w * detector.output_width)))
    some = features.values[:: max(1, len(features) // most)][:most]  # (m, H, W, C)
    if len(some) < 2:
        return {}
    embedded = torch.stack([detector.embed(image.flatten(0, 1)).cpu().unflatten(0, image.shape[:2]) for image in some])
    probe = position_probe(embedded, generator=torch.Generator().manual_seed(seed))
    share, rank = position_share(embedded), effective_rank(embedded.flatten(0, 2))
    return _rounded({"position_r2": probe.mean_r2, "position_share": share, "effective_rank": rank})


def _image_rows(result: Result) -> list[list[Any]]:
    scores = result.scores.image_scores.tolist()
    return [[defect, float(f"{score:.6g}")] for defect, score in zip(result.defects, scores, strict=True)]


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers with seven digits: what is more is rounding of float32."""
    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.7g}")
        return [short(one) for one in value] if isinstance(value, (list, tuple)) else value

    return {key: short(value) for key, value in values.items()}
