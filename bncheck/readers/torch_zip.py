"""``torch.save`` since 1.6: a zip archive of one pickle and the storages it refers to.

Layout: https://github.com/pytorch/pytorch/blob/v2.13.0/caffe2/serialize/inline_container.h
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from bncheck.core.checkpoint import (
    Checkpoint,
    FileFormat,
    Packaging,
    Stage,
    TensorRef,
    TrainingFacts,
    Unread,
)
from bncheck.core.errors import NoModel, UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.readers.assemble import Statement, assemble, group_of, wrapper_prefix
from bncheck.readers.networks import Network, Path, search
from bncheck.readers.pickle_calls import torch_trust
from bncheck.readers.pickle_machine import interpret
from bncheck.readers.pickle_records import PickledTensor
from bncheck.readers.source import Source
from bncheck.readers.tensor_records import persistent_storage
from bncheck.readers.tensors import DTYPES, ArrayReader
from bncheck.readers.zip_directory import ZipDirectory

_T = TypeVar("_T")


def read_torch_zip(source: Source, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    """Read a file written by ``torch.save``.

    Args:
        source: the file.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows whole-module pickles to name.

    Raises:
        UnreadableFile: the file is damaged.
        UnsafeFile: loading it would run code, or its archive contradicts itself.
        UnsupportedFile: it is a zip archive of another kind.
        NoModel: it holds no network.
    """
    return _Archive(source, limits).checkpoint(path, vouched)


class _Archive:
    def __init__(self, source: Source, limits: Limits) -> None:
        self._limits = limits
        self._zip = ZipDirectory(source, limits)
        self._zip.verify()
        self._prefix = _prefix(self._zip)
        self._arrays = ArrayReader(self._read_storage, limits)
        self._big_endian = self._is_big_endian()

    def checkpoint(self, path: str, vouched: frozenset[str]) -> Checkpoint:
        trust = torch_trust(self._limits, vouched)
        root = interpret(self._pickle(), trust, persistent_storage, self._limits)
        found = search(root, self._limits)
        if not found.networks and not found.optimizers:
            raise NoModel(f"holds no model: it is {_describe(root)}")
        layers: list[NormLayer] = []
        unread: list[Unread] = []
        tensors: dict[str, TensorRef] = {}
        groups: set[str] = set()
        for network in found.networks:
            references = {name: self._reference(network.path, name, tensor) for name, tensor in network.tensors.items()}
            tensors.update((reference.name, reference) for reference in references.values())
            statement = _statement(network, references, groups)
            assembled = assemble(statement, self._arrays.load)
            if assembled.layers:
                groups.add(statement.group)
            layers.extend(assembled.layers)
            unread.extend(assembled.unread)
        training = self._training(found.optimizers)
        return Checkpoint(
            path=path,
            format=FileFormat.TORCH_ZIP,
            packaging=_packaging(found.networks, training),
            stage=Stage.RELEASE if training.optimizer is None else Stage.TRAINING,
            layers=tuple(layers),
            tensors=tensors,
            training=training,
            unread=tuple(unread),
            remarks=tuple(
                f"{name} is damaged: its bytes disagree with their checksum (torch.load does not notice)"
                for name in self._zip.damaged
            ),
        )

    def _pickle(self) -> bytes:
        name = f"{self._prefix}data.pkl"
        if self._zip.members[name].size > self._limits.pickle_bytes:
            raise UnreadableFile(f"its pickle has {self._zip.members[name].size} bytes, more than any model's")
        return self._zip.read(name)

    def _is_big_endian(self) -> bool:
        name = f"{self._prefix}byteorder"
        order = self._zip.read(name) if name in self._zip.members and self._zip.members[name].size < 16 else b"little"
        if order not in (b"little", b"big"):
            raise UnreadableFile(f"its byte order is given as {order!r}; little or big is expected")
        return order == b"big"

    def _read_storage(self, key: str, start: int, length: int) -> bytes:
        return self._zip.read_range(f"{self._prefix}data/{key}", start, length)

    def _reference(self, path: Path, name: str, tensor: PickledTensor) -> TensorRef:
        full = ".".join((*path, name))
        member = self._zip.members.get(f"{self._prefix}data/{tensor.storage.key}")
        known = DTYPES.get(tensor.dtype)
        # torch sizes the storage by the member and the view by the pickle: where they disagree, CVE-2026-24747 began.
        if member is not None and known is not None:
            declared = tensor.storage.numel * known.width
            spare = member.size - declared
            if spare < 0 or (spare > 0 and tensor.storage.dtype is not None):
                raise UnreadableFile(
                    f"{full[:200]}: its storage has {member.size} bytes and the pickle declares {declared}"
                )
        return TensorRef(
            name=full,
            dtype=tensor.dtype,
            shape=tensor.shape,
            strides=tensor.strides,
            storage=tensor.storage.key,
            storage_offset=tensor.offset,
            storage_numel=tensor.storage.numel,
            big_endian=self._big_endian,
        )

    def _training(self, optimizers: list[tuple[Path, object]]) -> TrainingFacts:
        if not optimizers:
            return TrainingFacts()
        steps = [step for path, state in optimizers for step in self._steps(path, state)]
        path = optimizers[0][0]
        return TrainingFacts(".".join(path) or "(top)", max(steps, default=None))

    def _steps(self, path: Path, state: object) -> Iterator[int]:
        """Each parameter's own counter, as torch's optimizers keep it: ``state[i]["step"]``, a number or a tensor."""
        if not isinstance(state, dict):
            return
        for entry in list(state.values())[: self._limits.optimizer_steps_read]:
            step = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(step, PickledTensor) and step.shape in ((), (1,)):
                try:
                    yield int(self._arrays.load(self._reference(path, "step", step)).reshape(-1)[0])
                except (UnreadableFile, ValueError, OverflowError):
                    continue  # a step count no rule can do without
            elif isinstance(step, int):
                yield step


def _prefix(archive: ZipDirectory) -> str:
    """The folder inside the archive, with its slash; torch names it after the file."""
    pickles = [name for name in archive.members if name.rpartition("/")[2].lower() == "data.pkl"]
    if len(pickles) > 1:
        raise UnsafeFile("the archive holds two pickles called data.pkl")
    if not pickles or not pickles[0].endswith("data.pkl"):
        raise UnsupportedFile(f"is a zip archive that torch.save did not write{_guess(archive)}")
    prefix = pickles[0].removesuffix("data.pkl")
    first = next(iter(archive.members)).partition("/")[0] + "/"
    if prefix.count("/") > 1 or (prefix and prefix != first):
        raise UnsafeFile("data.pkl does not lie in the archive's own folder, where torch looks for it")
    if f"{prefix}constants.pkl" in archive.members:
        raise UnsupportedFile("is a TorchScript archive, which this version does not read; save the eager model")
    return prefix


def _guess(archive: ZipDirectory) -> str:
    names = archive.members
    if any(name.endswith(("serialized_exported_program.json", "models/model.json")) for name in names):
        return ": a torch.export program, which this version does not read"
    if any(name.endswith(".npy") for name in names):
        return ": a NumPy .npz file"
    if "config.json" in names and "metadata.json" in names:
        return ": a .keras model, which this version does not read"
    return ""


def _statement(network: Network, references: dict[str, TensorRef], groups: set[str]) -> Statement:
    group = group_of(network.path)
    if group in groups:
        group = ".".join(network.path) or "model"
    prefix = wrapper_prefix([*references, *network.opaque])
    return Statement(
        group,
        _without(prefix, references),
        _without(prefix, network.opaque),
        None if network.modules is None else _without(prefix, network.modules),
        None if network.versions is None else _without(prefix, network.versions),
    )


def _without(prefix: str, named: Mapping[str, _T]) -> dict[str, _T]:
    """Names as they are below a wrapper called ``module``; the wrapper itself goes."""
    if not prefix:
        return dict(named)
    wrapper = prefix.removesuffix(".")
    return {
        "" if name == wrapper else name.removeprefix(prefix): value
        for name, value in named.items()
        if name == wrapper or name.startswith(prefix)
    }


def _packaging(networks: list[Network], training: TrainingFacts) -> Packaging:
    if training.optimizer is not None or not networks or networks[0].path:
        return Packaging.CHECKPOINT
    return Packaging.STATE_DICT if networks[0].modules is None else Packaging.MODULE


def _describe(root: object) -> str:
    match root:
        case PickledTensor():
            return "a single tensor"
        case dict():
            return f"a dict of {len(root)} entries without named tensors"
        case list() | tuple():
            return f"a {type(root).__name__} of {len(root)}"
    return "a value without tensors"
