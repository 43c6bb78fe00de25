"""TorchScript archives, written by torch and edited by hand, and what torch does when it runs them.

What a layer does is not asked of flags or code: a dispatch mode sees every normalisation operator that torch runs, with
the tensors and the mode it is given.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bncheck.core.errors import BncheckError
from bncheck.readers import read
from tests.process import ROOT
from tests.readers.torch_files import FEATURES

Edit = Callable[[str], str] | Callable[[bytes], bytes]


def batch(seed: int = 0) -> torch.Tensor:
    """An input of every network here: four images."""
    return torch.randn(4, FEATURES, 5, 5, generator=torch.Generator().manual_seed(seed))


# --- what torch runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """One call of a normalisation operator: the buffer given as running mean, None without one, and the mode."""

    mean: str | None
    training: bool


class _Watch(TorchDispatchMode):
    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._names = {buffer.data_ptr(): name for name, buffer in reversed(list(module.named_buffers()))}
        self.seen: list[Seen] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        if "batch_norm" in schema.name:
            given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | (kwargs or {})
            mean = given.get("running_mean")
            training = "no_training" not in schema.name and given.get("training", "with_update" in schema.name)
            self.seen.append(Seen(None if mean is None else self._names.get(mean.data_ptr(), "?"), training))
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Behaviour:
    """What torch runs of an archive, in each mode."""

    saved: tuple[Seen, ...]
    eval: tuple[Seen, ...]
    training: tuple[Seen, ...]

    def uses_batch(self, mean: str) -> tuple[bool, bool, bool]:
        """Whether a layer is given the batch's moments: as saved, after eval(), after train()."""
        modes = (self.saved, self.eval, self.training)
        return tuple(any(seen.training for seen in mode if seen.mean == mean) for mode in modes)

    @property
    def layers(self) -> list[str]:
        """Running means in the order in which the archive as saved, then otherwise, first uses them."""
        every = (*self.saved, *self.eval, *self.training)
        return list(dict.fromkeys(seen.mean for seen in every if seen.mean not in (None, "?")))


def behaviour(path: Path, runs: int = 1) -> Behaviour:
    """Load the archive anew for each mode and run it, more than once where it may change itself."""
    return Behaviour(*(_seen(path, mode, runs) for mode in (None, False, True)))


def _seen(path: Path, mode: bool | None, runs: int) -> tuple[Seen, ...]:
    module = torch.jit.load(path)
    if mode is not None:
        module.train(mode)
    # What is run once needs no optimising, which would take most of the time.
    with _Watch(module) as watch, torch.no_grad(), torch.jit.optimized_execution(False):
        for run in range(runs):
            module(batch(run))
    return tuple(watch.seen)


def assert_behaves(path: Path, runs: int = 1) -> None:
    """Compare what bncheck says of each layer with what torch does with it, mode for mode."""
    checkpoint = read(str(path))
    assert not checkpoint.unread
    seen = behaviour(path, runs)
    first_names = _first_names(torch.jit.load(path))
    by_mean = {}
    for layer in reversed(checkpoint.layers):
        mean = _mean_of(layer.name, layer.class_path)
        by_mean[first_names.get(mean, mean)] = layer
    assert seen.layers, "torch runs no norm with moments of its own: there is nothing to compare"
    assert set(seen.layers) <= by_mean.keys()
    for mean, layer in by_mean.items():
        saved, after_eval, after_train = seen.uses_batch(mean)
        called = mean in seen.layers
        if layer.kind.value == "instance" or layer.track_running_stats is False:
            continue  # given to the operator as copies, or not at all
        follows = not after_eval and (saved or after_train)
        expected = True if after_eval else None if follows or not called else False
        assert layer.baked_training is expected, layer.name
        assert (layer.execution_order is not None) == called, layer.name
        if follows and any(each.mean == mean for each in seen.saved):
            assert layer.training is saved, layer.name
    orders = {mean: by_mean[mean].execution_order for mean in seen.layers}
    assert sorted(orders, key=orders.get) == seen.layers


def _first_names(module: torch.jit.ScriptModule) -> dict[str, str]:
    """Every name of a buffer → the first one of the same tensor: a shared layer is several in a scripted archive."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for path, part in module.named_modules():
        for leaf, buffer in part.named_buffers(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            names[name] = first.setdefault(buffer.data_ptr(), name)
    return names


def _mean_of(layer: str, class_path: str | None) -> str:
    """The running mean of a layer: an attribute of its module, or what a function on plain buffers is named after."""
    if class_path in ("torch.batch_norm", "torch.instance_norm"):
        return layer
    return f"{layer}.running_mean" if layer else "running_mean"


# --- writing archives --------------------------------------------------------------------------------------

_PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from tests.readers import hostile, script_networks as networks
from tests.readers.torch_files import filled
for path, network in zip(sys.argv[1::2], sys.argv[2::2]):
    torch.jit.script(eval(network)).save(path)
"""


def scripted_alone(networks: Mapping[Path, str]) -> None:
    """Script networks in a process of their own: torch numbers the names of classes it has compiled before.

    Args:
        networks: path of the archive → an expression that makes the network.
    """
    arguments = [str(part) for pair in networks.items() for part in pair]
    subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], cwd=ROOT, check=True)


# --- editing archives --------------------------------------------------------------------------------------


def edited(path: Path, edits: Mapping[str, Edit | str], name: str = "edited.pt") -> Path:
    """The archive again, beside the first, with members changed or added.

    Args:
        path: the archive.
        edits: member without the archive's folder → a new text, or what makes it of the old: of its bytes in pickles.
        name: of the new file.
    """
    target = path.with_name(name)
    left = dict(edits)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        folder = old.namelist()[0].partition("/")[0]
        for entry in old.infolist():
            member = entry.filename.partition("/")[2]
            change = left.pop(member, None)
            data = old.read(entry)
            if change is not None:
                before, data = data, _changed(member, change, data)
                assert before != data, f"{member} is not changed"
            new.writestr(entry.filename, data)
        for member, text in left.items():
            assert isinstance(text, str), f"there is no {member}"
            new.writestr(f"{folder}/{member}", text)
    return target


def _changed(member: str, change: Edit | str, data: bytes) -> bytes:
    if isinstance(change, str):
        return change.encode()
    return change(data) if member.endswith(".pkl") else change(data.decode()).encode()


def replacing(*pairs: tuple[str, str] | tuple[bytes, bytes]) -> Edit:
    """An edit that replaces texts, or bytes, each of which must occur."""

    def edit(text):
        for old, new in pairs:
            assert old in text, f"{old!r} does not occur"
            text = text.replace(old, new)
        return text

    return edit


def told(path: Path) -> str:
    """What bncheck does with a file: ``told``, ``unread`` or ``refused``."""
    try:
        checkpoint = read(str(path))
    except BncheckError:
        return "refused"
    return "unread" if checkpoint.unread else "told"
