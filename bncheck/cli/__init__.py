"""The command line: one small file per command, each mapping options to one call and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

# Before numpy is imported: its OpenBLAS starts a thread for each core, which an audit has no work for and pays with a
# third of its CPU time, more on larger machines.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bncheck.cli.app import app
from bncheck.cli.audit import audit as _audit  # noqa: F401 - registers the command
from bncheck.cli.explain import explain as _explain  # noqa: F401
from bncheck.cli.init import init as _init  # noqa: F401
from bncheck.cli.inspect import inspect as _inspect  # noqa: F401
from bncheck.cli.recalibrate import recalibrate as _recalibrate  # noqa: F401
from bncheck.cli.rules import rules as _rules  # noqa: F401
from bncheck.core.errors import BncheckError, Interrupted
from bncheck.core.finding import ExitCode

_INTERRUPTED = 128 + signal.SIGINT  # as shells report it


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted(_INTERRUPTED)


def main() -> NoReturn:
    """Run the command line; an error is one line on stderr, a traceback only with ``--debug``."""
    # Click turns an interrupt into exit code 1, which would read as findings.
    signal.signal(signal.SIGINT, _interrupt)
    # A layer's name may hold what the terminal's encoding lacks; no report may fail for that.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except BncheckError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"bncheck: {error}", file=sys.stderr)
        sys.exit(ExitCode.NOT_AUDITED)
    except Exception as error:
        # Python's own exit code for a crash is 1, which means findings here.
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"bncheck: internal error, please report it: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(ExitCode.NOT_AUDITED)
    sys.exit(ExitCode.CLEAN)
