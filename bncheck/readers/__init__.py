"""Files → Checkpoint: one module per format, none of which runs, imports or extracts anything."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import assert_never

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BncheckError, UnreadableFile, UnsupportedFile
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.readers.hugging_face import with_config
from bncheck.readers.safetensors import read_safetensors
from bncheck.readers.sharded import OpenBeside, read_sharded
from bncheck.readers.sniff import Container, sniff
from bncheck.readers.source import FileSource, OpenedSource, Source
from bncheck.readers.torch_legacy import read_torch_legacy
from bncheck.readers.torch_tar import read_torch_tar
from bncheck.readers.urls import local_path, scheme_of, shown
from bncheck.readers.zip_archive import read_zip

_NOBODY: frozenset[str] = frozenset()
_EXTRA_MISSING = 'URLs are read with fsspec, which is not installed: pip install "bncheck[remote]"'


def read_named(path: str, limits: Limits = DEFAULT_LIMITS, vouched: frozenset[str] = _NOBODY) -> Checkpoint:
    """The same as ``read``, for commands on a single file: what it raises begins with the path."""
    try:
        return read(path, limits, vouched)
    except BncheckError as error:
        raise type(error)(f"{shown(path)}: {error}") from None


def read(path: str, limits: Limits = DEFAULT_LIMITS, vouched: frozenset[str] = _NOBODY) -> Checkpoint:
    """Read a model file; its format is told from its content.

    Args:
        path: the file, or a URL of any protocol fsspec knows.
        limits: bounds that keep hostile files from exhausting memory or time.
        vouched: ``module.name`` of callables a whole-module pickle may name beyond the known ones.

    Raises:
        UnreadableFile: missing, unreadable, cut short or damaged.
        UnsafeFile: loading it would run code, or it was built to deceive readers.
        UnsupportedFile: no model, or a format this version does not read.
        BadUsage: a URL that names no single file.
    """
    with open_source(path, limits) as source:
        checkpoint = _read_opened(source, path, limits, vouched)
    if scheme_of(path) is None:
        checkpoint = with_config(checkpoint, local_path(path), limits)
    return replace(checkpoint, file=source.file, remarks=(*checkpoint.remarks, *source.remarks))


def open_source(path: str, limits: Limits) -> OpenedSource:
    """Open a file where it is.

    Raises:
        UnreadableFile: it is missing or cannot be read.
        BadUsage: a URL that names no single file.
    """
    if scheme_of(path) is None:
        return FileSource(local_path(path))
    try:
        from bncheck.readers.remote import RemoteSource  # noqa: PLC0415 - fsspec takes longer than an audit
    except ModuleNotFoundError:
        raise UnreadableFile(_EXTRA_MISSING) from None
    return RemoteSource(path, limits)


def matching_urls(pattern: str, limits: Limits) -> list[str]:
    """The files that a URL with ``*`` or ``[`` in it matches, as URLs.

    Raises:
        UnreadableFile: the listing cannot be had.
        BadUsage: the protocol has none.
    """
    try:
        from bncheck.readers.remote import matching  # noqa: PLC0415 - fsspec takes longer than an audit
    except ModuleNotFoundError:
        raise UnreadableFile(_EXTRA_MISSING) from None
    return matching(pattern, limits)


def _beside(path: str) -> OpenBeside:
    """What opens a file of the same folder.

    Raises:
        UnsupportedFile: the path is a URL, of which nobody can tell what lies beside it.
    """
    if scheme_of(path) is not None:
        raise UnsupportedFile("is the index of a model spread over files; download the folder and audit it")
    folder = os.path.dirname(local_path(path))
    return lambda name: FileSource(os.path.join(folder, name))


def _read_opened(source: Source, path: str, limits: Limits, vouched: frozenset[str]) -> Checkpoint:
    place = shown(path)
    match container := sniff(source):
        case Container.ZIP:
            return read_zip(source, place, limits, vouched)
        case Container.SAFETENSORS:
            return read_safetensors(source, place, limits)
        case Container.TORCH_LEGACY:
            return read_torch_legacy(source, place, limits, vouched)
        case Container.TORCH_TAR:
            return read_torch_tar(source, place, limits, vouched)
        case Container.SHARD_INDEX:
            return read_sharded(source, place, _beside(path), limits, vouched)
        case _:
            assert_never(container)
