"""A forward pass that stops at every normalisation and goes on when it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from bncheck.runtime.batches import Batch, Forward
from bncheck.runtime.hand_written import Form
from bncheck.runtime.norm_watch import NormCall, NormWatch

Seen = TypeVar("Seen")

# The pass whose thread this is: hooks are the model's, and all passes share it.
_this = threading.local()


class Abandoned(BaseException):
    """Ends the thread of a pass that nobody resumes any more; no user's ``except Exception`` holds it up."""


class SteppedPass(Generic[Seen]):
    """One batch on its way through a model: a coroutine, made of a thread that runs only while it is resumed.

    A thread, because a forward pass cannot be interrupted in any other way, and because grad mode, autocast and the
    stack of dispatch modes are a thread's own. At no time do two of them run: the model and the user's code need not
    be safe for threads.

    Args:
        model: in the mode it predicts in.
        batch: what it is called with.
        forward: calls it.
        buffers: layer name → running mean, of the layers to stop at.
        look: what to make of a call before the pass stops; it runs in the pass's thread.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        forward: Forward,
        buffers: Mapping[str, Tensor],
        look: Callable[[NormCall], Seen],
    ) -> None:
        self._model = model
        self._batch = batch
        self._forward = forward
        self._buffers = buffers
        self._look = look
        self._turn = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._stop: tuple[str, Seen] | None = None
        self._raised: BaseException | None = None
        self._abandoned = False
        self._autocast = _autocast_of(_device_of(buffers))
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="bncheck-pass", daemon=True)

    def resume(self) -> tuple[str, Seen] | None:
        """Go on to the next layer.

        Returns:
            The layer's name and what ``look`` made of the call, which has not run yet; None once the pass has ended.

        Raises:
            BaseException: what the model raised.
        """
        self._stop = None
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self._back.acquire()
        if self._raised is not None:
            raise self._raised
        return self._stop

    def close(self) -> None:
        """Give the pass up where it stands."""
        if self._thread.ident is None or not self._thread.is_alive():
            return
        self._abandoned = True
        self._turn.release()
        self._thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._abandoned:
                self._walk()
        except Abandoned:
            pass
        except BaseException as error:
            if not self._abandoned:
                self._raised = error
        finally:
            self._back.release()

    def _walk(self) -> None:
        # OpenMP's count is a thread's own, and libraries below torch ask it directly.
        torch.set_num_threads(self._threads)
        device, dtype = self._autocast
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
            if self._stream is not None:
                torch.cuda.set_stream(self._stream)
            _this.arrive = self._arrive
            with NormWatch(self._buffers, self._arrive):
                self._forward(self._model, self._batch)

    def _arrive(self, call: NormCall) -> None:
        if call.layer is None:
            return
        self._stop = (call.layer, self._look(call))
        self._back.release()
        self._turn.acquire()
        if self._abandoned:
            raise Abandoned


@contextlib.contextmanager
def stopping_at(model: nn.Module, forms: Mapping[str, Form]) -> Iterator[None]:
    """While entered, passes also stop before layers that normalise without a batch-norm operator.

    Args:
        model: whose hooks these are; they are gone afterwards.
        forms: layer name → what it computes.
    """
    handles: list[RemovableHandle] = []
    try:
        for name, form in forms.items():
            hook = _stop_before(name, form)
            handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stop_before(name: str, form: Form) -> Callable[..., None]:
    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        arrive: Callable[[NormCall], None] | None = getattr(_this, "arrive", None)
        values = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if arrive is None or values is None:
            return
        with _disable_current_modes():
            seen = form.channels_first(values.detach())
            operator = f"{type(module).__name__}.forward"
            arrive(NormCall(name, seen, form.uses_batch_moments, operator, form.eps, form=form))

    return stop


def _device_of(buffers: Mapping[str, Tensor]) -> str:
    return next((buffer.device.type for buffer in buffers.values()), "cpu")


def _autocast_of(device: str) -> tuple[str, torch.dtype | None]:
    """The autocast in force where the pass is made, for its own thread."""
    if torch.is_autocast_enabled(device):
        return device, torch.get_autocast_dtype(device)
    return device, None
