"""Applies rules to a checkpoint: subject × catalogue → findings, passes, and what was not checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.finding import Finding, NotChecked, Outcome, Passed, Severity, Subject
from bncheck.core.layers import NormLayer
from bncheck.core.limits import Limits
from bncheck.core.rule import Evidence, Rule, Undecided, Verdict


def examine(checkpoint: Checkpoint, rules: Iterable[Rule], limits: Limits) -> Subject:
    """Apply every rule to a checkpoint.

    A rule that raises becomes a not-checked outcome marked as crashed: one broken rule must neither hide what the
    others found nor pass for a clean result.
    """
    outcomes: list[Outcome] = []
    for rule in rules:
        try:
            outcomes.extend(_apply(rule, checkpoint, limits))
        except Exception as error:
            reason = f"the rule itself failed: {type(error).__name__}: {error}"
            outcomes.append(NotChecked(rule.id, reason, crashed=True))
    return Subject(checkpoint, tuple(outcomes))


def _apply(rule: Rule, checkpoint: Checkpoint, limits: Limits) -> Iterator[Outcome]:
    found: dict[tuple[Severity, str], list[tuple[NormLayer, Evidence]]] = {}
    unjudged: dict[str, list[str]] = {}
    for layer, verdict in _verdicts(rule, checkpoint, limits):
        match verdict:
            case None:
                pass
            case Undecided(reason=reason):
                unjudged.setdefault(reason, []).append(layer.full_name)
            case Evidence():
                severity = rule.severity if verdict.severity is None else verdict.severity
                found.setdefault((severity, verdict.message), []).append((layer, verdict))
    for (severity, message), hits in found.items():
        yield _finding(rule, checkpoint, severity, message, hits)
    for reason, names in unjudged.items():
        everywhere = len(names) == len(checkpoint.layers)
        yield NotChecked(rule.id, reason, () if everywhere else tuple(names))
    if not found and not unjudged:
        yield Passed(rule.id)


def _verdicts(rule: Rule, checkpoint: Checkpoint, limits: Limits) -> Iterator[tuple[NormLayer, Verdict]]:
    able: list[NormLayer] = []
    for layer in checkpoint.layers:
        missing = [need for need in rule.needs if getattr(layer, need) is None]
        if missing:
            yield layer, Undecided(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} not in the file")
        else:
            able.append(layer)
    if rule.check_layer is not None:
        for layer in able:
            yield layer, rule.check_layer(layer, limits)
    elif rule.check_model is not None:
        for group in dict.fromkeys(layer.group for layer in able):
            yield from rule.check_model(checkpoint, tuple(layer for layer in able if layer.group == group), limits)


def _finding(
    rule: Rule,
    checkpoint: Checkpoint,
    severity: Severity,
    message: str,
    hits: Sequence[tuple[NormLayer, Evidence]],
) -> Finding:
    worst_layer, worst = max(hits, key=lambda hit: hit[1].badness)
    evidence = dict(worst.numbers)
    if evidence and any(hit.badness != worst.badness for _, hit in hits):
        evidence["worst layer"] = worst_layer.full_name
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=severity,
        message=message,
        layers=tuple(layer.full_name for layer, _ in hits),
        evidence=evidence,
        rationale=rule.rationale,
        remedy=(rule.remedy if worst.remedy is None else worst.remedy).replace("{path}", checkpoint.path),
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
