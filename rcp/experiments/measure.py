"""One cell: fit, score, measure; what comes out is plain data for one result file.

Nothing is chosen on test labels here: a training is measured at epochs that the grid fixed beforehand, each as if the
training had been stopped there, and the last one is the result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rcp import metrics
from rcp.data import Category
from rcp.detectors import BankDetector, Ensemble, PatchCore, ReConPatch
from rcp.detectors.reduced import ReducedPatchCore
from rcp.evaluation import METRICS, Result, evaluate
from rcp.experiments.grid import Cell
from rcp.features import PatchExtractor, PatchFeatures
from rcp.head import EpochEnd
from rcp.ports import PortedReConPatch
from rcp.probes import effective_rank, position_probe, position_share
from rcp.store import MemoryLimit

PROBED = 40  # images whose patches the probes look at,
PROBED_BYTES = 2**27  # or fewer, so that these stay below


@dataclass(frozen=True)
class Material:
    """What the cells of one group share: a category, and its features under one backbone, or one a member.

    Attributes:
        category: the data.
        extractors: loaded backbones.
        train, test: features of both splits.
        limit: a bound on memory.
    """

    category: Category
    extractors: Sequence[PatchExtractor]
    train: Sequence[PatchFeatures]
    test: Sequence[PatchFeatures]
    limit: MemoryLimit = MemoryLimit()


def measure(cell: Cell, material: Material) -> dict[str, Any]:
    """Return what a cell's detector does on its category, as plain data.

    Args:
        cell: what to fit.
        material: data and features for it.

    Returns:
        `metrics` (shares; d′ as a number), `probes`, `images` (defect and score of every test image), `history` and
        `snapshots` (epoch → metrics and probes) where it trains, `seconds`.

    Raises:
        ValueError: as the detectors do.
        KeyboardInterrupt: if the training was interrupted: no result must claim epochs that were not run.
    """
    started = time.perf_counter()
    if len(cell.features) > 1:
        found = _state(_ensemble(cell, material), material, cell)
    elif cell.training is not None:
        found = _trained(cell, material)
    else:
        found = _state(_detector(cell, 0, material).fit(material.train[0]), material, cell)
    return found | {"seconds": round(time.perf_counter() - started, 3)}


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


class _Stopped(ReConPatch):
    """ReConPatch with an f that a training had on its way."""

    given: Tensor

    def _learn(self, features: PatchFeatures) -> None:
        self.weight = self.given


def _trained(cell: Cell, material: Material) -> dict[str, Any]:
    """Train once; measure at the epochs asked for on the way, and at the end."""
    kept: dict[int, Tensor] = {}

    def keep(event: EpochEnd) -> None:
        if event.epoch in cell.snapshots:
            kept[event.epoch] = event.head.f.weight.detach().clone()

    detector = _detector(cell, 0, material)
    _complete(detector.fit(material.train[0], callbacks=[keep]))
    found = _state(detector, material, cell) | {"history": [_rounded(asdict(record)) for record in detector.history]}
    found["snapshots"] = {}
    for epoch, weight in sorted(kept.items()):
        early = _Stopped(
            cell.features[0], training=cell.training, bank=cell.bank, reweight=cell.options["reweight"], seed=cell.seed,
            device=str(detector.extractor.device), limit=material.limit,
        )  # fmt: skip
        early.extractor, early.given = detector.extractor, weight
        found["snapshots"][str(epoch)] = _state(early.fit(material.train[0]), material, cell)
    return found


def _complete(detector: BankDetector) -> None:
    if isinstance(detector, ReConPatch) and len(detector.history) < detector.training.epochs:
        raise KeyboardInterrupt


def _state(detector: BankDetector | Ensemble, material: Material, cell: Cell) -> dict[str, Any]:
    """Metrics, probes and image scores of a fitted detector."""
    single = isinstance(detector, BankDetector)
    features = material.test[0] if single else list(material.test)
    result = evaluate(detector, material.category.test, features=features, protocol=cell.protocol)
    values = {name: result.metrics[name] for name in METRICS}
    values["d_prime"] = metrics.dprime(result.labels, result.scores.image_scores)
    found = {"metrics": _rounded(values), "images": _image_rows(result)}
    if single:
        found["memory_rows"] = detector.fitted_on["memory_rows"]
        found["probes"] = _probes(detector, material.train[0], cell.seed)
    if result.verdict:
        found["verdict"] = asdict(result.verdict)
    return found


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
