"""The one place that sees every call of a normalisation operator, whatever made it.

A ``TorchDispatchMode`` stands below modules, ``torch.nn.functional``, TorchScript and exported programs alike: all of
them end in the same few operators. A layer is known by its running buffers' storage. Layers that use none of these
operators are seen by hooks on their modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from bncheck.runtime.dispatch_mode import WatchingMode
from bncheck.runtime.hand_written import MEANS, VARIANCES, Form, HandCall, HandWatch, hookable
from bncheck.runtime.norm_operators import OPERATORS, norm_arguments


@dataclass(frozen=True, slots=True)
class NormCall:
    """One call of a normalisation operator.

    Attributes:
        layer: name of the layer whose running buffers it was given; None where it was given none, or unknown ones.
        input: what is normalised, of shape (N, C, *).
        uses_batch_moments: whether it normalises with the moments of this input.
        operator: e.g. ``aten::native_batch_norm``, or the module that does without one.
        eps: added to the variance.
        unknown: why the moments of the input cannot be held against the stored ones; None where they can.
        form: of a module that does without an operator: what it computes, where that is known.
        per_sample: whether it is an instance norm.
    """

    layer: str | None
    input: Tensor
    uses_batch_moments: bool
    operator: str
    eps: float
    unknown: str | None = None
    form: Form | None = None
    per_sample: bool = False

    def mixes_samples(self, size: int) -> bool:
        """Whether it mixes the samples of a batch of ``size``.

        One image of N·C channels is an instance norm's, and one of weights is weight standardisation.
        """
        return self.uses_batch_moments and self.input.shape[0] == size > 1


OnCall = Callable[[NormCall], None]


class NormWatch(WatchingMode):
    """While entered, tells ``on_call`` of every normalisation: operators before they run, modules after.

    Args:
        buffers: layer name → its running mean.
        on_call: what to tell; it runs with the watch suspended.
        model: where given, its layers that normalise without a batch-norm operator are told of too. Those that are
            modules of their own get hooks, which are gone when the watch is left; of those in a graph no more is known
            than that their running mean was read, which is told on leaving.
    """

    def __init__(self, buffers: Mapping[str, Tensor], on_call: OnCall, model: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {place_of(mean): name for name, mean in buffers.items()}
        self._on_call = on_call
        self._modules = {} if model is None else hookable(model)
        self._by_hand: HandWatch | None = None
        self._notes_reading = model is not None
        # Layers that nothing was told of yet, and those among them whose running mean an operator was given.
        self._untold: dict[Place, str] = {}
        self._read: dict[str, None] = {}

    def __enter__(self) -> Self:
        """Start to watch; it may be entered again and again."""
        self._untold = dict(self._names) if self._notes_reading else {}
        self._read = {}
        self._by_hand = HandWatch(self._modules, self._on_hand_call)
        try:
            super().__enter__()
        except BaseException:
            self._by_hand.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and take the hooks off."""
        try:
            super().__exit__(kind, error, trace)
        finally:
            if self._by_hand is not None:
                self._by_hand.close()
        if kind is None:
            for name in self._read:
                if name in self._untold.values():
                    self._on_call(NormCall(name, torch.empty(0), False, "graph", 0.0, unknown=_READ))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at the call, then let it go on."""
        name = func.name()
        if name in OPERATORS and (told := norm_arguments(func, args, kwargs)) is not None:
            layer = None if told.mean is None else self._names.get(place_of(told.mean))
            if layer is not None and told.mean is not None:
                self._told(layer, place_of(told.mean))
            call = NormCall(layer, told.input, told.uses_batch_moments, name, told.eps)
            self._on_call(replace(call, unknown=_PER_SAMPLE, per_sample=True) if told.per_sample else call)
        elif self._untold and name != _EQUAL:
            self._note_reading(args)
        return call_through(func, args, kwargs)

    def _told(self, layer: str, place: Place) -> None:
        self._untold.pop(place, None)
        if self._by_hand is not None:
            self._by_hand.by_operator(layer)

    def _note_reading(self, args: tuple[Any, ...]) -> None:
        for argument in args:
            if isinstance(argument, Tensor) and argument.ndim == 1:
                name = self._untold.get(_place_if_any(argument))
                if name is not None:
                    self._read.setdefault(name)

    def _on_hand_call(self, call: HandCall) -> None:
        self._untold = {place: name for place, name in self._untold.items() if name != call.layer}
        form = call.form
        unknown = None
        if call.per_sample:
            unknown = _PER_SAMPLE
        elif form is None:
            unknown = f"{call.module} computes neither what its stored moments give nor what the batch's do"
        eps = form.eps if form is not None else call.eps
        uses_batch_moments = form.uses_batch_moments if form is not None else call.updated and not call.per_sample
        self._on_call(
            NormCall(
                layer=call.layer,
                input=call.input,
                uses_batch_moments=uses_batch_moments,
                operator=f"{call.module}.forward",
                eps=eps or 0.0,
                unknown=unknown,
                form=form,
                per_sample=call.per_sample,
            )
        )


@dataclass(frozen=True, slots=True)
class ByHand:
    """Layers of a model that normalise without a batch-norm operator.

    Attributes:
        forms: layer name → what it computes.
        unknown: layer name → why that cannot be told.
    """

    forms: Mapping[str, Form]
    unknown: Mapping[str, str]


def written_by_hand(model: nn.Module, buffers: Mapping[str, Tensor], run: Callable[[], object]) -> ByHand:
    """What layers without an operator compute, told from one forward pass.

    Layers without a parameter of their own are taken for frozen ones, which is how those are written: a trained scale
    that becomes a buffer.

    Args:
        model: in eval mode.
        buffers: layer name → its running mean, of the layers of interest.
        run: the pass.
    """
    modules = hookable(model)
    forms: dict[str, Form] = {}
    unknown: dict[str, str] = {}

    def note(call: NormCall) -> None:
        name = call.layer
        if name is None or name not in buffers or name not in modules or call.operator in OPERATORS:
            return
        if call.unknown is not None:
            unknown[name] = call.unknown
        elif call.form is not None and not modules[name]._parameters:
            unknown[name] = f"{type(modules[name]).__name__} has no parameters, as frozen layers have"
        elif call.form is not None:
            forms[name] = call.form

    if modules.keys() & buffers.keys():
        with NormWatch(buffers, note, model):
            run()
    return ByHand({name: form for name, form in forms.items() if name not in unknown}, unknown)


_PER_SAMPLE = "an instance norm's stored moments are averages of single samples'"
_EQUAL = "aten::equal"
_READ = "its stored moments are read by other operators than batch norm's"


def call_through(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
    """Run an operator as it was called.

    TorchScript's optimiser compares the constants of a graph by ``aten::equal``, and hands wrapped numbers over as
    plain ones, which the operator would refuse.
    """
    if func.name() == _EQUAL:
        return torch.equal(*(torch.as_tensor(argument) for argument in args))
    return func(*args, **(kwargs or {}))


Place = tuple[int, int]
"""What identifies a buffer: its storage's address and where in it the buffer begins."""


def place_of(tensor: Tensor) -> Place:
    """Where a buffer lies."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


_NOWHERE: Place = (-1, -1)


def _place_if_any(tensor: Tensor) -> Place:
    try:
        return place_of(tensor)
    except (NotImplementedError, RuntimeError):
        return _NOWHERE  # sparse, opaque or lazy: nothing that running moments are kept in


def running_means(model: nn.Module) -> dict[str, Tensor]:
    """Layer name → running mean, for everything in a model that keeps one; TorchScript and graph modules too."""
    return _buffers(model, MEANS)


def running_variances(model: nn.Module) -> dict[str, Tensor]:
    """Layer name → running variance, likewise."""
    return _buffers(model, VARIANCES)


def _buffers(model: nn.Module, leaves: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[0]: buffer
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in leaves and isinstance(buffer, Tensor)
    }
