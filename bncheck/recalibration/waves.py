"""Sends batches through a model side by side, so that all of them stand at the same layer at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from bncheck.recalibration.population import Population, Visit
from bncheck.recalibration.ranks import Ranks
from bncheck.runtime.batches import Batch, Forward
from bncheck.runtime.hand_written import Form
from bncheck.runtime.input_moments import ImageMoments
from bncheck.runtime.stepped_pass import SteppedPass, stopping_at

Meet = Callable[[str, Visit, Sequence[ImageMoments | None]], None]
"""What to do with what a layer was given: (layer, visit, one entry for each batch)."""


class Waves:
    """Runs waves: the passes of a wave wait at every layer until all have come, and go on once it is dealt with.

    Args:
        model: in eval mode.
        forward: calls it.
        buffers: layer name → running mean, of the layers to wait at.
        population: looks at what layers are given.
        ranks: who takes part; all wait for one another.
        tell: told of every batch that is through, with its size.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        buffers: Mapping[str, Tensor],
        population: Population,
        ranks: Ranks,
        tell: Callable[[int], None],
    ) -> None:
        self._model = model
        self._forward = forward
        self._buffers = buffers
        self._population = population
        self._ranks = ranks
        self._tell = tell
        self._forms: Mapping[str, Form] = {}

    def stop_at(self, forms: Mapping[str, Form]) -> None:
        """Wait also at these layers, which normalise without a batch-norm operator."""
        self._forms = forms

    def run(self, index: int, batches: Sequence[Batch], meet: Meet) -> None:
        """Send one wave through; ``index`` tells it from the others.

        Raises:
            BncheckError: the model, or another rank, failed. All passes have ended then.
        """
        passes = [
            SteppedPass(self._model, batch, self._forward, self._buffers, self._population.look) for batch in batches
        ]
        try:
            with stopping_at(self._model, self._forms):
                self._advance(index, batches, passes, meet)
        finally:
            for one in passes:
                one.close()

    def _advance(
        self, index: int, batches: Sequence[Batch], passes: Sequence[SteppedPass[ImageMoments | None]], meet: Meet
    ) -> None:
        waiting: dict[int, tuple[str, ImageMoments | None]] = {}
        visits: Counter[str] = Counter()
        going = list(range(len(passes)))
        while True:
            for one in going:
                stop = passes[one].resume()
                if stop is None:
                    self._tell(batches[one].size)
                else:
                    waiting[one] = stop
            # Where the way through the network depends on the data, passes may wait at different layers.
            name = self._ranks.next_layer(Counter(layer for layer, _ in waiting.values()))
            if name is None:
                return
            going = sorted(one for one, (layer, _) in waiting.items() if layer == name)
            meet(name, (index, visits[name]), [waiting.pop(one)[1] for one in going])
            visits[name] += 1
