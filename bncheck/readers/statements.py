"""Named tensors → what is said of each copy of the network they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from bncheck.core.checkpoint import StoredMoments, TensorRef, Unread, Unwritable
from bncheck.core.layers import NormLayer
from bncheck.core.module_facts import ModuleFacts
from bncheck.readers.assemble import Statement, assemble
from bncheck.readers.conventions import (
    Part,
    group_of_part,
    is_flattened,
    is_shard,
    network_prefixes,
    parts_of,
)
from bncheck.readers.tensors import Arrays

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """A state dict or module as a file has it.

    Attributes:
        path: keys that lead to it from the top.
        tensors: by dotted name, in the file's order.
        opaque: tensors whose numbers cannot be read: name → what would rebuild them.
        modules: by dotted name; None for a state dict.
        versions: ``_metadata`` versions by module name; None where the file has no metadata.
        in_order: whether the tensors come in the order of the network's layers.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, TensorRef]
    opaque: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, ModuleFacts] | None = None
    versions: Mapping[str, int] | None = None
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of all networks in a file, where their moments lie, what could not be read, and what is odd."""

    layers: tuple[NormLayer, ...]
    moments: Mapping[str, StoredMoments | Unwritable]
    unread: tuple[Unread, ...]
    remarks: tuple[str, ...]
    networks: Mapping[str, Mapping[str, TensorRef]]


def layers_of(networks: Sequence[NamedTensors], arrays: Arrays, keys: Set[str] = frozenset()) -> Layers:
    """Read the layers of every network in a file, and of every copy that shares a state dict with it.

    Args:
        networks: in the file's order.
        arrays: reads the tensors' values.
        keys: all keys at the top of the checkpoint; some writers are told by them.
    """
    layers: list[NormLayer] = []
    moments: dict[str, StoredMoments | Unwritable] = {}
    unread: list[Unread] = []
    groups: set[str] = set()
    holders: list[tuple[str, frozenset[str]]] = []
    parts: dict[str, Mapping[str, TensorRef]] = {}
    for network in networks:
        unread.extend(_not_gathered(network))
        for statement in _statements(network, keys, groups):
            assembled = assemble(statement, arrays)
            if assembled.layers:
                groups.add(statement.group)
            layers.extend(assembled.layers)
            moments.update(assembled.moments)
            unread.extend(assembled.unread)
            holders.append((statement.group, _holders(statement)))
            if assembled.layers or statement.group not in parts:
                parts[statement.group] = statement.tensors
    return Layers(tuple(layers), moments, tuple(unread), tuple(_copies_of_parameters(layers, holders)), parts)


def _statements(network: NamedTensors, keys: Set[str], groups: Set[str]) -> Iterator[Statement]:
    """The network and its copies, each with its own group; ``groups`` are those that other networks have."""
    shapes = {**{name: tensor.shape for name, tensor in network.tensors.items()}, **dict.fromkeys(network.opaque)}
    flattened = any(is_flattened(name) for name in shapes)
    for part in parts_of(shapes, network_prefixes(keys)):
        yield Statement(
            _unused(group_of_part(network.path, keys, part), ".".join((*network.path, part.prefix)), groups),
            _named(part, network.tensors),
            _named(part, network.opaque),
            None if network.modules is None else _named(part, network.modules),
            None if network.versions is None else _named(part, network.versions),
            in_order=network.in_order,
            flattened=flattened,
        )


def _unused(group: str, path: str, groups: Set[str]) -> str:
    """The group, or where another network has it the keys that lead to this one, numbered if need be."""
    if group not in groups:
        return group
    name = path.strip(".") or "model"
    return name if name not in groups else next(tried for n in count(2) if (tried := f"{name}#{n}") not in groups)


def _named(part: Part, named: Mapping[str, _T]) -> dict[str, _T]:
    """What belongs to a part, by its name there. Where a wrapper and what it wraps get one name, the latter stays."""
    return {bare: value for name, value in named.items() if (bare := part.bare(name)) is not None}


def _not_gathered(network: NamedTensors) -> Iterator[Unread]:
    """What says that a file holds one process's part of a network: never clean, however healthy that part is."""
    shards = [name for name, maker in network.opaque.items() if is_shard(maker)]
    flattened = [name for name in (*network.tensors, *network.opaque) if is_flattened(name)]
    if shards or flattened:
        first = ".".join((*network.path, (shards or flattened)[0]))
        what = "is one process's part of a parameter" if shards else "holds several parameters end to end"
        yield Unread(
            first,
            f"it {what}, as {len({*shards, *flattened})} of its tensors are; gather the network and save it again "
            "(torch.distributed.checkpoint.state_dict: get_model_state_dict with full_state_dict=True)",
        )


def _holders(statement: Statement) -> frozenset[str]:
    """Names of the modules that hold tensors."""
    return frozenset(name.rpartition(".")[0] for name in (*statement.tensors, *statement.opaque))


def _copies_of_parameters(layers: Sequence[NormLayer], holders: Sequence[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """Copies that hold a layer's scale and shift but not its moments, so that none of its layers is told as such."""
    known = {layer.name for layer in layers if layer.group == "model"}
    told = {layer.group for layer in layers}
    for group, names in holders:
        without = len(known & names)
        if group not in told and without:
            yield f"the copy {group!r} holds the parameters of {without} batch norms and no moments; it is not audited"
