"""The README's generated parts: the rule table and the output of every example.

``python -m tests.readme_blocks --write`` renews them; ``test_readme.py`` says when they are stale. An example is a
block fenced as ``console``: a line ``$ command`` and what the command prints.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator

from bncheck.catalogue import RULES
from tests.process import ROOT, bncheck

README = ROOT / "README.md"
_TABLE = re.compile(r"(<!-- rules: generated -->\n).*?(<!-- end of rules -->)", re.DOTALL)
_EXAMPLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_WIDTH = "88"


def renewed(text: str) -> str:
    """The README with every generated part as it should be now."""
    text = _TABLE.sub(lambda match: match[1] + rule_table() + match[2], text)
    return _EXAMPLE.sub(lambda match: "".join(_replayed(match[0])), text)


def rule_table() -> str:
    """The catalogue as a Markdown table."""
    rows = ["| code | name | default | fires when |", "|---|---|---|---|"]
    rows += [
        f"| {rule.id} | {rule.name} | {rule.severity.label} | {rule.formula.replace('|', chr(92) + '|')} |"
        for rule in RULES
    ]
    return "\n".join(rows) + "\n"


def commands(text: str) -> list[str]:
    """Every command of the examples."""
    return [line[2:] for block in _EXAMPLE.findall(text) for line in block.splitlines() if line.startswith("$ ")]


def named_files() -> dict[str, str]:
    """The files the README shows whole, by name: a comment above the block says it."""
    shown = re.findall(
        r"<!-- file: (.*?) -->\n```\w+\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return dict(shown)


def _replayed(block: str) -> Iterator[str]:
    code = 0
    for command in [line[2:] for line in block.splitlines() if line.startswith("$ ")]:
        yield f"$ {command}\n"
        if command == "echo $?":
            yield f"{code}\n"
            continue
        program, *arguments = shlex.split(command)
        if program != "bncheck":
            raise ValueError(f"the README's examples run bncheck only, not {command!r}")
        finished = bncheck(*arguments, COLUMNS=_WIDTH)
        code = finished.returncode
        yield finished.stdout + finished.stderr


if __name__ == "__main__":
    if "--write" not in sys.argv or os.environ.get("CI"):
        sys.exit("usage: python -m tests.readme_blocks --write (never in CI: there the README is checked)")
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
