"""The operators of exported graphs that normalise, and those that hand tensors on.

Schemas: https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/native_functions.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NormOperator:
    """A normalisation operator and how it is told what to do.

    Attributes:
        mode: the argument that asks for the batch's own moments, or the answer where the operator has no such
            argument.
        momentum, eps: names of these arguments.
        moments: where among its results the new running mean is, the new running variance behind it; None where it
            updates the moments in place, or not at all.
        instance: whether it normalises each sample by itself.
    """

    mode: str | bool = "training"
    momentum: str = "momentum"
    eps: str = "eps"
    moments: int | None = None
    instance: bool = False


# By name: overloads of one differ in their results alone, or lack the moments.
OPERATORS: Mapping[str, NormOperator] = {
    f"torch.ops.aten.{name}": operator
    for name, operator in {
        "batch_norm": NormOperator(),
        "native_batch_norm": NormOperator(),
        "_batch_norm_impl_index": NormOperator(),
        "_native_batch_norm_legit": NormOperator(),
        "_native_batch_norm_legit_functional": NormOperator(moments=3),
        "_native_batch_norm_legit_no_training": NormOperator(mode=False),
        "_batch_norm_with_update": NormOperator(mode=True),
        "_batch_norm_with_update_functional": NormOperator(mode=True, moments=4),
        "_batch_norm_no_update": NormOperator(mode=False),
        "cudnn_batch_norm": NormOperator(momentum="exponential_average_factor", eps="epsilon"),
        "miopen_batch_norm": NormOperator(momentum="exponential_average_factor", eps="epsilon"),
        "instance_norm": NormOperator(mode="use_input_stats", instance=True),
    }.items()
}
# Operators that normalise, by their names, and are none of these; gradients of such operators change no prediction.
UNKNOWN_NORM = re.compile(r"(?!.*backward).*(batch_?norm|instance_?norm)", re.IGNORECASE)

# Operators whose result holds their first argument's numbers, in another shape, format or place.
SAME_NUMBERS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_reshape_alias",
        "_to_copy",
        "_unsafe_view",
        "alias",
        "clone",
        "contiguous",
        "detach",
        "detach_",
        "expand",
        "lift_fresh",
        "lift_fresh_copy",
        "reshape",
        "repeat",
        "squeeze",
        "to",
        "unsqueeze",
        "view",
    )
)
RESHAPES = frozenset(f"torch.ops.aten.{name}" for name in ("_unsafe_view", "reshape", "view"))
REPEAT = "torch.ops.aten.repeat"
