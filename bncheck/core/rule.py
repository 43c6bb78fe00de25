"""What a rule is: its identity, its argument, and a check that yields only evidence."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Number, Severity
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements


class Family(enum.Enum):
    """Chapters of the catalogue; the value is the leading digit of a code."""

    MODE = 1
    UPDATES = 2
    BATCH = 3
    STATISTICS = 4
    MOMENTUM = 5
    COMPARISON = 6


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a check saw on one layer.

    Layers whose evidence has the same ``message`` and severity become one finding.

    Attributes:
        message: what is wrong, in one sentence that fits every layer with this fault.
        numbers: what was measured and the limits it was held against, by name.
        badness: orders layers inside a finding; the numbers of the worst are shown.
        severity: where it differs from the rule's own.
        remedy: likewise.
    """

    message: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    badness: float = 0.0
    severity: Severity | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Undecided:
    """The layer has what the rule needs, but it does not suffice for a verdict."""

    reason: str


Verdict = Evidence | Undecided | None
"""None: nothing wrong."""

LayerCheck = Callable[[NormLayer, Limits], Verdict]
ModelCheck = Callable[[Checkpoint, "tuple[NormLayer, ...]", Limits], Iterable[tuple[NormLayer, Verdict]]]
"""Takes the checkpoint and the layers of one group, so that a layer can be judged beside its neighbours."""
MeasuredCheck = Callable[[Checkpoint, Measurements, Limits], Iterable["tuple[NormLayer | None, Verdict]"]]
"""Takes what was measured; None instead of a layer where the verdict is the whole model's."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A defect bncheck can find.

    Attributes:
        id: code, ``BN`` and three digits; never reused, never changed in meaning.
        name: the defect, kebab-case.
        family: chapter; agrees with the code's first digit.
        severity: the default.
        needs: fields of ``NormLayer`` without which the rule says nothing; of ``Measurements`` for a measured check.
        rationale: why the defect matters.
        formula: what is computed.
        limit: what it is held against, and where the number comes from.
        false_alarms: what looks like the defect and is none; the rule stays silent on these.
        remedy: what to do, as lines to paste; ``{path}`` stands for the file.
        reference: where the claim can be read up.
        check_layer, check_model: what looks at the file; at most one of the two.
        check_measured: what looks at measurements; beside one of the others it adds to it where something was measured,
            and ``needs`` are the other's.

    Raises:
        ValueError: the identity is malformed, or there is no check, or two of the file.
    """

    id: str
    name: str
    family: Family
    severity: Severity
    needs: tuple[str, ...]
    rationale: str
    formula: str
    limit: str
    false_alarms: tuple[str, ...]
    remedy: str
    reference: str
    check_layer: LayerCheck | None = None
    check_model: ModelCheck | None = None
    check_measured: MeasuredCheck | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"BN[1-6]\d\d", self.id) or int(self.id[2]) != self.family.value:
            raise ValueError(f"{self.id}: the code does not belong to family {self.family.name}")
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", self.name):
            raise ValueError(f"{self.id}: {self.name!r} is not kebab-case")
        if self.check_layer is not None and self.check_model is not None:
            raise ValueError(f"{self.id}: a rule has one check of the file")
        if not self.reads_the_file and self.check_measured is None:
            raise ValueError(f"{self.id}: a rule has a check")

    @property
    def reads_the_file(self) -> bool:
        """Whether it says something without measurements."""
        return self.check_layer is not None or self.check_model is not None
