"""JSON: the canonical document as it is."""

from __future__ import annotations

import json

from bncheck.report.document import Json


def to_json(document: Json) -> str:
    """Valid JSON in ASCII, so that no terminal encoding and no character in a layer's name can break it."""
    return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False)
