"""Hostile TorchScript archives: pickles with payloads, and code and modules made to exhaust or to crash their reader.

All begin as the same healthy archive that torch wrote, so that a reader that overlooks the attack calls it clean.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.process import ROOT
from tests.readers.hostile import (
    AUDITED,
    BROKEN,
    EITHER,
    PROTO2,
    REFUSED,
    STOP,
    SYSTEM,
    TRACE,
    Case,
    Entry,
    Watched,
    build,
    call,
    encoded_name,
    get,
    harmless,
    judge,
    new,
    pack,
    put,
    ref,
    tensor,
    text,
    value,
    watch,
)
from tests.readers.script_archives import scripted_alone

MAIN = "code/__torch__/torch/nn/modules/container.py"
NORM = "code/__torch__/torch/nn/modules/batchnorm.py"
SEQUENTIAL = "__torch__.torch.nn.modules.container:Sequential"


def _scripted(network: nn.Module) -> bytes:
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), buffer)
    return buffer.getvalue()


@cache
def archive() -> bytes:
    """A healthy network, scripted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.pt"
        scripted_alone({path: "hostile.healthy_network()"})
        return path.read_bytes()


def entries() -> list[Entry]:
    import zipfile

    with zipfile.ZipFile(BytesIO(archive())) as opened:
        return [Entry(info.filename, opened.read(info)) for info in opened.infolist()]


def member(name: str, members: list[Entry]) -> Entry:
    return next(entry for entry in members if encoded_name(entry).partition("/")[2] == name)


def changed(**edits: bytes | Callable[[bytes], bytes]) -> bytes:
    """The archive with members changed: ``data`` and ``constants`` are pickles, ``main`` and ``norm`` code."""
    names = {"data": "data.pkl", "constants": "constants.pkl", "main": MAIN, "norm": NORM, "debug": f"{MAIN}.debug_pkl"}
    members = entries()
    for short, edit in edits.items():
        entry = member(names[short], members)
        before, entry.data = entry.data, edit(entry.data) if callable(edit) else edit
        assert before != entry.data, f"{short} is not changed"
    return pack(members)


def without(name: str) -> bytes:
    members = entries()
    members.remove(member(name, members))
    return pack(members)


def with_attribute(payload: bytes) -> Callable[[bytes], bytes]:
    """Gives the root module one attribute more, which its class does not declare."""

    def edit(data: bytes) -> bytes:
        end = data.rindex(b"ub")
        return data[:end] + text("extra") + payload + data[end:]

    return edit


def case(name: str, make: Callable[[], bytes], kinds: tuple[str, ...] = ("unsafe-file",), says: str = "") -> Case:
    return Case(name, make, kinds=kinds, says=says)


def both(name: str, payload: bytes, kinds: tuple[str, ...] = ("unsafe-file",), says: str = "") -> list[Case]:
    """The payload in either pickle."""
    return [
        case(f"{name}-in-data", lambda: changed(data=with_attribute(payload)), kinds, says),
        case(f"{name}-in-constants", lambda: changed(constants=PROTO2 + b"(" + payload + b"t" + STOP), kinds, says),
    ]


PICKLES = [
    *both("reduce", SYSTEM, says="posix.system"),
    *both("newobj", new("builtins:map", b"cposix\nsystem\n", ["true"]), says="builtins.map"),
    *both("build", build(new("builtins:object"), {"a": 1}), says="builtins.object"),
    *both("module-of-torch", build(new("torch.nn.modules.linear:Identity"), {"training": False})),
    *both("script-class-in-name-only", call("__torch__x:system", "true"), says="__torch__x"),
    *both("below-python", call("os.__torch__:system", "true")),
    *both("partial", call("functools:partial", b"cposix\nsystem\n", "true")),
    *both("getattr", call("builtins:getattr", b"cposix\nsystem\n", "x")),
    *both("tensor-by-id", call("torch.jit._pickle:build_tensor_from_id", 0)),
    *both("other-function-of-jit", call("torch.jit._pickle:anything", 0)),
    *both("list-of-nothing", call("torch.jit._pickle:build_intlist"), BROKEN),
    *both("tag-of-nothing", call("torch.jit._pickle:restore_type_tag"), BROKEN),
    *both("traversal", new("__torch__...etc:passwd"), says="no name of a class"),
    *both("slashes", new("__torch__/../../etc:passwd"), says="no name of a class"),
    *both("empty-part", new("__torch__..a:B")),
    *both("control-character", new("__torch__.a\x1b[31m:B")),
    *both("tuples", b")" + b"\x85" * 100_000, ("unread", "audited", *EITHER)),
    case(
        "list-of-many", lambda: changed(data=with_attribute(call("torch.jit._pickle:build_intlist", 1, 2, 3))), AUDITED
    ),
    case("enum", lambda: changed(data=with_attribute(call("__torch__.Evil:Shade", "os.system"))), AUDITED),
    case(
        "enum-of-enums", lambda: changed(data=with_attribute(call("__torch__.A:B", call("__torch__.A:B", 1)))), AUDITED
    ),
    case("constants-no-tuple", lambda: changed(constants=PROTO2 + b"}" + STOP), BROKEN, "no tuple"),
    case("constants-empty", lambda: changed(constants=b""), BROKEN),
    case("constants-behind", lambda: changed(constants=lambda data: data + SYSTEM + STOP)),
    case("root-no-module", lambda: changed(data=PROTO2 + value({"a": 1}) + STOP), ("unsupported-file",)),
    case(
        "root-of-python",
        lambda: changed(data=PROTO2 + new("collections:OrderedDict") + STOP),
        ("unsupported-file", *EITHER),
    ),
    case(
        "root-without-class",
        lambda: changed(data=PROTO2 + build(new("__torch__.nowhere:Net"), {}) + STOP),
        BROKEN,
        "nowhere",
    ),
    case("root-twice-built", lambda: changed(data=lambda data: data[:-1] + b"}b" + STOP), BROKEN),
    case("child-without-class", lambda: changed(data=_other_class(b"nowhere\nBatchNorm2d\n")), BROKEN),
    case("payload-in-debug-information", lambda: changed(debug=PROTO2 + SYSTEM + STOP), AUDITED),
]


def _other_class(named: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"batchnorm\nBatchNorm2d\n", named)


# --- modules -----------------------------------------------------------------------------------------

CHAIN = """class Sequential(Module):
  training : bool
  bn : __torch__.torch.nn.modules.batchnorm.BatchNorm2d
  a : __torch__.torch.nn.modules.container.Sequential
  b : __torch__.torch.nn.modules.container.Sequential
  def forward(self: __torch__.torch.nn.modules.container.Sequential, x: Tensor) -> Tensor:
    return x
"""


def modules(pickled: bytes, code: str = CHAIN) -> bytes:
    return changed(data=PROTO2 + pickled + STOP, main=code.encode())


def node(**attributes: object) -> bytes:
    return build(new(SEQUENTIAL), {"training": False, **attributes})


def chain(depth: int) -> bytes:
    return (ref(SEQUENTIAL) + b")\x81}" + text("a")) * depth + b"N" + b"sb" * depth


def tree(depth: int) -> bytes:
    """Two children each: 2**depth modules, all different."""
    pickled = node(a=None)
    for _ in range(depth):
        pickled = ref(SEQUENTIAL) + b")\x81}(" + text("a") + pickled + text("b") + pickled + b"ub"
    return pickled


def ladder(depth: int) -> bytes:
    """Two children each, which are the same: 2**depth paths, and as many modules as rungs."""
    pickled = node(a=None) + put(1000)
    for rung in range(depth):
        pickled = (
            ref(SEQUENTIAL) + b")\x81}(" + text("a") + pickled + text("b") + get(1000 + rung) + b"ub" + put(1001 + rung)
        )
    return pickled


def cycle() -> bytes:
    return ref(SEQUENTIAL) + b")\x81" + put(5) + b"}(" + text("a") + get(5) + b"ub"


def declaring(names: list[str]) -> str:
    lines = "".join(f'  __annotations__["{name}"] = Tensor\n' for name in names)
    return CHAIN.replace("  def forward", lines + "  def forward")


MODULES = [
    case("deep", lambda: modules(chain(10_000)), BROKEN, "nested deeper"),
    harmless("not-too-deep", lambda: modules(chain(150)), exits=(3,)),
    Case("many", lambda: modules(tree(14)), kinds=("audited", *BROKEN), exits=(3,)),
    Case("ladder", lambda: modules(ladder(150)), kinds=AUDITED, exits=(3,)),
    Case("cycle", lambda: modules(cycle()), kinds=AUDITED, exits=(3,)),
    case(
        "name-with-dot", lambda: modules(node(**{"bn.weight": tensor()}), declaring(["bn.weight"])), BROKEN, "bn.weight"
    ),
    case("name-of-nothing", lambda: modules(node(**{"": tensor()}), declaring([""])), BROKEN),
    case("name-too-long", lambda: modules(*_long_names(5000)), (*BROKEN, "audited")),
    case("class-of-another-kind", lambda: modules(node(bn=node(a=None))), BROKEN, "one class in its data"),
    case("shared-state", lambda: modules(_shared_state()), EITHER),
    case("no-root-class", lambda: changed(main=b"class Other(Module):\n  training : bool\n"), BROKEN, "Sequential"),
]


def _long_names(count: int) -> tuple[bytes, str]:
    names = [f"{number}{'n' * 600}" for number in range(count)]
    return node(**dict.fromkeys(names, tensor())), declaring(names)


def _shared_state() -> bytes:
    """Two modules given one dict."""
    first = ref(SEQUENTIAL) + b")\x81}" + put(7) + b"(" + text("training") + b"\x89" + b"ub"
    return ref(SEQUENTIAL) + b")\x81}(" + text("a") + first + text("b") + ref(SEQUENTIAL) + b")\x81" + get(7) + b"bub"


# --- code --------------------------------------------------------------------------------------------

METHOD = """class Sequential(Module):
  training : bool
  __annotations__["0"] = __torch__.torch.nn.modules.conv.Conv2d
  __annotations__["1"] = __torch__.torch.nn.modules.batchnorm.BatchNorm2d
  __annotations__["2"] = __torch__.torch.nn.modules.activation.ReLU
  __annotations__["3"] = __torch__.torch.nn.modules.conv.___torch_mangle_0.Conv2d
  def forward(self: __torch__.torch.nn.modules.container.Sequential, x: Tensor) -> Tensor:
"""
FUNCTION = "__torch__.torch.nn.modules.container.f"


def code(body: str, functions: str = "") -> bytes:
    return changed(main=(METHOD + body + functions).encode())


def calls_doubling(depth: int) -> str:
    """Each calls the next twice: 2**depth calls."""
    functions = "".join(
        f"def f{at}(x: Tensor) -> Tensor:\n  y = {FUNCTION}{at + 1}(x)\n  return {FUNCTION}{at + 1}(y)\n"
        for at in range(depth)
    )
    norm = "torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, True)"
    return f"{functions}def f{depth}(x: Tensor) -> Tensor:\n  return {norm}\n"


def branching(count: int) -> str:
    """As many variables as branches, each of which copies them."""
    assigned = "".join(f"    a{at} = x\n" for at in range(count))
    return assigned + "".join(f"    if x:\n      b{at} = x\n" for at in range(count)) + "    return x\n"


def blocks(depth: int, head: str = "if x:") -> str:
    return "".join(f"{'  ' * at}    {head}\n" for at in range(depth)) + "  " * depth + "    y = x\n    return x\n"


def tuples_doubling(depth: int) -> str:
    """``a = (a, a)`` again and again: 2**depth values in a few objects."""
    doubled = "".join("      a = (a, a)\n" for _ in range(depth))
    compared = "    if x:\n      b = a\n    else:\n      b = a\n"
    return f"    a = x\n    if x:\n{doubled}    else:\n{doubled}{compared}    return x\n"


CODE = [
    case("no-code", lambda: without(MAIN), BROKEN, "not in the archive"),
    case("no-code-of-the-norm", lambda: without(NORM), BROKEN, "not in the archive"),
    case("no-functions", lambda: without("code/__torch__/torch/nn/functional.py"), BROKEN, "not in the archive"),
    case("empty", lambda: changed(main=b""), BROKEN),
    case("no-text", lambda: changed(main=b"\xff\xfe\x00c\x00l"), BROKEN, "UTF-8"),
    case("byte-order-mark", lambda: changed(main=lambda data: b"\xef\xbb\xbf" + data), BROKEN),
    case("null-byte", lambda: changed(main=lambda data: data + b"\0"), BROKEN),
    case("cut-short", lambda: changed(norm=lambda data: data[: len(data) // 2]), REFUSED),
    case(
        "payload-as-python", lambda: changed(main=lambda data: data + b"import os\nos.system('touch pwned')\n"), BROKEN
    ),
    case("too-long", lambda: code("    return x\n" + "#" * (5 * 2**20) + "\n"), BROKEN, "more than"),
    case("long-comment", lambda: code("    return x\n" + "#" * 2**20 + "\n"), AUDITED),
    case("long-line", lambda: code(f"    y = [{'x, ' * 500_000}]\n    return x\n"), ("audited", *BROKEN)),
    case("many-lines", lambda: code("    y = x\n" * 100_000 + "    return x\n"), ("audited", *BROKEN)),
    case(
        "many-functions",
        lambda: code("    return x\n", "".join(f"def f{at}():\n  pass\n" for at in range(100_000))),
        AUDITED,
    ),
    case("unclosed", lambda: code("    y = (" + "\n" * 1_000_000 + "    return x\n"), BROKEN),
    case("unopened", lambda: code("    y = )\n" * 100_000 + "    return x\n"), BROKEN),
    case(
        "brackets", lambda: code(f"    y = {'(' * 100_000}x{')' * 100_000}\n    return x\n"), BROKEN, "nests too deeply"
    ),
    case("lists", lambda: code(f"    y = {'[' * 1000}x{']' * 1000}\n    return x\n"), BROKEN, "nests too deeply"),
    case("calls", lambda: code(f"    y = {'f(' * 1000}x{')' * 1000}\n    return x\n"), BROKEN, "nests too deeply"),
    case("minus-signs", lambda: code(f"    y = {'-' * 100_000}1\n    return x\n"), BROKEN, "nests too deeply"),
    case("indices", lambda: code(f"    y = {'x[' * 1000}0{']' * 1000}\n    return x\n"), BROKEN, "nests too deeply"),
    case("branches", lambda: code(blocks(1000)), BROKEN, "nests too deeply"),
    case("loops", lambda: code(blocks(1000, "while x:")), BROKEN, "nests too deeply"),
    case("attributes", lambda: code(f"    y = x{'.a' * 500_000}\n    return x\n"), ("audited", "unread", *BROKEN)),
    case("sum", lambda: code(f"    y = x{' + x' * 500_000}\n    return x\n"), ("audited", *BROKEN)),
    case("long-number", lambda: code(f"    y = {'9' * 1_000_000}\n    return x\n"), BROKEN),
    case("long-fraction", lambda: code(f"    y = 0.{'9' * 1_000_000}\n    return x\n"), AUDITED),
    case("long-text", lambda: code(f'    y = "{"a" * 1_000_000}"\n    return x\n'), AUDITED),
    case("open-text", lambda: code(f'    y = "{"a" * 1_000_000}\n    return x\n'), BROKEN),
    case("escapes", lambda: code(f'    y = "{chr(92) * 1_000_000}"\n    return x\n'), AUDITED),
    case("doubling", lambda: code(f"    return {FUNCTION}0(x)\n", calls_doubling(60)), BROKEN, "more steps"),
    case(
        "recursion",
        lambda: code(f"    return {FUNCTION}(x)\n", f"def f(x: Tensor) -> Tensor:\n  return {FUNCTION}(x)\n"),
        BROKEN,
        "too deeply",
    ),
    case("method-recursion", lambda: code("    return (self).forward(x)\n"), BROKEN, "too deeply"),
    case("variables-and-branches", lambda: code(branching(20_000)), BROKEN, "more steps"),
    case("nested-loops", lambda: code(blocks(140, "while x:")), AUDITED),
    case("nested-branches", lambda: code(blocks(140)), AUDITED),
    case("tuples", lambda: code(tuples_doubling(2000)), AUDITED),
    case(
        "closures",
        lambda: code(
            "".join(f"    a{at} = x\n    def g{at}():\n      return x\n" for at in range(5000)) + "    return x\n"
        ),
        BROKEN,
        "more steps",
    ),
    case("constant-out-of-range", lambda: code("    y = CONSTANTS.c7\n    return x\n"), BROKEN, "constant"),
    case("constant-of-digits", lambda: code(f"    y = CONSTANTS.c{'1' * 100_000}\n    return x\n"), BROKEN),
    case("getattr-of-nothing", lambda: code("    y = getattr(self)\n    return x\n"), BROKEN),
    case("class-twice", lambda: changed(main=lambda data: data + data), BROKEN, "defined twice"),
    case(
        "traversal",
        lambda: code("    y = __torch__.__.__.etc.passwd.f(x)\n    return x\n"),
        BROKEN,
        "not in the archive",
    ),
    harmless("terminal-codes-in-a-name", lambda: _named("\x1b[31mred"), exits=(1,)),
    harmless("markup-in-a-name", lambda: _named("[bold]<script>::error::"), exits=(1,)),
]


def _named(name: str) -> bytes:
    """A norm called by any name, in training mode, so that a report has to print it."""
    network = nn.Sequential()
    network.add_module(name, nn.BatchNorm2d(4))
    return _scripted(network.train())


CASES = [*PICKLES, *MODULES, *CODE]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    return watch(tmp_path_factory.mktemp("hostile"), CASES)


def test_names_are_unique() -> None:
    assert len({each.name for each in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hostile(case: Case, watched: dict[str, Watched]) -> None:
    judge(case, watched)


def test_healthy_archive_is_clean(tmp_path: Path) -> None:
    """What all cases begin as: nothing of the attack is in it."""
    (result,) = watch(tmp_path, [harmless("healthy", archive)]).values()
    assert (result.exit, result.files) == (0, ())
    assert TRACE not in result.out


PROGRAM = """
import sys
from bncheck.core.errors import BncheckError
from bncheck.readers import read

sys.setrecursionlimit(1000)

def deeper(depth, path):
    if depth:
        return deeper(depth - 1, path)
    try:
        read(path)
    except BncheckError as error:
        print(type(error).__name__)
    else:
        print("read")

for path in sys.argv[2:]:
    deeper(int(sys.argv[1]), path)
"""


@pytest.mark.parametrize("used", [0, 100, 400, 700, 850])
def test_near_the_limit_of_recursion(tmp_path: Path, used: int) -> None:
    """From inside a program that is deep itself, nesting ends in an error of ours or in none."""
    bodies = {
        "brackets": f"    y = {'(' * 140}x{')' * 140}\n    return x\n",
        "calls": f"    y = {'f(' * 140}x{')' * 140}\n    return x\n",
        "branches": blocks(140),
        "mixed": blocks(70).replace("y = x", f"y = {'[(' * 35}x{')]' * 35}"),
    }
    functions = "".join(f"def f{at}(x: Tensor) -> Tensor:\n  return ((({FUNCTION}{at + 1}(x))))\n" for at in range(95))
    files = []
    for name, body in bodies.items():
        files.append(tmp_path / f"{name}.pt")
        files[-1].write_bytes(code(body))
    files.append(tmp_path / "functions.pt")
    files[-1].write_bytes(
        code(f"    return {FUNCTION}0(x)\n", f"{functions}def f95(x: Tensor) -> Tensor:\n  return x\n")
    )
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(used), *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert set(finished.stdout.split()) <= {"UnreadableFile", "read"}
    assert used > 100 or finished.stdout.split()[:4] == ["read"] * 4
