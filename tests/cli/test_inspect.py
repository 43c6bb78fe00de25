"""``bncheck inspect``."""

from __future__ import annotations

import json

import pytest
import torch

from tests.process import FIXTURES, bncheck

MODULE = FIXTURES / "healthy-cnn-module" / "model.pt"


def test_table_shows_every_layer() -> None:
    shown = bncheck("inspect", MODULE).stdout
    for word in ("bn1", "bn4", "batch", "eval", "0.1", "1e-05", "float32"):
        assert word in shown


def test_state_dict_shows_what_it_does_not_say() -> None:
    layers = json.loads(
        bncheck("inspect", FIXTURES / "healthy-cnn-state-dict" / "model.pt", "--format", "json").stdout
    )["layers"]
    assert all(layer["momentum"] is None and layer["training"] is None for layer in layers)
    assert all(layer["num_batches_tracked"] > 0 for layer in layers)


def test_json_ranges_are_those_of_the_tensors() -> None:
    path = FIXTURES / "healthy-cnn-state-dict" / "model.pt"
    state = torch.load(path)
    for layer in json.loads(bncheck("inspect", path, "--format", "json").stdout)["layers"]:
        variance = state[f"{layer['name']}.running_var"].double()
        assert layer["running_var"] == {"min": variance.min().item(), "max": variance.max().item()}


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("fixtures", 2, "bncheck: fixtures: is a folder; name a model file in it\n"),
        ("nowhere.pt", 2, "bncheck: nowhere.pt: no such file; check the path\n"),
        ("fixtures/healthy-group-norm-only/model.pt", 3, ""),
    ],
)
def test_nothing_to_show(path: str, code: int, said: str) -> None:
    finished = bncheck("inspect", path)
    assert finished.returncode == code
    assert finished.stderr == said
