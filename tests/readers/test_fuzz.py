"""Mutated files of every format in short; ``make fuzz`` is the long form.

The watch itself is put to the test too: readers that do what no reader may are planted, and have to be seen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from bncheck import readers
from bncheck.core.checkpoint import TensorRef
from bncheck.core.layers import Float64Array
from bncheck.readers.tensors import ArrayReader
from tests.fuzzing.campaign import Outcome, Plan, run
from tests.fuzzing.formats import FORMATS, Format, input_of, makers, seeds_in
from tests.fuzzing.second_opinion import ALLOWED, compare
from tests.fuzzing.seeds import SEEDS, write_seeds

INPUTS = 2000
SEED = 20
COMPARED = 12
"""Inputs of a format that torch or safetensors reads as well; the long form has thousands."""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder, frozenset(SEEDS))
    return folder


@pytest.fixture(scope="module")
def outcome(seeds: Path) -> Outcome:
    return run(Plan(list(FORMATS), INPUTS, SEED, compared=0, seeds=seeds))


def test_no_input_makes_a_reader_do_anything_but_read_or_refuse(outcome: Outcome) -> None:
    assert not outcome.faults, "\n".join(f"{fault.format} {fault.index}: {fault.detail}" for fault in outcome.faults)
    assert sum(row.inputs for row in outcome.rows.values()) >= INPUTS


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_are_neither_all_refused_nor_all_read(name: str, outcome: Outcome) -> None:
    """Mutations that leave everything as it was, or nothing, would find no fault."""
    row = outcome.rows[name]
    assert row.inputs // 20 < row.read < row.inputs // 2
    assert row.unreadable


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_every_seed_is_read(row: Format, seeds: Path, tmp_path: Path) -> None:
    for beside in (seeds / row.beside).iterdir() if row.beside else ():
        (tmp_path / beside.name).write_bytes(beside.read_bytes())
    for data in seeds_in(seeds / row.kind):
        (tmp_path / row.filename).write_bytes(data)
        assert readers.read(str(tmp_path / row.filename)).layers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [row.name for row in FORMATS.values() if row.second])
def test_what_is_read_whole_agrees_with_the_library(name: str, outcome: Outcome, seeds: Path, tmp_path: Path) -> None:
    maker = makers(seeds, [name])[name]
    path = tmp_path / FORMATS[name].filename
    results = []
    with torch.serialization.safe_globals(list(ALLOWED)):
        for index in outcome.rows[name].whole[:COMPARED]:
            path.write_bytes(input_of(maker, name, SEED, index))
            results.append(compare(str(path), FORMATS[name].second))
    assert not [words for result, words in results if result == "differ"]
    assert [result for result, _ in results].count("agree") > COMPARED // 6, results


def test_a_reader_that_reads_other_numbers_is_seen(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ArrayReader.load

    def off_by_one(self: ArrayReader, tensor: TensorRef) -> Float64Array:
        return load(self, tensor) + 1

    path = str(seeds / "safetensors" / "net")
    assert compare(path, "safetensors") == ("agree", "")
    monkeypatch.setattr(ArrayReader, "load", off_by_one)
    result, words = compare(path, "safetensors")
    assert (result, words[:45]) == ("differ", "bncheck reads a layer the library has not: me")


def test_a_reader_that_leaves_out_a_layer_is_seen(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bncheck.readers import assemble

    monkeypatch.setattr(assemble, "_state_dict_kind", lambda *_: None)
    result, words = compare(str(seeds / "safetensors" / "net"), "safetensors")
    assert (result, words[:43]) == ("differ", "bncheck does not see a layer the library ha")


# --- planted faults ----------------------------------------------------------------------------------------

_PLANTED = """
import os
from bncheck.readers import pickle_machine
from tests.fuzzing import watched_reading

watched_reading.SECONDS = 1.0  # of processor time; a sound read has taken 0.2 on a busy machine
watched_reading.HEAVY = 50 * 2**20
true = pickle_machine._HANDLERS[ord("R")]

def fails(): return pickle_machine.nothing
def imports(): import this_is_no_module
def opens(): return open(os.devnull)
def writes(): return open("/nowhere/model.pt", "w")
def runs(): exec(CODE)
def starts(): os.posix_spawn("/nowhere", ["x"], {{}})
def hangs():
    while True: pass
def fills(): return b"x" * 2**31
def grows(): return b"x" * 2**26
def dies(): os.abort()

CODE = compile("1", "file", "exec")
DEEDS = [{deeds}]
turn, last = -1, None

def planted(machine):
    global turn, last
    if machine is not last:
        turn, last = turn + 1, machine
        try:
            DEEDS[turn % len(DEEDS)]()
        except (OSError, ImportError):
            pass
    true(machine)

def watch():
    begin()  # the seeds were read before, by a sound reader
    pickle_machine._HANDLERS[ord("R")] = planted

begin, watched_reading.watch = watched_reading.watch, watch
watched_reading.main()
"""


def _signatures(deeds: str, count: int, seeds: Path) -> set[str]:
    python = (sys.executable, "-c", _PLANTED.format(deeds=deeds))
    outcome = run(Plan(["pickle"], count, SEED, compared=0, seeds=seeds, python=python))
    assert outcome.rows["pickle"].inputs == count
    return {fault.signature for fault in outcome.faults}


def test_what_no_reader_may_do_is_seen(seeds: Path) -> None:
    assert _signatures("fails, imports, opens, writes, runs, starts, hangs, fills, grows", 40, seeds) == {
        "AttributeError  in pickle_machine.py:run",
        "deed: import",
        "deed: open",
        "deed: exec",
        "deed: os.posix_spawn",
        "_TooLong  in pickle_machine.py:run",
        "MemoryError  in pickle_machine.py:run",
        "heavy",
    }


def test_a_reader_that_takes_the_process_with_it_is_seen(seeds: Path) -> None:
    assert _signatures("dies", 2, seeds) == {"process died: exit code -6"}
