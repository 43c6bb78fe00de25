"""Known findings on disk: sorted, so that what changes is what a diff shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import groupby
from typing import cast

import yaml

from bncheck.config.kinds import MAPPING, TEXT, Kind, known_items, number, one_of
from bncheck.config.nodes import Node
from bncheck.config.reading import parse_file
from bncheck.core.baseline import DEFAULT_MARGIN, Baseline, Key, Known
from bncheck.core.choices import SeverityChoice
from bncheck.core.errors import BadConfig
from bncheck.core.finding import Severity

VERSION = 1
"""Of the layout. Raised when a file of the old layout would be misread."""

_ABOUT = """\
# Findings that bncheck knows and lets pass. New ones fail, and so do these where they grow by more than the margin,
# as a share of the number beside the layer. Written by bncheck audit --write-baseline.
"""


def read_baseline(path: str) -> Baseline:
    """Read a file of known findings.

    Raises:
        BadConfig: it is missing, malformed, of another version, or says something bncheck does not know.
    """
    root = parse_file(path)
    if root is None:
        raise BadConfig(f"{path}: holds no baseline")
    items = known_items(root, ("version", "margin", "findings"), "key of a baseline")
    version = items.get("version")
    if version is None or version.value is True or version.value != VERSION:
        what = "no version" if version is None else f"version {version.plain()!r}"
        place = path if version is None else version.place
        raise BadConfig(f"{place}: a baseline of {what}; this bncheck reads version {VERSION}: write it anew")
    margin = cast("float", number(zero=True).read(items["margin"])) if "margin" in items else DEFAULT_MARGIN
    entries: dict[Key, Known] = {}
    listed = items.get("findings")
    if listed is not None and listed.value is not None:
        if not isinstance(listed.value, list):
            raise listed.wrong("wants a list")
        for node in listed.value:
            entries.update(_entries(node))
    return Baseline(entries, margin)


def baseline_text(baseline: Baseline, path: str) -> str:
    """The text of a file of known findings: JSON where it is named so, else YAML."""
    findings: list[dict[str, object]] = []
    ordered = sorted(
        baseline.entries.items(), key=lambda entry: (*entry[0][:2], entry[1].severity, entry[0].layer or "")
    )
    for (model, rule, severity), group in groupby(ordered, key=lambda entry: (*entry[0][:2], entry[1].severity)):
        known = {key.layer: entry.badness for key, entry in group}
        finding: dict[str, object] = {"model": model, "rule": rule, "severity": severity.label}
        if None in known:
            finding["value"] = _spelt(known.pop(None))
        if known:
            finding["layers"] = {layer: _spelt(value) for layer, value in known.items()}
        findings.append(finding)
    document = {"version": VERSION, "margin": baseline.margin, "findings": findings}
    if path.endswith(".json"):
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=120)
    return _ABOUT + text


def _spelt(value: float) -> float | int | str:
    """A number as JSON and YAML alike hold it."""
    if math.isfinite(value):
        return int(value) if value == int(value) and abs(value) < 2**53 else value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _value(node: Node) -> float:
    value = node.value
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 takes 1e+20 for text
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise node.wrong("wants a number, NaN or Infinity")
    return float(value)


_VALUE = Kind(_value, {})
_KEYS = {
    "model": TEXT,
    "rule": TEXT,
    "severity": one_of(SeverityChoice),
    "value": _VALUE,
    "layers": MAPPING,
}


def _entries(node: Node) -> dict[Key, Known]:
    items = known_items(node, _KEYS, "key of a known finding")
    for wanted in ("model", "rule", "severity"):
        if wanted not in items:
            raise node.wrong(f"a known finding says its {wanted}")
    model, rule = (cast("str", _KEYS[name].read(items[name])) for name in ("model", "rule"))
    severity = Severity[cast("str", _KEYS["severity"].read(items["severity"])).upper()]
    entries: dict[Key, Known] = {}
    if "value" in items:
        entries[Key(model, rule, None)] = Known(severity, _value(items["value"]))
    if "layers" in items:
        layers = items["layers"].value
        if not isinstance(layers, Mapping):
            raise items["layers"].wrong("wants layers with numbers")
        entries |= {Key(model, rule, layer): Known(severity, _value(value)) for layer, value in layers.items()}
    if not entries:
        raise node.wrong("names neither layers nor a value of the whole model")
    return entries
