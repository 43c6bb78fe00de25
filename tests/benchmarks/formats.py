"""What the audit of one network costs in every format PyTorch writes, beside the library's own loader.

    python tests/benchmarks/formats.py            # transformers' ResNet-50, 26 million weights
    python tests/benchmarks/formats.py --small    # a network of a few hundred kilobytes, to see that it runs

The files are written on the spot and deleted. Pairs of whole processes; the median of their ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

from tests.benchmarks.pairs import Pairs, largest_peak, median_wall, paired  # noqa: E402
from tests.benchmarks.static_audit import audit_command, environment  # noqa: E402

_TORCH = "import torch, sys; torch.load(sys.argv[1], mmap=True)"
_TORCH_COPY = "import torch, sys; torch.load(sys.argv[1])"
# A whole module cannot be loaded but by running it, and only where its class is installed.
_TORCH_MODULE = "import torch, transformers, sys; torch.load(sys.argv[1], weights_only=False, mmap=True)"
_TORCH_MODULE_COPY = "import torch, transformers, sys; torch.load(sys.argv[1], weights_only=False)"
_SCRIPT = "import torch, sys; torch.jit.load(sys.argv[1])"
_EXPORTED = "import torch, sys; torch.export.load(sys.argv[1])"
_SAFETENSORS = "import sys; from safetensors.torch import load_file; load_file(sys.argv[1])"
_SHARDED = (
    "import json, os, sys; from safetensors.torch import load_file; folder = os.path.dirname(sys.argv[1]); "
    "[load_file(os.path.join(folder, name)) for name in set(json.load(open(sys.argv[1]))['weight_map'].values())]"
)

# File → the least a gate built on the library would run.
LOADERS = {
    "state-dict.pt": _TORCH,
    "module.pt": _TORCH_MODULE,
    "legacy-state-dict.pt": _TORCH_COPY,
    "legacy-module.pt": _TORCH_MODULE_COPY,
    "traced.pt": _SCRIPT,
    "exported.pt2": _EXPORTED,
    "model.safetensors": _SAFETENSORS,
    "sharded/model.safetensors.index.json": _SHARDED,
}


def write_all(folder: str, *, small: bool) -> None:
    """One trained-looking network in every format."""
    import torch
    from safetensors.torch import save_file
    from transformers import ResNetConfig, ResNetForImageClassification

    tiny = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
    network = ResNetForImageClassification(ResNetConfig(**(tiny if small else {})))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        for _ in range(60):  # 0.9 ** 60 = 0.2 % of the initial moments are left
            network(images)
    network.eval()
    state = network.state_dict()
    torch.save(state, f"{folder}/state-dict.pt")
    torch.save(network, f"{folder}/module.pt")
    torch.save(state, f"{folder}/legacy-state-dict.pt", _use_new_zipfile_serialization=False)
    torch.save(network, f"{folder}/legacy-module.pt", _use_new_zipfile_serialization=False)
    save_file(state, f"{folder}/model.safetensors")
    network.save_pretrained(f"{folder}/sharded", max_shard_size="4KB" if small else "30MB")
    network.config.return_dict = False  # torch.export.load knows no class of outputs
    torch.jit.trace(network, images, check_trace=False, strict=False).save(f"{folder}/traced.pt")
    torch.export.save(torch.export.export(network, (images,)), f"{folder}/exported.pt2")


def layers_in(path: str) -> int:
    """Normalisation layers the reader finds."""
    from bncheck.readers import read

    return len(read(path).layers)


@dataclass(frozen=True, slots=True)
class Measured:
    """One format: the audit (first of each pair) beside the library's loader (second)."""

    name: str
    size: int
    layers: int
    pairs: Pairs


def measure(folder: str, *, small: bool, pairs: int) -> list[Measured]:
    """Write the files and measure each."""
    # In a process of its own: this one must stay small (pairs.Run.peak).
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:
        elsewhere.submit(write_all, folder, small=small).result()
        layers = {name: elsewhere.submit(layers_in, f"{folder}/{name}").result() for name in LOADERS}
    measured = []
    for name, loader in LOADERS.items():
        path = f"{folder}/{name}"
        loading = (sys.executable, "-c", loader, path)
        timed = paired(audit_command(path), loading, pairs, environment(), warm_ups=0 if small else 1)
        measured.append(Measured(name, _size(path), layers[name], timed))
    return measured


def _size(path: str) -> int:
    """Bytes of the file, or of the folder of shards that an index lies in."""
    if not path.endswith(".json"):
        return os.path.getsize(path)
    folder = os.path.dirname(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="What the audit costs in every format.")
    parser.add_argument("--small", action="store_true", help="a network of a few hundred kilobytes")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each format")
    parser.add_argument("--folder", help="where to write the files (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = measure(folder, small=options.small, pairs=options.pairs)
    print(f"{'format':<40}{'MB':>8}{'layers':>8}{'audit s':>9}{'loader s':>10}{'ratio':>8}{'peak MB':>9}{'loader':>8}")
    for row in measured:
        print(
            f"{row.name:<40}{row.size / 1e6:>8.1f}{row.layers:>8}"
            f"{median_wall(row.pairs.first):>9.2f}{median_wall(row.pairs.second):>10.2f}{row.pairs.ratio:>8.2f}"
            f"{largest_peak(row.pairs.first) / 1e6:>9.0f}{largest_peak(row.pairs.second) / 1e6:>8.0f}"
        )


if __name__ == "__main__":
    main()
