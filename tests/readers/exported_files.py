"""Networks for torch.export, and the archives each version of torch writes of them.

The classes live here, so that graphs name a module that a test can look up.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import serialize
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import PT2ArchiveWriter
from torch.nn import functional

from tests.readers.torch_files import OwnBatchNorm, rewritten

FEATURES = 4
IMAGES = (3, FEATURES, 6, 6)


class Everything(nn.Module):
    """Every kind of layer that has running moments, or could have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(FEATURES, FEATURES, 1)
        self.bn = nn.BatchNorm2d(FEATURES)
        self.block = nn.Sequential(nn.Conv2d(FEATURES, FEATURES, 1), nn.BatchNorm2d(FEATURES, 1e-3, 0.01), nn.ReLU())
        self.own = OwnBatchNorm(FEATURES)
        self.bare = nn.BatchNorm2d(FEATURES, affine=False, track_running_stats=False)
        self.plain = nn.BatchNorm2d(FEATURES, affine=False)
        self.untracked = nn.BatchNorm2d(FEATURES, track_running_stats=False)
        self.group = nn.GroupNorm(2, FEATURES)
        self.instance = nn.InstanceNorm2d(FEATURES)
        self.tracked_instance = nn.InstanceNorm2d(FEATURES, momentum=0.3, affine=True, track_running_stats=True)
        self.sync = nn.SyncBatchNorm(FEATURES)
        self.unused = nn.BatchNorm2d(FEATURES + 1)
        self.volume = nn.BatchNorm3d(FEATURES)
        self.instance3 = nn.InstanceNorm3d(FEATURES, affine=True)
        self.fc = nn.Linear(FEATURES, FEATURES)
        self.bn1 = nn.BatchNorm1d(FEATURES, eps=0.1)
        self.instance1 = nn.InstanceNorm1d(FEATURES, track_running_stats=True)

    def forward(self, images: Tensor) -> Tensor:
        features = self.block(self.bn(self.conv(images)))
        features = self.plain(self.bare(self.own(features)))  # in another order than they were made
        features = self.group(self.untracked(features))
        features = self.tracked_instance(self.instance(features))
        features = self.sync(features) if not self.training else features  # it trains on GPUs alone
        volume = self.instance3(self.volume(features.unsqueeze(2)))
        vectors = self.bn1(self.fc(volume.mean((2, 3, 4))))
        return self.instance1(vectors.unsqueeze(2).expand(-1, -1, 5))


class Shared(nn.Module):
    """One layer under two names, called three times, and a last one before it in the list."""

    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.last = nn.BatchNorm2d(FEATURES, affine=affine)
        self.first = nn.BatchNorm2d(FEATURES, affine=affine)
        self.alias = self.first

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.alias(self.first(self.first(images) + 1) + 2))


class Whitener(nn.Module):
    """Batch norm of buffers with names of their own, in a class whose name says nothing."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", 0.0), ("var", 1.0), ("gain", 1.0), ("offset", 0.0)):
            self.register_buffer(name, torch.full((FEATURES,), value))

    def forward(self, images: Tensor) -> Tensor:
        return functional.batch_norm(
            images, self.mean, self.var, self.gain, self.offset, self.training, momentum=0.05, eps=0.01
        )


class ByHand(nn.Module):
    """Calls of ``functional.batch_norm`` on tensors of all sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = Whitener()
        self.register_buffer("middle", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.register_buffer("passing", torch.zeros(FEATURES), persistent=False)
        self.constant = torch.ones(FEATURES)
        self.bn = nn.BatchNorm2d(FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.whiten(images)
        features = functional.batch_norm(features, self.middle, self.spread)
        features = functional.batch_norm(features, self.passing, self.constant)
        features = functional.batch_norm(features, self.middle, self.spread, training=True)
        bn = self.bn
        features = functional.batch_norm(features, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training)
        features = functional.batch_norm(features, None, None, training=True)
        return functional.instance_norm(features)


class Branches(nn.Module):
    """Layers in nested graphs: both sides of ``cond``, under ``no_grad`` and autocast, and in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.yes = nn.BatchNorm2d(FEATURES)
        self.no = nn.BatchNorm2d(FEATURES)
        self.calm = nn.BatchNorm2d(FEATURES)
        self.cast = nn.BatchNorm2d(FEATURES)
        self.looped = nn.BatchNorm2d(FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.cond(images.sum() > 0, lambda x: self.yes(x), lambda x: self.no(x) + 1, (images,))
        with torch.no_grad():
            features = self.calm(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.cast(features)
        loop = torch._higher_order_ops.while_loop
        return loop(lambda i, x: i < 2, lambda i, x: (i + 1, self.looped(x)), (torch.tensor(0), features))[1]


class DomainBatchNorm(nn.Module):
    """One module that keeps moments for each of two domains, under names of its own."""

    def __init__(self) -> None:
        super().__init__()
        for domain in ("day", "night"):
            self.register_buffer(f"{domain}_mean", torch.zeros(FEATURES))
            self.register_buffer(f"{domain}_var", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        day = functional.batch_norm(images, self.day_mean, self.day_var)
        return functional.batch_norm(day, self.night_mean, self.night_var)


class InstanceSegmenter(nn.Module):
    """Not an instance norm: its name deceives."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        return functional.batch_norm(images, self.running_mean, self.running_var, training=True)


class BatchStyler(nn.Module):
    """An instance norm, whatever its name says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        return functional.instance_norm(images, self.running_mean, self.running_var)


class FrozenLakeNet(InstanceSegmenter):
    """Not frozen either."""


class AdaptiveInstanceNorm2d(nn.Module):
    """Instance norm written as batch norm of one sample: https://github.com/NVlabs/MUNIT/blob/master/networks.py."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(FEATURES))
        self.register_buffer("running_var", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> Tensor:
        samples, channels = images.shape[:2]
        folded = images.contiguous().view(1, samples * channels, *images.shape[2:])
        mean, variance = self.running_mean.repeat(samples), self.running_var.repeat(samples)
        return functional.batch_norm(folded, mean, variance, training=True).view(images.shape)


class FrozenBatchNorm2d(nn.Module):
    """Moments that are constants, applied by plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((FEATURES,), value))

    def forward(self, images: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return images * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


# --- files -------------------------------------------------------------------------------------------------


def written(program: ExportedProgram, path: Path) -> Path:
    """The layout of torch 2.9 and later, by torch itself."""
    torch.export.save(program, path)
    return path


def written_as_2_8(program: ExportedProgram, path: Path) -> Path:
    """The layout of torch 2.8, line by line.

    https://github.com/pytorch/pytorch/blob/v2.8.0/torch/export/pt2_archive/_package.py (_package_exported_programs)
    """
    artifact = serialize(program)
    with PT2ArchiveWriter(str(path)) as archive:
        archive.write_bytes("models/model.json", artifact.exported_program)
        archive.write_bytes("data/weights/model.pt", artifact.state_dict)
        archive.write_bytes("data/constants/model.pt", artifact.constants)
        archive.write_bytes("data/sample_inputs/model.pt", artifact.example_inputs)
    return path


def written_as_2_7(program: ExportedProgram, path: Path) -> Path:
    """The layout of torch 2.3 to 2.7, line by line.

    https://github.com/pytorch/pytorch/blob/v2.7.1/torch/export/__init__.py (save)
    """
    artifact = serialize(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", artifact.state_dict)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
    return path


LAYOUTS: tuple[Callable[[ExportedProgram, Path], Path], ...] = (written, written_as_2_8, written_as_2_7)


def with_graph(path: Path, change: Callable[[dict], object]) -> Path:
    """The file again, its JSON changed in place."""

    def edit(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return rewritten(path, edit)


def without_metadata(program: dict) -> None:
    """Takes all that a graph says of its origin: what is left is what it needs to run."""
    for node in program["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    program["graph_module"]["module_call_graph"] = []


def as_big_endian(path: Path) -> Path:
    """The file as a big-endian machine writes it: every stored number swapped, and a word that says so."""
    with zipfile.ZipFile(path) as archive:
        [config] = [name for name in archive.namelist() if name.endswith("model_weights_config.json")]
        payloads = json.loads(archive.read(config))["config"].values()
    widths = {entry["path_name"]: {5: 8, 7: 4}[entry["tensor_meta"]["dtype"]] for entry in payloads}

    def swap(name: str, data: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        width = widths.get(name.removeprefix("data/weights/"), 1)
        return b"".join(data[start : start + width][::-1] for start in range(0, len(data), width))

    return rewritten(path, swap)
