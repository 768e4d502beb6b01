"""The means of measuring: two things timed in turn, a fitted exponent, what the machine can do."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rcp.modelfile import versions

FULL = 900  # pixels of a side of MVTec AD's full-size bottle

Work = Callable[[], Any]


def compare(stage: str, yardstick: str, ours: Work, other: Work, repeats: int, per: int = 1) -> dict[str, Any]:
    """Return seconds of both and their ratio, ours over the other's (below 1 where we are faster), measured in turn.

    Args:
        stage, yardstick: names.
        ours, other: what is timed; each runs once before.
        repeats: pairs of measurements.
        per: units of work in one call; seconds are given per unit.
    """
    ours(), other()  # warm
    pairs = [(seconds(ours), seconds(other)) for _ in range(repeats)]
    return line(stage, yardstick, pairs, per)


def line(stage: str, yardstick: str, pairs: Sequence[tuple[float, float]], per: int = 1) -> dict[str, Any]:
    """Return one line of a table from (our, their) seconds."""
    ratios = [a / b for a, b in pairs]
    return {
        "stage": stage,
        "yardstick": yardstick,
        "seconds": statistics.median(a for a, _ in pairs) / per,
        "yardstick_seconds": statistics.median(b for _, b in pairs) / per,
        "ratio": [min(ratios), statistics.median(ratios), max(ratios)],
        "repeats": len(pairs),
    }


def table(lines: Sequence[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Print lines of `compare` as a table."""
    say(f"  {'stage':58} {'seconds':>9}  {'ratio (min–max)':22} yardstick")
    for entry in lines:
        low, middle, high = entry["ratio"]
        spread = f"{middle:.3f} ({low:.3f}–{high:.3f})"
        say(f"  {entry['stage']:58} {entry['seconds']:9.4f}  {spread:22} {entry['yardstick']}")


def seconds(work: Work) -> float:
    """Return the wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def answer_of(words: Sequence[Any], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a program and return its last line of output, read as JSON.

    Args:
        words: the program and its arguments.
        environment: of the program; None: this process'.

    Raises:
        ValueError: if it fails; with its last words, or the signal that ended it.
    """
    words = [str(word) for word in words]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        if done.returncode < 0:
            reason = f"signal {-done.returncode} ended it (9: the system, mostly for want of memory)"
        raise ValueError(f"{' '.join(words)} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return b of values ≈ a · size^b: the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **versions(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [row.split(":")[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def rates(repeats: int) -> dict[str, float]:
    """Return the best of a few measurements of matrix products and of memory copies: what floors are computed from."""
    a = torch.randn(2048, 2048)
    b, big = a.bfloat16(), torch.randn(2**26)
    target = torch.empty_like(big)

    def best(work: Work) -> float:
        work()
        return min(seconds(work) for _ in range(repeats + 1))

    return {
        "float32 products, GFLOP/s": 2 * 2048**3 / 1e9 / best(lambda: a @ a),
        "bfloat16 products, GFLOP/s": 2 * 2048**3 / 1e9 / best(lambda: b @ b),
        "memory copies (read + write), GB/s": 8 * 2**26 / 1e9 / best(lambda: target.copy_(big)),
    }
