"""Paths → Report: finds the model files, reads each, applies the rules."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.catalogue import RULES
from bncheck.core.checkpoint import Checkpoint, Stage
from bncheck.core.errors import BadUsage, BncheckError, NoModel, UnsupportedFile, UserCodeFailed
from bncheck.core.finding import Failure, Report, Severity, Subject
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.measurement import Measurements, NotMeasured
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
    """

    rules: tuple[Rule, ...] = RULES
    stage: Stage | None = None
    fail_on: Severity | None = Severity.ERROR
    limits: Limits = DEFAULT_LIMITS
    vouched: frozenset[str] = frozenset()
    run: RunOptions | None = None


def audit_paths(
    paths: Iterable[str], settings: Settings, progress: Progress | None = None, tell: SampleProgress | None = None
) -> Report:
    """Audit files, folders and globs; a file that cannot be read never stops the others.

    Args:
        paths: what the user named.
        settings: how to audit.
        progress: told before each file.
        tell: told of the samples a model has been run on.
    """
    found = find_files(paths, settings.limits)
    subjects: list[Subject] = []
    failures = list(found.failures)
    skipped = found.skipped
    for index, path in enumerate(found.files):
        if progress is not None:
            progress(index, len(found.files), path)
        try:
            subjects.append(_audit_file(path, settings, tell))
        except BncheckError as error:
            # Beside a model lie its scheduler and its settings: passed over where nobody named them.
            if isinstance(error, NoModel) and path in found.walked:
                skipped += 1
            else:
                failures.append(Failure(shown(path), error.kind, str(error)))
        except (MemoryError, RecursionError) as error:
            too_much = f"reading it needs too much memory ({type(error).__name__})"
            failures.append(Failure(shown(path), "unsafe-file", too_much))
        except Exception as error:
            # A fault of ours on one file must neither hide the others nor end as exit code 1, which means findings.
            what = f"bncheck failed on it: {type(error).__name__}: {error}"
            failures.append(Failure(shown(path), "internal-error", what))
    return Report(tuple(subjects), tuple(failures), skipped, settings.fail_on)


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
    return Report((examine(checkpoint, settings.rules, settings.limits, measurements),), fail_on=settings.fail_on)


def _audit_file(path: str, settings: Settings, tell: SampleProgress | None) -> Subject:
    checkpoint = read(path, settings.limits, settings.vouched)
    if settings.stage is not None:
        checkpoint = replace(checkpoint, stage=settings.stage)
    # A model may have layers of which the file says nothing: where only parameters were saved.
    runs = settings.run is not None and bool(checkpoint.layers or settings.run.model)
    measurements = _measured(checkpoint, settings.run, tell) if runs and settings.run is not None else None
    return examine(checkpoint, settings.rules, settings.limits, measurements)


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
        if prefix != "ALL" and not any(rule.id.startswith(prefix) for rule in RULES):
            raise BadUsage(f"no rule starts with {prefix!r}; `bncheck rules` lists them")
    return tuple(rule for rule in RULES if (not select or _matches(rule, select)) and not _matches(rule, ignore))


def _matches(rule: Rule, prefixes: Sequence[str]) -> bool:
    return any(prefix == "ALL" or rule.id.startswith(prefix) for prefix in prefixes)


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
