"""What the static audit costs beside loading the file with torch: time, memory, bytes read.

    python tests/benchmarks/static_audit.py                    # a ResNet-50 state dict, and a checkpoint of 2 GB
    python tests/benchmarks/static_audit.py --size-gb 8        # the same with a larger checkpoint
    python tests/benchmarks/static_audit.py --startup          # also: which imports the audit's start-up goes into
    python tests/benchmarks/static_audit.py --small --pairs 1  # files of a few megabytes, to see that it runs

The files are written on the spot and deleted. No figure is an error, whatever it is: a machine's load decides too
much of it. Targets stand beside the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

from tests.benchmarks.pairs import Pairs, largest_peak, median_cpu, median_wall, paired  # noqa: E402

RATIO_TARGET = 0.2
PEAK_TARGET = 90e6
GROWTH_TARGET = (0.7, 1.3)

_STEPS = 5000
# weights_only is torch's default; mmap=True leaves the tensors' bytes on disk, so that this is torch at its cheapest.
_TORCH_LOAD = "import torch, sys; torch.load(sys.argv[1], mmap=True)"


# --- files -------------------------------------------------------------------------------------------------


def resnet50_shapes(width: float = 1.0, kernel: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a ResNet-50 state dict as torchvision writes it: 53 batch norms, 320 tensors.

    Args:
        width: factor on every channel count.
        kernel: size of the 3×3 convolutions: it changes the file's size and leaves every batch norm as it is.
    """

    def channels(count: int) -> int:
        return max(4, 4 * round(count * width / 4))

    def norm(name: str, features: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{leaf}", (features,)
        yield f"{name}.num_batches_tracked", ()

    into = channels(64)
    yield "conv1.weight", (into, 3, 7, 7)
    yield from norm("bn1", into)
    for stage, (blocks, count) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        inner, outer = channels(count), channels(4 * count)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (inner, into, 1, 1)
            yield from norm(f"{name}.bn1", inner)
            yield f"{name}.conv2.weight", (inner, inner, kernel, kernel)
            yield from norm(f"{name}.bn2", inner)
            yield f"{name}.conv3.weight", (outer, inner, 1, 1)
            yield from norm(f"{name}.bn3", outer)
            if block == 0:
                yield f"{name}.downsample.0.weight", (outer, into, 1, 1)
                yield from norm(f"{name}.downsample.1", outer)
            into = outer
    yield "fc.weight", (1000, into)
    yield "fc.bias", (1000,)


def _is_parameter(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


def width_for(size: float) -> float:
    """The width at which weights and Adam's two moments take at least ``size`` bytes, and little more."""

    def weights(width: float) -> int:
        return sum(math.prod(shape) for name, shape in resnet50_shapes(width) if _is_parameter(name))

    # They grow a little slower than with the width's square: the last layer always has 1000 classes.
    width = math.sqrt(size / (3 * 4 * weights(1.0)))
    while 3 * 4 * weights(width) < size:
        width *= 1.01
    return width


def write_state_dict(path: str, width: float = 1.0, kernel: int = 3) -> None:
    """A ResNet-50 whose moments look trained, saved as ``torch.save(model.state_dict(), path)`` would."""
    import torch

    torch.save(_state_dict(width, kernel), path)


def write_checkpoint(path: str, width: float, kernel: int = 3) -> None:
    """The same with Adam's state and an epoch, as training scripts save it."""
    import torch

    model = _state_dict(width, kernel)
    parameters = {name: value for name, value in model.items() if _is_parameter(name)}
    optimizer = torch.optim.Adam([torch.nn.Parameter(value) for value in parameters.values()]).state_dict()
    # Nobody looks at the moments' values: zeros cost no memory while the file is written.
    optimizer["state"] = {
        index: {
            "step": torch.tensor(float(_STEPS)),
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
        }
        for index, value in enumerate(parameters.values())
    }
    torch.save({"model": model, "optimizer": optimizer, "epoch": 90}, path)


def _state_dict(width: float, kernel: int) -> dict[str, object]:
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, object] = {}
    for name, shape in resnet50_shapes(width, kernel):
        leaf = name.rpartition(".")[2]
        normal = torch.randn(shape, generator=generator)
        if leaf == "num_batches_tracked":
            tensors[name] = torch.tensor(_STEPS)
        elif leaf == "running_mean" or leaf == "bias":
            tensors[name] = normal * 0.3
        elif leaf == "running_var":
            tensors[name] = torch.exp(normal * 0.5)
        elif len(shape) == 1:
            tensors[name] = 1.0 + normal * 0.1
        else:
            tensors[name] = normal.mul_(math.sqrt(2.0 / math.prod(shape[1:])))
    return tensors


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BytesRead:
    """What the audit takes from a file: all of it, and the pickle, which grows with the number of tensors."""

    total: int
    pickle: int


def bytes_read(path: str) -> BytesRead:
    """Count what the reader asks its file for; it has no other way to the bytes."""
    from unittest.mock import patch

    from bncheck.readers import read
    from bncheck.readers.source import FileSource

    lengths: list[int] = []
    original = FileSource.read_at

    def counted(source: FileSource, offset: int, length: int) -> bytes:
        lengths.append(length)
        return original(source, offset, length)

    with patch.object(FileSource, "read_at", counted):
        read(path)
    with zipfile.ZipFile(path) as archive:
        pickles = [entry.file_size for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
    return BytesRead(sum(lengths), sum(pickles))


@dataclass(frozen=True, slots=True)
class Measured:
    """One file: the audit (first of each pair) beside torch's loading (second)."""

    label: str
    size: int
    read: BytesRead
    pairs: Pairs


def audit_command(path: str) -> tuple[str, ...]:
    """The whole process, as a gate runs it."""
    return sys.executable, "-m", "bncheck", "audit", path


def torch_command(path: str) -> tuple[str, ...]:
    """The least a gate built on torch would run."""
    return sys.executable, "-c", _TORCH_LOAD, path


def environment() -> dict[str, str]:
    """This process's, with the project's own package in reach."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # An installed package is compiled once, as torch is here; a source tree in a shell that forbids it would not be.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths)}


def measure(folder: str, *, small: bool, size: float, pairs: int) -> tuple[Measured, Measured, Pairs]:
    """Write both files and measure them; the third result is the audit of the second beside that of the first."""
    model, checkpoint = os.path.join(folder, "resnet50.pt"), os.path.join(folder, "checkpoint.pt")
    # In a process of its own: this one must stay small (pairs.Run.peak).
    warm_ups = 0 if small else 1
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:
        elsewhere.submit(write_state_dict, model, 0.25 if small else 1.0).result()
        elsewhere.submit(write_checkpoint, checkpoint, 0.25 if small else width_for(size)).result()
        read = [elsewhere.submit(bytes_read, path).result() for path in (model, checkpoint)]
    labelled = zip(("ResNet-50 state dict", "Adam checkpoint"), (model, checkpoint), read, strict=True)
    measured = [
        Measured(
            label,
            os.path.getsize(path),
            counted,
            paired(audit_command(path), torch_command(path), pairs, environment(), warm_ups),
        )
        for label, path, counted in labelled
    ]
    growth = paired(audit_command(checkpoint), audit_command(model), pairs, environment(), warm_ups)
    return measured[0], measured[1], growth


def imports_by_self_time(path: str) -> list[tuple[str, float]]:
    """Modules the audit imports and the seconds each takes without what it imports in turn, longest first."""
    command = (sys.executable, "-X", "importtime", *audit_command(path)[1:])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    found: list[tuple[str, float]] = []
    for line in done.stderr.splitlines():
        own, _, rest = line.removeprefix("import time:").partition("|")
        if line.startswith("import time:") and own.strip().isdecimal():
            found.append((rest.partition("|")[2].strip(), int(own) / 1e6))
    return sorted(found, key=lambda entry: -entry[1])


# --- telling -----------------------------------------------------------------------------------------------

Row = tuple[str, str, str]


def rows(model: Measured, checkpoint: Measured, growth: Pairs) -> list[Row]:
    """What was measured, the figure, its target."""
    table: list[Row] = []
    for measured in (model, checkpoint):
        pairs = measured.pairs
        table.append((f"{measured.label}, {_bytes(measured.size)}", "", ""))
        for name, runs in (("audit", pairs.first), ("torch.load", pairs.second)):
            table.append((f"  {name}: wall, CPU", f"{median_wall(runs):.2f} s, {median_cpu(runs):.2f} s", ""))
            target = f"<= {_bytes(PEAK_TARGET)}" if name == "audit" else ""
            table.append((f"  {name}: peak memory", _bytes(largest_peak(runs)), target))
        target = f"<= {RATIO_TARGET}" if measured is model else ""
        table.append(("  audit / torch.load, wall", _ratio(pairs), target))
        read = f"{_bytes(measured.read.total)} ({_bytes(measured.read.pickle)} pickle)"
        table.append(("  bytes the audit reads", read, ""))
    table.append(("checkpoint / state dict, audit's wall", _ratio(growth), "{} to {}".format(*GROWTH_TARGET)))
    return table


def _ratio(pairs: Pairs) -> str:
    return f"{pairs.ratio:.2f} ({min(pairs.ratios):.2f} to {max(pairs.ratios):.2f})"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def startup_lines(imports: Sequence[tuple[str, float]]) -> Iterator[str]:
    """The longest imports, and the sums over the packages they belong to."""
    if not imports:
        return
    packages: dict[str, list[float]] = {}
    for module, own in imports:
        top = module.partition(".")[0]
        packages.setdefault("standard library" if top in sys.stdlib_module_names else top, []).append(own)
    yield f"\nimports: {len(imports)} modules, {sum(own for _, own in imports):.2f} s under -X importtime"
    for module, own in imports[:12]:
        yield f"{own * 1e3:8.1f} ms  {module}"
    yield "by package:"
    for package, times in sorted(packages.items(), key=lambda entry: -sum(entry[1]))[:8]:
        yield f"{sum(times) * 1e3:8.1f} ms  {package} ({len(times)} modules)"


def summary(model: Measured, checkpoint: Measured, growth: Pairs) -> dict[str, object]:
    """The same for programs; sizes in bytes, ratios of wall seconds pair by pair."""
    return {
        **{
            name: {
                "size": measured.size,
                "bytes_read": measured.read.total,
                "pickle": measured.read.pickle,
                "ratios": measured.pairs.ratios,
                "audit_codes": [run.code for run in measured.pairs.first],
                "torch_codes": [run.code for run in measured.pairs.second],
                "audit_peak": largest_peak(measured.pairs.first),
                "torch_peak": largest_peak(measured.pairs.second),
            }
            for name, measured in (("model", model), ("checkpoint", checkpoint))
        },
        "growth": growth.ratios,
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="What the static audit costs beside torch.load.")
    parser.add_argument("--small", action="store_true", help="files of a few megabytes")
    parser.add_argument("--size-gb", type=float, default=2.0, help="size of the training checkpoint")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs for each ratio")
    parser.add_argument("--startup", action="store_true", help="also show the imports that take longest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--folder", help="where to write the files (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measured = measure(folder, small=options.small, size=options.size_gb * 1e9, pairs=options.pairs)
        imports = imports_by_self_time(os.path.join(folder, "resnet50.pt")) if options.startup else []
    print(f"{'':<42}{'median of ' + str(options.pairs):<32}target")
    for name, figure, target in rows(*measured):
        print(f"{name:<42}{figure:<32}{target}".rstrip())
    for line in startup_lines(imports):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(summary(*measured)), encoding="utf-8")


if __name__ == "__main__":
    main()
