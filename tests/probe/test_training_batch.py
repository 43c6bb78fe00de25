"""Values per channel of one training batch, at every layer that takes its moments of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from bncheck.core.measurement import BatchValues, TrainingBatch
from bncheck.probe.training import Training, measure_training
from bncheck.probe.training_batch import training_batch
from bncheck.runtime.batches import Batch, DataOptions, forward
from bncheck.runtime.sources import Source, Sources, Step

Norm = Callable[[int], nn.Module]


class Pooled(nn.Module):
    """Maps of 6 by 6, then of 1 by 1 behind global pooling."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = norm(4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.context = norm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.context(self.pool(torch.relu(self.bn(self.conv(images)))))
        return self.head(pooled.flatten(1))


class WithAuxiliaryHead(Pooled):
    """A head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        if not self.training:
            return scores
        return scores + self.aux(self.conv(images).mean((2, 3))).sum()


class Constant(nn.Module):
    """Detection's frozen batch norm: all of it buffers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(features))

    def forward(self, values: Tensor) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        return torch.relu(values * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1))


class Frozen(Pooled):
    """Its first norm stays in eval mode."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.bn.eval()
        return self


def _batch(size: int) -> Batch:
    return Batch((torch.rand(size, 1, 8, 8),), None, size)


def _values(model: nn.Module, size: int, samples: int | None = None) -> dict[str, float]:
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = training_batch(model, _batch(size), forward, "--train-data", samples)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    return {name: layer.values for name, layer in found.layers.items()}


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, partial(nn.BatchNorm2d, track_running_stats=False)])
def test_positions_count(norm: Norm, size: int) -> None:
    assert _values(Pooled(norm), size) == {"bn": 36.0 * size, "context": float(size)}


def test_a_short_batch_is_scaled_to_a_full_one() -> None:
    assert _values(Pooled(), 4, samples=16) == {"bn": 36.0 * 16, "context": 16.0}


def test_only_layers_that_take_part_in_training_use_the_batch() -> None:
    layers = training_batch(Frozen().eval(), _batch(2), forward, "--train-data").layers
    assert {name: layer.uses_batch_moments for name, layer in layers.items()} == {"bn": False, "context": True}


def test_layers_of_constants_do_not() -> None:
    layers = training_batch(Pooled(Constant).eval(), _batch(2), forward, "--train-data").layers
    assert not any(layer.uses_batch_moments for layer in layers.values())


def test_layers_that_pool_all_processes_are_marked() -> None:
    layers = training_batch(Pooled(nn.SyncBatchNorm), _batch(2), forward, "--train-data").layers
    assert all(layer.pooled for layer in layers.values())


def test_an_exported_program_has_shapes_too() -> None:
    program = torch.export.export(Pooled().eval(), (torch.rand(4, 1, 8, 8),)).module()
    assert _values_of(training_batch(program, _batch(4), forward, "--train-data")) == {"bn": 144.0, "context": 4.0}


def _values_of(batch: TrainingBatch) -> dict[str, float]:
    return {name: layer.values for name, layer in batch.layers.items()}


# --- all three probes together ----------------------------------------------------------------------------


def _loader(samples: int = 33, batch_size: int = 8, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
    labels = torch.arange(samples) % 3
    return DataLoader(TensorDataset(torch.rand(samples, 1, 8, 8), labels), batch_size=batch_size, **options)


def _measured(
    model: nn.Module,
    train_data: Iterable[object] | None = None,
    step: Callable[..., object] | None = None,
    data: Iterable[object] | None = None,
) -> Training:
    """Everything, once it has been seen that the model is as it was."""
    model.eval()
    sources = Sources(
        data=None if data is None else Source("--data", lambda: data),
        train_data=None if train_data is None else Source("--train-data", lambda: train_data),
        train_step=None if step is None else Step("m.py:step", lambda: step),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    found = measure_training(model, sources, DataOptions(), forward)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    return found


def _step(model: nn.Module, batch: list[Tensor]) -> None:
    images, labels = batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def test_nothing_is_measured_where_nothing_was_asked_for() -> None:
    assert _measured(Pooled(), data=_loader()) == Training()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gives_all_three(workers: int) -> None:
    found = _measured(Pooled(), _loader(shuffle=True, num_workers=workers), _step)
    assert found.not_measured == ()
    assert found.data is not None
    assert (found.data.samples, found.data.batch_size, found.data.last_batch) == (33, 8, 1)
    assert found.batch is not None
    assert found.batch.layers["context"] == BatchValues(8.0)
    assert found.step is not None
    assert (found.step.samples, found.step.parameters_changed) == (8, 8)


def test_without_a_step_a_forward_pass_is_measured() -> None:
    found = _measured(Pooled(), _loader())
    assert found.step is not None
    assert not found.step.by_user
    assert all(layer.changed for layer in found.step.layers.values())


def test_without_training_data_the_batch_is_the_datas() -> None:
    found = _measured(Pooled(), step=_step, data=_loader(batch_size=4))
    assert found.data is None
    assert found.batch is not None
    assert (found.batch.source, found.batch.samples) == ("--data", 4)


def _without_odd(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Leaves samples out, as for pictures that cannot be opened."""
    images, labels = zip(*samples[::2], strict=True)
    return torch.stack(images), torch.stack(labels)


def _two_crops(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, *samples, strict=True)
    return torch.stack(images), torch.stack(labels)


@pytest.mark.parametrize(
    ("loader", "values"),
    [
        (_loader(collate_fn=_without_odd), 8.0),
        (_loader(collate_fn=_two_crops), 16.0),
        (_loader(samples=5), 5.0),
        ([torch.rand(2, 1, 8, 8), torch.rand(8, 1, 8, 8)], 8.0),
    ],
    ids=["short of samples", "two crops", "less than a batch", "list that begins short"],
)
def test_values_are_those_of_a_full_batch(loader: Iterable[object], values: float) -> None:
    found = _measured(Pooled(), loader)
    assert found.batch is not None
    assert found.batch.layers["context"].values == values


def test_layers_that_run_in_training_alone_are_seen_there() -> None:
    found = _measured(WithAuxiliaryHead(), _loader())
    assert found.batch is not None
    assert found.batch.layers["aux"] == BatchValues(8.0)


def test_a_step_that_cuts_its_batch_counts_its_parts() -> None:
    def accumulate(model: nn.Module, batch: list[Tensor]) -> None:
        for images, labels in zip(batch[0].split(2), batch[1].split(2), strict=True):
            cross_entropy(model(images), labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()

    found = _measured(Pooled(), _loader(), accumulate)
    assert found.batch is not None
    assert found.batch.layers["context"].values == 2.0


def test_a_batch_of_one_is_measured_though_torch_refuses_it() -> None:
    for step in (None, _step):
        found = _measured(Pooled(), _loader(batch_size=1), step)
        assert found.batch is not None
        assert found.batch.layers["context"].values == 1.0
        (entry,) = found.not_measured
        assert (entry.what, entry.failed) == ("training_step", False)
        assert "BN301" in entry.reason


def test_names_are_the_files() -> None:
    sources = Sources(train_data=Source("--train-data", _loader))
    found = measure_training(
        Pooled().eval(), sources, DataOptions(), forward, lambda name: f"net.{name}" if name == "bn" else None
    )
    assert found.batch is not None
    assert found.step is not None
    assert list(found.batch.layers) == list(found.step.layers) == ["net.bn"]


def _raising(error: Exception) -> Callable[..., object]:
    def step(model: nn.Module, batch: object) -> object:
        model.train()
        raise error

    return step


class Broken(TensorDataset):
    """Its samples cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        raise OSError("disk gone")


@pytest.mark.parametrize(
    ("train_data", "step", "what", "reason"),
    [
        (_loader(), _raising(KeyError("loss")), ["training_step"], "m.py:step failed with KeyError: 'loss'"),
        (_loader(), lambda model: None, ["training_step"], "m.py:step failed with TypeError"),
        ([], None, ["training"], "--train-data is empty"),
        (DataLoader(Broken(torch.zeros(4, 1)), batch_size=2), None, ["training"], "failed with OSError: disk gone"),
        ([3], None, ["training_data", "training_batch", "training_step"], "no tensor of samples: it is a int"),
        (_loader(), _raising(MemoryError()), ["training_step"], "MemoryError"),
    ],
)
def test_what_fails_is_told(
    train_data: Iterable[object], step: Callable[..., object] | None, what: list[str], reason: str
) -> None:
    found = _measured(Pooled(), train_data, step)
    assert [entry.what for entry in found.not_measured] == what
    assert all(entry.failed for entry in found.not_measured)
    assert reason in found.not_measured[0].reason


def test_an_iterator_is_not_robbed_of_its_first_batch() -> None:
    data = iter(_loader())
    (entry,) = _measured(Pooled(), step=_step, data=data).not_measured
    assert "give the loader itself" in entry.reason
    assert len(list(data)) == 5


def test_graphs_are_not_what_is_trained() -> None:
    traced = torch.jit.trace(Pooled().eval(), torch.rand(4, 1, 8, 8))
    exported = torch.export.export(Pooled().eval(), (torch.rand(8, 1, 8, 8),)).module()
    for graph in (traced, exported):
        found = measure_training(graph, Sources(train_data=Source("--train-data", _loader)), DataOptions(), forward)
        (entry,) = found.not_measured
        assert (entry.what, entry.failed) == ("training_step", False)
        assert "--model SPEC" in entry.reason
        assert found.batch is not None
        assert _values_of(found.batch)["context"] == 8.0
