"""Known findings on disk: what is written is read again, sorted, and the same however it was come by."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bncheck.config.baseline_file import baseline_text, read_baseline
from bncheck.config.nodes import parse_json, parse_yaml
from bncheck.core.baseline import Baseline, Key, Known
from bncheck.core.errors import BadConfig
from bncheck.core.finding import Severity

NAMES = ["b.yaml", "b.json"]


def _known(badness: float = 1.0, severity: Severity = Severity.WARNING) -> Known:
    return Known(severity, badness)


def _again(baseline: Baseline, folder: Path, name: str) -> Baseline:
    (folder / name).write_text(baseline_text(baseline, name), encoding="utf-8")
    return read_baseline(str(folder / name))


def _same(one: Baseline, other: Baseline) -> bool:
    """NaN is NaN here."""
    return repr(sorted(one.entries.items(), key=repr)) == repr(sorted(other.entries.items(), key=repr)) and (
        one.margin == other.margin
    )


# Whatever a pickle may hold: surrogates, control characters, line breaks, what YAML and JSON have a meaning for.
_HOSTILE = st.text(st.characters(), min_size=1, max_size=12) | st.sampled_from(
    [
        "layer1.0.bn1", "null", "~", "true", "no", "1", "1e5", "0x10", "2030-12-31", "NaN", ".nan", "<<", "=", "- a",
        "? a", "a: b", "a #b", "#", "&a", "*a", "!!python/name:os.system", "%YAML 1.1", "---", "...", "'", '"', "\\",
        "\\ud83d\\ude00", "😀", "\ud83d\ude00", "\udcff", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", " a ", "a\r\nb",
        "\t", "[", "{", "a" * 3000, "é" * 1500, "__proto__", "layers", "version",
    ]
)  # fmt: skip
_BADNESS = st.floats() | st.integers(-(10**17), 10**17).map(float) | st.sampled_from([0.0, 1e-6, 1e20, 2.0**53])
_ENTRIES = st.dictionaries(
    st.builds(Key, _HOSTILE, _HOSTILE, _HOSTILE | st.none()),
    st.builds(Known, st.sampled_from(Severity), _BADNESS),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(_ENTRIES, st.floats(0, 1e6), st.randoms())
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_again(
    name: str, tmp_path_factory: pytest.TempPathFactory, entries: dict[Key, Known], margin: float, order: random.Random
) -> None:
    if name.endswith(".json"):  # in JSON two halves of a pair are the pair, and nothing else
        entries = {Key(*(part and _joined(part) for part in key)): known for key, known in entries.items()}
    baseline = Baseline(entries, margin)
    text = baseline_text(baseline, name)
    folder = tmp_path_factory.getbasetemp()
    read = _again(baseline, folder, name)
    assert _same(_without_signs(baseline), _without_signs(read))
    shuffled = list(entries.items())
    order.shuffle(shuffled)
    assert baseline_text(Baseline(dict(shuffled), margin), name) == text
    assert baseline_text(read, name) == text
    assert text.isascii()


def _joined(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _without_signs(baseline: Baseline) -> Baseline:
    """0.0 and -0.0 are one number."""
    entries = {
        key: Known(known.severity, known.badness if known.badness != 0 else 0.0)
        for key, known in baseline.entries.items()
    }
    return Baseline(entries, baseline.margin)


def test_the_layout_is_one_that_diffs_well(tmp_path: Path) -> None:
    """One line for each layer: what changes is what a diff shows."""
    entries = {
        Key("models/b.pt", "BN405", "layer2.bn"): _known(0.5),
        Key("models/b.pt", "BN405", "layer10.bn"): _known(math.inf),
        Key("models/b.pt", "BN405", "head.bn"): _known(0.25, Severity.ERROR),
        Key("models/a.pt", "BN407", None): _known(math.nan, Severity.ERROR),
    }
    text = baseline_text(Baseline(entries, 0.2), "b.yaml")
    assert text.startswith("# Findings that bncheck knows")
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert (
        body
        == """\
version: 1
margin: 0.2
findings:
- model: models/a.pt
  rule: BN407
  severity: error
  value: NaN
- model: models/b.pt
  rule: BN405
  severity: warning
  layers:
    layer10.bn: Infinity
    layer2.bn: 0.5
- model: models/b.pt
  rule: BN405
  severity: error
  layers:
    head.bn: 0.25
"""
    )
    more = baseline_text(Baseline({**entries, Key("models/b.pt", "BN405", "layer3.bn"): _known()}, 0.2), "b.yaml")
    added = [line for line in more.splitlines() if line not in text.splitlines()]
    assert added == ["    layer3.bn: 1"]
    json_text = baseline_text(Baseline(entries, 0.2), "b.json")
    assert yaml.safe_load(text) == json.loads(json_text)
    assert json_text.count("\n") > 20


ERRORS = {
    "nothing": ("", "a baseline of no version; this bncheck reads version 1"),
    "another version": ("version: 2\nfindings: []", "b.yaml:1: a baseline of version 2; this bncheck reads version 1"),
    "version that is true": ("version: true", "b.yaml:1: a baseline of version True"),
    "a config": ("models: [{paths: a.pt}]", "unknown key of a baseline 'models'; there are findings, margin, version"),
    "a list": ("- 1", "wants keys with values, not a list"),
    "malformed": ("version: [1", "malformed YAML"),
    "findings that are none": ("version: 1\nfindings: 3", "b.yaml:2: wants a list"),
    "finding that is none": ("version: 1\nfindings:\n- 3", "b.yaml:3: wants keys with values, not 3"),
    "no model": ("version: 1\nfindings: [{rule: BN405, severity: error, value: 1}]", "says its model"),
    "no rule": ("version: 1\nfindings: [{model: a, severity: error, value: 1}]", "says its rule"),
    "no severity": ("version: 1\nfindings: [{model: a, rule: BN405, value: 1}]", "says its severity"),
    "neither layers nor a value": (
        "version: 1\nfindings: [{model: a, rule: BN405, severity: error}]",
        "names neither layers nor a value",
    ),
    "no layers": ("version: 1\nfindings: [{model: a, rule: BN405, severity: error, layers: {}}]", "names neither"),
    "layers in a list": (
        "version: 1\nfindings: [{model: a, rule: BN405, severity: error, layers: [bn1]}]",
        "wants layers with numbers",
    ),
    "value that is text": (
        "version: 1\nfindings:\n- model: a\n  rule: b\n  severity: error\n  value: high",
        "b.yaml:6: wants a number, NaN or Infinity",
    ),
    "unknown severity": ("version: 1\nfindings: [{model: a, rule: b, severity: bad, value: 1}]", "is no choice"),
    "unknown key": ("version: 1\nfindings: [{modl: a}]", "did you mean 'model'?"),
    "negative margin": ("version: 1\nmargin: -1", "b.yaml:2: wants a number from 0 up, not -1"),
    "margin without end": ("version: 1\nmargin: .inf", "wants a number from 0 up"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_told(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, said = ERRORS[case]
    Path("b.yaml").write_text(text)
    with pytest.raises(BadConfig) as raised:
        read_baseline("b.yaml")
    assert said in str(raised.value)
    assert str(raised.value).startswith("b.yaml")


def test_numbers_may_be_written_by_hand(tmp_path: Path) -> None:
    layers = "{a: 1, b: 0.5, c: 1e-6, d: NaN, e: .nan, f: Infinity, g: -.inf, h: '2'}"
    (tmp_path / "b.yaml").write_text(
        f"version: 1\nfindings: [{{model: m, rule: BN405, severity: error, layers: {layers}}}]"
    )
    entries = read_baseline(str(tmp_path / "b.yaml")).entries
    numbers = {key.layer: known.badness for key, known in entries.items()}
    assert str(numbers) == (
        "{'a': 1.0, 'b': 0.5, 'c': 1e-06, 'd': nan, 'e': nan, 'f': inf, 'g': -inf, 'h': 2.0}"
    )  # fmt: skip


def test_both_layouts_say_the_same() -> None:
    baseline = Baseline({Key("a.pt", "BN405", f"bn{index}"): _known(index / 3) for index in range(5)})
    assert (
        parse_yaml(baseline_text(baseline, "b.yaml"), "b").plain()
        == parse_json(baseline_text(baseline, "b.json"), "b").plain()
    )
