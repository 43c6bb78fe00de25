"""Watching neither loads torch's compiler nor lets it compile what watches."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import bncheck
from bncheck.core.measurement import Measurements
from tests.process import ROOT

_WITHOUT = """
import sys, torch, bncheck
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
report = bncheck.audit(model, data=[torch.randn(16, 4)])
assert report.subjects[0].measurements.samples == 16
assert report.subjects[0].measurements.gap is not None
sys.exit("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_not_loaded() -> None:
    finished = subprocess.run([sys.executable, "-c", _WITHOUT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def measured(model: nn.Module, data: list[Tensor]) -> Measurements:
    found = bncheck.audit(model, data=data).subjects[0].measurements
    assert found is not None
    assert not found.not_measured
    return found


@pytest.mark.parametrize("ran_before", [False, True])
def test_a_compiled_model_is_measured_like_another(ran_before: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    data = [torch.randn(32, 1, 8, 8) for _ in range(4)]
    plain = measured(model, data)
    compiled = torch.compile(model, backend="eager")
    if ran_before:
        compiled(data[0])
    torch._dynamo.utils.counters.clear()
    with caplog.at_level(logging.WARNING):
        found = measured(compiled, data)
    assert not caplog.records
    assert plain.layers is not None
    assert found.layers is not None
    moments, others = plain.layers["1"].moments, found.layers["1"].moments
    assert moments is not None
    assert others is not None
    assert moments.mean.tolist() == others.mean.tolist()
    assert found.gap == plain.gap
    assert not torch._dynamo.utils.counters["frames"]["ok"]
