"""What an audit says: three outcomes of a rule, and the report that gathers them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layer_drift import LayerDrift
from bncheck.core.measurement import Measurements

Number = float | int | str | None


class Severity(enum.IntEnum):
    """How much a finding matters; ordered."""

    NOTICE = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        """Lower-case name, as the command line and the reports spell it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule's complaint about one or more layers of one file.

    Attributes:
        rule: code, e.g. ``BN201``.
        name: the defect, kebab-case.
        severity: how much it matters here.
        message: what is wrong, in one sentence.
        layers: full names of the layers that share the fault, in the file's order.
        evidence: the numbers of the worst layer and the limits they were held against.
        rationale: why it matters.
        remedy: what to do, as something to paste where that is possible.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    layers: tuple[str, ...]
    evidence: Mapping[str, Number]
    rationale: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Passed:
    """A rule looked at every layer it applies to and found nothing."""

    rule: str


@dataclass(frozen=True, slots=True)
class NotChecked:
    """A rule could not tell, on some layers or on the whole file.

    Attributes:
        rule: code.
        reason: what was missing.
        layers: the layers it could not judge; empty when it could judge none.
        crashed: the rule itself failed, which makes the audit incomplete.
    """

    rule: str
    reason: str
    layers: tuple[str, ...] = ()
    crashed: bool = False


Outcome = Finding | Passed | NotChecked


@dataclass(frozen=True, slots=True)
class Subject:
    """One audited file.

    Attributes:
        checkpoint: what its reader made of it.
        outcomes: what the rules said.
        measurements: what running it showed; None where it was not run.
        drifts: of the layers that were reached, from the measurements.
    """

    checkpoint: Checkpoint
    outcomes: tuple[Outcome, ...]
    measurements: Measurements | None = None
    drifts: tuple[LayerDrift, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Complaints, worst first, then by code."""
        found = [outcome for outcome in self.outcomes if isinstance(outcome, Finding)]
        return tuple(sorted(found, key=lambda finding: (-finding.severity, finding.rule)))

    @property
    def passed(self) -> tuple[str, ...]:
        """Codes of the rules that looked everywhere and found nothing."""
        return tuple(outcome.rule for outcome in self.outcomes if isinstance(outcome, Passed))

    @property
    def not_checked(self) -> tuple[NotChecked, ...]:
        """What could not be judged, and why."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, NotChecked))

    @property
    def complete(self) -> bool:
        """Whether everything that was there was read, no rule crashed, and no measurement that was asked for failed."""
        failed = self.measurements is not None and any(probe.failed for probe in self.measurements.not_measured)
        return not (self.checkpoint.unread or failed or any(outcome.crashed for outcome in self.not_checked))


@dataclass(frozen=True, slots=True)
class Failure:
    """A path that could not be audited."""

    path: str
    kind: str
    message: str


class ExitCode(enum.IntEnum):
    """What the process says to the shell."""

    CLEAN = 0
    FINDINGS = 1
    NOT_AUDITED = 2
    NOTHING_TO_AUDIT = 3


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one run.

    Attributes:
        subjects: audited files, in the order they were named.
        failures: paths that could not be audited.
        skipped: files inside folders that hold no model.
        fail_on: least severity that fails the run; None when none does.
    """

    subjects: tuple[Subject, ...]
    failures: tuple[Failure, ...] = ()
    skipped: int = 0
    fail_on: Severity | None = Severity.ERROR

    def count(self, severity: Severity) -> int:
        """Number of findings of this severity over all subjects."""
        return sum(finding.severity is severity for subject in self.subjects for finding in subject.findings)

    @property
    def exit_code(self) -> ExitCode:
        """2 outranks 1: a run that did not see everything has no verdict to give."""
        if self.failures or not all(subject.complete for subject in self.subjects):
            return ExitCode.NOT_AUDITED
        if not any(subject.checkpoint.layers for subject in self.subjects):
            return ExitCode.NOTHING_TO_AUDIT
        if self.fail_on is not None and any(
            finding.severity >= self.fail_on for subject in self.subjects for finding in subject.findings
        ):
            return ExitCode.FINDINGS
        return ExitCode.CLEAN
