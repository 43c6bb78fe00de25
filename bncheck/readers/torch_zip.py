"""``torch.save`` since 1.6: a zip archive of one pickle and the storages it refers to."""

from __future__ import annotations

from dataclasses import replace

from bncheck.core.checkpoint import Checkpoint, FileFormat
from bncheck.core.limits import Limits
from bncheck.readers.pickle_calls import torch_trust
from bncheck.readers.pickled import PickledContainer, checkpoint_of
from bncheck.readers.torch_archive import TorchArchive
from bncheck.readers.zip_directory import ZipDirectory


def read_torch_zip(
    archive: ZipDirectory, prefix: str, path: str, limits: Limits, vouched: frozenset[str]
) -> Checkpoint:
    """Read a file written by ``torch.save``.

    Args:
        archive: the file.
        prefix: the archive's folder, with its slash.
        path: as the user gave it, for the report.
        limits: bounds.
        vouched: callables the user allows whole-module pickles to name.

    Raises:
        UnreadableFile: the file is damaged.
        UnsafeFile: loading it would run code.
        NoModel: it holds no network.
    """
    root, container = torch_zip_contents(archive, prefix, path, limits, vouched)
    checkpoint = checkpoint_of(root, container, limits)
    return replace(checkpoint, remarks=(*checkpoint.remarks, *archive.remarks()))


def torch_zip_contents(
    archive: ZipDirectory, prefix: str, path: str, limits: Limits, vouched: frozenset[str]
) -> tuple[object, PickledContainer]:
    """The records of a file written by ``torch.save``, and what holds their tensors; arguments as above.

    Raises:
        UnreadableFile, UnsafeFile: as ``read_torch_zip``.
    """
    contents = TorchArchive(archive, prefix, limits)
    root = contents.unpickle("data.pkl", torch_trust(limits, vouched))
    return root, PickledContainer(path, FileFormat.TORCH_ZIP, contents.reference_in("data"), contents.arrays)
