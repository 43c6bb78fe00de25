"""A config file → what it says, and where it says something wrong."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bncheck.config.contents import Config
from bncheck.config.reading import read_config
from bncheck.core.choices import FailOn, Precision, StageChoice
from bncheck.core.errors import BadConfig
from bncheck.core.finding import Severity
from tests.config.configs import BAD, CODES, FORMATS, GOOD


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read(text: str | bytes, path: str = "bncheck.yaml") -> Config:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return read_config(path, CODES, FORMATS)


def _error(text: str | bytes, path: str = "bncheck.yaml") -> str:
    with pytest.raises(BadConfig) as raised:
        _read(text, path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("case", GOOD)
def test_good_configs_are_read(case: str, here: Path) -> None:
    assert isinstance(_read(GOOD[case]), Config)


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_are_refused_with_their_line(case: str, here: Path) -> None:
    text, said = BAD[case]
    message = _error(text)
    assert message.startswith("bncheck.yaml:")
    assert said in message


def test_what_is_said_arrives(here: Path) -> None:
    config = _read(GOOD["everything said of all models"])
    said = config.choices
    assert said.stage is StageChoice.RELEASE
    assert said.select == ("BN2", "BN405", "ALL")
    assert said.ignore == ("BN5",)
    assert said.severity == {"BN405": Severity.ERROR, "BN303": Severity.NOTICE}
    assert said.limits == {"gain_warning": 10, "residue_warning": 0.02, "pickle_opcodes": 1000}
    assert said.model_arg == {"width": 64, "deep": {"er": [1, None]}}
    assert (said.model, said.forward, said.device) == ("nets.py:build", "package.module:predict", "cuda:0")
    assert said.precision is Precision.BF16
    assert said.trust_pickle is False
    run = _read(GOOD["everything said of a run"])
    assert run.fail_on is FailOn.NEVER
    assert run.fail_if_not_checked == ("BN2", "BN405")
    assert run.allow_nothing is True
    assert (run.baseline, run.output_format, run.jobs) == ("known.yaml", "json", 4)
    assert run.outputs == (("sarif", "a.sarif"), ("junit", "b.xml"), ("junit", "c.xml"))
    assert _read(GOOD["strict"]).fail_if_not_checked == ("ALL",)


def test_every_limit_may_be_set(here: Path) -> None:
    from bncheck.config.keys import limit_names
    from bncheck.core.limits import DEFAULT_LIMITS

    values = {name: getattr(DEFAULT_LIMITS, name.replace("-", "_")) for name in limit_names()}
    lines = [f"  {name}: {value}" for name, value in values.items()]
    assert _read("limits:\n" + "\n".join(lines)).choices.limits == {
        name.replace("-", "_"): value for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits:\n  gain-warning: .nan", ":2: wants a number above 0, not nan"),
        ("limits:\n  gain-warning: .inf", ":2: wants a number above 0, not inf"),
        ("limits:\n  gain-warning: 6\n  gain-error: 5", ":1: gain_warning must not exceed gain_error"),
        (f"limits: {{gain-warning: 1{'0' * 400}}}", ":1: a number of more than 300 digits"),
        (f"samples: 0x{'f' * 5000}", ":1: a number of more than 300 digits"),
        ("samples: 1\n\tjobs: 2", ":2:1: malformed YAML"),
        (b"\xff\xfe\x00", "is no text in UTF-8 (byte 0)"),
        ("samples: 3\n".encode("utf-16"), "is no text in UTF-8"),
        (b"# caf\xe9", "is no text in UTF-8 (byte 5)"),
        ("a\x1b]0;x: 1", "malformed YAML: unacceptable character #x001b"),
        ('"\\e[31m": 1', ":1: unknown key '\\x1b[31m'"),
    ],
)
def test_what_no_schema_can_refuse(text: str | bytes, said: str, here: Path) -> None:
    assert said in _error(text)


def test_a_byte_order_mark_is_no_key(here: Path) -> None:
    assert _read(b"\xef\xbb\xbfjobs: 3").jobs == 3


def test_json_and_toml_say_the_same(here: Path) -> None:
    yaml = _read("jobs: 2\nlimits: {gain-warning: 10.5}\nsuppress: [{rule: BN405, reason: r, until: 2030-12-31}]")
    json = _read(
        '{"jobs": 2, "limits": {"gain-warning": 10.5}, "suppress": '
        '[{"rule": "BN405", "reason": "r", "until": "2030-12-31"}]}',
        "c.json",
    )
    toml = _read(
        "[tool.bncheck]\njobs = 2\nlimits.gain-warning = 10.5\n[[tool.bncheck.suppress]]\nrule = 'BN405'\n"
        "reason = 'r'\nuntil = 2030-12-31\n",
        "pyproject.toml",
    )
    assert yaml.jobs == json.jobs == toml.jobs == 2
    assert yaml.choices == json.choices == toml.choices
    (one,), (two,), (three,) = yaml.suppressions, json.suppressions, toml.suppressions
    assert one.until == two.until == three.until == datetime.date(2030, 12, 31)
    assert (one.place, two.place, three.place) == ("bncheck.yaml:3", "c.json:1", "pyproject.toml:4")


def test_an_error_in_toml_has_its_line(here: Path) -> None:
    text = "[project]\nname = 'x'\n[tool.bncheck]\njobs = 2\n[tool.bncheck.limits]\ngain-warnin = 3\n"
    assert _error(text, "pyproject.toml") == (
        "pyproject.toml:6: unknown limit 'gain-warnin'; did you mean 'gain-warning'?"
    )
    assert "malformed TOML" in _error("[tool.bncheck\n", "pyproject.toml")
    assert _error("[project]\n", "pyproject.toml") == "pyproject.toml: has no table [tool.bncheck]"


def test_what_cannot_be_read(here: Path) -> None:
    for path, said in ((".", "Is a directory"), ("nowhere.yaml", "No such file"), ("\0", "cannot be read")):
        with pytest.raises(BadConfig, match=said):
            read_config(path, CODES, FORMATS)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
def test_a_config_without_permission(here: Path) -> None:
    (here / "bncheck.yaml").write_text("jobs: 2")
    (here / "bncheck.yaml").chmod(0)
    program = (
        "from bncheck.config.reading import read_config\nfrom bncheck.core.errors import BadConfig\n"
        "try: read_config('bncheck.yaml', (), ())\nexcept BadConfig as error: print(error)"
    )
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [*drop, sys.executable, "-c", program],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert finished.stdout == "bncheck.yaml: cannot be read: Permission denied\n", finished.stderr


def test_a_file_without_end_is_not_read_to_it(here: Path) -> None:
    (here / "long.yaml").symlink_to("/dev/zero")
    with pytest.raises(BadConfig, match="has more than 64 MiB"):
        read_config("long.yaml", CODES, FORMATS)


def test_a_billion_laughs_cost_nothing(here: Path) -> None:
    """Where anything may stand, and where it may not."""
    laughs = "  a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
        f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    begun = time.process_time()
    assert set(_read(f"model-arg:\n{laughs}").choices.model_arg or {}) == {f"a{i}" for i in range(12)}
    for key in ("models", "suppress", "extends", "limits", "output", "severity"):
        _error(f"model-arg:\n{laughs}{key}: *a11")
    assert time.process_time() - begun < 2.0


# --- paths -------------------------------------------------------------------------------------------------


PATHS = """
model: nets.py:build
data: data/inputs.npy
forward: package.serving:predict
train-step: {root}/abs.py:step
baseline: known.yaml
output: {{sarif: out/a.sarif, html: {root}/b.html}}
models:
  - paths: ["models/*.pt", "{root}/conf/abs/*.pt", "https://host/m.pt", "../other.pt"]
    model: more/nets.py:build
suppress:
  - {{rule: BN405, reason: r, path: "{root}/conf/models/a.pt"}}
"""


def test_paths_are_relative_to_the_config(here: Path) -> None:
    config = _read(PATHS.format(root=here), "conf/bncheck.yaml")
    assert config.folder == "conf"
    said = config.choices
    assert (said.model, said.data) == ("conf/nets.py:build", "conf/data/inputs.npy")
    assert (said.forward, said.train_step) == ("package.serving:predict", f"{here}/abs.py:step")
    assert config.baseline == "conf/known.yaml"
    assert config.outputs == (("sarif", "conf/out/a.sarif"), ("html", f"{here}/b.html"))
    assert config.model_paths() == ("conf/models/*.pt", "conf/abs/*.pt", "https://host/m.pt", "other.pt")
    for path in ("conf/models/a.pt", "conf/abs/a.pt", str(here / "conf/abs/a.pt"), "https://host/m.pt", "other.pt"):
        assert config.choices_for(path).model == "conf/more/nets.py:build", path
    for path in ("models/a.pt", "conf/models/deep/a.pt", "conf/other.pt"):
        assert config.choices_for(path).model == "conf/nets.py:build", path
    assert config.suppressions[0].names_model("models/a.pt")


def test_paths_from_a_subfolder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _read(PATHS.format(root=here), "conf/bncheck.yaml")
    (here / "conf" / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(here / "conf" / "deep" / "er")
    config = read_config("../../bncheck.yaml", CODES, FORMATS)
    assert config.folder == "../.."
    assert config.choices.model == "../../nets.py:build"
    assert config.model_paths()[0] == "../../models/*.pt"
    assert config.baseline == "../../known.yaml"
    assert config.choices_for("../../models/a.pt").model == "../../more/nets.py:build"


def test_later_entries_stand_above_earlier_ones(here: Path) -> None:
    config = _read("""
samples: 10
limits: {gain-warning: 1}
models:
  - {paths: ".", stage: training, limits: {gain-error: 5}}
  - {paths: "**/*.pt", samples: 20}
  - {paths: [a, b.pt], samples: 30}
""")
    assert [config.choices_for(path).samples for path in ("a/x.pt", "b.pt", "c.pt", "c.ckpt")] == [30, 30, 20, 10]
    assert config.choices_for("a/x.pt").limits == {"gain_warning": 1, "gain_error": 5}
    assert config.choices_for("a/x.pt").stage is StageChoice.TRAINING


# --- extends -----------------------------------------------------------------------------------------------


def test_a_config_stands_on_others(here: Path) -> None:
    _read("jobs: 1\nfail-on: notice\nsamples: 11\nlimits: {gain-warning: 5, gain-error: 6}\n", "team/one.yaml")
    _read(
        """
jobs: 2
model: nets.py:build
baseline: known.yaml
output: {sarif: team.sarif}
models: [{paths: "m/*.pt", batch-size: 3}]
suppress: [{rule: BN405, reason: r, path: "m/a.pt"}, {rule: BN303, reason: everywhere}]
""",
        "team/two.yaml",
    )
    config = _read(
        "extends: [../team/one.yaml, ../team/two.yaml]\nlimits: {gain-error: 7}\nmodels: [{paths: '../team/m/a.pt', "
        "batch-size: 4}]\nsuppress: [{rule: BN201, reason: s}]\n",
        "app/bncheck.yaml",
    )
    assert config.jobs == 2
    assert config.fail_on is FailOn.NOTICE
    assert config.choices.samples == 11
    assert config.choices.limits == {"gain_warning": 5, "gain_error": 7}
    assert config.choices.model == "team/nets.py:build"
    assert config.baseline == "team/known.yaml"
    assert config.outputs == (("sarif", "team/team.sarif"),)
    assert config.model_paths() == ("team/m/*.pt", "team/m/a.pt")
    assert config.choices_for("team/m/a.pt").batch_size == 4
    assert config.choices_for("team/m/b.pt").batch_size == 3
    assert [(entry.rule, entry.path) for entry in config.suppressions] == [
        ("BN405", "../team/m/a.pt"), ("BN303", "**"), ("BN201", "**"),
    ]  # fmt: skip
    assert config.suppressions[0].place == "team/two.yaml:7"


def test_circles_are_told(here: Path) -> None:
    _read("jobs: 1", "b.yaml")
    _read("extends: b.yaml", "a.yaml")
    message = _error("jobs: 1\nextends: [a.yaml]", "b.yaml")
    assert message == "a.yaml:1: extends b.yaml, which extends it in turn: a circle"
    (here / "link.yaml").symlink_to("self.yaml")
    assert "a circle" in _error("extends: link.yaml", "self.yaml")


def test_what_is_wrong_below_is_told_there(here: Path) -> None:
    _error("samples: 0", "below.yaml")
    assert _error("extends: below.yaml").startswith("below.yaml:1: wants a whole number")
    assert "nowhere.yaml: cannot be read" in _error("extends: nowhere.yaml")
