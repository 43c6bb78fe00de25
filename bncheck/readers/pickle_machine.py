"""A pickle interpreter that cannot run anything.

It understands every opcode of protocols 0 to 5 (CPython ``Lib/pickletools.py``,
https://github.com/python/cpython/blob/v3.13.0/Lib/pickletools.py), but globals become records, and a call is
looked up in a table of known constructors (``pickle_calls``) that build records. A call of anything else ends the
reading: the file would run code when it is loaded, and there is no list of bad names to be missing from.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_records import GlobalRef, IdentityKey, Inert, PickledDict, PickledSet

Call = Callable[[tuple[object, ...]], object]
PersistentLoad = Callable[[object], object]

_WRAPS = 2**60
# Packages loaded from folders of any name may hold hyphens; no part may be empty or lead elsewhere.
_MODULE_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a pickle may name and do.

    Attributes:
        calls: ``module.name`` → what a call of it makes; everything else is refused.
        may_be_instantiated: whether an empty instance of a class, filled with state, runs nothing but that class's
            own code; asked for names that are not in ``calls``.
        check_state: raises ``UnsafeFile`` where an object's state would make it run what was not looked at.
        vouched: ``module.name`` of further callables the user knows; their results are opaque records.
    """

    calls: Mapping[str, Call]
    may_be_instantiated: Callable[[GlobalRef], bool]
    check_state: Callable[[GlobalRef, object], None]
    vouched: Container[str] = frozenset()


def interpret(data: bytes, trust: Trust, persistent_load: PersistentLoad, limits: Limits) -> object:
    """Build the records of one pickle that must fill ``data`` exactly.

    Args:
        data: the pickle.
        trust: what it may name and do.
        persistent_load: turns a persistent id into a record.
        limits: bounds on opcodes and integers.

    Raises:
        UnreadableFile: the stream is broken or exceeds a bound.
        UnsafeFile: loading it would call something that is not trusted.
    """
    machine = _Machine(data, trust, persistent_load, limits)
    root = machine.run()
    if machine.position != len(data):
        raise UnsafeFile("there is data behind the end of the pickle")
    return root


def interpret_first(data: bytes, trust: Trust, persistent_load: PersistentLoad, limits: Limits) -> tuple[object, int]:
    """Build the records of the pickle that ``data`` begins with; also returns where it ends.

    Raises:
        UnreadableFile, UnsafeFile: as ``interpret``, except for data behind the end.
    """
    machine = _Machine(data, trust, persistent_load, limits)
    return machine.run(), machine.position


class _Machine:
    def __init__(self, data: bytes, trust: Trust, persistent_load: PersistentLoad, limits: Limits) -> None:
        self._data = data
        self._trust = trust
        self._persistent_load = persistent_load
        self._limits = limits
        self._position = 0
        self._stack: list[object] = []
        self._marked: list[list[object]] = []
        self._memo: dict[int, object] = {}
        self._globals: dict[tuple[str, str], GlobalRef] = {}
        self._states: set[int] = set()
        self._opcode = 0

    def run(self) -> object:
        handlers = _HANDLERS
        try:
            for _ in range(self._limits.pickle_opcodes):
                self._opcode = self._data[self._position]
                self._position += 1
                if self._opcode == 0x2E:  # STOP
                    return self._finish()
                handlers[self._opcode](self)
        except KeyError:
            raise self._broken(f"unknown opcode {self._opcode:#04x}") from None
        except IndexError:
            raise self._broken("it ends too early or takes from an empty stack") from None
        except (struct.error, UnicodeDecodeError, ValueError, OverflowError, TypeError) as error:
            raise self._broken(str(error)) from None
        raise UnreadableFile(f"the pickle has more than {self._limits.pickle_opcodes} opcodes")

    def _finish(self) -> object:
        if len(self._stack) != 1 or self._marked:
            raise self._broken("it leaves more or less than one object")
        return self._stack[0]

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._position

    def _broken(self, why: str) -> UnreadableFile:
        return UnreadableFile(f"the pickle is damaged at byte {self._position}: {why}")

    # --- reading arguments -----------------------------------------------------------------------

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if length < 0 or end > len(self._data):
            raise self._broken(f"{length} more bytes are declared than there are")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def _take_string(self, length: int) -> bytes:
        if length > self._limits.pickle_string_bytes and length <= len(self._data) - self._position:
            raise self._broken(f"a string of {length} bytes")
        return self._take(length)

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._position)
        if end < 0:
            raise self._broken("a line does not end")
        line = self._data[self._position : end]
        self._position = end + 1
        return line

    def _pop_mark(self) -> list[object]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    # --- plain values ----------------------------------------------------------------------------

    def proto(self) -> None:
        if self._unsigned(1) > 5:
            raise self._broken("its protocol is newer than 5")

    def frame(self) -> None:
        if self._unsigned(8) > len(self._data) - self._position:
            raise self._broken("a frame is longer than the pickle")

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def pop_mark(self) -> None:
        self._pop_mark()

    def dup(self) -> None:
        self._stack.append(self._stack[-1])

    def none(self) -> None:
        self._stack.append(None)

    def new_true(self) -> None:
        self._stack.append(True)

    def new_false(self) -> None:
        self._stack.append(False)

    def int_line(self) -> None:
        line = self._line()
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self._integer(line))

    def long_line(self) -> None:
        self._stack.append(self._integer(self._line().removesuffix(b"L")))

    def _integer(self, digits: bytes) -> int:
        if len(digits) > 2 * self._limits.pickle_integer_bytes:
            raise self._broken(f"an integer of {len(digits)} digits")
        return int(digits)

    def bin_int(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def bin_int1(self) -> None:
        self._stack.append(self._unsigned(1))

    def bin_int2(self) -> None:
        self._stack.append(self._unsigned(2))

    def long1(self) -> None:
        self._long(self._unsigned(1))

    def long4(self) -> None:
        self._long(int.from_bytes(self._take(4), "little", signed=True))

    def _long(self, width: int) -> None:
        if width > self._limits.pickle_integer_bytes:
            raise self._broken(f"an integer of {width} bytes")
        self._stack.append(int.from_bytes(self._take(width), "little", signed=True))

    def float_line(self) -> None:
        self._stack.append(float(self._line()))

    def bin_float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def string_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise self._broken("a string is not quoted")
        self._stack.append(line[1:-1].decode("latin-1"))

    def bin_string(self) -> None:
        self._stack.append(self._take_string(int.from_bytes(self._take(4), "little", signed=True)).decode("latin-1"))

    def short_bin_string(self) -> None:
        self._stack.append(self._take(self._unsigned(1)).decode("latin-1"))

    def unicode_line(self) -> None:
        self._stack.append(self._line().decode("raw-unicode-escape"))

    def _unicode(self, width: int) -> None:
        self._stack.append(self._take_string(self._unsigned(width)).decode("utf-8", "surrogatepass"))

    def short_bin_unicode(self) -> None:
        self._unicode(1)

    def bin_unicode(self) -> None:
        self._unicode(4)

    def bin_unicode8(self) -> None:
        self._unicode(8)

    def short_bin_bytes(self) -> None:
        self._stack.append(self._take(self._unsigned(1)))

    def bin_bytes(self) -> None:
        self._stack.append(self._take_string(self._unsigned(4)))

    def bin_bytes8(self) -> None:
        self._stack.append(self._take_string(self._unsigned(8)))

    # --- containers ------------------------------------------------------------------------------

    def empty_tuple(self) -> None:
        self._stack.append(())

    def tuple_mark(self) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def tuple1(self) -> None:
        self._fold(1)

    def tuple2(self) -> None:
        self._fold(2)

    def tuple3(self) -> None:
        self._fold(3)

    def _fold(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def empty_list(self) -> None:
        self._stack.append([])

    def list_mark(self) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def empty_dict(self) -> None:
        self._stack.append({})

    def dict_mark(self) -> None:
        items = self._pop_mark()
        made: dict[object, object] = {}
        self._fill(made, items)
        self._stack.append(made)

    def empty_set(self) -> None:
        self._stack.append(PickledSet())

    def frozenset_mark(self) -> None:
        items = self._pop_mark()
        self._stack.append(PickledSet(items))

    def append(self) -> None:
        item = self._stack.pop()
        self._list_below().append(item)

    def appends(self) -> None:
        items = self._pop_mark()
        self._list_below().extend(items)

    def add_items(self) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, PickledSet):
            raise self._broken("members are added to something that is no set")
        target.extend(items)

    def _list_below(self) -> list[object]:
        match self._stack[-1]:
            case PickledSet():
                pass
            case list() as target:
                return target
            case Inert() as target:
                return self._unfinished(target).elements
        raise self._broken("elements are appended to something that is no list")

    def _unfinished(self, target: Inert) -> Inert:
        """Picklers fill an object first and set its state last; the other way round, state can steer the filling."""
        if target.state is not None:
            raise UnsafeFile(f"loading it would run {target.maker.path} on items added after its state was set")
        return target

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill(self._dict_below(), [key, value])

    def set_items(self) -> None:
        items = self._pop_mark()
        self._fill(self._dict_below(), items)

    def _dict_below(self) -> dict[object, object]:
        match self._stack[-1]:
            case dict() as target:
                if id(target) in self._states:
                    # Python copies the state into the object: what comes later would be seen here and not there.
                    raise UnsafeFile("an object's state is changed after the object was given it")
                return target
            case Inert() as target:
                return self._unfinished(target).items
        raise self._broken("items are set in something that is no dict")

    def _fill(self, target: dict[object, object], items: list[object]) -> None:
        if len(items) % 2:
            raise self._broken("a key has no value")
        for index in range(0, len(items), 2):
            key = items[index]
            target[key if _hashes_safely(key) else IdentityKey(key)] = items[index + 1]

    # --- memo ------------------------------------------------------------------------------------

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._broken(f"memo entry {index} was never written")
        self._stack.append(self._memo[index])

    def get_line(self) -> None:
        self._get(self._integer(self._line()))

    def bin_get(self) -> None:
        self._get(self._unsigned(1))

    def long_bin_get(self) -> None:
        self._get(self._unsigned(4))

    def put_line(self) -> None:
        index = self._integer(self._line())
        if not 0 <= index < _WRAPS:
            raise self._broken(f"memo index {index} is out of range")
        self._memo[index] = self._stack[-1]

    def bin_put(self) -> None:
        self._memo[self._unsigned(1)] = self._stack[-1]

    def long_bin_put(self) -> None:
        self._memo[self._unsigned(4)] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # --- names and calls -------------------------------------------------------------------------

    def global_lines(self) -> None:
        self._stack.append(self._global(self._line().decode(), self._line().decode()))

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._broken("a global is named by something that is no string")
        self._stack.append(self._global(module, name))

    def _global(self, module: str, name: str) -> GlobalRef:
        known = self._globals.get((module, name))
        if known is not None:
            return known
        if len(module) + len(name) > self._limits.pickle_name_length:
            raise self._broken(f"a global's name has {len(module) + len(name)} characters")
        # Looking up a name is not harmless when it is none: ctypes.cdll opens any library it is asked for.
        if not _MODULE_NAME.fullmatch(module) or not all(part.isidentifier() for part in name.split(".")):
            raise UnsafeFile(
                f"loading it would look up {f'{module}.{name}'!r}, which is no name of a class or function"
            )
        if len(self._globals) >= self._limits.pickle_globals:
            raise self._broken(f"it names more than {self._limits.pickle_globals} classes and functions")
        made = self._globals[module, name] = GlobalRef(module, name)
        if made.in_standard_library and "." in name:
            raise UnsafeFile(f"loading it would look up {made.path}, which picklers never name")
        return made

    def extension(self) -> None:
        raise UnsafeFile("it refers to the process's extension registry, which torch never does")

    def persistent_line(self) -> None:
        raise UnsafeFile("it holds a text persistent id, which torch never writes")

    def persistent(self) -> None:
        self._stack.append(self._persistent_load(self._stack.pop()))

    def reduce(self) -> None:
        args, maker = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(maker, args))

    def new_object(self) -> None:
        args, maker = self._stack.pop(), self._stack.pop()
        self._stack.append(self._new(maker, args))

    def new_object_ex(self) -> None:
        keywords, args, maker = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if keywords:
            raise self._refusal(maker)
        self._stack.append(self._new(maker, args))

    def instance_lines(self) -> None:
        maker = self._global(self._line().decode(), self._line().decode())
        args = tuple(self._pop_mark())
        self._stack.append(self._call(maker, args))

    def object_mark(self) -> None:
        items = self._pop_mark()
        self._stack.append(self._call(items[0], tuple(items[1:])))

    def _new(self, maker: object, args: object) -> object:
        """``cls.__new__(cls, *args)``: without arguments it makes an empty instance."""
        if args != () or not isinstance(maker, GlobalRef) or maker.path in self._trust.calls:
            return self._call(maker, args)
        return Inert(maker) if self._trust.may_be_instantiated(maker) else self._call(maker, args)

    def _call(self, maker: object, args: object) -> object:
        if isinstance(maker, GlobalRef) and maker.path in self._trust.vouched:
            # TorchScript's enumerations are given their value bare; Python would refuse it as a call.
            return Inert(maker, args if isinstance(args, tuple) else (args,))
        if not isinstance(args, tuple):
            raise self._broken("something is called with arguments that are no tuple")
        if isinstance(maker, GlobalRef):
            known = self._trust.calls.get(maker.path)
            if known is not None:
                return known(args)
        raise self._refusal(maker)

    def _refusal(self, maker: object) -> UnsafeFile:
        if not isinstance(maker, GlobalRef):
            return UnsafeFile("loading it would call something it computed; it was not run, do not load this file")
        advice = (
            "" if maker.in_standard_library else f" unless you know why it does that (then: --allow-call {maker.path})"
        )
        return UnsafeFile(f"loading it would call {maker.path}, which was not run; do not load this file{advice}")

    def build(self) -> None:
        state = self._stack.pop()
        match self._stack[-1]:
            case Inert() | PickledDict() as target:
                if target.state is not None:
                    # Real unpickling would merge the two; no pickler writes it, and merging invites quadratic work.
                    raise self._broken("the state of an object is set twice")
                if isinstance(target, Inert):
                    self._trust.check_state(target.maker, state)
                target.state = state
                self._states.update(id(part) for part in _dicts_of(state))
            case GlobalRef() as target:
                raise UnsafeFile(f"loading it would change attributes of {target.path}; do not load this file")
            case _:
                raise self._broken("state is set on something that has none")


def _dicts_of(state: object) -> Iterator[object]:
    """What an object's attributes are taken from: the state itself, or both of (dict, slots)."""
    match state:
        case dict():
            yield state
        case (first, second):
            yield from (part for part in (first, second) if isinstance(part, dict))


def _hashes_safely(key: object) -> bool:
    """Whether a forger cannot make many such keys collide, nor overflow the C stack by hashing one.

    Text and bytes are hashed with a secret; integers hash to themselves below 2**61 - 1 and wrap around above.
    """
    match key:
        case int():
            return -_WRAPS < key < _WRAPS
        case str() | bytes() | GlobalRef() | None:
            return True
    return False


_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    ord(code): handler
    for code, handler in {
        "\x80": _Machine.proto,
        "\x95": _Machine.frame,
        "(": _Machine.mark,
        "0": _Machine.pop,
        "1": _Machine.pop_mark,
        "2": _Machine.dup,
        "N": _Machine.none,
        "\x88": _Machine.new_true,
        "\x89": _Machine.new_false,
        "I": _Machine.int_line,
        "L": _Machine.long_line,
        "J": _Machine.bin_int,
        "K": _Machine.bin_int1,
        "M": _Machine.bin_int2,
        "\x8a": _Machine.long1,
        "\x8b": _Machine.long4,
        "F": _Machine.float_line,
        "G": _Machine.bin_float,
        "S": _Machine.string_line,
        "T": _Machine.bin_string,
        "U": _Machine.short_bin_string,
        "V": _Machine.unicode_line,
        "\x8c": _Machine.short_bin_unicode,
        "X": _Machine.bin_unicode,
        "\x8d": _Machine.bin_unicode8,
        "C": _Machine.short_bin_bytes,
        "B": _Machine.bin_bytes,
        "\x8e": _Machine.bin_bytes8,
        "\x96": _Machine.bin_bytes8,  # BYTEARRAY8
        ")": _Machine.empty_tuple,
        "t": _Machine.tuple_mark,
        "\x85": _Machine.tuple1,
        "\x86": _Machine.tuple2,
        "\x87": _Machine.tuple3,
        "]": _Machine.empty_list,
        "l": _Machine.list_mark,
        "}": _Machine.empty_dict,
        "d": _Machine.dict_mark,
        "\x8f": _Machine.empty_set,
        "\x91": _Machine.frozenset_mark,
        "a": _Machine.append,
        "e": _Machine.appends,
        "\x90": _Machine.add_items,
        "s": _Machine.set_item,
        "u": _Machine.set_items,
        "g": _Machine.get_line,
        "h": _Machine.bin_get,
        "j": _Machine.long_bin_get,
        "p": _Machine.put_line,
        "q": _Machine.bin_put,
        "r": _Machine.long_bin_put,
        "\x94": _Machine.memoize,
        "c": _Machine.global_lines,
        "\x93": _Machine.stack_global,
        "\x82": _Machine.extension,
        "\x83": _Machine.extension,
        "\x84": _Machine.extension,
        "P": _Machine.persistent_line,
        "Q": _Machine.persistent,
        "R": _Machine.reduce,
        "\x81": _Machine.new_object,
        "\x92": _Machine.new_object_ex,
        "i": _Machine.instance_lines,
        "o": _Machine.object_mark,
        "b": _Machine.build,
    }.items()
}
