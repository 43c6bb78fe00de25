"""A program for torchrun: recalibrates on this rank's batches and saves what came out.

    torchrun … ranked.py OUT SIZES...

Each rank takes its own share of the sizes, given as rank:size,size; the images are those of one process with all.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bncheck.recalibration.ranks import Distributed
from bncheck.recalibration.schedule import Plan, estimate
from bncheck.runtime.batches import Batch, forward
from bncheck.runtime.norm_watch import running_means, running_variances
from tests.recalibration.networks import Residual, built, images


def main() -> None:
    out, fault, *shares = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank = dist.get_rank()
    sizes = [[int(size) for size in share.split(",") if size] for share in shares]
    everything = images([size for share in sizes for size in share])
    first = sum(len(share) for share in sizes[:rank])
    mine = everything[first : first + len(sizes[rank])]
    model = built(Residual)
    if fault and rank == 1:
        _plant(fault, model)
    means = running_means(model)
    found = estimate(
        model,
        [Batch((batch,), None, len(batch)) for batch in mine],
        forward,
        means,
        running_variances(model),
        Plan(samples=10**6, pass_samples=8, memory=int(os.environ.get("MEMORY") or 0) or None),
        Distributed(list(means), torch.device("cpu")),
    )
    torch.save(
        {"state": model.state_dict(), "samples": found.samples, "residual": found.residual, "waves": found.waves},
        Path(out) / f"{rank}.pt",
    )
    dist.destroy_process_group()


def _plant(fault: str, model: torch.nn.Module) -> None:
    """Make this rank fail at its third layer."""

    def strike(*_: object) -> None:
        if fault == "dies":
            os._exit(9)
        raise RuntimeError("the second rank's own trouble")

    model.blocks[1].register_forward_pre_hook(strike)  # type: ignore[index, operator]


if __name__ == "__main__":
    main()
