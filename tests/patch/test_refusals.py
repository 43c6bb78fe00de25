"""What is not written: moments that are none or do not fit, and files that cannot hold others."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bncheck.core.errors import CannotPatch
from bncheck.patch import NewMoments, check_output_of, check_patchable, patch_file
from bncheck.readers import read
from tests.patch.patched_files import FEATURES, classifier, moments_for, moments_of
from tests.range_server import serving
from tests.readers.exported_files import written_as_2_8
from tests.readers.torch_files import filled, rewritten, saved, unchanged

MEAN, VAR = np.zeros(FEATURES), np.ones(FEATURES)


def _with(values: np.ndarray, number: float) -> np.ndarray:
    changed = values.copy()
    changed[2] = number
    return changed


def refused(path: Path, moments: dict[str, NewMoments], match: str) -> None:
    """Nothing is written, and one line says why, after the file's name."""
    output = path.parent / "out"
    with pytest.raises(CannotPatch, match=match) as raised:
        patch_file(read(str(path)), moments, str(output), force=False)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)
    assert not output.exists()
    assert not list(path.parent.glob(".bncheck*"))


# --- numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "match"),
    [
        (NewMoments(_with(MEAN, np.nan), VAR), "running_mean of bn1 would hold 1 numbers that are not finite"),
        (NewMoments(_with(MEAN, -np.inf), VAR), "running_mean of bn1 would hold 1 numbers that are not finite"),
        (NewMoments(MEAN, _with(VAR, np.nan)), "running_var of bn1 would hold 1 numbers that are not finite"),
        (NewMoments(MEAN, _with(VAR, np.inf)), "running_var of bn1 would hold 1 numbers that are not finite"),
        (NewMoments(MEAN, _with(VAR, -1e-9)), "running_var of bn1 would hold negative variances, down to -1e-09"),
        (NewMoments(MEAN[1:], VAR), r"running_mean of bn1 has the shape \(6,\), and float64 of \(5,\) is given"),
        (NewMoments(MEAN, VAR[:, np.newaxis]), r"running_var of bn1 has the shape \(6,\), and float64 of \(6, 1\)"),
        (NewMoments(MEAN, VAR.astype(np.float32)), r"running_var of bn1 has the shape \(6,\), and float32"),
        (NewMoments(MEAN, VAR, -1), "num_batches_tracked of bn1 cannot become -1"),
        (NewMoments(MEAN, VAR, 2**63), "num_batches_tracked of bn1 would become 9223372036854775808"),
        (NewMoments(_with(MEAN, -1e39), VAR), r"running_mean of bn1 would become -1e\+39, which does not fit float32"),
    ],
)
def test_numbers_that_are_no_moments(tmp_path: Path, moments: NewMoments, match: str) -> None:
    refused(saved(classifier().state_dict(), tmp_path / "m.pt"), {"bn1": moments}, match)


@pytest.mark.parametrize(
    ("dtype", "largest", "beyond"),
    [(torch.float16, 65504.0, 65520.0), (torch.bfloat16, 3.3895e38, 3.3996e38), (torch.float32, 3.4028e38, 3.4029e38)],
    ids=str,
)
def test_numbers_beyond_the_format(tmp_path: Path, dtype: torch.dtype, largest: float, beyond: float) -> None:
    path = saved(classifier(dtype).state_dict(), tmp_path / "m.pt")
    short = str(dtype).removeprefix("torch.")
    refused(path, {"bn1": NewMoments(MEAN, _with(VAR, beyond))}, f"running_var of bn1 .* does not fit {short}")
    patch_file(read(str(path)), {"bn1": NewMoments(MEAN, _with(VAR, largest))}, str(tmp_path / "out"), force=False)
    assert torch.load(tmp_path / "out")["bn1.running_var"].isfinite().all()


def test_moments_stored_as_whole_numbers(tmp_path: Path) -> None:
    state = {"bn.running_mean": torch.zeros(6, dtype=torch.int32), "bn.running_var": torch.ones(6, dtype=torch.int32)}
    path = saved(state, tmp_path / "m.pt")
    refused(path, {"bn": NewMoments(MEAN, VAR)}, "running_mean of bn is stored as int32")


def test_counts_in_other_formats(tmp_path: Path) -> None:
    """An average of copies makes counts floats."""
    state = classifier().state_dict()
    for dtype, fits, beyond in ((torch.float32, 4711, None), (torch.float16, 4711, 70_000), (torch.uint8, 255, 256)):
        state["bn1.num_batches_tracked"] = torch.tensor(3).to(dtype)
        path = saved(state, tmp_path / "m.pt")
        output = tmp_path / "counted"
        patch_file(read(str(path)), {"bn1": NewMoments(MEAN, VAR, fits)}, str(output), force=True)
        assert torch.load(output)["bn1.num_batches_tracked"].equal(torch.tensor(fits).to(dtype))
        if beyond is not None:
            refused(path, {"bn1": NewMoments(MEAN, VAR, beyond)}, "num_batches_tracked of bn1 would become")


# --- layers ---------------------------------------------------------------------------------------------------


def refused_beforehand(path: Path, layers: list[str], match: str) -> None:
    """Said without any moments as well."""
    with pytest.raises(CannotPatch, match=match):
        check_patchable(read(str(path)), layers)
    refused(path, {layer: moments_for(FEATURES) for layer in layers}, match)


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    net = nn.ModuleDict({"bn": nn.BatchNorm2d(6), "bare": nn.BatchNorm2d(6, track_running_stats=False)})
    path = saved(net, tmp_path / "m.pt")
    refused_beforehand(path, ["bn", "bn2"], "it has no layer called bn2")
    refused_beforehand(path, ["bare"], "bare keeps no running moments in it")
    refused_beforehand(path, [], "there is no layer whose moments are to be written")


def test_one_of_the_moments_is_missing(tmp_path: Path) -> None:
    path = saved({"bn.running_var": torch.ones(6), "bn.weight": torch.ones(6)}, tmp_path / "m.pt")
    refused_beforehand(path, ["bn"], "bn: it holds no numbers for running_mean")


def test_moments_that_were_not_read(tmp_path: Path) -> None:
    state = {"bn.running_mean": torch.zeros(6).to_sparse(), "bn.running_var": torch.ones(6)}
    refused_beforehand(saved(state, tmp_path / "m.pt"), ["bn"], "bn: bn.running_mean was not read: its numbers are not")


# --- archives -------------------------------------------------------------------------------------------------


def test_compressed_members(tmp_path: Path) -> None:
    path = rewritten(saved(classifier().state_dict(), tmp_path / "m.pt"), unchanged, zipfile.ZIP_DEFLATED)
    assert torch.load(path)
    refused_beforehand(path, ["bn1"], "is compressed: other numbers would take other room; load the model and save it")


def _member_data(path: Path, member: str) -> int:
    """Where a member's bytes lie."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as opened:
        return opened._orig_compress_start


def _flipped(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return path


def _storage_of(path: Path, tensor: str) -> str:
    return f"m/{read(str(path)).tensors[tensor].storage}"


def test_damaged_member(tmp_path: Path) -> None:
    """A checksum made right would hide the damage."""
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    _flipped(path, _member_data(path, _storage_of(path, "bn1.running_var")))
    refused_beforehand(path, ["bn1"], "is damaged: its bytes disagree with their checksum; save the model again")


def test_two_checksums_that_differ(tmp_path: Path) -> None:
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    storage = _storage_of(path, "bn1.running_var")
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(storage).file_size
    start = _member_data(path, storage) + size
    assert path.read_bytes()[start : start + 4] == b"PK\x07\x08"
    _flipped(path, start + 5)
    refused_beforehand(path, ["bn1"], "is damaged: its two checksums differ; save the model again")


def test_damage_elsewhere_is_no_hindrance(tmp_path: Path) -> None:
    """The checksum of what is not written stays wrong, as it was."""
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    _flipped(path, _member_data(path, _storage_of(path, "conv.weight")))
    patch_file(read(str(path)), {"bn1": NewMoments(MEAN, VAR)}, str(tmp_path / "out"), force=False)
    with zipfile.ZipFile(tmp_path / "out") as archive:
        assert archive.testzip() == "m/data/0"


def test_damaged_member_of_an_archive_in_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    net = classifier()
    written_as_2_8(torch.export.export(net, (torch.randn(3, 3, 8, 8),)), path)
    assert check_patchable(read(str(path)), ["bn1"])
    _flipped(path, path.read_bytes().index(net.conv.weight.detach().numpy().tobytes()))  # of the inner archive
    refused_beforehand(path, ["bn1"], "data/weights/model.pt is damaged: its bytes disagree with their checksum")


def test_compiled_code_beside_the_program(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(classifier(), (torch.randn(3, 3, 8, 8),)), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/data/aotinductor/model/model.so", b"machine code")
    refused_beforehand(path, ["bn1"], "bn1: it also holds compiled code, whose own moments would stay")


# --- files ----------------------------------------------------------------------------------------------------


def _appended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _saved_again(path: Path) -> None:
    saved(filled(classifier(), seed=9).state_dict(), path)


def _another_in_its_place(path: Path) -> None:
    other = saved(filled(classifier(), seed=9).state_dict(), path.with_name("other"))
    status = path.stat()
    os.replace(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [_appended, _saved_again, _another_in_its_place, Path.unlink])
def test_file_that_changed_since_it_was_read(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    checkpoint = read(str(path))
    change(path)
    for act in (
        lambda: check_patchable(checkpoint, ["bn1"]),
        lambda: check_output_of(checkpoint, str(tmp_path / "out"), force=False),
        lambda: patch_file(checkpoint, {"bn1": NewMoments(MEAN, VAR)}, str(tmp_path / "out"), force=False),
    ):
        with pytest.raises(CannotPatch, match=r"changed since it was read: run again|cannot be opened again"):
            act()
    assert not (tmp_path / "out").exists()


def test_file_that_changed_and_looks_the_same(tmp_path: Path) -> None:
    """Same size, same time: what it holds is compared as well."""
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    status, checkpoint = path.stat(), read(str(path))
    sha256 = check_patchable(checkpoint, ["bn1"])
    with path.open("r+b") as file:
        file.seek(_member_data(path, "m/data/0"))
        file.write(b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CannotPatch, match="changed since it was read"):
        patch_file(checkpoint, moments_of(checkpoint), str(tmp_path / "out"), force=False, sha256=sha256)
    assert {found.name for found in tmp_path.iterdir()} == {"m.pt"}


def test_file_behind_a_url(tmp_path: Path) -> None:
    saved(classifier().state_dict(), tmp_path / "m.pt")
    with serving(tmp_path) as server:
        checkpoint = read(f"{server.url}/m.pt")
    assert moments_of(checkpoint).keys() == {"bn1", "head.1"}
    for act in (
        lambda: check_patchable(checkpoint, ["bn1"]),
        lambda: patch_file(checkpoint, moments_of(checkpoint), str(tmp_path / "out"), force=False),
    ):
        with pytest.raises(CannotPatch, match="does not lie on this machine: download it first"):
            act()
