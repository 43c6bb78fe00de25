"""Running a model without leaving a trace: what a probe may touch is put back, and what it may not is compared."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bncheck.core.errors import TraceLeft


@dataclass(frozen=True, slots=True)
class _Parameter:
    place: int
    version: int
    total: float | str
    norm: float | str
    grad: int | None


class Snapshot:
    """State of a model and of the process's generators.

    Buffers are copied, for a probe in training mode writes them. Of parameters the version counter, the sum and the
    norm are kept, so that a large model is not held twice: writes through ``.data`` do not count as versions.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._training = {name: module.training for name, module in model.named_modules()}
        self._hooks = {name: _hook_counts(module) for name, module in model.named_modules()}
        self._parameters = {name: _described(parameter) for name, parameter in model.named_parameters()}
        self._buffers = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
        self._grad = torch.is_grad_enabled()
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else []

    def mutated_buffers(self) -> list[str]:
        """Names of buffers whose values differ from the snapshot's, NaN counting as equal to NaN."""
        now = dict(self._model.named_buffers())
        return [name for name, (_, before) in self._buffers.items() if name not in now or not _same(now[name], before)]

    def restore(self) -> None:
        """Put buffers, mode flags and generators back."""
        with torch.no_grad():
            for buffer, before in self._buffers.values():
                if not _same(buffer, before):
                    buffer.copy_(before)
        for name, module in self._model.named_modules():
            if name in self._training and module.training != self._training[name]:
                module.training = self._training[name]
        torch.set_grad_enabled(self._grad)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)

    def differences(self) -> list[str]:
        """What differs now, after ``restore``: it should be nothing."""
        found = [f"buffer {name}" for name in self.mutated_buffers()]
        modules = dict(self._model.named_modules())
        if modules.keys() != self._training.keys():
            found.append("the set of modules")
        found += [
            f"mode of {name or '(root)'}" for name, mode in self._training.items() if _mode(modules, name) != mode
        ]
        hooked = [
            name for name, counts in self._hooks.items() if name in modules and _hook_counts(modules[name]) != counts
        ]
        found += [f"hooks of {name or '(root)'}" for name in hooked]
        parameters = {name: _described(parameter) for name, parameter in self._model.named_parameters()}
        found += [f"parameter {name}" for name, kept in self._parameters.items() if parameters.get(name) != kept]
        if torch.is_grad_enabled() != self._grad:
            found.append("grad mode")
        if not torch.equal(torch.get_rng_state(), self._torch):
            found.append("torch's generator")
        return found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Snapshot]:
    """Restore the model and the generators on every way out.

    Raises:
        TraceLeft: something that cannot be put back was changed.
    """
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        snapshot.restore()
    left = snapshot.differences()
    if left:
        raise TraceLeft(f"running the model changed {', '.join(left[:4])}{' …' if len(left) > 4 else ''}")


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and each into its own mode again on every way out."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _described(parameter: nn.Parameter) -> _Parameter:
    total, norm = _sum_and_norm(parameter.detach())
    return _Parameter(
        place=parameter.data_ptr(),
        version=parameter._version,
        total=_exactly(total),
        norm=_exactly(norm),
        grad=None if parameter.grad is None else parameter.grad._version,
    )


# Values that are widened at a time: of the largest layer of a network, twice its own bytes would come on top.
_WIDENED = 2**17


def _sum_and_norm(values: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(values)
    parts = torch.split(values.flatten(), _WIDENED)
    total = torch.stack([part.sum(dtype=wide) for part in parts]).sum()
    if not values.is_floating_point():
        return total, total
    return total, torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part, dtype=wide) for part in parts]))


def _wide(values: Tensor) -> torch.dtype:
    """What to add up in: MPS has no float64."""
    if not values.is_floating_point():
        return torch.int64
    return torch.float32 if values.device.type == "mps" else torch.float64


def _exactly(value: Tensor) -> float | str:
    """A number that equals itself, NaN too."""
    number = float(value)
    return "nan" if number != number else number


def _mode(modules: dict[str, nn.Module], name: str) -> bool | None:
    return modules[name].training if name in modules else None


def _hook_counts(module: nn.Module) -> tuple[int, ...]:
    return tuple(
        len(getattr(module, table, ()))
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_floating_point():
        return bool(torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))) and bool(
            torch.equal(torch.isnan(first), torch.isnan(second))
        )
    return bool(torch.equal(first, second))
