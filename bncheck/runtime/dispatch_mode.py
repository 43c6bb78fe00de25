"""A dispatch mode without torch's compiler around it, wherever nobody compiles."""

from __future__ import annotations

import sys
from types import MethodType, TracebackType
from typing import Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class WatchingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator while it is entered.

    torch imports its compiler for every mode, and puts a frame of it around each operator that is called: on a small
    network as much again as the mode itself costs. That frame keeps the compiler from compiling what watches, so it is
    put there where the compiler is loaded, as it is once anybody compiles a model, and left out elsewhere.
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/utils/_python_dispatch.py
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Self:
        """Start to see."""
        if "torch._dynamo" in sys.modules:
            guarded = torch.compiler.disable(type(self).__torch_dispatch__)  # type: ignore[no-untyped-call]
            # The instance's own comes before the class's.
            vars(self)["__torch_dispatch__"] = MethodType(guarded, self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        vars(self).pop("__torch_dispatch__", None)
