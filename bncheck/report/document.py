"""The canonical document: every output format is a view of this one dict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields

from bncheck.core.finding import Excused, Finding, NotChecked, Report, Severity, Subject
from bncheck.core.layer_drift import LayerDrift
from bncheck.core.layers import Averaging, Float64Array, NormLayer
from bncheck.core.measurement import (
    BatchValues,
    Companions,
    LayerMeasurement,
    LayerStep,
    Measurements,
    TrainEvalGap,
)
from bncheck.core.rule import Rule
from bncheck.version import __version__

SCHEMA_VERSION = 1

Json = str | int | float | bool | None | Mapping[str, "Json"] | Sequence["Json"]
Document = dict[str, Json]


def report_document(report: Report, *, channels: bool = False) -> Document:
    """The whole run.

    Args:
        report: the run.
        channels: whether layers come with their stored moments, and measured ones with what was measured, channel by
            channel.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "bncheck_version": __version__,
        "subjects": [_subject(subject, report, channels=channels) for subject in report.subjects],
        "errors": [
            {"path": failure.path, "kind": failure.kind, "message": failure.message} for failure in report.failures
        ],
        "remarks": list(report.remarks),
        "summary": {
            **{severity.label: report.count(severity) for severity in reversed(Severity)},
            "excused": report.excused,
            "files": len(report.subjects) + len(report.failures),
            "skipped": report.skipped,
            "fail_on": None if report.fail_on is None else report.fail_on.label,
            "exit_code": int(report.exit_code),
        },
    }


def _subject(subject: Subject, report: Report, *, channels: bool) -> Document:
    checkpoint = subject.checkpoint
    return {
        "path": checkpoint.path,
        "format": checkpoint.format.value,
        "packaging": checkpoint.packaging.value,
        "stage": checkpoint.stage.value,
        "layers": [_layer(layer, channels=channels) for layer in checkpoint.layers],
        "findings": [_finding(finding) for finding in subject.findings],
        "excused": [_excused(entry) for entry in subject.excused],
        "passed": list(subject.passed),
        "not_checked": [_not_checked(entry, report) for entry in subject.not_checked],
        "measurements": _measurements(subject, channels=channels),
        "unread": [{"what": entry.what, "reason": entry.reason} for entry in checkpoint.unread],
        "remarks": list(checkpoint.remarks),
    }


def _measurements(subject: Subject, *, channels: bool) -> Json:
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
        "training": _training(measured),
        "group": measured.group,
        "missing_statistics": list(measured.missing_statistics),
        "spare_statistics": list(measured.spare_statistics),
        "layers": [_measured_layer(*entry, subject, channels=channels) for entry in _in_order(measured)],
        "drift": [_drift(drift) for drift in sorted(subject.drifts, key=lambda drift: drift.order)],
        "not_measured": [
            {"what": probe.what, "reason": probe.reason, "failed": probe.failed} for probe in measured.not_measured
        ],
    }


def _training(measured: Measurements) -> Json:
    """What training would do; null where neither its data nor a step of it was named."""
    data, batch, step = measured.training_data, measured.training_batch, measured.training_step
    if data is None and batch is None and step is None:
        return None
    return {
        "data": None
        if data is None
        else {
            "samples": data.samples,
            "batch_size": data.batch_size,
            "drop_last": data.drop_last,
            "last_batch": data.last_batch,
            "replicas": data.replicas,
            "sources": dict(data.sources),
            "unknown": data.unknown,
        },
        "batch": None
        if batch is None
        else {
            "samples": batch.samples,
            "seen": batch.seen,
            "source": batch.source,
            "layers": [{"layer": name, **_fields(layer)} for name, layer in batch.layers.items()],
        },
        "step": None
        if step is None
        else {
            "by_user": step.by_user,
            "samples": step.samples,
            "passes": step.passes,
            "stayed_in_training": step.stayed_in_training,
            "parameters_changed": step.parameters_changed,
            "layers": [{"layer": name, **_fields(layer)} for name, layer in step.layers.items()],
        },
    }


def _fields(measured: Companions | TrainEvalGap | BatchValues | LayerStep) -> Document:
    return {field.name: finite(getattr(measured, field.name)) for field in fields(measured)}


def _in_order(measured: Measurements) -> list[tuple[str, LayerMeasurement]]:
    """Layers in the order of execution, those the data never reached last."""
    layers = measured.layers or {}
    return sorted(layers.items(), key=lambda entry: len(layers) if entry[1].order is None else entry[1].order)


def _measured_layer(name: str, seen: LayerMeasurement, subject: Subject, *, channels: bool) -> Document:
    """What was seen of one layer; ``order`` is null where the data never reached it."""
    moments = seen.moments
    document: Document = {
        "name": name,
        "order": seen.order,
        "calls": seen.calls,
        "uses_batch_moments": seen.uses_batch_moments,
        "eps": finite(seen.eps),
        "images": None if moments is None else moments.images,
        "values_per_channel": None if moments is None else finite(moments.positions),
        "unknown": seen.unknown,
    }
    if channels:
        drift = next((drift for drift in subject.drifts if drift.layer.name == name), None)
        document["channels"] = _channels(seen, drift)
    return document


def _channels(seen: LayerMeasurement, drift: LayerDrift | None) -> Document:
    """One number for each channel; null where it was not measured."""
    moments, compared = seen.moments, None if drift is None else drift.channels
    arrays = {
        "mean": None if moments is None else moments.mean,
        "mean_error": None if moments is None else moments.mean_error,
        "var": None if moments is None else moments.var,
        "var_error": None if moments is None else moments.var_error,
        "stored_mean": seen.stored_mean,
        "stored_var": seen.stored_var,
        "delta": None if compared is None else compared.delta,
        "delta_error": None if compared is None else compared.delta_error,
        "log_ratio": None if compared is None else compared.log_ratio,
        "log_ratio_error": None if compared is None else compared.log_ratio_error,
        "kl": None if compared is None else compared.kl,
    }
    return {name: _numbers(array) for name, array in arrays.items()}


def _numbers(array: Float64Array | None) -> Json:
    return None if array is None else [finite(float(number)) for number in array]


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


def _layer(layer: NormLayer, *, channels: bool) -> Document:
    document = layer_document(layer)
    if channels:
        document["channels"] = {
            "running_mean": _numbers(layer.running_mean),
            "running_var": _numbers(layer.running_var),
        }
    return document


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


def _excused(entry: Excused) -> Document:
    excuse = entry.excuse
    until = None if excuse.until is None else excuse.until.isoformat()
    return {
        **_finding(entry.finding),
        "excuse": {"by": excuse.by.value, "reason": excuse.reason, "until": until},
    }


def _not_checked(entry: NotChecked, report: Report) -> Document:
    return {
        "rule": entry.rule,
        "reason": entry.reason,
        "layers": list(entry.layers),
        "crashed": entry.crashed,
        "must_be_checked": report.must_be_checked(entry.rule),
    }


def _range(array: Float64Array | None) -> Json:
    if array is None or not array.size:
        return None
    return {"min": finite(float(array.min())), "max": finite(float(array.max()))}


def finite(value: float | int | str | None) -> float | int | str | None:
    """JSON has no NaN and no infinity: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
