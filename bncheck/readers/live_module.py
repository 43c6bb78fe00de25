"""A module of this process → Checkpoint, by the same reading as a pickled one."""

from __future__ import annotations

from collections.abc import Iterable

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage, TensorRef, Unwritable
from bncheck.core.layers import Float64Array
from bncheck.core.module_facts import DescribedModule
from bncheck.core.places import StoragePlace
from bncheck.readers.statements import NamedTensors, layers_of

_NO_FILE = Unwritable("it is a module in memory, and no file; bncheck.recalibrate changes it in place")


def read_live(module: DescribedModule) -> Checkpoint:
    """What the module would say if it were saved with ``torch.save`` and read from the file."""
    network = NamedTensors((), module.tensors, module.opaque, module.modules)
    read = layers_of([network], _InMemory(module))
    return Checkpoint(
        path=f"<{module.name}>",
        format=FileFormat.IN_MEMORY,
        packaging=Packaging.MODULE,
        stage=Stage.RELEASE,
        layers=read.layers,
        tensors=module.tensors,
        networks=read.networks,
        moments=dict.fromkeys(read.moments, _NO_FILE),
        unread=read.unread,
        remarks=read.remarks,
    )


class _InMemory:
    """Reads the module's own tensors, which need no fetching and lie in no file."""

    def __init__(self, module: DescribedModule) -> None:
        self._module = module

    def load(self, tensor: TensorRef) -> Float64Array:
        return self._module.load(tensor)

    def announce(self, tensors: Iterable[TensorRef]) -> None:
        pass

    def place(self, tensor: TensorRef) -> StoragePlace:
        return StoragePlace(0, 0)
