"""TorchScript code written to deceive its reader: torch compiles and runs it, and bncheck must not be fooled.

Each archive is one that torch wrote, with the code of a method changed by hand. What torch then does with the norm is
watched. bncheck may say the same (``told``), say that it cannot tell (``unread``) or refuse the file (``refused``);
which of them it is stands in the case, so that a reader that only refuses fails as well.
"""

from __future__ import annotations

import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bncheck.readers import read
from tests.readers.script_archives import (
    assert_behaves,
    batch,
    behaviour,
    edited,
    replacing,
    scripted_alone,
    told,
)
from tests.readers.script_networks import Stateful
from tests.readers.torch_files import filled

MODULE = "__torch__.tests.readers.script_networks"
CLASS = f"{MODULE}.Plain"
FILE = "code/__torch__/tests/readers/script_networks.py"
NORM = "torch.batch_norm(x, None, None, self.running_mean, self.running_var, {}, 0.1, 1e-5, True)"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """torch deprecates TorchScript with every call; and on four small images threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


_MAKE_HOOKED = """[
    hooked := networks.Hooked(),
    hooked.register_forward_hook(networks.hook_of_hooked),
    filled(networks.Around(hooked)).eval(),
][-1]"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives that the cases change."""
    folder = tmp_path_factory.mktemp("archives")
    scripted_alone(
        {folder / "plain.pt": "filled(networks.Plain()).eval()", folder / "hooked.pt": _MAKE_HOOKED.replace("\n", "")}
    )
    return folder


@pytest.fixture(scope="module")
def plain(archives: Path) -> Path:
    """In eval mode, and called with a constant False."""
    return archives / "plain.pt"


@dataclass(frozen=True)
class Case:
    """A method, and what bncheck must make of it.

    Attributes:
        name: for the test's id.
        body: of ``forward``; ``NORM(flag)`` stands for a call of the operator.
        says: told, unread or refused.
        methods: further methods and attributes of the class.
        functions: further functions and classes of the file.
        loads: whether torch takes it.
        parameters: further ones of ``forward``.
        on_batch: whether torch uses the batch's moments after eval(); told apart so that no case is idle.
    """

    name: str
    body: str
    says: str = "told"
    methods: str = ""
    functions: str = ""
    loads: bool = True
    parameters: str = ""
    on_batch: bool = True

    def __str__(self) -> str:
        return self.name


def deceiving(plain: Path, case: Case, folder: Path) -> Path:
    """The archive with the case's code."""
    start = f"  def forward(self: {CLASS},\n    x: Tensor) -> Tensor:\n"

    def rewrite(text: str) -> str:
        head, found, _ = text.partition(start)
        assert found
        signature = start.replace("x: Tensor", f"x: Tensor{case.parameters}")
        methods = _indented(case.methods, 1)
        return head + signature + _indented(case.body, 2) + methods + textwrap.dedent(_filled(case.functions))

    changed = edited(plain, {FILE: rewrite}, f"{case.name}.pt")
    return changed.rename(folder / changed.name)


def _indented(text: str, depth: int) -> str:
    return textwrap.indent(textwrap.dedent(_filled(text)).strip("\n"), "  " * depth) + "\n" if text else ""


def _filled(text: str) -> str:
    while "NORM(" in text:
        before, _, rest = text.partition("NORM(")
        depth = 1
        for at, letter in enumerate(rest):  # noqa: B007 - used behind the loop
            depth += (letter == "(") - (letter == ")")
            if not depth:
                break
        text = before + NORM.format(rest[:at]) + rest[at + 1 :]
    return text.replace("SELF", f"self: {CLASS}").replace("HERE", MODULE)


def judge(plain: Path, case: Case, folder: Path) -> None:
    path = deceiving(plain, case, folder)
    if case.loads:
        seen = behaviour(path, runs=2)
        assert any(call.training for call in seen.eval) == case.on_batch
    else:
        with pytest.raises((RuntimeError, UnicodeDecodeError)):
            behaviour(path, runs=2)
    assert told(path) == case.says
    if case.loads and case.says == "told":
        assert_behaves(path, runs=2)


FLAGS = [
    Case("literal", "return NORM(True)"),
    Case("attribute", "return NORM(self.on)"),
    Case("attribute-off", "return NORM(self.off)", on_batch=False),
    Case("flag", "return NORM(self.training)", on_batch=False),
    Case("not-flag", "return NORM(torch.__not__(self.training))"),
    Case("not-not-flag", "return NORM(torch.__not__(torch.__not__(self.training)))", on_batch=False),
    Case("flag-of-another-module", "bn = self.bn\nreturn NORM(torch.__not__(bn.training))"),
    Case("and", "return NORM(torch.__and__(self.on, torch.__not__(self.training)))"),
    Case("or", "return NORM(torch.__or__(self.training, self.on))"),
    Case("xor", "return NORM(torch.__xor__(self.training, self.on))"),
    Case("tuple", "t = (False, (True, 1))\nreturn NORM(t[1][0])"),
    Case("tuple-negative-index", "t = (True, False)\nreturn NORM(t[-2])"),
    Case("unpacked", "a, b = (False, True)\nreturn NORM(b)"),
    Case("unpacked-in-brackets", "(a, b) = (False, True)\nreturn NORM(b)"),
    Case("unpacked-over", "b = False\n(a, b) = (False, True)\nreturn NORM(b)"),
    Case("unpacked-nested", "c = False\na, (b, c) = (False, (False, True))\nreturn NORM(c)"),
    Case("swapped", "a = False\nb = True\na, b = b, a\nreturn NORM(a)"),
    Case("list", "flags = [False, True]\nreturn NORM(flags[1])", "unread"),
    Case("list-first", "flags = [True]\nreturn NORM(flags[0])", "unread"),
    Case("list-changed", "flags = [False]\nflags[0] = True\nreturn NORM(flags[0])", "unread"),
    Case(
        "list-set",
        "flags = annotate(List[bool], [False])\n_0 = torch._set_item(flags, 0, True)\nreturn NORM(flags[0])",
        "unread",
    ),
    Case("list-sum", "flags = [True] + [False]\nreturn NORM(flags[0])", "unread"),
    Case("dict", 'flags = {"a": True}\nreturn NORM(flags["a"])', "unread"),
    Case("bool-of-int", "return NORM(bool(1))"),
    Case("bool-of-attribute", "return NORM(bool(self.one))"),
    Case("bool-of-zero", "return NORM(bool(self.zero))", on_batch=False),
    Case("bool-of-float", "return NORM(bool(self.half))"),
    Case("bool-of-int-of-float", "return NORM(bool(int(self.half)))", "unread", on_batch=False),
    Case("int-of-bool", "return NORM(torch.eq(int(self.on), 1))"),
    Case("true-is-not-one", "return NORM(torch.eq(self.one, 1))"),
    Case("comparison", "return NORM(torch.gt(self.one, self.zero))"),
    Case("comparison-of-texts", 'return NORM(torch.eq(self.word, "train"))'),
    Case("comparison-of-escaped-texts", 'return NORM(torch.eq(self.word, "\\164rain"))'),
    Case("comparison-of-octal", "return NORM(torch.eq(010, 8))", "refused"),
    Case("comparison-of-int-and-float", "return NORM(torch.eq(self.one, 1.0))", "unread"),
    Case("infix-comparison", "return NORM(self.one == 1)", "refused"),
    Case("infix-less", "return NORM(self.zero < 1)", "unread"),
    Case("infix-not", "return NORM(not self.training)", "refused"),
    Case("infix-not-in-brackets", "return NORM(not (self.training))", "refused"),
    Case("infix-or", "return NORM((self.training) or (self.on))", "refused"),
    Case("ternary", "return NORM(True if self.on else False)", "refused"),
    Case("is-none", "return NORM(torch.__is__(self.maybe, None))"),
    Case("input-shape", "return NORM(torch.gt(torch.size(x, 0), 1))", "unread"),
    Case("input-values", "return NORM(bool(torch.gt(torch.sum(torch.abs(x)), 0)))", "unread"),
    Case("annotated", "t : bool = True\nreturn NORM(annotate(bool, t))"),
    Case("getattr", 'return NORM(getattr(self, "on"))'),
    Case("getattr-escaped", 'return NORM(getattr(self, "o\\156"))'),
    Case("constant-table", "return NORM(CONSTANTS.c0)", "refused", loads=False),
    Case(
        "keyword",
        _filled("return NORM(False)")
        .replace("False,", "momentum=0.1, training=True, eps=1e-5,")
        .replace(" 0.1, 1e-5, True", " cudnn_enabled=True")
        .replace("return ", "return "),
    ),
]


@pytest.mark.parametrize("case", FLAGS, ids=str)
def test_flags(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


BRANCHES = [
    Case("assigned-in-branch", "t = False\nif self.on:\n  t = True\nelse:\n  pass\nreturn NORM(t)"),
    Case(
        "assigned-in-unknown-branch",
        "t = False\nif torch.gt(torch.size(x, 0), 1):\n  t = True\nreturn NORM(t)",
        "unread",
    ),
    Case("merged", "if torch.gt(torch.size(x, 0), 1):\n  t = True\nelse:\n  t = False\nreturn NORM(t)", "unread"),
    Case("same-in-both", "if torch.gt(torch.size(x, 0), 1):\n  t = True\nelse:\n  t = True\nreturn NORM(t)"),
    Case("one-is-not-true", "if torch.gt(torch.size(x, 0), 1):\n  t = 1\nelse:\n  t = 1\nreturn NORM(bool(t))"),
    Case(
        "two-modes-by-shape",
        "if torch.gt(torch.size(x, 0), 1):\n  y = NORM(True)\nelse:\n  y = NORM(False)\nreturn y",
        "unread",
    ),
    Case("one-mode-by-shape", "if torch.gt(torch.size(x, 0), 1):\n  y = NORM(True)\nelse:\n  y = x\nreturn y"),
    Case("early-return", "if torch.gt(torch.size(x, 0), 100):\n  return x\nreturn NORM(True)"),
    Case(
        "early-return-of-eval", "if torch.gt(torch.size(x, 0), 100):\n  return NORM(False)\nreturn NORM(True)", "unread"
    ),
    Case("early-return-else", "if torch.gt(torch.size(x, 0), 100):\n  pass\nelse:\n  return NORM(True)\nreturn x"),
    Case("early-return-taken", "if self.on:\n  return NORM(False)\nreturn NORM(True)", on_batch=False),
    Case("early-return-not-taken", "if self.off:\n  return NORM(False)\nreturn NORM(True)"),
    Case(
        "early-return-changes-flag",
        "t = True\nif torch.gt(torch.size(x, 0), 100):\n  t = False\n  return x\nreturn NORM(t)",
    ),
    Case("number-as-condition", "if self.one:\n  return NORM(True)\nelse:\n  return NORM(False)"),
    Case("zero-as-condition", "if self.zero:\n  return NORM(False)\nelse:\n  return NORM(True)"),
    Case("elif", "if self.off:\n  return x\nelif self.on:\n  return NORM(True)\nelse:\n  return x", "refused"),
    Case(
        "behind-raise",
        (
            "if torch.gt(torch.size(x, 0), 100):\n"
            '  ops.prim.RaiseException("no")\n'
            "  t = uninitialized(bool)\n"
            "else:\n"
            "  t = True\n"
            "return NORM(t)"
        ),
    ),
    Case("assert", "assert self.on\nreturn NORM(True)", "refused"),
    Case("mode-branch", "if self.training:\n  return NORM(False)\nelse:\n  return NORM(True)"),
    Case("mode-branch-right", "if self.training:\n  return NORM(True)\nelse:\n  return NORM(False)", on_batch=False),
    Case("only-in-training", "y = x\nif self.training:\n  y = NORM(True)\nreturn y", on_batch=False),
    Case("nested-mode-branch", "y = x\nif self.training:\n  pass\nelse:\n  if self.on:\n    y = NORM(True)\nreturn y"),
]


@pytest.mark.parametrize("case", BRANCHES, ids=str)
def test_branches(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


LOOPS = [
    Case("flag-changes-in-loop", "y = x\nt = False\nfor i in range(2):\n  y = NORM(t)\n  t = True\nreturn y", "unread"),
    Case(
        "flag-changes-in-while",
        "y = x\nt = False\ni = 0\nwhile torch.lt(i, 2):\n  y = NORM(t)\n  t = True\n  i = torch.add(i, 1)\nreturn y",
        "unread",
    ),
    Case(
        "flag-changes-behind-break",
        "t = False\nfor i in range(3):\n  t = True\n  if torch.eq(i, 0):\n    break\n  t = False\nreturn NORM(t)",
        "refused",
    ),
    Case(
        "flag-changes-through-a-second",
        "y = x\na = False\nb = False\nfor i in range(3):\n  y = NORM(a)\n  a = b\n  b = True\nreturn y",
        "unread",
    ),
    Case(
        "flag-changes-in-inner-loop",
        "y = x\nt = False\nfor i in range(2):\n  y = NORM(t)\n  for j in range(2):\n    t = True\nreturn y",
        "unread",
    ),
    Case(
        "flag-changes-in-inner-branch",
        "y = x\nt = False\nfor i in range(2):\n  y = NORM(t)\n  if self.on:\n    t = True\nreturn y",
        "unread",
    ),
    Case("flag-is-loop-variable", "y = x\nt = False\nfor t in [False, True]:\n  y = NORM(t)\nreturn y", "unread"),
    Case("flag-is-loop-variable-behind", "t = False\nfor t in [False, True]:\n  pass\nreturn NORM(t)", "unread"),
    Case("flag-in-loop-head", "y = x\nt = True\nwhile t:\n  y = NORM(t)\n  t = False\nreturn y", "unread"),
    Case("constant-in-loop", "y = x\nfor i in range(2):\n  y = NORM(True)\nreturn y"),
    Case("assigned-in-loop-before-use", "y = x\nt = False\nfor i in range(2):\n  t = True\n  y = NORM(t)\nreturn y"),
    Case("return-in-loop", "for i in range(2):\n  return NORM(True)\nreturn x"),
    Case("return-in-loop-of-eval", "for i in range(0):\n  return NORM(False)\nreturn NORM(True)", "unread"),
    Case("loop-shadows-a-name", "y = x\nfor bool in [1, 2]:\n  y = NORM(torch.gt(bool, 0))\nreturn y", "unread"),
    Case(
        "loop-over-modules",
        "y = x\nseveral = self.several\nfor layer in several:\n  y = (layer).forward(y, )\nreturn NORM(True)",
        "unread",
        loads=False,
    ),
    Case("comprehension", "flags = [True for i in range(1)]\nreturn NORM(flags[0])", "refused"),
    Case("augmented", "n = 0\nn += 1\nreturn NORM(bool(n))", "refused"),
    Case("operator-in-while-head", "i = 0\nwhile bool(torch.lt(torch.sum(NORM(True)), -1e9)):\n  i = 1\nreturn x"),
    Case("operator-in-for-head", "for i in range(torch.dim(NORM(True))):\n  pass\nreturn x"),
]


@pytest.mark.parametrize("case", LOOPS, ids=str)
def test_loops(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


ATTRIBUTES = [
    Case("flag-set", "self.training = True\nreturn NORM(self.training)", "unread"),
    Case("flag-set-behind", "y = NORM(self.off)\nself.off = True\nreturn y", "unread"),
    Case(
        "flag-set-by-another-method",
        "_0 = (self).change()\nreturn NORM(self.off)",
        "unread",
        methods="def change(SELF) -> NoneType:\n  self.off = True\n  return None\n",
    ),
    Case("flag-set-of-child", "bn = self.bn\nbn.training = True\nreturn (bn).forward(x, )", "unread"),
    Case(
        "flag-set-in-training", "if self.training:\n  self.off = True\nreturn NORM(self.off)", "unread", on_batch=False
    ),
    Case(
        "flag-set-by-exported-method",
        "return NORM(self.off)",
        "unread",
        methods="def change(SELF, to: bool) -> NoneType:\n  self.off = to\n  return None\n",
        on_batch=False,
    ),
    Case(
        "optional-set",
        "t = torch.__isnot__(self.maybe, None)\nself.maybe = None\nreturn NORM(t)",
        "unread",
        on_batch=False,
    ),
    Case("counter-set", "self.one = torch.add(self.one, 1)\nreturn NORM(True)"),
    Case(
        "tensor-set",
        "self.running_mean = torch.mul(self.running_mean, 1.)\nreturn (self.bn).forward(x, )",
        on_batch=False,
    ),
    Case("set-in-tuple", "self.off, y = (True, x)\nreturn NORM(self.off)", "unread"),
]


@pytest.mark.parametrize("case", ATTRIBUTES, ids=str)
def test_attributes(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


FUNCTIONS = [
    Case(
        "function",
        "return HERE.f(self, x, True, )",
        functions="def f(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "function-default",
        "return HERE.f(self, x, )",
        functions="def f(SELF, x: Tensor, t: bool=True) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "function-keyword",
        "return HERE.f(self, x, t=True)",
        functions="def f(SELF, x: Tensor, t: bool=False) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "function-name-kept",
        "f = HERE.f\nreturn f(self, x, t=True)",
        functions="def f(SELF, x: Tensor, t: bool=False) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "function-returns-flag",
        "return NORM(HERE.f())",
        functions="def f() -> bool:\n  return True\n",
    ),
    Case(
        "function-returns-in-branch",
        "return NORM(HERE.f(x))",
        "unread",
        functions="def f(x: Tensor) -> bool:\n  if torch.gt(torch.dim(x), 9):\n    return False\n  return True\n",
    ),
    Case(
        "function-returns-tuple",
        "a, b = HERE.f()\nreturn NORM(b)",
        functions="def f() -> Tuple[bool, bool]:\n  return (False, True)\n",
    ),
    Case(
        "function-in-function",
        "return HERE.g(self, x, )",
        functions=(
            "def f(SELF, x: Tensor, t: bool) -> Tensor:\n"
            "  return NORM(t)\n"
            "def g(SELF, x: Tensor) -> Tensor:\n"
            "  return HERE.f(self, x, True, )\n"
        ),
    ),
    Case("argument-of-forward", "return NORM(t)", "unread", parameters=", t: bool=True"),
    Case(
        "method",
        "return (self).other(x, True, )",
        methods="def other(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "method-called-twice",
        "y = (self).other(x, False, )\nreturn (self).other(y, True, )",
        methods="def other(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "method-kept",
        "other = self.other\nreturn other(x, True)",
        methods="def other(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "method-by-getattr",
        'return getattr(self, "other")(x, True)',
        methods="def other(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "local-function",
        "t = False\ndef inner():\n  return NORM(t)\nt = True\nf = fork(inner)\nreturn torch.wait(f)",
        on_batch=False,
    ),
    Case(
        "local-function-captures-early",
        "t = True\ndef inner():\n  return NORM(t)\nt = False\nf = fork(inner)\nreturn torch.wait(f)",
    ),
    Case(
        "forked-method",
        "f = fork((self).other, x, True)\nreturn torch.wait(f)",
        methods="def other(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case(
        "forked-function",
        "f = fork(HERE.f, self, x, True)\nreturn torch.wait(f)",
        functions="def f(SELF, x: Tensor, t: bool) -> Tensor:\n  return NORM(t)\n",
    ),
    Case("child", "bn = self.bn\nbn2 = bn\nreturn (bn2).forward(x, )", on_batch=False),
    Case("child-called-directly", "bn = self.bn\nreturn bn(x)", "unread", loads=False),
    Case(
        "child-through-index",
        "several = self.several\nlayer : __torch__.Any = several[0]\nreturn x",
        "told",
        loads=False,
    ),
    Case("child-in-tuple", "t = (self.bn, x)\nreturn (t[0]).forward(x, )", on_batch=False),
    Case("child-in-list", "l = [self.bn]\nreturn (l[0]).forward(x, )", "unread", on_batch=False),
    Case("child-in-dict", 'd = {"a": self.bn}\nreturn (d["a"]).forward(x, )', "unread", on_batch=False),
    Case(
        "child-by-branch",
        "if torch.gt(torch.size(x, 0), 1):\n  layer = self.bn\nelse:\n  layer = self.bn\nreturn (layer).forward(x, )",
        on_batch=False,
    ),
    Case(
        "child-handed-to-function",
        "return HERE.f(self.bn, x)",
        functions=(
            "def f(bn: __torch__.torch.nn.modules.batchnorm.BatchNorm2d, x: Tensor) -> Tensor:\n"
            "  return torch.batch_norm(x, None, None, bn.running_mean, bn.running_var, True, 0.1, 1e-5, True)\n"
        ),
    ),
]


@pytest.mark.parametrize("case", FUNCTIONS, ids=str)
def test_functions(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


OBJECT = """
class Thing:
  held : bool
  def __init__(self: HERE.Thing, held: bool) -> NoneType:
    self.held = held
    return None
  def norm(self: HERE.Thing, x: Tensor, m: Tensor, v: Tensor, t: bool) -> Tensor:
    return torch.batch_norm(x, None, None, m, v, t, 0.1, 1e-5, True)
  def __add__(self: HERE.Thing, x: Tensor) -> Tensor:
    return SPECIAL
  def __enter__(self: HERE.Thing) -> bool:
    return True
  def __exit__(self: HERE.Thing, a: Any, b: Any, c: Any) -> NoneType:
    return None
"""
HARMLESS, NORMALISES = (
    OBJECT.replace("SPECIAL", "x"),
    OBJECT.replace("SPECIAL", "torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, True)"),
)
MAKE = "o = HERE.Thing.__new__(HERE.Thing)\n_0 = (o).__init__(True, )\n"

OBJECTS = [
    Case("object-holds-flag", MAKE + "return NORM(o.held)", "unread", functions=HARMLESS),
    Case("object-norms", MAKE + "return (o).norm(x, self.running_mean, self.running_var, True, )", functions=HARMLESS),
    Case(
        "object-in-list",
        MAKE + "l = [o]\nreturn (l[0]).norm(x, self.running_mean, self.running_var, True, )",
        "unread",
        functions=HARMLESS,
    ),
    Case(
        "object-made-by-call",
        "o = HERE.Thing(True)\nreturn (o).norm(x, self.running_mean, self.running_var, True, )",
        functions=HARMLESS,
    ),
    Case("object-special-method", MAKE + "return o + x", "unread", functions=NORMALISES),
    Case("object-with", MAKE + "with o as t:\n  y = NORM(t)\nreturn y", functions=HARMLESS),
    Case(
        "object-handed-on",
        MAKE + "return HERE.f(o, self, x)",
        functions=HARMLESS
        + (
            "def f(o: HERE.Thing, SELF, x: Tensor) -> Tensor:\n"
            "  return (o).norm(x, self.running_mean, self.running_var, True, )\n"
        ),
    ),
    Case(
        "named-tuple",
        "p = HERE.Two(False, True)\nreturn NORM(p.b)",
        "unread",
        functions="class Two(NamedTuple):\n  a : bool\n  b : bool\n",
    ),
    Case(
        "named-tuple-index",
        "p = HERE.Two(False, True)\nreturn NORM(p[1])",
        "unread",
        functions="class Two(NamedTuple):\n  a : bool\n  b : bool\n",
    ),
    Case(
        "enum",
        "return NORM(torch.eq(HERE.E.A, HERE.E.A))",
        "unread",
        functions="class E(Enum):\n  A = 1\n  B = 2\n",
    ),
    Case(
        "enum-value",
        "return NORM(bool(HERE.E.A.value))",
        "unread",
        functions="class E(Enum):\n  A = 1\n  B = 2\n",
    ),
]


@pytest.mark.parametrize("case", OBJECTS, ids=str)
def test_objects(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


ARGS = "x, None, None, self.running_mean, self.running_var"
OPERATORS = [
    Case("ops-aten", f"return ops.aten.batch_norm({ARGS}, True, 0.1, 1e-5, True)"),
    Case("operator-kept", f"f = torch.batch_norm\nreturn f({ARGS}, True, 0.1, 1e-5, True)"),
    Case("operator-by-getattr", f'return getattr(torch, "batch_norm")({ARGS}, True, 0.1, 1e-5, True)'),
    Case("operator-by-escaped-getattr", f'return getattr(torch, "batch\\137norm")({ARGS}, True, 0.1, 1e-5, True)'),
    Case("namespace-kept", f"a = ops.aten\nreturn a.batch_norm({ARGS}, True, 0.1, 1e-5, True)"),
    Case("native", f"a, b, c = torch.native_batch_norm({ARGS}, True, 0.1, 1e-5)\nreturn a"),
    Case("legit", f"a, b, c = torch._native_batch_norm_legit({ARGS}, True, 0.1, 1e-5)\nreturn a"),
    Case(
        "legit-without-moments",
        "a, b, c = torch._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)\nreturn torch.add(a, NORM(False))",
    ),
    Case(
        "legit-no-training",
        f"a, b, c = torch._native_batch_norm_legit_no_training({ARGS}, 0.1, 1e-5)\nreturn a",
        on_batch=False,
    ),
    Case("impl-index", f"a, b, c, d, e = torch._batch_norm_impl_index({ARGS}, True, 0.1, 1e-5, True)\nreturn a"),
    Case("with-update", f"a, b, c, d = torch._batch_norm_with_update({ARGS}, 0.1, 1e-5)\nreturn a"),
    Case("no-update", f"a, b, c, d = torch._batch_norm_no_update({ARGS}, 0.1, 1e-5)\nreturn a", on_batch=False),
    Case(
        "update-statistics",
        "a, b = torch.batch_norm_update_stats(x, self.running_mean, self.running_var, 0.1)\nreturn NORM(False)",
        "unread",
        on_batch=False,
    ),
    Case(
        "copied-moments",
        NORM.format("True").replace("self.running_mean", "torch.detach(self.running_mean)").join(["return ", ""]),
    ),
    Case(
        "computed-moments",
        NORM.format("True").replace("self.running_mean", "torch.add(self.running_mean, 0)").join(["return ", ""]),
        "unread",
    ),
    Case(
        "moments-of-another",
        "bn = self.bn\nreturn " + NORM.format("True").replace("self.running_mean", "bn.running_mean"),
    ),
    Case(
        "moments-in-list",
        "l = [self.running_mean]\nreturn " + NORM.format("True").replace("self.running_mean", "l[0]"),
        "unread",
    ),
    Case("shadowed-torch", "torch = 1\nreturn NORM(True)", "unread", loads=False),
    Case(
        "operator-as-method",
        "a, b = (x).batch_norm_update_stats(self.running_mean, self.running_var, 0.1)\nreturn NORM(False)",
        "unread",
        loads=False,
    ),
    Case("shadowed-getattr", "getattr = self.bn\nreturn (getattr).forward(x, )", on_batch=False),
    Case("shadowed-annotate", "annotate = True\nreturn NORM(annotate)"),
    Case("shadowed-constants", "CONSTANTS = self.bn\nreturn NORM(torch.__not__(CONSTANTS.training))"),
    Case("shadowed-inf", "inf = True\nreturn NORM(inf)"),
]


@pytest.mark.parametrize("case", OPERATORS, ids=str)
def test_operators(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


TEXTS = [
    Case("comment", "# return x\nreturn NORM(True)  # False"),
    Case("comment-with-bracket", "t = True # (\nreturn NORM(t)"),
    Case("type-comment", "# type: (Tensor) -> Tensor\nreturn NORM(True)", "refused"),
    Case("hash-in-text", 't = torch.eq("#", "#")\nreturn NORM(t)'),
    Case("quote-in-text", "t = torch.eq(\"'\", '\\'')\nreturn NORM(t)"),
    Case("line-continued", "t = \\\n  True\nreturn NORM(t)", "refused"),
    Case("semicolon", "t = False; t = True\nreturn NORM(t)", "refused", loads=False),
    Case("statement-behind-colon", "if self.on: t = True\nreturn x", "refused", loads=False),
    Case("tab", "if self.on:\n\tt = True\nelse:\n\tt = False\nreturn NORM(t)", "refused"),
    Case("carriage-return", "t = True\r\nreturn NORM(t)", "refused"),
    Case("form-feed", "t = True\f\nreturn NORM(t)", "refused"),
    Case("number-with-underscore", "return NORM(bool(1_0))", "refused", loads=False),
    Case("hexadecimal", "return NORM(torch.eq(0x10, 16))", "refused"),
    Case("point-behind", "return NORM(bool(1.))"),
    Case("point-before", "return NORM(bool(.5))"),
    Case("large-exponent", "return NORM(torch.gt(1e400, 1e300))"),
    Case("word-like-true", "True1 = True\nreturn NORM(True1)"),
    Case("unicode-name", "tｒue = True\nreturn NORM(tｒue)", "refused", loads=False),
    Case("tripled-quotes", 't = torch.eq("""a""", "a")\nreturn NORM(t)', "refused"),
    Case("adjacent-texts", 't = torch.eq("a" "b", "ab")\nreturn NORM(t)', "refused"),
    Case("chained", "a = b = True\nreturn NORM(b)", "refused"),
    Case("deleted", "t = False\ndel t\nt = True\nreturn NORM(t)", "refused"),
    Case("global", "global t\nreturn NORM(True)", "refused", loads=False),
    Case("lambda", "f = lambda: True\nreturn NORM(f())", "refused", loads=False),
    Case("walrus", "return NORM((t := True))", "refused", loads=False),
    Case("starred", "t = (True,)\nreturn NORM(*t)", "refused"),
    Case("brackets", "return ((NORM(((True)))))"),
    Case("line-in-brackets", "t = (\nTrue\n    )\nreturn NORM(t)"),
    Case("trailing-comma", "t = True,\nreturn NORM(t[0])"),
    Case("negative-zero", "return NORM(torch.eq(-0, 0))"),
    Case(
        "method-twice",
        "return NORM(False)",
        "refused",
        methods="def forward(SELF, x: Tensor) -> Tensor:\n  return NORM(True)\n",
        loads=False,
    ),
    Case(
        "class-twice",
        "return NORM(False)",
        "refused",
        functions=(
            "class Plain(Module):\n"
            "  running_mean : Tensor\n"
            "  running_var : Tensor\n"
            "  def forward(SELF, x: Tensor) -> Tensor:\n"
            "    return NORM(True)\n"
        ),
    ),
    Case(
        "function-twice",
        "return HERE.f(self, x)",
        "refused",
        functions=(
            "def f(SELF, x: Tensor) -> Tensor:\n"
            "  return NORM(False)\n"
            "def f(SELF, x: Tensor) -> Tensor:\n"
            "  return NORM(True)\n"
        ),
    ),
]


@pytest.mark.parametrize("case", TEXTS, ids=str)
def test_texts(plain: Path, case: Case, tmp_path: Path) -> None:
    judge(plain, case, tmp_path)


# --- data and code that disagree ---------------------------------------------------------------------------

NORM_CLASS = "__torch__.torch.nn.modules.batchnorm.BatchNorm2d"
NORM_FILE = "code/__torch__/torch/nn/modules/batchnorm.py"
CALLS_CHILD = "return (self.bn).forward(x, )"


def _child(plain: Path, folder: Path) -> Path:
    """The archive with a forward that calls its child in the child's mode."""
    return deceiving(plain, Case("child", CALLS_CHILD), folder)


def test_class_of_an_attribute_in_code_and_data(plain: Path, tmp_path: Path) -> None:
    """torch compiles a call by the class the code declares, and runs it on an object of another."""
    path = _child(plain, tmp_path)

    def evil(text: str) -> str:
        copied = text.replace(NORM_CLASS, NORM_CLASS.replace("BatchNorm2d", "Evil")).replace(
            "class BatchNorm2d", "class Evil"
        )
        return text + copied.replace("bn_training, 0.1", "True, 0.1")

    declares = replacing((f"  bn : {NORM_CLASS}", f"  bn : {NORM_CLASS.replace('BatchNorm2d', 'Evil')}"))
    changed = edited(path, {NORM_FILE: evil, FILE: declares})
    assert any(call.training for call in behaviour(changed).eval)
    assert told(changed) == "refused"


def test_class_of_an_attribute_in_the_data_alone(plain: Path, tmp_path: Path) -> None:
    """An object of another class, of which torch runs no code."""
    path = _child(plain, tmp_path)

    def other(text: str) -> str:
        copied = text.replace(NORM_CLASS, NORM_CLASS.replace("BatchNorm2d", "Other12")).replace(
            "class BatchNorm2d", "class Other12"
        )
        return text + copied.replace("bn_training, 0.1", "True, 0.1")

    def first_class(data: bytes) -> bytes:
        return data.replace(b"batchnorm\nBatchNorm2d\n", b"batchnorm\nOther12\n", 1)

    changed = edited(path, {NORM_FILE: other, "data.pkl": first_class})
    assert told(changed) == "refused"


def test_module_inside_a_tuple_of_the_data(plain: Path, tmp_path: Path) -> None:
    """Neither eval() nor named_modules() comes there, and code does."""
    path = _child(plain, tmp_path)
    held = b"X\x05\x00\x00\x00maybe"

    def in_tuple(data: bytes) -> bytes:
        start = data.index(b"c" + NORM_CLASS.removesuffix(".BatchNorm2d").encode())
        end = data.index(b"ub", start) + 2
        assert data[end : end + 1] == b"q", "the object is remembered"
        number = data[end + 1 : end + 2]
        root = data.rindex(b"ub")  # behind all other attributes: of two values the last counts
        return data[:root] + held + b"(h" + number + b"t" + data[root:]

    declared = ("  maybe : NoneType", f"  maybe : Tuple[{NORM_CLASS}]")
    called = ("return (self.bn)", "return (self.maybe[0])")
    changed = edited(path, {"data.pkl": in_tuple, FILE: replacing(declared, called)})
    assert behaviour(changed).eval
    assert told(changed) == "unread"


def test_module_that_is_declared_optional(plain: Path, tmp_path: Path) -> None:
    """eval() passes it by: torch takes it for no child."""
    path = _child(plain, tmp_path)
    torch.jit.load(path).train().save(path.with_name("train.pt"))
    optional = (f"  bn : {NORM_CLASS}", f"  bn : Optional[{NORM_CLASS}]")
    cast = ("bn = self.bn\n", f"bn = unchecked_cast({NORM_CLASS}, self.bn)\n")
    changed = edited(path.with_name("train.pt"), {FILE: replacing(optional, cast)})
    assert any(call.training for call in behaviour(changed).eval)
    assert told(changed) == "refused"


def test_value_that_is_not_of_the_declared_type(plain: Path, tmp_path: Path) -> None:
    """torch does not compare them, and takes the bits for what the code says."""
    branch = "if self.off:\n  y = NORM(True)\nelse:\n  y = NORM(False)\nreturn y"
    path = deceiving(plain, Case("flag", branch), tmp_path)
    key = b"X\x03\x00\x00\x00off"

    def as_number(data: bytes) -> bytes:
        at = data.index(key)
        false = data.index(b"\x89", at)
        return data[:false] + b"K\x02" + data[false + 1 :]

    assert told(path) == "told"
    assert told(edited(path, {"data.pkl": as_number})) == "unread"


def test_attribute_that_the_code_calls_final(plain: Path, tmp_path: Path) -> None:
    """What the code declares a constant is one, whatever the data hold under its name."""
    path = deceiving(plain, Case("constant", "return NORM(self.off)"), tmp_path)
    changed = edited(path, {FILE: replacing(("  off : bool", "  off : Final[bool] = True"))})
    with pytest.raises(RuntimeError):
        torch.jit.load(changed)(batch())
    layer = next(layer for layer in read(str(changed)).layers if not layer.name)
    assert layer.baked_training is True


def test_flag_that_the_code_calls_final(plain: Path, tmp_path: Path) -> None:
    path = _child(plain, tmp_path)
    changed = edited(path, {NORM_FILE: replacing(("  training : bool\n", "  training : Final[bool] = True\n"))})
    # A constant cannot be asked for by the name of an attribute.
    with pytest.raises(RuntimeError):
        behaviour(changed)
    layer = next(layer for layer in read(str(changed)).layers if layer.name == "bn")
    assert layer.baked_training is True


def test_attribute_declared_twice(plain: Path, tmp_path: Path) -> None:
    changed = edited(plain, {FILE: replacing(("  off : bool", "  off : bool\n  off : bool"))})
    assert told(changed) == "refused"


def test_state_changed_after_the_object_was_made(plain: Path, tmp_path: Path) -> None:
    """torch copies the state of an object when it makes it: what is written into the dict later is nobody's."""
    path = _child(plain, tmp_path)
    torch.jit.load(path).train().save(path.with_name("train.pt"))
    remembered, again = b"r\x00\x10\x00\x00", b"j\x00\x10\x00\x00"
    flag = b"X\x08\x00\x00\x00training"

    def change(data: bytes) -> bytes:
        bn = data.index(b"X\x02\x00\x00\x00bn")
        state = data.index(b"}(", bn) + 1
        data = data[:state] + remembered + data[state:]
        assert data.endswith(b"ub.") or data.endswith(b"."), data[-20:]
        root = data.rindex(b"ub")
        extra = b"X\x05\x00\x00\x00extra" + again + b"(" + flag + b"\x89u"
        return data[:root] + extra + data[root:]

    train = path.with_name("train.pt")
    changed = edited(train, {"data.pkl": change})
    loaded = torch.jit.load(changed)
    assert loaded.bn.training is True
    assert told(train) == "told"
    assert told(changed) == "refused"


def test_constant_of_another_type(plain: Path, tmp_path: Path) -> None:
    """The table of constants holds what its pickle says, not only tensors."""
    path = deceiving(plain, Case("constant", "return NORM(CONSTANTS.c0)"), tmp_path)
    changed = edited(path, {"constants.pkl": lambda data: b"\x80\x02(\x88t."})
    assert any(call.training for call in behaviour(changed).eval)
    assert told(changed) == "told"
    assert_behaves(changed)


@pytest.mark.parametrize("spelling", ["d0", "c00", "c_0", "c1", "c99999999999999999999", "c"])
def test_constants_by_other_names(plain: Path, tmp_path: Path, spelling: str) -> None:
    path = deceiving(plain, Case("constant", f"return NORM(CONSTANTS.{spelling})"), tmp_path)
    changed = edited(path, {"constants.pkl": lambda data: b"\x80\x02(\x88t."})
    assert told(changed) == "refused"


def test_code_under_a_name_in_other_letters(plain: Path, tmp_path: Path) -> None:
    """torch looks members up without regard to case."""
    renamed = tmp_path / "renamed.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(renamed, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename.replace("script_networks.py", "SCRIPT_networks.py"), old.read(entry))
    torch.jit.load(renamed)
    assert told(renamed) == "refused"


def test_second_model_in_the_form_of_old_versions(plain: Path, tmp_path: Path) -> None:
    """torch looks for model.json first, and would not read the rest."""
    changed = edited(plain, {"model.json": "{}"}, name=f"both-{tmp_path.name}.pt")
    with pytest.raises(RuntimeError):
        torch.jit.load(changed)
    assert told(changed) == "refused"


def test_class_that_sets_its_own_state(tmp_path: Path) -> None:
    """Loading runs code of the archive, which leaves its attributes as it likes."""
    path = tmp_path / "m.pt"
    torch.jit.script(filled(Stateful()).eval()).save(path)
    assert any(call.training for call in behaviour(path).eval)
    assert told(path) == "unread"


def test_hook_in_class_and_file(archives: Path) -> None:
    """A hook is printed twice, in its class and as a function; torch runs the one in the class."""
    path = archives / "hooked.pt"
    call = "return (extra).forward(output, )"
    training = (
        "return torch.batch_norm(output, None, None, extra.running_mean, extra.running_var, True, 0.1, 1e-5, True)"
    )
    in_class = edited(path, {FILE: replacing((f"    {call}", f"    {training}"))}, "class.pt")
    in_file = edited(path, {FILE.replace(".py", "/Hooked.py"): replacing((f"  {call}", f"  {training}"))}, "file.pt")
    assert any(seen.training for seen in behaviour(in_class).eval)
    assert not any(seen.training for seen in behaviour(in_file).eval)
    assert_behaves(in_class)
    assert_behaves(in_file)


def test_functions_that_call_themselves(plain: Path, tmp_path: Path) -> None:
    case = Case(
        "recursion",
        "return HERE.f(self, x)",
        functions="def f(SELF, x: Tensor) -> Tensor:\n  return HERE.f(self, x)\n",
    )
    assert told(deceiving(plain, case, tmp_path)) == "refused"
