"""One run of the audit, as a release goes through it: config, command line, suppressions and baseline together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bncheck.auditing import Progress, SampleProgress, Settings, audit_paths
from bncheck.config.contents import Config
from bncheck.core.choices import Choices, FailOn
from bncheck.core.errors import BadUsage
from bncheck.core.finding import Report
from bncheck.report.files import write_text

if TYPE_CHECKING:
    from bncheck.core.baseline import Baseline


@dataclass(frozen=True, slots=True)
class Gate:
    """What a run goes by; what is None here is as the config says.

    Attributes:
        config: an empty one where there is none.
        said: what is said on the command line, above everything in the config.
        fail_on: least severity that fails the run.
        must_check: code prefixes of the rules that may not go unchecked.
        baseline: file of known findings.
        write_baseline: where to write what is known from now on.
        jobs: files to audit at the same time.
        allow_nothing: whether a run that found no normalisation layer is clean.
    """

    config: Config
    said: Choices
    fail_on: FailOn | None = None
    must_check: tuple[str, ...] | None = None
    baseline: str | None = None
    write_baseline: str | None = None
    jobs: int | None = None
    allow_nothing: bool | None = None

    def audit(
        self, paths: Sequence[str], progress: Progress | None = None, tell: SampleProgress | None = None
    ) -> Report:
        """Audit, and take out what is excused.

        Args:
            paths: files, folders and patterns; none: the models that the config names.
            progress: told of files.
            tell: told of samples.

        Raises:
            BadUsage: there is nothing to audit, or options do not go together.
            BadConfig: the baseline is malformed, or of another version.
            CannotWrite: the new baseline cannot be written.
        """
        named = tuple(paths) or self.config.model_paths()
        if not named:
            where = "" if self.config.path is None else f"; {self.config.path} names no models either"
            raise BadUsage(f"name model files, folders or patterns to audit{where}")
        if self.write_baseline is not None and self.write_baseline.endswith(".toml"):
            raise BadUsage(f"{self.write_baseline}: a baseline is YAML, or JSON where its name ends so")
        known_path = self.baseline or self.config.baseline
        # The first time, the file the config names is the one that is about to be written.
        first = known_path == self.write_baseline and known_path is not None and not os.path.exists(known_path)
        baseline = None if known_path is None or first else _read(known_path)
        # Settings of the whole run first: what is wrong with them is wrong before any file is read.
        common = self._settings(self.said.over(self.config.choices).without_run())
        report = audit_paths(
            named,
            common,
            progress,
            tell,
            settings_of=lambda path: self._settings(self.said.over(self.config.choices_for(path))),
            jobs=self.jobs or self.config.jobs or 1,
        )
        if not (self.config.suppressions or known_path or self.write_baseline):
            return report
        return self._excused(report, baseline, known_path, everything=not paths)

    def _excused(
        self, report: Report, baseline: Baseline | None, known_path: str | None, *, everything: bool
    ) -> Report:
        from bncheck.core.baseline import Baseline  # noqa: PLC0415 - most runs excuse nothing
        from bncheck.excusing import Excuses, excused  # noqa: PLC0415

        excuses = Excuses(self.config.suppressions, self.config.folder, everything=everything)
        if self.write_baseline is None:
            # Both at once: what is known is not gone because a suppression covers it as well.
            return excused(report, replace(excuses, baseline=baseline or Baseline(), baseline_path=known_path))
        report = excused(report, excuses)
        if report.failures or not all(subject.complete for subject in report.subjects):
            # What was not seen would not be known, and fail as new the next time.
            remark = f"{self.write_baseline} was not written: not everything could be audited"
            return replace(report, remarks=(*report.remarks, remark))
        written = _written(report, self.write_baseline)
        return excused(report, replace(excuses, suppressions=(), baseline=written, baseline_path=self.write_baseline))

    def _settings(self, choices: Choices) -> Settings:
        fail_on = self.fail_on or self.config.fail_on or FailOn.ERROR
        must_check = self.must_check if self.must_check is not None else self.config.fail_if_not_checked
        nothing = self.config.allow_nothing if self.allow_nothing is None else self.allow_nothing
        base = Settings(fail_on=fail_on.severity, must_check=must_check or (), nothing_is_clean=bool(nothing))
        return base.with_choices(choices)


def _read(path: str) -> Baseline:
    from bncheck.config.baseline_file import read_baseline  # noqa: PLC0415 - a run without one needs no parser

    return read_baseline(path)


def _written(report: Report, path: str) -> Baseline:
    from bncheck.config.baseline_file import baseline_text  # noqa: PLC0415
    from bncheck.core.baseline import Baseline  # noqa: PLC0415
    from bncheck.excusing import baseline_of  # noqa: PLC0415

    baseline = baseline_of(report, path, _read(path) if os.path.exists(path) else Baseline())
    write_text(os.path.realpath(path), baseline_text(baseline, path))  # what a link leads to, not the link
    return baseline
