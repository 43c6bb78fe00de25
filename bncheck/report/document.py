"""The canonical document: every output format is a view of this one dict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from bncheck.core.finding import Finding, NotChecked, Report, Severity, Subject
from bncheck.core.layer_drift import LayerDrift
from bncheck.core.layers import Averaging, Float64Array, NormLayer
from bncheck.core.measurement import Companions, TrainEvalGap
from bncheck.core.rule import Rule
from bncheck.version import __version__

SCHEMA_VERSION = 1

Json = str | int | float | bool | None | Mapping[str, "Json"] | Sequence["Json"]
Document = dict[str, Json]


def report_document(report: Report) -> Document:
    """The whole run."""
    return {
        "schema_version": SCHEMA_VERSION,
        "bncheck_version": __version__,
        "subjects": [_subject(subject) for subject in report.subjects],
        "errors": [
            {"path": failure.path, "kind": failure.kind, "message": failure.message} for failure in report.failures
        ],
        "summary": {
            **{severity.label: report.count(severity) for severity in reversed(Severity)},
            "files": len(report.subjects) + len(report.failures),
            "skipped": report.skipped,
            "exit_code": int(report.exit_code),
        },
    }


def _subject(subject: Subject) -> Document:
    checkpoint = subject.checkpoint
    return {
        "path": checkpoint.path,
        "format": checkpoint.format.value,
        "packaging": checkpoint.packaging.value,
        "stage": checkpoint.stage.value,
        "layers": [layer_document(layer) for layer in checkpoint.layers],
        "findings": [_finding(finding) for finding in subject.findings],
        "passed": list(subject.passed),
        "not_checked": [_not_checked(entry) for entry in subject.not_checked],
        "measurements": _measurements(subject),
        "unread": [{"what": entry.what, "reason": entry.reason} for entry in checkpoint.unread],
        "remarks": list(checkpoint.remarks),
    }


def _measurements(subject: Subject) -> Json:
    """What running the model showed; null for an audit of the file alone."""
    measured = subject.measurements
    if measured is None:
        return None
    return {
        "device": measured.device,
        "precision": measured.precision,
        "samples": measured.samples,
        "mutated": None if measured.mutated is None else list(measured.mutated),
        "companions": None if measured.companions is None else _fields(measured.companions),
        "gap": None if measured.gap is None else _fields(measured.gap),
        "drift": [_drift(drift) for drift in sorted(subject.drifts, key=lambda drift: drift.order)],
        "not_measured": [
            {"what": probe.what, "reason": probe.reason, "failed": probe.failed} for probe in measured.not_measured
        ],
    }


def _fields(measured: Companions | TrainEvalGap) -> Document:
    return {field.name: finite(getattr(measured, field.name)) for field in fields(measured)}


def _drift(drift: LayerDrift) -> Document:
    """One layer, in the order of execution; lengths in stored standard deviations, KL in nats."""
    return {
        "layer": drift.layer.full_name,
        "order": drift.order,
        "delta": finite(drift.delta),
        "delta_noise": finite(drift.delta_noise),
        "log_ratio": finite(drift.log_ratio),
        "log_ratio_noise": finite(drift.log_ratio_noise),
        "kl": finite(float(drift.channels.kl.mean())),
    }


def layer_document(layer: NormLayer) -> Document:
    """What the file says of one layer; null where it does not say."""
    momentum = layer.momentum
    return {
        "name": layer.name,
        "group": layer.group,
        "kind": layer.kind.value,
        "class": layer.class_path,
        "num_features": layer.num_features,
        "eps": finite(layer.eps),
        "momentum": momentum.value if isinstance(momentum, Averaging) else finite(momentum),
        "affine": layer.affine,
        "track_running_stats": layer.track_running_stats,
        "training": layer.training,
        "baked_training": layer.baked_training,
        "execution_order": layer.execution_order,
        "num_batches_tracked": finite(layer.num_batches_tracked),
        "dtype": layer.dtype,
        "running_mean": _range(layer.running_mean),
        "running_var": _range(layer.running_var),
        "weight": _range(layer.weight),
        "bias": _range(layer.bias),
    }


def rule_document(rule: Rule) -> Document:
    """Identity and argument of a rule."""
    return {
        "id": rule.id,
        "name": rule.name,
        "family": rule.family.name.lower(),
        "severity": rule.severity.label,
        "needs": list(rule.needs),
        "rationale": rule.rationale,
        "formula": rule.formula,
        "limit": rule.limit,
        "false_alarms": list(rule.false_alarms),
        "remedy": rule.remedy,
        "reference": rule.reference,
    }


def _finding(finding: Finding) -> Document:
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity.label,
        "message": finding.message,
        "layers": list(finding.layers),
        "evidence": {name: finite(value) for name, value in finding.evidence.items()},
        "rationale": finding.rationale,
        "remedy": finding.remedy,
    }


def _not_checked(entry: NotChecked) -> Document:
    return {"rule": entry.rule, "reason": entry.reason, "layers": list(entry.layers), "crashed": entry.crashed}


def _range(array: Float64Array | None) -> Json:
    if array is None or not array.size:
        return None
    return {"min": finite(float(array.min())), "max": finite(float(array.max()))}


def finite(value: float | int | str | None) -> float | int | str | None:
    """JSON has no NaN and no infinity: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
