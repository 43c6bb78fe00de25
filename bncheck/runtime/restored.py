"""Letting the user's code train a model, and putting every part of it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bncheck.core.errors import TraceLeft
from bncheck.runtime.unchanged import Snapshot


class WholeState:
    """All of a model and of the process's generators, parameters included: for a while it is held twice.

    Attributes of modules are kept as they are bound, and the lists, sets and dicts among them with what they hold, so
    that a parameter, buffer, hook or submodule that was replaced, added or taken away is put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._state = Snapshot(model)
        self._contents = [undo for module in _eager(model) for undo in _bindings(module)]
        self._parameters = [_Kept(name, parameter) for name, parameter in model.named_parameters()]

    def changed_parameters(self) -> int:
        """How many of the parameters have other values than they had, NaN counting as equal to NaN."""
        return sum(kept.differs() for kept in self._parameters)

    def mutated_buffers(self) -> list[str]:
        """Names of buffers whose values differ from what they were, or that are gone."""
        return self._state.mutated_buffers()

    def restore(self) -> None:
        """Put everything back."""
        for undo in self._contents:
            undo()
        for kept in self._parameters:
            kept.restore()
        self._state.restore()

    def differences(self) -> list[str]:
        """What differs now, after ``restore``: it should be nothing."""
        # The snapshot also counts writes to parameters, which putting them back adds to.
        found = [entry for entry in self._state.differences() if not entry.startswith("parameter ")]
        now = dict(self._model.named_parameters())
        for kept in self._parameters:
            if now.pop(kept.name, None) is not kept.parameter or kept.differs() or kept.learns_otherwise():
                found.append(f"parameter {kept.name}")
        return found + [f"parameter {name}" for name in now]


@contextmanager
def restored(model: nn.Module) -> Iterator[WholeState]:
    """Restore the model, its parameters too, and the generators on every way out.

    Raises:
        TraceLeft: something could not be put back.
    """
    state = WholeState(model)
    try:
        yield state
    finally:
        state.restore()
    left = state.differences()
    if left:
        raise TraceLeft(f"training could not be undone: {', '.join(left[:4])}{' …' if len(left) > 4 else ''}")


class _Kept:
    """One parameter: the object, where its values lie, and copies of them and of its gradient."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.parameter = parameter
        self._place = parameter.data
        self._values = parameter.detach().clone()
        self._learns = parameter.requires_grad
        self._grad = parameter.grad
        self._grad_values = None if parameter.grad is None else parameter.grad.detach().clone()

    def differs(self) -> bool:
        now = self.parameter.detach()
        return now.shape != self._values.shape or now.dtype != self._values.dtype or not _equal(now, self._values)

    def learns_otherwise(self) -> bool:
        return self.parameter.requires_grad != self._learns or self.parameter.grad is not self._grad

    def restore(self) -> None:
        with torch.no_grad():
            self._place.copy_(self._values)
            self.parameter.data = self._place
            if self._grad is not None and self._grad_values is not None:
                self._grad.copy_(self._grad_values)
        self.parameter.grad = self._grad
        self.parameter.requires_grad_(self._learns)


def _equal(first: Tensor, second: Tensor) -> bool:
    if torch.equal(first, second):
        return True
    return first.is_floating_point() and torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)


def _eager(model: nn.Module) -> Iterator[nn.Module]:
    """Modules whose attributes are Python's; those of a TorchScript module are its own affair."""
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield module


def _bindings(module: nn.Module) -> list[Callable[[], None]]:
    """How to bind a module's attributes as they are now, and fill those that are containers."""
    kept = dict(module.__dict__)
    undo = [_refill_dict(module.__dict__, kept)]
    for value in kept.values():
        match value:
            case dict():
                undo.append(_refill_dict(value, dict(value)))
            case set():
                undo.append(_refill_set(value, set(value)))
            case list():
                undo.append(_refill_list(value, list(value)))
    return undo


def _refill_dict(container: dict[str, object], kept: dict[str, object]) -> Callable[[], None]:
    def undo() -> None:
        container.clear()
        container.update(kept)

    return undo


def _refill_set(container: set[object], kept: set[object]) -> Callable[[], None]:
    def undo() -> None:
        container.clear()
        container.update(kept)

    return undo


def _refill_list(container: list[object], kept: list[object]) -> Callable[[], None]:
    def undo() -> None:
        container[:] = kept

    return undo
