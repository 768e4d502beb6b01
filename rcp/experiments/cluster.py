"""A grid on a cluster that is there already, with Dask: the same work, by workers on many machines.

A task is a group of cells, or a part of one, and does what a worker on this machine does (`rcp.experiments.runner.work`). So
results lie in one folder that all workers see, a worker writes each as soon as it is there, and whoever takes over the task
of a worker that died skips what lies there. That all see the folder and the data, with the same versions, is checked first.

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

A Dask worker measures one cell at a time, whatever its `--nthreads`; `--threads` is what that cell may use. Without
`--memory-limit 0` Dask shares out a machine's memory itself and ends a worker that takes more than its part. A job that runs
out of time is handed in again: the grid goes on behind its last cells.

Dask hands tasks over by pickle, so a scheduler must be one that you trust; nothing is kept in that form.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rcp.experiments.results import Results
from rcp.experiments.runner import LOOK, Machine, said, work
from rcp.experiments.watch import Group, Outcome, Watcher, spread
from rcp.files import read_json, write_atomically
from rcp.modelfile import versions

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT = 10  # seconds to wait for the scheduler
JOIN = 60  # seconds to wait for its first worker
ALONE = 600  # seconds to wait for another worker when all have died
SHARED = 10  # seconds until a file that one machine wrote must be seen by the others: network folders are looked at anew
_ALONE = threading.Lock()  # threads of torch, and its random numbers for weights, are the process's: a group at a time
AWAY = "the scheduler went away: what was measured is kept, and the same command goes on"


class ClusterError(OSError):
    """A cluster that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class _Task:
    """A group at the cluster; `blamed` if others of its cells have been blamed for a worker's death with nothing done since."""

    group: Group
    blamed: bool = False


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
        What is done and what failed. A cell whose workers die again and again (Dask's setting allowed-failures says how
        often) has failed; the rest goes on.

    Raises:
        ClusterError: if there is no such cluster, it has other versions or does not see the files, or it went away; what was
            measured is kept.
        KeyboardInterrupt: handed on after the tasks were taken back; a worker ends behind the cell that it is at.
    """
    folder = Path(folder).absolute()
    results = Results(folder)
    results.prepare()
    with _client(address) as client:
        _check(client, folder, groups)
        with Watcher(groups, results, say) as watcher:
            _run(client, watcher, folder, machine)
        return watcher.outcome()


@contextlib.contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        import distributed
    except ImportError as error:
        raise ClusterError('--scheduler needs Dask, which is not installed: pip install "rcp[cluster]"') from error
    where = address
    if Path(address).is_file():
        found = read_json(address)
        where = found.get("address") if isinstance(found, dict) else None
    if not isinstance(where, str) or "://" not in where:
        raise ClusterError(
            f"{address} is neither an address like tcp://host:8786 nor a file that `dask scheduler --scheduler-file` wrote"
        )
    try:
        client = distributed.Client(where, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {where}: is it running, and of the same version?") from error
    with client:
        yield client


def _check(client: Client, folder: Path, groups: list[Group]) -> None:
    """See that there are workers, and that each has our versions and sees our files."""
    try:
        client.wait_for_workers(1, timeout=JOIN)
    except TimeoutError as error:
        raise ClusterError(f"the scheduler has had no worker for {JOIN} s: start some with `dask worker`") from error
    weights = {one.weights for group in groups for cell in group.cells for one in cell.features if one.weights}
    paths = sorted({str(group.root) for group in groups if group.root} | {str(path) for path in weights})
    token = write_atomically(folder / f".seen-{uuid.uuid4().hex}", lambda path: path.write_text("rcp", encoding="utf-8"))
    try:
        answers = client.run(_look_around, str(token), paths, on_error="return")
    finally:
        token.unlink()
    ours = _versions()
    for worker, answer in answers.items():
        if isinstance(answer, Exception):
            raise ClusterError(f"worker {worker} cannot run rcp ({said(answer)}): install the same version of it there")
        theirs, unseen = answer
        differs = [f"{name} {theirs.get(name)} instead of {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
        if differs:
            raise ClusterError(
                f"worker {worker} has {', '.join(differs)}: a grid's numbers must come from one installation (constraints.txt)"
            )
        if unseen:
            what = f"the folder of the results, {folder}," if unseen[0] == str(token) else unseen[0]
            raise ClusterError(f"worker {worker} does not see {what}: it must lie on a disk that all machines share")


def _versions() -> dict[str, str]:
    import distributed

    return versions() | {"distributed": distributed.__version__}


def _look_around(token: str, paths: list[str]) -> tuple[dict[str, str], list[str]]:
    """On a worker: its versions, and which of these files and folders are not there."""
    until = time.monotonic() + SHARED
    while not Path(token).is_file() and time.monotonic() < until:
        time.sleep(0.1)
    return _versions(), [path for path in (token, *paths) if not Path(path).exists()]


def _run(client: Client, watcher: Watcher, folder: Path, machine: Machine) -> None:
    """Keep every worker busy until nothing is left.

    No more tasks are handed over than there are workers: when a worker dies, Dask counts that against every task it holds,
    and those that only waited there did nothing wrong.
    """
    queue = [_Task(group) for group in spread(watcher.open_groups(), _workers(client))]
    waiting: dict[Future, _Task] = {}
    alone = time.monotonic()
    try:
        while queue or waiting:
            workers = _workers(client)
            if workers:
                alone = time.monotonic()
            elif time.monotonic() - alone < ALONE:
                watcher.note("the cluster has lost all its workers: waiting for others")
            else:
                raise ClusterError(f"the cluster has had no worker for {ALONE} s: what was measured is kept, and the same "
                                   "command goes on")
            while queue and len(waiting) < workers:
                task = queue.pop(0)
                future = client.submit(_measure, task.group, str(folder), machine, pure=False)
                waiting[future] = task
            time.sleep(LOOK)
            watcher.look()
            for future in [future for future in waiting if future.done()]:
                task = waiting.pop(future)
                if future.cancelled():
                    raise ClusterError(AWAY)
                if future.status == "error":
                    queue += _blame(watcher, task, future.exception())
        _settle(watcher)
    finally:
        if waiting and client.status == "running":
            client.cancel(list(waiting))


def _workers(client: Client) -> int:
    """How many workers there are, asked anew."""
    from distributed.client import ClosedClientError

    try:
        return len(client.nthreads())
    except (OSError, ClosedClientError) as error:  # connections end with an OSError
        raise ClusterError(AWAY) from error


def _measure(group: Group, folder: str, machine: Machine) -> int:
    """On a worker: measure a group, as long as the client wants it."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state != "executing":  # the client took it back, or has gone itself
            raise ClusterError("the run that this task belongs to has ended")

    with _ALONE:
        return work(group, folder, machine, wanted)


def _blame(watcher: Watcher, task: _Task, error: BaseException) -> list[_Task]:
    """Record what made a task fail, where it belongs; return what is left to do.

    The cells of a group are measured in order, so a worker that dies does so at the first that has no result: it is recorded,
    and the others are tried, from the other end, as neighbours are alike. If those kill as well with nothing done before, the
    fault is not a single cell's.
    """
    import distributed

    rest = watcher.pending(task.group)
    if not rest.cells:
        return []
    all_of_them = not isinstance(error, distributed.KilledWorker) or (task.blamed and rest == task.group)
    count = len(rest.cells) if all_of_them else 1
    for cell, name in zip(rest.cells[:count], rest.names[:count], strict=True):
        watcher.results.write_failure(name, cell, {}, said(error), "")
    watcher.look()
    return [] if count == len(rest.cells) else [_Task(Group(rest.root, rest.cells[:0:-1], rest.names[:0:-1]), blamed=True)]


def _settle(watcher: Watcher) -> None:
    """Wait for results that workers have written and a network folder does not show yet."""
    until = time.monotonic() + SHARED
    while any(watcher.pending(group).cells for group in watcher.groups) and time.monotonic() < until:
        time.sleep(LOOK)
        watcher.results.prepare()  # a write of our own has the folder looked at anew
        watcher.look()
