"""What transformers' code and a model's ``config.json`` say of batch norms whose weights say nothing of it.

A state dict holds no eps and no momentum. ``from_pretrained`` builds the network from ``config.json``, so that the
architecture named there settles both: by a field of the file, or by a number in the modelling code. ``SETTINGS`` has a
row for an architecture only where all its batch norms are alike, or differ by name.

The file is data of the model's folder. Nothing but the numbers of a row is taken from it, only what the weights leave
open is filled in, and what is wrong with the file is a remark.

Sources: ``src/transformers/models/*/modeling_*.py``, https://github.com/huggingface/transformers/tree/v5.23.0
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bncheck.core.checkpoint import Checkpoint, Packaging
from bncheck.core.errors import UnreadableFile
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import Limits
from bncheck.readers.source import FileSource
from bncheck.readers.strict_json import json_object

_CONFIG = "config.json"
# What save_pretrained writes, in one file, in shards, in variants (model.fp16.safetensors), with an index.
_WEIGHTS = re.compile(r"(pytorch_)?model([.-][\w.-]+)?\.(safetensors|bin)(\.index\.json)?")

_BATCH_1D = "torch.nn.modules.batchnorm.BatchNorm1d"
_BATCH_2D = "torch.nn.modules.batchnorm.BatchNorm2d"


@dataclass(frozen=True, slots=True)
class Field:
    """A number in ``config.json``, by the keys that lead to it."""

    keys: tuple[str, ...]


Origin = float | Field
"""A number in the modelling code, or where it stands in ``config.json``."""


@dataclass(frozen=True, slots=True)
class NormSettings:
    """What an architecture gives to its batch norms.

    Attributes:
        eps: where it comes from.
        momentum: where it comes from; None for frozen layers, which have none.
        class_path: the layers' class; None where there are several.
        kind: what they compute.
        apart: pattern of layers' names → settings of those layers, where they differ.
    """

    eps: Origin
    momentum: Origin | None
    class_path: str | None = _BATCH_2D
    kind: NormKind = NormKind.BATCH
    apart: tuple[tuple[str, NormSettings], ...] = ()

    def of(self, name: str) -> NormSettings:
        """The settings of the layer of that name."""
        return next((settings for pattern, settings in self.apart if re.search(pattern, name)), self)


def _torch_defaults(class_path: str | None = _BATCH_2D) -> NormSettings:
    return NormSettings(eps=1e-5, momentum=0.1, class_path=class_path)


def _efficient_net(*outer: str) -> NormSettings:
    """The batch norms that widen a block get the config's eps and torch's own momentum."""
    eps, momentum = Field((*outer, "batch_norm_eps")), Field((*outer, "batch_norm_momentum"))
    return NormSettings(eps, momentum, apart=((r"(^|\.)expand_bn$", NormSettings(eps, 0.1)),))


def _frozen(module: str, name: str) -> NormSettings:
    """Backbones of DETR and its heirs: every batch norm is replaced by one whose forward adds 1e-5."""
    path = f"transformers.models.{module}.modeling_{module}.{name}FrozenBatchNorm2d"
    return NormSettings(1e-5, None, path, NormKind.FROZEN_BATCH)


_LAYER_NORM_EPS = Field(("layer_norm_eps",))

SETTINGS: Mapping[str, NormSettings] = {
    "align": _efficient_net("vision_config"),
    "align_vision_model": _efficient_net(),
    "conditional_detr": _frozen("conditional_detr", "ConditionalDetr"),
    "cvt": _torch_defaults(),
    "dab-detr": _frozen("dab_detr", "DabDetr"),
    "deformable_detr": _frozen("deformable_detr", "DeformableDetr"),
    "detr": _frozen("detr", "Detr"),
    "efficientnet": _efficient_net(),
    "fastspeech2_conformer": _torch_defaults(_BATCH_1D),
    "glpn": _torch_defaults(),
    "groupvit": _torch_defaults(_BATCH_1D),
    "hgnet_v2": _torch_defaults(),
    "levit": _torch_defaults(None),
    # TensorFlow's decays stand in the code, as momentum.
    "mobilenet_v1": NormSettings(_LAYER_NORM_EPS, 0.9997),
    "mobilenet_v2": NormSettings(
        _LAYER_NORM_EPS,
        0.997,
        apart=((r"^segmentation_head\.(conv_pool|conv_aspp|conv_projection)\.", NormSettings(1e-5, 0.997)),),
    ),
    "mobilevit": _torch_defaults(),
    "mobilevitv2": _torch_defaults(),
    "parakeet_ctc": _torch_defaults(_BATCH_1D),
    "patchtst": NormSettings(Field(("norm_eps",)), 0.1, _BATCH_1D),
    "regnet": _torch_defaults(),
    "resnet": _torch_defaults(),
    "seamless_m4t": _torch_defaults(_BATCH_1D),
    "segformer": _torch_defaults(),
    "swiftformer": NormSettings(Field(("batch_norm_eps",)), 0.1),
    "table-transformer": _frozen("table_transformer", "TableTransformer"),
    "textnet": NormSettings(Field(("batch_norm_eps",)), 0.1),
    "wav2vec2-conformer": _torch_defaults(_BATCH_1D),
}


def with_config(checkpoint: Checkpoint, path: str, limits: Limits) -> Checkpoint:
    """The checkpoint with what the ``config.json`` beside it adds to its layers.

    Args:
        checkpoint: what the weights say; anything but the state dict of a model that transformers saved stays as it is.
        path: the weights, or their index; a local file.
        limits: bounds.
    """
    folder, name = os.path.split(path)
    config = os.path.join(folder, _CONFIG)
    told = checkpoint.packaging is Packaging.STATE_DICT and _WEIGHTS.fullmatch(name) is not None
    if not told or not checkpoint.layers or not os.path.lexists(config):
        return checkpoint
    try:
        values = _read_config(config, limits)
    except UnreadableFile as error:
        return replace(checkpoint, remarks=(*checkpoint.remarks, f"the {_CONFIG} beside it was not read: {error}"))
    model_type = values.get("model_type")
    settings = SETTINGS.get(model_type) if isinstance(model_type, str) else None
    if settings is None:
        return checkpoint
    layers = tuple(_filled(layer, settings.of(layer.name), values, limits) for layer in checkpoint.layers)
    if all(new is old for new, old in zip(layers, checkpoint.layers, strict=True)):
        return checkpoint
    remark = f"eps and momentum are what transformers gives to {model_type!r}, by the {_CONFIG} beside it"
    return replace(checkpoint, layers=layers, remarks=(*checkpoint.remarks, remark))


def _read_config(path: str, limits: Limits) -> dict[str, object]:
    with FileSource(path) as source:
        if source.size > limits.config_bytes:
            raise UnreadableFile(f"it has {source.size} bytes, more than any model's")
        return json_object(source.read_at(0, source.size), "it", limits, constant=float)


def _filled(layer: NormLayer, settings: NormSettings, values: Mapping[str, object], limits: Limits) -> NormLayer:
    """The layer with what it lacks. Instance norms, and copies under other keys, are not what transformers builds."""
    if layer.kind is not NormKind.BATCH or layer.group != "model" or not layer.has_running_statistics:
        return layer
    eps = _number(settings.eps, values)
    # An eps beyond those in use would hide a negative variance, and swamp the moments.
    if eps is not None and not 0.0 < eps <= limits.eps_largest_in_use:
        eps = None
    momentum = None if settings.momentum is None else _number(settings.momentum, values)
    return replace(
        layer,
        kind=settings.kind,
        class_path=settings.class_path if layer.class_path is None else layer.class_path,
        eps=eps if layer.eps is None else layer.eps,
        momentum=momentum if layer.momentum is None else layer.momentum,
    )


def _number(origin: Origin, values: Mapping[str, object]) -> float | None:
    """The number itself; None where ``config.json`` has no plain number there."""
    if isinstance(origin, float):
        return origin
    found: object = values
    for key in origin.keys:
        found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    try:
        return float(found)
    except OverflowError:
        return math.inf if found > 0 else -math.inf
