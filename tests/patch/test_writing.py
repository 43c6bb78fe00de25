"""Where the copy goes: whole or not at all, and never over a file without a word."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import CannotPatch, CannotWrite
from bncheck.patch import PatchRecord, check_output_of, patch_file
from bncheck.readers import read
from tests.patch.patched_files import classifier, moments_of
from tests.process import ROOT
from tests.readers.torch_files import saved


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return read(str(saved(classifier().state_dict(), tmp_path / "m.pt")))


def write(checkpoint: Checkpoint, output: Path | str, *, force: bool = False) -> PatchRecord:
    return patch_file(checkpoint, moments_of(checkpoint), str(output), force=force)


def refused(checkpoint: Checkpoint, output: Path | str, match: str, *, force: bool = False) -> None:
    """One line that names the output; beforehand as well, where that can be told."""
    with pytest.raises(CannotWrite, match=match) as raised:
        write(checkpoint, output, force=force)
    assert str(output) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(CannotWrite, match=match):
        check_output_of(checkpoint, str(output), force=force)


def assert_only(folder: Path, *names: str) -> None:
    """No temporary file is left."""
    assert {path.name for path in folder.iterdir()} == set(names)


def test_record(checkpoint: Checkpoint, tmp_path: Path) -> None:
    check_output_of(checkpoint, str(tmp_path / "out.pt"), force=False)
    assert_only(tmp_path, "m.pt")
    record = write(checkpoint, tmp_path / "out.pt")
    assert record.output == str(tmp_path / "out.pt")
    assert record.input_sha256 == hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest()
    assert record.output_sha256 == hashlib.sha256((tmp_path / "out.pt").read_bytes()).hexdigest()
    assert_only(tmp_path, "m.pt", "out.pt")


def test_output_in_the_working_folder(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(checkpoint, "out.pt")
    assert_only(tmp_path, "m.pt", "out.pt")


def test_input_by_a_relative_path_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own code may change the working folder in between."""
    saved(classifier().state_dict(), tmp_path / "m.pt")
    monkeypatch.chdir(tmp_path)
    checkpoint = read("m.pt")
    monkeypatch.chdir(ROOT)
    write(checkpoint, tmp_path / "out.pt")
    assert_only(tmp_path, "m.pt", "out.pt")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755], ids=oct)
def test_permissions_are_kept(checkpoint: Checkpoint, tmp_path: Path, mode: int) -> None:
    (tmp_path / "m.pt").chmod(mode)
    write(checkpoint, tmp_path / "out.pt")
    assert stat.S_IMODE((tmp_path / "out.pt").stat().st_mode) == mode


# --- what stands there already --------------------------------------------------------------------------------


def test_file_is_replaced_by_force_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    output.write_text("precious")
    refused(checkpoint, output, "exists already; choose another name, or replace it with --force")
    assert output.read_text() == "precious"
    write(checkpoint, output, force=True)
    assert len(torch.load(output)) == len(classifier().state_dict())
    assert_only(tmp_path, "m.pt", "out.pt")


def test_model_is_replaced_by_force_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = (tmp_path / "m.pt").read_bytes()
    wanted = write(checkpoint, tmp_path / "out.pt").output_sha256
    os.link(tmp_path / "m.pt", tmp_path / "linked.pt")
    for name in ("m.pt", "linked.pt"):
        refused(checkpoint, tmp_path / name, "is the model itself; choose another name, or replace it with --force")
    assert (tmp_path / "m.pt").read_bytes() == before
    assert write(checkpoint, tmp_path / "m.pt", force=True).output_sha256 == wanted
    assert hashlib.sha256((tmp_path / "m.pt").read_bytes()).hexdigest() == wanted
    assert (tmp_path / "linked.pt").read_bytes() == before
    assert_only(tmp_path, "m.pt", "out.pt", "linked.pt")


def test_only_files_are_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("m.pt")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        ("folder", "is a folder; name a file"),
        ("link", "is a symbolic link; name a file"),
        ("dangling", "is a symbolic link; name a file"),
        ("pipe", "is a device or pipe; name a file"),
    ):
        refused(checkpoint, tmp_path / name, kind, force=True)
    refused(checkpoint, os.devnull, "is a device or pipe; name a file", force=True)
    assert_only(tmp_path, "m.pt", "folder", "link", "dangling", "pipe")


@pytest.mark.parametrize("name", ["missing/out.pt", "m.pt/out.pt"])
def test_folder_is_missing(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    refused(checkpoint, tmp_path / name, "there is no folder .*; make it first")


@pytest.mark.parametrize("name", ["", "out/"])
def test_no_file_is_named(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    refused(checkpoint, f"{tmp_path}/{name}", "names no file|is a folder")


def test_file_that_appears_meanwhile_stays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    with _when_copying(tmp_path, lambda: output.write_text("precious")) as slow, pytest.raises(CannotWrite):
        write(slow, output)
    assert output.read_text() == "precious"
    assert not list(tmp_path.glob(".bncheck*"))


# --- failures on the way --------------------------------------------------------------------------------------


class _when_copying:  # noqa: N801 - used as a statement
    """A checkpoint of 40 MB, and a thread that does something as soon as a copy of it is being written."""

    def __init__(self, folder: Path, act: Callable[[], object]) -> None:
        self._folder, self._act = folder, act
        self._thread = threading.Thread(target=self._watch)
        self._done = False
        self.acted = False

    def _watch(self) -> None:
        while not self._done:
            if any(self._sizes()):
                self._act()
                self.acted = True
                return
            time.sleep(0.0002)

    def _sizes(self) -> list[int]:
        return [path.stat().st_size for path in self._folder.glob(".bncheck*")]

    def __enter__(self) -> Checkpoint:
        state = {**classifier().state_dict(), "filler": torch.zeros(10_000_000)}
        checkpoint = read(str(saved(state, self._folder / "large.pt")))
        self._thread.start()
        return checkpoint

    def __exit__(self, *error: object) -> None:
        self._done = True
        self._thread.join()
        assert self.acted, "the copy was never seen"


def test_interrupted(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    try:
        with (
            _when_copying(tmp_path, lambda: signal.pthread_kill(main, signal.SIGINT)) as checkpoint,
            pytest.raises(KeyboardInterrupt),
        ):
            write(checkpoint, tmp_path / "out.pt")
    finally:
        signal.signal(signal.SIGINT, before)
    assert_only(tmp_path, "large.pt")


def test_model_that_changes_while_it_is_copied(tmp_path: Path) -> None:
    with (
        _when_copying(tmp_path, lambda: os.truncate(tmp_path / "large.pt", 39_000_000)) as checkpoint,
        pytest.raises(CannotPatch, match="changed since it was read: run again"),
    ):
        write(checkpoint, tmp_path / "out.pt")
    assert_only(tmp_path, "large.pt")


def test_model_that_is_replaced_while_it_is_copied(tmp_path: Path) -> None:
    """In place, the newer file would be lost."""
    newer = saved(classifier().state_dict(), tmp_path / "newer.pt")
    content = newer.read_bytes()
    with (
        _when_copying(tmp_path, lambda: os.replace(newer, tmp_path / "large.pt")) as checkpoint,
        pytest.raises(CannotPatch, match="changed since it was read: run again"),
    ):
        write(checkpoint, tmp_path / "large.pt", force=True)
    assert (tmp_path / "large.pt").read_bytes() == content
    assert_only(tmp_path, "large.pt")


_PATCH = """
import sys
sys.path.insert(0, {root!r})
import os, resource
import numpy as np
from bncheck.core.errors import BncheckError
from bncheck.patch import NewMoments, check_output_of, patch_file
from bncheck.readers import read

checkpoint = read(sys.argv[1])
moments = {{
    layer.full_name: NewMoments(layer.running_mean + 1, layer.running_var + 1, 5) for layer in checkpoint.layers
}}
{limit}
try:
    {check}
    patch_file(checkpoint, moments, sys.argv[2], force=False)
except BncheckError as error:
    print(type(error).__name__, error)
else:
    with open("/proc/self/status") as status:
        print(next(line for line in status if line.startswith("VmHWM")).split()[1])
print(sorted({{"torch", "safetensors", "zipfile"}} & set(sys.modules)))
"""


def _in_a_process(path: Path, output: Path, limit: str = "", check: str = "") -> list[str]:
    """What a process of its own prints: the error or its peak memory in KiB, and modules that it should not need."""
    finished = subprocess.run(
        [sys.executable, "-c", _PATCH.format(root=str(ROOT), limit=limit, check=check), str(path), str(output)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return finished.stdout.splitlines()


def test_disk_runs_full(tmp_path: Path) -> None:
    """A limit on the size of files ends in the same call of the system, with an error of its own."""
    path = saved({**classifier().state_dict(), "filler": torch.zeros(1_000_000)}, tmp_path / "m.pt")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))"
    message, _ = _in_a_process(path, tmp_path / "out.pt", limit)
    assert message == f"CannotWrite {tmp_path / 'out.pt'}: cannot be written: {os.strerror(errno.EFBIG)}"
    assert_only(tmp_path, "m.pt")


def test_disk_has_too_little_room(checkpoint: Checkpoint, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", disk], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        refused(checkpoint, disk / "out.pt", r"\d+ bytes are needed and 4096 are left on the disk")
        assert_only(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    path = saved(classifier().state_dict(), tmp_path / "m.pt")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    # Root may write anywhere, so that it has to become somebody else, who may still pass the folders above.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    for check in ("", "check_output_of(checkpoint, sys.argv[2], force=False); sys.exit('it may')"):
        message, _ = _in_a_process(path, locked / "out.pt", "if not os.geteuid(): os.seteuid(65534)", check)
        assert message == f"CannotWrite {locked / 'out.pt'}: cannot be written: {os.strerror(errno.EACCES)}"
    assert_only(locked)


def test_large_file_takes_little_memory(tmp_path: Path) -> None:
    small = saved(classifier().state_dict(), tmp_path / "small.pt")
    state = {"a": torch.zeros(15_000_000), **classifier().state_dict(), "z": torch.zeros(15_000_000)}
    large = saved(state, tmp_path / "large.pt")
    assert large.stat().st_size > 120_000_000
    (base, _), (peak, modules) = (_in_a_process(path, path.with_name(f"out-{path.name}")) for path in (small, large))
    assert int(peak) - int(base) < 24 * 1024
    assert modules == "[]"
    for path in (large, tmp_path / "out-large.pt"):
        path.unlink()
