"""What training would do to batch norm: the loader's own numbers, one batch of it, and one step on that batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from bncheck.core.errors import BadData, BadModel, BncheckError, UserCodeFailed
from bncheck.core.measurement import BatchValues, NotMeasured, TrainingBatch, TrainingData, TrainingStep
from bncheck.probe.training_batch import training_batch
from bncheck.probe.training_data import training_data
from bncheck.probe.training_step import training_step
from bncheck.runtime.batches import Batch, DataOptions, Forward, batches
from bncheck.runtime.out_of_memory import telling_out_of_memory
from bncheck.runtime.sources import Sources
from bncheck.runtime.unchanged import unchanged
from bncheck.runtime.user_code import call, failure

Measured = TypeVar("Measured")


@dataclass(frozen=True, slots=True)
class Training:
    """What was measured of training, field by field as ``Measurements`` has it; None where it was not.

    Attributes:
        data, batch, step: see there.
        not_measured: why not.
    """

    data: TrainingData | None = None
    batch: TrainingBatch | None = None
    step: TrainingStep | None = None
    not_measured: tuple[NotMeasured, ...] = ()


Naming = Callable[[str], str | None]
"""Name of a layer in the model → its name in the file; None where the file has no such layer."""


def measure_training(
    model: nn.Module, sources: Sources, taking: DataOptions, forward: Forward, named: Naming = str
) -> Training:
    """Measure what was asked for: nothing without training data and without a training step.

    What fails is among ``not_measured``, and the rest is measured all the same.

    Args:
        model: left as it was found.
        sources: ``train_data`` and ``train_step``; ``data`` gives the batch where there is no training data.
        taking: how to take batches apart.
        forward: calls the model.
        named: how the file calls the model's layers.
    """
    if sources.train_data is None and sources.train_step is None:
        return Training()
    found = _Probes(model, sources, replace(taking, samples=sys.maxsize), forward).run()
    batch = None if found.batch is None else replace(found.batch, layers=_renamed(found.batch.layers, named))
    step = None if found.step is None else replace(found.step, layers=_renamed(found.step.layers, named))
    return replace(found, batch=batch, step=step)


def _renamed(layers: Mapping[str, Measured], named: Naming) -> dict[str, Measured]:
    return {name: layer for layer_name, layer in layers.items() if (name := named(layer_name)) is not None}


class _Probes:
    def __init__(self, model: nn.Module, sources: Sources, taking: DataOptions, forward: Forward) -> None:
        self._model = model
        self._sources = sources
        self._taking = taking
        self._forward = forward
        self._failed: list[NotMeasured] = []

    def run(self) -> Training:
        data: TrainingData | None = None
        drawn = self._try("training", self._drawn)
        if drawn is None:
            return Training(not_measured=tuple(self._failed))
        loader, raw = drawn
        if self._sources.train_data is not None:
            data = self._try("training_data", lambda: training_data(loader, self._taking))
        batch = self._try("training_batch", lambda: next(iter(batches([raw], self._taking))))
        step = self._try("training_step", lambda: self._step(raw, batch))
        seen: TrainingBatch | None = None
        if batch is not None:
            size = _full_batch(batch, data)
            seen = self._try(
                "training_batch", lambda: training_batch(self._model, batch, self._forward, self._source, size)
            )
        return Training(data, _as_stepped(seen, step), step, tuple(self._failed))

    @property
    def _source(self) -> str:
        source = self._sources.train_data or self._sources.data
        return "data" if source is None else source.name

    def _drawn(self) -> tuple[Iterable[object], object]:
        """The loader and its first batch as it yields it; the generators it draws from are put back."""
        source = self._sources.train_data or self._sources.data
        if source is None:
            raise BadData("--train-step needs a batch: name --train-data or --data")
        with unchanged(self._model):
            loader = source.open()
            if isinstance(loader, Iterator) and source is self._sources.data and source.open() is loader:
                raise BadData(f"{self._source} is an iterator, which can be gone through once; give the loader itself")
            try:
                raw = next(iter(loader), _NOTHING)
            except Exception as error:
                raise failure(f"reading the first batch of {self._source}", error) from error
        if raw is _NOTHING:
            raise BadData(f"{self._source} is empty: it yields no batch")
        return loader, raw

    def _step(self, raw: object, batch: Batch | None) -> TrainingStep:
        samples = None if batch is None else batch.size
        step = self._sources.train_step
        if step is not None:
            function = step.get()
            return training_step(self._model, lambda model: call(step.name, function, model, raw), True, samples)
        if batch is None:
            raise BadData("there is no batch for a forward pass")
        if isinstance(self._model, torch.jit.ScriptModule):
            raise BadModel("a TorchScript graph")
        return training_step(self._model, lambda model: self._forward(model, batch), False, samples)

    def _try(self, what: str, probe: Callable[[], Measured]) -> Measured | None:
        try:
            with telling_out_of_memory("what training takes: the weights twice, and a full batch"):
                return probe()
        except BncheckError as error:
            detail = error.detail if isinstance(error, UserCodeFailed) else ""
            reason, failed = _told(what, error)
            self._failed.append(NotMeasured(what, reason, failed, detail if failed else ""))
        return None


_NOTHING = object()


def _full_batch(batch: Batch, data: TrainingData | None) -> int:
    """Samples of a full batch, where the one drawn is short of it.

    One that is larger is not: views of a sample, or its parts, are samples to a layer.
    """
    if data is None or data.batch_size is None or (data.samples is not None and data.samples < data.batch_size):
        return batch.size
    return max(batch.size, data.batch_size)


def _told(what: str, error: BncheckError) -> tuple[str, bool]:
    """The reason, and whether something broke that was to work."""
    if what == "training_step" and isinstance(error, BadModel):
        # Not asked for by name where there is no --train-step: the file's graph is simply not what is trained.
        return f"{error} is not what is trained; name what builds the model: --model SPEC", False
    if _is_refused(error.__cause__):
        return "PyTorch refuses to train on the batch: a layer gets one value per channel, which is BN301", False
    return str(error), True


def _is_refused(error: BaseException | None) -> bool:
    """Whether it is the complaint of ``torch.nn.functional._verify_batch_size``."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def _as_stepped(batch: TrainingBatch | None, step: TrainingStep | None) -> TrainingBatch | None:
    """The batch, where the step shows more of it.

    Some layers run in training alone, some use their stored moments whatever their mode says, and a step may cut its
    batch into smaller ones.
    """
    if batch is None or step is None:
        return batch
    layers = dict(batch.layers)
    for name, stepped in step.layers.items():
        known = layers.get(name)
        if known is not None and stepped.ran and stepped.uses_batch_moments is False:
            layers[name] = replace(known, uses_batch_moments=False)
        elif stepped.values is not None and not stepped.frozen:
            scaled = stepped.values * batch.samples / batch.seen
            layers[name] = BatchValues(scaled) if known is None else replace(known, values=min(known.values, scaled))
    return replace(batch, layers=layers)
