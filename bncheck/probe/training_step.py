"""What one training step does to every layer's running moments, and to the weights beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from torch import nn

from bncheck.core.errors import BadModel
from bncheck.core.measurement import LayerStep, TrainingStep
from bncheck.runtime.hand_written import MEANS, VARIANCES
from bncheck.runtime.norm_watch import running_means
from bncheck.runtime.restored import restored
from bncheck.runtime.training_watch import NormRun, TrainingWatch, is_constant, norm_modules

Step = Callable[[nn.Module], object]
"""Trains the model on a batch it knows of; raises ``UserCodeFailed`` where it fails."""


def training_step(model: nn.Module, step: Step, by_user: bool, samples: int | None) -> TrainingStep:
    """Put the model in training mode, let it take one step, look, and put everything back.

    Modes are set by each module's own ``train``, so that layers it keeps frozen stay so.

    Args:
        model: left as it was found, weights included.
        step: what to run: the user's training step, or a forward pass.
        by_user: which of the two it is; a forward pass runs without gradients.
        samples: in the batch, where known.

    Raises:
        BadModel: the model has no training mode.
        UserCodeFailed: the step failed.
        TraceLeft: the model could not be put back.
    """
    with restored(model) as before:
        _into_training_mode(model)
        counters = _counters(model)
        watch = TrainingWatch(model)
        with watch, torch.set_grad_enabled(by_user):
            step(model)
        parts = (name.rpartition(".") for name in before.mutated_buffers())
        changed = {layer for layer, _, leaf in parts if leaf in (*MEANS, *VARIANCES)}
        counted = {name: _counters(model).get(name, start) - start for name, start in counters.items()}
        weights = before.changed_parameters() if by_user else None
        modules = dict(model.named_modules())
        still = {name for name in norm_modules(model) if _learns_nothing(modules, name)}
    layers = {
        name: _layer(
            [run for run in watch.runs if run.layer == name],
            changed=name in changed,
            counted=counted.get(name, 0),
            learns_nothing=name in still,
            momentum=_momentum(norm_modules(model).get(name)),
        )
        for name in running_means(model)
    }
    return TrainingStep(
        by_user=by_user,
        samples=samples,
        passes=watch.passes,
        stayed_in_training=all(run.model_training for run in watch.runs[-1:]),
        parameters_changed=weights,
        layers=layers,
    )


def _into_training_mode(model: nn.Module) -> None:
    try:
        model.train()
    except NotImplementedError as error:
        raise BadModel("an exported program has no training mode") from error


def _layer(
    runs: Sequence[NormRun], changed: bool, counted: int, learns_nothing: bool, momentum: float | None
) -> LayerStep:
    forwards = [run for run in runs if not run.in_backward]
    written = [run for run in runs if run.updates]
    last = runs[-1] if runs else None
    modes = {run.uses_batch_moments for run in runs}
    return LayerStep(
        calls=len(forwards),
        recomputed=len(runs) - len(forwards),
        most_in_a_pass=max((len(list(group)) for _, group in groupby(run.model_pass for run in forwards)), default=0),
        # num_batches_tracked also counts what no watch of this thread can see.
        updates=max(len(written), counted),
        recomputed_updates=sum(run.in_backward for run in written),
        repeated_updates=_repeated([run for run in written if not run.in_backward]),
        changed=changed,
        uses_batch_moments=True if True in modes else False if False in modes else None,
        training=None if last is None else last.training,
        frozen=learns_nothing or any(_stays(run) for run in runs[-1:]),
        momentum=momentum,
        values=min((run.values for run in runs if run.values and run.uses_batch_moments is not False), default=None),
    )


def _stays(run: NormRun) -> bool:
    """Whether a layer uses its stored moments on purpose: alone in eval mode, or whatever its mode is."""
    if run.uses_batch_moments is True or run.training is None:
        return False
    return run.model_training if not run.training else run.uses_batch_moments is False


def _repeated(updates: Sequence[NormRun]) -> int:
    """Updates by further passes over a batch already taken, or by passes nothing is learned from beside one that is."""
    learning = any(run.learns for run in updates)
    taken: dict[object, int] = {}
    repeated = 0
    for run in sorted(updates, key=lambda run: not run.learns) if learning else updates:
        first = taken.setdefault(run.batch, run.model_pass)
        repeated += first != run.model_pass or (learning and not run.learns)
    return repeated


def _learns_nothing(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Whether a layer's own parameters, or those of what it stands in where it has none, are all fixed."""
    if is_constant(modules[name]):
        return True
    while True:
        parameters = list(modules[name].parameters())
        if parameters or not name:
            return not any(parameter.requires_grad for parameter in parameters)
        name = name.rpartition(".")[0]


def _counters(model: nn.Module) -> dict[str, int]:
    return {
        name.rpartition(".")[0]: int(buffer)
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] == "num_batches_tracked" and buffer.numel() == 1
    }


def _momentum(module: nn.Module | None) -> float | None:
    momentum = getattr(module, "momentum", None)
    return float(momentum) if isinstance(momentum, (int, float)) else None
