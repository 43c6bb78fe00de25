"""The files mutations begin with: small ones of every kind, written by the libraries the formats belong to.

    python -m tests.fuzzing.seeds FOLDER

writes ``FOLDER/<kind>/<name>``. A process of its own, because whoever reads mutated files must not have torch loaded.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from tests.process import ROOT
from tests.readers.torch_files import FEATURES, AveragedCopy, FrozenBatchNorm2d, HidesInList, Net, Settings, filled

Files = Iterator[tuple[str, bytes]]


def _saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def small(faulty: bool = False) -> nn.Sequential:
    """The smallest network of interest: a convolution, two norms, numbers in all of them.

    Args:
        faulty: with a variance that rules call an error.
    """
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.03, affine=False))
    filled(network, seed=1)
    if faulty:
        network[1].running_var[1:] = -1.0
    return network.eval()


def _trained() -> dict[str, object]:
    network = small().train()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 2, 3, 3)).square().sum().backward()
    optimizer.step()
    copy = deepcopy(network.state_dict())
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "ema": copy, "epoch": 3, "name": "é"}


def _views() -> dict[str, torch.Tensor]:
    """Norms whose tensors are columns, slices and reversed axes of shared storages."""
    table = torch.randn(6, 4)
    state = {
        "a.running_mean": table[:, 1],
        "a.running_var": table[:, 2].abs(),
        "a.weight": table[1],
        "a.bias": table[2],
    }
    flat = torch.arange(1.0, 40.0)
    state |= {"b.running_mean": flat[3:9], "b.running_var": flat[::4][:6], "b.num_batches_tracked": torch.tensor(7)}
    return state


def torch_zip() -> Files:
    """What ``torch.save`` writes now."""
    torch.manual_seed(0)
    for protocol in (2, 3, 4, 5):
        yield f"state-dict-{protocol}", _saved(small().state_dict(), pickle_protocol=protocol)
        yield f"module-{protocol}", _saved(small(), pickle_protocol=protocol)
    yield "faulty", _saved(small(faulty=True).state_dict())
    yield "faulty-module", _saved(small(faulty=True).train())
    yield "net", _saved(filled(Net()))
    yield "trained", _saved(_trained())
    yield "views", _saved(_views())
    yield "half", _saved(small().half().state_dict())
    yield "bfloat16", _saved(small().bfloat16().state_dict())
    yield "double", _saved({f"module.{name}": value for name, value in small().double().state_dict().items()})
    yield "list", _saved({"nets": [HidesInList(), nn.LazyBatchNorm1d()], "ema": AveragedCopy(small())})
    frozen = defaultdict(list, net=filled(FrozenBatchNorm2d(FEATURES)), args=Settings(), size=torch.Size([2, 3]))
    yield "frozen", _saved(frozen)
    yield "sparse", _saved({"w": torch.eye(3).to_sparse(), **small().state_dict()})


def safetensors_file() -> Files:
    """What safetensors writes."""
    yield "state-dict", safetensors.torch.save(small().state_dict())
    yield "faulty", safetensors.torch.save(small(faulty=True).state_dict(), {"format": "pt", "note": "é"})
    yield "net", safetensors.torch.save(filled(Net()).state_dict(), {"format": "pt"})
    yield "half", safetensors.torch.save({f"module.{k}": v for k, v in small().half().state_dict().items()})
    yield "nothing", safetensors.torch.save({"empty": torch.zeros(0, 3), "bn.running_mean": torch.zeros(0)})


def torch_legacy() -> Files:
    """What ``torch.save`` wrote until 1.5, and writes when asked to."""
    torch.manual_seed(0)
    for name, value in (
        *(("state-dict", small().state_dict()), ("module", small()), ("net", filled(Net())), ("trained", _trained())),
        *(("faulty", small(faulty=True).state_dict()), ("views", _views()), ("half", small().half().state_dict())),
        ("ema", {"ema": AveragedCopy(small()), "sparse": torch.eye(3).to_sparse()}),
    ):
        yield name, _saved(value, _use_new_zipfile_serialization=False)
    yield "protocol-4", _saved(small(), _use_new_zipfile_serialization=False, pickle_protocol=4)


def torch_tar() -> Files:
    """What ``torch.save`` wrote before 0.1.10."""
    sys.path.insert(0, str(ROOT / "fixtures"))
    from tar_writer import TarMembers, packed

    for name, value in (("state-dict", small().state_dict()), ("module", small()), ("faulty", small(faulty=True))):
        yield name, packed(TarMembers(value).members)
    yield "views", packed(TarMembers(small().state_dict(), views=True).members)


class _Asks(nn.Module):
    """Calls its norm in a branch, twice, and with a flag of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 1:
            x = self.bn(x)
        for norm in self.norms:
            x = norm(x)
        return nn.functional.batch_norm(x, self.bn.running_mean, self.bn.running_var, training=self.training)


_INPUT = torch.ones(2, 2, 3, 3)


def torchscript() -> Files:
    """What ``torch.jit.save`` writes."""
    for name, network in (
        ("scripted", torch.jit.script(small())),
        ("scripted-training", torch.jit.script(small().train())),
        ("traced", torch.jit.trace(small(), _INPUT)),
        ("traced-training", torch.jit.trace(small(faulty=True).train(), _INPUT, check_trace=False)),
        ("frozen", torch.jit.freeze(torch.jit.script(nn.Sequential(nn.ReLU(), *small()[1:]).eval()))),
        ("asks", torch.jit.script(filled(_Asks()))),
    ):
        buffer = io.BytesIO()
        torch.jit.save(network, buffer)
        yield name, buffer.getvalue()


def pt2() -> Files:
    """What ``torch.export.save`` writes."""
    from tests.readers.exported_files import written_as_2_7, written_as_2_8

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        for name, network in (("eval", small()), ("training", small(faulty=True).train())):
            program = torch.export.export(network, (_INPUT,))
            torch.export.save(program, path)
            yield name, path.read_bytes()
        for version, write in (("2.7", written_as_2_7), ("2.8", written_as_2_8)):
            yield f"{name}-{version}", write(program, path).read_bytes()


_PARTS = (slice(0, 5), slice(5, None))


def _shards(suffix: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    entries = list(small(faulty=True).state_dict().items())
    for number, part in enumerate(_PARTS):
        yield f"part-{number}.{suffix}", dict(entries[part])


def shards() -> Files:
    """The files that lie beside an index."""
    for name, tensors in _shards("safetensors"):
        yield name, safetensors.torch.save(tensors)
    for name, tensors in _shards("bin"):
        yield name, _saved(tensors)


def shard_index() -> Files:
    """Indices as Hugging Face's libraries write them."""
    for suffix in ("safetensors", "bin"):
        weight_map = {name: file for file, tensors in _shards(suffix) for name in tensors}
        yield suffix, json.dumps({"metadata": {"total_size": 212}, "weight_map": weight_map}, indent=2).encode()


SEEDS: dict[str, Callable[[], Files]] = {
    "torch-zip": torch_zip,
    "safetensors": safetensors_file,
    "torch-legacy": torch_legacy,
    "torch-tar": torch_tar,
    "torchscript": torchscript,
    "pt2": pt2,
    "shard-index": shard_index,
    "shards": shards,
}


def write_seeds(folder: Path, kinds: frozenset[str]) -> None:
    """Write the seeds of some kinds; a seed that cannot be written is an error, never left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in sorted(kinds):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for name, data in SEEDS[kind]():
                (folder / kind / name).write_bytes(data)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]), frozenset(sys.argv[2:]) or frozenset(SEEDS))
