"""Processes that work at the same time; one that dies takes nothing with it but what it was working on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Died:
    """The process that worked on a task ended without an answer.

    Attributes:
        exit_code: as ``multiprocessing`` tells it: negative where a signal ended it.
    """

    exit_code: int | None

    @property
    def how(self) -> str:
        """In words."""
        if self.exit_code is not None and self.exit_code < 0:
            with contextlib.suppress(ValueError):
                return f"it was ended by {signal.Signals(-self.exit_code).name}"
        return f"it ended with exit code {self.exit_code}"


@dataclass(slots=True)
class _Worker(Generic[Task]):
    process: BaseProcess
    pipe: Connection
    at: int | None = None
    """Index of the task it works on."""


def work(
    act: Callable[[Task], Result], tasks: Sequence[Task], processes: int, started: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Result | Died]]:
    """Give tasks to processes, each one at a time.

    The processes are started afresh, and import what ``act`` needs themselves. They leave Ctrl-C to this one, and end
    when it does; however the loop over the results is left, none of them stays.

    Args:
        act: a function of a module, which raises nothing.
        tasks: what can be pickled.
        processes: how many at most.
        started: told of each task's index when it is given out.

    Yields:
        A task's index and its result, as they come.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque(enumerate(tasks))
    workers: dict[Connection, _Worker[Task]] = {}
    try:
        for _ in range(min(processes, len(tasks))):
            _give(_started(context, act, workers), waiting, started)
        while any(worker.at is not None for worker in workers.values()):
            for ready in wait([pipe for pipe, worker in workers.items() if worker.at is not None]):
                worker = workers[ready]  # type: ignore[index]  # wait returns what it was given
                index = worker.at
                assert index is not None
                try:
                    result: Result | Died = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    result = Died(worker.process.exitcode)
                    worker.pipe.close()
                    del workers[ready]  # type: ignore[arg-type]
                    if waiting:
                        worker = _started(context, act, workers)
                _give(worker, waiting, started)
                yield index, result
    finally:
        for worker in workers.values():
            worker.process.kill()
        for worker in workers.values():
            worker.process.join()
            worker.pipe.close()


def _started(
    context: multiprocessing.context.SpawnContext,
    act: Callable[[Task], Result],
    workers: dict[Connection, _Worker[Task]],
) -> _Worker[Task]:
    """One more, which stands among the workers before an interrupt can come: none is lost sight of."""
    with _interrupts_held_back():
        ours, theirs = context.Pipe()
        # No daemon: those may have no children, and a user's loader may have workers.
        process = context.Process(target=_serve, args=(theirs, act))
        process.start()
        workers[ours] = worker = _Worker[Task](process, ours)
        theirs.close()
    return worker


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process that is started in here begins deaf to Ctrl-C; else one in its first moments would print where it was.

    Ours comes through when this is left.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # a process of its own, whose start lets interrupts through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # The mask is what the new process inherits. Here another thread may still be sent the signal (that of a progress
    # bar, those of a thread pool), and Python would act on it in this one.
    came: list[int] = []
    ours = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if ours is not None:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if ours is not None:
            signal.signal(signal.SIGINT, ours)
        if came:
            signal.raise_signal(signal.SIGINT)


def _give(worker: _Worker[Task], waiting: deque[tuple[int, Task]], started: Callable[[int], None] | None) -> None:
    worker.at = None
    if waiting:
        worker.at, task = waiting.popleft()
        if started is not None:
            started(worker.at)
        with contextlib.suppress(OSError):  # it has died: its end of the pipe says so
            worker.pipe.send(task)


def _serve(pipe: Connection, act: Callable[[Task], Result]) -> None:
    """Work until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # what it starts in turn may listen
    # A run of a model may take an hour, in which it would not see that nobody waits for it any more.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(act(pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
