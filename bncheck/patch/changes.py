"""Bytes of a file that are to be others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bncheck.core.errors import CannotPatch


@dataclass(frozen=True, slots=True)
class Change:
    """New bytes for a place of the file; ``what`` is their name in a message."""

    start: int
    data: bytes
    what: str


class Changes:
    """Changes in the order of the file, none overlapping another.

    Args:
        changes: in any order; where two are for the same bytes they must agree.

    Raises:
        CannotPatch: they disagree.
    """

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._starts: list[int] = []
        self._data: list[bytearray] = []
        last = ""
        for change in sorted(changes, key=lambda change: change.start):
            end = self._starts[-1] + len(self._data[-1]) if self._starts else -1
            if change.start > end:
                self._starts.append(change.start)
                self._data.append(bytearray(change.data))
            else:
                self._join(change, end, last)
            last = change.what

    def __iter__(self) -> Iterator[Change]:
        """The changes, those that touch as one."""
        for start, data in zip(self._starts, self._data, strict=True):
            yield Change(start, bytes(data), "")

    def with_more(self, changes: Iterable[Change]) -> Changes:
        """These and others."""
        return Changes((*self, *changes))

    def over(self, start: int, data: bytes) -> bytes:
        """What a piece of the file, from ``start`` on, becomes."""
        end = start + len(data)
        changed: bytearray | None = None
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self._starts)):
            first, new = self._starts[index], self._data[index]
            if first >= end:
                break
            low, high = max(first, start), min(first + len(new), end)
            if low < high:
                changed = bytearray(data) if changed is None else changed
                changed[low - start : high - start] = new[low - first : high - first]
        return data if changed is None else bytes(changed)

    def _join(self, change: Change, end: int, last: str) -> None:
        held, offset = self._data[-1], change.start - self._starts[-1]
        common = min(end - change.start, len(change.data))
        if held[offset : offset + common] != change.data[:common]:
            names = change.what if change.what == last else f"{last} and {change.what}"
            raise CannotPatch(f"{names} share memory in the file, and would get different numbers there")
        held += change.data[common:]
