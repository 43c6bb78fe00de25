"""Estimating population statistics: what bncheck's ways cost and how far off they are, beside what people use today.

    python tests/benchmarks/recalibrate.py                                  # on the CPU: three models, batches of 4, 32
    python tests/benchmarks/recalibrate.py --device cuda                    # also exact in bf16 and channels-last
    python tests/benchmarks/recalibrate.py --device cuda --precision bf16   # everybody under autocast to bfloat16
    python tests/benchmarks/recalibrate.py --part errors --part shift       # only these of: cost, errors, shift
    python tests/benchmarks/recalibrate.py --quick                          # a small model, once, to see that it runs

Three tables: time, memory and error of each way on the same model and the same batches; error against the number of
samples; and classification error on shifted digits before and after recalibration. No figure is an error, whatever it
is: a machine's load decides too much of it. Targets stand beside the figures.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # Before torch is imported. A thread that spins for a core which a neighbour has would measure the neighbour, and
    # it hits hardest what computes in one thread pool, as everything but bncheck does here.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tests.benchmarks import domain_shift  # noqa: E402
from tests.benchmarks.estimators import (  # noqa: E402
    AUTO,
    ESTIMATORS,
    EXACT,
    FAST,
    FVCORE,
    MODELS,
    ONLINE,
    UPDATE_BN,
    Errors,
    Estimator,
    build,
    errors,
    fixed_point,
    images,
    nearest,
    under,
    update_bn_stats,
)

PARTS = ("cost", "errors", "shift")
PRECISION_TARGET = 1000.0
SAMPLES_TARGET = 0.25
FAST_TARGETS = (0.5, 1e-3)
# Median ratio of wall seconds to update_bn's.
TIME_TARGETS = {"cpu": {EXACT.name: 1.25, ONLINE.name: 1.10}, "cuda": {EXACT.name: 1.0, ONLINE.name: 1.0}}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and on what to measure.

    Attributes:
        device: of the models.
        precision: fp32, or bf16: autocast.
        models: keys of ``MODELS``.
        batch_sizes: of the batches; the last one is smaller.
        samples: images in all.
        side: pixels.
        rounds: in each of which every way runs once.
    """

    device: torch.device
    precision: str
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    samples: int
    side: int
    rounds: int


# --- time and memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """One run.

    Attributes:
        wall: seconds.
        cpu: seconds of all threads of this process; a busy machine does not lengthen them.
        peak: bytes above what was held before: allocated on a GPU, resident on a CPU; None where nobody tells.
        samples: that were used.
    """

    wall: float
    cpu: float
    peak: int | None
    samples: int


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Peak:
    """The most memory that is held at a time, above what is held when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect(1)  # what the last run left; all that torch consists of would take longer than a run
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident_from_now_on()

    def bytes(self) -> int | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        peak = _resident("VmHWM")
        return None if peak is None or not self._before else peak - self._before


def _resident_from_now_on() -> int:
    """Have the kernel forget the process's largest resident set, where it can (proc(5), clear_refs); 0 elsewhere."""
    try:
        # What the allocator keeps would hide what the next run takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return 0
    return _resident("VmRSS") or 0


def _resident(entry: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")), None)


def run_once(
    estimator: Estimator, model: nn.Module, batches: Sequence[Tensor], precision: str
) -> tuple[Cost, nn.Module]:
    """Run a way on a copy of the model, and return that, too."""
    model = deepcopy(model)
    device = next(model.parameters()).device
    if estimator.fast:
        model = model.to(memory_format=torch.channels_last)
        batches = [batch.to(memory_format=torch.channels_last) for batch in batches]
    peak = _Peak(device)
    _wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    with under(estimator, precision, device):
        samples = estimator.run(model, batches, device)
    _wait_for(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall, cpu, peak.bytes(), samples), model


@dataclass(slots=True)
class Measured:
    """A way on one model, with batches of one size.

    Attributes:
        costs: of each round.
        errors: against float64 brute force; None for what estimates nothing.
    """

    costs: list[Cost] = field(default_factory=list)
    errors: Errors | None = None

    def median(self, what: str) -> float:
        """Of the rounds."""
        return statistics.median(getattr(cost, what) for cost in self.costs)

    def ratios(self, other: Measured, what: str) -> list[float]:
        """To another way, round by round: both ran while the machine was as busy."""
        pairs = zip(self.costs, other.costs, strict=True)
        return [getattr(mine, what) / max(getattr(theirs, what), 1e-9) for mine, theirs in pairs]

    @property
    def peak(self) -> int | None:
        """Bytes, of all rounds."""
        return max((cost.peak for cost in self.costs if cost.peak is not None), default=None)


def batches_of(everything: Tensor, size: int) -> list[Tensor]:
    """In turn; the last one holds what is left over."""
    return [batch.contiguous() for batch in everything.split(size)]


def measure_costs(model: nn.Module, batches: Sequence[Tensor], setting: Setting) -> dict[str, Measured]:
    """Run all ways in turn, round by round, after one round that does not count."""
    everything = torch.cat(list(batches)).to(setting.device)
    truths = [fixed_point(model, everything, corrected=corrected) for corrected in (False, True)]
    del everything
    ways = [*ESTIMATORS, *([FAST] if setting.device.type == "cuda" and setting.precision == "fp32" else [])]
    found = {way.name: Measured() for way in ways}
    for round_ in range(setting.rounds + 1):
        # Nobody is always first, or always behind the same one.
        turn = round_ % len(ways)
        for way in ways[turn:] + ways[:turn]:
            cost, after = run_once(way, model, batches, setting.precision)
            if round_:
                found[way.name].costs.append(cost)
            elif way.estimates:
                found[way.name].errors = nearest(after, truths)
    return found


def cost_lines(found: dict[str, Measured], setting: Setting) -> Iterator[str]:
    """A row for each way."""
    reference = found[UPDATE_BN.name]
    targets = TIME_TARGETS.get(setting.device.type, {})
    for name, measured in found.items():
        ratios = measured.ratios(reference, "wall")
        peak = "" if measured.peak is None else f"{measured.peak / 1e6:.0f} MB"
        off = measured.errors
        told = "" if off is None else f"{off.mean:>9.1e} {off.mean_rms:>9.1e} {off.var:>9.1e} {off.var_rms:>9.1e}"
        target = f"<= {targets[name]:.2f} x time" if name in targets else ""
        if name == FAST.name:
            target = "<= {:.2f} x time, errors < {:.0e}".format(*FAST_TARGETS)
        yield (
            f"{name:<26}{measured.median('wall'):>8.3f}{measured.median('cpu'):>9.3f}"
            f"{f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})':>23}"
            f"{statistics.median(measured.ratios(reference, 'cpu')):>7.2f}{peak:>9}  {told:<40}{target}"
        ).rstrip()
    exact, theirs = found[EXACT.name].errors, reference.errors
    if exact is not None and theirs is not None:
        yield (
            f"update_bn's errors over exact's: mean {theirs.mean / max(exact.mean, 1e-12):.0f}, "
            f"variance {theirs.var / max(exact.var, 1e-12):.0f} (target: >= {PRECISION_TARGET:.0f} each)"
        )
    yield f"auto used {found[AUTO.name].costs[0].samples} samples"


_HEAD = (
    f"{'':<26}{'wall s':>8}{'CPU s':>9}{'wall / update_bn':>23}{'CPU /':>7}{'peak':>9}  "
    f"{'mean max':>9} {'mean rms':>9} {'var max':>9} {'var rms':>9}"
)


def costs(setting: Setting) -> dict[str, dict[str, Measured]]:
    """Measure, and print as it comes."""
    memory = "allocated on the GPU" if setting.device.type == "cuda" else "resident set"
    print(
        f"\n{setting.device}, {setting.precision}, {setting.samples} images of {setting.side} x {setting.side}, "
        f"{torch.get_num_threads()} threads; medians of {setting.rounds} rounds;\n"
        f"peak: {memory} above what was held before; errors of means in sigma, of variances as a share, over channels"
    )
    if update_bn_stats is None:
        print(f"{FVCORE.name}: not installed")
    everything = images(setting.samples, setting.side, seed=1)
    results: dict[str, dict[str, Measured]] = {}
    for name in setting.models:
        model = build(name).to(setting.device)
        for size in setting.batch_sizes:
            title = f"{name}, batches of {size}"
            results[title] = found = measure_costs(model, batches_of(everything, size), setting)
            print(f"\n{title}\n{_HEAD}")
            for line in cost_lines(found, setting):
                print(line, flush=True)
    return results


# --- errors against samples --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Learning:
    """Errors by way and number of samples, with batches of one size; each the mean over draws.

    Attributes:
        batch: their size.
        errors: (way, samples) → the larger of the root mean squares over channels of means' and variances' errors.
        auto: (samples, error) where the stop rule stops.
    """

    batch: int
    errors: dict[tuple[str, int], float]
    auto: tuple[float, float]

    def best_peer(self) -> tuple[str, int, float]:
        """Way, samples and error of the peers' best; of equals, to 2 %, the one with the fewest samples."""
        peers = {key: error for key, error in self.errors.items() if key[0] != EXACT.name}
        least = min(peers.values())
        name, samples = min((key for key, error in peers.items() if error <= 1.02 * least), key=lambda key: key[1])
        return name, samples, peers[name, samples]

    def ours_as_good(self) -> int | None:
        """Fewest samples with which exact comes as close as the peers' best."""
        best = self.best_peer()[2]
        return min((n for (way, n), error in self.errors.items() if way == EXACT.name and error <= best), default=None)


def learn(setting: Setting, counts: Sequence[int], population: int, draws: int) -> list[Learning]:
    """Errors against the moments of a population much larger than any calibration set; its images are not in those."""
    model = build(setting.models[0]).to(setting.device)
    truth = fixed_point(model, images(population, setting.side, seed=100).to(setting.device))
    sets = [images(max(counts), setting.side, seed=1 + draw) for draw in range(draws)]
    ways = [UPDATE_BN, *([] if update_bn_stats is None else [FVCORE]), EXACT]
    learned: list[Learning] = []
    for size in setting.batch_sizes:

        def error(way: Estimator, everything: Tensor, size: int = size) -> tuple[int, float]:
            cost, after = run_once(way, model, batches_of(everything, size), setting.precision)
            return cost.samples, errors(after, truth).rms

        by_count = {
            (way.name, count): statistics.mean(error(way, one[:count])[1] for one in sets)
            for count in counts
            for way in ways
        }
        stopped = [error(AUTO, one) for one in sets]
        auto = statistics.mean(count for count, _ in stopped), statistics.mean(off for _, off in stopped)
        learned.append(Learning(size, by_count, auto))
    return learned


def learning_lines(found: Learning) -> Iterator[str]:
    """A row for each number of samples."""
    ways = list(dict.fromkeys(way for way, _ in found.errors))
    counts = list(dict.fromkeys(count for _, count in found.errors))
    yield f"\nbatches of {found.batch}"
    yield f"{'samples':>8}" + "".join(f"{way:>16}" for way in ways)
    for count in counts:
        yield f"{count:>8}" + "".join(f"{found.errors[way, count]:>16.4f}" for way in ways)
    yield f"{found.auto[0]:>8.0f}{'bncheck auto':>{16 * len(ways) - 16}}{found.auto[1]:>16.4f}"
    way, samples, error = found.best_peer()
    yield f"best of the others: {error:.4f} ({way}, {samples} samples)"
    ours = found.ours_as_good()
    said = "not within these" if ours is None else f"{ours} samples, {ours / samples:.2f} of theirs"
    yield f"bncheck comes as close with: {said} (target: <= {SAMPLES_TARGET})"


def learning(setting: Setting, *, quick: bool) -> list[Learning]:
    """Measure on the first of the models, and print."""
    counts, population, draws, side = ((8, 32), 64, 1, 16) if quick else ((64, 256, 1024, 4096), 8192, 3, 32)
    print(
        f"\nerror against samples, {setting.models[0]}: against {population} other images of {side} x {side}; rms over "
        "channels,\nof means in sigma and of variances as a share, the larger of the two",
        flush=True,
    )
    found = learn(replace(setting, side=side), counts, population, draws)
    for one in found:
        for line in learning_lines(one):
            print(line, flush=True)
    return found


def shifts(*, quick: bool) -> list[domain_shift.Shifted]:
    """Measure, and print."""
    print("\nshifted digits misread, in per cent, by samples recalibrated on and prior", flush=True)
    networks, draws, samples, updates = ([0], 1, (8, 32), 60) if quick else ([0, 1, 2], 3, domain_shift.SAMPLES, 400)
    found = domain_shift.measure(networks, draws, samples, updates)
    for line in domain_shift.table(found):
        print(line, flush=True)
    return found


# --- the command -------------------------------------------------------------------------------------------


def _setting(options: argparse.Namespace) -> Setting:
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    if options.quick:
        return Setting(device, options.precision, ("small CNN",), (4,), 21, 16, 1)
    return Setting(
        device=device,
        precision=options.precision,
        models=tuple(options.model or MODELS),
        batch_sizes=(4, 32),
        samples=options.samples or (1025 if gpu else 101),
        side=96 if gpu else 64,
        rounds=options.rounds,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Ways to estimate population statistics, side by side.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: under autocast")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument(
        "--model", choices=list(MODELS), action="append", help="default: all; the second table takes the first"
    )
    parser.add_argument("--samples", type=int, help="images of the first table (default: 101; 1025 on a GPU)")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each way in the first table")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="a small model, once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    # TF32 is a precision of its own, and no float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setting, parts = _setting(options), options.part or PARTS
    told: dict[str, object] = {}
    if "cost" in parts:
        told["cost"] = {
            title: {name: asdict(measured) for name, measured in found.items()}
            for title, found in costs(setting).items()
        }
    if "errors" in parts:
        told["errors"] = {
            one.batch: {"best_peer": one.best_peer(), "ours_as_good": one.ours_as_good(), "auto": one.auto}
            for one in learning(setting, quick=options.quick)
        }
    if "shift" in parts:
        told["shift"] = {
            row.shift: {
                "before": row.before,
                **{f"{count}, prior {prior}": error for (count, prior), error in row.after.items()},
            }
            for row in shifts(quick=options.quick)
        }
    if options.json:
        options.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
