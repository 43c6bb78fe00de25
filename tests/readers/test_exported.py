"""Exported programs beside torch: each file is written by torch, loaded by torch, and read without it."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.pt2_archive._package import package_pt2

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage
from bncheck.core.errors import UnsupportedFile
from bncheck.core.layers import NormKind, NormLayer
from bncheck.readers import exported_graph, exported_operators, exported_tensors, read
from tests.readers.exported_files import (
    FEATURES,
    IMAGES,
    LAYOUTS,
    AdaptiveInstanceNorm2d,
    BatchStyler,
    Branches,
    ByHand,
    DomainBatchNorm,
    Everything,
    FrozenBatchNorm2d,
    FrozenLakeNet,
    InstanceSegmenter,
    Shared,
    Whitener,
    as_big_endian,
    with_graph,
    without_metadata,
    written,
    written_as_2_7,
    written_as_2_8,
)
from tests.readers.torch_files import filled, rewritten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

ROLES = ("running_mean", "running_var", "weight", "bias")
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "everything": Everything,
    "shared": Shared,
    "shared-plain": lambda: Shared(affine=False),
    "by-hand": ByHand,
    "branches": Branches,
    "small": lambda: nn.Sequential(nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES, momentum=None)),
}


@cache
def network(name: str, *, training: bool = False) -> nn.Module:
    return filled(NETWORKS[name]()).train(training)


@cache
def program(name: str, *, training: bool = False, decomposed: bool = False, strict: bool = False) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if decomposed:
            return program(name, training=training, strict=strict).run_decompositions()
        return torch.export.export(network(name, training=training), (torch.ones(IMAGES),), strict=strict)


def saved(
    folder: Path, module: nn.Module, *inputs: Tensor, dynamic: object = None, save: Callable[..., Path] = written
) -> Path:
    exported = torch.export.export(module, inputs or (torch.ones(IMAGES),), dynamic_shapes=dynamic)
    return save(exported, folder / "model.pt2")


def by_name(checkpoint: Checkpoint) -> dict[str, NormLayer]:
    layers = {layer.name: layer for layer in checkpoint.layers}
    assert len(layers) == len(checkpoint.layers)
    return layers


# --- what torch says ---------------------------------------------------------------------------------------


def norms(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._NormBase)}


def kind_of(part: nn.Module) -> NormKind:
    if isinstance(part, nn.SyncBatchNorm):
        return NormKind.SYNC_BATCH
    return NormKind.INSTANCE if isinstance(part, nn.modules.instancenorm._InstanceNorm) else NormKind.BATCH


def order_of_calls(module: nn.Module) -> dict[str, int]:
    """Positions of first calls among all, as the network itself makes them."""
    called: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: called.append(name)) for name, part in norms(module).items()
    ]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module(torch.rand(IMAGES))
    for handle in handles:
        handle.remove()
    module.load_state_dict(state)
    return {name: called.index(name) for name in called}


def mode_of(part: nn.Module) -> bool:
    """What its forward passes to the operator."""
    tracks = part.running_mean is not None
    return part.training or not tracks


def assert_is(layer: NormLayer, part: nn.Module, loaded: Mapping[str, Tensor] | None = None) -> None:
    """The layer is what torch has, its tensors bit for bit."""
    # What the graph never calls is told by its tensors alone.
    assert layer.kind is (NormKind.BATCH if layer.execution_order is None else kind_of(part))
    assert layer.num_features == part.num_features
    assert layer.affine == part.affine
    assert layer.track_running_stats == part.track_running_stats
    assert layer.training is None
    counter = part.num_batches_tracked
    assert layer.num_batches_tracked == (None if counter is None else counter.item())
    assert layer.dtype == (None if part.running_var is None else str(part.running_var.dtype).removeprefix("torch."))
    for role in ROLES:
        assert_same(getattr(layer, role), getattr(part, role))
        if loaded is not None:
            assert_same(getattr(layer, role), loaded.get(f"{layer.name}.{role}"))


def assert_same(array: np.ndarray | None, tensor: Tensor | None) -> None:
    if tensor is None:
        assert array is None
    else:
        assert array is not None
        assert array.dtype == np.float64
        assert array.tobytes() == tensor.detach().double().contiguous().numpy().tobytes()


def assert_is_network(path: Path, module: nn.Module) -> Checkpoint:
    checkpoint = read(str(path))
    assert (checkpoint.format, checkpoint.packaging) == (FileFormat.PT2, Packaging.EXPORTED_PROGRAM)
    assert checkpoint.stage is Stage.RELEASE
    assert checkpoint.unread == ()
    assert checkpoint.remarks == ()
    loaded = torch.export.load(path)
    state = loaded.state_dict
    assert set(checkpoint.tensors) == {*state, *loaded.constants}
    layers, parts, order = by_name(checkpoint), norms(module), order_of_calls(module)
    assert set(layers) == set(parts)
    for name, part in parts.items():
        assert_is(layers[name], part, state)
        assert layers[name].execution_order == order.get(name)
        if name in order:
            assert layers[name].class_path == f"{type(part).__module__}.{type(part).__qualname__}"
            assert (layers[name].eps, layers[name].momentum) == (part.eps, part.momentum)
            assert layers[name].baked_training is mode_of(part)
        else:
            assert (layers[name].eps, layers[name].momentum, layers[name].baked_training) == (None, None, None)
    return checkpoint


# --- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_kind_of_layer(tmp_path: Path, *, training: bool, decomposed: bool) -> None:
    path = written(program("everything", training=training, decomposed=decomposed), tmp_path / "model.pt2")
    checkpoint = assert_is_network(path, network("everything", training=training))
    assert by_name(checkpoint)["unused"].execution_order is None
    assert by_name(checkpoint)["bn"].follows_bias
    assert not by_name(checkpoint)["own"].follows_bias


@pytest.mark.parametrize("save", LAYOUTS[1:], ids=lambda save: save.__name__)
@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_older_layouts(tmp_path: Path, save: Callable[..., Path], *, decomposed: bool) -> None:
    path = save(program("everything", decomposed=decomposed), tmp_path / "model.pt2")
    assert_is_network(path, network("everything"))


@pytest.mark.parametrize(
    ("training", "decomposed", "strict"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
    ids=["eval", "eval-decomposed", "train", "train-decomposed"],
)
def test_a_layer_called_several_times_is_one(tmp_path: Path, *, training: bool, decomposed: bool, strict: bool) -> None:
    exported = program("shared", training=training, decomposed=decomposed, strict=strict)
    layers = by_name(read(str(written(exported, tmp_path / "model.pt2"))))
    parts = norms(network("shared", training=training))
    assert set(layers) == set(parts) == {"last", "first"}
    for name, part in parts.items():
        assert_is(layers[name], part)
        assert layers[name].baked_training is training
    assert (layers["first"].execution_order, layers["last"].execution_order) == (0, 3)


def test_new_moments_that_an_operator_returns_are_the_layer_s(tmp_path: Path) -> None:
    """Decomposed in training mode, a layer's second call is given what the first returned, and nothing else tells."""
    exported = program("shared-plain", training=True, decomposed=True, strict=True)
    checkpoint = read(str(with_graph(written(exported, tmp_path / "model.pt2"), without_metadata)))
    assert checkpoint.unread == ()
    assert {name: layer.execution_order for name, layer in by_name(checkpoint).items()} == {"first": 0, "last": 3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("save", [written, written_as_2_7], ids=["raw", "pickled"])
def test_number_formats(tmp_path: Path, dtype: torch.dtype, save: Callable[..., Path]) -> None:
    module = filled(nn.Sequential(nn.BatchNorm2d(FEATURES)).to(dtype)).eval()
    path = saved(tmp_path, module, torch.ones(IMAGES, dtype=dtype), save=save)
    [layer] = read(str(path)).layers
    assert_is(layer, module[0], torch.export.load(path).state_dict)


@pytest.mark.parametrize("save", LAYOUTS, ids=lambda save: save.__name__)
def test_views_of_larger_storages_and_tied_tensors(tmp_path: Path, save: Callable[..., Path]) -> None:
    module = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES))).eval()
    large = torch.rand(40)
    module[0].running_var, module[1].running_var = large[3:7], large[8:24:4]
    module[1].weight = module[0].weight
    module[0].bias = nn.Parameter(torch.rand(5, FEATURES).t()[:, 1])
    path = saved(tmp_path, module, save=save)
    layers, state = by_name(read(str(path))), torch.export.load(path).state_dict
    assert list(layers) == ["0", "1"]
    for name, layer in layers.items():
        assert_is(layer, module[int(name)], state)


def test_moments_under_a_second_name_do_not_hide_their_layer(tmp_path: Path) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.bn = nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES)
            for name, bn in (("first", self.unused), ("second", self.bn)):
                self.register_buffer(f"{name}_mean", bn.running_mean)
                self.register_buffer(f"{name}_var", bn.running_var)

        def forward(self, images: Tensor) -> Tensor:
            return self.bn(images)

    module = filled(Watched()).eval()
    layers = by_name(read(str(saved(tmp_path, module))))
    for name, part in norms(module).items():
        assert_is(layers.pop(name), part)
    assert not layers


def test_a_cumulative_average_is_not_momentum_zero(tmp_path: Path) -> None:
    layers = by_name(read(str(written(program("small"), tmp_path / "model.pt2"))))
    assert (layers["0"].momentum, layers["1"].momentum) == (0.1, None)


def test_a_lone_layer_is_the_root(tmp_path: Path) -> None:
    module = filled(nn.BatchNorm2d(FEATURES)).eval()
    [layer] = read(str(saved(tmp_path, module))).layers
    assert layer.name == ""
    assert_is(layer, module)


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_symbolic_shapes(tmp_path: Path, *, decomposed: bool) -> None:
    module = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), nn.InstanceNorm2d(FEATURES, track_running_stats=True)))
    shapes = ({0: Dim("samples"), 2: Dim("height", min=3)},)
    exported = torch.export.export(module.eval(), (torch.ones(IMAGES),), dynamic_shapes=shapes)
    path = written(exported.run_decompositions() if decomposed else exported, tmp_path / "model.pt2")
    layers = by_name(read(str(path)))
    for name, layer in layers.items():
        assert_is(layer, module[int(name)])
    assert [layer.baked_training for layer in layers.values()] == [False, False]


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_nested_graphs(tmp_path: Path, *, decomposed: bool) -> None:
    path = written(program("branches", decomposed=decomposed), tmp_path / "model.pt2")
    layers, parts = by_name(read(str(path))), norms(network("branches"))
    assert set(layers) == set(parts)
    for name, part in parts.items():
        assert_is(layers[name], part)
        assert layers[name].baked_training is False
    assert sorted(layers, key=lambda name: layers[name].execution_order) == ["yes", "no", "calm", "cast", "looped"]


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("save", [written, written_as_2_8], ids=["raw", "pickled"])
def test_calls_by_hand(tmp_path: Path, save: Callable[..., Path], *, training: bool, decomposed: bool) -> None:
    module = network("by-hand", training=training)
    checkpoint = read(str(save(program("by-hand", training=training, decomposed=decomposed), tmp_path / "model.pt2")))
    layers = sorted(checkpoint.layers, key=lambda layer: layer.execution_order)
    assert checkpoint.unread == ()
    assert [layer.execution_order for layer in layers] == [0, 1, 2, 4, 5, 6]  # the fourth call is the second's layer
    whiten, middle, passing, norm, bare, instance = layers
    assert (whiten.name, whiten.class_path) == ("whiten", f"{Whitener.__module__}.Whitener")
    assert (whiten.eps, whiten.momentum, whiten.baked_training) == (0.01, 0.05, training)
    for role, leaf in zip(ROLES, ("mean", "var", "gain", "offset"), strict=True):
        assert_same(getattr(whiten, role), getattr(module.whiten, leaf))
    for layer, mean, variance in ((middle, module.middle, module.spread), (passing, module.passing, module.constant)):
        assert_same(layer.running_mean, mean)
        assert_same(layer.running_var, variance)
        assert (layer.kind, layer.affine, layer.track_running_stats) == (NormKind.BATCH, False, True)
    assert middle.baked_training, "one of its two calls is in training mode"
    assert passing.baked_training is False
    assert_is(norm, module.bn)
    assert (norm.name, norm.baked_training) == ("bn", training)
    assert (bare.kind, bare.num_features, bare.track_running_stats) == (NormKind.BATCH, FEATURES, False)
    assert (instance.kind, instance.num_features) == (NormKind.INSTANCE, FEATURES)
    if not decomposed:
        assert [layer.name for layer in (middle, passing)] == ["batch_norm_1", "batch_norm_2"]
        assert instance.name == "instance_norm"


def test_a_graph_without_metadata_is_named_by_its_tensors(tmp_path: Path) -> None:
    path = with_graph(written(program("everything", decomposed=True), tmp_path / "model.pt2"), without_metadata)
    assert torch.export.load(path).state_dict
    layers = by_name(read(str(path)))
    unnamed = {"bare", "instance"}  # these have no tensors
    for name, part in norms(network("everything")).items():
        if name not in unnamed:
            layer = layers.pop(name)
            assert layer.kind is (NormKind.BATCH if name == "sync" else kind_of(part))
            assert_same(layer.running_mean, part.running_mean)
            assert_same(layer.weight, part.weight)
    assert [layer.kind for layer in layers.values()] == [NormKind.BATCH, NormKind.INSTANCE]
    assert all(name.startswith("_native_batch_norm_legit") for name in layers)


@pytest.mark.parametrize("decomposed", [False, True], ids=["whole", "decomposed"])
def test_class_names_do_not_overrule_the_graph(tmp_path: Path, *, decomposed: bool) -> None:
    parts = (InstanceSegmenter(), FrozenLakeNet(), BatchStyler(), AdaptiveInstanceNorm2d(), FrozenBatchNorm2d())
    exported = torch.export.export(nn.Sequential(*parts).eval(), (torch.ones(IMAGES),))
    path = written(exported.run_decompositions() if decomposed else exported, tmp_path / "model.pt2")
    checkpoint = read(str(path))
    assert checkpoint.unread == ()
    told = [(layer.kind, layer.baked_training) for layer in checkpoint.layers]
    kinds = [NormKind.BATCH, NormKind.BATCH, NormKind.INSTANCE, NormKind.INSTANCE]
    assert told == [*((kind, True) for kind in kinds), (NormKind.FROZEN_BATCH, None)]
    assert [layer.num_features for layer in checkpoint.layers] == [FEATURES] * len(parts)


def test_a_module_with_moments_for_each_domain_is_several_layers(tmp_path: Path) -> None:
    module = filled(nn.Sequential(DomainBatchNorm()))
    day, night = read(str(saved(tmp_path, module))).layers
    assert (day.name, night.name) == ("0", "batch_norm_1")
    assert_same(day.running_mean, module[0].day_mean)
    assert_same(night.running_mean, module[0].night_mean)


def test_paths_of_strict_exports() -> None:
    """As torch 2.5 wrote them."""
    paths = {
        "block.0": "block.0",
        "": "",
        "L['self'].bn": "bn",
        "getattr(L['self'].block, '0')": "block.0",
        "getattr(getattr(L['self'].block, '0').layers, '11').bn": "block.0.layers.11.bn",
        "L['self']._modules['block']._modules['0']": "block.0",
    }
    assert {path: exported_graph.module_path(path) for path in paths} == paths


# --- operators ---------------------------------------------------------------------------------------------


def schemas(name: str) -> list[torch._C.FunctionSchema]:
    return torch._C._jit_get_schemas_for_operator(name.replace("torch.ops.", "").replace(".", "::"))


@pytest.mark.parametrize("name", exported_operators.OPERATORS)
def test_operators_are_called_as_torch_declares(name: str) -> None:
    operator = exported_operators.OPERATORS[name]
    assert schemas(name)
    for schema in schemas(name):
        arguments = {argument.name: str(argument.type) for argument in schema.arguments}
        assert arguments["input"] == "Tensor"
        assert arguments[operator.momentum] == arguments[operator.eps] == "float"
        if isinstance(operator.mode, str):
            assert arguments[operator.mode] == "bool"
        else:
            assert "bool" not in arguments.values()
        if operator.moments is not None:
            names = [result.name for result in schema.returns]
            assert names[operator.moments :] == ["running_mean_out", "running_var_out"]


def test_no_operator_that_normalises_is_passed_over() -> None:
    """Each is either known or makes the file unread; gradients aside."""
    declared = {schema.name for schema in torch._C._jit_get_all_schemas()}
    targets = {f"torch.ops.{name.replace('::', '.')}" for name in declared}
    suspects = {name for name in targets if "batch_norm" in name or "instance_norm" in name}
    known = set(exported_operators.OPERATORS)
    assert known <= suspects
    passed_over = {
        name for name in suspects - known if not exported_operators.UNKNOWN_NORM.match(name.removeprefix("torch.ops."))
    }
    assert passed_over
    assert all("backward" in name for name in passed_over)


class Direct(nn.Module):
    """One call of an operator."""

    def __init__(self, name: str, arguments: tuple[object, ...]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.operator = getattr(torch.ops.aten, name).default
        self.arguments = arguments

    def forward(self, images: Tensor) -> Tensor:
        tensors = (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var)
        result = self.operator(images, *tensors, *self.arguments)
        return result if isinstance(result, Tensor) else result[0]


@pytest.mark.parametrize(
    ("name", "arguments", "mode"),
    [
        ("native_batch_norm", (True, 0.2, 0.5), True),
        ("_native_batch_norm_legit", (False, 0.2, 0.5), False),
        ("_native_batch_norm_legit_functional", (True, 0.2, 0.5), True),
        ("_native_batch_norm_legit_no_training", (0.2, 0.5), False),
        ("_batch_norm_with_update", (0.2, 0.5), True),
        ("_batch_norm_with_update_functional", (0.2, 0.5), True),
        ("_batch_norm_no_update", (0.2, 0.5), False),
        ("cudnn_batch_norm", (True, 0.2, 0.5), True),
        ("miopen_batch_norm", (False, 0.2, 0.5), False),
        ("instance_norm", (True, 0.2, 0.5, False), True),
    ],
)
def test_every_operator(tmp_path: Path, name: str, arguments: tuple[object, ...], *, mode: bool) -> None:
    module = filled(Direct(name, arguments))
    [layer] = read(str(saved(tmp_path, module))).layers
    assert (layer.name, layer.baked_training, layer.momentum, layer.eps) == ("bn", mode, 0.2, 0.5)
    assert layer.kind is (NormKind.INSTANCE if name == "instance_norm" else NormKind.BATCH)
    for role in ROLES:
        assert_same(getattr(layer, role), getattr(module.bn, role))


def test_batch_norm_in_pieces_is_not_read(tmp_path: Path) -> None:
    aten = torch.ops.aten
    whole = (aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit, aten.native_batch_norm)
    pieces = get_decompositions(whole)
    exported = program("small").run_decompositions({**torch.export.default_decompositions(), **pieces})
    checkpoint = read(str(written(exported, tmp_path / "model.pt2")))
    assert [entry.what for entry in checkpoint.unread] == ["0", "1"]
    assert [layer.baked_training for layer in checkpoint.layers] == [None, None]


def test_an_unknown_norm_is_not_read(tmp_path: Path) -> None:
    def rename(graph: dict) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.quantized.batch_norm2d.default"

    checkpoint = read(str(with_graph(written(program("small"), tmp_path / "model.pt2"), rename)))
    assert "torch.ops.quantized.batch_norm2d.default" in checkpoint.unread[0].reason


def test_computed_moments_are_not_read(tmp_path: Path) -> None:
    class Smoothed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(FEATURES)

        def forward(self, images: Tensor) -> Tensor:
            bn = self.bn
            return nn.functional.batch_norm(images, bn.running_mean, bn.running_var + 0.1, bn.weight, bn.bias)

    checkpoint = read(str(saved(tmp_path, Smoothed())))
    [layer] = checkpoint.layers
    assert (layer.name, layer.running_var) == ("bn", None)
    [entry] = checkpoint.unread
    assert entry.what == "bn.running_var"
    assert "aten.add" in entry.reason


# --- archives ----------------------------------------------------------------------------------------------


def test_number_formats_are_torch_s() -> None:
    theirs = {int(number): str(dtype).removeprefix("torch.") for number, dtype in _SERIALIZE_TO_TORCH_DTYPE.items()}
    assert theirs == exported_tensors.SCALAR_TYPES


def test_several_programs_in_one_package(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    programs = {"model": program("small"), "ema": program("everything"), "other": program("shared")}
    package_pt2(str(path), exported_programs=programs, extra_files={"notes.txt": "data.pkl"})
    checkpoint = read(str(path))
    assert checkpoint.unread == ()
    for name, kept in programs.items():
        layers = {layer.name: layer for layer in checkpoint.layers if layer.group == name}
        assert {f"{name}.{key}" for key in kept.state_dict} <= set(checkpoint.tensors)
        assert set(layers) == set(norms(network({"model": "small", "ema": "everything", "other": "shared"}[name])))
        for layer in layers.values():
            assert_same(layer.running_mean, kept.state_dict.get(f"{layer.name}.running_mean"))


def test_compiled_code_is_not_read(tmp_path: Path) -> None:
    code = tmp_path / "kernel.so"
    code.write_bytes(b"\x7fELF")
    alone, beside = tmp_path / "alone.pt2", tmp_path / "beside.pt2"
    package_pt2(str(alone), aoti_files=[str(code)])
    with pytest.raises(UnsupportedFile, match="compiled code"):
        read(str(alone))
    package_pt2(str(beside), aoti_files={"fast": [str(code)]}, exported_programs={"model": program("small")})
    checkpoint = read(str(beside))
    assert len(checkpoint.layers) == 2
    assert [entry.what for entry in checkpoint.unread] == ["fast"]


def test_an_archive_of_nothing_but_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    package_pt2(str(path), extra_files={"notes.txt": "none"})
    with pytest.raises(UnsupportedFile, match="without an exported program"):
        read(str(path))


def test_a_program_without_numbers_is_not_read(tmp_path: Path) -> None:
    with FakeTensorMode():
        path = saved(tmp_path, nn.Sequential(nn.BatchNorm2d(FEATURES)).eval(), torch.ones(IMAGES))
    checkpoint = read(str(path))
    [layer] = checkpoint.layers
    assert (layer.name, layer.running_mean) == ("0", None)
    assert {entry.what for entry in checkpoint.unread} >= {"0.running_mean", "0.running_var"}
    assert all("exported without them" in entry.reason for entry in checkpoint.unread)


def test_tensors_of_a_subclass_are_read_from_their_pickles(tmp_path: Path) -> None:
    module = filled(nn.Sequential(nn.BatchNorm2d(FEATURES))).eval()
    module[0].weight = nn.Parameter(torch.rand(FEATURES).as_subclass(Marked))
    module[0].running_mean = torch.rand(FEATURES).as_subclass(Marked)
    path = saved(tmp_path, module)
    with zipfile.ZipFile(path) as archive:
        [config] = [name for name in archive.namelist() if name.endswith("weights_config.json")]
        payloads = json.loads(archive.read(config))["config"]
    assert [name for name, payload in payloads.items() if payload["use_pickle"]] == ["0.weight", "0.running_mean"]
    [layer] = read(str(path)).layers
    assert_is(layer, module[0])


class Marked(Tensor):
    """A tensor of a class of its own, which torch.export pickles."""


def test_damage_is_told_and_read_as_torch_reads_it(tmp_path: Path) -> None:
    path = written(program("small"), tmp_path / "model.pt2")
    stored = network("small")[0].running_mean.numpy().tobytes()
    data = path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, stored[:-1] + bytes([stored[-1] ^ 1])))
    checkpoint = read(str(path))
    assert_same(by_name(checkpoint)["0"].running_mean, torch.export.load(path).state_dict["0.running_mean"])
    [remark] = checkpoint.remarks
    assert "damaged" in remark


def test_big_endian(tmp_path: Path) -> None:
    """torch.export.load takes the bytes as they are: it would see other numbers than those that were meant."""
    path = as_big_endian(written(program("small"), tmp_path / "model.pt2"))
    loaded = torch.export.load(path).state_dict["0.running_mean"]
    assert not torch.equal(loaded, network("small")[0].running_mean)
    with pytest.raises(UnsupportedFile, match="big-endian"):
        read(str(path))


def test_a_repacked_archive(tmp_path: Path) -> None:
    path = rewritten(written(program("small"), tmp_path / "model.pt2"), lambda _name, data: data, zipfile.ZIP_DEFLATED)
    for name, layer in by_name(read(str(path))).items():
        assert_is(layer, network("small")[int(name)])
