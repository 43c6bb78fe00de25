"""The operators that normalise with moments, and what they are given.

Signatures: https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/native_functions.yaml
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor


class Moments(enum.Enum):
    """Which moments an operator normalises with."""

    TOLD = "told"
    """Those its argument ``training`` tells."""
    STORED = "stored"
    OF_THE_BATCH = "of the batch"
    OF_EACH_SAMPLE = "of each sample"
    """An instance norm's; or stored ones, by its argument ``use_input_stats``."""


# In inference mode operators come undivided, as batch_norm and instance_norm; elsewhere as what those are made of.
_WITHOUT_OUT: Mapping[str, Moments] = {
    "aten::batch_norm": Moments.TOLD,
    "aten::_batch_norm_impl_index": Moments.TOLD,
    "aten::native_batch_norm": Moments.TOLD,
    "aten::cudnn_batch_norm": Moments.TOLD,
    "aten::miopen_batch_norm": Moments.TOLD,
    "aten::_native_batch_norm_legit": Moments.TOLD,
    "aten::_native_batch_norm_legit.no_stats": Moments.TOLD,
    "aten::_native_batch_norm_legit_functional": Moments.TOLD,
    "aten::_native_batch_norm_legit_no_training": Moments.STORED,
    "aten::_batch_norm_no_update": Moments.STORED,
    "aten::_batch_norm_with_update": Moments.OF_THE_BATCH,
    "aten::_batch_norm_with_update_functional": Moments.OF_THE_BATCH,
    # SyncBatchNorm over several processes: the moments of this one, and then those of all, which it stores.
    "aten::batch_norm_stats": Moments.OF_THE_BATCH,
    "aten::batch_norm_gather_stats": Moments.OF_THE_BATCH,
    "aten::batch_norm_gather_stats_with_counts": Moments.OF_THE_BATCH,
    "aten::instance_norm": Moments.OF_EACH_SAMPLE,
    "aten::quantized_batch_norm": Moments.STORED,
    "onednn::qbatch_norm2d": Moments.STORED,
    **{f"quantized::batch_norm{form}": Moments.STORED for form in ("", "_relu")},
    **{f"quantized::batch_norm{n}d{form}": Moments.STORED for n in (1, 2, 3) for form in ("", "_relu")},
}

OPERATORS: Mapping[str, Moments] = {
    **_WITHOUT_OUT,
    # The same, writing into tensors they are given: of the overload no_stats it is no_stats_out.
    **{f"{name}{'_' if '.' in name else '.'}out": moments for name, moments in _WITHOUT_OUT.items()},
}
"""Every operator, by the name dispatch gives it, that normalises or takes the moments to normalise with."""


@dataclass(frozen=True, slots=True)
class NormArguments:
    """What a normalisation operator was given.

    Attributes:
        input: what is normalised, of shape (N, C, *), in numbers that can be computed with.
        mean: the running mean, where it has one.
        uses_batch_moments: whether it normalises with moments over the batch.
        per_sample: whether it is an instance norm.
        eps: added to the variance.
    """

    input: Tensor
    mean: Tensor | None
    uses_batch_moments: bool
    per_sample: bool
    eps: float


def norm_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> NormArguments | None:
    """What an operator's call says, by the names of its arguments; None where it is no normalisation."""
    moments = OPERATORS.get(func.name())
    if moments is None:
        return None
    given = given_arguments(func, args, kwargs)
    mean = given.get("running_mean", given.get("mean") if moments is Moments.STORED else None)
    values = args[0] if args else next(iter(given.values()))
    return NormArguments(
        input=values.dequantize() if values.is_quantized else values,
        mean=mean if isinstance(mean, Tensor) else None,
        uses_batch_moments=moments is Moments.OF_THE_BATCH or (moments is Moments.TOLD and bool(given["training"])),
        per_sample=moments is Moments.OF_EACH_SAMPLE,
        eps=float(given["eps"] if "eps" in given else given["epsilon"]),
    )


def given_arguments(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a call by name."""
    return {**dict(zip(argument_names(func), args, strict=False)), **(kwargs or {})}


@cache
def argument_names(func: Any) -> tuple[str, ...]:
    """Names of an operator's arguments, in order."""
    return tuple(argument.name for argument in func._schema.arguments)


@cache
def result_names(func: Any) -> tuple[str, ...]:
    """Names of an operator's results, in order; empty where a result has none."""
    return tuple(result.name or "" for result in func._schema.returns)
