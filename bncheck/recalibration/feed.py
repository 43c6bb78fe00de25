"""Takes samples from each rank's batches until there are as many as wanted over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bncheck.recalibration.calibration_set import size_in_bytes
from bncheck.recalibration.ranks import Ranks
from bncheck.runtime.batches import Batch, select


class Feed:
    """Batches, of which a number of samples can be taken at a time; nothing is lost between two takings.

    Args:
        batches: this rank's.
        ranks: who shares the samples.
        whole: whether batches must be taken as they come: a graph may have been made for their size.
    """

    def __init__(self, batches: Iterator[Batch], ranks: Ranks, *, whole: bool) -> None:
        self._batches = batches
        self._ranks = ranks
        self._whole = whole
        self._held: list[Batch] = []

    def take(self, samples: int, most_bytes: int) -> tuple[list[Batch], int]:
        """This rank's part of the next samples, and how many all ranks took.

        Where the ranks have more than is wanted, those with most give most, so that none is cut as long as another
        has more.

        Args:
            samples: wanted, over all ranks.
            most_bytes: that this rank holds at a time.
        """
        here, available = 0, [0]
        share = math.ceil(samples / self._ranks.count)
        while True:
            grown = self._fill(share, most_bytes)
            available = self._ranks.each(grown)
            missing = samples - sum(available)
            # Ranks with more left make up for those without.
            if missing <= 0 or not any(self._ranks.each(int(grown > here))):
                break
            here, share = grown, grown + missing
        quota = _quotas(available, samples)[self._ranks.index]
        taken = self._cut(quota)
        return taken, sum(self._ranks.each(sum(batch.size for batch in taken)))

    def _fill(self, samples: int, most_bytes: int) -> int:
        """Hold so many samples, or as many as there are or fit; returns how many are held."""
        held = sum(batch.size for batch in self._held)
        room = most_bytes - sum(size_in_bytes(batch) for batch in self._held)
        while held < samples and room > 0:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(batch)
            held += batch.size
            room -= size_in_bytes(batch)
        return held

    def _cut(self, samples: int) -> list[Batch]:
        taken: list[Batch] = []
        while samples > 0 and self._held:
            batch = self._held.pop(0)
            if batch.size > samples and not self._whole:
                self._held.insert(0, select(batch, range(samples, batch.size)))
                batch = select(batch, range(samples))
            taken.append(batch)
            samples -= batch.size
        return taken


def _quotas(available: Sequence[int], samples: int) -> list[int]:
    """What each rank gives, so that together it is ``samples`` or all there are: as even as can be."""
    quotas = [0] * len(available)
    left = min(samples, sum(available))
    for place, rank in enumerate(sorted(range(len(available)), key=lambda rank: available[rank])):
        quotas[rank] = min(available[rank], math.ceil(left / (len(available) - place)))
        left -= quotas[rank]
    return quotas
