"""Mutated model files by the hundred thousand, read under watch.

    python tests/benchmarks/fuzz.py                                 # 100 000 inputs over all formats
    python tests/benchmarks/fuzz.py --count 1000000 --seed 7        # more, and others
    python tests/benchmarks/fuzz.py --formats pickle zip            # some formats only
    python tests/benchmarks/fuzz.py --keep /tmp/crashes             # keeps what crashed or differs
    python tests/benchmarks/fuzz.py --minimise pickle FILE          # the smallest file that fails as FILE does

What counts as a crash stands in ``tests/fuzzing/watched_reading.py``, as a difference in
``tests/fuzzing/second_opinion.py``. The exit code is 1 where there is any. Every input can be made again from the
seed, the format and its number. Columns: ``partly`` are those read in part, which no audit calls clean; ``lib refuses``
counts what bncheck reads whole and the format's own library does not load.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, Python looks for modules beside the script alone

from tests.fuzzing.campaign import Outcome, Plan, run  # noqa: E402
from tests.fuzzing.formats import FORMATS  # noqa: E402
from tests.fuzzing.minimise import minimise_file  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign and print its table, or make one failing file small."""
    told = _options().parse_args(arguments)
    if told.minimise is not None:
        name, path = told.minimise
        print(minimise_file(FORMATS[name], Path(path)))
        return 0
    outcome = run(Plan(told.formats, told.count, told.seed, told.compared, told.keep))
    print(outcome.table())
    _print_faults(outcome)
    return 1 if outcome.faults else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fuzz the file readers.")
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--formats", nargs="+", choices=sorted(FORMATS), default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--compared", type=int, default=2000, help="inputs of each format that get a second opinion")
    parser.add_argument("--keep", type=Path, help="folder for inputs that crashed or differ")
    parser.add_argument("--minimise", nargs=2, metavar=("FORMAT", "FILE"), help="make one failing file small")
    return parser


def _print_faults(outcome: Outcome) -> None:
    for reason, count in outcome.refusals.most_common(12):
        print(f"library refuses {count}: {reason}")
    for fault in outcome.faults:
        print(f"\n{fault.format} {fault.index} ({len(fault.data)} bytes): {fault.signature}\n{fault.detail.strip()}")


if __name__ == "__main__":
    sys.exit(main())
