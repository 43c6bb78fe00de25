"""Tensor names → normalisation layers, by the conventions files are written in."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from bncheck.core.checkpoint import StoredMoments, TensorRef, Unread, Unwritable
from bncheck.core.errors import UnreadableFile
from bncheck.core.layers import Averaging, Float64Array, Momentum, NormKind, NormLayer, family_of
from bncheck.core.module_facts import ModuleFacts
from bncheck.core.places import StoragePlace
from bncheck.readers.conventions import is_shard
from bncheck.readers.norm_classes import is_of_torch, kind_of
from bncheck.readers.pickle_records import Inert
from bncheck.readers.tensors import Arrays

# torch.nn.modules.batchnorm._NormBase._version: since 2 its state dict holds num_batches_tracked. Other modules whose
# state is one weight and one bias (LayerNorm, GroupNorm) are at 1.
_NORM_BASE_VERSION = 2


@dataclass(frozen=True, slots=True)
class GraphCall:
    """How a graph calls a layer.

    Attributes:
        order: position among the graph's calls of normalisation layers, from 0.
        baked_training: the constant it passes for the mode; None where the call follows the layer's flag.
    """

    order: int
    baked_training: bool | None


@dataclass(frozen=True, slots=True)
class Statement:
    """One network's tensors and whatever else its file says, ready to be read as layers."""

    group: str
    tensors: Mapping[str, TensorRef]
    """By dotted name inside the network."""
    opaque: Mapping[str, str] = field(default_factory=dict)
    """Tensors whose numbers cannot be read: name → what would rebuild them."""
    modules: Mapping[str, ModuleFacts] | None = None
    versions: Mapping[str, int] | None = None
    in_order: bool = True
    """Whether the tensors come in the order of the network's layers."""
    calls: Mapping[str, GraphCall] = field(default_factory=dict)
    """By layer name; empty where the file holds no graph."""
    flattened: bool = False
    """Whether parameters lie in tensors that hold several end to end, so that a layer without one may have it."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """The layers of one network, what of them could not be read, and where their moments lie, by full name."""

    layers: tuple[NormLayer, ...]
    unread: tuple[Unread, ...]
    moments: Mapping[str, StoredMoments | Unwritable]


def assemble(statement: Statement, arrays: Arrays) -> Assembled:
    """Read a network's normalisation layers.

    Args:
        statement: the network.
        arrays: reads the tensors' values.
    """
    by_layer: dict[str, dict[str, TensorRef | str]] = {}
    everything: Mapping[str, TensorRef | str] = {**statement.tensors, **statement.opaque}
    for name, tensor in everything.items():
        prefix, _, leaf = name.rpartition(".")
        by_layer.setdefault(prefix, {})[leaf] = tensor
    if statement.modules is not None:
        names = [(name, _module_kind(facts)) for name, facts in statement.modules.items()]
    else:
        siblings = _siblings_of_batch_norms(by_layer) if statement.versions is None else set()
        names = [
            (name, _state_dict_kind(name, leaves, siblings, statement.versions)) for name, leaves in by_layer.items()
        ]
    followed = _after_bias(by_layer, statement.modules) if statement.in_order else {}
    arrays.announce(
        tensor
        for name, kind in names
        if kind is not None
        for leaf, tensor in by_layer.get(name, {}).items()
        if leaf in _LEAVES and isinstance(tensor, TensorRef)
    )
    layers: list[NormLayer] = []
    unread: list[Unread] = []
    moments: dict[str, StoredMoments | Unwritable] = {}
    for name, kind in names:
        if kind is not None:
            facts = None if statement.modules is None else statement.modules[name]
            leaves = by_layer.get(name, {})
            values, failed = _load_all(name, leaves, arrays)
            failed += _drop_unequal(name, values)
            unread.extend(failed)
            references = {leaf: tensor for leaf, tensor in leaves.items() if isinstance(tensor, TensorRef)}
            hidden = statement.flattened or ("weight" in leaves and "weight" not in values)
            layer = _layer(name, kind, statement.group, references, values, facts, followed.get(name), hidden)
            layers.append(_called(layer, statement.calls.get(name)))
            if not leaves.keys().isdisjoint(_STATISTICS):
                moments[layer.full_name] = _where(references, values, failed, arrays)
    return Assembled(tuple(layers), tuple(unread), moments)


def _module_kind(facts: ModuleFacts) -> NormKind | None:
    held = facts.tensors.keys() & set(_STATISTICS)
    # torch's own classes register both, as None where they keep none: from theirs, one that is missing was taken away.
    if len(held) < len(_STATISTICS) and not (held and is_of_torch(facts.class_path)):
        return None
    return kind_of(facts.class_path, holds_statistics=facts.tensors.get("running_mean") is not None)


_DEEPEST_BLOCK = 32  # dotted parts; a forged name of thousands would take quadratic time
_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def _siblings_of_batch_norms(by_layer: Mapping[str, Mapping[str, TensorRef | str]]) -> set[str]:
    """Layers called like a batch norm, in a block built like that batch norm's.

    The name alone is not enough: hybrid networks call the batch norms of their convolution blocks and the layer norms
    of their attention blocks alike. Blocks are built alike when they hold tensors of the same names and dimensions,
    buffers of norms aside.
    """
    blocks: dict[str, set[tuple[str, int]]] = {name.rpartition(".")[0]: set() for name in by_layer}
    for name, leaves in by_layer.items():
        parts = name.split(".")
        for depth in range(min(len(parts), _DEEPEST_BLOCK)):
            block = blocks.get(".".join(parts[:depth]))
            if block is not None:
                inside = ".".join(parts[depth:])
                block.update(
                    (f"{inside}.{leaf}", len(tensor.shape) if isinstance(tensor, TensorRef) else -1)
                    for leaf, tensor in leaves.items()
                    if leaf not in _BUFFERS
                )

    build = {name: frozenset(block) for name, block in blocks.items()}

    def likeness(name: str) -> tuple[str, frozenset[tuple[str, int]]]:
        return family_of(name), build[name.rpartition(".")[0]]

    known = {likeness(name) for name, leaves in by_layer.items() if "running_mean" in leaves}
    families = {family for family, _ in known}
    return {name for name in by_layer if family_of(name) in families and likeness(name) in known}


def _state_dict_kind(
    name: str, leaves: Mapping[str, TensorRef | str], siblings: set[str], versions: Mapping[str, int] | None
) -> NormKind | None:
    if "running_mean" in leaves or "running_var" in leaves:
        return NormKind.BATCH
    weight, bias = leaves.get("weight"), leaves.get("bias")
    if len(leaves) != 2 or not isinstance(weight, TensorRef) or not isinstance(bias, TensorRef):
        return None
    if len(weight.shape) != 1 or weight.shape != bias.shape:
        return None
    if versions is not None and versions.get(name, 0) < _NORM_BASE_VERSION:
        return None
    return NormKind.BATCH_OR_INSTANCE if versions is not None or name in siblings else None


def _after_bias(
    by_layer: Mapping[str, Mapping[str, TensorRef | str]], modules: Mapping[str, ModuleFacts] | None
) -> dict[str, int]:
    """For each layer, the length of the bias of the layer with tensors before it, where that is no norm; else −1."""
    followed: dict[str, int] = {}
    previous = -1
    for name in by_layer if modules is None else (name for name in modules if name in by_layer):
        followed[name] = previous
        weight, bias = by_layer[name].get("weight"), by_layer[name].get("bias")
        previous = -1
        if isinstance(weight, TensorRef) and isinstance(bias, TensorRef):
            previous = bias.shape[0] if len(weight.shape) > 1 and len(bias.shape) == 1 else -1
    return followed


_STATISTICS = ("running_mean", "running_var")
_LEAVES = (*_STATISTICS, "num_batches_tracked", "weight", "bias")
# A lazy layer's tensors before its first batch: there is nothing to read yet.
_PLACEHOLDERS = ("torch.nn.parameter.UninitializedBuffer", "torch.nn.parameter.UninitializedParameter")


def _load_all(
    name: str, leaves: Mapping[str, TensorRef | str], arrays: Arrays
) -> tuple[dict[str, Float64Array], list[Unread]]:
    values: dict[str, Float64Array] = {}
    failed: list[Unread] = []
    for leaf in _LEAVES:
        full = f"{name}.{leaf}" if name else leaf
        match leaves.get(leaf):
            case TensorRef() as tensor:
                try:
                    values[leaf] = arrays.load(tensor)
                except UnreadableFile as error:
                    failed.append(Unread(full, str(error)))
            # Of shards the file's own entry of what was not read tells.
            case str(maker) if maker not in _PLACEHOLDERS and not is_shard(maker):
                failed.append(Unread(full, f"its numbers are not stored as they are (it is made by {maker})"))
    return values, failed


def _where(
    references: Mapping[str, TensorRef],
    values: Mapping[str, Float64Array],
    failed: Iterable[Unread],
    arrays: Arrays,
) -> StoredMoments | Unwritable:
    """Where a layer's moments lie; what could not be read cannot be written either."""
    for entry in failed:
        if entry.what.rpartition(".")[2] in _BUFFERS:
            return Unwritable(f"{entry.what} was not read: {entry.reason}")
    for leaf in _STATISTICS:
        if leaf not in values:
            return Unwritable(f"it holds no numbers for {leaf}")
    tensors = {leaf: tensor for leaf, tensor in references.items() if leaf in _BUFFERS}
    places: dict[str, StoragePlace] = {}
    for tensor in tensors.values():
        if tensor.storage not in places and all(tensor.shape):
            places[tensor.storage] = arrays.place(tensor)
    return StoredMoments(tensors, places)


def _drop_unequal(name: str, values: dict[str, Float64Array]) -> list[Unread]:
    """Take away moments that disagree on the number of channels: no rule could pair them."""
    mean, variance = (values.get(leaf) for leaf in _STATISTICS)
    if mean is None or variance is None or mean.size == variance.size:
        return []
    for leaf in _STATISTICS:
        del values[leaf]
    what = f"{name}.running_mean" if name else "running_mean"
    return [Unread(what, f"it has {mean.size} channels and running_var has {variance.size}")]


def _layer(
    name: str,
    kind: NormKind,
    group: str,
    leaves: Mapping[str, TensorRef],
    values: Mapping[str, Float64Array],
    facts: ModuleFacts | None,
    bias_before: int | None,
    weight_is_hidden: bool,
) -> NormLayer:
    mean, variance = (_flat(values.get(leaf)) for leaf in _STATISTICS)
    attributes = {} if facts is None else facts.attributes
    # The tensors' own size comes first: what a forged attribute says must not pair arrays of different lengths.
    sizes = (array.size for array in (mean, variance) if array is not None)
    features = next(sizes, None) or _integer(attributes.get("num_features"))
    if features is None and "weight" in values:
        features = values["weight"].size
    scale, shift = (_per_channel(values.get(leaf), features) for leaf in ("weight", "bias"))
    stored = leaves.get("running_var") or leaves.get("running_mean")
    return NormLayer(
        name=name,
        kind=kind,
        group=group,
        class_path=None if facts is None else facts.class_path or None,
        num_features=features,
        eps=_number(attributes.get("eps")),
        momentum=_momentum(attributes),
        affine=_affine(attributes, scale, weight_is_hidden),
        track_running_stats=_tracks(attributes, mean),
        training=_flag(attributes.get("training")),
        running_mean=mean,
        running_var=variance,
        num_batches_tracked=_count(values.get("num_batches_tracked"), leaves.get("num_batches_tracked")),
        weight=scale,
        bias=shift,
        dtype=None if stored is None else stored.dtype,
        follows_bias=None if bias_before is None else bias_before == features,
    )


def _called(layer: NormLayer, call: GraphCall | None) -> NormLayer:
    if call is None:
        return layer
    # A cumulative average (momentum=None) is called with 0 in eval mode, where the number has no effect.
    unknown = call.baked_training is False and layer.momentum == 0.0
    momentum = None if unknown else layer.momentum
    return replace(layer, baked_training=call.baked_training, execution_order=call.order, momentum=momentum)


def _flat(array: Float64Array | None) -> Float64Array | None:
    return None if array is None else array.reshape(-1)


def _per_channel(array: Float64Array | None, features: int | None) -> Float64Array | None:
    """Gamma or beta; a layer fused with a convolution holds other things under these names."""
    return None if array is None or array.size != features else array.reshape(-1)


def _number(value: object) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            try:
                return float(value)
            except OverflowError:
                return math.inf if value > 0 else -math.inf  # an integer beyond 1e308
        case Inert(maker=maker, args=(Inert(args=("f8", *_)), bytes(raw))) if maker.name == "scalar" and len(raw) == 8:
            return float(struct.unpack("<d", raw)[0])  # numpy.float64, of numpy's own little-endian writers
    return None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _affine(attributes: Mapping[object, object], scale: Float64Array | None, weight_is_hidden: bool) -> bool | None:
    if "affine" in attributes:
        return _flag(attributes["affine"])
    return True if scale is not None else None if weight_is_hidden else False


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _momentum(attributes: Mapping[object, object]) -> Momentum | None:
    if "momentum" not in attributes:
        return None
    # torch.nn.BatchNorm2d: momentum=None keeps a cumulative moving average.
    return Averaging.CUMULATIVE if attributes["momentum"] is None else _number(attributes["momentum"])


def _tracks(attributes: Mapping[object, object], mean: Float64Array | None) -> bool | None:
    told = _flag(attributes.get("track_running_stats"))
    return told if told is not None else True if mean is not None else None


def _count(value: Float64Array | None, tensor: TensorRef | None) -> int | float | None:
    if value is None or value.size != 1 or tensor is None:
        return None
    number = float(value.reshape(-1)[0])
    return int(number) if "int" in tensor.dtype else number
