"""Files of ``torch.save`` before 0.1.10: written here as torch wrote them, loaded by torch, and read without it."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.core.checkpoint import FileFormat, Packaging, Stage
from bncheck.core.errors import NoModel, UnreadableFile, UnsupportedFile
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.readers import read
from bncheck.readers.candidates import is_candidate
from bncheck.readers.source import FileSource
from bncheck.readers.tar_directory import BLOCK, TarDirectory, is_header
from fixtures.tar_writer import TarMembers, write_tar
from tests.process import FIXTURES, ROOT
from tests.readers import test_against_torch as zip_files
from tests.readers.test_against_torch import assert_same, loaded, of_group, one_norm, told_by_module, told_by_state_dict
from tests.readers.torch_files import FEATURES, Net, filled, numbers, saved

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")

NAMES = ("sys_info", "pickle", "tensors", "storages")


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict as it was before counters came."""
    return OrderedDict((name, tensor) for name, tensor in net.state_dict().items() if "num_batches" not in name)


def assert_state_dict_file(path: Path) -> None:
    """Compare a file that holds one state dict; of every tensor where and how it lies."""
    checkpoint = zip_files.assert_state_dict_file(path)
    assert checkpoint.format is FileFormat.TORCH_TAR
    for name, tensor in loaded(path).items():
        mine = checkpoint.tensors[name]
        assert mine.dtype == str(tensor.dtype).removeprefix("torch.")
        assert (mine.shape, mine.strides) == (tuple(tensor.shape), tensor.stride())


# --- what the file says ------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [False, True], ids=["roots", "views"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dict(tmp_path: Path, protocol: int, views: bool) -> None:
    assert_state_dict_file(write_tar(state_of(filled(Net())), tmp_path / "m.pth.tar", protocol, views))


def test_view_is_told_as_part_of_its_root(tmp_path: Path) -> None:
    path = write_tar(state_of(filled(Net())), tmp_path / "m.pth", views=True)
    mean = read(str(path)).tensors["bn1.running_mean"]
    assert (mean.storage_offset, mean.storage_numel) == (2, FEATURES + 3)


@pytest.mark.parametrize("views", [False, True], ids=["roots", "views"])
def test_module(tmp_path: Path, views: bool) -> None:
    """Parameters were variables that held a tensor, and were written as a call of their class."""
    net = filled(Net()).eval()
    net.block.norm.train()
    path = write_tar(net, tmp_path / "m.pth", views=views)
    theirs = loaded(path)
    assert torch.equal(theirs.bn1.weight, net.bn1.weight)
    checkpoint = read(str(path))
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.MODULE, Stage.RELEASE)
    assert checkpoint.unread == ()
    assert_same(of_group(checkpoint), told_by_module(theirs))


def test_module_without_parameters(tmp_path: Path) -> None:
    net = nn.Sequential(filled(nn.BatchNorm2d(FEATURES, affine=False)), nn.ReLU())
    path = write_tar(net, tmp_path / "m.pth")
    assert_same(of_group(read(str(path))), told_by_module(loaded(path)))


def test_training_checkpoint(tmp_path: Path) -> None:
    net = filled(Net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    zip_files._train(net, optimizer, 3)
    value = {"epoch": 3, "state_dict": state_of(net), "optimizer": optimizer.state_dict(), "best": torch.ones(1)}
    path = write_tar(value, tmp_path / "checkpoint.pth.tar")
    checkpoint = read(str(path))
    assert_same(of_group(checkpoint), told_by_state_dict(loaded(path)["state_dict"]))
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.CHECKPOINT, Stage.TRAINING)
    assert checkpoint.training.optimizer == "optimizer"


@pytest.mark.parametrize("name", zip_files._VIEWS)
def test_views(tmp_path: Path, name: str) -> None:
    view = zip_files._VIEWS[name]()
    net = one_norm(running_mean=view, running_var=view, weight=view.detach())
    assert_state_dict_file(write_tar(state_of(net), tmp_path / "m.pth"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    names = ("running_mean", "running_var", "weight", "bias")
    net = one_norm(**{name: numbers(FEATURES, dtype, seed) for seed, name in enumerate(names)})
    assert_state_dict_file(write_tar(state_of(net), tmp_path / "m.pth"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_storages_of_every_type_before_and_behind(tmp_path: Path, dtype: torch.dtype) -> None:
    net = filled(nn.Sequential(*(nn.BatchNorm2d(FEATURES) for _ in range(4))))
    for index, layer in enumerate(net):
        layer.register_buffer("other", torch.ones(2 * index + 1, dtype=dtype))
    assert_state_dict_file(write_tar(state_of(net), tmp_path / "m.pth"))


def test_tensors_of_one_storage(tmp_path: Path) -> None:
    flat = numbers(4 * FEATURES)
    names = ("running_mean", "running_var", "weight", "bias")
    net = one_norm(**{name: flat[FEATURES * at :][:FEATURES] for at, name in enumerate(names)})
    path = write_tar(state_of(net), tmp_path / "m.pth")
    assert_state_dict_file(path)
    assert len({tensor.storage for tensor in read(str(path)).tensors.values()}) == 1


def test_storage_in_the_object(tmp_path: Path) -> None:
    """Its persistent id names no tensor."""
    net = filled(Net())
    path = write_tar({"raw": net.conv1.weight.detach().storage(), "model": state_of(net)}, tmp_path / "m.pth")
    assert isinstance(loaded(path)["raw"], torch.TypedStorage)
    assert_same(of_group(read(str(path))), told_by_state_dict(loaded(path)["model"]))


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(NoModel, match="holds no model"):
        read(str(write_tar({"lr": 0.1}, tmp_path / "m.pth")))


# --- archives ----------------------------------------------------------------------------------------------

Alter = Callable[[tarfile.TarInfo], None]


def as_whole_seconds(entry: tarfile.TarInfo) -> None:
    """No extended header is needed."""
    entry.mtime = 1_484_000_000


def as_large_ids(entry: tarfile.TarInfo) -> None:
    """Ids of a directory service do not fit seven octal digits."""
    entry.uid = entry.gid = 1_234_567_890


def as_foreign_names(entry: tarfile.TarInfo) -> None:
    """What is not ASCII goes into the extended header."""
    entry.uname, entry.gname = "jürgen", "größe"


@pytest.mark.parametrize("alter", [None, as_whole_seconds, as_large_ids, as_foreign_names])
def test_added_from_files_as_torch_did(tmp_path: Path, alter: Alter | None) -> None:
    path = tmp_path / "m.pth"

    def altered(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        if alter is not None:
            alter(entry)
        return entry

    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, data in TarMembers(state_of(filled(Net()))).members.items():
            (tmp_path / "member").write_bytes(data)
            archive.add(tmp_path / "member", arcname=name, filter=altered)
    assert (b"PaxHeader" in path.read_bytes()) is (alter is not as_whole_seconds)
    assert_state_dict_file(path)


def test_member_of_more_than_8_gib(tmp_path: Path) -> None:
    """Its size stands in the extended header; the file is as sparse as the archive allows."""
    path, size = tmp_path / "m.tar", 2**33
    entry = tarfile.TarInfo("sys_info")
    entry.size = size
    header = entry.tobuf(tarfile.PAX_FORMAT)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size + 10 * 1024)
    with tarfile.open(path) as archive:
        assert archive.next().size == size
    with FileSource(str(path)) as source:
        assert TarDirectory(source, NAMES, DEFAULT_LIMITS).member("sys_info").size == size


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_archive_is_no_model(tmp_path: Path, form: int) -> None:
    """A tar of something else is neither read nor, in a folder, mistaken for a model."""
    path = tmp_path / "model.tar"
    with tarfile.open(path, "w:", format=form) as archive:
        archive.add(saved(filled(Net()), tmp_path / "model.pt"), arcname="model/model.pt")
    with pytest.raises(UnsupportedFile, match=r"is a tar archive that torch\.save did not write"):
        read(str(path))
    assert not is_candidate(str(path))


@pytest.mark.parametrize("bound", ["legacy_storages", "tensors"])
def test_storages_and_tensors_are_counted(tmp_path: Path, bound: str) -> None:
    state = state_of(filled(Net()))
    path = write_tar(state, tmp_path / "m.pth")
    assert read(str(path), Limits(**{bound: len(state)})).layers
    with pytest.raises(UnreadableFile, match="too many"):
        read(str(path), Limits(**{bound: len(state) - 1}))


def test_candidate_of_a_folder(tmp_path: Path) -> None:
    assert is_candidate(str(write_tar(state_of(filled(Net())), tmp_path / "model")))


def test_headers_are_told_as_python_does(tmp_path: Path) -> None:
    """Python's checksum alone makes a header; other files of ours have none."""
    data = write_tar(state_of(filled(Net())), tmp_path / "m.pth").read_bytes()
    plain = bytearray(data[:BLOCK])
    plain[257:265] = bytes(8)
    plain[148:156] = b"%06o\0 " % (sum(plain[:148]) + 256 + sum(plain[156:]))
    negative = bytearray(plain)
    negative[400:410] = b"\xff" * 10
    signed = sum(negative[:148]) + 256 + sum(negative[156:]) - 256 * 10
    negative[148:156] = b"%07o\0" % signed
    marked = bytearray(plain)
    marked[148:156] = b"\x80" + (sum(plain[:148]) + 256 + sum(plain[156:])).to_bytes(7, "big")
    blocks = [data[:BLOCK], bytes(plain), bytes(negative), bytes(marked), bytes(plain[:-1]) + b"\1", bytes(BLOCK)]
    blocks += [path.read_bytes()[:BLOCK] for path in sorted(FIXTURES.glob("*/model.*"))]
    for block in blocks:
        try:
            tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            theirs = True
        except tarfile.HeaderError:
            theirs = False
        assert is_header(block) is theirs
    assert [is_header(block) for block in blocks[:6]] == [True, True, True, True, False, False]


@pytest.mark.parametrize("cut", [1, 10_240, 20_000, 25_000])
def test_cut_short(tmp_path: Path, cut: int) -> None:
    path = write_tar(state_of(filled(Net())), tmp_path / "m.pth")
    end = path.read_bytes().rstrip(b"\0")
    path.write_bytes(end[: len(end) - cut])
    with pytest.raises(UnreadableFile, match="cut short"):
        read(str(path))


def test_torch_reads_the_same_from_a_file_object_only(tmp_path: Path) -> None:
    """In memory torch does not look for a tar archive: the form is one of files."""
    path = write_tar(state_of(filled(Net())), tmp_path / "m.pth")
    with open(path, "rb") as file:
        assert torch.load(file, weights_only=False).keys() == loaded(path).keys()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)


def test_reading_imports_no_torch_and_extracts_nothing(tmp_path: Path) -> None:
    program = """
import sys
from bncheck.readers import read
assert len(read(sys.argv[1]).layers) == 3
loaded = {"torch", "pickle", "tarfile", "tempfile", "tests"} & set(sys.modules)
sys.exit(f"loaded {loaded}" if loaded - {"pickle", "tempfile"} else 0)
"""
    path = write_tar(state_of(filled(Net())), tmp_path / "m.pth")
    before = sorted(os.listdir(tmp_path))
    finished = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert sorted(os.listdir(tmp_path)) == before
