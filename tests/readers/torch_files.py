"""Networks and files of every kind torch writes, for comparing the reader with torch itself.

The classes live here, not in the test, so that whole-module pickles can name them and torch can load them again.
"""

from __future__ import annotations

import enum
import io
import pickle
import zipfile
from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

Rewrite = Callable[[str, bytes], bytes]
"""(member name without the archive's folder, bytes) → bytes."""

FEATURES = 6


# --- networks ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A convolution and its norm."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, bias=False)
        self.norm = nn.BatchNorm2d(features)


class Net(nn.Module):
    """Batch norms at the top, in a block and in a Sequential, beside layers that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, FEATURES, 3)
        self.bn1 = nn.BatchNorm2d(FEATURES, momentum=0.03)
        self.block = Block()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, eps=1e-3), nn.ReLU())
        self.group_norm = nn.GroupNorm(2, FEATURES)
        self.layer_norm = nn.LayerNorm(4)


class OwnBatchNorm(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class Whitener(nn.Module):
    """Running moments registered by hand, in a class no list of class names holds."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.eps = 0.01
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))


class FrozenBatchNorm2d(nn.Module):
    """As detectors write it: four buffers, no parameter."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((features,), value))


class HidesInList(nn.Module):
    """A norm in a plain list is no submodule, and ``eval()`` passes it by."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(FEATURES)
        self.hidden = [nn.BatchNorm2d(FEATURES), nn.BatchNorm2d(FEATURES)]


class AveragedCopy:
    """An EMA helper as training code writes it: no module itself, the copy is an attribute."""

    def __init__(self, model: nn.Module) -> None:
        self.module = deepcopy(model)
        self.decay = 0.999


class Shade(enum.Enum):
    """A member of this is an attribute of many a configured network."""

    DARK = "dark"


class Level(enum.IntEnum):
    """The same, with a number."""

    HIGH = 3


Point = namedtuple("Point", "x y")


@dataclass
class Settings:
    """Hyper-parameters."""

    rate: float = 0.1
    name: str = "net"


def scale_by(factor: float, value: float) -> float:
    """Something for ``functools.partial`` to hold."""
    return factor * value


# --- filling -----------------------------------------------------------------------------------------------


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every float drawn at random and every counter set, so that no two tensors can be mixed up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                continue
            if not tensor.is_floating_point():
                tensor.fill_(int(torch.randint(1, 10_000, (), generator=generator)))
            else:
                values = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(values.exp() if name.endswith("running_var") else values)
    return module


def numbers(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random values with the awkward ones in front: negative zero, infinity, and the format's smallest."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)).to(dtype)
    awkward = [-0.0, float("inf"), torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal / 4]
    values[: len(awkward)] = torch.tensor(awkward, dtype=torch.float64).to(dtype)[:count]
    return values


# --- files -------------------------------------------------------------------------------------------------


def saved(value: object, path: Path, **options: object) -> Path:
    """``torch.save``; the path, for chaining."""
    torch.save(value, path, **options)
    return path


def rewritten(path: Path, change: Rewrite, method: int = zipfile.ZIP_STORED) -> Path:
    """The archive again, with every member passed through ``change``, beside the first."""
    target = path.with_name(f"rewritten-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename.partition("/")[2], old.read(entry)))
    return target


def unchanged(_name: str, data: bytes) -> bytes:
    """A rewrite that changes only how the archive is packed."""
    return data


def as_big_endian(path: Path) -> Path:
    """The file as torch writes it on a big-endian machine: every number swapped, and a word that says so."""
    with zipfile.ZipFile(path) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    widths = _element_widths(pickled)

    def swap(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        width = widths.get(name.removeprefix("data/"), 1) if name.startswith("data/") else 1
        return b"".join(data[start : start + width][::-1] for start in range(0, len(data), width))

    return rewritten(path, swap)


def _element_widths(pickled: bytes) -> dict[str, int]:
    """Bytes per element of each storage, by the storage types the pickle names."""
    widths: dict[str, int] = {}

    class Reader(pickle.Unpickler):
        def persistent_load(self, pid: tuple[str, type, str, str, int]) -> object:
            _, kind, key, _, count = pid
            dtype = kind.dtype
            widths[key] = dtype.itemsize
            return torch.storage.TypedStorage(
                wrap_storage=torch.UntypedStorage(count * dtype.itemsize), dtype=dtype, _internal=True
            )

    Reader(io.BytesIO(pickled)).load()
    return widths


def on_cuda(path: Path) -> Path:
    """The file as saved from a GPU: the same bytes, under another location."""

    def relocate(name: str, data: bytes) -> bytes:
        if name != "data.pkl":
            return data
        assert data.count(b"X\x03\x00\x00\x00cpu") == 1, "the location is written once and remembered"
        return data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")

    return rewritten(path, relocate)
