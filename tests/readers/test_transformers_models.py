"""Architectures nobody here wrote: the batch-norm networks of transformers, in every format they can be saved in.

Weights are random and configurations small; names, nesting and the ways of writing are the library's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from bncheck.core.checkpoint import Checkpoint, FileFormat
from bncheck.core.layers import NormKind, NormLayer
from bncheck.readers import read
from tests.readers.torch_files import filled

IMAGE = 64
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

# Model class → what makes its configuration small.
MODELS: dict[str, dict[str, object]] = {
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    "RegNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "groups_width": 4,
    },
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.1, "depth_divisible_by": 4, "min_depth": 4},
    "EfficientNetForImageClassification": {"width_coefficient": 0.1, "depth_coefficient": 0.3, "hidden_dim": 128},
    "LevitForImageClassification": {
        "image_size": IMAGE,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 1, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "drop_path_rate": 0,
        "mlp_ratio": [1, 1, 1],
        "attention_ratio": [1, 1, 1],
    },
    "MobileViTForImageClassification": {
        "image_size": IMAGE,
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32],
        "expand_ratio": 1.0,
    },
    "SegformerForSemanticSegmentation": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
}


@cache
def _model(name: str) -> nn.Module:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    made: nn.Module = kind(kind.config_class(**MODELS[name]))
    for seed, norm in enumerate(_norms(made).values()):
        filled(norm, seed)
    return made.eval()


def model(name: str, *, training: bool) -> nn.Module:
    """A copy of the network, every tensor of its norms random, in the mode asked for."""
    return deepcopy(_model(name)).train(training)


# --- ways of writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to write a network.

    Attributes:
        write: network and folder → the path to audit.
        format: what the reader must take it for.
        says: facts beyond the tensors that the file holds.
    """

    write: Callable[[nn.Module, Path], Path]
    format: FileFormat
    says: frozenset[str] = frozenset()


def _zip(content: object, folder: Path) -> Path:
    torch.save(content, folder / "model.pt")
    return folder / "model.pt"


def _legacy(content: object, folder: Path) -> Path:
    torch.save(content, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def _safetensors(network: nn.Module, folder: Path) -> Path:
    safetensors.torch.save_model(network, str(folder / "model.safetensors"))
    return folder / "model.safetensors"


def _pretrained(network: nn.Module, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder / "model.safetensors"


def _sharded(network: nn.Module, folder: Path) -> Path:
    network.save_pretrained(folder, max_shard_size="4KB")
    return folder / "model.safetensors.index.json"


def _traced(network: nn.Module, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.randn(2, 3, IMAGE, IMAGE), check_trace=False, strict=False)
    torch.jit.save(traced, folder / "model.pt")
    return folder / "model.pt"


def _exported(network: nn.Module, folder: Path) -> Path:
    program = torch.export.export(network, (torch.randn(2, 3, IMAGE, IMAGE),))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


_FLAGS = frozenset({"eps", "momentum", "training", "class_path"})
_CALLS = frozenset({"baked_training", "execution_order", "eps", "momentum", "class_path"})

WAYS: dict[str, Way] = {
    "state-dict": Way(lambda network, folder: _zip(network.state_dict(), folder), FileFormat.TORCH_ZIP),
    "module": Way(_zip, FileFormat.TORCH_ZIP, _FLAGS),
    "legacy-state-dict": Way(lambda network, folder: _legacy(network.state_dict(), folder), FileFormat.TORCH_LEGACY),
    "legacy-module": Way(_legacy, FileFormat.TORCH_LEGACY, _FLAGS),
    "safetensors": Way(_safetensors, FileFormat.SAFETENSORS),
    "pretrained": Way(_pretrained, FileFormat.SAFETENSORS),
    "sharded": Way(_sharded, FileFormat.SAFETENSORS),
    "traced": Way(_traced, FileFormat.TORCHSCRIPT, _CALLS),
    "exported": Way(_exported, FileFormat.PT2, _CALLS),
}


# --- what torch says ---------------------------------------------------------------------------------------


def _norms(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if isinstance(module, _NORMS)}


def _order(network: nn.Module) -> list[str]:
    """Names of the layers as a forward pass comes to them."""
    called: list[str] = []
    for name, module in _norms(network).items():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        network(torch.randn(2, 3, IMAGE, IMAGE))
    return list(dict.fromkeys(called))


def _same(tensor: torch.Tensor | None, array: np.ndarray | None) -> bool:
    if tensor is None or array is None:
        return tensor is array
    return np.array_equal(tensor.detach().double().numpy(), array)


# Making a graph takes seconds: in training mode two of them are made.
_GRAPHS_IN_TRAINING = ("ResNetForImageClassification", "MobileNetV2ForImageClassification")
_CASES = [
    pytest.param(name, way, training, id=f"{name}-{way}-{'train' if training else 'eval'}")
    for name in MODELS
    for way in WAYS
    for training in (False, True)
    if not training or WAYS[way].says == _FLAGS or (WAYS[way].says == _CALLS and name in _GRAPHS_IN_TRAINING)
]


@pytest.mark.parametrize(("name", "way", "training"), _CASES)
def test_layers_are_those_torch_has(name: str, way: str, training: bool, tmp_path: Path) -> None:
    says = WAYS[way].says
    network = model(name, training=training)
    norms = _norms(network)
    order = _order(deepcopy(network)) if "execution_order" in says else []
    path = WAYS[way].write(network, tmp_path)
    norms = _norms(network)  # tracing in training mode counts as an update
    checkpoint = read(str(path))
    assert checkpoint.format is WAYS[way].format
    assert checkpoint.unread == ()
    found = {layer.name: layer for layer in checkpoint.layers}
    assert sorted(found) == sorted(norms)
    for layer_name, module in norms.items():
        _compare(found[layer_name], module, says)
    if "execution_order" in says:
        _compare_calls(checkpoint, order, training)


def _compare(layer: NormLayer, module: nn.Module, says: frozenset[str]) -> None:
    assert layer.kind is (NormKind.BATCH if isinstance(module, _NORMS[0]) else NormKind.INSTANCE)
    assert layer.num_features == module.num_features
    for leaf in ("running_mean", "running_var", "weight", "bias"):
        assert _same(getattr(module, leaf), getattr(layer, leaf)), leaf
    assert layer.num_batches_tracked == module.num_batches_tracked.item()
    assert layer.dtype == "float32"
    for fact in says & {"eps", "momentum", "training"}:
        assert getattr(layer, fact) == getattr(module, fact), fact
    if "class_path" in says:
        assert layer.class_path == f"{type(module).__module__}.{type(module).__qualname__}"


def _compare_calls(checkpoint: Checkpoint, order: list[str], training: bool) -> None:
    called = sorted(
        (layer for layer in checkpoint.layers if layer.execution_order is not None),
        key=lambda layer: layer.execution_order or 0,
    )
    assert [layer.name for layer in called] == order
    assert {layer.baked_training for layer in called} == {training}
