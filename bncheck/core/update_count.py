"""How many updates a layer is said to have had once its moments are no longer a moving average."""

from __future__ import annotations

import math

from bncheck.core.layers import Averaging, Momentum
from bncheck.core.limits import Limits

# PyTorch's default, where nothing says the momentum.
_MOMENTUM = 0.1


def updates_to_write(count: int, momentum: Momentum | None, samples: int, limits: Limits) -> int:
    """The number to store beside estimated moments.

    The initial 0 and 1 are gone from them, and a count that says otherwise, (1 − m)ⁿ above BN405's limit, would be
    false: it is raised to the least that does not. A cumulative average gives its next batch the weight 1/(n + 1), so
    that there the count stands for the batches the estimate is worth. Everything else stays.

    Args:
        count: as it is stored.
        momentum: in PyTorch's convention; None where it is unknown.
        samples: of the calibration set.
        limits: BN405's, and the batch size assumed.
    """
    if isinstance(momentum, Averaging):
        return max(count, math.ceil(samples / limits.assumed_batch_size))
    rate = _MOMENTUM if momentum is None else momentum
    if not 0.0 < rate < 1.0:
        return max(count, 1) if rate == 1.0 else count
    return max(count, math.ceil(math.log(limits.residue_warning) / math.log1p(-rate)))
