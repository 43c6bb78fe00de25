"""``torch.export.save``: a graph of operators and the tensors it reads, in the archives of ``exported_archive``."""

from __future__ import annotations

from dataclasses import dataclass, field

from bncheck.core.checkpoint import (
    Checkpoint,
    FileFormat,
    Packaging,
    Stage,
    StoredMoments,
    TensorRef,
    Unread,
    Unwritable,
)
from bncheck.core.errors import UnreadableFile
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.core.module_facts import ModuleFacts
from bncheck.readers.assemble import GraphCall, Statement, assemble
from bncheck.readers.conventions import group_of
from bncheck.readers.exported_archive import ExportedArchive, ExportedModel
from bncheck.readers.exported_graph import ROLES, ExportedGraph, NormCall, read_graph
from bncheck.readers.exported_tensors import UNKNOWN_NUMEL
from bncheck.readers.norm_classes import kind_of
from bncheck.readers.zip_directory import ZipDirectory

_MOMENTS = ROLES[:2]
_COMPILED = Unwritable(
    "it also holds compiled code, whose own moments would stay as they are; export the model again and write there"
)
_TORCH_NORMS = ("torch.nn.modules.batchnorm.", "torch.nn.modules.instancenorm.")
_Owner = tuple[str | None, ...]
"""Names of the tensors that a layer is called with, by role."""


def read_exported(archive: ZipDirectory, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    """Read a file written by ``torch.export.save``, or several programs packaged together.

    The mode is a constant in every such graph. Nothing but the graphs, the tensors and what says where they lie is
    opened: sample inputs, objects of the author's own classes and compiled code are left alone.

    Args:
        archive: the file.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows pickles to name.

    Raises:
        UnreadableFile: it is damaged, or malformed.
        UnsafeFile: loading it would run code, or it was built to deceive readers.
        UnsupportedFile: it holds compiled code alone, or was written in a schema nobody here knows.
    """
    contents = ExportedArchive(archive, limits, vouched)
    layers: list[NormLayer] = []
    tensors: dict[str, TensorRef] = {}
    moments: dict[str, StoredMoments | Unwritable] = {}
    unread = [
        Unread(name, "compiled code, in which batch norm cannot be seen; audit the exported program it was made from")
        for name in contents.compiled
    ]
    groups: set[str] = set()
    for model in contents.models:
        graph = read_graph(model.program, limits)
        group = group_of((model.name,))
        group = model.name if group in groups else group
        groups.add(group)
        called = _CalledLayers(model, graph, group)
        assembled = assemble(called.statement, contents.arrays)
        layers.extend(assembled.layers)
        moments.update(dict.fromkeys(assembled.moments, _COMPILED) if contents.compiled else assembled.moments)
        unread.extend((*assembled.unread, *called.unread))
        prefix = f"{model.name}." if len(contents.models) > 1 else ""
        tensors.update((f"{prefix}{name}", tensor) for name, tensor in model.tensors.items())
    return Checkpoint(
        path=path,
        format=FileFormat.PT2,
        packaging=Packaging.EXPORTED_PROGRAM,
        stage=Stage.RELEASE,
        layers=tuple(layers),
        tensors=tensors,
        moments=moments,
        unread=tuple(unread),
        remarks=contents.remarks(),
    )


@dataclass(slots=True)
class _Use:
    """The calls of one layer, and the position of the first among all."""

    order: int
    calls: list[NormCall] = field(default_factory=list)


class _CalledLayers:
    """The layers of one program: those its graph calls, and those that its tensors tell of."""

    def __init__(self, model: ExportedModel, graph: ExportedGraph, group: str) -> None:
        self._model = model
        self._graph = graph
        self._modules = {**graph.modules, **{_layer_of(name): None for name in (*model.tensors, *model.opaque)}}
        self._first_names = self._aliases()
        self._tensors: dict[str, TensorRef] = dict(model.tensors)
        self._opaque: dict[str, str] = dict(model.opaque)
        self._owners: dict[str, _Owner] = {}
        self._known: dict[_Owner, str] = {}
        self._counts: dict[str, int] = {}
        self.unread = [Unread("graph", f"it calls {target}, which bncheck does not know") for target in graph.unknown]
        uses: dict[str, _Use] = {}
        for order, call in enumerate(graph.calls):
            uses.setdefault(self._name(call), _Use(order)).calls.append(call)
        self.unread.extend(
            Unread(name, "the graph computes the mode it is called in")
            for name, use in uses.items()
            if _baked(use.calls) is None
        )
        self.statement = Statement(
            group=group,
            modules={name: self._facts(name, uses.get(name)) for name in {**self._modules, **uses}},
            tensors=self._tensors,
            opaque=self._opaque,
            in_order=bool(graph.modules),
            calls={name: GraphCall(use.order, _baked(use.calls)) for name, use in uses.items()},
        )

    # --- names -----------------------------------------------------------------------------------

    def _aliases(self) -> dict[str, str]:
        """Each tensor's name → the first that ends alike and stands for the same numbers.

        A module registered twice has two names, of which ``named_modules()`` knows the first; the graph uses either.
        """
        position = {name: index for index, name in enumerate(self._modules)}
        firsts: dict[tuple[object, ...], str] = {}
        names: dict[str, str] = {}
        for name in sorted(self._model.tensors, key=lambda name: position[_layer_of(name)]):
            tensor = self._model.tensors[name]
            place = (_leaf_of(name), tensor.storage, tensor.storage_offset, tensor.shape, tensor.strides)
            numbers = all(tensor.shape) and tensor.storage_numel < UNKNOWN_NUMEL
            names[name] = firsts.setdefault(place, name) if numbers else name
        return names

    def _stored(self, call: NormCall, role: str) -> str | None:
        """The stored tensor that a call is given for a role."""
        value = call.tensors[role]
        if value is None or value.stored is None:
            return None
        name = self._graph.inputs.get(value.stored)
        if name is None or name in self._model.opaque:
            return name
        if name not in self._model.tensors:
            raise UnreadableFile(f"the graph reads {name[:200]!r}, which is not among its tensors")
        return self._first_names[name]

    def _name(self, call: NormCall) -> str:
        """The layer that a call belongs to: whose moments it uses, or else which module makes it.

        A call of tensors that bear names of their own is named after what these have in common; where other tensors
        have that name already, or there is none, it goes by its node's.
        """
        stored = {role: name for role in ROLES if (name := self._stored(call, role)) is not None}
        for role in _MOMENTS:
            if role in stored and _leaf_of(stored[role]) == role:
                return _layer_of(stored[role])
        owner = tuple(stored.get(role) for role in ROLES)
        if call.module is not None and _is_norm(call.module[1]) and self._owns(call.module[0], owner):
            return call.module[0]
        for role, name in stored.items():
            if _leaf_of(name) == role:
                return _layer_of(name)
        prefixes = {_layer_of(name) for name in stored.values()}
        common = prefixes.pop() if len(prefixes) == 1 else ""
        if common and self._owners.setdefault(common, owner) == owner:
            return common
        known = self._known.get(owner) if stored else None
        if known is None:
            known = self._known[owner] = self._numbered(call.node)
            self._owners[known] = owner
        return known

    def _owns(self, name: str, owner: _Owner) -> bool:
        """Whether a module's calls can be one layer's: some classes keep moments for each of several domains."""
        known = self._owners.setdefault(name, owner)
        pairs = zip(known[: len(_MOMENTS)], owner, strict=False)
        return not any(one and other and one != other for one, other in pairs)

    def _numbered(self, node: str) -> str:
        """The node's name, with a number where a nested graph uses it again."""
        count = self._counts.get(node, 0)
        name = node if not count else f"{node}_{count}"
        while name in self._owners or name in self._modules:
            count += 1
            name = f"{node}_{count}"
        self._counts[node] = count
        return name

    # --- facts -----------------------------------------------------------------------------------

    def _facts(self, name: str, use: _Use | None) -> ModuleFacts:
        class_path = self._graph.classes.get(name, "")
        if use is None:
            return self._uncalled(name, class_path)
        first = use.calls[0]
        held: dict[object, object] = {role: self._held(name, role, use.calls) for role in ROLES}
        attributes: dict[object, object] = {
            "affine": any(first.tensors[role] is not None for role in ("weight", "bias")),
            "track_running_stats": any(call.tensors[role] is not None for call in use.calls for role in _MOMENTS),
        }
        for key, number in (("eps", first.eps), ("momentum", first.momentum), ("num_features", first.channels)):
            if number is not None:
                attributes[key] = number
        known = _class_of(use.calls, class_path, holds_statistics=held["running_mean"] is not None)
        return ModuleFacts(known, attributes, held)

    def _held(self, name: str, role: str, calls: list[NormCall]) -> object:
        """Makes what the layer's calls are given for a role its own tensor of that name."""
        own = f"{name}.{role}" if name else role
        for call in calls:
            stored = self._stored(call, role)
            if stored in self._model.tensors:
                self._tensors[own] = self._model.tensors[stored]
                return stored
            if stored in self._model.opaque:
                self._opaque[own] = self._model.opaque[stored]
                return stored
        computed = [value for call in calls if (value := call.tensors[role]) is not None]
        if computed:
            self._opaque[own] = computed[0].made_by
            return own
        return own if own in self._tensors else None

    def _uncalled(self, name: str, class_path: str) -> ModuleFacts:
        """A module that no normalisation operator is called for; without running moments it is no layer."""
        held: dict[object, object] = {}
        for role in _MOMENTS:
            own = f"{name}.{role}" if name else role
            if own in self._opaque or self._first_names.get(own) == own:
                held = dict.fromkeys(_MOMENTS, own)
        if held and class_path and kind_of(class_path, holds_statistics=False) in (NormKind.BATCH, NormKind.SYNC_BATCH):
            reason = "the graph normalises with other operators than batch norm's, so its mode cannot be read from it"
            self.unread.append(Unread(name, f"{reason}; export it without decomposing batch norm"))
        return ModuleFacts(class_path, {}, held)


def _layer_of(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _leaf_of(tensor: str) -> str:
    return tensor.rpartition(".")[2]


def _is_norm(class_path: str) -> bool:
    return kind_of(class_path, holds_statistics=False) is not NormKind.BATCH_OR_INSTANCE


def _class_of(calls: list[NormCall], class_path: str, *, holds_statistics: bool) -> str:
    """The layer's class where it agrees with what the graph calls, else the operator: a class's name may deceive."""
    told = kind_of(class_path, holds_statistics=holds_statistics) if class_path else NormKind.BATCH_OR_INSTANCE
    if class_path.startswith(_TORCH_NORMS):
        return class_path
    if _is_instance_norm(calls[0], kind_of(class_path, holds_statistics=False)):
        return class_path if told is NormKind.INSTANCE else "torch.instance_norm"
    frozen = told is NormKind.FROZEN_BATCH and all(call.training is False for call in calls)
    return class_path if frozen or told in (NormKind.BATCH, NormKind.SYNC_BATCH) else "torch.batch_norm"


def _is_instance_norm(call: NormCall, told: NormKind) -> bool:
    """Whether a call normalises each sample by itself.

    An instance norm is decomposed into a batch norm of one sample, whose channels are those of all samples, with the
    tensors repeated for each: ``instance_norm`` in
    https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/Normalization.cpp
    """
    if call.operator.instance or call.function.endswith("instance_norm"):
        return True
    if not call.folded or told not in (NormKind.INSTANCE, NormKind.BATCH_OR_INSTANCE):
        return False
    return told is NormKind.INSTANCE or all(value.repeated for value in call.tensors.values() if value is not None)


def _baked(calls: list[NormCall]) -> bool | None:
    """The constant mode: training where any call has it, eval where all have."""
    modes = {call.training for call in calls}
    return True if True in modes else None if None in modes else False
