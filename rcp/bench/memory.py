"""Does a fit keep to its bound? 391 images at 480 pixels with a WideResNet-50's shapes, in a process of its own.

1,407,600 patches of 1,536 numbers are 8.6 GB in float32, 4.3 GB in float16. The weights are random: only shapes matter here.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcp.bench.measure import answer_of

if TYPE_CHECKING:
    from rcp.bench import Choice

IMAGES, SIDE, BOUND = 391, 480, 3 * 2**30


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds by stage, and the peaks of anonymous and of all resident memory."""
    with tempfile.TemporaryDirectory(dir=choice.folder) as folder:
        found = answer_of([sys.executable, "-m", "rcp.bench.memory", folder])
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    say(
        f"  {found['patches']:,} patches × {found['width']} in {found['stored']}: {stages}; memory of {found['memory_rows']:,} "
        f"rows\n  anonymous memory at most {found['peak_anonymous_bytes'] / 2**30:.2f} GiB (bound "
        f"{found['max_bytes'] / 2**30:.2f} GiB), resident with file pages at most {found['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    return found


def fit(folder: Path) -> dict[str, Any]:
    """Fit ReConPatch for one epoch under the bound, and return what it took."""
    from rcp import synthetic
    from rcp.data import mvtec
    from rcp.detectors import BankSettings, ReConPatch
    from rcp.features import FeatureSettings
    from rcp.head import TrainSettings
    from rcp.store import MemoryLimit
    from rcp.timing import MemoryWatch, peak_rss_bytes

    paths = [sample.path for name in synthetic.CATEGORIES for sample in mvtec(synthetic.cached(), name).train]
    paths = [paths[i % len(paths)] for i in range(IMAGES)]
    settings = FeatureSettings(
        "wide_resnet50_2", pretrained=False, resize=SIDE, crop=SIDE, precision="bfloat16", stored="float16"
    )
    detector = ReConPatch(
        settings, training=TrainSettings(epochs=1), bank=BankSettings(folds=0), limit=MemoryLimit(BOUND, folder),
        device="cpu",
    )
    with MemoryWatch() as memory:
        detector.fit(paths)
    return {
        "patches": detector.fitted_on["patches"],
        "width": detector.extractor.width,
        "stored": settings.stored,
        "memory_rows": len(detector.memory),
        "covering_radius": detector.fitted_on["covering_radius"],
        "seconds": detector.stopwatch.seconds,
        "max_bytes": BOUND,
        "peak_anonymous_bytes": memory.peak_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
    }


if __name__ == "__main__":
    print(json.dumps(fit(Path(sys.argv[1]))))
