"""The HTML page as text: what is in it, what cannot get into it, and the numbers behind its pictures."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html.parser
import json
import math
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bncheck
from bncheck.catalogue import RULES
from bncheck.core.finding import Excuse, ExcusedBy, ExitCode, Failure, Report, Severity
from bncheck.core.recalibration import FileChoice
from bncheck.core.run_options import RunOptions
from bncheck.recalibrating import recalibrate_file
from bncheck.report.document import Document, report_document
from bncheck.report.html import recalibration_to_html, to_html
from bncheck.report.html.audit import Number, paired
from bncheck.report.html.pictures import BINS, binned, middle_half, numbers, quantiles, rounded
from bncheck.report.html.visible import labels, shortened, visible
from bncheck.report.json import to_json
from bncheck.report.recalibration_document import recalibration_document
from tests.process import FIXTURES, ROOT
from tests.report.networks import HOSTILE, chain, data_for


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text of each script, and all other text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._inside: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id", "program") if tag == "script" else "" if tag == "style" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        elif self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    @property
    def pictures(self) -> list[dict[str, object]]:
        return json.loads(self.scripts["pictures"])

    def titles(self, tag: str = "code") -> list[str | None]:
        return [attributes["title"] for name, attributes in self.elements if name == tag and "title" in attributes]


@pytest.fixture(scope="module")
def report() -> Report:
    """Names that are markup; the stored means of all are off."""
    return bncheck.audit(chain(HOSTILE, 4, shift=3.0), data=data_for(4))


@pytest.fixture(scope="module")
def document(report: Report) -> Document:
    return report_document(report, channels=True)


@pytest.fixture(scope="module")
def page(document: Document) -> Page:
    return Page(to_html(document, RULES))


def test_the_page_is_one_file(page: Page) -> None:
    """Nothing is loaded from anywhere: the only addresses are those of references, which a reader may click on."""
    assert [name for name, _ in page.elements if name in ("img", "link", "iframe", "object", "base", "embed")] == []
    assert [attributes for name, attributes in page.elements if "src" in attributes] == []
    outside = {attributes["href"] for name, attributes in page.elements if "href" in attributes} - {"#main"}
    known = " ".join(rule.reference for rule in RULES)
    assert outside
    assert all(address and address in known for address in outside)


def test_the_policy_allows_the_scripts_of_the_page_and_no_other(page: Page) -> None:
    (policy,) = [a["content"] for name, a in page.elements if name == "meta" and "http-equiv" in a]
    assert policy is not None
    plotly = zlib.decompress(base64.b64decode(page.scripts["plotly"])).decode()
    assert plotly.startswith("/**\n* plotly.js v")
    wanted = {
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in (plotly, page.scripts["program"])
    }
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert set(re.findall(r"sha256-([^']+)", directives["script-src"])) == wanted
    assert re.sub(r"'sha256-[^']+'", "", directives["script-src"]).strip() == ""


def test_names_stay_text(page: Page, document: Document) -> None:
    assert len(page.scripts) == 3
    assert not [a for _, a in page.elements for key in a if key.startswith("on")]
    shown = page.titles()
    for name in HOSTILE:
        assert visible(name) in shown
    for name in (name for name in HOSTILE if len(name) < 100):
        assert visible(name) in page.text
    assert "x" * 200 not in page.text
    assert not re.search("[\u200b-\u200f\u2028-\u202e\u2066-\u2069\x1b]", page.text)


def test_data_cannot_leave_its_script_element(document: Document) -> None:
    source = to_html(document, RULES)
    (data,) = re.findall(r'<script type="application/json" id="pictures">(.*?)</script>', source, re.DOTALL)
    assert not set(data) & set("<>&\u2028\u2029")
    assert data.isascii()
    names = json.loads(data)[0]["names"]
    assert names[:3] == [visible(name) for name in HOSTILE[:3]]


def test_findings_are_told_in_full(page: Page, report: Report) -> None:
    (subject,) = report.subjects
    assert subject.findings
    for finding in subject.findings:
        for part in (finding.rule, finding.name, finding.message, finding.rationale, finding.remedy):
            assert part in page.text, part
    diverged = next(finding for finding in subject.findings if finding.rule == "BN407")
    for number in (diverged.evidence["rms δ"], diverged.evidence["limit of δ"]):
        assert f"{number:.4g}" in page.text
    reasons = {entry.reason for entry in subject.not_checked}
    assert reasons
    assert all(reason in page.text for reason in reasons)


def test_the_heat_map_holds_each_channel_s_drift(page: Page, document: Document) -> None:
    (_, heat, _) = page.pictures
    (subject,) = document["subjects"]
    layers = [layer["channels"]["delta"] for layer in subject["measurements"]["layers"]]
    assert heat["kind"] == "heat"
    assert len(heat["cells"]) == len(HOSTILE)
    for cells, delta in zip(heat["cells"], layers, strict=True):
        np.testing.assert_allclose(cells, delta, rtol=5e-4)


def test_drift_by_depth_is_what_was_measured(page: Page, document: Document) -> None:
    depth = page.pictures[0]
    (subject,) = document["subjects"]
    drift = subject["measurements"]["drift"]
    upper, lower = depth["panels"]
    np.testing.assert_allclose(upper["values"], [entry["delta"] for entry in drift], rtol=5e-4)
    np.testing.assert_allclose(upper["high"], [entry["delta"] + entry["delta_noise"] for entry in drift], rtol=5e-4)
    ratios = [np.exp(np.median(layer["channels"]["log_ratio"])) for layer in subject["measurements"]["layers"]]
    np.testing.assert_allclose(lower["values"], ratios, rtol=5e-4)
    by_layer = {
        name: f["severity"] for f in reversed(subject["findings"]) if f["rule"] != "BN408" for name in f["layers"]
    }
    assert depth["marks"] == [by_layer.get(entry["layer"], "none") for entry in drift]
    assert "error" in depth["marks"]
    assert {(limit["value"], limit["mark"]) for limit in upper["limits"]} >= {(1.0, "error")}


def test_stored_variances_need_no_data() -> None:
    report = bncheck.audit(FIXTURES / "bn402-extrapolated" / "model.pt")
    (picture,) = Page(to_html(report_document(report, channels=True), RULES)).pictures
    (series,) = picture["series"]
    for layer, quantile, left_out in zip(
        report.subjects[0].checkpoint.layers, series["quantiles"], series["left_out"], strict=True
    ):
        kept = sorted(value for value in layer.running_var if value > 0)
        assert left_out == len(layer.running_var) - len(kept)
        np.testing.assert_allclose([quantile[0], quantile[4]], [kept[0], kept[-1]], rtol=5e-4)
        np.testing.assert_allclose(quantile[2], np.median(kept), rtol=5e-4)
    assert any(series["left_out"])


def test_channels_are_binned_and_the_title_says_so() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    values[17] = math.nan
    cells = binned(values)
    assert len(cells) == BINS
    for cell in range(BINS):
        low, high = cell * 1000 // BINS, (cell + 1) * 1000 // BINS
        members = [value for value in values[low:high] if not math.isnan(value)]
        assert cells[cell] == max(members, key=abs)
    report = bncheck.audit(chain(("a", "b"), BINS + 1, shift=0.0), data=data_for(BINS + 1))
    source = to_html(report_document(report, channels=True), RULES)
    assert f"beyond {BINS} channels" in source
    assert [len(cells) for cells in Page(source).pictures[1]["cells"]] == [BINS, BINS]


def test_a_large_network_stays_a_small_file(document: Document) -> None:
    """200 layers of 2048 channels, the first layer's many times over."""
    (subject,) = json.loads(json.dumps(document["subjects"]))
    generator = np.random.default_rng(0)
    names = [f"stages.{index}.norm" for index in range(200)]
    measured = subject["measurements"]
    wide = {"running_mean": generator.normal(size=2048).tolist(), "running_var": generator.random(2048).tolist()}
    seen = {"delta": generator.normal(size=2048).tolist(), "log_ratio": generator.normal(size=2048).tolist()}
    subject["layers"] = [{**subject["layers"][0], "name": name, "channels": wide} for name in names]
    measured["layers"] = [{**measured["layers"][0], "name": name, "channels": seen} for name in names]
    measured["drift"] = [{**measured["drift"][0], "layer": name, "order": order} for order, name in enumerate(names)]
    source = to_html({**document, "subjects": [subject]}, RULES)
    assert len(source) < 3_000_000
    assert len(Page(source).pictures[0]["names"]) == 200


def test_the_same_document_gives_the_same_page(document: Document, tmp_path: Path) -> None:
    """In other processes, which hash strings otherwise."""
    (tmp_path / "document.json").write_text(json.dumps(document), encoding="utf-8")
    program = (
        "import hashlib, json, sys; from bncheck.catalogue import RULES; from bncheck.report.html import to_html\n"
        "document = json.load(open(sys.argv[1], encoding='utf-8'))\n"
        "print(hashlib.sha256(to_html(document, RULES).encode()).hexdigest())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "document.json")],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            timeout=60,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {hashlib.sha256(to_html(document, RULES).encode()).hexdigest()}


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from bncheck.core.errors import MissingExtra; from bncheck.core.finding import Report\n"
        "from bncheck.report.document import report_document; from bncheck.report.html import to_html\n"
        "try: to_html(report_document(Report(())), ())\n"
        "except MissingExtra as error: print(error)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert finished.stdout == f"HTML is made with {missing}, which is not installed: pip install 'bncheck[html]'\n"


def test_its_libraries_are_imported_only_for_it() -> None:
    program = "import bncheck.report.html, sys; print(*sorted({'numpy', 'jinja2', 'plotly'} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert set(finished.stdout.split()) <= {"numpy"}


def _verdict(report: Report) -> str:
    page = Page(to_html(report_document(report, channels=True), RULES))
    return " ".join(page.text.split("Skip to the report", 1)[1].split()[4:14])


def test_the_verdict_comes_first(report: Report) -> None:
    healthy = bncheck.audit(FIXTURES / "healthy-cnn-state-dict" / "model.pt")
    folded = bncheck.audit(FIXTURES / "healthy-group-norm-only" / "model.pt")
    assert healthy.exit_code == ExitCode.CLEAN
    assert _verdict(healthy).startswith("Pass no findings in 4 layers of 1 file")
    assert _verdict(report).startswith("Fail 1 error")
    assert _verdict(folded).startswith("Nothing to audit no batch-norm")
    assert _verdict(Report(())).startswith("Nothing to audit")
    broken = replace(healthy, failures=(Failure("</h1>.pt", "unreadable-file", "cut <b>short</b>"),))
    assert _verdict(broken).startswith("Incomplete 1 path could not be audited")
    assert "cut <b>short</b>" in Page(to_html(report_document(broken, channels=True), RULES)).text


def test_what_had_to_be_checked_and_was_not_is_told() -> None:
    report = replace(bncheck.audit(FIXTURES / "healthy-cnn-state-dict" / "model.pt"), must_check=("BN407",))
    assert report.exit_code == ExitCode.NOT_AUDITED
    assert _verdict(report).startswith("Incomplete 1 rule that had to be checked could not")
    assert "BN407 had to be checked, and was not" in Page(to_html(report_document(report, channels=True), RULES)).text


def test_excused_findings_are_told_and_folded(report: Report) -> None:
    excuse = Excuse(ExcusedBy.SUPPRESSION, "known <i>since</i> May", datetime.date(2030, 5, 1))
    (subject,) = report.subjects
    excused = replace(report, subjects=(subject.excusing(lambda finding, hit: excuse),))
    page = Page(to_html(report_document(excused, channels=True), RULES))
    assert "Excused by a suppression until 2030-05-01: known <i>since</i> May" in page.text
    assert excused.count(Severity.ERROR) == 0
    assert "0 errors" in page.text
    assert f"{excused.excused} excused" in page.text


def test_numbers_that_are_none() -> None:
    report = bncheck.audit(FIXTURES / "bn401-overflow" / "model.pt", FIXTURES / "bn401-nan-batch" / "model.pt")
    source = to_html(report_document(report, channels=True), RULES)
    page = Page(source)
    assert "BN401" in page.text
    assert "NaN" not in page.scripts["pictures"]
    assert "Infinity" not in page.scripts["pictures"]
    assert numbers(["NaN", "-Infinity", None, 1]).tolist()[1:] == [-math.inf, pytest.approx(math.nan, nan_ok=True), 1.0]
    assert [rounded(value) for value in (math.nan, math.inf, 1.23456, -0.00012345)] == [None, None, 1.235, -0.0001234]
    assert all(map(math.isnan, quantiles(np.array([-1.0, 0.0, math.inf]))))
    assert middle_half(np.array([1.0, 2.0, 3.0, math.nan])) == (1.5, 2.0, 2.5)


def test_a_document_without_channels_has_a_page(report: Report) -> None:
    """Of its pictures only the one that needs no channel is left."""
    (picture,) = Page(to_html(report_document(report), RULES)).pictures
    assert picture["kind"] == "depth"
    static = bncheck.audit(FIXTURES / "bn402-extrapolated" / "model.pt")
    source = to_html(report_document(static), RULES)
    assert Page(source).pictures == []
    assert len(source) < 100_000, "plotly.js is left out where there is nothing to draw"


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        (
            {"rms δ": 2.0, "limit of δ": 1.0, "median |ln ρ²|": 0.1, "limit of |ln ρ²|": 1.4, "by chance": 0.1},
            [Number("rms δ", 2.0, 1.0), Number("median |ln ρ²|", 0.1, 1.4), Number("by chance", 0.1)],
        ),
        (
            {"values per channel": 4, "limit": 16, "samples": 4},
            [Number("values per channel", 4, 16), Number("samples", 4)],
        ),
        ({"limit of rest": 3, "mean": 1}, [Number("mean", 1), Number("limit of rest", 3)]),
    ],
)
def test_numbers_stand_beside_their_limits(evidence: dict[str, float], shown: list[Number]) -> None:
    assert paired(evidence) == shown


def test_labels_are_short_and_tell_layers_apart() -> None:
    assert labels(["net.stages.0.norm", "net.stages.1.norm"]) == ["stages.0", "stages.1"]
    assert labels(["bn1"]) == ["bn1"]
    assert labels(["a", "a.b"]) == ["a", "a.b"]
    long = labels(["encoder.stages.3.layers.2.something.layer.1", "stem"])
    assert long == ["…3.layers.2.something.layer.1", "stem"]
    assert max(map(len, labels(["x" * 5000, "y" * 5000]))) <= 30
    assert shortened("x" * 5000) == "x" * 80 + "…" + "x" * 79


def test_a_recalibration_has_a_page(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).random((64, 1, 8, 8), dtype=np.float32))
    options = RunOptions(model=f"{FIXTURES}/networks.py:DigitNet", data=str(tmp_path / "inputs.npy"))
    chosen = FileChoice(options, output=str(tmp_path / "fixed.pt"))
    found = recalibrate_file(str(FIXTURES / "healthy-cnn-state-dict" / "model.pt"), chosen)
    document = json.loads(to_json(recalibration_document(found, chosen, {})))
    page = Page(recalibration_to_html(document))
    moved, heat, variances = page.pictures
    assert moved["names"] == [layer["layer"] for layer in document["layers"]] == ["bn1", "bn2", "bn3", "bn4"]
    np.testing.assert_allclose(
        moved["panels"][0]["values"], [layer["rms_delta"] for layer in document["layers"]], rtol=5e-4
    )
    for cells, layer in zip(heat["cells"], document["layers"], strict=True):
        before, after = layer["before"], layer["after"]
        delta = (np.array(after["mean"]) - before["mean"]) / np.sqrt(before["var"])
        np.testing.assert_allclose(cells, delta, rtol=5e-4)
    before, after = variances["series"]
    assert [before["name"], after["name"]] == ["before", "after"]
    np.testing.assert_allclose(after["quantiles"][0][2], np.median(document["layers"][0]["after"]["var"]), rtol=5e-4)
    assert "Recalibrated" in page.text
    assert str(tmp_path / "fixed.pt") in page.text
    refused = Page(recalibration_to_html({**document, "output": None, "not_written": "the metric <b>fell</b>"}))
    assert "the metric <b>fell</b>" in refused.text
    assert "Dry run" in Page(recalibration_to_html({**document, "output": None, "not_written": None})).text
