"""The first config: few patterns, each of which names what was found, and comments that hold once they are none."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import pytest

from bncheck.config.contents import Config
from bncheck.config.reading import read_config
from bncheck.config.template import Surroundings, config_text, model_paths, patterns
from bncheck.core.path_globs import path_matches
from tests.config.configs import CODES, FORMATS

NAMES = {
    "plain": "model.pt",
    "folder": "models/a.pt",
    "two extensions": "models/b.pth.tar",
    "no extension": "models/weights",
    "brackets": "models [v1]/a[0].pt",
    "star": "mo*dels/a.p*t",
    "question": "why?/a.pt",
    "quotes": 'it\'s/"so".pt',
    "colon and hash": "a: b/c # d.pt",
    "leading dash": "- a/- b.pt",
    "YAML's own": "!tag/&anchor/*alias/%x/@y/`z.pt",
    "backslash": "back\\slash/a.pt",
    "line break": "line\nbreak/a.pt",
    "control characters": "esc\x1b[31m/\x07.pt",
    "other scripts": "größe/模型/😀.pt",
    "no UTF-8": os.fsdecode(b"caf\xe9/mod\xe8le.pt"),
    "truth value": "no/yes",
    "number": "1e5/3.0",
    "two dots": "..models/a.pt",
    "space at the end": "models /a.pt ",
}


def _read(text: str, folder: Path) -> Config:
    (folder / "bncheck.yaml").write_text(text, encoding="utf-8")
    return read_config(str(folder / "bncheck.yaml"), CODES, FORMATS)


@pytest.mark.parametrize("case", NAMES)
def test_the_pattern_of_a_file_names_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the one that finds files and for the one that finds their settings alike."""
    monkeypatch.chdir(tmp_path)
    name = NAMES[case]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    config = _read(config_text(Surroundings(models=(name,))), tmp_path)
    (pattern,) = config.model_paths()
    assert glob.glob(pattern) == [name]
    assert path_matches(pattern, name)
    assert not path_matches(pattern, "another/thing.pt")


def test_files_of_a_folder_are_named_together() -> None:
    assert patterns([f"models/{index}.pt" for index in range(100)]) == ("models/*.pt",)
    assert patterns(["a.pt", "a.safetensors", "b/c.pt"]) == ("*.pt", "*.safetensors", "b/*.pt")


def test_many_folders_are_named_together() -> None:
    models = [f"run{index}/model{kind}" for index in range(30) for kind in (".pt", ".safetensors")]
    assert patterns(models) == ("**/*.pt", "**/*.safetensors")
    assert all(any(path_matches(pattern, model) for pattern in patterns(models)) for model in models)


def test_files_elsewhere_are_left_out(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.pt", "..b/c.pt")] + [str(tmp_path.parent / "d.pt")]
    assert model_paths(files, str(tmp_path)) == ("a.pt", "..b/c.pt")


SURROUNDINGS = {
    "nothing": Surroundings(),
    "models": Surroundings(models=("a.pt", "b/c.pt")),
    "GitHub": Surroundings(on_github=True),
    "GitLab and a schema": Surroundings(on_gitlab=True, schema="bncheck.schema.json"),
    "all": Surroundings(("a.pt",), on_github=True, on_gitlab=True, schema="bncheck.schema.json"),
}
_COMMENTED = re.compile(r"^(\s*)# ( *(?:- )?[a-z-]+: ?.*)$")


@pytest.mark.parametrize("case", SURROUNDINGS)
def test_it_is_read_as_it_stands(case: str, tmp_path: Path) -> None:
    found = SURROUNDINGS[case]
    config = _read(config_text(found), tmp_path)
    assert len(config.models) == 1
    assert {name for name, _ in config.outputs} == {
        *(["sarif"] if found.on_github else []), *(["gitlab"] if found.on_gitlab else []),
    }  # fmt: skip


@pytest.mark.parametrize("case", SURROUNDINGS)
def test_every_comment_holds_once_it_is_none(case: str, tmp_path: Path) -> None:
    lines = config_text(SURROUNDINGS[case]).splitlines()
    freed = [line if "yaml-language-server" in line else _COMMENTED.sub(r"\1\2", line) for line in lines]
    config = _read("\n".join(freed), tmp_path)
    (entry,) = config.models
    assert entry.choices.model is not None
    assert entry.choices.model_arg == {"width": 64}
    assert entry.choices.data is not None
    assert entry.choices.samples == 2048
    assert entry.choices.stage == "release"
    assert config.choices.ignore == ("BN503",)
    assert config.choices.severity
    assert config.choices.limits
    assert config.fail_if_not_checked
    assert len(config.outputs) == 4
    assert config.baseline is not None
    (suppression,) = config.suppressions
    assert suppression.until is not None
