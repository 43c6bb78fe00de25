"""Files of ``torch.save`` before it wrote zip archives: written by torch, loaded by torch, and read without it."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.core.checkpoint import FileFormat, Packaging, Stage
from bncheck.core.errors import NoModel, UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.readers import read
from bncheck.readers.candidates import is_candidate
from bncheck.readers.source import FileSource
from bncheck.readers.torch_legacy import MAGIC_NUMBER, PROTOCOL_VERSION, read_torch_legacy
from tests.process import ROOT
from tests.readers import test_against_torch as zip_files
from tests.readers.test_against_torch import (
    assert_same,
    loaded,
    of_group,
    one_norm,
    told_by_module,
    told_by_state_dict,
)
from tests.readers.torch_files import FEATURES, AveragedCopy, Block, HidesInList, Net, Whitener, filled, numbers, saved

pytestmark = pytest.mark.filterwarnings(
    "ignore:TypedStorage is deprecated", "ignore:Couldn't retrieve source code", "ignore:ComplexHalf support"
)


def legacy(value: object, path: Path, **options: object) -> Path:
    """``torch.save`` in the old form."""
    return saved(value, path, _use_new_zipfile_serialization=False, **options)


def assert_module_file(path: Path, prefix: str = "") -> None:
    """Compare a file that holds one module and nothing else."""
    assert zip_files.assert_module_file(path, prefix).format is FileFormat.TORCH_LEGACY


def assert_state_dict_file(path: Path, prefix: str = "") -> None:
    """Compare a file that holds one state dict and nothing else; of every tensor where and how it lies."""
    checkpoint = zip_files.assert_state_dict_file(path, prefix)
    assert checkpoint.format is FileFormat.TORCH_LEGACY
    state = loaded(path)
    assert checkpoint.tensors.keys() == state.keys()
    owners: dict[str, int] = {}
    for name, tensor in state.items():
        mine = checkpoint.tensors[name]
        assert mine.dtype == str(tensor.dtype).removeprefix("torch.")
        assert (mine.shape, mine.strides) == (tuple(tensor.shape), tensor.stride())
        assert mine.storage_offset == tensor.storage_offset()
        assert mine.storage_numel == tensor.untyped_storage().nbytes() // tensor.element_size()
        assert owners.setdefault(mine.storage, tensor.untyped_storage()._cdata) == tensor.untyped_storage()._cdata
    assert len(set(owners.values())) == len(owners)


def assert_both(net: nn.Module, folder: Path) -> None:
    """Compare as a module and as a state dict."""
    assert_module_file(legacy(net, folder / "m.pt"))
    assert_state_dict_file(legacy(net.state_dict(), folder / "s.pt"))


# --- packaging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda state: state], ids=["dict", "ordered", "own"])
def test_state_dict(tmp_path: Path, kind: Callable[[dict], dict], protocol: int) -> None:
    assert_state_dict_file(legacy(kind(filled(Net()).state_dict()), tmp_path / "m.pt", pickle_protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_module(tmp_path: Path, protocol: int) -> None:
    path = legacy(filled(Net()), tmp_path / "m.pt", pickle_protocol=protocol)
    assert b"class BatchNorm2d" in path.read_bytes(), "the source of each class is in the file"
    assert_module_file(path)


def test_protocol_1(tmp_path: Path) -> None:
    """The magic number is text there."""
    path = legacy(filled(Net()).state_dict(), tmp_path / "m.pt", pickle_protocol=1)
    assert path.read_bytes().startswith(b"L119547037146038801333356L\n.")
    assert_state_dict_file(path)


@pytest.mark.filterwarnings("default:Couldn't retrieve source code")
def test_module_of_a_class_without_source(tmp_path: Path) -> None:
    made: dict[str, type] = {}
    exec("class Unsourced(Base): pass", {"Base": nn.Sequential, "__name__": "tests.readers.torch_files"}, made)
    from tests.readers import torch_files

    torch_files.Unsourced = made["Unsourced"]
    try:
        with pytest.warns(UserWarning, match="Couldn't retrieve source code"):
            path = legacy(made["Unsourced"](filled(nn.BatchNorm2d(FEATURES))), tmp_path / "m.pt")
        assert_module_file(path)
    finally:
        del torch_files.Unsourced


def test_modes_of_single_layers(tmp_path: Path) -> None:
    net = filled(Net()).eval()
    net.block.norm.train()
    assert_module_file(legacy(net, tmp_path / "m.pt"))


def test_file_object(tmp_path: Path) -> None:
    with open(tmp_path / "m.pt", "wb") as file:
        torch.save(filled(Net()).state_dict(), file, _use_new_zipfile_serialization=False)
    assert_state_dict_file(tmp_path / "m.pt")


def test_data_parallel(tmp_path: Path) -> None:
    net = nn.DataParallel(filled(Net()))
    assert_module_file(legacy(net, tmp_path / "m.pt"), prefix="module.")
    zip_files.assert_state_dict_file(legacy(net.state_dict(), tmp_path / "s.pt"), prefix="module.")


@pytest.mark.parametrize("whole", [False, True], ids=["state", "object"])
@pytest.mark.parametrize("name", zip_files._OPTIMIZERS)
def test_checkpoint_with_an_optimizer(tmp_path: Path, name: str, whole: bool) -> None:
    net = filled(Net())
    make, counts = zip_files._OPTIMIZERS[name]
    optimizer = make(net)
    zip_files._train(net, optimizer, 7)
    state = optimizer if whole else optimizer.state_dict()
    path = legacy({"model": net.state_dict(), "optimizer": state, "epoch": 2}, tmp_path / "c.pt")
    checkpoint = read(str(path))
    assert checkpoint.training.optimizer == "optimizer"
    assert checkpoint.training.optimizer_steps == (7 if counts else None)
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.CHECKPOINT, Stage.TRAINING)
    assert_same(of_group(checkpoint), told_by_state_dict(loaded(path)["model"]))


def test_copies_beside_each_other(tmp_path: Path) -> None:
    value = {"model": filled(Net()), "ema": AveragedCopy(filled(Net(), 1)), "teacher": filled(Net(), 2).state_dict()}
    path = legacy({**value, "extra": [1, "x", None], "classes": [nn.BatchNorm2d, Block]}, tmp_path / "c.pt")
    checkpoint, theirs = read(str(path)), loaded(path)
    assert_same(of_group(checkpoint), told_by_module(theirs["model"]))
    assert_same(of_group(checkpoint, "ema"), told_by_module(theirs["ema"].module))
    assert_same(of_group(checkpoint, "teacher"), told_by_state_dict(theirs["teacher"]))


# --- layers and tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zip_files._LAYERS)
def test_layer_in_a_module(tmp_path: Path, name: str) -> None:
    net = nn.Sequential(nn.Identity(), filled(zip_files._LAYERS[name]()))
    assert_module_file(legacy(net, tmp_path / "m.pt"))


@pytest.mark.parametrize("name", [name for name in zip_files._LAYERS if name not in zip_files._UNTRACKED])
def test_layer_in_a_state_dict(tmp_path: Path, name: str) -> None:
    net = nn.Sequential(nn.Identity(), filled(zip_files._LAYERS[name]()))
    assert_state_dict_file(legacy(net.state_dict(), tmp_path / "m.pt"))


def test_norms_in_a_plain_list(tmp_path: Path) -> None:
    checkpoint = read(str(legacy(filled(HidesInList()), tmp_path / "m.pt")))
    assert [layer.name for layer in checkpoint.layers] == ["bn", "hidden.0", "hidden.1"]


def test_own_class(tmp_path: Path) -> None:
    assert_both(filled(nn.Sequential(Whitener(), nn.BatchNorm2d(FEATURES))), tmp_path)


@pytest.mark.parametrize("name", zip_files._VIEWS)
def test_views(tmp_path: Path, name: str) -> None:
    view = zip_files._VIEWS[name]()
    assert_both(one_norm(running_mean=view, running_var=view, weight=view.detach()), tmp_path)


def test_slices_of_one_storage(tmp_path: Path) -> None:
    flat = numbers(5 * FEATURES + 3)
    names = ("running_mean", "running_var", "weight", "bias")
    assert_both(
        one_norm(**{name: flat[3 + FEATURES * at :][:FEATURES] for at, name in enumerate(names)}),
        tmp_path,
    )


def test_tensors_shared_between_layers(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES)))
    net[1].weight = net[0].weight
    net[1].running_mean = net[0].running_mean
    net[1].running_var = net[0].running_mean
    assert_both(net, tmp_path)


_WIDTHS = {
    dtype: torch.zeros(1, dtype=dtype).element_size()
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    )
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    names = ("running_mean", "running_var", "weight", "bias")
    assert_both(one_norm(**{name: numbers(FEATURES, dtype, seed) for seed, name in enumerate(names)}), tmp_path)


@pytest.mark.parametrize("dtype", _WIDTHS, ids=str)
def test_storages_of_every_type_before_and_behind(tmp_path: Path, dtype: torch.dtype) -> None:
    """A width taken wrongly would move every storage behind it."""
    net = filled(nn.Sequential(*(nn.BatchNorm2d(FEATURES) for _ in range(6))))
    for index, layer in enumerate(net):
        layer.register_buffer("other", torch.ones(2 * index + 1, dtype=dtype))
    assert_both(net, tmp_path)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.complex32])
def test_types_that_torch_writes_and_cannot_load(tmp_path: Path, dtype: torch.dtype) -> None:
    """They lie in untyped storages, of which ``_legacy_load`` asks a dtype."""
    net = filled(Net())
    net.register_buffer("other", torch.ones(5, dtype=torch.uint8).to(dtype))
    path = legacy(net.state_dict(), tmp_path / "m.pt")
    with pytest.raises(AttributeError, match="UntypedStorage"):
        loaded(path)
    checkpoint = read(str(path))
    assert_same(of_group(checkpoint), told_by_state_dict(net.state_dict()))
    assert checkpoint.tensors["other"].shape == (5,)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in zip_files._ODD_TENSORS if kind != "float8"])
def test_odd_tensors(tmp_path: Path, kind: str) -> None:
    """Beside the norms they do no harm; as statistics they are never clean."""
    net = filled(Net())
    net.register_buffer("mask", zip_files._ODD_TENSORS[kind](torch.ones(4)))
    assert_same(of_group(read(str(legacy(net, tmp_path / "m.pt")))), told_by_module(loaded(tmp_path / "m.pt")))
    path = legacy(zip_files._with_odd_statistics(kind), tmp_path / "s.pt")
    assert {entry.what for entry in read(str(path)).unread} == {"1.running_mean", "1.running_var"}


def test_quints_of_four_bits(tmp_path: Path) -> None:
    """Two share a byte, and torch counts bytes."""
    net = filled(Net())
    scales = torch.ones(4), torch.zeros(4)
    net.register_buffer("other", torch.quantize_per_channel(torch.ones(4, 3), *scales, 0, torch.quint4x2))
    path = legacy(net.state_dict(), tmp_path / "m.pt")
    assert_same(of_group(read(str(path))), told_by_state_dict(loaded(path)))


def test_empty_storage_seen_as_two_types(tmp_path: Path) -> None:
    """Where there are no elements torch lets one key stand for both."""
    net = filled(Net())
    empty = torch.empty(0)
    state = {**net.state_dict(), "none": empty, "none_either": empty.view(torch.int32)}
    path = legacy(state, tmp_path / "m.pt")
    assert loaded(path)["none_either"].dtype is torch.int32
    assert_same(of_group(read(str(path))), told_by_state_dict(net.state_dict()))


def test_nothing_stored_but_a_meta_tensor(tmp_path: Path) -> None:
    assert read(str(legacy(Net().to("meta"), tmp_path / "m.pt"))).unread


@pytest.mark.parametrize("name", ["partial", "numpy-array", "set", "namespace", "function", "class", "torch-dtype"])
def test_attribute(tmp_path: Path, name: str) -> None:
    assert_module_file(legacy(zip_files._with_setting(zip_files._ATTRIBUTES[name]), tmp_path / "m.pt"))


# --- streams as older versions wrote them ------------------------------------------------------------------


class OldStream:
    """Writes a stream as torch did before 0.4, where storages could be parts of others and parameters held tensors.

    Args:
        little_endian: what the stream says of its machine.
        location: where storages were.
        views: whether every storage is a part of one that has two elements more in front and one behind.
    """

    def __init__(self, *, little_endian: bool = True, location: str = "cpu", views: bool = False) -> None:
        self._little_endian = little_endian
        self._location = location
        self._views = views
        self._storages: dict[str, torch.TypedStorage] = {}

    def write(self, value: object, path: Path) -> Path:
        buffer = io.BytesIO()
        facts = {
            "protocol_version": PROTOCOL_VERSION,
            "little_endian": self._little_endian,
            "type_sizes": {"short": 2, "int": 4, "long": 8},
        }
        for head in (MAGIC_NUMBER, PROTOCOL_VERSION, facts):
            pickle.dump(head, buffer, protocol=2)
        outer, classes = self, set()

        class Pickler(pickle.Pickler):
            def persistent_id(self, thing: object) -> object:
                if isinstance(thing, type) and issubclass(thing, nn.Module) and thing not in classes:
                    classes.add(thing)
                    return "module", thing, None, None
                return outer._named(thing) if isinstance(thing, torch.TypedStorage) else None

            def reducer_override(self, thing: object) -> object:
                if isinstance(thing, nn.Parameter):
                    return nn.Parameter, (thing.detach(),), (thing.requires_grad, False, OrderedDict())
                if isinstance(thing, torch.Tensor):
                    parts = thing.storage(), thing.storage_offset(), tuple(thing.size()), thing.stride()
                    return torch._utils._rebuild_tensor, parts
                return NotImplemented

        Pickler(buffer, protocol=2).dump(value)
        pickle.dump(sorted(self._storages), buffer, protocol=2)
        for _, storage in sorted(self._storages.items()):
            raw = bytes(storage._untyped_storage)
            width, extra = storage.element_size(), 3 if self._views else 0
            around = (b"\xee" * 2 * width, b"\xdd" * width) if self._views else (b"", b"")
            buffer.write(struct.pack("<q", len(raw) // width + extra) + around[0] + raw + around[1])
        path.write_bytes(buffer.getvalue())
        return path

    def _named(self, storage: torch.TypedStorage) -> object:
        key = str(storage._untyped_storage._cdata)
        self._storages[key] = storage
        kind = getattr(torch, storage._pickle_storage_type())
        view = (f"1{key}", 2, len(storage)) if self._views else None
        return "storage", kind, key, self._location, len(storage) + (3 if self._views else 0), view


def test_views_of_storages(tmp_path: Path) -> None:
    path = OldStream(views=True).write(OrderedDict(filled(Net()).state_dict()), tmp_path / "m.pt")
    assert loaded(path)["bn1.weight"].storage_offset() == 0
    checkpoint = zip_files.assert_state_dict_file(path)
    mean = checkpoint.tensors["bn1.running_mean"]
    assert (mean.storage_offset, mean.storage_numel) == (2, FEATURES + 3)
    roots = {tensor.storage for tensor in checkpoint.tensors.values()}
    assert len(roots) == len(checkpoint.tensors)
    assert not any(f"1{root}" in roots for root in roots), "a view has no place of its own"


@pytest.mark.parametrize("views", [False, True])
def test_module_whose_parameters_are_made_by_a_call(tmp_path: Path, views: bool) -> None:
    """Until 0.4 a parameter was a variable that held a tensor. What is not understood of it is said to be unread."""
    net = filled(Net())
    path = OldStream(views=views).write(net, tmp_path / "m.pt")
    theirs = loaded(path)
    assert torch.equal(theirs.bn1.weight, net.bn1.weight)
    checkpoint = read(str(path))
    assert {entry.what for entry in checkpoint.unread} <= {
        f"{name}.{leaf}" for name in ("bn1", "block.norm", "head.2") for leaf in ("weight", "bias")
    }
    for layer, told in zip(checkpoint.layers, told_by_module(theirs), strict=True):
        for attribute in ("name", "class_path", "eps", "momentum", "training", "num_batches_tracked"):
            assert getattr(layer, attribute) == getattr(told, attribute)
        assert layer.running_mean.tolist() == told.arrays["running_mean"].tolist()
        assert layer.running_var.tolist() == told.arrays["running_var"].tolist()


def test_module_with_the_backend_of_old(tmp_path: Path) -> None:
    """Modules of torch 0.1.10 to 1.4 held a table of functions, which a call brought back."""

    class Backend:
        def __reduce__(self) -> object:
            from torch.nn.backends.thnn import _get_thnn_function_backend

            return _get_thnn_function_backend, ()

    net = filled(Net())
    net._backend = Backend()
    assert_module_file(legacy(net, tmp_path / "m.pt"))


def test_saved_on_a_big_endian_machine(tmp_path: Path) -> None:
    """It says so, and its storages are little-endian all the same."""
    path = OldStream(little_endian=False).write(filled(Net()).state_dict(), tmp_path / "m.pt")
    assert not zip_files.assert_state_dict_file(path).tensors["bn1.weight"].big_endian


def test_saved_from_a_gpu(tmp_path: Path) -> None:
    zip_files.assert_state_dict_file(OldStream(location="cuda:3").write(filled(Net()).state_dict(), tmp_path / "m.pt"))


# --- size --------------------------------------------------------------------------------------------------


class Counting(FileSource):
    """A file that counts what is read of it."""

    total = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.total += length
        return super().read_at(offset, length)


def test_large_storages_are_passed_over(tmp_path: Path) -> None:
    state: Mapping[str, torch.Tensor] = filled(Net()).state_dict()
    path = legacy({"a": torch.zeros(8_000_000), **state, "z": torch.zeros(8_000_000)}, tmp_path / "m.pt")
    assert path.stat().st_size > 64_000_000
    with Counting(str(path)) as source:
        checkpoint = read_torch_legacy(source, str(path), DEFAULT_LIMITS, frozenset())
    assert_same(list(checkpoint.layers), told_by_state_dict(state))
    assert source.total < 3_000_000


@pytest.mark.parametrize("size", [2**21 - 200, 2**21, 3 * 2**20, 9_000_000])
def test_pickle_longer_than_the_first_window(tmp_path: Path, size: int) -> None:
    net = filled(Net())
    path = legacy({"log": "x" * size, "model": net.state_dict()}, tmp_path / "m.pt")
    assert_same(of_group(read(str(path))), told_by_state_dict(loaded(path)["model"]))


def test_storages_are_counted(tmp_path: Path) -> None:
    path = legacy(filled(Net()).state_dict(), tmp_path / "m.pt")
    count = len({tensor.storage for tensor in read(str(path)).tensors.values()})
    assert read(str(path), Limits(legacy_storages=count)).layers
    with pytest.raises(UnsafeFile, match="storages"):
        read(str(path), Limits(legacy_storages=count - 1))


# --- what is no model, and folders -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1, 2, 3], {"lr": 0.1}, torch.ones(3)], ids=["list", "settings", "tensor"])
def test_no_model(tmp_path: Path, value: object) -> None:
    with pytest.raises(NoModel, match="holds no model"):
        read(str(legacy(value, tmp_path / "m.pt")))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", [{"lr": 0.1}, collections.Counter("aab"), 5, MAGIC_NUMBER + 1], ids=str)
def test_bare_pickle(tmp_path: Path, value: object, protocol: int) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(UnsupportedFile, match=r"is a bare pickle that torch\.save did not write"):
        read(str(path))
    assert not is_candidate(str(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_candidates_of_a_folder(tmp_path: Path, protocol: int) -> None:
    """A stream without tensors is what trainers save beside a model."""
    state = filled(Net()).state_dict()
    assert is_candidate(str(legacy(state, tmp_path / "model.bin", pickle_protocol=protocol)))
    assert not is_candidate(str(legacy({"lr": 0.1}, tmp_path / "training_args.bin", pickle_protocol=protocol)))


@pytest.mark.parametrize("cut", [1, 30, 2000, -20, -150, -200])
def test_cut_short_is_noticed_by_both(tmp_path: Path, cut: int) -> None:
    path = legacy(filled(Net()).state_dict(), tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
        loaded(path)
    with pytest.raises(UnreadableFile):
        read(str(path))


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from bncheck.readers import read
assert len(read(sys.argv[1]).layers) == 3
loaded = {"torch", "pickle", "tarfile", "tests"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded - {"pickle"} else 0)
"""
    path = legacy(filled(Net()), tmp_path / "m.pt")
    finished = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
