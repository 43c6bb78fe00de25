"""Whatever a loader yields is taken apart; what cannot be is told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bncheck.core.errors import BadData, UserCodeFailed
from bncheck.runtime.batches import Batch, DataOptions, batches, forward, open_data, select

IMAGES = torch.arange(10 * 3, dtype=torch.float32).reshape(10, 3)
LABELS = torch.arange(10)


@dataclass
class Sample:
    """As some loaders yield."""

    image: torch.Tensor
    label: torch.Tensor


def _taken(item: object, **options: object) -> Batch:
    (batch,) = batches([item], DataOptions(**options))
    return batch


@pytest.mark.parametrize(
    "item",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        {"pixel_values": IMAGES, "labels": LABELS},
        {"image": IMAGES, "target": LABELS, "path": ["a"] * 10},
        Sample(IMAGES, LABELS),
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES, list(range(10))),
    ],
    ids=["tuple", "list", "transformers", "mapping", "dataclass", "numpy", "list of labels"],
)
def test_inputs_and_labels_are_found(item: object) -> None:
    batch = _taken(item)
    assert isinstance(batch.inputs, tuple)
    assert torch.equal(batch.inputs[0], IMAGES)
    assert torch.equal(batch.labels, LABELS)
    assert batch.size == 10


@pytest.mark.parametrize("labels", [None, IMAGES, LABELS.float(), LABELS[:4], "text"])
def test_what_is_no_class_index_is_no_label(labels: object) -> None:
    assert _taken((IMAGES, labels)).labels is None


def test_keys_can_be_named() -> None:
    batch = _taken({"a": IMAGES, "b": IMAGES + 1, "c": LABELS}, input_key="b", label_key="c")
    assert torch.equal(batch.inputs[0], IMAGES + 1)
    assert torch.equal(batch.labels, LABELS)
    with pytest.raises(BadData, match="has no 'z'; it has 'a'"):
        _taken({"a": IMAGES}, input_key="z")


def test_a_mapping_without_a_known_key_becomes_keywords() -> None:
    batch = _taken({"left": IMAGES, "right": IMAGES, "labels": LABELS})
    assert set(batch.inputs) == {"left", "right"}

    class Two(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return left + right

    assert torch.equal(forward(Two(), batch), 2 * IMAGES)


def test_the_budget_cuts_the_last_batch() -> None:
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    taken = list(batches(loader, DataOptions(samples=6)))
    assert [batch.size for batch in taken] == [4, 2]
    assert torch.equal(taken[1].inputs[0], IMAGES[4:6])
    assert torch.equal(taken[1].labels, LABELS[4:6])


def test_no_more_is_asked_for_than_needed() -> None:
    def endless() -> Iterator[torch.Tensor]:
        yield IMAGES
        raise AssertionError("one batch was enough")

    assert [batch.size for batch in batches(endless(), DataOptions(samples=10))] == [10]


def test_floats_are_cast_and_integers_are_not() -> None:
    batch = _taken({"x": IMAGES.double()}, dtype=torch.bfloat16)
    assert batch.inputs[0].dtype == torch.bfloat16
    assert _taken(LABELS).inputs[0].dtype == torch.int64


def test_samples_are_chosen_in_any_order() -> None:
    chosen = select(_taken({"x": (IMAGES, IMAGES + 1), "y": LABELS}), [3, 3, 0])
    assert torch.equal(chosen.inputs[0][1], IMAGES[[3, 3, 0]] + 1)
    assert chosen.labels.tolist() == [3, 3, 0]
    assert chosen.size == 3


def _raises_half_way() -> Iterator[torch.Tensor]:
    yield IMAGES
    raise RuntimeError("disk gone")


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], BadData, "empty: it yields no batch"),
        ([()], BadData, "batch 0 is an empty tuple"),
        ([IMAGES[:0]], BadData, "holds no tensor of samples"),
        (["text"], BadData, "batch 0 holds no tensor of samples: it is a str"),
        ([np.array([object()])], BadData, "Python objects"),
        (_raises_half_way(), UserCodeFailed, "reading the data failed with RuntimeError: disk gone"),
    ],
)
def test_bad_data_is_told_in_one_line(data: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        list(batches(data, DataOptions()))


def test_what_the_model_raises_is_told_with_the_users_own_frames() -> None:
    with pytest.raises(UserCodeFailed, match="called with a batch of the data, failed with RuntimeError") as told:
        forward(nn.Linear(5, 2), _taken(IMAGES))
    assert "linear.py" in told.value.detail
    assert "bncheck" not in told.value.detail


@pytest.mark.parametrize("kind", ["pt", "pt-dict", "npy", "npz", "safetensors"])
def test_files_of_inputs(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"inputs.{kind.partition('-')[0]}"
    match kind:
        case "pt":
            torch.save(IMAGES, path)
        case "pt-dict":
            torch.save({"labels": LABELS, "images": IMAGES}, path)
        case "npy":
            np.save(path, IMAGES.numpy())
        case "npz":
            np.savez(path, x=IMAGES.numpy())
        case "safetensors":
            safetensors.torch.save_file({"anything": IMAGES}, path)
    taken = list(batches(open_data(str(path), batch_size=4), DataOptions()))
    assert [batch.size for batch in taken] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.inputs[0] for batch in taken]), IMAGES)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def test_files_of_inputs_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.array([_Runs()], dtype=object), allow_pickle=True)
    torch.save(_Runs(), tmp_path / "b.pt")
    for name in ("a.npy", "b.pt"):
        with pytest.raises(BadData, match="cannot be read as a file of inputs"):
            open_data(str(tmp_path / name), batch_size=4)
    assert "it ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none.npy", "none.pt"])
def test_a_missing_file_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such file"):
        open_data(str(tmp_path / name), batch_size=4)
