"""One normalisation layer as a file describes it."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


class NormKind(enum.Enum):
    """What a layer computes, whatever its class is called."""

    BATCH = "batch"
    SYNC_BATCH = "sync-batch"
    FROZEN_BATCH = "frozen-batch"
    INSTANCE = "instance"
    BATCH_OR_INSTANCE = "batch-or-instance"
    """A state dict's entry that is one of the two: without running buffers the file cannot tell them apart."""

    @property
    def is_batch_norm(self) -> bool:
        """Whether the layer normalises over the batch when in training mode."""
        return self in (NormKind.BATCH, NormKind.SYNC_BATCH, NormKind.FROZEN_BATCH)


class Averaging(enum.Enum):
    """Ways to keep running moments that have no momentum number."""

    CUMULATIVE = "cumulative"
    """``momentum=None`` in PyTorch: the plain average over all batches, each weighing 1/n."""


Momentum = float | Averaging


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """A normalisation layer; ``None`` means that the file does not say.

    Arrays are float64 of shape ``(num_features,)``, whatever precision the file stores (``dtype`` keeps that).

    Attributes:
        name: dotted path inside its model, as ``named_modules()`` would give it.
        kind: what it computes.
        class_path: ``package.module.Class`` where the file names the class.
        num_features: channels.
        eps: added to the variance before the square root.
        momentum: in PyTorch's convention, the weight of the new batch, or how else moments are averaged.
        affine: whether it has a scale and a shift.
        track_running_stats: whether it is meant to keep running moments.
        training: the layer's own mode flag in the file.
        baked_training: the mode a graph calls the layer in, whatever its flag says; None where the call follows the
            flag, or there is no graph.
        execution_order: position of the graph's first call of the layer among all calls of such layers, from 0; None
            where there is no graph, or it never calls the layer.
        running_mean, running_var: stored moments.
        num_batches_tracked: updates so far; a float where averaging made it one.
        weight, bias: gamma and beta.
        dtype: number format of the running moments in the file, e.g. ``float16``.
        group: which copy of the network it belongs to: ``model``, ``ema`` …
        follows_bias: whether the layer before it is a convolution or linear layer with a bias and as many outputs as
            this layer has channels, as after folding.
    """

    name: str
    kind: NormKind
    group: str = "model"
    class_path: str | None = None
    num_features: int | None = None
    eps: float | None = None
    momentum: Momentum | None = None
    affine: bool | None = None
    track_running_stats: bool | None = None
    training: bool | None = None
    baked_training: bool | None = None
    execution_order: int | None = None
    running_mean: Float64Array | None = None
    running_var: Float64Array | None = None
    num_batches_tracked: int | float | None = None
    weight: Float64Array | None = None
    bias: Float64Array | None = None
    dtype: str | None = None
    follows_bias: bool | None = None

    @property
    def has_running_statistics(self) -> bool:
        """Whether both running moments are in the file."""
        return self.running_mean is not None and self.running_var is not None

    @property
    def keeps_running_statistics(self) -> bool:
        """Whether training would update running moments, so that momentum matters."""
        return self.kind is not NormKind.FROZEN_BATCH and self.track_running_stats is not False

    @property
    def depends_on_mode(self) -> bool:
        """Whether it computes something else in training mode than in eval mode."""
        return self.kind in (NormKind.BATCH, NormKind.SYNC_BATCH) and self.keeps_running_statistics

    @property
    def statistics_at_initialisation(self) -> bool:
        """Whether mean is exactly 0 and variance exactly 1 on every channel."""
        if self.running_mean is None or self.running_var is None or not self.running_mean.size:
            return False
        return not self.running_mean.any() and bool((self.running_var == 1.0).all())

    @property
    def affine_at_initialisation(self) -> bool:
        """Whether scale is exactly 1 and shift exactly 0, or there are none."""
        scale_moved = self.weight is not None and bool((self.weight != 1.0).any())
        shift_moved = self.bias is not None and bool(self.bias.any())
        return not (scale_moved or shift_moved)

    @property
    def initial_weight(self) -> float | None:
        """(1 − m)^n: the share of the running moments that is still the initial 0 and 1; None where it is unknown.

        A cumulative average gives the initial values no weight once it has seen a batch.
        """
        if self.momentum is None or self.num_batches_tracked is None or not self.num_batches_tracked >= 0:
            return None
        if isinstance(self.momentum, Averaging):
            return 1.0 if self.num_batches_tracked == 0 else 0.0
        if not 0.0 <= self.momentum <= 1.0:
            return None
        return float((1.0 - self.momentum) ** self.num_batches_tracked)

    @property
    def full_name(self) -> str:
        """The name, led by the group where that is not the model itself."""
        name = self.name or "(root)"
        return name if self.group == "model" else f"{self.group}:{name}"


def family_of(name: str) -> str:
    """A layer's name with the numbers of its blocks blanked: ``layer2.0.bn1`` → ``layer#.#.bn1``.

    The last part stays: in ``downsample.1`` or ``features.4`` the number tells a norm from a convolution.
    """
    outer, dot, last = name.rpartition(".")
    return re.sub(r"\d+", "#", outer) + dot + last
