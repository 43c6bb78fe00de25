"""Remedies can be pasted as they stand, whatever a file is called."""

from __future__ import annotations

import ast
import shlex

import pytest

from bncheck.core.remedies import RECALIBRATE, about_file, with_specs
from bncheck.core.run_options import RunOptions

ODD = 'a "b" $(c) `d` \\e.pt'


@pytest.mark.parametrize("path", ["model.pt", ODD, "it's.pt"])
def test_a_path_is_one_word_of_a_shell(path: str) -> None:
    assert shlex.split(about_file(RECALIBRATE, path))[2] == path


@pytest.mark.parametrize("path", ["model.pt", ODD, "it's.pt"])
def test_a_path_is_one_literal_in_python(path: str) -> None:
    call = ast.parse(about_file('torch.save(model, "{path}")', path), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.literal_eval(call.args[1]) == path


def test_specs_that_are_known_stand_in_it() -> None:
    run = RunOptions(data="my nets.py:data", model="nets.py:build")
    words = shlex.split(with_specs(RECALIBRATE, run))
    assert words[words.index("--data") + 1] == "my nets.py:data"
    assert words[words.index("--model") + 1] == "nets.py:build"


def test_a_graph_needs_no_model() -> None:
    assert with_specs(RECALIBRATE, RunOptions(data="d.py:d")) == "bncheck recalibrate {path} --data d.py:d -o fixed.pt"


def test_without_data_there_is_nothing_to_fill_in() -> None:
    assert with_specs(RECALIBRATE, None) == RECALIBRATE
    assert with_specs(RECALIBRATE, RunOptions(train_data="d.py:d")) == RECALIBRATE
