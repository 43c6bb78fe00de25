"""The networks inside a pickled object: whole modules and state dicts, however deep a checkpoint nests them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_records import IdentityKey, Inert, PickledDict, PickledTensor

Path = tuple[str, ...]

_MODULE_KEYS = frozenset({"_parameters", "_buffers", "_modules"})
# Where the functions live that rebuild tensors of other kinds than a strided view.
_TENSOR_MODULES = frozenset({"torch._utils", "torch.nn.parameter"})
_OPTIMIZER_KEYS = frozenset({"state", "param_groups"})


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a pickled ``nn.Module`` says of itself beside its tensors."""

    class_path: str
    attributes: Mapping[object, object]
    tensors: Mapping[object, object]
    """Parameters and buffers, whatever they are; None where a layer was built without one."""


@dataclass(slots=True)
class Network:
    """One network found in a file.

    Attributes:
        path: keys that lead to it from the top.
        tensors: by dotted name inside the network, in the file's order.
        opaque: tensors whose numbers cannot be read (sparse, quantised, lazy …): name → what would rebuild them.
        modules: by dotted name; None for a state dict, which has no modules.
        versions: ``_metadata`` versions by module name; None where the file has no metadata.
    """

    path: Path
    tensors: dict[str, PickledTensor] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    modules: dict[str, ModuleFacts] | None = None
    versions: dict[str, int] | None = None


@dataclass(slots=True)
class Findings:
    """Everything of interest in a pickled object."""

    networks: list[Network] = field(default_factory=list)
    optimizers: list[tuple[Path, object]] = field(default_factory=list)
    """Where an optimizer's state lies, and its ``state`` entry."""


def is_module(value: object) -> bool:
    """Whether a record is an ``nn.Module`` of any class: it holds a module's three tables."""
    return isinstance(value, Inert) and value.attributes.keys() >= _MODULE_KEYS


def search(root: object, limits: Limits) -> Findings:
    """Find every network and optimizer in an object, each once, in the file's order.

    A module kept in a plain attribute of another (a list of layers, say) is no submodule, and ``.eval()`` never
    reaches it; it counts as part of that network, under the attribute's name.

    Raises:
        UnreadableFile: it holds more containers than any checkpoint, or modules nested without end.
    """
    found = Findings()
    seen: set[int] = set()
    waiting: list[tuple[Path, Network | None, object]] = [((), None, root)]
    while waiting:
        path, owner, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if len(seen) > limits.containers or len(path) > limits.nesting:
            raise UnreadableFile("it nests more containers than any checkpoint does")
        if path and len(path[-1]) > limits.name_length:
            raise UnreadableFile(f"a key has {len(path[-1])} characters")
        if isinstance(value, Inert) and is_module(value):
            network = Network(path, modules={}) if owner is None else owner
            if owner is None:
                found.networks.append(network)
            attached = _walk_modules(network, ".".join(path[len(network.path) :]), value, seen, limits)
            waiting.extend((child_path, network, child) for child_path, child in reversed(attached))
        elif _is_optimizer(value):
            found.optimizers.append((path, _entries(value)["state"]))
        else:
            if isinstance(value, dict):
                _add_state_dict(found, path, value)
            waiting.extend((path + step, owner, child) for step, child in reversed(list(_children(value))))
    return found


def _add_state_dict(found: Findings, path: Path, entries: Mapping[object, object]) -> None:
    network = Network(path, versions=_versions(entries))
    for name, value in entries.items():
        if isinstance(name, str):
            _add_tensor(network, name, value)
    if network.tensors or network.opaque:
        found.networks.append(network)


def _add_tensor(network: Network, name: str, value: object) -> None:
    match value:
        case PickledTensor():
            network.tensors[name] = value
        case Inert(maker=maker) if maker.module in _TENSOR_MODULES:
            network.opaque[name] = maker.path


def _walk_modules(
    network: Network, prefix: str, root: Inert, seen: set[int], limits: Limits
) -> list[tuple[Path, object]]:
    """Walk ``_modules`` depth first, as ``named_modules()`` does: a shared module counts under its first name.

    Returns:
        Attributes that may hold further networks, with the keys that lead to them from the top.
    """
    assert network.modules is not None
    attached: list[tuple[Path, object]] = []
    waiting: list[tuple[str, int, Inert]] = [(prefix, 0, root)]
    visited: set[int] = set()
    while waiting:
        name, depth, module = waiting.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        seen.add(id(module))
        if depth > limits.nesting or len(seen) > limits.containers:
            raise UnreadableFile("its modules are nested deeper or are more than any network's")
        if len(name) > limits.name_length:
            raise UnreadableFile(f"the name of a module has {len(name)} characters")
        attributes = module.attributes
        tensors = {**_table(attributes, "_parameters"), **_table(attributes, "_buffers")}
        network.modules[name] = ModuleFacts(module.maker.path, attributes, tensors)
        for key, item in tensors.items():
            if isinstance(key, str):
                _add_tensor(network, _join(name, key), item)
        children = [
            (_join(name, key), depth + 1, child)
            for key, child in _table(attributes, "_modules").items()
            if isinstance(key, str) and isinstance(child, Inert) and is_module(child)
        ]
        waiting.extend(reversed(children))
        attached.extend(
            ((*network.path, _join(name, key)), item)
            for key, item in attributes.items()
            if isinstance(key, str) and key not in _MODULE_KEYS and _may_hold_networks(item)
        )
    return attached


def _table(attributes: Mapping[object, object], key: str) -> Mapping[object, object]:
    value = attributes.get(key)
    return value if isinstance(value, dict) else {}


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _children(value: object) -> Iterator[tuple[Path, object]]:
    match value:
        case dict():
            for key, item in value.items():
                if _may_hold_networks(item):
                    yield (_step(key),), item
            if isinstance(value, PickledDict) and _may_hold_networks(value.state):
                yield (), value.state
        case list() | tuple():
            for index, item in enumerate(value):
                if _may_hold_networks(item):
                    yield (str(index),), item
        case Inert():
            for part in (value.items, value.elements, value.args, value.state):
                if part:
                    yield (), part


def _may_hold_networks(value: object) -> bool:
    return isinstance(value, (dict, list, tuple, Inert)) and bool(value)


def _step(key: object) -> str:
    return key if isinstance(key, str) else "?" if isinstance(key, IdentityKey) else str(key)


def _is_optimizer(value: object) -> bool:
    entries = _entries(value)
    return entries.keys() >= _OPTIMIZER_KEYS and isinstance(entries["param_groups"], list)


def _entries(value: object) -> Mapping[object, object]:
    match value:
        case dict():
            return value
        case Inert():
            return value.attributes
    return {}


def _versions(value: Mapping[object, object]) -> dict[str, int] | None:
    """``state_dict()._metadata``: module name → ``{"version": n}``."""
    state = value.state if isinstance(value, PickledDict) else None
    metadata = state.get("_metadata") if isinstance(state, dict) else None
    if not isinstance(metadata, dict):
        return None
    return {
        name: entry["version"]
        for name, entry in metadata.items()
        if isinstance(name, str) and isinstance(entry, dict) and isinstance(entry.get("version"), int)
    }
