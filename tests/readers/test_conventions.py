"""How tensor names become layers: what a file without classes can and cannot tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bncheck
from bncheck.core.layers import NormKind
from bncheck.readers import read
from bncheck.readers.assemble import group_of


class _Block(nn.Module):
    """A convolution block, or an attention block whose layer norm has the same name."""

    def __init__(self, *, attention: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8) if attention else nn.BatchNorm2d(8)
        self.mix = nn.Linear(8, 24) if attention else nn.Conv2d(8, 8, 3, bias=False)


class _Hybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(attention=index >= 2) for index in range(4))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module(torch.randn(32, 8, 4, 4))


@pytest.mark.parametrize("form", ["safetensors", "dict", "state-dict"])
def test_layer_norms_of_a_hybrid_network_are_not_batch_norms_without_moments(form: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    state = _Hybrid().state_dict()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(dict(state) if form == "dict" else state, path)
    assert [layer.name for layer in read(str(path)).layers] == ["blocks.0.norm", "blocks.1.norm"]
    assert not [finding for subject in bncheck.audit(path).subjects for finding in subject.findings]


def test_batch_norm_without_moments_in_a_block_like_its_siblings(tmp_path: Path) -> None:
    state = {name: value for name, value in _Hybrid().state_dict().items() if not name.startswith("blocks.1.norm.run")}
    del state["blocks.1.norm.num_batches_tracked"]
    save_file(state, tmp_path / "model")
    (subject,) = bncheck.audit(tmp_path / "model").subjects
    assert [(finding.rule, finding.layers) for finding in subject.findings] == [("BN203", ("blocks.1.norm",))]


def test_state_dict_of_an_untracked_norm_is_batch_or_instance(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)).state_dict(), tmp_path / "model")
    (layer,) = read(str(tmp_path / "model")).layers
    assert layer.kind is NormKind.BATCH_OR_INSTANCE


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ((), "model"),
        (("state_dict",), "model"),
        (("model", "module"), "model"),
        (("model_ema",), "ema"),
        (("ema_state_dict",), "ema"),
        (("swa_model", "module"), "swa"),
        (("teacher",), "teacher"),
        (("generator",), "generator"),
        (("nets", "schema"), "nets.schema"),
    ],
)
def test_checkpoint_keys_name_the_copy(path: tuple[str, ...], group: str) -> None:
    assert group_of(path) == group


def test_wrapper_prefix_is_taken_off_only_where_every_tensor_has_it(tmp_path: Path) -> None:
    """A layer outside the wrapper, even one whose numbers cannot be read, must not vanish with the prefix."""
    state = {f"module.{name}": value for name, value in _Hybrid().state_dict().items()}
    state["bn.running_mean"] = torch.ones(4).to_sparse()
    state["bn.running_var"] = torch.ones(4).to_sparse()
    torch.save(state, tmp_path / "model")
    checkpoint = read(str(tmp_path / "model"))
    assert [layer.name for layer in checkpoint.layers] == ["module.blocks.0.norm", "module.blocks.1.norm", "bn"]
    assert {entry.what for entry in checkpoint.unread} == {"bn.running_mean", "bn.running_var"}
