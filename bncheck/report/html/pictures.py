"""What is drawn, as plain numbers: a script inside the page turns these into pictures.

Numbers are rounded to four digits, and channels are binned, so that a network of 200 layers with 2048 channels each
stays a page of a few megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bncheck.core.layers import Float64Array
from bncheck.report.document import Document, Json
from bncheck.report.html.visible import labels, shortened, visible

BINS = 128
"""Most cells of a layer in a heat map: at three pixels each, a picture that fits a screen."""
MARKS = {"none": "●", "warning": "▲", "error": "◆"}
"""What a layer's dot looks like: by the severity of the finding that names it."""
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure.

    Attributes:
        title: what it shows.
        caption: how to read it.
        summary: the gist in words, for those who do not see it.
        data: what the script draws; ``kind`` says how.
        key: what signs mean: sign, mark or series, meaning.
    """

    title: str
    caption: str
    summary: str
    data: Document
    key: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of dots with bars, a dot for each layer.

    Attributes:
        title: of its axis.
        unit: what a value is called where one is hovered over.
        values: NaN leaves a gap.
        low, high: ends of the thin bars.
        lower, upper: ends of the thick bars; empty where there are none.
        reference: where a thin line says "nothing".
        limits: where dashed lines say "too much", and the mark of the layers beyond; none where no finding names one.
        logarithmic: whether values are ratios.
    """

    title: str
    unit: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    reference: float
    lower: Sequence[float] = ()
    upper: Sequence[float] = ()
    limits: Sequence[tuple[float, str]] = ()
    logarithmic: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles of positive numbers for each layer.

    Attributes:
        name: of the series.
        layers: channel values; empty leaves a gap.
    """

    name: str
    layers: Sequence[Float64Array]


@dataclass(frozen=True, slots=True)
class Axis:
    """Layers, from the input to the output.

    Attributes:
        names: as the document has them.
    """

    names: Sequence[str]
    data: Document = field(init=False)

    def __post_init__(self) -> None:
        shown = [visible(name) for name in self.names]
        data: Document = {"names": [shortened(name) for name in shown], "labels": labels(shown)}
        object.__setattr__(self, "data", data)


def depth(axis: Axis, panels: Sequence[Panel], marks: Sequence[str]) -> Document:
    """Dots with bars, layer by layer; a mark is a key of ``MARKS``."""
    return {
        "kind": "depth",
        **axis.data,
        "marks": list(marks),
        "panels": [
            {
                "title": panel.title,
                "unit": panel.unit,
                "values": _rounded(panel.values),
                "low": _rounded(panel.low),
                "high": _rounded(panel.high),
                "lower": _rounded(panel.lower),
                "upper": _rounded(panel.upper),
                "reference": panel.reference,
                "limits": [{"value": rounded(value), "mark": mark} for value, mark in panel.limits],
                "logarithmic": panel.logarithmic,
            }
            for panel in panels
        ],
    }


def heat(axis: Axis, channels: Sequence[Float64Array], unit: str) -> Document:
    """A column for each layer, a cell for each channel or bin of channels, coloured by a number of either sign."""
    sizes = np.concatenate([np.abs(values[np.isfinite(values)]) for values in channels] or [np.zeros(0)])
    end = float(np.quantile(sizes, 0.99)) if sizes.size else 0.0
    return {
        "kind": "heat",
        **axis.data,
        "unit": unit,
        "channels": [int(values.size) for values in channels],
        "cells": [_rounded(binned(values).tolist()) for values in channels],
        "end": rounded(max(end, 0.1)),
    }


def spread(axis: Axis, series: Sequence[Spread]) -> Document:
    """Minimum, quartiles and maximum of each layer's positive numbers, and how many are none."""
    return {
        "kind": "spread",
        **axis.data,
        "series": [
            {
                "name": entry.name,
                "channels": [int(values.size) for values in entry.layers],
                "quantiles": [_rounded(quantiles(values)) for values in entry.layers],
                "left_out": [int((~drawable(values)).sum()) for values in entry.layers],
            }
            for entry in series
        ],
    }


def quantiles(values: Float64Array) -> list[float]:
    """Minimum, lower quartile, median, upper quartile and maximum of what a logarithmic axis can show."""
    kept = values[drawable(values)]
    return np.quantile(kept, [0, 0.25, 0.5, 0.75, 1]).tolist() if kept.size else [math.nan] * 5


def middle_half(values: Float64Array) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of what is a number."""
    known = values[~np.isnan(values)]
    if not known.size:
        return math.nan, math.nan, math.nan
    lower, middle, upper = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
    return lower, middle, upper


def drawable(values: Float64Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which numbers a logarithmic axis can show."""
    return np.isfinite(values) & (values > 0)


def binned(values: Float64Array) -> Float64Array:
    """At most ``BINS`` numbers: of neighbouring channels the one farthest from 0, with its sign."""
    if values.size <= BINS:
        return values
    starts = np.arange(BINS) * values.size // BINS
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    return np.where(-low > high, low, high)


def binning(channels: Sequence[Float64Array]) -> str:
    """What to add to a title where channels share cells."""
    if all(values.size <= BINS for values in channels):
        return ""
    return f" (beyond {BINS} channels, a cell is the farthest of its neighbours)"


def farthest(values: Float64Array) -> tuple[int, float] | None:
    """The place of the number farthest from 0, and the number; None where there is none."""
    if np.isnan(values).all():
        return None
    place = int(np.nanargmax(np.abs(values)))
    return place, float(values[place])


def numbers(values: Json) -> Float64Array:
    """A list out of the document as an array, its "NaN" and "Infinity" as numbers again; empty for null."""
    listed = values if isinstance(values, Sequence) and not isinstance(values, str) else ()
    return np.array(listed, dtype=np.float64)


def number(value: Json) -> float:
    """A number out of the document, NaN for null."""
    return float(value) if isinstance(value, int | float | str) else math.nan


def rounded(value: float) -> float | None:
    """To four digits; null for what cannot be drawn."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _rounded(values: Sequence[float]) -> list[Json]:
    return [rounded(value) for value in values]
