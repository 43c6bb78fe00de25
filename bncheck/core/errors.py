"""Every way bncheck can fail, each with one clear line for the user."""

from __future__ import annotations


class BncheckError(Exception):
    """Base of all errors a user may see: the message says what, where, and what to do.

    ``kind`` is the stable name of the error in machine-readable reports.
    """

    kind = "error"


class UnreadableFile(BncheckError):
    """The file is missing, cut short or contradicts its own format."""

    kind = "unreadable-file"


class UnsafeFile(BncheckError):
    """Loading the file would run code, or it was built to harm its reader."""

    kind = "unsafe-file"


class UnsupportedFile(BncheckError):
    """The file is sound as far as it goes, but is not a model bncheck can read."""

    kind = "unsupported-file"


class NoModel(UnsupportedFile):
    """The file was read to its end and holds something else than a network: a scheduler, settings, a single tensor."""


class BadUsage(BncheckError):
    """The command line asks for something that does not exist."""

    kind = "bad-usage"
