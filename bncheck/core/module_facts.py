"""What an ``nn.Module`` says of itself, pickled in a file or alive in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bncheck.core.checkpoint import TensorRef
from bncheck.core.layers import Float64Array


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What one module says beside its tensors."""

    class_path: str
    attributes: Mapping[object, object]
    tensors: Mapping[object, object]
    """Parameters and buffers, whatever they are; None where a layer was built without one."""


@dataclass(frozen=True, slots=True)
class DescribedModule:
    """A module of this process in the terms of a file.

    Attributes:
        name: of its class.
        modules: by dotted name, in the order of ``named_modules()``.
        tensors: by dotted name.
        opaque: tensors whose numbers cannot be read: name → what they are.
        load: reads one tensor's values, of its own shape.
    """

    name: str
    modules: Mapping[str, ModuleFacts]
    tensors: Mapping[str, TensorRef]
    opaque: Mapping[str, str]
    load: Callable[[TensorRef], Float64Array]
