"""How much memory an audit takes that runs the model, beside a plain forward pass over the same batches.

    python tests/benchmarks/audit_memory.py             # some two minutes
    python tests/benchmarks/audit_memory.py --runs 1

Every figure is the largest resident set of a process of its own, less what is resident in a process that has imported
torch and loaded the model from the file, and does no more. Each is the median over runs: allocators scatter by some
10 MB. Target: an audit takes at most 1.2 times what plain prediction takes. The last column leaves out what bncheck's
own code takes once it is imported, which is the same for every model. Linux alone tells what is resident.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

from tests.benchmarks.pairs import run  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

TARGET = 1.2


@dataclass(frozen=True, slots=True)
class Case:
    """What is run.

    Attributes:
        name: of the network, in ``estimators.MODELS``.
        side: of its square images.
        batch: images in a batch.
        batches: how many.
    """

    name: str
    side: int
    batch: int
    batches: int


CASES = (Case("small CNN", 32, 64, 16), Case("ResNet-18", 64, 32, 8), Case("ResNet-18", 224, 32, 2))


# --- in the processes that are measured --------------------------------------------------------------------


def build(name: str) -> nn.Module:
    """The network, for ``--model``."""
    from tests.benchmarks import estimators

    return estimators.build(name)


def case() -> Case:
    """The one that the environment tells."""
    return CASES[int(os.environ["BNCHECK_CASE"])]


def batches() -> Iterator[Tensor]:
    """As a loader brings them: one at a time. For ``--data``."""
    from tests.benchmarks import estimators

    chosen = case()
    for index in range(chosen.batches):
        yield estimators.images(chosen.batch, chosen.side, index)


def _resident() -> int:
    """Bytes, now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def _load(path: str) -> None:
    network = _loaded(path)
    Path(f"{path}.resident").write_text(str(_resident()), encoding="ascii")
    del network


def _loaded(path: str) -> nn.Module:
    import torch

    network = build(case().name)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def _write(path: str) -> None:
    import torch

    torch.save(build(case().name).state_dict(), path)


def _with_code(path: str) -> None:
    import bncheck.cli
    import bncheck.cli.output
    import bncheck.measuring  # noqa: F401

    _load(path)


def _plain(path: str) -> None:
    import torch

    network = _loaded(path)
    with torch.no_grad():
        for images in batches():
            network(images)


_CHILDREN = {"write": _write, "load": _load, "code": _with_code, "plain": _plain}


# --- in the process that measures, which stays small -------------------------------------------------------


def _child(way: str, path: Path) -> list[str]:
    return [sys.executable, __file__, "--child", way, str(path)]


def _audit(chosen: Case, path: Path) -> list[str]:
    samples = str(chosen.batch * chosen.batches)
    model = ("--model", f"{__file__}:build", "--model-arg", f"name={chosen.name}")
    data = ("--data", f"{__file__}:batches", "--samples", samples)
    return [sys.executable, "-m", "bncheck", "audit", str(path), *model, *data, "--fail-on", "never"]


def _figures(chosen: Case, path: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Resident without and with bncheck's code; peaks of plain prediction and of an audit."""
    for way in ("load", "code"):
        run(_child(way, path), environment)
        yield int(Path(f"{path}.resident").read_text(encoding="ascii"))
    for command in (_child("plain", path), _audit(chosen, path)):
        yield run(command, environment).peak


def rows(runs: int) -> Iterator[str]:
    """One line for each case."""
    columns = f"{'plain, + MB':>13}{'audit, + MB':>13}{'ratio':>8}{'code, + MB':>12}{'ratio without':>15}"
    head = f"{'network':<26}{'loaded, MB':>12}{columns}"
    yield f"{head}  target <= {TARGET}"
    for index, chosen in enumerate(CASES):
        environment = {**os.environ, "BNCHECK_CASE": str(index), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            run(_child("write", path), environment)
            found = [tuple(_figures(chosen, path, environment)) for _ in range(runs)]
        loaded, code, plain, audit = (statistics.median(each) / 1e6 for each in zip(*found, strict=True))
        name = f"{chosen.name}, {chosen.side} × {chosen.side}, {chosen.batch}"
        ratio, without = ((audit - start) / (plain - loaded) for start in (loaded, code))
        taken = f"{loaded:>12.0f}{plain - loaded:>13.1f}{audit - loaded:>13.1f}{ratio:>8.2f}"
        yield f"{name:<26}{taken}{code - loaded:>12.1f}{without:>15.2f}"


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description="Memory that an audit takes beside plain prediction.")
    parser.add_argument("--runs", type=int, default=3, help="of each process")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, path = options.child
        _CHILDREN[way](path)
        return
    for row in rows(options.runs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
