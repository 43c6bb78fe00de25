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

    # --- rules that need --data -------------------------------------------------------------------
    # Largest change of an output relative to the largest output when a sample gets other companions. True cases are
    # above 0.1; TF32 and cuDNN's choice of kernels change outputs by 1.5e-5, float32 on a CPU by 1e-7.
    companion_change: float = 1e-3
    # Change between two runs of one batch above which nothing can be told.
    companion_noise: float = 1e-3
    # Samples whose top class differs between stored and batch moments, where there are no labels.
    disagreement_warning: float = 0.10
    disagreement_error: float = 0.40
    # Accuracy that stored moments cost against batch moments, where there are labels.
    accuracy_drop_warning: float = 0.02
    accuracy_drop_error: float = 0.20
    # Nats by which the cross-entropy with stored moments lies above the one with batch moments. On healthy networks it
    # is at most 0.004 and mostly below 0, for a batch's moments are the worse ones; of the faults that cost a point of
    # accuracy or more through batch norm, 97 % are above 0.01.
    loss_rise_warning: float = 0.01
    # Cross-entropy, as a share of what guessing all classes alike gives, up to which a model works on the data: then
    # labels can tell that a drift does no harm. Healthy networks are at 0.01 to 0.1, and those in noise of 0.3 at 0.3.
    working_loss: float = 0.25
    # Root mean square change of outputs that are no scores.
    output_change_warning: float = 0.5
    output_change_error: float = 1.0
    # Root mean square over channels of δ, in stored standard deviations, and median |ln ρ²|. On the 17 healthy
    # networks that they were chosen on (tests/benchmarks/faults.py) they reach 0.11 and 0.10, those trained at a
    # constant rate to the end included; on networks of other architectures, seeds and recipes 0.14 and 0.10, so that
    # the limits held, if only just. Statistics that cost one to two points of accuracy bring 0.16 to 0.25 and 0.2 to
    # 0.3. Training on images shifted or cropped at random brings up to 0.29 and 0.37 on plain ones, and no harm: there
    # labels decide.
    drift_delta_warning: float = 0.15
    drift_delta_error: float = 1.0
    drift_log_ratio_warning: float = 0.3
    drift_log_ratio_error: float = math.log(4.0)
    # Standard errors that a drift must exceed to be told from chance.
    drift_significance: float = 3.0
    # Samples per training batch assumed where nothing says it: the noise of a moving average depends on it.
    assumed_batch_size: float = 16.0
    # Images per training batch. YOLOv5s trains alike at 16 and 128; at 1 and 2 per device, published detectors lose
    # points. The inferred number tells such batches from normal ones and no more, so nothing is said from 4 on.
    tiny_batch_warning: float = 4.0
    # Below two images, a batch's moments are those of a single image.
    single_image_batch: float = 2.0
    # Standard errors that the interval of an inferred batch size reaches to each side. Over 414 measurements of digit
    # networks of five architectures trained at 1 to 64, 99 % of the intervals held the true size, 57 % of those trained
    # at 1 and 33 % of those at 2 were told, and from 8 on no estimate came within one error of an alarm.
    tiny_batch_errors: float = 2.0
    # A layer's estimate scatters less than one channel's, but channels see the same batches: over repeated training
    # the scatter was 0.15 to 0.5 of a channel's standard error.
    channel_independence: float = 1 / 3
    # Share of the variance by which data and training differ though nothing is wrong: two halves of the digits, and
    # earlier layers that normalise with other moments in training mode than in eval mode.
    variance_mismatch: float = 0.03
    # Mean of δ² over channels, in units of what chance gives on average, up to which a layer's means were not left
    # behind: channels see the same batches, so that it does not average out. Values of 1 to 3 held as many true sizes.
    mean_scatter: float = 2.0
    # Standard error for each unit by which an estimate of 1 / b leaves 0 … 1. In eval mode a network trained on single
    # images brings its later layers other inputs than in training, and the estimates come out at 1.0 to 2.2; moments
    # that are no batch's, such as those of 30 updates, come out at 4 to 60.
    batch_size_misfit: float = 0.7
    # Rank correlation of drift with depth from which it is said to grow.
    drift_depth_correlation: float = 0.8
    # Values per channel in a training batch: YOLOv5s trains alike with batches of 16 to 128 images.
    values_per_channel: float = 16.0

    # --- recalibration ----------------------------------------------------------------------------
    # Standard errors that count as settled: of a mean in units of √(σ² + eps), of a variance as a share of σ² + eps.
    # At these the output of a layer is off by a twentieth of its spread at most.
    settled_mean: float = 0.05
    settled_variance: float = 0.05
    # Share of channels that must have settled: a few dead ones never do.
    settled_share: float = 0.95
    # Distance from the fixed point, in σ and as a share of σ², that counts as exact: some spacings of float32.
    exact_residual: float = 1e-6
    # Sweeps after which it is given up: networks without reused layers need one where memory holds all, some five
    # where it does not.
    exact_sweeps: int = 30
    # Variance between the means of batches over what shuffled data would give (the upper quartile over channels), above
    # which the data is sorted: shuffled digits are at 0.9 to 1.5, digits sorted by class at 20 to 200.
    batch_scatter: float = 3.0

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
    # TorchScript code read for one file, and expressions followed in it, in all modes together: EfficientNet-B7,
    # traced, has 0.6 MB of code, and ResNet-152, scripted, takes 7e4 steps.
    code_bytes: int = 4 * 2**20
    code_steps: int = 1_500_000
    # Brackets and blocks inside one another in a line of code; PyTorch breaks long lines up.
    code_nesting: int = 150
    # Functions that call one another; modules of published networks nest some 20 deep.
    code_call_depth: int = 100
    # Characters in the names of all modules and tensors: 3e5 names of the longest published networks' 200.
    name_characters: int = 64 * 2**20
    # Lists, and entries of objects, in one JSON text: parsed, it takes ten times its bytes and more. The header of a
    # safetensors file holds five for each tensor.
    json_values: int = 2_000_000
    # ResNet-152 exported in training mode and decomposed is 3.2 MB of JSON: 671 nodes, 73 000 values. The largest
    # diffusion networks have 1e4 nodes.
    exported_json_bytes: int = 48 * 2**20
    exported_nodes: int = 50_000
    # Tensors of a class of their own, each in a pickle of its own: some hundreds in a quantised network.
    exported_pickles: int = 4096
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
    # The three pickles a legacy stream begins with take 137 bytes, in protocol 0 some 250.
    legacy_header_bytes: int = 4096
    # Storages that a legacy stream or tar lists one by one: as many as torch writes zip members.
    legacy_storages: int = 300_000
    # Extended header of a tar member: Python's tarfile writes the time, ids and names, each below 100 bytes.
    tar_extended_bytes: int = 4096
    # What deflated members (some tools repack archives) may unpack to, all together.
    zip_inflated_bytes: int = 64 * 2**20
    # The format itself caps the header at 100 MB (safetensors README); parsed JSON takes ten times its size.
    safetensors_header_bytes: int = 16 * 2**20
    # The index of a model spread over files: some 90 bytes for each tensor, and the largest models have 1e5.
    shard_index_bytes: int = 16 * 2**20
    # Files of one model, which are open at the same time; the largest published models have some 200.
    shards: int = 512
    # The config.json beside a model: names of the 21841 classes of ImageNet, there and back, take 2 MB.
    config_bytes: int = 4 * 2**20
    # Separate reads for a tensor that is scattered over a large storage (a column of a big matrix).
    scattered_reads: int = 65_536
    # Channels of one normalisation layer; the widest published layers have some 1e5.
    channels: int = 2**22
    # Bytes of batch-norm tensors held for one file, as float64: 300 times ResNet-50's.
    statistics_bytes: int = 128 * 2**20
    tensor_dimensions: int = 64
    # Of a file behind a URL: bytes held of what was fetched, which is some sixty times the batch-norm tensors of a
    # ResNet-50 and all their neighbours within one request; they come again when more is needed.
    remote_cache_bytes: int = 32 * 2**20
    # What a server that ignores byte ranges may send whole: most of the small classifiers, in one answer.
    remote_whole_bytes: int = 32 * 2**20
    # All that may be fetched of one file. A 500 MB Adam checkpoint takes 1 MB in 80 requests; the bounds of the
    # pickle, the directory and the statistics above add up to less than this.
    remote_bytes: int = 512 * 2**20
    remote_requests: int = 10_000
    # Seconds without a byte, and for the whole file: 32 MiB whole at 0.5 Mbit/s.
    remote_stall_seconds: float = 20.0
    remote_seconds: float = 600.0
    # Optimizer step counters looked at to learn how long a checkpoint was trained.
    optimizer_steps_read: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"limit {field.name} must be a positive number, not {value!r}")
            if field.name.endswith("_warning"):
                error = getattr(self, f"{field.name.removesuffix('_warning')}_error", None)
                if error is not None and value > error:
                    raise ValueError(f"{field.name} must not exceed {field.name.removesuffix('_warning')}_error")


DEFAULT_LIMITS = Limits()
