"""Mutations of any file: of its bytes, and of the sequence of pieces (opcodes, tokens) a format knows it as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# Where signs, widths, C types, doubles and this project's own bounds end.
INTEGERS: tuple[int, ...] = (
    *(-1, 0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 127, 128, 200, 255, 256, 1000, 4096, 65_535, 65_536),
    *(2**22, 2**22 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48, 2**53, 2**60 - 1, 2**60, 2**61 - 1),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**18, 10**30, -2, -128, -(2**31), -(2**63), -(2**63) - 1),
)

Pieces = list[bytes]


@dataclass(frozen=True, slots=True)
class Whole:
    """A seed as pieces that can be changed, and how a file is made of them again."""

    pieces: tuple[bytes, ...]
    assemble: Callable[[Sequence[bytes]], bytes]


Change = Callable[[Random, Pieces, Sequence[Whole]], None]
"""Changes pieces in place; the wholes are all seeds of the format, to take from."""

Maker = Callable[[Random], bytes]
"""Makes one input."""


def joined(pieces: Sequence[bytes]) -> bytes:
    """The pieces are the file."""
    return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class PieceMaker:
    """Inputs that are a seed with a few pieces changed, and now and then a few bytes as well.

    Attributes:
        wholes: the seeds.
        changes: one is drawn for each mutation; a change that stands twice is drawn twice as often.
    """

    wholes: Sequence[Whole]
    changes: Sequence[Change]

    def __call__(self, random: Random) -> bytes:
        """One input."""
        whole = random.choice(self.wholes)
        pieces = list(whole.pieces)
        for _ in range(how_many(random)):
            random.choice(self.changes)(random, pieces, self.wholes)
        if random.random() < 0.05:
            place = random.randrange(len(pieces) + 1)
            pieces[place:] = [
                change_bytes(random, piece) if piece and not index else piece
                for index, piece in enumerate(pieces[place:])
            ]
        made = whole.assemble(pieces)
        return change_bytes(random, made) if random.random() < 0.08 else made


def how_many(random: Random) -> int:
    """How many mutations one input gets: mostly few, so that what they did is not hidden by the next."""
    count = 1
    while count < 12 and random.random() < 0.45:
        count += 1
    return count


# --- pieces ------------------------------------------------------------------------------------------------


def _run(random: Random, count: int) -> tuple[int, int]:
    start = random.randrange(count) if count else 0
    return start, min(count, start + (1 if random.random() < 0.6 else random.randint(1, 12)))


def delete_run(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Take some away."""
    start, end = _run(random, len(pieces))
    del pieces[start:end]


def duplicate_run(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Say some twice, or a thousand times."""
    start, end = _run(random, len(pieces))
    times = 1 if random.random() < 0.95 else random.choice((10, 100, 1000))
    pieces[end:end] = pieces[start:end] * times


def move_run(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Say some elsewhere."""
    start, end = _run(random, len(pieces))
    taken = pieces[start:end]
    del pieces[start:end]
    place = random.randrange(len(pieces) + 1)
    pieces[place:place] = taken


def swap_two(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Exchange two pieces."""
    if pieces:
        first, second = random.randrange(len(pieces)), random.randrange(len(pieces))
        pieces[first], pieces[second] = pieces[second], pieces[first]


def splice_run(random: Random, pieces: Pieces, wholes: Sequence[Whole]) -> None:
    """Put some of another seed in."""
    donor = random.choice(wholes).pieces
    start, end = _run(random, len(donor))
    place = random.randrange(len(pieces) + 1)
    replaced = random.choice((0, end - start))
    pieces[place : place + replaced] = donor[start:end]


def cut_off(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """End early."""
    del pieces[random.randrange(len(pieces) + 1) :]


def change_one_piece(random: Random, pieces: Pieces, _: Sequence[Whole]) -> None:
    """Change bytes of one piece."""
    if pieces:
        place = random.randrange(len(pieces))
        pieces[place] = change_bytes(random, pieces[place])


RUNS: tuple[Change, ...] = (delete_run, duplicate_run, move_run, swap_two, splice_run, change_one_piece)


# --- bytes -------------------------------------------------------------------------------------------------


def change_bytes(random: Random, data: bytes) -> bytes:
    """Flip, overwrite, insert, delete, duplicate or cut bytes, once or a few times."""
    made = bytearray(data)
    for _ in range(how_many(random)):
        place = random.randrange(len(made) + 1)
        match random.randrange(8):
            case 0 | 1 if place < len(made):
                made[place] ^= 1 << random.randrange(8)
            case 2 if place < len(made):
                made[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            case 3:
                width = random.choice((1, 2, 4, 8))
                number = random.choice(INTEGERS) % (1 << (8 * width))
                made[place : place + width] = number.to_bytes(width, random.choice(("little", "little", "big")))
            case 4:
                made[place:place] = random.randbytes(random.randint(1, 16))
            case 5:
                del made[place : place + random.choice((1, 1, 2, 4, random.randint(1, 64)))]
            case 6:
                length = random.randint(1, 64)
                there = random.randrange(len(made) + 1)
                made[there:there] = made[place : place + length]
            case 7 if random.random() < 0.2:
                del made[place:]
    return bytes(made)


@dataclass(frozen=True, slots=True)
class ByteMaker:
    """Inputs that are a seed with bytes changed, mostly near its beginning, where formats keep their headers."""

    seeds: Sequence[bytes]
    header: int = 512

    def __call__(self, random: Random) -> bytes:
        """One input."""
        seed = random.choice(self.seeds)
        if random.random() < 0.6:
            return change_bytes(random, seed[: self.header]) + seed[self.header :]
        return change_bytes(random, seed)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Draws a maker for each input; a maker that stands twice is drawn twice as often."""

    makers: Sequence[Maker]

    def __call__(self, random: Random) -> bytes:
        """One input."""
        return random.choice(self.makers)(random)
