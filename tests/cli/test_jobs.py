"""Many models in one run: at the same time, in bounded memory, and some of them hostile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.process import ROOT, bncheck
from tests.saved_networks import save_network

MOST_BYTES_FOR_A_FILE = 11_000
"""A file of one layer takes 6.5 KB; with the places of its tensors, which no report tells, it would take 15."""


class _Runs:
    """Its pickle calls os.system when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1000 sound models, of 20 kinds; of a hundred more, 3 have a finding, 2 are broken, 1 runs code when loaded."""
    root = tmp_path_factory.mktemp("many")
    kinds = [save_network(root / "kinds" / f"{kind}.pt", names=("bn1",), scale=1 + kind / 100) for kind in range(20)]
    for index in range(1000):
        folder = root / ("hundred" if index < 100 else "others")
        folder.mkdir(exist_ok=True)
        os.link(kinds[index % 20], folder / f"{index:03}.pt")
    hostile = root / "hostile"
    for index in range(94):
        hostile.mkdir(exist_ok=True)
        os.link(kinds[index % 20], hostile / f"{index:03}.pt")
    for index in range(3):
        save_network(hostile / f"faulty{index}.pt", updates={"bn1": 20}, not_finite={"bn2": index})
    (hostile / "cut.pt").write_bytes(kinds[0].read_bytes()[:-500])
    (hostile / "empty.pt").touch()
    torch.save({"layer.weight": torch.ones(2), "extra": _Runs()}, hostile / "runs.pt")
    return root


_MEASURED = """
import atexit, sys
from pathlib import Path

def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    print([line.split()[1] for line in lines if line.startswith("VmHWM")][0], file=sys.stderr)

atexit.register(tell)
sys.argv[0] = "bncheck"
from bncheck.cli import main
main()
"""


def _peak(*arguments: Path | str) -> tuple[str, int]:
    """Text of a run, and the most memory its process held, in bytes."""
    finished = subprocess.run(
        [sys.executable, "-c", _MEASURED, "audit", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout, int(finished.stderr) * 1024


def test_a_thousand_models_are_one_table_in_bounded_memory(many: Path) -> None:
    few_text, few = _peak(many / "hundred")
    text, most = _peak(many / "hundred", many / "others")
    assert text == " PASS  no findings in 1000 layers of 1000 files\n\n1000 files clean\n"
    assert few_text.splitlines()[-1] == "100 files clean"
    assert (most - few) / 900 < MOST_BYTES_FOR_A_FILE


def test_several_processes_say_what_one_says_and_hostile_files_leave_the_rest(many: Path, tmp_path: Path) -> None:
    one = bncheck("audit", many / "hostile", "--format", "json")
    four = bncheck(
        "audit", many / "hostile", "--format", "json", "--jobs", "4", "--output", f"text={tmp_path / 'text'}"
    )
    assert one.returncode == four.returncode == 2
    assert one.stderr == four.stderr == ""
    document = json.loads(one.stdout)
    assert document == json.loads(four.stdout)
    assert len(document["subjects"]) == 97
    assert {Path(error["path"]).name: error["kind"] for error in document["errors"]} == {
        "cut.pt": "unreadable-file", "empty.pt": "unreadable-file", "runs.pt": "unsafe-file",
    }  # fmt: skip
    assert not list(many.rglob("pwned"))
    assert not (ROOT / "pwned").exists()

    lines = (tmp_path / "text").read_text().splitlines()
    assert lines[0].startswith(" INCOMPLETE  3 paths could not be audited; 5 errors in 97 files read")
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["errors", "warnings", "notices", "file", "and", "rules"]
    assert [line.split()[0] for line in table[1:4]] == ["2", "2", "1"]
    assert table[4] == "94 files clean, 3 files not audited"
    assert len(lines) < 80


def test_a_process_that_dies_takes_its_file_alone(tmp_path: Path) -> None:
    """A loader ends its process, as a fault in a driver or the kernel short of memory would."""
    (tmp_path / "code.py").write_text("import os\ndef ends(): os._exit(0)\n")
    for name in ("a.pt", "b.pt", "c.pt"):
        save_network(tmp_path / name, updates={"bn1": 20})
    (tmp_path / "bncheck.yaml").write_text("""
models:
  - paths: "*.pt"
  - {paths: b.pt, data: "code.py:ends", model: "code.py:ends"}
""")
    finished = bncheck("audit", "--jobs", "2", "--format", "json", cwd=tmp_path)
    assert finished.returncode == 2, finished.stderr
    document = json.loads(finished.stdout)
    assert {subject["path"]: len(subject["findings"]) for subject in document["subjects"]} == {"a.pt": 1, "c.pt": 1}
    assert document["errors"] == [
        {
            "path": "b.pt",
            "kind": "process-died",
            "message": "its process died while it was audited: it ended with exit code 0",
        },
    ]


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == parent:
            found.append(int(folder.name))
    return found


def _running(processes: list[int]) -> list[int]:
    return [process for process in processes if Path(f"/proc/{process}/exe").exists()]


def test_ctrl_c_ends_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        "import pathlib, os, time\ndef sleeps():\n    pathlib.Path(f'{os.getpid()}.pid').touch()\n    time.sleep(60)\n"
    )
    for name in ("a.pt", "b.pt", "c.pt"):
        save_network(tmp_path / name)
    (tmp_path / "bncheck.yaml").write_text(
        "models: [{paths: '*.pt'}, {paths: b.pt, data: 'code.py:sleeps', model: 'code.py:sleeps'}]"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "bncheck", "audit", "--jobs", "2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.pid")) and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = _children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert len(workers) >= 2  # and multiprocessing's own
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    deadline = time.monotonic() + 10  # multiprocessing's own sees that it is alone
    while _running(workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _running(workers)
