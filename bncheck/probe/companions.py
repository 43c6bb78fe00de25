"""Whether a sample's prediction depends on the other samples of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bncheck.core.errors import UserCodeFailed
from bncheck.core.measurement import Companions
from bncheck.probe.outputs import are_scores, prediction, top_class
from bncheck.runtime.batches import Batch, Forward, select
from bncheck.runtime.norm_watch import NormCall, NormWatch, running_means

# Samples tried, of them alone and duplicated, and others put beside them at most. A batch norm that uses its batch
# changes each of them, the more the fewer the others are; more would only take longer.
_TRIED = 4
_SINGLED_OUT = 2
_OTHERS = 8


def companions(model: nn.Module, batch: Batch, forward: Forward) -> Companions:
    """Predict samples alone, duplicated, and beside two different sets of others.

    Args:
        model: in the mode it predicts in.
        batch: at least two samples, better twenty.
        forward: calls the model.

    Raises:
        ValueError: the batch holds a single sample.
    """
    if batch.size < 2:
        raise ValueError("a single sample has no companions")
    return _Trial(model, batch, forward).run()


class _Trial:
    def __init__(self, model: nn.Module, batch: Batch, forward: Forward) -> None:
        self._model = model
        self._batch = batch
        self._forward = forward
        self._size = 0
        self._by_batch_norm = False

    def run(self) -> Companions:
        tried = min(_TRIED, self._batch.size // 2)
        first = list(range(tried))
        # The same samples in front, with two different sets of others behind.
        others = list(range(tried, self._batch.size))
        half = min(_OTHERS, max(1, len(others) // 2))
        with torch.no_grad(), NormWatch(running_means(self._model), self._record, self._model):
            beside = self._predict([*first, *others[:half]])[:tried]
            again = self._predict([*first, *others[:half]])[:tried]
            elsewhere = self._predict([*first, *others[-half:][::-1]])[:tried]
            single = first[:_SINGLED_OUT]
            doubled = torch.cat([self._predict([index, index])[:1] for index in single])
            alone, failure = self._alone(single)
        scale = float(beside.abs().max()) or 1.0
        changed = [elsewhere, doubled, *alone]
        return Companions(
            samples=tried,
            noise=_distance(beside, again) / scale,
            change=max(_distance(beside, output) for output in changed) / scale,
            flips=_flips(beside, changed),
            by_batch_norm=self._by_batch_norm,
            fails_alone=failure,
        )

    def _alone(self, indices: Sequence[int]) -> tuple[list[Tensor], str | None]:
        """Predictions of batches of one; or what the model raised, as torch's own batch norms in training mode do."""
        try:
            return [torch.cat([self._predict([index]) for index in indices])], None
        except UserCodeFailed as error:
            return [], str(error)

    def _predict(self, indices: Sequence[int]) -> Tensor:
        self._size = len(indices)
        return prediction(self._forward(self._model, select(self._batch, indices)), len(indices))

    def _record(self, call: NormCall) -> None:
        self._by_batch_norm |= call.mixes_samples(self._size)


def _distance(output: Tensor, other: Tensor) -> float:
    """Between the predictions of as many samples as the second has."""
    return float((output[: len(other)] - other).abs().max())


def _flips(output: Tensor, others: Sequence[Tensor]) -> int | None:
    if not are_scores(output):
        return None
    classes = top_class(output)
    flipped = torch.zeros_like(classes, dtype=torch.bool)
    for other in others:
        flipped[: len(other)] |= top_class(other) != classes[: len(other)]
    return int(flipped.sum())
