"""How many planted faults an audit sees, how often it cries wolf, and what running the model costs.

    python tests/benchmarks/faults.py                      # all networks, all faults: some twenty minutes
    python tests/benchmarks/faults.py --short              # two networks, the quick faults
    python tests/benchmarks/faults.py --cache DIR          # keep the healthy networks there for the next time
    python tests/benchmarks/faults.py --only 'input*'      # faults by name
    python tests/benchmarks/faults.py --no-cost            # without the comparison of times

Faults are gross where they cost 10 points of accuracy or are wrong whatever they cost, mild from 1 point on, and
harmless below. Targets: every gross fault seen, 95 % of the mild ones, and no finding on a healthy network.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import bncheck  # noqa: E402
from bncheck.catalogue import RULES  # noqa: E402
from bncheck.core.finding import Report  # noqa: E402
from bncheck.core.layer_drift import LayerDrift  # noqa: E402
from bncheck.core.limits import DEFAULT_LIMITS  # noqa: E402
from tests.benchmarks.digit_networks import ARCHITECTURES, Healthy, healthy  # noqa: E402
from tests.benchmarks.planted_faults import FAULTS, Fault, audit_module, audit_state  # noqa: E402

GROSS, MILD = 0.10, 0.01
COST_TARGET = 2.5
SHORT_ARCHITECTURES = ("cnn", "mlp")
SEEDS = {"resnet": 1, "regnet": 1, "mobilenet-v1": 1, "mobilenet-v2": 1}
"""How many of each architecture; three where it is not named."""


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit of a faulty network.

    Attributes:
        fault: what was planted.
        network: in which.
        loss: accuracy it costs; None where it is no matter of accuracy.
        fired: codes of the rules that complained.
        unsure: codes of the rules that were to complain and said "not checked".
        complete: whether everything that was asked for was measured.
        drifts: of the layers.
        seconds: the audit alone.
    """

    fault: Fault
    network: str
    loss: float | None
    fired: frozenset[str]
    unsure: frozenset[str]
    complete: bool
    drifts: tuple[LayerDrift, ...]
    seconds: float

    @property
    def grade(self) -> str:
        """``gross``, ``mild`` or ``harmless``."""
        if self.fault.always or (self.loss is not None and self.loss >= GROSS):
            return "gross"
        return "mild" if self.loss is not None and self.loss >= MILD else "harmless"

    @property
    def seen(self) -> bool:
        """Whether one of the rules that should complain did."""
        return bool(self.fired & set(self.fault.rules))


@dataclass(frozen=True, slots=True)
class Clean:
    """One audit of a healthy network; ``alarms`` should be empty."""

    network: str
    way: str
    accuracy: float
    alarms: tuple[str, ...]
    passed: frozenset[str]
    drifts: tuple[LayerDrift, ...]
    seconds: float


def _codes(report: Report) -> tuple[str, ...]:
    if report.failures:
        raise AssertionError(f"the audit failed: {report.failures[0].message}")
    return tuple(f"{finding.rule} {finding.severity.label}" for finding in report.subjects[0].findings)


def clean_audits(network: Healthy, folder: Path) -> Iterator[Clean]:
    """A healthy network as a state dict and as a module."""
    ways = {
        "state dict": lambda: audit_state(network.network(), network, folder, DEFAULT_LIMITS),
        "module": lambda: audit_module(network.network(), DEFAULT_LIMITS),
    }
    for way, audit in ways.items():
        start = time.perf_counter()
        report = audit()
        seconds = time.perf_counter() - start
        (subject,) = report.subjects
        drifts, passed = subject.drifts, frozenset(subject.passed)
        yield Clean(network.name, way, network.accuracy, _codes(report), passed, drifts, seconds)


def planted_audit(fault: Fault, network: Healthy, folder: Path) -> Audited | None:
    """Plant a fault and audit it; None where the network has no room for it."""
    planted = fault.plant(network, folder)
    if planted is None:
        return None
    start = time.perf_counter()
    report = planted.audit(DEFAULT_LIMITS)
    seconds = time.perf_counter() - start
    fired = frozenset(code.partition(" ")[0] for code in _codes(report))
    (subject,) = report.subjects
    unsure = frozenset(entry.rule for entry in subject.not_checked) & set(fault.rules)
    loss = None if planted.accuracy is None else network.accuracy - planted.accuracy
    return Audited(fault, network.name, loss, fired, unsure, subject.complete, subject.drifts, seconds)


# --- the tables --------------------------------------------------------------------------------------------


def _share(audits: Iterable[Audited]) -> str:
    seen = [audit.seen for audit in audits]
    return f"{sum(seen)}/{len(seen)}" if seen else ""


def fault_rows(audits: Sequence[Audited]) -> Iterator[str]:
    """One line for each fault."""
    yield f"{'fault':<46}{'gross':>8}{'mild':>8}{'harmless':>10}{'points lost':>14}{'s':>6}  rules that fired"
    for fault in dict.fromkeys(audit.fault for audit in audits):
        own = [audit for audit in audits if audit.fault == fault]
        graded = {grade: [audit for audit in own if audit.grade == grade] for grade in ("gross", "mild", "harmless")}
        losses = [100 * audit.loss for audit in own if audit.loss is not None]
        lost = f"{min(losses):.1f} … {max(losses):.1f}" if losses else ""
        fired = Counter(code for audit in own for code in audit.fired)
        rules = ", ".join(f"{code} {count}" for code, count in sorted(fired.items()))
        seconds = statistics.median(audit.seconds for audit in own)
        shares = f"{_share(graded['gross']):>8}{_share(graded['mild']):>8}{_share(graded['harmless']):>10}"
        yield f"{fault.name:<46}{shares}{lost:>14}{seconds:>6.2f}  {rules}"


def rule_rows(audits: Sequence[Audited], clean: Sequence[Clean]) -> Iterator[str]:
    """One line for each rule that some fault is to fire."""
    yield f"{'rule':<36}{'of gross':>10}{'of mild':>10}{'false alarms':>14}{'healthy passed':>16}"
    for rule in RULES:
        meant = [audit for audit in audits if rule.id in audit.fault.rules]
        alarms = sum(any(alarm.startswith(rule.id) for alarm in each.alarms) for each in clean)
        if not meant and not alarms:
            continue
        cells = []
        for grade in ("gross", "mild"):
            hits = [rule.id in audit.fired for audit in meant if audit.grade == grade]
            cells.append(f"{sum(hits)}/{len(hits)}" if hits else "")
        passed = sum(rule.id in each.passed for each in clean)
        yield (
            f"{rule.id + ' ' + rule.name:<36}{cells[0]:>10}{cells[1]:>10}"
            f"{f'{alarms}/{len(clean)}':>14}{f'{passed}/{len(clean)}':>16}"
        )


_DELTAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)
_LOG_RATIOS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)


def roc_rows(audits: Sequence[Audited], clean: Sequence[Clean]) -> Iterator[str]:
    """True and false positives of each drift limit alone, over faults of statistics and healthy networks."""
    faulty = [audit for audit in audits if "BN406" in audit.fault.rules and audit.grade != "harmless"]
    tables = (
        ("rms δ", "delta", _DELTAS, DEFAULT_LIMITS.drift_delta_warning),
        ("median |ln ρ²|", "log_ratio", _LOG_RATIOS, DEFAULT_LIMITS.drift_log_ratio_warning),
    )
    for title, measure, limits, default in tables:
        yield f"{title:<16}{'faulty above':>14}{'healthy above':>15}"
        for limit in limits:
            true = [_exceeds(audit.drifts, measure, limit) for audit in faulty]
            false = [_exceeds(each.drifts, measure, limit) for each in clean]
            mark = "  default" if limit == default else ""
            yield f"{limit:<16}{_percent(true):>14}{_percent(false):>15}{mark}"
        largest = max((_largest(each.drifts, measure) for each in clean), default=0.0)
        yield f"largest on a healthy network: {largest:.3f}"


def _exceeds(drifts: Iterable[LayerDrift], measure: str, limit: float) -> bool:
    significance = DEFAULT_LIMITS.drift_significance
    return any(
        getattr(drift, measure) > max(limit, significance * getattr(drift, f"{measure}_noise")) for drift in drifts
    )


def _largest(drifts: Iterable[LayerDrift], measure: str) -> float:
    return max((getattr(drift, measure) for drift in drifts), default=0.0)


def _percent(hits: Sequence[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):.1f} %" if hits else "–"


# --- cost --------------------------------------------------------------------------------------------------


def _resnet18() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10)
    return ResNetForImageClassification(config).eval()


def _small() -> nn.Module:
    return nn.Sequential(ARCHITECTURES["cnn"]()).eval()


def cost_rows(pairs: int, *, short: bool) -> Iterator[str]:
    """An audit in memory beside plain forward passes over the same batches, run in turn."""
    head = f"{'network':<28}{'samples':>9}{'plain, s':>10}{'audit, s':>10}{'ratio, median (range)':>26}"
    yield f"{head}  target <= {COST_TARGET}"
    cases = [("four convolutions, 8 × 8", _small(), (1, 8, 8), 1024)]
    if not short:
        cases.append(("ResNet-18, 64 × 64", _resnet18(), (3, 64, 64), 256))
        cases.append(("ResNet-18, 64 × 64", _resnet18(), (3, 64, 64), 1024))
    for name, network, shape, samples in cases:
        torch.manual_seed(0)
        learned = _with_learned_moments(network, torch.randn(64, *shape))
        batches = [torch.randn(64, *shape) for _ in range(samples // 64)]
        plain, audit = _timed_pairs(learned, batches, pairs)
        ratios = [other / one for one, other in zip(plain, audit, strict=True)]
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"{name:<28}{samples:>9}{statistics.median(plain):>10.2f}{statistics.median(audit):>10.2f}{told:>26}"


def _with_learned_moments(network: nn.Module, images: Tensor) -> nn.Module:
    with torch.no_grad():
        network.train()
        for _ in range(3):
            network(images)
    return network.eval()


def _timed_pairs(network: nn.Module, batches: Sequence[Tensor], pairs: int) -> tuple[list[float], list[float]]:
    plain: list[float] = []
    audit: list[float] = []
    for pair in range(pairs + 1):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                network(batch)
        between = time.perf_counter()
        bncheck.audit(network, data=batches)
        end = time.perf_counter()
        if pair:  # the first warms up
            plain.append(between - start)
            audit.append(end - between)
    return plain, audit


# --- the command -------------------------------------------------------------------------------------------

_SHORT_FAULTS = (
    "forgotten eval*", "traced*", "no running*", "statistics reset", "momentum 0 *", "momentum 1,*",
    "statistics of 3 updates", "statistics of batches of 1", "frozen statistics, 100*", "average of weights*",
    "statistics of another*", "standard deviation*", "half-precision*", "input times 2*", "input plus 1",
    "contrast halved*", "double updates*", "last batch*",
)  # fmt: skip


def chosen_faults(patterns: Sequence[str]) -> list[Fault]:
    """Those whose name fits a pattern."""
    return [fault for fault in FAULTS if any(fnmatch.fnmatch(fault.name, pattern) for pattern in patterns)]


def chosen_networks(cache: Path, *, short: bool) -> Iterator[Healthy]:
    """Trained, or taken from the cache."""
    for architecture in SHORT_ARCHITECTURES if short else ARCHITECTURES:
        for seed in range(1 if short else SEEDS.get(architecture, 3)):
            yield healthy(architecture, seed, cache)


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(cache: Path, folder: Path, faults: Sequence[Fault], *, short: bool) -> tuple[list[Audited], list[Clean]]:
    """Every fault in every network."""
    audits: list[Audited] = []
    clean: list[Clean] = []
    for network in chosen_networks(cache, short=short):
        own = list(clean_audits(network, folder))
        clean += own
        found = [planted_audit(fault, network, folder) for fault in faults]
        audits += [audit for audit in found if audit is not None]
        missed = [audit.fault.name for audit in audits if audit.network == network.name and _is_missed(audit)]
        alarms = [alarm for each in own for alarm in each.alarms]
        _told(f"{network.name}: accuracy {network.accuracy:.3f}; alarms {alarms or 'none'}; missed {missed or 'none'}")
    return audits, clean


def _is_missed(audit: Audited) -> bool:
    return not audit.seen and audit.grade != "harmless"


def summary(audits: Sequence[Audited], clean: Sequence[Clean]) -> dict[str, object]:
    """The same for programs."""
    grades = {grade: [audit for audit in audits if audit.grade == grade] for grade in ("gross", "mild", "harmless")}
    return {
        "networks": sorted({each.network for each in clean}),
        "gross": [sum(audit.seen for audit in grades["gross"]), len(grades["gross"])],
        "mild": [sum(audit.seen for audit in grades["mild"]), len(grades["mild"])],
        "harmless": [sum(audit.seen for audit in grades["harmless"]), len(grades["harmless"])],
        "missed": [
            [audit.fault.name, audit.network, audit.loss, sorted(audit.unsure)] for audit in audits if _is_missed(audit)
        ],
        "incomplete": [[audit.fault.name, audit.network] for audit in audits if not audit.complete],
        "false_alarms": [[each.network, each.way, alarm] for each in clean for alarm in each.alarms],
    }


def main() -> None:
    """Plant, audit, and print the tables."""
    parser = argparse.ArgumentParser(description="Planted faults: recall, false alarms, cost.")
    parser.add_argument("--short", action="store_true", help="two networks and the faults that are quickly planted")
    parser.add_argument("--cache", type=Path, help="where healthy networks are kept (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose names fit one of these patterns")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for each ratio of times")
    parser.add_argument("--no-cost", action="store_true", help="leave out the comparison of times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = chosen_faults(options.only or (_SHORT_FAULTS if options.short else ("*",)))
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        audits, clean = run(cache, Path(folder), faults, short=options.short)
        seconds = time.perf_counter() - start
    told = summary(audits, clean)
    print(f"{len(clean) // 2} healthy networks, {len(audits)} faulty ones, {seconds:.0f} s")
    for rows in (fault_rows(audits), rule_rows(audits, clean), roc_rows(audits, clean)):
        print("\n" + "\n".join(row.rstrip() for row in rows))
    if not options.no_cost:
        print("\n" + "\n".join(row.rstrip() for row in cost_rows(options.pairs, short=options.short)))
    print(f"\ngross faults seen {_of(told['gross'])} (target all), mild {_of(told['mild'])} (target 95 %), ", end="")
    print(f"false alarms {len(list(_listed(told['false_alarms'])))} (target none)")
    for audit in filter(_is_missed, audits):
        lost = "" if audit.loss is None else f", {100 * audit.loss:.1f} points"
        unsure = f"; not checked: {', '.join(sorted(audit.unsure))}" if audit.unsure else ""
        print(f"  missed, {audit.grade}: {audit.fault.name} in {audit.network}{lost}{unsure}")
    for alarm in _listed(told["false_alarms"]):
        print(f"  false alarm: {alarm}")
    if options.json:
        options.json.write_text(json.dumps(told), encoding="utf-8")


def _of(counts: object) -> str:
    seen, planted = counts if isinstance(counts, list) else (0, 0)
    return f"{seen} of {planted}"


def _listed(entries: object) -> Iterable[object]:
    return entries if isinstance(entries, list) else []


if __name__ == "__main__":
    main()
