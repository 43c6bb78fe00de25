"""Takes out of a report what is suppressed or known, and says which of those words no longer fit."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bncheck.config.contents import relative_to
from bncheck.core.baseline import Baseline, Key, Known, known
from bncheck.core.finding import Excuse, ExcusedBy, Finding, Hit, Report, Subject
from bncheck.core.suppression import Suppression

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Excuses:
    """What may excuse findings.

    Attributes:
        suppressions: those of the config.
        folder: what their paths are relative to.
        baseline: known findings.
        baseline_path: the file they stand in; None where there is none.
        today: on which a suppression may have lapsed.
        everything: whether the run was over all models the config names, so that what fits none of them is told.
    """

    suppressions: tuple[Suppression, ...] = ()
    folder: str = "."
    baseline: Baseline = field(default_factory=Baseline)
    baseline_path: str | None = None
    today: datetime.date = field(default_factory=datetime.date.today)
    everything: bool = False


def excused(report: Report, excuses: Excuses) -> Report:
    """The report without what is excused, and with remarks on excuses that fit nothing.

    A suppression that has lapsed excuses nothing any more, and says so. One is said to be of no use only where its
    rule was applied to a model it names and could judge it; a known finding is said to be gone likewise.
    """
    if not excuses.suppressions and excuses.baseline_path is None:
        return report
    used: set[int] = set()
    lapsed: set[int] = set()
    met: set[Key] = set()
    subjects: list[Subject] = []
    for subject in report.subjects:
        judge = _Judge(excuses, subject, used, lapsed, met)
        subjects.append(subject.excusing(judge))
    remarks = (
        *report.remarks,
        *_on_suppressions(excuses, report.subjects, used, lapsed),
        *_on_baseline(excuses, report, met),
    )
    return replace(report, subjects=tuple(subjects), remarks=remarks)


class _Judge:
    """Judges the findings of one model, and keeps which excuses it met."""

    def __init__(self, excuses: Excuses, subject: Subject, used: set[int], lapsed: set[int], met: set[Key]) -> None:
        self._excuses = excuses
        self._path = relative_to(excuses.folder, subject.checkpoint.path)
        self._model = model_in_baseline(excuses.baseline_path, subject.checkpoint.path)
        self._used, self._lapsed, self._met = used, lapsed, met

    def __call__(self, finding: Finding, hit: Hit) -> Excuse | None:
        # What is known is met even where a suppression stands before it: it is not gone.
        known_before = self._known(finding, hit)
        valid: Suppression | None = None
        for index, suppression in enumerate(self._excuses.suppressions):
            if suppression.covers(finding.rule, self._path, hit.layer):
                if suppression.lapsed(self._excuses.today):
                    self._lapsed.add(index)
                else:
                    self._used.add(index)
                    valid = valid or suppression
        return known_before if valid is None else Excuse(ExcusedBy.SUPPRESSION, valid.reason, valid.until)

    def _known(self, finding: Finding, hit: Hit) -> Excuse | None:
        key = Key(self._model, finding.rule, hit.layer)
        entry = self._excuses.baseline.entries.get(key)
        if entry is None:
            return None
        self._met.add(key)
        if entry.worsened(finding.severity, hit.badness, self._excuses.baseline.margin):
            return None
        return Excuse(ExcusedBy.BASELINE, f"known: it stands in {self._excuses.baseline_path}")


def _is_judged(subject: Subject, rule: str, layer: str | None) -> bool:
    """Whether a rule looked at a layer, and could tell; None: at all it applies to."""
    undecided = [entry.layers for entry in subject.not_checked if entry.rule == rule]
    if undecided:
        return layer is not None and all(layers and layer not in layers for layers in undecided)
    told = (*subject.findings, *(entry.finding for entry in subject.excused))
    return rule in subject.passed or any(finding.rule == rule for finding in told)


def _on_suppressions(excuses: Excuses, subjects: Sequence[Subject], used: set[int], lapsed: set[int]) -> Iterator[str]:
    paths = [relative_to(excuses.folder, subject.checkpoint.path) for subject in subjects]
    for index, suppression in enumerate(excuses.suppressions):
        what = f"{suppression.place}: the suppression of {suppression.rule}"
        if index in lapsed:
            yield f"{what} lapsed after {suppression.until:%Y-%m-%d}: its findings count again"
            continue
        if index in used:
            continue
        about = [subject for path, subject in zip(paths, subjects, strict=True) if suppression.names_model(path)]
        if about and all(_is_judged(subject, suppression.rule, None) for subject in about):
            yield f"{what} fits no finding any more: remove it"
        elif not about and excuses.everything:
            yield f"{what} names no audited model: {suppression.path}"


# --- the baseline ------------------------------------------------------------------------------------------


def model_in_baseline(baseline_path: str | None, path: str) -> str:
    """How a baseline names a model: from its own folder, so that it means the same wherever one stands."""
    return relative_to(os.path.dirname(baseline_path or "") or ".", path)


def baseline_of(report: Report, path: str, old: Baseline) -> Baseline:
    """What is known from now on: the findings that count, and what was known of what was not looked at now.

    That is: of other models, as long as they are there, and of rules that were left out, or could not tell.

    Args:
        report: before its baseline took anything out, after its suppressions did.
        path: where it is to be written.
        old: what stood there.
    """
    entries: dict[Key, Known] = {}
    audited = _by_model(report, path)
    for model, subject in audited.items():
        entries |= known(model, subject.findings)
    for key, entry in old.entries.items():
        subject_now = audited.get(key.model)
        unseen = _exists(path, key.model) if subject_now is None else not _is_judged(subject_now, key.rule, key.layer)
        if unseen:
            entries.setdefault(key, entry)
    return Baseline(entries, old.margin)


def _by_model(report: Report, baseline_path: str) -> dict[str, Subject]:
    return {model_in_baseline(baseline_path, subject.checkpoint.path): subject for subject in report.subjects}


def _exists(baseline_path: str, model: str) -> bool:
    return "://" in model or os.path.exists(os.path.join(os.path.dirname(baseline_path), model))


def _on_baseline(excuses: Excuses, report: Report, met: set[Key]) -> Iterator[str]:
    if excuses.baseline_path is None:
        return
    audited = _by_model(report, excuses.baseline_path)
    gone: dict[tuple[str, str], list[str]] = {}
    for key in sorted(excuses.baseline.entries.keys() - met, key=lambda key: (key.model, key.rule, key.layer or "")):
        if key.model in audited:
            if _is_judged(audited[key.model], key.rule, key.layer):
                gone.setdefault((key.model, key.rule), []).append(key.layer or "the whole model")
        elif not _exists(excuses.baseline_path, key.model):
            gone.setdefault((key.model, key.rule), []).append("a file that is gone")
    for (model, rule), layers in gone.items():
        yield (
            f"{excuses.baseline_path}: {model} no longer has {rule} at {_listed(layers)}; "
            "renew it with --write-baseline"
        )


def _listed(names: Iterable[str]) -> str:
    listed = list(dict.fromkeys(names))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
