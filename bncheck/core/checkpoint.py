"""A model file, whatever its format, in neutral terms."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.places import LocalFile, StoragePlace


class FileFormat(enum.Enum):
    """How the bytes are laid out."""

    TORCH_ZIP = "torch-zip"
    TORCH_LEGACY = "torch-legacy"
    """``torch.save`` from 0.1.10 to 1.5: several pickles in a row, then the storages."""
    TORCH_TAR = "torch-tar"
    """``torch.save`` before 0.1.10."""
    TORCHSCRIPT = "torchscript"
    PT2 = "pt2"
    SAFETENSORS = "safetensors"
    IN_MEMORY = "in-memory"
    """A module of the running process, and no file."""


class Packaging(enum.Enum):
    """What the file holds."""

    STATE_DICT = "state-dict"
    MODULE = "module"
    CHECKPOINT = "checkpoint"
    """A dict of several things: one or more models with optimizer state, counters, settings."""
    TORCHSCRIPT = "torchscript"
    """Modules with the code that calls them, scripted or traced."""
    EXPORTED_PROGRAM = "exported-program"
    """What ``torch.export`` made: a graph of operators and the tensors it reads."""

    @property
    def has_graph(self) -> bool:
        """Whether the file says how its layers are called."""
        return self in (Packaging.TORCHSCRIPT, Packaging.EXPORTED_PROGRAM)


class Stage(enum.Enum):
    """What the file is for: mode flags mean something else in a file that goes on training."""

    TRAINING = "training"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Where a tensor's bytes lie; nothing has been read yet.

    Attributes:
        name: full key in the file.
        dtype: number format as safetensors and numpy spell it, e.g. ``float32``, ``bfloat16``.
        shape: dimensions.
        strides: in elements, one for each dimension.
        storage: key of the storage that holds it; tensors that share memory share the key.
        storage_offset: in elements from the start of the storage.
        storage_numel: elements in the whole storage.
        big_endian: byte order of the stored numbers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: str
    storage_offset: int
    storage_numel: int
    big_endian: bool = False


@dataclass(frozen=True, slots=True)
class StoredMoments:
    """Where a file keeps a layer's running moments, so that others can be written there.

    Attributes:
        tensors: ``running_mean``, ``running_var`` and, where there is one, ``num_batches_tracked``.
        places: where their storages lie, by key.
    """

    tensors: Mapping[str, TensorRef]
    places: Mapping[str, StoragePlace]


@dataclass(frozen=True, slots=True)
class Unwritable:
    """Why other moments cannot be written in place of a layer's; said of ``it``, the file."""

    reason: str


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a file says of its training; each fact with the key it was found under.

    Attributes:
        optimizer: key of the optimizer's state, or None when the file holds none.
        optimizer_steps: updates the optimizer has made.
    """

    optimizer: str | None = None
    optimizer_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """Something in the file that was not read, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model file as every rule sees it.

    Attributes:
        path: as the user gave it.
        format: how the bytes are laid out.
        packaging: what the file holds.
        stage: inferred from what the file holds.
        layers: every normalisation layer, in the file's order.
        tensors: every named tensor of the models in the file, in the file's order.
        networks: group → tensors of that copy of the network, by the names its bare module gives them.
        shards: names of the files beside it that hold its tensors; none where it holds them itself.
        moments: where the running moments lie, by a layer's full name; of layers that have any.
        file: what was read; None where it lies on no disk of this machine.
        training: what the file says of its training.
        unread: parts that may matter to a verdict and could not be read; a file with any is never clean.
        remarks: oddities that change no verdict.
    """

    path: str
    format: FileFormat
    packaging: Packaging
    stage: Stage
    layers: tuple[NormLayer, ...]
    tensors: Mapping[str, TensorRef] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, TensorRef]] = field(default_factory=dict)
    shards: tuple[str, ...] = ()
    moments: Mapping[str, StoredMoments | Unwritable] = field(default_factory=dict)
    file: LocalFile | None = None
    training: TrainingFacts = TrainingFacts()
    unread: tuple[Unread, ...] = ()
    remarks: tuple[str, ...] = ()

    def frozen_layers(self, group: str) -> frozenset[str]:
        """Names of the layers of one copy of the network that no training changes, by their class."""
        layers = (layer for layer in self.layers if layer.group == group)
        return frozenset(layer.name for layer in layers if layer.kind is NormKind.FROZEN_BATCH)
