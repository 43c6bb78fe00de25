"""The model to run: built by the user's factory and filled from the file, or a graph that needs no factory."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging
from bncheck.core.errors import BadModel, BadUsage
from bncheck.runtime.hand_written import MEANS, VARIANCES
from bncheck.runtime.out_of_memory import telling_out_of_memory
from bncheck.runtime.user_code import call, load_callable

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How to come by the model.

    Attributes:
        spec: SPEC of a callable that builds it; None where the file needs none.
        arguments: keyword arguments for it.
        trust_pickle: whether a whole-module pickle may be loaded, which runs code of the file's choosing.
        group: which copy of the network in the file to run.
        device, dtype: where and in what precision.
    """

    spec: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    trust_pickle: bool = False
    group: str = "model"
    device: torch.device = _CPU
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be run.

    Attributes:
        model: in eval mode.
        layers: name of a layer in the model → its name in the file's copy of the network; None where both agree.
    """

    model: nn.Module
    layers: Mapping[str, str] | None = None

    def named_in_file(self, layer: str) -> str | None:
        """The file's name of one of the model's layers; None where it is of another copy of the network."""
        return layer if self.layers is None else self.layers.get(layer)


class StatisticsMismatch(BadModel):
    """Weights fit and running moments do not.

    Attributes:
        missing: layers for which the model keeps running moments and the file has none.
        spare: layers for which the file has running moments and the model keeps none.
    """

    def __init__(self, spec: str, missing: Sequence[str], spare: Sequence[str]) -> None:
        parts = [("the file lacks the running moments of", missing), ("the model keeps no running moments in", spare)]
        said = "; ".join(f"{what} {_listed(names)}" for what, names in parts if names)
        super().__init__(f"{spec} and the file do not fit: {said}")
        self.missing = tuple(missing)
        self.spare = tuple(spare)


def load_model(checkpoint: Checkpoint, options: ModelOptions) -> Loaded:
    """The model of a file, in eval mode, on the device.

    Raises:
        BadModel: the file needs a factory or trust that was not given, or the two do not fit.
        StatisticsMismatch: they fit but for running moments.
        BadSpec, UserCodeFailed: the factory.
        OutOfMemory: the device cannot hold it.
    """
    if "://" in checkpoint.path:
        raise BadModel("the file is not on this machine; download it to run it")
    match checkpoint.packaging:
        case Packaging.TORCHSCRIPT:
            loaded = Loaded(_torchscript(checkpoint.path))
        case Packaging.EXPORTED_PROGRAM:
            loaded = Loaded(_exported(checkpoint.path))
        case Packaging.STATE_DICT | Packaging.CHECKPOINT | Packaging.MODULE:
            loaded = _built(checkpoint, options) if options.spec is not None else _unpickled(checkpoint, options)
        case _:
            assert_never(checkpoint.packaging)
    if checkpoint.packaging is not Packaging.EXPORTED_PROGRAM:
        loaded.model.eval()
    with telling_out_of_memory(f"the model on {options.device}"):
        return replace(loaded, model=loaded.model.to(device=options.device, dtype=options.dtype))


def chosen_group(checkpoint: Checkpoint, asked: str) -> str:
    """The copy of the network to run: the one asked for, or instead of ``model`` the only one there is.

    A network that lies under keys of its own (a list, a name nobody knows) has a group that is called after them.

    Raises:
        BadUsage: the file has no such copy.
    """
    groups = list(dict.fromkeys(layer.group for layer in checkpoint.layers)) or list(checkpoint.networks)
    if asked in groups or (asked == "model" and not groups):
        return asked
    if asked == "model" and len(groups) == 1:
        return groups[0]
    raise BadUsage(f"the file has no copy of the network called {asked!r}; it has {', '.join(groups)} (--group)")


def in_memory(model: nn.Module, checkpoint: Checkpoint, group: str) -> Loaded:
    """A module of this process, as it is.

    Raises:
        BadModel: it has parameters that its first batch will make.
    """
    lazy = [name for name, tensor in _tensors(model).items() if is_lazy(tensor)]
    if lazy:
        raise BadModel(f"{_layer_of(lazy[0])} is lazy and has seen no batch; call the model on one first")
    return Loaded(model, _own_names(checkpoint, group))


def _own_names(checkpoint: Checkpoint, group: str) -> dict[str, str] | None:
    """For a module that is what was read: its own names → those without what wrappers put there."""
    network = checkpoint.networks.get(group)
    return None if network is None else {_layer_of(tensor.name): _layer_of(bare) for bare, tensor in network.items()}


def _torchscript(path: str) -> nn.Module:
    try:
        loaded: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise BadModel(f"torch.jit.load refuses the file: {_first_line(error)}") from None
    return loaded


def _exported(path: str) -> nn.Module:
    try:
        return torch.export.load(path).module()
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise BadModel(f"torch.export.load refuses the file: {_first_line(error)}") from None


def _unpickled(checkpoint: Checkpoint, options: ModelOptions) -> Loaded:
    if checkpoint.packaging is not Packaging.MODULE:
        raise BadModel("the file holds weights and no model; name what builds it: --model m.py:build")
    if not options.trust_pickle:
        raise BadModel(
            "the file is a pickled module: loading it runs code of the file's choosing; name what builds the model "
            "(--model m.py:build), or say --trust-pickle if you trust whoever wrote the file"
        )
    try:
        loaded = torch.load(checkpoint.path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise BadModel(f"the pickled module does not load: {_first_line(error)}") from error
    if not isinstance(loaded, nn.Module):
        raise BadModel(f"the file holds a {type(loaded).__name__}, no module")
    return Loaded(loaded, _own_names(checkpoint, options.group))


def _built(checkpoint: Checkpoint, options: ModelOptions) -> Loaded:
    assert options.spec is not None
    build = load_callable(options.spec)
    model = build if isinstance(build, nn.Module) else call(f"{options.spec}()", build, **options.arguments)
    if inspect.isclass(model):
        raise BadModel(f"{options.spec} returned a class; call it")
    if not isinstance(model, nn.Module):
        raise BadModel(f"{options.spec} returned a {type(model).__name__}; a torch.nn.Module is expected")
    return Loaded(model, fill(model, weights(checkpoint, options), options.spec))


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one network of a file.

    Attributes:
        tensors: by the names that the state dict they lie in has for them.
        bare: names there → names in the bare network, of the tensors that are part of it.
        whole: whether a model may be built of all of them; else of those that are part of the network alone.
    """

    tensors: Mapping[str, Tensor]
    bare: Mapping[str, str]
    whole: bool


def weights(checkpoint: Checkpoint, options: ModelOptions) -> Weights:
    """The tensors of one network of the file; nothing of the file is run.

    Raises:
        BadModel: torch cannot load it without running something.
    """
    by_place = {tensor.name: bare for bare, tensor in checkpoint.networks.get(options.group, {}).items()}
    tables = list(_tables(_loaded(checkpoint, options), ()))
    if not tables:
        raise BadModel("the file holds no dict of named tensors")
    path, table = max(tables, key=lambda entry: sum(_place(entry[0], name) in by_place for name in entry[1]))
    bare = {name: by_place[place] for name in table if (place := _place(path, name)) in by_place}
    return Weights(table, bare, whole=options.group == "model" or len(bare) == len(table))


def _loaded(checkpoint: Checkpoint, options: ModelOptions) -> object:
    """What torch, or safetensors, makes of the file or of its shards."""
    if checkpoint.packaging is Packaging.MODULE:
        if not options.trust_pickle:
            raise BadModel(
                "the file is a pickled module, whose weights torch loads only by running the file's code; say "
                "--trust-pickle if you trust whoever wrote it"
            )
        return _unpickled(checkpoint, options).model.state_dict()
    folder = os.path.dirname(checkpoint.path)
    files = [os.path.join(folder, shard) for shard in checkpoint.shards] or [checkpoint.path]
    parts = [_load(file, checkpoint.format) for file in files]
    if len(parts) == 1:
        return parts[0]
    return {name: tensor for part in parts if isinstance(part, Mapping) for name, tensor in part.items()}


def _load(path: str, file_format: FileFormat) -> object:
    if file_format is FileFormat.SAFETENSORS:
        from safetensors.torch import load_file  # noqa: PLC0415 - an optional package, wanted for such files alone

        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadModel(f"torch.load(weights_only=True) refuses the file: {_first_line(error)}") from None


_DEEPEST = 8


def _tables(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict of named tensors, with the keys that lead to it as the static reader spells them."""
    if len(path) > _DEEPEST:
        return
    if isinstance(value, Mapping):
        tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
        if tensors:
            yield path, tensors
    inner = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in inner:
        if isinstance(item, (Mapping, list, tuple)):
            yield from _tables(item, (*path, str(key)))


def _place(path: tuple[str, ...], name: str) -> str:
    return ".".join((*path, name))


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf_of(name: str) -> str:
    return name.rpartition(".")[2]


_MOMENTS = frozenset((*MEANS, *VARIANCES))
# Of torch's own batch norms; it has no part in a prediction, and files from before 0.4.1 or of converters lack it.
_COUNTER = "num_batches_tracked"


def fill(model: nn.Module, given: Weights, spec: str) -> dict[str, str]:
    """Load weights into a model, strictly but for update counters.

    Returns:
        Name of a layer in the model → its name in the bare network.

    Raises:
        BadModel: keys are missing or left over, or shapes differ.
        StatisticsMismatch: running moments are missing or left over, and nothing else.
    """
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    source = _matched(given, wanted)
    layers = {_layer_of(name): _layer_of(given.bare[key]) for name, key in source.items() if key in given.bare}
    missing = [name for name in wanted if name not in source and _leaf_of(name) != _COUNTER]
    spare = [name for name in source if name not in wanted and _leaf_of(name) != _COUNTER]
    differing = [
        f"{name}: {tuple(given.tensors[key].shape)} in the file, {tuple(wanted[name].shape)} in the model"
        for name, key in source.items()
        if name in wanted and given.tensors[key].shape != wanted[name].shape
    ]
    unequal = [*missing, *spare]
    if unequal and not differing and all(_leaf_of(name) in _MOMENTS for name in unequal):
        lacking, idle = (
            list(dict.fromkeys(layers.get(_layer_of(name), _layer_of(name)) for name in part))
            for part in (missing, spare)
        )
        raise StatisticsMismatch(spec, lacking, idle)
    for what, names in (
        ("the model wants what the file lacks", missing),
        ("the file holds what the model lacks", spare),
        ("shapes differ", differing),
    ):
        if names:
            raise BadModel(f"{spec} does not fit the file: {what}: {_listed(names)}")
    tensors = {name: given.tensors[key] for name, key in source.items() if name in wanted}
    counters = {name: value for name, value in wanted.items() if name not in tensors}
    try:
        model.load_state_dict({**tensors, **counters}, strict=True)
    except RuntimeError as error:
        raise BadModel(f"{spec} does not take the file's weights: {' '.join(str(error).split())[:300]}") from None
    return layers


def _matched(given: Weights, wanted: Iterable[str]) -> dict[str, str]:
    """Name in the model → name in the file, in the way of naming that agrees best.

    Tried are: the file's own names, those of the bare network, and either without or with the leading parts that all
    names of the file, or of the model, share.
    """
    names = set(wanted)
    inside = _shared_parts(names)
    ways: list[dict[str, str]] = []
    if given.whole:
        ways.append({key: key for key in given.tensors})
        ways += [{key.removeprefix(prefix): key for key in given.tensors} for prefix in _shared_parts(given.tensors)]
    ways.append({bare: key for key, bare in given.bare.items()})
    ways += [{f"{prefix}{name}": key for name, key in way.items()} for prefix in inside for way in list(ways)]
    return max(ways, key=lambda way: (len(names & way.keys()), -len(way)))


def _shared_parts(names: Iterable[str]) -> list[str]:
    """Leading parts that all names share, with their dots."""
    first = next(iter(names), "")
    parts = first.split(".")[:-1]
    prefixes = [".".join(parts[:count]) + "." for count in range(1, len(parts) + 1)]
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(list(names)[:3])}{more}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
