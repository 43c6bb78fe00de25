"""What the user names on the command line: found, or told in one line with their own frames below it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bncheck.core.errors import BadSpec, Interrupted, UserCodeFailed
from bncheck.runtime.user_code import call, failure, load_callable


@pytest.fixture(autouse=True)
def _own_imports() -> Iterator[None]:
    """Modules and paths that a test imports are gone behind it."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def _write(folder: Path, text: str, name: str = "users_own.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_and_its_neighbours(tmp_path: Path) -> None:
    _write(tmp_path, "value = 7\n", "users_neighbour.py")
    path = _write(tmp_path, "import users_neighbour\ndef build(): return users_neighbour.value\n")
    assert load_callable(f"{path}:build")() == 7


def test_a_module_seen_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_package").mkdir()
    _write(tmp_path / "users_package", "def build(): return 8\n", "inner.py")
    monkeypatch.chdir(tmp_path)
    assert load_callable("users_package.inner:build")() == 8


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    path = _write(tmp_path, "class Kept: pass\ndef build(): return Kept\n")
    assert load_callable(f"{path}:build")() is load_callable(f"{path}:Kept")


def test_dataclasses_and_pickles_find_their_module(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "from __future__ import annotations\nimport dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass Batch:\n    size: int\n"
        "def build(): return pickle.loads(pickle.dumps(Batch(3)))\n",
    )
    assert load_callable(f"{path}:build")().size == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nothing", "is no package.module:callable"),
        (":build", "is no package.module:callable"),
        ("m.py:", "is no package.module:callable"),
        ("m.py:a b", "is no package.module:callable"),
        ("there_is_none.py:build", "there is no file there_is_none.py"),
        ("there_is_none:build", "there is no module there_is_none, seen from"),
        ("os.there_is_none:build", "there is no module os.there_is_none"),
        ("json:decode", "json has no 'decode'; it has"),
        ("math:pi", "pi is a float; name a function that returns it"),
    ],
)
def test_a_spec_that_names_nothing(spec: str, said: str) -> None:
    with pytest.raises(BadSpec, match=said):
        load_callable(spec)


@pytest.mark.parametrize(
    ("text", "said", "shown"),
    [
        ("import there_is_no_such_package\n", "ModuleNotFoundError: No module named", "import there_is_no_such"),
        ("def build(:\n", "SyntaxError", "def build(:"),
        (
            "def helper():\n    raise KeyError('weights')\nhelper()\n",
            "KeyError: 'weights'",
            "raise KeyError('weights')",
        ),
    ],
    ids=["import", "syntax", "raises"],
)
def test_code_that_fails_when_it_is_imported(text: str, said: str, shown: str, tmp_path: Path) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(UserCodeFailed, match=said) as told:
        load_callable(f"{path}:build")
    assert str(told.value).count("\n") == 0
    assert shown in told.value.detail
    assert "user_code.py" not in told.value.detail
    assert "importlib" not in told.value.detail
    assert "users_own" not in sys.modules


def test_a_module_that_fails_is_told_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, "import there_is_no_such_package\n", "users_broken.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserCodeFailed, match="importing users_broken failed with ModuleNotFoundError"):
        load_callable("users_broken:build")


def _deep(levels: int) -> None:
    if levels:
        _deep(levels - 1)
    raise ValueError("first line\nsecond line")


def test_a_long_traceback_is_trimmed_and_a_long_message_is_one_line() -> None:
    with pytest.raises(UserCodeFailed) as told:
        call("building", _deep, 30)
    assert str(told.value) == "building failed with ValueError: first line"
    assert told.value.detail.count('File "') == 3
    assert "second line" in told.value.detail


def test_an_exception_without_a_message_has_its_name() -> None:
    assert str(failure("it", RuntimeError())) == "it failed with RuntimeError"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(130)], ids=lambda error: type(error).__name__)
def test_an_interrupt_is_not_held_back(error: BaseException) -> None:
    def ends() -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        call("it", ends)


def test_user_code_that_exits_does_not_end_the_audit(tmp_path: Path) -> None:
    """As ``argparse`` does at the top of a script; with 0 it would pass for a clean model."""
    path = _write(tmp_path, "import sys\nsys.exit(0)\n")
    with pytest.raises(UserCodeFailed, match=r"importing .* failed with SystemExit: 0"):
        load_callable(f"{path}:build")
    with pytest.raises(UserCodeFailed, match="SystemExit"):
        call("it", sys.exit, 0)
