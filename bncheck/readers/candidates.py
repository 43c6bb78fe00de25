"""Which files of a folder are models: by content, or by a name that promises one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import assert_never

from bncheck.core.errors import UnreadableFile
from bncheck.readers.sniff import HEAD, Container, recognise
from bncheck.readers.source import FileSource, Source

# A file with such a name that cannot be read is an error, never passed over in silence.
_MODEL_NAME = re.compile(r".*\.(pt|pth|ckpt|safetensors|pt2|pth\.tar|pt\.tar)|pytorch_model.*\.bin", re.IGNORECASE)

_TAIL = 65_536

# How a legacy stream ends that holds no storage: a pickle of an empty list, in protocols 2 and 3, or 4 and 5.
_NO_STORAGE = (b"]q\x00.", b"]\x94.")


# What torch.distributed.checkpoint writes: a file for each process, and what tells them apart in a hidden one.
# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/distributed/checkpoint/filesystem.py
_PART = ".distcp"
_PLAN = ".metadata"
DISTRIBUTED = (
    "is a checkpoint of torch.distributed.checkpoint, each process having written a part; make one file of the folder: "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt"
)


def is_distributed(names: Collection[str]) -> bool:
    """Whether a folder that holds these files is a checkpoint of ``torch.distributed.checkpoint``."""
    return _PLAN in names and any(name.endswith(_PART) for name in names)


def is_distributed_part(path: str) -> bool:
    """Whether a file is one process's part of such a checkpoint."""
    return path.endswith(_PART) and os.path.exists(os.path.join(os.path.dirname(path), _PLAN))


def is_candidate(path: str) -> bool:
    """Whether a file met while walking a folder should be audited."""
    if _MODEL_NAME.fullmatch(os.path.basename(path)):
        return True
    try:
        with FileSource(path) as source:
            container = recognise(source.read_at(0, min(source.size, HEAD)))
            return container is not None and _holds_tensors(container, source)
    except UnreadableFile:
        return False


def _holds_tensors(container: Container, source: Source) -> bool:
    tail = source.read_at(max(0, source.size - _TAIL), min(source.size, _TAIL))
    match container:
        case Container.ZIP:
            # Any zip would do (wheels, documents, .npz): the directory at the end must name torch's pickle, and
            # a storage beside it, which the settings that trainers save as training_args.bin have not.
            return b"/data/" in tail and (source.size > _TAIL or b"/data.pkl" in tail)
        case Container.TORCH_LEGACY:
            return not tail.endswith(_NO_STORAGE)
        case Container.SAFETENSORS | Container.TORCH_TAR:
            return True
        case Container.SHARD_INDEX:
            # Other frameworks' files are listed in the same way.
            return b'.safetensors"' in tail or b'.bin"' in tail
        case _:
            assert_never(container)
