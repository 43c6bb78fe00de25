"""Moments of a layer's input, gathered image by image as batches come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bncheck.core.layers import Float64Array
from bncheck.core.moments import ImageSums

_SUMS = 7
_COUNTS = 3
# Elements that are centred and squared at a time on a CPU: what lies in its cache costs half.
_CHUNK = 2**18


@dataclass(frozen=True, slots=True)
class ImageMoments:
    """What each image of a batch brought to a layer, about the layer's reference.

    Attributes:
        means: of the image's values less the reference, (N, C).
        squares: mean of the squares of the same, (N, C).
        positions: values per image and channel.
    """

    means: Tensor
    squares: Tensor
    positions: int


@dataclass(slots=True)
class InputMoments:
    """Sums over the images a layer has seen; see ``ImageSums`` for what they are.

    Values are centred on a reference near their mean before they are squared, so that no precision is lost to a large
    mean. Reductions inside an image run in float32 or better, sums over images in float64: on the device of the data
    where that has float64, else on the CPU. Nothing waits for the device.

    Attributes:
        images, positions, squared_positions: as in ``ImageSums``.
        stride: of rows and columns whose positions are looked at, 1 for all.
    """

    images: int = 0
    positions: float = 0.0
    squared_positions: float = 0.0
    stride: int = 1
    _reference: Tensor | None = None
    _sums: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in a layer's input of shape (N, C) or (N, C, *)."""
        seen = self.observe(values)
        if seen is not None:
            self.take([seen])

    def observe(self, values: Tensor) -> ImageMoments | None:
        """Moments of each image of a layer's input, not yet taken in; None where it holds no values of channels.

        The first to be observed sets the reference.
        """
        if values.ndim < 2 or not values.numel():
            return None
        if self.stride > 1 and values.ndim > 2:
            values = values[(slice(None), slice(None), *[slice(None, None, self.stride)] * (values.ndim - 2))]
        values = values.flatten(2) if values.ndim > 2 else values.unsqueeze(2)
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        if self._reference is None:
            # Rounded to float32, so that it is the same number in whatever the data comes in.
            self._reference = _exact(values.mean(2).mean(0).float())
        reference = self._reference.to(device=values.device, dtype=values.dtype)
        means, squares = _about(values, reference.unsqueeze(1))
        return ImageMoments(_exact(means), _exact(squares), values.shape[2])

    def take(self, seen: Iterable[ImageMoments]) -> None:
        """Take in what was observed; all at once is cheaper than one by one."""
        parts = list(seen)
        if not parts:
            return
        by_size: dict[int, list[ImageMoments]] = {}
        for part in parts:
            by_size.setdefault(part.positions, []).append(part)
        for positions, alike in by_size.items():
            means = torch.cat([part.means for part in alike])
            squares = torch.cat([part.squares for part in alike])
            self._take(means, squares, float(positions))

    def _take(self, means: Tensor, squares: Tensor, weight: float) -> None:
        added = torch.stack(
            [
                weight * means.sum(0),
                weight * squares.sum(0),
                weight**2 * means.sum(0),
                weight**2 * (means**2).sum(0),
                weight**2 * squares.sum(0),
                weight**2 * (means * squares).sum(0),
                weight**2 * (squares**2).sum(0),
            ]
        )
        self._sums = added if self._sums is None else self._sums + added
        count = len(means)
        self.images += count
        self.positions += weight * count
        self.squared_positions += weight**2 * count

    def like(self) -> InputMoments:
        """Empty ones about the same reference."""
        return InputMoments(stride=self.stride, _reference=self._reference)

    def about(self, reference: Tensor) -> InputMoments:
        """The same sums about another reference of shape ``(C,)``: binomials, exact in what float64 holds."""
        if self._reference is None or self._sums is None:
            return InputMoments(stride=self.stride, _reference=reference)
        shift = self._reference - reference
        w_a, w_b, ww_a, ww_aa, ww_b, ww_ab, ww_bb = self._sums
        w, ww = self.positions, self.squared_positions
        sums = torch.stack(
            [
                w_a + shift * w,
                w_b + 2 * shift * w_a + shift**2 * w,
                ww_a + shift * ww,
                ww_aa + 2 * shift * ww_a + shift**2 * ww,
                ww_b + 2 * shift * ww_a + shift**2 * ww,
                ww_ab + 2 * shift * ww_aa + shift * ww_b + 3 * shift**2 * ww_a + shift**3 * ww,
                ww_bb
                + 4 * shift * ww_ab
                + 4 * shift**2 * ww_aa
                + 2 * shift**2 * ww_b
                + 4 * shift**3 * ww_a
                + shift**4 * ww,
            ]
        )
        return InputMoments(self.images, self.positions, self.squared_positions, self.stride, reference, sums)

    @staticmethod
    def pooled(parts: Iterable[InputMoments]) -> InputMoments:
        """All of them together, about the reference of the first that has seen anything; added up in their order."""
        total: InputMoments | None = None
        for part in parts:
            if part._reference is None or part._sums is None:
                continue
            if total is None or total._reference is None or total._sums is None:
                total = replace(part)
                continue
            moved = part if part._reference is total._reference else part.about(total._reference)
            assert moved._sums is not None
            total._sums = total._sums + moved._sums
            total.images += moved.images
            total.positions += moved.positions
            total.squared_positions += moved.squared_positions
        return InputMoments() if total is None else total

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Population mean, and biased variance plus SE(μ)², of shape ``(C,)``, in float64, on the device.

        The deviations of a sample from its own mean are smaller than those from the true one, by SE(μ)² on average:
        Bessel's factor with all positions would take those for independent.

        Raises:
            ValueError: nothing was seen.
        """
        if self._reference is None or self._sums is None:
            raise ValueError("moments of no image")
        w_a, w_b, *_ = self._sums
        shift = w_a / self.positions
        variance = (w_b / self.positions - shift**2).clamp(min=0.0)
        if self.images > 1:
            variance = variance + self._mean_error(self._sums, shift)
        return self._reference + shift, variance

    def squared_errors(self) -> tuple[Tensor, Tensor]:
        """SE(μ)² and SE(σ²)² of shape ``(C,)``, on the device; see ``core.moments``.

        Raises:
            ValueError: nothing was seen.
        """
        if self._sums is None:
            raise ValueError("errors of no image")
        w_a, w_b, ww_a, ww_aa, ww_b, ww_ab, ww_bb = self._sums
        shift = w_a / self.positions
        rest = shift**2 - (w_b / self.positions - shift**2)
        scatter = (
            ww_bb
            + 4 * shift**2 * ww_aa
            + rest**2 * self.squared_positions
            - 4 * shift * ww_ab
            + 2 * rest * ww_b
            - 4 * shift * rest * ww_a
        )
        return self._mean_error(self._sums, shift), scatter.clamp(min=0.0) * self._correction

    def _mean_error(self, sums: Tensor, shift: Tensor) -> Tensor:
        scatter = sums[3] - 2 * shift * sums[2] + shift**2 * self.squared_positions
        return scatter.clamp(min=0.0) * self._correction

    @property
    def _correction(self) -> float:
        """What turns a sum of squares into a squared error."""
        return self.images / (self.images - 1) / self.positions**2 if self.images > 1 else float("nan")

    def packed(self, channels: int) -> Tensor:
        """All of it as one vector of float64, to be sent elsewhere; of zeros where nothing was seen."""
        if self._reference is None or self._sums is None:
            return torch.zeros(_COUNTS + (1 + _SUMS) * channels, dtype=torch.float64)
        counts = torch.tensor([self.images, self.positions, self.squared_positions], dtype=torch.float64)
        return torch.cat([counts.to(self._sums.device), self._reference, self._sums.flatten()])

    @classmethod
    def unpacked(cls, vector: Tensor) -> InputMoments:
        """What ``packed`` made a vector of."""
        images, positions, squared_positions = (float(value) for value in vector[:_COUNTS])
        if not images:
            return cls()
        reference, *sums = vector[_COUNTS:].reshape(1 + _SUMS, -1)
        return cls(int(images), positions, squared_positions, 1, reference, torch.stack(sums))

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


def _about(values: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of each image's values less the reference.

    Args:
        values: (N, C, positions).
        reference: (C, 1).

    Returns:
        (N, C) each.
    """
    if values.device.type == "cuda":
        # One kernel that reads once. On a CPU torch's own var_mean takes ten times as long as the way below.
        variances, means = torch.var_mean(values, dim=2, correction=0)
        away = means - reference.squeeze(1)
        return away, variances + away**2
    step = max(1, _CHUNK * len(values) // values.numel())
    if step >= len(values):
        return _centred(values, reference)
    chunks = [_centred(values[start : start + step], reference) for start in range(0, len(values), step)]
    return torch.cat([means for means, _ in chunks]), torch.cat([squares for _, squares in chunks])


def _centred(values: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    away = values - reference
    return away.mean(2), away.square_().mean(2)


def _exact(values: Tensor) -> Tensor:
    """In float64; MPS has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _numpy(row: Tensor) -> Float64Array:
    array: Float64Array = row.cpu().numpy()
    return array
