"""A grid on a Dask cluster: two workers, each a process, of which some die on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import dask
import distributed
import pytest
from small_grid import METHODS, TRAINING, dataset, found, grid

from rcp.experiments import Data, Machine, Method, Results, cluster, plan, run_grid
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


def test_a_cell_that_kills_its_workers_is_recorded_and_the_rest_goes_on(workers, root, tmp_path, capsys):
    deadly = Method("deadly", "patchcore", bank={"neighbours": 5})
    groups = plan(grid((METHODS[0], deadly, replace(METHODS[1], name="last")), seeds=(0,)), {"painted": root}, tmp_path)
    groups = groups[:1]
    workers.scheduler.allowed_failures = 0  # Dask's own is 3, and every try takes a new process
    outcome = run_on_cluster(groups, tmp_path, workers.scheduler_address, machine=ONE)
    cells = dict(zip(groups[0].names, groups[0].cells, strict=True))
    assert [cells[name].method for name in outcome.failed] == ["deadly"]
    assert sorted(cells[name].method for name in outcome.done) == ["PatchCore", "last"]
    assert "workers died while running it" in Results(tmp_path).error(outcome.failed[0])


def test_an_interrupted_client_takes_its_tasks_back(workers, root, tmp_path):
    workers.scheduler.allowed_failures = 3
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


def test_the_cell_in_flight_is_blamed_and_the_others_only_if_nothing_else_can_be_the_cause(root, tmp_path, monkeypatch):
    killed = distributed.KilledWorker("a task", None, 3)
    monkeypatch.setattr(distributed.KilledWorker, "__str__", lambda self: "died")
    (group,) = plan(grid(METHODS[:1], seeds=tuple(range(6)), data=(Data("painted", ("thing",)),)), {"painted": root}, tmp_path)
    names, results = group.names, Results(tmp_path)

    def blamed(watcher, task):
        watcher.look()
        before = results.failed(names)
        rest = cluster._blame(watcher, task, killed)
        return sorted(results.failed(names) - before, key=names.index), rest

    with Watcher([group], results) as watcher:
        write_json(tmp_path / f"{names[0]}.json", {"schema": 1, "metrics": {"image_auroc": 1.0}, "seconds": 1.0})
        results.write_failure(names[1], group.cells[1], {}, "of its own", "")
        wrong, (rest,) = blamed(watcher, cluster._Task(group))
        assert wrong == [names[2]] and rest.group.names == names[:2:-1]  # the others, from the other end
        write_json(tmp_path / f"{names[5]}.json", {"schema": 1, "metrics": {"image_auroc": 1.0}, "seconds": 1.0})
        wrong, (rest,) = blamed(watcher, rest)
        assert wrong == [names[4]] and rest.group.names == (names[3],)  # something was done, so again one alone
        assert blamed(watcher, rest) == ([names[3]], [])
        assert results.error(names[1]) == "of its own" and results.error(names[2]) == "KilledWorker: died"
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with Watcher([group], results) as watcher:
        wrong, (rest,) = blamed(watcher, cluster._Task(group))
        assert wrong == [names[0]]
        assert blamed(watcher, rest) == (list(names[1:]), [])  # nothing was done: not the fault of one cell
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with Watcher([group], results) as watcher:
        assert cluster._blame(watcher, cluster._Task(group), OSError("disk")) == []  # no death: it holds for all
        assert watcher.outcome().failed == sorted(names) and results.error(names[5]) == "OSError: disk"


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
    file = write_json(tmp_path / "scheduler.json", {"address": "tcp://127.0.0.1:1"})
    for address in ("tcp://127.0.0.1:1", "tcp://127.0.0.1", str(file)):
        with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1"):
            run_on_cluster(groups, tmp_path / "out", address)
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
