"""Moments of a layer's input, gathered image by image as batches come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bncheck.core.layers import Float64Array
from bncheck.core.moments import ImageSums

_SUMS = 7


@dataclass(slots=True)
class InputMoments:
    """Sums over the images a layer has seen; see ``ImageSums`` for what they are.

    Accumulators are float64, on the device of the data where that has float64, else on the CPU.
    """

    images: int = 0
    positions: float = 0.0
    squared_positions: float = 0.0
    _reference: Tensor | None = None
    _sums: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in a layer's input of shape (N, C) or (N, C, *)."""
        if values.ndim < 2 or not values.numel():
            return
        means, variances = _per_image(values)
        if self._reference is None or self._sums is None:
            self._reference = means.mean(0)
            self._sums = means.new_zeros(_SUMS, means.shape[1])
        weight = float(values[0, 0].numel())
        away = means - self._reference
        second = variances + away**2
        self._sums += torch.stack(
            [
                weight * away.sum(0),
                weight * second.sum(0),
                weight**2 * away.sum(0),
                weight**2 * (away**2).sum(0),
                weight**2 * second.sum(0),
                weight**2 * (away * second).sum(0),
                weight**2 * (second**2).sum(0),
            ]
        )
        count = len(values)
        self.images += count
        self.positions += weight * count
        self.squared_positions += weight**2 * count

    def sums(self) -> ImageSums | None:
        """What was seen so far; None where that is nothing."""
        if self._reference is None or self._sums is None:
            return None
        w_a, w_b, ww_a, ww_aa, ww_b, ww_ab, ww_bb = (_numpy(row) for row in self._sums)
        return ImageSums(
            images=self.images,
            positions=self.positions,
            squared_positions=self.squared_positions,
            reference=_numpy(self._reference),
            w_a=w_a,
            w_b=w_b,
            ww_a=ww_a,
            ww_aa=ww_aa,
            ww_b=ww_b,
            ww_ab=ww_ab,
            ww_bb=ww_bb,
        )


def _per_image(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each image's channels, (N, C) each, in float64.

    The reduction itself runs in float32 or better; torch's is Welford's, which loses nothing to a large mean.
    """
    exact = values if values.dtype in (torch.float32, torch.float64) else values.float()
    if exact.ndim == 2:
        means, variances = exact, torch.zeros_like(exact)
    else:
        variances, means = torch.var_mean(exact.flatten(2), dim=2, correction=0)
    if means.device.type == "mps":
        means, variances = means.cpu(), variances.cpu()
    return means.double(), variances.double()


def _numpy(row: Tensor) -> Float64Array:
    array: Float64Array = row.cpu().numpy()
    return array
