"""Runs the user's model on the user's data and measures, by SPEC or in memory. Importing it imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BadData, BadSpec, BncheckError, UserCodeFailed
from bncheck.core.measurement import Companions, LayerMeasurement, Measurements, NotMeasured
from bncheck.core.run_options import InMemory, RunOptions
from bncheck.probe.companions import companions
from bncheck.probe.evaluation import Evaluation, evaluate
from bncheck.probe.training import Training, measure_training
from bncheck.runtime.batches import Batch, DataOptions, Forward, batches, halves
from bncheck.runtime.device import DTYPES, device_named, place_of_module
from bncheck.runtime.model import Loaded, ModelOptions, StatisticsMismatch, chosen_group, in_memory, load_model
from bncheck.runtime.norm_watch import running_means
from bncheck.runtime.sources import (
    Source,
    Sources,
    forward_by_spec,
    forward_in_memory,
    sources_by_spec,
    sources_in_memory,
)
from bncheck.runtime.unchanged import Snapshot, in_eval_mode, unchanged

Measured = TypeVar("Measured")
Progress = Callable[[int, int], None]
"""(samples seen, samples asked for)."""


_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


def measure(checkpoint: Checkpoint, options: RunOptions, progress: Progress | None = None) -> Measurements:
    """Build the model of a file, run it and measure; what fails is among ``not_measured``, and the rest is measured.

    Raises:
        BncheckError: the model cannot be had at all.
    """
    device, dtype = device_named(options.device), DTYPES[options.precision]
    group = chosen_group(checkpoint, options.group)
    taking = DataOptions(
        samples=options.samples,
        batch_size=options.batch_size,
        input_key=options.input_key,
        label_key=options.label_key,
        device=device,
        dtype=dtype,
    )
    try:
        loaded = load_model(
            checkpoint,
            ModelOptions(
                spec=options.model,
                arguments=options.model_arguments,
                trust_pickle=options.trust_pickle,
                group=group,
                device=device,
                dtype=dtype,
            ),
        )
    except StatisticsMismatch as error:
        return Measurements(
            str(device),
            options.precision,
            0,
            group=group,
            missing_statistics=error.missing,
            spare_statistics=error.spare,
            not_measured=(NotMeasured("model", str(error), failed=True),),
        )
    call = forward_by_spec(options.forward)
    run = _Run(loaded, call, taking, checkpoint.frozen_layers(group), progress)
    measured = run.on(sources_by_spec(options))
    return replace(measured, precision=options.precision, group=group)


def measure_in_memory(
    model: nn.Module, checkpoint: Checkpoint, given: InMemory, progress: Progress | None = None
) -> Measurements:
    """Run a module of this process and measure it, in eval mode; it is left as it was found.

    Args:
        model: the module, which runs where it is and in its own precision.
        checkpoint: what was read of it.
        given: what to run it on.
        progress: told of the samples seen.

    Raises:
        BncheckError: it cannot be run at all.
    """
    group = chosen_group(checkpoint, "model")
    loaded = in_memory(model, checkpoint, group)
    device, dtype = place_of_module(model)
    taking = DataOptions(
        samples=given.samples,
        input_key=given.input_key,
        label_key=given.label_key,
        device=device,
        dtype=dtype,
    )
    run = _Run(loaded, forward_in_memory(given.forward), taking, checkpoint.frozen_layers(group), progress)
    with in_eval_mode(model):
        measured = run.on(sources_in_memory(given))
    return replace(measured, precision=_PRECISIONS.get(dtype, str(dtype).removeprefix("torch.")), group=group)


@dataclass(slots=True)
class _Drawn:
    """The batches of the data, and how they ended."""

    first: Batch | None = None
    stopped: BncheckError | None = None


class _Run:
    """The probes on one model; each that fails, or leaves a trace, is told and hinders none of the others."""

    def __init__(
        self,
        loaded: Loaded,
        call: Forward,
        taking: DataOptions,
        frozen: frozenset[str],
        progress: Progress | None,
    ) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._call = call
        self._taking = taking
        # By the model's own names.
        self._frozen = frozenset(name for name in running_means(self._model) if self._named(name) in frozen)
        self._progress = progress
        self._failed: list[NotMeasured] = []

    def on(self, sources: Sources) -> Measurements:
        training = self._training(sources)
        measured = Measurements(str(self._taking.device), "", 0)
        if sources.data is not None:
            measured = self._predicting(sources.data, measured)
        return replace(
            measured,
            training_data=training.data,
            training_batch=training.batch,
            training_step=training.step,
            not_measured=(*self._failed, *training.not_measured),
        )

    def _training(self, sources: Sources) -> Training:
        measured = self._try(
            "training", lambda: measure_training(self._model, sources, self._taking, self._call, self._named)
        )
        return measured or Training()

    def _predicting(self, source: Source, measured: Measurements) -> Measurements:
        drawn = _Drawn()
        swept = self._try("prediction", lambda: self._swept(source, drawn))
        if drawn.first is None or swept is None:
            return measured
        evaluation, mutated = swept
        stopped = drawn.stopped or evaluation.stopped
        if stopped is not None:
            self._note("data", stopped, f"{stopped} (after {evaluation.samples} samples)")
        if evaluation.gap is None:
            self._failed.append(NotMeasured("gap", evaluation.why_no_gap))
        first = halves(drawn.first)[0] if evaluation.halved and drawn.first.size > 1 else drawn.first
        return replace(
            measured,
            samples=evaluation.samples,
            layers=self._layers(evaluation),
            mutated=mutated,
            companions=self._companions(first, evaluation),
            gap=evaluation.gap,
        )

    def _swept(self, source: Source, drawn: _Drawn) -> tuple[Evaluation, tuple[str, ...]]:
        """What a sweep over the data shows, and which layers it changed."""
        with unchanged(self._model) as before:
            drawing = self._remembered(source.open(), drawn)
            evaluation = evaluate(self._model, drawing, self._call, self._tell, self._frozen)
            return evaluation, self._mutated(before)

    def _named(self, layer: str) -> str | None:
        return self._loaded.named_in_file(layer)

    def _layers(self, evaluation: Evaluation) -> dict[str, LayerMeasurement]:
        named = ((self._named(name), layer) for name, layer in evaluation.layers.items())
        return {name: layer for name, layer in named if name is not None}

    def _tell(self, samples: int) -> None:
        if self._progress is not None:
            self._progress(samples, self._taking.samples)

    def _remembered(self, data: Iterable[object], drawn: _Drawn) -> Iterator[Batch]:
        """The batches; where the data fails half-way, those that came."""
        try:
            for batch in batches(data, self._taking):
                if drawn.first is None:
                    drawn.first = batch
                yield batch
        except BncheckError as error:
            if drawn.first is None:
                raise
            drawn.stopped = error

    def _mutated(self, before: Snapshot) -> tuple[str, ...]:
        """Layers whose running buffers were changed, by the file's names; those it does not know by the model's."""
        changed = {name.rpartition(".")[0] for name in before.mutated_buffers()}
        return tuple(self._named(name) or name for name in running_means(self._model) if name in changed)

    def _companions(self, batch: Batch, evaluation: Evaluation) -> Companions | None:
        if batch.size < 2:
            self._failed.append(NotMeasured("companions", "the first batch holds a single sample"))
            return None
        found = self._try("companions", lambda: self._alone_and_together(batch))
        return None if found is None else replace(found, by_batch_norm=found.by_batch_norm or evaluation.unattributed)

    def _alone_and_together(self, batch: Batch) -> Companions:
        with unchanged(self._model):
            return companions(self._model, batch, self._call)

    def _try(self, what: str, probe: Callable[[], Measured]) -> Measured | None:
        """What a probe measures; where it raises, or leaves a trace, a note that it came to nothing."""
        try:
            return probe()
        except BncheckError as error:
            self._note("data" if isinstance(error, (BadData, BadSpec)) else what, error)
        return None

    def _note(self, what: str, error: BncheckError, reason: str = "") -> None:
        detail = error.detail if isinstance(error, UserCodeFailed) else ""
        self._failed.append(NotMeasured(what, reason or str(error), failed=True, detail=detail))
