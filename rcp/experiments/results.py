"""Result files: one JSON a cell, named after what decided it, whole or not there.

The name is a hash of settings, data and weights. So a result is found again whatever the grid that asks for it is called,
and none is found once anything that matters has changed. A cell that failed leaves `<address>.failed.json` and is tried
again by the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rcp.data import Category
from rcp.experiments.grid import Cell
from rcp.files import read_json, write_atomically, write_json
from rcp.modelfile import versions

SCHEMA = 1
FAILED = ".failed.json"
STALE = 3600  # seconds after which a file that is still being written is one of a killed writer


def address(cell: Cell, dataset: dict[str, Any], weights: Iterable[str]) -> str:
    """Return the name of a cell's result: 20 hexadecimal digits.

    Args:
        cell: its settings count, its names do not.
        dataset: from `fingerprints`.
        weights: the hashes of the backbones' tensors.
    """
    decides = {"schema": SCHEMA, "settings": cell.settings(), "dataset": dataset, "weights": list(weights)}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]


def fingerprints(category: Category) -> dict[str, Any]:
    """Return which images, masks and labels a category has, by hash, and how many."""
    return {
        split.name: {"counts": split.counts(), "fingerprint": split.fingerprint()}
        for split in (category.train, category.test)
    }


class Results:
    """The result files of a folder."""

    def __init__(self, folder: str | Path):
        """Take the folder; it is made when the first result is written."""
        self.folder = Path(folder)

    def prepare(self) -> None:
        """Make the folder, see that it can be written into, and take away what killed writers left half-written in it.

        Raises:
            OSError: if results could not be kept there: found before the work, not after it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise OSError(f"results cannot be written into {self.folder} ({error.strerror}): name another folder") from error
        for path in self.folder.glob(".*.json.*.json"):  # from `write_atomically`, which takes milliseconds
            with contextlib.suppress(FileNotFoundError):  # another run may be tidying, too
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()

    def path(self, name: str) -> Path:
        """Return where the result of this address lies, or would lie."""
        return self.folder / f"{name}.json"

    def done(self, names: Iterable[str]) -> set[str]:
        """Return those of some addresses that have a result."""
        there = self._files()
        return {name for name in names if f"{name}.json" in there}

    def failed(self, names: Iterable[str]) -> set[str]:
        """Return those of some addresses whose last try failed."""
        there = self._files()
        return {name for name in names if f"{name}{FAILED}" in there}

    def _files(self) -> set[str]:
        return set(os.listdir(self.folder)) if self.folder.is_dir() else set()

    def read(self, name: str) -> dict[str, Any]:
        """Return a result; a ValueError names the file if it is damaged or of another schema."""
        path, advice = self.path(name), "delete it, and it is measured anew"
        try:
            record = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}: {advice}") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA or not {"metrics", "seconds"} <= set(record):
            raise ValueError(f"{path} is no result of schema {SCHEMA}: {advice}")
        return record

    def failure(self, name: str) -> int:
        """Return a number that is another one after every failure of a cell whose last try failed."""
        return (self.folder / f"{name}{FAILED}").stat().st_mtime_ns  # another machine's clock, perhaps: only compare for equality

    def error(self, name: str) -> str:
        """Return what made a cell fail, in one line."""
        path = self.folder / f"{name}{FAILED}"
        record = read_json(path)
        if not isinstance(record, dict) or not isinstance(record.get("error"), str):
            raise ValueError(f"{path} does not tell an error: delete it")
        return (record["error"].splitlines() or ["?"])[0]

    def write(self, name: str, cell: Cell, dataset: dict[str, Any], backbones: list[dict], found: dict[str, Any],
              device: str) -> Path:
        """Write a cell's result, whole or not at all."""
        path = write_json(self.path(name), self._head(name, cell, dataset) | {
            "backbones": backbones, "device": device, "threads": torch.get_num_threads(), "versions": versions(),
        } | found)  # fmt: skip
        (self.folder / f"{name}{FAILED}").unlink(missing_ok=True)
        return path

    def write_failure(self, name: str, cell: Cell, dataset: dict[str, Any], error: str, trace: str) -> Path:
        """Write why a cell has no result."""
        return write_json(self.folder / f"{name}{FAILED}", self._head(name, cell, dataset) | {
            "error": error, "trace": trace.splitlines(), "versions": versions(),
        })  # fmt: skip

    @staticmethod
    def _head(name: str, cell: Cell, dataset: dict[str, Any]) -> dict[str, Any]:
        return {"schema": SCHEMA, "address": name, **cell.names(), "settings": cell.settings(), "dataset": dataset}


def write_collection(path: str | Path, content: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write many results as one JSON file, a line a cell, for a repository: small, and its changes can be read."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for row in rows]
    head = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)[:-2]
    text = head + ',\n "rows": [\n' + ",\n".join(lines) + "\n]}\n"
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
