"""Several processes: the same moments as one, whoever has how much; and no hang where one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.process import ROOT
from tests.recalibration.networks import Residual, brute_force, built, errors, images
from tests.recalibration.test_exact import recalibrated


def _run(out: Path, *shares: str, fault: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(shares)}"),
        *("-m", "tests.recalibration.ranked", str(out), fault, *shares),
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("shares", "memory"),
    [(("8,8", "8,8"), ""), (("5,1,16", "", "9"), ""), (("8,8,8", "4", "16,2", "8"), "150000")],
    ids=["two alike", "three, one without samples", "four in several waves"],
)
def test_as_one_process(tmp_path: Path, shares: tuple[str, ...], memory: str) -> None:
    finished = _run(tmp_path, *shares, MEMORY=memory)
    assert finished.returncode == 0, finished.stderr
    sizes = [int(size) for share in shares for size in share.split(",") if size]
    batches = images(sizes)
    reference = brute_force(built(Residual), batches)
    alone = built(Residual)
    recalibrated(alone, batches)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(shares))]
    for result in results:
        assert result["samples"] == sum(sizes)
        assert result["residual"] <= 1e-6
        model = built(Residual)
        model.load_state_dict(result["state"])
        assert max(errors(model, reference)) < 3e-6
        assert all(torch.equal(value, results[0]["state"][name]) for name, value in result["state"].items()), (
            "all ranks must end with the same bytes"
        )
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(result["state"][name], value, rtol=2e-6, atol=2e-6)
    assert bool(memory) == (results[0]["waves"] > 1)


@pytest.mark.parametrize("fault", ["raises", "dies"])
def test_a_rank_that_fails_ends_the_run(tmp_path: Path, fault: str) -> None:
    finished = _run(tmp_path, "8,8", "8,8", fault=fault)
    assert finished.returncode != 0
    assert not list(tmp_path.iterdir())
    if fault == "raises":
        assert "the second rank's own trouble" in finished.stderr
        assert "another process of this run failed" in finished.stderr
