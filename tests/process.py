"""Runs the real command in a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"


def bncheck(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process of ``python -m bncheck ARGUMENTS``, its output piped and so without colour."""
    return subprocess.run(
        [sys.executable, "-m", "bncheck", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**_clean_environment(), "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
        check=False,
    )


def _clean_environment() -> dict[str, str]:
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    return {name: value for name, value in os.environ.items() if name not in unwanted}
