"""A network, the files torch writes of it, and moments to write into them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bncheck.core.checkpoint import Checkpoint
from bncheck.patch import NewMoments, PatchRecord, patch_file
from bncheck.readers import read
from tests.readers.torch_files import filled

FEATURES = 6
STEPS = 4711


class Classifier(nn.Module):
    """Batch norms of both kinds, beside layers that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, FEATURES, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(FEATURES)
        self.head = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, eps=1e-3), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.bn1(self.conv(images))).mean((2, 3)))


def classifier(dtype: torch.dtype = torch.float32) -> Classifier:
    """The network in eval mode, every number of it drawn at random."""
    net = filled(Classifier()).to(dtype).eval()
    assert isinstance(net, Classifier)
    return net


def images() -> Tensor:
    """A batch for it."""
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def moments_for(features: int, seed: int = 0) -> NewMoments:
    """Moments of one layer, drawn at random."""
    generator = np.random.default_rng(seed)
    return NewMoments(generator.normal(0, 3, features), generator.lognormal(0, 2, features), STEPS + seed)


def moments_of(checkpoint: Checkpoint, group: str = "model") -> dict[str, NewMoments]:
    """New moments for every layer of a copy of the network that has any."""
    layers = [layer for layer in checkpoint.layers if layer.group == group and layer.has_running_statistics]
    return {layer.full_name: moments_for(layer.num_features or 0, seed) for seed, layer in enumerate(layers)}


def set_in(module: nn.Module, moments: Mapping[str, NewMoments]) -> None:
    """Put moments into the live network in place, by torch's own conversion from float64."""
    buffers = dict(module.named_buffers())
    for name, new in moments.items():
        set_buffers(buffers, f"{name}." if name != "(root)" else "", new)


def set_buffers(buffers: Mapping[str, Tensor], prefix: str, new: NewMoments) -> None:
    """Likewise, into tensors by name."""
    with torch.no_grad():
        buffers[f"{prefix}running_mean"].copy_(torch.from_numpy(new.mean))
        buffers[f"{prefix}running_var"].copy_(torch.from_numpy(new.var))
        buffers[f"{prefix}num_batches_tracked"].fill_(new.num_batches_tracked)


def patched(path: Path, moments: Mapping[str, NewMoments] | None = None) -> tuple[Path, PatchRecord]:
    """The file with new moments, in a folder of its own, and the record of it."""
    checkpoint = read(str(path))
    output = path.parent / "patched" / path.name
    output.parent.mkdir(exist_ok=True)
    return output, patch_file(
        checkpoint, moments_of(checkpoint) if moments is None else moments, str(output), force=True
    )


def stored_members(path: Path) -> dict[str, bytes]:
    """Every member of an archive by name; Python's own reader compares each with its checksum."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def changed_positions(one: bytes, other: bytes) -> set[int]:
    """Where two files of one length differ."""
    assert len(one) == len(other)
    return set(np.flatnonzero(np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).tolist())


def names(layers: Iterable[str]) -> set[str]:
    """The tensors of these layers that are written."""
    return {f"{layer}.{leaf}" for layer in layers for leaf in ("running_mean", "running_var", "num_batches_tracked")}
