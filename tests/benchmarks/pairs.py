"""Whole processes timed in pairs.

A machine's speed drifts while a benchmark runs. Two commands run in turn, A B A B …, drift together, so the ratio
within each pair says more than the ratio of two averages; the median over the pairs forgets a pair that was disturbed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# getrusage(2): kibibytes on Linux; bytes on macOS.
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Run:
    """One process from its start to its end.

    Attributes:
        wall: seconds.
        cpu: seconds in user and kernel mode, over all threads.
        peak: largest resident set, in bytes. The kernel counts what the parent had resident when it started the
            process, so a benchmark's own process must stay smaller than what it measures: no numpy, no torch in it.
        code: exit status.
    """

    wall: float
    cpu: float
    peak: int
    code: int


class CommandFailed(Exception):
    """A command that is timed must succeed: the time of a failure says nothing."""


def run(command: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run a command with its output thrown away.

    Raises:
        CommandFailed: it exited with another status than 0; the message ends with its stderr.
    """
    with tempfile.TemporaryFile() as errors:
        actions = (
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        )
        start = time.perf_counter()
        process = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
        wall = time.perf_counter() - start
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            errors.seek(0)
            raise CommandFailed(f"{' '.join(command)} exited {code}: {errors.read().decode(errors='replace')[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _PEAK_UNIT, code)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two commands run in turn."""

    first: tuple[Run, ...]
    second: tuple[Run, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Wall seconds of the first over those of the second, pair by pair."""
        return tuple(one.wall / other.wall for one, other in zip(self.first, self.second, strict=True))

    @property
    def ratio(self) -> float:
        """Median over the pairs."""
        return statistics.median(self.ratios)


def paired(
    first: Sequence[str], second: Sequence[str], pairs: int, environment: Mapping[str, str], warm_ups: int = 1
) -> Pairs:
    """Run two commands in turn.

    Args:
        first: one command, its program as an absolute path.
        second: the other.
        pairs: how often.
        environment: of both.
        warm_ups: runs of each before, that are not counted: they fill the file and bytecode caches.
    """
    for _ in range(warm_ups):
        run(first, environment)
        run(second, environment)
    runs = [(run(first, environment), run(second, environment)) for _ in range(pairs)]
    return Pairs(tuple(one for one, _ in runs), tuple(other for _, other in runs))


def median_wall(runs: Sequence[Run]) -> float:
    """Seconds."""
    return statistics.median(each.wall for each in runs)


def median_cpu(runs: Sequence[Run]) -> float:
    """Seconds."""
    return statistics.median(each.cpu for each in runs)


def largest_peak(runs: Sequence[Run]) -> int:
    """Bytes."""
    return max(each.peak for each in runs)
