"""Forks processes of the command that have torch and scikit-learn imported already.

Importing these two takes five times as long as auditing a small network. A process that is forked from one that has
them is as real as another: it has its own memory, working directory, environment, descriptors and exit code. Run as a
script it is the process that forks: a request is a line of JSON on stdin, an exit code a line on stdout.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forker:
    """The other process, seen from here."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """The finished process of ``python -m bncheck ARGUMENTS``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            asked = {
                "arguments": list(arguments),
                "cwd": str(cwd),
                "environment": environment,
                "to": [str(out), str(err)],
            }
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                os.killpg(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["bncheck", *arguments], timeout)
            code = int(self._process.stdout.readline())
            texts = [path.read_text(encoding="utf-8", errors="surrogateescape") for path in (out, err)]
        return subprocess.CompletedProcess(["bncheck", *arguments], code, *texts)


def _serve() -> None:
    import sklearn.datasets  # noqa: F401
    import torch.utils.data  # noqa: F401

    import bncheck.measuring
    import bncheck.recalibrating  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(asked)
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict[str, object]) -> None:
    """Never returns."""
    arguments, cwd, environment, (out, err) = (asked[key] for key in ("arguments", "cwd", "environment", "to"))
    os.setpgid(0, 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    flags = os.O_WRONLY | os.O_CREAT
    for descriptor, place in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(out, flags)),
        (2, os.open(err, flags)),
    ):
        os.dup2(place, descriptor)
    sys.path[:1] = [os.getcwd(), *(part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part)]
    sys.argv = ["bncheck", *arguments]
    code: object = 70
    try:
        runpy.run_module("bncheck", run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve()
