"""The model to run: weights of every packaging, by whatever names, strictly; and what does not fit is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import bncheck
from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BadModel, BadUsage, BncheckError
from bncheck.core.run_options import RunOptions
from bncheck.readers import read
from bncheck.runtime.model import Loaded, ModelOptions, StatisticsMismatch, Weights, chosen_group, fill, load_model
from tests.process import FIXTURES
from tests.process import bncheck as run

NETWORKS = FIXTURES / "networks.py"
DIGITS = f"{FIXTURES / 'digits.py'}:held_out"


class Net(nn.Module):
    """Two norms, one of them in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.block(self.bn(self.conv(images)))


def _trained(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for _ in range(3):
        net(torch.randn(8, 3, 6, 6))
    return net


SPEC = f"{Path(__file__)}:Net"
STATE = _trained().state_dict()
OTHER = _trained(1).state_dict()


def _prefixed(prefix: str, state: Mapping[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _read(content: object, folder: Path) -> Checkpoint:
    path = folder / "model.pt"
    torch.save(content, path)
    return read(str(path))


def _assert_loaded(loaded: Loaded, state: Mapping[str, torch.Tensor] = STATE) -> None:
    assert not loaded.model.training
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        _prefixed("module."),
        _prefixed("model.net."),
        {"state_dict": _prefixed("module."), "epoch": 3},
        {"model": STATE, "optimizer": {"state": {}, "param_groups": []}, "step": torch.tensor(4)},
        {"nested": {"deep": {"weights": STATE}}},
        {"other": {"bias": torch.randn(4)}, "model": STATE},
        [{"model": STATE}, 3],
        {name: tensor for name, tensor in STATE.items() if "num_batches" not in name},
    ],
    ids=["plain", "parallel", "inner", "wrapped", "training", "nested", "beside others", "list", "no counters"],
)
def test_weights_are_found(content: object, tmp_path: Path) -> None:
    checkpoint = _read(content, tmp_path)
    loaded = load_model(checkpoint, ModelOptions(spec=SPEC, group=chosen_group(checkpoint, "model")))
    for name, tensor in loaded.model.state_dict().items():
        assert "num_batches" in name or torch.equal(tensor, STATE[name]), name
    assert loaded.named_in_file("bn") is not None


def test_layers_are_called_as_the_reader_calls_them(tmp_path: Path) -> None:
    checkpoint = _read({"state_dict": _prefixed("module.")}, tmp_path)
    loaded = load_model(checkpoint, ModelOptions(spec=SPEC))
    assert {loaded.named_in_file(name) for name in ("bn", "block.1")} == {layer.name for layer in checkpoint.layers}


def build_parallel() -> nn.Module:
    return nn.DataParallel(Net())


def build_both() -> nn.Module:
    both = nn.Module()
    both.model, both.model_ema = Net(), Net()
    return both


@pytest.mark.parametrize("content", [STATE, _prefixed("module.")], ids=["plain", "parallel"])
def test_the_model_may_be_wrapped_itself(content: object, tmp_path: Path) -> None:
    checkpoint = _read(content, tmp_path)
    loaded = load_model(checkpoint, ModelOptions(spec=f"{Path(__file__)}:build_parallel"))
    _assert_loaded(Loaded(loaded.model.module))
    assert {loaded.named_in_file(f"module.{name}") for name in ("bn", "block.1")} == {"bn", "block.1"}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "state_dict_ema": OTHER},
        {"model": STATE, "ema": _prefixed("module.", OTHER)},
        {**_prefixed("model."), **_prefixed("model_ema.", OTHER)},
    ],
    ids=["timm", "wrapped", "one state dict"],
)
def test_a_copy_is_chosen_by_its_group(content: object, tmp_path: Path) -> None:
    checkpoint = _read(content, tmp_path)
    assert {layer.group for layer in checkpoint.layers} == {"model", "ema"}
    _assert_loaded(load_model(checkpoint, ModelOptions(spec=SPEC)))
    _assert_loaded(load_model(checkpoint, ModelOptions(spec=SPEC, group="ema")), OTHER)
    with pytest.raises(BadUsage, match="no copy of the network called 'swa'; it has model, ema"):
        chosen_group(checkpoint, "swa")


def test_a_model_that_holds_its_own_copy_takes_both(tmp_path: Path) -> None:
    checkpoint = _read({**_prefixed("model."), **_prefixed("model_ema.", OTHER)}, tmp_path)
    loaded = load_model(checkpoint, ModelOptions(spec=f"{Path(__file__)}:build_both"))
    assert torch.equal(loaded.model.model_ema.bn.running_mean, OTHER["bn.running_mean"])
    assert loaded.named_in_file("model.bn") == "bn"
    assert loaded.named_in_file("model_ema.bn") is None


def test_shards_are_put_together(tmp_path: Path) -> None:
    for kind in ("safetensors", "bin"):
        folder = tmp_path / kind
        folder.mkdir()
        names = [f"model-0000{n}-of-00002.{kind}" for n in (1, 2)]
        halves = dict(list(STATE.items())[:6]), dict(list(STATE.items())[6:])
        for name, half in zip(names, halves, strict=True):
            if kind == "safetensors":
                safetensors.torch.save_file(half, folder / name)
            else:
                torch.save(half, folder / name)
        index = folder / f"model.{kind}.index.json"
        weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        index.write_text(f'{{"metadata": {{}}, "weight_map": {str(weight_map).replace(chr(39), chr(34))}}}')
        _assert_loaded(load_model(read(str(index)), ModelOptions(spec=SPEC)))


def test_a_legacy_file_and_safetensors(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")
    for name in ("legacy.pth", "model.safetensors"):
        _assert_loaded(load_model(read(str(tmp_path / name)), ModelOptions(spec=SPEC)))


def test_a_pickled_module_can_fill_a_built_one_where_it_is_trusted(tmp_path: Path) -> None:
    class Elsewhere(Net):
        pass

    Elsewhere.__qualname__ = "Net"  # pickles by this name
    checkpoint = _read(_trained(), tmp_path)
    with pytest.raises(BadModel, match="--trust-pickle"):
        load_model(checkpoint, ModelOptions(spec=SPEC))
    with pytest.raises(BadModel, match="--trust-pickle"):
        load_model(checkpoint, ModelOptions())
    _assert_loaded(load_model(checkpoint, ModelOptions(spec=SPEC, trust_pickle=True)))
    _assert_loaded(load_model(checkpoint, ModelOptions(trust_pickle=True)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**STATE, "head.weight": torch.zeros(2, 4)}, "the file holds what the model lacks: head.weight"),
        (
            {name: STATE[name] for name in STATE if name != "conv.bias"},
            "the model wants what the file lacks: conv.bias",
        ),
        ({**STATE, "conv.bias": torch.zeros(5)}, r"shapes differ: conv.bias: \(5,\) in the file, \(4,\) in the model"),
    ],
)
def test_what_does_not_fit_is_told_by_name_and_shape(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=said) as told:
        load_model(_read(content, tmp_path), ModelOptions(spec=SPEC))
    assert not isinstance(told.value, StatisticsMismatch)


def test_many_names_are_counted() -> None:
    with pytest.raises(BadModel, match="and 9 more"):
        fill(Net(), Weights({"x": torch.zeros(1)}, {"x": "x"}, whole=True), "m.py:build")


def _without_moments(state: Mapping[str, torch.Tensor], layer: str = "") -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in state.items()
        if not (name.startswith(layer) and ("running" in name or "num_batches" in name))
    }


@pytest.mark.parametrize("prefix", ["", "module."])
def test_missing_moments_are_told_from_other_mismatches(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(StatisticsMismatch) as told:
        load_model(_read(_prefixed(prefix, _without_moments(STATE)), tmp_path), ModelOptions(spec=SPEC))
    assert told.value.missing == ("bn", "block.1")
    assert told.value.spare == ()


def build_untracked() -> nn.Module:
    net = Net()
    net.bn = nn.BatchNorm2d(4, track_running_stats=False)
    return net


def test_spare_moments_likewise(tmp_path: Path) -> None:
    with pytest.raises(StatisticsMismatch) as told:
        load_model(_read(STATE, tmp_path), ModelOptions(spec=f"{Path(__file__)}:build_untracked"))
    assert (told.value.missing, told.value.spare) == ((), ("bn",))


def test_a_file_of_parameters_alone_is_a_finding_of_every_layer(tmp_path: Path) -> None:
    """Reading shows no batch norm at all; the model knows better."""
    path = tmp_path / "model.pt"
    torch.save(dict(_trained().named_parameters()), path)
    assert bncheck.audit(path).exit_code == 3
    report = bncheck.audit(path, run=RunOptions(data=DIGITS, model=SPEC))
    (subject,) = report.subjects
    (finding,) = subject.findings
    assert (finding.rule, finding.layers) == ("BN203", ("bn", "block.1"))
    assert report.exit_code == 2
    assert all("could not be run" in entry.reason for entry in subject.not_checked if entry.rule in ("BN104", "BN406"))


def test_moments_missing_in_one_layer_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(dict(_without_moments(STATE, "block.1")), path)
    (subject,) = bncheck.audit(path, run=RunOptions(data=DIGITS, model=SPEC)).subjects
    assert [(finding.rule, finding.layers) for finding in subject.findings] == [("BN203", ("block.1",))]


@pytest.mark.parametrize("make", [lambda path: path.write_bytes(b"PK no archive")], ids=["no archive"])
def test_a_file_that_changed_under_the_reader_is_an_error(make: Callable[[Path], object], tmp_path: Path) -> None:
    checkpoint = _read(STATE, tmp_path)
    make(Path(checkpoint.path))
    with pytest.raises(BncheckError, match="refuses the file"):
        load_model(checkpoint, ModelOptions(spec=SPEC))


def test_a_hugging_face_folder_from_the_command_line(tmp_path: Path) -> None:
    """An index of five shards, in a folder that is named as a whole."""
    folder = FIXTURES / "healthy-sharded-folder"
    (tmp_path / "m.py").write_text(
        "from transformers import AutoConfig, AutoModelForImageClassification as Auto\n"
        f"def build(): return Auto.from_config(AutoConfig.from_pretrained({str(folder)!r}))\n"
    )
    finished = run("audit", folder, "--data", DIGITS, "--model", f"{tmp_path}/m.py:build")
    assert finished.returncode == 0, finished.stdout
    assert "360 samples" in finished.stdout


def test_the_copy_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    state = torch.load(FIXTURES / "healthy-cnn-state-dict" / "model.pt", weights_only=True)
    stale = {**state, "bn2.running_mean": state["bn2.running_mean"] + 5}
    torch.save({"state_dict": stale, "state_dict_ema": state}, tmp_path / "model.pt")
    common = ("audit", tmp_path / "model.pt", "--data", DIGITS, "--model", f"{NETWORKS}:DigitNet")
    assert "BN407" in run(*common).stdout
    ema = run(*common, "--group", "ema")
    assert "BN407" not in ema.stdout
    assert "360 samples" in ema.stdout
    torch.save({"state_dict": state, "state_dict_ema": stale}, tmp_path / "model.pt")
    options = RunOptions(data=DIGITS, model=f"{NETWORKS}:DigitNet", group="ema")
    (finding,) = (
        finding
        for finding in bncheck.audit(tmp_path / "model.pt", run=options).subjects[0].findings
        if finding.rule == "BN407"
    )
    assert finding.layers[0] == "ema:bn2"
