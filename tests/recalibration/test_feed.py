"""Taking samples over several ranks: none lost, none cut as long as another has more."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest
import torch

from bncheck.recalibration.feed import Feed
from bncheck.recalibration.ranks import OneProcess
from bncheck.runtime.batches import Batch
from bncheck.runtime.input_moments import InputMoments


class _Together:
    """Ranks as threads of one process that exchange numbers at a barrier."""

    def __init__(self, index: int, count: int, board: list[int], barrier: threading.Barrier) -> None:
        self.index, self.count = index, count
        self._board, self._barrier = board, barrier

    def each(self, mine: int) -> list[int]:
        self._board[self.index] = mine
        self._barrier.wait(10)
        found = list(self._board)
        self._barrier.wait(10)
        return found

    def next_layer(self, waiting: Mapping[str, int]) -> str | None:
        raise NotImplementedError

    def merged(self, mine: InputMoments, channels: int) -> InputMoments:
        raise NotImplementedError

    def failed(self) -> None:
        raise NotImplementedError


def _batches(sizes: list[int], first: int = 0) -> list[Batch]:
    """Samples are numbered, so that none can be lost or doubled unnoticed."""
    found = []
    for size in sizes:
        found.append(Batch((torch.arange(first, first + size).float().unsqueeze(1),), None, size))
        first += size
    return found


def _numbers(batches: list[Batch]) -> list[int]:
    return [int(value) for batch in batches for value in batch.inputs[0].flatten()]  # type: ignore[index]


def _taken(shares: list[list[int]], wanted: list[int]) -> list[list[list[int]]]:
    """What each rank gets, taking after taking."""
    board, barrier = [0] * len(shares), threading.Barrier(len(shares))
    results: list[list[list[int]]] = [[] for _ in shares]

    def run(rank: int) -> None:
        feed = Feed(
            iter(_batches(shares[rank], 1000 * rank)), _Together(rank, len(shares), board, barrier), whole=False
        )
        for samples in wanted:
            taken, came = feed.take(samples, 2**30)
            results[rank].append(_numbers(taken))
            assert came <= samples

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


@pytest.mark.parametrize(
    ("shares", "wanted", "counts"),
    [
        ([[32] * 6, [32] * 5 + [8]], 360, [192, 168]),
        ([[8] * 4, [8] * 4], 40, [20, 20]),
        ([[8] * 10, [], [4]], 60, [56, 0, 4]),
        ([[8] * 10, [], [4]], 1000, [80, 0, 4]),
        ([[1], [1]], 1, [1, 0]),
    ],
)
def test_all_ranks_together_take_what_is_wanted(shares: list[list[int]], wanted: int, counts: list[int]) -> None:
    results = _taken(shares, [wanted])
    assert sorted(len(rank[0]) for rank in results) == sorted(counts)


def test_nothing_is_lost_between_two_takings() -> None:
    (alone,) = _taken([[7, 7, 7, 7]], [10, 10, 10])
    assert [number for taking in alone for number in taking] == list(range(28))
    assert [len(taking) for taking in alone] == [10, 10, 8]


def test_whole_batches_are_not_cut() -> None:
    feed = Feed(iter(_batches([4, 4, 4])), OneProcess([]), whole=True)
    assert [batch.size for batch in feed.take(5, 2**30)[0]] == [4, 4]


def test_no_more_is_held_than_fits() -> None:
    feed = Feed(iter(_batches([4] * 10)), OneProcess([]), whole=False)
    taken, came = feed.take(40, most_bytes=40)
    assert came == sum(batch.size for batch in taken) == 12
