"""The HTML page in a real browser: it draws, filters and copies, asks for nothing, and fits a phone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

import bncheck
from bncheck.catalogue import RULES
from bncheck.report.document import Document, report_document
from bncheck.report.html import to_html
from bncheck.report.html.visible import visible
from tests.browser import chromium, needs_browser
from tests.report.networks import HOSTILE, chain, data_for

pytestmark = needs_browser

_PATIENCE = 30.0


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def document() -> Document:
    report = bncheck.audit(chain(HOSTILE, 4, shift=3.0), data=data_for(4))
    return report_document(report, channels=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, document: Document) -> dict[str, Path]:
    """One of hostile names, and one of many layers."""
    folder = tmp_path_factory.mktemp("pages")
    names = [f"encoder.stages.{index // 15}.layers.{index % 15}.normalization" for index in range(60)]
    deep = report_document(bncheck.audit(chain(names, 3, shift=0.0)), channels=True)
    written = {}
    for name, content in (("hostile", document), ("deep", deep)):
        written[name] = folder / f"{name}.html"
        written[name].write_text(to_html(content, RULES), encoding="utf-8")
    return written


@pytest.fixture
def show(browser: webdriver.Chrome, pages: dict[str, Path]) -> Callable[..., webdriver.Chrome]:
    """Opens a page and waits until all of its pictures are drawn."""

    def opened(name: str, *, width: int = 1280, dark: bool = False) -> webdriver.Chrome:
        browser.get_log("browser")
        browser.get_log("performance")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(pages[name].as_uri())
        for figure in browser.find_elements(By.CSS_SELECTOR, "figure"):
            _reveal(figure)
            _until(lambda figure=figure: figure.find_elements(By.CSS_SELECTOR, ".main-svg"))
        return browser

    return opened


def _until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("what was waited for did not happen")


def _reveal(element: WebElement) -> None:
    element.parent.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)


def _hover(browser: webdriver.Chrome, element: WebElement) -> str:
    """What the label beside the pointer says."""
    _reveal(element)
    ActionChains(browser).move_to_element_with_offset(element, 1, 1).move_to_element(element).perform()
    label = _until(lambda: browser.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext"))[0]
    return "\n".join(line.get_property("textContent") for line in label.find_elements(By.CSS_SELECTOR, "tspan.line"))


def _told(value: float) -> str:
    """As the page says a number."""
    return f"{float(f'{value:.4g}'):g}"


def _shown(browser: webdriver.Chrome) -> list[str]:
    return [
        str(finding.get_attribute("data-rule"))
        for finding in browser.find_elements(By.CSS_SELECTOR, ".finding")
        if finding.is_displayed()
    ]


def test_it_draws_without_a_complaint_and_asks_for_nothing(show: Callable[..., webdriver.Chrome]) -> None:
    browser = show("hostile")
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure .main-svg")) >= 3
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.violations") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    requests = [
        entry["message"].split('"url":"', 1)[1].split('"', 1)[0]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert requests, "the log has no request at all, not even that of the page"
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests), requests


def test_the_policy_holds(show: Callable[..., webdriver.Chrome]) -> None:
    """A script that is not of the page does not run, and nothing is fetched."""
    browser = show("hostile")
    browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.planted = 1';"
        "document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend',"
        ' \'<img src="https://example.com/x.png" onerror="window.planted = 2">\');'
    )
    violations = _until(lambda: sorted(set(browser.execute_script("return window.violations"))))
    _until(lambda: "img-src" in browser.execute_script("return window.violations"))
    assert "script-src-elem" in violations
    assert browser.execute_script("return window.planted") is None


def test_hostile_names_stay_text(show: Callable[..., webdriver.Chrome]) -> None:
    browser = show("hostile")
    assert browser.find_elements(By.CSS_SELECTOR, "main img, main script, main a[href*=example]") == []
    texts = browser.execute_script("return Array.from(document.querySelectorAll('.names code'), (n) => n.textContent)")
    for name in (name for name in HOSTILE if len(name) < 100):
        assert visible(name) in texts
    ticks = browser.execute_script(
        "return Array.from(document.querySelectorAll('.xtick text'), (tick) => tick.textContent)"
    )
    assert HOSTILE[0] in ticks
    assert any(tick.endswith("</a>%{x}") for tick in ticks)
    assert visible(HOSTILE[6]) in ticks
    assert browser.find_elements(By.CSS_SELECTOR, ".plot a, .plot tspan[style*=bold]") == []


def test_hovering_tells_the_values(show: Callable[..., webdriver.Chrome], document: Document) -> None:
    browser = show("hostile")
    (subject,) = document["subjects"]
    first = subject["measurements"]["drift"][0]
    dots = browser.find_elements(By.CSS_SELECTOR, "figure:first-of-type .subplot.xy .scatterlayer .point")
    said = _hover(browser, dots[0])
    assert HOSTILE[0] in said
    assert f"δ {_told(first['delta'])};" in said
    heat = browser.find_element(By.CSS_SELECTOR, ".heatmaplayer image")
    _reveal(heat)
    box = heat.rect
    layer, channel = 2, 1
    right = (layer + 0.5) / len(HOSTILE) - 0.5
    down = (channel + 0.5) / 4 - 0.5
    ActionChains(browser).move_to_element_with_offset(
        heat, round(right * box["width"]), round(down * box["height"])
    ).perform()
    delta = subject["measurements"]["layers"][layer]["channels"]["delta"][channel]
    wanted = f"channel {channel}: δ {_told(delta)}"
    labels = "return Array.from(document.querySelectorAll('.hoverlayer .hovertext'), (at) => at.textContent).join()"
    _until(lambda: wanted in str(browser.execute_script(labels)))


def test_the_filter_filters(show: Callable[..., webdriver.Chrome]) -> None:
    browser = show("hostile")
    every = _shown(browser)
    assert len(set(every)) >= 3
    browser.find_element(By.CSS_SELECTOR, "input[value=error]").click()
    assert "BN407" not in _shown(browser)
    assert "BN406" in _shown(browser)
    browser.find_element(By.CSS_SELECTOR, "input[value=error]").click()
    assert _shown(browser) == every
    browser.find_element(By.CSS_SELECTOR, "select[name=rule] option[value=BN407]").click()
    assert set(_shown(browser)) == {"BN407"}
    browser.find_element(By.CSS_SELECTOR, "select[name=rule] option[value='']").click()
    search = browser.find_element(By.NAME, "layer")
    search.send_keys("<IMG")
    with_first = [rule for rule in every if rule in _shown(browser)]
    assert 0 < len(with_first) < len(every)
    said = browser.find_element(By.CSS_SELECTOR, ".shown").text
    assert said == f"{len(with_first)} of {len(every)} findings"
    _until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "figure:first-of-type .subplot.xy .point")) == 1)
    search.clear()
    search.send_keys("no layer has this name")
    assert _shown(browser) == []
    assert browser.find_element(By.CSS_SELECTOR, ".none-shown").is_displayed()


@pytest.mark.parametrize("width", [1280, 390])
def test_names_of_many_layers_do_not_overlap(show: Callable[..., webdriver.Chrome], width: int) -> None:
    browser = show("deep", width=width)
    boxes = browser.execute_script(
        "return Array.from(document.querySelectorAll('figure:first-of-type .xtick text'), (tick) => {"
        "const box = tick.getBoundingClientRect(); return [box.left, box.right, box.top, box.bottom]; })"
    )
    assert len(boxes) == 60
    assert all(left[1] <= right[0] + 0.5 for left, right in pairwise(boxes))
    bottom = browser.execute_script("return document.querySelector('figure .main-svg').getBoundingClientRect().bottom")
    assert max(box[3] for box in boxes) <= bottom


@pytest.mark.parametrize("name", ["hostile", "deep"])
def test_it_fits_a_phone(show: Callable[..., webdriver.Chrome], name: str) -> None:
    browser = show(name, width=390)
    for details in browser.find_elements(By.CSS_SELECTOR, "details"):
        browser.execute_script("arguments[0].open = true", details)
    page, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert window == 390
    assert page <= window
    if name == "deep":
        box, plot = browser.execute_script(
            "const box = document.querySelector('figure .scroll'); return [box.clientWidth, box.scrollWidth]"
        )
        assert plot > box, "a wide picture scrolls in its own box"


def _luminance(browser: webdriver.Chrome, element: str, style: str) -> float:
    colour = browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/[0-9.]+/g).map(Number)",
        element,
        style,
    )
    return sum(colour[:3]) / 3


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_system_and_the_button(show: Callable[..., webdriver.Chrome], dark: bool) -> None:
    browser = show("hostile", dark=dark)
    ticks = "figure .ytick text"

    def is_dark() -> bool:
        ground, text, tick = (
            _luminance(browser, *of) for of in (("body", "backgroundColor"), ("body", "color"), (ticks, "fill"))
        )
        assert (text > ground) == (tick > ground)
        assert abs(text - ground) > 120
        return text > ground

    button = browser.find_element(By.ID, "theme")
    assert is_dark() == dark
    assert button.get_attribute("aria-pressed") == str(dark).lower()
    button.click()
    assert is_dark() != dark
    assert button.get_attribute("aria-pressed") == str(not dark).lower()


def test_the_keyboard_reaches_every_control(show: Callable[..., webdriver.Chrome]) -> None:
    browser = show("hostile")
    reached = []
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(
            browser.execute_script(
                "const at = document.activeElement; return [at.id || at.name || at.className || at.tagName,"
                "getComputedStyle(at).outlineStyle]"
            )
        )
    names = [name for name, _ in reached]
    for wanted in ("skip", "theme", "severity", "rule", "layer", "copy", "SUMMARY"):
        assert wanted in names, names
    assert all(outline != "none" for name, outline in reached if name != "BODY"), reached
    assert names.index("theme") < names.index("severity") < names.index("layer") < names.index("copy")


def test_the_remedy_is_copied(show: Callable[..., webdriver.Chrome], document: Document) -> None:
    browser = show("hostile")
    button = browser.find_element(By.CSS_SELECTOR, "button.copy")
    _reveal(button)
    button.click()
    _until(lambda: button.text == "Copied")
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    (subject,) = document["subjects"]
    assert copied == subject["findings"][0]["remedy"]


def test_it_prints_in_light_colours_and_comes_back(show: Callable[..., webdriver.Chrome]) -> None:
    browser = show("hostile", dark=True)
    browser.execute_script(
        "window.addEventListener('beforeprint', () => { window.printed = document.documentElement.dataset.theme; })"
    )
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"].startswith("JVBERi0")
    assert browser.execute_script("return window.printed") == "light"
    assert browser.execute_script("return document.documentElement.dataset.theme") is None
    assert _luminance(browser, "body", "backgroundColor") < 60
