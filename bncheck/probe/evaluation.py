"""One sweep over the calibration data in eval mode: input moments, mode of each call, and the gap to batch moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bncheck.core.errors import BncheckError, OutOfMemory
from bncheck.core.layers import Float64Array
from bncheck.core.measurement import LayerMeasurement, TrainEvalGap
from bncheck.core.moments import population_moments
from bncheck.probe.outputs import are_scores, prediction, top_class
from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.batches import Batch, Forward, halves
from bncheck.runtime.hand_written import Form, hookable
from bncheck.runtime.input_moments import ImageMoments, InputMoments
from bncheck.runtime.norm_watch import NormCall, NormWatch, place_of, running_means, running_variances
from bncheck.runtime.out_of_memory import let_go

Progress = Callable[[int], None]
"""Samples seen so far."""

# Batches with fewer samples say little of their own moments.
_LEAST_BATCH = 8
# Means of images and channels of a layer that are kept until they are added up.
_TAKEN_AT_ONCE = 2**13


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one sweep came to.

    Attributes:
        samples: how many were seen.
        layers: by name; layers the data never reached have an empty measurement.
        unattributed: whether a call without known running buffers used the batch's moments, as a layer without
            running moments does.
        gap: None where it was not measured.
        why_no_gap: the reason.
        halved: whether batches had to be taken in halves for want of memory.
        stopped: what ended the sweep before the data did.
    """

    samples: int
    layers: Mapping[str, LayerMeasurement]
    unattributed: bool
    gap: TrainEvalGap | None
    why_no_gap: str = ""
    halved: bool = False
    stopped: BncheckError | None = None


def evaluate(
    model: nn.Module,
    data: Iterable[Batch],
    forward: Forward,
    progress: Progress | None = None,
    frozen: Set[str] = frozenset(),
) -> Evaluation:
    """Run the model twice over the data: as it is, watched, and with each batch's own moments.

    The model is left as it was found by whoever calls this (``unchanged``); it must be in eval mode. What fails after
    the first batch ends the sweep; what was seen until then stands.

    Args:
        model: the model.
        data: its batches; one that memory does not hold is taken in halves, and so are those behind it.
        forward: calls the model.
        progress: told of the samples seen.
        frozen: layers that use stored moments in training mode too, so that they have no part in the gap.

    Raises:
        BadModel: the model returns no tensor of predictions.
        BadData, UserCodeFailed: the data or the model failed on the first batch.
        OutOfMemory: half of the first batch is too large, too.
    """
    return _Sweep(model, forward, frozen).run(data, progress)


@dataclass(slots=True)
class _Seen:
    order: int
    calls: int = 0
    most_calls: int = 0
    uses_batch_moments: bool = False
    per_sample: bool = False
    eps: float | None = None
    unknown: str | None = None
    form: Form | None = None
    moments: InputMoments = field(default_factory=InputMoments)
    pending: list[ImageMoments] = field(default_factory=list)
    through: list[ImageMoments] = field(default_factory=list)

    def commit(self) -> None:
        """Take in what a batch brought, once it has gone through whole: of small layers several batches at once."""
        self.through += self.pending
        self.pending = []
        self.most_calls = max(self.most_calls, self.calls)
        if sum(part.means.numel() for part in self.through) >= _TAKEN_AT_ONCE:
            self.add_up()

    def add_up(self) -> None:
        """Add up what is still to be."""
        self.moments.take(self.through)
        self.through = []


class _Sweep:
    def __init__(self, model: nn.Module, forward: Forward, frozen: Set[str]) -> None:
        self._model = model
        self._forward = forward
        self._buffers = running_means(model)
        self._variances = running_variances(model)
        self._modules = hookable(model)
        self._thawed = {name: mean for name, mean in self._buffers.items() if name not in frozen}
        self._seen: dict[str, _Seen] = {}
        self._watch = NormWatch(self._buffers, self._record, model)
        self._unattributed = False
        self._samples = 0
        self._size = 0
        self._halved = False
        self._gap = _GapSums()
        self._why_no_gap = f"no batch of {_LEAST_BATCH} samples or more"

    def run(self, data: Iterable[Batch], progress: Progress | None) -> Evaluation:
        stopped: BncheckError | None = None
        with torch.no_grad():
            for batch in data:
                try:
                    self._take_all(batch)
                except BncheckError as error:
                    if not self._samples:
                        raise
                    stopped = error
                    break
                if progress is not None:
                    progress(self._samples)
        layers = {name: self._measurement(name) for name in self._buffers}
        gap = self._gap.result()
        return Evaluation(
            self._samples, layers, self._unattributed, gap, self._why_no_gap, halved=self._halved, stopped=stopped
        )

    def _take_all(self, batch: Batch) -> None:
        """The batch, or its halves where memory does not hold it."""
        if not self._halved:
            try:
                self._take(batch)
            except OutOfMemory as error:
                if batch.size < 2:
                    raise
                let_go(error)
                self._halved = True
            else:
                return
        for half in halves(batch) if batch.size > 1 else (batch,):
            try:
                self._take(half)
            except OutOfMemory as error:
                raise OutOfMemory(f"{error}, nor was there for twice as many: {_SMALLER}") from None

    def _take(self, batch: Batch) -> None:
        self._size = batch.size
        for seen in self._seen.values():
            seen.calls, seen.pending = 0, []
        with self._watch:
            stored = prediction(self._forward(self._model, batch), batch.size)
        own = self._with_own_moments(batch)
        for seen in self._seen.values():
            seen.commit()
        if own is not None:
            self._gap.add(stored, own, batch)
        self._samples += batch.size

    def _with_own_moments(self, batch: Batch) -> Tensor | None:
        """The prediction with the batch's own moments in every layer that would use them in training."""
        if batch.size < _LEAST_BATCH:
            return None
        self._why_no_gap = self._hindrance()
        if self._why_no_gap:
            return None
        forms = [(self._modules[name], seen.form) for name, seen in self._taking_part() if seen.form is not None]
        with BatchMoments(self._thawed.values(), forms) as moments:
            own = prediction(self._forward(self._model, batch), batch.size)
        stuck = [
            name
            for name, seen in self._taking_part()
            if seen.form is None and place_of(self._buffers[name]) not in moments.replaced
        ]
        self._why_no_gap = f"{stuck[0]} cannot be given other moments" if stuck else ""
        return None if stuck else own

    def _taking_part(self) -> list[tuple[str, _Seen]]:
        return [(name, seen) for name, seen in self._seen.items() if name in self._thawed and not seen.per_sample]

    def _hindrance(self) -> str:
        part = self._taking_part()
        if not part:
            return "no layer with stored moments ran, but frozen ones"
        return next((f"{name}: {seen.unknown}" for name, seen in part if seen.unknown is not None), "")

    def _record(self, call: NormCall) -> None:
        if call.layer is None:
            self._unattributed |= call.mixes_samples(self._size)
            return
        seen = self._seen.setdefault(call.layer, _Seen(len(self._seen)))
        seen.calls += 1
        seen.uses_batch_moments |= call.uses_batch_moments
        seen.per_sample |= call.per_sample
        seen.eps, seen.form = call.eps, call.form
        if call.unknown is not None:
            seen.unknown = call.unknown
        else:
            observed = seen.moments.observe(call.input)
            seen.pending.extend([] if observed is None else [observed])

    def _measurement(self, name: str) -> LayerMeasurement:
        seen = self._seen.get(name)
        if seen is None:
            return LayerMeasurement()
        seen.add_up()
        sums = seen.moments.sums() if seen.unknown is None else None
        return LayerMeasurement(
            order=seen.order,
            calls=seen.most_calls,
            uses_batch_moments=seen.uses_batch_moments,
            moments=None if sums is None else population_moments(sums),
            stored_mean=_stored(self._buffers.get(name)),
            stored_var=_stored(self._variances.get(name)),
            eps=seen.eps if seen.unknown is None else None,
            unknown=seen.unknown,
        )


_SMALLER = "give smaller batches (--batch-size for a file of inputs, the loader's own else), or fewer with --samples"


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
    squared_rises: float = 0.0
    classes: int = 0

    def add(self, stored: Tensor, own: Tensor, batch: Batch) -> None:
        """Take in one batch's two predictions, (N, *) each."""
        self.samples += batch.size
        self.smallest = batch.size if self.smallest == 0 else min(self.smallest, batch.size)
        self.difference += float((stored - own).square_().sum())
        self.power += float(own.square().sum())
        self.scores &= are_scores(stored)
        if not self.scores:
            return
        self.classes = stored.shape[1]
        self.differing += int((top_class(stored) != top_class(own)).sum())
        if batch.labels is None or bool((batch.labels < 0).any()) or int(batch.labels.max()) >= stored.shape[1]:
            return
        self.labelled += batch.size
        labels = batch.labels.to(stored.device)
        losses = [cross_entropy(output, labels, reduction="none") for output in (stored, own)]
        for index, output in enumerate((stored, own)):
            self.hits[index] += int((top_class(output) == labels).sum())
            self.losses[index] += float(losses[index].sum())
        self.squared_rises += float((losses[0] - losses[1]).square_().sum())

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
            loss_error=self._loss_error() if labelled else None,
            classes=self.classes if self.scores else None,
        )

    def _loss_error(self) -> float:
        rise = (self.losses[0] - self.losses[1]) / self.labelled
        return math.sqrt(max(0.0, self.squared_rises / self.labelled - rise**2) / self.labelled)
