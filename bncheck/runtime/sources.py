"""What the user gave to run a model on, by SPEC or in memory; nothing is opened before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bncheck.core.errors import BadData
from bncheck.core.run_options import InMemory, RunOptions
from bncheck.runtime.batches import Forward, forward, forward_by, open_data
from bncheck.runtime.user_code import load_callable


@dataclass(frozen=True, slots=True)
class Source:
    """Batches.

    Attributes:
        name: what messages call it.
        open: gives the iterable; raises ``BadSpec``, ``BadData`` or ``UserCodeFailed`` where there is none.
    """

    name: str
    open: Callable[[], Iterable[object]]


@dataclass(frozen=True, slots=True)
class Step:
    """A callable (model, batch) that takes one training step.

    Attributes:
        name: what messages call it.
        get: gives the callable; raises ``BadSpec`` or ``UserCodeFailed`` where there is none.
    """

    name: str
    get: Callable[[], Callable[..., object]]


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything given; None where it was not.

    Attributes:
        data: the calibration data.
        train_data: the training loader.
        train_step: what trains.
    """

    data: Source | None = None
    train_data: Source | None = None
    train_step: Step | None = None


def sources_by_spec(options: RunOptions) -> Sources:
    """What the SPECs of a command line name."""
    data, train_data, train_step = options.data, options.train_data, options.train_step
    return Sources(
        data=None if data is None else Source("--data", lambda: open_data(data, options.batch_size)),
        train_data=None
        if train_data is None
        else Source("--train-data", lambda: open_data(train_data, options.batch_size)),
        train_step=None if train_step is None else Step(train_step, lambda: load_callable(train_step)),
    )


def sources_in_memory(given: InMemory) -> Sources:
    """What was handed to the Python function."""
    step = given.train_step
    return Sources(
        data=None if given.data is None else Source("data", lambda: _iterable("data", given.data)),
        train_data=None
        if given.train_data is None
        else Source("train_data", lambda: _iterable("train_data", given.train_data)),
        train_step=None if step is None else Step("train_step", lambda: step),
    )


def forward_by_spec(spec: str | None) -> Forward:
    """What calls the model.

    Raises:
        BadSpec, UserCodeFailed: the SPEC names nothing that can be called.
    """
    return forward if spec is None else forward_by(spec, load_callable(spec))


def forward_in_memory(function: Callable[..., object] | None) -> Forward:
    """Likewise, of a function in memory."""
    return forward if function is None else forward_by("the forward function", function)


def _iterable(name: str, given: object) -> Iterable[object]:
    if not isinstance(given, Iterable):
        raise BadData(f"{name} is a {type(given).__name__}; an iterable of batches is expected")
    return given
