"""What the layout promises, held by running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import FIXTURES, ROOT

_MODEL = FIXTURES / "bn201-zero-momentum-module" / "model.pt"

# Top-level modules whose import would break the promise, and why.
_UNWANTED = {
    "torch": "the static path imports no torch",
    "zipfile": "archives are read by the project's own directory reader",
    "safetensors": "the header is read by the project's own reader",
    "networks": "the model's class source must not be needed",
    "sklearn": "only fixtures are trained with it",
    "fsspec": "only URLs need it",
    "aiohttp": "only URLs need it",
    "asyncio": "only URLs need it",
    "multiprocessing": "only URLs need it",
    "bncheck.readers.remote": "only URLs need it",
}


def _modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print('\\n' + '\\n'.join(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    return set(finished.stdout.splitlines())


def _run(*arguments: str) -> str:
    return f"""
import sys
from bncheck.cli import main
sys.argv = ["bncheck", *{list(arguments)!r}]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize("output_format", ["text", "json"])
def test_static_audit_imports_nothing_that_could_run_a_model(output_format: str) -> None:
    modules = _modules_after(_run("audit", str(_MODEL), "--format", output_format))
    assert "bncheck.readers.torch_zip" in modules, "the audit did not run"
    assert not modules & _UNWANTED.keys()


def test_piped_audit_needs_no_rich() -> None:
    modules = _modules_after(_run("audit", str(_MODEL)))
    assert "rich" not in modules


def test_importing_the_package_is_nearly_free() -> None:
    modules = _modules_after("import bncheck; bncheck.__version__")
    assert not modules & {"numpy", "torch", "typer", "rich", "bncheck.engine"}


def test_public_names_exist() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", "import bncheck; [getattr(bncheck, name) for name in bncheck.__all__]"],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0


def test_the_root_holds_what_it_should() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    allowed = {
        ".ci",
        ".gitignore",
        ".pre-commit-hooks.yaml",
        "LICENSE",
        "Makefile",
        "README.md",
        "action.yml",
        "bncheck",
        "constraints.txt",
        "fixtures",
        "pyproject.toml",
        "tests",
    }
    assert {Path(line).parts[0] for line in tracked.splitlines()} <= allowed
