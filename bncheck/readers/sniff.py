"""Magic bytes → format. The extension never decides: content does."""

from __future__ import annotations

import enum
import re

from bncheck.core.errors import UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.readers.source import Source
from bncheck.readers.tar_directory import BLOCK, is_header

HEAD = 2048
"""Leading bytes that tell every layout: three blocks of a tar archive hold its first member's name."""

# torch's magic number as a pickle of protocols 2 to 5, with or without a frame, or of 0 and 1; nothing calls anything.
# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/serialization.py, MAGIC_NUMBER
_LEGACY_MAGIC = re.compile(
    rb"(?:\x80[\x02-\x05])?(?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.|L119547037146038801333356L\n\.", re.DOTALL
)
# The end record of a zip archive that lies on one disk may stand this far before the end: behind it are 18 bytes and a
# comment of up to 65535 (APPNOTE 4.3.16).
_ZIP_END = re.compile(rb"PK\x05\x06\x00\x00\x00\x00")
_ZIP_TAIL = 22 + 65_535


# JSON with a map of tensors to files; other JSON is text.
_SHARD_INDEX = re.compile(rb"\s*\{.*\"weight_map\"\s*:", re.DOTALL)


class Container(enum.Enum):
    """Outer layouts bncheck reads."""

    ZIP = enum.auto()
    SAFETENSORS = enum.auto()
    TORCH_LEGACY = enum.auto()
    TORCH_TAR = enum.auto()
    SHARD_INDEX = enum.auto()


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
        UnsafeFile: other programs could read it in another layout.
        UnsupportedFile: the layout is another one; the message names it where it is known.
    """
    if source.size == 0:
        raise UnreadableFile("is empty")
    head = source.read_at(0, min(source.size, HEAD))
    container = recognise(head)
    if container is None:
        raise UnsupportedFile(_describe(head))
    _refuse_second_reading(container, head, source)
    return container


def recognise(head: bytes) -> Container | None:
    """The layout these leading bytes announce, or None."""
    if head.startswith(b"PK\x03\x04"):
        return Container.ZIP
    if len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\x00\x00":
        # safetensors: a little-endian u64 header length, then JSON. The two top bytes of a length below 2**48 are 0.
        return Container.SAFETENSORS
    if _LEGACY_MAGIC.match(head):
        return Container.TORCH_LEGACY
    if _is_torch_tar(head):
        return Container.TORCH_TAR
    if _SHARD_INDEX.match(head):
        return Container.SHARD_INDEX
    return None


def _is_torch_tar(head: bytes) -> bool:
    """Whether the first member is called as torch's is; an extended header may stand before its own."""
    if head[257:262] != b"ustar":
        return False
    start = 2 * BLOCK if head[156:157] == b"x" else 0
    return head[start : start + 100].partition(b"\0")[0] == b"sys_info"


def _refuse_second_reading(container: Container, head: bytes, source: Source) -> None:
    """Refuse a file that is two things at once: what one reader finds clean, another would load as the other.

    torch tries tar before its legacy stream, and asks no magic number of it; readers of zip archives look at the end.
    """
    if container is not Container.TORCH_TAR and (is_header(head[:BLOCK]) or head[257:262] == b"ustar"):
        raise UnsafeFile("can be read as a tar archive, too: it was built to deceive readers")
    if container in (Container.TORCH_LEGACY, Container.TORCH_TAR):
        tail = min(source.size, _ZIP_TAIL)
        if _ZIP_END.search(source.read_at(source.size - tail, tail)):
            raise UnsafeFile("can be read as a zip archive, too: it was built to deceive readers")


def _describe(head: bytes) -> str:
    for magic, message in _REFUSED:
        if head.startswith(magic):
            return message
    if head[257:262] == b"ustar":
        return "is a tar archive that torch.save did not write; unpack it"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return (
            "is a bare pickle that torch.save did not write: it does not begin with torch's magic number; where you "
            "trust it, save the model's state dict with torch.save"
        )
    if all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 or byte >= 0x80 for byte in head):
        return "is text, not a model"
    return "is no model file bncheck knows (torch.save or safetensors)"
