"""How much memory a forward pass takes, counted tensor by tensor, and how much there is."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bncheck.runtime.batches import Batch, Forward
from bncheck.runtime.norm_watch import call_through

# What is left to others: of a device's free memory, and of the host's, which the rest of the process shares.
_DEVICE_SHARE = 0.8
_HOST_SHARE = 0.5
# Where the system does not say.
_UNKNOWN = 2 * 2**30


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators made and that are still held."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = {tensor.untyped_storage()._cdata for tensor in known}
        self._bytes = 0
        self.peak: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = call_through(func, args, kwargs)
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live.add(key)
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._bytes -= size


def bytes_of_pass(model: nn.Module, batch: Batch, forward: Forward) -> int:
    """Most bytes that a pass over the batch holds at once, its inputs included and the model's own tensors not.

    Raises:
        UserCodeFailed: the model raised.
    """
    inputs = [value for value in tree_iter(batch.inputs) if isinstance(value, Tensor)]
    own = [*model.parameters(), *model.buffers(), *inputs]
    counted = _LiveBytes(own)
    with torch.no_grad(), counted:
        forward(model, batch)
    held: int = sum(value.untyped_storage().nbytes() for value in inputs)
    return counted.peak + held


def free_bytes(device: torch.device) -> int:
    """Bytes that may be taken on a device: the greater part of what is free now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Torch keeps what it freed for itself.
        kept: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_DEVICE_SHARE * (int(free) + kept))
    if device.type == "mps":
        recommended: int = torch.mps.recommended_max_memory()
        return int(_DEVICE_SHARE * (recommended - torch.mps.current_allocated_memory()))
    return host_bytes()


def host_bytes() -> int:
    """Bytes of the host's memory that may be taken."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return _UNKNOWN
    return int(_HOST_SHARE * found)
