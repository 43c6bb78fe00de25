"""Ways to estimate population statistics side by side, and the truth to hold them against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bncheck.core.estimation_method import Method
from bncheck.recalibration.schedule import Plan, estimate
from bncheck.runtime.batches import Batch, forward
from bncheck.runtime.norm_watch import running_means, running_variances

try:
    from fvcore.nn.precise_bn import update_bn_stats
except ImportError:
    update_bn_stats = None

Run = Callable[[nn.Module, Sequence[Tensor], torch.device], int]
"""Estimate the moments of a model from batches on the host; returns how many samples went into them."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """One way.

    Attributes:
        name: for tables.
        run: what to time.
        estimates: whether it leaves moments behind.
        fast: whether it gets the model in the channels-last format, under autocast to bfloat16, beside others that do
            not.
    """

    name: str
    run: Run
    estimates: bool = True
    fast: bool = False


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """By name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


# --- the ways ----------------------------------------------------------------------------------------------


def _samples(batches: Sequence[Tensor]) -> int:
    return sum(len(batch) for batch in batches)


def plain(model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> int:
    """Predict and estimate nothing: the least that anything can take."""
    with torch.no_grad():
        for batch in batches:
            model(batch.to(device))
    return _samples(batches)


def torchs(model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> int:
    """``torch.optim.swa_utils.update_bn``."""
    update_bn(batches, model, device)
    return _samples(batches)


def fvcores(model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> int:
    """fvcore's ``update_bn_stats``, with the layers in training mode, which it asks for, and nothing else in it."""
    layers = batch_norms(model).values()
    for layer in layers:
        layer.train()
    update_bn_stats(model, (batch.to(device) for batch in batches), num_iters=len(batches))
    for layer in layers:
        layer.eval()
    return _samples(batches)


def ours(**choice: object) -> Run:
    """A plan of bncheck's: as many samples as there are, unless the choice says otherwise."""

    def run(model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> int:
        given = {"samples": _samples(batches), "device": device, **choice}
        found = estimate(
            model,
            (Batch((batch,), None, len(batch)) for batch in batches),
            forward,
            running_means(model),
            running_variances(model),
            Plan(**given),  # type: ignore[arg-type]
        )
        return found.samples

    return run


def auto(model: nn.Module, batches: Sequence[Tensor], device: torch.device) -> int:
    """bncheck's default: exact, from as many samples as the standard errors ask for."""
    return ours(samples=None, most_samples=_samples(batches))(model, batches, device)


UPDATE_BN = Estimator("update_bn", torchs)
FVCORE = Estimator("fvcore", fvcores)
EXACT = Estimator("bncheck exact", ours(method=Method.EXACT))
# One pass at a time, as where memory holds no more; the sweep that measures the residual is left out.
ONLINE = Estimator("bncheck online", ours(method=Method.ONLINE, memory=1, check=False))
AUTO = Estimator("bncheck auto", auto)
FAST = Estimator("exact, bf16, channels-last", ours(method=Method.EXACT), fast=True)

ESTIMATORS: tuple[Estimator, ...] = (
    Estimator("eval forward", plain, estimates=False),
    UPDATE_BN,
    *([] if update_bn_stats is None else [FVCORE]),
    EXACT,
    ONLINE,
    AUTO,
)


def under(estimator: Estimator, precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The number format an estimator's arithmetic runs in."""
    low = precision == "bf16" or estimator.fast
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


# --- the truth ---------------------------------------------------------------------------------------------

Moments = dict[str, tuple[Tensor, Tensor]]


def fixed_point(model: nn.Module, images: Tensor, *, corrected: bool = False) -> Moments:
    """All images through the model at once in float64, each layer set to the moments of its own input.

    Args:
        model: is left as it is.
        images: (N, C, H, W), where the model is.
        corrected: whether SE(μ)² is added to the biased variances, as bncheck defines them.
    """
    found: Moments = {}
    judge = deepcopy(model).double().eval()

    def watch(name: str, layer: _BatchNorm) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].flatten(2) if inputs[0].ndim > 2 else inputs[0].unsqueeze(2)
            var, mean = torch.var_mean(values, (0, 2), correction=0)
            if corrected:
                var = var + values.mean(2).var(0) / len(values)
            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
            layer.running_var.copy_(var)  # type: ignore[union-attr]
            found[name] = (mean, var)

        layer.register_forward_pre_hook(hook)

    for name, layer in batch_norms(judge).items():
        watch(name, layer)
    with torch.no_grad():
        judge(images.double())
    return found


@dataclass(frozen=True, slots=True)
class Errors:
    """Of the stored moments, over all channels of a model: means in σ, variances as a share.

    Attributes:
        mean, var: the largest.
        mean_rms, var_rms: root mean squares.
    """

    mean: float
    var: float
    mean_rms: float
    var_rms: float

    @property
    def largest(self) -> float:
        """Of the means' and the variances'."""
        return max(self.mean, self.var)

    @property
    def rms(self) -> float:
        """The larger of the two."""
        return max(self.mean_rms, self.var_rms)


def errors(model: nn.Module, truth: Moments) -> Errors:
    """Distance of what a model stores from the truth."""
    means, variances = [], []
    layers = batch_norms(model)
    for name, (mean, var) in truth.items():
        stored_mean, stored_var = layers[name].running_mean, layers[name].running_var
        assert stored_mean is not None
        assert stored_var is not None
        means.append((stored_mean.double() - mean) / var.sqrt())
        variances.append(stored_var.double() / var - 1)
    mean_errors, var_errors = torch.cat(means), torch.cat(variances)
    return Errors(
        mean=float(mean_errors.abs().max()),
        var=float(var_errors.abs().max()),
        mean_rms=float(mean_errors.square().mean().sqrt()),
        var_rms=float(var_errors.square().mean().sqrt()),
    )


def nearest(model: nn.Module, truths: Sequence[Moments]) -> Errors:
    """Against whichever definition of the truth is kinder to the model."""
    return min((errors(model, truth) for truth in truths), key=lambda found: found.largest)


# --- models and images -------------------------------------------------------------------------------------


class SmallCnn(nn.Module):
    """Five convolutions, each with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 3
        for outputs, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            convolution = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*parts)
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images).mean((2, 3)))
        return scores


class Scores(nn.Module):
    """An image classifier of transformers, called with images alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(images).logits
        return scores


def _resnet(**shape: object) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return Scores(ResNetForImageClassification(ResNetConfig(num_labels=10, **shape)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small CNN": SmallCnn,
    "ResNet-18": lambda: _resnet(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
    "ResNet-50": lambda: _resnet(depths=[3, 4, 6, 3], hidden_sizes=[256, 512, 1024, 2048], layer_type="bottleneck"),
}


def build(name: str) -> nn.Module:
    """A model in eval mode whose batch norms scale and shift as trained ones do, and store what fits nothing."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for layer in batch_norms(model).values():
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.3)
        nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(layer.running_var, 0.5, 4.0)  # type: ignore[arg-type]
    return model.eval()


def images(count: int, side: int, seed: int) -> Tensor:
    """Images that differ in brightness and contrast, and whose neighbouring pixels are alike, as photographs' are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear")
    texture = smooth + 0.5 * torch.randn(count, 3, side, side, generator=generator)
    brightness = 0.5 * torch.randn(count, 3, 1, 1, generator=generator)
    return brightness + (0.5 + torch.rand(count, 1, 1, 1, generator=generator)) * texture
