"""How many planted faults an audit sees, how often it cries wolf, and what running the model costs.

    python tests/benchmarks/faults.py                      # all networks, all faults: some twenty minutes
    python tests/benchmarks/faults.py --short              # two networks, the quick faults
    python tests/benchmarks/faults.py --cache DIR          # keep the healthy networks there for the next time
    python tests/benchmarks/faults.py --only 'input*'      # faults by name
    python tests/benchmarks/faults.py --networks 'mlp*'    # networks by name
    python tests/benchmarks/faults.py --no-cost            # without the comparison of times

What a fault costs through batch norm is the accuracy that the network wins back once its batch norms are right: with
the healthy network's where nothing else was touched, else with moments re-estimated on the very data it is used on.
Faults are gross where that is 10 points, or they are wrong whatever they cost; mild from 1 point on. Harm of 1 point
and more that right moments do not win back lies in the weights or in the data: it is counted by itself. Below is
harmless. Targets: every gross fault seen, 95 % of the mild ones, and no finding on a healthy network, on the networks
that the limits were chosen on and on those held out.
"""

from __future__ import annotations

import argparse
import enum
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
from tests.benchmarks.digit_networks import (  # noqa: E402
    ARCHITECTURES,
    AUGMENTED,
    CHOSEN_ON,
    HELD_OUT,
    Healthy,
    healthy,
)
from tests.benchmarks.planted_faults import (  # noqa: E402
    FAULTS,
    Fault,
    audit_module,
    audit_state,
    righted_accuracy,
)

GROSS, MILD = 0.10, 0.01
COST_TARGET = 2.5
SHORT = (("cnn", 0), ("mlp", 0))


class Part(enum.Enum):
    """What a network is there for."""

    CHOSEN_ON = "limits chosen on"
    HELD_OUT = "held out"
    AUGMENTED = "augmented training"


class Grade(enum.Enum):
    """What a fault costs through batch norm."""

    GROSS = "gross"
    MILD = "mild"
    ELSEWHERE = "elsewhere"
    """Accuracy is lost, and right moments do not win it back."""
    HARMLESS = "harmless"


# --- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit of a faulty network.

    Attributes:
        fault: what was planted.
        network: in which.
        part: what that is there for.
        loss: accuracy it costs in all; None where it is no matter of accuracy.
        won_back: accuracy that right batch norms win back.
        fired: codes of the rules that complained.
        unsure: codes of the rules that were to complain and said "not checked".
        complete: whether everything that was asked for was measured.
        drifts: of the layers.
        seconds: the audit alone.
    """

    fault: Fault
    network: str
    part: Part
    loss: float | None
    won_back: float | None
    fired: frozenset[str]
    unsure: frozenset[str]
    complete: bool
    drifts: tuple[LayerDrift, ...]
    seconds: float

    @property
    def grade(self) -> Grade:
        """By what is lost through batch norm."""
        if self.fault.always or (self.won_back is not None and self.won_back >= GROSS):
            return Grade.GROSS
        if self.won_back is not None and self.won_back >= MILD:
            return Grade.MILD
        return Grade.ELSEWHERE if self.loss is not None and self.loss >= MILD else Grade.HARMLESS

    @property
    def grade_in_all(self) -> Grade:
        """By what is lost, whatever through."""
        if self.fault.always or (self.loss is not None and self.loss >= GROSS):
            return Grade.GROSS
        return Grade.MILD if self.loss is not None and self.loss >= MILD else Grade.HARMLESS

    @property
    def seen(self) -> bool:
        """Whether one of the rules that should complain did."""
        return bool(self.fired & set(self.fault.rules))


@dataclass(frozen=True, slots=True)
class Clean:
    """One audit of a healthy network.

    Attributes:
        network: its name.
        part: what it is there for.
        way: as a state dict or as a module.
        accuracy: on all digits.
        won_back: accuracy that moments re-estimated on all digits win.
        alarms: codes of the rules that complained; there should be none.
        passed: codes of the rules that found nothing.
        drifts: of the layers.
        seconds: the audit alone.
    """

    network: str
    part: Part
    way: str
    accuracy: float
    won_back: float
    alarms: tuple[str, ...]
    passed: frozenset[str]
    drifts: tuple[LayerDrift, ...]
    seconds: float

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Complaints that recalibrating does not bear out."""
        return () if self.won_back >= MILD else self.alarms


def _codes(report: Report) -> tuple[str, ...]:
    if report.failures:
        raise AssertionError(f"the audit failed: {report.failures[0].message}")
    return tuple(f"{finding.rule} {finding.severity.label}" for finding in report.subjects[0].findings)


def clean_audits(network: Healthy, part: Part, folder: Path) -> Iterator[Clean]:
    """A healthy network as a state dict and as a module."""
    won_back = righted_accuracy(network.network()) - network.accuracy
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
        yield Clean(network.name, part, way, network.accuracy, won_back, _codes(report), passed, drifts, seconds)


def planted_audit(fault: Fault, network: Healthy, part: Part, folder: Path) -> Audited | None:
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
    loss = won_back = None
    if planted.accuracy is not None:
        loss = network.accuracy - planted.accuracy
        won_back = None if planted.righted is None else planted.righted - planted.accuracy
    complete, drifts = subject.complete, subject.drifts
    return Audited(fault, network.name, part, loss, won_back, fired, unsure, complete, drifts, seconds)


# --- the tables --------------------------------------------------------------------------------------------


def _share(audits: Iterable[Audited]) -> str:
    seen = [audit.seen for audit in audits]
    return f"{sum(seen)}/{len(seen)}" if seen else ""


def fault_rows(audits: Sequence[Audited]) -> Iterator[str]:
    """One line for each fault."""
    head = "".join(f"{grade.value:>10}" for grade in Grade)
    yield f"{'fault':<46}{head}{'points lost':>14}{'won back':>14}{'s':>6}  rules that fired"
    for fault in dict.fromkeys(audit.fault for audit in audits):
        own = [audit for audit in audits if audit.fault == fault]
        lost = _span(audit.loss for audit in own)
        won = _span(audit.won_back for audit in own)
        fired = Counter(code for audit in own for code in audit.fired)
        rules = ", ".join(f"{code} {count}" for code, count in sorted(fired.items()))
        seconds = statistics.median(audit.seconds for audit in own)
        shares = "".join(f"{_share(audit for audit in own if audit.grade is grade):>10}" for grade in Grade)
        yield f"{fault.name:<46}{shares}{lost:>14}{won:>14}{seconds:>6.2f}  {rules}"


def _span(shares: Iterable[float | None]) -> str:
    """From the least to the most, in points."""
    points = [100 * share for share in shares if share is not None]
    return f"{min(points):.1f} … {max(points):.1f}" if points else ""


def part_rows(audits: Sequence[Audited], clean: Sequence[Clean]) -> Iterator[str]:
    """What was seen, and what was told of healthy networks, for each part and for all."""
    yield (
        f"{'':<20}{'through batch norm':>26}{'harm elsewhere,':>18}{'harmless,':>12}{'whatever through':>26}"
        f"{'healthy':>10}{'alarms':>8}{'of them':>9}"
    )
    yield (
        f"{'networks':<20}{'gross':>13}{'mild':>13}{'told anyway':>18}{'told':>12}{'gross':>13}{'mild':>13}"
        f"{'audits':>10}{'':>8}{'false':>9}"
    )
    for title, parts in (*((part.value, {part}) for part in Part), ("all", set(Part))):
        own = [audit for audit in audits if audit.part in parts]
        sound = [each for each in clean if each.part in parts]
        if not own and not sound:
            continue
        by_moments = [_share(audit for audit in own if audit.grade is grade) for grade in Grade]
        in_all = [_share(audit for audit in own if audit.grade_in_all is grade) for grade in (Grade.GROSS, Grade.MILD)]
        alarms = sum(bool(each.alarms) for each in sound)
        false = sum(bool(each.false_alarms) for each in sound)
        gross, mild, elsewhere, harmless = by_moments
        yield (
            f"{title:<20}{gross:>13}{mild:>13}{elsewhere:>18}{harmless:>12}{in_all[0]:>13}{in_all[1]:>13}"
            f"{len(sound):>10}{alarms:>8}{false:>9}"
        )


def rule_rows(audits: Sequence[Audited], clean: Sequence[Clean]) -> Iterator[str]:
    """One line for each rule that some fault is to fire."""
    yield f"{'rule':<36}{'of gross':>10}{'of mild':>10}{'false alarms':>14}{'healthy passed':>16}"
    for rule in RULES:
        meant = [audit for audit in audits if rule.id in audit.fault.rules]
        alarms = sum(any(alarm.startswith(rule.id) for alarm in each.false_alarms) for each in clean)
        if not meant and not alarms:
            continue
        cells = []
        for grade in (Grade.GROSS, Grade.MILD):
            hits = [rule.id in audit.fired for audit in meant if audit.grade is grade]
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
    faulty = [audit for audit in audits if "BN406" in audit.fault.rules and audit.grade in {Grade.GROSS, Grade.MILD}]
    tables = (
        ("rms δ", "delta", _DELTAS, DEFAULT_LIMITS.drift_delta_warning),
        ("median |ln ρ²|", "log_ratio", _LOG_RATIOS, DEFAULT_LIMITS.drift_log_ratio_warning),
    )
    for title, measure, limits, default in tables:
        faulty_head = "".join(f"{part.value:>20}" for part in (Part.CHOSEN_ON, Part.HELD_OUT))
        healthy_head = "".join(f"{part.value:>20}" for part in Part)
        yield f"{title:<16}  faulty above:{faulty_head}  healthy above:{healthy_head}"
        for limit in limits:
            true = "".join(
                f"{_percent([_exceeds(audit.drifts, measure, limit) for audit in faulty if audit.part is part]):>20}"
                for part in (Part.CHOSEN_ON, Part.HELD_OUT)
            )
            false = "".join(
                f"{_percent([_exceeds(each.drifts, measure, limit) for each in clean if each.part is part]):>20}"
                for part in Part
            )
            mark = "  default" if limit == default else ""
            yield f"{limit:<16}{'':<15}{true}{'':<16}{false}{mark}"
        largest = ", ".join(
            f"{part.value} {max(found):.3f}"
            for part in Part
            if (found := [_largest(each.drifts, measure) for each in clean if each.part is part])
        )
        yield f"largest on a healthy network: {largest}"


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


def chosen_networks(patterns: Sequence[str], *, short: bool) -> list[tuple[Part, str, int]]:
    """Architectures and seeds whose name fits a pattern."""
    parts = {Part.CHOSEN_ON: SHORT if short else CHOSEN_ON}
    if not short:
        parts |= {Part.HELD_OUT: HELD_OUT, Part.AUGMENTED: AUGMENTED}
    return [
        (part, architecture, seed)
        for part, networks in parts.items()
        for architecture, seed in networks
        if any(fnmatch.fnmatch(f"{architecture}-{seed}", pattern) for pattern in patterns)
    ]


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(
    cache: Path, folder: Path, faults: Sequence[Fault], networks: Sequence[tuple[Part, str, int]]
) -> tuple[list[Audited], list[Clean]]:
    """Every fault in every network, but in those of augmented training none."""
    audits: list[Audited] = []
    clean: list[Clean] = []
    for part, architecture, seed in networks:
        network = healthy(architecture, seed, cache)
        own = list(clean_audits(network, part, folder))
        clean += own
        planted = () if part is Part.AUGMENTED else faults
        found = [planted_audit(fault, network, part, folder) for fault in planted]
        audits += [audit for audit in found if audit is not None]
        missed = [audit.fault.name for audit in audits if audit.network == network.name and _is_missed(audit)]
        alarms = [alarm for each in own for alarm in each.alarms]
        _told(
            f"{network.name}: accuracy {network.accuracy:.3f}, {100 * own[0].won_back:+.1f} points by recalibration; "
            f"alarms {alarms or 'none'}; missed {missed or 'none'}"
        )
    return audits, clean


def _is_missed(audit: Audited) -> bool:
    return not audit.seen and audit.grade in {Grade.GROSS, Grade.MILD}


def summary(audits: Sequence[Audited], clean: Sequence[Clean]) -> dict[str, object]:
    """The same for programs."""
    graded = {grade: [audit for audit in audits if audit.grade is grade] for grade in Grade}
    return {
        "networks": sorted({each.network for each in clean}),
        **{grade.value: [sum(audit.seen for audit in own), len(own)] for grade, own in graded.items()},
        "missed": [
            [audit.fault.name, audit.network, audit.won_back, sorted(audit.unsure)]
            for audit in audits
            if _is_missed(audit)
        ],
        "incomplete": [[audit.fault.name, audit.network] for audit in audits if not audit.complete],
        "false_alarms": [[each.network, each.way, alarm] for each in clean for alarm in each.false_alarms],
    }


def main() -> None:
    """Plant, audit, and print the tables."""
    parser = argparse.ArgumentParser(description="Planted faults: recall, false alarms, cost.")
    parser.add_argument("--short", action="store_true", help="two networks and the faults that are quickly planted")
    parser.add_argument("--cache", type=Path, help="where healthy networks are kept (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="faults whose names fit one of these patterns")
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=["*"], help="networks, likewise")
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
        audits, clean = run(cache, Path(folder), faults, chosen_networks(options.networks, short=options.short))
        seconds = time.perf_counter() - start
    told = summary(audits, clean)
    print(f"{len(clean) // 2} healthy networks, {len(audits)} faulty ones, {seconds:.0f} s")
    for rows in (fault_rows(audits), rule_rows(audits, clean), roc_rows(audits, clean)):
        print("\n" + "\n".join(row.rstrip() for row in rows))
    if not options.no_cost:
        print("\n" + "\n".join(row.rstrip() for row in cost_rows(options.pairs, short=options.short)))
    print("\n" + "\n".join(row.rstrip() for row in part_rows(audits, clean)))
    print("targets: every gross fault seen, 95 % of the mild ones, no false alarm")
    print("\n".join(row.rstrip() for row in exceptions(audits, clean)))
    if options.json:
        options.json.write_text(json.dumps(told), encoding="utf-8")


def exceptions(audits: Sequence[Audited], clean: Sequence[Clean]) -> Iterator[str]:
    """Every fault that was missed, all harm that lies elsewhere and was not told, and every alarm."""
    for audit in filter(_is_missed, audits):
        unsure = f"; not checked: {', '.join(sorted(audit.unsure))}" if audit.unsure else ""
        yield f"  missed, {audit.grade.value}: {_described(audit)}{unsure}"
    for audit in audits:
        if audit.grade is Grade.ELSEWHERE and not audit.seen:
            yield f"  harm elsewhere, not told: {_described(audit)}"
    for each in clean:
        for alarm in each.alarms:
            kind = "false" if each.false_alarms else "right"
            yield f"  {kind} alarm: {alarm} on {each.network} as a {each.way}, {_points(each.won_back)} won back"


def _described(audit: Audited) -> str:
    won, lost = audit.won_back, audit.loss
    numbers = "" if won is None or lost is None else f", {_points(lost)} lost, {_points(won)} won back"
    return f"{audit.fault.name} in {audit.network}{numbers}"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


if __name__ == "__main__":
    main()
