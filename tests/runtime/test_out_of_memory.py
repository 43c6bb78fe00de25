"""A batch that memory does not hold is taken in halves, once; then one line says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bncheck.core.errors import OutOfMemory, UserCodeFailed
from bncheck.probe.evaluation import Evaluation, evaluate
from bncheck.runtime.batches import Batch, DataOptions, batches, forward
from bncheck.runtime.out_of_memory import is_out_of_memory, telling_out_of_memory
from tests.process import ROOT

IMAGES = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(0))

# The layer's input takes 80 MB for 128 samples, and its output as much again.
_PROGRAM = """
import json, resource, sys
import torch
from torch import nn
import bncheck

torch.set_num_threads(1)

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 40, 3, padding=1)
        self.bn = nn.BatchNorm2d(40)
        self.head = nn.Linear(40, 3)

    def forward(self, images):
        values = self.bn(self.conv(images))
        return self.head(values.amax((2, 3)))

torch.manual_seed(0)
model = Wide().eval()
batches = [torch.randn(128, 1, 64, 64) for _ in range(2)]
bncheck.audit(model, data=[batches[0][:8]])  # everything is imported, and thread pools are there
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
allowed = used + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
report = bncheck.audit(model, data=batches, samples=256)
measured = report.subjects[0].measurements
print(json.dumps({
    "exit": int(report.exit_code),
    "samples": measured.samples,
    "images": measured.layers["bn"].moments.images if measured.layers else None,
    "gap": None if measured.gap is None else measured.gap.batch_size,
    "reasons": {probe.what: probe.reason for probe in measured.not_measured},
}))
"""


def _limited(megabytes: int, tmp_path: Path) -> dict[str, object]:
    (tmp_path / "program.py").write_text(_PROGRAM)
    finished = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(megabytes)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MALLOC_ARENA_MAX": "1"},
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    document: dict[str, object] = json.loads(finished.stdout)
    return document


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
@pytest.mark.parametrize(("megabytes", "halved", "samples"), [(2000, False, 256), (130, True, 256), (60, True, 0)])
def test_a_real_lack_of_memory(megabytes: int, halved: bool, samples: int, tmp_path: Path) -> None:
    found = _limited(megabytes, tmp_path)
    assert found["samples"] == samples, found
    if samples:
        assert found["images"] == samples
        assert found["gap"] == (64 if halved else 128)
        assert "prediction" not in found["reasons"]
    else:
        reason = found["reasons"]["prediction"]
        assert "no memory for a batch of 64 samples" in reason
        assert "--batch-size" in reason
        assert "--samples" in reason
        assert found["exit"] == 2


class _Scarce:
    """Raises as an allocator does where a batch has more samples than there is room for."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room = room
        self.error = error
        self.sizes: list[int] = []

    def __call__(self, model: nn.Module, batch: Batch) -> object:
        self.sizes.append(batch.size)
        output = forward(model, batch)
        with telling_out_of_memory(f"a batch of {batch.size} samples"):
            if batch.size > self.room:
                raise self.error
        return output


_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    MemoryError(),
]


def _evaluated(scarce: _Scarce) -> Evaluation:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 3)).eval()
    data = batches([IMAGES[:16], IMAGES[16:32], IMAGES[32:]], DataOptions())
    return evaluate(model, data, scarce)


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
def test_halves_are_tried_once_and_count_once(error: Exception) -> None:
    scarce = _Scarce(8, error)
    found = _evaluated(scarce)
    # Each batch is predicted twice: as it is, and with its own moments.
    assert scarce.sizes == [16, *[8] * 12]
    assert found.samples == 48
    assert found.halved
    assert found.layers["0"].moments.images == 48
    assert found.layers["0"].calls == 1


def test_half_is_too_much_as_well() -> None:
    with pytest.raises(OutOfMemory, match=r"for a batch of 8 samples .*nor was there for twice as many"):
        _evaluated(_Scarce(7, _ERRORS[0]))


def test_what_was_measured_before_stands() -> None:
    class Later(_Scarce):
        def __call__(self, model: nn.Module, batch: Batch) -> object:
            if len(self.sizes) == 2:
                self.room = 1
            return super().__call__(model, batch)

    found = _evaluated(Later(16, _ERRORS[1]))
    assert found.samples == 16
    assert isinstance(found.stopped, OutOfMemory)
    assert found.layers["0"].moments.images == 16


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("mat1 and mat2 shapes cannot be multiplied")]
)
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)

    def fails(model: nn.Module, batch: Batch) -> object:
        with telling_out_of_memory("it"):
            raise error

    with pytest.raises(type(error)):
        fails(nn.Identity(), Batch((IMAGES,), None, 48))


def test_a_model_that_fails_otherwise_is_the_users() -> None:
    class Fails(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such file")

    with pytest.raises(UserCodeFailed, match="no such file"):
        forward(Fails(), Batch((IMAGES,), None, 48))
