"""Where a config is looked for, and where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bncheck.config.discovery import find_config
from bncheck.core.errors import BadConfig

TABLE = "[tool.bncheck]\njobs = 2\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``.git``, two folders deep in which one stands."""
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository" / "a" / "b")
    return tmp_path / "repository"


def test_none(repository: Path) -> None:
    assert find_config() is None


@pytest.mark.parametrize("name", ["bncheck.yaml", "bncheck.yml", "pyproject.toml"])
@pytest.mark.parametrize(("folder", "path"), [(".", "../../{}"), ("a", "../{}"), ("a/b", "{}")])
def test_the_working_directory_and_what_lies_above_it(name: str, folder: str, path: str, repository: Path) -> None:
    (repository / folder / name).write_text(TABLE)
    assert find_config() == path.format(name)


def test_the_nearest_and_the_plainest_wins(repository: Path) -> None:
    (repository / "pyproject.toml").write_text(TABLE)
    (repository / "a" / "pyproject.toml").write_text(TABLE)
    assert find_config() == "../pyproject.toml"
    (repository / "a" / "bncheck.yaml").touch()
    assert find_config() == "../bncheck.yaml"


@pytest.mark.parametrize(
    "text", [b"", b"[project]\nname = 'x'\n", b"[project]\nname = 'bncheck'\n", b"\xff", b"[tool.other\n"]
)
def test_a_pyproject_that_says_nothing_to_us_is_passed_over(text: bytes, repository: Path) -> None:
    (repository / "a" / "b" / "pyproject.toml").write_bytes(text)
    (repository / "bncheck.yaml").touch()
    assert find_config() == "../../bncheck.yaml"


def test_a_pyproject_with_a_byte_order_mark(repository: Path) -> None:
    (repository / "pyproject.toml").write_bytes(b"\xef\xbb\xbf" + TABLE.encode())
    assert find_config() == "../../pyproject.toml"


def test_a_malformed_pyproject_that_names_us_is_told(repository: Path) -> None:
    (repository / "pyproject.toml").write_text("[tool.bncheck\n")
    with pytest.raises(BadConfig, match=r"pyproject\.toml: malformed TOML"):
        find_config()


def test_what_lies_around_a_checkout_decides_nothing(repository: Path) -> None:
    (repository.parent / "bncheck.yaml").write_text("jobs: 2")
    assert find_config() is None
    (repository / ".git").rmdir()
    assert find_config() == os.path.join("..", "..", "..", "bncheck.yaml")
    (repository / ".git").write_text("gitdir: elsewhere")  # as in a worktree
    assert find_config() is None


def test_folders_and_pipes_of_that_name_are_none(repository: Path) -> None:
    (repository / "a" / "b" / "bncheck.yaml").mkdir()
    os.mkfifo(repository / "a" / "bncheck.yaml")
    os.mkfifo(repository / "a" / "pyproject.toml")
    (repository / "bncheck.yaml").touch()
    assert find_config() == "../../bncheck.yaml"


def test_a_link_that_leads_nowhere_is_found_and_fails_later(repository: Path) -> None:
    (repository / "bncheck.yaml").symlink_to("moved-away.yaml")
    assert find_config() == "../../bncheck.yaml"


def test_a_working_directory_that_has_been_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find_config() is None
