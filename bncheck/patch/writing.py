"""A patched copy, written beside its place and moved there when it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from bncheck.core.errors import CannotPatch, CannotWrite
from bncheck.patch.changes import Changes
from bncheck.patch.original import CHANGED, Original


@dataclass(frozen=True, slots=True)
class Written:
    """What was copied, and what came of it."""

    input_sha256: str
    output_sha256: str
    bytes_changed: int


def check_output(original: Original, output: str, *, force: bool) -> None:
    """See that a copy can go to ``output``.

    Raises:
        CannotWrite: the folder is missing, full or not to be written to, something else stands at ``output``, or a
            file does and ``force`` is False.
    """
    if not os.path.basename(output):
        raise CannotWrite(f"{output!r} names no file")
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise CannotWrite(f"{output}: there is no folder {folder}; make it first")
    _check_place(original, output, force=force)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CannotWrite(f"{output}: cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < original.file.size:
        raise CannotWrite(f"{output}: {original.file.size} bytes are needed and {free} are left on the disk")


def _check_place(original: Original, output: str, *, force: bool) -> None:
    try:
        status = os.lstat(output)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(f"{output}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symbolic link"))
        what = next((kind for test, kind in kinds if test(status.st_mode)), "a device or pipe")
        raise CannotWrite(f"{output}: is {what}; name a file")
    if not force:
        itself = (status.st_dev, status.st_ino) == original.file.identity
        what = "is the model itself" if itself else "exists already"
        raise CannotWrite(f"{output}: {what}; choose another name, or replace it with --force")


def write_patched(original: Original, changes: Changes, sha256: str, output: str, *, force: bool) -> Written:
    """Copy the file with the changes; either the whole copy stands at ``output`` afterwards, or nothing has changed.

    Args:
        original: the file.
        changes: what is to be other in the copy.
        sha256: what the file's must be.
        output: where the copy goes.
        force: whether it may replace a file.

    Raises:
        CannotWrite: it cannot be written there.
        CannotPatch: the file changed meanwhile.
    """
    folder = os.path.dirname(os.path.abspath(output))
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".bncheck-", suffix=".tmp", dir=folder)
    except OSError as error:
        raise CannotWrite(f"{output}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as copy:
            written = _copied(original, changes, copy)
            copy.flush()
            os.chmod(temporary, original.mode)
            os.fsync(copy.fileno())
        if written.input_sha256 != sha256:
            raise CannotPatch(CHANGED)
        original.check_unchanged()
        _check_place(original, output, force=force)
        os.replace(temporary, output)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise CannotWrite(f"{output}: cannot be written: {error.strerror}") from None
        raise
    _sync_folder(folder)
    return written


def _copied(original: Original, changes: Changes, copy: BinaryIO) -> Written:
    before, after, changed = hashlib.sha256(), hashlib.sha256(), 0
    for position, data in original.pieces():
        new = changes.over(position, data)
        copy.write(new)
        before.update(data)
        after.update(new)
        if new is not data:
            changed += int(np.count_nonzero(np.frombuffer(new, np.uint8) != np.frombuffer(data, np.uint8)))
    return Written(before.hexdigest(), after.hexdigest(), changed)


def _sync_folder(folder: str) -> None:
    """Make the new name last through a power cut; some filesystems and Windows offer no such thing for folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
