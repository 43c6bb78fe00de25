"""Telling a lack of memory from other failures: each allocator says it in its own way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bncheck.core.errors import OutOfMemory

# What torch's allocators of the CPU raise as a plain RuntimeError:
# https://github.com/pytorch/pytorch/blob/v2.13.0/c10/core/impl/alloc_cpu.cpp
_SAID = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


@contextmanager
def telling_out_of_memory(what: str) -> Iterator[None]:
    """Make a lack of memory the error that says so.

    Args:
        what: what there was no memory for.

    Raises:
        OutOfMemory: there was none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"there is no memory for {what} ({_first_line(error)})") from None


def let_go(error: OutOfMemory) -> None:
    """Forget the failed attempt, whose frames hold on to everything it had allocated."""
    error.__context__ = error.__traceback__ = None
    give_back_cached()


def give_back_cached() -> None:
    """Give back what the GPU's allocator keeps of a failed attempt; call it once its exception is gone."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    # The allocator puts where in torch's source it stands before what happened.
    return said.rpartition("] ")[2][:200] or type(error).__name__
