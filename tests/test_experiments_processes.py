"""Workers side by side on this machine, and runs that end early: nothing is lost, nobody is blamed without reason."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from small_grid import METHODS, TRAINING, dataset, found, grid, toml

from rcp.cli import main
from rcp.experiments import Data, Machine, Results, blame, plan, processes, read_grid, run_grid, runner
from rcp.experiments.blame import Task
from rcp.experiments.watch import Watcher
from rcp.files import write_json

ONE = Machine("cpu", 1)
RESULT = {"schema": 1, "metrics": {"image_auroc": 1.0}, "seconds": 1.0}


@pytest.fixture(scope="module")
def root(category, tmp_path_factory) -> Path:
    return dataset(category, tmp_path_factory.mktemp("painted") / "data")


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    """The small grid, measured without any incident: folder and groups."""
    folder = tmp_path_factory.mktemp("reference")
    groups = plan(grid(), {"painted": root}, folder)
    assert run_grid(groups, folder, machine=ONE).complete
    return folder, groups


def names_of(groups) -> list[str]:
    return [name for group in groups for name in group.names]


# The run dies


def command(root: Path, out: Path, path: Path, jobs: int) -> subprocess.Popen:
    options = ["--data", f"painted={root}", "--out", str(out), "--jobs", str(jobs), "--threads", "1", "--device", "cpu"]
    return subprocess.Popen([sys.executable, "-m", "rcp", "experiments", str(path), *options], stderr=subprocess.DEVNULL)


def wait_for(condition, what: str, seconds: float = 300):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return value


def gone(process: psutil.Process) -> bool:
    """Whether it does nothing any more; who reaps it, and when, is the system's business."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_goes_on_to_the_same_numbers(reference, root, tmp_path, jobs):
    folder, groups = reference
    path, out = toml(tmp_path / "g.toml"), tmp_path / "out"
    assert names_of(plan(read_grid(path), {"painted": root}, out)) == names_of(groups)
    process = command(root, out, path, jobs)
    wait_for(lambda: process.poll() is not None or list(out.glob("[0-9a-f]*.json")), "a first result")
    time.sleep(random.random() / 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_for(lambda: all(map(gone, workers)), "no orphan goes on", 30)
    there = {file: file.stat().st_mtime_ns for file in out.glob("[0-9a-f]*.json")}
    assert 0 < len(there) and all(json.loads(file.read_text(encoding="utf-8"))["metrics"] for file in there)
    outcome = run_grid(groups, out, machine=ONE)
    assert outcome.complete and all(file.stat().st_mtime_ns == written for file, written in there.items())  # nothing twice
    assert found(out, names_of(groups)) == found(folder, names_of(groups))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interruption_ends_the_workers_at_once(root, tmp_path, capfd):
    groups = plan(grid(training=TRAINING | {"epochs": 2000}), {"painted": root}, tmp_path)
    told = []

    def interrupt(line):  # as a terminal does, which tells the workers, too, whatever they are at
        workers = multiprocessing.active_children()
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.5)
        told.extend(worker.is_alive() for worker in workers)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(groups, tmp_path, machine=ONE, jobs=2, say=interrupt)
    assert told == [True, True] and not multiprocessing.active_children()
    assert 0 < len(list(tmp_path.glob("[0-9a-f]*.json"))) < 8 and not list(tmp_path.glob("*.failed.json"))
    assert "Traceback" not in capfd.readouterr().err


ALONE = """
import multiprocessing, signal, sys
from rcp.experiments import processes

def serve(run, tasks, do):
    tasks.recv()
    tasks.send(signal.pthread_sigmask(signal.SIG_BLOCK, []))  # before it has done anything about signals itself

if __name__ == "__main__":
    processes._serve = serve
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    for which in range(2):
        worker = processes._Worker(context, here, print)
        worker.take(processes.Task(None))
        assert worker.process.is_alive() and worker.pipe.poll(60)
        assert signal.SIGINT in worker.answer(), f"worker {which} hears Ctrl-C while it starts"
        worker.pipe.close()
        worker.process.join()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "the run itself has gone deaf"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_no_worker_hears_of_an_interruption_from_its_first_line_on(tmp_path):
    """In a process of its own: the first worker of a process is started beside multiprocessing's resource tracker."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


# A worker dies


def deadly_work(group, folder, machine):
    """In a worker: as `runner.work`, but some cells kill the process that measures them, and some cannot be recorded."""
    measure = runner.measure

    def deadly(cell, material):
        if cell.method == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(cell, material)

    runner.measure = deadly
    if group.cells[0].method == "odd":
        raise AssertionError("nobody catches this")
    return runner.work(group, folder, machine)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_cell_that_kills_its_worker_is_recorded_and_the_rest_goes_on(reference, root, tmp_path, monkeypatch, capsys):
    methods = "".join(
        f'[[methods]]\nname = "{name}"\ndetector = "patchcore"\nbank = {{ neighbours = {number} }}\n'
        for name, number in (("PatchCore", 9), ("odd", 5), ("deadly", 4))
    ) + "seeds = [0]\n"  # fmt: skip
    data = '[[data]]\nname = "painted"\ncategories = ["thing"]\n'
    path, out = toml(tmp_path / "g.toml", methods, data=data), tmp_path / "out"
    (group,) = plan(read_grid(path), {"painted": root}, out)
    parts = [group.only({name}) for name in reversed(group.names)]  # the deadly one first, while others are in flight
    assert [part.cells[0].method for part in parts] == ["deadly", "odd", "odd", "PatchCore", "PatchCore"]
    monkeypatch.setattr(processes, "spread", lambda groups, jobs: parts)
    monkeypatch.setattr(runner, "work", deadly_work)
    deaths, died = [], blame.died
    monkeypatch.setattr(blame, "died", lambda *given, **more: deaths.append(given[2]) or died(*given, **more))
    options = ["--data", f"painted={root}", "--out", str(out), "--device", "cpu", "--threads", "1", "--jobs", "2"]
    assert main(["experiments", str(path), *options]) == 3
    deadly, *odd = (part.names[0] for part in parts[:3])
    good = [part.names[0] for part in parts[3:]]
    files = {f"{name}.json" for name in good} | {f"{name}.failed.json" for name in (deadly, *odd)}
    assert {path.name for path in out.iterdir()} == files and found(out, good) == found(reference[0], good)
    assert Results(out).error(deadly).startswith("WorkerDied: the worker's process was killed (SIGKILL): if memory ran out")
    assert {Results(out).error(name) for name in odd} == {"AssertionError: nobody catches this"}
    told, err = capsys.readouterr()
    assert "2 results in" in told and err.count("FAILED: WorkerDied") == 1 and "[5/5]" in err
    assert len(deaths) == 2  # it was tried again


@pytest.mark.skipif(sys.platform == "win32", reason="file descriptors")
def test_a_worker_that_ends_is_heard_of_even_if_its_pipe_stays_open(monkeypatch):
    """As on Windows, where a handle of one that dies at its start stays with the run."""
    monkeypatch.setattr(processes, "_serve", print)  # a process that says something and ends
    context, kept = multiprocessing.get_context("spawn"), []

    def pipe():
        ours, theirs = context.Pipe()
        kept.append(os.dup(theirs.fileno()))
        return ours, theirs

    here, there = context.Pipe(duplex=False)
    with here, there:
        worker = processes._Worker(SimpleNamespace(Pipe=pipe, Process=context.Process), here, print)
        assert multiprocessing.connection.wait(worker.ears, timeout=60) == [worker.process.sentinel]
        with pytest.raises(ChildProcessError, match="ended with status 0"):
            worker.answer()
    os.close(kept[0])


def test_workers_that_die_before_they_begin_are_no_fault_of_a_cell(root, tmp_path, monkeypatch):
    groups = plan(grid(METHODS[:1], seeds=(0,)), {"painted": root}, tmp_path)
    monkeypatch.setattr(processes, "_serve", print)  # a process that says something and ends
    with Watcher(groups, Results(tmp_path)) as watcher, pytest.raises(OSError, match="die before they have begun .* status 0"):
        processes.run_processes(watcher, print, 2)
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [0, -1])
def test_there_is_at_least_one_job(tmp_path, jobs):
    with pytest.raises(ValueError, match=f"jobs must be at least 1, got {jobs}"):
        run_grid([], tmp_path, jobs=jobs)


# Who is blamed


class OnlyTheFirst:
    """Stands for workers of which the first does its work, but not before the others have died at their start."""

    made: list[OnlyTheFirst]
    folder: Path

    def __init__(self, *given):
        self.made.append(self)
        self.task, self.begun, self.good = None, False, len(self.made) == 1
        self.pipe, self.theirs = multiprocessing.Pipe()
        self.ears, self.process = (self.pipe,), SimpleNamespace(kill=lambda: None, join=lambda: None)
        if not self.good:
            self.theirs.close()
        if len(self.made) == 1 + processes.STARTS:
            self.made[0].finish()

    def take(self, task):
        self.task = task
        if self.good:
            self.theirs.send(processes.BEGUN)
            if len(self.made) > processes.STARTS:
                self.finish()

    def finish(self):
        for name in self.task.group.names:
            done(Results(self.folder), name)
        self.theirs.send(None)

    def answer(self):
        if not self.good:
            raise ChildProcessError("the worker's process ended with status 1")
        said = self.pipe.recv()
        self.begun = said == processes.BEGUN
        self.task = self.task if self.begun else None
        return said


def test_workers_that_die_at_their_start_do_not_end_those_that_work(root, tmp_path, monkeypatch):
    data = (Data("painted", ("thing",)),)
    groups = plan(grid(METHODS[:1], seeds=tuple(range(4)), data=data), {"painted": root}, tmp_path)
    monkeypatch.setattr(OnlyTheFirst, "made", [], raising=False)
    monkeypatch.setattr(OnlyTheFirst, "folder", tmp_path, raising=False)
    monkeypatch.setattr(processes, "_Worker", OnlyTheFirst)
    with Watcher(groups, Results(tmp_path)) as watcher:
        processes.run_processes(watcher, print, 2)
    assert watcher.outcome().complete and len(OnlyTheFirst.made) > processes.STARTS


@pytest.fixture
def six(root, tmp_path):
    """Six cells that share features, the results' folder, and what happens when a worker dies there."""
    data = (Data("painted", ("thing",)),)
    (group,) = plan(grid(METHODS[:1], seeds=tuple(range(6)), data=data), {"painted": root}, tmp_path)
    results = Results(tmp_path)

    def died(watcher, task, **settings):
        before = results.failed(group.names)
        rest = blame.died(watcher, task, "WorkerDied: so", **{"lives": 1, **settings})
        return sorted(results.failed(group.names) - before, key=group.names.index), rest

    return group, results, died


def done(results: Results, name: str) -> None:
    write_json(results.path(name), RESULT)


def test_the_cell_in_flight_is_blamed_and_the_others_are_tried(six):
    group, results, died = six
    names = group.names
    with Watcher([group], results) as watcher:
        done(results, names[0])
        results.write_failure(names[1], group.cells[1], {}, "of its own", "")
        wrong, (rest,) = died(watcher, Task(group))
        assert wrong == [names[2]] and rest.group.names == names[:2:-1]  # the others, from the other end
        done(results, names[5])
        wrong, (rest,) = died(watcher, rest)
        assert wrong == [names[4]] and rest.group.names == (names[3],)  # something was done, so again one alone
        assert died(watcher, rest) == ([names[3]], [])
        assert results.error(names[1]) == "of its own" and results.error(names[2]) == "WorkerDied: so"
        assert died(watcher, Task(group)) == ([], [])  # all is over


def test_two_deaths_with_nothing_done_are_the_fault_of_all_of_them(six):
    group, results, died = six
    with Watcher([group], results) as watcher:
        wrong, (rest,) = died(watcher, Task(group))
        assert wrong == [group.names[0]] and len(rest.group.cells) == 5
        assert died(watcher, rest) == (list(group.names[1:]), [])


def test_where_workers_have_other_reasons_to_die_a_cell_has_several_lives(six):
    group, results, died = six
    names = group.names
    with Watcher([group], results) as watcher:
        wrong, (task,) = died(watcher, Task(group), lives=3)
        assert wrong == [] and task.group == group and task.deaths == 1
        wrong, (task,) = died(watcher, task, lives=3)
        assert wrong == [] and task.deaths == 2
        done(results, names[0])
        wrong, (task,) = died(watcher, task, lives=3)
        assert wrong == [] and task.group.names == names[1:] and task.deaths == 1  # at another cell
        wrong, (task,) = died(watcher, task, lives=3)
        wrong, (task,) = died(watcher, task, lives=3)
        assert wrong == [names[1]] and task.group.names == names[:1:-1] and task.deaths == 0
        for _ in range(2):
            wrong, (task,) = died(watcher, task, lives=3)
            assert wrong == []
        assert died(watcher, task, lives=3) == (sorted(names[2:], key=names.index), [])


def test_an_error_that_is_no_death_holds_for_all_that_is_left(six):
    group, results, _ = six
    with Watcher([group], results) as watcher:
        done(results, group.names[0])
        blame.failed(watcher, Task(group), "OSError: disk", "line one\nline two")
        assert watcher.outcome().failed == sorted(group.names[1:]) and results.error(group.names[5]) == "OSError: disk"
    record = json.loads((results.folder / f"{group.names[1]}.failed.json").read_text(encoding="utf-8"))
    assert record["trace"] == ["line one", "line two"] and record["seed"] == 1
