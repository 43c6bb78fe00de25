"""Which files of a folder are models: by content, or by a name that promises one."""

from __future__ import annotations

import os
import re

from bncheck.core.errors import UnreadableFile
from bncheck.readers.sniff import Container, recognise
from bncheck.readers.source import FileSource

# A file with such a name that cannot be read is an error, never passed over in silence.
_MODEL_NAME = re.compile(r".*\.(pt|pth|ckpt|safetensors|pt2|pth\.tar|pt\.tar)|pytorch_model.*\.bin", re.IGNORECASE)

_TAIL = 65_536


def is_candidate(path: str) -> bool:
    """Whether a file met while walking a folder should be audited."""
    if _MODEL_NAME.fullmatch(os.path.basename(path)):
        return True
    try:
        with FileSource(path) as source:
            container = recognise(source.read_at(0, min(source.size, 64)))
            if container is Container.ZIP:
                # Any zip would do (wheels, documents, .npz): the directory at the end must name torch's pickle, and
                # a storage beside it, which the settings that trainers save as training_args.bin have not.
                tail = source.read_at(max(0, source.size - _TAIL), min(source.size, _TAIL))
                return b"/data/" in tail and (source.size > _TAIL or b"/data.pkl" in tail)
            return container is Container.SAFETENSORS
    except UnreadableFile:
        return False
