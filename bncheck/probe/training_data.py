"""What a training loader says of its batches: sampler, batch size, drop_last and length are read, not iterated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from bncheck.core.measurement import TrainingData
from bncheck.runtime.batches import DataOptions, batches


def training_data(loader: Iterable[object], options: DataOptions) -> TrainingData:
    """Read what can be read without drawing a batch.

    Args:
        loader: a torch ``DataLoader``, or a sequence of batches, whose sizes are read; anything else says nothing.
        options: how to take batches apart.

    Raises:
        BadData: a sequence holds something that is no batch.
    """
    if isinstance(loader, DataLoader):
        return _of_loader(loader)
    if isinstance(loader, Sequence):
        everything = replace(options, samples=_ALL, device=torch.device("cpu"))
        sizes = [batch.size for batch in batches(loader, everything)] if loader else []
        return _listed(sizes, "the batches listed")
    return TrainingData(unknown=f"the training data is a {type(loader).__name__}, which does not say how it is batched")


_ALL = 2**62


def _of_loader(loader: DataLoader[object]) -> TrainingData:
    """See https://github.com/pytorch/pytorch/blob/v2.13.0/torch/utils/data/dataloader.py, ``DataLoader.__init__``."""
    batch_sampler = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset):
        return TrainingData(
            batch_size=loader.batch_size,
            drop_last=None if loader.batch_size is None else loader.drop_last,
            sources={} if loader.batch_size is None else {"batch_size": "DataLoader", "drop_last": "DataLoader"},
            unknown="the data set is iterable: its length is known only at its end",
        )
    if batch_sampler is None:
        return TrainingData(unknown="the loader has no batch size: its data set yields whole batches")
    if type(batch_sampler) is BatchSampler:
        sampler, name = batch_sampler.sampler, type(batch_sampler.sampler).__name__
        samples = _length(sampler)
        return _counted(
            TrainingData(
                samples=samples,
                batch_size=batch_sampler.batch_size,
                drop_last=batch_sampler.drop_last,
                replicas=_replicas(sampler),
                sources={"samples": f"len({name})", "batch_size": "DataLoader", "drop_last": "DataLoader"},
            ),
            f"{name} has no length",
        )
    if isinstance(batch_sampler, Sequence):
        return _listed([len(indices) for indices in batch_sampler], "the batches of indices listed")
    return _of_own_sampler(batch_sampler)


def _of_own_sampler(batch_sampler: object) -> TrainingData:
    """A batch sampler of the user's own: its attributes, as long as they agree with its length."""
    name = type(batch_sampler).__name__
    size, drop_last = getattr(batch_sampler, "batch_size", None), getattr(batch_sampler, "drop_last", None)
    sampler = getattr(batch_sampler, "sampler", None)
    samples = _length(sampler)
    read = TrainingData(
        samples=samples,
        batch_size=size if _is_count(size) else None,
        drop_last=drop_last if isinstance(drop_last, bool) else None,
        replicas=_replicas(sampler),
        sources={field: f"{name}.{field}" for field in ("batch_size", "drop_last")}
        | {"samples": f"len({type(sampler).__name__})"},
    )
    unsaid = [field for field in ("batch_size", "drop_last") if getattr(read, field) is None]
    if samples is None:
        unsaid.append("length of a sampler")
    if unsaid:
        return replace(read, unknown=f"{name} has no {' and no '.join(unsaid)} to read")
    found = _counted(read, "")
    said = _length(batch_sampler)
    if found.last_batch is not None and said is not None and said != _batches(found):
        return replace(
            found, last_batch=None, unknown=f"{name} yields {said} batches, which its batch size does not explain"
        )
    return found


def _batches(read: TrainingData) -> int:
    assert read.samples is not None
    assert read.batch_size is not None
    return read.samples // read.batch_size if read.drop_last else -(-read.samples // read.batch_size)


def _counted(read: TrainingData, without_length: str) -> TrainingData:
    """Add the last batch's size."""
    if read.samples is None or read.batch_size is None:
        return replace(read, unknown=without_length)
    last = read.samples % read.batch_size
    if last and not read.drop_last:
        return replace(read, last_batch=last)
    if not read.samples // read.batch_size:
        return replace(read, unknown="an epoch holds no batch")
    return replace(read, last_batch=read.batch_size)


def _listed(sizes: Sequence[int], where: str) -> TrainingData:
    if not sizes:
        return TrainingData(unknown="an epoch holds no batch")
    sources: Mapping[str, str] = dict.fromkeys(("samples", "batch_size", "last_batch"), where)
    return TrainingData(
        samples=sum(sizes), batch_size=max(sizes), drop_last=False, last_batch=sizes[-1], sources=sources
    )


def _length(sampler: object) -> int | None:
    """``len`` of a sampler that has one; an unsized one raises TypeError, one that counts lazily what it likes."""
    try:
        length = len(sampler)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None
    return length


def _replicas(sampler: object) -> int:
    """Processes of a ``DistributedSampler``, whose length is one process's; it pads so that all are alike."""
    return sampler.num_replicas if isinstance(sampler, DistributedSampler) else 1


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
