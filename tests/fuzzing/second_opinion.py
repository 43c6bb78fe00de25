"""What the library that writes a format makes of an input that bncheck read whole: two readers must not disagree.

    python -m tests.fuzzing.second_opinion JOB.json

A file one reader takes for a healthy model and the other for a broken one is how scanners are bypassed. So the
normalisation layers bncheck found are held against those in the object that torch or safetensors loads: neither may
have moments the other has not. That the library refuses what bncheck reads is counted, and no fault: bncheck does not
look at everything loading needs. Nothing is loaded that could run code: ``weights_only=True``, with the classes of the
seeds allowed.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from bncheck import readers
from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BncheckError
from tests.fuzzing.formats import FORMATS, input_of, makers
from tests.fuzzing.moments import Fact, Moments, Numbers, Use, in_words, loaded_facts, read_facts
from tests.readers import torch_files

# --- loading -----------------------------------------------------------------------------------------------

ALLOWED: tuple[type, ...] = (
    *(nn.Sequential, nn.Conv2d, nn.Linear, nn.Flatten, nn.ReLU, nn.GroupNorm, nn.LayerNorm),
    *(
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.LazyBatchNorm1d,
        nn.UninitializedBuffer,
        nn.UninitializedParameter,
        set,
        list,
        defaultdict,
    ),
    *(
        value
        for value in vars(torch_files).values()
        if isinstance(value, type) and value.__module__ == torch_files.__name__
    ),
)


def _by_torch(path: str) -> object:
    return torch.load(path, weights_only=True, map_location="cpu")


def _by_safetensors(path: str) -> object:
    return safetensors.torch.load(Path(path).read_bytes())


def _by_jit(path: str) -> object:
    return torch.jit.load(path, map_location="cpu")


def _by_export(path: str) -> object:
    return torch.export.load(path)  # only the JSON of these inputs is mutated, never a pickle


LOADERS: dict[str, Callable[[str], object]] = {
    "torch": _by_torch,
    "safetensors": _by_safetensors,
    "torch.jit": _by_jit,
    "torch.export": _by_export,
}


# --- comparing ---------------------------------------------------------------------------------------------


def disagreement(checkpoint: Checkpoint, loaded: object) -> str:
    """How two readings of one file differ; empty where they do not."""
    theirs = loaded_facts(loaded)
    ours = read_facts(checkpoint, graph=theirs.graph)
    missed = frozenset(fact for fact in theirs.certain - ours if not isinstance(fact, Moments) or fact.known)
    made_up = frozenset(fact for fact in ours - theirs.certain - theirs.possible if _must_be_theirs(fact, theirs.used))
    if made_up:
        return f"bncheck reads a layer the library has not: {in_words(made_up)}; the library: {in_words(missed)}"
    return f"bncheck does not see a layer the library has: {in_words(missed)}" if missed else ""


def _must_be_theirs(fact: Fact, used: frozenset[Numbers]) -> bool:
    match fact:
        case Moments():
            return fact.known
        case Use():
            return fact.mean in used  # of calls inside branches the library's graph tells nothing plain
    return True


def compare(path: str, loader: str) -> tuple[str, str]:
    """``agree``, ``refused`` or ``differ``, and the reason or the difference."""
    try:
        checkpoint = readers.read(path)
    except BncheckError as error:
        return "unread", str(error)
    try:
        loaded = LOADERS[loader](path)
        words = disagreement(checkpoint, loaded)
    except Exception as error:
        return "refused", f"{type(error).__name__}: {_gist(str(error))}"
    return ("differ", words) if words else ("agree", "")


def _gist(message: str) -> str:
    """What torch says between its advice."""
    return message.rpartition("WeightsUnpickler error: ")[2].strip()[:200]


# --- the process -------------------------------------------------------------------------------------------


def serve(job: Path) -> Iterator[dict[str, object]]:
    """Compare the inputs of a job; yields one outcome each. Progress as in ``watched_reading``."""
    told = json.loads(job.read_text())
    known = makers(Path(told["seeds"]), [batch["format"] for batch in told["batches"]])
    progress = os.open(told["progress"], os.O_WRONLY | os.O_CREAT)
    torch.serialization.add_safe_globals(list(ALLOWED))
    torch.set_num_threads(1)
    for place, batch in enumerate(told["batches"]):
        name = batch["format"]
        path = Path(told["room"]) / f"second-{FORMATS[name].filename}"
        for index in batch["indices"]:
            os.pwrite(progress, struct.pack("<2Q", place, index), 0)
            path.write_bytes(input_of(known[name], name, told["seed"], index))
            outcome, words = compare(str(path), FORMATS[name].second)
            yield {"batch": place, "index": index, "outcome": outcome, "words": words}


def main() -> None:
    """Print one JSON object a line."""
    warnings.simplefilter("ignore")
    for line in serve(Path(sys.argv[1])):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
