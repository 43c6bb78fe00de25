"""``--baseline`` and ``--write-baseline``, from one release to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.process import bncheck
from tests.saved_networks import save_network


def test_from_one_release_to_the_next(tmp_path: Path) -> None:
    name = "known.yaml"
    model = save_network(tmp_path / "models" / "a.pt", updates={"bn1": 20, "bn2": 20})
    assert bncheck("audit", "models", cwd=tmp_path).returncode == 1
    written = bncheck("audit", "models", "--write-baseline", name, cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith(" PASS  no findings, 1 excused in 4 layers of 1 file\n")
    assert f"known: it stands in {name}" in written.stdout
    first = (tmp_path / name).read_bytes()

    (tmp_path / "elsewhere").mkdir()
    again = bncheck("audit", "../models/a.pt", "--baseline", f"../{name}", cwd=tmp_path / "elsewhere")
    assert again.returncode == 0, again.stdout

    save_network(model, updates={"bn1": 18, "bn2": 20, "bn3": 20})
    worse = bncheck("audit", "models", "--baseline", name, "--format", "json", cwd=tmp_path)
    assert worse.returncode == 1
    (subject,) = json.loads(worse.stdout)["subjects"]
    assert [finding["layers"] for finding in subject["findings"]] == [["bn1", "bn3"]]
    assert [(entry["layers"], entry["excuse"]["by"]) for entry in subject["excused"]] == [(["bn2"], "baseline")]

    save_network(model)
    fixed = bncheck("audit", "models", "--baseline", name, cwd=tmp_path)
    assert fixed.returncode == 0
    assert " ".join(f"{name}: models/a.pt no longer has BN405 at bn1, bn2".split()) in " ".join(fixed.stdout.split())
    save_network(model, updates={"bn1": 20, "bn2": 20})
    assert bncheck("audit", "models", "--write-baseline", name, cwd=tmp_path).returncode == 0
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("version: 9\n", "known.yaml:1: a baseline of version 9; this bncheck reads version 1: write it anew"),
    ],
)
def test_one_that_cannot_be_gone_by_is_one_line_and_exit_2(content: str | None, said: str, tmp_path: Path) -> None:
    save_network(tmp_path / "a.pt")
    if content is not None:
        (tmp_path / "known.yaml").write_text(content)
    finished = bncheck("audit", "a.pt", "--baseline", "known.yaml", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("bncheck: known.yaml")
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_what_could_not_be_seen_is_not_written_down(tmp_path: Path) -> None:
    save_network(tmp_path / "a.pt", updates={"bn1": 20})
    (tmp_path / "b.pt").write_bytes(b"PK\x03\x04")
    finished = bncheck("audit", "a.pt", "b.pt", "--write-baseline", "known.yaml", cwd=tmp_path)
    assert finished.returncode == 2
    assert "BN405" in finished.stdout
    assert "known.yaml was not written: not everything could be audited" in finished.stdout
    assert not (tmp_path / "known.yaml").exists()
