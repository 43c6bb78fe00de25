"""Files → Checkpoint: one module per format, none of which runs, imports or extracts anything."""

from __future__ import annotations

from typing import assert_never

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.readers.safetensors import read_safetensors
from bncheck.readers.sniff import Container, sniff
from bncheck.readers.source import FileSource
from bncheck.readers.zip_archive import read_zip

_NOBODY: frozenset[str] = frozenset()


def read(path: str, limits: Limits = DEFAULT_LIMITS, vouched: frozenset[str] = _NOBODY) -> Checkpoint:
    """Read a model file; its format is told from its content.

    Args:
        path: the file.
        limits: bounds that keep hostile files from exhausting memory or time.
        vouched: ``module.name`` of callables a whole-module pickle may name beyond the known ones.

    Raises:
        UnreadableFile: missing, unreadable, cut short or damaged.
        UnsafeFile: loading it would run code, or it was built to deceive readers.
        UnsupportedFile: no model, or a format this version does not read.
    """
    with FileSource(path) as source:
        match container := sniff(source):
            case Container.ZIP:
                return read_zip(source, path, limits, vouched)
            case Container.SAFETENSORS:
                return read_safetensors(source, path, limits)
            case _:
                assert_never(container)
