"""Models spread over files: what an index says, and all that can be wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

import bncheck
from bncheck.core.checkpoint import FileFormat, Packaging, Stage
from bncheck.core.errors import BncheckError, UnreadableFile, UnsafeFile, UnsupportedFile
from bncheck.core.limits import Limits
from bncheck.readers import read
from bncheck.readers.source import FileSource
from tests.process import bncheck as run
from tests.readers.test_against_torch import assert_same, told_by_state_dict
from tests.readers.torch_files import Net, filled, saved

State = dict[str, torch.Tensor]


def split(state: State, folder: Path, count: int = 3, suffix: str = "safetensors") -> Path:
    """A state dict dealt out to so many files, tensor by tensor, so that every batch norm is torn; the index's path."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-{number + 1:05}-of-{count:05}.{suffix}" for number in range(count)]
    weight_map = {tensor: names[place % count] for place, tensor in enumerate(state)}
    for name in names:
        part = {tensor: state[tensor] for tensor, file in weight_map.items() if file == name}
        if suffix == "safetensors":
            save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
    return write_index(folder / f"{stem}.{suffix}.index.json", weight_map)


def write_index(path: Path, weight_map: object) -> Path:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2, sort_keys=True))
    return path


def change_index(path: Path, change: Callable[[dict], object]) -> Path:
    return write_index(path, change(json.loads(path.read_text())["weight_map"]))


def state_dict() -> State:
    return {name: value.clone() for name, value in filled(Net()).state_dict().items()}


# --- what an index says --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_layers_are_those_of_the_whole(tmp_path: Path, suffix: str, count: int) -> None:
    state = state_dict()
    index = split(state, tmp_path / "m", count, suffix)
    checkpoint = read(str(index))
    told = {each.name: each for each in told_by_state_dict(state)}
    assert {layer.name for layer in checkpoint.layers} == told.keys()
    assert_same(list(checkpoint.layers), [told[layer.name] for layer in checkpoint.layers])
    assert checkpoint.path == str(index)
    assert checkpoint.format is (FileFormat.SAFETENSORS if suffix == "safetensors" else FileFormat.TORCH_ZIP)
    assert (checkpoint.packaging, checkpoint.stage) == (Packaging.STATE_DICT, Stage.RELEASE)
    assert checkpoint.tensors.keys() == state.keys()
    assert not checkpoint.unread


def test_references_name_the_shard(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    files = json.loads(index.read_text())["weight_map"]
    for name, tensor in read(str(index)).tensors.items():
        assert tensor.storage.partition("/")[0] == files[name]


def test_folder_that_transformers_wrote(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = filled(ResNetModel(config))
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    norms = {name.rpartition(".")[0] for name in files if name.endswith("running_mean")}
    assert any(len({files[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_var")}) > 1 for norm in norms)
    layers = {layer.name: layer for layer in read(str(index)).layers}
    assert layers.keys() == norms
    state = model.state_dict()
    for name, layer in layers.items():
        for leaf in ("running_mean", "running_var", "weight", "bias"):
            assert getattr(layer, leaf).tolist() == state[f"{name}.{leaf}"].double().tolist()


def test_shards_are_opened_once_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = split(state_dict(), tmp_path / "m", 4)
    opened: list[str] = []
    closed: list[str] = []

    class Counted(FileSource):
        def __init__(self, path: str) -> None:
            super().__init__(path)
            self.path = path
            opened.append(os.path.basename(path))

        def __exit__(self, *exception: object) -> None:
            super().__exit__(*exception)
            closed.append(os.path.basename(self.path))

    monkeypatch.setattr("bncheck.readers.FileSource", Counted)
    read(str(index))
    assert sorted(opened) == sorted(path.name for path in (tmp_path / "m").iterdir())
    assert sorted(closed) == sorted(opened)


def test_shards_are_links_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f1e", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    split(state_dict(), tmp_path / "plain")
    for number, path in enumerate((tmp_path / "plain").iterdir()):
        blob = path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    report = bncheck.audit(tmp_path / "models--a--b")
    assert [subject.checkpoint.path for subject in report.subjects] == [str(snapshot / "model.safetensors.index.json")]
    assert report.exit_code == 0


# --- folders ---------------------------------------------------------------------------------------------------


def subjects(folder: Path) -> list[str]:
    report = bncheck.audit(folder)
    assert report.failures == ()
    return [os.path.relpath(subject.checkpoint.path, folder) for subject in report.subjects]


def test_folder_with_an_index_is_one_subject(tmp_path: Path) -> None:
    split(state_dict(), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert subjects(tmp_path) == ["model.safetensors.index.json"]


def test_other_formats_and_variants_stay_subjects_of_their_own(tmp_path: Path) -> None:
    split(state_dict(), tmp_path)
    split(state_dict(), tmp_path, 2, "bin")
    save_file({name: value.half() for name, value in state_dict().items()}, tmp_path / "model.fp16.safetensors")
    save_file(state_dict(), tmp_path / "model.safetensors")
    saved(state_dict(), tmp_path / "pytorch_model.bin")
    assert sorted(subjects(tmp_path)) == [
        "model.fp16.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]


def test_indexes_reach_no_further_than_their_folder(tmp_path: Path) -> None:
    split(state_dict(), tmp_path / "a")
    (tmp_path / "b").mkdir()
    save_file(state_dict(), tmp_path / "b" / "model-00001-of-00003.safetensors")
    assert subjects(tmp_path) == ["a/model.safetensors.index.json", "b/model-00001-of-00003.safetensors"]


def test_shard_that_was_named_is_audited(tmp_path: Path) -> None:
    split(state_dict(), tmp_path / "m", 1)
    shard = tmp_path / "m" / "model-00001-of-00001.safetensors"
    assert len(bncheck.audit(tmp_path / "m", shard).subjects) == 2


def test_other_json_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    save_file(state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "tf_model.h5.index.json").write_text(json.dumps({"weight_map": {"a": "tf_model-00001-of-00002.h5"}}))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert subjects(tmp_path) == ["model.safetensors"]


def test_distributed_checkpoint_is_refused_as_one(tmp_path: Path) -> None:
    distributed_checkpoint.save({"model": Net().state_dict()}, checkpoint_id=tmp_path / "step-100")
    for path in (tmp_path, tmp_path / "step-100", tmp_path / "step-100" / "__0_0.distcp"):
        (failure,) = bncheck.audit(path).failures
        assert failure.kind == "unsupported-file"
        assert "dcp_to_torch" in failure.message
    finished = run("audit", tmp_path)
    assert finished.returncode == 2
    assert finished.stdout.count("torch.distributed.checkpoint,") == 1


# --- what can be wrong -------------------------------------------------------------------------------------------

_SHARD = "model-00002-of-00003.safetensors"


@contextmanager
def refused(index: Path, kind: type[BncheckError], *words: str) -> Iterator[None]:
    yield
    with pytest.raises(kind) as caught:
        read(str(index))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert bncheck.audit(index).exit_code == 2


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".",
        "",
        "..\\model.safetensors",
        "C:model.safetensors",
        "\\\\host\\share\\x",
        "model\0.safetensors",
        "model.safetensors.index.json",
    ],
    ids=repr,
)
def test_names_that_could_lead_elsewhere(tmp_path: Path, name: str) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnsafeFile, "its index names"):
        change_index(index, lambda files: files | {"bn1.weight": name})


def test_another_index_as_a_shard(tmp_path: Path) -> None:
    """An index of an index of an index would never end."""
    index = split(state_dict(), tmp_path / "m")
    other = write_index(tmp_path / "m" / "other.json", {"a": "other.json"})
    with refused(index, UnsupportedFile, "other.json", "neither safetensors nor"):
        change_index(index, lambda files: files | {"a": other.name})


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, "2 of its 3 shards", "model-00001-of-00003", "model-00003-of-00003", "no such"):
        (tmp_path / "m" / "model-00001-of-00003.safetensors").unlink()
        (tmp_path / "m" / "model-00003-of-00003.safetensors").unlink()


def test_shard_that_is_a_device(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, _SHARD, "no regular file"):
        (tmp_path / "m" / _SHARD).unlink()
        (tmp_path / "m" / _SHARD).symlink_to("/dev/zero")


def test_tensor_that_its_shard_lacks(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, _SHARD, "lacks never.there"):
        change_index(index, lambda files: files | {"never.there": _SHARD})


def test_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    """A layer that the index leaves out must not go unseen."""
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, "holds bn1.running_var", "does not place there"):
        change_index(index, lambda files: {name: file for name, file in files.items() if name != "bn1.running_var"})


def test_tensor_that_lies_in_another_shard(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, "lacks bn1.bias", "holds bn1.bias"):
        change_index(index, lambda files: files | {"bn1.bias": _other(files["bn1.bias"])})


def _other(name: str) -> str:
    return "model-00001-of-00003.safetensors" if name == _SHARD else _SHARD


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnreadableFile, _SHARD, "cut short"):
        shard = tmp_path / "m" / _SHARD
        shard.write_bytes(shard.read_bytes()[:20])


def test_pickled_shard_that_would_run_something(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("true",)

    index = split(state_dict(), tmp_path / "m", 2, "bin")
    shard = tmp_path / "m" / "pytorch_model-00002-of-00002.bin"
    with refused(index, UnsafeFile, shard.name, "would call"):
        torch.save({"x": Evil()}, shard)


@pytest.mark.parametrize("content", [{"model": {}}, nn.BatchNorm1d(3), [1]], ids=["nested", "module", "list"])
def test_pickled_shard_of_something_else(tmp_path: Path, content: object) -> None:
    index = split(state_dict(), tmp_path / "m", 2, "bin")
    with refused(index, UnsupportedFile, "more than a part of a state dict"):
        torch.save(content, tmp_path / "m" / "pytorch_model-00002-of-00002.bin")


def test_shards_of_two_formats(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m")
    with refused(index, UnsupportedFile, "different formats"):
        part = load_file(tmp_path / "m" / _SHARD)
        (tmp_path / "m" / _SHARD).unlink()  # it is mapped into memory
        torch.save(part, tmp_path / "m" / _SHARD)


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}',
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": null}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["x"]}}',
        '{"weight_map": {"a": "x"}',
        '{"weight_map": {"a": "x"}} trailing',
        '{"weight_map": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
        '{"weight_map": {"a": "x"}, "metadata": [' + "[]," * 5000 + "[]]}",
    ],
    ids=lambda text: text[:40],
)
def test_malformed_index(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with refused(index, UnreadableFile, "its index"):
        index.write_text(text)


@pytest.mark.parametrize("data", [b'{"weight_map": {"a": "\xff"}}', b'\xef\xbb\xbf{"weight_map": {"a": "b"}}'])
def test_index_in_another_encoding(tmp_path: Path, data: bytes) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(data)
    assert bncheck.audit(index).exit_code == 2


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(shard_index_bytes=100), "its index has"),
        (Limits(tensors=3), "more tensors"),
        (Limits(name_length=5), "longer names"),
        (Limits(shards=2), "names 3 files"),
    ],
)
def test_bounds(tmp_path: Path, limits: Limits, words: str) -> None:
    index = split(state_dict(), tmp_path / "m")
    with pytest.raises(UnreadableFile, match=words):
        read(str(index), limits)


def test_budget_of_statistics_is_one_for_all_shards(tmp_path: Path) -> None:
    state = {f"{n}.running_{kind}": torch.ones(100) for n in range(4) for kind in ("mean", "var")}
    index = split(state, tmp_path / "m", 4)
    assert not read(str(index), Limits(statistics_bytes=6400)).unread
    unread = read(str(index), Limits(statistics_bytes=6399)).unread
    assert [entry.reason for entry in unread] == ["its batch-norm tensors take more than 6399 bytes"]


def test_index_that_cannot_be_read_hides_no_shard(tmp_path: Path) -> None:
    index = split(state_dict(), tmp_path / "m", 1)
    index.write_text('{"weight_map": {"a": ".safetensors", "a": ""}}')
    report = bncheck.audit(tmp_path / "m")
    assert report.exit_code == 2
    assert [os.path.basename(subject.checkpoint.path) for subject in report.subjects] == [
        "model-00001-of-00001.safetensors"
    ]


def test_index_behind_a_url_is_refused(tmp_path: Path) -> None:
    """Nobody can tell what lies beside a URL: it may be signed, or a query."""
    url = "memory://hub/model.safetensors.index.json"
    fsspec.filesystem("memory").pipe(url, split(state_dict(), tmp_path / "m").read_bytes())
    with pytest.raises(UnsupportedFile, match="download the folder"):
        read(url)


def test_faults_across_shards_are_found(tmp_path: Path) -> None:
    """The variance and its neighbours lie in different files; the rule sees one layer."""
    state: Mapping[str, torch.Tensor] = state_dict() | {"bn1.running_var": torch.full((6,), -1.0)}
    report = bncheck.audit(split(dict(state), tmp_path / "m", 4))
    assert ("BN402", ("bn1",)) in {(finding.rule, finding.layers) for finding in report.subjects[0].findings}
    assert report.exit_code == 1
