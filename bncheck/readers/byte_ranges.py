"""Ranges of a file's bytes: joining near ones, cutting long ones, and keeping what was fetched."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""(first byte, last byte + 1)."""


def joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    """The ranges in order, those overlapping or at most ``gap`` bytes apart as one; empty ones are left out."""
    found: list[Range] = []
    for start, end in sorted(each for each in ranges if each[0] < each[1]):
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def pieces(ranges: Iterable[Range], longest: int) -> Iterator[Range]:
    """The ranges cut into parts of at most ``longest`` bytes."""
    for start, end in ranges:
        for first in range(start, end, longest):
            yield first, min(first + longest, end)


class FetchedRanges:
    """Bytes fetched from a file so far; the oldest go when there are too many.

    Args:
        capacity: bytes kept after ``trim``.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._starts: list[int] = []
        self._blocks: dict[int, bytes] = {}  # by first byte, oldest first; none overlaps another
        self._held = 0

    def missing(self, start: int, end: int) -> list[Range]:
        """The parts of a range that are not held."""
        gaps: list[Range] = []
        for first, last in self._overlapping(start, end):
            if start < first:
                gaps.append((start, first))
            start = last
        if start < end:
            gaps.append((start, end))
        return gaps

    def put(self, start: int, data: bytes) -> None:
        """Hold bytes; those of them that are held already are left as they are."""
        for first, last in self.missing(start, start + len(data)):
            self._blocks[first] = data[first - start : last - start]
            insort(self._starts, first)
            self._held += last - first

    def take(self, start: int, end: int) -> bytes:
        """The bytes of a range that is held whole."""
        blocks = list(self._overlapping(start, end))
        parts = [self._blocks[first][max(start - first, 0) : end - first] for first, _ in blocks]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def trim(self) -> None:
        """Let the oldest go until no more than the capacity is held."""
        while self._held > self._capacity:
            oldest = next(iter(self._blocks))
            self._held -= len(self._blocks.pop(oldest))
            del self._starts[bisect_left(self._starts, oldest)]

    def _overlapping(self, start: int, end: int) -> Iterator[Range]:
        for index in range(max(bisect_right(self._starts, start) - 1, 0), len(self._starts)):
            first = self._starts[index]
            last = first + len(self._blocks[first])
            if first >= end:
                return
            if last > start:
                yield first, last
