"""Writes a report to a file: whole, or not at all."""

from __future__ import annotations

import contextlib
import os

from bncheck.core.errors import CannotWrite


def write_text(path: str, text: str) -> None:
    """Write beside the place, flush to the disk, and rename; on any way out nothing half-written is left.

    Raises:
        CannotWrite: the folder is missing, full, or not to be written to.
    """
    import tempfile  # noqa: PLC0415 - most audits write no file

    folder, name = os.path.split(os.path.abspath(path))
    held: str | None = None
    try:
        handle, held = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(held, 0o666 & ~_mask())
        os.replace(held, path)
        held = None
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror or error}") from None
    finally:
        if held is not None:
            with contextlib.suppress(OSError):
                os.unlink(held)


def _mask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
