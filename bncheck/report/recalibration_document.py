"""A recalibration as one canonical document: what ``--format json`` prints and what is kept beside the copy."""

from __future__ import annotations

from collections.abc import Mapping

from bncheck.core.estimate import Estimate, LayerEstimate, moved_by
from bncheck.core.layers import Float64Array
from bncheck.core.recalibration import FileChoice, Recalibrated
from bncheck.report.document import Document, Json, finite
from bncheck.version import __version__

SCHEMA_VERSION = 1


def recalibration_document(found: Recalibrated, chosen: FileChoice, libraries: Mapping[str, str]) -> Document:
    """What was run, what was found, and what was written.

    Args:
        found: the recalibration.
        chosen: what was asked for.
        libraries: name → version of what it ran on.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "bncheck_version": __version__,
        "libraries": dict(libraries),
        "input": found.path,
        "input_sha256": None if found.written is None else found.written.input_sha256,
        "output": None if found.written is None else found.written.path,
        "output_sha256": None if found.written is None else found.written.output_sha256,
        "not_written": found.why_not_written,
        "bytes_changed": None if found.written is None else found.written.bytes_changed,
        "group": found.group,
        "data": chosen.run.data,
        "model": chosen.run.model,
        "seed": chosen.seed,
        "device": found.device,
        "precision": found.precision,
        "processes": found.processes,
        "metric": None
        if found.metric is None
        else {"name": found.metric.name, "before": found.metric.before, "after": found.metric.after},
        **_estimate(found.estimate, found.counts),
    }


def _estimate(found: Estimate, counts: Mapping[str, tuple[int, int]]) -> Document:
    return {
        "method": found.method.value,
        "samples": found.samples,
        "sweeps": found.sweeps,
        "waves": found.waves,
        "residual": finite(found.residual),
        "residual_in_standard_errors": finite(found.residual_in_errors),
        "why_inexact": found.why_inexact,
        "settled_share": finite(found.settling.share),
        "samples_wanted": found.settling.samples_wanted,
        "batch_scatter": finite(found.batch_scatter),
        "stride_cost": finite(found.stride_cost),
        "unreached": list(found.unreached),
        "not_estimated": dict(found.not_estimated),
        "left_alone": list(found.left_alone),
        "layers": [
            {
                "layer": name,
                "unsettled_channels": found.settling.unsettled.get(name, 0),
                "num_batches_tracked": list(counts[name]) if name in counts else None,
                **_layer(layer),
            }
            for name, layer in found.layers.items()
        ],
    }


def _layer(layer: LayerEstimate) -> Document:
    moved = moved_by(layer)
    return {
        "order": layer.order,
        "images": layer.data.images,
        "prior_share": finite(layer.prior_share),
        "rms_delta": finite(moved.rms_delta),
        "median_log_ratio": finite(moved.median_log_ratio),
        "before": {"mean": _numbers(layer.before_mean), "var": _numbers(layer.before_var)},
        "after": {"mean": _numbers(layer.after_mean), "var": _numbers(layer.after_var)},
        "standard_error": {"mean": _numbers(layer.data.mean_error), "var": _numbers(layer.data.var_error)},
    }


def _numbers(values: Float64Array) -> list[Json]:
    return [finite(float(value)) for value in values]
