"""Seconds per stage, and the memory that the process has and had."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


# Seconds between two looks at the memory: elsewhere than on Linux the system goes through all pages to count them.
LOOK = 0.02 if sys.platform.startswith("linux") else 0.5


class Stopwatch:
    """Wall seconds by stage; a stage that runs again is added up."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of a with statement under this name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # kilobytes everywhere but on macOS


def anonymous_bytes() -> int:
    """Return the memory of this process that no file stands behind, in bytes: what the system cannot take back."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_full_info().uss)  # what would be free if the process ended: close to it


class MemoryWatch:
    """The peak of the anonymous memory while a with statement runs, looked at now and then by a thread."""

    def __init__(self, interval: float = LOOK):
        """Take the seconds between two looks."""
        self.interval = interval
        self.peak_bytes = 0
        self._stop = threading.Event()

    def __enter__(self) -> MemoryWatch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            self._look()

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, anonymous_bytes())
