"""A program that recalibrates with little memory: sys.argv[1] MiB beyond what it holds when it begins."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from bncheck.recalibration.schedule import Plan
from tests.recalibration.networks import Plain, brute_force, built, errors, images
from tests.recalibration.test_exact import recalibrated


def main() -> None:
    torch.set_num_threads(1)
    batches = images([64] * 8, side=96)
    reference = brute_force(built(Plain), batches)
    model = built(Plain)
    recalibrated(built(Plain), images((4,)))  # what is imported and started on first use is there now
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
    found = recalibrated(model, batches, Plan(samples=512, memory=2**40, pass_samples=64))
    print(found.waves, found.residual, max(errors(model, reference)))


if __name__ == "__main__":
    main()
