"""Loaders say how they batch; nothing of them is iterated. Each answer is held against what iterating gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from bncheck.core.measurement import TrainingData
from bncheck.probe.training_data import training_data
from bncheck.runtime.batches import DataOptions

SAMPLES = 21
DATASET = TensorDataset(torch.arange(float(SAMPLES)).unsqueeze(1))


class Unread(TensorDataset):
    """A data set that nobody may read from."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        raise AssertionError("a sample was read")


UNREAD = Unread(torch.zeros(SAMPLES, 1))


def _read(loader: object) -> TrainingData:
    return training_data(loader, DataOptions())  # type: ignore[arg-type]


def _sizes(loader: DataLoader[object]) -> list[int]:
    return [len(batch[0]) for batch in loader]


Make = Callable[[TensorDataset], DataLoader[object]]

LOADERS: dict[str, Make] = {
    "plain": lambda data: DataLoader(data, batch_size=4),
    "shuffled": lambda data: DataLoader(data, batch_size=5, shuffle=True),
    "even": lambda data: DataLoader(data, batch_size=7),
    "default": lambda data: DataLoader(data),
    "drop last": lambda data: DataLoader(data, batch_size=4, drop_last=True),
    "larger than the data": lambda data: DataLoader(data, batch_size=64),
    "weighted": lambda data: DataLoader(
        data, batch_size=4, sampler=WeightedRandomSampler(torch.ones(SAMPLES), num_samples=30)
    ),
    "subset": lambda data: DataLoader(data, batch_size=4, sampler=SubsetRandomSampler(range(9))),
    "with replacement": lambda data: DataLoader(
        data, batch_size=8, sampler=RandomSampler(data, replacement=True, num_samples=50)
    ),
    "distributed": lambda data: DataLoader(
        data, batch_size=5, sampler=DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
    ),
    "distributed, dropping": lambda data: DataLoader(
        data, batch_size=3, sampler=DistributedSampler(data, num_replicas=2, rank=0, drop_last=True)
    ),
    "batch sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(SequentialSampler(data), batch_size=4, drop_last=False)
    ),
    "batch sampler, dropping": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(SequentialSampler(data), batch_size=4, drop_last=True)
    ),
    "list of batches of indices": lambda data: DataLoader(data, batch_sampler=[[0, 1, 2], [3, 4, 5], [6]]),
}


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_read_is_what_iterating_gives(name: str) -> None:
    read = _read(LOADERS[name](UNREAD))
    sizes = _sizes(LOADERS[name](DATASET))
    assert read.unknown is None
    assert read.last_batch == sizes[-1]
    assert read.batch_size is not None
    assert read.samples is not None
    assert max(sizes) == min(read.batch_size, read.samples)
    assert sum(sizes) == (read.samples if not read.drop_last else read.samples // read.batch_size * read.batch_size)


def test_a_distributed_sampler_speaks_for_one_process() -> None:
    read = _read(LOADERS["distributed"](UNREAD))
    assert (read.samples, read.last_batch, read.replicas) == (11, 1, 2)
    assert read.sources["samples"] == "len(DistributedSampler)"


class Stream(IterableDataset[Tensor]):
    """Samples without end; a length, where it has one, is a guess."""

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.zeros(1) for _ in itertools.count())

    def __len__(self) -> int:
        return SAMPLES


class Unsized(Sampler[int]):
    """A sampler without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(SAMPLES))


class Buckets(Sampler[list[int]]):
    """Batches by length of the samples: their sizes are its own affair."""

    def __init__(self, batch_size: int | None = None, batches: int | None = None) -> None:
        self.sampler = range(SAMPLES)
        self.drop_last = False
        if batch_size is not None:
            self.batch_size = batch_size
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1], [2])

    def __len__(self) -> int:
        if self._batches is None:
            raise NotImplementedError
        return self._batches


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (DataLoader(Stream(), batch_size=4), "iterable"),
        (DataLoader(Stream(), batch_size=None), "iterable"),
        (DataLoader(UNREAD, batch_size=None), "no batch size"),
        (DataLoader(UNREAD, batch_size=4, sampler=Unsized()), "Unsized has no length"),
        (DataLoader(UNREAD, batch_sampler=Buckets()), "Buckets has no batch_size to read"),
        (DataLoader(UNREAD, batch_sampler=Buckets(4, batches=9)), "yields 9 batches"),
        (DataLoader(UNREAD, batch_size=64, drop_last=True), "an epoch holds no batch"),
        ((batch for batch in [torch.zeros(4, 1)]), "a generator, which does not say how it is batched"),
    ],
)
def test_what_a_loader_does_not_say_is_unknown(loader: object, reason: str) -> None:
    read = _read(loader)
    assert read.last_batch is None
    assert read.unknown is not None
    assert reason in read.unknown


def test_a_batch_size_is_read_of_a_stream_all_the_same() -> None:
    assert _read(DataLoader(Stream(), batch_size=4)).batch_size == 4


@pytest.mark.parametrize("batches", [6, None])
def test_a_batch_sampler_of_ones_own_is_believed_where_it_agrees(batches: int | None) -> None:
    read = _read(DataLoader(UNREAD, batch_sampler=Buckets(4, batches=batches)))
    assert (read.last_batch, read.batch_size, read.sources["batch_size"]) == (1, 4, "Buckets.batch_size")


def test_a_list_of_batches_is_measured() -> None:
    labels = torch.zeros(4, dtype=torch.long)
    read = _read([(torch.zeros(4, 1), labels), (torch.zeros(4, 1), labels), (torch.zeros(1, 1), labels[:1])])
    assert (read.samples, read.batch_size, read.last_batch) == (9, 4, 1)
    assert _read([]).unknown == "an epoch holds no batch"
