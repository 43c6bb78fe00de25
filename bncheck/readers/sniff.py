"""Magic bytes → format. The extension never decides: content does."""

from __future__ import annotations

import enum

from bncheck.core.errors import UnreadableFile, UnsupportedFile
from bncheck.readers.source import Source

_HEAD = 512


class Container(enum.Enum):
    """Outer layouts bncheck reads."""

    ZIP = enum.auto()
    SAFETENSORS = enum.auto()


# Leading bytes → what to tell the user. Each is the format's own published signature.
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the model; run `git lfs pull`"),
    (b"\x1f\x8b", "is gzip-compressed; unpack it with gunzip first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it first"),
    (b"BZh", "is bzip2-compressed; unpack it first"),
    (b"\xfd7zXZ\x00", "is xz-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is zstd-compressed; unpack it first"),
    (b"Rar!\x1a\x07", "is a RAR archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, which this version does not read"),
    (b"\x93NUMPY", "is a NumPy array, not a model"),
    (b"GGUF", "is a GGUF file, which holds no batch normalisation bncheck can read"),
    (b"PK\x05\x06", "is an empty zip archive"),
)


def sniff(source: Source) -> Container:
    """Tell the layout from the first bytes.

    Raises:
        UnreadableFile: the file is empty.
        UnsupportedFile: the layout is another one; the message names it where it is known.
    """
    if source.size == 0:
        raise UnreadableFile("is empty")
    head = source.read_at(0, min(source.size, _HEAD))
    container = recognise(head)
    if container is None:
        raise UnsupportedFile(_describe(head))
    return container


def recognise(head: bytes) -> Container | None:
    """The layout these leading bytes announce, or None."""
    if head.startswith(b"PK\x03\x04"):
        return Container.ZIP
    if len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        # safetensors: a little-endian u64 header length, then JSON. The two top bytes of a length below 2**48 are 0.
        return Container.SAFETENSORS
    return None


def _describe(head: bytes) -> str:
    for magic, message in _REFUSED:
        if head.startswith(magic):
            return message
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it, or load and save it again with torch.save"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return "is a bare pickle (torch.save before 1.6, or no model); load it and save it again with torch.save"
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 or byte >= 0x80 for byte in head):
        return "is text, not a model"
    return "is no model file bncheck knows (torch.save zip or safetensors)"
