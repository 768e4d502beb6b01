"""Room for large arrays under a bound: in memory as long as they fit, else in a file that is mapped into memory.

A mapped file is read and written like any tensor, but its pages belong to the file: the system takes them back when memory
is short. So features of any number of images can wait on disk while training and coreset read them in blocks, and what the
process cannot give back (its *anonymous* memory) stays below the bound.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from rcp.allocator import give_back
from rcp.timing import anonymous_bytes

WORKING = 640 * 2**20  # what the stages need besides the large arrays: a batch in the network, blocks of distances


@dataclass(frozen=True)
class Store:
    """A tensor, and whether its numbers lie in a file.

    Attributes:
        values: the tensor, not initialised.
        file: the mapping; None in memory.
    """

    values: Tensor
    file: mmap.mmap | None = None

    def release(self) -> None:
        """Let go of the pages of a mapped file; nothing is lost, they are read again when they are needed."""
        if self.file is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows, which does it on its own
            self.file.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class MemoryLimit:
    """A bound that the user sets, and where to go beyond it.

    Attributes:
        max_bytes: most anonymous memory (RssAnon on Linux) that the process is to hold; None: no bound.
        folder: for the files; None: the system's folder for temporary files (on some systems that is memory, too: then
            name one on a disk).
    """

    max_bytes: int | None = None
    folder: str | Path | None = None

    def __post_init__(self):
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive or None, got {self.max_bytes}")

    def fits(self, count: int) -> bool:
        """Return whether this many bytes more, and what the stages need to work, stay below the bound."""
        if self.max_bytes is None or anonymous_bytes() + count + WORKING <= self.max_bytes:
            return True
        give_back()  # what was freed and only kept for the next array is not in use
        return anonymous_bytes() + count + WORKING <= self.max_bytes

    def check(self, memory_bytes: int = 0) -> None:
        """Raise a MemoryError if the process is bound to go above the bound.

        Args:
            memory_bytes: what the detector's memory of normal patches will take: it is always held, never in a file.

        Raises:
            MemoryError: if the process has too much already, with the memory and what the stages need to work.
        """
        if not self.fits(memory_bytes):
            least = (anonymous_bytes() + memory_bytes + WORKING) / 1e9
            raise MemoryError(
                f"a bound of {self.max_bytes / 1e9:.2f} GB leaves no room to work in: the libraries and the network, room for "
                f"blocks, and {memory_bytes / 1e9:.2f} GB for the memory of normal patches take {least:.2f} GB; allow that "
                "much, or take a smaller backbone or coreset"
            )

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Store:
        """Return room for a tensor on the CPU, in memory if it fits below the bound, else in a file.

        Args:
            shape: of the tensor.
            dtype: of its numbers.

        Returns:
            A `Store`.

        Raises:
            OSError: if the disk has no room for the file.
        """
        count = prod(shape) * dtype.itemsize
        if self.fits(count):
            return Store(torch.empty(shape, dtype=dtype))
        file = self._mapping(count)
        return Store(torch.frombuffer(file, dtype=dtype).view(shape), file)

    def _mapping(self, count: int) -> mmap.mmap:
        folder = Path(self.folder or tempfile.gettempdir())
        if shutil.disk_usage(folder).free < count:
            raise OSError(
                f"{folder} has no room for a file of {count / 1e9:.1f} GB: free some, name another folder, or allow more memory"
            )
        with tempfile.TemporaryFile(dir=folder) as file:  # nameless: a killed process leaves nothing behind
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, count)  # a full disk is found here, not by a crash in the middle
            else:
                file.truncate(count)
            return mmap.mmap(file.fileno(), count)  # keeps a handle of its own
