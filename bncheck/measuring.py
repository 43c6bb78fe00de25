"""Runs the user's model on the user's data: checkpoint + SPECs → Measurements. Importing this imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BadData, BadUsage, BncheckError
from bncheck.core.measurement import Companions, Measurements, NotMeasured, TrainEvalGap
from bncheck.core.run_options import RunOptions
from bncheck.probe.companions import companions
from bncheck.probe.evaluation import Evaluation, evaluate
from bncheck.runtime.batches import Batch, DataOptions, Forward, batches, forward, open_data
from bncheck.runtime.model import ModelOptions, load_model
from bncheck.runtime.norm_watch import running_means
from bncheck.runtime.unchanged import Snapshot, unchanged
from bncheck.runtime.user_code import failure, load_callable

Progress = Callable[[int, int], None]
"""(samples seen, samples asked for)."""


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure(checkpoint: Checkpoint, options: RunOptions, progress: Progress | None = None) -> Measurements:
    """Build the model, run it and measure; what fails after the first batch leaves the rest measured.

    Raises:
        BncheckError: the model or the data cannot be had at all.
    """
    device, dtype = _device(options.device), _DTYPES[options.precision]
    model = load_model(
        checkpoint,
        ModelOptions(options.model, options.model_arguments, options.trust_pickle, device=device, dtype=dtype),
    )
    taking = DataOptions(
        samples=options.samples,
        batch_size=options.batch_size,
        input_key=options.input_key,
        label_key=options.label_key,
        device=device,
        dtype=dtype,
    )
    call = _forward(options.forward)
    return _Run(model, call, taking, progress).on(open_data(options.data, options.batch_size), options)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadUsage(f"--device {name}: {str(error).partition(chr(10))[0]}") from None
    return device


def _forward(spec: str | None) -> Forward:
    if spec is None:
        return forward
    function = load_callable(spec)

    def call(model: nn.Module, batch: Batch) -> object:
        inputs = batch.inputs if isinstance(batch.inputs, Mapping) else batch.inputs[0]
        try:
            return function(model, inputs)
        except Exception as error:
            raise failure(spec, error) from error

    return call


class _Run:
    def __init__(
        self,
        model: nn.Module,
        call: Forward,
        taking: DataOptions,
        progress: Progress | None,
    ) -> None:
        self._model = model
        self._call = call
        self._taking = taking
        self._progress = progress
        self._failed: list[NotMeasured] = []
        self._first: Batch | None = None
        self._stopped: BncheckError | None = None

    def on(self, data: Iterable[object], options: RunOptions) -> Measurements:
        with unchanged(self._model) as before:
            evaluation = evaluate(self._model, self._remembered(data), self._call, self._tell)
            mutated = self._mutated(before)
        if self._first is None:
            raise self._stopped or BadData("the data is empty: it yields no batch")
        if self._stopped is not None:
            what = f"{self._stopped} (after {evaluation.samples} samples)"
            self._failed.append(NotMeasured("data", what, failed=True))
        return Measurements(
            device=str(self._taking.device),
            precision=options.precision,
            samples=evaluation.samples,
            layers=evaluation.layers,
            mutated=mutated,
            companions=self._companions(self._first, evaluation),
            gap=self._gap(evaluation),
            not_measured=tuple(self._failed),
        )

    def _tell(self, samples: int) -> None:
        if self._progress is not None:
            self._progress(samples, self._taking.samples)

    def _remembered(self, data: Iterable[object]) -> Iterable[Batch]:
        """The batches; where the data fails half-way, those that came."""
        try:
            for batch in batches(data, self._taking):
                if self._first is None:
                    self._first = batch
                yield batch
        except BncheckError as error:
            self._stopped = error

    def _mutated(self, before: Snapshot) -> tuple[str, ...]:
        layers = running_means(self._model)
        changed = {name.rpartition(".")[0] for name in before.mutated_buffers()}
        return tuple(name for name in layers if name in changed)

    def _companions(self, batch: Batch, evaluation: Evaluation) -> Companions | None:
        if batch.size < 2:
            self._failed.append(NotMeasured("companions", "the first batch holds a single sample"))
            return None
        try:
            with unchanged(self._model):
                found = companions(self._model, batch, self._call)
        except BncheckError as error:
            self._failed.append(NotMeasured("companions", str(error), failed=True))
            return None
        return replace(found, by_batch_norm=found.by_batch_norm or evaluation.unattributed)

    def _gap(self, evaluation: Evaluation) -> TrainEvalGap | None:
        if evaluation.gap is None:
            self._failed.append(NotMeasured("gap", "no batch of eight samples or more, or no layer with moments"))
        return evaluation.gap
