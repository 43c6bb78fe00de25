"""What a pickle's objects become: inert records that name things and never are them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

_STANDARD_LIBRARY = sys.stdlib_module_names | {"__builtin__", "copy_reg"}


@dataclass(frozen=True, slots=True)
class GlobalRef:
    """A class or function the pickle names; it is neither imported nor called."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """``package.module.name``."""
        return f"{self.module}.{self.name}"

    @property
    def in_standard_library(self) -> bool:
        """Whether Python itself ships it, today or in version 2."""
        return self.module.partition(".")[0] in _STANDARD_LIBRARY


@dataclass(slots=True, eq=False)
class Inert:
    """An object the pickle would build: the class or function, its arguments, and what was put into it since."""

    maker: GlobalRef
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)
    elements: list[object] = field(default_factory=list)

    @property
    def attributes(self) -> dict[object, object]:
        """The instance's ``__dict__`` where it was given as plain state, else empty.

        State is the dict itself, or the pair (dict, slots) of protocol 2.
        """
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0]
        return state if isinstance(state, dict) else {}


class PickledDict(dict[object, object]):
    """An OrderedDict or its like, which can hold attributes (a state dict's ``_metadata``) beside its items."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        super().__init__()
        self.state: object = None


class PickledSet(list[object]):
    """A set's members in the order of the file; nothing is hashed."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class IdentityKey:
    """Stands for a dict key that is no plain scalar: hashing nested tuples can overflow the C stack."""

    value: object


@dataclass(frozen=True, slots=True, eq=False)
class PickledStorage:
    """A storage by its persistent id.

    Attributes:
        key: member name below ``data/``.
        dtype: number format, or None where the storage is untyped bytes.
        numel: elements, or bytes where untyped.
    """

    key: str
    dtype: str | None
    numel: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A view of a storage, as torch's rebuild functions describe it; offsets and strides in elements."""

    storage: PickledStorage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
