"""The device and the number format a model runs on, by the names the command line gives them."""

from __future__ import annotations

import torch
from torch import nn

from bncheck.core.errors import BadUsage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_named(name: str) -> torch.device:
    """A device that works; ``auto`` takes the first GPU where there is one.

    Raises:
        BadUsage: there is none of this name.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadUsage(f"--device {name}: {str(error).partition(chr(10))[0]}") from None
    return device


def place_of_module(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and number format of a module's first floating tensor."""
    floating = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    first = next(floating, torch.empty(0))
    return first.device, first.dtype
