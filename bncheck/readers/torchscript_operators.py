"""PyTorch's operators that normalise with running moments, and where their arguments stand.

Their signatures, and those of the quantised ones:
https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/native_functions.yaml
https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/quantized/library.cpp
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NormOperator:
    """An operator.

    Attributes:
        parameters: its parameters in order, under the names ``_ROLES`` leaves of them.
        training: the mode it always works in; None where a parameter says so.
        instance: whether it normalises each sample by itself.
    """

    parameters: tuple[str, ...]
    training: bool | None = None
    instance: bool = False

    def position(self, role: str) -> int | None:
        """Where a parameter stands."""
        return self.parameters.index(role) if role in self.parameters else None


# Other names of parameters in the signatures: what a keyword in the code may be → what it is called here.
_ROLES: Mapping[str, str] = {
    "use_input_stats": "training",
    "exponential_average_factor": "momentum",
    "epsilon": "eps",
    "mean": "running_mean",
    "var": "running_var",
    "qx": "input",
}

_AFFINE = ("input", "weight", "bias")
_MOMENTS = ("running_mean", "running_var")
_FULL = (*_AFFINE, *_MOMENTS, "training", "momentum", "eps", "cudnn_enabled")
_FIXED = (*_AFFINE, *_MOMENTS, "momentum", "eps")
_QUANTISED = (*_AFFINE, *_MOMENTS, "eps", "output_scale", "output_zero_point")
_WITHOUT_MOMENTS = (*_AFFINE, "training", "momentum", "eps")

_OPERATORS: Mapping[str, NormOperator] = {
    "torch.batch_norm": NormOperator(_FULL),
    "torch._batch_norm_impl_index": NormOperator(_FULL),
    "torch.native_batch_norm": NormOperator(_FULL),
    "torch.cudnn_batch_norm": NormOperator(_FULL),
    "torch.miopen_batch_norm": NormOperator(_FULL),
    "torch._native_batch_norm_legit": NormOperator(_FULL),
    "torch._native_batch_norm_legit_functional": NormOperator(_FULL),
    "torch._native_batch_norm_legit_no_training": NormOperator(_FIXED, training=False),
    "torch._batch_norm_with_update": NormOperator(_FIXED, training=True),
    "torch._batch_norm_with_update_functional": NormOperator(_FIXED, training=True),
    "torch._batch_norm_no_update": NormOperator(_FIXED, training=False),
    "torch.instance_norm": NormOperator(_FULL, instance=True),
    "torch.quantized_batch_norm": NormOperator(_QUANTISED, training=False),
    **{
        f"ops.quantized.batch_norm{dimensions}{relu}": NormOperator(_QUANTISED, training=False)
        for dimensions in ("", "1d", "2d", "3d")
        for relu in ("", "_relu")
    },
}
_OVERLOADED = "torch._native_batch_norm_legit"
_WITHOUT_STATISTICS = NormOperator(_WITHOUT_MOMENTS)
_OUTPUTS = frozenset({"out", "save_mean", "save_invstd"})

# Operators by such a name that are not in the table use moments in a way nobody here knows.
_LIKE_A_NORM = re.compile(r"(?i)(batch|instance|sync|switch)_?(re)?_?norm|(?<![a-z])a?bn(?![a-z])|_a?bn(?![a-z])")
# These neither normalise over a batch nor keep moments.
_HARMLESS = re.compile(r"instance_norm|\w*_backward\w*")
# Operators of PyTorch's own; what an extension does with running moments only its author knows.
_OWN = frozenset({"aten", "prim", "prims", "quantized", "mkldnn", "mkldnn_prepacked", "onednn", "sparse"})


def norm_operator(path: str, arguments: Mapping[str | int, object]) -> NormOperator | None:
    """The operator that code calls by this name with these arguments."""
    if path == _OVERLOADED and len(arguments.keys() - _OUTPUTS) == len(_WITHOUT_MOMENTS):
        return _WITHOUT_STATISTICS
    return _OPERATORS.get(path)


def role_of(keyword: str) -> str:
    """What a parameter of a signature is called here."""
    return _ROLES.get(keyword, keyword)


def may_normalise(path: str) -> bool:
    """Whether an operator outside the table is, by its name, some kind of batch norm."""
    name = path.rpartition(".")[2]
    return bool(_LIKE_A_NORM.search(name)) and not _HARMLESS.fullmatch(name)


def is_own(path: str) -> bool:
    """Whether an operator is PyTorch's own: ``torch.add``, ``ops.prim.device``."""
    parts = path.split(".")
    return len(parts) == 2 if parts[0] == "torch" else len(parts) == 3 and parts[1] in _OWN


def mentions_norm(code: str) -> bool:
    """Whether a text of code may call an operator that normalises over a batch."""
    return bool(_LIKE_A_NORM.search(code))
