"""Runs the real command in a real process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

from tests.warm_process import Forker

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"


def bncheck(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python -m bncheck ARGUMENTS``, its output piped and so without colour.

    One that runs a model is forked from a process that has torch imported, unless it is to start in another way.
    """
    words = [str(argument) for argument in arguments]
    whole = {**_clean_environment(), "PYTHONPATH": str(ROOT), **environment}
    starts_differently = any(
        name.startswith(("PYTHON", "OMP_", "MKL_")) for name in environment if name != "PYTHONPATH"
    )
    if not starts_differently and any(word.startswith(_RUNNING) for word in words):
        return _forker().run(words, cwd, whole, _PATIENCE)
    return subprocess.run(
        [sys.executable, "-m", "bncheck", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=whole,
        timeout=_PATIENCE,
        check=False,
    )


_RUNNING = ("recalibrate", "--data", "--train-data", "--train-step")
_PATIENCE = 120


@functools.cache
def _forker() -> Forker:
    return Forker()


def _clean_environment() -> dict[str, str]:
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    return {name: value for name, value in os.environ.items() if name not in unwanted}
