"""Layers made by hand, for judging rules without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bncheck.core.checkpoint import Checkpoint, FileFormat, Packaging, Stage, TrainingFacts
from bncheck.core.finding import Finding, NotChecked, Passed
from bncheck.core.layers import NormKind, NormLayer
from bncheck.core.limits import DEFAULT_LIMITS
from bncheck.core.rule import Rule
from bncheck.engine import examine


def layer(name: str = "bn", **fields: object) -> NormLayer:
    """A healthy, trained, fully described layer of four channels, with the given fields changed."""
    given: dict[str, object] = {
        "kind": NormKind.BATCH,
        "class_path": "torch.nn.modules.batchnorm.BatchNorm2d",
        "num_features": 4,
        "eps": 1e-5,
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
        "training": False,
        "running_mean": [0.1, -0.2, 0.3, 0.4],
        "running_var": [0.5, 0.7, 1.1, 2.0],
        "num_batches_tracked": 500,
        "weight": [0.9, 1.1, 1.0, 0.8],
        "bias": [0.1, 0.0, -0.1, 0.2],
        "dtype": "float32",
        "follows_bias": False,
        **fields,
    }
    for key in ("running_mean", "running_var", "weight", "bias"):
        if given[key] is not None:
            given[key] = np.asarray(given[key], dtype=np.float64)
    return NormLayer(name=name, **given)  # type: ignore[arg-type]


def bare(name: str = "bn", **fields: object) -> NormLayer:
    """The same layer as a state dict describes it: tensors, and nothing else."""
    unknown = dict.fromkeys(("class_path", "eps", "momentum", "training"))
    return layer(name, **{**unknown, **fields})


def checkpoint(
    layers: Sequence[NormLayer],
    stage: Stage = Stage.RELEASE,
    steps: int | None = None,
    packaging: Packaging = Packaging.MODULE,
) -> Checkpoint:
    """A file of these layers."""
    return Checkpoint(
        "model.pt",
        FileFormat.TORCH_ZIP,
        packaging,
        stage,
        tuple(layers),
        training=TrainingFacts("optimizer" if steps is not None else None, steps),
    )


def judge(
    rule: Rule,
    *layers: NormLayer,
    stage: Stage = Stage.RELEASE,
    steps: int | None = None,
    packaging: Packaging = Packaging.MODULE,
) -> tuple[Finding, ...] | NotChecked | None:
    """Findings; or why nothing could be said; or None: nothing wrong."""
    subject = examine(checkpoint(layers, stage, steps, packaging), [rule], DEFAULT_LIMITS)
    if subject.findings:
        return subject.findings
    if subject.not_checked:
        (entry,) = subject.not_checked
        assert not entry.crashed, entry.reason
        return entry
    assert subject.outcomes == (Passed(rule.id),)
    return None
