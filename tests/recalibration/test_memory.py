"""Waves that fit: counted before, and halved where the count was wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bncheck.recalibration.schedule import Plan
from bncheck.runtime.activation_memory import bytes_of_pass, free_bytes, host_bytes
from bncheck.runtime.batches import Batch, forward
from tests.process import ROOT
from tests.recalibration.networks import Residual, brute_force, built, errors, images
from tests.recalibration.test_exact import recalibrated


class _Wide(nn.Module):
    """Holds its input, twice its size, and for a moment that once more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([x, x], dim=1)
        return torch.relu(doubled).mean(1)


def test_bytes_of_a_pass_are_those_of_the_tensors_held_at_once() -> None:
    inputs = torch.randn(4, 8, 16, 16)
    size = inputs.numel() * 4
    counted = bytes_of_pass(_Wide(), Batch((inputs,), None, 4), forward)
    assert 5 * size <= counted <= 5.2 * size
    weights = nn.Sequential(nn.Linear(64, 64))
    held = bytes_of_pass(weights, Batch((torch.randn(2, 64),), None, 2), forward)
    assert held == 2 * 2 * 64 * 4, "the model's own tensors are no part of it"


def test_some_memory_is_free() -> None:
    assert free_bytes(torch.device("cpu")) == pytest.approx(host_bytes(), rel=0.2)
    assert host_bytes() > 2**20


def test_memory_bounds_the_passes_of_a_wave() -> None:
    batches = images([8] * 12)
    counts = [
        recalibrated(built(Residual), batches, Plan(samples=96, pass_samples=8, memory=memory)).waves
        for memory in (2**30, 600_000, 100_000)
    ]
    assert counts[0] == 1
    assert counts[0] < counts[1] < counts[2] == 12


def test_more_samples_than_the_host_holds_give_an_online_estimate_that_says_so() -> None:
    batches = images([8] * 12)
    model = built(Residual)
    plan = Plan(samples=96, pass_samples=8, memory=100_000, host_memory=3 * 8 * 3 * 12 * 12 * 4)
    found = recalibrated(model, batches, plan)
    assert found.samples == 96
    assert found.residual is None
    assert found.why_inexact is not None
    assert "memory" in found.why_inexact
    assert max(errors(model, brute_force(built(Residual), batches))) < 0.3


def test_a_wave_that_does_not_fit_is_halved() -> None:
    """A real lack of memory: 300 MiB of address space for eight passes of some 60 each."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.recalibration.scarce_memory", "300"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if finished.returncode < 0 or "thread" in finished.stderr:
        pytest.skip("the C library itself found no memory for a thread")
    assert finished.returncode == 0, finished.stderr
    waves, residual, error = finished.stdout.split()
    assert int(waves) > 1
    assert float(residual) <= 1e-6
    assert float(error) < 3e-6
