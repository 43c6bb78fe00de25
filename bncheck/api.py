"""The public function behind ``bncheck.audit``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, TypeGuard

from bncheck.auditing import Settings, audit_module, audit_paths, select_rules
from bncheck.catalogue import RULES
from bncheck.core.checkpoint import Stage
from bncheck.core.code_prefixes import ALL
from bncheck.core.errors import BadUsage
from bncheck.core.finding import Report, Severity
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.run_options import InMemory, RunOptions

if TYPE_CHECKING:
    from torch import nn  # noqa: TID251 - a type alone: nothing is imported


class AuditOptions(TypedDict, total=False):
    """Keyword arguments of ``audit``."""

    select: Sequence[str]
    ignore: Sequence[str]
    stage: Stage | None
    fail_on: Severity | None
    fail_if_not_checked: bool | Sequence[str]
    severities: Mapping[str, Severity]
    limits: Limits
    allow_calls: Sequence[str]
    run: RunOptions | None
    jobs: int
    data: Iterable[object] | None
    forward: Callable[..., object] | None
    samples: int | None
    input_key: str | None
    label_key: str | None
    train_data: Iterable[object] | None
    train_step: Callable[..., object] | None


def audit(
    *subjects: str | os.PathLike[str] | nn.Module,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    stage: Stage | None = None,
    fail_on: Severity | None = Severity.ERROR,
    fail_if_not_checked: bool | Sequence[str] = False,
    severities: Mapping[str, Severity] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    allow_calls: Sequence[str] = (),
    run: RunOptions | None = None,
    jobs: int = 1,
    data: Iterable[object] | None = None,
    forward: Callable[..., object] | None = None,
    samples: int | None = None,
    input_key: str | None = None,
    label_key: str | None = None,
    train_data: Iterable[object] | None = None,
    train_step: Callable[..., object] | None = None,
) -> Report:
    """Audit model files, or a module in memory: by reading alone, or by running too.

    Args:
        subjects: files, folders and globs; or one ``torch.nn.Module``, which is left as it was found.
        select: code prefixes of the rules to apply; none applies all.
        ignore: code prefixes of rules to leave out.
        stage: what the files are for; None infers it from each file.
        fail_on: least severity that makes the report's exit code 1.
        fail_if_not_checked: whether a rule that could not tell makes it 2; or code prefixes of the rules of which
            that is true.
        severities: code → the severity its findings have, in place of what the rule says.
        limits: every threshold.
        allow_calls: ``module.name`` of callables that whole-module pickles may name beyond the known ones; they are
            not called here either.
        run: how to build the models of files and what to run them on; None runs nothing and imports no torch.
        jobs: files to audit at the same time, each in a process of its own; with more than one, a script calls this
            under ``if __name__ == "__main__":``, as ``multiprocessing`` asks for.
        data: for a module: an iterable of batches to run it on, such as a ``DataLoader``.
        forward: for a module: callable (model, inputs) → prediction; None calls the module.
        samples: for a module: how many to run on; 2048 where None.
        input_key: for a module: key of the inputs in batches that are mappings.
        label_key: likewise, of the labels.
        train_data: for a module: the training loader.
        train_step: for a module: callable (model, batch) that takes one training step; it is undone.

    Returns:
        The report; files that could not be read are in its ``failures``. ``report.raise_for_findings()`` turns one that
        is not clean into an exception.

    Raises:
        BadUsage: a code prefix matches no rule, or the arguments do not go together.
    """
    must_check = _prefixes(fail_if_not_checked)
    select_rules(must_check, ())
    if unknown := [code for code in severities or {} if code not in {rule.id for rule in RULES}]:
        raise BadUsage(f"no rule is called {unknown[0]!r}; `bncheck rules` lists them")
    settings = Settings(
        rules=select_rules(select, ignore),
        stage=stage,
        fail_on=fail_on,
        limits=limits,
        vouched=frozenset(allow_calls),
        run=run,
        severities=severities or {},
        must_check=must_check,
    )
    given = {
        "data": data,
        "forward": forward,
        "samples": samples,
        "input_key": input_key,
        "label_key": label_key,
        "train_data": train_data,
        "train_step": train_step,
    }
    named = [name for name, value in given.items() if value is not None]
    modules = [subject for subject in subjects if _is_module(subject)]
    paths = [os.fspath(subject) for subject in subjects if isinstance(subject, (str, os.PathLike))]
    if len(modules) + len(paths) < len(subjects):
        raise BadUsage("what is audited is a path, or a torch.nn.Module")
    if not modules:
        if named:
            raise BadUsage(f"{named[0]} goes with a module in memory; for files say run=RunOptions({named[0]}=…)")
        return audit_paths(paths, settings, jobs=jobs)
    if len(subjects) > 1:
        raise BadUsage("a module in memory is audited alone: one call of audit() for each")
    if run is not None:
        raise BadUsage("run=RunOptions(…) says how to build the model of a file; for a module in memory give data=…")
    if named and data is None and train_data is None:
        raise BadUsage(f"{named[0]} says how to run the module; data, what to run it on, is missing")
    in_memory = InMemory(
        data=data,
        forward=forward,
        samples=InMemory().samples if samples is None else samples,
        input_key=input_key,
        label_key=label_key,
        train_data=train_data,
        train_step=train_step,
    )
    return audit_module(modules[0], settings, in_memory if named else None)


def _prefixes(fail_if_not_checked: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(fail_if_not_checked, bool):
        return (ALL,) if fail_if_not_checked else ()
    return tuple(fail_if_not_checked)


def _is_module(subject: object) -> TypeGuard[nn.Module]:
    """Whether it is a ``torch.nn.Module``: where torch was never imported there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(subject, torch.nn.Module)
