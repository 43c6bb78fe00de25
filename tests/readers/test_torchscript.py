"""TorchScript archives beside torch: what it loads, and what it does when it runs them, must be what bncheck says."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage
from bncheck.core.errors import UnsafeFile, UnsupportedFile
from bncheck.core.finding import Finding
from bncheck.core.layers import Averaging, NormKind
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.engine import examine
from bncheck.readers import read
from bncheck.rules import saved_in_training_mode, training_mode_baked_in
from tests.process import ROOT
from tests.readers.script_archives import assert_behaves, batch, behaviour, edited
from tests.readers.script_networks import (
    AlwaysFrozen,
    AlwaysTraining,
    Around,
    Auxiliary,
    ByHand,
    ByParent,
    Conv,
    Detector,
    Exports,
    Hooked,
    InBranches,
    InverseBranches,
    Kinds,
    Language,
    Nested,
    NoNorm,
    Residual,
    Shared,
    Statistic,
    Synchronised,
    Twice,
    TwoMethods,
    hook_of_hooked,
)
from tests.readers.test_against_torch import Told, assert_same, of_group, told_by_module
from tests.readers.torch_files import FEATURES, filled

Save = Callable[[nn.Module, Path], Path]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """torch deprecates TorchScript with every call; and on four small images threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def scripted(net: nn.Module, path: Path) -> Path:
    torch.jit.script(net).save(path)
    return path


def traced(net: nn.Module, path: Path) -> Path:
    torch.jit.trace(net, batch(), check_trace=False).save(path)
    return path


def traced_module(net: nn.Module, path: Path) -> Path:
    torch.jit.trace_module(net, {"forward": batch()}, check_trace=False).save(path)
    return path


def for_mobiles(net: nn.Module, path: Path) -> Path:
    torch.jit.script(net)._save_for_lite_interpreter(str(path))
    return path


SCRIPTS: list[Save] = [scripted, for_mobiles]
TRACES: list[Save] = [traced, traced_module]
TWO_WAYS = pytest.mark.parametrize("save", [scripted, traced], ids=["scripted", "traced"])
EVERY_WAY = pytest.mark.parametrize("save", [*SCRIPTS, *TRACES], ids=lambda save: save.__name__)
SCRIPTED = pytest.mark.parametrize("save", SCRIPTS, ids=lambda save: save.__name__)
TRACED = pytest.mark.parametrize("save", TRACES, ids=lambda save: save.__name__)
BOTH_MODES = pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])


def prepared(net: nn.Module, mode: bool, steps: int = 2) -> nn.Module:
    """A network that has been trained a little, so that no two layers hold the same numbers."""
    net = filled(net)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()
    net.train()
    if not any(isinstance(layer, nn.SyncBatchNorm) for layer in net.modules()):
        for step in range(steps):
            net(batch(step))
    return net.train(mode)


# --- what torch loads --------------------------------------------------------------------------------------


def assert_like(checkpoint: Checkpoint, told: list[Told]) -> None:
    assert_same(of_group(checkpoint), told)
    facts = (checkpoint.format, checkpoint.packaging, checkpoint.stage)
    assert facts == (FileFormat.TORCHSCRIPT, Packaging.TORCHSCRIPT, Stage.RELEASE)
    assert not checkpoint.remarks


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (scripted, Nested),
        (traced, Nested),
        (scripted, Kinds),
        (traced, Kinds),
        (traced_module, Kinds),
        (for_mobiles, Kinds),
    ],
    ids=lambda each: each.__name__,
)
@BOTH_MODES
def test_every_layer_as_the_network_has_it(tmp_path: Path, save: Save, mode: bool, kind: type[nn.Module]) -> None:
    net = prepared(kind(), mode)
    told = told_by_module(net)
    path = save(net, tmp_path / "m.pt")
    if save in TRACES:
        # A traced graph holds the number that momentum=None came to: 1 / n in training, nothing in eval mode. And
        # tracing runs the network: in training mode the file's moments are a batch further.
        told = [_as_traced(each, mode) for each in told_by_module(net)]
    assert_like(read(str(path)), told)


def _as_traced(told: Told, mode: bool) -> Told:
    if all(array is None for array in told.arrays.values()):
        told = dataclasses.replace(told, num_features=None)
    if told.momentum is not Averaging.CUMULATIVE:
        return told
    return dataclasses.replace(told, momentum=1.0 / told.num_batches_tracked if mode else None)


@TWO_WAYS
@BOTH_MODES
def test_names_and_tensors_as_torch_loads_them(tmp_path: Path, save: Save, mode: bool) -> None:
    path = save(prepared(Nested(), mode), tmp_path / "m.pt")
    loaded = torch.jit.load(path)
    checkpoint = read(str(path))
    modules = dict(loaded.named_modules())
    layers = {layer.name: layer for layer in checkpoint.layers}
    if save is not for_mobiles:
        norms = [name for name, module in modules.items() if "Norm" in module.original_name and "Group" not in name]
        assert [name for name in norms if modules[name].original_name != "GroupNorm"] == list(layers)
    for name, layer in layers.items():
        assert layer.class_path.rpartition(".")[2] == modules[name].original_name
        assert layer.training is modules[name].training
    expected = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    mine = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("CONSTANTS.")}
    assert mine.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (mine[name].shape, mine[name].strides) == (tuple(tensor.shape), tensor.stride())
        assert mine[name].dtype == str(tensor.dtype).removeprefix("torch.")


@TWO_WAYS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_number_formats(tmp_path: Path, save: Save, dtype: torch.dtype) -> None:
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES))).to(dtype).eval()
    path = tmp_path / "m.pt"
    if save is traced:
        torch.jit.trace(net, batch().to(dtype), check_trace=False).save(path)
    else:
        save(net, path)
    assert_like(read(str(path)), told_by_module(net))


@TWO_WAYS
def test_moments_kept_in_float_beside_half_weights(tmp_path: Path, save: Save) -> None:
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES))).eval()
    net[0].weight.data, net[0].bias.data = net[0].weight.data.half(), net[0].bias.data.half()
    path = save(net.float(), tmp_path / "m.pt")
    assert_like(read(str(path)), told_by_module(net))


@TRACED
def test_synchronised_norms(tmp_path: Path, save: Save) -> None:
    net = filled(Synchronised()).eval()
    path = save(net, tmp_path / "m.pt")
    assert_like(read(str(path)), told_by_module(net))
    assert read(str(path)).layers[0].kind is NormKind.SYNC_BATCH
    assert_behaves(path)


def test_layer_that_was_lazy(tmp_path: Path) -> None:
    net = nn.Sequential(nn.LazyBatchNorm2d(), nn.LazyBatchNorm2d(momentum=0.3))
    net(batch())
    net = filled(net)
    assert_like(read(str(scripted(net, tmp_path / "m.pt"))), told_by_module(net))


@TWO_WAYS
@BOTH_MODES
def test_subclass(tmp_path: Path, save: Save, mode: bool) -> None:
    net = prepared(Kinds(), mode)
    path = save(net, tmp_path / "m.pt")
    own = next(layer for layer in read(str(path)).layers if layer.name == "own")
    assert own.class_path == "tests.readers.script_networks.OwnNorm"
    assert own.kind is NormKind.BATCH


@EVERY_WAY
def test_network_that_is_itself_a_norm(tmp_path: Path, save: Save) -> None:
    net = prepared(nn.BatchNorm2d(FEATURES), True)
    path = save(net, tmp_path / "m.pt")
    told = told_by_module(net)
    assert_like(read(str(path)), told)
    assert_behaves(path)


@EVERY_WAY
def test_class_that_is_only_called_like_one(tmp_path: Path, save: Save) -> None:
    checkpoint = read(str(save(NoNorm(), tmp_path / "m.pt")))
    assert (checkpoint.layers, checkpoint.unread) == ((), ())


@TWO_WAYS
@BOTH_MODES
def test_function_on_plain_buffers(tmp_path: Path, save: Save, mode: bool) -> None:
    net = prepared(nn.Sequential(ByHand(), nn.BatchNorm2d(FEATURES)), mode)
    path = save(net, tmp_path / "m.pt")
    by_hand, layer = sorted(read(str(path)).layers, key=lambda layer: layer.execution_order)
    assert (by_hand.name, by_hand.kind, by_hand.class_path) == ("0.rm", NormKind.BATCH, "torch.batch_norm")
    assert (by_hand.eps, by_hand.momentum, by_hand.num_features) == (1e-4, 0.05, FEATURES)
    assert np.array_equal(by_hand.running_mean, net[0].rm.double().numpy())
    assert np.array_equal(by_hand.running_var, net[0].rv.double().numpy())
    assert np.array_equal(by_hand.weight, net[0].scale.detach().double().numpy())
    assert by_hand.bias is None
    assert layer.name == "1"
    assert_behaves(path)


def test_frozen(tmp_path: Path) -> None:
    """Of a frozen network only what the graph calls is left."""
    net = prepared(Kinds(), False)
    path = tmp_path / "m.pt"
    torch.jit.freeze(torch.jit.script(net)).save(path)
    checkpoint = read(str(path))
    assert not checkpoint.unread
    told = told_by_module(net)
    assert [layer.execution_order for layer in checkpoint.layers] == list(range(len(told)))
    for layer, by_torch in zip(checkpoint.layers, told, strict=True):
        assert layer.kind is NormKind.BATCH
        assert (layer.eps, layer.num_features) == (by_torch.eps, FEATURES)
        assert layer.baked_training is (not by_torch.track_running_stats)
        for leaf, array in by_torch.arrays.items():
            mine = getattr(layer, leaf)
            if leaf in ("weight", "bias") and not by_torch.affine:
                continue
            assert (mine is None) == (array is None)
            assert mine is None or np.array_equal(mine, array)


def test_optimised_for_inference(tmp_path: Path) -> None:
    """Batch norms are folded into convolutions where there is one before them."""
    net = nn.Sequential(Conv(), nn.ReLU(), nn.BatchNorm2d(FEATURES))
    path = tmp_path / "m.pt"
    torch.jit.optimize_for_inference(torch.jit.script(prepared(net, False))).save(path)
    checkpoint = read(str(path))
    # What is left is called with tensors that the format has no place for: not even torch can load it.
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    assert [layer.baked_training for layer in checkpoint.layers] == [False]
    assert {entry.what for entry in checkpoint.unread} == {"code", "batch_norm"}


def test_frozen_in_training_mode(tmp_path: Path) -> None:
    """Freezing asks for eval mode; a traced graph has none to ask for."""
    net = prepared(Kinds(), True)
    path = tmp_path / "m.pt"
    frozen = torch.jit.freeze(torch.jit.trace(net, batch(), check_trace=False).eval(), preserved_attrs=["training"])
    frozen.save(path)
    checkpoint = read(str(path))
    assert not checkpoint.unread
    assert {layer.baked_training for layer in checkpoint.layers} == {True}
    assert {seen.training for seen in behaviour(path).eval} == {True}


# --- what torch runs ---------------------------------------------------------------------------------------

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nested": Nested,
    "kinds": Kinds,
    "by-hand": ByHand,
    "in-branches": InBranches,
    "inverse-branches": InverseBranches,
    "always-training": AlwaysTraining,
    "always-frozen": AlwaysFrozen,
    "twice-training": lambda: Twice(True),
    "twice-frozen": lambda: Twice(False),
    "shared": Shared,
    "by-parent": ByParent,
    "auxiliary": Auxiliary,
    "residual": lambda: Residual(Conv()),
    "residual-without": lambda: Residual(None),
    "language": Language,
    "detector": Detector,
    "statistic": Statistic,
}


@TWO_WAYS
@BOTH_MODES
@pytest.mark.parametrize("name", NETWORKS)
def test_modes_and_order_as_torch_runs_them(tmp_path: Path, save: Save, mode: bool, name: str) -> None:
    if name in ("language", "detector") and save is traced:
        pytest.skip("the tracer sees neither interfaces nor script classes")
    path = save(prepared(NETWORKS[name](), mode), tmp_path / "m.pt")
    assert_behaves(path)


@BOTH_MODES
@pytest.mark.parametrize("mixed", ["bn", "auxiliary.norm", "auxiliary", ""])
def test_flags_that_differ(tmp_path: Path, mode: bool, mixed: str) -> None:
    net = prepared(Auxiliary(), mode)
    net.get_submodule(mixed).train(not mode)
    if mixed == "":
        net.bn.train(mode)
    path = scripted(net, tmp_path / "m.pt")
    assert_like(read(str(path)), told_by_module(net))
    assert_behaves(path)


def test_some_layers_frozen_while_tracing(tmp_path: Path) -> None:
    net = prepared(Nested(), True)
    net.stages[0].eval()
    path = traced(net, tmp_path / "m.pt")
    layers = {layer.name: layer.baked_training for layer in read(str(path)).layers if layer.kind is NormKind.BATCH}
    assert {name for name, baked in layers.items() if baked is False} == {"stages.0.0.norm", "stages.0.1.norm"}
    assert set(layers.values()) == {True, False}
    assert_behaves(path)


@BOTH_MODES
@pytest.mark.parametrize("traced_mode", [True, False], ids=["traced-train", "traced-eval"])
def test_traced_inside_scripted(tmp_path: Path, mode: bool, traced_mode: bool) -> None:
    inner = torch.jit.trace(prepared(Conv(), traced_mode), batch(), check_trace=False)
    net = filled(Around(inner)).train(mode)
    path = scripted(net, tmp_path / "m.pt")
    assert_behaves(path)
    layers = {layer.name: layer.baked_training for layer in read(str(path)).layers}
    assert layers == {"before": None, "inner.norm": traced_mode or False, "behind": None}


@BOTH_MODES
@pytest.mark.parametrize("inner_mode", [True, False], ids=["inner-train", "inner-eval"])
def test_scripted_inside_traced(tmp_path: Path, mode: bool, inner_mode: bool) -> None:
    net = filled(Around(torch.jit.script(filled(Conv())))).train(mode)
    net.inner.train(inner_mode)
    path = traced(net, tmp_path / "m.pt")
    assert_behaves(path)
    layers = {layer.name: layer.baked_training for layer in read(str(path)).layers}
    assert layers == {"before": mode, "inner.norm": None, "behind": mode}


@SCRIPTED
def test_exported_methods(tmp_path: Path, save: Save) -> None:
    path = save(prepared(Exports(), True), tmp_path / "m.pt")
    layers = {layer.name: layer for layer in read(str(path)).layers}
    assert (layers["bn"].execution_order, layers["other"].execution_order) == (0, 1)
    assert {layer.baked_training for layer in layers.values()} == {None}


@BOTH_MODES
def test_traced_methods(tmp_path: Path, mode: bool) -> None:
    net = prepared(TwoMethods(), mode)
    path = tmp_path / "m.pt"
    torch.jit.trace_module(net, {"forward": batch(), "features": batch()}, check_trace=False).save(path)
    layers = {layer.name: layer for layer in read(str(path)).layers}
    assert {name: layer.baked_training for name, layer in layers.items()} == {"bn": mode, "other": mode}
    assert [layers["bn"].execution_order, layers["other"].execution_order] == [0, 1]


@pytest.mark.parametrize("depth", [0, 1])
def test_forward_hooks(tmp_path: Path, depth: int) -> None:
    hooked = Hooked()
    hooked.register_forward_hook(hook_of_hooked)
    net = hooked if depth == 0 else Around(hooked)
    path = scripted(filled(net).train(), tmp_path / "m.pt")
    assert_behaves(path)


@pytest.mark.parametrize(
    ("mode", "eval_after", "errors"),
    [(True, False, {"BN101": "error"}), (True, True, {}), (False, False, {})],
)
def test_bn101_of_a_scripted_archive(tmp_path: Path, mode: bool, eval_after: bool, errors: dict[str, str]) -> None:
    script = torch.jit.script(prepared(Nested(), mode))
    if eval_after:
        script.eval()
    script.save(tmp_path / "m.pt")
    findings = mode_findings(tmp_path / "m.pt")
    assert {finding.rule: finding.severity.name.lower() for finding in findings} == errors
    drifts = outputs_depend_on_the_batch(tmp_path / "m.pt")
    assert drifts == ("BN101" in errors, False)


@pytest.mark.parametrize("mode", [True, False])
def test_bn102_of_a_traced_archive(tmp_path: Path, mode: bool) -> None:
    net = nn.Sequential(Conv(), Conv())
    traced(prepared(net, mode), tmp_path / "m.pt")
    findings = mode_findings(tmp_path / "m.pt")
    assert [finding.rule for finding in findings] == ["BN102"] * mode
    assert outputs_depend_on_the_batch(tmp_path / "m.pt") == (mode, mode)


def mode_findings(path: Path) -> list[Finding]:
    rules = (saved_in_training_mode.RULE, training_mode_baked_in.RULE)
    subject = examine(read(str(path)), rules, DEFAULT_LIMITS)
    return [outcome for outcome in subject.outcomes if isinstance(outcome, Finding)]


def outputs_depend_on_the_batch(path: Path) -> tuple[bool, bool]:
    """Whether a sample's output changes with its neighbours, as the archive is loaded and after eval()."""
    answers = []
    for mode in (None, False):
        module = torch.jit.load(path)
        if mode is not None:
            module.train(mode)
        with torch.no_grad():
            alone = copy.deepcopy(module)(torch.cat([batch()[:1]] * 2))[0]
            together = copy.deepcopy(module)(batch())[0]
        answers.append(not torch.allclose(alone, together, atol=1e-4))
    return answers[0], answers[1]


# --- published architectures -------------------------------------------------------------------------------


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(num_channels=FEATURES, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 2])
    return ResNetModel(config)


def _regnet() -> nn.Module:
    from transformers import RegNetConfig, RegNetModel

    config = RegNetConfig(
        num_channels=FEATURES, embedding_size=4, hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], groups_width=2
    )
    return RegNetModel(config)


def _mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2Model

    config = MobileNetV2Config(
        num_channels=FEATURES, depth_multiplier=0.1, min_depth=2, depth_divisible_by=2, finegrained_output=False
    )
    return MobileNetV2Model(config)


@BOTH_MODES
@pytest.mark.parametrize("make", [_resnet, _regnet, _mobilenet], ids=["resnet", "regnet", "mobilenet"])
def test_published_architecture(tmp_path: Path, mode: bool, make: Callable[[], nn.Module]) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    net = filled(make()).train(mode)
    net.config.return_dict = False
    path = tmp_path / "m.pt"
    torch.jit.trace(net, batch().repeat(1, 1, 7, 7), check_trace=False, strict=False).save(path)
    checkpoint = read(str(path))
    assert len(checkpoint.layers) > 8
    assert_like(checkpoint, told_by_module(net))
    assert {layer.baked_training for layer in checkpoint.layers} == {mode}
    assert sorted(layer.execution_order for layer in checkpoint.layers) == list(range(len(checkpoint.layers)))


# --- other writers -----------------------------------------------------------------------------------------


def test_code_as_older_versions_print_it(tmp_path: Path) -> None:
    """Up to torch 1.4 each file begins with a version and imports, which torch still reads."""
    net = prepared(Nested(), False)
    path = scripted(net, tmp_path / "m.pt")
    start = "op_version_set = 1\nimport __torch__.torch.nn.modules.batchnorm\nimport __torch__.torch.nn.functional\n"
    older = edited(path, {"code/__torch__/tests/readers/script_networks.py": lambda text: start + text})
    torch.jit.load(older)
    assert_same(list(read(str(older)).layers), told_by_module(net))


@pytest.mark.parametrize("member", ["model.json", "Model.JSON"])
def test_archive_of_versions_before_pickles(tmp_path: Path, member: str) -> None:
    """torch 1.0 to 1.2 kept the modules as JSON, the code in one file and the tensors beside it."""
    path = tmp_path / "m.pt"
    members = {"version": "1", "code/m.py": "op_version_set = 0\n", "tensors/0": "0000", member: '{"mainModule": {}}'}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    with pytest.raises(UnsupportedFile, match=r"torch 1\.0 to 1\.2"):
        read(str(path))


def test_constants_in_other_letters(tmp_path: Path) -> None:
    """torch.jit.load takes it, torch.load would not know it for TorchScript."""
    path, renamed = scripted(filled(Conv()), tmp_path / "m.pt"), tmp_path / "renamed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename.replace("constants.pkl", "Constants.pkl"), old.read(entry))
    torch.jit.load(renamed)
    with pytest.raises(UnsafeFile, match=r"constants\.pkl"):
        read(str(renamed))


def test_numbers_and_names_that_hold_escapes(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("a b", nn.BatchNorm2d(FEATURES))
    net.add_module("x'y", nn.BatchNorm2d(FEATURES))
    path = scripted(filled(net), tmp_path / "m.pt")
    assert [layer.name for layer in read(str(path)).layers] == ["a b", "x'y"]
    assert_behaves(path)


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    files = [scripted(filled(Language()), tmp_path / "s.pt"), traced(filled(Nested()).eval(), tmp_path / "t.pt")]
    program = """
import sys
from bncheck.readers import read
for path in sys.argv[1:]:
    assert len(read(path).layers) >= 3, path
loaded = {"torch", "pickle", "zipfile", "ast", "tests"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded - {"pickle", "ast"} else 0)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
