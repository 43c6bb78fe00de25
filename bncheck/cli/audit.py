"""``bncheck audit``."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from bncheck.auditing import Settings, audit_paths, select_rules
from bncheck.cli.app import app
from bncheck.cli.options import AllowCall, Debug
from bncheck.cli.output import OutputFormat, emit, show, text_width
from bncheck.cli.progress import progress_bar
from bncheck.cli.run_options import (
    BatchSize,
    Data,
    Device,
    Forward,
    Group,
    InputKey,
    LabelKey,
    Model,
    ModelArg,
    Precision,
    PrecisionOption,
    Samples,
    TrainData,
    TrainStep,
    TrustPickle,
    run_options,
)
from bncheck.core.checkpoint import Stage
from bncheck.core.finding import Severity
from bncheck.report.document import report_document
from bncheck.report.json import to_json
from bncheck.report.text import report_lines


class StageChoice(enum.StrEnum):
    """What the files are for."""

    AUTO = "auto"
    TRAINING = "training"
    RELEASE = "release"


class FailOn(enum.StrEnum):
    """Least severity that fails the run."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    NEVER = "never"


@app.command()
def audit(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Model files, folders and globs.")],
    stage: Annotated[
        StageChoice, typer.Option(help="What the files are for; auto: training where optimizer state is found.")
    ] = StageChoice.AUTO,
    select: Annotated[
        list[str] | None, typer.Option(help="Rules to apply, by code prefix (BN2, BN201) or ALL; repeat or use commas.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Rules to leave out, likewise.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Least severity that makes the exit code 1.")] = FailOn.ERROR,
    output_format: Annotated[OutputFormat, typer.Option("--format", help="Report on stdout.")] = OutputFormat.TEXT,
    show_passed: Annotated[
        bool, typer.Option("--show-passed", help="Also tell what passed and was not checked.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --data: the drift of every layer, and the worst channels.")
    ] = False,
    channels: Annotated[
        bool, typer.Option("--channels", help="With --data and --format json: numbers channel by channel.")
    ] = False,
    data: Data = None,
    model: Model = None,
    model_arg: ModelArg = None,
    forward: Forward = None,
    samples: Samples = 2048,
    batch_size: BatchSize = 64,
    input_key: InputKey = None,
    label_key: LabelKey = None,
    device: Device = "auto",
    precision: PrecisionOption = Precision.FP32,
    trust_pickle: TrustPickle = False,
    train_data: TrainData = None,
    train_step: TrainStep = None,
    group: Group = "model",
    allow_call: AllowCall = None,
    debug: Debug = False,
) -> None:
    """Say what is wrong with the batch-norm layers of saved models.

    Reads the files alone; with --data or --train-data it also runs the model and measures.

    Exit codes: 0 clean, 1 findings, 2 something could not be audited, 3 nothing to audit.
    """
    settings = Settings(
        rules=select_rules(_codes(select), _codes(ignore)),
        stage=None if stage is StageChoice.AUTO else Stage(stage.value),
        fail_on=None if fail_on is FailOn.NEVER else Severity[fail_on.name],
        vouched=frozenset(allow_call or ()),
        run=run_options(
            data,
            model,
            model_arg or (),
            forward,
            samples,
            batch_size,
            input_key,
            label_key,
            device,
            precision,
            trust_pickle,
            train_data,
            train_step,
            group,
        ),
    )
    with progress_bar() as progress:
        report = audit_paths(paths, settings, progress.files, progress.samples)
    match output_format:
        case OutputFormat.JSON:
            emit(to_json(report_document(report, channels=channels)))
        case OutputFormat.TEXT:
            show(report_lines(report, text_width(), show_passed=show_passed, verbose=verbose))
    raise typer.Exit(report.exit_code)


def _codes(values: list[str] | None) -> tuple[str, ...]:
    return tuple(code.strip() for value in values or () for code in value.split(",") if code.strip())
