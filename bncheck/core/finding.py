"""What an audit says: three outcomes of a rule, and the report that gathers them."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.code_prefixes import begins
from bncheck.core.errors import FindingsFound
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
class Hit:
    """What a rule saw on one layer.

    Attributes:
        layer: full name; None where the verdict is the whole model's.
        numbers: what was measured and the limits it was held against, by name.
        badness: how far gone it is: orders the layers of a finding, and tells from a baseline whether it got worse.
        remedy: what to do.
    """

    layer: str | None
    numbers: Mapping[str, Number]
    badness: float
    remedy: str


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
        hits: layer by layer, what the other fields sum up.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    layers: tuple[str, ...]
    evidence: Mapping[str, Number]
    rationale: str
    remedy: str
    hits: tuple[Hit, ...] = ()

    def of(self, hits: Sequence[Hit]) -> Finding:
        """The same complaint about these layers alone; at least one.

        Raises:
            ValueError: there is none.
        """
        worst = max(hits, key=lambda hit: hit.badness)
        evidence = dict(worst.numbers)
        if worst.layer is not None and evidence and any(hit.badness != worst.badness for hit in hits):
            evidence["worst layer"] = worst.layer
        layers = tuple(hit.layer for hit in hits if hit.layer is not None)
        return replace(self, layers=layers, evidence=evidence, remedy=worst.remedy, hits=tuple(hits))


class ExcusedBy(enum.Enum):
    """Who says that a finding does not count."""

    SUPPRESSION = "suppression"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Excuse:
    """Why a finding does not count.

    Attributes:
        by: whose word it is.
        reason: in the words of whoever wrote it down.
        until: the last day it holds; None: for good.
    """

    by: ExcusedBy
    reason: str
    until: datetime.date | None = None


@dataclass(frozen=True, slots=True)
class Excused:
    """A finding that is told and does not count."""

    finding: Finding
    excuse: Excuse


Judge = Callable[[Finding, Hit], Excuse | None]
"""Whether something excuses what a rule saw on one layer."""


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
        excused: findings that do not count.
    """

    checkpoint: Checkpoint
    outcomes: tuple[Outcome, ...]
    measurements: Measurements | None = None
    drifts: tuple[LayerDrift, ...] = ()
    excused: tuple[Excused, ...] = ()

    def excusing(self, judge: Judge) -> Subject:
        """Take out what is excused, layer by layer: a finding goes on about the layers that nothing excuses."""
        outcomes: list[Outcome] = []
        excused = list(self.excused)
        for outcome in self.outcomes:
            if not isinstance(outcome, Finding):
                outcomes.append(outcome)
                continue
            counting: list[Hit] = []
            by_excuse: dict[Excuse, list[Hit]] = {}
            for hit in outcome.hits:
                excuse = judge(outcome, hit)
                (counting if excuse is None else by_excuse.setdefault(excuse, [])).append(hit)
            excused.extend(Excused(outcome.of(hits), excuse) for excuse, hits in by_excuse.items())
            if counting or not by_excuse:
                outcomes.append(outcome.of(counting) if by_excuse else outcome)
        return replace(self, outcomes=tuple(outcomes), excused=tuple(excused))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Complaints that count, worst first, then by code."""
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
        must_check: code prefixes of the rules that may not go unchecked; ``ALL`` stands for every one.
        remarks: what is to be said of the run as a whole: a suppression that fits nothing, a baseline gone stale.
        nothing_is_clean: whether a run that found no normalisation layer is clean.
    """

    subjects: tuple[Subject, ...]
    failures: tuple[Failure, ...] = ()
    skipped: int = 0
    fail_on: Severity | None = Severity.ERROR
    must_check: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    nothing_is_clean: bool = False

    def count(self, severity: Severity) -> int:
        """Number of findings of this severity over all subjects."""
        return sum(finding.severity is severity for subject in self.subjects for finding in subject.findings)

    @property
    def excused(self) -> int:
        """Number of findings that do not count, over all subjects."""
        return sum(len(subject.excused) for subject in self.subjects)

    def must_be_checked(self, rule: str) -> bool:
        """Whether a rule that could not tell makes the run incomplete."""
        return begins(rule, self.must_check)

    @property
    def unchecked(self) -> tuple[tuple[Subject, NotChecked], ...]:
        """What was not checked and had to be."""
        return tuple(
            (subject, entry)
            for subject in self.subjects
            for entry in subject.not_checked
            if self.must_be_checked(entry.rule)
        )

    @property
    def failing(self) -> tuple[tuple[Subject, Finding], ...]:
        """The findings that fail the run."""
        return tuple(
            (subject, finding)
            for subject in self.subjects
            for finding in subject.findings
            if self.fail_on is not None and finding.severity >= self.fail_on
        )

    @property
    def exit_code(self) -> ExitCode:
        """2 outranks 1: a run that did not see everything has no verdict to give."""
        if self.failures or self.unchecked or not all(subject.complete for subject in self.subjects):
            return ExitCode.NOT_AUDITED
        if not (self.nothing_is_clean or any(subject.checkpoint.layers for subject in self.subjects)):
            return ExitCode.NOTHING_TO_AUDIT
        return ExitCode.FINDINGS if self.failing else ExitCode.CLEAN

    def raise_for_findings(self) -> None:
        """Do nothing where the run is clean.

        Raises:
            FindingsFound: findings fail the run, something could not be audited, or there was nothing to audit; the
                message says what, with codes, layers and remedies.
        """
        if self.exit_code is not ExitCode.CLEAN:
            raise FindingsFound(_told(self))


def _told(report: Report) -> str:
    """What keeps a run from being clean, most telling first."""
    said = [f"{_name(subject)}: {_summed_up(finding)}" for subject, finding in report.failing]
    said += [f"{failure.path}: {failure.message}" for failure in report.failures]
    for subject in report.subjects:
        name, measured = _name(subject), subject.measurements
        said += [f"{name}: {entry.what} was not read: {entry.reason}" for entry in subject.checkpoint.unread]
        failed = () if measured is None else (probe for probe in measured.not_measured if probe.failed)
        said += [f"{name}: {probe.what} was not measured: {probe.reason}" for probe in failed]
        said += [f"{name}: {entry.rule}: {entry.reason}" for entry in subject.not_checked if entry.crashed]
    said += [f"{_name(subject)}: {entry.rule} not checked: {entry.reason}" for subject, entry in report.unchecked]
    return "; ".join(said) or "nothing to audit: no batch-norm or tracked instance-norm layer"


def _name(subject: Subject) -> str:
    return subject.checkpoint.path or "the module"


def _summed_up(finding: Finding) -> str:
    first = finding.layers[0] if finding.layers else "the whole model"
    others = f" and {len(finding.layers) - 1} more" if len(finding.layers) > 1 else ""
    return f"{finding.rule} {finding.name} at {first}{others}: {finding.message}"
