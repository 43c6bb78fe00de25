"""What a user may say about an audit, in one place or several: the command line, the config, an entry for a model."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from bncheck.core.errors import BadUsage
from bncheck.core.finding import Severity
from bncheck.core.run_options import RunOptions


class StageChoice(enum.StrEnum):
    """What the files are for."""

    AUTO = "auto"
    TRAINING = "training"
    RELEASE = "release"


class FailOn(enum.StrEnum):
    """Least severity that fails the run."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    NEVER = "never"

    @property
    def severity(self) -> Severity | None:
        """None: nothing fails it."""
        return None if self is FailOn.NEVER else Severity[self.name]


class SeverityChoice(enum.StrEnum):
    """A severity, as it is spelt."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


class Precision(enum.StrEnum):
    """Number format a model runs in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What one place says of how to audit; None where it says nothing.

    Attributes:
        stage: what the files are for.
        select, ignore: code prefixes of the rules to apply, and to leave out.
        severity: code → the severity its findings have.
        limits: name of a threshold, as in ``Limits``, → its value.
        allow_call: callables that whole-module pickles may name beyond the known ones.
        data, model, model_arg, forward, samples, batch_size, input_key, label_key, device, precision, trust_pickle,
            train_data, train_step, group: as in ``RunOptions``.
    """

    stage: StageChoice | None = None
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    severity: Mapping[str, Severity] | None = None
    limits: Mapping[str, float] | None = None
    allow_call: tuple[str, ...] | None = None
    data: str | None = None
    model: str | None = None
    model_arg: Mapping[str, object] | None = None
    forward: str | None = None
    samples: int | None = None
    batch_size: int | None = None
    input_key: str | None = None
    label_key: str | None = None
    device: str | None = None
    precision: Precision | None = None
    trust_pickle: bool | None = None
    train_data: str | None = None
    train_step: str | None = None
    group: str | None = None

    def over(self, below: Choices) -> Choices:
        """What stands here, and below it what does not; mappings are merged key by key."""
        merged: dict[str, object] = {}
        for field in fields(self):
            here, there = getattr(self, field.name), getattr(below, field.name)
            if isinstance(here, Mapping) and isinstance(there, Mapping):
                merged[field.name] = {**there, **here}
            else:
                merged[field.name] = there if here is None else here
        return Choices(**merged)  # type: ignore[arg-type]  # each value comes from the field it goes to

    @property
    def names_code(self) -> bool:
        """Whether it lets code run: the user's by SPEC, or a file's own."""
        specs = (self.data, self.model, self.forward, self.train_data, self.train_step)
        return bool(self.trust_pickle) or any(spec is not None for spec in specs)

    def without_run(self) -> Choices:
        """The same of files that are read alone."""
        return replace(self, data=None, model=None, train_data=None, train_step=None)

    def run(self) -> RunOptions | None:
        """What to run; None where no data was named.

        Raises:
            BadUsage: a model or a training step was named without data.
        """
        if self.data is None and self.train_data is None:
            if self.train_step is not None:
                raise BadUsage("--train-step says how to train; what to train on, --train-data or --data, is missing")
            if self.model is not None:
                raise BadUsage("--model says how to build the model; --data, what to run it on, is missing")
            return None
        said = {field.name: getattr(self, field.name) for field in fields(RunOptions) if field.name in _SAID_ALIKE}
        if self.model_arg is not None:
            said["model_arguments"] = self.model_arg
        if self.precision is not None:
            said["precision"] = self.precision.value
        return RunOptions(**{name: value for name, value in said.items() if value is not None})


_SAID_ALIKE = {field.name for field in fields(Choices)} - {"precision"}
