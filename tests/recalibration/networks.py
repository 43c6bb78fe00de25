"""Networks to recalibrate, and the population statistics of their layers by float64 brute force."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Convolutions of growing width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16, eps=1e-3)
        self.dropout = nn.Dropout(0.5)
        self.fc, self.bn3 = nn.Linear(16, 10), nn.BatchNorm1d(10, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.dropout(torch.relu(self.bn2(self.conv2(x))))
        out: Tensor = self.bn3(self.fc(x.mean((2, 3))))
        return out


class Residual(nn.Module):
    """Blocks with shortcuts; a layer's input is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
            )
            for _ in range(4)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Reused(nn.Module):
    """One layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        for _ in range(3):
            x = torch.relu(self.bn(self.conv(x)))
        return x.mean((2, 3))


class Branching(nn.Module):
    """Bright batches take another way than dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)) if float(x.mean()) > 0 else self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(x).mean((2, 3))
        return out


class UnusedHead(Plain):
    """A layer that no sample passes."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.BatchNorm2d(5)


def built(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """With random scales and shifts, and moments that are far from right."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 4.0)
    return model.eval()


def images(sizes: Sequence[int], side: int = 12, seed: int = 1) -> list[Tensor]:
    """Batches of such sizes; images differ in brightness and contrast, so that their positions are correlated."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 3, side, side, generator=generator) * torch.rand(size, 1, 1, 1, generator=generator)
        + torch.randn(size, 3, 1, 1, generator=generator)
        for size in sizes
    ]


Moments = dict[str, tuple[Tensor, Tensor]]


def brute_force(model: nn.Module, batches: Sequence[Tensor], sweeps: int = 1) -> Moments:
    """The fixed point: whole passes over all samples at once in float64, each layer set to its own input's moments.

    Args:
        model: is changed.
        batches: all of one image size.
        sweeps: more than one for layers that are called several times, whose calls are pooled.
    """
    model = model.double()
    found: Moments = {}
    seen: dict[str, list[Tensor]] = {}
    calls: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].flatten(2) if inputs[0].ndim > 2 else inputs[0].unsqueeze(2)
            earlier = seen.setdefault(name, [])
            call = calls.get(name, 0)
            calls[name] = call + 1
            earlier[call : call + 1] = [values]
            together = torch.cat(earlier)
            units = together.mean(2)
            mean = units.mean(0)
            var = together.var((0, 2), correction=0) + units.var(0, correction=1) / len(together)
            module.running_mean.copy_(mean)  # type: ignore[operator, union-attr]
            module.running_var.copy_(var)  # type: ignore[operator, union-attr]
            found[name] = (mean, var)

        module.register_forward_pre_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            watch(name, module)
    with torch.no_grad():
        for _ in range(sweeps):
            calls.clear()
            model(torch.cat(list(batches)).double())
    return found


def errors(model: nn.Module, reference: Moments) -> tuple[float, float]:
    """Largest error of a mean in σ, and of a variance as a share."""
    buffers = dict(model.named_buffers())
    mean_error = var_error = 0.0
    for name, (mean, var) in reference.items():
        found_mean, found_var = buffers[f"{name}.running_mean"].double(), buffers[f"{name}.running_var"].double()
        mean_error = max(mean_error, float(((found_mean - mean).abs() / var.sqrt()).max()))
        var_error = max(var_error, float((found_var / var - 1).abs().max()))
    return mean_error, var_error
