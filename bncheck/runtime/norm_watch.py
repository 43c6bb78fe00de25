"""The one place that sees every call of a normalisation operator, whatever made it.

A ``TorchDispatchMode`` stands below modules, ``torch.nn.functional``, TorchScript and exported programs alike: all of
them end in the same few operators. A layer is known by its running buffers' storage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class NormCall:
    """One call of a normalisation operator.

    Attributes:
        layer: name of the layer whose running buffers it was given; None where it was given none, or unknown ones.
        input: what is normalised, of shape (N, C, *).
        uses_batch_moments: whether it normalises with the moments of this input.
        operator: e.g. ``aten::native_batch_norm``.
        eps: added to the variance.
    """

    layer: str | None
    input: Tensor
    uses_batch_moments: bool
    operator: str
    eps: float

    def mixes_samples(self, size: int) -> bool:
        """Whether it mixes the samples of a batch of ``size``.

        One image of N·C channels is an instance norm's, and one of weights is weight standardisation.
        """
        return self.uses_batch_moments and self.input.shape[0] == size > 1


OnCall = Callable[[NormCall], None]

# Operator → positions of running mean and training flag; a bool stands for the flag itself, None for no running mean.
# Signatures: https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/native_functions.yaml
_OPERATORS: Mapping[str, tuple[int | None, int | bool]] = {
    "aten::native_batch_norm": (3, 5),
    "aten::cudnn_batch_norm": (3, 5),
    "aten::miopen_batch_norm": (3, 5),
    "aten::_native_batch_norm_legit": (3, 5),
    "aten::_native_batch_norm_legit.no_stats": (None, 3),
    "aten::_native_batch_norm_legit_functional": (3, 5),
    "aten::_native_batch_norm_legit_no_training": (3, False),
    "aten::_batch_norm_with_update": (3, True),
    "aten::_batch_norm_with_update_functional": (3, True),
    "aten::_batch_norm_no_update": (3, False),
    # SyncBatchNorm's own kernels: the moments of this rank, before they are gathered.
    "aten::batch_norm_stats": (None, True),
}


class NormWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, tells ``on_call`` of every normalisation, before it runs.

    Args:
        buffers: layer name → its running mean.
        on_call: what to tell; it runs with the watch suspended.
    """

    def __init__(self, buffers: Mapping[str, Tensor], on_call: OnCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {place_of(mean): name for name, mean in buffers.items()}
        self._on_call = on_call

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at the call, then let it go on."""
        known = _OPERATORS.get(func.name())  # eps is the last argument of each
        if known is not None:
            mean_at, training_at = known
            mean = args[mean_at] if mean_at is not None else None
            training = training_at if isinstance(training_at, bool) else bool(args[training_at])
            layer = self._names.get(place_of(mean)) if isinstance(mean, Tensor) else None
            self._on_call(NormCall(layer, args[0], training, func.name(), float(args[-1])))
        return call_through(func, args, kwargs)


def call_through(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    """Run an operator as it was called.

    TorchScript's optimiser compares the constants of a graph by ``aten::equal``, and hands wrapped numbers over as
    plain ones, which the operator would refuse.
    """
    if func.name() == "aten::equal":
        return torch.equal(*(torch.as_tensor(argument) for argument in args))
    return func(*args, **(kwargs or {}))


def place_of(tensor: Tensor) -> tuple[int, int]:
    """What identifies a buffer: its storage's address and where in it the buffer begins."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def running_means(model: nn.Module) -> dict[str, Tensor]:
    """Layer name → running mean, for everything in a model that keeps one; TorchScript and graph modules too."""
    return _buffers(model, "running_mean")


def running_variances(model: nn.Module) -> dict[str, Tensor]:
    """Layer name → running variance, likewise."""
    return _buffers(model, "running_var")


def _buffers(model: nn.Module, leaf: str) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[0]: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] == leaf and isinstance(buffer, Tensor)
    }
