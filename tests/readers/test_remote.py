"""Files behind URLs: real requests to a real server on this machine, which counts what it sends."""

from __future__ import annotations

import shutil
import ssl
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from bncheck.api import audit
from bncheck.core.checkpoint import Checkpoint
from bncheck.core.errors import BadUsage, UnreadableFile, UnsafeFile
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.readers import open_source, read
from bncheck.readers.byte_ranges import FetchedRanges, joined, pieces
from bncheck.readers.remote import RemoteSource
from bncheck.readers.urls import is_pattern, redacted, scheme_of, shown
from bncheck.report.document import report_document
from tests.benchmarks.static_audit import write_checkpoint, write_state_dict
from tests.process import FIXTURES, ROOT, bncheck
from tests.range_server import (
    Changes,
    ChangesSilently,
    Compresses,
    CutsShort,
    Drips,
    Hangs,
    IgnoresRanges,
    LiesAboutLength,
    NoHead,
    NoLength,
    Redirects,
    Refuses,
    SaysNothingOfVersions,
    SendsAnotherRange,
    SendsTooMuch,
    WantsPassword,
    WellBehaved,
    serving,
)
from tests.readers.torch_files import Net, filled, rewritten, saved, unchanged

_HASTY = replace(DEFAULT_LIMITS, remote_stall_seconds=0.25, remote_seconds=1.0)
_SMALL, _STATE_DICT, _CHECKPOINT = "small.pt", "resnet50.pt", "adam.pt"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind of layout; all but one so large that they do not come with the first request."""
    made = tmp_path_factory.mktemp("served")
    saved(filled(Net()).state_dict(), made / _SMALL)
    write_state_dict(str(made / _STATE_DICT), 0.25)
    write_checkpoint(str(made / _CHECKPOINT), 0.25)
    state = torch.load(made / _STATE_DICT)
    safetensors.torch.save_file(state, made / "resnet50.safetensors")
    torch.save(state, made / "legacy.pt", _use_new_zipfile_serialization=False)
    net = Net()
    net.wide = torch.nn.Linear(1000, 1000)
    saved(filled(net), made / "module.pt")
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(500, 500), torch.nn.BatchNorm1d(500))).save(
        str(made / "scripted.pt")
    )
    rewritten(made / "module.pt", unchanged, zipfile.ZIP_DEFLATED)
    return made


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of two of them that a test may change."""
    for name in (_SMALL, _STATE_DICT):
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def _layers(path: str) -> object:
    """Everything a report says but for the path and how the file was read."""
    (subject,) = report_document(audit(path))["subjects"]
    del subject["path"], subject["remarks"]
    for finding in subject["findings"]:
        del finding["remedy"]
    return subject


# --- the same as from a disk -------------------------------------------------------------------------------


def test_a_fixture_of_each_kind_reads_as_from_a_disk() -> None:
    seen: dict[object, Path] = {}
    for path in sorted(FIXTURES.glob("[!_]*/*")):
        if path.suffix not in (".json", ".py"):
            checkpoint = read(str(path))
            seen.setdefault((checkpoint.format, checkpoint.packaging), path)
    assert len(seen) >= 5
    with serving(FIXTURES) as server:
        for path in seen.values():
            assert _layers(f"{server.url}/{path.relative_to(FIXTURES)}") == _layers(str(path)), path
    assert server.log.requests <= 10 * len(seen)


# What an audit takes: at most so many requests and so large a part of the file. The files are some hundred times
# smaller than real ones, and have as many batch norms.
@pytest.mark.parametrize(
    ("name", "requests", "share"),
    [
        (_SMALL, 2, 1.0),
        (_STATE_DICT, 33, 0.08),
        (_CHECKPOINT, 38, 0.042),
        ("resnet50.safetensors", 40, 0.08),
        ("module.pt", 4, 0.06),
        ("rewritten-module.pt", 4, 0.06),
        ("scripted.pt", 8, 0.5),
    ],
)
def test_large_files_read_as_from_a_disk(folder: Path, name: str, requests: int, share: float) -> None:
    with serving(folder) as server:
        assert _layers(f"{server.url}/{name}") == _layers(str(folder / name))
    assert server.log.requests <= requests
    assert server.log.bytes <= share * (folder / name).stat().st_size


def test_legacy_file_reads_as_from_a_disk(folder: Path) -> None:
    with serving(folder) as server:
        assert _layers(f"{server.url}/legacy.pt") == _layers(str(folder / "legacy.pt"))
    assert server.log.bytes < 0.7 * (folder / "legacy.pt").stat().st_size


def test_sniffing_and_the_directory_take_two_ranges(folder: Path) -> None:
    with serving(folder) as server:
        read(f"{server.url}/{_STATE_DICT}")
    first, second, third = server.log.sent[:3]
    size = (folder / _STATE_DICT).stat().st_size
    assert (first.method, first.length) == ("HEAD", 0)
    assert second.asked == "bytes=0-131071"
    assert third.asked == f"bytes={size - 65557}-{size - 1}"


def test_no_byte_comes_twice(folder: Path) -> None:
    with serving(folder) as server:
        read(f"{server.url}/{_CHECKPOINT}")
    ranges = sorted(
        tuple(map(int, answer.asked.removeprefix("bytes=").split("-"))) for answer in server.log.sent if answer.asked
    )
    assert all(last < first for (_, last), (first, _) in pairwise(ranges))


def test_source_counts_as_the_server_does(folder: Path) -> None:
    with serving(folder) as server, RemoteSource(f"{server.url}/{_STATE_DICT}", DEFAULT_LIMITS) as source:
        source.prefetch([(200_000, 10), (900_000, 10), (source.size - 5, 5)])
        assert source.read_at(900_000, 10) == (folder / _STATE_DICT).read_bytes()[900_000:900_010]
        assert (source.requests, source.bytes_fetched) == (server.log.requests, server.log.bytes)
        assert source.bytes_fetched == 15, "what was announced before it is left until it is wanted"


def test_ranges_come_at_a_time(folder: Path) -> None:
    """Sixteen requests take less than eight times what one takes."""
    with serving(folder, delay=0.25) as server, RemoteSource(f"{server.url}/{_CHECKPOINT}", DEFAULT_LIMITS) as source:
        source.prefetch([(offset * 1_000_000 + 500_000, 10) for offset in range(16)])
        start = time.monotonic()
        source.read_at(500_000, 10)
        assert time.monotonic() - start < 8 * 0.25
        assert source.bytes_fetched == 160


def test_a_small_cache_changes_nothing_but_the_cost(folder: Path) -> None:
    limits = replace(DEFAULT_LIMITS, remote_cache_bytes=60_000)
    with serving(folder) as server:
        far = read(f"{server.url}/{_STATE_DICT}", limits)
    near = read(str(folder / _STATE_DICT))
    assert _arrays(far) == _arrays(near)


def _arrays(checkpoint: Checkpoint) -> Mapping[str, object]:
    return {layer.name: (layer.running_mean.tolist(), layer.running_var.tolist()) for layer in checkpoint.layers}


@pytest.mark.parametrize("bound", [{"remote_requests": 5}, {"remote_bytes": 150_000}])
def test_bounds_on_what_is_fetched(folder: Path, bound: Mapping[str, int]) -> None:
    with serving(folder) as server, pytest.raises(UnreadableFile, match="download the file and audit it"):
        read(f"{server.url}/{_CHECKPOINT}", replace(DEFAULT_LIMITS, **bound))
    assert server.log.requests <= 5 or server.log.bytes <= 150_000


# --- servers that go wrong ---------------------------------------------------------------------------------


def test_small_file_from_a_server_without_ranges_is_read_whole(folder: Path) -> None:
    with serving(folder, IgnoresRanges) as server:
        assert _layers(f"{server.url}/{_STATE_DICT}") == _layers(str(folder / _STATE_DICT))
    assert [answer.method for answer in server.log.sent] == ["HEAD", "GET"]


def test_large_file_from_a_server_without_ranges_is_refused(folder: Path) -> None:
    limits = replace(DEFAULT_LIMITS, remote_whole_bytes=1_000_000)
    with serving(folder, IgnoresRanges) as server, pytest.raises(UnreadableFile, match="ignores byte ranges"):
        read(f"{server.url}/{_CHECKPOINT}", limits)
    # What lies in the buffers of both sockets was sent and never read.
    assert server.log.bytes < (folder / _CHECKPOINT).stat().st_size / 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SendsAnotherRange, "another range than was asked for"),
        (SendsTooMuch, "does not tell how long its answer is"),
        (LiesAboutLength, "the file changed"),
        (Compresses, "compresses"),
        (NoLength, "does not tell how long the file is"),
        (CutsShort, "cannot be fetched: Client"),
        (Hangs, r"sent nothing for 0\.25 seconds"),
        (Drips, "did not come within 1 seconds"),
        (Changes, "the file changed while it was read"),
        (ChangesSilently, "the file changed while it was read"),
    ],
)
def test_misbehaving_server_is_one_clear_line(own_folder: Path, kind: type[WellBehaved], message: str) -> None:
    with serving(own_folder, kind) as server, pytest.raises(UnreadableFile, match=message) as caught:
        read(f"{server.url}/{_STATE_DICT}", _HASTY)
    assert "\n" not in str(caught.value)
    assert server.log.bytes < 10_000_000


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "wants credentials"),
        (403, "refuses access"),
        (404, "no such file"),
        (500, "error 500"),
        (503, "error 503"),
    ],
)
def test_error_of_the_server_is_told(folder: Path, status: int, message: str) -> None:
    with serving(folder, Refuses, status=status) as server, pytest.raises(UnreadableFile, match=message):
        read(f"{server.url}/{_SMALL}")


def test_server_that_knows_get_alone(folder: Path) -> None:
    with serving(folder, NoHead) as server:
        assert _layers(f"{server.url}/{_STATE_DICT}") == _layers(str(folder / _STATE_DICT))


def test_nobody_listens() -> None:
    with pytest.raises(UnreadableFile, match="cannot be fetched: ClientConnectorError"):
        read("http://127.0.0.1:9/model.pt", _HASTY)


def test_server_without_versions_is_remarked(folder: Path) -> None:
    with serving(folder, SaysNothingOfVersions) as server:
        assert "tells no version" in " ".join(read(f"{server.url}/{_SMALL}").remarks)
    with serving(folder) as server:
        assert "version" not in " ".join(read(f"{server.url}/{_SMALL}").remarks)


def test_hanging_server_ends_the_process(folder: Path) -> None:
    program = (
        "import sys; from dataclasses import replace; from bncheck.api import audit;"
        "from bncheck.core.limits import DEFAULT_LIMITS as limits;"
        "hasty = replace(limits, remote_seconds=1.0, remote_stall_seconds=30);"
        "report = audit(sys.argv[1], limits=hasty); print(report.failures[0].message); sys.exit(report.exit_code)"
    )
    with serving(folder, Hangs) as server:
        command = [sys.executable, "-c", program, f"{server.url}/{_STATE_DICT}"]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=False)
    assert (finished.returncode, finished.stderr) == (2, "")
    assert "did not come within 1 seconds" in finished.stdout


# --- redirects ---------------------------------------------------------------------------------------------


def test_redirect_is_followed(folder: Path) -> None:
    with serving(folder) as target, serving(folder, Redirects) as server:
        assert _layers(f"{server.url}/to/{target.url}/{_STATE_DICT}") == _layers(str(folder / _STATE_DICT))


def test_redirect_to_a_file_is_refused(folder: Path) -> None:
    with serving(folder, Redirects) as server, pytest.raises(UnreadableFile, match="NonHttpUrlRedirect"):
        read(f"{server.url}/to/file://{folder / _SMALL}")


def test_endless_redirect_is_refused(folder: Path) -> None:
    class Loops(Refuses):
        def refuse(self, status: int) -> None:
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(folder, Loops) as server, pytest.raises(UnreadableFile, match="TooManyRedirects"):
        read(f"{server.url}/model.pt")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the server's certificate")
def test_redirect_away_from_encryption_is_refused(folder: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(folder) as target, serving(folder, Redirects, context) as server:
        trusting = {"SSL_CERT_FILE": str(certificate), "NO_PROXY": "127.0.0.1"}
        direct = bncheck("audit", f"{server.url}/{_SMALL}", **trusting)
        assert direct.returncode == 0, direct.stdout + direct.stderr
        redirected = bncheck("audit", f"{server.url}/to/{target.url}/{_SMALL}", **trusting)
        assert redirected.returncode == 2
        assert "redirects from https" in redirected.stdout


# --- credentials -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "output", "name"),
    [
        ("audit", "text", _SMALL),
        ("audit", "json", "absent.pt"),
        ("inspect", "json", _SMALL),
        ("inspect", "text", "absent.pt"),
    ],
)
def test_credentials_are_used_and_never_shown(folder: Path, command: str, output: str, name: str) -> None:
    with serving(folder, WantsPassword) as server:
        url = server.url.replace("//", "//user:secret@") + f"/{name}?X-Amz-Signature=abcdef&token=s3cr3t"
        finished = bncheck(command, url, "--format", output, NO_PROXY="127.0.0.1")
    assert finished.returncode == (0 if name == _SMALL else 2)
    said = finished.stdout + finished.stderr
    assert f"***@127.0.0.1:{server.url.rpartition(':')[2]}/{name}?***" in said
    assert not any(secret in said for secret in ("user", "secret", "abcdef", "s3cr3t", "token"))


def test_credentials_of_a_redirect_are_not_shown(folder: Path) -> None:
    with serving(folder, Redirects) as server:
        finished = bncheck(
            "audit", f"{server.url}/to/http://127.0.0.1:9/m.pt?X-Amz-Signature=abcdef", NO_PROXY="127.0.0.1"
        )
    assert finished.returncode == 2
    assert "abcdef" not in finished.stdout + finished.stderr


def test_wrong_password(folder: Path) -> None:
    with serving(folder, WantsPassword) as server, pytest.raises(UnreadableFile, match="wants credentials"):
        read(f"{server.url.replace('//', '//user:wrong@')}/{_SMALL}")


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("https://host/a/b.pt", "https://host/a/b.pt"),
        ("https://user:pass@host:8443/b.pt", "https://***@host:8443/b.pt"),
        ("https://ghp_token@host/b.pt", "https://***@host/b.pt"),
        ("https://host/b.pt?X-Amz-Signature=1&x=2#t", "https://host/b.pt?***#***"),
        ("https://user:pa/ss@host/b.pt", "https://***"),
        ("https://user:pa?ss@host/b.pt", "https://***"),
        ("https://[::1]:8000/b.pt?a=1", "https://[::1]:8000/b.pt?***"),
        ("https://[bad/b.pt", "https://***"),
        ("s3://key:secret@bucket/b.pt", "s3://***@bucket/b.pt"),
        ("hf://org/repo@main/b.pt", "hf://org/repo@main/b.pt"),
        ("C://folder/b.pt", "C://folder/b.pt"),
        ("folder/what?.pt", "folder/what?.pt"),
    ],
)
def test_shown_url_holds_no_secret(url: str, display: str) -> None:
    assert shown(url) == display


def test_message_of_a_library_is_redacted() -> None:
    text = "403 for url:\n 'https://u:p@cdn/x?sig=1' (Max retries exceeded with url: /x?X-Amz-Signature=2)"
    assert redacted(text) == "403 for url: 'https://***@cdn/x?***' (Max retries exceeded with url: /x?***"


# --- which paths are URLs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("https://host/x", "https"),
        ("S3://bucket/x", "s3"),
        ("C://x", None),
        ("./https://host/x", None),
        ("model.pt", None),
        ("a b://c", None),
        ("file:///x", None),
        ("local://x", None),
    ],
)
def test_scheme(path: str, scheme: str | None) -> None:
    assert scheme_of(path) == scheme


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("s3://b/*.pt", True),
        ("s3://b/[ab].pt", True),
        ("s3://b/x.pt", False),
        ("https://h/x.pt?a=*", False),
        ("https://[::1]/x.pt", False),
    ],
)
def test_pattern(url: str, pattern: bool) -> None:
    assert is_pattern(url) == pattern


def test_local_file_with_the_name_of_a_url(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "http:" / "127.0.0.1:9"
    trap.mkdir(parents=True)
    shutil.copy(folder / _SMALL, trap)
    monkeypatch.chdir(tmp_path)
    assert audit(f"./http://127.0.0.1:9/{_SMALL}").exit_code == 0
    assert audit(f"http://127.0.0.1:9/{_SMALL}").exit_code == 2


@pytest.mark.parametrize("scheme", ["file", "FILE", "local"])
def test_file_urls_are_plain_files(folder: Path, scheme: str) -> None:
    assert read(f"{scheme}://{folder / _SMALL}").layers
    assert len(audit(f"{scheme}://{folder}/s*.pt").subjects) == 2


@pytest.mark.parametrize(
    "url",
    [
        "zip://model.pt::https://127.0.0.1:9/a.zip",
        "filecache::https://127.0.0.1:9/a.pt",
        "simplecache::http://127.0.0.1:9/a.pt",
        "https://127.0.0.1:9/a.pt::zip://b",
        "filecache://127.0.0.1:9/a.pt",
        "reference://a.json",
        "tar://a.tar",
        "nosuchprotocol://a.pt",
        "http://127.0.0.1:9/*.pt",
    ],
)
def test_only_one_plain_protocol(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = audit(url)
    assert report.exit_code == 2
    assert [failure.kind for failure in report.failures] == (
        ["unreadable-file"] if url.startswith(("filecache::", "simplecache::")) else ["bad-usage"]
    )
    assert not list(tmp_path.iterdir())


# --- packages that are missing -----------------------------------------------------------------------------


def _audit_without(module: str, url: str) -> str:
    program = (
        f"import sys; sys.modules[{module!r}] = None; from bncheck.api import audit;"
        f"report = audit({url!r}); print(report.failures[0].kind, report.failures[0].message)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    ).stdout


@pytest.mark.parametrize("url", ["https://127.0.0.1:9/x.pt", "s3://bucket/*.pt"])
def test_without_fsspec(url: str) -> None:
    assert 'pip install "bncheck[remote]"' in _audit_without("fsspec", url)


def test_without_aiohttp() -> None:
    assert 'pip install "bncheck[remote]"' in _audit_without("aiohttp", "https://127.0.0.1:9/x.pt")


def test_without_the_package_of_a_protocol() -> None:
    assert "Install s3fs to access S3" in _audit_without("s3fs", "s3://bucket/x.pt")


# --- another protocol --------------------------------------------------------------------------------------


@pytest.fixture
def memory(folder: Path) -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's files in memory, which are shared by the whole process."""
    filesystem = fsspec.filesystem("memory")
    for name in (_SMALL, _STATE_DICT):
        filesystem.pipe(f"/run/{name}", (folder / name).read_bytes())
    filesystem.pipe("/run/notes.txt", b"notes")
    yield filesystem
    filesystem.rm("/run", recursive=True)


@pytest.mark.usefixtures("memory")
def test_memory_reads_as_a_disk(folder: Path) -> None:
    for name in (_SMALL, _STATE_DICT):
        assert _layers(f"memory://run/{name}") == _layers(str(folder / name))


@pytest.mark.usefixtures("memory")
def test_pattern_of_urls() -> None:
    report = audit("memory://run/*.pt")
    assert [subject.checkpoint.path for subject in report.subjects] == [
        f"memory://run/{_STATE_DICT}",
        f"memory://run/{_SMALL}",
    ]
    assert [failure.kind for failure in audit("memory://run/*.bin").failures] == ["nothing-found"]


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(("url", "message"), [("memory://run", "is a folder"), ("memory://run/x.pt", "no such file")])
def test_no_file_there(url: str, message: str) -> None:
    with pytest.raises(UnreadableFile, match=message):
        read(url)


def test_change_is_seen_at_the_end(memory: fsspec.AbstractFileSystem, folder: Path) -> None:
    data = (folder / _SMALL).read_bytes()

    def replaced_while_open() -> None:
        with open_source(f"memory://run/{_SMALL}", DEFAULT_LIMITS) as source:
            source.read_at(0, 10)
            memory.pipe(f"/run/{_SMALL}", data)

    with pytest.raises(UnreadableFile, match="the file changed"):
        replaced_while_open()


def test_another_error_is_not_hidden_by_the_last_check(memory: fsspec.AbstractFileSystem) -> None:
    def fails_while_open() -> None:
        with open_source(f"memory://run/{_SMALL}", DEFAULT_LIMITS):
            memory.pipe(f"/run/{_SMALL}", b"shorter")
            raise BadUsage("first")

    with pytest.raises(BadUsage, match="first"):
        fails_while_open()


class _OneThreadFilesystem(fsspec.AbstractFileSystem):
    """A protocol whose connection serves one thread, as ftplib's does, and which remembers what it was told."""

    protocol = "onethreadtest"
    data = b""
    known: dict[str, object] | None = None

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._thread = threading.get_ident()

    def info(self, path: str, **options: object) -> dict[str, object]:
        assert threading.get_ident() == self._thread
        if self.known is None:
            type(self).known = {"name": path, "size": len(self.data), "type": "file", "ETag": hash(self.data)}
        return self.known

    def invalidate_cache(self, path: str | None = None) -> None:
        type(self).known = None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        assert threading.get_ident() == self._thread
        time.sleep(0.001)
        return self.data[start:end]


def test_protocol_for_one_thread(folder: Path) -> None:
    fsspec.register_implementation("onethreadtest", _OneThreadFilesystem, clobber=True)
    _OneThreadFilesystem.data = (folder / _STATE_DICT).read_bytes()
    assert _layers("onethreadtest://x.pt") == _layers(str(folder / _STATE_DICT))

    def replaced_while_open() -> None:
        with open_source("onethreadtest://x.pt", DEFAULT_LIMITS) as source:
            _OneThreadFilesystem.data = _OneThreadFilesystem.data[::-1]
            source.read_at(0, 10)

    with pytest.raises(UnreadableFile, match="the file changed"):
        replaced_while_open()


class _SlowFilesystem(fsspec.AbstractFileSystem):
    """A protocol without timeouts of its own, whose server hangs."""

    protocol = "slowtest"
    released = threading.Event()

    def info(self, path: str, **options: object) -> dict[str, object]:
        return {"name": path, "size": 10**6, "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        self.released.wait(30)
        raise OSError("too late")


def test_hanging_protocol_without_timeouts_ends() -> None:
    fsspec.register_implementation("slowtest", _SlowFilesystem, clobber=True)
    with pytest.raises(UnreadableFile, match="did not come within 1 seconds"):
        read("slowtest://host/x.pt", _HASTY)
    _SlowFilesystem.released.set()


# --- archives ----------------------------------------------------------------------------------------------


def _contradict(path: Path, name: str) -> None:
    """Change the local header of a member so that it tells another checksum than the directory."""
    with zipfile.ZipFile(path) as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith(name))
    with open(path, "r+b") as file:
        file.seek(entry.header_offset + 14)
        file.write(struct.pack("<L", entry.CRC ^ 1))


def test_member_that_is_read_is_checked(own_folder: Path) -> None:
    _contradict(own_folder / _STATE_DICT, "/data/1")
    with serving(own_folder) as server, pytest.raises(UnsafeFile, match="disagree"):
        read(f"{server.url}/{_STATE_DICT}")


def test_member_that_is_not_read_is_remarked(own_folder: Path) -> None:
    """The last layer's weight is no batch norm's: a disk would show the contradiction, a server is not asked for it."""
    _contradict(own_folder / _STATE_DICT, "/data/318")
    with pytest.raises(UnsafeFile, match="disagree"):
        read(str(own_folder / _STATE_DICT))
    with serving(own_folder) as server:
        remarks = read(f"{server.url}/{_STATE_DICT}").remarks
    assert any("local headers were not fetched" in remark for remark in remarks)


def test_room_for_another_archive_is_seen_in_the_directory(own_folder: Path) -> None:
    """It lies behind the last layer's weight, whose header is not fetched."""
    path = own_folder / "gap.pt"
    with zipfile.ZipFile(own_folder / _STATE_DICT) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
            if entry.filename.endswith("/data/318"):
                new.fp.write(b"\0" * 70_000)
                new.start_dir = new.fp.tell()
    with serving(own_folder) as server:
        for place in (str(path), f"{server.url}/gap.pt"):
            with pytest.raises(UnsafeFile, match="belong to no member"):
                read(place)


# --- ranges ------------------------------------------------------------------------------------------------

_RANGES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)).map(lambda pair: (pair[0], sum(pair))))


@given(_RANGES, st.integers(0, 20), st.integers(1, 30))
def test_joined_ranges_hold_what_was_asked_for(ranges: list[tuple[int, int]], gap: int, longest: int) -> None:
    wanted = {byte for start, end in ranges for byte in range(start, end)}
    near = joined(ranges, gap)
    assert all(after[0] - before[1] > gap for before, after in pairwise(near))
    covered = [byte for start, end in pieces(near, longest) for byte in range(start, end)]
    assert len(covered) == len(set(covered))
    assert wanted <= set(covered)
    assert all(min(abs(byte - other) for other in wanted) <= gap for byte in covered)
    assert all(0 < end - start <= longest for start, end in pieces(near, longest))


@given(_RANGES, st.integers(1, 300))
def test_fetched_ranges_are_the_files_bytes(ranges: list[tuple[int, int]], capacity: int) -> None:
    file = bytes(range(256)) * 2
    fetched = FetchedRanges(capacity)
    for start, end in ranges:
        for first, last in fetched.missing(start, end):
            fetched.put(first, file[first:last])
        assert fetched.missing(start, end) == []
        assert fetched.take(start, end) == file[start:end]
        fetched.put(max(start - 5, 0), file[max(start - 5, 0) : end + 5])
        assert fetched.take(start, end) == file[start:end]
        fetched.trim()
        held = 512 - sum(last - first for first, last in fetched.missing(0, 512))
        assert held <= capacity
