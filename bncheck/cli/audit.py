"""``bncheck audit``."""

from __future__ import annotations

from typing import Annotated

import typer

from bncheck.catalogue import RULES
from bncheck.cli.app import app
from bncheck.cli.config_option import ConfigFile, NoConfig, the_config
from bncheck.cli.options import AllowCall, Debug
from bncheck.cli.outputs import Outputs, deliver, output_files
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
    PrecisionOption,
    Samples,
    TrainData,
    TrainStep,
    TrustPickle,
    model_arguments,
)
from bncheck.core.choices import Choices, FailOn, StageChoice
from bncheck.core.code_prefixes import ALL
from bncheck.gate import Gate
from bncheck.report.formats import FORMATS, ReportFormat, format_named

_KNOWN = "Known findings"


@app.command()
def audit(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATHS...", help="Model files, folders and globs; default: those the config names."),
    ] = None,
    stage: Annotated[
        StageChoice | None,
        typer.Option(
            help="What the files are for; auto: training where optimizer state is found.", show_default="auto"
        ),
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="Rules to apply, by code prefix (BN2, BN201) or ALL; repeat or use commas.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Rules to leave out, likewise.")] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Least severity that makes the exit code 1.", show_default="error")
    ] = None,
    fail_if_not_checked: Annotated[
        bool | None,
        typer.Option(
            "--fail-if-not-checked", help="A rule that could not tell makes the exit code 2.", show_default=False
        ),
    ] = None,
    allow_nothing: Annotated[
        bool | None,
        typer.Option(
            "--allow-nothing", help="Exit code 0 instead of 3 where no file has batch norm.", show_default=False
        ),
    ] = None,
    config: ConfigFile = None,
    no_config: NoConfig = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="FILE", help="Known findings, which pass.", rich_help_panel=_KNOWN)
    ] = None,
    write_baseline: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write what is found as known from now on.", rich_help_panel=_KNOWN),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Files to audit at the same time.", show_default="1")] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help=f"Report on stdout: {FORMATS}.", show_default="text"),
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT=FILE", help="Also write this report into a file; repeat.")
    ] = None,
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
    samples: Samples = None,
    batch_size: BatchSize = None,
    input_key: InputKey = None,
    label_key: LabelKey = None,
    device: Device = None,
    precision: PrecisionOption = None,
    trust_pickle: TrustPickle = None,
    train_data: TrainData = None,
    train_step: TrainStep = None,
    group: Group = None,
    allow_call: AllowCall = None,
    debug: Debug = False,
) -> None:
    """Say what is wrong with the batch-norm layers of saved models.

    PATHS are model files, folders and globs; without any, those that bncheck.yaml names.

    Reads the files alone; with --data or --train-data it also runs the model and measures.

    Exit codes: 0 clean, 1 findings, 2 something could not be audited, 3 nothing to audit.
    """
    said = Choices(
        stage=stage,
        select=_codes(select),
        ignore=_codes(ignore),
        allow_call=None if allow_call is None else tuple(allow_call),
        data=data,
        model=model,
        model_arg=model_arguments(model_arg),
        forward=forward,
        samples=samples,
        batch_size=batch_size,
        input_key=input_key,
        label_key=label_key,
        device=device,
        precision=precision,
        trust_pickle=trust_pickle,
        train_data=train_data,
        train_step=train_step,
        group=group,
    )
    found = the_config(config, no_config, paths or ())
    gate = Gate(
        found,
        said,
        fail_on=fail_on,
        must_check=(ALL,) if fail_if_not_checked else None,
        baseline=baseline,
        write_baseline=write_baseline,
        jobs=jobs,
        allow_nothing=allow_nothing,
    )
    named = tuple(paths or ()) or found.model_paths()
    written = [f"{name}={file}" for name, file in found.outputs] if output is None else output
    outputs = Outputs(
        stdout=format_named(output_format or found.output_format or ReportFormat.TEXT),
        files=output_files(
            written, named, [path for path in (found.path, baseline, found.baseline, write_baseline) if path]
        ),
        show_passed=show_passed,
        verbose=verbose,
        channels=channels,
        debug=debug,
    )
    with progress_bar() as progress:
        report = gate.audit(paths or (), progress.files, progress.samples)
    raise typer.Exit(deliver(report, RULES, outputs))


def _codes(values: list[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    return tuple(code.strip() for value in values for code in value.split(",") if code.strip())
