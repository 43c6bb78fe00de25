"""What to recalibrate, as the command line says it, and what came of it; nothing here knows torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bncheck.core.estimate import Estimate
from bncheck.core.estimation_method import Method
from bncheck.core.run_options import RunOptions


@dataclass(frozen=True, slots=True)
class Choice:
    """How to estimate, whatever the model comes from.

    Attributes:
        method: which moments.
        samples: size of the calibration set; None takes as many as the stop rule asks for.
        max_samples: where it is asked.
        prior: pseudo-samples that the stored moments count as; None weighs them by the evidence.
        layers, skip: globs of layer names: to recalibrate these alone, and none of those.
        memory: bytes the passes of a wave may hold together; None takes most of what is free.
        spatial_stride: of the positions of an image that are looked at.
        check: whether an online estimate is measured against the fixed point.
    """

    method: Method = Method.EXACT
    samples: int | None = None
    max_samples: int = 10_000
    prior: float | None = 0.0
    layers: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    memory: int | None = None
    spatial_stride: int = 1
    check: bool = True


@dataclass(frozen=True, slots=True)
class FileChoice:
    """How to recalibrate a file.

    Attributes:
        run: what to run and on what.
        choice: how to estimate.
        output: where the copy goes; None writes nothing.
        force: whether it may replace a file.
        evaluate: SPEC of a callable (model) → float, higher is better.
        eval_data: SPEC of labelled data to measure accuracy on.
        require_improvement: whether to write only where the metric did not fall.
        seed: of torch's, numpy's and Python's generators, for loaders that shuffle.
        timeout: seconds that the processes of a distributed run wait for one another.
    """

    run: RunOptions
    choice: Choice = field(default_factory=Choice)
    output: str | None = None
    force: bool = False
    evaluate: str | None = None
    eval_data: str | None = None
    require_improvement: bool = False
    seed: int = 0
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of merit with the old moments and with the new.

    Attributes:
        name: what was measured.
        before, after: higher is better.
    """

    name: str
    before: float
    after: float

    @property
    def is_worse(self) -> bool:
        """Whether it fell, or is no number."""
        return not self.after >= self.before


@dataclass(frozen=True, slots=True)
class Written:
    """The copy that was written.

    Attributes:
        path: of the copy.
        record: of the JSON record beside it.
        input_sha256, output_sha256: in hexadecimal.
        tensors: names of those written.
        bytes_changed: in which file and copy differ.
    """

    path: str
    record: str
    input_sha256: str
    output_sha256: str
    tensors: tuple[str, ...]
    bytes_changed: int


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A file's recalibration.

    Attributes:
        path: the model file.
        group: which copy of the network in it.
        device, precision: where and how it ran.
        processes: that took part.
        estimate: the moments found.
        counts: layer → updates it is said to have had before and now, where that changes.
        metric: None where none was asked for.
        written: None where nothing was.
        why_not_written: why, where an output was asked for.
    """

    path: str
    group: str
    device: str
    precision: str
    processes: int
    estimate: Estimate
    counts: Mapping[str, tuple[int, int]]
    metric: Metric | None = None
    written: Written | None = None
    why_not_written: str | None = None
