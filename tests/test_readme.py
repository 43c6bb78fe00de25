"""The README is true: its examples run, its generated parts are fresh, its snippets parse."""

from __future__ import annotations

import re
import subprocess
import sys

from bncheck.core.finding import ExitCode
from tests.process import ROOT
from tests.readme_blocks import README, commands, renewed

TEXT = README.read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_generated_parts_are_fresh() -> None:
    assert renewed(TEXT) == TEXT, "run `make readme`"


def test_every_command_has_an_example() -> None:
    shown = {command.split()[1] for command in commands(TEXT) if command.startswith("bncheck ")}
    assert shown >= {"audit", "inspect", "recalibrate", "rules", "explain"}


def test_python_examples_run() -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_exit_codes_are_documented() -> None:
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", TEXT, re.MULTILINE)


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(_blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
