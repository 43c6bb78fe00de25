"""Processes that work at the same time, and what becomes of those that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bncheck.workers import Died, _interrupts_held_back, work
from tests.process import ROOT

_OURS = str(os.getpid())


def _double(task: int) -> int:
    return 2 * task


def _large(task: int) -> bytes:
    return bytes(task)


def _ends(task: str) -> str:
    """Does what it is told with its own process."""
    what, _, number = task.partition(" ")
    match what:
        case "exit":
            os._exit(int(number))
        case "kill":
            os.kill(os.getpid(), int(number))
        case "raise":
            raise RuntimeError("not so")
        case "sleep":
            time.sleep(float(number))
        case "pid":
            Path(number).write_text(str(os.getpid()))
    return task


def _children() -> set[int]:
    """Processes of ours that are there, and no zombies of ours that nobody has asked for."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if fields[1] == _OURS and "resource_tracker" not in command:
                found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing() -> object:
    before, files = _children(), len(os.listdir("/proc/self/fd"))
    yield None
    assert _children() <= before
    # What multiprocessing keeps of its own: the pipe of its resource tracker.
    assert len(os.listdir("/proc/self/fd")) <= files + 2


def test_every_task_is_done_once() -> None:
    started: list[int] = []
    results = list(work(_double, range(20), 3, started.append))
    assert sorted(results) == [(index, 2 * index) for index in range(20)]
    assert started == list(range(20))


@pytest.mark.parametrize("tasks", [[], [7]])
def test_few_tasks(tasks: list[int]) -> None:
    assert list(work(_double, tasks, 8)) == [(index, 2 * task) for index, task in enumerate(tasks)]


def test_large_results_arrive_whole() -> None:
    sizes = {index: len(result) for index, result in work(_large, [3_000_000, 5_000_000], 2) if not _died(result)}
    assert sizes == {0: 3_000_000, 1: 5_000_000}


def _died(result: object) -> bool:
    return isinstance(result, Died)


def test_one_that_dies_takes_only_its_task_with_it() -> None:
    tasks = ["a", "exit 0", "b", f"kill {signal.SIGKILL.value}", "c", "exit 7", "raise", "d"]
    results = dict(work(_ends, tasks, 2))
    assert {index: result for index, result in results.items() if not _died(result)} == {
        0: "a", 2: "b", 4: "c", 7: "d",
    }  # fmt: skip
    assert [results[index].how for index in (1, 3, 5, 6)] == [
        "it ended with exit code 0", "it was ended by SIGKILL", "it ended with exit code 7",
        "it ended with exit code 1",
    ]  # fmt: skip


def test_all_of_them_may_die() -> None:
    results = list(work(_ends, ["exit 3"] * 4, 2))
    assert sorted(index for index, result in results if result == Died(3)) == [0, 1, 2, 3]


def test_one_that_is_killed_from_outside(tmp_path: Path) -> None:
    """As the kernel does where memory is short."""
    note = tmp_path / "pid"

    def kill() -> None:
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        os.kill(int(note.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = dict(work(_pid_and_sleep, [str(note), ""], 1))
    killer.join()
    assert results == {0: Died(-signal.SIGKILL), 1: ""}


def _pid_and_sleep(path: str) -> str:
    if path:
        Path(path).write_text(str(os.getpid()))
        time.sleep(60)
    return path


def test_a_loop_that_is_left_ends_them() -> None:
    begun = time.monotonic()
    for _ in work(_ends, ["a", "sleep 60", "sleep 60", "sleep 60"], 2):
        break
    assert time.monotonic() - begun < 20


def test_an_exception_in_the_loop_ends_them() -> None:
    def loop() -> None:
        for _ in work(_ends, ["a", "sleep 60", "b"], 2):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()


def test_an_interrupt_waits_until_what_was_started_is_known() -> None:
    """Else nobody would end it."""
    passed = False
    ended = threading.Event()
    # Signals go to whichever thread lets them through.
    another = threading.Thread(target=ended.wait)
    another.start()

    def start() -> None:
        nonlocal passed
        with _interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            passed = True

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        ended.set()
        another.join()
    assert passed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


_PROGRAM = """
import sys, time
from pathlib import Path
from bncheck.workers import work

def act(path):
    Path(path).touch()
    time.sleep(60)

if __name__ == "__main__":
    print("begun", flush=True)
    for _ in work(act, sys.argv[1:], 2):
        pass
"""


def _group(leader: int) -> set[str]:
    """Command lines of a session's processes that still run."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(f"{folder.name} {command}")
    return found


@pytest.mark.parametrize(
    ("ending", "when"),
    [
        (signal.SIGINT, "while they start"),
        (signal.SIGINT, "while they work"),
        (signal.SIGTERM, "while they work"),
        (signal.SIGKILL, "while they start"),
    ],
)
def test_none_is_left_whatever_ends_the_one_that_started_them(
    ending: signal.Signals, when: str, tmp_path: Path
) -> None:
    """Ctrl-C goes to all processes of a terminal at once; the others hit the first alone."""
    (tmp_path / "main.py").write_text(_PROGRAM)
    notes = [tmp_path / "one", tmp_path / "two"]
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), *map(str, notes)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 20
        while not _are_there(when, process.pid, notes) and time.monotonic() < deadline:
            time.sleep(0.005)
        try:
            if ending is signal.SIGINT:
                os.killpg(process.pid, ending)
            else:
                process.send_signal(ending)
            while _group(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not _group(process.pid)
        finally:
            for left in _group(process.pid):
                os.kill(int(left.split()[0]), signal.SIGKILL)
        errors = process.communicate()[1]
    assert process.returncode == -ending
    if ending is signal.SIGINT:  # Python says where the one was that was interrupted; the others say nothing
        assert errors.count("Traceback") == 1, errors


def _are_there(when: str, leader: int, notes: list[Path]) -> bool:
    if when == "while they work":
        return all(note.exists() for note in notes)
    return any("spawn_main" in command for command in _group(leader))
