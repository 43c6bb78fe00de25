"""The reader beside torch: each file is written by torch, loaded by torch, and read without it.

Whatever torch says of a normalisation layer, the reader must say too; numbers bit for bit, as float64.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import functools
import pathlib
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.serialization import config as serialization_config

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage
from bncheck.core.errors import UnreadableFile, UnsafeFile
from bncheck.core.layers import Averaging, NormKind, NormLayer
from bncheck.readers import read
from tests.process import ROOT
from tests.readers.torch_files import (
    FEATURES,
    AveragedCopy,
    Block,
    FrozenBatchNorm2d,
    HidesInList,
    Level,
    Net,
    OwnBatchNorm,
    Point,
    Settings,
    Shade,
    Whitener,
    as_big_endian,
    filled,
    numbers,
    on_cuda,
    rewritten,
    saved,
    scale_by,
    unchanged,
)

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:ComplexHalf support")

_ARRAYS = ("running_mean", "running_var", "weight", "bias")

# The class of a layer → what it computes; the first that fits. Subclasses come before what they derive from.
_KINDS: tuple[tuple[type, NormKind], ...] = (
    (nn.SyncBatchNorm, NormKind.SYNC_BATCH),
    (nn.modules.instancenorm._InstanceNorm, NormKind.INSTANCE),
    (nn.modules.batchnorm._BatchNorm, NormKind.BATCH),
    (FrozenBatchNorm2d, NormKind.FROZEN_BATCH),
    (Whitener, NormKind.BATCH),
)


# --- what torch says ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """A layer by torch; what a state dict cannot say stays None."""

    name: str
    kind: NormKind
    num_features: int | None
    affine: bool
    track_running_stats: bool | None
    num_batches_tracked: int | float | None
    class_path: str | None = None
    eps: float | None = None
    momentum: float | Averaging | None = None
    training: bool | None = None
    dtype: str | None = None
    arrays: Mapping[str, np.ndarray | None] = field(default_factory=dict)


def told_by_module(root: nn.Module, prefix: str = "") -> list[Told]:
    """The layers of a module, by ``named_modules()``; ``prefix`` is what a wrapper put before the names."""
    return [
        _told_by_layer(name.removeprefix(prefix), module)
        for name, module in root.named_modules()
        if "running_mean" in module._buffers
    ]


def _told_by_layer(name: str, module: nn.Module) -> Told:
    tensors = {leaf: getattr(module, leaf, None) for leaf in (*_ARRAYS, "num_batches_tracked")}
    tensors = {leaf: None if _is_placeholder(tensor) else tensor for leaf, tensor in tensors.items()}
    momentum = getattr(module, "momentum", None)
    features = getattr(module, "num_features", None)
    mean, weight = tensors["running_mean"], tensors["weight"]
    return Told(
        name=name,
        kind=next(kind for owner, kind in _KINDS if isinstance(module, owner)),
        num_features=features or next((tensor.numel() for tensor in (mean, weight) if tensor is not None), None),
        affine=getattr(module, "affine", weight is not None),
        track_running_stats=getattr(module, "track_running_stats", True if mean is not None else None),
        num_batches_tracked=_number(tensors["num_batches_tracked"]),
        class_path=f"{type(module).__module__}.{type(module).__qualname__}",
        eps=getattr(module, "eps", None),
        momentum=Averaging.CUMULATIVE if momentum is None and hasattr(module, "momentum") else momentum,
        training=module.training,
        dtype=_format(mean),
        arrays={leaf: _array(tensors[leaf]) for leaf in _ARRAYS},
    )


def told_by_state_dict(state: Mapping[str, torch.Tensor], prefix: str = "") -> list[Told]:
    """The layers of a state dict that have running moments."""
    found = []
    for key in (key for key in state if key.rpartition(".")[2] == "running_mean"):
        name = key.rpartition(".")[0]
        tensors = {leaf: state.get(f"{name}.{leaf}" if name else leaf) for leaf in (*_ARRAYS, "num_batches_tracked")}
        found.append(
            Told(
                name=name.removeprefix(prefix),
                kind=NormKind.BATCH,
                num_features=tensors["running_mean"].numel(),
                affine=tensors["weight"] is not None,
                track_running_stats=True,
                num_batches_tracked=_number(tensors["num_batches_tracked"]),
                dtype=_format(tensors["running_mean"]),
                arrays={leaf: _array(tensors[leaf]) for leaf in _ARRAYS},
            )
        )
    return found


def _is_placeholder(tensor: object) -> bool:
    return isinstance(tensor, nn.parameter.UninitializedTensorMixin)


def _number(tensor: torch.Tensor | None) -> int | float | None:
    return None if tensor is None else tensor.item()


def _format(tensor: torch.Tensor | None) -> str | None:
    return None if tensor is None else str(tensor.dtype).removeprefix("torch.")


def _array(tensor: torch.Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().to(torch.float64).resolve_neg().reshape(-1).numpy()


# --- comparing ---------------------------------------------------------------------------------------------


def assert_same(layers: list[NormLayer], told: list[Told]) -> None:
    """Every layer torch has, in its order, and no other; floats by their bits, so that −0.0 is not 0.0."""
    assert [layer.name for layer in layers] == [layer.name for layer in told]
    for layer, by_torch in zip(layers, told, strict=True):
        for attribute in (
            "kind",
            "num_features",
            "affine",
            "track_running_stats",
            "num_batches_tracked",
            "class_path",
            "eps",
            "momentum",
            "training",
            "dtype",
        ):
            mine, theirs = getattr(layer, attribute), getattr(by_torch, attribute)
            assert mine == theirs, f"{layer.full_name}.{attribute}"
            assert mine is None or isinstance(mine, type(theirs)), f"{layer.full_name}.{attribute}"
        for leaf, theirs in by_torch.arrays.items():
            mine = getattr(layer, leaf)
            assert (mine is None) == (theirs is None), f"{layer.full_name}.{leaf}"
            if mine is not None:
                assert mine.dtype == np.float64
                assert mine.view(np.int64).tolist() == theirs.view(np.int64).tolist(), f"{layer.full_name}.{leaf}"


def of_group(checkpoint: Checkpoint, group: str = "model") -> list[NormLayer]:
    """One network's layers, of a file that was read whole."""
    assert not checkpoint.unread
    return [layer for layer in checkpoint.layers if layer.group == group]


def loaded(path: Path) -> object:
    """What torch makes of the file."""
    return torch.load(path, weights_only=False, map_location="cpu")


def assert_module_file(path: Path, prefix: str = "") -> Checkpoint:
    """Compare a file that holds one module and nothing else."""
    checkpoint = read(str(path))
    told = told_by_module(loaded(path), prefix)
    assert told, "there is nothing to compare"
    assert_same(of_group(checkpoint), told)
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.MODULE, Stage.RELEASE)
    return checkpoint


def assert_state_dict_file(path: Path, prefix: str = "") -> Checkpoint:
    """Compare a file that holds one state dict and nothing else."""
    checkpoint = read(str(path))
    told = told_by_state_dict(loaded(path), prefix)
    assert told, "there is nothing to compare"
    assert_same(of_group(checkpoint), told)
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.STATE_DICT, Stage.RELEASE)
    return checkpoint


# --- packaging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, lambda state: state], ids=["dict", "ordered", "own"])
def test_state_dict(tmp_path: Path, kind: Callable[[dict], dict], protocol: int) -> None:
    path = saved(kind(filled(Net()).state_dict()), tmp_path / "m.pt", pickle_protocol=protocol)
    checkpoint = assert_state_dict_file(path)
    assert checkpoint.tensors.keys() == loaded(path).keys()
    for name, tensor in loaded(path).items():
        reference = checkpoint.tensors[name]
        assert (reference.shape, reference.strides) == (tuple(tensor.shape), tensor.stride())
        assert (reference.dtype, reference.storage_offset) == (_format(tensor), tensor.storage_offset())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_module(tmp_path: Path, protocol: int) -> None:
    assert_module_file(saved(filled(Net()), tmp_path / "m.pt", pickle_protocol=protocol))


def test_modes_of_single_layers(tmp_path: Path) -> None:
    net = filled(Net()).eval()
    net.block.norm.train()
    assert_module_file(saved(net, tmp_path / "m.pt"))


@pytest.mark.parametrize(
    "name", ["model.pt", "no_extension", "model.tar.gz", "ünï.pt", "with space.pt", "a+b=c,d.ckpt"]
)
def test_archive_folder_is_named_after_the_file(tmp_path: Path, name: str) -> None:
    assert_state_dict_file(saved(filled(Net()).state_dict(), tmp_path / name))


@pytest.mark.parametrize(
    "name",
    [
        "2026-01-31T12:30:00.pt",
        "C:net.pt",
        "..pt",
        "run\\7.pt",
        "-.pt",
    ],
)
def test_archive_folder_with_an_odd_name(tmp_path: Path, name: str) -> None:
    """torch puts the file's name into every member's; a time of day in it is no path that leaves the archive."""
    assert_state_dict_file(saved(filled(Net()).state_dict(), tmp_path / name))


def test_file_object(tmp_path: Path) -> None:
    with open(tmp_path / "m.pt", "wb") as file:
        torch.save(filled(Net()).state_dict(), file)
    assert_state_dict_file(tmp_path / "m.pt")


def test_network_that_is_itself_a_norm(tmp_path: Path) -> None:
    assert_module_file(saved(filled(nn.BatchNorm2d(FEATURES)), tmp_path / "m.pt"))
    assert_state_dict_file(saved(filled(nn.BatchNorm2d(FEATURES)).state_dict(), tmp_path / "s.pt"))


# --- wrappers ----------------------------------------------------------------------------------------------


def test_data_parallel_module(tmp_path: Path) -> None:
    assert_module_file(saved(nn.DataParallel(filled(Net())), tmp_path / "m.pt"), prefix="module.")


@pytest.mark.parametrize("kind", [dict, lambda state: state], ids=["dict", "own"])
def test_data_parallel_state_dict(tmp_path: Path, kind: Callable[[dict], dict]) -> None:
    path = saved(kind(nn.DataParallel(filled(Net())).state_dict()), tmp_path / "m.pt")
    assert_state_dict_file(path, prefix="module.")


def test_data_parallel_around_a_norm(tmp_path: Path) -> None:
    path = saved(nn.DataParallel(filled(nn.BatchNorm2d(FEATURES))), tmp_path / "m.pt")
    checkpoint = read(str(path))
    (by_torch,) = told_by_module(loaded(path).module)
    (layer,) = of_group(checkpoint)
    assert layer.running_mean.tolist() == by_torch.arrays["running_mean"].tolist()


def test_module_prefix_of_one_layer_is_a_name(tmp_path: Path) -> None:
    """Only a prefix that all names share is a wrapper's."""
    net = nn.ModuleDict({"module": Block(), "other": Block()})
    assert_state_dict_file(saved(filled(net).state_dict(), tmp_path / "m.pt"))
    assert_module_file(saved(net, tmp_path / "n.pt"))


def test_averaged_model(tmp_path: Path) -> None:
    """Its counter beside ``module.`` tells that it is an average; its layers have the names of the network's."""
    averaged = torch.optim.swa_utils.AveragedModel(filled(Net()))
    state = read(str(saved(averaged.state_dict(), tmp_path / "s.pt")))
    assert_same(of_group(state, "averaged"), told_by_state_dict(averaged.module.state_dict()))
    module = read(str(saved(averaged, tmp_path / "m.pt")))
    assert_same(of_group(module, "averaged"), told_by_module(averaged.module))


# --- checkpoints -------------------------------------------------------------------------------------------


def nested(keys: tuple[str | int, ...], value: object) -> object:
    """``{"a": [None, value]}`` for ``("a", 1)``: a string makes a dict, a number a list."""
    for key in reversed(keys):
        value = {key: value, "epoch": 3} if isinstance(key, str) else [None] * key + [value]
    return value


@pytest.mark.parametrize(
    ("keys", "group"),
    [
        (("model",), "model"),
        (("state_dict",), "model"),
        (("model_state_dict",), "model"),
        (("net",), "model"),
        (("module",), "model"),
        (("checkpoint", "model"), "checkpoint"),
        (("model", "state_dict"), "model"),
        (("ema",), "ema"),
        (("model_ema",), "ema"),
        (("ema_state_dict",), "ema"),
        (("callbacks", "EMA", "state_dict"), "ema"),
        (("swa_model",), "swa"),
        (("teacher", "model"), "teacher"),
        (("generator",), "generator"),
        (("networks", 1), "networks.1"),
        ((2, "model"), "2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [False, True], ids=["state-dict", "module"])
def test_nesting(tmp_path: Path, keys: tuple[str | int, ...], group: str, whole: bool) -> None:
    net = filled(Net())
    path = saved(nested(keys, net if whole else net.state_dict()), tmp_path / "c.pt")
    inner = loaded(path)
    for key in keys:
        inner = inner[key]
    checkpoint = read(str(path))
    assert_same(of_group(checkpoint, group), told_by_module(inner) if whole else told_by_state_dict(inner))
    assert {layer.group for layer in checkpoint.layers} == {group}
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.CHECKPOINT, Stage.RELEASE)


def test_copies_beside_each_other(tmp_path: Path) -> None:
    networks = {key: filled(Net(), seed) for seed, key in enumerate(("model", "ema", "teacher"))}
    path = saved(
        {key: net.state_dict() for key, net in networks.items()} | {"extra": [1, "x", None]}, tmp_path / "c.pt"
    )
    checkpoint = read(str(path))
    for key, state in loaded(path).items():
        if key in networks:
            assert_same(of_group(checkpoint, key), told_by_state_dict(state))


def test_tensor_beside_the_state_dict(tmp_path: Path) -> None:
    """Training scripts keep the best accuracy as a tensor; it is no network, and the network is still the model."""
    path = saved({"state_dict": filled(Net()).state_dict(), "best_acc1": torch.tensor(71.3)}, tmp_path / "c.pt")
    assert_same(of_group(read(str(path))), told_by_state_dict(loaded(path)["state_dict"]))


def test_helper_object_with_a_module_attribute(tmp_path: Path) -> None:
    path = saved({"model": filled(Net()), "ema": AveragedCopy(filled(Net(), 1))}, tmp_path / "c.pt")
    checkpoint = read(str(path))
    assert_same(of_group(checkpoint), told_by_module(loaded(path)["model"]))
    assert_same(of_group(checkpoint, "ema"), told_by_module(loaded(path)["ema"].module))


def test_network_under_two_keys_counts_once(tmp_path: Path) -> None:
    net = filled(Net())
    path = saved({"model": net, "ema": net}, tmp_path / "c.pt")
    assert_same(list(read(str(path)).layers), told_by_module(net))


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-3)


_OPTIMIZERS: Mapping[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], bool]] = {
    # Writer, and whether its state counts steps.
    "adam": (_adam, True),
    "adamw-amsgrad": (lambda net: torch.optim.AdamW(net.parameters(), amsgrad=True), True),
    "adam-one-by-one": (lambda net: torch.optim.Adam(net.parameters(), foreach=False), True),
    "rmsprop": (lambda net: torch.optim.RMSprop(net.parameters()), True),
    "sgd": (lambda net: torch.optim.SGD(net.parameters(), lr=0.1), False),
    "sgd-momentum": (lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), False),
}


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.mark.parametrize("whole", [False, True], ids=["state", "object"])
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_optimizer_steps(tmp_path: Path, name: str, whole: bool) -> None:
    net = filled(Net())
    make, counts = _OPTIMIZERS[name]
    optimizer = make(net)
    _train(net, optimizer, 7)
    state = optimizer if whole else optimizer.state_dict()
    path = saved({"model": net.state_dict(), "optimizer": state, "epoch": 2}, tmp_path / "c.pt")
    checkpoint = read(str(path))
    entries = loaded(path)["optimizer"]
    entries = entries.state_dict() if whole else entries
    steps = [int(entry["step"]) for entry in entries["state"].values() if entry and "step" in entry]
    assert bool(steps) is counts
    assert checkpoint.training.optimizer == "optimizer"
    assert checkpoint.training.optimizer_steps == (max(steps) if steps else None)
    assert_same(list(checkpoint.layers), told_by_state_dict(loaded(path)["model"]))
    assert checkpoint.stage is Stage.TRAINING


def test_two_optimizers_and_a_scheduler(tmp_path: Path) -> None:
    nets = [filled(Net(), seed) for seed in (0, 1)]
    optimizers = [_adam(net) for net in nets]
    for net, optimizer, steps in zip(nets, optimizers, (3, 5), strict=True):
        _train(net, optimizer, steps)
    value = {
        "generator": nets[0].state_dict(),
        "discriminator": nets[1].state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizers[0], 10).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "rng": torch.get_rng_state(),
    }
    checkpoint = read(str(saved(value, tmp_path / "c.pt")))
    assert (checkpoint.training.optimizer, checkpoint.training.optimizer_steps) == ("optimizers.0", 5)
    for group, net in zip(("generator", "discriminator"), nets, strict=True):
        assert_same(of_group(checkpoint, group), told_by_state_dict(net.state_dict()))


# --- layers ------------------------------------------------------------------------------------------------


def _warmed(layer: nn.Module) -> nn.Module:
    """A lazy layer after its first batch."""
    layer(torch.randn(4, FEATURES, 5, 5))
    return layer


_LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    "batch-1d": lambda: nn.BatchNorm1d(FEATURES),
    "batch-2d": lambda: nn.BatchNorm2d(FEATURES, eps=1e-3, momentum=0.01),
    "batch-3d": lambda: nn.BatchNorm3d(FEATURES, eps=0.0),
    "sync": lambda: nn.SyncBatchNorm(FEATURES),
    "no-affine": lambda: nn.BatchNorm2d(FEATURES, affine=False),
    "no-bias": lambda: nn.BatchNorm2d(FEATURES, bias=False),
    "no-tracking": lambda: nn.BatchNorm2d(FEATURES, track_running_stats=False),
    "nothing": lambda: nn.BatchNorm2d(FEATURES, affine=False, track_running_stats=False),
    "cumulative": lambda: nn.BatchNorm2d(FEATURES, momentum=None),
    "momentum-zero": lambda: nn.BatchNorm2d(FEATURES, momentum=0.0),
    "one-channel": lambda: nn.BatchNorm2d(1),
    "instance": lambda: nn.InstanceNorm2d(FEATURES),
    "instance-1d-affine": lambda: nn.InstanceNorm1d(FEATURES, affine=True),
    "instance-3d-tracked": lambda: nn.InstanceNorm3d(FEATURES, affine=True, track_running_stats=True),
    "lazy": lambda: nn.LazyBatchNorm2d(),
    "lazy-after-a-batch": lambda: _warmed(nn.LazyBatchNorm2d()),
    "lazy-instance": lambda: nn.LazyInstanceNorm2d(affine=True, track_running_stats=True),
    "subclass": lambda: OwnBatchNorm(FEATURES),
    "by-hand": lambda: Whitener(),
    "frozen": lambda: FrozenBatchNorm2d(),
    "float64": lambda: nn.BatchNorm2d(FEATURES, dtype=torch.float64),
    "half": lambda: nn.BatchNorm2d(FEATURES).half(),
    "bfloat16": lambda: nn.BatchNorm2d(FEATURES).bfloat16(),
}


@pytest.mark.parametrize("name", _LAYERS)
def test_layer_in_a_module(tmp_path: Path, name: str) -> None:
    assert_module_file(saved(nn.Sequential(nn.Identity(), filled(_LAYERS[name]())), tmp_path / "m.pt"))


# Their state dicts hold no running moments.
_UNTRACKED = frozenset({"no-tracking", "nothing", "instance", "instance-1d-affine", "lazy", "lazy-instance"})


@pytest.mark.parametrize("name", [name for name in _LAYERS if name not in _UNTRACKED])
def test_layer_in_a_state_dict(tmp_path: Path, name: str) -> None:
    net = nn.Sequential(nn.Identity(), filled(_LAYERS[name]()))
    assert_state_dict_file(saved(net.state_dict(), tmp_path / "m.pt"))


def test_uninitialised_lazy_layer_in_a_state_dict(tmp_path: Path) -> None:
    """Its moments are placeholders: no file with one may pass as if the layer were not there."""
    net = nn.Sequential(filled(nn.BatchNorm2d(FEATURES)), nn.LazyBatchNorm2d())
    checkpoint = read(str(saved(net.state_dict(), tmp_path / "m.pt")))
    assert checkpoint.unread or [layer.name for layer in checkpoint.layers] == ["0", "1"]


def test_untracked_layer_in_a_state_dict(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES, track_running_stats=False), nn.LayerNorm(FEATURES)))
    (layer,) = read(str(saved(net.state_dict(), tmp_path / "m.pt"))).layers
    assert (layer.name, layer.kind, layer.num_features) == ("0", NormKind.BATCH_OR_INSTANCE, FEATURES)
    assert layer.running_mean is None
    assert layer.weight.tolist() == net[0].weight.detach().double().tolist()


def test_module_under_two_names(tmp_path: Path) -> None:
    net = filled(Net())
    net.again = net.block
    assert_module_file(saved(net, tmp_path / "m.pt"))
    assert_state_dict_file(saved(net.state_dict(), tmp_path / "s.pt"))


def test_module_under_two_names_before_its_own_place(tmp_path: Path) -> None:
    """``named_modules()`` names a shared module after the first path that reaches it, depth first."""
    shared = nn.BatchNorm2d(FEATURES)
    net = nn.Sequential(nn.Sequential(nn.Sequential(shared)), nn.BatchNorm2d(FEATURES), shared)
    assert_module_file(saved(filled(net), tmp_path / "m.pt"))


def test_norms_in_a_plain_list(tmp_path: Path) -> None:
    """They are no submodules, so that eval() never reaches them; they are listed under the attribute's name."""
    path = saved(filled(HidesInList()), tmp_path / "m.pt")
    checkpoint = read(str(path))
    net = loaded(path)
    hidden = [_told_by_layer(f"hidden.{index}", layer) for index, layer in enumerate(net.hidden)]
    assert_same(of_group(checkpoint), [*told_by_module(net), *hidden])
    assert checkpoint.packaging is Packaging.MODULE


# --- tensors -----------------------------------------------------------------------------------------------


def one_norm(**tensors: torch.Tensor) -> nn.Module:
    """A network of one norm with these buffers and parameters."""
    layer = nn.BatchNorm2d(FEATURES)
    for name, tensor in tensors.items():
        if name in layer._parameters:
            layer._parameters[name] = nn.Parameter(tensor)
        else:
            layer._buffers[name] = tensor
    return nn.Sequential(layer)


def assert_both(net: nn.Module, folder: Path) -> None:
    """Compare as a module and as a state dict."""
    assert_module_file(saved(net, folder / "m.pt"))
    assert_state_dict_file(saved(net.state_dict(), folder / "s.pt"))


@pytest.mark.parametrize("statistics", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [torch.float32, torch.float16], ids=str)
def test_precision(tmp_path: Path, statistics: torch.dtype, scale: torch.dtype) -> None:
    net = one_norm(
        running_mean=numbers(FEATURES, statistics, 1),
        running_var=numbers(FEATURES, statistics, 2),
        weight=numbers(FEATURES, scale, 3),
        bias=numbers(FEATURES, scale, 4),
    )
    assert_both(net, tmp_path)


def test_nan(tmp_path: Path) -> None:
    mean = torch.tensor([float("nan"), 1.0, float("-inf"), float("nan"), 2.0, -0.0])
    path = saved(one_norm(running_mean=mean), tmp_path / "m.pt")
    (layer,) = read(str(path)).layers
    np.testing.assert_array_equal(layer.running_mean, mean.double().numpy())


@pytest.mark.parametrize(
    "count",
    [
        torch.tensor(12345),
        torch.tensor([7]),
        torch.tensor(2.5),
        torch.tensor(1e6, dtype=torch.float16),
        torch.tensor(2**53 - 1),
        torch.tensor(3, dtype=torch.int32),
        torch.tensor(0),
    ],
    ids=str,
)
def test_counter(tmp_path: Path, count: torch.Tensor) -> None:
    assert_both(one_norm(num_batches_tracked=count), tmp_path)


def test_counter_absent(tmp_path: Path) -> None:
    """As before torch 0.4.1, and after some converters."""
    net = filled(Net())
    state = {name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}
    assert_state_dict_file(saved(state, tmp_path / "s.pt"))
    for module in net.modules():
        module._buffers.pop("num_batches_tracked", None)
    assert_module_file(saved(net, tmp_path / "m.pt"))


def test_slices_of_one_storage(tmp_path: Path) -> None:
    flat = numbers(5 * FEATURES + 3)
    pieces = {name: flat[3 + FEATURES * at :][:FEATURES] for at, name in enumerate(_ARRAYS)}
    assert_both(one_norm(**pieces), tmp_path)


def test_all_statistics_in_one_buffer(tmp_path: Path) -> None:
    net = filled(Net())
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    flat, at = numbers(200), 1
    for norm in norms:
        for name in ("running_mean", "running_var"):
            norm._buffers[name] = flat[at : at + norm.num_features]
            at += norm.num_features
    assert_both(net, tmp_path)


def test_tensors_shared_between_layers(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES)))
    net[1].weight = net[0].weight
    net[1].running_mean = net[0].running_mean
    net[1].running_var = net[0].running_mean
    assert_both(net, tmp_path)


_VIEWS: Mapping[str, Callable[[], torch.Tensor]] = {
    "strided": lambda: numbers(4 * FEATURES)[2::3][:FEATURES],
    "column": lambda: numbers(5 * FEATURES).reshape(FEATURES, 5)[:, 3],
    "row-of-transposed": lambda: numbers(5 * FEATURES).reshape(FEATURES, 5).t()[2],
    "transposed": lambda: numbers(FEATURES).reshape(2, FEATURES // 2).t(),
    "four-dimensional": lambda: numbers(FEATURES).reshape(1, FEATURES, 1, 1),
    "channels-last": lambda: numbers(2 * FEATURES).reshape(1, FEATURES, 2, 1)[:, :, :1],
    "expanded": lambda: torch.tensor([0.25]).expand(FEATURES),
    "expanded-zero-dimensional": lambda: torch.tensor(0.25).expand(FEATURES),
    "expanded-rows": lambda: numbers(3).expand(2, 3),
    "at-the-end": lambda: numbers(100)[-FEATURES:],
    "overlapping": lambda: numbers(10).as_strided((3, 2), (1, 2), 4),
    "flipped": lambda: numbers(FEATURES).flip(0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", _VIEWS)
def test_views(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    view = _VIEWS[name]()
    if dtype is not torch.float32:
        base = torch.empty(view.untyped_storage().nbytes() // 4, dtype=dtype).copy_(
            torch.tensor([], dtype=torch.float32).set_(view.untyped_storage())
        )
        view = base.as_strided(view.size(), view.stride(), view.storage_offset())
    assert_both(one_norm(running_mean=view, running_var=view, weight=view.detach()), tmp_path)


def test_moments_kept_as_parameters(tmp_path: Path) -> None:
    """As old ports of frozen batch norm do."""
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), FrozenBatchNorm2d()))
    for name in ("running_mean", "running_var"):
        net[1]._parameters[name] = nn.Parameter(net[1]._buffers.pop(name), requires_grad=False)
    path = saved(net, tmp_path / "m.pt")
    assert [layer.name for layer in of_group(read(str(path)))] == ["0", "1"]


def test_lazily_negated_view(tmp_path: Path) -> None:
    """torch may store a tensor with the note that its sign is still to be turned."""
    net = one_norm(running_mean=torch._neg_view(numbers(FEATURES)))
    assert net[0].running_mean.is_neg()
    path = saved(net, tmp_path / "m.pt")
    checkpoint = read(str(path))
    assert checkpoint.unread or checkpoint.layers[0].running_mean.tolist() == _array(net[0].running_mean).tolist()


def test_views_that_reach_across_a_large_storage(tmp_path: Path) -> None:
    """A column of a matrix of 40 MB takes a few bytes of it."""
    matrix = torch.zeros(5000, 2000)
    matrix[:, 7] = 1.5
    tensors = {"running_mean": matrix[:, 7], "running_var": matrix[:, 8], "weight": matrix[:, 7], "bias": matrix[:, 9]}
    checkpoint = read(str(saved({f"bn.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "m.pt")))
    (layer,) = of_group(checkpoint)
    assert layer.running_mean.tolist() == [1.5] * 5000


# --- what is no plain tensor -------------------------------------------------------------------------------


def test_module_on_the_meta_device(tmp_path: Path) -> None:
    checkpoint = read(str(saved(Net().to("meta"), tmp_path / "m.pt")))
    unread = {entry.what for entry in checkpoint.unread}
    assert unread >= {f"{name}.running_{kind}" for name in ("bn1", "block.norm", "head.2") for kind in ("mean", "var")}


def test_state_dict_on_the_meta_device(tmp_path: Path) -> None:
    checkpoint = read(str(saved(Net().to("meta").state_dict(), tmp_path / "m.pt")))
    assert {entry.what for entry in checkpoint.unread} >= {"bn1.running_mean", "head.2.running_var"}


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def _per_channel(tensor: torch.Tensor) -> torch.Tensor:
    scales, zeros = torch.full((len(tensor),), 0.1), torch.zeros(len(tensor), dtype=torch.long)
    return torch.quantize_per_channel(tensor, scales, zeros, 0, torch.qint8)


_ODD_TENSORS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse-csr": lambda tensor: tensor.reshape(1, -1).to_sparse_csr(),
    "quantised": _quantised,
    "quantised-per-channel": _per_channel,
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", _ODD_TENSORS)
def test_odd_statistics_in_a_module_are_never_clean(tmp_path: Path, kind: str) -> None:
    checkpoint = read(str(saved(_with_odd_statistics(kind), tmp_path / "m.pt")))
    assert {entry.what for entry in checkpoint.unread} == {"1.running_mean", "1.running_var"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind",
    [
        *_ODD_TENSORS,
    ],
)
def test_odd_statistics_in_a_state_dict_are_never_clean(tmp_path: Path, kind: str) -> None:
    checkpoint = read(str(saved(_with_odd_statistics(kind).state_dict(), tmp_path / "m.pt")))
    assert {entry.what for entry in checkpoint.unread} == {"1.running_mean", "1.running_var"}


def _with_odd_statistics(kind: str) -> nn.Module:
    """Two norms, of which the second keeps its moments as something that is no plain tensor of real numbers."""
    net = nn.Sequential(filled(nn.BatchNorm2d(FEATURES)), filled(nn.BatchNorm2d(FEATURES), 1))
    for name in ("running_mean", "running_var"):
        net[1]._buffers[name] = _ODD_TENSORS[kind](net[1]._buffers[name])
    return net


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", _ODD_TENSORS)
def test_odd_tensors_beside_the_norms_do_no_harm(tmp_path: Path, kind: str) -> None:
    net = filled(Net())
    net.register_buffer("mask", _ODD_TENSORS[kind](torch.ones(4)))
    told = told_by_module(net)
    assert_same(of_group(read(str(saved(net, tmp_path / "m.pt")))), told)
    assert_same(of_group(read(str(saved(net.state_dict(), tmp_path / "s.pt")))), told_by_state_dict(net.state_dict()))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.int8, torch.complex32])
def test_other_number_formats_beside_the_norms_do_no_harm(tmp_path: Path, dtype: torch.dtype) -> None:
    net = filled(Net())
    net.register_buffer("other", torch.zeros(5, dtype=dtype))
    assert_both(net, tmp_path)


# --- attributes --------------------------------------------------------------------------------------------

_ATTRIBUTES: Mapping[str, object] = {
    "partial": functools.partial(scale_by, 2.0, value=3.0),
    "numpy-float": np.float64(0.5),
    "numpy-int": np.int64(5),
    "numpy-bool": np.bool_(True),
    "numpy-array": np.arange(12.0).reshape(3, 4)[:, ::2],
    "numpy-strings": np.array(["a", "bc"]),
    "numpy-objects": np.array([None, "x"], dtype=object),
    "numpy-dtype": np.dtype("float32"),
    "numpy-type": np.float32,
    "numpy-random-state": np.random.RandomState(0),
    "path": pathlib.Path("/data/images"),
    "pure-path": pathlib.PurePosixPath("a/b"),
    "set": {1, 2},
    "frozenset": frozenset({"a"}),
    "dataclass": Settings(),
    "namespace": argparse.Namespace(lr=0.1, batch=8),
    "deque": collections.deque([1, 2], maxlen=3),
    "counter": collections.Counter("aab"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "ordered-dict": collections.OrderedDict(a=1),
    "datetime": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(hours=1),
    "decimal": decimal.Decimal("0.1"),
    "uuid": uuid.UUID(int=5),
    "complex": 1 + 2j,
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"\x00\xff"),
    "slice": slice(1, None),
    "ellipsis": ...,
    "function": scale_by,
    "class": nn.BatchNorm2d,
    "torch-dtype": torch.float16,
    "torch-device": torch.device("cuda", 1),
    "torch-size": torch.Size([1, 2]),
    "torch-layout": torch.strided,
    "tensor": torch.ones(2),
    "tensors": [torch.ones(2), torch.zeros(1)],
    "tensor-dict": {"a": torch.ones(2)},
    "tuple-keys": {(1, 2): "x", None: 3, 2.5: 4},
    "huge-integer": 10**100,
    "deep-tuple": ((((((1,),),),),),),
    "bound-method": Settings().__eq__,
}


@pytest.mark.parametrize("name", _ATTRIBUTES)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_attribute(tmp_path: Path, name: str, protocol: int) -> None:
    """Whatever else a network keeps, its norms are read."""
    path = saved(_with_setting(_ATTRIBUTES[name]), tmp_path / "m.pt", pickle_protocol=protocol)
    checkpoint = read(str(path))
    assert_same(of_group(checkpoint), told_by_module(loaded(path)))
    assert checkpoint.packaging is Packaging.MODULE


@pytest.mark.parametrize("protocol", [2, 4])
def test_range_attribute(tmp_path: Path, protocol: int) -> None:
    assert_module_file(saved(_with_setting(range(3)), tmp_path / "m.pt", pickle_protocol=protocol))


_CLASSES = "tests.readers.torch_files"


@pytest.mark.parametrize(
    ("setting", "called"),
    [
        (Shade.DARK, f"{_CLASSES}.Shade"),
        (Level.HIGH, f"{_CLASSES}.Level"),
        (Point(1, 2), f"{_CLASSES}.Point"),
    ],
    ids=["enum", "int-enum", "named-tuple"],
)
def test_attribute_of_an_own_class_made_by_a_call(tmp_path: Path, setting: object, called: str) -> None:
    """Only torch, which imports it, can know what the class does with its arguments: the user must vouch for it."""
    path = saved(_with_setting(setting), tmp_path / "m.pt")
    with pytest.raises(UnsafeFile, match=f"--allow-call {called}"):
        read(str(path))
    assert_same(of_group(read(str(path), vouched=frozenset({called}))), told_by_module(loaded(path)))


def _with_setting(value: object) -> nn.Module:
    net = filled(Net())
    net.setting = value
    return net


@pytest.mark.parametrize(
    ("attribute", "value"), [("momentum", np.float64(0.2)), ("eps", np.float32(1e-4)), ("momentum", 1), ("eps", 0)]
)
def test_settings_that_are_no_floats(tmp_path: Path, attribute: str, value: float) -> None:
    """Schedules compute a momentum with numpy; the number is told, or nothing is."""
    net = filled(Net())
    setattr(net.bn1, attribute, value)
    layer = read(str(saved(net, tmp_path / "m.pt"))).layers[0]
    assert getattr(layer, attribute) in (None, float(value))


# --- archives ----------------------------------------------------------------------------------------------


def test_without_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(filled(Net()).state_dict(), tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert not assert_state_dict_file(path).remarks


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_storage_alignment(tmp_path: Path, alignment: int) -> None:
    with serialization_config.patch({"save.storage_alignment": alignment}):
        path = saved(filled(Net()).state_dict(), tmp_path / "m.pt")
    assert not assert_state_dict_file(path).remarks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_big_endian(tmp_path: Path, dtype: torch.dtype) -> None:
    net = filled(Net()).to(dtype)
    little = saved(net, tmp_path / "m.pt")
    big = as_big_endian(little)
    assert little.read_bytes() != big.read_bytes()
    assert_same(told_as_layers(told_by_module(loaded(big))), told_by_module(net))
    checkpoint = assert_module_file(big)
    assert all(tensor.big_endian for tensor in checkpoint.tensors.values())


def told_as_layers(told: list[Told]) -> list[NormLayer]:
    """For comparing what torch says twice."""
    return [
        NormLayer(
            **{name: getattr(each, name) for name in Told.__dataclass_fields__ if name != "arrays"}, **each.arrays
        )
        for each in told
    ]


def test_optimizer_steps_of_a_big_endian_file(tmp_path: Path) -> None:
    net = filled(Net())
    optimizer = _adam(net)
    _train(net, optimizer, 9)
    path = as_big_endian(saved({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt"))
    assert {float(entry["step"]) for entry in loaded(path)["optimizer"]["state"].values()} == {9.0}
    assert read(str(path)).training.optimizer_steps == 9


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_packed_again(tmp_path: Path, method: int) -> None:
    path = rewritten(saved(filled(Net()), tmp_path / "m.pt"), unchanged, method)
    assert_module_file(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_slices_packed_again(tmp_path: Path, method: int) -> None:
    """Of a deflated storage no range can be read without unpacking what lies before it."""
    flat = numbers(1000)
    net = one_norm(**{name: flat[500 + FEATURES * at :][:FEATURES] for at, name in enumerate(_ARRAYS)})
    assert_module_file(rewritten(saved(net, tmp_path / "m.pt"), unchanged, method))


def test_saved_from_a_gpu(tmp_path: Path) -> None:
    path = on_cuda(saved(filled(Net()).state_dict(), tmp_path / "m.pt"))
    locations: set[str] = set()
    torch.load(path, map_location=lambda storage, location: locations.add(location) or storage)
    assert locations == {"cuda:0"}
    assert_state_dict_file(path)


def test_cut_short_is_noticed_by_both(tmp_path: Path) -> None:
    path = saved(filled(Net()).state_dict(), tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((RuntimeError, OSError)):
        loaded(path)
    with pytest.raises(UnreadableFile, match="cut short"):
        read(str(path))


# --- safetensors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["bare", "metadata"])
def test_safetensors(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(filled(Net()).state_dict(), path, metadata=metadata)
    checkpoint = read(str(path))
    told = {each.name: each for each in told_by_state_dict(safetensors.torch.load_file(path))}
    assert told.keys() == {layer.name for layer in checkpoint.layers}
    assert_same(of_group(checkpoint), [told[layer.name] for layer in checkpoint.layers])
    assert (checkpoint.format, checkpoint.packaging) == (FileFormat.SAFETENSORS, Packaging.STATE_DICT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_safetensors_statistics(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "m.safetensors"
    net = one_norm(running_mean=numbers(FEATURES, dtype), running_var=numbers(FEATURES, dtype, 1))
    safetensors.torch.save_file(net.state_dict(), path)
    assert_same(of_group(read(str(path))), told_by_state_dict(safetensors.torch.load_file(path)))


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(dtype, id=str(dtype)) for dtype in sorted(safetensors.torch._SIZE, key=str)],
)
def test_safetensors_of_any_format_beside_the_norms(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "m.safetensors"
    state = {"bn.running_mean": numbers(FEATURES), "bn.running_var": numbers(FEATURES, seed=1)}
    other = torch.zeros(8, dtype=torch.uint8).view(dtype)
    safetensors.torch.save_file({**state, "other": other, "scalar": torch.tensor(1)}, path)
    assert_same(of_group(read(str(path))), told_by_state_dict(state))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64], ids=str)
def test_safetensors_odd_statistics_are_never_clean(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "m.safetensors"
    state = {f"bn.{name}": numbers(FEATURES).to(dtype) for name in ("running_mean", "running_var")}
    safetensors.torch.save_file(state, path)
    assert {entry.what for entry in read(str(path)).unread} == set(state)


def test_safetensors_prefix(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(nn.DataParallel(filled(Net())).state_dict(), path)
    assert {layer.name for layer in read(str(path)).layers} == {"bn1", "block.norm", "head.2"}


# --- no torch ----------------------------------------------------------------------------------------------


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    net = filled(Net())
    optimizer = _adam(net)
    _train(net, optimizer, 1)
    files = [
        saved(net.state_dict(), tmp_path / "state.pt"),
        saved(net, tmp_path / "module.pt"),
        saved({"model": net, "ema": AveragedCopy(net), "optimizer": optimizer}, tmp_path / "checkpoint.pt"),
        as_big_endian(tmp_path / "state.pt"),
        tmp_path / "m.safetensors",
    ]
    safetensors.torch.save_file(net.state_dict(), files[-1])
    program = """
import sys
import bncheck
from bncheck.readers import read
for path in sys.argv[1:]:
    assert len(read(path).layers) >= 3, path
loaded = {"torch", "safetensors", "pickle", "zipfile", "tests"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded - {"pickle"} else 0)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
