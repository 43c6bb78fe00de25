"""Watches normalisation layers while a model is trained: which ran, in which pass, and who wrote their moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

from bncheck.runtime.hand_written import MEANS, VARIANCES
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means

Fingerprint = tuple[tuple[tuple[int, ...], float, float], ...]
"""Shape, sum and norm of each tensor of a batch: enough to know it again."""


@dataclass(slots=True)
class NormRun:
    """One run of one layer.

    Attributes:
        layer: its name.
        values: per channel of its input, N · spatial positions; None where it is no tensor of such a shape.
        uses_batch_moments: whether it normalised with the moments of its input; None where no operator shows it.
        updates: whether it wrote the layer's running moments.
        in_backward: whether autograd ran it, as recomputation does.
        learns: whether gradients were on.
        model_pass: which forward pass of the model it belongs to; a run outside of any is a pass of its own.
        batch: what that pass was given.
        training: the layer's mode flag; None where no module of it is known.
        model_training: the whole model's.
    """

    layer: str
    values: int | None
    uses_batch_moments: bool | None
    updates: bool
    in_backward: bool
    learns: bool
    model_pass: int
    batch: Fingerprint
    training: bool | None
    model_training: bool


def norm_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Layer name → module, for all that are batch norm by class or by their running moments."""
    return {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, _InstanceNorm)
        and (isinstance(module, _BatchNorm) or any(leaf in MEANS for leaf, _ in module.named_buffers(recurse=False)))
    }


def is_constant(module: nn.Module) -> bool:
    """Whether a layer's scale is a buffer, as in detection models' ``FrozenBatchNorm2d``: nothing of it is learned."""
    return any(leaf == "weight" for leaf, _ in module.named_buffers(recurse=False))


@dataclass(slots=True)
class _Running:
    run: NormRun
    before: tuple[Tensor, ...]
    versions: tuple[int, ...]


class TrainingWatch:
    """While entered, records every run of a normalisation layer in ``runs``.

    Hooks on the modules add to what ``NormWatch`` tells: the passes, who wrote running moments, and the layer that an
    operator without known ones belongs to. They are gone when it is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self.runs: list[NormRun] = []
        self.passes = 0
        self._model = model
        self._modules = norm_modules(model)
        self._means = running_means(model)
        self._watch = NormWatch(self._means, self._on_call, model)
        self._running: list[_Running] = []
        self._depth = 0
        self._pass = 0
        self._batch: Fingerprint = ()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Start to watch."""
        # The watch first: its own hooks then tell of a layer before these take their leave of it.
        self._watch.__enter__()
        try:
            self._hook()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _hook(self) -> None:
        """Hook what is Python; scripted modules take no hooks, and of them operators tell."""
        if not isinstance(self._model, torch.jit.ScriptModule):
            self._handles += [
                self._model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
                self._model.register_forward_hook(self._leave_model, always_call=True),
            ]
        for name, module in self._modules.items():
            if not isinstance(module, torch.jit.ScriptModule):
                self._handles += [
                    module.register_forward_pre_hook(self._entering(name)),
                    module.register_forward_hook(self._leave_layer, always_call=True),
                ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._watch.__exit__(kind, error, trace)

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._depth == 0 and not _in_backward():
            self.passes += 1
            self._pass += 1
            self._batch = _fingerprint((*args, *kwargs.values()))
        self._depth += 1

    def _leave_model(self, module: nn.Module, args: object, output: object) -> None:
        self._depth -= 1

    def _entering(self, name: str) -> Any:
        def enter_layer(module: nn.Module, args: tuple[Any, ...]) -> None:
            values = args[0] if args and isinstance(args[0], Tensor) else None
            moments = _moments(module)
            run = self._run(name, values, None)
            self._running.append(_Running(run, tuple(moment.clone() for moment in moments), _versions(moments)))

        return enter_layer

    def _leave_layer(self, module: nn.Module, args: object, output: object) -> None:
        if not self._running:
            return
        running = self._running.pop()
        moments = _moments(module)
        written = _versions(moments) != running.versions or any(
            not torch.equal(now, before) for now, before in zip(moments, running.before, strict=False)
        )
        running.run.updates |= written
        self.runs.append(running.run)

    def _on_call(self, call: NormCall) -> None:
        if call.per_sample:
            return
        uses_batch_moments = call.uses_batch_moments or (None if call.unknown else False)
        running = self._running[-1].run if self._running else None
        if running is None or call.layer not in (None, running.layer):
            if call.layer is None:
                return
            running = self._run(call.layer, call.input, None)
            self.runs.append(running)
        running.uses_batch_moments = uses_batch_moments
        # An operator writes the running moments it is given; what a module does with its own, its hooks see.
        running.updates |= call.uses_batch_moments and call.layer is not None and "::" in call.operator

    def _run(self, name: str, values: Tensor | None, uses_batch_moments: bool | None) -> NormRun:
        backward = _in_backward()
        inside = self._depth > 0
        if not inside and not backward:
            self._pass += 1
        module = self._modules.get(name)
        return NormRun(
            layer=name,
            values=_values_per_channel(values, self._means.get(name)),
            uses_batch_moments=uses_batch_moments,
            updates=False,
            in_backward=backward,
            learns=torch.is_grad_enabled(),
            model_pass=self._pass,
            batch=self._batch if inside else _fingerprint((values,)),
            training=None if module is None else module.training,
            model_training=self._model.training,
        )


def _in_backward() -> bool:
    """Whether autograd is running this, as it does when checkpointing recomputes."""
    return torch._C._current_graph_task_id() != -1


def _moments(module: nn.Module) -> tuple[Tensor, ...]:
    return tuple(
        buffer.detach() for leaf, buffer in module.named_buffers(recurse=False) if leaf in (*MEANS, *VARIANCES)
    )


def _versions(moments: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(moment._version for moment in moments)


def _values_per_channel(values: Tensor | None, mean: Tensor | None) -> int | None:
    """N · positions of an input whose channels are in dimension 1, or as many as the running mean's."""
    if values is None or values.ndim < 2 or not values.numel():
        return None
    channels = values.shape[1] if mean is None or values.numel() % mean.numel() else mean.numel()
    return values.numel() // channels


def _fingerprint(values: tuple[object, ...]) -> Fingerprint:
    found: list[tuple[tuple[int, ...], float, float]] = []
    for value in values:
        match value:
            case Tensor() if value.numel() and not value.is_complex():
                flat = value.detach().flatten().float()
                found.append((tuple(value.shape), float(flat.sum()), float(torch.linalg.vector_norm(flat))))
            case list() | tuple():
                found.extend(_fingerprint(tuple(value)))
            case dict():
                found.extend(_fingerprint(tuple(value.values())))
    return tuple(found)
