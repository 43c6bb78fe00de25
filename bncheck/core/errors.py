"""Every way bncheck can fail, each with one clear line for the user."""

from __future__ import annotations

# Characters of a message: several times the longest that readers write, without the names it quotes from a file.
_LONGEST = 900


class Interrupted(SystemExit):
    """Ctrl-C on its way to the shell, to be told from a user's own ``sys.exit``."""


class BncheckError(Exception):
    """Base of all errors a user may see: the message says what, where, and what to do.

    It is one line, whatever names out of a file it quotes: characters that cannot be printed are escaped, and what is
    too long is cut. ``kind`` is the stable name of the error in machine-readable reports.
    """

    kind = "error"

    def __init__(self, message: str) -> None:
        shown = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
            for character in message[:_LONGEST]
        )
        super().__init__(shown if len(message) <= _LONGEST and len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…")


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


class BadConfig(BadUsage):
    """The config, the baseline or a file they name says what bncheck does not understand."""

    kind = "bad-config"


class FindingsFound(BncheckError):
    """An audit is not clean, raised for a caller who asked for that."""

    kind = "findings"


class MissingExtra(BadUsage):
    """What was asked for needs a library that only an extra of bncheck installs."""

    kind = "missing-extra"


class BadSpec(BadUsage):
    """A SPEC on the command line names nothing that can be called."""

    kind = "bad-spec"


class BadModel(BncheckError):
    """The model built by the user does not fit the file, or cannot be run."""

    kind = "bad-model"


class BadData(BncheckError):
    """The data is empty, or of a form that cannot be taken apart."""

    kind = "bad-data"


class UserCodeFailed(BncheckError):
    """The user's own code raised.

    Attributes:
        detail: their frames of the traceback, to be shown once below the line.
    """

    kind = "user-code-failed"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class OutOfMemory(BncheckError):
    """The device, or the machine, has no memory for what the model needs."""

    kind = "out-of-memory"


class CannotPatch(BncheckError):
    """New moments cannot be written in place of those a file holds."""

    kind = "cannot-patch"


class CannotWrite(BncheckError):
    """The output cannot be written where it is to go."""

    kind = "cannot-write"


class TraceLeft(BncheckError):
    """Running the model changed something that a measurement must leave alone."""

    kind = "trace-left"
