"""The benchmark over formats writes one network in each, and every reader finds its layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.formats import LOADERS, layers_in, write_all


@pytest.mark.filterwarnings("ignore")
def test_every_format_holds_the_same_layers(tmp_path: Path) -> None:
    write_all(str(tmp_path), small=True)
    assert {name: layers_in(str(tmp_path / name)) for name in LOADERS} == dict.fromkeys(LOADERS, 11)
