"""The model to run: built by the user's factory and filled from the file, or a graph that needs no factory."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor, nn

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging
from bncheck.core.errors import BadModel
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


def load_model(checkpoint: Checkpoint, options: ModelOptions) -> nn.Module:
    """The model of a file, in eval mode, on the device.

    Raises:
        BadModel: the file needs a factory or trust that was not given, or the two do not fit.
        BadSpec, UserCodeFailed: the factory.
    """
    match checkpoint.packaging:
        case Packaging.TORCHSCRIPT:
            model = _torchscript(checkpoint.path)
        case Packaging.EXPORTED_PROGRAM:
            model = _exported(checkpoint.path)
        case Packaging.STATE_DICT | Packaging.CHECKPOINT | Packaging.MODULE:
            model = _built(checkpoint, options) if options.spec is not None else _unpickled(checkpoint, options)
        case _:
            assert_never(checkpoint.packaging)
    if checkpoint.packaging is not Packaging.EXPORTED_PROGRAM:
        model.eval()
    return model.to(device=options.device, dtype=options.dtype)


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


def _unpickled(checkpoint: Checkpoint, options: ModelOptions) -> nn.Module:
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
    return loaded


def _built(checkpoint: Checkpoint, options: ModelOptions) -> nn.Module:
    assert options.spec is not None
    build = load_callable(options.spec)
    model = build if isinstance(build, nn.Module) else call(f"{options.spec}()", build, **options.arguments)
    if not isinstance(model, nn.Module):
        raise BadModel(f"{options.spec} returned a {type(model).__name__}; a torch.nn.Module is expected")
    if inspect.isclass(model):
        raise BadModel(f"{options.spec} returned a class; call it")
    fill(model, weights(checkpoint, options), options.spec)
    return model


def weights(checkpoint: Checkpoint, options: ModelOptions) -> dict[str, Tensor]:
    """The tensors of one network of the file, by the names its module gives them; nothing of the file is run.

    Raises:
        BadModel: torch cannot load it without running something.
    """
    if checkpoint.format is FileFormat.SAFETENSORS:
        from safetensors.torch import load_file  # noqa: PLC0415 - an optional package, wanted for such files alone

        return load_file(checkpoint.path)
    if checkpoint.packaging is Packaging.MODULE:
        if not options.trust_pickle:
            raise BadModel(
                "the file is a pickled module, whose weights torch loads only by running the file's code; say "
                "--trust-pickle if you trust whoever wrote it"
            )
        return dict(_unpickled(checkpoint, options).state_dict())
    try:
        loaded = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadModel(f"torch.load(weights_only=True) refuses the file: {_first_line(error)}") from None
    return _state_dict(loaded, checkpoint, options.group)


def _state_dict(loaded: object, checkpoint: Checkpoint, group: str) -> dict[str, Tensor]:
    """The dict of tensors that the static reader called by this group: the one holding its layers' tensors."""
    wanted = {layer.name for layer in checkpoint.layers if layer.group == group}
    found = [
        (sum(_layer_of(name) in wanted or _layer_of(_bare(name)) in wanted for name in tensors), index, tensors)
        for index, tensors in enumerate(_dicts(loaded, 0))
    ]
    if not found:
        raise BadModel("the file holds no dict of named tensors")
    _, _, best = max(found, key=lambda entry: (entry[0], len(entry[2]), -entry[1]))
    return best


_DEEPEST = 8


def _dicts(value: object, depth: int) -> list[dict[str, Tensor]]:
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return []
    tensors = {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)}
    inner = [found for item in value.values() for found in _dicts(item, depth + 1)]
    return ([tensors] if tensors else []) + inner


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


# What wrappers put before or into names.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")


def _bare(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def fill(model: nn.Module, tensors: Mapping[str, Tensor], spec: str) -> None:
    """Load weights into a model, strictly, once a wrapper's prefix is off.

    Raises:
        BadModel: keys are missing or left over, or shapes differ.
    """
    wanted = model.state_dict()
    renamed = _without_wrapper(tensors, wanted.keys())
    missing = [name for name in wanted if name not in renamed]
    spare = [name for name in renamed if name not in wanted]
    differing = [
        f"{name}: {tuple(renamed[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in wanted.items()
        if name in renamed and isinstance(tensor, Tensor) and renamed[name].shape != tensor.shape
    ]
    for what, names in (
        ("the model wants what the file lacks", missing),
        ("the file holds what the model lacks", spare),
        ("shapes differ", differing),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BadModel(f"{spec} does not fit the file: {what}: {', '.join(names[:3])}{more}")
    model.load_state_dict(renamed, strict=True)


def _without_wrapper(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    names = set(wanted)
    best = dict(tensors)
    for depth_first in _prefixes(tensors):
        renamed = {name.removeprefix(depth_first): tensor for name, tensor in tensors.items()}
        if len(renamed) == len(tensors) and len(names & renamed.keys()) > len(names & best.keys()):
            best = renamed
    return best


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Leading parts that all names share."""
    first = next(iter(tensors), "")
    parts = first.split(".")[:-1]
    candidates = [".".join(parts[:count]) + "." for count in range(1, len(parts) + 1)]
    return [prefix for prefix in candidates if all(name.startswith(prefix) for name in tensors)]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
