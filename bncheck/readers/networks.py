"""The networks inside a pickled object: whole modules and state dicts, however deep a checkpoint nests them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.core.module_facts import ModuleFacts
from bncheck.readers.pickle_records import GlobalRef, IdentityKey, Inert, PickledDict, PickledTensor

Path = tuple[str, ...]

_MODULE_KEYS = frozenset({"_parameters", "_buffers", "_modules"})
# Where the functions live that rebuild tensors of other kinds than a strided view.
_TENSOR_MODULES = frozenset({"torch._utils", "torch.nn.parameter"})
# A subclass of torch.Tensor that holds others: its class comes first. torch/_utils.py.
_WRAPPER_SUBCLASS = "torch._utils._rebuild_wrapper_subclass"
# A parameter as PyTorch wrote it before 0.4: a call of its class on the tensor.
_PARAMETER = "torch.nn.parameter.Parameter"
_OPTIMIZER_KEYS = frozenset({"state", "param_groups"})


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
    return _Search(limits).run(root)


class _Search:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._found = Findings()
        self._waiting: list[tuple[Path, Network | None, object]] = []
        self._queued: set[int] = set()
        self._walked: set[int] = set()
        self._named: set[int] = set()
        self._entries = 0
        self._tensors = 0

    def run(self, root: object) -> Findings:
        self._queue([((), root)], None)
        while self._waiting:
            path, owner, value = self._waiting.pop()
            if id(value) in self._walked:
                continue  # reached as a submodule in the meantime
            self._walked.add(id(value))
            if len(path) > self._limits.nesting or (path and len(path[-1]) > self._limits.name_length):
                raise UnreadableFile("it nests deeper, or has longer keys, than any checkpoint")
            if isinstance(value, Inert) and is_module(value):
                self._add_module(path, owner, value)
            elif _is_optimizer(value):
                self._found.optimizers.append((path, _entries(value)["state"]))
            else:
                if isinstance(value, dict) and not (owner is not None and self._repeats(value)):
                    self._add_state_dict(path, value)
                self._queue(((path + step, child) for step, child in _children(value)), owner)
        return self._found

    def _queue(self, places: Iterable[tuple[Path, object]], owner: Network | None) -> None:
        """Put what was not queued before on the stack, so that the first comes off first."""
        fresh: list[tuple[Path, Network | None, object]] = []
        for path, value in places:
            self._count()
            if id(value) not in self._queued:
                self._queued.add(id(value))
                fresh.append((path, owner, value))
        if len(self._queued) > self._limits.containers:
            raise UnreadableFile("it holds more containers than any checkpoint")
        self._waiting.extend(reversed(fresh))

    def _count(self, entries: int = 1) -> None:
        self._entries += entries
        if self._entries > self._limits.container_entries:
            raise UnreadableFile("its containers have more entries than any checkpoint's")

    def _add_state_dict(self, path: Path, entries: Mapping[object, object]) -> None:
        self._count(len(entries))
        network = Network(path, versions=_versions(entries))
        for name, value in entries.items():
            if isinstance(name, str):
                self._add_tensor(network, name, value)
        if network.tensors or network.opaque:
            self._found.networks.append(network)

    def _repeats(self, entries: Mapping[object, object]) -> bool:
        """Whether a module's attribute is a table of its own tensors, as data parallelism keeps of buffers."""
        tensors = [value for value in entries.values() if isinstance(value, PickledTensor)]
        return bool(tensors) and all(id(tensor) in self._named for tensor in tensors)

    def _add_tensor(self, network: Network, name: str, value: object) -> None:
        if isinstance(value, Inert) and value.maker.path == _PARAMETER and value.args:
            value = value.args[0]
        match value:
            case PickledTensor():
                network.tensors[name] = value
                self._named.add(id(value))
            case Inert(maker=maker, args=(GlobalRef() as subclass, *_)) if maker.path == _WRAPPER_SUBCLASS:
                network.opaque[name] = subclass.path
            case Inert(maker=maker) if maker.module in _TENSOR_MODULES:
                network.opaque[name] = maker.path
            case _:
                return
        self._tensors += 1
        if self._tensors > self._limits.tensors or len(name) > self._limits.name_length:
            raise UnreadableFile("it has more named tensors, or longer names, than any checkpoint")

    def _add_module(self, path: Path, owner: Network | None, root: Inert) -> None:
        network = owner
        if network is None:
            network = Network(path, modules={})
            self._found.networks.append(network)
        self._walk_modules(network, ".".join(path[len(network.path) :]), root)

    def _walk_modules(self, network: Network, prefix: str, root: Inert) -> None:
        """Walk ``_modules`` depth first, as ``named_modules()`` does: a shared module counts under its first name."""
        assert network.modules is not None
        waiting: list[tuple[str, int, Inert]] = [(prefix, 0, root)]
        visited: set[int] = set()
        expanded: set[int] = set()
        attached: list[tuple[Path, object]] = []
        while waiting:
            name, depth, module = waiting.pop()
            if id(module) in visited:
                continue
            visited.add(id(module))
            self._walked.add(id(module))
            if depth > self._limits.nesting or len(name) > self._limits.name_length:
                raise UnreadableFile("its modules are nested deeper, or have longer names, than any network's")
            attributes = module.attributes
            tensors = {**_table(attributes, "_parameters"), **_table(attributes, "_buffers")}
            children = _table(attributes, "_modules")
            if id(children) in expanded:
                children = {}  # a table that copies of a module share: what it holds is on its way already
            else:
                expanded.add(id(children))
            self._count(len(attributes) + len(tensors) + len(children))
            network.modules[name] = ModuleFacts(module.maker.path, attributes, tensors)
            for key, item in tensors.items():
                if isinstance(key, str):
                    self._add_tensor(network, _join(name, key), item)
            waiting.extend(
                (_join(name, key), depth + 1, child)
                for key, child in reversed(list(children.items()))
                if isinstance(key, str) and isinstance(child, Inert) and id(child) not in visited and is_module(child)
            )
            # What stands among the submodules and is none, or has no proper name, runs all the same when it is called.
            attached.extend(
                ((*network.path, _join(name, _step(key))), child)
                for key, child in children.items()
                if not (isinstance(key, str) and is_module(child)) and _may_hold_networks(child)
            )
            attached.extend(
                ((*network.path, _join(name, key)), item)
                for key, item in attributes.items()
                if isinstance(key, str) and key not in _MODULE_KEYS and _may_hold_networks(item)
            )
        self._queue(attached, network)


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
    if isinstance(value, PickledDict) and value.state:
        return True  # a dict without items can have attributes
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
