"""Approximate search on a memory of a million rows: what is gained in time, what is lost in recall and in AUROC.

The rows are random mixtures of two patch features of the embedded good images each (as many as asked for); the queries are
patches of test images. AUROC is measured where it can be compared: on the embedded categories, each with *all* its training
patches as memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rcp import metrics, synthetic
from rcp.bench.growth import mixed
from rcp.bench.measure import seconds
from rcp.data import mvtec
from rcp.features import FeatureSettings, PatchExtractor
from rcp.memory import SEARCHES, MemoryBank
from rcp.scoring import score_images

if TYPE_CHECKING:
    from rcp.bench import Choice

ROWS = 1_000_000
QUERIES = 4 * 784  # patches of four images


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return, for each search, seconds to build and to ask, recall@1, and the AUROCs beside the exact ones."""
    categories = [mvtec(synthetic.cached(), name) for name in synthetic.CATEGORIES]
    extractor = PatchExtractor(FeatureSettings(), device="cpu")
    good = [extractor.extract(category.train) for category in categories]
    tests = [extractor.extract(category.test) for category in categories]
    rows = mixed(torch.cat([features.rows for features in good]), ROWS)
    queries = torch.cat([features.rows for features in tests])
    queries = queries[torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))[:QUERIES]]
    exact, labels = None, [[sample.label for sample in category.test] for category in categories]
    lines = []
    for search in SEARCHES:
        bank, built = _built(rows, search)
        bank.nearest(queries[:16])  # the first question builds what is built late
        asked = min(seconds(lambda bank=bank: bank.nearest(queries)) for _ in range(2))
        found = bank.nearest(queries)[0][:, 0]
        exact = found if exact is None else exact
        recall = float((found <= exact * (1 + 1e-6)).float().mean())
        aurocs = [_auroc(g.rows, t.values, y, search) for g, t, y in zip(good, tests, labels, strict=True)]
        entry = {
            "search": search, "build_seconds": built, "ms_per_image": 1e3 * asked / (QUERIES / 784), "recall_at_1": recall,
            "index_bytes": bank.index_bytes, "image_auroc": dict(zip(synthetic.CATEGORIES, aurocs, strict=True)),
        }  # fmt: skip
        mean = sum(aurocs) / len(aurocs)
        say(
            f"  {search:11} build {built:7.1f} s   {entry['ms_per_image']:8.1f} ms an image   recall@1 {recall:.4f}   index "
            f"{bank.index_bytes / 1e6:6.0f} MB   mean image AUROC {mean:.4f}"
        )
        lines.append(entry)
        del bank
    return {"rows": ROWS, "width": rows.shape[1], "queries": QUERIES, "lines": lines}


def _built(rows: Tensor, search: str) -> tuple[MemoryBank, float]:
    started = time.perf_counter()
    bank = MemoryBank(rows, search)
    bank.nearest(rows[:1])
    return bank, time.perf_counter() - started


def _auroc(rows: Tensor, features: Tensor, labels: list[int], search: str) -> float:
    bank = MemoryBank(rows, search)
    scores = torch.cat([score_images(part, bank)[0] for part in features.split(8)])
    return metrics.auroc(labels, scores.numpy())
