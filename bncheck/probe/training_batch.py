"""How many values per channel one training batch gives each layer."""

from __future__ import annotations

import torch
from torch import nn

from bncheck.core.measurement import BatchValues, TrainingBatch
from bncheck.runtime.batches import Batch, Forward, select
from bncheck.runtime.restored import restored
from bncheck.runtime.training_watch import TrainingWatch, is_constant, norm_modules


def training_batch(
    model: nn.Module, batch: Batch, forward: Forward, source: str, samples: int | None = None
) -> TrainingBatch:
    """Run the model in eval mode, where no layer refuses a single value, and look at the shapes.

    Args:
        model: left as it was found.
        batch: of the training data.
        forward: calls the model.
        source: the option that the batch came from.
        samples: to scale to; those of the batch where it is full.

    Raises:
        UserCodeFailed: the model failed.
        TraceLeft: it could not be put back.
    """
    # A layer without running moments uses the batch's in eval mode, too, and would refuse a single sample.
    taken = select(batch, [0, 0]) if batch.size == 1 else batch
    with restored(model):
        own = _own_modes(model)
        _set_mode(model, training=False)
        watch = TrainingWatch(model)
        with watch, torch.no_grad():
            forward(model, taken)
    samples = samples or batch.size
    values: dict[str, float] = {}
    for run in watch.runs:
        if run.values is not None:
            scaled = run.values * samples / taken.size
            values[run.layer] = min(scaled, values.get(run.layer, scaled))
    modules = norm_modules(model)
    layers = {
        name: BatchValues(
            values=found,
            uses_batch_moments=own.get(name, True),
            pooled=isinstance(modules.get(name), nn.SyncBatchNorm),
        )
        for name, found in values.items()
    }
    return TrainingBatch(samples, batch.size, source, layers)


def _own_modes(model: nn.Module) -> dict[str, bool]:
    """Whether each layer takes part when the model is put in training mode, which each module's own ``train`` says."""
    _set_mode(model, training=True)
    return {
        name: not is_constant(module) and (module.training or not getattr(module, "track_running_stats", True))
        for name, module in norm_modules(model).items()
    }


def _set_mode(model: nn.Module, training: bool) -> None:
    # An exported program is a graph of one mode and refuses to be put in another.
    try:
        model.train(training)
    except NotImplementedError:
        return
