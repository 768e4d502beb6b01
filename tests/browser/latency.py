"""From key to picture: milliseconds until a slider's new picture is on the screen, for every slider of every notebook.

    python tests/browser/latency.py [--json FILE] [NOTEBOOK ...]      (make bench-widgets)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

import lab

sys.path.insert(0, str(lab.ROOT / "notebooks"))

import build  # noqa: E402

PRESSES = 9


def measure(opened, address: str, name: str) -> list[dict]:
    """Return one record a slider: notebook, number of the picture, the slider's name, median and largest milliseconds."""
    notebook, rows = lab.Notebook(opened, address, name), []
    if not notebook.page.locator(lab.PICTURE).count():
        notebook.close()
        return []
    for number, explorer in enumerate(notebook.explorers(), start=1):
        for slider in range(explorer.locator(".noUi-handle").count()):
            taken = [lab.press(explorer, slider, key) for key in ("ArrowLeft", "ArrowRight") * ((PRESSES + 1) // 2)][1:]
            taken = [value for value in taken if not math.isnan(value)]  # at the end of a slider nothing changes
            handle = explorer.locator(".noUi-handle").nth(slider)
            label = handle.locator("xpath=ancestor::*[contains(@class,'widget-slider')][1]").locator(".widget-label").inner_text()
            if not taken:
                raise RuntimeError(f"{name}, picture {number}: the slider {label!r} changes nothing")
            rows.append({"notebook": name, "picture": number, "slider": label, "median_ms": round(statistics.median(taken)), "largest_ms": round(max(taken))})
    notebook.close()
    return rows


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks; default: all")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    names, rows = options.names or build.names(), []
    print("| notebook | picture | slider | ms, median | ms, largest |\n|---|---:|---|---:|---:|")
    for name in names:  # a server each: the kernels of others would take part of the processor
        with tempfile.TemporaryDirectory() as folder, lab.browser() as opened, lab.server(Path(folder) / "lab", [name]) as address:
            for row in measure(opened, address, name):
                rows.append(row)
                print(f"| {row['notebook']} | {row['picture']} | {row['slider']} | {row['median_ms']} | {row['largest_ms']} |", flush=True)
    if options.json:
        content = {"processors": os.cpu_count(), "presses": PRESSES - 1, "sliders": rows}
        Path(options.json).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
