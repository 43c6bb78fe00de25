"""The calls a torch file may make while it loads, and the records they become.

This table is the whole of what is allowed. A row is added when a real writer is seen to emit it and the callable, given
these arguments, runs nothing but its own constructor. Names are those of the pickles, not of today's modules: Python 2
called builtins ``__builtin__``, and NumPy 2 moved ``numpy.core`` to ``numpy._core``.
torch's own list: ``torch/_weights_only_unpickler.py``,
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_weights_only_unpickler.py
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial

from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_machine import Call, Trust
from bncheck.readers.pickle_records import GlobalRef, Inert, PickledDict, PickledSet
from bncheck.readers.tensor_records import rebuild_tensor, rebuild_tensor_v3
from bncheck.readers.wrapper_calls import WRAPPER_CLASSES, check_wrapper_state, wrapper_calls

_ENTRY = 64  # bytes that one entry of a copied dict or set takes, about

# Modules of well-known packages whose classes hold state and run nothing else when they are filled with it.
_TORCH_CLASSES = ("torch.nn.", "torch.optim.", "torch.ao.", "torch.amp.", "torch.cuda.amp.", "torch.utils.hooks.")
_STANDARD_CLASSES = frozenset({"argparse.Namespace", "types.SimpleNamespace", "builtins.object", "__builtin__.object"})


def _may_be_instantiated(maker: GlobalRef) -> bool:
    """Whether a file may make an empty instance of a class and set its state.

    A whole module names its author's classes, which nobody else can judge and which need not be installed here.
    Classes that are installed everywhere, of Python, torch and NumPy, are what an attacker has to work with: of these
    only layers, optimizers and plain namespaces may be made.
    """
    top = maker.module.partition(".")[0]
    if maker.in_standard_library:
        return maker.path in _STANDARD_CLASSES
    if top == "torch":
        return f"{maker.module}.".startswith(_TORCH_CLASSES) or maker.path in WRAPPER_CLASSES
    return top != "numpy"


def torch_trust(limits: Limits, vouched: frozenset[str]) -> Trust:
    """What one file written by ``torch.save`` may name and do; its constructors have a budget of copies.

    Args:
        limits: bounds.
        vouched: ``module.name`` of further callables the user knows.
    """
    return Trust(_torch_calls(limits), _may_be_instantiated, _check_state, vouched)


def torchscript_trust(limits: Limits) -> Trust:
    """What the pickles of a TorchScript archive may name and do.

    PyTorch reads these in C++, which knows a handful of functions and the classes of the archive's own code, below
    ``__torch__``: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/serialization/unpickler.cpp
    """
    known = _torch_calls(limits)
    calls = {path: known[path] for path in _SCRIPT_CALLS}
    calls.update((f"torch.jit._pickle.{name}", _first) for name in _TYPED)
    return Trust(calls, _is_script_class, _check_state, _ScriptClasses())


def _is_script_class(maker: GlobalRef) -> bool:
    return maker.module.partition(".")[0] == "__torch__"


class _ScriptClasses(Container[str]):
    """Enumerations are written as a call of their class, which exists in the archive alone."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and path.startswith("__torch__.")


_SCRIPT_CALLS = (
    "builtins.complex",
    "collections.OrderedDict",
    "torch.device",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
)
_TYPED = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag")


def _torch_calls(limits: Limits) -> Mapping[str, Call]:
    """``module.name`` → record maker, for one file written by ``torch.save``: the table keeps count of copies."""
    copies = _Copies(limits)

    def rebuild_from_type(args: tuple[object, ...]) -> object:
        match args:
            case (GlobalRef() as maker, GlobalRef(), tuple() as inner, *_) if maker.path in calls:
                return calls[maker.path](inner)
        raise UnreadableFile("a tensor subclass is rebuilt by something unknown")

    calls: dict[str, Call] = {
        **{path: _opaque(path) for path in _OPAQUE},
        **wrapper_calls(),
        **{f"{module}.{name}": copies.make_set for module in _BUILTINS for name in ("set", "frozenset")},
        **{f"{module}.dict": copies.make_dict for module in _BUILTINS},
        "collections.OrderedDict": copies.make_dict,
        "collections.defaultdict": lambda args: copies.make_dict(args[1:]),
        "collections.Counter": copies.make_dict,
        "functools.partial": _partial,
        "copyreg._reconstructor": _reconstruct,
        "copy_reg._reconstructor": _reconstruct,
        "_codecs.encode": copies.encode,
        **{f"{module}.getattr": _attribute for module in _BUILTINS},
        "torch._utils._rebuild_tensor": partial(rebuild_tensor, limits),
        "torch._utils._rebuild_tensor_v2": partial(rebuild_tensor, limits),
        "torch._utils._rebuild_tensor_v3": partial(rebuild_tensor_v3, limits),
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type": rebuild_from_type,
        "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    }
    return calls


_BUILTINS = ("builtins", "__builtin__")

# Constructors whose result bncheck need not look into: plain values and torch objects that are no layers.
_OPAQUE: tuple[str, ...] = (
    *(
        f"{module}.{name}"
        for module in _BUILTINS
        for name in ("bytearray", "bytes", "complex", "slice", "range", "object")
    ),
    "__builtin__.xrange",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "types.SimpleNamespace",
    "uuid.UUID",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
    ),
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__randomstate_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "torch._C.Generator",
    "torch.Size",
    "torch.device",
    "torch.torch_version.TorchVersion",
    "torch.serialization._get_layout",
    # Modules of torch 0.1.10 to 1.4 hold it as `_backend`, and their parameters before 0.4 are made by this call.
    "torch.nn.backends.thnn._get_thnn_function_backend",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.UninitializedParameter",
    "torch.nn.parameter.UninitializedBuffer",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_wrapper_subclass",
)


def _opaque(path: str) -> Call:
    module, _, name = path.rpartition(".")
    maker = GlobalRef(module, name)
    return lambda args: Inert(maker, args)


class _Copies:
    """Constructors that copy what another opcode built; each file has one budget for all of them."""

    def __init__(self, limits: Limits) -> None:
        self._left = self._budget = limits.pickle_copied_bytes

    def make_dict(self, args: tuple[object, ...]) -> PickledDict:
        self._spend(_ENTRY * _length(args))
        return _dict(args)

    def make_set(self, args: tuple[object, ...]) -> PickledSet:
        self._spend(_ENTRY * _length(args))
        return _set(args)

    def encode(self, args: tuple[object, ...]) -> object:
        self._spend(_length(args))
        return _encode(args)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnreadableFile(f"its constructors copy more than {self._budget} bytes")


def _dict(args: tuple[object, ...]) -> PickledDict:
    """An empty dict, or one of pairs as Python 2 wrote an OrderedDict."""
    made = PickledDict()
    match args:
        case ():
            return made
        case (dict() as items,):
            made.update(items)
            return made
        case (list() as pairs,):
            for pair in pairs:
                match pair:
                    case [str() | int() as key, value] | (str() | int() as key, value):
                        made[key] = value
                    case _:
                        raise UnreadableFile("an OrderedDict is made of something that is no pair")
            return made
    raise UnreadableFile("an OrderedDict is made of something that is no dict")


def _set(args: tuple[object, ...]) -> PickledSet:
    match args:
        case ():
            return PickledSet()
        case (list() | tuple() as members,):
            return PickledSet(members)
    raise UnreadableFile("a set is made of something that is no list")


def _reconstruct(args: tuple[object, ...]) -> Inert:
    """``copyreg._reconstructor(cls, base, state)``: how protocols 0 and 1 make an empty instance."""
    match args:
        case (GlobalRef() as maker, GlobalRef(module=module, name=base), state) if module in _BUILTINS:
            made = Inert(maker, () if state is None else (state,))
            if base == "dict" and isinstance(state, dict):
                made.items = state
            elif base == "list" and isinstance(state, list):
                made.elements = state
            return made
    raise UnreadableFile("an object is reconstructed from arguments no pickler writes")


def _attribute(args: tuple[object, ...]) -> object:
    """``getattr(cls, name)``: how enum members and bound methods are written; it stays a name."""
    match args:
        case (GlobalRef(module=module, name=outer), str(name)) if _is_attribute(name) and len(outer) < 1000:
            made = GlobalRef(module, f"{outer}.{name}")
            if made.in_standard_library:
                raise UnsafeFile(f"loading it would look up {made.path}, which picklers never name")
            return made
        case (Inert(maker=maker), str(name)) if _is_attribute(name):
            return Inert(maker, (name,))
    raise UnreadableFile("getattr is called with arguments no pickler writes")


def _is_attribute(name: str) -> bool:
    return len(name) < 1000 and name.isidentifier()


def _partial(args: tuple[object, ...]) -> Inert:
    """``functools.partial(function, ...)``: it waits to be called, by whatever code the file's classes run.

    Pickled, it gets its function twice: here and in its state, which ``_Machine.build`` hands to ``_check_state``.
    """
    _check_partial(args)
    return Inert(GlobalRef("functools", "partial"), args)


def _check_partial(args: tuple[object, ...]) -> None:
    match args:
        case (GlobalRef() as function, *_) if not function.in_standard_library:
            return
        case (GlobalRef() as function, *_):
            raise UnsafeFile(f"it holds a partial call of {function.path}, ready to run; do not load this file")
    raise UnsafeFile("it holds a partial call of something it computed; do not load this file")


def _check_state(maker: GlobalRef, state: object) -> None:
    """Refuse state that would swap the function of a partial call for one that was not looked at.

    Raises:
        UnsafeFile: it would.
    """
    if maker.path == "functools.partial":
        _check_partial(state if isinstance(state, tuple) else ())
    check_wrapper_state(maker, state)


PLAIN_TRUST = Trust({}, lambda maker: False, _check_state)
"""For pickles of plain values: they may name classes, and call nothing."""


def _length(args: tuple[object, ...]) -> int:
    return sum(len(part) for part in args if isinstance(part, (str, bytes, list, tuple, dict)))


def _encode(args: tuple[object, ...]) -> object:
    """``_codecs.encode(text, "latin1")``: how protocol 2 writes bytes."""
    match args:
        case (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1", "replace")
    raise UnreadableFile("bytes are encoded in a way no pickler writes")


def _first(args: tuple[object, ...]) -> object:
    if not args:
        raise UnreadableFile("a parameter is rebuilt from nothing")
    return args[0]
