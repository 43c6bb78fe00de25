"""A module of this process, described as a file would describe it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from bncheck.core.checkpoint import TensorRef
from bncheck.core.errors import BadUsage
from bncheck.core.layers import Float64Array
from bncheck.core.module_facts import DescribedModule, ModuleFacts

_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
_HOLDERS = (nn.Module, dict, list, tuple)
_PLAIN = frozenset({Tensor, nn.Parameter, nn.Buffer})


def describe(model: nn.Module) -> DescribedModule:
    """Everything a rule may ask of a module; nothing of it is copied before it is asked for.

    Raises:
        BadUsage: it is a graph, whose calls only its file tells.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise BadUsage("the model is TorchScript: save it, and audit the file (torch.jit.save(model, PATH))")
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):  # it refuses to be put into another mode
        raise BadUsage("the model is an exported program's: save the program, and audit the file (torch.export.save)")
    modules = dict(_walk(model))
    named = {
        _join(name, key): tensor
        for name, module in modules.items()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    opaque = {name: kind for name, tensor in named.items() if (kind := _opaque(tensor)) is not None}
    return DescribedModule(
        name=type(model).__name__,
        modules={name: _facts(module) for name, module in modules.items()},
        tensors={name: _reference(name, tensor) for name, tensor in named.items() if name not in opaque},
        opaque=opaque,
        load=lambda reference: _values(named[reference.name]),
    )


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Submodules, and modules kept in plain attributes (a list of layers), which PyTorch does not know of."""
    visited: set[int] = set()
    waiting: list[tuple[str, object]] = [("", model)]
    while waiting:
        start, value = waiting.pop()
        found: list[tuple[str, object]] = []
        if isinstance(value, nn.Module):
            for name, module in value.named_modules(prefix=start):
                if id(module) not in visited:
                    visited.add(id(module))
                    yield name, module
                    found.extend((_join(name, key), item) for key, item in vars(module).items() if key not in _TABLES)
        elif id(value) not in visited:
            visited.add(id(value))
            found.extend(_inside(start, value))
        # Depth first, as a file is searched.
        waiting.extend((name, item) for name, item in reversed(found) if isinstance(item, _HOLDERS))


def _inside(name: str, value: object) -> Iterator[tuple[str, object]]:
    """What a container among a module's attributes holds."""
    match value:
        case dict():
            yield from ((_join(name, str(key)), item) for key, item in value.items())
        case list() | tuple():
            yield from ((_join(name, str(index)), item) for index, item in enumerate(value))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _facts(module: nn.Module) -> ModuleFacts:
    kind = type(module)
    attributes: dict[object, object] = {}
    attributes.update((key, value) for key, value in module.__dict__.items() if key not in _TABLES)
    tensors: dict[object, object] = {}
    tensors.update(module._parameters)
    tensors.update(module._buffers)
    return ModuleFacts(f"{kind.__module__}.{kind.__qualname__}", attributes, tensors)


def _opaque(tensor: Tensor) -> str | None:
    """What a tensor is that holds no plain numbers, by the names pickles have for it; None where it does."""
    if is_lazy(tensor):
        lazy = UninitializedParameter if isinstance(tensor, UninitializedParameter) else UninitializedBuffer
        return f"{lazy.__module__}.{lazy.__qualname__}"
    if tensor.is_quantized:
        return "torch._utils._rebuild_qtensor"
    if tensor.layout is not torch.strided:
        return "torch._utils._rebuild_sparse_tensor"
    if tensor.is_meta:
        return "torch._utils._rebuild_meta_tensor_no_storage"
    kind = type(tensor)
    return None if kind in _PLAIN else f"{kind.__module__}.{kind.__qualname__}"


def _reference(name: str, tensor: Tensor) -> TensorRef:
    storage = tensor.untyped_storage()
    return TensorRef(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        strides=tensor.stride(),
        storage=f"{storage.data_ptr():x}",
        storage_offset=int(tensor.storage_offset()),
        storage_numel=storage.nbytes() // tensor.element_size(),
    )


def _values(tensor: Tensor) -> Float64Array:
    array: Float64Array = tensor.detach().cpu().double().numpy()
    return array
