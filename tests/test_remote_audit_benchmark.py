"""The benchmark of audits by URL runs, and counts what it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.process import ROOT


def test_small_form(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    script = ROOT / "tests" / "benchmarks" / "remote_audit.py"
    options = ("--small", "--delay-ms", "0", "--json", str(figures), "--folder", str(tmp_path))
    finished = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[1].startswith("Adam checkpoint"), finished.stdout
    for file in json.loads(figures.read_text(encoding="utf-8")):
        assert 150_000 < file["fetched"] < file["size"] / 20
        assert 3 < file["requests"] < 50
    assert list(tmp_path.iterdir()) == [figures], "a model file was left behind"
