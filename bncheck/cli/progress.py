"""Progress bars on stderr, for runs over many files and over many samples; none where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bncheck.auditing import Progress, SampleProgress

_FEW = 20


@dataclass(frozen=True, slots=True)
class Watcher:
    """What to tell; None where nobody watches.

    Attributes:
        files: about each file.
        samples: about the samples a model has been run on.
    """

    files: Progress | None = None
    samples: SampleProgress | None = None


@contextlib.contextmanager
def progress_bar() -> Iterator[Watcher]:
    """Yields what to tell."""
    if not sys.stderr.isatty():
        yield Watcher()
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415

    class Rate(ProgressColumn):
        """Samples per second; files come too unevenly for a rate."""

        def render(self, task: Task) -> Text:
            shown = task.id == samples and task.speed is not None
            return Text(f"{task.speed:.4g} samples/s" if shown else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        files = bar.add_task("auditing", total=None, visible=False)
        samples = bar.add_task("samples", total=None, visible=False)

        def tell_files(done: int, total: int, path: str) -> None:
            bar.update(files, completed=done, total=total, visible=total > _FEW)
            bar.reset(samples, visible=False)

        def tell_samples(done: int, total: int) -> None:
            bar.update(samples, completed=done, total=total, visible=True)

        yield Watcher(tell_files, tell_samples)
