"""A figure of merit of a model, higher is better: the user's own function, or accuracy on labelled data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from bncheck.core.errors import BadData, BadModel, UserCodeFailed
from bncheck.probe.outputs import are_scores, prediction, top_class
from bncheck.runtime.batches import DataOptions, Forward, batches, open_data
from bncheck.runtime.user_code import call

_ALL = 2**62


@dataclass(frozen=True, slots=True)
class FigureOfMerit:
    """What to measure.

    Attributes:
        name: what it is called in reports.
        of: measures a model; raises ``UserCodeFailed``, ``BadData`` or ``BadModel`` where it cannot.
    """

    name: str
    of: Callable[[nn.Module], float]


def by_function(name: str, function: Callable[..., object]) -> FigureOfMerit:
    """What the user's callable (model) → float says."""

    def measure(model: nn.Module) -> float:
        value = call(name, function, model)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UserCodeFailed(f"{name} returned a {type(value).__name__}; a number is expected") from None
        if math.isnan(number):
            raise UserCodeFailed(f"{name} returned NaN; a number is expected")
        return number

    return FigureOfMerit(name, measure)


def accuracy_on(spec: str, taking: DataOptions, forward: Forward) -> FigureOfMerit:
    """The share of labels hit, on all of the data a SPEC names."""

    def measure(model: nn.Module) -> float:
        hits = samples = 0
        with torch.no_grad():
            for batch in batches(open_data(spec, taking.batch_size), replace(taking, samples=_ALL)):
                if batch.labels is None:
                    raise BadData(f"{spec} gives no class labels; name a function that measures: --evaluate m.py:score")
                output = prediction(forward(model, batch), batch.size)
                if not are_scores(output):
                    raise BadModel("the model returns no row of class scores; name a function: --evaluate m.py:score")
                hits += int((top_class(output).cpu() == batch.labels.cpu()).sum())
                samples += batch.size
        return hits / samples

    return FigureOfMerit("accuracy", measure)
