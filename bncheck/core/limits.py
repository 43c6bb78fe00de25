"""Every threshold in the program, in one place, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of the rules and bounds of the readers.

    Raises:
        ValueError: a limit is not finite or not positive, or a warning limit lies above its error limit.
    """

    # --- rules -----------------------------------------------------------------------------------
    # |gamma| / sqrt(var + eps). Healthy networks stay below a few hundred even with dead channels
    # (1 / sqrt(1e-5) = 316); above a thousand float32 noise of 1e-7 becomes 1e-4 of the output.
    gain_warning: float = 1e3
    # Largest finite float16 (IEEE 754 binary16): a larger gain cannot be stored by a folded half-precision layer.
    gain_error: float = 65504.0
    # (1 - momentum) ** n, the weight the initial 0 / 1 still has. TensorFlow offers `zero_debias` against the same;
    # at 1 % the variance of a channel is off by at most 1 % of its distance from 1.
    residue_warning: float = 0.01
    residue_error: float = 0.10
    # Share of a layer's channels that must be dead before the notice becomes a warning: "most of a layer".
    dead_share_warning: float = 0.5
    # A constant channel c does not get variance 0: torch's kernel rounds the mean, and a standard deviation of some
    # float32 spacings 2**-23 * |c| is left (measured on torch 2.13, CPU: 1.8 for 32 values, 16 for 256).
    dead_spacings: float = 32.0
    # Where the file gives no momentum, equal variances this far below the layer's median betray dead channels:
    # they all went through the same roundings of (1 - m) ** n.
    dead_below_median: float = 1e-3
    # PyTorch momentum at which the window 1 / m holds two batches or fewer: 0.9, 0.99, 0.999 are ports of a decay.
    decay_momentum: float = 0.5
    # eps in use across frameworks: 1e-3 is the default of Keras and of TensorFlow's slim, 1e-5 PyTorch's. A rule that
    # needs eps where a file does not give it decides only when both ends agree.
    eps_largest_in_use: float = 1e-3

    # --- readers ---------------------------------------------------------------------------------
    # A whole-module pickle of a 1000-layer network takes about 1e5 opcodes, an Adam checkpoint of 1e4 tensors
    # about 1e6. Above this the reader would need more memory than a gate may use.
    pickle_opcodes: int = 5_000_000
    pickle_bytes: int = 128 * 2**20
    # One text or bytes object; a vocabulary kept in a checkpoint takes some MB. Decoded text can take four times that.
    pickle_string_bytes: int = 16 * 2**20
    # Different classes and functions one pickle names, and the length of such a name.
    pickle_globals: int = 100_000
    pickle_name_length: int = 1000
    # Bytes that constructors copy (a set of a list, bytes of text): an opcode may copy what another has built.
    pickle_copied_bytes: int = 64 * 2**20
    # CPython refuses to print integers above 4300 digits; no checkpoint holds one of 1 KiB.
    pickle_integer_bytes: int = 1024
    # Modules nested deeper than this are no network (torch's own recursion would fail first).
    nesting: int = 200
    # Characters in a dotted name; the longest in published models have some 200.
    name_length: int = 4096
    # Containers looked into while searching for models inside a checkpoint, and entries in all of them: a table
    # shared by many modules counts each time.
    containers: int = 500_000
    container_entries: int = 5_000_000
    # Named tensors; the largest mixtures of experts have some 1e5.
    tensors: int = 300_000
    # torch writes one member for each storage: an Adam checkpoint of 1e4 tensors has 3e4.
    zip_members: int = 300_000
    zip_directory_bytes: int = 64 * 2**20
    # What deflated members (some tools repack archives) may unpack to, all together.
    zip_inflated_bytes: int = 64 * 2**20
    # The format itself caps the header at 100 MB (safetensors README); parsed JSON takes ten times its size.
    safetensors_header_bytes: int = 16 * 2**20
    # Separate reads for a tensor that is scattered over a large storage (a column of a big matrix).
    scattered_reads: int = 65_536
    # Channels of one normalisation layer; the widest published layers have some 1e5.
    channels: int = 2**22
    # Bytes of batch-norm tensors held for one file, as float64: 300 times ResNet-50's.
    statistics_bytes: int = 128 * 2**20
    tensor_dimensions: int = 64
    # Optimizer step counters looked at to learn how long a checkpoint was trained.
    optimizer_steps_read: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"limit {field.name} must be a positive number, not {value!r}")
        if self.gain_warning > self.gain_error:
            raise ValueError("gain_warning must not exceed gain_error")
        if self.residue_warning > self.residue_error:
            raise ValueError("residue_warning must not exceed residue_error")


DEFAULT_LIMITS = Limits()
