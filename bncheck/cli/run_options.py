"""Options of commands that run a model."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Annotated

import typer

from bncheck.core.errors import BadUsage
from bncheck.core.run_options import RunOptions

PANEL = "Running the model"


class Precision(enum.StrEnum):
    """Number format the model runs in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


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
Group = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="The copy of the network to run: model, ema … as reported.", rich_help_panel=PANEL
    ),
]
Samples = Annotated[int, typer.Option(min=2, help="Samples to run on.", rich_help_panel=PANEL)]
BatchSize = Annotated[int, typer.Option(min=1, help="For files of inputs.", rich_help_panel=PANEL)]
InputKey = Annotated[str | None, typer.Option(help="Key of the inputs in batches.", rich_help_panel=PANEL)]
LabelKey = Annotated[str | None, typer.Option(help="Key of the labels in batches.", rich_help_panel=PANEL)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:0 or mps.", rich_help_panel=PANEL)]
PrecisionOption = Annotated[Precision, typer.Option(help="Number format to run in.", rich_help_panel=PANEL)]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Load pickled modules, which runs code of the file's.", rich_help_panel=PANEL),
]


def run_options(
    data: str | None,
    model: str | None,
    model_arg: Sequence[str],
    forward: str | None,
    samples: int,
    batch_size: int,
    input_key: str | None,
    label_key: str | None,
    device: str,
    precision: Precision,
    trust_pickle: bool,
    train_data: str | None,
    train_step: str | None,
    group: str,
) -> RunOptions | None:
    """What to run; None where no data was given.

    Raises:
        BadUsage: a model was given without data, or an argument is no KEY=VALUE.
    """
    if data is None and train_data is None:
        if train_step is not None:
            raise BadUsage("--train-step says how to train; what to train on, --train-data or --data, is missing")
        if model is not None:
            raise BadUsage("--model says how to build the model; --data, what to run it on, is missing")
        return None
    return RunOptions(
        data=data,
        model=model,
        model_arguments=dict(_argument(text) for text in model_arg),
        forward=forward,
        samples=samples,
        batch_size=batch_size,
        input_key=input_key,
        label_key=label_key,
        device=device,
        precision=precision.value,
        trust_pickle=trust_pickle,
        train_data=train_data,
        train_step=train_step,
        group=group,
    )


def _argument(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise BadUsage(f"--model-arg {text!r} is no KEY=VALUE")
    import yaml  # noqa: PLC0415 - wanted only where such an argument is given

    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadUsage(f"--model-arg {key}: {str(error).partition(chr(10))[0]}") from None
