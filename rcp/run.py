"""One run: a category, a detector, a folder with everything that came of it.

The folder holds `result.json` (settings, data, versions, weights, seeds, metrics, seconds, memory), `model/` (the fitted
detector), two figures, and on request the raw maps. Everything is written whole or not at all; a training that was killed
goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rcp.data import Category
from rcp.detectors import BankDetector, Detector, ReConPatch
from rcp.detectors.pixel import TrainedDetector
from rcp.estimate import estimate
from rcp.evaluation import METRICS, Result, evaluate
from rcp.files import write_json, write_tensors
from rcp.modelfile import versions
from rcp.timing import MemoryWatch, Stopwatch, peak_rss_bytes

SCHEMA = 1
OUTPUTS = ("scores.png", "maps.png", "maps.safetensors")  # what a run may leave beside result.json and model/


def run(
    category: Category,
    detector: Detector,
    out: str | Path,
    *,
    protocol: str = "crop",
    false_alarm_rate: float = 0.05,
    on_error: str = "raise",
    maps: bool = False,
    figures: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit a detector on a category, evaluate it, and write what was found; return the content of `result.json`.

    Args:
        category: from `rcp.find`, `rcp.mvtec`, …; without test images the metrics stay empty.
        detector: not fitted.
        out: the folder to write to.
        protocol: "crop" or "original", see `rcp.evaluation`.
        false_alarm_rate: for the verdict.
        on_error: "raise", or "skip" to leave unreadable images out and list them.
        maps: write the raw patch scores and maps to `maps.safetensors`.
        figures: write `scores.png` and `maps.png`.
        say: receives a line of text now and then.

    Returns:
        The result as plain data.

    Raises:
        ValueError, ImageError, WeightsError: as the stages do.
        MemoryError: if the detector's `limit` leaves no room to work in.
        KeyboardInterrupt: if the training was interrupted; the same call goes on behind its last full epoch.
    """
    out, watch, memory = Path(out), Stopwatch(), MemoryWatch()
    out.mkdir(parents=True, exist_ok=True)
    tested = len(category.test) > 0
    with watch("total"), memory:
        with watch("estimate"):
            predicted = estimate(detector, category.train, category.test if tested else None)
        say(f"{category.dataset} {category.name}: {predicted}")
        detector.limit.check(_held(detector, predicted.memory_bytes))
        checkpoint, trains = out / "training.safetensors", isinstance(detector, (ReConPatch, TrainedDetector))
        if trains:
            detector.fit(category.train, on_error=on_error, checkpoint=checkpoint)
            if not detector.finished:
                raise KeyboardInterrupt  # a result must not claim steps that were not taken; the checkpoint stays
        else:
            taught = " here: it has learned from other categories" if hasattr(detector, "pretrain") else ""
            say(f"{type(detector).__name__} has one pass; it does not train{taught}")
            detector.fit(category.train, on_error=on_error)
        result = None
        if tested:
            result = evaluate(
                detector, category.test, protocol=protocol, false_alarm_rate=false_alarm_rate, on_error=on_error
            )
        for old in ("result.json", *OUTPUTS):  # an earlier run's stay until here: a run that fails destroys nothing
            (out / old).unlink(missing_ok=True)
        detector.save(out / "model")
        with watch("figures"):
            if result and figures:
                _write_figures(category, detector, result, out)
            if result and maps:
                _write_maps(result, out / "maps.safetensors")
        with watch("fingerprint"):
            dataset = _dataset(category)
    record = {"schema": SCHEMA, "detector": detector.kind, "dataset": dataset, "predicted": predicted.record()}
    record |= _record(category, detector, result, protocol)
    record |= {"seconds": detector.stopwatch.seconds | watch.seconds, "peak_rss_bytes": peak_rss_bytes()}
    record |= {"peak_anonymous_bytes": memory.peak_bytes, "max_bytes": detector.limit.max_bytes}
    write_json(out / "result.json", record)
    for file in out.glob(f"{checkpoint.name}*") if trains else ():  # a training of several stages leaves one a stage
        file.unlink()
    return record


def _held(detector: Detector, memory_bytes: int) -> int:
    """Most bytes that the fitted detector takes at a time."""
    if not isinstance(detector, BankDetector):
        return memory_bytes
    banks = 2 if detector.bank.folds else 1  # calibration makes one more at a time
    return 2 * banks * memory_bytes  # its rows, and what the search makes of them


def _dataset(category: Category) -> dict[str, Any]:
    splits = {
        split.name: {"counts": split.counts(), "fingerprint": split.fingerprint()}
        for split in (category.train, category.test)
    }
    return {"layout": category.dataset, "category": category.name} | splits


def _record(category: Category, detector: Detector, result: Result | None, protocol: str) -> dict[str, Any]:
    skipped = list(detector.fitted_on["skipped"])
    if result:
        skipped += [[path.as_posix(), reason] for path, reason in result.scores.skipped]
    return {
        "settings": detector.settings(),
        "seeds": {"detector": detector.seed},
        "backbone": detector.backbone_record(),
        "device": str(detector.extractor.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "protocol": protocol,
        "metrics": result.metrics if result else dict.fromkeys(METRICS),
        "unseen_share": result.unseen_share if result else None,
        "verdict": asdict(result.verdict) if result and result.verdict else None,
        "fitted_on": detector.fitted_on,
        "history": [asdict(record) for record in getattr(detector, "history", ())],
        "skipped": skipped,
        "images": _image_rows(category, result) if result else [],
    }


def _image_rows(category: Category, result: Result) -> list[dict[str, Any]]:
    """A line an image: file, defect, score."""
    names = [category.test[i].path.relative_to(category.test.root).as_posix() for i in result.scores.indices]
    scores = result.scores.image_scores.tolist()
    return [{"file": n, "defect": d, "score": s} for n, d, s in zip(names, result.defects, scores, strict=True)]


def _write_maps(result: Result, path: Path) -> None:
    tensors = {
        "image_scores": result.scores.image_scores,
        "patch_scores": result.scores.patch_scores,
        "maps": result.scores.maps,
        "labels": torch.from_numpy(result.labels),
    }
    write_tensors(path, tensors, {"schema": SCHEMA, "indices": result.scores.indices, "defects": result.defects})


def _write_figures(category: Category, detector: Detector, result: Result, out: Path) -> None:
    from rcp import plots  # matplotlib loads only where something is drawn

    limits = detector.colour_limits()
    title = type(detector).__name__
    plots.write(plots.score_histogram({title: result}), out / "scores.png")
    plots.write(plots.map_sheet(category.test, {title: (result, limits)}), out / "maps.png")
