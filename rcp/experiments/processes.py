"""Workers side by side on this machine: processes, each with a task in hand; one that dies is replaced, and the rest goes on.

Not a ready-made pool: those break as a whole when one of their processes dies, and do not say at which task. Here every worker
has a pipe of its own, so it is known who died, and with what in hand.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection

from rcp.experiments import blame
from rcp.experiments.blame import Task
from rcp.experiments.watch import LOOK, Group, Watcher, spread

LIVES = 2  # workers that may die at a cell until it has failed: the first may have been killed for another's sake
STARTS = 3  # workers that may die in a row before they have begun anything: then no cell can be the cause
BEGUN = "begun"  # what a worker says when it has a task in hand; behind it, None, or an error and its trace


def run_processes(watcher: Watcher, do: Callable[[Group], object], jobs: int) -> None:
    """Measure what is missing.

    Args:
        watcher: of the run.
        do: measures a group and writes the results; it goes to the workers by pickle.
        jobs: how many work side by side.

    Raises:
        OSError: if workers die before they have begun anything.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of torch's threads
    here, there = context.Pipe(duplex=False)
    queue = [Task(group) for group in spread(watcher.open_groups(), jobs)]
    workers: list[_Worker] = []
    stillborn, last = 0, None
    with here, there:
        try:
            while queue or any(worker.task for worker in workers):
                for worker in workers:
                    if queue and not worker.task:
                        worker.take(queue.pop(0))
                if stillborn >= STARTS and not any(worker.task for worker in workers):
                    raise OSError(f"workers die before they have begun anything; of the last, {last}") from last
                while queue and len(workers) < jobs and stillborn < STARTS:
                    workers.append(_Worker(context, here, do))
                    workers[-1].take(queue.pop(0))
                ready = connection.wait([one for worker in workers for one in worker.ears], timeout=LOOK)
                watcher.look()
                for worker in [worker for worker in workers if not set(ready).isdisjoint(worker.ears)]:
                    task, begun = worker.task, worker.begun
                    try:
                        answer = worker.answer()
                    except ChildProcessError as death:
                        workers.remove(worker)
                        if begun:
                            queue += blame.died(watcher, task, f"WorkerDied: {death}", lives=LIVES)
                        elif task:  # it had not come to it
                            queue.insert(0, task)
                            stillborn, last = stillborn + 1, death  # no others are started, unless one begins; who works goes on
                        continue
                    if answer == BEGUN:
                        stillborn = 0
                    elif answer is not None:  # what no cell could have recorded
                        blame.failed(watcher, task, *answer)
        except BaseException:
            for worker in workers:
                worker.process.kill()  # at once, so that there is not long to wait for; results are whole or not there
            raise
        finally:
            for worker in workers:
                worker.pipe.close()  # an idle worker ends
            for worker in workers:
                worker.process.join()


class _Worker:
    """A process, the pipe to it, and the task that it has in hand."""

    def __init__(self, context: multiprocessing.context.SpawnContext, run: Connection, do: Callable[[Group], object]):
        self.task: Task | None = None
        self.begun = False
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(run, theirs, do))
        with _deaf():
            self.process.start()
        theirs.close()  # the worker alone holds it now, so it closes when the worker dies
        self.ears = (self.pipe, self.process.sentinel)  # both: on Windows the pipe of one that dies at its start stays open

    def take(self, task: Task) -> None:
        """Hand over a task; that a worker is dead is found when its answer is read."""
        self.task = task
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(task.group)

    def answer(self) -> object:
        """Return what it says; a ChildProcessError tells how it ended."""
        try:
            if not self.pipe.poll():  # the process has ended, and left nothing to read
                raise EOFError
            said = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.pipe.close()
            self.process.join()
            raise ChildProcessError(_ending(self.process.exitcode)) from error
        self.begun = said == BEGUN
        if not self.begun:
            self.task = None
        return said


def _ending(code: int) -> str:
    if code >= 0:
        return f"the worker's process ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a signal without a name
        name = f"signal {-code}"
    return f"the worker's process was killed ({name}): if memory ran out, take fewer jobs, or a bound on memory"


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes started meanwhile do not hear of Ctrl-C, which a terminal tells all of them: the run ends its workers itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the first process starts it first, which until Python 3.14 lets the signal in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of this thread, and what it starts: nothing is lost
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(run: Connection, tasks: Connection, do: Callable[[Group], object]) -> None:
    """The life of a worker: tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(run)
    while True:
        try:
            group = tasks.recv()
        except (EOFError, ConnectionResetError):
            return
        tasks.send(BEGUN)
        try:
            do(group)
            answer = None
        except Exception as error:
            answer = (f"{type(error).__name__}: {error}", traceback.format_exc())
        tasks.send(answer)


def _end_with(run: Connection) -> None:
    """Have this worker die with the run that it belongs to, however that ends: it must not go on beside the next one."""

    def watch() -> None:
        with contextlib.suppress(EOFError):
            run.recv_bytes()  # nothing is ever sent: this returns when the other end, which only the run holds, is gone
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
