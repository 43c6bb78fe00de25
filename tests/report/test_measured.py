"""What the user sees of a run: where drift begins, every layer on demand, and every channel in JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import bncheck
from bncheck.core.finding import Report
from bncheck.report.document import report_document
from bncheck.report.json import to_json
from bncheck.report.text import plain, report_lines


def _net(shift_from: int) -> nn.Module:
    """Five norms; the stored means of those from one on are far off."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(5)]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    net.add_module("idle", nn.Identity())
    net.idle.unused = nn.BatchNorm2d(2)
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(32, 4, 6, 6))
        for block in blocks[shift_from:]:
            block[1].running_mean += 3 * block[1].running_var.sqrt()
    return net.eval()


@pytest.fixture(scope="module")
def report() -> Report:
    generator = torch.Generator().manual_seed(1)
    return bncheck.audit(_net(2), data=[torch.randn(32, 4, 6, 6, generator=generator) for _ in range(3)])


def _text(report: Report, **options: bool) -> str:
    return plain(report_lines(report, 120, show_passed=False, **options))


def test_the_verdict_names_where_drift_begins(report: Report) -> None:
    assert _text(report).splitlines()[0].endswith("; drift begins at 2.1, layer 3 of 6")
    assert "drift begins" not in _text(bncheck.audit(_net(9), data=[torch.randn(64, 4, 6, 6)]))


def test_verbose_shows_every_layer_and_the_worst_channels(report: Report) -> None:
    brief, verbose = _text(report), _text(report, verbose=True)
    row = "    0.1     "
    assert row not in brief
    assert row in verbose
    assert "worst channels" not in brief
    assert "worst channels of 2.1" in verbose
    assert "worst channels of 0.1" not in verbose


def test_json_has_each_layer_and_on_demand_each_channel(report: Report) -> None:
    (subject,) = json.loads(to_json(report_document(report)))["subjects"]
    layers = subject["measurements"]["layers"]
    assert [layer["name"] for layer in layers] == ["0.1", "1.1", "2.1", "3.1", "4.1", "8", "idle.unused"]
    assert layers[-1]["order"] is None
    assert layers[0] == {
        "name": "0.1",
        "order": 0,
        "calls": 1,
        "uses_batch_moments": False,
        "eps": 1e-5,
        "images": 96,
        "values_per_channel": 96 * 36,
        "unknown": None,
    }
    (subject,) = json.loads(to_json(report_document(report, channels=True)))["subjects"]
    for layer in subject["measurements"]["layers"][:-1]:
        found = {name: np.array(values) for name, values in layer["channels"].items()}
        deviation = np.sqrt(found["stored_var"] + layer["eps"])
        np.testing.assert_allclose(found["delta"], (found["mean"] - found["stored_mean"]) / deviation)
        np.testing.assert_allclose(
            np.exp(found["log_ratio"]), (found["var"] + layer["eps"]) / (found["stored_var"] + layer["eps"])
        )
        np.testing.assert_allclose(
            found["kl"],
            0.5 * (np.exp(found["log_ratio"]) + found["delta"] ** 2 - 1 - found["log_ratio"]),
            atol=1e-12,
        )
        assert (found["mean_error"] >= 0).all()
    assert subject["measurements"]["layers"][-1]["channels"]["mean"] is None
