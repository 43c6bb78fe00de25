"""Layers that keep running moments and normalise without a batch-norm operator: frozen ones, and people's own.

Only the module around such a layer is known. What it computes is told by its output: the normalisation by its stored
moments, by those of the batch, or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

MEANS = ("running_mean", "moving_mean")
"""Names under which layers keep their running mean."""
VARIANCES = ("running_var", "moving_var", "moving_variance")

_WEIGHTS = ("weight", "gamma", "scale")
_BIASES = ("bias", "beta", "shift", "offset")
_EPS = ("eps", "epsilon", "variance_epsilon")
# Tried after the module's own: constants that people write into a forward function.
_EPS_IN_USE = (1e-5, 1e-3, 1e-4, 1e-6, 1e-8, 0.0)
# Largest difference from the output, over the largest output: arithmetic differs by 1e-6 in float32 and by 1e-2 in half
# precision, and the moments of one batch from the stored ones by 5e-2.
_TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3}
_HALF_TOLERANCE = 2e-2
# Samples, and positions of each, on which an output is compared with what it should be.
_SAMPLES, _POSITIONS = 8, 16


@dataclass(frozen=True, slots=True)
class Form:
    """What a hand-written layer computes: per channel, ``(x − mean) / √(var + eps) · weight + bias``.

    Attributes:
        uses_batch_moments: whether mean and variance are those of the batch.
        eps: added to the variance.
        axis: of the channels, 1 or −1.
        weight, bias: of shape ``(channels,)``; None stands for 1 and 0.
    """

    uses_batch_moments: bool
    eps: float
    axis: int
    weight: Tensor | None
    bias: Tensor | None

    def channels_first(self, values: Tensor) -> Tensor:
        """The input with its channels in dimension 1."""
        return values if self.axis == 1 else values.movedim(-1, 1)

    def with_batch_moments(self, values: Tensor) -> Tensor:
        """The layer's output if it used the moments of its input."""
        moved = self.channels_first(values)
        exact = moved.float() if moved.dtype in (torch.float16, torch.bfloat16) else moved
        weight, bias = (None if part is None else part.to(exact) for part in (self.weight, self.bias))
        output = nn.functional.batch_norm(exact, None, None, weight, bias, training=True, eps=self.eps)
        return (output if self.axis == 1 else output.movedim(1, -1)).to(values.dtype)


@dataclass(frozen=True, slots=True)
class HandCall:
    """One call of a layer that called no operator on its running moments.

    Attributes:
        layer: its name.
        module: its class.
        input: as it was given, with its channels in dimension 1 where the form is known.
        form: what it computes; None where that could not be told, or it is an instance norm.
        updated: whether its running moments changed meanwhile.
        per_sample: whether it is torch's instance norm.
        eps: the module's own.
    """

    layer: str
    module: str
    input: Tensor
    form: Form | None
    updated: bool
    per_sample: bool
    eps: float | None


def hookable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with running moments whose forward is Python and may normalise by hand.

    torch's own batch norms are left out: they call an operator. Modules without a forward (of exported programs) and
    scripted ones cannot be hooked.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if any(leaf in module._buffers for leaf in MEANS)
        and not isinstance(module, torch.jit.ScriptModule)
        and type(module).forward not in _KNOWN_FORWARDS
    }


_KNOWN_FORWARDS: tuple[object, ...] = (
    nn.Module.forward,
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
)


@dataclass(slots=True)
class _Open:
    layer: str
    mean: Tensor | None
    var: Tensor | None
    by_operator: bool = False


class HandWatch:
    """Hooks on modules that may normalise by hand; ``close`` removes them.

    Args:
        modules: by layer name.
        on_call: told of each call in which no operator was given the layer's running moments.
    """

    def __init__(self, modules: Mapping[str, nn.Module], on_call: Callable[[HandCall], None]) -> None:
        self._on_call = on_call
        self._open: list[_Open] = []
        self._handles: list[RemovableHandle] = []
        try:
            for name, module in modules.items():
                self._hook(name, module)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def by_operator(self, layer: str) -> None:
        """Take note that an operator was given this layer's running moments."""
        for call in self._open:
            if call.layer == layer:
                call.by_operator = True

    def _hook(self, name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            with _disable_current_modes():
                self._open.append(_Open(name, _copy(_first(module, MEANS)), _copy(_first(module, VARIANCES))))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            call = self._open.pop()
            values = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if call.by_operator or values is None or output is None:
                return
            with _disable_current_modes():
                self._on_call(_told(call, module, values.detach(), output))

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True, always_call=True))


def _told(call: _Open, module: nn.Module, values: Tensor, output: object) -> HandCall:
    per_sample = isinstance(module, _InstanceNorm)
    form = None
    if call.mean is not None and call.var is not None and isinstance(output, Tensor) and not per_sample:
        form = form_of(module, values, output.detach(), call.mean, call.var)
    now = _first(module, MEANS)
    updated = call.mean is not None and now is not None and not torch.equal(call.mean, now)
    return HandCall(
        layer=call.layer,
        module=type(module).__name__,
        input=values if form is None else form.channels_first(values),
        form=form,
        updated=updated,
        per_sample=per_sample,
        eps=_own_eps(module),
    )


def form_of(module: nn.Module, values: Tensor, output: Tensor, mean: Tensor, var: Tensor) -> Form | None:
    """What a module computed, of its input, its output and the running moments it had; None where it is neither.

    Args:
        module: whose scale, shift and eps are looked for.
        values: (N, C, *) or (N, *, C).
        output: of the same shape.
        mean: (C,).
        var: (C,).
    """
    if values.shape != output.shape or values.ndim < 2 or not values.numel() or mean.ndim != 1:
        return None
    weight, bias = (_per_channel(_first(module, names), mean) for names in (_WEIGHTS, _BIASES))
    tolerance = _TOLERANCES.get(output.dtype, _HALF_TOLERANCE)
    own = _own_eps(module)
    tried = _EPS_IN_USE if own is None else (own,)
    for axis in _axes(values, len(mean)):
        exact, wanted = (_by_channel(part, axis) for part in (values, output))
        for uses_batch_moments in (False, True):
            moments = _of_the_batch(exact) if uses_batch_moments else [(mean, var)]
            errors = [_errors(exact, wanted, pair, tried, weight, bias) for pair in moments]
            error, eps = min((error, eps) for row in errors for error, eps in zip(row, tried, strict=True))
            if error <= tolerance:
                return Form(uses_batch_moments, eps, axis, weight, bias)
    return None


def _by_channel(values: Tensor, axis: int) -> Tensor:
    """As (N, C, positions)."""
    return values.unsqueeze(2) if values.ndim == 2 else values.movedim(axis, 1).flatten(2)


def _axes(values: Tensor, channels: int) -> list[int]:
    """Dimensions that may be the channels'."""
    return [axis for axis in ((1, -1) if values.ndim > 2 else (1,)) if values.shape[axis] == channels]


def _of_the_batch(values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance over samples and positions of (N, C, positions); the variance biased, and unbiased."""
    exact = values if values.dtype is torch.float64 else values.float()
    var, mean = torch.var_mean(exact, dim=(0, 2), correction=0)
    count = values.shape[0] * values.shape[2]
    return [(mean, var), (mean, var * (count / (count - 1)))] if count > 1 else [(mean, var)]


def _errors(
    values: Tensor,
    output: Tensor,
    moments: tuple[Tensor, Tensor],
    tried: Sequence[float],
    weight: Tensor | None,
    bias: Tensor | None,
) -> list[float]:
    """For each eps: the largest difference between the output and the normalised input, over the largest output.

    Some samples and positions are looked at.
    """
    mean, var = (_exact(moment) for moment in moments)
    wanted = _exact(_picked(output))
    centred = _exact(_picked(values)) - mean.unsqueeze(1)
    scales = torch.rsqrt(var + torch.tensor(tried, dtype=torch.float64).unsqueeze(1))
    if weight is not None:
        scales = scales * _exact(weight)
    expected = centred * scales[:, None, :, None]  # (eps, samples, channels, positions)
    if bias is not None:
        expected = expected + _exact(bias).unsqueeze(1)
    largest = float(wanted.abs().max()) or 1.0
    errors = (expected - wanted).abs().amax((1, 2, 3)) / largest
    return [error if error == error else float("inf") for error in errors.tolist()]


def _exact(values: Tensor) -> Tensor:
    """In float64, which not every device has."""
    return values.detach().cpu().double()


def _picked(values: Tensor) -> Tensor:
    """Some samples and positions of (N, C, positions), spread over all."""
    return values[:: max(1, len(values) // _SAMPLES), :, :: max(1, values.shape[2] // _POSITIONS)]


def _own_eps(module: nn.Module) -> float | None:
    found = next((value for name in _EPS if isinstance(value := getattr(module, name, None), (int, float))), None)
    return None if found is None else float(found)


def _first(module: nn.Module, names: tuple[str, ...]) -> Tensor | None:
    """The first parameter or buffer of these names that the module has itself."""
    own = {**module._parameters, **module._buffers}
    return next((tensor for name in names if isinstance(tensor := own.get(name), Tensor)), None)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _per_channel(tensor: Tensor | None, mean: Tensor) -> Tensor | None:
    return None if tensor is None or tensor.numel() != mean.numel() else tensor.detach().reshape(-1)
