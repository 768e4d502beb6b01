"""This project's side of the comparison with peers: one task, timed from after the imports, one line of JSON."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rcp
from rcp import metrics
from rcp.coreset import covering_radius, greedy_coreset
from rcp.modelfile import VersionWarning
from rcp.timing import MemoryWatch, peak_rss_bytes

BOUND = 1.5e9  # bytes: what the process is told to keep to, so that it needs less than half of the peer's memory


def files(root: str, category: str, precision: str, folds: str) -> dict[str, Any]:
    """PatchCore from files to metrics; 5 folds calibrate it (limit and colour scale) on held-out images, 0 leave that out."""
    warnings.simplefilter("ignore", VersionWarning)
    settings = rcp.FeatureSettings("wide_resnet50_2", pretrained=False, precision=precision)
    bank, limit = rcp.BankSettings(folds=int(folds)), rcp.MemoryLimit(int(BOUND), Path(root).parent)
    detector = rcp.PatchCore(settings, bank=bank, limit=limit, device="cpu")
    detector.extractor = rcp.PatchExtractor(settings, device="cpu")  # before the clock starts, as the peer's network
    started = time.perf_counter()
    found = rcp.mvtec(root, category)
    with MemoryWatch() as memory:
        detector.fit(found.train)
        fitted = time.perf_counter()
        result = rcp.evaluate(detector, found.test)
    done = time.perf_counter()
    return {
        "seconds": done - started, "fit": fitted - started, "test": done - fitted, "stages": detector.stopwatch.seconds,
        "peak_rss_bytes": peak_rss_bytes(), "peak_anonymous_bytes": memory.peak_bytes, "metrics": result.metrics,
    }  # fmt: skip


def coreset(path: str) -> dict[str, Any]:
    """1 % of the rows, picked in their own space: a projection of 152 dimensions to 128 would save nothing, and cover worse."""
    rows = torch.from_numpy(np.load(path))
    started = time.perf_counter()
    found = greedy_coreset(rows, 0.01, projection=None, generator=torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "picked": len(found.indices), "radius": covering_radius(rows, rows[found.indices])}


def pixel_metrics(maps: str, masks: str) -> dict[str, Any]:
    """Exact pixel AUROC, AP and AUPRO."""
    maps, masks = np.load(maps), np.load(masks)
    started = time.perf_counter()
    found = metrics.pixel_metrics(masks, maps)
    return {"seconds": time.perf_counter() - started, "peak_rss_bytes": peak_rss_bytes(), **found}


if __name__ == "__main__":
    task = {"files": files, "coreset": coreset, "metrics": pixel_metrics}[sys.argv[1]]
    print(json.dumps(task(*sys.argv[2:])))
