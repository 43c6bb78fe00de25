"""The calls a torch file may make while it loads, and the records they become.

This table is the whole of what is allowed. A row is added when a real writer is seen to emit it and the callable, given
these arguments, runs nothing but its own constructor. Names are those of the pickles, not of today's modules: Python 2
called builtins ``__builtin__``, and NumPy 2 moved ``numpy.core`` to ``numpy._core``.
torch's own list: ``torch/_weights_only_unpickler.py``,
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_weights_only_unpickler.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from bncheck.core.errors import UnreadableFile
from bncheck.core.limits import Limits
from bncheck.readers.pickle_machine import Call
from bncheck.readers.pickle_records import GlobalRef, Inert, PickledDict, PickledSet, PickledStorage, PickledTensor
from bncheck.readers.tensors import DTYPES

# torch.<X>Storage → number format (torch/storage.py, _dtype_to_storage_type_map).
_STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QUInt8Storage": "quint8",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
_LARGEST = 2**60


def persistent_storage(persistent_id: object) -> PickledStorage:
    """The storage named by ``("storage", StorageType, key, location, numel)``.

    Raises:
        UnreadableFile: the id has another shape; torch writes no other.
    """
    match persistent_id:
        case ("storage", GlobalRef(module=module, name=name), str(key), str(), int(numel)) if 0 <= numel < _LARGEST:
            if module in ("torch", "torch.cuda") and name in _STORAGE_DTYPES:
                return PickledStorage(key, _STORAGE_DTYPES[name], numel)
            if (module, name) == ("torch.storage", "UntypedStorage"):
                return PickledStorage(key, None, numel)
            raise UnreadableFile(f"a storage is of the unknown type {module}.{name}"[:200])
    raise UnreadableFile("a persistent id does not describe a storage")


def torch_calls(limits: Limits) -> Mapping[str, Call]:
    """``module.name`` → record maker, for files written by ``torch.save``."""

    def rebuild_tensor(args: tuple[object, ...]) -> object:
        match args:
            case (_, _, _, _, _, _, dict() as flags) if flags:
                # {"neg": True} or {"conj": True}: the stored numbers are not yet the tensor's.
                return Inert(GlobalRef("torch._utils", "_rebuild_tensor_v2"), args)
            case (PickledStorage() as storage, int(offset), tuple() as shape, tuple() as strides, *_):
                return _tensor(storage, storage.dtype or "uint8", offset, shape, strides, limits)
        raise UnreadableFile("a tensor is rebuilt from arguments torch never writes")

    def rebuild_tensor_v3(args: tuple[object, ...]) -> object:
        match args:
            case (
                PickledStorage() as storage,
                int(offset),
                tuple() as shape,
                tuple() as strides,
                _,
                _,
                GlobalRef(module="torch", name=dtype),
                *_,
            ):
                return _tensor(storage, dtype, offset, shape, strides, limits)
        raise UnreadableFile("a tensor is rebuilt from arguments torch never writes")

    def rebuild_from_type(args: tuple[object, ...]) -> object:
        match args:
            case (GlobalRef() as maker, GlobalRef(), tuple() as inner, *_) if maker.path in calls:
                return calls[maker.path](inner)
        raise UnreadableFile("a tensor subclass is rebuilt by something unknown")

    calls: dict[str, Call] = {
        **{path: _opaque(path) for path in _OPAQUE},
        **{f"{module}.{name}": _SETS_AND_DICTS[name] for module in _BUILTINS for name in _SETS_AND_DICTS},
        "collections.OrderedDict": _dict,
        "collections.defaultdict": lambda args: _dict(args[1:]),
        "collections.Counter": _dict,
        "copyreg._reconstructor": _reconstruct,
        "copy_reg._reconstructor": _reconstruct,
        "_codecs.encode": _encode,
        **{f"{module}.getattr": _attribute for module in _BUILTINS},
        "torch._utils._rebuild_tensor": rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
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
    "functools.partial",
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


_SETS_AND_DICTS: Mapping[str, Call] = {"set": _set, "frozenset": _set, "dict": _dict}


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
        case (GlobalRef(module=module, name=outer), str(name)) if name.isidentifier() and len(outer) < 1000:
            return GlobalRef(module, f"{outer}.{name}")
        case (Inert(maker=maker), str(name)) if name.isidentifier():
            return Inert(maker, (name,))
    raise UnreadableFile("getattr is called with arguments no pickler writes")


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


def _tensor(
    storage: PickledStorage,
    dtype: str,
    offset: int,
    shape: tuple[object, ...],
    strides: tuple[object, ...],
    limits: Limits,
) -> PickledTensor:
    if not (_sizes(shape) and _sizes(strides)) or len(shape) != len(strides) or not 0 <= offset < _LARGEST:
        raise UnreadableFile("a tensor has a negative, huge or missing size, stride or offset")
    if len(shape) > limits.tensor_dimensions:
        raise UnreadableFile(f"a tensor has {len(shape)} dimensions")
    numel = storage.numel
    if storage.dtype is None:
        known = DTYPES.get(dtype)
        numel = storage.numel // known.width if known is not None else storage.numel
    if all(shape):
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= numel:
            raise UnreadableFile(f"a tensor reaches to element {last} of a storage of {numel}")
    return PickledTensor(PickledStorage(storage.key, storage.dtype, numel), dtype, shape, strides, offset)


def _sizes(values: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST for value in values)
