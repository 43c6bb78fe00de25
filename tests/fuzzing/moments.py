"""The normalisation layers of an object that torch loaded, and of a checkpoint that bncheck read, in the same terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layers import NormLayer

Numbers = bytes | None


@dataclass(frozen=True, slots=True)
class Moments:
    """A layer by what must not differ; a field is None where it is absent or no number format both readers know."""

    mean: Numbers
    variance: Numbers
    batches: Numbers

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return self.mean is not None or self.variance is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """What only a module says of its layer."""

    moments: Moments
    eps: float | None
    momentum: float | None
    training: bool | None


@dataclass(frozen=True, slots=True)
class Use:
    """How a graph calls batch norm with these moments: the constant for the mode, or None where it is computed."""

    mean: Numbers
    training: bool | None


Fact = Moments | Settings | Use


@dataclass(frozen=True, slots=True)
class Facts:
    """What an object says.

    Attributes:
        certain: what every reader must find.
        possible: what else a reader may find without being wrong.
        graph: whether these are of a graph, where a layer is what it is called with: its counter and its class's
            settings are none of its concern.
    """

    certain: frozenset[Fact]
    possible: frozenset[Fact] = frozenset()
    graph: bool = False

    @property
    def used(self) -> frozenset[Numbers]:
        """The running means of calls in a graph, those inside branches left out."""
        return frozenset(fact.mean for fact in self.certain if isinstance(fact, Use))


def _as_numbers(array: np.ndarray) -> bytes:
    """The values bit for bit, as float64; which of the NaNs it is does not matter."""
    flat = np.asarray(array, dtype=np.float64).reshape(-1)
    return np.where(np.isnan(flat), np.nan, flat).tobytes()


def _numbers(value: object) -> Numbers:
    if not isinstance(value, torch.Tensor) or isinstance(value, nn.parameter.UninitializedTensorMixin):
        return None
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        return None
    return _as_numbers(value.detach().to(torch.float64).resolve_neg().resolve_conj().numpy())


def _moments(tensors: Mapping[object, object], prefix: str = "") -> Moments:
    mean, variance, batches = (
        _numbers(tensors.get(f"{prefix}{leaf}")) for leaf in ("running_mean", "running_var", "num_batches_tracked")
    )
    return Moments(mean, variance, batches if batches is not None and len(batches) == 8 else None)


# --- objects -----------------------------------------------------------------------------------------------


def loaded_facts(root: object) -> Facts:
    """What an object that torch or safetensors loaded says."""
    match root:
        case torch.jit.ScriptModule():
            return _graph_facts(list(_calls_of_script(root)), root.state_dict())
        case torch.export.ExportedProgram():
            return _graph_facts(list(_calls_of_program(root)), root.state_dict)
    return Facts(frozenset(_facts_below(root)))


def _facts_below(root: object) -> Iterator[Fact]:
    """Every layer with moments in an object, however deep."""
    waiting, seen = [root], {id(root)}
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            yield from _of_module(value)
        elif isinstance(value, Mapping):
            names = {key.rpartition(".")[0] for key in value if _is_moment(key)}
            dotted = {key for key in value if isinstance(key, str) and "." in key}
            for name in names:
                yield _moments(value, f"{name}." if any(key.startswith(f"{name}.") for key in dotted) else "")
        for child in _children(value):
            if id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def _is_moment(key: object) -> bool:
    return isinstance(key, str) and key.rpartition(".")[2] in ("running_mean", "running_var")


def _of_module(module: nn.Module) -> Iterator[Fact]:
    attributes = vars(module)
    buffers = {**(attributes.get("_parameters") or {}), **(attributes.get("_buffers") or {})}
    held = buffers.keys() & {"running_mean", "running_var"}
    if len(held) == 2 or (held and isinstance(module, nn.modules.batchnorm._NormBase)):
        moments = _moments(buffers)
        yield moments
        if not attributes.keys() >= {"_parameters", "_modules"}:
            return  # no module torch could run or save again; bncheck takes its buffers for a state dict
        eps, momentum, training = (attributes.get(name) for name in ("eps", "momentum", "training"))
        yield Settings(moments, _float(eps), _float(momentum), training if isinstance(training, bool) else None)


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None


def _children(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    if not isinstance(value, (torch.Tensor, type)) and isinstance(getattr(value, "__dict__", None), dict):
        yield from vars(value).values()


# --- graphs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of batch norm.

    Attributes:
        moments: those it is given.
        training: the mode where it is a constant.
        branched: whether it stands in a branch, or is otherwise unclear.
    """

    moments: Moments
    training: bool | None
    branched: bool


def _graph_facts(calls: list[_Call], state: Mapping[str, object]) -> Facts:
    called = {call.moments for call in calls if call.moments.known}
    stored = {replace(fact, batches=None) for fact in _facts_below(dict(state)) if isinstance(fact, Moments)}
    passed = {numbers for moments in called for numbers in (moments.mean, moments.variance)}
    uncalled = {moments for moments in stored if moments.mean not in passed and moments.variance not in passed}
    return Facts(frozenset(called | uncalled | _uses(calls)), frozenset(stored), graph=True)


def _uses(calls: list[_Call]) -> set[Fact]:
    """One for each layer; torch, and bncheck after it, ask for the worst of a layer's calls."""
    modes: dict[Numbers, set[bool | None]] = {}
    for call in calls:
        modes.setdefault(call.moments.mean, set()).add(call.training)
    unclear = {call.moments.mean for call in calls if call.branched} | {None}
    return {
        Use(mean, True if True in seen else None if None in seen else False)
        for mean, seen in modes.items()
        if mean not in unclear
    }


def _calls_of_script(module: torch.jit.ScriptModule) -> Iterator[_Call]:
    graph = module.inlined_graph  # kept: its nodes die with it
    straight = {str(node) for node in graph.nodes()}
    for node in graph.findAllNodes("aten::batch_norm"):
        _, _, _, mean, variance, training, *_ = (_constant_or_attribute(value, module) for value in node.inputs())
        moments = Moments(_numbers(mean), _numbers(variance), None)
        yield _Call(moments, training if isinstance(training, bool) else None, str(node) not in straight)


def _constant_or_attribute(value: torch._C.Value, module: torch.jit.ScriptModule) -> object:
    """What a graph's value is where it is a constant or an attribute, tensor or module; else None."""
    node = value.node()
    if node.kind() == "prim::Constant":
        return value.toIValue()
    if node.kind() == "prim::Param":
        return module
    if node.kind() == "prim::GetAttr" and node.s("name") != "training":
        owner = _constant_or_attribute(next(node.inputs()), module)
        return getattr(owner, node.s("name"), None)
    return None


def _calls_of_program(program: torch.export.ExportedProgram) -> Iterator[_Call]:
    signature = program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}

    def tensor(node: object) -> Numbers:
        return _numbers(program.state_dict.get(names.get(getattr(node, "name", ""), "")))

    for node in program.graph.nodes:
        if node.op != "call_function" or str(node.target) != "aten.batch_norm.default" or node.kwargs:
            continue  # an argument moved among the keywords shifts those behind it: such a call cannot be run
        _, _, _, mean, variance, training, *_ = node.args
        moments = Moments(tensor(mean), tensor(variance), None)
        yield _Call(moments, training if isinstance(training, bool) else None, branched=False)


# --- what bncheck read -------------------------------------------------------------------------------------


def read_facts(checkpoint: Checkpoint, *, graph: bool) -> frozenset[Fact]:
    """What a checkpoint says."""
    return frozenset(_facts_of_graph(checkpoint) if graph else _facts_of_objects(checkpoint))


def _facts_of_graph(checkpoint: Checkpoint) -> Iterator[Fact]:
    for layer in checkpoint.layers:
        moments = replace(_of_layer(layer), batches=None)
        yield moments
        if layer.execution_order is not None:
            yield Use(moments.mean, layer.baked_training)


def _facts_of_objects(checkpoint: Checkpoint) -> Iterator[Fact]:
    for layer in checkpoint.layers:
        moments = _of_layer(layer)
        yield moments
        if layer.class_path is not None:
            momentum = layer.momentum if isinstance(layer.momentum, (int, float)) else None
            yield Settings(moments, _float(layer.eps), _float(momentum), layer.training)


def _of_layer(layer: NormLayer) -> Moments:
    count = layer.num_batches_tracked
    return Moments(
        None if layer.running_mean is None else _as_numbers(layer.running_mean),
        None if layer.running_var is None else _as_numbers(layer.running_var),
        None if count is None else _as_numbers(np.array([float(count)])),
    )


def in_words(facts: frozenset[Fact]) -> str:
    """A few of their numbers, for people."""
    return "; ".join(sorted(_one_in_words(fact) for fact in facts))[:1500] or "nothing else"


def _one_in_words(fact: Fact) -> str:
    if isinstance(fact, Use):
        mean = "none" if fact.mean is None else str(np.frombuffer(fact.mean)[:4])
        return f"a call with mean {mean} and training={fact.training}"
    moments = fact if isinstance(fact, Moments) else fact.moments
    shown = ", ".join(
        "none" if numbers is None else str(np.frombuffer(numbers)[:4]).replace("\n", "")
        for numbers in (moments.mean, moments.variance, moments.batches)
    )
    more = "" if isinstance(fact, Moments) else f", eps {fact.eps}, momentum {fact.momentum}, training {fact.training}"
    return f"mean, variance, batches {shown}{more}"
