"""Colour and tables, through rich. Imported only where they are wanted: rich costs as much as the audit itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layers import Averaging, Float64Array, NormLayer
from bncheck.core.rule import Rule
from bncheck.report.printable import printable
from bncheck.report.text import Line


def show_lines(lines: Sequence[Line], stream: IO[str]) -> None:
    """Print lines in colour."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(_styled(line))


def lines_as_svg(lines: Sequence[Line], title: str, width: int) -> str:
    """A picture of lines as a terminal shows them."""
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False, force_terminal=True)
    for line in lines:
        console.print(_styled(line))
    return console.export_svg(title=title, unique_id="bncheck")


def show_layers(checkpoint: Checkpoint, stream: IO[str], width: int | None) -> None:
    """A table of every normalisation layer, with what the file says."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for name in ("features", "momentum", "eps"):
        table.add_column(name, justify="right")
    table.add_column("mode")
    for name in ("batches", "mean", "variance"):
        table.add_column(name, justify="right")
    table.add_column("stored as")
    for layer in checkpoint.layers:
        table.add_row(*(Text(cell) for cell in _layer_cells(layer)))
    console = Console(file=stream, highlight=False, width=width)
    said = f"{checkpoint.format.value} · {checkpoint.packaging.value} · {checkpoint.stage.value}"
    console.print(Text(f"{printable(checkpoint.path)}  {said} · {len(checkpoint.layers)} layers"), soft_wrap=True)
    console.print(table)


def show_rules(rules: Sequence[Rule], stream: IO[str], width: int | None) -> None:
    """The catalogue as a table."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("code", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("when")
    for rule in rules:
        table.add_row(rule.id, rule.name, rule.severity.label, Text(rule.formula))
    Console(file=stream, highlight=False, width=width).print(table)


def _layer_cells(layer: NormLayer) -> tuple[str, ...]:
    momentum = layer.momentum
    return (
        printable(layer.full_name),
        layer.kind.value,
        _cell(layer.num_features),
        momentum.value if isinstance(momentum, Averaging) else _cell(momentum),
        _cell(layer.eps),
        "?" if layer.training is None else "train" if layer.training else "eval",
        _cell(layer.num_batches_tracked),
        _span(layer.running_mean),
        _span(layer.running_var),
        layer.dtype or "–",
    )


def _cell(value: float | int | None) -> str:
    return "?" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _span(array: Float64Array | None) -> str:
    if array is None or not array.size:
        return "–"
    return f"{array.min():.3g} … {array.max():.3g}"


def _styled(line: Line) -> Text:
    return Text.assemble(*((span.text, span.style) for span in line))
