"""A patched file and the one torch writes of the network after its buffers were set: the same, byte for byte."""

from __future__ import annotations

import contextlib
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from bncheck.core.errors import CannotPatch
from bncheck.patch import NewMoments, check_patchable, patch_file
from bncheck.readers import read
from fixtures.tar_writer import write_tar
from tests.patch.patched_files import (
    Classifier,
    changed_positions,
    classifier,
    images,
    moments_for,
    moments_of,
    names,
    patched,
    set_buffers,
    set_in,
    stored_members,
)
from tests.readers.exported_files import Shared, written, written_as_2_7, written_as_2_8
from tests.readers.torch_files import AveragedCopy, as_big_endian, rewritten, saved, unchanged

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:Couldn't retrieve source code")

Write = Callable[[nn.Module, Path], object]


def _legacy(value: object, path: Path) -> None:
    saved(value, path, _use_new_zipfile_serialization=False)


def _checkpoint(net: nn.Module) -> dict[str, object]:
    return {"epoch": 3, "model": net.state_dict(), "bn1": "a name of the same letters"}


WRITERS: dict[str, Write] = {
    "state-dict": lambda net, path: saved(net.state_dict(), path),
    "module": saved,
    "checkpoint": lambda net, path: saved(_checkpoint(net), path),
    "protocol-4": lambda net, path: saved(net.state_dict(), path, pickle_protocol=4),
    "legacy-state-dict": lambda net, path: _legacy(net.state_dict(), path),
    "legacy-module": _legacy,
    "tar": lambda net, path: write_tar(net.state_dict(), path),
    "safetensors": lambda net, path: safetensors.torch.save_file(net.state_dict(), path, metadata={"format": "pt"}),
}


def before_and_after(net: nn.Module, write: Write, folder: Path) -> tuple[Path, Path]:
    """The file of a network, and the one torch writes of it, under the same name, once its buffers are set."""
    paths = [folder / place / "model.pt" for place in ("before", "after")]
    for path in paths:
        path.parent.mkdir()
    write(net, paths[0])
    set_in(net, moments_of(read(str(paths[0]))))
    write(net, paths[1])
    return paths[0], paths[1]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_file_is_torchs_own(tmp_path: Path, write: Write) -> None:
    before, after = before_and_after(classifier(), write, tmp_path)
    output, record = patched(before)
    assert output.read_bytes() == after.read_bytes()
    assert before.read_bytes() != after.read_bytes()
    prefix = "model." if record.tensors[0].startswith("model.") else ""
    assert set(record.tensors) == {f"{prefix}{name}" for name in names(["bn1", "head.1"])}
    assert record.bytes_changed == len(changed_positions(before.read_bytes(), after.read_bytes()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["state-dict", "legacy-module", "safetensors"])
def test_number_formats(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    before, after = before_and_after(classifier(dtype), WRITERS[kind], tmp_path)
    assert patched(before)[0].read_bytes() == after.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rounding_is_torchs(tmp_path: Path, dtype: torch.dtype) -> None:
    """Ties, numbers below the smallest, and the last that do not overflow."""
    largest, step = torch.finfo(dtype).max, torch.finfo(dtype).eps
    tricky = [1 + step * n / 2 for n in range(9)] + [1 + step / 2 + 2.0**-40, largest, torch.finfo(dtype).tiny]
    tricky += [torch.finfo(dtype).smallest_normal / 2**n for n in range(1, 14)] + [-0.0, 0.0, 1e-300]
    mean = np.array([*tricky, *(-number for number in tricky)])
    net = nn.BatchNorm1d(mean.size).to(dtype)
    path = saved(net.state_dict(), tmp_path / "m.pt")
    output, _ = patched(path, {"(root)": NewMoments(mean, np.abs(mean))})
    state = torch.load(output)
    wanted = torch.from_numpy(mean).to(dtype)
    assert state["running_mean"].view(torch.uint8).equal(wanted.view(torch.uint8))
    assert state["running_var"].equal(wanted.abs())
    assert state["num_batches_tracked"] == 0


def test_without_checksums(tmp_path: Path) -> None:
    """torch writes a CRC of 0 for every member when it is told to save the time."""
    torch.serialization.set_crc32_options(False)
    try:
        before, after = before_and_after(classifier(), WRITERS["state-dict"], tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert patched(before)[0].read_bytes() == after.read_bytes()


def test_big_endian(tmp_path: Path) -> None:
    before, after = before_and_after(classifier(), WRITERS["state-dict"], tmp_path)
    swapped = as_big_endian(before)
    found, wanted = stored_members(patched(swapped)[0]), stored_members(as_big_endian(after))
    identity = "model/.data/serialization_id"  # still that of the little-endian file, so that there is none to keep
    assert found.pop(identity) == stored_members(swapped)[identity] != wanted.pop(identity)
    assert found == wanted


def test_checksums_in_local_headers(tmp_path: Path) -> None:
    """Archives that were packed again have no descriptors; their serialization id stays right as well."""
    before, after = before_and_after(classifier(), WRITERS["state-dict"], tmp_path)
    output, _ = patched(rewritten(before, unchanged))
    assert stored_members(output) == stored_members(after)
    assert torch.load(output).keys() == classifier().state_dict().keys()


def test_zip64_headers(tmp_path: Path) -> None:
    before, after = before_and_after(classifier(), WRITERS["state-dict"], tmp_path)
    wide = tmp_path / "wide.pt"
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(wide, "w") as new:
        for entry in old.infolist():
            with new.open(entry.filename, "w", force_zip64=True) as member:
                member.write(old.read(entry))
    assert stored_members(patched(wide)[0]) == stored_members(after)


def test_empty_members(tmp_path: Path) -> None:
    """PyTorch's writer leaves them out of the serialization id."""
    net = classifier()
    content = {"before": torch.zeros(0), "net": net.state_dict(), "after": torch.zeros(3, 0)}
    before, after = before_and_after(net, lambda _, path: saved(content, path), tmp_path)
    assert patched(before)[0].read_bytes() == after.read_bytes()


def test_foreign_serialization_id_is_left_alone(tmp_path: Path) -> None:
    def other(name: str, data: bytes) -> bytes:
        return b"1" * 40 if name == ".data/serialization_id" else data

    before, after = before_and_after(classifier(), WRITERS["state-dict"], tmp_path)
    assert stored_members(patched(rewritten(before, other))[0]) == stored_members(rewritten(after, other))


# --- what stays ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _module_named_gone() -> Iterator[type]:
    """A class of a module that is there while a file is written, and not when it is patched."""
    module = types.ModuleType("gone")
    exec("class Recipe:\n    def __init__(self):\n        self.secret = 42", module.__dict__)
    sys.modules["gone"] = module
    try:
        yield module.Recipe
    finally:
        del sys.modules["gone"]


def test_all_else_in_a_checkpoint_stays(tmp_path: Path) -> None:
    """Optimizer state, an averaged copy with moments of its own, and an object of a class nobody has."""
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters())
    net(images()).sum().backward()
    optimizer.step()
    average = AveragedCopy(net)
    with _module_named_gone() as recipe:
        content = {"model": net, "ema": average, "optimizer": optimizer.state_dict(), "recipe": recipe()}
        before, after = before_and_after(net, lambda _, path: saved(content, path), tmp_path)
    output, record = patched(before)
    assert output.read_bytes() == after.read_bytes()
    assert {layer.group for layer in read(str(output)).layers} == {"model", "ema"}
    assert set(record.tensors) == {f"model.{name}" for name in names(["bn1", "head.1"])}


def test_a_copy_of_the_network_alone(tmp_path: Path) -> None:
    net, average = classifier(), classifier()
    content = {"model": net.state_dict(), "model_ema": average.state_dict()}
    before, after = saved(content, tmp_path / "m.pt"), tmp_path / "after" / "m.pt"
    moments = moments_of(read(str(before)), "ema")
    assert set(moments) == {"ema:bn1", "ema:head.1"}
    set_in(average, {name.removeprefix("ema:"): new for name, new in moments.items()})
    after.parent.mkdir()
    saved(content, after)
    assert patched(before, moments)[0].read_bytes() == after.read_bytes()


def test_other_layers_and_the_count_stay(tmp_path: Path) -> None:
    net = classifier()
    path = saved(net.state_dict(), tmp_path / "m.pt")
    new = moments_for(4)
    output, record = patched(path, {"head.1": NewMoments(new.mean, new.var)})
    assert record.tensors == ("head.1.running_mean", "head.1.running_var")
    net.head[1].running_mean.copy_(torch.from_numpy(new.mean))
    net.head[1].running_var.copy_(torch.from_numpy(new.var))
    for name, tensor in torch.load(output).items():
        assert tensor.equal(net.state_dict()[name]), name


def test_file_without_counts_gets_none(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in classifier().state_dict().items() if "num_batches" not in name}
    output, record = patched(saved(state, tmp_path / "m.pt"))
    assert len(record.tensors) == 4
    assert torch.load(output).keys() == state.keys()


# --- memory with several names, views ------------------------------------------------------------------------


def test_one_layer_under_two_names(tmp_path: Path) -> None:
    net = Shared().eval()
    state = net.state_dict()
    path = saved(state, tmp_path / "m.pt")
    new = moments_for(4)
    output, record = patched(path, {"first": new})
    assert set(record.tensors) == names(["first", "alias"])
    set_buffers(state, "first.", new)
    assert all(tensor.equal(state[name]) for name, tensor in torch.load(output).items())
    assert patched(path, {"first": new, "alias": new})[1].output_sha256 == record.output_sha256
    with pytest.raises(CannotPatch, match=r"running_\w+ of (first|alias) and running_\w+ of .* share memory"):
        patched(path, {"first": new, "alias": moments_for(4, 1)})


def test_copy_that_shares_the_networks_memory(tmp_path: Path) -> None:
    """As in torch, who writes one writes the other; the record names both."""
    net = classifier()
    content = {"model": net.state_dict(), "ema": net.state_dict()}
    before, after = before_and_after(net, lambda _, path: saved(content, path), tmp_path)
    output, record = patched(before, moments_of(read(str(before))))
    assert output.read_bytes() == after.read_bytes()
    assert {name.partition(".")[0] for name in record.tensors} == {"model", "ema"}


def _interleaved(net: nn.Module) -> None:
    """Mean and variance of every layer as columns of one table, in a storage with other numbers around."""
    for norm in (net.bn1, net.head[1]):
        table = torch.randn(norm.num_features + 4, 3).abs()[2:-2]
        norm.running_mean, norm.running_var = table[:, 0], table[:, 2]


@pytest.mark.parametrize("kind", ["state-dict", "module", "legacy-state-dict", "legacy-module"])
def test_strided_views(tmp_path: Path, kind: str) -> None:
    net = classifier()
    _interleaved(net)
    before, after = before_and_after(net, WRITERS[kind], tmp_path)
    assert patched(before)[0].read_bytes() == after.read_bytes()


def test_channels_that_share_one_number(tmp_path: Path) -> None:
    net = nn.BatchNorm1d(4)
    net.running_mean = torch.zeros(1).expand(4)
    path = saved(net, tmp_path / "m.pt")
    with pytest.raises(CannotPatch, match=r"running_mean of \(root\) share memory"):
        patched(path)
    output, _ = patched(path, {"(root)": NewMoments(np.full(4, 2.5), np.ones(4))})
    assert torch.load(output, weights_only=False).running_mean.tolist() == [2.5] * 4


@pytest.mark.parametrize(
    "whole",
    [lambda table: table, lambda table: table[:, 5:], lambda table: table.T, lambda table: table.flatten()[5:7]],
    ids=["all", "last-channel", "transposed", "across"],
)
def test_memory_of_another_tensor_is_not_touched(tmp_path: Path, whole: Callable[[torch.Tensor], torch.Tensor]) -> None:
    table = torch.randn(2, 6).abs()
    state = {"bn.running_mean": table[0], "bn.running_var": table[1], "table": whole(table)}
    with pytest.raises(CannotPatch, match="table shares memory with running moments"):
        patched(saved(state, tmp_path / "m.pt"))


def test_neighbours_in_one_storage_are_no_hindrance(tmp_path: Path) -> None:
    flat = torch.randn(40).abs()
    state = {"a.weight": flat[:6], "bn.running_mean": flat[6:12], "bn.running_var": flat[12:18], "b": flat[18:]}
    path = saved(state, tmp_path / "m.pt")
    output, record = patched(path)
    assert record.tensors == ("bn.running_mean", "bn.running_var")
    found = torch.load(output)
    assert found["a.weight"].equal(state["a.weight"])
    assert found["b"].equal(state["b"])


def test_neighbours_between_the_channels(tmp_path: Path) -> None:
    """Columns of one table: each begins before the others end, and none has an element of another."""
    table = torch.randn(6, 3).abs()
    columns = {"bn.running_mean": table[:, 0], "other": table[:, 1], "bn.running_var": table[:, 2]}
    path = saved(columns, tmp_path / "m.pt")
    output, record = patched(path)
    assert record.tensors == ("bn.running_mean", "bn.running_var")
    assert torch.load(output)["other"].equal(table[:, 1])


def test_unusual_shapes(tmp_path: Path) -> None:
    state = {"bn.running_mean": torch.zeros(1, 6, 1, 1), "bn.running_var": torch.ones(1, 6, 1, 1)}
    new = moments_for(6)
    found = torch.load(patched(saved(state, tmp_path / "m.pt"), {"bn": new})[0])
    assert found["bn.running_mean"].flatten().equal(torch.from_numpy(new.mean).float())


# --- TorchScript ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_torchscript(tmp_path: Path, how: str) -> None:
    net = classifier()
    script = torch.jit.script(net) if how == "scripted" else torch.jit.trace(net, images())
    before, after = before_and_after(script, lambda net, path: net.save(str(path)), tmp_path)
    output, _ = patched(before)
    assert output.read_bytes() == after.read_bytes()
    set_in(net, moments_of(read(str(before))))
    assert torch.jit.load(output)(images()).allclose(net(images()), rtol=1e-5, atol=1e-5)


def _frozen(path: Path) -> Path:
    net = classifier()
    torch.jit.freeze(torch.jit.script(net), optimize_numerics=False).save(str(path))
    return path


def test_constants_of_frozen_code(tmp_path: Path) -> None:
    path = _frozen(tmp_path / "m.pt")
    checkpoint = read(str(path))
    new = {layer.full_name: moments_for(layer.num_features or 0, at) for at, layer in enumerate(checkpoint.layers)}
    output, record = patched(path, new)
    assert len(record.tensors) == 4
    assert all(name.startswith("CONSTANTS.c") for name in record.tensors)
    net = classifier()
    set_in(net, dict(zip(("bn1", "head.1"), new.values(), strict=True)))
    assert torch.jit.load(output)(images()).allclose(net(images()), rtol=1e-5, atol=1e-5)


def test_constants_that_stand_for_two_things(tmp_path: Path) -> None:
    """Equal constants become one: fresh layers' variances are their scales, too."""
    path = tmp_path / "m.pt"
    torch.jit.freeze(torch.jit.script(Classifier().eval()), optimize_numerics=False).save(str(path))
    layers = [layer.full_name for layer in read(str(path)).layers]
    assert len(layers) == 2
    for layer in layers:
        with pytest.raises(CannotPatch, match="is a constant that its code uses in 2 places"):
            check_patchable(read(str(path)), [layer])


def test_folded_into_convolutions(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)).eval())).save(str(path))
    with pytest.raises(CannotPatch, match="has no layer called 1"):
        check_patchable(read(str(path)), ["1"])


# --- exported programs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported() -> Callable[[], torch.export.ExportedProgram]:
    """The exported network, afresh each time."""
    program = torch.export.export(classifier(), (images(),))
    start = {name: tensor.detach().clone() for name, tensor in program.state_dict.items()}

    def fresh() -> torch.export.ExportedProgram:
        with torch.no_grad():
            for name, tensor in program.state_dict.items():
                tensor.copy_(start[name])
        return program

    return fresh


@pytest.mark.parametrize("write", [written, written_as_2_8, written_as_2_7], ids=["2.9", "2.8", "2.7"])
def test_exported_program(
    tmp_path: Path, exported: Callable[[], torch.export.ExportedProgram], write: Callable[..., Path]
) -> None:
    program = exported()
    before, after = tmp_path / "before" / "m.pt2", tmp_path / "after" / "m.pt2"
    for path in (before, after):
        path.parent.mkdir()
    write(program, before)
    moments = moments_of(read(str(before)))
    assert set(moments) == {"bn1", "head.1"}
    for name, new in moments.items():
        set_buffers(program.state_dict, f"{name}.", new)
    write(program, after)
    output, record = patched(before)
    assert set(record.tensors) == names(moments)
    if write is written_as_2_7:  # Python's zipfile writes the time
        assert stored_members(output) == stored_members(after)
    else:
        assert output.read_bytes() == after.read_bytes()
    if write is written:
        net = classifier()
        set_in(net, moments)
        ran = torch.export.load(output).module()(images())
        assert ran.allclose(net(images()), rtol=1e-5, atol=1e-5)


# --- one file twice -------------------------------------------------------------------------------------------


def test_patching_again_leads_to_the_same(tmp_path: Path) -> None:
    """First to other moments, then to those wanted: nothing of the first is left behind."""
    before, after = before_and_after(classifier(), WRITERS["module"], tmp_path)
    wanted = moments_of(read(str(before)))
    first = {name: moments_for(new.mean.size, 99) for name, new in wanted.items()}
    middle, _ = patched(before, first)
    final, record = patched(middle, wanted)
    assert final.read_bytes() == after.read_bytes()
    again = patch_file(read(str(final)), wanted, str(tmp_path / "again.pt"), force=False)
    assert (again.bytes_changed, again.output_sha256) == (0, record.output_sha256)
