"""The moments of every layer's input over all samples, and the stored moments that follow them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from bncheck.core.errors import BadData, BadModel
from bncheck.core.estimate import LayerEstimate
from bncheck.core.moments import PopulationMoments, population_moments
from bncheck.recalibration.prior import Prior, PseudoSamples, share_of_stored
from bncheck.recalibration.ranks import Ranks
from bncheck.runtime.input_moments import ImageMoments, InputMoments
from bncheck.runtime.norm_watch import NormCall

# Batches whose means are kept, to tell sorted data from shuffled; fewer than these tell nothing.
_MOST_BATCHES = 128
_FEWEST_BATCHES = 4
# Images on which looking at every n-th position is compared with looking at all.
_COMPARED_IMAGES = 64

Visit = tuple[int, int]
"""(part of the samples, how often the layer has been called on it before)."""


@dataclass(slots=True)
class _Layer:
    """What is known of one layer.

    Attributes:
        mean, var: its running buffers.
        before: their values at the start, in float64.
        eps: of the last call.
        order: position of its first call.
        observer: sets the reference about which images are looked at.
        visits: what each visit brought. A later sweep puts its own in the place of the former one's.
        total: all visits together; None until it is asked for.
        share: weight of the stored moments.
        uses_batch_moments: whether it normalises with the moments of its batch, whatever is stored.
        after: moments in float64 as they are to be stored.
        batch_sizes, batch_means, batch_squares: of the first batches, their images, and means over them of image
            means and of their squares.
        some_positions, all_positions: of the first images, where only some positions are looked at, and of the same
            images all of them.
    """

    mean: Tensor
    var: Tensor
    before: tuple[Tensor, Tensor]
    observer: InputMoments
    eps: float = 0.0
    order: int | None = None
    uses_batch_moments: bool = False
    visits: dict[Visit, InputMoments] = field(default_factory=dict)
    total: InputMoments | None = None
    share: Tensor | float = 0.0
    after: tuple[Tensor, Tensor] | None = None
    batch_sizes: list[int] = field(default_factory=list)
    batch_means: list[Tensor] = field(default_factory=list)
    batch_squares: list[Tensor] = field(default_factory=list)
    some_positions: InputMoments | None = None
    all_positions: InputMoments | None = None


class Population:
    """All layers' moments.

    Args:
        means, variances: layer name → running buffer, of the layers to estimate.
        prior: how the stored moments count.
        ranks: who takes part.
        stride: of the positions looked at.
    """

    def __init__(
        self,
        means: Mapping[str, Tensor],
        variances: Mapping[str, Tensor],
        prior: Prior,
        ranks: Ranks,
        stride: int = 1,
    ) -> None:
        self._layers = {
            name: _Layer(
                mean=mean,
                var=variances[name],
                before=(mean.detach().double().clone(), variances[name].detach().double().clone()),
                observer=InputMoments(stride=stride),
            )
            for name, mean in means.items()
        }
        self._prior = prior
        self._ranks = ranks
        self._reached = 0

    def look(self, call: NormCall) -> ImageMoments | None:
        """Image moments of what a layer is given.

        It runs in the midst of the model, which might hold up what it raises: ``check`` does that.
        """
        assert call.layer is not None
        layer = self._layers[call.layer]
        layer.uses_batch_moments |= call.uses_batch_moments
        if layer.order is None:
            layer.order = self._reached
            self._reached += 1
        layer.eps = call.eps
        seen = layer.observer.observe(call.input)
        if layer.observer.stride > 1 and seen is not None:
            _compare(layer, seen, call.input)
        return seen

    def forget(self) -> None:
        """Begin again: what was seen no longer counts, what is stored stays."""
        for layer in self._layers.values():
            layer.visits.clear()
            layer.total = None
            for noted in (layer.batch_sizes, layer.batch_means, layer.batch_squares):
                noted.clear()

    def drop(self, part: int) -> None:
        """What one part of the samples brought no longer counts: it did not get through."""
        for layer in self._layers.values():
            for visit in [visit for visit in layer.visits if visit[0] == part]:
                del layer.visits[visit]
                layer.total = None

    def visit(self, name: str, visit: Visit, seen: Sequence[ImageMoments | None]) -> None:
        """Take in what a layer was given on one part of the samples, and store the moments of all that was seen."""
        layer = self._layers[name]
        self.collect(name, visit, seen)
        self._blend(layer)
        _write(layer)

    def collect(self, name: str, visit: Visit, seen: Sequence[ImageMoments | None]) -> None:
        """Take it in, and leave what is stored as it is."""
        layer = self._layers[name]
        parts = [part for part in seen if part is not None]
        mine = layer.observer.like()
        mine.take(parts)
        if visit not in layer.visits:
            for part in parts:
                _note_batch(layer, part)
        merged = self._ranks.merged(mine, layer.mean.numel())
        if visit not in layer.visits and layer.total is not None:
            layer.total = InputMoments.pooled([layer.total, merged])
        else:
            layer.total = None
        layer.visits[visit] = merged

    def add(self, name: str, seen: ImageMoments | None) -> None:
        """Add what a layer was given in one call to all it was given before, of this rank alone."""
        if seen is None:
            return
        layer = self._layers[name]
        mine = layer.observer.like()
        mine.take([seen])
        layer.visits[0, 0] = InputMoments.pooled([*layer.visits.values(), mine])
        layer.total = None

    def merge_ranks(self) -> None:
        """After ``add``: everybody's moments, layer by layer."""
        for layer in self._layers.values():
            merged = self._ranks.merged(InputMoments.pooled(layer.visits.values()), layer.mean.numel())
            if merged.images:
                layer.visits[0, 0] = merged
                layer.total = None

    def moments(self) -> dict[str, InputMoments]:
        """Everything seen, by layer, of layers that were reached."""
        return {
            name: InputMoments.pooled(layer.visits.values()) for name, layer in self._layers.items() if layer.visits
        }

    def _blend(self, layer: _Layer) -> None:
        pooled = _all_of(layer)
        mean, var = pooled.mean_and_variance()
        if isinstance(self._prior, PseudoSamples) and not self._prior.count:
            layer.share, layer.after = 0.0, (mean, var)
            return
        before_mean, before_var = (value.to(mean.device) for value in layer.before)
        share = share_of_stored(self._prior, pooled, before_mean, before_var, layer.eps)
        apart = before_mean - mean
        # E[x²] is blended, so that the distance between the means enters the variance.
        blended_var = var + share * (before_var - var) + share * (1 - share) * apart**2
        # What is no moment of anything has no weight.
        sound = before_mean.isfinite() & before_var.isfinite() & (before_var >= 0)
        layer.share = share
        layer.after = (torch.where(sound, mean + share * apart, mean), torch.where(sound, blended_var, var))

    def blend_all(self) -> None:
        """Settle what is to be stored for every layer, and store nothing."""
        for layer in self._layers.values():
            if layer.visits:
                self._blend(layer)

    def store_all(self) -> None:
        """Store the moments of everything seen."""
        self.blend_all()
        for layer in self._layers.values():
            _write(layer)

    def successor(self) -> Population:
        """The same layers, of which nothing has been seen yet."""
        fresh = Population({}, {}, self._prior, self._ranks)
        fresh._layers = {
            name: _Layer(layer.mean, layer.var, layer.before, layer.observer.like(), layer.eps, layer.order)
            for name, layer in self._layers.items()
        }
        return fresh

    def check(self) -> None:
        """Refuse what cannot be estimated.

        Raises:
            BadModel: the graph makes a layer normalise with the batch's moments.
            BadData: moments are no numbers; names the first layer, in the order of execution, that was given such.
        """
        for name, layer in self._layers.items():
            if layer.uses_batch_moments:
                raise BadModel(
                    f"{name} normalises with the moments of its batch although the model is in eval mode, so that "
                    "what it stores has no effect; export the model again after model.eval()"
                )
        reached = [(layer.order, name, layer) for name, layer in self._layers.items() if layer.after is not None]
        for _, name, layer in sorted(reached, key=lambda entry: (entry[0] is None, entry[0] or 0)):
            assert layer.after is not None
            if not all(bool(torch.isfinite(value).all()) for value in layer.after):
                raise BadData(
                    f"{name} is given values that are not finite, so that nothing was estimated; look at the data, "
                    "or run in --precision fp32"
                )

    def distance_in_errors(self, earlier: Mapping[str, tuple[Tensor, Tensor]]) -> float:
        """Root mean square over all channels of the change of a mean in units of its standard error."""
        squares: list[Tensor] = []
        for name, moments in self.moments().items():
            if name in earlier and moments.images > 1:
                error = moments.squared_errors()[0]
                squares.append(((self.stored()[name][0] - earlier[name][0]) ** 2 / error)[error > 0])
        together = torch.cat(squares) if squares else torch.zeros(0)
        return float(together.mean().sqrt()) if together.numel() else 0.0

    def distance(self, earlier: Mapping[str, tuple[Tensor, Tensor]]) -> float:
        """Largest change of what is stored, in √(σ² + eps) for means and as a share for variances."""
        largest = 0.0
        for name, (mean, var) in self.stored().items():
            if name not in earlier:
                return float("inf")
            old_mean, old_var = earlier[name]
            scale = var + self._layers[name].eps
            moved = torch.maximum((mean - old_mean).abs() / scale.sqrt(), (var - old_var).abs() / scale)
            largest = max(largest, float(moved.max())) if moved.numel() else largest
        return largest

    def stride_cost(self) -> float | None:
        """What it costs to look at some positions: median over channels of SE(μ) over that from all positions.

        None where all are looked at, or layers have too few positions for it to matter.
        """
        ratios: list[Tensor] = []
        for layer in self._layers.values():
            some, every = layer.some_positions, layer.all_positions
            if some is None or every is None or some.positions == every.positions or some.images < 2:
                continue
            error, least = some.squared_errors()[0].cpu(), every.squared_errors()[0].cpu()
            ratios.append((error / least)[least > 0].sqrt())
        together = torch.cat(ratios) if ratios else torch.zeros(0)
        return float(together.median()) if together.numel() else None

    def stored(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Moments in float64 as they were last stored."""
        return {name: layer.after for name, layer in self._layers.items() if layer.after is not None}

    def is_exact_by_construction(self) -> bool:
        """Whether every layer met all samples at once, so that it normalised them with their own moments."""
        return all(len(layer.visits) == 1 for layer in self._layers.values() if layer.visits)

    @property
    def unreached(self) -> tuple[str, ...]:
        """Layers the samples never came to."""
        return tuple(name for name, layer in self._layers.items() if not layer.visits)

    def estimates(self) -> dict[str, LayerEstimate]:
        """Every layer that was reached, in the order of execution."""
        reached = [(name, layer) for name, layer in self._layers.items() if layer.after is not None]
        # Layers that only other ranks reached have no order here.
        reached.sort(key=lambda entry: len(self._layers) if entry[1].order is None else entry[1].order)
        return {name: _estimate(layer, position) for position, (name, layer) in enumerate(reached)}

    def data(self) -> dict[str, tuple[PopulationMoments, float]]:
        """Moments of each layer's input with standard errors, and its eps; from the device."""
        found = {name: moments.sums() for name, moments in self.moments().items()}
        return {
            name: (population_moments(sums), self._layers[name].eps) for name, sums in found.items() if sums is not None
        }

    def batch_scatter(self) -> float | None:
        """Variance between batch means over what independent samples would give: the upper quartile over channels.

        The ratio of mean squares of a one-way analysis of variance; 1 on average for shuffled data. Of this rank's
        batches alone.
        """
        ratios = [ratio for layer in self._layers.values() if (ratio := _scatter_ratio(layer)) is not None]
        together = torch.cat(ratios) if ratios else torch.zeros(0)
        return float(together.quantile(0.75)) if together.numel() else None


def _scatter_ratio(layer: _Layer) -> Tensor | None:
    """Of each channel that varies."""
    images = sum(layer.batch_sizes)
    batches = len(layer.batch_sizes)
    if batches < _FEWEST_BATCHES or images <= batches:
        return None
    means, squares = torch.stack(layer.batch_means), torch.stack(layer.batch_squares)
    counts = torch.tensor(layer.batch_sizes, dtype=means.dtype, device=means.device)[:, None]
    grand = (counts * means).sum(0) / images
    between = (counts * (means - grand) ** 2).sum(0)
    within = (counts * (squares - means**2)).sum(0)
    alive = within > 0
    return (between[alive] / within[alive] * ((images - batches) / (batches - 1))).cpu()


def _all_of(layer: _Layer) -> InputMoments:
    """All visits together; kept, for they are asked for at every layer of every wave."""
    if layer.total is None:
        layer.total = InputMoments.pooled(layer.visits.values())
    return layer.total


def _write(layer: _Layer) -> None:
    if layer.after is not None:
        layer.mean.copy_(layer.after[0])
        layer.var.copy_(layer.after[1])


def _note_batch(layer: _Layer, seen: ImageMoments) -> None:
    if len(layer.batch_sizes) < _MOST_BATCHES:
        layer.batch_sizes.append(len(seen.means))
        layer.batch_means.append(seen.means.mean(0))
        layer.batch_squares.append((seen.means**2).mean(0))


def _estimate(layer: _Layer, order: int) -> LayerEstimate:
    sums = _all_of(layer).sums()
    assert sums is not None
    assert layer.after is not None
    before_mean, before_var, after_mean, after_var = (
        value.cpu().numpy().astype(np.float64) for value in (*layer.before, *layer.after)
    )
    return LayerEstimate(
        order=order,
        before_mean=before_mean,
        before_var=before_var,
        after_mean=after_mean,
        after_var=after_var,
        data=population_moments(sums),
        eps=layer.eps,
        prior_share=float(layer.share),
    )


def _compare(layer: _Layer, seen: ImageMoments, values: Tensor) -> None:
    """Look at all positions of the first images as well."""
    if layer.some_positions is None or layer.all_positions is None:
        layer.some_positions = layer.observer.like()
        layer.all_positions = replace(layer.observer.like(), stride=1)
    if layer.some_positions.images < _COMPARED_IMAGES:
        every = layer.all_positions.observe(values)
        if every is not None:
            layer.some_positions.take([seen])
            layer.all_positions.take([every])
