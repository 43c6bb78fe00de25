"""The page of a recalibration: what moved, from before to after, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np

from bncheck.core.layers import Float64Array
from bncheck.report.document import Document, Json
from bncheck.report.html.page import Page
from bncheck.report.html.pictures import (
    Axis,
    Panel,
    Picture,
    Spread,
    binning,
    depth,
    farthest,
    heat,
    middle_half,
    numbers,
    quantiles,
    spread,
)
from bncheck.report.html.visible import shortened
from bncheck.report.printable import counted

_LEAST = 1e-12  # of what a logarithmic axis shows


class _Moments(TypedDict):
    mean: Json
    var: Json


class _Layer(TypedDict):
    layer: str
    order: int
    unsettled_channels: int
    prior_share: Json
    rms_delta: Json
    median_log_ratio: Json
    before: _Moments
    after: _Moments
    standard_error: _Moments


class _Recalibration(TypedDict):
    """The parts of the canonical document that Python reads; the template reads more."""

    layers: list[_Layer]
    output: str | None
    not_written: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """One layer.

    Attributes:
        layer: as the document has it.
        name: shown.
        delta: how far each channel's mean went, in stored standard deviations; NaN where none was stored.
        delta_error: standard errors of that.
        ratio: new variances over old ones; likewise.
        ratio_error: standard errors of that.
        before, after: variances.
    """

    layer: _Layer
    name: str
    delta: Float64Array
    delta_error: Float64Array
    ratio: Float64Array
    ratio_error: Float64Array
    before: Float64Array
    after: Float64Array

    @property
    def worst(self) -> tuple[int, float] | None:
        """The channel that moved farthest, and how far."""
        return farthest(self.delta)

    @property
    def median_before(self) -> float:
        """Of the variances."""
        return quantiles(self.before)[2]

    @property
    def median_after(self) -> float:
        """Of the variances."""
        return quantiles(self.after)[2]


def recalibration_page(document: Document) -> Page:
    """What the template needs."""
    found = cast("_Recalibration", document)
    moved = [_moved(layer) for layer in sorted(found["layers"], key=lambda layer: layer["order"])]
    pictures = list(_pictures(moved)) if moved else []
    content = {"document": document, "moved": moved, "verdict": _verdict(found), "layers": counted(len(moved), "layer")}
    return Page("recalibration.html.j2", content, pictures)


def _verdict(found: _Recalibration) -> str:
    if found["output"] is not None:
        return "recalibrated"
    return "dry-run" if found["not_written"] is None else "not-written"


def _moved(layer: _Layer) -> Moved:
    before, after = (numbers(layer[key]["var"]) for key in ("before", "after"))
    with np.errstate(all="ignore"):
        scale = np.where(before > 0, before, np.nan)
        delta = (numbers(layer["after"]["mean"]) - numbers(layer["before"]["mean"])) / np.sqrt(scale)
        delta_error = numbers(layer["standard_error"]["mean"]) / np.sqrt(scale)
        ratio, ratio_error = after / scale, numbers(layer["standard_error"]["var"]) / scale
    return Moved(layer, layer["layer"] or "(root)", delta, delta_error, ratio, ratio_error, before, after)


def _pictures(moved: Sequence[Moved]) -> Iterator[Picture]:
    axis = Axis([layer.name for layer in moved])
    yield _moved_by_depth(axis, moved)
    deltas = [layer.delta for layer in moved]
    data = heat(axis, deltas, "δ")
    yield Picture(
        title=f"Movement of every channel{binning(deltas)}",
        caption=(
            "δ = (new mean − old mean) / old standard deviation. A column is a layer, its first channel at the top. "
            f"Orange: the mean went up; blue: down. Colours end at ±{data['end']}."
        ),
        summary=(
            f"Heat map of how far the mean of each channel went, over {counted(len(moved), 'layer')}. The table of "
            "layers names the farthest of each."
        ),
        data=data,
    )
    yield Picture(
        title="Variances before and after",
        caption=(
            "Distribution of the running variances over the channels of each layer, on a logarithmic axis. Dot: "
            "median; thick bar: middle half; thin line: smallest to largest."
        ),
        summary=f"Running variances of {counted(len(moved), 'layer')}, before and after.",
        data=spread(
            axis,
            [
                Spread("before", [layer.before for layer in moved]),
                Spread("after", [layer.after for layer in moved]),
            ],
        ),
        key=[("●", "before", "before"), ("●", "after", "after")],
    )


def _moved_by_depth(axis: Axis, moved: Sequence[Moved]) -> Picture:
    delta = numbers([layer.layer["rms_delta"] for layer in moved])
    error = np.array([_rms(layer.delta_error) for layer in moved])
    lower, middle, upper = np.array([middle_half(layer.ratio) for layer in moved]).T
    ratio_error = np.array([_rms(layer.ratio_error) for layer in moved])
    largest = int(np.argmax(np.nan_to_num(delta, nan=0.0)))
    return Picture(
        title="Movement by depth",
        caption=(
            "Top: how far the means went, root mean square over a layer's channels, in old standard deviations. "
            "Bottom: the new variance over the old one; dot: median over channels, thick bar: middle half of them. "
            "Thin bars: standard errors of a channel. From the input on the left to the output on the right."
        ),
        summary=(
            f"How far the running means of {counted(len(moved), 'layer')} went. The farthest is {delta[largest]:.3g} "
            f"old standard deviations at {shortened(moved[largest].name)}."
        ),
        data=depth(
            axis,
            [
                Panel(
                    title="rms δ",
                    unit="δ",
                    values=delta.tolist(),
                    low=(delta - error).clip(0).tolist(),
                    high=(delta + error).tolist(),
                    reference=0.0,
                ),
                Panel(
                    title="variance ratio",
                    unit="variance ratio",
                    values=middle.tolist(),
                    low=(middle - ratio_error).clip(_LEAST).tolist(),
                    high=(middle + ratio_error).tolist(),
                    lower=lower.tolist(),
                    upper=upper.tolist(),
                    reference=1.0,
                    logarithmic=True,
                ),
            ],
            ["none"] * len(moved),
        ),
    )


def _rms(values: Float64Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else math.nan
