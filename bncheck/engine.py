"""Applies rules to a checkpoint: subject × catalogue → findings, passes, and what was not checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Finding, Hit, NotChecked, Outcome, Passed, Severity, Subject
from bncheck.core.layer_drift import drifts
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.measurement import Measurements
from bncheck.core.remedies import about_file
from bncheck.core.rule import Evidence, Rule, Undecided, Verdict


def examine(
    checkpoint: Checkpoint, rules: Iterable[Rule], limits: Limits, measurements: Measurements | None = None
) -> Subject:
    """Apply every rule to a checkpoint, and to what was measured on it.

    A rule that raises becomes a not-checked outcome marked as crashed: one broken rule must neither hide what the
    others found nor pass for a clean result.
    """
    outcomes: list[Outcome] = []
    for rule in rules:
        try:
            outcomes.extend(_apply(rule, checkpoint, limits, measurements))
        except Exception as error:
            reason = f"the rule itself failed: {type(error).__name__}: {error}"
            outcomes.append(NotChecked(rule.id, reason, crashed=True))
    found = () if measurements is None else tuple(drifts(checkpoint, measurements, limits))
    return Subject(checkpoint, tuple(outcomes), measurements, found)


def _apply(rule: Rule, checkpoint: Checkpoint, limits: Limits, measurements: Measurements | None) -> Iterator[Outcome]:
    found: dict[tuple[Severity, str], list[tuple[NormLayer | None, Evidence]]] = {}
    unjudged: dict[str, list[str]] = {}
    for layer, verdict in _verdicts(rule, checkpoint, limits, measurements):
        match verdict:
            case None:
                pass
            case Undecided(reason=reason):
                unjudged.setdefault(reason, []).extend([] if layer is None else [layer.full_name])
            case Evidence():
                severity = rule.severity if verdict.severity is None else verdict.severity
                found.setdefault((severity, verdict.message), []).append((layer, verdict))
    for (severity, message), hits in found.items():
        yield _finding(rule, checkpoint, severity, message, hits)
    for reason, names in unjudged.items():
        everywhere = len(names) in (0, len(checkpoint.layers))
        yield NotChecked(rule.id, reason, () if everywhere else tuple(names))
    if not found and not unjudged:
        yield Passed(rule.id)


def _verdicts(
    rule: Rule, checkpoint: Checkpoint, limits: Limits, measurements: Measurements | None
) -> Iterator[tuple[NormLayer | None, Verdict]]:
    if rule.check_measured is not None and not rule.reads_the_file:
        missing = _not_measured(rule, measurements)
        if missing is not None or measurements is None:
            yield None, Undecided(missing or _asked_by(rule))
        else:
            yield from rule.check_measured(checkpoint, measurements, limits)
        return
    if rule.check_measured is not None and measurements is not None:
        yield from rule.check_measured(checkpoint, measurements, limits)
    able: list[NormLayer] = []
    for layer in checkpoint.layers:
        absent = [need for need in rule.needs if getattr(layer, need) is None]
        if absent:
            yield layer, Undecided(f"{_listed(absent)} {'is' if len(absent) == 1 else 'are'} not in the file")
        else:
            able.append(layer)
    if rule.check_layer is not None:
        for layer in able:
            yield layer, rule.check_layer(layer, limits)
    elif rule.check_model is not None:
        for group in dict.fromkeys(layer.group for layer in able):
            yield from rule.check_model(checkpoint, tuple(layer for layer in able if layer.group == group), limits)


def _not_measured(rule: Rule, measurements: Measurements | None) -> str | None:
    """Why a rule has nothing to look at; None where it has."""
    if measurements is None:
        return _asked_by(rule)
    for need in rule.needs:
        if getattr(measurements, need) is None:
            reasons = {failed.what: failed.reason for failed in measurements.not_measured}
            if "model" in reasons:
                return "the model could not be run"
            if need.startswith("training_") and "training" in reasons:
                return "the training data could not be had"
            behind = () if need.startswith("training_") else ("prediction", "data")
            failed_too = any(what in reasons for what in behind)
            return reasons.get(need) or ("the model could not be run on the data" if failed_too else _asked_by(rule))
    return None


_TRAINING_OPTIONS = {
    "training_data": "needs --train-data",
    "training_batch": "needs --train-data or --train-step",
    "training_step": "needs --train-data or --train-step",
}


def _asked_by(rule: Rule) -> str:
    """The option that asks for what a rule measures."""
    return _TRAINING_OPTIONS.get(rule.needs[0], "needs --data")


def _finding(
    rule: Rule,
    checkpoint: Checkpoint,
    severity: Severity,
    message: str,
    hits: Sequence[tuple[NormLayer | None, Evidence]],
) -> Finding:
    seen = tuple(
        Hit(
            layer=None if layer is None else layer.full_name,
            numbers=dict(evidence.numbers),
            badness=evidence.badness,
            remedy=about_file(rule.remedy if evidence.remedy is None else evidence.remedy, checkpoint.path),
        )
        for layer, evidence in hits
    )
    empty = Finding(rule.id, rule.name, severity, message, (), {}, rule.rationale, "")
    return empty.of(seen)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
