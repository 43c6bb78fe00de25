"""What the audit fetches of a file behind a URL, beside auditing the same file on a disk.

    python tests/benchmarks/remote_audit.py                # files of 500 MB, 50 milliseconds to each answer
    python tests/benchmarks/remote_audit.py --size-gb 2    # the same with larger files
    python tests/benchmarks/remote_audit.py --small        # files of a few megabytes, to see that it runs

The files are written on the spot, served by this process, audited by another, and deleted. Bytes and requests are
counted by the server and depend on no machine's speed; seconds and memory are of the whole process, cold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

from tests.benchmarks.pairs import run  # noqa: E402
from tests.benchmarks.static_audit import (  # noqa: E402
    audit_command,
    environment,
    width_for,
    write_checkpoint,
    write_state_dict,
)
from tests.range_server import serving  # noqa: E402

SHARE_TARGET = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """One file, audited by URL and by path.

    Attributes:
        label: what the file is.
        size: in bytes.
        fetched: bytes the server sent.
        requests: answers of the server.
        seconds: of the audit by URL, from start to end of its process.
        local_seconds: of the audit by path.
        peak: largest resident set of the audit by URL, in bytes.
    """

    label: str
    size: int
    fetched: int
    requests: int
    seconds: float
    local_seconds: float
    peak: int

    @property
    def share(self) -> float:
        """Of the file that was fetched."""
        return self.fetched / self.size


def write_safetensors(path: str, width: float) -> None:
    """A ResNet-50's state dict as ``safetensors.torch.save_file`` writes it."""
    import safetensors.torch
    import torch

    pickled = f"{path}.pt"
    write_state_dict(pickled, width)
    safetensors.torch.save_file(torch.load(pickled), path)
    os.remove(pickled)


def measure(folder: Path, *, small: bool, size: float, delay: float) -> list[Measured]:
    """Write the files, serve them, and audit each by URL and by path."""
    # Weights alone take a third of what they take with Adam's two moments.
    writers = (
        ("Adam checkpoint", "checkpoint.pt", write_checkpoint, 0.25 if small else width_for(size)),
        ("safetensors state dict", "model.safetensors", write_safetensors, 0.25 if small else width_for(3 * size)),
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as elsewhere:
        for _, name, write, its_width in writers:
            elsewhere.submit(write, str(folder / name), its_width).result()
    environ = {**environment(), "NO_PROXY": "127.0.0.1"}
    measured: list[Measured] = []
    with serving(folder, delay=delay) as server:
        for label, name, _, _ in writers:
            url, path = f"{server.url}/{name}", str(folder / name)
            run(audit_command(url), environ)  # fills the file and bytecode caches
            local = run(audit_command(path), environ)
            server.log.sent.clear()
            far = run(audit_command(url), environ)
            size_there = os.path.getsize(path)
            measured.append(
                Measured(label, size_there, server.log.bytes, server.log.requests, far.wall, local.wall, far.peak)
            )
    return measured


def table(measured: Sequence[Measured]) -> Iterator[str]:
    """Lines to print."""
    titles = ("file", "size", "fetched", "share", "requests", "by URL", "by path", "peak memory")
    layout = "{:<24}{:>9}{:>10}{:>9}{:>10}{:>9}{:>9}{:>13}"
    yield layout.format(*titles)
    for each in measured:
        yield layout.format(
            each.label,
            f"{each.size / 1e6:.0f} MB",
            f"{each.fetched / 1e6:.2f} MB",
            f"{each.share:.2%}",
            each.requests,
            f"{each.seconds:.2f} s",
            f"{each.local_seconds:.2f} s",
            f"{each.peak / 1e6:.0f} MB",
        )
    yield f"target: a share of at most {SHARE_TARGET:.0%} of a file of 500 MB"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="What the audit fetches of a file behind a URL.")
    parser.add_argument("--small", action="store_true", help="files of a few megabytes")
    parser.add_argument("--size-gb", type=float, default=0.5, help="size of the files")
    parser.add_argument("--delay-ms", type=float, default=50.0, help="from a request to its answer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--folder", help="where to write the files (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size, delay = options.size_gb * 1e9, options.delay_ms / 1e3
        measured = measure(Path(folder), small=options.small, size=size, delay=delay)
    for line in table(measured):
        print(line)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in measured]), encoding="utf-8")


if __name__ == "__main__":
    main()
