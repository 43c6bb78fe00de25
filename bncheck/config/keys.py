"""The keys of a config: one line for each, from which it is read, checked, and described to editors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from bncheck.config.kinds import (
    ANY,
    DAY,
    FLAG,
    MAPPING,
    TEXT,
    Kind,
    list_of,
    mapping_of,
    name_among,
    number,
    one_of,
    prefix_of,
    whole_number,
)
from bncheck.core.choices import FailOn, Precision, SeverityChoice, StageChoice
from bncheck.core.limits import Limits


@dataclass(frozen=True, slots=True)
class Key:
    """A key.

    Attributes:
        name: as it is written.
        kind: what it holds.
        meaning: one line, which editors show.
        is_path: its text names a file or folder, relative to the config's own.
    """

    name: str
    kind: Kind
    meaning: str
    is_path: bool = False

    @property
    def attribute(self) -> str:
        """The same in Python."""
        return self.name.replace("-", "_")


def limit_names() -> tuple[str, ...]:
    """Every threshold, as a config spells it."""
    return tuple(field.name.replace("_", "-") for field in fields(Limits))


def choice_keys(codes: Sequence[str]) -> tuple[Key, ...]:
    """What may be said for all models, and again for some of them."""
    prefixes = list_of(prefix_of(codes))
    limits = {field.name.replace("_", "-"): number(whole=isinstance(field.default, int)) for field in fields(Limits)}
    return (
        Key("stage", one_of(StageChoice), "What the files are for; auto: training where optimizer state is found."),
        Key("select", prefixes, "Rules to apply, by the beginning of their codes, or ALL."),
        Key("ignore", prefixes, "Rules to leave out, likewise."),
        Key(
            "severity",
            mapping_of(dict.fromkeys(codes, one_of(SeverityChoice)), "rule"),
            "Rule → how much its findings matter, in place of what it says itself.",
        ),
        Key("limits", mapping_of(limits, "limit"), "Threshold → value."),
        Key("allow-call", list_of(TEXT), "Callables that whole-module pickles may name; they are not called."),
        Key("model", TEXT, "SPEC of what builds the model: path/to/file.py:callable or package.module:callable.", True),
        Key("model-arg", MAPPING, "Arguments for it."),
        Key("data", TEXT, "SPEC of the calibration data, or a .pt/.npz/.npy/.safetensors file of inputs.", True),
        Key("forward", TEXT, "SPEC of callable(model, inputs), where the model is not simply called.", True),
        Key("train-data", TEXT, "SPEC of the training loader.", True),
        Key("train-step", TEXT, "SPEC of callable(model, batch), one training step.", True),
        Key("samples", whole_number(2), "Samples to run on."),
        Key("batch-size", whole_number(1), "For files of inputs."),
        Key("input-key", TEXT, "Key of the inputs in batches."),
        Key("label-key", TEXT, "Key of the labels in batches."),
        Key("device", TEXT, "auto, cpu, cuda:0 or mps."),
        Key("precision", one_of(Precision), "Number format to run in."),
        Key("trust-pickle", FLAG, "Load pickled modules, which runs code of the file's."),
        Key("group", TEXT, "The copy of the network to run: model, ema …"),
    )


def run_keys(codes: Sequence[str], formats: Sequence[str]) -> tuple[Key, ...]:
    """What is said once, of a whole run."""
    strict = Kind(
        lambda node: node.value if isinstance(node.value, bool) else list_of(prefix_of(codes)).read(node),
        {"anyOf": [FLAG.schema, list_of(prefix_of(codes)).schema]},
    )
    return (
        Key("extends", list_of(TEXT), "Configs that stand below this one.", True),
        Key("models", ANY, "The models to audit, each with settings of its own."),
        Key("suppress", ANY, "Findings that do not count, each with its reason."),
        Key("fail-on", one_of(FailOn), "Least severity that makes the exit code 1."),
        Key("fail-if-not-checked", strict, "true, or the rules that may not go unchecked."),
        Key("allow-nothing", FLAG, "true: exit code 0 instead of 3 where no file has batch norm."),
        Key("baseline", TEXT, "File of known findings, which pass.", True),
        Key("format", name_among(formats, "format"), "Report on stdout."),
        Key(
            "output", mapping_of(dict.fromkeys(formats, list_of(TEXT)), "format"), "Format → file to write it to.", True
        ),
        Key("jobs", whole_number(1), "Files to audit at the same time."),
    )


def suppression_keys(codes: Sequence[str]) -> tuple[Key, ...]:
    """What a suppression says; rule and reason it must."""
    return (
        Key("rule", name_among(codes, "rule"), "Code."),
        Key("reason", TEXT, "Why."),
        Key("path", TEXT, "Pattern of the models' paths, relative to this file; ** is any number of folders."),
        Key("layer", TEXT, "Pattern of the layers' names."),
        Key("until", DAY, "The last day it holds."),
    )


PATHS = Key("paths", list_of(TEXT, 1), "Files, folders and patterns, relative to this file.", True)
