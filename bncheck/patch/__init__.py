"""New running moments, written into a copy of a model file that is otherwise the same to the byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bncheck.core.checkpoint import Checkpoint, StoredMoments
from bncheck.core.errors import CannotPatch
from bncheck.patch.changes import Changes
from bncheck.patch.checksums import with_checksums
from bncheck.patch.moments import NewMoments, changes_of, stored_moments, tensors_written, without_count
from bncheck.patch.original import Original
from bncheck.patch.writing import check_output, write_patched

__all__ = ["NewMoments", "PatchRecord", "check_output_of", "check_patchable", "patch_file"]


@dataclass(frozen=True, slots=True)
class PatchRecord:
    """What was written.

    Attributes:
        output: the copy.
        input_sha256, output_sha256: of the file and of the copy, in hexadecimal.
        tensors: names of the tensors written, as the file has them; all of those that one memory goes by.
        bytes_changed: bytes in which file and copy differ, those of checksums included.
    """

    output: str
    input_sha256: str
    output_sha256: str
    tensors: tuple[str, ...]
    bytes_changed: int


def check_patchable(checkpoint: Checkpoint, layers: Iterable[str]) -> str:
    """See that other moments can be written for these layers, before anybody spends hours on computing them.

    Args:
        checkpoint: the file, as it was read.
        layers: full names.

    Returns:
        The file's SHA-256 in hexadecimal, for ``patch_file``.

    Raises:
        CannotPatch: they cannot, or the file changed since it was read.
    """
    with _naming(checkpoint):
        stored = stored_moments(checkpoint, layers)
        tensors_written(checkpoint, stored)
        any_numbers = {name: _any_moments(moments) for name, moments in stored.items()}
        with Original(checkpoint) as original:
            _changes(original, stored, any_numbers)
            return original.sha256()


def check_output_of(checkpoint: Checkpoint, output: str, *, force: bool) -> None:
    """See that a copy of the file can be written to ``output``, before anybody spends hours.

    Raises:
        CannotWrite: the folder is missing, full or not to be written to, or something stands at ``output``.
        CannotPatch: the file changed since it was read.
    """
    with _naming(checkpoint), Original(checkpoint) as original:
        check_output(original, output, force=force)


def patch_file(
    checkpoint: Checkpoint, moments: Mapping[str, NewMoments], output: str, *, force: bool, sha256: str | None = None
) -> PatchRecord:
    """Write a copy of a model file in which only running moments, and the checksums over them, are other.

    Args:
        checkpoint: the file, as it was read.
        moments: by the layers' full names; those of other layers stay.
        output: where the copy goes.
        force: whether it may replace a file, which may be the model itself.
        sha256: what ``check_patchable`` returned; by default it is computed now.

    Raises:
        CannotPatch: the moments cannot be written into the file, or it changed since it was read.
        CannotWrite: the copy cannot be written to ``output``.
    """
    with _naming(checkpoint):
        stored = stored_moments(checkpoint, moments)
        for name, new in moments.items():
            if new.num_batches_tracked is None:
                stored[name] = without_count(stored[name])
        names = tensors_written(checkpoint, stored)
        with Original(checkpoint) as original:
            check_output(original, output, force=force)
            expected = original.sha256() if sha256 is None else sha256
            changes = _changes(original, stored, moments)
            written = write_patched(original, changes, expected, output, force=force)
    return PatchRecord(output, written.input_sha256, written.output_sha256, names, written.bytes_changed)


def _changes(original: Original, stored: Mapping[str, StoredMoments], new: Mapping[str, NewMoments]) -> Changes:
    changes = Changes(change for name, moments in stored.items() for change in changes_of(name, new[name], moments))
    places = [place for moments in stored.values() for place in moments.places.values()]
    return with_checksums(original, places, changes)


def _any_moments(stored: StoredMoments) -> NewMoments:
    """Moments that fit wherever any do."""
    features = int(np.prod(stored.tensors["running_mean"].shape))
    return NewMoments(np.zeros(features), np.ones(features), 0)


@contextmanager
def _naming(checkpoint: Checkpoint) -> Iterator[None]:
    """Leads a message about the file with its path."""
    try:
        yield
    except CannotPatch as error:
        raise CannotPatch(f"{checkpoint.path}: {error}") from None
