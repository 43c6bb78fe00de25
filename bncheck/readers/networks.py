"""The networks inside a pickled object: whole modules and state dicts, however deep a checkpoint nests them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_records import IdentityKey, Inert, PickledDict, PickledTensor

Path = tuple[str, ...]

_MODULE_KEYS = frozenset({"_parameters", "_buffers", "_modules"})
_OPTIMIZER_KEYS = frozenset({"state", "param_groups"})


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a pickled ``nn.Module`` says of itself beside its tensors."""

    class_path: str
    attributes: Mapping[object, object]
    buffers: Mapping[object, object]


@dataclass(slots=True)
class Network:
    """One network found in a file.

    Attributes:
        path: keys that lead to it from the top.
        tensors: by dotted name inside the network, in the file's order.
        modules: by dotted name; None for a state dict, which has no modules.
        versions: ``_metadata`` versions by module name; None where the file has no metadata.
    """

    path: Path
    tensors: dict[str, PickledTensor] = field(default_factory=dict)
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

    Raises:
        UnreadableFile: it holds more containers than any checkpoint, or modules nested without end.
    """
    found = Findings()
    seen: set[int] = set()
    waiting: list[tuple[Path, object]] = [((), root)]
    while waiting:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if len(seen) > limits.containers or len(path) > limits.nesting:
            raise UnreadableFile("it nests more containers than any checkpoint does")
        if isinstance(value, Inert) and is_module(value):
            network, attached = _module_tree(path, value, seen, limits)
            found.networks.append(network)
            waiting.extend(reversed(attached))
            continue
        if _is_optimizer(value):
            found.optimizers.append((path, _entries(value)["state"]))
            continue
        if isinstance(value, dict):
            tensors = {
                key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, PickledTensor)
            }
            if tensors:
                found.networks.append(Network(path, tensors, versions=_versions(value)))
        waiting.extend(reversed([(path + step, child) for step, child in _children(value)]))
    return found


def _module_tree(path: Path, root: Inert, seen: set[int], limits: Limits) -> tuple[Network, list[tuple[Path, object]]]:
    """Walk ``_modules`` depth first, as ``named_modules()`` does: a shared module counts under its first name."""
    network = Network(path, modules={})
    assert network.modules is not None
    attached: list[tuple[Path, object]] = []
    waiting: list[tuple[str, int, Inert]] = [("", 0, root)]
    visited: set[int] = set()
    while waiting:
        name, depth, module = waiting.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        seen.add(id(module))
        if depth > limits.nesting or len(seen) > limits.containers:
            raise UnreadableFile("its modules are nested deeper or are more than any network's")
        attributes = module.attributes
        buffers = _table(attributes, "_buffers")
        network.modules[name] = ModuleFacts(module.maker.path, attributes, buffers)
        for table in (_table(attributes, "_parameters"), buffers):
            for key, item in table.items():
                if isinstance(key, str) and isinstance(item, PickledTensor):
                    network.tensors[_join(name, key)] = item
        children = [
            (_join(name, key), depth + 1, child)
            for key, child in _table(attributes, "_modules").items()
            if isinstance(key, str) and isinstance(child, Inert) and is_module(child)
        ]
        waiting.extend(reversed(children))
        for key, item in attributes.items():
            # A layer kept in a plain list is no submodule: `.eval()` never reaches it, so it must be seen.
            if (
                isinstance(key, str)
                and key not in _MODULE_KEYS
                and isinstance(item, (dict, list, tuple, Inert))
                and item
            ):
                attached.append(((*path, _join(name, key)), item))
    return network, attached


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
