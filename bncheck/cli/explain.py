"""``bncheck explain``."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from bncheck.catalogue import RULES
from bncheck.cli.app import app
from bncheck.cli.output import OutputFormat, emit, show, text_width
from bncheck.core.errors import BadUsage
from bncheck.core.rule import Rule
from bncheck.report.document import rule_document
from bncheck.report.json import to_json
from bncheck.report.text import explain_lines


@app.command()
def explain(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="A code (BN201) or a name (zero-momentum).")],
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Text or JSON.")] = OutputFormat.TEXT,
) -> None:
    """Tell why a rule exists, what it computes, its limit, what it stays silent on, and what to do."""
    found = _find(rule)
    match output_format:
        case OutputFormat.JSON:
            emit(to_json(rule_document(found)))
        case OutputFormat.TEXT:
            show(explain_lines(found, text_width()))


def _find(wanted: str) -> Rule:
    for rule in RULES:
        if wanted.upper() == rule.id or wanted.lower() == rule.name:
            return rule
    near = difflib.get_close_matches(wanted, [name for rule in RULES for name in (rule.id, rule.name)], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "`bncheck rules` lists them"
    raise BadUsage(f"no rule is called {wanted!r}; {hint}")
