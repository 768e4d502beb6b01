"""A grid on a cluster that is there already, with Dask: the same work, by workers on many machines.

A task is a group of cells, or a part of one, and does what a worker on this machine does (`rcp.experiments.runner.work`). So
results lie in one folder that all workers see, a worker writes each as soon as it is there, and whoever takes over the task
of a worker that died skips what lies there. That a worker sees the folder and the data, with the same versions, is checked
before it gets work: one that is unfit at the start ends the run, one that joins later is left out, and that is told.

On a cluster that SLURM manages, one job holds the scheduler, the workers and the grid, in a folder that all nodes see:

    #!/bin/bash
    #SBATCH --ntasks=16 --cpus-per-task=2 --mem-per-cpu=4G --time=24:00:00
    rm -f scheduler.json
    dask scheduler --scheduler-file scheduler.json --no-dashboard &
    srun dask worker --scheduler-file scheduler.json --nthreads 1 --nworkers 1 --memory-limit 0 --no-dashboard \\
         --local-directory "${TMPDIR:-/tmp}" &
    until [ -s scheduler.json ]; do sleep 1; done
    rcp experiments study --data mvtec="$HOME/mvtec" --scheduler scheduler.json --threads "$SLURM_CPUS_PER_TASK" --out results
    status=$?
    kill $(jobs -p)
    exit $status

A Dask worker measures one cell at a time, whatever its `--nthreads`; `--threads` is what that cell may use. With
`--max-memory`, features beyond it lie in the worker's `--local-directory`, or in `--scratch`, not in the shared folder. Without
`--memory-limit 0` Dask shares out a machine's memory itself and ends a worker that takes more than its part. A job that runs
out of time is handed in again: the grid goes on behind its last cells.

Dask hands tasks over by pickle, so a scheduler must be one that you trust; nothing is kept in that form.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rcp.experiments import blame
from rcp.experiments.blame import Task
from rcp.experiments.results import Results
from rcp.experiments.runner import Machine, said, work
from rcp.experiments.watch import LOOK, Group, Outcome, Watcher, spread
from rcp.files import read_json, write_atomically
from rcp.modelfile import versions

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT = 10  # seconds to wait for the scheduler
JOIN = 60  # seconds to wait for its first worker
ALONE = 600  # seconds to wait for another worker when all have died
LIVES = 4  # workers that may die at a cell until it has failed: on a cluster, there are other reasons to die
SHARED = 10  # seconds until a file that one machine wrote must be seen by the others: network folders are looked at anew
_ALONE = threading.Lock()  # threads of torch, and its random numbers for weights, are the process's: a group at a time
AWAY = "the scheduler went away: what was measured is kept, and the same command goes on"


class ClusterError(OSError):
    """A cluster that cannot be used; the message says what is wrong and what to do."""


def run_on_cluster(
    groups: list[Group],
    folder: str | Path,
    address: str,
    *,
    machine: Machine = Machine(),
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Measure what is missing of a grid on a Dask cluster.

    Args:
        groups: from `rcp.experiments.runner.plan`.
        folder: where results lie; every worker must see it under the same path.
        address: of the scheduler, "tcp://host:8786", or the scheduler file that it wrote.
        machine: how each worker computes.
        say: receives a line a cell, with the time left.

    Returns:
        What is done and what failed. A cell whose workers die again and again (`LIVES` of them, or as many as Dask's
        setting allowed-failures says, if that is fewer) has failed; the rest goes on.

    Raises:
        ClusterError: if there is no such cluster, it has other versions or does not see the files, or it went away; what was
            measured is kept.
        KeyboardInterrupt: handed on after the tasks were taken back; a worker ends behind the cell that it is at.
    """
    folder = Path(folder).absolute()
    results = Results(folder)
    results.prepare()
    with _client(address) as client:
        crew = _Crew(client, folder, groups)
        crew.first()
        with Watcher(groups, results, say) as watcher:
            _run(crew, watcher, machine)
        return watcher.outcome()


@contextlib.contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        import distributed
    except ImportError as error:
        raise ClusterError('--scheduler needs Dask, which is not installed: pip install "rcp[cluster]"') from error

    class Careful(distributed.Client):
        """Closed at once if it does not get through: the garbage collector would do so in the midst of something, and hang."""

        def start(self, **settings: object) -> None:
            try:
                super().start(**settings)
            except BaseException:
                self.close()
                raise

    where = address
    if Path(address).is_file():
        found = read_json(address)
        where = found.get("address") if isinstance(found, dict) else None
    if not isinstance(where, str) or "://" not in where:
        raise ClusterError(
            f"{address} is neither an address like tcp://host:8786 nor a file that `dask scheduler --scheduler-file` wrote"
        )
    try:
        client = Careful(where, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {where}: is it running, and of the same version?") from error
    with client:
        yield client


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """That the scheduler does not answer is said in our words."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, ClosedClientError) as error:  # connections end with an OSError
        raise ClusterError(AWAY) from error


class _Crew:
    """The workers of a cluster: who is there, and who can do the work."""

    def __init__(self, client: Client, folder: Path, groups: list[Group]):
        weights = {one.weights for group in groups for cell in group.cells for one in cell.features if one.weights}
        self.client, self.folder = client, folder
        self.paths = sorted({str(group.root) for group in groups if group.root} | {str(path) for path in weights})
        self.checked: dict[str, str | None] = {}  # address → what makes a worker unfit

    def there(self) -> set[str]:
        """The addresses of all, asked anew; a worker that is started again has another one."""
        with _asking():
            return set(self.client.nthreads())

    def first(self) -> None:
        """Wait for workers; those that are there at the start must all be fit."""
        try:
            self.client.wait_for_workers(1, timeout=JOIN)
        except TimeoutError as error:
            raise ClusterError(f"the scheduler has had no worker for {JOIN} s: start some with `dask worker`") from error
        self.fit(self.there())
        for reason in filter(None, self.checked.values()):
            raise ClusterError(reason)

    def fit(self, there: set[str]) -> set[str]:
        """Those of some workers that can do the work; newcomers are looked at first."""
        if new := sorted(there - set(self.checked)):
            self._look_at(new)
        return {worker for worker in there if self.checked.get(worker, "not yet") is None}

    def _look_at(self, workers: list[str]) -> None:
        name = self.folder / f".seen-{uuid.uuid4().hex}"
        token = write_atomically(name, lambda path: path.write_text("rcp", encoding="utf-8"))
        try:
            with _asking():
                answers = self.client.run(
                    _look_around, str(token), self.paths, SHARED, workers=workers, on_error="return"
                )
        finally:
            token.unlink()
        for worker, answer in answers.items():
            if not isinstance(answer, OSError):  # that is a connection: it has died meanwhile, or is asked again
                self.checked[worker] = self._unfit(worker, answer, str(token))

    def _unfit(self, worker: str, answer: tuple[dict, list[str]] | Exception, token: str) -> str | None:
        if isinstance(answer, Exception):
            return f"worker {worker} cannot run rcp ({said(answer)}): install the same version of it there"
        (theirs, unseen), ours = answer, _versions()
        differs = [f"{name} {theirs.get(name)} instead of {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
        if differs:
            return f"worker {worker} has {', '.join(differs)}: a grid's numbers must come from one installation (constraints.txt)"
        if unseen:
            what = f"the folder of the results, {self.folder}," if unseen[0] == token else unseen[0]
            return f"worker {worker} does not see {what}: it must lie on a disk that all machines share"
        return None


def _versions() -> dict[str, str]:
    import distributed

    return versions() | {"distributed": distributed.__version__}


def _look_around(token: str, paths: list[str], patience: float) -> tuple[dict[str, str], list[str]]:
    """On a worker: its versions, and which of these files and folders are not there."""
    until = time.monotonic() + patience
    while not os.path.exists(token) and time.monotonic() < until:  # never an error, unlike Path.exists
        time.sleep(0.1)
    return _versions(), [path for path in (token, *paths) if not os.path.exists(path)]


def _run(crew: _Crew, watcher: Watcher, machine: Machine) -> None:
    """Keep every worker that is fit busy until nothing is left.

    A task is for one worker, and a worker has one task: so an unfit one gets none, and of one that dies it is known with what
    in hand.
    """
    client, there = crew.client, crew.there()
    queue = [Task(group) for group in spread(watcher.open_groups(), len(crew.fit(there)))]
    waiting: dict[Future, tuple[Task, str]] = {}
    alone = time.monotonic()
    try:
        while queue or waiting:
            fit = crew.fit(there)
            for worker in sorted(there - fit):
                if reason := crew.checked.get(worker):
                    watcher.note(f"left out: {reason}")
            if fit:
                alone = time.monotonic()
            elif time.monotonic() - alone < ALONE:
                watcher.note("the cluster has lost all its workers: waiting for others")
            else:
                raise ClusterError(f"the cluster has had no worker for {ALONE} s: what was measured is kept, and the same "
                                   "command goes on")
            for worker in sorted(fit - {worker for _, worker in waiting.values()})[: len(queue)]:
                task = queue.pop(0)
                with _asking():
                    future = client.submit(_measure, task.group, str(crew.folder), machine, workers=[worker], pure=False)
                waiting[future] = task, worker
            time.sleep(LOOK)
            there = crew.there()
            watcher.look()
            for future, (task, worker) in list(waiting.items()):
                if future.cancelled():
                    raise ClusterError(AWAY)
                if future.status == "error":
                    queue += _after(watcher, task, future.exception())
                elif not future.done():
                    if worker in there:
                        continue
                    future.cancel()
                    error = f"WorkerDied: workers of the cluster die when they measure this; the last was {worker}"
                    queue += blame.died(watcher, task, error, lives=LIVES)
                del waiting[future]
        _settle(watcher)
    finally:
        if waiting and client.status == "running":
            client.cancel(list(waiting))


def _after(watcher: Watcher, task: Task, error: BaseException) -> list[Task]:
    """Record what a task ended with, where it belongs; return what is left to do."""
    import distributed

    if isinstance(error, distributed.KilledWorker):  # Dask has given up before us
        return blame.died(watcher, task, said(error), lives=1)
    blame.failed(watcher, task, said(error))
    return []


def _measure(group: Group, folder: str, machine: Machine) -> int:
    """On a worker: measure a group, as long as the client wants it."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":  # the client took it back, or has gone itself
            raise ClusterError("the run that this task belongs to has ended")

    if machine.scratch is None:
        machine = replace(machine, scratch=worker.local_directory)
    with _ALONE:
        return work(group, folder, machine, wanted)


def _settle(watcher: Watcher) -> None:
    """Wait for results that workers have written and a network folder does not show yet."""
    until = time.monotonic() + SHARED
    while any(watcher.pending(group).cells for group in watcher.groups) and time.monotonic() < until:
        time.sleep(LOOK)
        watcher.results.prepare()  # a write of our own has the folder looked at anew
        watcher.look()
