"""The benchmark of recalibration runs, and what it shows that no machine's speed can change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks.domain_shift import PRIORS, SHIFTS
from tests.benchmarks.estimators import (
    AUTO,
    ESTIMATORS,
    EXACT,
    FAST,
    MODELS,
    UPDATE_BN,
    batch_norms,
    build,
    errors,
    fixed_point,
    images,
    nearest,
)
from tests.benchmarks.recalibrate import Cost, Learning, Measured, Setting, cost_lines, main, run_once
from tests.recalibration.networks import brute_force


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of one pool wait for one another on a busy machine, many times as long as they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
def test_quick_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    main(["--quick", "--json", str(figures)])
    table = capsys.readouterr().out.splitlines()
    for way in ESTIMATORS:
        assert sum(line.startswith(f"{way.name}  ") for line in table) == 1
    told = json.loads(figures.read_text(encoding="utf-8"))
    ways = told["cost"]["small CNN, batches of 4"]
    assert list(ways) == [way.name for way in ESTIMATORS]
    assert {len(way["costs"]) for way in ways.values()} == {1}
    for moment in ("mean", "var"):
        assert ways[UPDATE_BN.name]["errors"][moment] > 1000 * ways[EXACT.name]["errors"][moment]
    assert ways["eval forward"]["errors"] is None
    assert list(told["errors"]) == ["4"]
    shifted = told["shift"]
    assert list(shifted) == list(SHIFTS)
    assert list(shifted["none"]) == ["before", *(f"{n}, prior {prior}" for n in (8, 32) for prior in PRIORS)]
    # As published: moments of a few samples of clean data do harm, and a prior repairs it; of shifted data they help.
    assert shifted["none"]["8, prior auto"] < shifted["none"]["8, prior 0"]
    assert shifted["contrast"]["32, prior 0"] < shifted["contrast"]["before"]


def test_truth_is_that_of_the_tests() -> None:
    model, everything = build("small CNN"), images(13, 8, seed=3)
    truth = fixed_point(model, everything, corrected=True)
    reference = brute_force(build("small CNN"), list(everything.split(5)))
    assert truth.keys() == reference.keys()
    for name in truth:
        torch.testing.assert_close(truth[name], reference[name])
    biased = fixed_point(model, everything)
    assert bool((biased["features.1"][1] < truth["features.1"][1]).all())


def test_each_way_is_held_against_the_kinder_definition() -> None:
    model, everything = build("small CNN"), images(13, 8, seed=3)
    truths = [fixed_point(model, everything, corrected=corrected) for corrected in (False, True)]
    for truth in truths:
        for name, (mean, var) in truth.items():
            layer = model.get_submodule(name)
            layer.running_mean.copy_(mean)  # type: ignore[operator, union-attr]
            layer.running_var.copy_(var)  # type: ignore[operator, union-attr]
        assert nearest(model, truths).largest < 1e-6
        assert max(errors(model, other).largest for other in truths) > 1e-3


def test_ways_run_on_copies() -> None:
    model, batches = build("small CNN"), [images(4, 8, seed=1), images(3, 8, seed=2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for way in (*ESTIMATORS, FAST):
        cost, after = run_once(way, model, batches, "fp32")
        assert cost.samples == 7
        moved = not torch.equal(after.get_buffer("features.1.running_mean"), before["features.1.running_mean"])
        assert moved == way.estimates
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_low_precision_is_seen_in_the_errors() -> None:
    model, batches = build("small CNN"), [images(8, 8, seed=1)]
    truth = [fixed_point(model, batches[0], corrected=True)]
    full, low, fast = (
        nearest(run_once(way, model, batches, precision)[1], truth).largest
        for way, precision in ((EXACT, "fp32"), (EXACT, "bf16"), (FAST, "fp32"))
    )
    assert full < 1e-5 < low < 0.2
    assert 1e-5 < fast < 0.2


def test_ratios_are_those_of_the_same_round() -> None:
    def measured(*walls: float) -> Measured:
        return Measured([Cost(wall, wall, None, 8) for wall in walls])

    mine, theirs = measured(1.0, 20.0, 3.0), measured(2.0, 20.0, 2.0)
    assert mine.ratios(theirs, "wall") == [0.5, 1.0, 1.5]
    setting = Setting(torch.device("cpu"), "fp32", (), (), 8, 8, 3)
    lines = list(cost_lines({UPDATE_BN.name: theirs, EXACT.name: mine, AUTO.name: mine}, setting))
    assert "1.00 (0.50 to 1.50)" in lines[1]
    assert lines[1].endswith("<= 1.25 x time")
    assert lines[-1] == "auto used 8 samples"


def test_samples_that_come_as_close_as_the_best_of_the_others() -> None:
    theirs = {("update_bn", 64): 0.5, ("update_bn", 256): 0.201, ("fvcore", 256): 0.3, ("update_bn", 1024): 0.2}
    ours = {(EXACT.name, 64): 0.19, (EXACT.name, 256): 0.1}
    learned = Learning(4, theirs | ours, (64, 0.19))
    assert learned.best_peer() == ("update_bn", 256, 0.201)
    assert learned.ours_as_good() == 64
    assert Learning(4, theirs | {(EXACT.name, 64): 0.3}, (64, 0.3)).ours_as_good() is None


def test_models_have_the_layers_of_their_names() -> None:
    """ResNet-18 has 20 batch norms, ResNet-50 53: https://arxiv.org/abs/1512.03385, table 1."""
    with torch.device("meta"):
        networks = {name: MODELS[name]() for name in ("ResNet-18", "ResNet-50")}
    counts = {name: len(batch_norms(network)) for name, network in networks.items()}
    assert counts == {"ResNet-18": 20, "ResNet-50": 53}
