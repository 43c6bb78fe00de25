"""The page of an audit: its verdict, then each file with its findings and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from bncheck.core.layers import Float64Array
from bncheck.report.document import Document, Json
from bncheck.report.document_types import FindingEntry, audit_document
from bncheck.report.html.page import Page
from bncheck.report.html.pictures import (
    MARKS,
    Axis,
    Panel,
    Picture,
    Spread,
    binning,
    depth,
    drawable,
    farthest,
    heat,
    middle_half,
    number,
    numbers,
    quantiles,
    spread,
)
from bncheck.report.html.visible import shortened
from bncheck.report.printable import counted
from bncheck.report.shortfalls import Shortfall, shortfalls
from bncheck.report.verdict import verdict

if TYPE_CHECKING:
    from bncheck.core.rule import Rule

_DRIFT_RULES = ("BN406", "BN407")
_LARGEST = 700.0  # e to this is still a number


class _Layer(TypedDict):
    name: str
    group: str
    kind: str
    num_features: int | None
    execution_order: int | None
    channels: dict[str, Json]


class _Measured(TypedDict):
    name: str
    channels: dict[str, Json]


class _Drift(TypedDict):
    layer: str
    order: int
    delta: Json
    delta_noise: Json
    log_ratio: Json
    log_ratio_noise: Json
    kl: Json


class _Measurements(TypedDict):
    group: str
    layers: list[_Measured]
    drift: list[_Drift]


class _Subject(TypedDict):
    layers: list[_Layer]
    findings: list[FindingEntry]
    measurements: _Measurements | None


class _Audit(TypedDict):
    """The numbers that pictures are made of; the templates read the rest of the canonical document."""

    subjects: list[_Subject]


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the evidence, and the limit it was held against, if any."""

    name: str
    value: Json
    limit: Json = None


@dataclass(frozen=True, slots=True)
class Row:
    """One layer in the table, which holds what the pictures show; None or empty: not known."""

    name: str
    layer: _Layer
    drift: _Drift | None
    stored: Float64Array
    delta: Float64Array
    log_ratio: Float64Array

    @property
    def variances(self) -> tuple[float, float, float] | None:
        """The least of the stored variances that are positive, their median and the largest."""
        low, _, middle, _, high = quantiles(self.stored)
        return None if math.isnan(middle) else (low, middle, high)

    @property
    def ratio(self) -> float | None:
        """Geometric mean over channels of the variance ratio."""
        return math.exp(min(float(self.log_ratio.mean()), _LARGEST)) if self.log_ratio.size else None

    @property
    def worst(self) -> tuple[int, float] | None:
        """The channel that drifted most, and its δ."""
        return farthest(self.delta)


@dataclass(frozen=True, slots=True)
class Section:
    """One file.

    Attributes:
        subject: as the document has it.
        state: in a word: error, warning, notice, clean, incomplete or nothing.
        shortfalls: what makes it incomplete.
        pictures: places in the page's list.
        rows: layers, from the input to the output where that is known.
    """

    subject: _Subject
    state: str
    shortfalls: Sequence[Shortfall]
    pictures: range
    rows: Sequence[Row]


def audit_page(document: Document, rules: Sequence[Rule]) -> Page:
    """What the template needs.

    Args:
        document: made with ``channels=True``.
        rules: those that were applied.
    """
    audit, typed = cast("_Audit", document), audit_document(document)
    pictures: list[Picture] = []
    sections = []
    for subject, entry in zip(audit["subjects"], typed["subjects"], strict=True):
        rows, short = _rows(subject), list(shortfalls(entry))
        drawn = list(_pictures(subject, rows))
        places = range(len(pictures), len(pictures) + len(drawn))
        sections.append(Section(subject, _state(subject, short), short, places, rows))
        pictures += drawn
    said = verdict(typed)
    found = {finding["rule"] for subject in audit["subjects"] for finding in subject["findings"]}
    content = {
        "document": document,
        "verdict": said,
        "sections": sections,
        "rules": {rule.id: rule for rule in rules},
        "found_rules": sorted(found),
        "evidence": paired,
    }
    return Page("audit.html.j2", content, pictures)


def _state(subject: _Subject, short: Sequence[Shortfall]) -> str:
    if short:
        return "incomplete"
    if not subject["layers"]:
        return "nothing"
    return subject["findings"][0]["severity"] if subject["findings"] else "clean"


def paired(evidence: Mapping[str, Json]) -> list[Number]:
    """Each number beside its limit: "limit of δ" belongs to the first name that ends with "δ", "limit" to the first."""
    limits = {name: value for name, value in evidence.items() if name == "limit" or name.startswith("limit of ")}
    free, found = dict(limits), list[Number]()
    for name, value in evidence.items():
        if name not in limits:
            its = next((key for key in free if name.endswith(key.removeprefix("limit of ")) or key == "limit"), None)
            found.append(Number(name, value, None if its is None else free.pop(its)))
    return found + [Number(name, value) for name, value in free.items()]


def _full_name(name: str, group: str) -> str:
    name = name or "(root)"
    return name if group == "model" else f"{group}:{name}"


def _rows(subject: _Subject) -> list[Row]:
    """Layers in the order of execution where that is known of them, else as the file has them."""
    measured = subject["measurements"]
    drifts = {} if measured is None else {drift["layer"]: drift for drift in measured["drift"]}
    channels = {} if measured is None else {_full_name(m["name"], measured["group"]): m for m in measured["layers"]}
    rows = []
    for layer in subject["layers"]:
        name = _full_name(layer["name"], layer["group"])
        drift = drifts.get(name)
        compared = channels[name].get("channels", {}) if drift is not None and name in channels else {}
        rows.append(
            Row(
                name,
                layer,
                drift,
                numbers(layer.get("channels", {}).get("running_var")),
                numbers(compared.get("delta")),
                numbers(compared.get("log_ratio")),
            )
        )
    return sorted(rows, key=_order)


def _order(row: Row) -> float:
    if row.drift is not None:
        return row.drift["order"]
    order = row.layer["execution_order"]
    return math.inf if order is None else order


def _pictures(subject: _Subject, rows: Sequence[Row]) -> Iterator[Picture]:
    drifted = [row for row in rows if row.drift is not None]
    if drifted:
        yield _drift_by_depth(subject, drifted)
        if any(row.worst is not None for row in drifted):
            yield _drift_by_channel([row for row in drifted if row.worst is not None])
    stored = [row for row in rows if row.stored.size]
    if any(row.variances is not None for row in stored):
        yield _stored_variances(stored, ordered=all(_order(row) < math.inf for row in stored))


def _drift_by_depth(subject: _Subject, rows: Sequence[Row]) -> Picture:
    drifts = [row.drift for row in rows if row.drift is not None]
    delta, noise = numbers([drift["delta"] for drift in drifts]), numbers([drift["delta_noise"] for drift in drifts])
    complaints = [finding for finding in reversed(subject["findings"]) if finding["rule"] in _DRIFT_RULES]
    marks = {name: finding["severity"] for finding in complaints for name in finding["layers"]}
    largest = int(np.argmax(np.nan_to_num(delta, nan=0.0)))
    complained = f"{counted(len(marks), 'layer')} {'is' if len(marks) == 1 else 'are'} in a finding."
    return Picture(
        title="Drift by depth",
        caption=(
            "Top: how far the data's means lie from the stored ones, root mean square over a layer's channels, in "
            "stored standard deviations. Bottom: the data's variance over the stored one; dot: median over channels, "
            "thick bar: middle half of them. Thin bars: what chance alone would give. From the input on the left to "
            "the output on the right."
        ),
        summary=(
            f"Drift of {counted(len(rows), 'layer')} in the order of execution. The largest is "
            f"{delta[largest]:.3g} stored standard deviations at {shortened(rows[largest].name)}. {complained}"
        ),
        data=depth(
            Axis([row.name for row in rows]),
            [
                Panel(
                    title="rms δ",
                    unit="δ",
                    values=delta.tolist(),
                    low=(delta - noise).clip(0).tolist(),
                    high=(delta + noise).tolist(),
                    reference=0.0,
                    limits=[(limit, mark) for limit, mark in _limits(complaints, "limit of δ")],
                ),
                _ratios(rows, _limits(complaints, "limit of |ln ρ²|")),
            ],
            [marks.get(row.name, "none") for row in rows],
        ),
        key=_key(marks.values()),
    )


def _ratios(rows: Sequence[Row], limits: Sequence[tuple[float, str]]) -> Panel:
    """Quartiles over channels of ln ρ² as ratios; chance about the median."""
    noise = np.array([number(row.drift["log_ratio_noise"]) if row.drift else math.nan for row in rows])
    lower, middle, upper = np.array([middle_half(row.log_ratio) for row in rows]).T
    return Panel(
        title="variance ratio",
        unit="variance ratio",
        values=_exponential(middle),
        low=_exponential(middle - noise),
        high=_exponential(middle + noise),
        lower=_exponential(lower),
        upper=_exponential(upper),
        reference=1.0,
        limits=[(math.exp(sign * limit), mark) for limit, mark in limits for sign in (-1, 1)],
        logarithmic=True,
    )


def _exponential(values: Float64Array) -> list[float]:
    return [float(value) for value in np.exp(values.clip(-_LARGEST, _LARGEST))]


def _limits(complaints: Sequence[FindingEntry], name: str) -> list[tuple[float, str]]:
    """Each limit that findings name, with its severity."""
    found = {finding["severity"]: finding["evidence"].get(name) for finding in complaints}
    return [(float(limit), severity) for severity, limit in found.items() if isinstance(limit, int | float)]


def _key(found: Iterable[str]) -> list[tuple[str, str, str]]:
    """What the dots mean, where they differ."""
    marks = [mark for mark in ("warning", "error") if mark in set(found)]
    if not marks:
        return []
    entries = [(MARKS[mark], mark, f"{mark}, and its limit ┄") for mark in marks]
    return [(MARKS["none"], "none", "no complaint"), *entries]


def _drift_by_channel(rows: Sequence[Row]) -> Picture:
    channels = [row.delta for row in rows]
    data = heat(Axis([row.name for row in rows]), channels, "δ")
    worst = max(rows, key=lambda row: abs(row.worst[1]) if row.worst else 0.0)
    channel, size = worst.worst or (0, math.nan)
    return Picture(
        title=f"Drift of every channel{binning(channels)}",
        caption=(
            "δ = (mean of the data − stored mean) / stored standard deviation. A column is a layer, its first channel "
            f"at the top. Orange: the data lies above the stored mean; blue: below. Colours end at ±{data['end']}."
        ),
        summary=(
            f"Heat map of δ over {counted(len(rows), 'layer')} and their channels. The largest is {size:.3g} "
            f"at channel {channel} of {shortened(worst.name)}. The table of layers names the worst channel of each."
        ),
        data=data,
    )


def _stored_variances(rows: Sequence[Row], *, ordered: bool) -> Picture:
    values = [row.stored for row in rows]
    order = "From the input on the left to the output on the right." if ordered else "Layers in the file's order."
    low, _, high = np.array([row.variances for row in rows if row.variances is not None]).T
    left_out = any(not drawable(entry).all() for entry in values)
    return Picture(
        title="Stored variances",
        caption=(
            "Distribution of running_var over the channels of each layer, on a logarithmic axis. Dot: median; thick "
            f"bar: middle half; thin line: smallest to largest. {order}"
        ),
        summary=(f"Stored variances of {counted(len(rows), 'layer')}, from {low.min():.3g} to {high.max():.3g}."),
        data=spread(Axis([row.name for row in rows]), [Spread("stored", values)]),
        key=[("✕", "error", "has channels that are zero, negative or not finite")] if left_out else [],
    )
