"""What to run a model on, as the command line or the config says it; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run and on what.

    Attributes:
        data: SPEC of the calibration data; None measures training alone.
        model: SPEC of what builds the model; None where the file needs none.
        model_arguments: keyword arguments for it.
        forward: SPEC of a callable (model, inputs) → prediction; None calls the model.
        samples: budget.
        batch_size: for files of inputs.
        input_key, label_key: keys of batches that are mappings.
        device: ``auto``, ``cpu``, ``cuda:0``, ``mps``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        trust_pickle: whether a pickled module may be loaded.
        train_data: SPEC of the training loader.
        train_step: SPEC of a callable (model, batch) that takes one training step.
        group: which copy of the network in the file to run: ``model``, ``ema`` …; an only one is ``model`` too.
    """

    data: str | None = None
    model: str | None = None
    model_arguments: Mapping[str, object] = field(default_factory=dict)
    forward: str | None = None
    samples: int = 2048
    batch_size: int = 64
    input_key: str | None = None
    label_key: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    trust_pickle: bool = False
    train_data: str | None = None
    train_step: str | None = None
    group: str = "model"


@dataclass(frozen=True, slots=True)
class InMemory:
    """What to run a module of this process on: the objects themselves. It runs where it is, in its own precision.

    Attributes:
        data: an iterable of batches; None measures training alone.
        forward: callable (model, inputs) → prediction; None calls the model.
        samples: budget.
        input_key, label_key: keys of batches that are mappings.
        train_data: the training loader.
        train_step: callable (model, batch) that takes one training step.
    """

    data: object = None
    forward: Callable[..., object] | None = None
    samples: int = 2048
    input_key: str | None = None
    label_key: str | None = None
    train_data: object = None
    train_step: Callable[..., object] | None = None
