"""Recalibrates a model, of a file or of this process. Importing it imports torch."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BadModel, BadUsage
from bncheck.core.estimate import Estimate
from bncheck.core.estimation_method import Method
from bncheck.core.layers import Averaging, Momentum
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.recalibration import Choice, FileChoice, Metric, Recalibrated, Written
from bncheck.core.update_count import updates_to_write
from bncheck.patch import NewMoments, check_output_of, check_patchable, patch_file
from bncheck.probe.metric import FigureOfMerit, accuracy_on, by_function
from bncheck.readers import read_named
from bncheck.readers.live_module import read_live
from bncheck.recalibration.prior import ByEvidence, PseudoSamples
from bncheck.recalibration.ranks import Distributed, OneProcess, Ranks, joined
from bncheck.recalibration.schedule import Plan, estimate
from bncheck.report.files import write_text
from bncheck.report.json import to_json
from bncheck.report.recalibration_document import recalibration_document
from bncheck.runtime.batches import Batch, DataOptions, Forward, batches, open_data
from bncheck.runtime.device import DTYPES, device_named, place_of_module
from bncheck.runtime.in_memory import describe
from bncheck.runtime.model import Loaded, ModelOptions, chosen_group, in_memory, load_model
from bncheck.runtime.norm_watch import running_means, running_variances
from bncheck.runtime.sources import forward_by_spec, forward_in_memory
from bncheck.runtime.unchanged import in_eval_mode, unchanged
from bncheck.runtime.user_code import load_callable

# The schedule takes as many as it needs.
_ALL = 2**62

Progress = Callable[[int, int | None], None]
"""(samples gone through, samples to go through, None where that is open)."""


class Recalibration:
    """New running moments in a module, and the way back.

    Attributes:
        report: what was estimated, before and after, with standard errors.
        metric: a figure of merit before and after; None where none was asked for.
    """

    def __init__(self, report: Estimate, metric: Metric | None, before: Mapping[Tensor, Tensor]) -> None:
        self.report = report
        self.metric = metric
        self._before = before

    def undo(self) -> None:
        """Put the running moments and their counts back."""
        with torch.no_grad():
            for buffer, value in self._before.items():
                buffer.copy_(value)


def recalibrate(
    model: nn.Module,
    data: Iterable[object],
    *,
    method: str | Method = Method.EXACT,
    samples: int | None = None,
    max_samples: int = 10_000,
    prior: float | None = 0.0,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    memory: int | None = None,
    spatial_stride: int = 1,
    forward: Callable[..., object] | None = None,
    input_key: str | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    check: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> Recalibration:
    """Set a module's running moments to the population's, in place.

    Everything but the running moments and their counts is left as it was, mode flags included; where anything fails,
    these too.

    Args:
        model: where it is and in its own precision.
        data: iterable of batches: tensors, (inputs, labels), mappings.
        method: ``exact``, ``online`` or ``batch``.
        samples: how many to take; None takes as many as the standard errors ask for.
        max_samples: in that case.
        prior: pseudo-samples that the stored moments count as; None weighs them by the evidence.
        layers: globs of layer names, to recalibrate these alone.
        skip: globs of layer names to leave as they are.
        memory: bytes that activations may take.
        spatial_stride: of the positions of an image that are looked at.
        forward: callable (model, inputs); None calls the module.
        input_key: of the inputs, in batches that are mappings.
        evaluate: callable (model) → float, higher is better.
        check: whether an online estimate is followed by a sweep that measures how far it is from the fixed point.
        limits: of the stop rule and of exactness.

    Returns:
        What was found; ``undo()`` puts the old moments back.

    Raises:
        BncheckError: there is nothing to recalibrate, or the model or the data failed.
    """
    choice = Choice(
        Method(method), samples, max_samples, prior, tuple(layers), tuple(skip), memory, spatial_stride, check
    )
    if not any(tensor.is_floating_point() for tensor in (*model.parameters(), *model.buffers())):
        raise BadModel("the module holds no numbers")
    device, dtype = place_of_module(model)
    taking = DataOptions(samples=_ALL, input_key=input_key, dtype=dtype)
    run = _Run(model, forward_in_memory(forward), choice, limits, device, _frozen_in_memory(model))
    measure = None if evaluate is None else by_function("evaluate", evaluate)
    with in_eval_mode(model), unchanged(model):
        outcome = run.on(batches(data, taking), measure, run.ranks_of_this_run(None), None)
    return _applied(model, outcome, limits)


def _applied(model: nn.Module, outcome: _Outcome, limits: Limits) -> Recalibration:
    means, variances = running_means(model), running_variances(model)
    counts = dict(model.named_buffers())
    modules = dict(model.named_modules())
    before: dict[Tensor, Tensor] = {}
    with torch.no_grad():
        for name, layer in outcome.estimate.layers.items():
            count = counts.get(f"{name}.num_batches_tracked" if name else "num_batches_tracked")
            for buffer in (means[name], variances[name], count):
                if buffer is not None:
                    before[buffer] = buffer.clone()
            means[name].copy_(torch.from_numpy(layer.after_mean))
            variances[name].copy_(torch.from_numpy(layer.after_var))
            if count is not None:
                momentum = _momentum_of(modules.get(name))
                count.fill_(updates_to_write(int(count), momentum, outcome.estimate.samples, limits))
    return Recalibration(outcome.estimate, outcome.metric, before)


def _momentum_of(module: nn.Module | None) -> Momentum | None:
    momentum = getattr(module, "momentum", 0.1)
    if momentum is None:
        return Averaging.CUMULATIVE
    return float(momentum) if isinstance(momentum, (int, float)) else None


def recalibrate_file(
    path: str, chosen: FileChoice, limits: Limits = DEFAULT_LIMITS, progress: Progress | None = None
) -> Recalibrated:
    """Recalibrate the model of a file, and write a copy in which only the running moments differ.

    Args:
        path: the model file.
        chosen: what to run, how, and where the copy goes.
        limits: every threshold.
        progress: told of the samples that went through.

    Raises:
        BncheckError: it cannot be done; then nothing was written.
    """
    checkpoint = read_named(path, limits)
    group = chosen_group(checkpoint, chosen.run.group)
    device = _place_of_rank(device_named(chosen.run.device))
    loaded = load_model(
        checkpoint,
        ModelOptions(
            spec=chosen.run.model,
            arguments=chosen.run.model_arguments,
            trust_pickle=chosen.run.trust_pickle,
            group=group,
            device=device,
        ),
    )
    run = _Run(
        loaded.model,
        forward_by_spec(chosen.run.forward),
        chosen.choice,
        limits,
        device,
        _frozen(loaded, checkpoint, group),
    )
    files = _FileNames(checkpoint, loaded, group)
    sha256 = None
    if chosen.output is not None:
        sha256 = check_patchable(checkpoint, [files.full_name(name) for name in run.means])
        check_output_of(checkpoint, chosen.output, force=chosen.force)
    with joined(device, chosen.timeout) as distributed:
        ranks = run.ranks_of_this_run(device if distributed else None)
        _seed(chosen.seed)
        data = open_data(_data_of(chosen), chosen.run.batch_size)
        taking = DataOptions(
            samples=_ALL,
            batch_size=chosen.run.batch_size,
            input_key=chosen.run.input_key,
            label_key=chosen.run.label_key,
        )
        measure = _measure_of(chosen, taking, run.forward, device)
        with unchanged(loaded.model), _autocast(device, DTYPES[chosen.run.precision]):
            outcome = run.on(batches(_share(data, ranks), taking), measure, ranks, progress)
        result = Recalibrated(
            path=path,
            group=group,
            device=str(device),
            precision=chosen.run.precision,
            processes=ranks.count,
            estimate=outcome.estimate,
            counts=files.counts(outcome.estimate, limits),
            metric=outcome.metric,
        )
        if chosen.output is None or ranks.index:
            return result
        if chosen.require_improvement and outcome.metric is not None and outcome.metric.is_worse:
            return replace(result, why_not_written=f"{outcome.metric.name} fell")
        return _written(checkpoint, files, result, chosen, sha256)


def _written(
    checkpoint: Checkpoint, files: _FileNames, result: Recalibrated, chosen: FileChoice, sha256: str | None
) -> Recalibrated:
    assert chosen.output is not None
    moments = {
        files.full_name(name): NewMoments(
            layer.after_mean, layer.after_var, result.counts[name][1] if name in result.counts else None
        )
        for name, layer in result.estimate.layers.items()
    }
    done = patch_file(checkpoint, moments, chosen.output, force=chosen.force, sha256=sha256)
    written = Written(
        path=done.output,
        record=f"{chosen.output}.bncheck.json",
        input_sha256=done.input_sha256,
        output_sha256=done.output_sha256,
        tensors=done.tensors,
        bytes_changed=done.bytes_changed,
    )
    result = replace(result, written=written)
    write_text(written.record, to_json(recalibration_document(result, chosen, libraries())))
    return result


def libraries() -> dict[str, str]:
    """What it ran on, with versions."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


@dataclass(frozen=True, slots=True)
class _FileNames:
    """The model's layers as the file calls them."""

    checkpoint: Checkpoint
    loaded: Loaded
    group: str

    def full_name(self, layer: str) -> str:
        name = self.loaded.named_in_file(layer)
        found = next((one for one in self.checkpoint.layers if one.name == name and one.group == self.group), None)
        if found is None:
            raise BadModel(f"{layer or '(root)'} is in the model and not in the file; --skip it")
        return found.full_name

    def counts(self, found: Estimate, limits: Limits) -> dict[str, tuple[int, int]]:
        """Layers whose count of updates is to change: before and after."""
        stored = {layer.full_name: layer for layer in self.checkpoint.layers}
        counts: dict[str, tuple[int, int]] = {}
        for name in found.layers:
            layer = stored[self.full_name(name)]
            if isinstance(layer.num_batches_tracked, int):
                new = updates_to_write(layer.num_batches_tracked, layer.momentum, found.samples, limits)
                if new != layer.num_batches_tracked:
                    counts[name] = (layer.num_batches_tracked, new)
        return counts


@dataclass(frozen=True, slots=True)
class _Outcome:
    estimate: Estimate
    metric: Metric | None


class _Run:
    """An estimate on one model."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        choice: Choice,
        limits: Limits,
        device: torch.device,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        self.model = model
        self.forward = forward
        self._choice = choice
        self._limits = limits
        self._device = device
        means, variances = running_means(model), running_variances(model)
        able = {name: mean for name, mean in means.items() if name in variances}
        self.means = {
            name: mean
            for name, mean in able.items()
            if name not in frozen and _is_wanted(name, choice.layers, choice.skip)
        }
        self._left_alone = tuple(name for name in able if name not in self.means)
        self._variances = variances
        if not self.means:
            raise BadModel(_nothing_to_do(able, choice))

    def ranks_of_this_run(self, device: torch.device | None) -> Ranks:
        names = list(self.means)
        return OneProcess(names) if device is None else Distributed(names, device)

    def on(
        self, data: Iterator[Batch], measure: FigureOfMerit | None, ranks: Ranks, progress: Progress | None
    ) -> _Outcome:
        before = None if measure is None else measure.of(self.model)
        found = estimate(
            self.model,
            data,
            self.forward,
            self.means,
            self._variances,
            self._plan(),
            ranks,
            _counted(progress, self._choice.samples),
        )
        found = replace(found, left_alone=self._left_alone)
        if measure is None or before is None:
            return _Outcome(found, None)
        return _Outcome(found, Metric(measure.name, before, measure.of(self.model)))

    def _plan(self) -> Plan:
        choice = self._choice
        return Plan(
            method=choice.method,
            samples=choice.samples,
            most_samples=choice.max_samples,
            prior=ByEvidence() if choice.prior is None else PseudoSamples(choice.prior),
            memory=choice.memory,
            stride=choice.spatial_stride,
            check=choice.check,
            whole_batches=isinstance(self.model, (torch.fx.GraphModule, torch.jit.ScriptModule)),
            device=self._device,
            limits=self._limits,
        )


def _is_wanted(name: str, layers: Sequence[str], skip: Sequence[str]) -> bool:
    chosen = not layers or any(fnmatchcase(name, glob) for glob in layers)
    return chosen and not any(fnmatchcase(name, glob) for glob in skip)


def _nothing_to_do(able: Mapping[str, Tensor], choice: Choice) -> str:
    if not able:
        return "the model has no layer with running moments"
    asked = "--layers and --skip leave none of" if choice.layers or choice.skip else "there is none to change among"
    shown = ", ".join(list(able)[:3])
    return f"{asked} the layers with running moments: {shown}{' …' if len(able) > 3 else ''}"


def _data_of(chosen: FileChoice) -> str:
    if chosen.run.data is None:
        raise BadUsage("--data, what to estimate from, is missing")
    return chosen.run.data


def _frozen(loaded: Loaded, checkpoint: Checkpoint, group: str) -> frozenset[str]:
    """Layers that no training changes, by the model's own names."""
    frozen = checkpoint.frozen_layers(group)
    return frozenset(name for name in running_means(loaded.model) if loaded.named_in_file(name) in frozen)


def _frozen_in_memory(model: nn.Module) -> frozenset[str]:
    try:
        checkpoint = read_live(describe(model))
    except BadUsage:
        return frozenset()  # a graph, which has no classes any more
    if not checkpoint.layers:
        return frozenset()
    group = chosen_group(checkpoint, "model")
    return _frozen(in_memory(model, checkpoint, group), checkpoint, group)


def _seed(seed: int) -> None:
    """The same order of samples in every run, and in every process of one."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _share(data: Iterable[object], ranks: Ranks) -> Iterable[object]:
    """This rank's batches: all where its own sampler has picked them, else every so-many-th."""
    sampler = getattr(data, "sampler", None)
    if ranks.count == 1 or isinstance(sampler, torch.utils.data.DistributedSampler):
        return data
    return islice(data, ranks.index, None, ranks.count)


def _place_of_rank(device: torch.device) -> torch.device:
    """Each process of a machine takes a GPU of its own."""
    rank = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(rank)) if device.type == "cuda" and rank is not None else device


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The arithmetic of convolutions in lower precision; weights and moments stay in float32."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def _counted(progress: Progress | None, samples: int | None) -> Callable[[int], None]:
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, samples if samples is not None and done <= samples else None)

    return tell


def _measure_of(
    chosen: FileChoice, taking: DataOptions, forward: Forward, device: torch.device
) -> FigureOfMerit | None:
    if chosen.evaluate is not None and chosen.eval_data is not None:
        raise BadUsage("--evaluate and --eval-data both say what to measure; give one")
    if chosen.evaluate is not None:
        return by_function(chosen.evaluate, load_callable(chosen.evaluate))
    if chosen.eval_data is not None:
        return accuracy_on(chosen.eval_data, replace(taking, device=device), forward)
    return None
