"""Follows TorchScript code from ``forward`` to every call of a normalisation operator, without running it.

The code is followed three times: with the mode flags of the file, with those that eval() sets and with those that
train() sets. So every condition on a flag is a constant, however the flag came there. Where a condition is not known
both branches are followed; what a loop assigns is not known. Whatever may lead to an operator unseen is noted as lost.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.torchscript_code import (
    Assign,
    Attribute,
    Call,
    ClassCode,
    Compound,
    Expression,
    Function,
    If,
    Index,
    Literal,
    Loop,
    Name,
    Parameter,
    Return,
    Several,
    Statement,
    With,
    dotted,
)
from bncheck.readers.torchscript_operators import is_own, may_normalise, norm_operator, role_of
from bncheck.readers.torchscript_values import (
    NONE,
    UNKNOWN,
    BoundMethod,
    CodeName,
    Constant,
    ForeignObject,
    LocalFunction,
    ModeFlag,
    Modules,
    PlainObject,
    TensorAt,
    TupleOf,
    Uninitialised,
    Unknown,
    Value,
    folded,
    forget,
    join,
    runs_code,
    truth,
    tuple_of,
    weight,
)


@dataclass(frozen=True, slots=True)
class ScriptModule:
    """A module of the archive as its pickle describes it.

    Attributes:
        class_path: qualified name of its class, as in the code.
        attributes: name → value, of those the class declares; submodules and tensors as such.
    """

    class_path: str
    attributes: Mapping[str, Value]


class Mode(enum.Enum):
    """What the modules' ``training`` flags are while the code is followed."""

    SAVED = "as in the file"
    EVAL = "after eval()"
    TRAINING = "after train()"


@dataclass(frozen=True, slots=True)
class NormCall:
    """One call of a normalisation operator, with what is known of its arguments.

    Attributes:
        site: the place in the code.
        module: path of the module whose method makes the call.
        instance: whether it is an instance norm's operator.
        training: the mode it works in; None where that is not known.
        certain: whether the code comes here whenever it runs.
    """

    site: Call
    module: str
    instance: bool
    weight: Value
    bias: Value
    running_mean: Value
    running_var: Value
    momentum: Value
    eps: Value
    training: bool | None
    certain: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """What following the code came to.

    Attributes:
        calls: for each mode, in the order in which they are made.
        lost: what could not be followed, with the reason; layers behind it may look uncalled.
    """

    calls: Mapping[Mode, tuple[NormCall, ...]]
    lost: tuple[str, ...]


class Code(Protocol):
    """The archive's classes and functions by their qualified names."""

    def class_at(self, path: str) -> ClassCode | None:
        """A class."""

    def function_at(self, path: str) -> Function | None:
        """A function that is no method."""

    def classes(self) -> Iterable[tuple[str, ClassCode]]:
        """Every class of the archive."""


def follow(modules: Mapping[str, ScriptModule], constants: tuple[Value, ...], code: Code, limits: Limits) -> Followed:
    """Follow the root module's ``forward`` and its hooks, then its other methods.

    Args:
        modules: by path; the root is called "".
        constants: the table of constants.
        code: what the archive defines.
        limits: bounds.

    Raises:
        UnreadableFile: the code is longer or deeper than any model's.
    """
    follower = _Follower(modules, constants, code, limits)
    try:
        return Followed(follower.in_all_modes(), follower.lost())
    except RecursionError:
        raise UnreadableFile("its code calls functions too deeply inside one another") from None


# Functions of the language that hand one argument through: name → its position.
_PASSES_ON: Mapping[str, int] = {
    "annotate": 1,
    "unchecked_cast": 1,
    "torch._unwrap_optional": 0,
    "ops.prim.unchecked_unwrap_optional": 0,
}
# Operators whose result stands for the same moments: copies, other number formats.
_SAME_TENSOR = frozenset(
    f"torch.{name}" for name in ("detach", "contiguous", "to", "clone", "type_as", "alias", "float", "half", "double")
)
# Names of the language that are no operators. Of a module they tell a property, and call none of its methods but the
# special ones, which are looked at by themselves.
_BUILTINS = frozenset(
    (
        *("print", "len", "range", "rangelist", "list", "dict", "tuple", "str", "float", "int", "bool", "complex"),
        *("isinstance", "hasattr", "min", "max", "abs", "all", "any", "sum", "divmod", "pow", "round", "ord", "chr"),
        *("hex", "oct", "bin", "hash", "sorted", "enumerate", "zip", "reversed", "id", "index", "Exception"),
    )
)
_ASK_ABOUT_MODULES = frozenset(
    ("len", "isinstance", "hasattr", "torch.len", "torch.__is__", "torch.__isnot__", "torch.__contains__", "print")
)
# Methods that run without being named: operators, loops, conditions. The rest are called by their names.
_CALLED_BY_NAME = frozenset({"__init__", "__new__", "__getstate__", "__setstate__"})
_CONSTANT_FLOATS: Mapping[str, float] = {"inf": float("inf"), "nan": float("nan")}
_LOST_SHOWN = 50


@dataclass(slots=True)
class _Frame:
    """One running function.

    Attributes:
        variables: by name.
        returned: every value it may return.
    """

    variables: dict[str, Value]
    returned: list[Value] = field(default_factory=list)


class _Follower:
    def __init__(
        self, modules: Mapping[str, ScriptModule], constants: tuple[Value, ...], code: Code, limits: Limits
    ) -> None:
        self._modules = modules
        self._constants = constants
        self._code = code
        self._steps_left = limits.code_steps
        self._depth_left = limits.code_call_depth
        self._lost: dict[str, None] = {}
        self._assigned: set[tuple[str, str]] = set()
        self._in_loop: dict[Loop, frozenset[str]] = {}
        self._normalises: dict[Function, bool] = {}
        self._methods_by_name: dict[str, list[tuple[str, ClassCode]]] = {}
        # Of the mode that is being followed:
        self._mode = Mode.SAVED
        self._flags: set[bool | None] = set()
        self._entered: set[str] = set()
        self._calls: list[NormCall] = []
        self._module = ""
        self._uncertain = 0

    def lost(self) -> tuple[str, ...]:
        """What could not be followed."""
        return tuple(self._lost)[:_LOST_SHOWN]

    def _lose(self, what: str, reason: str) -> None:
        if len(self._lost) < _LOST_SHOWN:
            # The path of a module may hold any character.
            self._lost[f"{repr(what)[1:-1][:200] or 'forward'}: {reason}"] = None

    def _step(self, steps: int = 1) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise UnreadableFile("its code takes more steps to follow than any model's")

    # --- modes -----------------------------------------------------------------------------------

    def in_all_modes(self) -> Mapping[Mode, tuple[NormCall, ...]]:
        root = self._code.class_at(self._modules[""].class_path)
        assert root is not None
        self._look_for_special_methods()
        methods = [name for name in root.methods if name not in _CALLED_BY_NAME]
        entries = [name for name in methods if name == "forward" or name in root.hooks]
        entries.sort(key=lambda name: name != "forward")
        calls = self._until_settled(entries, [])
        # Other methods are entered from outside only where nothing else calls them.
        others = [name for name in methods if name not in self._entered]
        return self._until_settled(entries, others) if others else calls

    def _until_settled(self, entries: list[str], others: list[str]) -> Mapping[Mode, tuple[NormCall, ...]]:
        """Follow in every mode, again whenever the code turns out to assign an attribute that was taken for fixed."""
        while True:
            before = len(self._assigned)
            calls: dict[Mode, tuple[NormCall, ...]] = {Mode.SAVED: self._in_mode(Mode.SAVED, entries, others)}
            # Where no flag was asked for, or all had that value, the other mode is the same.
            flags = frozenset(self._flags)
            for mode, flag in ((Mode.EVAL, False), (Mode.TRAINING, True)):
                calls[mode] = calls[Mode.SAVED] if flags <= {flag} else self._in_mode(mode, entries, others)
            if len(self._assigned) == before:
                return calls

    def _in_mode(self, mode: Mode, entries: list[str], others: list[str]) -> tuple[NormCall, ...]:
        self._mode, self._flags, self._calls = mode, set(), []
        for name in entries:
            self._enter(name)
        self._uncertain += 1
        for name in others:
            self._enter(name)
        self._uncertain -= 1
        return tuple(self._calls)

    def _enter(self, method: str) -> None:
        """Call a method of the root as a program would, with arguments nobody knows."""
        code = self._code.class_at(self._modules[""].class_path)
        parameters = () if code is None else code.methods[method].parameters
        self._call_method("", method, {parameter.name: UNKNOWN for parameter in parameters[1:]})

    def _look_for_special_methods(self) -> None:
        """Methods that operators and conditions call without naming them must not normalise."""
        for path, code in self._code.classes():
            for name in code.methods:
                self._methods_by_name.setdefault(name, []).append((path, code))
        for path, code in self._code.classes():
            for name, method in code.methods.items():
                special = name.startswith("__") and name.endswith("__") and name not in _CALLED_BY_NAME
                if special and self._may_normalise(method):
                    self._lose(f"{path}.{name}", "it may normalise, and runs without being named")

    # --- functions -------------------------------------------------------------------------------

    def _call_method(self, module: str, name: str, given: Mapping[str | int, Value]) -> Value:
        class_path = self._modules[module].class_path
        code = self._code.class_at(class_path)
        method = None if code is None else code.methods.get(name)
        if method is None:
            self._lose(f"{class_path}.{name}", "its code is not in the archive")
            return UNKNOWN
        if not module:
            self._entered.add(name)
        return self._call(method, {**_shifted(given), 0: Modules((module,))}, {}, module)

    def _call(
        self, function: Function, given: Mapping[str | int, Value], scope: Mapping[str, Value], module: str
    ) -> Value:
        self._depth_left -= 1
        if self._depth_left < 0:
            raise UnreadableFile("its code calls functions too deeply inside one another")
        self._step(len(scope))
        frame = _Frame(dict(scope))
        for position, parameter in enumerate(function.parameters):
            frame.variables[parameter.name] = self._argument(position, parameter, given)
        outer, self._module = self._module, module
        uncertain = self._uncertain
        if not self._follow(function.body, frame):
            frame.returned.append(NONE)
        self._module, self._uncertain = outer, uncertain
        self._depth_left += 1
        return self._joined(frame.returned)

    def _argument(self, position: int, parameter: Parameter, given: Mapping[str | int, Value]) -> Value:
        value = given.get(position, given.get(parameter.name))
        if value is None:
            value = UNKNOWN if parameter.default is None else self._value(parameter.default, {})
        if value == UNKNOWN and parameter.type is not None:
            return self._of_type(parameter.type)
        return value

    def _of_type(self, declared: Expression) -> Value:
        """All that a type tells of a value: the class of an object that is no module."""
        path = dotted(declared)
        code = self._code.class_at(path) if path is not None and path.startswith("__torch__.") else None
        return PlainObject(path) if path is not None and code is not None and code.base is None else UNKNOWN

    def _joined(self, values: list[Value]) -> Value:
        result = values[0] if values else UNKNOWN
        for value in values[1:]:
            self._step(weight(value))
            result = join(result, value)
        return result

    # --- statements ------------------------------------------------------------------------------

    def _follow(self, body: tuple[Statement, ...], frame: _Frame) -> bool:
        """Whether the function has returned, on every way through the body."""
        for statement in body:
            self._step()
            match statement:
                case Assign(target=target, value=expression):
                    self._assign(target, self._value(expression, frame.variables), frame.variables)
                case If():
                    if self._if(statement, frame):
                        return True
                case Loop():
                    self._loop(statement, frame)
                case With():
                    if self._with(statement, frame):
                        return True
                case Return(value=expression):
                    frame.returned.append(self._value(expression, frame.variables))
                    return True
                case Function():
                    self._step(len(frame.variables))
                    frame.variables[statement.name] = LocalFunction(statement, dict(frame.variables), self._module)
                case _:
                    self._value(statement, frame.variables)
        return False

    def _if(self, statement: If, frame: _Frame) -> bool:
        taken = truth(self._value(statement.condition, frame.variables))
        if taken is not None:
            return self._follow(statement.then if taken else statement.otherwise, frame)
        self._step(len(frame.variables))
        other = _Frame(dict(frame.variables), frame.returned)
        self._uncertain += 1
        first = self._follow(statement.then, frame)
        second = self._follow(statement.otherwise, other)
        self._uncertain -= 1
        if first and second:
            return True
        if first or second:
            # Whatever follows is reached on one way alone; the count is put right where the function ends.
            self._uncertain += 1
            frame.variables = other.variables if first else frame.variables
        else:
            frame.variables = self._merged(frame.variables, other.variables)
        return False

    def _merged(self, first: Mapping[str, Value], second: Mapping[str, Value]) -> dict[str, Value]:
        merged = dict(second)
        for name, value in first.items():
            if name not in second:
                merged[name] = forget(value)
            elif second[name] is not value:
                self._step(weight(value))
                merged[name] = join(value, second[name])
        for name, value in second.items():
            if name not in first:
                merged[name] = forget(value)
        return merged

    def _loop(self, loop: Loop, frame: _Frame) -> None:
        """Follow a loop's body once, with everything that any round of it assigns unknown, before and behind it."""
        head = self._value(loop.head, frame.variables) if loop.target is not None else UNKNOWN
        self._forget(loop, frame)
        if loop.target is None:
            self._value(loop.head, frame.variables)
        elif runs_code(head):
            for name in _names(loop.target):
                frame.variables[name] = Unknown(may_run_code=True)
        returned = len(frame.returned)
        self._uncertain += 1
        self._follow(loop.body, frame)
        self._uncertain -= 1
        self._forget(loop, frame)
        self._uncertain += len(frame.returned) > returned

    def _forget(self, loop: Loop, frame: _Frame) -> None:
        names = self._assigned_in(loop)
        self._step(len(names))
        for name in names:
            frame.variables[name] = Unknown(name in frame.variables and runs_code(frame.variables[name]))

    def _assigned_in(self, loop: Loop) -> frozenset[str]:
        known = self._in_loop.get(loop)
        if known is None:
            targets = () if loop.target is None else _names(loop.target)
            known = self._in_loop[loop] = frozenset((*targets, *self._assigned_by(loop.body)))
        return known

    def _assigned_by(self, body: tuple[Statement, ...]) -> Iterator[str]:
        for statement in body:
            self._step()
            match statement:
                case Assign(target=target):
                    yield from _names(target)
                case If(then=then, otherwise=otherwise):
                    yield from self._assigned_by(then)
                    yield from self._assigned_by(otherwise)
                case Loop():
                    names = self._assigned_in(statement)
                    self._step(len(names))
                    yield from names
                case With(target=bound, body=inner):
                    yield from () if bound is None else _names(bound)
                    yield from self._assigned_by(inner)
                case Function(name=name):
                    yield name

    def _with(self, statement: With, frame: _Frame) -> bool:
        head = self._value(statement.head, frame.variables)
        entered = self._method(head, "__enter__", {}, None)
        if statement.target is not None:
            self._assign(statement.target, entered, frame.variables)
        ended = self._follow(statement.body, frame)
        self._method(head, "__exit__", dict.fromkeys(range(3), UNKNOWN), None)
        return ended

    # --- assignments -----------------------------------------------------------------------------

    def _assign(self, target: Expression, value: Value, variables: dict[str, Value]) -> None:
        match target:
            case Name(name=name):
                variables[name] = value
            case Several(items=items):
                spread = value.items if isinstance(value, TupleOf) and len(value.items) == len(items) else None
                for index, item in enumerate(items):
                    self._assign(item, forget(value) if spread is None else spread[index], variables)
            case Attribute(value=inner, name=name):
                self._escapes(value)
                self._assign_attribute(self._value(inner, variables), name)
            case _:
                self._escapes(value)
                self._value(target, variables)

    def _assign_attribute(self, owner: Value, name: str) -> None:
        match owner:
            case Modules(paths=paths):
                for path in paths:
                    self._step()
                    # A tensor stays a tensor, and the layer it is the moments of stays that layer.
                    if not _is_surely_tensor(self._modules[path].attributes.get(name)):
                        self._assigned.add((path, name))
            case PlainObject() | ForeignObject() | Unknown(may_run_code=False) | TensorAt():
                pass
            case _:
                self._lose(self._module, f"it assigns .{name} of something bncheck cannot tell")

    def _escapes(self, value: Value) -> None:
        """A module is handed to where its calls cannot be seen."""
        if runs_code(value):
            self._lose(self._module, "it hands a module to something bncheck cannot follow")

    # --- expressions -----------------------------------------------------------------------------

    def _value(self, expression: Expression, variables: Mapping[str, Value]) -> Value:
        self._step()
        match expression:
            case Literal(value=value):
                return Constant(value)
            case Name(name=name):
                return self._named(name, variables)
            case Attribute(value=inner, name=name):
                return self._attribute(self._value(inner, variables), name)
            case Index(value=inner, key=key):
                return self._index(self._value(inner, variables), self._value(key, variables))
            case Several(items=items):
                return tuple_of(tuple(self._value(item, variables) for item in items))
            case Compound(parts=parts):
                for part in parts:
                    self._escapes(self._value(part, variables))
                return UNKNOWN
            case Call():
                return self._called(expression, variables)

    def _named(self, name: str, variables: Mapping[str, Value]) -> Value:
        if name in variables:
            return variables[name]
        return Constant(_CONSTANT_FLOATS[name]) if name in _CONSTANT_FLOATS else CodeName(name)

    def _attribute(self, value: Value, name: str) -> Value:
        match value:
            case CodeName(path="CONSTANTS"):
                return self._constant(name)
            case CodeName(path=path):
                return CodeName(f"{path}.{name}")
            case Modules(paths=paths):
                self._step(len(paths))
                return self._joined([self._module_attribute(path, name) for path in paths])
        return forget(value)

    def _constant(self, name: str) -> Value:
        """``CONSTANTS.c7``; PyTorch would read other spellings of the number too, and never writes them."""
        number = name[1:]
        if name[:1] != "c" or not number.isdecimal() or str(int(number[:9])) != number:
            raise UnreadableFile(f"its code names the constant {name[:40]!r}, which PyTorch never writes")
        if int(number) >= len(self._constants):
            raise UnreadableFile(f"its code names constant {number} of {len(self._constants)}")
        return self._constants[int(number)]

    def _module_attribute(self, path: str, name: str) -> Value:
        module = self._modules[path]
        code = self._code.class_at(module.class_path)
        if code is not None and name in code.methods:
            return BoundMethod((path,), name)
        value = module.attributes.get(name)
        if value is None:
            constant = None if code is None else code.constants.get(name)
            return UNKNOWN if constant is None else Constant(constant.value)
        if (path, name) in self._assigned:
            return replace(value, may_be_none=True) if isinstance(value, TensorAt) else forget(value)
        if isinstance(value, ModeFlag):
            return self._flag(value)
        return value

    def _flag(self, flag: ModeFlag) -> Value:
        self._flags.add(flag.saved)
        match self._mode:
            case Mode.SAVED:
                return UNKNOWN if flag.saved is None else Constant(flag.saved)
            case Mode.EVAL:
                return Constant(False)
            case Mode.TRAINING:
                return Constant(True)

    def _index(self, value: Value, key: Value) -> Value:
        match value, key:
            case TupleOf(items=items), Constant(value=int(index)) if not isinstance(index, bool):
                return items[index] if -len(items) <= index < len(items) else UNKNOWN
            case Modules(paths=paths), _:
                return self._children(paths)
        self._escapes(key)
        return forget(value)

    def _children(self, containers: tuple[str, ...]) -> Value:
        """Any of the submodules: which one an index or a key picks depends on their order."""
        children: dict[str, None] = {}
        for path in containers:
            self._step(len(self._modules[path].attributes))
            for value in self._modules[path].attributes.values():
                children.update(dict.fromkeys(value.paths) if isinstance(value, Modules) else {})
        return Modules(tuple(children)) if children else Unknown(may_run_code=True)

    # --- calls -----------------------------------------------------------------------------------

    def _called(self, call: Call, variables: Mapping[str, Value]) -> Value:
        match call.function:
            case Attribute(value=inner, name=method):
                receiver = self._value(inner, variables)
                return self._method(receiver, method, self._arguments(call, variables), call)
            case _:
                function = self._value(call.function, variables)
                return self._function(function, self._arguments(call, variables), call)

    def _arguments(self, call: Call, variables: Mapping[str, Value]) -> dict[str | int, Value]:
        given: dict[str | int, Value] = {
            position: self._value(argument, variables) for position, argument in enumerate(call.arguments)
        }
        given.update((name, self._value(argument, variables)) for name, argument in call.keywords)
        return given

    def _method(self, receiver: Value, name: str, given: Mapping[str | int, Value], call: Call | None) -> Value:
        match receiver:
            case CodeName(path=path):
                return self._code_called(f"{path}.{name}", given, call)
            case Modules(paths=paths):
                return self._methods(paths, name, given)
            case PlainObject(class_path=class_path):
                return self._object_method(receiver, class_path, name, given)
            case ForeignObject():
                self._escape_all(given)
                return UNKNOWN
            case Unknown(may_run_code=True) | BoundMethod() | LocalFunction():
                self._lose(self._module, f"it calls .{name[:80]}() of something bncheck cannot tell")
                return UNKNOWN
        return self._unseen_method(name, given)

    def _methods(self, paths: tuple[str, ...], name: str, given: Mapping[str | int, Value]) -> Value:
        several = len(paths) > 1
        self._uncertain += several
        # Of modules that an index may pick, PyTorch makes sure that it picks one with the method.
        able = [path for path in paths if self._has_method(path, name)] if several else paths
        results: list[Value] = []
        for path in able or paths[:1]:
            self._step()
            results.append(self._call_method(path, name, given))
        self._uncertain -= several
        return self._joined(results)

    def _has_method(self, path: str, name: str) -> bool:
        code = self._code.class_at(self._modules[path].class_path)
        return code is not None and name in code.methods

    def _object_method(self, receiver: Value, class_path: str, name: str, given: Mapping[str | int, Value]) -> Value:
        code = self._code.class_at(class_path)
        method = None if code is None else code.methods.get(name)
        if method is None:
            self._lose(f"{class_path}.{name}", "its code is not in the archive")
            return UNKNOWN
        return self._call(method, {**_shifted(given), 0: receiver}, {}, self._module)

    def _unseen_method(self, name: str, given: Mapping[str | int, Value]) -> Value:
        """A method of something unknown: none by that name may normalise, in whatever class."""
        self._escape_all(given)
        if may_normalise(name):  # operators can be written as methods of their first tensor
            self._lose(self._module, f"it calls .{name[:80]}(), of which bncheck does not know what it does")
        for path, code in self._methods_by_name.get(name, ()):
            self._step()
            if self._may_normalise(code.methods[name]):
                self._lose(f"{path}.{name}", "it may normalise, and bncheck cannot tell for which layer")
        return UNKNOWN

    def _escape_all(self, given: Mapping[str | int, Value]) -> None:
        for value in given.values():
            self._escapes(value)

    def _function(self, function: Value, given: Mapping[str | int, Value], call: Call | None) -> Value:
        match function:
            case LocalFunction(function=code, variables=variables, module=module):
                return self._call(code, given, variables, module)
            case BoundMethod(paths=paths, name=name):
                return self._methods(paths, name, given)
            case CodeName(path=path):
                return self._code_called(path, given, call)
        self._escape_all(given)
        self._lose(self._module, "it calls something bncheck cannot tell")
        return UNKNOWN

    def _code_called(self, path: str, given: Mapping[str | int, Value], call: Call | None) -> Value:
        if path.startswith("ops.aten."):  # the same operators under their namespace
            path = f"torch.{path.removeprefix('ops.aten.')}"
        operator = norm_operator(path, given)
        if operator is not None and call is not None:
            self._record(path, given, call)
            return UNKNOWN
        if path.startswith("__torch__."):
            return self._script_function(path, given)
        if path in _PASSES_ON:
            return given.get(_PASSES_ON[path], UNKNOWN)
        match path:
            case "getattr":
                return self._getattr(given)
            case "uninitialized":
                return Uninitialised()
            case "fork" | "awaitable":
                return self._function(given.get(0, UNKNOWN), _without_first(given), call)
        return self._operator(path, given)

    def _getattr(self, given: Mapping[str | int, Value]) -> Value:
        match given:
            case {0: owner, 1: Constant(value=str(name))}:
                return self._attribute(owner, name)
        raise UnreadableFile("its code calls getattr with something else than a name")

    def _operator(self, path: str, given: Mapping[str | int, Value]) -> Value:
        """An operator that is no norm of the table."""
        if path not in _ASK_ABOUT_MODULES:
            self._escape_all(given)
        first = given.get(0, UNKNOWN)
        if path in _SAME_TENSOR:
            return first if isinstance(first, TensorAt) else UNKNOWN
        known = path in _BUILTINS or is_own(path)
        if may_normalise(path) or (not known and (not path.startswith("ops.") or _takes_moments(given))):
            self._lose(self._module, f"it calls {path[:80]}, of which bncheck does not know what it does")
        return folded(path, given)

    def _script_function(self, path: str, given: Mapping[str | int, Value]) -> Value:
        owner, _, name = path.rpartition(".")
        code = self._code.class_at(owner)
        if code is not None:
            return self._class_called(owner, code, name, given)
        made = self._code.class_at(path)
        if made is not None:
            return self._constructed(path, made, given)
        function = self._code.function_at(path)
        if function is not None:
            return self._call(function, given, {}, self._module)
        if path.startswith("__torch__.torch.classes."):
            self._escape_all(given)
            return ForeignObject() if name == "__new__" else UNKNOWN
        raise UnreadableFile(f"its code calls {path[:200]}, which is not in the archive")

    def _class_called(self, path: str, code: ClassCode, name: str, given: Mapping[str | int, Value]) -> Value:
        """``Class.__new__(Class)``; and hooks, which are printed as ``Class.hook(module, inputs, output)``."""
        if name == "__new__" and code.base is None:
            return PlainObject(path)
        match given.get(0):
            case Modules(paths=(module,)) if name in code.hooks and name in code.methods:
                return self._call(code.methods[name], given, {}, module)
        self._escape_all(given)
        self._lose(f"{path}.{name}", "it is called in a way PyTorch does not print")
        return UNKNOWN

    def _constructed(self, path: str, code: ClassCode, given: Mapping[str | int, Value]) -> Value:
        if code.base is None:
            made = PlainObject(path)
            if "__init__" in code.methods:
                self._object_method(made, path, "__init__", given)
            return made
        self._escape_all(given)
        if code.base not in ("NamedTuple", "Enum"):
            self._lose(path, "it is called in a way PyTorch does not print")
        return UNKNOWN

    def _record(self, path: str, given: Mapping[str | int, Value], call: Call) -> None:
        operator = norm_operator(path, given)
        assert operator is not None
        roles = {role_of(key) if isinstance(key, str) else key: value for key, value in given.items()}

        def argument(role: str) -> Value:
            position = operator.position(role)
            return NONE if position is None else roles.get(position, roles.get(role, UNKNOWN))

        self._escape_all(given)
        training = argument("training")
        mode = operator.training
        if mode is None and isinstance(training, Constant) and isinstance(training.value, bool):
            mode = training.value
        mean = argument("running_mean")
        if not isinstance(mean, TensorAt) and mean != NONE:
            self._lose(self._module, f"it calls {path} with running moments bncheck cannot tell")
        self._calls.append(
            NormCall(
                site=call,
                module=self._module,
                instance=operator.instance,
                weight=argument("weight"),
                bias=argument("bias"),
                running_mean=mean,
                running_var=argument("running_var"),
                momentum=argument("momentum"),
                eps=argument("eps"),
                training=mode,
                certain=not self._uncertain,
            )
        )

    # --- code that is not followed ---------------------------------------------------------------

    def _may_normalise(self, function: Function) -> bool:
        """Whether a function, or one it may call, names a normalisation operator."""
        known = self._normalises.get(function)
        if known is None:
            known = self._normalises[function] = self._leads_to_a_norm(function)
        return known

    def _leads_to_a_norm(self, function: Function) -> bool:
        seen = {function}
        waiting = [function]
        while waiting:
            for part in self._expressions(waiting.pop().body):
                if _names_a_norm(part):
                    return True
                called = [other for other in self._named_functions(part) if other not in seen]
                seen.update(called)
                waiting += called
        return False

    def _named_functions(self, expression: Expression) -> list[Function]:
        """Functions an expression may be about to call: that function, or every method of that name."""
        match expression:
            case Call(function=Attribute(name=method)):
                classes = self._methods_by_name.get(method, [])
                self._step(len(classes))
                return [code.methods[method] for _, code in classes]
            case Attribute():
                path = dotted(expression) or ""
                function = self._code.function_at(path) if path.startswith("__torch__.") else None
                return [] if function is None else [function]
        return []

    def _expressions(self, body: tuple[Statement, ...]) -> Iterator[Expression]:
        """Every expression of a body, and every part of one."""
        for statement in body:
            self._step()
            match statement:
                case Assign(target=target, value=value):
                    yield from self._parts(target)
                    yield from self._parts(value)
                case If(condition=condition, then=then, otherwise=otherwise):
                    yield from self._parts(condition)
                    yield from self._expressions(then)
                    yield from self._expressions(otherwise)
                case Loop(head=head, body=inner) | With(head=head, body=inner):
                    yield from self._parts(head)
                    yield from self._expressions(inner)
                case Return(value=value):
                    yield from self._parts(value)
                case Function(body=inner):
                    yield from self._expressions(inner)
                case _:
                    yield from self._parts(statement)

    def _parts(self, expression: Expression) -> Iterator[Expression]:
        waiting = [expression]
        while waiting:
            self._step()
            part = waiting.pop()
            yield part
            match part:
                case Attribute(value=value):
                    waiting.append(value)
                case Index(value=value, key=key):
                    waiting += (value, key)
                case Several(items=parts) | Compound(parts=parts):
                    waiting += parts
                case Call(function=function, arguments=arguments, keywords=keywords):
                    waiting += (function, *arguments, *(value for _, value in keywords))


def _names_a_norm(expression: Expression) -> bool:
    match expression:
        case Call(function=Name(name="getattr"), arguments=(owner, *_)):
            return (dotted(owner) or "").partition(".")[0] in ("torch", "ops")
        case Attribute(name=name):
            return (dotted(expression) or "").startswith(("torch.", "ops.")) and may_normalise(name)
    return False


def _names(target: Expression) -> Iterator[str]:
    """The variables that an assignment to a target sets."""
    match target:
        case Name(name=name):
            yield name
        case Several(items=items):
            for item in items:
                yield from _names(item)


def _shifted(given: Mapping[str | int, Value]) -> dict[str | int, Value]:
    """Arguments of a method, which come behind ``self``."""
    return {key + 1 if isinstance(key, int) else key: value for key, value in given.items()}


def _without_first(given: Mapping[str | int, Value]) -> dict[str | int, Value]:
    return {key - 1 if isinstance(key, int) else key: value for key, value in given.items() if key != 0}


def _is_surely_tensor(value: Value | None) -> bool:
    return isinstance(value, TensorAt) and not value.may_be_none


def _takes_moments(given: Mapping[str | int, Value]) -> bool:
    return any(isinstance(value, TensorAt) and "running_" in value.name for value in given.values())
