"""Patterns of paths, held to what a file system finds."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bncheck.core.path_globs import path_matches


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a.pt", "a.pt", True),
        ("a.pt", "b/a.pt", False),
        ("*.pt", "a.pt", True),
        ("*.pt", "b/a.pt", False),
        ("models", "models/deep/a.pt", True),
        ("models/", "models/a.pt", True),
        ("models", "models2/a.pt", False),
        ("models/*", "models/deep/a.pt", True),
        ("models/*.pt", "models/deep/a.pt", False),
        ("**", "a.pt", True),
        ("**", "b/c/a.pt", True),
        ("**/*.pt", "a.pt", True),
        ("**/*.pt", "b/c/a.pt", True),
        ("**/*.pt", "b/c/a.ckpt", False),
        ("b/**/a.pt", "b/a.pt", True),
        ("b/**/a.pt", "b/c/d/a.pt", True),
        ("b/**/a.pt", "c/b/a.pt", False),
        ("**/legacy/**", "x/legacy/y/a.pt", True),
        ("models/**", "models/a.pt", True),
        ("a.pt/**", "a.pt", False),
        ("**/**/a.pt", "a.pt", True),
        ("b**/a.pt", "bc/a.pt", True),
        ("?.pt", "a.pt", True),
        ("?.pt", "ab.pt", False),
        ("[ab].pt", "b.pt", True),
        ("[!ab].pt", "b.pt", False),
        ("[[]v1].pt", "[v1].pt", True),
        ("[.pt", "[.pt", True),
        ("[z-a].pt", "b.pt", False),
        ("A.pt", "a.pt", False),
        ("./a.pt", "a.pt", True),
        (".", "b/a.pt", True),
        ("./", "a.pt", True),
        (".", "../a.pt", False),
        ("..", "../a.pt", True),
        ("../*.pt", "../a.pt", True),
        ("b/../a.pt", "a.pt", True),
        ("b/../../a.pt", "../a.pt", True),
        ("*", "a\nb.pt", True),
        ("/m/*.pt", "/m/a.pt", True),
        ("/m/*.pt", "m/a.pt", False),
        ("m/*.pt", "/m/a.pt", False),
        ("**", "/m/a.pt", False),
        ("https://host/*/a.pt", "https://host/v1/a.pt", True),
        ("https://host/*/a.pt", "https://other/v1/a.pt", False),
        ("**", "https://host/a.pt", True),
        ("(a|b)+.pt", "a.pt", False),
    ],
)
def test_path_matches(pattern: str, path: str, matches: bool) -> None:
    assert path_matches(pattern, path) is matches


_FILES = ["a.pt", "b.pt", "m/a.pt", "m/n/a.pt", "m/n/o/a.ckpt", "n/m/a.pt"]
_PATTERNS = (
    st.lists(
        st.sampled_from(["*", "**", "m", "n", "a.pt", "*.pt", "?.pt", "[ab].pt", "[!m]", "o"]), min_size=1, max_size=4
    )
    .map("/".join)
    .filter(lambda pattern: "a.pt/**" not in pattern)
)  # which glob takes for the file itself


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for file in _FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@settings(max_examples=150, deadline=None)
@given(_PATTERNS)
def test_it_agrees_with_the_file_system(tree: Path, pattern: str) -> None:
    """A file is matched where glob finds it, or finds a folder that it lies in."""
    found = {os.path.normpath(name) for name in glob.glob(pattern, root_dir=tree, recursive=True)}
    for file in _FILES:
        above = {os.path.normpath(file[:at]) for at, character in enumerate(file) if character == "/"} | {file, "."}
        assert path_matches(pattern, file) is bool(found & above), (pattern, file, found)


def test_no_pattern_is_slow() -> None:
    begun = time.process_time()
    assert not path_matches("/".join(["**", "*a*a*a*a*a*a*b"] * 20), "/".join(["a" * 60] * 60))
    assert not path_matches("**/" * 200 + "b", "a/" * 200)
    assert time.process_time() - begun < 2.0
