"""Runs a model as if every batch norm were in training mode, without touching a buffer or a mode flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from bncheck.runtime.dispatch_mode import WatchingMode
from bncheck.runtime.hand_written import Form
from bncheck.runtime.norm_operators import OPERATORS, argument_names, given_arguments, result_names
from bncheck.runtime.norm_watch import Place, call_through, place_of

# Operators whose first result is no normalised input, or is a quantised one: they are left as they are.
_LEFT_ALONE = ("stats", "quantized", "qbatch_norm", "instance_norm")
_REPLACED = frozenset(name for name in OPERATORS if not any(word in name for word in _LEFT_ALONE))


class BatchMoments(WatchingMode):
    """While entered, layers whose running mean is among ``buffers`` normalise with the moments of their batch.

    The replacement stands below modules and graphs alike; dropout and all else stay in eval mode.

    Args:
        buffers: running means.
        by_hand: layers that use no operator, and what each computes.

    Attributes:
        replaced: running means of the layers that came to be called, and did.
    """

    def __init__(self, buffers: Iterable[Tensor], by_hand: Iterable[tuple[nn.Module, Form]] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = {place_of(mean) for mean in buffers}
        self._by_hand = tuple(by_hand)
        self._handles: list[RemovableHandle] = []
        self.replaced: set[Place] = set()

    def __enter__(self) -> Self:
        """Start to replace."""
        try:
            self._handles = [module.register_forward_hook(_replacing(form)) for module, form in self._by_hand]
            super().__enter__()
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and take the hooks off."""
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace the stored moments by none."""
        if func.name() not in _REPLACED:
            return call_through(func, args, kwargs)
        given = given_arguments(func, args, kwargs)
        mean = given.get("running_mean")
        if not isinstance(mean, Tensor) or place_of(mean) not in self._places:
            return call_through(func, args, kwargs)
        self.replaced.add(place_of(mean))
        return _with_batch_moments(func, given)


def _with_batch_moments(func: Any, given: Mapping[str, Any]) -> Any:
    """What the operator would return if it had no running moments and used the batch's."""
    eps = given["eps"] if "eps" in given else given["epsilon"]
    parts = (given["input"], given.get("weight"), given.get("bias"))
    found = torch.ops.aten.native_batch_norm(*parts, None, None, True, 0.0, eps)
    results = [_result(index, name, found, given) for index, name in enumerate(result_names(func))]
    outs = [given[name] for name in argument_names(func) if name not in _INPUTS and name in given]
    for out, result in zip(outs, results, strict=False):
        out.resize_(result.shape).copy_(result)
    results[: len(outs)] = outs
    return results[0] if len(results) == 1 else tuple(results)


_INPUTS = frozenset(
    {"input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "epsilon"}
    | {"exponential_average_factor", "cudnn_enabled"}
)


def _result(index: int, name: str, found: tuple[Tensor, ...], given: Mapping[str, Any]) -> Any:
    """Results behind the first three: updated moments, which stay as they are, and what a backward pass would need."""
    if name in ("running_mean_out", "running_var_out"):
        return given[name.removesuffix("_out")].clone()
    if index == _IMPLEMENTATION:
        return 0
    return found[index] if index < len(found) else found[1].new_empty(0)


_IMPLEMENTATION = 4  # of _batch_norm_impl_index: which kernel ran, a number; the functional operators name theirs


def _replacing(form: Form) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    def replace(module: nn.Module, args: tuple[Any, ...], output: object) -> Tensor | None:
        values = next((value for value in args if isinstance(value, Tensor)), None)
        if values is None or not isinstance(output, Tensor):
            return None
        with _disable_current_modes():
            return form.with_batch_moments(values)

    return replace
