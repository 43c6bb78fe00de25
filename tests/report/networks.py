"""Networks for the pages of reports: chains of norms with any names, and data that they fit or do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "right\u202eto left\u2066\u200b",
    "x" * 5000,
    "<b>bold</b>&lt;<a href='https://example:com'>link</a>%{x}",
    "{{7*7}}\u2028{% raw %}",
    "a<br>b\x1b[31m",
    "\"quoted\" 'twice' `and` $x^2$",
)


class Chain(nn.Module):
    """Norms one after the other."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for norm in self._modules.values():
            values = norm(values)
        return values


def chain(names: Sequence[str], channels: int, *, shift: float) -> nn.Module:
    """As if trained on a normal distribution; the last stored mean is off by ``shift``, the first by a little."""
    net = Chain()
    for index, name in enumerate(names):
        norm = nn.BatchNorm1d(channels)
        norm.running_mean = shift * (index + 2) / (len(names) + 1) * torch.linspace(0.5, 1.0, channels)
        norm.running_var = torch.linspace(0.8, 1.3, channels)
        norm.num_batches_tracked += 1000
        net._modules[name] = norm  # add_module refuses names with dots
    return net.eval()


def data_for(channels: int) -> list[torch.Tensor]:
    """Four batches of that distribution."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, channels, generator=generator) for _ in range(4)]
