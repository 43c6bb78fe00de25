"""What is known of a value in TorchScript code before it runs, and where two ways through the code meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bncheck.readers.torchscript_code import Function, Scalar


@dataclass(frozen=True, slots=True)
class Constant:
    """A value known beforehand."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class ModeFlag:
    """A module's ``training`` attribute, which train() and eval() change.

    Attributes:
        saved: what it is in the file; None where the file does not say.
    """

    saved: bool | None


@dataclass(frozen=True, slots=True)
class TensorAt:
    """A tensor of the file, kept under the attribute of a module or in the table of constants.

    Attributes:
        full_name: dotted path from the root, or ``CONSTANTS.c0``.
        module: path of the module; None for the table of constants.
        name: the attribute.
        may_be_none: whether it may as well be None, or another tensor, when the code runs.
    """

    full_name: str
    module: str | None
    name: str
    may_be_none: bool = False


@dataclass(frozen=True, slots=True)
class Modules:
    """A module by its path; one of several where an index or a condition picks it."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BoundMethod:
    """``module.method``, not yet called."""

    paths: tuple[str, ...]
    name: str


@dataclass(frozen=True, slots=True)
class CodeName:
    """A function, a class, an operator, or part of a dotted name that leads to one."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class LocalFunction:
    """A function defined inside another, with the variables it saw then and the module whose code it is part of."""

    function: Function
    variables: Mapping[str, Value]
    module: str


@dataclass(frozen=True, slots=True)
class PlainObject:
    """An instance of a script class that is no module; what it holds is not known."""

    class_path: str


@dataclass(frozen=True, slots=True)
class ForeignObject:
    """An instance of a class in C++, such as packed weights: its methods run no code of the archive."""


@dataclass(frozen=True, slots=True)
class TupleOf:
    """A tuple.

    Attributes:
        size: values in it, at any depth.
    """

    items: tuple[Value, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing is known.

    Attributes:
        may_run_code: whether it may be a module or a function, so that a call of it would have to be followed.
    """

    may_run_code: bool = False


@dataclass(frozen=True, slots=True)
class Uninitialised:
    """What the printer assigns where a value is never used: behind a ``raise``, for one."""


Value = (
    Constant
    | ModeFlag
    | TensorAt
    | Modules
    | BoundMethod
    | CodeName
    | LocalFunction
    | PlainObject
    | ForeignObject
    | TupleOf
    | Unknown
    | Uninitialised
)
UNKNOWN = Unknown()
NONE = Constant(None)
# More than any function returns; beyond, comparing tuples could take for ever.
_LARGEST_TUPLE = 256


def tuple_of(items: tuple[Value, ...]) -> Value:
    """A tuple; a large one is not known."""
    size = 1 + sum(weight(item) for item in items)
    return TupleOf(items, size) if size <= _LARGEST_TUPLE else Unknown(any(runs_code(item) for item in items))


def weight(value: Value) -> int:
    """How many values it takes to compare this one with another."""
    match value:
        case TupleOf(size=size):
            return size
        case Modules(paths=paths) | BoundMethod(paths=paths):
            return len(paths)
    return 1


def runs_code(value: Value) -> bool:
    """Whether code of a module is lost from sight where this value is."""
    match value:
        case Modules() | BoundMethod() | LocalFunction() | Unknown(may_run_code=True):
            return True
        case TupleOf(items=items):
            return any(runs_code(item) for item in items)
    return False


def forget(value: Value) -> Unknown:
    """The value, no longer known."""
    return Unknown(runs_code(value))


def same(first: Value, second: Value) -> bool:
    """Whether two values are certainly the same; True is not 1."""
    if first is second:
        return True
    match first, second:
        case Constant(), Constant():
            return type(first.value) is type(second.value) and first.value == second.value
        case TupleOf(), TupleOf():
            return len(first.items) == len(second.items) and all(map(same, first.items, second.items))
    return first == second


def join(first: Value, second: Value) -> Value:
    """What is known of a value that is one of two."""
    if same(first, second):
        return first
    match first, second:
        case Uninitialised(), _:
            return second
        case _, Uninitialised():
            return first
        case TensorAt(), Constant(value=None):
            return replace(first, may_be_none=True)
        case Constant(value=None), TensorAt():
            return replace(second, may_be_none=True)
        case TensorAt(), TensorAt() if first.full_name == second.full_name:
            return replace(first, may_be_none=True)
        case Modules(), Modules():
            return Modules(tuple(dict.fromkeys(first.paths + second.paths)))
        case BoundMethod(), BoundMethod() if first.name == second.name:
            return BoundMethod(tuple(dict.fromkeys(first.paths + second.paths)), first.name)
        case TupleOf(), TupleOf() if len(first.items) == len(second.items):
            return tuple_of(tuple(map(join, first.items, second.items)))
    return Unknown(runs_code(first) or runs_code(second))


def truth(value: Value) -> bool | None:
    """Which branch of an ``if`` is taken; None where it is not known."""
    match value:
        case Constant(value=bool() | int() | float() as number):
            return bool(number)
    return None


def folded(operator: str, arguments: Mapping[str | int, Value]) -> Value:
    """The result of the few operators that conditions around a batch norm are made of.

    Args:
        operator: ``torch.eq`` and the like.
        arguments: by position; named ones are not looked at.
    """
    if arguments.keys() == {0}:
        return _folded_one(operator, arguments[0])
    if arguments.keys() == {0, 1}:
        return _folded_two(operator, arguments[0], arguments[1])
    return UNKNOWN


def _folded_one(operator: str, value: Value) -> Value:
    match operator, value:
        case "torch.__not__", Constant(value=bool(flag)):
            return Constant(not flag)
        case "bool", Constant(value=bool() | int() | float() as number):
            return Constant(bool(number))
        case "int", Constant(value=bool() | int() as number):
            return Constant(int(number))
        case "float", Constant(value=bool() | int() | float() as number) if abs(number) < 2**53:
            return Constant(float(number))
    return UNKNOWN


def _folded_two(operator: str, first: Value, second: Value) -> Value:
    match operator:
        case "torch.__is__" | "torch.__isnot__" if second == NONE:
            is_none = _is_none(first)
            return UNKNOWN if is_none is None else Constant(is_none is (operator == "torch.__is__"))
    match first, second:
        case Constant(value=left), Constant(value=right) if type(left) is type(right):
            return _compared(operator, left, right)
    return UNKNOWN


def _compared(operator: str, left: Scalar, right: Scalar) -> Value:
    match operator, left, right:
        case "torch.__and__", bool(), bool():
            return Constant(left and right)
        case "torch.__or__", bool(), bool():
            return Constant(left or right)
        case "torch.__xor__", bool(), bool():
            return Constant(left is not right)
        case "torch.eq", bool() | int() | float() | str(), _:
            return Constant(left == right)
        case "torch.ne", bool() | int() | float() | str(), _:
            return Constant(left != right)
        case "torch.lt", int() | float(), int() | float():
            return Constant(left < right)
        case "torch.le", int() | float(), int() | float():
            return Constant(left <= right)
        case "torch.gt", int() | float(), int() | float():
            return Constant(left > right)
        case "torch.ge", int() | float(), int() | float():
            return Constant(left >= right)
    return UNKNOWN


def _is_none(value: Value) -> bool | None:
    match value:
        case Constant(value=constant):
            return constant is None
        case TensorAt(may_be_none=False) | Modules() | PlainObject() | ForeignObject() | TupleOf():
            return False
    return None
