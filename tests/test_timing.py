"""Seconds and memory of this process: what no file stands behind, and its peak."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from rcp.store import MemoryLimit
from rcp.timing import MemoryWatch, Stopwatch, anonymous_bytes, peak_rss_bytes

MB = 2**20
LARGE = 160 * MB


@pytest.fixture
def touched(fresh):
    """An array of LARGE bytes, every page of which was written to."""

    def make() -> np.ndarray:
        array = fresh(LARGE)
        array.fill(1)
        return array

    return make


def test_seconds_of_a_stage_are_added_up_even_if_it_fails():
    watch = Stopwatch()
    with watch("a"):
        time.sleep(0.01)
    first = watch.seconds["a"]
    with pytest.raises(KeyError), watch("a"):
        raise KeyError
    with watch("b"):
        pass
    assert 0.01 <= first < watch.seconds["a"] and set(watch.seconds) == {"a", "b"}


def test_the_memory_without_a_file_grows_with_a_touched_array_and_falls_when_it_goes(touched):
    before = anonymous_bytes()
    array = touched()
    during = anonymous_bytes()
    del array
    assert 0.9 * LARGE < during - before < 1.2 * LARGE
    assert anonymous_bytes() - before < 0.2 * LARGE


def test_on_linux_it_is_what_the_kernel_calls_anonymous_in_bytes(monkeypatch):
    status = "VmRSS:\t  900 kB\nRssAnon:\t  500 kB\nRssFile:\t  300 kB\nRssShmem:\t  100 kB\n"
    monkeypatch.setattr("rcp.timing.Path.exists", lambda path: True)
    monkeypatch.setattr("rcp.timing.Path.read_text", lambda path: status)
    assert anonymous_bytes() == 500 * 1024


def test_a_kernel_that_does_not_tell_is_asked_in_another_way(monkeypatch):
    monkeypatch.setattr("rcp.timing.Path.exists", lambda path: True)
    monkeypatch.setattr("rcp.timing.Path.read_text", lambda path: "VmRSS:\t  900 kB\n")
    monkeypatch.setattr("rcp.timing.psutil.Process", lambda: SimpleNamespace(memory_full_info=lambda: SimpleNamespace(uss=77)))
    assert anonymous_bytes() == 77


def test_the_memory_without_a_file_does_not_grow_with_a_touched_mapped_file(tmp_path):
    store = MemoryLimit(1, tmp_path).empty((96 * MB,), torch.uint8)
    before = anonymous_bytes()
    store.values.fill_(1)
    assert anonymous_bytes() - before < 24 * MB


def test_the_memory_without_a_file_is_part_of_the_resident_memory():
    own = anonymous_bytes()
    assert 20 * MB < own < 1.1 * psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < 1.1 * peak_rss_bytes()


def test_where_there_is_no_proc_it_is_the_memory_that_no_other_process_shares(monkeypatch, touched):
    monkeypatch.setattr("rcp.timing.Path.exists", lambda path: False)
    before = anonymous_bytes()
    array = touched()
    assert 0.9 * len(array) < anonymous_bytes() - before < 1.2 * LARGE
    assert before < 1.1 * psutil.Process().memory_info().rss


def test_the_watch_sees_an_array_that_is_gone_before_the_end(touched):
    before, deadline = anonymous_bytes(), time.monotonic() + 10
    with MemoryWatch() as watch:
        array = touched()
        held = time.monotonic() + 0.2
        while time.monotonic() < held or (watch.peak_bytes < before + LARGE // 2 and time.monotonic() < deadline):
            time.sleep(0.01)
        del array
    assert 0.9 * LARGE < watch.peak_bytes - before < 1.5 * LARGE
    assert anonymous_bytes() < watch.peak_bytes - LARGE // 2


def test_the_watch_looks_at_the_end_even_if_there_was_no_time_before_and_its_thread_ends(touched):
    array = touched()
    before = set(threading.enumerate())
    with MemoryWatch(interval=60) as watch:
        assert watch.peak_bytes == 0 and set(threading.enumerate()) - before
    assert watch.peak_bytes > len(array) and not set(threading.enumerate()) - before


def test_an_error_goes_through_the_watch_and_ends_its_thread():
    before = set(threading.enumerate())
    with pytest.raises(KeyError), MemoryWatch() as watch:
        raise KeyError
    assert not set(threading.enumerate()) - before and watch.peak_bytes > 0


def test_the_watch_keeps_the_largest_of_its_looks(monkeypatch):
    values = iter([5, 90, 20])
    monkeypatch.setattr("rcp.timing.anonymous_bytes", lambda: next(values, 7))
    with MemoryWatch(interval=0.001) as watch:
        deadline = time.monotonic() + 10
        while watch.peak_bytes < 90 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert watch.peak_bytes == 90
