"""``bncheck recalibrate``."""

from __future__ import annotations

import enum
import os
import re
from typing import Annotated

import typer

from bncheck.auditing import Settings
from bncheck.cli.app import app
from bncheck.cli.config_option import ConfigFile, NoConfig, the_config
from bncheck.cli.options import Debug
from bncheck.cli.output import emit, show
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
    TrustPickle,
    model_arguments,
)
from bncheck.core.choices import Choices
from bncheck.core.errors import BadUsage
from bncheck.core.estimation_method import Method
from bncheck.core.finding import ExitCode
from bncheck.report.json import to_json


class RecalibrationFormat(enum.StrEnum):
    """Formats of what is told on stdout."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


_ESTIMATE = "Estimating"
_SHIFT = "Domain shift"
_AUTO = "auto"
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


@app.command()
def recalibrate(
    path: Annotated[str, typer.Argument(metavar="MODEL", help="Model file.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Copy to write; only moments differ in it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate and tell; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that stands at the output.")] = False,
    data: Data = None,
    model: Model = None,
    model_arg: ModelArg = None,
    forward: Forward = None,
    mode: Annotated[
        Method,
        typer.Option(
            help="exact: the fixed point in eval mode; online: one sweep; batch: with each batch's own moments.",
            rich_help_panel=_ESTIMATE,
        ),
    ] = Method.EXACT,
    samples: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Calibration set; auto: until standard errors settle.", rich_help_panel=_ESTIMATE
        ),
    ] = _AUTO,
    max_samples: Annotated[int, typer.Option(min=1, help="At most, with auto.", rich_help_panel=_ESTIMATE)] = 10_000,
    layers: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Recalibrate these alone.", rich_help_panel=_ESTIMATE)
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these as stored.", rich_help_panel=_ESTIMATE)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="For activations, e.g. 4G; default: most of what is free.",
            rich_help_panel=_ESTIMATE,
        ),
    ] = None,
    spatial_stride: Annotated[
        int, typer.Option(min=1, help="Look at every n-th row and column of feature maps.", rich_help_panel=_ESTIMATE)
    ] = 1,
    check: Annotated[
        bool, typer.Option(help="Measure an online estimate against the fixed point.", rich_help_panel=_ESTIMATE)
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of loaders that shuffle.", rich_help_panel=_ESTIMATE)] = 0,
    prior: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Stored moments count as N samples; auto weighs them by the evidence.",
            rich_help_panel=_SHIFT,
        ),
    ] = "0",
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="callable(model) → float, higher is better.", rich_help_panel=_SHIFT),
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Labelled data to measure accuracy on.", rich_help_panel=_SHIFT)
    ] = None,
    require_improvement: Annotated[
        bool,
        typer.Option("--require-improvement", help="Write nothing where the metric fell.", rich_help_panel=_SHIFT),
    ] = False,
    group: Group = None,
    batch_size: BatchSize = None,
    input_key: InputKey = None,
    label_key: LabelKey = None,
    device: Device = None,
    precision: PrecisionOption = None,
    trust_pickle: TrustPickle = None,
    config: ConfigFile = None,
    no_config: NoConfig = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that processes wait for one another.")] = 300,
    output_format: Annotated[
        RecalibrationFormat, typer.Option("--format", help="Report on stdout.")
    ] = RecalibrationFormat.TEXT,
    verbose: Annotated[bool, typer.Option("--verbose", help="List every layer.")] = False,
    debug: Debug = False,
) -> None:
    """Re-estimate running means and variances from data, and write a copy in which only those bytes differ.

    Exit codes: 0 done, 1 the metric fell and improvement was required, 2 it could not be done.
    """
    from bncheck.core.recalibration import Choice, FileChoice  # noqa: PLC0415 - other commands start without
    from bncheck.report.recalibrated import recalibrated_lines  # noqa: PLC0415
    from bncheck.report.recalibration_document import recalibration_document  # noqa: PLC0415

    if output is None and not dry_run:
        raise BadUsage("say where the copy goes (-o fixed.pt), or --dry-run")
    if require_improvement and evaluate is None and eval_data is None:
        raise BadUsage("--require-improvement needs something to measure: --evaluate or --eval-data")
    said = Choices(
        data=data,
        model=model,
        model_arg=model_arguments(model_arg),
        forward=forward,
        batch_size=batch_size,
        input_key=input_key,
        label_key=label_key,
        device=device,
        precision=precision,
        trust_pickle=trust_pickle,
        group=group,
    )
    # Of training and of rules a config may say what it wants: here nothing comes of it.
    settings = Settings().with_choices(said.over(the_config(config, no_config, [path]).choices_for(path)))
    run = settings.run
    if run is None or run.data is None:
        raise BadUsage("--data, what to estimate from, is missing")
    chosen = FileChoice(
        run=run,
        choice=Choice(
            method=mode,
            samples=_samples(samples),
            max_samples=max_samples,
            prior=_prior(prior),
            layers=tuple(layers or ()),
            skip=tuple(skip or ()),
            memory=None if memory is None else _bytes(memory),
            spatial_stride=spatial_stride,
            check=check,
        ),
        output=None if dry_run else output,
        force=force,
        evaluate=evaluate,
        eval_data=eval_data,
        require_improvement=require_improvement,
        seed=seed,
        timeout=timeout,
    )
    from bncheck.recalibrating import libraries, recalibrate_file  # noqa: PLC0415 - imports torch

    with progress_bar() as progress:
        tell = progress.samples
        found = recalibrate_file(
            path, chosen, settings.limits, None if tell is None else lambda done, total: tell(done, total or done)
        )
    if int(os.environ.get("RANK", "0")):
        return
    match output_format:
        case RecalibrationFormat.JSON:
            emit(to_json(recalibration_document(found, chosen, libraries())))
        case RecalibrationFormat.HTML:
            from bncheck.report.html import recalibration_to_html  # noqa: PLC0415 - an extra

            emit(recalibration_to_html(recalibration_document(found, chosen, libraries())))
        case RecalibrationFormat.TEXT:
            show(recalibrated_lines(found, settings.limits, dry_run=dry_run, verbose=verbose))
    raise typer.Exit(ExitCode.FINDINGS if found.why_not_written is not None else ExitCode.CLEAN)


def _samples(text: str) -> int | None:
    if text == _AUTO:
        return None
    if not text.isdecimal() or not int(text):
        raise BadUsage(f"--samples {text!r} is no number of samples and not {_AUTO!r}")
    return int(text)


def _prior(text: str) -> float | None:
    if text == _AUTO:
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise BadUsage(f"--prior {text!r} is no number of samples and not {_AUTO!r}")
    return float(text)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)(?:i?b)?", text.lower())
    if found is None or not float(found[1]):
        raise BadUsage(f"--memory {text!r} is no size; write 500M or 4G")
    return int(float(found[1]) * _UNITS[found[2]])
