"""Paths → Report: finds the model files, reads each, applies the rules."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bncheck.catalogue import RULES
from bncheck.core.checkpoint import Checkpoint, Stage
from bncheck.core.choices import Choices, StageChoice
from bncheck.core.code_prefixes import begins
from bncheck.core.errors import BadConfig, BadUsage, BncheckError, NoModel, UnsupportedFile, UserCodeFailed
from bncheck.core.finding import Failure, Finding, Report, Severity, Subject
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.measurement import Measurements, NotMeasured
from bncheck.core.remedies import with_specs
from bncheck.core.rule import Rule
from bncheck.core.run_options import InMemory, RunOptions
from bncheck.engine import examine
from bncheck.readers import matching_urls, read
from bncheck.readers.candidates import DISTRIBUTED, is_candidate, is_distributed, is_distributed_part
from bncheck.readers.live_module import read_live
from bncheck.readers.sharded import shards_beside
from bncheck.readers.urls import is_pattern, local_path, scheme_of, shown

if TYPE_CHECKING:
    from torch import nn  # noqa: TID251 - a type alone: nothing is imported

Progress = Callable[[int, int, str], None]
"""(files done, files in all, the next path)."""
SampleProgress = Callable[[int, int], None]
"""(samples seen, samples asked for)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to audit.

    Attributes:
        rules: which to apply.
        stage: what the files are for; None infers it from each file.
        fail_on: least severity that fails the run; None when none does.
        limits: every threshold.
        vouched: callables that whole-module pickles may name beyond the known ones.
        run: what to run the models on; None reads the files alone.
        severities: code → the severity its findings have, in place of what the rule says.
        must_check: code prefixes of the rules that may not go unchecked.
        nothing_is_clean: whether a run that found no normalisation layer is clean.
    """

    rules: tuple[Rule, ...] = RULES
    stage: Stage | None = None
    fail_on: Severity | None = Severity.ERROR
    limits: Limits = DEFAULT_LIMITS
    vouched: frozenset[str] = frozenset()
    run: RunOptions | None = None
    severities: Mapping[str, Severity] = field(default_factory=dict)
    must_check: tuple[str, ...] = ()
    nothing_is_clean: bool = False

    def with_choices(self, choices: Choices) -> Settings:
        """These settings, with what the user says of a model.

        Raises:
            BadUsage: a code prefix matches no rule, or a model is to be run on nothing.
            BadConfig: a limit lies above the one it warns of.
        """
        try:
            limits = replace(self.limits, **(choices.limits or {}))  # type: ignore[arg-type]  # the config has checked
        except ValueError as error:
            raise BadConfig(f"limits: {error}") from None
        return replace(
            self,
            rules=select_rules(choices.select or (), choices.ignore or ()),
            stage=None if choices.stage in (None, StageChoice.AUTO) else Stage(choices.stage.value),
            limits=limits,
            vouched=frozenset(choices.allow_call or ()),
            run=choices.run(),
            severities=choices.severity or {},
        )


SettingsOf = Callable[[str], Settings]
"""How to audit the file of this path."""


def audit_paths(
    paths: Iterable[str],
    settings: Settings,
    progress: Progress | None = None,
    tell: SampleProgress | None = None,
    *,
    settings_of: SettingsOf | None = None,
    jobs: int = 1,
) -> Report:
    """Audit files, folders and globs; a file that cannot be read never stops the others.

    Args:
        paths: what the user named.
        settings: how to audit.
        progress: told before each file.
        tell: told of the samples a model has been run on.
        settings_of: how to audit single files; None: all alike.
        jobs: processes; with more than one, a file that ends its process is that file's failure alone.

    Raises:
        BadUsage: there are to be no processes.
    """
    if jobs < 1:
        raise BadUsage(f"jobs is {jobs}; it is 1 or more")
    found = find_files(paths, settings.limits)
    tasks = [_Task(path, settings if settings_of is None else settings_of(path)) for path in found.files]
    results: dict[int, Subject | _Failed] = {}
    for index, result in _results(tasks, jobs, progress, tell):
        results[index] = result
    subjects: list[Subject] = []
    failures = list(found.failures)
    skipped = found.skipped
    for index, path in enumerate(found.files):
        match results[index]:
            case Subject() as subject:
                subjects.append(subject)
            case _Failed(failure=failure, no_model=no_model):
                # Beside a model lie its scheduler and its settings: passed over where nobody named them.
                if no_model and path in found.walked:
                    skipped += 1
                else:
                    failures.append(failure)
    return Report(
        tuple(subjects),
        tuple(failures),
        skipped,
        settings.fail_on,
        settings.must_check,
        nothing_is_clean=settings.nothing_is_clean,
    )


@dataclass(frozen=True, slots=True)
class _Task:
    path: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Failed:
    failure: Failure
    no_model: bool = False
    """Whether it was read to its end and holds something else than a network."""


def _results(
    tasks: Sequence[_Task], jobs: int, progress: Progress | None, tell: SampleProgress | None
) -> Iterator[tuple[int, Subject | _Failed]]:
    """What became of each task, by its index."""
    if jobs == 1 or len(tasks) < 2:
        for index, task in enumerate(tasks):
            if progress is not None:
                progress(index, len(tasks), task.path)
            yield index, _attempt(task, tell)
        return
    from bncheck.workers import Died, work  # noqa: PLC0415 - multiprocessing is no matter of a single file

    for done, (index, result) in enumerate(work(_attempt, tasks, jobs), 1):
        if progress is not None:
            progress(done, len(tasks), tasks[index].path)
        if isinstance(result, Died):
            what = f"its process died while it was audited: {result.how}"
            yield index, _Failed(Failure(shown(tasks[index].path), "process-died", what))
        else:
            yield index, result


def _attempt(task: _Task, tell: SampleProgress | None = None) -> Subject | _Failed:
    """Audit a file; raises nothing but what ends the whole run."""
    path = shown(task.path)
    try:
        return _audit_file(task.path, task.settings, tell)
    except BncheckError as error:
        return _Failed(Failure(path, error.kind, str(error)), isinstance(error, NoModel))
    except (MemoryError, RecursionError) as error:
        too_much = f"reading it needs too much memory ({type(error).__name__})"
        return _Failed(Failure(path, "unsafe-file", too_much))
    except Exception as error:
        # A fault of ours on one file must neither hide the others nor end as exit code 1, which means findings.
        what = f"bncheck failed on it: {type(error).__name__}: {error}"
        return _Failed(Failure(path, "internal-error", what))


def audit_module(model: nn.Module, settings: Settings, given: InMemory | None) -> Report:
    """Audit a module of this process; it is left as it was found.

    Args:
        model: the module.
        settings: how to audit.
        given: what to run it on; None looks at what it holds.

    Raises:
        BadUsage: it is a graph, whose calls only its file tells.
    """
    from bncheck.runtime.in_memory import describe  # noqa: PLC0415 - the static path imports no torch

    checkpoint = read_live(describe(model))
    if settings.stage is not None:
        checkpoint = replace(checkpoint, stage=settings.stage)
    measurements = None
    if given is not None and checkpoint.layers:
        from bncheck.measuring import measure_in_memory  # noqa: PLC0415

        measurements = _or_failed(lambda: measure_in_memory(model, checkpoint, given), "", "")
    subject = _examined(checkpoint, settings, measurements)
    return Report((subject,), fail_on=settings.fail_on, must_check=settings.must_check)


def _audit_file(path: str, settings: Settings, tell: SampleProgress | None) -> Subject:
    checkpoint = read(path, settings.limits, settings.vouched)
    if settings.stage is not None:
        checkpoint = replace(checkpoint, stage=settings.stage)
    # A model may have layers of which the file says nothing: where only parameters were saved.
    runs = settings.run is not None and bool(checkpoint.layers or settings.run.model)
    measurements = _measured(checkpoint, settings.run, tell) if runs and settings.run is not None else None
    subject = _examined(checkpoint, settings, measurements)
    return replace(subject, checkpoint=_without_places(checkpoint))


def _without_places(checkpoint: Checkpoint) -> Checkpoint:
    """What reports tell of: where each tensor's bytes lie is half of a checkpoint, and a run may hold thousands."""
    return replace(checkpoint, tensors={}, networks={}, moments={}, file=None)


def _examined(checkpoint: Checkpoint, settings: Settings, measurements: Measurements | None) -> Subject:
    """What the rules say, at the severities the user gives them, with remedies that name the user's SPECs."""
    subject = examine(checkpoint, settings.rules, settings.limits, measurements)
    outcomes = tuple(_as_told(entry, settings) if isinstance(entry, Finding) else entry for entry in subject.outcomes)
    return replace(subject, outcomes=outcomes)


def _as_told(finding: Finding, settings: Settings) -> Finding:
    hits = tuple(replace(hit, remedy=with_specs(hit.remedy, settings.run)) for hit in finding.hits)
    severity = settings.severities.get(finding.rule, finding.severity)
    return replace(finding, severity=severity, remedy=with_specs(finding.remedy, settings.run), hits=hits)


def _measured(checkpoint: Checkpoint, options: RunOptions, tell: SampleProgress | None) -> Measurements:
    from bncheck.measuring import measure  # noqa: PLC0415 - the static path imports no torch

    return _or_failed(lambda: measure(checkpoint, options, tell), options.device, options.precision)


def _or_failed(measure: Callable[[], Measurements], device: str, precision: str) -> Measurements:
    """What was measured; where the model cannot be run, its own findings stand and the audit is incomplete."""
    try:
        return measure()
    except BncheckError as error:
        detail = error.detail if isinstance(error, UserCodeFailed) else ""
        failed = NotMeasured("model", str(error), failed=True, detail=detail)
        return Measurements(device, precision, 0, not_measured=(failed,))


def select_rules(select: Sequence[str], ignore: Sequence[str]) -> tuple[Rule, ...]:
    """The rules whose codes start with a selected prefix and with no ignored one.

    Args:
        select: code prefixes such as ``BN2`` or ``BN201``, or ``ALL``; none selects all.
        ignore: likewise.

    Raises:
        BadUsage: a prefix matches no rule.
    """
    for prefix in (*select, *ignore):
        if not any(begins(rule.id, (prefix,)) for rule in RULES):
            raise BadUsage(f"no rule starts with {prefix!r}; `bncheck rules` lists them")
    return tuple(rule for rule in RULES if (not select or begins(rule.id, select)) and not begins(rule.id, ignore))


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What paths came to: files to audit, paths that came to nothing, and how many other files lay in folders."""

    files: tuple[str, ...]
    walked: frozenset[str]
    """Those of the files that were found inside folders."""
    failures: tuple[Failure, ...]
    skipped: int


_NO_MATCH = "the pattern matches no file; check the path"


def find_files(paths: Iterable[str], limits: Limits = DEFAULT_LIMITS) -> FoundFiles:
    """Expand folders (recursively; hidden ones are left out) and globs, also of URLs; each file once, in order."""
    files: dict[str, None] = {}
    walked: set[str] = set()
    failures: list[Failure] = []
    skipped = 0
    for path in map(local_path, paths):
        if scheme_of(path) is not None:
            urls, failed = _find_urls(path, limits)
            files.update(dict.fromkeys(urls))
            failures.extend(failed)
        elif os.path.isdir(path):
            folder = _find_inside(path, limits)
            fresh = [name for name in folder.files if name not in files]
            files.update(dict.fromkeys(fresh))
            walked.update(fresh)
            failures.extend(folder.failures)
            skipped += folder.skipped
        elif is_distributed_part(path):
            failures.append(Failure(path, UnsupportedFile.kind, DISTRIBUTED))
        elif os.path.lexists(path) or not glob.has_magic(path):
            files.setdefault(path)
            walked.discard(path)
        else:
            matches = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
            if not matches:
                failures.append(Failure(path, "nothing-found", _NO_MATCH))
            files.update(dict.fromkeys(matches))
    return FoundFiles(tuple(files), frozenset(walked), tuple(failures), skipped)


def _find_urls(url: str, limits: Limits) -> tuple[Sequence[str], Sequence[Failure]]:
    if not is_pattern(url):
        return (url,), ()
    try:
        urls = matching_urls(url, limits)
    except BncheckError as error:
        return (), (Failure(shown(url), error.kind, str(error)),)
    return urls, () if urls else (Failure(shown(url), "nothing-found", _NO_MATCH),)


def _find_inside(folder: str, limits: Limits) -> FoundFiles:
    """The model files of a folder; those that an index names belong to it, and are not audited beside it."""
    files: list[str] = []
    failures: list[Failure] = []
    skipped = 0
    for root, names in _walk(folder):
        if is_distributed(names):
            failures.append(Failure(root, UnsupportedFile.kind, DISTRIBUTED))
            continue
        models = [path for path in (os.path.join(root, name) for name in names) if is_candidate(path)]
        shards = {shard for path in models for shard in shards_beside(path, limits)}
        files.extend(path for path in models if path not in shards)
        skipped += len(names) - len(models)
    if not files and not failures:
        failures.append(Failure(folder, "nothing-found", "the folder holds no model file; check the path"))
    return FoundFiles(tuple(files), frozenset(files), tuple(failures), skipped)


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder and the files in it."""
    for root, folders, names in os.walk(folder):
        # In the Hugging Face cache, what snapshots hold are links to blobs, whose names say nothing.
        linked = {"blobs"} if {"blobs", "snapshots"} <= set(folders) else set()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        yield root, sorted(names)
