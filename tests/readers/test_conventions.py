"""How tensor names become layers: what a file without classes can and cannot tell."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch._dynamo.eval_frame import OptimizeContext, OptimizedModule
from torch.distributed._shard import sharded_tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import bncheck
from bncheck.core.checkpoint import Checkpoint, Packaging
from bncheck.core.errors import UnsafeFile
from bncheck.core.layers import NormKind
from bncheck.readers import read
from bncheck.readers.conventions import CONVENTIONS, group_of
from tests.process import FIXTURES
from tests.readers.torch_files import FEATURES, Net, filled, saved


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


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: row.name)
def test_row_says_who_writes_it_and_which_fixture_shows_it(row: object) -> None:
    assert re.fullmatch(r"https://github\.com/[\w./-]+\.(py|ipynb|rst)", row.writer)
    assert row.what
    assert row.fixtures or row.shards
    for case in row.fixtures:
        assert (FIXTURES / case / "expected.json").is_file()


def test_rows_have_names_of_their_own_and_show_every_case_once_more() -> None:
    names = [row.name for row in CONVENTIONS]
    assert len(set(names)) == len(names)
    shown = {case for row in CONVENTIONS for case in row.fixtures}
    source = (FIXTURES / "conventions.py").read_text(encoding="utf-8")
    declared = {
        name.replace("_", "-") for name in re.findall(r"^def ((?:healthy|bn\d+)_\w+)\(\)", source, re.MULTILINE)
    }
    assert declared <= shown


# --- fixtures, against torch ---------------------------------------------------------------------------------

# Case and file → for every group where torch finds its state dict: the keys, and what stands before the names there.
_SHOWN: Mapping[str, Mapping[str, tuple[tuple[str, ...], str]]] = {
    "healthy-distributed-data-parallel/model.pt": {"model": ((), "module.")},
    "healthy-compiled/model.pt": {"model": ((), "_orig_mod.")},
    "healthy-compiled/compiled-first.pt": {"model": ((), "module._orig_mod.")},
    "healthy-compiled/compiled-last.pt": {"model": ((), "_orig_mod.module.")},
    "healthy-fully-sharded/model.pt": {"model": ((), "")},
    "healthy-averaged-model/model.pt": {"averaged": ((), "module.")},
    "healthy-averaged-model/checkpoint.pt": {"model": (("model",), ""), "swa": (("swa_model",), "module.")},
    "healthy-torchvision-checkpoint/model.pth": {"model": (("model",), ""), "ema": (("model_ema",), "module.")},
    "healthy-timm-checkpoint/checkpoint.pth.tar": {"model": (("state_dict",), ""), "ema": (("state_dict_ema",), "")},
    "healthy-lightning-checkpoint/model.ckpt": {"model": (("state_dict",), "model.")},
    "healthy-lightning-ema-in-callbacks/model.ckpt": {
        "model": (("state_dict",), "model."),
        "ema": (("callbacks", "EMACallback", "state_dict_ema"), "model."),
    },
    "healthy-lightning-weight-averaging/model.ckpt": {
        "averaged": (("state_dict",), "model."),
        "model": (("current_model_state",), "model."),
    },
    "healthy-mmengine-checkpoint/epoch_13.pth": {
        "ema": (("state_dict",), ""),
        "model": (("ema_state_dict",), "module."),
    },
    "healthy-fairseq-checkpoint/checkpoint_last.pt": {"model": (("model",), "")},
    "healthy-ema-beside-model/model.pt": {"model": ((), "model."), "ema": ((), "model_ema.module.")},
    "healthy-ema-of-parameters/latent-diffusion.ckpt": {"model": (("state_dict",), "model.")},
    "healthy-ema-of-parameters/mmcv.pth": {"model": (("state_dict",), "")},
    "healthy-student-and-teacher/checkpoint.pth": {
        "model": (("student",), "module."),
        "teacher": (("teacher",), "module."),
    },
    "bn201-moments-left-out-of-average/model.pt": {"model": ((), "online_model."), "ema": ((), "ema_model.")},
    "bn201-moments-left-out-of-average/ema.pt": {"model": (("model",), ""), "ema": (("ema",), "ema_model.")},
}


@pytest.mark.parametrize("file", _SHOWN)
def test_groups_hold_the_values_torch_finds_for_them(file: str) -> None:
    checkpoint = read(str(FIXTURES / file))
    content = torch.load(FIXTURES / file, weights_only=False)
    assert {layer.group for layer in checkpoint.layers} == _SHOWN[file].keys()
    for group, (keys, before) in _SHOWN[file].items():
        state = functools.reduce(lambda inner, key: inner[key], keys, content)
        layers = [layer for layer in checkpoint.layers if layer.group == group]
        assert [layer.name for layer in layers] == ["bn1", "bn2"]
        for layer in layers:
            for leaf in ("running_mean", "running_var", "weight", "bias"):
                np.testing.assert_array_equal(
                    getattr(layer, leaf), state[f"{before}{layer.name}.{leaf}"].double().numpy()
                )
    assert not checkpoint.unread


@pytest.mark.parametrize(
    ("file", "groups"),
    [
        ("healthy-distributed-data-parallel/module.pt", ["model"]),
        ("healthy-compiled/module.pt", ["model"]),
        ("healthy-compiled/one-layer.pt", ["model"]),
        ("healthy-activation-checkpointing/module.pt", ["model"]),
        ("healthy-activation-checkpointing/by-name.pt", ["model"]),
        ("healthy-fully-sharded/by-name.pt", ["model"]),
        ("healthy-averaged-model/module.pt", ["averaged"]),
        ("bn409-half-precision-copy/last.pt", ["ema"]),
        ("healthy-ema-beside-model/module.pt", ["model", "ema"]),
        ("healthy-ema-beside-model/model.safetensors", ["model", "ema"]),
    ],
)
def test_names_are_those_of_the_bare_network(file: str, groups: list[str]) -> None:
    layers = read(str(FIXTURES / file)).layers
    assert [(layer.group, layer.name) for layer in layers] == [
        (group, name) for group in groups for name in ("bn1", "bn2")
    ]


@pytest.mark.parametrize(
    ("case", "key", "steps"),
    [
        ("healthy-timm-checkpoint", "optimizer", 300),
        ("healthy-lightning-checkpoint", "optimizer_states.0", 300),
        ("healthy-lightning-weight-averaging", "optimizer_states.0", 300),  # plain SGD: global_step counts
        ("healthy-mmengine-checkpoint", "optimizer", 300),
        ("healthy-fairseq-checkpoint", "last_optimizer_state", 300),
        ("bn409-half-precision-copy", "optimizer", 300),
        ("healthy-torchvision-checkpoint", "optimizer", None),
        ("healthy-student-and-teacher", "optimizer", None),
    ],
)
def test_optimizer_and_steps_are_found(case: str, key: str, steps: int | None) -> None:
    (path,) = (path for path in (FIXTURES / case).iterdir() if path.name != "expected.json")
    training = read(str(path)).training
    assert (training.optimizer, training.optimizer_steps) == (key, steps)


def test_copy_of_parameters_alone_is_told() -> None:
    for path in (FIXTURES / "healthy-ema-of-parameters").glob("*.[cp]*"):
        (remark,) = read(str(path)).remarks
        assert remark.startswith("the copy 'ema' holds the parameters of 2 batch norms")


# --- prefixes ------------------------------------------------------------------------------------------------

_BARE = ["bn1", "block.norm", "head.2"]


def names(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Layer names by group, of a file that was read whole."""
    assert not checkpoint.unread
    found: dict[str, list[str]] = {}
    for layer in checkpoint.layers:
        found.setdefault(layer.group, []).append(layer.name)
    return found


def prefixed(*prefixes: str, counters: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """One state dict of several networks, each filled anew."""
    states = {prefix: filled(Net(), seed).state_dict() for seed, prefix in enumerate(prefixes)}
    return {**(counters or {}), **{prefix + name: v for prefix, state in states.items() for name, v in state.items()}}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_orig_mod._orig_mod.",
        "_fsdp_wrapped_module.",
        "_fsdp_wrapped_module._fpw_module.",
        "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.",
        "module._fsdp_wrapped_module.",
    ],
)
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_wrappers_of_the_whole_network(tmp_path: Path, prefix: str, form: str) -> None:
    state = prefixed(prefix)
    if form == "safetensors":
        save_file(state, tmp_path / "m")
    else:
        saved(state, tmp_path / "m")
    (found,) = names(read(str(tmp_path / "m"))).values()
    assert sorted(found) == sorted(_BARE)


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_inside_the_network(tmp_path: Path, part: str) -> None:
    state = {name.replace("block.", f"block.{part}."): value for name, value in prefixed("").items()}
    state = {name.replace("bn1.", f"bn1.{part}."): value for name, value in state.items()}
    checkpoint = read(str(saved(state, tmp_path / "m.pt")))
    assert names(checkpoint) == {"model": _BARE}
    assert checkpoint.tensors.keys() == state.keys()


def test_wrappers_that_would_make_two_tensors_one_are_left_alone(tmp_path: Path) -> None:
    state = prefixed("", "_orig_mod.")
    assert names(read(str(saved(state, tmp_path / "m.pt")))) == {"model": [*_BARE, *(f"_orig_mod.{n}" for n in _BARE)]}


def test_metadata_follows_the_names(tmp_path: Path) -> None:
    """By its versions a state dict tells untracked batch norms from layer norms."""
    net = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(4), nn.BatchNorm2d(4))
    for wrapped in (torch.compile(net), nn.DataParallel(net), torch.optim.swa_utils.AveragedModel(net)):
        (found,) = names(read(str(saved(wrapped.state_dict(), tmp_path / "m.pt")))).values()
        assert found == ["0", "2"]


@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_compiled_module(tmp_path: Path, backend: str) -> None:
    net = filled(Net()).eval()
    net.block.norm.train()
    checkpoint = read(str(saved(torch.compile(net, backend=backend), tmp_path / "m.pt")))
    assert checkpoint.packaging is Packaging.MODULE
    assert names(checkpoint) == {"model": _BARE}
    assert [layer.training for layer in checkpoint.layers] == [False, True, False]
    assert checkpoint.layers[0].momentum == 0.03


class _Reduced:
    """Pickled as a call of something."""

    def __init__(self, *reduced: object) -> None:
        self._reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self._reduced


def _compiler() -> OptimizeContext:
    return torch.compile(nn.Linear(1, 1), backend="eager").dynamo_ctx


@pytest.mark.parametrize(
    "forged",
    [
        lambda: _Reduced(OptimizedModule, (nn.Linear(1, 1), functools.partial(torch.load, "x"))),
        lambda: _Reduced(OptimizedModule, (nn.Linear(1, 1), torch.load)),
        lambda: _Reduced(
            OptimizedModule, (nn.Linear(1, 1), _Reduced(OptimizeContext, (torch.load, torch.hub.load, True)))
        ),
        lambda: _Reduced(OptimizedModule, (torch.load, _compiler())),
        lambda: _Reduced(OptimizeContext, _compiler().__reduce__()[1], {"_package": torch.load}),
        lambda: _Reduced(OptimizeContext, (*_compiler().__reduce__()[1][:2], torch.load)),
    ],
)
def test_forged_compiled_module_is_refused(tmp_path: Path, forged: Callable[[], object]) -> None:
    """Making one calls the compiler's context on the module, at once: it must be the one torch.compile makes."""
    path = saved({"model": filled(Net()).state_dict(), "x": forged()}, tmp_path / "m.pt")
    with pytest.raises(UnsafeFile, match="do not load this file"):
        read(str(path))


# --- copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefixes", "groups"),
    [
        (("model.", "model_ema."), ("model", "ema")),
        (("model.", "model_ema.module."), ("model", "ema")),
        (("model.", "ema."), ("model", "ema")),
        (("model.", "ema_model."), ("model", "ema")),
        (("net.", "ema.module."), ("model", "ema")),
        (("", "ema."), ("model", "ema")),
        (("student.", "teacher."), ("model", "teacher")),
        (("student.module.", "teacher.module."), ("model", "teacher")),
        (("student.", "teacher.module."), ("model", "teacher")),
        (("learner.student.", "learner.teacher."), ("model", "teacher")),
        (("module.model.", "module.model_ema."), ("model", "ema")),
        (("model._orig_mod.", "model_ema.module._orig_mod."), ("model", "ema")),
        (("model.", "ema.", "teacher."), ("model", "ema", "teacher")),
        (("online_model.", "ema_model."), ("model", "ema")),
        (("generator.", "generator_ema."), ("model", "ema")),
    ],
    ids=lambda value: "+".join(value),
)
def test_copies_in_one_state_dict(tmp_path: Path, prefixes: tuple[str, ...], groups: tuple[str, ...]) -> None:
    state = prefixed(*prefixes)
    checkpoint = read(str(saved(state, tmp_path / "m.pt")))
    assert names(checkpoint) == dict.fromkeys(groups, _BARE)
    for prefix, group in zip(prefixes, groups, strict=True):
        layer = next(layer for layer in checkpoint.layers if layer.group == group)
        assert layer.running_mean.tolist() == state[f"{prefix}bn1.running_mean"].double().tolist()


def test_whole_module_that_holds_a_copy(tmp_path: Path) -> None:
    """Layers without any tensor are part of the copy, too."""
    net = nn.ModuleDict({"student": filled(Net()), "teacher": filled(Net(), 1)})
    for one in net.values():
        one.plain = nn.BatchNorm2d(FEATURES, affine=False, track_running_stats=False)
    found = names(read(str(saved(net, tmp_path / "m.pt"))))
    assert found == {group: [*_BARE, "plain"] for group in ("model", "teacher")}


def test_what_stands_beside_both_keeps_its_name(tmp_path: Path) -> None:
    state = prefixed("model.", "model_ema.") | {f"loss.{n}": v for n, v in nn.BatchNorm1d(3).state_dict().items()}
    inside = [f"model.{name}" for name in _BARE]
    assert names(read(str(saved(state, tmp_path / "m.pt")))) == {"model": [*inside, "loss"], "ema": inside}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"teacher.more.weight": torch.ones(3)},
        lambda state: state | {"teacher.bn1.running_mean": torch.ones(3)},
        lambda state: {name: value for name, value in state.items() if name != "student.conv1.weight"},
    ],
    ids=["more", "shape", "less"],
)
def test_network_that_is_no_copy_keeps_its_names(tmp_path: Path, change: Callable[[dict], dict]) -> None:
    """A larger teacher's layers have no counterparts, whatever they are called."""
    checkpoint = read(str(saved(change(prefixed("student.", "teacher.")), tmp_path / "m.pt")))
    assert {layer.group for layer in checkpoint.layers} == {"model"}
    assert [layer.name for layer in checkpoint.layers] == [
        f"{who}.{n}" for who in ("student", "teacher") for n in _BARE
    ]


def test_layer_called_like_a_copy_is_none(tmp_path: Path) -> None:
    """Attention is called EMA, too; and a single layer is like any other of its size."""
    net = nn.ModuleDict({"norm": nn.BatchNorm2d(4), "ema": nn.BatchNorm2d(4), "teacher_norm": nn.BatchNorm2d(4)})
    assert names(read(str(saved(filled(net).state_dict(), tmp_path / "m.pt")))) == {
        "model": ["norm", "ema", "teacher_norm"]
    }


def test_copy_of_one_of_two_equal_networks_is_told_by_neither(tmp_path: Path) -> None:
    found = names(read(str(saved(prefixed("left.", "right.", "ema."), tmp_path / "m.pt"))))
    assert found == {"model": [f"{side}.{name}" for side in ("left", "right", "ema") for name in _BARE]}


def test_counters_without_a_copy(tmp_path: Path) -> None:
    state = prefixed("model.", counters={"ema.decay": torch.tensor(0.9), "ema.num_updates": torch.tensor(3)})
    assert names(read(str(saved(state, tmp_path / "m.pt")))) == {"model": [f"model.{name}" for name in _BARE]}


def test_two_copies_under_keys_that_mean_the_same(tmp_path: Path) -> None:
    content = {key: prefixed("") for key in ("model", "ema", "model_ema", "ema_state_dict")}
    found = names(read(str(saved(content, tmp_path / "m.pt"))))
    assert len(found) == 4
    assert all(layers == _BARE for layers in found.values())


@pytest.mark.parametrize("counters", [{"n_averaged": torch.tensor(3)}, {"steps": torch.tensor(3)}])
def test_averaging_wrapper(tmp_path: Path, counters: dict[str, torch.Tensor]) -> None:
    checkpoint = read(str(saved(prefixed("module.", counters=counters), tmp_path / "m.pt")))
    assert names(checkpoint) == {"averaged": _BARE}
    assert counters.keys() <= checkpoint.tensors.keys()


def test_average_of_a_data_parallel_network(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(filled(Net())))
    for index, content in enumerate((average, average.state_dict())):
        assert names(read(str(saved(content, tmp_path / f"{index}.pt")))) == {"averaged": _BARE}


def test_every_layer_is_in_some_group(tmp_path: Path) -> None:
    """Whatever the prefixes, as many layers come out as went in."""
    heads = ["", "model.", "ema.", "module.", "model_ema.module.", "teacher.", "swa._orig_mod.", "ema.ema.", "x.y.ema."]
    for first in heads:
        for second in (head for head in heads if head != first):
            found = read(str(saved(prefixed(first, second), tmp_path / "m.pt"))).layers
            assert len(found) == 2 * len(_BARE), (first, second)
            assert len({layer.full_name for layer in found}) == 2 * len(_BARE), (first, second)


def test_lightning_module_with_more_than_its_network_keeps_its_names(tmp_path: Path) -> None:
    content = {"pytorch-lightning_version": "2.5.0", "state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}}
    assert names(read(str(saved(content, tmp_path / "m.ckpt")))) == {"model": [f"model.{name}" for name in _BARE]}


def test_prefix_that_only_lightning_puts_there_stays_elsewhere(tmp_path: Path) -> None:
    """A network may have all its layers under ``model``; its own ``named_modules()`` says so."""
    found = names(read(str(saved({"state_dict": prefixed("model.")}, tmp_path / "m.pt"))))
    assert found == {"model": [f"model.{name}" for name in _BARE]}


# --- networks of which a file holds a part ---------------------------------------------------------------------


@contextmanager
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_data_parallel_module_holds_its_buffers_once(tmp_path: Path) -> None:
    with one_process():
        path = saved(DistributedDataParallel(filled(Net())), tmp_path / "m.pt")
    assert names(read(str(path))) == {"model": _BARE}


def _not_gathered(path: Path) -> Checkpoint:
    report = bncheck.audit(path)
    assert report.exit_code == 2
    checkpoint = report.subjects[0].checkpoint
    (entry,) = checkpoint.unread
    assert "gather the network" in entry.reason
    return checkpoint


def test_fully_sharded_state_dict(tmp_path: Path) -> None:
    """Its buffers are whole and healthy; of scale and shift there is one process's part."""
    with one_process():
        net = filled(Net())
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        path = saved(net.state_dict(), tmp_path / "m.pt")
    checkpoint = _not_gathered(path)
    assert [(layer.name, layer.affine, layer.weight) for layer in checkpoint.layers] == [(n, None, None) for n in _BARE]


def test_sharded_tensors(tmp_path: Path) -> None:
    with one_process():
        state = filled(Net()).state_dict()
        for name in ("bn1.weight", "bn1.running_mean"):
            place = sharded_tensor.ShardMetadata([0], [FEATURES], "rank:0/cpu")
            state[name] = sharded_tensor.init_from_local_shards([sharded_tensor.Shard(state[name], place)], FEATURES)
        path = saved(state, tmp_path / "m.pt")
    checkpoint = _not_gathered(path)
    assert checkpoint.layers[0].running_mean is None


def test_flattened_parameters(tmp_path: Path) -> None:
    with one_process():
        net = FullyShardedDataParallel(filled(Net()), device_id=torch.device("cpu"))
        path = saved(dict(net.named_parameters()) | dict(net.module.named_buffers()), tmp_path / "m.pt")
    assert [layer.affine for layer in _not_gathered(path).layers] == [None, None, None]


def test_gathered_state_dict(tmp_path: Path) -> None:
    with one_process():
        net = FullyShardedDataParallel(filled(Net()), device_id=torch.device("cpu"))
        path = saved(net.state_dict(), tmp_path / "m.pt")
    assert names(read(str(path))) == {"model": _BARE}
