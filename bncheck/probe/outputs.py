"""The tensor of a model's output that predictions are read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bncheck.core.errors import BadModel

# Names under which models return their scores.
_FIRST_CHOICE = ("logits", "out", "output", "scores", "pred", "predictions", "last_hidden_state")


def prediction(output: object, size: int) -> Tensor:
    """The first floating tensor of an output with one entry for each of ``size`` samples, in float64.

    Raises:
        BadModel: there is none.
    """
    found = next((tensor for tensor in _tensors(output) if tensor.ndim and len(tensor) == size), None)
    if found is None:
        raise BadModel(
            f"the model returns a {type(output).__name__} without a tensor of one entry per sample; "
            "name a function that returns its prediction: --forward m.py:predict"
        )
    return found.detach().double() if found.device.type != "mps" else found.detach().cpu().double()


def _tensors(value: object) -> Iterator[Tensor]:
    match value:
        case Tensor():
            if value.is_floating_point():
                yield value
        case Mapping():
            for name in _FIRST_CHOICE:
                if name in value:
                    yield from _tensors(value[name])
            for item in value.values():
                yield from _tensors(item)
        case list() | tuple():
            for item in value:
                yield from _tensors(item)


def are_scores(output: Tensor) -> bool:
    """Whether an output is a row of scores for each sample: (N, K) with two classes or more."""
    return output.ndim == 2 and output.shape[1] > 1


def top_class(output: Tensor) -> Tensor:
    """Index of the largest score of each sample."""
    return torch.argmax(output, dim=1)
