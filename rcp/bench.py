"""Timings of the stages on this machine, each against a yardstick measured in the same run.

A single figure says little, because machines differ and are noisy; a ratio measured side by side holds. Every line repeats
both sides in turn and gives the median ratio with its smallest and largest value.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rcp import metrics, synthetic
from rcp.coreset import greedy_coreset
from rcp.data import mvtec
from rcp.features import FeatureSettings, PatchExtractor
from rcp.head import TrainSettings, train_head
from rcp.images import Geometry, stream
from rcp.memory import MemoryBank
from rcp.modelfile import versions
from rcp.scoring import pixel_maps, score_images

ROWS, DIMENSION = 163_856, 128  # the size of MVTec AD bottle at 224 pixels


def bench(repeats: int = 5, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time the stages and return the numbers.

    Args:
        repeats: measurements a line.
        say: receives the table, line by line.

    Returns:
        Plain data: the machine, and one entry a line with seconds and ratios.
    """
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    say(f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, torch {torch.__version__}")
    rates = _rates(repeats)
    for name, value in rates.items():
        say(f"  {name:44} {value:8.1f}")
    train = [sample.path for name in synthetic.CATEGORIES for sample in mvtec(synthetic.cached(), name).train]
    lines = [_decoding(train, repeats), _features(train, repeats), _bfloat16(train, repeats)]
    rows = PatchExtractor(FeatureSettings()).extract(train).rows[:ROWS, :DIMENSION].contiguous()
    lines += [_coreset(rows, repeats), _training(repeats), _scoring(repeats), _aupro(repeats)]
    say(f"  {'stage':44} {'seconds':>9}  {'ratio to yardstick (min–max)':30} yardstick")
    for line in lines:
        low, middle, high = line["ratio"]
        say(
            f"  {line['stage']:44} {line['seconds']:9.4f}  {f'{middle:.2f} ({low:.2f}–{high:.2f})':30} {line['yardstick']}"
        )
    return {"machine": machine, "rates": rates, "lines": lines, "repeats": repeats}


def _line(stage: str, yardstick: str, ours: Callable[[], Any], other: Callable[[], Any], repeats: int, per: int = 1):
    """Run both in turn; the ratio is our seconds over the yardstick's, below 1 where we are faster."""
    ours(), other()  # warm
    mine, theirs = [], []
    for _ in range(repeats):
        mine.append(_seconds(ours))
        theirs.append(_seconds(other))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "stage": stage,
        "yardstick": yardstick,
        "seconds": statistics.median(mine) / per,
        "yardstick_seconds": statistics.median(theirs) / per,
        "ratio": (min(ratios), statistics.median(ratios), max(ratios)),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _rates(repeats: int) -> dict[str, float]:
    a = torch.randn(2048, 2048)
    b, big = a.bfloat16(), torch.randn(2**26)
    target = torch.empty_like(big)
    best = {
        "float32 products, GFLOP/s": 2 * 2048**3 / 1e9 / min(_seconds(lambda: a @ a) for _ in range(repeats + 1)),
        "bfloat16 products, GFLOP/s": 2 * 2048**3 / 1e9 / min(_seconds(lambda: b @ b) for _ in range(repeats + 1)),
        "memory copies (read + write), GB/s": 8 * 2**26 / 1e9 / min(_seconds(lambda: target.copy_(big)) for _ in range(6)),
    }
    return best


def _decoding(paths, repeats: int) -> dict[str, Any]:
    some = paths[:64]

    def read(workers: int) -> None:
        for _ in stream(some, Geometry(), workers=workers):
            pass

    return _line(
        "decode + resize, 256 px PNG, an image", "the same in one thread",
        lambda: read(2), lambda: read(0), repeats, per=len(some),
    )  # fmt: skip


def _features(paths, repeats: int) -> dict[str, Any]:
    some, extractor = paths[:64], PatchExtractor(FeatureSettings())
    pixels = next(iter(stream(some, Geometry(), batch_size=64))).pixels

    def network() -> None:
        for part in pixels.split(extractor.batch_size):
            extractor.patches(part)

    return _line(
        "files → features, Lite0 at 224, an image", "the network alone",
        lambda: extractor.extract(some), network, repeats, per=len(some),
    )  # fmt: skip


def _bfloat16(paths, repeats: int) -> dict[str, Any]:
    pixels = next(iter(stream(paths[:16], Geometry(), batch_size=16))).pixels
    full, half = PatchExtractor(FeatureSettings()), PatchExtractor(FeatureSettings(precision="bfloat16"))
    return _line(
        "network in bfloat16, an image", "in float32",
        lambda: half.patches(pixels), lambda: full.patches(pixels), repeats, per=16,
    )  # fmt: skip


def _coreset(rows: torch.Tensor, repeats: int) -> dict[str, Any]:
    picks = len(rows) // 100

    def plain(count: int) -> None:
        nearest, pick = torch.full((len(rows),), torch.inf), 0
        norms = rows.square().sum(1)
        for _ in range(count):
            torch.minimum(nearest, torch.addmv(norms + norms[pick], rows, rows[pick], alpha=-2), out=nearest)
            pick = int(nearest.argmax())

    def ours() -> None:
        greedy_coreset(rows, start=0, projection=None)

    return _line(
        f"coreset, {len(rows):,} × {rows.shape[1]}, 1 %", "the plain loop, a pass over all rows per pick",
        ours, lambda: plain(picks), max(1, repeats // 2),
    )  # fmt: skip


def _training(repeats: int) -> dict[str, Any]:
    n, wide, steps = 784, 1536, 8
    rows = torch.randn(n * steps, wide, generator=torch.Generator().manual_seed(0))
    f, g, rest = torch.randn(wide, 512), torch.randn(512, 512), torch.randn(n, n)

    def products() -> None:
        for at in range(0, n * steps, n):
            p = rows[at : at + n]
            for _ in range(2):  # student and teacher
                z = (p @ f) @ g
                z @ z.T
            back = rest @ z  # gradient of the distances
            h = back @ g.T
            z.T @ back, p.T @ h

    settings = TrainSettings(epochs=1)
    return _line(
        "training step, 784 × 1536 → 512 → 512", "its matrix products alone",
        lambda: train_head(rows, settings, seed=0), products, repeats, per=steps,
    )  # fmt: skip


def _scoring(repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(1, 28, 28, 512, generator=generator), torch.randn(1638, 512, generator=generator)
    bank = MemoryBank(rows)

    def ours() -> None:
        for _ in range(20):
            pixel_maps(score_images(queries, bank)[1], (224, 224))

    def product() -> None:
        for _ in range(20):
            queries.flatten(0, 2) @ rows.T

    return _line(
        "scores + map of an image, memory 1638 × 512", "its one matrix product", ours, product, repeats, per=20
    )


def _aupro(repeats: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    maps = generator.random((83, 224, 224), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:63, 80:120, 90:130] = True
    return _line(
        "pixel AUROC, AP and AUPRO, 83 × 224 × 224", "one sort of all values",
        lambda: metrics.pixel_metrics(masks, maps), lambda: np.sort(maps, axis=None), repeats,
    )  # fmt: skip
