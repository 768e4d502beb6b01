"""Each stage against a yardstick that says what the machine can do: its matrix products, the network alone, one sort."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from rcp import metrics, synthetic
from rcp.bench.measure import FULL, compare, table
from rcp.coreset import greedy_coreset
from rcp.data import mvtec
from rcp.features import FeatureSettings, PatchExtractor
from rcp.head import TrainSettings, train_head
from rcp.images import Geometry, stream
from rcp.memory import MemoryBank
from rcp.scoring import pixel_maps, score_images
from rcp.timing import MemoryWatch

if TYPE_CHECKING:
    from rcp.bench import Choice

BOTTLE = (163_856, 128)  # the features of MVTec AD's bottle at 224 pixels, projected
LARGE = 8192  # patches of a large training batch


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return one line a stage."""
    repeats = choice.repeats
    train = [sample.path for name in synthetic.CATEGORIES for sample in mvtec(synthetic.cached(), name).train]
    lines = [decoding(train[0], repeats), features(train, repeats, "float32"), features(train, repeats, "bfloat16")]
    lines.append(bfloat16(train, repeats))
    rows = PatchExtractor(FeatureSettings(), device="cpu").extract(train).rows
    lines += [coreset(rows[: BOTTLE[0], : BOTTLE[1]].contiguous(), repeats), training(repeats), training_large(repeats)]
    lines += [wide_network(repeats, precision) for precision in ("float32", "bfloat16")]
    lines += [scoring(repeats), backbone_share(train, repeats), pixel_metrics(repeats)]
    table(lines, say)
    peak = next(entry["process_peak_anonymous_bytes"] for entry in lines if "process_peak_anonymous_bytes" in entry)
    say(f"  a step with {LARGE:,} patches: anonymous memory of the whole process at most {peak / 2**30:.2f} GiB")
    return {"lines": lines}


def decoding(path: Path, repeats: int) -> dict[str, Any]:
    """A full-size PNG, decoded and resized, in two threads against one."""
    with tempfile.TemporaryDirectory() as folder:
        some = []
        for number in range(16):
            some.append(Path(folder) / f"{number}.png")
            Image.open(path).resize((FULL, FULL), Image.Resampling.BICUBIC).save(some[-1])

        def read(workers: int) -> None:
            for _ in stream(some, Geometry(), workers=workers):
                pass

        return compare(
            f"decode + resize, {FULL} px PNG, an image", "the same in one thread",
            lambda: read(2), lambda: read(0), repeats, per=len(some),
        )  # fmt: skip


def features(paths: Sequence[Path], repeats: int, precision: str) -> dict[str, Any]:
    """Files to features: what decoding adds to the network."""
    some, extractor = paths[:64], PatchExtractor(FeatureSettings(precision=precision), device="cpu")
    pixels = next(iter(stream(some, Geometry(), batch_size=64))).pixels

    def network() -> None:
        for part in pixels.split(extractor.batch_size):
            extractor.patches(part)

    return compare(
        f"files → features, Lite0 at 224, {precision}, an image", "the network alone",
        lambda: extractor.extract(some), network, repeats, per=len(some),
    )  # fmt: skip


def bfloat16(paths: Sequence[Path], repeats: int) -> dict[str, Any]:
    """The network in bfloat16 against float32."""
    pixels = next(iter(stream(paths[:16], Geometry(), batch_size=16))).pixels
    full, half = (PatchExtractor(FeatureSettings(precision=p), device="cpu") for p in ("float32", "bfloat16"))

    def run(extractor: PatchExtractor) -> None:
        for part in pixels.split(extractor.batch_size):
            extractor.patches(part)

    return compare(
        "network, Lite0 at 224, bfloat16, an image", "in float32",
        lambda: run(half), lambda: run(full), repeats, per=len(pixels),
    )  # fmt: skip


def wide_network(repeats: int, precision: str) -> dict[str, Any]:
    """A WideResNet-50 up to level 3 on eight images, against a matrix product of as many operations."""
    settings = FeatureSettings("wide_resnet50_2", pretrained=False, precision=precision)
    extractor = PatchExtractor(settings, device="cpu")
    pixels = torch.zeros(extractor.batch_size, 3, 224, 224, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counted:
        extractor.patches(pixels)
    operations, a = counted.get_total_flops(), torch.randn(2048, 2048)
    b = torch.randn(2048, operations // (2 * a.numel()))
    a, b = (x.to(getattr(torch, precision)) for x in (a, b))
    found = compare(
        f"WideResNet-50 to level 3 at 224, {precision}, an image", "a product of as many operations",
        lambda: extractor.patches(pixels), lambda: a @ b, repeats, per=len(pixels),
    )  # fmt: skip
    return found | {"operations": operations / len(pixels)}


def coreset(rows: torch.Tensor, repeats: int) -> dict[str, Any]:
    """The lazy greedy coreset against the plain loop."""
    norms = rows.square().sum(1)

    def plain() -> None:
        nearest, pick = torch.full((len(rows),), torch.inf), 0
        for _ in range(len(rows) // 100):
            torch.minimum(nearest, torch.addmv(norms + norms[pick], rows, rows[pick], alpha=-2), out=nearest)
            pick = int(nearest.argmax())

    return compare(
        f"coreset, {len(rows):,} × {rows.shape[1]}, 1 %", "the plain loop, a pass over all rows per pick",
        lambda: greedy_coreset(rows, start=0, projection=None), plain, max(1, repeats // 2),
    )  # fmt: skip


def training(repeats: int, n: int = 784, steps: int = 72) -> dict[str, Any]:
    """A training step against its ten matrix products: an epoch with all that it does, over its steps."""
    wide, out = 1536, 512
    rows = torch.randn(n * steps, wide, generator=torch.Generator().manual_seed(0))
    f, g, weights = torch.randn(wide, out), torch.randn(out, out), torch.randn(n, n)

    def products() -> None:
        for p in rows.split(n):
            for _ in range(2):  # student and teacher
                h = p @ f
                z = h @ g
                z @ z.T
            back = weights @ z  # the gradient of the distances
            h.T @ back, p.T @ (back @ g.T)

    settings = TrainSettings(epochs=1, batch_size=n)
    return compare(
        f"training step, {n} × {wide} → {out} → {out}", "its matrix products alone",
        lambda: train_head(rows, settings, seed=0), products, repeats, per=steps,
    )  # fmt: skip


def training_large(repeats: int) -> dict[str, Any]:
    """The same for a batch of thousands of patches, whose N × N matrices no cache holds, and the memory it takes."""
    rows = torch.randn(LARGE, 1536, generator=torch.Generator().manual_seed(0))
    with MemoryWatch() as memory:
        train_head(rows, TrainSettings(epochs=1, batch_size=LARGE), seed=0)
    found = training(max(1, repeats // 2), n=LARGE, steps=2)
    return found | {"process_peak_anonymous_bytes": memory.peak_bytes}


def scoring(repeats: int) -> dict[str, Any]:
    """Neighbours, score and map of an image against the one product of its search."""
    generator = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(1, 28, 28, 512, generator=generator), torch.randn(1638, 512, generator=generator)
    bank, times = MemoryBank(rows), 20

    def ours() -> None:
        for _ in range(times):
            pixel_maps(score_images(queries, bank)[1], (224, 224))

    def product() -> None:
        for _ in range(times):
            queries.flatten(0, 2) @ rows.T

    return compare(
        "scores + map of an image, memory 1,638 × 512", "its one matrix product", ours, product, repeats, per=times
    )


def backbone_share(paths: Sequence[Path], repeats: int) -> dict[str, Any]:
    """The same scoring against a WideResNet-50's pass over the image."""
    generator = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(1, 28, 28, 512, generator=generator), torch.randn(1638, 512, generator=generator)
    bank, settings = MemoryBank(rows), FeatureSettings("wide_resnet50_2", pretrained=False)
    extractor = PatchExtractor(settings, device="cpu")
    pixels = next(iter(stream(paths[:1], Geometry()))).pixels
    return compare(
        "scores + map of an image, memory 1,638 × 512", "WideResNet-50 features of the image",
        lambda: pixel_maps(score_images(queries, bank)[1], (224, 224)), lambda: extractor.patches(pixels), repeats,
    )  # fmt: skip


def pixel_metrics(repeats: int) -> dict[str, Any]:
    """Three exact metrics against one sort of all values."""
    generator = np.random.default_rng(0)
    maps = generator.random((83, 224, 224), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[:63, 80:120, 90:130] = True
    return compare(
        "pixel AUROC, AP and AUPRO, 83 × 224 × 224", "one sort of all values",
        lambda: metrics.pixel_metrics(masks, maps), lambda: np.sort(maps, axis=None), repeats,
    )  # fmt: skip
