"""How cost grows: one curve a question, with the exponent b of seconds ≈ a · size^b.

Images, image size and the coreset's rows are those of whole stages; what is varied alone is said in each curve's name. Rows
beyond the embedded data's own are random mixtures of two of its rows each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rcp import synthetic
from rcp.allocator import give_back
from rcp.bench.measure import exponent, seconds
from rcp.coreset import greedy_coreset
from rcp.data import mvtec
from rcp.detectors import PatchCore
from rcp.detectors.bank import BankSettings
from rcp.features import FeatureSettings, PatchExtractor
from rcp.head import TrainSettings, train_head
from rcp.partitioned import partitioned_coreset
from rcp.timing import MemoryWatch, anonymous_bytes

if TYPE_CHECKING:
    from rcp.bench import Choice

ROWS = (50_000, 100_000, 200_000, 400_000, 800_000, 1_600_000)
IMAGES = (12, 24, 48, 96, 192)
SIZES = (128, 192, 256, 320, 480)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
SPLIT_ROWS, PARTS = 400_000, (4, 8, 16)
RATIOS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the curves (sizes, seconds, exponent; for the coreset's rows the memory, too), and the coreset in parts."""
    train = [sample.path for name in synthetic.CATEGORIES for sample in mvtec(synthetic.cached(), name).train]
    base = PatchExtractor(FeatureSettings(), device="cpu").extract(train[:96]).rows[:, :128].contiguous()  # (n, 128)
    curves = {
        "images": _curve("good images", "PatchCore's fit", IMAGES, lambda n: _fit(train, n, 224), say),
        "image size": _curve("pixels a side", "PatchCore's fit on 24 images", SIZES, lambda s: _fit(train, 24, s), say),
        "feature width": _curve("numbers a patch", "one epoch on 25,088 patches", WIDTHS, _epoch, say),
        "coreset ratio": _curve("share kept", "coreset of 100,352 × 128", RATIOS, _picking(mixed(base, 100_352)), say),
        "coreset rows": _coreset_rows(base, say),
    }
    return {"curves": curves, "partitioned": partitioned(base, say)}


def partitioned(base: Tensor, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The coreset picked in parts against the exact one, over three starts: seconds, and the covering radius of all rows."""
    rows, found = mixed(base, SPLIT_ROWS), []
    for seed in range(3):
        started = time.perf_counter()
        exact = greedy_coreset(rows, generator=torch.Generator().manual_seed(seed), projection=None)
        taken = time.perf_counter() - started
        for parts in PARTS:
            started = time.perf_counter()
            split = partitioned_coreset(rows, parts=parts, generator=torch.Generator().manual_seed(seed), projection=None)
            entry = {
                "seed": seed, "parts": parts, "radius_ratio": float(split.radii[-1] / exact.radii[-1]),
                "seconds_ratio": (time.perf_counter() - started) / taken,
            }  # fmt: skip
            found.append(entry)
    for parts in PARTS:
        radii = [entry["radius_ratio"] for entry in found if entry["parts"] == parts]
        ratios = [entry["seconds_ratio"] for entry in found if entry["parts"] == parts]
        say(
            f"  {SPLIT_ROWS:,} rows in {parts} parts against the exact coreset: radius {min(radii):.3f}–{max(radii):.3f}, "
            f"seconds {min(ratios):.2f}–{max(ratios):.2f}"
        )
    return found


def _curve(
    axis: str, what: str, sizes: Sequence[float], work: Callable[[float], float], say: Callable[[str], None]
) -> dict[str, Any]:
    found = [min(work(size) for _ in range(2)) for size in sizes]
    b = exponent(sizes, found)
    cells = "  ".join(f"{size:g}: {value:.2f} s" for size, value in zip(sizes, found, strict=True))
    say(f"  {what} by {axis}: exponent {b:.2f}   {cells}")
    return {"axis": axis, "what": what, "sizes": list(sizes), "seconds": found, "exponent": b}


def mixed(base: Tensor, count: int) -> Tensor:
    """Return (count, D) rows: the base's own, then mixtures a·x + (1-a)·y of two of them each, drawn with seed 0."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(count, base.shape[1])
    own = min(count, len(base))
    rows[:own] = base[torch.randperm(len(base), generator=generator)[:own]]
    for at in range(own, count, 65536):
        part = rows[at : at + 65536]
        pairs = torch.randint(len(base), (2, len(part)), generator=generator)
        part.copy_(torch.lerp(base[pairs[0]], base[pairs[1]], torch.rand(len(part), 1, generator=generator)))
    return rows


def _fit(train: Sequence, images: int, size: int) -> float:
    extractor = PatchExtractor(FeatureSettings(resize=size, crop=size), device="cpu")
    extractor.extract(train[:2])  # the first pass sets the libraries up
    detector = PatchCore(extractor.settings, bank=BankSettings(folds=0), device="cpu")
    detector.extractor = extractor
    some = [train[i % len(train)] for i in range(images)]
    return seconds(lambda: detector.fit(some))


def _epoch(width: int) -> float:
    rows = torch.randn(32 * 784, int(width), generator=torch.Generator().manual_seed(0))
    return seconds(lambda: train_head(rows, TrainSettings(epochs=1), seed=0))


def _picking(rows: Tensor) -> Callable[[float], float]:
    return lambda ratio: seconds(lambda: greedy_coreset(rows, ratio, start=0, projection=None))


def _coreset_rows(base: Tensor, say: Callable[[str], None]) -> dict[str, Any]:
    """The coreset at 1 % over the number of rows: seconds, and the memory besides the rows."""
    found, extra = [], []
    for count in ROWS:
        rows = mixed(base, count)
        give_back()
        before = anonymous_bytes()
        with MemoryWatch(0.005) as memory:
            found.append(seconds(lambda rows=rows: greedy_coreset(rows, start=0, projection=None)))
        extra.append(max(0, memory.peak_bytes - before))
        say(f"  coreset of {count:,} × 128 at 1 %: {found[-1]:.2f} s, {extra[-1] / 1e6:.0f} MB besides the rows")
    b = exponent(ROWS, found)
    say(f"  exponent {b:.2f}")
    return {
        "axis": "rows", "what": "coreset at 1 %, 128 wide", "sizes": list(ROWS), "seconds": found, "exponent": b,
        "extra_bytes": extra,
    }  # fmt: skip
