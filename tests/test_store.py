"""Room for large arrays under a bound: in memory while it fits, else in a file that nobody has to clean up."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from types import SimpleNamespace
from typing import IO

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rcp
import rcp.store
from rcp.store import WORKING, MemoryLimit, Store

MB = 2**20
posix = pytest.mark.skipif(os.name != "posix", reason="elsewhere a mapped file has a name until it is let go of")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts pages of files as resident")


@pytest.fixture
def process(monkeypatch):
    """A process whose anonymous memory is what the test says: 1 GB to begin with."""
    has = SimpleNamespace(bytes=10**9)
    monkeypatch.setattr(rcp.store, "anonymous_bytes", lambda: has.bytes)
    return has


@pytest.fixture
def files(monkeypatch) -> list[tuple[str, IO]]:
    """The folders in which temporary files were made, and the files."""
    made, real = [], tempfile.TemporaryFile

    def make(*, dir):
        file = real(dir=dir)
        made.append((str(dir), file))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    return made


# --- in memory or in a file -----------------------------------------------------------------------


def test_without_a_bound_everything_is_in_memory(tmp_path, files):
    store = MemoryLimit(folder=tmp_path).empty((3, 4))
    assert store.file is None and not files and store.values.shape == (3, 4) and store.values.dtype == torch.float32
    store.release()  # nothing to let go of
    assert MemoryLimit().fits(2**60) and MemoryLimit().max_bytes is None
    MemoryLimit().check()


@pytest.mark.parametrize("over", [False, True])
def test_what_fits_to_the_byte_is_in_memory_and_a_byte_less_is_in_a_file(process, files, tmp_path, over):
    limit = MemoryLimit(process.bytes + 400 + WORKING - over, tmp_path)
    assert limit.fits(400) is not over
    store = limit.empty((10, 10))
    assert (store.file is not None) is over and len(files) == over


def test_the_bytes_of_the_type_count_and_so_does_what_the_process_has_by_then(process, tmp_path):
    limit = MemoryLimit(process.bytes + 200 + WORKING, tmp_path)
    dtypes = (torch.float32, torch.float16, torch.uint8)
    assert [limit.empty((10, 10), dtype).file is not None for dtype in dtypes] == [True, False, False]
    process.bytes += 101
    assert limit.empty((10, 10), torch.uint8).file is not None
    process.bytes -= 101
    assert limit.empty((10, 10), torch.uint8).file is None


def test_freed_memory_that_is_only_kept_does_not_count(process, monkeypatch):
    limit = MemoryLimit(process.bytes + WORKING)
    process.bytes += 200
    assert not limit.fits(0)

    def give_back():
        process.bytes -= 150

    monkeypatch.setattr(rcp.store, "give_back", give_back)
    assert not limit.fits(0) and limit.fits(0)  # 150 of the 200 are given back, then 150 more


def test_there_is_room_for_the_stages_to_work_in():
    assert 2**28 <= WORKING <= 2**30


# --- a mapped file --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.integers(0, 10**6),
)  # fmt: skip
def test_values_of_any_type_and_shape_survive_the_release(tmp_path_factory, dtype, shape, seed):
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)
    store = MemoryLimit(1, tmp_path_factory.getbasetemp()).empty(shape, dtype)
    assert store.file is not None and (store.values.shape, store.values.dtype) == (shape, dtype)
    store.values[:] = values
    for _ in range(2):
        store.release()
        assert torch.equal(store.values, values)
    store.values[0] = 0
    store.release()
    assert not store.values[0].any() and torch.equal(store.values[1:], values[1:])


def test_a_mapped_tensor_is_like_any_other(tmp_path):
    store = MemoryLimit(1, tmp_path).empty((6, 5, 4))
    twin = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    store.values.copy_(twin)
    assert store.values.is_contiguous() and store.values.device.type == "cpu"
    assert torch.equal(store.values.flatten(0, 1) @ twin[0].T, twin.flatten(0, 1) @ twin[0].T)
    assert torch.equal(store.values[[4, 1]], twin[[4, 1]]) and torch.equal(store.values.view(2, -1), twin.view(2, -1))


def test_two_files_do_not_share_their_numbers(tmp_path):
    limit = MemoryLimit(1, tmp_path)
    a, b = limit.empty((100,)), limit.empty((100,))
    a.values.fill_(1), b.values.fill_(2)
    a.release(), b.release()
    assert (a.values == 1).all() and (b.values == 2).all()


def test_the_mapping_lives_as_long_as_the_tensor_or_a_view_of_it(tmp_path):
    values = MemoryLimit(1, tmp_path).empty((MB,)).values  # the store itself is gone at once
    values.copy_(torch.arange(MB))
    view = values[-3:]
    del values
    gc.collect()
    others = [MemoryLimit(1, tmp_path).empty((MB,)).values.zero_() for _ in range(3)]
    assert view.tolist() == [MB - 3, MB - 2, MB - 1] and len(others) == 3


@linux
def test_a_release_gives_the_pages_back_and_they_come_again(tmp_path):
    resident = psutil.Process().memory_info
    store = MemoryLimit(1, tmp_path).empty((64 * MB,), torch.uint8)
    store.values.fill_(7)
    before = resident().rss
    store.release()
    assert before - resident().rss > 48 * MB
    assert int(store.values.sum(dtype=torch.int64)) == 7 * 64 * MB


@posix
def test_the_file_lies_in_the_folder_and_has_no_name_there(tmp_path, files):
    (tmp_path / "here").mkdir()
    for folder in (tmp_path / "here", str(tmp_path / "here")):
        store = MemoryLimit(1, folder).empty((50,))
        assert files[-1][0] == str(tmp_path / "here") and list((tmp_path / "here").iterdir()) == []
        store.values.fill_(3)
        assert (store.values == 3).all() and list((tmp_path / "here").iterdir()) == []


@posix
def test_without_a_folder_it_is_the_systems_for_temporary_files(tmp_path, files, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert MemoryLimit(1).empty((50,)).file is not None
    assert files[0][0] == str(tmp_path) and list(tmp_path.iterdir()) == []


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_bound_that_is_no_bound_is_refused(wrong):
    with pytest.raises(ValueError, match=f"max_bytes must be positive or None, got {wrong}"):
        MemoryLimit(wrong)


def test_a_disk_without_room_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch, files):
    asked = []
    monkeypatch.setattr(rcp.store.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=399))
    with pytest.raises(OSError, match=r"has no room for a file of 0.0 GB: .*name another folder.*") as raised:
        MemoryLimit(1, tmp_path).empty((10, 10))
    assert str(tmp_path) in str(raised.value) and [str(path) for path in asked] == [str(tmp_path)]
    assert not files and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(rcp.store.shutil, "disk_usage", lambda path: SimpleNamespace(free=400))
    assert MemoryLimit(1, tmp_path).empty((10, 10)).file is not None


@posix
def test_a_disk_that_fills_up_meanwhile_is_found_at_once_and_leaves_no_file(tmp_path, monkeypatch):
    handles = []

    def full(handle, offset, count):
        handles.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rcp.store.os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        MemoryLimit(1, tmp_path).empty((10, 10))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])  # closed


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        MemoryLimit(1, tmp_path / "nowhere").empty((10,))


def test_the_handle_that_a_file_was_made_with_is_closed(tmp_path, files):
    store = MemoryLimit(1, tmp_path).empty((10,))
    assert files[0][1].closed and store.values.fill_(2).sum() == 20


def test_a_bound_below_what_the_process_has_already_is_one_sentence_with_the_least(process):
    MemoryLimit(process.bytes + WORKING).check()
    with pytest.raises(MemoryError) as raised:
        MemoryLimit(process.bytes + WORKING - 1).check()
    sentence = str(raised.value)
    assert "a bound of 1.67 GB leaves no room to work in" in sentence and "take 1.67 GB; allow that much" in sentence
    with pytest.raises(MemoryError, match=r"a bound of 0.50 GB .* take 1.67 GB"):
        MemoryLimit(5 * 10**8).check()
    least = process.bytes + WORKING + 3 * 10**8
    MemoryLimit(least).check(3 * 10**8)
    with pytest.raises(MemoryError, match=r"and 0.30 GB for the memory of normal patches take 1.97 GB.* or coreset"):
        MemoryLimit(least - 1).check(3 * 10**8)


def test_a_limit_compares_by_value_and_is_part_of_the_package():
    assert rcp.MemoryLimit is MemoryLimit and MemoryLimit(5, "a") == MemoryLimit(5, "a") != MemoryLimit(5, "b")
    with pytest.raises(AttributeError):
        MemoryLimit(5).max_bytes = 6
    with pytest.raises(AttributeError):
        Store(torch.zeros(1)).file = None
