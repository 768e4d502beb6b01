"""What each system costs on one category: seconds to fit, seconds an image, memory, size on disk.

Each runs as `rcp run` does, from files, in a process of its own, one after the other; what is told stands in the run's own result
file. Seconds of the fit have everything in them but the estimate: decoding, features, training, held-out scores. (A teacher of
Uninformed Students is distilled once a machine and kept, and a generalist is trained before the category is met: the first
costs nothing from the second run on, the second is told on its own.)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcp import data, synthetic
from rcp.detectors import SYSTEMS
from rcp.files import read_json

if TYPE_CHECKING:
    from rcp.bench import Choice

DETECTORS = ("patchcore", "reconpatch", *SYSTEMS)
FIT = ("images", "features", "training", "coreset", "calibration")
CATEGORY = "terminal"  # of the embedded data, where none is named


def measure(choice: Choice, say: Callable[[str], None]) -> dict[str, Any]:
    """Return a line a detector: medians, and what every repeat gave."""
    category = choice.category or data.find(synthetic.cached(), CATEGORY)
    say(f"  {category.name}: {len(category.train)} good images, {len(category.test)} test images")
    lines = []
    with tempfile.TemporaryDirectory(dir=choice.folder) as name:
        for kind in DETECTORS:
            runs = [_run(kind, category, Path(name) / f"{kind}-{number}") for number in range(choice.repeats)]
            median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            lines.append({"detector": kind, **median, "runs": runs})
            say(f"  {kind:12} fit {median['fit_seconds']:7.1f} s   {1000 * median['image_seconds']:7.1f} ms an image   peak "
                f"{median['peak_bytes'] / 1e9:5.2f} GB   {median['disk_bytes'] / 1e6:8.2f} MB on disk")  # fmt: skip
    return {"category": category.name, "train": len(category.train), "test": len(category.test), "lines": lines}


def _run(kind: str, category: data.Category, out: Path) -> dict[str, float]:
    """One run in a process of its own, as its result file tells it."""
    command = [sys.executable, "-m", "rcp", "run", "--data", str(category.root.parent), "--category", category.name]
    command += ["--detector", kind, "--device", "cpu", "--no-figures", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rcp run --detector {kind} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else '?'}")
    return costs(out)


def costs(out: Path) -> dict[str, float]:
    """Return what a run has cost.

    Args:
        out: the folder of `rcp run`.
    """
    record = read_json(out / "result.json")
    seconds = record["seconds"]
    return {
        "fit_seconds": sum(seconds.get(stage, 0.0) for stage in FIT),
        "image_seconds": seconds["scoring"] / len(record["images"]),
        "pretraining_seconds": seconds.get("auxiliary features", 0.0) + seconds.get("pretraining", 0.0),
        "peak_bytes": record["peak_anonymous_bytes"] or record["peak_rss_bytes"],
        "disk_bytes": sum(path.stat().st_size for path in (out / "model").rglob("*") if path.is_file()),
    }
