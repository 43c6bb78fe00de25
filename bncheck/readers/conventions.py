"""How training code lays out checkpoints, and what wrappers do to the names of tensors.

``CONVENTIONS`` is the whole of what is known: each row says what it is, who writes it, and which fixture shows it. The
functions below it look names up in the rows and know no writer themselves.

Names come out as ``named_modules()`` of the bare network gives them, so that the copies of one network in a file can
be compared layer by layer. Where that is not certain, names stay as they are: a prefix goes only where every name has
it, a copy is told from the network beside it only where every tensor of it has its counterpart, and nothing goes where
two tensors would get one name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

Shapes = Mapping[str, tuple[int, ...] | None]
"""Tensors by name; None where a tensor has no plain shape."""

_TORCH = "https://github.com/pytorch/pytorch/blob/v2.13.0/torch"


@dataclass(frozen=True, slots=True)
class Convention:
    """One way of writing a checkpoint.

    Attributes:
        name: short name of the row.
        what: what is written.
        writer: the source that writes it.
        fixtures: cases under ``fixtures/``; none where a file of it is never clean, so that tests make it.
        network_keys: keys of a checkpoint that lead to the network being trained.
        copies: words in a key, or in a prefix of names, that tell a copy of the network → the copy's group.
        beside: keys whose presence means that ``places`` holds; the others would mislead.
        places: key of a checkpoint → group, where the keys of ``beside`` are there.
        leading: a wrapper's name for what it wraps, before every name.
        anywhere: likewise, before the names of any wrapped part.
        counters: what a wrapper keeps beside the network it wraps.
        wrapped: group of a network that stands beside such counters, below ``leading``.
        pairs: prefix of a copy's names → prefix of the network's names, in one state dict.
        spelled: prefix of a copy's names in one state dict → what stands there for a dot, where a dot was not allowed.
        shards: classes of tensors of which the file holds one process's part.
        flattened: last parts of the names of tensors that hold several parameters end to end.
        marker: key that tells who wrote a checkpoint.
        network_prefixes: attributes of the writer's own module under which the network lies; only with ``marker``.
        steps_key: key that holds the number of optimizer steps; only with ``marker``.
    """

    name: str
    what: str
    writer: str
    fixtures: tuple[str, ...] = ()
    network_keys: frozenset[str] = frozenset()
    copies: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()
    places: Mapping[str, str] = field(default_factory=dict)
    leading: str | None = None
    anywhere: frozenset[str] = frozenset()
    counters: frozenset[str] = frozenset()
    wrapped: str | None = None
    pairs: Mapping[str, str] = field(default_factory=dict)
    spelled: Mapping[str, str] = field(default_factory=dict)
    shards: frozenset[str] = frozenset()
    flattened: frozenset[str] = frozenset()
    marker: str | None = None
    network_prefixes: frozenset[str] = frozenset()
    steps_key: str | None = None


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="training-loop",
        what="a dict of the network's state dict and what else goes on with training, under keys everybody chooses",
        writer="https://github.com/pytorch/tutorials/blob/main/recipes_source/recipes/saving_and_loading_a_general_checkpoint.py",
        fixtures=("healthy-training-checkpoint",),
        network_keys=frozenset(
            {"model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "weights"}
        ),
    ),
    Convention(
        name="data-parallel",
        what="module. before every name, of DataParallel and DistributedDataParallel",
        writer=f"{_TORCH}/nn/parallel/distributed.py",
        fixtures=("healthy-data-parallel", "healthy-distributed-data-parallel"),
        leading="module",
    ),
    Convention(
        name="compiled",
        what="_orig_mod. wherever torch.compile wrapped a module",
        writer=f"{_TORCH}/_dynamo/eval_frame.py",
        fixtures=("healthy-compiled",),
        anywhere=frozenset({"_orig_mod"}),
    ),
    Convention(
        name="activation-checkpointing",
        what="_checkpoint_wrapped_module. wherever a module is run again in the backward pass",
        writer=f"{_TORCH}/distributed/algorithms/_checkpoint/checkpoint_wrapper.py",
        fixtures=("healthy-activation-checkpointing",),
        anywhere=frozenset({"_checkpoint_wrapped_module"}),
    ),
    Convention(
        name="fully-sharded",
        what="_fsdp_wrapped_module. wherever FSDP wrapped a module; gathered state dicts have plain names",
        writer=f"{_TORCH}/distributed/fsdp/_common_utils.py",
        fixtures=("healthy-fully-sharded",),
        anywhere=frozenset({"_fsdp_wrapped_module", "_fpw_module"}),
    ),
    Convention(
        name="sharded-tensors",
        what="a state dict that was not gathered: each process saved its own part of every parameter",
        writer=f"{_TORCH}/distributed/fsdp/_state_dict_utils.py",
        shards=frozenset(
            {
                "torch.distributed.tensor.DTensor",
                "torch.distributed._tensor.DTensor",
                "torch.distributed._tensor.api.DTensor",
                "torch.distributed._shard.sharded_tensor.api.ShardedTensor",
            }
        ),
        flattened=frozenset({"_flat_param", "flat_param"}),
    ),
    Convention(
        name="averaged-model",
        what="torch's AveragedModel: module. before every name, and n_averaged beside",
        writer=f"{_TORCH}/optim/swa_utils.py",
        fixtures=("healthy-averaged-model", "bn201-averaged-over-no-batches"),
        copies={"swa": "swa", "averaged": "averaged", "averaging": "averaged"},
        leading="module",
        counters=frozenset({"n_averaged"}),
        wrapped="averaged",
    ),
    Convention(
        name="torchvision-references",
        what='{"model", "optimizer", "lr_scheduler", "epoch", "args", "model_ema"}, the last an AveragedModel\'s',
        writer="https://github.com/pytorch/vision/blob/017e9b99b5daddec3d82d5b05fe26f6834c48fa9/references/classification/train.py",
        fixtures=("healthy-torchvision-checkpoint",),
        copies={"ema": "ema"},
    ),
    Convention(
        name="timm",
        what='{"epoch", "arch", "optimizer", "version", "args", "state_dict", "state_dict_ema", …}',
        writer="https://github.com/huggingface/pytorch-image-models/blob/021a5239603ebff2156fd9b09a1706bd6bdd06bf/timm/utils/checkpoint_saver.py",
        fixtures=("healthy-timm-checkpoint",),
        copies={"ema": "ema"},
    ),
    Convention(
        name="ultralytics",
        what='whole modules in half precision: {"epoch", "model", "ema", "updates", "optimizer", "train_args", …}',
        writer="https://github.com/ultralytics/ultralytics/blob/00016300105e79eb8b1646ab03c3d1df9274523f/ultralytics/engine/trainer.py",
        fixtures=("bn409-half-precision-copy",),
        copies={"ema": "ema"},
    ),
    Convention(
        name="lightning",
        what="the state dict of the LightningModule, the network as one of its attributes; optimizers in a list",
        writer="https://github.com/Lightning-AI/pytorch-lightning/blob/030149055683ad7cda7d249c510edfb12deacc54/src/lightning/pytorch/trainer/connectors/checkpoint_connector.py",
        fixtures=("healthy-lightning-checkpoint", "healthy-lightning-ema-in-callbacks"),
        copies={"ema": "ema"},
        marker="pytorch-lightning_version",
        network_prefixes=frozenset({"model", "net", "network", "module", "_model", "_net", "backbone"}),
        steps_key="global_step",
    ),
    Convention(
        name="lightning-weight-averaging",
        what="state_dict holds the average, current_model_state the network being trained",
        writer="https://github.com/Lightning-AI/pytorch-lightning/blob/0b35b0ac98ad47201e952fcf95c242ff93601ca7/src/lightning/pytorch/callbacks/weight_averaging.py",
        fixtures=("healthy-lightning-weight-averaging",),
        network_keys=frozenset({"current_model_state"}),
        beside=frozenset({"current_model_state", "averaging_state"}),
        places={"state_dict": "averaged"},
    ),
    Convention(
        name="mmengine",
        what='{"meta", "state_dict", "message_hub", "optimizer", "param_schedulers"}',
        writer="https://github.com/open-mmlab/mmengine/blob/8593691c1ae8b12a0bbc8a9111580ee55f6a5218/mmengine/runner/runner.py",
        fixtures=("healthy-mmengine-checkpoint",),
    ),
    Convention(
        name="mmengine-ema",
        what="EMAHook swaps values: state_dict holds the average, ema_state_dict the network being trained, with steps",
        writer="https://github.com/open-mmlab/mmengine/blob/02f1880e472c8a8710654148e683eb813ceaa9e5/mmengine/hooks/ema_hook.py",
        fixtures=("healthy-mmengine-checkpoint",),
        beside=frozenset({"message_hub", "state_dict", "ema_state_dict"}),
        places={"state_dict": "ema", "ema_state_dict": "model"},
        leading="module",
        counters=frozenset({"steps"}),
        wrapped="averaged",
    ),
    Convention(
        name="ema-pytorch",
        what="a module with ema_model. and, if it is kept, online_model., beside initted and step",
        writer="https://github.com/lucidrains/ema-pytorch/blob/03e75caadcc9e398d7b1343d73e8def8a07dd097/ema_pytorch/ema_pytorch.py",
        fixtures=("bn201-moments-left-out-of-average",),
        leading="ema_model",
        counters=frozenset({"initted", "step"}),
        wrapped="ema",
        pairs={"ema_model": "online_model"},
    ),
    Convention(
        name="copy-in-one-state-dict",
        what="a module that trains one network and keeps its average: model. and model_ema., net. and ema. …",
        writer="https://github.com/huggingface/pytorch-image-models/blob/021a5239603ebff2156fd9b09a1706bd6bdd06bf/timm/utils/model_ema.py",
        fixtures=("healthy-ema-beside-model",),
        copies={"ema": "ema"},
        pairs={"model_ema": "model", "ema_model": "model", "net_ema": "net", "ema_net": "net", "ema": "model"},
    ),
    Convention(
        name="latent-diffusion",
        what="model_ema. with the dots of the model's names left out, parameters alone, beside decay and num_updates",
        writer="https://github.com/CompVis/latent-diffusion/blob/1dbf39c16249a342821bfeb9c0f1e56c613a361c/ldm/modules/ema.py",
        fixtures=("healthy-ema-of-parameters",),
        counters=frozenset({"decay", "num_updates"}),
        pairs={"model_ema": "model"},
        spelled={"model_ema.": ""},
    ),
    Convention(
        name="mmcv-ema",
        what="ema_ before names whose dots became underscores, as buffers of the network itself",
        writer="https://github.com/open-mmlab/mmcv/blob/092833006244ce4f1189dd6c959a5f6c498dc902/mmcv/runner/hooks/ema.py",
        fixtures=("healthy-ema-of-parameters",),
        spelled={"ema_": "_"},
    ),
    Convention(
        name="student-and-teacher",
        what='{"student", "teacher", "optimizer", "epoch", …}, the teacher an average of the student',
        writer="https://github.com/facebookresearch/dino/blob/04c0ad957c9fd04cced6d703668bc049586d1d21/main_dino.py",
        fixtures=("healthy-student-and-teacher",),
        network_keys=frozenset({"student"}),
        copies={"teacher": "teacher"},
        pairs={"teacher": "student"},
    ),
    Convention(
        name="fairseq",
        what='{"args" or "cfg", "model", "optimizer_history", "last_optimizer_state", …}',
        writer="https://github.com/facebookresearch/fairseq/blob/4a67371a46db2629d5eecf486600a4a8c79f6d56/fairseq/trainer.py",
        fixtures=("healthy-fairseq-checkpoint",),
    ),
)

_NETWORK_KEYS = frozenset(key for row in CONVENTIONS for key in row.network_keys)
_COPIES = {word: group for row in CONVENTIONS for word, group in row.copies.items()}
_ANYWHERE = frozenset(part for row in CONVENTIONS for part in row.anywhere)
_MENTIONED = re.compile("|".join(sorted(_ANYWHERE)))
_LEADING = "module"  # of data parallelism: the only wrapper that leaves no counter behind
_COUNTERS = frozenset(counter for row in CONVENTIONS for counter in row.counters)
_PAIRS = tuple((copy, raw) for row in CONVENTIONS for copy, raw in row.pairs.items())
_SPELLED = {prefix: dot for row in CONVENTIONS for prefix, dot in row.spelled.items()}
_SHARDS = frozenset(path for row in CONVENTIONS for path in row.shards)
_FLATTENED = frozenset(part for row in CONVENTIONS for part in row.flattened)

_SCALARS = ((), (1,))
# Copies looked for in one state dict: each costs a pass over its names.
_MOST_COPIES = 4
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")


# --- keys of checkpoints -----------------------------------------------------------------------------------


def group_of(path: tuple[str, ...], beside: Set[str] = frozenset()) -> str:
    """The copy of the network that checkpoint keys lead to: ``model``, ``ema`` … or the keys themselves.

    Args:
        path: the keys.
        beside: all keys at the top of the checkpoint; some writers move the network elsewhere for its average.
    """
    placed = placed_group(path, beside)
    if placed is not None:
        return placed
    rest = [key for key in path if key not in _NETWORK_KEYS]
    for key in rest:
        group = _copy_named(key)
        if group is not None:
            return group
    return ".".join(rest) or "model"


def placed_group(path: tuple[str, ...], beside: Set[str]) -> str | None:
    """The group of what a writer keeps elsewhere than its key says; None where the key can be taken at its word."""
    for row in CONVENTIONS:
        if row.beside and row.beside <= beside and path and path[0] in row.places:
            return row.places[path[0]]
    return None


def group_of_part(path: tuple[str, ...], beside: Set[str], part: Part) -> str:
    """The group of a part of the state dict that checkpoint keys lead to; the arguments are those of ``group_of``."""
    told = group_of(path, beside)
    if told in _COPIES.values() or placed_group(path, beside) is not None:
        # The keys lead to the copy: what stands beside it is the network it was made of.
        return told if part.group is not None or not part.beside_copies else f"{told}.{part.prefix or 'model'}"
    if part.group is None:
        return told
    return part.group if told == "model" else f"{told}.{part.group}"


def network_prefixes(keys: Set[str]) -> frozenset[str]:
    """Attributes under which the writer of a checkpoint with these keys keeps the network."""
    rows = (row for row in CONVENTIONS if row.marker is not None and row.marker in keys)
    return frozenset(prefix for row in rows for prefix in row.network_prefixes)


def steps_key(keys: Set[str]) -> str | None:
    """The key under which the writer of a checkpoint with these keys counts optimizer steps."""
    return next((row.steps_key for row in CONVENTIONS if row.marker is not None and row.marker in keys), None)


def is_shard(class_path: str) -> bool:
    """Whether a tensor of this class is one process's part of a larger one."""
    return class_path in _SHARDS


def is_flattened(name: str) -> bool:
    """Whether a tensor of this name holds several parameters end to end."""
    return name.rpartition(".")[2] in _FLATTENED


def _copy_named(key: str) -> str | None:
    words = {word.lower() for word in _WORD.findall(key)}
    return next((group for word, group in _COPIES.items() if word in words), None)


# --- names of tensors --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """The tensors of one copy of the network, and what they are called in it.

    Attributes:
        group: which copy the names tell; None where only the keys that lead to them can.
        prefix: what stood before the names, without wrappers and without its dot.
        bare: name in the file, of a tensor or a module → name in the network; None where it is no part of it.
        beside_copies: whether copies of it stand beside it.
    """

    group: str | None
    prefix: str
    bare: Callable[[str], str | None]
    beside_copies: bool = False


def parts_of(shapes: Shapes, prefixes: frozenset[str] = frozenset()) -> tuple[Part, ...]:
    """The copies of a network that one state dict or module holds, the network itself first.

    Args:
        shapes: its tensors.
        prefixes: attributes under which the writer keeps the network, where that is known.
    """
    plain = {_without_wrappers(name): shape for name, shape in shapes.items()}
    unwrap = _without_wrappers if len(plain) == len(shapes) else _unchanged
    plain = plain if len(plain) == len(shapes) else dict(shapes)
    group, leading = _wrapper(plain)
    inner = {_below(leading, name): shape for name, shape in plain.items() if _is_below(leading, name)}
    shared = _shared_part(inner)
    copies = _copies_in(inner)
    if not copies and shared is not None:
        below = {_below(shared, name): shape for name, shape in inner.items()}
        copies = _copies_in(below)
        leading, inner = (_joined(leading, shared), below) if copies else (leading, inner)
    if copies:
        return tuple(_split(inner, copies, unwrap, leading))
    if shared in prefixes:
        leading = _joined(leading, shared)
    return (_part(group, unwrap, leading),)


def _wrapper(names: Shapes) -> tuple[str | None, str]:
    """The group of a copy that an averaging wrapper made, if one did, and the prefix that a wrapper put before all."""
    for row in CONVENTIONS:
        if row.leading is None:
            continue
        dotted = f"{row.leading}."
        # One more than may be there settles it.
        beside = list(islice((name for name in names if not name.startswith(dotted)), len(row.counters) + 1))
        if len(beside) < len(names) and bool(beside) == bool(row.counters) and set(beside) <= row.counters:
            inside = {_below(row.leading, name): None for name in names if _is_below(row.leading, name)}
            doubled = row.counters and _shared_part(inside) == _LEADING
            return row.wrapped, _joined(row.leading, _LEADING) if doubled else row.leading
    return None, ""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy found beside its network, in the same state dict.

    Attributes:
        group: which copy.
        first: first part of its names; None where they have no parts.
        raw: prefix of the network's names.
        counterpart: name of the copy → name of the network; None where it is no part of the copy.
        taken: the tensors that are the copy's, or count for it.
    """

    group: str
    first: str | None
    raw: str
    counterpart: Callable[[str], str | None]
    taken: frozenset[str]


def _copies_in(names: Shapes) -> tuple[_Copy, ...]:
    firsts = tuple(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
    told = {first: group for first in firsts if (group := _copy_named(first)) is not None}
    if len(told) > _MOST_COPIES:
        return ()
    networks = [first for first in firsts if first not in told]
    raws = frozenset((*networks, *(_joined(first, _LEADING) for first in networks), ""))
    found = [_copy_below(first, group, names, raws) for first, group in told.items()]
    return tuple(copy for copy in found if copy is not None) or tuple(_spelled_copies(names))


def _copy_below(first: str, group: str, names: Shapes, raws: Set[str]) -> _Copy | None:
    below = _all_below(first, names)
    for inner in dict.fromkeys(("", _wrapper(below)[1])):
        counters = {name for name in below if not _is_below(inner, name) or _counts(name, below)}
        members = {_below(inner, name): shape for name, shape in below.items() if name not in counters}
        if not members:
            continue
        covering = [raw for raw in _prefixes(next(iter(members)), names) if raw in raws]
        covering = [raw for raw in covering if _covers(raw, members, names)]
        paired = [raw for copy, raw in _PAIRS if copy == first and raw in covering]
        # A single layer may look like any other of its size.
        if paired or (len(covering) == 1 and any("." in name for name in members)):
            raw = paired[0] if paired else covering[0]
            taken = frozenset(_joined(first, name) for name in below)
            left_out = frozenset(_joined(first, name) for name in counters)
            return _Copy(group, first, raw, partial(_moved, _joined(first, inner), raw, left_out), taken)
    return None


def _moved(old: str, new: str, left_out: frozenset[str], name: str) -> str | None:
    inside = None if name in left_out else _inside(old, name)
    return None if inside is None else _joined(new, inside)


def _all_below(first: str, names: Shapes) -> Shapes:
    dotted = f"{first}."
    return {name[len(dotted) :]: shape for name, shape in names.items() if name.startswith(dotted)}


def _prefixes(name: str, names: Shapes) -> Iterator[str]:
    """What stands before a name, wherever it occurs at the end of others."""
    dotted = f".{name}"
    if name in names:
        yield ""
    yield from (full[: -len(dotted)] for full in names if full.endswith(dotted))


def _covers(raw: str, members: Shapes, names: Shapes) -> bool:
    """Whether every tensor of a copy has its counterpart under ``raw``."""
    return all((full := _joined(raw, name)) in names and names[full] == shape for name, shape in members.items())


def _counts(name: str, shapes: Shapes) -> bool:
    return name in _COUNTERS and shapes[name] in _SCALARS


def _spelled_copies(names: Shapes) -> Iterator[_Copy]:
    """Copies whose names lost their dots, as names of buffers must have none."""
    for prefix, dot in _SPELLED.items():
        mine = {name for name in names if name.startswith(prefix) and "." not in name.removeprefix(prefix)}
        members = {name for name in mine if name.removeprefix(prefix) not in _COUNTERS}
        first = prefix.removesuffix(".")
        for raw in (*(raw for copy, raw in _PAIRS if copy == first), "") if members else ():
            counterparts = _respelled(raw, prefix, dot, names)
            if all(name in counterparts and names[counterparts[name]] == names[name] for name in members):
                matched = {name: counterparts[name] for name in members}
                group = _copy_named(first) or first
                yield _Copy(group, first if prefix.endswith(".") else None, raw, matched.get, frozenset(mine))
                break


def _respelled(raw: str, prefix: str, dot: str, names: Iterable[str]) -> dict[str, str]:
    """What a copy's names would be → the network's names; none where two would be one."""
    made: dict[str, str] = {}
    for name in names:
        if _is_below(raw, name) and not name.startswith(prefix):
            short = prefix + _below(raw, name).replace(".", dot)
            if short in made:
                return {}
            made[short] = name
    return made


def _split(names: Shapes, copies: Sequence[_Copy], unwrap: Callable[[str], str], leading: str) -> Iterator[Part]:
    """The network and its copies as parts; the network's own prefix goes where nothing else stands beside it."""
    taken = frozenset(name for copy in copies for name in copy.taken)
    firsts = frozenset(copy.first for copy in copies if copy.first is not None)
    raws = {copy.raw for copy in copies}
    raw = raws.pop() if len(raws) == 1 else ""
    rest = [name for name in names if name not in taken and not _counts(name, names)]
    tried = (_joined(raw, _LEADING), raw)
    prefix = next((known for known in tried if all(_is_below(known, name) for name in rest)), "")

    def plain(name: str) -> str | None:
        return _inside(leading, unwrap(name))

    def of_the_network(name: str) -> str | None:
        inside = plain(name)
        if inside is None or inside in taken or inside.partition(".")[0] in firsts:
            return None
        return _inside(prefix, inside)

    def of_the_copy(copy: _Copy, name: str) -> str | None:
        inside = plain(name)
        counterpart = None if inside is None else copy.counterpart(inside)
        return None if counterpart is None else _inside(prefix, counterpart)

    yield Part(None, prefix, of_the_network, beside_copies=True)
    for copy in copies:
        yield Part(copy.group, copy.first or "", partial(of_the_copy, copy))


def _part(group: str | None, unwrap: Callable[[str], str], leading: str) -> Part:
    return Part(group, leading, lambda name: _inside(leading, unwrap(name)))


# --- parts of dotted names ---------------------------------------------------------------------------------


def _unchanged(name: str) -> str:
    return name


def _without_wrappers(name: str) -> str:
    if _MENTIONED.search(name) is None:
        return name
    return ".".join(part for part in name.split(".") if part not in _ANYWHERE)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _is_below(prefix: str, name: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _below(prefix: str, name: str) -> str:
    return name.removeprefix(f"{prefix}.") if prefix else name


def _inside(prefix: str, name: str) -> str | None:
    """The name below a prefix, ``""`` for the prefix itself, None elsewhere."""
    return "" if name == prefix else _below(prefix, name) if _is_below(prefix, name) else None


def _shared_part(names: Iterable[str]) -> str | None:
    """The first part of the names where all have the same and more behind it."""
    firsts = {name.partition(".")[0] if "." in name else None for name in names}
    return firsts.pop() if len(firsts) == 1 else None
