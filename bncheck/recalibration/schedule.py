"""From batches to population statistics: how many samples, in which waves, and how often they go through."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bncheck.core.errors import BadData, OutOfMemory
from bncheck.core.estimate import Estimate, Settling
from bncheck.core.estimation_method import Method
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.recalibration.calibration_set import placed, regrouped, size_in_bytes
from bncheck.recalibration.feed import Feed
from bncheck.recalibration.population import Population
from bncheck.recalibration.prior import Prior, PseudoSamples
from bncheck.recalibration.ranks import OneProcess, RankFailed, Ranks
from bncheck.recalibration.stop_rule import settling
from bncheck.recalibration.waves import Waves
from bncheck.runtime.activation_memory import bytes_of_pass, free_bytes, host_bytes
from bncheck.runtime.batch_moments import BatchMoments
from bncheck.runtime.batches import Batch, Forward, halves, select
from bncheck.runtime.norm_watch import ByHand, NormCall, NormWatch, written_by_hand
from bncheck.runtime.out_of_memory import give_back_cached

_CPU = torch.device("cpu")
# Samples in one pass: enough that its cost is the arithmetic's.
_PASS_SAMPLES = {"cpu": 32, "cuda": 128, "mps": 64}
# Samples after which the stop rule is asked for the first time.
# Samples on which a layer written by hand shows what it computes.
_LOOKED_AT = 8
_FIRST_PORTION = 256
# Passes at a time; on a CPU the threads of all their pools together, for each pass has a pool of OpenMP's.
_MOST_PASSES = 256
_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How to estimate.

    Attributes:
        method: which moments.
        samples: how many; None takes as many as the stop rule asks for.
        most_samples: where it is asked.
        prior: how the stored moments count.
        memory: bytes that the passes of a wave may hold together; None takes most of what is free.
        host_memory: bytes that the samples held for further sweeps may take; None takes half of what is free.
        pass_samples: batches are put together to so many samples; None takes the device's usual.
        whole_batches: whether batches are neither put together nor cut: a graph may have been made for their size.
        stride: of the positions of an image that are looked at.
        check: whether an online estimate is followed by a sweep that measures how far it is from the fixed point.
        device: where the model is.
        limits: of the stop rule and of exactness.
    """

    method: Method = Method.EXACT
    samples: int | None = None
    most_samples: int = 10_000
    prior: Prior = field(default_factory=PseudoSamples)
    memory: int | None = None
    host_memory: int | None = None
    pass_samples: int | None = None
    whole_batches: bool = False
    stride: int = 1
    check: bool = True
    device: torch.device = _CPU
    limits: Limits = DEFAULT_LIMITS


Tell = Callable[[int], None]
"""Samples that have gone through since it was last told."""


def estimate(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    means: Mapping[str, Tensor],
    variances: Mapping[str, Tensor],
    plan: Plan,
    ranks: Ranks | None = None,
    tell: Tell | None = None,
) -> Estimate:
    """Estimate the moments of some layers; their running buffers hold them afterwards.

    Whatever goes wrong, whoever calls this puts the buffers back (``unchanged``).

    Args:
        model: in eval mode, with every other layer left to it.
        batches: this rank's samples, on any device.
        forward: calls the model.
        means: layer name → running mean, of the layers to estimate.
        variances: likewise.
        plan: how.
        ranks: who else takes part.
        tell: progress.

    Raises:
        BadData: there are no samples, or a layer is given values that are not finite.
        BadModel: a layer normalises with the batch's moments whatever is stored.
        UserCodeFailed: the model or the data raised.
    """
    run = _Run(model, forward, means, variances, plan, ranks or OneProcess(list(means)), tell or (lambda _: None))
    with torch.no_grad():
        return run.through(iter(batches))


def _most_passes(device: torch.device) -> int:
    return max(4, min(_MOST_PASSES, _MOST_THREADS // torch.get_num_threads())) if device.type == "cpu" else _MOST_PASSES


def _parts(batches: Sequence[Batch], size: int) -> list[list[Batch]]:
    return [list(batches[start : start + size]) for start in range(0, len(batches), size)]


def _next_portion(seen: int, wanted: int) -> int:
    """Samples to have in all after the next portion: an estimate from few samples is itself uncertain."""
    return min(max(wanted, seen * 3 // 2), 2 * seen)


@dataclass(frozen=True, slots=True)
class _Residual:
    """How far what is stored is from the fixed point; None where that was not measured."""

    distance: float | None = None
    in_errors: float | None = None
    why: str | None = None


class _Run:
    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        means: Mapping[str, Tensor],
        variances: Mapping[str, Tensor],
        plan: Plan,
        ranks: Ranks,
        tell: Tell,
    ) -> None:
        self._model = model
        self._forward = forward
        self._means = means
        self._plan = plan
        self._ranks = ranks
        self._tell = tell
        self._population = Population(means, variances, plan.prior, ranks, plan.stride)
        self._waves = Waves(model, forward, means, self._population, ranks, tell)
        # None once they are too many.
        self._held: list[list[Batch]] | None = []
        self._held_bytes = 0
        self._host_room = plan.host_memory or host_bytes()
        self._wave_count = 0
        self._samples = 0
        self._sweeps = 1
        self._capacity = 1
        self._by_hand = ByHand({}, {})

    def through(self, batches: Iterator[Batch]) -> Estimate:
        try:
            return self._through(batches)
        except RankFailed:
            raise
        except BaseException:
            self._ranks.failed()
            raise

    def _through(self, batches: Iterator[Batch]) -> Estimate:
        if self._plan.method is Method.BATCH:
            self._with_batch_moments(batches)
            return self._result(_Residual())
        self._gather(Feed(self._passes(batches), self._ranks, whole=self._plan.whole_batches))
        return self._result(self._polish() if self._plan.method is Method.EXACT else self._checked())

    def _passes(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self._plan.whole_batches:
            return batches
        usual = _PASS_SAMPLES.get(self._plan.device.type, 32)
        share = math.ceil((self._plan.samples or 0) / self._ranks.count / _most_passes(self._plan.device))
        return regrouped(batches, self._plan.pass_samples or max(usual, share))

    def _gather(self, feed: Feed) -> None:
        """The first sweep: portion by portion, until there are samples enough."""
        wanted = self._plan.samples or min(_FIRST_PORTION, self._plan.most_samples)
        while True:
            taken, came = feed.take(wanted - self._samples, self._host_room)
            if not came and not self._samples:
                raise BadData("the data is empty: it yields no batch")
            self._sweep_portion(taken)
            self._samples += came
            self._population.check()
            if not came or self._samples >= (self._plan.samples or self._plan.most_samples):
                return
            if self._samples >= wanted and self._plan.samples is None:
                found = self._settling()
                if found.share >= self._plan.limits.settled_share:
                    return
                wanted = min(self._plan.most_samples, _next_portion(self._samples, found.samples_wanted))

    def _sweep_portion(self, taken: Sequence[Batch]) -> None:
        if taken and not self._wave_count:
            self._capacity = self._passes_at_once(taken[0])
            self._look_for_layers_by_hand(taken[0])
        waves = deque(_parts(taken, self._capacity))
        # Every rank takes part until the last has run out.
        while sum(self._ranks.each(len(waves))):
            wave = waves.popleft() if waves else []
            if not self._fits(wave):
                give_back_cached()
                self._population.drop(self._wave_count)
                self._capacity = max(1, len(wave) // 2)
                smaller = wave if len(wave) > 1 else list(halves(wave[0]))
                waves = deque(_parts([*smaller, *(one for later in waves for one in later)], self._capacity))
                continue
            self._wave_count += 1
            self._hold(wave)

    def _fits(self, wave: list[Batch]) -> bool:
        """Send a wave through; False where there is no memory for it.

        Raises:
            OutOfMemory: there is nothing smaller to try, or others are in the midst of the same wave.
        """
        try:
            self._wave(self._wave_count, wave)
        except OutOfMemory:
            one_sample = len(wave) == 1 and (wave[0].size == 1 or self._plan.whole_batches)
            if self._ranks.count > 1 or one_sample:
                raise
            return False
        return True

    def _hold(self, wave: list[Batch]) -> None:
        """Keep the samples for further sweeps, as long as the host has room for them."""
        if self._held is not None:
            self._held.append(wave)
            self._held_bytes += sum(size_in_bytes(batch) for batch in wave)
            if self._held_bytes > self._host_room:
                self._held = None

    def _wave(self, index: int, wave: Sequence[Batch]) -> None:
        self._waves.run(index, [placed(batch, self._plan.device) for batch in wave], self._population.visit)

    def _look_for_layers_by_hand(self, batch: Batch) -> None:
        few = batch if self._plan.whole_batches else select(batch, range(min(_LOOKED_AT, batch.size)))
        few = placed(few, self._plan.device)
        self._by_hand = written_by_hand(self._model, self._means, lambda: self._forward(self._model, few))
        self._waves.stop_at(self._by_hand.forms)

    def _passes_at_once(self, batch: Batch) -> int:
        """How many passes memory holds side by side: counted on a few samples."""
        few = batch if self._plan.whole_batches else select(batch, range(min(2, batch.size)))
        few = placed(few, self._plan.device)
        needed = bytes_of_pass(self._model, few, self._forward) / few.size * batch.size
        room = self._plan.memory or free_bytes(self._plan.device)
        return max(1, min(_most_passes(self._plan.device), int(room // max(1.0, needed))))

    def _polish(self) -> _Residual:
        """Sweep until what is stored no longer moves."""
        if self._population.is_exact_by_construction():
            return _Residual(0.0, 0.0)
        held = self._everything()
        if held is None:
            return _Residual(why="the calibration set does not fit into memory for another sweep; take fewer samples")
        flat = [batch for wave in held for batch in wave]
        fits = not any(self._ranks.each(int(len(flat) > self._capacity)))
        if fits and len(held) > 1:
            # All of it in one wave meets every layer at once.
            self._population.forget()
            if self._is_swept([flat]):
                held, self._wave_count = [flat], 1
            else:
                give_back_cached()
                self._population.forget()
            if self._population.is_exact_by_construction():
                return _Residual(0.0, 0.0)
        return self._iterate(held)

    def _is_swept(self, held: list[list[Batch]]) -> bool:
        """Sweep in these waves; False where there is no memory for them, and nothing of it counts.

        Raises:
            OutOfMemory: there is nothing smaller to try.
        """
        try:
            self._resweep(held)
        except OutOfMemory:
            if self._ranks.count > 1 or all(len(wave) < 2 for wave in held):
                raise
            return False
        return True

    def _iterate(self, held: list[list[Batch]]) -> _Residual:
        limit, residual = self._plan.limits.exact_residual, _Residual()
        while self._sweeps < self._plan.limits.exact_sweeps:
            before = self._population.stored()
            if not self._is_swept(held):
                give_back_cached()
                self._population.forget()
                flat = [batch for wave in held for batch in wave]
                self._capacity = max(1, max(len(wave) for wave in held) // 2)
                held = _parts(flat, self._capacity)
                self._wave_count = len(held)
                continue
            residual = self._residual(self._population, before)
            if residual.distance is not None and residual.distance <= limit:
                return residual
        why = (
            f"after {self._sweeps} sweeps the moments still move by {residual.distance:.1e} σ; the limit is {limit:.0e}"
        )
        return replace(residual, why=why)

    def _everything(self) -> list[list[Batch]] | None:
        """All samples held, if every rank holds its own."""
        missing = any(self._ranks.each(int(self._held is None)))
        return None if missing else self._held

    def _resweep(self, held: list[list[Batch]]) -> None:
        for index, wave in enumerate(held):
            self._wave(index, wave)
        self._sweeps += 1
        self._population.check()

    def _checked(self) -> _Residual:
        """A sweep that stores nothing, and how far the stored moments are from those of their layers' inputs."""
        if not self._plan.check:
            return _Residual()
        held = self._everything()
        if held is None:
            return _Residual(why="the calibration set does not fit into memory for another sweep; take fewer samples")
        judge = self._population.successor()
        waves = Waves(self._model, self._forward, self._means, judge, self._ranks, self._tell)
        waves.stop_at(self._by_hand.forms)
        for index, wave in enumerate(held):
            waves.run(index, [placed(batch, self._plan.device) for batch in wave], judge.collect)
        judge.blend_all()
        self._sweeps += 1
        return self._residual(judge, self._population.stored())

    def _residual(self, now: Population, before: Mapping[str, tuple[Tensor, Tensor]]) -> _Residual:
        return _Residual(now.distance(before), now.distance_in_errors(before))

    def _with_batch_moments(self, batches: Iterator[Batch]) -> None:
        def add(call: NormCall) -> None:
            if call.layer is not None:
                self._population.add(call.layer, self._population.look(call))

        budget = self._plan.samples or self._plan.most_samples
        feed = Feed(batches, self._ranks, whole=self._plan.whole_batches)
        while self._samples < budget:
            taken, came = feed.take(min(budget - self._samples, _FIRST_PORTION), self._host_room)
            if not came:
                break
            for batch in taken:
                self._normalised_by_itself(batch, add)
            self._samples += came
        if not self._samples:
            raise BadData("the data is empty: it yields no batch")
        self._population.merge_ranks()
        self._population.store_all()
        self._population.check()

    def _normalised_by_itself(self, batch: Batch, add: Callable[[NormCall], None]) -> None:
        with BatchMoments(self._means.values()), NormWatch(self._means, add):
            self._forward(self._model, placed(batch, self._plan.device))
        self._tell(batch.size)

    def _settling(self) -> Settling:
        return settling(self._population.data(), self._plan.limits)

    def _result(self, residual: _Residual) -> Estimate:
        return Estimate(
            method=self._plan.method,
            samples=self._samples,
            layers=self._population.estimates(),
            unreached=tuple(name for name in self._population.unreached if name not in self._by_hand.unknown),
            not_estimated=dict(self._by_hand.unknown),
            left_alone=(),
            sweeps=self._sweeps,
            waves=max(1, self._wave_count),
            residual=residual.distance,
            residual_in_errors=residual.in_errors,
            why_inexact=residual.why,
            settling=self._settling(),
            batch_scatter=self._population.batch_scatter(),
            stride_cost=self._population.stride_cost(),
        )
