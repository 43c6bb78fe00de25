"""``bncheck init``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.process import bncheck
from tests.saved_networks import save_network


def test_it_writes_a_config_that_the_audit_goes_by(tmp_path: Path) -> None:
    save_network(tmp_path / "models" / "one.pt")
    save_network(tmp_path / "models [v2]" / "two's.pt", updates={"bn1": 20})
    save_network(tmp_path / "weights")
    (tmp_path / ".github").mkdir()
    finished = bncheck("init", "--schema", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == ("./bncheck.yaml: names 3 model files: models [[]v2]/*.pt, models/*.pt, weights\n")
    assert finished.stderr == ""
    text = (tmp_path / "bncheck.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=bncheck.schema.json\n")
    assert "$schema" in json.loads((tmp_path / "bncheck.schema.json").read_text())
    audited = bncheck("audit", cwd=tmp_path)
    assert audited.returncode == 1
    assert "in 3 files" in audited.stdout
    assert (tmp_path / "bncheck.sarif").exists()


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "bncheck.yaml").write_text("jobs: 3\n")
    refused = bncheck("init", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == f"bncheck: {tmp_path}/bncheck.yaml is there already; --force replaces it\n"
    assert (tmp_path / "bncheck.yaml").read_text() == "jobs: 3\n"
    forced = bncheck("init", tmp_path, "--force")
    assert forced.returncode == 0
    assert "names 0 model files" in forced.stdout
    assert "no model file was found" in forced.stderr
    assert "models/*.pt" in (tmp_path / "bncheck.yaml").read_text()


def test_nothing_is_written_where_one_of_two_is_there(tmp_path: Path) -> None:
    (tmp_path / "bncheck.schema.json").symlink_to("nowhere")
    assert bncheck("init", tmp_path, "--schema").returncode == 2
    assert not (tmp_path / "bncheck.yaml").exists()


def test_no_folder(tmp_path: Path) -> None:
    finished = bncheck("init", tmp_path / "nowhere")
    assert finished.returncode == 2
    assert "there is no such folder" in finished.stderr
