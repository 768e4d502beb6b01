"""Freed memory that is kept: asked for where glibc is, and never against the user's own settings."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from rcp import allocator
from rcp.allocator import KEPT, LARGE, give_back, keep_freed_memory
from rcp.timing import anonymous_bytes

NAMES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    for name in (*NAMES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    """What a stand-in of glibc on Linux is told; it takes everything."""
    told = []
    library = SimpleNamespace(mallopt=lambda name, value: told.append((name, value)) or 1)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    return told


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_takes_the_settings():
    assert keep_freed_memory() is True


def test_both_settings_are_those_of_malloc_h(calls):
    assert keep_freed_memory() is True
    assert dict(calls)[-3] == LARGE == 128 * 2**20  # M_MMAP_THRESHOLD
    assert dict(calls)[-1] == KEPT == 256 * 2**20  # M_TRIM_THRESHOLD
    assert set(dict(calls)) == {-3, -1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["131072", ""])
def test_the_users_own_settings_win(calls, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert keep_freed_memory() is False and calls == []


@pytest.mark.parametrize(("tunables", "told"), [("glibc.malloc.trim_threshold=0", False), ("glibc.cpu.x86_ibt=off", True)])
def test_tunables_win_if_they_are_about_malloc(calls, monkeypatch, tunables, told):
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert keep_freed_memory() is told and bool(calls) is told


def test_an_older_library_that_takes_no_large_threshold_is_told_a_smaller_one(calls, monkeypatch):
    library = SimpleNamespace(mallopt=lambda name, value: calls.append((name, value)) or int(value in (2**25, KEPT)))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is True
    assert calls == [(-3, LARGE), (-3, 2**25), (-1, KEPT)]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(calls, monkeypatch, system):
    monkeypatch.setattr(allocator.sys, "platform", system)
    assert keep_freed_memory() is False and calls == []


def test_a_library_without_the_call_is_left_alone(calls, monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


@pytest.mark.parametrize("refused", [-3, -1])
def test_a_library_that_refuses_is_not_said_to_have_agreed(monkeypatch, calls, refused):
    library = SimpleNamespace(mallopt=lambda name, value: int(name != refused))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is False


IMPORT = """
import ctypes, os, sys
told = []
ctypes.CDLL = lambda name: type("Library", (), {"mallopt": lambda name, value: told.append(name) or 1})
sys.platform, sys.modules["torch"] = "linux", None
try:
    import rcp
except ImportError:
    print(sorted(told), os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize("wish", [{}, {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7"}])
def test_the_package_sets_memory_and_threads_before_it_imports_torch_unless_the_user_did(monkeypatch, wish):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    policy, spins = wish.values() or ("PASSIVE", "10000")
    assert done.stdout.split() == ["[-3,", "-1]", policy, spins]


def test_kept_memory_is_given_back_when_asked():
    if not sys.platform.startswith("linux") or not keep_freed_memory():
        pytest.skip("only glibc keeps memory, and only where the user has not chosen")
    many = [torch.ones(2**20) for _ in range(40)]  # 160 MB in arrays that are small enough to be kept
    before = anonymous_bytes()
    del many
    give_back()
    assert before - anonymous_bytes() > 100e6
