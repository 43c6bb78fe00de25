"""Colour and tables, through rich. Imported only where they are wanted: rich costs as much as the audit itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bncheck.core.checkpoint import Checkpoint
from bncheck.core.layers import Averaging, Float64Array, NormLayer
from bncheck.core.rule import Rule
from bncheck.report.printable import printable
from bncheck.report.styled import Line


def show_lines(lines: Sequence[Line], stream: IO[str]) -> None:
    """Print lines in colour."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    for line in lines:
        console.print(_styled(line))


_ALWAYS_SHOWN = ("layer", "features", "mean", "variance")


def show_layers(checkpoint: Checkpoint, stream: IO[str], width: int | None) -> None:
    """A table of every normalisation layer, with what the file says.

    What all layers share is said once above the table, so that 53 rows fit a terminal of 80 columns.
    """
    rows = [_layer_cells(layer) for layer in _in_execution_order(checkpoint)]
    if checkpoint.packaging.has_graph:
        rows = [{"call": cells.pop("call"), **cells} for cells in rows]
    else:
        rows = [{name: cell for name, cell in cells.items() if name != "call"} for cells in rows]
    names = list(rows[0]) if rows else []
    shared = [
        name for name in names if name not in _ALWAYS_SHOWN and len(rows) > 1 and len({row[name] for row in rows}) == 1
    ]
    console = Console(file=stream, highlight=False, width=width)
    said = f"{checkpoint.format.value} · {checkpoint.packaging.value} · {checkpoint.stage.value}"
    console.print(Text(f"{printable(checkpoint.path)}  {said} · {len(rows)} layers"), soft_wrap=True)
    if shared:
        console.print(Text("all layers: " + ", ".join(f"{name} {rows[0][name]}" for name in shared)), soft_wrap=True)
    if any(layer.baked_training is not None for layer in checkpoint.layers):
        console.print(Text("* a constant in the graph: train() and eval() do not change it"), soft_wrap=True)
    if rows:
        _show_table(rows, [name for name in names if name not in shared], console)


# Left out, in this order, where a table is wider than the terminal; JSON has them all.
_LEFT_OUT_FIRST = ("dtype", "features", "kind", "batches", "call", "eps", "momentum")


def _show_table(rows: Sequence[Mapping[str, str]], columns: list[str], console: Console) -> None:
    unbounded = console.options.update(max_width=_WIDER_THAN_ANY)
    foldable = max(0, max(len(row["layer"]) for row in rows) - _NARROWEST)
    left_out: list[str] = []
    table = _table(rows, columns)
    for name in _LEFT_OUT_FIRST:
        if console.measure(table, options=unbounded).maximum - foldable <= console.width:
            break
        if name in columns:
            columns = [column for column in columns if column != name]
            left_out.append(name)
            table = _table(rows, columns)
    if left_out:
        console.print(Text(f"left out for want of room: {', '.join(left_out)}; --format json has them"), soft_wrap=True)
    console.print(table)


def _table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        if name == "layer":
            table.add_column(name, overflow="fold")
        else:
            numeric = name not in ("kind", "mode", "dtype")
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in columns))
    return table


_WIDER_THAN_ANY = 10_000
_NARROWEST = 12  # characters in which a layer's name is still told apart when it is folded


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


def _in_execution_order(checkpoint: Checkpoint) -> list[NormLayer]:
    """As the graph calls them, those it never calls last; without a graph, as the file lists them."""
    last = len(checkpoint.layers)
    return sorted(checkpoint.layers, key=lambda layer: last if layer.execution_order is None else layer.execution_order)


def _mode(layer: NormLayer) -> str:
    if layer.baked_training is not None:
        return "train*" if layer.baked_training else "eval*"
    return "?" if layer.training is None else "train" if layer.training else "eval"


def _layer_cells(layer: NormLayer) -> dict[str, str]:
    momentum = layer.momentum
    return {
        "call": "never" if layer.execution_order is None else str(layer.execution_order + 1),
        "layer": printable(layer.full_name),
        "kind": layer.kind.value,
        "features": _cell(layer.num_features),
        "momentum": momentum.value if isinstance(momentum, Averaging) else _cell(momentum),
        "eps": _cell(layer.eps),
        "mode": _mode(layer),
        "batches": _cell(layer.num_batches_tracked),
        "mean": _span(layer.running_mean),
        "variance": _span(layer.running_var),
        "dtype": layer.dtype or "–",
    }


def _cell(value: float | int | None) -> str:
    return "?" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _span(array: Float64Array | None) -> str:
    if array is None or not array.size:
        return "–"
    return f"{array.min():.2g} … {array.max():.2g}"


def _styled(line: Line) -> Text:
    return Text.assemble(*((span.text, span.style) for span in line))
