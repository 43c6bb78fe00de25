"""One sweep over the calibration data in eval mode: input moments, mode of each call, and the gap to batch moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bncheck.core.layers import Float64Array
from bncheck.core.measurement import LayerMeasurement, TrainEvalGap
from bncheck.core.moments import population_moments
from bncheck.probe.outputs import are_scores, prediction, top_class
from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.batches import Batch, Forward
from bncheck.runtime.input_moments import InputMoments
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means, running_variances

Progress = Callable[[int], None]
"""Samples seen so far."""

# Batches with fewer samples say little of their own moments.
_LEAST_BATCH = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one sweep came to.

    Attributes:
        samples: how many were seen.
        layers: by name; layers the data never reached have an empty measurement.
        unattributed: whether a call without known running buffers used the batch's moments, as a layer without
            running moments does.
        gap: None where no batch was large enough, or no layer has moments.
    """

    samples: int
    layers: Mapping[str, LayerMeasurement]
    unattributed: bool
    gap: TrainEvalGap | None


def evaluate(model: nn.Module, data: Iterable[Batch], forward: Forward, progress: Progress | None = None) -> Evaluation:
    """Run the model twice over the data: as it is, watched, and with each batch's own moments.

    The model is left as it was found by whoever calls this (``unchanged``); it must be in eval mode.

    Raises:
        BadModel: the model returns no tensor of predictions.
        BadData, UserCodeFailed: the data or the model failed.
    """
    return _Sweep(model, forward).run(data, progress)


@dataclass(slots=True)
class _Seen:
    order: int
    calls: int = 0
    most_calls: int = 0
    uses_batch_moments: bool = False
    eps: float | None = None
    moments: InputMoments = field(default_factory=InputMoments)


class _Sweep:
    def __init__(self, model: nn.Module, forward: Forward) -> None:
        self._model = model
        self._forward = forward
        self._buffers = running_means(model)
        self._variances = running_variances(model)
        self._seen: dict[str, _Seen] = {}
        self._unattributed = False
        self._size = 0
        self._gap = _GapSums()

    def run(self, data: Iterable[Batch], progress: Progress | None) -> Evaluation:
        samples = 0
        with torch.no_grad():
            for batch in data:
                self._take(batch)
                samples += batch.size
                if progress is not None:
                    progress(samples)
        layers = {name: self._measurement(name) for name in self._buffers}
        return Evaluation(samples, layers, self._unattributed, self._gap.result())

    def _take(self, batch: Batch) -> None:
        self._size = batch.size
        for seen in self._seen.values():
            seen.calls = 0
        with NormWatch(self._buffers, self._record):
            stored = prediction(self._forward(self._model, batch), batch.size)
        if batch.size >= _LEAST_BATCH and self._buffers:
            with BatchMoments(self._buffers.values()):
                own = prediction(self._forward(self._model, batch), batch.size)
            self._gap.add(stored, own, batch)

    def _record(self, call: NormCall) -> None:
        if call.layer is None:
            self._unattributed |= call.mixes_samples(self._size)
            return
        seen = self._seen.setdefault(call.layer, _Seen(len(self._seen)))
        seen.calls += 1
        seen.most_calls = max(seen.most_calls, seen.calls)
        seen.uses_batch_moments |= call.uses_batch_moments
        seen.eps = call.eps
        seen.moments.add(call.input)

    def _measurement(self, name: str) -> LayerMeasurement:
        seen = self._seen.get(name)
        if seen is None:
            return LayerMeasurement()
        sums = seen.moments.sums()
        return LayerMeasurement(
            order=seen.order,
            calls=seen.most_calls,
            uses_batch_moments=seen.uses_batch_moments,
            moments=None if sums is None else population_moments(sums),
            stored_mean=_stored(self._buffers.get(name)),
            stored_var=_stored(self._variances.get(name)),
            eps=seen.eps,
        )


def _stored(buffer: Tensor | None) -> Float64Array | None:
    if buffer is None:
        return None
    array: Float64Array = buffer.detach().cpu().double().numpy().copy()
    return array


@dataclass(slots=True)
class _GapSums:
    """Sums over samples of what tells two ways of predicting apart."""

    samples: int = 0
    smallest: int = 0
    difference: float = 0.0
    power: float = 0.0
    differing: int = 0
    scores: bool = True
    labelled: int = 0
    hits: list[int] = field(default_factory=lambda: [0, 0])
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, stored: Tensor, own: Tensor, batch: Batch) -> None:
        """Take in one batch's two predictions, (N, *) each."""
        self.samples += batch.size
        self.smallest = batch.size if self.smallest == 0 else min(self.smallest, batch.size)
        self.difference += float(((stored - own) ** 2).sum())
        self.power += float((own**2).sum())
        self.scores &= are_scores(stored)
        if not self.scores:
            return
        self.differing += int((top_class(stored) != top_class(own)).sum())
        if batch.labels is None or bool((batch.labels < 0).any()) or int(batch.labels.max()) >= stored.shape[1]:
            return
        self.labelled += batch.size
        for index, output in enumerate((stored, own)):
            labels = batch.labels.to(output.device)
            self.hits[index] += int((top_class(output) == labels).sum())
            self.losses[index] += float(cross_entropy(output, labels, reduction="sum"))

    def result(self) -> TrainEvalGap | None:
        """The averages; None where there was no batch."""
        if not self.samples:
            return None
        change = math.sqrt(self.difference / self.power) if self.power > 0 else math.nan
        labelled = self.scores and self.labelled > 0
        accuracy = [hits / self.labelled for hits in self.hits] if labelled else [None, None]
        loss = [total / self.labelled for total in self.losses] if labelled else [None, None]
        return TrainEvalGap(
            samples=self.samples,
            batch_size=self.smallest,
            output_change=change,
            disagreement=self.differing / self.samples if self.scores else None,
            accuracy_stored=accuracy[0],
            accuracy_batch=accuracy[1],
            loss_stored=loss[0],
            loss_batch=loss[1],
        )
