"""The table of what is fuzzed: a row says which seeds a format has and how inputs are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzzing import archives, pickles, streams, texts
from tests.fuzzing.pieces import ByteMaker, Maker, Mixed, PieceMaker, Whole, joined


@dataclass(frozen=True, slots=True)
class Format:
    """One way in.

    Attributes:
        name: for the table and the options.
        kind: which seeds it begins with, a key of ``seeds.SEEDS``.
        filename: what the file is called while it is read; content decides, so that it matters to messages alone.
        maker: seeds → what makes inputs of them.
        wholes: a file → its pieces, by which a crashing input is made small.
        second: how the library that writes the format reads it, a key of ``second_opinion.LOADERS``; empty where
            nothing reads it safely.
        beside: which seeds lie beside the input while it is read.
    """

    name: str
    kind: str
    filename: str
    maker: Callable[[Sequence[bytes]], Maker]
    wholes: Callable[[bytes], Sequence[Whole]]
    second: str = ""
    beside: str = ""


def input_of(maker: Maker, name: str, seed: int, index: int) -> bytes:
    """Input ``index`` of a campaign: the same in every process."""
    return maker(Random(f"{seed}/{name}/{index}"))


def makers(folder: Path, names: Sequence[str]) -> dict[str, Maker]:
    """The makers of some formats, by name, of the seeds lying in a folder."""
    return {name: FORMATS[name].maker(seeds_in(folder / FORMATS[name].kind)) for name in names}


def seeds_in(folder: Path) -> list[bytes]:
    """A kind's seeds, in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


# --- taking seeds apart ------------------------------------------------------------------------------------


def _pickles_in_zip(archive: bytes) -> list[Whole]:
    return archives.member_wholes(archive, lambda name: name.endswith(".pkl"), pickles.opcodes)


def _safetensors_header(data: bytes) -> list[Whole]:
    """The header as tokens; its length stays true, and the numbers behind it are one last piece."""
    end = 8 + int.from_bytes(data[:8], "little")
    body = data[end:]

    def assemble(pieces: Sequence[bytes]) -> bytes:
        header = b"".join(pieces)
        return len(header).to_bytes(8, "little") + header + body

    return [Whole(tuple(texts.json_tokens(data[8:end])), assemble)]


def _code_in_zip(archive: bytes) -> list[Whole]:
    return archives.member_wholes(archive, lambda name: name.endswith(".py"), texts.code_tokens)


def _json_in_zip(archive: bytes) -> list[Whole]:
    return archives.member_wholes(archive, lambda name: name.endswith(".json"), texts.json_tokens)


def _json_tokens(data: bytes) -> list[Whole]:
    return [Whole(tuple(texts.json_tokens(data)), joined)]


def _as_bytes(data: bytes) -> list[Whole]:
    return [Whole(tuple(data[place : place + 1] for place in range(len(data))), joined)]


# --- makers ------------------------------------------------------------------------------------------------


def _pickle_maker(seeds: Sequence[bytes]) -> Maker:
    return PieceMaker([whole for seed in seeds for whole in _pickles_in_zip(seed)], pickles.CHANGES)


def _archive_maker(seeds: Sequence[bytes]) -> Maker:
    return Mixed([archives.ArchiveMaker([archives.entries_of(seed) for seed in seeds])] * 7 + [ByteMaker(seeds)])


def _safetensors_maker(seeds: Sequence[bytes]) -> Maker:
    header = PieceMaker([whole for seed in seeds for whole in _safetensors_header(seed)], texts.JSON_CHANGES)
    return Mixed([header, header, header, ByteMaker(seeds)])


def _stream_maker(seeds: Sequence[bytes]) -> Maker:
    pickled = PieceMaker([whole for seed in seeds for whole in streams.stream_wholes(seed)], pickles.CHANGES)
    return Mixed([*[pickled] * 7, ByteMaker(seeds, header=1024)])


def _tar_maker(seeds: Sequence[bytes]) -> Maker:
    members = PieceMaker([whole for seed in seeds for whole in streams.tar_wholes(seed)], pickles.CHANGES)
    return Mixed([*[streams.TarMaker(seeds)] * 3, *[members] * 4, ByteMaker(seeds, header=1536)])


def _torchscript_maker(seeds: Sequence[bytes]) -> Maker:
    code = PieceMaker([whole for seed in seeds for whole in _code_in_zip(seed)], texts.CODE_CHANGES)
    return Mixed([*[code] * 6, *[_pickle_maker(seeds)] * 3, _archive_maker(seeds)])


def _pt2_maker(seeds: Sequence[bytes]) -> Maker:
    json = PieceMaker([whole for seed in seeds for whole in _json_in_zip(seed)], texts.JSON_CHANGES)
    return Mixed([*[json] * 5, archives.ArchiveMaker([archives.entries_of(seed) for seed in seeds])])


def _index_maker(seeds: Sequence[bytes]) -> Maker:
    tokens = PieceMaker([whole for seed in seeds for whole in _json_tokens(seed)], texts.JSON_CHANGES)
    return Mixed([*[tokens] * 5, ByteMaker(seeds, header=1024)])


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("pickle", "torch-zip", "model.pt", _pickle_maker, _pickles_in_zip, "torch"),
        Format("zip", "torch-zip", "model.pt", _archive_maker, _as_bytes, "torch"),
        Format(
            "safetensors", "safetensors", "model.safetensors", _safetensors_maker, _safetensors_header, "safetensors"
        ),
        Format("legacy", "torch-legacy", "model.pth", _stream_maker, streams.stream_wholes, "torch"),
        Format("tar", "torch-tar", "model.pth.tar", _tar_maker, streams.tar_wholes),
        Format("torchscript", "torchscript", "model.pt", _torchscript_maker, _code_in_zip, "torch.jit"),
        Format("pt2", "pt2", "model.pt2", _pt2_maker, _json_in_zip, "torch.export"),
        Format(
            "shard-index",
            "shard-index",
            "model.safetensors.index.json",
            _index_maker,
            _json_tokens,
            beside="shards",
        ),
    )
}
