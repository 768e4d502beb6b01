"""A grid on a Dask cluster: two workers, each a process, of which some die on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import pytest
from small_grid import METHODS, TRAINING, dataset, found, grid

from rcp.experiments import Data, Machine, Method, Results, cluster, plan, run_grid
from rcp.experiments.blame import Task
from rcp.experiments.cluster import ClusterError, run_on_cluster
from rcp.experiments.watch import Watcher
from rcp.files import write_json

ONE = Machine("cpu", 1)
DEADLY = '''
"""Loaded by every worker: a cell that is called "deadly" kills the process that measures it."""
import os
import signal
from rcp.experiments import runner

if not hasattr(runner, "harmless"):  # workers load this file twice
    runner.harmless = runner.measure


def measure(cell, material):
    if cell.method == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return runner.harmless(cell, material)


runner.measure = measure
'''


@pytest.fixture(scope="module")
def root(category, tmp_path_factory) -> Path:
    return dataset(category, tmp_path_factory.mktemp("painted") / "data")


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two workers of one thread; those that die are replaced."""
    preload = tmp_path_factory.mktemp("preload") / "deadly.py"
    preload.write_text(DEADLY, encoding="utf-8")
    local = str(tmp_path_factory.mktemp("dask"))
    with (
        dask.config.set({"distributed.worker.preload": [str(preload)], "distributed.deploy.lost-worker-timeout": "600s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=local, memory_limit=0, silence_logs=50
        ) as running,
    ):
        yield running


def pids(running) -> list[int]:
    return [worker.pid for worker in running.workers.values() if worker.pid]


def test_a_worker_is_killed_on_the_way_nothing_is_lost_and_the_numbers_are_the_same(workers, root, tmp_path):
    groups = plan(grid(seeds=(0, 1, 2)), {"painted": root}, tmp_path / "cluster")
    here, there = tmp_path / "here", tmp_path / "cluster"
    assert run_grid(groups, here, machine=ONE).complete
    said, killed = [], []

    def say(line):
        said.append(line)
        if len(said) == 2:  # both are in the middle of their cells
            killed.append(pids(workers)[0])
            os.kill(killed[0], signal.SIGKILL)

    outcome = run_on_cluster(groups, there, workers.scheduler_address, machine=ONE, say=say)
    names = [name for group in groups for name in group.names]
    assert killed and outcome.complete and sorted(outcome.done) == sorted(names)
    assert found(there, names) == found(here, names)
    assert {path.name for path in there.glob("[!.]*")} == {f"{name}.json" for name in names}
    assert not list(there.glob(".seen-*")) and said[-1].startswith("[12/12]") and said[-1].endswith("all done")
    again = []
    assert run_on_cluster(groups, there, workers.scheduler_address, machine=ONE, say=again.append).complete
    assert again == ["12 of 12 cells are there already"]


def test_a_cell_that_kills_its_workers_is_recorded_and_the_rest_goes_on(workers, root, tmp_path, monkeypatch):
    deadly = Method("deadly", "patchcore", bank={"neighbours": 5})
    groups = plan(grid((METHODS[0], deadly, replace(METHODS[1], name="last")), seeds=(0,)), {"painted": root}, tmp_path)
    groups = groups[:1]
    monkeypatch.setattr(cluster, "LIVES", 1)  # every try takes a new process
    outcome = run_on_cluster(groups, tmp_path, workers.scheduler_address, machine=ONE)
    cells = dict(zip(groups[0].names, groups[0].cells, strict=True))
    assert [cells[name].method for name in outcome.failed] == ["deadly"]
    assert sorted(cells[name].method for name in outcome.done) == ["PatchCore", "last"]
    assert Results(tmp_path).error(outcome.failed[0]).startswith("WorkerDied: workers of the cluster die when they measure this")


def test_an_interrupted_client_takes_its_tasks_back(workers, root, tmp_path):
    groups = plan(grid(METHODS[1:], seeds=tuple(range(20)), training=TRAINING | {"epochs": 20}), {"painted": root}, tmp_path)
    there: list[int] = []

    def results() -> list[dict]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("[0-9a-f]*.json")]

    def interrupt(line):
        there.append(len(results()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_cluster(groups, tmp_path, workers.scheduler_address, machine=ONE, say=interrupt)
    for _ in range(3):  # long enough for several cells more, if somebody measured them
        time.sleep(1 + 2 * max(record["seconds"] for record in results()))
    assert len(results()) <= there[0] + 4  # the two in flight, and as many begun before the word had come


def test_what_a_task_ends_with_is_a_death_if_dask_says_so(root, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.KilledWorker, "__str__", lambda self: "died")
    (group,) = plan(grid(METHODS[:1], seeds=tuple(range(3)), data=(Data("painted", ("thing",)),)), {"painted": root}, tmp_path)
    names, results = group.names, Results(tmp_path)
    with Watcher([group], results) as watcher:
        (rest,) = cluster._after(watcher, Task(group), distributed.KilledWorker("a task", None, 3))
        assert results.failed(names) == {names[0]} and results.error(names[0]) == "KilledWorker: died"
        assert rest.group.names == names[:0:-1]
        assert cluster._after(watcher, rest, OSError("disk")) == []  # no death: it holds for all
        assert results.failed(names) == set(names) and results.error(names[2]) == "OSError: disk"


def test_a_worker_stops_behind_its_cell_when_nobody_wants_the_task_any_more(monkeypatch):
    class Here:
        """A worker in the middle of a task."""

        state = SimpleNamespace(tasks={"mine": SimpleNamespace(state="executing")})
        local_directory = "/of/the/worker"

        def get_current_task(self):
            return "mine"

    seen = []

    def work(group, folder, machine, wanted):
        seen.append((group, folder, machine.scratch))
        wanted()
        seen.append("a cell")
        change()
        wanted()
        seen.append("another")

    monkeypatch.setattr(distributed, "get_worker", Here)
    monkeypatch.setattr(cluster, "work", work)
    for change in (lambda: Here.state.tasks["mine"].__setattr__("state", "cancelled"), Here.state.tasks.clear):
        Here.state.tasks["mine"] = SimpleNamespace(state="executing")
        with pytest.raises(ClusterError, match="the run that this task belongs to has ended"):
            cluster._measure("a group", "folder", ONE)
        assert seen == [("a group", "folder", "/of/the/worker"), "a cell"]  # features lie on the worker's own disk
        seen.clear()
    Here.state.tasks["mine"], change = SimpleNamespace(state="executing"), lambda: None
    cluster._measure("a group", "folder", replace(ONE, scratch="/said"))
    assert seen == [("a group", "folder", "/said"), "a cell", "another"]


@pytest.fixture
def quick(monkeypatch):
    """Workers that are threads and only pretend to work: who did what, and a bell that the work waits for."""
    done, bell = [], threading.Event()

    def work(group, folder, machine, wanted):
        who = distributed.get_worker().name
        if who == 0 and done:  # goes on when it has been seen what becomes of the newcomer
            bell.wait(10)
            bell.set()  # once is enough
        for name in group.names:
            write_json(Path(folder) / f"{name}.json", {"schema": 1, "metrics": {"image_auroc": 1.0}, "seconds": 1.0})
            done.append(who)
            if who:
                bell.set()

    monkeypatch.setattr(cluster, "work", work)
    monkeypatch.setattr(cluster, "LOOK", 0.05)
    monkeypatch.setattr(cluster, "_ALONE", contextlib.nullcontext())
    monkeypatch.setattr(cluster, "spread", lambda groups, workers: [part for group in groups for part in group.parts(4)])
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", processes=False, silence_logs=50
    ) as brief:
        yield brief, done, bell


def newcomer_is_old(token, paths, patience, dask_worker):
    return cluster._versions() | ({"torch": "1.0"} if dask_worker.name else {}), []


@pytest.mark.parametrize("fit", [True, False])
def test_a_worker_that_joins_late_gets_work_if_it_is_fit_and_is_left_out_if_not(quick, root, tmp_path, monkeypatch, fit):
    brief, done, bell = quick
    groups = plan(grid(METHODS[:1], seeds=tuple(range(8))), {"painted": root}, tmp_path)
    said = []

    def say(line):
        said.append(line)
        if len(said) == 1:
            brief.scale(2)
        if line.startswith("left out"):
            bell.set()

    if not fit:
        monkeypatch.setattr(cluster, "_look_around", newcomer_is_old)
    outcome = run_on_cluster(groups, tmp_path, brief.scheduler_address, machine=ONE, say=say)
    assert outcome.complete
    left_out = [line for line in said if line.startswith("left out: worker ")]
    assert (set(done), len(left_out)) == (({0, 1}, 0) if fit else ({0}, 1))
    assert fit or " has torch 1.0 instead of " in left_out[0]


def test_a_cluster_without_workers_is_not_waited_for_without_end(quick, root, tmp_path, monkeypatch):
    brief, _, bell = quick
    groups = plan(grid(METHODS[:1], seeds=tuple(range(8))), {"painted": root}, tmp_path)
    said = []

    def say(line):
        said.append(line)
        if len(said) == 1:
            brief.scale(0)

    monkeypatch.setattr(cluster, "ALONE", 0.5)
    with pytest.raises(ClusterError, match=r"has had no worker for 0\.5 s: what was measured is kept"):
        run_on_cluster(groups, tmp_path, brief.scheduler_address, machine=ONE, say=say)
    bell.set()
    assert "the cluster has lost all its workers: waiting for others" in said


def test_workers_that_see_other_files_or_have_other_versions_are_found_out_first(workers, root, tmp_path, monkeypatch):
    groups = plan(grid(), {"painted": root}, tmp_path)
    elsewhere = [replace(group, root=str(tmp_path / "absent")) for group in groups]
    with pytest.raises(ClusterError, match="worker tcp.* does not see .*absent: it must lie on a disk that all machines share"):
        run_on_cluster(elsewhere, tmp_path, workers.scheduler_address, machine=ONE)
    theirs = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: theirs | {"torch": "1.0"})
    with pytest.raises(ClusterError, match=r"worker tcp.* has torch .* instead of 1\.0"):
        run_on_cluster(groups, tmp_path, workers.scheduler_address, machine=ONE)
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "SHARED", 0.1)
    monkeypatch.setattr(cluster, "write_atomically", lambda path, write: _forgets(path))
    with pytest.raises(ClusterError, match="does not see the folder of the results"):
        run_on_cluster(groups, tmp_path, workers.scheduler_address, machine=ONE)
    assert not list(tmp_path.glob("*.json"))


class _forgets:
    """A path that only this process believes in."""

    def __init__(self, path):
        self.path = path

    def __str__(self):
        return str(self.path)

    def unlink(self):
        pass


def test_a_scheduler_that_is_not_there_is_told_in_one_sentence(root, tmp_path, monkeypatch, capsys):
    groups = plan(grid(), {"painted": root}, tmp_path)
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    closed, close = [], distributed.Client.close
    monkeypatch.setattr(distributed.Client, "close", lambda self, *a: closed.append(close(self, *a)))
    file = write_json(tmp_path / "scheduler.json", {"address": "tcp://127.0.0.1:1"})
    for address in ("tcp://127.0.0.1:1", "tcp://127.0.0.1", str(file)):
        with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1"):
            run_on_cluster(groups, tmp_path / "out", address)
        assert closed.pop() is None  # not left to the garbage collector
    write_json(file, {"nothing": 1})
    for address in ("somewhere", str(tmp_path / "absent.json"), str(file)):
        with pytest.raises(ClusterError, match="is neither an address like .* nor a file that"):
            run_on_cluster(groups, tmp_path / "out", address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r'not installed: pip install "rcp\[cluster\]"'):
        run_on_cluster(groups, tmp_path / "out", "tcp://127.0.0.1:1")


def test_a_scheduler_without_workers_is_told(root, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "JOIN", 0.5)
    groups = plan(grid(), {"painted": root}, tmp_path)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False) as empty,
        pytest.raises(ClusterError, match=r"has had no worker for 0\.5 s: start some with `dask worker`"),
    ):
        run_on_cluster(groups, tmp_path, empty.scheduler_address)


def test_a_scheduler_that_goes_away_ends_the_run_and_keeps_what_is_there(root, tmp_path):
    groups = plan(grid(seeds=tuple(range(10))), {"painted": root}, tmp_path)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0", processes=False, silence_logs=50) as brief:

        def say(line):
            brief.close()

        with pytest.raises(ClusterError, match="went away: what was measured is kept"):
            run_on_cluster(groups, tmp_path, brief.scheduler_address, machine=ONE, say=say)
    assert list(tmp_path.glob("[0-9a-f]*.json"))
