"""What will it cost? Rows, bytes and seconds, said before the work begins.

The seconds come from short probes on this machine, with this network and these shapes; the result file keeps them beside
the seconds that the work really took.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from rcp.coreset import coreset_size
from rcp.data import Split
from rcp.detectors import BankDetector, Detector, PixelDetector, ReConPatch
from rcp.detectors.pixel import TrainedDetector
from rcp.features import STORED, PatchExtractor
from rcp.head import train_head
from rcp.images import Batch, stream
from rcp.pixels import Pixels, load_pixels
from rcp.timing import Stopwatch

# Seconds of the coreset: CORESET · N · M^0.6 at 175 GFLOP/s, fitted to the curves of `rcp bench growth`; these predict
# 0.42 s for 163,856 rows at 1 %, and 16 s for 1.6 million.
CORESET, POWER, RATE = 3e-8, 0.6, 175e9
PROBE = 4  # images and training steps that are timed
T = TypeVar("T")


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


@dataclass(frozen=True)
class SystemEstimate:
    """A prediction for a system that looks at images.

    Attributes:
        images: training images.
        pixel_bytes: of all of them, decoded.
        memory_bytes: of what the fitted detector holds.
        mapped: whether the pixels will lie in a file, as the detector's limit leaves no room for them in memory.
        steps: of its training, 0 for a system that does not train.
        seconds: by stage: images, training, scoring.
    """

    images: int
    pixel_bytes: int
    memory_bytes: int
    mapped: bool
    steps: int
    seconds: dict[str, float]

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items() if seconds >= 0.5)
        return (
            f"{self.images} images, {size(self.pixel_bytes)} decoded{' in a file' if self.mapped else ''}"
            f"{f', {self.steps:,} steps' if self.steps else ''}; the detector will hold {size(self.memory_bytes)}; "
            f"about {sum(self.seconds.values()):.0f} s" + (f" ({stages})" if stages else "")
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


def estimate(detector: Detector, train: Split, test: Split | None = None) -> Estimate | SystemEstimate:
    """Return what fitting, and scoring a test split, will need.

    Args:
        detector: not fitted yet; its backbone is loaded for the probe.
        train: good images.
        test: images to score afterwards, or None.

    Returns:
        An `Estimate`, or a `SystemEstimate` for the systems that look at images; a probe takes about a second, of systems that
        train some seconds.
    """
    if isinstance(detector, PixelDetector):
        return _of_system(detector, train, test)
    return _of_bank(detector, train, test)


def _of_system(detector: PixelDetector, train: Split, test: Split | None) -> SystemEstimate:
    """A copy of the detector is fitted on a few images, for a few steps."""
    n, options = len(train), detector.options
    steps = sum(options.stages) if isinstance(detector, TrainedDetector) else 0
    some = min(n, options.batch_size + 2 if steps else max(2 * PROBE, detector.fewest + PROBE))
    decoded, pixels = _timed(lambda: _first_pixels(detector, train, some))
    loaded = detector.extractor  # before the copy, so that both share it
    probe = copy.copy(detector)
    probe.extractor = loaded
    probe.stopwatch = Stopwatch()
    if steps:
        probe.options = options.shortened(PROBE)
        fitting, _ = _timed(lambda: probe.fit(pixels))
        rest = _rest(options.stages, probe.options.stages, [record.seconds for record in probe.history])
    else:
        few = replace(pixels, values=pixels.values[: max(detector.fewest, some // 2)])
        first, _ = _timed(lambda: probe.fit(few))
        fitting, _ = _timed(lambda: probe.fit(pixels))
        rest = (n - some) * max(0.0, fitting - first) / max(1, some - len(few.values))
    scoring, _ = _timed(lambda: probe.score(pixels))
    h, w = pixels.values.shape[2:]
    seconds = {
        "images": n * decoded / some, "training": fitting + rest,
        "scoring": len(test) * (scoring + decoded) / some if test is not None else 0.0,
    }  # fmt: skip
    decoded_bytes = n * 3 * h * w
    return SystemEstimate(n, decoded_bytes, detector.state_bytes(n, (h, w)), not detector.limit.fits(decoded_bytes), steps, seconds)


def _rest(whole: Sequence[int], done: Sequence[int], seconds: Sequence[float]) -> float:
    """Seconds of the steps that a probe left out; every step of the probe is a record, those of its stages one after the other."""
    ends = list(itertools.accumulate(done))
    return sum((every - some) * seconds[end - 1] for every, some, end in zip(whole, done, ends, strict=True))


def _first_pixels(detector: PixelDetector, train: Split, count: int) -> Pixels:
    pixels = load_pixels(train.paths[: 2 * count], detector.features.geometry, on_error="skip")  # what is unreadable is the run's to report
    return replace(pixels, values=pixels.values[:count], indices=pixels.indices[:count], sizes=pixels.sizes[:count])


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _of_bank(detector: BankDetector, train: Split, test: Split | None) -> Estimate:
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
