"""What the table of architectures says, against transformers itself; and what a config file cannot do."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

import bncheck
from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layers import NormKind
from bncheck.core.limits import Limits
from bncheck.readers import read
from bncheck.readers.hugging_face import SETTINGS, Field, NormSettings
from tests.readers.torch_files import Net, filled, saved

# --- the table, against transformers -------------------------------------------------------------------------

_FEWER = re.compile(r"(num_hidden|num_encoder|num_decoder|encoder|decoder|num)_layers")


def model_classes(model_type: str) -> Iterator[type[PreTrainedModel]]:
    """Every network that transformers builds from a config of this type."""
    config = CONFIG_MAPPING[model_type]
    folder = config.__module__.rpartition(".")[0]
    module = importlib.import_module(f"{folder}.modeling_{folder.rpartition('.')[2]}")
    for name, kind in vars(module).items():
        of_this_type = inspect.isclass(kind) and getattr(kind, "config_class", None) is config
        if of_this_type and kind.__module__ == module.__name__ and not name.endswith("PreTrainedModel"):
            needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            if len([p for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]) == 1:  # the config alone
                yield kind


def telling_config(model_type: str) -> PreTrainedConfig:
    """A config in which every eps and momentum is another number, so that each layer shows where it took its own."""
    kind = CONFIG_MAPPING[model_type]
    options = {"num_labels": 3}
    if SETTINGS[model_type].kind is NormKind.FROZEN_BATCH:
        backbone = transformers.ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])
        options |= {"use_timm_backbone": False, "backbone": None, "backbone_config": backbone}
    if model_type == "wav2vec2-conformer":
        options["vocab_size"] = 32
    config = kind(**options)
    _spread(config, iter(range(1, 1000)))
    return config


def _spread(config: PreTrainedConfig, numbers: Iterator[int]) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _spread(value, numbers)
        elif isinstance(value, float) and re.search("eps|momentum", key):
            setattr(config, key, next(numbers) / 2**20)
        elif isinstance(value, int) and _FEWER.fullmatch(key):
            setattr(config, key, min(value, 2))


def number(origin: float | Field | None, written: dict) -> float | None:
    """What a row's origin comes to, in a config as ``save_pretrained`` writes it."""
    if not isinstance(origin, Field):
        return origin
    for key in origin.keys:
        written = written[key]
    return written


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if "running_mean" in module._buffers}


@pytest.mark.parametrize("model_type", SETTINGS)
def test_every_batch_norm_of_an_architecture_obeys_its_row(model_type: str) -> None:
    settings, seen = SETTINGS[model_type], 0
    for kind in model_classes(model_type):
        config = telling_config(model_type)
        with torch.device("meta"):
            model = kind(config)
        written = json.loads(config.to_json_string())
        for name, module in norms(model).items():
            row = settings.of(name)
            seen += 1
            assert written["model_type"] == model_type
            path = f"{type(module).__module__}.{type(module).__qualname__}"
            if row.kind is NormKind.FROZEN_BATCH:
                assert path == row.class_path, name
                assert not hasattr(module, "eps")
            else:
                assert isinstance(module, nn.modules.batchnorm._BatchNorm), name
                assert row.class_path in (None, path), name
                assert (module.eps, module.momentum) == (number(row.eps, written), number(row.momentum, written)), name
    assert seen, "there is nothing to compare"


@pytest.mark.parametrize("model_type", [name for name, row in SETTINGS.items() if row.kind is NormKind.FROZEN_BATCH])
def test_eps_of_frozen_layers_is_what_their_forward_adds(model_type: str) -> None:
    module, _, name = SETTINGS[model_type].class_path.rpartition(".")
    layer = getattr(importlib.import_module(module), name)(1)
    layer.running_var.zero_()
    scale = layer(torch.ones(1, 1, 1, 1, dtype=torch.float64)).item()
    assert scale**-2 == pytest.approx(SETTINGS[model_type].eps, rel=1e-6)


def test_layers_that_differ_are_there_to_be_told_apart() -> None:
    for model_type, settings in SETTINGS.items():
        config = telling_config(model_type)
        with torch.device("meta"):
            names = {name for kind in model_classes(model_type) for name in norms(kind(config))}
        rows = {id(settings.of(name)) for name in names}
        assert len(rows) == 1 + len(settings.apart), model_type


# --- files that transformers wrote -----------------------------------------------------------------------------


def resnet() -> PreTrainedModel:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return filled(transformers.ResNetForImageClassification(config))


def efficientnet() -> PreTrainedModel:
    sizes = {"kernel_sizes": [3], "in_channels": [32], "out_channels": [32], "depthwise_padding": []}
    config = transformers.EfficientNetConfig(
        width_coefficient=0.25, hidden_dim=320, strides=[1], num_block_repeats=[2], expand_ratios=[2], **sizes
    )
    return filled(transformers.EfficientNetModel(config))


def mobilenet() -> PreTrainedModel:
    config = transformers.MobileNetV2Config(
        depth_multiplier=0.05, min_depth=4, depth_divisible_by=4, layer_norm_eps=9e-4
    )
    return filled(transformers.MobileNetV2ForSemanticSegmentation(config))


def detr() -> PreTrainedModel:
    backbone = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    small = {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1, "d_model": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, num_queries=2, **small, **heads
    )
    return filled(transformers.DetrModel(config))


_MODELS: tuple[Callable[[], PreTrainedModel], ...] = (resnet, efficientnet, mobilenet, detr)


@pytest.mark.parametrize("make", _MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("size", ["1GB", "2KB"], ids=["whole", "sharded"])
def test_layers_have_what_transformers_gave_them(
    tmp_path: Path, make: Callable[[], PreTrainedModel], size: str
) -> None:
    model = make()
    model.save_pretrained(tmp_path, max_shard_size=size)
    name = "model.safetensors" if size == "1GB" else "model.safetensors.index.json"
    checkpoint = read(str(tmp_path / name))
    if make is detr:  # its files have the names of the original's
        told = {f"backbone.conv_encoder.{name.removeprefix('backbone.')}": each for name, each in norms(model).items()}
    else:
        told = norms(model)
    assert {layer.name for layer in checkpoint.layers} == told.keys()
    for layer in checkpoint.layers:
        module = told[layer.name]
        frozen = not hasattr(module, "eps")
        assert layer.kind is (NormKind.FROZEN_BATCH if frozen else NormKind.BATCH)
        assert layer.eps == getattr(module, "eps", 1e-5)
        assert layer.momentum == getattr(module, "momentum", None)
        assert layer.class_path == f"{type(module).__module__}.{type(module).__qualname__}"
    assert [remark for remark in checkpoint.remarks if "config.json" in remark]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.safetensors", "model-00001-of-00001.safetensors"])
def test_names_that_transformers_gives(tmp_path: Path, name: str) -> None:
    assert momenta(wrote(tmp_path, name)) == {0.1}


def wrote(folder: Path, name: str = "model.safetensors", config: object = None) -> Path:
    """A ResNet of transformers in a file of that name, with the config it has, another, or the text of one."""
    model = resnet()
    if name.endswith(".bin"):
        saved(model.state_dict(), folder / name)
    else:
        save_file(model.state_dict(), folder / name)
    text = config if isinstance(config, str) else json.dumps(model.config.to_dict() if config is None else config)
    (folder / "config.json").write_text(text)
    return folder / name


def momenta(path: Path) -> set[object]:
    return {layer.momentum for layer in read(str(path)).layers}


# --- what is left alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best.pt", "adapter_model.safetensors", "ema.safetensors", "checkpoint.bin"])
def test_other_files_of_the_folder_are_left_alone(tmp_path: Path, name: str) -> None:
    path = wrote(tmp_path, name)
    assert momenta(path) == {None}
    assert not read(str(path)).remarks


def test_what_the_file_says_itself_comes_first(tmp_path: Path) -> None:
    """A whole module knows its own momentum."""
    config = {"model_type": "resnet"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = saved(filled(Net()), tmp_path / "pytorch_model.bin")
    assert momenta(path) == {0.03, 0.1}
    assert not read(str(path)).remarks


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "vit"}, {"model_type": 7}, {"model_type": ["resnet"]}, {"architecture": "resnet50"}]
)
def test_other_architectures_are_left_alone(tmp_path: Path, config: dict) -> None:
    path = wrote(tmp_path, config=config)
    assert momenta(path) == {None}
    assert not read(str(path)).remarks


def test_copies_under_other_keys_are_left_alone(tmp_path: Path) -> None:
    path = wrote(tmp_path, "pytorch_model.bin")
    state = resnet().state_dict()
    path.unlink()
    saved({**{f"model.{n}": v for n, v in state.items()}, **{f"ema.{n}": v for n, v in state.items()}}, path)
    found = {(layer.group, layer.momentum) for layer in read(str(path)).layers}
    assert found == {("model", 0.1), ("ema", None)}


# --- what a config file cannot do ------------------------------------------------------------------------------


def without_remarks(checkpoint: Checkpoint) -> list[tuple[object, ...]]:
    return [(layer.name, layer.kind, layer.eps, layer.momentum, layer.class_path) for layer in checkpoint.layers]


def _huge(path: Path) -> None:
    path.write_text('{"model_type": "resnet", "x": "' + "x" * 5_000_000 + '"}')


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


_BROKEN: dict[str, Callable[[Path], object]] = {
    "huge": _huge,
    "device": _device,
    "folder": lambda path: path.mkdir(),
    "dangling": lambda path: path.symlink_to("nowhere.json"),
    "cut": lambda path: path.write_text('{"model_type": "resnet"'),
    "list": lambda path: path.write_text('["resnet"]'),
    "empty": lambda path: path.write_text(""),
    "twice": lambda path: path.write_text('{"model_type": "vit", "model_type": "resnet"}'),
    "deep": lambda path: path.write_text('{"model_type": "resnet", "x": ' + "[" * 10**5 + "]" * 10**5 + "}"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("broken", _BROKEN)
def test_broken_config_changes_nothing_but_a_remark(tmp_path: Path, broken: str) -> None:
    path = wrote(tmp_path)
    (tmp_path / "config.json").unlink()
    plain = read(str(path))
    _BROKEN[broken](tmp_path / "config.json")
    checkpoint = read(str(path))
    assert without_remarks(checkpoint) == without_remarks(plain)
    (remark,) = checkpoint.remarks
    assert remark.startswith("the config.json beside it was not read: ")
    assert bncheck.audit(path).exit_code == 0


@pytest.mark.parametrize("value", [None, True, "0.1", [0.1], {"a": 0.1}])
def test_values_that_are_no_numbers(tmp_path: Path, value: object) -> None:
    path = tmp_path / "model.safetensors"
    efficientnet().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "batch_norm_momentum": value,
        "batch_norm_eps": value,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = {layer.name.rpartition(".")[2]: (layer.eps, layer.momentum) for layer in read(str(path)).layers}
    assert found["expand_bn"] == (None, 0.1)
    assert found["depthwise_norm"] == (None, None)


@pytest.mark.parametrize("value", [10**400, -1.0, float("nan"), float("inf")], ids=["long", "minus", "nan", "inf"])
def test_impossible_momentum_is_found(tmp_path: Path, value: float) -> None:
    assert "BN504" in rules(_with_config(tmp_path, batch_norm_momentum=value))


@pytest.mark.parametrize("value", [1.0, 1e30, 10**400, 0.0, -1.0, float("nan")], ids=lambda value: str(value)[:8])
def test_eps_of_the_config_hides_no_negative_variance(tmp_path: Path, value: float) -> None:
    path = _with_config(tmp_path, batch_norm_eps=value)
    state = {name: value.clone() for name, value in load_file(path).items()}
    state["encoder.top_bn.running_var"][0] = -0.5
    path.unlink()
    save_file(state, path)
    assert "BN402" in rules(path)
    assert {layer.eps for layer in read(str(path)).layers} == {None}


def _with_config(folder: Path, **values: object) -> Path:
    efficientnet().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def rules(path: Path) -> set[str]:
    return {finding.rule for subject in bncheck.audit(path).subjects for finding in subject.findings}


def test_config_is_no_config_of_the_audit(tmp_path: Path) -> None:
    """Nothing in it can choose rules, limits or what may be called."""
    path = _with_config(tmp_path, ignore=["ALL"], select=["BN409"], fail_on="never", allow_call=["os.system"])
    assert "BN503" in rules(path)


def test_bound(tmp_path: Path) -> None:
    (remark,) = read(str(wrote(tmp_path)), Limits(config_bytes=10)).remarks
    assert "more than any model's" in remark


# --- what the rules make of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "momentum", "layers"),
    [
        (efficientnet, 0.99, ("batchnorm", "depthwise_norm", "project_bn", "top_bn")),
        (mobilenet, 0.997, ("normalization",)),
    ],
    ids=["efficientnet", "mobilenet"],
)
def test_decays_that_transformers_hands_to_torch_are_told(
    tmp_path: Path, make: Callable[[], PreTrainedModel], momentum: float, layers: tuple[str, ...]
) -> None:
    """It is what happens: after one batch in training mode, the moments are that batch's."""
    model = make()
    model.save_pretrained(tmp_path)
    report = bncheck.audit(tmp_path / "model.safetensors")
    (finding,) = (finding for finding in report.subjects[0].findings if finding.rule == "BN503")
    assert {name.rpartition(".")[2] for name in finding.layers} == set(layers)
    assert finding.evidence["momentum"] == momentum
    norm = norms(model)[finding.layers[0]]
    norm.train()
    batch = torch.randn(8, norm.num_features, 2, 2) + 5
    norm(batch)
    assert torch.allclose(norm.running_mean, batch.mean((0, 2, 3)), atol=0.1)


def test_rows_are_plain_numbers_or_fields() -> None:
    for settings in SETTINGS.values():
        for row in (settings, *(apart for _, apart in settings.apart)):
            assert isinstance(row, NormSettings)
            assert isinstance(row.eps, (float, Field))
            assert (row.momentum is None) is (row.kind is NormKind.FROZEN_BATCH)
