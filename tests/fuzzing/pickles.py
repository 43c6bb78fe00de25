"""Mutations of pickles, opcode by opcode."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Sequence
from random import Random

from tests.fuzzing.pieces import INTEGERS, RUNS, Change, Pieces, Whole, cut_off
from tests.readers import hostile

# Opcodes that put a plain value on the stack and take nothing from it.
_PUSHES = frozenset(b"N\x88\x89IJKLM\x8a\x8bFGSTUVX\x8c\x8dCB\x8e)]}\x8fghj")
_GETS, _PUTS = frozenset(b"ghj"), frozenset(b"pqr\x94")
# Opcodes of a kind: one in the place of another finds the stack it needs, more or less.
_ALIKE: tuple[bytes, ...] = (
    b"R\x81ob",
    b"sa0",
    b"ue\x90d",
    b"tl\x91d1",
    b")]}\x8fN",
    b"\x85\x86\x87t",
    b"\x88\x89N",
    b"0b2Q\x94",
    b"(1.",
)
_ALIKE_TO = {code: kind for kind in _ALIKE for code in kind}
# Opcode → bytes of the length in front of its argument.
_LENGTHS = {0x54: 4, 0x55: 1, 0x58: 4, 0x8C: 1, 0x8D: 8, 0x43: 1, 0x42: 4, 0x8E: 8, 0x96: 8, 0x8A: 1, 0x8B: 4, 0x95: 8}

WORDS: tuple[str, ...] = (
    *("running_mean", "running_var", "num_batches_tracked", "weight", "bias", "eps", "momentum", "affine", "training"),
    *("track_running_stats", "num_features", "_parameters", "_buffers", "_modules", "_metadata", "version", ""),
    *("state", "param_groups", "step", "model", "ema", "state_dict", "module", "optimizer", "bn1.running_var", "0"),
    *("storage", "cpu", "meta", "latin1", "torch", "os", "system", "module.bn1.running_mean", "bn\x1b[31m", "\ud800"),
    *("builtins", "getattr", "collections", "a." * 60, "x" * 5000, "İ", "//..", "\x00", "bn1\n", "::error::"),
)
GLOBALS: tuple[str, ...] = (
    *("torch._utils:_rebuild_tensor_v2", "torch._utils:_rebuild_tensor_v3", "torch._utils:_rebuild_tensor"),
    *("torch._utils:_rebuild_parameter", "torch._utils:_rebuild_parameter_with_state", "torch:FloatStorage"),
    *("torch._tensor:_rebuild_from_type_v2", "torch._utils:_rebuild_qtensor", "torch._utils:_rebuild_sparse_tensor"),
    *("torch:LongStorage", "torch:QInt8Storage", "torch.storage:UntypedStorage", "torch:float32", "torch:bfloat16"),
    *("torch:QUInt4x2Storage", "torch:Size", "torch:device", "torch.nn.modules.batchnorm:BatchNorm2d", "torch:bool"),
    *("collections:OrderedDict", "collections:defaultdict", "collections:Counter", "collections:deque"),
    *("builtins:set", "builtins:frozenset", "builtins:dict", "builtins:getattr", "builtins:bytearray", "builtins:int"),
    *(
        "copyreg:_reconstructor",
        "copy_reg:_reconstructor",
        "functools:partial",
        "_codecs:encode",
        "types:SimpleNamespace",
    ),
    *("numpy._core.multiarray:scalar", "numpy:dtype", "numpy:ndarray", "numpy._core.multiarray:_reconstruct"),
    *("os:system", "posix:system", "builtins:eval", "subprocess:Popen", "pathlib:Path", "argparse:Namespace"),
    *("numpy:runctx", "torch.hub:load", "nowhere:Class", "ctypes:cdll", "torch.nn.modules.container:Sequential"),
    *("torch.nn.parameter:UninitializedBuffer", "tests.readers.torch_files:Shade", "a..b:c", ":", "os.path:sep.join"),
)


def opcodes(pickle: bytes) -> list[bytes]:
    """A pickle's opcodes with their arguments; what follows its end is one more piece."""
    starts = [position for _, _, position in pickletools.genops(pickle) if position is not None]
    end = starts[-1] + 1
    pieces = [pickle[start:stop] for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    return [*pieces, pickle[end:]] if end < len(pickle) else pieces


# --- values ------------------------------------------------------------------------------------------------


def random_value(random: Random, depth: int = 0) -> bytes:
    """Opcodes that leave one value on the stack, of a kind torch might write or not."""
    match random.randrange(13 if depth < 3 else 7):
        case 0:
            return hostile.number(random.choice(INTEGERS))
        case 1:
            return hostile.value(random.choice((True, False, None, 0.0, -1.5, 1e308, float("nan"), float("inf"), b")")))
        case 2 | 3:
            return hostile.text(random.choice(WORDS))
        case 4:
            return b"C\x04" + random.randbytes(4)
        case 5:
            return hostile.ref(random.choice(GLOBALS))
        case 6:
            return random.choice((b"]", b"}", b")", b"\x8f", b"N"))
        case 7:
            return b"(" + _values(random, depth) + random.choice((b"t", b"l", b"\x91"))
        case 8:
            pairs = (hostile.text(random.choice(WORDS)) + random_value(random, depth + 1) for _ in range(2))
            return b"}(" + b"".join(pairs) + b"u"
        case 9:
            return hostile.ref(random.choice(GLOBALS)) + b"(" + _values(random, depth) + b"tR"
        case 10:
            made = hostile.ref(random.choice(GLOBALS)) + b")" + random.choice((b"R", b"\x81"))
            return made + random_value(random, depth + 1) + random.choice((b"b", b"b", b"0"))
        case 11:
            return _storage(random)
    return _tensor(random)


def _values(random: Random, depth: int) -> bytes:
    return b"".join(random_value(random, depth + 1) for _ in range(random.randint(0, 4)))


def _storage(random: Random) -> bytes:
    told: dict[str, object] = {"key": str(random.randrange(8)), "numel": random.choice((4, 6, 24))}
    if random.random() < 0.4:
        told[random.choice(("key", "numel", "kind", "tag"))] = random_value(random, 2)
    return hostile.storage(**told)


def _tensor(random: Random) -> bytes:
    features = random.choice((1, 4, 6))
    told: dict[str, object] = {"shape": (features,), "strides": (1,), "offset": 0}
    if random.random() < 0.6:
        count = random.choice((0, 1, 1, 2, 3, 70))
        told["shape"] = tuple(random.choice(INTEGERS) for _ in range(count))
        told["strides"] = tuple(random.choice(INTEGERS) for _ in range(count if random.random() < 0.9 else 1))
    if random.random() < 0.2:
        told[random.choice(("shape", "strides", "offset"))] = random_value(random, 2)
    return hostile.tensor(**told, of=_storage(random))


# --- changes -----------------------------------------------------------------------------------------------


def _place(random: Random, pieces: Pieces, codes: frozenset[int] | dict[int, object]) -> int | None:
    """Where one of these opcodes stands: a few are looked at, so that a long pickle costs no more than a short one."""
    for _ in range(24):
        if not pieces:
            return None
        place = random.randrange(len(pieces))
        if pieces[place] and pieces[place][0] in codes:
            return place
    return None


def replace_value(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Another value in the place of one."""
    place = _place(random, pieces, _PUSHES)
    if place is not None:
        pieces[place] = random_value(random)


def tweak_integer(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A number near the one that stands there."""
    place = _place(random, pieces, frozenset(b"JKM\x8a"))
    if place is not None:
        raw = pieces[place][1 + (pieces[place][0] == 0x8A) :]
        known = int.from_bytes(raw, "little", signed=pieces[place][0] in b"J\x8a")
        pieces[place] = hostile.number(random.choice((known + 1, known - 1, -known, known * 2, known << 32)))


def swap_opcode(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """An opcode of a kind in the place of one without an argument."""
    place = _place(random, pieces, _ALIKE_TO)
    if place is not None and len(pieces[place]) == 1:
        pieces[place] = bytes([random.choice(_ALIKE_TO[pieces[place][0]])])


def forge_memo(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Another memo entry, read or written."""
    place = _place(random, pieces, _GETS | _PUTS)
    if place is None:
        return
    index = random.choice((0, 1, 2, 5, random.randrange(256), random.randrange(256), 65_536, 2**32 - 1))
    code = pieces[place][0]
    if random.random() < 0.1:
        code = random.choice(b"ghjpqr\x94")
    elif code in _GETS:
        code = 0x6A if index > 255 else 0x68
    else:
        code = 0x72 if index > 255 else 0x71
    pieces[place] = bytes([code]) + _index(code, index)


def _index(code: int, index: int) -> bytes:
    match chr(code):
        case "g" | "p":
            return b"%d\n" % index
        case "h" | "q":
            return bytes([index % 256])
        case "j" | "r":
            return struct.pack("<I", index)
    return b""


def forge_length(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A length that is not the argument's."""
    place = _place(random, pieces, _LENGTHS)
    if place is not None:
        piece, width = pieces[place], _LENGTHS[pieces[place][0]]
        known = int.from_bytes(piece[1 : 1 + width], "little")
        told = random.choice((known + 1, known - 1, 0, *random.sample(INTEGERS, 2))) % (1 << (8 * width))
        pieces[place] = piece[:1] + told.to_bytes(width, "little") + piece[1 + width :]


def insert_payload(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Something made beside the model: left on the stack, thrown away, or put into what lies there."""
    place = random.randrange(len(pieces) + 1)
    payload = random_value(random)
    match random.randrange(5):
        case 0:
            payload += b"0"
        case 1:
            payload += b"b"
        case 2:
            payload = hostile.text(random.choice(WORDS)) + payload + b"s"
        case 3:
            payload += b"a"
    pieces.insert(place, payload)


def rename(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Another global or another string in the place of one."""
    place = _place(random, pieces, frozenset(b"cX\x8c"))
    if place is not None:
        new = hostile.ref(random.choice(GLOBALS)) if pieces[place][:1] == b"c" else hostile.text(random.choice(WORDS))
        pieces[place] = new


def wrap(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A value inside a tuple, a call, a container, or a great many of them."""
    place = _place(random, pieces, _PUSHES | frozenset(b"RQ\x81"))
    if place is not None:
        times = 1 if random.random() < 0.9 else random.choice((50, 250, 3000))
        pieces[place] += random.choice((b"\x85", b"2\x86", b"\x85\x85", b"]2a0", b"Q", b")R", b"b")) * times


def insert_opcode(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Any opcode, with nothing or anything as its argument."""
    code = random.choice(pickletools.opcodes).code.encode("latin-1")
    pieces.insert(random.randrange(len(pieces) + 1), code + random.randbytes(random.choice((0, 0, 1, 2, 4, 8))))


CHANGES: tuple[Change, ...] = (
    *RUNS,
    *(replace_value, replace_value, replace_value, tweak_integer, tweak_integer, swap_opcode, swap_opcode),
    *(forge_memo, forge_memo, forge_length, insert_payload, insert_payload, rename, rename, wrap, insert_opcode),
    *(cut_off,),
)
