"""A state dict spread over files, by the index that Hugging Face's libraries write beside them.

Format: ``{"metadata": {…}, "weight_map": {tensor: file}}``, where ``save_torch_state_dict`` splits a model,
https://github.com/huggingface/huggingface_hub/blob/v2.4.0/src/huggingface_hub/serialization/_torch.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage, TensorRef, Unwritable
from bncheck.core.errors import BncheckError, UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.layers import Float64Array
from bncheck.core.limits import Limits
from bncheck.core.places import StoragePlace
from bncheck.readers.pickled import networks_of
from bncheck.readers.safetensors import natural_order, stored_tensors
from bncheck.readers.sniff import Container, sniff
from bncheck.readers.source import FileSource, OpenedSource, Source
from bncheck.readers.statements import NamedTensors, layers_of
from bncheck.readers.strict_json import json_object
from bncheck.readers.tensors import Arrays
from bncheck.readers.torch_archive import pickle_prefix
from bncheck.readers.torch_zip import torch_zip_contents
from bncheck.readers.zip_directory import ZipDirectory

OpenBeside = Callable[[str], OpenedSource]
"""Opens the file of that name in the index's folder."""

_FLOAT64 = 8
_SPREAD = Unwritable(
    "it is spread over several files; save the model as one (save_pretrained(FOLDER, max_shard_size='1TB'))"
)
# A name with one of these could lead elsewhere; a colon names a drive, or a stream of a file, on Windows.
_ELSEWHERE = frozenset("/\\:\0")
# Brackets in an index: one object around all, one of metadata and one of tensors.
_MOST_BRACKETS = 1000


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Where each tensor lies: its name → the name of a file in the index's own folder."""

    files: Mapping[str, str]

    @property
    def shards(self) -> tuple[str, ...]:
        """Every file once, in the order of the index."""
        return tuple(dict.fromkeys(self.files.values()))


def read_index(source: Source, name: str, limits: Limits) -> ShardIndex:
    """Read an index.

    Args:
        source: the index.
        name: its own file name, which no shard may have.
        limits: bounds.

    Raises:
        UnreadableFile: it is no index.
        UnsafeFile: a file it names could lie elsewhere.
    """
    if source.size > limits.shard_index_bytes:
        raise UnreadableFile(f"its index has {source.size} bytes, more than any model's")
    data = source.read_at(0, source.size)
    if data.count(b"{") + data.count(b"[") > _MOST_BRACKETS:
        raise UnreadableFile("its index holds more than a map of tensors to files")
    weight_map = json_object(data, "its index", limits).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableFile("its index has no weight_map of tensors to files")
    if len(weight_map) > limits.tensors or any(len(tensor) > limits.name_length for tensor in weight_map):
        raise UnreadableFile("its index names more tensors, or has longer names, than any model")
    index = ShardIndex({tensor: _plain_name(file, name) for tensor, file in weight_map.items()})
    if len(index.shards) > limits.shards:
        raise UnreadableFile(f"its index names {len(index.shards)} files, more than any model has")
    return index


def _plain_name(file: object, index: str) -> str:
    if not isinstance(file, str):
        raise UnreadableFile("its index maps a tensor to something that is no file name")
    if not file or file in (".", "..") or _ELSEWHERE & set(file):
        raise UnsafeFile(f"its index names {file[:200]!r}, which is no name of a file beside it")
    if file == index:
        raise UnsafeFile("its index names itself as a file of tensors")
    return file


def shards_beside(path: str, limits: Limits) -> tuple[str, ...]:
    """Paths of the shards that the index at ``path`` names; none where it is no index that can be read."""
    folder, name = os.path.split(path)
    try:
        with FileSource(path) as source:
            if sniff(source) is not Container.SHARD_INDEX:
                return ()
            return tuple(os.path.join(folder, shard) for shard in read_index(source, name, limits).shards)
    except BncheckError:
        return ()


def read_sharded(
    source: Source, path: str, open_beside: OpenBeside, limits: Limits, vouched: frozenset[str]
) -> Checkpoint:
    """Read the state dict that an index describes, as one.

    Args:
        source: the index.
        path: as the user gave it, for the report.
        open_beside: opens a file of the index's folder; each is opened once and stays open until all are read.
        limits: bounds.
        vouched: callables the user allows pickled shards to name.

    Raises:
        UnreadableFile: index and shards contradict each other, or one of them is missing or damaged.
        UnsafeFile: a shard was built to harm its reader, or the index leads elsewhere.
        UnsupportedFile: the shards are in a format that is not read.
    """
    index = read_index(source, os.path.basename(path), limits)
    with ExitStack() as opened:
        sources = _open_all(index.shards, open_beside, opened)
        shards = {name: _read_shard(name, shard, limits, vouched) for name, shard in sources.items()}
        formats = {shard.format for shard in shards.values()}
        if len(formats) > 1:
            raise UnsupportedFile("its shards are in different formats; audit them one by one")
        tensors, opaque = _joined(index, shards)
        arrays = _ShardedArrays({name: shard.arrays for name, shard in shards.items()}, limits)
        read = layers_of([NamedTensors((), tensors, opaque, in_order=False)], arrays)
        remarks = tuple(f"{name}: {remark}" for name, shard in shards.items() for remark in shard.remarks)
    return Checkpoint(
        path=path,
        format=formats.pop(),
        packaging=Packaging.STATE_DICT,
        stage=Stage.RELEASE,
        layers=read.layers,
        tensors=tensors,
        networks=read.networks,
        shards=index.shards,
        moments=dict.fromkeys(read.moments, _SPREAD),
        unread=read.unread,
        remarks=(*read.remarks, *remarks),
    )


def _open_all(names: Iterable[str], open_beside: OpenBeside, opened: ExitStack) -> dict[str, OpenedSource]:
    sources: dict[str, OpenedSource] = {}
    failed: list[str] = []
    for name in names:
        try:
            sources[name] = opened.enter_context(open_beside(name))
        except UnreadableFile as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise UnreadableFile(f"{len(failed)} of its {len(failed) + len(sources)} shards cannot be read; {_few(failed)}")
    return sources


@dataclass(frozen=True, slots=True)
class _Shard:
    """The tensors of one file."""

    format: FileFormat
    tensors: Mapping[str, TensorRef]
    opaque: Mapping[str, str]
    arrays: Arrays
    remarks: tuple[str, ...] = ()


def _read_shard(name: str, source: Source, limits: Limits, vouched: frozenset[str]) -> _Shard:
    try:
        match sniff(source):
            case Container.SAFETENSORS:
                tensors, arrays = stored_tensors(source, limits)
                return _Shard(FileFormat.SAFETENSORS, tensors, {}, arrays)
            case Container.ZIP:
                return _read_zip_shard(source, name, limits, vouched)
            case _:
                raise UnsupportedFile("is neither safetensors nor a torch.save archive")
    except BncheckError as error:
        raise type(error)(f"its shard {name}: {error}") from None


def _read_zip_shard(source: Source, name: str, limits: Limits, vouched: frozenset[str]) -> _Shard:
    archive = ZipDirectory(source, limits)
    archive.verify()
    prefix = pickle_prefix(archive)
    if prefix is None:
        raise UnsupportedFile("is a zip archive that torch.save did not write")
    root, container = torch_zip_contents(archive, prefix, name, limits, vouched)
    networks = networks_of(root, container, limits)
    if len(networks) != 1 or networks[0].path or networks[0].modules is not None:
        raise UnsupportedFile("holds more than a part of a state dict")
    (network,) = networks
    return _Shard(FileFormat.TORCH_ZIP, network.tensors, network.opaque, container.arrays, archive.remarks())


def _joined(index: ShardIndex, shards: Mapping[str, _Shard]) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """The tensors of all shards, with the shard's name before the storage's; index and shards must agree exactly."""
    listed: dict[str, set[str]] = {name: set() for name in shards}
    for tensor, file in index.files.items():
        listed[file].add(tensor)
    wrong = [problem for name, shard in shards.items() for problem in _disagreements(name, listed[name], shard)]
    if wrong:
        raise UnreadableFile(f"its index and its shards disagree: {_few(wrong)}")
    tensors: dict[str, TensorRef] = {}
    opaque: dict[str, str] = {}
    for tensor in sorted(index.files, key=natural_order):
        file = index.files[tensor]
        if tensor in shards[file].tensors:
            reference = shards[file].tensors[tensor]
            tensors[tensor] = replace(reference, storage=f"{file}/{reference.storage}")
        else:
            opaque[tensor] = shards[file].opaque[tensor]
    return tensors, opaque


def _disagreements(name: str, listed: set[str], shard: _Shard) -> Iterator[str]:
    held = shard.tensors.keys() | shard.opaque.keys()
    if listed - held:
        yield f"{name} lacks {_few(sorted(listed - held))}"
    if held - listed:
        yield f"{name} holds {_few(sorted(held - listed))}, which the index does not place there"


def _few(names: list[str]) -> str:
    """Three of the names and how many there are; none long enough to flood a report."""
    shown = ", ".join(name[:200] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


class _ShardedArrays:
    """Loads tensors from whichever shard they lie in, all within one file's budget of statistics bytes."""

    def __init__(self, arrays: Mapping[str, Arrays], limits: Limits) -> None:
        self._arrays = arrays
        self._budget = self._left = limits.statistics_bytes

    def load(self, tensor: TensorRef) -> Float64Array:
        """The tensor's values, of its own shape."""
        self._left -= max(prod(tensor.shape), 1) * _FLOAT64
        if self._left < 0:
            raise UnreadableFile(f"its batch-norm tensors take more than {self._budget} bytes")
        shard, inside = _split(tensor)
        return self._arrays[shard].load(inside)

    def place(self, tensor: TensorRef) -> StoragePlace:
        """Where the tensor's storage lies in its shard."""
        shard, inside = _split(tensor)
        return self._arrays[shard].place(inside)

    def announce(self, tensors: Iterable[TensorRef]) -> None:
        """Tell each shard which of its tensors will be loaded."""
        by_shard: dict[str, list[TensorRef]] = {}
        for shard, inside in map(_split, tensors):
            by_shard.setdefault(shard, []).append(inside)
        for shard, mine in by_shard.items():
            self._arrays[shard].announce(mine)


def _split(tensor: TensorRef) -> tuple[str, TensorRef]:
    shard, _, storage = tensor.storage.partition("/")
    return shard, replace(tensor, storage=storage)
