"""The benchmark of the static audit runs, and what it shows that no machine's speed can change."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.static_audit import (
    bytes_read,
    resnet50_shapes,
    startup_lines,
    width_for,
    write_checkpoint,
    write_state_dict,
)
from tests.process import ROOT

_WIDTH = 0.125


def test_small_form(tmp_path: Path) -> None:
    """In a process of its own: a child's peak memory is never less than what its parent had (pairs.Run.peak)."""
    figures = tmp_path / "figures.json"
    script = ROOT / "tests" / "benchmarks" / "static_audit.py"
    finished = subprocess.run(
        [sys.executable, str(script), "--small", "--pairs", "1", "--json", str(figures), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    table = finished.stdout.splitlines()
    for row, times in (
        ("ResNet-50 state dict", 1),
        ("Adam checkpoint", 1),
        ("  audit: wall, CPU", 2),
        ("  torch.load: wall, CPU", 2),
        ("  audit: peak memory", 2),
        ("  audit / torch.load, wall", 2),
        ("  bytes the audit reads", 2),
        ("checkpoint / state dict, audit's wall", 1),
    ):
        assert sum(line.startswith(row) for line in table) == times, f"{row!r} in\n{finished.stdout}"
    told = json.loads(figures.read_text(encoding="utf-8"))
    for name in ("model", "checkpoint"):
        file = told[name]
        assert (file["audit_codes"], file["torch_codes"]) == ([0], [0])
        assert file["audit_peak"] < file["torch_peak"]
        assert file["bytes_read"] < file["size"]
    assert list(tmp_path.iterdir()) == [figures], "a model file was left behind"


@pytest.mark.parametrize("write", [write_state_dict, write_checkpoint])
def test_bytes_read_do_not_grow_with_the_weights(tmp_path: Path, write: Callable[..., None]) -> None:
    """The same batch norms beside convolutions nine times as large: only numbers in the pickle get longer."""
    small, large = tmp_path / "small.pt", tmp_path / "large.pt"
    write(str(small), _WIDTH, kernel=3)
    write(str(large), _WIDTH, kernel=9)
    assert large.stat().st_size > 2 * small.stat().st_size
    one, other = bytes_read(str(small)), bytes_read(str(large))
    assert one.total - one.pickle == other.total - other.pickle
    assert abs(other.pickle - one.pickle) < 0.05 * one.pickle
    assert one.total < small.stat().st_size / 2


def test_shapes_are_those_of_resnet50() -> None:
    """25 557 032 parameters and 26 560 channels with running moments, as torchvision counts them."""
    shapes = dict(resnet50_shapes())
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    norms = [name for name in shapes if name.endswith("running_mean")]
    assert (len(shapes), len(norms)) == (320, 53)
    assert sum(size for name, size in sizes.items() if name.endswith(("weight", "bias"))) == 25_557_032
    assert sum(sizes[name] for name in norms) == 26_560


@pytest.mark.parametrize("size", [1e8, 2e9, 8e9])
def test_checkpoint_is_as_large_as_asked(size: float) -> None:
    shapes = resnet50_shapes(width_for(size))
    weights = sum(math.prod(shape) for name, shape in shapes if name.endswith((".weight", ".bias")))
    assert size <= 3 * 4 * weights < 1.1 * size


def test_startup_is_summed_by_package() -> None:
    lines = list(startup_lines([("numpy.a", 0.2), ("json", 0.1), ("numpy", 0.05)]))
    assert any(line.split() == ["250.0", "ms", "numpy", "(2", "modules)"] for line in lines)
    assert any("standard library (1 modules)" in line for line in lines)
    assert not list(startup_lines([]))
