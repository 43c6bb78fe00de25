"""The envelope of every page: one file with its styles, scripts and data inside, and a policy that allows only these.

A strict Content-Security-Policy (https://www.w3.org/TR/CSP3/) names each script by its hash, so that nothing else runs
whatever a model file's names hold, and nothing is fetched or sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from bncheck.core.errors import MissingExtra
from bncheck.report.document import Json
from bncheck.report.html.pictures import Picture
from bncheck.report.html.visible import shortened, visible
from bncheck.version import __version__

# What could end a script element or start a comment in it: https://html.spec.whatwg.org/#restrictions-for-contents-of-script-elements
_UNSAFE_IN_SCRIPTS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


@dataclass(frozen=True, slots=True)
class Page:
    """What to render.

    Attributes:
        template: file name.
        content: names the template uses.
        pictures: drawn by the script; the template refers to them by their place.
    """

    template: str
    content: Mapping[str, object]
    pictures: Sequence[Picture]


def render(page: Page) -> str:
    """The page as text.

    Raises:
        MissingExtra: jinja2 or plotly is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - of the extra html
        from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - of the extra html
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise MissingExtra(
            f"HTML is made with {missing}, which is not installed: pip install 'bncheck[html]'"
        ) from None
    environment = Environment(
        loader=PackageLoader("bncheck.report.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(number=_number, percent=_percent, short=shortened)
    plotly = get_plotlyjs() if page.pictures else ""
    script = _asset("report.js")
    return environment.get_template(page.template).render(
        {
            **page.content,
            "version": __version__,
            "policy": _policy([script, plotly]),
            "style": Markup(_asset("report.css")),
            "script": Markup(script),
            "plotly": _packed(plotly),
            "pictures": page.pictures,
            "data": Markup(script_safe([picture.data for picture in page.pictures])),
        }
    )


def _asset(name: str) -> str:
    return resources.files("bncheck.report.html").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing but these; plotly.js writes styles as it draws, and a heat map is an image of a ``data:`` URL."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts if script)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _packed(script: str) -> str:
    """Compressed, which takes plotly.js from 4.8 to 2 megabytes; ``report.js`` unpacks it."""
    return base64.b64encode(zlib.compress(script.encode(), 9)).decode() if script else ""


def script_safe(data: Json) -> str:
    """JSON in ASCII that no character of it can break out of a script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return "".join(_UNSAFE_IN_SCRIPTS.get(character, character) for character in text)


def _number(value: Json) -> str:
    """A value as short as it can be told."""
    if value is None:
        return "—"
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _percent(share: Json) -> str:
    return f"{share:.1%}" if isinstance(share, float) and not isinstance(share, bool) else _number(share)
