"""The processes that share a recalibration: each takes some of the samples, all end with the same moments.

Every process makes the same calls in the same order, so that each answers what the others ask. One that gives up says
so in the place of its next answer; one that dies is noticed by the transport, at its timeout at the latest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from bncheck.core.errors import BncheckError
from bncheck.runtime.input_moments import InputMoments


class RankFailed(BncheckError):
    """Another process of a distributed run gave up, or died."""

    kind = "rank-failed"


class Ranks(Protocol):
    """What one process asks of all of them.

    Attributes:
        index: rank of this process.
        count: how many there are.
    """

    index: int
    count: int

    def next_layer(self, waiting: Mapping[str, int]) -> str | None:
        """The layer to merge next: the one at which most passes wait; None where none waits anywhere."""

    def merged(self, mine: InputMoments, channels: int) -> InputMoments:
        """Everybody's moments of one layer, added up in the order of ranks."""

    def each(self, mine: int) -> list[int]:
        """A number of every rank, in their order."""

    def failed(self) -> None:
        """Tell the others that this one gives up."""


class OneProcess:
    """The only one."""

    index = 0
    count = 1

    def __init__(self, layers: Sequence[str]) -> None:
        self._place = {name: index for index, name in enumerate(layers)}

    def next_layer(self, waiting: Mapping[str, int]) -> str | None:
        """See ``Ranks``."""
        return min(waiting, key=lambda name: (-waiting[name], self._place[name]), default=None)

    def merged(self, mine: InputMoments, channels: int) -> InputMoments:
        """See ``Ranks``."""
        return mine

    def each(self, mine: int) -> list[int]:
        """See ``Ranks``."""
        return [mine]

    def failed(self) -> None:
        """See ``Ranks``."""


@contextlib.contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[bool]:
    """Join the processes that ``torchrun`` started; yields whether there are others.

    Args:
        device: where the moments are: NCCL carries those of GPUs, Gloo all others.
        timeout: seconds to wait for another process.

    Raises:
        RankFailed: they do not find one another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield dist.is_initialized()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise RankFailed(f"the processes do not find one another: {str(error).partition(chr(10))[0]}") from None
    try:
        yield True
    finally:
        dist.destroy_process_group()


class Distributed:
    """The processes of ``torch.distributed``'s default group.

    Args:
        layers: names, which must be the same everywhere.
        device: where the moments are; a group of NCCL takes nothing else.

    Raises:
        RankFailed: the processes run different models, or one of them did not come up.
    """

    def __init__(self, layers: Sequence[str], device: torch.device) -> None:
        self.index = dist.get_rank()
        self.count = dist.get_world_size()
        self._layers = list(layers)
        self._home = device
        # Gloo sends what lies on the host, NCCL what lies on a GPU.
        self._post = device if dist.get_backend() == "nccl" else torch.device("cpu")
        names: list[list[str] | None] = [None] * self.count
        self._ask(lambda: dist.all_gather_object(names, self._layers))
        if any(other != self._layers for other in names):
            raise RankFailed("the processes do not run the same model: their layers differ")

    def next_layer(self, waiting: Mapping[str, int]) -> str | None:
        """See ``Ranks``."""
        found = self._sum([0] * self.count, [waiting.get(name, 0) for name in self._layers])[self.count :]
        return self._layers[found.index(max(found))] if any(found) else None

    def merged(self, mine: InputMoments, channels: int) -> InputMoments:
        """See ``Ranks``."""
        packed = mine.packed(channels).to(self._post)
        received = [torch.empty_like(packed) for _ in range(self.count)]
        self._ask(lambda: dist.all_gather(received, packed))
        return InputMoments.pooled(InputMoments.unpacked(vector.to(self._home)) for vector in received)

    def each(self, mine: int) -> list[int]:
        """See ``Ranks``."""
        own = [mine if rank == self.index else 0 for rank in range(self.count)]
        return self._sum(own, [0] * len(self._layers))[: self.count]

    def failed(self) -> None:
        """See ``Ranks``; the others get it as the answer to whatever they ask next."""
        with contextlib.suppress(RankFailed):
            self._sum([0] * self.count, [0] * len(self._layers), failed=1)

    def _sum(self, of_ranks: Sequence[int], of_layers: Sequence[int], failed: int = 0) -> list[int]:
        """One form of message for all questions, so that a failure can be the answer to any of them."""
        values = [failed, *of_ranks, *of_layers]
        message: Tensor = torch.tensor(values, dtype=torch.int64, device=self._post)
        self._ask(lambda: dist.all_reduce(message))
        failures, *sums = (int(value) for value in message)
        if failures:
            raise RankFailed("another process of this run failed; see its own message")
        return sums

    def _ask(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RankFailed(f"a process of this run does not answer: {str(error).partition(chr(10))[0]}") from None
