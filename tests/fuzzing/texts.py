"""Mutations of text: JSON and the code TorchScript keeps, token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from tests.fuzzing.pieces import INTEGERS, RUNS, Change, Pieces, Whole, cut_off

# --- JSON --------------------------------------------------------------------------------------------------

_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+|\s+|"')
_JSON_VALUES: tuple[bytes, ...] = (
    *(b"null", b"true", b"false", b'""', b"[]", b"{}", b"0", b"-1", b"1.5", b"1e400", b"-0", b"NaN", b"Infinity"),
    *(str(number).encode() for number in INTEGERS),
    *(
        b"1" * 5000,
        b"1e5",
        b"[0]",
        b"[[]]",
        b'{"a":1}',
        b'"\\ud800"',
        b'"\xff"',
        b'"\\u0000"',
        b'"' + b"x" * 5000 + b'"',
    ),
    *(b"[" * 2000, b'{"a":' * 2000, b"[" * 100_000, b'"F32"', b'"F64"', b'"BF16"', b'"I64"', b'"running_var"'),
    *(
        b'"dtype"',
        b'"shape"',
        b'"data_offsets"',
        b'"__metadata__"',
        b'"weight_map"',
        b'"../x.safetensors"',
        b'"/etc/x"',
    ),
)


def json_tokens(text: bytes) -> list[bytes]:
    """Brackets, commas, strings, numbers and the white space between them."""
    return _JSON_TOKEN.findall(text)


def _subtree(pieces: Pieces, start: int) -> int:
    """The end of the JSON value that begins at a piece."""
    depth = 0
    for place in range(start, min(len(pieces), start + 400)):
        depth += (pieces[place] in (b"[", b"{")) - (pieces[place] in (b"]", b"}"))
        if depth <= 0:
            return place + 1
    return start + 1


def _value_place(random: Random, pieces: Pieces) -> int | None:
    for _ in range(24):
        place = random.randrange(len(pieces)) if pieces else 0
        if place < len(pieces) and pieces[place] not in (b",", b":", b"]", b"}") and pieces[place].strip():
            return place
    return None


def replace_json_value(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Another value in the place of one, or of a key."""
    place = _value_place(random, pieces)
    if place is not None:
        pieces[place : _subtree(pieces, place)] = [random.choice(_JSON_VALUES)]


def tweak_json_number(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A number near the one that stands there."""
    for _ in range(24):
        place = random.randrange(len(pieces)) if pieces else 0
        if place < len(pieces) and pieces[place].isdigit() and len(pieces[place]) < 20:
            known = int(pieces[place])
            pieces[place] = b"%d" % random.choice((known + 1, known - 1, -known, known * 2, known + 4, known - 4))
            return


def copy_json_subtree(random: Random, pieces: Pieces, wholes: Sequence[Whole]) -> None:
    """A value of this or another seed in the place of one: keys that occur twice come of it too."""
    donor = list(random.choice(wholes).pieces) if random.random() < 0.5 else pieces
    here, there = _value_place(random, pieces), _value_place(random, donor)
    if here is not None and there is not None:
        pieces[here : _subtree(pieces, here)] = donor[there : _subtree(donor, there)]


def drop_json_entry(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """One entry of a list or an object, with its comma."""
    commas = [place for place, piece in enumerate(pieces) if piece == b","]
    if commas:
        start = random.choice(commas)
        end = next((place for place in range(start + 1, len(pieces)) if pieces[place] in (b",", b"}", b"]")), start + 1)
        del pieces[start:end]


def double_json_entry(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """An entry of an object twice, the second time with another value."""
    colons = [place for place, piece in enumerate(pieces) if piece == b":" and place]
    if colons:
        colon = random.choice(colons)
        pieces[colon - 1 : colon - 1] = [pieces[colon - 1], b":", random.choice(_JSON_VALUES), b","]


JSON_CHANGES: tuple[Change, ...] = (
    *RUNS,
    *(replace_json_value, replace_json_value, replace_json_value, tweak_json_number, tweak_json_number),
    *(copy_json_subtree, copy_json_subtree, drop_json_entry, double_json_entry, cut_off),
)

# --- code --------------------------------------------------------------------------------------------------

_CODE_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|\w+|\n[ ]*|[ ]+|[^\w\s]|\s')
_CODE_WORDS: tuple[bytes, ...] = (
    *(b"def", b"class", b"return", b"if", b"else", b"for", b"while", b"in", b"self", b"torch", b"batch_norm", b"ops"),
    *(
        b"forward",
        b"training",
        b"running_mean",
        b"running_var",
        b"True",
        b"False",
        b"None",
        b"__parameters__",
        b"NoneType",
    ),
    *(
        b"__buffers__",
        b"__torch__",
        b"getattr",
        b"annotate",
        b"unchecked_cast",
        b"uninitialized",
        b"CONSTANTS",
        b"prim",
    ),
    *(b"(", b")", b"[", b"]", b"{", b"}", b",", b".", b":", b"=", b"->", b"+", b"-", b"*", b"\n", b"\n  ", b"\n    "),
    *(
        b" ",
        b"\t",
        b"#",
        b'"',
        b"'",
        b'"""',
        b"\\",
        b"\x00",
        b"\xff",
        b"1",
        b"0.1",
        b"1e999",
        b"-1",
        b"0x",
        b"1" * 5000,
    ),
    *(
        b"(" * 3000,
        b"[" * 3000,
        b"-" * 3000,
        b"a." * 3000,
        b"\n" + b" " * 3000,
        b"x" * 5000,
        "é".encode(),
        "١".encode(),
    ),
)


def code_tokens(code: bytes) -> list[bytes]:
    """Words, strings, marks, and line ends with the next line's indent."""
    return _CODE_TOKEN.findall(code)


def put_word(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A word of the language before a token or in its place."""
    place = random.randrange(len(pieces) + 1)
    pieces[place : place + random.randrange(2)] = [random.choice(_CODE_WORDS)]


def exchange_words(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A word of this text in the place of another."""
    words = [place for place, piece in enumerate(pieces) if piece[:1].isalnum() or piece[:1] == b"_"]
    if words:
        pieces[random.choice(words)] = pieces[random.choice(words)]


def lines_of(pieces: Pieces) -> list[int]:
    """Where lines begin."""
    return [place for place, piece in enumerate(pieces) if piece.startswith(b"\n")]


def move_line(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """A line dropped, said twice, or said elsewhere."""
    starts = lines_of(pieces)
    if len(starts) < 3:
        return
    index = random.randrange(len(starts) - 1)
    line = pieces[starts[index] : starts[index + 1]]
    target = random.choice(starts)
    if random.random() < 0.5:
        del pieces[starts[index] : starts[index + 1]]
    if random.random() < 0.7:
        pieces[target:target] = line


CODE_CHANGES: tuple[Change, ...] = (
    *RUNS,
    put_word,
    put_word,
    put_word,
    exchange_words,
    exchange_words,
    move_line,
    cut_off,
)
