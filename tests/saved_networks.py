"""Small networks in files of their own, as sound or as faulty as a test wants them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

CHANNELS = 4
UPDATES = 5000


def save_network(
    path: Path,
    *,
    updates: Mapping[str, int] | None = None,
    not_finite: Mapping[str, int] | None = None,
    names: tuple[str, ...] = ("bn1", "bn2", "bn3", "bn4"),
    scale: float = 1.0,
    state_dict: bool = False,
) -> Path:
    """Write a network that is sound but for what is said of its layers.

    Args:
        path: where.
        updates: layer → batches its moments were updated with; of few, their initial values are left (BN405).
        not_finite: layer → channels whose mean is NaN (BN401).
        names: of the layers, in the file's order.
        scale: what the moments are multiplied by.
        state_dict: whether only tensors are written, which say no momentum.
    """
    torch.manual_seed(0)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for index, name in enumerate(names):
        modules[f"conv{index}"] = nn.Conv2d(CHANNELS if index else 1, CHANNELS, 3, padding=1, bias=False)
        modules[name] = norm = nn.BatchNorm2d(CHANNELS)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean.normal_().mul_(scale)
        norm.running_var.uniform_(0.5, 2.0).mul_(scale)
        norm.running_mean[: (not_finite or {}).get(name, 0)] = torch.nan
        norm.num_batches_tracked.fill_((updates or {}).get(name, UPDATES))
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
    network = nn.Sequential(modules).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict() if state_dict else network, path)
    return path
