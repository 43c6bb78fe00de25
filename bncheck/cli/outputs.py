"""Where an audit's reports go: one to stdout, any number to files; none of them keeps another from being written."""

from __future__ import annotations

import os
import stat
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bncheck.cli.output import PIPED_WIDTH, emit, show, text_width
from bncheck.core.errors import BadUsage, BncheckError, CannotWrite
from bncheck.core.finding import ExitCode, Report
from bncheck.core.rule import Rule
from bncheck.report.document import Document, report_document
from bncheck.report.files import write_text
from bncheck.report.formats import ReportFormat, format_named, rendered
from bncheck.report.styled import Line
from bncheck.report.text import plain, report_lines

_SUMMARY = "GITHUB_STEP_SUMMARY"
_SUMMARY_LIMIT = 1024 * 1024
"""For each step: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits."""


@dataclass(frozen=True, slots=True)
class Output:
    """A report to write into a file."""

    format: ReportFormat
    path: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """All reports of a run.

    Attributes:
        stdout: format of the one on stdout.
        files: the others.
        show_passed: whether text also tells what passed and was not checked.
        verbose: whether text tells the drift of every layer.
        channels: whether JSON has its numbers channel by channel.
        debug: whether a failure shows where it came from.
    """

    stdout: ReportFormat
    files: tuple[Output, ...]
    show_passed: bool
    verbose: bool
    channels: bool
    debug: bool


def output_files(wanted: Sequence[str], paths: Sequence[str], kept: Sequence[str] = ()) -> tuple[Output, ...]:
    """What ``--output FORMAT=FILE`` asks for.

    Args:
        wanted: the options' values.
        paths: what is to be audited, none of which may be overwritten.
        kept: what else this run reads or writes, such as the config and the baseline.

    Raises:
        BadUsage: a value is no FORMAT=FILE, or a format is unknown, or two reports, or a report and a model, would be
            one file.
    """
    files: list[Output] = []
    for text in wanted:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise BadUsage(f"--output {text!r} is no FORMAT=FILE, such as sarif=bncheck.sarif")
        output = Output(format_named(name), path)
        for other in files:
            if _is_same_file(path, other.path):
                raise BadUsage(f"--output names {path!r} for {other.format.value} and for {output.format.value}")
        if any(_is_same_file(path, audited) for audited in paths):
            raise BadUsage(f"--output would overwrite {path!r}, which is to be audited")
        if any(_is_same_file(path, other) for other in kept):
            raise BadUsage(f"--output would overwrite {path!r}, which is this run's config or baseline")
        files.append(output)
    return tuple(files)


def _is_same_file(one: str, other: str) -> bool:
    if os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other)):
        return True
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def deliver(report: Report, rules: Sequence[Rule], outputs: Outputs) -> ExitCode:
    """Write every report: files first, stdout last, so that a reader of stdout who has gone costs no file.

    Args:
        report: the run.
        rules: those that were applied.
        outputs: what to write.

    Returns:
        The report's own exit code, or 2 where a report could not be written, which is told on stderr.

    Raises:
        SystemExit: with 2 where the reader of stdout has gone.
    """
    run = _Run(report, tuple(rules), outputs)
    writers: list[tuple[str, Callable[[], None]]] = [
        (f"{output.format.value} report", partial(run.write, output)) for output in outputs.files
    ]
    summary = os.environ.get(_SUMMARY)
    if summary and ReportFormat.GITHUB in (outputs.stdout, *(output.format for output in outputs.files)):
        writers.append(("step summary", partial(run.append_summary, summary)))
    writers.append((f"{outputs.stdout.value} report", run.print))
    # All are tried: a list, not a generator, which all() would leave at the first failure.
    written = [_is_written(what, write, debug=outputs.debug) for what, write in writers]
    return report.exit_code if all(written) else ExitCode.NOT_AUDITED


def _is_written(what: str, write: Callable[[], None], *, debug: bool) -> bool:
    try:
        write()
    except Exception as error:
        # A fault of ours in one format must keep no other from being written, and must not end as the 1 of findings.
        if debug:
            traceback.print_exc()
        told = str(error) if isinstance(error, BncheckError) else _internal(error)
        print(f"bncheck: {what} not written: {told}", file=sys.stderr)
        return False
    return True


def _internal(error: Exception) -> str:
    return str(BncheckError(f"internal error, please report it: {type(error).__name__}: {error}"))


class _Run:
    """A report in every form that is asked for."""

    def __init__(self, report: Report, rules: tuple[Rule, ...], outputs: Outputs) -> None:
        self._report = report
        self._rules = rules
        self._outputs = outputs
        self._documents: dict[bool, Document] = {}

    def print(self) -> None:
        """On stdout; text in colour where a terminal shows it.

        Raises:
            SystemExit: the reader has gone.
        """
        if self._outputs.stdout is ReportFormat.TEXT:
            show(self._lines(text_width()))
        else:
            emit(self._text(self._outputs.stdout).removesuffix("\n"))

    def write(self, output: Output) -> None:
        """Into a file.

        Raises:
            CannotWrite: the place does not allow it, or one of the audited files stands there.
        """
        subjects = (subject.checkpoint.path for subject in self._report.subjects)
        failures = (failure.path for failure in self._report.failures)
        if any(_is_same_file(output.path, path) for path in (*subjects, *failures)):
            raise CannotWrite(f"{output.path} was audited, and is not overwritten")
        text = self._text(output.format)
        _write(output.path, text if text.endswith("\n") else f"{text}\n")

    def append_summary(self, path: str) -> None:
        """Behind what this step's summary holds, as far as there is room.

        Raises:
            CannotWrite: the place does not allow it.
        """
        from bncheck.report.markdown import to_short_markdown  # noqa: PLC0415 - wanted only on GitHub

        try:
            # As bytes: a text written in a terminal's encoding would not be what was counted.
            with open(path, "ab") as file:
                room = _SUMMARY_LIMIT - file.tell()
                file.write(to_short_markdown(self._document(channels=False), room).encode())
        except OSError as error:
            raise CannotWrite(f"{path}: {error.strerror or error}") from None

    def _text(self, wanted: ReportFormat) -> str:
        match wanted:
            case ReportFormat.TEXT:
                return plain(self._lines(PIPED_WIDTH))
            case ReportFormat.JSON:
                channels = self._outputs.channels
            case ReportFormat.HTML:
                channels = True
            case _:
                channels = False
        return rendered(wanted, self._document(channels=channels), self._rules)

    def _lines(self, width: int) -> list[Line]:
        return report_lines(self._report, width, show_passed=self._outputs.show_passed, verbose=self._outputs.verbose)

    def _document(self, *, channels: bool) -> Document:
        if channels not in self._documents:
            self._documents[channels] = report_document(self._report, channels=channels)
        return self._documents[channels]


def _write(path: str, text: str) -> None:
    """Whole or not at all; what a link leads to is replaced, not the link; a device or a pipe is written to.

    Raises:
        CannotWrite: the place does not allow it.
    """
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):  # nothing there, or no name a file can have: writing tells
        kind = stat.S_IFREG
    try:
        if stat.S_ISREG(kind):
            write_text(os.path.realpath(path), text)
        elif stat.S_ISDIR(kind):
            raise CannotWrite(f"{path} is a folder")
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror or error}") from None
