"""The public function behind ``bncheck.audit``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bncheck.auditing import Settings, audit_paths, select_rules
from bncheck.core.checkpoint import Stage
from bncheck.core.finding import Report, Severity
from bncheck.core.limits import DEFAULT_LIMITS, Limits
from bncheck.core.run_options import RunOptions


def audit(
    *paths: str | os.PathLike[str],
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    stage: Stage | None = None,
    fail_on: Severity | None = Severity.ERROR,
    limits: Limits = DEFAULT_LIMITS,
    allow_calls: Sequence[str] = (),
    run: RunOptions | None = None,
) -> Report:
    """Audit model files: by reading them alone, or by running them too.

    Args:
        paths: files, folders and globs.
        select: code prefixes of the rules to apply; none applies all.
        ignore: code prefixes of rules to leave out.
        stage: what the files are for; None infers it from each file.
        fail_on: least severity that makes the report's exit code 1.
        limits: every threshold.
        allow_calls: ``module.name`` of callables that whole-module pickles may name beyond the known ones; they are
            not called here either.
        run: how to build the models and what to run them on; None runs nothing and imports no torch.

    Returns:
        The report; files that could not be read are in its ``failures``.

    Raises:
        BadUsage: a code prefix matches no rule.
    """
    settings = Settings(select_rules(select, ignore), stage, fail_on, limits, frozenset(allow_calls), run)
    return audit_paths((os.fspath(path) for path in paths), settings)
