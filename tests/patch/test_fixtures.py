"""Every fixture: with its own moments it comes out the same, and with others it is read back with those."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import CannotPatch
from bncheck.core.layers import NormLayer
from bncheck.patch import NewMoments, check_patchable, patch_file
from bncheck.readers import read
from tests.patch.patched_files import stored_members
from tests.process import FIXTURES


def _files() -> list[Path]:
    found = []
    for expected in sorted(FIXTURES.glob("*/expected.json")):
        told = json.loads(expected.read_text())
        found += [expected.parent / name for name in (*told["files"], *told.get("beside", ()))]
    return [path for path in found if path.suffix not in (".json", ".npz", ".npy", ".py")]


FILES = _files()


def _layers(checkpoint: Checkpoint) -> list[NormLayer]:
    """Layers whose own moments may be written again."""
    return [
        layer
        for layer in checkpoint.layers
        if layer.running_mean is not None
        and layer.running_var is not None
        and np.isfinite(layer.running_mean).all()
        and np.isfinite(layer.running_var).all()
        and not (layer.running_var < 0).any()
    ]


def _moments(layer: NormLayer) -> NewMoments:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count = layer.num_batches_tracked
    return NewMoments(layer.running_mean, layer.running_var, count if isinstance(count, int) else None)


def _other_moments(layer: NormLayer) -> NewMoments:
    """Numbers that every format holds exactly, other than those that are there."""
    assert layer.running_mean is not None
    size = layer.running_mean.size
    return NewMoments(np.full(size, -2.5), np.full(size, 12.0), 77)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_same_moments_give_the_same_file(path: Path, tmp_path: Path) -> None:
    checkpoint = read(str(path))
    layers = _layers(checkpoint)
    if not layers:
        pytest.skip("it holds no moments")
    output = tmp_path / "out"
    record = patch_file(checkpoint, {layer.full_name: _moments(layer) for layer in layers}, str(output), force=False)
    assert output.read_bytes() == path.read_bytes()
    assert (record.bytes_changed, record.output_sha256) == (0, record.input_sha256)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_other_moments_are_read_back(path: Path, tmp_path: Path) -> None:
    checkpoint = read(str(path))
    layers = _layers(checkpoint)
    if not layers:
        pytest.skip("it holds no moments")
    written = layers[::2]  # half of them, so that the others must stay
    output = tmp_path / path.name
    for config in path.parent.glob("config.json"):
        shutil.copy(config, tmp_path)
    sha256 = check_patchable(checkpoint, [layer.full_name for layer in written])
    new = {layer.full_name: _other_moments(layer) for layer in written}
    record = patch_file(checkpoint, new, str(output), force=False, sha256=sha256)
    after = read(str(output))
    assert [layer.full_name for layer in after.layers] == [layer.full_name for layer in checkpoint.layers]
    assert after.tensors == checkpoint.tensors
    assert after.remarks == checkpoint.remarks, "a checksum is wrong"
    for old, layer in zip(checkpoint.layers, after.layers, strict=True):
        wanted = new.get(layer.full_name)
        mean, var = (old.running_mean, old.running_var) if wanted is None else (wanted.mean, wanted.var)
        np.testing.assert_array_equal(layer.running_mean, mean)
        np.testing.assert_array_equal(layer.running_var, var)
        counted = wanted is not None and old.num_batches_tracked is not None
        assert layer.num_batches_tracked == (77 if counted else old.num_batches_tracked)
        for kept in ("weight", "bias"):
            np.testing.assert_array_equal(getattr(layer, kept), getattr(old, kept))
    if zipfile.is_zipfile(path):
        one, other = stored_members(path), stored_members(output)
        assert one.keys() == other.keys()
        storages = {checkpoint.tensors[name].storage for name in record.tensors}
        for name in one:
            in_folder = name.partition("/")[2]
            holds = any(storage in (name, in_folder) or storage.startswith(f"{name}/") for storage in storages)
            assert one[name] == other[name] or holds or in_folder == ".data/serialization_id", name


def test_spread_over_files(tmp_path: Path) -> None:
    [index] = (FIXTURES / "healthy-sharded-folder").glob("*.index.json")
    checkpoint = read(str(index))
    with pytest.raises(CannotPatch, match="spread over several files; save the model as one"):
        check_patchable(checkpoint, [checkpoint.layers[0].full_name])
