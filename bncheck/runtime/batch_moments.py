"""Runs a model as if every batch norm were in training mode, without touching a buffer or a mode flag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bncheck.runtime.norm_watch import call_through, place_of

# Operator → outputs it returns; all take input, weight, bias, running mean and variance first.
_OUTPUTS: Mapping[str, int] = {
    "aten::native_batch_norm": 3,
    "aten::cudnn_batch_norm": 4,
    "aten::miopen_batch_norm": 3,
    "aten::_native_batch_norm_legit": 3,
    "aten::_native_batch_norm_legit_functional": 5,
    "aten::_native_batch_norm_legit_no_training": 3,
    "aten::_batch_norm_no_update": 4,
}


class BatchMoments(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, layers whose running mean is among ``buffers`` normalise with the moments of their batch.

    The replacement stands below modules and graphs alike; dropout and all else stay in eval mode.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = {place_of(mean) for mean in buffers}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Replace the stored moments by none."""
        outputs = _OUTPUTS.get(func.name())
        if outputs is None or not isinstance(args[3], Tensor) or place_of(args[3]) not in self._places:
            return call_through(func, args, kwargs)
        eps = args[-1]  # the last argument of each of these
        found = torch.ops.aten.native_batch_norm(*args[:3], None, None, True, 0.0, eps)
        return (*found, *[found[1].new_empty(0)] * (outputs - len(found)))
