"""What holds for all tests."""

from __future__ import annotations

import os

# As many processes as there are cores run tests; threads of OpenMP that wait for one another on busy cores spin, which
# took nine tenths of the processor time of a small network. Before torch is imported, and for all processes started.
os.environ.setdefault("OMP_NUM_THREADS", "1")
