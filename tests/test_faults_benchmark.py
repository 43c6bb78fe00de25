"""The benchmark of planted faults in its short form: every fault is seen, and nothing is said of healthy networks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.process import ROOT


def test_short_form(tmp_path: Path) -> None:
    figures, cache = tmp_path / "figures.json", tmp_path / "cache"
    script = ROOT / "tests" / "benchmarks" / "faults.py"
    options = ("--short", "--no-cost", "--cache", str(cache), "--json", str(figures))
    finished = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=600, check=False
    )
    assert finished.returncode == 0, finished.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["networks"] == ["cnn-0", "mlp-0"]
    assert told["false_alarms"] == []
    assert told["missed"] == []
    assert told["incomplete"] == []
    (gross, planted), (mild, milds) = told["gross"], told["mild"]
    assert gross == planted > 25
    assert mild == milds > 0
    for title in ("fault ", "rule ", "rms δ", "median |ln ρ²|", "gross faults seen"):
        assert f"\n{title}" in finished.stdout
    assert sorted(path.name for path in cache.iterdir()) == ["cnn-0.pt", "mlp-0.pt"]
