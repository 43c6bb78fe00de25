"""What running the model showed, as lines: what was run, and the drift of each layer in the order of execution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bncheck.core.finding import Subject
from bncheck.core.layer_drift import LayerDrift
from bncheck.core.measurement import Measurements
from bncheck.report.printable import bar, printable
from bncheck.report.styled import Line, Span

_ROWS = 10
_CHANNELS = 5


def measured_lines(subject: Subject, width: int, *, verbose: bool = False) -> Iterator[Line]:
    """Lines for one subject; none where nothing was run.

    Args:
        subject: the audited file.
        width: columns.
        verbose: whether to show every layer, and the worst channels of those that drifted.
    """
    measured = subject.measurements
    if measured is None:
        return
    yield (Span("  "), Span("measured", "bold"), Span(f"  {_said(measured)}", "dim"))
    for probe in measured.not_measured:
        style = "bold red" if probe.failed else "yellow"
        yield (Span("    "), Span(f"{probe.what} not measured: ", style), Span(printable(probe.reason)))
        for line in probe.detail.splitlines():
            yield (Span(f"      {printable(line)}", "dim"),)
    training = _training(measured)
    if training:
        yield (Span("    training  "), Span(printable(" · ".join(training)), "dim"))
    drifts = sorted(subject.drifts, key=lambda drift: drift.order)
    if drifts:
        yield from _spark(drifts, width)
        departed = drifted(subject)
        shown = drifts if verbose else sorted(departed, key=_size, reverse=True)[:_ROWS]
        yield from _table(sorted(shown, key=lambda drift: drift.order))
        if len(shown) < len(departed):
            yield (Span(f"    {len(departed) - len(shown)} more; --verbose shows every layer", "dim"),)
        if verbose:
            for drift in departed:
                yield from _worst_channels(drift, measured)


def _said(measured: Measurements) -> str:
    samples = [f"{measured.samples} samples"] if measured.samples else []
    parts = [*samples, measured.device, measured.precision]
    gap = measured.gap
    if gap is not None and gap.accuracy_stored is not None and gap.accuracy_batch is not None:
        parts.append(
            f"accuracy {gap.accuracy_stored:.3f} with stored moments, {gap.accuracy_batch:.3f} with the batch's"
        )
    elif gap is not None and gap.disagreement is not None:
        parts.append(f"{gap.disagreement:.1%} of top classes differ between stored and batch moments")
    return " · ".join(parts)


def _training(measured: Measurements) -> list[str]:
    """What training would do, in some words each: the loader, the batch, the step."""
    parts: list[str] = []
    data, batch, step = measured.training_data, measured.training_batch, measured.training_step
    if data is not None and data.last_batch is not None and data.batch_size is not None:
        parts.append(f"{data.samples} samples by {data.batch_size}, the last batch {data.last_batch}")
    taking = {name: layer for name, layer in batch.layers.items() if layer.uses_batch_moments} if batch else {}
    if taking:
        least = min(taking, key=lambda name: taking[name].values)
        parts.append(f"fewest values per channel {taking[least].values:g} at {least}")
    if step is not None:
        ran = [layer for layer in step.layers.values() if layer.ran]
        what = "a step" if step.by_user else "a forward pass"
        parts.append(f"{what} updates {sum(layer.changed for layer in ran)} of {len(ran)} layers")
    return parts


def drifted(subject: Subject) -> list[LayerDrift]:
    """Layers that a rule complains of for their drift, in the order of execution."""
    complained = _complained(subject)
    ordered = sorted(subject.drifts, key=lambda drift: drift.order)
    return [drift for drift in ordered if drift.layer.full_name in complained]


def _complained(subject: Subject) -> set[str]:
    return {name for finding in subject.findings if finding.rule in ("BN406", "BN407") for name in finding.layers}


def _size(drift: LayerDrift) -> float:
    return max(drift.delta, abs(drift.log_ratio))


def _spark(drifts: Sequence[LayerDrift], width: int) -> Iterator[Line]:
    """One bar for each layer, from the input on the left; neighbours share one where there are more than columns."""
    room = max(10, width - 40)
    step = math.ceil(len(drifts) / room)
    groups = [drifts[start : start + step] for start in range(0, len(drifts), step)]
    bars = "".join(bar(max(_size(drift) for drift in group)) for group in groups)
    largest = max(drifts, key=_size)
    yield (
        Span("    drift     "),
        Span(bars, "cyan"),
        Span(f"  in execution order; largest {_size(largest):.2g} at {printable(largest.layer.full_name)}", "dim"),
    )


def _table(drifts: Sequence[LayerDrift]) -> Iterator[Line]:
    if not drifts:
        return
    longest = max(5, *(len(printable(drift.layer.full_name)) for drift in drifts))
    head = f"    {'layer':<{longest}}  {'rms δ':>7} {'± SE':>7} {'var ratio':>9} {'KL':>8}"
    yield (Span(head, "dim"),)
    for drift in drifts:
        kl = float(drift.channels.kl.mean())
        yield (
            Span(f"    {printable(drift.layer.full_name):<{longest}}  "),
            Span(f"{drift.delta:>7.3f} {drift.delta_noise:>7.3f} {_ratio(drift):>9.3g} {kl:>8.3g}  "),
            Span(bar(_size(drift)), "cyan"),
        )


def _worst_channels(drift: LayerDrift, measured: Measurements) -> Iterator[Line]:
    """The channels of the largest divergence, with the data's moments beside the stored ones."""
    seen = (measured.layers or {}).get(drift.layer.name)
    if seen is None or seen.moments is None or seen.stored_mean is None or seen.stored_var is None:
        return
    yield (Span(f"    worst channels of {printable(drift.layer.full_name)}", "dim"),)
    moment = f"{{:>9}} {'± SE':>8} {'stored':>9}"
    yield (Span(f"      {'channel':>7} {moment.format('mean')} {moment.format('variance')} {'KL':>8}", "dim"),)
    for channel in np.argsort(-drift.channels.kl)[:_CHANNELS]:
        moments = seen.moments
        yield (
            Span(f"      {channel:>7} {moments.mean[channel]:>9.3g} {moments.mean_error[channel]:>8.2g} "),
            Span(f"{seen.stored_mean[channel]:>9.3g} {moments.var[channel]:>9.3g} {moments.var_error[channel]:>8.2g} "),
            Span(f"{seen.stored_var[channel]:>9.3g} {drift.channels.kl[channel]:>8.3g}"),
        )


def _ratio(drift: LayerDrift) -> float:
    """Geometric mean over channels of the variance ratio ρ²."""
    return math.exp(float(drift.channels.log_ratio.mean()))
