"""What will it cost? Rows, bytes and seconds, said before the work begins.

The seconds come from short probes on this machine, with this network and these shapes; the result file keeps them beside
the seconds that the work really took.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from rcp.coreset import coreset_size
from rcp.data import Split
from rcp.detectors import BankDetector, ReConPatch
from rcp.features import STORED, PatchExtractor
from rcp.head import train_head
from rcp.images import Batch, stream

# Seconds of the coreset: CORESET · N · M^0.6 at 175 GFLOP/s, fitted to the curves of `rcp bench growth`; these predict
# 0.42 s for 163,856 rows at 1 %, and 16 s for 1.6 million.
CORESET, POWER, RATE = 3e-8, 0.6, 175e9
PROBE = 4  # images and training steps that are timed


@dataclass(frozen=True)
class Estimate:
    """A prediction.

    Attributes:
        images, rows, width: training images, patches, numbers a patch.
        feature_bytes: of all training features, as they are stored; the largest thing there is.
        memory_rows, memory_bytes: of the coreset.
        mapped: whether the features will lie in a file, as the detector's limit leaves no room for them in memory.
        seconds: by stage: features, training, coreset, calibration, scoring.
    """

    images: int
    rows: int
    width: int
    feature_bytes: int
    memory_rows: int
    memory_bytes: int
    mapped: bool
    seconds: dict[str, float]

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items() if seconds >= 0.5)
        return (
            f"{self.images} images → {self.rows:,} patches × {self.width} = {size(self.feature_bytes)}"
            f"{' in a file' if self.mapped else ''}; memory of {self.memory_rows:,} rows = {size(self.memory_bytes)}; about {sum(self.seconds.values()):.0f} s"
            + (f" ({stages})" if stages else "")
        )

    def record(self) -> dict:
        """Return it as plain data, for a result file."""
        return asdict(self)


def size(count: int) -> str:
    """Return a number of bytes as people read it: 249 MB, 1.0 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.{1 if unit == 'GB' else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def estimate(detector: BankDetector, train: Split, test: Split | None = None) -> Estimate:
    """Return what fitting, and scoring a test split, will need.

    Args:
        detector: not fitted yet; its backbone is loaded for the probe.
        train: good images.
        test: images to score afterwards, or None.

    Returns:
        An `Estimate`; a probe takes about a second.
    """
    extractor = detector.extractor
    per_image, (h, w) = _image_seconds(extractor, train)
    rows, n = len(train) * h * w, len(train)
    kept = coreset_size(rows, detector.bank.coreset)
    rate = _product_rate(extractor.device)
    width, out = extractor.width, detector.output_width
    embedding = 2 * rows * width * out / rate if isinstance(detector, ReConPatch) else 0.0
    picking = coreset_seconds(rows, kept, rate)
    searching = 3 * 2 * h * w * kept * out / rate  # per image, measured against one product
    folds = detector.bank.folds
    seconds = {
        "features": n * per_image,
        "training": _training_seconds(detector, rows),
        "coreset": embedding + picking,
        "calibration": folds and folds * (1 - 1 / folds) ** (1 + POWER) * picking + n * searching,
        "scoring": len(test) * (per_image + searching) if test is not None else 0.0,
    }
    features = STORED[extractor.settings.stored].itemsize * rows * width
    mapped = not detector.limit.fits(features)
    return Estimate(n, rows, width, features, kept, 4 * kept * out, mapped, seconds)


def coreset_seconds(rows: int, kept: int, rate: float) -> float:
    """Return the seconds of picking so many of so many rows, 128 wide, at a rate of matrix products in operations a second."""
    return CORESET * rows * kept**POWER * RATE / rate


def _image_seconds(extractor: PatchExtractor, train: Split) -> tuple[float, tuple[int, int]]:
    """Seconds to decode an image and send it through the network, on the first readable ones, and the patch grid."""
    extractor.patches(_first_batch(extractor, train).pixels)  # the first pass pays for the libraries' own set-up
    started = time.perf_counter()
    batch = _first_batch(extractor, train)
    shape = extractor.patches(batch.pixels).cpu().shape
    return (time.perf_counter() - started) / len(batch.indices), tuple(shape[1:3])


def _first_batch(extractor: PatchExtractor, train: Split) -> Batch:
    skipped: list[tuple[Path, str]] = []  # unreadable files are the run's to report, not the probe's
    geometry = extractor.settings.geometry
    for batch in stream(train.paths, geometry, batch_size=PROBE, workers=0, on_error="skip", skipped=skipped):
        return batch
    raise ValueError(f"none of the {len(train)} images could be read; the first, {skipped[0][0]}: {skipped[0][1]}")


def _product_rate(device: torch.device) -> float:
    a = torch.randn(1024, 1024, device=device)
    float((a @ a)[0, 0])
    started = time.perf_counter()
    for _ in range(4):
        product = a @ a
    float(product[0, 0])  # waits for the device
    return 4 * 2 * 1024**3 / (time.perf_counter() - started)


def _training_seconds(detector: BankDetector, rows: int) -> float:
    if not isinstance(detector, ReConPatch) or detector.training.epochs == 0:
        return 0.0
    settings = detector.training
    batch = min(rows, settings.batch_size)
    steps = min(rows // batch, settings.steps or rows)
    noise = torch.randn(PROBE * batch, detector.extractor.width, generator=torch.Generator().manual_seed(0))
    probe = replace(settings, epochs=2, steps=PROBE, batch="patches")
    _, history = train_head(noise, probe, seed=0, device=detector.extractor.device)
    if len(history) < 2:
        raise KeyboardInterrupt  # the training that was interrupted was only the probe
    return settings.epochs * steps * history[1].seconds / PROBE
