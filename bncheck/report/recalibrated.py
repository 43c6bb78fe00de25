"""A recalibration for people: what was found, layer by layer, and what was written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from bncheck.core.estimate import Estimate, LayerEstimate, moved_by
from bncheck.core.estimation_method import Method
from bncheck.core.limits import Limits
from bncheck.core.moments import Drift
from bncheck.core.recalibration import Recalibrated
from bncheck.report.printable import bar, counted, printable
from bncheck.report.styled import Line, Span

_FIXED = "none: each layer stores the moments of its own input in eval mode"
_ROWS = 12
_LARGEST = 700.0  # e to this is still a number
_NAMES = 4


def recalibrated_lines(found: Recalibrated, limits: Limits, *, dry_run: bool, verbose: bool = False) -> list[Line]:
    """The verdict first, then what moved, then what to know about it.

    Args:
        found: the recalibration.
        limits: for warnings.
        dry_run: whether nothing was to be written.
        verbose: whether to list every layer.
    """
    lines = [_verdict(found, dry_run=dry_run)]
    lines.extend(_estimate_lines(found))
    if found.metric is not None:
        style = "bold red" if found.metric.is_worse else "green"
        name = printable(found.metric.name)
        lines.append(_labelled("metric", f"{name} {found.metric.before:.4g} → {found.metric.after:.4g}", style))
    lines.extend(_table(found.estimate, verbose=verbose))
    lines.extend(_remarks(found, limits))
    return lines


def _verdict(found: Recalibrated, *, dry_run: bool) -> Line:
    layers = counted(len(found.estimate.layers), "layer")
    if found.written is not None:
        said = f" {layers} → {printable(found.written.path)}"
        return (Span(" RECALIBRATED ", "bold black on green"), Span(said))
    if dry_run:
        return (Span(" DRY RUN ", "bold black on yellow"), Span(f" {layers} estimated; nothing was written"))
    return (
        Span(" NOT WRITTEN ", "bold white on red"),
        Span(f" {printable(found.why_not_written or 'no output was asked for')}; the file is as it was"),
    )


def _estimate_lines(found: Recalibrated) -> Iterator[Line]:
    estimate = found.estimate
    parts = [
        counted(estimate.samples, "sample"),
        f"{estimate.method.value}, {counted(estimate.sweeps, 'sweep')} in {counted(estimate.waves, 'wave')}",
        found.device,
        found.precision,
    ]
    if found.processes > 1:
        parts.append(counted(found.processes, "process"))
    yield _labelled("estimated", " · ".join(parts))
    if estimate.residual is not None:
        said = f"{estimate.residual:.1e} σ from the fixed point in eval mode" if estimate.residual else _FIXED
        if estimate.residual_in_errors:
            said += f", {estimate.residual_in_errors:.2g} standard errors"
        yield _labelled("residual", said)
    yield _labelled("settled", f"{_percent(estimate.settling.share)} of channels within the limits of standard error")
    if estimate.stride_cost is not None:
        said = f"standard errors of means are {estimate.stride_cost:.3g} × those of all positions, in the median"
        yield _labelled("stride", said)


def _percent(share: float) -> str:
    """Not rounded up to a whole that it is not."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _table(estimate: Estimate, *, verbose: bool) -> Iterator[Line]:
    moves = {name: moved_by(layer) for name, layer in estimate.layers.items()}
    if not moves:
        return
    bars = "".join(bar(_size(moved)) for moved in moves.values())
    yield _labelled("moved", bars, "cyan", "  by layer, in execution order")
    shown = list(moves) if verbose else sorted(moves, key=lambda name: -_size(moves[name]))[:_ROWS]
    longest = max(5, *(len(printable(name)) for name in shown))
    yield (Span(f"    {'layer':<{longest}}  {'rms δ':>8} {'± SE':>7} {'var ratio':>9} {'KL':>8}", "dim"),)
    for name in (name for name in moves if name in shown):
        yield _row(name, longest, estimate.layers[name], moves[name])
    if len(shown) < len(moves):
        yield (Span(f"    {len(moves) - len(shown)} that moved less; --verbose lists every layer", "dim"),)


def _row(name: str, longest: int, layer: LayerEstimate, moved: Drift) -> Line:
    error = math.sqrt(float((moved.delta_error**2).mean()))
    ratio = math.exp(min(float(moved.log_ratio.mean()), _LARGEST))
    share = f"  {layer.prior_share:.0%} stored" if layer.prior_share else ""
    return (
        Span(f"    {printable(name):<{longest}}  "),
        Span(f"{moved.rms_delta:>8.3f} {error:>7.3f} {ratio:>9.3g} {float(moved.kl.mean()):>8.3g}  "),
        Span(bar(_size(moved)), "cyan"),
        Span(share, "dim"),
    )


def _size(moved: Drift) -> float:
    return max(moved.rms_delta, moved.median_log_ratio)


def _remarks(found: Recalibrated, limits: Limits) -> Iterator[Line]:
    estimate = found.estimate
    settling = estimate.settling
    if settling.share < limits.settled_share:
        yield _warning(
            f"{_percent(1 - settling.share)} of channels have not settled, most in "
            f"{_listed(_worst(settling.unsettled))}; about {settling.samples_wanted} samples would do"
        )
    if estimate.batch_scatter is not None and estimate.batch_scatter > limits.batch_scatter:
        yield _warning(
            f"the data is sorted: batches differ {estimate.batch_scatter:.0f} times as much as shuffled ones would; "
            "part of it is no sample of the whole, so shuffle it"
        )
    if estimate.why_inexact is not None:
        yield _warning(f"not exact: {estimate.why_inexact}")
    if estimate.method is Method.BATCH:
        yield _warning("batch moments are not what the network sees in eval mode; --mode exact finds those")
    for name, reason in estimate.not_estimated.items():
        yield _warning(f"{printable(name)} is left as stored: {printable(reason)}")
    if estimate.unreached:
        yield _labelled("unreached", f"{_listed(estimate.unreached)}: no batch-norm call seen there; left as stored")
    if estimate.left_alone:
        yield _labelled("left alone", _listed(estimate.left_alone))
    if found.counts:
        low, high = min(new for _, new in found.counts.values()), max(new for _, new in found.counts.values())
        said = f"{low}" if low == high else f"{low} to {high}"
        yield _labelled("counter", f"num_batches_tracked raised to {said}: nothing of the initial 0 and 1 is left")
    if found.written is not None:
        changed = counted(found.written.bytes_changed, "byte")
        yield _labelled("written", f"{changed} differ; record in {printable(found.written.record)}")


def _worst(unsettled: Mapping[str, int]) -> Sequence[str]:
    return [name for name, _ in sorted(unsettled.items(), key=lambda entry: -entry[1])]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name or "(root)") for name in names[:_NAMES])
    return f"{shown} and {len(names) - _NAMES} more" if len(names) > _NAMES else shown


def _labelled(label: str, text: str, style: str = "", rest: str = "") -> Line:
    return (Span(f"  {label:<11}", "bold"), Span(text, style), Span(rest, "dim"))


def _warning(text: str) -> Line:
    return (Span("  warning    ", "bold yellow"), Span(text))
