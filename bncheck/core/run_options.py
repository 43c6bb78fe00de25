"""What to run a model on, as the command line or the config says it; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run and on what.

    Attributes:
        data: SPEC of the calibration data.
        model: SPEC of what builds the model; None where the file needs none.
        model_arguments: keyword arguments for it.
        forward: SPEC of a callable (model, inputs) → prediction; None calls the model.
        samples: budget.
        batch_size: for files of inputs.
        input_key, label_key: keys of batches that are mappings.
        device: ``auto``, ``cpu``, ``cuda:0``, ``mps``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        trust_pickle: whether a pickled module may be loaded.
    """

    data: str
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
