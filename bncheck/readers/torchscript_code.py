"""The code text of a TorchScript archive, parsed into classes, functions and statements; nothing is compiled.

PyTorch prints its intermediate representation as a small part of Python, which is all that is understood here: whatever
else PyTorch's own parser or Python's would read into a text ends the reading. Python's parser is not asked, for it can
be made to crash. The printer, and the lexer that reads its output back:
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/serialization/python_print.cpp
https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/frontend/lexer.h
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bncheck.core.errors import UnreadableFile

Scalar = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, or the first part of a dotted name."""

    name: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """``value.name``."""

    value: Expression
    name: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant written out."""

    value: Scalar


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """``function(arguments, keyword=...)``; compared by identity, as a place in the code."""

    function: Expression
    arguments: tuple[Expression, ...]
    keywords: tuple[tuple[str, Expression], ...] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """``value[key]``."""

    value: Expression
    key: Expression


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    """A list, dict, slice, operator or odd literal: its parts are followed, its value is not."""

    parts: tuple[Expression, ...]


Expression = Name | Attribute | Literal | Call | Index | Several | Compound


@dataclass(frozen=True, slots=True)
class Assign:
    """``target = value``; several targets are one ``Several``."""

    target: Expression
    value: Expression


@dataclass(frozen=True, slots=True)
class If:
    """``if condition: … else: …``."""

    condition: Expression
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Loop:
    """``while head:`` or ``for target in head:``; compared by identity, as a place in the code."""

    target: Expression | None
    head: Expression
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class With:
    """``with head as target:``."""

    head: Expression
    target: Expression | None
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Return:
    """``return value``."""

    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """``def name(parameters): …``."""

    name: str
    parameters: tuple[Parameter, ...]
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """``name: type = default``; None where one is not given."""

    name: str
    type: Expression | None
    default: Expression | None


Statement = Assign | If | Loop | With | Return | Function | Expression


@dataclass(frozen=True, slots=True)
class ClassCode:
    """A class.

    Attributes:
        name: without its module.
        base: ``Module``, ``NamedTuple``, ``Enum``, ``Interface`` or ``ModuleInterface``; None for a plain class.
        methods: by name; hooks of modules are among them.
        attributes: declared attributes and their types; the values are in the pickle.
        constants: what is declared ``Final``, and the members of an Enum. A tuple or list is None: nobody asks.
        hooks: methods that are called around ``forward``.
    """

    name: str
    base: str | None
    methods: Mapping[str, Function]
    attributes: Mapping[str, Expression]
    constants: Mapping[str, Literal | None]
    hooks: frozenset[str]


@dataclass(frozen=True, slots=True)
class CodeFile:
    """What one file of code defines."""

    classes: Mapping[str, ClassCode]
    functions: Mapping[str, Function]


def parse_code(text: str, nesting: int) -> CodeFile:
    """Parse one file.

    Args:
        text: the code.
        nesting: brackets and blocks inside one another.

    Raises:
        UnreadableFile: the text is not what PyTorch prints, or nests deeper.
    """
    try:
        return _Parser(_lines(text), nesting).file()
    except RecursionError:  # called from deep inside another program
        raise UnreadableFile("it nests too deeply") from None


def dotted(expression: Expression) -> str | None:
    """``__torch__.a.b`` as text; None for anything but a dotted name."""
    parts: list[str] = []
    while isinstance(expression, Attribute):
        parts.append(expression.name)
        expression = expression.value
    if not isinstance(expression, Name):
        return None
    parts.append(expression.name)
    return ".".join(reversed(parts))


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    indent: int
    tokens: Sequence[str]


# PyTorch's identifiers and digits are ASCII. Blanks are spaces: it takes other white space for one column of indent.
# Every other character is left over as a token of its own, to be refused.
_TOKEN = re.compile(
    r"""(?:[ ]+|\#(?![ ]type:).*)|
    (   "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*'
    |   (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?j?
    |   [A-Za-z_][A-Za-z0-9_]*
    |   ->
    |   .
    )""",
    re.VERBOSE | re.DOTALL,
)
_KNOWN = re.compile(r"""["'].+|[0-9A-Za-z_].*|\..*|->|[-+*/%()\[\]{},:=<>&|]""", re.DOTALL)


def _lines(text: str) -> Iterator[_Line]:
    """Logical lines: a line break inside brackets ends none. No token reaches across a line break."""
    if text.startswith(" "):
        raise UnreadableFile("line 1: it is indented")
    seen: set[str] = set()
    tokens: list[str] = []
    start = indent = depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        found = list(filter(None, _TOKEN.findall(line)))
        if not seen.issuperset(found):
            _check(found, number)
            seen.update(found)
        if not tokens:
            start, indent = number, len(line) - len(line.lstrip(" "))
        tokens += found
        depth += _opened(found)
        if tokens and depth <= 0:
            yield _Line(start, indent, tokens)
            tokens, depth = [], 0
    if tokens:
        yield _Line(start, indent, tokens)


def _check(tokens: Sequence[str], line: int) -> None:
    for token in tokens:
        if not _KNOWN.fullmatch(token) or not (token.isascii() or token[0] in "\"'"):
            raise UnreadableFile(f"line {line}: {token[:20]!r} is no TorchScript")


def _opened(tokens: Sequence[str]) -> int:
    opened = tokens.count("(") + tokens.count("[") + tokens.count("{")
    return opened - tokens.count(")") - tokens.count("]") - tokens.count("}")


_END = ""  # stands behind the last token of a line
_OPERATORS = frozenset("+-*/%<>&|")

# Words of the language that are no names; the printer writes only those with a meaning in this parser.
_RESERVED = frozenset(
    (
        *("def", "class", "if", "else", "elif", "while", "for", "in", "is", "return", "and", "or", "not", "global"),
        *("raise", "assert", "break", "continue", "del", "pass", "import", "with", "as", "Ellipsis"),
    )
)


class _Parser:
    def __init__(self, lines: Iterator[_Line], nesting: int) -> None:
        self._lines = lines
        self._next: _Line | None = next(lines, None)
        self._line = _Line(1, 0, ())
        self._nesting = nesting
        self._depth = 0
        self._at = 0
        self._token = _END
        self._names: dict[str, Name] = {}
        self._literals: dict[str, Expression] = {}

    # --- lines -----------------------------------------------------------------------------------

    def file(self) -> CodeFile:
        classes: dict[str, ClassCode] = {}
        functions: dict[str, Function] = {}
        while self._next is not None:
            indent = self._begin()
            if indent:
                raise self._wrong()
            match self._token:
                case "class":
                    made = self._class(indent)
                    self._once(made.name, classes, functions)
                    classes[made.name] = made
                case "def":
                    function = self._function(indent)
                    self._once(function.name, classes, functions)
                    functions[function.name] = function
                case "op_version_set" | "import":  # of versions before 1.5
                    pass
                case _:
                    raise self._wrong()
        return CodeFile(classes, functions)

    def _once(self, name: str, *defined: Mapping[str, object]) -> None:
        """PyTorch never prints a name twice, and readers differ in which of two definitions they take."""
        if any(name in earlier for earlier in defined):
            raise UnreadableFile(f"line {self._line.number}: {name[:80]!r} is defined twice")

    def _begin(self) -> int:
        """Go to the next line; its indent."""
        assert self._next is not None
        self._line, self._next = self._next, next(self._lines, None)
        self._at = 0
        self._token = self._line.tokens[0]
        return self._line.indent

    def _advance(self) -> str:
        taken = self._token
        self._at += 1
        tokens = self._line.tokens
        self._token = tokens[self._at] if self._at < len(tokens) else _END
        return taken

    def _expect(self, token: str) -> None:
        if self._advance() != token:
            raise self._wrong()

    def _identifier(self) -> str:
        token = self._advance()
        if not token.isidentifier() or token in _RESERVED or token in _WORDS:
            raise self._wrong()
        return token

    def _wrong(self) -> UnreadableFile:
        return UnreadableFile(
            f"line {self._line.number}: {' '.join(self._line.tokens[:20])[:80]!r} is no TorchScript bncheck knows"
        )

    def _following(self, indent: int) -> Iterator[int]:
        """Each line of a body that is indented deeper than ``indent``, by its own indent, which all share."""
        if self._token != _END:
            raise self._wrong()
        own = self._next.indent if self._next is not None else 0
        if own <= indent:
            raise self._wrong()
        while self._next is not None and self._next.indent > indent:
            if self._next.indent != own:
                raise UnreadableFile(f"line {self._next.number}: its indent fits no block")
            yield self._begin()

    def _nested(self) -> None:
        self._depth += 1
        if self._depth > self._nesting:
            raise UnreadableFile(f"line {self._line.number}: it nests too deeply")

    # --- definitions -----------------------------------------------------------------------------

    def _class(self, indent: int) -> ClassCode:
        self._expect("class")
        name = self._identifier()
        base: str | None = None
        if self._token == "(":
            self._advance()
            base = self._identifier()
            self._expect(")")
        self._expect(":")
        methods: dict[str, Function] = {}
        attributes: dict[str, Expression] = {}
        constants: dict[str, Literal | None] = {}
        hooks: set[str] = set()
        for inner in self._following(indent):
            match self._token:
                case "def":
                    method = self._function(inner)
                    self._once(method.name, methods, attributes, constants)
                    methods[method.name] = method
                case "pass":
                    self._advance()
                case "__parameters__" | "__buffers__" | "__forward_hooks__" | "__forward_pre_hooks__":
                    kind, names = self._name_list()
                    hooks.update(names if kind.startswith("__forward_") else ())
                case _:
                    self._declaration(methods, attributes, constants)
            self._end_of_line()
        return ClassCode(name, base, methods, attributes, constants, frozenset(hooks))

    def _name_list(self) -> tuple[str, list[str]]:
        """``__parameters__ = ["weight", "bias", ]``."""
        kind = self._advance()
        self._expect("=")
        value = self._expression()
        match value:
            case Compound(parts=parts):
                names = [part.value for part in parts if isinstance(part, Literal) and isinstance(part.value, str)]
                if len(names) == len(parts):
                    return kind, names
        raise self._wrong()

    def _declaration(
        self,
        methods: Mapping[str, object],
        attributes: dict[str, Expression],
        constants: dict[str, Literal | None],
    ) -> None:
        """``name : type``, ``name : Final[type] = constant``, ``__annotations__["0"] = type``, or ``RED = 0``."""
        name = self._identifier()
        if name == "__annotations__":
            self._annotation(methods, attributes, constants)
            return
        self._once(name, methods, attributes, constants)
        declared: Expression | None = None
        if self._token == ":":
            self._advance()
            declared = self._expression()
        if self._token == "=":
            self._advance()
            value = self._several()
            constants[name] = value if isinstance(value, Literal) else None
        elif declared is not None:
            attributes[name] = declared
        else:
            raise self._wrong()

    def _annotation(
        self,
        methods: Mapping[str, object],
        attributes: dict[str, Expression],
        constants: Mapping[str, object],
    ) -> None:
        """Behind ``__annotations__``: attributes whose names are no identifiers."""
        if self._token == "=":  # __annotations__ = []
            self._advance()
            self._expression()
            return
        self._expect("[")
        key = self._expression()
        self._expect("]")
        self._expect("=")
        if not (isinstance(key, Literal) and isinstance(key.value, str)):
            raise self._wrong()
        self._once(key.value, methods, attributes, constants)
        attributes[key.value] = self._expression()

    def _function(self, indent: int) -> Function:
        self._expect("def")
        name = self._identifier()
        self._expect("(")
        parameters: list[Parameter] = []
        while self._token != ")":
            parameters.append(self._parameter())
            if self._token != ")":
                self._expect(",")
        self._expect(")")
        if self._token == "->":
            self._advance()
            self._expression()
        self._expect(":")
        if len({parameter.name for parameter in parameters}) < len(parameters):
            raise self._wrong()
        return Function(name, tuple(parameters), self._body(indent))

    def _parameter(self) -> Parameter:
        name = self._identifier()
        declared = default = None
        if self._token == ":":
            self._advance()
            declared = self._expression()
        if self._token == "=":
            self._advance()
            default = self._expression()
        return Parameter(name, declared, default)

    # --- statements ------------------------------------------------------------------------------

    def _body(self, indent: int) -> tuple[Statement, ...]:
        self._nested()
        statements: list[Statement] = []
        for inner in self._following(indent):
            statement = self._statement(inner)
            if statement is not None:
                statements.append(statement)
            self._end_of_line()
        self._depth -= 1
        return tuple(statements)

    def _end_of_line(self) -> None:
        if self._token != _END:
            raise self._wrong()

    def _statement(self, indent: int) -> Statement | None:
        match self._token:
            case "pass":
                self._advance()
                return None
            case "return":
                self._advance()
                return Return(self._several() if self._token != _END else Literal(None))
            case "if":
                return self._if(indent)
            case "while":
                self._advance()
                head = self._expression()
                self._expect(":")
                return Loop(None, head, self._body(indent))
            case "for":
                return self._for(indent)
            case "with":
                return self._with(indent)
            case "def":
                return self._function(indent)
        return self._assignment()

    def _if(self, indent: int) -> If:
        self._advance()
        condition = self._expression()
        self._expect(":")
        then = self._body(indent)
        following = self._next
        if following is None or following.indent != indent or list(following.tokens) != ["else", ":"]:
            return If(condition, then, ())
        self._begin()
        self._advance()
        self._expect(":")
        return If(condition, then, self._body(indent))

    def _for(self, indent: int) -> Loop:
        self._advance()
        target = self._several("in")
        self._expect("in")
        head = self._expression()
        self._expect(":")
        return Loop(target, head, self._body(indent))

    def _with(self, indent: int) -> With:
        self._advance()
        head = self._expression()
        target: Expression | None = None
        if self._token == "as":
            self._advance()
            target = self._name(self._identifier())
        self._expect(":")
        return With(head, target, self._body(indent))

    def _assignment(self) -> Statement:
        left = self._several("=", ":", _END)
        if self._token == ":":  # an annotated assignment
            self._advance()
            self._expression()
            if self._token != "=":
                raise self._wrong()
        if self._token == _END:
            return left
        self._expect("=")
        if not _is_target(left):
            raise self._wrong()
        return Assign(left, self._several())

    def _several(self, *ends: str) -> Expression:
        """What stands before one of ``ends``, the end of the line if none is given; with a comma, a tuple."""
        ends = ends or (_END,)
        items = [self._expression()]
        comma = False
        while self._token not in ends:
            self._expect(",")
            comma = True
            if self._token not in ends:
                items.append(self._expression())
        return Several(tuple(items)) if comma else items[0]

    # --- expressions -----------------------------------------------------------------------------

    def _expression(self) -> Expression:
        self._nested()
        value = self._operand()
        if self._token in _OPERATORS:
            parts = [value]
            while self._token in _OPERATORS:
                self._advance()
                parts.append(self._operand())
            value = Compound(tuple(parts))
        self._depth -= 1
        return value

    def _operand(self) -> Expression:
        if self._token == "-":
            self._advance()
            self._nested()
            operand = self._operand()
            self._depth -= 1
            match operand:
                case Literal(value=int() | float() as number) if not isinstance(number, bool):
                    return Literal(-number)
            return Compound((operand,))
        value = self._atom()
        while True:
            match self._token:
                case ".":
                    self._advance()
                    value = Attribute(value, self._identifier())
                case "(":
                    value = self._call(value)
                case "[":
                    self._advance()
                    value = Index(value, self._subscript())
                case _:
                    return value

    def _atom(self) -> Expression:
        token = self._advance()
        match token:
            case "(":
                return self._parenthesised()
            case "[":
                return Compound(self._parts("]", (",",)))
            case "{":
                return Compound(self._parts("}", (",", ":")))
        known = self._literals.get(token)
        if known is None:
            if token.isidentifier() and token not in _RESERVED and token not in _WORDS:
                return self._name(token)
            known = self._literals[token] = self._literal(token)
        return known

    def _name(self, name: str) -> Name:
        return self._names.setdefault(name, Name(name))

    def _literal(self, token: str) -> Expression:
        if token in _WORDS:
            return Literal(_WORDS[token])
        if token[:1] in ("'", '"'):
            return _text(token[1:-1])
        if token[:1].isdigit() or (token[:1] == "." and len(token) > 1):
            return self._number(token)
        raise self._wrong()

    def _number(self, token: str) -> Expression:
        if token.endswith("j"):
            return Compound(())
        if not token.isdecimal():
            return Literal(float(token))
        # A leading zero makes it octal for PyTorch, which never prints one; its integers have 64 bits.
        if (token[0] == "0" and len(token) > 1) or len(token) > _LONGEST_INTEGER:
            raise self._wrong()
        return Literal(int(token))

    def _parenthesised(self) -> Expression:
        if self._token == ")":
            self._advance()
            return Several(())
        value = self._several(")")
        self._advance()
        return value

    def _subscript(self) -> Expression:
        """What stands in ``value[...]``: a key, or several, or slices."""
        first = None if self._token in (":", "]") else self._expression()
        if first is not None and self._token == "]":
            self._advance()
            return first
        rest = self._parts("]", (",", ":"))
        return Compound(rest if first is None else (first, *rest))

    def _parts(self, closing: str, separators: tuple[str, ...]) -> tuple[Expression, ...]:
        """Values between brackets, up to the closing one; what separates them does not matter."""
        parts: list[Expression] = []
        while self._token != closing:
            if self._token in separators:
                self._advance()
            else:
                parts.append(self._expression())
                if self._token != closing and self._token not in separators:
                    raise self._wrong()
        self._advance()
        return tuple(parts)

    def _call(self, function: Expression) -> Call:
        self._expect("(")
        arguments: list[Expression] = []
        keywords: list[tuple[str, Expression]] = []
        while self._token != ")":
            value = self._expression()
            if self._token == "=":
                self._advance()
                if not isinstance(value, Name) or any(value.name == name for name, _ in keywords):
                    raise self._wrong()
                keywords.append((value.name, self._expression()))
            else:
                arguments.append(value)
            if self._token != ")":
                self._expect(",")
        self._advance()
        return Call(function, tuple(arguments), tuple(keywords))


def _is_target(expression: Expression) -> bool:
    match expression:
        case Name() | Attribute() | Index():
            return True
        case Several(items=items):
            return all(_is_target(item) for item in items)
    return False


_ESCAPE = re.compile(r"\\([0-7]{3}|.)")
# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/jit/frontend/parse_string_literal.h
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "t": "\t", "v": "\v"}


def _text(quoted: str) -> Expression:
    """A string; its value stays open where PyTorch's own reader would stumble over an escape."""
    known = True

    def plain(match: re.Match[str]) -> str:
        nonlocal known
        escape = match.group(1)
        code = int(escape, 8) if len(escape) == 3 else 0
        known = known and (escape in _ESCAPED or 0 < code < 0x80)
        return _ESCAPED.get(escape) or chr(code)

    value = _ESCAPE.sub(plain, quoted)
    return Literal(value) if known else Compound(())


_WORDS: Mapping[str, bool | None] = {"None": None, "True": True, "False": False}
_LONGEST_INTEGER = 20  # digits
