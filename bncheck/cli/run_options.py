"""Options of commands that run a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from bncheck.core.choices import Precision
from bncheck.core.errors import BadUsage

PANEL = "Running the model"


_SPEC = "package.module:callable or path/to/file.py:callable"

Model = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help=f"What builds the model: {_SPEC}.", rich_help_panel=PANEL),
]
ModelArg = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for it; repeat.", rich_help_panel=PANEL)
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help=f"Calibration data: {_SPEC} returning batches, or a .pt/.npz/.npy/.safetensors file of inputs.",
        rich_help_panel=PANEL,
    ),
]
TrainData = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help=f"Training loader, for what training does to batch norm: {_SPEC} returning it.",
        rich_help_panel=PANEL,
    ),
]
TrainStep = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="One training step: callable(model, batch).", rich_help_panel=PANEL),
]
Forward = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="How to predict: callable(model, inputs).", rich_help_panel=PANEL),
]
# None where they are not given: a config may say them, and what it leaves open has the default that help shows.
Group = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The copy of the network to run: model, ema … as reported.",
        rich_help_panel=PANEL,
        show_default="model",
    ),
]
Samples = Annotated[
    int | None, typer.Option(min=2, help="Samples to run on.", rich_help_panel=PANEL, show_default="2048")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="For files of inputs.", rich_help_panel=PANEL, show_default="64")
]
InputKey = Annotated[str | None, typer.Option(help="Key of the inputs in batches.", rich_help_panel=PANEL)]
LabelKey = Annotated[str | None, typer.Option(help="Key of the labels in batches.", rich_help_panel=PANEL)]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda:0 or mps.", rich_help_panel=PANEL, show_default="auto")
]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Number format to run in.", rich_help_panel=PANEL, show_default="fp32")
]
TrustPickle = Annotated[
    bool | None,
    typer.Option(
        "--trust-pickle",
        help="Load pickled modules, which runs code of the file's.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]


def model_arguments(texts: Sequence[str] | None) -> dict[str, object] | None:
    """What ``--model-arg KEY=VALUE`` says; None where it was not given.

    Raises:
        BadUsage: one is no KEY=VALUE.
    """
    return None if texts is None else dict(_argument(text) for text in texts)


def _argument(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise BadUsage(f"--model-arg {text!r} is no KEY=VALUE")
    import yaml  # noqa: PLC0415 - wanted only where such an argument is given

    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadUsage(f"--model-arg {key}: {str(error).partition(chr(10))[0]}") from None
