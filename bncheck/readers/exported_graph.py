"""The graph of an exported program: which normalisation operators it calls, with which tensors, in which mode.

Schema: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_export/serde/schema.py, ``Graph`` and ``Node``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.exported_json import entries, entry, items, text, variant
from bncheck.readers.exported_operators import OPERATORS, REPEAT, RESHAPES, SAME_NUMBERS, UNKNOWN_NORM, NormOperator
from bncheck.readers.strict_json import JsonObject

ROLES = ("running_mean", "running_var", "weight", "bias")


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph.

    Attributes:
        stored: the graph's input whose numbers it holds, or None where they are computed.
        made_by: what makes it, in words.
        repeated: whether the numbers of that input are repeated, as instance norm is decomposed.
        folded: channels before samples were made channels of a single one, 0 where these are unknown; None where that
            was not done.
    """

    stored: str | None
    made_by: str
    repeated: bool = False
    folded: int | None = None


@dataclass(frozen=True, slots=True)
class NormCall:
    """A call of a normalisation operator.

    Attributes:
        node: the graph's name for it, or the operator's; nested graphs may use a name again.
        operator: what is called.
        module: path and class of the innermost module that makes the call, where the graph says.
        function: the function of PyTorch that makes it, where the graph says.
        tensors: by role; None where it is called without.
        training: the constant it passes for the mode, or None where it passes no constant.
        momentum, eps: the numbers it passes, or None where these are computed.
        channels: of its input, or None where the graph does not say.
        folded: whether the input's samples were made channels of a single one.
    """

    node: str
    operator: NormOperator
    module: tuple[str, str] | None
    function: str
    tensors: Mapping[str, Value | None]
    training: bool | None
    momentum: float | None
    eps: float | None
    channels: int | None
    folded: bool


@dataclass(slots=True)
class ExportedGraph:
    """What a program says of its normalisation layers.

    Attributes:
        calls: calls of normalisation operators, in the graph's order; those of nested graphs where these are called.
        inputs: names of the graph's inputs → dotted names of the tensors they are.
        modules: dotted names of all modules, in the order they were registered; empty where the graph does not say.
        classes: dotted name → class, of modules that make any call at all.
        unknown: operators that normalise, by their names, and are not known here.
    """

    calls: list[NormCall] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)


def read_graph(program: JsonObject, limits: Limits) -> ExportedGraph:
    """Read the graph of an exported program.

    Raises:
        UnreadableFile: it is malformed, or exceeds a bound.
    """
    module = entries(program, "graph_module")
    walk = _Walk(limits)
    walk.found.inputs.update(_inputs(items(entries(module, "signature"), "input_specs")))
    walk.found.modules.update((_name(text(call, "fqn"), limits), None) for call in items(module, "module_call_graph"))
    walk.graph(entries(module, "graph"), None, 0)
    return walk.found


# InputSpec of the schema: tag → the entry that holds the tensor's name.
_NAMED_INPUTS = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


def _inputs(specs: list[object]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for spec in specs:
        tag, content = variant(spec, "an input")
        if tag in _NAMED_INPUTS:
            name = text(entries(content, "arg"), "name")
            if name in seen:
                raise UnreadableFile(f"the exported program is malformed: two inputs are called {name[:80]!r}")
            seen.add(name)
            yield name, text(content, _NAMED_INPUTS[tag])


class _Walk:
    def __init__(self, limits: Limits) -> None:
        self.found = ExportedGraph()
        self._limits = limits
        self._nodes = limits.exported_nodes
        self._stacks: dict[str, tuple[str, str] | None] = {}

    def graph(self, graph: JsonObject, given: list[Value] | None, depth: int) -> None:
        """Follow one graph, nested ones where they are called.

        Args:
            graph: the graph.
            given: what a nested graph is called with; None for the outermost.
            depth: graphs around it.
        """
        if depth > self._limits.nesting:
            raise UnreadableFile("its graphs are nested deeper than any program's")
        names = [_tensor_name(argument) for argument in items(graph, "inputs")]
        if given is None:
            values = {name: Value(name, "an input of the model") for name in names if name is not None}
        else:
            pairs = zip(names, given, strict=True) if len(names) == len(given) else ()
            values = {name: value for name, value in pairs if name is not None}
        sizes = entries(graph, "tensor_values")
        for node in items(graph, "nodes"):
            self._nodes -= 1
            if self._nodes < 0:
                raise UnreadableFile(f"its graph has more than {self._limits.exported_nodes} nodes")
            self._node(node, values, sizes, depth)

    def _node(self, node: object, values: dict[str, Value], sizes: JsonObject, depth: int) -> None:
        target = _name(text(node, "target"), self._limits)
        operator = target.rpartition(".")[0]
        metadata = entries(node, "metadata")
        module = self._module(metadata)
        arguments = [(text(argument, "name"), entry(argument, "arg")) for argument in items(node, "inputs")]
        outputs = list(_tensor_names(items(node, "outputs")))
        results = [Value(None, target[:80])] * len(outputs)
        if operator in OPERATORS:
            call = self._call(node, operator, arguments, values, sizes, module)
            self.found.calls.append(call)
            first = call.operator.moments
            if first is not None and len(results) >= first + 2:
                for place, role in enumerate(ROLES[:2], first):
                    results[place] = call.tensors[role] or results[place]
        elif operator in SAME_NUMBERS and len(results) == 1 and arguments:
            results[0] = self._same(operator, arguments, values, sizes) or results[0]
        elif UNKNOWN_NORM.match(target.removeprefix("torch.ops.")):
            self.found.unknown[target[:200]] = None
        self._nested(target, arguments, values, depth)
        values.update(zip(outputs, results, strict=True))

    def _call(
        self,
        node: object,
        target: str,
        listed: list[tuple[str, object]],
        values: Mapping[str, Value],
        sizes: JsonObject,
        module: tuple[str, str] | None,
    ) -> NormCall:
        operator, kind = OPERATORS[target], target.rpartition(".")[2]
        arguments = dict(listed)
        if len(arguments) != len(listed):
            raise UnreadableFile("the exported program is malformed: a call names an argument twice")
        name = node.get("name") if isinstance(node, dict) else None
        source = _tensor_name(entry(arguments, "input"))
        value = values.get(source or "")
        folded = None if value is None else value.folded
        function = entries(node, "metadata").get("torch_fn", "")
        return NormCall(
            # torch 2.10 and before write no names of nodes.
            node=_name(name, self._limits) if isinstance(name, str) and name else kind,
            operator=operator,
            module=module,
            function=function.rpartition(";")[2] if isinstance(function, str) else "",
            tensors={role: _tensor(arguments.get(role), role, values) for role in ROLES},
            training=operator.mode if isinstance(operator.mode, bool) else _flag(entry(arguments, operator.mode)),
            momentum=_number(entry(arguments, operator.momentum)),
            eps=_number(entry(arguments, operator.eps)),
            channels=(folded or None) if folded is not None else _channels(sizes, source),
            folded=folded is not None,
        )

    def _same(
        self, operator: str, arguments: list[tuple[str, object]], values: Mapping[str, Value], sizes: JsonObject
    ) -> Value | None:
        source = _tensor_name(arguments[0][1])
        value = values.get(source or "")
        if value is None:
            return None
        if operator == REPEAT:
            return replace(value, repeated=True)
        if operator in RESHAPES and len(arguments) > 1:
            return replace(value, folded=(_channels(sizes, source) or 0) if _one_sample(arguments[1][1]) else None)
        return value

    def _nested(
        self, target: str, arguments: list[tuple[str, object]], values: Mapping[str, Value], depth: int
    ) -> None:
        """Follow graphs that an operator is given: ``cond``, ``wrap_with_set_grad_enabled`` and their like.

        Whatever comes behind the last of them is what they are called with, one after the other.
        """
        graphs: list[JsonObject] = []
        given: list[Value] = []
        for _, argument in arguments:
            tag, content = variant(argument, "an argument")
            if tag == "as_graph":
                graphs.append(entries(content, "graph"))
                given = []
            elif tag != "as_string":
                names = list(_tensor_names([argument])) or [""]
                given.extend(values.get(name, Value(None, f"an argument of {target[:80]}")) for name in names)
        for graph in graphs:
            self.graph(graph, given, depth + 1)

    def _module(self, metadata: JsonObject) -> tuple[str, str] | None:
        """The innermost module of a node; the classes of all around it are kept."""
        stack = metadata.get("nn_module_stack")
        if not isinstance(stack, str) or not stack:
            return None
        if stack not in self._stacks:
            modules = [_stacked(part, self._limits) for part in stack.split(";")]
            self.found.classes.update(modules)
            self._stacks[stack] = modules[-1]
        return self._stacks[stack]


def _stacked(part: str, limits: Limits) -> tuple[str, str]:
    """Path and class of ``key,path,class``, of which the path may hold commas, or be an expression.

    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_export/serde/serialize.py (export_nn_module_stack)
    """
    path, _, kind = part.partition(",")[2].rpartition(",")
    return module_path(_name(path, limits)), _name(kind, limits)


def module_path(path: str) -> str:
    """A module's dotted name: ``getattr(L['self'].block, '0')``, as torch 2.5 writes in strict mode → ``block.0``."""
    if "[" not in path:
        return path
    plain = re.sub(r"\bgetattr\(|\)|\._modules", "", path)
    plain = re.sub(r", '(\w+)'|\['(\w+)'\]", r".\1\2", plain)
    return plain.removeprefix("L.").partition(".")[2]


def _name(name: str, limits: Limits) -> str:
    if len(name) > limits.name_length:
        raise UnreadableFile("the exported program has longer names than any model")
    return name


def _tensor_name(argument: object) -> str | None:
    """The name of a tensor argument; None of anything else."""
    tag, content = variant(argument, "an argument")
    if tag == "as_optional_tensor":
        return _tensor_name(content)
    return text(content, "name") if tag == "as_tensor" else None


def _tensor_names(arguments: list[object]) -> Iterator[str]:
    for argument in arguments:
        tag, content = variant(argument, "an argument")
        if tag == "as_tensors" and isinstance(content, list):
            yield from (text(tensor, "name") for tensor in content)
        elif (name := _tensor_name(argument)) is not None:
            yield name


def _tensor(argument: object, role: str, values: Mapping[str, Value]) -> Value | None:
    """What a call is given for a role; overloads without moments have no such argument."""
    if argument is None:
        return None
    name = _tensor_name(argument)
    if name is None:
        if variant(argument, role)[0] in ("as_none", "as_optional_tensor"):
            return None
        raise UnreadableFile(f"the exported program is malformed: {role} is no tensor")
    if name not in values:
        raise UnreadableFile(f"the exported program is malformed: nothing defines {name[:80]!r}")
    return values[name]


def _flag(argument: object) -> bool | None:
    """A constant, or None where the graph computes it."""
    match variant(argument, "a mode"):
        case "as_bool", bool(constant):
            return constant
        case "as_sym_bool", _:
            return None
    raise UnreadableFile("the exported program is malformed: the mode is neither true nor false")


def _number(argument: object) -> float | None:
    tag, content = variant(argument, "a number")
    match tag, content:
        case "as_float", "Infinity" | "-Infinity" | "NaN":
            return float(content)
        case (("as_float" | "as_int"), bool()):
            pass
        case (("as_float" | "as_int"), int() | float()):
            try:
                return float(content)
            except OverflowError:
                pass  # a whole number beyond 1e308, which torch cannot have passed
        case (("as_sym_float" | "as_sym_int"), _):
            return None
    raise UnreadableFile("the exported program is malformed: momentum or eps is no number")


def _one_sample(argument: object) -> bool:
    """Whether a shape, which may hold symbols, has a first dimension of 1."""
    match variant(argument, "a shape"):
        case "as_ints", [1, _, *_]:
            return True
        case "as_sym_ints", [{"as_int": 1}, _, *_]:
            return True
    return False


def _channels(sizes: JsonObject, name: str | None) -> int | None:
    """The second dimension of a tensor, where the graph gives it as a number."""
    match sizes.get(name or ""):
        case {"sizes": [_, {"as_int": int(channels)}, *_]} if not isinstance(channels, bool) and channels > 0:
            return channels
    return None
